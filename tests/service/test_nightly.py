"""The nightly census and full check: when, what differs, what halts, and who is told."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlmodel import col

from service import cases, metrics, nightly
from service.db import Sessions, write
from service.errors import CannotOpen
from service.ledger import census, sequencer, tree
from service.ledger.events import EventType, fixed_chain
from service.ledger.sequencer import Sequencer
from service.models import LedgerEvent, Sign
from service.nightly import Nightly, open_census
from tests.service.ledger.builders import Log
from tests.service.ledger.test_sequencer import tamper

EVENING = datetime(2027, 3, 9, 16, 0, tzinfo=UTC)  # 23:00 in Phnom Penh
CENSUS = datetime(2027, 3, 9, 17, 5, tzinfo=UTC)  # 00:05 there
CHECK = datetime(2027, 3, 9, 19, 0, tzinfo=UTC)  # 02:00 there


@pytest.fixture
def a_log(sessions: Sessions, tmp_path: Path) -> Log:
    log = Log(sessions, tmp_path, moment=EVENING)
    log.events(6)
    return log


def leading(log: Log, **changed: Any) -> Sequencer:
    one = log.sequencer(**changed)
    one.round()
    one.publish()
    return one


def nights(log: Log, one: Sequencer, folder: Path | None = None) -> Nightly:
    return Nightly(one, log.monitor[1], cases.state_class, folder or log.folder / "census")


def files(log: Log) -> list[str]:
    return sorted(path.name for path in (log.folder / "census").iterdir())


def told(log: Log, what: EventType) -> int:
    with log.sessions.read() as session:
        return len(session.scalars(select(LedgerEvent.eid).where(col(LedgerEvent.type) == what)).all())


def kept(log: Log, number: int) -> census.Census:
    return open_census(log.folder / "census" / f"census-{number:06d}.box", log.monitor[0])


# --- the census ---


def test_one_census_a_day_at_five_past_midnight_in_phnom_penh(a_log: Log) -> None:
    one = leading(a_log)
    night = nights(a_log, one)
    a_log.moment = CENSUS - timedelta(days=1) + timedelta(seconds=1)
    assert night.count() is not None
    for moment in (EVENING, CENSUS - timedelta(seconds=1)):
        a_log.moment = moment
        assert night.count() is None
    a_log.moment = CENSUS
    assert night.count() is not None
    a_log.later(3600)
    assert night.count() is None
    assert nights(a_log, one).count() is None, "another process, or one that was restarted, takes no second one"
    assert files(a_log) == ["census-000001.box", "census-000002.box"]
    assert told(a_log, EventType.CENSUS_TAKEN) == 2
    assert a_log.alarms == []


def test_a_missed_census_is_caught_up(a_log: Log) -> None:
    night = nights(a_log, leading(a_log))
    a_log.moment = CENSUS
    night.count()
    a_log.later(3 * 86400 + 7200)
    assert night.count() is not None
    assert night.count() is None


def test_the_file_opens_with_the_monitors_key_under_its_own_name_alone(a_log: Log) -> None:
    night = nights(a_log, leading(a_log))
    taken = night.count()
    assert taken is not None
    assert kept(a_log, 1) == taken
    path = a_log.folder / "census" / "census-000001.box"
    assert a_log.chains[0].encode() not in path.read_bytes()
    with pytest.raises(CannotOpen):
        open_census(path, bytes(31) + b"\x07")
    other = path.rename(path.with_name("census-000002.box"))
    with pytest.raises(CannotOpen):
        open_census(other, a_log.monitor[0])
    with pytest.raises(ValueError, match="invalid literal"):
        open_census(other.rename(path.with_name("list.box")), a_log.monitor[0])


def test_who_does_not_lead_or_has_no_folder_takes_none(a_log: Log) -> None:
    one = leading(a_log)
    other = a_log.sequencer()
    assert nights(a_log, other).count() is None
    assert nights(a_log, other).check() is None
    without = Nightly(one, a_log.monitor[1], cases.state_class, None)
    assert without.count() is None
    assert told(a_log, EventType.CENSUS_TAKEN) == 0
    assert nights(a_log, one).count() is not None, "the control"


def test_a_file_is_there_before_its_event_and_named_after_it(a_log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that dies between the two loses nothing, and keeps no file without an event."""
    night = nights(a_log, leading(a_log))
    keep = Nightly._keep_drafts
    calls = []

    def dies(self: Nightly) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        keep(self)

    monkeypatch.setattr(Nightly, "_keep_drafts", dies)
    with pytest.raises(KeyboardInterrupt):
        night.count()
    assert told(a_log, EventType.CENSUS_TAKEN) == 1
    (a_log.folder / "census" / f"census-000002.box.{'0' * 64}").write_bytes(b"of a transaction that was not committed")
    monkeypatch.setattr(Nightly, "_keep_drafts", keep)
    assert night.count() is None
    assert files(a_log) == ["census-000001.box"]
    assert kept(a_log, 1).number == 1


