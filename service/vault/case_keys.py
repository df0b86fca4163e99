"""Sealing a case's key to a unit: apart from `members`, which opens, so that the public app can be kept from that."""

from uuid import UUID

from service.vault import boxes
from service.vault.boxes import context_of


def seal_case_key(
    unit_public: bytes, case: UUID, generation: int, unit: str, unit_generation: int, case_private: bytes
) -> bytes:
    """Return a case's private half sealed to a unit, 112 bytes (keys.md section 4).

    unit_public: from the cards, never from a row. generation: of the case key; unit_generation: of the unit's.
    Raises ValueError for a unit id that cannot stand in a context or a key that cannot be sealed to.
    """
    return boxes.seal(unit_public, context_of("case", case, generation, unit, unit_generation), case_private)
