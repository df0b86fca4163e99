"""``./hotline demo``: all of it on this machine, with invented data; set up once, kept in ``var/``, ended by Ctrl-C."""

import argparse
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy.exc import DBAPIError

from commands import demo_witnesses, processes
from commands.demo_cast import PASSPHRASE, PEOPLE, PLANS
from commands.demo_folder import DEFAULT, DISK_FULL, KEYS, LOGS, WITNESSES, CannotStart, DemoFolder, explain
from commands.processes import Child, ChildEnded, logged
from service import logs
from service.errors import BadCards, BadNote, Misconfigured, Unavailable
from service.models import Role
from service.schema import migrate
from service.vault.cards import read_cards, read_relay_note

READY_SIGN = "worker_ready"  # what `commands.worker` logs; that module is slow to load
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LITTLE = 20_000_000  # bytes free: with fewer, what a database refuses is put down to the disk

EPILOG = """\
examples:
  ./hotline demo                     look around; Ctrl-C ends it, the data stays in var/
  ./hotline demo --reset             begin anew with fresh keys and data
  ./hotline demo --port-offset 100   on ports 8100 to 8103 and 8110 to 8113, when one of the usual is taken

Every name and number in it is invented. All keys lie under one user: the demo protects nobody.
It needs no network and no account with a provider.
"""

READY = """
Ready after {seconds:.1f} s. All names, numbers and reports are invented.
All keys lie under one user: this protects nobody and is for trying only.
រួចរាល់។ ឈ្មោះ លេខ និងរបាយការណ៍ទាំងអស់ គឺប្រឌិត។ នេះសម្រាប់តែសាកល្បងប៉ុណ្ណោះ។

  {phones}   phones to try it with   ទូរស័ព្ទសម្រាប់សាកល្បង
  {staff}   queue and cases         បញ្ជី និងសំណុំរឿង
  {public}   what the public sees    ទំព័រសាធារណៈ

Sign in at the second one. The passphrase of every account is: {passphrase}
The code of its phone, a new one every 30 seconds and each good once: ./hotline simulate code ACCOUNT
ចូលដោយប្រើឈ្មោះមួយក្នុងចំណោមនេះ៖

{accounts}

Send a text from one of the phones, or with this line in a second terminal; then look at the screener's queue:
ផ្ញើសារពីទូរស័ព្ទមួយ ឬសាកល្បងបន្ទាត់នេះ ក្នុងបង្អួចទីពីរ៖

  {prefix}./hotline simulate sms "{text}" --from +85500000001

Each step of a case goes into a ledger that four witnesses sign (ports {witnesses}); three of them must have seen
what closes or weakens a case. On one machine they prove nothing: who holds it holds all four keys. In earnest they are
run by others: ./hotline ledger witness --help
សាក្សីបួននៅលើម៉ាស៊ីនតែមួយ មិនបញ្ជាក់អ្វីទេ។ ក្នុងការប្រើពិត អ្នកផ្សេងជាអ្នកដំណើរការសាក្សីទាំងនោះ។

From another machine, with this one's name for HOST:

  ssh {forwards} HOST

Ctrl-C ends it. The data stays in {folder}; start with --reset to begin anew.
ចុច Ctrl-C ដើម្បីបញ្ចប់។
"""
WITNESS_GONE = """\
{name} has ended; {left} of the witnesses are left, and {need} are needed. With fewer, nothing is closed or lowered,
and everything else goes on. Start the demo again to have it back."""
EXAMPLE = "សូមជួយផង ក្មេងស្រីម្នាក់ត្រូវគេចាក់សោក្នុងបន្ទប់ឥឡូវនេះ នៅផ្ទះសំណាក់ក្បែរផ្សារ ខេត្តសៀមរាប"


@dataclass(frozen=True)
class Ports:
    """Where the demo listens, on loopback."""

    public: int
    staff: int
    simulator: int
    metrics: int
    witnesses: tuple[int, ...]

    @classmethod
    def at(cls, offset: int) -> "Ports":
        """The usual ports, `offset` higher."""
        witnesses = tuple(demo_witnesses.FIRST + n + offset for n in range(len(demo_witnesses.WORDS)))
        return cls(8000 + offset, 8001 + offset, 8002 + offset, 8003 + offset, witnesses)

    @property
    def all(self) -> tuple[int, ...]:
        """Every port."""
        return self.public, self.staff, self.simulator, self.metrics, *self.witnesses

    @property
    def settings(self) -> dict[str, str]:
        """The same as settings of the processes."""
        return {
            "HOTLINE_PUBLIC_PORT": str(self.public),
            "HOTLINE_STAFF_PORT": str(self.staff),
            "HOTLINE_SIMULATOR_PORT": str(self.simulator),
            "HOTLINE_TWILIO_API_URL": f"http://127.0.0.1:{self.simulator}",
            "HOTLINE_METRICS_PORT": str(self.metrics),
        }


