"""What the leader of the ledger does each night: the census, and the full check (ledger.md sections 7 and 8).

Both are caught up after a night on which nothing ran, and neither is done twice for one night.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, time, timedelta
from functools import partial
from pathlib import Path
from zoneinfo import ZoneInfo

import structlog
from sqlalchemy import text
from sqlmodel import Session

from service import metrics
from service.db import Tx, write
from service.ledger import census, tree
from service.ledger.census import Census
from service.ledger.events import SYSTEM, EventType, NewEvent, StateClass, append, fixed_chain
from service.ledger.sequencer import BATCH, Sequencer
from service.ledger.verify import Keys, Report, verify
from service.models import Sign

log = structlog.get_logger("nightly")

PHNOM_PENH = ZoneInfo("Asia/Phnom_Penh")
CENSUS_AT = time(0, 5)
CHECK_AT = time(2, 0)  # the quietest hour: a long look at a busy database costs most
# A host's wrong clock, or hours without a sequencer, cannot be repaired: people are told, and nothing is halted.
OF_TIME = frozenset({"time before its anchor", "time after its checkpoint", "promise not kept"})


@dataclass
class Nightly:
    """The two rounds, for the process with the sequencer. One that does not lead does nothing.

    folder: where censuses go, sealed to the monitor unit; None takes none. monitor: that unit's public key.
    state_class: the class of a case's state, for `verify.Keys`.
    """

    sequencer: Sequencer
    monitor: bytes
    state_class: Callable[[str], str]
    folder: Path | None
    _last: Census | None = field(default=None, repr=False)  # what the next is compared with; a restart begins anew
    _doubted: bool = False  # a census differs: the full check does not wait for the night
    _checked: datetime | None = None  # the night of this process's last full check, whatever it found

    # --- the census -------------------------------------------------------------------------------------

    def count(self) -> Census | None:
        """Take the day's census where it is due, compare it with the last, and return it.

        What differs is told to oversight, is an event, and brings the full check forward. Taken while the ledger is
        halted too: a list of what is there is wanted then most. Raises OSError where the folder takes no file.
        """
        one = self.sequencer
        if self.folder is None or not one.leads:
            return None
        now = one.now()
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._keep_drafts()
        taken = write(one.sessions, partial(self._count, due=_latest(now, CENSUS_AT), now=now))
        if taken is None:
            return None
        self._keep_drafts()
        # Somebody may have taken one by hand in between: gaps in the numbers are for who keeps all the files.
        faults = census.check(replace(self._last, number=taken.number - 1), taken) if self._last is not None else []
        self._last = taken
        if faults:
            log.error("census_differs", count=len(faults))
            self._doubted = True
            write(one.sessions, partial(self._tell, reason="census", count=len(faults), now=now))
        return taken

    def _count(self, tx: Tx, *, due: datetime, now: datetime) -> Census | None:
        if (last := census.newest_at(tx)) is not None and last >= due:
            return None
        taken = census.take(tx, self.sequencer.ledger, now)
        # The file is safe before the event says that it was made, and has its name only afterwards.
        _write_durably(self._draft(taken), census.seal(taken, self.monitor))
        return taken

    def _draft(self, taken: Census) -> Path:
        assert self.folder is not None
        return self.folder / f"{_name(taken.number)}.{taken.sha256}"

    def _keep_drafts(self) -> None:
        """Name the files whose events were committed; take away those whose were not."""
        assert self.folder is not None
        drafts = sorted(self.folder.glob("census-*.box.*"))
        if not drafts:
            return
        with self.sequencer.sessions.read() as session:
            known = census.hashes(session)
        for draft in drafts:
            kept, _, sha256 = draft.name.rpartition(".")
            if sha256 in known:
                draft.replace(self.folder / kept)
            else:
                draft.unlink(missing_ok=True)

    # --- the full check ---------------------------------------------------------------------------------

    def check(self) -> Report | None:
        """Check the whole database where it is due, and return what was found.

        What does not fit halts the ledger; what a wrong clock explains is told and halts nothing. A ledger that is
        halted already waits for people.
        """
        one = self.sequencer
        now = one.now()
        due = _latest(now, CHECK_AT)
        if not one.leads or (self._checked == due and not self._doubted):
            return None
        with one.sessions.read() as session:
            last = session.get(Sign, metrics.VERIFIED)
            if tree.halted(session) or (last is not None and last.at >= due and not self._doubted):
                return None
        self._checked, self._doubted = due, False
        while one.round() >= BATCH:  # after hours without a leader: what waits is late, and not wrong
            pass
        # Asked before the look at the database: a tree that grows meanwhile still holds them.
        seen = [one.signer.head(), *one.seen, *one.witnesses.heads()]
        keys = Keys(one.log, one.policy, one.cover_key, self.state_class, seen)
        with one.sessions.read() as session:
            _without_limit(session, one.sessions.dialect)
            report = verify(session, keys, now)
        if report.good:
            write(one.sessions, partial(metrics.seen, name=metrics.VERIFIED, at=now))
            return report
        log.error("ledger_does_not_fit", kind=report.faults[0].what, count=len(report.faults))
        if all(fault.what in OF_TIME for fault in report.faults):
            write(one.sessions, partial(self._tell, reason="time", count=len(report.faults), now=now))
        else:
            one.halt("verify")
        return report

    def _tell(self, tx: Tx, *, reason: str, count: int, now: datetime) -> None:
        """Append that something differs, and have oversight told, without halting."""
        fields = {"reason": reason, "count": count}
        event = NewEvent(EventType.CHECK_FAILED, now, SYSTEM, StateClass.SYSTEM, fields=fields)
        append(tx, self.sequencer.ledger, fixed_chain("ledger"), [event])
        self.sequencer.alarm(tx, reason)


def open_census(path: Path, monitor_private: bytes) -> Census:
    """Return the census in a file that `Nightly` or ``census take`` wrote, which has its number in its name.

    Raises OSError, ValueError for another name, CannotOpen with another key, Invalid for no census.
    """
    number = int(path.name.removeprefix("census-").removesuffix(".box"))
    return census.open_sealed(path.read_bytes(), number, monitor_private)


def keep_census(folder: Path, taken: Census, monitor_public: bytes) -> Path:
    """Write a census into `folder`, sealed to the monitor unit, and return where. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / _name(taken.number)
    _write_durably(path, census.seal(taken, monitor_public))
    return path


def _name(number: int) -> str:
    return f"census-{number:06d}.box"


def _write_durably(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _latest(now: datetime, at: time) -> datetime:
    """Return the latest moment that a Phnom Penh clock showed `at`, not after `now`."""
    local = now.astimezone(PHNOM_PENH)
    today = datetime.combine(local.date(), at, PHNOM_PENH)
    return today if today <= local else today - timedelta(days=1)


def _without_limit(session: Session, dialect: str) -> None:
    if dialect == "postgresql":  # a long look at one moment, which changes nothing
        session.execute(text("SET LOCAL statement_timeout = 0"))
