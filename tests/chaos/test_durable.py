"""No receipt before the bytes are on the disk, seen from outside by strace (threats.md R2).

kill -9 shows crash safety, not durability: the kernel keeps what a killed process wrote. Here every write to the
write-ahead log makes it dirty and only a finished sync makes it clean; a 200 must find it written and clean.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from service.db import Sessions
from tests.chaos.running import ROOT, Installation, free_port, wait_for
from tests.chaos.sending import Acknowledged, Mailbag, ask, ask_raw
from tests.chaos.verify import verify

CALLS = "pwrite64,pwritev,pwritev2,write,writev,sendto,sendmsg,fdatasync,fsync"
_LINE = re.compile(r"^(\d+) +(?:<\.\.\. (\w+) resumed>|(\w+)\()(.*)$")


@cache
def why_not() -> str:
    """Return why this machine cannot trace, or nothing."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    tried = subprocess.run(["strace", "-f", "-e", "trace=none", "true"], capture_output=True, check=False)
    return "" if tried.returncode == 0 else "tracing is not permitted here"


@pytest.fixture(autouse=True)
def strace() -> None:
    if why_not():
        pytest.skip(why_not())


@contextmanager
def traced(installation: Installation, trace: Path, *, staged: str) -> Iterator[int]:
    """Run the public process under strace and yield its port."""
    port = free_port()
    command = ["strace", "-f", "-yy", "-s", "24", "-e", f"trace={CALLS}", "-e", "signal=none", "-o", str(trace)]
    with (installation.folder / "traced.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, sys.executable, "-m", "tests.chaos.staged", staged, "public", "--port", str(port)],
            cwd=ROOT,
            env=dict(installation.environments["public"]),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )

        def ready() -> bool:
            try:
                return ask(port, "GET", "/health/ready").status == 200
            except OSError:
                return False

        try:
            wait_for(ready, "the traced process to be ready", seconds=60)
            yield port
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)


@dataclass(frozen=True)
class Receipts:
    """What a trace tells of its thanks. clean: the log was written since the one before, and all of it synced."""

    clean: int
    dirty: int
    unwritten: int


def read_trace(lines: Iterator[str]) -> Receipts:
    """Return how the write-ahead log stood when each 200 left for a text message.

    A call that strace shows in two halves writes when it begins and syncs when it has ended: the strict reading.
    """
    dirty = written = False
    counts = {"clean": 0, "dirty": 0, "unwritten": 0}
    syncing: dict[str, bool] = {}
    for line in lines:
        found = _LINE.match(line)
        if not found:
            continue
        thread, resumed, called, rest = found.groups()
        if resumed in ("fdatasync", "fsync"):
            if syncing.pop(thread, False) and rest.endswith("= 0"):
                dirty = False
        elif called in ("fdatasync", "fsync"):
            if "-wal>" not in rest:
                continue
            syncing[thread] = "unfinished" in rest
            if rest.endswith("= 0"):
                dirty = False
        elif called in ("pwrite64", "pwritev", "pwritev2", "write", "writev") and "-wal>" in rest:
            dirty = written = True
        elif called in ("write", "writev", "sendto", "sendmsg") and '"HTTP/1.1 200' in rest and "TCP" in rest:
            counts["dirty" if dirty else "clean" if written else "unwritten"] += 1
            written = False
    return Receipts(**counts)


def thank(installation: Installation, sessions: Sessions, seed: int, count: int, *, staged: str = "-") -> Receipts:
    """Send `count` texts one after the other to a traced process, and read its trace."""
    bag, acknowledged = Mailbag(seed), Acknowledged()
    trace = installation.folder / "trace.txt"
    with traced(installation, trace, staged=staged) as port:
        size = trace.stat().st_size
        for _ in range(count):
            text = bag.text()
            assert ask_raw(port, text.request).taken
            acknowledged.add(text)
        # Read before the process ends: at its end it has time to sync.
        wait_for(lambda: trace.read_text()[size:].count('"HTTP/1.1 200') >= count, "the trace to be written")
        seen = trace.read_text()[size:]
    assert verify(sessions, installation.world.founding, acknowledged).faults == []
    return read_trace(iter(seen.splitlines()))


def test_no_receipt_leaves_before_its_tip_is_on_the_disk(
    sqlite_installation: Installation, sqlite_sessions: Sessions, seed: int
) -> None:
    assert thank(sqlite_installation, sqlite_sessions, seed, 10) == Receipts(clean=10, dirty=0, unwritten=0)


@pytest.mark.chaos
def test_none_of_a_hundred_receipts_leaves_before_its_tip_is_on_the_disk(
    sqlite_installation: Installation, sqlite_sessions: Sessions, seed: int
) -> None:
    assert thank(sqlite_installation, sqlite_sessions, seed, 100) == Receipts(clean=100, dirty=0, unwritten=0)


def test_without_waiting_for_the_disk_every_receipt_is_dirty(
    sqlite_installation: Installation, sqlite_sessions: Sessions, seed: int
) -> None:
    """The negative control: ``synchronous=NORMAL`` loses nothing to a kill, and the trace shows what it risks."""
    receipts = thank(sqlite_installation, sqlite_sessions, seed, 10, staged="forgets_to_sync")

    assert receipts == Receipts(clean=0, dirty=10, unwritten=0)
