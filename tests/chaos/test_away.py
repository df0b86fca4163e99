"""The database gone, the disk full: a clear refusal that loses no words, never a false receipt, and no restart needed.

DESIGN section 3; threats.md R4 and R5.
"""

import asyncio
import html
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from service.db import Sessions
from tests.chaos.running import Forks, Installation, Process, wait_for
from tests.chaos.sending import Acknowledged, Answer, Line, Mailbag, Sent, ask, ask_raw
from tests.chaos.staged import ROOM
from tests.chaos.verify import verify
from tests.conftest import named

EMERGENCY = ("1280", "117")
TWILIO_GIVES_UP = 15.0  # seconds (twilio.md section 4)


def send(process: Process, sent: Sent) -> Answer:
    return ask_raw(process.port, sent.request)


def is_a_clear_refusal(sent: Sent, answer: Answer) -> bool:
    """Return whether an answer says that nothing was stored, when to try again and, to a person, whom to call."""
    clear = answer.status == 503 and (answer.header("retry-after") or "").isdigit()
    if sent.sid:
        return clear and answer.body == b""
    page = html.unescape(answer.text)
    return clear and "Not sent" in page and sent.words in page and all(number in page for number in EMERGENCY)


def send_all(process: Process, sent: list[Sent]) -> list[Answer]:
    """Send at once, each on a connection of its own."""

    async def one(text: Sent) -> Answer:
        async with Line(process.port) as line:
            return await line.ask(text.request)

    async def all_at_once() -> list[Answer]:
        return await asyncio.gather(*(one(text) for text in sent))

    return asyncio.run(all_at_once())


def back(process: Process, sent: list[Sent], *, seconds: float) -> None:
    """Wait until the process takes everything that was sent, as it was sent before."""
    wait_for(lambda: sent[0].thanked(send(process, sent[0])), "the database to be back", seconds=seconds)
    for text in sent[1:]:
        assert text.thanked(send(process, text))


