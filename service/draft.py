"""A tip worked out in memory: words to facts, facts to a level, sealed to those who may read it.

What arrives is sealed to the non-state screening unit and to oversight; to integrity and oversight alone where the
words tie an official to it (DESIGN section 3). Pure but for randomness: nothing here touches the database.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import structlog

from service import history
from service.cases import case_key_insert, seal_row
from service.clocks import answer_time, claim_clock_row, clock_row
from service.decisions import WALL_ROUTE, SealTo, decision_event, decision_row, fact_columns, page
from service.history import NameKeys, Traces
from service.ledger.events import (
    NO_EVENT,
    SYSTEM,
    Anchor,
    Chained,
    EventType,
    Ledger,
    NewEvent,
    Sealed,
    StateClass,
    chain_events,
    new_chain,
    utc_seconds,
)
from service.mailbox import mailbox_row
from service.models import (
    RANK,
    Case,
    CaseDecision,
    CaseKey,
    CaseSeal,
    Channel,
    Clock,
    ClockKind,
    Contact,
    KeyedName,
    Level,
    Mailbox,
    Message,
    OutboxJob,
    State,
    Tip,
)
from service.outbox import ACKNOWLEDGE, job
from service.triage import Assessment, Fact, Triage, assess, recall
from service.triage.naming import NOTHING, names_in
from service.vault import boxes, envelope
from service.vault.cards import Card, Cards, RelayKey
from service.vault.contacts import contact_row, new_contact, quiet_tag, tip_tag
from service.vault.envelope import Kind
from service.vault.mailbox import Prepared, tag

log = structlog.get_logger("draft")

ACKNOWLEDGE_WITHIN = timedelta(minutes=10)  # twilio.md section 5: only a fresh text is answered by machine
SILENCE = frozenset(  # Twilio's own words, and Khmer ones, not reviewed by a native speaker
    {"STOP", "STOPALL", "UNSUBSCRIBE", "CANCEL", "END", "QUIT", "REVOKE", "OPTOUT", "ឈប់", "បញ្ឈប់", "កុំផ្ញើ"}
)


@dataclass(frozen=True, slots=True)
class IncomingTip:
    """What a channel hands over. Nothing of it is stored but sealed or as coded facts.

    provider, kind, delivery: name the delivery; the same three mean the same message. sender: E.164 or None.
    stated: facts from a form or keypad. context: what the channel knows without reading (placement, kind of place).
    reply_allowed: what the tipster said about being answered; None when nothing was said. media: files announced
    and not fetched. late: found after an outage. mailbox: of the return code that the tipster asked for. returning:
    the tip whose code was typed; the words join it.
    """

    channel: Channel
    provider: str
    kind: str
    delivery: str
    text: str
    received_at: datetime
    sender: str | None = None
    stated: tuple[Fact, ...] = ()
    context: Mapping[str, str] = field(default_factory=dict)
    reply_allowed: bool | None = None
    media: int = 0
    late: bool = False
    mailbox: Prepared | None = None
    returning: UUID | None = None


@dataclass(frozen=True, slots=True)
class Pepper:
    """A secret of one epoch that numbers are named under, for new contacts from `start` on; looked up by before."""

    epoch: int
    secret: bytes = field(repr=False)
    start: datetime | None = None


@dataclass(frozen=True)
class Reception:
    """What the receiving process holds: public keys, keys of names, rules and targets. Nothing in it opens a tip."""

    ledger: Ledger
    cards: Cards
    relay: RelayKey | None
    row_key: bytes = field(repr=False)
    peppers: tuple[Pepper, ...] = field(repr=False)
    names: NameKeys
    triage: Triage
    claim_targets: tuple[timedelta, ...]
    act_targets: tuple[timedelta, ...]


@dataclass(frozen=True, slots=True)
class Heard:
    """What a message says: facts and decision, and what it names, as keyed names."""

    found: Assessment
    traces: Traces


@dataclass(frozen=True)
class Draft:
    """A new tip, worked out and sealed in memory, before any row is written."""

    tip: IncomingTip
    heard: Heard
    anchor: Anchor
    id: UUID
    level: str
    chained: Chained
    rows: Sequence[tuple[Any, list[dict[str, Any]]]]


def draft_tip(
    desk: Reception, tip: IncomingTip, heard: Heard, anchor: Anchor, *, known: UUID | None = None, walled: bool = False
) -> Draft:
    """Return everything a new tip will be, sealed. Pure but for randomness; never raises for odd words.

    known: its contact, where that is stored already. walled: behind the wall whatever its own words say.
    """
    minute, found = minute_of(tip), heard.found
    hour = minute.replace(minute=0)
    walled = walled or WALL_ROUTE in found.decision.routes
    readers = readers_of(desk, walled)
    case, tip_id, message_id, chain = uuid4(), uuid4(), uuid4(), new_chain()
    private, public = boxes.keypair()
    sealed = envelope.seal_words(public, envelope.header(case, 1, hour, message_id, Kind.ACCOUNT), tip.text)
    rank = RANK[found.decision.level]
    claim_by, act_by = minute + desk.claim_targets[rank], minute + desk.act_targets[rank]
    contact = _contact_row(desk, tip, tip_id) if known is None else None
    sender = contact["id"] if contact else known
    seal_to = SealTo(public, 1) if walled else None
    rules = desk.triage.ruleset.content_hash
    events = [
        _opened(tip, readers, minute, claim_by, act_by),
        words_sealed(EventType.TIP_SEALED, tip, tip_id, sealed, public, minute, claim_by, tag=_first_tag(tip)),
        decision_event(found.decision, minute, claim_by, StateClass.OPEN, seal_to),
    ]
    chained = chain_events(desk.ledger, chain, -1, NO_EVENT, events, anchor)
    row = _case_row(desk, tip, found, case, chained, readers, walled) | {
        "received_hour": hour,
        "due_at": min(claim_by, act_by),
    }
    rows: list[tuple[Any, list[dict[str, Any]]]] = [
        (Case, [row]),
        (CaseKey, [case_key_insert(desk.row_key, case, 1, public)]),
        (CaseSeal, [seal_row(card, case, 1, private) for card in dict.fromkeys(readers)]),
        (Contact, [contact] if contact else []),
        (Tip, [tip_row(tip, tip_id, case, sender, found.language, hour)]),
        (Mailbox, [mailbox_row(desk.row_key, tip_id, tip.mailbox, minute)] if tip.mailbox else []),
        (Message, [message_row(desk, tip, message_id, tip_id, case, 1, 1, hour, sealed)]),
        (CaseDecision, [decision_row(case, 1, message_id, found.decision, found.facts, rules, hour, seal_to)]),
        (
            Clock,
            [
                claim_clock_row(
                    case, found.decision.level, claim_by, desk.claim_targets[rank], EventType.DECISION_MADE
                ),
                clock_row(*(case, ClockKind.ACT, act_by, EventType.DECISION_MADE), answer_time(found.decision.level)),
            ],
        ),
        (OutboxJob, _jobs(desk, tip, found, case, tip_id, sender, minute)),
        (KeyedName, [] if walled else history.rows(desk.names, heard.traces, tip_id, 1, sender, minute)),
    ]
    return Draft(tip, heard, anchor, tip_id, found.decision.level, chained, rows)


def minute_of(tip: IncomingTip) -> datetime:
    """Return when `tip` came. Records stand in clear, and a second tells which call or text it was."""
    return tip.received_at.replace(second=0, microsecond=0)


def hear(desk: Reception, tip: IncomingTip, known: Iterable[Fact] = ()) -> Heard:
    """Return what `tip` says, with facts `known` before, and what it names. Never raises."""
    minute = minute_of(tip)
    stated = [replace(fact, at=minute) for fact in tip.stated]
    found = assess(desk.triage, tip.text, (*known, *stated), minute, tip.context)
    try:
        named = names_in(tip.text, found.facts, tip.context)
    except Exception as fault:  # noqa: BLE001 - a tip is worth more than its name in a count
        log.error("names_not_read", error=type(fault).__name__)
        named = NOTHING
    return Heard(found, history.traces(desk.names, named, tip.channel, stated))


def recalled(desk: Reception, tip: IncomingTip, heard: Heard, facts: Iterable[Fact]) -> Heard:
    """Return what `tip` says with what the database knows about it."""
    return replace(heard, found=recall(desk.triage, heard.found, facts, minute_of(tip)))


def _case_row(
    desk: Reception,
    tip: IncomingTip,
    found: Assessment,
    case: UUID,
    chained: Chained,
    readers: tuple[Card, Card],
    walled: bool,
) -> dict[str, Any]:
    return {
        "id": case,
        "chain": chained.chain,
        "version": chained.seq,
        "state": State.OPEN,
        "level": found.decision.level,
        "locked": found.decision.locked,
        "provisional": found.decision.provisional,
        "channel": tip.channel,
        "language": found.language,
        "walled": walled,
        **fact_columns(found.decision, found.facts, walled),
        "unit": readers[0].unit,
        "oversight": readers[1].unit,
        "owner": None,
        "due_kind": ClockKind.CLAIM,
        "generation": 1,
        "decision": 1,
        "back": State.OPEN,
    }


def _opened(
    tip: IncomingTip, readers: tuple[Card, Card], at: datetime, claim_by: datetime, act_by: datetime
) -> NewEvent:
    fields = {
        "channel": str(tip.channel),
        "unit": readers[0].unit,
        "oversight": readers[1].unit,
        "act_by": utc_seconds(act_by),
    }
    return NewEvent(EventType.CASE_OPENED, at, SYSTEM, StateClass.OPEN, claim_by, fields)


def words_sealed(
    what: EventType,
    tip: IncomingTip,
    tip_id: UUID,
    sealed: envelope.Envelope,
    public: bytes,
    at: datetime,
    deadline: datetime,
    state: StateClass = StateClass.OPEN,
    tag: bytes | None = None,
) -> NewEvent:
    """Return the event of a sealed message: what it commits to, and its exact time, both sealed to the case."""
    fields = {
        "tip": tip_id.hex,
        "envelope": Sealed(envelope.commitment(sealed, tip.text), public),
        "received": Sealed(utc_seconds(tip.received_at), public),
    }
    return NewEvent(what, at, SYSTEM, state, deadline, fields, tag)


def _first_tag(tip: IncomingTip) -> bytes | None:
    """Return T_0, by which whoever has the code finds the leaf in any copy of the log (ledger.md section 9)."""
    return tag(tip.mailbox.tag_key, 0) if tip.mailbox else None


def readers_of(desk: Reception, walled: bool) -> tuple[Card, Card]:
    """Return the unit that works the case and the oversight unit of another organisation. Never empty."""
    first = desk.cards.screening()
    if walled:
        first = desk.cards.integrity() or desk.cards.oversight_for(first.organisation)
    return first, desk.cards.oversight_for(first.organisation)


def _contact_row(desk: Reception, tip: IncomingTip, tip_id: UUID) -> dict[str, Any] | None:
    if tip.sender is None or desk.relay is None:
        return None
    contact = uuid4()
    key_sealed, number_sealed = new_contact(desk.relay.public, desk.relay.generation, contact, tip.sender)
    pepper = naming(desk.peppers, tip.received_at)
    row: dict[str, Any] = {
        "id": contact,
        "pseudonym": boxes.phone_name(pepper.secret, tip.sender),
        "epoch": pepper.epoch,
        "relay_generation": desk.relay.generation,
        "key_sealed": key_sealed,
        "number_sealed": number_sealed,
    }
    return tagged_contact(desk.row_key, row | {"tip": tip_id})


def tagged_contact(row_key: bytes, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a new ``contact`` row, that nobody has silenced, with its tags."""
    tags = {
        "row_tag": boxes.row_tag(row_key, contact_row(row)),
        "tip_tag": tip_tag(row_key, row["id"], row["tip"]),
        "quiet_tag": quiet_tag(row_key, row["id"], None, None),
    }
    return {**row, "opted_out_at": None, **tags}


