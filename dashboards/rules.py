"""The rules in plain language, and what a proposed version would change: its replay, ticks and signatures."""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Form, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import ConfigDict
from sqlalchemy import select
from sqlmodel import Session, col

from dashboards import rule_words, terms
from dashboards.desk import Desk, InWords, OurDesk, Who, team, unit_names
from dashboards.forms import StaffForm, read_id
from dashboards.pages import catalogue, render, signed_in
from dashboards.words import Words, mark
from service import publishing, rulesets, shadow
from service.cases import reference
from service.db import Tx, write
from service.errors import CannotOpen, InvalidForm, NotFound
from service.models import Case, Member, RulesetTick
from service.publishing import SIGNERS
from service.rulesets import Signature, Version
from service.shadow import Move, Replay
from service.triage import NO_RULES, BadRuleset, Ruleset, load_lexicon
from service.triage.changes import changes, may_fall
from service.triage.review import Unreviewed, unreviewed_reasons, unreviewed_words
from service.walls import Viewer, readable

router = APIRouter(prefix="/rules")

MOST_TICKS = 12  # of a form: the gate takes few fields
_TICK = "case-"
_HASH = re.compile(r"[0-9a-f]{64}", re.ASCII)

FAULTY = mark("Published rules do not fit the history of the rules.")
LOST = mark("No rules can be trusted, so everything is P1. Tell oversight and whoever runs the system now.")
KEPT = mark("The older ones stay in force. Tell oversight and whoever runs the system.")

UNREVIEWED: Mapping[str, str] = {
    "reasons of rules": mark("reasons of rules"),
    "questions": mark("questions"),
    "concepts with Khmer words": mark("concepts with Khmer words"),
    "Khmer words": mark("Khmer words"),
    "sentences of these pages": mark("sentences of these pages"),
}


class TickForm(StaffForm):
    """Cases that somebody has looked at, each under its own name: ``case-ID``."""

    model_config = ConfigDict(extra="allow")


def read_hash(version_hash: str) -> str:
    """Return the content hash in an address. One that is malformed names no rules."""
    if not _HASH.fullmatch(version_hash):
        raise NotFound("There are no such rules.")
    return version_hash


VersionHash = Annotated[str, Depends(read_hash)]


# --- the rules in force ---------------------------------------------------------------------------------


@router.get("")
def show(request: Request, desk: OurDesk, who: Who, words: InWords) -> Response:
    """Show the rules in force."""
    now = desk.clock()
    ruleset = desk.ruleset
    with desk.sessions.read() as session:
        known = _versions(session, who.viewer)
        values: dict[str, Any] = {
            "trouble": trouble(desk, words),
            "head": _in_force(session, desk, words, ruleset, now),
            "waiting": _unreviewed(desk, words, ruleset),
            "groups": rule_words.grouped(words, ruleset),
            "terms": rule_words.shared(words, ruleset) if ruleset is not NO_RULES else [],
            "fallback": _fallback(words, ruleset),
            "versions": [_row(words, version, desk.rules.version(now), now) for version in reversed(known or [])],
            "links": who.viewer.role in SIGNERS,
        }
        frame = signed_in(request, words, team(who, unit_names(session, words)))
    return render(request, "rules.html", here="/rules", page="rules", **frame, **values)


def trouble(desk: Desk, words: Words) -> list[dict[str, Any]]:
    """Return that published rules could not be trusted, for the queue's page; it is the same for everyone."""
    missing = desk.ruleset is NO_RULES  # asks, when the last look is some seconds old
    if not desk.rules.faulty:
        return []
    then = words(LOST) if missing else words(KEPT)
    return [{"words": f"{words(FAULTY)} {then}", "cases": []}]


def to_sign(session: Session, words: Words, viewer: Viewer, now: datetime) -> list[dict[str, Any]]:
    """Return the versions that wait for this person's signature, for the queue's page."""
    if viewer.role not in SIGNERS:
        return []
    found = []
    for version in _versions(session, viewer) or []:
        if version.published_at is None or _pending(version):
            with suppress(CannotOpen):  # one that cannot be read is signed by nobody
                new = _content(session, version)
                if publishing.may_not_sign(session, viewer, version, new, now) is None:
                    found.append({"href": f"/rules/{version.hash}", "reference": words.digits(version.version)})
    return [{"words": words("Rules wait for your signature:"), "cases": found}] if found else []


