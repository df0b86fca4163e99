"""A tipster's way back by return code: status, neutral questions, "something is wrong" (keys.md 7, casework.md 13).

What was told never stands here, only how far it is. The mailbox's private half exists in memory, for the one request
in which the code was typed.
"""

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import partial
from typing import Any, Protocol, TypeVar
from uuid import UUID, uuid4

import structlog
from sqlalchemy import and_, exists, func, select, update
from sqlmodel import Session, col

from service import outbox
from service.cases import case_public, find, state_class
from service.clocks import RUNNING, challenge_clock_row
from service.db import ATTEMPTS, Sessions, Tx
from service.errors import CannotOpen, Conflict, Forbidden, InvalidForm, NotFound, StorageUnavailable, WrongState
from service.ledger.events import SYSTEM, EventType, Ledger, NewEvent, Sealed, append, utc_seconds
from service.models import Case, Clock, ClockKind, LedgerEvent, Mailbox, Message, Question, Role, State, Tip
from service.vault import boxes, envelope
from service.vault import mailbox as keys
from service.vault.envelope import Envelope, Kind
from service.vault.mailbox import Address, Prepared
from service.walls import Viewer, readable

T = TypeVar("T")

log = structlog.get_logger("mailbox")

RECEIVED, BEING_READ = "received", "being_read"
# What a tipster sees of a state (casework.md section 13); a review of a withdrawal shows what stood before it.
_STATUS: Mapping[str, str] = {
    State.CLAIMED: "responsible",
    State.IN_ACTION: "action",
    State.REFERRED: "action",
    State.WITH_AUTHORITY: "authorities",
    State.IN_COURT: "court",
    State.CLOSURE_PROPOSED: "nearly_finished",
    State.CLOSED: "finished",
    State.WATCH: "kept",
}
STATUSES = (RECEIVED, BEING_READ, *dict.fromkeys(_STATUS.values()))

PHNOM_PENH = timedelta(hours=7)
SOONEST, LATEST = timedelta(hours=6), timedelta(hours=48)
ANSWER_WITHIN = timedelta(days=10)
CHALLENGED = and_(RUNNING, col(Clock.kind) == ClockKind.CHALLENGE)
OPEN_QUESTIONS = 3
LONGEST_QUESTION = 300
ASKERS = frozenset({Role.SCREENER, Role.INVESTIGATOR, Role.SUPERVISOR, Role.ADVOCATE, Role.LEGAL, Role.OVERSIGHT})

# Whoever finds a child's code reads the questions: they must not tell what this is about.
_TELLING = re.compile(
    r"\b(abus|case|child|crime|exploit|hotline|hurt|kid|police|prosecut|rape|report|sex|suspect|tip\b|tips\b|touch|"
    r"victim|violen)|កុមារ|ក្មេង|ប៉ូលិស|នគរបាល|រំលោភ|ផ្លូវភេទ|ជនរងគ្រោះ|រាយការណ៍|សំណុំរឿង|ជនសង្ស័យ|ហិង្សា|បទល្មើស",
    re.IGNORECASE,
)
_LEADING_AWAY = re.compile(r"://|www\.|@|(?:\d[\s.-]*){6,}")


@dataclass(frozen=True, slots=True)
class Receipt:
    """A file that proves without our help that something was taken (ledger.md section 6). grade: how well."""

    grade: str  # promise, integrated or witnessed
    text: bytes


Receipts = Callable[[Session, str], Receipt | None]


def no_receipt(_session: Session, _eid: str) -> None:
    """Return that there is no receipt of this event yet: for an installation whose log is not sequenced."""


# --- rows -----------------------------------------------------------------------------------------------


def today(now: datetime) -> date:
    """Return the day in Phnom Penh."""
    return (now + PHNOM_PENH).date()


