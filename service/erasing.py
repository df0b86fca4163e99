"""The end of a case's retention: marked, and fourteen days later its words are gone for good (keys.md 6.12).

Without the seals nobody opens a copy of the bodies either; without value and salt a commitment tells nothing, and the
history stays provable. Backups keep what they have for at most 35 days: nothing is called deleted before that.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy import and_, delete, or_, select, text, update
from sqlmodel import col

from service import outbox
from service.cases import TELLING, change, state_class
from service.db import Sessions, Tx
from service.errors import Conflict, WrongState
from service.ledger.events import SYSTEM, EventType, Ledger, NewEvent
from service.ledger.tree import halted, must_run
from service.logs import place
from service.models import Case, CaseDecision, CaseSeal, Erasure, LedgerEvent, LedgerField, Message, State

log = structlog.get_logger("erasing")

AFTER = timedelta(days=14)  # a mark may be taken back until then
EMPTIED = ("message", "case_seal", "decision", "ledger_field")


def mark(tx: Tx, ledger: Ledger, case: Case, now: datetime) -> None:
    """Mark a closed case to be erased in fourteen days.

    Raises WrongState for one that is not closed, LedgerHalted while the ledger is (ledger.md section 7).
    """
    must_run(tx)
    if case.state != State.CLOSED:
        raise WrongState("Only a closed case is erased.")
    if tx.get(Erasure, case.id) is not None:
        raise Conflict("This case is marked already.")
    tx.add(Erasure(case=case.id, marked_at=now))
    tx.flush()
    _say(tx, ledger, case, {"what": "case", "stage": "marked"}, now)


def erase_due(sessions: Sessions, ledger: Ledger, now: datetime) -> int:
    """Erase every case that was marked fourteen days ago, and return how many. Safe to run twice and at once.

    While the ledger is halted everything is kept: what was erased then could not be told from what was taken away.
    """
    with sessions.read() as session:
        if halted(session):
            return 0
        due = session.scalars(
            select(col(Erasure.case)).where(col(Erasure.erased_at).is_(None), col(Erasure.marked_at) <= now - AFTER)
        ).all()
    erased = outbox.each(sessions, [partial(_erase, ledger=ledger, case_id=case, now=now) for case in due])
    if erased:
        wipe(sessions)
    return erased


def _erase(tx: Tx, *, ledger: Ledger, case_id: UUID, now: datetime) -> bool:
    must_run(tx)
    row = tx.get(Erasure, case_id, with_for_update=True)
    case = tx.get_one(Case, case_id)
    if row is None or row.erased_at is not None:
        return False
    if case.state != State.CLOSED:  # opened again in the meantime: it is kept
        tx.delete(row)
        tx.flush()
        return False
    row.erased_at = now
    tx.flush()
    tx.execute(delete(CaseSeal).where(col(CaseSeal.case) == case_id))
    tx.execute(update(Message).where(col(Message.case) == case_id).values(seal=b"", body=b""))
    nothing = {"record": None, "header": None, "seal": None, "body": None}
    tx.execute(update(CaseDecision).where(col(CaseDecision.case) == case_id).values(**nothing))
    events = select(col(LedgerEvent.eid)).where(col(LedgerEvent.case) == case.chain)
    telling = and_(
        col(LedgerField.eid).in_(events), or_(col(LedgerField.sealed).is_(True), col(LedgerField.name).in_(TELLING))
    )
    names: dict[str, list[str]] = {}
    for eid, name in tx.execute(select(col(LedgerField.eid), col(LedgerField.name)).where(telling)).all():
        names.setdefault(eid, []).append(name)
    tx.execute(delete(LedgerField).where(telling).execution_options(synchronize_session=False))
    # Named one by one: a field that somebody takes away in their shadow is still found missing.
    erased = {eid: sorted(names[eid]) for eid in sorted(names)}
    fields = {"what": "case", "stage": "erased", "fields": erased}
    _say(tx, ledger, case, fields, now, flags=None, province=None, venue=None)
    return True


def _say(tx: Tx, ledger: Ledger, case: Case, fields: dict[str, Any], now: datetime, **columns: None) -> None:
    event = NewEvent(EventType.VALUE_ERASED, now, SYSTEM, state_class(case.state), case.due_at, fields)
    change(tx, ledger, case, [event], **columns)


def wipe(sessions: Sessions, tables: Sequence[str] = EMPTIED) -> None:
    """Have the database forget freed bytes: SQLite's log is emptied (its pages are zeroed as they are freed,
    ``secure_delete``), PostgreSQL's tables are vacuumed. Reported when it cannot be done now; it is done next time.
    """
    try:
        with sessions.writing.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            raw = connection.connection.dbapi_connection
            if sessions.dialect == "sqlite":
                busy = raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]  # type: ignore[union-attr]
                if busy:
                    log.warning("freed_bytes_not_wiped", error="busy")
            else:
                for table in tables:
                    connection.execute(text(f"VACUUM {table}"))
    except Exception as fault:  # noqa: BLE001 - the rows are gone; what is left is the database's to reuse
        log.warning("freed_bytes_not_wiped", error=type(fault).__name__, place=place(fault))
