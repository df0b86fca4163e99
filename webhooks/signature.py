"""Was this webhook signed by Twilio, for this address, with our token? (twilio.md section 3)

The library's validator joins names and values without a separator, reads repeated fields as one and compares with
an early return. So the form is parsed strictly first, the HMAC is computed here, and the library stays the judge in
the tests, where it is sound.
"""

import hmac
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from urllib.parse import urlsplit

from service.errors import BadSignature
from webhooks.urlencoded import parse_strict

MAX_BODY = 64 * 1024
HEADER = b"x-twilio-signature"

# The longest prefix comes first. An address that is not listed is no webhook of ours.
_REQUIRED: tuple[tuple[str, frozenset[str]], ...] = (
    ("/webhooks/twilio/sms/status", frozenset({"MessageSid", "AccountSid", "MessageStatus"})),
    ("/webhooks/twilio/sms", frozenset({"MessageSid", "AccountSid", "From", "To", "Body"})),
    ("/webhooks/twilio/voice", frozenset({"CallSid", "AccountSid", "From", "To"})),
    ("/webhooks/twilio/recording", frozenset({"RecordingSid", "CallSid", "AccountSid", "RecordingStatus"})),
)
_SIDS = ("MessageSid", "CallSid", "RecordingSid")
_DEFAULT_PORTS = {"https": 443, "http": 80}


def check(
    raw_body: bytes,
    headers: Iterable[tuple[bytes, bytes]],
    path: str,
    query: bytes,
    *,
    public_urls: Sequence[str],
    tokens: Sequence[bytes],
    account_sid: str,
) -> dict[str, str]:
    """Return the fields of a webhook that Twilio signed (twilio.md section 3, points 1 to 5).

    headers: as in an ASGI scope. path: raw, not unquoted. query: raw; must be empty. public_urls: the configured
    addresses of this installation, the only source of scheme and host. tokens: current, then previous.
    Unknown fields are kept. Whether `To` is one of our numbers is for ``is_ours``: that loses no tip.
    Raises BadSignature, which says a reason for the log and nothing of the request.
    """
    if query:
        raise BadSignature("query string")
    if len(raw_body) > MAX_BODY:
        raise BadSignature("body too large")
    given = _signature(headers)
    try:
        fields = parse_strict(raw_body)
    except ValueError as fault:
        raise BadSignature(str(fault)) from None
    if not _is_signed(fields, given, path, public_urls, tokens):
        raise BadSignature("wrong signature")
    # Only a signed form is looked at: what is refused here was sent by somebody who holds a token.
    required = next((names for prefix, names in _REQUIRED if path.startswith(prefix)), None)
    if required is None or not required <= fields.keys():
        raise BadSignature("missing field")
    if not account_sid or fields["AccountSid"] != account_sid:
        raise BadSignature("another account")
    if any(not fields[name] for name in _SIDS if name in required):
        raise BadSignature("empty identifier")
    return fields


def is_ours(fields: Mapping[str, str], numbers: Sequence[str]) -> bool:
    """Return whether the webhook came to one of our `numbers` (twilio.md section 3, point 5).

    A number that nobody wrote into the settings must not lose a tip: the route takes it, and raises an alert.
    """
    return fields.get("To", "").removeprefix("whatsapp:") in numbers


def sign(url: str, fields: Mapping[str, str], token: bytes) -> bytes:
    """Return Twilio's signature of a POST to `url`: base64 of HMAC-SHA1 over the URL and the sorted fields."""
    return _mac(url + _joined(fields), token)


def _signature(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the one signature of a url-encoded request."""
    signatures, types = [], []
    for name, value in headers:
        if name == HEADER:
            signatures.append(value)
        elif name == b"content-type":
            types.append(value)
    if len(signatures) != 1 or not signatures[0]:
        raise BadSignature("needs one signature")
    if len(types) != 1 or not is_form(types[0]):
        raise BadSignature("not a form")
    return signatures[0]


@lru_cache(maxsize=32)
def is_form(content_type: bytes) -> bool:
    """Return whether a Content-Type says url-encoded, in UTF-8 or without saying in what."""
    kind, *parameters = (part.strip().lower() for part in content_type.split(b";"))
    return kind == b"application/x-www-form-urlencoded" and all(
        parameter in (b"", b"charset=utf-8", b'charset="utf-8"') for parameter in parameters
    )


def _is_signed(
    fields: Mapping[str, str], given: bytes, path: str, public_urls: Sequence[str], tokens: Sequence[bytes]
) -> bool:
    joined = _joined(fields)
    for base in _bases(tuple(public_urls)):
        for token in tokens:
            # Bytes, because compare_digest raises for str outside ASCII. Which pair matched is no secret.
            if token and hmac.compare_digest(_mac(base + path + joined, token), given):
                return True
    return False


def _joined(fields: Mapping[str, str]) -> str:
    return "".join([name + fields[name] for name in sorted(fields)])


def _mac(text: str, token: bytes) -> bytes:
    return b64encode(hmac.digest(token, text.encode(), "sha1"))


@lru_cache(maxsize=8)
def _bases(public_urls: tuple[str, ...]) -> tuple[str, ...]:
    """Return each address as configured, and with its port added or removed: Twilio signs either."""
    bases: list[str] = []
    for url in public_urls:
        parts = urlsplit(url)
        port = parts.port
        if port is None:
            other = parts._replace(netloc=f"{parts.netloc}:{_DEFAULT_PORTS[parts.scheme]}")
        else:
            other = parts._replace(netloc=parts.netloc.removesuffix(f":{port}"))
        bases += [url.rstrip("/"), other.geturl().rstrip("/")]
    return tuple(bases)
