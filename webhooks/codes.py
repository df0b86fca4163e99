"""Return codes in the public process: finished ones ready to give out, typed ones derived in turn (keys.md section 7).

All Argon2 work is a child's (`service.vault.deriver`). Taking a code never waits: there is one, or there is none. When
the child is slow, stopped or dead, tips are received as before; only codes and the return page have to wait.
"""

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from secrets import token_bytes

import structlog
from starlette.types import Scope

from service.config import ROOT
from service.errors import Busy
from service.vault import deriver
from service.vault.mailbox import BOX_COST, TAG_COST, Address, Cost, Prepared

SLOTS = deriver.OPENERS
WAITING = 100
PATIENCE = 10.0  # seconds from asking to an answer; then "try again in a minute"
LONGEST_PAUSE = 60.0

log = structlog.get_logger("codes")


@dataclass(frozen=True, slots=True, repr=False)
class Finished:
    """A code that nobody has, and what its mailbox is made from. Its repr shows nothing."""

    code: str
    prepared: Prepared


class Turns:
    """Who is next: the addresses take turns, so that one which asks a thousand times waits behind itself alone."""

    def __init__(self, most: int = WAITING) -> None:
        """Let at most `most` wait."""
        self._most = most
        self._queues: dict[bytes, deque[asyncio.Future[None]]] = {}  # in the order of turns

    def join(self, bucket: bytes, turn: "asyncio.Future[None]") -> None:
        """Wait for a turn. When too many wait, the last of the longest queue is sent away: its future says Busy.

        Of queues that are equally long, the one that came last.
        """
        self._queues.setdefault(bucket, deque()).append(turn)
        if sum(map(len, self._queues.values())) > self._most:
            self._forget_the_gone()
        if sum(map(len, self._queues.values())) > self._most:
            longest = max(reversed(self._queues), key=lambda name: len(self._queues[name]))
            last = self._queues[longest].pop()
            if not last.done():
                last.set_exception(Busy("Too many numbers at once."))
            if not self._queues[longest]:
                del self._queues[longest]

    def next(self) -> "asyncio.Future[None] | None":
        """Return whose turn it is, or None when nobody waits."""
        while self._queues:
            bucket = next(iter(self._queues))
            queue = self._queues.pop(bucket)
            turn = queue.popleft()
            if queue:
                self._queues[bucket] = queue  # behind all others
            if not turn.done():
                return turn
        return None

    def _forget_the_gone(self) -> None:
        left = {name: deque(turn for turn in queue if not turn.done()) for name, queue in self._queues.items()}
        self._queues = {name: queue for name, queue in left.items() if queue}


