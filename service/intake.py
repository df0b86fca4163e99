"""Receive a tip: stored with its history in one durable transaction, and only then acknowledged (DESIGN section 3).

A message delivered twice is stored once; a later message of the same sender joins its open tip. The process that does
this holds no key that opens what it stores.
"""

import asyncio
import hmac
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Protocol, TypeVar
from uuid import UUID, uuid4

import structlog
from sqlalchemy import select, update
from sqlmodel import Session, col

from service import history, outbox
from service.cases import (
    case_key_insert,
    case_public,
    change,
    lapse_lowering,
    reference,
    state_class,
    stop_closure,
    wall,
)
from service.db import ATTEMPTS, Tx
from service.decisions import (
    WALL_ROUTE,
    SealTo,
    decision_event,
    decision_row,
    fact_columns,
    facts_in,
    latest_decision,
    rise,
)
from service.draft import (
    Draft,
    Heard,
    IncomingTip,
    Pepper,
    Reception,
    draft_tip,
    hear,
    message_row,
    minute_of,
    recalled,
    storable,
    tagged_contact,
    words_sealed,
)
from service.errors import CannotOpen, Conflict, HeadMoved, HotlineError, StorageUnavailable
from service.history import NameKeys
from service.ledger.events import (
    SYSTEM,
    Anchor,
    EventType,
    Ledger,
    NewEvent,
    StateClass,
    new_chain_rows,
    read_anchor,
)
from service.models import (
    Case,
    CaseDecision,
    CaseKey,
    Channel,
    Contact,
    KeyedName,
    Message,
    State,
    Tip,
)
from service.triage import Assessment, Ruleset, Triage
from service.vault import boxes, envelope
from service.vault.cards import Cards, RelayKey
from service.vault.contacts import contact_row, tip_tag
from service.vault.envelope import Kind
from service.walls import barred_units

T = TypeVar("T")

__all__ = ["IncomingTip", "Intake", "Pepper", "Receipt"]

log = structlog.get_logger("intake")

ANCHOR_AGE = timedelta(seconds=5)
PROVEN = frozenset({Channel.SMS, Channel.VOICE})  # the network says who sends; a form says what somebody typed


@dataclass(frozen=True, slots=True)
class Receipt:
    """What was stored: the tip, whether it was there before, and its level."""

    tip: UUID
    repeated: bool
    level: str


@dataclass(frozen=True, slots=True)
class _Closed:
    """The closed case that a tipster came back to: what follows names it, and stays behind its wall."""

    reference: str
    walled: bool


class Source(Protocol):
    """Where relay key and peppers are looked up anew (``numbers.Source``)."""

    def look(self, tx: Session, now: datetime, before: RelayKey | None) -> tuple[RelayKey | None, tuple[Pepper, ...]]:
        """Return the relay key that numbers are sealed to at `now`, and the peppers that they are named under."""


class GroupCommit(Protocol):
    """What intake needs of ``db.Writer``."""

    async def submit(self, use_case: Callable[[Tx], T], *, blind: bool = False) -> T:
        """Run the use case, commit durably, return its result."""


