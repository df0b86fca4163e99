"""What tests of rulesets are built of: variants of the rules that ship, and people who decide on them."""

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from typing import Any

from service import publishing, rulesets, shadow, staff
from service.db import Sessions, write
from service.models import Role
from service.triage import Fact, Ruleset, Source, build_ruleset
from service.triage.facts import Value
from service.vault.passwords import Parameters
from tests.builders import CHEAP, NOW, PASSWORD, World, triage

SIGN = ["u:oversight"]
Edit = Callable[[dict[str, Any]], None]


def told(name: str, value: Value, source: Source = Source.STATED) -> Fact:
    return Fact(name, value, source, NOW)


def variant(
    *edits: Edit, version: str = "1.1.0", authors: Any = ("u:screener",), by: Any = SIGN, **top: Any
) -> Ruleset:
    """The rules that ship, as somebody else's next version with `edits`."""
    data = json.loads(triage().ruleset.content)
    data |= {"version": version, "authors": list(authors), "approved_by": list(by), **top}
    for edit in edits:
        edit(data)
    return build_ruleset(data)


def rule_of(data: Mapping[str, Any], name: str) -> dict[str, Any]:
    [found] = [row for row in data["rules"] if row["id"] == name]
    row: dict[str, Any] = found
    return row


def levelled(name: str, level: str) -> Edit:
    """Give a rule another level."""
    return lambda data: rule_of(data, name).update(level=level)


def without(*names: str) -> Edit:
    """Leave rules out."""
    return lambda data: data.update(rules=[row for row in data["rules"] if row["id"] not in names])


def with_rule(**row: Any) -> Edit:
    """Add a rule."""
    words = {"en": "An invented reason", "km": "មូលហេតុប្រឌិត"}
    return lambda data: data["rules"].append({"kind": "floor", "reason": words, "source": "invented", **row})


BEGGING_TODAY = with_rule(id="R900", level="P2", when={"fact": "begging", "is": "yes"})  # 1.0.0: P3 by R035


def join(world: World, account: str, role: Role, organisation: str, unit: str) -> None:
    """Add a person to a world that is there already."""
    founding = world.founding

    def enrol(tx: Any) -> None:
        member, keys = staff.enrol(
            tx,
            world.ledger,
            founding.row_key,
            account=account,
            name=account.title(),
            name_km="មនុស្សប្រឌិត",
            organisation=organisation,
            role=role,
            password=PASSWORD,
            now=NOW,
            parameters=Parameters(**CHEAP),
        )
        card = founding.cards.unit(unit)
        staff.grant(tx, world.ledger, founding.row_key, card, founding.unit_privates[unit], member, member, keys, NOW)
        tx.flush()
        tx.expunge(member)
        world.people[account] = (member, keys)

    write(world.sessions, enrol)


def in_force(world: World, now: datetime = NOW) -> Ruleset:
    """The rules that a process which starts now decides by."""
    book = rulesets.Rulebook(world.sessions, triage().ruleset)
    return book.current(now)


def replayed(sessions: Sessions, old: Ruleset, new: Ruleset, now: datetime = NOW) -> shadow.Replay:
    with sessions.read() as session:
        return shadow.replay(session, old, new, now)


def propose(world: World, new: Ruleset, *, by: str = "screener", emergency: bool = False, now: datetime = NOW) -> None:
    current = in_force(world, now)
    found = replayed(world.sessions, current, new, now)
    use_case = partial(
        publishing.propose,
        ledger=world.ledger,
        current=current,
        new=new,
        shadow=found,
        account=by,
        lexicon_hash=triage().lexicon.content_hash,
        emergency=emergency,
        now=now,
    )
    write(world.sessions, use_case)


def sign(world: World, new: Ruleset, who: str, now: datetime = NOW) -> rulesets.Version:
    """Sign as `who`, over the cases there are."""
    current, viewer = in_force(world, now), world.signed_in(who, now).viewer
    found = replayed(world.sessions, current, new, now)
    return write(
        world.sessions,
        lambda tx: publishing.sign(tx, world.ledger, viewer, new.content_hash, current, found, now),
    )


def tick(world: World, new: Ruleset, who: str, *cases: Any, now: datetime = NOW) -> None:
    found, viewer = replayed(world.sessions, in_force(world, now), new, now), world.signed_in(who, now).viewer
    write(world.sessions, lambda tx: publishing.tick(tx, viewer, new.content_hash, cases, found, now))


def publish(world: World, new: Ruleset, now: datetime = NOW) -> None:
    """Propose and sign with all whom it names."""
    propose(world, new, now=now)
    for name in new.approved_by:
        sign(world, new, name.removeprefix("u:"), now)
