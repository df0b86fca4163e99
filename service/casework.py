"""What people do with a case and what all of it needs: the person, the version that was shown, words and papers."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import exists, select
from sqlmodel import col

from service.attachments import NewFile, attach
from service.cases import READERS, OpenedCase, case_public, find, has_opened, state_class, unmoved
from service.db import Sessions, Tx, write
from service.errors import Forbidden, InvalidForm
from service.ledger.events import EventType, Ledger, NewEvent, Sealed, append
from service.models import Case, Clock, ClockKind
from service.vault.cards import Cards
from service.walls import Viewer

LONGEST_WORDS = 8000  # characters
FAST, SLOW = timedelta(days=7), timedelta(days=14)


@dataclass(frozen=True)
class Casework:
    """What it takes to write what people do with a case. Targets by level, as in the settings."""

    ledger: Ledger
    cards: Cards
    row_key: bytes = field(repr=False)
    claim_targets: Sequence[timedelta]
    act_targets: Sequence[timedelta]
    taken_targets: Sequence[timedelta] = (timedelta(hours=2), timedelta(hours=24), *[timedelta(hours=72)] * 2)
    step_targets: Sequence[timedelta] = (FAST, FAST, SLOW, SLOW)


@dataclass(frozen=True, slots=True)
class Deed:
    """One thing somebody did, as a form brings it. words: names to what was written; each is sealed to the case."""

    kind: str
    words: Mapping[str, str]
    proof: NewFile | None = None


def read_case(tx: Tx, viewer: Viewer, opened: OpenedCase, version: int) -> Case:
    """Return a case as it was shown to `viewer`, who may read it and has read it."""
    case = find(tx, viewer, opened.case.id)
    if viewer.role not in READERS:
        raise Forbidden("This role may not take this step.")
    unmoved(tx, case, version)
    if not has_opened(tx, case, viewer):
        raise Forbidden("Open the account first: what is done rests on having read it.")
    return case


def owned_case(tx: Tx, viewer: Viewer, opened: OpenedCase, version: int) -> Case:
    case = read_case(tx, viewer, opened, version)
    if case.owner != viewer.member:
        raise Forbidden("Only the owner of the case takes this step.")
    return case


def said(tx: Tx, work: Casework, case: Case, words: Mapping[str, str], *, needed: Iterable[str]) -> dict[str, Any]:
    """Return what was written as fields of an event, sealed to the case; empty ones are left out."""
    written = {name: text.strip() for name, text in words.items() if text.strip()}
    for name in needed:
        if name not in written:
            raise InvalidForm(name, "This is needed.")
    for name, text in written.items():
        if len(text) > LONGEST_WORDS:
            raise InvalidForm(name, f"Write at most {LONGEST_WORDS} characters here.")
    public = case_public(tx, case, work.row_key)
    return {name: Sealed(text, public) for name, text in written.items()}


def proven(tx: Tx, work: Casework, viewer: Viewer, case: Case, deed: Deed, now: datetime) -> dict[str, Any]:
    if deed.proof is None:
        raise InvalidForm("proof", "Attach the paper, or a photo of it.")
    return attach(tx, work.row_key, viewer, case, deed.proof, now)[1]


def runs(tx: Tx, case: Case, kind: ClockKind) -> bool:
    running = exists().where(
        col(Clock.case) == case.id, col(Clock.kind) == kind, col(Clock.met_at).is_(None), col(Clock.lapsed_at).is_(None)
    )
    return bool(tx.scalar(select(running)))


def note_refused(
    sessions: Sessions, ledger: Ledger, viewer: Viewer, case_id: UUID, what: EventType, now: datetime
) -> None:
    """Write that `viewer` asked for a step that the rules refuse: the try stays in the case's history.

    Nothing is written of a case that does not exist for them. Raises NoSuchCase, StorageUnavailable.
    """

    def note(tx: Tx) -> None:
        case = find(tx, viewer, case_id)
        state = state_class(case.state)
        event = NewEvent(EventType.STEP_REFUSED, now, viewer.actor, state, case.due_at, {"step": str(what)})
        append(tx, ledger, case.chain, [event])

    write(sessions, note)
