"""The queue: computed order, words, filters, pages."""

import base64
import json
import re
from collections.abc import Callable
from datetime import timedelta
from uuid import UUID

import pytest

from dashboards import desk, queue
from dashboards.queue import read_key, write_key
from service import cases
from service.db import Tx, write
from service.errors import StorageUnavailable
from service.ledger.events import SYSTEM, EventType, NewEvent, StateClass
from service.models import Case
from service.queue import QueueKey
from tests.builders import NOW, World
from tests.dashboards.builders import Browser, Clockwork, Page, a_case, a_record

Browse = Callable[..., Browser]


def rows(page: Page) -> list[str]:
    """The ids of the cases on a page, from the top."""
    return [href.removeprefix("/cases/") for href, _ in page.links if href.startswith("/cases/")]


def row_text(page: Page, case: UUID) -> str:
    """The text of a case's row."""
    part = page.html.split(f'href="/cases/{case}"')
    start = part[0].rindex("<tr")
    text = re.sub(r"<[^>]+>", " ", part[0][start:] + "<a" + part[1].split("</tr>")[0])
    return " ".join(text.split())


def test_level_then_deadline_then_flags_then_age_decide_the_order(browse: Browse, world: World) -> None:
    due = NOW + timedelta(minutes=40)
    watched = a_case(world, level="P4")
    older = a_case(world, level="P2", due_at=due, flags=["confinement"], age=12)
    younger = a_case(world, level="P2", due_at=due, flags=["confinement"], age=6)
    flagged = a_case(world, level="P2", due_at=due, flags=["settlement_attempt"], age=15)
    late = a_case(world, level="P2", due_at=NOW - timedelta(minutes=1))
    urgent = a_case(world, level="P1")

    page = browse("screener").open("/queue")

    assert rows(page) == [str(case) for case in (urgent, late, flagged, younger, older, watched)]


def test_a_row_says_why_how_long_where_and_who(browse: Browse, world: World) -> None:
    case = a_case(world, level="P1", due_at=NOW + timedelta(minutes=9), provisional=True, flags=["confinement"])

    text = row_text(browse("screener").open("/queue"), case)

    assert "P1 now" in text
    assert "9 min claim by 14:30" in text
    assert "A child is locked in now" in text
    assert f"from words, not yet confirmed · text message · {cases.reference(case)}" in text
    assert "Kandal Home" in text
    assert "Confined" in text
    assert "Nobody yet" in text


def test_a_row_in_khmer(browse: Browse, world: World) -> None:
    case = a_case(world, level="P1", due_at=NOW - timedelta(minutes=6), provisional=True)

    text = row_text(browse("screener", "km").open("/queue"), case)

    assert "P1 ឥឡូវ" in text
    assert "ហួស ៦ នាទី ទទួលមុន ១៤:១៥" in text
    assert "កុមារកំពុងត្រូវគេចាក់សោ" in text
    assert "យល់ពីពាក្យ មិនទាន់បញ្ជាក់" in text
    assert "កណ្តាល ផ្ទះ" in text
    assert "មិនទាន់មាន" in text


def test_the_flags_that_order_the_queue_come_first_and_are_marked(browse: Browse, world: World) -> None:
    a_case(world, flags=["confinement", "leaving_country", "settlement_attempt"])

    html = browse("screener").open("/queue").html

    tags = re.findall(r'<span class="(tag[^"]*)">([^<]+)</span>', html)
    assert tags == [("tag hot", "Settlement"), ("tag hot", "Leaving country"), ("tag", "Confined")]


def test_a_case_that_is_watched_is_read_not_claimed_by_its_hour(browse: Browse, world: World) -> None:
    case = a_case(world, level="P4", due_at=NOW + timedelta(hours=30))

    assert "1 d 6 h read by Wed 20:21" in row_text(browse("screener").open("/queue"), case)


def test_a_walled_case_shows_its_level_and_clock_and_nothing_else(browse: Browse, world: World) -> None:
    case = a_case(world, walled=True, level="P2", provisional=True)

    page = browse("integrity").open("/queue")

    assert row_text(page, case) == "P2 today 1 h claim by 15:21 Sealed: open it to see"