def naming(peppers: Sequence[Pepper], now: datetime) -> Pepper:
    """Return the pepper that new contacts are named under: the newest whose time has come (keys.md section 8)."""
    return next((pepper for pepper in peppers if pepper.start is None or pepper.start <= now), peppers[-1])


def message_row(
    desk: Reception,
    tip: IncomingTip,
    message: UUID,
    tip_id: UUID,
    case: UUID,
    generation: int,
    number: int,
    hour: datetime,
    sealed: envelope.Envelope,
) -> dict[str, Any]:
    """Return a ``message`` row. number: its place in the tip, from 1."""
    return {
        "id": message,
        "tip": tip_id,
        "number": number,
        "case": case,
        "generation": generation,
        "provider": tip.provider,
        "kind": tip.kind,
        "delivery": boxes.provider_name(desk.row_key, tip.delivery),
        "mark": mark_of(tip),
        "received_hour": hour,
        "header": sealed.header,
        "seal": sealed.seal,
        "body": sealed.body,
    }


def _jobs(
    desk: Reception,
    tip: IncomingTip,
    found: Assessment,
    case: UUID,
    tip_id: UUID,
    contact: UUID | None,
    now: datetime,
) -> list[dict[str, Any]]:
    """Return the outbox rows of a new tip: an acknowledgement when it is safe, a page when it is P1."""
    jobs = []
    wanted = tip.reply_allowed is not False and not tip.late and not asks_for_silence(tip.text)
    if contact is not None and tip.channel == Channel.SMS and wanted:
        jobs.append(acknowledgement(desk, tip_id, case, contact, found.language, now))
    if found.decision.level == Level.P1:
        jobs.append(page(desk.row_key, case, case, now))
    return jobs


