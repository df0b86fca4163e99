"""The Merkle tree of RFC 6962: hashing, growing, proving, checking. Pure; nothing here recurses or keeps a whole tree.

A node is named by its level and its place there: (0, n) is the hash of leaf n, (h, n) the root of the 2^h leaves from
n·2^h on, all of which exist. Tiles (`service.ledger.tiles`) keep the levels 0, 8, 16, …; the others are hashed again.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence

HASH = 32
HEIGHT = 8  # of a tile
WIDTH = 1 << HEIGHT  # hashes in a full tile
EMPTY_ROOT = hashlib.sha256(b"").digest()

Node = tuple[int, int]
Nodes = Callable[[Sequence[Node]], Sequence[bytes]]
_sha256 = hashlib.sha256


def leaf_hash(leaf: bytes) -> bytes:
    """Return the leaf's hash, 32 bytes (RFC 6962 section 2.1)."""
    return _sha256(b"\x00" + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of two nodes, 32 bytes (RFC 6962 section 2.1)."""
    return _sha256(b"\x01" + left + right).digest()


def perfect_root(hashes: bytes) -> bytes:
    """Return the root over neighbours whose number is a power of two. hashes: 32 bytes each, joined."""
    while len(hashes) > HASH:
        hashes = b"".join([_sha256(b"\x01" + hashes[at : at + 64]).digest() for at in range(0, len(hashes), 64)])
    return hashes


def perfect_parts(low: int, high: int) -> list[Node]:
    """Return the nodes that cover leaves `low` to `high` - 1, left to right.

    low: a multiple of the largest power of two below high - low, as in every subtree of the RFC.
    """
    parts = []
    while low < high:
        height = (high - low).bit_length() - 1
        parts.append((height, low >> height))
        low += 1 << height
    return parts


def fold(hashes: Sequence[bytes]) -> bytes:
    """Return the root over the nodes of `perfect_parts`, left to right. [] is the empty tree (RFC 6962 section 2.1)."""
    if not hashes:
        return EMPTY_ROOT
    root = hashes[-1]
    for left in reversed(hashes[:-1]):
        root = node_hash(left, root)
    return root


class RightEdge:
    """A tree that grows, of which only the last tile of each level is kept: some kilobytes at any size.

    tiles: those tiles from level 0 up, each the joined hashes of its nodes; a full one is empty again.
    """

    def __init__(self, size: int = 0, tiles: Sequence[bytes] = ()) -> None:
        """Begin with the edge of a tree of `size` leaves. Raises ValueError if the tiles are not that wide."""
        self.size = size
        self.tiles = [bytearray(tile) for tile in tiles]
        if [len(tile) // HASH for tile in self.tiles] != edge_widths(size):
            raise ValueError("these tiles are not the right edge of such a tree")

    def copy(self) -> "RightEdge":
        """Return the same edge, to grow apart from this one."""
        return RightEdge(self.size, [bytes(tile) for tile in self.tiles])

    def extend(self, hashes: Sequence[bytes]) -> list[tuple[int, int, bytes]]:
        """Append leaf hashes, 32 bytes each, and return every tile that this filled: level, place, 8,192 bytes."""
        full = []
        for one in hashes:
            if len(one) != HASH:
                raise ValueError("a leaf hash has 32 bytes")
            level, carried = 0, one
            self.size += 1
            while True:
                if level == len(self.tiles):
                    self.tiles.append(bytearray())
                tile = self.tiles[level]
                tile += carried
                if len(tile) < WIDTH * HASH:
                    break
                done = bytes(tile)
                full.append((level, (self.size >> (HEIGHT * (level + 1))) - 1, done))
                carried = perfect_root(done)
                tile.clear()
                level += 1
        return full

    def partial(self) -> Iterator[tuple[int, int, bytes]]:
        """Yield the tiles that are begun and not full: level, place, joined hashes."""
        for level, tile in enumerate(self.tiles):
            if tile:
                yield level, self.size >> (HEIGHT * (level + 1)), bytes(tile)

    def root(self) -> bytes:
        """Return the tree's root, 32 bytes."""
        parts = []
        for tile in reversed(self.tiles):
            at = 0
            for height, _ in perfect_parts(0, len(tile) // HASH):
                width = HASH << height
                parts.append(perfect_root(bytes(tile[at : at + width])))
                at += width
        return fold(parts)


def edge_widths(size: int) -> list[int]:
    """Return how many hashes the last tile of each level holds in a tree of `size` leaves, from level 0; 0 for none."""
    widths = []
    while size:
        widths.append(size & (WIDTH - 1))
        size >>= HEIGHT
    return widths


# --- proofs ---------------------------------------------------------------------------------------------


def tree_root(nodes: Nodes, size: int) -> bytes:
    """Return the root of the first `size` leaves. nodes: gives the hashes of nodes by name."""
    return fold(nodes(perfect_parts(0, size)))


def prove_inclusion(nodes: Nodes, index: int, size: int) -> list[bytes]:
    """Return the proof that leaf `index` is in the tree of `size` leaves, from its sibling up (RFC 9162 2.1.3.1).

    nodes: gives the hashes of nodes by name. Raises ValueError if there is no such leaf.
    """
    if not 0 <= index < size:
        raise ValueError("there is no such leaf in this tree")
    spans: list[tuple[int, int]] = []
    low, high = 0, size
    while high - low > 1:
        middle = low + _largest_power_below(high - low)
        if index < middle:
            spans.append((middle, high))
            high = middle
        else:
            spans.append((low, middle))
            low = middle
    return _hashes_of(nodes, spans[::-1])


def prove_consistency(nodes: Nodes, old: int, size: int) -> list[bytes]:
    """Return the proof that the tree of `size` leaves begins with that of `old` leaves (RFC 9162 2.1.4.1).

    nodes: gives the hashes of nodes by name. It is empty from 0 and for equal sizes.
    Raises ValueError if old > size.
    """
    if not 0 <= old <= size:
        raise ValueError("a tree never begins with a larger one")
    if old in (0, size):
        return []
    spans: list[tuple[int, int]] = []
    low, high, whole = 0, size, True
    while high != old:
        middle = low + _largest_power_below(high - low)
        if old <= middle:
            spans.append((middle, high))
            high = middle
        else:
            spans.append((low, middle))
            low, whole = middle, False
    if not whole:
        spans.append((low, high))
    return _hashes_of(nodes, spans[::-1])


def is_included(root: bytes, size: int, index: int, leaf: bytes, proof: Sequence[bytes]) -> bool:
    """Say whether `proof` shows that the leaf hash `leaf` stands at `index` in the tree (RFC 9162 section 2.1.3.2)."""
    if not 0 <= index < size or not _are_hashes([leaf, *proof]):
        return False
    place, last, found = index, size - 1, leaf
    for one in proof:
        if last == 0:
            return False
        if place & 1 or place == last:
            found = node_hash(one, found)
            while not place & 1 and place:
                place, last = place >> 1, last >> 1
        else:
            found = node_hash(found, one)
        place, last = place >> 1, last >> 1
    return last == 0 and found == root


def is_extension(old_root: bytes, old: int, root: bytes, size: int, proof: Sequence[bytes]) -> bool:
    """Say whether `proof` shows that the tree of `size` begins with that of `old` leaves (RFC 9162 section 2.1.4.2).

    Never from size 0: whoever takes such a step checks for himself that the proof is empty and the old root that of
    nothing. The length of the roots is checked where they are read.
    """
    if not 0 < old <= size or not _are_hashes(proof):
        return False
    if old == size:
        return not proof and old_root == root
    hashes = list(proof)
    if old & (old - 1) == 0:
        hashes.insert(0, old_root)  # the old tree is perfect: its root is the first node
    if not hashes:
        return False
    place, last = old - 1, size - 1
    while place & 1:
        place, last = place >> 1, last >> 1
    before = after = hashes[0]
    for one in hashes[1:]:
        if last == 0:
            return False
        if place & 1 or place == last:
            before, after = node_hash(one, before), node_hash(one, after)
            while not place & 1 and place:
                place, last = place >> 1, last >> 1
        else:
            after = node_hash(after, one)
        place, last = place >> 1, last >> 1
    return last == 0 and before == old_root and after == root


def _largest_power_below(count: int) -> int:
    """Return the largest power of two smaller than `count`, which is at least 2."""
    return 1 << ((count - 1).bit_length() - 1)


def _hashes_of(nodes: Nodes, spans: Sequence[tuple[int, int]]) -> list[bytes]:
    """Return the root over each span of leaves, asking for all nodes at once."""
    parts = [perfect_parts(low, high) for low, high in spans]
    found = iter(nodes([part for several in parts for part in several]))
    return [fold([next(found) for _ in several]) for several in parts]


def _are_hashes(hashes: Sequence[bytes]) -> bool:
    return all(len(one) == HASH for one in hashes)
