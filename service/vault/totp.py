"""The second factor: one-time codes of RFC 6238, by the clock of a phone (keys.md sections 1 and 3)."""

from base64 import b32encode
from datetime import datetime

import pyotp

from service.errors import WrongCode

STEP = 30  # seconds that a code is shown
WINDOW = 1  # steps before and after the present one whose code is taken
SKEW = 20  # steps within which a wrong clock is recognised, so that the person can be told

_DIGITS = str.maketrans("០១២៣៤៥៦៧៨៩", "0123456789", "  -\t")


def code_at(secret: bytes, now: datetime) -> str:
    """Return the code of six digits that a phone with `secret` shows at `now` (RFC 6238, SHA-1, 30 seconds)."""
    return _code(secret, _step(now))


def check(secret: bytes, code: str, now: datetime, *, used: int | None) -> int:
    """Return the step that `code` belongs to, to be stored as the last one used: a code is good once.

    code: six digits, Latin or Khmer, spaces between them do not matter. used: the last step whose code was taken.
    Raises WrongCode; its `why` is ``replay`` for a code that was used, or is older than one that was, and ``skew``
    with the minutes for a code of another time: then the phone's clock is wrong.
    """
    typed, present = code.translate(_DIGITS), _step(now)
    if len(typed) != 6 or not typed.isascii() or not typed.isdecimal():
        raise WrongCode("code")
    near = sorted(range(-SKEW, SKEW + 1), key=abs)
    # All are looked at, so that the time taken says nothing of which one it was.
    found = [offset for offset in near if pyotp.utils.strings_equal(_code(secret, present + offset), typed)]
    if not found:
        raise WrongCode("code")
    fresh = [offset for offset in found if used is None or present + offset > used]
    if not fresh:
        raise WrongCode("replay")
    if abs(fresh[0]) > WINDOW:
        raise WrongCode("skew", minutes=round(fresh[0] * STEP / 60) or (1 if fresh[0] > 0 else -1))
    return present + fresh[0]


def letters(secret: bytes) -> str:
    """Return `secret` as a person types it into an authenticator app: base32, in groups of four."""
    text = b32encode(secret).decode().rstrip("=")
    return " ".join(text[i : i + 4] for i in range(0, len(text), 4))


def address(secret: bytes, account: str) -> str:
    """Return the ``otpauth:`` address that an authenticator app on the same phone opens."""
    return pyotp.TOTP(b32encode(secret).decode()).provisioning_uri(name=account, issuer_name="Bamboo")


def _step(now: datetime) -> int:
    return int(now.timestamp()) // STEP


def _code(secret: bytes, step: int) -> str:
    return pyotp.HOTP(b32encode(secret).decode()).at(step)
