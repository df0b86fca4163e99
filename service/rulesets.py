"""Published rulesets: proposed, approved, in force, lapsed (triage.md section 13).

What a ruleset says is kept once, by its content hash, and never changed. What became of it is told by the events of
the ``rules`` chain alone, and those are checked against their commitments each time: a row that somebody changed in
the database is not believed (keys.md section 3). Which ruleset is in force follows from those events and the clock.
"""

import hashlib
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
from service.cases import find, reference
from service.db import Sessions, Tx, write
from service.errors import Forbidden, HotlineError, Invalid, NotFound, WrongState
from service.ledger.events import (
    SYSTEM,
    Actor,
    EventType,
    Ledger,
    NewEvent,
    StateClass,
    append,
    commit_event,
    commit_field,
    fixed_chain,
    utc_seconds,
)
from service.models import KeptRuleset, LedgerEvent, LedgerField, LedgerHead, Member, Role, RulesetTick
from service.shadow import Move, Replay
from service.triage import NO_RULES, BadRuleset, Ruleset, restore_ruleset
from service.triage.changes import changes, may_fall
from service.walls import Viewer

log = structlog.get_logger("rulesets")

CHAIN = fixed_chain("rules")
EMERGENCY = timedelta(hours=72)
LOOK_EVERY = timedelta(seconds=5)
SIGNERS = frozenset({Role.SUPERVISOR, Role.OVERSIGHT})  # who sees what is proposed, and may sign it
REFUSED = "ruleset_refused"  # the sign by which monitoring sees that published rules could not be loaded
_ACCOUNT = "u:"


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
    return _restored(content, content_hash)


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
    for event in _history(session):
        name = event.fields["hash"]
        if event.type == EventType.RULES_PROPOSED and event.by is not None:
            fields = event.fields
            found[name] = Version(name, fields["version"], fields["lexicon"], fields["emergency"], event.by)
        else:
            found[name] = _after(found[name], event)
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
        except (BadRuleset, ValueError, KeyError, TypeError) as fault:
            log.error("rules_history_refused", error=type(fault).__name__)
            self.faulty, self._trusted = True, False
            return
        newest_first = sorted(known, key=lambda version: -version.place)
        self._published = [(version, self._loaded(session, version)) for version in newest_first]

    def _loaded(self, session: Session, version: Version) -> Ruleset | None:
        try:
            ruleset = by_hash(session, version.hash)
        except (BadRuleset, ValueError, KeyError, TypeError) as fault:
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


# --- proposing and signing ------------------------------------------------------------------------------


def propose(
    tx: Tx,
    ledger: Ledger,
    current: Ruleset,
    new: Ruleset,
    shadow: Replay,
    *,
    account: str,
    lexicon_hash: str,
    emergency: bool,
    now: datetime,
) -> None:
    """Propose `new` in place of `current`, on behalf of an account. Nothing is in force by it.

    The file names who signs it (`approved_by`): accounts of supervisors or oversight, none an author or the proposer,
    with oversight among them if any level could fall. emergency: the first signature publishes it for 72 hours; all
    others, oversight's among them, ratify it. shadow: `shadow.replay` of both. Raises Invalid, saying what to change.
    """
    _serialise(tx)
    proposer = _member(tx, _ACCOUNT + account)
    if proposer is None:
        raise Invalid("--by: there is no such account.")
    known = versions(tx)
    published = [version.version for version in known if version.published_at is not None]
    if new.content_hash in {version.hash for version in known}:
        raise Invalid("This very file was proposed before: a change is a new version.")
    if new.name != current.name or _number(new.version) <= max(map(_number, [current.version, *published])):
        raise Invalid(f"A change of {current.name} {current.version} has the same name and a higher version.")
    weakens = may_fall(changes(current, new))
    if objection := _objection(tx, new, proposer, oversight=weakens or emergency, emergency=emergency):
        raise Invalid(objection)
    if barred := _barred(shadow):
        raise Invalid(f"Cases would fall below a locked floor, and none may: {', '.join(barred)}")
    keep(tx, new, now)
    fields = {"hash": new.content_hash, "version": new.version, "lexicon": lexicon_hash, "emergency": emergency}
    actor = Actor(proposer.role, proposer.organisation, proposer.id.hex)
    _note(tx, ledger, EventType.RULES_PROPOSED, actor, now, fields)


