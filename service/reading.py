"""Opening a case's file: who and why is written first, then the words are decrypted for one response."""

import json
from base64 import b64encode
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from types import MappingProxyType
from typing import Any
from uuid import UUID

from sqlalchemy import func, or_, select
from sqlmodel import Session, col

from service.cases import case_public, find, has_opened, state_class
from service.db import Sessions, Tx, write
from service.decisions import latest_decision, open_decision
from service.errors import CannotOpen, Forbidden, StepUpNeeded
from service.ledger.events import (
    EventType,
    Ledger,
    NewEvent,
    Sealed,
    StateClass,
    append,
    commit_event,
    commit_field,
)
from service.ledger.tree import must_run
from service.models import (
    Case,
    LedgerEvent,
    LedgerField,
    LedgerHead,
    LedgerLeaf,
    LedgerPending,
    LedgerState,
    Member,
    Message,
    Reading,
    Role,
    Tip,
)
from service.vault import boxes, envelope
from service.vault.envelope import Envelope, Kind
from service.walls import Viewer, check_wall, readable

NEVER_READ = frozenset({Role.ADMIN, Role.AUDITOR})  # casework.md section 1
# Sealed fields of the history that a reader of the account is shown: words of people, no digests of files.
OPENED = (
    *("reason", "fact", "value"),
    *("plan", "guess", "kind", "what", "when", "where", "present"),
    *("taker", "rank", "taker_unit", "number", "reference", "recipient", "summary"),
    *("broker", "office", "unit", "told_by", "amount", "wanted_by"),
    *("advocate", "heard", "who_proposed", "in_room", "pressure", "wish", "guardian", "next"),
    *("why", "appeal_window", "seen_by", "seen_when", "sources", "sent_to_legal", "appealed", "opinion"),
    *("plan_completed", "childs_view"),
)
COMMITMENT = slice(8, 40)  # of a leaf
SALT = 32  # bytes, before a sealed field's value
QUOTA_SPAN = timedelta(hours=24)  # rolling: midnight doubles nothing
REASONS = ("screening", "owner", "supervision", "oversight", "link")
GAP = "gap"  # a step of this type is no event: here some are missing, or the next does not follow


class Proof(StrEnum):
    """How far an event has come into the log. Nothing here tells its place there (DESIGN section 12, 5)."""

    PROMISED = "promised"
    INTEGRATED = "integrated"
    WITNESSED = "witnessed"
    UNPROVEN = "unproven"  # it stands neither in the log nor before it, or is another than the one that does


@dataclass(frozen=True, slots=True)
class Step:
    """An event of a case, in a form that a page can put into words; or a gap between two (`GAP`).

    fields: of an event those that stand in clear; of a gap ``missing``, how many events, 0 where one does not follow.
    """

    seq: int
    type: str
    at: datetime
    role: str
    organisation: str
    who: str | None
    who_km: str | None
    fields: Mapping[str, Any]
    proof: Proof = Proof.UNPROVEN


def history(session: Session, case: Case, privates: Mapping[int, bytes] = MappingProxyType({})) -> list[Step]:
    """Return the events of a case, newest first, with the fields that stand in clear, how far each is proven, and gaps.

    privates: the case's private keys by generation; with them, also why a level was changed and by which facts.
    Raises CannotOpen for such a field that is not the one its event was committed to.
    """
    rows = session.execute(
        select(
            *(LedgerEvent, col(LedgerLeaf.idx), col(LedgerLeaf.leaf), col(LedgerPending.leaf), _WITNESSED),
            col(LedgerHead.seq),
        )
        .outerjoin(LedgerHead, col(LedgerHead.case) == col(LedgerEvent.case))
        .outerjoin(LedgerLeaf, col(LedgerLeaf.eid) == col(LedgerEvent.eid))
        .outerjoin(LedgerPending, col(LedgerPending.eid) == col(LedgerEvent.eid))
        .where(col(LedgerEvent.case) == case.chain)
        .order_by(col(LedgerEvent.seq).desc())
    ).all()
    events = [row[0] for row in rows]
    proofs = {row[0].eid: _proof(*row[:5]) for row in rows}
    bodies = {event.eid: json.loads(event.body) for event in events}
    fields = _shown_fields(session, case, bodies, privates)
    ids = {UUID(f["who"]) for f in fields.values() if f.get("who", "system") != "system"}
    names = {m.id: m for m in session.scalars(select(Member).where(col(Member.id).in_(ids))).all()}
    steps: list[Step] = []
    # Number and commitment of the next older event, as what is newer has them: the case, its chain's head, an event.
    wanted, prev = max([case.version, *(seq for event, *_, head in rows[:1] for seq in (event.seq, head or 0))]), None
    for event in events:
        if event.seq != wanted or prev not in (None, _commitment(event)):
            steps.append(_gap(event.seq + 1, wanted - event.seq, event.at))
        wanted, prev = event.seq - 1, bodies[event.eid]["prev"]
        known = fields.get(event.eid, {})
        actor = bodies[event.eid]["actor"]
        member = None if known.get("who", "system") == "system" else names.get(UUID(known["who"]))
        steps.append(
            Step(
                event.seq,
                event.type,
                event.at,
                actor["role"],
                actor["org"],
                member.name if member else None,
                member.name_km if member else None,
                {name: value for name, value in known.items() if name != "who"},
                proofs[event.eid],
            )
        )
    if wanted >= 0:
        steps.append(_gap(0, wanted + 1, case.received_hour))
    return steps