def mailbox_row(row_key: bytes, tip: UUID, prepared: Prepared, now: datetime) -> dict[str, Any]:
    """Return the row of a new tip's mailbox, tagged. prepared: what was derived from its code beforehand."""
    mailbox = uuid4()
    public, wrapped = keys.new_mailbox(prepared.address.kek, mailbox)
    row: dict[str, Any] = {
        "id": mailbox,
        "tip": tip,
        "locator": prepared.address.locator,
        "public": public,
        "wrapped": wrapped,
        "tag_key": prepared.tag_key,
        "status": RECEIVED,
        "since": today(now),
        "next_status": None,
        "next_since": None,
        "next_at": None,
        "number": 0,
    }
    return row | {"row_tag": boxes.row_tag(row_key, _fixed(Mailbox, row))}


def _fixed(table: type[Mailbox] | type[Question], row: Mapping[str, Any]) -> dict[str, object]:
    """Return all columns of a row but its tag, as its tag is over them (keys.md section 3)."""
    fixed: dict[str, object] = {"table": str(table.__tablename__)}
    for name, value in row.items():
        if isinstance(value, datetime):
            value = utc_seconds(value)
        elif isinstance(value, date):
            value = value.isoformat()
        if name != "row_tag":
            fixed[name] = value
    return fixed


def check_tag(row_key: bytes, row: Mailbox | Question) -> None:
    """Return if the row carries our tag. Raises CannotOpen for a planted, changed or swapped one."""
    boxes.check_row_tag(row_key, _fixed(type(row), row.model_dump()), row.row_tag)


# --- the tipster's side ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, repr=False)
class Opened:
    """What a code shows, for one response. questions: number and words of those that have no answer yet."""

    mailbox: UUID
    tip: UUID
    status: str
    since: date
    questions: tuple[tuple[int, str], ...]
    grade: str | None


class GroupCommit(Protocol):
    """What this module needs of ``db.Writer``."""

    async def submit(self, use_case: Callable[[Tx], T], *, blind: bool = False) -> T:
        """Run the use case, commit durably, return its result."""


@dataclass(frozen=True)
class Mailboxes:
    """The public process's access to mailboxes. Without a code it finds and opens none."""

    sessions: Sessions
    writer: GroupCommit
    ledger: Ledger
    row_key: bytes
    receipts: Receipts = no_receipt

    def open(self, address: Address) -> Opened | None:
        """Return what the mailbox at `address` shows; None if there is none, or none of ours. May block.

        Raises StorageUnavailable.
        """
        with self.sessions.read() as session:
            mailbox = session.scalars(select(Mailbox).where(col(Mailbox.locator) == address.locator)).one_or_none()
            if mailbox is None:
                return None
            try:
                check_tag(self.row_key, mailbox)
                private = keys.open_mailbox(address.kek, mailbox.id, mailbox.public, mailbox.wrapped)
                questions = _open_questions(session, self.row_key, mailbox, private)
            except CannotOpen:
                log.error("mailbox_is_not_ours")
                return None
            receipt = self._receipt(session, mailbox)
            grade = receipt.grade if receipt is not None else None
            return Opened(mailbox.id, mailbox.tip, mailbox.status, mailbox.since, questions, grade)

    def receipt(self, mailbox_id: UUID) -> Receipt | None:
        """Return the best receipt of the tip behind a mailbox that was opened, or None. May block."""
        with self.sessions.read() as session:
            mailbox = session.get(Mailbox, mailbox_id)
            return self._receipt(session, mailbox) if mailbox is not None else None

    def _receipt(self, session: Session, mailbox: Mailbox) -> Receipt | None:
        eid = session.scalar(
            select(col(LedgerEvent.eid))
            .join(Case, col(Case.chain) == col(LedgerEvent.case))
            .join(Tip, col(Tip.case) == col(Case.id))
            .where(col(Tip.id) == mailbox.tip, func.substr(col(LedgerEvent.leaf), 73, keys.TAG_SIZE) == _first(mailbox))
        )
        return self.receipts(session, eid) if eid is not None else None

    async def challenge(self, tip: UUID, now: datetime) -> None:
        """Write that the tipster says that something is wrong: see `raise_challenge`. Raises Unavailable."""
        for _ in range(ATTEMPTS):
            try:
                return await self.writer.submit(partial(raise_challenge, ledger=self.ledger, tip_id=tip, now=now))
            except Conflict:  # another event of the case came first
                continue
        raise StorageUnavailable("Too many messages at once.")


