"""Changing a level: facts that staff confirm, a rise by hand, a fall that two units agree to (triage.md section 9).

A rise applies itself. A fall is only ever proposed; when all have signed it stays so, as an effect of its event, until
the ledger's witnesses have seen that (ledger.md section 6).
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import structlog
from sqlalchemy import exists, or_, select
from sqlmodel import Session, col

from service.cases import (
    READERS,
    STANDING,
    OpenedCase,
    case_key_insert,
    case_public,
    change,
    find,
    has_opened,
    lapse_lowering,
    standing_lowering,
    state_class,
    stop_closure,
    unmoved,
    wall,
)
from service.clocks import lower_level
from service.db import Tx
from service.decisions import (
    WALL_ROUTE,
    Known,
    SealTo,
    decision_event,
    decision_row,
    fact_columns,
    known,
    latest_decision,
    rise,
)
from service.errors import Forbidden, InvalidForm, NotFound, WrongState
from service.ledger.events import SYSTEM, Actor, EventType, Ledger, NewEvent, Sealed
from service.ledger.tree import must_run
from service.models import (
    RANK,
    Case,
    CaseDecision,
    CaseKey,
    CaseSeal,
    Clock,
    ClockKind,
    Lowering,
    LoweringState,
    Role,
    State,
    UnitGrant,
)
from service.triage import ASKS, FACTS, Decision, Fact, FactType, Ruleset, Source, engine_fault, merge
from service.triage.decide import decide
from service.vault import boxes
from service.vault.cards import Cards, UnitKind
from service.walls import Viewer, barred_units, readable

log = structlog.get_logger("levels")

SHORTEST_REASON = 40  # characters
NEVER_LOWERED = "R020"  # an earlier case was closed incomplete
MOST_RISES = 3
NOT_CONFIRMED = frozenset({"count", "history"})  # groups of facts: sealed and for the count only; worked out, not said


@dataclass(frozen=True)
class Judge:
    """The rules, and what it takes to write what they say. Targets by level, as in the settings."""

    ledger: Ledger
    cards: Cards
    row_key: bytes = field(repr=False)
    ruleset: Ruleset
    claim_targets: Sequence[timedelta]
    act_targets: Sequence[timedelta]


# --- facts ----------------------------------------------------------------------------------------------


def confirmable() -> list[FactType]:
    """Return the facts that staff may confirm, in the order of the schema."""
    return [kind for kind in FACTS.values() if kind.group not in NOT_CONFIRMED]


def read_value(name: str, text: str) -> str | int:
    """Return a fact's value as somebody chose or typed it. Raises InvalidForm for a fact or value that is none."""
    kind = FACTS.get(name)
    number = kind is not None and kind.bounds is not None
    value: str | int = int(text) if number and text.isdecimal() and len(text) < 10 else text
    if kind is None or kind.group in NOT_CONFIRMED or not kind.accepts(value):
        raise InvalidForm("value", "Choose a fact and a value that fits it.")
    return value


def confirm(
    tx: Tx,
    judge: Judge,
    viewer: Viewer,
    opened: OpenedCase,
    name: str,
    value: str | int,
    *,
    version: int,
    now: datetime,
) -> bool:
    """Take `value` for a fact of the case on the word of `viewer`, who has read the account, and decide anew.

    A rise applies itself; a fall changes nothing. Facts that tie an official to it put the case behind the wall; then
    True is returned. Rules that fail mean P1 (triage.md section 6). value: as `read_value` gives it.
    Raises NoSuchCase, Forbidden, CaseMoved, WrongState.
    """
    case = _case_for(tx, viewer, opened.case.id, version)
    _must_have_opened(tx, case, viewer)
    minute = now.replace(second=0, microsecond=0)
    found = known(tx, case, opened.privates)
    new = Fact(name, value, Source.CONFIRMED, minute)
    facts = merge([new, *(fact for fact in found.standing.values() if fact.name != name)])
    found = replace(found, standing=facts, said=(*found.said, new))
    told = {"fact": name, "value": value}
    return _stand_on(tx, judge, case, found, opened.privates, now, viewer.actor, EventType.FACTS_CONFIRMED, told)


