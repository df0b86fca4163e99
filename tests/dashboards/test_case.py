"""The page of a case: why, what next, opening its account, claiming it, handing it on."""

import json
from collections.abc import Callable
from datetime import timedelta
from threading import Barrier, Thread
from uuid import UUID, uuid4

import pytest
from sqlalchemy import event, func, select, text
from sqlmodel import col

from service import cases
from service.ledger.events import EventType
from service.models import Case, CaseSeal, LedgerEvent, LedgerField
from service.triage import ASKS
from tests.builders import NOW, World, a_number, a_tip, the_case
from tests.dashboards.builders import ACCOUNT, Browser, Clockwork, Page, a_case, a_record

Browse = Callable[..., Browser]
UNKNOWN = f"/cases/{uuid4()}"


def open_account(browser: Browser, case: UUID, reason: str = "screening", note: str = "") -> Page:
    return browser.submit(browser.open(f"/cases/{case}"), "/open", reason=reason, note=note)


def hand_on(browser: Browser, case: UUID, unit: str, named: str) -> Page:
    return browser.submit(open_account(browser, case), "/hand-on", unit=unit, named=named)


def openings(world: World) -> list[dict[str, object]]:
    """What stands in clear of each opening, oldest first."""
    with world.sessions.read() as session:
        rows = session.execute(
            select(LedgerEvent.eid, LedgerField.name, LedgerField.value)  # type: ignore[call-overload]
            .join(LedgerField, col(LedgerField.eid) == col(LedgerEvent.eid))
            .where(col(LedgerEvent.type) == EventType.CONTENT_OPENED, col(LedgerField.sealed).is_(False))
            .order_by(col(LedgerEvent.at), col(LedgerEvent.seq))
        ).all()
    found: dict[str, dict[str, object]] = {}
    for eid, name, value in rows:
        found.setdefault(eid, {})[name] = json.loads(value)
    return list(found.values())


def row_of(world: World, case: UUID) -> Case:
    with world.sessions.read() as session:
        row = session.get(Case, case)
    assert row is not None
    return row


# --- the page ---


def test_the_page_says_why_what_is_next_and_how_long(browse: Browse, world: World) -> None:
    case = a_case(world, level="P1", locked=True, provisional=True, flags=["leaving_country"])

    text = browse("screener").open(f"/cases/{case}").text

    assert f"Case {cases.reference(case)} P1 now Leaving country" in text
    assert "State Open since today 14:21 Next Someone claims it Time left 15 min claim by 14:36" in text
    assert "Owner Nobody yet Screening Where Kandal Home" in text
    assert "P1 now, because A child is locked in now R009" in text
    assert "From words, not yet confirmed." in text
    assert "It cannot fall below this level without oversight. Rules: kh-hotline-triage 1.0.0" in text


def test_each_fact_says_who_said_it_and_what_is_unknown_is_asked(browse: Browse, world: World) -> None:
    text = browse("screener").open(f"/cases/{a_case(world)}").text

    assert "Child stopped from leaving Yes From words, not confirmed, today 14:21" in text
    assert "Number of children 2 Said by the tipster, today 14:21" in text
    assert "Kind of place Home Worked out from what is stored" in text
    assert "Can still reach children Unknown Ask" in text
    assert f"Ask next {ASKS['suspect_access'].en} {ASKS['recency'].en}" in text


def test_a_repeat_that_raised_the_level_is_said_in_words(browse: Browse, world: World) -> None:
    words = "A boy of fourteen works in the kitchen at the Golden Lotus Hotel in Siem Reap."
    days = [timedelta(days=days) for days in (3, 2, 1, 0)]
    receipts = world.receive(*(a_tip(words, received_at=NOW - ago, sender=a_number()) for ago in days))

    texts = [browse("screener").open(f"/cases/{the_case(world, receipt.tip).id}").text for receipt in receipts]

    said = "3 separate tips about this place in 90 days"
    assert [said in text for text in texts] == [False, False, False, True]


def test_a_level_that_the_newest_message_would_lower_says_that_it_stays(browse: Browse, world: World) -> None:
    screener = browse("screener")

    stays = screener.open(f"/cases/{a_case(world, level='P1', record=a_record(level='P3'))}").text
    plain = screener.open(f"/cases/{a_case(world, level='P1', record=a_record(level='P1'))}").text

    assert "these reasons alone give P3 week. The level stays" in stays
    assert "The level stays" not in plain


def test_what_is_asked_for_the_count_only_is_no_part_of_the_page(browse: Browse, world: World) -> None:
    record = a_record(facts={"child_sex": {"source": "stated", "value": "girl"}})

    assert "girl" not in browse("screener").open(f"/cases/{a_case(world, record=record)}").html