def test_counts_are_of_ones_own_queue(browse: Browse, world: World, clock: Clockwork) -> None:
    a_case(world, level="P1", due_at=NOW - timedelta(minutes=1))
    a_case(world, level="P1")
    a_case(world, level="P3")
    a_case(world, level="P3", unit="kandal")

    text = browse("screener").open("/queue").text

    assert "3 All open cases 2 P1 now 1 late 0 P2 today 1 P3 week 0 P4 watch 3 No owner yet" in text


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("?level=P1", {"urgent"}),
        ("?clock=late", {"late"}),
        ("?clock=hour", {"late", "urgent"}),
        ("?clock=today", {"late", "urgent"}),
        ("?province=KH-17", {"far"}),
        ("?venue=karaoke", {"far"}),
        ("?flag=settlement_attempt", {"late"}),
        ("?province=KH-17&venue=home", set()),
        ("?owner=me", set()),
        ("?owner=none", {"urgent", "late", "far"}),
        ("?level=P9&clock=soon&province=KH-99&venue=x&flag=confinement&owner=all&odd=1", {"urgent", "late", "far"}),
        ("?level=&province=&venue=&flag=&owner=&clock=", {"urgent", "late", "far"}),
    ],
)
def test_filters_stand_in_the_address_and_odd_ones_mean_nothing(
    browse: Browse, world: World, address: str, expected: set[str]
) -> None:
    named = {
        "urgent": a_case(world, level="P1"),
        "late": a_case(world, due_at=NOW - timedelta(minutes=1), flags=["settlement_attempt"]),
        "far": a_case(world, due_at=NOW + timedelta(days=2), province="KH-17", venue="karaoke"),
    }

    page = browse("screener").open("/queue" + address)

    assert set(rows(page)) == {str(named[name]) for name in expected}


def test_a_set_filter_is_said_in_words_and_kept_by_the_links(browse: Browse, world: World) -> None:
    page = browse("screener").open("/queue?province=KH-17&clock=late")

    assert "· Late, Siem Reap" in page.text
    assert page.link("ខ្មែរ") == "/queue?clock=late&province=KH-17&lang=km"
    assert page.form("/queue").choices["province"][0] == ""
    assert '<option value="KH-17" selected>' in page.html


def test_an_owner_stands_in_the_row(browse: Browse, world: World) -> None:
    case = a_case(world, unit="siem-reap")
    browser = browse("investigator")
    browser.submit(browser.open(f"/cases/{case}"), "/claim")

    assert row_text(browser.open("/queue?owner=me"), case).endswith("Heng Bopha")


