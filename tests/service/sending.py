"""What tests of texts are built of: a fake provider without a wire, people on duty, and a clock that tests move."""

import io
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID

import structlog
from sqlalchemy import select, update

from service import cases, outbox
from service.copies import Copies
from service.db import write
from service.errors import NotSent, Refused, Unclear
from service.intake import Receipt
from service.ladder import Watch, answer_pages, climb
from service.ledger.events import SYSTEM, EventType, NewEvent, StateClass
from service.models import Case, Clock, Contact, OutboxJob, State
from service.relay import Relay
from tests.builders import NOW, World, a_number, a_tip, the_case
from tests.service.test_events import stored
from webhooks.simulator.provider import FINAL, Message, Provider, RestFault

T = TypeVar("T")

OURS = "+85500000009"
DUTY = {
    "screening": ("+85500000201", "+85500000202"),
    "screening/supervisor": ("+85500000203",),
    "siem-reap": ("+85500000206",),
    "integrity": ("+85500000207",),
    "oversight": ("+85500000204",),
    "oversight-2": ("+85500000205",),
}


@dataclass(frozen=True)
class Held:
    """A copy at the provider, as ``webhooks.twilio_client`` shows it."""

    sid: str
    inbound: bool
    status: str
    final: bool
    error_code: int | None
    at: datetime


@dataclass
class Wireless:
    """The fake provider without a wire: what it gets wrong is what ``webhooks.twilio_client`` makes of it.

    away: nobody takes the connection. begun: is run at the beginning of each request.
    """

    provider: Provider
    away: bool = False
    begun: Callable[[], None] = lambda: None
    name: str = "twilio"
    sent: list[tuple[str, str]] = field(default_factory=list)  # what it was asked to send, whatever came of it

    def send(self, to: str, text: str) -> str:
        self.sent.append((to, text))
        create = self.provider.create
        return self._ask("messages.create", lambda: create(to=to, sender=OURS, body=text, status_callback=None).sid)

    def find(self, to: str, text: str, since: datetime) -> list[str]:
        def there() -> list[str]:
            self.provider.refresh()
            return [m.sid for m in self.texts() if (m.to, m.body) == (to, text) and m.created_at >= since]

        return self._ask("messages.list", there)

    def copies(self, since: datetime) -> Iterator[Held]:
        def there() -> list[Held]:
            self.provider.refresh()
            held = [message for message in self.provider.messages.values() if message.created_at >= since]
            return [
                Held(m.sid, m.direction == "inbound", m.status, m.status in FINAL, m.error_code, m.created_at)
                for m in held
            ]

        yield from self._ask("messages.list", there)

    def delete(self, copy: Held) -> bool:
        try:
            self._ask("messages.delete", lambda: self.provider.delete("message", copy.sid))
        except Refused as refusal:
            if refusal.code == 20009:
                return False
            raise
        return True

    def texts(self) -> list[Message]:
        """Everything that was ever taken for sending and is still held."""
        return [m for m in list(self.provider.messages.values()) if m.direction == "outbound-api"]

    def _ask(self, operation: str, act: Callable[[], T]) -> T:
        self.begun()
        if self.away:
            raise NotSent("the provider was not reached")
        fault = self.provider.next_fault(operation)
        if fault is not None:
            if fault.how == "429":
                raise NotSent("the provider asks for patience", after=fault.after)
            if fault.how == "401":
                raise NotSent("the provider does not accept our key")
            if fault.how.isdigit():
                raise Refused(int(fault.how))
        try:
            found = act() if fault is None or fault.how.endswith("after") else None
        except RestFault as refusal:
            raise Refused(refusal.code) from None
        if fault is not None:
            raise Unclear("the provider did not answer")
        return found  # type: ignore[return-value]


class OneByOne(Executor):
    """Does everything at once, in order, in the caller's own thread."""

    def map(self, fn: Callable[..., T], *items: Any, **_: Any) -> Iterator[T]:  # type: ignore[override]
        return iter([fn(item) for item in items[0]])


