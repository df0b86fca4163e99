"""One text read with a lexicon: which concepts stand in which clause, denied or not, and when (triage.md section 3)."""

import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from functools import cached_property
from operator import itemgetter
from typing import NamedTuple

from service.triage.lexicon import Concept, Found, Lexicon, When
from service.triage.numbers import ADULT, Amount, Number, amounts, digits

PHNOM_PENH = timezone(timedelta(hours=7))
TODAY_HOURS = 12
NEAR = 40
PHRASE = 24
CLUSTERS_DENIED = 12
WORDS_DENIED = 4
ADJACENT = 6
FEW, MANY = 4, 16

_CLAUSE_END = re.compile(r"(?:[។៕!?;\n。…]|\.(?!\w))[\s។៕!?;.。…]*")
_KHMER_BASE = re.compile("(?<!\u17d2)[\u1780-\u17b3]")
_KHMER_LETTER = re.compile("[\u1780-\u17d3]")


class Hit(NamedTuple):
    """A concept's words: where, in which clause, and whether they are denied, doubted or under an "if"."""

    start: int
    end: int
    clause: int
    denied: bool
    hedged: bool
    under_if: bool


@dataclass
class Reading:
    """What stands in a normalised text.

    hits: by concept, groups apart. stands: for each concept the clauses, as bits, where it is affirmed; for
    `denied(concept)` those where it is denied. whens: the words of time of each clause, with their positions.
    """

    text: str
    lexicon: Lexicon
    clause_ends: list[int]
    hits: dict[int, list[Hit]]
    stands: dict[int, int]
    whens: dict[int, list[tuple[int, When]]]
    amounts: list[Amount]

    def scope(self, clause: int, within: str) -> int:
        """The clauses, as bits, that count as near `clause`."""
        bit = 1 << clause
        if within in ("phrase", "clause"):
            return bit
        if within == "before":
            return bit | bit >> 1
        if within == "around":
            return bit | bit >> 1 | bit << 1
        return (1 << len(self.clause_ends) + 1) - 1

    def when(self, hit: Hit, within: str = "before") -> Sequence[When]:
        """The words of time for a hit: its clause's, else those of the clause before, else as far as `within` goes.

        Khmer writes long stretches without an end: of several words of time near a Khmer hit the nearest counts.
        """
        own = self.whens.get(hit.clause)
        if within == "phrase":
            return [when for position, when in own or () if _distance(hit, position) <= PHRASE]
        if own is not None and len(own) > 1 and _KHMER_LETTER.match(self.text[hit.start]):
            distance, nearest = min((_distance(hit, position), number) for number, (position, _) in enumerate(own))
            own = [own[nearest]] if distance <= NEAR else own
        if own is None and within != "clause":
            own = self.whens.get(hit.clause - 1)
        if own is None and within in ("around", "text"):
            own = self.whens.get(hit.clause + 1)
        if own is None and within == "text":
            own = [when for found in self.whens.values() for when in found]
        return [when for _, when in own or ()]

    def add_when(self, clause: int, position: int, when: When) -> None:
        """Enter a word of time; a clause that is stuffed with them keeps the first."""
        found = self.whens.setdefault(clause, [])
        if len(found) < MANY:
            found.append((position, when))

    def has(self, name: str) -> bool:
        """Whether the concept called `name` is affirmed anywhere."""
        return bool(self.stands.get(self.lexicon.number[name]))

    def hits_of(self, number: int) -> Sequence[Hit]:
        """The hits of a concept, and of those it includes, affirmed or not."""
        members = self.lexicon.members[number]
        if len(members) == 1:
            return self.hits.get(number, ())
        return [hit for member in members for hit in self.hits.get(member, ())]

    def of(self, name: str) -> Sequence[Hit]:
        """`hits_of` the concept called `name`."""
        return self.hits_of(self.lexicon.number[name])

    @cached_property
    def present(self) -> Set[int]:
        """The concepts that stand or are denied somewhere."""
        return {number if number >= 0 else -number - 1 for number in self.stands}


