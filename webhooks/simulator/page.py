"""The simulator's page in Khmer and English: what phones, people on duty and the provider's log show, in words."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

from babel.messages.pofile import read_po
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from webhooks.simulator.phones import Phone, Phones, Text
from webhooks.simulator.provider import Callbacks, Exchange, Fault

HERE = Path(__file__).resolve().parent
CATALOGUE = HERE / "locales" / "km" / "LC_MESSAGES" / "simulator.po"
PHNOM_PENH = timezone(timedelta(hours=7))  # no summer time
SHOWN = 40  # requests, the newest
WORDS = frozenset({"Body", "SpeechResult", "TranscriptionText", "Digits"})  # fields that people said or typed

EXAMPLES = (
    "សូមជួយផង ក្មេងស្រីម្នាក់ត្រូវគេចាក់សោក្នុងបន្ទប់ឥឡូវនេះ នៅផ្ទះសំណាក់ក្បែរផ្សារ ខេត្តសៀមរាប",
    "គេឱ្យលុយគ្រួសារ ដើម្បីកុំឱ្យប្តឹង។ ក្មេងអាយុ ១៤ ឆ្នាំ នៅខេត្តកំពង់ចាម កាលពីសប្តាហ៍មុន",
    "មណ្ឌលកុមារនៅតាមផ្លូវទៅបឹង ខេត្តព្រះសីហនុ គ្មានច្បាប់អនុញ្ញាតទេ",
    "A child is in danger now at the guesthouse by the old market in Siem Reap",
    "Someone offered the family money to keep quiet. The girl is 14. Kampong Cham, last week",
    "A driver at the beach sells tourists visits to an orphanage",
    "ជួយ",
    "1",
    "២",
    "STOP",
    "START",
)
"""Texts to pick from. The Khmer is an unreviewed draft. STOP and START are the provider's own words."""


def mark(message: str) -> str:
    """Return `message`: it stands in a table and is looked up later, so the catalogue needs it."""
    return message


OPERATIONS: Mapping[str, str] = {
    "*": mark("anything"),
    "messages.create": mark("sending a text"),
    "messages.list": mark("a list of texts"),
    "messages.fetch": mark("one text"),
    "messages.delete": mark("deleting a text"),
}
HOWS: Mapping[str, str] = {
    "silent before": mark("does nothing and never answers"),
    "silent after": mark("does it and never answers"),
    "hang up before": mark("does nothing and hangs up"),
    "hang up after": mark("does it and hangs up"),
    "500 before": mark("does nothing and answers 500"),
    "500 after": mark("does it and answers 500"),
    "garbled after": mark("does it and answers with rubbish"),
    "429": mark("says: too many at once (429)"),
    "401": mark("refuses the key (401)"),
    "20009": mark("says: not final yet (20009)"),
    "21610": mark("says: this number has opted out (21610)"),
}
PUBLIC, QUEUE = mark("Public pages"), mark("Queue")
"""Other pages of the demo."""

FOR_EVER = mark("until all is well again")
TIMES: Mapping[str, str] = {"1": mark("once"), "3": mark("three times"), "": FOR_EVER}
OUTCOMES: Mapping[str, str] = {
    "delivered": mark("arrived"),
    "undelivered": mark("undelivered: the phone never got it"),
    "failed": mark("failed: never sent"),
    "no receipt": mark("sent, and nobody knows whether they arrived"),
    "blocked": mark("accepted, then refused: opted out"),
    "blocked at create": mark("refused at once: opted out"),
}
CALLBACKS: Mapping[str, tuple[str, Callbacks]] = {
    "well": (mark("in time and in order"), Callbacks()),
    "shuffled": (mark("in any order"), Callbacks(shuffled=True, late=timedelta(seconds=5))),
    "doubled": (mark("twice each"), Callbacks(doubled=True)),
    "late": (mark("up to a minute late"), Callbacks(late=timedelta(minutes=1))),
    "missing": (mark("never"), Callbacks(missing=1.0)),
}

_REST_PATH = re.compile("^/2010-04-01/Accounts/AC[0-9a-f]{32}")
_KHMER = re.compile("[\u1780-\u17ff]")
_KHMER_DIGITS = str.maketrans("0123456789", "០១២៣៤៥៦៧៨៩")


