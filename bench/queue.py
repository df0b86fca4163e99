"""``hotline bench queue``: the queue after years (goals 6 and 7): pages, counts, and eight who claim at once."""

import argparse
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any
from uuid import UUID

from sqlalchemy import event, func, select
from sqlmodel import col

from bench import rulers
from bench.fill import OVERSIGHT, UNITS, History, fill
from bench.ground import Ground, found_installation, ground, ledger_of, machine
from bench.verdict import Goal, Result, note, print_table, print_verdict, ratios
from service.cases import HOT_FLAGS, claim
from service.config import Settings
from service.db import Sessions, open_database, write
from service.errors import HotlineError
from service.ledger.events import EventType, Ledger
from service.models import Case, LedgerEvent, Level, Role, State
from service.queue import QueueFilter, QueueKey, counts, queue
from service.walls import Seat, Viewer

PAGE = 50
DEEP = 0.8  # of the way down
CLAIMERS = 8
HOT = 20  # one case in so many is wanted by all claimers
HANDLING = ("siem-reap", "kandal")

FILTERS: Mapping[str, QueueFilter] = {
    "none": QueueFilter(),
    **{f"level {level}": QueueFilter(level=level) for level in Level},
    **{f"owner {owner}": QueueFilter(owner=owner) for owner in ("none", "me")},
    **{f"clock {clock}": QueueFilter(clock=clock) for clock in ("late", "hour", "today")},
    **{f"flag {flag}": QueueFilter(flag=flag) for flag in HOT_FLAGS},
    "province, common": QueueFilter(province="KH-1"),
    "province, rare": QueueFilter(province="KH-23"),
    "venue, common": QueueFilter(venue="hotel"),
    "venue, rare": QueueFilter(venue="beach"),
}


@dataclass(slots=True)
class Base:
    """One filled database."""

    sessions: Sessions
    ledger: Ledger
    cases: int


def viewers(member: UUID) -> dict[str, Viewer]:
    """Return two people who may see every active case: one who sits in three units, one of oversight."""

    def viewer(role: Role, seats: Sequence[Seat]) -> Viewer:
        return Viewer(member, "0" * 32, "Person", "មនុស្ស", role, "org-police", tuple(seats), frozenset())

    kinds = {unit: "screening" if unit == "screening" else "unit" for unit in UNITS}
    three = [Seat(unit, kind, "org-police") for unit, kind in kinds.items()]
    return {
        "three units": viewer(Role.INVESTIGATOR, three),
        "oversight": viewer(Role.OVERSIGHT, [Seat(OVERSIGHT, "oversight", "org-council")]),
    }


# --- pages and counts -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Page:
    """A page of the queue that somebody asks for."""

    who: str
    wanted: str
    deep: bool

    @property
    def name(self) -> str:
        """How it stands in the table."""
        return f"{self.who}, {self.wanted}, {'deep' if self.deep else 'first'}"


