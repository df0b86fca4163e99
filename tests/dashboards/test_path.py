"""From a text message to somebody who reads it, and what nobody else notices."""

from collections.abc import Callable

import pytest
from sqlalchemy import select
from sqlmodel import col

from service import cases
from service.models import Case
from service.triage import Fact, Source
from tests.builders import World, a_tip, the_case
from tests.dashboards.builders import Browser, a_case

Browse = Callable[..., Browser]


def test_a_message_stands_in_the_queue_is_read_handed_on_claimed_and_read(browse: Browse, world: World) -> None:
    words = "My neighbour locks two girls in the room every night. Kampong Cham."
    receipt = world.receive(a_tip(words))[0]
    case = the_case(world, receipt.tip)
    screener, investigator = browse("screener"), browse("investigator")

    queue = screener.open("/queue")
    assert cases.reference(case.id) in queue.text
    opened = screener.submit(screener.open(f"/cases/{case.id}"), "/open", reason="screening")
    assert words in opened.text
    assert "No reason is recorded" not in opened.text
    assert screener.submit(opened, "/hand-on", unit="siem-reap", named="no").status == 303
    claimed = investigator.submit(investigator.open(f"/cases/{case.id}"), "/claim")
    assert claimed.status == 303
    read = investigator.submit(investigator.open(f"/cases/{case.id}"), "/open", reason="owner")
    assert words in read.text
    assert "Owner Heng Bopha" in read.text


def test_a_later_message_stands_below_the_first(browse: Browse, world: World) -> None:
    receipt = world.receive(a_tip("A child works at night in the bar."), a_tip("They leave on Friday."))[0]
    case = the_case(world, receipt.tip)

    page = browse("screener")
    text = page.submit(page.open(f"/cases/{case.id}"), "/open", reason="screening").text

    assert text.index("A child works at night in the bar.") < text.index("They leave on Friday.")
    assert "A further message arrived" in text


NAMED = "The chief of the post takes money from the owner."
AN_OFFICIAL = (Fact("official_complicity", "yes", Source.STATED),)


def test_words_that_tie_an_official_to_it_reach_integrity_and_oversight_alone(browse: Browse, world: World) -> None:
    case = the_case(world, world.receive(a_tip(NAMED, stated=AN_OFFICIAL))[0].tip)
    assert case.walled

    for name, status in (("screener", 404), ("investigator", 404), ("integrity", 200), ("oversight", 200)):
        assert browse(name).open(f"/cases/{case.id}").status == status
    integrity = browse("integrity")
    assert NAMED in integrity.submit(integrity.open(f"/cases/{case.id}"), "/open", reason="owner").text


def test_what_comes_after_the_wall_is_all_that_integrity_opens(browse: Browse, world: World) -> None:
    case = the_case(
        world, world.receive(a_tip("A child works at night in the bar."), a_tip(NAMED, stated=AN_OFFICIAL))[0].tip
    )
    assert case.walled

    integrity, oversight = browse("integrity"), browse("oversight")
    seen = {
        name: browser.submit(browser.open(f"/cases/{case.id}"), "/open", reason="oversight").text
        for name, browser in (("integrity", integrity), ("oversight", oversight))
    }

    assert NAMED in seen["integrity"]
    assert NAMED in seen["oversight"]
    assert "A child works at night in the bar." in seen["oversight"]


ADDRESSES = (
    "/queue",
    "/queue?level=P1",
    "/queue?clock=late",
    "/queue?province=KH-17",
    "/queue?flag=settlement_attempt",
    "/queue?owner=none",
    "/",
    "/health/ready",
    "/nothing",
)


@pytest.mark.parametrize("name", ["screener", "investigator", "elsewhere", "admin"])
def test_for_whom_a_case_is_walled_no_byte_of_any_page_tells(browse: Browse, world: World, name: str) -> None:
    for unit in ("screening", "siem-reap", "kandal"):
        a_case(world, unit=unit, flags=["settlement_attempt"], province="KH-17")
    browser = browse(name)

    def seen(case: object) -> list[tuple[int, str, list[tuple[str, str]]]]:
        answers = [browser.open(address) for address in (*ADDRESSES, f"/cases/{case}")]
        return [(a.status, a.html, sorted(a.headers.items())) for a in answers]

    without = seen("00000000-0000-4000-8000-000000000000")
    walled = a_case(world, walled=True, level="P1", flags=["settlement_attempt"], province="KH-17")
    assert seen(walled) == without

    # The negative control: a case that is theirs to see does change their pages.
    unit = {"investigator": "siem-reap", "elsewhere": "kandal"}.get(name, "screening")
    a_case(world, unit=unit, level="P1")
    assert (seen(walled) == without) == (name == "admin")


def test_a_case_that_is_handed_on_behind_the_wall_leaves_pages_as_if_it_had_never_been(
    browse: Browse, world: World
) -> None:
    browser = browse("screener-2")
    without = [browser.open(address).html for address in ADDRESSES]
    case = a_case(world)
    screener = browse("screener")
    opened = screener.submit(screener.open(f"/cases/{case}"), "/open", reason="screening")

    screener.submit(opened, "/hand-on", unit="siem-reap", named="unsure")

    assert [browser.open(address).html for address in ADDRESSES] == without
    with world.sessions.read() as session:
        assert session.scalar(select(Case.unit).where(col(Case.id) == case)) == "integrity"  # type: ignore[call-overload]
