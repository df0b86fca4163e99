"""Signed notes (c2sp.org/signed-note; ledger.md section 2). Pure: no clock, no file, no settings.

The ledger builds on it: checkpoints and promises are notes; a cosignature is a line of another kind, which it
takes from `split_note` and checks itself.
"""

import base64
import binascii
import re
from collections.abc import Sequence
from dataclasses import dataclass

from service.errors import BadNote
from service.vault import boxes

ED25519 = 0x01
COSIGNATURE = 0x04
KEY_ID = 4
MOST_LINES = 16
MOST_BYTES = 65536

DASH = "\u2014 "
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f]")
_NOT_IN_NAMES = re.compile(r"[\s+\x00-\x1f\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Verifier:
    """A key that notes are checked with: its name, 4-byte id, kind (0x01 notes, 0x04 cosignatures), 32 bytes."""

    name: str
    key_id: bytes
    kind: int
    public: bytes


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature line as it stands, not yet checked."""

    name: str
    key_id: bytes
    signature: bytes


def key_id(name: str, public: bytes, kind: int = ED25519) -> bytes:
    """Return the id of a key, 4 bytes: the start of H(name ‖ 0x0A ‖ kind ‖ public) (ledger.md section 2)."""
    return boxes.H(name.encode() + b"\n" + bytes([kind]) + public)[:KEY_ID]


def vkey(name: str, public: bytes, kind: int = ED25519) -> str:
    """Return the verifier key of `public` as text: name+hex id+base64 of kind and key (ledger.md section 2).

    Raises BadNote for a name or key that `parse_vkey` would refuse.
    """
    _check_name(name)
    text = f"{name}+{key_id(name, public, kind).hex()}+{base64.b64encode(bytes([kind]) + public).decode()}"
    parse_vkey(text)
    return text


def parse_vkey(text: str) -> Verifier:
    """Return the verifier of a verifier key's text (ledger.md section 2).

    Raises BadNote if it is malformed, its id is not that of its key, its kind is neither 0x01 nor 0x04, or the
    key is not fit to be trusted (`boxes.is_signing_key`).
    """
    name, _, rest = text.partition("+")
    written_id, _, encoded = rest.partition("+")
    _check_name(name)
    decoded = decode(encoded)
    kind, public = decoded[0] if decoded else 0, decoded[1:]
    if kind not in (ED25519, COSIGNATURE):
        raise BadNote("a verifier key of an unknown kind")
    if not boxes.is_signing_key(public):
        raise BadNote("a verifier key that must not be trusted")
    expected = key_id(name, public, kind)
    if written_id != expected.hex():
        raise BadNote("a verifier key whose id is not its own")
    return Verifier(name, expected, kind, public)


def sign_note(text: str, name: str, seed: bytes) -> str:
    """Return the whole note: `text`, an empty line and one signature line by `seed` under `name`.

    text: ends in a newline. name: no space and no plus. seed: Ed25519, 32 bytes.
    Raises BadNote for a text or name that no reader would take.
    """
    encoded = _check_text(text)
    note = f"{text}\n{signature_line(name, boxes.signing_public_of(seed), boxes.sign(seed, encoded))}"
    if len(note.encode()) > MOST_BYTES:
        raise BadNote("the note is too long")
    return note


def signature_line(name: str, public: bytes, signature: bytes, kind: int = ED25519) -> str:
    """Return a signature line with its newline: dash, name, base64 of key id and `signature`.

    signature: 64 bytes for a note; a cosignature has its time in front (ledger.md section 2).
    Raises BadNote for a name with a space or plus.
    """
    _check_name(name)
    return f"{DASH}{name} {base64.b64encode(key_id(name, public, kind) + signature).decode()}\n"


def split_note(note: str | bytes) -> tuple[str, list[Signature]]:
    """Return the text of a note and its signature lines, parsed strictly but not checked (ledger.md section 2).

    Raises BadNote for more than 64 KiB or 16 lines, bytes that are not UTF-8, control bytes other than newline, a
    missing or empty part, a malformed line or base64 that is not canonical.
    """
    try:
        encoded = note.encode() if isinstance(note, str) else note
        decoded = encoded.decode()
    except UnicodeError:
        raise BadNote("the note is not UTF-8") from None
    if len(encoded) > MOST_BYTES:
        raise BadNote("the note is too long")
    body, gap, tail = decoded.rpartition("\n\n")
    if not gap or not tail.endswith("\n"):
        raise BadNote("the note has no signatures")
    text = body + "\n"
    _check_text(text)
    lines = tail[:-1].split("\n")
    if len(lines) > MOST_LINES:
        raise BadNote("the note has too many signatures")
    return text, [_parse_line(line) for line in lines]


def open_note(note: str | bytes, verifiers: Sequence[Verifier]) -> tuple[str, list[str]]:
    """Return the text of a note and the names of the keys that signed it (ledger.md section 2).

    Lines of unknown keys are ignored, a bad signature of a known key refuses the note, a key counts once, and at
    least one must be good. verifiers: of kind 0x01; cosignatures are not checked here.
    Raises BadNote for all of these and whatever `split_note` refuses; ValueError for verifiers of another kind or
    two with the same name and id.
    """
    known = {(verifier.name, verifier.key_id): verifier for verifier in verifiers}
    if len(known) != len(verifiers) or any(verifier.kind != ED25519 for verifier in verifiers):
        raise ValueError("verifiers must be distinct and of kind 0x01")
    text, lines = split_note(note)
    signed: dict[Verifier, None] = {}
    for line in lines:
        verifier = known.get((line.name, line.key_id))
        if verifier is None:
            continue
        if not boxes.verify(verifier.public, text.encode(), line.signature):
            raise BadNote("a signature of a known key is wrong")
        signed[verifier] = None
    if not signed:
        raise BadNote("the note is not signed by the key asked for")
    return text, [verifier.name for verifier in signed]


def decode(text: str) -> bytes:
    """Return the bytes of standard, padded, canonical base64 (ledger.md, conventions).

    Raises BadNote for anything else: two spellings of one signature would be two notes.
    """
    try:
        decoded = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise BadNote("not base64") from None
    if base64.b64encode(decoded).decode() != text:
        raise BadNote("base64 that is not canonical")
    return decoded


def _parse_line(line: str) -> Signature:
    parts = line.removeprefix(DASH).split(" ")
    if not line.startswith(DASH) or len(parts) != 2:
        raise BadNote("a malformed signature line")
    name, encoded = parts
    _check_name(name)
    decoded = decode(encoded)
    if len(decoded) <= KEY_ID:
        raise BadNote("a signature line without a signature")
    return Signature(name, decoded[:KEY_ID], decoded[KEY_ID:])


def _check_name(name: str) -> None:
    if not name or _NOT_IN_NAMES.search(name):
        raise BadNote("a key's name must not be empty or hold a space or plus")


def _check_text(text: str) -> bytes:
    if text in ("", "\n") or not text.endswith("\n") or _CONTROL.search(text):
        raise BadNote("a note's text must be lines without control characters")
    try:
        return text.encode()
    except UnicodeError:
        raise BadNote("the note is not UTF-8") from None