def test_the_page_in_khmer(browse: Browse, world: World) -> None:
    case = a_case(world, level="P1")

    text = browse("screener", "km").open(f"/cases/{case}").text

    assert "P1 ឥឡូវ ព្រោះ កុមារកំពុងត្រូវគេចាក់សោ R009" in text
    assert "ពេលនៅសល់ ១៥ នាទី ទទួលមុន ១៤:៣៦" in text
    assert f"សួរបន្ទាប់ {ASKS['suspect_access'].km}" in text
    assert "ចំនួនកុមារ ២ អ្នកឱ្យដំណឹងបានប្រាប់" in text


def test_every_page_of_a_case_names_who_looks_and_when(browse: Browse, world: World) -> None:
    browser = browse("screener")
    case = a_case(world)

    for page in (browser.open(f"/cases/{case}"), open_account(browser, case)):
        assert "Shown to Sok Dara, Screening, 9 March 2027, 14:21" in page.text


def test_the_history_stands_in_words_newest_first(browse: Browse, world: World) -> None:
    page = browse("screener").open(f"/cases/{a_case(world)}")

    assert (
        "What happened today 14:21 Rules decided P2 today the system promised "
        "today 14:21 First account sealed; it never changes the system promised "
        "today 14:21 Case opened the system promised" in page.text
    )


# --- who sees it ---


@pytest.mark.parametrize("name", ["elsewhere", "investigator", "integrity", "admin"])
def test_a_case_of_another_unit_is_the_same_page_as_one_that_does_not_exist(
    browse: Browse, world: World, name: str
) -> None:
    case = a_case(world)
    browser = browse(name)

    answers = [browser.open(path) for path in (f"/cases/{case}", UNKNOWN, "/cases/x", f"/cases/{case}x", "/nothing")]

    assert {answer.status for answer in answers} == {404}
    assert len({answer.html for answer in answers}) == 1
    assert len({tuple(sorted(answer.headers.items())) for answer in answers}) == 1


@pytest.mark.parametrize("id", ["", "x", "{}", "urn:uuid:", "0" * 32, "%2e%2e%2fqueue", "%00", "a" * 3000])
def test_a_malformed_id_does_not_exist(browse: Browse, world: World, id: str) -> None:
    a_case(world)

    assert browse("screener").open(f"/cases/{id}").status == 404


@pytest.mark.parametrize("step", ["open", "claim", "hand-on"])
def test_no_step_can_be_taken_in_a_case_of_another_unit(browse: Browse, world: World, step: str) -> None:
    case = a_case(world)
    browser = browse("elsewhere")
    token = browser.open("/queue").form("/sign-out").fields["t"]
    fields = {
        "open": {"reason": "screening"},
        "claim": {"version": "2"},
        "hand-on": {"version": "2", "unit": "kandal", "named": "no"},
    }[step]

    there, nowhere = (browser.send(f"{path}/{step}", fields | {"t": token}) for path in (f"/cases/{case}", UNKNOWN))

    assert (there.status, there.html) == (404, nowhere.html)
    assert openings(world) == []
    assert row_of(world, case).version == 2


# --- opening ---


def test_the_account_is_not_on_the_page_until_it_is_opened(browse: Browse, world: World) -> None:
    browser = browse("screener")
    case = a_case(world)

    assert ACCOUNT not in browser.open(f"/cases/{case}").html
    assert ACCOUNT in open_account(browser, case).text
    assert ACCOUNT not in browser.open(f"/cases/{case}").html


def test_the_address_of_an_opened_account_leads_back_to_the_closed_one(browse: Browse, world: World) -> None:
    case = a_case(world)

    answer = browse("screener").open(f"/cases/{case}/open")

    assert (answer.status, answer.headers["location"]) == (303, f"/cases/{case}")
    assert openings(world) == []


def test_who_and_why_is_written_before_the_account_is_shown(browse: Browse, world: World) -> None:
    page = open_account(browse("screener"), a_case(world), reason="link", note="Same place as yesterday")

    assert openings(world) == [{"who": world.people["screener"][0].id.hex, "reason": "link"}]
    assert "Person Why When Sok Dara, screener It may belong to another case today 14:21" in page.text
    assert "Account opened: It may belong to another case Sok Dara, screener" in page.text
    assert "Same place as yesterday" not in page.html


