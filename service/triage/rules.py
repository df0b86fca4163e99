"""Rulesets: YAML that turns facts into a level, flags and routes (triage.md sections 4 and 5).

A file is loaded whole or refused whole; a loaded ruleset never changes and is named by its content hash.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Literal, TypeAlias

from service.canonical import canonical
from service.errors import Misconfigured
from service.triage.facts import ASKS, FACTS, SCHEMA, Fact, Words
from service.triage.kleene import BadCondition, Compiler, Program, Truth
from service.triage.strict_yaml import Plain, load

Level: TypeAlias = Literal["P1", "P2", "P3", "P4"]
RuleKind: TypeAlias = Literal["floor", "bump", "cap", "flag", "route"]

LEVELS: tuple[Level, ...] = ("P1", "P2", "P3", "P4")
KINDS: tuple[RuleKind, ...] = ("floor", "bump", "cap", "flag", "route")
FLAGS = (
    "immediate_danger",
    "child_self_report",
    "confinement",
    "being_moved",
    "leaving_country",
    "official_complicity",
    "settlement_attempt",
    "position_of_trust",
    "multiple_victims",
    "young_child",
    "foreign_suspect",
    "repeat_report",
    "trafficking",
    "unlawful_adoption",
    "online_exploitation",
    "witness_intimidation",
    "medical_need",
    "suicide_risk",
    "child_labour",
    "orphanage_tourism",
    "unregistered_institution",
    "spam_or_prank",
    "adult_only",
    "information_request",
)
ROUTES = (
    "INDEPENDENT",
    "INSPECTION",
    "BORDER",
    "ONLINE",
    "CHILD",
    "LABOUR",
    "ADOPTION",
    "CARE",
    "HEALTH",
    "REFER_OUT",
)

_TOP = {
    "ruleset",
    "version",
    "facts_schema",
    "effective_from",
    "authors",
    "approved_by",
    "default",
    "terms",
    "rules",
}
_OWN_KEYS: Mapping[str, tuple[set[str], set[str]]] = {
    "floor": ({"level"}, {"locked"}),
    "bump": (set(), set()),
    "cap": ({"level"}, set()),
    "flag": ({"flag"}, set()),
    "route": ({"route"}, set()),
}
_COMMON_KEYS = {"id", "kind", "when", "reason", "source"}
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")


class BadRuleset(Misconfigured):
    """A ruleset that must not be used; says which rule and why."""


@dataclass(frozen=True, slots=True)
class Reason:
    """Why: a rule that fired, with its words filled in."""

    id: str
    en: str
    km: str


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. `level` belongs to floors and caps, `effect` names the flag or route.

    reviewed: the Khmer speaker who signed the reason off; empty: nobody yet. fills: facts named in the reason.
    mask: the bits of its condition, for service.triage.kleene. asked: what of it can be asked: the bit
    of the clause and the fact.
    """

    id: str
    kind: RuleKind
    level: Level | None
    locked: bool
    effect: str
    reason: Words
    reviewed: str
    source: str
    mask: int
    fills: tuple[str, ...]
    asked: tuple[tuple[int, str], ...]


@dataclass(frozen=True, eq=False)
class Ruleset:
    """A loaded ruleset; `rules` are in order of the file.

    content: all that it was built from, as canonical JSON; `content_hash` is its SHA-256.
    """

    name: str
    version: str
    effective_from: datetime
    authors: tuple[str, ...]
    approved_by: tuple[str, ...]
    default_level: Level
    default_reason: Words
    rules: tuple[Rule, ...]
    content: bytes
    content_hash: str
    program: Program

    @cached_property
    def data(self) -> Mapping[str, Plain]:
        """What it was built from: the file, as plain data."""
        data: dict[str, Plain] = json.loads(self.content)
        return data

    @cached_property
    def floors(self) -> tuple[Rule, ...]:
        """The floors, from urgent to calm."""
        return tuple(sorted(self._of("floor"), key=lambda rule: rule.level or ""))

    @cached_property
    def reasons(self) -> dict[str, Reason]:
        """The reasons that need no filling in, by rule."""
        return {rule.id: Reason(rule.id, rule.reason.en, rule.reason.km) for rule in self.rules if not rule.fills}

    @cached_property
    def graded(self) -> tuple[Rule, ...]:
        """The rules that set the level: floors from urgent to calm, then bumps, then caps."""
        return (*self.floors, *self._of("bump"), *self._of("cap"))

    @cached_property
    def graded_masks(self) -> tuple[tuple[int, Rule], ...]:
        """`graded`, each with its mask."""
        return tuple((rule.mask, rule) for rule in self.graded)

    @cached_property
    def flag_masks(self) -> tuple[tuple[int, str], ...]:
        """The flags, each with the mask that raises it."""
        return tuple((rule.mask, rule.effect) for rule in self._of("flag"))

    @cached_property
    def route_masks(self) -> tuple[tuple[int, str], ...]:
        """The routes, each with the mask that adds it."""
        return tuple((rule.mask, rule.effect) for rule in self._of("route"))

    def _of(self, kind: RuleKind) -> tuple[Rule, ...]:
        return tuple(rule for rule in self.rules if rule.kind == kind)