@pytest.fixture
def short_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five cases a page."""
    monkeypatch.setattr(queue, "PAGE", 5)


@pytest.mark.usefixtures("short_pages")
def test_pages_go_by_key_and_lose_and_double_nothing(browse: Browse, world: World) -> None:
    stored = {str(a_case(world, due_at=NOW + timedelta(minutes=n % 4))) for n in range(12)}
    browser = browse("screener")

    first = browser.open("/queue")
    second = browser.open(first.link("Show the next"))
    third = browser.open(second.link("Show the next"))

    pages = [rows(first), rows(second), rows(third)]
    assert [len(page) for page in pages] == [5, 5, 2]
    assert set().union(*pages) == stored
    assert "Show the next" not in third.text
    assert third.link("To the top") == "/queue"


@pytest.mark.usefixtures("short_pages")
def test_a_case_that_comes_in_between_pages_moves_none_of_them(browse: Browse, world: World) -> None:
    for n in range(8):
        a_case(world, level="P3", due_at=NOW + timedelta(minutes=n))
    browser = browse("screener")
    first = browser.open("/queue?level=P3")
    a_case(world, level="P3", due_at=NOW - timedelta(minutes=5))

    second = browser.open(first.link("Show the next"))

    assert len(rows(second)) == 3
    assert set(rows(first)).isdisjoint(rows(second))


def test_the_key_of_a_page_survives_the_address() -> None:
    key = QueueKey("P2", NOW, 3, 12, UUID(int=77))

    assert read_key(write_key(key)) == key


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "é",
        "AAAA",
        "WzFd",
        "W10",
        "bnVsbA",
        "[" * 50,
        write_key(QueueKey("P7", NOW, 1, 1, UUID(int=1))),
        write_key(QueueKey("P2", NOW.replace(tzinfo=None), 1, 1, UUID(int=1))),
        write_key(QueueKey("P2", NOW, -1, 1, UUID(int=1))),
        write_key(QueueKey("P2", NOW, 10**12, 1, UUID(int=1))),
        write_key(QueueKey("P2", NOW, "1", 1, UUID(int=1))),  # type: ignore[arg-type]
    ],
)
def test_a_key_that_means_nothing_gives_the_first_page(browse: Browse, world: World, text: str) -> None:
    case = a_case(world)

    assert read_key(text) is None
    assert rows(browse("screener").open(f"/queue?after={text}")) == [str(case)]


@pytest.mark.parametrize("moment", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"])
def test_a_moment_outside_the_calendar_is_no_key(moment: str) -> None:
    parts = json.dumps(["P2", moment, 1, 1, UUID(int=1).hex]).encode()

    assert read_key(base64.urlsafe_b64encode(parts).decode()) is None


def test_a_claim_without_a_plan_lapses_and_the_first_deadline_stands(
    browse: Browse, world: World, clock: Clockwork
) -> None:
    case = a_case(world, unit="siem-reap", level="P2")
    browser = browse("investigator")
    browser.submit(browser.open(f"/cases/{case}"), "/claim")
    assert "plan by 15:21" in row_text(browser.open("/queue"), case)

    clock.pass_by(minutes=25)
    browser.open("/queue")
    clock.pass_by(minutes=25)
    browser.open("/queue")
    clock.pass_by(minutes=20)

    text = row_text(browser.open("/queue"), case)
    assert "10 min late claim by 15:21" in text
    assert text.endswith("Nobody yet")
    with world.sessions.read() as session:
        row = session.get(Case, case)
        assert row is not None
        assert (row.state, row.owner, row.due_at) == ("open", None, NOW + timedelta(hours=1))


def test_the_queue_is_shown_when_a_lapse_cannot_be_written(
    browse: Browse, world: World, clock: Clockwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> int:
        raise StorageUnavailable("The database cannot take this now.")

    case = a_case(world)
    monkeypatch.setattr(desk, "lapse_leases", fails)

    assert rows(browse("screener").open("/queue")) == [str(case)]


def test_a_closed_case_is_in_no_queue(browse: Browse, world: World) -> None:
    case = a_case(world)

    def close(tx: Tx) -> None:
        event = NewEvent(EventType.CASE_RELEASED, NOW, SYSTEM, StateClass.CLOSED)
        cases.change(tx, world.ledger, tx.get(Case, case), [event], state="closed")

    write(world.sessions, close)

    page = browse("screener").open("/queue")
    assert rows(page) == []
    assert "No case waits in your queue." in page.text


def test_a_person_of_no_unit_is_told_so(browse: Browse, world: World) -> None:
    a_case(world)

    assert "You sit in no unit yet" in browse("admin").open("/queue").text


def test_a_case_without_reasons_is_shown_all_the_same(browse: Browse, world: World) -> None:
    case = a_case(world, record=a_record(fired=[]), province=None, venue=None)

    text = row_text(browse("screener").open("/queue"), case)

    assert "No reason is recorded" in text
    assert "Not known where" in text


def test_the_page_loads_itself_every_minute_with_its_filter_and_without_its_notice(browse: Browse) -> None:
    page = browse("screener").open("/queue?level=P1&done=handed_on")

    assert "The case was handed on." in page.text
    assert page.headers["refresh"] == "60; url=/queue?level=P1&auto=1"


def test_who_reads_slowly_can_stop_that_and_filters_keep_it(browse: Browse) -> None:
    browser = browse("screener")

    page = browser.open(browser.open("/queue?level=P1").link("Stop that"))

    assert "refresh" not in page.headers
    assert page.form("/queue").fields["still"] == "1"
    assert "refresh" in browser.open(page.link("Load it now")).headers


def test_a_page_that_nobody_touches_ends_at_the_sign_in_page(browse: Browse, clock: Clockwork) -> None:
    browser = browse("screener")
    address, waited = "/queue", 0
    for _ in range(40):
        page = browser.open(address)
        if page.status == 303:
            break
        seconds, _, address = page.headers["refresh"].partition("; url=")
        waited += int(seconds)
        clock.pass_by(seconds=int(seconds))

    assert page.headers["location"] == "/sign-in"
    assert 30 * 60 <= waited <= 32 * 60, "as long as one that was left alone"


def test_the_start_page_is_the_queue(browse: Browse) -> None:
    assert browse("screener").open("/").headers["location"] == "/queue"