def test_all_messages_of_a_case_are_shown_each_as_its_own_text(browse: Browse, world: World) -> None:
    page = open_account(browse("screener"), a_case(world, more=["ពួកគេនៅទីនេះនៅឡើយ", "Thank you"]))

    told = [given for tag, given in page.elements if given.get("class") == "told"]
    assert [given["dir"] for given in told] == ["auto"] * 3
    assert "First account · text message" in page.text
    assert page.text.count("Later message") == 2
    assert "ពួកគេនៅទីនេះនៅឡើយ" in page.text


def test_what_came_with_a_message_is_said_below_it(browse: Browse, world: World) -> None:
    page = open_account(browse("screener"), a_case(world, mark="media:2 token:missing new:code"))

    assert f"{ACCOUNT} Pictures or files announced: 2. They were not fetched. The form came without" in page.text
    assert "new:code" in page.text


@pytest.mark.parametrize("reason", ["", "curiosity"])
def test_an_account_is_not_opened_without_a_reason(browse: Browse, world: World, reason: str) -> None:
    page = open_account(browse("screener"), a_case(world), reason=reason)

    assert page.status in (403, 422)
    assert ACCOUNT not in page.html
    assert openings(world) == []


def test_nothing_is_shown_when_the_opening_cannot_be_written(browse: Browse, world: World) -> None:
    browser = browse("screener")
    page = browser.open(f"/cases/{a_case(world)}")

    @event.listens_for(world.sessions.writing, "begin")
    def full(connection) -> None:
        connection.exec_driver_sql("PRAGMA query_only=ON")

    answer = browser.submit(page, "/open", reason="screening")

    assert answer.status == 503
    assert answer.headers["retry-after"]
    assert ACCOUNT not in answer.html
    assert "Nothing was changed and nothing was shown." in answer.text


def test_nothing_is_shown_when_a_trigger_refuses_the_opening(browse: Browse, world: World) -> None:
    browser = browse("screener")
    page = browser.open(f"/cases/{a_case(world)}")
    with world.sessions.writing.begin() as connection:
        connection.execute(
            text("CREATE TRIGGER no_more BEFORE INSERT ON ledger_event BEGIN SELECT RAISE(FAIL, 'full'); END")
        )

    answer = browser.submit(page, "/open", reason="screening")

    assert answer.status == 503
    assert ACCOUNT not in answer.html


def test_a_message_in_anothers_place_is_not_shown(browse: Browse, world: World) -> None:
    case, other = a_case(world), a_case(world, account="Words of another case")
    with world.sessions.writing.begin() as connection:
        connection.execute(
            text('UPDATE message SET body = (SELECT body FROM message WHERE "case" = :other) WHERE "case" = :case'),
            {"other": other.hex, "case": case.hex},
        )

    page = open_account(browse("screener"), case)

    assert page.status == 500
    assert "cannot be trusted" in page.text
    assert "Words of another case" not in page.html


def test_stored_markup_is_text(browse: Browse, world: World) -> None:
    payloads = [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "</p><form action=/sign-out><input>",
        '" onmouseover="alert(1)',
        "{{ 7 * 7 }}{% raw %}",
        "javascript:alert(1)",
        "<meta http-equiv=refresh content=0;url=//elsewhere.example>",
        "&lt;b&gt; &amp; &#60;",
    ]
    browser = browse("screener")
    plain = open_account(browser, a_case(world, more=["x"] * len(payloads)))

    page = open_account(browser, a_case(world, more=payloads))

    assert [tag for tag, _ in page.elements] == [tag for tag, _ in plain.elements]
    assert all(payload in page.text for payload in payloads)


def test_controls_and_turned_letters_are_visible(browse: Browse, world: World) -> None:
    hidden = "paid \u202e001\u202c now\u200b, \x1b[31mred\x07 \u2066x\u2069 \ufeffend"

    page = open_account(browse("screener"), a_case(world, account=hidden))

    assert "paid ⟦U+202E⟧001⟦U+202C⟧ now⟦U+200B⟧, ⟦U+001B⟧[31mred⟦U+0007⟧ ⟦U+2066⟧x⟦U+2069⟧ ⟦U+FEFF⟧end" in page.text


def test_a_walled_case_tells_nothing_until_it_is_opened(browse: Browse, world: World) -> None:
    case = a_case(world, walled=True, flags=["official_complicity"])
    browser = browse("integrity")

    before, after = browser.open(f"/cases/{case}"), open_account(browser, case, reason="owner")

    for words in ("A child is locked in now", "Kandal", "Official involved", "Number of children", ACCOUNT):
        assert words not in before.text
        assert words in after.text
    assert "Reasons, facts and place are sealed with the account." in before.text
    assert "Where Sealed" in before.text


