"""An export is whole, repeatable, and checked by anybody with the policy alone."""

import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from service.db import Sessions, write
from service.errors import NotFound
from service.ledger import notes
from service.ledger.export import export, verify_export
from service.ledger.sequencer import add_covers
from tests.service.ledger.builders import COVER_KEY, ORIGIN, Log, policy_text


@pytest.fixture
def a_log(sessions: Sessions, tmp_path: Path) -> Log:
    return Log(sessions, tmp_path / "log")


def grow(log: Log, count: int, *, away: tuple[str, ...] = ()) -> None:
    log.event()
    write(log.sessions, lambda tx: add_covers(tx, COVER_KEY, count))
    log.witnesses.away = set(away)
    one = log.sequencer()
    one.round()
    one.publish()
    one.step_down()
    log.later(60)


def copy_out(log: Log, folder: Path, *receipts: int) -> int:
    with log.sessions.read() as session:
        return export(session, folder, policy_text(), receipts, log.moment)


def faults(log: Log, folder: Path, *seen: str) -> list[str]:
    return [str(fault) for fault in verify_export(folder, log.policy, seen).faults]


@pytest.fixture
def copy(a_log: Log, tmp_path: Path) -> Path:
    grow(a_log, 300)
    grow(a_log, 20)
    copy_out(a_log, tmp_path / "copy", 0, 299)
    return tmp_path / "copy"


def test_a_copy_is_good_and_grows_without_changing_a_file(a_log: Log, copy: Path) -> None:
    assert faults(a_log, copy) == []
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    size = copy_out(a_log, copy, 0, 299)
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before
    seen = (copy / "checkpoint").read_text()
    grow(a_log, 300)
    assert copy_out(a_log, copy) > size
    assert faults(a_log, copy, seen) == []
    changed = {path.name for path, data in before.items() if path.read_bytes() != data}
    assert changed == {"checkpoint"}


def test_a_copy_ends_at_the_newest_quorum(a_log: Log, copy: Path, tmp_path: Path) -> None:
    grow(a_log, 5, away=("ngo.example/w", "un.example/w"))
    size = copy_out(a_log, tmp_path / "later")
    assert size == a_log.state().witnessed_size < a_log.state().published_size
    assert faults(a_log, tmp_path / "later") == []


def test_nothing_is_exported_before_a_quorum_and_no_receipt_of_what_is_not(a_log: Log, tmp_path: Path) -> None:
    grow(a_log, 5, away=("ngo.example/w", "un.example/w"))
    with pytest.raises(NotFound):
        copy_out(a_log, tmp_path / "copy")
    grow(a_log, 5)
    with pytest.raises(NotFound):
        copy_out(a_log, tmp_path / "copy", 1000)


def test_a_receipt_of_the_copy_stands_alone(a_log: Log, copy: Path) -> None:
    receipt, opened = notes.open_receipt((copy / "299.tlog-proof").read_bytes(), a_log.policy)
    assert opened.quorum
    assert receipt.leaf == (copy / "299.leaf").read_bytes()


def test_old_checkpoints_are_kept_by_the_hour(a_log: Log, tmp_path: Path) -> None:
    for _ in range(3):
        grow(a_log, 1)
    a_log.moment += timedelta(hours=30)
    for _ in range(2):
        grow(a_log, 1)
    copy_out(a_log, tmp_path / "copy")
    assert len(list((tmp_path / "copy").glob("checkpoint.*"))) == 1 + 2
    assert faults(a_log, tmp_path / "copy") == []


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


CHANGES: dict[str, Callable[[Path], object]] = {
    "leaf": lambda copy: flip(copy / "tile/entries/000", 114 * 7 + 50),
    "last leaf": lambda copy: flip(next((copy / "tile/entries/001.p").iterdir()), -1),
    "length of a leaf": lambda copy: flip(copy / "tile/entries/000", 0),
    "tile": lambda copy: flip(copy / "tile/0/000", 32 * 7),
    "tile above": lambda copy: flip(copy / "tile/1/000.p/1", 3),
    "tile gone": lambda copy: (copy / "tile/0/000").unlink(),
    "bundle gone": lambda copy: (copy / "tile/entries/000").unlink(),
    "bundle cut": lambda copy: (copy / "tile/entries/000").write_bytes((copy / "tile/entries/000").read_bytes()[:-114]),
    "checkpoint": lambda copy: flip(copy / "checkpoint", 25),
    "a line of it": lambda copy: flip(copy / "checkpoint", -10),
    "receipt": lambda copy: flip(copy / "299.tlog-proof", 200),
    "older checkpoint": lambda copy: flip(min(copy.glob("checkpoint.*")), 25),
    "another's checkpoint": lambda copy: (copy / "checkpoint").write_text(
        notes.sign_checkpoint(notes.Checkpoint(ORIGIN, 10, bytes(32)), b"\x01" * 32)
    ),
    "leaves swapped": lambda copy: swap(copy / "tile/entries/000", 3, 9),
}


def swap(path: Path, one: int, other: int) -> None:
    data = path.read_bytes()
    parts = [data[at : at + 114] for at in range(0, len(data), 114)]
    parts[one], parts[other] = parts[other], parts[one]
    path.write_bytes(b"".join(parts))


@pytest.mark.parametrize("what", CHANGES)
def test_any_change_of_a_copy_is_found(a_log: Log, copy: Path, what: str) -> None:
    if a_log.sessions.dialect == "postgresql":
        pytest.skip("files are the same from both engines")
    CHANGES[what](copy)
    assert faults(a_log, copy)


def test_a_cut_copy_is_good_by_itself_and_refused_with_a_head_that_was_seen(
    a_log: Log, copy: Path, tmp_path: Path
) -> None:
    old = tmp_path / "old"
    shutil.copytree(copy, old)
    grow(a_log, 30)
    copy_out(a_log, copy)
    seen = (copy / "checkpoint").read_text()
    assert faults(a_log, old) == []
    (fault,) = faults(a_log, old, seen)
    assert fault.startswith("head ahead of the tree")
    other = notes.sign_checkpoint(notes.Checkpoint(ORIGIN, 100, bytes(32)), a_log.signer.seed)
    assert faults(a_log, old, other) == ["head: leaf 99"]


def test_a_folder_without_checkpoint_cannot_be_checked(a_log: Log, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        verify_export(tmp_path, a_log.policy)


def test_the_known_log_is_good_as_an_export(vectors: Path) -> None:
    log = vectors / "known-answers" / "log"
    policy = notes.parse_policy((log / "policy").read_text())
    assert verify_export(log, policy, [(log / "checkpoint.2").read_text()]).faults == []
