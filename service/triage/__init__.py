"""Triage: words to facts, facts to a level that explains itself (DESIGN 4, triage.md). Pure, but for loading files.

The functions `decide` and `suggest` are in the modules of those names.
"""

from service.triage.assessment import Assessment, Triage, assess, decide_safely, facts_of_context, recall
from service.triage.decide import Decision, engine_fault, facts_of, replay
from service.triage.facts import ASKS, FACTS, HARMS, NOW, SCHEMA, Ask, Fact, FactType, Source, Words, check, merge
from service.triage.language import detect_language
from service.triage.lexicon import BadLexicon, Lexicon, load_lexicon
from service.triage.places import PROVINCES
from service.triage.rules import (
    FLAGS,
    LEVELS,
    NO_RULES,
    ROUTES,
    BadRuleset,
    Level,
    Reason,
    Rule,
    Ruleset,
    build_ruleset,
    load_ruleset,
    restore_ruleset,
)
from service.triage.suggest import Suggestion
from service.triage.text import Normalised, normalise

__all__ = [
    "ASKS",
    "FACTS",
    "FLAGS",
    "HARMS",
    "LEVELS",
    "NOW",
    "NO_RULES",
    "PROVINCES",
    "ROUTES",
    "SCHEMA",
    "Ask",
    "Assessment",
    "BadLexicon",
    "BadRuleset",
    "Decision",
    "Fact",
    "FactType",
    "Level",
    "Lexicon",
    "Normalised",
    "Reason",
    "Rule",
    "Ruleset",
    "Source",
    "Suggestion",
    "Triage",
    "Words",
    "assess",
    "build_ruleset",
    "check",
    "decide_safely",
    "detect_language",
    "engine_fault",
    "facts_of",
    "facts_of_context",
    "load_lexicon",
    "load_ruleset",
    "merge",
    "normalise",
    "recall",
    "replay",
    "restore_ruleset",
]