def _first(mailbox: Mailbox) -> bytes:
    return keys.tag(mailbox.tag_key, 0)


def _open_questions(session: Session, row_key: bytes, mailbox: Mailbox, private: bytes) -> tuple[tuple[int, str], ...]:
    """Return the questions without an answer. One that is not ours is left out: nobody else asks a child anything."""
    answered, told = _answered(session, [mailbox.tip]), []
    for question in session.scalars(
        select(Question).where(col(Question.mailbox) == mailbox.id).order_by(col(Question.number))
    ).all():
        if (mailbox.tip, question.number) in answered:
            continue
        try:
            check_tag(row_key, question)
            sealed = Envelope(question.box_header, question.box_seal, question.box_body)
            told.append((question.number, envelope.open_words(private, sealed)))
        except CannotOpen:
            log.error("question_is_not_ours")
    return tuple(told)


def _answered(session: Session, tips: Sequence[UUID]) -> set[tuple[UUID, int]]:
    """Return tip and number of the questions that were answered."""
    if not tips:
        return set()
    marked = select(col(Message.tip), col(Message.mark)).where(
        col(Message.tip).in_(tips), col(Message.mark).contains("answer:")
    )
    return {
        (tip, int(code.removeprefix("answer:")))
        for tip, mark in session.execute(marked).all()
        for code in mark.split()
        if code.startswith("answer:")
    }


def raise_challenge(tx: Tx, ledger: Ledger, tip_id: UUID, now: datetime) -> None:
    """Write that a tipster says that something is wrong, once while it has no answer (casework.md sections 3 and 13).

    It goes to the case's oversight unit, whose phones are told at once, and to every oversight unit when ten days
    have gone by. The unit that works the case is not told.
    """
    case = tx.get_one(Case, tx.get_one(Tip, tip_id).case)
    if tx.scalar(select(exists().where(col(Clock.case) == case.id, CHALLENGED))):
        return
    now = now.replace(second=0, microsecond=0)  # as events of a tip have it: a second tells which visit it was
    tx.insert(Clock, [challenge_clock_row(case.id, now, now + ANSWER_WITHIN)])
    event = NewEvent(EventType.CHALLENGE_RAISED, now, SYSTEM, state_class(case.state), case.due_at)
    append(tx, ledger, case.chain, [event])


# --- what is shown, and when ----------------------------------------------------------------------------


def status_of(state: str, read: bool) -> str | None:
    """Return what a tipster sees of a case's state; None to leave what stood before. read: somebody opened it."""
    if state == State.OPEN:
        return BEING_READ if read else RECEIVED
    return _STATUS.get(state)


def delay() -> timedelta:
    """Return how long a change is held back, 6 to 48 hours: so that nobody can tell by the time who was told."""
    return timedelta(seconds=random.SystemRandom().randrange(int(SOONEST.total_seconds()), int(LATEST.total_seconds())))


def show_changes(
    sessions: Sessions,
    ledger: Ledger,
    row_key: bytes,
    now: datetime,
    stopping: Callable[[], bool] = outbox.never,
    *,
    draw: Callable[[], timedelta] = delay,
) -> int:
    """Hold changes of status back, show those whose time has come, and return how many mailboxes were changed.

    Each change that is shown is a ``tip:status:changed`` with the tag T_i of the tipster's code. Safe to run at once.
    """
    read = exists().where(col(LedgerEvent.case) == col(Case.chain), col(LedgerEvent.type) == EventType.CONTENT_OPENED)
    with sessions.read() as session:
        rows = session.execute(
            select(Mailbox.id, Mailbox.status, Mailbox.next_status, Mailbox.next_at, Case.state, read)  # type: ignore[call-overload]
            .join(Tip, col(Tip.id) == col(Mailbox.tip))
            .join(Case, col(Case.id) == col(Tip.case))
        ).all()
    moved = [
        (mailbox, seen)
        for mailbox, status, waiting, at, state, seen in rows
        if (status_of(state, seen) or waiting or status) != (waiting or status) or (at is not None and at <= now)
    ]
    steps = [
        partial(_move, ledger=ledger, row_key=row_key, mailbox_id=mailbox, read=seen, now=now, draw=draw)
        for mailbox, seen in moved
    ]
    return outbox.each(sessions, steps, stopping)


