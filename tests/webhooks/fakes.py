"""Stand-ins for what the public app hands tips to."""

import asyncio
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any
from uuid import UUID, uuid4

from service import mailbox as domain
from service.errors import Busy
from service.intake import IncomingTip, Receipt
from service.mailbox import Opened
from service.vault import mailbox
from service.vault.mailbox import Address, Prepared, new_code
from webhooks.codes import Finished


@dataclass
class FakeIntake:
    """Keeps tips in memory, one per delivery, or fails as it is told."""

    failing: BaseException | None = None
    gate: asyncio.Event | None = None
    received: list[IncomingTip] = field(default_factory=list)
    stored: dict[tuple[str, str, str], UUID] = field(default_factory=dict)

    async def receive(self, tip: IncomingTip) -> Receipt:
        """Store like ``service.intake.Intake``."""
        if self.gate is not None:
            await self.gate.wait()
        if self.failing is not None:
            raise self.failing
        key = (tip.provider, tip.kind, tip.delivery)
        repeated = key in self.stored
        self.received.append(tip)
        return Receipt(self.stored.setdefault(key, uuid4()), repeated, "P3")

    @property
    def last(self) -> IncomingTip:
        """The tip that came last."""
        return self.received[-1]


CODE = "4071925583640210"
TIP, BOX = UUID(int=7), UUID(int=8)


def address_of(code: str) -> Address:
    """Where the mailbox of a code is, cheaply."""
    return mailbox.address(code, bytes(32), mailbox.Cost(1, 8))


@dataclass
class Numbers:
    """Codes without a child: derived here and cheaply, counted."""

    ready: list[Finished] = field(default_factory=list)
    derived: list[str] = field(default_factory=list)
    busy: bool = False

    def take(self) -> Finished | None:
        return self.ready.pop() if self.ready else None

    def bucket(self, scope: Any) -> bytes:
        return b"an address"

    async def derive(self, code: str, bucket: bytes) -> Address:
        if self.busy:
            raise Busy("too many")
        self.derived.append(code)
        return address_of(code)

    def finish(self) -> str:
        """Put a finished code into the pool, and return it."""
        code = new_code()
        self.ready.append(Finished(code, Prepared(address_of(code), bytes(32))))
        return code


@dataclass
class Boxes:
    """Mailboxes in memory."""

    status: str = "being_read"
    questions: tuple[tuple[int, str], ...] = ()
    grade: str | None = None
    looked: list[Address] = field(default_factory=list)
    challenged: list[UUID] = field(default_factory=list)
    failing: BaseException | None = None

    def open(self, address: Address) -> Opened | None:
        self.looked.append(address)
        if address != address_of(CODE):
            return None
        return Opened(BOX, TIP, self.status, date(2027, 3, 9), self.questions, self.grade)

    def receipt(self, mailbox_id: UUID) -> domain.Receipt | None:
        return domain.Receipt(self.grade, b"c2sp.org/tlog-proof@v1\n") if self.grade and mailbox_id == BOX else None

    async def challenge(self, tip: UUID, now: datetime) -> None:
        if self.failing is not None:
            raise self.failing
        self.challenged.append(tip)
