"""What was sent about a case and did not arrive, or may not have: it stands before a person until one has seen it."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from sqlmodel import Session

from dashboards import terms
from dashboards.words import Words
from service import mailbox, outbox
from service.cases import reference
from service.ledger.tree import halted
from service.metrics import WORKER
from service.models import Case, JobState, OutboxJob, Sign
from service.queue import stuck_pages
from service.walls import Viewer

SILENT = timedelta(minutes=1)


def texts(
    session: Session, words: Words, viewer: Viewer, case: Case, units: Mapping[str, str], now: datetime
) -> list[dict[str, Any]]:
    """Return the texts about a case in words: each answer to a tipster, and what went wrong on the way to staff."""
    return [
        {
            "id": str(row.id),
            "what": terms.term(words, terms.TEXTS, row.kind),
            "whom": terms.post(words, row.duty, units) if row.kind == outbox.RING else "",
            "state": _state(words, row),
            "when": words.day_and_hour(row.done_at, now) if row.done_at else "",
            "bad": row.state in outbox.NEEDS_A_PERSON,
            "seen": row.seen_by is not None,
        }
        for row in outbox.texts_of(session, case, viewer)
        if row.kind == outbox.ACKNOWLEDGE or _went_wrong(row)
    ]


def _state(words: Words, row: OutboxJob) -> str:
    """Return how far a text is; what the provider says of one that was sent is more."""
    told = terms.OUTCOMES.get(row.report or "") if row.state == JobState.DONE else None
    return words(told) if told else terms.term(words, terms.OUTCOMES, row.state)


def _went_wrong(row: OutboxJob) -> bool:
    tried_in_vain = row.state == JobState.WAITING and row.attempts > 0
    return tried_in_vain or row.state in (*outbox.NEEDS_A_PERSON, JobState.CHECKING)


def trouble(session: Session, words: Words, viewer: Viewer, now: datetime) -> list[dict[str, Any]]:
    """Return what stands between this person's cases and the people who should hear of them, most urgent first.

    Only cases that exist for the viewer count.
    """
    found: list[dict[str, Any]] = []
    if halted(session):
        stopped = words(
            "The ledger is halted: nothing is closed or lowered until it is repaired. Tips come in as always."
        )
        found.append({"words": stopped, "cases": []})
    if said := mailbox.challenged(session, viewer):
        links = [{"href": f"/cases/{case}#challenge", "reference": reference(case)} for case in said]
        found.append({"words": words("A tipster says that something is wrong:"), "cases": links})
    sign = session.get(Sign, WORKER)
    if sign is None or now - sign.at > SILENT:
        since = words.day_and_hour(sign.at, now) if sign else words("the beginning")
        silent = words("The worker is silent since {hour}: nobody is paged and no text goes out.", hour=since)
        found.append({"words": silent, "cases": []})
    if stuck_pages(session, viewer):
        found.append(
            {"words": words("Texts to the phones on duty do not go out. Ring those people yourself."), "cases": []}
        )
    unseen = outbox.unseen(session, viewer)
    if unseen:
        links = [{"href": f"/cases/{case}#texts", "reference": reference(case)} for case in sorted(unseen)]
        found.append(
            {"words": words("A text did not arrive, or may not have. Look, and decide what to do:"), "cases": links}
        )
    return found
