"""Hashing, growing, proving and checking, against the RFC, the published vectors and a naive tree."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import settings as budget
from hypothesis import strategies as st

from service.ledger.merkle import (
    EMPTY_ROOT,
    RightEdge,
    edge_widths,
    is_extension,
    is_included,
    leaf_hash,
    node_hash,
    prove_consistency,
    prove_inclusion,
    tree_root,
)
from service.ledger.tiles import nodes_from
from tests.service.ledger import naive


class Kept:
    """A log in memory: the tiles that an edge gives out, and how often they were asked for."""

    def __init__(self, leaves: list[bytes]) -> None:
        self.edge = RightEdge()
        self.tiles: dict[tuple[int, int], bytes] = {}
        for level, n, tile in self.edge.extend([leaf_hash(leaf) for leaf in leaves]):
            self.tiles[level, n] = tile
        for level, n, tile in self.edge.partial():
            self.tiles[level, n] = tile
        self.nodes = nodes_from(lambda names: [self.tiles[name] for name in names])


def some_leaves(count: int) -> list[bytes]:
    return [b"leaf %d" % n for n in range(count)]


sizes = st.integers(1, 90) | st.integers(250, 262) | st.sampled_from([511, 512, 513, 767, 1030])


# --- the RFC's own example: seven leaves d0 to d6, section 2.1.3 ---


def test_the_tree_of_seven_leaves_of_the_rfc() -> None:
    a, b, c, d, e, f, j = (leaf_hash(one) for one in some_leaves(7))
    g, h, i = node_hash(a, b), node_hash(c, d), node_hash(e, f)
    k, l = node_hash(g, h), node_hash(i, j)  # noqa: E741 - the letters of the RFC
    kept = Kept(some_leaves(7))
    assert kept.edge.root() == node_hash(k, l)
    assert prove_inclusion(kept.nodes, 0, 7) == [b, h, l]
    assert prove_inclusion(kept.nodes, 3, 7) == [c, g, l]
    assert prove_inclusion(kept.nodes, 4, 7) == [f, j, k]
    assert prove_inclusion(kept.nodes, 6, 7) == [i, k]
    assert prove_consistency(kept.nodes, 3, 7) == [c, d, g, l]
    assert prove_consistency(kept.nodes, 4, 7) == [l]
    assert prove_consistency(kept.nodes, 6, 7) == [i, j, k]


def test_the_empty_tree_is_the_hash_of_nothing_and_a_leaf_is_no_node() -> None:
    assert RightEdge().root() == EMPTY_ROOT == naive.h(b"")
    assert leaf_hash(b"") == naive.h(b"\x00") != EMPTY_ROOT
    left, right = leaf_hash(b"a"), leaf_hash(b"b")
    assert leaf_hash(left + right) != node_hash(left, right)  # a node cannot be passed off as a leaf


# --- published vectors ---


def cases(folder: Path) -> list[Any]:
    return [json.loads(path.read_text()) for path in sorted(folder.rglob("*.json"))]


def raw(text: str | None) -> bytes:
    return base64.b64decode(text or "")


def test_the_published_inclusion_proofs(vectors: Path) -> None:
    found = cases(vectors / "merkle-proofs" / "inclusion")
    assert len(found) == 98
    for case in found:
        proof = [raw(one) for one in case["proof"] or []]
        good = is_included(raw(case["root"]), case["treeSize"], case["leafIdx"], raw(case["leafHash"]), proof)
        assert good is not case["wantErr"], case["desc"]


def test_the_published_consistency_proofs(vectors: Path) -> None:
    found = cases(vectors / "merkle-proofs" / "consistency")
    assert len(found) == 98
    for case in found:
        proof = [raw(one) for one in case["proof"] or []]
        good = is_extension(raw(case["root1"]), case["size1"], raw(case["root2"]), case["size2"], proof)
        assert good is not case["wantErr"], case["desc"]


# --- against the naive tree ---


@given(sizes, st.data())
def test_every_root_and_proof_is_that_of_the_naive_tree(size: int, data: Any) -> None:
    leaves = some_leaves(size)
    kept = Kept(leaves)
    index, old = data.draw(st.integers(0, size - 1)), data.draw(st.integers(1, size))
    root, old_root = naive.root(leaves), naive.root(leaves[:old])
    assert kept.edge.root() == tree_root(kept.nodes, size) == root
    assert tree_root(kept.nodes, old) == old_root
    inclusion = prove_inclusion(kept.nodes, index, size)
    assert inclusion == naive.path(index, leaves)
    assert is_included(root, size, index, leaf_hash(leaves[index]), inclusion)
    consistency = prove_consistency(kept.nodes, old, size)
    assert consistency == naive.consistency(old, leaves)
    assert is_extension(old_root, old, root, size, consistency)


@given(sizes, st.data())
def test_a_proof_with_one_bit_changed_a_hash_more_or_less_or_of_another_place_is_refused(size: int, data: Any) -> None:
    leaves = some_leaves(size)
    kept = Kept(leaves)
    root = kept.edge.root()
    index, old = data.draw(st.integers(0, size - 1)), data.draw(st.integers(1, size))
    leaf, old_root = leaf_hash(leaves[index]), tree_root(kept.nodes, old)
    inclusion, consistency = prove_inclusion(kept.nodes, index, size), prove_consistency(kept.nodes, old, size)
    at, bit = data.draw(st.integers(0, 30)), data.draw(st.integers(0, 255))

    def flipped(one: bytes) -> bytes:
        return (int.from_bytes(one, "big") ^ (1 << bit)).to_bytes(32, "big")

    def broken(proof: list[bytes]) -> list[list[bytes]]:
        spoilt = [[*proof, root], [root, *proof], proof[:-1], [*proof, b""]] if proof else [[root], [b""]]
        n = at % len(proof) if proof else 0
        return spoilt + ([[*proof[:n], flipped(proof[n]), *proof[n + 1 :]]] if proof else [])

    for proof in broken(inclusion):
        assert not is_included(root, size, index, leaf, proof)
    assert not is_included(flipped(root), size, index, leaf, inclusion)
    assert not is_included(root, size, index, flipped(leaf), inclusion)
    assert not is_included(root, size, size, leaf, inclusion)
    assert size == 1 or not is_included(root, size, (index + 1) % size, leaf, inclusion)
    for proof in broken(consistency):
        assert not is_extension(old_root, old, root, size, proof)
    assert not is_extension(flipped(old_root), old, root, size, consistency)
    assert not is_extension(old_root, old, flipped(root), size, consistency)
    assert not is_extension(root, size + 1, root, size, consistency)
    assert not is_extension(EMPTY_ROOT, 0, root, size, [])


@given(st.lists(st.integers(0, 300), max_size=6))
@example([256, 0, 256])
@budget(max_examples=25)
def test_growing_in_any_steps_gives_the_same_tree_and_the_same_tiles(steps: list[int]) -> None:
    leaves = some_leaves(sum(steps))
    at_once, edge, tiles, done = Kept(leaves), RightEdge(), {}, 0
    for step in steps:
        hashes = [leaf_hash(leaf) for leaf in leaves[done : done + step]]
        edge = RightEdge(edge.size, [bytes(tile) for tile in edge.tiles])  # as after a restart
        tiles |= {(level, n): tile for level, n, tile in edge.extend(hashes)}
        done += step
        assert edge.root() == tree_root(at_once.nodes, done)
    tiles |= {(level, n): tile for level, n, tile in edge.partial()}
    assert tiles == at_once.tiles


def test_a_grown_copy_leaves_the_edge_as_it_was() -> None:
    edge = Kept(some_leaves(300)).edge
    before = edge.root()
    edge.copy().extend([leaf_hash(b"more")])
    assert (edge.size, edge.root()) == (300, before)


def test_an_edge_of_another_width_and_a_leaf_that_is_no_hash_are_refused() -> None:
    assert edge_widths(70_000) == [112, 17, 1]
    with pytest.raises(ValueError, match="right edge"):
        RightEdge(3, [bytes(64)])
    with pytest.raises(ValueError, match="32 bytes"):
        RightEdge().extend([b"short"])


def test_there_is_no_proof_of_what_is_not_there() -> None:
    kept = Kept(some_leaves(5))
    for index in (-1, 5):
        with pytest.raises(ValueError, match="no such leaf"):
            prove_inclusion(kept.nodes, index, 5)
    with pytest.raises(ValueError, match="larger"):
        prove_consistency(kept.nodes, 6, 5)
    assert prove_consistency(kept.nodes, 0, 5) == prove_consistency(kept.nodes, 5, 5) == []