def denied(concept: int) -> int:
    """The key under which the denials of a concept stand."""
    return -concept - 1


def _distance(hit: Hit, position: int) -> int:
    return max(hit.start - position, position - hit.end, 0)


def read(text: str, lexicon: Lexicon, received_at: datetime | None = None, children: str = "child") -> Reading:
    """Read a normalised text. Linear time: of each kind of neighbour only the nearest few are looked at.

    received_at: turns weekdays and years into hours ahead and ages of events; None leaves them open.
    children: the concept that stands for words for children.
    """
    concepts = lexicon.concepts
    found = lexicon.find(text)
    shields = _shields(found)
    marks: list[Found] = []
    content: list[Found] = []
    numbers = digits(text)
    for item in found:
        start, end, number, shield = item
        if shield or (number in shields and _begins_in(shields[number], start)):
            continue
        concept = concepts[number]
        if concept.number is not None:
            numbers.append(Number(start, end, concept.number))
        elif concept.grammar in ("", "turn"):
            content.append(item)
        else:
            marks.append(item)
    reading = Reading(text, lexicon, _clause_ends(text, content, concepts), {}, {}, {}, [])
    swallowed: list[tuple[int, int]] = []
    if marks:
        marks, swallowed = _swallow(sorted(marks), sorted(content), concepts)
    starts = [mark[0] for mark in marks]
    for item in content:
        _place(reading, item, marks, starts, swallowed, received_at)
    words = sorted((hit.start, hit.end) for hit in reading.of(children))
    reading.amounts = amounts(text, _longest(numbers), words)
    _durations(reading, received_at)
    _young(reading, lexicon.number[children])
    return reading


def _clause_ends(text: str, content: Iterable[Found], concepts: Sequence[Concept]) -> list[int]:
    ends = [match.end() for match in _CLAUSE_END.finditer(text)]
    turns = [item[0] for item in content if concepts[item[2]].grammar == "turn"]
    return sorted({*ends, *turns} - {0}) if turns else ends


def _shields(found: Iterable[Found]) -> dict[int, list[tuple[int, int]]]:
    shields: dict[int, list[tuple[int, int]]] = {}
    for start, end, concept, shield in found:
        if shield:
            shields.setdefault(concept, []).append((start, end))
    for spans in shields.values():
        spans.sort()
    return shields


def _begins_in(spans: Sequence[tuple[int, int]], start: int) -> bool:
    """Whether a word that starts at `start` begins inside one of the nearest spans."""
    at = bisect_right(spans, start, key=itemgetter(0))
    return any(start < last for _, last in spans[max(0, at - FEW) : at])


def _swallow(
    marks: Sequence[Found], content: Sequence[Found], concepts: Sequence[Concept]
) -> tuple[list[Found], list[tuple[int, int]]]:
    """Drop a "not" that belongs to a longer pattern, such as "cannot leave" or "no children".

    Returns what is left, and where, within such patterns, they still deny: from the "not" to the pattern's end.
    """
    starts = [item[0] for item in content]
    kept, swallowed = [], []
    for mark in marks:
        start, end, number, _ = mark
        at = bisect_right(starts, start)
        ends = [
            last for first, last, _, _ in content[max(0, at - MANY) : at] if end <= last and last - first > end - start
        ]
        if not ends:
            kept.append(mark)
        elif concepts[number].grammar == "negation":
            swallowed.append((end, max(ends)))
    return kept, sorted(swallowed)


