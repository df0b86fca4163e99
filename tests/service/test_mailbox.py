"""Mailboxes: found by their code alone, changed only by us, late about the state, and past the unit."""

import asyncio
import random
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import func, select, update

from service import cases, mailbox, reading, staff
from service.db import Sessions, Writer, write
from service.errors import CannotOpen, Forbidden, InvalidForm, NoSuchCase, NotFound, WrongState
from service.ledger.events import SYSTEM, EventType, NewEvent, StateClass
from service.mailbox import Mailboxes, Receipt
from service.models import Case, CaseSeal, Clock, ClockKind, LedgerEvent, Mailbox, Message, Question, State, Tip
from service.vault import boxes
from service.vault import mailbox as keys
from service.vault.mailbox import Address, Cost, Prepared
from tests.builders import NOW, World, a_tip, a_world, the_case
from tests.service.sending import DUTY, Scene

CHEAP = Cost(1, 8)
CODE = "4071925583640210"
PEPPER = bytes(32)
KEY = bytes(range(32))


def prepared(code: str = CODE) -> Prepared:
    """What the child derives of a code, cheaply."""
    return Prepared(keys.address(code, PEPPER, CHEAP), KEY)


@pytest.fixture
def world(sessions: Sessions) -> World:
    return a_world(sessions)


def told(world: World, **changed: Any) -> Case:
    """A tip from the form whose tipster asked for a number, and its case."""
    form: dict[str, Any] = {"channel": "web", "provider": "web", "kind": "form", "sender": None, "mailbox": prepared()}
    [receipt] = world.receive(a_tip(**(form | changed)))
    return the_case(world, receipt.tip)


def boxes_of(world: World, writer: Any = None, **more: Any) -> Mailboxes:
    return Mailboxes(world.sessions, writer, world.ledger, world.founding.row_key, **more)


def the_mailbox(world: World) -> Mailbox:
    with world.sessions.read() as session:
        return session.scalars(select(Mailbox)).one()


def leaves(world: World, case: Case, kind: EventType) -> list[bytes]:
    with world.sessions.read() as session:
        found = select(LedgerEvent.leaf).where(LedgerEvent.case == case.chain, LedgerEvent.type == kind)
        return list(session.scalars(found.order_by(LedgerEvent.seq)).all())


def back(world: World, words: str = "There is a red gate.", **changed: Any) -> UUID:
    """Words that a tipster adds on the return page, and the tip they became part of."""
    form: dict[str, Any] = {"channel": "web", "provider": "web", "kind": "return", "sender": None}
    [receipt] = world.receive(a_tip(words, **(form | {"returning": the_mailbox(world).tip} | changed)))
    return receipt.tip


def close(world: World, case: Case, state: State = State.CLOSED) -> None:
    """Take a case to a state past its table of transitions, which does not go so far yet."""
    event = NewEvent(EventType.CLOCK_MET, NOW, SYSTEM, StateClass.CLOSED)
    write(world.sessions, lambda tx: cases.change(tx, world.ledger, tx.get(Case, case.id), [event], state=state))


# --- the code ---


def test_a_code_opens_its_mailbox_and_shows_how_far_it_is(world: World) -> None:
    case = told(world)
    opened = boxes_of(world).open(prepared().address)
    assert opened is not None
    assert (opened.status, opened.since, opened.questions, opened.grade) == ("received", NOW.date(), (), None)
    with world.sessions.read() as session:
        assert session.get_one(Tip, opened.tip).case == case.id


def test_five_hundred_other_codes_open_nothing(world: World) -> None:
    told(world)
    rng, find = random.Random(5), boxes_of(world).open
    assert [find(keys.address(f"{rng.randrange(10**16):016d}", PEPPER, Cost(1, 8))) for _ in range(500)] == [None] * 500
    assert find(keys.address(CODE, bytes([1]) * 32, CHEAP)) is None  # without the pepper the right code is no better
    assert find(prepared().address) is not None


def test_the_leaf_of_the_account_carries_the_first_tag_and_no_other_does(world: World) -> None:
    case = told(world)
    without = told(world, mailbox=None)
    assert [leaf[72:104] for leaf in leaves(world, case, EventType.TIP_SEALED)] == [keys.tag(KEY, 0)]
    assert leaves(world, without, EventType.TIP_SEALED)[0][72:104] != keys.tag(KEY, 0)


def test_the_code_and_what_opens_its_mailbox_stand_in_no_table(world: World) -> None:
    told(world)
    back(world)
    with world.sessions.read() as session:
        rows = [
            str(row)
            for table in (Mailbox, Message, Tip, LedgerEvent)
            for row in session.execute(select(*table.__table__.c))  # type: ignore[attr-defined]
        ]
    everything = "".join(rows)
    secrets = [CODE, keys.grouped(CODE), repr(prepared().address.kek)[2:-1], repr(PEPPER)[2:-1]]
    assert [secret for secret in secrets if secret in everything] == []
    assert repr(prepared().address.locator) in everything  # the control: this is how the bytes of a row look


