"""Deadlines: computed once, never later, and a ladder of which each step has its time."""

from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.clocks import Step, claim_clock_row, clock_row, first_step, next_due, raise_level, run_again, step_at
from service.config import Settings
from service.db import Sessions, Tx, write
from service.ledger.events import EventType
from service.models import RANK, Case, Clock, ClockKind, Level
from tests.builders import NOW, a_world
from tests.service.sending import Scene
from tests.service.test_intake import LOCKED_IN

CLAIM, ACT = Settings().claim_targets, Settings().act_targets
MINUTE = NOW.replace(second=0)
P2 = "A man pays for a girl of 14 at the karaoke."


@pytest.fixture
def scene(sessions: Sessions) -> Scene:
    return Scene(a_world(sessions, people={}))


def times(level: str) -> dict[int, float]:
    """Return when each step of a level's claim clock is taken, in minutes from its receipt."""
    target = CLAIM[RANK[level]]
    due_at, span = NOW + target, int(target.total_seconds())
    found: dict[int, float] = {}
    for step in range(first_step(level), 99):
        at = step_at("claim", step, due_at, span)
        if at is None:
            break
        found[step] = (at - NOW).total_seconds() / 60
    return found


def test_a_p1_is_paged_for_after_5_and_10_minutes_and_climbs_from_15_on() -> None:
    assert times("P1") == {1: 5, 2: 10, 3: 15, 4: 30, 5: 45}


@pytest.mark.parametrize(("level", "hours"), [("P2", 1), ("P3", 24), ("P4", 72)])
def test_the_others_climb_from_their_deadline_on(level: str, hours: int) -> None:
    assert times(level) == {3: 60 * hours, 4: 120 * hours, 5: 180 * hours}


@given(st.sampled_from(list(Level)), st.integers(1, 10**7))
def test_steps_come_in_order_and_end(level: Level, span: int) -> None:
    steps = [step_at("claim", step, NOW, span) for step in range(first_step(level), Step.EVERY_OVERSIGHT + 1)]
    assert all(steps)
    assert steps == sorted(steps)  # type: ignore[type-var]
    assert step_at("claim", Step.EVERY_OVERSIGHT + 1, NOW, span) is None


def test_a_clock_without_ladder_has_no_step() -> None:
    row = clock_row(uuid4(), ClockKind.ACT, NOW, EventType.DECISION_MADE)
    assert (row["span"], row["step"], row["next_at"]) == (None, 0, None)


def test_a_claim_clock_waits_for_its_first_step() -> None:
    row = claim_clock_row(uuid4(), "P1", NOW + CLAIM[0], CLAIM[0], EventType.DECISION_MADE)
    assert (row["span"], row["step"], row["next_at"]) == (900, Step.REMINDED, NOW + timedelta(minutes=5))


# --- a rise in level ---


def rise(scene: Scene, case: Case, level: str, *, minutes: float) -> tuple[Any, str]:
    """Raise a case to `level` so many minutes after its receipt, as a later message does."""
    rank = RANK[level]

    def raised(tx: Tx) -> tuple[Any, str]:
        at = MINUTE + timedelta(minutes=minutes)
        return raise_level(tx, tx.get_one(Case, case.id), level, claim=CLAIM[rank], act=ACT[rank], now=at)

    return write(scene.world.sessions, raised)


def after(clock: Clock) -> tuple[float, int, float | None]:
    """Return when a claim clock is due, its next step and when that is taken, in minutes from the receipt."""
    next_at = None if clock.next_at is None else (clock.next_at - MINUTE).total_seconds() / 60
    return (clock.due_at - MINUTE).total_seconds() / 60, clock.step, next_at


def set_clock(scene: Scene, case: Case, **values: Any) -> None:
    id_ = scene.clock(case).id
    write(scene.world.sessions, lambda tx: [setattr(tx.get(Clock, id_), k, v) for k, v in values.items()])


@pytest.mark.parametrize(
    ("minutes", "expected"),
    [
        (20, (35, Step.REMINDED, 25)),  # P1's quarter of an hour from the message on
        (44, (59, Step.REMINDED, 49)),
        (52, (60, Step.REMINDED_AGAIN, 55)),  # never later than before; the rise itself was told just now
        (58, (60, Step.LAPSED, 60)),
        (60, (60, Step.LAPSED, 60)),
        (90, (60, Step.LAPSED, 60)),
    ],
)
def test_a_rise_brings_the_deadline_forward_and_never_back(
    scene: Scene, minutes: float, expected: tuple[float, int, float]
) -> None:
    case = scene.tip(P2)
    assert after(scene.clock(case)) == (60, Step.LAPSED, 60)
    rise(scene, case, "P1", minutes=minutes)
    assert after(scene.clock(case)) == expected


