"""Work to be done after the commit that asked for it: outbox rows, done once under their own key.

A row is written in the transaction of what it is about, tagged so that nobody with the database alone can have a text
sent (keys.md section 3). Several workers take rows at once; one that dies while sending leaves a row of which nobody
knows whether it was sent, and such a row is looked for at the provider and never sent again (twilio.md section 5).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID, uuid4

import structlog
from sqlalchemy import ColumnElement, Select, Table, and_, not_, select, true, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import Session, col

from service.cases import change, find, state_class
from service.db import Sessions, Tx, write
from service.errors import HeadMoved, NotFound
from service.ledger.events import EventType, Ledger, NewEvent, utc_seconds
from service.logs import place
from service.models import Case, ClockKind, JobState, OutboxJob, ProviderReport, Role
from service.vault import boxes
from service.walls import Viewer, readable

T = TypeVar("T")

log = structlog.get_logger("outbox")

ACKNOWLEDGE = "acknowledge"  # one neutral text to a tipster
PAGE = "page"  # tell whoever is on duty for a case: becomes a ring for each number
RING = "ring"  # one text to one number on duty

LEASE = timedelta(seconds=90)  # longer than the provider's client waits: what is being sent must not count as left
LOOKING = timedelta(minutes=10)  # for how long an unclear row is looked for (twilio.md section 5)
NEEDS_A_PERSON = (JobState.FAILED, JobState.UNKNOWN)


def job(
    row_key: bytes,
    kind: str,
    about: str,
    *,
    case: UUID | None = None,
    contact: UUID | None = None,
    duty: str | None = None,
    language: str,
    now: datetime,
    within: timedelta,
) -> dict[str, Any]:
    """Return an outbox row that asks for `kind`, tagged. about: makes its key, under which it is done once.

    within: for how long it is worth doing.
    """
    row: dict[str, Any] = {
        "id": uuid4(),
        "key": f"{kind}:{about}",
        "kind": kind,
        "case": case,
        "contact": contact,
        "duty": duty,
        "expires_at": now + within,
    }
    state = {"language": language, "state": JobState.WAITING, "attempts": 0, "not_before": now}
    return retagged(row_key, row | state)


def retagged(row_key: bytes, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return `row` with the tag of its fixed columns; for one that is not written yet."""
    return {**row, "row_tag": boxes.row_tag(row_key, fixed_columns(row))}


def fixed_columns(row: Mapping[str, Any]) -> dict[str, object]:
    """Return the columns of an outbox row that its tag is over: nobody else may have texts sent.

    What becomes a text has its end among them. Otherwise an old row could be made to wait again, and whoever watches
    a phone while its text comes would know whose it is.
    """
    fixed = {"table": "outbox", **{name: row[name] for name in ("id", "key", "kind", "case", "contact")}}
    if row["kind"] != PAGE:
        fixed["expires"] = utc_seconds(row["expires_at"])
    return fixed if row.get("duty") is None else {**fixed, "duty": row["duty"]}


def check_tag(row_key: bytes, row: OutboxJob) -> None:
    """Return if the row carries our tag. Raises CannotOpen for a planted one."""
    boxes.check_row_tag(row_key, fixed_columns(row.model_dump()), row.row_tag)


# --- the worker's side ----------------------------------------------------------------------------------


def never() -> bool:
    """Return that nobody asks to stop."""
    return False


def each(sessions: Sessions, steps: Iterable[Callable[[Tx], bool]], stopping: Callable[[], bool] = never) -> int:
    """Run each step in a transaction of its own, until `stopping` says so, and return how many did something.

    One that fails is logged and left for the next round: a broken case must not keep people from being told of the
    others. Raises StorageUnavailable when the database is away.
    """
    done = 0
    for step in steps:
        if stopping():
            break
        try:
            done += write(sessions, step)
        except Exception as fault:  # noqa: BLE001 - whatever it is, it is this row's alone
            log.error("step_failed", error=type(fault).__name__, place=place(fault))
            with sessions.read() as session:
                session.execute(select(1))  # if this raises, so would all the others
    return done


