"""``hotline bench ledger``: the tree in memory, and a ledger in a database (goal 9; ledger.md section 12)."""

import argparse
import random
import resource
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from pathlib import Path
from statistics import median, quantiles

from bench.ground import ground, machine
from bench.verdict import Goal, Result, note, print_table, print_verdict
from service import cases
from service.db import Sessions, open_database, write
from service.ledger.checks import check_start
from service.ledger.events import SYSTEM, EventType, Ledger, NewEvent, StateClass, append, leaf_hash, new_chain
from service.ledger.merkle import RightEdge, prove_inclusion
from service.ledger.notes import open_checkpoint
from service.ledger.sequencer import Sequencer
from service.ledger.signer import Signer
from service.ledger.tiles import nodes_from
from service.ledger.verify import Keys, verify
from service.schema import migrate
from service.vault import boxes

ORIGIN = "bench.example/log"
COVER = bytes(32)
CLIENTS = (8, 16)


def main(arguments: list[str]) -> int:
    """Run the benchmark. Returns 1 if a tree or a ledger was not sound, whatever the speed."""
    parser = argparse.ArgumentParser(
        prog="./hotline bench ledger",
        description="Measure the ledger: leaves appended in memory, proofs in a large tree, the check of all tiles; "
        "then appends by 8 and by 16 clients with a live sequencer and without, start-up and full check of a database.",
    )
    parser.add_argument("--leaves", type=int, default=10_000_000, help="of the large tree (default: %(default)s)")
    parser.add_argument("--events", type=int, default=20_000, help="in the database (default: %(default)s)")
    parser.add_argument("--only", choices=["sqlite", "postgresql"], help="one engine")
    parser.add_argument("--folder", type=Path, help="where databases go (default: a temporary one)")
    parser.add_argument("--smoke", action="store_true", help="small: shows that it runs")
    options = parser.parse_args(arguments)
    if options.smoke:
        options.leaves, options.events = 20_000, 400
    wrong: list[str] = []
    with ground(options.folder) as place:
        print(machine(place.folder))
        results: list[Result] = []
        for name in [options.only] if options.only else ["sqlite", "postgresql"]:
            url = place.sqlite("ledger") if name == "sqlite" else place.postgresql("ledger")
            results += _database(name, url, place.folder, options.events, wrong)
        results += _memory(options.leaves, wrong)  # last: its peak of memory would hide that of the check
    return print_verdict(results, wrong, counts=not options.smoke)


# --- in memory ------------------------------------------------------------------------------------------


def _leaves(count: int) -> Iterator[list[bytes]]:
    """Yield leaves in lots, made beforehand: their making is not measured."""
    for first in range(0, count, 100_000):
        yield [sha256(n.to_bytes(8, "big")).digest() * 3 + bytes(16) for n in range(first, min(first + 100_000, count))]


def _memory(count: int, wrong: list[str]) -> list[Result]:
    edge, tiles, spent = RightEdge(), {}, []
    for lot in _leaves(count):
        note(f"{edge.size} leaves")
        began = time.perf_counter()
        for level, n, tile in edge.extend([leaf_hash(leaf) for leaf in lot]):
            tiles[level, n] = tile
        spent.append(len(lot) / (time.perf_counter() - began))
    tiles.update({(level, n): tile for level, n, tile in edge.partial()})
    nodes = nodes_from(lambda names: [tiles[name] for name in names])
    taken = []
    for index in random.Random(1).sample(range(count), min(2000, count)):
        began = time.perf_counter()
        prove_inclusion(nodes, index, count)
        taken.append(1000 * (time.perf_counter() - began))
    checked = min(count, 1_000_000)
    small, bad, check = RightEdge(), 0, 0.0
    for lot in _leaves(checked):
        began = time.perf_counter()
        for level, n, tile in small.extend([leaf_hash(leaf) for leaf in lot]):
            bad += tiles[level, n] != tile
        check += time.perf_counter() - began
    if bad:
        wrong.append("tiles made twice differ")
    note("")
    return [
        Result(Goal(9, "leaves appended a second in memory", 100_000), [median(spent)]),
        Result(Goal(9, f"inclusion proof, p99, {count:,} leaves", 10, most=True, unit=" ms"), [_p99(taken)]),
        Result(Goal(9, f"check of {checked:,} leaves", 15, most=True, unit=" s"), [check]),
    ]


def _p99(figures: Sequence[float]) -> float:
    return quantiles(figures, n=100)[98]


# --- in a database --------------------------------------------------------------------------------------


def _database(name: str, url: str, folder: Path, events: int, wrong: list[str]) -> list[Result]:
    migrate(url)
    sessions = open_database(url)
    ledger = Ledger(ORIGIN, boxes.keypair()[1])
    signer = Signer(ORIGIN, folder / f"signer-{name}", boxes.signing_keypair()[0])
    signer.create()
    now = partial(datetime.now, UTC)
    one = Sequencer(sessions, ledger, signer, signer.verifier, None, COVER, now)
    rows, figures = [], {}
    for clients in CLIENTS:
        for live in (False, True):
            note(f"{name}: {clients} clients, sequencer {'on' if live else 'off'}")
            figures[clients, live] = _appends(sessions, ledger, one if live else None, clients, events // 4)
        without, beside = figures[clients, False], figures[clients, True]
        rows.append([f"{clients} clients", f"{without[0]:.0f}/s", f"{beside[0]:.0f}/s", f"{_p99(beside[1]):.0f} ms"])
    note("")
    while one.round():
        pass
    print(f"\n{name}")
    print_table(["appends, each its own commit", "no sequencer", "sequencer", "p99"], rows)
    with sessions.read() as session:
        began = time.perf_counter()
        check_start(session, open_checkpoint(signer.head(), signer.verifier), signer.verifier, None, COVER, ())
        start = time.perf_counter() - began
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began = time.perf_counter()
        report = verify(session, Keys(signer.verifier, None, COVER, cases.state_class), now())
        whole = time.perf_counter() - began
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    wrong += [f"{name}: {fault}" for fault in report.faults[:3]]
    one.step_down()
    sessions.close()
    per = 1_000_000 / max(report.events, 1)
    return [
        Result(Goal(9, f"{name}: start-up at {report.events:,} events", 3, most=True, unit=" s"), [start]),
        Result(Goal(9, f"{name}: verify, for a million events", 60, most=True, unit=" s"), [whole * per]),
        Result(Goal(9, f"{name}: memory that verify added", 100, most=True, unit=" MB"), [grown]),
    ]


def _appends(
    sessions: Sessions, ledger: Ledger, one: Sequencer | None, clients: int, events: int
) -> tuple[float, list[float]]:
    """Return events a second, each appended and committed alone, and the milliseconds that each took."""
    stop, taken = threading.Event(), []
    new = NewEvent(EventType.CONTENT_OPENED, datetime.now(UTC), SYSTEM, StateClass.SYSTEM, fields={"reason": "a word"})

    def lead() -> None:
        while one is not None and not stop.wait(1.0):
            one.round()

    def add() -> None:
        chain = new_chain()
        for _ in range(events // clients):
            began = time.perf_counter()
            write(sessions, lambda tx: append(tx, ledger, chain, [new]))
            taken.append(1000 * (time.perf_counter() - began))

    leader, workers = threading.Thread(target=lead), [threading.Thread(target=add) for _ in range(clients)]
    leader.start()
    began = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    spent = time.perf_counter() - began
    stop.set()
    leader.join()
    return len(taken) / spent, taken
