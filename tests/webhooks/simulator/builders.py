"""A provider with a clock that stands still, and its REST side on a real loopback socket."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from webhooks.simulator.provider import Provider

ACCOUNT = "AC" + "0" * 32
KEY, SECRET = "SK" + "1" * 32, "the secret of the tests' key"
TOKEN = "a-token-of-the-tests-0123456789a"
NUMBER = "+85500000100"
PHONE = "+85500000001"
BEGAN = datetime(2026, 11, 21, 8, 0, tzinfo=UTC)


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.at = BEGAN

    def __call__(self) -> datetime:
        return self.at

    def forward(self, seconds: float) -> None:
        """Move it."""
        self.at += timedelta(seconds=seconds)


def a_provider(clock: Clock | None = None, **more: Any) -> Provider:
    """Return a provider with one account, one API key and one number."""
    known = {"account_sid": ACCOUNT, "auth_token": TOKEN, "api_keys": {KEY: SECRET}, "numbers": [NUMBER]}
    return Provider(**(known | {"now": clock or Clock(), "seed": 1} | more))


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """Serve `app` on a loopback port and yield its address."""
    config = uvicorn.Config(app, host="127.0.0.1", port=0, lifespan="off", log_config=None, log_level="critical")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.002)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)


class Stage:
    """One server for many tests, each of which puts its own app on it."""

    app: ASGIApp
    address: str

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)

    @classmethod
    @contextmanager
    def open(cls) -> Iterator["Stage"]:
        """Serve until the end of the context."""
        stage = cls()
        with serving(stage) as stage.address:
            yield stage


def nobody() -> str:
    """Return an address on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"
