"""The simulator process: the provider's REST side, and a page of phones to try the hotline with. Demo only, loopback.

The page works without a script; with it, it renews itself. What is typed on the phones is kept here, so that no button
loses it. Another web page must not be able to send anything: requests under other host names, and posts that another
page began, are refused.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any, cast
from urllib.parse import parse_qsl

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from webhooks.pages import language_of
from webhooks.simulator import page
from webhooks.simulator.delivery import Target, Transport, post
from webhooks.simulator.phones import Phones, Text, Unsendable
from webhooks.simulator.provider import Outcome, Provider
from webhooks.simulator.rest import rest_app

REST = "/2010-04-01/"
HOSTS = frozenset({"127.0.0.1", "localhost", "[::1]"})
MAX_FORM = 256 * 1024
GLANCE = 1.0  # seconds that the page waits for the app's answer to a text before it is shown without
PATIENCE = 60.0  # seconds that a client may wait for it; Twilio has given up long before
LONGEST = 7 * 24 * 60.0  # minutes that something may go wrong
HEADERS: Mapping[str, str] = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "same-origin",  # with no-referrer a browser would hide where our own forms come from, too
    "x-content-type-options": "nosniff",
}

Fields = Mapping[str, str]
Done = tuple[str, Mapping[str, Any]]
"""Where on the page to look next, and what a client is told besides."""


def create_app(
    provider: Provider,
    *,
    target: Target,
    duty: Mapping[str, Sequence[str]],
    elsewhere: Sequence[tuple[str, str]] = (),
    transport: Transport = post,
) -> ASGIApp:
    """Return the simulator's ASGI app, for uvicorn on loopback.

    target: where webhooks go. duty: telephone numbers by "UNIT" or "UNIT/supervisor". elsewhere: names (texts of the
    catalogue) and addresses of the demo's other pages. transport: what posts the webhooks.
    """
    phones = Phones(provider, target, duty, transport)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        clock = asyncio.create_task(phones.run())
        yield
        clock.cancel()
        await phones.stop()

    pages = Starlette(lifespan=lifespan, routes=_routes(phones, elsewhere))
    rest = rest_app(provider)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await pages(scope, receive, send)
        elif problem := _foreign(scope["method"], Headers(scope=scope)):
            await PlainTextResponse(problem, 403, HEADERS)(scope, receive, send)
        elif scope["path"].startswith(REST):
            await rest(scope, receive, send)  # past the framework: it closes connections, and needs the server's own
        else:
            await pages(scope, receive, partial(_send_with_headers, send))

    return app


async def _send_with_headers(send: Send, message: Message) -> None:
    if message["type"] == "http.response.start":
        MutableHeaders(scope=message).update(HEADERS)
    await send(message)


def _foreign(method: str, headers: Headers) -> str:
    """Return why a request is not from this machine's own page or client; "" if it is.

    A name that somebody made lead to 127.0.0.1 stands in Host. What another page posts says so in Origin and
    Sec-Fetch-Site; clients that are no browser send neither.
    """
    hosts = headers.getlist("host")
    if len(hosts) != 1 or re.sub(r":[0-9]+$", "", hosts[0]) not in HOSTS:
        return "This simulator answers to 127.0.0.1 and localhost only.\n"
    if method in ("GET", "HEAD"):
        return ""
    origins, sites = headers.getlist("origin"), headers.getlist("sec-fetch-site")
    if any(origin != f"http://{hosts[0]}" for origin in origins) or any(site != "same-origin" for site in sites):
        return "Only the simulator's own page may do that.\n"
    return ""


def _routes(phones: Phones, elsewhere: Sequence[tuple[str, str]]) -> list[Route | Mount]:
    # All of it runs in the loop, one at a time: neither phones nor provider know of threads.
    async def show(request: Request, wrong: Mapping[str, str] | None = None) -> Response:
        phones.step()
        text, _, _ = page.render(phones, _language(request), wrong=wrong, elsewhere=elsewhere)
        return HTMLResponse(text, 400 if wrong else 200)

    async def state(request: Request) -> Response:
        """The page's main part, unless it is still the one that the browser has (`since`)."""
        phones.step()
        _, main, version = page.render(phones, _language(request))
        news = {} if request.query_params.get("since") == version else {"main": main}
        return JSONResponse({"version": version, **news})

    async def ready(_request: Request) -> Response:
        return JSONResponse({"ready": True, "simulator": phones.provider.account_sid})

    async def press(request: Request, act: Callable[[Phones, Fields], Awaitable[Done]], place: str) -> Response:
        """Keep what is typed, let `act` do its work, and show what came of it: the page, or JSON for a client."""
        as_json = "application/json" in request.headers.get("accept", "")
        fields: Fields = {}
        wrong: Mapping[str, str] = {}
        spot, told = "", cast("Mapping[str, Any]", {})
        try:
            fields = await _read_form(request)
            _keep_drafts(phones, fields)
            spot, told = await act(phones, fields if as_json else {"wait": str(GLANCE), **fields})
        except Unsendable as problem:
            wrong = {fields.get(place, place): str(problem)}
        if as_json:
            words = page.Words(_language(request))
            drafts = {phone.number: phone.draft for phone in phones.by_number.values()}
            said = {where: words(text) for where, text in wrong.items()}
            return JSONResponse({"wrong": said, "drafts": drafts, **told}, 400 if wrong else 200)
        if wrong:
            return await show(request, wrong)
        return RedirectResponse(f"/{page.query_of(_language(request))}{spot}", 303)

    # What each button does, and where the page says what is wrong with it: at the phone of a field, or at a place.
    acts: Mapping[str, tuple[Callable[[Phones, Fields], Awaitable[Done]], str]] = {
        "/look": (_look, "phones"),
        "/text": (_send_text, "from"),
        "/again": (_deliver_again, "phones"),
        "/example": (_take_example, "phones"),
        "/phone": (_add_phone, "phones"),
        "/faults": (_go_wrong, "faults"),
        "/recover": (_recover, "faults"),
    }
    return [
        Route("/", show),
        Route("/state", state),
        Route("/health/ready", ready),
        *(Route(path, partial(press, act=act, place=place), methods=["POST"]) for path, (act, place) in acts.items()),
        Mount("/static", StaticFiles(directory=page.HERE / "static")),
    ]


