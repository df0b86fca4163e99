"""``./hotline rules``: check a ruleset, replay it over what is stored, propose it."""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from sqlmodel import Session

from commands.serve import open_ready_database, open_rules, read_deck
from service import publishing, rulesets, shadow
from service.cases import reference
from service.config import Settings, settings_from_environment
from service.db import write
from service.errors import Invalid
from service.ledger.events import Ledger
from service.rulesets import Rulebook
from service.shadow import Move, Replay
from service.triage import NO_RULES, BadRuleset, Ruleset, Triage, load_ruleset
from service.triage.review import examples_file, lexicon_faults, load_examples, rule_faults, unreviewed

CURRENT = "current"

CHECKED = """\
checked: the schema; that each rule fires, misses and stays open as its examples say, and so can be reached; reasons in
both languages with every place filled; the lexicon's own examples. Khmer that no named speaker has signed off is
counted, never refused. The examples lie beside the ruleset, in NAME.examples.yaml.

exit code: 0 in order, 1 faults, 2 a file that is no ruleset or lexicon
"""
REPLAYED = """\
OLD and NEW are each a file, the content hash of a stored ruleset, or 'current', the one in force. Levels are those of
the rules alone, on what is known of each case now; nothing is changed. What is known of walled cases is sealed: those
are only counted, and decided anew when oversight or integrity opens them.

exit code: 0 no case falls, 1 some do, 2 wrong use or settings
"""
PROPOSED = """\
The file names who approves it, as accounts: approved_by: ["u:NAME"]. They are supervisors or oversight officers, and
none of them an author or --by. Oversight must be among them if a level could fall. They sign on the page /rules of the
staff app, where each case that would fall is ticked by name first.

--emergency: the first signature puts it in force for 72 hours; it ends then by itself, unless all have signed.

exit code: 0 proposed, 1 the file has faults, 2 refused
"""


def main(arguments: list[str]) -> int:
    """Run the action named first in `arguments`; return its exit code."""
    options = _parser().parse_args(arguments)
    settings = settings_from_environment()
    if options.action == "replay":
        return _replay(settings, options.old, options.new, as_json=options.json)
    if options.action == "propose":
        return _propose(settings, options.file, options.by, emergency=options.emergency)
    return _check(options.ruleset or settings.ruleset_file, options.lexicon or settings.lexicon_dir)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="./hotline rules", description="Rules as data: check, replay, propose them.")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    def action(name: str, short: str, description: str, epilog: str) -> argparse.ArgumentParser:
        kind = argparse.RawDescriptionHelpFormatter
        return actions.add_parser(name, help=short, description=description, epilog=epilog, formatter_class=kind)

    check = action(
        "check",
        "say what is wrong with a ruleset and its lexicon",
        "Say what is wrong with a ruleset and its lexicon, and how much Khmer waits for review.",
        CHECKED,
    )
    check.add_argument("ruleset", nargs="?", type=Path, help="a ruleset file (default: the one in force)")
    check.add_argument("--lexicon", type=Path, metavar="FOLDER", help="a lexicon (default: the one in force)")
    replay = action(
        "replay",
        "show which stored cases a new ruleset would move",
        "Judge every stored case by two rulesets and show those whose level differs.",
        REPLAYED,
    )
    replay.add_argument("old", metavar="OLD")
    replay.add_argument("new", metavar="NEW")
    replay.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    propose = action(
        "propose",
        "propose a ruleset to those who approve it",
        "Propose a ruleset. Nothing is in force by it until those whom it names have signed.",
        PROPOSED,
    )
    propose.add_argument("file", type=Path, metavar="FILE")
    propose.add_argument("--by", required=True, metavar="ACCOUNT", help="who proposes it")
    propose.add_argument("--emergency", action="store_true", help="in force with one signature, for 72 hours")
    return parser


# --- check ----------------------------------------------------------------------------------------------


def _check(ruleset_file: Path, lexicon_dir: Path) -> int:
    triage = Triage.load(ruleset_file, lexicon_dir)
    faults = rule_faults(triage.ruleset, load_examples(examples_file(ruleset_file))) + lexicon_faults(triage)
    ruleset, lexicon = triage.ruleset, triage.lexicon
    print(f"ruleset {ruleset.name} {ruleset.version}: {len(ruleset.rules)} rules, {ruleset.content_hash}")
    print(f"lexicon {lexicon.name} {lexicon.version}: {len(lexicon.concepts)} concepts, {lexicon.content_hash}")
    print("Khmer that waits for a named speaker:")
    for kind in unreviewed(triage):
        print(f"  {kind.what:<28}{kind.waiting} of {kind.total}")
    return _told(faults)


