"""What was told before raises what is told now: repeats by others, silent calls, cases closed incomplete."""

import json
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import event, func, select, update

from service import history
from service.cases import change, wall
from service.db import Sessions, Tx, write
from service.errors import StorageUnavailable
from service.history import INCOMPLETE, REASON, NameKeys
from service.intake import Receipt
from service.ledger.events import SYSTEM, EventType, NewEvent, StateClass
from service.models import Case, CaseDecision, Channel, Contact, KeyedName, State, Tip
from service.triage import Fact, Source
from service.vault import boxes
from tests.builders import NOW, World, a_number, a_tip, a_world, the_case

# Neither raises anything by itself: work of children, at a place and by a person that can be found again.
AT_THE_LOTUS = "A boy of fourteen works in the kitchen at the Golden Lotus Hotel in Siem Reap."
ELSEWHERE = "A boy of fourteen works in the kitchen at the Silver River Hotel in Siem Reap."
BY_DARA = "I saw long ago, two years ago, how Mr Sok Dara hit a child. He has moved away."
ABOUT_POLICE = f"{AT_THE_LOTUS} The police chief takes money from the owner so that he stays away."


@pytest.fixture
def world(sessions: Sessions) -> World:
    return a_world(sessions)


def told(world: World, words: str, ago: timedelta = timedelta(), **changed: Any) -> Receipt:
    [receipt] = world.receive(a_tip(words, received_at=NOW - ago, **{"sender": a_number()} | changed))
    return receipt


def told_daily(world: World, words: str, times: int, **changed: Any) -> list[Receipt]:
    """Tips a day apart from as many contacts, the last a day ago."""
    return [told(world, words, timedelta(days=times - n), **changed) for n in range(times)]


def record(world: World, receipt: Receipt) -> dict[str, Any]:
    """The newest decision of a tip's case."""
    case = the_case(world, receipt.tip)
    with world.sessions.read() as session:
        found = session.get(CaseDecision, (case.id, case.decision))
    assert found is not None
    assert found.record is not None
    return json.loads(found.record)


def fired(world: World, receipt: Receipt) -> set[str]:
    return {reason["id"] for reason in record(world, receipt)["fired"]}


def fact(world: World, receipt: Receipt, name: str) -> Any:
    found = record(world, receipt)["facts"].get(name)
    return None if found is None else found["value"]


# --- B001: the same place ---


def test_the_fourth_independent_tip_about_a_place_is_raised_by_one_level(world: World) -> None:
    before = told_daily(world, AT_THE_LOTUS, 3)
    fourth = told(world, AT_THE_LOTUS)

    assert [receipt.level for receipt in before] == ["P3"] * 3
    assert fourth.level == the_case(world, fourth.tip).level == "P2"
    assert "B001" in fired(world, fourth)
    counted = record(world, fourth)["facts"]["venue_tips_90d"]
    assert (counted["source"], counted["value"]) == ("derived", 3)
    assert fact(world, before[0], "venue_tips_90d") is None


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"words": ELSEWHERE}, id="another place"),
        pytest.param({"words": AT_THE_LOTUS.replace("Siem Reap", "Kampot")}, id="another province"),
        pytest.param({"words": "A boy of fourteen works in the kitchen of a hotel in Siem Reap."}, id="no name"),
    ],
)
def test_tips_about_another_place_are_none(world: World, changed: dict[str, str]) -> None:
    told_daily(world, changed["words"], 3)
    fourth = told(world, AT_THE_LOTUS)

    assert fourth.level == "P3"
    assert fact(world, fourth, "venue_tips_90d") is None


def test_one_contact_that_tells_it_again_and_again_is_one(world: World) -> None:
    number = a_number()
    forms = {"sender": number, "channel": Channel.WEB, "provider": "web", "kind": "form"}
    again = told_daily(world, AT_THE_LOTUS, 4, **forms)

    assert len({receipt.tip for receipt in again}) == 4  # nobody has shown that the number is theirs
    assert {receipt.level for receipt in again} == {"P3"}
    assert fact(world, told(world, AT_THE_LOTUS), "venue_tips_90d") == 1
    assert fact(world, told(world, AT_THE_LOTUS, **forms), "venue_tips_90d") is None


