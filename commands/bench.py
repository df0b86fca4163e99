"""``./hotline bench NAME``: measure. Never a test: what is fast on one machine is slow on another."""

import argparse
import importlib

BENCHMARKS = {
    "intake": "a signed SMS, or the web form, to a durable tip, against the least that could store one (goals 1 to 5)",
    "triage": "words to facts, facts to a decision: one tip, and the rules alone (goal 8)",
    "ledger": "the tree in memory: leaves, proofs, a full check; and a ledger in a database (goal 9)",
    "queue": "queue pages, counts and claims at 10,000 and at 1,000,000 cases (goals 6 and 7)",
}


def main(arguments: list[str]) -> int:
    """Run the benchmark named first in `arguments` with the rest; its exit code is ours."""
    listed = "\n".join(f"  {name.ljust(8)}{what}" for name, what in BENCHMARKS.items())
    parser = argparse.ArgumentParser(
        prog="./hotline bench",
        description=f"Measure on this machine, and print the ratios to the rulers last.\n\n{listed}",
        epilog="./hotline bench NAME --help lists its options. bench/README.md says how to read the figures.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=BENCHMARKS, metavar="NAME", help=" or ".join(BENCHMARKS))
    parser.add_argument("options", nargs=argparse.REMAINDER, metavar="...", help="of that benchmark")
    options = parser.parse_args(arguments)
    code: int = importlib.import_module(f"bench.{options.name}").main(options.options)
    return code