class Words:
    """One language. Calling it translates an English text and fills its ``{placeholders}``."""

    def __init__(self, language: str) -> None:
        self.language = language
        self._texts = {} if language == "en" else read_catalogue()

    def __call__(self, text: str, **values: object) -> str:
        """Return `text` in this language."""
        found = self._texts.get(text, text)
        return found.format(**values) if values else found

    def digits(self, number: object) -> str:
        """Return a number or an hour in this language's digits."""
        return str(number) if self.language == "en" else str(number).translate(_KHMER_DIGITS)

    def hour(self, moment: datetime, pattern: str = "%H:%M") -> str:
        """Return a moment's hour in Phnom Penh."""
        return self.digits(moment.astimezone(PHNOM_PENH).strftime(pattern))


@cache
def read_catalogue() -> Mapping[str, str]:
    """Return the Khmer texts by their English ones."""
    with CATALOGUE.open("rb") as source:
        messages = read_po(source, locale="km", abort_invalid=True)
    return {str(message.id): str(message.string) for message in messages if message.id and message.string}


@dataclass(frozen=True, slots=True)
class Line:
    """One text of a thread. mine: the phone sent it. told: what became of it, and whether that is bad news."""

    key: str
    mine: bool
    hour: str
    words: str
    told: tuple[tuple[str, bool], ...]
    waiting: bool


def render(
    phones: Phones,
    language: str,
    *,
    wrong: Mapping[str, str] | None = None,
    elsewhere: Sequence[tuple[str, str]] = (),
) -> tuple[str, str, str]:
    """Return the page, its main part alone, and the version of that part, which changes with every word of it.

    wrong: what is wrong with what was just asked for, by phone number or "faults". elsewhere: name and address of
    other pages.
    """
    words = Words(language)
    common = {
        "_": words,
        "digits": words.digits,
        "tongue": lambda text: "km" if _KHMER.search(text) else "en",
        "lang": language,
        "other": "en" if language == "km" else "km",
        "query": query_of(language),
        "wrong": {place: words(text) for place, text in (wrong or {}).items()},
    }
    shown = common | _values(phones, words)
    main = _template("main.html").render(shown)
    version = blake2b(main.encode(), digest_size=8).hexdigest()
    page = _template("page.html").render(shown, version=version, elsewhere=elsewhere)
    return page, main, version


def _values(phones: Phones, words: Words) -> dict[str, Any]:
    hotline = next(iter(phones.provider.numbers), "")
    return {
        "phones": [
            _thread(phones, phone, words)
            | {
                "place": place,
                "hotline": spaced(hotline),
                "draft": phone.draft,
                "opted_out": phone.number in phones.provider.opted_out,
                "last": next((t.message.sid for t in reversed(phone.texts) if t.message.direction == "inbound"), ""),
            }
            for place, phone in enumerate(phones.by_number.values(), 1)
        ],
        "duty": [
            _thread(phones, person.phone, words, prefix="duty-") | {"posts": person.posts}
            for person in phones.duty.values()
        ],
        "numbers": [(key_of(number), number, spaced(number)) for number in phones.numbers],
        "troubles": list(_troubles(phones, words)),
        "log": list(_rows(phones.provider.log, words)),
        "newest": words.digits(SHOWN),
        "examples": EXAMPLES,
        "operations": _options(OPERATIONS, words),
        "hows": _options(HOWS, words),
        "times": _options(TIMES, words),
        "outcomes": _options(OUTCOMES, words),
        "callbacks": _options({name: text for name, (text, _) in CALLBACKS.items()}, words),
    }


def spaced(number: str) -> str:
    """Return a number as people read it: ``+855 0000 0001``."""
    found = re.fullmatch(r"(\+855)([0-9]{4})([0-9]+)", number)
    return " ".join(found.groups()) if found else number


def _options(table: Mapping[str, str], words: Words) -> list[tuple[str, str]]:
    return [(value, words(text)) for value, text in table.items()]


def key_of(number: str) -> str:
    """Return the name of a number in the page's addresses."""
    return re.sub(r"\W", "", number)


def query_of(language: str) -> str:
    """Return the query string that asks for `language`; none for the first of the two."""
    return "" if language == "km" else f"?lang={language}"


# --- threads --------------------------------------------------------------------------------------------


def _thread(phones: Phones, phone: Phone, words: Words, *, prefix: str = "") -> dict[str, Any]:
    return {
        "key": prefix + key_of(phone.number),
        "number": phone.number,
        "shown": spaced(phone.number),
        "texts": [_line(text, words, kept=text.message.sid in phones.provider.messages) for text in phone.texts],
    }


