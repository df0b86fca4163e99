"""Other people's accounts: invite, let into a unit, end sessions, bar, and propose what takes two persons."""

import re
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Form, Request, Response
from fastapi.responses import RedirectResponse
from sqlalchemy import select
from sqlmodel import Session, col

from dashboards import terms
from dashboards.desk import Desk, InWords, OurDesk, Who, unit_names
from dashboards.forms import StaffForm
from dashboards.pages import render
from dashboards.staff import frame
from dashboards.words import Words, mark
from service import accounts, invitations, register, staff
from service.db import write
from service.errors import InvalidForm, NotFound
from service.invitations import OneTimeCode
from service.models import Member, Organisation, Role, UnitGrant
from service.rights import ChangeKind, find, may_manage
from service.staff import SignedIn

router = APIRouter()

# What the domain says of a field; its own words are English.
CORRECTIONS = (
    mark("Use 2 to 40 of a to z, 0 to 9, dot, hyphen and underscore."),
    mark("Write the person's name, at most 80 characters."),
    mark("Choose a role."),
    mark("Choose an organisation."),
    mark("This account name is taken. Choose another."),
    mark("These are not the digits of this account. Compare again, and let nobody in before."),
)

_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)


def _read(text: str) -> UUID:
    if not _ID.fullmatch(text):
        raise NotFound("There is nothing here.")
    return UUID(text)


def read_member_id(member_id: str) -> UUID:
    """Return a member's id. One that is malformed does not exist."""
    return _read(member_id)


def read_invitation_id(invitation_id: str) -> UUID:
    """Return an invitation's id."""
    return _read(invitation_id)


def read_change_id(change_id: str) -> UUID:
    """Return the id of a change that takes two persons."""
    return _read(change_id)


MemberId = Annotated[UUID, Depends(read_member_id)]
InvitationId = Annotated[UUID, Depends(read_invitation_id)]
ChangeId = Annotated[UUID, Depends(read_change_id)]


# --- a person ---


@router.get("/staff/people/{member_id}")
def show(request: Request, member_id: MemberId, desk: OurDesk, who: Who, words: InWords) -> Response:
    """Show a person, and what the viewer may do about their account."""
    return _show(request, member_id, desk, who, words)


def _show(
    request: Request, member_id: UUID, desk: Desk, who: SignedIn, words: Words, fault: InvalidForm | None = None
) -> Response:
    viewer, now = who.viewer, desk.clock()
    with desk.sessions.read() as session:
        member = find(session, viewer, member_id)
        units = unit_names(session, words)
        seats = session.scalars(select(col(UnitGrant.unit)).where(col(UnitGrant.member) == member.id).distinct()).all()
        manages = member.id != viewer.member and may_manage(viewer, member.organisation, member.role)
        sessions = staff.sessions_of(session, member.id, now)
        values: dict[str, Any] = {
            "member": {
                "id": str(member.id),
                "name": words.of_two(member.name, member.name_km),
                "account": member.account,
                "role": terms.term(words, terms.ROLES, member.role),
                "units": [units.get(unit, unit) for unit in sorted(seats)],
                "barred": words.day_and_hour(member.disabled_at, now) if member.disabled_at else "",
            },
            "sessions": words.digits(len(sessions)) if sessions else "",
            "manages": manages,
            "roles": _roles(words, who, member.organisation, but=member.role),
            "admits": [] if member.disabled_at else _admits(desk, who, member, seats, units),
            "stepped": who.stepped_up_until is not None,
            "error": words(str(fault)) if fault else "",
            "field": fault.field if fault else "",
        }
        around = frame(request, words, units)
    here = f"/staff/people/{member_id}"
    return render(request, "person.html", status=422 if fault else 200, here=here, page="staff", **around, **values)


def _roles(words: Words, who: SignedIn, organisation: str, but: str = "") -> list[dict[str, str]]:
    return [
        {"value": role.value, "label": terms.term(words, terms.ROLES, role)}
        for role in Role
        if role != but and may_manage(who.viewer, organisation, role)
    ]


