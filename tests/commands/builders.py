"""What tests of commands share: ports that are free, waiting for something, and whether a process still runs."""

import random
import time
from pathlib import Path
from typing import Any

from commands import demo
from commands.demo import Ports
from commands.demo_folder import CannotStart


def free_offset() -> int:
    """An offset at which all ports of the demo are free."""
    while True:
        offset = random.randrange(1000, 20_000)  # below the ports that connections are given
        try:
            demo.check_ports(Ports.at(offset), offset)
        except CannotStart:
            continue
        return offset


def running(pid: int) -> bool:
    """Whether a process is there and is no zombie that waits for another parent to read it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def soon(what: Any, seconds: float = 5.0) -> bool:
    """Whether `what` comes true in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if what():
            return True
        time.sleep(0.02)
    return bool(what())
