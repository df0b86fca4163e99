"""The simulator's page in a real browser: it renews itself around somebody who types, and works without a script."""

import asyncio
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode
from urllib.request import ProxyHandler, build_opener

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.webhooks.simulator.builders import Stage, a_provider
from webhooks.simulator.app import create_app
from webhooks.simulator.delivery import Answer, Target
from webhooks.simulator.provider import Provider, utc_now

CHROMIUM = Path("/usr/bin/chromium")
ONE, TWO, SCREENER = "+85500000001", "+85500000002", "+85500000301"
KHMER = "សូមជួយផង ញ៉ាំ ឥឡូវនេះ"
THANKS = "ទទួលបានសារហើយ។"

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Debian's chromium"),
]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        yield opened
        opened.close()


@pytest.fixture
def provider() -> Provider:
    return a_provider(utc_now)


@pytest.fixture
def address(stage: Stage, provider: Provider) -> str:
    async def take_and_thank(_: str, headers: Mapping[str, str], body: bytes, **__: float) -> Answer:
        fields = dict(parse_qsl(body.decode(), keep_blank_values=True))
        if "Body" in fields and fields["From"] not in provider.opted_out:
            for to in (fields["From"], SCREENER):
                provider.create(to=to, sender=fields["To"], body=THANKS, status_callback=None)
        return Answer(200)

    stage.app = create_app(
        provider,
        target=Target("https://hotline.example", "http://127.0.0.1:8000"),
        duty={"screening": [SCREENER]},
        transport=take_and_thank,
    )
    return stage.address


def opened(browser: Browser, address: str, **more: Any) -> Page:
    page = browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | more).new_page()
    page.goto(f"{address}/?lang=en")
    return page


def somebody_texts(address: str, words: str, number: str = ONE) -> None:
    """Another client lets a phone send."""
    body = urlencode({"from": number, "text": words}).encode()
    with build_opener(ProxyHandler({})).open(f"{address}/text", body, timeout=10) as answer:
        assert answer.status == 200


def tab_to(page: Page, wanted: str) -> None:
    """Go through the page by the Tab key until the element `wanted` has the focus."""
    for _ in range(80):
        page.keyboard.press("Tab")
        if page.evaluate("wanted => document.activeElement.matches(wanted)", wanted):
            return
    raise AssertionError(f"the Tab key never comes to {wanted}")


@pytest.mark.parametrize("script", [True, False])
def test_a_khmer_text_and_its_answer_by_keyboard_alone(chromium: Browser, address: str, script: bool) -> None:
    page = opened(chromium, address, java_script_enabled=script)
    tab_to(page, "#text-85500000002")
    page.keyboard.insert_text("half written")
    page.keyboard.press("Shift+Tab")
    page.focus("#text-85500000001")
    page.keyboard.insert_text(KHMER)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")

    thread = page.locator("#talk-85500000001")
    expect(thread).to_contain_text(KHMER)
    expect(thread).to_contain_text("taken: 200")
    if not script:
        page.get_by_role("button", name="Look again").click()
    expect(thread).to_contain_text(THANKS)
    expect(page.locator("#talk-duty-85500000301")).to_contain_text(THANKS)
    expect(page.locator("#text-85500000001")).to_have_value("")
    expect(page.locator("#text-85500000002")).to_have_value("half written")


def test_news_do_not_disturb_somebody_who_types(chromium: Browser, address: str) -> None:
    page = opened(chromium, address)
    page.fill("#text-85500000001", KHMER)
    page.evaluate("document.getElementById('text-85500000001').setSelectionRange(3, 5)")

    somebody_texts(address, "news from elsewhere")
    expect(page.locator("#talk-85500000001")).to_contain_text("news from elsewhere")

    box = "document.getElementById('text-85500000001')"
    assert page.evaluate(f"[{box}.value, {box}.selectionStart, {box}.selectionEnd]") == [KHMER, 3, 5]
    assert page.evaluate(f"document.activeElement === {box}")


def test_a_request_that_somebody_reads_stays_open_when_another_comes(chromium: Browser, address: str) -> None:
    somebody_texts(address, "words of the first")
    page = opened(chromium, address)
    row = page.locator("#log > li").last
    words = row.get_by_text("words of the first")
    expect(words).to_be_hidden()
    row.locator("summary").first.click()
    expect(words).to_be_hidden()
    row.get_by_text("hidden, 18 characters; show").click()
    expect(words).to_be_visible()

    somebody_texts(address, "the second")
    expect(page.locator("#log > li")).to_have_count(2)

    expect(words).to_be_visible()


def test_a_phone_that_comes_later_is_there_and_works(chromium: Browser, address: str) -> None:
    page = opened(chromium, address)
    page.fill("#text-85500000002", "half written")

    somebody_texts(address, "from a stranger", "+85500000007")
    expect(page.locator("#talk-85500000007")).to_contain_text("from a stranger")
    page.get_by_role("button", name="Another phone").click()
    page.locator("#phone-85500000003 summary").click()
    page.locator("#phone-85500000003 .example", has_text="STOP").click()
    expect(page.locator("#text-85500000003")).to_have_value("STOP")
    page.locator("#phone-85500000003").get_by_role("button", name="Send").click()

    expect(page.locator("#stop-85500000003")).to_contain_text("This phone texted STOP")
    expect(page.locator("#text-85500000002")).to_have_value("half written")


@pytest.mark.parametrize("script", [True, False])
def test_what_is_wrong_is_said_beside_the_box(chromium: Browser, address: str, script: bool) -> None:
    page = opened(chromium, address, java_script_enabled=script)
    page.fill("#text-85500000001", "half written")
    page.locator("#phone-85500000002").get_by_role("button", name="Send").click()

    expect(page.locator("#wrong-85500000002")).to_have_text("Write something first.")
    expect(page.locator("#text-85500000001")).to_have_value("half written")


def test_a_simulator_that_has_gone_is_missed(chromium: Browser, address: str, stage: Stage) -> None:
    page = opened(chromium, address)
    expect(page.locator("#news")).to_be_empty()

    async def gone(_scope: Any, _receive: Any, send: Any) -> None:
        await asyncio.sleep(0)
        await send({"type": "http.response.start", "status": 502, "headers": []})
        await send({"type": "http.response.body", "body": b"nobody"})

    stage.app = gone
    expect(page.locator("#news")).to_have_text("The simulator does not answer. Is the demo still running?")


@pytest.mark.parametrize("language", ["km", "en"])
@pytest.mark.parametrize("width", [320, 1280])
def test_it_fits_and_everybody_can_use_it(chromium: Browser, address: str, width: int, language: str) -> None:
    for words in (KHMER, "x" * 200, "STOP"):
        somebody_texts(address, words)
    page = opened(chromium, address, viewport={"width": width, "height": 800})
    loud: list[str] = []
    page.on("console", lambda message: loud.append(message.text))
    page.on("pageerror", lambda fault: loud.append(str(fault)))
    page.goto(f"{address}/?lang={language}")
    expect(page.locator("html")).to_have_class("live")
    for summary in page.locator("summary:visible").all():
        summary.click()

    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert [(broken["id"], len(broken["nodes"])) for broken in Axe().run(page).response["violations"]] == []
    assert loud == []


def test_the_judge_of_the_test_above_sees_what_is_wrong(chromium: Browser, address: str) -> None:
    page = opened(chromium, address)
    page.evaluate("document.querySelector('label[for=text-85500000001]').remove()")

    assert "label" in [broken["id"] for broken in Axe().run(page).response["violations"]]
