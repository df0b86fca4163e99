"""Events, commitments and leaves (ledger.md section 1), and the append of section 3, steps A1 to A5."""

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import select, text, update

from service.canonical import canonical
from service.db import Tx
from service.errors import HeadMoved
from service.ledger.merkle import EMPTY_ROOT
from service.ledger.merkle import leaf_hash as leaf_hash
from service.models import LedgerEffect, LedgerEvent, LedgerField, LedgerHead, LedgerPending, LedgerState
from service.vault import blobs, boxes

MAGIC = b"bamboo/1"
NO_EVENT = bytes(32)
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"))


class EventType(StrEnum):
    """What can happen, always ``subject:object:verb`` (casework.md section 14, ledger.md section 10)."""

    CASE_OPENED = "case:file:opened"
    CASE_CLAIMED = "case:owner:claimed"
    CASE_LEASE_LAPSED = "case:lease:lapsed"
    CASE_RELEASED = "case:claim:released"
    CASE_UNIT_SEALED = "case:unit:sealed"
    CASE_WALL_RAISED = "case:wall:raised"
    CLOSURE_EFFECTIVE = "case:closure:effective"
    PLAN_RECORDED = "case:plan:recorded"
    ACT_RECORDED = "case:act:recorded"
    STEP_RECORDED = "case:step:recorded"
    REFERRAL_SENT = "case:referral:sent"
    REFERRAL_TAKEN = "case:referral:taken"
    REFERRAL_REFUSED = "case:referral:refused"
    HEARTBEAT_MISSED = "case:heartbeat:missed"
    COURT_ENTERED = "case:court:entered"
    COURT_RETURNED = "case:court:returned"
    SETTLEMENT_SIGNALLED = "case:settlement:signalled"
    COMPENSATION_SIGNALLED = "case:compensation:signalled"
    WITHDRAWAL_RECORDED = "case:withdrawal:recorded"
    REVIEW_HELD = "case:review:held"
    REVIEW_LAPSED = "case:review:lapsed"
    CLOSURE_PROPOSED = "case:closure:proposed"
    CLOSURE_APPROVED = "case:closure:approved"
    CLOSURE_REFUSED = "case:closure:refused"
    CLOSURE_EXPIRED = "case:closure:expired"
    CLOSURE_STOPPED = "case:closure:stopped"
    REASON_REJECTED = "case:reason:rejected"
    CASE_REOPENED = "case:file:reopened"
    OWNER_CHANGED = "case:owner:changed"
    OVERLAY_SET = "case:overlay:set"
    OVERLAY_ENDED = "case:overlay:ended"
    STEP_REFUSED = "case:step:refused"
    CASE_WALL_WIDENED = "case:wall:widened"
    CASE_WALL_NARROWED = "case:wall:narrowed"
    NARROWING_PROPOSED = "case:narrowing:proposed"
    NARROWING_APPROVED = "case:narrowing:approved"
    NARROWING_REFUSED = "case:narrowing:refused"
    TIP_SEALED = "tip:account:sealed"
    TIP_MESSAGE = "tip:message:received"
    FACTS_CONFIRMED = "tip:facts:confirmed"
    STATUS_CHANGED = "tip:status:changed"
    CHALLENGE_RAISED = "tip:challenge:raised"
    CHALLENGE_ANSWERED = "tip:challenge:answered"
    DECISION_MADE = "triage:decision:made"
    LEVEL_RAISED = "triage:level:raised"
    LOWERING_PROPOSED = "triage:lowering:proposed"
    LOWERING_APPROVED = "triage:lowering:approved"
    LOWERING_REFUSED = "triage:lowering:refused"
    LOWERING_LAPSED = "triage:lowering:lapsed"
    LOWERING_EFFECTIVE = "triage:lowering:effective"
    ENGINE_FAILED = "triage:engine:failed"
    ASKS_SENT = "triage:asks:sent"
    CLOCK_SET = "clock:deadline:set"
    CLOCK_MET = "clock:deadline:met"
    CLOCK_LAPSED = "clock:deadline:lapsed"
    CLOCK_ESCALATED = "clock:deadline:escalated"
    REPLY_SENT = "message:reply:sent"
    REPLY_FAILED = "message:reply:failed"
    REPLY_SEEN = "message:reply:seen"
    COPY_DELETED = "provider:copy:deleted"
    CONTENT_OPENED = "content:file:opened"
    ATTACHMENT_OPENED = "content:attachment:opened"
    CONTENT_EXPORTED = "content:export:made"
    QUOTA_EXCEEDED = "content:quota:exceeded"
    ACCESS_DENIED = "content:access:denied"
    SESSION_OPENED = "staff:session:opened"
    SESSION_REFUSED = "staff:session:refused"
    SESSION_ENDED = "staff:session:ended"
    SESSION_STEPPED_UP = "staff:session:stepped_up"
    INVITATION_MADE = "staff:invitation:made"
    INVITATION_ENDED = "staff:invitation:ended"
    MEMBER_JOINED = "staff:member:joined"
    MEMBER_REFUSED = "staff:member:refused"
    MEMBER_LEFT = "staff:member:left"
    ROLE_PROPOSED = "staff:role:proposed"
    ROLE_CHANGED = "staff:role:changed"
    RESET_PROPOSED = "staff:reset:proposed"
    RESET_APPROVED = "staff:reset:approved"
    CHANGE_REFUSED = "staff:change:refused"
    PASSWORD_CHANGED = "staff:password:changed"  # noqa: S105 - a name, not a password
    REGISTER_PROPOSED = "staff:register:proposed"
    REGISTER_ACCEPTED = "staff:register:accepted"
    REGISTER_DIFFERS = "staff:register:differs"
    CARDS_PUBLISHED = "keys:cards:published"
    RULES_PROPOSED = "rules:version:proposed"
    RULES_APPROVED = "rules:version:approved"
    CASE_GRANTED = "keys:case:granted"
    CASE_REMOVED = "keys:case:removed"
    UNIT_ROTATED = "keys:unit:rotated"
    RELAY_ROTATED = "keys:relay:rotated"
    PEPPER_ROTATED = "keys:pepper:rotated"
    RECOVERY_USED = "keys:recovery:used"
    VALUE_ERASED = "data:value:erased"
    RULES_PUBLISHED = "rules:version:published"
    RULES_RATIFIED = "rules:version:ratified"
    RULES_REFUSED = "rules:version:refused"
    RULES_LAPSED = "rules:version:lapsed"
    CENSUS_TAKEN = "ledger:census:taken"
    CHECK_FAILED = "ledger:check:failed"
    SIGNER_REFUSED = "ledger:signer:refused"
    WITNESS_REFUSED = "ledger:witness:refused"
    WITNESS_BACK = "ledger:witness:back"
    INCIDENT_OPENED = "ledger:incident:opened"
    CODE_STARTED = "system:code:started"
    SCHEMA_MIGRATED = "system:schema:migrated"


