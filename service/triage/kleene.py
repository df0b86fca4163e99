"""Conditions over facts in three values (Kleene), compiled once (triage.md section 4).

Kleene's logic is a distributive lattice with De Morgan's laws, so every condition equals a conjunction of clauses,
each an alternative of comparisons of one fact. A clause gets one bit. For each fact and value the bits of the clauses
it makes true, and of those it leaves possible, are laid out beforehand; a run ors them together, and a rule is true
when all its bits are set in the first sum, unknown when all are set in the second. Every rule is evaluated, none
twice. (Closures, one for each node, took four times as long.)
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, reduce
from operator import or_
from typing import NamedTuple, TypeAlias

from service.triage.facts import FACTS, UNKNOWN, Fact, FactType, Source, Value, check
from service.triage.strict_yaml import Plain

FALSE, UNDECIDED, TRUE = 0, 1, 2
MOST_CLAUSES = 64

_COMPARISONS = ("is", "in", "gte", "lte", "known")


class BadCondition(ValueError):
    """A condition that cannot be compiled; says why."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One fact compared with constants; `cuts` are where the truth of a number can change."""

    fact: str
    test: Callable[[Value], int]
    absent: int
    sure: bool
    cuts: tuple[int, ...]
    text: str

    def truth(self, value: Value, *, suggested: bool) -> int:
        """The truth for a known value."""
        return UNDECIDED if self.sure and suggested else self.test(value)


Clause: TypeAlias = frozenset[str]
Pair: TypeAlias = tuple[int, int]


class Truth(NamedTuple):
    """The bits of the clauses that are true, and of those that are true or unknown."""

    true: int
    possible: int


class _Row(NamedTuple):
    """What one fact contributes: absent, by value, by value when only suggested; own: the clauses about it alone."""

    name: str
    absent: Pair
    plain: Mapping[Value, Pair]
    soft: Mapping[Value, Pair]
    cuts: tuple[int, ...]
    own: int


class Compiler:
    """Turns conditions into bit masks. `mask` takes them one by one; `finish` makes the program."""

    def __init__(self, terms: Mapping[str, Plain]) -> None:
        self._terms = terms
        self._open: list[str] = []
        self._comparisons: dict[str, Comparison] = {}
        self._bits: dict[Clause, int] = {}

    def mask(self, condition: Plain) -> int:
        """Return the bits that must be set for `condition` to hold. Raises BadCondition."""
        bits = [1 << self._bits.setdefault(clause, len(self._bits)) for clause in self._clauses(condition)]
        return reduce(or_, bits, 0)

    def finish(self) -> "Program":
        """Lay out what every fact contributes."""
        facts_of: dict[str, list[tuple[int, Comparison]]] = {}
        clause_facts: list[tuple[str, ...]] = []
        for clause, bit in self._bits.items():
            comparisons = [self._comparisons[text] for text in sorted(clause)]
            clause_facts.append(tuple(dict.fromkeys(comparison.fact for comparison in comparisons)))
            for comparison in comparisons:
                facts_of.setdefault(comparison.fact, []).append((bit, comparison))
        alone = {bit for bit, names in enumerate(clause_facts) if len(names) == 1}
        rows = {name: _row(FACTS[name], facts_of[name], alone) for name in sorted(facts_of)}
        return Program(rows, tuple(clause_facts))

    def _clauses(self, condition: Plain, *, negated: bool = False) -> list[Clause]:
        if not isinstance(condition, dict):
            raise BadCondition("a condition is a map")
        match condition:
            case {"fact": str(name), **rest}:
                return [frozenset([self._comparison(name, rest, negated=negated)])]
            case {"term": str(name), **rest} if not rest:
                return self._term(name, negated=negated)
            case {"not": inner, **rest} if not rest:
                return self._clauses(inner, negated=not negated)
            case {"all": [_, *_] as inner, **rest} if not rest:
                parts = [self._clauses(part, negated=negated) for part in inner]
                return _crossed(parts) if negated else _joined(parts)
            case {"any": [_, *_] as inner, **rest} if not rest:
                parts = [self._clauses(part, negated=negated) for part in inner]
                return _joined(parts) if negated else _crossed(parts)
        raise BadCondition(f"not a condition: {', '.join(sorted(condition))}")

    def _term(self, name: str, *, negated: bool) -> list[Clause]:
        if name not in self._terms:
            raise BadCondition(f"no such term: {name}")
        if name in self._open:
            raise BadCondition(f"circular term: {' > '.join([*self._open, name])}")
        self._open.append(name)
        clauses = self._clauses(self._terms[name], negated=negated)
        self._open.pop()
        return clauses

    def _comparison(self, name: str, rest: Mapping[str, Plain], *, negated: bool) -> str:
        if name not in FACTS:
            raise BadCondition(f"no such fact: {name}")
        given = [key for key in rest if key in _COMPARISONS]
        if len(given) != 1 or not set(rest) <= {*given, "sure"} or rest.get("sure", "true") != "true":
            raise BadCondition(f"{name}: needs one of {', '.join(_COMPARISONS)}, and at most sure: true besides")
        text = f"{name} {given[0]} {rest[given[0]]} {'sure' in rest} {negated}"
        if text not in self._comparisons:
            comparison = _comparison(FACTS[name], given[0], rest[given[0]], sure="sure" in rest, text=text)
            self._comparisons[text] = _negated(comparison) if negated else comparison
        return text


