"""Any people, in any order: no step lowers a case, no deadline moves later, and a fall is signed by all who must."""

import contextlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import update
from sqlmodel import col

from service import cases, clocks, decisions, levels
from service.db import Sessions, open_database
from service.errors import HotlineError
from service.models import Clock, ClockKind, Lowering, LoweringState
from service.triage import Fact
from tests.builders import NOW, PEOPLE, World, a_number, a_tip, a_world
from tests.service.test_intake import LOCKED_IN
from tests.service.test_levels import (
    MORE_PEOPLE,
    VAGUE,
    WHY,
    again,
    agree,
    confirm,
    do,
    new_case,
    propose,
    rows,
    told,
)

STARTS: dict[str, tuple[str, tuple[Fact, ...]]] = {
    "vague": (VAGUE, ()),
    "suggested": (LOCKED_IN, ()),
    "told": (VAGUE, (told("danger_now", "yes"),)),
}
ACTORS = ("screener", "screener-2", "investigator", "investigator-2", "both", "oversight", "elsewhere")
UNITS_OF = {name: set((PEOPLE | MORE_PEOPLE)[name][2]) for name in ACTORS}
FACTS_TRIED = (("confined_now", "no"), ("danger_now", "no"), ("begging", "no"), ("retaliation_threat", "yes"))

a_proposal = st.tuples(st.just("propose"), st.sampled_from(ACTORS), st.sampled_from(("P2", "P3", "P4")))
an_agreement = st.tuples(st.just("agree"), st.sampled_from(ACTORS), st.none())
another_step = st.one_of(
    st.tuples(st.just("refuse"), st.sampled_from(ACTORS), st.none()),
    st.tuples(st.just("confirm"), st.sampled_from(ACTORS), st.sampled_from(FACTS_TRIED)),
    st.tuples(st.just("raise"), st.sampled_from(ACTORS), st.sampled_from(("P1", "P2"))),
    st.tuples(st.just("text"), st.none(), st.sampled_from((LOCKED_IN, "Thank you for your help."))),
    st.tuples(st.just("wait"), st.none(), st.sampled_from((10, 90, 60 * 30))),
)
a_scene = st.one_of(
    st.tuples(another_step),
    st.tuples(a_proposal, an_agreement, an_agreement),
    st.tuples(a_proposal, another_step, an_agreement, an_agreement),
)


@pytest.fixture(scope="module")
def founded(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, World]:
    path = tmp_path_factory.mktemp("levels") / "founded.db"
    shutil.copy(sqlite_template, path)
    sessions = open_database(f"sqlite:///{path}")
    world = a_world(sessions, people=PEOPLE | MORE_PEOPLE)
    sessions.close()
    return path, world


class Play:
    """One case, steps by people, and after each what must hold. It looks at rows only, and at who the people are."""

    def __init__(self, world: World, start: str) -> None:
        self.world, self.start, self.now = world, start, NOW
        self.number, (words, facts) = a_number(), STARTS[start]
        self.case = new_case(world, words, *facts, sender=self.number)
        self.level = self.case.level
        self.due = self.deadlines()
        self.confirmed: dict[str, str] = {}
        self.approved: set[UUID] = set()

    def deadlines(self) -> dict[UUID, datetime]:
        return {clock.id: clock.due_at for clock in rows(self.world, Clock)}

    def step(self, what: str, name: Any, given: Any) -> None:
        self.now += timedelta(minutes=given if what == "wait" else 1)
        with contextlib.suppress(HotlineError):
            self.take(what, name, given)
        self.check()

    def take(self, what: str, name: Any, given: Any) -> None:
        standing = rows(self.world, Lowering.id, col(Lowering.state) != LoweringState.REFUSED)
        newest = standing[-1] if standing else uuid4()
        if what == "propose":
            propose(self.world, name, self.case, given, self.now)
        elif what == "agree":
            agree(self.world, name, self.case, newest, self.now)
        elif what == "refuse":
            do(self.world, levels.refuse, name, self.case, newest, "No.", now=self.now)
        elif what == "raise":
            do(self.world, levels.raise_by_hand, name, self.case, given, WHY, now=self.now)
        elif what == "confirm":
            confirm(self.world, name, self.case, *given, now=self.now)
            self.confirmed |= dict([given])
        elif what == "text":
            self.world.receive(a_tip(given, sender=self.number, received_at=self.now))
            self.start = "suggested" if self.start == "vague" and given == LOCKED_IN else self.start

    def check(self) -> None:
        row, due = again(self.world, self.case), self.deadlines()
        assert row.level <= self.level, "a level fell"
        assert all(due[clock] <= before for clock, before in self.due.items()), "a deadline moved later"
        self.level, self.due = row.level, due
        names = {member.id: name for name, (member, _) in self.world.people.items()}
        for lowering in rows(self.world, Lowering, col(Lowering.state) == LoweringState.APPROVED):
            assert lowering.before == row.level, "it outlived a rise"
            if lowering.id in self.approved:
                continue
            self.approved.add(lowering.id)
            proposer, approver = names[lowering.proposer], names[lowering.approver]
            assert not UNITS_OF[proposer] & UNITS_OF[approver], "they are of one unit"
            overseen = {proposer, approver, names.get(lowering.overseer, "")} & {"oversight"}
            assert overseen or not self.needs_oversight(lowering), "oversight has not signed"

    def needs_oversight(self, lowering: Lowering) -> bool:
        locked = self.start == "told" or (self.start == "suggested" and self.confirmed.get("confined_now") != "no")
        threatened = self.confirmed.get("retaliation_threat") == "yes" and lowering.after > "P2"
        acts = rows(self.world, Clock.due_at, col(Clock.kind) == ClockKind.ACT)
        return locked or threatened or min(acts) < self.now