class StateClass(StrEnum):
    """The coarse state that a census shows."""

    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"
    WATCH = "watch"
    SYSTEM = "system"


@dataclass(frozen=True, slots=True)
class Actor:
    """Who did it. `member` is committed to, never written into the event."""

    role: str
    organisation: str
    member: str


SYSTEM = Actor("system", "-", "system")


@dataclass(frozen=True, slots=True)
class Sealed:
    """A field value that stands nowhere in clear: kept sealed to the case key."""

    value: Any
    case_public: bytes


@dataclass(frozen=True, slots=True)
class NewEvent:
    """An event before it has its place in a chain.

    fields: names ``[a-z_]{1,32}`` to JSON values, or to Sealed ones. tag: 32 bytes, or None for random ones.
    effect: what is done once the event is witnessed (ledger.md section 6), as JSON; until then nothing is.
    """

    type: EventType
    at: datetime
    actor: Actor
    state: StateClass
    deadline: datetime | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    tag: bytes | None = None
    effect: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Anchor:
    """The newest checkpoint with a quorum that the writer knows."""

    size: int = 0
    root: bytes = EMPTY_ROOT


@dataclass(frozen=True, slots=True)
class Ledger:
    """Where events go: the log's origin and the monitor unit's public key."""

    origin: str
    monitor_public: bytes