def waiting(kind: str, now: datetime) -> Select[OutboxJob]:
    """Return the query for rows of `kind` that wait and whose time has come, oldest first."""
    return (
        select(OutboxJob)
        .where(col(OutboxJob.state) == JobState.WAITING, col(OutboxJob.not_before) <= now)
        .where(col(OutboxJob.kind) == kind)
        .order_by(col(OutboxJob.not_before), col(OutboxJob.id))
    )


def locked(rows: Select[T]) -> Select[T]:
    """Return the query for those of `rows` that nobody else is changing, to be changed by the caller.

    Waiting for what another worker holds, or holding off rows that only point here, would end in deadlocks.
    """
    return rows.with_for_update(skip_locked=True, key_share=True)


def take(tx: Tx, rows: Select[OutboxJob], now: datetime) -> list[OutboxJob]:
    """Return those of `rows`, of `waiting`, that nobody else is taking, as taken by the caller for `LEASE`.

    Two callers never get the same row. Before it is sent the caller says so with `begin`.
    """
    taken = list(tx.scalars(locked(rows)).all())
    for row in taken:
        row.state, row.tried_at, row.until = JobState.SENDING, None, now + LEASE
    tx.flush()
    return taken


def begin(tx: Tx, ids: Sequence[UUID], until: datetime, now: datetime) -> datetime | None:
    """Say that rows are sent now that the caller took until `until`, and return until when they are held.

    None: its lease was over, and somebody else has them. What is begun and not settled counts as perhaps sent.
    Raises HeadMoved.
    """
    tried = {"attempts": col(OutboxJob.attempts) + 1, "tried_at": now, "until": now + LEASE}
    begun = _not_begun(tx, ids, until, tried)
    if begun not in (0, len(ids)):
        raise HeadMoved("Somebody else is just taking them.")  # all or none of them
    return now + LEASE if begun else None


def give_back(tx: Tx, ids: Sequence[UUID], until: datetime, now: datetime) -> None:
    """Let rows wait again that the caller took until `until` and has not begun."""
    _not_begun(tx, ids, until, {"state": JobState.WAITING, "not_before": now, "until": None, "joined": None})


def _not_begun(tx: Tx, ids: Sequence[UUID], until: datetime, values: Mapping[str, Any]) -> int:
    # Had somebody else taken them in between, their lease would end at another moment.
    mine = (col(OutboxJob.state) == JobState.SENDING, col(OutboxJob.tried_at).is_(None), col(OutboxJob.until) == until)
    return _update(tx, (col(OutboxJob.id).in_(ids), *mine), values)


def put_back(tx: Tx, ids: Sequence[UUID], at: datetime) -> None:
    """Let rows wait until `at`: what they ask for was certainly not done."""
    _settle(tx, ids, {"state": JobState.WAITING, "not_before": at, "until": None, "joined": None})


def look_for(tx: Tx, ids: Sequence[UUID], now: datetime) -> None:
    """Have rows looked for at the provider: what they ask for may have been done."""
    _settle(tx, ids, {"state": JobState.CHECKING, "not_before": now, "until": now + LOOKING})


def settle(
    tx: Tx, ids: Sequence[UUID], state: JobState, now: datetime, *, sid: bytes | None = None, code: int | None = None
) -> bool:
    """End rows that were sending or looked for; return whether the first of them was still to be ended.

    sid: the provider's id as a keyed name, kept with the first row; the others say that they went with it.
    """
    first = _settle(tx, ids[:1], {"state": state, "done_at": now, "until": None, "sid": sid, "code": code})
    _settle(tx, ids[1:], {"state": state, "done_at": now, "until": None, "joined": ids[0], "code": code})
    return first == 1


