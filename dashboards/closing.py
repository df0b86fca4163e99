"""Closing a case: proposing it with a listed reason and its papers, signing or refusing what is proposed."""

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import Field
from sqlmodel import Session

from dashboards import deed_words, terms
from dashboards.case_file import CaseFile, Reader, case_values, person, sealed_words
from dashboards.casework import Ask, ask_values, opened_case, papers, read_given, refusals_noted
from dashboards.desk import InWords, OurDesk, Who, noted, team, unit_names
from dashboards.forms import CaseId, ClosureId, SeenForm
from dashboards.pages import render, signed_in, watermark
from dashboards.questions import told_to
from dashboards.words import Words
from service import cases, closures, reading, staff
from service.cases import READERS, STOPPING, reference
from service.closures import LONG_COOLING, REASONS, Proposal
from service.db import Tx, write
from service.errors import InvalidForm
from service.ledger.events import EventType
from service.models import Case, Closure, ClosureState, Role, State
from service.reading import Step
from service.walls import Viewer

router = APIRouter(prefix="/cases/{case_id}/close")

PROOFS = ("proof", "proof-2")
SIGNATURES = (EventType.CLOSURE_PROPOSED, EventType.CLOSURE_APPROVED)
NEVER = (EventType.SETTLEMENT_SIGNALLED, EventType.COMPENSATION_SIGNALLED, EventType.WITHDRAWAL_RECORDED)


class RefuseForm(SeenForm):
    """Why a proposal goes back."""

    reason: str = Field(max_length=2000)


@router.get("")
def show(request: Request, case_id: CaseId, desk: OurDesk, who: Who, words: InWords) -> Response:
    """Show what closes a case, what stands in the way, and what happens then."""
    now = desk.clock()
    with noted(desk, who, case_id, now), desk.sessions.read() as session:
        case = cases.find(session, who.viewer, case_id)
        units = unit_names(session, words)
        reader = Reader(who.viewer, words, now, units)
        file = CaseFile(case, told_to(who.viewer, reading.history(session, case)), None, None)
        values = case_values(session, desk, reader, file) | closing_values(session, reader, file)
        values |= _proposable(session, reader, file)
        frame = signed_in(request, words, team(who, units)) | watermark(words, now)
        return render(request, "close.html", here=f"/cases/{case.id}/close", **frame, **values, page="case")


@router.post("")
def propose(request: Request, case_id: CaseId, desk: OurDesk, who: Who) -> Response:
    """Propose to close a case. What is no listed reason closes nothing, and that it was tried is an event."""
    now = desk.clock()
    code = request.state.form.get("code", "")
    reason = REASONS.get(code)
    if reason is None:
        closures.reject(desk.sessions, desk.casework, who.viewer, case_id, code, now)
        raise InvalidForm("code", "This closes no case. Record it as something that happened; the case goes on.")
    given = read_given(request, [Ask("code"), *_asks(reason)], PROOFS[: reason.papers])
    said = {name: text for name, text in given.words.items() if name != "code"}
    proposal = Proposal(code, said, given.papers)

    def use_case(tx: Tx) -> None:
        opened = opened_case(tx, desk, who, case_id)
        closures.propose(tx, desk.casework, who.viewer, opened, proposal, version=given.version, now=now)

    with refusals_noted(desk, who, case_id, EventType.CLOSURE_PROPOSED, now):
        write(desk.sessions, use_case)
    return RedirectResponse(f"/cases/{case_id}/close", 303)


@router.post("/{closure_id}/sign")
def sign(
    case_id: CaseId, closure_id: ClosureId, form: Annotated[SeenForm, Form()], desk: OurDesk, who: Who
) -> Response:
    """Sign a proposal to close, after a step-up."""
    now = desk.clock()
    with desk.sessions.read() as session:
        closures.standing(session, cases.find(session, who.viewer, case_id), closure_id)

    def use_case(tx: Tx) -> None:
        opened = opened_case(tx, desk, who, case_id)
        closures.sign(tx, desk.casework, who.viewer, opened, closure_id, version=form.version, now=now)

    staff.require_step_up(who, now)
    with refusals_noted(desk, who, case_id, EventType.CLOSURE_APPROVED, now):
        write(desk.sessions, use_case)
    return RedirectResponse(f"/cases/{case_id}/close", 303)


@router.post("/{closure_id}/refuse")
def refuse(
    case_id: CaseId, closure_id: ClosureId, form: Annotated[RefuseForm, Form()], desk: OurDesk, who: Who
) -> Response:
    """Send a proposal back, signed or not."""
    now = desk.clock()

    def use_case(tx: Tx) -> None:
        opened = opened_case(tx, desk, who, case_id)
        seen: dict[str, Any] = {"version": form.version, "now": now}
        closures.refuse(tx, desk.casework, who.viewer, opened, closure_id, form.reason, **seen)

    with refusals_noted(desk, who, case_id, EventType.CLOSURE_REFUSED, now):
        write(desk.sessions, use_case)
    return RedirectResponse(f"/cases/{case_id}", 303)


# --- what the pages show --------------------------------------------------------------------------------


def to_sign(session: Session, words: Words, viewer: Viewer, now: Any) -> list[dict[str, Any]]:
    """Return the proposals to close a case that wait for this person's signature, for the queue's page."""
    found = closures.waiting(session, viewer, now)
    links = [{"href": f"/cases/{case}/close", "reference": reference(case)} for case in found]
    return [{"words": words("Closing waits for your signature:"), "cases": links}] if links else []


def closing_values(session: Session, reader: Reader, file: CaseFile) -> dict[str, Any]:
    """Return what stands proposed to close a case: why, on which papers, who signed and who must still."""
    closure = closures.standing_of(session, file.case)
    return {"closing": None if closure is None else _closing(session, reader, file, closure)}


def _closing(session: Session, reader: Reader, file: CaseFile, closure: Closure) -> dict[str, Any]:
    words, viewer, case = reader.words, reader.viewer, file.case
    steps = [step for step in file.steps if step.fields.get("closure") == closure.id.hex and step.type in SIGNATURES]
    proposed = next((step for step in steps if step.type == EventType.CLOSURE_PROPOSED), None)
    signed = closure.state == ClosureState.SIGNED
    objection = closures.may_not_sign(session, viewer, case, closure, reader.now)
    signs = viewer.role in (Role.SUPERVISOR, Role.OVERSIGHT)
    has_read = cases.has_opened(session, case, viewer)
    own = {str(paper) for paper in closures.papers_of(closure)}
    return {
        "id": str(closure.id),
        "title": words("Proposed: close it because of “{reason}”", reason=_reason(words, closure.reason)),
        "signed": signed,
        "words": sealed_words(words, proposed) if proposed is not None else [],
        "open": file.opened is not None,
        "papers": [paper for paper in papers(session, reader, file) if paper["id"] in own],
        "readable": viewer.role in READERS,
        "cools": reader.now < closure.cools_until,
        "cools_until": words.moment(closure.cools_until),
        "decide_by": words.moment(closure.cools_until + closures.DECIDE_WITHIN),
        "signatures": [_signature(reader, step) for step in reversed(steps)],
        "missing": [] if signed else _missing(words, closure),
        "may_sign": objection is None and has_read,
        "objection": words(objection) if objection and signs and not signed else "",
        "unread": signs and not has_read,
        "may_refuse": signs and has_read,
    }


def _reason(words: Words, code: str) -> str:
    return terms.term(words, deed_words.REASONS, code)


def _missing(words: Words, closure: Closure) -> Sequence[str]:
    found = [words("A supervisor of another organisation must approve.")] if closure.approver is None else []
    return found + ([words("Oversight must sign.")] if closure.overseen and closure.overseer is None else [])


def _signature(reader: Reader, step: Step) -> str:
    told = {"who": person(reader.words, step), "hour": reader.words.day_and_hour(step.at, reader.now)}
    if step.type == EventType.CLOSURE_PROPOSED:
        return reader.words("{who}: proposed it, {hour}", **told)
    return reader.words("{who}: signed, {hour}", **told)


def _asks(reason: closures.Reason) -> list[Ask]:
    return [*(Ask(name) for name in reason.words), Ask("why", long=True)]


def _proposable(session: Session, reader: Reader, file: CaseFile) -> dict[str, Any]:
    """Return the reasons that fit the state with what proves each, what stands in the way, and what happens then."""
    words, case, viewer = reader.words, file.case, reader.viewer
    ask = partial(ask_values, words)
    fit = {code: reason for code, reason in REASONS.items() if case.state in reason.before}
    never = [step for step in file.steps if step.type in NEVER]
    return {
        "stops": _stops(session, words, viewer, case),
        "owns": case.owner == viewer.member,
        "reasons": [
            {
                "code": code,
                "title": _reason(words, code),
                "proof": terms.term(words, deed_words.PROOFS, code),
                "asks": [ask(one, code) for one in _asks(reason)],
                "papers": PROOFS[: reason.papers],
                "overseen": reason.overseen,
            }
            for code, reason in fit.items()
        ],
        "others": [_other(words, code, reason) for code, reason in REASONS.items() if code not in fit],
        "long": closures.cooling(session, case) == LONG_COOLING,
        "overseen": closures.must_be_overseen(session, case),
        "never": [
            {
                "when": words.day_and_hour(step.at, reader.now),
                "what": terms.step(words, step.type, step.fields, reader.units),
                "who": person(words, step),
            }
            for step in never
        ],
    }


def _other(words: Words, code: str, reason: closures.Reason) -> str:
    states = ", ".join(terms.term(words, terms.STATES, state) for state in State if state in reason.before)
    return words("{reason}: from “{states}”", reason=_reason(words, code), states=states)


def _stops(session: Session, words: Words, viewer: Viewer, case: Case) -> list[dict[str, str]]:
    """Return what stands in the way of a proposal by this person now: what, and how it ends."""
    found = []
    if case.state == State.CLOSED:
        found.append({"what": words("It is closed already."), "ends": ""})
    elif case.state not in cases.ACTIVE and case.state != State.CLOSURE_PROPOSED:
        state = terms.term(words, terms.STATES, case.state)
        found.append({"what": words("It is “{state}”.", state=state), "ends": words("Only a case in work is closed.")})
    if case.owner != viewer.member:
        found.append({"what": words("Only the owner of the case proposes it."), "ends": ""})
    elif not cases.has_opened(session, case, viewer):
        found.append({"what": words("Open the account first: what is done rests on having read it."), "ends": ""})
    for kind in sorted(cases.overlays(session, case) & STOPPING):
        what = terms.term(words, deed_words.OVERLAYS, kind)
        found.append({"what": what, "ends": terms.term(words, deed_words.ENDS, kind)})
    return found