def commit_field(salt: bytes, name: str, value: Any) -> bytes:
    """Return C_f, 32 bytes: HMAC over the field's name and canonical value. salt: 32 fresh random bytes."""
    return hmac.digest(salt, b"bamboo/field/v1\x00" + name.encode("ascii") + b"\x00" + canonical(value), "sha256")


def commit_event(salt: bytes, body: bytes) -> bytes:
    """Return C, 32 bytes, of an event's bytes. salt: k_e, 32 bytes."""
    return hmac.digest(salt, b"bamboo/event/v1\x00" + body, "sha256")


def make_leaf(c: bytes, s: bytes, t: bytes, anchor_size: int) -> bytes:
    """Return the public leaf, 112 bytes: magic, C, S, T (32 bytes each) and the anchor's size."""
    if not len(c) == len(s) == len(t) == 32:
        raise ValueError("C, S and T have 32 bytes each")
    return MAGIC + c + s + t + anchor_size.to_bytes(8, "big")


def cover_leaf(key: bytes, n: int, anchor_size: int) -> bytes:
    """Return cover leaf number `n`, 112 bytes: noise to everybody without `key`, provable with it (ledger.md 1)."""
    message = b"bamboo/cover/v1\x00" + n.to_bytes(4, "big")
    c, s, t = (hmac.digest(key, message + bytes([j]), "sha256") for j in range(3))
    return make_leaf(c, s, t, anchor_size)


def utc_seconds(moment: datetime) -> str:
    """Return `moment` as it stands in events: UTC, seconds, ``Z``."""
    return moment.astimezone(UTC).isoformat()[:19] + "Z"


@dataclass(slots=True)
class Chained:
    """Rows of events that follow each other on one chain, ready to insert."""

    chain: str
    first_seq: int
    prev: bytes
    seq: int
    c: bytes
    events: list[dict[str, Any]] = field(default_factory=list)
    fields: list[dict[str, Any]] = field(default_factory=list)
    effects: list[dict[str, Any]] = field(default_factory=list)
    pending: list[dict[str, Any]] = field(default_factory=list)


def chain_events(
    ledger: Ledger, chain: str, seq: int, prev: bytes, events: Sequence[NewEvent], anchor: Anchor
) -> Chained:
    """Return the rows of `events` after event `seq` with commitment `prev` (-1 and NO_EVENT for a new chain).

    Pure but for randomness: salts, tags, sealed blobs.
    """
    chained = Chained(chain, seq, prev, seq, prev)
    for new in events:
        _add(chained, ledger, new, anchor)
    return chained


def _add(chained: Chained, ledger: Ledger, new: NewEvent, anchor: Anchor) -> None:
    eid = boxes.random_bytes(16).hex()
    commitments = {name: _commit(chained, eid, name, value) for name, value in new.fields.items()}
    at = new.at.astimezone(UTC)
    body = {
        "v": 1,
        "log": ledger.origin,
        "eid": eid,
        "case": chained.chain,
        "seq": chained.seq + 1,
        "prev": _b64(chained.c),
        "type": str(new.type),
        "at": utc_seconds(at.replace(second=0) if new.type.startswith("tip:") else at),
        "actor": {
            "role": new.actor.role,
            "org": new.actor.organisation,
            "who": _commit(chained, eid, "who", new.actor.member),
        },
        "fields": commitments,
        "class": str(new.state),
        "deadline": None if new.deadline is None else utc_seconds(new.deadline),
        "anchor": {"size": anchor.size, "root": _b64(anchor.root)},
    }
    # All keys and values here are our own ASCII: plain sorted JSON is canonical.
    data = _ENCODER.encode(body).encode("ascii")
    k_e = boxes.random_bytes(32)
    c = commit_event(k_e, data)
    blob = blobs.seal_event(ledger.monitor_public, k_e, data)
    leaf = make_leaf(c, hashlib.sha256(blob).digest(), new.tag or boxes.random_bytes(32), anchor.size)
    chained.seq, chained.c = chained.seq + 1, c
    chained.events.append(
        {
            "eid": eid,
            "case": chained.chain,
            "seq": chained.seq,
            "type": str(new.type),
            "at": at.replace(second=0, microsecond=0) if new.type.startswith("tip:") else at.replace(microsecond=0),
            "body": data,
            "k_e": k_e,
            "blob": blob,
            "leaf": leaf,
        }
    )
    if new.effect is not None:
        chained.effects.append({"eid": eid, "action": canonical(dict(new.effect))})
    chained.pending.append({"eid": eid, "cover_n": None, "leaf": leaf})


