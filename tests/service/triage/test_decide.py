"""Facts to a decision: what must hold for any facts, and the record that replays to its bytes."""

import json
from collections.abc import Iterable
from datetime import timedelta
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.canonical import canonical
from service.triage import ASKS, FACTS, LEVELS, NOW, Decision, Fact, Ruleset, Source, engine_fault, facts_of, replay
from service.triage.decide import decide
from tests.service.triage.builders import AS_OF, a_fact, decided, facts

KEYS = {
    "ruleset",
    "version",
    "content_hash",
    "lexicon_hash",
    "facts_schema",
    "engine",
    "as_of",
    "facts",
    "facts_hash",
    "fired",
    "unknown",
    "level_floor",
    "level_bumped",
    "level",
    "locked",
    "provisional",
    "flags",
    "routes",
    "asks",
}
DANGERS = [name for name, known in FACTS.items() if known.kind == "danger"]
CALMING = [name for name, known in FACTS.items() if known.kind == "calming"]


def values_of(name: str) -> st.SearchStrategy[Any]:
    known = FACTS[name]
    if known.bounds is None:
        return st.sampled_from(known.values)
    return st.sampled_from([0, 1, 2, 3, 8, 9, 11, 12, 48, 49, 72, 100])


@st.composite
def known_facts(draw: st.DrawFn) -> dict[str, Fact]:
    names = draw(st.lists(st.sampled_from(list(FACTS)), unique=True, max_size=14))
    return {name: Fact(name, draw(values_of(name)), draw(st.sampled_from(list(Source))), AS_OF) for name in names}


def most_urgent(name: str) -> Fact:
    known = FACTS[name]
    if known.bounds is None:
        return a_fact(name, known.values[-1])
    return a_fact(name, 0 if known.low_is_urgent else 100)


@settings(max_examples=100)
@given(known=known_facts(), name=st.sampled_from(DANGERS))
def test_adding_a_danger_never_lowers(ruleset: Ruleset, known: dict[str, Fact], name: str) -> None:
    before = decided(ruleset, known)

    assert decided(ruleset, known | {name: most_urgent(name)}).level <= before.level


@settings(max_examples=100)
@given(known=known_facts(), name=st.sampled_from(CALMING))
def test_taking_a_calm_away_never_lowers(ruleset: Ruleset, known: dict[str, Fact], name: str) -> None:
    calm = known | {name: a_fact(name, FACTS[name].values[0])}
    without = {other: fact for other, fact in calm.items() if other != name}

    assert decided(ruleset, without).level <= decided(ruleset, calm).level


@settings(max_examples=100)
@given(known=known_facts(), name=st.sampled_from([name for name in FACTS if "no" in FACTS[name].ranks]))
def test_unknown_is_never_less_urgent_than_no(ruleset: Ruleset, known: dict[str, Fact], name: str) -> None:
    if FACTS[name].kind == "calming":
        return
    denied = known | {name: a_fact(name, "no")}
    without = {other: fact for other, fact in denied.items() if other != name}

    assert decided(ruleset, without).level <= decided(ruleset, denied).level


@settings(max_examples=60)
@given(known=known_facts(), order=st.randoms(use_true_random=False))
def test_the_order_of_facts_changes_nothing(ruleset: Ruleset, known: dict[str, Fact], order: Any) -> None:
    shuffled = list(known.items())
    order.shuffle(shuffled)

    assert decided(ruleset, dict(shuffled)) == decided(ruleset, known)


@settings(max_examples=60)
@given(known=known_facts())
def test_a_record_is_canonical_complete_and_replays_to_its_bytes(ruleset: Ruleset, known: dict[str, Fact]) -> None:
    decision = decided(ruleset, known)
    record = json.loads(decision.record)

    assert set(record) == KEYS
    assert canonical(record) == decision.record == decided(ruleset, known).record
    assert replay(decision.record, ruleset) == decision.record
    assert facts_of(decision.record) == known
    assert record["facts_hash"] == sha256(canonical(record["facts"])).hexdigest()
    assert (record["level"], record["flags"]) == (decision.level, list(decision.flags))
    assert record["content_hash"] == ruleset.content_hash


