"""Envelopes: one sealed message, note or file, with its header bound to it (keys.md section 5)."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from itertools import chain
from uuid import UUID

import nacl.bindings as sodium
from nacl.exceptions import CryptoError

from service.canonical import canonical
from service.errors import CannotOpen
from service.vault import boxes

STEPS = (1024, 2048, 4096, 8192, 16384, 32768)
CHUNK = 65536
LENGTH = 8
STREAM_HEADER = sodium.crypto_secretstream_xchacha20poly1305_HEADERBYTES
CHUNK_TAG = sodium.crypto_secretstream_xchacha20poly1305_ABYTES
MESSAGE = sodium.crypto_secretstream_xchacha20poly1305_TAG_MESSAGE
FINAL = sodium.crypto_secretstream_xchacha20poly1305_TAG_FINAL
NONCE_AND_TAG = 40  # bytes that the AEAD adds to a text


class Kind(StrEnum):
    """What an envelope holds (keys.md section 5)."""

    ACCOUNT = "account"
    MESSAGE = "message"
    NOTE = "note"
    FILE = "file"
    QUESTION = "question"
    REPLY = "reply"
    FACTS = "facts"
    META = "meta"


@dataclass(frozen=True, slots=True)
class Envelope:
    """A sealed text as it is stored: the header's bytes, the content key's seal and the body."""

    header: bytes
    seal: bytes
    body: bytes


def header(case: UUID, generation: int, hour: datetime, item: UUID, kind: Kind) -> bytes:
    """Return the header of an envelope, canonical JSON to be stored as it is (keys.md section 5).

    generation: of the case key, from 1. hour: any aware time in the hour of receipt; only its UTC hour is kept.
    Two headers of the same values are equal bytes, so a stored one can be compared with its row.
    Raises ValueError for a naive time, a generation below 1 or an unknown kind.
    """
    if hour.tzinfo is None:
        raise ValueError("a time without its zone")
    if generation < 1:
        raise ValueError("generations are counted from 1")
    return canonical(
        {
            "alg": "xc20p",
            "case": case.hex,
            "g": generation,
            "hour": hour.astimezone(UTC).strftime("%Y-%m-%dT%HZ"),
            "item": item.hex,
            "kind": str(Kind(kind)),
            "v": 1,
        }
    )


def seal_text(case_public: bytes, header: bytes, text: str) -> Envelope:
    """Return `text` sealed to a case key, its size blurred to 1, 2, 4, 8, 16 or 32 KiB (keys.md section 5).

    header: from `header`. At most 32,767 bytes of UTF-8 fit; longer text is for `seal_stream`.
    Raises ValueError for longer text, a lone surrogate, or a key that cannot be sealed to.
    """
    plain = text.encode()
    step = next((step for step in STEPS if len(plain) < step), None)
    if step is None:
        raise ValueError("the text is too long for one envelope")
    dek = boxes.random_bytes()
    body = boxes.aead_seal(dek, sodium.sodium_pad(plain, step), header)
    return Envelope(header, boxes.seal(case_public, header, dek), body)


def open_text(case_private: bytes, envelope: Envelope) -> str:
    """Return the text of an envelope (keys.md section 5).

    The header's claims hold for the body, but whether they fit the row it lay in is the caller's to compare.
    Raises CannotOpen for a wrong case key, or if header, seal or body is changed or of another envelope.
    """
    dek = _dek(case_private, envelope.header, envelope.seal)
    padded = boxes.aead_open(dek, envelope.body, envelope.header)
    if len(padded) not in STEPS:
        raise CannotOpen("the body has none of the sizes of a text")
    try:
        return sodium.sodium_unpad(padded, len(padded)).decode()
    except (CryptoError, UnicodeDecodeError):
        raise CannotOpen("the body is not a padded text") from None


def seal_words(case_public: bytes, header: bytes, text: str) -> Envelope:
    """Return `text` of any length sealed to a case key: as `seal_text` if it fits, else as a stream (keys.md 5)."""
    plain = text.encode()
    if len(plain) < STEPS[-1]:
        return seal_text(case_public, header, text)
    seal, pieces = seal_stream(case_public, header, [plain], len(plain))
    return Envelope(header, seal, b"".join(pieces))


def open_words(case_private: bytes, envelope: Envelope) -> str:
    """Return the text that `seal_words` sealed. Raises CannotOpen as `open_text` and `open_stream` do.

    The size tells which: a sealed text is never larger than 32 KiB and 40 bytes, a stream always is.
    """
    if len(envelope.body) <= STEPS[-1] + NONCE_AND_TAG:
        return open_text(case_private, envelope)
    pieces = open_stream(case_private, envelope.header, envelope.seal, [envelope.body])
    try:
        return b"".join(pieces).decode()
    except UnicodeDecodeError:
        raise CannotOpen("the body is not a text") from None


def commitment(envelope: Envelope, text: str) -> dict[str, str]:
    """Return what the event that reports an item commits to: SHA-256 of header, body and text, in hex.

    To be committed to with a salt, never published as it is (keys.md section 5, ledger.md section 1).
    """
    parts = {"header": envelope.header, "body": envelope.body, "plain": text.encode()}
    return {name: boxes.H(part).hex() for name, part in parts.items()}


def padme(length: int) -> int:
    """Return the Padmé size of `length` bytes, at most 12 % more (keys.md section 5).

    Raises ValueError for a negative length.
    """
    if length < 0:
        raise ValueError("a length below zero")
    if length < 2:
        return length
    exponent = length.bit_length() - 1
    free = exponent - exponent.bit_length()
    return (length + (1 << free) - 1) >> free << free


def seal_stream(
    case_public: bytes, header: bytes, chunks: Iterable[bytes], length: int
) -> tuple[bytes, Iterator[bytes]]:
    """Seal a file, recording or long text while it arrives (keys.md section 5).

    chunks: the content in pieces of any size. length: its size in bytes, known beforehand.
    Returns the content key's seal and the pieces to store one after the other: the 24-byte stream header, then
    blocks of 64 KiB and 17 bytes, the last one shorter; together 24 + padme(8 + length) + 17 a block.
    Raises ValueError for a key that cannot be sealed to; the pieces raise it if `chunks` do not add up to
    `length`, and what was stored by then does not open.
    """
    if length < 0:
        raise ValueError("a length below zero")
    dek = boxes.random_bytes()
    return boxes.seal(case_public, header, dek), _push(dek, boxes.H(header), _padded(chunks, length))


def open_stream(case_private: bytes, header: bytes, dek_seal: bytes, sealed: Iterable[bytes]) -> Iterator[bytes]:
    """Return the content of a stream in pieces of at most 64 KiB (keys.md section 5).

    sealed: the stored pieces, cut anywhere. Each piece that comes out is genuine and in its place, but only the
    end shows that nothing is missing: do not call the content whole before the iterator has run out.
    Raises CannotOpen at once for a wrong case key, header or seal; later, for a changed, swapped or added byte,
    and with "cut off" where the stream ends too early.
    """
    return _content(_pull(_dek(case_private, header, dek_seal), boxes.H(header), sealed))


def _dek(case_private: bytes, header: bytes, seal: bytes) -> bytes:
    dek = boxes.unseal(case_private, header, seal)
    if len(dek) != boxes.KEY:
        raise CannotOpen("the seal does not hold a content key")
    return dek


def _padded(chunks: Iterable[bytes], length: int) -> Iterator[bytes]:
    yield length.to_bytes(LENGTH, "big")
    seen = 0
    for chunk in chunks:
        seen += len(chunk)
        if seen > length:
            raise ValueError("more content than its length said")
        yield chunk
    if seen != length:
        raise ValueError("less content than its length said")
    missing = padme(LENGTH + length) - LENGTH - length
    while missing:
        zeros = bytes(min(missing, CHUNK))
        missing -= len(zeros)
        yield zeros


def _push(dek: bytes, associated: bytes, pieces: Iterable[bytes]) -> Iterator[bytes]:
    state = sodium.crypto_secretstream_xchacha20poly1305_state()
    yield sodium.crypto_secretstream_xchacha20poly1305_init_push(state, dek)
    for block, last in _blocks(pieces, CHUNK):
        tag = FINAL if last else MESSAGE
        yield sodium.crypto_secretstream_xchacha20poly1305_push(state, block, associated, tag)


def _pull(dek: bytes, associated: bytes, sealed: Iterable[bytes]) -> Iterator[bytes]:
    pieces = iter(sealed)
    start = b""
    while len(start) < STREAM_HEADER:
        piece = next(pieces, None)
        if piece is None:
            raise CannotOpen("the stream is cut off")
        start += piece
    state = sodium.crypto_secretstream_xchacha20poly1305_state()
    sodium.crypto_secretstream_xchacha20poly1305_init_pull(state, start[:STREAM_HEADER], dek)
    for block, last in _blocks(chain([start[STREAM_HEADER:]], pieces), CHUNK + CHUNK_TAG):
        try:
            plain, tag = sodium.crypto_secretstream_xchacha20poly1305_pull(state, block, associated)
        except CryptoError:
            raise CannotOpen("the stream is cut off or changed here") from None
        if last and tag != FINAL:
            raise CannotOpen("the stream is cut off")
        if not last and tag != MESSAGE:
            raise CannotOpen("the stream goes on after its end")
        yield plain


def _content(blocks: Iterator[bytes]) -> Iterator[bytes]:
    first = next(blocks)
    if len(first) < LENGTH:
        raise CannotOpen("the stream does not say its length")
    length, seen = int.from_bytes(first[:LENGTH], "big"), LENGTH
    missing = length
    for block in chain([first[LENGTH:]], blocks):
        seen += len(block)
        content, padding = block[:missing], block[missing:]
        missing -= len(content)
        if padding.strip(b"\0"):
            raise CannotOpen("the stream's padding is not empty")
        if content:
            yield content
    if seen != padme(LENGTH + length):
        raise CannotOpen("the stream has another length than it says")


def _blocks(pieces: Iterable[bytes], size: int) -> Iterator[tuple[bytes, bool]]:
    """Cut `pieces` anew into blocks of `size` bytes; the last, of 0 to `size` bytes, is marked True."""
    held = bytearray()
    for piece in pieces:
        held += piece
        while len(held) > size:
            yield bytes(held[:size]), False
            del held[:size]
    yield bytes(held), True
