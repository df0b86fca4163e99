"""Structured logs with an allow-list: a key that is not on it never reaches a log, in CI it raises.

Exceptions are logged as type and place. Their text may hold a word of a tip.
"""

import logging
import sys
import traceback
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from typing import Any

import structlog

ALLOWED = frozenset(
    {
        "event",
        "level",
        "timestamp",
        "process",
        "delivery",  # a provider's message id
        "provider",
        "kind",
        "channel",
        "status",
        "route",
        "count",
        "milliseconds",
        "error",
        "place",
        "setting",
        "revision",
        "size",
        "address",  # one we listen on
        "logger",
    }
)


class Unlisted(ValueError):
    """A key that is not on the list was given to a log call."""


def allow(strict: bool) -> Any:
    """Return a structlog processor that keeps allowed keys only. strict: raise Unlisted instead of dropping."""

    def keep(_logger: Any, _name: str, entry: MutableMapping[str, Any]) -> Mapping[str, Any]:
        entry = dict(_flat(entry))
        unknown = sorted(set(entry) - ALLOWED)
        if unknown and strict:
            raise Unlisted(", ".join(unknown))
        return {key: value for key, value in entry.items() if key in ALLOWED}

    return keep


def _flat(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """Turn ``exc_info`` into the error's type and place."""
    kept = dict(entry)
    info = kept.pop("exc_info", None)
    if info:
        fault = info if isinstance(info, BaseException) else (info[1] if isinstance(info, tuple) else sys.exc_info()[1])
        if fault is not None:
            kept |= {"error": type(fault).__name__, "place": place(fault)}
    return kept


def place(fault: BaseException) -> str:
    """Return where `fault` was raised, as ``file:line``, without its text."""
    frames = traceback.extract_tb(fault.__traceback__)
    return f"{frames[-1].filename.rsplit('/', 2)[-1]}:{frames[-1].lineno}" if frames else "unknown"


class _Plain(logging.Handler):
    """Other libraries' records, without their arguments: a message template is not a secret, what fills it may be."""

    def emit(self, record: logging.LogRecord) -> None:
        """Hand the record's template on, and its error as type and place."""
        known: dict[str, Any] = {"logger": record.name}
        if record.exc_info and record.exc_info[1] is not None:
            fault = record.exc_info[1]
            known |= {"error": type(fault).__name__, "place": place(fault)}
        words = record.msg if isinstance(record.msg, str) and record.args else record.name
        structlog.get_logger().log(record.levelno, words, **known)


class _Stderr:
    """Writes lines to standard error. A closed one costs the line, never the work that it was about."""

    def msg(self, line: str) -> None:
        """Write one line."""
        with suppress(OSError, ValueError):
            print(line, file=sys.stderr, flush=True)  # noqa: T201 - this is where logs go

    debug = info = warning = error = critical = fatal = exception = log = msg


def configure(process: str, *, level: str = "INFO", strict: bool = False) -> None:
    """Send structlog and the standard library's logs to standard error as JSON lines.

    process: ``public``, ``staff`` …, bound to every line. strict: an unlisted key raises (CI).
    """
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(process=process)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            allow(strict),
            structlog.processors.JSONRenderer(ensure_ascii=False),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level)),
        logger_factory=lambda *_: _Stderr(),
        cache_logger_on_first_use=False,
    )
    logging.getLogger("psycopg").setLevel(logging.ERROR)  # it warns of each repeated delivery, whose insert fails
    logging.basicConfig(handlers=[_Plain()], level=max(logging.WARNING, logging.getLevelName(level)), force=True)