def _objection(tx: Session, new: Ruleset, proposer: Member, *, oversight: bool, emergency: bool) -> str | None:
    """Return what is wrong with the people whom a ruleset names; None if they may decide on it."""
    if missing := [name for name in (*new.authors, *new.approved_by) if _member(tx, name) is None]:
        return f"authors and approved_by are accounts, like u:NAME. There is none of {', '.join(missing)}."
    signers = [signer for name in new.approved_by if (signer := _member(tx, name)) is not None]
    if any(signer.role not in SIGNERS or signer.disabled_at is not None for signer in signers):
        return "approved_by names supervisors and oversight officers with an account that works."
    if proposer.id in {signer.id for signer in signers}:
        return "Who proposes it cannot be among those who approve it."
    if oversight and not any(signer.role == Role.OVERSIGHT for signer in signers):
        return "approved_by must name oversight: a level could fall by it, or it is an emergency."
    if emergency and len(signers) < 2:
        return "An emergency names two who approve: the first puts it in force, the other ratifies it."
    return None


def tick(tx: Tx, viewer: Viewer, version_hash: str, cases: Iterable[UUID], shadow: Replay, now: datetime) -> None:
    """Note that `viewer` has looked at cases which would fall, each by name. Safe to call twice.

    Raises NotFound, WrongState, Forbidden, and NoSuchCase for a case that does not exist for the viewer.
    """
    version = find_version(tx, viewer, version_hash)
    if version.refused is not None or version.published_at is not None:
        raise WrongState("This proposal has ended.")
    if viewer.member in writers(tx, version, by_hash(tx, version.hash)):
        raise Forbidden("Who wrote or proposed these rules cannot tick what falls by them.")
    falls = {move.case: move.after for move in shadow.falls}
    for case_id in cases:
        case = find(tx, viewer, case_id)
        after = falls.get(case.id)
        if after is not None and tx.get(RulesetTick, (version.hash, case.id, after)) is None:
            tx.add(RulesetTick(ruleset=version.hash, case=case.id, after=after, member=viewer.member, at=now))
    tx.flush()


def unticked(session: Session, version_hash: str, shadow: Replay) -> list[Move]:
    """Return the falls that nobody has ticked yet, as they would be now."""
    ticks = select(col(RulesetTick.case), col(RulesetTick.after)).where(col(RulesetTick.ruleset) == version_hash)
    ticked = {(case, after) for case, after in session.execute(ticks).all()}
    return [move for move in shadow.falls if (move.case, move.after) not in ticked]


def sign(
    tx: Tx, ledger: Ledger, viewer: Viewer, version_hash: str, current: Ruleset, shadow: Replay, now: datetime
) -> Version:
    """Approve a proposed ruleset, or an emergency that is in force, and return what it is now.

    It is published when all whom it names have signed; an emergency by the first signature, and ratified by the last.
    Raises NotFound, Forbidden, WrongState: for whoever it does not name, an author, a fall that nobody ticked.
    """
    _serialise(tx)
    version = find_version(tx, viewer, version_hash)
    new = by_hash(tx, version.hash)
    if objection := may_not_sign(tx, viewer, version, new, now):
        raise Forbidden(objection)
    if version.published_at is None:
        _must_hold_still(tx, version, new, current, shadow)
    ticks = sorted(f"{move.case.hex}:{move.after}" for move in shadow.falls)
    digest = hashlib.sha256("\n".join(ticks).encode()).hexdigest()
    fields: dict[str, Any] = {"hash": version.hash, "version": version.version}
    _note(tx, ledger, EventType.RULES_APPROVED, viewer.actor, now, {**fields, "falls": len(ticks), "ticked": digest})
    signed = {*(signature.member for signature in version.approved), viewer.member}
    whole = set(_people(tx, new.approved_by)) <= signed
    if version.published_at is None and (whole or version.emergency):
        published = {
            "effective": utc_seconds(max(now, new.effective_from)),
            "until": utc_seconds(now + EMERGENCY) if version.emergency else None,
            "lexicon": version.lexicon_hash,
        }
        _note(tx, ledger, EventType.RULES_PUBLISHED, viewer.actor, now, fields | published)
    elif version.emergency and whole:
        _note(tx, ledger, EventType.RULES_RATIFIED, viewer.actor, now, fields)
    return find_version(tx, viewer, version.hash)


