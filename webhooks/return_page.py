"""``/return``: how far it is, what we ask, a box to add, "something is wrong" (child_form.md section 7, keys.md 7).

One address and POST alone, so that a history shows nothing. The code is typed once; what opens after it carries a
sealed pass for twenty minutes, never the code. A wrong code, an unknown one and one that is gone take the same steps
and the same time, and give the same page (threats.md T-10, T-30).
"""

import asyncio
import json
import math
import random
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol
from uuid import UUID

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Scope

from service.canonical import canonical
from service.errors import CannotOpen, Unavailable
from service.intake import IncomingTip
from service.mailbox import Mailboxes, Opened
from service.models import Channel
from service.vault import boxes
from service.vault.mailbox import Address, read_code
from webhooks.admission import RETRY_AFTER
from webhooks.alarms import TIP_NOT_STORED, Alarms
from webhooks.form_token import FormTokens
from webhooks.forms import FORM_TYPE, HTML
from webhooks.pages import LANGUAGES, LEAVE_FORM_SECONDS, LEAVE_SENT_SECONDS, Pages, language_of
from webhooks.receiving import Receives, utc_now
from webhooks.urlencoded import parse_kept

PATH = "/return"
FLOOR = 0.4  # seconds; answers come at multiples of it, and a little later
JITTER = 0.05
PASS_MINUTES = 20
_TOKEN, _NONCE = "@token@", "@nonce@"
_PLACE = "return/v1"


class Derives(Protocol):
    """What finds a mailbox from a code, ``codes.Codes``."""

    def bucket(self, scope: Scope) -> bytes:
        """Return the name of a request's address."""

    async def derive(self, code: str, bucket: bytes) -> Address:
        """Return where the mailbox of `code` is. Raises Busy."""


@dataclass(frozen=True, slots=True, repr=False)
class Pass:
    """What stands for a code after it was typed: for its own mailbox, and not for long. fresh: it is not over yet."""

    mailbox: UUID
    tip: UUID
    fresh: bool


class Passes:
    """Seals passes under a key that all public processes share, so that nothing is kept on a server."""

    def __init__(self, key: bytes) -> None:
        """Use `key`, 32 secret bytes."""
        self._key = key

    def seal(self, opened: Opened, now: datetime) -> str:
        """Return a pass for what was opened."""
        until = int((now + timedelta(minutes=PASS_MINUTES)).timestamp())
        told = canonical({"mailbox": opened.mailbox.hex, "tip": opened.tip.hex, "until": until})
        return urlsafe_b64encode(boxes.aead_seal(self._key, told, _PLACE)).decode()

    def open(self, text: str, now: datetime) -> Pass | None:
        """Return what `text` stands for, or None if it is no pass of ours."""
        try:
            told = json.loads(boxes.aead_open(self._key, urlsafe_b64decode(text.encode("ascii")), _PLACE))
        except (CannotOpen, ValueError):
            return None
        return Pass(UUID(told["mailbox"]), UUID(told["tip"]), now.timestamp() < told["until"])


