"""The phones that the simulator plays and those of people on duty: what each sent and got, and what is typed on it.

A phone keeps its own copy of a text, as a handset does: what the provider deletes stays in the thread.
"""

import asyncio
import re
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import structlog

from service.logs import place
from webhooks.simulator.delivery import Target, Transport, deliver_callbacks, deliver_text
from webhooks.simulator.provider import MAX_BODY, Callbacks, Exchange, Fault, Message, Provider

FIRST = ("+85500000001", "+85500000002")
MOST = 12  # phones at once; the one that was used least recently makes room
KEPT = 100  # texts that a phone shows
EVERY = 0.25  # seconds between two steps of the provider's clock

_NUMBER = re.compile(r"(whatsapp:)?\+[1-9][0-9]{6,14}|[0-9]{3,8}|[a-z]{1,20}")  # or a short code, or "anonymous"
_log = structlog.get_logger("simulator")


class Unsendable(Exception):
    """A text, number or choice that the simulator cannot take; the message is a text of the catalogue."""


@dataclass(slots=True)
class Text:
    """One text as its phone shows it. deliveries: how many were begun; answers: how each that ended was answered."""

    message: Message
    words: str
    deliveries: int = 0
    answers: list[Exchange] = field(default_factory=list)


@dataclass(slots=True)
class Phone:
    """One telephone. draft: what is typed and not sent. used: order of use among all phones."""

    number: str
    texts: list[Text] = field(default_factory=list)
    draft: str = ""
    used: int = 0


@dataclass(frozen=True, slots=True)
class OnDuty:
    """A telephone of somebody on duty. posts: each a unit, and whether as its supervisor."""

    phone: Phone
    posts: list[tuple[str, bool]] = field(default_factory=list)


class Phones:
    """All telephones around one provider. Belongs to one event loop."""

    def __init__(
        self, provider: Provider, target: Target, duty: Mapping[str, Sequence[str]], transport: Transport
    ) -> None:
        """Begin with two phones. duty: numbers by "UNIT" or "UNIT/supervisor", as in the settings."""
        self.provider = provider
        self._target = target
        self._transport = transport
        self.until: datetime | None = None
        """When what was set to go wrong ends by itself."""
        self.by_number: dict[str, Phone] = {}
        self.duty: dict[str, OnDuty] = {}
        for post, numbers in duty.items():
            for number in numbers:
                person = self.duty.setdefault(number, OnDuty(Phone(number)))
                person.posts.append((post.partition("/")[0], post.endswith("/supervisor")))
        self._used = 0
        self._seen = 0  # serial of the newest text that was handed to a phone
        self._tasks: set[asyncio.Task[None]] = set()
        for number in FIRST:
            self.phone(number)

    # -- phones and texts ----------------------------------------------------------------------------------------

    def phone(self, number: str) -> Phone:
        """Return the phone `number`, a new one if need be."""
        if number not in self.by_number:
            if len(self.by_number) >= MOST:
                del self.by_number[min(self.by_number.values(), key=lambda phone: phone.used).number]
            self.by_number[number] = Phone(number)
        self._used += 1
        self.by_number[number].used = self._used
        return self.by_number[number]

    @property
    def numbers(self) -> list[str]:
        """All numbers, those on duty last."""
        return list(dict.fromkeys([*self.by_number, *self.duty]))

    def another(self) -> Phone:
        """Return a new phone with the next number that none has. Raises Unsendable when there are enough."""
        if len(self.by_number) >= MOST:
            raise Unsendable("Twelve phones are enough for one table.")
        return self.phone(next(n for n in (f"+8550000{i:04}" for i in range(1, 10_000)) if n not in self.by_number))

    def text(self, sid: str) -> Text:
        """Return the text `sid` that a phone sent and still shows. Raises Unsendable."""
        for phone in self.by_number.values():
            for text in phone.texts:
                if text.message.sid == sid and text.message.direction == "inbound":
                    return text
        raise Unsendable("No phone has sent such a text.")

    def last(self) -> Text:
        """Return the text that was sent last, by any phone. Raises Unsendable."""
        sent = [t for phone in self.by_number.values() for t in phone.texts if t.message.direction == "inbound"]
        if not sent:
            raise Unsendable("No phone has sent a text yet.")
        return max(sent, key=lambda text: text.message.serial)

    def _look(self) -> None:
        """Hand what is new at the provider to the phones that it is from or for; a stranger's number gets a phone."""
        fresh = []
        for message in reversed(self.provider.messages.values()):
            if message.serial <= self._seen:
                break
            fresh.append(message)
        for message in reversed(fresh):
            self._seen = message.serial
            outbound = message.direction != "inbound"
            number = message.to if outbound else message.sender
            phone = self.duty[number].phone if outbound and number in self.duty else self.phone(number)
            phone.texts = [*phone.texts[1 - KEPT :], Text(message, message.body)]

    # -- sending -------------------------------------------------------------------------------------------------

    def send(self, number: str, to: str, words: str) -> Text:
        """Return a text that `number` has sent to `to`, at the provider and not delivered yet. Raises Unsendable."""
        if not _NUMBER.fullmatch(number) or not _NUMBER.fullmatch(to):
            raise Unsendable("A number is written like +85500000001.")
        if len(words.encode("utf-16-le")) // 2 > MAX_BODY:
            raise Unsendable("A text has at most 1,600 characters.")
        message = self.provider.arrives(sender=number, to=to, body=words)
        self._look()
        return self.text(message.sid)

    def deliver(self, text: Text) -> "asyncio.Task[None]":
        """Begin to deliver a text to the app, for the first time or again, as after a lost answer; return its task."""

        async def carry() -> None:
            whole = replace(text.message, body=text.words)  # even if the app has emptied it at the provider
            answer = await deliver_text(self.provider, self._target, whole, transport=self._transport)
            text.answers.append(answer)

        text.deliveries += 1
        return self._begin(carry())

    # -- what goes wrong -----------------------------------------------------------------------------------------

    @property
    def faults(self) -> Sequence[Fault]:
        """What the REST side gets wrong now."""
        return tuple(self.provider._faults)

    def recover(self) -> None:
        """Get nothing wrong any more: no fault, every text arrives, callbacks come as they should."""
        self.until = None
        self.provider.recover()
        self.provider.outcomes.clear()
        self.provider.callbacks = Callbacks()

    def fail(self, operation: str, how: str, times: int | None, lasting: timedelta | None) -> None:
        """Let `operation` fail, see ``Provider.fail``; after `lasting`, all is well again. Raises ValueError."""
        self.provider.fail(operation, how, times)
        if lasting is not None:
            self.until = self.provider.now() + lasting

    # -- time ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep the provider's clock going, until cancelled. A fault in one step is told and costs that step alone."""
        while True:
            try:
                self.step()
            except Exception as fault:  # noqa: BLE001 - the clock must go on
                _log.error("simulator_step_failed", error=type(fault).__name__, place=place(fault))
            await asyncio.sleep(EVERY)

    def step(self) -> None:
        """Move texts on by their age, begin what callbacks are due, and show what is new."""
        if self.until is not None and self.provider.now() >= self.until:
            self.recover()
        changes = self.provider.advance()
        if changes:
            self._begin(deliver_callbacks(self.provider, self._target, changes, transport=self._transport))
        self._look()

    async def stop(self) -> None:
        """Give up what is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _begin(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)  # the loop itself holds tasks only weakly
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        fault = None if task.cancelled() else task.exception()
        if fault is not None:
            _log.error("simulator_delivery_failed", error=type(fault).__name__, place=place(fault))
