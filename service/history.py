"""What the database knows of a tip's place, suspect and contact: the facts of triage.md section 2, "history".

Counted by keyed names that stand beside the tip; no name is stored. Cases behind the wall leave no keyed name and count
towards nothing, so that no case that others see tells of them (DESIGN section 12, 5; docs/adr/0008.md).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import false, literal_column, select, union_all
from sqlmodel import Session, col

from service.canonical import canonical
from service.ledger.events import EventType
from service.models import Case, Channel, KeyedName, LedgerEvent, LedgerField, Tip
from service.triage import Fact, Source
from service.triage.naming import Names
from service.vault import boxes

APART = timedelta(minutes=10)
DAY = timedelta(days=1)
YEAR = timedelta(days=365)
MOST = 500  # rows that are looked at for one name: whoever floods the line with a name must not slow it down
# Reasons of casework.md section 7 with which nobody found whether a child was harmed, or is safe: another jurisdiction
# has it, the prosecutor takes no action, a legal end, the child cannot be found.
INCOMPLETE = ("C6", "C7", "C8", "C9")
REASON = "reason"  # the field of `case:closure:effective` that holds the code


class Trace(StrEnum):
    """What is counted by name."""

    PLACE = "place"
    SUSPECT = "suspect"
    SILENT = "silent"


# The fact of each trace, and how far back it looks.
_COUNTS: Mapping[Trace, tuple[str, timedelta]] = {
    Trace.PLACE: ("venue_tips_90d", 90 * DAY),
    Trace.SUSPECT: ("suspect_tips_365d", YEAR),
    Trace.SILENT: ("silent_calls_24h", DAY),
}


@dataclass(frozen=True, slots=True)
class NameKeys:
    """The place key and the sketch key (keys.md section 2), 32 bytes each."""

    place: bytes = field(repr=False)
    sketch: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Traces:
    """What a message names, as keyed names. place_anywhere: of tips that name the place and no province.

    silent: whether it is a call without a word.
    """

    place: bytes | None = None
    place_anywhere: bytes | None = None
    suspect: bytes | None = None
    silent: bool = False

    def __bool__(self) -> bool:
        return self.place is not None or self.suspect is not None or self.silent


def traces(keys: NameKeys, names: Names, channel: str, stated: Iterable[Fact]) -> Traces:
    """Return the keyed names of a message: a call counts as silent when its channel states so."""
    silent = channel == Channel.VOICE and any(f.name == "message_kind" and f.value == "silent" for f in stated)
    return Traces(
        None if names.place is None else boxes.place_name(keys.place, names.place),
        None if names.place_anywhere is None else boxes.place_name(keys.place, names.place_anywhere),
        None if names.suspect is None else boxes.suspect_name(keys.sketch, names.suspect),
        silent,
    )


def rows(
    keys: NameKeys, found: Traces, tip: UUID, number: int, contact: UUID | None, at: datetime
) -> list[dict[str, Any]]:
    """Return the ``keyed_name`` rows of a message of a case that is not walled. number: of the message in its tip."""
    named = {
        Trace.PLACE: found.place,
        Trace.SUSPECT: found.suspect,
        Trace.SILENT: boxes.silent_name(keys.sketch, contact) if found.silent and contact else None,
    }
    return [
        {"tip": tip, "number": number, "kind": kind, "name": name, "at": at}
        for kind, name in named.items()
        if name is not None
    ]


@dataclass(frozen=True, slots=True)
class _Sighting:
    """A message that bears a name. contact: None when the tip has none."""

    tip: UUID
    at: datetime
    contact: UUID | None


def recall(
    session: Session,
    keys: NameKeys,
    found: Traces,
    *,
    at: datetime,
    contact: UUID | None = None,
    tip: UUID | None = None,
) -> tuple[Fact, ...]:
    """Return the derived facts for a message with these traces; what is not known is not there. Reads alone.

    at: the message's minute. contact: its sender, if known before. tip: the tip it joins; what that named before counts
    for it too. A repeat is another contact's tip, more than ten minutes from this one and from each other one counted;
    this tip is none of them. Silent calls are those of the contact, this one among them.
    """
    own = _own(session, tip) if tip is not None else []
    names: dict[Trace, set[bytes]] = {kind: set() for kind in Trace}
    for row in own:
        names[Trace(row.kind)].add(row.name)
    names[Trace.PLACE] |= {name for name in (found.place, found.place_anywhere) if name is not None}
    names[Trace.SUSPECT] |= {name for name in (found.suspect,) if name is not None}
    names[Trace.SILENT] = {boxes.silent_name(keys.sketch, contact)} if found.silent and contact else set()
    counted: dict[str, str | int] = {}
    for kind in (Trace.PLACE, Trace.SUSPECT):
        fact, span = _COUNTS[kind]
        told = min((row.at for row in own if row.kind == kind), default=at)
        counted[fact] = _independent(_sightings(session, names[kind], at - span), tip, contact, told)
    if found.silent:
        fact, span = _COUNTS[Trace.SILENT]
        counted[fact] = 1 + len(_sightings(session, names[Trace.SILENT], at - span))
    if _closed_incomplete(session, names[Trace.PLACE] | names[Trace.SUSPECT], contact, at - YEAR):
        counted["prior_closed_incomplete_12m"] = "yes"
    return tuple(Fact(name, value, Source.DERIVED, at) for name, value in counted.items() if value)


def _own(session: Session, tip: UUID) -> Sequence[KeyedName]:
    return session.scalars(select(KeyedName).where(col(KeyedName.tip) == tip).limit(MOST)).all()


def _sightings(session: Session, names: Iterable[bytes], since: datetime) -> list[_Sighting]:
    """Return the newest messages that bear one of the names, of cases that are not walled."""
    found: list[_Sighting] = []
    for name in sorted(names):
        bearing = (
            select(col(KeyedName.tip), col(KeyedName.at), col(Tip.contact))
            .join(Tip, col(Tip.id) == col(KeyedName.tip))
            .join(Case, col(Case.id) == col(Tip.case))
            .where(col(KeyedName.name) == name, col(KeyedName.at) >= since, col(Case.walled) == false())
            .order_by(col(KeyedName.at).desc())
            .limit(MOST)
        )
        found += [_Sighting(*row) for row in session.execute(bearing).all()]
    return found


def _independent(found: Iterable[_Sighting], tip: UUID | None, contact: UUID | None, told: datetime) -> int:
    """Return how many tips are independent of the one of `contact` told at `told`, and of each other.

    A tip without a contact is nobody else's: only the ten minutes tell it from another.
    """
    known = {contact}
    last: datetime | None = None
    count = 0
    for sighting in sorted(found, key=lambda each: (each.at, each.tip)):
        repeated = sighting.contact is not None and sighting.contact in known
        if sighting.tip == tip or repeated or abs(sighting.at - told) <= APART:
            continue
        if last is not None and sighting.at - last <= APART:
            continue
        known.add(sighting.contact)
        last = sighting.at
        count += 1
    return count


def _closed_incomplete(session: Session, names: Iterable[bytes], contact: UUID | None, since: datetime) -> bool:
    """Return whether a case of one of the names, or of the contact, was closed incomplete since then.

    A closure is the event that casework.md section 14 names, with its reason's code; it stays when a case is reopened.
    """
    about = [
        select(col(KeyedName.tip)).where(col(KeyedName.name) == name).order_by(col(KeyedName.at).desc()).limit(MOST)
        for name in sorted(names)
    ]
    if contact is not None:
        about.append(select(col(Tip.id)).where(col(Tip.contact) == contact).limit(MOST))
    if not about:
        return False
    closures = (
        select(col(LedgerEvent.eid))
        .join(Case, col(Case.chain) == col(LedgerEvent.case))
        .join(Tip, col(Tip.case) == col(Case.id))
        .join(LedgerField, col(LedgerField.eid) == col(LedgerEvent.eid))
        .where(
            col(Tip.id).in_(union_all(*(tips.subquery().select() for tips in about))),
            col(Case.walled) == false(),
            # As its index says it: a bound value would not let SQLite see that the index fits.
            col(LedgerEvent.type) == literal_column(f"'{EventType.CLOSURE_EFFECTIVE}'"),
            col(LedgerEvent.at) >= since,
            col(LedgerField.name) == REASON,
            col(LedgerField.sealed) == false(),
            col(LedgerField.value).in_([canonical(code) for code in INCOMPLETE]),
        )
        .limit(1)
    )
    return session.scalar(closures) is not None
