"""Decisions of a case: the facts they rest on, the rows and events they leave, and the rise that one may bring."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol
from uuid import UUID

import structlog
from sqlalchemy import select
from sqlmodel import Session, col

from service.cases import NO_AGE, flag_rank, lapse_lowering, seal_facts, state_class
from service.clocks import raise_level
from service.db import Tx
from service.ledger.events import SYSTEM, Actor, EventType, NewEvent, Sealed, StateClass
from service.models import RANK, Case, CaseDecision, Level, OutboxJob
from service.outbox import PAGE, job
from service.triage import Decision, Fact, Source, facts_of, merge
from service.vault import envelope
from service.vault.envelope import Envelope

log = structlog.get_logger("decisions")

WALL_ROUTE = "INDEPENDENT"
PAGE_WITHIN = timedelta(hours=1)
STAFF_LANGUAGE = "km"


# --- what a decision leaves -----------------------------------------------------------------------------


def fact_columns(decision: Decision, facts: Mapping[str, Fact], walled: bool) -> dict[str, Any]:
    """Return the columns of a case that tell what it is about; behind the wall they are empty."""
    if walled:
        return {"flags": None, "flag_rank": 7, "age_rank": NO_AGE, "province": None, "venue": None}
    age = facts.get("age_min")
    return {
        "flags": json.dumps(list(decision.flags)),
        "flag_rank": flag_rank(decision.flags),
        "age_rank": NO_AGE if age is None else min(int(age.value), NO_AGE),
        "province": _code(facts, "province"),
        "venue": _code(facts, "venue_type"),
    }


def _code(facts: Mapping[str, Fact], name: str) -> str | None:
    return str(facts[name].value) if name in facts else None


@dataclass(frozen=True, slots=True)
class SealTo:
    """The key of a walled case that its decision is sealed to, and the key's generation."""

    public: bytes
    generation: int


def decision_row(
    case: UUID,
    number: int,
    message: UUID | None,
    decision: Decision,
    facts: Mapping[str, Fact],
    ruleset_hash: str,
    hour: datetime,
    seal_to: SealTo | None,
) -> dict[str, Any]:
    """Return a ``decision`` row: the record in clear, or sealed with the columns it emptied (keys.md section 5).

    message: what was decided upon; None for a fact that staff confirmed. hour: of that.
    """
    header = seal = body = None
    if seal_to is not None:
        told = {
            "record": decision.record.decode(),
            "flags": list(decision.flags),
            "province": _code(facts, "province"),
            "venue": _code(facts, "venue_type"),
        }
        header, seal, body = seal_facts(seal_to.public, case, seal_to.generation, hour, told)
    return {
        "case": case,
        "number": number,
        "message": message,
        "level": decision.level,
        "ruleset_hash": ruleset_hash,
        "record": None if seal_to else decision.record,
        "header": header,
        "seal": seal,
        "body": body,
    }


def decision_event(
    decision: Decision, at: datetime, deadline: datetime, state: StateClass, seal_to: SealTo | None
) -> NewEvent:
    """Return the event of a decision, or of a fault of the engine, with the hash of its record."""
    digest = hashlib.sha256(decision.record).hexdigest()
    fault = any(reason.id == "engine" for reason in decision.fired)
    return NewEvent(
        EventType.ENGINE_FAILED if fault else EventType.DECISION_MADE,
        at,
        SYSTEM,
        state,
        deadline,
        # Whoever can guess the facts can test the hash: behind the wall it is sealed too.
        {"level": decision.level, "record": Sealed(digest, seal_to.public) if seal_to else digest},
    )


# --- a rise ---------------------------------------------------------------------------------------------


class Targets(Protocol):
    """What a rise needs of whoever brings it, ``draft.Reception`` or ``levels.Judge``."""

    @property
    def row_key(self) -> bytes:
        """The key of row tags, 32 bytes."""

    @property
    def claim_targets(self) -> Sequence[timedelta]:
        """By when a case is claimed, by level."""

    @property
    def act_targets(self) -> Sequence[timedelta]:
        """By when it is acted upon, by level."""


def rise(
    tx: Tx,
    targets: Targets,
    case: Case,
    level: str,
    *,
    about: UUID,
    now: datetime,
    actor: Actor = SYSTEM,
    why: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], list[NewEvent]]:
    """Bring the clocks of a case forward to a more urgent level; return the columns and events that say so.

    about: what makes it urgent; a P1 is paged for it once. why: further fields of the event.
    What was proposed to lower the case lapses (triage.md sections 9 and 10).
    """
    claim, act = targets.claim_targets[RANK[level]], targets.act_targets[RANK[level]]
    due_at, due_kind = raise_level(tx, case, level, claim=claim, act=act, now=now)
    fields = {"before": case.level, "after": level, **(why or {})}
    raised = NewEvent(EventType.LEVEL_RAISED, now, actor, state_class(case.state), due_at, fields)
    if level == Level.P1:
        tx.insert(OutboxJob, [page(targets.row_key, about, case.id, now)])
    return {"level": level, "due_at": due_at, "due_kind": due_kind}, [raised, *lapse_lowering(tx, case, now, due_at)]


