"""What somebody on duty must hear of, logged sparingly (twilio.md section 3, Operation).

A flood of forged requests must not fill the disk with lines, so each alarm writes one in ten seconds, which says how
many there were. Events and words are of this code, never of a request.
"""

import time
from collections.abc import Callable

import structlog

from service.metrics import BAD_SIGNATURE, GOOD_SIGNATURE

WEBHOOK_REFUSED = BAD_SIGNATURE
UNLISTED_NUMBER = "webhook_unlisted_number"
REQUEST_REFUSED = "request_refused"
REQUEST_SHED = "request_shed"
REQUEST_FAILED = "request_failed"
TIP_NOT_STORED = "tip_not_stored"

QUIET_SECONDS = 10.0
GOOD_SECONDS = 60.0

_log = structlog.get_logger("webhooks")


def nobody(_event: str) -> None:
    """Tell nobody."""


class Alarms:
    """Remembers in memory when each alarm last rang."""

    def __init__(self, notice: Callable[[str], None] = nobody, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Tell `notice` the event of each line that is logged, and at most once a minute ``GOOD_SIGNATURE``.

        It is called between requests, on the event loop: it must neither block nor raise.
        """
        self._notice = notice
        self._clock = clock
        self._logged: dict[tuple[str, str], float] = {}
        self._unsaid: dict[tuple[str, str], int] = {}
        self._good: float | None = None

    def ring(self, event: str, kind: str, **more: str) -> None:
        """Log `event` of this `kind`, unless that was done a moment ago; then only count it.

        kind: out of a closed set of this code. more: further keys of the log's allow-list.
        """
        key = (event, kind)
        count = self._unsaid.get(key, 0) + 1
        now, last = self._clock(), self._logged.get(key)
        if last is not None and now - last < QUIET_SECONDS:
            self._unsaid[key] = count
            return
        self._logged[key], self._unsaid[key] = now, 0
        _log.warning(event, kind=kind, count=count, **more)
        self._notice(event)

    def good_signature(self) -> None:
        """Note that a provider's signature was good: its age is a metric."""
        now = self._clock()
        if self._good is None or now - self._good >= GOOD_SECONDS:
            self._good = now
            self._notice(GOOD_SIGNATURE)
