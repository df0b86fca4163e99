"""Publishing rulesets: who proposes, who ticks what falls, who signs (triage.md section 13).

Every step is an event of the ``rules`` chain; what is in force follows from those (`service.rulesets`).
"""

import hashlib
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

from sqlalchemy import select
from sqlmodel import Session, col

from service.cases import find, reference
from service.db import Sessions, Tx, write
from service.errors import Forbidden, Invalid, NotFound, WrongState
from service.ledger.events import SYSTEM, Actor, EventType, Ledger, NewEvent, StateClass, append, utc_seconds
from service.models import LedgerHead, Member, Role, RulesetTick
from service.rulesets import CHAIN, Version, by_hash, keep, versions
from service.shadow import Move, Replay
from service.triage import Ruleset
from service.triage.changes import changes, may_fall
from service.walls import Viewer

EMERGENCY = timedelta(hours=72)
SIGNERS = frozenset({Role.SUPERVISOR, Role.OVERSIGHT})  # who sees what is proposed, and may sign it
_ACCOUNT = "u:"


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
    if emergency and len({signer.id for signer in signers}) < 2:
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
