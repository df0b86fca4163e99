"""What a ruleset and a lexicon must show before anybody relies on them (triage.md sections 13 and 14)."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from service.triage.assessment import Triage
from service.triage.decide import decide
from service.triage.facts import ASKS, FACTS, Fact, Source
from service.triage.lexicon import Lexicon
from service.triage.rules import BadRuleset, Rule, Ruleset
from service.triage.strict_yaml import Plain, load
from service.triage.suggest import suggest

TRUTHS = ("hit", "miss", "unknown")
_AS_OF = datetime(2027, 1, 4, 5, 0, tzinfo=UTC)
_KHMER = re.compile("[\u1780-\u17ff]")


@dataclass(frozen=True, slots=True)
class Unreviewed:
    """How many Khmer strings no named speaker has signed off, and how many there are."""

    what: str
    waiting: int
    total: int


def examples_file(ruleset_file: Path) -> Path:
    """Where the examples of a ruleset lie: beside it, under its name."""
    return ruleset_file.with_suffix(".examples.yaml")


def load_examples(path: Path) -> dict[str, Plain]:
    """Load the facts that make each rule fire, miss and stay open. Raises BadRuleset."""
    return load(path, BadRuleset)


def rule_faults(ruleset: Ruleset, examples: Mapping[str, Plain]) -> list[str]:
    """What the examples find wrong with a ruleset: a rule that none shows to fire, or that does not as they say.

    examples: for each rule `hit`, `miss` and, but for bumps, caps and effects, `level`; each a map of facts, a "?"
    after a value meaning that it is only suggested. `unknown` may be left out where a rule cannot stay open.
    """
    rules = {rule.id: rule for rule in ruleset.rules}
    found = [f"{name}: an example of no rule" for name in examples if name not in rules]
    for rule in ruleset.rules:
        found += [f"{rule.id}: {fault}" for fault in _faults(ruleset, rule, examples.get(rule.id, ""))]
    return found


def _faults(ruleset: Ruleset, rule: Rule, example: Plain) -> Iterable[str]:
    if not isinstance(example, dict) or not {"hit", "miss"} <= set(example):
        yield "no example that hits and one that misses"
        return
    for expected in TRUTHS:
        if expected in example and (truth := _truth(ruleset, rule, example[expected])) != expected:
            yield f"the example of {expected} is {truth}"
    decision = decide(written(example["hit"]), ruleset, _AS_OF)
    if (rule.effect or rule.id) not in {*(reason.id for reason in decision.fired), *decision.flags, *decision.routes}:
        yield "it fires and is not in the decision"
    if rule.level != example.get("level") or (rule.kind == "floor" and decision.level_floor != rule.level):
        yield f"its example reaches {decision.level_floor}"
    if not _KHMER.search(rule.reason.km) or _KHMER.search(rule.reason.en):
        yield "a reason in the wrong language"
    if any("{" in reason.en + reason.km for reason in decision.fired):
        yield "a reason with an empty place"


def _truth(ruleset: Ruleset, rule: Rule, row: Plain) -> str:
    true, possible = ruleset.program.run(written(row), _AS_OF)
    if true & rule.mask == rule.mask:
        return "hit"
    return "unknown" if possible & rule.mask == rule.mask else "miss"


def written(row: Plain) -> dict[str, Fact]:
    """The facts of an example: ``yes?`` is yes, but only suggested. Raises BadRuleset for what is no fact."""
    facts: dict[str, Fact] = {}
    for name, text in row.items() if isinstance(row, dict) else ():
        value = str(text).rstrip("?")
        source = Source.SUGGESTED if str(text).endswith("?") else Source.STATED
        number = name in FACTS and FACTS[name].bounds is not None and value.isdecimal()
        try:
            facts[name] = Fact(name, int(value) if number else value, source)
        except ValueError as error:
            raise BadRuleset(f"an example: {error}") from error
    return facts


def lexicon_faults(triage: Triage) -> list[str]:
    """What the lexicon's own examples find wrong with it: each concept that sets a fact, by its hits and misses."""
    found = []
    for concept in triage.lexicon.concepts:
        for texts, expected in ((concept.hits, True), (concept.misses, False)):
            for text in texts if concept.sets else ():
                said = {(fact.name, fact.value) for fact in suggest(text, triage.lexicon).facts}
                if any((name, value) in said for name, value in concept.sets) is not expected:
                    found.append(f"concept {concept.id}: an example of {'hit' if expected else 'miss'} does not hold")
    return found


def unreviewed(triage: Triage) -> list[Unreviewed]:
    """Count the Khmer strings that wait for a named speaker: reasons, questions and concepts with Khmer words."""
    return [*unreviewed_reasons(triage.ruleset), *unreviewed_words(triage.lexicon)]


def unreviewed_reasons(ruleset: Ruleset) -> list[Unreviewed]:
    """Count those that people are shown: the reasons of a ruleset, and the questions of the schema."""
    rules = ruleset.rules
    questions = [ask.km for ask in ASKS.values()] + [ask.sms.km for ask in ASKS.values() if ask.sms is not None]
    return [
        Unreviewed("reasons of rules", 1 + sum(not rule.reviewed for rule in rules), 1 + len(rules)),
        Unreviewed("questions", len(questions), len(questions)),
    ]


def unreviewed_words(lexicon: Lexicon) -> list[Unreviewed]:
    """Count those that messages are read by: the concepts of a lexicon, and their words."""
    concepts = [concept for concept in lexicon.concepts if concept.khmer]
    return [
        Unreviewed("concepts with Khmer words", sum(one.waits for one in concepts), len(concepts)),
        Unreviewed("Khmer words", sum(one.khmer for one in concepts if one.waits), sum(one.khmer for one in concepts)),
    ]
