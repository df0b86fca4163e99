"""Sealed phone numbers: made by whoever receives a message, opened by the relay alone (keys.md section 4).

Apart from `members`, so that the staff app can be kept from reaching it.
"""

from collections.abc import Mapping
from uuid import UUID

from service.errors import CannotOpen
from service.vault import boxes
from service.vault.boxes import context_of


def new_contact(relay_public: bytes, relay_generation: int, contact: UUID, e164: str) -> tuple[bytes, bytes]:
    """Return (sealed contact key, sealed number) of a phone number (keys.md section 4).

    relay_public, relay_generation: from a relay note. The number is under a key of its own, so that at each change
    of the relay's key only that key is sealed anew. e164: as "+855…".
    Raises ValueError if the number is not ASCII or the key cannot be sealed to.
    """
    key = boxes.random_bytes()
    number = boxes.aead_seal(key, e164.encode("ascii"), context_of("contact", contact))
    return boxes.seal(relay_public, context_of("contact", contact, relay_generation), key), number


def contact_row(row: Mapping[str, object]) -> dict[str, object]:
    """Return the fixed columns of a ``contact`` row, for its tag (keys.md section 3)."""
    names = ("id", "pseudonym", "epoch", "relay_generation", "key_sealed", "number_sealed")
    return {"table": "contact", **{name: row[name] for name in names}}


def open_contact(
    relay_private: bytes, relay_generation: int, contact: UUID, ck_sealed: bytes, number_sealed: bytes
) -> str:
    """Return the phone number of a contact, for the one message that is sent now (keys.md section 4).

    Raises CannotOpen for another generation or contact, a wrong key or a changed byte.
    """
    key = boxes.unseal(relay_private, context_of("contact", contact, relay_generation), ck_sealed)
    if len(key) != boxes.KEY:
        raise CannotOpen("the seal does not hold a contact key")
    try:
        return boxes.aead_open(key, number_sealed, context_of("contact", contact)).decode("ascii")
    except UnicodeDecodeError:
        raise CannotOpen("the seal does not hold a number") from None