def _shown_fields(
    session: Session, case: Case, bodies: Mapping[str, Any], privates: Mapping[int, bytes]
) -> dict[str, dict[str, Any]]:
    """Return the fields of a case's events that stand in clear, and with its keys some that are sealed, by event."""
    fields: dict[str, dict[str, Any]] = {}
    told = select(col(LedgerEvent.eid)).where(col(LedgerEvent.case) == case.chain)
    clear = col(LedgerField.sealed).is_(False)
    shown = or_(clear, col(LedgerField.name).in_(OPENED)) if privates else clear
    for row in session.scalars(select(LedgerField).where(col(LedgerField.eid).in_(told), shown)).all():
        if not row.sealed:
            fields.setdefault(row.eid, {})[row.name] = json.loads(row.value)
        elif opened := _open_field(row, privates):
            salt, value = opened[:SALT], json.loads(opened[SALT:])
            if b64encode(commit_field(salt, row.name, value)).decode() != bodies[row.eid]["fields"][row.name]:
                raise CannotOpen("A sealed field of the history is not what its event was committed to.")
            fields.setdefault(row.eid, {})[row.name] = value
    return fields


_WITNESSED = select(col(LedgerState.witnessed_size)).scalar_subquery()


def _proof(event: LedgerEvent, place: int | None, leaf: bytes | None, pending: bytes | None, witnessed: int) -> Proof:
    stands = leaf if place is not None else pending
    if stands != event.leaf or commit_event(event.k_e, event.body) != event.leaf[COMMITMENT]:
        return Proof.UNPROVEN
    if place is None:
        return Proof.PROMISED
    return Proof.WITNESSED if place < witnessed else Proof.INTEGRATED


def _commitment(event: LedgerEvent) -> str:
    return b64encode(event.leaf[COMMITMENT]).decode()


def _gap(seq: int, missing: int, at: datetime) -> Step:
    return Step(seq, GAP, at, "", "", None, None, {"missing": missing})


def _open_field(row: LedgerField, privates: Mapping[int, bytes]) -> bytes | None:
    """Return a sealed field's salt and value; None if it was sealed to a key that is not among these."""
    for private in privates.values():
        with suppress(CannotOpen):
            return boxes.unseal(private, f"field|{row.eid}|{row.name}", row.value)
    return None


@dataclass(frozen=True, slots=True)
class Account:
    """A message of a tip, opened for one response."""

    id: UUID
    tip: UUID
    first: bool
    received_hour: datetime
    channel: str
    language: str
    mark: str | None
    text: str


@dataclass(frozen=True, slots=True)
class OpenedFile:
    """What opening a case shows: its words, and for a walled case the facts that are sealed."""

    accounts: tuple[Account, ...]
    record: Mapping[str, Any]
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Allowance:
    """How much one person may read. quota: openings in 24 hours. stepped_up: password and code were given again."""

    quota: int
    stepped_up: bool


def record_opening(
    sessions: Sessions,
    ledger: Ledger,
    row_key: bytes,
    viewer: Viewer,
    case_id: UUID,
    *,
    reason: str,
    note: str,
    allowance: Allowance,
    now: datetime,
) -> Case:
    """Append that `viewer` opens the account and why, commit it, and return the case.

    reason: one of REASONS. note: free words, sealed to the case. Beyond the quota only after a step-up, and then a
    second event says so, which oversight is shown (casework.md section 1, threats.md T-41). Nothing may be decrypted
    before this returns: an opening that cannot be written shows nothing.
    Raises NoSuchCase, Forbidden, StepUpNeeded, CannotOpen, StorageUnavailable.
    """
    if viewer.role in NEVER_READ:
        raise Forbidden("This role reads no case.")
    if reason not in REASONS:
        raise Forbidden("Say why you open it.")

    def append_opening(tx: Tx) -> Case:
        case = find(tx, viewer, case_id)
        check_wall(tx, case)
        tx.execute(select(col(Member.id)).where(col(Member.id) == viewer.member).with_for_update())  # one at a time
        opened = readings_since(tx, viewer, now - QUOTA_SPAN)
        over = opened >= allowance.quota
        if over and not allowance.stepped_up:
            raise StepUpNeeded("You have opened many accounts today. Give your password and code again to go on.")
        fields: dict[str, Any] = {"reason": reason}
        if note:
            fields["note"] = Sealed(note, case_public(tx, case, row_key))
        state = state_class(case.state)
        events = [NewEvent(EventType.CONTENT_OPENED, now, viewer.actor, state, case.due_at, fields)]
        if over:
            told = {"opened": opened + 1, "quota": allowance.quota}
            events.insert(0, NewEvent(EventType.QUOTA_EXCEEDED, now, viewer.actor, state, case.due_at, told))
        seq = append(tx, ledger, case.chain, events)
        at = (col(LedgerEvent.case) == case.chain, col(LedgerEvent.seq) == seq)
        eid = tx.scalars(select(col(LedgerEvent.eid)).where(*at)).one()
        tx.insert(Reading, [{"eid": eid, "case": case.id, "member": viewer.member, "at": now, "over": over}])
        tx.expunge(case)
        return case

    return write(sessions, append_opening)


