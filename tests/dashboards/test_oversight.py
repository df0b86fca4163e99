"""Oversight's page: how the log stands, what was missed, and nothing of a case that is hidden from the person."""

import base64
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import text

from dashboards.desk import Desk
from service.cases import reference
from service.config import Settings
from service.db import Tx, open_database, write
from service.ledger import census, sequencer
from service.ledger.events import SYSTEM, EventType, NewEvent, StateClass, append, fixed_chain
from tests.builders import PEOPLE, World, a_world
from tests.dashboards.builders import Browser, Clockwork, Page, a_case, a_desk
from tests.service.ledger.builders import COVER_KEY, Log
from tests.service.ledger.test_tampering import switch_off_triggers

REACHED, WAITS = "Quorum 3 of 4, reached", "Quorum 3 of 4, not reached in the last minutes"


class Watched:
    """A world with its log, and the page of somebody of oversight."""

    def __init__(self, url: str, folder: Path) -> None:
        self.world: World = a_world(open_database(url))
        self.log = Log(self.world.sessions, folder)
        self.clock = Clockwork()
        self.one = self.log.sequencer(now=self.clock)
        self.log.witnesses.clock = self.clock
        self.desk: Desk = a_desk(self.world, self.clock, policy=self.log.policy)

    def publish(self, *away: str) -> None:
        self.log.witnesses.away = {f"{word}.example/w" for word in away}
        self.log.event(at=self.clock.now)
        self.one.round()
        self.one.publish()

    def page(self, name: str = "oversight", lang: str = "en", desk: Desk | None = None) -> Page:
        page = Browser(desk or self.desk, self.world.cookie(name, self.clock.now), lang).open("/oversight")
        assert page.status == 200
        return page

    def administer(self, statement: str) -> None:
        """Do something as the database's administrator."""

        def run(tx: Tx) -> None:
            switch_off_triggers(tx)
            tx.execute(text(statement))

        write(self.world.sessions, run)


@pytest.fixture
def watched(sqlite_url: str, tmp_path: Path) -> Iterator[Watched]:
    made = Watched(sqlite_url, tmp_path / "log")
    yield made
    made.one.step_down()
    made.world.sessions.close()


def test_the_newest_heads_and_each_witness_are_shown(watched: Watched) -> None:
    assert "No head was published yet." in watched.page().text

    watched.publish()

    shown, state = watched.page().text, watched.log.state()
    assert REACHED in shown
    root = base64.b64encode(state.root).decode()
    assert f"Published {state.size} {root[:12]}… under 1 min ago" in shown
    assert f"Witnessed {state.size} {root[:12]}…" in shown
    for word in ("NGO ngo", "COUNCIL council", "UN un", "INTL intl"):
        assert f"{word}.example/w today 14:21, under 1 min ago {state.size} signs" in shown


def test_witnesses_that_fall_silent_are_named_and_what_waits_is_said(watched: Watched) -> None:
    watched.publish()
    watched.clock.pass_by(minutes=9)
    watched.publish("ngo")
    shown = watched.page().text
    assert REACHED in shown  # three of four are enough
    assert "silent for 9 min" in shown
    assert shown.count("signs") == 3

    watched.clock.pass_by(minutes=9)
    watched.publish("ngo", "un")
    shown = watched.page().text
    assert WAITS in shown
    assert "Closing, merging, lowering and narrowing a wall wait; everything else goes on." in shown
    assert ("silent for 18 min" in shown, shown.count("silent for 9 min")) == (True, 1)


def test_a_line_that_somebody_made_up_is_no_signature(watched: Watched) -> None:
    watched.publish()
    watched.administer("UPDATE ledger_cosignature SET line = replace(line, 'A', 'B') WHERE name = 'un.example/w'")

    shown = watched.page().text

    assert "UN un.example/w – – has never signed" in shown
    assert shown.count("signs") == 3


def test_a_head_that_the_log_did_not_sign_is_told(watched: Watched) -> None:
    watched.publish()
    assert "not signed by the log" not in watched.page().text
    size = watched.log.state().size
    watched.administer(f"UPDATE ledger_checkpoint SET note = replace(note, '{size}', '{size + 1}')")

    assert "not signed by the log" in watched.page().text


def test_without_witnesses_the_page_says_what_that_means(watched: Watched) -> None:
    desk = a_desk(watched.world, watched.clock)

    assert "No witnesses are named: nothing is ever witnessed." in watched.page(desk=desk).text


def test_only_the_demo_says_that_its_witnesses_prove_nothing(watched: Watched) -> None:
    assert "prove nothing" not in watched.page().text
    demo = replace(watched.desk, settings=Settings(demo=True))

    said = "Witnesses on one machine prove nothing: whoever holds it holds all their keys."
    assert said in watched.page(desk=demo).text
    assert "មិនបញ្ជាក់អ្វីទេ" in watched.page(desk=demo, lang="km").text


