"""Deadlines as rows: computed once, never moved later, and what happens when nobody meets them.

A clock has a ladder (casework.md section 3, triage.md section 10): the lapse itself, then one and two spans later; for
claiming, of P1 alone, reminders before it. Each step is taken once: the row says which is next.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import IntEnum
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import and_, or_, select, update
from sqlmodel import Session, col

from service.db import Tx
from service.ledger.events import EventType
from service.models import Case, Clock, ClockKind, Level
from service.walls import Viewer, readable

RUNNING = and_(col(Clock.met_at).is_(None), col(Clock.lapsed_at).is_(None))


class Step(IntEnum):
    """The steps of the claim ladder, in order. The first page of a P1 is an outbox row of its receipt (step 0)."""

    REMINDED = 1
    REMINDED_AGAIN = 2
    LAPSED = 3
    OVERSIGHT = 4
    EVERY_OVERSIGHT = 5


# When a step is taken, in spans after the deadline: of P1's 15 minutes to claim, 10 and 5 before it.
_AFTER: dict[int, float] = {
    Step.REMINDED: -2 / 3,
    Step.REMINDED_AGAIN: -1 / 3,
    Step.LAPSED: 0,
    Step.OVERSIGHT: 1,
    Step.EVERY_OVERSIGHT: 2,
}
STALLING = frozenset({ClockKind.ACT, ClockKind.STEP, ClockKind.HEARTBEAT})  # whose lapse is a stall
ANSWER = {Level.P1: timedelta(minutes=15)}  # a supervisor's, when a clock has lapsed; else
LONGEST_ANSWER = timedelta(hours=4)


def step_at(kind: str, step: int, due_at: datetime, span: int) -> datetime | None:
    """Return when `step` of a clock is taken, None after the last. span: seconds, as its row says.

    A heartbeat's reminder is its only step: the letter to the next authority has a clock of its own.
    """
    if step not in _AFTER or (kind == ClockKind.HEARTBEAT and step > Step.LAPSED):
        return None
    return due_at + timedelta(seconds=span * _AFTER[step])


def answer_time(level: str) -> timedelta:
    """Return how long a supervisor has to act or to change the owner once a clock has lapsed (casework.md 3)."""
    return ANSWER.get(Level(level), LONGEST_ANSWER)


def first_step(level: str) -> Step:
    """Return the ladder's first step: only a P1 is reminded of before it is late (DESIGN section 4)."""
    return Step.REMINDED if level == Level.P1 else Step.LAPSED


def clock_row(
    case: UUID, kind: ClockKind, due_at: datetime, set_by: EventType, answer: timedelta | None = None
) -> dict[str, Any]:
    """Return the row of a running clock.

    answer: how long those who are told of its lapse have before the next are told; None for a clock without ladder.
    """
    span = None if answer is None else int(answer.total_seconds())
    return {
        "id": uuid4(),
        "case": case,
        "kind": kind,
        "due_at": due_at,
        "set_by": set_by,
        "met_at": None,
        "lapsed_at": None,
        "span": span,
        "step": 0 if span is None else int(Step.LAPSED),
        "next_at": None if span is None else due_at,
    }


def claim_clock_row(case: UUID, level: str, due_at: datetime, target: timedelta, set_by: EventType) -> dict[str, Any]:
    """Return the row of a running claim clock with its ladder. target: for claiming at this level."""
    span, step = int(target.total_seconds()), first_step(level)
    ladder = {"span": span, "step": int(step), "next_at": step_at(ClockKind.CLAIM, step, due_at, span)}
    return clock_row(case, ClockKind.CLAIM, due_at, set_by) | ladder


def challenge_clock_row(case: UUID, now: datetime, due_at: datetime) -> dict[str, Any]:
    """Return the row of a challenge's clock: oversight is told at once, every oversight unit when it lapses."""
    ladder = {"span": 0, "step": int(Step.OVERSIGHT), "next_at": now}
    return clock_row(case, ClockKind.CHALLENGE, due_at, EventType.CHALLENGE_RAISED) | ladder


def next_due(tx: Session, case: Case) -> tuple[datetime, str]:
    """Return the earliest running deadline of a case, and its kind. Every open case has one.

    A tipster's challenge is not among them: who works the case must not see it (casework.md section 13).
    """
    ours = and_(RUNNING, col(Clock.kind) != ClockKind.CHALLENGE)
    clock = tx.scalars(select(Clock).where(col(Clock.case) == case.id, ours).order_by(col(Clock.due_at)).limit(1)).one()
    return clock.due_at, clock.kind


def meet(tx: Tx, case: Case, kind: ClockKind, now: datetime) -> None:
    """Say that what the running clock of this kind waited for has happened."""
    tx.execute(update(Clock).where(col(Clock.case) == case.id, col(Clock.kind) == kind, RUNNING).values(met_at=now))


def meet_all(tx: Tx, case: Case, now: datetime) -> None:
    """End every running clock of a case that is closed."""
    tx.execute(update(Clock).where(col(Clock.case) == case.id, RUNNING).values(met_at=now))


