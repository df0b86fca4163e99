"""Invitations: a one-time code with which a person makes their own keys, as a newcomer or after a reset.

The code opens nothing and tells nothing. Who hands it out never sees a password, a second factor or a key.
"""

import hashlib
import re
from base64 import b32encode
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID, uuid4

from sqlalchemy import delete, select
from sqlmodel import Session, col

from service import register, staff
from service.db import Sessions, Tx, write
from service.errors import Conflict, Forbidden, InvalidForm, NotFound, WrongCode
from service.ledger.events import Actor, EventType, Ledger, NewEvent, StateClass
from service.models import Invitation, Member, Organisation, RetiredKey, Role, UnitGrant
from service.rights import may_manage
from service.turns import Turns
from service.vault import boxes, members, passwords, totp
from service.vault.members import MemberKeys
from service.walls import Viewer

INVITED = timedelta(days=3)
RESET = timedelta(days=1)
CODE = 15  # bytes, 24 letters and digits
LONGEST_NAME = 80
_ACCOUNT = re.compile(r"[a-z0-9][a-z0-9._-]{1,39}", re.ASCII)


@dataclass(frozen=True, slots=True, repr=False)
class OneTimeCode:
    """A code to hand to a person, shown once. Its repr shows nothing."""

    code: str
    account: str
    expires_at: datetime


def invite(
    tx: Tx,
    ledger: Ledger,
    row_key: bytes,
    by: Viewer,
    *,
    account: str,
    name: str,
    name_km: str,
    organisation: str,
    role: str,
    now: datetime,
) -> OneTimeCode:
    """Store an invitation and return its code, good once and for three days. It tells nothing and opens nothing.

    Raises InvalidForm for a field to correct, Forbidden for somebody who may not invite such people.
    """
    account, name, name_km = staff.account_name(account), name.strip(), name_km.strip()
    if not _ACCOUNT.fullmatch(account):
        raise InvalidForm("account", "Use 2 to 40 of a to z, 0 to 9, dot, hyphen and underscore.")
    if not (name or name_km) or max(len(name), len(name_km)) > LONGEST_NAME:
        raise InvalidForm("name", "Write the person's name, at most 80 characters.")
    if role not in set(Role):
        raise InvalidForm("role", "Choose a role.")
    if tx.get(Organisation, organisation) is None:
        raise InvalidForm("organisation", "Choose an organisation.")
    if not may_manage(by, organisation, role):
        raise Forbidden("This role may not invite such a person.")
    taken = tx.scalar(select(col(Member.id)).where(col(Member.account) == account))
    if taken is not None or any(row.account == account for row in invitations(tx, now)):
        raise InvalidForm("account", "This account name is taken. Choose another.")
    row = Invitation(
        id=uuid4(),
        secret=b"",
        account=account,
        name=name or name_km,
        name_km=name_km or name,
        organisation=organisation,
        role=role,
        inviter=by.member,
        made_at=now,
        expires_at=now + INVITED,
        row_tag=b"",
    )
    return _hand_out(tx, ledger, row_key, by, row, now)


def invite_again(tx: Tx, ledger: Ledger, row_key: bytes, by: Viewer, member: Member, now: datetime) -> OneTimeCode:
    """Return the code with which a member makes new keys, good once and for a day; earlier ones end.

    Called when two persons have agreed to a reset (`service.accounts.sign`).
    """
    for row in invitations(tx, now):
        if row.member == member.id:
            row.ended_at = now
    same = {name: getattr(member, name) for name in ("account", "name", "name_km", "organisation", "role")}
    row = Invitation(
        id=uuid4(),
        secret=b"",
        member=member.id,
        **same,
        inviter=by.member,
        made_at=now,
        expires_at=now + RESET,
        row_tag=b"",
    )
    return _hand_out(tx, ledger, row_key, by, row, now)


def _hand_out(tx: Tx, ledger: Ledger, row_key: bytes, by: Viewer, row: Invitation, now: datetime) -> OneTimeCode:
    letters = b32encode(boxes.random_bytes(CODE)).decode()
    row.secret = _secret(letters)
    row.row_tag = boxes.row_tag(row_key, _invitation_row(row))
    tx.add(row)
    fields = {"invitation": row.id.hex, "role": str(row.role), "organisation": row.organisation}
    if row.member is not None:
        fields["member"] = row.member.hex
    staff.append_to(tx, ledger, by.actor, EventType.INVITATION_MADE, now, **fields)
    code = " ".join(letters[i : i + 4] for i in range(0, len(letters), 4))
    return OneTimeCode(code, row.account, row.expires_at)


def _secret(code: str) -> bytes:
    """Return what is stored of a code, 32 bytes: with 120 random bits in it a plain hash is enough."""
    plain = "".join(code.upper().split())
    return hashlib.blake2b(plain.encode(errors="replace"), digest_size=32, person=b"bamboo-invite-1").digest()


def _invitation_row(row: Invitation) -> dict[str, object]:
    names = ("id", "secret", "member", "account", "name", "name_km", "organisation", "role", "inviter")
    fixed = {name: getattr(row, name) for name in names} | {"expires_at": int(row.expires_at.timestamp())}
    return {"table": "invitation", **fixed}


