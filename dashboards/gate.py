"""The gate before every route: headers, language, who is signed in, and where a form comes from.

It wraps the whole app, so that a new route cannot forget it. Only what `OPEN` names is reached without a session.
"""

import hmac
from collections.abc import Mapping
from functools import partial
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from fastapi import Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dashboards.desk import Desk
from dashboards.pages import COOKIE, refusal, speak
from dashboards.uploads import KIND, TAKES_PAPERS, read_papers
from dashboards.words import Language
from service import register, staff
from service.errors import EndedSession, Forbidden, Invalid, Unauthenticated

OPEN = frozenset({"/sign-in", "/join", "/health/live", "/health/ready"})
OPEN_BELOW = "/static/"
SAFE = frozenset({"GET", "HEAD"})
LONGEST_FORM = 32 * 1024
MOST_FIELDS = 20
A_YEAR = 365 * 86400
BY_ITSELF = "auto"  # in the address of a page that loaded itself again

HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; img-src 'self'; font-src 'self'; form-action 'self'; "
        "base-uri 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": (
        "accelerometer=(), autoplay=(), camera=(), display-capture=(), fullscreen=(), geolocation=(), gyroscope=(), "
        "microphone=(), midi=(), payment=(), usb=()"
    ),
    "Referrer-Policy": "no-referrer",
    "Strict-Transport-Security": f"max-age={A_YEAR}; includeSubDomains",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

DOWNLOADS = "/downloads/"
INERT = "default-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; sandbox"


class Gate:
    """Middleware around the staff app."""

    def __init__(self, app: ASGIApp, desk: Desk) -> None:
        self._app = app
        self._desk = desk

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or let it pass to its route."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        request = Request(scope, receive)
        language, chosen = _language(request)
        request.state.words = speak(language)
        started = False

        async def guarded(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(raw=message["headers"])
                for name, value in HEADERS.items():
                    headers[name] = value
                if request.scope["path"].startswith(DOWNLOADS):
                    headers["Content-Security-Policy"] = INERT
                if chosen:
                    headers.append("Set-Cookie", _language_cookie(language))
                message["headers"] = headers.raw
            await send(message)

        try:
            admitted = await self._admit(request)
            await self._app(scope, admitted, guarded)
        except Exception as error:
            if started:
                raise
            await refusal(request, error)(scope, receive, guarded)

    async def _admit(self, request: Request) -> Receive:
        """Return where the route reads its body from, or raise why it is not reached."""
        changing = request.method not in SAFE
        if changing:
            check_origin(request)
        if is_open(request.scope["path"]):
            return await self._read(request) if changing else request.receive
        cookie = request.cookies.get(COOKIE, "")
        if not cookie:
            raise Unauthenticated("Please sign in.")
        desk = self._desk
        resume = partial(staff.resume, by_hand=BY_ITSELF not in request.query_params)
        now = desk.clock()
        try:
            who = await run_in_threadpool(resume, desk.sessions, desk.row_key, desk.cards, cookie, now)
        except EndedSession:
            await run_in_threadpool(staff.note_ended, desk.sessions, desk.ledger, cookie, now)
            raise
        if not who.whole:
            await run_in_threadpool(register.report, desk.sessions, desk.ledger, desk.row_key, now)
        request.state.who = who
        if not changing:
            return request.receive
        receive = await self._read(request)
        if not hmac.compare_digest(request.state.form.get("t", "").encode(), who.csrf.encode()):
            raise Forbidden("This form is not from a page of this sign-in. Load the page again.")
        return receive

    async def _read(self, request: Request) -> Receive:
        """Read a form into the request's state, with its papers, and return where the route reads the body from."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == KIND and TAKES_PAPERS.fullmatch(request.scope["path"]):
            told = await read_papers(request.headers["content-type"], request.stream())
            request.state.form, request.state.files = told
            return _again(b"", request.receive)
        body = await _body(request)
        request.state.form, request.state.files = read_form(request, body), ()
        return _again(body, request.receive)


def is_open(path: str) -> bool:
    """Say whether `path` is reached without a session."""
    return path in OPEN or path.startswith(OPEN_BELOW)


def check_origin(request: Request) -> None:
    """Return if the request comes from a page of ours. Raises Forbidden.

    A browser says so itself: in Origin, or where that is missing in Sec-Fetch-Site. ``Host`` is its own word as
    well, and no other site can change either; headers of a proxy are not looked at.
    """
    refused = Forbidden("This form is not from a page of this sign-in. Load the page again.")
    origin, site = request.headers.getlist("origin"), request.headers.get("sec-fetch-site")
    if site is not None and site not in ("same-origin", "none"):
        raise refused
    if not origin:
        if site is None:
            raise refused
        return
    host = request.headers.getlist("host")
    if len(origin) != 1 or len(host) != 1 or _host(origin[0]) != host[0].lower():
        raise refused


def _host(origin: str) -> str | None:
    """Return host and port of an origin, None for ``null`` and anything that is no origin."""
    parts = urlsplit(origin.lower())
    plain = parts.scheme in ("http", "https") and origin.lower() == f"{parts.scheme}://{parts.netloc}"
    return parts.netloc or None if plain else None


async def _body(request: Request) -> bytes:
    """Return the body of a form. Raises HTTPException 413 as soon as it is too long."""
    parts: list[bytes] = []
    length = 0
    async for part in request.stream():
        length += len(part)
        if length > LONGEST_FORM:
            raise HTTPException(413)
        parts.append(part)
    return b"".join(parts)


def read_form(request: Request, body: bytes) -> dict[str, str]:
    """Return the fields of a form, each at most once. Raises Invalid or HTTPException 415."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if body and kind != "application/x-www-form-urlencoded":
        raise HTTPException(415)
    try:
        pairs = parse_qsl(body.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=MOST_FIELDS)
    except ValueError:
        raise Invalid("The form cannot be read.") from None
    fields = dict(pairs)
    if len(fields) != len(pairs) or any("\x00" in value for pair in pairs for value in pair):
        raise Invalid("The form cannot be read.")
    return fields


def _again(body: bytes, receive: Receive) -> Receive:
    """Return a ``receive`` that hands the body out once more, then what really comes."""
    waiting: list[dict[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return waiting.pop() if waiting else await receive()

    return replay


def _language(request: Request) -> tuple[Language, bool]:
    """Return the page's language, and whether this request chose it. Khmer unless English was chosen."""
    asked, kept = request.query_params.get("lang"), request.cookies.get("lang")
    if asked in set(Language):
        return Language(asked), True
    return (Language(kept) if kept in set(Language) else Language.KM), False


def _language_cookie(language: Language) -> str:
    answer = Response()
    answer.set_cookie("lang", language, max_age=A_YEAR, path="/", secure=True, httponly=True, samesite="strict")
    return answer.headers["set-cookie"]
