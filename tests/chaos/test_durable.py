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
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import StrEnum
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


class Log(StrEnum):
    """How the write-ahead log stood when an answer left."""

    CLEAN = "written since the answer before, and synced"
    DIRTY = "written and not synced"
    SAME = "not written since the answer before"


def read_trace(lines: Iterable[str]) -> list[Log]:
    """Return how the write-ahead log stood when each 200 left.

    A call that strace shows in two halves writes when it begins and syncs when it has ended: the strict reading.
    """
    dirty = written = False
    answers = []
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
            answers.append(Log.DIRTY if dirty else Log.CLEAN if written else Log.SAME)
            written = False
    return answers


def thank(installation: Installation, sessions: Sessions, seed: int, count: int, *, staged: str = "-") -> list[Log]:
    """Send `count` texts one after the other to a traced process, and return how the log stood at each answer."""
    bag, acknowledged = Mailbag(seed), Acknowledged()
    trace = installation.folder / "trace.txt"
    with traced(installation, trace, staged=staged) as port:
        # One more at the start that is not counted: beside the first the process notes that a signature was good.
        for _ in range(count + 1):
            text = bag.text()
            assert ask_raw(port, text.request).taken
            acknowledged.add(text)
        # Read before the process ends, for then it has time to sync. The first answer said that it was ready.
        wait_for(lambda: trace.read_text().count('"HTTP/1.1 200') == count + 2, "the trace to be written")
        answers = read_trace(trace.read_text().splitlines())
    assert verify(sessions, installation.world.founding, acknowledged).faults == []
    return answers[2:]


def test_no_receipt_leaves_before_its_tip_is_on_the_disk(
    sqlite_installation: Installation, sqlite_sessions: Sessions, seed: int
) -> None:
    assert thank(sqlite_installation, sqlite_sessions, seed, 10) == [Log.CLEAN] * 10


@pytest.mark.chaos
def test_none_of_a_hundred_receipts_leaves_before_its_tip_is_on_the_disk(
    sqlite_installation: Installation, sqlite_sessions: Sessions, seed: int
) -> None:
    assert thank(sqlite_installation, sqlite_sessions, seed, 100) == [Log.CLEAN] * 100


def test_without_waiting_for_the_disk_every_receipt_is_dirty(
    sqlite_installation: Installation, sqlite_sessions: Sessions, seed: int
) -> None:
    """The negative control: ``synchronous=NORMAL`` loses nothing to a kill, and the trace shows what it risks."""
    answers = thank(sqlite_installation, sqlite_sessions, seed, 10, staged="forgets_to_sync")

    assert answers == [Log.DIRTY] * 10
