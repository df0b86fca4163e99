"""Reading: a quota with a step-up, refusals that leave an event, what was tampered with, and files to take out."""

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import select, text
from sqlmodel import col

from dashboards import downloads
from dashboards.desk import Desk
from dashboards.downloads import download
from service import staff
from service.config import Settings
from service.db import write
from service.ledger import sequencer
from service.models import LedgerEvent, LedgerField, Reading
from tests.builders import World
from tests.dashboards.builders import ACCOUNT, Browser, Clockwork, Page, a_case, a_record

Browse = Callable[..., Browser]
QUOTA = 3


@pytest.fixture
def desk(desk: Desk) -> Desk:
    """The desk, with a small quota."""
    return replace(desk, settings=Settings(readings_per_day=QUOTA))


@pytest.fixture
def step_up(monkeypatch: pytest.MonkeyPatch, clock: Clockwork) -> Callable[[], None]:
    """Have everybody give password and code again, for five minutes."""
    resume = staff.resume

    def do() -> None:
        until = clock.now + timedelta(minutes=5)
        monkeypatch.setattr(staff, "resume", lambda *a, **k: replace(resume(*a, **k), stepped_up_until=until))

    return do


def open_account(browser: Browser, case: UUID) -> Page:
    return browser.submit(browser.open(f"/cases/{case}"), "/open", reason="screening")


def events(world: World, *types: str) -> list[dict[str, Any]]:
    """The clear fields of events of these types, oldest first, each with its chain."""
    with world.sessions.read() as session:
        rows = session.scalars(
            select(LedgerEvent).where(col(LedgerEvent.type).in_(types)).order_by(col(LedgerEvent.seq))
        ).all()
        return [
            {"chain": row.case, "type": row.type}
            | {
                f.name: json.loads(f.value)
                for f in session.scalars(
                    select(LedgerField).where(col(LedgerField.eid) == row.eid, col(LedgerField.sealed).is_(False))
                )
            }
            for row in rows
        ]


# --- the quota ------------------------------------------------------------------------------------------


def test_beyond_the_quota_an_account_opens_only_after_a_step_up_and_oversight_is_told(
    browse: Browse, world: World, step_up: Callable[[], None]
) -> None:
    browser = browse("screener")
    cases = [a_case(world) for _ in range(QUOTA + 1)]
    assert [open_account(browser, case).status for case in cases] == [200] * QUOTA + [303]
    refused = open_account(browser, cases[-1])
    assert ACCOUNT not in refused.html
    assert refused.headers["location"].startswith("/step-up?")
    assert "Nobody." in browse("oversight").open("/oversight").text

    step_up()
    page = open_account(browser, cases[-1])

    assert ACCOUNT in page.html
    assert "Read beyond the quota of a day" in page.text
    (told,) = events(world, "content:quota:exceeded")
    assert (told["opened"], told["quota"]) == (QUOTA + 1, QUOTA)
    assert "Sok Dara screener 1 today 14:21" in browse("oversight").open("/oversight").text


def test_a_day_later_the_quota_is_whole_again_and_not_before(browse: Browse, world: World, clock: Clockwork) -> None:
    browser = browse("screener")
    for _ in range(QUOTA):
        assert open_account(browser, a_case(world)).status == 200
    clock.pass_by(hours=23, minutes=59)
    assert open_account(browse("screener"), a_case(world)).status == 303
    clock.pass_by(minutes=1)
    assert open_account(browse("screener"), a_case(world)).status == 200


def test_the_quota_is_each_persons_own(browse: Browse, world: World) -> None:
    case = a_case(world)
    for _ in range(QUOTA):
        open_account(browse("screener"), case)

    assert open_account(browse("screener"), case).status == 303
    assert open_account(browse("screener-2"), case).status == 200


def test_a_step_up_that_is_over_counts_no_more(
    browse: Browse, world: World, clock: Clockwork, step_up: Callable[[], None]
) -> None:
    browser = browse("screener")
    step_up()
    for _ in range(QUOTA + 1):
        assert open_account(browser, a_case(world)).status == 200
    clock.pass_by(minutes=5)

    assert open_account(browser, a_case(world)).status == 303


def test_what_was_not_shown_is_not_counted(browse: Browse, world: World) -> None:
    browser = browse("screener")
    page = browser.open(f"/cases/{a_case(world)}")
    with world.sessions.writing.begin() as connection:
        connection.execute(text("ALTER TABLE ledger_pending RENAME TO gone"))
    assert browser.submit(page, "/open", reason="screening").status == 503
    with world.sessions.writing.begin() as connection:
        connection.execute(text("ALTER TABLE gone RENAME TO ledger_pending"))

    with world.sessions.read() as session:
        assert session.scalars(select(Reading)).all() == []


# --- refusals -------------------------------------------------------------------------------------------


