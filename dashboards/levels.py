"""Changing the level of a case: correcting a fact, raising it, proposing to lower it, agreeing or refusing.

What may be said of a case only by those who have read it is offered only where its account is open.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import Annotated, Any

from fastapi import APIRouter, Form, Response
from fastapi.responses import RedirectResponse
from pydantic import Field
from sqlmodel import Session

from dashboards import terms
from dashboards.case_file import CaseFile, Reader, person
from dashboards.desk import Desk, OurDesk, Who
from dashboards.forms import CaseId, LoweringId, SeenForm
from dashboards.marks import visible
from dashboards.words import Words, mark
from service import cases, levels, staff
from service.cases import READERS, OpenedCase, reference
from service.db import Tx, write
from service.decisions import Known
from service.errors import WrongState
from service.ledger.events import EventType
from service.models import Case, Level, Lowering, LoweringState, State
from service.reading import Step
from service.staff import SignedIn
from service.triage import ASKS
from service.walls import Viewer

router = APIRouter(prefix="/cases/{case_id}")

LONGEST = 2000  # characters of a reason
OVERSIGHT: Mapping[str, str] = {
    "locked": mark("Oversight must sign as well: a locked rule holds a more urgent level."),
    "late": mark("Oversight must sign as well: the deadline to act has passed."),
    "unread": mark("Oversight must sign as well: a part of what is known cannot be read."),
}


class FactForm(SeenForm):
    """A fact and its value, or both in one as ``fact:value``."""

    fact: str = Field(max_length=64)
    value: str = Field(default="", max_length=32)


class RaiseForm(SeenForm):
    """A more urgent level, and why."""

    level: str
    reason: str = Field(max_length=LONGEST)


class LowerForm(RaiseForm):
    """A calmer level, the fact that changed, and how."""

    fact: str = Field(max_length=64)


class RefuseForm(SeenForm):
    """Why a proposal is refused."""

    reason: str = Field(max_length=LONGEST)


# --- steps ----------------------------------------------------------------------------------------------


def _opened(tx: Tx, desk: Desk, who: SignedIn, case_id: CaseId) -> OpenedCase:
    return staff.open_keys(tx, desk.row_key, desk.cards, who, cases.find(tx, who.viewer, case_id))


@router.post("/facts")
def confirm_fact(case_id: CaseId, form: Annotated[FactForm, Form()], desk: OurDesk, who: Who) -> Response:
    """Take a value for a fact on this person's word."""
    name, _, joined = form.fact.partition(":")
    value = levels.read_value(name, form.value or joined)

    def use_case(tx: Tx) -> bool:
        opened = _opened(tx, desk, who, case_id)
        return levels.confirm(tx, desk.judge, who.viewer, opened, name, value, version=form.version, now=desk.clock())

    walled = write(desk.sessions, use_case)
    return RedirectResponse("/queue?done=walled" if walled else f"/cases/{case_id}#facts", 303)


@router.post("/raise")
def raise_level(case_id: CaseId, form: Annotated[RaiseForm, Form()], desk: OurDesk, who: Who) -> Response:
    """Raise a case at once."""
    use_case = partial(
        levels.raise_by_hand,
        judge=desk.judge,
        viewer=who.viewer,
        case_id=case_id,
        level=form.level,
        reason=form.reason,
        version=form.version,
        now=desk.clock(),
    )
    write(desk.sessions, use_case)
    return RedirectResponse(f"/cases/{case_id}", 303)


@router.post("/lower")
def propose_lowering(case_id: CaseId, form: Annotated[LowerForm, Form()], desk: OurDesk, who: Who) -> Response:
    """Propose to lower a case."""

    def use_case(tx: Tx) -> None:
        opened = _opened(tx, desk, who, case_id)
        levels.propose(
            tx,
            desk.judge,
            who.viewer,
            opened,
            form.level,
            form.fact,
            form.reason,
            version=form.version,
            now=desk.clock(),
        )

    write(desk.sessions, use_case)
    return RedirectResponse(f"/cases/{case_id}#lowering", 303)


