"""The triage queue: computed order only, over the cases that a person's units hold (DESIGN section 9)."""

import heapq
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Row, and_, exists, func, literal, select, text, tuple_
from sqlalchemy import case as when
from sqlmodel import Session, col

from service.cases import HOT_FLAGS
from service.models import Case, CaseDecision, JobState, Level, Member, OutboxJob, State
from service.outbox import RING
from service.walls import Seat, Viewer, listed, queues, readable

STUCK_AFTER = 3  # tries


@dataclass(frozen=True, slots=True)
class QueueFilter:
    """What to show of a queue; None shows all. owner: ``none`` or ``me``. clock: ``late``, ``hour`` or ``today``."""

    level: str | None = None
    owner: str | None = None
    clock: str | None = None
    province: str | None = None
    venue: str | None = None
    flag: str | None = None


@dataclass(frozen=True, slots=True, order=True)
class QueueKey:
    """The place of a case in the computed order: level, deadline, flags, youngest age, id (DESIGN section 9)."""

    level: str
    due_at: datetime
    flag_rank: int
    age_rank: int
    id: UUID


@dataclass(frozen=True, slots=True)
class QueueRow:
    """One line of the queue. A walled case shows its level and its clock, nothing else."""

    key: QueueKey
    due_kind: str
    state: str
    provisional: bool
    walled: bool
    channel: str
    language: str
    flags: tuple[str, ...]
    province: str | None
    venue: str | None
    owner: UUID | None
    owner_name: str | None
    owner_name_km: str | None
    reasons: tuple[tuple[str, str, str], ...]  # rule, English, Khmer

    @property
    def id(self) -> UUID:
        """The case's id."""
        return self.key.id


@dataclass(frozen=True, slots=True)
class Count:
    """How many cases of a level stand in the viewer's queues."""

    all: int = 0
    late: int = 0
    unowned: int = 0


def counts(session: Session, viewer: Viewer, now: datetime) -> dict[str, Count]:
    """Return the counts by level over the queues of `viewer`, exact, from a partial index."""
    found: dict[str, Count] = {level: Count() for level in Level}
    late = func.sum(when((col(Case.due_at) < now, 1), else_=0))
    unowned = func.sum(when((col(Case.state) == State.OPEN, 1), else_=0))
    for seat in queues(viewer):
        rows = session.execute(
            select(col(Case.level), func.count(), late, unowned)
            .where(listed(viewer, seat), text("state <> 'closed'"))
            .group_by(col(Case.level))
        ).all()
        for level, all_, late_, unowned_ in rows:
            old = found[level]
            found[level] = Count(old.all + all_, old.late + late_, old.unowned + unowned_)
    return found


def queue(
    session: Session,
    viewer: Viewer,
    wanted: QueueFilter,
    now: datetime,
    *,
    after: QueueKey | None = None,
    size: int = 50,
) -> tuple[list[QueueRow], QueueKey | None]:
    """Return one page of the viewer's queue in the computed order, and the key to go on from, or None at its end.

    after: the last key of the page before. A person of several units sees their queues merged.
    """
    pages = [_seat_page(session, seat, viewer, wanted, now, after, size + 1) for seat in queues(viewer)]
    picked: list[Row[Any]] = []
    for row in heapq.merge(*pages, key=_key_of):
        if not picked or picked[-1].id != row.id:
            picked.append(row)
        if len(picked) > size:
            break
    rows = [_queue_row(row) for row in picked[:size]]
    return rows, rows[-1].key if len(picked) > size else None


def _key_of(row: Row[Any]) -> QueueKey:
    return QueueKey(row.level, row.due_at, row.flag_rank, row.age_rank, row.id)


_KEY = (col(Case.level), col(Case.due_at), col(Case.flag_rank), col(Case.age_rank), col(Case.id))


def _seat_page(
    session: Session,
    seat: Seat,
    viewer: Viewer,
    wanted: QueueFilter,
    now: datetime,
    after: QueueKey | None,
    size: int,
) -> Sequence[Row[Any]]:
    conditions: list[ColumnElement[bool]] = [
        listed(viewer, seat),
        text("state <> 'closed'"),  # type: ignore[list-item]
        *_conditions(viewer, wanted, now),
    ]
    if after is not None:
        key = (after.level, after.due_at, after.flag_rank, after.age_rank, after.id)
        conditions.append(tuple_(*_KEY) > tuple_(*(_bound(c, v) for c, v in zip(_KEY, key, strict=True))))
    picked = select(Case).where(*conditions).order_by(*_KEY).limit(size).subquery()
    rows = session.execute(
        select(picked, col(Member.name), col(Member.name_km), col(CaseDecision.record))
        .outerjoin(Member, col(Member.id) == picked.c.owner)
        .outerjoin(
            CaseDecision,
            and_(col(CaseDecision.case) == picked.c.id, col(CaseDecision.number) == picked.c.decision),
        )
        .order_by(picked.c.level, picked.c.due_at, picked.c.flag_rank, picked.c.age_rank, picked.c.id)
    ).all()
    return rows


def _bound(column: Any, value: Any) -> Any:
    return literal(value, column.type)


def _conditions(viewer: Viewer, wanted: QueueFilter, now: datetime) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if wanted.level is not None:
        conditions.append(col(Case.level) == wanted.level)
    if wanted.owner == "none":
        conditions.append(col(Case.owner).is_(None))
    elif wanted.owner == "me":
        conditions.append(col(Case.owner) == viewer.member)
    if wanted.clock is not None:
        until = {"late": now, "hour": now + timedelta(hours=1), "today": end_of_day(now)}[wanted.clock]
        conditions.append(col(Case.due_at) < until)
    if wanted.province is not None:
        conditions.append(col(Case.province) == wanted.province)
    if wanted.venue is not None:
        conditions.append(col(Case.venue) == wanted.venue)
    if wanted.flag is not None:
        bit = 4 >> HOT_FLAGS.index(wanted.flag)
        conditions.append(col(Case.flag_rank).in_([rank for rank in range(8) if not rank & bit]))
    return conditions


def end_of_day(now: datetime) -> datetime:
    """Return the next midnight in Phnom Penh (UTC+7, no summer time)."""
    shift = timedelta(hours=7)
    local = now + shift
    return local.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1) - shift


def _queue_row(row: Row[Any]) -> QueueRow:
    record = json.loads(row.record) if row.record else {"fired": []}
    return QueueRow(
        key=_key_of(row),
        due_kind=row.due_kind,
        state=row.state,
        provisional=row.provisional,
        walled=row.walled,
        channel=row.channel,
        language=row.language,
        flags=tuple(json.loads(row.flags)) if row.flags else (),
        province=row.province,
        venue=row.venue,
        owner=row.owner,
        owner_name=row.name,
        owner_name_km=row.name_km,
        reasons=tuple((r["id"], r["reason_en"], r["reason_km"]) for r in record["fired"]),
    )


def stuck_pages(session: Session, viewer: Viewer) -> bool:
    """Return whether a text to people on duty, about a case that `viewer` may see, has failed several times."""
    stuck = and_(
        col(OutboxJob.kind) == RING, col(OutboxJob.state) == JobState.WAITING, col(OutboxJob.attempts) >= STUCK_AFTER
    )
    found = select(exists().where(stuck, col(OutboxJob.case) == col(Case.id), readable(viewer)))
    return bool(session.scalar(found))