def _versions(session: Session, viewer: Viewer) -> list[Version] | None:
    """Return the versions that this person may know of; None where their history cannot be trusted."""
    try:
        known = rulesets.versions(session)
    except BadRuleset:
        return None
    return [one for one in known if viewer.role in SIGNERS or one.published_at is not None]


def _in_force(session: Session, desk: Desk, words: Words, ruleset: Ruleset, now: datetime) -> dict[str, Any]:
    version = desk.rules.version(now)
    return {
        "name": ruleset.name,
        "version": words.digits(ruleset.version),
        "hash": ruleset.content_hash,
        "since": words.stamp(version.effective_at) if version is not None and version.effective_at else "",
        "release": version is None and ruleset is not NO_RULES,
        "until": words.stamp(version.until) if version is not None and _pending(version) and version.until else "",
        "authors": _names(session, words, ruleset.authors),
        "approvers": _names(session, words, ruleset.approved_by),
        "proposer": _person(session, words, version.proposed) if version is not None else "",
    }


def _pending(version: Version) -> bool:
    """Return whether a version is an emergency that will end by itself."""
    return version.until is not None and not version.ratified


def _unreviewed(desk: Desk, words: Words, ruleset: Ruleset) -> list[str]:
    pages = Unreviewed("sentences of these pages", len(catalogue()), len(catalogue()))
    counted = [*unreviewed_reasons(ruleset), *_lexicon_counts(desk.settings.lexicon_dir), pages]
    return [
        words(
            "{what}: {waiting} of {total}",
            what=terms.term(words, UNREVIEWED, one.what),
            waiting=words.digits(one.waiting),
            total=words.digits(one.total),
        )
        for one in counted
    ]


@cache
def _lexicon_counts(folder: Path) -> tuple[Unreviewed, ...]:
    """Return what waits in the lexicon that this process was started with."""
    return tuple(unreviewed_words(load_lexicon(folder)))


def _fallback(words: Words, ruleset: Ruleset) -> dict[str, str]:
    level = ruleset.default_level
    reason = words.of_two(ruleset.default_reason.en, ruleset.default_reason.km)
    return {"level": level, "level_words": terms.term(words, terms.LEVELS, level), "reason": reason}


def _row(words: Words, version: Version, in_force: Version | None, now: datetime) -> dict[str, Any]:
    return {
        "hash": version.hash,
        "version": words.digits(version.version),
        "state": _state(words, version, in_force, now),
        "emergency": version.emergency,
    }


def _state(words: Words, version: Version, in_force: Version | None, now: datetime) -> str:
    if version.refused is not None:
        return words("refused {hour}", hour=words.stamp(version.refused.at))
    if version.published_at is None or version.effective_at is None:
        return words("proposed {hour}", hour=words.stamp(version.proposed.at))
    if version.until is not None and version.over_at(now):
        return words("lapsed {hour}: it was not ratified", hour=words.stamp(version.until))
    if in_force is not None and in_force.hash == version.hash:
        if _pending(version) and version.until is not None:
            return words("in force as an emergency until {hour}, unless ratified", hour=words.stamp(version.until))
        return words("in force since {hour}", hour=words.stamp(version.effective_at))
    if version.effective_at > now:
        return words("published; in force from {hour}", hour=words.stamp(version.effective_at))
    return words("published {hour}, replaced since", hour=words.stamp(version.published_at))


def _names(session: Session, words: Words, accounts: Sequence[str]) -> list[str]:
    """Return people by the accounts that a ruleset names; one that is no account here stays as it is written."""
    plain = [account.removeprefix("u:") for account in accounts]
    rows = session.scalars(select(Member).where(col(Member.account).in_(plain))).all()
    names = {row.account: words.of_two(row.name, row.name_km) for row in rows}
    return [names.get(account, account) for account in plain]


def _person(session: Session, words: Words, signature: Signature) -> str:
    member = session.get(Member, signature.member)
    name = words.of_two(member.name, member.name_km) if member is not None else "?"
    return words("{name}, {role}", name=name, role=terms.term(words, terms.ROLES, signature.role))


