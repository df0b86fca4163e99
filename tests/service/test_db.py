"""Transactions, group commit and what happens when the disk is full or the database goes away."""

import asyncio
import threading
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest
from sqlalchemy import exc, func, select, text

import service.db as db
from service.db import Sessions, Tx, Writer, open_database, write
from service.errors import Conflict, HeadMoved, Misconfigured, Repeated, StorageUnavailable
from service.models import Sign

AT = datetime(2027, 3, 9, 7, 21, tzinfo=UTC)


def put(tx: Tx, name: str, bulk: int = 0) -> str:
    """Insert one row, whose name can be made large enough to fill a disk."""
    tx.insert(Sign, [{"name": name + "x" * bulk, "at": AT}])
    return name


def names(sessions: Sessions) -> set[str]:
    with sessions.read() as session:
        return {name.rstrip("x") for name in session.scalars(select(Sign.name)).all()}


def submit_all(sessions: Sessions, use_cases: list[Any], **options: Any) -> list[Any]:
    """Submit use cases at once, so that they form groups, and return results or errors."""
    writer = Writer(sessions, **options)

    async def run() -> list[Any]:
        return await asyncio.gather(*(writer.submit(u) for u in use_cases), return_exceptions=True)

    try:
        return asyncio.run(run())
    finally:
        writer.close()


def test_a_written_row_is_there_for_a_new_connection(sessions: Sessions, database_url: str) -> None:
    assert write(sessions, partial(put, name="a")) == "a"

    other = open_database(database_url)
    assert names(other) == {"a"}
    other.close()


def test_a_use_case_that_fails_changes_nothing(sessions: Sessions) -> None:
    def fail(tx: Tx) -> None:
        put(tx, "half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write(sessions, fail)

    assert names(sessions) == set()


def test_a_broken_uniqueness_is_a_conflict_without_the_value(sessions: Sessions) -> None:
    write(sessions, partial(put, name="twice"))

    with pytest.raises(Repeated) as refused:
        write(sessions, partial(put, name="twice"))

    assert "twice" not in str(refused.value)
    assert "twice" not in repr(refused.value.__cause__)


def test_a_lost_compare_and_swap_is_tried_again(sessions: Sessions) -> None:
    tries = []

    def lose_twice(tx: Tx) -> int:
        tries.append(put(tx, f"try {len(tries)}"))
        if len(tries) < 3:
            raise HeadMoved("lost")
        return len(tries)

    assert write(sessions, lose_twice) == 3
    assert names(sessions) == {"try 2"}


def test_a_compare_and_swap_lost_for_ever_is_given_up(sessions: Sessions) -> None:
    def lose(tx: Tx) -> None:
        raise HeadMoved("lost")

    with pytest.raises(HeadMoved):
        write(sessions, lose)


def test_times_come_back_in_utc_and_naive_ones_are_refused(sessions: Sessions) -> None:
    write(sessions, partial(put, name="time"))

    with sessions.read() as session:
        assert session.scalars(select(Sign.at)).one() == AT
    with pytest.raises(ValueError, match="zone"):
        write(sessions, lambda tx: tx.insert(Sign, [{"name": "naive", "at": datetime(2027, 1, 1)}]))  # noqa: DTZ001


def test_the_reading_engine_cannot_write_on_sqlite(sqlite_url: str) -> None:
    sessions = open_database(sqlite_url)

    with pytest.raises(StorageUnavailable), sessions.read() as session:
        session.execute(text("DELETE FROM sign"))

    sessions.close()


def test_sqlite_runs_as_the_design_asks(sqlite_url: str) -> None:
    sessions = open_database(sqlite_url)
    with sessions.writing.connect() as connection:
        asked = {
            p: connection.exec_driver_sql(f"PRAGMA {p}").scalar()
            for p in ("journal_mode", "synchronous", "foreign_keys", "secure_delete")
        }
        version = connection.exec_driver_sql("SELECT sqlite_version()").scalar()
    assert asked == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "secure_delete": 1}
    assert tuple(map(int, str(version).split("."))) >= db.OLDEST_SQLITE
    sessions.close()


def test_an_old_sqlite_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(db.sqlite3, "sqlite_version_info", (3, 40, 1))
    with pytest.raises(Misconfigured, match="SQLite"):
        open_database("sqlite:///var/x.db")


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "mysql://host/db"])
def test_other_databases_are_refused(url: str) -> None:
    with pytest.raises(Misconfigured):
        open_database(url)


def test_members_of_a_group_are_all_stored(sessions: Sessions) -> None:
    results = submit_all(sessions, [partial(put, name=f"m{n}") for n in range(100)])

    assert results == [f"m{n}" for n in range(100)]
    assert names(sessions) == {f"m{n}" for n in range(100)}


def test_one_member_that_fails_leaves_the_others(sessions: Sessions) -> None:
    write(sessions, partial(put, name="there"))

    def half(tx: Tx) -> None:
        put(tx, "half")
        raise ZeroDivisionError

    results = submit_all(sessions, [partial(put, name="a"), partial(put, name="there"), half, partial(put, name="b")])

    assert results[0] == "a"
    assert isinstance(results[1], Conflict)
    assert isinstance(results[2], ZeroDivisionError)
    assert results[3] == "b"
    assert names(sessions) == {"there", "a", "b"}


def test_a_group_is_one_commit(sqlite_url: str) -> None:
    sessions = open_database(sqlite_url)
    groups: list[int] = []
    gate = threading.Event()

    class Counting(Writer):
        def _attempt(self, group: list[Any]) -> bool:
            gate.wait(5)
            groups.append(len(group))
            return super()._attempt(group)

    writer = Counting(sessions, group_size=32)

    async def run() -> None:
        waiting = asyncio.gather(*(writer.submit(partial(put, name=f"m{n}")) for n in range(65)))
        await asyncio.sleep(0)
        gate.set()
        await waiting

    asyncio.run(run())
    writer.close()
    assert sum(groups) == 65
    assert max(groups) == 32
    sessions.close()