def _move(
    tx: Tx,
    *,
    ledger: Ledger,
    row_key: bytes,
    mailbox_id: UUID,
    read: bool,
    now: datetime,
    draw: Callable[[], timedelta],
) -> bool:
    """Hold one change back, or show it."""
    mailbox = tx.get(Mailbox, mailbox_id, with_for_update=True)
    if mailbox is None:
        return False
    try:
        check_tag(row_key, mailbox)
    except CannotOpen:
        log.error("mailbox_is_not_ours")
        return False
    case = tx.get_one(Case, tx.get_one(Tip, mailbox.tip).case)
    values: dict[str, Any] = {}
    wanted = status_of(case.state, read) or mailbox.next_status or mailbox.status
    if mailbox.next_status is not None and wanted == mailbox.status:
        values = {"next_status": None, "next_since": None, "next_at": None}  # taken back before anybody saw it
    elif mailbox.next_at is not None and mailbox.next_at <= now:
        values = {"status": mailbox.next_status, "since": mailbox.next_since, "number": mailbox.number + 1}
        values |= {"next_status": None, "next_since": None, "next_at": None}
        event = NewEvent(
            EventType.STATUS_CHANGED,
            now,
            SYSTEM,
            state_class(case.state),
            case.due_at,
            {"status": mailbox.next_status},
            keys.tag(mailbox.tag_key, mailbox.number + 1),
        )
        append(tx, ledger, case.chain, [event])
    elif mailbox.next_at is None and wanted != mailbox.status:
        # What comes after it waits for its own time: a change is never shown sooner than its six hours.
        at = (now + draw()).replace(microsecond=0)
        values = {"next_status": wanted, "next_since": today(now), "next_at": at}
    if not values:
        return False
    tag = boxes.row_tag(row_key, _fixed(Mailbox, mailbox.model_dump() | values))
    tx.execute(update(Mailbox).where(col(Mailbox.id) == mailbox.id).values(**values, row_tag=tag))
    return True


# --- the staff's side -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Asked:
    """A question as staff see it. words: None while the case is sealed."""

    number: int
    at: datetime
    words: str | None
    answered: bool


def not_neutral(words: str) -> str | None:
    """Return why a question must not be asked like this, in words for who wrote it; None if it may."""
    if not words.strip():
        return "Write a question."
    if len(words) > LONGEST_QUESTION:
        return "Ask in at most 300 characters."
    if _TELLING.search(words):
        return "Leave out words that tell what this is about: somebody else may find the number."
    if _LEADING_AWAY.search(words):
        return "Leave out addresses and telephone numbers: questions lead nowhere else."
    return None


def ask(
    tx: Tx, ledger: Ledger, row_key: bytes, viewer: Viewer, case_id: UUID, mailbox_id: UUID, words: str, now: datetime
) -> None:
    """Ask a tipster a neutral question through the mailbox: sealed to the case and to the mailbox (keys.md 6.5).

    Raises NoSuchCase, NotFound, Forbidden, WrongState, CannotOpen, InvalidForm for words that say too much.
    """
    case = find(tx, viewer, case_id)
    if viewer.role not in ASKERS:
        raise Forbidden("This role asks tipsters nothing.")
    if (why := not_neutral(words)) is not None:
        raise InvalidForm("words", why)
    mailbox = tx.scalars(
        select(Mailbox)
        .join(Tip, col(Tip.id) == col(Mailbox.tip))
        .where(col(Mailbox.id) == mailbox_id, col(Tip.case) == case.id)
        .with_for_update(of=Mailbox)
    ).one_or_none()
    if mailbox is None:
        raise NotFound("There is no such mailbox.")
    check_tag(row_key, mailbox)
    before = tx.scalars(select(col(Question.number)).where(col(Question.mailbox) == mailbox.id)).all()
    if len(set(before) - {number for _, number in _answered(tx, [mailbox.tip])}) >= OPEN_QUESTIONS:
        raise WrongState("Three questions wait for an answer. More would be too many.")
    number, question, now = 1 + max(before, default=0), uuid4(), now.replace(microsecond=0)
    public, said = case_public(tx, case, row_key), words.strip()
    ours = envelope.seal_words(public, envelope.header(case.id, case.generation, now, question, Kind.QUESTION), said)
    theirs = envelope.seal_words(mailbox.public, envelope.header(mailbox.id, 1, now, question, Kind.QUESTION), said)
    row: dict[str, Any] = {
        "id": question,
        "mailbox": mailbox.id,
        "number": number,
        "case": case.id,
        "generation": case.generation,
        "asked_at": now,
        "header": ours.header,
        "seal": ours.seal,
        "body": ours.body,
        "box_header": theirs.header,
        "box_seal": theirs.seal,
        "box_body": theirs.body,
    }
    tx.insert(Question, [row | {"row_tag": boxes.row_tag(row_key, _fixed(Question, row))}])
    fields = {"number": number, "envelope": Sealed(envelope.commitment(ours, said), public)}
    event = NewEvent(EventType.ASKS_SENT, now, viewer.actor, state_class(case.state), case.due_at, fields)
    append(tx, ledger, case.chain, [event])


