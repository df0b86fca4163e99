"""The full check of a ledger in its database, streaming, at constant memory (ledger.md section 9).

What it finds names the first bad place of each kind: the leaf's index, or the chain and sequence number. It trusts
nothing that is derived: tiles, roots, heads, states and deadlines are worked out again from leaves and events. The
only things it is given are keys, and heads that somebody saw before.
"""

import base64
import hmac
import json
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from itertools import groupby
from typing import Any

from sqlalchemy import select, text
from sqlmodel import Session, col

from service.errors import BadNote
from service.ledger import notes, tree
from service.ledger.checks import is_cover
from service.ledger.events import NO_EVENT, EventType, StateClass, commit_event, leaf_hash, utc_seconds
from service.ledger.merkle import EMPTY_ROOT, WIDTH, RightEdge
from service.ledger.notes import Policy
from service.ledger.tiles import tiles_of
from service.models import (
    Case,
    LedgerCheckpoint,
    LedgerCosignature,
    LedgerEvent,
    LedgerField,
    LedgerHead,
    LedgerLeaf,
    LedgerPending,
    LedgerPromise,
    LedgerTile,
)
from service.vault import boxes
from service.vault.note import Verifier

CHUNK = 1000  # rows in memory
SLACK = timedelta(minutes=5)
PENDING = timedelta(minutes=1)
MOST_FAULTS = 100
CLOSING = ("case:closure:proposed", "case:closure:approved")
NEEDS_WITNESS = {  # an event that may only follow one that witnesses have seen
    EventType.LOWERING_EFFECTIVE.value: EventType.LOWERING_APPROVED.value,
    "case:closure:effective": "case:closure:approved",
}
SETS_LEVEL = {EventType.LEVEL_RAISED.value: "after", EventType.LOWERING_EFFECTIVE.value: "after"}


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that does not fit: what in a word, and where."""

    what: str
    index: int | None = None
    chain: str | None = None
    seq: int | None = None

    def __str__(self) -> str:
        where = [
            *([f"leaf {self.index}"] if self.index is not None else []),
            *([f"chain {self.chain} event {self.seq}"] if self.chain is not None else []),
        ]
        return f"{self.what}: {', '.join(where) or 'the whole'}"


@dataclass
class Report:
    """What a check found. Good when nothing was; `lost` are leaves that a repair has named as lost, for ever."""

    size: int = 0
    events: int = 0
    covers: int = 0
    witnessed: int = 0
    lost: list[int] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether everything fits."""
        return not self.faults

    def add(self, what: str, index: int | None = None, chain: str | None = None, seq: int | None = None) -> None:
        """Note a fault; after a hundred, further ones are not kept."""
        if len(self.faults) < MOST_FAULTS:
            self.faults.append(Fault(what, index, chain, seq))

    def as_json(self) -> dict[str, Any]:
        """Return it for a machine; `first` is the first bad place."""
        faults = [{"what": f.what, "index": f.index, "chain": f.chain, "seq": f.seq} for f in self.faults]
        return {
            "good": self.good,
            "size": self.size,
            "events": self.events,
            "covers": self.covers,
            "witnessed": self.witnessed,
            "lost": self.lost,
            "first": faults[0] if faults else None,
            "faults": faults,
        }


@dataclass(frozen=True)
class Keys:
    """What a check is done with. cover: the cover key; state_class: the class of a case's state (`cases.state_class`).

    seen: notes that somebody saw before, the signer's head among them.
    """

    log: Verifier
    policy: Policy | None
    cover: bytes = field(repr=False)
    state_class: Callable[[str], str]
    seen: Sequence[str] = ()


def verify(session: Session, keys: Keys, now: datetime) -> Report:
    """Check everything that one moment of the database holds. Reads only; memory does not grow with the ledger."""
    return _Check(session, keys, now).run()