def test_oversight_reads_what_screening_has(browse: Browse, world: World) -> None:
    assert ACCOUNT in open_account(browse("oversight"), a_case(world), reason="oversight").text


# --- claiming ---


def test_an_investigator_claims_an_open_case_of_the_own_unit(browse: Browse, world: World) -> None:
    case = a_case(world, unit="siem-reap", level="P2")
    browser = browse("investigator")

    answer = browser.submit(browser.open(f"/cases/{case}"), "/claim")

    assert (answer.status, answer.headers["location"]) == (303, f"/cases/{case}")
    page = browser.open(f"/cases/{case}")
    assert "State Claimed since today 14:21 Next The owner enters a plan Time left 1 h plan by 15:21" in page.text
    assert "Owner Heng Bopha Siem Reap team" in page.text
    assert "Claimed Heng Bopha, investigator" in page.text
    assert not page.has_form("/claim")


@pytest.mark.parametrize(("name", "unit"), [("screener", "screening"), ("oversight", "siem-reap")])
def test_who_cannot_claim_is_not_offered_it_and_is_refused(browse: Browse, world: World, name: str, unit: str) -> None:
    case = a_case(world, unit=unit)
    browser = browse(name)
    page = browser.open(f"/cases/{case}")

    answer = browser.send(f"/cases/{case}/claim", {"t": page.form("/sign-out").fields["t"], "version": "2"})

    assert not page.has_form("/claim")
    assert answer.status == 403
    assert row_of(world, case).owner is None


def test_of_two_who_claim_the_second_is_told_kindly(browse: Browse, world: World) -> None:
    case = a_case(world, unit="siem-reap")
    first, second = browse("investigator"), browse("investigator-2")
    pages = [browser.open(f"/cases/{case}") for browser in (first, second)]

    won, lost = first.submit(pages[0], "/claim"), second.submit(pages[1], "/claim")

    assert (won.status, lost.status) == (303, 409)
    assert "Somebody else has claimed this case" in lost.text
    assert row_of(world, case).owner == world.people["investigator"][0].id


