"""Accounts as people change them: joining a unit, leaving, roles, reset, a new password.

A unit's key is given by somebody who holds it: who administers accounts gains none (casework.md section 1, keys.md
section 6, flows 7 and 9). What opens or frees takes two persons; what closes a door takes one, at once.
"""

import hashlib
import hmac
from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import partial
from uuid import UUID, uuid4

from sqlalchemy import func, select
from sqlmodel import Session, col

from service import invitations, register, staff
from service.db import Sessions, Tx, write
from service.errors import Conflict, Forbidden, InvalidForm, NotFound, WrongState
from service.ledger.events import EventType, Ledger, NewEvent, StateClass
from service.models import AccountChange, Member, Organisation, Role, Unit, UnitGrant
from service.rights import ChangeKind, check_manage, find, may_accept, may_sign
from service.staff import SignedIn
from service.turns import Turns
from service.vault import boxes, passwords
from service.vault.cards import Cards
from service.walls import Viewer

OPEN = timedelta(days=7)  # how long a proposal waits for its second person
_DIGITS = str.maketrans("០១២៣៤៥៦៧៨៩", "0123456789")


# --- joining a unit ---------------------------------------------------------------------------------------


def fingerprint(member: Member) -> str:
    """Return what two people compare in person: 30 digits of the member's public keys, in groups of five.

    About 99 bits: nobody finds another pair of keys with the same digits.
    """
    data = b"bamboo fingerprint v1" + member.id.bytes + member.box_public + member.signing_public
    digits = f"{int.from_bytes(hashlib.sha256(data).digest()) % 10**30:030}"
    return " ".join(digits[i : i + 5] for i in range(0, 30, 5))


def admit(
    sessions: Sessions,
    ledger: Ledger,
    row_key: bytes,
    deck: Cards,
    who: SignedIn,
    *,
    member_id: UUID,
    unit: str,
    read_out: str,
    now: datetime,
) -> None:
    """Give a unit's key to a newcomer whose fingerprint was read out in person, signed by who gives it (keys.md 6.7).

    read_out: the digits that the newcomer read from the own page, typed by the one who admits. Digits that do not fit
    are an event. Raises InvalidForm for those, StepUpNeeded, Forbidden, NotFound, WrongState when they have a seat.
    """
    staff.require_step_up(who, now)
    card = next((card for card in deck.units if card.unit == unit and unit in who.viewer.units), None)
    if card is None:
        raise Forbidden("Only somebody who sits in the unit lets others in.")
    with sessions.read() as session:
        member = find(session, who.viewer, member_id)
    if member.id == who.viewer.member or member.disabled_at is not None:
        raise WrongState("This account cannot be let in.")
    boxes.check_row_tag(row_key, staff.member_row(member), member.row_tag)
    if member.organisation != card.organisation or not register.may_sit(member.role, card.kind):
        raise Forbidden("This role has no seat in such a unit.")
    digits = "".join(c for c in read_out.translate(_DIGITS) if c.isascii() and c.isdigit())
    if not hmac.compare_digest(digits, fingerprint(member).replace(" ", "")):
        fields = {"member": member.id.hex, "unit": unit}
        write(
            sessions, lambda tx: staff.append_to(tx, ledger, who.viewer.actor, EventType.MEMBER_REFUSED, now, **fields)
        )
        raise InvalidForm(
            "fingerprint", "These are not the digits of this account. Compare again, and let nobody in before."
        )

    def give(tx: Tx) -> None:
        present = tx.get_one(Member, member.id)
        if present.row_tag != member.row_tag or present.disabled_at is not None:
            raise Conflict("This account has changed meanwhile.")
        if tx.get(UnitGrant, (card.unit, card.generation, member.id)) is not None:
            raise WrongState("This account sits in the unit already.")
        granter = tx.get_one(Member, who.viewer.member)
        private = staff.unit_private(tx, row_key, card, who)
        staff.grant(tx, ledger, row_key, card, private, present, granter, who.keys, now)

    write(sessions, give)


# --- closing doors ----------------------------------------------------------------------------------------------


def end_sessions(tx: Tx, ledger: Ledger, by: Viewer, member_id: UUID, now: datetime) -> int:
    """End all sessions of another person and return how many there were. Raises Forbidden or NotFound."""
    member = find(tx, by, member_id)
    check_manage(by, member)
    return staff.end_sessions(tx, ledger, by.actor, member.id, now)


