"""The pages about accounts: joining, one's own account, other people, and the step before what cannot be taken back."""

import re
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial

import pytest
from sqlalchemy import delete, select

from dashboards import join, people
from dashboards.desk import Desk
from service import accounts, exclusions, invitations, rotation, staff
from service.db import write
from service.exclusions import Wallkeeper
from service.models import LedgerEvent, Member, StaffSession, UnitGrant
from service.staff import SignedIn
from service.vault import passwords, totp
from service.vault.cards import Cards
from tests.builders import CHEAP, NOW, PASSWORD, World, a_code
from tests.dashboards.builders import Browser, Clockwork, Page, a_case
from tests.dashboards.test_case import row_of

Browse = Callable[..., Browser]
NEW = "grey kettle hums at four"


@pytest.fixture(autouse=True)
def cheap_argon2(monkeypatch: pytest.MonkeyPatch) -> None:
    """New passwords at the cost of the tests' accounts."""
    real = passwords.Parameters
    monkeypatch.setattr(passwords, "Parameters", lambda *a, **k: real(*a, **({} if a else CHEAP) | k))


def step_up(browser: Browser, clock: Clockwork, back: str = "/staff") -> Page:
    clock.pass_by(seconds=60)
    page = browser.open(f"/step-up?next={back}")
    return browser.submit(page, "/step-up", password=PASSWORD, code=a_code(clock.now))


def member_id(world: World, account: str) -> str:
    with world.sessions.read() as session:
        return str(session.scalars(select(Member.id).where(Member.account == account)).one())


def invited(browser: Browser, **changed: str) -> str:
    fields = {"account": "sokha", "name": "Sok Ha", "name_km": "សុខ ហា", "organisation": "org-ngo", "role": "screener"}
    page = browser.submit(browser.open("/staff/invite"), "/staff/invite", **(fields | changed))
    assert page.status == 200
    return re.search(r"(?:[A-Z2-7]{4} ?){6}", page.text)[0].strip()  # type: ignore[index]


def joined(browser: Browser, clock: Clockwork, code: str) -> tuple[Page, bytes]:
    page = browser.submit(browser.open("/join"), "/join", code=code)
    secret = join._read_secret(page.form("/join").fields["secret"])
    given = {"password": NEW, "again": NEW, "totp_code": totp.code_at(secret, clock.now)}
    return browser.submit(page, "/join", **given), secret


def test_from_an_invitation_to_the_first_case(browse: Browse, world: World, clock: Clockwork) -> None:
    case = a_case(world)
    admin, newcomer, screener = browse("admin"), browse(), browse("screener")
    assert admin.open("/staff/invite").headers["location"] == "/step-up?next=%2Fstaff%2Finvite"
    assert step_up(admin, clock, "/staff/invite").headers["location"] == "/staff/invite"

    page, secret = joined(newcomer, clock, invited(admin))
    digits = re.search(r"(?:\d{5} ?){6}", page.text)[0]  # type: ignore[index]
    clock.pass_by(seconds=30)
    proof = {"account": "sokha", "password": NEW, "code": totp.code_at(secret, clock.now)}
    assert newcomer.submit(newcomer.open("/sign-in"), "/sign-in", **proof).status == 303
    assert str(case) not in newcomer.open("/queue").html

    href = f"/staff/people/{member_id(world, 'sokha')}"
    assert not screener.open(href).has_form("/admit")
    step_up(screener, clock, href)
    page = screener.open(href)
    assert digits not in page.text  # who lets in types what was read out, and copies nothing
    wrong = screener.submit(page, "/admit", unit="screening", fingerprint="1" * 30)
    assert (wrong.status, wrong.link("These are not the digits")) == (422, "#fingerprint")
    assert screener.submit(page, "/admit", unit="screening", fingerprint=digits).status == 303
    assert str(case) in newcomer.open("/queue").html