def decide_anew(tx: Tx, judge: Judge, case: Case, privates: Mapping[int, bytes], now: datetime) -> None:
    """Judge a case again on what is known of it: by new rules (triage.md section 13), or by facts sealed until now.

    A rise applies itself, and rules that tie an official to it put it behind the wall; a fall changes nothing: the
    page of the case says that the reasons alone give less. Safe to call twice. privates: as for `known`; whoever has
    none, the worker, makes a case that goes behind the wall a new key.
    """
    if case.state != State.CLOSED and latest_decision(tx, case).ruleset_hash != judge.ruleset.content_hash:
        _stand_on(tx, judge, case, known(tx, case, privates), privates, now, SYSTEM, None, {})


def _stand_on(
    tx: Tx,
    judge: Judge,
    case: Case,
    found: Known,
    privates: Mapping[int, bytes],
    now: datetime,
    actor: Actor,
    because: EventType | None,
    told: Mapping[str, object],
) -> bool:
    """Let a case stand on a decision over what is `found`, and return whether that put it behind the wall.

    because: the event that brought the facts, with `told` in it; None where only the rules are new.
    """
    minute = now.replace(second=0, microsecond=0)
    decision, lock = _decide(judge, found, minute)
    level = min(case.level, decision.level)
    walling = WALL_ROUTE in decision.routes and not case.walled
    walled = walling or case.walled
    generation, public = case.generation, case_public(tx, case, judge.row_key)
    if walling and not privates:
        private, public = boxes.keypair()
        generation, privates = generation + 1, {generation + 1: private}
        tx.insert(CaseKey, [case_key_insert(judge.row_key, case.id, generation, public)])
    seal_to = SealTo(public, generation) if walled else None
    hour, rules, facts = minute.replace(minute=0), judge.ruleset.content_hash, found.standing
    tx.insert(CaseDecision, [decision_row(case.id, case.decision + 1, None, decision, facts, rules, hour, seal_to)])
    columns: dict[str, object] = {
        "decision": case.decision + 1,
        "locked": lock is not None and lock <= level,
        "provisional": decision.provisional and decision.level == level,
    }
    if not walled:
        columns |= fact_columns(decision, facts, walled)
    due_at, state = case.due_at, state_class(case.state)
    if level < case.level:
        raised, after = rise(tx, judge, case, level, about=uuid4(), now=now)
        columns |= raised
    else:
        after = lapse_lowering(tx, case, now, due_at, floor=decision.level_bumped)
    events = [decision_event(decision, now, due_at, state, seal_to), *after]
    if because is not None:
        said = {key: Sealed(word, public) for key, word in told.items()} if walled else told
        events.insert(0, NewEvent(because, now, actor, state, due_at, said))
    if walling:
        cause = "rules" if because is None else "facts"
        barred = barred_units(tx, judge.row_key, case.id, judge.cards)
        behind = partial(wall, tx, judge.ledger, case, judge.cards, privates, barred)
        behind(actor=actor, cause=cause, now=now, events=events, **columns)
    else:
        change(tx, judge.ledger, case, events, **columns)
    stop_closure(tx, judge.ledger, case, "fact", now)
    return walling


def _decide(judge: Judge, found: Known, minute: datetime) -> tuple[Decision, str | None]:
    """Return what the rules say, and the most urgent locked floor; of rules that fail, the fault and none."""
    try:
        decision = decide(found.standing, judge.ruleset, minute, found.lexicon_hash)
        return decision, _bar(judge.ruleset, found, minute).lock
    except Exception as fault:
        log.error("rules_failed", exc_info=fault)
        return engine_fault(minute, found.standing, found.lexicon_hash), None


@dataclass(frozen=True, slots=True)
class Rise:
    """A fact that is not known and would alone bring a more urgent level: the calmest value that does, that level."""

    name: str
    value: str | int
    level: str