def leave(
    tx: Tx, ledger: Ledger, row_key: bytes, by: Viewer, member_id: UUID, now: datetime, *, last: bool = False
) -> None:
    """Bar a member at once: no session, no seal, no sign-in. Their units are marked as needing a new key.

    last: also when nobody else holds the present key of one of those units; only two custodians bring that back.
    Raises Forbidden, NotFound, WrongState for a member who has left, or is the last one.
    """
    member = find(tx, by, member_id)
    check_manage(by, member)
    invited = [row for row in invitations.invitations(tx, now) if row.member == member.id]
    if member.disabled_at is not None and not invited:
        raise WrongState("This account has left already.")
    if not last and _alone_in(tx, member.id):
        raise WrongState("Nobody else holds the key of a unit of theirs. Let somebody in first.")
    whole = register.begin_change(tx, row_key)
    member.disabled_at = now
    staff.end_sessions(tx, ledger, by.actor, member.id, now)
    units = _take_grants(tx, member.id, None, now)
    for row in invited:
        row.ended_at = now
    event = NewEvent(
        EventType.MEMBER_LEFT, now, by.actor, StateClass.SYSTEM, fields={"member": member.id.hex, "units": units}
    )
    register.append_change(tx, ledger, row_key, event, whole=whole)


def _alone_in(session: Session, member: UUID) -> list[str]:
    """Return the units whose newest key this member alone holds."""
    newest = select(col(UnitGrant.unit), func.max(col(UnitGrant.generation)).label("g")).group_by(col(UnitGrant.unit))
    present = newest.subquery()
    holders = (
        select(col(UnitGrant.unit))
        .join(present, (present.c.unit == col(UnitGrant.unit)) & (present.c.g == col(UnitGrant.generation)))
        .join(Member, col(Member.id) == col(UnitGrant.member))
        .where(col(Member.disabled_at).is_(None))
        .group_by(col(UnitGrant.unit))
        .having(func.count() == 1, func.max(col(UnitGrant.member)) == member)
    )
    return list(session.scalars(holders).all())


def _take_grants(tx: Tx, member: UUID, kinds: frozenset[str] | None, now: datetime) -> list[str]:
    """Delete a member's grants, but for units of `kinds`, and mark the units: who has left remembers the key."""
    rows = tx.execute(
        select(UnitGrant, Unit).join(Unit, col(Unit.id) == col(UnitGrant.unit)).where(col(UnitGrant.member) == member)
    ).all()
    taken = [(given, unit) for given, unit in rows if kinds is None or unit.kind not in kinds]
    for given, unit in taken:
        if unit.stale_generation is None or unit.stale_generation < given.generation:
            unit.stale_generation, unit.stale_since = given.generation, now
        tx.delete(given)
    return sorted({unit.id for _, unit in taken})


def needs_new_key(unit: Unit, deck: Cards) -> bool:
    """Say whether somebody who has left knows the unit's present key: the next generation ends that (keys.md 6.7)."""
    card = next((card for card in deck.units if card.unit == unit.id), None)
    return card is not None and unit.stale_generation is not None and card.generation <= unit.stale_generation


# --- what takes two persons -------------------------------------------------------------------------------


def propose(
    tx: Tx,
    ledger: Ledger,
    row_key: bytes,
    by: Viewer,
    kind: ChangeKind,
    *,
    now: datetime,
    member_id: UUID | None = None,
    role: str | None = None,
    last: bool = False,
) -> UUID:
    """Store a change that a second person must sign, append it, and return its id.

    last: a reset also when nobody else holds the present key of a unit of theirs, as for `leave`.
    Raises Forbidden, NotFound, InvalidForm for a role that is none, WrongState when the same waits already.
    """
    fields: dict[str, str] = {}
    if kind is ChangeKind.REGISTER:
        if not may_accept(by):
            raise Forbidden("Only integrity and oversight accept the register.")
    else:
        if kind is ChangeKind.ROLE and role not in set(Role):
            raise InvalidForm("role", "Choose a role.")
        member = find(tx, by, member_id or UUID(int=0))
        check_manage(by, member, *([role] if role else []))
        if member.role == role:
            raise WrongState("There is nothing to change.")
        if kind is ChangeKind.RESET and not last and _alone_in(tx, member.id):
            raise WrongState("Nobody else holds the key of a unit of theirs. Let somebody in first.")
        fields = {"member": member.id.hex} | ({"role": str(role)} if role else {})
    if any((c.kind, c.member) == (kind, member_id) for c in changes(tx, now)):
        raise WrongState("The same waits for its second person already.")
    row = AccountChange(
        id=uuid4(), kind=kind, member=member_id, role=role, proposer=by.member, proposed_at=now, row_tag=b""
    )
    row.row_tag = boxes.row_tag(row_key, _change_row(row))
    tx.add(row)
    tx.flush()
    proposed = {
        ChangeKind.ROLE: EventType.ROLE_PROPOSED,
        ChangeKind.RESET: EventType.RESET_PROPOSED,
        ChangeKind.REGISTER: EventType.REGISTER_PROPOSED,
    }[kind]
    staff.append_to(tx, ledger, by.actor, proposed, now, change=row.id.hex, **fields)
    return row.id


def _change_row(row: AccountChange) -> dict[str, object]:
    fixed = {name: getattr(row, name) for name in ("id", "kind", "member", "role", "proposer")}
    fixed["kind"] = str(row.kind)
    return {"table": "account_change", **fixed, "proposed_at": int(row.proposed_at.timestamp())}


