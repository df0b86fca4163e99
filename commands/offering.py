"""Heads offered to the witnesses of the policy over HTTP (ledger.md section 6; c2sp.org/tlog-witness).

No witness holds anything up: each is asked on a thread of its own, all together for ten seconds at most, and a line
that comes later is stored when it comes. One that is still busy with the last head is not asked again.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import structlog

from commands.asking import NoAnswer, ask
from service.errors import BadNote, Fork, HotlineError
from service.ledger import notes
from service.ledger.notes import Checkpoint, Policy, Witness
from service.ledger.witness import Request, head_path
from service.vault.note import MOST_BYTES, split_note

log = structlog.get_logger("witnesses")

PATIENCE = 10.0  # seconds that a round waits
LATE = 60.0  # seconds after which a line is not waited for on the side either
HEADS = 5.0  # seconds for the heads that are known at start-up
LINGER = 1.0  # seconds for the others once there is a quorum
ATTEMPTS = 3  # the second with the size that the witness told, the third if it moved meanwhile

Prove = Callable[[int], Sequence[bytes]]


@dataclass(frozen=True, slots=True)
class Line:
    """A witness's line under the head that was offered; good by its key."""

    text: str


@dataclass(frozen=True, slots=True)
class Refused:
    """The witness does not sign this head. kind: its HTTP status, or ``line`` for one that is not its signature."""

    kind: str


@dataclass(frozen=True, slots=True)
class Ahead:
    """The witness knows a larger tree of this log."""

    size: int


Told = Line | Refused | Ahead | None  # None: no answer


