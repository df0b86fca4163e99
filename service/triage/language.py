"""The language of a text, by script and by its commonest words (triage.md section 3)."""

import re
from collections.abc import Mapping
from pathlib import Path

from service.triage.strict_yaml import load

UNDETERMINED = "und"

_KHMER = re.compile(r"[\u1780-\u17ff\u19e0-\u19ff]+")
_SCRIPTS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("ko", re.compile(r"[\u1100-\u11ff\u3130-\u318f\uac00-\ud7af]+")),
    ("th", re.compile(r"[\u0e00-\u0e7f]+")),
    ("ru", re.compile(r"[\u0400-\u052f]+")),
    ("zh", re.compile(r"[\u3400-\u9fff\U00020000-\U0003ffff]+")),
)
_ASCII = re.compile(r"[A-Za-z]+")
_LATIN = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")
_VIETNAMESE = re.compile(r"[ăđơưạảấầẩẫậắằẳẵặẹẻẽếềểễệỉịọỏốồổỗộớờởỡợụủứừửữựỳỵỷỹ]")

_WORDS: Mapping[str, frozenset[str]] = {
    language: frozenset(str(words).split())
    for language, words in load(Path(__file__).with_name("languages.yaml")).items()
}


def detect_language(text: str) -> str:
    """Return 'km', 'en', 'fr', 'zh', 'ko', 'vi', 'th', 'ru', 'de', or 'und'.

    Khmer script counts most, for it is mixed with names and words of every other; romanised Khmer is 'km'.
    """
    if not text.isascii():
        latin = _length(_ASCII, text)
        if _KHMER.search(text) and 3 * _length(_KHMER, text) >= latin:
            return "km"
        for language, script in _SCRIPTS:
            if script.search(text) and 2 * _length(script, text) >= latin:
                return language
    lowered = text.lower()
    pieces = set(lowered.split())
    if 3 * len(pieces & _WORDS["en"]) >= len(pieces) > 4:
        return "en"
    words = set(_LATIN.findall(lowered))
    counts = {language: len(words & common) for language, common in _WORDS.items()}
    if not text.isascii() and _VIETNAMESE.search(lowered):
        counts["vi"] += 3
    best = max(counts, key=lambda language: counts[language])
    return best if counts[best] else UNDETERMINED


def _length(script: re.Pattern[str], text: str) -> int:
    return len(text) - len(script.sub("", text))