@dataclass(frozen=True, eq=False)
class Program:
    """The compiled conditions of one ruleset: what each fact contributes, and the facts each clause compares.

    A clause about one fact alone drops what it had from the fact's absence when the fact is known; one about several
    does when all of them are. So a run looks only at the facts that are known, and at the clauses about several.
    """

    rows: Mapping[str, _Row]
    clause_facts: tuple[tuple[str, ...], ...]

    @cached_property
    def absent(self) -> Pair:
        """What holds when nothing is known."""
        pairs = [row.absent for row in self.rows.values()]
        return reduce(or_, (true for true, _ in pairs), 0), reduce(or_, (possible for _, possible in pairs), 0)

    @cached_property
    def shared(self) -> tuple[tuple[int, frozenset[str], frozenset[str]], ...]:
        """The clauses about several facts: bit, the facts whose absence makes it true, and makes it possible."""
        found = []
        for number, names in enumerate(self.clause_facts):
            if len(names) > 1:
                absences = [(name, self.rows[name].absent) for name in names]
                true = frozenset(name for name, pair in absences if pair[0] >> number & 1)
                possible = frozenset(name for name, pair in absences if pair[1] >> number & 1)
                found.append((1 << number, true, possible))
        return tuple(found)

    def run(self, facts: Mapping[str, Fact], as_of: datetime | None) -> Truth:
        """Return which clauses hold for `facts`.

        as_of: hours that run out are counted down to this time from when they were said.
        """
        true, possible = self.absent
        more_true = more_possible = alone = 0
        rows, suggested = self.rows, Source.SUGGESTED
        for name, fact in facts.items():
            row = rows.get(name)
            if row is None:
                continue
            _, _, plain, soft, cuts, own = row
            value = bisect_right(cuts, effective(fact, as_of)) if cuts else fact.value
            pair = (soft if fact.source is suggested else plain)[value]
            more_true |= pair[0]
            more_possible |= pair[1]
            alone |= own
        known = facts.keys()
        for bit, if_absent_true, if_absent_possible in self.shared:
            if if_absent_possible <= known:
                possible &= ~bit
            if true & bit and if_absent_true <= known:
                true &= ~bit
        return Truth(true & ~alone | more_true, possible & ~alone | more_possible)

    @cached_property
    def names(self) -> frozenset[str]:
        """The facts that some clause compares."""
        return frozenset(self.rows)

    def pairs_of(self, mask: int) -> list[tuple[int, str]]:
        """The clauses of `mask`, as single bits, each with every fact it compares."""
        return [
            (1 << number, name)
            for number, names in enumerate(self.clause_facts)
            if mask >> number & 1
            for name in names
        ]

    def cuts_of(self, name: str) -> tuple[int, ...]:
        """The numbers at which the truth of some clause about the fact `name` can change."""
        return self.rows[name].cuts if name in self.rows else ()