@router.post("/lower/{lowering_id}/agree")
def agree(
    case_id: CaseId, lowering_id: LoweringId, form: Annotated[SeenForm, Form()], desk: OurDesk, who: Who
) -> Response:
    """Sign a proposal to lower a case."""

    def use_case(tx: Tx) -> None:
        opened = _opened(tx, desk, who, case_id)
        levels.agree(tx, desk.judge, who.viewer, opened, lowering_id, version=form.version, now=desk.clock())

    write(desk.sessions, use_case)
    return RedirectResponse(f"/cases/{case_id}#lowering", 303)


@router.post("/lower/{lowering_id}/refuse")
def refuse(
    case_id: CaseId, lowering_id: LoweringId, form: Annotated[RefuseForm, Form()], desk: OurDesk, who: Who
) -> Response:
    """End a proposal to lower a case."""
    use_case = partial(
        levels.refuse,
        judge=desk.judge,
        viewer=who.viewer,
        case_id=case_id,
        lowering_id=lowering_id,
        reason=form.reason,
        version=form.version,
        now=desk.clock(),
    )
    write(desk.sessions, use_case)
    return RedirectResponse(f"/cases/{case_id}", 303)


# --- what the pages show --------------------------------------------------------------------------------


def proposals(session: Session, words: Words, viewer: Viewer) -> list[dict[str, Any]]:
    """Return the proposals to lower a case that wait for this person, for the queue's page."""
    to_sign, signed = levels.waiting(session, viewer)
    told = (
        (words("Lowering a level waits for your agreement:"), to_sign),
        (words("Others have agreed to lower a level. Until it is witnessed you can refuse:"), signed),
    )
    return [
        {
            "words": text,
            "cases": [{"href": f"/cases/{case}#lowering", "reference": reference(case)} for case in found],
        }
        for text, found in told
        if found
    ]


def level_values(session: Session, desk: Desk, reader: Reader, file: CaseFile) -> dict[str, Any]:
    """Return what the page of a case shows of its level: what would change it, and the steps that change it."""
    case, known = file.case, file.known
    acts = reader.viewer.role in READERS and case.state != State.CLOSED
    reads = acts and file.opened is not None
    lowering = cases.standing_lowering(session, case)
    return {
        "unread": acts and not reads,
        "lowest": case.level == Level.P4,
        "changes": [] if known is None else _changes(desk, reader, case, known),
        "fact_choices": _fact_choices(reader.words) if reads else None,
        "unknown_facts": _unknown_facts(reader.words, known) if reads and known else None,
        "raise_to": [_choice(reader.words, level) for level in Level if level < case.level] if acts else [],
        "lower": _lower(session, desk, reader, case, known) if reads and known and lowering is None else None,
        "lowering": _lowering(session, desk, reader, file, lowering, reads) if lowering is not None else None,
    }


def _choice(words: Words, level: str) -> dict[str, str]:
    return {"value": level, "label": terms.term(words, terms.LEVELS, level)}


def _changes(desk: Desk, reader: Reader, case: Case, known: Known) -> list[dict[str, Any]]:
    """Return what would make the case more urgent, by the level that it would get."""
    words = reader.words
    found = levels.rises(desk.ruleset, known.standing, case.level, reader.now)
    return [
        {
            "level_words": terms.term(words, terms.LEVELS, level),
            "facts": [terms.condition(words, rise.name, rise.value) for rise in rises],
            "asks": [words.of_two(ASKS[rise.name].en, ASKS[rise.name].km) for rise in rises],
        }
        for level, rises in ((level, list(rises)) for level, rises in groupby(found, key=lambda rise: rise.level))
    ]


def _fact_choices(words: Words) -> dict[str, dict[str, Any]]:
    """Return what each fact may be corrected to: its values, or for a number its bounds."""
    return {
        kind.name: {
            "values": [{"value": value, "label": terms.value(words, kind.name, value)} for value in kind.values],
            "bounds": kind.bounds,
            "label": terms.measure(words, kind.name),
        }
        for kind in levels.confirmable()
    }


