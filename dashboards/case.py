"""The page of one case. Opening the account writes who and why first; its words are in that one answer only."""

from collections.abc import Mapping
from datetime import datetime
from functools import partial
from types import MappingProxyType
from typing import Annotated, Literal

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import Field
from sqlmodel import Session

from dashboards.case_file import CaseFile, Reader, case_values
from dashboards.casework import work_values
from dashboards.closing import closing_values
from dashboards.desk import (
    Desk,
    InWords,
    OurDesk,
    Who,
    log,
    noted,
    renew_claims,
    stepped_up,
    team,
    unit_names,
)
from dashboards.forms import CaseId, SeenForm, StaffForm, TextId
from dashboards.levels import level_values
from dashboards.pages import render, signed_in, watermark
from dashboards.questions import question_values, told_to
from dashboards.walls import wall_values
from dashboards.words import Words
from service import cases, decisions, exclusions, levels, outbox, reading, staff
from service.db import Tx, write
from service.errors import Conflict, InvalidForm, Unavailable
from service.models import Case
from service.reading import OpenedFile
from service.staff import SignedIn
from service.triage import NO_RULES
from service.vault.cards import UnitKind

router = APIRouter(prefix="/cases/{case_id}")


class OpenForm(StaffForm):
    """Why somebody opens the account."""

    reason: str
    note: str = Field(default="", max_length=500)


class HandOnForm(SeenForm):
    """To whom a case goes, and whether the account ties somebody to that unit."""

    unit: str
    named: Literal["no", "yes", "unsure"]


@router.get("")
def show(request: Request, case_id: CaseId, desk: OurDesk, who: Who, words: InWords) -> Response:
    """Show a case, without its account."""
    now = desk.clock()
    renew_claims(desk, who, now)
    with noted(desk, who, case_id, now), desk.sessions.read() as session:
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
    allowance = reading.Allowance(desk.settings.readings_per_day, stepped_up(who, now))
    opening = partial(reading.record_opening, desk.sessions, desk.ledger, desk.row_key, who.viewer, case_id)
    with noted(desk, who, case_id, now):
        opening(reason=form.reason, note=note, allowance=allowance, now=now)
        with desk.sessions.read() as session:
            case = cases.find(session, who.viewer, case_id)
            privates = staff.open_keys(session, desk.row_key, desk.cards, who, case).privates
            opened = reading.decrypt(session, case, privates)
    if case.walled:
        _decide_anew(desk, who, case, privates, now)
    with desk.sessions.read() as session:
        case = cases.find(session, who.viewer, case_id)
        return _page(request, session, desk, who, words, case, now, opened, privates)


def _decide_anew(desk: Desk, who: SignedIn, case: Case, privates: Mapping[int, bytes], now: datetime) -> None:
    """Judge a walled case by the rules in force, now that its facts can be read (keys.md section 5)."""
    judge = desk.judge
    if judge.ruleset is NO_RULES or not desk.rules.ever_published:
        return
    try:
        write(
            desk.sessions,
            lambda tx: levels.decide_anew(tx, judge, cases.find(tx, who.viewer, case.id), privates, now),
        )
    except (Conflict, Unavailable) as fault:  # it was opened all the same, and the next opening tries again
        log.warning("case_not_decided_anew", exc_info=fault)


@router.post("/claim")
def claim(case_id: CaseId, form: Annotated[SeenForm, Form()], desk: OurDesk, who: Who) -> Response:
    """Claim a case; of two who do, one wins."""
    now = desk.clock()
    renew_claims(desk, who, now)
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
        step = partial(exclusions.hand_on, tx, desk.keeper, who.viewer, opened)
        step(unit=form.unit, answer=form.named, version=form.version, now=now)

    write(desk.sessions, use_case)
    return RedirectResponse("/queue?done=handed_on", 303)


@router.post("/texts/{text_id}")
def see_text(case_id: CaseId, text_id: TextId, form: Annotated[StaffForm, Form()], desk: OurDesk, who: Who) -> Response:
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
    privates: Mapping[int, bytes] = MappingProxyType({}),
) -> Response:
    units = unit_names(session, words)
    known = decisions.known(session, case, privates) if opened is not None or not case.walled else None
    steps = told_to(who.viewer, reading.history(session, case, privates))
    file = CaseFile(case, steps, known, opened)
    reader = Reader(who.viewer, words, now, units)
    values = case_values(session, desk, reader, file) | level_values(session, desk, reader, file)
    values |= question_values(session, desk, reader, file, privates)
    values |= wall_values(session, desk, reader, file, privates)
    values |= work_values(session, reader, file, request.query_params.get("done", ""))
    values |= closing_values(session, reader, file)
    frame = signed_in(request, words, team(who, units)) | watermark(words, now)
    return render(request, "case.html", here=f"/cases/{case.id}", **frame, **values, page="case")