def rises(ruleset: Ruleset, facts: Mapping[str, Fact], level: str, now: datetime) -> list[Rise]:
    """Return what can be asked for and would change `level` most: at most three, most urgent first.

    Empty where the rules fail: it is only a hint, and the next fact that somebody confirms brings P1.
    """
    try:
        found = [_rise_by(ruleset, facts, name, level, now) for name in ASKS if name not in facts]
    except Exception as fault:
        log.error("rules_failed", exc_info=fault)
        return []
    urgent_first = sorted((one for one in found if one), key=lambda one: (one.level, FACTS[one.name].order))
    return urgent_first[:MOST_RISES]


def _rise_by(ruleset: Ruleset, facts: Mapping[str, Fact], name: str, level: str, now: datetime) -> Rise | None:
    kind = FACTS[name]

    def level_with(value: str | int) -> str:
        return decide({**facts, name: Fact(name, value, Source.CONFIRMED, now)}, ruleset, now).level

    values: Sequence[str | int] = kind.values
    if kind.bounds is not None:
        values = range(kind.bounds[0], kind.bounds[1] + 1)[:: -1 if kind.low_is_urgent else 1]
    # From calm to urgent: what is more urgent than a value that raises does so too.
    place = bisect_left(values, True, key=lambda value: level_with(value) < level)
    return Rise(name, values[place], level_with(values[place])) if place < len(values) else None


# --- up -------------------------------------------------------------------------------------------------


def raise_by_hand(
    tx: Tx, judge: Judge, viewer: Viewer, case_id: UUID, level: str, reason: str, *, version: int, now: datetime
) -> None:
    """Raise a case to `level` at once, on the word of one person. reason: why, sealed to the case.

    Raises NoSuchCase, Forbidden, CaseMoved, WrongState, InvalidForm.
    """
    case = _case_for(tx, viewer, case_id, version)
    if level not in RANK or level >= case.level:
        raise InvalidForm("level", "Choose a level above the present one.")
    why = {"reason": _sealed_reason(tx, judge, case, reason)}
    columns, events = rise(tx, judge, case, level, about=uuid4(), now=now, actor=viewer.actor, why=why)
    change(tx, judge.ledger, case, events, provisional=False, **columns)
    stop_closure(tx, judge.ledger, case, "level", now)


# --- down -----------------------------------------------------------------------------------------------


def propose(
    tx: Tx,
    judge: Judge,
    viewer: Viewer,
    opened: OpenedCase,
    level: str,
    fact: str,
    reason: str,
    *,
    version: int,
    now: datetime,
) -> UUID:
    """Propose to lower a case to `level`, and return the proposal's id. Nothing is lowered by it.

    fact: the known one that changed. reason: how, at least 40 characters, sealed to the case.
    Raises NoSuchCase, Forbidden, CaseMoved, WrongState, InvalidForm, LedgerHalted.
    """
    must_run(tx)
    case = _case_for(tx, viewer, opened.case.id, version)
    _must_have_opened(tx, case, viewer)
    found = known(tx, case, opened.privates)
    if level not in RANK or level <= case.level:
        raise InvalidForm("level", "Choose a level below the present one.")
    if fact not in found.standing:
        raise InvalidForm("fact", "Choose the fact that changed.")
    if len(reason.strip()) < SHORTEST_REASON:
        raise InvalidForm("reason", "Write at least 40 characters: what changed, and how you know.")
    if standing_lowering(tx, case) is not None:
        raise WrongState("Somebody has proposed to lower it already.")
    lowering = Lowering(
        id=uuid4(),
        case=case.id,
        state=LoweringState.PROPOSED,
        before=case.level,
        after=level,
        floor=_lowerable(judge.ruleset, found, now).floor,
        proposed_at=now,
        proposer=viewer.member,
        proposer_unit=_signs_for(tx, viewer, case),
        overseer=viewer.member if _oversees(tx, viewer, case) else None,
    )
    tx.add(lowering)
    tx.flush()
    name = Sealed(fact, case_public(tx, case, judge.row_key)) if case.walled else fact
    fields = {"unit": lowering.proposer_unit, "fact": name, "reason": _sealed_reason(tx, judge, case, reason)}
    event = _lowering_event(EventType.LOWERING_PROPOSED, viewer, case, lowering, now, fields)
    change(tx, judge.ledger, case, [event])
    return lowering.id