def test_a_refused_read_is_an_event_that_does_not_tell_hidden_from_unknown(browse: Browse, world: World) -> None:
    hidden, unknown = a_case(world, unit="kandal"), uuid4()
    browser = browse("investigator")
    token = browser.open("/queue").form("/sign-out").fields["t"]

    for case in (hidden, unknown):
        browser.open(f"/cases/{case}")
        browser.send(f"/cases/{case}/open", {"t": token, "reason": "owner"})

    told = events(world, "content:access:denied")
    member = world.people["investigator"][0]
    assert [(one["case"], one["why"]) for one in told] == [
        (c.hex, "NoSuchCase") for c in (hidden, unknown) for _ in "ab"
    ]
    assert {one["chain"] for one in told} == {member.chain}
    assert {one["who"] for one in told} == {member.id.hex}


def test_an_administrator_who_asks_for_a_case_leaves_the_same_event(browse: Browse, world: World) -> None:
    case, browser = a_case(world), browse("admin")
    token = browser.open("/queue").form("/sign-out").fields["t"]

    assert browser.open(f"/cases/{case}").status == 404
    assert browser.send(f"/cases/{case}/open", {"t": token, "reason": "oversight"}).status == 404

    told = events(world, "content:access:denied")
    assert [(one["case"], one["why"]) for one in told] == [(case.hex, "NoSuchCase")] * 2
    assert {one["who"] for one in told} == {world.people["admin"][0].id.hex}


def test_a_refusal_that_cannot_be_written_shows_nothing_all_the_same(browse: Browse, world: World) -> None:
    case, browser = a_case(world, unit="kandal"), browse("investigator")
    with world.sessions.writing.begin() as connection:
        connection.execute(text("ALTER TABLE ledger_pending RENAME TO gone"))

    assert browser.open(f"/cases/{case}").status == 404


TAMPERED = {
    "a swapped envelope": 'UPDATE message SET header = {header}, seal = {seal}, body = {body} WHERE "case" = :case',
    "a swapped body": 'UPDATE message SET body = {body} WHERE "case" = :case',
    "a swapped seal of a message": 'UPDATE message SET seal = {seal} WHERE "case" = :case',
    "a truncated body": 'UPDATE message SET body = substr(body, 1, length(body) - 1) WHERE "case" = :case',
    "an empty body": "UPDATE message SET body = X'' WHERE \"case\" = :case",
    "a swapped seal of the case's key": (
        "UPDATE case_seal SET sealed = (SELECT sealed FROM case_seal WHERE \"case\" = :other AND unit = 'screening')"
        " WHERE \"case\" = :case AND unit = 'screening'"
    ),
    "a planted key of the case": (
        'UPDATE case_key SET public = (SELECT public FROM case_key WHERE "case" = :other) WHERE "case" = :case'
    ),
    "a swapped unit key": (
        "UPDATE unit_grant SET sealed = (SELECT sealed FROM unit_grant WHERE unit = 'integrity')"
        " WHERE unit = 'screening' AND :case <> :other"
    ),
    "a grant of another granter": (
        "UPDATE unit_grant SET signature = (SELECT signature FROM unit_grant WHERE unit = 'integrity')"
        " WHERE unit = 'screening' AND :case <> :other"
    ),
    "a wall that was planted": (
        'INSERT INTO wall (name, "case", exclusion, why, added_at, whom, row_tag) VALUES'
        " (X'01', :case, :other, 'named', '2027-03-09 07:00:00', X'', X'')"
    ),
}


@pytest.mark.parametrize("how", TAMPERED)
def test_what_was_tampered_with_is_refused_with_an_event(browse: Browse, world: World, how: str) -> None:
    case, other = a_case(world), a_case(world, account="Words of another case")
    swapped = {column: f'(SELECT {column} FROM message WHERE "case" = :other)' for column in ("header", "seal", "body")}
    browser = browse("screener")
    assert ACCOUNT in open_account(browser, case).html  # the control: untouched, it opens

    with world.sessions.writing.begin() as connection:
        done = connection.execute(text(TAMPERED[how].format(**swapped)), {"case": case.hex, "other": other.hex})
        assert done.rowcount >= 1
    if how == "a swapped unit key":  # the register of people differs then: nobody but integrity and oversight sees it
        assert browser.open(f"/cases/{case}").status == 404
        return
    page = open_account(browser, case)

    assert page.status == 500
    assert "cannot be trusted" in page.text
    assert ACCOUNT not in page.html
    assert "Words of another case" not in page.html
    assert [(one["case"], one["why"]) for one in events(world, "content:access:denied")] == [(case.hex, "CannotOpen")]