def main(arguments: list[str]) -> int:
    """Set up if needed, run until Ctrl-C, and return 0; 1 with a message when it cannot start or go on."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if not 0 <= options.port_offset <= 50_000:
        parser.error("--port-offset is a number from 0 to 50000")
    ports = Ports.at(options.port_offset)
    folder = DemoFolder(Path(options.folder).resolve())
    began = time.monotonic()
    os.umask(0o077)
    logs.configure("demo", level="CRITICAL")  # what goes wrong is said below, in words for a newcomer
    try:
        check_ports(ports, options.port_offset)
        with folder.locked():
            settings = prepare(folder, ports, reset=options.reset)
            return run(folder, settings, ports, began)
    except CannotStart as reason:
        problem = str(reason)
    except BrokenPipeError:
        raise  # nobody reads what we print any more: that is not about the folder
    except OSError as fault:
        problem = explain(fault, folder)
    except (Unavailable, DBAPIError):  # a migration meets the driver's own error
        problem = _storage_problem(folder)
    print(f"hotline demo: {problem}", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="./hotline demo",
        description="Start everything on this machine, on SQLite, with invented data; print addresses and accounts.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--reset", action="store_true", help="remove the demo's data and keys, and begin anew")
    parser.add_argument("--port-offset", type=int, default=0, metavar="N", help="add N to every port (default: 0)")
    parser.add_argument("--folder", default=str(DEFAULT), help="where the demo keeps its data (default: var)")
    return parser


def check_ports(ports: Ports, offset: int) -> None:
    """Return if every port is free. Raises CannotStart, naming all that are taken, before anything is begun."""
    taken = [str(port) for port in ports.all if not _is_free(port)]
    if taken:
        which = f"Port {taken[0]} is" if len(taken) == 1 else f"Ports {', '.join(taken)} are"
        raise CannotStart(
            f"{which} taken on this machine. Nothing was started.\n"
            "If another demo runs, end it with Ctrl-C; else take other ports: "
            f"./hotline demo --port-offset {offset + 100}"
        )


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the servers do: a recent end is no obstacle
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


# --- set-up ---------------------------------------------------------------------------------------------


def prepare(folder: DemoFolder, ports: Ports, *, reset: bool) -> dict[str, str]:
    """Bring `folder` to a state that can be served, and return the processes' settings.

    Raises CannotStart, OSError or Unavailable; what was begun then stays marked as unfinished.
    """
    if folder.prepare(reset=reset):
        print(f"Setting up in {folder.shown}, this once:")
        try:
            settings = _set_up(folder, ports)
        except KeyboardInterrupt:
            print("hotline demo: interrupted; the next start begins the set-up again.", file=sys.stderr)
            raise
        folder.write_settings(settings)
        _write_policy(folder, settings, ports)
        folder.complete()
        return settings
    settings = folder.read_settings() | ports.settings
    _check_relay(folder, settings)
    migrate(settings["HOTLINE_DATABASE_URL"])
    folder.write_settings(settings)
    _write_policy(folder, settings, ports)
    return settings


def _set_up(folder: DemoFolder, ports: Ports) -> dict[str, str]:
    from commands import demo_setup  # not needed, and slow to load, when the data is there

    return (
        demo_setup.settle(
            folder.path,
            public_url=f"http://127.0.0.1:{ports.public}",
            now=datetime.now(UTC),
            say=lambda words: print(f"  {words}", flush=True),
        )
        | ports.settings
    )


def _write_policy(folder: DemoFolder, settings: Mapping[str, str], ports: Ports) -> None:
    """Write the policy anew: the witnesses stay, their addresses go with the ports. Raises CannotStart."""
    if "HOTLINE_LEDGER_POLICY_FILE" not in settings:
        return
    log, public = settings["HOTLINE_LEDGER_VKEY"], settings["HOTLINE_PUBLIC_URL"]
    try:
        folder.write_policy(demo_witnesses.policy_text(folder.path / WITNESSES, log, public, ports.witnesses))
    except Misconfigured:
        raise CannotStart(f"The witnesses in {folder.shown} are damaged. Begin anew, with --reset") from None


def _check_relay(folder: DemoFolder, settings: Mapping[str, str]) -> None:
    """Return if phone numbers can still be sealed: a relay key lives 30 days, and nobody renews it in the demo."""
    keys = folder.path / KEYS
    try:
        cards = read_cards((keys / "cards.note").read_text(), settings.get("HOTLINE_ROOT_VKEY", ""))
        relay = read_relay_note((keys / "relay.note").read_text(), cards.relay or b"")
    except (BadCards, BadNote, UnicodeDecodeError, FileNotFoundError):
        raise CannotStart(f"The keys in {folder.shown} are damaged. Begin anew, with --reset") from None
    if datetime.now(UTC).date() > relay.until:
        raise CannotStart(f"The demo's keys were made to last until {relay.until}. Begin anew, with --reset")


def _storage_problem(folder: DemoFolder) -> str:
    if shutil.disk_usage(folder.path).free < LITTLE:
        return DISK_FULL.format(folder=folder.shown)
    return (
        f"The database in {folder.shown} cannot be read or written. Check that the folder is this user's own; "
        "with --reset the demo begins anew"
    )


# --- running --------------------------------------------------------------------------------------------


def run(folder: DemoFolder, settings: Mapping[str, str], ports: Ports, began: float) -> int:
    """Serve until Ctrl-C, SIGTERM or the terminal's end; return 0, or 1 after a child ended by itself."""
    environment = child_environment(os.environ, settings)
    (folder.path / LOGS).mkdir(mode=0o700, exist_ok=True)
    children: list[Child] = []
    witnesses: list[Child] = []
    with stop_signals() as stopping:
        try:
            for name, (arguments, port) in _children(ports).items():
                log = folder.path / LOGS / f"{name}.log"
                ready = processes.answers(f"http://127.0.0.1:{port}/health/ready") if port else logged(log, READY_SIGN)
                children.append(processes.start(name, arguments, environment, log=log, ready=ready))
            for name, arguments, port in demo_witnesses.children(folder.path / WITNESSES, ports.witnesses):
                log, ready = folder.path / LOGS / f"{name}.log", processes.answers(f"http://127.0.0.1:{port}/")
                witnesses.append(processes.start(name, arguments, environment, log=log, ready=ready))
            if processes.wait_until_ready([*children, *witnesses], stopping):
                print(summary(folder, ports, time.monotonic() - began), flush=True)
            while not stopping.wait(0.2):
                processes.check_alive(children)
                witnesses = _still_witnessing(witnesses)
        except ChildEnded as fault:
            print(f"hotline demo: {fault}\nThe demo stops.", file=sys.stderr)
            return 1
        finally:
            processes.stop([*children, *witnesses])
    with suppress(OSError):  # the terminal may be what has ended
        print(f"\nEnded. The data stays in {folder.shown}", flush=True)
    return 0


