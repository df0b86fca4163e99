"""The next generation of a unit's key: made in a member's session, signed by the root, open cases moved (keys.md 6.7).

Whoever left keeps nothing that opens what is sealed from then on, nor, once moved, what was sealed before. The new key
is of use only when the root has signed its public half into the cards.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import func, select, true, update
from sqlmodel import Session, col

from service import register
from service.cases import case_key_row
from service.db import Tx
from service.errors import Conflict, Forbidden
from service.ledger.events import EventType, Ledger, NewEvent, StateClass, append, fixed_chain
from service.models import Case, CaseKey, CaseSeal, Member, State, UnitGrant, UnitRecovery
from service.staff import SignedIn, member_row, unit_private
from service.vault import boxes, members
from service.vault.cards import Card, Cards
from service.vault.case_keys import seal_case_key
from service.vault.recovery import seal_unit
from service.walls import Viewer, readable


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a unit's open cases are sealed to its present generation."""

    unit: str
    generation: int
    moved: int
    total: int


def propose_generation(
    tx: Tx, ledger: Ledger, row_key: bytes, deck: Cards, who: SignedIn, unit: str, now: datetime
) -> Card:
    """Make the next key of a unit, seal it to each member who holds the present one, and return its card unsigned.

    Nothing is sealed to it before the root has signed that card (`request_line`) and it was published.
    Raises Forbidden for somebody who is no member, Conflict when the next key was made already, WrongState when the
    register of people was changed outside the system, CannotOpen when a member's row was planted.
    """
    card = deck.unit(unit)
    if unit not in who.viewer.units:
        raise Forbidden("Only a member of the unit makes its next key.")
    register.require_whole(tx, row_key)  # else a planted member would get the new key with the others
    generation = card.generation + 1
    there = select(func.count()).select_from(UnitGrant)
    if tx.scalar(there.where(col(UnitGrant.unit) == unit, col(UnitGrant.generation) == generation)):
        raise Conflict("The unit's next key was made already, and waits for the root's signature.")
    private, public = boxes.keypair()
    holders = tx.scalars(
        select(Member)
        .join(UnitGrant, col(UnitGrant.member) == col(Member.id))
        .where(
            col(UnitGrant.unit) == unit, col(UnitGrant.generation) == card.generation, col(Member.disabled_at).is_(None)
        )
    ).all()
    granter = who.viewer.member
    for member in holders:
        boxes.check_row_tag(row_key, member_row(member), member.row_tag)
        given = members.grant_unit_key(
            unit, generation, private, member.id.hex, member.box_public, granter.hex, who.keys.signing
        )
        place: dict[str, Any] = {"unit": unit, "generation": generation, "member": member.id}
        tx.add(UnitGrant(**place, sealed=given.sealed, granter=granter, signature=given.signature, granted_at=now))
    if deck.recovery is not None:
        sealed = seal_unit(deck.recovery, unit, generation, private)
        tx.add(UnitRecovery(unit=unit, generation=generation, sealed=sealed))
    held = NewEvent(EventType.UNIT_ROTATED, now, who.viewer.actor, StateClass.SYSTEM, None, {"unit": unit})
    register.append_change(tx, ledger, row_key, held)
    fields = {"unit": unit, "generation": generation, "public": public.hex(), "members": len(holders)}
    _append(tx, ledger, who, fields, now)
    return Card(unit, card.kind, card.organisation, generation, public, now.date())


def request_line(card: Card) -> str:
    """Return a card as its line in a cards file, to be read to or carried to the machine that has the root's key."""
    key = base64.b64encode(card.public).decode()
    return f"unit {card.unit} {card.kind} {card.organisation} {card.generation} {key} {card.not_before.isoformat()}"


def with_cards(deck: Cards, cards: Sequence[Card]) -> list[Card]:
    """Return the units of the next cards file: those of `deck`, each replaced by its newer card; new ones come last."""
    newer = {card.unit: card for card in cards}
    kept = [newer.pop(card.unit, card) for card in deck.units]
    return [*kept, *newer.values()]


