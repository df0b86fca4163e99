"""The page of one case. Opening the account writes who and why first; its words are in that one answer only."""

import re
from datetime import datetime
from functools import partial
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Form, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import BaseModel, ConfigDict, Field
from sqlmodel import Session

from dashboards.case_file import Reader, case_values
from dashboards.desk import Desk, InWords, OurDesk, Who, renew_claims, team, unit_names
from dashboards.pages import render, signed_in
from dashboards.words import Words
from service import cases, outbox, reading, staff
from service.db import Tx, write
from service.errors import InvalidForm, NoSuchCase
from service.models import Case
from service.reading import OpenedFile
from service.staff import SignedIn
from service.vault.cards import UnitKind

router = APIRouter(prefix="/cases/{case_id}")

_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)


def read_id(case_id: str) -> UUID:
    """Return a case's id. One that is malformed does not exist, like any other that does not."""
    if not _ID.fullmatch(case_id):
        raise NoSuchCase
    return UUID(case_id)


def read_text_id(text_id: str) -> UUID:
    """Return the id of a text about a case."""
    return read_id(text_id)


CaseId = Annotated[UUID, Depends(read_id)]


class StaffForm(BaseModel):
    """A form of a signed-in page; the gate has compared its token."""

    model_config = ConfigDict(extra="forbid")
    t: str


class OpenForm(StaffForm):
    """Why somebody opens the account."""

    reason: str
    note: str = Field(default="", max_length=500)


class ClaimForm(StaffForm):
    """Which version of the case somebody saw and claims."""

    version: int = Field(ge=0, le=2**31 - 1)


class HandOnForm(ClaimForm):
    """To whom a case goes, and whether the account ties somebody to that unit."""

    unit: str
    named: Literal["no", "yes", "unsure"]


@router.get("")
def show(request: Request, case_id: CaseId, desk: OurDesk, who: Who, words: InWords) -> Response:
    """Show a case, without its account."""
    now = desk.clock()
    renew_claims(desk, now)
    with desk.sessions.read() as session:
        case = cases.find(session, who.viewer, case_id)
        return _page(request, session, desk, who, words, case, now)


@router.get("/open")
def reload_account(case_id: CaseId) -> Response:
    """Go back to the case: an account that was open is opened again only by saying why again."""
    return RedirectResponse(f"/cases/{case_id}", 303)


@router.post("/open")
def open_account(
    request: Request, case_id: CaseId, form: Annotated[OpenForm, Form()], desk: OurDesk, who: Who, words: InWords
) -> Response:
    """Show a case with its account, after writing who opens it and why. Nothing written, nothing shown."""
    now = desk.clock()
    note = form.note.strip()
    reading.record_opening(
        desk.sessions, desk.ledger, desk.row_key, who.viewer, case_id, reason=form.reason, note=note, now=now
    )
    with desk.sessions.read() as session:
        case = cases.find(session, who.viewer, case_id)
        privates = staff.open_keys(session, desk.row_key, desk.cards, who, case).privates
        opened = reading.decrypt(session, case, privates)
        return _page(request, session, desk, who, words, case, now, opened)


@router.post("/claim")
def claim(case_id: CaseId, form: Annotated[ClaimForm, Form()], desk: OurDesk, who: Who) -> Response:
    """Claim a case; of two who do, one wins."""
    now = desk.clock()
    renew_claims(desk, now)
    use_case = partial(
        cases.claim,
        ledger=desk.ledger,
        viewer=who.viewer,
        case_id=case_id,
        version=form.version,
        leases=desk.settings.leases,
        now=now,
    )
    write(desk.sessions, use_case)
    return RedirectResponse(f"/cases/{case_id}", 303)


@router.post("/hand-on")
def hand_on(case_id: CaseId, form: Annotated[HandOnForm, Form()], desk: OurDesk, who: Who) -> Response:
    """Hand a case on to a handling unit, or to integrity when the account may name somebody there."""
    now = desk.clock()
    if form.unit not in {card.unit for card in desk.cards.of_kind(UnitKind.UNIT)}:
        raise InvalidForm("unit", "A case is handed on to a handling unit.")

    def use_case(tx: Tx) -> None:
        case = cases.find(tx, who.viewer, case_id)
        opened = staff.open_keys(tx, desk.row_key, desk.cards, who, case)
        cases.hand_on(
            tx,
            desk.ledger,
            who.viewer,
            opened,
            desk.cards,
            unit=form.unit,
            answer=form.named,
            version=form.version,
            now=now,
        )

    write(desk.sessions, use_case)
    return RedirectResponse("/queue?done=handed_on", 303)


@router.post("/texts/{text_id}")
def see_text(
    case_id: CaseId,
    text_id: Annotated[UUID, Depends(read_text_id)],
    form: Annotated[StaffForm, Form()],
    desk: OurDesk,
    who: Who,
) -> Response:
    """Note that somebody has seen a text that did not arrive, or may not have."""
    use_case = partial(
        outbox.see, ledger=desk.ledger, viewer=who.viewer, case_id=case_id, job_id=text_id, now=desk.clock()
    )
    write(desk.sessions, use_case)
    return RedirectResponse(f"/cases/{case_id}#texts", 303)


def _page(
    request: Request,
    session: Session,
    desk: Desk,
    who: SignedIn,
    words: Words,
    case: Case,
    now: datetime,
    opened: OpenedFile | None = None,
) -> Response:
    units = unit_names(session, words)
    values = case_values(session, desk, Reader(who.viewer, words, now, units), case, opened)
    frame = signed_in(request, words, team(who, units))
    return render(request, "case.html", here=f"/cases/{case.id}", **frame, **values, page="case")
