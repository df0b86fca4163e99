"""One's own account, the people one may see, and what waits for a second person: the page ``/staff``."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import RedirectResponse
from sqlalchemy import select
from sqlmodel import Session, col

from dashboards import terms
from dashboards.desk import Address, Desk, InWords, OurDesk, Who, team, unit_names
from dashboards.forms import StaffForm
from dashboards.pages import render, signed_in
from dashboards.sign_in import told
from dashboards.words import Words, mark
from service import accounts, invitations, rotation, staff
from service.db import write
from service.errors import Busy, InvalidForm, Unauthenticated
from service.models import AccountChange, Member, Organisation, Role, Unit, UnitGrant
from service.rights import ChangeKind, may_accept, may_manage, may_see, may_sign
from service.staff import SignedIn
from service.walls import Viewer

router = APIRouter()

CHANGES: Mapping[str, str] = {
    ChangeKind.ROLE: mark("{who} becomes: {role}"),
    ChangeKind.RESET: mark("The account of {who} is reset: new keys, nothing open"),
    ChangeKind.REGISTER: mark("The register of people is accepted as it stands"),
}


@router.get("/staff")
def show(request: Request, desk: OurDesk, who: Who, words: InWords, done: str = "") -> Response:
    """Show the own account, people, invitations and proposals."""
    now = desk.clock()
    with desk.sessions.read() as session:
        units = unit_names(session, words)
        member = session.get_one(Member, who.viewer.member)
        values: dict[str, Any] = {
            "member": {
                "name": words.of_two(member.name, member.name_km),
                "account": member.account,
                "role": terms.term(words, terms.ROLES, member.role),
                "organisation": _organisations(session, words).get(member.organisation, member.organisation),
                "units": [units.get(unit, unit) for unit in who.viewer.units],
                "fingerprint": accounts.fingerprint(member),
            },
            "sessions": _sessions(session, words, who, now),
            "people": _people(session, words, who.viewer, units, now),
            "invitations": _invitations(session, words, who.viewer, now),
            "changes": _changes(session, words, who.viewer, now),
            "stale": _stale(session, words, desk, now),
            "moving": _moving(session, words, desk, who.viewer, units),
            "may_invite": may_manage(who.viewer, who.viewer.organisation, Role.INVESTIGATOR),
            "accepts": not who.whole and may_accept(who.viewer),
            "done": words(_DONE[done]) if done in _DONE else "",
        }
    return render(request, "staff.html", here="/staff", page="staff", **frame(request, words, units), **values)


_DONE: Mapping[str, str] = {
    "password": mark("Your password is changed, and your other sessions are ended."),
    "sessions": mark("The sessions are ended."),
    "done": mark("It is done, and recorded."),
    "proposed": mark("It waits for a second person, and is recorded."),
}


def frame(request: Request, words: Words, units: Mapping[str, str]) -> dict[str, Any]:
    """Return the values of the frame around a page about accounts."""
    return signed_in(request, words, team(request.state.who, units))


def _organisations(session: Session, words: Words) -> dict[str, str]:
    return {row.id: words.of_two(row.name, row.name_km) for row in session.scalars(select(Organisation)).all()}


def _sessions(session: Session, words: Words, who: SignedIn, now: datetime) -> list[dict[str, Any]]:
    return [
        {
            "id": row.id.hex(),
            "own": row.id == who.session,
            "started": words.day_and_hour(row.started_at, now),
            "seen": words.day_and_hour(row.seen_at, now),
        }
        for row in staff.sessions_of(session, who.viewer.member, now)
    ]


def _people(
    session: Session, words: Words, viewer: Viewer, units: Mapping[str, str], now: datetime
) -> list[dict[str, Any]]:
    organisations = _organisations(session, words)
    seats: dict[Any, set[str]] = {}
    for unit, member_id in session.execute(select(col(UnitGrant.unit), col(UnitGrant.member))).all():
        seats.setdefault(member_id, set()).add(units.get(unit, unit))
    rows = session.scalars(select(Member).order_by(col(Member.organisation), col(Member.name), col(Member.id))).all()
    return [
        {
            "href": f"/staff/people/{row.id}",
            "name": words.of_two(row.name, row.name_km),
            "role": terms.term(words, terms.ROLES, row.role),
            "organisation": organisations.get(row.organisation, row.organisation),
            "units": ", ".join(sorted(seats.get(row.id, ()))),
            "state": words("barred since {hour}", hour=words.day_and_hour(row.disabled_at, now))
            if row.disabled_at
            else "",
        }
        for row in rows
        if may_see(viewer, row.organisation)
    ]


def _invitations(session: Session, words: Words, viewer: Viewer, now: datetime) -> list[dict[str, Any]]:
    return [
        {
            "id": str(row.id),
            "name": words.of_two(row.name, row.name_km),
            "role": terms.term(words, terms.ROLES, row.role),
            "until": words.moment(row.expires_at),
        }
        for row in invitations.invitations(session, now)
        if may_manage(viewer, row.organisation, row.role)
    ]


def _changes(session: Session, words: Words, viewer: Viewer, now: datetime) -> list[dict[str, Any]]:
    shown = []
    for row in accounts.changes(session, now):
        member = session.get(Member, row.member) if row.member else None
        proposer = session.get_one(Member, row.proposer)
        may = may_sign(viewer, row, member, proposer)
        if may or viewer.member == row.proposer:
            shown.append(
                {
                    "id": str(row.id),
                    "what": _what(words, row, member),
                    "by": words.of_two(proposer.name, proposer.name_km),
                    "when": words.day_and_hour(row.proposed_at, now),
                    "may_sign": may,
                }
            )
    return shown


def _what(words: Words, row: AccountChange, member: Member | None) -> str:
    if member is None:
        return words(CHANGES[row.kind])
    name = words.of_two(member.name, member.name_km)
    if row.kind == ChangeKind.ROLE:
        return words(CHANGES[row.kind], who=name, role=terms.term(words, terms.ROLES, row.role or ""))
    return words(CHANGES[row.kind], who=name)


def _stale(session: Session, words: Words, desk: Desk, now: datetime) -> list[str]:
    """Return the units whose present key somebody knows who has left."""
    rows = session.scalars(select(Unit).where(col(Unit.stale_since).is_not(None)).order_by(col(Unit.id))).all()
    return [
        words(
            "{unit}: since {hour}",
            unit=words.of_two(row.name, row.name_km),
            hour=words.day_and_hour(row.stale_since, now),
        )
        for row in rows
        if row.stale_since and accounts.needs_new_key(row, desk.cards)
    ]


def _moving(session: Session, words: Words, desk: Desk, viewer: Viewer, units: Mapping[str, str]) -> list[str]:
    """Return how far the viewer's units are with putting their open cases under the new key, while they are not done.

    Only cases that exist for the viewer count.
    """
    return [
        words(
            "{unit}: {moved} of {total}",
            unit=units.get(found.unit, found.unit),
            moved=words.digits(found.moved),
            total=words.digits(found.total),
        )
        for found in rotation.progress(session, desk.cards, viewer)
        if found.unit in viewer.units and found.moved < found.total
    ]


# --- sessions and password ---


class EndForm(StaffForm):
    """Which session ends; empty for all but the one that is used."""

    session: str = ""


@router.post("/staff/sessions")
def end_sessions(form: Annotated[EndForm, Form()], desk: OurDesk, who: Who) -> Response:
    """End one of one's own sessions, or all the others."""
    viewer, now = who.viewer, desk.clock()
    only = next((s for s in _own_sessions(desk, who, now) if s.hex() == form.session), b"") if form.session else None
    keep = None if form.session else who.session
    write(
        desk.sessions,
        lambda tx: staff.end_sessions(tx, desk.ledger, viewer.actor, viewer.member, now, only=only, keep=keep),
    )
    return RedirectResponse("/staff?done=sessions", 303)


