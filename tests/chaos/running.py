"""Real processes on loopback: started from a founded installation, killed at any moment, and started again.

A fork server has everything imported and forks the shipped command, so that a restart costs a fraction of a second
and a hundred kills stay within minutes. ``python -m tests.chaos.running`` is that server; it ends its children when
its standard input closes.
"""

import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

from service import ceremony
from service.db import Sessions
from tests import builders
from tests.builders import World
from tests.chaos.sending import ask
from tests.webhooks.builders import ACCOUNT, NUMBER, TOKEN

T = TypeVar("T")

HOST = "127.0.0.1"
PUBLIC_URL = "https://bamboo.example"
ROOT = Path(__file__).parents[2]
PORTS = range(20_000, 32_000)  # below the system's own choice, so that no client's port is in a restart's way


def wait_for(condition: Callable[[], T], what: str, *, seconds: float = 30.0, until: Callable[[T], Any] = bool) -> T:
    """Return the first value of `condition` that `until` takes, asked every few milliseconds. Fails after `seconds`."""
    end = time.monotonic() + seconds
    while True:
        found = condition()
        if until(found):
            return found
        if time.monotonic() > end:
            raise AssertionError(f"waited {seconds:g} s for {what}")
        time.sleep(0.002)


def free_port() -> int:
    """Return a port of loopback that nobody listens on."""
    for port in random.sample(PORTS, 100):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
    raise AssertionError("no free port")


@dataclass(frozen=True)
class Installation:
    """A founded installation: its world, a folder for everything that it writes, and each process's settings."""

    world: World
    folder: Path
    environments: Mapping[str, Mapping[str, str]]


def install(sessions: Sessions, url: str, folder: Path) -> Installation:
    """Found an installation on the migrated database at `url`, as of this moment, with key files below `folder`."""
    # The processes have the real clock, and cards and relay keys have their days.
    with mock.patch.object(builders, "NOW", datetime.now(UTC)):
        world = builders.a_world(sessions)
    files = ceremony.write_files(world.founding, folder / "keys", twilio_token=TOKEN.decode())
    (folder / "tmp").mkdir()
    common = {
        "PATH": os.environ["PATH"],
        "TMPDIR": str(folder / "tmp"),
        "HOTLINE_DATABASE_URL": url,
        "HOTLINE_PUBLIC_URL": PUBLIC_URL,
    }
    of_public = {"HOTLINE_TWILIO_ACCOUNT_SID": ACCOUNT, "HOTLINE_TWILIO_NUMBERS": NUMBER}
    of_staff = {"HOTLINE_CARDS_FILE", "HOTLINE_RELAY_FILE", "HOTLINE_ROW_KEY_FILE", "HOTLINE_ROOT_VKEY"}
    return Installation(
        world,
        folder,
        {
            "public": common | files | of_public,
            "staff": common | {name: value for name, value in files.items() if name in of_staff},
        },
    )


@dataclass
class Process:
    """A web process of an installation. Its output goes to a file in the installation's folder."""

    forks: "Forks"
    installation: Installation
    kind: str = "public"
    staged: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    pid: int = 0

    @property
    def log(self) -> Path:
        """Where its output goes, over all starts."""
        return self.installation.folder / f"{self.kind}-{self.port}.log"

    def start(self) -> "Process":
        """Start it, and return at once."""
        environment = {**self.installation.environments[self.kind], **self.settings}
        if self.kind == "staff":
            environment["HOTLINE_METRICS_PORT"] = str(free_port())
        self.pid = self.forks.start(self.kind, self.port, environment, self.log, self.staged)
        return self

    def started(self) -> "Process":
        """Start it, and return when it is ready."""
        self.start()
        wait_for(self.ready, f"{self.kind} to be ready, see {self.log}")
        return self

    def ready(self) -> bool:
        """Return whether it says so."""
        try:
            return ask(self.port, "GET", "/health/ready").status == 200
        except OSError:
            return False

    def kill(self) -> None:
        """End it as a loss of power would, as far as a process can tell."""
        self.forks.end(self.pid, signal.SIGKILL)

    def stop(self) -> None:
        """Ask it to end, and wait. Fails if it does not end by itself."""
        status = self.forks.end(self.pid, signal.SIGTERM)
        assert not os.WIFSIGNALED(status) or os.WTERMSIG(status) == signal.SIGTERM, f"{self.kind} had to be killed"

    def limit_files(self, size: int) -> None:
        """Let no file of this process grow beyond `size` bytes; -1 takes the limit away."""
        resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


class Forks:
    """The fork server, seen from a test."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.running"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, kind: str, port: int, environment: Mapping[str, str], log: Path, staged: str) -> int:
        """Start ``hotline serve`` `kind` and return its process id. staged: a function of `tests.chaos.staged`."""
        order = {"kind": kind, "port": port, "environment": dict(environment), "log": str(log), "staged": staged}
        return self._ask(order)

    def end(self, pid: int, how: int) -> int:
        """Send a signal to a process, and return its status when it is gone. One that is gone already is no fault."""
        return self._ask({"end": pid, "signal": how})

    def close(self) -> None:
        """End the server and all that it started."""
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(20)
        assert self._server.stdout is not None
        self._server.stdout.close()

    def _ask(self, order: Mapping[str, Any]) -> int:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(order) + "\n")
        self._server.stdin.flush()
        return int(self._server.stdout.readline())


def main() -> None:
    """Take orders from standard input, a line each, and answer each with a number."""
    import uvicorn.lifespan.on
    import uvicorn.loops.uvloop
    import uvicorn.protocols.http.httptools_impl  # noqa: F401 - so that no child has to import them

    import commands.serve  # noqa: F401
    import dashboards.app  # noqa: F401
    import tests.chaos.staged  # noqa: F401
    import webhooks.app  # noqa: F401
    from service.config import Settings
    from service.triage import Triage

    # Rules and words are read once, here: frozen, and the same for every child.
    Triage.load = cache(Triage.load)
    Triage.load(Settings().ruleset_file, Settings().lexicon_dir)
    children: set[int] = set()
    for line in sys.stdin:
        order = json.loads(line)
        if "end" in order:
            answer = _end(order["end"], order["signal"]) if order["end"] in children else 0
            children.discard(order["end"])
        else:
            answer = os.fork()
            if answer == 0:
                _become(order)
            children.add(answer)
        print(answer, flush=True)
    for pid in children:
        _end(pid, signal.SIGKILL)


def _end(pid: int, how: int) -> int:
    """Send a signal and return the status at the end. What does not end when it is asked is killed."""
    os.kill(pid, how)
    try:
        return wait_for(lambda: os.waitpid(pid, os.WNOHANG), "the end", until=lambda found: found[0] == pid)[1]
    except AssertionError:
        os.kill(pid, signal.SIGKILL)
        return os.waitpid(pid, 0)[1]


def _become(order: Mapping[str, Any]) -> None:
    """Be the process that is ordered. Never returns."""
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ.clear()
        os.environ.update(order["environment"])
        tempfile.tempdir = None

        from commands import serve
        from tests.chaos import staged

        if order["staged"]:
            getattr(staged, order["staged"])()
        code = serve.main([order["kind"], "--port", str(order["port"])])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
