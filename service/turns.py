"""Whose password is tried next: Argon2 takes 128 MiB and a core, so few run at once and the rest wait (keys.md 3).

Two slots, a queue of twenty that is fair by address and account, then 503. A flood from one address, or at one
account, waits behind everybody else, and is sent away first when the queue is full. Somebody who was refused several
times from one address for one account waits a little longer each time; nobody is ever locked out. All of it lies in
memory, addresses and accounts as names under a key made at start.
"""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta

from service.errors import Busy
from service.vault import boxes

SLOTS = 2
QUEUE = 20
REMEMBERED = timedelta(minutes=10)
KNOWN = timedelta(hours=12)
MOST_NAMES = 10_000
FREE_FAILURES = 4
LONGEST_PAUSE = 30  # seconds

TOO_MANY = "Too many people are signing in. Try again in a minute."


@dataclass(slots=True, eq=False)
class _Waiter:
    names: tuple[bytes, ...]
    arrival: int
    started: bool = False
    sent_away: bool = False


class Turns:
    """The turns of one process."""

    def __init__(self, slots: int = SLOTS, queue: int = QUEUE) -> None:
        self._slots = slots
        self._queue = queue
        self._key = boxes.random_bytes()
        self._changed = threading.Condition()
        self._running = 0
        self._arrivals = 0
        self._waiting: list[_Waiter] = []
        self._taken: dict[bytes, deque[datetime]] = {}
        self._failures: dict[bytes, tuple[int, datetime]] = {}
        self._known: dict[bytes, datetime] = {}

    @contextmanager
    def turn(self, address: str, account: str, now: datetime) -> Iterator[None]:
        """Wait for a slot, and hold it. Raises Busy when too many wait, or this pair was refused just now."""
        with self._changed:
            self._forget(now)
            pair = self._pair(address, account)
            self._check_pause(pair, now)
            self._arrivals += 1
            names = [self._name(f"address|{address}")]
            if pair not in self._known:
                names.append(self._name(f"account|{account}"))
            waiter = _Waiter(tuple(names), self._arrivals)
            self._enter(waiter)
            self._start_next(now)
            self._changed.wait_for(lambda: waiter.started or waiter.sent_away)
            if waiter.sent_away:
                raise Busy(TOO_MANY)
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._start_next(now)

    def refused(self, address: str, account: str, now: datetime) -> None:
        """Note that name, password or code was wrong."""
        with self._changed:
            pair = self._pair(address, account)
            self._failures[pair] = (self._failures.get(pair, (0, now))[0] + 1, now)

    def let_in(self, address: str, account: str, now: datetime) -> None:
        """Note that all of them were right: earlier refusals no longer count."""
        with self._changed:
            pair = self._pair(address, account)
            self._failures.pop(pair, None)
            self._known[pair] = now

    def _enter(self, waiter: _Waiter) -> None:
        """Put `waiter` into the queue, in the place of one with a greater share when it is full."""
        if self._running + len(self._waiting) >= self._slots + self._queue:
            greatest = max(self._waiting, key=self._order, default=waiter)
            if self._share(greatest) <= self._share(waiter):
                raise Busy(TOO_MANY)
            greatest.sent_away = True
            self._waiting.remove(greatest)
            self._changed.notify_all()
        self._waiting.append(waiter)

    def _start_next(self, now: datetime) -> None:
        while self._running < self._slots and self._waiting:
            waiter = min(self._waiting, key=self._order)
            self._waiting.remove(waiter)
            waiter.started = True
            self._running += 1
            for name in waiter.names:
                self._taken.setdefault(name, deque()).append(now)
        self._changed.notify_all()

    def _order(self, waiter: _Waiter) -> tuple[int, int]:
        return self._share(waiter), waiter.arrival

    def _share(self, waiter: _Waiter) -> int:
        """Return how many turns its address or its account had lately or waits for, the greater of the two."""
        waits = [sum(name in other.names for other in self._waiting) for name in waiter.names]
        return max(len(self._taken.get(n, ())) + w for n, w in zip(waiter.names, waits, strict=True))

    def _check_pause(self, pair: bytes, now: datetime) -> None:
        count, last = self._failures.get(pair, (0, now))
        pause = min(2 ** max(count - FREE_FAILURES, 0), LONGEST_PAUSE) if count >= FREE_FAILURES else 0
        if now < last + timedelta(seconds=pause):
            raise Busy("Several tries were wrong. Wait half a minute, then try again.")

    def _forget(self, now: datetime) -> None:
        for name in [n for n, taken in self._taken.items() if now - taken[-1] > REMEMBERED]:
            del self._taken[name]
        for taken in self._taken.values():
            while now - taken[0] > REMEMBERED:
                taken.popleft()
        for pair in [p for p, (_, last) in self._failures.items() if now - last > REMEMBERED]:
            del self._failures[pair]
        for pair in [p for p, last in self._known.items() if now - last > KNOWN]:
            del self._known[pair]
        for table in (self._failures, self._taken):  # as many names as that are one flood
            while len(table) > MOST_NAMES:
                del table[next(iter(table))]

    def _pair(self, address: str, account: str) -> bytes:
        return self._name(f"pair|{len(address)}|{address}|{account}")

    def _name(self, text: str) -> bytes:
        return boxes.keyed_name(self._key, text.encode(errors="replace"), boxes.AUTH)
