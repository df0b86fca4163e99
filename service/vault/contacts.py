"""Sealed phone numbers, as whoever receives a message makes them, and the tags of their rows (keys.md section 4).

Apart from `members`, so that the staff app can be kept from reaching it, and from `relaying`, which opens them.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from uuid import UUID

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


def tip_tag(row_key: bytes, contact: UUID, tip: UUID | None) -> bytes:
    """Return the tag of which tip a contact's later messages join: of another's case, and its unit would read them.

    Apart from the row's other tag, because the public process writes it and the worker writes the rest.
    """
    return boxes.row_tag(row_key, {"table": "contact.tip", "id": contact, "tip": tip})


def quiet_tag(row_key: bytes, contact: UUID, opted_out_at: datetime | None, quiet_until: datetime | None) -> bytes:
    """Return the tag of when a contact may be written to: without it an opt-out could be taken back by a row."""
    moments = {"opted_out_at": opted_out_at, "quiet_until": quiet_until}
    texts = {name: None if at is None else at.astimezone(UTC).isoformat() for name, at in moments.items()}
    return boxes.row_tag(row_key, {"table": "contact.quiet", "id": contact, **texts})