def raise_level(
    tx: Tx, case: Case, level: str, *, claim: timedelta, act: timedelta, now: datetime
) -> tuple[datetime, str]:
    """Bring running deadlines forward to `now` + target where that is earlier, never later; return the next one.

    level: the new one. claim, act: its targets (triage.md section 10). A ladder that is past its deadline goes on from
    the step it has reached, in the new, shorter spans. That of a claimed case is moved too: it may run again.
    Reminders whose time went by before the rise are not made up for; the rise itself is paged for.
    """
    targets = {ClockKind.CLAIM.value: claim, ClockKind.ACT.value: act}
    may_run_again = and_(col(Clock.kind) == ClockKind.CLAIM, col(Clock.lapsed_at).is_(None))
    for clock in tx.scalars(select(Clock).where(col(Clock.case) == case.id, or_(RUNNING, may_run_again))).all():
        target = targets.get(clock.kind)
        if target is None:
            continue
        late = clock.due_at <= now
        clock.due_at = min(clock.due_at, now + target)
        if clock.span is not None:
            claiming = clock.kind == ClockKind.CLAIM
            clock.span = int((target if claiming else answer_time(level)).total_seconds())
            first = first_step(level) if claiming else Step.LAPSED
            clock.step = clock.step if late else first
            clock.next_at = step_at(clock.kind, clock.step, clock.due_at, clock.span)
            _leave_out_reminders(clock, now)
    tx.flush()
    return next_due(tx, case)


def lower_level(
    tx: Tx, case: Case, level: str, *, claim: timedelta, act: timedelta, now: datetime
) -> tuple[datetime, str]:
    """Give running deadlines the targets of a calmer level, counted from receipt; return the next one.

    level: the new one. claim, act: its targets (triage.md section 10). None comes earlier by it, and one that is past
    stays past, with its ladder: a breach is not healed.
    """
    targets = {ClockKind.CLAIM.value: claim, ClockKind.ACT.value: act}
    for clock in tx.scalars(select(Clock).where(col(Clock.case) == case.id, RUNNING)).all():
        target = targets.get(clock.kind)
        if target is None or clock.due_at <= now:
            continue
        clock.due_at = max(clock.due_at, case.received_hour + target)
        if clock.span is not None:
            claiming = clock.kind == ClockKind.CLAIM
            clock.span = int((target if claiming else answer_time(level)).total_seconds())
            clock.step = first_step(level) if claiming else Step.LAPSED
            clock.next_at = step_at(clock.kind, clock.step, clock.due_at, clock.span)
            _leave_out_reminders(clock, now)
    tx.flush()
    return next_due(tx, case)


def run_again(tx: Tx, case: Case, now: datetime) -> tuple[datetime, str]:
    """Let the claim clock of a case that nobody holds any more run again; return the next deadline.

    The deadline is the first one: claiming and dropping gains nothing. Reminders whose time went by while somebody
    held the case are not made up for; a lapse is.
    """
    for clock in tx.scalars(
        select(Clock).where(
            col(Clock.case) == case.id, col(Clock.kind) == ClockKind.CLAIM, col(Clock.lapsed_at).is_(None)
        )
    ).all():
        clock.met_at = None
        _leave_out_reminders(clock, now)
    tx.flush()
    return next_due(tx, case)


def _leave_out_reminders(clock: Clock, now: datetime) -> None:
    while clock.next_at is not None and clock.step < Step.LAPSED and clock.next_at <= now:
        clock.step += 1
        clock.next_at = step_at(clock.kind, clock.step, clock.due_at, clock.span or 0)


@dataclass(frozen=True, slots=True)
class Missed:
    """A deadline that was not met in time. met_at: when it was met all the same. lapsed: it ended unmet."""

    case: UUID
    level: str
    kind: str
    due_at: datetime
    met_at: datetime | None
    lapsed: bool

    @property
    def is_running(self) -> bool:
        """Whether it still waits to be met."""
        return self.met_at is None and not self.lapsed


def missed(session: Session, viewer: Viewer, since: datetime, now: datetime, most: int) -> list[Missed]:
    """Return the deadlines missed since then, and all late now, oldest first; of cases that exist for `viewer`."""
    late_now = and_(RUNNING, col(Clock.due_at) < now)
    ended_late = and_(
        col(Clock.due_at) > since,
        or_(col(Clock.lapsed_at).is_not(None), col(Clock.met_at) > col(Clock.due_at)),
    )
    rows = session.execute(
        select(
            *(col(Clock.case), col(Case.level), col(Clock.kind), col(Clock.due_at), col(Clock.met_at)),
            col(Clock.lapsed_at).is_not(None),
        )
        .join(Case, col(Case.id) == col(Clock.case))
        .where(or_(late_now, ended_late), readable(viewer))
        .order_by(col(Clock.due_at), col(Clock.id))
        .limit(most)
    ).all()
    return [Missed(*row) for row in rows]
