"""Cases: the table of transitions and the one function that changes a case.

The states and rows are those of casework.md sections 2 and 3.
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from types import MappingProxyType
from typing import Any
from uuid import UUID, uuid4

import structlog
from sqlalchemy import and_, delete, exists, not_, or_, select, text, update
from sqlmodel import Session, col

from service.canonical import canonical
from service.clocks import RUNNING, clock_row, meet, meet_all, next_due, run_again
from service.db import Sessions, Tx, write
from service.errors import (
    AlreadyClaimed,
    CannotOpen,
    CaseMoved,
    Conflict,
    Forbidden,
    HeadMoved,
    InvalidForm,
    NoSuchCase,
    WrongState,
)
from service.ledger.events import SYSTEM, Actor, EventType, Ledger, NewEvent, Sealed, StateClass, append
from service.models import (
    RANK,
    Case,
    CaseDecision,
    CaseKey,
    CaseSeal,
    Clock,
    ClockKind,
    Closure,
    ClosureState,
    KeyedName,
    LedgerEvent,
    LedgerField,
    Lowering,
    LoweringState,
    Overlay,
    OverlayKind,
    Role,
    State,
    Tip,
)
from service.vault import boxes, envelope
from service.vault.cards import Card, Cards, UnitKind
from service.vault.case_keys import seal_case_key
from service.vault.envelope import Kind
from service.walls import Viewer, readable

TELLING = ("record", "fact", "value")  # fields of events that tell what a case is about: sealed behind the wall
STANDING = text("lowering.state IN ('proposed', 'approved')")  # a proposal that has not ended, as its index says it
STANDING_CLOSURE = text("closure.state IN ('proposed', 'signed')")  # likewise, to close it
log = structlog.get_logger("cases")

# Events that move no case: see `unmoved`. What the rules refused to one must not undo the page of another.
QUIET = ("clock:", "message:", "content:", "tip:status:", "tip:challenge:", "case:step:refused", "case:reason:rejected")
HOT_FLAGS = ("settlement_attempt", "child_self_report", "leaving_country")
NO_AGE = 99
CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


@dataclass(frozen=True, slots=True)
class Transition:
    """A row of casework.md section 3: who may take a case from which states to which, by which event.

    after: None for back to where it was (`Case.back`). who: roles; ``owner`` besides, only the case's owner.
    proof: fields that the event must carry, none of them empty. weakens: a row marked † there, which the overlays of
    `STOPPING` refuse.
    """

    row: int
    before: frozenset[State]
    after: State | None
    event: EventType
    who: frozenset[str]
    owner: bool = False
    proof: tuple[str, ...] = ()
    weakens: bool = False


def _rows(
    row: int,
    before: Iterable[State],
    after: State | None,
    event: EventType,
    who: Iterable[str],
    *proof: str,
    owner: bool = False,
    weakens: bool = False,
) -> Transition:
    return Transition(row, frozenset(before), after, event, frozenset(who), owner, proof, weakens)


ACTIVE = frozenset({State.CLAIMED, State.IN_ACTION, State.REFERRED, State.WITH_AUTHORITY, State.IN_COURT})
NOT_CLOSED = frozenset(State) - {State.CLOSED}
READERS = frozenset(
    {Role.SCREENER, Role.INVESTIGATOR, Role.SUPERVISOR, Role.OVERSIGHT, Role.ADVOCATE, Role.LEGAL}
)  # who may open a case's file (casework.md section 1)
OWNERS, BY_SYSTEM = (Role.INVESTIGATOR,), (SYSTEM.role,)
ANYONE = (*READERS, SYSTEM.role)

# Row 1 is intake's. Within a row, each event and who may bring it about stands on a line of its own.
TRANSITIONS = (
    _rows(2, {State.OPEN}, State.CLAIMED, EventType.CASE_CLAIMED, OWNERS),
    _rows(3, {State.CLAIMED}, State.OPEN, EventType.CASE_RELEASED, OWNERS, "reason", owner=True),
    _rows(3, {State.CLAIMED}, State.OPEN, EventType.CASE_LEASE_LAPSED, BY_SYSTEM),
    _rows(4, {State.CLAIMED}, State.IN_ACTION, EventType.ACT_RECORDED, OWNERS, "kind", "when", "proof", owner=True),
    _rows(5, {State.IN_ACTION}, State.REFERRED, EventType.REFERRAL_SENT, OWNERS, "recipient", "basis", owner=True),
    _rows(
        6,
        {State.REFERRED},
        State.WITH_AUTHORITY,
        EventType.REFERRAL_TAKEN,
        OWNERS,
        *("reference", "taker", "rank", "taker_unit", "proof"),
        owner=True,
    ),
    _rows(7, {State.REFERRED}, State.IN_ACTION, EventType.REFERRAL_REFUSED, OWNERS, "reason", owner=True),
    _rows(8, {State.WITH_AUTHORITY}, State.IN_COURT, EventType.COURT_ENTERED, (Role.LEGAL,), "reference", "proof"),
    _rows(9, {State.IN_COURT}, State.WITH_AUTHORITY, EventType.COURT_RETURNED, (Role.LEGAL,), "reason", "proof"),
    _rows(10, {State.WITH_AUTHORITY}, State.IN_ACTION, EventType.REFERRAL_REFUSED, OWNERS, "reason", owner=True),
    _rows(
        11,
        NOT_CLOSED - {State.WITHDRAWAL_REVIEW},
        State.WITHDRAWAL_REVIEW,
        EventType.WITHDRAWAL_RECORDED,
        READERS,
        *("wanted_by", "where", "present"),
    ),
    _rows(12, {State.WITHDRAWAL_REVIEW}, None, EventType.REVIEW_HELD, (Role.OVERSIGHT,), "advocate", "heard"),
    _rows(12, {State.WITHDRAWAL_REVIEW}, None, EventType.REVIEW_LAPSED, BY_SYSTEM),
    _rows(
        13,
        ACTIVE,
        State.CLOSURE_PROPOSED,
        EventType.CLOSURE_PROPOSED,
        OWNERS,
        *("code", "why", "proof"),
        owner=True,
        weakens=True,
    ),
    _rows(14, {State.CLOSURE_PROPOSED}, State.CLOSED, EventType.CLOSURE_EFFECTIVE, BY_SYSTEM, "closure", weakens=True),
    _rows(
        16,
        {State.CLOSURE_PROPOSED},
        None,
        EventType.CLOSURE_REFUSED,
        (Role.SUPERVISOR, Role.OVERSIGHT),
        "reason",
    ),
    _rows(16, {State.CLOSURE_PROPOSED}, None, EventType.CLOSURE_STOPPED, BY_SYSTEM, "cause"),
    _rows(16, {State.CLOSURE_PROPOSED}, None, EventType.CLOSURE_EXPIRED, BY_SYSTEM),
    _rows(17, {State.CLOSED}, State.CLAIMED, EventType.CASE_REOPENED, ANYONE, "reason"),
)


def transition(case: Case, event: EventType, role: str, member: UUID | None) -> Transition:
    """Return the row by which `event` moves `case` when a person of `role` brings it about.

    member: who; None for the system. Raises WrongState when no row starts at the case's state, Forbidden when one
    does but not for this role or person.
    """
    rows = [row for row in TRANSITIONS if row.event == event and case.state in row.before]
    if not rows:
        raise WrongState(f"This step does not fit a case that is {case.state}.")
    for row in rows:
        if role in row.who and (not row.owner or case.owner == member):
            return row
    raise Forbidden(
        "Only the owner of the case takes this step." if rows[0].owner else "This role may not take this step."
    )


# Overlays that refuse what ends or weakens a case (casework.md section 4, marked †).
STOPPING = frozenset(
    {
        OverlayKind.STALL,
        OverlayKind.FLIGHT,
        OverlayKind.SIGNAL,
        OverlayKind.REVIEW_OWED,
        OverlayKind.OVERSIGHT_HOLD,
    }
)


def overlays(session: Session, case: Case) -> frozenset[str]:
    """Return the marks that stand beside the case's state."""
    standing = select(col(Overlay.kind)).where(col(Overlay.case) == case.id, col(Overlay.ended_at).is_(None))
    return frozenset(session.scalars(standing).all())


