"""Paths, bundles and reading of tiles, against the specification's examples and a published log."""

import base64
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.ledger.merkle import HASH, RightEdge, leaf_hash, prove_inclusion
from service.ledger.tiles import (
    ENTRIES,
    Tile,
    bundles_of,
    entry_bundle,
    is_within,
    nodes_from,
    parse_path,
    split_bundle,
    tiles_of,
)


@pytest.mark.parametrize(
    ("tile", "path"),
    [
        (Tile(0, 0), "tile/0/000"),
        (Tile(0, 999), "tile/0/999"),
        (Tile(1, 1000), "tile/1/x001/000"),
        (Tile(0, 1234067), "tile/0/x001/x234/067"),
        (Tile(0, 273, 112), "tile/0/273.p/112"),
        (Tile(ENTRIES, 273, 112), "tile/entries/273.p/112"),
        (Tile(ENTRIES, 5), "tile/entries/005"),
    ],
)
def test_a_tile_has_one_path_and_is_read_back_from_it(tile: Tile, path: str) -> None:
    assert tile.path == path
    assert parse_path(path) == tile


@pytest.mark.parametrize(
    "path",
    [
        *("tile/0/x000/001", "tile/0/1", "tile/0/0001", "tile/0/000.p/256", "tile/0/000.p/0", "tile/0/000.p/01"),
        *("tile/00/000", "tile/64/000", "tile/-1/000", "tile/x/000", "tile/0/000/", "/tile/0/000", "tile/0/../1/000"),
        *("tile/0/001/000", "tile/0/x001", "tile/0/000.p/", "tile/0/000\n", "tile/0/٠٠٠", "tile/entries/000.p/999"),
    ],
)
def test_any_other_path_is_no_tile(path: str) -> None:
    assert parse_path(path) is None


@given(st.integers(0, 7), st.integers(0, 10**9), st.integers(1, 256))
def test_every_name_comes_back_from_its_path(level: int, n: int, width: int) -> None:
    assert parse_path(Tile(level, n, width).path) == Tile(level, n, width)


def test_the_tiles_of_70_000_leaves_are_those_of_the_reference() -> None:
    paths = [tile.path for tile in tiles_of(70_000)]
    assert len(paths) == 274 + 2 + 1
    assert paths[:1] + paths[272:] == [
        *("tile/0/000", "tile/0/272", "tile/0/273.p/112", "tile/1/000", "tile/1/001.p/17", "tile/2/000.p/1")
    ]
    assert [tile.path for tile in bundles_of(256 + 3)] == ["tile/entries/000", "tile/entries/001.p/3"]
    assert list(tiles_of(0)) == []


@given(st.integers(0, 140_000))
def test_a_tree_holds_its_tiles_and_nothing_wider(size: int) -> None:
    rows: dict[int, Tile] = {tile.level: tile for tile in [*tiles_of(size), *bundles_of(size)]}
    for last in rows.values():
        wider = Tile(last.level, last.n, last.width + 1) if last.width < 256 else Tile(last.level, last.n + 1, 1)
        assert is_within(last, size)
        assert not is_within(wider, size)
    assert not is_within(Tile(len(rows), 0, 1), size)


def test_a_bundle_gives_its_leaves_back_and_refuses_anything_else() -> None:
    leaves = [bytes([n]) * 112 for n in range(3)]
    bundle = entry_bundle(leaves)
    assert bundle[:2] == b"\x00\x70"
    assert split_bundle(bundle) == leaves
    assert split_bundle(b"") == []
    for wrong in (bundle[:-1], bundle + b"\x00", b"\x00\x71" + bundle[2:]):
        with pytest.raises(ValueError, match="no bundle"):
            split_bundle(wrong)
    with pytest.raises(ValueError, match="112"):
        entry_bundle([b"short"])


def test_a_tile_that_is_too_narrow_is_said_and_nothing_is_made_up() -> None:
    nodes = nodes_from(lambda names: [bytes(3 * HASH)])
    with pytest.raises(LookupError, match="narrower"):
        prove_inclusion(nodes, 0, 5)


def test_a_published_log_is_built_again_byte_for_byte(vectors: Path) -> None:
    log = vectors / "tile-log"
    bundle = (log / "tile" / "entries" / "000.p" / "15").read_bytes()
    entries, at = [], 0
    while at < len(bundle):
        length = int.from_bytes(bundle[at : at + 2], "big")
        entries.append(bundle[at + 2 : at + 2 + length])
        at += 2 + length
    assert len(entries) == 15
    edge = RightEdge()
    for size in range(16):
        checkpoint = (log / f"checkpoint.{size}").read_text().split("\n")
        assert (checkpoint[1], base64.b64decode(checkpoint[2])) == (str(size), edge.root())
        if size:
            ((_, _, tile),) = edge.partial()
            assert tile == (log / "tile" / "0" / "000.p" / str(size)).read_bytes()
        if size < 15:
            edge.extend([leaf_hash(entries[size])])
