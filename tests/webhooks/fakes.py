"""Stand-ins for what the public app hands tips to."""

import asyncio
from dataclasses import dataclass, field
from uuid import UUID, uuid4

from service.intake import IncomingTip, Receipt


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
