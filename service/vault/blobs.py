"""The monitor unit's copy of an event: it opens histories, never content (keys.md section 4)."""

from nacl import bindings
from nacl.exceptions import CryptoError

from service.errors import CannotOpen

BLOCKS = (2048, 4096, 16384)


def pad_event(data: bytes) -> bytes:
    """Return `data` padded by ISO 7816-4 to 2,048, 4,096 or 16,384 bytes (ledger.md section 1).

    Raises ValueError when it does not fit with its one byte of padding.
    """
    for block in BLOCKS:
        if len(data) < block:
            return data + b"\x80" + bytes(block - len(data) - 1)
    raise ValueError("an event must be smaller than 16 KiB")


def seal_event(monitor_public: bytes, k_e: bytes, body: bytes) -> bytes:
    """Return the blob of an event: its salt `k_e` (32 bytes) and bytes, sealed to the monitor unit."""
    return bindings.crypto_box_seal(pad_event(k_e + body), monitor_public)


def open_event(monitor_private: bytes, blob: bytes) -> tuple[bytes, bytes]:
    """Return salt and bytes of the event in `blob`. Raises CannotOpen."""
    try:
        public = bindings.crypto_scalarmult_base(monitor_private)
        data = bindings.crypto_box_seal_open(blob, public, monitor_private)
        plain = bindings.sodium_unpad(data, len(data))
    except (CryptoError, ValueError):
        raise CannotOpen("This copy of an event does not open.") from None
    return plain[:32], plain[32:]
