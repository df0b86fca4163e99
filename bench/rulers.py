"""The rulers: servers that do the least that could be called storing a text message, each as good as it gets.

``python -m bench.rulers a|b|postgresql DATABASE --port N`` serves one with the settings of the product: uvicorn,
one worker, uvloop, httptools, no access log.
"""

import argparse
import asyncio
import hmac
import os
import queue
import sys
import threading
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qsl

import psycopg
import pysqlite3.dbapi2 as sqlite3
import uvicorn
from fastapi import FastAPI, Request, Response
from twilio.request_validator import RequestValidator

from bench.ground import ACCOUNT, HOST, PUBLIC_URL, SMS_PATH, TOKEN

TWIML = b'<?xml version="1.0" encoding="UTF-8"?><Response/>'
TABLE = "CREATE TABLE IF NOT EXISTS sms (sid TEXT PRIMARY KEY, sender TEXT, receiver TEXT, body TEXT, at REAL)"
ROW = ("MessageSid", "From", "To", "Body")
GROUP = 32
CONNECTIONS = 32


def open_sqlite(path: str) -> Any:
    """Return a connection that commits each statement durably: WAL, FULL."""
    connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute(TABLE)
    return connection


def ceiling_a(path: str) -> FastAPI:
    """Return ceiling A: FastAPI's form, the provider's own validator, one row committed on the event loop."""
    connection, validator = open_sqlite(path), RequestValidator(TOKEN)
    app = _bare_app()

    @app.post(SMS_PATH)
    async def sms(request: Request) -> Response:
        form = dict(await request.form())
        signature = request.headers.get("x-twilio-signature", "")
        if not validator.validate(PUBLIC_URL + SMS_PATH, form, signature) or form["AccountSid"] != ACCOUNT:
            return Response(status_code=403)
        row = (*(form[name] for name in ROW), time.time())
        connection.execute("INSERT INTO sms VALUES (?, ?, ?, ?, ?)", row)
        return Response(TWIML, media_type="text/xml")

    return app


def ceiling_b(path: str) -> FastAPI:
    """Return ceiling B: an own HMAC, one parse, and one writer thread that groups commits."""
    writer = _Writer(open_sqlite(path))
    app = _bare_app()

    @app.post(SMS_PATH)
    async def sms(request: Request) -> Response:
        form = signed_form(await request.body(), request.headers.get("x-twilio-signature", ""))
        if form is None:
            return Response(status_code=403)
        await writer.submit((*(form[name] for name in ROW), time.time()))
        return Response(TWIML, media_type="text/xml")

    return app


def postgresql(url: str) -> FastAPI:
    """Return the ruler of PostgreSQL: an own HMAC, one parse, one row a transaction over a pool of connections."""
    pool: asyncio.LifoQueue[psycopg.AsyncConnection[Any]] = asyncio.LifoQueue()

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(TABLE.replace("REAL", "double precision"))
        for _ in range(CONNECTIONS):
            pool.put_nowait(await psycopg.AsyncConnection.connect(url, autocommit=True))
        yield
        while not pool.empty():
            await pool.get_nowait().close()

    app = _bare_app(lifespan=lifespan)

    @app.post(SMS_PATH)
    async def sms(request: Request) -> Response:
        form = signed_form(await request.body(), request.headers.get("x-twilio-signature", ""))
        if form is None:
            return Response(status_code=403)
        row = (*(form[name] for name in ROW), time.time())
        connection = await pool.get()
        try:
            await connection.execute("INSERT INTO sms VALUES (%s, %s, %s, %s, %s)", row)
        finally:
            pool.put_nowait(connection)
        return Response(TWIML, media_type="text/xml")

    return app


def _bare_app(**more: Any) -> FastAPI:
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, **more)

    @app.get("/health/ready")
    async def ready() -> Response:
        return Response()

    return app


def signed_form(body: bytes, signature: str) -> dict[str, str] | None:
    """Return the fields of a signed form, or None."""
    form = dict(parse_qsl(body.decode(), keep_blank_values=True))
    text = PUBLIC_URL + SMS_PATH + "".join([name + form[name] for name in sorted(form)])
    mac = b64encode(hmac.digest(TOKEN.encode(), text.encode(), "sha1"))
    good = hmac.compare_digest(mac, signature.encode()) and form.get("AccountSid") == ACCOUNT
    return form if good else None


class _Writer:
    """One thread that writes what has come in the meantime in one transaction."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._waiting: queue.SimpleQueue[tuple[tuple[Any, ...], asyncio.Future[None]]] = queue.SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    async def submit(self, row: tuple[Any, ...]) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.put((row, future))
        await future

    def _run(self) -> None:
        while True:
            group = [self._waiting.get()]
            while len(group) < GROUP:
                try:
                    group.append(self._waiting.get_nowait())
                except queue.Empty:
                    break
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.executemany("INSERT INTO sms VALUES (?, ?, ?, ?, ?)", [row for row, _ in group])
            self._connection.execute("COMMIT")
            futures = [future for _, future in group]
            futures[0].get_loop().call_soon_threadsafe(_resolve, futures)


def _resolve(futures: list["asyncio.Future[None]"]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)


# --- raw commits ----------------------------------------------------------------------------------------


def sqlite_commits(path: str, seconds: float) -> float:
    """Return how many rows a second SQLite commits one by one, WAL and FULL, without HTTP."""
    connection = open_sqlite(path)
    try:
        return _rate(lambda row: connection.execute("INSERT INTO sms VALUES (?, ?, ?, ?, ?)", row), seconds)
    finally:
        connection.close()


def postgresql_commits(url: str, seconds: float, *, threads: int = 8) -> float:
    """Return how many rows a second PostgreSQL commits one by one, over `threads` connections at once."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(TABLE.replace("REAL", "double precision"))
    rates: list[float] = []

    def commit() -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            rates.append(
                _rate(lambda row: connection.execute("INSERT INTO sms VALUES (%s, %s, %s, %s, %s)", row), seconds)
            )

    started = [threading.Thread(target=commit) for _ in range(threads)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    return sum(rates)


def _rate(commit: Callable[[tuple[Any, ...]], object], seconds: float) -> float:
    done, body = 0, "a child at the guesthouse near the market " * 3
    began = time.perf_counter()
    while (passed := time.perf_counter() - began) < seconds:
        commit(("SM" + os.urandom(16).hex(), "+85500000001", "+85500000009", body, 0.0))
        done += 1
    return done / passed


def main(arguments: list[str]) -> int:
    """Serve one ruler until it is ended."""
    parser = argparse.ArgumentParser(prog="python -m bench.rulers")
    parser.add_argument("ruler", choices=["a", "b", "postgresql"])
    parser.add_argument("database", help="a file for a and b, an address for postgresql")
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args(arguments)
    build = {"a": ceiling_a, "b": ceiling_b, "postgresql": postgresql}[options.ruler]
    uvicorn.run(
        build(options.database),
        host=HOST,
        port=options.port,
        loop="uvloop",
        http="httptools",
        access_log=False,
        server_header=False,
        log_level="warning",
        timeout_keep_alive=30,
        proxy_headers=False,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