# --- the mark -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lang", ["en", "km"])
def test_every_page_about_cases_says_on_screen_and_on_paper_for_whom_and_when(
    browse: Browse, world: World, lang: str
) -> None:
    case = a_case(world)
    screener, oversight = browse("screener", lang), browse("oversight", lang)
    pages = [screener.open(f"/cases/{case}"), open_account(screener, case), oversight.open("/oversight")]

    for page in pages:
        marks = [given for _, given in page.elements if "mark" in given.get("class", "").split()]
        assert len(marks) == 2
        assert "sheet" in marks[1]["class"]
        assert page.text.count("14:21" if lang == "en" else "១៤:២១") >= 2
    assert "Printed by Sok Dara, Screening, 9 March 2027, 14:21" in pages[0].text or lang == "km"
    style = screener.client.get("/static/staff.css").text
    assert ".sheet{display:none}" in style.partition("@media print")[0]
    assert ".sheet{display:table-footer-group;" in style.partition("@media print")[2]


# --- files ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "inside", "name"),
    [("account", ACCOUNT, "account.txt"), ("decision", '"ruleset": "kh-hotline-triage"', "decision.json")],
)
def test_a_part_of_a_case_is_taken_out_as_a_file_after_a_step_up_with_its_event(
    browse: Browse, world: World, step_up: Callable[[], None], what: str, inside: str, name: str
) -> None:
    case, browser = a_case(world, record=a_record()), browse("screener")
    page = open_account(browser, case)
    refused = browser.submit(page, f"/{what}")
    assert refused.status == 303
    assert refused.headers["location"].startswith("/step-up?")
    assert events(world, "content:export:made") == []

    step_up()
    taken = browser.submit(page, f"/{what}")

    assert taken.status == 200
    assert inside in taken.html
    assert "Given to Sok Dara, Screening, 9 March 2027, 14:21" in taken.html
    assert taken.headers["content-type"] == "application/octet-stream"
    disposition = taken.headers["content-disposition"]
    assert disposition.startswith('attachment; filename="')
    assert disposition.endswith(f'{name}"')
    assert taken.headers["x-content-type-options"] == "nosniff"
    assert taken.headers["content-security-policy"].endswith("; sandbox")
    assert [one["what"] for one in events(world, "content:export:made")] == [what]
    assert "Taken out as a file" in browser.open(f"/cases/{case}").text


def test_what_one_has_not_opened_is_not_taken_out(browse: Browse, world: World, step_up: Callable[[], None]) -> None:
    case = a_case(world)
    page = open_account(browse("screener"), case)
    step_up()
    other = browse("screener-2")
    token = other.open("/queue").form("/sign-out").fields["t"]

    assert other.send(page.form("/account").action, {"t": token}).status == 403
    assert other.send(f"/downloads/{case}/everything", {"t": token}).status == 404
    assert other.client.get(f"/downloads/{case}/account").status_code in (404, 405)


def test_nothing_is_given_out_while_the_ledger_is_halted_and_accounts_are_read(
    browse: Browse, world: World, step_up: Callable[[], None]
) -> None:
    case, browser = a_case(world), browse("screener")
    page = open_account(browser, case)
    step_up()
    write(world.sessions, lambda tx: sequencer.halt(tx, lambda _: None))

    answer = browser.submit(page, "/account")

    assert answer.status == 503
    assert "the ledger is halted" in answer.text
    assert ACCOUNT not in answer.html
    assert events(world, "content:export:made") == []
    assert ACCOUNT in open_account(browser, case).text


def test_nothing_is_given_out_when_its_event_cannot_be_written(
    browse: Browse, world: World, step_up: Callable[[], None]
) -> None:
    case, browser = a_case(world), browse("screener")
    page = open_account(browser, case)
    step_up()
    with world.sessions.writing.begin() as connection:
        connection.execute(text("ALTER TABLE ledger_pending RENAME TO gone"))

    answer = browser.submit(page, "/account")

    assert answer.status == 503
    assert ACCOUNT not in answer.html


@pytest.mark.parametrize(
    ("given", "safe"),
    [
        ("K7Q4-F2MW-account.txt", "K7Q4-F2MW-account.txt"),
        ("../../etc/passwd", "etc-passwd"),
        ('a"; filename="b.html', "a-filename-b.html"),
        ("line\r\nSet-Cookie: x=1", "line-Set-Cookie-x-1"),
        ("ដំណើររឿង.txt", "txt"),
        ("...", "file"),
        ("x" * 300 + ".pdf", "x" * 76 + ".pdf"),
    ],
)
def test_a_files_name_holds_nothing_that_a_browser_or_a_disk_could_take_for_more(given: str, safe: str) -> None:
    answer = download(given, b"<script>alert(1)</script>")

    assert answer.headers["content-disposition"] == f'attachment; filename="{safe}"'
    assert answer.media_type == downloads.OPAQUE
    assert answer.body == b"<script>alert(1)</script>"
