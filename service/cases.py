"""Cases: the table of transitions and the one function that changes a case.

The states and rows are those of casework.md sections 2 and 3; rows 4 to 19 come with the casework issue.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import structlog
from sqlalchemy import and_, delete, exists, not_, or_, select, text, update
from sqlmodel import Session, col

from service.canonical import canonical
from service.clocks import RUNNING, clock_row, meet, next_due, run_again
from service.db import Sessions, Tx, write
from service.errors import AlreadyClaimed, CaseMoved, Conflict, Forbidden, HeadMoved, NoSuchCase, WrongState
from service.ledger.events import SYSTEM, Actor, EventType, Ledger, NewEvent, StateClass, append
from service.models import (
    RANK,
    Case,
    CaseDecision,
    CaseKey,
    CaseSeal,
    Clock,
    ClockKind,
    KeyedName,
    LedgerEvent,
    LedgerField,
    Lowering,
    LoweringState,
    Role,
    State,
    Tip,
)
from service.vault import boxes, envelope
from service.vault.cards import Card, Cards, UnitKind
from service.vault.envelope import Kind
from service.vault.members import seal_case_key
from service.walls import Viewer, readable

TELLING = ("record", "fact", "value")  # fields of events that tell what a case is about: sealed behind the wall
STANDING = text("lowering.state IN ('proposed', 'approved')")  # a proposal that has not ended, as its index says it
log = structlog.get_logger("cases")

QUIET = ("clock:", "message:", "content:", "tip:status:", "tip:challenge:")  # events that move no case: see `unmoved`
HOT_FLAGS = ("settlement_attempt", "child_self_report", "leaving_country")
NO_AGE = 99
CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


@dataclass(frozen=True, slots=True)
class Transition:
    """A row of casework.md section 3: who may take a case from one state to another."""

    row: int
    before: State
    after: State
    who: frozenset[str]
    event: EventType


TRANSITIONS = (
    Transition(2, State.OPEN, State.CLAIMED, frozenset({Role.INVESTIGATOR}), EventType.CASE_CLAIMED),
    Transition(3, State.CLAIMED, State.OPEN, frozenset({Role.INVESTIGATOR}), EventType.CASE_RELEASED),
    Transition(3, State.CLAIMED, State.OPEN, frozenset({SYSTEM.role}), EventType.CASE_LEASE_LAPSED),
)


def transition(before: str, after: State, role: str) -> Transition:
    """Return the row that lets `role` take a case from `before` to `after`.

    Raises WrongState when no row starts there, Forbidden when one does but not for this role.
    """
    rows = [row for row in TRANSITIONS if row.before == before and row.after == after]
    if not rows:
        raise WrongState(f"A case that is {before} cannot become {after}.")
    for row in rows:
        if role in row.who:
            return row
    raise Forbidden("This role may not take this step.")


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
    """Return the public key that what arrives now is sealed to. Raises CannotOpen if its row was planted."""
    key = tx.scalars(
        select(CaseKey).where(col(CaseKey.case) == case.id, col(CaseKey.generation) == case.generation)
    ).one()
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
    row = transition(case.state, State.CLAIMED, viewer.role)
    if case.unit not in viewer.units:
        raise Forbidden("Another unit works this case.")
    unmoved(tx, case, version)
    until = now + leases[RANK[case.level]]
    meet(tx, case, ClockKind.CLAIM, now)
    tx.insert(Clock, [clock_row(case.id, ClockKind.LEASE, until, row.event)])
    due_at, due_kind = next_due(tx, case)
    event = NewEvent(row.event, now, viewer.actor, StateClass.OPEN, due_at, {"unit": case.unit})
    change(tx, ledger, case, [event], state=State.CLAIMED, owner=viewer.member, due_at=due_at, due_kind=due_kind)


def lapse_leases(sessions: Sessions, ledger: Ledger, now: datetime) -> int:
    """End every claim whose lease is over, and return how many. Safe to run twice and at once.

    The case is open again with its first claim deadline, so that claiming and dropping gains nothing.
    """
    lapsed = and_(col(Clock.kind) == ClockKind.LEASE, RUNNING, col(Clock.due_at) < now)
    with sessions.read() as session:
        waiting = session.execute(select(col(Clock.id), col(Clock.case)).where(lapsed).limit(1000)).all()
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
    row = transition(case.state, State.OPEN, SYSTEM.role)
    due_at, due_kind = run_again(tx, case, now)
    event = NewEvent(row.event, now, SYSTEM, StateClass.OPEN, due_at, {"unit": case.unit})
    change(tx, ledger, case, [event], state=State.OPEN, owner=None, due_at=due_at, due_kind=due_kind)


# --- hand-on --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OpenedCase:
    """A case whose key is in memory: for one request, never stored."""

    case: Case
    privates: Mapping[int, bytes]  # generation -> case private key


def hand_on(
    tx: Tx,
    ledger: Ledger,
    viewer: Viewer,
    opened: OpenedCase,
    deck: Cards,
    *,
    unit: str,
    answer: str,
    version: int,
    now: datetime,
) -> str:
    """Seal a handling unit in, or the integrity unit, and return the unit that has the case now.

    answer: ``no``, ``yes`` or ``unsure`` to "does the account name or hint at someone tied to this unit?"
    (casework.md section 3). Anything but ``no`` goes to integrity behind the wall. The screener must have opened
    the account before. Raises NoSuchCase, Forbidden, WrongState, CaseMoved.
    """
    case = find(tx, viewer, opened.case.id)
    if viewer.role != Role.SCREENER or case.unit not in viewer.units:
        raise Forbidden("Only the screener whose unit has the case hands it on.")
    if case.state != State.OPEN:
        raise WrongState("Only an open case is handed on.")
    unmoved(tx, case, version)
    if not has_opened(tx, case, viewer):
        raise Forbidden("Open the account first: a machine cannot hear whom it names.")
    if answer not in ("no", "yes", "unsure"):
        raise Forbidden("The question needs an answer.")
    target = next((card for card in deck.of_kind(UnitKind.UNIT) if card.unit == unit), None)
    if target is None:
        raise Forbidden("A case is handed on to a handling unit.")
    if answer != "no":
        cause = f"screener:{answer}:{unit}"
        return wall(tx, ledger, case, deck, opened.privates, actor=viewer.actor, cause=cause, now=now)
    for generation, private in opened.privates.items():
        tx.insert(CaseSeal, [seal_row(target, case.id, generation, private)])
    event = NewEvent(
        EventType.CASE_UNIT_SEALED,
        now,
        viewer.actor,
        StateClass.OPEN,
        case.due_at,
        {"unit": target.unit, "named": answer},
    )
    change(tx, ledger, case, [event], unit=target.unit)
    return target.unit


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
    What was proposed to lower it lapses: who proposed it may not see it any more.
    cause: what named an official: ``screener``, ``words``, ``facts``, ``rules``. events: further ones of the same act.
    """
    integrity = deck.integrity() or deck.oversight_for(deck.screening().organisation)
    oversight = deck.oversight_for(integrity.organisation)
    keep = {integrity.unit, oversight.unit, case.oversight}
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
        "generation": generation,
    }
    lapsed = lapse_lowering(tx, case, now, case.due_at)
    # Whoever claimed it is gone, and its first deadline runs again: earlier, perhaps, than what a rise has set.
    values |= columns | _without_owner(tx, case, now)
    change(tx, ledger, case, [*events, event, *lapsed], **values)
    return integrity.unit


def _without_owner(tx: Tx, case: Case, now: datetime) -> dict[str, Any]:
    """End a claim behind the wall, and return the columns of a case that is open again with its first deadline."""
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
