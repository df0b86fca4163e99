"""What may come in at all, before anything is parsed: raw ASGI, in front of the whole public app.

Limits on method, target, headers, body, fields and time (threats.md T-29), shedding under overload with slots kept
for webhooks (R7), the security headers of every answer (ASVS 3.4), and the last barrier for unexpected errors, whose
text may quote a tip and is therefore never logged (T-12).
"""

import asyncio
import math
from collections.abc import Mapping
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.logs import place
from webhooks.alarms import REQUEST_FAILED, REQUEST_REFUSED, REQUEST_SHED, Alarms

WEBHOOKS = "/webhooks/"
HEALTH = "/health/"
METHODS = ("GET", "HEAD", "POST", "OPTIONS")
RETRY_AFTER = b"10"
WEBHOOKS_SHARE = 0.3

SECURITY_HEADERS: tuple[tuple[bytes, bytes], ...] = (
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (
        b"content-security-policy",
        b"default-src 'none'; style-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    ),
    (b"permissions-policy", b"camera=(), microphone=(), geolocation=(), payment=(), usb=(), browsing-topics=()"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-embedder-policy", b"require-corp"),
)
NO_STORE = (b"cache-control", b"no-store")
_ALLOW = (b"allow", ", ".join(METHODS).encode())


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one request may be, and how many there may be at once.

    receiving: how many may still be sending their body, so that slow bodies hold no slot of those that are served.
    """

    in_flight: int = 200
    receiving: int = 800
    webhook_body: int = 64 * 1024
    form_body: int = 256 * 1024
    fields: int = 100
    body_seconds: float = 10.0
    headers: int = 100
    header_bytes: int = 16 * 1024
    target_bytes: int = 2048


class Slots:
    """A number of places, of which pages never take the last 30 %: those are for webhooks (threats.md R7)."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._for_pages = max(1, total - math.ceil(total * WEBHOOKS_SHARE))
        self._taken = 0
        self._taken_by_pages = 0

    def free(self, *, webhook: bool) -> bool:
        """Return whether a request of this kind may have a place."""
        return self._taken < self._total and (webhook or self._taken_by_pages < self._for_pages)

    def take(self, *, webhook: bool) -> None:
        """Take a place that is free."""
        self._taken += 1
        self._taken_by_pages += not webhook

    def give_back(self, *, webhook: bool) -> None:
        """Give a place back that was taken."""
        self._taken -= 1
        self._taken_by_pages -= not webhook


class _Refused(Exception):
    """The request is outside the limits."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class Admission:
    """The outermost ASGI app. Everything else sees a request whole and within its limits, or never."""

    def __init__(self, app: ASGIApp, *, limits: Limits, pages: Mapping[int, bytes], alarms: Alarms) -> None:
        """Wrap `app`. pages: an HTML page for each status that this module may answer with, rendered beforehand."""
        self._app = app
        self._limits = limits
        self._pages = pages
        self._alarms = alarms
        self._served = Slots(limits.in_flight)
        self._receiving = Slots(limits.receiving)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Admit or refuse one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        answer = _Answer(send)
        try:
            await self._admit(scope, receive, answer)
        except _Refused as refused:
            await self._refuse(scope, answer, refused)
        except Exception as fault:  # noqa: BLE001 - the last barrier: a server would log the fault's own text
            self._alarms.ring(REQUEST_FAILED, type(fault).__name__, place=place(fault))
            if not answer.started:
                await self._answer(scope, answer, 500, ())

    async def _admit(self, scope: Scope, receive: Receive, answer: "_Answer") -> None:
        path, method = scope["path"], scope["method"]
        if method not in METHODS:
            raise _Refused(405, "method")
        declared = self._check_head(scope)
        if method == "OPTIONS":
            await answer({"type": "http.response.start", "status": 204, "headers": [_ALLOW]})
            await answer({"type": "http.response.body"})
            return
        if path.startswith(HEALTH):
            # Whoever asks whether we live must hear it when we are full, too.
            await self._app(scope, receive, answer)
            return
        webhook = path.startswith(WEBHOOKS)
        if not self._served.free(webhook=webhook):
            raise _Refused(503, "full")
        if method == "POST":
            body = await self._body(receive, declared, webhook=webhook)
            if body is None:
                return
            receive = _replay(body, receive)
            if not self._served.free(webhook=webhook):
                raise _Refused(503, "full")
        self._served.take(webhook=webhook)
        try:
            await self._app(scope, receive, answer)
        finally:
            self._served.give_back(webhook=webhook)

    def _check_head(self, scope: Scope) -> int | None:
        """Return the declared length of the body, if there is one, after a look at target and headers."""
        limits, headers = self._limits, scope["headers"]
        if len(scope.get("raw_path") or b"") + len(scope["query_string"]) > limits.target_bytes:
            raise _Refused(414, "target")
        size, lengths, chunked = 0, [], False
        for name, value in headers:
            size += len(name) + len(value)
            if name == b"content-length":
                lengths.append(value)
            elif name == b"transfer-encoding":
                chunked = True
        if len(headers) > limits.headers or size > limits.header_bytes:
            raise _Refused(431, "headers")
        if not lengths:
            if chunked and scope["method"] != "POST":
                raise _Refused(400, "unexpected body")
            return None
        if len(lengths) > 1 or chunked or not lengths[0].isdigit() or len(lengths[0]) > 12:
            raise _Refused(400, "content length")
        declared = int(lengths[0])
        if declared and scope["method"] != "POST":
            raise _Refused(400, "unexpected body")
        return declared

    async def _body(self, receive: Receive, declared: int | None, *, webhook: bool) -> bytes | None:
        """Return the whole body, or None if the sender went away."""
        limit = self._limits.webhook_body if webhook else self._limits.form_body
        if declared is not None and declared > limit:
            raise _Refused(413, "body")
        if not self._receiving.free(webhook=webhook):
            raise _Refused(503, "full")
        self._receiving.take(webhook=webhook)
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                body = await _read(receive, limit if declared is None else declared, lied=declared is not None)
        except TimeoutError:
            raise _Refused(408, "slow body") from None
        finally:
            self._receiving.give_back(webhook=webhook)
        if body is not None and declared is not None and len(body) != declared:
            raise _Refused(400, "content length")
        if body is not None and body.count(b"&") >= self._limits.fields:
            raise _Refused(413, "fields")
        return body

    async def _refuse(self, scope: Scope, answer: "_Answer", refused: _Refused) -> None:
        webhook = scope["path"].startswith(WEBHOOKS)
        if refused.status == 503:
            self._alarms.ring(REQUEST_SHED, "webhook" if webhook else "page")
            await self._answer(scope, answer, 503, ((b"retry-after", RETRY_AFTER),))
            return
        self._alarms.ring(REQUEST_REFUSED, refused.reason)
        headers = [(b"connection", b"close")]  # what was not read must not be taken for the next request
        if refused.status == 405:
            headers.append(_ALLOW)
        # To a webhook, too large and malformed are the same: not one of ours (twilio.md section 3, point 2).
        status = 403 if webhook and refused.status in (400, 413, 414, 431) else refused.status
        await self._answer(scope, answer, status, headers)

    async def _answer(
        self,
        scope: Scope,
        answer: "_Answer",
        status: int,
        headers: "tuple[tuple[bytes, bytes], ...] | list[tuple[bytes, bytes]]",
    ) -> None:
        body = b"" if scope["path"].startswith((WEBHOOKS, HEALTH)) else self._pages[status]
        head = [(b"content-length", str(len(body)).encode()), *headers]
        if body:
            head.append((b"content-type", b"text/html; charset=utf-8"))
        await answer({"type": "http.response.start", "status": status, "headers": head})
        await answer({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


class _Answer:
    """Sends an answer with the security headers, and remembers whether it began."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False

    async def __call__(self, message: Message) -> None:
        """Send one message of the answer."""
        if message["type"] == "http.response.start":
            self.started = True
            headers, kept = list(SECURITY_HEADERS), False
            for pair in message.get("headers", ()):
                name = pair[0].lower()
                if name == b"set-cookie":
                    continue  # no route sets one; none ever will (T-05)
                kept = kept or name == b"cache-control"
                headers.append(pair)
            if not kept:
                headers.append(NO_STORE)
            message = {**message, "headers": headers}
        await self._send(message)


async def _read(receive: Receive, limit: int, *, lied: bool) -> bytes | None:
    """Return the body of at most `limit` bytes, or None if the sender went away before its end."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if len(body) > limit:
            raise _Refused(400, "content length") if lied else _Refused(413, "body")
        if not message.get("more_body", False):
            return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a channel that gives `body` once, whole, and then what the server has to say."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
