"""Stored rulesets, and the one in force (triage.md section 13).

What a ruleset says is kept once, by its content hash, and never changed. What became of it is told by the events of
the ``rules`` chain alone, and those are checked against their commitments each time: a row that somebody changed in
the database is not believed (keys.md section 3). Which ruleset is in force follows from those events and the clock.
"""

import json
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache, partial
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy import select
from sqlmodel import Session, col

from service import metrics
from service.db import Sessions, Tx, write
from service.errors import HotlineError
from service.ledger.events import (
    SYSTEM,
    EventType,
    commit_event,
    commit_field,
    fixed_chain,
)
from service.models import KeptRuleset, LedgerEvent, LedgerField, LedgerHead
from service.triage import NO_RULES, BadRuleset, Ruleset, restore_ruleset

log = structlog.get_logger("rulesets")

CHAIN = fixed_chain("rules")
LOOK_EVERY = timedelta(seconds=5)
REFUSED = "ruleset_refused"  # the sign by which monitoring sees that published rules could not be loaded


@dataclass(frozen=True, slots=True)
class Signature:
    """Who did a step, and when."""

    member: UUID
    role: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Version:
    """A ruleset that somebody proposed, and what became of it.

    place: where among the published ones, larger is newer. effective_at: from when it is in force. until: when an
    emergency ends by itself. lapsed: the worker wrote down that it did; that it is over does not wait for this.
    """

    hash: str
    version: str
    lexicon_hash: str
    emergency: bool
    proposed: Signature
    approved: tuple[Signature, ...] = ()
    published_at: datetime | None = None
    effective_at: datetime | None = None
    place: int = -1
    until: datetime | None = None
    ratified: bool = False
    refused: Signature | None = None
    lapsed: bool = False

    def in_force_at(self, now: datetime) -> bool:
        """Return whether it would be in force at `now`, were no newer one."""
        begun = self.effective_at is not None and self.effective_at <= now
        return begun and not self.over_at(now)

    def over_at(self, now: datetime) -> bool:
        """Return whether it was an emergency that nobody ratified in time."""
        return self.until is not None and not self.ratified and self.until <= now


# --- what is stored -------------------------------------------------------------------------------------


def keep(tx: Tx, ruleset: Ruleset, now: datetime) -> None:
    """Store a ruleset's content under its hash, for decisions to replay by. Safe to call twice."""
    if tx.get(KeptRuleset, ruleset.content_hash) is None:
        row = {"hash": ruleset.content_hash, "name": ruleset.name, "version": ruleset.version}
        tx.insert(KeptRuleset, [{**row, "content": ruleset.content, "kept_at": now}])


def by_hash(session: Session, content_hash: str) -> Ruleset:
    """Return the stored ruleset of a hash. Raises BadRuleset if it is not there, or was changed."""
    content = session.scalar(select(col(KeptRuleset.content)).where(col(KeptRuleset.hash) == content_hash))
    if content is None:
        raise BadRuleset("a ruleset is not stored here")
    return _restored(bytes(content), content_hash)


@lru_cache(maxsize=16)
def _restored(content: bytes, content_hash: str) -> Ruleset:
    return restore_ruleset(content, content_hash)


@dataclass(frozen=True, slots=True)
class _Event:
    seq: int
    type: str
    at: datetime
    by: Signature | None  # None: the system
    fields: Mapping[str, Any]


def versions(session: Session) -> list[Version]:
    """Return every ruleset that was ever proposed, oldest first. Raises BadRuleset where the history does not fit."""
    found: dict[str, Version] = {}
    try:
        for event in _history(session):
            name = event.fields["hash"]
            if event.type == EventType.RULES_PROPOSED and event.by is not None:
                fields = event.fields
                found[name] = Version(name, fields["version"], fields["lexicon"], fields["emergency"], event.by)
            else:
                found[name] = _after(found[name], event)
    except (ValueError, KeyError, TypeError) as fault:
        raise BadRuleset("the history of the rules cannot be read") from fault
    return list(found.values())


def _after(version: Version, event: _Event) -> Version:
    """Return what became of a version by one event more."""
    match event.type:
        case EventType.RULES_APPROVED if event.by is not None:
            return replace(version, approved=(*version.approved, event.by))
        case EventType.RULES_PUBLISHED:
            until = event.fields["until"]
            return replace(
                version,
                published_at=event.at,
                effective_at=datetime.fromisoformat(event.fields["effective"]),
                place=event.seq,
                until=datetime.fromisoformat(until) if until else None,
            )
        case EventType.RULES_RATIFIED:
            return replace(version, ratified=True)
        case EventType.RULES_REFUSED:
            return replace(version, refused=event.by)
        case EventType.RULES_LAPSED:
            return replace(version, lapsed=True)
    raise BadRuleset("the history of the rules holds an event that is not known here")


