"""The shipped worker in a hurry: what takes minutes takes seconds, so that a test can wait for it.

``python -m tests.chaos.hurried -`` runs it as it is, ``… NAME`` with one of the wrong ways below.
"""

import sys
from datetime import datetime, timedelta

from sqlalchemy import update
from sqlmodel import col

from commands import worker
from service import outbox, relay
from service.db import Tx
from service.models import JobState, OutboxJob

HASTE = 5  # how many times as often each duty comes round
LEASE = timedelta(seconds=3)
LOOKING = timedelta(seconds=3)


class Hurried(worker._Duty):
    """A duty that comes round more often."""

    def __post_init__(self) -> None:
        self.pause /= HASTE


def sends_again() -> None:
    """Wrong: a row whose sender died while sending waits again, although it may have been sent."""

    def waits_again(tx: Tx, now: datetime) -> None:
        died = (col(OutboxJob.state) == JobState.SENDING, col(OutboxJob.until) < now)
        tx.execute(update(OutboxJob).where(*died).values(state=JobState.WAITING, not_before=now, joined=None))

    outbox.recover = waits_again
    relay._quiet_after = lambda moment: moment  # the quiet minute would only put it off until the test is over


if __name__ == "__main__":
    outbox.LEASE, outbox.LOOKING, relay.LOOK_EVERY = LEASE, LOOKING, timedelta(seconds=0.5)
    worker._Duty = Hurried
    if sys.argv[1] != "-":
        globals()[sys.argv[1]]()
    sys.exit(worker.main([]))
