"""The building blocks of every secret: boxes, AEAD, keyed names, row tags, signatures (keys.md section 3).

PyNaCl's plain bindings are called directly: its object layer costs more than the cipher on the intake path.
Several of the bindings do not check the length of a key and would read past its end, so it is checked here.
"""

import hashlib
import hmac
import secrets
from base64 import b64encode
from collections.abc import Mapping
from uuid import UUID

import nacl.bindings as sodium
from nacl.exceptions import CryptoError

from service.canonical import canonical
from service.errors import CannotOpen

KEY = 32
SIGNATURE = 64
NONCE = sodium.crypto_aead_xchacha20poly1305_ietf_NPUBBYTES
AEAD_TAG = sodium.crypto_aead_xchacha20poly1305_ietf_ABYTES

PHONE = b"bamboo-phone-v1"
PLACE = b"bamboo-place-v1"
LOC = b"bamboo-loc-v1"
MBX = b"bamboo-mbx-v1"
AUTH = b"bamboo-auth-v1"
ROW = b"bamboo-row-v1"
SID = b"bamboo-sid-v1"
FORM = b"bamboo-form-v1"
SUSPECT = b"bamboo-susp-v1"
SILENT = b"bamboo-silent-v1"
FILE = b"bamboo-file-v1"
WALL = b"bamboo-wall-v1"


def H(data: bytes) -> bytes:
    """Return the SHA-256 of `data`, 32 bytes (keys.md, conventions)."""
    return hashlib.sha256(data).digest()


def random_bytes(n: int = KEY) -> bytes:
    """Return `n` bytes from the operating system's generator (keys.md section 1)."""
    return secrets.token_bytes(n)  # the same source as libsodium's, at a fifth of the binding's cost


# Key pairs


def keypair() -> tuple[bytes, bytes]:
    """Return a new X25519 pair, private then public half, 32 bytes each (keys.md section 4)."""
    public, private = sodium.crypto_box_keypair()
    return private, public


def public_of(private: bytes) -> bytes:
    """Return the X25519 public half of `private`, 32 bytes each.

    Raises ValueError for another length.
    """
    return sodium.crypto_scalarmult_base(_key(private))


def is_box_key(public: bytes) -> bool:
    """Say whether `public` is an X25519 key that a box may be sealed to: 32 bytes, not of low order."""
    if len(public) != KEY:
        return False
    try:
        # libsodium refuses points whose shared secret would be the same for everybody
        sodium.crypto_scalarmult(b"\x01" * KEY, public)
    except CryptoError:
        return False
    return True


def signing_keypair() -> tuple[bytes, bytes]:
    """Return a new Ed25519 pair: the seed, then the public key, 32 bytes each (keys.md section 4)."""
    seed = random_bytes(KEY)
    return seed, signing_public_of(seed)


def signing_public_of(seed: bytes) -> bytes:
    """Return the Ed25519 public key of `seed`, 32 bytes each.

    Raises ValueError for another length.
    """
    return sodium.crypto_sign_seed_keypair(_key(seed))[0]


def is_signing_key(public: bytes) -> bool:
    """Say whether `public` is an Ed25519 key fit to be trusted (ledger.md section 2).

    32 bytes, canonical, on the curve, in the main subgroup. Under other keys one signature can be good for
    many texts, and honest verifiers differ.
    """
    return len(public) == KEY and sodium.crypto_core_ed25519_is_valid_point(public)


def sign(seed: bytes, message: bytes) -> bytes:
    """Return the Ed25519 signature of `message` under the 32-byte `seed`, 64 bytes.

    Raises ValueError for a seed of another length.
    """
    secret = sodium.crypto_sign_seed_keypair(_key(seed))[1]
    return sodium.crypto_sign(message, secret)[:SIGNATURE]


def verify(public: bytes, message: bytes, signature: bytes) -> bool:
    """Say whether `signature` is a good Ed25519 signature of `message` under a key fit to be trusted.

    A key or signature of another length is simply not good.
    """
    if len(signature) != SIGNATURE or not is_signing_key(public):
        return False
    try:
        sodium.crypto_sign_open(signature + message, public)
    except CryptoError:
        return False
    return True


# Boxes


def context_of(*parts: str | int | UUID) -> str:
    """Return `parts` joined by ``|``, the name of the place a secret belongs to (keys.md section 3).

    UUIDs stand as 32 hex digits. Raises ValueError for a part that is empty, not printable ASCII or holds
    the joint itself: two places must never share a name.
    """
    texts = [part.hex if isinstance(part, UUID) else str(part) for part in parts]
    for text in texts:
        if not text or not text.isascii() or not text.isprintable() or "|" in text:
            raise ValueError("a part of a context must be printable ASCII without |")
    return "|".join(texts)


def seal(public_key: bytes, context: bytes | str, secret: bytes) -> bytes:
    """Return `secret` sealed to an X25519 `public_key` in the place `context` (keys.md section 3).

    SealedBox(public_key, H(context) ‖ secret): 80 bytes longer than the secret. A sealed box has no associated
    data; without the hash in front, rows could be swapped. A str context must be ASCII.
    Raises ValueError for a key that is not 32 bytes or of low order, or a context that is not ASCII.
    """
    _key(public_key)
    try:
        return sodium.crypto_box_seal(hashlib.sha256(_place(context)).digest() + secret, public_key)
    except CryptoError:
        raise ValueError("this key cannot be sealed to") from None


