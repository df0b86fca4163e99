"""Child processes of a command: started, waited for until they answer, watched, ended. None outlives its parent."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

from service.config import ROOT

GRACE = 5.0
_EVERY = 0.05
_PR_SET_PDEATHSIG = 1


class ChildEnded(Exception):
    """A child ended by itself, or never became ready; the text says which and what it wrote last."""


@dataclass(frozen=True)
class Child:
    """A running process. ready: says whether it can work."""

    name: str
    process: "subprocess.Popen[bytes]"
    log: Path
    ready: Callable[[], bool]


def start(
    name: str, arguments: Sequence[str], environment: Mapping[str, str], *, log: Path, ready: Callable[[], bool]
) -> Child:
    """Start ``python -m commands`` with `arguments` in a group of its own: the terminal's Ctrl-C is for the parent."""
    with open(log, "wb") as file:
        process = subprocess.Popen(  # noqa: S603 - our own Python, and arguments from our own code
            [sys.executable, "-m", "commands", *arguments],
            cwd=ROOT,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            process_group=0,
            preexec_fn=_end_with_parent(),
        )
    return Child(name, process, log, ready)


def _end_with_parent() -> Callable[[], object] | None:
    """Return what has the kernel end a child when its parent is killed. Only Linux has it."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl  # found here: between fork and exec nothing may be loaded
    return lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def wait_until_ready(children: Sequence[Child], stopping: threading.Event, *, patience: float = 60.0) -> bool:
    """Return True when every child answers that it is ready, False when `stopping` was set before.

    Raises ChildEnded when one ended, or is not ready after `patience` seconds.
    """
    deadline = time.monotonic() + patience
    waiting = list(children)
    while waiting:
        if stopping.wait(_EVERY):
            return False
        check_alive(children)
        waiting = [child for child in waiting if not child.ready()]
        if waiting and time.monotonic() > deadline:
            raise ChildEnded(f"{waiting[0].name} is not ready after {patience:.0f} s. {last_lines(waiting[0].log)}")
    return True


def answers(address: str) -> Callable[[], bool]:
    """Return what says whether `address` answers with 200; the opener raises for any other status."""
    opener = build_opener(ProxyHandler({}))  # a proxy of the environment knows nothing of this machine

    def ready() -> bool:
        try:
            with opener.open(address, timeout=2):
                return True
        except (OSError, HTTPException):
            return False

    return ready


def logged(log: Path, event: str) -> Callable[[], bool]:
    """Return what says whether a child that listens on nothing has logged `event`."""

    def ready() -> bool:
        try:
            return f'"{event}"' in log.read_text(errors="replace")
        except OSError:
            return False

    return ready


def check_alive(children: Sequence[Child]) -> None:
    """Raise ChildEnded if a child has ended."""
    for child in children:
        code = child.process.poll()
        if code is not None:
            how = f"was ended by signal {-code}" if code < 0 else f"ended by itself with exit code {code}"
            raise ChildEnded(f"{child.name} {how}. {last_lines(child.log)}")


def stop(children: Sequence[Child], *, grace: float = GRACE) -> None:
    """End all children: SIGTERM, and SIGKILL for what is still there after `grace` seconds. Leaves no zombie."""
    for child in children:
        if child.process.poll() is None:
            child.process.terminate()
    deadline = time.monotonic() + grace
    for child in children:
        try:
            child.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.process.kill()
            child.process.wait()


def last_lines(log: Path, count: int = 4) -> str:
    """Return where a child's log is and its last lines; logs hold no word of a tip (``service.logs``)."""
    try:
        lines = log.read_text(errors="replace").splitlines()[-count:]
    except OSError:
        lines = []
    return "\n".join([f"Its log: {os.path.relpath(log)}", *(f"  | {line[:160]}" for line in lines)])
