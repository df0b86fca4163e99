"""Changing a level: facts that staff confirm, a rise by hand, a fall that takes two units (triage.md section 9)."""

import json
import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import select, text, update
from sqlmodel import col

from service import cases, decisions, exclusions, levels, reading, staff
from service.config import Settings
from service.db import Sessions, write
from service.errors import (
    CannotOpen,
    CaseMoved,
    Forbidden,
    HotlineError,
    InvalidForm,
    NoSuchCase,
    NotFound,
    StorageUnavailable,
    WrongState,
)
from service.exclusions import Wallkeeper
from service.ledger.events import SYSTEM, EventType, NewEvent, StateClass
from service.levels import Judge
from service.models import (
    Case,
    CaseDecision,
    Clock,
    ClockKind,
    LedgerEffect,
    LedgerField,
    Lowering,
    LoweringState,
    OutboxJob,
    Role,
)
from service.triage import FACTS, Fact, Source, facts_of, replay
from tests.builders import NOW, PEOPLE, PLENTY, World, a_number, a_tip, a_world, the_case, triage
from tests.service.test_events import stored
from tests.service.test_intake import LOCKED_IN, POLICE

VAGUE = "Please look at the guesthouse."
WHY = "The neighbour rang and says the girl is at home with her aunt."
LATER = timedelta(hours=2)  # after a P1's deadline to act

MORE_PEOPLE = {
    "auditor": (Role.AUDITOR, "org-council", ("screening",), "Tep Sokha", "ទេព សុខា"),
    "both": (Role.SUPERVISOR, "org-police", ("siem-reap", "screening"), "Ouk Samnang", "អ៊ុក សំណាង"),
    "advocate": (Role.ADVOCATE, "org-ngo", ("kandal",), "Yim Chanthy", "យឹម ចាន់ធី"),
}


@pytest.fixture
def world(sessions: Sessions) -> World:
    return a_world(sessions, people=PEOPLE | MORE_PEOPLE)


def a_judge(world: World) -> Judge:
    known, founding = Settings(), world.founding
    rules = triage().ruleset
    return Judge(world.ledger, founding.cards, founding.row_key, rules, known.claim_targets, known.act_targets)


def told(name: str, value: str | int, source: Source = Source.STATED) -> Fact:
    return Fact(name, value, source, NOW)


def new_case(world: World, words: str = VAGUE, *facts: Fact, unit: str = "siem-reap", **changed: Any) -> Case:
    """A case of screening that a handling unit holds as well, as after a hand-on."""
    [receipt] = world.receive(a_tip(words, **({"sender": a_number(), "stated": facts} | changed)))
    case: Case = the_case(world, receipt.tip)
    if not case.walled:
        keys = opened(world, "screener", case)
        version, who = again(world, case).version, world.signed_in("screener").viewer
        keeper = Wallkeeper(world.ledger, world.founding.cards, world.founding.row_key)
        with_unit = {"unit": unit, "answer": "no", "version": version, "now": NOW}
        write(world.sessions, lambda tx: exclusions.hand_on(tx, keeper, who, keys, **with_unit))
    return again(world, case)


def again(world: World, case: Case) -> Case:
    with world.sessions.read() as session:
        found = session.get(Case, case.id)
        assert found is not None
        return found


def opened(world: World, name: str, case: Case, now: datetime = NOW) -> cases.OpenedCase:
    """Open a case as a person does: the event first, then its keys."""
    who, row_key = world.signed_in(name, now), world.founding.row_key
    found = reading.record_opening(
        world.sessions,
        world.ledger,
        row_key,
        who.viewer,
        case.id,
        reason="screening",
        note="",
        allowance=PLENTY,
        now=now,
    )
    with world.sessions.read() as session:
        return staff.open_keys(session, row_key, world.founding.cards, who, found)


def do(world: World, step: Callable[..., Any], name: str, case: Case, *given: Any, now: datetime = NOW) -> Any:
    """Have a person take a step in a case, whose account it opens first where the step needs its keys."""
    reads = step in (levels.confirm, levels.propose, levels.agree)
    about = opened(world, name, case, now) if reads else case.id
    viewer, version = world.signed_in(name, now).viewer, again(world, case).version
    return write(world.sessions, lambda tx: step(tx, a_judge(world), viewer, about, *given, version=version, now=now))


def confirm(world: World, name: str, case: Case, fact: str, value: str | int, now: datetime = NOW) -> bool:
    walled: bool = do(world, levels.confirm, name, case, fact, value, now=now)
    return walled


def propose(world: World, name: str, case: Case, level: str = "P4", now: datetime = NOW) -> UUID:
    with world.sessions.read() as session:
        newest = decisions.latest_decision(session, again(world, case)).record or b"{}"
    fact = next(iter(json.loads(newest).get("facts", {})), "")
    lowering: UUID = do(world, levels.propose, name, case, level, fact or "official_complicity", WHY, now=now)
    return lowering


def agree(world: World, name: str, case: Case, lowering: UUID, now: datetime = NOW) -> str:
    state: str = do(world, levels.agree, name, case, lowering, now=now)
    return state


