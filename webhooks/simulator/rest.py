"""The REST side of the fake: what Twilio's own client asks for, answered from a ``Provider`` (twilio.md 5, 9, 11).

``/2010-04-01/Accounts/{sid}/`` with Messages and their Media, Calls and Recordings. Shapes are those that the client
of twilio 9.13 parses, which is the judge in the tests. Served by uvicorn: only its connections can be closed without
an answer.
"""

import asyncio
import json
import re
from base64 import b64decode
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, time
from email.utils import format_datetime
from math import ceil
from typing import Any
from urllib.parse import parse_qsl, urlencode

from starlette.types import ASGIApp, Receive, Scope, Send

from webhooks.simulator.provider import (
    OPERATIONS,
    Call,
    Exchange,
    Fault,
    Kind,
    Message,
    Provider,
    Recording,
    RestFault,
)
from webhooks.simulator.signing import segments

VERSION = "2010-04-01"
MAX_PAGE = 1000
SILENCE = 60.0  # seconds; every client has given up by then

_PATH = re.compile(
    rf"/{VERSION}/Accounts/(?P<account>[^/]+)/(?P<kind>Messages|Calls|Recordings)"
    r"(/(?P<sid>[^/.]+)(?P<media>/Media(/(?P<picture>[^/.]+))?)?)?\.json"
)


@dataclass(frozen=True, slots=True)
class Request:
    """One request of the app. fields: of the query and of the form."""

    method: str
    path: str
    fields: Mapping[str, str]
    username: str
    password: str


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer: a status, and JSON unless there is nothing to say. retry_after: seconds."""

    status: int
    payload: Mapping[str, Any] | None = None
    retry_after: float | None = None
    garbled: bool = False


def rest_app(provider: Provider) -> ASGIApp:
    """Return the REST side of `provider`: an app for uvicorn, alone or mounted. It puts each request on the log."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        began, request = provider.now(), await _read(scope, receive)
        reply, note = answer(provider, request)
        provider.log.append(
            Exchange(
                at=began,
                side="rest",
                method=request.method,
                path=request.path,
                status=reply.status if reply else None,
                milliseconds=round((provider.now() - began).total_seconds() * 1000),
                fields=request.fields,
                note=note,
            )
        )
        if reply is not None:
            await _send(send, reply)
            return
        if note.startswith("silent"):
            with suppress(TimeoutError):
                await asyncio.wait_for(_gone(receive), SILENCE)
        receive.__self__.transport.close()  # type: ignore[attr-defined]  # uvicorn's: ASGI has no word for it
        await _gone(receive)

    return app


def answer(provider: Provider, request: Request) -> tuple[Reply | None, str]:
    """Return the answer to `request`, None for none at all, and what was got wrong on purpose ("" for nothing)."""
    fault: Fault | None = None
    try:
        match = _PATH.fullmatch(request.path)
        known = provider.knows(request.username, request.password)
        if not known or (match and match["account"] != provider.account_sid):
            raise RestFault(401, 20003, "Authenticate")
        if not match:
            raise RestFault(404, 20404, f"The requested resource {request.path} was not found")
        operation = _operation(request.method, match)
        fault = provider.next_fault(operation)
        if fault and not fault.how.endswith("after"):
            return _wrong(fault), fault.how
        reply = _act(provider, operation, match, request)
    except RestFault as refusal:
        reply = _error(refusal.status, refusal.code, refusal.message)
    return (_wrong(fault), fault.how) if fault else (reply, "")


def _wrong(fault: Fault) -> Reply | None:
    """Return what is answered instead; None for no answer at all."""
    if fault.how.startswith(("silent", "hang up")):
        return None
    if fault.how.startswith("garbled"):
        return Reply(200, garbled=True)
    if fault.how.startswith("500"):
        return _error(500, 20500, "Internal Server Error")
    status, code, words = _KNOWN.get(fault.how) or (400, int(fault.how), "As told.")
    return _error(status, code, words, retry_after=fault.after)


_KNOWN: Mapping[str, tuple[int, int, str]] = {
    "429": (429, 20429, "Too Many Requests"),
    "401": (401, 20003, "Authenticate"),
    "20009": (409, 20009, "Cannot change it: it is not in a final state."),
    "20404": (404, 20404, "The requested resource was not found"),
}


def _error(status: int, code: int, message: str, *, retry_after: float | None = None) -> Reply:
    more = f"https://www.twilio.com/docs/errors/{code}"
    return Reply(status, {"code": code, "message": message, "more_info": more, "status": status}, retry_after)


# -- what can be asked for -------------------------------------------------------------------------------------------


