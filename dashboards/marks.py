"""Characters that a reader cannot see, made visible: a tip may hide or turn words with them (threats.md, T-22)."""

import unicodedata

_KEPT = frozenset("\n\t")
_JOINERS = frozenset("\u200b\u200c\u200d")
# Not formats or controls by their category, but nothing is seen of them either.
_BLANK = frozenset("\u115f\u1160\u17b4\u17b5\u2028\u2029\u3164\uffa0")


def visible(text: str) -> str:
    """Return `text` with each control, format and direction character written as ``⟦U+202E⟧``.

    Line ends become ``\\n``; they and tabs stay. Zero-width spaces and joiners stay between two Khmer letters,
    where they are ordinary spelling, and are written out everywhere else.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return "".join(_shown(text, place, sign) for place, sign in enumerate(text))


def _shown(text: str, place: int, sign: str) -> str:
    if sign in _KEPT or (sign not in _BLANK and unicodedata.category(sign) not in ("Cc", "Cf", "Cs")):
        return sign
    if sign in _JOINERS and _khmer(text[place - 1 : place]) and _khmer(text[place + 1 : place + 2]):
        return sign
    return f"⟦U+{ord(sign):04X}⟧"


def _khmer(sign: str) -> bool:
    return "\u1780" <= sign <= "\u17ff"