def lowering_of(world: World, lowering: UUID) -> Lowering:
    with world.sessions.read() as session:
        found = session.get(Lowering, lowering)
        assert found is not None
        return found


def kinds(world: World, case: Case) -> list[str]:
    return [event.type for event in stored(world.sessions, case.chain)]


def rows(world: World, column: Any, *where: Any) -> list[Any]:
    with world.sessions.read() as session:
        return list(session.scalars(select(column).where(*where)).all())


def pages(world: World) -> int:
    return rows(world, OutboxJob.kind).count("page")


def record(world: World, case: Case) -> dict[str, Any]:
    with world.sessions.read() as session:
        found: dict[str, Any] = json.loads(decisions.latest_decision(session, case).record or b"{}")
        return found


# --- facts ---


def test_a_confirmed_danger_raises_the_case_at_once_and_pages(world: World) -> None:
    case = new_case(world, received_at=NOW - timedelta(hours=3))
    before = kinds(world, case)

    assert confirm(world, "screener", case, "danger_now", "yes") is False

    row = again(world, case)
    assert (case.level, row.level, row.locked, row.provisional, row.decision) == ("P3", "P1", True, False, 2)
    assert row.due_at == NOW + timedelta(minutes=15) < case.due_at
    assert "immediate_danger" in json.loads(row.flags or "[]")
    assert kinds(world, case)[len(before) :] == [
        "content:file:opened",
        "tip:facts:confirmed",
        "triage:decision:made",
        "triage:level:raised",
    ]
    assert pages(world) == 1
    [step] = [s for s in history(world, row) if s.type == EventType.FACTS_CONFIRMED]
    assert (step.who, step.fields["fact"], step.fields["value"]) == ("Sok Dara", "danger_now", "yes")


def history(world: World, case: Case, privates: Any = None) -> list[reading.Step]:
    with world.sessions.read() as session:
        return reading.history(session, case, privates or {})


def test_the_new_decision_stands_on_all_facts_and_replays_to_its_bytes(world: World) -> None:
    case = new_case(world, LOCKED_IN)
    confirm(world, "investigator", case, "victims", 2)

    with world.sessions.read() as session:
        decision = decisions.latest_decision(session, again(world, case))
    assert decision.record is not None
    facts = facts_of(decision.record)
    assert facts["victims"] == Fact("victims", 2, Source.CONFIRMED, NOW.replace(second=0))
    assert facts["confined_now"].source is Source.SUGGESTED
    assert replay(decision.record, triage().ruleset) == decision.record
    assert (decision.message, decision.ruleset_hash) == (None, triage().ruleset.content_hash)
    assert json.loads(decision.record)["lexicon_hash"] == triage().lexicon.content_hash


def test_a_fall_changes_nothing_but_what_the_rules_would_say(world: World) -> None:
    case = new_case(world, VAGUE, told("confined_now", "yes", Source.SUGGESTED))
    assert (case.level, case.locked, case.provisional) == ("P1", True, True)

    confirm(world, "screener", case, "confined_now", "no")

    row = again(world, case)
    assert (row.level, row.due_at, row.due_kind) == ("P1", case.due_at, case.due_kind)
    assert (row.locked, row.provisional) == (False, False), "it rested on words alone, and they are denied"
    assert record(world, row)["level"] > "P1"
    assert "confinement" not in json.loads(row.flags or "[]"), "what a case is about follows the facts"
    assert "triage:level:raised" not in kinds(world, case)
    assert pages(world) == 1


def test_what_was_told_keeps_its_lock_whatever_staff_confirm(world: World) -> None:
    case = new_case(world, VAGUE, told("danger_now", "yes"))
    confirm(world, "screener", case, "danger_now", "no")
    assert (again(world, case).level, again(world, case).locked) == ("P1", True)


def test_what_words_only_suggested_is_no_longer_provisional_once_confirmed(world: World) -> None:
    case = new_case(world, LOCKED_IN)
    confirm(world, "screener", case, "confined_now", "yes")
    assert (again(world, case).level, again(world, case).provisional) == ("P1", False)


@pytest.mark.parametrize(
    ("fact", "value", "column", "expected"),
    [
        ("province", "KH-17", "province", "KH-17"),
        ("venue_type", "school", "venue", "school"),
        ("age_min", 7, "age_rank", 7),
    ],
)
def test_columns_follow_the_facts(world: World, fact: str, value: Any, column: str, expected: Any) -> None:
    case = new_case(world)
    assert getattr(case, column) != expected
    confirm(world, "screener", case, fact, value)
    assert getattr(again(world, case), column) == expected


def test_of_two_confirmations_in_one_minute_the_later_one_stands(world: World) -> None:
    case = new_case(world)
    confirm(world, "screener", case, "begging", "yes")
    confirm(world, "screener", case, "begging", "no")
    assert record(world, again(world, case))["facts"]["begging"]["value"] == "no"
    with world.sessions.read() as session:
        assert decisions.known(session, again(world, case), {}).standing["begging"].value == "no"


def test_a_later_text_does_not_replace_what_staff_confirmed(world: World) -> None:
    number = a_number()
    case = new_case(world, LOCKED_IN, sender=number)
    confirm(world, "screener", case, "confined_now", "no")
    world.receive(a_tip(LOCKED_IN, sender=number))
    facts = record(world, again(world, case))["facts"]
    assert (facts["confined_now"]["value"], facts["confined_now"]["source"]) == ("no", "confirmed")


