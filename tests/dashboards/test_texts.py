"""What went wrong with a text stands before the people who may see its case, until one of them has seen it."""

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID

import pytest

from service import cases, metrics, outbox
from service.db import write
from service.ledger import sequencer
from service.models import JobState, OutboxJob
from tests.builders import NOW, World
from tests.dashboards.builders import Browser, Clockwork, a_case

Browse = Callable[..., Browser]
LOST = "A text did not arrive, or may not have."
SILENT = "The worker is silent"
STUCK = "Texts to the phones on duty do not go out."


def a_text(world: World, case: UUID, kind: str = outbox.ACKNOWLEDGE, **chosen: Any) -> UUID:
    """An outbox row about a case, in a state of its own."""
    duty = "screening#0" if kind == outbox.RING else None
    row = outbox.job(
        world.founding.row_key,
        kind,
        f"{case.hex}:{len(chosen)}",
        case=case,
        duty=duty,
        language="en",
        now=NOW,
        within=timedelta(hours=1),
    )
    write(world.sessions, lambda tx: tx.add(OutboxJob(**(row | chosen))))
    text: UUID = row["id"]
    return text


def a_worker_lives(world: World, clock: Clockwork) -> None:
    write(world.sessions, partial(metrics.seen, name=metrics.WORKER, at=clock.now))


@pytest.mark.parametrize("state", [JobState.UNKNOWN, JobState.FAILED])
def test_a_text_of_which_nobody_knows_stands_in_the_queue_until_somebody_has_seen_it(
    browse: Browse, world: World, state: JobState
) -> None:
    case = a_case(world)
    a_text(world, case, state=state, done_at=NOW)
    screener = browse("screener")

    queue = screener.open("/queue")
    assert LOST in queue.text
    page = screener.open(queue.link(cases.reference(case)).partition("#")[0])
    assert "Neutral answer to the tipster" in page.text
    form = next(form for form in page.forms if "/texts/" in form.action)
    assert screener.send(form.action, form.fields).status == 303

    assert LOST not in screener.open("/queue").text
    after = screener.open(f"/cases/{case}")
    assert not any("/texts/" in form.action for form in after.forms)
    assert "Seen, a text that went wrong" in after.text


@pytest.mark.parametrize("state", [JobState.DONE, JobState.DROPPED, JobState.WAITING, JobState.CHECKING])
def test_a_text_that_went_well_or_may_yet_do_so_asks_for_nobody(browse: Browse, world: World, state: JobState) -> None:
    case = a_case(world)
    a_text(world, case, state=state)
    screener = browse("screener")

    assert LOST not in screener.open("/queue").text
    page = screener.open(f"/cases/{case}")
    assert "Neutral answer to the tipster" in page.text
    assert not any("/texts/" in form.action for form in page.forms)


def test_nobody_learns_of_a_case_that_does_not_exist_for_them(browse: Browse, world: World) -> None:
    walled = a_case(world, unit="integrity", walled=True)
    text = a_text(world, walled, state=JobState.UNKNOWN)
    a_text(world, walled, outbox.RING, attempts=5)

    for name in ("screener", "investigator"):
        browser = browse(name)
        queue = browser.open("/queue")
        assert LOST not in queue.text
        assert STUCK not in queue.text
        token = next(form.fields["t"] for form in queue.forms if "t" in form.fields)
        assert browser.send(f"/cases/{walled}/texts/{text}", {"t": token}).status == 404
    integrity = browse("integrity").open("/queue")
    assert LOST in integrity.text
    assert STUCK in integrity.text


def test_a_text_of_another_case_is_not_there(browse: Browse, world: World) -> None:
    mine, other = a_case(world), a_case(world)
    text = a_text(world, other, state=JobState.UNKNOWN)
    screener = browse("screener")
    token = next(f.fields["t"] for f in screener.open("/queue").forms if "t" in f.fields)

    assert screener.send(f"/cases/{mine}/texts/{text}", {"t": token}).status == 404
    assert screener.send(f"/cases/{mine}/texts/not-an-id", {"t": token}).status == 404
    assert LOST in screener.open("/queue").text


def test_pages_that_do_not_go_out_are_said_after_three_tries(browse: Browse, world: World) -> None:
    case = a_case(world)
    a_text(world, case, outbox.RING, attempts=2)
    assert STUCK not in browse("screener").open("/queue").text
    a_text(world, case, outbox.RING, attempts=3, key="another")
    assert STUCK in browse("screener").open("/queue").text


def test_a_silent_worker_is_said_and_a_living_one_is_not(browse: Browse, world: World, clock: Clockwork) -> None:
    screener = browse("screener")
    assert f"{SILENT} since the beginning" in screener.open("/queue").text

    a_worker_lives(world, clock)
    assert SILENT not in screener.open("/queue").text

    clock.pass_by(minutes=2)
    assert f"{SILENT} since today 14:21" in screener.open("/queue").text


def test_a_halted_ledger_is_said(browse: Browse, world: World) -> None:
    screener = browse("screener")
    assert "The ledger is halted" not in screener.open("/queue").text
    write(world.sessions, lambda tx: sequencer.halt(tx, lambda _: None))
    assert "The ledger is halted" in screener.open("/queue").text