def readings_since(session: Session, viewer: Viewer, since: datetime) -> int:
    """Return how many accounts `viewer` has opened since then."""
    own = (col(Reading.member) == viewer.member, col(Reading.at) > since)
    return session.scalar(select(func.count()).select_from(Reading).where(*own)) or 0


@dataclass(frozen=True, slots=True)
class Beyond:
    """How often somebody read beyond the quota, for oversight; of cases that exist for whoever looks."""

    name: str
    name_km: str
    role: str
    times: int
    last: datetime


def beyond_quota(session: Session, viewer: Viewer, since: datetime) -> list[Beyond]:
    """Return who has read beyond the quota since then, most first."""
    times = func.count().label("times")
    last = func.max(col(Reading.at))
    rows = session.execute(
        select(col(Member.name), col(Member.name_km), col(Member.role), times, last)
        .join(Reading, col(Reading.member) == col(Member.id))
        .join(Case, col(Case.id) == col(Reading.case))
        .where(col(Reading.over).is_(True), col(Reading.at) > since, readable(viewer))
        .group_by(col(Member.id), col(Member.name), col(Member.name_km), col(Member.role))
        .order_by(times.desc(), col(Member.id))
    ).all()
    return [Beyond(*row) for row in rows]


def record_refusal(sessions: Sessions, ledger: Ledger, viewer: Viewer, case_id: UUID, why: str, now: datetime) -> None:
    """Append, in the person's own chain, that they asked for a case and were refused (ledger.md section 10).

    A case that is hidden and one that never was leave the same event. why: the name of the refusal.
    """
    fields = {"case": case_id.hex, "why": why}
    event = NewEvent(EventType.ACCESS_DENIED, now, viewer.actor, StateClass.SYSTEM, fields=fields)
    write(sessions, lambda tx: append(tx, ledger, viewer.chain, [event]))


def record_export(
    sessions: Sessions, ledger: Ledger, viewer: Viewer, case_id: UUID, what: str, *, stepped_up: bool, now: datetime
) -> Case:
    """Append that `viewer` takes a part of a case out as a file, commit it, and return the case. what: a code.

    Only what was opened before, only after a step-up, and not while the ledger is halted (ledger.md section 7).
    Nothing may be decrypted before this returns.
    Raises NoSuchCase, Forbidden, StepUpNeeded, LedgerHalted, CannotOpen, StorageUnavailable.
    """

    def append_export(tx: Tx) -> Case:
        case = find(tx, viewer, case_id)
        if viewer.role in NEVER_READ:
            raise Forbidden("This role reads no case.")
        if not stepped_up:
            raise StepUpNeeded("To take this out as a file, give your password and code again.")
        if not has_opened(tx, case, viewer):
            raise Forbidden("Open the account first: what you say of it rests on having read it.")
        must_run(tx)
        check_wall(tx, case)
        state = state_class(case.state)
        made = NewEvent(EventType.CONTENT_EXPORTED, now, viewer.actor, state, case.due_at, {"what": what})
        append(tx, ledger, case.chain, [made])
        tx.expunge(case)
        return case

    return write(sessions, append_export)


def decrypt(session: Session, case: Case, privates: Mapping[int, bytes]) -> OpenedFile:
    """Return the words of a case. privates: its private keys by generation; others' messages stay closed.

    Raises CannotOpen if a row was changed or swapped.
    """
    tips = {tip.id: tip for tip in session.scalars(select(Tip).where(col(Tip.case) == case.id)).all()}
    accounts = []
    for message in session.scalars(
        select(Message).where(col(Message.case) == case.id).order_by(col(Message.received_hour), col(Message.number))
    ).all():
        private = privates.get(message.generation)
        if private is None:
            continue
        first = message.number == 1
        kind = Kind.ACCOUNT if first else Kind.MESSAGE
        place = envelope.header(case.id, message.generation, message.received_hour, message.id, kind)
        if place != message.header:  # a header is bound to its body, and here to the row that it lies in
            raise CannotOpen("A message lies in another's place.")
        words = envelope.open_words(private, Envelope(message.header, message.seal, message.body))
        tip = tips[message.tip]
        accounts.append(
            Account(message.id, tip.id, first, message.received_hour, tip.channel, tip.language, message.mark, words)
        )
    facts = open_decision(latest_decision(session, case), privates) or {"record": "{}"}
    return OpenedFile(tuple(accounts), json.loads(facts.pop("record")), facts)
