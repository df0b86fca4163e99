"""The fields of a text message as Twilio posts them, and its signature (twilio.md sections 3 and 4).

Written apart from ``webhooks.signature``: a provider's fake that shared the code of its checker would also share its
mistakes. The provider's own library judges both, in the tests.
"""

import hmac
from base64 import b64encode
from collections.abc import Mapping
from secrets import token_hex

SMS_PATH = "/webhooks/twilio/sms"


def sms_fields(*, body: str, sender: str, to: str, account_sid: str, sid: str = "", **more: str) -> dict[str, str]:
    """Return the fields of a text message that arrives at `to`, as Twilio sends them.

    sid: of the message; a new one if empty. more: fields to add or to change. One field is not Twilio's: it adds
    some without notice, so an app that refuses what it does not know must fail here first.
    """
    sid = sid or new_sid()
    fields = {
        "ToCountry": "KH",
        "ToState": "",
        "SmsMessageSid": sid,
        "NumMedia": "0",
        "ToCity": "",
        "FromZip": "",
        "SmsSid": sid,
        "FromState": "",
        "SmsStatus": "received",
        "FromCity": "",
        "Body": body,
        "FromCountry": "KH",
        "To": to,
        "ToZip": "",
        "NumSegments": str(segments(body)),
        "MessageSid": sid,
        "AccountSid": account_sid,
        "From": sender,
        "ApiVersion": "2010-04-01",
        "AddedWithoutNotice": "1",
    }
    return fields | more


def new_sid(prefix: str = "SM") -> str:
    """Return an identifier of Twilio's form: two letters and 32 hex digits."""
    return prefix + token_hex(16)


def segments(body: str) -> int:
    """Return how many parts a text travels in: 160 characters or joined 153, with any letter outside ASCII 70 or 67.

    Twilio reports the parts of what it has joined already. (GSM's few letters outside ASCII are counted as Khmer is.)
    """
    alone, joined = (160, 153) if body.isascii() else (70, 67)
    units = len(body.encode("utf-16-le", "surrogatepass")) // 2
    return 1 if units <= alone else -(-units // joined)


def sign(url: str, fields: Mapping[str, str], token: str | bytes) -> str:
    """Return the ``X-Twilio-Signature`` of a form posted to `url`: base64 of HMAC-SHA1 over it and the sorted fields.

    url: the public address that the app is configured with, whatever address the request really takes.
    """
    key = token.encode() if isinstance(token, str) else token
    text = url + "".join(name + fields[name] for name in sorted(fields))
    return b64encode(hmac.digest(key, text.encode(), "sha1")).decode()