async def start_child(pepper: bytes, origin: str, tag: Cost = TAG_COST, box: Cost = BOX_COST) -> Process:
    """Start the child that derives. It inherits no setting and no secret but what goes through its pipe."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", deriver.__name__),
        cwd=ROOT,
        env={name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ},
        stdin=PIPE,
        stdout=PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        limit=64 * 1024,
    )
    assert child.stdin is not None
    child.stdin.write(deriver.greeting(pepper, origin, tag, box))
    return child


@dataclass
class Codes:
    """The codes of one public process. Everything but `start` and `stop` is called on its event loop.

    launch: starts a child. target: finished codes to keep; 0 starts the child only when a code is typed. rate:
    derivations of typed codes in a second.
    """

    launch: Callable[[], Awaitable[Process]]
    target: int = 0
    rate: float = 5.0
    slots: int = SLOTS
    pause: float = 1.0  # before a child that ended is started again, then twice as long
    _ready: deque[Finished] = field(default_factory=deque)
    _turns: Turns = field(default_factory=Turns)
    _asked: dict[int, "asyncio.Future[Address]"] = field(default_factory=dict)
    _number: int = 0
    _making: int = 0
    _running: int = 0
    _free_at: float = 0.0
    _timer: asyncio.TimerHandle | None = None
    _child: Process | None = None
    _keeper: "asyncio.Task[None] | None" = None
    _wanted: asyncio.Event = field(default_factory=asyncio.Event)
    _key: bytes = field(default_factory=token_bytes)

    def start(self) -> None:
        """Begin to fill the pool, on the running loop."""
        self._keeper = asyncio.ensure_future(self._keep_child())
        if self.target:
            self._wanted.set()

    async def stop(self) -> None:
        """End the child and forget all codes."""
        if self._keeper is not None:
            self._keeper.cancel()
            with suppress(asyncio.CancelledError):
                await self._keeper
        self._ready.clear()

    def take(self) -> Finished | None:
        """Return a finished code, or None when there is none now. Never waits, never derives."""
        finished = self._ready.popleft() if self._ready else None
        self._fill()
        return finished

    def bucket(self, scope: Scope) -> bytes:
        """Return the name of a request's address, under a key made at start and kept in memory (threats.md T-17)."""
        host = str((scope.get("client") or ("", 0))[0])
        network = ":".join(host.split(":")[:4]) if ":" in host else host  # one IPv6 line has 2^64 addresses
        return blake2b(network.encode(), key=self._key, digest_size=16).digest()

    async def derive(self, code: str, bucket: bytes) -> Address:
        """Return where the mailbox of a typed code is, when it is this address's turn. Nobody is ever locked out.

        Raises Busy when too many wait, or the child does not answer.
        """
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._turns.join(bucket, turn)
        self._advance()
        try:
            async with asyncio.timeout(PATIENCE):
                await turn
                return await self._ask(code)
        except TimeoutError:
            raise Busy("Too many numbers at once.") from None
        finally:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._running -= 1
                self._advance()
            else:
                turn.cancel()

    async def _ask(self, code: str) -> Address:
        self._wanted.set()
        while self._child is None:
            await asyncio.sleep(0.01)
        self._number += 1
        number = self._number
        answer: asyncio.Future[Address] = asyncio.get_running_loop().create_future()
        self._asked[number] = answer
        try:
            self._tell(deriver.open_request(number, code))
            return await answer
        finally:
            del self._asked[number]

    def _advance(self) -> None:
        """Let whoever is next begin, as far as slots are free and the rate allows it."""
        loop = asyncio.get_running_loop()
        while self._running < self.slots:
            if loop.time() < self._free_at:
                if self._timer is None:
                    self._timer = loop.call_at(self._free_at, self._go_on)
                return
            turn = self._turns.next()
            if turn is None:
                return
            self._running += 1
            self._free_at = loop.time() + 1 / self.rate
            turn.set_result(None)

    def _go_on(self) -> None:
        self._timer = None
        self._advance()

    # --- the child ---

    async def _keep_child(self) -> None:
        """Run a child while one is wanted, and a new one after it ended."""
        pause = self.pause
        while True:
            await self._wanted.wait()
            child = None
            try:
                child = await self.launch()
                self._child, self._making = child, 0
                self._fill()
                if await self._listen(child):
                    pause = self.pause
            except Exception as fault:  # noqa: BLE001 - whatever it was, another child is tried
                log.error("deriver_failed", error=type(fault).__name__)
            finally:
                self._child = None
                for answer in self._asked.values():
                    if not answer.done():
                        answer.set_exception(Busy("The number could not be looked up now."))
                if child is not None:
                    with suppress(ProcessLookupError):
                        child.kill()
                    await child.wait()
            log.warning("deriver_ended")
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _listen(self, child: Process) -> bool:
        """Take what the child has derived until it ends; return whether it ever gave anything."""
        assert child.stdout is not None
        gave = False
        while line := await child.stdout.readline():
            told, gave = json.loads(line), True
            address = Address(bytes.fromhex(told["locator"]), bytes.fromhex(told["kek"]))
            if "code" in told:
                self._making -= 1
                self._ready.append(Finished(told["code"], Prepared(address, bytes.fromhex(told["key"]))))
            elif (answer := self._asked.get(told["id"])) is not None and not answer.done():
                answer.set_result(address)
        return gave

    def _fill(self) -> None:
        missing = self.target - len(self._ready) - self._making
        if self._child is not None and missing > 0:
            self._making += missing
            self._tell(deriver.make_request() * missing)

    def _tell(self, lines: bytes) -> None:
        if self._child is not None and self._child.stdin is not None and not self._child.stdin.is_closing():
            self._child.stdin.write(lines)
