"""The public log as static files: copied out of the database, and checked by anybody (ledger.md section 9)."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import select
from sqlmodel import Session, col

from service.errors import BadNote, NotFound
from service.ledger import notes, tree
from service.ledger.merkle import RightEdge, leaf_hash
from service.ledger.notes import Policy
from service.ledger.tiles import Tile, bundles_of, split_bundle, tiles_of
from service.ledger.verify import Report
from service.models import LedgerCheckpoint, LedgerLeaf

RECENT = timedelta(hours=24)
TAG = slice(72, 104)  # of a leaf


# --- writing --------------------------------------------------------------------------------------------


def export(session: Session, folder: Path, policy_text: str | None, receipts: Iterable[int], now: datetime) -> int:
    """Copy what is published into `folder` and return the size of its checkpoint. Incremental, safe to repeat.

    The checkpoint is the newest with a quorum, or without a policy the newest; it is written last, so that a copy
    that was cut short is still whole for the checkpoint it has. receipts: indices below that size.
    Raises NotFound while nothing is published, or for an index beyond.
    """
    state = tree.state_of(session)
    policy = notes.parse_policy(policy_text) if policy_text is not None else None
    size = state.published_size if policy is None or policy.quorum is None else state.witnessed_size
    if size == 0:
        raise NotFound("Nothing is published with a quorum yet.")
    for tile in (*tiles_of(size), *bundles_of(size)):
        path = folder / tile.path
        if not path.exists():
            _write(path, tree.read_stored(session, tile))
    for index in receipts:
        leaf = session.get(LedgerLeaf, index)
        if leaf is None or index >= size:
            raise NotFound("There is no such leaf in what is published.")
        _write(folder / f"{index}.leaf", bytes(leaf.leaf))
        _write(folder / f"{index}.tlog-proof", tree.receipt_at(session, leaf, size).encode())
    for kept in _kept(session, size, now):
        _write(folder / f"checkpoint.{kept}", tree.checkpoint_note(session, kept).encode())
    if policy_text is not None:
        _write(folder / "policy", policy_text.encode())
    _write(folder / "checkpoint", tree.checkpoint_note(session, size).encode())
    return size


def _kept(session: Session, size: int, now: datetime) -> Iterator[int]:
    """Yield the checkpoints that an export keeps: the last of each hour, and all of the last day."""
    rows = session.execute(
        select(col(LedgerCheckpoint.size), col(LedgerCheckpoint.at))
        .where(col(LedgerCheckpoint.size) <= size)
        .order_by(col(LedgerCheckpoint.size))
        .execution_options(yield_per=1000)
    )
    before: tuple[int, datetime] | None = None
    for kept, at in rows:
        if before is not None and (before[1] > now - RECENT or _hour(before[1]) != _hour(at)):
            yield before[0]
        before = kept, at
    if before is not None:
        yield before[0]


def _hour(moment: datetime) -> datetime:
    return moment.replace(minute=0, second=0, microsecond=0)


def _write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all; one with the same bytes is left alone."""
    if path.exists() and path.read_bytes() == data:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".new")
    draft.write_bytes(data)
    with draft.open("rb") as file:
        os.fsync(file.fileno())
    draft.replace(path)


# --- a tipster's check ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Found:
    """A leaf that carries a code's tag. number: 0 for the account, i for the i-th step that the tipster may see.

    It was written between `after` and `before`, by witnesses' clocks; None where no checkpoint of the copy tells.
    """

    number: int
    index: int
    after: datetime | None
    before: datetime | None


def find_tags(folder: Path, policy: Policy, tags: Sequence[bytes]) -> list[Found]:
    """Return the leaves of a good copy that carry one of `tags`, in their order (ledger.md section 9).

    after: the newest head that its writer knew was signed before. before: the first signed head that covers it.
    Check the copy first (`verify_export`): here it is only read. Raises OSError, BadNote.
    """
    numbers = {tag: number for number, tag in enumerate(tags)}
    opened = [notes.open_witnessed(path.read_bytes(), policy) for path in _checkpoints(folder)]
    signed = sorted((one.checkpoint.size, min(one.cosigned.values())) for one in opened if one.quorum and one.cosigned)
    size = notes.open_witnessed((folder / "checkpoint").read_bytes(), policy).checkpoint.size
    found = []
    for bundle in bundles_of(size):
        for place, leaf in enumerate(split_bundle((folder / bundle.path).read_bytes()), bundle.n * 256):
            number = numbers.get(leaf[TAG])
            if number is None:
                continue
            anchor = int.from_bytes(leaf[TAG.stop :], "big")
            earlier = [at for head, at in signed if head <= anchor]
            later = [at for head, at in signed if head > place]
            found.append(Found(number, place, _moment(earlier[-1:]), _moment(later[:1])))
    return sorted(found, key=lambda one: (one.number, one.index))


