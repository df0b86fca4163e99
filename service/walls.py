"""Who may see what. A case that a person may not see does not exist for them.

Access is the list of units that hold a seal of the case's key, less the wall: rows that name units and people for whom
the case does not exist, whatever they hold (casework.md section 10). `readable` and `listed` say both; nothing else
does, and a test watches the statements of every page for a query that goes past them.

A wall's names are keyed: whoever steals the database learns from them neither whom a case may be about nor for whom it
is hidden.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, and_, exists, select
from sqlalchemy.orm import aliased
from sqlmodel import Session, col

from service.errors import CannotOpen
from service.ledger.events import Actor, EventType
from service.models import Case, CaseSeal, LedgerEvent, LedgerField, Member, Role, UnitGrant, Wall
from service.vault import boxes
from service.vault.cards import Cards, UnitKind

# Whom a name stands for: a unit; a person; whoever that person supervises; whoever supervises that person.
UNIT, MEMBER, BELOW, ABOVE = "unit", "member", "below", "above"


@dataclass(frozen=True, slots=True)
class Seat:
    """A place in a unit that a person holds a key of."""

    unit: str
    kind: str
    organisation: str


@dataclass(frozen=True, slots=True)
class Viewer:
    """A signed-in person, as far as access is concerned. Made by `viewer`.

    names: the names under which a wall may stand for this person, 32 bytes each.
    """

    member: UUID
    chain: str
    name: str
    name_km: str
    role: str
    organisation: str
    seats: tuple[Seat, ...]
    names: frozenset[bytes] = field(repr=False)

    @property
    def units(self) -> tuple[str, ...]:
        """Ids of the units whose key this person holds."""
        return tuple(seat.unit for seat in self.seats)

    @property
    def actor(self) -> Actor:
        """This person as the actor of an event."""
        return Actor(self.role, self.organisation, self.member.hex)

    def sits(self, kind: UnitKind) -> bool:
        """Say whether this person sits in a unit of that kind."""
        return any(seat.kind == kind for seat in self.seats)


def viewer(session: Session, row_key: bytes, member: Member, seats: tuple[Seat, ...]) -> Viewer:
    """Return `member` as a viewer, with the names under which a wall may stand for them now."""
    names = names_of(session, row_key, member.id, member.role)
    return Viewer(member.id, member.chain, member.name, member.name_km, member.role, member.organisation, seats, names)


# --- names ----------------------------------------------------------------------------------------------


def wall_name(row_key: bytes, what: str, whom: str) -> bytes:
    """Return the name under which a wall stands for somebody, 32 bytes (keys.md section 3).

    what: UNIT, MEMBER, BELOW or ABOVE. whom: a unit's id, or a person's in hex.
    """
    return boxes.keyed_name(row_key, f"{what}|{whom}".encode("ascii"), boxes.WALL)


def person_names(row_key: bytes, member: UUID) -> list[bytes]:
    """Return the names that exclude a person, those below them and those above (casework.md section 10)."""
    return [wall_name(row_key, what, member.hex) for what in (MEMBER, BELOW, ABOVE)]


def names_of(session: Session, row_key: bytes, member: UUID, role: str) -> frozenset[bytes]:
    """Return the names under which a wall may stand for `member`: as themself, by a unit, or by a colleague.

    A supervisor is above everybody else in the units that they share. Whoever joins or is promoted later gets the
    names that go with it at once.
    """
    own, theirs = aliased(UnitGrant), aliased(UnitGrant)
    rows = session.execute(
        select(col(own.unit), col(theirs.member), col(Member.role))
        .join(theirs, col(theirs.unit) == col(own.unit))
        .join(Member, col(Member.id) == col(theirs.member))
        .where(col(own.member) == member)
    ).all()
    names = {wall_name(row_key, MEMBER, member.hex)}
    for unit, colleague, their_role in rows:
        names.add(wall_name(row_key, UNIT, unit))
        if colleague == member:
            continue
        if their_role == Role.SUPERVISOR:
            names.add(wall_name(row_key, BELOW, colleague.hex))
        if role == Role.SUPERVISOR:
            names.add(wall_name(row_key, ABOVE, colleague.hex))
    return frozenset(names)


# --- what a person sees ---------------------------------------------------------------------------------


def readable(viewer: Viewer) -> ColumnElement[bool]:
    """Return the condition on ``Case`` under which it exists for `viewer`: a unit of theirs holds a seal, and no wall
    stands before them.

    Every query about cases goes through this or through `listed`.
    """
    sealed = exists().where(col(CaseSeal.case) == col(Case.id), col(CaseSeal.unit).in_(viewer.units))
    return and_(sealed, unwalled(viewer))


def listed(viewer: Viewer, seat: Seat) -> ColumnElement[bool]:
    """Return the condition on ``Case`` under which it stands in the queue of `viewer` for a `seat` of theirs.

    The unit that works it, or the oversight unit that holds it; both hold a seal (`readable`), because the
    columns and the seals change in the same statement group of ``cases``.
    """
    column = col(Case.oversight) if seat.kind == UnitKind.OVERSIGHT else col(Case.unit)
    return and_(column == seat.unit, unwalled(viewer))


def unwalled(viewer: Viewer) -> ColumnElement[bool]:
    """Return the condition on ``Case`` under which no wall stands before `viewer`; for counts over all units."""
    # Not correlated, so that a database asks it once a statement; there are few walls before one person.
    return col(Case.id).not_in(select(col(Wall.case)).where(col(Wall.name).in_(sorted(viewer.names))))


def queues(viewer: Viewer) -> tuple[Seat, ...]:
    """Return the seats that bring a queue, in a fixed order. A monitor unit opens no case and has none."""
    return tuple(sorted((s for s in viewer.seats if s.kind != UnitKind.MONITOR), key=lambda s: s.unit))


# --- a case's wall --------------------------------------------------------------------------------------


def walls_of(session: Session, case: UUID) -> list[Wall]:
    """Return the rows of a case's wall, oldest first."""
    rows = session.scalars(select(Wall).where(col(Wall.case) == case)).all()
    return sorted(rows, key=lambda row: (row.added_at, row.exclusion.hex, row.name))


