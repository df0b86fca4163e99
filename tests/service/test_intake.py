"""From what a channel hands over to a sealed case with its history."""

import contextlib
import json
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import func, select, text, update

from service import reading, staff
from service.db import Sessions, Writer, write
from service.draft import storable
from service.errors import CannotOpen
from service.intake import Pepper
from service.models import (
    Case,
    CaseDecision,
    CaseKey,
    CaseSeal,
    Channel,
    Clock,
    Contact,
    LedgerEvent,
    LedgerHead,
    LedgerPending,
    Message,
    OutboxJob,
    Tip,
)
from service.vault import boxes
from service.vault.envelope import Envelope, open_words
from service.vault.members import open_case_key
from service.vault.relaying import open_contact
from tests.builders import NOW, World, a_number, a_tip, a_world, the_case
from tests.service.test_events import stored

LOCKED_IN = "A girl is locked in a room at the guesthouse now."
POLICE = "The police chief took money from the family so that they stop the complaint about the girl."


@pytest.fixture
def world(sessions: Sessions) -> World:
    return a_world(sessions)


def count(world: World, table: Any) -> int:
    with world.sessions.read() as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


def accounts(world: World, name: str, tip: Any) -> list[str]:
    """What a person reads of a tip's case."""
    who = world.signed_in(name)
    case = the_case(world, tip)
    with world.sessions.read() as session:
        opened = staff.open_keys(session, world.founding.row_key, world.founding.cards, who, case)
        return [account.text for account in reading.decrypt(session, case, opened.privates).accounts]


def test_a_tip_becomes_a_sealed_case_with_clocks_history_and_outbox(world: World) -> None:
    [receipt] = world.receive(a_tip(LOCKED_IN))

    case = the_case(world, receipt.tip)
    assert (receipt.level, case.level, case.state, case.walled) == ("P1", "P1", "open", False)
    assert (case.unit, case.oversight) == ("screening", "oversight")
    assert "confinement" in json.loads(case.flags)
    assert case.due_at == NOW.replace(second=0) + timedelta(minutes=15)
    assert [e.type for e in stored(world.sessions, case.chain)] == [
        "case:file:opened",
        "tip:account:sealed",
        "triage:decision:made",
    ]
    with world.sessions.read() as session:
        clocks = {c.kind: c.due_at - NOW.replace(second=0) for c in session.scalars(select(Clock)).all()}
        jobs = {job.kind for job in session.scalars(select(OutboxJob)).all()}
        units = set(session.scalars(select(CaseSeal.unit)).all())
    assert clocks == {"claim": timedelta(minutes=15), "act": timedelta(hours=1)}
    assert jobs == {"acknowledge", "page"}
    assert units == {"screening", "oversight"}
    assert accounts(world, "screener", receipt.tip) == [LOCKED_IN]
    assert accounts(world, "oversight", receipt.tip) == [LOCKED_IN]


def test_a_receipt_time_is_the_hour_in_the_tip_and_the_minute_in_clocks(world: World) -> None:
    [receipt] = world.receive(a_tip())
    with world.sessions.read() as session:
        tip = session.get(Tip, receipt.tip)
        assert tip is not None
        assert tip.received_hour == NOW.replace(minute=0, second=0)
        assert all(c.due_at.second == 0 for c in session.scalars(select(Clock)).all())
        assert all(e.at.second == 0 for e in session.scalars(select(LedgerEvent)).all() if e.type.startswith("tip:"))


def test_a_message_delivered_twice_is_stored_once(world: World) -> None:
    tip = a_tip(LOCKED_IN)
    first, second, third = world.receive(tip, tip, tip)

    assert (first.repeated, second.repeated, third.repeated) == (False, True, True)
    assert first.tip == second.tip == third.tip
    assert [count(world, t) for t in (Case, Tip, Message, CaseDecision, Contact)] == [1, 1, 1, 1, 1]


def test_a_later_text_of_the_same_number_joins_the_open_tip(world: World) -> None:
    first, second, other = world.receive(
        a_tip("Please look at the guesthouse."), a_tip(LOCKED_IN), a_tip(LOCKED_IN, sender=a_number())
    )

    assert first.tip == second.tip != other.tip
    assert accounts(world, "screener", first.tip) == ["Please look at the guesthouse.", LOCKED_IN]
    case = the_case(world, first.tip)
    assert [e.type for e in stored(world.sessions, case.chain)][3:] == [
        "tip:message:received",
        "triage:decision:made",
        "triage:level:raised",
    ]


def test_a_rise_applies_itself_and_brings_deadlines_forward(world: World) -> None:
    [first] = world.receive(a_tip("Please look at the guesthouse.", received_at=NOW - timedelta(hours=2)))
    before = the_case(world, first.tip)
    world.receive(a_tip(LOCKED_IN))

    case = the_case(world, first.tip)
    assert before.level > case.level == "P1"
    assert case.due_at == NOW.replace(second=0) + timedelta(minutes=15) < before.due_at
    with world.sessions.read() as session:
        assert "page" in set(session.scalars(select(OutboxJob.kind)).all())


