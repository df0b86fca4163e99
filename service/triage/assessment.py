"""A tip's words and answers to its facts and its decision, without ever failing (triage.md sections 3, 4 and 6)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType

from service.triage import decide as engine
from service.triage.decide import Decision, engine_fault
from service.triage.facts import FACTS, Fact, Source, merge
from service.triage.language import UNDETERMINED
from service.triage.lexicon import Lexicon, load_lexicon
from service.triage.places import PROVINCES
from service.triage.rules import Ruleset, load_ruleset
from service.triage.suggest import suggest

_CODES: Mapping[str, str] = MappingProxyType({words.en: code for code, words in PROVINCES.items()})
_NOT_CHILDREN = frozenset({"witness", "worker", "driver", "tourist", "relative", "official"})


@dataclass(frozen=True, slots=True)
class Triage:
    """A ruleset and a lexicon, loaded once and shared."""

    ruleset: Ruleset
    lexicon: Lexicon

    @classmethod
    def load(cls, ruleset_path: Path, lexicon_dir: Path) -> "Triage":
        """Load both. Raises Misconfigured (BadRuleset, BadLexicon); the caller keeps the versions it had."""
        return cls(load_ruleset(ruleset_path), load_lexicon(lexicon_dir))


@dataclass(frozen=True, slots=True)
class Assessment:
    """What is known and decided about a tip.

    facts: merged, by name. language: as detected, 'und' if none. province: a code of PROVINCES. venue_type: a value
    of the fact of that name. youngest_age: in years.
    """

    facts: dict[str, Fact]
    decision: Decision
    language: str
    province: str | None
    venue_type: str | None
    youngest_age: int | None


def assess(
    triage: Triage | None,
    text: str,
    stated_facts: Iterable[Fact] = (),
    received_at: datetime | None = None,
    context: Mapping[str, str] | None = None,
    message: str | None = None,
) -> Assessment:
    """Return facts and decision for one tip. Never raises: whatever goes wrong is P1, "engine fault".

    triage: None if no rules could be loaded. stated_facts: from forms, keypad, answers, placement and history.
    received_at: with a time zone; None is the present, and then weekdays in the text have no distance.
    context: what the channel knows without reading: `placement_code_province` (a code or English name), `venue_type`,
    `form`, `reporter`; anything else in it is passed over. message: the id of the message, for the suggested facts.
    """
    stated: list[Fact] = []
    as_of = datetime.now(UTC)
    try:
        stated = list(stated_facts)
        if received_at is not None:
            as_of = received_at.astimezone(UTC) if received_at.tzinfo is not None else as_of
        if triage is None:
            return _fault(as_of, stated)
        known = context or {}
        suggestion = suggest(text, triage.lexicon, received_at, known, message)
        facts = merge((*stated, *facts_of_context(known, received_at), *suggestion.facts))
        decision = engine.decide(facts, triage.ruleset, as_of, triage.lexicon.content_hash)
        return Assessment(facts, decision, suggestion.language, *_told(facts))
    except Exception:  # noqa: BLE001  # a tip must be judged whatever happens; P1 pages a person
        return _fault(as_of, stated)


def recall(triage: Triage | None, found: Assessment, facts: Iterable[Fact], as_of: datetime) -> Assessment:
    """Return what `found` says with further facts, such as the history's, without reading the words again.

    as_of: with a time zone. Never raises; an engine fault stays one, for what it rests on may be missing.
    """
    known: dict[str, Fact] = dict(found.facts)
    try:
        known = merge((*found.facts.values(), *facts))
        if triage is None or known == found.facts or any(reason.id == "engine" for reason in found.decision.fired):
            return found
        decision = engine.decide(known, triage.ruleset, as_of.astimezone(UTC), triage.lexicon.content_hash)
        return replace(found, facts=known, decision=decision)
    except Exception:  # noqa: BLE001  # as in `assess`
        return replace(found, decision=engine_fault(as_of, found.facts))


def decide_safely(
    text: str,
    stated: Iterable[Fact],
    triage: Triage | None,
    *,
    received_at: datetime | None = None,
    context: Mapping[str, str] | None = None,
) -> Decision:
    """Return the decision of `assess`. Never raises."""
    return assess(triage, text, stated, received_at, context).decision


def facts_of_context(context: Mapping[str, str], at: datetime | None = None) -> tuple[Fact, ...]:
    """Return the facts that a channel knows without reading: the placement's are derived, the form's are stated.

    Values outside the schema are passed over, for a poster may be newer than the rules.
    """
    facts: list[Fact] = []

    def add(name: str, value: object, source: Source) -> None:
        if isinstance(value, str) and FACTS[name].accepts(value):
            facts.append(Fact(name, value, source, at))

    province = context.get("placement_code_province")
    add("province", _CODES.get(province, province) if isinstance(province, str) else None, Source.DERIVED)
    add("venue_type", context.get("venue_type"), Source.DERIVED)
    if facts:
        add("place_known", "yes", Source.DERIVED)
    reporter = context.get("reporter")
    if reporter == "self_child":
        add("reporter_is_child", "yes", Source.STATED)
        add("child_involved", "yes", Source.STATED)
    elif reporter in _NOT_CHILDREN:
        add("reporter_is_child", "no", Source.STATED)
    if context.get("form") == "child_residential":
        add("child_involved", "yes", Source.DERIVED)
    return tuple(facts)


def _told(facts: Mapping[str, Fact]) -> tuple[str | None, str | None, int | None]:
    province, venue, age = (facts.get(name) for name in ("province", "venue_type", "age_min"))
    return (
        str(province.value) if province is not None else None,
        str(venue.value) if venue is not None else None,
        int(age.value) if age is not None else None,
    )


def _fault(as_of: datetime, stated: Iterable[Fact]) -> Assessment:
    facts: dict[str, Fact] = {}
    try:
        facts = merge(stated)
        return Assessment(facts, engine_fault(as_of, facts), UNDETERMINED, *_told(facts))
    except Exception:  # noqa: BLE001  # the stated facts themselves may be what failed
        return Assessment({}, engine_fault(as_of), UNDETERMINED, None, None, None)