def _admits(desk: Desk, who: SignedIn, member: Member, seats: Any, units: dict[str, str]) -> list[dict[str, str]]:
    """Return the units that the viewer could let `member` into."""
    return [
        {"value": seat.unit, "label": units.get(seat.unit, seat.unit)}
        for seat in who.viewer.seats
        if member.id != who.viewer.member
        and seat.unit not in seats
        and seat.organisation == member.organisation
        and register.may_sit(member.role, seat.kind)
    ]


class AdmitForm(StaffForm):
    """The unit, and the digits that the newcomer read out."""

    unit: str
    fingerprint: str = ""


@router.post("/staff/people/{member_id}/admit")
def admit(
    request: Request,
    member_id: MemberId,
    form: Annotated[AdmitForm, Form()],
    desk: OurDesk,
    who: Who,
    words: InWords,
) -> Response:
    """Let a newcomer into a unit."""
    try:
        accounts.admit(
            desk.sessions,
            desk.ledger,
            desk.row_key,
            desk.cards,
            who,
            member_id=member_id,
            unit=form.unit,
            read_out=form.fingerprint,
            now=desk.clock(),
        )
    except InvalidForm as fault:
        return _show(request, member_id, desk, who, words, fault)
    return RedirectResponse("/staff?done=done", 303)


@router.post("/staff/people/{member_id}/end-sessions")
def end_sessions(member_id: MemberId, form: Annotated[StaffForm, Form()], desk: OurDesk, who: Who) -> Response:
    """End all sessions of another person: one person is enough, and nothing else changes."""
    now = desk.clock()
    write(desk.sessions, lambda tx: accounts.end_sessions(tx, desk.ledger, who.viewer, member_id, now))
    return RedirectResponse("/staff?done=sessions", 303)


class LeaveForm(StaffForm):
    """Whether the person leaves, or is reset, though nobody else holds the key."""

    last: str = ""


@router.post("/staff/people/{member_id}/leave")
def leave(member_id: MemberId, form: Annotated[LeaveForm, Form()], desk: OurDesk, who: Who) -> Response:
    """Bar a person at once."""
    staff.require_step_up(who, desk.clock())
    last = form.last == "yes"
    write(
        desk.sessions,
        lambda tx: accounts.leave(tx, desk.ledger, desk.row_key, who.viewer, member_id, desk.clock(), last=last),
    )
    return RedirectResponse("/staff?done=done", 303)


class RoleForm(StaffForm):
    """The new role."""

    role: str = ""


@router.post("/staff/people/{member_id}/role")
def propose_role(member_id: MemberId, form: Annotated[RoleForm, Form()], desk: OurDesk, who: Who) -> Response:
    """Propose another role; a second person signs."""
    return _propose(desk, who, ChangeKind.ROLE, member_id=member_id, role=form.role)


@router.post("/staff/people/{member_id}/reset")
def propose_reset(member_id: MemberId, form: Annotated[LeaveForm, Form()], desk: OurDesk, who: Who) -> Response:
    """Propose to reset an account, after a lost phone or password; a second person signs."""
    return _propose(desk, who, ChangeKind.RESET, member_id=member_id, last=form.last == "yes")


@router.post("/staff/register")
def propose_register(form: Annotated[StaffForm, Form()], desk: OurDesk, who: Who) -> Response:
    """Propose to accept the register of people as it stands; a second person signs."""
    return _propose(desk, who, ChangeKind.REGISTER)


def _propose(desk: Desk, who: SignedIn, kind: ChangeKind, **about: Any) -> Response:
    now = desk.clock()
    staff.require_step_up(who, now)
    write(desk.sessions, lambda tx: accounts.propose(tx, desk.ledger, desk.row_key, who.viewer, kind, now=now, **about))
    return RedirectResponse("/staff?done=proposed", 303)


