"""From figures to a verdict: medians, ratios of the same round, and the goals of the page on performance."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class Goal:
    """A bound on a figure. number: of the goal. most: whether `bound` is the most or the least allowed."""

    number: int
    what: str
    bound: float
    most: bool = False
    unit: str = ""
    stretch: float | None = None

    def met_by(self, figure: float) -> bool:
        """Return whether `figure` is within the bound."""
        return figure <= self.bound if self.most else figure >= self.bound

    @property
    def asked(self) -> str:
        """The bound in words."""
        stretch = f", stretch {self.stretch:g}" if self.stretch else ""
        return f"{'<=' if self.most else '>='} {self.bound:g}{self.unit}{stretch}"


@dataclass(frozen=True, slots=True)
class Result:
    """A goal and the figures that speak to it: their median decides."""

    goal: Goal
    figures: Sequence[float]

    @property
    def figure(self) -> float:
        """The median."""
        return median(self.figures)


def ratios(ours: Sequence[float], rulers: Sequence[float]) -> list[float]:
    """Return ours over the ruler, round by round: what slows the machine for a while slows both."""
    return [mine / theirs if theirs else float("nan") for mine, theirs in zip(ours, rulers, strict=True)]


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under a head: the first column is words, the others figures."""
    widths = [max(len(row[place]) for row in [head, *rows]) for place in range(len(head))]
    for row in [head, *rows]:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        print("  " + "   ".join(cells).rstrip())


def print_verdict(results: Sequence[Result], wrong: Sequence[str], *, counts: bool) -> int:
    """Print each goal with its rounds, its median and whether it is met. Returns the command's exit code.

    wrong: what must never happen at any speed; 1 if there is any. counts: False for a smoke run, whose figures mean
    nothing.
    """
    for fault in wrong:
        print(f"WRONG: {fault}", file=sys.stderr)
    print("\nGoals" if counts else "\nGoals (smoke run: the figures mean nothing)")
    rows = [
        [
            f"{r.goal.number}  {r.goal.what}",
            " ".join(f"{figure:.2f}" for figure in r.figures) if len(r.figures) > 1 else "",
            f"{r.figure:.2f}{r.goal.unit}",
            r.goal.asked,
            "pass" if r.goal.met_by(r.figure) else "MISS",
        ]
        for r in results
    ]
    print_table(["", "rounds", "median", "goal", ""], rows)
    return 1 if wrong else 0


def note(words: str) -> None:
    """Show progress on a terminal, and nothing in a file."""
    if sys.stderr.isatty():
        print(f"\r\033[K{words}", end="", file=sys.stderr, flush=True)
