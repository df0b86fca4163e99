"""The schema of facts, and how several sources merge."""

from datetime import timedelta
from itertools import permutations

import pytest

from service.triage import ASKS, FACTS, HARMS, NOW, PROVINCES, SCHEMA, Fact, Source, check, merge
from tests.service.triage.builders import AS_OF, a_fact


def test_the_schema_has_the_facts_of_the_protocol() -> None:
    assert SCHEMA == "facts-1"
    assert NOW == (
        "danger_now",
        "child_with_suspect_now",
        "confined_now",
        "moved_today",
        "injured_without_care",
        "self_harm",
        "harm_due_today",
        "live_stream_now",
    )
    assert len(HARMS) == 11
    assert {known.kind for known in FACTS.values()} == {"danger", "calming", "neutral"}
    assert set(FACTS["province"].values) == set(PROVINCES)


def test_yes_is_the_urgent_end_of_a_danger_and_the_calm_end_of_a_calming_fact() -> None:
    for known in FACTS.values():
        if set(known.values) == {"yes", "no"} and known.kind != "neutral":
            assert known.values[-1] == ("yes" if known.kind == "danger" else "no"), known.name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("weather", "bad"),
        ("danger_now", "unknown"),
        ("danger_now", "maybe"),
        ("danger_now", 1),
        ("danger_now", True),
        ("age_min", "12"),
        ("age_min", -1),
        ("age_min", 121),
        ("age_min", True),
        ("age_min", None),
        ("province", "KH-26"),
    ],
)
def test_a_fact_outside_the_schema_is_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match="no such") as refused:
        Fact(name, value, Source.STATED)  # type: ignore[arg-type]

    assert str(value) not in str(refused.value)
    with pytest.raises(ValueError, match="no such"):
        check(name, value)


def test_a_time_without_a_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="zone"):
        a_fact("danger_now", "yes", at=AS_OF.replace(tzinfo=None))


def test_the_newest_confirmed_value_wins() -> None:
    older = a_fact("danger_now", "yes", Source.CONFIRMED, AS_OF)
    newer = a_fact("danger_now", "no", Source.CONFIRMED, AS_OF + timedelta(minutes=1))
    stated = a_fact("danger_now", "yes", Source.STATED, AS_OF + timedelta(hours=1))

    for order in permutations([older, newer, stated]):
        assert merge(order)["danger_now"] is newer


def test_else_the_most_urgent_known_value_wins() -> None:
    pairs = [("danger_now", "no", "yes"), ("lesser_only", "yes", "no"), ("recency", "historic", "recent")]
    for name, calm, urgent in pairs:
        said = [a_fact(name, calm, Source.STATED), a_fact(name, urgent, Source.SUGGESTED)]
        assert merge(said)[name].value == merge(reversed(said))[name].value == urgent

    ages = [a_fact("age_min", 14), a_fact("age_min", 9, Source.SUGGESTED)]
    counts = [a_fact("victims", 2), a_fact("victims", 5)]
    assert merge(ages)["age_min"].value == 9
    assert merge(counts)["victims"].value == 5


def test_of_equal_values_the_stronger_source_stands() -> None:
    said = [a_fact("danger_now", "yes", Source.SUGGESTED), a_fact("danger_now", "yes", Source.STATED)]

    assert merge(said)["danger_now"].source is Source.STATED


def test_for_a_province_the_form_beats_the_words_and_the_words_the_poster() -> None:
    poster = a_fact("province", "KH-1", Source.DERIVED, AS_OF)
    words = a_fact("province", "KH-2", Source.SUGGESTED)
    form = a_fact("province", "KH-3", Source.STATED)

    assert merge([poster, words])["province"] is words
    assert merge([form, words, poster])["province"] is form


def test_merged_facts_come_in_the_order_of_the_schema() -> None:
    said = [a_fact("victims", 2), a_fact("danger_now", "no"), a_fact("child_involved", "yes")]

    assert list(merge(said)) == ["child_involved", "danger_now", "victims"]


def test_unknown_never_replaces_what_is_known() -> None:
    assert merge([]) == {}


def test_a_question_fits_one_message_and_only_two_go_out_by_machine() -> None:
    for name, ask in ASKS.items():
        assert ask.en.isascii(), name
        assert len(ask.en) <= 160, name
        assert len(ask.km) <= 67, name
        assert all(FACTS[name].accepts(value) for value in ask.answers.values()), name
    by_machine = {name: ask.sms.en for name, ask in ASKS.items() if ask.sms is not None}
    assert by_machine == {
        "safe_to_contact": "Is it safe to write to you?",
        "danger_now": "Does someone need help now?",
    }