@dataclass
class Scene:
    """An installation with a worker's parts, a provider and a clock that only the test moves."""

    world: World
    duty: dict[str, tuple[str, ...]] = field(default_factory=lambda: dict(DUTY))
    now: datetime = NOW
    provider: Provider = field(init=False)
    carrier: Wireless = field(init=False)

    def __post_init__(self) -> None:
        keys = {"SK" + "0" * 32: "an invented secret"}
        self.provider = Provider(
            account_sid="AC" + "0" * 32, auth_token="t", api_keys=keys, numbers=[OURS], now=lambda: self.now, seed=7
        )
        self.carrier = Wireless(self.provider)

    @property
    def relay(self) -> Relay:
        """A worker's relay. Each is like a worker of its own: it holds nothing between rounds."""
        founding = self.world.founding
        return Relay(
            self.world.sessions,
            self.world.ledger,
            self.carrier,
            founding.row_key,
            {founding.relay.generation: founding.relay_private},
            self.duty,
            lambda: self.now,
        )

    @property
    def watch(self) -> Watch:
        """Who is told."""
        return Watch(self.world.ledger, self.world.founding.row_key, self.world.founding.cards, self.duty)

    def copies(self) -> Copies[Held]:
        """A new worker's rounds of deleting."""
        return Copies(self.world.sessions, self.world.ledger, self.carrier, self.world.founding.row_key)

    # --- what happens ---

    def tip(self, words: str = "Please look at the guesthouse.", **changed: Any) -> Case:
        """Take a text of a new number, now, and return its case."""
        known = {"sender": a_number(), "received_at": self.now} | changed
        [receipt] = self.world.receive(a_tip(words, **known))
        case: Case = the_case(self.world, receipt.tip)
        return case

    def follow_up(self, words: str, sender: str) -> Receipt:
        """Take a further text of a number, now."""
        [receipt] = self.world.receive(a_tip(words, sender=sender, received_at=self.now))
        return receipt

    def send(self) -> list[tuple[str, str]]:
        """Let the relay send what waits now, and return number and words of what the provider was asked to send."""
        before = len(self.carrier.sent)
        while self.relay.send_due(OneByOne()):
            pass
        return self.carrier.sent[before:]

    def climb(self) -> int:
        """Answer pages and take all steps that are due now, and return how many."""
        taken = 0
        while found := answer_pages(self.world.sessions, self.watch, self.now) + climb(
            self.world.sessions, self.watch, self.now
        ):
            taken += found
        return taken

    def rung(self) -> list[str]:
        """Answer pages, climb and send; return the numbers on duty that got a text."""
        self.climb()
        on_duty = {number for numbers in self.duty.values() for number in numbers}
        return sorted(to for to, _ in self.send() if to in on_duty)

    def later(self, **span: float) -> None:
        """Let time pass, and nothing else."""
        self.now += timedelta(**span)

    def look(self, rounds: int = 1, **span: float) -> int:
        """Let time pass and look for unclear texts, so many rounds; return how many were settled."""
        settled = 0
        for _ in range(rounds):
            self.later(**span)
            settled += self.relay.look_for_unclear()
        return settled

    # --- what is there ---

    def rows(self, kind: str | None = None, case: Case | None = None) -> list[OutboxJob]:
        """Outbox rows, in a fixed order."""
        with self.world.sessions.read() as session:
            rows = session.scalars(select(OutboxJob).order_by(OutboxJob.not_before, OutboxJob.key)).all()
        return [r for r in rows if kind in (None, r.kind) and (case is None or r.case == case.id)]

    def row(self, kind: str = outbox.ACKNOWLEDGE) -> OutboxJob:
        """The only row of a kind."""
        [row] = self.rows(kind)
        return row

    def states(self, kind: str | None = None) -> list[str]:
        """The states of all rows of a kind."""
        return sorted(row.state for row in self.rows(kind))

    def contact(self) -> Contact:
        """The only contact."""
        with self.world.sessions.read() as session:
            return session.scalars(select(Contact)).one()

    def clock(self, case: Case, kind: str = "claim") -> Clock:
        """A case's clock of a kind."""
        with self.world.sessions.read() as session:
            return session.scalars(select(Clock).where(Clock.case == case.id, Clock.kind == kind)).one()

    def events(self, case: Case) -> list[str]:
        """Types of a case's events, oldest first."""
        return [event.type for event in stored(self.world.sessions, case.chain)]

    def change(self, row: UUID, **values: Any) -> None:
        """Change an outbox row past its tag, as the database's administrator could."""
        write(
            self.world.sessions,
            lambda tx: tx.execute(update(OutboxJob).where(OutboxJob.id == row).values(**values)),
        )

    def close(self, case: Case) -> None:
        """Close a case, past its table of transitions: the next text of its contact begins a new tip."""
        event = NewEvent(EventType.CLOCK_MET, self.now, SYSTEM, StateClass.CLOSED)
        write(
            self.world.sessions,
            lambda tx: cases.change(tx, self.world.ledger, tx.get(Case, case.id), [event], state=State.CLOSED),
        )

    def got(self, number: str) -> list[str]:
        """The words that the provider took for a number."""
        return [message.body for message in self.carrier.texts() if message.to == number]

    def in_front_of(self, name: str) -> set[UUID]:
        """The cases with a text that this person must look at."""
        with self.world.sessions.read() as session:
            return set(outbox.unseen(session, self.world.signed_in(name).viewer))


@contextmanager
def everything_logged() -> Iterator[io.StringIO]:
    """Everything that is logged meanwhile, strictly: a key that is not on the allow-list raises."""
    lines, before = io.StringIO(), structlog.get_config()
    structlog.configure(**before | {"logger_factory": structlog.PrintLoggerFactory(lines)})  # type: ignore[arg-type]
    try:
        yield lines
    finally:
        structlog.configure(**before)


def at_once(*works: Callable[[], T]) -> list[T]:
    """Run all of it in threads that begin together, and return what each returned. Raises what one raised."""
    gate = threading.Barrier(len(works))

    def run(work: Callable[[], T]) -> T:
        gate.wait()
        return work()

    with ThreadPoolExecutor(len(works)) as pool:
        return [future.result() for future in [pool.submit(run, work) for work in works]]
