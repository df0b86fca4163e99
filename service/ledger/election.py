"""One leader of the sequencer: an advisory lock of a PostgreSQL session, a locked file beside SQLite (ledger.md 4).

The lock only keeps two from working at once. What keeps a leader that lost it from writing is the epoch in
``ledger_state``, which every new leader raises (`service.ledger.sequencer`).
"""

import fcntl
import os
from contextlib import suppress
from typing import Protocol

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from service.db import Sessions

_KEY = int.from_bytes(b"bamboo/l", "big")  # any fixed number that nobody else locks; it fits a signed bigint


class Election(Protocol):
    """Who leads."""

    def take(self) -> bool:
        """Try to become the leader; return whether this one is."""
        ...

    def held(self) -> bool:
        """Return whether this one still is."""
        ...

    def give_up(self) -> None:
        """Let another one lead."""
        ...


def election(sessions: Sessions) -> Election:
    """Return the election among all sequencers of this database."""
    if sessions.dialect == "sqlite":
        return _FileElection(f"{sessions.writing.url.database}.leader")
    return _SessionElection(sessions)


class _FileElection:
    """A lock on a file: the kernel frees it when its holder dies."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._descriptor: int | None = None

    def take(self) -> bool:
        if self._descriptor is None:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                return False
            self._descriptor = descriptor
        return True

    def held(self) -> bool:
        return self._descriptor is not None

    def give_up(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class _SessionElection:
    """An advisory lock of one session, kept open outside any transaction: the server frees it when that ends."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._connection: Connection | None = None

    def take(self) -> bool:
        if self._connection is None:
            connection = self._sessions.reading.connect().execution_options(isolation_level="AUTOCOMMIT")
            if not connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": _KEY}):
                connection.close()
                return False
            self._connection = connection
        return True

    def held(self) -> bool:
        if self._connection is None:
            return False
        try:
            self._connection.scalar(text("SELECT 1"))
        except DBAPIError:
            self.give_up()
            return False
        return True

    def give_up(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            with suppress(DBAPIError):
                connection.scalar(text("SELECT pg_advisory_unlock(:key)"), {"key": _KEY})
            with suppress(DBAPIError):
                connection.invalidate()  # closes the session itself: a pooled one could keep the lock
            with suppress(DBAPIError):
                connection.close()
