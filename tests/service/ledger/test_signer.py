"""The signer refuses a second history, whatever it is asked and whenever it dies (ledger.md sections 5 and 12.4)."""

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from service.errors import Fork, Misconfigured, Stale
from service.ledger import notes, signer
from service.ledger.merkle import EMPTY_ROOT, RightEdge, leaf_hash, prove_consistency, tree_root
from service.ledger.signer import Signer
from service.ledger.tiles import nodes_from

ORIGIN = "bamboo.example/log"
SEED = b"\x01" * 32


class Tree:
    """A history: `word` makes another one of it."""

    def __init__(self, word: bytes = b"ours", size: int = 20) -> None:
        edge = RightEdge()
        edge.extend([leaf_hash(word + bytes([n])) for n in range(size)])
        tiles = {(level, n): tile for level, n, tile in edge.partial()}
        self.nodes = nodes_from(lambda names: [tiles[name] for name in names])

    def root(self, size: int) -> bytes:
        return tree_root(self.nodes, size)

    def request(self, old: int, size: int) -> tuple[int, int, bytes, list[bytes]]:
        return old, size, self.root(size), prove_consistency(self.nodes, old, size)


OURS, THEIRS = Tree(), Tree(b"theirs")


@pytest.fixture
def made(tmp_path: Path) -> Signer:
    one = Signer(ORIGIN, tmp_path / "signer", SEED)
    one.create()
    return one


def size_of(made: Signer) -> int:
    return notes.open_checkpoint(made.head(), made.verifier).size


def refused(made: Signer) -> list[Any]:
    return [json.loads(path.read_bytes()) for path in (made.folder / "refused").glob("*")]


def test_it_begins_with_the_empty_tree_and_signs_what_grows(made: Signer) -> None:
    assert notes.open_checkpoint(made.head(), made.verifier) == notes.Checkpoint(ORIGIN, 0, EMPTY_ROOT)
    for old, size in ((0, 1), (1, 7), (7, 8), (8, 20)):
        note = made.sign(*OURS.request(old, size))
        assert notes.open_checkpoint(note, made.verifier) == notes.Checkpoint(ORIGIN, size, OURS.root(size))
        assert made.head() == note
    assert refused(made) == []


def test_the_same_head_again_gets_the_same_note(made: Signer) -> None:
    note = made.sign(*OURS.request(0, 5))
    assert made.sign(*OURS.request(0, 5)) == made.sign(*OURS.request(5, 5)) == note


def test_another_size_than_its_last_is_stale_and_says_which(made: Signer) -> None:
    made.sign(*OURS.request(0, 5))
    made.sign(*OURS.request(5, 9))
    for old, size in ((5, 12), (0, 12), (5, 7), (10, 12)):
        with pytest.raises(Stale) as caught:
            made.sign(*OURS.request(old, size))
        assert caught.value.size == 9
    assert size_of(made) == 9
    assert refused(made) == []  # a leader that woke up late is no forger


@pytest.mark.parametrize(
    "request_of",
    [
        lambda: THEIRS.request(9, 9),  # the same size, another root
        lambda: THEIRS.request(9, 12),
        lambda: (9, 12, OURS.root(12), []),
        lambda: (9, 12, OURS.root(12), [*OURS.request(9, 12)[3], bytes(32)]),
        lambda: (9, 12, THEIRS.root(12), OURS.request(9, 12)[3]),
        lambda: (9, 5, OURS.root(5), []),  # smaller
        lambda: (9, 0, EMPTY_ROOT, []),
    ],
)
def test_another_history_is_refused_kept_and_changes_nothing(made: Signer, request_of: Callable[[], Any]) -> None:
    note = made.sign(*OURS.request(0, 9))
    old, size, root, proof = request_of()
    for _ in range(2):
        with pytest.raises(Fork):
            made.sign(old, size, root, proof)
    assert made.head() == note
    assert refused(made) == [
        {
            "request": {"old": old, "size": size, "root": root.hex(), "proof": [one.hex() for one in proof]},
            "last": {"size": 9, "root": OURS.root(9).hex()},
        }
    ]
    assert made.sign(*OURS.request(9, 12))  # and the true history goes on