def wall_digest(rows: Iterable[Wall]) -> str:
    """Return the hash, 64 hex digits, that an event commits to: a row that is taken away or planted shows."""
    return hashlib.sha256(b"".join(sorted(row.name for row in rows))).hexdigest()


def check_wall(session: Session, case: Case) -> None:
    """Return if a case's wall is the one that its history was last given.

    Raises CannotOpen where a row was taken away, changed or planted: then nobody reads until oversight has looked.
    """
    told = session.scalars(
        select(col(LedgerField.value))
        .join(LedgerEvent, col(LedgerEvent.eid) == col(LedgerField.eid))
        .where(
            col(LedgerEvent.case) == case.chain,
            col(LedgerEvent.type).in_((EventType.CASE_WALL_WIDENED, EventType.CASE_WALL_NARROWED)),
            col(LedgerField.name) == "wall",
        )
        .order_by(col(LedgerEvent.seq).desc())
        .limit(1)
    ).one_or_none()
    if (json.loads(told) if told is not None else wall_digest(())) != wall_digest(walls_of(session, case.id)):
        raise CannotOpen("The wall of this case is not the one of its history.")


def wall_row(row: Wall | Mapping[str, Any]) -> dict[str, object]:
    """Return the fixed columns of a row, for its tag."""
    given = row.model_dump() if isinstance(row, Wall) else row
    return {"table": "wall", **{column: given[column] for column in ("name", "case", "exclusion", "why", "whom")}}


def barred_units(session: Session, row_key: bytes, case: UUID, deck: Cards) -> frozenset[str]:
    """Return the units that a case must not be sealed to."""
    standing = set(session.scalars(select(col(Wall.name)).where(col(Wall.case) == case)).all())
    return frozenset(card.unit for card in deck.units if wall_name(row_key, UNIT, card.unit) in standing)


def stands_before(session: Session, row_key: bytes, case: UUID, member: Member) -> bool:
    """Return whether a case's wall stands before `member`."""
    names = names_of(session, row_key, member.id, member.role)
    return bool(session.scalar(select(exists().where(col(Wall.case) == case, col(Wall.name).in_(sorted(names))))))