def test_tips_without_a_contact_count_when_they_are_more_than_ten_minutes_apart(world: World) -> None:
    for _ in range(3):
        told(world, AT_THE_LOTUS, timedelta(hours=2), sender=None)
    assert told(world, AT_THE_LOTUS, timedelta(hours=1), sender=None).level == "P3"
    assert told(world, AT_THE_LOTUS, timedelta(minutes=30), sender=None).level == "P3"
    assert told(world, AT_THE_LOTUS, sender=None).level == "P2"


@pytest.mark.parametrize(("minutes", "level"), [(10, "P3"), (11, "P2")])
def test_a_tip_within_ten_minutes_is_not_independent(world: World, minutes: int, level: str) -> None:
    told_daily(world, AT_THE_LOTUS, 2)
    told(world, AT_THE_LOTUS, timedelta(minutes=minutes))

    assert told(world, AT_THE_LOTUS).level == level


@pytest.mark.parametrize(("minutes", "level"), [(10, "P3"), (11, "P2")])
def test_others_are_more_than_ten_minutes_apart_from_each_other_too(world: World, minutes: int, level: str) -> None:
    for ago in (timedelta(days=2), timedelta(days=1), timedelta(days=1) - timedelta(minutes=minutes)):
        told(world, AT_THE_LOTUS, ago)

    assert told(world, AT_THE_LOTUS).level == level


@pytest.mark.parametrize(("days", "level"), [(90, "P2"), (91, "P3")])
def test_a_place_is_remembered_for_ninety_days(world: World, days: int, level: str) -> None:
    told(world, AT_THE_LOTUS, timedelta(days=days))
    told_daily(world, AT_THE_LOTUS, 2)

    assert told(world, AT_THE_LOTUS).level == level


def test_who_names_no_province_meets_those_who_do_when_they_tell_it(world: World) -> None:
    told_daily(world, AT_THE_LOTUS.replace(" in Siem Reap", ""), 3)
    assert told(world, AT_THE_LOTUS).level == "P2"


def test_a_place_in_another_spelling_is_the_same(world: World) -> None:
    for words in ("សណ្ឋាគារមាសសុខ", "សណ្ឋាគារ «មាសសុខ»", "សណ្ឋាគារឈ្មោះ មាស​សុខ"):
        told(world, f"ក្មេងប្រុស១៤ឆ្នាំធ្វើការនៅ{words} នៅសៀមរាប", timedelta(days=1 + len(words)))
    assert told(world, "ក្មេងប្រុស១៤ឆ្នាំធ្វើការនៅសណ្ឋាគារមាសសូខ នៅសៀមរាប").level == "P2"


def test_a_bump_never_makes_p1_and_no_tip_is_its_own_repeat(world: World) -> None:
    told_daily(world, AT_THE_LOTUS, 4)
    urgent = told(world, f"{AT_THE_LOTUS} The manager beats him every night.")
    assert urgent.level == "P2"


# --- later messages ---


def test_a_later_message_counts_what_has_come_since(world: World) -> None:
    number = a_number()
    first = told(world, AT_THE_LOTUS, timedelta(days=5), sender=number)
    told_daily(world, AT_THE_LOTUS, 3)

    again = told(world, "He is still there.", sender=number)

    assert again.tip == first.tip
    assert (first.level, again.level) == ("P3", "P2")
    assert fact(world, again, "venue_tips_90d") == 3


def test_a_name_in_a_later_message_is_counted_for_others(world: World) -> None:
    number = a_number()
    told(world, "A boy of fourteen works in a kitchen.", timedelta(days=5), sender=number)
    told(world, AT_THE_LOTUS, timedelta(days=4), sender=number)
    told_daily(world, AT_THE_LOTUS, 2)

    assert told(world, AT_THE_LOTUS).level == "P2"


