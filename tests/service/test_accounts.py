"""Accounts as people change them: invitation, joining a unit, roles, reset, leaving, a new password."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from sqlalchemy import delete, select, update

from service import accounts, invitations, register, staff
from service.accounts import ChangeKind
from service.db import Sessions, open_database, write
from service.errors import (
    CannotOpen,
    Conflict,
    EndedSession,
    Forbidden,
    InvalidForm,
    NoSuchCase,
    NotFound,
    StepUpNeeded,
    Unauthenticated,
    WrongCode,
    WrongState,
)
from service.models import AccountChange, Invitation, LedgerEvent, Member, Role, Unit, UnitGrant
from service.rights import may_manage
from service.staff import SignedIn
from service.turns import Turns
from service.vault import boxes, totp
from service.vault.passwords import Parameters
from tests.builders import CHEAP, NOW, PASSWORD, PEOPLE, World, a_code, a_tip, a_world, the_case

MORE = PEOPLE | {
    "supervisor": (Role.SUPERVISOR, "org-police", ("siem-reap",), "Keo Vanna", "កែវ វណ្ណា"),
    "admin-2": (Role.ADMIN, "org-ngo", (), "Ros Chenda", "រស់ ចិន្ដា"),
    "oversight-2": (Role.OVERSIGHT, "org-ngo", ("oversight-2",), "Yim Chanthou", "យឹម ចន្ធូ"),
    "auditor": (Role.AUDITOR, "org-council", ("monitor",), "Tep Sokha", "ទេព សុខា"),
}
NEW = "grey kettle hums at four"
PHONE = b"another phone's key."


@pytest.fixture(scope="module")
def sqlite_world(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Any) -> Any:
    path = tmp_path_factory.mktemp("accounts") / "founded.db"
    path.write_bytes(sqlite_template.read_bytes())
    sessions = open_database(f"sqlite:///{path}")
    world = a_world(sessions, people=MORE)
    sessions.close()
    return path, world


@pytest.fixture
def world(sqlite_world: Any, tmp_path: Any) -> Iterator[World]:
    path, world = sqlite_world
    (tmp_path / "hotline.db").write_bytes(path.read_bytes())
    sessions = open_database(f"sqlite:///{tmp_path / 'hotline.db'}")
    yield replace(world, sessions=sessions)
    sessions.close()


def who(world: World, name: str, *, stepped: bool = True) -> SignedIn:
    signed = world.signed_in(name)
    return replace(signed, stepped_up_until=NOW + timedelta(minutes=10)) if stepped else signed


def do(world: World, act: Any, *given: Any, **named: Any) -> Any:
    """Run an act on accounts that takes a transaction."""
    return write(world.sessions, lambda tx: act(tx, world.ledger, world.founding.row_key, *given, **named))


def invite(world: World, by: str = "admin", **changed: str) -> invitations.OneTimeCode:
    asked = {"account": "sokha", "name": "Sok Ha", "name_km": "សុខ ហា", "organisation": "org-ngo", "role": "screener"}
    return do(world, invitations.invite, who(world, by).viewer, **(asked | changed), now=NOW)


def redeem(world: World, code: str, **changed: Any) -> Member:
    given = {"password": NEW, "totp_secret": PHONE, "totp_code": totp.code_at(PHONE, NOW), "now": NOW} | changed
    parameters = Parameters(**CHEAP)
    key = world.founding.row_key
    return invitations.redeem(
        world.sessions, world.ledger, key, code=code, **given, turns=Turns(), parameters=parameters
    )


def enter(world: World, account: str, password: str, secret: bytes, now: Any = NOW + timedelta(minutes=1)) -> SignedIn:
    key = world.founding.row_key
    proof = {"account": account, "password": password, "code": totp.code_at(secret, now)}
    cookie = staff.sign_in(world.sessions, world.ledger, key, **proof, now=now, turns=Turns())
    return staff.resume(world.sessions, key, world.founding.cards, cookie, now)


def admit(world: World, by: SignedIn, member: Member, read_out: str | None = None, unit: str = "screening") -> None:
    digits = accounts.fingerprint(member) if read_out is None else read_out
    accounts.admit(
        world.sessions,
        world.ledger,
        world.founding.row_key,
        world.founding.cards,
        by,
        member_id=member.id,
        unit=unit,
        read_out=digits,
        now=NOW,
    )


def member_of(world: World, account: str) -> Member:
    with world.sessions.read() as session:
        return session.scalars(select(Member).where(Member.account == account)).one()


def types(world: World) -> list[str]:
    """What the chain of the register says, oldest first."""
    chain = select(LedgerEvent.type).where(LedgerEvent.case == register.CHAIN).order_by(LedgerEvent.seq)
    with world.sessions.read() as session:
        return list(session.scalars(chain).all())


def opens(world: World, signed: SignedIn, case: Any) -> bool:
    with world.sessions.read() as session:
        try:
            staff.open_keys(session, world.founding.row_key, world.founding.cards, signed, case)
        except NoSuchCase:
            return False
    return True


def whole(world: World) -> bool:
    return register.is_whole(world.sessions, world.founding.row_key)


# --- the whole way of a newcomer ---


def test_a_newcomer_makes_their_own_keys_and_reads_only_once_somebody_let_them_in(world: World) -> None:
    [receipt] = world.receive(a_tip())
    case = the_case(world, receipt.tip)
    code = invite(world)

    member = redeem(world, code.code.lower())
    newcomer = enter(world, "sokha", NEW, PHONE)
    assert newcomer.viewer.seats == ()
    assert not opens(world, newcomer, case)

    admit(world, who(world, "screener"), member)
    let_in = enter(world, "sokha", NEW, PHONE, NOW + timedelta(minutes=2))
    assert let_in.viewer.units == ("screening",)
    assert opens(world, let_in, case)
    assert types(world)[-3:] == ["staff:invitation:made", "staff:member:joined", "staff:member:joined"]
    assert whole(world)


def test_a_code_is_good_once_for_three_days_and_not_after_it_was_taken_back(world: World) -> None:
    used, old, back = (invite(world, account=name) for name in ("first", "second", "third"))
    redeem(world, used.code)
    with world.sessions.read() as session:
        row = next(r for r in invitations.invitations(session, NOW) if r.account == "third")
    admin = who(world, "admin").viewer
    end = partial(invitations.take_back, ledger=world.ledger, by=admin, invitation_id=row.id, now=NOW)
    write(world.sessions, end)

    words = set()
    for code, now in ((used.code, NOW), (old.code, NOW + timedelta(days=3)), (back.code, NOW), ("A" * 24, NOW)):
        with pytest.raises(InvalidForm) as refused:
            redeem(world, code, now=now, totp_code=totp.code_at(PHONE, now))
        words.add(str(refused.value))
    assert len(words) == 1
    redeem(world, old.code)  # the control: in time it is good


def test_an_invitation_in_the_database_gives_no_code_and_cannot_be_changed(world: World) -> None:
    code = invite(world)
    with world.sessions.read() as session:
        stored = repr(session.scalars(select(Invitation)).one().model_dump())
    assert code.code not in stored
    assert code.code.replace(" ", "") not in stored

    write(world.sessions, lambda tx: tx.execute(update(Invitation).values(role="oversight")))
    with pytest.raises(CannotOpen):
        redeem(world, code.code)


@pytest.mark.parametrize(
    ("field", "changed"),
    [
        ("password", {"password": "short"}),
        ("password", {"password": "passwordpassword1"}),
        ("password", {"password": "sok ha sokha screener ngo"[:18]}),
        ("totp_code", {"totp_code": "000000"}),
        ("totp_code", {"totp_secret": b"short"}),
    ],
)
def test_what_must_be_corrected_is_said_and_the_code_stays_good(world: World, field: str, changed: Any) -> None:
    code = invite(world)
    with pytest.raises(InvalidForm) as refused:
        redeem(world, code.code, **changed)
    assert refused.value.field == field
    redeem(world, code.code)


@pytest.mark.parametrize(
    ("field", "changed"),
    [
        ("account", {"account": "x"}),
        ("account", {"account": "sok ha"}),
        ("account", {"account": "screener"}),
        ("name", {"name": " ", "name_km": ""}),
        ("role", {"role": "king"}),
        ("organisation", {"organisation": "elsewhere"}),
    ],
)
def test_an_invitation_that_must_be_corrected_is_not_made(world: World, field: str, changed: Any) -> None:
    with pytest.raises(InvalidForm) as refused:
        invite(world, **changed)
    assert refused.value.field == field
    invite(world)
    with pytest.raises(InvalidForm):
        invite(world)  # the same name is invited already


@pytest.mark.parametrize("role", Role)
def test_a_supervisor_invites_for_the_own_organisation_and_nobody_who_watches(world: World, role: Role) -> None:
    watches = role in (Role.OVERSIGHT, Role.AUDITOR, Role.ADMIN)
    supervisor = who(world, "supervisor").viewer
    assert may_manage(supervisor, "org-police", role) is not watches
    assert not may_manage(supervisor, "org-ngo", role)
    assert may_manage(who(world, "admin").viewer, "org-ngo", role)
    for name in ("screener", "investigator", "oversight", "auditor"):
        assert not may_manage(who(world, name).viewer, "org-police", role)


def test_who_may_not_invite_is_refused(world: World) -> None:
    for by, changed in (
        ("screener", {}),
        ("supervisor", {}),
        ("supervisor", {"organisation": "org-police", "role": "admin"}),
    ):
        with pytest.raises(Forbidden):
            invite(world, by, **changed)
    invite(world, "supervisor", organisation="org-police", role="investigator")


# --- joining ---


def test_digits_that_do_not_fit_let_nobody_in_and_are_an_event(world: World) -> None:
    member = redeem(world, invite(world).code)
    screener = who(world, "screener")
    other = accounts.fingerprint(member_of(world, "screener-2"))
    for digits in ("", "1" * 30, other, accounts.fingerprint(member)[:-1]):
        with pytest.raises(InvalidForm):
            admit(world, screener, member, digits)
    assert types(world)[-4:] == ["staff:member:refused"] * 4
    khmer = accounts.fingerprint(member).translate(str.maketrans("0123456789", "០១២៣៤៥៦៧៨៩"))
    admit(world, screener, member, khmer)


def test_swapped_keys_have_another_fingerprint_and_are_refused_before(world: World) -> None:
    member = redeem(world, invite(world).code)
    before = accounts.fingerprint(member)
    write(
        world.sessions,
        lambda tx: tx.execute(update(Member).where(Member.id == member.id).values(box_public=boxes.keypair()[1])),
    )
    assert accounts.fingerprint(member_of(world, "sokha")) != before
    with pytest.raises(CannotOpen):
        admit(world, who(world, "screener"), member, before)


def test_letting_in_takes_a_seat_a_step_up_and_a_role_that_fits(world: World) -> None:
    member = redeem(world, invite(world).code)
    with pytest.raises(StepUpNeeded):
        admit(world, who(world, "screener", stepped=False), member)
    for by, unit in (("investigator", "screening"), ("screener", "siem-reap"), ("oversight-2", "oversight-2")):
        with pytest.raises((Forbidden, NotFound)):
            admit(world, who(world, by), member, unit=unit)
    admit(world, who(world, "screener"), member)
    with pytest.raises(WrongState):
        admit(world, who(world, "screener"), member)


def test_an_administrator_never_holds_a_grant(world: World) -> None:
    """Not from the page, not from the function below it, and a row in the database gives no seat."""
    admin = member_of(world, "admin-2")
    screener, keys = world.people["screener"]
    with pytest.raises(Forbidden):
        admit(world, who(world, "screener"), admin)
    card = world.founding.cards.unit("screening")
    with pytest.raises(Forbidden):
        do(world, staff.grant, card, world.founding.unit_privates["screening"], admin, screener, keys, NOW)
    with world.sessions.read() as session:
        admins = select(Member.id).where(Member.role == Role.ADMIN)
        assert session.scalars(select(UnitGrant).where(UnitGrant.member.in_(admins))).all() == []  # type: ignore[attr-defined]


def test_a_role_that_becomes_admin_loses_its_seats_and_its_units_need_a_new_key(world: World) -> None:
    member = member_of(world, "screener-2")
    change = do(
        world, accounts.propose, who(world, "admin").viewer, ChangeKind.ROLE, now=NOW, member_id=member.id, role="admin"
    )
    do(world, accounts.sign, who(world, "oversight-2").viewer, change, NOW)
    assert member_of(world, "screener-2").role == "admin"
    with world.sessions.read() as session:
        assert session.scalars(select(UnitGrant).where(UnitGrant.member == member.id)).all() == []
        unit = session.get_one(Unit, "screening")
        assert accounts.needs_new_key(unit, world.founding.cards)
        newer = [replace(card, generation=2) for card in world.founding.cards.units]
        assert not accounts.needs_new_key(unit, replace(world.founding.cards, units=tuple(newer)))
    assert whole(world)


# --- leaving ---


def test_who_leaves_is_out_at_once(world: World) -> None:
    [receipt] = world.receive(a_tip())
    case = the_case(world, receipt.tip)
    cookie = world.cookie("screener-2")
    resume = partial(staff.resume, world.sessions, world.founding.row_key, world.founding.cards, cookie)
    kept = resume(NOW)
    assert opens(world, kept, case)

    do(world, accounts.leave, who(world, "admin").viewer, kept.viewer.member, NOW)

    with pytest.raises(EndedSession):
        resume(NOW)
    with pytest.raises(Unauthenticated):
        enter(world, "screener-2", PASSWORD, bytes(range(20)))
    with world.sessions.read() as session, pytest.raises(CannotOpen):  # even the request that is under way
        staff.open_keys(session, world.founding.row_key, world.founding.cards, kept, case)
    assert types(world)[-1] == "staff:member:left"
    assert whole(world)
    with world.sessions.read() as session:
        assert session.get_one(Unit, "screening").stale_generation == 1


def test_the_last_who_holds_a_key_leaves_only_when_that_is_said(world: World) -> None:
    investigator = member_of(world, "elsewhere")
    leave = partial(do, world, accounts.leave, who(world, "admin").viewer, investigator.id, NOW)
    with pytest.raises(WrongState):
        leave()
    leave(last=True)
    with pytest.raises(WrongState):
        leave(last=True)


def test_who_may_not_bar_is_refused(world: World) -> None:
    for by, whom in (
        ("supervisor", "screener"),
        ("supervisor", "oversight"),
        ("screener", "screener-2"),
        ("admin", "admin"),
    ):
        with pytest.raises((Forbidden, NotFound)):
            do(world, accounts.leave, who(world, by).viewer, member_of(world, whom).id, NOW, last=True)
    do(world, accounts.leave, who(world, "supervisor").viewer, member_of(world, "investigator-2").id, NOW)


# --- what takes two ---


def propose(world: World, by: str, whom: str, kind: ChangeKind = ChangeKind.RESET, role: str | None = None) -> Any:
    viewer, member = who(world, by).viewer, member_of(world, whom)
    return do(world, accounts.propose, viewer, kind, now=NOW, member_id=member.id, role=role, last=True)


def sign(world: World, by: str, change: Any, now: Any = NOW) -> Any:
    return do(world, accounts.sign, who(world, by).viewer, change, now)


def test_a_reset_takes_two_and_gives_no_keys(world: World) -> None:
    [receipt] = world.receive(a_tip())
    case = the_case(world, receipt.tip)
    assert opens(world, who(world, "screener"), case)
    change = propose(world, "admin", "screener")
    for alone in ("admin", "screener", "admin-2"):
        with pytest.raises(Forbidden):
            sign(world, alone, change)

    code = sign(world, "oversight", change)

    with pytest.raises(Unauthenticated):  # the thief of the phone is out before the person comes
        enter(world, "screener", PASSWORD, bytes(range(20)))
    before = member_of(world, "screener")
    after = redeem(world, code.code)
    assert after.id == before.id
    assert after.box_public != before.box_public
    back = enter(world, "screener", NEW, PHONE)
    assert back.viewer.seats == ()
    assert not opens(world, back, case)
    with pytest.raises(Unauthenticated):
        enter(world, "screener", PASSWORD, bytes(range(20)))

    admit(world, who(world, "screener-2"), after)
    assert opens(world, enter(world, "screener", NEW, PHONE, NOW + timedelta(minutes=2)), case)
    assert whole(world)


def test_the_last_who_holds_a_key_is_reset_only_when_that_is_said(world: World) -> None:
    ask = partial(do, world, accounts.propose, who(world, "admin").viewer, ChangeKind.RESET, now=NOW)
    with pytest.raises(WrongState):
        ask(member_id=member_of(world, "elsewhere").id)
    ask(member_id=member_of(world, "elsewhere").id, last=True)
    ask(member_id=member_of(world, "screener").id)  # the control: another screener is there


def test_whom_a_reset_person_let_in_before_stays_in(world: World) -> None:
    newcomer = redeem(world, invite(world).code)
    admit(world, who(world, "screener"), newcomer)
    [receipt] = world.receive(a_tip())
    case = the_case(world, receipt.tip)

    code = sign(world, "oversight", propose(world, "admin", "screener"))
    redeem(world, code.code)

    assert opens(world, enter(world, "sokha", NEW, PHONE), case)
    write(world.sessions, lambda tx: tx.execute(delete(staff.RetiredKey)))  # the control: it rests on the key kept
    with pytest.raises(CannotOpen):
        opens(world, enter(world, "sokha", NEW, PHONE, NOW + timedelta(minutes=2)), case)


@pytest.mark.parametrize(
    ("by", "whom", "signer", "allowed"),
    [
        ("supervisor", "investigator", "admin", False),  # who makes accounts would have a second signature at hand
        ("admin", "investigator", "supervisor", True),
        ("admin", "screener", "supervisor", False),
        ("supervisor", "investigator", "oversight", True),
        ("supervisor", "investigator", "screener", False),
        ("supervisor", "investigator", "investigator-2", False),
        ("admin", "oversight", "admin-2", False),  # who watches is reset by oversight of another organisation
        ("admin", "oversight-2", "oversight", False),  # the proposer's own organisation
        ("admin", "oversight", "oversight-2", True),
        ("admin-2", "auditor", "oversight", True),
    ],
)
def test_the_second_person(world: World, by: str, whom: str, signer: str, allowed: bool) -> None:
    change = propose(world, by, whom)
    if allowed:
        assert sign(world, signer, change)
    else:
        with pytest.raises(Forbidden):
            sign(world, signer, change)


@pytest.mark.parametrize("role", ["oversight", "supervisor"])
def test_an_administrator_who_invents_an_account_gains_no_signature(world: World, role: str) -> None:
    organisation = "org-ngo" if role == "oversight" else "org-police"
    redeem(world, invite(world, role=role, organisation=organisation).code)
    change = propose(world, "admin", "investigator")
    invented = enter(world, "sokha", NEW, PHONE)
    with pytest.raises(Forbidden):
        do(world, accounts.sign, invented.viewer, change, NOW)
    sign(world, role, change)  # the control: the same role with a seat


@pytest.mark.parametrize(
    ("by", "whom", "role"),
    [
        ("supervisor", "investigator", "oversight"),  # no unit appoints its oversight
        ("supervisor", "screener", "investigator"),
        ("oversight", "investigator", "supervisor"),
        ("admin", "admin", "oversight"),
        ("screener", "screener-2", "investigator"),
    ],
)
def test_who_may_not_propose_a_role(world: World, by: str, whom: str, role: str) -> None:
    with pytest.raises((Forbidden, NotFound)):
        propose(world, by, whom, ChangeKind.ROLE, role)


def test_a_role_changes_with_the_second_signature_and_not_before(world: World) -> None:
    change = propose(world, "supervisor", "investigator", ChangeKind.ROLE, "supervisor")
    assert member_of(world, "investigator").role == "investigator"
    sign(world, "oversight", change)
    assert who(world, "investigator").viewer.role == "supervisor"
    assert who(world, "investigator").viewer.units == ("siem-reap",)  # a supervisor sits there too
    with pytest.raises(NotFound):
        sign(world, "oversight-2", change)
    assert types(world)[-2:] == ["staff:role:proposed", "staff:role:changed"]


def test_a_proposal_waits_a_week_can_be_refused_and_is_not_made_twice(world: World) -> None:
    change = propose(world, "admin", "screener")
    with pytest.raises(WrongState):
        propose(world, "admin-2", "screener")
    do(world, accounts.refuse, who(world, "oversight").viewer, change, NOW)
    with pytest.raises(NotFound):
        sign(world, "oversight", change)
    again = propose(world, "admin", "screener")
    with pytest.raises(NotFound):
        sign(world, "oversight", again, NOW + timedelta(days=7))


def test_a_proposal_written_into_the_database_is_refused(world: World) -> None:
    change = propose(world, "admin", "screener")
    victim = member_of(world, "screener-2").id
    write(world.sessions, lambda tx: tx.execute(update(AccountChange).values(member=victim)))
    with pytest.raises(CannotOpen):
        sign(world, "oversight", change)


# --- the own password ---


def test_a_new_password_keeps_the_keys_and_ends_the_other_sessions(world: World) -> None:
    cookie, other = world.cookie("screener"), world.cookie("screener")
    key = world.founding.row_key
    resume = partial(staff.resume, world.sessions, key, world.founding.cards, now=NOW)
    change = partial(
        accounts.change_password, world.sessions, world.ledger, key, resume(cookie=cookie), now=NOW, turns=Turns()
    )
    cheap = Parameters(**CHEAP)
    for wrong, error in (
        ({"password": "not the password at all"}, Unauthenticated),
        ({"code": "000000"}, WrongCode),
        ({"new": "passwordpassword1"}, InvalidForm),
    ):
        with pytest.raises(error):
            change(**({"password": PASSWORD, "code": a_code(), "new": NEW} | wrong), parameters=cheap)

    change(password=PASSWORD, code=a_code(), new=NEW, parameters=cheap)

    resume(cookie=cookie)
    with pytest.raises(EndedSession):
        resume(cookie=other)
    with pytest.raises(Unauthenticated):
        enter(world, "screener", PASSWORD, bytes(range(20)))
    after = enter(world, "screener", NEW, bytes(range(20)))
    assert after.keys.box == world.people["screener"][1].box
    assert after.viewer.units == ("screening",)


# --- the register of people ---


def plant(world: World) -> None:
    """Give somebody a seat in the database, signed by a member who plays along: each row is good by itself."""
    admin, keys = world.people["integrity"]
    card = world.founding.cards.unit("siem-reap")
    given = staff.members.grant_unit_key(
        card.unit,
        card.generation,
        world.founding.unit_privates[card.unit],
        admin.id.hex,
        admin.box_public,
        admin.id.hex,
        keys.signing,
    )
    sealed = {"sealed": given.sealed, "signature": given.signature}
    row = UnitGrant(unit=card.unit, generation=1, member=admin.id, granter=admin.id, granted_at=NOW, **sealed)
    write(world.sessions, lambda tx: tx.add(row))


def restore(world: World) -> None:
    """Let a member whom somebody barred come back."""
    write(world.sessions, lambda tx: tx.execute(update(Member).values(disabled_at=None)))


def drop(world: World) -> None:
    write(world.sessions, lambda tx: tx.execute(delete(UnitGrant).where(UnitGrant.unit == "kandal")))


@pytest.mark.parametrize("change", [plant, restore, drop])
def test_a_register_changed_outside_leaves_integrity_and_oversight_alone_at_work(world: World, change: Any) -> None:
    do(world, accounts.leave, who(world, "admin").viewer, member_of(world, "screener-2").id, NOW)
    assert whole(world)
    change(world)

    assert not whole(world)
    assert who(world, "screener").viewer.seats == ()
    assert who(world, "investigator").viewer.seats == ()
    assert who(world, "oversight").viewer.units == ("oversight",)
    assert who(world, "integrity").viewer.units == ("integrity",)
    with pytest.raises(WrongState):  # and nobody is let in over it
        redeem(world, invite(world).code)


def test_a_difference_is_an_event_once(world: World) -> None:
    tell = partial(register.report, world.sessions, world.ledger, world.founding.row_key, NOW)
    tell()
    assert "staff:register:differs" not in types(world)
    plant(world)
    tell()
    tell()
    assert types(world).count("staff:register:differs") == 1


def test_barring_somebody_does_not_make_good_what_was_planted(world: World) -> None:
    plant(world)
    do(world, accounts.leave, who(world, "admin").viewer, member_of(world, "screener-2").id, NOW)
    assert types(world)[-1] == "staff:member:left"
    assert not whole(world)


def test_the_tag_of_an_earlier_register_is_not_good_for_a_later_event(world: World) -> None:
    """Somebody who can write events, and has no row key, cannot put the register back to an older state."""
    with world.sessions.read() as session:
        assert register._tag(session, world.founding.row_key, 5) != register._tag(session, world.founding.row_key, 6)
        assert register._tag(session, bytes(32), 5) != register._tag(session, world.founding.row_key, 5)


def test_two_who_watch_accept_the_register_as_it_stands(world: World) -> None:
    drop(world)
    with pytest.raises(Forbidden):
        do(world, accounts.propose, who(world, "admin").viewer, ChangeKind.REGISTER, now=NOW)
    change = do(world, accounts.propose, who(world, "oversight").viewer, ChangeKind.REGISTER, now=NOW)
    for by in ("oversight", "admin", "screener"):
        with pytest.raises(Forbidden):
            sign(world, by, change)
    sign(world, "integrity", change)
    assert whole(world)
    assert who(world, "screener").viewer.units == ("screening",)


def test_a_database_from_before_counts_as_whole_until_its_first_change(world: World, sessions: Sessions) -> None:
    assert register.is_whole(sessions, bytes(32))


def test_two_changes_at_once_leave_a_register_that_fits(sessions: Sessions) -> None:
    """On both engines: who comes second works it out again."""
    world = a_world(sessions)
    names = [f"person-{n}" for n in range(4)]
    codes = [invite(world, account=name) for name in names]
    threads = [threading.Thread(target=redeem, args=(world, code.code)) for code in codes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert whole(world)
    with world.sessions.read() as session:
        assert len(session.scalars(select(Member.id).where(Member.account.in_(names))).all()) == 4  # type: ignore[attr-defined]


def test_a_code_used_twice_at_once_makes_one_account(world: World) -> None:
    code = invite(world)
    with world.sessions.read() as session:
        row = invitations.look_up(session, world.founding.row_key, code.code, NOW)
    redeem(world, code.code)
    with pytest.raises(InvalidForm), world.sessions.read() as session:
        invitations.look_up(session, world.founding.row_key, code.code, NOW)
    write(world.sessions, lambda tx: tx.execute(update(Invitation).values(ended_at=None)))
    with pytest.raises(Conflict):
        redeem(world, code.code)
    assert row.account == "sokha"