def _fill(sessions: Sessions, room_pages: int) -> None:
    """Leave so few pages that a group of large rows does not fit."""
    with sessions.writing.connect() as connection:
        raw = connection.connection.dbapi_connection
        pages = raw.execute("PRAGMA page_count").fetchone()[0]
        raw.execute(f"PRAGMA max_page_count={pages + room_pages}")


def _disk_full_in_a_group(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Any], set[str]]:
    """Let the disk fill at the middle of a group of 32, with room for small rows afterwards."""
    sessions = open_database(sqlite_url)
    _fill(sessions, 60)
    use_cases = [partial(put, name=f"m{n}:", bulk=300_000 if n == 15 else 10) for n in range(32)]
    results = submit_all(sessions, use_cases, group_size=32)
    stored = names(sessions)
    sessions.close()
    return results, stored


def thanked(results: list[Any]) -> set[str]:
    return {result for result in results if isinstance(result, str)}


def test_a_disk_that_fills_in_the_middle_of_a_group_loses_nothing_that_was_thanked_for(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    results, stored = _disk_full_in_a_group(sqlite_url, monkeypatch)

    assert thanked(results) == stored
    assert isinstance(results[15], StorageUnavailable)
    assert len(stored) == 31, "each of the others was tried again alone"


def test_a_writer_knows_whether_it_stores(sqlite_url: str) -> None:
    sessions = open_database(sqlite_url)
    writer = Writer(sessions)
    _fill(sessions, 20)

    async def run() -> list[bool]:
        seen = [writer.storing]
        with pytest.raises(StorageUnavailable):
            await writer.submit(partial(put, name="large", bulk=300_000))
        seen.append(writer.storing)
        await writer.submit(partial(put, name="small"))
        return [*seen, writer.storing]

    assert asyncio.run(run()) == [True, False, True]
    writer.close()
    sessions.close()


def test_without_its_check_the_same_disk_loses_what_was_thanked_for(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control: with the check removed, and errors taken for a member's own, tips are lost."""
    monkeypatch.setattr(db, "in_transaction", lambda connection: True)
    monkeypatch.setattr(db, "translate", lambda fault: Repeated("taken for the member's own"))
    monkeypatch.setattr(db, "_undo", lambda cursor: None)

    results, stored = _disk_full_in_a_group(sqlite_url, monkeypatch)

    assert thanked(results) - stored, "the check is what keeps these"


def test_a_database_that_goes_away_is_a_clear_refusal_and_comes_back_by_itself(
    postgresql_url: str, postgresql_template: str
) -> None:
    import psycopg

    from tests.conftest import named

    name = "test_goes_away"
    with psycopg.connect(named(postgresql_url, "postgres"), autocommit=True) as admin:
        admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        admin.execute(f"CREATE DATABASE {name} TEMPLATE {postgresql_template}")
        sessions = open_database(named(postgresql_url, name))
        assert submit_all(sessions, [partial(put, name="before")]) == ["before"]

        admin.execute(f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS false")
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
        refused = submit_all(sessions, [partial(put, name="while away")])
        assert isinstance(refused[0], StorageUnavailable)
        with pytest.raises(StorageUnavailable):
            write(sessions, partial(put, name="while away"))
        with pytest.raises(StorageUnavailable), sessions.read() as session:
            session.execute(select(func.count()).select_from(Sign)).all()

        admin.execute(f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS true")
        assert submit_all(sessions, [partial(put, name="after")]) == ["after"]
        assert names(sessions) == {"before", "after"}
        sessions.close()
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


def test_a_database_that_stalls_is_not_waited_for_without_end(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = open_database(sqlite_url)
    monkeypatch.setattr(db, "LONGEST_WAIT", 0.05)
    gate = threading.Event()

    def stall(tx: Tx) -> str:
        gate.wait(5)
        return put(tx, "late")

    writer = Writer(sessions)

    async def run() -> None:
        with pytest.raises(StorageUnavailable):
            await writer.submit(stall)

    asyncio.run(run())
    gate.set()
    writer.close()
    assert names(sessions) == {"late"}, "it was stored after all, and a repeat will find it"
    sessions.close()


def test_a_client_that_goes_away_does_not_undo_what_it_sent(sessions: Sessions) -> None:
    writer = Writer(sessions)

    async def leave() -> None:
        task = asyncio.create_task(writer.submit(partial(put, name="left")))
        await asyncio.sleep(0)
        task.cancel()

    asyncio.run(leave())
    writer.close()
    assert names(sessions) == {"left"}


@pytest.mark.parametrize(("sqlstate", "tries"), [("40P01", 2), ("40001", 2), ("57014", 1)])
def test_a_deadlock_is_tried_again_and_a_timeout_is_not(sessions: Sessions, sqlstate: str, tries: int) -> None:
    """SQLAlchemy hands the driver's error on inside its own."""
    calls = []

    def use_case(tx: Tx) -> str:
        calls.append(1)
        if len(calls) == 1:
            fault = type("OperationalError", (Exception,), {"sqlstate": sqlstate})("words of a row")
            raise exc.OperationalError("UPDATE x", {}, fault)
        return "done"

    if tries == 1:
        with pytest.raises(StorageUnavailable):
            write(sessions, use_case)
    else:
        assert write(sessions, use_case) == "done"
    assert len(calls) == tries