def asks_for_silence(text: str) -> bool:
    """Return whether the whole text is a word that ends messages (twilio.md section 6): it gets no answer."""
    return text.strip().strip(".!។").upper() in SILENCE


def acknowledgement(
    desk: Reception, tip: UUID, case: UUID, contact: UUID, language: str, now: datetime
) -> dict[str, Any]:
    """Return the outbox row that asks for the one neutral answer to a tip."""
    about, within = tip.hex, ACKNOWLEDGE_WITHIN
    return job(desk.row_key, ACKNOWLEDGE, about, case=case, contact=contact, language=language, now=now, within=within)


def storable(text: str) -> str:
    """Return `text` without NUL and lone surrogates, which PostgreSQL and UTF-8 refuse (twilio.md section 4)."""
    return text.replace("\x00", "").encode("utf-8", "ignore").decode()


def mark_of(tip: IncomingTip) -> str | None:
    """Return what a reader must know besides the words, as codes joined by spaces (models.Message)."""
    marks = [f"media:{tip.media}"] if tip.media else []
    form = tip.context.get("token", "good")
    if form != "good":
        marks.append(f"token:{form}")
    marks += [f"{kind}:{tip.context[kind]}" for kind in ("answer", "after") if kind in tip.context]
    return " ".join(marks) or None


def tip_row(
    tip: IncomingTip, tip_id: UUID, case: UUID, contact: UUID | None, language: str, hour: datetime
) -> dict[str, Any]:
    """Return a ``tip`` row. `hour` is its only receipt time."""
    return {
        "id": tip_id,
        "case": case,
        "contact": contact,
        "channel": tip.channel,
        "language": language,
        "received_hour": hour,
        "late": tip.late,
    }