@router.post("/staff/changes/{change_id}/sign")
def sign(
    request: Request,
    change_id: ChangeId,
    form: Annotated[StaffForm, Form()],
    desk: OurDesk,
    who: Who,
    words: InWords,
) -> Response:
    """Sign as the second person. After a reset the code to hand over is shown, once."""
    now = desk.clock()
    staff.require_step_up(who, now)
    code = write(desk.sessions, lambda tx: accounts.sign(tx, desk.ledger, desk.row_key, who.viewer, change_id, now))
    if code is None:
        return RedirectResponse("/staff?done=done", 303)
    return _show_code(request, desk, words, code)


@router.post("/staff/changes/{change_id}/refuse")
def refuse(change_id: ChangeId, form: Annotated[StaffForm, Form()], desk: OurDesk, who: Who) -> Response:
    """End a proposal unsigned."""
    write(desk.sessions, lambda tx: accounts.refuse(tx, desk.ledger, desk.row_key, who.viewer, change_id, desk.clock()))
    return RedirectResponse("/staff?done=done", 303)


# --- invitations ---


class InviteForm(StaffForm):
    """Who is invited."""

    account: str = ""
    name: str = ""
    name_km: str = ""
    organisation: str = ""
    role: str = ""


@router.get("/staff/invite")
def ask_invite(request: Request, desk: OurDesk, who: Who, words: InWords) -> Response:
    """Ask who is invited."""
    staff.require_step_up(who, desk.clock())
    return _ask_invite(request, desk, who, words, InviteForm(t=""))


@router.post("/staff/invite")
def invite(request: Request, form: Annotated[InviteForm, Form()], desk: OurDesk, who: Who, words: InWords) -> Response:
    """Make an invitation and show its code, once."""
    now = desk.clock()
    staff.require_step_up(who, now)
    asked = form.model_dump(exclude={"t"})
    try:
        code = write(
            desk.sessions, lambda tx: invitations.invite(tx, desk.ledger, desk.row_key, who.viewer, **asked, now=now)
        )
    except InvalidForm as fault:
        return _ask_invite(request, desk, who, words, form, fault)
    return _show_code(request, desk, words, code)


def _ask_invite(
    request: Request, desk: Desk, who: SignedIn, words: Words, form: InviteForm, fault: InvalidForm | None = None
) -> Response:
    with desk.sessions.read() as session:
        around = frame(request, words, unit_names(session, words))
        organisations = _organisations(session, words, who)
    roles = [
        {"value": role.value, "label": terms.term(words, terms.ROLES, role)}
        for role in Role
        if any(may_manage(who.viewer, organisation["value"], role) for organisation in organisations)
    ]
    return render(
        request,
        "invite.html",
        status=422 if fault else 200,
        here="/staff/invite",
        page="staff",
        organisations=organisations,
        roles=roles,
        form=form,
        error=words(str(fault)) if fault else "",
        field=fault.field if fault else "",
        **around,
    )


def _organisations(session: Session, words: Words, who: SignedIn) -> list[dict[str, str]]:
    rows = session.scalars(select(Organisation).order_by(col(Organisation.id))).all()
    return [
        {"value": row.id, "label": words.of_two(row.name, row.name_km)}
        for row in rows
        if may_manage(who.viewer, row.id, Role.INVESTIGATOR)
    ]


def _show_code(request: Request, desk: Desk, words: Words, code: OneTimeCode) -> Response:
    with desk.sessions.read() as session:
        around = frame(request, words, unit_names(session, words))
    values: dict[str, Any] = {"code": code.code, "account": code.account, "until": words.moment(code.expires_at)}
    return render(request, "one_time_code.html", here="/staff", page="staff", **values, **around)


@router.post("/staff/invitations/{invitation_id}/take-back")
def take_back(invitation_id: InvitationId, form: Annotated[StaffForm, Form()], desk: OurDesk, who: Who) -> Response:
    """End an invitation before it is used."""
    write(desk.sessions, lambda tx: invitations.take_back(tx, desk.ledger, who.viewer, invitation_id, desk.clock()))
    return RedirectResponse("/staff?done=done", 303)
