"""Facts to a decision (triage.md section 6): pure, complete, and replayable to the same bytes for ever."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from hashlib import sha256
from typing import Any, NamedTuple

from service.triage.facts import ASKS, FACTS, SCHEMA, Fact, Source, Value
from service.triage.kleene import Truth, effective
from service.triage.rules import LEVELS, Level, Reason, Rule, Ruleset

ENGINE = "kleene-1"
MOST_ASKS = 3
_SEVERITY = {level: rank for rank, level in enumerate(LEVELS)}
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True, slots=True)
class Decision:
    """What the rules say of one set of facts.

    level: after bump and cap; level_floor: the most urgent floor; level_bumped: after a bump. locked: a locked floor
    fired. provisional: another level without what is only suggested. fired: floors from urgent to calm, then bumps
    and the cap. unknown: rules left open, in that order. asks: facts to ask next, at most three. next_rise: when a
    number of hours next runs down to a more urgent level, and which. record: the canonical JSON that is kept.
    """

    level: Level
    level_floor: Level
    level_bumped: Level
    locked: bool
    provisional: bool
    fired: tuple[Reason, ...]
    unknown: tuple[str, ...]
    flags: tuple[str, ...]
    routes: tuple[str, ...]
    asks: tuple[str, ...]
    next_rise: tuple[datetime, Level] | None
    record: bytes


@dataclass(frozen=True, slots=True)
class _Grade:
    floor: Level
    bumped: Level
    level: Level
    locked: bool


class Verdict(NamedTuple):
    """What the rules say before it is written down: how clauses stand, the grade, rules fired and open, effects."""

    truth: Truth
    grade: _Grade
    fired: list[Rule]
    unknown: list[str]
    flags: tuple[str, ...]
    routes: tuple[str, ...]


ENGINE_FAULT = Reason(
    "engine",
    "Engine fault: a person must look now",
    "ប្រព័ន្ធមានបញ្ហា៖ ត្រូវមានមនុស្សមើលឥឡូវនេះ",  # unreviewed
)


def decide(facts: Mapping[str, Fact], ruleset: Ruleset, as_of: datetime, lexicon_hash: str = "") -> Decision:
    """Return what `ruleset` says of `facts` at `as_of` (triage.md section 6).

    facts: merged, by name. as_of: with a time zone; hours that run out are counted down to it.
    Raises ValueError for a fact filed under another name, or a time without a zone.
    """
    if as_of.tzinfo is None:
        raise ValueError("as_of needs its zone")
    for name, fact in facts.items():
        if name != fact.name:
            raise ValueError("a fact is filed under another name")
    as_of = as_of.astimezone(UTC)
    truth, grade, fired, unknown, flags, routes = judge(facts, ruleset, as_of)
    asks = _asks(ruleset, truth, facts, grade.level)
    provisional = grade.level != _level_when_sure(ruleset, facts, as_of, grade.level)
    ready = ruleset.reasons
    reasons = tuple([ready.get(rule.id) or _reason(rule, facts, as_of) for rule in fired])
    if not any(rule.kind == "floor" for rule in fired):
        reasons = (Reason("default", ruleset.default_reason.en, ruleset.default_reason.km), *reasons)
    record = _record(
        head=(ruleset.name, ruleset.version, ruleset.content_hash, lexicon_hash),
        facts=facts,
        as_of=as_of,
        reasons=reasons,
        unknown=unknown,
        grade=grade,
        provisional=provisional,
        lists=(flags, routes, asks),
    )
    return Decision(
        level=grade.level,
        level_floor=grade.floor,
        level_bumped=grade.bumped,
        locked=grade.locked,
        provisional=provisional,
        fired=reasons,
        unknown=tuple(unknown),
        flags=flags,
        routes=routes,
        asks=asks,
        next_rise=_next_rise(ruleset, facts, as_of, grade.level),
        record=record,
    )


def judge(facts: Mapping[str, Fact], ruleset: Ruleset, as_of: datetime) -> Verdict:
    """Evaluate every rule over `facts`: steps 2 to 6, the rules alone."""
    truth = ruleset.program.run(facts, as_of)
    true, possible = truth
    fired: list[Rule] = []
    unknown: list[str] = []
    for mask, rule in ruleset.graded_masks:
        if true & mask == mask:
            fired.append(rule)
        elif possible & mask == mask:
            unknown.append(rule.id)
    flags = tuple([effect for mask, effect in ruleset.flag_masks if true & mask == mask])
    routes = tuple([effect for mask, effect in ruleset.route_masks if true & mask == mask])
    return Verdict(truth, _grade(ruleset, fired), fired, unknown, flags, routes)


def engine_fault(as_of: datetime, facts: Mapping[str, Fact] | None = None, lexicon_hash: str = "") -> Decision:
    """Return the decision for a tip that the rules could not judge: P1, and a person must look now.

    It is not locked: it rests on no fact, so two persons may lower it once they have looked.
    """
    level: Level = "P1"
    grade = _Grade(level, level, level, locked=False)
    known = dict(facts or {})
    record = _record(
        head=("", "", "", lexicon_hash),
        facts=known,
        as_of=as_of.astimezone(UTC),
        reasons=(ENGINE_FAULT,),
        unknown=(),
        grade=grade,
        provisional=False,
        lists=((), (), ()),
    )
    return Decision(level, level, level, False, False, (ENGINE_FAULT,), (), (), (), (), None, record)


def facts_of(record: bytes) -> dict[str, Fact]:
    """Return the facts of a stored decision, by name. Raises ValueError if the record is none of this schema."""
    data = json.loads(record)
    if data.get("facts_schema") != SCHEMA:
        raise ValueError("a record of another schema")
    return {name: _fact(name, row) for name, row in data["facts"].items()}


def replay(record: bytes, ruleset: Ruleset) -> bytes:
    """Decide the facts of a stored record again and return the new record.

    The same bytes come out if `ruleset` is the one the record names; an engine fault replays to itself.
    Raises ValueError if the record is none of this schema.
    """
    facts, data = facts_of(record), json.loads(record)
    as_of = datetime.fromisoformat(data["as_of"])
    if data["content_hash"] == "":
        return engine_fault(as_of, facts, data["lexicon_hash"]).record
    return decide(facts, ruleset, as_of, data["lexicon_hash"]).record


def _grade(ruleset: Ruleset, fired: Sequence[Rule]) -> _Grade:
    """Steps 3 to 5: the most urgent floor, one bump that never reaches P1, a cap that never beats a locked floor."""
    floors = [_SEVERITY[rule.level] for rule in fired if rule.kind == "floor" and rule.level is not None]
    locks = [_SEVERITY[rule.level] for rule in fired if rule.locked and rule.level is not None]
    caps = [_SEVERITY[rule.level] for rule in fired if rule.kind == "cap" and rule.level is not None]
    floor = min(floors, default=_SEVERITY[ruleset.default_level])
    bumped = floor
    if floor > 1 and any(rule.kind == "bump" for rule in fired):
        bumped = floor - 1
    level = max([bumped, *caps])
    if locks:
        level = min(level, min(locks))
    return _Grade(LEVELS[floor], LEVELS[bumped], LEVELS[level], locked=bool(locks))


def _level_at(ruleset: Ruleset, truth: Truth) -> Level:
    fired = [rule for rule in ruleset.graded if truth.true & rule.mask == rule.mask]
    return _grade(ruleset, fired).level


def _level_when_sure(ruleset: Ruleset, facts: Mapping[str, Fact], as_of: datetime, level: Level) -> Level:
    sure = [fact for fact in facts.values() if fact.source is not Source.SUGGESTED]
    if len(sure) == len(facts):
        return level
    counted = ruleset.program.names
    return _level_of(
        ruleset,
        tuple(
            (fact.name, effective(fact, as_of) if isinstance(fact.value, int) else fact.value)
            for fact in sure
            if fact.name in counted
        ),
    )


@lru_cache(maxsize=4096)
def _level_of(ruleset: Ruleset, values: tuple[tuple[str, Value], ...]) -> Level:
    """The level of facts that are all sure; forms and posters give few combinations, so each is worked out once."""
    facts = {name: Fact(name, value, Source.STATED) for name, value in values}
    return _level_at(ruleset, ruleset.program.run(facts, None))


def _asks(ruleset: Ruleset, truth: Truth, facts: Mapping[str, Fact], level: Level) -> tuple[str, ...]:
    """What to ask next (triage.md section 5): the unknown facts of open floors above the present level.

    Order: the level they may bring, the fewest open conditions in the rule, the schema's order.
    """
    contact, child = facts.get("safe_to_contact"), facts.get("reporter_is_child")
    if level == LEVELS[0] or (contact is not None and contact.value == "no"):
        return ()
    a_child = child is not None and child.value == "yes"
    true, possible = truth
    undecided = possible & ~true
    candidates: dict[str, tuple[int, int, int]] = {}
    for rule in ruleset.floors:
        if rule.level is None or rule.level >= level:
            break
        mask = rule.mask
        if mask & ~possible or not mask & undecided:
            continue
        for bit, name in rule.asked:
            if bit & undecided and name not in facts and (ASKS[name].to_child or not a_child):
                rank = (_SEVERITY[rule.level], (mask & undecided).bit_count(), FACTS[name].order)
                if name not in candidates or rank < candidates[name]:
                    candidates[name] = rank
    asks = sorted(candidates, key=candidates.__getitem__)
    if asks and contact is None:
        asks.insert(0, "safe_to_contact")
    return tuple(asks[:MOST_ASKS])


def _next_rise(
    ruleset: Ruleset, facts: Mapping[str, Fact], as_of: datetime, level: Level
) -> tuple[datetime, Level] | None:
    """The first instant at which hours that run out bring a more urgent level, so that nobody must unseal a fact."""
    if level == LEVELS[0]:
        return None
    instants = []
    for name, fact in facts.items():
        if fact.at is not None and FACTS[name].counts_down:
            hours = effective(fact, as_of)
            said = fact.at.astimezone(UTC)
            for cut in ruleset.program.cuts_of(name):
                if cut <= hours:
                    instants.append(said + timedelta(hours=int(fact.value) - cut + 1))
    for instant in sorted(instants):
        later = _level_at(ruleset, ruleset.program.run(facts, instant))
        if later < level:
            return instant, later
    return None


def _reason(rule: Rule, facts: Mapping[str, Fact], as_of: datetime) -> Reason:
    words = {name: str(effective(facts[name], as_of)) if name in facts else "?" for name in rule.fills}

    def fill(text: str) -> str:
        return _PLACEHOLDER.sub(lambda match: words[match[1]], text)

    return Reason(rule.id, fill(rule.reason.en), fill(rule.reason.km))


def _record(
    *,
    head: tuple[str, str, str, str],
    facts: Mapping[str, Fact],
    as_of: datetime,
    reasons: Sequence[Reason],
    unknown: Iterable[str],
    grade: _Grade,
    provisional: bool,
    lists: tuple[Sequence[str], Sequence[str], Sequence[str]],
) -> bytes:
    """Write the record (triage.md section 6) as RFC 8785 JSON: the bytes of service.canonical, in half the time."""
    rows = "{" + ",".join([f'"{name}":{_row(facts[name])}' for name in sorted(facts)]) + "}"
    name, version, content_hash, lexicon_hash = map(_quoted, head)
    flags, routes, asks = map(_list, lists)
    return (
        f'{{"as_of":"{as_of.isoformat()}","asks":{asks},"content_hash":{content_hash},"engine":"{ENGINE}",'
        f'"facts":{rows},"facts_hash":"{sha256(rows.encode()).hexdigest()}","facts_schema":"{SCHEMA}",'
        f'"fired":[{",".join(map(_reason_json, reasons))}],"flags":{flags},'
        f'"level":"{grade.level}","level_bumped":"{grade.bumped}","level_floor":"{grade.floor}",'
        f'"lexicon_hash":{lexicon_hash},"locked":{_TRUTH[grade.locked]},"provisional":{_TRUTH[provisional]},'
        f'"routes":{routes},"ruleset":{name},"unknown":{_list(unknown)},"version":{version}}}'
    ).encode()


_json = json.JSONEncoder(ensure_ascii=False).encode
_TRUTH = {True: "true", False: "false"}


@lru_cache(maxsize=64)
def _quoted(text: str) -> str:
    return _json(text)


def _list(codes: Iterable[str]) -> str:
    """A list of codes, which need no escape."""
    text = '","'.join(codes)
    return f'["{text}"]' if text else "[]"


@lru_cache(maxsize=1024)
def _reason_json(reason: Reason) -> str:
    return f'{{"id":{_json(reason.id)},"reason_en":{_json(reason.en)},"reason_km":{_json(reason.km)}}}'


def _row(fact: Fact) -> str:
    """One fact of the record: what is not there is left out, keys in order."""
    at = f'"at":{_moment(fact.at)},' if fact.at is not None else ""
    hedged = '"hedged":true,' if fact.hedged else ""
    message = f'"message":{_json(fact.message)},' if fact.message is not None else ""
    spans = f'"spans":{_spans(fact.spans)},' if fact.spans else ""
    value = fact.value if isinstance(fact.value, int) else f'"{fact.value}"'
    return f'{{{at}{hedged}{message}"source":"{fact.source.value}",{spans}"value":{value}}}'


def _spans(spans: tuple[tuple[int, int], ...]) -> str:
    return "[" + ",".join([f"[{start},{end}]" for start, end in spans]) + "]"


@lru_cache(maxsize=64)
def _moment(at: datetime) -> str:
    return f'"{at.astimezone(UTC).isoformat()}"'


def _fact(name: str, row: Mapping[str, Any]) -> Fact:
    at = row.get("at")
    return Fact(
        name=name,
        value=row["value"],
        source=Source(row["source"]),
        at=datetime.fromisoformat(at) if at is not None else None,
        message=row.get("message"),
        spans=tuple((int(start), int(end)) for start, end in row.get("spans", ())),
        hedged=bool(row.get("hedged", False)),
    )
