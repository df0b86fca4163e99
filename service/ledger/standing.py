"""How the log stands, for oversight: its newest head, who cosigns, its censuses, and what did not fit.

Nothing here is of a case: the heads are public, and the events are those of the log's own chain.
"""

import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import func, select
from sqlmodel import Session, col

from service.errors import BadNote
from service.ledger import tree
from service.ledger.events import EventType, commit_field, fixed_chain
from service.ledger.notes import Policy, cosigned_at, open_checkpoint
from service.models import LedgerCheckpoint, LedgerCosignature, LedgerEvent, LedgerField
from service.vault.note import split_note

LATE = timedelta(minutes=5)  # without a newer head or line: an alarm (ledger.md section 4)
CENSUS_EVERY = timedelta(hours=25)  # daily, with an hour for a clock or a start that is late
CENSUSES = 14
REFUSALS = 20
REFUSING = (
    EventType.CHECK_FAILED,
    EventType.SIGNER_REFUSED,
    EventType.WITNESS_REFUSED,
    EventType.WITNESS_BACK,
    EventType.INCIDENT_OPENED,
)


@dataclass(frozen=True, slots=True)
class Head:
    """A published checkpoint. root: in base64. signed: whether the log's key did; only a policy tells that key."""

    size: int
    root: str
    at: datetime
    signed: bool


@dataclass(frozen=True, slots=True)
class Cosigner:
    """A witness of the policy: the size and the moment of its last good line, None where there is none."""

    word: str
    name: str
    size: int | None
    at: datetime | None

    def is_silent(self, now: datetime) -> bool:
        """Say whether its last line is too long ago."""
        return self.at is None or now - self.at > LATE


@dataclass(frozen=True, slots=True)
class Told:
    """An event of the log's own chain. fields: in clear. fits: whether they are those that it was committed to."""

    type: str
    at: datetime
    fields: Mapping[str, Any]
    fits: bool


@dataclass(frozen=True, slots=True)
class Counted:
    """A census: its number, when, its hash, and what is wrong with it.

    missing: how many numbers are left out before it. late: since the one before, where that is more than a day.
    fits: whether its number and hash are those that its event was committed to.
    """

    number: int
    at: datetime
    sha256: str
    missing: int
    late: timedelta | None
    fits: bool


@dataclass(frozen=True, slots=True)
class Standing:
    """The log at one moment. published, witnessed: its newest heads, None before the first of each."""

    halted: bool
    published: Head | None
    witnessed: Head | None
    cosigners: Sequence[Cosigner]
    censuses: Sequence[Counted]
    refusals: Sequence[Told]


def standing(session: Session, policy: Policy | None) -> Standing:
    """Return how the log stands. Reads alone, whatever the log's state; what does not fit is in the answer."""
    state = tree.state_of(session)
    censuses = _told(session, (EventType.CENSUS_TAKEN,), CENSUSES + 1)
    return Standing(
        halted=state.halted,
        published=_head(session, policy, state.published_size),
        witnessed=_head(session, policy, state.witnessed_size),
        cosigners=_cosigners(session, policy) if policy is not None else (),
        censuses=_counted(censuses),
        refusals=_told(session, REFUSING, REFUSALS),
    )


def _head(session: Session, policy: Policy | None, size: int) -> Head | None:
    kept = session.get(LedgerCheckpoint, size)
    if kept is None:
        return None
    root, signed = kept.note.split("\n")[2:3], False
    with suppress(BadNote):
        signed = policy is None or open_checkpoint(kept.note, policy.log).size == size
    return Head(size, "".join(root), kept.at, signed)


def _cosigners(session: Session, policy: Policy) -> list[Cosigner]:
    """Return each witness of the policy with its last line. One that does not fit its key counts as none."""
    newest = (
        select(col(LedgerCosignature.name), func.max(col(LedgerCosignature.size)).label("size"))
        .group_by(col(LedgerCosignature.name))
        .subquery()
    )
    rows = session.execute(
        select(LedgerCosignature, col(LedgerCheckpoint.note))
        .join(newest, (newest.c.name == col(LedgerCosignature.name)) & (newest.c.size == col(LedgerCosignature.size)))
        .join(LedgerCheckpoint, col(LedgerCheckpoint.size) == col(LedgerCosignature.size))
    ).all()
    lines = {row.name: (row.size, row.line, note) for row, note in rows}
    found = []
    for witness in policy.witnesses:
        size: int | None = None
        at: datetime | None = None
        if witness.key.name in lines:
            size, line, note = lines[witness.key.name]
            try:
                text, signatures = split_note(note.split("\n\n")[0] + "\n\n" + line)
                at = datetime.fromtimestamp(cosigned_at(text, signatures[0], witness.key), UTC)
            except (BadNote, OverflowError, ValueError):
                size = None
        found.append(Cosigner(witness.word, witness.key.name, size, at))
    return found


def _told(session: Session, types: Sequence[EventType], most: int) -> list[Told]:
    """Return the newest events of these types on the log's own chain, newest first."""
    chain = fixed_chain("ledger")
    events = session.scalars(
        select(LedgerEvent)
        .where(col(LedgerEvent.case) == chain, col(LedgerEvent.type).in_(types))
        .order_by(col(LedgerEvent.seq).desc())
        .limit(most)
    ).all()
    rows = session.scalars(
        select(LedgerField)
        .join(LedgerEvent, col(LedgerEvent.eid) == col(LedgerField.eid))
        .where(col(LedgerEvent.case) == chain, col(LedgerEvent.eid).in_([event.eid for event in events]))
    ).all()
    fields: dict[str, dict[str, LedgerField]] = {}
    for row in rows:
        fields.setdefault(row.eid, {})[row.name] = row
    return [_open(event, fields.get(event.eid, {})) for event in events]


def _open(event: LedgerEvent, rows: Mapping[str, LedgerField]) -> Told:
    committed = json.loads(event.body)["fields"]
    known = {name: json.loads(row.value) for name, row in rows.items() if name != "who" and not row.sealed}
    fits = known.keys() == committed.keys() and all(
        b64encode(commit_field(rows[name].salt or b"", name, value)).decode() == committed[name]
        for name, value in known.items()
    )
    return Told(event.type, event.at, known, fits)


def _counted(taken: Sequence[Told]) -> list[Counted]:
    """Return the censuses, newest first, each against the one before it. taken: one more than is told, or all."""
    told = []
    for place, this in enumerate(taken[:CENSUSES]):
        before = taken[place + 1] if place + 1 < len(taken) else None
        number, sha256 = this.fields.get("number", 0), str(this.fields.get("sha256", ""))
        missing = number - 1 - (before.fields.get("number", 0) if before is not None else 0)
        gap = this.at - before.at if before is not None else timedelta()
        told.append(Counted(number, this.at, sha256, missing, gap if gap > CENSUS_EVERY else None, this.fits))
    return told