def stop_closure(tx: Tx, ledger: Ledger, case: Case, cause: str, now: datetime) -> bool:
    """Stop a proposal to close because something new came, and return whether one stood (casework.md row 16).

    cause: a code: ``message``, ``fact``, ``settlement``, ``withdrawal``, ``challenge``, ``level``.
    """
    if case.state != State.CLOSURE_PROPOSED:
        return False
    end_closure(tx, case, ClosureState.STOPPED)
    kinds = (ClockKind.COOLING, ClockKind.DECISION)
    fields = {"cause": cause}
    move(tx, ledger, case, EventType.CLOSURE_STOPPED, actor=SYSTEM, now=now, fields=fields, meets=kinds)
    return True


def end_closure(tx: Tx, case: Case, how: ClosureState) -> None:
    """Say how the proposal that stands to close a case has ended."""
    standing = and_(col(Closure.case) == case.id, STANDING_CLOSURE)
    tx.execute(update(Closure).where(standing).values(state=how))


def mark(tx: Tx, case: Case, kind: OverlayKind, now: datetime) -> list[NewEvent]:
    """Set an overlay, and return the event that says so; none if it stands already. The caller appends it."""
    if kind in overlays(tx, case):
        return []
    tx.add(Overlay(id=uuid4(), case=case.id, kind=kind, set_at=now))
    tx.flush()
    return [NewEvent(EventType.OVERLAY_SET, now, SYSTEM, state_class(case.state), case.due_at, {"overlay": kind})]


