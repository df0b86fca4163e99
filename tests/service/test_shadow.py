"""New rules over stored cases: what would move, and deciding open cases anew."""

import json
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select
from sqlmodel import col

from service import ladder, levels, shadow, staff
from service.cases import change
from service.config import Settings
from service.db import Sessions, write
from service.ladder import Watch
from service.ledger.events import SYSTEM, EventType, NewEvent, StateClass
from service.levels import Judge
from service.models import Case, CaseDecision, LedgerEvent, OutboxJob
from service.outbox import PAGE
from service.triage import NO_RULES, Fact, Ruleset, Triage
from service.triage.kleene import Program
from tests.builders import NOW, World, a_number, a_tip, a_world, the_case, triage
from tests.ruling import BEGGING_TODAY, levelled, replayed, told, variant, with_rule, without
from tests.service.test_intake import POLICE

SHIPPED = triage().ruleset
VAGUE = "Please look at the guesthouse."
BEGS = (told("begging", "yes"),)  # P3 by R035
REACHED = (told("violence", "yes"), told("suspect_access", "ongoing"))  # P2 by R026 alone
LATER = NOW + timedelta(minutes=10)
WALLS = with_rule(id="W99", kind="route", route="INDEPENDENT", when={"fact": "begging", "is": "yes"})


@pytest.fixture
def world(sessions: Sessions) -> World:
    return a_world(sessions)


def a_case_of(world: World, *facts: Fact, words: str = VAGUE) -> Case:
    [receipt] = world.receive(a_tip(words, sender=a_number(), stated=facts))
    case: Case = the_case(world, receipt.tip)
    return case


def again(world: World, case: Case) -> Case:
    with world.sessions.read() as session:
        return session.get_one(Case, case.id)


def a_judge(world: World, ruleset: Ruleset) -> Judge:
    known, founding = Settings(), world.founding
    targets = known.claim_targets, known.act_targets
    return Judge(world.ledger, founding.cards, founding.row_key, ruleset, *targets)


def decide(world: World, ruleset: Ruleset, now: datetime = LATER) -> int:
    return shadow.decide_open_cases(world.sessions, a_judge(world, ruleset), now, lambda: False)


def events(world: World, case: Case) -> list[str]:
    with world.sessions.read() as session:
        of_case = select(col(LedgerEvent.type)).where(col(LedgerEvent.case) == case.chain)
        return list(session.scalars(of_case.order_by(col(LedgerEvent.seq))).all())


def raising(ruleset: Ruleset = SHIPPED, name: str = "begging") -> Ruleset:
    """A ruleset of which one rule raises: for a case with the fact `name`."""

    class Broken(Program):
        def run(self, facts: Any, as_of: Any) -> Any:
            if name in facts:
                raise ZeroDivisionError("a rule that raises")
            return super().run(facts, as_of)

    return replace(ruleset, content_hash="ff" * 32, program=Broken(ruleset.program.rows, ruleset.program.clause_facts))


# --- replay ---


def test_a_replay_shows_what_rises_and_falls_and_why(world: World) -> None:
    begs, reached, stays = a_case_of(world, *BEGS), a_case_of(world, *REACHED), a_case_of(world)

    found = replayed(world.sessions, SHIPPED, variant(BEGGING_TODAY, levelled("R026", "P3")))

    assert [(m.case, m.before, m.after, m.gone, m.come) for m in found.rises] == [
        (begs.id, "P3", "P2", (), ("R900 (P2)",))
    ]
    assert [(m.case, m.before, m.after, m.gone, m.come) for m in found.falls] == [
        (reached.id, "P2", "P3", ("R026 (P2)",), ("R026 (P3)",))
    ]
    assert (found.same, found.unread, found.sealed) == (1, 0, 0)
    assert [again(world, case).version for case in (begs, reached, stays)] == [2, 2, 2], "nothing was changed"


def test_a_replay_of_equal_rules_moves_nothing(world: World) -> None:
    a_case_of(world, *REACHED)

    assert replayed(world.sessions, SHIPPED, variant()).moves == ()


def test_a_walled_case_is_counted_and_never_looked_at(world: World) -> None:
    walled = a_case_of(world, *REACHED, words=POLICE)
    assert walled.walled

    found = replayed(world.sessions, SHIPPED, variant(levelled("R026", "P3"), without("R014")))

    assert (found.moves, found.same, found.sealed) == ((), 0, 1)


def test_a_rule_that_raises_is_shown_as_p1(world: World) -> None:
    case = a_case_of(world, *BEGS)

    [move] = replayed(world.sessions, SHIPPED, raising()).moves
    assert (move.case, move.after, move.come) == (case.id, "P1", ("engine",))


# --- deciding anew ---


def test_a_rise_by_new_rules_applies_itself_with_its_clocks(world: World) -> None:
    case = a_case_of(world, *BEGS)

    assert decide(world, variant(BEGGING_TODAY)) == 1

    now = again(world, case)
    assert (case.level, now.level, now.decision) == ("P3", "P2", 2)
    assert now.due_at == LATER + timedelta(hours=1)
    assert events(world, case)[-2:] == [EventType.DECISION_MADE, EventType.LEVEL_RAISED]


def test_a_rise_to_p1_pages(world: World) -> None:
    case = a_case_of(world, *BEGS)
    new = variant(with_rule(id="R900", level="P1", when={"fact": "begging", "is": "yes"}))

    decide(world, new)

    with world.sessions.read() as session:
        jobs = session.scalars(select(col(OutboxJob.kind)).where(col(OutboxJob.case) == case.id)).all()
    assert list(jobs).count(PAGE) == 1


