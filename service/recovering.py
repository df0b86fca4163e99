"""When nobody of a unit can sign in any more: two of three organisations give its key to a named member (keys.md 6.10).

What is needed leaves the host as a bundle, is opened on a machine without a network, and comes back as a line for one
member, who alone can open it. Each use is an event, public by count.
"""

import json
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import select
from sqlmodel import Session, col

from service import staff
from service.canonical import canonical
from service.db import Tx
from service.errors import CannotOpen, Conflict, Invalid
from service.ledger.events import Actor, EventType, Ledger, NewEvent, StateClass, append, fixed_chain
from service.models import Member, UnitGrant, UnitRecovery
from service.vault import boxes, recovery
from service.vault.boxes import context_of
from service.vault.cards import Cards
from service.vault.members import MemberKeys

BUNDLE, GIVEN = "bamboo recovery/v1", "bamboo recovered/v1"


@dataclass(frozen=True, slots=True)
class Given:
    """A unit's private half sealed to one member, as it comes back from the machine without a network."""

    unit: str
    generation: int
    member: UUID
    sealed: bytes
    custodians: tuple[str, str]


def fingerprint(public: bytes) -> str:
    """Return what people compare aloud of a public key: eight groups of four hex digits of its SHA-256."""
    digest = boxes.H(public).hex()[:32]
    return " ".join(digest[at : at + 4] for at in range(0, 32, 4))


def keep(tx: Tx, deck: Cards, privates: Mapping[str, bytes]) -> None:
    """Keep units' private halves sealed to the recovery key of the cards. Raises CannotOpen for a key of no unit."""
    if deck.recovery is None:
        return
    for unit, private in privates.items():
        card = deck.unit(unit)
        if boxes.public_of(private) != card.public:
            raise CannotOpen("the key is not the unit's")
        sealed = recovery.seal_unit(deck.recovery, unit, card.generation, private)
        tx.add(UnitRecovery(unit=unit, generation=card.generation, sealed=sealed))
    tx.flush()


def bundle(session: Session, row_key: bytes, deck: Cards, account: str) -> str:
    """Return what the machine without a network needs to give a member all units' keys; it opens nothing by itself.

    Raises Invalid for an account that is not there or closed, CannotOpen for a member's row that was planted.
    """
    member = session.scalars(select(Member).where(col(Member.account) == staff.account_name(account))).one_or_none()
    if member is None or member.disabled_at is not None:
        raise Invalid("there is no such account, or it is closed")
    boxes.check_row_tag(row_key, staff.member_row(member), member.row_tag)
    rows = session.scalars(select(UnitRecovery).order_by(col(UnitRecovery.unit), col(UnitRecovery.generation))).all()
    seals = [{"unit": row.unit, "g": row.generation, "sealed": b64encode(row.sealed).decode()} for row in rows]
    told = {"id": member.id.hex, "account": member.account, "key": b64encode(member.box_public).decode()}
    return canonical({"form": BUNDLE, "member": told, "seals": seals}).decode() + "\n"


def give(text: str, recovery_private: bytes, deck: Cards, unit: str, custodians: tuple[str, str]) -> str:
    """Return a unit's key of a bundle, sealed to the bundle's member: done on the machine without a network.

    The member's fingerprint was compared in person before. Raises Invalid for a bundle that is none or lacks the unit's
    present key, CannotOpen when the recovery key does not open it or gives another key than the cards'.
    """
    found = _read(text, BUNDLE)
    card = deck.unit(unit)
    try:
        seals = {(row["unit"], row["g"]): b64decode(row["sealed"]) for row in found["seals"]}
        member, public = UUID(found["member"]["id"]), b64decode(found["member"]["key"])
        sealed = seals[(unit, card.generation)]
    except (KeyError, TypeError, ValueError):
        raise Invalid("this is no bundle with the unit's present key") from None
    private = recovery.open_unit(recovery_private, unit, card.generation, sealed, unit_public=card.public)
    given = boxes.seal(public, context_of("unit", unit, card.generation, member), private)
    told = {"unit": unit, "g": card.generation, "member": member.hex, "sealed": b64encode(given).decode()}
    return canonical({"form": GIVEN, **told, "custodians": list(custodians)}).decode() + "\n"


def read_given(text: str) -> Given:
    """Return what `give` wrote. Raises Invalid."""
    found = _read(text, GIVEN)
    try:
        first, second = found["custodians"]
        return Given(found["unit"], found["g"], UUID(found["member"]), b64decode(found["sealed"]), (first, second))
    except (KeyError, TypeError, ValueError):
        raise Invalid("this is not what the recovery wrote") from None


def take(
    tx: Tx, ledger: Ledger, row_key: bytes, deck: Cards, given: Given, member: Member, keys: MemberKeys, now: datetime
) -> None:
    """Grant a recovered unit key to the member it was sealed to, signed by that member, and append that it was used.

    Raises CannotOpen when it is for somebody else or another unit, Conflict when the member holds it already.
    """
    card = deck.at(given.unit, given.generation)
    if given.member != member.id:
        raise CannotOpen("this key was given to somebody else")
    if tx.get(UnitGrant, (given.unit, given.generation, member.id)) is not None:
        raise Conflict("This member holds the unit's key already.")
    private = boxes.unseal(keys.box, context_of("unit", given.unit, given.generation, member.id), given.sealed)
    if len(private) != boxes.KEY or boxes.public_of(private) != card.public:
        raise CannotOpen("the key is not the one that the cards name")
    fields = {"unit": given.unit, "generation": given.generation, "custodians": list(given.custodians)}
    actor = Actor(member.role, member.organisation, member.id.hex)
    event = NewEvent(EventType.RECOVERY_USED, now, actor, StateClass.SYSTEM, None, fields)
    append(tx, ledger, fixed_chain("keys"), [event])
    staff.grant(tx, ledger, row_key, card, private, member, member, keys, now)


def _read(text: str, form: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        raise Invalid("this file is damaged") from None
    if not isinstance(found, dict) or found.get("form") != form:
        raise Invalid("this file is another one than the one asked for")
    return found