def unmark(tx: Tx, case: Case, kind: OverlayKind, actor: Actor, now: datetime) -> list[NewEvent]:
    """End an overlay, and return the event that says so; none if it does not stand. The caller appends it."""
    standing = and_(col(Overlay.case) == case.id, col(Overlay.kind) == kind, col(Overlay.ended_at).is_(None))
    ended = tx.execute(update(Overlay).where(standing).values(ended_at=now))
    if ended.rowcount == 0:  # type: ignore[attr-defined]
        return []
    return [NewEvent(EventType.OVERLAY_ENDED, now, actor, state_class(case.state), case.due_at, {"overlay": kind})]


def move(
    tx: Tx,
    ledger: Ledger,
    case: Case,
    event: EventType,
    *,
    actor: Actor,
    now: datetime,
    fields: Mapping[str, Any] = MappingProxyType({}),
    member: UUID | None = None,
    meets: Iterable[ClockKind] = (),
    starts: Iterable[dict[str, Any]] = (),
    before: Sequence[NewEvent] = (),
    after: Sequence[NewEvent] = (),
    effect: Mapping[str, Any] | None = None,
    **columns: Any,
) -> None:
    """Take a case along one row of `TRANSITIONS`: the only way to another state.

    meets: the kinds of running clocks that this step ends. starts: rows of new ones (`clocks.clock_row`). before,
    after: further events of the same act, around the one that moves it. member: who takes the step, None for the
    system. Raises WrongState, Forbidden, InvalidForm for a proof that is missing, HeadMoved.
    """
    row = transition(case, event, actor.role, member)
    for name in row.proof:
        value = fields.get(name)
        if not (value.value if isinstance(value, Sealed) else value):
            raise InvalidForm(name, "This step needs it.")
    if row.weakens and (stopping := overlays(tx, case) & STOPPING):
        raise WrongState(f"Not while this stands beside the case: {', '.join(sorted(stopping))}.")
    for kind in meets:
        meet(tx, case, kind, now)
    tx.insert(Clock, list(starts))
    state = State(case.back) if row.after is None else row.after
    if case.state in ACTIVE or case.state == State.OPEN:
        columns["back"] = case.state
    closed = state == State.CLOSED
    if closed:
        meet_all(tx, case, now)
    due_at, due_kind = (case.due_at, case.due_kind) if closed else next_due(tx, case)
    moved = NewEvent(event, now, actor, state_class(state), None if closed else due_at, fields, effect=effect)
    values = {"state": state, "due_at": due_at, "due_kind": due_kind} | columns
    change(tx, ledger, case, [*before, moved, *after], **values)


def reference(case: UUID) -> str:
    """Return how people name a case aloud: eight symbols of its random id, like ``K7Q4-F2MW``."""
    number = case.int >> 88
    symbols = [CROCKFORD[number >> shift & 31] for shift in range(35, -1, -5)]
    return "".join(symbols[:4]) + "-" + "".join(symbols[4:])