def _moment(times: Sequence[int]) -> datetime | None:
    return datetime.fromtimestamp(times[0], UTC) if times else None


def _checkpoints(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.glob("checkpoint*")) if not path.name.endswith(".new")]


# --- checking -------------------------------------------------------------------------------------------


def verify_export(folder: Path, policy: Policy, seen: Sequence[str] = ()) -> Report:
    """Check a copy of the log with the policy alone: no database, no network; memory does not grow with it.

    seen: checkpoints seen before, the only way to tell an old copy from a cut one. Raises OSError for files that
    cannot be read, NotFound where there is no checkpoint at all.
    """
    report = Report()
    heads = _heads(folder, policy, seen, report)
    size = _newest(folder, policy, report)
    if size is None:
        return report
    report.size = report.witnessed = size
    edge = RightEdge()
    for bundle in bundles_of(size):
        leaves = _leaves(folder, bundle, report)
        if leaves is None:
            return report
        full = []
        for leaf in leaves:
            full += edge.extend([leaf_hash(leaf)])
            for root, kind in heads.pop(edge.size, ()):
                if root != edge.root():
                    report.add(kind, edge.size - 1)
        for level, n, hashes in full:
            _compare(folder, Tile(level, n), hashes, report)
    for level, n, hashes in edge.partial():
        _compare(folder, Tile(level, n, len(hashes) // 32), hashes, report)
    for ahead in sorted(heads):
        if ahead:
            report.add(f"{heads[ahead][0][1]} ahead of the tree", ahead - 1)
    _receipts(folder, policy, edge, report)
    return report


def _newest(folder: Path, policy: Policy, report: Report) -> int | None:
    """Return the size of the copy's checkpoint, None where it is not one that the policy's witnesses have seen."""
    try:
        opened = notes.open_witnessed((folder / "checkpoint").read_bytes(), policy)
    except FileNotFoundError:
        raise NotFound("There is no checkpoint here.") from None
    except BadNote:
        report.add("checkpoint that the log did not sign")
        return None
    if not opened.quorum:
        report.add("checkpoint without a quorum", opened.checkpoint.size - 1)
        return None
    return opened.checkpoint.size


def _heads(folder: Path, policy: Policy, seen: Sequence[str], report: Report) -> dict[int, list[tuple[bytes, str]]]:
    """Return all heads that the tree must agree with, by size: those in the folder, and those seen before."""
    heads: dict[int, list[tuple[bytes, str]]] = {}
    kept = [path.read_bytes() for path in _checkpoints(folder)]
    known: list[tuple[str | bytes, str]] = [(note, "checkpoint") for note in kept]
    for note, kind in [*known, *((note, "head") for note in seen)]:
        try:
            head = notes.open_witnessed(note, policy).checkpoint
        except BadNote:
            report.add(f"{kind} that the log did not sign")
            continue
        heads.setdefault(head.size, []).append((head.root, kind))
    return heads


def _leaves(folder: Path, bundle: Tile, report: Report) -> list[bytes] | None:
    first = bundle.n * 256
    try:
        leaves = split_bundle((folder / bundle.path).read_bytes())
    except FileNotFoundError:
        report.add("leaf missing", first)
        return None
    except ValueError:
        report.add("leaf", first)
        return None
    if len(leaves) != bundle.width:
        report.add("leaf missing", first + min(len(leaves), bundle.width))
        return None
    return leaves


def _compare(folder: Path, tile: Tile, hashes: bytes, report: Report) -> None:
    try:
        same = (folder / tile.path).read_bytes() == hashes
    except FileNotFoundError:
        same = False
    if not same:
        report.add("tile", tile.n * 256 << (8 * tile.level))


def _receipts(folder: Path, policy: Policy, edge: RightEdge, report: Report) -> None:
    """Receipts in the folder are good by themselves, and of this tree."""
    for path in sorted(folder.glob("*.tlog-proof")):
        index = int(path.name.split(".")[0]) if path.name.split(".")[0].isdecimal() else None
        try:
            receipt, opened = notes.open_receipt(path.read_bytes(), policy)
            good = receipt.index == index and opened.quorum and opened.checkpoint.size <= edge.size
        except BadNote:
            good = False
        if not good:
            report.add("receipt", index)