def agree(
    tx: Tx, judge: Judge, viewer: Viewer, opened: OpenedCase, lowering_id: UUID, *, version: int, now: datetime
) -> LoweringState:
    """Sign a proposal to lower a case, and return how far it is now.

    Two persons of different units sign; oversight as well where `oversight_signs` says so. Signed by all, it is
    approved: its effect is to be run once witnessed, and only if it is approved still. It lapses where the rules give
    a more urgent level than when it was made.
    Raises NoSuchCase, NotFound, Forbidden, CaseMoved, WrongState, LedgerHalted.
    """
    must_run(tx)
    case = _case_for(tx, viewer, opened.case.id, version)
    lowering = _lowering(tx, case, lowering_id, LoweringState.PROPOSED)
    _must_have_opened(tx, case, viewer)
    if objection := may_not_sign(tx, viewer, case, lowering):
        raise Forbidden(objection)
    found = known(tx, case, opened.privates)
    bar = _lowerable(judge.ruleset, found, now)
    if bar.floor < lowering.floor:
        change(tx, judge.ledger, case, lapse_lowering(tx, case, now, case.due_at))
        return LoweringState.LAPSED
    if lowering.approver is None:
        lowering.approver, lowering.approver_unit = viewer.member, _signs_for(tx, viewer, case)
    if lowering.overseer is None and _oversees(tx, viewer, case):
        lowering.overseer = viewer.member
    signed = lowering.overseer is not None or _why_oversight(tx, case, lowering.after, found, bar, now) is None
    effect = None
    if signed:
        lowering.state = LoweringState.APPROVED
        effect = {"do": "lower", "case": case.id.hex, "lowering": lowering.id.hex, "after": lowering.after}
    tx.flush()
    fields = {"unit": _signs_for(tx, viewer, case), "signed": signed}
    event = _lowering_event(EventType.LOWERING_APPROVED, viewer, case, lowering, now, fields, effect)
    change(tx, judge.ledger, case, [event])
    return LoweringState(lowering.state)


def refuse(
    tx: Tx, judge: Judge, viewer: Viewer, case_id: UUID, lowering_id: UUID, reason: str, *, version: int, now: datetime
) -> None:
    """End a proposal that has not taken effect yet. Whoever reads the case may, the proposer too.

    reason: why, sealed to the case. Raises NoSuchCase, NotFound, Forbidden, CaseMoved, WrongState, InvalidForm.
    """
    case = _case_for(tx, viewer, case_id, version)
    lowering = _lowering(tx, case, lowering_id, LoweringState.PROPOSED, LoweringState.APPROVED)
    why = {"reason": _sealed_reason(tx, judge, case, reason)}
    lowering.state = LoweringState.REFUSED
    tx.flush()
    change(tx, judge.ledger, case, [_lowering_event(EventType.LOWERING_REFUSED, viewer, case, lowering, now, why)])


