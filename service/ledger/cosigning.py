"""What comes from witnesses by itself is stored, and what they refuse is remembered (ledger.md sections 6 and 10)."""

import json
from datetime import datetime

from sqlalchemy import select
from sqlmodel import col

from service.db import Tx
from service.errors import NotFound
from service.ledger import tree
from service.ledger.events import SYSTEM, EventType, Ledger, NewEvent, StateClass, append, fixed_chain
from service.ledger.notes import Policy
from service.ledger.witness import Submission
from service.models import LedgerCheckpoint, LedgerEvent, LedgerField
from service.vault.note import split_note


def store_submission(tx: Tx, policy: Policy, sent: Submission) -> None:
    """Store the line. Raises NotFound where that checkpoint is none of ours, in any letter."""
    ours = tx.scalar(select(col(LedgerCheckpoint.note)).where(col(LedgerCheckpoint.size) == sent.size))
    if ours is None or split_note(ours)[0] != sent.text:
        raise NotFound("There is no such checkpoint.")
    tree.store_line(tx, policy, sent.size, sent.line)


def note_witness(tx: Tx, ledger: Ledger, name: str, kind: str | None, now: datetime) -> bool:
    """Append that a witness refuses our heads, or signs them again, and return whether that is new.

    name: of its key. kind: how it refuses, ``offering.Refused``; None where it signs.
    """
    if _refuses(tx, name) == kind:
        return False
    what = EventType.WITNESS_BACK if kind is None else EventType.WITNESS_REFUSED
    fields = {"witness": name} if kind is None else {"witness": name, "kind": kind}
    append(tx, ledger, fixed_chain("ledger"), [NewEvent(what, now, SYSTEM, StateClass.SYSTEM, fields=fields)])
    return True


def _refuses(tx: Tx, name: str) -> str | None:
    """Return how the witness refuses by the newest event about it, None where it does not."""
    about = (
        select(col(LedgerField.eid))
        .join(LedgerEvent, col(LedgerEvent.eid) == col(LedgerField.eid))
        .where(
            col(LedgerEvent.case) == fixed_chain("ledger"),
            col(LedgerEvent.type).in_([EventType.WITNESS_REFUSED, EventType.WITNESS_BACK]),
            col(LedgerField.name) == "witness",
            col(LedgerField.value) == json.dumps(name).encode(),
        )
        .order_by(col(LedgerEvent.seq).desc())
        .limit(1)
    )
    eid = tx.scalar(about)
    kind = None if eid is None else tx.get(LedgerField, (eid, "kind"))
    return None if kind is None else str(json.loads(kind.value))
