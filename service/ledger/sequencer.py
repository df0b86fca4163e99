"""The sequencer: takes pending leaves into the tree, has heads signed, publishes and witnesses them (ledger.md 4).

The tree is committed before its head is signed, so the signer is never ahead of a sound database. The steps are named
as in the reference: R1 to R11 for a round, P1 to P4 for each minute.
"""

import json
import secrets
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Protocol

import structlog
from sqlalchemy import delete, func, insert, select, update
from sqlmodel import col

from service.db import Sessions, Tx, write
from service.errors import BadNote, CheckFailed, Fork, HotlineError, LedgerFault, LedgerHalted, NotLeading, Stale
from service.ledger import checks, notes, tree
from service.ledger.election import Election, election
from service.ledger.events import (
    SYSTEM,
    EventType,
    Ledger,
    NewEvent,
    StateClass,
    append,
    cover_leaf,
    fixed_chain,
    leaf_hash,
    read_anchor,
)
from service.ledger.merkle import RightEdge, prove_consistency
from service.ledger.notes import Checkpoint, Policy
from service.ledger.signer import Signing
from service.models import (
    LedgerCheckpoint,
    LedgerCosignature,
    LedgerEffect,
    LedgerLeaf,
    LedgerPending,
    LedgerPromise,
    LedgerState,
)
from service.vault.note import Verifier, split_note

log = structlog.get_logger("sequencer")

BATCH = 5000  # leaves a round
PUBLISH_EVERY = timedelta(minutes=1)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
PROMISE_AFTER = timedelta(seconds=5)
MOST_COVER = 4  # leaves a minute; at least one


class Witnesses(Protocol):
    """Those who cosign, as the sequencer sees them."""

    def offer(self, note: str, prove: Callable[[int], Sequence[bytes]]) -> Iterable[str]:
        """Offer a checkpoint to all of them and return the lines that came, waiting at most ten seconds.

        prove: gives the consistency proof from a smaller size, 63 hashes at most. Raises Fork where one of them knows
        a larger tree of this log: then this one has lost something.
        """
        ...

    def heads(self) -> Iterable[str]:
        """Return the newest checkpoints of this log known to those who answer within five seconds."""
        ...


class NoWitnesses:
    """Nobody cosigns."""

    def offer(self, note: str, prove: Callable[[int], Sequence[bytes]]) -> Iterable[str]:
        """Return no line."""
        return ()

    def heads(self) -> Iterable[str]:
        """Return no head."""
        return ()


Effect = Callable[[Tx, Mapping[str, Any], datetime], None]


