"""Requests to the public app: signed text messages, filled-in forms, and raw ASGI for what no client would send."""

import asyncio
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from twilio.request_validator import RequestValidator

from service.config import Settings
from webhooks.admission import Limits
from webhooks.app import create_app

ACCOUNT = "AC" + "0" * 32
NUMBER = "+85500000009"
SENDER = "+85500000001"
TOKEN = b"a-token-of-the-tests-0123456789a"
PREVIOUS_TOKEN = b"the-token-before-it-0123456789ab"
FORM_KEY = b"the form key of the tests, 32 by"
HOST = "https://hotline.example"
SMS = "/webhooks/twilio/sms"
FORM_TYPE = "application/x-www-form-urlencoded"
CANARY = "canary-7f3a91"

Headers = Sequence[tuple[bytes, bytes]]


def an_sms(sid: str = "SM1", body: str = "a child at 4 Elm St", sender: str = SENDER, **more: str) -> dict[str, str]:
    """Return the fields of a text message as Twilio sends them: twenty-two."""
    fields = {
        "ToCountry": "KH", "ToState": "", "SmsMessageSid": sid, "NumMedia": "0", "ToCity": "", "FromZip": "",
        "SmsSid": sid, "FromState": "", "SmsStatus": "received", "FromCity": "", "Body": body, "FromCountry": "KH",
        "To": NUMBER, "MessagingServiceSid": "MG" + "0" * 32, "ToZip": "", "AddOns": "", "NumSegments": "1",
        "MessageSid": sid, "AccountSid": ACCOUNT, "From": sender, "ApiVersion": "2010-04-01", "OptOutType": "",
    }  # fmt: skip
    return fields | more


def sign(fields: Mapping[str, str], *, url: str = HOST + SMS, token: bytes = TOKEN) -> bytes:
    """Return the signature that the provider's own library computes."""
    return RequestValidator(token.decode()).compute_signature(url, dict(fields)).encode()


def encode(fields: Mapping[str, str] | Sequence[tuple[str, str]]) -> bytes:
    """Return `fields` url-encoded."""
    return urlencode(fields).encode()


def sms_headers(signature: bytes, *, content_type: str = f"{FORM_TYPE}; charset=UTF-8") -> list[tuple[bytes, bytes]]:
    """Return the headers of a signed webhook."""
    return [
        (b"host", b"hotline.example"),
        (b"user-agent", b"TwilioProxy/1.1"),
        (b"content-type", content_type.encode()),
        (b"x-twilio-signature", signature),
    ]


def settings(tmp_path: Path, **more: Any) -> Settings:
    """Return settings with a Twilio account, current and previous token."""
    files = {}
    for name, token in (("twilio_token_file", TOKEN), ("twilio_previous_token_file", PREVIOUS_TOKEN)):
        path = tmp_path / name
        if not path.exists():
            path.write_bytes(token)
            path.chmod(0o400)
        files[name] = path
    known = {"public_url": HOST, "twilio_account_sid": ACCOUNT, "twilio_numbers": (NUMBER,), **files}
    return Settings(**(known | more))


def an_app(
    tmp_path: Path,
    intake: Any,
    *,
    limits: Limits | None = None,
    health: Any = None,
    codes: Any = None,
    mailboxes: Any = None,
    pass_key: bytes = b"",
    **more: Any,
) -> Any:
    """Return the public app over `intake`, and over codes and mailboxes where there are some."""
    known = settings(tmp_path, **more)
    ready, numbers = health or (lambda: {"database": True}), {"codes": codes, "mailboxes": mailboxes}
    return create_app(
        known, intake=intake, health=ready, form_key=FORM_KEY, limits=limits, pass_key=pass_key, **numbers
    )


@dataclass(frozen=True)
class Answer:
    """What an ASGI app answered."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes

    def header(self, name: str) -> str | None:
        """Return the header `name`; fails if it stands twice."""
        found = [value for key, value in self.headers if key.decode().lower() == name]
        assert len(found) <= 1, f"{name} twice"
        return found[0].decode() if found else None

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode()


async def exchange(app: Any, scope: dict[str, Any], messages: Iterable[dict[str, Any]]) -> Answer | None:
    """Send `messages` to `app`; None if it answered nothing. After the last message the sender stays silent."""
    waiting, sent = list(messages), []

    async def receive() -> dict[str, Any]:
        if waiting:
            return waiting.pop(0)
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app(scope, receive, send)
    if not sent:
        return None
    body = b"".join(message.get("body", b"") for message in sent[1:])
    return Answer(sent[0]["status"], list(sent[0].get("headers", [])), body)


def a_scope(
    method: str, path: str, *, headers: Headers = (), query: bytes = b"", length: int | None = None
) -> dict[str, Any]:
    """Return an HTTP scope as uvicorn makes it."""
    own = [] if length is None else [(b"content-length", str(length).encode())]
    return {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
        "path": path, "raw_path": path.encode(), "query_string": query, "root_path": "", "headers": [*headers, *own],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8000),
    }  # fmt: skip


def drive(
    app: Any,
    method: str,
    path: str,
    *,
    headers: Headers = (),
    body: bytes = b"",
    query: bytes = b"",
    messages: Iterable[dict[str, Any]] | None = None,
) -> Answer:
    """Send one request past every client library, and return the answer."""
    if messages is None:
        messages = [{"type": "http.request", "body": body, "more_body": False}]
        length = len(body) if method == "POST" else None
    else:
        length = None
    answer = asyncio.run(exchange(app, a_scope(method, path, headers=headers, query=query, length=length), messages))
    assert answer is not None
    return answer


def post_sms(app: Any, fields: Mapping[str, str], *, token: bytes = TOKEN) -> Answer:
    """Post a signed text message."""
    return drive(app, "POST", SMS, headers=sms_headers(sign(fields, token=token)), body=encode(fields))


def open_form(app: Any, *, query: bytes = b"") -> tuple[str, str]:
    """Show the form and return its token and the nonce of its field names."""
    page = drive(app, "GET", "/report", query=query).text
    token = re.search(r'name="token" value="([^"]+)"', page)
    nonce = re.search(r'name="what-([^"]+)"', page)
    assert token
    assert nonce
    return token[1], nonce[1]


def post_form(
    app: Any, answers: Mapping[str, str], *, token: str = "", nonce: str = "", query: bytes = b"", headers: Headers = ()
) -> Answer:
    """Send the form with `answers` by question."""
    fields = {"z": "x", "token": token} | {f"{name}-{nonce}" if nonce else name: v for name, v in answers.items()}
    sent = [(b"content-type", FORM_TYPE.encode()), *headers]
    return drive(app, "POST", "/report", headers=sent, body=encode(fields), query=query)