@pytest.fixture
def play(founded: tuple[Path, World], tmp_path: Path) -> Iterator[Callable[[str], Play]]:
    path, world = founded
    sessions: list[Sessions] = []

    def begin(start: str) -> Play:
        fresh = tmp_path / f"{uuid4().hex}.db"
        shutil.copy(path, fresh)
        sessions.append(open_database(f"sqlite:///{fresh}"))
        return Play(replace(world, sessions=sessions[-1]), start)

    yield begin
    for opened_database in sessions:
        opened_database.close()


@settings(max_examples=40)
@given(start=st.sampled_from(sorted(STARTS)), scenes=st.lists(a_scene, min_size=2, max_size=4))
def test_no_order_of_steps_lowers_a_case_without_two_units_or_oversight_where_it_must(
    play: Callable[[str], Play], start: str, scenes: list[tuple[tuple[str, Any, Any], ...]]
) -> None:
    go(play(start), [step for scene in scenes for step in scene])


def go(game: Play, steps: list[tuple[str, Any, Any]]) -> None:
    for step in steps:
        game.step(*step)


def signs_anyway(*_: Any) -> None:
    """Nobody has an objection to anybody's signature."""


def never_oversight(*_: Any) -> None:
    """Two units suffice for everything."""


def lowers_at_once(tx: Any, ledger: Any, case: Any, events: Any, **columns: Any) -> None:
    """What is agreed to falls before it is witnessed."""
    cases.change(tx, ledger, case, events, **columns | {"level": "P4"})


def moves_later(tx: Any, case: Any, level: str, **_: Any) -> tuple[datetime, str]:
    """A rise gives more time."""
    tx.execute(update(Clock).values(due_at=NOW + timedelta(days=9)))
    return clocks.next_due(tx, case)


TWO_OF_SCREENING = [("propose", "screener", "P4"), ("agree", "screener-2", None)]
ONE_PERSON = [("propose", "screener", "P4"), ("agree", "screener", None)]
TWO_UNITS = [("propose", "screener", "P4"), ("agree", "investigator", None)]
DENIED = [("confirm", "screener", ("danger_now", "no")), ("propose", "screener", "P3"), ("agree", "investigator", None)]
LATE = [
    ("confirm", "screener", ("confined_now", "no")),
    ("wait", None, 90),
    ("propose", "screener", "P3"),
    ("agree", "investigator", None),
]
SIGNED_THEN_RAISED = [*TWO_UNITS, ("raise", "screener", "P1")]

BROKEN: dict[str, tuple[Any, str, Any, str, list[tuple[str, Any, Any]]]] = {
    "one unit signs": (levels, "may_not_sign", signs_anyway, "vague", TWO_OF_SCREENING),
    "one person signs": (levels, "may_not_sign", signs_anyway, "vague", ONE_PERSON),
    "oversight is not asked": (levels, "_why_oversight", never_oversight, "told", DENIED),
    "lateness is forgotten": (levels, "_why_oversight", never_oversight, "suggested", LATE),
    "what was told is forgotten": (decisions.Known, "as_told", lambda _: iter(()), "told", DENIED),
    "a rise ends nothing": (decisions, "lapse_lowering", lambda *_, **__: [], "vague", SIGNED_THEN_RAISED),
    "it falls unwitnessed": (levels, "change", lowers_at_once, "vague", TWO_UNITS),
    "a rise gives more time": (decisions, "raise_level", moves_later, "vague", [("raise", "screener", "P1")]),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_the_play_finds_each_check_that_is_taken_away(
    play: Callable[[str], Play], monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """The negative controls of the test above: the same steps are fine while the check is there."""
    module, name, broken, start, steps = BROKEN[fault]
    go(play(start), steps)
    game = play(start)
    monkeypatch.setattr(module, name, broken)
    with pytest.raises(AssertionError):
        go(game, steps)