# --- B002: the same person ---


def test_the_third_independent_tip_about_a_person_is_raised_by_one_level(world: World) -> None:
    first, second = told_daily(world, BY_DARA, 2)
    third = told(world, BY_DARA.replace("Mr Sok Dara", "Mr. Dara Sok"))

    assert (first.level, second.level, third.level) == ("P3", "P3", "P2")
    assert "B002" in fired(world, third)
    assert told(world, BY_DARA.replace("Sok Dara", "Keo Vannak")).level == "P3"


@pytest.mark.parametrize(("days", "level"), [(365, "P2"), (366, "P3")])
def test_a_person_is_remembered_for_a_year(world: World, days: int, level: str) -> None:
    told(world, BY_DARA, timedelta(days=days))
    told(world, BY_DARA, timedelta(days=2))

    assert told(world, BY_DARA).level == level


# --- R027: silent calls ---


def call(
    world: World, ago: timedelta = timedelta(), *, words: str = "", silent: bool = True, **changed: Any
) -> Receipt:
    stated = (Fact("message_kind", "silent", Source.STATED),) if silent else ()
    rest = {"channel": Channel.VOICE, "kind": "call", "stated": stated} | changed
    return told(world, words, ago, **rest)


def test_the_third_silent_call_of_a_contact_in_a_day_is_p2(world: World) -> None:
    number = a_number()
    calls = [call(world, timedelta(hours=hours), sender=number) for hours in (23, 1, 0)]

    assert [receipt.level for receipt in calls] == ["P3", "P3", "P2"]
    assert "R027" in fired(world, calls[-1])
    assert fact(world, calls[-1], "silent_calls_24h") == 3
    assert len({receipt.tip for receipt in calls}) == 1


@pytest.mark.parametrize(
    "others",
    [
        pytest.param(
            lambda world, number: [call(world, timedelta(hours=25 + n), sender=number) for n in (0, 1)], id="old"
        ),
        pytest.param(lambda world, number: [call(world, timedelta(hours=1)) for _ in range(2)], id="others"),
        pytest.param(
            lambda world, number: [call(world, timedelta(hours=1), sender=None) for _ in range(2)], id="hidden"
        ),
        pytest.param(
            lambda world, number: [call(world, timedelta(hours=n), sender=number, silent=False) for n in (2, 1)],
            id="spoken",
        ),
        pytest.param(
            lambda world, number: [call(world, timedelta(hours=n), sender=number, channel=Channel.SMS) for n in (2, 1)],
            id="texts",
        ),
    ],
)
def test_other_calls_are_not_silent_calls_of_the_contact(world: World, others: Callable[[World, str], Any]) -> None:
    number = a_number()
    others(world, number)

    last = call(world, sender=number)

    assert last.level == "P3"
    assert "R027" not in fired(world, last)


def test_silent_calls_of_a_contact_are_counted_over_its_tips(world: World) -> None:
    number = a_number()
    for hours in (3, 2):
        close(world, call(world, timedelta(hours=hours), sender=number), "C4")

    third = call(world, sender=number)

    assert third.level == "P2"
    assert fact(world, third, "silent_calls_24h") == 3


# --- R020: closed incomplete ---


def close(world: World, receipt: Receipt, reason: str, at: datetime = NOW, *, state: State = State.CLOSED) -> None:
    """Close a case as casework.md sections 7 and 14 will: the event with its reason's code, and the state."""
    case = the_case(world, receipt.tip)

    def closing(tx: Tx) -> None:
        found = tx.get_one(Case, case.id)
        closed = NewEvent(EventType.CLOSURE_EFFECTIVE, at, SYSTEM, StateClass.CLOSED, None, {REASON: reason})
        change(tx, world.ledger, found, [closed], state=state)

    write(world.sessions, closing)