def flag_rank(flags: Sequence[str]) -> int:
    """Return 0 to 7, smaller first: the three flags that order the queue (DESIGN section 9)."""
    return 7 - sum(4 >> place for place, flag in enumerate(HOT_FLAGS) if flag in flags)


# --- change ---------------------------------------------------------------------------------------------


def change(tx: Tx, ledger: Ledger, case: Case, events: Sequence[NewEvent], **columns: Any) -> None:
    """Change `columns` of a case and append the events that say so: the only writer of a case's row.

    The row's version becomes the sequence number of the last event; a trigger refuses any other.
    Raises HeadMoved when something else came first; ``write`` runs the use case again.
    """
    version = append(tx, ledger, case.chain, events)
    changed = tx.execute(
        update(Case)
        .where(col(Case.id) == case.id, col(Case.version) == case.version)
        .values(**columns, version=version)
        .execution_options(synchronize_session=False)
    )
    if changed.rowcount != 1:  # type: ignore[attr-defined]
        raise HeadMoved("Another event came first.")
    if case in tx:
        tx.expire(case)


def unmoved(tx: Session, case: Case, version: int) -> None:
    """Return if nobody has done anything with the case, and nothing has come, since `version` was shown.

    A clock's step, a text that was sent and an opening are no reason to refuse a claim: the page at five minutes must
    not make the claim at five minutes fail. Nor may a refusal tell that a tipster has complained. Raises CaseMoved.
    """
    since = and_(col(LedgerEvent.case) == case.chain, col(LedgerEvent.seq) > version)
    quiet = or_(*(col(LedgerEvent.type).startswith(subject) for subject in QUIET))
    if version > case.version or tx.scalar(select(exists().where(since, not_(quiet)))):
        raise CaseMoved("The case has changed since this page was shown.")


def state_class(state: str) -> StateClass:
    """Return what a census shows of a state."""
    known = {
        State.CLOSED: StateClass.CLOSED,
        State.WATCH: StateClass.WATCH,
        State.CLOSURE_PROPOSED: StateClass.CLOSING,
    }
    return known.get(State(state), StateClass.OPEN)


def find(tx: Session, viewer: Viewer, case_id: UUID) -> Case:
    """Return the case if it exists for `viewer`. Raises NoSuchCase, the same for forbidden and unknown."""
    case = tx.scalars(select(Case).where(col(Case.id) == case_id, readable(viewer))).one_or_none()
    if case is None:
        raise NoSuchCase
    return case


def case_public(tx: Session, case: Case, row_key: bytes) -> bytes:
    """Return the public key that what arrives now is sealed to.

    Raises CannotOpen if its row was planted, or if the case was put back to a generation before its newest.
    """
    key = tx.scalars(
        select(CaseKey).where(col(CaseKey.case) == case.id).order_by(col(CaseKey.generation).desc()).limit(1)
    ).one()
    if key.generation != case.generation:
        raise CannotOpen("the case is not at the newest generation of its key")
    boxes.check_row_tag(row_key, case_key_row(key.case, key.generation, key.public), key.row_tag)
    return key.public


def case_key_row(case: UUID, generation: int, public: bytes) -> dict[str, object]:
    """Return the fixed columns of a ``case_key`` row, for its tag (keys.md section 3)."""
    return {"table": "case_key", "case": case.hex, "g": generation, "pk": public}


def case_key_insert(row_key: bytes, case: UUID, generation: int, public: bytes) -> dict[str, Any]:
    """Return a tagged ``case_key`` row."""
    tag = boxes.row_tag(row_key, case_key_row(case, generation, public))
    return {"case": case, "generation": generation, "public": public, "row_tag": tag}


# --- claims ---------------------------------------------------------------------------------------------


