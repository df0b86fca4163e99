"""The daily census: a list of all chains, whose hash is an event (ledger.md section 8). A dropped chain shows."""

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select
from sqlmodel import Session, col

from service.db import Tx
from service.errors import Conflict, Invalid
from service.ledger import tree
from service.ledger.events import (
    SYSTEM,
    EventType,
    Ledger,
    NewEvent,
    StateClass,
    append,
    fixed_chain,
    utc_seconds,
)
from service.models import LedgerEvent, LedgerField, LedgerHead
from service.vault import boxes

FORMAT = "bamboo census/v1"
NONE = "-"


@dataclass(frozen=True, slots=True)
class Line:
    """What a census says of a chain: its newest event's number, commitment (base64), class and deadline."""

    chain: str
    seq: int
    c: str
    state: str
    deadline: str

    @property
    def text(self) -> str:
        """The line as it is written."""
        return f"{self.chain} {self.seq} {self.c} {self.state} {self.deadline}"


@dataclass(frozen=True, slots=True)
class Census:
    """A census: when it was taken, of which tree, and its lines by chain."""

    origin: str
    number: int
    at: str
    size: int
    root: str
    lines: tuple[Line, ...]

    @property
    def text(self) -> str:
        """The file."""
        head = f"{FORMAT}\n{self.origin}\n{self.number} {self.at}\n{self.size} {self.root}\n{len(self.lines)}\n"
        return head + "".join(f"{line.text}\n" for line in self.lines)

    @property
    def sha256(self) -> str:
        """The hash of the file, in hex, as its event says it."""
        return boxes.H(self.text.encode()).hex()


def take(tx: Tx, ledger: Ledger, now: datetime) -> Census:
    """Return a census of one moment and append that it was taken, with its hash. It does not list that event."""
    number = newest_number(tx) + 1
    state = tree.state_of(tx)
    root = base64.b64encode(state.root).decode()
    census = Census(ledger.origin, number, utc_seconds(now), state.size, root, tuple(_lines(tx)))
    fields = {"number": number, "sha256": census.sha256}
    taken = NewEvent(EventType.CENSUS_TAKEN, now, SYSTEM, StateClass.SYSTEM, fields=fields)
    append(tx, ledger, fixed_chain("ledger"), [taken])
    return census


def seal(census: Census, monitor_public: bytes) -> bytes:
    """Return a census as its file: sealed to the monitor unit."""
    return boxes.seal(monitor_public, boxes.context_of("census", census.number), census.text.encode())


def open_sealed(sealed: bytes, number: int, monitor_private: bytes) -> Census:
    """Return the census in a file of `seal`. Raises CannotOpen with another key or number, Invalid for no census."""
    return parse(boxes.unseal(monitor_private, boxes.context_of("census", number), sealed).decode())


def newest_at(session: Session) -> datetime | None:
    """Return when the newest census was taken, None before the first."""
    return session.scalar(select(func.max(col(LedgerEvent.at))).where(col(LedgerEvent.type) == EventType.CENSUS_TAKEN))


def hashes(session: Session) -> set[str]:
    """Return the hashes of all censuses that were taken, in hex."""
    rows = session.scalars(
        select(col(LedgerField.value))
        .join(LedgerEvent, col(LedgerEvent.eid) == col(LedgerField.eid))
        .where(col(LedgerEvent.type) == EventType.CENSUS_TAKEN, col(LedgerField.name) == "sha256")
    ).all()
    return {json.loads(value) for value in rows}


def newest_number(session: Session) -> int:
    """Return the number of the newest census, 0 before the first."""
    values = session.scalars(
        select(col(LedgerField.value))
        .join(LedgerEvent, col(LedgerEvent.eid) == col(LedgerField.eid))
        .where(col(LedgerEvent.type) == EventType.CENSUS_TAKEN, col(LedgerField.name) == "number")
        .order_by(col(LedgerEvent.seq).desc())
        .limit(1)
    ).all()
    return int(json.loads(values[0])) if values else 0


def _lines(session: Session) -> Iterator[Line]:
    rows = session.execute(
        select(col(LedgerHead.case), col(LedgerHead.seq), col(LedgerHead.c), col(LedgerEvent.body))
        .outerjoin(
            LedgerEvent, (col(LedgerEvent.case) == col(LedgerHead.case)) & (col(LedgerEvent.seq) == col(LedgerHead.seq))
        )
        .order_by(col(LedgerHead.case))
        .execution_options(yield_per=1000)
    )
    for chain, seq, c, body in rows:
        if body is None:
            raise Conflict("A chain's newest event is missing: run hotline ledger verify.")
        told = json.loads(body)
        yield Line(chain, seq, base64.b64encode(c).decode(), told["class"], told["deadline"] or NONE)


def parse(text: str) -> Census:
    """Return what a census file says. Raises Invalid for any other file."""
    try:
        form, origin, when, head, count, *lines, last = text.split("\n")
        number, at = when.split(" ")
        size, root = head.split(" ")
        found = tuple(_parse_line(line) for line in lines)
        census = Census(origin, int(number), at, int(size), root, found)
    except ValueError:
        raise Invalid("This is no census.") from None
    chains = [line.chain for line in found]
    if form != FORMAT or last or str(len(found)) != count or chains != sorted(set(chains)) or census.text != text:
        raise Invalid("This is no census.")
    return census


def _parse_line(line: str) -> Line:
    chain, seq, c, state, deadline = line.split(" ")
    return Line(chain, int(seq), c, state, deadline)


def check(old: Census, new: Census) -> list[str]:
    """Return what is wrong between two censuses that follow each other; nothing for good ones.

    Every chain is still there, none went back, the same number means the same event, no deadline passed between them
    without a newer event, and no census between them is missing.
    """
    faults = []
    if new.origin != old.origin:
        faults.append("they are of different logs")
    if new.number != old.number + 1:
        faults.append(f"number {new.number} does not follow {old.number}")
    if new.size < old.size or new.at < old.at:
        faults.append("the tree went back")
    lines = {line.chain: line for line in new.lines}
    for before in old.lines:
        after = lines.get(before.chain)
        if after is None:
            faults.append(f"chain {before.chain} is gone")
        elif after.seq < before.seq:
            faults.append(f"chain {before.chain} went back from event {before.seq} to {after.seq}")
        elif after.seq == before.seq and after != before:
            faults.append(f"chain {before.chain} has another event {before.seq}")
        elif after.seq == before.seq and before.deadline != NONE and old.at <= before.deadline < new.at:
            faults.append(f"chain {before.chain}: the deadline {before.deadline} passed and nothing happened")
    return faults
