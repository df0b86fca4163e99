"""The public pages: Jinja2 templates and Babel catalogues, read once at start-up (DESIGN section 8, Web).

Pages are the same bytes for everybody as far as they can be, so what never changes is rendered once.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from pathlib import Path
from types import MappingProxyType

from babel.messages.pofile import read_po
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from service.errors import Misconfigured

HERE = Path(__file__).resolve().parent
STATIC = HERE / "static"
LANGUAGES = ("km", "en")  # the first is the default
LEAVE_SENT_SECONDS = 10
LEAVE_FORM_SECONDS = 20 * 60

# What the bilingual pages say, and whether they carry the numbers to call: a person may have been sending words.
_NOTICES: Mapping[int, tuple[str, bool]] = MappingProxyType(
    {
        400: ("unreadable", True),
        403: ("nothing", False),
        404: ("nothing", False),
        405: ("nothing", False),
        408: ("slow", True),
        409: ("failed", True),
        413: ("long", True),
        414: ("unreadable", True),
        415: ("words", True),
        422: ("unreadable", True),
        431: ("unreadable", True),
        500: ("failed", True),
        503: ("full", True),
    }
)
_CALL = re.compile(r"(\+?[0-9][0-9 ]*)(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Call:
    """A number to call in danger: settings say it like ``1280 Child helpline``."""

    number: str
    label: str

    @property
    def digits(self) -> str:
        """The number as a tel: address takes it."""
        return self.number.replace(" ", "")


class Pages:
    """All public pages in all languages. Holds nothing of any request."""

    def __init__(self, emergency_numbers: Sequence[str]) -> None:
        """Read templates and catalogues. Raises Misconfigured for a number that nobody could call."""
        self.calls = tuple(_call(text) for text in emergency_numbers)
        self._catalogues = {language: catalogue(language) for language in LANGUAGES}
        self.notices: Mapping[int, bytes] = MappingProxyType(
            {status: self._notice(words, calls) for status, (words, calls) in _NOTICES.items()}
        )

    def translate(self, language: str) -> Callable[[str], str]:
        """Return the function from an English text to `language`."""
        words = self._catalogues[language]
        return lambda text: words.get(text, text)

    def render(self, name: str, language: str, **values: object) -> bytes:
        """Return the page `name` in `language`."""
        template = _templates().get_template(f"{name}.html")
        return template.render(
            calls=self.calls,
            _=self.translate(language),
            lang=language,
            other="en" if language == "km" else "km",
            query="" if language == LANGUAGES[0] else f"?lang={language}",
            **values,
        ).encode()

    def _notice(self, words: str, calls: bool) -> bytes:
        """Return a page in all languages: it answers requests of which nothing is known."""
        texts = [(language, self.translate(language)) for language in LANGUAGES]
        return self.render("notice", LANGUAGES[0], words=words, with_calls=calls, texts=texts)


def language_of(query: bytes) -> str:
    """Return the language that a query string asks for. Anything unknown is Khmer."""
    return "en" if b"lang=en" in query.split(b"&") else LANGUAGES[0]


def catalogue(language: str) -> dict[str, str]:
    """Return the translations into `language` by their English text; none for English itself."""
    if language == "en":
        return {}
    with open(HERE / "locales" / language / "LC_MESSAGES" / "webhooks.po", "rb") as source:
        messages = read_po(source, locale=language, abort_invalid=True)
    return {str(message.id): str(message.string) for message in messages if message.id and message.string}


@cache
def _templates() -> Environment:
    """Return the compiled templates. Nothing in them depends on settings."""
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.globals["css"] = f"/static/public.css?v={_version(STATIC / 'public.css')}"
    return environment


def _call(text: str) -> Call:
    found = _CALL.fullmatch(text.strip())
    if not found or not found[2].strip():
        raise Misconfigured("HOTLINE_EMERGENCY_NUMBERS must be like: 1280 Child helpline, 117 Police")
    return Call(found[1].strip(), found[2].strip())


def _version(path: Path) -> str:
    return blake2b(path.read_bytes(), digest_size=4).hexdigest()
