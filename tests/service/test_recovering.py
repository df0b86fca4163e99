"""Two of three organisations recover a unit's key; one alone and the same twice do not (keys.md section 10.7)."""

import json
from itertools import combinations
from typing import Any

import pytest
from sqlalchemy import delete, select
from sqlmodel import col

from service import recovering, staff
from service.db import Sessions, write
from service.errors import CannotOpen, Conflict, Invalid
from service.ledger.events import fixed_chain
from service.models import Case, LedgerEvent, UnitGrant
from service.vault import boxes, recovery
from tests.builders import NOW, World, a_tip, a_world, change_people, the_case

NAMES = ("red-cross-desk", "bar-council", "university")
KEYS = {name: boxes.keypair() for name in NAMES}
PRIVATES = {name: pair[0] for name, pair in KEYS.items()}
RECOVERY, RECOVERY_PUBLIC = boxes.keypair()


@pytest.fixture(scope="module")
def nested() -> dict[tuple[str, str], bytes]:
    return recovery.share(RECOVERY, {name: pair[1] for name, pair in KEYS.items()})


def combined(nested: Any, *names: str) -> bytes:
    return recovery.combine(nested, {name: PRIVATES[name] for name in names}, recovery_public=RECOVERY_PUBLIC)


@pytest.mark.parametrize("two", list(combinations(NAMES, 2)))
def test_any_two_of_three_recover_in_either_order(nested: Any, two: tuple[str, str]) -> None:
    assert combined(nested, *two) == RECOVERY
    assert combined(nested, *reversed(two)) == RECOVERY


@pytest.mark.parametrize("name", NAMES)
def test_one_alone_does_not_and_two_of_the_same_do_not(nested: Any, name: str) -> None:
    with pytest.raises(CannotOpen, match="two different custodians"):
        combined(nested, name)
    for claimed in NAMES:  # his key once more, under another's name
        privates = {name: PRIVATES[name], claimed: PRIVATES[name]}
        with pytest.raises(CannotOpen):
            recovery.combine(nested, privates, recovery_public=RECOVERY_PUBLIC)


@pytest.mark.parametrize("name", NAMES)
def test_one_key_alone_opens_no_box_down_to_the_end(nested: Any, name: str) -> None:
    """Tried by hand: every box, every place, with one custodian's key as often as one likes."""
    for sealed in nested.values():
        for outer in NAMES:
            for inner in NAMES:
                place = boxes.context_of("recovery", outer, inner)
                with pytest.raises(CannotOpen):
                    boxes.unseal(PRIVATES[name], place, boxes.unseal(PRIVATES[name], place, sealed))


def test_a_changed_box_or_one_in_anothers_place_is_refused(nested: Any) -> None:
    first, second, third = nested
    two = {name: PRIVATES[name] for name in first}
    for wrong in (
        {first: nested[second]},
        {first: nested[first][:-1] + bytes([nested[first][-1] ^ 1])},
        {third: nested[third]},
    ):
        with pytest.raises(CannotOpen):
            recovery.combine(wrong, two, recovery_public=RECOVERY_PUBLIC)
    with pytest.raises(CannotOpen):
        recovery.combine(nested, two, recovery_public=boxes.keypair()[1])


@pytest.mark.parametrize("wrong", [NAMES[:2], (*NAMES, "a-fourth")])
def test_there_are_three_custodians_with_a_key_each(wrong: tuple[str, ...]) -> None:
    publics = {name: boxes.keypair()[1] for name in wrong}
    with pytest.raises(ValueError, match="three custodians"):
        recovery.share(RECOVERY, publics)
    with pytest.raises(ValueError, match="three custodians"):
        recovery.share(RECOVERY, dict.fromkeys(NAMES, RECOVERY_PUBLIC))


# --- a unit's key, given back ---


@pytest.fixture
def world(sessions: Sessions) -> World:
    """An installation whose units' keys are kept for recovery."""
    world = a_world(sessions)
    founding = world.founding
    write(sessions, lambda tx: recovering.keep(tx, founding.cards, founding.unit_privates))
    return world