def invitations(session: Session, now: datetime) -> Sequence[Invitation]:
    """Return the invitations that are good at `now`, newest first."""
    good = (col(Invitation.ended_at).is_(None), col(Invitation.expires_at) > now)
    return session.scalars(select(Invitation).where(*good).order_by(col(Invitation.made_at).desc())).all()


def look_up(session: Session, row_key: bytes, code: str, now: datetime) -> Invitation:
    """Return the invitation of a one-time code. Raises InvalidForm, in the same words whatever is wrong with it."""
    row = session.scalars(select(Invitation).where(col(Invitation.secret) == _secret(code))).one_or_none()
    if row is None or row.ended_at is not None or now >= row.expires_at:
        raise InvalidForm("code", "This code is wrong, used or too old. Ask who invited you for a new one.")
    boxes.check_row_tag(row_key, _invitation_row(row), row.row_tag)
    return row


def take_back(tx: Tx, ledger: Ledger, by: Viewer, invitation_id: UUID, now: datetime) -> None:
    """End an invitation before it is used. Raises NotFound, or Forbidden for somebody who could not have made it."""
    row = tx.get(Invitation, invitation_id)
    if row is None or row.ended_at is not None:
        raise NotFound("There is no such invitation.")
    if not may_manage(by, row.organisation, row.role):
        raise Forbidden("This role may not change that account.")
    row.ended_at = now
    staff.append_to(tx, ledger, by.actor, EventType.INVITATION_ENDED, now, invitation=row.id.hex)


def redeem(
    sessions: Sessions,
    ledger: Ledger,
    row_key: bytes,
    *,
    code: str,
    password: str,
    totp_secret: bytes,
    totp_code: str,
    now: datetime,
    turns: Turns,
    address: str = "",
    parameters: passwords.Parameters | None = None,
) -> Member:
    """Make the keys of a newcomer, or new ones after a reset, under their own password, and return the member.

    totp_secret: 20 bytes that were shown to the person's phone; totp_code: what it shows, so that nobody is locked
    out by a phone that did not take it. After a reset nothing is open: grants are gone until somebody gives them again.
    Raises InvalidForm for what can be corrected, Busy, Conflict when the code was used meanwhile.
    """
    with sessions.read() as session:
        row = look_up(session, row_key, code, now)
        organisation = session.get_one(Organisation, row.organisation)
        known = (row.account, row.name, row.name_km, row.organisation, organisation.name, organisation.name_km)
        before = session.get(Member, row.member) if row.member else None
    if weak := passwords.too_weak(password, known):
        raise InvalidForm("password", weak)
    if len(totp_secret) != members.TOTP:
        raise InvalidForm("totp_code", "Load the page again, and enrol your phone anew.")
    try:
        step = totp.check(totp_secret, totp_code, now, used=None)
    except WrongCode:
        raise InvalidForm("totp_code", "This is not the code that your phone shows now.") from None
    keys = members.new_member_keys()
    keys = MemberKeys(keys.box, keys.signing, totp_secret)
    member = before or Member(
        id=uuid4(),
        account=row.account,
        name=row.name,
        name_km=row.name_km,
        organisation=row.organisation,
        role=row.role,
        **staff.new_columns(keys),
        created_at=now,
    )
    retired = member.signing_public if before else None
    member.totp_used, member.totp_failures, member.totp_after = step, 0, None
    with turns.turn(address, row.account, now):
        staff.rewrap(member, keys, password, parameters)

    def join(tx: Tx) -> Member:
        invitation = tx.get_one(Invitation, row.id)
        if invitation.ended_at is not None:
            raise Conflict("This code was used meanwhile.")
        invitation.ended_at = now
        inviter = tx.get_one(Member, row.inviter)
        by = Actor(inviter.role, inviter.organisation, inviter.id.hex)
        if retired is None:
            staff.add_member(tx, ledger, row_key, member, by, now)
        else:
            _renew(tx, ledger, row_key, member, keys, retired, by, now)
        tx.flush()
        stored = tx.get_one(Member, member.id)
        tx.expunge(stored)
        return stored

    return write(sessions, join)


def _renew(
    tx: Tx,
    ledger: Ledger,
    row_key: bytes,
    fresh: Member,
    keys: MemberKeys,
    retired: bytes,
    by: Actor,
    now: datetime,
) -> None:
    """Put new keys in the place of a member's old ones; whatever was sealed to those goes (keys.md section 6.9)."""
    register.require_whole(tx, row_key)
    member = tx.get_one(Member, fresh.id)
    old = RetiredKey(signing_public=retired, member=member.id, retired_at=now, row_tag=b"")
    old.row_tag = boxes.row_tag(row_key, staff.retired_row(old))
    tx.add(old)
    for name in ("parameters", "auth", "wrapped", "totp_used", "totp_failures", "totp_after"):
        setattr(member, name, getattr(fresh, name))
    member.box_public, member.signing_public = keys.box_public, keys.signing_public
    member.row_tag = boxes.row_tag(row_key, staff.member_row(member))
    member.disabled_at = None
    staff.end_sessions(tx, ledger, by, member.id, now)
    tx.execute(delete(UnitGrant).where(col(UnitGrant.member) == member.id))
    fields = {"member": member.id.hex, "role": str(member.role), "tag": member.row_tag.hex(), "reset": True}
    event = NewEvent(EventType.MEMBER_JOINED, now, by, StateClass.SYSTEM, fields=fields)
    register.append_change(tx, ledger, row_key, event)
