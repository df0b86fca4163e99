"""Closing (casework.md section 7): a listed reason with its papers, two organisations, time to object, witnesses.

There is no reason called settled, withdrawn or other. What is signed by all takes effect only when the ledger's
witnesses have seen it, and whatever new comes until then stops it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import and_, exists, or_, select
from sqlmodel import Session, col

from service.attachments import NewFile, attach, opened_by
from service.cases import (
    STANDING_CLOSURE,
    OpenedCase,
    end_closure,
    find,
    move,
    overlays,
    state_class,
)
from service.cases import change as change_case
from service.casework import Casework, owned_case, read_case, said
from service.clocks import RUNNING, answer_time, clock_row
from service.db import Sessions, Tx, write
from service.errors import Forbidden, InvalidForm, NotFound, WrongState
from service.ledger.events import SYSTEM, EventType, NewEvent, Sealed, append
from service.ledger.tree import must_run
from service.models import (
    Case,
    CaseDecision,
    CaseSeal,
    Clock,
    ClockKind,
    Closure,
    ClosureState,
    LedgerEvent,
    LedgerField,
    Level,
    OverlayKind,
    Role,
    State,
)
from service.outbox import each
from service.settlements import ever_signalled
from service.walls import Viewer, readable

COOLING, LONG_COOLING = timedelta(hours=72), timedelta(days=14)
DECIDE_WITHIN = timedelta(days=7)
ATTEMPTS, WAYS, OVER = 5, 3, timedelta(days=30)  # of finding a child (C9)


@dataclass(frozen=True, slots=True)
class Reason:
    """A row of the list of reasons. papers: at least so many. overseen: oversight signs whatever the case was."""

    before: frozenset[str]
    words: tuple[str, ...]
    papers: int = 1
    overseen: bool = False


def _at(*states: State) -> frozenset[str]:
    return frozenset(states)


# C5 (joined) needs links between cases and C11 a mark for training records: neither is there yet, so neither closes.
REASONS: Mapping[str, Reason] = {
    "C1": Reason(_at(State.IN_COURT), ("reference",)),
    "C2": Reason(_at(State.IN_COURT), ("reference", "appeal_window"), overseen=True),
    "C3": Reason(_at(State.IN_ACTION), ("seen_by", "seen_when")),
    "C4": Reason(_at(State.IN_ACTION), ("sources",), papers=2),
    "C6": Reason(_at(State.WITH_AUTHORITY), ("reference",), overseen=True),
    "C7": Reason(_at(State.WITH_AUTHORITY), ("reference", "sent_to_legal", "appealed"), overseen=True),
    "C8": Reason(
        _at(State.IN_ACTION, State.REFERRED, State.WITH_AUTHORITY, State.IN_COURT), ("opinion",), 2, overseen=True
    ),
    "C10": Reason(_at(State.IN_ACTION), ("plan_completed", "childs_view")),
}


@dataclass(frozen=True, slots=True)
class Proposal:
    """A proposal to close as a form brings it. words: ``why`` and those of its reason; each is sealed to the case."""

    code: str
    words: Mapping[str, str]
    papers: Sequence[NewFile] = field(default=(), repr=False)


def propose(
    tx: Tx, work: Casework, viewer: Viewer, opened: OpenedCase, proposal: Proposal, *, version: int, now: datetime
) -> UUID:
    """Propose to close a case, and return the proposal's id (row 13). Nothing is closed by it.

    It cools for 72 hours, 14 days if a settlement or withdrawal was ever recorded, and is then decided within 7 days.
    Raises NoSuchCase, Forbidden, CaseMoved, WrongState, InvalidForm; of a reason that is none, the caller appends
    `reject`.
    """
    must_run(tx)
    case = owned_case(tx, viewer, opened, version)
    reason = REASONS.get(proposal.code)
    if reason is None:
        raise InvalidForm("code", "This closes no case. Record it as something that happened; the case goes on.")
    if case.state not in reason.before:
        raise WrongState("This reason does not fit the state of the case.")
    fields = {"code": proposal.code} | said(tx, work, case, proposal.words, needed=("why", *reason.words))
    if len(proposal.papers) < reason.papers:
        raise InvalidForm("proof", f"This reason needs {reason.papers} of its papers.")
    filed = [attach(tx, work.row_key, viewer, case, paper, now) for paper in proposal.papers]
    proofs = [told["proof"] for _, told in filed]
    papers = [item.hex for item, _ in filed]
    closure = Closure(
        id=uuid4(),
        case=case.id,
        state=ClosureState.PROPOSED,
        reason=proposal.code,
        papers=json.dumps(papers),
        proposed_at=now,
        cools_until=now + cooling(tx, case),
        proposer=viewer.member,
        proposer_organisation=_organisation(tx, viewer, case),
        overseen=reason.overseen or must_be_overseen(tx, case),
    )
    tx.add(closure)
    tx.flush()
    fields |= {"closure": closure.id.hex, "attachments": papers}
    fields["proof"] = Sealed([one.value for one in proofs], proofs[0].case_public)
    decide = closure.cools_until + DECIDE_WITHIN
    starts = [
        clock_row(case.id, ClockKind.COOLING, closure.cools_until, EventType.CLOSURE_PROPOSED),
        clock_row(case.id, ClockKind.DECISION, decide, EventType.CLOSURE_PROPOSED, answer_time(case.level)),
    ]
    who: dict[str, Any] = {"actor": viewer.actor, "member": viewer.member}
    move(tx, work.ledger, case, EventType.CLOSURE_PROPOSED, now=now, fields=fields, starts=starts, **who)
    return closure.id


def reject(sessions: Sessions, work: Casework, viewer: Viewer, case_id: UUID, code: str, now: datetime) -> None:
    """Write that `viewer` wanted to close a case for what is no reason (casework.md section 7). code: theirs."""

    def note(tx: Tx) -> None:
        case = find(tx, viewer, case_id)
        state, fields = state_class(case.state), {"code": code[:32] if code.isascii() else "?"}
        append(
            tx,
            work.ledger,
            case.chain,
            [NewEvent(EventType.REASON_REJECTED, now, viewer.actor, state, case.due_at, fields)],
        )

    write(sessions, note)


def sign(
    tx: Tx, work: Casework, viewer: Viewer, opened: OpenedCase, closure_id: UUID, *, version: int, now: datetime
) -> ClosureState:
    """Sign a proposal to close, and return how far it is now (rows 14 and 15).

    A supervisor of another organisation approves, and oversight signs where `Closure.overseen`: three persons, none of
    whom stands in two places, each of whom has opened every paper. Signed by all, it waits for the witnesses.
    Raises NoSuchCase, NotFound, Forbidden, CaseMoved, WrongState.
    """
    must_run(tx)
    case = read_case(tx, viewer, opened, version)
    closure = standing(tx, case, closure_id)
    if objection := may_not_sign(tx, viewer, case, closure, now):
        raise Forbidden(objection)
    organisation = _organisation(tx, viewer, case)
    if viewer.role == Role.OVERSIGHT:
        closure.overseer, closure.overseer_organisation = viewer.member, organisation
    else:
        closure.approver, closure.approver_organisation = viewer.member, organisation
    complete = closure.approver is not None and (closure.overseer is not None or not closure.overseen)
    effect = None
    if complete:
        closure.state = ClosureState.SIGNED
        effect = {"do": "close", "case": case.id.hex, "closure": closure.id.hex}
    tx.flush()
    fields = {"closure": closure.id.hex, "organisation": organisation, "signed": complete}
    state = state_class(case.state)
    event = NewEvent(EventType.CLOSURE_APPROVED, now, viewer.actor, state, case.due_at, fields, effect=effect)
    change_case(tx, work.ledger, case, [event])
    return ClosureState(closure.state)


def may_not_sign(session: Session, viewer: Viewer, case: Case, closure: Closure, now: datetime) -> str | None:
    """Return why `viewer` may not sign a proposal that exists for them; None if they may."""
    if objection := _no_signer(session, viewer, case, closure):
        return objection
    if now < closure.cools_until:
        return "There is still time to object. It is signed afterwards."
    unread = papers_of(closure) - opened_by(session, case, viewer.member)
    return "Open every paper first: what you sign rests on them." if unread else None


def _no_signer(session: Session, viewer: Viewer, case: Case, closure: Closure) -> str | None:
    """Return why `viewer` is none of those whose signature a proposal waits for; None if they are."""
    if viewer.role not in (Role.SUPERVISOR, Role.OVERSIGHT):
        return "This role may not take this step."
    if closure.state != ClosureState.PROPOSED:
        return "This proposal is signed by all, or has ended."
    if viewer.member in (closure.proposer, case.owner, closure.approver, closure.overseer):
        return "You stand in this closure already: another person must sign."
    if viewer.role == Role.OVERSIGHT and (not closure.overseen or closure.overseer is not None):
        return "Oversight has signed, or need not sign: a supervisor of another organisation approves."
    if viewer.role == Role.SUPERVISOR and closure.approver is not None:
        return "A supervisor has approved it already."
    if _organisation(session, viewer, case) == closure.proposer_organisation:
        return "You belong to the proposer's organisation: another one must sign."
    return None


def waiting(session: Session, viewer: Viewer, now: datetime) -> list[UUID]:
    """Return the cases with a proposal to close that waits for `viewer` to sign: the time to object is over.

    Only cases that exist for the viewer count. Papers that they have not opened yet do not hide it.
    """
    rows = session.execute(
        select(Closure, Case)
        .join(Case, col(Case.id) == col(Closure.case))
        .where(col(Closure.state) == ClosureState.PROPOSED, col(Closure.cools_until) <= now, readable(viewer))
        .order_by(col(Closure.cools_until), col(Closure.id))
    ).all()
    return [case.id for closure, case in rows if _no_signer(session, viewer, case, closure) is None]


def papers_of(closure: Closure) -> frozenset[UUID]:
    """Return the attachments that prove what a proposal says."""
    return frozenset(UUID(paper) for paper in json.loads(closure.papers))


def refuse(
    tx: Tx,
    work: Casework,
    viewer: Viewer,
    opened: OpenedCase,
    closure_id: UUID,
    reason: str,
    *,
    version: int,
    now: datetime,
) -> None:
    """Send a proposal back with a reason, also one that is signed and not yet witnessed (row 16).

    Raises NoSuchCase, NotFound, Forbidden, CaseMoved, WrongState, InvalidForm.
    """
    case = read_case(tx, viewer, opened, version)
    closure = standing(tx, case, closure_id)
    fields = {"closure": closure.id.hex} | said(tx, work, case, {"reason": reason}, needed=("reason",))
    who: dict[str, Any] = {"actor": viewer.actor, "member": viewer.member}
    move(tx, work.ledger, case, EventType.CLOSURE_REFUSED, now=now, fields=fields, meets=_CLOCKS, **who)
    end_closure(tx, case, ClosureState.REFUSED)


def take_effect(tx: Tx, action: Mapping[str, Any], now: datetime, *, work: Casework) -> None:
    """Close a case whose signed proposal the witnesses have seen (ledger.md section 6). Safe to run twice.

    action: the effect of `sign`'s last event. What was stopped, refused or reopened meanwhile stays so.
    Raises WrongState while an overlay of `cases.STOPPING` stands: it is then tried again later.
    """
    closure, case = tx.get(Closure, UUID(action["closure"])), tx.get(Case, UUID(action["case"]))
    if closure is None or case is None or closure.case != case.id:
        return
    if closure.state != ClosureState.SIGNED or case.state != State.CLOSURE_PROPOSED:
        return
    fields = {"closure": closure.id.hex, "reason": closure.reason}
    move(tx, work.ledger, case, EventType.CLOSURE_EFFECTIVE, actor=SYSTEM, now=now, fields=fields)
    closure.state = ClosureState.EFFECTIVE
    tx.flush()


def expire(sessions: Sessions, work: Casework, now: datetime) -> int:
    """Send back every proposal that nobody decided in time, and return how many (row 13, on lapse)."""
    late = and_(col(Clock.kind) == ClockKind.DECISION, RUNNING, col(Clock.due_at) < now)
    with sessions.read() as session:
        cases = session.scalars(select(col(Clock.case)).where(late).limit(1000)).all()
    return each(sessions, [partial(_expire, work=work, case_id=case, now=now) for case in cases])


def _expire(tx: Tx, *, work: Casework, case_id: UUID, now: datetime) -> bool:
    case = tx.get(Case, case_id)
    proposed = and_(col(Closure.case) == case_id, col(Closure.state) == ClosureState.PROPOSED)
    if case is None or case.state != State.CLOSURE_PROPOSED or not tx.scalar(select(exists().where(proposed))):
        return False  # signed in time, it waits for the witnesses, however long
    move(tx, work.ledger, case, EventType.CLOSURE_EXPIRED, actor=SYSTEM, now=now, meets=_CLOCKS)
    end_closure(tx, case, ClosureState.EXPIRED)
    return True


def reopen(
    tx: Tx, work: Casework, viewer: Viewer, opened: OpenedCase, reason: str, *, version: int, now: datetime
) -> None:
    """Open a closed case again (row 17). Nothing switches this off: whoever reads the case may.

    It has no owner until somebody takes it, a new deadline to act, and its old rows.
    Raises NoSuchCase, Forbidden, CaseMoved, WrongState, InvalidForm.
    """
    case = read_case(tx, viewer, opened, version)
    fields = said(tx, work, case, {"reason": reason}, needed=("reason",))
    by = now + work.act_targets[_rank(case)]
    starts = [clock_row(case.id, ClockKind.ACT, by, EventType.CASE_REOPENED, answer_time(case.level))]
    who: dict[str, Any] = {"actor": viewer.actor, "member": viewer.member, "owner": None}
    move(tx, work.ledger, case, EventType.CASE_REOPENED, now=now, fields=fields, starts=starts, **who)


def standing(session: Session, case: Case, closure_id: UUID) -> Closure:
    """Return the proposal that stands to close a case. Raises NotFound for another's, WrongState for one that ended."""
    of_case = select(Closure).where(col(Closure.id) == closure_id, col(Closure.case) == case.id)
    closure = session.scalars(of_case).one_or_none()
    if closure is None:
        raise NotFound("There is no such proposal.")
    if closure.state not in (ClosureState.PROPOSED, ClosureState.SIGNED):
        raise WrongState("This proposal has ended.")
    return closure


