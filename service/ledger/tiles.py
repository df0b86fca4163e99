"""Tiles of height 8 and bundles of entries (c2sp.org/tlog-tiles; ledger.md section 2). Pure."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from service.ledger.merkle import HASH, HEIGHT, WIDTH, Node, perfect_root

LEAF = 112
ENTRIES = -1  # the level of entry bundles, which lie beside the tiles of level 0
HIGHEST = 63  # levels that the specification allows; a tree of 2^63 leaves needs 8
_LENGTH = LEAF.to_bytes(2, "big")
_PATH = re.compile(
    r"tile/(?P<level>entries|0|[1-9][0-9]?)/(?P<n>(?:x[0-9]{3}/)*[0-9]{3})(?:\.p/(?P<width>[1-9][0-9]{0,2}))?"
)


@dataclass(frozen=True, slots=True, order=True)
class Tile:
    """The name of a tile: its level (ENTRIES for a bundle), its place there, and how many hashes or entries it has."""

    level: int
    n: int
    width: int = WIDTH

    @property
    def path(self) -> str:
        """Its path in an export or below ``/log/``, such as ``tile/0/x001/234.p/5``."""
        groups = [f"{self.n % 1000:03d}"]
        rest = self.n // 1000
        while rest:
            groups.insert(0, f"x{rest % 1000:03d}")
            rest //= 1000
        level = "entries" if self.level == ENTRIES else str(self.level)
        partial = "" if self.width == WIDTH else f".p/{self.width}"
        return f"tile/{level}/{'/'.join(groups)}{partial}"


def parse_path(path: str) -> Tile | None:
    """Return the tile at `path`, or None if no tile has that path: each has exactly one."""
    found = _PATH.fullmatch(path)
    if found is None:
        return None
    level = ENTRIES if found["level"] == "entries" else int(found["level"])
    tile = Tile(level, int(found["n"].replace("x", "").replace("/", "")), int(found["width"] or WIDTH))
    # a leading x000 and a written width of 256 are refused by the first comparison
    return tile if tile.path == path and level <= HIGHEST and tile.width <= WIDTH else None


def is_within(tile: Tile, size: int) -> bool:
    """Say whether a tree of `size` leaves has that tile, as wide as it says or wider."""
    nodes = size >> (HEIGHT * max(tile.level, 0))
    return tile.n * WIDTH + tile.width <= nodes


def tiles_of(size: int) -> Iterator[Tile]:
    """Yield all tiles of hashes of a tree of `size` leaves, level by level, the last of a level partial."""
    level, nodes = 0, size
    while nodes:
        yield from _row(level, nodes)
        level, nodes = level + 1, nodes >> HEIGHT


def bundles_of(size: int) -> Iterator[Tile]:
    """Yield all bundles of entries of a tree of `size` leaves, the last one partial."""
    yield from _row(ENTRIES, size)


def _row(level: int, nodes: int) -> Iterator[Tile]:
    for n in range(nodes // WIDTH):
        yield Tile(level, n)
    if nodes % WIDTH:
        yield Tile(level, nodes // WIDTH, nodes % WIDTH)


def entry_bundle(leaves: Iterable[bytes]) -> bytes:
    """Return the bundle of `leaves`, 112 bytes each: every one after its length, two bytes. Raises ValueError."""
    parts = []
    for leaf in leaves:
        if len(leaf) != LEAF:
            raise ValueError("a leaf has 112 bytes")
        parts.append(_LENGTH + leaf)
    return b"".join(parts)


def split_bundle(bundle: bytes) -> list[bytes]:
    """Return the leaves of a bundle. Raises ValueError unless it holds whole leaves of 112 bytes and nothing else."""
    step = LEAF + 2
    if len(bundle) % step or any(bundle[at : at + 2] != _LENGTH for at in range(0, len(bundle), step)):
        raise ValueError("this is no bundle of leaves")
    return [bundle[at + 2 : at + step] for at in range(0, len(bundle), step)]


def nodes_from(read: Callable[[Sequence[tuple[int, int]]], Sequence[bytes]]) -> Callable[[Sequence[Node]], list[bytes]]:
    """Return what gives the hashes of nodes by name (`merkle.Nodes`) out of tiles.

    read: gives the joined hashes of the tiles named (level, place), each as wide as it is; asked once for all.
    What comes back raises LookupError for a node that the tiles do not hold.
    """

    def nodes(wanted: Sequence[Node]) -> list[bytes]:
        places = [_place(height, n) for height, n in wanted]
        names = list(dict.fromkeys((level, tile) for level, tile, _, _ in places))
        found = dict(zip(names, read(names), strict=True))
        return [_cut(found[level, tile], first, count) for level, tile, first, count in places]

    return nodes


def _place(height: int, n: int) -> tuple[int, int, int, int]:
    """Return level, tile, first hash and number of hashes that node (height, n) is the root of."""
    level, rest = divmod(height, HEIGHT)
    first = n << rest
    return level, first // WIDTH, first % WIDTH, 1 << rest


def _cut(tile: bytes, first: int, count: int) -> bytes:
    hashes = bytes(tile[first * HASH : (first + count) * HASH])
    if len(hashes) != count * HASH:
        raise LookupError("a tile is narrower than the tree")
    return perfect_root(hashes)