class Intake:
    """The receiving end of every channel. Holds public keys and names' keys, and nothing that opens a tip."""

    def __init__(
        self,
        *,
        writer: GroupCommit,
        ledger: Ledger,
        cards: Cards,
        relay: RelayKey | None,
        row_key: bytes,
        peppers: Sequence[Pepper],
        names: NameKeys,
        triage: Triage,
        claim_targets: Sequence[timedelta],
        act_targets: Sequence[timedelta],
        source: Source | None = None,
    ) -> None:
        """Take what a receiving process holds. source: asked every few seconds for relay key and peppers."""
        self._writer, self._source = writer, source
        self.desk = Reception(
            ledger, cards, relay, row_key, tuple(peppers), names, triage, tuple(claim_targets), tuple(act_targets)
        )
        self._anchor = Anchor()
        self._anchor_read: datetime | None = None

    def use(self, ruleset: Ruleset) -> None:
        """Decide by `ruleset` from the next message on."""
        if ruleset.content_hash != self.desk.triage.ruleset.content_hash:
            self.desk = replace(self.desk, triage=replace(self.desk.triage, ruleset=ruleset))

    async def receive(self, tip: IncomingTip) -> Receipt:
        """Store a tip, or a further message of an open one, and return what was stored. Safe to call twice.

        Returns only after a durable commit. Raises Unavailable when nothing was stored.
        """
        tip = replace(tip, text=storable(tip.text))
        if self._anchor_read is None or tip.received_at - self._anchor_read > ANCHOR_AGE:
            await self._writer.submit(partial(self._look, now=tip.received_at))
        closed = None
        if tip.returning is not None:
            closed = await self._writer.submit(partial(self._closed, tip_id=tip.returning))
        if closed is not None:
            tip = replace(tip, context={**tip.context, "after": closed.reference})
        walled = closed is not None and closed.walled
        heard = await self._recalled(tip, hear(self.desk, tip))
        draft = draft_tip(self.desk, tip, heard, self._anchor, walled=walled)
        for attempt in range(ATTEMPTS + 3):
            # The common case, a new tip from a new number, is tried blind: a uniqueness broken by it means that
            # the message or its sender is known, and only then is looked up which.
            blind = attempt == 0 and len(self.desk.peppers) < 2 and tip.returning is None
            store = self.insert if blind else self.look_up_and_store
            try:
                return await self._writer.submit(partial(store, draft=draft), blind=blind)
            except Conflict:
                # Another process was first. What it stored is there to be found now.
                await asyncio.sleep(random.uniform(0, 0.01 * 2**attempt) if attempt else 0)  # noqa: S311 - jitter
        raise StorageUnavailable("Too many messages at once.")

    async def _recalled(self, tip: IncomingTip, heard: Heard) -> Heard:
        """Return what a tip says with what is stored of what it names.

        It is asked before the tip is drafted, and only when there is a name to ask for. Tips that come meanwhile are
        missed, but those of the last ten minutes count for nobody (docs/adr/0008.md).
        """
        if not heard.traces:
            return heard
        ask = partial(history.recall, keys=self.desk.names, found=heard.traces, at=minute_of(tip))
        try:
            facts = await self._writer.submit(ask)
        except HotlineError as fault:  # if the database is away, storing says so; a count must not lose a tip
            log.warning("history_not_read", error=type(fault).__name__)
            return heard
        return recalled(self.desk, tip, heard, facts)

    def _look(self, tx: Tx, *, now: datetime) -> None:
        """Take up the newest anchor, and the newest keys that numbers are sealed to and named under."""
        if self._source is not None:
            relay, peppers = self._source.look(tx, now, self.desk.relay)
            self.desk = replace(self.desk, relay=relay, peppers=peppers)
        self._anchor, self._anchor_read = read_anchor(tx), now

    async def report(self, delivery: str, status: str, code: int | None, at: datetime) -> None:
        """Keep what the provider says of a text of ours, for the worker to take to its outbox row. Safe to call twice.

        delivery: the provider's id of the text, stored as a keyed name. Raises Unavailable when nothing was stored.
        """
        name = boxes.provider_name(self.desk.row_key, delivery)
        rows = [{"sid": name, "status": status, "code": code, "at": at}]
        await self._writer.submit(partial(outbox.report, rows=rows))

    def insert(self, tx: Tx, *, draft: Draft) -> Receipt:
        """Write a new tip's rows. Raises the driver's error when its delivery or its sender is known."""
        tx.insert_all([*new_chain_rows(draft.chained), *draft.rows])
        return Receipt(draft.id, False, draft.level)

    def look_up_and_store(self, tx: Tx, *, draft: Draft) -> Receipt:
        """Answer a repeat from what is stored, add to an open tip of the same sender, or write a new one."""
        stored = self._stored(tx, draft.tip)
        if stored is not None:
            return stored
        if draft.tip.returning is not None:
            return self._come_back(tx, draft, draft.tip.returning)
        contact = self._known_contact(tx, draft.tip.sender)
        if contact is None:
            return self.insert(tx, draft=draft)
        if not self._is_our_contact(contact):
            # It has the sender's name all the same: the new one goes without, and no tip is lost.
            return self.insert(tx, draft=self._unnamed(draft))
        open_tip = self._open_tip(tx, contact)
        proven = draft.tip.channel in PROVEN
        if open_tip is not None and proven and self._is_ours(tx, open_tip[1]):
            return self._follow_up(tx, draft.tip, *open_tip)
        # Whoever types another person's number into the form joins nothing and takes nothing over.
        return self._insert_for(tx, draft, contact, take_over=proven or open_tip is None)

    def _come_back(self, tx: Tx, draft: Draft, tip_id: UUID) -> Receipt:
        """Add to the tip whose code was typed. After closure the words are a new tip, with its own clocks."""
        tip = tx.get_one(Tip, tip_id)
        case = tx.get_one(Case, tip.case)
        if case.state == State.CLOSED or not self._is_ours(tx, case):
            return self.insert(tx, draft=draft)
        return self._follow_up(tx, draft.tip, tip, case)

    @staticmethod
    def _closed(tx: Tx, *, tip_id: UUID) -> "_Closed | None":
        case = tx.get_one(Case, tx.get_one(Tip, tip_id).case)
        return _Closed(reference(case.id), case.walled) if case.state == State.CLOSED else None

    def _is_ours(self, tx: Session, case: Case) -> bool:
        """Return whether the case's public key carries our tag. A planted key gets nothing, and no tip is lost."""
        try:
            case_public(tx, case, self.desk.row_key)
        except CannotOpen:
            log.error("case_key_is_not_ours")
            return False
        return True

    def _is_our_contact(self, contact: Contact) -> bool:
        """Return whether a contact's row carries our tag. With names swapped, one's words would join another's case."""
        try:
            boxes.check_row_tag(self.desk.row_key, contact_row(contact.model_dump()), contact.row_tag)
        except CannotOpen:
            log.error("contact_row_is_not_ours")
            return False
        return True

    def _unnamed(self, draft: Draft) -> Draft:
        """Return the draft with a contact that no later message finds."""
        rows = [
            (t, [tagged_contact(self.desk.row_key, r | {"pseudonym": None}) for r in rs] if t is Contact else rs)
            for t, rs in draft.rows
        ]
        return replace(draft, rows=rows)

    # --- a message of a tip that is there ---

    def _stored(self, tx: Session, tip: IncomingTip) -> Receipt | None:
        found = tx.execute(
            select(col(Message.tip), col(Case.level))
            .join(Case, col(Case.id) == col(Message.case))
            .where(
                col(Message.provider) == tip.provider,
                col(Message.kind) == tip.kind,
                col(Message.delivery) == boxes.provider_name(self.desk.row_key, tip.delivery),
            )
        ).one_or_none()
        return Receipt(found[0], True, found[1]) if found else None

    def _known_contact(self, tx: Session, sender: str | None) -> Contact | None:
        if sender is None:
            return None
        names = [boxes.phone_name(pepper.secret, sender) for pepper in self.desk.peppers]
        return tx.scalars(select(Contact).where(col(Contact.pseudonym).in_(names)).limit(1)).one_or_none()

    def _open_tip(self, tx: Session, contact: Contact) -> tuple[Tip, Case] | None:
        if not hmac.compare_digest(tip_tag(self.desk.row_key, contact.id, contact.tip), contact.tip_tag or b""):
            log.error("contact_row_is_not_ours")
            return None
        found = tx.execute(
            select(Tip, Case)
            .join(Case, col(Case.id) == col(Tip.case))
            .where(col(Tip.id) == contact.tip, col(Case.state) != State.CLOSED)
        ).one_or_none()
        return (found[0], found[1]) if found else None

    def _insert_for(self, tx: Tx, draft: Draft, contact: Contact, *, take_over: bool) -> Receipt:
        """Write a new tip of a contact that is known. take_over: later messages of the contact join this one.

        It is drafted anew: what the contact told before is no repeat by others, and may have been closed incomplete.
        """
        tip = draft.tip
        ask = partial(history.recall, tx, self.desk.names, draft.heard.traces, at=minute_of(tip))
        facts = ask(contact=contact.id)
        heard = recalled(self.desk, tip, hear(self.desk, tip), facts)
        receipt = self.insert(tx, draft=draft_tip(self.desk, tip, heard, draft.anchor, known=contact.id))
        if take_over:
            tag = tip_tag(self.desk.row_key, contact.id, receipt.tip)
            same = (col(Contact.id) == contact.id, col(Contact.pseudonym) == contact.pseudonym)
            taken = tx.execute(update(Contact).where(*same).values(tip=receipt.tip, tip_tag=tag))
            if taken.rowcount != 1:  # type: ignore[attr-defined]
                raise HeadMoved("The contact was just erased, or moved to the next pepper.")
        return receipt

    def _follow_up(self, tx: Tx, tip: IncomingTip, open_tip: Tip, case: Case) -> Receipt:
        """Add a message to an open tip and decide anew: a rise applies itself, a fall changes nothing."""
        # Behind the wall facts are sealed: the new message then decides alone, and never below what stands.
        record = latest_decision(tx, case).record
        known = (facts_in(record) or ()) if record is not None else ()
        minute = minute_of(tip)
        heard = hear(self.desk, tip, known)
        ask = partial(history.recall, tx, self.desk.names, heard.traces, at=minute)
        facts = ask(contact=open_tip.contact, tip=open_tip.id)
        found = recalled(self.desk, tip, heard, facts).found
        hour = minute.replace(minute=0)
        walling = WALL_ROUTE in found.decision.routes and not case.walled
        # A unit that is walled off keeps what it has read. What comes from now on it must not open.
        private, public, generation = b"", b"", case.generation
        if walling:
            (private, public), generation = boxes.keypair(), case.generation + 1
            tx.insert(CaseKey, [case_key_insert(self.desk.row_key, case.id, generation, public)])
        else:
            public = case_public(tx, case, self.desk.row_key)
        message_id = uuid4()
        header = envelope.header(case.id, generation, hour, message_id, Kind.MESSAGE)
        sealed = envelope.seal_words(public, header, tip.text)
        number = 1 + len(
            tx.scalars(
                select(col(Message.number)).where(col(Message.case) == case.id, col(Message.tip) == open_tip.id)
            ).all()
        )
        tx.insert(
            Message,
            [message_row(self.desk, tip, message_id, open_tip.id, case.id, generation, number, hour, sealed)],
        )
        walled = walling or case.walled
        if not walled:
            tx.insert(
                KeyedName, history.rows(self.desk.names, heard.traces, open_tip.id, number, open_tip.contact, minute)
            )
        seal_to = SealTo(public, generation) if walled else None
        rules, decision = self.desk.triage.ruleset.content_hash, found.decision
        row = decision_row(case.id, case.decision + 1, message_id, decision, found.facts, rules, hour, seal_to)
        tx.insert(CaseDecision, [row])
        level = min(case.level, decision.level)
        received = partial(words_sealed, EventType.TIP_MESSAGE, tip, open_tip.id, sealed, public, minute)
        events, columns = self._changes(tx, message_id, case, found, seal_to, minute, received)
        if walling:
            wall(
                tx,
                self.desk.ledger,
                case,
                self.desk.cards,
                {generation: private},
                barred_units(tx, self.desk.row_key, case.id, self.desk.cards),
                actor=SYSTEM,
                cause="words",
                now=minute,
                events=events,
                **columns,
            )
        else:
            change(tx, self.desk.ledger, case, events, **columns)
        stop_closure(tx, self.desk.ledger, case, "message", minute)
        return Receipt(open_tip.id, False, level)

    def _changes(
        self,
        tx: Tx,
        message: UUID,
        case: Case,
        found: Assessment,
        seal_to: SealTo | None,
        minute: datetime,
        received: Callable[[datetime, StateClass], NewEvent],
    ) -> tuple[list[NewEvent], dict[str, Any]]:
        """Return the events and columns of a further message, with its rise when there is one.

        received: makes the event of the message itself, from the next deadline and the state after it.
        """
        decision, state = found.decision, state_class(case.state)
        columns: dict[str, Any] = {"decision": case.decision + 1}
        if seal_to is None:
            columns |= fact_columns(decision, found.facts, walled=False)
        due_at = case.due_at
        if decision.level < case.level:
            raised, after = rise(tx, self.desk, case, decision.level, about=message, now=minute)
            columns |= raised | {"locked": decision.locked, "provisional": decision.provisional}
            due_at = raised["due_at"]
        else:
            after = lapse_lowering(tx, case, minute, due_at, floor=decision.level_bumped)
        return [received(due_at, state), decision_event(decision, minute, due_at, state, seal_to), *after], columns
