"""Canonical JSON (RFC 8785) for what is hashed, tagged or signed, without floats."""

import json
from typing import Any

LARGEST = 2**53 - 1
_ENCODER = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def canonical(value: Any) -> bytes:
    """Return the RFC 8785 bytes of `value`: dicts with ASCII keys, lists, strings, ints, bools and None.

    With ASCII keys and no floats the standard library's output, sorted and without spaces, is exact.
    Raises ValueError for a float, an integer beyond 2^53 - 1, a key that is not ASCII or a lone surrogate.
    """
    if type(value) is str:
        return json.encoder.encode_basestring(value).encode()
    _check(value)
    return _ENCODER.encode(value).encode()


def _check(value: Any) -> None:
    if value is None or isinstance(value, (bool, str)):
        return
    if isinstance(value, int):
        if abs(value) > LARGEST:
            raise ValueError("an integer beyond 2^53 - 1 has no canonical form here")
    elif isinstance(value, dict):
        for key, item in value.items():
            if not (isinstance(key, str) and key.isascii()):
                raise ValueError("keys must be ASCII strings")
            _check(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _check(item)
    else:
        raise ValueError(f"{type(value).__name__} has no canonical form here")