@settings(max_examples=100)
@given(known=known_facts())
def test_a_bump_raises_by_one_at_most_and_never_to_p1(ruleset: Ruleset, known: dict[str, Fact]) -> None:
    decision = decided(ruleset, known)
    floor, bumped = LEVELS.index(decision.level_floor), LEVELS.index(decision.level_bumped)

    assert bumped in (floor, floor - 1)
    assert bumped == floor or bumped >= 1


@settings(max_examples=100)
@given(known=known_facts())
def test_the_cap_never_beats_a_locked_floor(ruleset: Ruleset, known: dict[str, Fact]) -> None:
    capped = known | facts(child_safe_now="yes", suspect_status="custody", other_child_at_risk="no")
    decision = decided(ruleset, capped)
    fired = {reason.id for reason in decision.fired}
    locks = [rule.level for rule in ruleset.rules if rule.locked and rule.id in fired and rule.level is not None]

    assert "K001" in fired
    assert decision.level <= min(locks, default="P4")
    assert decision.locked == bool(locks)


@settings(max_examples=100)
@given(known=known_facts())
def test_immediate_danger_is_flagged_exactly_for_p1_other_than_a_departure(
    ruleset: Ruleset, known: dict[str, Fact]
) -> None:
    decision = decided(ruleset, known)
    urgent = {rule.id for rule in ruleset.rules if rule.level == "P1"} - {"R005"}

    assert ("immediate_danger" in decision.flags) == bool(urgent & {reason.id for reason in decision.fired})


@settings(max_examples=100)
@given(known=known_facts())
def test_a_decision_is_provisional_when_words_alone_made_its_level(ruleset: Ruleset, known: dict[str, Fact]) -> None:
    sure = {name: fact for name, fact in known.items() if fact.source is not Source.SUGGESTED}

    assert decided(ruleset, known).provisional == (decided(ruleset, sure).level != decided(ruleset, known).level)


@pytest.mark.parametrize("name", NOW)
@pytest.mark.parametrize("source", list(Source))
def test_each_now_fact_alone_is_p1_and_immediate_danger(ruleset: Ruleset, name: str, source: Source) -> None:
    decision = decided(ruleset, {name: a_fact(name, "yes", source)})

    assert decision.level == "P1"
    assert "immediate_danger" in decision.flags
    assert decision.locked


def test_a_departure_alone_is_p1_and_no_immediate_danger(ruleset: Ruleset) -> None:
    decision = decided(ruleset, facts(suspect_leaving="yes", suspect_leaving_hours=20))

    assert decision.level == "P1"
    assert decision.flags == ("leaving_country",)
    assert decision.fired[0].en == "The suspect leaves within 20 hours"


def test_nothing_known_is_read_this_week(ruleset: Ruleset) -> None:
    decision = decided(ruleset, {})

    assert (decision.level, decision.locked, decision.provisional) == ("P3", False, False)
    assert "R001" in decision.unknown


def test_reasons_come_from_urgent_to_calm(ruleset: Ruleset) -> None:
    decision = decided(ruleset, facts(violence="yes", suspect_access="ongoing", confined_now="yes", venue_tips_90d=4))

    assert [reason.id for reason in decision.fired] == ["R009", "R026", "R039", "B001"]
    assert decision.fired[-1].en == "4 separate tips about this place in 90 days"
    assert "{" not in "".join(reason.en + reason.km for reason in decision.fired)


def test_the_default_says_why_when_no_floor_fires(ruleset: Ruleset) -> None:
    decision = decided(ruleset, facts(child_involved="yes", message_kind="report"))
    assert decision.fired[0].id == "R039"