def take_effect(
    tx: Tx,
    action: Mapping[str, Any],
    now: datetime,
    *,
    ledger: Ledger,
    claim_targets: Sequence[timedelta],
    act_targets: Sequence[timedelta],
) -> None:
    """Lower a case's level, now that witnesses have seen that all agreed (ledger.md section 6). Safe to run twice.

    action: of the event that `agree` wrote. Nothing happens if it was refused, or lapsed, meanwhile.
    """
    lowering = tx.get(Lowering, UUID(action["lowering"]))
    case = tx.get(Case, UUID(action["case"]))
    if lowering is None or case is None or lowering.case != case.id or lowering.state != LoweringState.APPROVED:
        return
    if case.state == State.CLOSED or case.level >= lowering.after:
        return
    lowering.state = LoweringState.EFFECTIVE
    claim, act = claim_targets[RANK[lowering.after]], act_targets[RANK[lowering.after]]
    due_at, due_kind = lower_level(tx, case, lowering.after, claim=claim, act=act, now=now)
    fields = {"lowering": lowering.id.hex, "before": case.level, "after": lowering.after}
    event = NewEvent(EventType.LOWERING_EFFECTIVE, now, SYSTEM, state_class(case.state), due_at, fields)
    change(tx, ledger, case, [event], level=lowering.after, due_at=due_at, due_kind=due_kind)


def may_not_sign(session: Session, viewer: Viewer, case: Case, lowering: Lowering) -> str | None:
    """Return why `viewer` may not sign a proposal that exists for them; None if they may."""
    if viewer.role not in READERS:
        return "This role may not take this step."
    if viewer.member in (lowering.proposer, lowering.approver):
        return "You have signed this already: another person must."
    if lowering.approver is not None:
        return None if _oversees(session, viewer, case) else "Only the signature of oversight is missing."
    proposers = session.scalars(select(col(UnitGrant.unit)).where(col(UnitGrant.member) == lowering.proposer)).all()
    if set(_holding(session, viewer, case)) & {*proposers, lowering.proposer_unit}:
        return "You sit in a unit of the proposer: somebody of another unit must agree."
    return None


def oversight_signs(
    session: Session, ruleset: Ruleset, case: Case, after: str, found: Known, now: datetime
) -> str | None:
    """Return why oversight must be among those who lower `case` to `after`; None where two units suffice.

    ``locked``: below a locked floor that fires, on the facts as told too. ``late``: the deadline to act went by.
    ``unread``: a decision could not be opened or read. Raises WrongState where it is not lowered at all.
    """
    return _why_oversight(session, case, after, found, _lowerable(ruleset, found, now), now)


def waiting(session: Session, viewer: Viewer) -> tuple[list[UUID], list[UUID]]:
    """Return the cases with a proposal that waits for `viewer` to sign; and for oversight those that others signed.

    Only cases that exist for the viewer count. The second wait for nobody but the witnesses: until then oversight,
    which gets a copy of each, can refuse them.
    """
    rows = session.execute(
        select(Lowering, Case)
        .join(Case, col(Case.id) == col(Lowering.case))
        .where(STANDING, readable(viewer))
        .order_by(col(Lowering.proposed_at), col(Lowering.id))
    ).all()
    to_sign = [
        case.id
        for lowering, case in rows
        if lowering.state == LoweringState.PROPOSED and may_not_sign(session, viewer, case, lowering) is None
    ]
    signed = [
        case.id
        for lowering, case in rows
        if lowering.state == LoweringState.APPROVED
        and lowering.overseer != viewer.member
        and _oversees(session, viewer, case)
    ]
    return to_sign, signed


# --- who, and under which conditions --------------------------------------------------------------------


def _case_for(tx: Tx, viewer: Viewer, case_id: UUID, version: int) -> Case:
    """Return a case that exists for `viewer`, who may say how urgent it is, as it was shown."""
    case = find(tx, viewer, case_id)
    if viewer.role not in READERS:
        raise Forbidden("This role may not take this step.")
    if case.state == State.CLOSED:
        raise WrongState("A closed case is opened again first.")
    unmoved(tx, case, version)
    return case


def _must_have_opened(tx: Tx, case: Case, viewer: Viewer) -> None:
    if not has_opened(tx, case, viewer):
        raise Forbidden("Open the account first: what you say of it rests on having read it.")


def _sealed_reason(tx: Tx, judge: Judge, case: Case, reason: str) -> Sealed:
    if not reason.strip():
        raise InvalidForm("reason", "Say why.")
    return Sealed(reason.strip(), case_public(tx, case, judge.row_key))


