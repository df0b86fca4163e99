"""Whether a new password is one that is tried first: common words, patterns, the person's own names (keys.md 3).

The list beside this file is short and from general knowledge. Fifteen characters or more rule out most leaked
passwords; what is left is long only because it repeats, follows the keyboard or strings a few common words together.
"""

import re
import unicodedata
from collections.abc import Iterable
from functools import cache
from pathlib import Path

LIST = Path(__file__).with_name("common.txt")
OWN_CHARACTERS = 7  # that many must be left when all that is guessed first is taken away

_ROWS = ("1234567890", "qwertyuiop", "asdfghjkl", "zxcvbnm", "azertyuiop", "abcdefghijklmnopqrstuvwxyz", "០១២៣៤៥៦៧៨៩")
_RUN = 3
_LOOKS_LIKE = str.maketrans("013457@$!€", "oieastasie")
_YEAR = re.compile(r"(?:19|20)\d\d")
_ONE_AGAIN = re.compile(r"(.)\1{2,}")


@cache
def _common() -> frozenset[str]:
    lines = LIST.read_text(encoding="utf-8").splitlines()
    return frozenset(word for line in lines if not line.startswith("#") for word in _plain(line).split())


def is_guessable(password: str, names: Iterable[str] = ()) -> bool:
    """Say whether little of `password` is left without what is guessed first.

    Guessed first are the words of the list, also with the usual digits for letters; rows of the keyboard and of the
    alphabet, forwards and backwards; years; what is repeated; and `names`: the account, the person, the organisation.
    """
    plain = _plain(password)
    own = {_letters(part) for name in names for part in (name, *re.split(r"[\s._-]+", name))}
    words = sorted({word for word in _common() | own if len(word) >= _RUN}, key=len, reverse=True)
    return min(_left(_letters(text), words) for text in (plain, plain.translate(_LOOKS_LIKE))) < OWN_CHARACTERS


def _left(text: str, words: list[str]) -> int:
    """Return how many different characters of `text` nothing known explains."""
    rest = _without_repeats(text)
    for word in words:
        rest = rest.replace(word, " ")
    rest = _ONE_AGAIN.sub(r"\1", _YEAR.sub(" ", _without_rows(rest)))
    parts = list(dict.fromkeys(rest.split()))  # the same remainder twice is known the second time
    return sum(len(part) for part in parts)


def _without_repeats(text: str) -> str:
    """Return the shortest text that, said again and again, gives `text`; `text` itself when there is none."""
    for length in range(1, len(text) // 2 + 1):
        unit = text[:length]
        if (unit * (len(text) // length + 1))[: len(text)] == text:
            return unit
    return text


def _without_rows(text: str) -> str:
    """Return `text` with each run of three or more neighbours of a row taken out."""
    rows = [row for line in _ROWS for row in (line, line[::-1])]
    kept, at = [], 0
    while at < len(text):
        longest = max((_run(text, at, row) for row in rows), default=0)
        kept.append(" " if longest >= _RUN else text[at])
        at += longest if longest >= _RUN else 1
    return "".join(kept)


def _run(text: str, at: int, row: str) -> int:
    place, length = row.find(text[at]), 0
    while place >= 0 and at + length < len(text) and place + length < len(row):
        if text[at + length] != row[place + length]:
            break
        length += 1
    return length


def _letters(text: str) -> str:
    """Return letters, their marks and digits: what stands between them makes nothing harder to guess."""
    return "".join(sign for sign in _plain(text) if unicodedata.category(sign)[0] in "LMN")


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()
