"""Finding the lexicon's terms in a normalised text, all at once, in linear time (triage.md section 3, "Match").

An automaton for each kind of writing: Khmer, writing without edges (Chinese, Thai ...), Cyrillic; and for words in
Latin letters one for each language, so that Vietnamese "do" is not found in English. What a term stands for is laid
out beforehand as bits, one a concept, so that reading a text takes a step a word.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from operator import or_
from typing import Any, NamedTuple, TypeAlias

from ahocorasick_rs import AhoCorasick, MatchKind

from service.triage.text import COENG

LETTERS = "a-z0-9\u00df-\u024f\u0400-\u052f\u1e00-\u1eff"
KHMER = re.compile("[\u1780-\u17ff]")
NO_EDGES = re.compile("[\u0e00-\u0e7f\u1100-\u11ff\u2e80-\u9fff\uac00-\ud7af\U00020000-\U0003ffff]")
# How a word may go on where its term allows it; what is matched ends at the end of the word.
ENGLISH_END = re.compile(r"(?:'?s|es|d|ed|ing|ers?|ly|e?n|t|(?:([bdgklmnprt])(?<=\1\1))(?:ing|ed|er))(?![a-z0-9])")
OTHER_END = re.compile(r"[^\W\d_]{1,4}(?![^\W_])")

# Names of places stand in texts of any language.
LATIN = ("name", "en", "fr", "de", "vi", "kmr")
KHMER_SCRIPT, EDGELESS, CYRILLIC = "khmer", "edgeless", "cyrillic"

_CYRILLIC = re.compile("[\u0400-\u052f]")
_LETTER = re.compile(f"[{LETTERS}]")
_CONTINUES = frozenset([chr(code) for code in range(0x17B6, 0x17D4)] + ["\u17dd"])
_BLANK_IN_KHMER = re.compile("(?<=[\u1780-\u17ff]) (?=[\u1780-\u17ff])")
_NO_LETTER = re.compile(f"[^{LETTERS}']")
# Quotation marks, and where a letter before a vowel was left out: j'ai, l'école, I'm; not don't.
_QUOTE = re.compile(
    f"(?<![{LETTERS}])'|'(?![{LETTERS}])|(?<=(?<![{LETTERS}])[{LETTERS}])'|(?<=\\bqu)'|'(?=s(?![{LETTERS}]))"
)
_ASCII_EDGES = str.maketrans({chr(code): " " for code in range(128) if not re.match("[a-z0-9']", chr(code))})


class Use(NamedTuple):
    """What a term stands for, bits by number of the concept.

    own: the concepts it is a term of. affirms: these and all their groups. loose: of them what only a "not" right
    before it denies. under_if: of them what stands even after "if". shields: the concepts it keeps away where it
    stands. tracked: the affirmed concepts whose positions somebody asks for. special: the concepts that turn, deny,
    doubt, condition, tell a time or a number.
    """

    own: int = 0
    affirms: int = 0
    loose: int = 0
    under_if: int = 0
    shields: int = 0
    tracked: tuple[int, ...] = ()
    special: tuple[int, ...] = ()

    def without(self, kept_away: int, closures: Sequence[int]) -> "Use":
        """What is left when some of `own` are kept away. closures: for each concept itself and its groups, as bits."""
        left = reduce(or_, (closures[number] for number in bits(self.own & ~kept_away)), 0)
        return self._replace(
            own=self.own & ~kept_away,
            affirms=left,
            loose=self.loose & left,
            under_if=self.under_if & left,
            tracked=tuple(number for number in self.tracked if left >> number & 1),
            special=tuple(number for number in self.special if not kept_away >> number & 1),
        )


Found: TypeAlias = tuple[int, int, Use]
# A term: the language of its automaton, its letters, and how it may go on (None: not at all).
Term: TypeAlias = tuple[str, str, re.Pattern[str] | None]
# A term as a whole, and as it may go on.
_Uses: TypeAlias = tuple[Use, tuple[tuple[re.Pattern[str], Use], ...]]


class Matcher:
    """The automata over all terms. terms: what each normalised term stands for."""

    def __init__(self, terms: Mapping[Term, Use]) -> None:
        spelt: dict[str, dict[str, dict[re.Pattern[str] | None, Use]]] = {KHMER_SCRIPT: {}, EDGELESS: {}, CYRILLIC: {}}
        for (language, text, ending), use in terms.items():
            letters = text if language in (KHMER_SCRIPT, EDGELESS) else f" {edged(text).strip()}"
            spelt.setdefault(language, {}).setdefault(letters, {})[ending] = use
        self._automata = {language: _automaton(found) for language, found in spelt.items() if found}

    def find(self, text: str, latin: Iterable[str], words: str | None = None) -> list[Found]:
        """Return what stands in a normalised text, overlapping: start, end and use of each term.

        latin: the languages whose Latin words are looked for. words: the text as `edged` leaves it, if somebody has
        asked for it already. Khmer words begin at a base letter and are not followed by a mark; blanks between them
        count for nothing. Words of alphabets stand whole, or end in a usual ending where the term allows one; Chinese,
        Korean and Thai have no edges.
        """
        found: list[Found] = []
        ascii_only = text.isascii()
        if _LETTER.search(text):
            languages = latin if ascii_only or not _CYRILLIC.search(text) else (*latin, CYRILLIC)
            words = f" {edged(text) if words is None else words} "
            for language in languages:
                if language in self._automata:
                    self._find_words(language, words, found)
        if ascii_only:
            return found
        if KHMER.search(text) and KHMER_SCRIPT in self._automata:
            self._find_khmer(text, found)
        if NO_EDGES.search(text) and EDGELESS in self._automata:
            automaton, uses = self._automata[EDGELESS]
            for pattern, start, end in automaton.find_matches_as_indexes(text, overlapping=True):
                found.append((start, end, uses[pattern][0]))
        return found

    def _find_words(self, language: str, words: str, found: list[Found]) -> None:
        automaton, uses = self._automata[language]
        for pattern, start, end in automaton.find_matches_as_indexes(words, overlapping=True):
            whole, endings = uses[pattern]
            if words[end] == " ":
                found.append((start, end - 1, whole))
                continue
            for ending, use in endings:
                if (match := ending.match(words, end)) is not None:
                    found.append((start, match.end() - 1, use))

    def _find_khmer(self, text: str, found: list[Found]) -> None:
        automaton, uses = self._automata[KHMER_SCRIPT]
        blanks = [match.start() for match in _BLANK_IN_KHMER.finditer(text)]
        if blanks:
            text = _BLANK_IN_KHMER.sub("", text)
            blanks = [position - number for number, position in enumerate(blanks)]
        length = len(text)
        for pattern, start, end in automaton.find_matches_as_indexes(text, overlapping=True):
            if (end == length or not _goes_on(text, end)) and not (start and text[start - 1] == COENG):
                if blanks:
                    start, end = start + bisect_right(blanks, start), end + bisect_left(blanks, end)
                found.append((start, end, uses[pattern][0]))


def _goes_on(text: str, end: int) -> bool:
    """Whether a Khmer term that ends here is only the beginning of a cluster or of a number."""
    after = text[end]
    return after in _CONTINUES or (after.isdigit() and text[end - 1].isdigit())


def automaton_of(language: str, term: str) -> str:
    """Which automaton a normalised term of a language belongs to."""
    if KHMER.search(term):
        return KHMER_SCRIPT
    if NO_EDGES.search(term):
        return EDGELESS
    if _CYRILLIC.search(term):
        return CYRILLIC
    return language if language in LATIN else "en"


def edged(text: str) -> str:
    """Return a normalised text with a blank for everything that is no letter, digit or apostrophe in a word."""
    text = text.translate(_ASCII_EDGES) if text.isascii() else _NO_LETTER.sub(" ", text)
    return _QUOTE.sub(" ", text) if "'" in text else text


def bits(mask: int) -> Iterable[int]:
    """The numbers of the bits that are set, from low to high."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


def merged(uses: Iterable[Use]) -> Use:
    """What a term stands for that is a term of several concepts."""
    given = tuple(uses)
    if len(given) == 1:
        return given[0]
    masks = [reduce(or_, column) for column in zip(*(use[:5] for use in given), strict=True)]
    tracked = tuple(sorted({number for use in given for number in use.tracked}))
    special = tuple(sorted({number for use in given for number in use.special}))
    return Use(masks[0], masks[1], masks[2], masks[3], masks[4], tracked, special)


def _automaton(terms: Mapping[str, Mapping[re.Pattern[str] | None, Use]]) -> tuple[Any, tuple[_Uses, ...]]:
    shared: dict[_Uses, _Uses] = {}
    uses = []
    for ways in terms.values():
        use = (merged(ways.values()), tuple((ending, use) for ending, use in ways.items() if ending is not None))
        uses.append(shared.setdefault(use, use))
    return AhoCorasick(list(terms), matchkind=MatchKind.Standard), tuple(uses)