@pytest.mark.parametrize("words", [AT_THE_LOTUS, BY_DARA], ids=["place", "person"])
@pytest.mark.parametrize("reason", INCOMPLETE)
def test_a_place_or_person_whose_case_was_closed_incomplete_is_p2_and_locked(
    world: World, words: str, reason: str
) -> None:
    close(world, told(world, words, timedelta(days=200)), reason, NOW - timedelta(days=100))

    later = told(world, words)

    assert later.level == "P2"
    assert "R020" in fired(world, later)
    assert the_case(world, later.tip).locked


def test_a_contact_whose_case_was_closed_incomplete_is_heard_again_as_p2(world: World) -> None:
    number = a_number()
    first = told(world, "A boy works in a kitchen.", timedelta(days=200), sender=number)
    close(world, first, "C9", NOW - timedelta(days=100))

    again = told(world, "The boy works in another kitchen now.", sender=number)

    assert again.tip != first.tip
    assert again.level == "P2"
    assert told(world, "The boy works in another kitchen now.").level == "P3"


@pytest.mark.parametrize(
    ("reason", "days"), [("C1", 100), ("C2", 100), ("C3", 100), ("C4", 100), ("C5", 100), ("C10", 100), ("C11", 100),
                         ("C9", 366)]
)  # fmt: skip
def test_a_case_that_was_finished_or_closed_long_ago_raises_nothing(world: World, reason: str, days: int) -> None:
    close(world, told(world, AT_THE_LOTUS, timedelta(days=400)), reason, NOW - timedelta(days=days))

    later = told(world, AT_THE_LOTUS)

    assert later.level == "P3"
    assert fact(world, later, "prior_closed_incomplete_12m") is None


def test_a_case_that_waits_because_the_child_was_not_found_counts_too(world: World) -> None:
    close(world, told(world, AT_THE_LOTUS, timedelta(days=20)), "C9", NOW - timedelta(days=10), state=State.WATCH)
    assert "R020" in fired(world, told(world, AT_THE_LOTUS))


# --- the wall ---


def rows(world: World) -> int:
    with world.sessions.read() as session:
        return session.scalar(select(func.count()).select_from(KeyedName)) or 0


def test_a_walled_tip_leaves_no_name_and_counts_for_nobody(world: World) -> None:
    walled = told_daily(world, ABOUT_POLICE, 3)
    assert all(the_case(world, receipt.tip).walled for receipt in walled)
    assert rows(world) == 0

    after = told(world, AT_THE_LOTUS)

    assert after.level == "P3"
    assert fact(world, after, "venue_tips_90d") is None


