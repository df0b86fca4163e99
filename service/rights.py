"""Who may do what to whose account (casework.md section 1)."""

from enum import StrEnum
from uuid import UUID

from sqlmodel import Session

from service import register
from service.errors import Forbidden, NotFound
from service.models import AccountChange, Member, Role
from service.vault.cards import UnitKind
from service.walls import Viewer

INDEPENDENT = frozenset({Role.OVERSIGHT, Role.AUDITOR, Role.ADMIN})  # they watch others, or make accounts


class ChangeKind(StrEnum):
    """What takes two persons."""

    ROLE = "role"
    RESET = "reset"
    REGISTER = "register"


def may_manage(by: Viewer, organisation: str, *roles: str) -> bool:
    """Say whether `by` may invite, change, reset or bar people of an organisation in these roles.

    An administrator may for all; a supervisor for those of the own organisation who neither watch others nor
    administer: no unit appoints its oversight (casework.md section 1).
    """
    if by.role == Role.ADMIN:
        return True
    return by.role == Role.SUPERVISOR and by.organisation == organisation and not INDEPENDENT & set(roles)


def may_see(by: Viewer, organisation: str) -> bool:
    """Say whether `by` sees the people of an organisation: the own one's, or all for who watches or administers."""
    return by.role in INDEPENDENT or by.organisation == organisation


def may_sign(by: Viewer, change: AccountChange, member: Member | None, proposer: Member) -> bool:
    """Say whether `by` may be the second person of a change.

    Never the proposer or the person it is about, and only somebody with a seat, which a member gave in person: an
    administrator who invents an account gains no signature. Oversight, or a supervisor for people of the own
    organisation. Where a role that watches others or administers is given, taken or reset, it is oversight of another
    organisation than the proposer's; the register is accepted by two of oversight or integrity.
    """
    if by.member in (change.proposer, change.member):
        return False
    if change.kind == ChangeKind.REGISTER or member is None:
        return may_accept(by)
    watches = any(seat.kind == UnitKind.OVERSIGHT for seat in by.seats)
    if INDEPENDENT & {member.role, change.role}:
        return watches and by.organisation != proposer.organisation
    supervises = by.role == Role.SUPERVISOR and bool(by.seats)
    return watches or (supervises and may_manage(by, member.organisation, member.role, change.role or ""))


def may_accept(by: Viewer) -> bool:
    """Say whether `by` sits where people still work when the register of people differs."""
    return any(seat.kind in register.WITHOUT_REGISTER for seat in by.seats)


def check_manage(by: Viewer, member: Member, *roles: str) -> None:
    """Return if `by` may change the account of `member`, who has or gets these roles. Raises Forbidden."""
    if by.member == member.id or not may_manage(by, member.organisation, member.role, *roles):
        raise Forbidden("This role may not change that account.")


def find(session: Session, by: Viewer, member_id: UUID) -> Member:
    """Return a member whom `by` may see. Raises NotFound, also for one whom they may not."""
    member = session.get(Member, member_id)
    if member is None or not (member.id == by.member or may_see(by, member.organisation)):
        raise NotFound("There is nobody here.")
    return member