def test_a_full_disk_leaves_no_event(a_log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left")

    night = nights(a_log, leading(a_log))
    monkeypatch.setattr(nightly, "_write_durably", full)
    with pytest.raises(OSError, match="No space"):
        night.count()
    assert told(a_log, EventType.CENSUS_TAKEN) == 0
    monkeypatch.undo()
    assert night.count() is not None


def test_a_chain_that_is_gone_is_an_event_an_alarm_and_a_full_check(a_log: Log) -> None:
    one = leading(a_log)
    night = nights(a_log, one)
    night.count()
    a_log.moment = CHECK
    night.count()
    report = night.check()
    assert report is not None
    assert report.good
    a_log.later(86400)
    with a_log.sessions.writing.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SET LOCAL session_replication_role = replica"))
        else:
            for name in connection.scalars(text("SELECT name FROM sqlite_master WHERE type = 'trigger'")).all():
                connection.execute(text(f"DROP TRIGGER {name}"))
        gone = {"chain": a_log.chains[0]}
        found = 'SELECT eid FROM ledger_event WHERE "case" = :chain'
        connection.execute(text(f"DELETE FROM ledger_field WHERE eid IN ({found})"), gone)
        connection.execute(text('DELETE FROM ledger_event WHERE "case" = :chain'), gone)
        connection.execute(text('DELETE FROM ledger_head WHERE "case" = :chain'), gone)
    night.count()
    assert told(a_log, EventType.CHECK_FAILED) == 1
    assert a_log.alarms == ["census"]
    report = night.check()
    assert report is not None
    assert not report.good
    assert a_log.alarms == ["census", "verify"]


def test_a_deadline_that_nobody_looked_at_is_told_and_halts_nothing(a_log: Log) -> None:
    night = nights(a_log, leading(a_log))
    night.count()
    a_log.moment = CHECK
    a_log.event(1, deadline=CHECK + timedelta(hours=5))
    night.count()
    night.check()
    a_log.later(86400)
    night.count()
    assert a_log.alarms == ["census"]
    assert not a_log.state().halted
    a_log.later(86400)
    night.count()
    assert a_log.alarms == ["census"], "once, by the census that follows it"


def test_a_census_taken_by_hand_in_between_is_no_difference(a_log: Log) -> None:
    night = nights(a_log, leading(a_log))
    night.count()
    a_log.moment = CENSUS - timedelta(minutes=5)
    write(a_log.sessions, lambda tx: census.take(tx, a_log.ledger, a_log.moment))
    a_log.moment = CENSUS
    taken = night.count()
    assert taken is not None
    assert taken.number == 3
    assert a_log.alarms == []


# --- the full check ---


def verified(log: Log) -> datetime | None:
    with log.sessions.read() as session:
        sign = session.get(Sign, metrics.VERIFIED)
        return sign.at if sign else None


def test_everything_is_checked_once_a_night(a_log: Log) -> None:
    one = leading(a_log)
    night = nights(a_log, one)
    a_log.moment = CHECK
    report = night.check()
    assert report is not None
    assert (report.good, report.events) == (True, 6)
    assert verified(a_log) == CHECK
    a_log.later(3600)
    assert night.check() is None
    assert nights(a_log, one).check() is None
    a_log.moment = CHECK + timedelta(days=1) - timedelta(seconds=1)
    assert night.check() is None
    a_log.later(1)
    assert night.check() is not None


def test_what_waited_for_a_leader_is_taken_in_before_the_check(a_log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequencer, "BATCH", 2)
    monkeypatch.setattr(nightly, "BATCH", 2)
    one = a_log.sequencer()
    one.round()
    a_log.moment = CHECK
    report = nights(a_log, one).check()
    assert report is not None
    assert (report.good, report.events) == (True, 6)


def test_what_does_not_fit_at_night_halts_and_is_an_event(a_log: Log) -> None:
    """Something that no round and no start looks at: a field of an old event."""
    one = leading(a_log)
    night = nights(a_log, one)
    tamper(a_log, "UPDATE ledger_field SET value = X'00' WHERE name = 'reason'")
    one.round()
    assert not a_log.state().halted, "the control: only the full check sees it"
    a_log.moment = CHECK
    report = night.check()
    assert report is not None
    assert report.faults[0].what == "field"
    with a_log.sessions.read() as session:
        assert tree.halted(session)
    assert a_log.alarms == ["verify"]
    assert told(a_log, EventType.CHECK_FAILED) == 1
    assert verified(a_log) is None
    assert night.check() is None
    a_log.later(2 * 86400)
    assert night.check() is None, "people look at a ledger that is halted"


def test_a_wrong_clock_is_told_and_halts_nothing(a_log: Log) -> None:
    one = leading(a_log)
    a_log.event(at=EVENING + timedelta(hours=2))  # a host two hours ahead
    a_log.later(60)
    one.round()
    one.publish()
    night = nights(a_log, one)
    report = night.check()
    assert report is not None
    assert {fault.what for fault in report.faults} == {"time after its checkpoint"}
    assert not a_log.state().halted
    assert a_log.alarms == ["time"]
    assert night.check() is None
    assert fixed_chain("ledger") in {line.chain for line in (nights(a_log, one).count() or _nothing()).lines}


def _nothing() -> census.Census:
    raise AssertionError("no census was taken")
