"""Deadlines as rows: computed once, never moved later, and what happens when nobody meets them.

A clock for claiming has a ladder (casework.md section 3, triage.md section 10): reminders before it is due, for P1
alone, then the lapse itself, then one and two targets later. Each step is taken once: the row says which is next.
"""

from datetime import datetime, timedelta
from enum import IntEnum
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import and_, or_, select, update
from sqlmodel import Session, col

from service.db import Tx
from service.ledger.events import EventType
from service.models import Case, Clock, ClockKind, Level

RUNNING = and_(col(Clock.met_at).is_(None), col(Clock.lapsed_at).is_(None))


class Step(IntEnum):
    """The steps of the claim ladder, in order. The first page of a P1 is an outbox row of its receipt (step 0)."""

    REMINDED = 1
    REMINDED_AGAIN = 2
    LAPSED = 3
    OVERSIGHT = 4
    EVERY_OVERSIGHT = 5


# When a step is taken, in claim targets after the deadline: of P1's 15 minutes, 10 and 5 before it.
_AFTER: dict[int, float] = {
    Step.REMINDED: -2 / 3,
    Step.REMINDED_AGAIN: -1 / 3,
    Step.LAPSED: 0,
    Step.OVERSIGHT: 1,
    Step.EVERY_OVERSIGHT: 2,
}


def step_at(step: int, due_at: datetime, span: int) -> datetime | None:
    """Return when `step` of a claim clock is taken, None after the last. span: the claim target, seconds."""
    return due_at + timedelta(seconds=span * _AFTER[step]) if step in _AFTER else None


def first_step(level: str) -> Step:
    """Return the ladder's first step: only a P1 is reminded of before it is late (DESIGN section 4)."""
    return Step.REMINDED if level == Level.P1 else Step.LAPSED


def clock_row(case: UUID, kind: ClockKind, due_at: datetime, set_by: EventType) -> dict[str, Any]:
    """Return the row of a running clock without ladder."""
    return {
        "id": uuid4(),
        "case": case,
        "kind": kind,
        "due_at": due_at,
        "set_by": set_by,
        "met_at": None,
        "lapsed_at": None,
        "span": None,
        "step": 0,
        "next_at": None,
    }


def claim_clock_row(case: UUID, level: str, due_at: datetime, target: timedelta, set_by: EventType) -> dict[str, Any]:
    """Return the row of a running claim clock with its ladder. target: for claiming at this level."""
    span, step = int(target.total_seconds()), first_step(level)
    ladder = {"span": span, "step": int(step), "next_at": step_at(step, due_at, span)}
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
            clock.span = int(target.total_seconds())
            clock.step = clock.step if late else first_step(level)
            clock.next_at = step_at(clock.step, clock.due_at, clock.span)
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
        clock.next_at = step_at(clock.step, clock.due_at, clock.span or 0)
