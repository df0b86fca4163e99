"""Rules in plain language: conditions, what a rule does, and what a new ruleset changes."""

import re
from collections.abc import Mapping
from typing import Any

from dashboards import terms
from dashboards.words import Words, mark
from service.triage import ASKS, FACTS, Rule, Ruleset
from service.triage.changes import DEFAULT, Change
from service.triage.facts import UNKNOWN
from service.triage.strict_yaml import Plain

PLACE = re.compile(r"\{[a-z0-9_]+\}")

# Names of the terms that the rules share; what each means stands on the same page, from the ruleset itself.
TERMS: Mapping[str, str] = {
    "child": mark("it may concern a child"),
    "report": mark("it may be a report"),
    "abuse": mark("a child was harmed"),
    "at_large": mark("the suspect may be free"),
    "reach": mark("the suspect may reach children"),
    "fresh": mark("it happened lately"),
    "traceable": mark("it can be followed up"),
    "target": mark("the place or the person is known"),
    "not_lesser": mark("it may be more than light work, plans or conditions"),
    "position_of_trust": mark("the suspect has a position of trust"),
    "settlement_signal": mark("there is a settlement"),
    "sold_or_moved": mark("the child was sold or moved for exploitation"),
    "residential": mark("it is a residential care institution"),
    "entertainment": mark("it is a place of entertainment"),
    "workplace": mark("it is a workplace"),
    "unlicensed": mark("the home has no licence"),
    "visits": mark("visitors are taken to children"),
    "with_suspect": mark("the child is with the suspect now"),
    "care_needed": mark("the child needs care now"),
    "due_today": mark("harm is announced for today"),
    "leaving_within_week": mark("the suspect leaves within a week"),
    "silent": mark("nothing was said"),
}

ROUTES: Mapping[str, str] = {
    "INDEPENDENT": mark("To the integrity unit, behind the wall"),
    "INSPECTION": mark("To the inspectorate of homes"),
    "BORDER": mark("To border control"),
    "ONLINE": mark("To the partner hotline for the internet"),
    "CHILD": mark("To staff trained to speak with children"),
    "LABOUR": mark("To the labour inspectorate"),
    "ADOPTION": mark("To the adoption authority"),
    "CARE": mark("To health care or a shelter"),
    "HEALTH": mark("To medical help within 72 hours"),
    "REFER_OUT": mark("To a service for adults"),
}

KINDS: Mapping[str, str] = {
    "floor": mark("Rules that set the level"),
    "bump": mark("Rules that raise it by one, never to P1"),
    "cap": mark("Rules that limit it, never against a locked one"),
    "flag": mark("Rules that set a flag"),
    "route": mark("Rules that say who else must know"),
}

PARTS: Mapping[str, str] = {
    "level": mark("level"),
    "locked": mark("lock"),
    "when": mark("condition"),
    "reason": mark("reason"),
    "source": mark("source"),
    "kind": mark("kind"),
    "flag": mark("flag"),
    "route": mark("route"),
}


def condition(words: Words, row: Plain) -> dict[str, Any]:
    """Return a condition as it is read: ``text``, a term's ``term``, or ``head`` with ``parts``."""
    match row:
        case {"fact": str(name)} if isinstance(row, dict):
            return {"text": _comparison(words, name, row)}
        case {"term": str(name)}:
            return {"text": terms.term(words, TERMS, name), "term": name}
        case {"not": inner}:
            return {"head": words("Not:"), "parts": [condition(words, inner)]}
        case {"all": list(parts)}:
            return {"head": words("All of these:"), "parts": [condition(words, part) for part in parts]}
        case {"any": list(parts)}:
            return {"head": words("One of these:"), "parts": [condition(words, part) for part in parts]}
    return {"text": str(row)}