def unseal(private_key: bytes, context: bytes | str, sealed: bytes) -> bytes:
    """Return the secret that was sealed to `private_key` in the place `context` (keys.md section 3).

    Raises CannotOpen for a wrong key, a wrong place or a changed byte; ValueError for a key of another length.
    """
    public = public_of(private_key)
    # nacl raises its own TypeError for a box that is too short; that is a CryptoError too
    try:
        opened = sodium.crypto_box_seal_open(sealed, public, private_key)
    except CryptoError:
        raise CannotOpen("the box does not open with this key") from None
    if not hmac.compare_digest(opened[:KEY], H(_place(context))):
        raise CannotOpen("the box belongs to another place")
    return opened[KEY:]


def aead_seal(key: bytes, plain: bytes, associated: bytes | str) -> bytes:
    """Return `plain` under XChaCha20-Poly1305 with a random 24-byte nonce in front (keys.md section 3).

    key: 32 bytes. associated: bound to the result, not in it. The result is 40 bytes longer than `plain`.
    Raises ValueError for a key of another length.
    """
    nonce = random_bytes(NONCE)
    return nonce + sodium.crypto_aead_xchacha20poly1305_ietf_encrypt(plain, _place(associated), nonce, _key(key))


def aead_open(key: bytes, sealed: bytes, associated: bytes | str) -> bytes:
    """Return what `aead_seal` sealed under `key` with the same `associated` data (keys.md section 3).

    Raises CannotOpen for a wrong key, other associated data or a changed byte; ValueError for a key of another
    length.
    """
    if len(sealed) < NONCE + AEAD_TAG:
        raise CannotOpen("the sealed bytes are cut off")
    nonce, body = sealed[:NONCE], sealed[NONCE:]
    try:
        return sodium.crypto_aead_xchacha20poly1305_ietf_decrypt(body, _place(associated), nonce, _key(key))
    except CryptoError:
        raise CannotOpen("the sealed bytes do not open with this key in this place") from None


def argon2id(secret: bytes, salt: bytes, *, passes: int, mib: int, length: int = KEY) -> bytes:
    """Return `length` bytes of Argon2id over `secret` (keys.md sections 3 and 7).

    salt: 16 bytes. mib: memory in MiB, taken for the length of the call, which lasts up to a second at 128.
    Raises ValueError for a salt of another length or a cost outside libsodium's limits.
    """
    algorithm = sodium.crypto_pwhash_ALG_ARGON2ID13
    return sodium.crypto_pwhash_alg(length, secret, salt, passes, mib << 20, algorithm)


# Names and tags


def keyed_name(key: bytes, data: bytes, person: bytes) -> bytes:
    """Return the keyed BLAKE2b-256 of `data`, personalised with `person` (keys.md section 3).

    key: 32 bytes; an empty key would make the name public, so any other length is refused. person: at most 16
    bytes, one of the constants of this module. Raises ValueError for other lengths.
    """
    return hashlib.blake2b(data, digest_size=32, key=_key(key), person=person).digest()


def phone_name(pepper: bytes, e164: str) -> bytes:
    """Return the pseudonym of a phone number under one epoch's pepper, 32 bytes (keys.md section 8).

    e164: as "+855…". Raises ValueError if it is not ASCII.
    """
    return keyed_name(pepper, e164.encode("ascii"), PHONE)


def place_name(key: bytes, place: str) -> bytes:
    """Return the pseudonym under which cases of a place are counted, by its id, 32 bytes (keys.md section 8)."""
    return keyed_name(key, place.encode(), PLACE)


def suspect_name(key: bytes, name: str) -> bytes:
    """Return the pseudonym of a suspect's name under the sketch key, 32 bytes (keys.md section 2, docs/adr/0008.md)."""
    return keyed_name(key, name.encode(), SUSPECT)


def silent_name(key: bytes, contact: UUID) -> bytes:
    """Return the name under which silent calls of a contact are counted, 32 bytes, under the sketch key."""
    return keyed_name(key, contact.bytes, SILENT)


def provider_name(row_key: bytes, sid: str) -> bytes:
    """Return the name under which a provider's id `sid` is stored, 32 bytes (keys.md section 3)."""
    return keyed_name(row_key, sid.encode(), SID)


def file_name(row_key: bytes, digest: bytes) -> bytes:
    """Return the name under which the content of a file is found again, 32 bytes. digest: SHA-256 of the content."""
    return keyed_name(row_key, digest, FILE)


def row_tag(row_key: bytes, row: Mapping[str, object]) -> bytes:
    """Return the tag of a row that a process acts upon, 32 bytes (keys.md section 3).

    row: the fixed columns and ``table``; bytes stand as padded base64, UUIDs as 32 hex digits, the rest as it
    is. Raises ValueError for a value without a canonical form, such as a float or a datetime.
    """
    return keyed_name(row_key, canonical({column: _plain(value) for column, value in row.items()}), ROW)


def check_row_tag(row_key: bytes, row: Mapping[str, object], tag: bytes) -> None:
    """Return if `tag` is the tag of `row`; the arguments are those of `row_tag` (keys.md section 3).

    Raises CannotOpen if it is not: the row was not written by a process of ours, and must not be acted upon.
    """
    if not hmac.compare_digest(row_tag(row_key, row), tag):
        raise CannotOpen("the row's tag does not fit the row")


def _plain(value: object) -> object:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return b64encode(value).decode()
    return value.hex if isinstance(value, UUID) else value


def _place(context: bytes | str) -> bytes:
    return context.encode("ascii") if isinstance(context, str) else context


def _key(key: bytes) -> bytes:
    if len(key) != KEY:
        raise ValueError("a key must be 32 bytes")
    return key
