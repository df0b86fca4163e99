"""Slips in longer Latin words: one letter missing, added, changed or two swapped (triage.md section 3, "Match")."""

import re
from collections.abc import Iterable

SHORTEST, LONGEST = 6, 24
SHORTEST_SOUND = 4
_ALIKE = tuple(
    (re.compile(pattern), same)
    for pattern, same in (
        ("kh", "k"),
        ("th", "t"),
        ("ph", "p"),
        ("ch|j", "c"),
        ("nh|gn", "n"),
        ("[aeiouwy]+", "a"),
        ("(.)\\1+", r"\1"),
        ("ar(?=[^a]|$)", "a"),
        ("ah$", "a"),
        ("b$", "p"),
        ("d$", "t"),
    )
)
_WORD = re.compile(r"\S+")
_LATIN = re.compile("[a-z]+")
_ENDINGS = ("", "s", "ed", "d", "ing", "er", "ers", "ly")


class Typos:
    """Finds the lexicon's word that a mistyped one stands for.

    vocabulary: the lexicon's words; those of six letters and more are found with one slip. ordinary: real words that
    look like a slip and are none. romanised: its words of romanised Khmer, which has no spelling: one is found in any
    that sounds alike.
    """

    def __init__(self, vocabulary: Iterable[str], ordinary: Iterable[str], romanised: Iterable[str] = ()) -> None:
        words = {word for word in vocabulary if word.isascii() and word.isalpha()}
        self._known = frozenset(ordinary) | {word + ending for word in words for ending in _ENDINGS}
        self._shortened: dict[str, str] = {}
        for word in sorted(word for word in words if len(word) >= SHORTEST):
            for short in (word, *_without_one(word)):
                self._shortened.setdefault(short, word)

        self._romanised = frozenset(romanised)
        self._sounds: dict[str, str] = {}
        for word in sorted(self._romanised):
            if len(sound := sound_of(word)) >= SHORTEST_SOUND:
                self._sounds.setdefault(sound, word)

    def correct(self, words: str, *, romanised: bool = False) -> dict[tuple[int, int], str]:
        """Return the words that are a slip away from the lexicon's, by position.

        words: a normalised text as service.triage.matcher.edged leaves it. romanised: whether Khmer in Latin letters
        stands in it.
        """
        shortest = SHORTEST - 2 if romanised else SHORTEST - 1
        meant: dict[str, str] = {}
        for word in set(words.split()) - self._known:
            if shortest <= len(word) <= LONGEST and word.isalpha() and word.isascii():
                found = self._sounds.get(sound_of(word)) if romanised and word not in self._romanised else None
                if found is None and len(word) >= SHORTEST - 1:
                    found = self._meant(word)
                if found is not None:
                    meant[word] = found
        if not meant:
            return {}
        return {match.span(): meant[match[0]] for match in _WORD.finditer(words) if match[0] in meant}

    def _meant(self, word: str) -> str | None:
        shortened = self._shortened
        if word in shortened:
            return shortened[word]
        for short in _without_one(word):
            meant = shortened.get(short)
            if meant is not None and len(word) >= SHORTEST and one_slip(word, meant):
                return meant
        return None


def latin_words(text: str) -> list[str]:
    """The words of plain Latin letters in a normalised text."""
    return _LATIN.findall(text)


def sound_of(word: str) -> str:
    """What a word of romanised Khmer has in common with its other spellings: vowels count only by their places."""
    for pattern, same in _ALIKE:
        word = pattern.sub(same, word)
    return word


def one_slip(left: str, right: str) -> bool:
    """Whether two words differ by one letter missing, added or changed, or by two neighbours swapped."""
    if len(left) > len(right):
        left, right = right, left
    if len(right) - len(left) > 1:
        return False
    start = 0
    while start < len(left) and left[start] == right[start]:
        start += 1
    if len(left) < len(right):
        return left[start:] == right[start + 1 :]
    swapped = left[start : start + 2] == right[start : start + 2][::-1] and left[start + 2 :] == right[start + 2 :]
    return swapped or left[start + 1 :] == right[start + 1 :]


def _without_one(word: str) -> list[str]:
    return [word[:position] + word[position + 1 :] for position in range(len(word))]