class Reader:
    """Reads pages and counts of several databases, and holds them against each other."""

    def __init__(self, bases: Sequence[Base], history: History, *, repeats: int) -> None:
        self._bases = bases
        self._repeats = repeats
        self._now = history.now
        self._expected = history.counts()
        self._viewers = viewers(history.members[0])
        self.pages = [Page(*page) for page in product(self._viewers, FILTERS, (False, True))]
        self._after = {page: self._deep_key(page) if page.deep else None for page in self.pages}

    def _deep_key(self, page: Page) -> QueueKey | None:
        """Return the key of the case that stands 80 % of the way down, found as a person would: page by page."""
        keys: list[QueueKey] = []
        after: QueueKey | None = None
        with self._bases[0].sessions.read() as session:
            while True:
                rows, after = queue(
                    session, self._viewers[page.who], FILTERS[page.wanted], self._now, after=after, size=500
                )
                keys += [row.key for row in rows]
                if after is None:
                    return keys[int(len(keys) * DEEP)] if keys else None

    def read(self, base: Base, page: Page) -> list[Any]:
        """Return one page."""
        with base.sessions.read() as session:
            return queue(
                session,
                self._viewers[page.who],
                FILTERS[page.wanted],
                self._now,
                after=self._after[page],
                size=PAGE,
            )[0]

    def count(self, base: Base, who: str) -> dict[str, Any]:
        """Return the counts."""
        with base.sessions.read() as session:
            return counts(session, self._viewers[who], self._now)

    def faults(self) -> list[str]:
        """Return what is not the same in all databases, or not exact."""
        wrong = [
            f"{base.sessions.dialect}, {base.cases:,} cases: the counts of {who} are not exact"
            for base in self._bases
            for who in self._viewers
            if self.count(base, who) != self._expected
        ]
        for page in self.pages:
            first, *others = [self.read(base, page) for base in self._bases]
            if any(rows != first for rows in others):
                wrong.append(f"the page {page.name} is not the same in all databases")
        return wrong

    def time_pages(self, rounds: int) -> dict[Page, list[list[float]]]:
        """Return, for each page and database, the milliseconds of each round: the median of a few calls."""
        found: dict[Page, list[list[float]]] = {page: [[] for _ in self._bases] for page in self.pages}
        for number in range(rounds):
            note(f"{self._bases[0].sessions.dialect}: pages, round {number + 1} of {rounds}")
            for page in self.pages:
                for place, times in enumerate(self._alternate(partial(self.read, page=page))):
                    found[page][place].append(times)
        note("")
        return found

    def time_counts(self, rounds: int) -> dict[str, list[list[float]]]:
        """Return the same of the counts, for each viewer."""
        found: dict[str, list[list[float]]] = {who: [[] for _ in self._bases] for who in self._viewers}
        for _, who in product(range(rounds), self._viewers):
            for place, times in enumerate(self._alternate(partial(self.count, who=who))):
                found[who][place].append(times)
        return found

    def _alternate(self, call: Callable[[Base], object]) -> list[float]:
        times: list[list[float]] = [[] for _ in self._bases]
        for _ in range(self._repeats):
            for place, base in enumerate(self._bases):
                began = time.perf_counter()
                call(base)
                times[place].append((time.perf_counter() - began) * 1e3)
        return [median(found) for found in times]

    def explain(self, base: Base) -> None:
        """Print the plan of each statement of the first and the deep page without a filter, and of the counts."""
        asked: list[tuple[str, Any]] = []

        def remember(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_rest: Any) -> None:
            asked.append((statement, parameters))

        event.listen(base.sessions.reading, "before_cursor_execute", remember)
        for page in [page for page in self.pages if page.who == OVERSIGHT]:
            self.read(base, page)
            _print_plans(base, page.name, asked)
        self.count(base, OVERSIGHT)
        _print_plans(base, "counts", asked)
        event.remove(base.sessions.reading, "before_cursor_execute", remember)


def _print_plans(base: Base, name: str, asked: list[tuple[str, Any]]) -> None:
    explain = "EXPLAIN QUERY PLAN " if base.sessions.dialect == "sqlite" else "EXPLAIN (ANALYZE, BUFFERS) "
    print(f"\n{base.sessions.dialect}, {base.cases:,} cases, {name}")
    statements, asked[:] = list(asked), []
    with base.sessions.reading.connect() as connection:
        cursor: Any = connection.connection.cursor()
        for statement, parameters in statements:
            cursor.execute(explain + statement, parameters)
            for row in cursor.fetchall():
                print(f"    {row[-1]}")


# --- claims ---------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Claims:
    """What came of a round of claims."""

    rate: float
    won: list[tuple[UUID, UUID]] = field(default_factory=list)  # case, member
    refused: Counter[str] = field(default_factory=Counter)