def test_the_code_of_an_invitation_never_stands_in_an_address(browse: Browse, clock: Clockwork) -> None:
    admin, newcomer = browse("admin"), browse()
    step_up(admin, clock)
    code = invited(admin)
    page = newcomer.submit(newcomer.open("/join"), "/join", code=code)
    assert page.form("/join").method == "post"
    assert code.split()[0] not in "".join(href for href, _ in page.links)


def test_joining_says_what_to_correct_and_keeps_the_phones_key(browse: Browse, clock: Clockwork) -> None:
    admin, newcomer = browse("admin"), browse()
    step_up(admin, clock)
    assert "wrong, used or too old" in newcomer.submit(newcomer.open("/join"), "/join", code="AAAA").text
    page = newcomer.submit(newcomer.open("/join"), "/join", code=invited(admin))
    secret = page.form("/join").fields["secret"]
    for given, field, words in (
        ({"password": NEW, "again": "another"}, "again", "not the same"),
        ({"password": "passwordpassword1", "again": "passwordpassword1"}, "password", "Common words"),
        ({"password": "short", "again": "short"}, "password", "15 characters"),
        ({"password": NEW, "again": NEW}, "totp_code", "not the code"),
    ):
        wrong = newcomer.submit(page, "/join", **given, totp_code="000000")
        assert wrong.status == 422
        assert wrong.link(words) == f"#{field}"
        assert wrong.form("/join").fields["secret"] == secret
        assert NEW not in wrong.html


def test_a_secret_is_never_shown_again(browse: Browse, world: World, clock: Clockwork) -> None:
    admin, newcomer = browse("admin"), browse()
    step_up(admin, clock)
    _, secret = joined(newcomer, clock, invited(admin))
    for browser in (admin, newcomer):
        for path in ("/staff", f"/staff/people/{member_id(world, 'sokha')}"):
            assert totp.letters(secret) not in browser.open(path).text


# --- one's own account ---


def test_ones_sessions_are_listed_and_ended(browse: Browse, world: World) -> None:
    here, there = browse("screener"), browse("screener")
    page = here.open("/staff")
    assert "this browser" in page.text

    assert here.submit(page, "/staff/sessions", session="").status == 303
    assert there.open("/queue").headers["location"] == "/sign-in"
    assert here.open("/queue").status == 200


def test_an_id_of_anybody_elses_session_ends_nothing(browse: Browse, world: World) -> None:
    mine, other = browse("screener"), browse("oversight")
    browse("screener")
    with world.sessions.read() as session:
        ids = {row.id.hex(): str(row.member) for row in session.scalars(select(StaffSession)).all()}
    theirs = next(i for i, member in ids.items() if member == member_id(world, "oversight"))
    token = mine.open("/staff").form("/sign-out").fields["t"]

    mine.send("/staff/sessions", {"t": token, "session": theirs})

    assert other.open("/queue").status == 200
    assert mine.open("/queue").status == 200


def test_a_password_is_changed_with_the_old_one_and_a_code(browse: Browse, clock: Clockwork) -> None:
    browser = browse("screener")
    page = browser.open("/staff/password")
    clock.pass_by(seconds=60)
    given = {"password": PASSWORD, "code": a_code(clock.now), "new": NEW, "again": NEW}
    assert browser.submit(page, "/staff/password", **(given | {"again": "x"})).status == 422
    assert "is wrong" in browser.submit(page, "/staff/password", **(given | {"password": "x"})).text
    assert (
        "Common words"
        in browser.submit(
            page, "/staff/password", **(given | dict.fromkeys(("new", "again"), "passwordpassword1"))
        ).text
    )

    assert browser.submit(page, "/staff/password", **given).status == 303
    assert "Your password is changed" in browser.open("/staff?done=password").text


# --- step-up ---