@dataclass
class Sequencer:
    """One sequencer; of several on one database at most one leads. Its rounds may be called from any thread.

    log: the key that heads are checked with. policy: whose lines count; None where nobody cosigns, and nothing is
    ever witnessed. effects: by the ``do`` of an action, what is run once its event is witnessed; each does nothing
    when it is wanted no more. cover_key: 32 bytes. alarm: tells people, in the transaction that halts, why in one word.
    publish_every: how often a head is published, counted from the full minute.
    """

    sessions: Sessions
    ledger: Ledger
    signer: Signing
    log: Verifier
    policy: Policy | None
    cover_key: bytes = field(repr=False)
    now: Callable[[], datetime]
    witnesses: Witnesses = field(default_factory=NoWitnesses)
    effects: Mapping[str, Effect] = field(default_factory=dict)
    seen: Sequence[str] = ()
    alarm: Callable[[Tx, str], None] = lambda tx, reason: None
    publish_every: timedelta = PUBLISH_EVERY

    def __post_init__(self) -> None:
        self._election: Election = election(self.sessions)
        self._lock = threading.RLock()
        self._epoch: int | None = None  # while it leads
        self._signed: Checkpoint | None = None
        self._covers: list[datetime] = []
        self._covered_until: datetime | None = None
        self._waiting: dict[int, datetime] = {}
        self._published: datetime | None = None  # the minute
        self._lines = 0  # above the witnessed size, as last seen

    @property
    def leads(self) -> bool:
        """Whether this one leads, as far as it knows."""
        return self._epoch is not None

    # --- a round ----------------------------------------------------------------------------------------

    def round(self) -> int:
        """Take what is pending into the tree and have its head signed; return how many leaves that were.

        Becomes the leader first where nobody is. While the ledger is halted it only promises.
        Raises StorageUnavailable when the database did not answer; then it leads no more.
        """
        with self._lock:
            if not self._lead():
                return 0
            try:
                with self.sessions.read() as session:
                    stopped = tree.halted(session)
                if stopped:
                    self._promise(timedelta())
                    return 0
                self._add_covers()
                taken = write(self.sessions, self._integrate)
                self._sign()
                self._promise(PROMISE_AFTER)
                return taken
            except LedgerHalted:
                return 0
            except CheckFailed as fault:
                self.halt(fault.reason)
                return 0
            except HotlineError:
                self.step_down()
                raise

    def step_down(self) -> None:
        """Lead no more; whoever leads next checks everything first, and so does this one."""
        with self._lock:
            self._epoch = None
            self._election.give_up()

    def _lead(self) -> bool:
        """Be the leader. A new one raises the epoch, so that an older one's writes fail, and checks the tree."""
        if self._epoch is not None:
            if self._election.held():
                return True
            self._epoch = None
        if not self._election.take():
            return False
        try:
            epoch = write(self.sessions, _raise_epoch)
            with self.sessions.read() as session:
                stopped = tree.halted(session)
            self._epoch = epoch
            if not stopped:
                self._begin()
        except CheckFailed as fault:
            self.halt(fault.reason)
        except HotlineError:
            self.step_down()
            raise
        return True

    def _begin(self) -> None:
        """Run the start-up checks. Raises CheckFailed."""
        head = notes.open_checkpoint(self.signer.head(), self.log)
        heads = [*self.witnesses.heads(), *self.seen]
        with self.sessions.read() as session:
            checks.check_start(session, head, self.log, self.policy, self.cover_key, heads)
        self._signed = head

    def _integrate(self, tx: Tx) -> int:
        """R1 to R6; who calls it commits (R7)."""
        state = tree.state_of(tx)
        if state.epoch != self._epoch:
            raise NotLeading("Somebody else leads now.")
        if state.halted:
            raise LedgerHalted("The ledger is halted.")
        rows = tx.execute(
            select(col(LedgerPending.id), col(LedgerPending.eid), col(LedgerPending.cover_n), col(LedgerPending.leaf))
            .order_by(col(LedgerPending.id))
            .limit(BATCH)
        ).all()
        if not rows:
            return 0
        size, grown = state.size, _edge(tx, state)
        full = grown.extend([leaf_hash(leaf) for _, _, _, leaf in rows])
        leaves = [
            {"idx": size + place, "leaf": leaf, "eid": eid, "cover_n": cover_n}
            for place, (_, eid, cover_n, leaf) in enumerate(rows)
        ]
        tx.execute(insert(LedgerLeaf), leaves)
        tree.store_tiles(tx, [*full, *grown.partial()])
        moved = tx.execute(
            update(LedgerState)
            .where(
                col(LedgerState.size) == size,
                col(LedgerState.root) == state.root,
                col(LedgerState.epoch) == self._epoch,
            )
            .values(size=grown.size, root=grown.root())
            .execution_options(synchronize_session=False)
        )
        taken = tx.execute(delete(LedgerPending).where(col(LedgerPending.id).in_([row[0] for row in rows])))
        if moved.rowcount != 1 or taken.rowcount != len(rows):  # type: ignore[attr-defined]
            raise NotLeading("Somebody else leads now.")
        return len(rows)

    def _sign(self) -> None:
        """R8 to R11: have the stored tree signed, whatever this round did to it. Raises CheckFailed."""
        with self.sessions.read() as session:
            state = tree.state_of(session)
            if self._signed is None:
                self._signed = notes.open_checkpoint(self.signer.head(), self.log)
            if self._signed.size == state.size == _noted(state):
                return
            if self._signed.size > state.size:
                raise CheckFailed("signer-ahead")
            proof = prove_consistency(tree.nodes_of(session), self._signed.size, state.size)
        try:
            note = self.signer.sign(self._signed.size, state.size, state.root, proof)
        except Stale as stale:
            self._signed = None  # it has signed what we did not ask for, or we did and heard no answer
            if stale.size > state.size:
                raise CheckFailed("signer-ahead") from None
            raise NotLeading("The signer stands elsewhere.") from None
        except Fork:
            raise CheckFailed("signer-refused") from None
        signed = notes.open_checkpoint(note, self.log)
        if (signed.size, signed.root) != (state.size, state.root):
            raise CheckFailed("signer-answer")
        write(self.sessions, partial(_store_note, note=note, size=state.size, epoch=self._epoch))
        self._signed = signed

    # --- cover, promises, halting -----------------------------------------------------------------------

    def _add_covers(self) -> None:
        """Let the cover leaves whose moment has come enter: one to four a minute, at random moments."""
        now = self.now()
        if self._covered_until is None or now >= self._covered_until:
            begin = now if self._covered_until is None else max(self._covered_until, now - PUBLISH_EVERY)
            self._covered_until = begin + PUBLISH_EVERY
            count = 1 + secrets.randbelow(MOST_COVER)
            self._covers += [begin + timedelta(milliseconds=secrets.randbelow(60_000)) for _ in range(count)]
        due = sum(moment <= now for moment in self._covers)
        if due:
            write(self.sessions, partial(add_covers, key=self.cover_key, count=due))
            self._covers = [moment for moment in self._covers if moment > now]

    def _promise(self, after: timedelta) -> None:
        """Sign promises for events that have been pending for longer than `after`, as far as this process has seen."""
        now = self.now()
        with self.sessions.read() as session:
            rows = session.execute(
                select(col(LedgerPending.id), col(LedgerPending.eid), col(LedgerPending.leaf))
                .where(
                    col(LedgerPending.eid).is_not(None),
                    ~select(LedgerPromise).where(col(LedgerPromise.eid) == col(LedgerPending.eid)).exists(),
                )
                .order_by(col(LedgerPending.id))
                .limit(BATCH)
            ).all()
        self._waiting = {row[0]: self._waiting.get(row[0], now) for row in rows}
        late = [row for row in rows if now - self._waiting[row[0]] >= after]
        if late:
            promises = [{"eid": eid, "note": self.signer.promise(leaf_hash(leaf), now)} for _, eid, leaf in late]
            write(self.sessions, lambda tx: tx.insert(LedgerPromise, promises))

    def halt(self, reason: str) -> None:
        """Halt the ledger: nothing is integrated, published or signed but promises, until it is repaired."""
        log.error("ledger_halted", kind=reason)
        if write(self.sessions, partial(halt, alarm=lambda tx: self.alarm(tx, reason))):
            # Apart, because a history that does not fit may not take it: it is halted all the same.
            write(self.sessions, partial(_note_halt, ledger=self.ledger, reason=reason, now=self.now()))

    # --- each minute ------------------------------------------------------------------------------------

    def publish_if_due(self) -> bool:
        """Publish once a minute, when it begins; at once where this one has just begun to lead."""
        now = self.now()
        minute = now - (now - EPOCH) % self.publish_every
        if not self.leads or minute == self._published:
            return False
        self._published = minute
        return self.publish()

    def publish(self) -> bool:
        """P1 to P4: keep the signed head as a checkpoint, offer it, publish it, run what a quorum has now seen.

        Returns whether a head was published.
        """
        epoch = self._epoch
        if epoch is None:
            return False
        head = write(self.sessions, partial(_keep_checkpoint, epoch=epoch, now=self.now()))
        if head is None:
            return False
        size, note = head
        try:
            lines = list(self.witnesses.offer(note, partial(self._prove, size)))
        except Fork:
            with self.sessions.read() as session:
                led = tree.state_of(session).epoch == epoch
            if led:  # else another leader has gone on meanwhile, and the witness with it
                self.halt("witness-ahead")
            return False
        for line in lines:
            self.take_line(size, line)
        write(self.sessions, partial(_publish, size=size, epoch=epoch))
        self.settle()
        return True

    def _prove(self, size: int, old: int) -> Sequence[bytes]:
        with self.sessions.read() as session:
            return prove_consistency(tree.nodes_of(session), old, size)

    def take_line(self, size: int, line: str) -> None:
        """Store a witness's line under the checkpoint of `size`; one that is no good is left out and logged."""
        if self.policy is None:
            return
        try:
            write(self.sessions, partial(tree.store_line, policy=self.policy, size=size, line=line))
        except BadNote:
            log.warning("witness_line_refused", size=size)

    def settle(self) -> None:
        """P4: see how far a quorum has come, and run the effects of the events below it."""
        if self.policy is not None and self._epoch is not None:
            write(self.sessions, partial(_note_witnessed, policy=self.policy, epoch=self._epoch))
            self.run_effects()

    def settle_if_new(self) -> None:
        """P4 for lines that came by themselves: late ones, and those of witnesses that fetch the head."""
        if not self.leads:
            return
        with self.sessions.read() as session:
            state = tree.state_of(session)
            above = select(func.count()).where(col(LedgerCosignature.size) > state.witnessed_size)
            lines = session.scalar(above) or 0
        if lines != self._lines and not state.halted:
            self.settle()
            self._lines = lines

    def run_effects(self) -> None:
        """Run the effects of witnessed events that were not run, each in its own transaction, once."""
        with self.sessions.read() as session:
            if tree.halted(session):
                return
            waiting = (
                select(col(LedgerEffect.eid))
                .join(LedgerLeaf, col(LedgerLeaf.eid) == col(LedgerEffect.eid))
                .where(
                    col(LedgerEffect.done_at).is_(None),
                    col(LedgerLeaf.idx) < select(col(LedgerState.witnessed_size)).scalar_subquery(),
                )
                .order_by(col(LedgerLeaf.idx))
            )
            eids = session.scalars(waiting).all()
        for eid in eids:
            try:
                write(self.sessions, partial(self._run_effect, eid=eid))
            except HotlineError as fault:
                log.error("effect_not_run", error=type(fault).__name__)

    def _run_effect(self, tx: Tx, eid: str) -> None:
        row = tx.get(LedgerEffect, eid, with_for_update=tx.get_bind().dialect.name == "postgresql")
        if row is None or row.done_at is not None:
            return
        action = json.loads(row.action)
        run = self.effects.get(action["do"])
        if run is None:
            raise LedgerFault("this version does not know that effect")
        run(tx, action, self.now())
        row.done_at = self.now()
        tx.flush()