def load_ruleset(path: Path) -> Ruleset:
    """Load and compile the ruleset at `path`. Every scalar is read as a string.

    Raises BadRuleset for anything that is not exactly a ruleset: duplicate or unknown keys, aliases, tags, unknown
    facts, values, levels, flags, routes, circular terms, duplicate ids, a reason missing in a language, an unknown
    placeholder, or an author among the approvers.
    """
    return build_ruleset(load(path, BadRuleset))


def build_ruleset(data: Mapping[str, Plain]) -> Ruleset:
    """Compile loaded data, as `load_ruleset` does."""
    _exact(data, _TOP, set(), "ruleset")
    if data["facts_schema"] != SCHEMA:
        raise BadRuleset(f"facts_schema is not {SCHEMA}")
    authors, approvers = _names(data, "authors"), _names(data, "approved_by")
    if set(authors) & set(approvers):
        raise BadRuleset("an author cannot approve")
    terms, rows, default = data["terms"], data["rules"], data["default"]
    if not isinstance(terms, dict) or not isinstance(rows, list) or not isinstance(default, dict):
        raise BadRuleset("terms and default are maps, rules is a list")
    for name, term in terms.items():
        _compiled(Compiler(terms), term, f"term {name}")
    compiler = Compiler(terms)
    checked = _checked(rows)
    masks = [_compiled(compiler, row["when"], f"rule {row['id']}") for row, _ in checked]
    program = compiler.finish()
    content = canonical(dict(data))
    _exact(default, {"level", "reason"}, set(), "default")
    return Ruleset(
        name=_text(data, "ruleset", "ruleset"),
        version=_version(data),
        effective_from=_moment(data),
        authors=authors,
        approved_by=approvers,
        default_level=_level(default, "default"),
        default_reason=_reason(default, "default"),
        rules=tuple(_rule(program, row, kind, mask) for (row, kind), mask in zip(checked, masks, strict=True)),
        content=content,
        content_hash=sha256(content).hexdigest(),
        program=program,
    )


def restore_ruleset(content: bytes, content_hash: str) -> Ruleset:
    """Return the ruleset kept as `content`, canonical JSON. Raises BadRuleset if it is not that of the hash."""
    if sha256(content).hexdigest() != content_hash:
        raise BadRuleset("a stored ruleset is not the one that its hash names")
    data = json.loads(content)
    if not isinstance(data, dict):
        raise BadRuleset("a stored ruleset is not a map")
    return build_ruleset(data)


class _NoProgram(Program):
    """Conditions that cannot be judged."""

    def run(self, facts: Mapping[str, Fact], as_of: datetime | None) -> Truth:
        """Raise BadRuleset: an exception in a rule is P1 everywhere (triage.md section 6)."""
        raise BadRuleset("no rules could be loaded")


NO_RULES = Ruleset(
    name="",
    version="",
    effective_from=datetime.min.replace(tzinfo=UTC),
    authors=(),
    approved_by=(),
    default_level="P1",
    default_reason=Words("No rules", "គ្មានវិធាន"),
    rules=(),
    content=b'{"rules":[],"terms":{}}',
    content_hash="",
    program=_NoProgram({}, ()),
)
"""Stands for rules that could not be loaded: whatever is judged by it is an engine fault, and so P1."""


