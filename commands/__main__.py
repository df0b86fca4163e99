"""``python -m commands NAME ...``: find the command, run it, say in one safe line what went wrong.

`./hotline` ends here. The text of an exception may hold a word of a tip or a number, so only its type and its place
are printed; ``HOTLINE_DEBUG=1`` shows all of it, on a machine where that does no harm.
"""

import importlib
import os
import select
import sys
import threading
import traceback
from pathlib import Path

from service.errors import HotlineError, Misconfigured

ROOT = Path(__file__).resolve().parent.parent

COMMANDS = {
    "demo": "commands.demo",
    "test": "commands.test",
    "simulate": "commands.simulate",
    "triage": "commands.triage",
    "serve": "commands.serve",
    "worker": "commands.worker",
    "migrate": "commands.migrate",
    "bench": "commands.bench",
    "rules": "commands.rules",
    "staff": "commands.staff",
    "keys": "commands.keys",
    "init": "commands.init",
    "ledger": "commands.ledger",
    "lint": "commands.lint",
}


APART = {("ledger", "witness"): "commands.witness"}  # run by others than the hotline: loads nothing of it


def main(arguments: list[str]) -> int:
    """Run the command named first in `arguments` with the rest; return the exit code.

    0 or the command's own; 1 for a fault of ours; 2 for wrong use or settings; 130 for Ctrl-C; 141 for a closed pipe.
    """
    name, *rest = arguments or [""]
    if name not in COMMANDS:
        print(f"usage: ./hotline COMMAND [arguments], with COMMAND one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    module = COMMANDS[name]
    if (name, *rest[:1]) in APART:
        module, rest = APART[name, rest[0]], rest[1:]
    try:
        code: int = importlib.import_module(module).main(rest)
        sys.stdout.flush()
        return code
    except Misconfigured as fault:
        print(f"hotline {name}: {fault}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except Exception as fault:  # noqa: BLE001 - the last resort, so that no text of it reaches the terminal
        if isinstance(fault, BrokenPipeError) and _stdout_is_closed():
            return 141
        report(fault)
        return 1


def report(fault: BaseException) -> None:
    """Print the type of `fault` and where it was raised, never its text, unless HOTLINE_DEBUG=1."""
    if os.environ.get("HOTLINE_DEBUG") == "1":
        traceback.print_exception(fault)
        return
    kind = type(fault)
    name = f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
    meaning = f" ({kind.__doc__})" if isinstance(fault, HotlineError) else ""
    print(f"hotline: {name}{meaning} at {place(fault)}", file=sys.stderr)
    print("HOTLINE_DEBUG=1 shows more; its output may hold words of a tip.", file=sys.stderr)


def place(fault: BaseException) -> str:
    """Return "file:line" of the innermost frame of ours that `fault` passed, or of the innermost at all."""
    frames = [(Path(frame.f_code.co_filename), line) for frame, line in traceback.walk_tb(fault.__traceback__)]
    ours = [(path.relative_to(ROOT), line) for path, line in frames if _is_ours(path)]
    path, line = (ours or frames or [(Path("unknown"), 0)])[-1]
    return f"{path}:{line}"


def _is_ours(path: Path) -> bool:
    return path.is_relative_to(ROOT) and ".venv" not in path.parts


def _stdout_is_closed() -> bool:
    """Return whether it is our own output that nobody reads any more; then make the flush at exit harmless."""
    stdout = sys.stdout.fileno()
    poll = select.poll()
    poll.register(stdout, 0)
    if not poll.poll(0):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), stdout)
    return True


def _report_thread(lost: threading.ExceptHookArgs) -> None:
    if lost.exc_value is not None:
        report(lost.exc_value)


if __name__ == "__main__":
    threading.excepthook = _report_thread
    sys.unraisablehook = lambda lost: report(lost.exc_value) if lost.exc_value else None
    sys.exit(main(sys.argv[1:]))
