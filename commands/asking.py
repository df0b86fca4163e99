"""One HTTP request to somebody who may be slow, gone or hostile: what came within a deadline and a size, or nothing."""

import ssl
import time
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

LOOPBACK = ("127.0.0.1", "::1", "localhost")


class NoAnswer(Exception):
    """Nothing came that could be used."""


class _Stay(HTTPRedirectHandler):
    """Whoever is asked answers himself, or not at all."""

    def redirect_request(self, *_: Any) -> None:
        """Follow nothing."""
        return


def ask(url: str, body: bytes | None = None, *, seconds: float, most: int) -> tuple[int, bytes]:
    """Return status and body of a GET of `url`, or of a POST of `body`.

    seconds: for all of it, as far as the answer comes in pieces. most: bytes of the answer.
    Raises NoAnswer where none came in time, or one that is longer.
    """
    deadline = time.monotonic() + seconds
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise NoAnswer("not an address")
    # A proxy of the environment knows nothing of this machine.
    opener = build_opener(_Stay, ProxyHandler({}) if parts.hostname in LOOPBACK else ProxyHandler())
    request = Request(url, data=body, headers={"Content-Type": "text/plain; charset=utf-8"} if body else {})  # noqa: S310
    try:
        try:
            answer = opener.open(request, timeout=seconds)
        except HTTPError as refusal:
            answer = refusal
        with answer:
            data = bytearray()
            while chunk := answer.read1(65536):
                data += chunk
                if len(data) > most or time.monotonic() > deadline:
                    raise NoAnswer("an answer without end")
            return int(answer.status), bytes(data)
    except (OSError, ssl.SSLError, HTTPException, ValueError):
        raise NoAnswer("no answer") from None