def test_what_cannot_be_taken_back_asks_for_password_and_code(browse: Browse, world: World, clock: Clockwork) -> None:
    admin = browse("admin")
    person = f"/staff/people/{member_id(world, 'screener')}"
    token = admin.open("/staff").form("/sign-out").fields["t"]
    for path in (f"{person}/leave", f"{person}/reset", f"{person}/role", "/staff/invite", "/staff/register"):
        answer = admin.send(path, {"t": token}, referer=f"https://staff.example{person}")
        assert answer.headers["location"].startswith("/step-up?next=%2Fstaff%2Fpeople%2F"), path

    wrong = admin.submit(admin.open("/step-up"), "/step-up", password="not it at all, no", code=a_code(clock.now))
    assert wrong.status == 401
    assert "is wrong" in wrong.text
    assert admin.send(f"{person}/reset", {"t": token}).headers["location"].startswith("/step-up")


@pytest.mark.parametrize(
    "back", ["https://elsewhere.example/", "//elsewhere.example", "/queue?x=1", "javascript:1", ""]
)
def test_after_a_step_up_nobody_is_led_elsewhere(browse: Browse, clock: Clockwork, back: str) -> None:
    answer = step_up(browse("admin"), clock, back)
    assert answer.headers["location"] in ("/staff", "/queue")


# --- other people ---


def test_a_reset_takes_two_people_and_shows_its_code_once(browse: Browse, world: World, clock: Clockwork) -> None:
    admin, oversight = browse("admin"), browse("oversight")
    person = f"/staff/people/{member_id(world, 'investigator')}"
    for browser in (admin, oversight):
        step_up(browser, clock)
    assert admin.submit(admin.open(person), "/reset").status == 303
    page = admin.open("/staff")
    assert "Heng Bopha is reset" in page.text
    assert not page.has_form("/sign")

    shown = oversight.submit(oversight.open("/staff"), "/sign")
    assert shown.status == 200
    assert re.search(r"(?:[A-Z2-7]{4} ?){6}", shown.text)
    assert "Heng Bopha is reset" not in oversight.open("/staff").text
    assert "barred since" in oversight.open("/staff").text


def test_who_is_barred_is_out_and_the_unit_needs_a_new_key(browse: Browse, world: World, clock: Clockwork) -> None:
    admin, gone = browse("admin"), browse("investigator-2")
    step_up(admin, clock)
    assert admin.submit(admin.open(f"/staff/people/{member_id(world, 'investigator-2')}"), "/leave").status == 303
    assert gone.open("/queue").headers["location"] == "/sign-in"
    page = admin.open("/staff").text
    assert "Siem Reap team: since" in page
    assert "A new key is due within 24 hours." in page
    assert "Open cases that are under the unit's new key" not in page


def rotated(world: World, unit: str, by: str) -> Cards:
    """The cards after the root has signed a unit's next key."""
    deck, founding = world.founding.cards, world.founding
    who = world.signed_in(by)
    card = write(
        world.sessions,
        lambda tx: rotation.propose_generation(tx, world.ledger, founding.row_key, deck, who, unit, NOW),
    )
    return replace(deck, units=tuple(rotation.with_cards(deck, [card])), past=deck.units)


def test_how_far_a_new_key_is_is_told_to_its_unit_of_cases_that_exist_for_them(
    browse: Browse, world: World, desk: Desk, clock: Clockwork
) -> None:
    shown, hidden = a_case(world, unit="siem-reap"), a_case(world, unit="siem-reap")
    keeper = Wallkeeper(world.ledger, world.founding.cards, world.founding.row_key)
    viewer = world.signed_in("investigator").viewer
    deck = rotated(world, "siem-reap", "investigator-2")
    new = replace(desk, cards=deck)

    def told(name: str) -> str:
        return Browser(new, world.cookie(name)).open("/staff").text

    assert "Siem Reap team: 0 of 2" in told("investigator")
    version = row_of(world, hidden).version
    write(world.sessions, lambda tx: exclusions.recuse(tx, keeper, viewer, hidden, version=version, now=NOW))
    assert "Siem Reap team: 0 of 1" in told("investigator"), "a figure tells nothing of a case behind the wall"
    assert "Siem Reap team: 0 of 2" in told("investigator-2")
    assert "Siem Reap team: 0 of" not in told("admin")

    who = new_member(world, deck, "investigator-2")
    move = partial(rotation.move_cases, ledger=world.ledger, row_key=world.founding.row_key, deck=deck, who=who)
    write(world.sessions, partial(move, unit="siem-reap", most=100, now=NOW))
    assert "Siem Reap team:" not in told("investigator-2")
    assert row_of(world, shown).unit == "siem-reap"


