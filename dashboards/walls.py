"""The wall of a case: who is excluded, oneself among them, and how two people of oversight take it back."""

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Form, Response
from fastapi.responses import RedirectResponse
from pydantic import Field
from sqlalchemy import select
from sqlmodel import Session, col

from dashboards.case_file import CaseFile, Reader
from dashboards.desk import Desk, OurDesk, Who
from dashboards.forms import CaseId, ExclusionId, NarrowingId, SeenForm
from dashboards.words import Words, mark
from service import cases, exclusions, staff
from service.db import Tx, write
from service.errors import InvalidForm
from service.exclusions import Exclusion, may_exclude
from service.models import Member, NarrowingState, Role, State

router = APIRouter(prefix="/cases/{case_id}")

LONGEST = 2000  # characters of a reason
WHYS: Mapping[str, str] = {
    "named": mark("The account names them, or means them"),
    "tied": mark("They are tied to somebody in it"),
    exclusions.UNSURE: mark("The screener was not sure whether the account means them"),
    exclusions.SELF: mark("They said so of themselves"),
}


class ExcludeForm(SeenForm):
    """Whom, as ``member:<id>`` or ``unit:<id>``, and why."""

    whom: str = Field(max_length=100)
    why: str = Field(max_length=16)


class WhyForm(SeenForm):
    """Why a wall is narrowed, or why it is not."""

    reason: str = Field(max_length=LONGEST)


@router.post("/recuse")
def recuse(case_id: CaseId, form: Annotated[SeenForm, Form()], desk: OurDesk, who: Who) -> Response:
    """Take oneself out of a case; it is gone from this answer on."""
    use_case = partial(
        exclusions.recuse,
        keeper=desk.keeper,
        viewer=who.viewer,
        case_id=case_id,
        version=form.version,
        now=desk.clock(),
    )
    write(desk.sessions, use_case)
    return RedirectResponse("/queue?done=recused", 303)


@router.post("/wall")
def exclude(case_id: CaseId, form: Annotated[ExcludeForm, Form()], desk: OurDesk, who: Who) -> Response:
    """Exclude a person or a unit at once."""
    kind, _, whom = form.whom.partition(":")
    if kind not in ("member", "unit"):
        raise InvalidForm("whom", "Choose somebody.")

    def use_case(tx: Tx) -> None:
        opened = staff.open_keys(tx, desk.row_key, desk.cards, who, cases.find(tx, who.viewer, case_id))
        step: Any = exclusions.exclude_unit if kind == "unit" else exclusions.exclude_person
        subject = whom if kind == "unit" else _person(whom)
        given = {"version": form.version, "now": desk.clock()}
        step(tx, desk.keeper, who.viewer, opened, subject, form.why, **given)

    write(desk.sessions, use_case)
    return RedirectResponse("/queue?done=excluded", 303)


@router.post("/wall/{exclusion_id}/narrow")
def propose(
    case_id: CaseId, exclusion_id: ExclusionId, form: Annotated[WhyForm, Form()], desk: OurDesk, who: Who
) -> Response:
    """Propose to take an exclusion back."""
    use_case = partial(
        exclusions.propose_narrowing,
        keeper=desk.keeper,
        viewer=who.viewer,
        case_id=case_id,
        exclusion=exclusion_id,
        reason=form.reason,
        version=form.version,
        now=desk.clock(),
    )
    write(desk.sessions, use_case)
    return RedirectResponse(f"/cases/{case_id}#wall", 303)


@router.post("/narrowings/{narrowing_id}/agree")
def agree(
    case_id: CaseId, narrowing_id: NarrowingId, form: Annotated[SeenForm, Form()], desk: OurDesk, who: Who
) -> Response:
    """Sign a proposal as the second person of oversight."""
    use_case = partial(
        exclusions.approve_narrowing,
        keeper=desk.keeper,
        viewer=who.viewer,
        case_id=case_id,
        narrowing_id=narrowing_id,
        version=form.version,
        now=desk.clock(),
    )
    write(desk.sessions, use_case)
    return RedirectResponse(f"/cases/{case_id}#wall", 303)


@router.post("/narrowings/{narrowing_id}/refuse")
def refuse(
    case_id: CaseId, narrowing_id: NarrowingId, form: Annotated[WhyForm, Form()], desk: OurDesk, who: Who
) -> Response:
    """End a proposal to take an exclusion back."""
    use_case = partial(
        exclusions.refuse_narrowing,
        keeper=desk.keeper,
        viewer=who.viewer,
        case_id=case_id,
        narrowing_id=narrowing_id,
        reason=form.reason,
        version=form.version,
        now=desk.clock(),
    )
    write(desk.sessions, use_case)
    return RedirectResponse(f"/cases/{case_id}#wall", 303)


def _person(text: str) -> UUID:
    try:
        return UUID(hex=text)
    except ValueError:
        raise InvalidForm("whom", "Choose somebody.") from None


# --- what the page shows --------------------------------------------------------------------------------


def wall_values(
    session: Session, desk: Desk, reader: Reader, file: CaseFile, privates: Mapping[int, bytes]
) -> dict[str, Any]:
    """Return what the page of a case shows of its wall. Only oversight and integrity are told of it."""
    viewer, words = reader.viewer, reader.words
    if not may_exclude(viewer):
        return {"wall": None}
    reads = file.opened is not None and file.case.state != State.CLOSED
    people = session.scalars(select(Member).where(col(Member.disabled_at).is_(None))).all()
    names = {person.id.hex: words.of_two(person.name, person.name_km) for person in people}
    found = exclusions.exclusions(session, desk.row_key, file.case, privates)
    return {
        "wall": {
            "rows": [_row(reader, row, names) for row in found],
            "reads": reads,
            "narrows": reads and viewer.role == Role.OVERSIGHT,
            "people": _choices("member", names) if reads else [],
            "units": _choices("unit", {card.unit: reader.units.get(card.unit, card.unit) for card in desk.cards.units}),
            "whys": [{"value": code, "label": words(WHYS[code])} for code in exclusions.WHYS],
        }
    }


def _choices(kind: str, named: Mapping[str, str]) -> list[dict[str, str]]:
    choices = [{"value": f"{kind}:{code}", "label": label} for code, label in named.items()]
    return sorted(choices, key=lambda choice: (choice["label"], choice["value"]))


def _row(reader: Reader, row: Exclusion, names: Mapping[str, str]) -> dict[str, Any]:
    words, narrowing = reader.words, row.narrowing
    return {
        "id": str(row.id),
        "whom": _whom(words, row, names, reader.units),
        "why": words(WHYS[row.why]),
        "when": words.day_and_hour(row.added_at, reader.now),
        "narrowing": str(narrowing.id) if narrowing is not None else "",
        "approved": narrowing is not None and narrowing.state == NarrowingState.APPROVED,
        "own": narrowing is not None and narrowing.proposer == reader.viewer.member,
    }


def _whom(words: Words, row: Exclusion, names: Mapping[str, str], units: Mapping[str, str]) -> str:
    if "member" in row.whom:
        return words(
            "{name}, whoever they supervise and whoever supervises them", name=names.get(row.whom["member"], "")
        )
    unit = row.whom.get("unit", "")
    return units.get(unit, unit) or words("Sealed")