def _lowering(tx: Tx, case: Case, lowering_id: UUID, *states: LoweringState) -> Lowering:
    of_case = col(Lowering.case) == case.id
    lowering = tx.scalars(select(Lowering).where(col(Lowering.id) == lowering_id, of_case)).one_or_none()
    if lowering is None:
        raise NotFound("There is no such proposal.")
    if lowering.state not in states:
        raise WrongState("This proposal has ended.")
    return lowering


def _lowering_event(
    what: EventType,
    viewer: Viewer,
    case: Case,
    lowering: Lowering,
    now: datetime,
    fields: Mapping[str, object],
    effect: Mapping[str, str] | None = None,
) -> NewEvent:
    about = {"lowering": lowering.id.hex, "before": lowering.before, "after": lowering.after}
    state = state_class(case.state)
    return NewEvent(what, now, viewer.actor, state, case.due_at, {**about, **fields}, effect=effect)


def _holding(session: Session, viewer: Viewer, case: Case) -> list[str]:
    """Return the units of `viewer` that hold a seal of the case."""
    held = select(col(CaseSeal.unit)).where(col(CaseSeal.case) == case.id, col(CaseSeal.unit).in_(viewer.units))
    return sorted(set(session.scalars(held).all()))


def _oversees(session: Session, viewer: Viewer, case: Case) -> bool:
    """Return whether `viewer` is a person of oversight whose oversight unit holds the case."""
    oversight = {seat.unit for seat in viewer.seats if seat.kind == UnitKind.OVERSIGHT}
    return viewer.role == Role.OVERSIGHT and bool(oversight & set(_holding(session, viewer, case)))


def _signs_for(session: Session, viewer: Viewer, case: Case) -> str:
    """Return the unit that `viewer` signs for: one that holds the case, for oversight an oversight unit."""
    kinds = {seat.unit: seat.kind for seat in viewer.seats}
    holding = _holding(session, viewer, case)
    return min(holding, key=lambda unit: (kinds[unit] == UnitKind.OVERSIGHT) != (viewer.role == Role.OVERSIGHT))


@dataclass(frozen=True, slots=True)
class _Bar:
    """What the rules set against a fall.

    floor: the most urgent level that they give now, before a cap. lock: the most urgent locked floor that fires on
    what is known, or on it as told. never: whether it is not lowered at all.
    """

    floor: str
    lock: str | None
    never: bool


def _bar(ruleset: Ruleset, found: Known, now: datetime) -> _Bar:
    decisions = [decide(facts, ruleset, now) for facts in (found.standing, *found.as_told())]
    fired = {reason.id for decision in decisions for reason in decision.fired}
    locks = [rule.level for rule in ruleset.rules if rule.locked and rule.level is not None and rule.id in fired]
    return _Bar(decisions[0].level_bumped, min(locks, default=None), NEVER_LOWERED in fired)


def _lowerable(ruleset: Ruleset, found: Known, now: datetime) -> _Bar:
    """Return what the rules set against lowering a case of which this is known; WrongState if it is not lowered."""
    try:
        bar = _bar(ruleset, found, now)
    except Exception as fault:
        log.error("rules_failed", exc_info=fault)
        raise WrongState("The rules cannot be applied now, so nothing is lowered.") from None
    if bar.never:
        raise WrongState("An earlier case about this was closed incomplete: this one is not lowered.")
    return bar


def _why_oversight(session: Session, case: Case, after: str, found: Known, bar: _Bar, now: datetime) -> str | None:
    if not found.whole:
        return "unread"
    if bar.lock is not None and after > bar.lock:
        return "locked"
    unmet = or_(col(Clock.met_at).is_(None), col(Clock.met_at) > col(Clock.due_at))
    breach = exists().where(
        col(Clock.case) == case.id, col(Clock.kind) == ClockKind.ACT, col(Clock.due_at) < now, unmet
    )
    return "late" if session.scalar(select(breach)) else None
