"""2-of-3 recovery with nested boxes: any two of three organisations open it together (keys.md section 6.10)."""

from collections.abc import Mapping
from itertools import permutations

from service.errors import CannotOpen
from service.vault import boxes
from service.vault.boxes import context_of

CUSTODIANS = 3


def seal_unit(recovery_public: bytes, unit: str, generation: int, unit_private: bytes) -> bytes:
    """Return a unit's private half sealed to the recovery key (keys.md section 4)."""
    return boxes.seal(recovery_public, context_of("unit-recovery", unit, generation), unit_private)


def open_unit(recovery_private: bytes, unit: str, generation: int, sealed: bytes, *, unit_public: bytes) -> bytes:
    """Return a unit's private half from its recovery seal. Raises CannotOpen if it does not give `unit_public`."""
    private = boxes.unseal(recovery_private, context_of("unit-recovery", unit, generation), sealed)
    if len(private) != boxes.KEY or boxes.public_of(private) != unit_public:
        raise CannotOpen("the recovered key is not the unit's")
    return private


def share(recovery_private: bytes, custodians: Mapping[str, bytes]) -> dict[tuple[str, str], bytes]:
    """Return the three nested boxes of the recovery key, by (outer, inner) custodian: B‖A, C‖B, A‖C.

    custodians: three names, ASCII without ``|``, with their X25519 public keys. Any two of them open one box together:
    first the outer one, then the inner. Raises ValueError for another number, or a key that serves twice.
    """
    names = list(custodians)
    if len(names) != CUSTODIANS or len(set(custodians.values())) != CUSTODIANS:
        raise ValueError("three custodians, each with a key of its own")
    a, b, c = names
    return {(x, y): _nested(recovery_private, x, y, custodians) for x, y in ((b, a), (c, b), (a, c))}


def _nested(secret: bytes, outer: str, inner: str, custodians: Mapping[str, bytes]) -> bytes:
    place = context_of("recovery", outer, inner)
    return boxes.seal(custodians[outer], place, boxes.seal(custodians[inner], place, secret))


def combine(nested: Mapping[tuple[str, str], bytes], privates: Mapping[str, bytes], *, recovery_public: bytes) -> bytes:
    """Return the recovery key from the boxes and the private keys of two custodians, by name.

    Raises CannotOpen when these two do not open it: one alone, the same twice, or keys of others.
    """
    for outer, inner in permutations(privates, 2):
        sealed = nested.get((outer, inner))
        if sealed is None:
            continue
        place = context_of("recovery", outer, inner)
        try:
            private = boxes.unseal(privates[inner], place, boxes.unseal(privates[outer], place, sealed))
        except CannotOpen:
            continue
        if len(private) == boxes.KEY and boxes.public_of(private) == recovery_public:
            return private
    raise CannotOpen("these keys do not open the recovery key: two different custodians of the three are needed")
