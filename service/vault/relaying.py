"""Opening phone numbers, and sealing them to the relay's next key: for the worker alone (keys.md 4, 6.11)."""

from uuid import UUID

from service.errors import CannotOpen
from service.vault import boxes
from service.vault.boxes import context_of


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


def reseal_contact(
    relay_private: bytes, generation: int, contact: UUID, ck_sealed: bytes, next_public: bytes, next_generation: int
) -> bytes:
    """Return the contact key sealed to another generation of the relay's key; the number itself stays as it is.

    Raises CannotOpen as `open_contact` does, ValueError for a key that cannot be sealed to.
    """
    key = boxes.unseal(relay_private, context_of("contact", contact, generation), ck_sealed)
    if len(key) != boxes.KEY:
        raise CannotOpen("the seal does not hold a contact key")
    return boxes.seal(next_public, context_of("contact", contact, next_generation), key)
