"""The worker carries contacts to this generation's key and name, then destroys the old ones (keys.md 6.11 and 8).

Numbers in old backups die with the relay's old key. A contact is erased thirty days after its last need.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from uuid import UUID

import structlog
from sqlalchemy import ColumnElement, and_, exists, or_, select, update
from sqlmodel import Session, col

from service import outbox
from service.db import Sessions, Tx, write
from service.draft import Pepper, naming
from service.errors import CannotOpen
from service.keyring import Keyring
from service.ledger.events import SYSTEM, EventType, Ledger, NewEvent, StateClass, append, fixed_chain
from service.models import Case, Contact, JobState, LedgerEvent, OutboxJob, State, Tip
from service.numbers import Peppers, relay_keys, sealing
from service.vault import boxes
from service.vault.cards import RelayKey
from service.vault.contacts import contact_row, tip_tag
from service.vault.relaying import open_contact, reseal_contact

log = structlog.get_logger("carrying")

KEPT_AFTER = timedelta(days=30)  # keys.md section 8: erased this long after the last need
OPT_OUT_KEPT = timedelta(days=365)
GRACE = timedelta(days=1)  # a process that has not heard of a new generation still seals to the old one
BATCH = 50


def needed(now: datetime) -> ColumnElement[bool]:
    """Return which contacts are needed: a case of theirs is open, or was 30 days ago, or a reply is owed."""
    of_contact = and_(col(Tip.contact) == col(Contact.id), col(Case.id) == col(Tip.case))
    lately = exists().where(
        col(LedgerEvent.case) == col(Case.chain),
        col(LedgerEvent.seq) == col(Case.version),
        col(LedgerEvent.at) > now - KEPT_AFTER,
    )
    owed = (JobState.WAITING, JobState.SENDING, JobState.CHECKING)
    return or_(
        exists().where(of_contact, or_(col(Case.state) != State.CLOSED, lately)),
        exists().where(col(OutboxJob.contact) == col(Contact.id), col(OutboxJob.state).in_(owed)),
    )


def silenced(now: datetime) -> ColumnElement[bool]:
    """Return which contacts are kept a year because their reader wants no texts."""
    return and_(col(Contact.opted_out_at).is_not(None), col(Contact.opted_out_at) > now - OPT_OUT_KEPT)


@dataclass
class Carrying:
    """The worker's rounds that move contacts to this generation's key and name, and destroy what is no longer needed.

    privates: the relay's private keys, by generation. All of it is safe to run twice and at once.
    """

    sessions: Sessions
    ledger: Ledger
    row_key: bytes = field(repr=False)
    identity: bytes
    first: RelayKey | None
    privates: Keyring = field(repr=False)
    names: Peppers = field(repr=False)
    broken: set[UUID] = field(default_factory=set)  # what no key opens: said once, and nothing waits for it

    def round(self, now: datetime) -> int:
        """Move, erase and destroy what is due at `now`; return how many contacts were moved or erased."""
        with self.sessions.read() as session:
            relay = sealing(relay_keys(session, self.identity, self.first), now.astimezone(UTC).date())
            pepper = naming(self.names.peppers(), now)
            behind = self._behind(relay, pepper, now)
            waiting = session.scalars(select(col(Contact.id)).where(behind).limit(BATCH)).all()
            over = self._over(session, now)
        moved = outbox.each(
            self.sessions, [partial(self._move, contact=c, relay=relay, pepper=pepper) for c in waiting]
        )
        erased = outbox.each(self.sessions, [partial(self._erase, contact=c, now=now) for c in over])
        if not waiting:
            self._destroy_relay(relay, now)
            self._destroy_peppers(now)
        return moved + erased

    def _behind(self, relay: RelayKey | None, pepper: Pepper, now: datetime) -> ColumnElement[bool]:
        old_key = col(Contact.relay_generation) < (relay.generation if relay else 0)
        old_name = and_(col(Contact.pseudonym).is_not(None), col(Contact.epoch) < pepper.epoch)
        return and_(
            col(Contact.key_sealed).is_not(None),
            or_(old_key, old_name),
            or_(needed(now), silenced(now)),
            col(Contact.id).not_in(list(self.broken)),
        )

    def _move(self, tx: Tx, *, contact: UUID, relay: RelayKey | None, pepper: Pepper) -> bool:
        row = tx.scalars(outbox.locked(select(Contact).where(col(Contact.id) == contact))).one_or_none()
        if row is None or row.key_sealed is None or row.number_sealed is None:
            return False
        try:
            boxes.check_row_tag(self.row_key, contact_row(row.model_dump()), row.row_tag)
            private = self.privates.get(row.relay_generation)
            if private is None:
                raise CannotOpen("the relay's key of that generation is not here")
            number = open_contact(private, row.relay_generation, row.id, row.key_sealed, row.number_sealed)
        except CannotOpen:
            log.error("contact_cannot_be_carried_over")
            self.broken.add(contact)
            return False
        if relay is not None and row.relay_generation < relay.generation:
            row.key_sealed = reseal_contact(
                private, row.relay_generation, row.id, row.key_sealed, relay.public, relay.generation
            )
            row.relay_generation = relay.generation
        if row.pseudonym is not None and row.epoch < pepper.epoch:
            name = boxes.phone_name(pepper.secret, number)
            taken = tx.scalar(select(exists().where(col(Contact.pseudonym) == name)))
            # Another process took this number for a new one at the moment of the change: later texts join that one.
            row.pseudonym, row.epoch = None if taken else name, pepper.epoch
        row.row_tag = boxes.row_tag(self.row_key, contact_row(row.model_dump()))
        tx.flush()
        return True

    def _over(self, session: Session, now: datetime) -> Sequence[UUID]:
        tied = or_(col(Contact.tip).is_not(None), exists().where(col(Tip.contact) == col(Contact.id)))
        return session.scalars(
            select(col(Contact.id))
            .where(col(Contact.key_sealed).is_not(None), ~needed(now), or_(~silenced(now), tied))
            .limit(BATCH)
        ).all()

    def _erase(self, tx: Tx, *, contact: UUID, now: datetime) -> bool:
        """Erase key and name of a contact; one that wants no texts stays a year, tied to no tip."""
        row = tx.scalars(outbox.locked(select(Contact).where(col(Contact.id) == contact))).one_or_none()
        again = tx.scalar(select(needed(now)).where(col(Contact.id) == contact))
        if row is None or again:
            return False
        kept = row.opted_out_at is not None and row.opted_out_at > now - OPT_OUT_KEPT
        if kept:
            tx.execute(update(Tip).where(col(Tip.contact) == contact).values(contact=None))
            for job in tx.scalars(select(OutboxJob).where(col(OutboxJob.contact) == contact)).all():
                job.contact = None
                job.row_tag = outbox.retagged(self.row_key, job.model_dump())["row_tag"]
        else:
            row.pseudonym = row.key_sealed = row.number_sealed = None
        row.tip, row.tip_tag = None, tip_tag(self.row_key, row.id, None)
        row.row_tag = boxes.row_tag(self.row_key, contact_row(row.model_dump()))
        tx.flush()
        fields = {"what": "tie" if kept else "contact"}
        event = NewEvent(EventType.VALUE_ERASED, now, SYSTEM, StateClass.SYSTEM, None, fields)
        append(tx, self.ledger, fixed_chain("system"), [event])
        return True

    def _destroy_relay(self, relay: RelayKey | None, now: datetime) -> None:
        if relay is None or relay.generation not in self.privates:
            return
        begun = datetime(relay.start.year, relay.start.month, relay.start.day, tzinfo=UTC)
        if now < begun + GRACE:
            return
        old = self.privates.keep(lambda number: number >= relay.generation)
        if old:
            self._say(EventType.RELAY_ROTATED, old, now)

    def _destroy_peppers(self, now: datetime) -> None:
        old = self.names.destroy_old(now)
        if old:
            self._say(EventType.PEPPER_ROTATED, old, now)

    def _say(self, what: EventType, destroyed: Sequence[int], now: datetime) -> None:
        event = NewEvent(what, now, SYSTEM, StateClass.SYSTEM, None, {"destroyed": list(destroyed)})
        write(self.sessions, lambda tx: append(tx, self.ledger, fixed_chain("keys"), [event]))