def test_a_ladder_that_is_past_its_deadline_goes_on_faster_from_where_it_is(scene: Scene) -> None:
    case = scene.tip(P2)
    set_clock(scene, case, step=Step.OVERSIGHT, next_at=MINUTE + timedelta(hours=2))
    rise(scene, case, "P1", minutes=65)
    assert after(scene.clock(case)) == (60, Step.OVERSIGHT, 75)


def test_a_ladder_that_is_through_stays_through(scene: Scene) -> None:
    case = scene.tip(P2)
    set_clock(scene, case, step=Step.EVERY_OVERSIGHT + 1, next_at=None)
    rise(scene, case, "P1", minutes=200)
    assert after(scene.clock(case)) == (60, Step.EVERY_OVERSIGHT + 1, None)


def test_a_rise_moves_the_act_clock_too_and_returns_the_next_deadline(scene: Scene) -> None:
    case = scene.tip(P2)
    assert rise(scene, case, "P1", minutes=10) == (MINUTE + timedelta(minutes=25), "claim")
    act = scene.clock(case, "act")
    assert act.due_at == MINUTE + timedelta(minutes=70)
    assert (act.step, act.next_at, act.span) == (Step.LAPSED, act.due_at, 900), "a supervisor has 15 minutes"


@settings(max_examples=25)
@given(st.lists(st.integers(0, 5000), min_size=1, max_size=4))
def test_no_deadline_is_ever_moved_later(scene: Scene, minutes: list[int]) -> None:
    case = scene.tip("Please look at the guesthouse.")
    levels = iter(["P2", "P1", "P1", "P1"])
    for at in sorted(minutes):
        before = {kind: scene.clock(case, kind).due_at for kind in ("claim", "act")}
        rise(scene, case, next(levels), minutes=at)
        assert all(scene.clock(case, kind).due_at <= due for kind, due in before.items())


def test_a_rise_while_somebody_holds_the_case_counts_when_nobody_does_any_more(scene: Scene) -> None:
    """A P1 that is dropped must not be told of as late as the P2 that it was when it was claimed."""
    case = scene.tip(P2)
    set_clock(scene, case, met_at=MINUTE + timedelta(minutes=5))
    assert rise(scene, case, "P1", minutes=10)[1] == "act", "while it is held its claim is no deadline"

    def dropped(tx: Tx) -> tuple[Any, str]:
        return run_again(tx, tx.get_one(Case, case.id), MINUTE + timedelta(minutes=12))

    assert write(scene.world.sessions, dropped) == (MINUTE + timedelta(minutes=25), "claim")
    assert after(scene.clock(case)) == (25, Step.REMINDED, 15)
    assert scene.clock(case).span == 900


# --- a case that nobody holds any more ---


@pytest.mark.parametrize(
    ("minutes", "step", "at"),
    [(2, Step.REMINDED, 5), (7, Step.REMINDED_AGAIN, 10), (12, Step.LAPSED, 15), (20, Step.LAPSED, 15)],
)
def test_reminders_that_went_by_while_somebody_held_it_are_not_made_up_for_and_a_lapse_is(
    scene: Scene, minutes: int, step: int, at: float
) -> None:
    case = scene.tip(LOCKED_IN)
    set_clock(scene, case, met_at=MINUTE + timedelta(minutes=1))
    now = MINUTE + timedelta(minutes=minutes)
    due_at, kind = write(scene.world.sessions, lambda tx: run_again(tx, tx.get_one(Case, case.id), now))

    assert (due_at, kind) == (MINUTE + timedelta(minutes=15), "claim"), "the first deadline"
    assert after(scene.clock(case)) == (15, step, at)
    assert scene.clock(case).met_at is None


def test_a_step_that_was_taken_is_not_taken_again_when_the_case_is_dropped(scene: Scene) -> None:
    case = scene.tip(LOCKED_IN)
    set_clock(scene, case, step=Step.OVERSIGHT, next_at=MINUTE + timedelta(minutes=30), met_at=NOW)
    now = MINUTE + timedelta(minutes=50)
    write(scene.world.sessions, lambda tx: run_again(tx, tx.get_one(Case, case.id), now))
    assert after(scene.clock(case)) == (15, Step.OVERSIGHT, 30)


def test_the_next_deadline_is_the_earliest_that_runs(scene: Scene) -> None:
    case = scene.tip(LOCKED_IN)

    def due() -> tuple[Any, str]:
        with scene.world.sessions.read() as session:
            return next_due(session, case)

    assert due() == (MINUTE + timedelta(minutes=15), "claim")
    set_clock(scene, case, met_at=NOW)
    assert due() == (MINUTE + timedelta(hours=1), "act")
