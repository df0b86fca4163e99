"""``hotline ledger``: set up the signer, run it apart."""

import argparse
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from commands import sequencing
from service import logs
from service.config import settings_from_environment
from service.errors import Misconfigured
from service.ledger.signer_socket import SignerServer

READY = "signer_ready"

EPILOG = """\
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


Action = tuple[str, Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], int]]
ACTIONS: dict[str, Action] = {
    "init": ("make the log's key and the signer's memory, once", _init_options, _init),
    "signer": ("run the signer as a process of its own", _signer_options, _signer),
}