class _Check:
    """One run: the report, and what one pass hands to the next."""

    def __init__(self, session: Session, keys: Keys, now: datetime) -> None:
        self.session, self.keys, self.now = session, keys, now
        self.report = Report()
        self.state = tree.state_of(session)
        self.seen_sizes, self.seen_times = array("q"), array("q")  # of checkpoints with a quorum, in order
        self.erased = _erased(session)
        self.anchor_root = lru_cache(maxsize=4096)(self._anchor_root)

    def run(self) -> Report:
        self._tree()
        self._chains()
        self._fields_of_nobody()
        self._cases()
        self._waiting()
        return self.report

    def _stream(self, statement: Any) -> Iterator[Any]:
        yield from self.session.execute(statement.execution_options(yield_per=CHUNK, stream_results=True))

    # --- leaves, tiles, checkpoints ---------------------------------------------------------------------

    def _tree(self) -> None:
        """Work the tree out of its leaves, and compare every tile, checkpoint and head with it on the way."""
        report, edge = self.report, RightEdge()
        heads = self._heads()
        waiting = next(heads, None)
        tiles = self._stored_tiles()
        rows = self._stream(
            select(
                col(LedgerLeaf.idx),
                col(LedgerLeaf.leaf),
                col(LedgerLeaf.eid),
                col(LedgerLeaf.cover_n),
                col(LedgerEvent.leaf),
            )
            .outerjoin(LedgerEvent, col(LedgerEvent.eid) == col(LedgerLeaf.eid))
            .order_by(col(LedgerLeaf.idx))
        )
        lost = _lost(self.session)
        bad_tiles: set[tuple[int, int]] = set()
        full: list[tuple[int, int, bytes]] = []
        for idx, leaf, eid, cover_n, event_leaf in rows:
            while waiting is not None and waiting[0] == edge.size:
                self._head(waiting, edge.root())
                waiting = next(heads, None)
            if idx != edge.size:
                report.add("leaf missing", edge.size)
                return
            self._leaf(idx, leaf, eid, cover_n, event_leaf, lost)
            full += edge.extend([leaf_hash(leaf)])
            for level, n, tile in full:
                if level == 0 and next(tiles, b"") != tile:
                    bad_tiles.add((0, n))
                elif level and self._tile(level, n) != tile:
                    bad_tiles.add((level, n))
            full.clear()
        for level, n, tile in edge.partial():
            stored = next(tiles, b"") if level == 0 else self._tile(level, n)
            if stored != tile:
                bad_tiles.add((level, n))
        while waiting is not None:
            if waiting[0] == edge.size:
                self._head(waiting, edge.root())
            else:
                report.add(f"{waiting[2]} ahead of the tree", waiting[0] - 1)
            waiting = next(heads, None)
        for level, n in sorted(bad_tiles):
            report.add("tile", n * WIDTH << (8 * level))
        report.size = edge.size
        if (self.state.size, self.state.root) != (edge.size, edge.root()):
            report.add("tree state", min(self.state.size, edge.size))
        if self.session.scalar(text("SELECT count(*) FROM ledger_tile")) != sum(1 for _ in tiles_of(edge.size)):
            report.add("tiles of no tree")
        if not self.state.witnessed_size <= self.state.published_size <= self.state.size:
            report.add("published state")
        known = self.seen_sizes[-1] if self.seen_sizes else 0
        if self.state.witnessed_size > known or (
            self.state.witnessed_size and self.state.witnessed_root != self.anchor_root(self.state.witnessed_size)
        ):
            report.add("witnessed state")
        report.witnessed = self.state.witnessed_size

    def _stored_tiles(self) -> Iterator[bytes]:
        """Yield the stored tiles of level 0 in order, an empty one where one is missing."""
        place = 0
        for n, hashes in self._stream(
            select(col(LedgerTile.n), col(LedgerTile.hashes))
            .where(col(LedgerTile.level) == 0)
            .order_by(col(LedgerTile.n))
        ):
            for _ in range(place, n):
                yield b""
            place = n + 1
            yield hashes

    def _tile(self, level: int, n: int) -> bytes:
        row = col(LedgerTile.level) == level, col(LedgerTile.n) == n
        return bytes(self.session.scalar(select(col(LedgerTile.hashes)).where(*row)) or b"")

    def _leaf(
        self, idx: int, leaf: bytes, eid: str | None, cover_n: int | None, event: bytes | None, lost: set[int]
    ) -> None:
        if eid is not None and cover_n is None:
            self.report.events += 1
            if event is None:
                self.report.add("event missing", idx)
            elif event != leaf:
                self.report.add("leaf", idx)
        elif cover_n is not None and eid is None and is_cover(self.keys.cover, cover_n, leaf):
            self.report.covers += 1
        elif idx in lost and eid is None and cover_n is None:
            self.report.lost.append(idx)
        else:
            self.report.add("leaf of nothing known", idx)

    def _heads(self) -> Iterator[tuple[int, bytes, str]]:
        """Yield size, root and kind of all heads that the tree must agree with, by size."""
        extra: list[tuple[int, bytes, str]] = []
        for note in [*([self.state.note] if self.state.note else []), *self.keys.seen]:
            try:
                head = notes.open_checkpoint(note, self.keys.log)
                extra.append((head.size, head.root, "head"))
            except BadNote:
                self.report.add("head that the log did not sign")
        extra.sort()
        for size, root in self._checkpoints():
            while extra and extra[0][0] <= size:
                yield extra.pop(0)
            yield size, root, "checkpoint"
        yield from extra

    def _checkpoints(self) -> Iterator[tuple[int, bytes]]:
        """Yield size and root of the kept checkpoints, each opened with its lines."""
        joined = (
            select(col(LedgerCheckpoint.size), col(LedgerCheckpoint.note), col(LedgerCosignature.line))
            .outerjoin(LedgerCosignature, col(LedgerCosignature.size) == col(LedgerCheckpoint.size))
            .order_by(col(LedgerCheckpoint.size), col(LedgerCosignature.name))
        )
        for size, rows in groupby(self._stream(joined), key=lambda row: row[0]):
            found = list(rows)
            try:
                whole = notes.add_lines(found[0][1], [row[2] for row in found if row[2] is not None])
                head, quorum, when = self._open(whole, sum(row[2] is not None for row in found))
            except BadNote:
                self.report.add("checkpoint", size - 1)
                continue
            if head.size != size:
                self.report.add("checkpoint", size - 1)
                continue
            if quorum:
                self.seen_sizes.append(size)
                self.seen_times.append(when)
            yield size, head.root

    def _open(self, note: str, lines: int) -> tuple[notes.Checkpoint, bool, int]:
        """Return a checkpoint, whether a quorum signed it, and by when. Raises BadNote, also for a line of nobody."""
        if self.keys.policy is None:
            if lines:
                raise BadNote("lines of witnesses without a policy")
            return notes.open_checkpoint(note, self.keys.log), False, 0
        opened = notes.open_witnessed(note, self.keys.policy)
        if len(opened.cosigned) != lines:
            raise BadNote("a line of nobody known")
        return opened.checkpoint, opened.quorum, max(opened.cosigned.values(), default=0)

    def _head(self, head: tuple[int, bytes, str], root: bytes) -> None:
        if head[1] != root:
            self.report.add(head[2], head[0] - 1)

    def _anchor_root(self, size: int) -> bytes | None:
        """Return the root that the kept checkpoint of `size` names; None without one."""
        if size == 0:
            return EMPTY_ROOT
        note = self.session.scalar(select(col(LedgerCheckpoint.note)).where(col(LedgerCheckpoint.size) == size))
        try:
            return notes.open_checkpoint(note, self.keys.log).root if note is not None else None
        except BadNote:
            return None

    # --- events, chains, fields -------------------------------------------------------------------------

    def _chains(self) -> None:
        """Read every event in the order of its chain, with its place in the tree, its fields and its case."""
        # Columns, not objects: this is most of what a check costs.
        events = self._stream(
            select(
                *(
                    getattr(LedgerEvent, name)
                    for name in ("eid", "case", "seq", "type", "at", "body", "k_e", "blob", "leaf")
                ),
                col(LedgerLeaf.idx),
                col(LedgerPending.id).label("pending"),
                col(LedgerHead.seq).label("head_seq"),
                col(LedgerHead.c).label("head_c"),
                *(getattr(Case, name) for name in ("version", "state", "due_at", "level")),
            )
            .outerjoin(LedgerLeaf, col(LedgerLeaf.eid) == col(LedgerEvent.eid))
            .outerjoin(LedgerPending, col(LedgerPending.eid) == col(LedgerEvent.eid))
            .outerjoin(LedgerHead, col(LedgerHead.case) == col(LedgerEvent.case))
            .outerjoin(Case, col(Case.chain) == col(LedgerEvent.case))
            .order_by(col(LedgerEvent.case), col(LedgerEvent.seq))
        )
        fields = groupby(
            self._stream(
                select(*(getattr(LedgerField, name) for name in ("eid", "name", "salt", "value", "sealed")))
                .join(LedgerEvent, col(LedgerEvent.eid) == col(LedgerField.eid))
                .order_by(col(LedgerEvent.case), col(LedgerEvent.seq))
            ),
            key=lambda row: row.eid,
        )
        group = next(fields, None)
        chain: _Chain | None = None
        for event in events:
            mine: dict[str, Any] = {}
            if group is not None and group[0] == event.eid:
                mine = {row.name: row for row in group[1]}
                group = next(fields, None)
            if chain is None or chain.name != event.case:
                if chain is not None:
                    chain.end()
                chain = _Chain(self, event)
            chain.take(event, mine)
        if chain is not None:
            chain.end()

    def _fields_of_nobody(self) -> None:
        astray = (
            select(col(LedgerField.eid))
            .outerjoin(LedgerEvent, col(LedgerEvent.eid) == col(LedgerField.eid))
            .where(col(LedgerEvent.eid).is_(None))
            .limit(1)
        )
        if self.session.scalar(astray) is not None:
            self.report.add("field of no event")

    def _cases(self) -> None:
        """A case without a chain, and a chain without an event, have lost their history."""
        empty = (
            select(col(LedgerHead.case), col(LedgerHead.seq))
            .outerjoin(LedgerEvent, col(LedgerEvent.case) == col(LedgerHead.case))
            .where(col(LedgerEvent.eid).is_(None))
        )
        for chain, seq in self.session.execute(empty.limit(MOST_FAULTS)):
            self.report.add("chain without events", chain=chain, seq=seq)
        missing = (
            select(col(Case.chain), col(Case.version))
            .outerjoin(LedgerHead, col(LedgerHead.case) == col(Case.chain))
            .where(col(LedgerHead.case).is_(None))
        )
        for chain, seq in self.session.execute(missing.limit(MOST_FAULTS)):
            self.report.add("chain missing", chain=chain, seq=seq)

    def _waiting(self) -> None:
        """Pending leaves are those of their events or provable cover; no promise is overdue."""
        for row, event in self._stream(
            select(LedgerPending, LedgerEvent).outerjoin(LedgerEvent, col(LedgerEvent.eid) == col(LedgerPending.eid))
        ):
            if row.eid is not None and (event is None or event.leaf != row.leaf):
                self.report.add("pending leaf")
            if row.eid is None and not (row.cover_n is not None and is_cover(self.keys.cover, row.cover_n, row.leaf)):
                self.report.add("pending leaf")
        for promise, event, idx in self._stream(
            select(LedgerPromise, LedgerEvent, col(LedgerLeaf.idx))
            .outerjoin(LedgerEvent, col(LedgerEvent.eid) == col(LedgerPromise.eid))
            .outerjoin(LedgerLeaf, col(LedgerLeaf.eid) == col(LedgerPromise.eid))
        ):
            try:
                told = notes.open_promise(promise.note, self.keys.log)
            except BadNote:
                self.report.add("promise")
                continue
            if event is None or told.leaf_hash != leaf_hash(event.leaf):
                self.report.add("promise")
            elif idx is None and told.due < self.now.timestamp():
                self.report.add("promise not kept", chain=event.case, seq=event.seq)