def standing_of(session: Session, case: Case) -> Closure | None:
    """Return what stands proposed to close a case, signed or not; at most one does."""
    return session.scalars(select(Closure).where(col(Closure.case) == case.id, STANDING_CLOSURE)).one_or_none()


_CLOCKS = (ClockKind.COOLING, ClockKind.DECISION)


def _rank(case: Case) -> int:
    return [level.value for level in Level].index(case.level)


def _organisation(session: Session, viewer: Viewer, case: Case) -> str:
    """Return the organisation that `viewer` signs for: that of a unit of theirs that holds the case, by the cards."""
    holding = select(col(CaseSeal.unit)).where(col(CaseSeal.case) == case.id, col(CaseSeal.unit).in_(viewer.units))
    units = set(session.scalars(holding).all())
    seats = sorted(seat.organisation for seat in viewer.seats if seat.unit in units)
    return seats[0]


def fits(case: Case) -> bool:
    """Return whether any listed reason closes a case from its present state."""
    return any(case.state in reason.before for reason in REASONS.values())


def cooling(session: Session, case: Case) -> timedelta:
    """Return how long a proposal to close `case` waits for objections: longer after any settlement or withdrawal."""
    return LONG_COOLING if ever_signalled(session, case) or _was_settlement(session, case) else COOLING


