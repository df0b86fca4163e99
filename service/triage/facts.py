"""What is known about a tip: facts, the schema that lists them, and how several sources merge (triage.md section 2).

The schema is data, ``facts-1.yaml``. A value that is not known is a fact that is not there.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Literal, TypeAlias

from service.errors import Misconfigured
from service.triage.strict_yaml import Plain, load

Value: TypeAlias = str | int
Kind: TypeAlias = Literal["danger", "calming", "neutral"]

UNKNOWN = "unknown"
_EARLIEST = datetime.min.replace(tzinfo=UTC)


class Source(StrEnum):
    """Who says so, from weak to strong in what it binds."""

    SUGGESTED = "suggested"
    """the lexicon found words for it"""
    DERIVED = "derived"
    """placement, history or arithmetic"""
    STATED = "stated"
    """a form, the keypad or an answer"""
    CONFIRMED = "confirmed"
    """a named member of staff"""


_STRENGTH = {source: rank for rank, source in enumerate(Source)}
# Without an urgent end who says it decides; the tip's own words name a place better than the poster it came from.
_NEUTRAL_STRENGTH = {Source.DERIVED: 0, Source.SUGGESTED: 1, Source.STATED: 2, Source.CONFIRMED: 3}


@dataclass(frozen=True, slots=True)
class Words:
    """One text in both languages. English masters; Khmer is unreviewed until a named speaker signs it off."""

    en: str
    km: str


@dataclass(frozen=True, slots=True)
class Ask:
    """A question for one fact (triage.md section 5). It fits one SMS and names no offence.

    sms: the words a machine may send; None: only staff and forms ask it. to_child: may be asked of a child.
    answers: what a digit means; empty is 1 yes, 2 no. times: multiplies a number (days to hours).
    """

    en: str
    km: str
    sms: Words | None
    to_child: bool
    answers: Mapping[str, str]
    times: int


@dataclass(frozen=True)
class FactType:
    """One row of the schema. `values` run from calm to urgent; empty for a number, which has `bounds`."""

    name: str
    group: str
    kind: Kind
    order: int
    values: tuple[str, ...]
    bounds: tuple[int, int] | None
    low_is_urgent: bool
    counts_down: bool
    ask: Ask | None

    @cached_property
    def ranks(self) -> Mapping[str, int]:
        """Each value's place from calm (0) to urgent."""
        return MappingProxyType({value: rank for rank, value in enumerate(self.values)})

    def accepts(self, value: object) -> bool:
        """Whether `value` may stand for this fact."""
        if self.bounds is None:
            return value in self.ranks if isinstance(value, str) else False
        return isinstance(value, int) and not isinstance(value, bool) and self.bounds[0] <= value <= self.bounds[1]

    def urgency(self, value: Value) -> int:
        """How urgent an accepted value is; larger is more urgent. Comparable only within one fact."""
        if isinstance(value, str):
            return self.ranks[value]
        return -value if self.low_is_urgent else value


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing known about a tip (triage.md section 2).

    value: a code ('yes' and 'no' are codes) or a whole number. at: when it was said, with a time zone.
    message: the id of the message it came from. spans: start and end, in characters of the original text, of the
    words that gave it. hedged: said with "perhaps". Raises ValueError for a name or value outside the schema.
    """

    name: str
    value: Value
    source: Source
    at: datetime | None = None
    message: str | None = None
    spans: tuple[tuple[int, int], ...] = ()
    hedged: bool = False

    def __post_init__(self) -> None:
        check(self.name, self.value)
        if self.at is not None and self.at.tzinfo is None:
            raise ValueError(f"{self.name}: a time needs its zone")


def check(name: str, value: object) -> FactType:
    """Return the schema's row for `name`.

    Raises ValueError if there is none or `value` is none of its values. The message repeats neither a value nor a
    name that is not in the schema, for they may come from outside.
    """
    known = FACTS.get(name)
    if known is None:
        raise ValueError("no such fact")
    if not known.accepts(value):
        raise ValueError(f"{name}: no such value")
    return known


def merge(facts: Iterable[Fact]) -> dict[str, Fact]:
    """Return one fact a name (triage.md section 2), in schema order.

    The newest confirmed value wins; else the most urgent known one. For a neutral fact, which has no urgent end:
    stated, then the tip's own words, then the placement; then the newest. Order of `facts` does not matter.
    """
    chosen: dict[str, Fact] = {}
    for fact in facts:
        standing = chosen.get(fact.name)
        if standing is None or _weight(fact) > _weight(standing):
            chosen[fact.name] = fact
    return {name: chosen[name] for name in sorted(chosen, key=_ORDER.__getitem__)}


def _weight(fact: Fact) -> tuple[object, ...]:
    known = FACTS[fact.name]
    urgency = known.urgency(fact.value)
    at = fact.at or _EARLIEST
    last = (not fact.hedged, fact.message or "", fact.spans)
    if fact.source is Source.CONFIRMED:
        return (1, at, urgency, 0, *last)
    if known.kind == "neutral":
        return (0, _NEUTRAL_STRENGTH[fact.source], at, urgency, *last)
    return (0, urgency, _STRENGTH[fact.source], at, *last)


def _schema(path: Path) -> tuple[str, Mapping[str, FactType]]:
    data = load(path)
    rows = data.get("facts")
    if set(data) != {"schema", "facts"} or not isinstance(rows, dict):
        raise Misconfigured(f"{path.name}: needs schema and facts, and nothing else")
    types = {name: _fact_type(name, order, row) for order, (name, row) in enumerate(rows.items())}
    return str(data["schema"]), MappingProxyType(types)


def _fact_type(name: str, order: int, row: Plain) -> FactType:
    if not isinstance(row, dict) or not set(row) <= {"group", "kind", "values", "number", "ask"}:
        raise Misconfigured(f"fact {name}: unknown key")
    kind, values, number = row.get("kind"), row.get("values", []), row.get("number")
    if kind not in ("danger", "calming", "neutral") or not isinstance(values, list) or bool(values) == bool(number):
        raise Misconfigured(f"fact {name}: needs a kind, and either values or a number")
    scale = number if isinstance(number, dict) else {}
    if not set(scale) <= {"from", "to", "urgent", "counts_down"} or UNKNOWN in values:
        raise Misconfigured(f"fact {name}: unknown key or value")
    return FactType(
        name=name,
        group=str(row.get("group")),
        kind=kind,  # type: ignore[arg-type]  # one of three, checked above
        order=order,
        values=tuple(str(value) for value in values),
        bounds=(int(str(scale["from"])), int(str(scale["to"]))) if scale else None,
        low_is_urgent=scale.get("urgent") == "low",
        counts_down=scale.get("counts_down") == "yes",
        ask=_ask(name, row["ask"]) if "ask" in row else None,
    )


def _ask(name: str, row: Plain) -> Ask:
    if not isinstance(row, dict) or not {"en", "km"} <= set(row) <= {"en", "km", "sms", "to_child", "answers", "times"}:
        raise Misconfigured(f"fact {name}: ask needs en and km")
    sms, answers = row.get("sms"), row.get("answers", {})
    if not isinstance(answers, dict) or not (sms is None or isinstance(sms, dict)):
        raise Misconfigured(f"fact {name}: answers and sms are maps")
    return Ask(
        en=str(row["en"]),
        km=str(row["km"]),
        sms=Words(str(sms["en"]), str(sms["km"])) if sms is not None else None,
        to_child=row.get("to_child") == "yes",
        answers=MappingProxyType({digit: str(value) for digit, value in answers.items()}),
        times=int(str(row.get("times", "1"))),
    )


SCHEMA, FACTS = _schema(Path(__file__).with_name("facts-1.yaml"))
_ORDER = {name: known.order for name, known in FACTS.items()}
ASKS: Mapping[str, Ask] = MappingProxyType({name: known.ask for name, known in FACTS.items() if known.ask is not None})
NOW: tuple[str, ...] = tuple(name for name, known in FACTS.items() if known.group == "now")
HARMS: tuple[str, ...] = tuple(name for name, known in FACTS.items() if known.group == "harm")
