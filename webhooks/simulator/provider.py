"""Twilio's side, in memory: the messages, calls and recordings it holds, and what it was told to get wrong.

Pure: nothing waits and nothing is sent, and time comes from `now` alone. ``rest`` answers the provider's own client
from it, ``delivery`` posts what it has to say. (twilio.md sections 4 to 6 and 9 to 11.)
"""

import random
import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any, Literal

Direction = Literal["inbound", "outbound-api", "outbound-reply"]
Kind = Literal["message", "call", "recording"]
Outcome = Literal["delivered", "undelivered", "failed", "no receipt", "blocked", "blocked at create"]
"""What becomes of texts to one number. "no receipt": they stay "sent" for ever, and so cannot be deleted.
"blocked": refused with 21610 in a later callback; "blocked at create": at once."""

OPT_OUT = frozenset({"STOP", "STOPALL", "UNSUBSCRIBE", "CANCEL", "END", "QUIT", "REVOKE", "OPTOUT"})
OPT_IN = frozenset({"START", "YES", "UNSTOP"})
FINAL = frozenset({"delivered", "undelivered", "failed", "received", "read", "canceled"})
CALL_FINAL = frozenset({"completed", "busy", "failed", "no-answer", "canceled"})
MAX_BODY = 1600

OPERATIONS = frozenset(
    {f"messages.{verb}" for verb in ("create", "list", "fetch", "update", "delete")}
    | {f"{kind}.{verb}" for kind in ("media", "calls", "recordings") for verb in ("list", "fetch", "delete")}
)
_WAYS = frozenset(
    {"429", "401", "garbled after"}
    | {f"{way} {when}" for way in ("500", "silent", "hang up") for when in ("before", "after")}
)
_E164 = re.compile(r"\+[1-9][0-9]{6,14}")

# How old a text is when it gets its next status. Short, so that the demo shows all of them.
_SENDING, _SENT, _REPORTED = timedelta(seconds=0.5), timedelta(seconds=1), timedelta(seconds=3)
_STEPS: Mapping[str, tuple[tuple[str, timedelta, int | None], ...]] = {
    "delivered": (("sending", _SENDING, None), ("sent", _SENT, None), ("delivered", _REPORTED, None)),
    "undelivered": (("sending", _SENDING, None), ("sent", _SENT, None), ("undelivered", _REPORTED, 30003)),
    "failed": (("sending", _SENDING, None), ("failed", _SENT, 30008)),
    "no receipt": (("sending", _SENDING, None), ("sent", _SENT, None)),
    "blocked": (("sending", _SENDING, None), ("failed", _SENT, 21610)),
}
_RANK = {"queued": 0, "sending": 1, "sent": 2}


@dataclass(slots=True)
class Message:
    """One text, in or out. A deleted one is gone from the store."""

    sid: str
    direction: Direction
    sender: str
    to: str
    body: str
    status: str
    created_at: datetime
    updated_at: datetime
    sent_at: datetime | None = None
    error_code: int | None = None
    media: list[str] = field(default_factory=list)
    status_callback: str | None = None
    serial: int = 0  # order of creation: pages go by it, whatever is deleted meanwhile

    @property
    def final(self) -> bool:
        """Whether nothing more happens to it, so that it can be deleted."""
        return self.status in FINAL


@dataclass(slots=True)
class Call:
    """One call. Times are None until it began, or ended."""

    sid: str
    direction: Literal["inbound", "outbound-api"]
    sender: str
    to: str
    status: str
    created_at: datetime
    started_at: datetime | None = None
    ended_at: datetime | None = None
    serial: int = 0

    @property
    def final(self) -> bool:
        """Whether it is over."""
        return self.status in CALL_FINAL


@dataclass(slots=True)
class Recording:
    """What was recorded of a call; its sound is not kept here."""

    sid: str
    call_sid: str
    seconds: int
    created_at: datetime
    status: str = "completed"
    serial: int = 0

    @property
    def final(self) -> bool:
        """Whether it can be deleted."""
        return self.status in ("completed", "absent")