def test_of_two_who_claim_at_once_one_wins(browse: Browse, world: World) -> None:
    case = a_case(world, unit="siem-reap")
    browsers = [browse("investigator"), browse("investigator-2")]
    pages = [browser.open(f"/cases/{case}") for browser in browsers]
    together, answers = Barrier(2), []

    def claim(browser: Browser, page: Page) -> None:
        together.wait()
        answers.append(browser.submit(page, "/claim").status)

    threads = [Thread(target=claim, args=pair) for pair in zip(browsers, pages, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(answers) == [303, 409]


def test_a_lapsed_claim_can_be_taken_by_somebody_else(browse: Browse, world: World, clock: Clockwork) -> None:
    case = a_case(world, unit="siem-reap", level="P1")
    first, second = browse("investigator"), browse("investigator-2")
    first.submit(first.open(f"/cases/{case}"), "/claim")

    clock.pass_by(minutes=16)
    page = second.open(f"/cases/{case}")
    answer = second.submit(page, "/claim")

    assert "Claim lapsed without a plan; open again with its first deadline the system" in page.text
    assert answer.status == 303
    assert row_of(world, case).owner == world.people["investigator-2"][0].id


@pytest.mark.parametrize("version", ["", "x", "-1", "99999999999999999999", "1.5"])
def test_a_version_that_is_none_changes_nothing(browse: Browse, world: World, version: str) -> None:
    case = a_case(world, unit="siem-reap")
    browser = browse("investigator")

    answer = browser.submit(browser.open(f"/cases/{case}"), "/claim", version=version)

    assert answer.status == 422
    assert row_of(world, case).owner is None


# --- handing on ---


def test_a_case_is_handed_on_to_the_unit_that_is_not_named(browse: Browse, world: World) -> None:
    case = a_case(world)
    screener, investigator = browse("screener"), browse("investigator")
    assert investigator.open(f"/cases/{case}").status == 404

    answer = hand_on(screener, case, "siem-reap", "no")

    assert (answer.status, answer.headers["location"]) == (303, "/queue?done=handed_on")
    assert "The case was handed on." in screener.open(answer.headers["location"]).text
    assert str(case) not in screener.open("/queue").html
    assert str(case) in investigator.open("/queue").html
    assert "Handed on to Siem Reap team Sok Dara, screener" in investigator.open(f"/cases/{case}").text
    assert ACCOUNT in open_account(investigator, case, reason="owner").text


@pytest.mark.parametrize("named", ["yes", "unsure"])
def test_a_case_that_may_name_the_unit_goes_to_integrity_and_is_gone_for_the_screener(
    browse: Browse, world: World, named: str
) -> None:
    case = a_case(world)
    screener, integrity = browse("screener"), browse("integrity")

    answer = hand_on(screener, case, "siem-reap", named)

    assert answer.headers["location"] == "/queue?done=handed_on"
    assert screener.open(f"/cases/{case}").html == screener.open(UNKNOWN).html
    assert str(case) not in screener.open("/queue").html
    assert browse("investigator").open(f"/cases/{case}").status == 404
    assert "Sealed: open it to see" in integrity.open("/queue").text
    opened = open_account(integrity, case, reason="owner")
    assert ACCOUNT in opened.text
    assert "A child is locked in now" in opened.text
    with world.sessions.read() as session:
        held = session.scalars(select(CaseSeal.unit).where(col(CaseSeal.case) == case)).all()  # type: ignore[call-overload]
    assert set(held) == {"integrity", "oversight"}


def test_the_answer_has_no_default_and_a_unit_must_be_chosen(browse: Browse, world: World) -> None:
    page = open_account(browse("screener"), a_case(world))

    form = page.form("/hand-on")
    assert form.choices["named"] == ["no", "yes", "unsure"]
    assert "named" not in form.fields
    assert form.choices["unit"] == ["", "kandal", "siem-reap"]


def test_a_unit_behind_the_wall_of_the_case_is_not_offered(browse: Browse, world: World) -> None:
    case, other = a_case(world), a_case(world)
    oversight = browse("oversight")
    page = open_account(oversight, case, reason="oversight")
    assert oversight.submit(page, "/wall", whom="unit:kandal", why="tied").status == 303

    screener = browse("screener")
    assert open_account(screener, case).form("/hand-on").choices["unit"] == ["", "siem-reap"]
    assert open_account(screener, other).form("/hand-on").choices["unit"] == ["", "kandal", "siem-reap"]
    assert hand_on(screener, case, "siem-reap", "no").status == 303


@pytest.mark.parametrize(
    "fields",
    [
        {"unit": "siem-reap"},
        {"unit": "siem-reap", "named": ""},
        {"unit": "siem-reap", "named": "perhaps"},
        {"unit": "", "named": "no"},
        {"unit": "screening", "named": "no"},
        {"unit": "oversight", "named": "no"},
        {"unit": "nowhere", "named": "yes"},
    ],
)
def test_an_incomplete_hand_on_changes_nothing(browse: Browse, world: World, fields: dict[str, str]) -> None:
    case = a_case(world)
    browser = browse("screener")

    answer = browser.submit(open_account(browser, case), "/hand-on", **fields)

    assert answer.status == 422
    assert row_of(world, case).unit == "screening"


def test_nobody_hands_on_what_they_have_not_read(browse: Browse, world: World) -> None:
    case = a_case(world)
    page = open_account(browse("screener"), case)
    unread = browse("screener-2")
    token = unread.open("/queue").form("/sign-out").fields["t"]

    fields = page.form("/hand-on").fields | {"t": token, "unit": "siem-reap", "named": "no"}
    answer = unread.send(f"/cases/{case}/hand-on", fields)

    assert not unread.open(f"/cases/{case}").has_form("/hand-on")
    assert answer.status == 403
    assert "Open the account first" in answer.text


@pytest.mark.parametrize("name", ["investigator", "oversight"])
def test_only_the_screener_of_the_unit_is_offered_the_hand_on(browse: Browse, world: World, name: str) -> None:
    case = a_case(world, unit="siem-reap")

    assert not open_account(browse(name), case, reason="owner").has_form("/hand-on")


def test_of_two_who_hand_on_the_second_is_refused(browse: Browse, world: World) -> None:
    case = a_case(world)
    first, second = browse("screener"), browse("screener-2")
    pages = [open_account(browser, case) for browser in (first, second)]

    won = first.submit(pages[0], "/hand-on", unit="siem-reap", named="no")
    lost = second.submit(pages[1], "/hand-on", unit="kandal", named="no")

    assert (won.status, lost.status) == (303, 403)
    assert row_of(world, case).unit == "siem-reap"


def test_reading_the_page_writes_nothing_and_each_opening_one_event(browse: Browse, world: World) -> None:
    case = a_case(world)
    browser = browse("screener")
    with world.sessions.read() as session:
        before = session.scalar(select(func.count()).select_from(LedgerEvent)) or 0

    for _ in range(3):
        browser.open(f"/cases/{case}")
        open_account(browser, case)

    with world.sessions.read() as session:
        after = session.scalar(select(func.count()).select_from(LedgerEvent)) or 0
    assert after - before == 3
