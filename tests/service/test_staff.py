"""Accounts, sign-in, sessions, and what a session may open."""

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select, text, update

from service import staff
from service.db import Sessions, write
from service.errors import Busy, CannotOpen, NoSuchCase, StorageUnavailable, Unauthenticated
from service.models import LedgerEvent, Member, StaffSession, UnitGrant
from service.vault import boxes, passwords
from service.vault.members import grant_unit_key
from tests.builders import CHEAP, NOW, PASSWORD, World, a_tip, a_world, the_case


@pytest.fixture
def world(sessions: Sessions) -> World:
    return a_world(sessions)


@pytest.fixture(autouse=True)
def cheap_argon2(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown name runs Argon2 too; here with the cost of the other accounts."""
    real = passwords.Parameters
    monkeypatch.setattr(staff.passwords, "Parameters", lambda *a, **k: real(*a, **({} if a else CHEAP) | k))


def enter(world: World, account: str = "screener", password: str = PASSWORD, now: Any = NOW) -> str:
    return staff.sign_in(
        world.sessions, world.ledger, world.founding.row_key, account=account, password=password, now=now
    )


def resume(world: World, cookie: str, now: Any = NOW) -> staff.SignedIn:
    return staff.resume(world.sessions, world.founding.row_key, world.founding.cards, cookie, now)


def events_of(world: World, account: str) -> list[str]:
    chain = world.people[account][0].chain
    with world.sessions.read() as session:
        return list(
            session.scalars(select(LedgerEvent.type).where(LedgerEvent.case == chain).order_by(LedgerEvent.seq)).all()
        )


def test_signing_in_gives_a_session_with_the_persons_units(world: World) -> None:
    who = resume(world, enter(world, "  SCREENER "))
    assert who.viewer.units == ("screening",)
    assert (who.viewer.role, who.viewer.name) == ("screener", "Sok Dara")
    assert who.keys.box_public == world.people["screener"][0].box_public
    assert events_of(world, "screener") == ["staff:session:opened"]


def test_a_wrong_password_and_an_unknown_name_read_the_same(world: World) -> None:
    words = set()
    for account, password in (("screener", "wrong password, quite long"), ("nobody", PASSWORD), ("", "")):
        with pytest.raises(Unauthenticated) as refused:
            enter(world, account, password)
        words.add(str(refused.value))
    assert len(words) == 1
    assert events_of(world, "screener") == ["staff:session:refused"]


def test_an_unknown_name_runs_the_same_work(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []
    real = passwords.derive
    monkeypatch.setattr(passwords, "derive", lambda p, parameters: runs.append(1) or real(p, parameters))
    with pytest.raises(Unauthenticated):
        enter(world, "nobody")
    assert runs == [1]


def test_a_disabled_account_enters_no_more_and_its_session_ends(world: World) -> None:
    cookie = enter(world)
    write(world.sessions, lambda tx: tx.execute(update(Member).values(disabled_at=NOW)))
    with pytest.raises(Unauthenticated):
        enter(world)
    with pytest.raises(Unauthenticated):
        resume(world, cookie)


def test_a_session_ends_when_idle_and_after_eight_hours(world: World) -> None:
    idle, busy = enter(world), enter(world)
    with pytest.raises(Unauthenticated):
        resume(world, idle, NOW + timedelta(minutes=31))

    now = NOW
    while now < NOW + timedelta(hours=8):
        resume(world, busy, now)
        now += timedelta(minutes=20)
    with pytest.raises(Unauthenticated):
        resume(world, busy, NOW + timedelta(hours=8))


def test_after_sign_out_the_cookie_opens_nothing(world: World) -> None:
    cookie = enter(world)
    staff.sign_out(world.sessions, world.ledger, resume(world, cookie), NOW)
    with pytest.raises(Unauthenticated):
        resume(world, cookie)
    assert events_of(world, "screener")[-1] == "staff:session:ended"
    with world.sessions.read() as session:
        assert session.scalars(select(StaffSession)).all() == []


@pytest.mark.parametrize("cookie", ["", "x", "A" * 64, "é" * 64, "A" * 10_000])
def test_a_cookie_that_is_none_of_ours_is_refused(world: World, cookie: str) -> None:
    with pytest.raises(Unauthenticated):
        resume(world, cookie)


def test_the_database_alone_opens_no_session(world: World) -> None:
    cookie = enter(world)
    with world.sessions.read() as session:
        row = session.scalars(select(StaffSession)).one()
    assert cookie.encode() not in row.sealed + row.id
    keys = world.people["screener"][1]
    assert keys.box not in row.sealed
    stranger = "A" * 22 + cookie[22:]
    with pytest.raises(Unauthenticated):
        resume(world, stranger)


def test_signing_in_without_its_event_does_not_happen(world: World) -> None:
    write(world.sessions, lambda tx: tx.execute(text("ALTER TABLE ledger_pending RENAME TO gone")))
    with pytest.raises(StorageUnavailable):
        enter(world)
    with world.sessions.read() as session:
        assert session.scalars(select(StaffSession)).all() == []


def test_too_many_at_once_are_sent_away(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    monkeypatch.setattr(staff, "_WAITING", threading.BoundedSemaphore(1))
    staff._WAITING.acquire()
    with pytest.raises(Busy):
        enter(world)


def test_a_swapped_public_key_of_a_member_is_refused(world: World) -> None:
    cookie = enter(world)
    write(world.sessions, lambda tx: tx.execute(update(Member).values(box_public=boxes.keypair()[1])))
    with pytest.raises(CannotOpen):
        resume(world, cookie)
    with pytest.raises(CannotOpen):
        enter(world)


def test_a_grant_that_somebody_wrote_into_the_database_opens_no_unit(world: World) -> None:
    """An administrator grants himself a unit with a key of his own: the seat shows, and nothing opens."""
    [receipt] = world.receive(a_tip())
    case = the_case(world, receipt.tip)
    admin, keys = world.people["admin"]
    private, _ = boxes.keypair()
    forged = grant_unit_key("screening", 1, private, admin.id.hex, admin.box_public, admin.id.hex, keys.signing)
    row = UnitGrant(
        unit="screening",
        generation=1,
        member=admin.id,
        sealed=forged.sealed,
        granter=admin.id,
        signature=forged.signature,
        granted_at=NOW,
    )
    write(world.sessions, lambda tx: tx.add(row))
    who = world.signed_in("admin")
    with world.sessions.read() as session, pytest.raises(CannotOpen):
        staff.open_keys(session, world.founding.row_key, world.founding.cards, who, case)


def test_who_holds_no_seal_opens_nothing(world: World) -> None:
    [receipt] = world.receive(a_tip())
    case = the_case(world, receipt.tip)
    with world.sessions.read() as session, pytest.raises(NoSuchCase):
        staff.open_keys(session, world.founding.row_key, world.founding.cards, world.signed_in("investigator"), case)


def test_csrf_tokens_belong_to_one_session(world: World) -> None:
    first, second = enter(world), enter(world)
    assert staff.csrf_token(first) == resume(world, first).csrf != resume(world, second).csrf
