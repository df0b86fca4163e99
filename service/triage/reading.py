"""One text read with a lexicon: which concepts stand in which clause, denied or not, and when (triage.md section 3)."""

import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from functools import reduce
from itertools import pairwise
from operator import itemgetter, or_
from typing import NamedTuple, TypeAlias

from service.triage.lexicon import Concept, Lexicon, Masks, When
from service.triage.matcher import LATIN, NO_EDGES, Found
from service.triage.numbers import ADULT, Amount, Number, amounts, digits
from service.triage.text import KHMER_BASE

PHNOM_PENH = timezone(timedelta(hours=7))
TODAY_HOURS = 12
NEAR = 40
PHRASE, SHORT_PHRASE = 24, 8
# How far the verb stands from who does it, in Latin letters and in writing without blanks.
DEED, SHORT_DEED = 48, 32
CLUSTERS_DENIED = 12
WORDS_DENIED = 4
ADJACENT = 6
FEW, MANY = 4, 16
TODAY_IS = 12

_CLAUSE_END = re.compile(r"(?:[។៕!?;\n。…]|\.(?!\w))[\s។៕!?;.。…]*")
_KHMER_LETTER = re.compile("[\u1780-\u17d3]")
# What may stand between "told" and the one who is told.
_DETERMINERS = re.compile(
    r"\s*(?:(?:the|a|an|my|our|his|her|their|your|this|that|one|two|three|four|five|some|several|many|any|local|chief|le|la|les|l'|un|une|mon|ma|des|du|de|"
    r"dem|den|der|die|das|einem|einen|einer|lok|ta|srok|លោក|លោកស្រី|បង|តា|ពួក|ខាង|នៅ|អ្នក)\s*)*$"
)
_LEADS = 16


class Hit(NamedTuple):
    """A concept's words: where, in which clause, and whether they are denied, doubted or under an "if"."""

    start: int
    end: int
    clause: int
    denied: bool
    hedged: bool
    under_if: bool


# A "not", "perhaps" or "if": where it stands, and which concept it is.
_Mark: TypeAlias = tuple[int, int, Concept]