def _comparison(words: Words, name: str, row: Mapping[str, Plain]) -> str:
    said = next(_said(words, name, key, operand) for key, operand in row.items() if key not in ("fact", "sure"))
    text = f"{terms.term(words, terms.FACTS, name)}: {said}"
    return words("{condition}; not from words alone", condition=text) if "sure" in row else text


def _said(words: Words, name: str, key: str, operand: Plain) -> str:
    if key == "known":
        return words("known") if operand == "true" else words("not known")
    if isinstance(operand, list):
        return words(" or ").join(_value(words, name, str(one)) for one in operand)
    said = _value(words, name, str(operand))
    if key == "gte":
        return words("{number} or more", number=said)
    return words("{number} or less", number=said) if key == "lte" else said


def _value(words: Words, name: str, code: str) -> str:
    if code == UNKNOWN:
        return words("not known")
    number = name in FACTS and FACTS[name].bounds is not None
    return terms.value(words, name, int(code) if number else code)


def rule(words: Words, found: Rule, when: Plain) -> dict[str, Any]:
    """Return a rule in words. when: its condition, as the file has it."""
    other = found.reason.km if words.language.value == "en" else found.reason.en
    asked = dict.fromkeys(name for _, name in found.asked)
    return {
        "id": found.id,
        "level": found.level,
        "level_words": terms.term(words, terms.LEVELS, found.level) if found.level else "",
        "effect": _effect(words, found),
        "locked": found.locked,
        "reason": _filled(words.of_two(found.reason.en, found.reason.km)),
        "other": _filled(other),
        "reviewed": found.reviewed,
        "source": found.source,
        "when": condition(words, when),
        "asks": [words.of_two(ASKS[name].en, ASKS[name].km) for name in asked],
    }


def _filled(reason: str) -> str:
    """Return a reason with dots where each case has its own number."""
    return PLACE.sub("…", reason)


def _effect(words: Words, found: Rule) -> str:
    if found.kind == "flag":
        return terms.term(words, terms.FLAGS, found.effect)
    if found.kind == "route":
        return terms.term(words, ROUTES, found.effect)
    return words("one level up") if found.kind == "bump" else ""


def conditions(ruleset: Ruleset) -> dict[str, Plain]:
    """Return each rule's condition, as the file has it."""
    rows = ruleset.data["rules"]
    return {str(row["id"]): row["when"] for row in rows if isinstance(row, dict)}


def grouped(words: Words, ruleset: Ruleset) -> list[dict[str, Any]]:
    """Return all rules in words, by what they do; those that set the level from urgent to calm."""
    when = conditions(ruleset)
    found = []
    for kind, title in KINDS.items():
        of_kind = ruleset.floors if kind == "floor" else [one for one in ruleset.rules if one.kind == kind]
        rows = [rule(words, one, when[one.id]) for one in of_kind]
        if rows:
            found.append({"kind": kind, "title": words(title), "rules": rows})
    return found


def shared(words: Words, ruleset: Ruleset) -> list[dict[str, Any]]:
    """Return what each term means that the rules share."""
    data = ruleset.data["terms"]
    rows = data.items() if isinstance(data, dict) else ()
    return [{"term": name, "name": terms.term(words, TERMS, name), "when": condition(words, row)} for name, row in rows]


def changed(words: Words, change: Change, old: Ruleset, new: Ruleset) -> dict[str, Any]:
    """Return a change in words, with the rule as it was and as it would be."""
    rules = [{one.id: one for one in ruleset.rules} for ruleset in (old, new)]
    told = {
        "added": words("new"),
        "removed": words("removed"),
        "changed": words("changed: {parts}", parts=", ".join(terms.term(words, PARTS, part) for part in change.parts)),
    }[change.what]
    was, will = (
        rule(words, known[change.rule], conditions(ruleset)[change.rule]) if change.rule in known else None
        for known, ruleset in zip(rules, (old, new), strict=True)
    )
    name = words("If no rule fires") if change.rule == DEFAULT else change.rule
    return {"rule": name, "told": told, "weakens": change.weakens, "was": was, "will": will}
