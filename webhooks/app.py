"""The public app: webhooks and forms behind admission. Faces machines and the public; holds no private key."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Lifespan, Receive, Scope, Send

from service.config import Settings, read_secret
from service.errors import HotlineError, Misconfigured
from service.logs import place
from service.mailbox import Mailboxes
from service.problems import problem_response, status_of
from webhooks.admission import HEALTH, RETRY_AFTER, WEBHOOKS, Admission, Limits
from webhooks.alarms import REQUEST_FAILED, Alarms, nobody
from webhooks.form_token import FormTokens
from webhooks.forms import HTML, Forms, Gives
from webhooks.pages import STATIC, Pages
from webhooks.receiving import Receives
from webhooks.return_page import Derives, Passes, ReturnPage
from webhooks.twilio import SMS_PATH, STATUS_PATH, SmsWebhook, StatusWebhook, TwilioAccount


class Numbers(Gives, Derives, Protocol):
    """Gives return codes out and finds their mailboxes, ``codes.Codes``."""


Health = Callable[[], Mapping[str, bool | str]]

STATIC_AGE = "public, max-age=86400"
_log = structlog.get_logger("webhooks")


def create_app(
    settings: Settings,
    *,
    intake: Receives,
    health: Health,
    form_key: bytes,
    codes: "Numbers | None" = None,
    mailboxes: Mailboxes | None = None,
    pass_key: bytes = b"",
    limits: Limits | None = None,
    notice: Callable[[str], None] = nobody,
    lifespan: "Lifespan[Any] | None" = None,
    log: Sequence[Route] = (),
) -> ASGIApp:
    """Return the public ASGI app.

    intake: where tips go. health: what ``/health/ready`` tells; it may block, and False means not ready.
    form_key: 16 to 64 secret bytes, the same in every public process. codes, mailboxes, pass_key (32 secret bytes, the
    same everywhere): what return codes need; without them none is offered, and there is no return page.
    limits: the defaults with ``settings.max_in_flight`` if None. notice: told what to keep for the metrics, see
    ``alarms.Alarms``; must neither block nor raise. lifespan: run around serving, for what the caller opened.
    log: the routes of the public log (`webhooks.log`).
    Raises Misconfigured when webhooks or forms could not be served safely.
    """
    alarms = Alarms(notice)
    pages = Pages(settings.emergency_numbers)
    tokens = FormTokens(form_key)
    returning: list[Route] = []
    if codes is not None and mailboxes is not None:
        returning = ReturnPage(pages, tokens, Passes(pass_key), codes, mailboxes, intake, alarms).routes()
    forms = Forms(pages, tokens, intake, alarms, codes if returning else None)
    account = twilio_account(settings)
    sms = SmsWebhook(account, intake, alarms)
    app = FastAPI(
        docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False, lifespan=lifespan, routes=[
            Route(SMS_PATH, sms, methods=["POST"]),
            Route(STATUS_PATH, StatusWebhook(account, intake, alarms), methods=["POST"]),
            *forms.routes(),
            *returning,
            *_health_routes(health, alarms),
            *log,
        ]
    )  # fmt: skip
    app.mount("/static", _Static(directory=STATIC))
    _answer_errors(app, pages)
    if limits is None:
        limits = Limits(in_flight=settings.max_in_flight, receiving=4 * settings.max_in_flight)
    return Admission(_past_the_framework(sms, app), limits=limits, pages=pages.notices, alarms=alarms)


def _past_the_framework(sms: ASGIApp, app: ASGIApp) -> ASGIApp:
    """Return `app` with a short way for text messages: it saves a quarter of what this process adds to each."""

    async def choose(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == SMS_PATH and scope["method"] == "POST":
            await sms(scope, receive, send)
        else:
            await app(scope, receive, send)

    return choose


def twilio_account(settings: Settings) -> TwilioAccount:
    """Return what webhooks are checked against. Without a token file the endpoint is closed: it refuses everything.

    Raises Misconfigured for an empty token, or a token without the account it belongs to.
    """
    tokens = []
    if settings.twilio_token_file is None:
        _log.warning("twilio_closed")
    else:
        tokens.append(read_secret(settings.twilio_token_file, "twilio_token_file"))
        if settings.twilio_previous_token_file is not None:
            tokens.append(read_secret(settings.twilio_previous_token_file, "twilio_previous_token_file"))
        if not settings.twilio_account_sid:
            raise Misconfigured("HOTLINE_TWILIO_ACCOUNT_SID is not set")
    return TwilioAccount(settings.twilio_account_sid, tuple(tokens), (settings.public_url,), settings.twilio_numbers)


class _Static(StaticFiles):
    """Static files, which a phone may keep for a day. Their address changes with their content."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """Return the file with its cache header."""
        response = super().file_response(*args, **kwargs)
        response.headers["cache-control"] = STATIC_AGE
        return response


def _health_routes(health: Health, alarms: Alarms) -> list[Route]:
    async def live(_request: Request) -> Response:
        return JSONResponse({"live": True})

    async def ready(_request: Request) -> Response:
        try:
            found = dict(await run_in_threadpool(health))
        except Exception as fault:  # noqa: BLE001 - a check that breaks is a check that failed
            alarms.ring(REQUEST_FAILED, type(fault).__name__, place=place(fault))
            found = {"health": False}
        return JSONResponse(found, 503 if any(value is False for value in found.values()) else 200)

    return [
        Route(f"{HEALTH}live", live, methods=["GET"]),
        Route(f"{HEALTH}ready", ready, methods=["GET"]),
    ]


def _answer_errors(app: FastAPI, pages: Pages) -> None:
    """Give every error an answer that was written before the request came: none can repeat a word of it."""

    def answer(request: Request, status: int, headers: Mapping[str, str] | None = None) -> Response:
        kept = {name: value for name, value in (headers or {}).items() if name.lower() in ("allow", "retry-after")}
        if request.scope["path"].startswith((WEBHOOKS, HEALTH)):
            return Response(status_code=status, headers=kept)
        return Response(pages.notices.get(status, pages.notices[500]), status, kept, media_type=HTML)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, fault: HTTPException) -> Response:
        return answer(request, fault.status_code, fault.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, _fault: RequestValidationError) -> Response:
        return answer(request, 422)

    @app.exception_handler(HotlineError)
    async def refused(request: Request, fault: HotlineError) -> Response:
        status = status_of(fault)
        headers = {"retry-after": RETRY_AFTER.decode()} if status == 503 else {}
        if not request.scope["path"].startswith(WEBHOOKS):
            return answer(request, status, headers)
        response = problem_response(fault)
        response.headers.update(headers)
        return response

    @app.exception_handler(Exception)
    async def failed(request: Request, _fault: Exception) -> Response:
        return answer(request, 500)