@contextmanager
def database_away(server: str, url: str) -> Iterator[None]:
    """Let PostgreSQL end all connections to a database, and take none."""
    name = url.partition("?")[0].rsplit("/", 1)[1]
    with psycopg.connect(named(server, "postgres"), autocommit=True) as admin:
        admin.execute(f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS false")
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
        try:
            yield
        finally:
            admin.execute(f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS true")


def test_while_the_database_is_gone_both_channels_say_so_and_both_come_back_without_a_restart(
    forks: Forks,
    postgresql_installation: Installation,
    postgresql_sessions: Sessions,
    postgresql_url: str,
    postgresql_database: str,
    seed: int,
) -> None:
    bag = Mailbag(seed)
    process = Process(forks, postgresql_installation).started()
    page = ask(process.port, "GET", "/report?lang=en").text
    acknowledged = Acknowledged([bag.text()])
    assert send(process, acknowledged.sent[0]).taken

    with database_away(postgresql_url, postgresql_database):
        away = [bag.text(), in_english(bag.form(page)), bag.text()]
        began = time.monotonic()
        answers = [send(process, text) for text in away]
        assert [is_a_clear_refusal(*pair) for pair in zip(away, answers, strict=True)] == [True] * 3
        assert time.monotonic() - began < TWILIO_GIVES_UP
        assert ask(process.port, "GET", "/health/ready").status == 503
        assert ask(process.port, "GET", "/health/live").status == 200
        assert all(number in ask(process.port, "GET", "/report").text for number in EMERGENCY)

    back(process, away, seconds=5)
    assert ask(process.port, "GET", "/health/ready").status == 200
    process.stop()
    found = verify(postgresql_sessions, postgresql_installation.world.founding, [*acknowledged, *away])
    assert found.faults == []
    assert found.messages == 4


def in_english(form: Sent) -> Sent:
    """Return the form as its page in English sends it."""
    return Sent(form.words, form.sender, form.request.replace(b"POST /report ", b"POST /report?lang=en ", 1))


@contextmanager
def locked(sessions: Sessions) -> Iterator[None]:
    """Hold the lock that every tip needs, as a process that hangs would."""
    if sessions.dialect == "sqlite":
        with sessions.writing.connect() as holder, holder.begin():
            yield
        return
    url = sessions.writing.url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url) as connection:
        connection.execute("LOCK TABLE message")
        yield


@pytest.mark.chaos
def test_a_locked_database_is_refused_before_the_provider_gives_up(
    forks: Forks, installation: Installation, sessions: Sessions, seed: int
) -> None:
    """Eight texts at once all hear it in time, although each waits for the lock."""
    bag = Mailbag(seed)
    process = Process(forks, installation).started()
    warm = bag.text()
    assert send(process, warm).taken
    texts = [bag.text() for _ in range(8)]

    with locked(sessions):
        began = time.monotonic()
        answers = send_all(process, texts)
        took = time.monotonic() - began

    assert [is_a_clear_refusal(*pair) for pair in zip(texts, answers, strict=True)] == [True] * 8
    assert took < TWILIO_GIVES_UP
    back(process, texts, seconds=10)
    process.stop()
    found = verify(sessions, installation.world.founding, [warm, *texts])
    assert found.faults == []
    assert found.messages == 9


# --- disk full -------------------------------------------------------------------------------------------


def fill_and_free(
    process: Process,
    bag: Mailbag,
    acknowledged: Acknowledged,
    *,
    fill: Callable[[int], Any],
    free: Callable[[], Any],
    room: int,
) -> int:
    """Fill the disk but for `room`, send eight texts and a form, free it, send them again; return the refusals.

    What was thanked for is written down, with and without space.
    """
    page = ask(process.port, "GET", "/report?lang=en").text
    sent = [*(bag.text() for _ in range(8)), in_english(bag.form(page))]
    fill(room)
    refused = []
    for text, answer in zip(sent, send_all(process, sent), strict=True):
        if text.thanked(answer):
            acknowledged.add(text)
        else:
            assert is_a_clear_refusal(text, answer), f"{answer.status} while the disk is full"
            refused.append(text)
    free()
    if refused:
        back(process, refused, seconds=5)
        acknowledged.sent += refused
    return len(refused)


def disk_full_at(
    levels: int, forks: Forks, installation: Installation, sessions: Sessions, seed: int, *, how: str, staged: str = ""
) -> tuple[int, list[str]]:
    """Let the disk be full at some levels, from no room at all upwards; return the refusals and what was wrong."""
    database = Path(sessions.writing.url.database or "")
    bag, acknowledged, refused = Mailbag(seed), Acknowledged(), 0
    room_file = installation.folder / "room"
    room_file.write_text("1000000")
    process = Process(forks, installation, staged=staged or ("on_a_small_disk" if how == "pages" else ""))
    process.settings = {ROOM: str(room_file)}
    process.started()

    def fill_pages(room: int) -> None:
        with sessions.read() as session:
            pages = session.connection().exec_driver_sql("PRAGMA page_count").scalar()
        room_file.write_text(str(int(pages or 0) + room))

    def fill_bytes(room: int) -> None:
        wal = database.with_name(database.name + "-wal")
        process.limit_files(wal.stat().st_size + room * 4096)

    ways: dict[str, tuple[Callable[[int], Any], Callable[[], Any]]] = {
        "pages": (fill_pages, lambda: room_file.write_text("1000000")),
        "bytes": (fill_bytes, lambda: process.limit_files(-1)),
        "bytes, the log's too": (lambda _: process.limit_files(1), lambda: process.limit_files(-1)),
    }
    fill, free = ways[how]
    for level in range(levels):
        assert send_and_note(process, bag, acknowledged)
        room = level * 60 // max(1, levels - 1)
        refused += fill_and_free(process, bag, acknowledged, fill=fill, free=free, room=room)
    process.stop()
    found = verify(sessions, installation.world.founding, acknowledged)
    if not found.lost:
        assert found.messages == len(acknowledged)
    return refused, found.faults


def send_and_note(process: Process, bag: Mailbag, acknowledged: Acknowledged) -> bool:
    acknowledged.add(bag.text())
    return send(process, acknowledged.sent[-1]).taken


@pytest.mark.parametrize("how", ["pages", "bytes", "bytes, the log's too"])
def test_a_full_disk_gives_no_false_receipt(
    forks: Forks, sqlite_installation: Installation, sqlite_sessions: Sessions, seed: int, how: str
) -> None:
    """Two different errors of SQLite: no page left (SQLITE_FULL), and a write that fails (IOERR_WRITE).

    And then the log of the process itself cannot be written: what is said of the fault must not be another one.
    """
    refused, faults = disk_full_at(4, forks, sqlite_installation, sqlite_sessions, seed, how=how)

    assert faults == []
    assert refused, "the disk was never full"


@pytest.mark.chaos
@pytest.mark.parametrize("how", ["pages", "bytes"])
def test_a_disk_full_at_fifty_levels_gives_no_false_receipt(
    forks: Forks, sqlite_installation: Installation, sqlite_sessions: Sessions, seed: int, how: str
) -> None:
    refused, faults = disk_full_at(50, forks, sqlite_installation, sqlite_sessions, seed, how=how)

    assert faults == []
    assert refused, "the disk was never full"


def test_a_writer_that_takes_faults_for_success_gives_false_receipts(
    forks: Forks, sqlite_installation: Installation, sqlite_sessions: Sessions, seed: int
) -> None:
    """The negative control: the error is swallowed, people are thanked, and the check reports what is not there."""
    staged = "takes_faults_for_success"
    _, faults = disk_full_at(2, forks, sqlite_installation, sqlite_sessions, seed, how="bytes", staged=staged)

    assert any(fault.startswith("lost: ") for fault in faults)
