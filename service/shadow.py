"""New rules over what is stored: a replay that shows what would move, and deciding open cases anew (triage.md 13).

The replay changes nothing and looks at no walled case: what is known of those is sealed, and whoever may open one has
it decided then (keys.md section 5).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from itertools import groupby
from uuid import UUID

import structlog
from sqlalchemy import func, select
from sqlmodel import Session, col

from service.db import Sessions, Tx, write
from service.decisions import Known, known_from
from service.errors import Conflict
from service.levels import Judge, decide_anew
from service.models import Case, CaseDecision, State
from service.triage import Fact, Ruleset
from service.triage.decide import Verdict, judge
from service.walls import Viewer, unwalled

log = structlog.get_logger("shadow")

FAULT = "engine"  # in place of a rule's id: the rules raised, which is P1
BATCH = 100  # cases in a round
CHUNK = 500  # rows of decisions in memory at a time


@dataclass(frozen=True, slots=True)
class Move:
    """A case whose facts give another level under the new rules.

    before, after: levels by the rules alone, old and new; what people raised since stays. gone: rules that fired and
    no longer do, with their level. come: those that fire now. barred: it would fall below a locked floor, and none may.
    """

    case: UUID
    before: str
    after: str
    gone: tuple[str, ...]
    come: tuple[str, ...]
    barred: bool

    @property
    def falls(self) -> bool:
        """Whether the new level is calmer."""
        return self.after > self.before


@dataclass(frozen=True, slots=True)
class Replay:
    """What new rules would move. same: cases whose level stays. unread: with records that this code cannot read.

    sealed: walled cases, not looked at. That number is for whoever runs the installation, never for a page.
    """

    moves: tuple[Move, ...]
    same: int
    unread: int
    sealed: int

    @property
    def falls(self) -> tuple[Move, ...]:
        """The moves to a calmer level: each is ticked by name before the rules are published."""
        return tuple(move for move in self.moves if move.falls)

    @property
    def rises(self) -> tuple[Move, ...]:
        """The moves to a more urgent level, which apply themselves."""
        return tuple(move for move in self.moves if not move.falls)


def replay(session: Session, old: Ruleset, new: Ruleset, now: datetime, viewer: Viewer | None = None) -> Replay:
    """Judge what is known of every case by both rulesets as of `now`, and return what moves, most urgent first.

    viewer: whom a page shows it to; cases behind a wall that stands before them are then left out (DESIGN 12.5).
    """
    moves: list[Move] = []
    same = unread = 0
    for case, known in _stored(session, viewer):
        if not known.standing and not known.whole:
            unread += 1
            continue
        move = _move(case, known, old, new, now)
        unread += not known.whole
        same += move is None
        moves += [move] if move else []
    sealed = session.scalar(select(func.count()).select_from(Case).where(col(Case.walled).is_(True))) or 0
    return Replay(tuple(sorted(moves, key=lambda move: (move.after, move.before, move.case))), same, unread, sealed)


def _stored(session: Session, viewer: Viewer | None) -> Iterator[tuple[UUID, Known]]:
    """Yield what is known of each case that is not walled, from its decisions."""
    rows = session.execute(
        select(CaseDecision, col(Case.level))
        .join(Case, col(Case.id) == col(CaseDecision.case))
        .where(col(Case.walled).is_(False), *([unwalled(viewer)] if viewer is not None else []))
        .order_by(col(CaseDecision.case), col(CaseDecision.number))
        .execution_options(yield_per=CHUNK)
    )
    for case, group in groupby(rows, key=lambda row: row[0].case):
        decisions = list(group)
        yield case, known_from([row[0] for row in decisions], decisions[0][1], {})


def _move(case: UUID, known: Known, old: Ruleset, new: Ruleset, now: datetime) -> Move | None:
    before, after = _judged(known.standing, old, now), _judged(known.standing, new, now)
    if _level(before) == _level(after):
        return None
    fired_before, fired_after = _fired(before), _fired(after)
    return Move(
        case,
        _level(before),
        _level(after),
        gone=tuple(name for name in fired_before if name not in fired_after),
        come=tuple(name for name in fired_after if name not in fired_before),
        barred=_level(after) > _lock(known, old, now),
    )


def _judged(facts: Mapping[str, Fact], ruleset: Ruleset, now: datetime) -> Verdict | None:
    """Return what the rules say; None where they raise."""
    try:
        return judge(facts, ruleset, now)
    except Exception as fault:
        log.error("rules_failed", exc_info=fault)
        return None


def _level(verdict: Verdict | None) -> str:
    return "P1" if verdict is None else verdict.grade.level


def _fired(verdict: Verdict | None) -> list[str]:
    if verdict is None:
        return [FAULT]
    return [f"{rule.id} ({rule.level})" if rule.level else rule.id for rule in verdict.fired]


def _lock(known: Known, ruleset: Ruleset, now: datetime) -> str:
    """Return the most urgent level of a locked floor that fires, also on the facts as told; ``P4`` for none."""
    verdicts = [_judged(facts, ruleset, now) for facts in (known.standing, *known.as_told())]
    fired = [rule for verdict in verdicts if verdict is not None for rule in verdict.fired]
    return min((rule.level for rule in fired if rule.locked and rule.level is not None), default="P4")


def decide_open_cases(sessions: Sessions, judge: Judge, now: datetime, stopping: Callable[[], bool]) -> int:
    """Decide open cases anew that stand on a decision of other rules; return how many, at most a hundred.

    Walled ones are left for whoever may open them. Safe to run twice and at once.
    """
    other = (
        select(col(Case.id))
        .join(CaseDecision, (col(CaseDecision.case) == col(Case.id)) & (col(CaseDecision.number) == col(Case.decision)))
        .where(
            col(Case.state) != State.CLOSED,
            col(Case.walled).is_(False),
            col(CaseDecision.ruleset_hash) != judge.ruleset.content_hash,
        )
        .order_by(col(Case.level), col(Case.due_at), col(Case.id))
        .limit(BATCH)
    )
    with sessions.read() as session:
        waiting = session.scalars(other).all()
    done = 0
    for case_id in waiting:
        if stopping():
            break
        try:
            done += write(sessions, partial(_decide_anew, judge=judge, case_id=case_id, now=now))
        except Conflict as fault:  # this case's alone; a database that is away ends the round
            log.warning("case_not_decided_anew", error=type(fault).__name__)
    return done


def _decide_anew(tx: Tx, *, judge: Judge, case_id: UUID, now: datetime) -> bool:
    case = tx.get_one(Case, case_id)
    if case.walled:
        return False
    decide_anew(tx, judge, case, {}, now)
    return True
