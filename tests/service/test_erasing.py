"""Erasing against the ledger: it waits while that is halted, proofs stay valid, and nothing erased can be guessed."""

import base64
import json
from collections.abc import Iterable
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlmodel import col

from service import cases, erasing
from service.cases import change
from service.db import open_database, write
from service.errors import LedgerHalted
from service.ledger.events import SYSTEM, EventType, NewEvent, StateClass, commit_field
from service.ledger.verify import Fault, Keys, verify
from service.models import Case, LedgerEvent, LedgerField, State
from tests.builders import NOW, World, a_number, a_tip, a_world, the_case
from tests.service.ledger.builders import COVER_KEY, Log

SAMPLE = [f"+8550000{n:04}" for n in range(10_000)]  # of the Cambodian numbers: those that belong to nobody
SECRET = SAMPLE[7321]
ERASED_AT = NOW + erasing.AFTER


@pytest.fixture
def world(sqlite_url: str) -> World:
    return a_world(open_database(sqlite_url))


def a_closed_case(world: World, value: str = SECRET) -> Case:
    """A closed case, in whose history a number stands in a field of its own."""
    [receipt] = world.receive(a_tip("An account.", sender=a_number()))
    case: Case = the_case(world, receipt.tip)
    told = NewEvent(EventType.FACTS_CONFIRMED, NOW, SYSTEM, StateClass.OPEN, case.due_at, {"value": value})
    closed = NewEvent(EventType.CLOCK_MET, NOW, SYSTEM, StateClass.CLOSED)
    end = partial(change, ledger=world.ledger, events=[told, closed], state=State.CLOSED)
    write(world.sessions, lambda tx: end(tx, case=tx.get_one(Case, case.id)))
    return the_case(world, receipt.tip)


def erase(world: World, case: Case) -> int:
    write(world.sessions, lambda tx: erasing.mark(tx, world.ledger, tx.get_one(Case, case.id), NOW))
    return erasing.erase_due(world.sessions, world.ledger, ERASED_AT)


# --- halted ---


def test_nothing_is_marked_or_erased_while_the_ledger_is_halted(world: World, tmp_path: Path) -> None:
    marked, later = a_closed_case(world), a_closed_case(world)
    write(world.sessions, lambda tx: erasing.mark(tx, world.ledger, tx.get_one(Case, marked.id), NOW))
    log = Log(world.sessions, tmp_path, moment=NOW)
    log.sequencer().halt("leaf")
    with pytest.raises(LedgerHalted):
        write(world.sessions, lambda tx: erasing.mark(tx, world.ledger, tx.get_one(Case, later.id), NOW))
    assert erasing.erase_due(world.sessions, world.ledger, ERASED_AT) == 0
    assert guessed(world, marked) == SECRET
    with pytest.raises(LedgerHalted):  # it halted after the round had looked
        write(world.sessions, partial(erasing._erase, ledger=world.ledger, case_id=marked.id, now=ERASED_AT))


def test_what_was_marked_is_erased_once_it_runs_again(world: World) -> None:
    assert erase(world, a_closed_case(world)) == 1


# --- guessing ---


def commitment(world: World, case: Case) -> bytes:
    """C_f of the number, out of the event that stays for ever."""
    with world.sessions.read() as session:
        of_type = (col(LedgerEvent.case) == case.chain, col(LedgerEvent.type) == EventType.FACTS_CONFIRMED)
        body = session.scalars(select(col(LedgerEvent.body)).where(*of_type)).one()
    return base64.b64decode(json.loads(body)["fields"]["value"])


def salts(world: World) -> set[bytes]:
    """What whoever has the whole database would try: every salt and event key that is left, and none at all."""
    with world.sessions.read() as session:
        left = session.scalars(select(col(LedgerField.salt)).where(col(LedgerField.salt).is_not(None))).all()
        keys = session.scalars(select(col(LedgerEvent.k_e))).all()
    return {bytes(salt or b"") for salt in (*left, *keys)} | {b"", bytes(32)}


def look_up(wanted: bytes, tried: Iterable[bytes]) -> str | None:
    """Return the number of the sample that a commitment is of, with one of these salts."""
    found = (number for salt in tried for number in SAMPLE if commit_field(salt, "value", number) == wanted)
    return next(found, None)


def guessed(world: World, case: Case) -> str | None:
    return look_up(commitment(world, case), salts(world))


def test_a_number_is_guessed_from_the_whole_database_before_erasing_and_not_after(world: World) -> None:
    """The controls: with its salt the same attack finds it, and without salts erasing would not help."""
    case = a_closed_case(world)
    assert guessed(world, case) == SECRET
    assert erase(world, case) == 1
    assert guessed(world, case) is None
    assert look_up(commit_field(bytes(32), "value", SECRET), salts(world)) == SECRET


def test_equal_values_have_unequal_commitments(world: World) -> None:
    """Else one open case would tell what an erased one said."""
    erased, still_there = a_closed_case(world), a_closed_case(world)
    erase(world, erased)
    assert guessed(world, still_there) == SECRET
    assert commitment(world, erased) != commitment(world, still_there)
    assert guessed(world, erased) is None


# --- proofs ---


def test_after_erasing_everything_still_verifies_and_a_field_taken_without_an_event_does_not(
    world: World, tmp_path: Path
) -> None:
    case, other = a_closed_case(world), a_closed_case(world)
    erase(world, case)
    log = Log(world.sessions, tmp_path, moment=ERASED_AT + timedelta(seconds=30))
    log.ledger = world.ledger
    one = log.sequencer()
    one.round()

    def checked() -> list[Fault]:
        keys = Keys(one.log, None, COVER_KEY, cases.state_class, [log.signer.head()])
        with world.sessions.read() as session:
            faults = verify(session, keys, log.moment).faults
        return [fault for fault in faults if fault.what != "closure without two organisations"]  # `a_closed_case`

    assert checked() == []
    with world.sessions.writing.begin() as connection:
        told = select(col(LedgerEvent.eid)).where(col(LedgerEvent.case) == other.chain)
        table = LedgerField.__table__  # type: ignore[attr-defined]
        connection.execute(table.delete().where(table.c.eid.in_(told), table.c.name == "value"))
    assert [(fault.what, fault.chain) for fault in checked()] == [("field missing", other.chain)]