@dataclass
class Offers:
    """The witnesses of `policy` that have an address, as the sequencer sees them (`sequencer.Witnesses`).

    late: is given the size and line of what comes after the round has gone on. tell: hears of a witness's key that it
    refuses, and how, or None when it signs; only when that is new to this process.
    """

    policy: Policy
    late: Callable[[int, str], None] = lambda size, line: None
    tell: Callable[[str, str | None], None] = lambda name, kind: None
    patience: float = PATIENCE
    _sizes: dict[str, int] = field(default_factory=dict)
    _signed: dict[str, tuple[str, str]] = field(default_factory=dict)
    _busy: set[str] = field(default_factory=set)
    _told: dict[str, str | None] = field(default_factory=dict)
    _ahead: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def offer(self, note: str, prove: Prove) -> Iterable[str]:
        """Offer a head and return the lines that came in time (`sequencer.Witnesses.offer`). Raises Fork."""
        text, _ = split_note(note)
        head = notes.parse_checkpoint(text)
        lines = {name: line for name, (signed, line) in self._signed.items() if signed == text}
        round_ = _Round(head, note, prove)
        asked = [one for one in self._listening() if one.key.name not in lines and self._begin(one.key.name)]
        for witness in asked:
            threading.Thread(target=self._ask, args=(witness, round_), daemon=True, name="witness").start()
        self._collect(round_, {witness.key.name for witness in asked}, lines)
        ahead, self._ahead = self._ahead, 0
        if ahead > head.size:
            raise Fork("a witness knows a larger tree")
        return list(lines.values())

    def heads(self) -> Iterable[str]:
        """Return the newest heads that the log signed and witnesses know (`sequencer.Witnesses.heads`)."""
        found: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        asked = list(self._listening())
        for witness in asked:
            threading.Thread(target=lambda one=witness: found.put(self._head(one)), daemon=True).start()
        deadline = time.monotonic() + HEADS
        heads = []
        for _ in asked:
            try:
                head = found.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                break
            if head is not None:
                heads.append(head)
        return heads

    def _listening(self) -> Iterable[Witness]:
        return (witness for witness in self.policy.witnesses if witness.url is not None)

    def _begin(self, name: str) -> bool:
        with self._lock:
            free = name not in self._busy
            self._busy.add(name)
        return free

    def _collect(self, round_: "_Round", waiting: set[str], lines: dict[str, str]) -> None:
        """Add to `lines` what comes until all have answered, time is up, or a quorum is there and a moment passed."""
        deadline = time.monotonic() + self.patience
        while waiting:
            try:
                name, told = round_.answers.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                break
            waiting.discard(name)
            if isinstance(told, Line):
                lines[name] = told.text
                if self.policy.is_met_by(lines):
                    deadline = min(deadline, time.monotonic() + LINGER)
            self._note(name, told)
        with self._lock:
            round_.over = True
        while not round_.answers.empty():  # between the last look and the end
            name, told = round_.answers.get()
            if isinstance(told, Line):
                lines[name] = told.text
            self._note(name, told)

    def _ask(self, witness: Witness, round_: "_Round") -> None:
        """Ask one witness, and hand what it says to the round, or on if that has gone on without it."""
        name, told = witness.key.name, None
        try:
            told = self._obtain(witness, round_)
        except (NoAnswer, HotlineError, LookupError) as fault:
            log.info("witness_away", kind=name, error=type(fault).__name__)
        finally:
            with self._lock:
                self._busy.discard(name)
                if isinstance(told, Line):
                    self._sizes[name] = round_.head.size
                    self._signed[name] = round_.head.text, told.text
                if isinstance(told, Ahead):
                    self._ahead = max(self._ahead, told.size)
                late = round_.over
                if not late:
                    round_.answers.put((name, told))
        if late:
            self._note(name, told)
            if isinstance(told, Line):
                self._store_late(round_.head.size, told.text)

    def _store_late(self, size: int, line: str) -> None:
        try:
            self.late(size, line)
        except HotlineError as fault:  # its next line will do
            log.warning("late_line_not_stored", error=type(fault).__name__)

    def _note(self, name: str, told: Told) -> None:
        """Tell of a refusal, or that it is over; who does not answer has refused nothing."""
        if not isinstance(told, (Line, Refused)):
            return
        kind = told.kind if isinstance(told, Refused) else None
        if name in self._told and self._told[name] == kind:
            return
        if kind is not None:
            log.error("witness_refused", kind=name, status=kind)
        try:
            self.tell(name, kind)
            self._told[name] = kind
        except HotlineError as fault:  # told with the next head
            log.warning("refusal_not_noted", error=type(fault).__name__)

    def _obtain(self, witness: Witness, round_: "_Round") -> Told:
        """Offer the head from the size that the witness stands at. Raises NoAnswer, and what `prove` raises."""
        head, name = round_.head, witness.key.name
        old = min(self._sizes.get(name, 0), head.size)
        for _ in range(ATTEMPTS):
            proof = [] if old in (0, head.size) else round_.prove(old)
            url = f"{str(witness.url).rstrip('/')}/add-checkpoint"
            status, body = ask(url, Request(old, proof, round_.note).body, seconds=LATE, most=MOST_BYTES)
            if status == 200:
                return self._read_line(witness, head, body)
            if status != 409:
                return Refused(str(status)) if 400 <= status < 500 and status != 429 else None
            try:
                stands = notes.decimal(body.decode("ascii").removesuffix("\n"))
            except (UnicodeDecodeError, BadNote):
                return Refused("409")
            if stands > head.size:
                return Ahead(stands)
            if stands == old:
                return Refused("409")
            old = stands
        return None

    def _read_line(self, witness: Witness, head: Checkpoint, body: bytes) -> Told:
        """Return the witness's own line out of its answer; lines of other keys are ignored."""
        try:
            _, signatures = split_note(f"{head.text}\n{body.decode()}")
            for text, one in zip(body.decode().splitlines(keepends=True), signatures, strict=True):
                if (one.name, one.key_id) == (witness.key.name, witness.key.key_id):
                    notes.cosigned_at(head.text, one, witness.key)
                    return Line(text)
        except (UnicodeDecodeError, BadNote, ValueError):
            pass
        return Refused("line")

    def _head(self, witness: Witness) -> str | None:
        """Return the newest head that a witness knows, None unless our log signed it: anybody can invent one."""
        url = f"{str(witness.url).rstrip('/')}/{head_path(self.policy.log.name)}"
        try:
            status, body = ask(url, seconds=HEADS, most=MOST_BYTES)
            if status != 200:
                return None
            head = notes.open_checkpoint(body, self.policy.log)
        except (NoAnswer, BadNote):
            return None
        self._sizes[witness.key.name] = head.size
        return body.decode()


@dataclass
class _Round:
    """One head on its way to the witnesses. over: whether nobody waits for answers any more."""

    head: Checkpoint
    note: str
    prove: Prove
    over: bool = False
    answers: "queue.SimpleQueue[tuple[str, Told]]" = field(default_factory=queue.SimpleQueue)