def test_the_best_receipt_of_the_account_is_given(world: World) -> None:
    case = told(world)
    asked: list[str] = []

    def receipts(_session: Any, eid: str) -> Receipt:
        asked.append(eid)
        return Receipt("integrated", b"c2sp.org/tlog-proof@v1\n")

    found = boxes_of(world, receipts=receipts)
    opened = found.open(prepared().address)
    assert opened is not None
    assert opened.grade == "integrated"
    assert found.receipt(opened.mailbox) == Receipt("integrated", b"c2sp.org/tlog-proof@v1\n")
    with world.sessions.read() as session:
        [eid] = session.scalars(
            select(LedgerEvent.eid).where(LedgerEvent.case == case.chain, LedgerEvent.type == EventType.TIP_SEALED)
        ).all()
    assert set(asked) == {eid}
    assert found.receipt(UUID(int=1)) is None


# --- what the database's administrator may do ---


PLANTED = {
    "public": lambda: boxes.keypair()[1],
    "tag_key": lambda: bytes(32),
    "wrapped": lambda: bytes(72),
    "status": lambda: "finished",
    "number": lambda: 7,
    "since": lambda: NOW.date() + timedelta(days=1),
}


@pytest.mark.parametrize("column", PLANTED)
def test_a_changed_row_is_refused_by_everybody(world: World, column: str) -> None:
    case = told(world)
    row_key = world.founding.row_key
    write(world.sessions, lambda tx: tx.execute(update(Mailbox).values({column: PLANTED[column]()})))
    assert boxes_of(world).open(prepared().address) is None
    viewer = world.signed_in("screener").viewer
    with pytest.raises(CannotOpen):
        ask(world, case, "Is there a sign?", viewer)
    close(world, case, State.WATCH)
    assert mailbox.show_changes(world.sessions, world.ledger, row_key, NOW) == 0


def test_without_its_tag_a_planted_key_would_be_taken(world: World) -> None:
    case = told(world)
    private, public = boxes.keypair()
    row = the_mailbox(world).model_dump() | {"public": public}
    tag = boxes.row_tag(world.founding.row_key, mailbox._fixed(Mailbox, row))
    write(world.sessions, lambda tx: tx.execute(update(Mailbox).values(public=public, row_tag=tag)))
    ask(world, case, "Is there a sign?")
    with world.sessions.read() as session:
        question = session.scalars(select(Question)).one()
    assert boxes.unseal(private, question.box_header, question.box_seal)


def test_a_planted_question_is_not_shown(world: World) -> None:
    case = told(world)
    ask(world, case, "Is there a sign?")
    ask(world, case, "Is there a number?")
    write(world.sessions, lambda tx: tx.execute(update(Question).where(Question.number == 1).values(asked_at=NOW)))
    write(world.sessions, lambda tx: tx.execute(update(Question).where(Question.number == 2).values(row_tag=bytes(32))))
    opened = boxes_of(world).open(prepared().address)
    assert opened is not None
    assert [words for _, words in opened.questions] == ["Is there a sign?"]


# --- coming back ---


def test_what_is_added_joins_the_case_and_is_sealed_to_it_alone(world: World) -> None:
    case = told(world)
    assert back(world, delivery="d" * 32) == the_mailbox(world).tip
    assert back(world, delivery="d" * 32) == the_mailbox(world).tip  # sent twice it is stored once
    who = world.signed_in("screener")
    with world.sessions.read() as session:
        privates = staff.open_keys(session, world.founding.row_key, world.founding.cards, who, case).privates
        opened = reading.decrypt(session, session.get_one(Case, case.id), privates)
    assert [account.text for account in opened.accounts][1:] == ["There is a red gate."]
    assert len(leaves(world, case, EventType.TIP_MESSAGE)) == 1


def test_what_is_added_can_raise_the_level(world: World) -> None:
    case = told(world, text="There is a child at the guesthouse near the market.")
    back(world, "A girl is locked in a room there now, please help her.")
    assert the_case(world, the_mailbox(world).tip).level == "P1"
    assert case.level != "P1"


@pytest.mark.parametrize("walled", [False, True])
def test_after_closure_the_words_become_a_new_tip_behind_the_same_wall(world: World, walled: bool) -> None:
    words = "The police chief takes money from the bar." if walled else "A child at the guesthouse."
    case = told(world, text=words)
    assert case.walled == walled
    close(world, case)
    new = the_case(world, back(world, "It has begun again."))
    assert new.id != case.id
    assert (new.state, new.walled) == (State.OPEN, walled)
    with world.sessions.read() as session:
        readers = set(session.scalars(select(CaseSeal.unit).where(CaseSeal.case == new.id)).all())
        [mark] = session.scalars(select(Message.mark).where(Message.case == new.id)).all()
    assert ("screening" in readers) == (not walled)
    assert mark == f"after:{cases.reference(case.id)}"


