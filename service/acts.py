"""What an owner does with a case and how it is proven (casework.md sections 5 and 6): plan, act, step, referral, court.

Reading, editing, noting and assigning are no acts: nothing here takes a case on without its paper.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import exists, select
from sqlmodel import col

from service.cases import (
    ACTIVE,
    OpenedCase,
    change,
    move,
    state_class,
    transition,
    unmark,
)
from service.casework import FAST, SLOW, Casework, Deed, owned_case, proven, read_case, runs, said
from service.clocks import answer_time, clock_row, meet, next_due, run_again
from service.db import Tx
from service.errors import InvalidForm, WrongState
from service.ledger.events import EventType, NewEvent
from service.models import RANK, Case, Clock, ClockKind, LedgerEvent, Level, OverlayKind, State
from service.walls import Viewer

ACTS = ("contact", "visit", "safety_plan", "care", "evidence", "border_notice")
SEEN_COMING = frozenset({"visit", "border_notice"})  # a suspect could guess from these who told
EMERGENCIES = ("ambulance", "police", "shelter")
STEPS = ("contact_attempt", "letter", "hearing", "answer")
BASES = ("law", "best_interests")
PAPERS_WITHIN = timedelta(hours=72)  # after a referral that was taken by telephone


# --- plan, act, step ------------------------------------------------------------------------------------


def plan(
    tx: Tx, work: Casework, viewer: Viewer, opened: OpenedCase, words: str, guess: str, *, version: int, now: datetime
) -> None:
    """Enter the plan that carries a claim from its lease to the deadline to act.

    guess: the answer to "who could guess who told?", asked before any visit (casework.md section 5).
    Raises NoSuchCase, Forbidden, CaseMoved, WrongState, InvalidForm.
    """
    case = owned_case(tx, viewer, opened, version)
    if case.state not in ACTIVE:
        raise WrongState("A plan belongs to a case that somebody has claimed.")
    fields = said(tx, work, case, {"plan": words, "guess": guess}, needed=("plan", "guess"))
    meet(tx, case, ClockKind.LEASE, now)
    due_at, due_kind = next_due(tx, case)
    event = NewEvent(EventType.PLAN_RECORDED, now, viewer.actor, state_class(case.state), due_at, fields)
    change(tx, work.ledger, case, [event], due_at=due_at, due_kind=due_kind)


def act(tx: Tx, work: Casework, viewer: Viewer, opened: OpenedCase, deed: Deed, *, version: int, now: datetime) -> None:
    """Record a protective act with its proof: the first takes the case from claimed to in action (row 4).

    deed.words: ``when``, ``where``, ``present`` (who was there), and ``what``.
    Raises NoSuchCase, Forbidden, CaseMoved, WrongState, InvalidForm.
    """
    case = owned_case(tx, viewer, opened, version)
    if deed.kind not in ACTS:
        raise InvalidForm("kind", "Choose what was done.")
    if case.state not in ACTIVE:
        raise WrongState("An act belongs to a case that somebody has claimed.")
    if deed.kind in SEEN_COMING and not _planned(tx, case):
        raise WrongState('Enter the plan first: it answers "who could guess who told?"')
    fields = {"kind": deed.kind} | said(tx, work, case, deed.words, needed=("when", "where", "present"))
    fields |= proven(tx, work, viewer, case, deed, now)
    _go_on(tx, work, viewer, case, EventType.ACT_RECORDED, fields, now, acted=True)


def emergency(
    tx: Tx, work: Casework, viewer: Viewer, opened: OpenedCase, deed: Deed, *, version: int, now: datetime
) -> None:
    """Record that ambulance, police or shelter was rung for a P1: by anybody who has read it; meets the act clock.

    deed.words: ``taker`` (name), ``taker_unit``, ``number``, ``when``, and ``what``. The proof is who was reached, at
    which number (casework.md section 5). Raises NoSuchCase, Forbidden, CaseMoved, WrongState, InvalidForm.
    """
    case = read_case(tx, viewer, opened, version)
    if case.level != Level.P1:
        raise WrongState("An emergency act belongs to a P1. Raise the level first.")
    if deed.kind not in EMERGENCIES:
        raise InvalidForm("kind", "Choose who was rung.")
    needed = ("taker", "taker_unit", "number", "when")
    fields = {"kind": deed.kind, "unit": case.unit} | said(tx, work, case, deed.words, needed=needed)
    meet(tx, case, ClockKind.ACT, now)
    if case.state == State.CLAIMED and not runs(tx, case, ClockKind.STEP):
        tx.insert(Clock, [_step_clock(work, case, now)])  # its plan may have ended the lease: some clock always runs
    due_at, due_kind = next_due(tx, case)
    event = NewEvent(EventType.ACT_RECORDED, now, viewer.actor, state_class(case.state), due_at, fields)
    ended = unmark(tx, case, OverlayKind.STALL, viewer.actor, now)
    change(tx, work.ledger, case, [event, *ended], due_at=due_at, due_kind=due_kind)


def step(
    tx: Tx, work: Casework, viewer: Viewer, opened: OpenedCase, deed: Deed, *, version: int, now: datetime
) -> None:
    """Record a step: it moves the case without protecting anybody, and renews the clock of steps alone.

    With a paper from outside the unit it renews the heartbeat too (casework.md section 6). deed.words: ``what``.
    Raises NoSuchCase, Forbidden, CaseMoved, WrongState, InvalidForm.
    """
    case = owned_case(tx, viewer, opened, version)
    if deed.kind not in STEPS:
        raise InvalidForm("kind", "Choose what kind of step it was.")
    if case.state not in ACTIVE - {State.CLAIMED}:
        raise WrongState("A step comes after the first act.")
    fields = {"kind": deed.kind} | said(tx, work, case, deed.words, needed=("what",))
    if deed.proof is not None:
        fields |= proven(tx, work, viewer, case, deed, now)
    _go_on(tx, work, viewer, case, EventType.STEP_RECORDED, fields, now, acted=False)


def release(
    tx: Tx, work: Casework, viewer: Viewer, opened: OpenedCase, reason: str, *, version: int, now: datetime
) -> None:
    """Give a claim back, with a reason. The case is open again with its first claim deadline (row 3)."""
    case = owned_case(tx, viewer, opened, version)
    fields = {"unit": case.unit} | said(tx, work, case, {"reason": reason}, needed=("reason",))
    transition(case, EventType.CASE_RELEASED, viewer.role, viewer.member)
    run_again(tx, case, now)
    meets = (ClockKind.LEASE, ClockKind.STEP)
    _move(tx, work, viewer, case, EventType.CASE_RELEASED, fields, now, meets=meets, owner=None)


# --- referral and court ---------------------------------------------------------------------------------


def refer(
    tx: Tx, work: Casework, viewer: Viewer, opened: OpenedCase, deed: Deed, *, version: int, now: datetime
) -> None:
    """Send a case to an authority (row 5). It stays ours until that has taken it.

    deed.kind: the lawful basis, or best interests. deed.words: ``recipient``; ``summary``, written for them and all
    that they get; with best interests also ``reason``.
    Raises NoSuchCase, Forbidden, CaseMoved, WrongState, InvalidForm.
    """
    case = owned_case(tx, viewer, opened, version)
    if deed.kind not in BASES:
        raise InvalidForm("kind", "Choose what the referral rests on.")
    needed = ("recipient", "summary", *(["reason"] if deed.kind == "best_interests" else []))
    fields = {"basis": deed.kind} | said(tx, work, case, deed.words, needed=needed)
    by = now + work.taken_targets[RANK[case.level]]
    clock = clock_row(case.id, ClockKind.TAKEN, by, EventType.REFERRAL_SENT, answer_time(case.level))
    _move(tx, work, viewer, case, EventType.REFERRAL_SENT, fields, now, meets=[ClockKind.STEP], starts=[clock])


def taken_by_phone(
    tx: Tx, work: Casework, viewer: Viewer, opened: OpenedCase, words: Mapping[str, str], *, version: int, now: datetime
) -> None:
    """Record that an authority took a P1 or P2 on the telephone: reference and document are due in 72 hours.

    It meets the clocks for taking and for acting; the state stays ``referred`` (casework.md section 6).
    words: ``taker``, ``rank``, ``taker_unit``, ``number``, ``when``.
    Raises NoSuchCase, Forbidden, CaseMoved, WrongState, InvalidForm.
    """
    case = owned_case(tx, viewer, opened, version)
    if case.state != State.REFERRED or case.level not in (Level.P1, Level.P2):
        raise WrongState("Only a P1 or P2 that was referred is taken by telephone.")
    if runs(tx, case, ClockKind.PAPERS):
        raise WrongState("It was taken by telephone already: now its reference and document are due.")
    fields = {"kind": "taken_by_phone"}
    fields |= said(tx, work, case, words, needed=("taker", "rank", "taker_unit", "number", "when"))
    for kind in (ClockKind.TAKEN, ClockKind.ACT):
        meet(tx, case, kind, now)
    papers = clock_row(case.id, ClockKind.PAPERS, now + PAPERS_WITHIN, EventType.STEP_RECORDED, answer_time(case.level))
    tx.insert(Clock, [papers])
    due_at, due_kind = next_due(tx, case)
    event = NewEvent(EventType.STEP_RECORDED, now, viewer.actor, state_class(case.state), due_at, fields)
    change(tx, work.ledger, case, [event], due_at=due_at, due_kind=due_kind)


def taken(
    tx: Tx, work: Casework, viewer: Viewer, opened: OpenedCase, deed: Deed, *, version: int, now: datetime
) -> None:
    """Record that an authority has taken the case: its own reference, who took it, its document (row 6).

    deed.words: ``reference``, ``taker``, ``rank``, ``taker_unit``. A referral taken is an act.
    Raises NoSuchCase, Forbidden, CaseMoved, WrongState, InvalidForm.
    """
    case = owned_case(tx, viewer, opened, version)
    fields = said(tx, work, case, deed.words, needed=("reference", "taker", "rank", "taker_unit"))
    fields |= proven(tx, work, viewer, case, deed, now)
    meets = (ClockKind.TAKEN, ClockKind.PAPERS, ClockKind.ACT)
    _move(tx, work, viewer, case, EventType.REFERRAL_TAKEN, fields, now, meets=meets, starts=_heartbeat(case, now))


def not_taken(
    tx: Tx, work: Casework, viewer: Viewer, opened: OpenedCase, reason: str, *, version: int, now: datetime
) -> None:
    """Take a case back from an authority that refused it or let it lie (rows 7 and 10). reason: theirs, or what failed.

    Raises NoSuchCase, Forbidden, CaseMoved, WrongState, InvalidForm.
    """
    case = owned_case(tx, viewer, opened, version)
    fields = said(tx, work, case, {"reason": reason}, needed=("reason",))
    meets = (ClockKind.TAKEN, ClockKind.PAPERS, ClockKind.HEARTBEAT, ClockKind.LETTER)
    starts = [_step_clock(work, case, now)]
    _move(tx, work, viewer, case, EventType.REFERRAL_REFUSED, fields, now, meets=meets, starts=starts)


def to_court(
    tx: Tx, work: Casework, viewer: Viewer, opened: OpenedCase, deed: Deed, *, version: int, now: datetime
) -> None:
    """Record the charge: docket number and paper (row 8). deed.words: ``reference``.

    Raises NoSuchCase, Forbidden, CaseMoved, WrongState, InvalidForm.
    """
    case = read_case(tx, viewer, opened, version)
    fields = said(tx, work, case, deed.words, needed=("reference",)) | proven(tx, work, viewer, case, deed, now)
    _move(tx, work, viewer, case, EventType.COURT_ENTERED, fields, now, meets=_BEATS, starts=_heartbeat(case, now))


def from_court(
    tx: Tx, work: Casework, viewer: Viewer, opened: OpenedCase, deed: Deed, *, version: int, now: datetime
) -> None:
    """Record that a court gave the case back to the authority, by its own paper (row 9). deed.words: ``reason``.

    Raises NoSuchCase, Forbidden, CaseMoved, WrongState, InvalidForm.
    """
    case = read_case(tx, viewer, opened, version)
    fields = said(tx, work, case, deed.words, needed=("reason",)) | proven(tx, work, viewer, case, deed, now)
    _move(tx, work, viewer, case, EventType.COURT_RETURNED, fields, now, meets=_BEATS, starts=_heartbeat(case, now))


# --- what they share ------------------------------------------------------------------------------------

_BEATS = (ClockKind.HEARTBEAT, ClockKind.LETTER)


def _planned(tx: Tx, case: Case) -> bool:
    plans = exists().where(col(LedgerEvent.case) == case.chain, col(LedgerEvent.type) == EventType.PLAN_RECORDED)
    return bool(tx.scalar(select(plans)))


def _step_clock(work: Casework, case: Case, now: datetime) -> dict[str, Any]:
    by = now + work.step_targets[RANK[case.level]]
    return clock_row(case.id, ClockKind.STEP, by, EventType.STEP_RECORDED, answer_time(case.level))


def _heartbeat(case: Case, now: datetime) -> list[dict[str, Any]]:
    """Return the clocks of a case that lies with others: a reminder, then the letter to the next authority.

    Counted from the last step that a paper from outside proves (casework.md section 6): after 7 days for P1 and P2,
    else 14, somebody reminds them; after 15 or 30 the next authority is written to; after 30 or 60 oversight knows.
    """
    beat = FAST if case.level in (Level.P1, Level.P2) else SLOW
    letter = 2 * beat + timedelta(days=1 if beat is FAST else 2)
    return [
        clock_row(case.id, ClockKind.HEARTBEAT, now + beat, EventType.STEP_RECORDED, beat),
        clock_row(case.id, ClockKind.LETTER, now + letter, EventType.STEP_RECORDED, letter),
    ]


def _go_on(
    tx: Tx,
    work: Casework,
    viewer: Viewer,
    case: Case,
    what: EventType,
    fields: Mapping[str, Any],
    now: datetime,
    *,
    acted: bool,
) -> None:
    """Write an act or a step of an owner, with the clocks that it renews and the stall that it ends."""
    papered = "proof" in fields
    meets = [ClockKind.STEP, *([ClockKind.LEASE, ClockKind.ACT] if acted else [])]
    starts = [_step_clock(work, case, now)] if case.state in (State.CLAIMED, State.IN_ACTION) else []
    if papered and case.state in (State.WITH_AUTHORITY, State.IN_COURT):
        meets, starts = [*meets, *_BEATS], _heartbeat(case, now)
    ended = unmark(tx, case, OverlayKind.STALL, viewer.actor, now) if papered else []
    if acted and case.state == State.CLAIMED:
        _move(tx, work, viewer, case, what, fields, now, meets=meets, starts=starts, after=ended)
        return
    for kind in meets:
        meet(tx, case, kind, now)
    tx.insert(Clock, starts)
    due_at, due_kind = next_due(tx, case)
    event = NewEvent(what, now, viewer.actor, state_class(case.state), due_at, fields)
    change(tx, work.ledger, case, [event, *ended], due_at=due_at, due_kind=due_kind)


def _move(
    tx: Tx,
    work: Casework,
    viewer: Viewer,
    case: Case,
    what: EventType,
    fields: Mapping[str, Any],
    now: datetime,
    **rest: Any,
) -> None:
    member: UUID = viewer.member
    move(tx, work.ledger, case, what, actor=viewer.actor, member=member, now=now, fields=fields, **rest)