# --- a proposed version ---------------------------------------------------------------------------------


@router.get("/{version_hash}")
def show_version(request: Request, version_hash: VersionHash, desk: OurDesk, who: Who, words: InWords) -> Response:
    """Show what a proposed version would change, or what became of it."""
    now = desk.clock()
    current = desk.ruleset
    with desk.sessions.read() as session:
        version = _version(session, who.viewer, version_hash)
        new = _content(session, version)
        proposed = version.published_at is None and version.refused is None
        found = shadow.replay(session, current, new, now, who.viewer) if proposed else None
        made = changes(current, new)
        values: dict[str, Any] = {
            "head": _proposal(session, words, version, new, desk.rules.version(now), now),
            "current": words.digits(current.version),
            "compared": current.content_hash != new.content_hash,
            "weakens": may_fall(made),
            "changes": [rule_words.changed(words, change, current, new) for change in made],
            "replay": _replay(session, words, who.viewer, version, found) if found is not None else None,
            **_steps(session, words, who.viewer, version, new, found, now),
        }
        frame = signed_in(request, words, team(who, unit_names(session, words)))
    return render(request, "rules_version.html", here=f"/rules/{version.hash}", page="rules", **frame, **values)


def _version(session: Session, viewer: Viewer, version_hash: str) -> Version:
    """Return a version for those who may see what is proposed; for others it does not exist."""
    if viewer.role not in SIGNERS:
        raise NotFound("There are no such rules.")
    return publishing.find_version(session, viewer, version_hash)


def _content(session: Session, version: Version) -> Ruleset:
    """Return what a version says. Raises CannotOpen for one that is not what was proposed."""
    try:
        return rulesets.by_hash(session, version.hash)
    except BadRuleset as fault:
        raise CannotOpen("A stored ruleset is not the one that was proposed.") from fault


def _proposal(
    session: Session, words: Words, version: Version, new: Ruleset, in_force: Version | None, now: datetime
) -> dict[str, Any]:
    return {
        "hash": version.hash,
        "name": new.name,
        "version": words.digits(version.version),
        "state": _state(words, version, in_force, now),
        "emergency": version.emergency,
        "proposer": _person(session, words, version.proposed),
        "authors": _names(session, words, new.authors),
        "approvers": _names(session, words, new.approved_by),
        "from": words.stamp(new.effective_from),
        "signed": [
            words("{who}, {hour}", who=_person(session, words, one), hour=words.stamp(one.at))
            for one in version.approved
        ],
    }


def _replay(session: Session, words: Words, viewer: Viewer, version: Version, found: Replay) -> dict[str, Any]:
    """Return the replay as this person may see it: cases that exist for them by name, the others counted."""
    ids = [move.case for move in found.moves]
    seen = set(session.scalars(select(col(Case.id)).where(col(Case.id).in_(ids), readable(viewer))).all())
    open_falls = {move.case for move in publishing.unticked(session, version.hash, found)}
    ticks = session.scalars(select(RulesetTick).where(col(RulesetTick.ruleset) == version.hash)).all()
    by = {(tick.case, tick.after): tick.member for tick in ticks}
    mine = [move for move in found.falls if move.case in seen]
    to_tick = [move for move in mine if move.case in open_falls]
    elsewhere = [move for move in found.falls if move.case not in seen]
    return {
        "total": words.digits(len(found.moves) + found.same),
        "rises": words.digits(len(found.rises)),
        "falls": words.digits(len(found.falls)),
        "same": words.digits(found.same),
        "unread": words.digits(found.unread) if found.unread else "",
        "risen": [_move(words, move) for move in found.rises if move.case in seen],
        "risen_elsewhere": _count(words, [move for move in found.rises if move.case not in seen]),
        "to_tick": [_move(words, move) for move in to_tick[:MOST_TICKS]],
        "more": _count(words, to_tick[MOST_TICKS:]),
        "ticked": [
            _move(words, move) | {"by": _ticker(session, words, by[move.case, move.after])}
            for move in mine
            if move.case not in open_falls
        ],
        "elsewhere": _count(words, elsewhere),
        "elsewhere_open": _count(words, [move for move in elsewhere if move.case in open_falls]),
        "barred": any(move.barred for move in found.falls),
    }


