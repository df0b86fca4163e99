"""What the provider still holds of what we have stored, deleted there (twilio.md section 9).

The provider's own list says what is left, so nothing is forgotten by a crash, and no id of a message has to be kept.
A copy goes only when its words are stored here; what is not stored stays there as the second chance.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Generic, Protocol, TypeVar

import structlog
from sqlalchemy import literal, select
from sqlmodel import Session, col

from service import outbox
from service.db import Sessions, Tx, write
from service.errors import CarrierFault, Refused
from service.ledger.events import SYSTEM, EventType, Ledger, NewEvent, StateClass, append, fixed_chain
from service.metrics import seen
from service.models import Message, OutboxJob, Sign
from service.vault import boxes

T = TypeVar("T")

log = structlog.get_logger("copies")

EVERY = timedelta(minutes=1)
KEPT_AT_MOST = timedelta(days=14)  # for so long deleting is tried
LATE = timedelta(minutes=10)  # content should be gone by then (twilio.md section 9)
STRANGER = 3 * outbox.LOOKING  # a text of ours that no row knows by then is no row's
LONGEST_PAUSE = timedelta(hours=6)
CLEAR = "provider_copies_clear"
TURN = "provider_copies_turn"


class Copy(Protocol):
    """A message that the provider holds. final: its state will not change any more."""

    @property
    def sid(self) -> str:
        """The provider's id."""

    @property
    def inbound(self) -> bool:
        """Whether it came to us."""

    @property
    def status(self) -> str:
        """The provider's word for how far it is."""

    @property
    def final(self) -> bool:
        """Whether that will not change any more."""

    @property
    def error_code(self) -> int | None:
        """The provider's code for what went wrong."""

    @property
    def at(self) -> datetime:
        """When it was made."""


class Holder(Protocol[T]):
    """A provider that holds copies. Both raise CarrierFault."""

    @property
    def name(self) -> str:
        """The provider's, as stored with each message."""

    def copies(self, since: datetime) -> Iterator[T]:
        """Yield what is held of messages since then."""

    def delete(self, copy: T) -> bool:
        """Delete one; return False when that is not possible yet."""


C = TypeVar("C", bound=Copy)


@dataclass
class Copies(Generic[C]):
    """One worker's round of deleting. Pauses between tries are in memory: a new worker tries at once."""

    sessions: Sessions
    ledger: Ledger
    holder: Holder[C] = field(repr=False)
    row_key: bytes = field(repr=False)
    _tries: dict[str, tuple[int, datetime]] = field(default_factory=dict, repr=False)

    def clear(self, now: datetime, stopping: Callable[[], bool] = outbox.never) -> int:
        """Delete at the provider what is stored here, and return how many went. Of several workers one at a time does.

        When it does not answer, or `stopping` says so, the rest is left for the next round.
        Raises CarrierFault when the list cannot be had.
        """
        if not write(self.sessions, partial(_turn, now=now)):
            return 0
        held = list(self.holder.copies(now - KEPT_AT_MOST))
        left: list[C] = []
        answers = True
        for chunk in _chunks(held, 100):
            with self.sessions.read() as session:
                names = {copy.sid: boxes.provider_name(self.row_key, copy.sid) for copy in chunk}
                ours = _stored(session, self.holder.name, list(names.values()))
            self._report([copy for copy in chunk if not copy.inbound and copy.final], names, now)
            for copy in chunk:
                known = names[copy.sid] in ours or (not copy.inbound and now - copy.at > STRANGER)
                gone = False
                if known and copy.final and answers and not stopping() and self._is_due(copy, now):
                    gone, answers = self._delete(copy, now)
                if not gone:
                    left.append(copy)
        waiting = {copy.sid for copy in left}
        self._tries = {sid: tried for sid, tried in self._tries.items() if sid in waiting}
        deleted = len(held) - len(left)
        write(self.sessions, partial(self._note, deleted=deleted, left=left, now=now))
        return deleted

    def _is_due(self, copy: C, now: datetime) -> bool:
        return copy.sid not in self._tries or self._tries[copy.sid][1] <= now

    def _delete(self, copy: C, now: datetime) -> tuple[bool, bool]:
        """Return whether it is gone, and whether the provider answers."""
        tries, _ = self._tries.get(copy.sid, (0, now))
        answers = True
        try:
            if self.holder.delete(copy):
                return True, True
        except CarrierFault as fault:
            answers = isinstance(fault, Refused)
            log.warning("copy_not_deleted", error=type(fault).__name__, count=tries + 1)
        self._tries[copy.sid] = (tries + 1, now + min(LONGEST_PAUSE, EVERY * 2 ** min(tries, 10)))
        return False, answers

    def _report(self, copies: Sequence[Copy], names: dict[str, bytes], now: datetime) -> None:
        """Keep how a text of ours ended before its copy goes: the provider's call may never have come."""
        rows = [{"sid": names[copy.sid], "status": copy.status, "code": copy.error_code, "at": now} for copy in copies]
        if rows:
            write(self.sessions, partial(outbox.report, rows=rows))

    def _note(self, tx: Tx, *, deleted: int, left: Sequence[Copy], now: datetime) -> None:
        late = [copy for copy in left if now - copy.at > LATE]
        if late:
            log.error("provider_still_holds", count=len(late))
        else:
            seen(tx, CLEAR, now)
        if deleted:
            event = NewEvent(EventType.COPY_DELETED, now, SYSTEM, StateClass.SYSTEM, fields={"count": deleted})
            append(tx, self.ledger, fixed_chain("provider"), [event])


def _turn(tx: Tx, *, now: datetime) -> bool:
    """Return whether this worker has the next turn."""
    last = tx.scalars(select(Sign).where(col(Sign.name) == TURN).with_for_update()).one_or_none()
    # One from further ahead was left by a host whose clock is wrong: it must not stop the others.
    if last is not None and now - EVERY < last.at < now + EVERY:
        return False
    seen(tx, TURN, now)
    return True


def _stored(session: Session, provider: str, names: Sequence[bytes]) -> set[bytes]:
    """Return which of the provider's ids, as keyed names, belong to a message or an outbox row."""
    inbound = select(col(Message.delivery)).where(
        col(Message.provider) == literal(provider), col(Message.delivery).in_(names)
    )
    outbound = select(col(OutboxJob.sid)).where(col(OutboxJob.sid).in_(names))
    return set(session.scalars(inbound).all()) | {sid for sid in session.scalars(outbound).all() if sid}


def _chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
