"""Webhooks posted as Twilio posts them: signed over the public address, with its timings, retries and fallback.

By default 5 s to connect, 15 s to answer, 15 s in all, and one retry if no connection came about; the fragment of a
webhook's URL changes that (twilio.md sections 2 and 10; Twilio's page on connection overrides). When all of it has
failed, the fallback address is asked. Every attempt is put on ``provider.log``.

Time comes from ``provider.now`` and the network from `transport`, so that a test needs neither.
"""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from http.client import HTTPException, HTTPResponse
from io import BytesIO
from typing import Any, Protocol
from urllib.parse import parse_qsl, urlencode, urlsplit
from uuid import uuid4
from xml.etree import ElementTree

from webhooks.simulator.provider import Exchange, Message, Provider, StatusChange
from webhooks.simulator.signing import SMS_PATH, sign, sms_fields

MAX_ANSWER = 64 * 1024


@dataclass(frozen=True, slots=True)
class Target:
    """Where webhooks go.

    public_url: what is signed, without path. address: where the app really listens. options: the fragment of the
    configured URL, such as "rc=3&rp=all&tt=15000". The fallback is another host, with a public address of its own
    unless it stands behind the same.
    """

    public_url: str
    address: str
    fallback_address: str | None = None
    options: str = ""
    fallback_public_url: str | None = None


class NoConnection(Exception):
    """Nobody took the connection: refused, unknown or too slow."""


class NoAnswer(Exception):
    """The connection stood, and no whole answer came in time."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the app said."""

    status: int
    content_type: str = ""
    body: bytes = b""


class Transport(Protocol):
    """Posts `body` to `address`. connect, read, total: seconds to wait for a connection, for each part, in all."""

    async def __call__(
        self, address: str, headers: Mapping[str, str], body: bytes, *, connect: float, read: float, total: float
    ) -> Answer:
        """Return the answer. Raises NoConnection or NoAnswer."""


@dataclass(frozen=True, slots=True)
class Options:
    """How patient Twilio is with one URL. Seconds; retry_on: of ct (connection), rt (answer), 4xx, 5xx."""

    connect: float = 5.0
    read: float = 15.0
    total: float = 15.0
    retries: int = 1
    retry_on: frozenset[str] = frozenset({"ct"})


_POLICIES = frozenset({"4xx", "5xx", "ct", "rt"})
_RANGES = {"ct": (100, 10_000), "rt": (100, 15_000), "tt": (100, 15_000), "rc": (0, 5)}  # ms, and how often


def parse_options(fragment: str) -> Options:
    """Return what the fragment of a webhook's URL asks for, over the defaults.

    Names that are not about time or retries (``e``, ``sni``) change nothing here. Raises ValueError for a policy that
    does not exist, Twilio's error 11243, and for a number out of range.
    """
    given = dict(parse_qsl(fragment, keep_blank_values=True))
    numbers: dict[str, int] = {}
    for name, (low, high) in _RANGES.items():
        if name in given:
            digits = given[name]
            if not (digits.isascii() and digits.isdigit() and low <= int(digits) <= high):
                raise ValueError(f"{name} is a number from {low} to {high}")
            numbers[name] = int(digits)
    policies = frozenset(given["rp"].split(",")) if "rp" in given else Options().retry_on
    if not policies <= _POLICIES | {"all"}:
        raise ValueError("rp is of 4xx, 5xx, ct, rt and all")
    return Options(
        connect=numbers.get("ct", 5_000) / 1000,
        read=numbers.get("rt", 15_000) / 1000,
        total=numbers.get("tt", 15_000) / 1000,
        retries=numbers.get("rc", 1),
        retry_on=_POLICIES if "all" in policies else policies,
    )


async def post(
    address: str, headers: Mapping[str, str], body: bytes, *, connect: float, read: float, total: float
) -> Answer:
    """Post `body` over a real connection, which is used once. Raises NoConnection or NoAnswer."""
    parts = urlsplit(address)
    secure = parts.scheme == "https"
    clock = asyncio.get_running_loop().time
    deadline = clock() + total
    try:
        opening = asyncio.open_connection(parts.hostname, parts.port or (443 if secure else 80), ssl=secure or None)
        reader, writer = await asyncio.wait_for(opening, min(connect, total))
    except (OSError, TimeoutError) as fault:
        raise NoConnection(type(fault).__name__) from None
    head = {"Host": parts.netloc, **headers, "Content-Length": str(len(body)), "Connection": "close"}
    lines = [f"POST {parts.path or '/'} HTTP/1.1", *(f"{name}: {value}" for name, value in head.items()), "", ""]
    raw = b""
    try:
        writer.write("\r\n".join(lines).encode() + body)
        while part := await asyncio.wait_for(reader.read(MAX_ANSWER), min(read, max(deadline - clock(), 0))):
            raw += part
            if len(raw) > MAX_ANSWER:
                raise NoAnswer("too long")
        answer = HTTPResponse(_Bytes(raw), method="POST")  # type: ignore[arg-type]  # it only asks for a file
        answer.begin()
        return Answer(answer.status, answer.getheader("Content-Type", ""), answer.read())
    except (OSError, TimeoutError, HTTPException) as fault:
        raise NoAnswer(type(fault).__name__) from None
    finally:
        writer.close()


class _Bytes(BytesIO):
    def makefile(self, *_: Any) -> "_Bytes":
        return self