def test_from_nothing_no_proof_is_needed_and_none_is_taken(made: Signer) -> None:
    with pytest.raises(Fork):
        made.sign(0, 5, OURS.root(5), [bytes(32)])
    with pytest.raises(Fork):
        made.sign(0, 5, b"short", [])
    assert size_of(made) == 0


def test_a_second_signer_of_the_same_folder_sees_what_the_first_signed(made: Signer) -> None:
    other = Signer(ORIGIN, made.folder, SEED)
    made.sign(*OURS.request(0, 5))
    with pytest.raises(Stale):
        other.sign(*THEIRS.request(0, 7))
    other.sign(*OURS.request(5, 6))
    assert size_of(made) == 6


def test_a_lost_or_spoilt_memory_is_never_made_up(made: Signer) -> None:
    made.sign(*OURS.request(0, 5))
    path = made.folder / "state.json"
    whole = path.read_bytes()
    for spoilt in (b"", whole[:-20], whole.replace(b'"size":5', b'"size":4'), b"[]", b'{"note":7}'):
        path.write_bytes(spoilt)
        with pytest.raises(Misconfigured):
            made.sign(*OURS.request(0, 5))
    path.unlink()
    with pytest.raises(Misconfigured, match="hotline ledger init"):
        made.head()
    path.write_bytes(whole)
    assert size_of(made) == 5
    with pytest.raises(Misconfigured, match="already"):
        made.create()


def test_a_memory_under_another_key_or_origin_is_refused(made: Signer) -> None:
    for other in (Signer(ORIGIN, made.folder, b"\x02" * 32), Signer("other.example/log", made.folder, SEED)):
        with pytest.raises(Misconfigured, match="cannot be read"):
            other.head()


def dies(work: Callable[[], object]) -> None:
    """Run `work` in a process that is killed on the way, as the test patched it."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def test_killed_between_persisting_and_answering_it_never_signs_another_head_of_that_size(
    made: Signer, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.sign(*OURS.request(0, 5))
    persist = signer._persist
    with monkeypatch.context() as patch:
        patch.setattr(signer, "_persist", lambda path, data: (persist(path, data), os._exit(9)))
        dies(lambda: made.sign(*OURS.request(5, 8)))
    assert size_of(made) == 8  # nobody got that signature, and it may be on its way all the same
    with pytest.raises(Fork):
        made.sign(8, 8, THEIRS.root(8), [])
    assert notes.open_checkpoint(made.sign(*OURS.request(5, 8)), made.verifier).size == 8


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_killed_before_the_memory_is_whole_the_old_one_stands(
    made: Signer, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    made.sign(*OURS.request(0, 5))
    with monkeypatch.context() as patch:
        patch.setattr(os if step == "fsync" else Path, step, lambda *_: os._exit(9))
        dies(lambda: made.sign(*OURS.request(5, 8)))
    assert size_of(made) == 5
    assert notes.open_checkpoint(made.sign(*OURS.request(5, 8)), made.verifier).size == 8


def test_a_disk_that_is_full_signs_nothing(made: Signer, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "no space left")

    made.sign(*OURS.request(0, 5))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="no space"):
            made.sign(*OURS.request(5, 8))
    assert size_of(made) == 5


def test_the_memory_is_durable_before_the_signature_leaves(made: Signer, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (steps.append("fsync"), fsync(descriptor)))
    monkeypatch.setattr(Path, "replace", lambda path, to: (steps.append("rename"), replace(path, to)))
    made.sign(*OURS.request(0, 5))
    assert steps == ["fsync", "rename", "fsync"]


def test_a_promise_needs_no_memory(made: Signer) -> None:
    at = datetime(2027, 3, 9, 7, 21, 30, tzinfo=UTC)
    promise = notes.open_promise(made.promise(bytes(32), at), made.verifier)
    assert promise.received == int(at.timestamp())
    (made.folder / "state.json").unlink()
    assert made.promise(bytes(32), at)


def test_its_memory_and_evidence_are_for_its_own_user_alone(made: Signer) -> None:
    made.sign(*OURS.request(0, 5))
    with pytest.raises(Fork):
        made.sign(*THEIRS.request(5, 7))
    for path in made.folder.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path
    assert SEED.hex() not in repr(made)
