"""The matching copy of a text: normalised, with a way back to the original positions (triage.md section 3).

The account itself is never altered. Khmer typed on phones holds its marks in any order, with invisible characters
between words; the copy has one order, so that words compare. Written by hand: khmerspell's khnormal keeps no
positions, leaves out rules of that section and takes thirty times as long (1 ms against 32 us for 130 characters).
"""

import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

REPEAT = "\u17d7"
DROPPED = "\u200b\u200c\u200d\u2060\ufeff\u00ad\u17b4\u17b5" + REPEAT
MARK = "\u17b6-\u17d1\u17d3\u17dd"
BASE = "\u1780-\u17b3"
COENG = "\u17d2"

KHMER_BASE = re.compile(f"(?<!{COENG})[{BASE}]")
MOST_MARKS = 30
_ROUNDS = 4
_DROPPED = re.compile(f"[{DROPPED}]")
_EXOTIC = re.compile(r"[^\x00-\x7f\u1780-\u17dc\u17de-\u17ff\u19e0-\u19ff\u200b-\u200d\u2010-\u2027]")
_MARK_RUN = re.compile(r"[^\w\s]{31,}")
_WORD = re.compile(r"\S+")
_FOREIGN_DIGIT = re.compile(r"(?![0-9])\d")
_ONE_FOR_ONE = str.maketrans(
    {"\u2018": "'", "\u2019": "'", "\u02bc": "'", "\u00a0": " ", "\u2009": " ", "\u202f": " ", "\u3000": " "}
)
_LOOKS_LIKE = re.compile("[\u2018\u2019\u02bc\u00a0\u2009\u202f\u3000]")
_COMPATIBLE = re.compile(
    r"[\u00aa\u00ba\u02b0-\u02b8\u1d2c-\u1d6a\u1d78-\u1dbf\u2070-\u209c\u2100-\u218b\u2460-\u24ff"
    r"\u2c7c\u2c7d\ua69c\ua69d\uab5c-\uab5f\ufb00-\ufb06\uff01-\uff5e\U0001d400-\U0001d7ff\U0001f100-\U0001f16b]+"
)
_NOT_ASCII = re.compile(r"[^\x00-\x7f]")
_TRIPLE = re.compile(r"([a-z\u00e0-\u024f])\1\1+")
_BLANKS = re.compile(r"[ \t]{2,}|\t")
_OLD_KHMER = re.compile("[\u17a3\u17a4\u17b2]")
_OLD_TO_NEW = {"\u17a3": "\u17a2", "\u17a4": "\u17a2\u17b6", "\u17b2": "\u17b1"}
_CLUSTER = re.compile(f"[{BASE}](?:[{MARK}]|{COENG}[{BASE}]?){{2,}}|[{BASE}]{COENG}(?![{BASE}])")

_Origin: TypeAlias = list[int] | None


@dataclass(frozen=True, slots=True)
class Normalised:
    """A matching copy. `origin` gives for each of its characters the original position; None: the same."""

    text: str
    original_length: int
    origin: list[int] | None

    def original(self, start: int, end: int) -> tuple[int, int]:
        """Return where `text[start:end]` (not empty) stands in the original text, changed clusters whole."""
        if self.origin is None:
            return start, end
        last = self.origin[end - 1]
        while end < len(self.origin) and self.origin[end] <= last:
            end += 1
        return self.origin[start], self.origin[end] if end < len(self.origin) else self.original_length


def normalise(text: str) -> Normalised:
    """Return the matching copy of `text` (triage.md section 3, "Normalise"). Idempotent, linear time."""
    copy: str = text
    origin: _Origin = None
    exotic = _EXOTIC.search(text) is not None
    for _ in range(_ROUNDS if exotic else 1):
        before = copy
        copy, origin = _visible(copy, origin)
        if exotic:
            copy, origin = replaced(copy, origin, _MARK_RUN, _bounded)
            copy, origin = _composed(copy, origin)
        copy, origin = _folded(copy, origin, exotic=exotic)
        copy, origin = replaced(copy, origin, _TRIPLE, _two)
        if "  " in copy or "\t" in copy:
            copy, origin = replaced(copy, origin, _BLANKS, _one_blank)
        copy, origin = _khmer(copy, origin)
        if copy == before:
            break
    return Normalised(copy, len(text), origin)


def replaced_at(normal: Normalised, changes: Mapping[tuple[int, int], str]) -> Normalised:
    """Return a copy with other words at some positions; they still point to what was written."""
    pieces: list[str] = []
    positions: list[int] = []
    origin = normal.origin if normal.origin is not None else list(range(len(normal.text)))
    done = 0
    for (start, end), new in sorted(changes.items()):
        pieces += (normal.text[done:start], new)
        positions += [*origin[done:start], *[origin[start]] * len(new)]
        done = end
    pieces.append(normal.text[done:])
    positions += origin[done:]
    return Normalised("".join(pieces), normal.original_length, positions)


def _visible(text: str, origin: _Origin) -> tuple[str, _Origin]:
    if not _DROPPED.search(text):
        return text, origin
    kept = [position for position, character in enumerate(text) if character not in DROPPED]
    visible = _DROPPED.sub("", text)
    return visible, kept if origin is None else [origin[position] for position in kept]


