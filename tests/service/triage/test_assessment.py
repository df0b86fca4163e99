"""A tip is always judged: facts from words, forms and posters together, and P1 when anything fails."""

from datetime import datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.triage import FLAGS, LEVELS, PROVINCES, Fact, Source, Triage, assess, decide_safely, replay
from service.triage import assessment as module
from tests.service.triage.builders import AS_OF, a_fact


@settings(max_examples=80)
@given(st.text(max_size=200))
def test_any_text_gives_a_decision_that_replays(triage: Triage, text: str) -> None:
    found = assess(triage, text, received_at=AS_OF)

    assert found.decision.level in LEVELS
    assert set(found.decision.flags) <= set(FLAGS)
    assert replay(found.decision.record, triage.ruleset) == found.decision.record


@pytest.mark.parametrize("text", ["", " ", "\x00", "\ud800", "🙏" * 5_000, "x" * 64_000, "ក" * 64_000, "។" * 64_000])
def test_text_of_any_length_gives_a_decision(triage: Triage, text: str) -> None:
    found = assess(triage, text, received_at=AS_OF)

    assert found.decision.level == "P3"
    assert found.decision.fired[0].id != "engine"


def test_the_record_holds_no_word_of_the_tip(triage: Triage) -> None:
    text = "Canary Street 99: the girl Canarina is locked in, call 012345678"
    record = assess(triage, text, received_at=AS_OF).decision.record.decode()

    assert "anar" not in record
    assert "012345678" not in record


def test_facts_of_form_poster_and_words_come_together(triage: Triage) -> None:
    stated = [a_fact("danger_now", "no"), a_fact("victims", 3)]
    context = {"placement_code_province": "Kampot", "venue_type": "bar", "reporter": "witness", "form": "public"}

    found = assess(triage, "the manager hits a girl of 9 in Siem Reap", stated, AS_OF, context)

    assert (found.province, found.venue_type, found.youngest_age) == ("KH-17", "bar", 9)
    assert found.facts["province"].source is Source.SUGGESTED
    assert found.facts["venue_type"].source is Source.DERIVED
    assert found.facts["victims"].value == 3
    assert found.facts["reporter_is_child"].value == "no"
    assert found.language == "en"


def test_a_silent_text_takes_the_province_of_the_poster(triage: Triage) -> None:
    assert assess(triage, "help", context={"placement_code_province": "KH-7"}).province == "KH-7"
    assert assess(triage, "help", context={"placement_code_province": "Kampot"}).province == "KH-7"
    assert PROVINCES["KH-7"].en == "Kampot"


def test_a_child_who_writes_is_never_lost(triage: Triage) -> None:
    found = assess(triage, "…", context={"reporter": "self_child"})

    assert found.facts["reporter_is_child"].value == "yes"
    assert found.decision.level == "P2"
    assert "child_self_report" in found.decision.flags
    assert "CHILD" in found.decision.routes


@pytest.mark.parametrize(
    "context", [{"venue_type": "moon"}, {"colour": "red"}, {"placement_code_province": "Atlantis"}]
)
def test_a_context_from_another_time_is_passed_over(triage: Triage, context: dict[str, str]) -> None:
    found = assess(triage, "a girl is locked in", context=context)

    assert found.decision.fired[0].id == "R009"
    assert found.province is None


def is_fault(found: module.Assessment) -> bool:
    decision = found.decision
    return decision.level == "P1" and [reason.id for reason in decision.fired] == ["engine"]


def test_without_rules_every_tip_is_p1() -> None:
    found = assess(None, "thank you", [a_fact("victims", 2)], AS_OF)

    assert is_fault(found)
    assert found.facts["victims"].value == 2
    assert found.language == "und"


@pytest.mark.parametrize("name", ["suggest", "merge"])
def test_whatever_fails_is_p1(triage: Triage, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(module, name, fail)

    assert is_fault(assess(triage, "thank you", [], AS_OF))


def test_a_failing_engine_is_p1_and_keeps_what_was_stated(triage: Triage, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RecursionError

    monkeypatch.setattr("service.triage.decide.decide", fail)
    found = assess(triage, "thank you", [a_fact("venue_type", "bar")], AS_OF)

    assert is_fault(found)
    assert found.venue_type == "bar"
    assert replay(found.decision.record, triage.ruleset) == found.decision.record
    assert decide_safely("thank you", [], triage, received_at=AS_OF).fired[0].id == "engine"


@pytest.mark.parametrize("stated", [None, [None], 7, ["danger_now"]])
def test_stated_facts_that_are_none_are_p1(triage: Triage, stated: Any) -> None:
    assert is_fault(assess(triage, "thank you", stated, AS_OF))


@pytest.mark.parametrize("text", [None, 7, b"help"])
def test_a_text_that_is_none_is_p1(triage: Triage, text: Any) -> None:
    assert is_fault(assess(triage, text, [], AS_OF))


def test_a_time_without_a_zone_is_p1(triage: Triage) -> None:
    assert is_fault(assess(triage, "he hits a boy", [], datetime(2027, 1, 1)))  # noqa: DTZ001


def test_a_later_message_keeps_what_an_earlier_one_suggested(triage: Triage) -> None:
    first = assess(triage, "a man locked a girl in a room in Kampot", [], AS_OF, message="m1")
    earlier = list(first.facts.values())

    second = assess(triage, "thank you", earlier, AS_OF, message="m2")

    assert second.decision.level == "P1"
    assert second.facts["confined_now"].message == "m1"


def test_a_whisper_from_words_alone_is_provisional(triage: Triage) -> None:
    from_words = assess(triage, "a girl is locked in a room", [], AS_OF).decision
    confirmed = assess(triage, "", [Fact("confined_now", "yes", Source.CONFIRMED, AS_OF)], AS_OF).decision

    assert (from_words.level, from_words.provisional) == ("P1", True)
    assert (confirmed.level, confirmed.provisional) == ("P1", False)
