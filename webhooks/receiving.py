"""What every channel of this app shares: where tips go, and what time it is."""

from datetime import UTC, datetime
from typing import Protocol

from service.intake import IncomingTip, Receipt


class Receives(Protocol):
    """The receiving end of every channel, ``service.intake.Intake``."""

    async def receive(self, tip: IncomingTip) -> Receipt:
        """Store a tip durably, or raise Unavailable when nothing was stored."""

    async def report(self, delivery: str, status: str, code: int | None, at: datetime) -> None:
        """Keep what the provider says of a text of ours, or raise Unavailable when nothing was stored."""


def utc_now() -> datetime:
    """Return this moment."""
    return datetime.now(UTC)