class Claimers:
    """Eight people who claim the open cases of their units at once, each in a thread, as the staff app would."""

    def __init__(self, base: Base, history: History) -> None:
        self._base = base
        self._leases = Settings().leases
        self._viewers = [
            Viewer(
                member,
                "0" * 32,
                "Person",
                "មនុស្ស",
                Role.INVESTIGATOR,
                "org-police",
                tuple(Seat(unit, "unit", "org-police") for unit in HANDLING),
                frozenset(),
            )
            for member in history.members[:CLAIMERS]
        ]
        open_cases = [c for c in history.active if c["state"] == State.OPEN and c["unit"] in HANDLING]
        random.Random(2).shuffle(open_cases)
        self._waiting = iter([(case["id"], case["version"]) for case in open_cases])
        self.left = len(open_cases)

    def round(self, cases: int, now: datetime) -> Claims:
        """Let them claim `cases` cases, some of which all of them want, and say what came of it."""
        wanted = [next(self._waiting) for _ in range(cases)]
        self.left -= cases
        hot, rest = wanted[::HOT], [case for place, case in enumerate(wanted) if place % HOT]
        plans = [[*rest[place::CLAIMERS], *hot] for place in range(CLAIMERS)]
        for plan in plans:
            random.Random(3).shuffle(plan)  # the same shuffle: all come to the hot ones at about the same time
        found = Claims(0.0)
        barrier = threading.Barrier(CLAIMERS + 1)
        threads = [
            threading.Thread(target=self._claim, args=(viewer, plan, now, found, barrier))
            for viewer, plan in zip(self._viewers, plans, strict=True)
        ]
        for thread in threads:
            thread.start()
        barrier.wait()
        began = time.perf_counter()
        for thread in threads:
            thread.join()
        found.rate = len(found.won) / (time.perf_counter() - began)
        return found

    def _claim(
        self, viewer: Viewer, plan: Sequence[tuple[UUID, int]], now: datetime, found: Claims, barrier: threading.Barrier
    ) -> None:
        barrier.wait()
        for case, version in plan:
            take = partial(
                claim,
                ledger=self._base.ledger,
                viewer=viewer,
                case_id=case,
                version=version,
                leases=self._leases,
                now=now,
            )
            try:
                write(self._base.sessions, take)
            except HotlineError as refusal:
                found.refused[type(refusal).__name__] += 1
            else:
                found.won.append((case, viewer.member))

    def faults(self, rounds: Sequence[Claims]) -> list[str]:
        """Return what is wrong: a case claimed twice, by another than it says, or without its event."""
        told = [win for claims in rounds for win in claims.won]
        won = dict(told)
        name = self._base.sessions.dialect
        with self._base.sessions.read() as session:
            events = session.execute(
                select(col(LedgerEvent.case), func.count())
                .where(col(LedgerEvent.type) == EventType.CASE_CLAIMED)
                .group_by(col(LedgerEvent.case))
            ).all()
            owners = {case: session.scalar(select(col(Case.owner)).where(col(Case.id) == case)) for case in won}
        wrong = []
        if len(told) != len(won) or any(count > 1 for _, count in events):
            wrong.append(f"{name}: a case was claimed twice")
        if len(events) != len(won):
            wrong.append(f"{name}: {len(won)} claims were told as good, {len(events)} are in the history")
        if owners != won:
            wrong.append(f"{name}: a case has another owner than the one who was told so")
        return wrong


# --- the run --------------------------------------------------------------------------------------------


def measure(
    place: Ground, engine: str, history: History, options: argparse.Namespace
) -> tuple[list[Result], list[str]]:
    """Measure goals 6 and 7 on one engine."""
    bases: list[Base] = []
    try:
        for cases in (options.active, options.cases):
            name = f"queue_{cases}"
            url = place.sqlite(name) if engine == "sqlite" else place.postgresql(name)
            founding = found_installation(url)
            bases.append(Base(open_database(url), ledger_of(founding), cases))
            began = time.monotonic()
            fill(bases[-1].sessions, history, cases)
            print(f"{engine}: {cases:,} cases filled in {time.monotonic() - began:.0f} s", flush=True)
        return _measure(place, bases, history, options)
    finally:
        for base in bases:
            base.sessions.close()


def _measure(
    place: Ground, bases: Sequence[Base], history: History, options: argparse.Namespace
) -> tuple[list[Result], list[str]]:
    engine, large = bases[0].sessions.dialect, bases[-1]
    reader = Reader(bases, history, repeats=options.repeats)
    wrong = reader.faults()
    pages, counted = reader.time_pages(options.rounds), reader.time_counts(options.rounds)
    if options.explain:
        reader.explain(large)
    grown = {page: median(ratios(times[-1], times[0])) for page, times in pages.items()}
    show_pages(bases, pages, grown)
    slowest = max((times[-1] for times in counted.values()), key=median)
    claimers = Claimers(large, history)
    claims, raw = claim_in_turn(place, claimers, engine, options)
    wrong += claimers.faults(claims)
    show_claims(claims, raw)
    worst = max(grown, key=lambda page: grown[page])
    return [
        Result(Goal(6, f"{engine}: {worst.name}", 1.3, most=True), [grown[worst]]),
        Result(Goal(7, f"{engine}: counts", 30, most=True, unit=" ms"), slowest),
        Result(Goal(7, f"{engine}: claims / raw commits", 0.5), ratios([c.rate for c in claims], raw)),
    ], wrong


