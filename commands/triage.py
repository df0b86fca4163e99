"""``./hotline triage FILE.jsonl``: judge tips from a file, one JSON prediction a line; nothing is stored or sent."""

import argparse
import json
import sys
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TextIO

from service.config import settings_from_environment
from service.errors import Misconfigured
from service.triage import PROVINCES, Assessment, Triage, assess

EPILOG = """\
examples:
  ./hotline triage tips.jsonl > predictions.jsonl
  printf '%s\\n' '{"id": "1", "text": "a girl is locked in a room now"}' | ./hotline triage -

input, one tip a line:
  {"id": "DV-001", "text": "…", "context": {"placement_code_province": "Kampot", "venue_type": "bar",
   "form": "public", "reporter": "witness"}}
  id and text are needed; context and each of its keys may be missing; other keys are passed over.

output, one prediction a line, in the same order:
  {"id", "priority": P1 to P4, "flags": [], "province": English name or null, "venue_type": or null, "reasons": []}

No line changes how another is judged. A line that cannot be read is named on standard error by its number, never by
its words; the others are still judged, and the exit code is 2.
"""


class _Malformed(ValueError):
    """A line that is no tip; says why without its words."""


def main(arguments: list[str]) -> int:
    """Print a prediction for every tip of the file named in `arguments`; return 0, or 2 if a line was malformed."""
    parser = argparse.ArgumentParser(
        prog="./hotline triage",
        description="Judge tips with the rules and the lexicon in force. Nothing is stored or sent.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", metavar="FILE.jsonl", help="tips, one JSON object a line; - reads standard input")
    options = parser.parse_args(arguments)
    settings = settings_from_environment()
    triage = Triage.load(settings.ruleset_file, settings.lexicon_dir)
    try:
        with nullcontext(sys.stdin.buffer) if options.file == "-" else Path(options.file).open("rb") as lines:
            return 2 if _judge_all(triage, lines) else 0
    except (FileNotFoundError, IsADirectoryError, PermissionError) as fault:
        raise Misconfigured(f"cannot read the file: {fault.strerror}") from fault


def _judge_all(triage: Triage, lines: Iterable[bytes]) -> int:
    malformed = 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            prediction = _judge(triage, line)
        except _Malformed as fault:
            malformed += 1
            print(f"line {number}: {fault}", file=sys.stderr)
            continue
        _write(sys.stdout, prediction)
    return malformed


def _judge(triage: Triage, line: bytes) -> dict[str, Any]:
    tip = _tip(line)
    context = {key: value for key, value in tip.get("context", {}).items() if isinstance(value, str)}
    found = assess(triage, tip["text"], context=context)
    return {
        "id": tip["id"],
        "priority": found.decision.level,
        "flags": list(found.decision.flags),
        "province": PROVINCES[found.province].en if found.province is not None else None,
        "venue_type": found.venue_type,
        "reasons": _reasons(found),
    }


def _reasons(found: Assessment) -> list[str]:
    return [f"{reason.id}: {reason.en}" for reason in found.decision.fired]


def _tip(line: bytes) -> dict[str, Any]:
    try:
        tip = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        raise _Malformed("not UTF-8") from None
    except (ValueError, RecursionError):
        raise _Malformed("not JSON") from None
    if not isinstance(tip, dict):
        raise _Malformed("not a JSON object")
    if not isinstance(tip.get("id"), str):
        raise _Malformed("id is missing or not a string")
    if not isinstance(tip.get("text"), str):
        raise _Malformed("text is missing or not a string")
    if not isinstance(tip.get("context", {}), dict):
        raise _Malformed("context is not an object")
    return tip


def _write(out: TextIO, prediction: dict[str, Any]) -> None:
    try:
        line = json.dumps(prediction, ensure_ascii=False)
        line.encode()
    except UnicodeEncodeError:  # an id with half a surrogate pair
        line = json.dumps(prediction)
    print(line, file=out)