class _Chain:
    """What is known of a chain while its events are read in order."""

    def __init__(self, check: _Check, first: Any) -> None:
        self.check, self.name = check, str(first.case)
        self.head = None if first.head_seq is None else (first.head_seq, first.head_c)
        self.version: int | None = first.version  # of the case whose chain it is
        self.seq, self.c, self.idx, self.anchor = -1, NO_EVENT, -1, 0
        self.unplaced = False  # whether an event of it is not in the tree yet
        self.level: str | None = None
        self.closed = False
        self.steps: dict[str, tuple[int | None, str]] = {}  # type to place and organisation of its newest event

    def add(self, what: str, seq: int, idx: int | None = None) -> None:
        self.check.report.add(what, idx, self.name, seq)

    def take(self, event: Any, fields: dict[str, Any]) -> None:
        """Check one event against the one before it, its leaf, its columns and its fields."""
        seq, idx = event.seq, event.idx
        if seq != self.seq + 1:
            self.add("event missing in its chain", self.seq + 1, self.idx + 1 if self.idx >= 0 else None)
        c = commit_event(event.k_e, event.body)
        body = self._body(event)
        leaf = event.leaf
        if leaf[8:40] != c or leaf[40:72] != boxes.H(event.blob) or body is None:
            self.add("event", seq, idx)
        else:
            if body["prev"] != _b64(self.c) and seq == self.seq + 1:
                self.add("event does not follow the one before", seq, idx)
            self._anchored(event, body, idx)
            self._fields(event, body, fields, idx)
            self._steps(event, body, fields, idx)
        self._placed(event)
        self.seq, self.c = seq, c

    def _body(self, event: Any) -> dict[str, Any] | None:
        """Return the event's content where it is whole and its row says the same of it."""
        try:
            body = json.loads(event.body)
            same = (body["eid"], body["case"], body["seq"], body["type"], body["log"], body["at"]) == (
                *(event.eid, event.case, event.seq, event.type, self.check.keys.log.name),
                utc_seconds(event.at),
            )
            whole = same and int(body["anchor"]["size"]) >= 0
        except (ValueError, KeyError, TypeError):
            return None
        return body if whole else None

    def _placed(self, event: Any) -> None:
        """Its place in the tree comes after that of the one before; what has none is about to get one."""
        idx, pending = event.idx, event.pending
        if idx is None:
            self.unplaced = True
            if pending is None or event.at < self.check.now - PENDING - SLACK:
                self.add("event not in the tree", event.seq)
        elif pending is not None or self.unplaced or idx <= self.idx:
            self.add("order", event.seq, idx)
        if idx is not None:
            self.idx = max(self.idx, idx)

    def _anchored(self, event: Any, body: dict[str, Any], idx: int | None) -> None:
        """The anchor is a true checkpoint from before, and `at` lies between it and the first that covers the event."""
        check, size = self.check, body["anchor"]["size"]
        root = check.anchor_root(size)
        early = int.from_bytes(event.leaf[104:], "big") == size and self.anchor <= size
        if root is None or body["anchor"]["root"] != _b64(root) or not early or (idx is not None and size > idx):
            self.add("anchor", event.seq, idx)
            return
        self.anchor = size
        at = event.at.timestamp()
        known = bisect_left(check.seen_sizes, size)
        if size and known < len(check.seen_sizes) and at < check.seen_times[known] - SLACK.total_seconds():
            self.add("time before its anchor", event.seq, idx)
        if idx is not None:
            covering = bisect_left(check.seen_sizes, idx + 1)
            if covering < len(check.seen_times) and at > check.seen_times[covering] + SLACK.total_seconds():
                self.add("time after its checkpoint", event.seq, idx)

    def _fields(self, event: Any, body: dict[str, Any], rows: dict[str, Any], idx: int | None) -> None:
        named = body["fields"] | {"who": body["actor"]["who"]}
        for name, commitment in named.items():
            row = rows.get(name)
            if row is None:
                if (event.eid, name) not in self.check.erased:
                    self.add("field missing", event.seq, idx)
            elif not row.sealed and _commitment(row) != commitment:
                self.add("field", event.seq, idx)
        if rows.keys() - named.keys():
            self.add("field that the event does not have", event.seq, idx)

    def _steps(self, event: Any, body: dict[str, Any], rows: dict[str, Any], idx: int | None) -> None:
        """Follow level and class; what ends or weakens a case must have been agreed, and seen, before."""
        needed = NEEDS_WITNESS.get(event.type)
        if needed is not None:
            place = self.steps.get(needed, (None, ""))[0]
            if place is None or place >= body["anchor"]["size"]:
                self.add("effect before its witnesses", event.seq, idx)
        closed = body["class"] == StateClass.CLOSED.value
        if closed and not self.closed:
            organisations = {self.steps[step][1] for step in CLOSING if step in self.steps}
            if len(organisations) < len(CLOSING) or self.steps[CLOSING[1]][0] is None:
                self.add("closure without two organisations", event.seq, idx)
        self.closed = closed
        self.steps[event.type] = (idx, body["actor"]["org"])
        name = SETS_LEVEL.get(event.type, "level" if event.type == EventType.DECISION_MADE and not self.level else "")
        row = rows.get(name)
        if row is not None and not row.sealed:
            self.level = str(json.loads(row.value))
        if event.seq == self.version:
            self._case(event, body, idx)

    def _case(self, event: Any, body: dict[str, Any], idx: int | None) -> None:
        """The case's row is what its newest event says. A level that only a sealed field tells is not compared."""
        if self.check.keys.state_class(event.state) != body["class"]:
            self.add("state without event", event.seq, idx)
        if body["deadline"] is not None and body["deadline"] != utc_seconds(event.due_at):
            self.add("deadline without event", event.seq, idx)
        if self.level is not None and self.level != event.level:
            self.add("level without event", event.seq, idx)

    def end(self) -> None:
        """The head is the newest event, and the case's row is of one of them."""
        if self.head is None:
            self.add("head missing", self.seq)
        elif self.head != (self.seq, self.c):
            self.add("head", self.seq if self.head[0] == self.seq else min(self.seq, self.head[0]) + 1)
        if self.version is not None and self.version > self.seq:
            self.add("case ahead of its events", self.version)