def of_case(session: Session, case: Case) -> list[UUID]:
    """Return the mailboxes of a case's tips, in a fixed order."""
    return list(
        session.scalars(
            select(col(Mailbox.id))
            .join(Tip, col(Tip.id) == col(Mailbox.tip))
            .where(col(Tip.case) == case.id)
            .order_by(col(Tip.received_hour), col(Mailbox.id))
        ).all()
    )


def asked(session: Session, row_key: bytes, case: Case, privates: Mapping[int, bytes]) -> list[Asked]:
    """Return the questions of a case, oldest first. privates: its private keys by generation; none keeps them sealed.

    Raises CannotOpen if a row was changed or planted.
    """
    rows = session.execute(
        select(Question, col(Mailbox.tip))
        .join(Mailbox, col(Mailbox.id) == col(Question.mailbox))
        .where(col(Question.case) == case.id)
        .order_by(col(Question.asked_at), col(Question.number))
    ).all()
    answered, told = _answered(session, [tip for _, tip in rows]), []
    for question, tip in rows:
        check_tag(row_key, question)
        private = privates.get(question.generation)
        sealed = Envelope(question.header, question.seal, question.body)
        words = envelope.open_words(private, sealed) if private is not None else None
        told.append(Asked(question.number, question.asked_at, words, (tip, question.number) in answered))
    return told


def challenged(session: Session, viewer: Viewer) -> dict[UUID, datetime]:
    """Return the cases whose tipster says that something is wrong, and until when that must be answered.

    Oversight's alone: for everybody else there are none.
    """
    if viewer.role != Role.OVERSIGHT:
        return {}
    rows = session.execute(
        select(col(Clock.case), col(Clock.due_at))
        .join(Case, col(Case.id) == col(Clock.case))
        .where(CHALLENGED, readable(viewer))
        .order_by(col(Clock.due_at))
    ).all()
    return {case: due_at for case, due_at in rows}  # noqa: C416 - rows are no pairs to the type checker


def answer_challenge(
    tx: Tx, ledger: Ledger, row_key: bytes, viewer: Viewer, case_id: UUID, note: str, now: datetime
) -> None:
    """Write what oversight found about a tipster's "something is wrong", sealed to the case.

    Raises NoSuchCase, Forbidden, WrongState when nothing waits for an answer, InvalidForm without a note.
    """
    case = find(tx, viewer, case_id)
    if viewer.role != Role.OVERSIGHT:
        raise Forbidden("Oversight answers this.")
    if not note.strip():
        raise InvalidForm("note", "Write what you found.")
    met = tx.execute(update(Clock).where(col(Clock.case) == case.id, CHALLENGED).values(met_at=now))
    if met.rowcount < 1:  # type: ignore[attr-defined]
        raise WrongState("Nothing waits for an answer.")
    fields = {"note": Sealed(note.strip(), case_public(tx, case, row_key))}
    event = NewEvent(EventType.CHALLENGE_ANSWERED, now, viewer.actor, state_class(case.state), case.due_at, fields)
    append(tx, ledger, case.chain, [event])