def _own_sessions(desk: Desk, who: SignedIn, now: datetime) -> list[bytes]:
    with desk.sessions.read() as session:
        return [row.id for row in staff.sessions_of(session, who.viewer.member, now)]


class PasswordForm(StaffForm):
    """The present password and a code, and the new password twice."""

    password: str = ""
    code: str = ""
    new: str = ""
    again: str = ""


@router.get("/staff/password")
def ask_password(request: Request, desk: OurDesk, words: InWords) -> Response:
    """Ask for a new password."""
    return _ask_password(request, desk, words, "", "")


@router.post("/staff/password")
def change_password(
    request: Request,
    form: Annotated[PasswordForm, Form()],
    desk: OurDesk,
    who: Who,
    words: InWords,
    address: Address,
) -> Response:
    """Put the keys under a new password."""
    try:
        if form.new != form.again:
            raise InvalidForm("again", mark("The two passwords are not the same."))
        accounts.change_password(
            desk.sessions,
            desk.ledger,
            desk.row_key,
            who,
            password=form.password,
            code=form.code,
            new=form.new,
            now=desk.clock(),
            turns=desk.turns,
            address=address,
        )
    except InvalidForm as fault:
        return _ask_password(request, desk, words, words(str(fault)), fault.field)
    except (Unauthenticated, Busy) as fault:
        return _ask_password(request, desk, words, told(words, fault), "password")
    return RedirectResponse("/staff?done=password", 303)


def _ask_password(request: Request, desk: Desk, words: Words, error: str, field: str) -> Response:
    with desk.sessions.read() as session:
        around = frame(request, words, unit_names(session, words))
    values = {"page": "staff", "error": error, "field": field, **around}
    return render(request, "password.html", status=422 if error else 200, here="/staff/password", **values)
