"""Compiled conditions say what Kleene's three-valued logic says of the conditions as written."""

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.triage import Fact, Source
from service.triage.kleene import FALSE, TRUE, UNDECIDED, BadCondition, Compiler, effective
from tests.service.triage.builders import AS_OF, a_fact, facts

FALSE_, UNKNOWN_, TRUE_ = FALSE, UNDECIDED, TRUE
TERMS: dict[str, Any] = {"child": {"fact": "child_involved", "in": ["yes", "unknown"]}}
YES_OR_NO = ("danger_now", "violence", "child_involved")


def literal(condition: dict[str, Any], known: dict[str, Fact]) -> int:
    """Kleene's logic, word for word from triage.md section 4."""
    if "term" in condition:
        return literal(TERMS[condition["term"]], known)
    if "not" in condition:
        return 2 - literal(condition["not"], known)
    if "all" in condition:
        return min(literal(part, known) for part in condition["all"])
    if "any" in condition:
        return max(literal(part, known) for part in condition["any"])
    fact = known.get(condition["fact"])
    if "known" in condition:
        return TRUE_ if (fact is not None) == (condition["known"] == "true") else FALSE_
    if fact is None:
        return TRUE_ if "unknown" in condition.get("in", []) else UNKNOWN_
    if condition.get("sure") and fact.source is Source.SUGGESTED:
        return UNKNOWN_
    if "is" in condition:
        return TRUE_ if str(fact.value) == condition["is"] else FALSE_
    if "in" in condition:
        return TRUE_ if fact.value in condition["in"] else FALSE_
    if "gte" in condition:
        return TRUE_ if int(fact.value) >= int(condition["gte"]) else FALSE_
    return TRUE_ if int(fact.value) <= int(condition["lte"]) else FALSE_


names = st.sampled_from(YES_OR_NO)
values = st.sampled_from(["yes", "no"])
numbers = st.integers(0, 6).map(str)
comparisons = st.one_of(
    st.builds(lambda name, value: {"fact": name, "is": value}, names, values),
    st.builds(lambda name, value: {"fact": name, "is": value, "sure": "true"}, names, values),
    st.builds(lambda name, value: {"fact": name, "in": [value, "unknown"]}, names, values),
    st.builds(lambda name, known: {"fact": name, "known": known}, names, st.sampled_from(["true", "false"])),
    st.builds(lambda key, number: {"fact": "age_min", key: number}, st.sampled_from(["gte", "lte", "is"]), numbers),
    st.builds(lambda known: {"fact": "age_min", "known": known}, st.sampled_from(["true", "false"])),
    st.just({"term": "child"}),
)
conditions = st.recursive(
    comparisons,
    lambda inner: st.one_of(
        st.builds(lambda part: {"not": part}, inner),
        st.builds(lambda parts: {"all": parts}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda parts: {"any": parts}, st.lists(inner, min_size=1, max_size=3)),
    ),
    max_leaves=7,
)
sources = st.sampled_from(list(Source))
known_facts = st.fixed_dictionaries(
    {},
    optional={name: st.tuples(values, sources) for name in YES_OR_NO}
    | {"age_min": st.tuples(st.integers(0, 6), sources)},
).map(lambda given: {name: Fact(name, value, source) for name, (value, source) in given.items()})


@settings(max_examples=100)
@given(condition=conditions, known=known_facts)
def test_a_compiled_condition_is_true_false_or_unknown_as_written(
    condition: dict[str, Any], known: dict[str, Fact]
) -> None:
    compiler = Compiler(TERMS)
    mask = compiler.mask(condition)
    true, possible = compiler.finish().run(known, None)

    found = TRUE_ if true & mask == mask else UNKNOWN_ if possible & mask == mask else FALSE_

    assert found == literal(condition, known)


def test_hours_run_down_from_when_they_were_said() -> None:
    said = a_fact("suspect_leaving_hours", 49, at=AS_OF)

    assert effective(said, AS_OF) == 49
    assert effective(said, AS_OF + timedelta(minutes=59)) == 49
    assert effective(said, AS_OF + timedelta(hours=1)) == 48
    assert effective(said, AS_OF + timedelta(days=30)) == 0
    assert effective(said, AS_OF - timedelta(days=1)) == 49


def test_an_age_does_not_run_down() -> None:
    assert effective(a_fact("age_min", 12, at=AS_OF), AS_OF + timedelta(days=1)) == 12


def test_a_condition_says_what_is_wrong_with_it() -> None:
    with pytest.raises(BadCondition, match="no such fact: weather"):
        Compiler({}).mask({"fact": "weather", "is": "bad"})
    with pytest.raises(BadCondition, match="circular term: a > b > a"):
        Compiler({"a": {"term": "b"}, "b": {"term": "a"}}).mask({"term": "a"})


def test_a_fact_that_no_rule_compares_changes_nothing() -> None:
    compiler = Compiler({})
    compiler.mask({"fact": "danger_now", "is": "yes"})
    program = compiler.finish()

    assert program.run(facts(province="KH-12"), None) == program.run({}, None)