def page(row_key: bytes, about: UUID, case: UUID, now: datetime, post: str | None = None) -> dict[str, Any]:
    """Return the outbox row that has whoever is on duty for a case told. about: what makes it urgent now.

    post: whom; None for the unit that works the case.
    """
    return job(row_key, PAGE, about.hex, case=case, duty=post, language=STAFF_LANGUAGE, now=now, within=PAGE_WITHIN)


# --- what decisions rest on -----------------------------------------------------------------------------


def latest_decision(session: Session, case: Case) -> CaseDecision:
    """Return the decision that the case stands on. Its `record` is null for a walled case."""
    return session.scalars(
        select(CaseDecision).where(col(CaseDecision.case) == case.id, col(CaseDecision.number) == case.decision)
    ).one()


def open_decision(decision: CaseDecision, privates: Mapping[int, bytes]) -> dict[str, Any] | None:
    """Return what a decision says: its record, as text, and for a walled case flags, province and venue.

    privates: the case's private keys by generation. None if none of them opens it. Raises CannotOpen for a changed one.
    """
    if decision.record is not None:
        return {"record": decision.record.decode()}
    sealed = Envelope(decision.header or b"", decision.seal or b"", decision.body or b"")
    private = privates.get(json.loads(sealed.header)["g"])
    if private is None:
        return None
    told: dict[str, Any] = json.loads(envelope.open_words(private, sealed))
    return told


def facts_in(record: bytes) -> tuple[Fact, ...] | None:
    """Return the facts of a decision's record; None if this version cannot read it: nothing must be lost for that."""
    try:
        return tuple(facts_of(record).values())
    except (ValueError, KeyError, TypeError):
        log.error("decision_not_readable", error="ValueError")
        return None


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a case, from all its decisions.

    standing: one fact a name, as a new decision would take them; what staff confirmed last stands. said: every fact
    as it was ever taken up, oldest first. whole: whether every decision could be opened and read. lexicon_hash: of
    the words that the newest decision which has any was made with. held: the record of the newest decision that gave
    the level at which the case stands; None where a person gave it.
    """

    standing: Mapping[str, Fact]
    said: tuple[Fact, ...]
    whole: bool
    lexicon_hash: str
    held: Mapping[str, Any] | None

    def as_told(self) -> Iterator[dict[str, Fact]]:
        """Yield the facts without what staff confirmed since, in the two ways that triage.md section 9 counts them.

        Only what was stated or derived; then with the suggested ones that nobody has confirmed or denied.
        """
        told = [fact for fact in self.said if fact.source in (Source.STATED, Source.DERIVED)]
        yield merge(told)
        settled = {fact.name for fact in self.said if fact.source is Source.CONFIRMED}
        yield merge([*told, *(f for f in self.said if f.source is Source.SUGGESTED and f.name not in settled)])


def known(session: Session, case: Case, privates: Mapping[int, bytes]) -> Known:
    """Return what is known of a case. privates: its private keys by generation; a walled case needs them.

    Raises CannotOpen if a decision was changed or swapped.
    """
    decisions = session.scalars(
        select(CaseDecision).where(col(CaseDecision.case) == case.id).order_by(col(CaseDecision.number))
    ).all()
    return known_from(decisions, case.level, privates)


def known_from(decisions: Iterable[CaseDecision], level: str, privates: Mapping[int, bytes]) -> Known:
    """Return what is known of a case that stands at `level`. decisions: all of the case, oldest first."""
    standing: dict[str, Fact] = {}
    said: dict[Fact, None] = {}
    whole, lexicon_hash, held = True, "", None
    for decision in decisions:
        told = open_decision(decision, privates)
        facts = facts_in(told["record"].encode()) if told is not None else None
        if told is None or facts is None:
            whole = False
            continue
        record = json.loads(told["record"])
        lexicon_hash = record.get("lexicon_hash") or lexicon_hash
        held = record if decision.level == level else held
        said.update(dict.fromkeys(facts))
        # Two confirmations in one minute have one time; the later decision has the later one.
        confirmed = {fact.name: fact for fact in facts if fact.source is Source.CONFIRMED}
        standing = merge([*standing.values(), *facts]) | confirmed
    return Known(standing, tuple(said), whole, lexicon_hash, held)