def _commit(chained: Chained, eid: str, name: str, value: Any) -> str:
    """Add the field's row and return its commitment in base64."""
    salt = boxes.random_bytes(32)
    row: dict[str, Any] = {"eid": eid, "name": name, "sealed": isinstance(value, Sealed)}
    if isinstance(value, Sealed):
        commitment = commit_field(salt, name, value.value)
        secret = salt + canonical(value.value)
        row |= {"salt": None, "value": boxes.seal(value.case_public, f"field|{eid}|{name}", secret)}
    else:
        commitment = commit_field(salt, name, value)
        row |= {"salt": salt, "value": canonical(value)}
    chained.fields.append(row)
    return _b64(commitment)


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def read_anchor(tx: Tx) -> Anchor:
    """Return the newest checkpoint with a quorum (ledger_state)."""
    row = tx.execute(select(LedgerState.witnessed_size, LedgerState.witnessed_root)).one_or_none()  # type: ignore[call-overload]
    return Anchor(row[0], row[1]) if row else Anchor()


def new_chain() -> str:
    """Return a fresh pseudonym of a chain: 16 random bytes in hex, used nowhere else."""
    return boxes.random_bytes(16).hex()


def fixed_chain(name: str) -> str:
    """Return the pseudonym of a chain that is no case's: ``keys``, ``rules``, ``staff``, ``ledger``, ``system``."""
    return hashlib.sha256(b"bamboo/chain/v1\x00" + name.encode("ascii")).hexdigest()[:32]


def new_chain_rows(chained: Chained) -> list[tuple[Any, list[dict[str, Any]]]]:
    """Return the rows of a chain that did not exist, its head at the last event: the key decides a race."""
    head = {"case": chained.chain, "seq": chained.seq, "c": chained.c}
    return [(LedgerHead, [head]), *_rows(chained)]


# Two writers may begin the same chain: one inserts, and the other's compare-and-swap below loses.
_FIRST = text('INSERT INTO ledger_head ("case", seq, c) VALUES (:case, :seq, :c) ON CONFLICT DO NOTHING')


def append(tx: Tx, ledger: Ledger, chain: str, events: Sequence[NewEvent]) -> int:
    """Append `events` to `chain`, which may be new, and return the last one's sequence number.

    Runs in the caller's transaction with the rows it describes: both, or neither.
    Raises HeadMoved when another event came first; ``write`` runs the use case again.
    """
    row = tx.execute(select(LedgerHead.seq, LedgerHead.c).where(LedgerHead.case == chain)).one_or_none()  # type: ignore[call-overload]
    if row is None:
        tx.execute(_FIRST, {"case": chain, "seq": -1, "c": NO_EVENT})
    seq, c = row or (-1, NO_EVENT)
    chained = chain_events(ledger, chain, seq, c, events, read_anchor(tx))
    moved = tx.execute(
        update(LedgerHead)
        .where(LedgerHead.case == chain, LedgerHead.seq == seq, LedgerHead.c == c)  # type: ignore[arg-type]
        .values(seq=chained.seq, c=chained.c)
    )
    if moved.rowcount != 1:  # type: ignore[attr-defined]
        raise HeadMoved("Another event came first.")
    tx.insert_all(_rows(chained))
    return chained.seq


def _rows(chained: Chained) -> list[tuple[Any, list[dict[str, Any]]]]:
    return [
        (LedgerEvent, chained.events),
        (LedgerField, chained.fields),
        (LedgerEffect, chained.effects),
        (LedgerPending, chained.pending),
    ]