def _told(faults: list[str]) -> int:
    for fault in faults:
        print(fault, file=sys.stderr)
    print(f"{len(faults)} faults" if faults else "in order")
    return 1 if faults else 0


# --- replay ---------------------------------------------------------------------------------------------


def _replay(settings: Settings, old_name: str, new_name: str, *, as_json: bool) -> int:
    sessions, now = open_ready_database(settings), datetime.now(UTC)
    book = Rulebook(sessions, load_ruleset(settings.ruleset_file))
    try:
        with sessions.read() as session:
            old, new = (_named(session, book, name, now) for name in (old_name, new_name))
            found = shadow.replay(session, old, new, now)
    finally:
        sessions.close()
    if as_json:
        print(json.dumps(_as_data(old, new, found), ensure_ascii=False, indent=1))
    else:
        _show(old, new, found)
    return 1 if found.falls else 0


def _named(session: Session, book: Rulebook, name: str, now: datetime) -> Ruleset:
    if name == CURRENT:
        return _trusted(book.current(now))
    if len(name) == 64 and not Path(name).exists():
        return rulesets.by_hash(session, name)
    return load_ruleset(Path(name))


def _trusted(ruleset: Ruleset) -> Ruleset:
    if ruleset is NO_RULES:
        raise BadRuleset("the published rules cannot be trusted: put that right first")
    return ruleset


def _as_data(old: Ruleset, new: Ruleset, found: Replay) -> Mapping[str, Any]:
    return {
        "old": {"version": old.version, "content_hash": old.content_hash},
        "new": {"version": new.version, "content_hash": new.content_hash},
        "moves": [
            {
                "case": reference(move.case),
                "before": move.before,
                "after": move.after,
                "no_longer": list(move.gone),
                "now": list(move.come),
                "below_locked_floor": move.barred,
            }
            for move in found.moves
        ],
        **{"rise": len(found.rises), "fall": len(found.falls), "same": found.same, "unread": found.unread},
        "sealed": found.sealed,
    }


def _show(old: Ruleset, new: Ruleset, found: Replay) -> None:
    print(f"{old.name} {old.version} -> {new.version}")
    for move in found.moves:
        print(f"  {reference(move.case)}  {move.before} -> {move.after}  {_why(move)}")
    for (before, after), count in sorted(Counter((move.before, move.after) for move in found.moves).items()):
        print(f"{before} -> {after}: {count}")
    print(f"{len(found.rises)} rise, {len(found.falls)} fall, {found.same} stay")
    if found.unread:
        print(f"{found.unread} have a record that this version cannot read; what is left of them was judged")
    if found.sealed:
        print(f"{found.sealed} are sealed: by oversight, when opened")


def _why(move: Move) -> str:
    parts = [f"no longer {', '.join(move.gone)}"] if move.gone else []
    parts += [f"now {', '.join(move.come)}"] if move.come else []
    parts += ["BELOW A LOCKED FLOOR"] if move.falls and move.barred else []
    return "; ".join(parts)


# --- propose --------------------------------------------------------------------------------------------


def _propose(settings: Settings, file: Path, account: str, *, emergency: bool) -> int:
    triage = Triage.load(file, settings.lexicon_dir)
    if faults := rule_faults(triage.ruleset, load_examples(examples_file(file))):
        return _told(faults)
    sessions, now = open_ready_database(settings), datetime.now(UTC)
    try:
        cards = read_deck(settings, sessions)
        current = _trusted(open_rules(sessions, load_ruleset(settings.ruleset_file)).at(now))
        with sessions.read() as session:
            found = shadow.replay(session, current, triage.ruleset, now)
        use_case = partial(
            publishing.propose,
            ledger=Ledger(settings.origin, cards.monitor().public),
            current=current,
            new=triage.ruleset,
            shadow=found,
            account=account,
            lexicon_hash=triage.lexicon.content_hash,
            emergency=emergency,
            now=now,
        )
        write(sessions, use_case)
    except Invalid as refused:
        print(f"hotline rules: {refused}", file=sys.stderr)
        return 2
    finally:
        sessions.close()
    _show(current, triage.ruleset, found)
    print(f"proposed: {triage.ruleset.content_hash}")
    print(f"{', '.join(triage.ruleset.approved_by)} sign on the page /rules; each fall is ticked there by name first.")
    return 0
