"""The wall of a case: who is excluded at once, who falls with them, and how two of oversight take it back."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import select, text
from sqlmodel import col

from service import cases, exclusions, ladder, staff, walls
from service.clocks import Step
from service.db import Sessions, Tx, open_database, write
from service.errors import CannotOpen, Conflict, Forbidden, InvalidForm, NoSuchCase, NotFound, WrongState
from service.exclusions import Wallkeeper
from service.ladder import Watch
from service.models import (
    Case,
    CaseKey,
    CaseSeal,
    LedgerEffect,
    LedgerEvent,
    Lowering,
    Member,
    Narrowing,
    NarrowingState,
    Role,
    Wall,
)
from service.reading import decrypt, record_opening
from tests.builders import NOW, PLENTY, World, a_world
from tests.dashboards.builders import ACCOUNT, CLAIM, a_case

PEOPLE = {
    "screener": (Role.SCREENER, "org-ngo", ("screening",), "Sok Dara", "សុខ តារា"),
    "officer": (Role.INVESTIGATOR, "org-police", ("siem-reap",), "Heng Bopha", "ហេង បុប្ផា"),
    "colleague": (Role.INVESTIGATOR, "org-police", ("siem-reap",), "Keo Pisey", "កែវ ពិសី"),
    "chief": (Role.SUPERVISOR, "org-police", ("siem-reap",), "Prum Nary", "ព្រំ ណារី"),
    "elsewhere": (Role.SUPERVISOR, "org-police", ("kandal",), "Nuon Ratha", "នួន រដ្ឋា"),
    "integrity": (Role.INVESTIGATOR, "org-inspect", ("integrity",), "Chea Kunthea", "ជា គន្ធា"),
    "oversight": (Role.OVERSIGHT, "org-council", ("oversight",), "Lim Sreymom", "លឹម ស្រីមុំ"),
    "overseer": (Role.OVERSIGHT, "org-council", ("oversight",), "Chan Sreyleak", "ចាន់ ស្រីលក្ខណ៍"),
    "second": (Role.OVERSIGHT, "org-ngo", ("oversight-2",), "Mao Sothea", "ម៉ៅ សុធា"),
}


@pytest.fixture
def world(sessions: Sessions) -> World:
    """On each engine."""
    return a_world(sessions, people=PEOPLE)


@pytest.fixture
def sqlite_world(sqlite_url: str) -> Iterator[World]:
    """On SQLite alone, for what no engine does in its own way."""
    sessions = open_database(sqlite_url)
    yield a_world(sessions, people=PEOPLE)
    sessions.close()


def keeper(world: World) -> Wallkeeper:
    return Wallkeeper(world.ledger, world.founding.cards, world.founding.row_key)


def id_of(world: World, name: str) -> UUID:
    return world.people[name][0].id


def row(world: World, case: UUID) -> Case:
    with world.sessions.read() as session:
        return session.get_one(Case, case)


def sees(world: World, name: str, case: UUID) -> bool:
    viewer = world.signed_in(name).viewer
    with world.sessions.read() as session:
        try:
            return cases.find(session, viewer, case).id == case
        except NoSuchCase:
            return False


def who_sees(world: World, case: UUID) -> set[str]:
    return {name for name in PEOPLE if sees(world, name, case)}


def read(world: World, name: str, case: UUID) -> None:
    viewer, key = world.signed_in(name).viewer, world.founding.row_key
    record_opening(
        world.sessions, world.ledger, key, viewer, case, reason="oversight", note="", allowance=PLENTY, now=NOW
    )


def exclude(world: World, by: str, case: UUID, step: Callable[..., None], whom: Any, why: str = "named") -> None:
    read(world, by, case)
    who = world.signed_in(by)

    def use_case(tx: Tx) -> None:
        found = cases.find(tx, who.viewer, case)
        opened = staff.open_keys(tx, world.founding.row_key, world.founding.cards, who, found)
        step(tx, keeper(world), who.viewer, opened, whom, why, version=found.version, now=NOW)

    write(world.sessions, use_case)


def exclude_person(world: World, case: UUID, name: str, by: str = "oversight") -> None:
    exclude(world, by, case, exclusions.exclude_person, id_of(world, name))


def exclude_unit(world: World, case: UUID, unit: str, by: str = "oversight") -> None:
    exclude(world, by, case, exclusions.exclude_unit, unit)


def step(world: World, by: str, case: UUID, act: Callable[..., Any], *given: Any) -> Any:
    viewer, version = world.signed_in(by).viewer, row(world, case).version
    return write(world.sessions, partial(_step, act, keeper(world), viewer, case, given, version))


def _step(act: Any, keeper: Any, viewer: Any, case: UUID, given: Any, version: int, tx: Tx) -> Any:
    return act(tx, keeper, viewer, case, *given, version=version, now=NOW)


def recuse(world: World, case: UUID, name: str) -> None:
    step(world, name, case, exclusions.recuse)


TEAM_CASE = {"unit": "siem-reap", "also": ("screening",)}
EVERYBODY = {"screener", "officer", "colleague", "chief", "oversight", "overseer"}


# --- people ---------------------------------------------------------------------------------------------


def test_an_excluded_person_and_their_superior_see_the_case_no_more(world: World) -> None:
    case, other = a_case(world, **TEAM_CASE), a_case(world, **TEAM_CASE)
    assert who_sees(world, case) == EVERYBODY

    exclude_person(world, case, "officer")

    assert who_sees(world, case) == EVERYBODY - {"officer", "chief"}
    assert who_sees(world, other) == EVERYBODY  # the control


def test_with_a_supervisor_go_all_who_are_below_and_whoever_joins_them_later(sqlite_world: World) -> None:
    world = sqlite_world
    case = a_case(world, **TEAM_CASE)
    exclude_person(world, case, "chief")
    assert who_sees(world, case) == EVERYBODY - {"officer", "colleague", "chief"}

    def join(tx: Tx) -> None:
        (giver, keys), (newcomer, _) = world.people["officer"], world.people["integrity"]
        card, private = world.founding.cards.unit("siem-reap"), world.founding.unit_privates["siem-reap"]
        staff.grant(tx, world.ledger, world.founding.row_key, card, private, newcomer, giver, keys, NOW)

    write(world.sessions, join)
    assert not sees(world, "integrity", case)


def test_one_who_says_it_of_themself_is_out_with_their_claim(world: World) -> None:
    case = a_case(world, **TEAM_CASE)
    viewer, leases = world.signed_in("officer").viewer, tuple(CLAIM.values())
    first = row(world, case).due_at
    take = partial(cases.claim, ledger=world.ledger, viewer=viewer, case_id=case, leases=leases, now=NOW)
    write(world.sessions, partial(take, version=row(world, case).version))

    recuse(world, case, "officer")

    after = row(world, case)
    assert (after.state, after.owner, after.due_at) == ("open", None, first)
    assert not sees(world, "officer", case)
    with pytest.raises(NoSuchCase):
        recuse(world, case, "officer")


def test_a_claim_of_somebody_else_stays(sqlite_world: World) -> None:
    world = sqlite_world
    case = a_case(world, **TEAM_CASE)
    viewer, leases = world.signed_in("colleague").viewer, tuple(CLAIM.values())
    take = partial(cases.claim, ledger=world.ledger, viewer=viewer, case_id=case, leases=leases, now=NOW)
    write(world.sessions, partial(take, version=row(world, case).version))

    recuse(world, case, "officer")

    assert row(world, case).owner == id_of(world, "colleague")


@pytest.mark.parametrize("name", ["screener", "officer", "chief"])
def test_only_oversight_and_integrity_exclude_others(sqlite_world: World, name: str) -> None:
    case = a_case(sqlite_world, **TEAM_CASE)

    with pytest.raises(Forbidden):
        exclude_person(sqlite_world, case, "colleague", by=name)
    assert who_sees(sqlite_world, case) == EVERYBODY


def test_whoever_excludes_has_read_the_case_and_says_why(sqlite_world: World) -> None:
    world, who = sqlite_world, sqlite_world.signed_in("oversight")
    case = a_case(world, **TEAM_CASE)

    def unread(tx: Tx) -> None:
        found = cases.find(tx, who.viewer, case)
        opened = staff.open_keys(tx, world.founding.row_key, world.founding.cards, who, found)
        whom, version = id_of(world, "officer"), found.version
        exclusions.exclude_person(tx, keeper(world), who.viewer, opened, whom, "named", version=version, now=NOW)

    with pytest.raises(Forbidden):
        write(world.sessions, unread)
    with pytest.raises(InvalidForm):
        exclude(world, "oversight", case, exclusions.exclude_person, id_of(world, "officer"), why="self")
    with pytest.raises(InvalidForm):
        exclude(world, "oversight", case, exclusions.exclude_person, uuid4())
    with pytest.raises(InvalidForm):
        exclude_unit(world, case, "nobody")
    assert who_sees(world, case) == EVERYBODY


def test_somebody_is_excluded_once(sqlite_world: World) -> None:
    case = a_case(sqlite_world, **TEAM_CASE)
    exclude_person(sqlite_world, case, "officer")

    with pytest.raises(Conflict):
        exclude_person(sqlite_world, case, "officer")


def test_a_case_is_never_without_a_reader_of_oversight(sqlite_world: World) -> None:
    world = sqlite_world
    case = a_case(world, **TEAM_CASE)
    exclude_person(world, case, "overseer")

    with pytest.raises(Forbidden):
        recuse(world, case, "oversight")
    assert sees(world, "oversight", case)


# --- units ----------------------------------------------------------------------------------------------


def test_an_excluded_unit_loses_its_seal_and_what_follows_has_a_new_key(world: World) -> None:
    case = a_case(world, **TEAM_CASE)

    exclude_unit(world, case, "screening")

    assert who_sees(world, case) == EVERYBODY - {"screener"}
    after = row(world, case)
    assert (after.unit, after.generation, after.walled) == ("siem-reap", 2, False)
    with world.sessions.read() as session:
        seals = session.execute(select(CaseSeal.unit, CaseSeal.generation).where(col(CaseSeal.case) == case)).all()  # type: ignore[call-overload]
        assert sorted(map(tuple, seals)) == [(u, g) for u in ("oversight", "siem-reap") for g in (1, 2)]
        who = world.signed_in("officer")
        privates = staff.open_keys(session, world.founding.row_key, world.founding.cards, who, after).privates
        assert [account.text for account in decrypt(session, after, privates).accounts] == [ACCOUNT]
        # Who it is was sealed to the new key alone: the unit that is out may have kept the old one.
        for keys, whom in ((privates, {"unit": "screening"}), ({1: privates[1]}, {})):
            (found,) = exclusions.exclusions(session, world.founding.row_key, after, keys)
            assert found.whom == whom
        key = session.get_one(CaseKey, (case, 2))
        assert cases.case_public(session, after, world.founding.row_key) == key.public


def test_the_unit_that_works_it_loses_it_to_integrity_behind_the_wall(world: World) -> None:
    case = a_case(world, **TEAM_CASE)

    exclude_unit(world, case, "siem-reap")

    after = row(world, case)
    assert (after.unit, after.walled, after.province) == ("integrity", True, None)
    assert who_sees(world, case) == {"integrity", "oversight", "overseer"}


def test_where_integrity_is_named_oversight_alone_has_it(sqlite_world: World) -> None:
    world = sqlite_world
    case = a_case(world, walled=True)

    exclude_unit(world, case, "integrity")

    after = row(world, case)
    assert (after.unit, after.oversight) == ("oversight", "oversight")
    assert who_sees(world, case) == {"oversight", "overseer", "second"}
    with world.sessions.read() as session:
        who = world.signed_in("oversight")
        privates = staff.open_keys(session, world.founding.row_key, world.founding.cards, who, after).privates
        assert decrypt(session, after, privates).accounts[0].text == ACCOUNT


def test_where_oversight_is_named_the_other_oversight_organisation_has_it(sqlite_world: World) -> None:
    world = sqlite_world
    case = a_case(world, walled=True)

    exclude_unit(world, case, "oversight", by="integrity")

    after = row(world, case)
    assert (after.unit, after.oversight) == ("integrity", "oversight-2")
    assert who_sees(world, case) == {"integrity", "second"}
    with pytest.raises(Forbidden):
        exclude_unit(world, case, "oversight-2", by="integrity")


def test_an_excluded_unit_is_not_sealed_in_again(sqlite_world: World) -> None:
    world, who = sqlite_world, sqlite_world.signed_in("screener")
    case = a_case(world)
    exclude_unit(world, case, "kandal")
    assert row(world, case).generation == 1  # it held no seal, so no key has to change
    read(world, "screener", case)

    def hand_on(tx: Tx, unit: str) -> str:
        found = cases.find(tx, who.viewer, case)
        opened = staff.open_keys(tx, world.founding.row_key, world.founding.cards, who, found)
        given = {"unit": unit, "answer": "no", "version": found.version}
        return exclusions.hand_on(tx, keeper(world), who.viewer, opened, **given, now=NOW)

    with pytest.raises(Forbidden):
        write(world.sessions, partial(hand_on, unit="kandal"))
    assert not sees(world, "elsewhere", case)
    assert write(world.sessions, partial(hand_on, unit="siem-reap")) == "siem-reap"  # the control


def test_an_excluded_oversight_unit_is_not_paged(sqlite_world: World) -> None:
    world = sqlite_world
    case = a_case(world, **TEAM_CASE)
    duty = {"oversight": ("+85500000308",), "oversight-2": ("+85500000309",)}
    watch = Watch(world.ledger, world.founding.row_key, world.founding.cards, duty)
    with world.sessions.read() as session:
        before = ladder.on_duty(session, watch, session.get_one(Case, case), Step.EVERY_OVERSIGHT)
    exclude_unit(world, case, "oversight-2")
    with world.sessions.read() as session:
        after = ladder.on_duty(session, watch, session.get_one(Case, case), Step.EVERY_OVERSIGHT)

    assert (before, after) == (["oversight", "oversight-2"], ["oversight"])


# --- what is stored -------------------------------------------------------------------------------------


def test_nothing_in_the_database_says_in_clear_who_is_excluded(sqlite_world: World) -> None:
    world = sqlite_world
    case = a_case(world, **TEAM_CASE)
    exclude_person(world, case, "officer")
    exclude_unit(world, case, "kandal")

    of_case = "ledger_field WHERE eid IN (SELECT eid FROM ledger_event WHERE type LIKE 'case:wall:%') AND name <> 'who'"
    with world.sessions.read() as session:
        stored = [
            bytes(part) if isinstance(part, bytes | memoryview) else str(part).encode()
            for rows in ("wall", of_case)
            for found in session.execute(text(f"SELECT * FROM {rows}"))
            for part in found
        ]
    assert len(stored) > 30
    member = id_of(world, "officer")
    for secret in (member.hex.encode(), str(member).encode(), member.bytes, b"kandal"):
        assert not [part for part in stored if secret in part]


def test_who_is_excluded_is_read_with_the_cases_key_alone(sqlite_world: World) -> None:
    world = sqlite_world
    case = a_case(world, **TEAM_CASE)
    exclude_person(world, case, "officer")
    who, key = world.signed_in("oversight"), world.founding.row_key
    with world.sessions.read() as session:
        found = session.get_one(Case, case)
        privates = staff.open_keys(session, key, world.founding.cards, who, found).privates
        (opened,) = exclusions.exclusions(session, key, found, privates)
        (sealed,) = exclusions.exclusions(session, key, found, {})

    assert opened.whom == {"member": id_of(world, "officer").hex}
    assert sealed.whom == {}


@pytest.mark.parametrize(
    "change",
    ["DELETE FROM wall", "UPDATE wall SET name = X'00' WHERE name IN (SELECT min(name) FROM wall)"],
)
def test_a_wall_that_somebody_took_down_in_the_database_stops_all_reading(sqlite_world: World, change: str) -> None:
    world = sqlite_world
    case = a_case(world, **TEAM_CASE)
    exclude_person(world, case, "officer")
    read(world, "screener", case)  # the control
    with world.sessions.writing.begin() as connection:
        connection.execute(text(change))

    for name in ("screener", "oversight"):
        with pytest.raises(CannotOpen):
            read(world, name, case)


def test_a_changed_row_is_refused_by_the_page_that_lists_it(sqlite_world: World) -> None:
    world = sqlite_world
    case = a_case(world, **TEAM_CASE)
    exclude_person(world, case, "officer")
    with world.sessions.writing.begin() as connection:
        connection.execute(text("UPDATE wall SET why = 'tied'"))

    with world.sessions.read() as session, pytest.raises(CannotOpen):
        exclusions.exclusions(session, world.founding.row_key, session.get_one(Case, case), {})


# --- narrowing ------------------------------------------------------------------------------------------


def excluded(world: World, name: str = "officer") -> tuple[UUID, UUID]:
    """A case with somebody behind its wall, read by both of oversight; and the exclusion."""
    case = a_case(world, **TEAM_CASE)
    exclude_person(world, case, name)
    read(world, "overseer", case)
    with world.sessions.read() as session:
        return case, session.scalars(select(Wall.exclusion).where(col(Wall.case) == case)).first()  # type: ignore[call-overload,return-value]


def propose(world: World, by: str, case: UUID, exclusion: UUID) -> UUID:
    found: UUID = step(world, by, case, exclusions.propose_narrowing, exclusion, "Another person of that name.")
    return found


def test_two_of_oversight_narrow_a_wall_and_it_stands_until_witnessed(world: World) -> None:
    case, exclusion = excluded(world)
    narrowing = propose(world, "oversight", case, exclusion)
    assert not sees(world, "officer", case)
    with pytest.raises(Forbidden):
        step(world, "oversight", case, exclusions.approve_narrowing, narrowing)
    step(world, "overseer", case, exclusions.approve_narrowing, narrowing)
    assert not sees(world, "officer", case)

    with world.sessions.read() as session:
        (effect,) = session.execute(
            select(LedgerEvent.type, LedgerEffect.action).join(LedgerEffect, col(LedgerEffect.eid) == LedgerEvent.eid)  # type: ignore[call-overload]
        ).all()
    action = json.loads(effect.action)
    assert effect.type == "case:narrowing:approved"
    assert action == {"do": "narrow", "case": case.hex, "narrowing": narrowing.hex}

    run = partial(exclusions.take_effect, ledger=world.ledger, action=action, now=NOW)
    write(world.sessions, run)
    assert who_sees(world, case) == EVERYBODY
    write(world.sessions, run)  # safe twice
    read(world, "officer", case)  # the wall is the one of the history again


def test_what_was_refused_after_it_was_signed_has_no_effect(sqlite_world: World) -> None:
    world = sqlite_world
    case, exclusion = excluded(world)
    narrowing = propose(world, "oversight", case, exclusion)
    step(world, "overseer", case, exclusions.approve_narrowing, narrowing)
    step(world, "oversight", case, exclusions.refuse_narrowing, narrowing, "It is the same person.")

    action = {"do": "narrow", "case": case.hex, "narrowing": narrowing.hex}
    write(world.sessions, partial(exclusions.take_effect, ledger=world.ledger, action=action, now=NOW))
    assert not sees(world, "officer", case)
    with pytest.raises(WrongState):
        step(world, "overseer", case, exclusions.approve_narrowing, narrowing)
    propose(world, "oversight", case, exclusion)  # it may be proposed again


@pytest.mark.parametrize("name", ["screener", "colleague"])
def test_nobody_else_narrows_a_wall(sqlite_world: World, name: str) -> None:
    world = sqlite_world
    case, exclusion = excluded(world)
    read(world, name, case)

    with pytest.raises(Forbidden):
        propose(world, name, case, exclusion)
    narrowing = propose(world, "oversight", case, exclusion)
    with pytest.raises(Forbidden):
        step(world, name, case, exclusions.approve_narrowing, narrowing)


def test_one_proposal_at_a_time_for_an_exclusion_that_there_is(sqlite_world: World) -> None:
    world = sqlite_world
    case, exclusion = excluded(world)
    with pytest.raises(NotFound):
        propose(world, "oversight", case, uuid4())
    narrowing = propose(world, "oversight", case, exclusion)

    with pytest.raises(WrongState):
        propose(world, "overseer", case, exclusion)
    other, _ = excluded(world)
    with pytest.raises(NotFound):
        step(world, "overseer", other, exclusions.approve_narrowing, narrowing)
    with pytest.raises(InvalidForm):
        step(world, "overseer", case, exclusions.refuse_narrowing, narrowing, " ")


def test_the_one_who_is_excluded_does_not_sign_for_themself(sqlite_world: World) -> None:
    world = sqlite_world
    case = a_case(world, **TEAM_CASE)
    recuse(world, case, "overseer")
    read(world, "oversight", case)
    with world.sessions.read() as session:
        exclusion = session.scalars(select(Wall.exclusion).where(col(Wall.case) == case)).first()  # type: ignore[call-overload]
    narrowing = propose(world, "oversight", case, exclusion)

    with pytest.raises(NoSuchCase):
        step(world, "overseer", case, exclusions.approve_narrowing, narrowing)


def test_what_somebody_signed_ends_when_they_are_excluded(sqlite_world: World) -> None:
    world = sqlite_world
    case, exclusion = excluded(world)
    narrowing = propose(world, "overseer", case, exclusion)
    member = id_of(world, "overseer")
    fall = {"id": uuid4(), "case": case, "state": "proposed", "before": "P2", "after": "P3", "floor": "P3"}
    signed = {"proposed_at": NOW, "proposer": member, "proposer_unit": "oversight", "approver": None}
    write(world.sessions, lambda tx: tx.insert(Lowering, [fall | signed | {"approver_unit": None, "overseer": None}]))

    recuse(world, case, "colleague")  # the control: they signed nothing
    with world.sessions.read() as session:
        assert session.get_one(Narrowing, narrowing).state == NarrowingState.PROPOSED
        assert session.get_one(Lowering, fall["id"]).state == "proposed"
    recuse(world, case, "overseer")

    with world.sessions.read() as session:
        assert session.get_one(Narrowing, narrowing).state == NarrowingState.REFUSED
        assert session.get_one(Lowering, fall["id"]).state == "lapsed"


def test_an_effect_of_another_case_does_nothing(sqlite_world: World) -> None:
    world = sqlite_world
    case, exclusion = excluded(world)
    narrowing = propose(world, "oversight", case, exclusion)
    step(world, "overseer", case, exclusions.approve_narrowing, narrowing)
    action = {"do": "narrow", "case": a_case(world).hex, "narrowing": narrowing.hex}

    write(world.sessions, partial(exclusions.take_effect, ledger=world.ledger, action=action, now=NOW))
    with world.sessions.read() as session:
        assert session.get_one(Narrowing, narrowing).state == NarrowingState.APPROVED


def test_the_names_of_a_person_are_theirs_their_units_and_their_colleagues(sqlite_world: World) -> None:
    world, key = sqlite_world, sqlite_world.founding.row_key

    def names(name: str) -> frozenset[bytes]:
        member: Member = world.people[name][0]
        with world.sessions.read() as session:
            return walls.names_of(session, key, member.id, member.role)

    def name(what: str, whom: str) -> bytes:
        return walls.wall_name(key, what, id_of(world, whom).hex if whom in PEOPLE else whom)

    unit = name(walls.UNIT, "siem-reap")
    assert names("officer") == {unit, name(walls.MEMBER, "officer"), name(walls.BELOW, "chief")}
    below = {name(walls.ABOVE, one) for one in ("officer", "colleague")}
    assert names("chief") == {unit, name(walls.MEMBER, "chief"), *below}