class Reading:
    """What stands in a normalised text.

    affirmed, refused: for each clause the concepts that stand there and those that are denied there, as bits; those
    of all clauses are in `all_affirmed` and `all_refused`. hits: the positions of the concepts that are tracked.
    whens: the words of time of each clause, with their positions.
    """

    def __init__(self, text: str, lexicon: Lexicon, clause_ends: list[int], given: int = 0) -> None:
        self.text = text
        self.lexicon = lexicon
        self.clause_ends = clause_ends
        self.affirmed = [given] * (len(clause_ends) + 1)
        self.refused = [0] * (len(clause_ends) + 1)
        self.all_affirmed = self.all_refused = 0
        self.hits: dict[int, list[Hit]] = {}
        self._sorted: dict[int, list[Hit]] = {}
        self.whens: dict[int, list[tuple[int, When]]] = {}
        self.amounts: list[Amount] = []

    def near(self, clause: int, within: str) -> Masks:
        """What is affirmed and what is denied in the clauses that count as near `clause`."""
        affirmed, refused = self.affirmed, self.refused
        if within == "text":
            return self.all_affirmed, self.all_refused
        yes, no = affirmed[clause], refused[clause]
        if within in ("before", "around") and clause:
            yes |= affirmed[clause - 1]
            no |= refused[clause - 1]
        if within == "around" and clause + 1 < len(affirmed):
            yes |= affirmed[clause + 1]
            no |= refused[clause + 1]
        return yes, no

    def when(self, hit: Hit, within: str = "before") -> Sequence[When]:
        """The words of time for a hit: its clause's, else those of the clause before, else as far as `within` goes.

        Khmer writes long stretches without an end: of several words of time near a Khmer hit the nearest counts, and
        a mere "will" or "since" only if there is no other.
        """
        own = self.whens.get(hit.clause)
        if within == "phrase":
            far = SHORT_PHRASE if NO_EDGES.match(self.text[hit.start]) else PHRASE
            return [when for position, when in own or () if _distance(hit, position) <= far]
        if own is not None and len(own) > 1 and _KHMER_LETTER.match(self.text[hit.start]):
            clear = [item for item in own if item[1].says_when] or own
            distance, nearest = min((_distance(hit, position), number) for number, (position, _) in enumerate(clear))
            own = [clear[nearest]] if distance <= NEAR else clear
        if own is None and within != "clause":
            own = self.whens.get(hit.clause - 1)
        if own is None and within in ("around", "text"):
            own = self.whens.get(hit.clause + 1)
        if own is None and within == "text":
            own = [when for found in self.whens.values() for when in found]
        return [when for _, when in own or ()]

    def close(self, hit: Hit, group: Iterable[int]) -> bool:
        """Whether one of the concepts of `group` stands a few words from `hit` in its clause; below 0: is denied."""
        far = SHORT_PHRASE if NO_EDGES.match(self.text[hit.start]) else PHRASE
        for number in group:
            others: Sequence[Hit] = self.hits.get(max(number, ~number), ())
            if len(others) > MANY:
                others = self._nearest(hit, max(number, ~number))
            for other in others:
                if (
                    other.clause == hit.clause
                    and other.denied == (number < 0)
                    and hit.start - other.end <= far
                    and other.start - hit.end <= far
                ):
                    return True
        return False

    def led_by(self, hit: Hit, group: Iterable[int]) -> bool:
        """Whether one of the concepts of `group` ends right before `hit`, but for a "the" or "my"."""
        for number in group:
            for other in self._nearest(hit, number) if number in self.hits else ():
                if 0 <= hit.start - other.end <= _LEADS and _DETERMINERS.match(self.text[other.end : hit.start]):
                    return True
        return False

    def does(self, hit: Hit, group: Iterable[int]) -> bool:
        """Whether one of the concepts of `group` is what the person of `hit` does to somebody.

        Its verb follows in the same clause, or comes before a "by"; no other doer and no child stands between, and
        whom the verb concerns next is no other grown person.
        """
        number = self.lexicon.number
        doers = [each for each in self._nearest(hit, number["other_doer"], many=MANY) if each.clause == hit.clause]
        children = [each for each in self._nearest(hit, number["child"], many=MANY) if each.clause == hit.clause]
        far = DEED if self.text[hit.start].isascii() else SHORT_DEED
        passive = self.led_by(hit, (number["done_by"],))
        for each in group:
            for deed in self._nearest(hit, each, many=MANY) if each in self.hits else ():
                if deed.clause != hit.clause or deed.denied:
                    continue
                first, last = (deed.end, hit.start) if passive else (hit.end, deed.start)
                if not 0 <= last - first <= far:
                    continue
                if any(first <= other.start < last for other in (doers if passive else (*doers, *children))):
                    continue
                if passive or not self._concerns_another(deed, doers, children):
                    return True
        return False

    def _concerns_another(self, deed: Hit, doers: Iterable[Hit], children: Iterable[Hit]) -> bool:
        """Whether the next person after a verb is grown and no child."""
        grown = min((each.start for each in doers if each.start >= deed.end), default=None)
        young = min((each.start for each in children if each.end > deed.start), default=None)
        return grown is not None and grown - deed.end <= PHRASE and (young is None or grown < young)

    def _nearest(self, hit: Hit, number: int, many: int = FEW) -> Sequence[Hit]:
        """The few hits of a concept that stand around `hit`."""
        if number not in self._sorted:
            self._sorted[number] = sorted(self.hits.get(number, ()))
        found = self._sorted[number]
        at = bisect_right(found, hit.start, key=itemgetter(0))
        return found[max(0, at - many) : at + many]

    def add_when(self, position: int, when: When, end: int = 0) -> None:
        """Enter a word of time; a clause that is stuffed with them keeps the first.

        end: of words that count the time; what stands inside them ("months ago" in "five months ago") says nothing.
        """
        found = self.whens.setdefault(bisect_right(self.clause_ends, position), [])
        found[:] = [item for item in found if not position <= item[0] < end]
        if len(found) < MANY:
            found.append((position, when))

    def has(self, name: str) -> bool:
        """Whether the concept called `name` is affirmed anywhere."""
        return bool(self.all_affirmed >> self.lexicon.number[name] & 1)

    def of(self, name: str) -> Sequence[Hit]:
        """The hits of the concept called `name`, which must be tracked, affirmed or not."""
        return self.hits.get(self.lexicon.number[name], ())


def _distance(hit: Hit, position: int) -> int:
    return max(hit.start - position, position - hit.end, 0)


def read(
    text: str,
    lexicon: Lexicon,
    received_at: datetime | None = None,
    latin: Iterable[str] = LATIN,
    given: int = 0,
    words: str | None = None,
) -> Reading:
    """Read a normalised text. Linear time: of each kind of neighbour only the nearest few are looked at.

    latin: the languages whose Latin words are looked for. given: concepts that stand in every clause, as bits, though
    no word says so. received_at: turns weekdays and years into hours ahead and ages of events; None leaves them open.
    words: the text as service.triage.matcher.edged leaves it, if somebody has asked for it already.
    """
    concepts = lexicon.concepts
    content: list[Found] = []
    marks: list[_Mark] = []
    shields: list[Found] = []
    turns: list[int] = []
    numbers = digits(text)
    for item in lexicon.find(text, latin, words):
        start, end, use = item
        if use.shields:
            shields.append(item)
        for number in use.special:
            concept = concepts[number]
            if concept.number is not None:
                numbers.append(Number(start, end, concept.number))
            elif concept.grammar == "turn":
                turns.append(start)
            elif concept.grammar:
                marks.append((start, end, concept))
        if use.affirms:
            content.append(item)
    if shields:
        content, marks = _unshielded(content, marks, sorted(shields), lexicon)
    reading = Reading(text, lexicon, _clause_ends(text, turns), given)
    swallowed: list[tuple[int, int]] = []
    if marks:
        marks, swallowed = _swallow(sorted(marks, key=itemgetter(0, 1)), sorted(content, key=itemgetter(0, 1)))
    _place_all(reading, content, marks, swallowed)
    _weekdays(reading, received_at)
    if numbers:
        children, kin = (sorted({(hit.start, hit.end) for hit in reading.of(name)}) for name in ("child", "young_kin"))
        reading.amounts = amounts(text, _longest(text, numbers), children, kin)
    if reading.amounts:
        _durations(reading, received_at)
        _young(reading)
        _money(reading)
    for clause in reading.affirmed:
        reading.all_affirmed |= clause
    for clause in reading.refused:
        reading.all_refused |= clause
    return reading


def _clause_ends(text: str, turns: Iterable[int]) -> list[int]:
    ends = [match.end() for match in _CLAUSE_END.finditer(text)]
    return sorted({*ends, *turns} - {0}) if turns else ends


def _unshielded(
    content: Sequence[Found], marks: Sequence[_Mark], shields: Sequence[Found], lexicon: Lexicon
) -> tuple[list[Found], list[_Mark]]:
    """Take away what begins inside a longer word that means something else."""
    starts = [shield[0] for shield in shields]
    all_shields = reduce(or_, [shield[2].shields for shield in shields])

    def shielded(start: int) -> int:
        at = bisect_right(starts, start)
        mask = 0
        for _, end, use in shields[max(0, at - FEW) : at]:
            if start < end:
                mask |= use.shields
        return mask

    kept: list[Found] = []
    for item in content:
        start, end, use = item
        away = shielded(start) & use.own if use.own & all_shields else 0
        if not away:
            kept.append(item)
        elif away != use.own:
            kept.append((start, end, use.without(away, lexicon.closures)))
    return kept, [mark for mark in marks if not shielded(mark[0]) >> lexicon.number[mark[2].id] & 1]


def _begins_in(spans: Sequence[tuple[int, int]], start: int) -> bool:
    """Whether a word that starts at `start` begins inside one of the nearest spans."""
    at = bisect_right(spans, start, key=itemgetter(0))
    return any(start < last for _, last in spans[max(0, at - FEW) : at])


def _swallow(marks: Sequence[_Mark], content: Sequence[Found]) -> tuple[list[_Mark], list[tuple[int, int]]]:
    """Drop a "not" that belongs to a longer pattern, such as "cannot leave" or "no children".

    Returns what is left, and where, within such patterns, they still deny: from the "not" to the pattern's end.
    """
    starts = [item[0] for item in content]
    kept: list[_Mark] = []
    swallowed: list[tuple[int, int]] = []
    for mark in marks:
        start, end, concept = mark
        at = bisect_right(starts, start)
        ends = [
            last for first, last, _ in content[max(0, at - MANY) : at] if end <= last and last - first > end - start
        ]
        if not ends:
            kept.append(mark)
        elif concept.grammar == "negation":
            swallowed.append((end, max(ends)))
    return kept, sorted(swallowed)


def _place_all(
    reading: Reading,
    content: Iterable[Found],
    marks: Sequence[_Mark],
    swallowed: Sequence[tuple[int, int]],
) -> None:
    """Enter the concepts' words into the reading: denied, doubted or under an "if" by the marks of their clause."""
    affirmed, refused, hits = reading.affirmed, reading.refused, reading.hits
    clause_ends, concepts = reading.clause_ends, reading.lexicon.concepts
    starts = [mark[0] for mark in marks]
    marked = {bisect_right(clause_ends, start) for start in starts}
    first, last = (swallowed[0][0], max(end for _, end in swallowed)) if swallowed else (0, 0)
    for item in content:
        start, end, (_, mask, loose, under, _, tracked, special) = item
        clause = bisect_right(clause_ends, start)
        denied = 0
        hedged = under_if = False
        if clause in marked:
            hedged, under_if, touching, distant = _marked(reading, item, clause, marks, starts)
            denied = mask if touching else mask & ~loose if distant else 0
        if first <= start < last and _begins_in(swallowed, start):
            denied = mask
        stands = mask & ~denied
        affirmed[clause] |= stands & under if under_if else stands
        refused[clause] |= denied
        if tracked:
            hit = Hit(start, end, clause, denied == mask, hedged, under_if)
            other = hit if denied in (0, mask) else hit._replace(denied=True)
            for number in tracked:
                each = other if denied >> number & 1 else hit
                if number in hits:
                    hits[number].append(each)
                else:
                    hits[number] = [each]
        for number in special:
            when = concepts[number].when
            if when is not None and not denied:
                reading.add_when(start, when)


def _marked(
    reading: Reading, item: Found, clause: int, marks: Sequence[_Mark], starts: Sequence[int]
) -> tuple[bool, bool, bool, bool]:
    """Whether a word is doubted, under an "if", denied from right before it, and denied from further away."""
    start = item[0]
    clause_ends = reading.clause_ends
    first = clause_ends[clause - 1] if clause else 0
    last = clause_ends[clause] if clause < len(clause_ends) else len(reading.text)
    hedged = under_if = touching = distant = False
    at = bisect_right(starts, start)
    for mark in marks[max(0, at - MANY) : at + FEW]:
        if not first <= mark[0] < last:
            continue
        kind = mark[2].grammar
        if kind == "hedge":
            hedged = True
        elif kind == "condition":
            under_if = under_if or mark[1] <= start
        elif not touching and _denies(reading.text, mark, item):
            distant = True
            touching = not 0 <= start - mark[1] > ADJACENT
    return hedged, under_if, touching, distant


def _denies(text: str, mark: _Mark, item: Found) -> bool:
    """Whether a "not" denies a word."""
    first, last, sign = mark
    start, end, _ = item
    if first < end and start < last:
        return False
    if sign.reach == "behind":
        return 0 <= first - end <= CLUSTERS_DENIED
    if sign.reach == "clause":
        return True
    if last > start or (sign.reach == "near" and start - last > 4 * CLUSTERS_DENIED):
        return False
    between = text[last:start]
    if "," in between:
        return False
    if sign.reach == "after":
        return True
    if _KHMER_LETTER.match(text[last - 1]):
        between = between.lstrip()
        return " " not in between and len(KHMER_BASE.findall(between)) <= CLUSTERS_DENIED
    return between.count(" ") <= WORDS_DENIED


def _longest(text: str, numbers: Sequence[Number]) -> list[Number]:
    """Keep of overlapping numbers the longest: ប្រាំបី is 8, not 5 and 3; "fifty-three" is one number, 53."""
    kept: list[Number] = []
    for number in sorted(numbers, key=lambda number: (number.start, -number.end)):
        if not kept or number.start >= kept[-1].end:
            tens = kept[-1] if kept else None
            if tens is not None and tens.end == number.start and NO_EDGES.match(text[number.start]):
                kept[-1] = tens._replace(end=number.end)  # 十三四 is thirteen or fourteen
                continue
            if tens is not None and _are_one(text, tens, number):
                kept[-1] = Number(tens.start, number.end, tens.value + number.value)
            else:
                kept.append(number)
    return kept


def _are_one(text: str, tens: Number, ones: Number) -> bool:
    """Whether number words follow each other as tens and ones."""
    between = text[tens.end : ones.start]
    words = not text[tens.start].isdigit() and not text[ones.start].isdigit()
    return words and between in ("", "-", " ") and tens.value in range(20, 100, 10) and 0 < ones.value < 10


def _weekdays(reading: Reading, received_at: datetime | None) -> None:
    """Give weekdays their distance in hours, from the day the text names as today, else from that of receipt."""
    if not any(when.weekday is not None for found in reading.whens.values() for _, when in found):
        return
    today = received_at.astimezone(PHNOM_PENH).weekday() if received_at is not None else None
    for found in reading.whens.values():
        for (position, when), (after, day) in pairwise(sorted(found, key=itemgetter(0))):
            if when.tense == "today" and day.weekday is not None and after - position <= TODAY_IS:
                today = day.weekday
    if today is None:
        return
    for found in reading.whens.values():
        found[:] = [
            (position, when if when.weekday is None else replace(when, hours=24 * ((when.weekday - today) % 7)))
            for position, when in found
        ]


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
            reading.add_when(amount.start, when, amount.end)


def _young(reading: Reading) -> None:
    """An age under eighteen speaks of a child as a word for one does."""
    child = 1 << reading.lexicon.number["child"]
    for amount in reading.amounts:
        if amount.kind == "under" or (amount.kind == "age" and amount.value < ADULT):
            reading.affirmed[bisect_right(reading.clause_ends, amount.start)] |= child


def _money(reading: Reading) -> None:
    """A sum speaks of money as a word for it does."""
    lexicon = reading.lexicon
    number = lexicon.number["money_or_goods"]
    for amount in reading.amounts:
        if amount.kind == "money":
            clause = bisect_right(reading.clause_ends, amount.start)
            reading.affirmed[clause] |= lexicon.closures[number]
            hit = Hit(amount.start, amount.end, clause, denied=False, hedged=False, under_if=False)
            for each in (number, *lexicon.concepts[number].groups):
                reading.hits.setdefault(each, []).append(hit)


def _past(hours: int) -> When:
    if hours <= TODAY_HOURS:
        return When("now" if hours <= 1 else "past", recency="now")
    return When("past", recency="recent" if hours <= 31 * 24 else "past" if hours <= 366 * 24 else "historic")
