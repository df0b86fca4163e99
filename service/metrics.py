"""Figures for monitoring, read from the database so that they span processes, served on loopback only.

Counts are by level and channel, never by unit, place or person: a figure must not show a walled case.
"""

from collections.abc import Iterable
from datetime import UTC, datetime

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import case as when
from sqlalchemy import func, select, text
from sqlmodel import Session, col

from service.db import Sessions, Tx
from service.errors import HotlineError
from service.models import Case, JobState, LedgerPending, LedgerState, OutboxJob, Sign

GOOD_SIGNATURE = "twilio_signature_good"
BAD_SIGNATURE = "twilio_signature_bad"
WORKER = "worker"  # the sign by which others see that a worker lives
VERIFIED = "ledger_verified"  # when the nightly check found nothing wrong; more than a day and a half is an alarm
PUBLISHED = "ledger_published"  # when a head of the ledger was published; more than five minutes ago is an alarm


def seen(tx: Tx, name: str, at: datetime) -> None:
    """Note that `name` was seen at `at`; the last one stays."""
    sign = tx.get(Sign, name)
    if sign is None:
        tx.add(Sign(name=name, at=at))
    else:
        sign.at = max(sign.at, at)
    tx.flush()


class DatabaseMetrics(Collector):
    """Gauges over the database: queue, lateness, waiting work, ages of what was last seen well."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    def collect(self) -> Iterable[Metric]:
        """Yield the gauges; ``hotline_database_up`` is 0 and alone when the database does not answer."""
        now = datetime.now(UTC)
        try:
            with self._sessions.read() as session:
                figures = list(_figures(session, now))
        except HotlineError:
            yield GaugeMetricFamily("hotline_database_up", "1 when the database answers", value=0)
            return
        yield GaugeMetricFamily("hotline_database_up", "1 when the database answers", value=1)
        yield from figures


def _figures(session: Session, now: datetime) -> Iterable[Metric]:
    open_cases = GaugeMetricFamily("hotline_cases_open", "cases that are not closed", labels=["level"])
    late = GaugeMetricFamily("hotline_cases_late", "open cases past their deadline", labels=["level"])
    rows = session.execute(
        select(col(Case.level), func.count(), func.sum(when((col(Case.due_at) < now, 1), else_=0)))
        .where(text("state <> 'closed'"))
        .group_by(col(Case.level))
    ).all()
    for level, count, overdue in rows:
        open_cases.add_metric([level], count)
        late.add_metric([level], overdue or 0)
    yield open_cases
    yield late
    jobs = GaugeMetricFamily("hotline_outbox", "outbox rows that are not done, by state", labels=["state"])
    for state in (JobState.WAITING, JobState.SENDING, JobState.CHECKING, JobState.FAILED, JobState.UNKNOWN):
        unseen = (col(OutboxJob.state) == state, col(OutboxJob.seen_by).is_(None))
        jobs.add_metric([str(state)], session.scalar(select(func.count()).where(*unseen)) or 0)
    yield jobs
    pending = session.scalar(select(func.count()).select_from(LedgerPending))
    yield GaugeMetricFamily("hotline_ledger_pending", "leaves not integrated yet", value=pending or 0)
    stopped = bool(session.scalar(select(col(LedgerState.halted))))
    yield GaugeMetricFamily("hotline_ledger_halted", "1 while the ledger is halted", value=int(stopped))
    ages = GaugeMetricFamily("hotline_seconds_since", "age of what was last seen", labels=["what"])
    for sign in session.scalars(select(Sign)).all():
        ages.add_metric([sign.name], max(0.0, (now - sign.at).total_seconds()))
    yield ages
