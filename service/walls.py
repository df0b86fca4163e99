"""Who may see what. A case that a person may not see does not exist for them.

Access is the list of units that hold a seal of the case's key; there is no other list to fall out of step with it.
"""

from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import ColumnElement, exists
from sqlmodel import col

from service.ledger.events import Actor
from service.models import Case, CaseSeal
from service.vault.cards import UnitKind


@dataclass(frozen=True, slots=True)
class Seat:
    """A place in a unit that a person holds a key of."""

    unit: str
    kind: str
    organisation: str


@dataclass(frozen=True, slots=True)
class Viewer:
    """A signed-in person, as far as access is concerned."""

    member: UUID
    chain: str
    name: str
    name_km: str
    role: str
    organisation: str
    seats: tuple[Seat, ...]

    @property
    def units(self) -> tuple[str, ...]:
        """Ids of the units whose key this person holds."""
        return tuple(seat.unit for seat in self.seats)

    @property
    def actor(self) -> Actor:
        """This person as the actor of an event."""
        return Actor(self.role, self.organisation, self.member.hex)


def readable(viewer: Viewer) -> ColumnElement[bool]:
    """Return the condition on ``Case`` under which it exists for `viewer`: a unit of theirs holds a seal.

    Every query about cases goes through this or through `listed`.
    """
    return exists().where(
        col(CaseSeal.case) == col(Case.id),
        col(CaseSeal.unit).in_(viewer.units),
    )


def listed(seat: Seat) -> ColumnElement[bool]:
    """Return the condition on ``Case`` under which it stands in the queue of `seat`'s unit.

    The unit that works it, or the oversight unit that holds it; both hold a seal (`readable`), because the
    columns and the seals change in the same statement group of ``cases``.
    """
    if seat.kind == UnitKind.OVERSIGHT:
        return col(Case.oversight) == seat.unit
    return col(Case.unit) == seat.unit


def queues(viewer: Viewer) -> tuple[Seat, ...]:
    """Return the seats that bring a queue, in a fixed order. A monitor unit opens no case and has none."""
    return tuple(sorted((s for s in viewer.seats if s.kind != UnitKind.MONITOR), key=lambda s: s.unit))