def _settle(tx: Tx, ids: Sequence[UUID], values: Mapping[str, Any]) -> int:
    unsettled = col(OutboxJob.state).in_([JobState.SENDING, JobState.CHECKING])
    return _update(tx, (col(OutboxJob.id).in_(ids), unsettled), values) if ids else 0


def recover(tx: Tx, now: datetime) -> None:
    """Take care of rows whose sender died: what it had not begun waits again, what it had is looked for."""
    left = (col(OutboxJob.state) == JobState.SENDING, col(OutboxJob.until) < now)
    begun = col(OutboxJob.tried_at).is_not(None)
    _update(tx, (*left, begun), {"state": JobState.CHECKING, "not_before": now, "until": now + LOOKING})
    _update(tx, (*left, not_(begun)), {"state": JobState.WAITING, "not_before": now, "until": None, "joined": None})


def _update(tx: Tx, which: Sequence[ColumnElement[bool]], values: Mapping[str, Any]) -> int:
    done = tx.execute(update(OutboxJob).where(*which).values(**values).execution_options(synchronize_session=False))
    return int(done.rowcount)  # type: ignore[attr-defined]


# --- the provider's side -------------------------------------------------------------------------------


def report(tx: Tx, rows: Sequence[Mapping[str, Any]]) -> None:
    """Keep what the provider told of texts of ours (`ProviderReport`); told again it changes nothing."""
    dialect = postgresql if tx.connection().dialect.name == "postgresql" else sqlite
    table: Table = ProviderReport.__table__  # type: ignore[attr-defined]
    tx.execute(dialect.insert(table).on_conflict_do_nothing(), rows)


# --- the staff's side -----------------------------------------------------------------------------------


def texts_of(session: Session, case: Case, viewer: Viewer) -> Sequence[OutboxJob]:
    """Return what was to be sent about a case, oldest first: acknowledgements, and texts to people on duty."""
    wanted = and_(col(OutboxJob.kind).in_([ACKNOWLEDGE, RING]), _told_to(viewer))
    return session.scalars(
        select(OutboxJob).where(col(OutboxJob.case) == case.id, wanted).order_by(col(OutboxJob.expires_at))
    ).all()


def _told_to(viewer: Viewer) -> ColumnElement[bool]:
    """Return the condition under which `viewer` hears of a text: of a challenge oversight alone (casework.md 13)."""
    if viewer.role == Role.OVERSIGHT:
        return true()
    return not_(col(OutboxJob.key).startswith(f"{RING}:{ClockKind.CHALLENGE}:"))


def unseen(session: Session, viewer: Viewer) -> Sequence[UUID]:
    """Return the cases that `viewer` may see with a text of which nobody knows whether it arrived, or that did not."""
    return session.scalars(
        select(col(Case.id))
        .join(OutboxJob, col(OutboxJob.case) == col(Case.id))
        .where(
            *(col(OutboxJob.state).in_(NEEDS_A_PERSON), col(OutboxJob.seen_by).is_(None)),
            *(readable(viewer), _told_to(viewer)),
        )
        .distinct()
    ).all()


def see(tx: Tx, ledger: Ledger, viewer: Viewer, case_id: UUID, job_id: UUID, now: datetime) -> None:
    """Note that `viewer` has seen a text that did not arrive, or may not have. Raises NoSuchCase, NotFound."""
    case = find(tx, viewer, case_id)
    row = tx.scalars(
        select(OutboxJob)
        .where(col(OutboxJob.id) == job_id, col(OutboxJob.case) == case.id)
        .with_for_update(key_share=True)
    ).one_or_none()
    if row is None or row.state not in NEEDS_A_PERSON:
        raise NotFound("There is no such text.")
    if row.seen_by is not None:
        return
    row.seen_by = viewer.member
    tx.flush()
    fields = {"kind": row.kind, "outcome": row.state}
    event = NewEvent(EventType.REPLY_SEEN, now, viewer.actor, state_class(case.state), case.due_at, fields)
    change(tx, ledger, case, [event])