def _operation(method: str, match: "re.Match[str]") -> str:
    """Return the name of what is asked for, one of OPERATIONS. Raises RestFault 20004 if it cannot be done."""
    name = "media" if match["media"] else match["kind"].lower()
    one = match["picture"] if match["media"] else match["sid"]
    verb = {"GET": "fetch", "POST": "update", "DELETE": "delete"} if one else {"GET": "list", "POST": "create"}
    operation = f"{name}.{verb.get(method)}"
    if operation not in OPERATIONS or (match["media"] and match["kind"] != "Messages"):
        raise RestFault(405, 20004, "Method not allowed")
    return operation


def _act(provider: Provider, operation: str, match: "re.Match[str]", request: Request) -> Reply:
    """Do what is asked for. Raises RestFault."""
    base, fields, sid = f"/{VERSION}/Accounts/{provider.account_sid}", request.fields, match["sid"]
    if operation == "messages.create":
        callback = fields.get("StatusCallback")
        to, sender, body = (fields.get(name, "") for name in ("To", "From", "Body"))
        return Reply(201, _message(base, provider.create(to=to, sender=sender, body=body, status_callback=callback)))
    if operation == "messages.update":
        if fields.get("Body") != "":
            raise RestFault(400, 20001, "Only an empty Body is accepted.")
        return Reply(200, _message(base, provider.empty(sid)))
    if operation == "media.delete":
        provider.delete_media(sid, match["picture"])
        return Reply(204)
    if match["media"]:
        message, picture = provider.find("message", sid), match["picture"]
        if operation == "media.list":
            found = [(place, _media(base, message, media)) for place, media in enumerate(message.media)]
            return _page(request, "media_list", found)
        if picture not in message.media:
            raise RestFault(404, 20404, f"The requested resource {picture} was not found")
        return Reply(200, _media(base, message, picture))
    kind, shape = _KINDS[match["kind"]]
    if operation.endswith(".fetch"):
        return Reply(200, shape(base, provider.find(kind, sid)))
    if operation.endswith(".delete"):
        provider.delete(kind, sid)
        return Reply(204)
    provider.refresh()
    found = [(one.serial, shape(base, one)) for one in provider.held(kind).values() if _fits(one, fields)]
    return _page(request, match["kind"].lower(), found)


def _fits(one: Message | Call | Recording, fields: Mapping[str, str]) -> bool:
    """Return whether a list with these filters has this in it."""
    equal = {"To": "to", "From": "sender", "Status": "status", "CallSid": "call_sid"}
    dated = {"DateSent": "sent_at", "StartTime": "started_at", "DateCreated": "created_at"}
    return all(fields.get(name) in (None, getattr(one, attribute, None)) for name, attribute in equal.items()) and all(
        _within(getattr(one, attribute, None), fields, name) for name, attribute in dated.items()
    )


def _within(at: datetime | None, fields: Mapping[str, str], name: str) -> bool:
    """Return whether `at` is what DateSent, DateSent< and DateSent> ask for: whole days, or times, in UTC.

    What has no such time, as a text that is still queued, is in no list that asks for it.
    """
    for mark in ("", "<", ">"):
        asked = fields.get(name + mark)
        if asked is None:
            continue
        try:
            whole_day = len(asked) == len("2026-01-01")
            limit = datetime.fromisoformat(asked).replace(tzinfo=UTC)
        except ValueError:
            raise RestFault(400, 20001, f"{name} is no date") from None
        if at is None:
            return False
        given = datetime.combine(at.date(), time(), UTC) if whole_day else at.replace(microsecond=0)
        if (mark != ">" and given > limit) or (mark != "<" and given < limit):
            return False
    return True


def _page(request: Request, key: str, found: list[tuple[int, dict[str, Any]]]) -> Reply:
    """Return one page, newest first. A page's token names the last entry of the one before it, deleted or not."""
    fields = request.fields
    size = min(_number(fields.get("PageSize"), 50), MAX_PAGE) or 50
    number, token = _number(fields.get("Page"), 0), fields.get("PageToken", "")
    left = sorted(found, key=lambda pair: -pair[0])
    if token:
        left = [pair for pair in left if pair[0] < _number(token.removeprefix("PA"), 0)]
    shown, more = left[:size], len(left) > size

    def address(page: int, **beside: str) -> str:
        kept = {name: value for name, value in fields.items() if name not in ("Page", "PageSize", "PageToken")}
        return f"{request.path}?{urlencode(kept | {'PageSize': size, 'Page': page} | beside)}"

    listed = {
        key: [shape for _, shape in shown],
        "first_page_uri": address(0),
        "next_page_uri": address(number + 1, PageToken=f"PA{shown[-1][0]}") if more else None,
        "previous_page_uri": address(number - 1) if number else None,
        "page": number,
        "page_size": size,
        "start": number * size,
        "end": number * size + max(len(shown) - 1, 0),
        "uri": address(number),
    }
    return Reply(200, listed)