def _unknown_facts(words: Words, known: Known) -> dict[str, list[dict[str, str]]]:
    """Return what can be added: each fact with each value in one choice, and the facts that are numbers."""
    unknown = [kind for kind in levels.confirmable() if kind.name not in known.standing]
    return {
        "codes": [
            {"value": f"{kind.name}:{value}", "label": terms.condition(words, kind.name, value)}
            for kind in unknown
            for value in kind.values
        ],
        "numbers": [
            {"value": kind.name, "label": terms.measure(words, kind.name)}
            for kind in unknown
            if kind.bounds is not None
        ],
    }


def _lower(session: Session, desk: Desk, reader: Reader, case: Case, known: Known) -> dict[str, Any] | None:
    """Return the choices of a proposal to lower the case, or why there can be none; None for what is only watched."""
    words, calmer = reader.words, [level for level in Level if level > case.level]
    if not calmer:
        return None
    named = [{"value": name, "label": terms.term(words, terms.FACTS, name)} for name in known.standing]
    if not named:
        return {"why_not": words("Confirm a fact first: a proposal names the one that changed.")}
    try:
        whys = {
            level: levels.oversight_signs(session, desk.ruleset, case, level, known, reader.now) for level in calmer
        }
    except WrongState as refused:
        return {"why_not": words(str(refused))}
    two = words("Two people of different units sign.")
    choices = [{**_choice(words, level), "hint": words(OVERSIGHT[why]) if why else two} for level, why in whys.items()]
    return {"why_not": "", "levels": choices, "facts": named, "shortest": levels.SHORTEST_REASON}


def _lowering(
    session: Session, desk: Desk, reader: Reader, file: CaseFile, lowering: Lowering, reads: bool
) -> dict[str, Any]:
    """Return what stands proposed: who signed, why, who must still agree, and what this person may do."""
    words, case = reader.words, file.case
    steps = [step for step in file.steps if step.fields.get("lowering") == lowering.id.hex]
    proposed = next((step for step in steps if step.type == EventType.LOWERING_PROPOSED), None)
    fields = proposed.fields if proposed is not None else {}
    approved = lowering.state == LoweringState.APPROVED
    missing = [] if approved else _missing(session, desk, reader, case, lowering, file.known)
    objection = levels.may_not_sign(session, reader.viewer, case, lowering)
    return {
        "id": str(lowering.id),
        "title": words("Proposed: lower it to {level}", level=terms.term(words, terms.LEVELS, lowering.after)),
        "approved": approved,
        "signed": [_signature(reader, step) for step in reversed(steps)],
        "fact": terms.term(words, terms.FACTS, str(fields["fact"])) if "fact" in fields else "",
        "reason": visible(fields.get("reason", "")),
        "missing": missing,
        "reads": reads,
        "may_agree": reads and not approved and objection is None,
        "objection": words(objection) if objection and reads and not approved else "",
    }


def _missing(
    session: Session, desk: Desk, reader: Reader, case: Case, lowering: Lowering, known: Known | None
) -> Sequence[str]:
    """Return who must still sign. While facts are sealed it cannot be told whether oversight must."""
    words = reader.words
    found = [words("Somebody of another unit must agree.")] if lowering.approver is None else []
    if lowering.overseer is None and known is not None:
        try:
            why = levels.oversight_signs(session, desk.ruleset, case, lowering.after, known, reader.now)
        except WrongState as refused:
            return [words(str(refused))]
        found += [words(OVERSIGHT[why])] if why else []
    return found


def _signature(reader: Reader, step: Step) -> str:
    words = reader.words
    unit = reader.units.get(str(step.fields.get("unit", "")), "")
    told = {"who": person(words, step), "unit": unit, "hour": words.day_and_hour(step.at, reader.now)}
    if step.type == EventType.LOWERING_PROPOSED:
        return words("{who}, {unit}: proposed it, {hour}", **told)
    return words("{who}, {unit}: agreed, {hour}", **told)