@dataclass(frozen=True, slots=True)
class Deletion:
    """Something the provider no longer has."""

    sid: str
    kind: Literal["message", "media", "call", "recording"]
    at: datetime


@dataclass(frozen=True, slots=True)
class StatusChange:
    """A new status of an outbound text, with what its callback says. The text itself may be deleted by then."""

    sid: str
    sender: str
    to: str
    status: str
    error_code: int | None
    callback: str | None
    at: datetime


@dataclass(slots=True)
class Callbacks:
    """What goes wrong with status callbacks. Nothing, as it stands."""

    shuffled: bool = False
    doubled: bool = False
    late: timedelta = timedelta()  # each comes up to this much later than it should
    missing: float = 0.0  # the share that never comes, 0 to 1


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request and its answer: ours to the app ("webhook"), or the app's to us ("rest").

    status: None when nobody answered. note: what went wrong, in words; empty when nothing did.
    """

    at: datetime
    side: Literal["webhook", "rest"]
    method: str
    path: str
    status: int | None
    milliseconds: int
    fields: Mapping[str, str]
    signature: str = ""
    note: str = ""


@dataclass(slots=True)
class Fault:
    """One thing to get wrong. times: how often still, None for ever. after: seconds, as in Retry-After."""

    operation: str
    how: str
    times: int | None
    after: float | None


class RestFault(Exception):
    """What the REST side answers instead of what was asked for: an HTTP status, and Twilio's own code."""

    def __init__(self, status: int, code: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


def utc_now() -> datetime:
    """Return this moment."""
    return datetime.now(UTC)


class Provider:
    """Twilio's side, in memory: what it holds, what it was told to get wrong."""

    def __init__(
        self,
        *,
        account_sid: str,
        auth_token: str | bytes,
        api_keys: Mapping[str, str],
        numbers: Sequence[str],
        now: Callable[[], datetime] = utc_now,
        seed: int | None = None,
    ) -> None:
        """Hold nothing yet. api_keys: secrets by SID ("SK…"). numbers: what texts may be sent from.

        seed: the same identifiers, and the same disorder of callbacks, each time.
        """
        self.account_sid = account_sid
        self.auth_token = auth_token.decode() if isinstance(auth_token, bytes) else auth_token
        self.api_keys = dict(api_keys)
        self.numbers = tuple(numbers)
        self.now = now
        self.messages: dict[str, Message] = {}
        self.calls: dict[str, Call] = {}
        self.recordings: dict[str, Recording] = {}
        self.deletions: list[Deletion] = []
        self.opted_out: set[str] = set()
        self.outcomes: dict[str, Outcome] = {}
        self.callbacks = Callbacks()
        self.log: deque[Exchange] = deque(maxlen=500)
        self.answers_keywords = False  # Twilio's English reply to STOP and START, until support switches it off
        self._faults: list[Fault] = []
        self._due: list[tuple[datetime, StatusChange]] = []
        self._serials = count(1)
        self._random = random.Random(seed)  # noqa: S311 - names and disorder of a fake

    def knows(self, username: str, password: str) -> bool:
        """Return whether these credentials are an API key's, or the account's own."""
        return self.api_keys.get(username) == password or (username, password) == (self.account_sid, self.auth_token)

    # -- from the phones -----------------------------------------------------------------------------------------

    def arrives(self, *, sender: str, to: str, body: str, media: int = 0) -> Message:
        """Return a text that a phone sent, now in the store. STOP and its like block the number (twilio.md 6)."""
        self.refresh()  # what was sent before a STOP is not stopped by it
        now = self.now()
        message = Message(
            sid=self._sid("MM" if media else "SM"),
            direction="inbound",
            sender=sender,
            to=to,
            body=body,
            status="received",
            created_at=now,
            updated_at=now,
            sent_at=now,
            media=[self._sid("ME") for _ in range(media)],
            serial=next(self._serials),
        )
        self.messages[message.sid] = message
        self._obey(message)
        return message

    def rings(self, *, sender: str, to: str, seconds: int = 0, status: str = "completed") -> Call:
        """Return a call of so many seconds that came in and, unless `status` says otherwise, is over."""
        now = self.now()
        ended = now if status in CALL_FINAL else None
        started = now - timedelta(seconds=seconds)
        call = Call(self._sid("CA"), "inbound", sender, to, status, started, started, ended, next(self._serials))
        self.calls[call.sid] = call
        return call

    def records(self, call: Call, *, seconds: int) -> Recording:
        """Return a recording of `call`, now in the store."""
        recording = Recording(self._sid("RE"), call.sid, seconds, self.now(), serial=next(self._serials))
        self.recordings[recording.sid] = recording
        return recording

    # -- what the app asks for -----------------------------------------------------------------------------------

    def create(self, *, to: str, sender: str, body: str, status_callback: str | None) -> Message:
        """Return a text that will be sent. Raises RestFault as Twilio does; its words name the number, as there."""
        if not _E164.fullmatch(to):
            raise RestFault(400, 21211, f"The 'To' number {to} is not a valid phone number.")
        if sender not in self.numbers:
            raise RestFault(400, 21606, f"The From phone number {sender} is not a valid, SMS-capable number.")
        if to == sender:
            raise RestFault(400, 21266, f"'To' and 'From' number cannot be the same: {to}")
        if not body:
            raise RestFault(400, 21602, "Message body is required.")
        if len(body.encode("utf-16-le", "surrogatepass")) // 2 > MAX_BODY:
            raise RestFault(400, 21617, "The concatenated message body exceeds the 1600 character limit.")
        if to in self.opted_out or self.outcomes.get(to) == "blocked at create":
            raise RestFault(400, 21610, f"Attempt to send to unsubscribed recipient {to}")
        return self._sends(to, sender, body, "outbound-api", status_callback)

    def find(self, kind: Kind, sid: str) -> Any:
        """Return the Message, Call or Recording that is held under `sid`, as it is now. Raises RestFault 20404."""
        self.refresh()
        if sid not in self.held(kind):
            raise RestFault(404, 20404, f"The requested resource {sid} was not found")
        return self.held(kind)[sid]

    def held(self, kind: Kind) -> dict[str, Any]:
        """Return all of one kind that is held, by SID."""
        stores: dict[Kind, dict[str, Any]]
        stores = {"message": self.messages, "call": self.calls, "recording": self.recordings}
        return stores[kind]

    def empty(self, sid: str) -> Message:
        """Take away the words of the text `sid`, keep the rest. Raises RestFault 20404, or 20009 before it is final."""
        message: Message = self._finished("message", sid)
        message.body, message.updated_at = "", self.now()
        return message

    def delete(self, kind: Kind, sid: str) -> None:
        """Forget what is held under `sid`; a text's media go with it.

        Raises RestFault 20404, or 20009 before it is final: a text that is "sent" still waits for its receipt.
        """
        found = self._finished(kind, sid)
        self.deletions += [Deletion(media, "media", self.now()) for media in getattr(found, "media", ())]
        del self.held(kind)[sid]
        self.deletions.append(Deletion(sid, kind, self.now()))

    def delete_media(self, sid: str, media: str) -> None:
        """Forget one picture of the text `sid`. Raises RestFault 20404."""
        message: Message = self.find("message", sid)
        if media not in message.media:
            raise RestFault(404, 20404, f"The requested resource {media} was not found")
        message.media.remove(media)
        self.deletions.append(Deletion(media, "media", self.now()))

    # -- time ----------------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Move outbound texts on by their age."""
        for message in list(self.messages.values()):  # tests look on from another thread
            if message.direction != "inbound" and not message.final:
                self._move_on(message)

    def advance(self) -> list[StatusChange]:
        """Move outbound texts on by their age, and return the changes whose callbacks are due now.

        There is none for the first status. In what way they come is up to ``callbacks`` (twilio.md section 5).
        """
        self.refresh()
        now = self.now()
        due = [change for at, change in self._due if at <= now]
        self._due = [(at, change) for at, change in self._due if at > now]
        if self.callbacks.shuffled:
            self._random.shuffle(due)
        return due

    # -- what goes wrong -----------------------------------------------------------------------------------------

    def fail(self, operation: str, how: str, times: int | None = 1, after: float | None = None) -> None:
        """Get `operation` wrong the next `times` times (None: until ``recover``).

        operation: one of OPERATIONS, or "*". how: "429" (`after`: seconds of Retry-After), "401", "500 before" or
        "500 after" having acted, "silent before" or "silent after" (no answer at all), "hang up before" or "hang up
        after" (the connection closes without one), "garbled after" (an answer that is not JSON), or one of Twilio's
        codes, such as "20009".
        Raises ValueError for anything else: a fault that never happens proves nothing.
        """
        if operation != "*" and operation not in OPERATIONS:
            raise ValueError(f"no such operation: {operation}; there are * {' '.join(sorted(OPERATIONS))}")
        if how not in _WAYS and not re.fullmatch(r"[1-9][0-9]{4}", how):
            raise ValueError(f"no such way to fail: {how}; there are {', '.join(sorted(_WAYS))} and Twilio's codes")
        if times is not None and times < 1:
            raise ValueError("times: a number from 1, or None for ever")
        self._faults.append(Fault(operation, how, times, after))

    def recover(self) -> None:
        """Get nothing wrong any more."""
        self._faults.clear()

    def next_fault(self, operation: str) -> Fault | None:
        """Return what to get wrong with this one request, and count it."""
        for fault in self._faults:
            if fault.operation in ("*", operation):
                if fault.times is not None:
                    fault.times -= 1
                    if fault.times <= 0:
                        self._faults.remove(fault)
                return fault
        return None

    # -- inside --------------------------------------------------------------------------------------------------

    def _sid(self, prefix: str) -> str:
        return prefix + self._random.randbytes(16).hex()

    def _sends(self, to: str, sender: str, body: str, direction: Direction, callback: str | None) -> Message:
        now = self.now()
        message = Message(
            sid=self._sid("SM"),
            direction=direction,
            sender=sender,
            to=to,
            body=body,
            status="queued",
            created_at=now,
            updated_at=now,
            status_callback=callback,
            serial=next(self._serials),
        )
        self.messages[message.sid] = message
        return message

    def _obey(self, message: Message) -> None:
        """Act on a reserved word, which stands alone and is English."""
        word, phone = message.body.strip().upper(), message.sender
        if word in OPT_OUT:
            self.opted_out.add(phone)
            reply = "You have successfully been unsubscribed. You will not receive any more messages from this number."
        elif word in OPT_IN:
            self.opted_out.discard(phone)
            reply = "You have successfully been re-subscribed to messages from this number."
        else:
            return
        if self.answers_keywords:
            self._sends(phone, message.to, reply, "outbound-reply", None)

    def _move_on(self, message: Message) -> None:
        blocked = message.to in self.opted_out and message.direction == "outbound-api" and message.status != "sent"
        outcome = self.outcomes.get(message.to, "delivered")
        for status, age, code in _STEPS["blocked" if blocked or outcome == "blocked at create" else outcome]:
            at = message.created_at + age
            if at > self.now():
                return
            if _RANK.get(status, 3) <= _RANK.get(message.status, 3):
                continue
            message.status, message.error_code, message.updated_at = status, code, at
            if status == "sent":
                message.sent_at = at
            change = StatusChange(
                message.sid, message.sender, message.to, status, code, message.status_callback, message.updated_at
            )
            self._call_back(change)

    def _call_back(self, change: StatusChange) -> None:
        habits = self.callbacks
        if not change.callback:
            return
        for _ in range(2 if habits.doubled else 1):
            if self._random.random() >= habits.missing:
                self._due.append((change.at + habits.late * self._random.random(), change))

    def _finished(self, kind: Kind, sid: str) -> Any:
        found = self.find(kind, sid)
        if not found.final:
            raise RestFault(409, 20009, f"Cannot change {kind} {sid} in state {found.status.upper()}")
        return found
