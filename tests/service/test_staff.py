"""Accounts, sign-in, sessions, and what a session may open."""

import json
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from sqlalchemy import event, select, text, update

from service import staff
from service.db import Sessions, write
from service.errors import (
    Busy,
    CannotOpen,
    EndedSession,
    NoSuchCase,
    StepUpNeeded,
    StorageUnavailable,
    Unauthenticated,
    WrongCode,
)
from service.models import EndedSession as EndedRow
from service.models import LedgerEvent, LedgerField, Member, StaffSession, UnitGrant
from service.turns import Turns
from service.vault import boxes, passwords
from service.vault.members import grant_unit_key
from service.walls import Seat
from tests.builders import CHEAP, NOW, PASSWORD, World, a_code, a_tip, a_world, the_case


@pytest.fixture
def world(sessions: Sessions) -> World:
    return a_world(sessions)


@pytest.fixture(autouse=True)
def cheap_argon2(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown name runs Argon2 too; here with the cost of the other accounts."""
    real = passwords.Parameters
    monkeypatch.setattr(staff.passwords, "Parameters", lambda *a, **k: real(*a, **({} if a else CHEAP) | k))


def enter(
    world: World,
    account: str = "screener",
    password: str = PASSWORD,
    now: Any = NOW,
    code: str | None = None,
    turns: Turns | None = None,
) -> str:
    return staff.sign_in(
        world.sessions,
        world.ledger,
        world.founding.row_key,
        account=account,
        password=password,
        code=a_code(now) if code is None else code,
        now=now,
        turns=turns or Turns(),
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
    idle, busy = enter(world), enter(world, now=NOW + timedelta(seconds=30))
    with pytest.raises(Unauthenticated):
        resume(world, idle, NOW + timedelta(minutes=31))

    now = NOW
    while now < NOW + timedelta(hours=8):
        resume(world, busy, now)
        now += timedelta(minutes=20)
    with pytest.raises(Unauthenticated):
        resume(world, busy, NOW + timedelta(hours=8, seconds=30))


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


def test_too_many_at_once_are_sent_away(world: World) -> None:
    turns = Turns(slots=1, queue=0)
    with turns.turn("elsewhere", "somebody", NOW), pytest.raises(Busy):
        enter(world, turns=turns)


def test_a_swapped_public_key_of_a_member_is_refused(world: World) -> None:
    cookie = enter(world)
    write(world.sessions, lambda tx: tx.execute(update(Member).values(box_public=boxes.keypair()[1])))
    with pytest.raises(CannotOpen):
        resume(world, cookie)
    with pytest.raises(CannotOpen):
        enter(world)


def test_a_grant_that_somebody_wrote_into_the_database_opens_no_unit(world: World) -> None:
    """An administrator grants himself a unit with a key of his own: he gets no seat, and if he did, nothing opens."""
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
    assert who.viewer.seats == ()
    with world.sessions.read() as session, pytest.raises(NoSuchCase):
        staff.open_keys(session, world.founding.row_key, world.founding.cards, who, case)
    believing = replace(who, viewer=replace(who.viewer, seats=(Seat("screening", "screening", "org-ngo"),)))
    with world.sessions.read() as session, pytest.raises(CannotOpen):
        staff.open_keys(session, world.founding.row_key, world.founding.cards, believing, case)


def test_who_holds_no_seal_opens_nothing(world: World) -> None:
    [receipt] = world.receive(a_tip())
    case = the_case(world, receipt.tip)
    with world.sessions.read() as session, pytest.raises(NoSuchCase):
        staff.open_keys(session, world.founding.row_key, world.founding.cards, world.signed_in("investigator"), case)


def test_csrf_tokens_belong_to_one_session(world: World) -> None:
    first, second = enter(world), enter(world, now=NOW + timedelta(seconds=30))
    assert staff.csrf_token(first) == resume(world, first).csrf != resume(world, second).csrf


# --- the second factor ---

LATER = NOW + timedelta(seconds=30)


def whys(world: World, account: str = "screener") -> list[str]:
    """Why somebody was refused, oldest first."""
    chain = world.people[account][0].chain
    with world.sessions.read() as session:
        found = session.scalars(
            select(LedgerField.value)
            .join(LedgerEvent, LedgerEvent.eid == LedgerField.eid)
            .where(LedgerEvent.case == chain, LedgerField.name == "why")
            .order_by(LedgerEvent.seq)
        ).all()
    return [json.loads(value) for value in found]


def test_a_code_is_good_once_and_its_second_use_is_an_event(world: World) -> None:
    enter(world)
    with pytest.raises(WrongCode):
        enter(world)
    assert whys(world) == ["replay"]
    enter(world, now=LATER)  # the control: the next code is taken


def test_an_older_code_is_not_taken_after_a_newer_one(world: World) -> None:
    enter(world, now=LATER)
    with pytest.raises(WrongCode):
        enter(world, now=LATER, code=a_code(NOW))
    assert whys(world) == ["replay"]


def test_two_requests_with_one_code_open_one_session(world: World) -> None:
    """Both have looked before either has written: the write decides."""
    with world.sessions.read() as session:
        member = session.scalars(select(Member).where(Member.account == "screener")).one()
    write(world.sessions, lambda tx: staff.use_code(tx, member, 5))
    with pytest.raises(WrongCode):
        write(world.sessions, lambda tx: staff.use_code(tx, member, 5))
    write(world.sessions, lambda tx: staff.use_code(tx, member, 6))


def test_a_password_without_a_code_opens_nothing(world: World) -> None:
    for code in ("", "000000" if a_code() != "000000" else "000001", "12345", "abcdef", a_code() + "0"):
        with pytest.raises(Unauthenticated):
            enter(world, code=code)
    with world.sessions.read() as session:
        assert session.scalars(select(StaffSession)).all() == []


def test_a_wrong_code_reads_like_a_wrong_password(world: World) -> None:
    with pytest.raises(Unauthenticated) as code:
        enter(world, code="000000")
    with pytest.raises(Unauthenticated) as password:
        enter(world, password="wrong password, quite long")
    assert isinstance(code.value, WrongCode)
    assert not isinstance(password.value, WrongCode)


def test_wrong_codes_under_the_right_password_are_soon_looked_at_less_often(world: World) -> None:
    for _ in range(staff.FREE_CODES):
        with pytest.raises(WrongCode):
            enter(world, code="000000" if a_code() != "000000" else "000001")

    with pytest.raises(WrongCode):
        enter(world)  # right, and too early
    assert whys(world)[-1] == "early"
    enter(world, now=NOW + timedelta(seconds=30))  # nobody is locked out


def test_who_has_no_password_cannot_delay_the_owner(world: World) -> None:
    for _ in range(staff.FREE_CODES + 3):
        with pytest.raises(Unauthenticated):
            enter(world, password="wrong password, quite long")
    enter(world)


def test_an_unknown_name_is_an_event_that_does_not_say_which(world: World) -> None:
    with pytest.raises(Unauthenticated):
        enter(world, "nobody-at-all")
    with world.sessions.read() as session:
        newest = session.scalars(select(LedgerEvent).order_by(LedgerEvent.at.desc(), LedgerEvent.seq.desc())).first()
        fields = session.scalars(select(LedgerField.value).where(LedgerField.eid == newest.eid)).all()
    assert newest.type == "staff:session:refused"
    assert not any(b"nobody-at-all" in value for value in fields)


def test_a_known_and_an_unknown_name_ask_the_database_the_same_number_of_things(world: World) -> None:
    asked: list[str] = []
    engines = (world.sessions.reading, world.sessions.writing)

    def note(*given: Any) -> None:
        if "INSERT INTO ledger_head" not in given[2]:  # the first event of a chain, whoever's it is
            asked.append(given[2])

    counts = []
    for engine in engines:
        event.listen(engine, "before_cursor_execute", note)
    for account in ("screener", "nobody-at-all"):
        asked.clear()
        with pytest.raises(Unauthenticated):
            enter(world, account, "wrong password, quite long")
        counts.append(len(asked))
    for engine in engines:
        event.remove(engine, "before_cursor_execute", note)
    assert counts[0] == counts[1] > 0


# --- a copy of a cookie ---


def test_a_copied_cookie_after_sign_out_is_refused_and_an_event_once(world: World) -> None:
    cookie = enter(world)
    staff.sign_out(world.sessions, world.ledger, resume(world, cookie), NOW)
    for _ in range(3):
        with pytest.raises(EndedSession):
            resume(world, cookie)
        staff.note_ended(world.sessions, world.ledger, cookie, NOW)
    assert whys(world) == ["ended"]


def test_what_is_left_of_an_ended_session_holds_no_key_and_goes(world: World) -> None:
    cookie = enter(world)
    staff.sign_out(world.sessions, world.ledger, resume(world, cookie), NOW)
    with world.sessions.read() as session:
        assert set(session.scalars(select(EndedRow)).one().model_dump()) == {"id", "member", "expires_at", "seen_at"}
    enter(world, now=NOW + timedelta(hours=9))
    with world.sessions.read() as session:
        assert session.scalars(select(EndedRow)).all() == []
    with pytest.raises(Unauthenticated):
        resume(world, cookie)


# --- sessions, listed and ended ---


def test_sessions_are_listed_and_ended_one_or_all_but_this(world: World) -> None:
    first, second, third = (enter(world, now=NOW + timedelta(seconds=30 * n)) for n in range(3))
    who = resume(world, first, NOW + timedelta(minutes=2))
    now = NOW + timedelta(minutes=2)
    with world.sessions.read() as session:
        ids = [row.id for row in staff.sessions_of(session, who.viewer.member, now)]
    assert len(ids) == 3

    gone = resume(world, second, now).session
    end = partial(staff.end_sessions, ledger=world.ledger, by=who.viewer.actor, member_id=who.viewer.member, now=now)
    assert write(world.sessions, partial(end, only=gone)) == 1
    assert write(world.sessions, partial(end, keep=who.session)) == 1
    resume(world, first, now)
    for cookie in (second, third):
        with pytest.raises(EndedSession):
            resume(world, cookie, now)
    assert events_of(world, "screener").count("staff:session:ended") == 2


def test_a_session_of_somebody_else_is_not_ended_with_an_id(world: World) -> None:
    mine, theirs = enter(world), enter(world, "oversight")
    who, other = resume(world, mine), resume(world, theirs)
    count = write(
        world.sessions,
        lambda tx: staff.end_sessions(tx, world.ledger, who.viewer.actor, who.viewer.member, NOW, only=other.session),
    )
    assert count == 0
    resume(world, theirs)


# --- step-up ---


def step_up(world: World, who: staff.SignedIn, now: Any, password: str = PASSWORD, code: str | None = None) -> Any:
    proof = {"password": password, "code": a_code(now) if code is None else code}
    key = world.founding.row_key
    return staff.step_up(world.sessions, world.ledger, key, who, **proof, now=now, turns=Turns())


def test_a_step_up_counts_ten_minutes_and_for_its_session_alone(world: World) -> None:
    cookie, other = enter(world), enter(world, now=LATER)
    now = NOW + timedelta(minutes=2)
    with pytest.raises(StepUpNeeded):
        staff.require_step_up(resume(world, cookie, now), now)

    step_up(world, resume(world, cookie, now), now)

    staff.require_step_up(resume(world, cookie, now), now)
    assert resume(world, other, now).stepped_up_until is None
    late = now + staff.STEPPED_UP
    with pytest.raises(StepUpNeeded):
        staff.require_step_up(resume(world, cookie, late), late)
    assert events_of(world, "screener")[-1] == "staff:session:stepped_up"


def test_a_step_up_takes_password_and_a_fresh_code(world: World) -> None:
    who = resume(world, enter(world))
    for wrong in ({"password": "wrong password, quite long"}, {"code": a_code(NOW)}, {"code": ""}):
        with pytest.raises(Unauthenticated):
            step_up(world, who, NOW, **wrong)
    assert whys(world) == ["password", "replay", "code"]


def test_a_step_up_written_into_the_database_is_refused(world: World) -> None:
    cookie = enter(world)
    until = NOW + timedelta(hours=1)
    write(world.sessions, lambda tx: tx.execute(update(StaffSession).values(stepped_until=until)))
    with pytest.raises(CannotOpen):
        resume(world, cookie)


def test_a_step_up_cannot_be_copied_to_another_session(world: World) -> None:
    first, second = enter(world), enter(world, now=LATER)
    now = NOW + timedelta(minutes=2)
    step_up(world, resume(world, first, now), now)
    with world.sessions.read() as session:
        row = session.get_one(StaffSession, resume(world, first, now).session)
    copied = update(StaffSession).values(stepped_until=row.stepped_until, stepped_tag=row.stepped_tag)
    write(world.sessions, lambda tx: tx.execute(copied))
    with pytest.raises(CannotOpen):
        resume(world, second, now)