class ReturnPage:
    """The return page. `sleep` and `clock` are the event loop's unless a test has its own."""

    def __init__(
        self,
        pages: Pages,
        tokens: FormTokens,
        passes: Passes,
        codes: Derives,
        mailboxes: Mailboxes,
        intake: Receives,
        alarms: Alarms,
        *,
        now: Callable[[], datetime] = utc_now,
        clock: Callable[[], float] | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Answer with `pages`; words go to `intake` alone."""
        self._pages, self._tokens, self._passes = pages, tokens, passes
        self._codes, self._mailboxes, self._intake, self._alarms = codes, mailboxes, intake, alarms
        self._now, self._clock, self._sleep = now, clock, sleep
        self._asking = {
            (language, wrong): pages.render(
                "return_code", language, token=_TOKEN, nonce=_NONCE, wrong=wrong, leave=LEAVE_FORM_SECONDS
            )
            for language in LANGUAGES
            for wrong in ("", "slip", "unknown", "old", "empty")
        }
        self._sent = {
            language: pages.render("sent", language, number="", leave=LEAVE_SENT_SECONDS) for language in LANGUAGES
        }

    def routes(self) -> list[Route]:
        """Return the routes of this page."""
        return [Route(PATH, self.show, methods=["GET"]), Route(PATH, self.take, methods=["POST"])]

    async def show(self, request: Request) -> Response:
        """Show where to type the number."""
        return self._ask(_language(request))

    async def take(self, request: Request) -> Response:
        """Open what a number leads to, or take what was written on the page that it opened."""
        kind = request.headers.get("content-type", FORM_TYPE).partition(";")[0].strip().lower()
        if kind != FORM_TYPE:
            return Response(self._pages.notices[415], 415, media_type=HTML)
        fields: dict[str, str] = {}
        for name, value in parse_kept(await request.body()):
            fields.setdefault(name.partition("-")[0], value.replace("\r\n", "\n"))
        language = _language(request)
        if "pass" not in fields:
            return await self._open(request, language, fields.get("code", ""))
        known = self._passes.open(fields["pass"], self._now())
        said = {name: words for name, words in fields.items() if _is_box(name) and words.strip()}
        if said:  # an old or bent pass loses no words (child_form.md section 1)
            return await self._add(language, known, said, fields)
        if known is None or not known.fresh:
            return self._ask(language, "old")
        if "wrong" in fields:
            return await self._challenge(language, known)
        if "proof" in fields:
            return await self._proof(language, known)
        return self._ask(language, "empty")

    # --- a number ---

    async def _open(self, request: Request, language: str, typed: str) -> Response:
        code = read_code(typed)
        if code is None:
            return self._ask(language, "slip", 422)
        clock = self._clock or asyncio.get_running_loop().time
        began = clock()
        try:
            address = await self._codes.derive(code, self._codes.bucket(request.scope))
            opened = await run_in_threadpool(self._mailboxes.open, address)
        except Unavailable:
            return Response(self._pages.notices[503], 503, {"retry-after": RETRY_AFTER.decode()}, media_type=HTML)
        page = self._shown(language, opened) if opened is not None else self._ask(language, "unknown")
        # What a right code does besides is a few milliseconds of look-ups: they fall into the same step of time.
        steps = max(1, math.ceil((clock() - began) / FLOOR))
        await self._sleep(began + steps * FLOOR + random.SystemRandom().uniform(0, JITTER) - clock())
        return page

    def _shown(self, language: str, opened: Opened) -> Response:
        now = self._now()
        token = self._tokens.issue(now)
        page = self._pages.render(
            "return",
            language,
            opened=opened,
            questions=[(number, words, _script(words)) for number, words in opened.questions],
            steps=STEPS,
            since=_day(opened, language),
            ticket=self._passes.seal(opened, now),
            token=token.text,
            nonce=token.nonce,
            leave=LEAVE_FORM_SECONDS,
        )
        return Response(page, media_type=HTML)

    def _ask(self, language: str, wrong: str = "", status: int = 200) -> Response:
        token = self._tokens.issue(self._now())
        page = self._asking[(language, wrong)]
        page = page.replace(_TOKEN.encode(), token.text.encode()).replace(_NONCE.encode(), token.nonce.encode())
        return Response(page, status, media_type=HTML)

    # --- what is written on the page it opens ---

    async def _add(self, language: str, known: Pass | None, said: dict[str, str], fields: dict[str, str]) -> Response:
        """Hand what was written to the intake: each answer with its question's number, and what was added.

        Words under a pass that is not ours are told anew: they are taken, and belong to nothing yet.
        """
        now = self._now()
        token = self._tokens.read(fields.get("token", ""), now)
        tip = known.tip if known is not None else None
        try:
            for name, words in said.items():
                number = name.removeprefix("answer")
                await self._intake.receive(
                    IncomingTip(
                        channel=Channel.WEB,
                        provider="web",
                        kind="return",
                        delivery=self._tokens.delivery(token, f"{tip}|{name}|{words}".encode(errors="replace")),
                        text=words,
                        received_at=now,
                        context={"form": "return", "token": str(token.mark)}
                        | ({"answer": number} if number.isdigit() else {}),
                        returning=tip,
                    )
                )
        except Unavailable:
            self._alarms.ring(TIP_NOT_STORED, "web")
            page = self._pages.render(
                "return_again",
                language,
                said=said,
                ticket=fields["pass"],
                token=token.text,
                nonce=token.nonce,
                leave=LEAVE_FORM_SECONDS,
            )
            return Response(page, 503, {"retry-after": RETRY_AFTER.decode()}, media_type=HTML)
        return Response(self._sent[language], media_type=HTML)

    async def _challenge(self, language: str, known: Pass) -> Response:
        """Take to oversight that something is wrong."""
        try:
            await self._mailboxes.challenge(known.tip, self._now())
        except Unavailable:
            return Response(self._pages.notices[503], 503, {"retry-after": RETRY_AFTER.decode()}, media_type=HTML)
        return Response(self._sent[language], media_type=HTML)

    async def _proof(self, language: str, known: Pass) -> Response:
        """Give the best receipt as a file, under a name that tells nothing."""
        receipt = await run_in_threadpool(self._mailboxes.receipt, known.mailbox)
        if receipt is None:
            return self._ask(language, "old")
        return Response(
            receipt.text, headers={"content-disposition": 'attachment; filename="bamboo.txt"'}, media_type="text/plain"
        )


# How far it is, in the order of the page; what is not on the way has its own words alone.
STEPS = ("received", "being_read", "responsible", "action", "authorities", "court")


def _is_box(name: str) -> bool:
    return name == "more" or (name.startswith("answer") and name.removeprefix("answer").isdigit())


def _script(words: str) -> str:
    """Return the language of a question, for who reads the page aloud."""
    return "km" if any("\u1780" <= sign <= "\u17ff" for sign in words) else "en"


def _language(request: Request) -> str:
    return language_of(request.scope["query_string"])


def _day(opened: Opened, language: str) -> str:
    """Return the day of the last step, as people of the language write it."""
    day = f"{opened.since.day}.{opened.since.month}.{opened.since.year}"
    return day.translate({0x30 + n: 0x17E0 + n for n in range(10)}) if language == "km" else day