# --- what is shown, and when ---


def show(world: World, at: Any, hours: float = 20) -> int:
    wait = timedelta(hours=hours)
    return mailbox.show_changes(world.sessions, world.ledger, world.founding.row_key, at, draw=lambda: wait)


def test_a_change_is_shown_late_once_and_with_its_tag(world: World) -> None:
    case = told(world)
    assert show(world, NOW) == 0
    close(world, case, State.IN_ACTION)
    assert show(world, NOW) == 1
    assert show(world, NOW + timedelta(hours=19)) == 0
    assert the_mailbox(world).status == "received"
    assert leaves(world, case, EventType.STATUS_CHANGED) == []
    for _ in range(3):
        show(world, NOW + timedelta(hours=20))
    opened = boxes_of(world).open(prepared().address)
    assert opened is not None
    assert (opened.status, opened.since) == ("action", NOW.date())
    assert [leaf[72:104] for leaf in leaves(world, case, EventType.STATUS_CHANGED)] == [keys.tag(KEY, 1)]


def test_the_next_change_waits_for_its_own_time(world: World) -> None:
    case = told(world)
    close(world, case, State.IN_ACTION)
    show(world, NOW)
    close(world, case, State.IN_COURT)
    show(world, NOW + timedelta(hours=20))
    assert the_mailbox(world).status == "action"
    show(world, NOW + timedelta(hours=21))
    show(world, NOW + timedelta(hours=40))
    assert the_mailbox(world).status == "action"
    show(world, NOW + timedelta(hours=41))
    assert the_mailbox(world).status == "court"
    assert [leaf[72:104] for leaf in leaves(world, case, EventType.STATUS_CHANGED)] == [
        keys.tag(KEY, n) for n in (1, 2)
    ]


def test_what_was_taken_back_before_anybody_saw_it_is_never_shown(world: World) -> None:
    case = told(world)
    close(world, case, State.IN_ACTION)
    show(world, NOW)
    close(world, case, State.OPEN)
    show(world, NOW + timedelta(hours=1))
    show(world, NOW + timedelta(hours=30))
    assert the_mailbox(world).status == "received"
    assert leaves(world, case, EventType.STATUS_CHANGED) == []


def test_a_review_shows_what_stood_before_it_and_reading_shows(world: World) -> None:
    assert mailbox.status_of(State.WITHDRAWAL_REVIEW, True) is None
    assert [mailbox.status_of(State.OPEN, read) for read in (False, True)] == ["received", "being_read"]
    assert {mailbox.status_of(state, True) for state in State} <= {None, *mailbox.STATUSES}
    case = told(world)
    viewer = world.signed_in("screener").viewer
    reading.record_opening(
        world.sessions,
        world.ledger,
        world.founding.row_key,
        viewer,
        case.id,
        reason="screening",
        note="",
        allowance=reading.Allowance(1000, False),
        now=NOW,
    )
    show(world, NOW)
    show(world, NOW + timedelta(hours=20))
    assert the_mailbox(world).status == "being_read"


def test_the_delay_is_six_to_forty_eight_hours() -> None:
    drawn = [mailbox.delay() for _ in range(2000)]
    assert timedelta(hours=6) <= min(drawn) < timedelta(hours=8)
    assert timedelta(hours=46) < max(drawn) < timedelta(hours=48)


# --- something is wrong ---


def challenge(world: World) -> None:
    writer = Writer(world.sessions)
    try:
        asyncio.run(boxes_of(world, writer).challenge(the_mailbox(world).tip, NOW))
    finally:
        writer.close()


def test_a_challenge_rings_oversight_and_never_the_unit(world: World) -> None:
    scene = Scene(world)
    case = told(world, received_at=NOW)
    scene.rung()
    challenge(world)
    challenge(world)
    assert scene.rung() == sorted(DUTY["oversight"])
    assert len(leaves(world, case, EventType.CHALLENGE_RAISED)) == 1
    now = the_case(world, the_mailbox(world).tip)
    assert (now.due_at, now.due_kind) == (case.due_at, case.due_kind)
    others = update(Clock).where(Clock.kind != ClockKind.CHALLENGE)
    write(world.sessions, lambda tx: tx.execute(others.values(met_at=NOW)))
    scene.later(days=9)
    assert scene.rung() == []
    scene.later(days=1)
    assert scene.rung() == sorted(DUTY["oversight"] + DUTY["oversight-2"])