def claim(
    tx: Tx, ledger: Ledger, viewer: Viewer, case_id: UUID, *, version: int, leases: Sequence[timedelta], now: datetime
) -> None:
    """Take an open case: of two claims at once one wins. The claim is a lease (triage.md section 10).

    leases: how long a claim holds, by level. Raises NoSuchCase, Forbidden, WrongState, CaseMoved, AlreadyClaimed.
    """
    case = find(tx, viewer, case_id)
    if case.state == State.CLAIMED:
        raise AlreadyClaimed("Somebody else has taken this case.")
    transition(case, EventType.CASE_CLAIMED, viewer.role, viewer.member)
    if case.unit not in viewer.units:
        raise Forbidden("Another unit works this case.")
    unmoved(tx, case, version)
    until = now + leases[RANK[case.level]]
    move(
        tx,
        ledger,
        case,
        EventType.CASE_CLAIMED,
        actor=viewer.actor,
        member=viewer.member,
        now=now,
        fields={"unit": case.unit},
        meets=[ClockKind.CLAIM],
        starts=[clock_row(case.id, ClockKind.LEASE, until, EventType.CASE_CLAIMED)],
        owner=viewer.member,
    )


def lapse_leases(sessions: Sessions, ledger: Ledger, now: datetime, viewer: Viewer | None = None) -> int:
    """End every claim whose lease is over, and return how many. Safe to run twice and at once.

    viewer: only claims of cases that exist for them, so that no page takes longer for a case that does not.

    The case is open again with its first claim deadline, so that claiming and dropping gains nothing.
    """
    lapsed = and_(col(Clock.kind) == ClockKind.LEASE, RUNNING, col(Clock.due_at) < now)
    overdue = select(col(Clock.id), col(Clock.case)).where(lapsed)
    if viewer is not None:
        overdue = overdue.join(Case, col(Case.id) == col(Clock.case)).where(readable(viewer))
    with sessions.read() as session:
        waiting = session.execute(overdue.limit(1000)).all()
    for clock_id, case_id in waiting:
        try:
            write(sessions, partial(_lapse, ledger=ledger, clock_id=clock_id, case_id=case_id, now=now))
        except Conflict as fault:  # this case's alone; a database that is away ends the round
            log.warning("lease_not_lapsed", error=type(fault).__name__)
    return len(waiting)


def _lapse(tx: Tx, *, ledger: Ledger, clock_id: UUID, case_id: UUID, now: datetime) -> None:
    ended = tx.execute(update(Clock).where(col(Clock.id) == clock_id, RUNNING).values(lapsed_at=now))
    case = tx.get(Case, case_id)
    if ended.rowcount != 1 or case is None:  # type: ignore[attr-defined]
        return
    if case.state != State.CLAIMED:
        return
    run_again(tx, case, now)
    move(
        tx,
        ledger,
        case,
        EventType.CASE_LEASE_LAPSED,
        actor=SYSTEM,
        now=now,
        fields={"unit": case.unit},
        meets=[ClockKind.STEP],
        owner=None,
    )


# --- hand-on --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OpenedCase:
    """A case whose key is in memory: for one request, never stored."""

    case: Case
    privates: Mapping[int, bytes]  # generation -> case private key
    barred: frozenset[str] = frozenset()  # units that its wall names: it must not be sealed to them


def for_hand_on(
    tx: Tx, viewer: Viewer, opened: OpenedCase, deck: Cards, *, unit: str, version: int
) -> tuple[Case, Card]:
    """Return the case that a screener hands on, and the card of the handling unit. The screener has opened its account.

    Raises NoSuchCase, Forbidden, also for a unit behind the wall of the case, WrongState, CaseMoved.
    """
    case = find(tx, viewer, opened.case.id)
    if viewer.role != Role.SCREENER or case.unit not in viewer.units:
        raise Forbidden("Only the screener whose unit has the case hands it on.")
    if case.state != State.OPEN:
        raise WrongState("Only an open case is handed on.")
    unmoved(tx, case, version)
    if not has_opened(tx, case, viewer):
        raise Forbidden("Open the account first: a machine cannot hear whom it names.")
    target = next((card for card in deck.of_kind(UnitKind.UNIT) if card.unit == unit), None)
    if target is None:
        raise Forbidden("A case is handed on to a handling unit.")
    if target.unit in opened.barred:
        raise Forbidden("This unit is behind the wall of this case.")
    return case, target