def move_cases(
    tx: Tx, ledger: Ledger, row_key: bytes, deck: Cards, who: SignedIn, unit: str, *, most: int, now: datetime
) -> Progress:
    """Seal up to `most` open cases of a unit to its present key, in a member's session, and return how far it is.

    Raises Forbidden for somebody who is no member, CannotOpen when a row was planted or an older key was not granted.
    """
    if unit not in who.viewer.units:
        raise Forbidden("Only a member of the unit moves its cases.")
    card = deck.unit(unit)
    rows = tx.execute(
        select(CaseSeal, CaseKey)
        .join(Case, col(Case.id) == col(CaseSeal.case))
        .join(
            CaseKey, (col(CaseKey.case) == col(CaseSeal.case)) & (col(CaseKey.generation) == col(CaseSeal.generation))
        )
        .where(col(CaseSeal.unit) == unit, col(CaseSeal.unit_generation) < card.generation, _is_open())
        .order_by(col(CaseSeal.case), col(CaseSeal.generation))
        .limit(most)
    ).all()
    privates: dict[int, bytes] = {}
    moved = 0
    for seal, key in rows:
        boxes.check_row_tag(row_key, case_key_row(key.case, key.generation, key.public), key.row_tag)
        old = seal.unit_generation
        if old not in privates:
            privates[old] = unit_private(tx, row_key, deck.at(unit, old), who)
        private = members.open_case_key(
            privates[old], seal.case, seal.generation, unit, old, seal.sealed, case_public=key.public
        )
        sealed = seal_case_key(card.public, seal.case, seal.generation, unit, card.generation, private)
        changed = tx.execute(
            update(CaseSeal)
            .where(
                col(CaseSeal.case) == seal.case,
                col(CaseSeal.generation) == seal.generation,
                col(CaseSeal.unit) == unit,
                col(CaseSeal.unit_generation) == old,
            )
            .values(sealed=sealed, unit_generation=card.generation)
            .execution_options(synchronize_session=False)
        )
        moved += changed.rowcount  # type: ignore[attr-defined]
    tx.expire_all()
    how_far = next(found for found in progress(tx, deck) if found.unit == unit)
    if moved:
        left = how_far.total - how_far.moved
        _append(tx, ledger, who, {"unit": unit, "generation": card.generation, "moved": moved, "left": left}, now)
    return how_far


def progress(session: Session, deck: Cards, viewer: Viewer | None = None) -> list[Progress]:
    """Return for each unit of the cards how many seals of open cases are to its present key, of how many.

    viewer: for a page, only cases that exist for this person count: a figure must not tell of a walled case.
    """
    exists_for = select(col(Case.id)).where(readable(viewer)).correlate(None) if viewer is not None else None
    rows = session.execute(
        select(col(CaseSeal.unit), col(CaseSeal.unit_generation), func.count())
        .join(Case, col(Case.id) == col(CaseSeal.case))
        .where(_is_open(), col(Case.id).in_(exists_for) if exists_for is not None else true())
        .group_by(col(CaseSeal.unit), col(CaseSeal.unit_generation))
    ).all()
    counts = {(unit, generation): count for unit, generation, count in rows}
    return [
        Progress(
            card.unit,
            card.generation,
            counts.get((card.unit, card.generation), 0),
            sum(count for (unit, _), count in counts.items() if unit == card.unit),
        )
        for card in deck.units
    ]


def _is_open() -> Any:
    return col(Case.state) != State.CLOSED


def _append(tx: Tx, ledger: Ledger, who: SignedIn, fields: dict[str, object], now: datetime) -> None:
    event = NewEvent(EventType.UNIT_ROTATED, now, who.viewer.actor, StateClass.SYSTEM, None, fields)
    append(tx, ledger, fixed_chain("keys"), [event])