def _line(text: Text, words: Words, *, kept: bool) -> Line:
    message = text.message
    mine = message.direction == "inbound"
    told = _sent(text, words) if mine else _got(text, words)
    if not kept:
        told.append((words("Twilio’s copy is deleted"), False))
    elif not message.body and text.words:
        told.append((words("Twilio’s copy is emptied"), False))
    waiting = text.deliveries > len(text.answers) if mine else message.status != "delivered"
    return Line(message.sid, mine, words.hour(message.created_at), text.words, tuple(told), waiting)


def _sent(text: Text, words: Words) -> list[tuple[str, bool]]:
    """Return what the app answered to a text of this phone."""
    told = [_answered(exchange, words) for exchange in text.answers]
    if text.deliveries > len(text.answers):
        told.append((words("on its way to the app"), False))
    return told


def _answered(exchange: Exchange, words: Words) -> tuple[str, bool]:
    values = {"status": exchange.status, "ms": words.digits(exchange.milliseconds)}
    if exchange.status is None:
        return words("nobody answered; Twilio would keep it, and the app fetch it later"), True
    if not 200 <= exchange.status < 300:
        return words("not taken: {status}; Twilio would keep it, and the app fetch it later", **values), True
    if exchange.note:
        return f"{words('taken: {status}, {ms} ms', **values)} · {exchange.note}", True
    return words("taken: {status}, {ms} ms", **values), False


def _got(text: Text, words: Words) -> list[tuple[str, bool]]:
    """Return how far a text to this phone is."""
    message = text.message
    if message.status == "delivered":
        return [(words("delivered"), False)]
    if message.status in ("undelivered", "failed"):
        return [(words("not delivered: {status}, {code}", status=message.status, code=message.error_code), True)]
    return [(words("on its way: {status}", status=message.status), False)]


# --- what goes wrong, and the log -----------------------------------------------------------------------


def _troubles(phones: Phones, words: Words) -> Iterator[tuple[str, str]]:
    """Yield a key and a text for each thing that now goes wrong, and one text if nothing does."""
    found = list(_faults(phones, words))
    for number, outcome in phones.provider.outcomes.items():
        if outcome != "delivered":
            text = words(
                "Texts to {number} end as: {outcome}.", number=spaced(number), outcome=words(OUTCOMES[outcome])
            )
            found.append((f"to-{key_of(number)}", text))
    habit = next((name for name, (_, habit) in CALLBACKS.items() if habit == phones.provider.callbacks), "well")
    if habit != "well":
        found.append(("callbacks", words("Status callbacks come: {how}.", how=words(CALLBACKS[habit][0]))))
    yield from found or [("none", words("All is well: the provider does what it is asked for."))]


def _faults(phones: Phones, words: Words) -> Iterator[tuple[str, str]]:
    for place, fault in enumerate(phones.faults):
        yield (
            f"fault-{place}",
            words(
                "When the app asks for {what}, the provider {how}: {times}.",
                what=words(OPERATIONS.get(fault.operation, fault.operation)),
                how=words(HOWS.get(fault.how, fault.how)),
                times=_times(phones, fault, words),
            ),
        )


def _times(phones: Phones, fault: Fault, words: Words) -> str:
    if fault.times == 1:
        return words("once more")
    if fault.times is not None:
        return words("{n} times more", n=words.digits(fault.times))
    if phones.until is not None:
        return words("until {hour}", hour=words.hour(phones.until, "%H:%M:%S"))
    return words(FOR_EVER)


def _rows(log: Sequence[Exchange], words: Words) -> Iterator[dict[str, Any]]:
    """Yield the newest requests. The key of a row stays while the log moves on."""
    keys: dict[str, int] = {}
    rows = []
    for exchange in log:
        moment = f"{exchange.at:%d%H%M%S%f}"
        keys[moment] = keys.get(moment, 0) + 1
        rows.append((f"{moment}-{keys[moment]}", exchange))
    for key, exchange in reversed(rows[-SHOWN:]):
        yield {
            "key": key,
            "hour": words.hour(exchange.at, "%H:%M:%S"),
            "side": words("Twilio to app") if exchange.side == "webhook" else words("app to Twilio"),
            "method": exchange.method,
            "path": _REST_PATH.sub("…", exchange.path),
            "answer": words("no answer") if exchange.status is None else str(exchange.status),
            "late": exchange.status is None or exchange.status >= 400,
            "took": words("{ms} ms", ms=words.digits(exchange.milliseconds)),
            "fields": [
                ("", exchange.path, False),
                *((name, value, name in WORDS) for name, value in exchange.fields.items()),
                *([("X-Twilio-Signature", exchange.signature, False)] if exchange.signature else ()),
            ],
            "note": exchange.note,
        }


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )


def _template(name: str) -> Any:
    return _environment().get_template(name)
