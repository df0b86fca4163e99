"""The public pages: cover and form (DESIGN section 8, Web; child_form.md section 1).

No script, no cookie, nothing kept on a server between pages: the text travels once, in one document. It is shown
again only where it must be corrected, or was not sent.
"""

from collections.abc import Callable
from datetime import datetime
from types import MappingProxyType
from typing import Protocol

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service.errors import Unavailable
from service.intake import IncomingTip
from service.models import Channel
from service.vault.mailbox import grouped
from webhooks.admission import RETRY_AFTER
from webhooks.alarms import TIP_NOT_STORED, Alarms
from webhooks.answers import KINDS, Answers, province_names, read_answers
from webhooks.codes import Finished
from webhooks.form_token import FormToken, FormTokens
from webhooks.pages import LANGUAGES, LEAVE_FORM_SECONDS, LEAVE_SENT_SECONDS, Pages, language_of
from webhooks.receiving import Receives, utc_now
from webhooks.urlencoded import parse_kept

HTML = "text/html"
FORM_TYPE = "application/x-www-form-urlencoded"
_TOKEN, _NONCE = "@token@", "@nonce@"


class Gives(Protocol):
    """Where finished return codes come from, ``codes.Codes``."""

    def take(self) -> Finished | None:
        """Return a code that nobody has, or None when there is none now."""


class Forms:
    """Cover and form. What does not change from person to person is rendered once."""

    def __init__(
        self,
        pages: Pages,
        tokens: FormTokens,
        intake: Receives,
        alarms: Alarms,
        codes: "Gives | None" = None,
        *,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        """Answer with `pages`, give what was sent to `intake`. codes: where numbers come from; None offers none."""
        self._codes = codes
        self._pages = pages
        self._tokens = tokens
        self._intake = intake
        self._alarms = alarms
        self._now = now
        self._provinces = province_names()
        blank = FormToken(b"", _TOKEN)
        numbers = codes is not None
        self._covers = {language: pages.render("cover", language, numbers=numbers) for language in LANGUAGES}
        self._sent = {
            (language, number): pages.render("sent", language, number=number, leave=LEAVE_SENT_SECONDS)
            for language in LANGUAGES
            for number in ("", "none", "repeated")
        }
        self._blank = {language: self._form(language, blank, Answers(), nonce=_NONCE) for language in LANGUAGES}

    def routes(self) -> list[Route]:
        """Return the routes of these pages."""
        return [
            Route("/", self.cover, methods=["GET"]),
            Route("/report", self.show, methods=["GET"]),
            Route("/report", self.take, methods=["POST"]),
        ]

    async def cover(self, request: Request) -> Response:
        """Show a harmless page, the same to everybody."""
        return _page(self._covers[_language(request)])

    async def show(self, request: Request) -> Response:
        """Show the empty form, under a new token."""
        token = self._tokens.issue(self._now())
        page = self._blank[_language(request)]
        return _page(page.replace(_TOKEN.encode(), token.text.encode()).replace(_NONCE.encode(), token.nonce.encode()))

    async def take(self, request: Request) -> Response:
        """Take what was sent, and say so only after it is stored. The same form twice is one tip."""
        kind = request.headers.get("content-type", FORM_TYPE).partition(";")[0].strip().lower()
        if kind != FORM_TYPE:
            return _page(self._pages.notices[415], 415)
        language, now = _language(request), self._now()
        answers = read_answers(parse_kept(await request.body()))
        token = self._tokens.read(answers.token, now)
        wrong = answers.wrong()
        if wrong:
            return _page(self._form(language, token, answers, wrong=wrong), 422)
        numbers = self._codes if answers.back else None
        finished = numbers.take() if numbers is not None else None
        tip = IncomingTip(
            channel=Channel.WEB,
            provider="web",
            kind="form",
            delivery=self._tokens.delivery(token, answers.content),
            text=answers.what,
            received_at=now,
            sender=answers.sender,
            stated=answers.facts(now),
            context=MappingProxyType({"form": "public", "token": str(token.mark)}),
            reply_allowed=answers.reply_allowed,
            mailbox=finished.prepared if finished is not None else None,
        )
        try:
            receipt = await self._intake.receive(tip)
        except Unavailable:
            self._alarms.ring(TIP_NOT_STORED, "web")
            page = self._form(language, token, answers, not_sent=True)
            return _page(page, 503, {"retry-after": RETRY_AFTER.decode()})
        if numbers is None:
            return _page(self._sent[language, ""])
        if receipt.repeated:
            return _page(self._sent[language, "repeated"])
        if finished is None:
            return _page(self._sent[language, "none"])
        code = grouped(finished.code)
        return _page(self._pages.render("sent_code", language, code=code, leave=LEAVE_FORM_SECONDS))

    def _form(
        self,
        language: str,
        token: FormToken,
        answers: Answers,
        *,
        nonce: str = "",
        wrong: dict[str, str] | None = None,
        not_sent: bool = False,
    ) -> bytes:
        return self._pages.render(
            "report",
            language,
            token=token.text,
            nonce=nonce or token.nonce,
            answers=answers,
            wrong=wrong or {},
            not_sent=not_sent,
            fresh=not (wrong or not_sent),  # a link to the other language would lose what was typed
            leave=LEAVE_FORM_SECONDS,
            provinces=self._provinces,
            kinds=KINDS,
            numbers=self._codes is not None,
        )


def _language(request: Request) -> str:
    return language_of(request.scope["query_string"])


def _page(page: bytes, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(page, status, headers, media_type=HTML)