def _checked(rows: list[Plain]) -> list[tuple[dict[str, Plain], RuleKind]]:
    checked: list[tuple[dict[str, Plain], RuleKind]] = []
    seen: set[str] = set()
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise BadRuleset(f"rule {number + 1}: not a map")
        name = str(row.get("id", number + 1))
        kind = next((kind for kind in KINDS if kind == row.get("kind")), None)
        if kind is None:
            raise BadRuleset(f"rule {name}: kind is one of {', '.join(KINDS)}")
        needed, allowed = _OWN_KEYS[kind]
        _exact(row, _COMMON_KEYS | needed, allowed, f"rule {name}")
        if name in seen:
            raise BadRuleset(f"rule {name}: duplicate id")
        seen.add(name)
        checked.append((row, kind))
    return checked


def _rule(program: Program, row: Mapping[str, Plain], kind: RuleKind, mask: int) -> Rule:
    name = f"rule {row['id']}"
    locked, effect = row.get("locked", "false"), str(row.get(kind, ""))
    if locked not in ("true", "false"):
        raise BadRuleset(f"{name}: locked is true or false")
    if kind in ("flag", "route") and effect not in (FLAGS if kind == "flag" else ROUTES):
        raise BadRuleset(f"{name}: no such {kind}: {effect}")
    reason = _reason(row, name)
    fills = tuple(sorted(set(_PLACEHOLDER.findall(reason.en))))
    numbers = {fact for _, fact in program.pairs_of(mask) if FACTS[fact].bounds is not None}
    if set(_PLACEHOLDER.findall(reason.km)) != set(fills) or not set(fills) <= numbers:
        raise BadRuleset(f"{name}: a placeholder names a number the rule tests, in both languages")
    return Rule(
        id=_text(row, "id", name),
        kind=kind,
        level=_level(row, name) if "level" in row else None,
        locked=locked == "true",
        effect=effect,
        reason=reason,
        reviewed=_reviewed(row),
        source=_text(row, "source", name),
        mask=mask,
        fills=fills,
        asked=tuple((bit, fact) for bit, fact in program.pairs_of(mask) if fact in ASKS),
    )


def _compiled(compiler: Compiler, condition: Plain, where: str) -> int:
    try:
        return compiler.mask(condition)
    except BadCondition as error:
        raise BadRuleset(f"{where}: {error}") from error


def _exact(row: Mapping[str, Plain], needed: set[str], allowed: set[str], where: str) -> None:
    if missing := needed - set(row):
        raise BadRuleset(f"{where}: missing {', '.join(sorted(missing))}")
    if unknown := set(row) - needed - allowed:
        raise BadRuleset(f"{where}: unknown key {', '.join(sorted(unknown))}")


def _text(row: Mapping[str, Plain], key: str, where: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise BadRuleset(f"{where}: {key} is empty")
    return value


def _reason(row: Mapping[str, Plain], where: str) -> Words:
    reason = row["reason"]
    if not isinstance(reason, dict):
        raise BadRuleset(f"{where}: reason needs en and km")
    _exact(reason, {"en", "km"}, {"reviewed"}, f"{where}: reason")
    return Words(_text(reason, "en", where), _text(reason, "km", where))


def _reviewed(row: Mapping[str, Plain]) -> str:
    reason = row["reason"]
    return str(reason.get("reviewed", "")) if isinstance(reason, dict) else ""


def _level(row: Mapping[str, Plain], where: str) -> Level:
    for level in LEVELS:
        if level == row["level"]:
            return level
    raise BadRuleset(f"{where}: no such level")


def _names(data: Mapping[str, Plain], key: str) -> tuple[str, ...]:
    names = data[key]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise BadRuleset(f"{key}: needs at least one name")
    return tuple(str(name) for name in names)


def _version(data: Mapping[str, Plain]) -> str:
    version = _text(data, "version", "ruleset")
    if re.fullmatch(r"[0-9]+\.[0-9]+\.[0-9]+", version) is None:
        raise BadRuleset("version is three numbers")
    return version


def _moment(data: Mapping[str, Plain]) -> datetime:
    try:
        moment = datetime.fromisoformat(_text(data, "effective_from", "ruleset"))
    except ValueError as error:
        raise BadRuleset("effective_from is not a time") from error
    if moment.tzinfo is None:
        raise BadRuleset("effective_from needs its zone")
    return moment