def _was_settlement(session: Session, case: Case) -> bool:
    return OverlayKind.SETTLEMENT in overlays(session, case) or "settlement_attempt" in json.loads(case.flags or "[]")


def must_be_overseen(session: Session, case: Case) -> bool:
    """Return whether oversight signs because of what the case is or ever was (casework.md section 7, signatures)."""
    urgent = (Level.P1, Level.P2)
    raised = (
        select(col(LedgerField.eid))
        .join(LedgerEvent, col(LedgerEvent.eid) == col(LedgerField.eid))
        .where(
            *(col(LedgerEvent.case) == case.chain, col(LedgerEvent.type) == EventType.LEVEL_RAISED),
            *(col(LedgerField.name) == "after", or_(*(col(LedgerField.value) == f'"{x}"'.encode() for x in urgent))),
        )
    )
    decided = exists().where(col(CaseDecision.case) == case.id, col(CaseDecision.level).in_(urgent))
    flags = set(json.loads(case.flags or "[]")) & {"child_self_report", "official_complicity", "settlement_attempt"}
    return (
        case.walled
        or case.level in urgent
        or bool(flags)
        or bool(session.scalar(select(decided)))
        or session.execute(raised.limit(1)).first() is not None
        or OverlayKind.CHILD_REPORTER in overlays(session, case)
        or ever_signalled(session, case)
    )