def new_member(world: World, deck: Cards, name: str) -> SignedIn:
    return staff.resume(world.sessions, world.founding.row_key, deck, world.cookie(name), NOW)


def test_people_of_other_organisations_do_not_exist(browse: Browse, world: World) -> None:
    screener = browse("screener")
    hidden = screener.open(f"/staff/people/{member_id(world, 'investigator')}")
    missing = screener.open("/staff/people/00000000-0000-4000-8000-000000000000")
    assert (hidden.status, hidden.html) == (404, missing.html)
    assert "Heng Bopha" not in screener.open("/staff").text
    assert "Kim Sopheap" in screener.open("/staff").text
    assert "Heng Bopha" in browse("oversight").open("/staff").text


def test_an_administrator_administers_and_reads_no_case(browse: Browse, world: World) -> None:
    case = a_case(world)
    admin = browse("admin")
    assert str(case) not in admin.open("/queue").html
    assert admin.open(f"/cases/{case}").status == 404
    assert browse("screener").open(f"/cases/{case}").status == 200  # the control


def test_a_person_without_rights_gets_no_forms(browse: Browse, world: World, clock: Clockwork) -> None:
    screener = browse("screener")
    step_up(screener, clock)
    page = screener.open(f"/staff/people/{member_id(world, 'screener-2')}")
    assert [form.action for form in page.forms] == ["/sign-out"]
    assert "Invite somebody" not in screener.open("/staff").text


# --- the register ---


def test_a_register_changed_outside_is_said_on_every_page_and_recorded(browse: Browse, world: World) -> None:
    case = a_case(world)
    screener, oversight = browse("screener"), browse("oversight")
    assert "outside the system" not in screener.open("/queue").text
    write(world.sessions, lambda tx: tx.execute(delete(UnitGrant).where(UnitGrant.unit == "kandal")))

    page = screener.open("/queue")
    assert "was changed outside the system" in page.text
    assert str(case) not in page.html
    assert screener.open(f"/cases/{case}").status == 404
    assert str(case) in oversight.open("/queue").html
    assert oversight.open("/staff").has_form("/staff/register")
    assert not screener.open("/staff").has_form("/staff/register")
    with world.sessions.read() as session:
        differs = select(LedgerEvent).where(LedgerEvent.type == "staff:register:differs")
        assert len(session.scalars(differs).all()) == 1


# --- the words ---


def test_what_the_domain_says_of_a_field_has_words_in_both_languages() -> None:
    """Whoever adds a correction in the domain must add it to the pages."""
    known = {*join.CORRECTIONS, *people.CORRECTIONS}
    for module in (accounts, invitations):
        with open(module.__file__, encoding="utf-8") as file:
            said = re.findall(r'InvalidForm\(\s*"\w+",\s*"([^"]+)"', file.read())
        assert said
        assert set(said) <= known
    for weak in ("short", "a" * 2000, "abababababababab", "passwordpassword1"):
        assert passwords.too_weak(weak) in known


def test_the_pages_work_on_a_desk_that_knows_no_demo(desk: Desk, clock: Clockwork, world: World) -> None:
    later = replace(desk, clock=lambda: clock.now + timedelta(minutes=1))
    assert "simulate" not in Browser(later, world.cookie("screener", clock.now)).open("/staff").text