def test_a_fall_changes_nothing(world: World) -> None:
    first, _ = world.receive(a_tip(LOCKED_IN), a_tip("Thank you for your help."))
    assert the_case(world, first.tip).level == "P1"


def test_hidden_callers_do_not_share_a_tip(world: World) -> None:
    first, second = world.receive(a_tip(sender=None), a_tip(sender=None))
    assert first.tip != second.tip
    assert count(world, Contact) == 0


def test_a_tip_that_names_an_official_goes_to_integrity_and_oversight_only(world: World) -> None:
    [receipt] = world.receive(a_tip(POLICE))

    case = the_case(world, receipt.tip)
    assert (case.walled, case.unit) == (True, "integrity")
    assert (case.flags, case.province, case.venue, case.flag_rank, case.age_rank) == (None, None, None, 7, 99)
    with world.sessions.read() as session:
        assert set(session.scalars(select(CaseSeal.unit)).all()) == {"integrity", "oversight"}
        decision = session.scalars(select(CaseDecision)).one()
    assert decision.record is None
    assert b"R014" not in (decision.body or b"")
    assert accounts(world, "integrity", receipt.tip) == [POLICE]
    from service.errors import NoSuchCase

    with pytest.raises(NoSuchCase):
        accounts(world, "screener", receipt.tip)


def test_a_later_message_that_names_an_official_raises_the_wall(world: World) -> None:
    [first] = world.receive(a_tip(LOCKED_IN))
    before = the_case(world, first.tip)
    world.receive(a_tip(POLICE))

    case = the_case(world, first.tip)
    assert (case.walled, case.unit, case.flags, case.generation) == (True, "integrity", None, before.generation + 1)
    assert case.level == "P1"
    with world.sessions.read() as session:
        assert set(session.scalars(select(CaseSeal.unit).where(CaseSeal.generation == 2)).all()) == {
            "integrity",
            "oversight",
        }
        assert set(session.scalars(select(CaseSeal.unit)).all()) == {"integrity", "oversight"}
        assert session.scalars(select(CaseDecision.record)).all() == [None, None]
    assert accounts(world, "integrity", first.tip) == [POLICE], "it holds the key of what came since"
    assert accounts(world, "oversight", first.tip) == [LOCKED_IN, POLICE], "and can hand on the older one"
    assert "case:wall:raised" in [e.type for e in stored(world.sessions, case.chain)]


def test_a_message_behind_the_wall_is_decided_alone_and_never_lowers(world: World) -> None:
    first, _, _ = world.receive(a_tip(POLICE), a_tip("Thank you for your help."), a_tip(LOCKED_IN))
    case = the_case(world, first.tip)
    assert (case.level, case.walled, case.decision) == ("P1", True, 3)
    assert len(accounts(world, "integrity", first.tip)) == 3


def test_a_number_is_sealed_to_the_relay_and_found_by_a_keyed_name(world: World) -> None:
    number = a_number()
    world.receive(a_tip(sender=number))
    with world.sessions.read() as session:
        contact = session.scalars(select(Contact)).one()
    assert contact.pseudonym == boxes.phone_name(world.founding.phone_pepper, number)
    opened = open_contact(
        world.founding.relay_private, 1, contact.id, contact.key_sealed or b"", contact.number_sealed or b""
    )
    assert opened == number


def test_a_number_named_under_the_last_pepper_still_finds_its_tip(world: World) -> None:
    [first] = world.receive(a_tip())
    peppers = [Pepper(2, bytes(32)), Pepper(1, world.founding.phone_pepper)]
    [second] = world.receive(a_tip(LOCKED_IN), peppers=peppers)
    assert first.tip == second.tip


def test_a_number_whose_case_is_closed_begins_a_new_tip_with_the_same_contact(world: World) -> None:
    from service.cases import change
    from service.ledger.events import SYSTEM, EventType, NewEvent, StateClass

    [first] = world.receive(a_tip())
    case = the_case(world, first.tip)
    event = NewEvent(EventType.CLOCK_MET, NOW, SYSTEM, StateClass.CLOSED)
    write(world.sessions, lambda tx: change(tx, world.ledger, tx.get(Case, case.id), [event], state="closed"))

    second, third = world.receive(a_tip("Please look again."), a_tip("And here is more."))

    assert first.tip != second.tip == third.tip
    assert count(world, Contact) == 1


def plant_case_key(world: World) -> bytes:
    """Put a key of one's own in place of the case's, as the database's administrator could; return its private half."""
    private, planted = boxes.keypair()
    write(world.sessions, lambda tx: tx.execute(text("UPDATE case_key SET public = :p"), {"p": planted}))
    return private


def opened_with(world: World, private: bytes) -> list[str]:
    """Everything that a case's private key opens."""
    words = []
    with world.sessions.read() as session:
        for message in session.scalars(select(Message)).all():
            with contextlib.suppress(CannotOpen):
                words.append(open_words(private, Envelope(message.header, message.seal, message.body)))
    return words