def test_a_halted_log_says_in_red_why_and_what_still_goes_on(watched: Watched) -> None:
    watched.publish()
    assert "halted" not in watched.page().text
    assert REACHED in watched.page().text

    watched.one.halt("witness-ahead")

    page = watched.page()
    assert "The history is halted" in page.text
    assert "witness-ahead" in page.text
    assert "While the history is halted no closure, lowering or merge takes effect." in page.text
    assert REACHED not in page.text
    assert "Goes on: taking reports, reading, raising and every step that protects." in page.text
    assert page.html.index('class="say stop"') < page.html.index('<b class="late">Stopped: taking events')
    assert "ប្រវត្តិត្រូវបានផ្អាក" in watched.page(lang="km").text


def test_what_a_witness_refused_is_listed_and_a_changed_entry_is_told(watched: Watched) -> None:
    refused = NewEvent(
        EventType.WITNESS_REFUSED,
        watched.clock.now,
        SYSTEM,
        StateClass.SYSTEM,
        fields={"witness": "un.example/w", "kind": "<b>fork</b>"},
    )
    write(watched.world.sessions, lambda tx: append(tx, watched.world.ledger, fixed_chain("ledger"), [refused]))

    page = watched.page()
    assert "A witness refused un.example/w <b>fork</b>" in page.text  # as words
    assert "changed since it was written" not in page.text

    watched.administer("UPDATE ledger_field SET value = X'226e676f22' WHERE name = 'witness'")
    assert "A witness refused ngo <b>fork</b> changed since it was written" in watched.page().text


def take(watched: Watched) -> None:
    write(watched.world.sessions, partial(census.take, ledger=watched.world.ledger, now=watched.clock.now))


def test_lists_of_all_cases_are_numbered_daily_and_unchanged(watched: Watched) -> None:
    assert "No list was ever taken." in watched.page().text
    for _ in range(3):
        take(watched)
        watched.clock.pass_by(hours=24)
    shown = watched.page().text
    assert shown.count("none seen here") == 3
    assert "there should be one a day" not in shown

    watched.clock.pass_by(hours=30)
    assert "The newest list is 2 d 6 h old; there should be one a day." in watched.page().text
    take(watched)
    assert "2 d 6 h after the one before" in watched.page().text

    watched.administer(
        "UPDATE ledger_field SET value = X'3131' WHERE name = 'number' AND value = X'34' AND sealed = 0"
    )  # the fourth says that it is number 11
    assert "7 missing before it; 2 d 6 h after the one before; changed since it was taken" in watched.page().text


def test_missed_deadlines_are_those_of_cases_that_exist_for_the_person(watched: Watched) -> None:
    mine = a_case(watched.world, level="P1")
    hidden = a_case(watched.world, level="P1", oversight="oversight-2")
    assert reference(mine) not in watched.page().text

    watched.clock.pass_by(minutes=25)

    page = watched.page()
    assert "P1 now Someone claims it 1 1 10 min" in page.text
    assert reference(mine) in page.text
    assert reference(hidden) not in page.text
    other = watched.page("oversight-2") if "oversight-2" in PEOPLE else None
    assert other is None or reference(hidden) in other.text


def test_what_was_met_late_stays_for_a_week_and_what_is_late_until_it_is_met(watched: Watched) -> None:
    a_case(watched.world, level="P1")
    watched.clock.pass_by(days=20)
    assert "Late now" in watched.page().text

    moment = watched.clock.now
    watched.administer(f"UPDATE clock SET met_at = '{moment:%Y-%m-%d %H:%M:%S.%f}'")
    assert "None." in watched.page().text  # due 20 days ago: told when it was so


@pytest.mark.parametrize("name", ["screener", "oversight"])
def test_a_case_tells_how_far_its_events_are_proven_and_not_where_they_stand(watched: Watched, name: str) -> None:
    case = a_case(watched.world)
    write(watched.world.sessions, lambda tx: sequencer.add_covers(tx, COVER_KEY, 4700))
    watched.publish()
    state, root = watched.log.state(), base64.b64encode(watched.log.state().root).decode()[:12]

    page = Browser(watched.desk, watched.world.cookie(name, watched.clock.now)).open(f"/cases/{case}")

    assert page.text.count("witnessed") >= 4  # three events and what the mark means
    assert "does not fit the log" not in page.text
    assert "Missing here" not in page.text
    for told in (str(state.size), str(state.size - 1), root, "checkpoint"):
        assert told not in page.html
    told = watched.page().html
    assert f"{state.size}</td>" in told
    assert root in told  # the control: this is how they look where they may be told


def test_what_somebody_took_out_of_a_case_shows_on_its_page(watched: Watched) -> None:
    case = a_case(watched.world)
    watched.publish()
    of = "eid IN (SELECT eid FROM ledger_event WHERE type = 'tip:account:sealed')"
    watched.administer(f"DELETE FROM ledger_field WHERE {of}")
    watched.administer(f"DELETE FROM ledger_leaf WHERE {of}")

    def page(lang: str = "en") -> str:
        browser = Browser(watched.desk, watched.world.cookie("screener", watched.clock.now), lang)
        return browser.open(f"/cases/{case}").text

    assert "First account sealed; it never changes the system does not fit the log" in page()
    assert "Missing here" not in page()

    watched.administer("DELETE FROM ledger_event WHERE type = 'tip:account:sealed'")

    assert "Missing here: 1 events. Somebody has taken them out. Tell oversight." in page()
    assert "បាត់នៅទីនេះ៖ ព្រឹត្តិការណ៍ ១" in page("km")
