"""The ruleset: every rule can be shown to fire, to miss and to stay open; bad files are refused whole."""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.errors import Misconfigured
from service.triage import FLAGS, LEVELS, ROUTES, BadRuleset, Ruleset, build_ruleset, load_ruleset
from service.triage.review import rule_faults
from tests.service.triage.builders import RULES, VIGNETTES, decided, facts
from tests.service.triage.conftest import RULESET_FILE

Change = Callable[[dict[str, Any]], Any]


def faults(ruleset: Ruleset) -> list[str]:
    """What the vignettes find wrong with a ruleset."""
    return rule_faults(ruleset, VIGNETTES)


def test_every_rule_has_a_vignette_and_no_other() -> None:
    assert {rule["id"] for rule in RULES["rules"]} == set(VIGNETTES)


def test_every_rule_fires_misses_and_stays_open_as_its_vignettes_say(ruleset: Ruleset) -> None:
    assert faults(ruleset) == []


@pytest.mark.parametrize("rule_id", VIGNETTES)
def test_deleting_any_rule_is_noticed(rule_id: str) -> None:
    data = copy.deepcopy(RULES)
    data["rules"] = [rule for rule in data["rules"] if rule["id"] != rule_id]

    assert any(fault.startswith(rule_id) for fault in faults(build_ruleset(data)))


@pytest.mark.parametrize("rule_id", [rule["id"] for rule in RULES["rules"] if "level" in rule])
def test_shifting_any_level_is_noticed(rule_id: str) -> None:
    data = copy.deepcopy(RULES)
    rule = next(rule for rule in data["rules"] if rule["id"] == rule_id)
    rule["level"] = "P2" if rule["level"] == "P1" else "P1"

    assert faults(build_ruleset(data)) != []


def test_swapping_at_least_and_at_most_is_noticed() -> None:
    text = RULESET_FILE.read_text(encoding="utf-8")
    swapped = re.sub(r"\b(gte|lte):", lambda match: "lte:" if match[1] == "gte" else "gte:", text)
    data = copy.deepcopy(RULES)
    assert swapped != text

    def swap(node: Any) -> Any:
        if isinstance(node, dict):
            return {{"gte": "lte", "lte": "gte"}.get(key, key): swap(value) for key, value in node.items()}
        return [swap(item) for item in node] if isinstance(node, list) else node

    assert faults(build_ruleset(swap(data))) != []


@pytest.mark.parametrize(
    ("known", "calm", "rule_id"),
    [
        ({"violence": "yes", "recency": "recent", "place_known": "yes"}, {"suspect_access": "none"}, "R011"),
        ({"violence": "yes", "victims": 3}, {"second_hand": "yes"}, "R016"),
        ({"trafficking": "yes"}, {"second_hand": "yes"}, "R022"),
        ({"violence": "yes", "suspect_role": "teacher"}, {"second_hand": "yes"}, "R013"),
    ],
)
def test_what_the_labelling_guide_calls_no_longer_urgent(
    ruleset: Ruleset, known: dict[str, Any], calm: dict[str, str], rule_id: str
) -> None:
    assert rule_id in {reason.id for reason in decided(ruleset, facts(**known)).fired}
    assert rule_id not in {reason.id for reason in decided(ruleset, facts(**known, **calm)).fired}


@pytest.mark.parametrize("calm", [{"suspect_status": "dead"}, {"suspect_access": "none"}, {"second_hand": "yes"}])
def test_nothing_makes_a_settlement_less_than_p2(ruleset: Ruleset, calm: dict[str, str]) -> None:
    settled = decided(ruleset, facts(settlement="paid", **calm))
    without = decided(ruleset, facts(settlement="none", **calm))

    assert settled.level == "P2"
    assert "R015" in {reason.id for reason in settled.fired}
    assert without.level == "P3"


def test_hearsay_with_place_and_person_known_stays_urgent(ruleset: Ruleset) -> None:
    known = facts(trafficking="yes", second_hand="yes", place_known="yes", person_known="yes")

    assert decided(ruleset, known).level == "P2"


def test_the_rules_raise_every_flag_and_route_there_is(ruleset: Ruleset) -> None:
    assert {rule.effect for rule in ruleset.rules if rule.kind == "flag"} == set(FLAGS)
    assert {rule.effect for rule in ruleset.rules if rule.kind == "route"} == set(ROUTES)


def test_every_floor_of_p1_is_locked(ruleset: Ruleset) -> None:
    assert all(rule.locked for rule in ruleset.rules if rule.level == "P1")


def test_every_reason_is_in_both_languages(ruleset: Ruleset) -> None:
    for rule in ruleset.rules:
        assert re.search("[\u1780-\u17ff]", rule.reason.km), rule.id
        assert rule.reason.en.isascii(), rule.id
        assert rule.source, rule.id


def test_the_file_in_force_is_named_by_its_content(ruleset: Ruleset) -> None:
    assert ruleset.content_hash == load_ruleset(RULESET_FILE).content_hash
    assert len(ruleset.content_hash) == 64
    changed = copy.deepcopy(RULES)
    changed["rules"][0]["reason"]["km"] += "។"
    assert build_ruleset(changed).content_hash != ruleset.content_hash


def test_yes_and_no_stay_words(ruleset: Ruleset) -> None:
    assert RULES["terms"]["child"] == {"fact": "child_involved", "in": ["yes", "unknown"]}


