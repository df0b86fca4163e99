"""What would settle a case in silence, as events that nobody can delete (casework.md sections 7 and 8).

Settlement, compensation and withdrawal close nothing. Anybody who reads the case may record one; it raises the level to
at least P2, tells oversight in its own transaction, and stops a proposal to close.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import and_, exists, select
from sqlmodel import Session, col

from service.cases import OpenedCase, change, mark, move, state_class, stop_closure
from service.casework import Casework, read_case, said
from service.clocks import RUNNING, answer_time, clock_row
from service.db import Sessions, Tx
from service.decisions import page, rise
from service.errors import InvalidForm
from service.ledger.events import SYSTEM, EventType, NewEvent
from service.models import Case, Clock, ClockKind, LedgerEvent, Level, OutboxJob, OverlayKind, State
from service.outbox import each
from service.walls import Viewer

# What a family, a broker or an official calls the end of a case. None of them is one (casework.md section 7).
KINDS = (
    *("settled", "conciliated", "compensated", "family_withdrew", "victim_refused", "victim_consented"),
    *("solved_at_commune", "money_offered", "threat", "other"),
)
REVIEW_WITHIN = timedelta(days=5)
HEARD = ("heard_alone", "earlier_hearing", "would_harm")  # how the child was heard, or why not again


@dataclass(frozen=True, slots=True)
class Offer:
    """A settlement event as a form brings it. amount: whole units of `currency`; never asked of a family.

    words: ``what``, and as far as known ``broker``, ``office``, ``rank``, ``unit``, ``where``, ``when``, ``present``,
    ``told_by``; each is sealed to the case.
    """

    kind: str
    words: Mapping[str, str]
    official_present: bool = False
    amount: int | None = None
    currency: str = ""


def record(
    tx: Tx, work: Casework, viewer: Viewer, opened: OpenedCase, offer: Offer, *, version: int, now: datetime
) -> None:
    """Record a settlement event. Nobody approves it, and it ends nothing.

    Raises NoSuchCase, Forbidden, CaseMoved, InvalidForm.
    """
    case = read_case(tx, viewer, opened, version)
    if offer.kind not in KINDS:
        raise InvalidForm("kind", "Choose what was offered or said.")
    if offer.amount is not None and (offer.amount < 0 or offer.currency not in ("KHR", "USD", "THB")):
        raise InvalidForm("amount", "Give a whole number and riel, dollar or baht.")
    fields = said(tx, work, case, offer.words, needed=("what",))
    fields |= said(tx, work, case, {"kind": offer.kind}, needed=("kind",))
    fields |= {"official": offer.official_present}
    if offer.amount is not None:
        fields |= said(tx, work, case, {"amount": f"{offer.amount} {offer.currency}"}, needed=("amount",))
    what = EventType.COMPENSATION_SIGNALLED if offer.kind == "compensated" else EventType.SETTLEMENT_SIGNALLED
    event = partial(NewEvent, what, now, viewer.actor, state_class(case.state), fields=fields)
    _raise_and_tell(tx, work, case, event, now)
    stop_closure(tx, work.ledger, case, "settlement", now)


def withdraw(
    tx: Tx, work: Casework, viewer: Viewer, opened: OpenedCase, words: Mapping[str, str], *, version: int, now: datetime
) -> None:
    """Record that somebody says stop: oversight reviews it within five days, and the case goes on by default (row 11).

    words: ``wanted_by``, ``where``, ``present``, and ``what``. Clocks, acts and steps go on meanwhile.
    Raises NoSuchCase, Forbidden, CaseMoved, WrongState, InvalidForm.
    """
    case = read_case(tx, viewer, opened, version)
    fields = said(tx, work, case, words, needed=("wanted_by", "where", "present"))
    stop_closure(tx, work.ledger, case, "withdrawal", now)
    by = clock_row(case.id, ClockKind.REVIEW, now + REVIEW_WITHIN, EventType.WITHDRAWAL_RECORDED, answer_time(Level.P2))
    who: dict[str, Any] = {"actor": viewer.actor, "member": viewer.member}
    move(tx, work.ledger, case, EventType.WITHDRAWAL_RECORDED, now=now, fields=fields, starts=[by], **who)
    _raise_and_tell(tx, work, case, None, now)


def hold_review(
    tx: Tx, work: Casework, viewer: Viewer, opened: OpenedCase, words: Mapping[str, str], *, version: int, now: datetime
) -> None:
    """Put the review's record into the history: the case goes on from where it was (row 12).

    words: ``advocate``; ``heard``, one of `HEARD`; ``who_proposed``, ``in_room``, ``pressure``, ``wish`` of the child,
    ``guardian``, ``next``. Raises NoSuchCase, Forbidden, CaseMoved, WrongState, InvalidForm.
    """
    case = read_case(tx, viewer, opened, version)
    if words.get("heard") not in HEARD:
        raise InvalidForm("heard", "Say how the child was heard, or that it would harm to hear it again.")
    needed = ("advocate", "heard", "who_proposed", "in_room", "pressure", "wish", "guardian", "next")
    fields = said(tx, work, case, words, needed=needed)
    who: dict[str, Any] = {"actor": viewer.actor, "member": viewer.member}
    meets = [ClockKind.REVIEW]
    move(tx, work.ledger, case, EventType.REVIEW_HELD, now=now, fields=fields, meets=meets, **who)


def lapse_reviews(sessions: Sessions, work: Casework, now: datetime) -> int:
    """End every review that nobody held in time: the case goes on, and the review is owed. Return how many."""
    late = and_(col(Clock.kind) == ClockKind.REVIEW, RUNNING, col(Clock.due_at) < now)
    with sessions.read() as session:
        cases = session.scalars(select(col(Clock.case)).where(late).limit(1000)).all()
    return each(sessions, [partial(_lapse_review, work=work, case_id=case, now=now) for case in cases])


def _lapse_review(tx: Tx, *, work: Casework, case_id: UUID, now: datetime) -> bool:
    case = tx.get(Case, case_id)
    if case is None or case.state != State.WITHDRAWAL_REVIEW:
        return False
    owed = mark(tx, case, OverlayKind.REVIEW_OWED, now)
    meets = [ClockKind.REVIEW]
    move(tx, work.ledger, case, EventType.REVIEW_LAPSED, actor=SYSTEM, now=now, meets=meets, after=owed)
    return True


def ever_signalled(session: Session, case: Case) -> bool:
    """Return whether a settlement or a withdrawal was ever recorded of a case: nothing takes that back."""
    kinds = (EventType.SETTLEMENT_SIGNALLED, EventType.COMPENSATION_SIGNALLED, EventType.WITHDRAWAL_RECORDED)
    of_case = exists().where(col(LedgerEvent.case) == case.chain, col(LedgerEvent.type).in_(kinds))
    return bool(session.scalar(select(of_case)))


def _raise_and_tell(tx: Tx, work: Casework, case: Case, event: Any, now: datetime) -> None:
    """Raise to at least P2, mark the case, and have its oversight told, with `event` in front if there is one."""
    columns: dict[str, Any] = {}
    raised: Sequence[NewEvent] = ()
    if case.level > Level.P2 and case.state != State.CLOSED:
        columns, raised = rise(tx, work, case, Level.P2, about=uuid4(), now=now)
    marked = mark(tx, case, OverlayKind.SETTLEMENT, now)
    tx.insert(OutboxJob, [page(work.row_key, uuid4(), case.id, now, case.oversight)])
    due_at = columns.get("due_at", case.due_at)
    first = [event(deadline=due_at)] if event is not None else []
    change(tx, work.ledger, case, [*first, *raised, *marked], **columns)
