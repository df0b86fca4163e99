"""A case's file in words: why this level, what is known, what is next, what happened, who read it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlmodel import Session

from dashboards import deed_words, terms
from dashboards.desk import Desk
from dashboards.marks import visible
from dashboards.texts import texts
from dashboards.words import Words, mark
from service.cases import TRANSITIONS, reference
from service.decisions import Known, latest_decision
from service.ledger.events import EventType
from service.models import Case, Member, Role, State
from service.reading import GAP, NEVER_READ, Account, OpenedFile, Proof, Step
from service.triage import ASKS, FACTS, Fact, Source
from service.vault.cards import UnitKind
from service.walls import Viewer, barred_units

ANSWERS: Mapping[str, str] = {
    "no": mark("No. It goes to the unit chosen above."),
    "yes": mark("Yes. It goes to integrity and oversight instead."),
    "unsure": mark("Unsure. It goes to integrity and oversight instead."),
}
# How far an event is proven: the word beside its mark, and what it means.
PROOFS: Mapping[Proof, tuple[str, str]] = {
    Proof.PROMISED: (mark("promised"), mark("written here, not in the log yet")),
    Proof.INTEGRATED: (mark("integrated"), mark("in the log, which outside parties have yet to sign")),
    Proof.WITNESSED: (mark("witnessed"), mark("outside parties have signed the log with it; nobody can take it back")),
    Proof.UNPROVEN: (mark("does not fit the log"), mark("taken out of the log, or changed since. Tell oversight")),
}
REASONED = ("triage:", "case:narrowing:")  # events whose reason is told in the history
SETTLING = (EventType.SETTLEMENT_SIGNALLED, EventType.COMPENSATION_SIGNALLED)
WRITTEN = frozenset(  # events that carry words of the forms of `dashboards.casework`
    {
        *SETTLING,
        *(EventType.PLAN_RECORDED, EventType.ACT_RECORDED, EventType.STEP_RECORDED, EventType.CASE_RELEASED),
        *(EventType.REFERRAL_SENT, EventType.REFERRAL_TAKEN, EventType.REFERRAL_REFUSED),
        *(EventType.COURT_ENTERED, EventType.COURT_RETURNED),
        *(EventType.WITHDRAWAL_RECORDED, EventType.REVIEW_HELD, EventType.CASE_REOPENED),
        *(EventType.CLOSURE_PROPOSED, EventType.CLOSURE_REFUSED),
    }
)
MOVES = frozenset({EventType.CASE_OPENED, *(row.event for row in TRANSITIONS)} - {EventType.ACT_RECORDED})
# Languages of a text as the triage names them, where browsers name them otherwise: Khmer in Latin letters.
LANGUAGES: Mapping[str, str] = {"kmr": "km-Latn", "und": "", "": ""}


@dataclass(frozen=True, slots=True)
class Reader:
    """Who looks at a case, when, and in which words."""

    viewer: Viewer
    words: Words
    now: datetime
    units: Mapping[str, str]


@dataclass(frozen=True, slots=True, repr=False)
class CaseFile:
    """What a page of a case is made from. steps: its history, newest first. known: None while its facts are sealed.

    opened: its words and sealed facts, for one response; None on the page without its account.
    """

    case: Case
    steps: Sequence[Step]
    known: Known | None
    opened: OpenedFile | None


def case_values(session: Session, desk: Desk, reader: Reader, file: CaseFile) -> dict[str, Any]:
    """Return what the page of a case shows, but for what changes its level."""
    case, steps, opened = file.case, file.steps, file.opened
    record = _record(session, case, opened)
    owner = session.get(Member, case.owner) if case.owner else None
    hand_on = opened is not None and may_hand_on(reader.viewer, case)
    return {
        "case": _header(reader, case, owner, opened),
        "since": _since(reader, steps, case.state),
        "decision": _decision(reader, file, record),
        "asks": _asks(reader.words, record),
        "facts": None if file.known is None else _facts(reader, file.known, steps, (record or {}).get("asks", [])),
        "steps": [_step(reader, step) for step in steps],
        "proofs": _legend(reader.words, steps),
        "readings": [_reading(reader, step) for step in steps if step.type == EventType.CONTENT_OPENED],
        "accounts": None if opened is None else [_account(reader.words, account) for account in opened.accounts],
        "texts": texts(session, reader.words, reader.viewer, case, reader.units, reader.now),
        "openable": reader.viewer.role not in NEVER_READ,
        "takeable": [{"value": code, "label": reader.words(text)} for code, text in terms.TAKEN_OUT.items()],
        "claimable": may_claim(reader.viewer, case),
        "openings": [{"value": code, "label": reader.words(text)} for code, text in terms.OPENING.items()],
        "hand_on": _hand_on(session, desk, reader, case) if hand_on else None,
    }


def may_claim(viewer: Viewer, case: Case) -> bool:
    """Say whether the page offers to claim; `cases.claim` decides."""
    return case.state == State.OPEN and viewer.role == Role.INVESTIGATOR and case.unit in viewer.units


def may_hand_on(viewer: Viewer, case: Case) -> bool:
    """Say whether the page offers to hand on; `exclusions.hand_on` decides."""
    return case.state == State.OPEN and viewer.role == Role.SCREENER and case.unit in viewer.units


def _record(session: Session, case: Case, opened: OpenedFile | None) -> Mapping[str, Any] | None:
    """Return the decision's record; None while it is sealed, or where no seal of this reader opens it."""
    if opened is not None:
        return opened.record or None
    decision = latest_decision(session, case)
    return None if decision.record is None else json.loads(decision.record)


