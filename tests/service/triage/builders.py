"""Short ways to say what is known about a tip."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from service.triage import FACTS, Decision, Fact, Ruleset, Source, Triage, Words
from service.triage.decide import decide
from service.triage.review import examples_file, load_examples
from service.triage.strict_yaml import load
from service.triage.suggest import suggest

AS_OF = datetime(2027, 1, 4, 5, 0, tzinfo=UTC)  # a Monday, noon in Phnom Penh
RULESET_FILE = Path(__file__).resolve().parents[3] / "service" / "triage" / "rules" / "kh-hotline-triage.yaml"
RULES: dict[str, Any] = load(RULESET_FILE)
VIGNETTES: dict[str, Any] = load_examples(examples_file(RULESET_FILE))
WORDS = Words("reason", "ហេតុផល")


def a_fact(name: str, value: str | int, source: Source = Source.STATED, at: datetime | None = None) -> Fact:
    if isinstance(value, str) and FACTS[name].bounds is not None:
        value = int(value)
    return Fact(name, value, source, at)


def facts(source: Source = Source.STATED, /, **values: str | int) -> dict[str, Fact]:
    return {name: a_fact(name, value, source) for name, value in values.items()}


def decided(ruleset: Ruleset, known: Mapping[str, Fact]) -> Decision:
    return decide(known, ruleset, AS_OF)


def suggested(triage: Triage, text: str, received_at: datetime | None = None) -> dict[str, set[str | int]]:
    """What a text suggests: values by fact."""
    found: dict[str, set[str | int]] = {}
    for fact in suggest(text, triage.lexicon, received_at).facts:
        found.setdefault(fact.name, set()).add(fact.value)
    return found
