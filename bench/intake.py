"""``hotline bench intake``: from a signed SMS to a durable tip, and the web form, against the rulers (goals 1 to 5)."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from bench import rulers
from bench.ground import (
    Ground,
    Server,
    count_rows,
    cpu_of,
    found_installation,
    ground,
    machine,
    plain_environment,
    serving,
)
from bench.load import Orders, send_load
from bench.verdict import Goal, Result, note, print_table, print_verdict, ratios

CLIENTS = 32
HUSH_LINE = 15.0  # submissions a second with one worker, measured on such a machine
READY = "/health/ready"


@dataclass(frozen=True, slots=True)
class Leg:
    """What one subject did in one round: a second, microseconds of CPU a request, milliseconds, megabytes."""

    rate: float
    cpu: float | None = None
    database: float | None = None  # CPU of PostgreSQL's processes
    p50: float | None = None
    p99: float | None = None
    memory: float | None = None
    failed: int = 0


@dataclass(slots=True)
class Subject:
    """A server under load, or a loop of commits, that is measured once a round."""

    name: str
    run: Callable[[], Leg]
    legs: list[Leg] = field(default_factory=list)

    def figures(self, name: str) -> list[float]:
        """Return one figure of all rounds."""
        return [getattr(leg, name) for leg in self.legs]


@dataclass(slots=True)
class Store:
    """Where a server puts what it acknowledges, and how many it has acknowledged."""

    url: str
    table: str
    acknowledged: int = 0

    def fault(self) -> str:
        """Return what is wrong, or nothing: all that was acknowledged is stored, and once."""
        found = count_rows(self.url, self.table)
        return "" if found == self.acknowledged else f"{self.acknowledged} were acknowledged, {found} are stored"


class Run:
    """One run: its options, its place, its servers, and what has been sent so far."""

    def __init__(self, options: argparse.Namespace, place: Ground, stack: ExitStack) -> None:
        self.options = options
        self.place = place
        self._stack = stack
        self._legs = 0

    def ruler(self, name: str, letter: str, database: str) -> tuple[Server, Store]:
        """Start one of the rulers on the file or address `database`."""
        server = self._start(name, ["bench.rulers", letter, database], plain_environment())
        return server, Store(database if "://" in database else f"sqlite:///{database}", "sms")

    def product(self, name: str, url: str, *, workers: int = 1) -> tuple[Server, Store]:
        """Start the real public app on a new installation in the database at `url`."""
        founding = found_installation(url)
        module = ["commands", "serve", "public", *(["--workers", str(workers)] if workers > 1 else [])]
        environment = serving(url, founding, self.place.folder / f"{name}-keys")
        return self._start(name, module, environment), Store(url, "tip")

    def _start(self, name: str, module: Sequence[str], environment: Mapping[str, str]) -> Server:
        server = Server(module, environment=environment, log=self.place.folder / f"{name}.log")
        self._stack.callback(server.stop)
        server.wait(READY)
        return server

    def loaded(self, name: str, server: Server, store: Store, *, kind: str = "sms", clients: int = CLIENTS) -> Subject:
        """Return a server under load as a subject."""

        def run() -> Leg:
            self._legs += 1
            seconds = self.options.seconds
            moments: list[tuple[float, float | None]] = []
            outcome = send_load(
                Orders(kind, server.port, clients, seconds, min(0.5, seconds), self._legs),
                around=lambda: moments.append((server.cpu(), self._database_cpu())),
            )
            store.acknowledged += outcome.stored
            (own, database), (own_after, database_after) = moments
            each = 1e6 / max(1, outcome.acknowledged)
            return Leg(
                outcome.rate,
                (own_after - own) * each,
                None if database is None or database_after is None else (database_after - database) * each,
                outcome.p50,
                outcome.p99,
                server.memory(),
                outcome.failed,
            )

        return Subject(name, run)

    def _database_cpu(self) -> float | None:
        pid = self.place.postgresql_pid
        return None if pid is None else cpu_of(pid)

    def alternate(self, subjects: Sequence[Subject], *stores: Store) -> list[str]:
        """Measure all subjects in turn, every other round backwards. Return what was lost, doubled or refused."""
        for number in range(self.options.rounds):
            for subject in subjects if number % 2 == 0 else reversed(subjects):
                note(f"round {number + 1} of {self.options.rounds}: {subject.name}")
                subject.legs.append(subject.run())
        note("")
        failed = {subject.name: sum(leg.failed for leg in subject.legs) for subject in subjects}
        wrong = [f"{name}: {count} requests failed" for name, count in failed.items() if count]
        return wrong + [fault for store in stores if (fault := store.fault())]


Part = tuple[list[Result], list[str]]


def on_sqlite(run: Run) -> Part:
    """Measure goals 1 to 3."""
    folder, seconds = run.place.folder, run.options.seconds
    servers = {
        "ceiling A": run.ruler("a", "a", str(folder / "a.db")),
        "ceiling B": run.ruler("b", "b", str(folder / "b.db")),
        "Bamboo": run.product("sqlite", run.place.sqlite("hotline")),
    }
    a, b, ours = (run.loaded(name, *server) for name, server in servers.items())
    raw = Subject("raw commits", lambda: Leg(rulers.sqlite_commits(str(folder / "raw.db"), seconds)))
    wrong = run.alternate([a, b, ours, raw], *(store for _, store in servers.values()))
    show(f"SQLite: signed SMS to durable tip, {CLIENTS} connections", [a, b, raw, ours])
    rate, cpu = ours.figures("rate"), ours.figures("cpu")
    return [
        Result(Goal(1, "Bamboo / ceiling A", 1.0, stretch=1.5), ratios(rate, a.figures("rate"))),
        Result(Goal(2, "Bamboo / ceiling B", 0.6), ratios(rate, b.figures("rate"))),
        Result(Goal(2, "CPU a tip, Bamboo / ceiling B", 1.5, most=True), ratios(cpu, b.figures("cpu"))),
        Result(Goal(3, "Bamboo / raw SQLite commits", 0.7), ratios(rate, raw.figures("rate"))),
    ], wrong


def on_postgresql(run: Run) -> Part:
    """Measure goal 4."""
    servers = {
        "one-INSERT server": run.ruler("postgresql", "postgresql", run.place.postgresql("ruler")),
        "Bamboo, 1 worker": run.product("one", run.place.postgresql("one")),
        "Bamboo, 2 workers": run.product("two", run.place.postgresql("two"), workers=2),
    }
    ruler, one, two = (run.loaded(name, *server) for name, server in servers.items())
    wrong = run.alternate([ruler, one, two], *(store for _, store in servers.values()))
    show(f"PostgreSQL: signed SMS to durable tip, {CLIENTS} connections", [ruler, one, two])
    rate = one.figures("rate")
    return [
        Result(Goal(4, "Bamboo / one-INSERT server", 0.8), ratios(rate, ruler.figures("rate"))),
        Result(Goal(4, "Bamboo, 2 workers / 1 worker", 1.5), ratios(two.figures("rate"), rate)),
    ], wrong


def on_form(run: Run) -> Part:
    """Measure goal 5: the form fetched, filled in and sent."""
    server, store = run.product("form", run.place.sqlite("form"))
    few, many = (run.loaded(f"form, {n} clients", server, store, kind="form", clients=n) for n in (8, CLIENTS))
    wrong = run.alternate([few, many], store)
    show("SQLite: web form, GET and POST with its token", [few, many])
    memory = max(few.figures("memory") + many.figures("memory"))
    return [
        Result(
            Goal(5, f"form, 8 clients / Hush Line's {HUSH_LINE:g}/s", 20), [r / HUSH_LINE for r in few.figures("rate")]
        ),
        Result(Goal(5, f"form, failures at {CLIENTS} clients", 0, most=True), [sum(many.figures("failed"))]),
        Result(Goal(5, "memory of the process", 90, most=True, unit=" MB"), [memory]),
    ], wrong


PARTS: Mapping[str, Callable[[Run], Part]] = {"sqlite": on_sqlite, "postgresql": on_postgresql, "form": on_form}


def show(title: str, subjects: Sequence[Subject]) -> None:
    """Print the medians of each subject."""
    columns = {
        "/s": "rate",
        "CPU us": "cpu",
        "database CPU us": "database",
        "p50 ms": "p50",
        "p99 ms": "p99",
        "MB": "memory",
    }
    kept = {
        head: name
        for head, name in columns.items()
        if any(leg is not None for s in subjects for leg in s.figures(name))
    }
    print(f"\n{title}")
    print_table(["", *kept], [[s.name, *(_figure(s.figures(name)) for name in kept.values())] for s in subjects])


def _figure(figures: Sequence[Any]) -> str:
    known = [figure for figure in figures if figure is not None]
    if not known:
        return "-"
    middle = median(known)
    return f"{middle:,.0f}" if middle >= 100 else f"{middle:,.1f}"


def main(arguments: list[str]) -> int:
    """Run the benchmark. Returns 1 if a request failed or an acknowledged one is not stored, whatever the speed."""
    parser = argparse.ArgumentParser(
        prog="./hotline bench intake",
        description="Measure from a signed SMS, or the web form, to a durable tip, against the rulers (goals 1 to 5).",
    )
    parser.add_argument("--seconds", type=float, default=4, help="length of a leg (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="legs of each subject, in alternation (default: 5)")
    parser.add_argument("--only", choices=PARTS, help="one part of the three")
    parser.add_argument("--folder", type=Path, help="where databases lie, on a disk that syncs (default: var/bench)")
    parser.add_argument("--smoke", action="store_true", help="half a second, one round: shows that it runs")
    options = parser.parse_args(arguments)
    if options.smoke:
        options.seconds, options.rounds = 0.5, 1
    results: list[Result] = []
    wrong: list[str] = []
    with ground(options.folder) as place:
        print(f"{machine(place.folder)}; {options.rounds} rounds of {options.seconds:g} s, medians")
        for name in [options.only] if options.only else PARTS:
            with ExitStack() as stack:
                part, faults = PARTS[name](Run(options, place, stack))
            results += part
            wrong += faults
    return print_verdict(results, wrong, counts=not options.smoke)
