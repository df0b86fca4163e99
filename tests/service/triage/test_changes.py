"""What a new ruleset changes, and that none which is said to calm nothing ever lowers a level."""

import random
from typing import Any

import pytest

from service.triage import FACTS, Fact, Ruleset, Source
from service.triage.changes import Change, changes, may_fall
from service.triage.decide import decide
from tests.builders import NOW, triage
from tests.ruling import BEGGING_TODAY, Edit, levelled, rule_of, variant, with_rule, without

OLD = triage().ruleset
CHILD_BEGS = {"all": [{"term": "child"}, {"fact": "begging", "is": "yes"}]}


def condition(name: str, when: Any) -> Edit:
    return lambda data: rule_of(data, name).update(when=when)


def unlocked(name: str) -> Edit:
    return lambda data: rule_of(data, name).pop("locked")


def term(name: str, means: Any) -> Edit:
    return lambda data: data["terms"].update({name: means})


def default(level: str) -> Edit:
    return lambda data: data["default"].update(level=level)


def reworded(name: str) -> Edit:
    return lambda data: rule_of(data, name)["reason"].update(en="Other words")


@pytest.mark.parametrize(
    "edit",
    [
        BEGGING_TODAY,
        levelled("R034", "P2"),
        reworded("R001"),
        without("K001"),
        default("P2"),
        with_rule(id="B900", kind="bump", when=CHILD_BEGS),
        with_rule(id="R900", level="P3", locked="true", when=CHILD_BEGS),
        lambda data: rule_of(data, "R034").update(locked="true"),
        lambda data: data["rules"].reverse(),
    ],
)
def test_what_only_raises_or_rewords_lets_nothing_fall(edit: Edit) -> None:
    assert not may_fall(changes(OLD, variant(edit)))


@pytest.mark.parametrize(
    "edit",
    [
        without("R010"),
        without("B001"),
        without("F01"),
        without("W01"),
        levelled("R016", "P3"),
        levelled("K001", "P4"),
        unlocked("R001"),
        condition("R034", CHILD_BEGS),
        default("P4"),
        with_rule(id="R900", level="P4", when=CHILD_BEGS),
        with_rule(id="K900", kind="cap", level="P3", when=CHILD_BEGS),
        term("reach", {"fact": "suspect_access", "is": "ongoing"}),
    ],
)
def test_what_could_lower_anything_is_said(edit: Edit) -> None:
    assert may_fall(changes(OLD, variant(edit)))


def test_nothing_but_people_and_version_is_no_change() -> None:
    assert changes(OLD, variant()) == []


def test_a_term_changes_the_rules_that_use_it_and_no_others() -> None:
    made = changes(OLD, variant(term("residential", {"fact": "venue_type", "is": "orphanage"})))

    assert [change.rule for change in made] == ["R019"]
    assert made[0].parts == ("when",)


def test_each_change_has_its_rule_and_what_of_it() -> None:
    made = changes(OLD, variant(levelled("R034", "P2"), reworded("R034"), without("K001"), BEGGING_TODAY))

    assert made == [
        Change("R034", "changed", ("level", "reason"), False),
        Change("R900", "added", (), False),
        Change("K001", "removed", (), False),
    ]


def lowered(new: Ruleset, dice: random.Random) -> bool:
    """Whether some facts, thrown many times, get a calmer level than by the rules that ship."""
    for _ in range(400):
        facts = {name: a_fact(name, dice) for name in dice.sample(sorted(FACTS), dice.randint(0, 14))}
        if decide(facts, new, NOW).level > decide(facts, OLD, NOW).level:
            return True
    return False


def a_fact(name: str, dice: random.Random) -> Fact:
    kind = FACTS[name]
    value = dice.choice(kind.values) if kind.bounds is None else dice.randint(*kind.bounds)
    return Fact(name, value, dice.choice(list(Source)))


def an_edit(dice: random.Random) -> Edit:
    floors = [rule.id for rule in OLD.rules if rule.kind == "floor" and not rule.fills]
    others = [rule.id for rule in OLD.rules if rule.kind in ("bump", "cap")]
    levels, source = ("P1", "P2", "P3", "P4"), dice.choice(floors)
    when = next(row["when"] for row in OLD.data["rules"] if row["id"] == source)  # type: ignore[union-attr, index]
    kind = dice.choice(("floor", "bump", "cap"))
    level = {} if kind == "bump" else {"level": dice.choice(levels)}
    return dice.choice(
        (
            levelled(dice.choice(floors), dice.choice(levels)),
            without(dice.choice([*floors, *others])),
            condition(dice.choice([*floors, *others]), when),
            default(dice.choice(levels)),
            with_rule(id="R900", kind=kind, when=when, **level),
            unlocked("R001"),
            term("reach", {"fact": "suspect_access", "is": "ongoing"}),
        )
    )


def test_no_change_that_is_said_to_lower_nothing_ever_does() -> None:
    dice = random.Random(4)  # the same throws each time
    harmless = weakening_shown = 0
    for _ in range(60):
        new = variant(an_edit(dice))
        if may_fall(changes(OLD, new)):
            weakening_shown += lowered(new, dice)
        else:
            harmless += 1
            assert not lowered(new, dice), changes(OLD, new)
    assert harmless >= 10
    assert weakening_shown >= 10, "the facts thrown here do find what falls"