def _place(
    reading: Reading,
    item: Found,
    marks: Sequence[Found],
    starts: Sequence[int],
    swallowed: Sequence[tuple[int, int]],
    received_at: datetime | None,
) -> None:
    """Enter a concept's words into the reading: denied, doubted or under an "if" by the marks of its clause."""
    start, end, number, _ = item
    concepts, clause_ends = reading.lexicon.concepts, reading.clause_ends
    concept = concepts[number]
    clause = bisect_right(clause_ends, start)
    hedged = under_if = False
    refused = bool(swallowed) and _begins_in(swallowed, start)
    if marks:
        first = clause_ends[clause - 1] if clause else 0
        last = clause_ends[clause] if clause < len(clause_ends) else len(reading.text)
        at = bisect_right(starts, start)
        for mark in marks[max(0, at - MANY) : at + FEW]:
            if not first <= mark[0] < last:
                continue
            sign = concepts[mark[2]]
            if sign.grammar == "hedge":
                hedged = True
            elif sign.grammar == "condition":
                under_if = under_if or mark[1] <= start
            elif not refused:
                refused = _denies(reading.text, mark, sign.reach, item, adjacent=concept.denied_by == "adjacent")
    if concept.when is not None:
        if not refused:
            reading.add_when(clause, start, _dated(concept.when, received_at))
        return
    reading.hits.setdefault(number, []).append(Hit(start, end, clause, refused, hedged, under_if))
    if under_if and not concept.under_if and not refused:
        return
    bit, stands = 1 << clause, reading.stands
    for each in (number, *concept.groups):
        key = denied(each) if refused else each
        stands[key] = stands.get(key, 0) | bit


def _denies(text: str, word: Found, reach: str, item: Found, *, adjacent: bool) -> bool:
    """Whether a "not" denies a word; if `adjacent`, only from right before it."""
    first, last, start, end = word[0], word[1], item[0], item[1]
    if first < end and start < last:
        return False
    if reach == "behind":
        return 0 <= first - end <= CLUSTERS_DENIED
    if reach == "clause":
        return True
    if last > start or (reach == "near" and start - last > 4 * CLUSTERS_DENIED):
        return False
    between = text[last:start]
    if "," in between or (adjacent and len(between) > ADJACENT):
        return False
    if reach == "after":
        return True
    if _KHMER_LETTER.match(text[last - 1]):
        between = between.lstrip()
        return " " not in between and len(_KHMER_BASE.findall(between)) <= CLUSTERS_DENIED
    return between.count(" ") <= WORDS_DENIED


def _longest(numbers: Sequence[Number]) -> list[Number]:
    """Keep of overlapping numbers the longest: ប្រាំបី is 8, not 5 and 3."""
    kept: list[Number] = []
    for number in sorted(numbers, key=lambda number: (number.start, -number.end)):
        if not kept or number.start >= kept[-1].end:
            kept.append(number)
    return kept


def _dated(when: When, received_at: datetime | None) -> When:
    if when.weekday is None or received_at is None:
        return when
    days = (when.weekday - received_at.astimezone(PHNOM_PENH).weekday()) % 7
    return replace(when, hours=24 * days)


def _durations(reading: Reading, received_at: datetime | None) -> None:
    """Take the hours and years that were counted in numbers for words of time."""
    for amount in reading.amounts:
        when: When | None = None
        if amount.kind == "ago":
            when = _past(amount.value)
        elif amount.kind == "ahead":
            when = When("today" if amount.value <= TODAY_HOURS else "future", hours=amount.value)
        elif amount.kind == "year":
            years = 2 if received_at is None else received_at.astimezone(PHNOM_PENH).year - amount.value
            when = When("past", recency="historic" if years >= 2 else "past") if years >= 0 else None
        if when is not None:
            reading.add_when(bisect_right(reading.clause_ends, amount.start), amount.start, when)


def _young(reading: Reading, child: int) -> None:
    """An age under eighteen speaks of a child as a word for one does."""
    for amount in reading.amounts:
        if amount.kind == "under" or (amount.kind == "age" and amount.value < ADULT):
            bit = 1 << bisect_right(reading.clause_ends, amount.start)
            reading.stands[child] = reading.stands.get(child, 0) | bit


def _past(hours: int) -> When:
    if hours <= TODAY_HOURS:
        return When("now" if hours <= 1 else "past", recency="now")
    return When("past", recency="recent" if hours <= 31 * 24 else "past" if hours <= 366 * 24 else "historic")