def seal_in(
    tx: Tx, ledger: Ledger, viewer: Viewer, opened: OpenedCase, case: Case, target: Card, now: datetime
) -> None:
    """Seal a handling unit in, that the account does not name: it works the case from now on."""
    for generation, private in opened.privates.items():
        tx.insert(CaseSeal, [seal_row(target, case.id, generation, private)])
    fields = {"unit": target.unit, "named": "no"}
    event = NewEvent(EventType.CASE_UNIT_SEALED, now, viewer.actor, StateClass.OPEN, case.due_at, fields)
    change(tx, ledger, case, [event], unit=target.unit)


def has_opened(tx: Session, case: Case, viewer: Viewer) -> bool:
    """Return whether `viewer` has ever opened the case's account."""
    who = canonical(viewer.member.hex)
    return bool(
        tx.scalar(
            select(
                exists().where(
                    col(LedgerEvent.case) == case.chain,
                    col(LedgerEvent.type) == EventType.CONTENT_OPENED,
                    col(LedgerField.eid) == col(LedgerEvent.eid),
                    col(LedgerField.name) == "who",
                    col(LedgerField.value) == who,
                )
            )
        )
    )


def seal_row(card: Card, case: UUID, generation: int, private: bytes) -> dict[str, Any]:
    """Return the row that lets a unit open a case: its private key sealed to the unit's card."""
    return {
        "case": case,
        "generation": generation,
        "unit": card.unit,
        "unit_generation": card.generation,
        "sealed": seal_case_key(card.public, case, generation, card.unit, card.generation, private),
    }


def wall(
    tx: Tx,
    ledger: Ledger,
    case: Case,
    deck: Cards,
    privates: Mapping[int, bytes],
    barred: frozenset[str],
    *,
    actor: Actor,
    cause: str,
    now: datetime,
    events: Sequence[NewEvent] = (),
    **columns: Any,
) -> str:
    """Put a case behind the wall: integrity and oversight hold it, for everybody else it is gone.

    Returns the unit that works it now.

    privates: the case's private keys that the caller holds, by generation; integrity gets those. Columns that
    tell what the case is about are emptied, and decisions in clear are sealed to the case (keys.md section 5).
    What was proposed to lower it lapses: who proposed it may not see it any more. barred: units that the case's wall
    names (`walls.barred_units`); oversight alone holds it where integrity is one of them.
    cause: what named an official: ``screener``, ``words``, ``facts``, ``rules``. events: further ones of the same act.
    """
    integrity, oversight = behind_the_wall(deck, barred)
    keep = {integrity.unit, oversight.unit, case.oversight} - barred
    tx.execute(delete(CaseSeal).where(col(CaseSeal.case) == case.id, col(CaseSeal.unit).not_in(keep)))
    tips = select(col(Tip.id)).where(col(Tip.case) == case.id)
    tx.execute(delete(KeyedName).where(col(KeyedName.tip).in_(tips)))  # counts elsewhere would tell of it
    held = {
        (g, u)
        for g, u in tx.execute(
            select(col(CaseSeal.generation), col(CaseSeal.unit)).where(col(CaseSeal.case) == case.id)
        ).all()
    }
    rows = [
        seal_row(card, case.id, generation, private)
        for generation, private in privates.items()
        for card in {integrity.unit: integrity, oversight.unit: oversight}.values()
        if (generation, card.unit) not in held
    ]
    tx.insert(CaseSeal, rows)
    generation = max([case.generation, *privates])
    public = tx.scalars(
        select(CaseKey.public).where(  # type: ignore[call-overload]
            col(CaseKey.case) == case.id, col(CaseKey.generation) == generation
        )
    ).one()
    _seal_decisions(tx, case, generation, public)
    event = NewEvent(
        EventType.CASE_WALL_RAISED, now, actor, StateClass.OPEN, case.due_at, {"unit": integrity.unit, "cause": cause}
    )
    values: dict[str, Any] = {
        "walled": True,
        "flags": None,
        "flag_rank": 7,
        "age_rank": NO_AGE,
        "province": None,
        "venue": None,
        "unit": integrity.unit,
        "oversight": oversight.unit if case.oversight in barred else case.oversight,
        "generation": generation,
    }
    lapsed = lapse_lowering(tx, case, now, case.due_at)
    # Whoever claimed it is gone, and its first deadline runs again: earlier, perhaps, than what a rise has set.
    values |= columns | without_owner(tx, case, now)
    change(tx, ledger, case, [*events, event, *lapsed], **values)
    return integrity.unit


