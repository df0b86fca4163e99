"""The register of people: all members and all grants, checked whole (keys.md section 3).

Row tags show a changed row, never a missing or a planted one. So each event that changes the register carries a
keyed tag over all of it, bound to the event's own place; a register that does not fit its newest event was changed
outside the system, and only integrity and oversight work until two persons have looked.
"""

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime

from sqlalchemy import select
from sqlmodel import Session, col

from service.db import Sessions, Tx, write
from service.errors import WrongState
from service.ledger.events import SYSTEM, EventType, Ledger, NewEvent, StateClass, append, fixed_chain
from service.models import LedgerEvent, LedgerField, LedgerHead, Member, Role, UnitGrant
from service.vault import boxes
from service.vault.cards import UnitKind

FIELD = "register"
CHAIN = fixed_chain("staff")
TRIES = 3

# Which units a role sits in (casework.md section 1). An administrator sits in none, and so holds no key of a case;
# an auditor sits anywhere for the histories, and `service.reading` shows them no content.
SITS: Mapping[str, frozenset[str]] = {
    Role.SCREENER: frozenset({UnitKind.SCREENING}),
    Role.INVESTIGATOR: frozenset({UnitKind.UNIT, UnitKind.INTEGRITY}),
    Role.SUPERVISOR: frozenset({UnitKind.SCREENING, UnitKind.UNIT, UnitKind.INTEGRITY}),
    # Not of the owner's employer: the screening unit, which holds every case and is none of the state's, is one place.
    Role.ADVOCATE: frozenset({UnitKind.SCREENING, UnitKind.UNIT, UnitKind.INTEGRITY}),
    Role.LEGAL: frozenset({UnitKind.SCREENING, UnitKind.UNIT, UnitKind.INTEGRITY}),
    Role.OVERSIGHT: frozenset({UnitKind.OVERSIGHT, UnitKind.MONITOR}),
    Role.AUDITOR: frozenset(UnitKind),
    Role.ADMIN: frozenset(),
}
WITHOUT_REGISTER = frozenset({UnitKind.INTEGRITY, UnitKind.OVERSIGHT})  # who still works when the register differs


def may_sit(role: str, kind: str) -> bool:
    """Say whether somebody of `role` may hold the key of a unit of `kind`."""
    return kind in SITS.get(role, frozenset())


def append_change(tx: Tx, ledger: Ledger, row_key: bytes, event: NewEvent, *, whole: bool = True) -> None:
    """Append an event that changes the register, with the tag of the register as it stands in `tx` now.

    whole: what `begin_change` said. If not, the event carries no tag: a change of ours must not make
    good what somebody else did.
    """
    tx.flush()
    if not whole:
        append(tx, ledger, CHAIN, [event])
        return
    head = tx.scalar(select(col(LedgerHead.seq)).where(col(LedgerHead.case) == CHAIN))
    seq = (-1 if head is None else head) + 1
    tag = _tag(tx, row_key, seq)
    append(tx, ledger, CHAIN, [replace(event, fields={**event.fields, FIELD: tag.hex()})])


def is_whole(sessions: Sessions, row_key: bytes) -> bool:
    """Say whether members and grants are those of the newest event that changed them.

    A database from before such events counts as whole until the first one.
    """
    # On PostgreSQL two statements may see two moments: what differs is looked at again before anybody is told so.
    for _ in range(TRIES):
        with sessions.read() as session:
            if fits(session, row_key):
                return True
    return False


def begin_change(tx: Tx, row_key: bytes) -> bool:
    """Say whether the register fits, and let nobody else change it until this transaction ends.

    The first thing that a change of the register does: on PostgreSQL another one could commit between two looks.
    """
    tx.scalar(select(col(LedgerHead.seq)).where(col(LedgerHead.case) == CHAIN).with_for_update())
    return fits(tx, row_key)


def require_whole(tx: Tx, row_key: bytes) -> None:
    """Begin a change. Raises WrongState: nobody is let in over a register that somebody changed outside."""
    if not begin_change(tx, row_key):
        raise WrongState(
            "The register of people was changed outside the system. Nobody is let in until two have looked."
        )


def fits(session: Session, row_key: bytes) -> bool:
    """Say whether members and grants are those of the newest event that changed them, as this session sees them."""
    newest = session.execute(
        select(col(LedgerEvent.seq), col(LedgerField.value))
        .join(LedgerField, (col(LedgerField.eid) == col(LedgerEvent.eid)) & (col(LedgerField.name) == FIELD))
        .where(col(LedgerEvent.case) == CHAIN)
        .order_by(col(LedgerEvent.seq).desc())
        .limit(1)
    ).one_or_none()
    if newest is None:
        return True
    seq, value = newest
    return hmac.compare_digest(str(json.loads(value)), _tag(session, row_key, seq).hex())


def report(sessions: Sessions, ledger: Ledger, row_key: bytes, now: datetime) -> None:
    """Append that the register differs, once for each state that it is found in."""

    def tell(tx: Tx) -> None:
        if found := _untold(tx, row_key):
            event = NewEvent(EventType.REGISTER_DIFFERS, now, SYSTEM, StateClass.SYSTEM, fields={"found": found})
            append(tx, ledger, CHAIN, [event])

    with sessions.read() as session:
        untold = _untold(session, row_key)
    if untold:  # it is asked at every request: nearly always there is nothing to write
        write(sessions, tell)


def _untold(session: Session, row_key: bytes) -> str:
    """Return what the register is now, if it differs and no event has said so of this state; else nothing."""
    if fits(session, row_key):
        return ""
    found = _tag(session, row_key, 0).hex()
    told = (
        select(col(LedgerField.value))
        .join(LedgerEvent, col(LedgerEvent.eid) == col(LedgerField.eid))
        .where(
            col(LedgerEvent.case) == CHAIN,
            col(LedgerEvent.type) == EventType.REGISTER_DIFFERS,
            col(LedgerField.name) == "found",
        )
    )
    return "" if found in {str(json.loads(value)) for value in session.scalars(told)} else found


def _tag(session: Session, row_key: bytes, seq: int) -> bytes:
    """Return the tag of all members and grants for event `seq`, 32 bytes."""
    members = session.execute(
        select(col(Member.id), col(Member.row_tag), col(Member.disabled_at).is_(None)).order_by(col(Member.id))
    ).all()
    grants = session.execute(
        select(
            *(col(UnitGrant.unit), col(UnitGrant.generation), col(UnitGrant.member), col(UnitGrant.granter)),
            col(UnitGrant.sealed),
        )
    ).all()
    lines = sorted(f"member|{id_.hex}|{tag.hex()}|{int(bool(works))}" for id_, tag, works in members)
    lines += sorted(
        f"grant|{unit}|{generation}|{member.hex}|{granter.hex}|{hashlib.sha256(sealed).hexdigest()}"
        for unit, generation, member, granter, sealed in grants
    )
    return boxes.keyed_name(row_key, "\n".join([f"register|{seq}", *lines]).encode(), boxes.ROW)
