"""Texts out, and the provider's copies of texts, through Twilio's own client (twilio.md sections 5, 9 and 10).

The only module that loads that client (threats.md section 6); the worker alone imports it. Two things of it are not
used. Its HTTP part logs addresses, keeps connections for the next request and cannot be told where the provider is;
``_Wire`` does the asking, and decides what is known of a request that failed. And its errors quote what the provider
says, which quotes numbers; a CarrierFault quotes nothing, and is raised where no other error hangs on to it.

No number of a phone is ever part of an address: lists are asked for by our own sender and searched here.
"""

import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from ipaddress import ip_address
from typing import Any, TypeVar
from urllib.parse import urlsplit

import requests
import structlog
from requests.adapters import HTTPAdapter
from twilio.http import HttpClient
from twilio.http.response import Response
from twilio.rest import Client

from service.errors import CarrierFault, NotSent, Refused, Unclear

FINAL = frozenset({"delivered", "undelivered", "failed", "received", "read", "canceled"})
NOT_FINAL_YET, GONE = 20009, 20404
CLOCKS_DIFFER = timedelta(minutes=1)
PAGE = 1000
CONNECT = 5.0  # seconds

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Copy:
    """One message that the provider still holds. at: when it was made, to the second. media: how many pictures."""

    sid: str
    inbound: bool
    status: str
    final: bool
    error_code: int | None
    at: datetime
    media: int


class TwilioCarrier:
    """Texts out through Twilio's own client.

    Whatever goes wrong is a CarrierFault. NotSent: no connection came about, or the provider asked for patience
    (429) or does not know us (401, 403). Refused: it said no, and why. Unclear: everything else, above all silence,
    a connection lost and any 5xx: the request may have been acted upon.
    """

    name = "twilio"

    def __init__(
        self,
        *,
        account_sid: str,
        api_key_sid: str,
        api_key_secret: str,
        sender: str,
        status_callback: str | None = None,
        api_url: str = "https://api.twilio.com",
        timeout: float = 15.0,
    ) -> None:
        """Send from the number `sender`. An API key, never the account's token: it can be taken back alone.

        status_callback: URL that statuses are posted to. timeout: seconds to wait for an answer.
        """
        self._sender = sender
        self._callback = {"status_callback": status_callback} if status_callback else {}
        self._client = Client(api_key_sid, api_key_secret, account_sid, http_client=_Wire(api_url, timeout))

    def send(self, to: str, text: str) -> str:
        """Send `text` to the number `to`, once; return the message's SID. Raises NotSent, Refused or Unclear."""
        create = self._client.messages.create
        message = _understood(partial(create, to=to, from_=self._sender, body=text, **self._callback))
        return _checked(message.sid)

    def find(self, to: str, text: str, since: datetime) -> list[str]:
        """Return the SIDs of our messages to `to` with exactly this text, made at or after `since`, oldest first.

        A minute is allowed for clocks that differ. Raises NotSent or Unclear when the whole list cannot be had.
        """
        found: list[Copy] = []
        for message in self._held(from_=self._sender):
            copy = _understood(partial(_copy, message))
            if message.to == to and message.body == text and copy.at >= since - CLOCKS_DIFFER:
                found.insert(0, copy)
        return [copy.sid for copy in sorted(found, key=lambda copy: copy.at)]

    def copies(self, since: datetime) -> Iterator[Copy]:
        """Yield what the provider still holds of messages made at or after `since`, in and out, newest first.

        Everything held is read, page by page: a filter by date sent would hide what failed before it was sent, and
        in an account that is cleaned all the time little is held. Raises NotSent or Unclear, also midway.
        """
        for message in self._held():
            copy = _understood(partial(_copy, message))
            if copy.at >= since.replace(microsecond=0):
                yield copy

    def delete(self, copy: Copy) -> bool:
        """Delete the provider's copy of a message, pictures first. True: it is gone; False: it is not final yet.

        Raises NotSent, Refused or Unclear.
        """
        message = self._client.messages(_checked(copy.sid))
        pictures = _pictures(message) if copy.media else []
        return all(_is_gone(message.media(sid).delete) for sid in pictures) and _is_gone(message.delete)

    def _held(self, **only: str) -> Iterator[Any]:
        """Yield the client's messages, newest first."""
        page = _understood(partial(self._client.messages.page, page_size=PAGE, **only))
        while page is not None:
            yield from _understood(partial(list, page))
            page = _understood(page.next_page)


def _copy(message: Any) -> Copy:
    return Copy(
        sid=_checked(message.sid),
        inbound=message.direction == "inbound",
        status=message.status,
        final=message.status in FINAL,
        error_code=message.error_code,
        at=message.date_created.astimezone(UTC),
        media=int(message.num_media),
    )