def _language(request: Request) -> str:
    return language_of(request.scope["query_string"])


async def _read_form(request: Request) -> Fields:
    """Return the fields of a url-encoded form. Raises Unsendable for anything else."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MAX_FORM:
            raise Unsendable("That is too long.")
    try:
        fields = dict(parse_qsl(body.decode(), keep_blank_values=True, errors="strict", max_num_fields=100))
    except ValueError:
        raise Unsendable("The form cannot be read.") from None
    return {name: value.replace("\r\n", "\n") for name, value in fields.items()}


def _keep_drafts(phones: Phones, fields: Fields) -> None:
    for number, phone in phones.by_number.items():
        phone.draft = fields.get(f"text {number}", phone.draft)


# --- what the buttons do --------------------------------------------------------------------------------


async def _look(_phones: Phones, _fields: Fields) -> Done:
    return "", {}


async def _send_text(phones: Phones, fields: Fields) -> Done:
    """A phone sends: what stands in its box, or `text`. to: another number than the hotline's first."""
    number = fields.get("from", "")
    words = fields.get("text", fields.get(f"text {number}", ""))
    if "text" not in fields and not words.strip():
        raise Unsendable("Write something first.")
    text = phones.send(number, fields.get("to") or phones.provider.numbers[0], words)
    if "text" not in fields:
        phones.phone(number).draft = ""
    return await _deliver(phones, text, fields)


async def _deliver_again(phones: Phones, fields: Fields) -> Done:
    """The provider delivers a text again; the last one of all if `again` is empty."""
    return await _deliver(phones, phones.text(fields["again"]) if fields.get("again") else phones.last(), fields)


async def _deliver(phones: Phones, text: Text, fields: Fields) -> Done:
    patience = _number(fields.get("wait", "0"), most=PATIENCE)
    task = phones.deliver(text)
    await asyncio.wait({task}, timeout=patience)
    told: dict[str, Any] = {"sid": text.message.sid, "answered": task.done()}
    if task.done() and text.answers:
        told |= {"status": text.answers[-1].status, "milliseconds": text.answers[-1].milliseconds}
    return f"#phone-{page.key_of(text.message.sender)}", told


async def _take_example(phones: Phones, fields: Fields) -> Done:
    """Put a ready-made text into a phone's box; what somebody wrote there stays in front of it."""
    number, _, chosen = fields.get("example", "").partition(" ")
    phone = phones.by_number.get(number)
    text = {str(place): text for place, text in enumerate(page.EXAMPLES)}.get(chosen)
    if phone is None or text is None:
        raise Unsendable("The form cannot be read.")
    phone.draft = text if phone.draft.strip() in ("", *page.EXAMPLES) else f"{phone.draft.rstrip()} {text}"
    return f"#phone-{page.key_of(number)}", {}


async def _add_phone(phones: Phones, _fields: Fields) -> Done:
    return f"#phone-{page.key_of(phones.another().number)}", {}


async def _go_wrong(phones: Phones, fields: Fields) -> Done:
    """Let the provider fail in one of three ways: `do` is "fail", "outcome" or "callbacks"."""
    match fields.get("do"):
        case "fail":
            minutes, times = fields.get("minutes"), fields.get("times")
            lasting = timedelta(minutes=_number(minutes, most=LONGEST)) if minutes else None
            try:
                phones.fail(fields.get("operation", "*"), fields.get("how", ""), int(times) if times else None, lasting)
            except ValueError as fault:
                raise Unsendable(str(fault)) from None
        case "outcome" if fields.get("outcome") in page.OUTCOMES and fields.get("number") in phones.numbers:
            phones.provider.outcomes[fields["number"]] = cast("Outcome", fields["outcome"])
        case "callbacks" if fields.get("callbacks") in page.CALLBACKS:
            phones.provider.callbacks = replace(page.CALLBACKS[fields["callbacks"]][1])
        case _:
            raise Unsendable("The form cannot be read.")
    return "#faults", {}


async def _recover(phones: Phones, _fields: Fields) -> Done:
    phones.recover()
    return "#faults", {}


def _number(typed: str, *, most: float) -> float:
    """Return a number from 0 to `most`. Raises Unsendable."""
    try:
        number = float(typed)
    except ValueError:
        number = -1.0
    if not 0 <= number <= most:
        raise Unsendable("The form cannot be read.")
    return number