def test_a_number_typed_into_the_form_joins_nothing_and_takes_nothing_over(world: World) -> None:
    """Whoever knows a tipster's number must not be able to write into its tip, or to draw its next text away."""
    [sent] = world.receive(a_tip(LOCKED_IN))
    [typed] = world.receive(a_tip("Nothing happened.", channel=Channel.WEB, provider="web", kind="form"))
    [later] = world.receive(a_tip("They are still there."))

    assert sent.tip == later.tip != typed.tip
    assert accounts(world, "screener", sent.tip) == [LOCKED_IN, "They are still there."]
    assert accounts(world, "screener", typed.tip) == ["Nothing happened."]
    assert count(world, Contact) == 1


def test_a_decision_that_cannot_be_read_loses_no_message(world: World) -> None:
    [first] = world.receive(a_tip(LOCKED_IN))
    write(world.sessions, lambda tx: tx.execute(update(CaseDecision).values(record=b'{"facts_schema": "facts-0"}')))
    world.receive(a_tip("They are still there."))
    assert accounts(world, "screener", first.tip) == [LOCKED_IN, "They are still there."]
    assert the_case(world, first.tip).level == "P1"


def test_a_planted_case_key_gets_no_later_message_and_none_is_lost(world: World) -> None:
    [first] = world.receive(a_tip())
    private = plant_case_key(world)

    [second] = world.receive(a_tip("A later message."))

    assert opened_with(world, private) == []
    assert first.tip != second.tip
    assert accounts(world, "screener", second.tip) == ["A later message."]


def test_without_the_row_tag_the_planted_key_gets_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control of the test above."""
    world.receive(a_tip())
    private = plant_case_key(world)
    monkeypatch.setattr(boxes, "check_row_tag", lambda *_: None)

    world.receive(a_tip("A later message."))

    assert opened_with(world, private) == ["A later message."]


def test_the_public_process_cannot_open_what_it_sealed(world: World) -> None:
    world.receive(a_tip(LOCKED_IN))
    founding = world.founding
    with world.sessions.read() as session:
        seal = session.scalars(select(CaseSeal).where(CaseSeal.unit == "screening")).one()
        key = session.scalars(select(CaseKey)).one()
        message = session.scalars(select(Message)).one()
    place = (seal.case, 1, "screening", 1, seal.sealed)
    secrets = [founding.row_key, founding.phone_pepper, founding.place_key, founding.sketch_key]
    held = [*secrets, founding.relay.public, key.public]
    for secret in held:
        with pytest.raises(CannotOpen):
            open_case_key(secret, *place, case_public=key.public)
        with pytest.raises(CannotOpen):
            open_words(secret, Envelope(message.header, message.seal, message.body))

    private = open_case_key(founding.unit_privates["screening"], *place, case_public=key.public)
    assert open_words(private, Envelope(message.header, message.seal, message.body)) == LOCKED_IN


@pytest.mark.parametrize("words", ["", "ជួយ", "x" * 40_000, "\x00\ud800ok", "🙏" * 20_000])
def test_any_words_are_stored_as_they_came(world: World, words: str) -> None:
    [receipt] = world.receive(a_tip(words))
    assert accounts(world, "screener", receipt.tip) == [storable(words)]


def test_a_fault_in_the_rules_is_p1_and_the_tip_is_kept(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from service.triage import assessment

    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(assessment.engine, "decide", fail)
    [receipt] = world.receive(a_tip("Thank you for your help."))

    assert receipt.level == "P1"
    case = the_case(world, receipt.tip)
    assert [e.type for e in stored(world.sessions, case.chain)][2] == "triage:engine:failed"
    with world.sessions.read() as session:
        assert "page" in set(session.scalars(select(OutboxJob.kind)).all())


def test_nothing_is_stored_when_one_row_cannot_be(world: World) -> None:
    """Both, or neither: the tip and its history."""
    before = [count(world, t) for t in (LedgerHead, LedgerEvent, LedgerPending)]
    write(
        world.sessions,
        lambda tx: tx.execute(text("ALTER TABLE outbox RENAME TO outbox_gone")),
    )
    from service.errors import StorageUnavailable

    with pytest.raises(StorageUnavailable):
        world.receive(a_tip(LOCKED_IN))

    assert [count(world, t) for t in (Case, Tip, Message, Contact)] == [0, 0, 0, 0]
    assert [count(world, t) for t in (LedgerHead, LedgerEvent, LedgerPending)] == before


def test_many_first_texts_of_one_number_at_once_make_one_tip(world: World) -> None:
    import asyncio

    number, writer = a_number(), Writer(world.sessions)

    async def burst() -> list[Any]:
        intake = world.intake(writer)
        tips = [a_tip(f"part {n}", sender=number) for n in range(12)]
        return await asyncio.gather(*(intake.receive(tip) for tip in [*tips, *tips]))

    receipts = asyncio.run(burst())
    writer.close()
    assert len({r.tip for r in receipts}) == 1
    assert count(world, Message) == 12
    assert sorted(accounts(world, "screener", receipts[0].tip)) == sorted(f"part {n}" for n in range(12))
