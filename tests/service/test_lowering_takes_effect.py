"""A lowering that all signed takes effect when witnesses have seen it, once, and only while it still stands."""

import json
from functools import partial
from pathlib import Path

import pytest
from sqlmodel import col, select

from service import levels
from service.config import Settings
from service.db import write
from service.errors import LedgerHalted
from service.ledger.events import EventType
from service.models import Clock, ClockKind, LedgerEffect, LoweringState
from tests.builders import NOW, World
from tests.service.ledger.builders import Log
from tests.service.test_levels import (
    WHY,
    again,
    agree,
    do,
    kinds,
    lowering_of,
    new_case,
    propose,
    rows,
    world,
)

__all__ = ["world"]  # a fixture


@pytest.fixture
def a_log(world: World, tmp_path: Path) -> Log:
    """The ledger of the world, with its worker's effects."""
    targets = Settings()
    given = {"ledger": world.ledger, "claim_targets": targets.claim_targets, "act_targets": targets.act_targets}
    return Log(world.sessions, tmp_path, moment=NOW, effects={"lower": partial(levels.take_effect, **given)})


def witness(a_log: Log) -> None:
    one = a_log.sequencer()
    one.round()
    one.publish()
    one.step_down()


def test_it_falls_when_a_quorum_has_seen_it_and_not_before(world: World, a_log: Log) -> None:
    case = new_case(world)
    lowering = propose(world, "screener", case)
    agree(world, "investigator", case, lowering)
    a_log.witnesses.away = {"ngo.example/w", "un.example/w"}
    witness(a_log)
    assert (again(world, case).level, lowering_of(world, lowering).state) == (case.level, LoweringState.APPROVED)
    a_log.witnesses.away = set()
    a_log.later(60)
    witness(a_log)
    lowered = again(world, case)
    assert (lowered.level, lowering_of(world, lowering).state) == ("P4", LoweringState.EFFECTIVE)
    assert kinds(world, case)[-1] == EventType.LOWERING_EFFECTIVE
    assert lowered.due_at > case.due_at
    witness(a_log)
    assert kinds(world, case).count("triage:lowering:effective") == 1


def test_its_clocks_count_from_receipt_and_a_breach_stays(world: World, a_log: Log) -> None:
    case = new_case(world)
    lowering = propose(world, "screener", case)
    agree(world, "investigator", case, lowering)

    def due() -> dict[str, object]:
        with world.sessions.read() as session:
            return {c.kind: c.due_at for c in session.scalars(select(Clock).where(col(Clock.case) == case.id))}

    before = due()
    a_log.moment = before[ClockKind.CLAIM]  # type: ignore[assignment]
    witness(a_log)
    assert due()[ClockKind.CLAIM] == before[ClockKind.CLAIM]
    assert due()[ClockKind.ACT] == case.received_hour + Settings().act_targets[3]
    assert again(world, case).due_at == before[ClockKind.CLAIM]


@pytest.mark.parametrize("ending", ["refused", "raised"])
def test_what_was_refused_or_lapsed_meanwhile_changes_nothing(world: World, a_log: Log, ending: str) -> None:
    case = new_case(world)
    lowering = propose(world, "screener", case)
    agree(world, "investigator", case, lowering)
    if ending == "refused":
        do(world, levels.refuse, "oversight", case, lowering, WHY)
    else:
        do(world, levels.raise_by_hand, "screener", case, "P1", WHY)
    level = again(world, case).level
    witness(a_log)
    assert again(world, case).level == level
    assert "triage:lowering:effective" not in kinds(world, case)
    (effect,) = rows(world, LedgerEffect)
    assert effect.done_at is not None


def test_an_action_for_another_case_changes_nothing(world: World, a_log: Log) -> None:
    case, other = new_case(world), new_case(world)
    lowering = propose(world, "screener", case)
    agree(world, "investigator", case, lowering)
    (effect,) = rows(world, LedgerEffect)
    action = json.loads(effect.action) | {"case": other.id.hex}
    write(world.sessions, lambda tx: a_log.effects["lower"](tx, action, NOW))
    assert (again(world, other).level, lowering_of(world, lowering).state) == (other.level, LoweringState.APPROVED)


def test_while_the_ledger_is_halted_nothing_is_lowered_and_all_else_goes_on(world: World, a_log: Log) -> None:
    case, other = new_case(world), new_case(world)
    lowering = propose(world, "screener", case)
    a_log.sequencer().halt("leaf")
    with pytest.raises(LedgerHalted):
        agree(world, "investigator", case, lowering)
    with pytest.raises(LedgerHalted):
        propose(world, "screener", other)
    do(world, levels.refuse, "oversight", case, lowering, WHY)
    do(world, levels.raise_by_hand, "screener", other, "P1", WHY)
    assert again(world, other).level == "P1"


def test_an_approved_lowering_does_not_take_effect_while_the_ledger_is_halted(world: World, a_log: Log) -> None:
    case = new_case(world)
    lowering = propose(world, "screener", case)
    agree(world, "investigator", case, lowering)
    one = a_log.sequencer()
    one.round()
    one.halt("leaf")
    one.publish()
    one.settle()
    assert lowering_of(world, lowering).state == LoweringState.APPROVED
    assert again(world, case).level == case.level