@pytest.mark.parametrize("name", ["investigator-2", "oversight", "both", "screener-2"])
def test_nobody_confirms_what_they_have_not_read(world: World, name: str) -> None:
    case = new_case(world)
    keys = cases.OpenedCase(case, {})
    viewer = world.signed_in(name).viewer
    with pytest.raises(Forbidden, match="Open the account first"):
        write(
            world.sessions,
            lambda tx: levels.confirm(
                tx, a_judge(world), viewer, keys, "danger_now", "yes", version=case.version, now=NOW
            ),
        )
    assert again(world, case).level == "P3"


@pytest.mark.parametrize("step", ["confirm", "raise", "propose"])
@pytest.mark.parametrize(
    ("name", "refusal"), [("auditor", Forbidden), ("admin", NoSuchCase), ("elsewhere", NoSuchCase)]
)
def test_only_who_reads_a_case_changes_its_level(world: World, step: str, name: str, refusal: Any) -> None:
    case = new_case(world)
    keys, viewer = cases.OpenedCase(case, {}), world.signed_in(name).viewer
    with_version = {"version": again(world, case).version, "now": NOW}
    steps: dict[str, Callable[[Any], Any]] = {
        "confirm": lambda tx: levels.confirm(tx, a_judge(world), viewer, keys, "danger_now", "yes", **with_version),
        "raise": lambda tx: levels.raise_by_hand(tx, a_judge(world), viewer, case.id, "P1", WHY, **with_version),
        "propose": lambda tx: levels.propose(tx, a_judge(world), viewer, keys, "P4", "province", WHY, **with_version),
    }
    with pytest.raises(refusal):
        write(world.sessions, steps[step])
    assert again(world, case).version == case.version


@pytest.mark.parametrize(
    ("fact", "text", "value"),
    [("danger_now", "yes", "yes"), ("age_min", "7", 7), ("age_min", "៧", 7), ("settlement", "none", "none")],
)
def test_a_value_is_read_by_the_schema(fact: str, text: str, value: Any) -> None:
    assert levels.read_value(fact, text) == value


@pytest.mark.parametrize(
    ("fact", "text"),
    [
        ("danger_now", "maybe"),
        ("danger_now", ""),
        ("danger_now", "unknown"),
        ("age_min", "-1"),
        ("age_min", "121"),
        ("age_min", "9" * 40),
        ("age_min", "seven"),
        ("no_such_fact", "yes"),
        ("child_sex", "girl"),
        ("prior_closed_incomplete_12m", "no"),
        ("venue_tips_90d", "0"),
    ],
)
def test_what_is_no_value_or_not_staff_to_say_is_refused(fact: str, text: str) -> None:
    with pytest.raises(InvalidForm):
        levels.read_value(fact, text)


def test_all_other_facts_of_the_schema_can_be_confirmed() -> None:
    left_out = set(FACTS) - {kind.name for kind in levels.confirmable()}
    assert {FACTS[name].group for name in left_out} == {"count", "history"}
    assert len(left_out) == 8


def test_a_page_that_is_out_of_date_changes_no_level(world: World) -> None:
    case = new_case(world)
    keys, viewer, version = opened(world, "screener", case), world.signed_in("screener").viewer, case.version
    confirm(world, "investigator", case, "begging", "yes")
    with_version = {"version": version, "now": NOW}
    for step in (
        lambda tx: levels.confirm(tx, a_judge(world), viewer, keys, "danger_now", "yes", **with_version),
        lambda tx: levels.raise_by_hand(tx, a_judge(world), viewer, case.id, "P1", WHY, **with_version),
        lambda tx: levels.propose(tx, a_judge(world), viewer, keys, "P4", "begging", WHY, **with_version),
    ):
        with pytest.raises(CaseMoved):
            write(world.sessions, step)
    assert again(world, case).level == "P3"


