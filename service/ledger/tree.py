"""The tree as it is stored: its state, tiles, checkpoints and receipts (ledger.md sections 2 and 3)."""

from collections.abc import Iterable, Sequence
from enum import StrEnum

from sqlalchemy import select, text, tuple_
from sqlmodel import Session, col

from service.db import Tx
from service.errors import BadNote, LedgerHalted, NotFound
from service.ledger.merkle import HASH, WIDTH, Nodes, RightEdge, edge_widths, prove_inclusion
from service.ledger.notes import Policy, Receipt, add_lines, cosigned_at, open_witnessed
from service.ledger.tiles import ENTRIES, Tile, entry_bundle, is_within, nodes_from
from service.models import LedgerCheckpoint, LedgerCosignature, LedgerLeaf, LedgerPromise, LedgerState, LedgerTile
from service.vault.note import split_note

LATE = 240  # checkpoints, one a minute: how long a witness's line may come after its checkpoint and still be looked at


def state_of(session: Session) -> LedgerState:
    """Return the one row of the tree's state."""
    return session.scalars(select(LedgerState).execution_options(populate_existing=True)).one()


def halted(session: Session) -> bool:
    """Return whether the ledger is halted (ledger.md section 7)."""
    return bool(session.scalar(select(col(LedgerState.halted))))


def must_run(session: Session) -> None:
    """Raise LedgerHalted while the ledger is halted.

    For what ends or weakens a case: closing, merging, lowering, narrowing a wall, export, erasure. Intake, reading,
    raising and protective acts never ask.
    """
    if halted(session):
        raise LedgerHalted("The ledger is halted. Nothing is closed, merged, lowered, narrowed, exported or erased.")


# --- tiles ----------------------------------------------------------------------------------------------


def nodes_of(session: Session) -> Nodes:
    """Return what gives the hashes of nodes by name out of the stored tiles (`merkle.Nodes`)."""

    def read(names: Sequence[tuple[int, int]]) -> list[bytes]:
        key = tuple_(col(LedgerTile.level), col(LedgerTile.n))
        rows = session.execute(
            select(col(LedgerTile.level), col(LedgerTile.n), col(LedgerTile.hashes)).where(key.in_(names))
        ).all()
        found = {(level, n): hashes for level, n, hashes in rows}
        return [found.get(name, b"") for name in names]

    return nodes_from(read)


def read_edge(session: Session, size: int) -> RightEdge:
    """Return the right edge of the tree's first `size` leaves. Raises ValueError where the tiles do not hold them."""
    tiles = []
    for level, width in enumerate(edge_widths(size)):
        n = (size >> (8 * level)) // WIDTH
        hashes = session.scalar(
            select(col(LedgerTile.hashes)).where(col(LedgerTile.level) == level, col(LedgerTile.n) == n)
        )
        tiles.append(bytes(hashes or b"")[: width * HASH])
    return RightEdge(size, tiles)


_STORE = text(
    "INSERT INTO ledger_tile (level, n, hashes) VALUES (:level, :n, :hashes)"
    " ON CONFLICT (level, n) DO UPDATE SET hashes = excluded.hashes"
)


def store_tiles(tx: Tx, tiles: Iterable[tuple[int, int, bytes]]) -> None:
    """Store tiles (level, place, hashes); one that is there, and narrower, is replaced."""
    rows = [{"level": level, "n": n, "hashes": hashes} for level, n, hashes in tiles]
    if rows:
        tx.execute(_STORE, rows)


def read_file(session: Session, tile: Tile) -> bytes | None:
    """Return the bytes of a tile or bundle as it is published, None beyond the published size.

    A narrower tile is the beginning of the stored one.
    """
    published = session.scalar(select(col(LedgerState.published_size))) or 0
    return read_stored(session, tile) if is_within(tile, published) else None