def claim_in_turn(
    place: Ground, claimers: Claimers, engine: str, options: argparse.Namespace
) -> tuple[list[Claims], list[float]]:
    """Let the claimers and raw commits of the same engine take turns."""
    cases = min(claimers.left // options.rounds, options.claims)
    url = place.sqlite("raw") if engine == "sqlite" else place.postgresql("raw")
    found: list[Claims] = []
    raw: list[float] = []
    for number in range(options.rounds):
        note(f"{engine}: claims, round {number + 1} of {options.rounds}")
        found.append(claimers.round(cases, datetime.now(UTC)))
        if engine == "sqlite":
            raw.append(rulers.sqlite_commits(url.removeprefix("sqlite:///"), options.seconds))
        else:
            raw.append(rulers.postgresql_commits(url, options.seconds, threads=CLAIMERS))
    note("")
    return found, raw


def show_pages(bases: Sequence[Base], pages: Mapping[Page, list[list[float]]], grown: Mapping[Page, float]) -> None:
    """Print the medians of every page, in milliseconds, and how they grew."""
    small, large = (f"{base.cases:,}" for base in bases)
    print(f"\n{bases[0].sessions.dialect}: a page of {PAGE}, ms; deep is {DEEP:.0%} of the way down")
    head = ["", *(f"{depth} {what}" for depth in ("first", "deep") for what in (small, large, "ratio"))]
    rows = []
    for who, wanted in dict.fromkeys((page.who, page.wanted) for page in pages):
        row = [f"{who}, {wanted}"]
        for deep in (False, True):
            page = Page(who, wanted, deep)
            row += [f"{median(times):.1f}" for times in pages[page]] + [f"{grown[page]:.2f}"]
        rows.append(row)
    print_table(head, rows)
    print(f"  median of all ratios {median(grown.values()):.2f}")


def show_claims(claims: Sequence[Claims], raw: Sequence[float]) -> None:
    """Print what the claimers did."""
    refused = sum((found.refused for found in claims), Counter())
    told = ", ".join(f"{count} {name}" for name, count in refused.most_common()) or "none"
    print(f"  {CLAIMERS} claimers: {median(c.rate for c in claims):,.0f} cases/s, refused: {told};", end=" ")
    print(f"raw commits {median(raw):,.0f}/s")


def main(arguments: list[str]) -> int:
    """Run the benchmark. Returns 1 if a page or count was wrong or a case was claimed twice, whatever the speed."""
    parser = argparse.ArgumentParser(
        prog="./hotline bench queue",
        description="Measure queue pages, counts and claims in a small and a large database with the same active "
        "cases (goals 6 and 7). A million cases need 10 GB below the folder and some minutes to fill.",
    )
    parser.add_argument("--cases", type=int, default=1_000_000, help="in the large database (default: %(default)s)")
    parser.add_argument("--active", type=int, default=10_000, help="active ones, in both (default: %(default)s)")
    parser.add_argument("--claims", type=int, default=500, help="cases to claim a round (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=1, help="of raw commits a round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="in alternation (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="of each page in a round (default: %(default)s)")
    parser.add_argument("--only", choices=["sqlite", "postgresql"], help="one engine")
    parser.add_argument("--folder", type=Path, help="where databases lie, on a disk that syncs (default: var/bench)")
    parser.add_argument("--explain", action="store_true", help="print the query plans in the large database")
    parser.add_argument("--smoke", action="store_true", help="small and short: shows that it runs")
    options = parser.parse_args(arguments)
    if options.smoke:
        options.cases, options.active, options.claims = 3_000, 300, 20
        options.seconds, options.rounds, options.repeats = 0.2, 1, 1
    results: list[Result] = []
    wrong: list[str] = []
    with ground(options.folder) as place:
        print(machine(place.folder))
        history = History(options.active, datetime.now(UTC))
        for engine in [options.only] if options.only else ["sqlite", "postgresql"]:
            part, faults = measure(place, engine, history, options)
            results += part
            wrong += faults
    return print_verdict(results, wrong, counts=not options.smoke)
