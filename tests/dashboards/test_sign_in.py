"""Signing in and out, and how long a session lasts."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import func, select

from dashboards import pages
from dashboards.desk import Desk
from service.db import Tx, write
from service.models import LedgerEvent, Member, StaffSession
from service.turns import Turns
from tests.builders import NOW, PASSWORD, World, a_code
from tests.dashboards.builders import Browser, Clockwork, Page

Browse = Callable[..., Browser]


def sign_in(browser: Browser, account: str = "screener", password: str = PASSWORD, code: str = "") -> Page:
    proof = {"account": account, "password": password, "code": code or a_code()}
    return browser.submit(browser.open("/sign-in"), "/sign-in", **proof)


def sessions_of(world: World) -> int:
    with world.sessions.read() as session:
        return session.scalar(select(func.count()).select_from(StaffSession)) or 0


def test_the_right_password_opens_the_queue(browse: Browse) -> None:
    browser = browse()

    answer = sign_in(browser)

    assert (answer.status, answer.headers["location"]) == (303, "/queue")
    assert "Sok Dara" in browser.open("/queue").text


def test_the_account_name_is_taken_with_spaces_and_capitals(browse: Browse) -> None:
    assert sign_in(browse(), " Screener ").status == 303


def test_the_cookie_is_out_of_reach_of_scripts_and_other_sites(browse: Browse) -> None:
    cookie = sign_in(browse()).headers["set-cookie"]

    name, *attributes = [part.strip() for part in cookie.split(";")]
    assert name.startswith("__Host-hl=")
    assert {a.lower() for a in attributes} == {"httponly", "path=/", "samesite=strict", "secure"}


def test_a_wrong_password_and_an_unknown_name_get_the_same_answer(browse: Browse) -> None:
    wrong = sign_in(browse(), "screener", "another password altogether")
    unknown = sign_in(browse(), "nobody-here", "another password altogether")

    assert wrong.status == unknown.status == 401
    assert wrong.html.replace("screener", "") == unknown.html.replace("nobody-here", "")
    assert "set-cookie" not in wrong.headers


def test_a_wrong_answer_says_so_at_the_top_and_leads_to_the_field(browse: Browse) -> None:
    page = sign_in(browse(), password="wrong but long enough")

    assert page.link("The account name, the password or the code is wrong.") == "#account"
    assert "<title>Error: Sign in" in page.html
    assert page.form("/sign-in").fields == {"account": "screener", "password": "", "code": ""}


def test_too_many_at_once_are_asked_to_wait(desk: Desk) -> None:
    full = replace(desk, turns=Turns(slots=1, queue=0))
    with full.turns.turn("elsewhere", "somebody", NOW):
        page = sign_in(Browser(full))

    assert (page.status, page.headers["retry-after"]) == (503, pages.RETRY_AFTER)
    assert "Try again in a minute" in page.text


def test_signing_out_ends_the_session_for_every_copy_of_the_cookie(browse: Browse, world: World) -> None:
    browser = browse("screener")
    copy = browser.client.cookies["__Host-hl"]

    answer = browser.submit(browser.open("/queue"), "/sign-out")

    assert (answer.status, answer.headers["location"]) == (303, "/sign-in")
    assert "__Host-hl" not in browser.client.cookies
    thief = browse()
    thief.client.cookies.set("__Host-hl", copy, domain="staff.example")
    assert thief.open("/queue").headers["location"] == "/sign-in"
    assert sessions_of(world) == 0


def test_a_copy_of_an_ended_cookie_is_an_event(browse: Browse, world: World) -> None:
    browser, thief = browse("screener"), browse()
    copy = browser.client.cookies["__Host-hl"]
    browser.submit(browser.open("/queue"), "/sign-out")

    for _ in range(2):
        thief.client.cookies.set("__Host-hl", copy, domain="staff.example")
        thief.open("/queue")

    with world.sessions.read() as session:
        refused = select(func.count()).where(LedgerEvent.type == "staff:session:refused")
        assert session.scalar(refused) == 1


def test_a_code_is_good_once(browse: Browse) -> None:
    assert sign_in(browse()).status == 303
    assert sign_in(browse()).status == 401


def test_a_phone_with_a_wrong_clock_is_told_so_and_only_with_the_right_password(browse: Browse) -> None:
    old = a_code(NOW - timedelta(minutes=4))

    assert "about 4 min behind" in sign_in(browse(), code=old).text
    assert "about 4 min ahead" in sign_in(browse(), code=a_code(NOW + timedelta(minutes=4))).text
    assert "behind" not in sign_in(browse(), password="another password altogether", code=old).text


def test_the_demo_says_where_its_codes_come_from_and_others_do_not(desk: Desk) -> None:
    demo = replace(desk, settings=desk.settings.model_copy(update={"demo": True}))

    assert "simulate code" in Browser(demo).open("/sign-in").text
    assert "simulate code" not in Browser(desk).open("/sign-in").text


def test_signing_out_is_not_a_link(browse: Browse) -> None:
    browser = browse("screener")

    assert browser.open("/sign-out").status == 405
    assert browser.open("/queue").status == 200


def test_signing_in_again_ends_the_session_before(browse: Browse, world: World) -> None:
    browser = browse("screener")
    before = browser.client.cookies["__Host-hl"]

    sign_in(browser, "oversight")

    assert browser.client.cookies["__Host-hl"] != before
    assert sessions_of(world) == 1


def test_a_session_ends_after_thirty_minutes_without_a_page(browse: Browse, clock: Clockwork) -> None:
    browser = browse("screener")
    clock.pass_by(minutes=29)
    assert browser.open("/queue").status == 200
    clock.pass_by(minutes=29)
    assert browser.open("/queue").status == 200

    clock.pass_by(minutes=31)

    answer = browser.open("/queue")
    assert (answer.status, answer.headers["location"]) == (303, "/sign-in")
    assert "__Host-hl" not in browser.client.cookies


def test_a_session_ends_after_eight_hours_of_use(browse: Browse, clock: Clockwork) -> None:
    browser = browse("screener")
    for _ in range(31):
        clock.pass_by(minutes=15)
        assert browser.open("/queue").status == 200

    clock.pass_by(minutes=15)

    assert browser.open("/queue").headers["location"] == "/sign-in"


def test_a_disabled_account_is_out_with_its_next_request(browse: Browse, world: World, clock: Clockwork) -> None:
    browser = browse("screener")

    def disable(tx: Tx) -> None:
        member = tx.get(Member, world.people["screener"][0].id)
        assert member is not None
        member.disabled_at = clock.now

    write(world.sessions, disable)

    assert browser.open("/queue").status == 303


@pytest.mark.parametrize("cookie", ["", "x", "A" * 64, "é", "A" * 5000])
def test_a_cookie_that_is_none_of_ours_leads_to_the_sign_in_page(browse: Browse, cookie: str) -> None:
    headers = {"cookie": b"__Host-hl=" + cookie.encode()}

    answer = browse().client.get("/queue", headers=headers)

    assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in")
