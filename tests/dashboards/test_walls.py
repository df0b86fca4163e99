"""The wall on the pages: excluding, stepping aside, and two of oversight who take it back."""

from collections.abc import Callable, Iterator
from uuid import UUID

import pytest

from tests.builders import PEOPLE, World, a_world
from tests.dashboards.builders import Browser, Clockwork, Page, a_case, a_desk

Browse = Callable[..., Browser]
OVERSEER = (*PEOPLE["oversight"][:3], "Chan Sreyleak", "ចាន់ ស្រីលក្ខណ៍")


@pytest.fixture
def world(sqlite_url: str) -> Iterator[World]:
    """A world with a second person of oversight."""
    from service.db import open_database

    sessions = open_database(sqlite_url)
    yield a_world(sessions, people=PEOPLE | {"overseer": OVERSEER})
    sessions.close()


@pytest.fixture
def browse(world: World, clock: Clockwork) -> Browse:
    desk = a_desk(world, clock)
    return lambda name, lang="en": Browser(desk, world.cookie(name, clock.now), lang)


def opened(browser: Browser, case: UUID, reason: str = "oversight") -> Page:
    return browser.submit(browser.open(f"/cases/{case}"), "/open", reason=reason)


def person(world: World, name: str) -> str:
    return f"member:{world.people[name][0].id.hex}"


def test_oversight_puts_somebody_behind_the_wall_and_two_take_them_back(browse: Browse, world: World) -> None:
    case = a_case(world, unit="siem-reap")
    officer, first, second = browse("investigator"), browse("oversight"), browse("overseer")
    assert officer.open(f"/cases/{case}").status == 200

    page = opened(first, case)
    assert person(world, "investigator") in page.form("/wall").choices["whom"]
    assert "unit:siem-reap" in page.form("/wall").choices["whom"]
    answer = first.submit(page, "/wall", whom=person(world, "investigator"), why="named")

    assert answer.headers["location"] == "/queue?done=excluded"
    assert "They are behind the wall of that case now." in first.open("/queue?done=excluded").text
    assert officer.open(f"/cases/{case}").status == 404
    assert "Who must not see this case Sealed" in first.open(f"/cases/{case}").text
    shown = opened(first, case)
    assert "Heng Bopha, whoever they supervise and whoever supervises them The account names them" in shown.text

    first.submit(shown, "/narrow", reason="Another person of that name.")
    own = opened(first, case)
    assert "a second person of oversight must agree" in own.text
    assert not own.has_form("/agree")
    assert "Proposed to narrow the wall Another person of that name." in own.text
    assert "needs a second person" in second.open("/oversight").text
    second.submit(opened(second, case), "/agree")
    assert "signed by two; ends when witnessed" in first.open("/oversight").text
    assert "it ends when witnessed" in opened(second, case).text
    assert officer.open(f"/cases/{case}").status == 404

    first.submit(opened(first, case), "/refuse", reason="It is the same person.")
    assert "Refused to narrow the wall It is the same person." in opened(second, case).text
    assert "Nothing waits." in second.open("/oversight").text


@pytest.mark.parametrize("name", ["investigator", "oversight"])
def test_one_who_is_tied_to_a_case_takes_themself_out_of_it(browse: Browse, world: World, name: str) -> None:
    case, browser = a_case(world, unit="siem-reap"), browse(name)

    answer = browser.submit(browser.open(f"/cases/{case}"), "/recuse")

    assert answer.headers["location"] == "/queue?done=recused"
    assert browser.open(f"/cases/{case}").status == 404
    assert str(case) not in browser.open("/queue").html


def test_a_unit_is_excluded_from_the_page(browse: Browse, world: World) -> None:
    case, browser = a_case(world, unit="siem-reap"), browse("oversight")

    browser.submit(opened(browser, case), "/wall", whom="unit:siem-reap", why="tied")

    assert browse("investigator").open(f"/cases/{case}").status == 404
    assert "behind the wall" in browse("integrity").open(f"/cases/{case}").text
    shown = opened(browser, case).text
    assert "Siem Reap team They are tied to somebody in it" in shown


def test_whoever_only_works_a_case_is_not_told_of_its_wall(browse: Browse, world: World) -> None:
    case = a_case(world, unit="siem-reap")
    browser = browse("oversight")
    browser.submit(opened(browser, case), "/wall", whom=person(world, "elsewhere"), why="tied")
    page = opened(browse("investigator"), case, "owner")

    assert "Who must not see this case" not in page.text
    assert "Nuon Ratha" not in page.text
    assert not page.has_form("/wall")
    assert page.has_form("/recuse")


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"whom": "", "why": "named"}, 422),
        ({"whom": "member:nobody", "why": "named"}, 422),
        ({"whom": "member:" + "0" * 32, "why": "named"}, 422),
        ({"whom": "unit:nowhere", "why": "named"}, 422),
        ({"whom": "unit:kandal", "why": "because"}, 422),
        ({"whom": "unit:kandal", "why": "named", "version": "0"}, 409),
    ],
)
def test_a_form_that_means_nothing_changes_nothing(
    browse: Browse, world: World, fields: dict[str, str], status: int
) -> None:
    case, browser = a_case(world, unit="siem-reap"), browse("oversight")
    page = opened(browser, case)

    assert browser.submit(page, "/wall", **fields).status == status
    assert "Nobody has been named yet." in opened(browser, case).text
