"""Two languages: the catalogue, digits, hours in Phnom Penh, and how long is left.

English is the key of the catalogue, ``locales/km/LC_MESSAGES/dashboards.po``, which is read once at start-up.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from enum import StrEnum
from pathlib import Path
from typing import Any

from babel.dates import format_datetime
from babel.messages.pofile import read_po

PHNOM_PENH = timezone(timedelta(hours=7))  # no summer time
CATALOGUE = Path(__file__).with_name("locales") / "km" / "LC_MESSAGES" / "dashboards.po"

_KHMER_DIGITS = str.maketrans("0123456789", "០១២៣៤៥៦៧៨៩")
_MINUTE, _HOUR, _DAY = 60, 3600, 86400


class Language(StrEnum):
    """The languages of the staff app. Khmer is the default."""

    KM = "km"
    EN = "en"


def mark(message: str) -> str:
    """Return `message`: it stands in a table of the code and is looked up later, so the catalogue needs it."""
    return message


def read_catalogue(path: Path = CATALOGUE) -> dict[str, str]:
    """Return the translations of a ``.po`` file, by English message. What is not translated is not in it."""
    with path.open("rb") as file:
        catalogue = read_po(file, locale="km")
    return {
        m.id: m.string for m in catalogue if isinstance(m.id, str) and isinstance(m.string, str) and m.id and m.string
    }


class Words:
    """The words of one language. Calling it translates."""

    def __init__(self, language: Language, catalogue: Mapping[str, str]) -> None:
        self.language = language
        self._catalogue = catalogue if language is Language.KM else {}

    def __call__(self, message: str, **values: object) -> str:
        """Return `message` in this language, its ``{placeholders}`` filled with `values`."""
        text = self._catalogue.get(message, message)
        return text.format(**values) if values else text

    def knows(self, message: str) -> bool:
        """Say whether `message` can be shown in this language."""
        return self.language is Language.EN or message in self._catalogue

    def of_two(self, english: str, khmer: str) -> str:
        """Return the one of two texts that is in this language; the other if it is empty."""
        return (khmer or english) if self.language is Language.KM else (english or khmer)

    def digits(self, text: object) -> str:
        """Return a number or an hour in this language's digits."""
        return str(text).translate(_KHMER_DIGITS) if self.language is Language.KM else str(text)

    # --- hours ---

    def _format(self, moment: datetime, english: str, khmer: str) -> str:
        local = moment.astimezone(PHNOM_PENH)
        pattern = khmer if self.language is Language.KM else english
        return self.digits(format_datetime(local.replace(tzinfo=None), pattern, locale=self.language.value))

    def moment(self, moment: datetime) -> str:
        """Return a moment in full: ``Tuesday 9 March, 14:21``."""
        return self._format(moment, "EEEE d MMMM, HH:mm", "'ថ្ងៃ'EEEE 'ទី'd MMMM 'ម៉ោង' HH:mm")

    def stamp(self, moment: datetime) -> str:
        """Return a moment with its year: ``9 March 2027, 14:21``."""
        return self._format(moment, "d MMMM y, HH:mm", "'ទី'd MMMM y 'ម៉ោង' HH:mm")

    def day_and_hour(self, moment: datetime, now: datetime) -> str:
        """Return a past moment: ``today 14:05``, ``8 Mar 19:41``, ``8 Mar 2026 19:41``."""
        there, here = moment.astimezone(PHNOM_PENH), now.astimezone(PHNOM_PENH)
        if there.date() == here.date():
            return self("today {hour}", hour=self._format(moment, "HH:mm", "HH:mm"))
        if there.year == here.year:
            return self._format(moment, "d MMM HH:mm", "d MMM HH:mm")
        return self._format(moment, "d MMM y HH:mm", "d MMM y HH:mm")

    def hour_of(self, moment: datetime) -> str:
        """Return a moment that is known to the hour only: ``8 Mar, 19 h``."""
        return self._format(moment, "d MMM, HH'h'", "d MMM 'ម៉ោង' HH")

    def deadline(self, due: datetime, now: datetime) -> str:
        """Return the hour of a deadline, with as much of the day as is needed: ``14:30``, ``Wed 01:36``."""
        days = (due.astimezone(PHNOM_PENH).date() - now.astimezone(PHNOM_PENH).date()).days
        if days == 0:
            return self._format(due, "HH:mm", "HH:mm")
        if 0 < days < 7:
            return self._format(due, "EEE HH:mm", "EEE HH:mm")
        return self._format(due, "d MMM HH:mm", "d MMM HH:mm")

    def left(self, due: datetime, now: datetime) -> str:
        """Return how long is left, or how late it is: ``9 min``, ``3 h 05``, ``2 d 3 h``, ``6 min late``."""
        seconds = int((due - now).total_seconds())
        if due < now:
            return self("{time} late", time=self._span(max(-seconds, _MINUTE)))
        return self._span(seconds) if seconds >= _MINUTE else self("under 1 min")

    def _span(self, seconds: int) -> str:
        days, hours, minutes = seconds // _DAY, seconds % _DAY // _HOUR, seconds % _HOUR // _MINUTE
        values: dict[str, Any] = {
            "days": self.digits(days),
            "hours": self.digits(hours),
            "minutes": self.digits(minutes),
        }
        if days and hours:
            return self("{days} d {hours} h", **values)
        if days:
            return self("{days} d", **values)
        if hours and minutes:
            return self("{hours} h {minutes}", **values | {"minutes": self.digits(f"{minutes:02}")})
        if hours:
            return self("{hours} h", **values)
        return self("{minutes} min", **values)
