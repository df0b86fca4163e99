"""A small ledger for tests: a log with its signer, four witnesses in memory, and events on a few chains."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import select

from service.db import Sessions, write
from service.errors import Fork
from service.ledger import notes, tree
from service.ledger.events import SYSTEM, EventType, Ledger, NewEvent, StateClass, append, new_chain
from service.ledger.merkle import is_extension
from service.ledger.notes import Checkpoint, Policy
from service.ledger.sequencer import Sequencer
from service.ledger.signer import Signer
from service.models import LedgerEvent, LedgerState
from service.vault import boxes
from service.vault.note import COSIGNATURE, vkey

ORIGIN = "bamboo.example/log"
NOW = datetime(2027, 3, 9, 7, 21, 30, tzinfo=UTC)
SEED = b"\x01" * 32
COVER_KEY = b"\x07" * 32
WITNESS_SEEDS = {f"{word}.example/w": bytes([n]) * 32 for n, word in enumerate(("ngo", "council", "un", "intl"), 2)}


def policy_text() -> str:
    lines = [f"log {vkey(ORIGIN, boxes.signing_public_of(SEED))} https://{ORIGIN}/"]
    for name, seed in WITNESS_SEEDS.items():
        word = name.split(".")[0].upper()
        lines.append(f"witness {word} {vkey(name, boxes.signing_public_of(seed), COSIGNATURE)} https://{name}/")
    return "\n".join([*lines, "group independent 3 NGO COUNCIL UN INTL", "quorum independent", ""])


@dataclass
class FourWitnesses:
    """Four honest witnesses that remember; those in `away` do not answer."""

    clock: Callable[[], datetime]
    away: set[str] = field(default_factory=set)
    heads_: dict[str, Checkpoint] = field(default_factory=dict)
    notes_: dict[str, str] = field(default_factory=dict)
    offered: list[int] = field(default_factory=list)

    def offer(self, note: str, prove: Callable[[int], Sequence[bytes]]) -> Iterable[str]:
        head = notes.parse_checkpoint(note.split("\n\n")[0] + "\n")
        self.offered.append(head.size)
        lines = []
        for name, seed in WITNESS_SEEDS.items():
            if name in self.away:
                continue
            last = self.heads_.get(name)
            if last is not None and last.size > head.size:
                raise Fork("a witness is ahead")
            good = last is None or is_extension(last.root, last.size, head.root, head.size, list(prove(last.size)))
            assert good, "the sequencer offered a fork"
            self.heads_[name], self.notes_[name] = head, note
            lines.append(notes.cosign(head, name, seed, int(self.clock().timestamp())))
        return lines

    def heads(self) -> Iterable[str]:
        return [note for name, note in self.notes_.items() if name not in self.away]


@dataclass
class Log:
    """A ledger on one database, with a clock that the test moves."""

    sessions: Sessions
    folder: Path
    moment: datetime = NOW
    effects: dict[str, Any] = field(default_factory=dict)
    alarms: list[str] = field(default_factory=list)
    monitor: tuple[bytes, bytes] = field(default_factory=boxes.keypair)

    def __post_init__(self) -> None:
        self.ledger = Ledger(ORIGIN, self.monitor[1])
        self.signer = Signer(ORIGIN, self.folder / "signer", SEED)
        self.signer.create()
        self.policy: Policy = notes.parse_policy(policy_text())
        self.witnesses = FourWitnesses(lambda: self.moment)
        self.chains = [new_chain() for _ in range(3)]

    def sequencer(self, **changed: Any) -> Sequencer:
        given: dict[str, Any] = {
            "sessions": self.sessions,
            "ledger": self.ledger,
            "signer": self.signer,
            "log": self.signer.verifier,
            "policy": self.policy,
            "cover_key": COVER_KEY,
            "now": lambda: self.moment,
            "witnesses": self.witnesses,
            "effects": self.effects,
            "alarm": lambda tx, reason: self.alarms.append(reason),
        }
        return Sequencer(**(given | changed))

    def later(self, seconds: float) -> None:
        self.moment += timedelta(seconds=seconds)

    def event(self, chain: int | str = 0, **changed: Any) -> str:
        """Append one event and return its id."""
        given: dict[str, Any] = {
            "type": EventType.CONTENT_OPENED,
            "at": self.moment,
            "actor": SYSTEM,
            "state": StateClass.SYSTEM,
            "fields": {"reason": "for the record"},
        }
        new = NewEvent(**(given | changed))
        name = self.chains[chain] if isinstance(chain, int) else chain
        write(self.sessions, lambda tx: append(tx, self.ledger, name, [new]))
        with self.sessions.read() as session:
            found = session.scalars(
                select(LedgerEvent.eid).where(LedgerEvent.case == name).order_by(LedgerEvent.seq.desc()).limit(1)  # type: ignore[attr-defined]
            ).one()
        return found

    def events(self, count: int) -> list[str]:
        """Append events over all chains."""
        return [self.event(n % len(self.chains)) for n in range(count)]

    def state(self) -> LedgerState:
        with self.sessions.read() as session:
            return tree.state_of(session)
