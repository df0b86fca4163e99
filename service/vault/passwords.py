"""Passwords: one Argon2id run gives both the check and the key (keys.md section 3)."""

import hashlib
import hmac
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field

from service.errors import Unauthenticated
from service.vault import boxes
from service.vault.guessable import is_guessable

SALT = 16
SHORTEST = 15
LONGEST = 1000
FEWEST_DIFFERENT = 5
MOST_PASSES = 16
MOST_MIB = 1024


@dataclass(frozen=True, slots=True)
class Parameters:
    """The cost and salt of one password: 16-byte salt, passes, memory in MiB (keys.md section 3).

    The defaults are those of production; tests take fewer. Raises ValueError for a salt of another length or a
    cost outside 1 to 16 passes and 1 to 1,024 MiB: a changed row must not be able to take the host's memory.
    """

    salt: bytes = field(default_factory=lambda: boxes.random_bytes(SALT))
    passes: int = 3
    mib: int = 128

    def __post_init__(self) -> None:
        if len(self.salt) != SALT or not 1 <= self.passes <= MOST_PASSES or not 1 <= self.mib <= MOST_MIB:
            raise ValueError("password parameters outside their limits")

    @property
    def text(self) -> str:
        """The stored form, which the wrapped keys are bound to: ``argon2id:3:128:<salt in hex>``."""
        return f"argon2id:{self.passes}:{self.mib}:{self.salt.hex()}"


def read_parameters(text: str) -> Parameters:
    """Return the parameters whose `text` this is.

    Raises ValueError for any other text, also one that means the same but is written otherwise.
    """
    name, _, rest = text.partition(":")
    passes, _, rest = rest.partition(":")
    mib, _, salt = rest.partition(":")
    parameters = Parameters(bytes.fromhex(salt), int(passes), int(mib))
    if name != "argon2id" or parameters.text != text:
        raise ValueError("not the text of password parameters")
    return parameters


def derive(password: str, parameters: Parameters) -> tuple[bytes, bytes]:
    """Return (KEK, AUTH), 32 bytes each, of a password (keys.md section 3).

    Argon2id over the UTF-8 of the password's NFC form, so that it does not matter how a phone composes a letter.
    Takes about 0.7 s and 128 MiB with the default parameters.
    Raises ValueError for a password of more than 1,000 characters or with a lone surrogate.
    """
    if len(password) > LONGEST:
        raise ValueError("the password is too long")
    secret = unicodedata.normalize("NFC", password).encode()
    out = boxes.argon2id(secret, parameters.salt, passes=parameters.passes, mib=parameters.mib, length=64)
    return out[:32], out[32:]


def stored_auth(auth: bytes) -> bytes:
    """Return what is stored of AUTH, 32 bytes that open nothing: its personalised BLAKE2b-256 (keys.md section 3)."""
    return hashlib.blake2b(auth, digest_size=32, person=boxes.AUTH).digest()


def check(password: str, parameters: Parameters, stored: bytes | None) -> bytes:
    """Return the KEK if `password` is right: `stored` is `stored_auth` of its AUTH (keys.md section 3).

    stored: None for a name that nobody has; Argon2 runs all the same, so that the answer takes as long.
    Raises Unauthenticated, in the same words for a wrong name and a wrong password.
    """
    refused = Unauthenticated("The name or the password is wrong.")
    try:
        kek, auth = derive(password, parameters)
    except ValueError:
        raise refused from None
    if not hmac.compare_digest(stored_auth(auth), stored or bytes(32)):
        raise refused
    return kek


def too_weak(password: str, names: Iterable[str] = ()) -> str | None:
    """Return why a new password cannot be taken, in words for the person who chose it; None if it can.

    names: what others know of the person, such as account and organisation. Characters are counted in NFC. No rules
    of composition and no forced change (keys.md section 3).
    """
    if len(password) > LONGEST:
        return f"Use at most {LONGEST} characters."
    composed = unicodedata.normalize("NFC", password)
    if len(composed) < SHORTEST:
        return f"Use at least {SHORTEST} characters. Four or five unrelated words are easy to remember."
    if len(set(composed)) < FEWEST_DIFFERENT:
        return "Use more different characters."
    if is_guessable(composed, names):
        return "Common words, names, repeats and rows of keys are tried first. Use words that do not belong together."
    return None
