"""What the numbers in a text count: ages, children, years ago, hours ahead (triage.md section 3, "Age and number")."""

import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from service.triage.strict_yaml import load
from service.triage.text import normalise

ADULT = 18
YOUNGEST_KIN = 5  # below, a bare number after "sister" or "friend" counts something else
OLDEST = 120
OLDEST_ALONE = 19

_DIGITS = re.compile("[0-9]+")
_LEFT_WINDOW = 26
_SIGNS = ("$", "€")
_NEAR_CHILD = 30


def _leads(path: Path) -> dict[str, tuple[str, ...]]:
    return {kind: tuple(normalise(str(word)).text for word in words) for kind, words in load(path).items()}


# What stands before a number, up to its left edge.
_BEFORE = _leads(Path(__file__).with_name("numbers.yaml"))
_FILLERS = _BEFORE.pop("fillers")
# Grown persons, whose number is not the children's.
_GROWN = _BEFORE.pop("grown")
_OWN = re.compile(r"(?:\bi(?:'?m| am| m)|ខ្ញុំ|ញុំ|\bknh?om|мне|\bcon|\bje (?:suis|m'appelle)|\bich bin|หนู|나는)[^.]{0,14}$")
_CHILD_THEN_AGE = re.compile(
    r"[ ,(]*(?:of|aged?|abt|about|around|approx\.?|maybe|possibly|ca\.?|vielleicht|is|are|look|looks|like|only|just|"
    r"ប្រហែល|ប្រហែរ|ប្រមាណ|អាយុ|តែ|តូច|តូចៗ|ស្រី|ប្រុស|touch|ayu|prohel|[0-9]{1,3} ?(?:នាក់|neak))?[ ,(]*"
    r"(?:[0-9]{1,2} ?- ?)?$"
)
# What stands after a number, from its right edge.
_RIGHT = re.compile(
    r"[ \-]{0,2}(?:(?P<old>(?:years?|yrs?|yr)[ \-]?olds?\b|y/?o\b|yrs?\b(?! ago)|years? of age|jährig|"
    r"tuổi|tuoi\b|[岁歲]|살|ขวบ|ans\b(?! plus tard)|jahre?\b(?! später)|лет\b(?! назад)|год\b(?! назад))|"
    r"(?P<unit>minutes?|mins?|hours?|hrs?|days?|weeks?|months?|years?|នាទី|ម៉ោង|ថ្ងៃ|អាទិត្យ|សប្តាហ៍|ខែ|ឆ្នាំ|chnam|khe\b|ngai|"
    r"mois|jours|jahren|monaten?|tagen?|năm|nam\b|年|个月|天|년|ปี|เดือน)"
    r"[ ]?(?P<ago>ago|before|earlier|មុន|mun|moun|trước|truoc|前|전|ก่อน)?|"
    r"(?P<persons>នាក់|neak\b|n[ea]k\b|คน|명|个|名|đứa|dua\b)|"
    r"(?P<money>\$|€|usd\b|dollars?\b|riels?\b|euros?\b|baht\b|បាត(?!់)|ដុល|រៀល|លាន|ពាន់|ម៉ឺន|lean\b|trieu|元|美元|달러|บาท)|"
    r"(?P<thing>%|[ap]\.?m\b|o'?clock|h\b|km|kg|th\b|nd\b|rd\b|st\b|times?|រយ|ដង|គីឡូ|ក្បាល|សន្លឹក|"
    r"do\b|万))"
)
_YEARS = frozenset({"ឆ្នាំ", "chnam", "ปี", "年", "năm", "nam", "년"})
_RANGE = re.compile(r"[ ]?(?:-|–|to|or|and|,|/|~|ដល់|ទៅ|ឬ|និង|bis|oder|ou|à|den|đến|至|到|до|или)?[ ]?$")
_WORDS_BETWEEN = re.compile(r"[ ]?(?:[^\W\d]+[ ]){0,2}$")


class Number(NamedTuple):
    """A number as written, in digits or words, at `start` to `end` of the normalised text."""

    start: int
    end: int
    value: int


class Amount(NamedTuple):
    """What a number says; own: of the writer. kind: age, under, grade, persons, ago, ahead (hours), year, money."""

    kind: str
    start: int
    end: int
    value: int
    own: bool = False


def digits(text: str) -> list[Number]:
    """Return the numbers written in digits, up to four of them, without decimals, clock times and dates."""
    found = []
    for match in _DIGITS.finditer(text):
        start, end = match.span()
        if end - start <= 4 and not _part_of_more(text, start, end):
            found.append(Number(start, end, int(match[0])))
    return found


def _part_of_more(text: str, start: int, end: int) -> bool:
    before, after = text[max(0, start - 2) : start], text[end : end + 2]
    return (before[-1:] in ".,:" and before[:1].isdigit()) or (after[:1] in ".,:" and after[1:].isdigit())


def amounts(
    text: str,
    numbers: Iterable[Number],
    children: Sequence[tuple[int, int]],
    kin: Sequence[tuple[int, int]] = (),
) -> list[Amount]:
    """Return what the numbers of a normalised text say; those that say nothing here are left out.

    children: where words for children stand, in order. kin: where words for people who may be children do ("sister
    16"). "8 to 12 years old" gives both ages.
    """
    found: list[Amount] = []
    waiting: Number | None = None
    for number in sorted(numbers):
        amount = _amount(text, number, children, kin)
        if amount is None:
            amount = _second_of_range(text, found, number) if waiting is None else None
        elif waiting is not None and amount.kind in ("age", "grade") and _one_range(text, waiting, number):
            found.append(amount._replace(start=waiting.start, end=waiting.end, value=waiting.value))
        waiting = number if amount is None else None
        if amount is not None:
            found.append(amount)
    return found


