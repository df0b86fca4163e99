"""Neutral questions to a tipster who has a return code, and what oversight does when one says something is wrong."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Form, Response
from fastapi.responses import RedirectResponse
from pydantic import Field
from sqlmodel import Session

from dashboards.case_file import CaseFile, Reader
from dashboards.desk import Desk, OurDesk, Who
from dashboards.forms import CaseId, StaffForm
from dashboards.marks import visible
from service import mailbox
from service.db import write
from service.ledger.events import EventType
from service.models import ClockKind, Role
from service.reading import Step
from service.walls import Viewer

router = APIRouter(prefix="/cases/{case_id}")


class QuestionForm(StaffForm):
    """A question, and to whom."""

    mailbox: UUID
    words: str = Field(max_length=2000)


class AnswerForm(StaffForm):
    """What oversight found."""

    note: str = Field(max_length=2000)


@router.post("/questions")
def ask(case_id: CaseId, form: Annotated[QuestionForm, Form()], desk: OurDesk, who: Who) -> Response:
    """Ask a tipster a neutral question."""
    use_case = partial(
        mailbox.ask,
        ledger=desk.ledger,
        row_key=desk.row_key,
        viewer=who.viewer,
        case_id=case_id,
        mailbox_id=form.mailbox,
        words=form.words,
        now=desk.clock(),
    )
    write(desk.sessions, use_case)
    return RedirectResponse(f"/cases/{case_id}#questions", 303)


@router.post("/challenge")
def answer(case_id: CaseId, form: Annotated[AnswerForm, Form()], desk: OurDesk, who: Who) -> Response:
    """Write what oversight found about a tipster's "something is wrong"."""
    use_case = partial(
        mailbox.answer_challenge,
        ledger=desk.ledger,
        row_key=desk.row_key,
        viewer=who.viewer,
        case_id=case_id,
        note=form.note,
        now=desk.clock(),
    )
    write(desk.sessions, use_case)
    return RedirectResponse(f"/cases/{case_id}", 303)


def told_to(viewer: Viewer, steps: Sequence[Step]) -> list[Step]:
    """Return the steps of a history that this person is told of: a challenge is oversight's (casework.md 13)."""
    return [step for step in steps if viewer.role == Role.OVERSIGHT or not _about_challenge(step)]


def _about_challenge(step: Step) -> bool:
    raised = step.type in (EventType.CHALLENGE_RAISED, EventType.CHALLENGE_ANSWERED)
    return raised or step.fields.get("clock") == ClockKind.CHALLENGE


def question_values(
    session: Session, desk: Desk, reader: Reader, file: CaseFile, privates: Mapping[int, bytes]
) -> dict[str, Any]:
    """Return the questions of a case, whom one may ask, and until when oversight answers a challenge."""
    words, case = reader.words, file.case
    may_ask = reader.viewer.role in mailbox.ASKERS
    until = mailbox.challenged(session, reader.viewer).get(case.id)
    return {
        "questions": [
            {
                "number": words.digits(asked.number),
                "when": words.day_and_hour(asked.at, reader.now),
                "text": None if asked.words is None else visible(asked.words),
                "state": words("answered") if asked.answered else words("no answer yet"),
            }
            for asked in mailbox.asked(session, desk.row_key, case, privates)
        ],
        "askable": [str(box) for box in mailbox.of_case(session, case)] if may_ask else [],
        "challenge": "" if until is None else words.deadline(until, reader.now),
    }
