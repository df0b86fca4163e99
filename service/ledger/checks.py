"""What the leader checks before its first round (ledger.md section 7)."""

import hashlib
import random
from collections.abc import Iterable, Sequence

from sqlalchemy import select, text
from sqlmodel import Session, col

from service.errors import BadNote, CheckFailed, HotlineError
from service.ledger import notes, tree
from service.ledger.events import commit_event, cover_leaf, leaf_hash, make_leaf
from service.ledger.merkle import EMPTY_ROOT, HASH, WIDTH, tree_root
from service.ledger.notes import Checkpoint, Policy
from service.models import LedgerCheckpoint, LedgerEvent, LedgerLeaf, LedgerPending, LedgerState
from service.vault.note import Verifier

LAST_LEAVES = 5 * WIDTH
RANDOM = 200


def check_start(
    session: Session, signed: Checkpoint, log: Verifier, policy: Policy | None, cover_key: bytes, heads: Iterable[str]
) -> None:
    """Run the checks of ledger.md section 7 before a leader's first round; the full check is `verify`.

    signed: the signer's head. heads: checkpoints that witnesses or files know. Raises CheckFailed with one word for
    what is wrong: tiles, state, signer-ahead, signer, checkpoint, witness-ahead, witness, leaf, event, head, witnessed.
    """
    state = tree.state_of(session)
    _check_edge(session, state)
    _same_prefix(session, state.size, signed, "signer")
    for note in _kept_notes(session, state):
        _same_prefix(session, state.size, _open(note, log), "checkpoint")
    for note in heads:
        _same_prefix(session, state.size, _open(note, log, "witness"), "witness")
    _check_leaves(session, state.size, cover_key)
    _check_heads(session)
    _check_witnessed(session, state, policy)


def _check_edge(session: Session, state: LedgerState) -> None:
    try:
        edge = tree.read_edge(session, state.size)
    except ValueError:
        raise CheckFailed("tiles") from None
    last = session.scalar(select(col(LedgerLeaf.idx)).order_by(col(LedgerLeaf.idx).desc()).limit(1))
    if edge.root() != state.root or (-1 if last is None else last) != state.size - 1:
        raise CheckFailed("state")


def _open(note: str, log: Verifier, reason: str = "checkpoint") -> Checkpoint:
    try:
        return notes.open_checkpoint(note, log)
    except BadNote:
        raise CheckFailed(reason) from None


def _kept_notes(session: Session, state: LedgerState) -> Sequence[str]:
    """Return the newest kept checkpoints and some older ones; the full check reads all of them."""
    newest = select(col(LedgerCheckpoint.note)).order_by(col(LedgerCheckpoint.size).desc()).limit(60)
    found = list(session.scalars(newest).all())
    for _ in range(20):
        above = select(col(LedgerCheckpoint.note)).where(col(LedgerCheckpoint.size) >= random.randint(0, state.size))  # noqa: S311
        found += session.scalars(above.order_by(col(LedgerCheckpoint.size)).limit(1)).all()
    return [*found, *([state.note] if state.note is not None else [])]


def _same_prefix(session: Session, size: int, known: Checkpoint, who: str) -> None:
    if known.size > size:
        raise CheckFailed(f"{who}-ahead")
    try:
        root = tree_root(tree.nodes_of(session), known.size) if known.size else EMPTY_ROOT
    except LookupError:
        raise CheckFailed("tiles") from None
    if root != known.root:
        raise CheckFailed(who)


def _check_leaves(session: Session, size: int, cover_key: bytes) -> None:
    """Re-hash the last leaves and random older ones, and open the event or cover of each."""
    older = random.sample(range(max(size - LAST_LEAVES, 0)), min(RANDOM, max(size - LAST_LEAVES, 0)))
    wanted = (col(LedgerLeaf.idx) >= size - LAST_LEAVES) | col(LedgerLeaf.idx).in_(older)
    rows = session.execute(
        select(LedgerLeaf, LedgerEvent)
        .outerjoin(LedgerEvent, col(LedgerEvent.eid) == col(LedgerLeaf.eid))
        .where(wanted)
        .order_by(col(LedgerLeaf.idx))
    ).all()
    if len(rows) != len(older) + min(size, LAST_LEAVES):
        raise CheckFailed("leaf")
    try:
        hashes = tree.nodes_of(session)([(0, leaf.idx) for leaf, _ in rows])
    except LookupError:
        raise CheckFailed("tiles") from None
    for (leaf, event), stored in zip(rows, hashes, strict=True):
        if leaf_hash(leaf.leaf) != stored:
            raise CheckFailed("leaf")
        if leaf.eid is not None and not opens(event, leaf.leaf):
            raise CheckFailed("event")
        if leaf.cover_n is not None and not is_cover(cover_key, leaf.cover_n, leaf.leaf):
            raise CheckFailed("event")
    pending = session.execute(
        select(LedgerPending, LedgerEvent).outerjoin(LedgerEvent, col(LedgerEvent.eid) == col(LedgerPending.eid))
    ).all()
    if any(row.eid is not None and not opens(event, row.leaf) for row, event in pending):
        raise CheckFailed("event")


def opens(event: LedgerEvent | None, leaf: bytes) -> bool:
    """Say whether the stored event is the one that the leaf commits to: its bytes, its salt and its sealed copy."""
    if event is None or event.leaf != leaf or len(leaf) != 112:
        return False
    c, s = commit_event(event.k_e, event.body), hashlib.sha256(event.blob).digest()
    return leaf == make_leaf(c, s, leaf[72:104], int.from_bytes(leaf[104:], "big"))


def is_cover(key: bytes, n: int, leaf: bytes) -> bool:
    """Say whether the leaf is cover leaf number `n`; its anchor's size is free."""
    return len(leaf) == 112 and n >= 0 and cover_leaf(key, n, int.from_bytes(leaf[104:], "big")) == leaf


_ASTRAY = text(
    'SELECT count(*) FROM ledger_head h LEFT JOIN ledger_event e ON e."case" = h."case" AND e.seq = h.seq'
    " WHERE e.eid IS NULL OR substr(e.leaf, 9, 32) <> h.c"
)
_BEYOND = text(
    'SELECT count(*) FROM ledger_event e JOIN ledger_head h ON h."case" = e."case" WHERE e.seq > h.seq OR e.seq < 0'
)


def _check_heads(session: Session) -> None:
    if session.scalar(_ASTRAY) or session.scalar(_BEYOND):
        raise CheckFailed("head")


def _check_witnessed(session: Session, state: LedgerState, policy: Policy | None) -> None:
    """Work out again, from the lines that are kept, that a quorum has seen what the state says."""
    if state.published_size > state.size or state.witnessed_size > state.published_size:
        raise CheckFailed("witnessed")
    if state.witnessed_size == 0:
        return
    try:
        if policy is None:
            raise CheckFailed("witnessed")
        opened = notes.open_witnessed(tree.checkpoint_note(session, state.witnessed_size), policy)
    except HotlineError:
        raise CheckFailed("witnessed") from None
    if not opened.quorum or opened.checkpoint.root != state.witnessed_root or len(state.witnessed_root) != HASH:
        raise CheckFailed("witnessed")