async def deliver(
    provider: Provider, target: Target, path: str, fields: Mapping[str, str], *, transport: Transport = post
) -> Exchange:
    """Post one webhook to `path` until it is taken, or Twilio would have given up. Return the last attempt.

    path: as in the configured URL, from the first slash. Its signature covers the public address, never the real one.
    A webhook whose options are wrong is not posted at all, except to the fallback (11243).
    """
    last, code = await _persist(provider, target, path, fields, transport)
    if not code or target.fallback_address is None:
        return last
    fallback = Target(target.fallback_public_url or target.public_url, target.fallback_address)
    told = {**fields, "ErrorCode": str(code), "ErrorUrl": target.public_url + path}
    last, _ = await _persist(provider, fallback, path, told, transport, note="fallback")
    return last


async def deliver_text(
    provider: Provider, target: Target, message: Message, *, transport: Transport = post
) -> Exchange:
    """Post the webhook of a text that arrived, to where texts go. Return the last attempt."""
    base = f"https://api.twilio.com/2010-04-01/Accounts/{provider.account_sid}/Messages/{message.sid}/Media"
    more = {"NumMedia": str(len(message.media))}
    for place, media in enumerate(message.media):
        more |= {f"MediaUrl{place}": f"{base}/{media}", f"MediaContentType{place}": "image/jpeg"}
    fields = sms_fields(
        body=message.body,
        sender=message.sender,
        to=message.to,
        account_sid=provider.account_sid,
        sid=message.sid,
        **more,
    )
    return await deliver(provider, target, SMS_PATH, fields, transport=transport)


async def deliver_callbacks(
    provider: Provider, target: Target, changes: Iterable[StatusChange], *, transport: Transport = post
) -> None:
    """Post the status callbacks of `changes`, in their order, each to the URL that its text was created with.

    Path, signature and options are those of that URL; where the app really listens is `target`'s. There is no
    fallback for callbacks.
    """
    for change in changes:
        if change.callback:
            url = urlsplit(change.callback)
            there = Target(f"{url.scheme}://{url.netloc}", target.address, options=url.fragment)
            path = url.path + (f"?{url.query}" if url.query else "")
            await deliver(provider, there, path, status_fields(provider, change), transport=transport)


def status_fields(provider: Provider, change: StatusChange) -> dict[str, str]:
    """Return the fields of a status callback, as Twilio sends them, and one that it does not send yet."""
    fields = {
        "SmsSid": change.sid,
        "SmsStatus": change.status,
        "MessageStatus": change.status,
        "To": change.to,
        "MessageSid": change.sid,
        "AccountSid": provider.account_sid,
        "From": change.sender,
        "ApiVersion": "2010-04-01",
        "AddedWithoutNotice": "1",
    }
    return fields | ({"ErrorCode": str(change.error_code)} if change.error_code else {})


async def _persist(
    provider: Provider, target: Target, path: str, fields: Mapping[str, str], transport: Transport, *, note: str = ""
) -> tuple[Exchange, int]:
    """Post until it is taken or patience ends; return the last attempt, and Twilio's code of its failure or 0."""
    signature = sign(target.public_url + path, fields, provider.auth_token)
    headers = {
        "Host": urlsplit(target.public_url).netloc,
        "Content-Type": "application/x-www-form-urlencoded; charset=UTF-8",
        "User-Agent": "TwilioProxy/1.1",
        "Accept": "*/*",
        "I-Twilio-Idempotency-Token": str(uuid4()),
        "X-Twilio-Signature": signature,
    }
    began = provider.now()

    def logged(at: datetime, status: int | None, *notes: str) -> Exchange:
        took = round((provider.now() - at).total_seconds() * 1000)
        said = ", ".join(words for words in (note, *notes) if words)
        exchange = Exchange(at, "webhook", "POST", path, status, took, dict(fields), signature, said)
        provider.log.append(exchange)
        return exchange

    try:
        options = parse_options(target.options)
    except ValueError as fault:
        return logged(began, None, f"11243: {fault}"), 11243
    left, attempt = options.total, 1
    address, body = target.address.rstrip("/") + path, urlencode(fields).encode()
    while True:
        at = provider.now()
        status: int | None = None
        try:
            answer = await transport(address, headers, body, connect=options.connect, read=options.read, total=left)
        except NoConnection:
            failure, code, words = "ct", 11205, "no connection"
        except NoAnswer:
            failure, code, words = "rt", 11205, "no answer"
        else:
            status = answer.status
            failure, code, words = _judge(answer, fields)
        last = logged(at, status, f"attempt {attempt}" if attempt > 1 else "", f"{code}: {words}" if code else "")
        left = options.total - (provider.now() - began).total_seconds()
        if failure not in options.retry_on or attempt > options.retries or left <= 0:
            return last, code
        attempt += 1


def _judge(answer: Answer, fields: Mapping[str, str]) -> tuple[str, int, str]:
    """Return why an answer is none: a class for ``rp``, Twilio's code and words; "", 0, "" for a good one."""
    if not 200 <= answer.status < 300:  # a redirect is a fault here: no address of ours answers with one
        return f"{answer.status // 100}xx", 11200, f"status {answer.status}"
    if not answer.body.strip() or fields.keys() & _REPORTS:
        return "", 0, ""
    if answer.content_type.partition(";")[0].strip().lower() not in ("text/xml", "application/xml"):
        return "type", 12300, "not XML"
    try:
        is_twiml = ElementTree.fromstring(answer.body).tag == "Response"  # noqa: S314 - our own app's answer
    except ElementTree.ParseError:
        is_twiml = False
    return ("", 0, "") if is_twiml else ("twiml", 12100, "not TwiML")


_REPORTS = frozenset({"MessageStatus", "RecordingStatus"})  # nobody reads the answer to these