def _one_range(text: str, first: Number, second: Number) -> bool:
    return first.value < OLDEST_ALONE and _RANGE.match(text[first.end : second.start]) is not None


def _second_of_range(text: str, found: Sequence[Amount], number: Number) -> Amount | None:
    if not found or found[-1].kind != "age" or number.value >= OLDEST_ALONE:
        return None
    last = found[-1]
    right = _RIGHT.match(text, number.end)
    counts = right is not None and not right["old"] and right["unit"] not in _YEARS
    if counts or not _RANGE.match(text[last.end : number.start]):
        return None
    return last._replace(start=number.start, end=number.end, value=number.value)


def _amount(
    text: str, number: Number, children: Sequence[tuple[int, int]], kin: Sequence[tuple[int, int]]
) -> Amount | None:
    start, end, value = number
    right = _RIGHT.match(text, end)
    if (right is not None and right["money"]) or text[start - 1 : start] in _SIGNS:
        return Amount("money", start, end, value)
    if 1950 <= value <= 2100:
        return Amount("year", start, end, value)
    says = right.lastgroup if right is not None else None
    window = text[max(0, start - _LEFT_WINDOW) : start]
    led = _led(window)
    if led == "thing" or value > OLDEST:
        return None
    if right is not None and right["unit"]:
        span = _duration(number, right, led)
        if span is not None or right["unit"] not in _YEARS:
            return span
    if says == "thing":
        return None
    children = _near(children, start)
    kin_before = YOUNGEST_KIN <= value < ADULT and _child_before(text, start, _near(kin, start))
    near = kin_before or _child_before(text, start, children)
    own = _OWN.search(window) is not None
    if led == "grade":
        return Amount("grade", start, end, value, own) if 1 <= value <= 12 else None
    if led == "under" and ADULT - 4 <= value <= ADULT:
        return Amount("under", start, end, value)
    if says == "old":
        return Amount("age", start, end, value, own)
    if right is not None and right["unit"]:
        after = right.end()
        young = value >= YOUNGEST_KIN and any(0 <= first - after <= 12 for first, _ in children)
        old = led in ("age", "said") or own or near or young
        return Amount("age", start, end, value, own) if old else None
    if says == "persons" or (not kin_before and _persons_follow(text, number, children)):
        return _persons(text, number, children, counted=says == "persons")
    few = value < YOUNGEST_KIN and not text[start].isdigit()
    if led == "said" or (value <= OLDEST_ALONE and (led == "age" or (near and value > 1 and not few))):
        return Amount("age", start, end, value, own)
    return None


def _led(window: str) -> str | None:
    """Which words lead up to a number."""
    left = " " + window.rstrip(" ,")
    for _ in range(2):
        if left.endswith(_FILLERS):
            filler = max((filler for filler in _FILLERS if left.endswith(filler)), key=len)
            left = left.removesuffix(filler).rstrip(" ,")
    return next((kind for kind, endings in _BEFORE.items() if left.endswith(endings)), None)


def _duration(number: Number, right: re.Match[str], led: str | None) -> Amount | None:
    hours = number.value * _hours(right["unit"])
    if right["ago"] or led == "ago":
        return Amount("ago", number.start, right.end(), hours)
    if led == "ahead":
        return Amount("ahead", number.start, right.end(), hours)
    return None


def _hours(unit: str) -> int:
    for hours, beginnings in _HOURS.items():
        if unit.startswith(beginnings):
            return hours
    return 8760


_HOURS = {
    0: ("min", "នាទី"),
    1: ("hour", "hr", "ម៉ោង"),
    24: ("day", "ថ្ងៃ", "ngai", "jour", "tag", "天"),
    168: ("week", "អាទិត្យ", "សប្តាហ៍"),
    720: ("month", "ខែ", "khe", "mois", "monat", "个月", "เดือน"),
}


def _near(children: Sequence[tuple[int, int]], position: int) -> Sequence[tuple[int, int]]:
    """The words for children nearest to a position, some before and some after."""
    at = bisect_right(children, (position, position))
    return children[max(0, at - 6) : at + 4]


def _child_before(text: str, start: int, children: Sequence[tuple[int, int]]) -> bool:
    return any(
        0 <= start - end <= _NEAR_CHILD and _CHILD_THEN_AGE.match(text, end, start) is not None for _, end in children
    )


def _persons_follow(text: str, number: Number, children: Sequence[tuple[int, int]]) -> bool:
    return any(
        0 <= start - number.end <= 16 and _WORDS_BETWEEN.match(text, number.end, start) is not None
        for start, _ in children
    )


def _persons(text: str, number: Number, children: Sequence[tuple[int, int]], *, counted: bool) -> Amount | None:
    if counted:
        before = text[max(0, number.start - _LEFT_WINDOW) : number.start].rstrip()
        if before.endswith(_GROWN) or not any(
            0 <= number.start - end <= _NEAR_CHILD or 0 <= start - number.end <= 14 for start, end in children
        ):
            return None
    return Amount("persons", number.start, number.end, number.value) if number.value else None
