"""The shipped command with one thing changed: faults on demand, and the wrong ways that our tests must notice.

Each function changes the modules of its own process, before ``hotline serve`` runs in it. Nothing of the product
knows of this. ``python -m tests.chaos.staged NAME public --port N`` runs one; NAME ``-`` changes nothing.
"""

import asyncio
import os
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

from sqlalchemy import event
from starlette.types import Message, Receive, Scope, Send

import service.db as db
import webhooks.app
from commands import serve
from service import reading
from service.intake import IncomingTip, Intake, Receipt

STUMBLE = "stumble"
FALTER = "falter"
ROOM = "CHAOS_ROOM_FILE"


def answers_first() -> None:
    """Wrong: thank at once, and store afterwards."""
    running: set[asyncio.Task[Receipt]] = set()

    class AnswersFirst(Intake):
        async def receive(self, tip: IncomingTip) -> Receipt:
            task = asyncio.create_task(super().receive(tip))
            running.add(task)
            task.add_done_callback(running.discard)
            return Receipt(uuid4(), False, "P3")

    serve.Intake = AnswersFirst


def takes_faults_for_success() -> None:
    """Wrong: a group that could not be written counts as written."""

    class Careless(db.Writer):
        def _attempt(self, group: list[Any]) -> bool:
            super()._attempt(group)
            for member in group:
                member.fault = None
            return True

    serve.Writer = Careless


def forgets_to_sync() -> None:
    """Wrong: commit without waiting for the disk."""
    db.SQLITE_PRAGMAS = tuple("synchronous=NORMAL" if "synchronous" in p else p for p in db.SQLITE_PRAGMAS)


def prints_bodies() -> None:
    """Wrong: somebody left a ``print(body)`` in."""
    build = webhooks.app.create_app

    def printing(*args: Any, **kwargs: Any) -> Any:
        app = build(*args, **kwargs)

        async def peek(scope: Scope, receive: Receive, send: Send) -> None:
            async def printed() -> Message:
                message = await receive()
                print(message.get("body"), flush=True)
                return message

            await app(scope, printed, send)

        return peek

    webhooks.app.create_app = printing


def stumbles() -> None:
    """Faults on demand: "stumble" breaks the intake, "falter" the reading, with errors that quote the words."""

    class Stumbles(Intake):
        async def receive(self, tip: IncomingTip) -> Receipt:
            if STUMBLE in tip.text:
                raise RuntimeError(f"cannot take {tip.text!r} of {tip.sender}")
            return await super().receive(tip)

    serve.Intake = Stumbles
    decrypt = reading.decrypt

    def falter(*args: Any, **kwargs: Any) -> reading.OpenedFile:
        opened = decrypt(*args, **kwargs)
        for account in opened.accounts:
            if FALTER in account.text:
                raise RuntimeError(f"cannot show {account.text!r}")
        return opened

    reading.decrypt = falter


def on_a_small_disk() -> None:
    """A disk on demand: no more pages than the file that CHAOS_ROOM_FILE names says, asked anew for each write."""
    room = Path(os.environ[ROOM])
    opened = serve.open_database

    def with_little_room(url: str) -> db.Sessions:
        sessions = opened(url)

        @event.listens_for(sessions.writing, "checkout")
        def limit(connection: Any, _record: Any, _proxy: Any) -> None:
            connection.execute(f"PRAGMA max_page_count={int(room.read_text())}")

        return sessions

    serve.open_database = with_little_room


if __name__ == "__main__":
    if sys.argv[1] != "-":
        globals()[sys.argv[1]]()
    sys.exit(serve.main(sys.argv[2:]))
