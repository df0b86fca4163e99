"""The languages of a text, by script and by the commonest words (triage.md section 3)."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from service.triage.matcher import edged
from service.triage.strict_yaml import load
from service.triage.text import normalise

UNDETERMINED = "und"
ROMANISED_KHMER = "kmr"

_KHMER = re.compile(r"[\u1780-\u17ff\u19e0-\u19ff]+")
_SCRIPTS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("ko", re.compile(r"[\u1100-\u11ff\u3130-\u318f\uac00-\ud7af]+")),
    ("th", re.compile(r"[\u0e00-\u0e7f]+")),
    ("ru", re.compile(r"[\u0400-\u052f]+")),
    ("zh", re.compile(r"[\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff]+")),
)
_KANA = re.compile(r"[\u3040-\u30ff]")
_LATIN = re.compile(r"[a-z]+")
_VIETNAMESE = re.compile(r"[ăđơưạảấầẩẫậắằẳẵặẹẻẽếềểễệỉịọỏốồổỗộớờởỡợụủứừửữựỳỵỷỹ]")
# Of so few words one that only one language has is enough.
_FEW = 5

_WORDS: Mapping[str, frozenset[str]] = {
    language: frozenset(str(words).split())
    for language, words in load(Path(__file__).with_name("languages.yaml")).items()
}
_OTHERS = tuple((language, words - _WORDS["en"]) for language, words in _WORDS.items() if language != "en")


class Spoken(NamedTuple):
    """What a text is written in: its main language, and the languages whose Latin words may stand in it."""

    language: str
    latin: tuple[str, ...]


def detect_language(text: str) -> str:
    """Return 'km', 'en', 'fr', 'zh', 'ja', 'ko', 'vi', 'th', 'ru', 'de', or 'und'.

    Khmer script counts most, for it is mixed with names and words of every other; romanised Khmer is 'km'.
    """
    copy = normalise(text).text
    return spoken(copy, frozenset(edged(copy).split())).language


def spoken(text: str, words: frozenset[str]) -> Spoken:
    """Return the languages of a normalised text; `words` are its words, as `edged` cuts them.

    English words are looked for in all but those that are clearly French, German or Vietnamese.
    """
    english = len(words & _WORDS["en"])
    counts = {language: found for language, common in _OTHERS if (found := len(words & common))} if words else {}
    ascii_only = text.isascii()
    if not ascii_only and _VIETNAMESE.search(text):
        counts["vi"] = counts.get("vi", 0) + 3
    enough = 1 if len(words) <= _FEW else 2
    most = max(counts.values(), default=0)
    others = [name for name, found in counts.items() if found >= enough and 2 * found >= max(english, most)]
    foreign = any(language != ROMANISED_KHMER and counts[language] > 2 * english for language in others)
    latin = ("name", *others) if foreign else ("name", "en", *others)
    if not ascii_only:
        length = sum(len(run) for run in _LATIN.findall(text))
        if _KHMER.search(text) and 3 * _length(_KHMER, text) >= length:
            return Spoken("km", latin)
        for language, script in _SCRIPTS:
            if script.search(text) and 2 * _length(script, text) >= length:
                return Spoken("ja" if language == "zh" and _KANA.search(text) else language, latin)
    best = max(counts, key=lambda language: counts[language], default="")
    if english and english >= counts.get(best, 0):
        return Spoken("en", latin)
    return Spoken("km" if best == ROMANISED_KHMER else best or UNDETERMINED, latin)


def _length(script: re.Pattern[str], text: str) -> int:
    return sum(len(run) for run in script.findall(text))