def _header(reader: Reader, case: Case, owner: Member | None, opened: OpenedFile | None) -> dict[str, Any]:
    words = reader.words
    sealed = opened.facts if opened is not None and case.walled else {}
    province, venue = case.province or sealed.get("province"), case.venue or sealed.get("venue")
    flags = sealed.get("flags") or json.loads(case.flags or "[]")
    hidden = case.walled and opened is None
    where = terms.province(words, province) if province else words("Not known where")
    return {
        "id": str(case.id),
        "reference": reference(case.id),
        "version": case.version,
        "level": case.level,
        "level_words": terms.term(words, terms.LEVELS, case.level),
        "tags": terms.flag_tags(words, tuple(flags)),
        "state": terms.term(words, terms.STATES, case.state),
        "next": terms.term(words, terms.NEXT, case.due_kind),
        "left": words.left(case.due_at, reader.now),
        "late": case.due_at < reader.now,
        "due": terms.due(words, case.level, case.due_kind, words.deadline(case.due_at, reader.now)),
        "owner": words.of_two(owner.name, owner.name_km) if owner else "",
        "unit": reader.units.get(case.unit, case.unit),
        "where": words("Sealed") if hidden else where,
        "venue": terms.term(words, terms.VENUES, venue) if venue and not hidden else "",
        "channel": terms.term(words, terms.CHANNELS, case.channel),
        "walled": case.walled,
        "sealed": hidden,
        "provisional": case.provisional,
        "locked": case.locked,
    }


def _since(reader: Reader, steps: Sequence[Step], state: str) -> str:
    """Return since when the case is in its state."""
    moment = None
    for step in steps:  # of several acts, the first after the claim is the one that moved it
        if step.type in MOVES:
            claimed = step.type in (EventType.CASE_CLAIMED, EventType.CASE_REOPENED)
            moment = moment if claimed and moment is not None else step.at
            break
        if step.type == EventType.ACT_RECORDED and state == State.IN_ACTION:
            moment = step.at
    return reader.words("since {hour}", hour=reader.words.day_and_hour(moment, reader.now)) if moment else ""


