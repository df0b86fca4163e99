"""Text messages from Twilio: SMS, and WhatsApp under the same webhook (twilio.md sections 2 to 4).

The answer is empty and comes only after the tip is stored: the worker acknowledges, once, when it is safe. This path
is plain ASGI, because it is the one that a flood comes through.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from starlette.types import Message, Receive, Scope, Send

from service.errors import BadSignature, Unavailable
from service.intake import IncomingTip
from service.models import Channel
from webhooks.admission import RETRY_AFTER
from webhooks.alarms import TIP_NOT_STORED, UNLISTED_NUMBER, WEBHOOK_REFUSED, Alarms
from webhooks.receiving import Receives, utc_now
from webhooks.signature import check, is_ours

SMS_PATH = "/webhooks/twilio/sms"
STATUS_PATH = "/webhooks/twilio/sms/status"
STATUSES = frozenset(
    {"accepted", "scheduled", "queued", "sending", "sent", "delivered", "read", "undelivered", "failed", "canceled"}
)
EMPTY_TWIML = b'<?xml version="1.0" encoding="UTF-8"?><Response/>'

_E164 = re.compile(r"\+[1-9][0-9]{6,14}")
# Words on a keypad that stand for a hidden caller: anonymous, blocked, private, restricted, unknown, unavailable.
# As contacts they would join all hidden callers into one open tip (twilio.md section 7; to be confirmed).
_HIDDEN = frozenset({"+266696687", "+2562533", "+7748283", "+7378742833", "+8656696", "+86282452253"})

_TAKEN = (
    (b"content-type", b"text/xml; charset=utf-8"),
    (b"content-length", str(len(EMPTY_TWIML)).encode()),
)
_NOTHING = (b"content-length", b"0")


@dataclass(frozen=True, slots=True)
class TwilioAccount:
    """What a webhook must fit. No token: nothing fits, and the endpoint is closed."""

    account_sid: str
    tokens: tuple[bytes, ...]
    public_urls: tuple[str, ...]
    numbers: tuple[str, ...]


class _Webhook:
    """What each webhook of this provider works with."""

    def __init__(
        self, account: TwilioAccount, intake: Receives, alarms: Alarms, *, now: Callable[[], datetime] = utc_now
    ) -> None:
        """Take what is signed for `account`, and give it to `intake`."""
        self._alarms = alarms
        self._account = account
        self._intake = intake
        self._now = now


class SmsWebhook(_Webhook):
    """``POST /webhooks/twilio/sms``."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Take one message. Twilio may deliver it more than once, and at once."""
        fields = await verified(self._account, self._alarms, scope, receive)
        if fields is None:
            await _answer(send, 403, (_NOTHING,))
            return
        if not is_ours(fields, self._account.numbers):
            self._alarms.ring(UNLISTED_NUMBER, "sms", delivery=fields["MessageSid"])
        try:
            await self._intake.receive(incoming_sms(fields, self._now()))
        except Unavailable:
            self._alarms.ring(TIP_NOT_STORED, "sms")
            await _answer(send, 503, (_NOTHING, (b"retry-after", RETRY_AFTER)))
            return
        await _answer(send, 200, _TAKEN, EMPTY_TWIML)


class StatusWebhook(_Webhook):
    """``POST /webhooks/twilio/sms/status``: how far a text of ours came (twilio.md section 5).

    Statuses come late, twice and in any order; each is kept once, and the worker takes it to the text it is about.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Take one status."""
        fields = await verified(self._account, self._alarms, scope, receive)
        if fields is None:
            await _answer(send, 403, (_NOTHING,))
            return
        status = fields["MessageStatus"]
        if status in STATUSES:
            code = _code(fields.get("ErrorCode", ""))
            try:
                await self._intake.report(fields["MessageSid"], status, code, self._now())
            except Unavailable:
                await _answer(send, 503, (_NOTHING, (b"retry-after", RETRY_AFTER)))
                return
        await _answer(send, 204, ())


async def verified(account: TwilioAccount, alarms: Alarms, scope: Scope, receive: Receive) -> dict[str, str] | None:
    """Return the fields of a webhook that Twilio signed, or None for anything else, after ringing an alarm."""
    message = await receive()
    try:
        fields = _check(account, scope, message)
    except Exception as fault:  # noqa: BLE001 - whatever it was, it is not known to be signed: fail closed
        reason = str(fault) if isinstance(fault, BadSignature) else type(fault).__name__
        alarms.ring(WEBHOOK_REFUSED, reason)
        return None
    alarms.good_signature()
    return fields


def _check(account: TwilioAccount, scope: Scope, message: Message) -> dict[str, str]:
    if message["type"] != "http.request" or message.get("more_body", False):
        raise BadSignature("no whole body")  # admission gives it in one piece
    raw_path = scope.get("raw_path") or scope["path"].encode()
    return check(
        message.get("body", b""),
        scope["headers"],
        raw_path.decode("ascii"),
        scope["query_string"],
        public_urls=account.public_urls,
        tokens=account.tokens,
        account_sid=account.account_sid,
    )


def incoming_sms(fields: dict[str, str], received_at: datetime) -> IncomingTip:
    """Return the tip in a verified form. Pictures are counted and never fetched (twilio.md section 4)."""
    return IncomingTip(
        channel=Channel.SMS,
        provider="twilio",
        kind="sms",
        delivery=fields["MessageSid"],
        text=fields["Body"],
        received_at=received_at,
        sender=sender_of(fields["From"]),
        media=_count(fields.get("NumMedia", "0")),
    )


def sender_of(typed: str) -> str | None:
    """Return the number that can be answered, E.164, or None for hidden callers, short codes and names."""
    number = typed.removeprefix("whatsapp:")
    return number if _E164.fullmatch(number) and number not in _HIDDEN else None


def _code(digits: str) -> int | None:
    """Return the number of an error of Twilio's, which has five digits."""
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 7 else None


def _count(digits: str) -> int:
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 4 else 0


async def _answer(send: Send, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes = b"") -> None:
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})
    await send({"type": "http.response.body", "body": body})