def _history(session: Session) -> Iterable[_Event]:
    """Yield the events of the rules, each checked: it follows the one before, and its fields are those committed to."""
    head = session.execute(select(col(LedgerHead.seq), col(LedgerHead.c)).where(col(LedgerHead.case) == CHAIN)).first()
    if head is None:
        return
    of_chain = (col(LedgerEvent.case) == CHAIN, col(LedgerEvent.seq) <= head[0])
    rows = session.scalars(select(LedgerEvent).where(*of_chain).order_by(col(LedgerEvent.seq))).all()
    told = select(col(LedgerEvent.eid)).where(*of_chain)
    fields: dict[str, list[LedgerField]] = {}
    for field in session.scalars(select(LedgerField).where(col(LedgerField.eid).in_(told))).all():
        fields.setdefault(field.eid, []).append(field)
    before = bytes(32)
    for seq, row in enumerate(rows):
        body = json.loads(row.body)
        fits = (body["seq"], body["prev"], body["case"], body["type"]) == (seq, _b64(before), CHAIN, row.type)
        if not fits or row.seq != seq:
            raise BadRuleset("the history of the rules does not fit together")
        before = commit_event(row.k_e, row.body)
        yield _checked(row, body, fields.get(row.eid, []))
    if (len(rows) - 1, before) != tuple(head):
        raise BadRuleset("the history of the rules does not fit together")


def _checked(row: LedgerEvent, body: Mapping[str, Any], fields: Iterable[LedgerField]) -> _Event:
    committed = {**body["fields"], "who": body["actor"]["who"]}
    values = {field.name: json.loads(field.value) for field in fields}
    salts = {field.name: field.salt or b"" for field in fields}
    if {name: _b64(commit_field(salts[name], name, value)) for name, value in values.items()} != committed:
        raise BadRuleset("a step in the history of the rules is not what was committed to")
    at = datetime.fromisoformat(body["at"])
    who = values.pop("who")
    by = None if who == SYSTEM.member else Signature(UUID(who), body["actor"]["role"], at)
    return _Event(row.seq, row.type, at, by, values)


def _b64(data: bytes) -> str:
    return b64encode(data).decode("ascii")


# --- in force -------------------------------------------------------------------------------------------


class Rulebook:
    """The ruleset that a process decides by: the newest published one, the release's own before there was any.

    One that cannot be loaded leaves the older one working, and is reported. A process that finds none it can trust
    goes on with `NO_RULES`, by which everything is P1.
    """

    def __init__(self, sessions: Sessions, release: Ruleset, lexicon_hash: str = "") -> None:
        """release: of the file that ships. lexicon_hash: of the words in use here, to be compared; "" for none."""
        self._sessions, self._release, self._lexicon_hash = sessions, release, lexicon_hash
        self._published: Sequence[tuple[Version, Ruleset | None]] = ()  # newest first
        self._seq, self._trusted, self._looked = -1, True, datetime.min.replace(tzinfo=UTC)
        self._last: Ruleset | None = None
        self.faulty = False  # whether what was published could not be loaded, when last looked at

    @property
    def ever_published(self) -> bool:
        """Whether rules were ever published here; before that, each release brings its own."""
        return bool(self._published)

    def current(self, now: datetime) -> Ruleset:
        """Return the ruleset in force, having looked for a newer one when the last look is some seconds old."""
        if not timedelta() <= now - self._looked < LOOK_EVERY:
            self.look(now)
        return self.at(now)

    def at(self, now: datetime) -> Ruleset:
        """Return the ruleset in force as of the last look: no question to the database."""
        found = self._at(now)
        if found is not None:
            self._last = found
        return found or self._last or NO_RULES

    def _at(self, now: datetime) -> Ruleset | None:
        if not self._trusted:
            return None
        due = [ruleset for version, ruleset in self._published if version.in_force_at(now)]
        return self._release if not due else next((ruleset for ruleset in due if ruleset is not None), None)

    def version(self, now: datetime) -> Version | None:
        """Return what is known of the published ruleset in force; None for the release's."""
        current = self.at(now).content_hash
        return next((one for one, _ in self._published if one.in_force_at(now) and one.hash == current), None)

    def look(self, now: datetime) -> None:
        """Ask whether anything happened to the rules, and load what did. Raises nothing: the old ones keep working."""
        self._looked = now
        try:
            with self._sessions.read() as session:
                seq = session.scalar(select(col(LedgerHead.seq)).where(col(LedgerHead.case) == CHAIN))
                if self.faulty or (seq if seq is not None else -1) != self._seq:
                    self._load(session)
                    self._seq = seq if seq is not None else -1
        except HotlineError as fault:
            log.warning("rules_not_looked_at", error=type(fault).__name__)
            return
        if self.faulty:
            self._report(now)

    def _load(self, session: Session) -> None:
        self.faulty, self._trusted = False, True
        try:
            known = [version for version in versions(session) if version.published_at is not None]
        except BadRuleset as fault:
            log.error("rules_history_refused", error=type(fault).__name__)
            self.faulty, self._trusted = True, False
            return
        newest_first = sorted(known, key=lambda version: -version.place)
        self._published = [(version, self._loaded(session, version)) for version in newest_first]

    def _loaded(self, session: Session, version: Version) -> Ruleset | None:
        try:
            ruleset = by_hash(session, version.hash)
        except BadRuleset as fault:
            log.error("ruleset_not_loaded", revision=version.version, error=type(fault).__name__)
            self.faulty = True
            return None
        if self._lexicon_hash and version.lexicon_hash != self._lexicon_hash:
            log.warning("lexicon_is_not_the_published_one", revision=version.version)
        return ruleset

    def _report(self, now: datetime) -> None:
        try:
            write(self._sessions, partial(metrics.seen, name=REFUSED, at=now))
        except HotlineError as fault:
            log.warning("rules_not_reported", error=type(fault).__name__)