def test_rules_that_fail_are_p1_with_a_page(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    case = new_case(world)

    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(levels, "decide", fail)
    confirm(world, "screener", case, "begging", "no")

    row = again(world, case)
    assert (row.level, row.due_at) == ("P1", NOW + timedelta(minutes=15))
    assert kinds(world, case)[-2:] == ["triage:engine:failed", "triage:level:raised"]
    assert record(world, row)["fired"][0]["id"] == "engine"
    assert record(world, row)["facts"]["begging"]["value"] == "no"
    assert pages(world) == 1


# --- the wall ---


def test_a_fact_that_ties_an_official_to_it_puts_the_case_behind_the_wall(world: World) -> None:
    case = new_case(world, LOCKED_IN)
    confirm(world, "screener", case, "begging", "yes")
    lowering = propose(world, "screener", case)

    assert confirm(world, "screener", case, "official_complicity", "yes") is True

    row = again(world, case)
    assert (row.walled, row.unit, row.flags, row.province, row.venue) == (True, "integrity", None, None, None)
    for name in ("screener", "investigator"):
        with world.sessions.read() as session, pytest.raises(NoSuchCase):
            cases.find(session, world.signed_in(name).viewer, case.id)
    assert lowering_of(world, lowering).state == LoweringState.LAPSED
    assert rows(world, CaseDecision.record) == [None, None, None]
    keys = opened(world, "integrity", case)
    with world.sessions.read() as session:
        file = reading.decrypt(session, row, keys.privates)
        known = decisions.known(session, row, keys.privates)
    assert [account.text for account in file.accounts] == [LOCKED_IN]
    assert "official_complicity" in file.facts["flags"]
    assert {"confined_now", "begging", "official_complicity"} <= set(known.standing)
    assert known.whole


def test_what_was_confirmed_before_the_wall_stands_nowhere_in_clear_behind_it(world: World) -> None:
    case = new_case(world)
    confirm(world, "screener", case, "begging", "yes")
    do(world, levels.propose, "screener", case, "P4", "begging", WHY)
    clear = lambda: [bytes(v) for v in rows(world, LedgerField.value, col(LedgerField.sealed).is_(False))]  # noqa: E731
    assert b'"begging"' in clear()

    confirm(world, "screener", case, "official_complicity", "yes")

    assert [value for value in clear() if b"begging" in value or b"official" in value] == []
    steps = history(world, again(world, case), opened(world, "oversight", case).privates)
    assert [(s.fields["fact"], s.fields.get("value")) for s in steps if "fact" in s.fields] == [
        ("official_complicity", "yes"),
        ("begging", None),
        ("begging", "yes"),
    ]


def test_behind_the_wall_a_fact_joins_those_of_every_sealed_decision(world: World) -> None:
    number = a_number()
    case = new_case(world, POLICE, sender=number)
    world.receive(a_tip("Thank you for your help.", sender=number))

    confirm(world, "integrity", case, "victims", 3)

    row = again(world, case)
    assert (row.decision, row.flags, row.walled) == (3, None, True)
    with world.sessions.read() as session:
        decision = decisions.latest_decision(session, row)
    assert decision.record is None
    told_now = decisions.open_decision(decision, opened(world, "integrity", case).privates)
    assert told_now is not None
    facts = json.loads(told_now["record"])["facts"]
    assert facts["official_complicity"]["value"] == "yes"
    assert facts["victims"] == {"at": "2027-03-09T07:21:00+00:00", "source": "confirmed", "value": 3}
    assert "multiple_victims" in told_now["flags"]
    fields = rows(world, LedgerField.name, col(LedgerField.sealed), col(LedgerField.name).in_(["fact", "value"]))
    assert sorted(fields) == ["fact", "value"]


def test_a_claimed_case_that_rises_behind_the_wall_is_due_when_its_first_clock_is(world: World) -> None:
    """The claim clock runs again; the lease that its owner had must not hide it."""
    case = new_case(world, unit="siem-reap")
    viewer, version = world.signed_in("investigator").viewer, case.version
    leases = Settings().leases
    write(
        world.sessions,
        lambda tx: cases.claim(tx, world.ledger, viewer, case.id, version=version, leases=leases, now=NOW),
    )
    confirm(world, "investigator", case, "official_complicity", "yes")

    row = again(world, case)
    running = rows(world, Clock.due_at, col(Clock.case) == case.id, Clock.met_at.is_(None), Clock.lapsed_at.is_(None))  # type: ignore[union-attr]
    assert (row.state, row.owner, row.level) == ("open", None, "P2")
    assert row.due_at == min(running)


# --- up ---


def test_one_person_raises_a_case_at_once_without_opening_it(world: World) -> None:
    case = new_case(world, received_at=NOW - timedelta(hours=3))

    do(world, levels.raise_by_hand, "investigator", case, "P1", "  The tipster rang again and was cut off.  ")

    row = again(world, case)
    assert (row.level, row.due_at, row.decision) == ("P1", NOW + timedelta(minutes=15), 1)
    assert kinds(world, case)[-1] == "triage:level:raised"
    assert pages(world) == 1
    steps = history(world, row, opened(world, "oversight", case).privates)
    [step] = [s for s in steps if s.type == EventType.LEVEL_RAISED]
    assert (step.who, step.fields["reason"]) == ("Heng Bopha", "The tipster rang again and was cut off.")
    assert "reason" not in next(s for s in history(world, row) if s.type == EventType.LEVEL_RAISED).fields
    with world.sessions.read() as session:
        values = session.execute(text("SELECT value FROM ledger_field")).scalars().all()
    assert [v for v in values if b"tipster" in bytes(v)] == []


def test_a_rise_that_is_not_to_p1_pages_nobody(world: World) -> None:
    case = new_case(world)
    do(world, levels.raise_by_hand, "screener", case, "P2", WHY)
    assert (again(world, case).level, pages(world)) == ("P2", 0)


@pytest.mark.parametrize(
    ("level", "reason", "field"),
    [("P3", WHY, "level"), ("P4", WHY, "level"), ("P0", WHY, "level"), ("", WHY, "level"), ("P1", " \n", "reason")],
)
def test_a_rise_needs_a_level_above_and_a_reason(world: World, level: str, reason: str, field: str) -> None:
    case = new_case(world)
    with pytest.raises(InvalidForm) as refused:
        do(world, levels.raise_by_hand, "screener", case, level, reason)
    assert refused.value.field == field
    assert again(world, case).version == case.version


def test_a_closed_case_is_opened_again_before_its_level_changes(world: World) -> None:
    case = new_case(world)
    event = NewEvent(EventType.CLOCK_MET, NOW, SYSTEM, StateClass.CLOSED)
    write(world.sessions, lambda tx: cases.change(tx, world.ledger, tx.get(Case, case.id), [event], state="closed"))
    with pytest.raises(WrongState):
        do(world, levels.raise_by_hand, "screener", case, "P1", WHY)


def test_a_sealed_reason_that_was_swapped_is_not_shown(world: World) -> None:
    case = new_case(world)
    do(world, levels.raise_by_hand, "screener", case, "P2", WHY)
    do(world, levels.raise_by_hand, "screener", case, "P1", "Another reason.")
    keys = opened(world, "screener", case).privates
    assert history(world, case, keys)
    eids = [e.eid for e in stored(world.sessions, case.chain) if e.type == EventType.LEVEL_RAISED]
    with world.sessions.read() as session:
        row = session.get(LedgerField, (eids[0], "reason"))
    assert row is not None
    from service.vault import boxes

    public = boxes.public_of(keys[1])
    forged = boxes.seal(public, f"field|{eids[0]}|reason", bytes(32) + b'"A forged reason"')
    write(
        world.sessions,
        lambda tx: tx.execute(
            update(LedgerField)
            .where(col(LedgerField.eid) == eids[0], col(LedgerField.name) == "reason")
            .values(value=forged)
        ),
    )
    with pytest.raises(CannotOpen):
        history(world, case, keys)


# --- down ---


def test_two_of_different_units_agree_and_it_waits_for_the_witnesses(world: World) -> None:
    case = new_case(world)

    lowering = propose(world, "screener", case)
    assert agree(world, "investigator", case, lowering) == LoweringState.APPROVED

    row, found = again(world, case), lowering_of(world, lowering)
    assert (row.level, row.due_at) == (case.level, case.due_at), "nothing falls before it is witnessed"
    signers = (found.proposer_unit, found.approver_unit, found.overseer)
    assert signers == ("screening", "siem-reap", None)
    event = stored(world.sessions, case.chain)[-1]
    assert event.type == "triage:lowering:approved"
    [effect] = rows(world, LedgerEffect)
    action = {"do": "lower", "case": case.id.hex, "lowering": lowering.hex, "after": "P4"}
    assert (effect.eid, json.loads(effect.action)) == (event.eid, action)
    steps = history(world, row, opened(world, "oversight", case).privates)
    assert next(s for s in steps if s.type == EventType.LOWERING_PROPOSED).fields["reason"] == WHY


def test_an_effect_is_written_with_its_event_or_neither_is(world: World) -> None:
    case = new_case(world)
    lowering = propose(world, "screener", case)
    write(world.sessions, lambda tx: tx.execute(text("ALTER TABLE ledger_effect RENAME TO gone")))
    with pytest.raises(StorageUnavailable):
        agree(world, "investigator", case, lowering)
    assert lowering_of(world, lowering).state == LoweringState.PROPOSED
    assert "triage:lowering:approved" not in kinds(world, case)


@pytest.mark.parametrize("name", ["screener", "screener-2", "both"])
def test_the_proposer_and_whoever_shares_a_unit_with_it_do_not_agree(world: World, name: str) -> None:
    case = new_case(world)
    lowering = propose(world, "screener", case)
    with pytest.raises(Forbidden):
        agree(world, name, case, lowering)
    assert lowering_of(world, lowering).state == LoweringState.PROPOSED


def test_who_shares_a_unit_with_the_proposer_does_not_agree_for_another_one(world: World) -> None:
    """The proposer sits in both units; either one's people are colleagues."""
    case = new_case(world)
    lowering = propose(world, "both", case)
    for name in ("screener", "investigator"):
        with pytest.raises(Forbidden):
            agree(world, name, case, lowering)
    assert agree(world, "oversight", case, lowering) == LoweringState.APPROVED


def test_a_unit_without_a_seal_does_not_agree(world: World) -> None:
    case = new_case(world)
    lowering = propose(world, "screener", case)
    for name in ("elsewhere", "integrity", "advocate", "admin"):
        with pytest.raises((NoSuchCase, Forbidden)):
            agree(world, name, case, lowering)


@pytest.mark.parametrize(
    ("level", "fact", "reason", "field"),
    [
        ("P3", "begging", WHY, "level"),
        ("P1", "begging", WHY, "level"),
        ("P5", "begging", WHY, "level"),
        ("P4", "danger_now", WHY, "fact"),
        ("P4", "", WHY, "fact"),
        ("P4", "begging", "x" * 39, "reason"),
        ("P4", "begging", "x" * 39 + " " * 10, "reason"),
    ],
)
def test_a_proposal_names_a_lower_level_a_known_fact_and_says_why(
    world: World, level: str, fact: str, reason: str, field: str
) -> None:
    case = new_case(world, VAGUE, told("begging", "yes"))
    assert case.level == "P3"
    with pytest.raises(InvalidForm) as refused:
        do(world, levels.propose, "screener", case, level, fact, reason)
    assert refused.value.field == field
    do(world, levels.propose, "screener", case, "P4", "begging", "x" * 40)


def test_nobody_proposes_or_agrees_without_having_read(world: World) -> None:
    case = new_case(world)
    keys, viewer = cases.OpenedCase(case, {}), world.signed_in("investigator").viewer
    given = {"version": case.version, "now": NOW}
    with pytest.raises(Forbidden, match="Open the account first"):
        write(
            world.sessions,
            lambda tx: levels.propose(tx, a_judge(world), viewer, keys, "P4", "province", WHY, **given),
        )
    lowering = propose(world, "screener", case)
    given["version"] = again(world, case).version
    with pytest.raises(Forbidden, match="Open the account first"):
        write(world.sessions, lambda tx: levels.agree(tx, a_judge(world), viewer, keys, lowering, **given))


def test_one_proposal_stands_at_a_time(world: World) -> None:
    case = new_case(world)
    first = propose(world, "screener", case)
    with pytest.raises(WrongState):
        propose(world, "investigator", case)
    agree(world, "investigator", case, first)
    with pytest.raises(WrongState):
        propose(world, "investigator", case)
    do(world, levels.refuse, "oversight", case, first, "It has not changed.")
    assert propose(world, "investigator", case) != first


def test_of_two_who_agree_at_once_one_signs(world: World) -> None:
    case = new_case(world)
    lowering = propose(world, "screener", case)
    judge, ready = a_judge(world), {n: opened(world, n, case) for n in ("investigator", "investigator-2")}
    version, outcomes = again(world, case).version, []

    def sign(name: str) -> None:
        viewer = world.signed_in(name).viewer
        try:
            write(
                world.sessions,
                lambda tx: levels.agree(tx, judge, viewer, ready[name], lowering, version=version, now=NOW),
            )
            outcomes.append(name)
        except HotlineError as fault:
            outcomes.append(type(fault))

    threads = [threading.Thread(target=sign, args=(name,)) for name in ready]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([o for o in outcomes if isinstance(o, str)]) == 1
    assert kinds(world, case).count("triage:lowering:approved") == 1
    assert len(rows(world, LedgerEffect)) == 1


# --- oversight ---


def test_below_a_locked_floor_of_what_was_told_oversight_signs_whatever_staff_confirmed(world: World) -> None:
    case = new_case(world, VAGUE, told("danger_now", "yes"))
    confirm(world, "screener", case, "danger_now", "no")
    lowering = propose(world, "screener", case, "P3")

    assert agree(world, "investigator", case, lowering) == LoweringState.PROPOSED
    assert rows(world, LedgerEffect) == []
    with pytest.raises(Forbidden, match="Only the signature of oversight"):
        agree(world, "investigator-2", case, lowering)
    assert agree(world, "oversight", case, lowering) == LoweringState.APPROVED

    found = lowering_of(world, lowering)
    assert found.overseer == world.people["oversight"][0].id
    assert kinds(world, case).count("triage:lowering:approved") == 2
    assert len(rows(world, LedgerEffect)) == 1


def test_what_rested_on_suggested_words_alone_takes_a_confirmed_no_and_two(world: World) -> None:
    case = new_case(world, VAGUE, told("confined_now", "yes", Source.SUGGESTED))
    confirm(world, "screener", case, "confined_now", "no")
    lowering = propose(world, "screener", case, "P3")
    assert agree(world, "investigator", case, lowering) == LoweringState.APPROVED


def test_without_the_confirmed_no_suggested_words_hold_their_floor(world: World) -> None:
    case = new_case(world, VAGUE, told("confined_now", "yes", Source.SUGGESTED))
    lowering = propose(world, "screener", case, "P3")
    assert agree(world, "investigator", case, lowering) == LoweringState.PROPOSED
    assert agree(world, "oversight", case, lowering) == LoweringState.APPROVED


def test_what_was_told_and_what_was_suggested_hold_a_floor_together(world: World) -> None:
    """ "Leaving" was stated, "in 20 hours" suggested: to deny only the first does not rest on suggested words alone."""
    case = new_case(world, VAGUE, told("suspect_leaving", "yes"), told("suspect_leaving_hours", 20, Source.SUGGESTED))
    assert case.level == "P1"
    confirm(world, "screener", case, "suspect_leaving", "no")
    assert record(world, again(world, case))["level"] == "P3"
    lowering = propose(world, "screener", case, "P3")
    assert agree(world, "investigator", case, lowering) == LoweringState.PROPOSED


def test_what_staff_confirmed_holds_its_floor_too(world: World) -> None:
    case = new_case(world)
    confirm(world, "screener", case, "danger_now", "yes")
    lowering = propose(world, "screener", case, "P2")
    assert agree(world, "investigator", case, lowering) == LoweringState.PROPOSED


@pytest.mark.parametrize("first", ["proposer", "approver"])
def test_oversight_may_be_one_of_the_two(world: World, first: str) -> None:
    case = new_case(world, VAGUE, told("danger_now", "yes"))
    proposer, approver = ("oversight", "screener") if first == "proposer" else ("screener", "oversight")
    lowering = propose(world, proposer, case, "P3")
    assert agree(world, approver, case, lowering) == LoweringState.APPROVED
    assert lowering_of(world, lowering).overseer == world.people["oversight"][0].id


def test_after_the_deadline_to_act_oversight_signs(world: World) -> None:
    case = new_case(world, LOCKED_IN)
    confirm(world, "screener", case, "confined_now", "no")
    lowering = propose(world, "screener", case, "P3")
    assert agree(world, "investigator", case, lowering, NOW + LATER) == LoweringState.PROPOSED
    assert agree(world, "oversight", case, lowering, NOW + LATER) == LoweringState.APPROVED


def test_a_deadline_that_was_met_in_time_asks_for_no_oversight(world: World) -> None:
    case = new_case(world, VAGUE, told("confined_now", "yes", Source.SUGGESTED))
    confirm(world, "screener", case, "confined_now", "no")

    def meet(tx: Any, at: datetime) -> None:
        tx.execute(update(Clock).where(col(Clock.kind) == ClockKind.ACT).values(met_at=at))

    with world.sessions.read() as session:
        known = decisions.known(session, case, {})
        why = lambda: levels.oversight_signs(  # noqa: E731
            session, triage().ruleset, case, "P3", known, NOW + LATER
        )
        assert why() == "late"
    for at, expected in ((NOW + timedelta(minutes=5), None), (NOW + LATER, "late")):
        write(world.sessions, lambda tx, at=at: meet(tx, at))
        with world.sessions.read() as session:
            assert why() == expected


def test_a_decision_that_cannot_be_read_asks_for_oversight(world: World) -> None:
    case = new_case(world, VAGUE, told("begging", "yes"))
    confirm(world, "screener", case, "victims", 1)
    first = col(CaseDecision.number) == 1
    write(
        world.sessions,
        lambda tx: tx.execute(update(CaseDecision).where(first).values(record=b'{"facts_schema": "facts-0"}')),
    )
    lowering = propose(world, "screener", case)
    assert agree(world, "investigator", case, lowering) == LoweringState.PROPOSED


def test_what_was_closed_incomplete_before_is_not_lowered(world: World) -> None:
    case = new_case(world, VAGUE, told("prior_closed_incomplete_12m", "yes", Source.DERIVED))
    assert case.level == "P2"
    for name in ("screener", "oversight"):
        with pytest.raises(WrongState, match="closed incomplete"):
            propose(world, name, case)
    confirm(world, "screener", case, "child_involved", "no")
    with pytest.raises(WrongState, match="closed incomplete"):
        propose(world, "screener", case)


def test_rules_that_fail_lower_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    case = new_case(world)
    lowering = propose(world, "screener", case)

    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(levels, "decide", fail)
    with pytest.raises(WrongState, match="cannot be applied"):
        agree(world, "investigator", case, lowering)


def test_behind_the_wall_integrity_and_oversight_lower_together(world: World) -> None:
    case = new_case(world, POLICE)
    assert case.level == "P2"
    lowering = propose(world, "integrity", case, "P3")
    assert agree(world, "oversight", case, lowering) == LoweringState.APPROVED
    clear = rows(world, LedgerField.value, col(LedgerField.sealed).is_(False))
    assert [v for v in clear if b"official" in bytes(v)] == []


# --- ends ---


def lapsed(world: World, case: Case, lowering: UUID) -> bool:
    return (
        lowering_of(world, lowering).state == LoweringState.LAPSED
        and kinds(world, case).count("triage:lowering:lapsed") == 1
    )


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("way", ["text", "fact", "hand"])
def test_a_rise_ends_it_signed_or_not(world: World, way: str, signed: bool) -> None:
    number = a_number()
    case = new_case(world, sender=number)
    lowering = propose(world, "screener", case)
    if signed:
        assert agree(world, "investigator", case, lowering) == LoweringState.APPROVED
    if way == "text":
        world.receive(a_tip(LOCKED_IN, sender=number))
    elif way == "fact":
        confirm(world, "screener", case, "danger_now", "yes")
    else:
        do(world, levels.raise_by_hand, "screener", case, "P1", WHY)
    assert again(world, case).level == "P1"
    assert lapsed(world, case, lowering)
    with pytest.raises(WrongState):
        agree(world, "oversight", case, lowering)


@pytest.mark.parametrize("way", ["text", "fact"])
def test_a_higher_floor_ends_it_though_the_level_stays(world: World, way: str) -> None:
    """The level was raised by hand, so that a locked floor below it is no rise."""
    number = a_number()
    case = new_case(world, sender=number)
    do(world, levels.raise_by_hand, "screener", case, "P1", WHY)
    lowering = propose(world, "screener", case, "P3")
    if way == "text":
        world.receive(a_tip("The girl is beaten by her uncle every night at the guesthouse.", sender=number))
    else:
        confirm(world, "screener", case, "retaliation_threat", "yes")
    assert record(world, again(world, case))["level"] == "P2"
    assert lapsed(world, case, lowering)


@pytest.mark.parametrize("way", ["text", "fact"])
def test_what_changes_nothing_leaves_it_standing(world: World, way: str) -> None:
    number = a_number()
    case = new_case(world, sender=number)
    lowering = propose(world, "screener", case)
    if way == "text":
        world.receive(a_tip("Thank you for your help.", sender=number))
    else:
        confirm(world, "screener", case, "begging", "no")
    assert lowering_of(world, lowering).state == LoweringState.PROPOSED
    assert agree(world, "investigator", case, lowering) == LoweringState.APPROVED


def test_hours_that_ran_down_meanwhile_end_it(world: World) -> None:
    case = new_case(world, VAGUE, told("suspect_leaving", "yes"), told("suspect_leaving_hours", 50))
    do(world, levels.raise_by_hand, "screener", case, "P1", WHY)
    lowering = propose(world, "screener", case, "P3")
    assert agree(world, "investigator", case, lowering, NOW + timedelta(hours=3)) == LoweringState.LAPSED
    assert lapsed(world, case, lowering)


@pytest.mark.parametrize("name", ["screener", "investigator", "oversight"])
@pytest.mark.parametrize("signed", [False, True])
def test_whoever_reads_the_case_ends_it_with_a_reason(world: World, name: str, signed: bool) -> None:
    case = new_case(world)
    lowering = propose(world, "screener", case)
    if signed:
        agree(world, "investigator", case, lowering)
    with pytest.raises(InvalidForm):
        do(world, levels.refuse, name, case, lowering, "  ")
    do(world, levels.refuse, name, case, lowering, "She is not at home.")
    assert lowering_of(world, lowering).state == LoweringState.REFUSED
    step = history(world, again(world, case), opened(world, "oversight", case).privates)[1]
    assert (step.type, step.fields["reason"]) == ("triage:lowering:refused", "She is not at home.")
    for again_ in (levels.agree, levels.refuse):
        with pytest.raises(WrongState):
            do(world, again_, "oversight", case, lowering, *(["No."] if again_ is levels.refuse else []))


def test_a_proposal_of_another_case_is_not_there(world: World) -> None:
    case, other = new_case(world), new_case(world)
    lowering = propose(world, "screener", other)
    for id_ in (lowering, uuid4()):
        with pytest.raises(NotFound):
            agree(world, "investigator", case, id_)
        with pytest.raises(NotFound):
            do(world, levels.refuse, "investigator", case, id_, "No.")
    assert lowering_of(world, lowering).state == LoweringState.PROPOSED


def waits(world: World, name: str) -> tuple[list[UUID], list[UUID]]:
    with world.sessions.read() as session:
        return levels.waiting(session, world.signed_in(name).viewer)


def test_it_waits_for_those_who_may_sign_and_oversight_has_a_copy(world: World) -> None:
    case = new_case(world, VAGUE, told("danger_now", "yes"))
    nobody: tuple[list[UUID], list[UUID]] = ([], [])
    lowering = propose(world, "screener", case, "P3")
    expected = dict.fromkeys((*PEOPLE, *MORE_PEOPLE), nobody)
    assert {name: waits(world, name) for name in expected} == expected | {
        name: ([case.id], []) for name in ("investigator", "investigator-2", "oversight")
    }
    agree(world, "investigator", case, lowering)
    assert {name: waits(world, name) for name in expected} == expected | {"oversight": ([case.id], [])}
    agree(world, "oversight", case, lowering)
    assert {name: waits(world, name) for name in expected} == expected


def test_what_others_agreed_to_stands_before_oversight_until_it_takes_effect(world: World) -> None:
    case = new_case(world)
    lowering = propose(world, "screener", case)
    agree(world, "investigator", case, lowering)
    assert waits(world, "oversight") == ([], [case.id])
    assert waits(world, "investigator-2") == ([], [])
    do(world, levels.refuse, "oversight", case, lowering, "Not so.")
    assert waits(world, "oversight") == ([], [])


# --- what would change it ---


def known_rises(*facts: Fact, level: str) -> dict[str, tuple[Any, str]]:
    found = levels.rises(triage().ruleset, {fact.name: fact for fact in facts}, level, NOW)
    return {rise.name: (rise.value, rise.level) for rise in found}


def test_what_would_raise_it_is_said_most_urgent_first() -> None:
    found = known_rises(told("child_involved", "yes"), level="P2")
    assert found == dict.fromkeys(("danger_now", "child_with_suspect_now", "confined_now"), ("yes", "P1"))
    assert known_rises(level="P1") == {}


def test_a_number_that_would_raise_it_is_the_calmest_that_does() -> None:
    denied = [told(name, "no") for name in FACTS if FACTS[name].group == "now"]
    found = known_rises(*denied, told("suspect_leaving", "yes"), level="P2")
    assert found == {"suspect_leaving_hours": (48, "P1")}
    abuse = [told("violence", "yes"), told("suspect_status", "free"), told("suspect_access", "ongoing")]
    assert known_rises(*denied, *abuse, level="P3") == known_rises(*denied, *abuse, level="P3")
    watched = [told("violence", "yes"), told("suspect_access", "none"), told("recency", "historic")]
    assert "victims" not in known_rises(*denied, *watched, level="P3")


def test_rules_that_fail_say_nothing_of_what_would_change_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(levels, "decide", fail)
    assert known_rises(level="P2") == {}