def _bounded(match: re.Match[str]) -> str:
    """Drop combining marks after the thirtieth in a row: to order n of them takes n squared steps."""
    kept: list[str] = []
    run = 0
    for character in match[0]:
        run = run + 1 if unicodedata.combining(character) else 0
        if run <= MOST_MARKS:
            kept.append(character)
    return "".join(kept)


def _composed(text: str, origin: _Origin) -> tuple[str, _Origin]:
    """NFC, word by word: no composition crosses white space."""
    if unicodedata.is_normalized("NFC", text):
        return text, origin
    return replaced(text, origin, _WORD, lambda match: unicodedata.normalize("NFC", match[0]))


def _folded(text: str, origin: _Origin, *, exotic: bool) -> tuple[str, _Origin]:
    """Case, digits of any script, and the compatibility forms of Latin letters."""
    if text.isascii():
        return text.lower(), origin
    text = _FOREIGN_DIGIT.sub(_digit, text)
    if _LOOKS_LIKE.search(text):
        text = text.translate(_ONE_FOR_ONE)
    if exotic:
        text, origin = replaced(text, origin, _COMPATIBLE, lambda match: unicodedata.normalize("NFKC", match[0]))
    folded = text.casefold()
    if len(folded) == len(text):
        return folded, origin
    return replaced(text.lower(), origin, _NOT_ASCII, lambda match: match[0].casefold())


def _two(match: re.Match[str]) -> str:
    return match[1] * 2


def _one_blank(_: re.Match[str]) -> str:
    return " "


def _digit(match: re.Match[str]) -> str:
    return str(unicodedata.decimal(match[0]))


def _khmer(text: str, origin: _Origin) -> tuple[str, _Origin]:
    if text.isascii():
        return text, origin
    text, origin = replaced(text, origin, _OLD_KHMER, lambda match: _OLD_TO_NEW[match[0]])
    edits: list[tuple[int, int, int]] = []

    def order(match: re.Match[str]) -> str:
        cluster = match[0]
        ordered = _ordered(cluster)
        if len(ordered) != len(cluster):
            edits.append((*match.span(), len(ordered)))
        return ordered

    text = _CLUSTER.sub(order, text)
    if not edits:  # marks only changed places within their clusters: positions stand
        return text, origin
    return text, _moved(edits, origin, len(text))


def _moved(edits: list[tuple[int, int, int]], origin: _Origin, length: int) -> list[int]:
    """The positions after some pieces (start, end, new length) changed their length."""
    positions: list[int] = []
    done = 0
    for start, end, new in edits:
        positions += range(done, start) if origin is None else origin[done:start]
        positions += [start if origin is None else origin[start]] * new
        done = end
    rest = length - len(positions)
    positions += range(done, done + rest) if origin is None else origin[done:]
    return positions


def replaced(
    text: str, origin: _Origin, pattern: re.Pattern[str], change: Callable[[re.Match[str]], str]
) -> tuple[str, _Origin]:
    """Replace what `pattern` finds; the characters of a changed piece all point to where it began."""
    pieces: list[str] = []
    positions: list[int] = []
    done = 0
    for match in pattern.finditer(text):
        new = change(match)
        start, end = match.span()
        if new == text[start:end]:
            continue
        pieces += (text[done:start], new)
        positions += range(done, start) if origin is None else origin[done:start]
        positions += [start if origin is None else origin[start]] * len(new)
        done = end
    if not pieces:
        return text, origin
    pieces.append(text[done:])
    positions += range(done, len(text)) if origin is None else origin[done:]
    return "".join(pieces), positions


@lru_cache(maxsize=8192)
def _ordered(cluster: str) -> str:
    """Sort one Khmer cluster: base, robat, subscripts with RO last, shifters, vowel, signs; drop doubled marks."""
    subscripts: list[str] = []
    marks: set[str] = set()
    position = 1
    while position < len(cluster):
        character = cluster[position]
        position += 1
        if character != COENG:
            marks.add(character)
        elif position < len(cluster) and "\u1780" <= cluster[position] <= "\u17b3":
            letter = "\u178f" if cluster[position] == "\u178a" else cluster[position]
            if letter not in subscripts:
                subscripts.append(letter)
            position += 1
    for joined, part in (("\u17c4", "\u17b6"), ("\u17be", "\u17b8")):
        if {"\u17c1", part} <= marks:
            marks = marks - {"\u17c1", part} | {joined}
    subscripts.sort(key=lambda letter: letter == "\u179a")
    return cluster[0] + "".join(
        [
            "\u17cc" if "\u17cc" in marks else "",
            *(COENG + letter for letter in subscripts),
            *sorted(mark for mark in marks if mark in "\u17c9\u17ca"),
            *sorted(mark for mark in marks if "\u17b6" <= mark <= "\u17c5"),
            *sorted(mark for mark in marks if mark > "\u17c5" and mark not in "\u17c9\u17ca\u17cc"),
        ]
    )
