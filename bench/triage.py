"""``hotline bench triage``: one tip from words to a decision, and the rules alone (goal 8)."""

import argparse
import gc
import json
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from bench.verdict import Goal, Result, note, print_table, print_verdict, ratios
from service.config import settings_from_environment
from service.triage import Triage, assess
from service.triage.decide import judge

ROOT = Path(__file__).resolve().parent.parent
TIPS = ROOT / "tests" / "service" / "triage" / "tips"
AT = datetime(2027, 1, 4, 5, 0, tzinfo=UTC)
GROUPS = ("all", "en", "km", "other")


def main(arguments: list[str]) -> int:
    """Run the benchmark. Returns 1 if a tip was not judged by the rules, whatever the speed."""
    parser = argparse.ArgumentParser(
        prog="./hotline bench triage",
        description="Measure triage of invented tips, in one thread: normalise, lexicon, rules, reasons, record; and "
        "the rules alone. The ruler lower-cases a tip, cuts it into words and looks each up: the least one can do.",
    )
    parser.add_argument("--rounds", type=int, default=9, help="in alternation (default: %(default)s)")
    parser.add_argument("--tips", type=Path, help="a file of tips, one JSON object a line (default: our own)")
    parser.add_argument("--smoke", action="store_true", help="few tips, one round: shows that it runs")
    options = parser.parse_args(arguments)
    tips = _tips([options.tips] if options.tips else sorted(TIPS.glob("*.jsonl")))
    if options.smoke:
        tips, options.rounds = tips[::20], 1
    settings = settings_from_environment()
    triage = Triage.load(settings.ruleset_file, settings.lexicon_dir)
    gc.collect()
    gc.freeze()
    wrong = _faults(triage, tips)
    figures = _measure(triage, tips, options.rounds)
    _show(tips, figures)
    whole, rules, ruler = figures["all"], figures["rules"], figures["ruler"]
    results = [
        Result(Goal(8, "rules alone", 20, most=True, unit=" us"), rules),
        Result(Goal(8, "triage of one tip", 150, most=True, unit=" us"), whole),
        Result(Goal(8, "triage / a look-up of each word", float("inf"), most=True), ratios(whole, ruler)),
    ]
    return print_verdict(results, wrong, counts=not options.smoke)


def _tips(files: Sequence[Path]) -> list[dict[str, Any]]:
    tips: list[dict[str, Any]] = []
    for file in files:
        tips += [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    return tips


def _faults(triage: Triage, tips: Sequence[dict[str, Any]]) -> list[str]:
    found = []
    for tip in tips:
        decision = assess(triage, tip["text"], received_at=AT, context=tip["context"]).decision
        if decision.fired[0].id == "engine":
            found.append(f"{tip['id']}: engine fault")
    return found


def _measure(triage: Triage, tips: Sequence[dict[str, Any]], rounds: int) -> dict[str, list[float]]:
    """Return microseconds for each tip, a figure a round: by group, of the rules alone, and of the ruler."""
    groups = {name: [tip for tip in tips if name in ("all", _group(tip))] for name in GROUPS}
    words = frozenset(word for tip in tips for word in tip["text"].lower().split())
    facts = [assess(triage, tip["text"], received_at=AT, context=tip["context"]).facts for tip in tips]
    figures: dict[str, list[float]] = {name: [] for name in (*GROUPS, "rules", "ruler")}
    for number in range(rounds):
        note(f"round {number + 1} of {rounds}")
        figures["ruler"].append(_each(tips, lambda tip: [word in words for word in tip["text"].lower().split()]))
        for name, chosen in groups.items():
            if chosen:
                figures[name].append(
                    _each(chosen, lambda tip: assess(triage, tip["text"], received_at=AT, context=tip["context"]))
                )
        figures["rules"].append(_each(facts, lambda known: judge(known, triage.ruleset, AT)))
    return figures


def _group(tip: dict[str, Any]) -> str:
    language = str(tip["language"])
    return language if language in GROUPS else "other"


def _each(things: Sequence[Any], act: Callable[[Any], object]) -> float:
    started = time.perf_counter()
    for thing in things:
        act(thing)
    return (time.perf_counter() - started) / len(things) * 1e6


def _show(tips: Sequence[dict[str, Any]], figures: dict[str, list[float]]) -> None:
    print(f"{len(tips)} invented tips, one thread; median of the rounds, microseconds for each tip")
    rows = [
        [name, f"{median(found):.1f}", f"{min(found):.1f}", f"{max(found):.1f}"]
        for name, found in figures.items()
        if found
    ]
    print_table(["", "median", "least", "most"], rows)
