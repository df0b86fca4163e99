"""Repair after a lost database: leaves come back byte for byte from an export (ledger.md section 7).

Only what somebody outside kept can come back. A leaf whose event is gone is named as lost, for ever; no index is used
twice, and no history is signed anew.
"""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from sqlalchemy import delete, func, insert, select, update
from sqlmodel import col

from service.db import Tx
from service.errors import CheckFailed
from service.ledger import notes, tree
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
)
from service.ledger.export import verify_export
from service.ledger.merkle import RightEdge
from service.ledger.notes import Policy
from service.ledger.tiles import bundles_of, split_bundle
from service.models import LedgerCheckpoint, LedgerEvent, LedgerLeaf, LedgerPending, LedgerState
from service.vault.note import split_note


def recover(tx: Tx, ledger: Ledger, folder: Path, policy: Policy, cover_key: bytes, now: datetime) -> list[list[int]]:
    """Put back the leaves of the export in `folder` that the tree lacks, and let the ledger run again.

    Returns the lost ones, as ranges of indices (first, last); they stand in one ``ledger:incident:opened``.
    Raises CheckFailed for an export that is not whole, or does not begin with the stored tree: ``export``, ``tree``.
    """
    report = verify_export(folder, policy)
    if not report.good:
        raise CheckFailed("export")
    state = tree.state_of(tx)
    size = report.size
    edge = RightEdge()
    fresh: list[bytes] = []
    for leaf in _leaves(folder, size):
        if edge.size == state.size and edge.root() != state.root:
            raise CheckFailed("tree")
        if edge.size >= state.size:
            fresh.append(leaf)
        tree.store_tiles(tx, edge.extend([leaf_hash(leaf)]))
    if size < state.size or (size == state.size and edge.root() != state.root):
        raise CheckFailed("tree")
    tree.store_tiles(tx, edge.partial())
    lost = _put_back(tx, state.size, fresh, cover_key)
    _checkpoints(tx, folder, policy, size, now)
    head = notes.open_witnessed((folder / "checkpoint").read_bytes(), policy).checkpoint
    tx.execute(
        update(LedgerState)
        .values(
            size=size,
            root=edge.root(),
            published_size=size,
            witnessed_size=size,
            witnessed_root=head.root,
            halted=False,
            epoch=state.epoch + 1,
        )
        .execution_options(synchronize_session=False)
    )
    ranges = _ranges(lost)
    fields = {"lost": ranges, "from": state.size, "to": size}
    incident = NewEvent(EventType.INCIDENT_OPENED, now, SYSTEM, StateClass.SYSTEM, fields=fields)
    append(tx, ledger, fixed_chain("ledger"), [incident])
    return ranges


def _leaves(folder: Path, size: int) -> Iterator[bytes]:
    for bundle in bundles_of(size):
        yield from split_bundle((folder / bundle.path).read_bytes())


def _put_back(tx: Tx, first: int, leaves: list[bytes], cover_key: bytes) -> list[int]:
    """Insert the leaves from index `first` on, each with its event or cover number; return those with neither."""
    outside = tx.execute(
        select(col(LedgerEvent.eid), col(LedgerEvent.leaf))
        .outerjoin(LedgerLeaf, col(LedgerLeaf.eid) == col(LedgerEvent.eid))
        .where(col(LedgerLeaf.idx).is_(None))
    )
    events = {bytes(leaf): eid for eid, leaf in outside}
    newest = tx.scalar(select(func.max(col(LedgerLeaf.cover_n))))
    start = 0 if newest is None else newest + 1
    # The counter may have skipped nothing, so as many numbers as there are leaves are enough.
    covers = {cover_leaf(cover_key, n, 0)[:104]: n for n in range(start, start + len(leaves))}
    rows, lost, placed = [], [], []
    for place, leaf in enumerate(leaves, first):
        eid, cover_n = events.get(leaf), covers.get(leaf[:104])
        rows.append({"idx": place, "leaf": leaf, "eid": eid, "cover_n": cover_n})
        if eid is not None:
            placed.append(eid)
        elif cover_n is None:
            lost.append(place)
    for at in range(0, len(rows), 5000):
        tx.execute(insert(LedgerLeaf), rows[at : at + 5000])
    for at in range(0, len(placed), 5000):
        tx.execute(delete(LedgerPending).where(col(LedgerPending.eid).in_(placed[at : at + 5000])))
    tx.execute(delete(LedgerPending).where(col(LedgerPending.cover_n).in_(select(col(LedgerLeaf.cover_n)))))
    return lost


def _checkpoints(tx: Tx, folder: Path, policy: Policy, size: int, now: datetime) -> None:
    """Put back the checkpoints of the export with their lines, and the newest one as the signed head."""
    known = set(tx.scalars(select(col(LedgerCheckpoint.size))).all())
    for path in (folder / "checkpoint", *sorted(folder.glob("checkpoint.*"))):
        note = path.read_bytes().decode()
        head = notes.open_witnessed(note, policy).checkpoint
        body, lines = split_note(note)
        own = [f"{line}\n" for line in note[len(body) + 1 :].split("\n")[: len(lines)]]
        signed = [line for line in own if line.split(" ")[1] == policy.log.name]
        others = [line for line in own if line not in signed]
        if head.size not in known:
            tx.execute(insert(LedgerCheckpoint), [{"size": head.size, "note": f"{body}\n{signed[0]}", "at": now}])
            known.add(head.size)
        for line in others:
            tree.store_line(tx, policy, head.size, line)
        if head.size == size:
            tx.execute(
                update(LedgerState).values(note=f"{body}\n{signed[0]}").execution_options(synchronize_session=False)
            )


def _ranges(indices: list[int]) -> list[list[int]]:
    found: list[list[int]] = []
    for index in indices:
        if found and found[-1][1] == index - 1:
            found[-1][1] = index
        else:
            found.append([index, index])
    return found