def bundle(world: World, account: str) -> str:
    with world.sessions.read() as session:
        return recovering.bundle(session, world.founding.row_key, world.founding.cards, account)


def given(world: World, account: str, unit: str) -> str:
    key = world.founding.recovery_private
    return recovering.give(bundle(world, account), key, world.founding.cards, unit, (NAMES[0], NAMES[1]))


def take(world: World, text: str, name: str) -> None:
    member, keys = world.people[name]
    what = recovering.read_given(text)
    write(
        world.sessions,
        lambda tx: recovering.take(
            tx, world.ledger, world.founding.row_key, world.founding.cards, what, member, keys, NOW
        ),
    )


def reads(world: World, name: str, case: Case) -> bool:
    with world.sessions.read() as session:
        who = world.signed_in(name)
        try:
            staff.open_keys(session, world.founding.row_key, world.founding.cards, who, case)
        except staff.NoSuchCase:
            return False
    return True


def test_a_unit_whose_members_are_all_gone_reads_again(world: World) -> None:
    [receipt] = world.receive(a_tip())
    case = the_case(world, receipt.tip)
    change_people(world, delete(UnitGrant).where(col(UnitGrant.unit) == "screening"))
    assert not reads(world, "screener", case)

    text = given(world, "screener", "screening")
    take(world, text, "screener")
    assert reads(world, "screener", case)
    assert not reads(world, "screener-2", case)
    with world.sessions.read() as session:
        chain = select(col(LedgerEvent.type)).where(col(LedgerEvent.case) == fixed_chain("keys"))
        assert "keys:recovery:used" in session.scalars(chain).all()
    with pytest.raises(Conflict):
        take(world, text, "screener")


def test_what_was_given_to_one_member_opens_for_no_other(world: World) -> None:
    change_people(world, delete(UnitGrant))
    text = given(world, "screener", "screening")
    with pytest.raises(CannotOpen, match="somebody else"):
        take(world, text, "admin")
    other = json.loads(text) | {"member": world.people["admin"][0].id.hex}
    with pytest.raises(CannotOpen):
        take(world, json.dumps(other), "admin")
    elsewhere = json.loads(text) | {"unit": "kandal"}
    with pytest.raises(CannotOpen):
        take(world, json.dumps(elsewhere), "screener")
    with world.sessions.read() as session:
        assert session.scalars(select(UnitGrant.member)).all() == []


def test_a_bundle_holds_no_key_in_clear_and_is_for_a_member_whose_row_is_ours(world: World) -> None:
    text = bundle(world, "screener")
    for private in (world.founding.recovery_private, *world.founding.unit_privates.values()):
        assert private.hex() not in text
        assert recovering.b64encode(private).decode() not in text
    assert recovering.b64encode(world.people["screener"][0].box_public).decode() in text, "the control"
    with pytest.raises(Invalid):
        bundle(world, "nobody")
    his = boxes.keypair()[1]
    from service.models import Member

    write(world.sessions, lambda tx: setattr(tx.get_one(Member, world.people["screener"][0].id), "box_public", his))
    with pytest.raises(CannotOpen):
        bundle(world, "screener")


@pytest.mark.parametrize("text", ["", "{}", '{"form":"bamboo recovery/v1"}', "[]", '{"form":"bamboo recovered/v1"}'])
def test_another_file_is_refused_in_words(world: World, text: str) -> None:
    with pytest.raises(Invalid):
        recovering.give(text, world.founding.recovery_private, world.founding.cards, "screening", ("a", "b"))
    with pytest.raises(Invalid):
        recovering.read_given(text)


def test_the_wrong_recovery_key_gives_nothing(world: World) -> None:
    with pytest.raises(CannotOpen):
        recovering.give(bundle(world, "screener"), RECOVERY, world.founding.cards, "screening", ("a", "b"))


def test_a_fingerprint_is_read_aloud_in_groups() -> None:
    text = recovering.fingerprint(bytes(32))
    assert [len(group) for group in text.split(" ")] == [4] * 8
    assert text != recovering.fingerprint(bytes(31) + b"\x01")
