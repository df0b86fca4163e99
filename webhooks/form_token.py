"""The hidden token of a public form: which sending is this, without a cookie and without storage (threats.md T-05).

16 bytes submission id, 4 bytes issued minute, 16 bytes keyed BLAKE2b, in base64url. It proves nothing about a person
and guards nothing: it lets a form that was sent twice be one tip. A form without a good one is taken all the same.
"""

import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from hashlib import blake2b

from service.errors import Misconfigured

OLD_AFTER = timedelta(hours=24)
_BYTES = 36
_PERSON = b"bamboo form 1"


class Mark(StrEnum):
    """How good a token was. Stored with the tip; never a reason to refuse it (child_form.md section 1)."""

    GOOD = "good"
    OLD = "old"
    MISSING = "missing"
    FORGED = "forged"


@dataclass(frozen=True, slots=True)
class FormToken:
    """One showing of a form."""

    submission: bytes
    text: str
    mark: Mark = Mark.GOOD

    @property
    def nonce(self) -> str:
        """What makes field names new on each load, so that no phone offers old answers (T-03)."""
        return blake2b(self.submission, digest_size=4, person=b"bamboo names").hexdigest()


class FormTokens:
    """Issues and reads tokens under the form key, which every public process shares."""

    def __init__(self, key: bytes) -> None:
        """Use `key`, 16 to 64 secret bytes. Raises Misconfigured for another length."""
        if not 16 <= len(key) <= 64:
            raise Misconfigured("the form key must have 16 to 64 bytes")
        self._key = key

    def issue(self, now: datetime) -> FormToken:
        """Return a new token."""
        submission = secrets.token_bytes(16)
        head = submission + (int(now.timestamp()) // 60).to_bytes(4, "big")
        return FormToken(submission, urlsafe_b64encode(head + self._tag(head)).decode())

    def read(self, text: str, now: datetime) -> FormToken:
        """Return what `text` says, or a new token that is marked.

        An old token keeps its submission id: sent twice it is still one tip, and ``delivery`` loses nothing.
        """
        try:
            raw = urlsafe_b64decode(text.encode("ascii"))
        except ValueError:
            raw = b""
        head, tag = raw[:-16], raw[-16:]
        # What does not encode back to itself was bent on the way: base64 ignores bits and foreign characters.
        bent = len(raw) != _BYTES or urlsafe_b64encode(raw).decode() != text
        if bent or not secrets.compare_digest(self._tag(head), tag):
            fresh = self.issue(now)
            return FormToken(fresh.submission, fresh.text, Mark.FORGED if text else Mark.MISSING)
        age = now.timestamp() - int.from_bytes(head[16:], "big") * 60
        return FormToken(head[:16], text, Mark.OLD if age > OLD_AFTER.total_seconds() else Mark.GOOD)

    def delivery(self, token: FormToken, content: bytes) -> str:
        """Return the id under which `content` is stored once, 32 hexadecimal digits.

        It depends on the words too: whoever goes back, adds something and sends again has told more, and a shared
        phone may send another person's words from the same page. Only the same form twice is one tip.
        """
        return blake2b(token.submission + content, key=self._key, digest_size=16, person=b"bamboo delivery").hexdigest()

    def _tag(self, head: bytes) -> bytes:
        return blake2b(head, key=self._key, digest_size=16, person=_PERSON).digest()
