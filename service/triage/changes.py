"""What a new ruleset changes against an old one, and whether any level could fall by it (triage.md section 13)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from service.canonical import canonical
from service.triage.rules import Rule, Ruleset
from service.triage.strict_yaml import Plain

DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class Change:
    """A rule, or the default, that is not the same in both rulesets.

    parts: what changed of it, as keys of the file. weakens: whether some case could get a calmer level by it, or lose
    a flag or a route. It is a statement about all cases that there may ever be, not about those that are stored.
    """

    rule: str
    what: Literal["added", "removed", "changed"]
    parts: tuple[str, ...]
    weakens: bool


def changes(old: Ruleset, new: Ruleset) -> list[Change]:
    """Return what `new` changes: in its order, then what is gone. A condition is compared with its terms filled in."""
    before, after = _rows(old), _rows(new)
    old_rules, new_rules = ({rule.id: rule for rule in ruleset.rules} for ruleset in (old, new))
    found = []
    if old.default_level != new.default_level or old.default_reason != new.default_reason:
        parts = [part for part, same in _default(old, new) if not same]
        found.append(Change(DEFAULT, "changed", tuple(parts), new.default_level > old.default_level))
    for name, row in after.items():
        rule = new_rules[name]
        if name not in before:
            found.append(Change(name, "added", (), _calms(rule, old)))
        elif parts := [key for key in sorted({*row, *before[name]}) if _text(row, key) != _text(before[name], key)]:
            found.append(Change(name, "changed", tuple(parts), _weakens(old_rules[name], rule, parts)))
    gone = (Change(name, "removed", (), old_rules[name].kind != "cap") for name in before if name not in after)
    return [*found, *gone]


def may_fall(changed: Iterable[Change]) -> bool:
    """Return whether a level could fall by these changes: oversight signs then. False only where none ever can."""
    return any(change.weakens for change in changed)


def _default(old: Ruleset, new: Ruleset) -> Iterable[tuple[str, bool]]:
    yield "level", old.default_level == new.default_level
    yield "reason", old.default_reason == new.default_reason


def _calms(rule: Rule, old: Ruleset) -> bool:
    """Return whether a rule that is added can calm: a cap does, and a floor below what nothing at all would give."""
    return rule.kind == "cap" or (rule.kind == "floor" and (rule.level or "") > old.default_level)


def _weakens(old: Rule, new: Rule, parts: Iterable[str]) -> bool:
    if {"kind", "when", "flag", "route"} & set(parts):
        return True
    return (new.level or "") > (old.level or "") or (old.locked and not new.locked)


def _rows(ruleset: Ruleset) -> dict[str, Mapping[str, Plain]]:
    """Return the rules as the file has them, by id, with every term of their conditions filled in."""
    terms, rows = ruleset.data["terms"], ruleset.data["rules"]
    found: dict[str, Mapping[str, Plain]] = {}
    for row in rows:
        if isinstance(row, dict) and isinstance(terms, dict):
            found[str(row["id"])] = {**row, "when": _filled(row["when"], terms)}
    return found


def _filled(condition: Plain, terms: Mapping[str, Plain]) -> Plain:
    if isinstance(condition, list):
        return [_filled(part, terms) for part in condition]
    if not isinstance(condition, dict):
        return condition
    if "term" in condition:
        return _filled(terms[str(condition["term"])], terms)
    return {key: value if key == "in" else _filled(value, terms) for key, value in condition.items()}


def _text(row: Mapping[str, Plain], key: str) -> bytes:
    return canonical(row.get(key, "false" if key == "locked" else ""))