def test_a_fall_by_new_rules_changes_no_level(world: World) -> None:
    case = a_case_of(world, *REACHED)

    decide(world, variant(levelled("R026", "P3")))

    now = again(world, case)
    assert (now.level, now.due_at, now.decision) == ("P2", case.due_at, 2)
    with world.sessions.read() as session:
        newest = session.get_one(CaseDecision, (case.id, 2))
        assert newest.level == "P3", "the page of the case says that the reasons alone give this"


def test_a_case_is_decided_once_by_the_same_rules(world: World) -> None:
    a_case_of(world, *BEGS)
    new = variant(BEGGING_TODAY)

    assert [decide(world, new), decide(world, new)] == [1, 0]
    assert decide(world, SHIPPED) == 1, "and again when others are in force"


def test_rules_that_tie_an_official_to_a_case_put_it_behind_the_wall(world: World) -> None:
    case = a_case_of(world, *BEGS)

    decide(world, variant(WALLS))

    now = again(world, case)
    assert (now.walled, now.flags, now.unit) == (True, None, "integrity")
    with world.sessions.read() as session:
        records = session.scalars(select(col(CaseDecision.record)).where(col(CaseDecision.case) == case.id)).all()
    assert records == [None, None]
    assert EventType.CASE_WALL_RAISED in events(world, case)
    who = world.signed_in("integrity")
    with world.sessions.read() as session:
        keys = staff.open_keys(session, world.founding.row_key, world.founding.cards, who, now)
    assert now.generation in keys.privates, "integrity reads what is decided from now on"


def test_a_walled_case_is_decided_when_somebody_opens_it(world: World) -> None:
    case = a_case_of(world, *BEGS, words=POLICE)
    new = variant(with_rule(id="R900", level="P1", when={"fact": "begging", "is": "yes"}))

    assert decide(world, new) == 0
    who = world.signed_in("oversight")
    with world.sessions.read() as session:
        keys = staff.open_keys(session, world.founding.row_key, world.founding.cards, who, case).privates
    write(
        world.sessions, lambda tx: levels.decide_anew(tx, a_judge(world, new), tx.get_one(Case, case.id), keys, LATER)
    )

    assert again(world, case).level == "P1"
    with world.sessions.read() as session:
        assert session.get_one(CaseDecision, (case.id, 2)).record is None


def test_a_closed_case_is_left_alone(world: World) -> None:
    case, new = a_case_of(world, *BEGS), variant(BEGGING_TODAY)
    event = NewEvent(EventType.CASE_RELEASED, NOW, SYSTEM, StateClass.CLOSED)
    write(world.sessions, lambda tx: change(tx, world.ledger, tx.get_one(Case, case.id), [event], state="closed"))

    assert decide(world, new) == 0
    write(world.sessions, lambda tx: levels.decide_anew(tx, a_judge(world, new), tx.get_one(Case, case.id), {}, LATER))
    assert again(world, case).decision == 1


# --- faults ---


def test_a_rule_that_raises_makes_a_new_tip_p1_and_the_duty_is_told(world: World) -> None:
    broken = Triage(raising(), triage().lexicon)
    [fine] = world.receive(a_tip(VAGUE, sender=a_number()), triage=broken)
    assert fine.level != "P1", "only where the rule is reached"

    [receipt] = world.receive(a_tip(VAGUE, sender=a_number(), stated=BEGS), triage=broken)

    case = the_case(world, receipt.tip)
    assert (receipt.level, case.level) == ("P1", "P1")
    assert EventType.ENGINE_FAILED in events(world, case)
    assert rung(world, NOW) == {case.id}


def test_a_rule_that_raises_over_an_open_case_makes_it_p1_and_the_duty_is_told(world: World) -> None:
    case = a_case_of(world, *BEGS)

    decide(world, raising())

    assert again(world, case).level == "P1"
    assert EventType.ENGINE_FAILED in events(world, case)
    assert rung(world, LATER) == {case.id}


def rung(world: World, now: datetime) -> set[Any]:
    """The cases of which a text to the phone on duty waits."""
    duty = {"screening": ("+85500000201",)}
    watch = Watch(world.ledger, world.founding.row_key, world.founding.cards, duty)
    ladder.answer_pages(world.sessions, watch, now)
    with world.sessions.read() as session:
        return {job.case for job in session.scalars(select(OutboxJob).where(col(OutboxJob.duty).is_not(None))).all()}


def test_what_the_faulty_rules_left_at_p1_stays_there_until_two_people_lower_it(world: World) -> None:
    case = a_case_of(world, *BEGS)
    decide(world, raising())

    decide(world, variant(BEGGING_TODAY), LATER + timedelta(minutes=5))

    assert again(world, case).level == "P1"
    with world.sessions.read() as session:
        record = json.loads(session.get_one(CaseDecision, (case.id, 3)).record or b"")
    assert (record["level"], record["fired"][0]["id"]) == ("P2", "R900")


def test_no_rules_at_all_are_an_engine_fault(world: World) -> None:
    [receipt] = world.receive(a_tip(VAGUE), triage=Triage(NO_RULES, triage().lexicon))

    assert receipt.level == "P1"
    assert EventType.ENGINE_FAILED in events(world, the_case(world, receipt.tip))