def effective(fact: Fact, as_of: datetime | None) -> int:
    """Return the number a fact stands for at `as_of`: hours that run out, less those gone; a passed date is 0."""
    number = int(fact.value)
    if as_of is None or fact.at is None or not FACTS[fact.name].counts_down:
        return number
    gone = int((as_of - fact.at).total_seconds() // 3600)
    return max(0, number - max(0, gone))


def _joined(parts: Iterable[list[Clause]]) -> list[Clause]:
    return _fewest(dict.fromkeys(clause for part in parts for clause in part))


def _crossed(parts: Iterable[list[Clause]]) -> list[Clause]:
    crossed: list[Clause] = [frozenset()]
    for part in parts:
        crossed = _fewest(dict.fromkeys(left | right for left in crossed for right in part))
    return crossed


def _fewest(clauses: Iterable[Clause]) -> list[Clause]:
    """Drop clauses that another one implies. Raises BadCondition if too many remain."""
    given = list(clauses)
    kept = [clause for clause in given if not any(other < clause for other in given)]
    if len(kept) > MOST_CLAUSES:
        raise BadCondition("too many alternatives")
    return kept


def _row(known: FactType, parts: list[tuple[int, Comparison]], alone: set[int]) -> _Row:
    cuts = tuple(sorted({cut for _, comparison in parts for cut in comparison.cuts}))

    def pair(value: Value | None, *, suggested: bool = False) -> Pair:
        true = possible = 0
        for bit, comparison in parts:
            truth = comparison.absent if value is None else comparison.truth(value, suggested=suggested)
            true |= (truth == TRUE) << bit
            possible |= (truth != FALSE) << bit
        return true, possible

    if known.bounds is None:
        samples: dict[Value, Value] = {value: value for value in known.values}
    else:
        samples = dict(enumerate((known.bounds[0], *cuts)))
    return _Row(
        name=known.name,
        absent=pair(None),
        plain={key: pair(value) for key, value in samples.items()},
        soft={key: pair(value, suggested=True) for key, value in samples.items()},
        cuts=cuts if known.bounds is not None else (),
        own=reduce(or_, (1 << bit for bit, _ in parts if bit in alone), 0),
    )


def _negated(comparison: Comparison) -> Comparison:
    test = comparison.test
    return Comparison(
        fact=comparison.fact,
        test=lambda value: TRUE - test(value),
        absent=TRUE - comparison.absent,
        sure=comparison.sure,
        cuts=comparison.cuts,
        text=comparison.text,
    )


def _comparison(known: FactType, operator: str, operand: Plain, *, sure: bool, text: str) -> Comparison:
    test: Callable[[Value], int]
    cuts: tuple[int, ...] = ()
    absent = UNDECIDED
    if operator == "known":
        if operand not in ("true", "false"):
            raise BadCondition(f"{known.name}: known is true or false")
        present, absent = (TRUE, FALSE) if operand == "true" else (FALSE, TRUE)
        test = lambda _: present  # noqa: E731
        cuts = (known.bounds[0],) if known.bounds is not None else ()
    elif operator in ("gte", "lte"):
        limit = _operand(known, operand)
        if not isinstance(limit, int):
            raise BadCondition(f"{known.name}: {operator} needs a number")
        least = operator == "gte"
        test = lambda value: TRUE if (int(value) >= limit if least else int(value) <= limit) else FALSE  # noqa: E731
        cuts = (limit if least else limit + 1,)
    else:
        given = operand if operator == "in" else [operand]
        if not isinstance(given, list) or not given or (operator == "is" and operand == UNKNOWN):
            raise BadCondition(f"{known.name}: in needs a list, and what is unknown is known: false")
        values = frozenset(_operand(known, value) for value in given if value != UNKNOWN)
        test = lambda value: TRUE if value in values else FALSE  # noqa: E731
        absent = TRUE if UNKNOWN in given else UNDECIDED
        cuts = tuple(cut for value in values if isinstance(value, int) for cut in (value, value + 1))
    if sure and absent != UNDECIDED:
        raise BadCondition(f"{known.name}: sure says nothing about what is not known")
    return Comparison(known.name, test, absent, sure, cuts, text)


def _operand(known: FactType, operand: Plain) -> Value:
    if known.bounds is not None and not str(operand).isdecimal():
        raise BadCondition(f"{known.name}: needs a number")
    value: Value = str(operand) if known.bounds is None else int(str(operand))
    try:
        check(known.name, value)
    except ValueError as error:
        raise BadCondition(f"{error}: {value}") from error
    return value
