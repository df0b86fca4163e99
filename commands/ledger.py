"""``hotline ledger``: set up the signer, run it apart, check everything, copy the public log out."""

import argparse
import getpass
import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from sqlalchemy import text

from commands import sequencing
from commands.offline import read_key
from commands.serve import open_ready_database, read_deck
from service import cases, logs
from service.config import read_secret, settings_from_environment
from service.db import write
from service.errors import BadNote, CannotOpen, CheckFailed, Invalid, LedgerFault, Misconfigured, NotFound, Unavailable
from service.ledger import census, notes
from service.ledger.events import Ledger
from service.ledger.export import Found, export, find_tags, verify_export
from service.ledger.recover import recover
from service.ledger.signer_socket import SignerServer
from service.ledger.verify import Keys, Report, verify
from service.nightly import keep_census, open_census
from service.vault import mailbox

READY = "signer_ready"

MOST_STEPS = 64  # tags that are looked for: T_0 to T_63 (ledger.md section 9)

EPILOG = """\
hotline ledger witness --help explains the program that others run, to cosign this history.

exit code: 0 in order, 1 something does not fit (what and where first is said), 2 it could not be checked
"""


def main(arguments: list[str]) -> int:
    """Run one of the actions below. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="hotline ledger",
        description="The history that the operator cannot rewrite: set up, sign apart, check, copy out, repair.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, (words, prepare, _) in ACTIONS.items():
        prepare(actions.add_parser(name, help=words, description=words[0].upper() + words[1:] + "."))
    options = parser.parse_args(arguments)
    return ACTIONS[options.action][2](options)


# --- init, signer ---------------------------------------------------------------------------------------


def _init_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where key and memory will lie")


def _init(options: argparse.Namespace) -> int:
    settings = settings_from_environment()
    made = sequencing.make_signer(options.folder.absolute(), settings.origin)
    print(f"The log {settings.origin} begins. Its key and the signer's memory lie in {options.folder}: keep both,")
    print("on this host, for the signer's user alone. A lost memory is never made again. Settings of the worker:\n")
    print(f"HOTLINE_LEDGER_VKEY={made['HOTLINE_LEDGER_VKEY']}")
    print("HOTLINE_LEDGER_SIGNER_SOCKET=the socket that hotline ledger signer is given")
    return 0


def _signer_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where hotline ledger init put key and memory")
    parser.add_argument("socket", type=Path, metavar="SOCKET", help="the Unix socket to listen on, mode 0660")


def _signer(options: argparse.Namespace) -> int:
    settings = settings_from_environment()
    logs.configure("signer", level=settings.log_level)
    signer = sequencing.open_signer(options.folder, settings.origin)
    signer.head()  # refuses a memory that is lost or spoilt before anybody asks
    try:
        server = SignerServer(signer, options.socket)
    except OSError:
        raise Misconfigured(f"cannot listen on {options.socket}") from None
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: threading.Thread(target=server.shutdown).start())
    print(READY, file=sys.stderr, flush=True)
    with server:
        server.serve_forever(poll_interval=0.1)
    options.socket.unlink(missing_ok=True)
    return 0


# --- verify, export -------------------------------------------------------------------------------------


def _verify_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", nargs="?", type=Path, metavar="DIR", help="a copy of the public log (default: the database)"
    )
    parser.add_argument("--policy", type=Path, metavar="FILE", help="whose signatures count; needed with DIR")
    parser.add_argument(
        "--seen",
        type=Path,
        metavar="FILE",
        action="append",
        default=[],
        help="a checkpoint seen before; may be repeated",
    )
    parser.add_argument(
        "--code",
        action="store_true",
        help="ask for a return code, without showing it, and find what was written about its tip; needs DIR",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _verify(options: argparse.Namespace) -> int:
    if options.code and options.folder is None:
        raise Misconfigured("--code is for a copy of the public log: give DIR and --policy")
    try:
        seen = [path.read_bytes().decode() for path in options.seen]
        report = _verify_folder(options, seen) if options.folder is not None else _verify_database(seen)
        steps = _find_steps(options) if options.code and report.good else None
    except (OSError, UnicodeDecodeError) as fault:
        raise Misconfigured(f"cannot read {getattr(fault, 'filename', None) or 'a file'}") from None
    except (BadNote, NotFound, LedgerFault, Unavailable) as fault:
        raise Misconfigured(str(fault)) from None
    if options.json:
        told = {} if steps is None else {"steps": [_step_json(step) for step in steps]}
        print(json.dumps(report.as_json() | told))
    else:
        for found in report.faults:
            print(found, file=sys.stderr)
        lost = f", {len(report.lost)} leaves lost and named so" if report.lost else ""
        print(f"{report.size} leaves, {report.witnessed} of them witnessed{lost}")
        print(f"DOES NOT FIT, first at {report.faults[0]}" if report.faults else "good")
        if steps is not None:
            print("\n".join(_steps_words(steps)))
    return 0 if report.good and (steps is None or _is_whole(steps)) else 1


def _verify_folder(options: argparse.Namespace, seen: list[str]) -> Report:
    if options.policy is None:
        raise Misconfigured("--policy is needed: a copy's own policy proves nothing")
    return verify_export(options.folder, notes.parse_policy(options.policy.read_bytes().decode()), seen)


# --- the tipster's check: that a tip was taken and how many steps followed, never what -------------------


def _find_steps(options: argparse.Namespace) -> list[Found]:
    """Ask for the code and return the leaves that carry its tags."""
    policy = notes.parse_policy(options.policy.read_bytes().decode())
    code = mailbox.read_code(getpass.getpass("Code, 16 digits: "))
    if code is None:
        raise Misconfigured("that is no code: 16 digits, of which the last checks the others. Look for a slip")
    key = mailbox.tag_key(code, policy.log.name)
    return find_tags(options.folder, policy, [mailbox.tag(key, number) for number in range(MOST_STEPS)])


def _is_whole(steps: Sequence[Found]) -> bool:
    """Say whether the account is there, each step once, and none before the last is missing."""
    return bool(steps) and [step.number for step in steps] == list(range(len(steps)))


def _steps_words(steps: Sequence[Found]) -> Iterator[str]:
    for step in steps:
        what = "the account was taken" if step.number == 0 else f"step {step.number}"
        after, before = (_moment(moment) for moment in (step.after, step.before))
        yield f"{what}: leaf {step.index}, after {after}, before {before}"
    if not steps:
        yield "NOT FOUND: no leaf of this copy carries this code. If the tip is new, take a newer copy"
    elif not _is_whole(steps):
        yield "DOES NOT FIT: the account or a step is missing, or stands there twice"


def _moment(moment: datetime | None) -> str:
    return "a time that this copy does not tell" if moment is None else f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def _step_json(step: Found) -> dict[str, int | str | None]:
    after, before = (None if moment is None else moment.isoformat() for moment in (step.after, step.before))
    return {"number": step.number, "index": step.index, "after": after, "before": before}


def _verify_database(seen: list[str]) -> Report:
    settings = settings_from_environment()
    log = sequencing.read_log_key(settings)
    signer = sequencing.signer_of(settings)
    heads = [*seen, *sequencing.read_seen(settings), *([signer.head()] if signer is not None else [])]
    keys = Keys(
        log,
        sequencing.read_policy(settings, log),
        read_secret(settings.cover_key_file, "cover_key_file", length=32),
        cases.state_class,
        heads,
    )
    sessions = open_ready_database(settings)
    try:
        with sessions.read() as session:
            if sessions.dialect == "postgresql":  # a long look at one moment, which changes nothing
                session.execute(text("SET LOCAL statement_timeout = 0"))
            return verify(session, keys, datetime.now(UTC))
    finally:
        sessions.close()


def _export_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="where the files go; what is there already stays")
    parser.add_argument(
        "--receipts", type=Path, metavar="FILE", help="indices of leaves, one a line, to export receipts of"
    )


def _export(options: argparse.Namespace) -> int:
    settings = settings_from_environment()
    path = settings.ledger_policy_file
    try:
        policy = path.read_bytes().decode() if path is not None else None
        wanted = [int(line) for line in options.receipts.read_text().split()] if options.receipts else []
    except (OSError, ValueError):
        raise Misconfigured("the policy or the file of indices cannot be read") from None
    sessions = open_ready_database(settings)
    try:
        with sessions.read() as session:
            size = export(session, options.folder, policy, wanted, datetime.now(UTC))
    except NotFound as fault:
        raise Misconfigured(str(fault)) from None
    finally:
        sessions.close()
    print(f"{size} leaves in {options.folder}")
    return 0


# --- census, recover ------------------------------------------------------------------------------------


def _census_options(parser: argparse.ArgumentParser) -> None:
    steps = parser.add_subparsers(dest="step", required=True, metavar="STEP")
    take = steps.add_parser("take", help="list all chains now; the file is sealed to the monitor unit")
    take.add_argument("folder", type=Path, metavar="DIR", help="where the sealed census goes")
    opening = steps.add_parser("open", help="print what a sealed census says; needs the monitor unit's key")
    opening.add_argument("file", type=Path, metavar="FILE", help="like census-000012.box, under its own name")
    opening.add_argument("--key", type=Path, metavar="FILE", required=True, help="the monitor unit's private key")
    check = steps.add_parser("check", help="compare two opened censuses that follow each other")
    check.add_argument("old", type=Path, metavar="OLD")
    check.add_argument("new", type=Path, metavar="NEW")


def _census(options: argparse.Namespace) -> int:
    if options.step == "check":
        try:
            old, new = (census.parse(path.read_bytes().decode()) for path in (options.old, options.new))
        except (OSError, UnicodeDecodeError, Invalid):
            raise Misconfigured("a file is no census, or cannot be read") from None
        faults = census.check(old, new)
        print("\n".join(faults) or f"good: {len(new.lines)} chains, none gone, none late")
        return 1 if faults else 0
    if options.step == "open":
        try:
            opened = open_census(options.file, read_key(options.key))
        except (OSError, ValueError, CannotOpen, Invalid):
            raise Misconfigured("the file is no census under its own name, or this key does not open it") from None
        print(opened.text, end="")
        return 0
    settings = settings_from_environment()
    sessions = open_ready_database(settings)
    try:
        monitor = read_deck(settings, sessions).monitor()
        ledger = Ledger(settings.origin, monitor.public)
        taken = write(sessions, partial(census.take, ledger=ledger, now=datetime.now(UTC)))
    finally:
        sessions.close()
    path = keep_census(options.folder, taken, monitor.public)
    print(f"census {taken.number}: {len(taken.lines)} chains, sealed to the monitor unit in {path}")
    return 0


def _recover_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--from", dest="folder", type=Path, metavar="DIR", required=True, help="a whole copy of the log"
    )
    parser.add_argument("--policy", type=Path, metavar="FILE", required=True, help="whose signatures count")


def _recover(options: argparse.Namespace) -> int:
    settings = settings_from_environment()
    sessions = open_ready_database(settings)
    try:
        policy = notes.parse_policy(options.policy.read_bytes().decode())
        if policy.log != sequencing.read_log_key(settings):
            raise Misconfigured("the policy is of another log")
        cover_key = read_secret(settings.cover_key_file, "cover_key_file", length=32)
        ledger = Ledger(settings.origin, read_deck(settings, sessions).monitor().public)
        now = datetime.now(UTC)
        lost = write(sessions, lambda tx: recover(tx, ledger, options.folder, policy, cover_key, now))
    except CheckFailed as fault:
        print(f"not repaired: {fault.reason}", file=sys.stderr)
        return 1
    except (OSError, UnicodeDecodeError, BadNote, NotFound) as fault:
        raise Misconfigured(f"the copy or the policy cannot be used: {type(fault).__name__}") from None
    finally:
        sessions.close()
    print("repaired" + "".join(f"; leaves {first} to {last} are lost" for first, last in lost))
    return 0


Action = tuple[str, Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], int]]
ACTIONS: dict[str, Action] = {
    "init": ("make the log's key and the signer's memory, once", _init_options, _init),
    "signer": ("run the signer as a process of its own", _signer_options, _signer),
    "verify": ("check the database, or a copy of the public log", _verify_options, _verify),
    "census": ("list all chains, or compare two such lists", _census_options, _census),
    "recover": ("put leaves back from a copy after a lost database", _recover_options, _recover),
    "export": ("copy the public log out as static files", _export_options, _export),
}
