"""Both languages are complete: every message has its Khmer, with the same placeholders and nothing left over."""

import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from babel.messages.extract import extract
from babel.messages.pofile import read_po
from jinja2.ext import babel_extract

import dashboards
from dashboards import downloads, terms, walls
from dashboards.words import CATALOGUE, PHNOM_PENH, Language, Words, read_catalogue
from service import exclusions
from service.cases import HOT_FLAGS
from service.ledger.events import EventType
from service.models import Channel, ClockKind, JobState, Level, Role, State
from service.outbox import ACKNOWLEDGE, RING
from service.reading import REASONS
from service.triage import FACTS, FLAGS, PROVINCES

FOLDER = Path(dashboards.__file__).parent
KEYWORDS = {"_": None, "mark": None, "words": None, "self": None}
NOW = datetime(2027, 3, 9, 14, 21, tzinfo=PHNOM_PENH)


def messages() -> Iterator[tuple[str, str]]:
    """Every message that a template or a module shows, with its file."""
    for path in sorted(FOLDER.rglob("*.py")):
        with path.open("rb") as file:
            for _, message, _, _ in extract("python", file, keywords=KEYWORDS, options={"encoding": "utf-8"}):
                yield message if isinstance(message, str) else message[0], path.name
    for path in sorted((FOLDER / "templates").glob("*.html")):
        with path.open("rb") as file:
            for _, _, message, _ in babel_extract(file, ["_"], [], {"silent": "false"}):
                yield message if isinstance(message, str) else message[0], path.name


def placeholders(text: str) -> list[str]:
    return sorted(re.findall(r"\{(\w*)\}", text))


def test_every_message_is_translated() -> None:
    khmer = read_catalogue()

    assert {text: file for text, file in messages() if text not in khmer} == {}


def test_the_catalogue_has_no_message_that_nobody_shows() -> None:
    assert set(read_catalogue()) - {text for text, _ in messages()} == set()


def test_translations_have_the_same_placeholders() -> None:
    wrong = {text for text, khmer in read_catalogue().items() if placeholders(text) != placeholders(khmer)}

    assert wrong == set()


def test_translations_are_khmer() -> None:
    only_placeholders = {"{name}, {role}", "{said}, {hour}"}

    without = {text for text, khmer in read_catalogue().items() if not re.search("[\u1780-\u17ff]", khmer)}

    assert without == only_placeholders


def test_the_catalogue_says_that_nobody_has_reviewed_it() -> None:
    with CATALOGUE.open("rb") as file:
        assert "unreviewed" in read_po(file, locale="km").header_comment.lower()


@pytest.mark.parametrize(
    ("table", "codes"),
    [
        (terms.LEVELS, Level),
        (terms.STATES, State),
        (terms.ROLES, [*Role, "system"]),
        (terms.CHANNELS, Channel),
        (terms.NEXT, ClockKind),
        (terms.DUE, ClockKind),
        (terms.DUE_P4, ClockKind),
        (terms.OPENING, REASONS),
        (terms.FLAGS, FLAGS),
        (terms.FLAGS, HOT_FLAGS),
        (terms.FACTS, set(FACTS) - terms.COUNTED_ONLY),
        (terms.VENUES, FACTS["venue_type"].values),
        (PROVINCES, FACTS["province"].values),
        (terms.EVENTS, EventType),
        (terms.OUTCOMES, JobState),
        (terms.TEXTS, [ACKNOWLEDGE, RING]),
        (terms.TAKEN_OUT, downloads.PARTS),
        (walls.WHYS, [*exclusions.WHYS, exclusions.SELF]),
    ],
)
def test_every_code_has_words(table, codes) -> None:
    assert [code for code in codes if code not in table] == []


def test_every_value_of_a_fact_has_words() -> None:
    words = Words(Language.KM, read_catalogue())
    shown = {
        (name, value): terms.value(words, name, value)
        for name, fact in FACTS.items()
        if name not in terms.COUNTED_ONLY
        for value in fact.values
    }

    assert {key for key, text in shown.items() if not re.search("[\u1780-\u17ff]", text)} == set()


@pytest.mark.parametrize(
    ("due", "english", "khmer"),
    [
        ({"minutes": 9}, "9 min", "៩ នាទី"),
        ({"minutes": 9, "seconds": 59}, "9 min", "៩ នាទី"),
        ({"seconds": 59}, "under 1 min", "តិចជាង ១ នាទី"),
        ({"minutes": -6}, "6 min late", "ហួស ៦ នាទី"),
        ({"seconds": -1}, "1 min late", "ហួស ១ នាទី"),
        ({"hours": 3, "minutes": 5}, "3 h 05", "៣ ម៉ោង ០៥"),
        ({"hours": 14}, "14 h", "១៤ ម៉ោង"),
        ({"hours": -2, "minutes": -10}, "2 h 10 late", "ហួស ២ ម៉ោង ១០"),
        ({"days": 2, "hours": 3, "minutes": 50}, "2 d 3 h", "២ ថ្ងៃ ៣ ម៉ោង"),
        ({"days": 3}, "3 d", "៣ ថ្ងៃ"),
    ],
)
def test_time_left_in_both_languages(due: dict[str, int], english: str, khmer: str) -> None:
    for language, text in ((Language.EN, english), (Language.KM, khmer)):
        assert Words(language, read_catalogue()).left(NOW + timedelta(**due), NOW) == text


@pytest.mark.parametrize(
    ("due", "english", "khmer"),
    [
        ({"minutes": 9}, "14:30", "១៤:៣០"),
        ({"hours": 11, "minutes": 15}, "Wed 01:36", "ពុធ ០១:៣៦"),
        ({"days": 6}, "Mon 14:21", "ចន្ទ ១៤:២១"),
        ({"days": 7}, "16 Mar 14:21", "១៦ មីនា ១៤:២១"),
        ({"days": -1}, "8 Mar 14:21", "៨ មីនា ១៤:២១"),
    ],
)
def test_a_deadline_has_as_much_of_the_day_as_it_needs(due: dict[str, int], english: str, khmer: str) -> None:
    for language, text in ((Language.EN, english), (Language.KM, khmer)):
        assert Words(language, read_catalogue()).deadline(NOW + timedelta(**due), NOW) == text


def test_a_code_without_words_is_shown_as_it_is() -> None:
    words = Words(Language.EN, {})

    assert terms.term(words, terms.FLAGS, "a_new_flag") == "a new flag"
    assert terms.step(words, "case:new:event", {}, {}) == "case new event"
    assert terms.due(words, "P2", "new_clock", "14:30") == "by 14:30"