def may_not_sign(session: Session, viewer: Viewer, version: Version, new: Ruleset, now: datetime) -> str | None:
    """Return why `viewer` may not sign a version now; None if they may."""
    if version.refused is not None or version.over_at(now):
        return "This proposal has ended."
    if viewer.member in writers(session, version, new):
        return "Who wrote or proposed these rules cannot approve them."
    if viewer.role not in SIGNERS or viewer.member not in _people(session, new.approved_by):
        return "These rules do not name you among those who approve them."
    if viewer.member in {signature.member for signature in version.approved}:
        return "You have signed this already: another person must."
    return None


def writers(session: Session, version: Version, new: Ruleset) -> set[UUID]:
    """Return who wrote or proposed a version: they neither approve it nor tick what falls by it."""
    return {version.proposed.member, *_people(session, new.authors)}


def _must_hold_still(tx: Session, version: Version, new: Ruleset, current: Ruleset, shadow: Replay) -> None:
    """Raise WrongState unless what was proposed still stands against the rules in force and the cases there are."""
    published = [other.version for other in versions(tx) if other.published_at is not None]
    if _number(new.version) <= max(map(_number, [current.version, *published])):
        raise WrongState("Newer rules are in force by now: propose it anew with a higher version.")
    signers = [signer for name in new.approved_by if (signer := _member(tx, name)) is not None]
    if may_fall(changes(current, new)) and not any(signer.role == Role.OVERSIGHT for signer in signers):
        raise WrongState("The rules in force have changed and a level could fall now: oversight must be named.")
    if _barred(shadow):
        raise WrongState("A case would fall below a locked floor, and none may.")
    if unticked(tx, version.hash, shadow):
        raise WrongState("Each case that would fall is ticked by name first.")


def refuse(tx: Tx, ledger: Ledger, viewer: Viewer, version_hash: str, now: datetime) -> None:
    """End a proposal. One person is enough; what is published ends only by a newer version, or by lapsing.

    Raises NotFound, WrongState.
    """
    _serialise(tx)
    version = find_version(tx, viewer, version_hash)
    if version.refused is not None or version.published_at is not None:
        raise WrongState("This proposal has ended.")
    fields = {"hash": version.hash, "version": version.version}
    _note(tx, ledger, EventType.RULES_REFUSED, viewer.actor, now, fields)


def lapse(sessions: Sessions, ledger: Ledger, now: datetime) -> int:
    """Write down the emergencies that are over without being ratified, and return how many. Safe to run at once."""
    with sessions.read() as session:
        waiting = _lapsing(session, now)
    return write(sessions, partial(_lapse, ledger=ledger, now=now)) if waiting else 0


def _lapsing(session: Session, now: datetime) -> list[Version]:
    return [version for version in versions(session) if version.over_at(now) and not version.lapsed]


def _lapse(tx: Tx, *, ledger: Ledger, now: datetime) -> int:
    _serialise(tx)
    over = _lapsing(tx, now)
    for version in over:
        fields = {"hash": version.hash, "version": version.version}
        _note(tx, ledger, EventType.RULES_LAPSED, SYSTEM, now, fields)
    return len(over)


def find_version(session: Session, viewer: Viewer, version_hash: str) -> Version:
    """Return a proposed or published version. Raises NotFound; proposals exist for supervisors and oversight only."""
    found = next((version for version in versions(session) if version.hash == version_hash), None)
    if found is None or (viewer.role not in SIGNERS and found.published_at is None):
        raise NotFound("There are no such rules.")
    return found


def _barred(shadow: Replay) -> list[str]:
    return [reference(move.case) for move in shadow.falls if move.barred]


def _number(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def _member(session: Session, name: str) -> Member | None:
    """Return the member of an account, written ``u:ACCOUNT`` in a ruleset; None if there is none."""
    if not name.startswith(_ACCOUNT):
        return None
    account = name.removeprefix(_ACCOUNT).strip().casefold()
    return session.scalars(select(Member).where(col(Member.account) == account)).one_or_none()


def _people(session: Session, names: Iterable[str]) -> list[UUID]:
    return [member.id for name in names if (member := _member(session, name)) is not None]


def _serialise(tx: Tx) -> None:
    """Let steps on the rules follow one another: what one has read must still hold when it writes."""
    tx.execute(select(col(LedgerHead.seq)).where(col(LedgerHead.case) == CHAIN).with_for_update())


def _note(tx: Tx, ledger: Ledger, what: EventType, actor: Actor, now: datetime, fields: Mapping[str, Any]) -> None:
    append(tx, ledger, CHAIN, [NewEvent(what, now, actor, StateClass.SYSTEM, fields=fields)])