def _number(digits: str | None, default: int) -> int:
    return int(digits) if digits and digits.isascii() and digits.isdigit() else default


# -- shapes ----------------------------------------------------------------------------------------------------------


def _message(base: str, message: Message) -> dict[str, Any]:
    return {
        "account_sid": base.rsplit("/", 1)[1],
        "api_version": VERSION,
        "body": message.body,
        "date_created": _rfc2822(message.created_at),
        "date_sent": _rfc2822(message.sent_at),
        "date_updated": _rfc2822(message.updated_at),
        "direction": message.direction,
        "error_code": message.error_code,
        "error_message": None,
        "from": message.sender,
        "messaging_service_sid": None,
        "num_media": str(len(message.media)),
        "num_segments": str(segments(message.body)),
        "price": None,
        "price_unit": "USD",
        "sid": message.sid,
        "status": message.status,
        "subresource_uris": {"media": f"{base}/Messages/{message.sid}/Media.json"},
        "to": message.to,
        "uri": f"{base}/Messages/{message.sid}.json",
    }


def _media(base: str, message: Message, sid: str) -> dict[str, Any]:
    return {
        "account_sid": base.rsplit("/", 1)[1],
        "content_type": "image/jpeg",
        "date_created": _rfc2822(message.created_at),
        "date_updated": _rfc2822(message.created_at),
        "parent_sid": message.sid,
        "sid": sid,
        "uri": f"{base}/Messages/{message.sid}/Media/{sid}.json",
    }


def _call(base: str, call: Call) -> dict[str, Any]:
    seconds = (call.ended_at - call.started_at).total_seconds() if call.started_at and call.ended_at else None
    return {
        "account_sid": base.rsplit("/", 1)[1],
        "api_version": VERSION,
        "date_created": _rfc2822(call.created_at),
        "date_updated": _rfc2822(call.ended_at or call.created_at),
        "direction": call.direction,
        "duration": None if seconds is None else str(round(seconds)),
        "end_time": _rfc2822(call.ended_at),
        "from": call.sender,
        "parent_call_sid": None,
        "price": None,
        "price_unit": "USD",
        "sid": call.sid,
        "start_time": _rfc2822(call.started_at),
        "status": call.status,
        "subresource_uris": {"recordings": f"{base}/Calls/{call.sid}/Recordings.json"},
        "to": call.to,
        "uri": f"{base}/Calls/{call.sid}.json",
    }


def _recording(base: str, recording: Recording) -> dict[str, Any]:
    return {
        "account_sid": base.rsplit("/", 1)[1],
        "api_version": VERSION,
        "call_sid": recording.call_sid,
        "channels": 1,
        "date_created": _rfc2822(recording.created_at),
        "date_updated": _rfc2822(recording.created_at),
        "duration": str(recording.seconds),
        "encryption_details": None,
        "error_code": None,
        "price": None,
        "price_unit": "USD",
        "sid": recording.sid,
        "source": "RecordVerb",
        "start_time": _rfc2822(recording.created_at),
        "status": recording.status,
        "uri": f"{base}/Recordings/{recording.sid}.json",
    }


_KINDS: Mapping[str, tuple[Kind, Callable[[str, Any], dict[str, Any]]]] = {
    "Messages": ("message", _message),
    "Calls": ("call", _call),
    "Recordings": ("recording", _recording),
}


def _rfc2822(at: datetime | None) -> str | None:
    return format_datetime(at) if at else None


# -- on the wire -----------------------------------------------------------------------------------------------------


async def _read(scope: Scope, receive: Receive) -> Request:
    body, more = b"", True
    while more:
        part = await receive()
        body += part.get("body", b"")
        more = part.get("more_body", False)
    path = scope["path"].removeprefix(scope.get("root_path", ""))
    pairs = parse_qsl(scope["query_string"].decode(), keep_blank_values=True)
    pairs += parse_qsl(body.decode(), keep_blank_values=True)
    given = dict(scope["headers"]).get(b"authorization", b"").decode("latin-1")
    try:
        username, _, password = b64decode(given.removeprefix("Basic ")).decode().partition(":")
    except ValueError:
        username = password = ""
    return Request(scope["method"], path, dict(pairs), username, password)


async def _send(send: Send, reply: Reply) -> None:
    body = b"" if reply.payload is None else json.dumps(reply.payload, ensure_ascii=False).encode()
    if reply.garbled:
        body = b"<html>gateway</html>"
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if reply.retry_after is not None:
        headers.append((b"retry-after", str(ceil(reply.retry_after)).encode()))
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _gone(receive: Receive) -> None:
    """Wait until the other side has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass
