"""What is sent to a running process, over plain sockets: signed text messages and filled-in forms.

An answer counts only when its last byte has arrived. What was answered is remembered here, outside the processes
under test.
"""

import asyncio
import random
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from urllib.parse import urlencode

from tests.webhooks.builders import FORM_TYPE, NUMBER, SMS, TOKEN, an_sms, encode, sign, sms_headers

HOST = "127.0.0.1"
URL = "https://bamboo.example" + SMS
EMPTY_TWIML = b'<?xml version="1.0" encoding="UTF-8"?><Response/>'
LONGEST = 30.0  # seconds that a client waits for one answer

# What people may write, in a few words. The first ties an official to it, the second is urgent.
WORDS = (
    "A police officer is paid so that nobody asks about the child at the guesthouse.",
    "A child is in danger tonight at the guesthouse near the market.",
    "There is a child at the karaoke by the river, she may be 13.",
    "មានក្មេងម្នាក់នៅផ្ទះសំណាក់ជិតផ្សារ។",
    "Someone should look at the house behind the school.",
)


class Unanswered(OSError):
    """The connection ended before the whole answer was there."""


@dataclass(frozen=True)
class Answer:
    """A whole answer. Names of headers are in small letters."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def header(self, name: str) -> str | None:
        """Return the first header `name`."""
        return next((value for key, value in self.headers if key == name), None)

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode()

    @property
    def taken(self) -> bool:
        """Whether it thanks for a text message."""
        return self.status == 200 and self.body == EMPTY_TWIML


Headers = Iterable[tuple[bytes, bytes]]


class Line:
    """One connection that is kept, for one request after the other."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._open: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def __aenter__(self) -> "Line":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.hang_up()

    async def hang_up(self) -> None:
        """Close the connection, whatever is on its way."""
        if self._open is not None:
            self._open[1].close()
            with suppress(OSError):
                await self._open[1].wait_closed()
            self._open = None

    async def send(self, request: bytes) -> None:
        """Send a request and wait for nothing. Raises Unanswered."""
        try:
            if self._open is None:
                self._open = await asyncio.open_connection(HOST, self._port)
            self._open[1].write(request)
            await self._open[1].drain()
        except OSError as fault:
            await self.hang_up()
            raise Unanswered from fault

    async def ask(self, request: bytes) -> Answer:
        """Send a request and return its whole answer. Raises Unanswered."""
        try:
            async with asyncio.timeout(LONGEST):
                await self.send(request)
                return await self._read()
        except (OSError, EOFError) as fault:
            await self.hang_up()
            raise Unanswered from fault

    async def _read(self) -> Answer:
        assert self._open is not None
        reader, _ = self._open
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = tuple((name.lower(), value.strip()) for name, _, value in (h.partition(":") for h in head[1:-2]))
        known = dict(headers)
        if "content-length" in known:
            body = await reader.readexactly(int(known["content-length"]))
        else:
            body = await reader.read() if known.get("connection") == "close" else b""
        if known.get("connection") == "close":
            await self.hang_up()
        return Answer(int(head[0].split()[1]), headers, body)


def a_request(method: str, target: str, headers: Headers = (), body: bytes = b"") -> bytes:
    """Return the bytes of a request; nothing is checked or escaped."""
    own = [(b"host", b"bamboo.example")] if not any(name == b"host" for name, _ in headers) else []
    length = [(b"content-length", str(len(body)).encode())] if method == "POST" else []
    lines = b"".join(name + b": " + value + b"\r\n" for name, value in [*own, *headers, *length])
    return method.encode() + b" " + target.encode() + b" HTTP/1.1\r\n" + lines + b"\r\n" + body


def ask(port: int, method: str, target: str, headers: Headers = (), body: bytes = b"") -> Answer:
    """Send one request on a connection of its own. Raises Unanswered."""
    return ask_raw(port, a_request(method, target, headers, body))


def ask_raw(port: int, request: bytes) -> Answer:
    """Send bytes on a connection of their own. Raises Unanswered."""

    async def once() -> Answer:
        async with Line(port) as line:
            return await line.ask(request)

    return asyncio.run(once())


@dataclass(frozen=True)
class Sent:
    """What one person sent: words, perhaps a number to answer to, and the bytes that carry it.

    sid: Twilio's name of a text message; empty for a form. Its words stand in nothing else that is sent.
    """

    words: str
    sender: str | None
    request: bytes = field(repr=False)
    sid: str = ""

    def thanked(self, answer: Answer) -> bool:
        """Return whether `answer` says that it was taken."""
        return answer.taken if self.sid else answer.status == 200


def a_text(words: str, sender: str | None = None, *, sid: str, headers: Headers = (), **more: str) -> Sent:
    """Return a signed text message. sender: E.164, or None for a hidden caller."""
    fields = an_sms(sid, words, sender or "anonymous", To=NUMBER, **more)
    signed = sms_headers(sign(fields, url=URL, token=TOKEN))
    return Sent(words, sender, a_request("POST", SMS, [*signed, *headers], encode(fields)), sid)


def a_form(page: str, words: str, number: str = "", *, headers: Headers = ()) -> Sent:
    """Return the form on `page` as a browser sends it, filled in. number: as people type it, with a 0 in front."""
    sender = "+855" + number[1:] if number else None
    return Sent(words, sender, form_request(page, {"what": words, "number": number}, headers))


def form_request(page: str, answers: Mapping[str, str], headers: Headers = ()) -> bytes:
    """Return the request of the form on `page` with `answers` by question."""
    token, nonce = re.search(r'name="token" value="([^"]+)"', page), re.search(r'name="what-([^"]+)"', page)
    assert token
    assert nonce
    named = {f"{question}-{nonce[1]}": answer for question, answer in answers.items()}
    body = urlencode({"z": "x", "token": token[1]} | named).encode()
    return a_request("POST", "/report", [(b"content-type", FORM_TYPE.encode()), *headers], body)


class Mailbag:
    """Texts of invented people, each with words that stand nowhere else. Everything follows from the seed."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self._shared = [self.number() for _ in range(4)]

    def number(self) -> str:
        """Return a number of a range that is not in use."""
        return f"+85500{self.rng.randrange(10**6):06d}"

    def change_numbers(self) -> None:
        """Let the people who write more than once be others from now on."""
        self._shared = [self.number() for _ in range(4)]

    def words(self) -> str:
        """Return words with a mark of their own."""
        return f"{self.rng.choice(WORDS)} {self.rng.getrandbits(64):016x}"

    def text(self, **more: str) -> Sent:
        """Return a text: of somebody new, of one who wrote before, or of a hidden caller."""
        which = self.rng.random()
        sender = self.number() if which < 0.5 else self.rng.choice(self._shared) if which < 0.8 else None
        return self.text_from(sender, **more)

    def text_from(self, sender: str | None, **more: str) -> Sent:
        """Return a text of `sender`."""
        return a_text(self.words(), sender, sid=f"SM{self.rng.getrandbits(128):032x}", **more)

    def form(self, page: str) -> Sent:
        """Return a filled-in form, every other with a number."""
        number = self.number().replace("+855", "0") if self.rng.random() < 0.5 else ""
        return a_form(page, self.words(), number)


@dataclass
class Acknowledged:
    """What was thanked for, written down only after the whole answer had come."""

    sent: list[Sent] = field(default_factory=list)

    def __iter__(self) -> Iterator[Sent]:
        return iter(self.sent)

    def __len__(self) -> int:
        return len(self.sent)

    def add(self, sent: Sent) -> None:
        """Write down that `sent` was thanked for."""
        self.sent.append(sent)