def test_hours_that_run_down_bring_the_next_rise(ruleset: Ruleset) -> None:
    known = {
        "suspect_leaving": a_fact("suspect_leaving", "yes"),
        "suspect_leaving_hours": a_fact("suspect_leaving_hours", 100, at=AS_OF),
    }
    decision = decided(ruleset, known)
    assert decision.level == "P2"
    assert decision.next_rise == (AS_OF + timedelta(hours=52), "P1")

    instant = decision.next_rise[0]
    assert decide(known, ruleset, instant - timedelta(seconds=1)).level == "P2"
    assert decide(known, ruleset, instant).level == "P1"


def test_what_cannot_rise_has_no_next_rise(ruleset: Ruleset) -> None:
    assert decided(ruleset, facts(victims=3)).next_rise is None
    assert decided(ruleset, facts(danger_now="yes")).next_rise is None


def test_asks_are_three_safety_first_and_would_raise_the_level(ruleset: Ruleset) -> None:
    decision = decided(ruleset, facts(violence="yes", suspect_access="ongoing"))

    assert decision.asks == ("safe_to_contact", "danger_now", "child_with_suspect_now")
    assert set(decision.asks) <= set(ASKS)


def test_nothing_is_asked_at_p1_nor_when_contact_is_not_safe(ruleset: Ruleset) -> None:
    assert decided(ruleset, facts(danger_now="yes")).asks == ()
    assert decided(ruleset, facts(safe_to_contact="no")).asks == ()


def test_a_child_is_asked_about_its_safety_only(ruleset: Ruleset) -> None:
    decision = decided(ruleset, facts(reporter_is_child="yes", safe_to_contact="yes"))

    assert decision.asks
    assert all(ASKS[name].to_child for name in decision.asks)


def test_a_known_fact_is_not_asked_for(ruleset: Ruleset) -> None:
    denied = facts(**dict.fromkeys(NOW, "no"), safe_to_contact="yes", suspect_leaving="no")
    asks = decided(ruleset, denied).asks

    assert not set(asks) & set(denied)


def record_of(decision: Decision) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(decision.record)
    return record


def test_an_engine_fault_is_p1_says_so_and_replays(ruleset: Ruleset) -> None:
    decision = engine_fault(AS_OF, facts(victims=2), "abc")

    assert decision.level == "P1"
    assert decision.fired[0].id == "engine"
    assert decision.fired[0].en == "Engine fault: a person must look now"
    assert set(record_of(decision)) == KEYS
    assert canonical(record_of(decision)) == decision.record
    assert replay(decision.record, ruleset) == decision.record


def test_a_fact_under_another_name_is_refused(ruleset: Ruleset) -> None:
    with pytest.raises(ValueError, match="another name"):
        decided(ruleset, {"danger_now": a_fact("violence", "yes")})


def test_a_decision_needs_a_time_with_its_zone(ruleset: Ruleset) -> None:
    with pytest.raises(ValueError, match="zone"):
        decide({}, ruleset, AS_OF.replace(tzinfo=None))


def test_a_record_of_another_schema_is_refused(ruleset: Ruleset) -> None:
    record = record_of(decided(ruleset, {})) | {"facts_schema": "facts-0"}

    with pytest.raises(ValueError, match="schema"):
        facts_of(canonical(record))


def test_a_changed_record_does_not_replay_to_its_bytes(ruleset: Ruleset) -> None:
    record = record_of(decided(ruleset, facts(danger_now="yes"))) | {"level": "P4"}

    assert replay(canonical(record), ruleset) != canonical(record)


def ids(reasons: Iterable[Any]) -> list[str]:
    return [reason.id for reason in reasons]


def test_the_record_keeps_who_said_what_and_when(ruleset: Ruleset) -> None:
    said = Fact("confined_now", "yes", Source.SUGGESTED, AS_OF, 'a"b', ((3, 9), (12, 15)), hedged=True)
    record = record_of(decided(ruleset, {"confined_now": said}))

    assert record["facts"]["confined_now"] == {
        "value": "yes",
        "source": "suggested",
        "at": AS_OF.isoformat(),
        "message": 'a"b',
        "spans": [[3, 9], [12, 15]],
        "hedged": True,
    }
    assert ids(decided(ruleset, {"confined_now": said}).fired)[0] == "R009"
