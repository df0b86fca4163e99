"""Return codes and what is derived from them (keys.md section 7, triage.md section 12, ledger.md section 9).

A code is 15 random digits and a check digit. Two derivations start from it: anyone can compute the tags of its leaves,
only who has the code pepper finds and opens its mailbox. The slow ones run in a process of their own: `deriver`.
"""

import hmac
import secrets
import unicodedata
from dataclasses import dataclass
from uuid import UUID

from service.errors import CannotOpen
from service.vault import boxes
from service.vault.boxes import context_of

DIGITS = 16
LONGEST_TYPED = 80  # what is typed holds signs between the digits; more is no code
TAG_SIZE = 32

# Damm's table: row = interim, column = digit.
_DAMM = (
    "0317598642", "7092154863", "4206871359", "1750983426", "6123045978",
    "3674209581", "5869720134", "8945362017", "9438617205", "2581436790",
)  # fmt: skip
# Zero-width characters are of category Cf, dashes of Pd, every space of Zs.
_BETWEEN = frozenset({"Zs", "Pd", "Cf", "Cc"})


@dataclass(frozen=True, slots=True)
class Cost:
    """What one Argon2id run takes: passes over so many MiB."""

    passes: int
    mib: int


TAG_COST = Cost(4, 256)
BOX_COST = Cost(3, 64)


def check_digit(digits: str) -> str:
    """Return Damm's check digit of ASCII `digits`. Over digits with their right check digit it is ``0``."""
    interim = 0
    for digit in digits:
        interim = int(_DAMM[interim][int(digit)])
    return str(interim)


def new_code() -> str:
    """Return a fresh code, 16 ASCII digits of which the last checks the others."""
    digits = "".join(secrets.choice("0123456789") for _ in range(DIGITS - 1))
    return digits + check_digit(digits)


def read_code(typed: str) -> str | None:
    """Return the code in `typed`, 16 ASCII digits, or None if it is none: a slip can be told at once.

    Digits of any script count; spaces, dashes, dots and zero-width characters between them do not. Leading zeros stay.
    """
    if len(typed) > LONGEST_TYPED:
        return None
    digits = []
    for sign in typed:
        value = unicodedata.decimal(sign, None)
        if value is not None:
            digits.append(str(value))
        elif sign not in ".·" and unicodedata.category(sign) not in _BETWEEN:
            return None
    code = "".join(digits)
    return code if len(code) == DIGITS and check_digit(code) == "0" else None


def grouped(code: str) -> str:
    """Return a code as it is shown and read aloud: 4-4-4-4."""
    return " ".join(code[start : start + 4] for start in range(0, DIGITS, 4))


# --- derivations ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, repr=False)
class Address:
    """Where a code's mailbox is, and what opens it: 32 bytes each. Its repr shows nothing."""

    locator: bytes
    kek: bytes


@dataclass(frozen=True, slots=True, repr=False)
class Prepared:
    """What a new mailbox needs of its code, but never the code. tag_key: K, 32 bytes."""

    address: Address
    tag_key: bytes


def tag_key(code: str, origin: str, cost: Cost = TAG_COST) -> bytes:
    """Return K, 32 bytes, from which a code's tags come; no secret of ours is in it (ledger.md section 9).

    origin: the log's. 1.3 to 1.6 s and 256 MiB at the full cost.
    """
    salt = boxes.H(origin.encode("ascii")).hex()[:16].encode("ascii")
    return boxes.argon2id(code.encode("ascii"), salt, passes=cost.passes, mib=cost.mib)


def address(code: str, pepper: bytes, cost: Cost = BOX_COST) -> Address:
    """Return where a code's mailbox is (keys.md section 7). pepper: the code pepper, 32 bytes.

    0.12 to 0.25 s and 64 MiB at the full cost.
    """
    secret = boxes.keyed_name(pepper, code.encode("ascii"), boxes.LOC).hex().encode("ascii")
    salt = boxes.H(b"bamboo/box/v1").hex()[:16].encode("ascii")
    b = boxes.argon2id(secret, salt, passes=cost.passes, mib=cost.mib)
    return Address(boxes.keyed_name(b, b"locator", boxes.LOC), boxes.keyed_name(b, b"kek", boxes.MBX))


def tag(key: bytes, number: int) -> bytes:
    """Return T_i, 32 bytes, of the leaf in which the tipster's i-th step stands (ledger.md section 9). key: K."""
    return hmac.digest(key, b"bamboo/tag/v1\x00" + number.to_bytes(4, "big"), "sha256")


# --- mailbox keys ---------------------------------------------------------------------------------------


def new_mailbox(kek: bytes, mailbox: UUID) -> tuple[bytes, bytes]:
    """Return (public half, wrapped private half) of a mailbox's new key (keys.md section 4)."""
    private, public = boxes.keypair()
    return public, boxes.aead_seal(kek, private, context_of("mailbox", mailbox))


def open_mailbox(kek: bytes, mailbox: UUID, public: bytes, wrapped: bytes) -> bytes:
    """Return a mailbox's private half, for the one request in which its code was typed.

    Raises CannotOpen for another mailbox or code, a changed byte, or a key that does not give `public`.
    """
    private = boxes.aead_open(kek, wrapped, context_of("mailbox", mailbox))
    if len(private) != boxes.KEY or boxes.public_of(private) != public:
        raise CannotOpen("the mailbox's key does not give the public key expected")
    return private