def bad(change: Change) -> None:
    data = copy.deepcopy(RULES)
    change(data)
    build_ruleset(data)


def first(data: dict[str, Any]) -> dict[str, Any]:
    rule: dict[str, Any] = data["rules"][0]
    return rule


def when(condition: Any) -> Change:
    return lambda data: first(data).update(when=condition)


REFUSED: dict[str, Change] = {
    "an unknown key at the top": lambda data: data.update(colour="red"),
    "a missing key at the top": lambda data: data.pop("terms"),
    "another schema of facts": lambda data: data.update(facts_schema="facts-0"),
    "a version of words": lambda data: data.update(version="new"),
    "a time without a zone": lambda data: data.update(effective_from="2027-01-01T00:00:00"),
    "no time": lambda data: data.update(effective_from="soon"),
    "an author who approves": lambda data: data.update(approved_by=data["authors"]),
    "nobody who approves": lambda data: data.update(approved_by=[]),
    "a default without a level": lambda data: data["default"].pop("level"),
    "rules that are no list": lambda data: data.update(rules={}),
    "a rule that is no map": lambda data: data["rules"].append("R999"),
    "an unknown key of a rule": lambda data: first(data).update(colour="red"),
    "a rule without a source": lambda data: first(data).pop("source"),
    "a duplicate id": lambda data: first(data).update(id="R002"),
    "an unknown kind": lambda data: first(data).update(kind="roof"),
    "an unknown level": lambda data: first(data).update(level="P0"),
    "a lock that is neither true nor false": lambda data: first(data).update(locked="yes"),
    "a floor with a flag": lambda data: first(data).update(flag="confinement"),
    "an unknown flag": lambda data: next(r for r in data["rules"] if r["kind"] == "flag").update(flag="red"),
    "an unknown route": lambda data: next(r for r in data["rules"] if r["kind"] == "route").update(route="HOME"),
    "a reason without Khmer": lambda data: first(data)["reason"].pop("km"),
    "a reason without English": lambda data: first(data)["reason"].pop("en"),
    "an empty reason": lambda data: first(data)["reason"].update(km=" "),
    "a placeholder in one language": lambda data: first(data)["reason"].update(en="{age_min}"),
    "a placeholder the rule does not test": lambda data: first(data).update(
        reason={"en": "{age_min}", "km": "{age_min}"}
    ),
    "an unknown fact": when({"fact": "weather", "is": "bad"}),
    "an unknown value": when({"fact": "danger_now", "is": "maybe"}),
    "an unknown comparison": when({"fact": "danger_now", "matches": ".*"}),
    "two comparisons": when({"fact": "age_min", "gte": "1", "lte": "2"}),
    "no comparison": when({"fact": "danger_now"}),
    "a word where a number belongs": when({"fact": "age_min", "lte": "ten"}),
    "a number out of bounds": when({"fact": "age_min", "lte": "500"}),
    "at least a word": when({"fact": "danger_now", "gte": "1"}),
    "is unknown": when({"fact": "danger_now", "is": "unknown"}),
    "an empty list": when({"fact": "danger_now", "in": []}),
    "known as a word": when({"fact": "danger_now", "known": "maybe"}),
    "sure of what is unknown": when({"fact": "danger_now", "in": ["yes", "unknown"], "sure": "true"}),
    "half sure": when({"fact": "danger_now", "is": "yes", "sure": "maybe"}),
    "an unknown term": when({"term": "weather"}),
    "an empty all": when({"all": []}),
    "a condition that is no map": when("danger_now"),
    "two conditions in one map": when({"term": "child", "not": {"term": "child"}}),
    "a circular term": lambda data: data["terms"].update(child={"not": {"term": "child"}}),
    "a circle of two terms": lambda data: data["terms"].update(a={"term": "b"}, b={"term": "a"}),
    "too many alternatives": when(
        {
            "any": [
                {"all": [{"fact": name, "is": value} for name, value in group]}
                for group in [
                    [(f, v) for f in ("danger_now", "violence", "sale", "begging") for v in ("yes", "no")]
                    + [("suspect_role", role) for role in ("teacher", "coach", "staff")],
                    [("province", f"KH-{number}") for number in range(1, 20)],
                ]
            ]
        }
    ),
}


@pytest.mark.parametrize("why", REFUSED)
def test_a_bad_ruleset_is_refused(why: str) -> None:
    with pytest.raises(BadRuleset):
        bad(REFUSED[why])


def test_a_bad_ruleset_is_a_fault_of_configuration() -> None:
    assert issubclass(BadRuleset, Misconfigured)


@pytest.mark.parametrize(
    "text",
    [
        "a: 1\na: 2\n",
        "a: &x 1\nb: *x\n",
        "a: &x 1\n",
        "a: !!str 1\n",
        "a: ! 1\n",
        "- a\n",
        "a: [1\n",
        "---\na: 1\n---\nb: 2\n",
        "? [a]\n: 1\n",
        "",
        "\x00",
    ],
)
def test_a_file_that_is_more_than_plain_data_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text(text, encoding="utf-8")

    with pytest.raises(BadRuleset, match=r"rules\.yaml"):
        load_ruleset(file)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRuleset):
        load_ruleset(tmp_path / "none.yaml")


def test_levels_go_from_urgent_to_calm() -> None:
    assert LEVELS == ("P1", "P2", "P3", "P4")