def _commitment(row: Any) -> str:
    message = b"bamboo/field/v1\x00" + row.name.encode() + b"\x00" + row.value
    return _b64(hmac.digest(row.salt or b"", message, "sha256"))


def _erased(session: Session) -> set[tuple[str, str]]:
    """Return the fields, by event and name, that an event says were erased: one of them, or all of a case's."""
    found: dict[str, dict[str, Any]] = {}
    for eid, name, value in session.execute(
        select(col(LedgerField.eid), col(LedgerField.name), col(LedgerField.value))
        .join(LedgerEvent, col(LedgerEvent.eid) == col(LedgerField.eid))
        .where(col(LedgerEvent.type) == EventType.VALUE_ERASED, col(LedgerField.name).in_(["event", "field", "fields"]))
    ):
        found.setdefault(eid, {})[name] = json.loads(value)
    erased = {(one["event"], one["field"]) for one in found.values() if "event" in one and "field" in one}
    whole = (item for one in found.values() for item in one.get("fields", {}).items())
    return erased | {(eid, name) for eid, names in whole for name in names}


def _lost(session: Session) -> set[int]:
    """Return the leaves that a repair has named as lost (ledger.md section 7)."""
    lost: set[int] = set()
    for value in session.scalars(
        select(col(LedgerField.value))
        .join(LedgerEvent, col(LedgerEvent.eid) == col(LedgerField.eid))
        .where(col(LedgerEvent.type) == EventType.INCIDENT_OPENED, col(LedgerField.name) == "lost")
    ):
        for first, last in json.loads(value):
            lost |= set(range(first, last + 1))
    return lost


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()