def _pictures(message: Any) -> list[str]:
    try:
        return [_checked(picture.sid, "ME") for picture in _understood(message.media.list)]
    except Refused as refusal:
        if refusal.code != GONE:
            raise
        return []


def _is_gone(delete: Callable[[], object]) -> bool:
    """Return True if `delete` did it, or there is nothing to delete; False if it is too early."""
    try:
        _understood(delete)
    except Refused as refusal:
        if refusal.code not in (GONE, NOT_FINAL_YET):
            raise
        return refusal.code == GONE
    return True


def _understood(ask: Callable[[], T]) -> T:
    """Return what `ask` gets from the client; raise Unclear if the client cannot read what came."""
    try:
        return ask()
    except CarrierFault:
        raise
    except Exception:  # noqa: BLE001, S110 - whatever the client stumbled over, the request had been answered
        pass
    raise Unclear("the provider's answer cannot be read")  # out here it drags no error along that quotes the answer


def _checked(sid: object, kinds: str = "SM|MM") -> str:
    """Return an identifier that is safe in an address. Raises Unclear: it is not what was asked for."""
    if not isinstance(sid, str) or not re.fullmatch(f"({kinds})[0-9a-fA-F]{{32}}", sid):
        raise Unclear("the provider gave an identifier that is none")
    return sid


class _Wire(HttpClient):  # type: ignore[misc]  # the client has no types
    """Asks the provider at `api_url`, each time over a new connection, and follows no redirect.

    A connection is never used twice: one that did not come about proves that nothing was sent.
    """

    def __init__(self, api_url: str, timeout: float) -> None:
        super().__init__(logging.getLogger(__name__), False, timeout)  # it is not written to
        self._base = api_url.rstrip("/")
        self._waits = (min(CONNECT, timeout), timeout)
        self._trust_env = not _is_loopback(urlsplit(api_url).hostname or "")

    def request(
        self,
        method: str,
        uri: str,
        params: Any = None,
        data: Any = None,
        headers: Mapping[str, str] | None = None,
        auth: tuple[str, str] | None = None,
        timeout: float | None = None,
        allow_redirects: bool = False,
    ) -> Response:
        """Return the answer, if it is a 2xx. Raises NotSent, Refused or Unclear."""
        parts = urlsplit(uri)  # of which scheme and host are dropped: a page's address comes from outside
        address = self._base + parts.path + (f"?{parts.query}" if parts.query else "")
        answer = self._ask(requests.Request(method, address, headers, data=data, params=params, auth=auth))
        if isinstance(answer, CarrierFault):
            raise answer
        status, text = answer.status_code, answer.content.decode("utf-8", "replace")
        if status in (401, 403):
            structlog.get_logger().error("provider_refuses_us", provider=TwilioCarrier.name, status=status)
            raise NotSent("the provider does not accept our key")
        if status == 429:
            asked = answer.headers.get("Retry-After", "")
            after = float(asked) if re.fullmatch("[0-9]{1,6}", asked) else None
            raise NotSent("the provider asks for patience", after=after)
        if 400 <= status < 500 and (code := _code(text)):
            raise Refused(code)
        if not 200 <= status < 300:
            raise Unclear(f"the provider answered with status {status}")
        return Response(status, text, answer.headers)

    def _ask(self, request: requests.Request) -> "requests.Response | CarrierFault":
        """Return the answer, or what is known when there is none."""
        adapter = _Adapter()
        with requests.Session() as session:
            session.trust_env = self._trust_env
            session.mount("http://", adapter)
            session.mount("https://", adapter)
            prepared = session.prepare_request(request)
            around = session.merge_environment_settings(str(prepared.url), {}, None, None, None)
            try:
                return session.send(prepared, timeout=self._waits, allow_redirects=False, **around)
            except Exception:  # noqa: BLE001 - whatever it is, what counts is whether the request may have left
                if adapter.connected:
                    return Unclear("the provider did not answer")
                return NotSent("the provider was not reached")


class _Adapter(HTTPAdapter):
    """Carries one request. connected: a connection stood, TLS and all, so the request may have left."""

    connected = False

    def get_connection_with_tls_context(self, *args: Any, **more: Any) -> Any:
        """Return a pool whose connections say when they stand."""
        pool, adapter = super().get_connection_with_tls_context(*args, **more), self

        class Connection(pool.ConnectionCls):  # type: ignore[misc, name-defined]
            def connect(self) -> None:
                super().connect()
                adapter.connected = True

        pool.ConnectionCls = Connection
        return pool


def _code(text: str) -> int | None:
    """Return Twilio's code in a refusal; None if Twilio did not write it: then somebody stands between us."""
    try:
        code = json.loads(text)["code"]
    except (ValueError, KeyError, TypeError):
        return None
    return code if isinstance(code, int) else None


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