def test_a_challenge_hides_from_deadlines_and_does_not_stop_a_claim(world: World) -> None:
    case = told(world)
    owner = world.signed_in("screener")
    challenge(world)
    with world.sessions.read() as session:
        clock = session.scalars(select(Clock).where(Clock.kind == ClockKind.CHALLENGE)).one()
        assert clock.due_at == NOW.replace(second=0) + timedelta(days=10)
        cases.unmoved(session, case, case.version)
        assert mailbox.challenged(session, owner.viewer) == {}
        assert set(mailbox.challenged(session, world.signed_in("oversight").viewer)) == {case.id}


def test_oversight_answers_once_and_nobody_else_can(world: World) -> None:
    case = told(world)
    challenge(world)

    def answer(name: str, note: str = "We rang the shelter.") -> None:
        viewer, row_key = world.signed_in(name).viewer, world.founding.row_key
        write(
            world.sessions,
            lambda tx: mailbox.answer_challenge(tx, world.ledger, row_key, viewer, case.id, note, NOW),
        )

    with pytest.raises(Forbidden):
        answer("screener")
    with pytest.raises(NoSuchCase):
        answer("elsewhere")
    with pytest.raises(InvalidForm):
        answer("oversight", "  ")
    answer("oversight")
    with pytest.raises(WrongState):
        answer("oversight")
    assert len(leaves(world, case, EventType.CHALLENGE_ANSWERED)) == 1
    challenge(world)  # what is wrong again is said again
    assert len(leaves(world, case, EventType.CHALLENGE_RAISED)) == 2


# --- questions ---


def ask(world: World, case: Case, words: str, viewer: Any = None, box: UUID | None = None) -> None:
    viewer = viewer or world.signed_in("screener").viewer
    box, row_key = box or the_mailbox(world).id, world.founding.row_key
    write(world.sessions, lambda tx: mailbox.ask(tx, world.ledger, row_key, viewer, case.id, box, words, NOW))


def test_a_question_opens_with_the_code_and_with_the_case_and_goes_when_answered(world: World) -> None:
    case = told(world)
    ask(world, case, "Is there a sign near the gate?")
    ask(world, case, "តើមានស្លាកទេ?")
    opened = boxes_of(world).open(prepared().address)
    assert opened is not None
    assert opened.questions == ((1, "Is there a sign near the gate?"), (2, "តើមានស្លាកទេ?"))
    back(world, "Yes, a blue one.", context={"form": "return", "token": "good", "answer": "1"})
    opened = boxes_of(world).open(prepared().address)
    assert opened is not None
    assert opened.questions == ((2, "តើមានស្លាកទេ?"),)
    who, row_key = world.signed_in("oversight"), world.founding.row_key
    with world.sessions.read() as session:
        privates = staff.open_keys(session, row_key, world.founding.cards, who, case).privates
        seen = mailbox.asked(session, row_key, case, privates)
        sealed = mailbox.asked(session, row_key, case, {})
    assert [(q.number, q.words, q.answered) for q in seen] == [
        (1, "Is there a sign near the gate?", True),
        (2, "តើមានស្លាកទេ?", False),
    ]
    assert [question.words for question in sealed] == [None, None]


@pytest.mark.parametrize(
    "words",
    [
        "",
        "  ",
        "x" * 301,
        "How is the child?",
        "តើក្មេងសុខសប្បាយទេ?",
        "Did the police come?",
        "Call 012 345 678",
        "See www.example",
    ],
)
def test_a_question_that_says_too_much_is_refused_and_changes_nothing(world: World, words: str) -> None:
    case = told(world)
    with pytest.raises(InvalidForm):
        ask(world, case, words)
    with world.sessions.read() as session:
        assert session.scalar(select(func.count()).select_from(Question)) == 0
    assert leaves(world, case, EventType.ASKS_SENT) == []


@pytest.mark.parametrize(
    "words", ["Is there a sign?", "At what hours may we write?", "តើមានលេខផ្ទះទេ?", "Which floor, 2 or 3?"]
)
def test_a_neutral_question_is_taken(words: str) -> None:
    assert mailbox.not_neutral(words) is None


def test_who_does_not_hold_the_case_asks_nothing_and_three_questions_are_enough(world: World) -> None:
    case = told(world)
    other = told(world, mailbox=None)
    with pytest.raises(NoSuchCase):
        ask(world, case, "Is there a sign?", world.signed_in("elsewhere").viewer)
    with pytest.raises(NotFound):
        ask(world, other, "Is there a sign?")
    for _ in range(3):
        ask(world, case, "Is there a sign?")
    with pytest.raises(WrongState):
        ask(world, case, "Is there a sign?")


def test_the_address_of_one_mailbox_with_the_key_of_another_opens_nothing(world: World) -> None:
    told(world)
    other = keys.address("3141592653589795", PEPPER, CHEAP)
    assert boxes_of(world).open(Address(prepared().address.locator, other.kek)) is None
