"""Censuses that follow each other, and a tree put back from a copy after the database was lost."""

import hashlib
import shutil
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import text

from service import cases
from service.db import Sessions, open_database, write
from service.errors import CheckFailed, Conflict, Invalid, NotLeading
from service.ledger import census
from service.ledger.events import SYSTEM, EventType, NewEvent, StateClass, append, new_chain
from service.ledger.export import export
from service.ledger.merkle import EMPTY_ROOT
from service.ledger.recover import recover
from service.ledger.verify import Keys, Report, verify
from tests.service.ledger.builders import COVER_KEY, Log, policy_text


@pytest.fixture
def a_log(sessions: Sessions, tmp_path: Path) -> Log:
    return Log(sessions, tmp_path / "log")


# --- census ---


def take(log: Log) -> census.Census:
    return write(log.sessions, partial(census.take, ledger=log.ledger, now=log.moment))


def test_a_census_lists_every_chain_and_its_hash_is_an_event(a_log: Log) -> None:
    a_log.events(6)
    first = take(a_log)
    assert {line.chain for line in first.lines} == set(a_log.chains)
    assert census.parse(first.text) == first
    a_log.later(86_400)
    a_log.event(0)
    second = take(a_log)
    assert (first.number, second.number) == (1, 2)
    assert census.check(first, second) == []
    with a_log.sessions.read() as session:
        hashes = session.execute(text("SELECT value FROM ledger_field WHERE name = 'sha256'")).scalars().all()
    told = {hashlib.sha256(one.text.encode()).hexdigest() for one in (first, second)}
    assert {bytes(value).decode().strip('"') for value in hashes} == told


def test_a_dropped_chain_a_chain_set_back_and_another_event_show(a_log: Log) -> None:
    a_log.events(6)
    first = take(a_log)
    a_log.event(0)
    second = take(a_log)
    line = first.lines[0]
    others = tuple(one for one in second.lines if one.chain != line.chain)
    for changed, word in (
        (others, "is gone"),
        ((replace(line, seq=0), *others), "went back"),
        ((replace(line, c="x"), *others), "another event"),
        ((replace(line, state="closed"), *others), "another event"),
    ):
        (fault,) = [f for f in census.check(first, replace(second, lines=changed)) if word in f]
        assert line.chain in fault
    assert census.check(first, replace(second, number=5))
    assert census.check(first, replace(second, size=-1))
    assert census.check(first, replace(second, origin="other.example/log"))


def test_a_deadline_that_passed_in_silence_shows_and_one_that_was_met_does_not(a_log: Log) -> None:
    quiet, busy = new_chain(), new_chain()
    for chain in (quiet, busy):
        due = NewEvent(EventType.CLOCK_SET, a_log.moment, SYSTEM, StateClass.OPEN, a_log.moment + timedelta(hours=1))
        write(a_log.sessions, partial(append, ledger=a_log.ledger, chain=chain, events=[due]))
    first = take(a_log)
    a_log.later(7200)
    a_log.event(busy)
    (fault,) = census.check(first, take(a_log))
    assert quiet in fault
    assert "passed" in fault


@pytest.mark.parametrize(
    ("old", "new"),
    [("census/v1", "census/v2"), ("\n1 ", "\n01 "), ("\n3\n", "\n4\n"), (" 1 ", " x "), ("Z\n", "Z\n\n")],
)
def test_a_file_that_is_not_quite_a_census_is_refused(a_log: Log, old: str, new: str) -> None:
    a_log.events(6)
    whole = take(a_log).text
    assert old in whole
    with pytest.raises(Invalid):
        census.parse(whole.replace(old, new, 1))


def test_no_census_is_taken_of_a_chain_whose_newest_event_is_gone(sqlite_url: str, tmp_path: Path) -> None:
    log = Log(open_database(sqlite_url), tmp_path)
    log.events(6)
    with log.sessions.writing.begin() as connection:
        connection.execute(text("UPDATE ledger_head SET seq = seq + 1"))
    with pytest.raises(Conflict):
        take(log)


# --- recover ---


