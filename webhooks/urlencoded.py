"""``application/x-www-form-urlencoded`` bodies, parsed once from raw bytes.

Two readers, because they fail in opposite directions. A signed webhook with anything odd in it is refused; a
person's words are kept whatever their phone made of them.
"""

import re
from urllib.parse import parse_qsl

MAX_FIELDS = 100

# A run of escapes is decoded at once: a UTF-8 sequence never crosses a literal character. A percent sign that
# starts no escape matches alone, and is refused.
_ESCAPES = re.compile(r"%(?:[0-9A-Fa-f]{2}(?:%[0-9A-Fa-f]{2})*)?")


def parse_strict(body: bytes, *, max_fields: int = MAX_FIELDS) -> dict[str, str]:
    """Return the fields of `body` by name (twilio.md section 3, points 2 and 3).

    Reads like ``urllib.parse.parse_qsl`` with blanks kept: only ``&`` separates, ``+`` is a space, nothing is
    trimmed. Raises ValueError, which repeats nothing of the body, for a repeated name, more than `max_fields`
    fields, a byte outside ASCII, an incomplete escape or escapes that are not UTF-8.
    """
    if not body.isascii():
        raise ValueError("not url-encoded")
    if body.count(b"&") >= max_fields:
        raise ValueError("too many fields")
    fields: dict[str, str] = {}
    for piece in body.decode("ascii").replace("+", " ").split("&"):
        if not piece:
            continue
        name, _, value = piece.partition("=")
        if "%" in name:
            name = _unescape(name)
        if name in fields:
            raise ValueError("repeated field")
        fields[name] = _unescape(value) if "%" in value else value
    return fields


def parse_kept(body: bytes, *, max_fields: int = MAX_FIELDS) -> list[tuple[str, str]]:
    """Return the fields of `body` in order, losing none of a person's words (child_form.md section 1).

    What is not UTF-8 becomes U+FFFD, a broken escape stays as it is, a repeated name stays twice.
    Raises ValueError for more than `max_fields` fields.
    """
    if body.count(b"&") >= max_fields:
        raise ValueError("too many fields")
    return parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True, errors="replace")


def _unescape(text: str) -> str:
    return _ESCAPES.sub(_decode_run, text)


def _decode_run(run: re.Match[str]) -> str:
    digits = run.group().replace("%", "")
    if not digits:
        raise ValueError("incomplete escape")
    try:
        return bytes.fromhex(digits).decode("utf-8")
    except UnicodeDecodeError:
        # Its own text would quote the bytes.
        raise ValueError("not UTF-8") from None