def _still_witnessing(witnesses: list[Child]) -> list[Child]:
    """Return the witnesses that run, after a word about each that has ended: that is theirs to do at any time."""
    left = [child for child in witnesses if child.process.poll() is None]
    for gone in (child for child in witnesses if child not in left):
        print(WITNESS_GONE.format(name=gone.name, left=len(left), need=demo_witnesses.NEED), flush=True)
    return left


def _children(ports: Ports) -> dict[str, tuple[list[str], int | None]]:
    """Return what runs: each process's arguments, and where it answers; None for the one that listens on nothing."""
    return {
        "simulator": (["simulate", "serve"], ports.simulator),
        "public": (["serve", "public"], ports.public),
        "staff": (["serve", "staff"], ports.staff),
        "worker": (["worker"], None),
    }


def child_environment(ours: Mapping[str, str], settings: Mapping[str, str]) -> dict[str, str]:
    """Return the children's environment: the demo's settings, and none that this shell has for something else."""
    kept = {name: value for name, value in ours.items() if not name.startswith("HOTLINE_") or name == "HOTLINE_DEBUG"}
    return kept | dict(settings)


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """Yield an event that is set by Ctrl-C and its like, instead of an exception at any line."""
    stopping = threading.Event()
    before = {number: signal.signal(number, lambda *_: stopping.set()) for number in STOPPING}
    try:
        yield stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def summary(folder: DemoFolder, ports: Ports, seconds: float) -> str:
    """Return what a newcomer needs: addresses, accounts, one line to try, how to end it."""
    units = {plan.id: plan for plan in PLANS}
    accounts = [
        f"  {p.account:<14} {p.role:<13} {p.name}, {units[p.unit].name}   {p.name_km} {units[p.unit].name_km}"
        if p.role != Role.ADMIN
        else f"  {p.account:<14} {p.role:<13} {p.name}, reads no case   {p.name_km} មិនអានសំណុំរឿងទេ"
        for p in PEOPLE
    ]
    return READY.format(
        seconds=seconds,
        phones=f"http://127.0.0.1:{ports.simulator}/",
        public=f"http://127.0.0.1:{ports.public}/",
        staff=f"http://127.0.0.1:{ports.staff}/",
        forwards=" ".join(f"-L {p}:127.0.0.1:{p}" for p in (ports.public, ports.staff, ports.simulator)),
        witnesses=f"{ports.witnesses[0]} to {ports.witnesses[-1]}",
        passphrase=PASSPHRASE,
        accounts="\n".join(accounts),
        prefix="" if folder.path == DEFAULT else f"HOTLINE_SETTINGS={folder.settings_file} ",
        text=EXAMPLE,
        folder=folder.shown,
    )
