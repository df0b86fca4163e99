"""Who is told of a case, and who next when nobody claims it (casework.md section 3, the ladder; DESIGN section 4).

Telling somebody is a text without content to the numbers of the duty list: "open the queue". Each step of a clock is
taken once, in one transaction with its event and its outbox rows, whoever takes it and however late.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from uuid import UUID

import structlog
from sqlalchemy import select
from sqlmodel import Session, col

from service import outbox
from service.cases import change, mark, state_class
from service.clocks import RUNNING, STALLING, Step, step_at
from service.db import Sessions, Tx
from service.errors import CannotOpen
from service.ledger.events import SYSTEM, EventType, Ledger, NewEvent
from service.models import Case, CaseSeal, Clock, ClockKind, JobState, OutboxJob, OverlayKind, State
from service.outbox import never
from service.vault.cards import Cards, UnitKind
from service.walls import barred_units

log = structlog.get_logger("ladder")

RING_WITHIN = timedelta(hours=1)  # after that the next steps have long told others
SUPERVISOR = "/supervisor"
STAFF_LANGUAGE = "km"
BATCH = 100  # in one round; each in a transaction of its own, because intake waits for that on SQLite


@dataclass(frozen=True)
class Watch:
    """Who is on duty: "UNIT" or "UNIT/supervisor" to numbers, and what it takes to write that they were told."""

    ledger: Ledger
    row_key: bytes = field(repr=False)
    cards: Cards
    duty: Mapping[str, Sequence[str]] = field(repr=False)


def answer_pages(sessions: Sessions, watch: Watch, now: datetime, stopping: Callable[[], bool] = never) -> int:
    """Tell whoever is on duty for each case that asks for it now, and return how many asked. Safe to run at once."""
    with sessions.read() as session:
        pages = session.scalars(outbox.waiting(outbox.PAGE, now).with_only_columns(col(OutboxJob.id)).limit(BATCH))
        steps = [partial(_answer, watch=watch, page_id=page, now=now) for page in pages]
    return outbox.each(sessions, steps, stopping)


def _answer(tx: Tx, *, watch: Watch, page_id: UUID, now: datetime) -> bool:
    """Answer one page if nobody else is doing so."""
    taken = outbox.take(tx, outbox.waiting(outbox.PAGE, now).where(col(OutboxJob.id) == page_id), now)
    if not taken:
        return False
    [page] = taken
    case = tx.get(Case, page.case) if page.case else None
    try:
        outbox.check_tag(watch.row_key, page)
    except CannotOpen:
        log.error("outbox_row_is_not_ours", kind=page.kind)
        case = None
    if case is None:
        outbox.settle(tx, [page.id], JobState.FAILED, now)
        return True
    # A first page that comes late, after somebody has claimed the case, has nothing left to ask for.
    claimed = case.state != State.OPEN and page.key == f"{outbox.PAGE}:{case.id.hex}"
    outbox.settle(tx, [page.id], JobState.DROPPED if claimed else JobState.DONE, now)
    if not claimed:
        _tell(tx, watch, case, page.key, 0 if page.duty != case.oversight else Step.OVERSIGHT, now)
    return True


def climb(sessions: Sessions, watch: Watch, now: datetime, stopping: Callable[[], bool] = never) -> int:
    """Take every step of a ladder whose time has come, each once, and return how many. Safe to run at once."""
    with sessions.read() as session:
        due = session.execute(
            select(col(Clock.id), col(Clock.step))
            .where(RUNNING, col(Clock.next_at).is_not(None), col(Clock.next_at) <= now)
            .order_by(col(Clock.next_at))
            .limit(BATCH)
        ).all()
    steps = [partial(_step, watch=watch, clock_id=clock, step=step, now=now) for clock, step in due]
    return outbox.each(sessions, steps, stopping)


def _step(tx: Tx, *, watch: Watch, clock_id: UUID, step: int, now: datetime) -> bool:
    """Take one step if nobody else has taken it, and nobody has met the clock."""
    clock = tx.scalars(
        # With the lock, so that a deadline that is brought forward meanwhile is not counted from the old one.
        select(Clock)
        .where(col(Clock.id) == clock_id, col(Clock.step) == step, col(Clock.next_at) <= now, RUNNING)
        .with_for_update()
    ).one_or_none()
    case = tx.get(Case, clock.case) if clock else None
    if clock is None or case is None:
        return False
    clock.step, clock.next_at = step + 1, step_at(clock.kind, step + 1, clock.due_at, clock.span or 0)
    tx.flush()
    stall = mark(tx, case, OverlayKind.STALL, now) if step == Step.LAPSED and clock.kind in STALLING else []
    _tell(tx, watch, case, f"{clock.kind}:{clock.id.hex}:{step}", step, now, kind=clock.kind, events=stall)
    return True


def _tell(
    tx: Tx,
    watch: Watch,
    case: Case,
    about: str,
    step: int,
    now: datetime,
    *,
    kind: str = ClockKind.CLAIM,
    events: Sequence[NewEvent] = (),
) -> None:
    """Write the outbox rows and the event of one step.

    kind: of the clock; one that is no claim's is named. events: further ones of the step.
    """
    told = on_duty(tx, watch, case, step)
    _ring(tx, watch, told, about, now, case=case.id)
    what = EventType.CLOCK_LAPSED if step == Step.LAPSED else EventType.CLOCK_ESCALATED
    fields = {"step": step, "told": told} | ({} if kind == ClockKind.CLAIM else {"clock": str(kind)})
    told_event = NewEvent(what, now, SYSTEM, state_class(case.state), case.due_at, fields)
    change(tx, watch.ledger, case, [told_event, *events])


def _ring(tx: Tx, watch: Watch, posts: Sequence[str], about: str, now: datetime, case: UUID | None = None) -> None:
    """Write a row for each number of `posts`; where there is none, one that has failed, so that it is counted."""
    job = partial(
        outbox.job, watch.row_key, outbox.RING, case=case, language=STAFF_LANGUAGE, now=now, within=RING_WITHIN
    )
    phones = [f"{post}#{number}" for post in posts for number in range(len(watch.duty[post]))]
    rows = [job(f"{about}:{phone}", duty=phone) for phone in phones]
    if not rows:
        log.error("nobody_on_duty")
        rows = [job(about) | {"state": JobState.FAILED, "done_at": now}]
    tx.insert(OutboxJob, rows)


def ring_oversight(tx: Tx, watch: Watch, about: str, now: datetime) -> None:
    """Ask whoever is on duty in any oversight unit to look, about no case: the ledger halted, or a census differs.

    about: names the occasion; each number is told of it once.
    """
    posts = [card.unit for card in watch.cards.of_kind(UnitKind.OVERSIGHT) if watch.duty.get(card.unit)]
    _ring(tx, watch, posts, about, now)


def on_duty(session: Session, watch: Watch, case: Case, step: int) -> list[str]:
    """Return the posts of the duty list that are told at `step`. Where nobody is on duty, the next step's are.

    Nobody is told of a case behind the wall who holds no seal of it.
    """
    for later in range(step, Step.EVERY_OVERSIGHT + 1):
        posts = [post for post in _posts(session, watch, case, later) if watch.duty.get(post)]
        if posts:
            return posts
    return []


def _posts(session: Session, watch: Watch, case: Case, step: int) -> list[str]:
    if step < Step.LAPSED:
        return [case.unit]
    if step == Step.LAPSED:
        return [case.unit + SUPERVISOR, case.unit]
    if step == Step.OVERSIGHT:
        return [case.oversight]
    barred = barred_units(session, watch.row_key, case.id, watch.cards)
    every = [card.unit for card in watch.cards.of_kind(UnitKind.OVERSIGHT) if card.unit not in barred]
    if not case.walled:
        return every
    holders = set(session.scalars(select(col(CaseSeal.unit)).where(col(CaseSeal.case) == case.id)).all())
    return [unit for unit in every if unit in holders]