def _decision(reader: Reader, file: CaseFile, record: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the reasons for the level, and what the rules say now where that is less: it does not fall by itself."""
    if record is None:
        return None
    words, level = reader.words, file.case.level
    now = str(record.get("level", level))
    raised = next((step for step in file.steps if step.type == EventType.LEVEL_RAISED and step.who is not None), None)
    by_hand = raised is not None and now > level and raised.fields.get("after") == level
    held = file.known.held if file.known is not None and now > level else None
    return {
        "level_words": terms.term(words, terms.LEVELS, level),
        "by_hand": _step(reader, raised) if raised is not None and by_hand else None,
        "held": _reasons(words, held),
        "held_at": words.day_and_hour(datetime.fromisoformat(held["as_of"]), reader.now) if held else "",
        "lower": terms.term(words, terms.LEVELS, now) if now > level else "",
        "reasons": _reasons(words, record),
        "ruleset": " ".join(str(record[name]) for name in ("ruleset", "version") if record.get(name)),
    }


def _reasons(words: Words, record: Mapping[str, Any] | None) -> list[dict[str, str]]:
    fired = record.get("fired", []) if record is not None else []
    return [{"id": reason["id"], "words": words.of_two(reason["reason_en"], reason["reason_km"])} for reason in fired]


def _asks(words: Words, record: Mapping[str, Any] | None) -> list[str]:
    """Return the questions whose answers could raise the level."""
    asks = [ASKS.get(name) for name in record.get("asks", [])] if record is not None else []
    return [words.of_two(ask.en, ask.km) for ask in asks if ask is not None]


def _facts(reader: Reader, known: Known, steps: Sequence[Step], asks: Sequence[str]) -> list[dict[str, Any]]:
    """Return what is known, who said it, who said otherwise, and what is worth asking."""
    words = reader.words
    rows = [
        {
            "name": name,
            "label": terms.term(words, terms.FACTS, name),
            "value": terms.value(words, name, fact.value),
            "known": True,
            "said": _said(reader, fact, steps),
            "otherwise": [
                f"{terms.value(words, name, other.value)}: {_said(reader, other, steps)}"
                for other in known.said
                if other.name == name and other.value != fact.value
            ],
        }
        for name, fact in sorted(known.standing.items(), key=lambda entry: FACTS[entry[0]].order)
        if name not in terms.COUNTED_ONLY
    ]
    unknown = {"value": words("Unknown"), "known": False, "said": words("Ask"), "otherwise": []}
    return rows + [
        {"name": name, "label": terms.term(words, terms.FACTS, name), **unknown}
        for name in asks
        if name not in known.standing
    ]


def _said(reader: Reader, fact: Fact, steps: Sequence[Step]) -> str:
    """Return who said a fact, and when. steps: the history, which knows who confirmed it."""
    words = reader.words
    said = terms.term(words, terms.SOURCES, fact.source)
    if fact.source is Source.CONFIRMED:
        who = (
            words.of_two(step.who or "", step.who_km or "")
            for step in steps
            if step.type == EventType.FACTS_CONFIRMED
            and (step.fields.get("fact"), step.fields.get("value")) == (fact.name, fact.value)
        )
        name = next(who, "")
        said = words("Confirmed by {name}", name=name) if name else said
    if fact.hedged:
        said = words("{said}, with “perhaps”", said=said)
    return words("{said}, {hour}", said=said, hour=words.day_and_hour(fact.at, reader.now)) if fact.at else said


def _step(reader: Reader, step: Step) -> dict[str, Any]:
    """Return an event in words: when, what, who, how far it is proven; or what a gap between two means."""
    if step.type == GAP:
        return {"gap": _gap(reader.words, step.fields["missing"])}
    return {
        "gap": "",
        "proof": step.proof.value,
        "proven": reader.words(PROOFS[step.proof][0]),
        "when": reader.words.day_and_hour(step.at, reader.now),
        "what": terms.step(reader.words, step.type, step.fields, reader.units),
        "who": person(reader.words, step),
        "why": visible(step.fields.get("reason", "")) if step.type.startswith(REASONED) else "",
        "words": sealed_words(reader.words, step),
    }


def _gap(words: Words, missing: int) -> str:
    if missing > 0:
        return words(
            "Missing here: {count} events. Somebody has taken them out. Tell oversight.", count=words.digits(missing)
        )
    return words("What stands above does not follow from what stands below. Tell oversight.")


def _legend(words: Words, steps: Sequence[Step]) -> list[dict[str, str]]:
    """Return what the marks mean; the one for what is wrong only where it is."""
    wrong = any(step.proof is Proof.UNPROVEN and step.type != GAP for step in steps)
    shown = [proof for proof in Proof if proof is not Proof.UNPROVEN or wrong]
    return [{"code": proof.value, "word": words(PROOFS[proof][0]), "means": words(PROOFS[proof][1])} for proof in shown]


def sealed_words(words: Words, step: Step) -> list[dict[str, str]]:
    """Return what somebody wrote with an act, a step or a closure: what was asked, and the answer."""
    if step.type not in WRITTEN:
        return []
    official = step.type in SETTLING and step.fields.get("official") is True
    there = [{"label": words("An official was there"), "text": words("Yes")}] if official else []
    return there + [
        {"label": words(label), "text": _answer(words, name, str(step.fields[name]))}
        for name, label in deed_words.ASKED.items()
        if name in step.fields and (name not in ("kind", "unit") or step.type in SETTLING)
    ]


def _answer(words: Words, name: str, said: str) -> str:
    code = deed_words.CODES.get(name, {}).get(said)
    return words(code) if code is not None else visible(said)


def person(words: Words, step: Step) -> str:
    """Return who did it: name and role."""
    role = terms.term(words, terms.ROLES, step.role)
    name = words.of_two(step.who or "", step.who_km or "")
    return words("{name}, {role}", name=name, role=role) if name else role


def _reading(reader: Reader, step: Step) -> dict[str, str]:
    return {
        "who": person(reader.words, step),
        "why": terms.term(reader.words, terms.OPENING, str(step.fields.get("reason", ""))),
        "when": reader.words.day_and_hour(step.at, reader.now),
    }


def _account(words: Words, account: Account) -> dict[str, Any]:
    """Return a message for its one response: nothing in it is taken for more than text."""
    lang = LANGUAGES.get(account.language, account.language)
    return {
        "kind": words("First account") if account.first else words("Later message"),
        "channel": terms.term(words, terms.CHANNELS, account.channel),
        "hour": words.hour_of(account.received_hour),
        "lang": lang if lang.replace("-", "").isalpha() and lang.isascii() else "",
        "notices": terms.notices(words, account.mark),
        "text": visible(account.text),
    }


def _hand_on(session: Session, desk: Desk, reader: Reader, case: Case) -> dict[str, Any]:
    """Return the choices of the hand-on form: no unit behind the wall of the case. Nothing is chosen beforehand."""
    barred = barred_units(session, desk.row_key, case.id, desk.cards)
    cards = [card for card in desk.cards.of_kind(UnitKind.UNIT) if card.unit not in barred]
    names = [{"value": card.unit, "label": reader.units.get(card.unit, card.unit)} for card in cards]
    return {
        "units": sorted(names, key=lambda unit: unit["label"]),
        "answers": [{"value": code, "label": reader.words(text)} for code, text in ANSWERS.items()],
    }
