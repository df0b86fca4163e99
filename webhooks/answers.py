"""What a person answered on a public form, and what that says to the rules (triage.md section 2, source `stated`)."""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime

import phonenumbers

from service.triage import PROVINCES
from service.triage.facts import FACTS, Fact, Source

QUESTIONS = ("what", "province", "kind", "now", "danger", "answer", "number", "back", "token")
REGION = "KH"
KH_CODE = 855
KH_LENGTHS = (8, 9)  # without the leading 0
LONGEST_NUMBER = 60  # as typed, with spaces and signs

# Written without plus. The library takes 008 for the way out of the country, and the rest for a number in Brazil.
WITHOUT_PLUS = re.compile(r"(?:00)?(855(?:[ ().-]*[0-9]){8,9})")

# English is the msgid of the catalogue; the order is that of the page.
KINDS: tuple[tuple[str, str], ...] = (
    ("hotel", "Hotel"),
    ("guesthouse", "Guesthouse"),
    ("karaoke", "Karaoke"),
    ("bar", "Bar"),
    ("beer_garden", "Beer garden"),
    ("massage", "Massage shop"),
    ("home", "A home"),
    ("school", "School"),
    ("residential_care", "Children’s centre"),
    ("orphanage", "Orphanage"),
    ("street", "Street or park"),
    ("beach", "Beach"),
    ("factory", "Factory or other work"),
    ("border", "At the border"),
    ("online", "On the phone or internet"),
    ("other", "Another place"),
)

WORDS_MISSING = "Write a few words about what happened"
NUMBER_WRONG = "Write the whole number, 9 or 10 digits"


@dataclass(frozen=True)
class Answers:
    """One filled-in form, as typed."""

    typed: dict[str, str] = field(default_factory=dict)

    def __getattr__(self, name: str) -> str:
        if name not in QUESTIONS:
            raise AttributeError(name)
        return self.typed.get(name, "")

    def __repr__(self) -> str:
        return "Answers(…)"  # the words of a tip must not reach a log or a traceback

    @property
    def content(self) -> bytes:
        """What was told, in a form that is equal exactly for equal answers. Asking for a number tells nothing."""
        asked = [name for name in QUESTIONS if name not in ("back", "token")]
        return b"\x00".join(self.typed.get(name, "").encode("utf-8", "replace") for name in asked)

    @property
    def wants_answer(self) -> bool:
        """Whether a text may be sent. Who types a number and picks nothing has asked for it."""
        return self.answer == "phone" or (self.answer == "" and self.number.strip() != "")

    @property
    def reply_allowed(self) -> bool | None:
        """What was said about being answered; None when nothing was."""
        if self.wants_answer:
            return True
        return False if self.answer == "no" else None

    @property
    def sender(self) -> str | None:
        """The number to answer to, E.164. A number beside "no" is not kept."""
        return e164(self.number) if self.wants_answer else None

    def wrong(self) -> dict[str, str]:
        """Return what needs correcting: question and message, in the order of the page."""
        found = {}
        if not _has_words(self.what):
            found["what"] = WORDS_MISSING
        if self.wants_answer and self.sender is None:
            found["number"] = NUMBER_WRONG
        return found

    def facts(self, at: datetime) -> tuple[Fact, ...]:
        """Return the stated facts. "I don't know", an untouched or an unknown answer states none."""
        said: list[tuple[str, str]] = []
        if self.danger in ("yes", "no"):
            said.append(("danger_now", self.danger))
        if self.now == "yes":
            said.append(("recency", "now"))
        if FACTS["province"].accepts(self.province):
            said.append(("province", self.province))
        if FACTS["venue_type"].accepts(self.kind):
            said.append(("venue_type", self.kind))
        if self.wants_answer:
            said.append(("safe_to_contact", "yes"))
        return tuple(Fact(name=name, value=value, source=Source.STATED, at=at) for name, value in said)


def read_answers(fields: Iterable[tuple[str, str]]) -> Answers:
    """Return the answers in `fields`, whatever nonce their names carry: ``what-1a2b3c4d`` answers ``what``.

    Names are matched without a token, so that an old or bent one loses no words. A repeated answer keeps every
    part of the words, and the first of anything else.
    """
    typed: dict[str, str] = {}
    for name, value in fields:
        question = name.partition("-")[0]
        if question not in QUESTIONS:
            continue
        value = value.replace("\r\n", "\n")  # as browsers encode a line break
        if question == "what" and typed.get("what"):
            typed["what"] += "\n" + value
        else:
            typed[question] = typed.get(question) or value
    return Answers(typed)


def e164(typed: str) -> str | None:
    """Return the number in `typed` as E.164, read as a Cambodian one unless it says otherwise, or None.

    Digits of any script are taken. A number whose operator the library does not know yet is taken too: only its
    length must be possible.
    """
    if len(typed) > LONGEST_NUMBER:
        return None
    digits = "".join(str(unicodedata.decimal(c)) if unicodedata.decimal(c, None) is not None else c for c in typed)
    plain = "".join(c for c in digits if unicodedata.category(c) != "Cf").strip()
    if any(unicodedata.category(c).startswith("L") for c in plain):
        return None  # the library reads letters as keys of a keypad, and a stranger would be written to
    if whole := WITHOUT_PLUS.fullmatch(plain):
        plain = "+" + whole[1]
    try:
        number = phonenumbers.parse(plain, REGION)
    except phonenumbers.NumberParseException:
        return None
    if number.country_code == KH_CODE:
        possible = len(phonenumbers.national_significant_number(number)) in KH_LENGTHS
    else:
        possible = phonenumbers.is_possible_number(number)
    if not possible or number.extension:
        return None
    return str(phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164))


def province_names() -> tuple[tuple[str, str, str], ...]:
    """Return code, Khmer and English name of each province, in the order of the page."""
    return tuple((code, names.km, names.en) for code, names in PROVINCES.items())


def _has_words(text: str) -> bool:
    return any(not c.isspace() and unicodedata.category(c) not in ("Cf", "Cc") for c in text)
