"""Both databases: engines, transactions, group commit.

SQLite comes through the pysqlite3 wheel, because the system's own library can corrupt a WAL file that several
processes share (threats.md section 5). PostgreSQL is the engine for more than one machine.
"""

import asyncio
import itertools
import queue
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import pysqlite3.dbapi2 as sqlite3
import structlog
from sqlalchemy import Connection, Engine, LargeBinary, Table, create_engine, event, exc, insert, text
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.engine import Dialect, make_url
from sqlmodel import Session

from service.errors import Busy, Conflict, HeadMoved, Misconfigured, Repeated, StorageUnavailable
from service.logs import place

T = TypeVar("T")

log = structlog.get_logger()

OLDEST_SQLITE = (3, 51, 3)
SQLITE_PRAGMAS = (
    "journal_mode=WAL",
    "synchronous=FULL",
    "busy_timeout=5000",
    "foreign_keys=ON",
    "trusted_schema=OFF",
    "secure_delete=ON",
    "cell_size_check=ON",
    # The design says 1000. A tip dirties some forty pages, so that is a checkpoint for every 25 tips inside their
    # commit; at 4000 hot pages are copied once and the log stays below 20 MB (docs/adr/0006.md).
    "wal_autocheckpoint=4000",
    "mmap_size=0",
)
POSTGRESQL_OPTIONS = (
    "-c synchronous_commit=on -c statement_timeout=5000 -c lock_timeout=2000"
    " -c idle_in_transaction_session_timeout=10000 -c timezone=UTC"
)
# A server whose host vanished must not hold a thread until the kernel gives up after a quarter of an hour.
POSTGRESQL_KEEPALIVE = {
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
ATTEMPTS = 5
ALONE = 3  # tries of one member: two processes whose groups hold what the other wants are told to begin anew
LONGEST_WAIT = 12.0  # seconds; Twilio gives up at 15
RETRIED_SQLSTATES = {"40001", "40P01"}  # serialization failure, deadlock


class Tx(Session):
    """An open transaction. Use cases take one and never commit."""

    pipelined = False  # inside a pipeline that somebody else leaves

    def insert(self, table: Any, rows: Sequence[Mapping[str, Any]]) -> None:
        """Insert `rows` of one table past the ORM: see `insert_all`."""
        self.insert_all([(table, rows)])

    def insert_all(self, batches: Iterable[tuple[Any, Sequence[Mapping[str, Any]]]]) -> None:
        """Insert rows of several tables, in order, past the ORM: for the intake path (docs/adr/0006.md).

        batches: table classes with rows that share their columns; every column without a value in the database
        must be in each row. On PostgreSQL they travel together and are waited for once.
        Raises the driver's errors, which ``write`` and ``Writer`` translate.
        """
        connection = self.connection()
        dialect = connection.dialect.name
        with nullcontext() if self.pipelined else _pipelined(connection):
            for table, rows in batches:
                if not rows:
                    continue
                plan = _insert_plan(dialect, table.__table__, tuple(rows[0]), len(rows))
                values = [
                    convert(row[name]) if convert and row[name] is not None else row[name]
                    for row in rows
                    for name, convert in plan.columns
                ]
                connection.connection.cursor().execute(plan.statement, values)


@dataclass(frozen=True, slots=True)
class _InsertPlan:
    """An INSERT of some rows as the driver takes it: its text, and the columns with what converts their values."""

    statement: str
    columns: tuple[tuple[str, Callable[[Any], Any] | None], ...]


@lru_cache(maxsize=1024)
def _insert_plan(dialect_name: str, table: Table, columns: tuple[str, ...], rows: int) -> _InsertPlan:
    dialect = _dialects[dialect_name]
    compiled = insert(table).inline().compile(dialect=dialect, column_keys=list(columns))
    head, one = str(compiled).split(" VALUES ")
    convert: dict[str, Callable[[Any], Any] | None] = {}
    for name in columns:
        kind = table.c[name].type
        # bytes go to both drivers as they are; wrapping them costs more than writing them
        plain = isinstance(kind, LargeBinary)
        convert[name] = None if plain else kind.dialect_impl(dialect).bind_processor(dialect)
    statement = f"{head} VALUES {', '.join([one] * rows)}"
    return _InsertPlan(statement, tuple((name, convert[name]) for name in compiled.positiontup or ()))


_dialects: dict[str, Dialect] = {}


@dataclass(frozen=True)
class Sessions:
    """A database: an engine that writes and one that only reads."""

    writing: Engine
    reading: Engine

    @property
    def dialect(self) -> str:
        """``sqlite`` or ``postgresql``."""
        return self.writing.dialect.name

    @contextmanager
    def read(self) -> Iterator[Session]:
        """Yield a session that sees one moment of the database and changes nothing.

        Raises StorageUnavailable if the database does not answer.
        """
        try:
            with Session(self.reading, autoflush=False, expire_on_commit=False) as session:
                yield session
        except exc.DBAPIError as fault:
            raise StorageUnavailable("The database does not answer.") from without_words(fault)

    def engine_version(self) -> str:
        """Return the engine's name and version, for health pages."""
        if self.dialect == "sqlite":
            return f"SQLite {sqlite3.sqlite_version}"
        with self.reading.connect() as connection:
            return f"PostgreSQL {connection.execute(text('SHOW server_version')).scalar()}"

    def close(self) -> None:
        """Close all connections."""
        self.writing.dispose()
        self.reading.dispose()


def open_database(url: str) -> Sessions:
    """Return the database at `url` (``sqlite:///file`` or ``postgresql://…``), without touching it yet.

    Raises Misconfigured for another kind of database or an SQLite library too old to be safe.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        if sqlite3.sqlite_version_info < OLDEST_SQLITE:
            raise Misconfigured(
                f"SQLite {sqlite3.sqlite_version} is older than 3.51.3 and not safe; run ./hotline again"
            )
        if not parsed.database or parsed.database == ":memory:":
            raise Misconfigured("HOTLINE_DATABASE_URL must name a file")
        writing, reading = (_sqlite_engine(parsed.database, mode) for mode in ("IMMEDIATE", "DEFERRED"))
    elif parsed.get_backend_name() == "postgresql":
        writing, reading = (
            create_engine(
                parsed.set(drivername="postgresql+psycopg"),
                pool_pre_ping=True,
                pool_size=8,
                hide_parameters=True,
                connect_args={"options": POSTGRESQL_OPTIONS, "connect_timeout": 3, **POSTGRESQL_KEEPALIVE},
            )
            for _ in range(2)
        )
    else:
        raise Misconfigured("HOTLINE_DATABASE_URL must begin with sqlite:/// or postgresql://")
    # Rows for insert_all go by position on both engines.
    _dialects[writing.dialect.name] = (
        writing.dialect if writing.dialect.name == "sqlite" else PGDialect_psycopg(paramstyle="format")  # type: ignore[no-untyped-call]
    )
    return Sessions(writing, reading)


def _sqlite_engine(path: str, mode: str) -> Engine:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(f"sqlite:///{path}", module=sqlite3, hide_parameters=True, connect_args={"timeout": 5})

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # this module says BEGIN, not the driver
        cursor = connection.cursor()
        for pragma in SQLITE_PRAGMAS:
            cursor.execute(f"PRAGMA {pragma}")
        if mode == "DEFERRED":
            cursor.execute("PRAGMA query_only=ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # A deferred transaction that reads and then writes fails at once under load: writers say so first.
        connection.exec_driver_sql(f"BEGIN {mode}")

    return engine


def write(sessions: Sessions, use_case: Callable[[Tx], T]) -> T:
    """Run `use_case` in a transaction of its own, commit durably and return its result.

    A lost compare-and-swap, a serialization failure or a deadlock is tried again, five times with jitter.
    Raises what the use case raises, Repeated for a broken uniqueness, StorageUnavailable when nothing was stored.
    """
    for attempt in range(ATTEMPTS):
        try:
            with sessions.writing.connect() as connection, connection.begin(), Tx(bind=connection) as tx:
                result = use_case(tx)
                tx.flush()
                return result
        except HeadMoved:
            if attempt == ATTEMPTS - 1:
                raise
        except Exception as fault:
            known = translate(fault)
            if known is None:
                raise
            original = fault.orig if isinstance(fault, exc.DBAPIError) else fault
            if getattr(original, "sqlstate", None) not in RETRIED_SQLSTATES or attempt == ATTEMPTS - 1:
                raise known from without_words(fault)
        time.sleep(random.uniform(0, 0.02 * 2**attempt))  # noqa: S311 - jitter, not a secret
    raise StorageUnavailable("The database is too busy.")


def translate(fault: BaseException) -> Conflict | StorageUnavailable | None:
    """Return the domain's word for a database error, or None if it is none. Carries no value of a row."""
    # In a pipeline the statement after the one that failed may be what reports it.
    while type(fault).__name__ == "PipelineAborted" and fault.__context__ is not None:
        fault = fault.__context__
    original = fault.orig if isinstance(fault, exc.DBAPIError) and fault.orig is not None else fault
    kinds = {kind.__name__ for kind in type(original).__mro__}
    if "IntegrityError" in kinds:
        # SQLite tells a broken uniqueness from a trigger's refusal only in its words, PostgreSQL by SQLSTATE.
        if getattr(original, "sqlstate", None) == "23505" or str(original).startswith("UNIQUE constraint"):
            return Repeated("This is stored already.")
        return StorageUnavailable("The database refused this.")
    if isinstance(fault, (exc.TimeoutError, exc.ResourceClosedError)):
        return StorageUnavailable("The database does not answer.")
    if kinds & {"OperationalError", "InternalError", "InterfaceError", "DatabaseError"}:
        return StorageUnavailable("The database cannot take this now.")
    return None


def without_words(fault: BaseException) -> BaseException | None:
    """Return a stand-in for a driver's error: its own text may quote a row."""
    return StorageUnavailable(type(fault).__name__)


# --- group commit ---------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Member:
    """One use case that waits for its commit."""

    use_case: Callable[[Tx], Any]
    future: "asyncio.Future[Any]"
    loop: asyncio.AbstractEventLoop
    blind: bool = False
    result: Any = None
    fault: BaseException | None = None


class Writer:
    """One thread that groups the commits of many use cases: what is answered has been made durable.

    For the public process. Members run one after the other, each in a savepoint; one that fails leaves the others.
    """

    def __init__(self, sessions: Sessions, *, group_size: int = 32, waiting: int = 2000) -> None:
        self._sessions = sessions
        self._group_size = group_size
        self._waiting = waiting
        self.storing = True  # whether the last group was stored
        self._queue: queue.SimpleQueue[_Member | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
        self._thread.start()

    async def submit(self, use_case: Callable[[Tx], T], *, blind: bool = False) -> T:
        """Run `use_case` in the next group and return its result after the commit.

        blind: it only inserts and reads nothing, so that PostgreSQL is asked once for all of it.
        Raises what the use case raises, Conflict for a lost race (the caller tries again), Busy when too many
        wait, StorageUnavailable when nothing was stored.
        """
        if self._queue.qsize() >= self._waiting:
            raise Busy("Too many messages at once.")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._queue.put(_Member(use_case, future, loop, blind))
        giving_up = loop.call_later(LONGEST_WAIT, _give_up, future)
        try:
            return await future
        finally:
            giving_up.cancel()

    @property
    def alive(self) -> bool:
        """Whether the thread runs. Without it nothing is stored, and readiness must say so."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Finish what waits, then stop the thread."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        stopping = False
        while not stopping:
            group: list[_Member] = []
            member = self._queue.get()
            while True:
                if member is None:
                    stopping = True
                    break
                group.append(member)
                if len(group) >= self._group_size:
                    break
                try:
                    member = self._queue.get_nowait()
                except queue.Empty:
                    break
            if group:
                try:
                    self._commit(group)
                except Exception as fault:  # noqa: BLE001 - this thread is the only one that stores anything
                    log.error("writer_failed", count=len(group), error=type(fault).__name__, place=place(fault))
                    for member in group:
                        member.fault = StorageUnavailable("The database cannot take this now.")
                for loop in {m.loop for m in group}:
                    with suppress(RuntimeError):  # the loop is closed: nobody waits for the answer any more
                        loop.call_soon_threadsafe(_resolve, [m for m in group if m.loop is loop])

    def _commit(self, group: list[_Member]) -> None:
        """Commit the group; if it was lost as a whole, each member once more alone."""
        if self._attempt(group):
            return
        for member in group:
            for _ in range(ALONE):
                member.result, member.fault = None, None
                if self._attempt([member]):
                    break
            else:
                member.result, member.fault = None, StorageUnavailable("The database cannot take this now.")

    def _attempt(self, group: list[_Member]) -> bool:
        """Run and commit `group` in one transaction. Return False if none of it may be acknowledged."""
        try:
            with self._sessions.writing.connect() as connection, connection.begin(), Tx(bind=connection) as tx:
                for member in group:
                    run_in_savepoint(tx, member)
                    if not in_transaction(connection):
                        raise _GroupLost
                if not in_transaction(connection):
                    raise _GroupLost
        except Exception as fault:  # noqa: BLE001 - whatever it was, nothing of the group is known to be durable
            log.error("group_not_stored", count=len(group), error=type(fault).__name__, place=place(fault))
            self.storing = False
            return False
        self.storing = True
        return True


class _GroupLost(Exception):
    """The database rolled the whole transaction back by itself, or cannot go on."""


def in_transaction(connection: Connection) -> bool:
    """Return whether the transaction that we began is still open.

    When the disk fills inside a savepoint SQLite rolls everything back, and would then commit later savepoints
    alone without a word (DESIGN section 10).
    """
    raw: Any = connection.connection.dbapi_connection
    if connection.dialect.name == "sqlite":
        return bool(raw.in_transaction)
    return bool(raw.info.transaction_status in (1, 2))  # ACTIVE, INTRANS


def run_in_savepoint(tx: Tx, member: _Member) -> None:
    """Run one member; its failure undoes it alone and is kept for its caller."""
    connection = tx.connection()
    cursor = connection.connection.cursor()
    tx.pipelined = member.blind
    try:
        with _pipelined(connection) if member.blind else nullcontext():
            cursor.execute("SAVEPOINT member")
            member.result = member.use_case(tx)
            tx.flush()
            cursor.execute("RELEASE SAVEPOINT member")
    except Exception as fault:
        known = translate(fault)
        member.result, member.fault = None, known or fault
        if isinstance(known, StorageUnavailable):
            raise _GroupLost from fault
        tx.expunge_all()
        _undo(cursor)
    finally:
        tx.pipelined = False


_undone = itertools.count()


def _undo(cursor: Any) -> None:
    # A statement that psycopg prepared in the pipeline that failed is known to it and not to the server. It forgets
    # all it has prepared when it sees a rollback, but looks only at statements whose text is new to it.
    cursor.execute(f"ROLLBACK TO SAVEPOINT member /* {next(_undone)} */")
    cursor.execute("RELEASE SAVEPOINT member")


@contextmanager
def _pipelined(connection: Connection) -> Iterator[None]:
    """On PostgreSQL send statements without waiting for each answer; leaving the block waits for all."""
    if connection.dialect.name == "sqlite":
        yield
        return
    raw: Any = connection.connection.dbapi_connection
    with raw.pipeline():
        yield


def _give_up(future: "asyncio.Future[Any]") -> None:
    """Stop waiting. What was submitted may yet be stored; whoever sends it again then gets the stored one."""
    if not future.done():
        future.set_exception(StorageUnavailable("The database does not answer in time."))


def _resolve(group: list[_Member]) -> None:
    for member in group:
        if member.future.done():
            continue  # the client went away; what it sent is stored all the same
        if member.fault is not None:
            member.future.set_exception(member.fault)
        else:
            member.future.set_result(member.result)