def read_stored(session: Session, tile: Tile) -> bytes:
    """Return the bytes of a tile or bundle of the tree, published or not. Raises NotFound where it is not whole."""
    if tile.level == ENTRIES:
        first = tile.n * WIDTH
        places = col(LedgerLeaf.idx).between(first, first + tile.width - 1)
        leaves = session.scalars(select(col(LedgerLeaf.leaf)).where(places).order_by(col(LedgerLeaf.idx))).all()
        if len(leaves) == tile.width:
            return entry_bundle(map(bytes, leaves))
    else:
        row = col(LedgerTile.level) == tile.level, col(LedgerTile.n) == tile.n
        hashes = bytes(session.scalar(select(col(LedgerTile.hashes)).where(*row)) or b"")[: tile.width * HASH]
        if len(hashes) == tile.width * HASH:
            return hashes
    raise NotFound("There is no such tile.")


# --- checkpoints ----------------------------------------------------------------------------------------


def checkpoint_note(session: Session, size: int) -> str:
    """Return the published checkpoint of `size` with all lines of witnesses. Raises NotFound if there is none."""
    note = session.scalar(select(col(LedgerCheckpoint.note)).where(col(LedgerCheckpoint.size) == size))
    if note is None:
        raise NotFound("There is no such checkpoint.")
    lines = session.scalars(
        select(col(LedgerCosignature.line)).where(col(LedgerCosignature.size) == size).order_by(LedgerCosignature.name)
    ).all()
    return add_lines(note, lines)


_KEEP_LINE = text(
    "INSERT INTO ledger_cosignature (size, name, line) VALUES (:size, :name, :line) ON CONFLICT DO NOTHING"
)


def store_line(tx: Tx, policy: Policy, size: int, line: str) -> str:
    """Store a witness's line under the checkpoint of `size` and return the name of its key; the first one stays.

    Raises NotFound without such a checkpoint, BadNote for a line that no witness of the policy signed.
    """
    note = checkpoint_note(tx, size)
    body, (signature, *more) = split_note(note.split("\n\n")[0] + "\n\n" + line)
    keys = {(witness.key.name, witness.key.key_id): witness.key for witness in policy.witnesses}
    key = keys.get((signature.name, signature.key_id))
    if key is None or more:
        raise BadNote("a line of nobody known")
    cosigned_at(body, signature, key)
    tx.execute(_KEEP_LINE, {"size": size, "name": key.name, "line": line})
    return key.name


def newest_witnessed(session: Session, policy: Policy, above: int) -> LedgerCheckpoint | None:
    """Return the largest checkpoint of more than `above` leaves with a quorum of the lines stored by now."""
    newest = col(LedgerCheckpoint.size).desc()
    found = session.scalars(
        select(LedgerCheckpoint).where(col(LedgerCheckpoint.size) > above).order_by(newest).limit(LATE)
    ).all()
    for checkpoint in found:
        if open_witnessed(checkpoint_note(session, checkpoint.size), policy).quorum:
            return checkpoint
    return None


# --- receipts -------------------------------------------------------------------------------------------


class Grade(StrEnum):
    """How much a receipt proves (ledger.md section 6)."""

    PROMISE = "promise"
    INTEGRATED = "integrated"
    WITNESSED = "witnessed"


def receipt_of(session: Session, eid: str) -> tuple[Grade, str] | None:
    """Return the best receipt that there is of an event, with its grade; None while there is none."""
    state = state_of(session)
    leaf = session.scalars(select(LedgerLeaf).where(col(LedgerLeaf.eid) == eid)).one_or_none()
    if leaf is None:
        promise = session.scalar(select(col(LedgerPromise.note)).where(col(LedgerPromise.eid) == eid))
        return None if promise is None else (Grade.PROMISE, promise)
    if leaf.idx < state.witnessed_size:
        return Grade.WITNESSED, receipt_at(session, leaf, state.witnessed_size)
    if leaf.idx < state.published_size:
        return Grade.INTEGRATED, receipt_at(session, leaf, state.published_size)
    return None


def receipt_at(session: Session, leaf: LedgerLeaf, size: int) -> str:
    """Return the receipt of a leaf under the published checkpoint of `size`. Raises NotFound without one."""
    proof = prove_inclusion(nodes_of(session), leaf.idx, size)
    return Receipt(bytes(leaf.leaf), leaf.idx, tuple(proof), checkpoint_note(session, size)).text