def changes(session: Session, now: datetime) -> Sequence[AccountChange]:
    """Return the changes that wait for their second person at `now`, oldest first."""
    waiting = (col(AccountChange.decided_at).is_(None), col(AccountChange.proposed_at) > now - OPEN)
    return session.scalars(select(AccountChange).where(*waiting).order_by(col(AccountChange.proposed_at))).all()


def sign(
    tx: Tx, ledger: Ledger, row_key: bytes, by: Viewer, change_id: UUID, now: datetime
) -> invitations.OneTimeCode | None:
    """Sign a change as its second person, and carry it out. Returns the code to hand over after a reset.

    A reset bars the account at once: no session, no sign-in, until its person has made new keys with the code. A new
    role takes the seats that do not belong to it. Raises NotFound, Forbidden, CannotOpen for a planted row.
    """
    row = _waiting(tx, row_key, change_id, now)
    member = tx.get(Member, row.member) if row.member else None
    if not may_sign(by, row, member, tx.get_one(Member, row.proposer)):
        raise Forbidden("Another person must sign this.")
    row.decided_at = now
    fields = {"change": row.id.hex, "proposer": row.proposer.hex}
    if member is None:
        event = NewEvent(EventType.REGISTER_ACCEPTED, now, by.actor, StateClass.SYSTEM, fields=fields)
        register.append_change(tx, ledger, row_key, event)
        return None
    fields["member"] = member.id.hex
    whole = register.begin_change(tx, row_key)
    staff.end_sessions(tx, ledger, by.actor, member.id, now)
    if row.kind == ChangeKind.RESET:
        member.disabled_at = now
        event = NewEvent(EventType.RESET_APPROVED, now, by.actor, StateClass.SYSTEM, fields=fields)
        register.append_change(tx, ledger, row_key, event, whole=whole)
        return invitations.invite_again(tx, ledger, row_key, by, member, now)
    role = row.role or ""
    register.require_whole(tx, row_key)
    member.role = role
    member.row_tag = boxes.row_tag(row_key, staff.member_row(member))
    _take_grants(tx, member.id, register.SITS[role], now)
    event = NewEvent(EventType.ROLE_CHANGED, now, by.actor, StateClass.SYSTEM, fields=fields | {"role": role})
    register.append_change(tx, ledger, row_key, event)
    return None


def refuse(tx: Tx, ledger: Ledger, row_key: bytes, by: Viewer, change_id: UUID, now: datetime) -> None:
    """End a change unsigned: by its proposer, or whoever could sign it. Raises NotFound or Forbidden."""
    row = _waiting(tx, row_key, change_id, now)
    member = tx.get(Member, row.member) if row.member else None
    if by.member != row.proposer and not may_sign(by, row, member, tx.get_one(Member, row.proposer)):
        raise Forbidden("Another person must sign this.")
    row.decided_at = now
    staff.append_to(tx, ledger, by.actor, EventType.CHANGE_REFUSED, now, change=row.id.hex)


def _waiting(tx: Tx, row_key: bytes, change_id: UUID, now: datetime) -> AccountChange:
    row = tx.get(AccountChange, change_id)
    if row is None or row.decided_at is not None or now >= row.proposed_at + OPEN:
        raise NotFound("There is no such proposal.")
    boxes.check_row_tag(row_key, _change_row(row), row.row_tag)
    return row


# --- the own account --------------------------------------------------------------------------------------


def change_password(
    sessions: Sessions,
    ledger: Ledger,
    row_key: bytes,
    who: SignedIn,
    *,
    password: str,
    code: str,
    new: str,
    now: datetime,
    turns: Turns,
    address: str = "",
    parameters: passwords.Parameters | None = None,
) -> None:
    """Put the person's keys under a new password, and end their other sessions (keys.md section 6.9).

    The keys stay the same, so nothing is lost and nothing opens that did not. Raises InvalidForm for a new password
    that is guessed easily, and what `staff.sign_in` raises.
    """
    with sessions.read() as session:
        member = session.get_one(Member, who.viewer.member)
        organisation = session.get_one(Organisation, member.organisation)
    known = (member.account, member.name, member.name_km, member.organisation, organisation.name, organisation.name_km)
    if weak := passwords.too_weak(new, known):
        raise InvalidForm("new", weak)
    prove = partial(staff.prove, now=now, turns=turns, address=address)
    keys, step, member = prove(sessions, ledger, row_key, member, member.account, password, code)
    wrapped = member.wrapped
    with turns.turn(address, member.account, now):
        staff.rewrap(member, keys, new, parameters)

    def change(tx: Tx) -> None:
        staff.use_code(tx, member, step)
        row = tx.get_one(Member, member.id, populate_existing=True)
        if row.wrapped != wrapped:
            raise Conflict("This account has changed meanwhile.")
        row.parameters, row.auth, row.wrapped = member.parameters, member.auth, member.wrapped
        staff.end_sessions(tx, ledger, who.viewer.actor, row.id, now, keep=who.session)
        staff.append_to(tx, ledger, who.viewer.actor, EventType.PASSWORD_CHANGED, now, member=row.id.hex)

    write(sessions, change)