def _count(words: Words, moves: Sequence[Move]) -> str:
    return words.digits(len(moves)) if moves else ""


def _ticker(session: Session, words: Words, member_id: UUID) -> str:
    member = session.get(Member, member_id)
    return words.of_two(member.name, member.name_km) if member is not None else "?"


def _move(words: Words, move: Move) -> dict[str, Any]:
    parts = [words("no longer: {rules}", rules=", ".join(move.gone))] if move.gone else []
    parts += [words("now: {rules}", rules=", ".join(move.come))] if move.come else []
    return {
        "id": str(move.case),
        "field": f"{_TICK}{move.case}",
        "reference": reference(move.case),
        "before": move.before,
        "before_words": terms.term(words, terms.LEVELS, move.before),
        "after": move.after,
        "after_words": terms.term(words, terms.LEVELS, move.after),
        "why": "; ".join(parts),
        "barred": move.barred and move.falls,
    }


def _steps(
    session: Session,
    words: Words,
    viewer: Viewer,
    version: Version,
    new: Ruleset,
    found: Replay | None,
    now: datetime,
) -> dict[str, Any]:
    """Return what this person may do: tick, sign, refuse, or why they may not sign."""
    objection = publishing.may_not_sign(session, viewer, version, new, now)
    wrote = viewer.member in publishing.writers(session, version, new)
    unticked = publishing.unticked(session, version.hash, found) if found is not None else []
    ended = (
        version.refused is not None
        or version.over_at(now)
        or (version.published_at is not None and not (_pending(version)))
    )
    return {
        "may_tick": found is not None and not wrote,
        "may_sign": objection is None and not unticked and not ended,
        "objection": "" if ended else words(objection) if objection else "",
        "unticked": _count(words, unticked) if objection is None else "",
        "may_refuse": version.published_at is None and version.refused is None,
    }


# --- steps ----------------------------------------------------------------------------------------------


@router.post("/{version_hash}/tick")
def tick(version_hash: VersionHash, form: Annotated[TickForm, Form()], desk: OurDesk, who: Who) -> Response:
    """Note that this person has looked at cases that would fall, each by name."""
    names = list(form.model_extra or {})
    if not names or not all(name.startswith(_TICK) for name in names):
        raise InvalidForm("case", "Tick the cases that you have looked at.")
    cases = [read_id(name.removeprefix(_TICK)) for name in names]
    found = _found(desk, who.viewer, version_hash)
    use_case = partial(
        publishing.tick, viewer=who.viewer, version_hash=version_hash, cases=cases, shadow=found, now=desk.clock()
    )
    write(desk.sessions, use_case)
    return RedirectResponse(f"/rules/{version_hash}#falls", 303)


@router.post("/{version_hash}/approve")
def approve(version_hash: VersionHash, form: Annotated[StaffForm, Form()], desk: OurDesk, who: Who) -> Response:
    """Sign a proposed version, or ratify an emergency."""
    found, now = _found(desk, who.viewer, version_hash), desk.clock()
    current = desk.ruleset

    def use_case(tx: Tx) -> None:
        publishing.sign(tx, desk.ledger, who.viewer, version_hash, current, found, now)

    write(desk.sessions, use_case)
    desk.rules.look(now)
    return RedirectResponse(f"/rules/{version_hash}", 303)


@router.post("/{version_hash}/refuse")
def refuse(version_hash: VersionHash, form: Annotated[StaffForm, Form()], desk: OurDesk, who: Who) -> Response:
    """End a proposal."""
    use_case = partial(
        publishing.refuse, ledger=desk.ledger, viewer=who.viewer, version_hash=version_hash, now=desk.clock()
    )
    write(desk.sessions, use_case)
    return RedirectResponse(f"/rules/{version_hash}", 303)


def _found(desk: Desk, viewer: Viewer, version_hash: str) -> Replay:
    """Return the replay of a version over what is stored now, outside the transaction that writes."""
    with desk.sessions.read() as session:
        version = _version(session, viewer, version_hash)
        return shadow.replay(session, desk.ruleset, _content(session, version), desk.clock())
