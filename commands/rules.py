"""``./hotline rules check``: does a ruleset, and the lexicon with it, show what it must before it is published?"""

import argparse
import sys
from pathlib import Path

from service.config import settings_from_environment
from service.triage import Triage
from service.triage.review import examples_file, lexicon_faults, load_examples, rule_faults, unreviewed

EPILOG = """\
checked: the schema; that each rule fires, misses and stays open as its examples say, and so can be reached; reasons in
both languages with every place filled; the lexicon's own examples. Khmer that no named speaker has signed off is
counted, never refused. The examples lie beside the ruleset, in NAME.examples.yaml.

exit code: 0 in order, 1 faults, 2 a file that is no ruleset or lexicon
"""


def main(arguments: list[str]) -> int:
    """Check the ruleset and lexicon in force, or those named; return 0, or 1 if something is wrong with them."""
    parser = argparse.ArgumentParser(prog="./hotline rules", description="Rules as data: check them.")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    check = actions.add_parser(
        "check",
        help="say what is wrong with a ruleset and its lexicon",
        description="Say what is wrong with a ruleset and its lexicon, and how much Khmer waits for review.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    check.add_argument("ruleset", nargs="?", type=Path, help="a ruleset file (default: the one in force)")
    check.add_argument("--lexicon", type=Path, metavar="FOLDER", help="a lexicon (default: the one in force)")
    options = parser.parse_args(arguments)
    settings = settings_from_environment()
    return _check(options.ruleset or settings.ruleset_file, options.lexicon or settings.lexicon_dir)


def _check(ruleset_file: Path, lexicon_dir: Path) -> int:
    triage = Triage.load(ruleset_file, lexicon_dir)
    faults = rule_faults(triage.ruleset, load_examples(examples_file(ruleset_file))) + lexicon_faults(triage)
    ruleset, lexicon = triage.ruleset, triage.lexicon
    print(f"ruleset {ruleset.name} {ruleset.version}: {len(ruleset.rules)} rules, {ruleset.content_hash}")
    print(f"lexicon {lexicon.name} {lexicon.version}: {len(lexicon.concepts)} concepts, {lexicon.content_hash}")
    print("Khmer that waits for a named speaker:")
    for kind in unreviewed(triage):
        print(f"  {kind.what:<28}{kind.waiting} of {kind.total}")
    for fault in faults:
        print(fault, file=sys.stderr)
    print(f"{len(faults)} faults" if faults else "in order")
    return 1 if faults else 0