# --- use cases ------------------------------------------------------------------------------------------


def _edge(tx: Tx, state: LedgerState) -> RightEdge:
    try:
        edge = tree.read_edge(tx, state.size)
    except ValueError:
        raise CheckFailed("tiles") from None
    if edge.root() != state.root:
        raise CheckFailed("tiles")
    return edge


def _raise_epoch(tx: Tx) -> int:
    state = tree.state_of(tx)
    moved = tx.execute(
        update(LedgerState)
        .where(col(LedgerState.epoch) == state.epoch)
        .values(epoch=state.epoch + 1)
        .execution_options(synchronize_session=False)
    )
    if moved.rowcount != 1:  # type: ignore[attr-defined]
        raise NotLeading("Somebody else leads now.")
    return state.epoch + 1


def _store_note(tx: Tx, note: str, size: int, epoch: int | None) -> None:
    _move(tx, epoch, col(LedgerState.size) == size, note=note)


def _move(tx: Tx, epoch: int | None, *where: Any, **columns: Any) -> None:
    """Change columns of the state, as the leader of `epoch` alone. Raises NotLeading."""
    moved = tx.execute(
        update(LedgerState)
        .where(col(LedgerState.epoch) == epoch, *where)
        .values(**columns)
        .execution_options(synchronize_session=False)
    )
    if moved.rowcount != 1:  # type: ignore[attr-defined]
        raise NotLeading("Somebody else leads now.")


