"""Questions to a tipster with a return code, and a challenge that only oversight ever sees."""

from uuid import UUID

import pytest
from sqlalchemy import select, update

from service import mailbox
from service.db import write
from service.ladder import Watch, climb
from service.models import Case, JobState, Mailbox, OutboxJob, Tip
from service.vault import mailbox as keys
from service.vault.mailbox import Cost, Prepared
from tests.builders import NOW, World
from tests.dashboards.builders import Browser, a_case
from tests.service.sending import DUTY

ADDRESS = keys.address("4071925583640210", bytes(32), Cost(1, 8))
WRONG = "says that something is wrong"


@pytest.fixture
def case(world: World) -> UUID:
    """A case whose tipster has a number."""
    case = a_case(world, also=("siem-reap",))

    def give(tx) -> None:
        tip = tx.scalars(select(Tip.id).where(Tip.case == case)).one()
        row = mailbox.mailbox_row(world.founding.row_key, tip, Prepared(ADDRESS, bytes(32)), NOW)
        tx.insert(Mailbox, [row])

    write(world.sessions, give)
    return case


def browser(desk, world: World, name: str) -> Browser:
    return Browser(desk, world.cookie(name))


def challenge(world: World, case: UUID) -> None:
    def say(tx) -> None:
        tip = tx.scalars(select(Tip.id).where(Tip.case == case)).one()
        mailbox.raise_challenge(tx, world.ledger, tip, NOW)

    write(world.sessions, say)


def opened(world: World) -> mailbox.Opened:
    boxes = mailbox.Mailboxes(world.sessions, None, world.ledger, world.founding.row_key)  # type: ignore[arg-type]
    found = boxes.open(ADDRESS)
    assert found is not None
    return found


def test_a_question_is_asked_from_the_case_and_its_words_are_shown_with_the_account(desk, world, case) -> None:
    screener = browser(desk, world, "screener")
    page = screener.open(f"/cases/{case}")
    assert screener.submit(page, "/questions", words="Is there a sign?").status == 303
    assert opened(world).questions == ((1, "Is there a sign?"),)
    page = screener.open(f"/cases/{case}")
    assert "Is there a sign?" not in page.text
    assert "Question 1" in page.text
    assert "no answer yet" in page.text
    page = screener.submit(page, "/open", reason="screening")
    assert "Is there a sign?" in page.text


def test_a_question_that_tells_too_much_is_refused_in_words(desk, world, case) -> None:
    screener = browser(desk, world, "screener")
    answer = screener.submit(screener.open(f"/cases/{case}"), "/questions", words="How is the child?")
    assert answer.status == 422
    assert "Leave out words that tell what this is about" in answer.text
    assert opened(world).questions == ()


def test_a_case_without_a_number_offers_no_question(desk, world) -> None:
    plain = a_case(world)
    page = browser(desk, world, "screener").open(f"/cases/{plain}")
    assert not page.has_form("/questions")
    assert "Questions to the tipster" not in page.text


def test_only_oversight_sees_a_challenge(desk, world, case) -> None:
    names = ("screener", "investigator", "oversight")
    before = {name: browser(desk, world, name).open(f"/cases/{case}").text for name in names}
    queues = {name: browser(desk, world, name).open("/queue").text for name in names}
    challenge(world, case)
    for name in names:
        page, queue = browser(desk, world, name).open(f"/cases/{case}"), browser(desk, world, name).open("/queue")
        if name == "oversight":
            assert WRONG in page.text
            assert WRONG in queue.text
            assert page.has_form("/challenge")
        else:
            assert page.text == before[name]
            assert queue.text == queues[name]


def test_the_ladder_of_a_challenge_is_hidden_from_the_unit_too(desk, world, case) -> None:
    before = browser(desk, world, "screener").open(f"/cases/{case}").text
    challenge(world, case)
    watch = Watch(world.ledger, world.founding.row_key, world.founding.cards, DUTY)
    assert climb(world.sessions, watch, NOW) == 1
    lost = (
        update(OutboxJob).where(OutboxJob.key.startswith("ring:challenge:")).values(state=JobState.FAILED, done_at=NOW)
    )
    assert write(world.sessions, lambda tx: tx.execute(lost)).rowcount == 1
    assert browser(desk, world, "screener").open(f"/cases/{case}").text == before
    assert "did not arrive" not in browser(desk, world, "screener").open("/queue").text
    page = browser(desk, world, "oversight").open(f"/cases/{case}").text
    assert "Told: Oversight" in page
    assert "Text to people on duty (Oversight): did not arrive" in page


def test_oversight_answers_it_from_the_page(desk, world, case) -> None:
    challenge(world, case)
    overseer = browser(desk, world, "oversight")
    page = overseer.open(f"/cases/{case}")
    assert overseer.submit(page, "/challenge", note="We rang the shelter; all is well.").status == 303
    page = overseer.open(f"/cases/{case}")
    assert not page.has_form("/challenge")
    assert "Oversight has answered" in page.text
    assert "We rang the shelter" not in page.text
    assert WRONG not in overseer.open("/queue").text
    refused = browser(desk, world, "screener").send(f"/cases/{case}/challenge", {"note": "It is all settled."})
    assert refused.status == 403


def test_the_case_stays_what_it_is(desk, world, case) -> None:
    with world.sessions.read() as session:
        version = session.get_one(Case, case).version
    challenge(world, case)
    with world.sessions.read() as session:
        assert session.get_one(Case, case).version == version