def behind_the_wall(deck: Cards, barred: Collection[str]) -> tuple[Card, Card]:
    """Return the units that hold a case behind the wall: integrity and an oversight unit of another organisation.

    barred: units that its wall names. Without integrity, oversight alone (casework.md section 10).
    Raises Forbidden where nobody of oversight would be left: a case is never without a reader.
    """
    free = [card for card in deck.of_kind(UnitKind.OVERSIGHT) if card.unit not in barred]
    if not free:
        raise Forbidden("Somebody of oversight must be left to see the case.")
    integrity = deck.integrity()
    if integrity is None or integrity.unit in barred:
        screening = deck.screening().organisation
        integrity = next((card for card in free if card.organisation != screening), free[0])
    others = [card for card in free if card.organisation != integrity.organisation]
    return integrity, others[0] if others else free[0]


def without_owner(tx: Tx, case: Case, now: datetime) -> dict[str, Any]:
    """End the claim of somebody behind the wall; return the columns of a case that is open again, with its first
    deadline.
    """
    if case.state != State.CLAIMED:
        return {}
    of_case = col(Clock.case) == case.id
    tx.execute(update(Clock).where(of_case, col(Clock.kind) == ClockKind.LEASE, RUNNING).values(lapsed_at=now))
    due_at, due_kind = run_again(tx, case, now)
    return {"state": State.OPEN, "owner": None, "due_at": due_at, "due_kind": due_kind}


def _seal_decisions(tx: Tx, case: Case, generation: int, public: bytes) -> None:
    """Seal the decisions that stand in clear, and what the history's fields tell of them."""
    for decision in tx.scalars(
        select(CaseDecision).where(col(CaseDecision.case) == case.id, col(CaseDecision.record).is_not(None))
    ).all():
        record = (decision.record or b"").decode()
        facts = {"flags": json.loads(case.flags or "[]"), "province": case.province, "venue": case.venue}
        sealed = seal_facts(public, case.id, generation, case.received_hour, {**facts, "record": record})
        decision.record, decision.header, decision.seal, decision.body = None, *sealed
    tx.flush()
    told = select(col(LedgerEvent.eid)).where(col(LedgerEvent.case) == case.chain)
    telling = col(LedgerField.name).in_(TELLING)
    for row in tx.scalars(
        select(LedgerField).where(col(LedgerField.eid).in_(told), telling, col(LedgerField.sealed).is_(False))
    ).all():
        secret = (row.salt or b"") + row.value
        row.value = boxes.seal(public, f"field|{row.eid}|{row.name}", secret)
        row.salt, row.sealed = None, True
    tx.flush()


def lapse_lowering(tx: Tx, case: Case, now: datetime, due_at: datetime, *, floor: str | None = None) -> list[NewEvent]:
    """End what stands proposed to lower the case, signed or not; return the event that says so, or none.

    floor: the most urgent level that the rules give now, before a cap: it ends only what was proposed under a calmer
    one (triage.md section 9). None ends it in any case. due_at: the case's next deadline.
    """
    lowering = standing_lowering(tx, case)
    if lowering is None or (floor is not None and floor >= lowering.floor):
        return []
    lowering.state = LoweringState.LAPSED
    tx.flush()
    fields = {"lowering": lowering.id.hex, "before": lowering.before, "after": lowering.after}
    return [NewEvent(EventType.LOWERING_LAPSED, now, SYSTEM, state_class(case.state), due_at, fields)]


def standing_lowering(session: Session, case: Case) -> Lowering | None:
    """Return what stands proposed to lower the case, signed by all or not yet; at most one does."""
    return session.scalars(select(Lowering).where(col(Lowering.case) == case.id, STANDING)).one_or_none()


def seal_facts(
    public: bytes, case: UUID, generation: int, hour: datetime, facts: Mapping[str, Any]
) -> tuple[bytes, bytes, bytes]:
    """Return header, seal and body of a ``facts`` envelope: what a walled case must not show in its columns."""
    header = envelope.header(case, generation, hour, uuid4(), Kind.FACTS)
    sealed = envelope.seal_words(public, header, json.dumps(facts, ensure_ascii=False, sort_keys=True))
    return sealed.header, sealed.seal, sealed.body