def _noted(state: LedgerState) -> int | None:
    """Return the size of the signed head that the state holds, None before the first."""
    return None if state.note is None else notes.parse_checkpoint(split_note(state.note)[0]).size


def _keep_checkpoint(tx: Tx, epoch: int, now: datetime) -> tuple[int, str] | None:
    """P1: return size and note of the head to publish; None where there is none, or the ledger is halted."""
    state = tree.state_of(tx)
    if state.epoch != epoch:
        raise NotLeading("Somebody else leads now.")
    size = _noted(state)
    if state.halted or state.note is None or not size:
        return None
    kept = tx.get(LedgerCheckpoint, size)
    if kept is None:
        kept = LedgerCheckpoint(size=size, note=state.note, at=now)
        tx.add(kept)
        tx.flush()
    return size, kept.note


def _publish(tx: Tx, size: int, epoch: int) -> None:
    _move(tx, epoch, col(LedgerState.halted).is_(False), published_size=size)


def _note_witnessed(tx: Tx, policy: Policy, epoch: int) -> None:
    state = tree.state_of(tx)
    newest = tree.newest_witnessed(tx, policy, state.witnessed_size)
    if newest is not None:
        head = notes.open_checkpoint(newest.note, policy.log)
        _move(tx, epoch, witnessed_size=head.size, witnessed_root=head.root)


def add_covers(tx: Tx, key: bytes, count: int) -> None:
    """Let `count` cover leaves enter the pending table, with the anchor that an event would have now."""
    newest = [tx.scalar(select(func.max(col(table.cover_n)))) for table in (LedgerLeaf, LedgerPending)]
    first = max((n for n in newest if n is not None), default=-1) + 1
    size = read_anchor(tx).size
    rows = [{"eid": None, "cover_n": n, "leaf": cover_leaf(key, n, size)} for n in range(first, first + count)]
    tx.insert(LedgerPending, rows)


def halt(tx: Tx, alarm: Callable[[Tx], None]) -> bool:
    """Halt the ledger, and tell people with `alarm` if it was not halted before; return whether it was not."""
    halted = tx.execute(
        update(LedgerState)
        .where(col(LedgerState.halted).is_(False))
        .values(halted=True)
        .execution_options(synchronize_session=False)
    )
    begins: bool = halted.rowcount == 1  # type: ignore[attr-defined]
    if begins:
        alarm(tx)
    return begins


def _note_halt(tx: Tx, ledger: Ledger, reason: str, now: datetime) -> None:
    what = EventType.SIGNER_REFUSED if reason == "signer-refused" else EventType.CHECK_FAILED
    event = NewEvent(what, now, SYSTEM, StateClass.SYSTEM, fields={"reason": reason})
    append(tx, ledger, fixed_chain("ledger"), [event])