def test_the_same_tips_without_the_wall_would_count(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control of the test above."""
    from service import draft

    monkeypatch.setattr(draft, "WALL_ROUTE", "NOWHERE")
    told_daily(world, ABOUT_POLICE, 3)

    assert rows(world) == 3
    assert told(world, AT_THE_LOTUS).level == "P2"


def raise_wall(world: World, receipt: Receipt) -> None:
    def walling(tx: Tx) -> None:
        case = tx.get_one(Case, tx.get_one(Tip, receipt.tip).case)
        cards = world.founding.cards
        wall(tx, world.ledger, case, cards, {}, frozenset(), actor=SYSTEM, cause="screener", now=NOW)

    write(world.sessions, walling)


def test_a_case_that_is_walled_later_takes_its_names_with_it(world: World) -> None:
    before = told_daily(world, AT_THE_LOTUS, 3)
    assert rows(world) == 3
    raise_wall(world, before[0])

    assert rows(world) == 2
    assert told(world, AT_THE_LOTUS).level == "P3"


def test_a_name_that_was_left_behind_the_wall_is_passed_over(world: World) -> None:
    """Should a row ever stay, or be put there, it must not tell."""
    walled = told_daily(world, ABOUT_POLICE, 3)
    name = boxes.place_name(world.founding.place_key, "lodging|goldenlotus|KH-17")
    left = [
        {"tip": receipt.tip, "number": 1, "kind": "place", "name": name, "at": NOW - timedelta(days=n + 1)}
        for n, receipt in enumerate(walled)
    ]
    write(world.sessions, lambda tx: tx.insert(KeyedName, left))

    assert told(world, AT_THE_LOTUS).level == "P3"


def test_a_closure_behind_the_wall_tells_nobody(world: World) -> None:
    number = a_number()
    closed = told(world, AT_THE_LOTUS, timedelta(days=20), sender=number)
    close(world, closed, "C9", NOW - timedelta(days=10))
    raise_wall(world, closed)
    write(world.sessions, lambda tx: tx.execute(update(Contact).values(tip=None)))  # so that the next one is a new tip

    assert told(world, AT_THE_LOTUS).level == "P3"
    assert told(world, AT_THE_LOTUS, timedelta(hours=1), sender=number).level == "P3"


def test_a_walled_tip_knows_its_history_in_its_sealed_record(world: World) -> None:
    told_daily(world, AT_THE_LOTUS, 3)
    walled = the_case(world, told(world, ABOUT_POLICE).tip)

    with world.sessions.read() as session:
        decision = session.get_one(CaseDecision, (walled.id, 1))
    assert walled.walled
    assert (decision.record, rows(world)) == (None, 3)


# --- what is stored, and what it costs ---


def test_only_keyed_names_are_stored(world: World) -> None:
    receipt = told(world, f"{AT_THE_LOTUS} {BY_DARA}")
    keys = NameKeys(world.founding.place_key, world.founding.sketch_key)
    with world.sessions.read() as session:
        found = {(row.tip, row.number, row.kind, row.name) for row in session.scalars(select(KeyedName)).all()}

    assert found == {
        (receipt.tip, 1, "place", boxes.place_name(keys.place, "lodging|goldenlotus|KH-17")),
        (receipt.tip, 1, "suspect", boxes.suspect_name(keys.sketch, "darasok")),
    }


def test_names_under_other_keys_do_not_meet(world: World) -> None:
    told_daily(world, AT_THE_LOTUS, 3)
    tip = a_tip(AT_THE_LOTUS, sender=a_number())
    [later] = world.receive(tip, names=NameKeys(bytes(32), bytes(range(32))))
    assert later.level == "P3"


def test_a_history_that_cannot_be_read_loses_no_tip(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise StorageUnavailable("away")

    told_daily(world, AT_THE_LOTUS, 3)
    monkeypatch.setattr(history, "recall", broken)
    tip = a_tip(AT_THE_LOTUS, sender=a_number())
    [receipt] = world.receive(tip)

    assert receipt.level == "P3"
    assert the_case(world, receipt.tip) is not None


def test_names_that_cannot_be_read_lose_no_tip(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from service import draft

    def broken(*_: Any) -> Any:
        raise RecursionError

    monkeypatch.setattr(draft, "names_in", broken)
    assert told(world, AT_THE_LOTUS).level == "P3"


def test_a_flood_of_one_name_does_not_slow_the_line_down(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "MOST", 2)
    told_daily(world, AT_THE_LOTUS, 4)
    assert fact(world, told(world, AT_THE_LOTUS), "venue_tips_90d") == 2


@pytest.mark.parametrize(
    ("about", "index"),
    [("SELECT keyed_name", "ix_keyed_name_name_at"), ("SELECT ledger_event", "ix_ledger_event_closure")],
)
def test_the_queries_go_by_their_indexes(world: World, about: str, index: str) -> None:
    if world.sessions.dialect != "sqlite":
        pytest.skip("PostgreSQL reads small tables whole")
    asked: set[str] = set()

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        asked.add(statement)

    event.listen(world.sessions.writing, "before_cursor_execute", note)
    told(world, AT_THE_LOTUS)

    [sql] = [each for each in asked if each.startswith(about) and "keyed_name.name = ?" in each]
    with world.sessions.reading.connect() as connection:
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}", (b"",) * sql.count("?")).all()
    steps = [row[3] for row in plan]
    assert any(index in step for step in steps), steps
    tables = ("keyed_name", "tip", "case_file", "ledger_event", "ledger_field")
    assert not [step for step in steps if step.removeprefix("SCAN ") in tables], steps