@pytest.fixture
def lost(sqlite_url: str, tmp_path: Path) -> tuple[Log, Path]:
    """A database put back to an hour ago, and a copy of the log as it was before that."""
    path = Path(sqlite_url.removeprefix("sqlite:///"))
    log = Log(open_database(sqlite_url), tmp_path / "log")

    def minute() -> None:
        one = log.sequencer()
        one.round()
        one.publish()
        one.step_down()
        log.later(60)

    log.events(5)
    minute()
    log.sessions.close()
    shutil.copy(path, tmp_path / "backup.db")
    log.sessions = open_database(sqlite_url)
    log.events(4)
    minute()
    with log.sessions.read() as session:
        export(session, tmp_path / "copy", policy_text(), (), log.moment)
    log.sessions.close()
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    shutil.copy(tmp_path / "backup.db", path)
    log.sessions = open_database(sqlite_url)
    return log, tmp_path / "copy"


def check(log: Log) -> Report:
    keys = Keys(log.signer.verifier, log.policy, COVER_KEY, cases.state_class, (log.signer.head(),))
    with log.sessions.read() as session:
        return verify(session, keys, log.moment)


def repair(log: Log, copy: Path) -> list[list[int]]:
    return write(log.sessions, lambda tx: recover(tx, log.ledger, copy, log.policy, COVER_KEY, log.moment))


def test_a_lost_hour_halts_and_comes_back_with_its_losses_named(lost: tuple[Log, Path]) -> None:
    log, copy = lost
    before = log.state().size
    worker = log.sequencer()
    worker.round()
    assert log.alarms == ["signer-ahead"]
    assert not check(log).good
    ranges = repair(log, copy)
    gone = [index for first, last in ranges for index in range(first, last + 1)]
    state = log.state()
    assert len(gone) == 4
    assert min(gone) >= before
    assert (state.halted, state.witnessed_size) == (False, state.size)
    report = check(log)
    assert report.faults == []
    assert report.lost == gone
    log.events(3)
    with pytest.raises(NotLeading):  # the worker that was there all the time begins anew, with all checks
        worker.round()
    assert worker.round() >= 4  # with the incident
    worker.publish()
    assert log.alarms == ["signer-ahead"]
    report = check(log)
    assert report.faults == []
    assert report.lost == gone, "named for ever"


def test_a_copy_that_is_broken_or_of_another_history_repairs_nothing(lost: tuple[Log, Path]) -> None:
    log, copy = lost
    size = log.state().size
    bundle = next((copy / "tile/entries/000.p").iterdir())
    whole = bundle.read_bytes()
    bundle.write_bytes(whole[:60] + bytes([whole[60] ^ 1]) + whole[61:])
    with pytest.raises(CheckFailed, match="export"):
        repair(log, copy)
    bundle.write_bytes(whole)
    with log.sessions.writing.begin() as connection:
        connection.execute(text("UPDATE ledger_state SET root = :r"), {"r": bytes(32)})
    with pytest.raises(CheckFailed, match="tree"):
        repair(log, copy)
    assert log.state().size == size


def test_an_event_that_survived_takes_its_old_place(lost: tuple[Log, Path]) -> None:
    """Only the tree's tables were put back: its events are still there and come back whole."""
    log, copy = lost
    repair(log, copy)
    with log.sessions.writing.begin() as connection:
        for trigger in connection.scalars(text("SELECT name FROM sqlite_master WHERE type = 'trigger'")).all():
            connection.execute(text(f"DROP TRIGGER {trigger}"))
        connection.execute(text("DELETE FROM ledger_leaf"))
        connection.execute(text("DELETE FROM ledger_tile"))
        empty = f"X'{EMPTY_ROOT.hex()}'"
        connection.execute(text(f"UPDATE ledger_state SET size = 0, root = {empty}"))
    ranges = repair(log, copy)
    assert sum(last - first + 1 for first, last in ranges) == 4
    with log.sessions.read() as session:
        assert session.scalar(text("SELECT count(*) FROM ledger_leaf WHERE eid IS NOT NULL")) == 5
