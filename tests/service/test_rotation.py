"""A unit's next key, cards that go forward only, units sealed in and taken away, cases erased for good."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, select, update
from sqlmodel import col

from service import ceremony, erasing, register, rotation, staff
from service.cases import OpenedCase, change
from service.db import Sessions, Tx, open_database, write
from service.errors import BadCards, CannotOpen, Conflict, Forbidden, NoSuchCase, WrongState
from service.ledger.events import SYSTEM, EventType, NewEvent, StateClass, fixed_chain
from service.models import (
    CardsDeck,
    Case,
    CaseDecision,
    CaseKey,
    CaseSeal,
    LedgerEvent,
    LedgerField,
    Member,
    Message,
    State,
    UnitGrant,
    UnitRecovery,
)  # fmt: skip
from service.reading import Allowance, record_opening
from service.rotation import move_cases, progress, propose_generation, request_line, with_cards
from service.vault import boxes, envelope, recovery
from service.vault.cards import Card, Cards, UnitKind, read_cards, write_cards
from service.vault.envelope import Envelope
from service.vault.members import open_case_key, open_grant
from service.widening import take_away, widen
from tests.builders import NOW, PLANS, World, a_number, a_tip, a_world, change_people, the_case
from tests.service.sending import everything_logged

LATER = NOW + timedelta(hours=1)
OFFICERS = ("Chan Thy", "Rin Sothea")


@pytest.fixture
def world(sessions: Sessions) -> World:
    return a_world(sessions)


@pytest.fixture
def sqlite_world(sqlite_url: str) -> World:
    return a_world(open_database(sqlite_url))


def next_cards(world: World, cards: list[Card], serial: int = 2, **changed: Any) -> str:
    """The next cards file, signed by the root."""
    founding = world.founding
    kept = {"relay": founding.cards.relay, "recovery": founding.cards.recovery, "backup": founding.cards.backup}
    root = {"root_name": ceremony.ROOT_NAME, "root_seed": founding.root_seed}
    return write_cards(serial, NOW.date(), with_cards(founding.cards, cards), **(kept | root | changed))


def publish(world: World, text: str, officers: Any = OFFICERS) -> Cards:
    """Take a cards file into use as every process would load it at its next start."""
    root = world.founding.root_vkey

    def use(tx: Tx) -> Cards:
        deck = ceremony.publish(tx, world.ledger, text, root, officers=officers, now=NOW)
        return replace(deck, past=ceremony.past_cards(tx, root))

    return write(world.sessions, use)


def keep_first(world: World) -> None:
    """Keep the founding's cards file, as a real installation does."""
    write(world.sessions, lambda tx: tx.add(CardsDeck(serial=1, note=world.founding.cards_note)))


def propose(world: World, who: str, unit: str) -> Card:
    signed_in = world.signed_in(who)
    row_key, deck = world.founding.row_key, world.founding.cards
    return write(world.sessions, lambda tx: propose_generation(tx, world.ledger, row_key, deck, signed_in, unit, LATER))


def signed_in(world: World, name: str, deck: Cards) -> staff.SignedIn:
    return staff.resume(world.sessions, world.founding.row_key, deck, world.cookie(name), NOW)


def opens(world: World, who: staff.SignedIn, deck: Cards, case: Case) -> OpenedCase:
    with world.sessions.read() as session:
        return staff.open_keys(session, world.founding.row_key, deck, who, session.get_one(Case, case.id))


def tips(world: World, count: int, **changed: Any) -> list[Case]:
    receipts = world.receive(*(a_tip(f"Account {n}.", sender=a_number()) for n in range(count)), **changed)
    return [the_case(world, receipt.tip) for receipt in receipts]


def events(world: World, chain: str) -> list[str]:
    with world.sessions.read() as session:
        found = select(col(LedgerEvent.type)).where(col(LedgerEvent.case) == chain).order_by(col(LedgerEvent.seq))
        return list(session.scalars(found).all())


def leave(world: World, name: str) -> None:
    """Have a member go: account closed, sessions and seals gone at once."""
    member = world.people[name][0].id
    gone = update(Member).where(col(Member.id) == member).values(disabled_at=NOW)
    change_people(world, delete(UnitGrant).where(col(UnitGrant.member) == member), gone)


# --- a unit's next key ---


def unit_key(world: World, name: str, card: Card) -> bytes:
    """What a member's grant of a generation opens, with the member's own key."""
    member, keys = world.people[name]
    with world.sessions.read() as session:
        given = session.get_one(UnitGrant, (card.unit, card.generation, member.id))
        granter = session.get_one(Member, given.granter)
    return open_grant(
        staff.Grant(given.sealed, given.signature), unit=card.unit, generation=card.generation, unit_public=card.public,
        member=member.id.hex, member_private=keys.box, granter=granter.id.hex, granter_public=granter.signing_public,
    )  # fmt: skip


def test_after_a_member_has_left_nothing_opens_with_what_they_took(world: World) -> None:
    keep_first(world)
    cases = tips(world, 3)
    old = world.founding.cards.unit("screening")
    taken = unit_key(world, "screener-2", old)  # copied before leaving
    leave(world, "screener-2")
    deck = publish(world, next_cards(world, [propose(world, "screener", "screening")]))
    who = signed_in(world, "screener", deck)
    assert [opens(world, who, deck, case).privates.keys() for case in cases] == [{1}] * 3, "before they are moved"

    def openable() -> int:
        with world.sessions.read() as session:
            rows = session.execute(
                select(CaseSeal, CaseKey)
                .join(CaseKey, col(CaseKey.case) == col(CaseSeal.case))
                .where(col(CaseSeal.unit) == "screening")
            ).all()
        found = 0
        for seal, key in rows:
            try:
                place = seal.case, seal.generation, "screening", seal.unit_generation
                found += bool(open_case_key(taken, *place, seal.sealed, case_public=key.public))
            except CannotOpen:
                continue
        return found

    assert openable() == 3, "the control"
    steps = []
    while not steps or steps[-1].moved < steps[-1].total:
        steps.append(move(world, who, deck, most=2))
    assert [(step.moved, step.total) for step in steps] == [(2, 3), (3, 3)]
    assert openable() == 0
    assert [opens(world, who, deck, case).privates.keys() for case in cases] == [{1}] * 3
    with pytest.raises(staff.Unauthenticated):
        signed_in(world, "screener-2", deck)
    fresh = tips(world, 1, cards=deck)
    assert openable() == 0
    assert opens(world, who, deck, fresh[0]).privates
    assert (
        events(world, fixed_chain("keys"))[1:]
        == ["keys:unit:rotated", "keys:cards:published"] + ["keys:unit:rotated"] * 2
    )


def move(world: World, who: staff.SignedIn, deck: Cards, most: int = 100) -> rotation.Progress:
    row_key = world.founding.row_key
    return write(
        world.sessions,
        lambda tx: move_cases(tx, world.ledger, row_key, deck, who, "screening", most=most, now=LATER),
    )


def test_every_member_who_stays_holds_the_next_key_and_nobody_else(world: World) -> None:
    leave(world, "screener-2")
    card = propose(world, "screener", "screening")
    assert boxes.public_of(unit_key(world, "screener", card)) == card.public
    with world.sessions.read() as session:
        grants = session.scalars(select(UnitGrant.member).where(UnitGrant.generation == 2)).all()
        sealed = session.get_one(UnitRecovery, ("screening", 2)).sealed
    assert grants == [world.people["screener"][0].id]
    founding = world.founding
    opened = recovery.open_unit(founding.recovery_private, "screening", 2, sealed, unit_public=card.public)
    assert boxes.public_of(opened) == card.public


def test_the_next_key_is_of_no_use_before_the_root_has_signed_it(world: World) -> None:
    cases = tips(world, 1)
    propose(world, "screener", "screening")
    with world.sessions.read() as session:
        assert session.scalars(select(CaseSeal.unit_generation).distinct()).all() == [1]
        assert progress(session, world.founding.cards)[0] == rotation.Progress("screening", 1, 1, 1)
    assert opens(world, world.signed_in("screener"), world.founding.cards, cases[0]).privates


def test_only_a_member_makes_it_and_only_once(world: World) -> None:
    with pytest.raises(Forbidden):
        propose(world, "investigator", "screening")
    propose(world, "screener", "screening")
    with pytest.raises(Conflict, match="already"):
        propose(world, "screener", "screening")
    who = world.signed_in("investigator")
    with pytest.raises(Forbidden):
        move(world, who, world.founding.cards)


def test_a_planted_members_key_gets_no_grant(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    his, public = boxes.keypair()
    other = world.people["screener-2"][0].id
    write(
        world.sessions,
        lambda tx: tx.execute(update(Member).where(col(Member.id) == other).values(box_public=public)),
    )
    with pytest.raises(CannotOpen):
        propose(world, "screener", "screening")
    monkeypatch.setattr(boxes, "check_row_tag", lambda *_: None)  # the control: the unit key would be his
    card = propose(world, "screener", "screening")
    with world.sessions.read() as session:
        given = session.get_one(UnitGrant, ("screening", 2, other))
    context = boxes.context_of("unit", "screening", 2, other.hex)
    assert boxes.public_of(boxes.unseal(his, context, given.sealed)) == card.public


def test_the_line_for_the_root_is_read_back_as_the_card(world: World) -> None:
    card = propose(world, "screener", "screening")
    deck = read_cards(next_cards(world, [card]), world.founding.root_vkey)
    assert deck.unit("screening") == card
    assert request_line(card) in next_cards(world, [card])


# --- cards go forward only ---


def test_a_cards_file_names_two_officers_and_is_kept(world: World) -> None:
    keep_first(world)
    text = next_cards(world, [])
    publish(world, text)
    with world.sessions.read() as session:
        assert session.get_one(CardsDeck, 2).note == text
        newest = (
            select(LedgerField)
            .join(LedgerEvent, col(LedgerEvent.eid) == col(LedgerField.eid))
            .where(col(LedgerEvent.type) == EventType.CARDS_PUBLISHED, col(LedgerEvent.seq) == 1)
        )
        told = {row.name: row.value for row in session.scalars(newest).all()}
    assert told["officers"] == b'["Chan Thy","Rin Sothea"]'
    assert told["serial"] == b"2"


@pytest.mark.parametrize("officers", [(), ("Chan Thy",), ("Chan Thy", " chan thy"), ("Chan Thy", "")])
def test_one_officer_is_not_two(world: World, officers: tuple[str, ...]) -> None:
    with pytest.raises(BadCards, match="two officers"):
        publish(world, next_cards(world, []), officers)


def forged(world: World) -> str:
    return next_cards(world, [], root_seed=boxes.signing_keypair()[0])


def without(kind: UnitKind) -> Callable[[World], str]:
    def make(world: World) -> str:
        units = tuple(card for card in world.founding.cards.units if card.kind != kind)
        founding = world.founding
        return write_cards(
            2, NOW.date(), units, relay=founding.cards.relay, root_name=ceremony.ROOT_NAME, root_seed=founding.root_seed
        )

    return make


def without_another_organisations_oversight(world: World) -> str:
    units = [c for c in world.founding.cards.units if c.kind != UnitKind.OVERSIGHT or c.organisation == "org-ngo"]
    founding = world.founding
    return write_cards(
        2, NOW.date(), units, relay=founding.cards.relay, root_name=ceremony.ROOT_NAME, root_seed=founding.root_seed
    )


def another_key_under_the_same_generation(world: World) -> str:
    card = world.founding.cards.unit("screening")
    return next_cards(world, [replace(card, public=boxes.keypair()[1])])


REFUSED: dict[str, Callable[[World], str]] = {
    "signed by another": forged,
    "the same serial": lambda world: next_cards(world, [], serial=1),
    "no screening": without(UnitKind.SCREENING),
    "no oversight": without(UnitKind.OVERSIGHT),
    "only our own oversight": without_another_organisations_oversight,
    "no monitor": without(UnitKind.MONITOR),
    "another key": another_key_under_the_same_generation,
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_cards_file_that_must_not_be_used_is_refused_and_nothing_changes(world: World, what: str) -> None:
    keep_first(world)
    with pytest.raises(BadCards):
        publish(world, REFUSED[what](world))
    with world.sessions.read() as session:
        assert ceremony.newest_serial(session) == 1
    assert publish(world, next_cards(world, [])).serial == 2, "the control"


def test_a_unit_does_not_go_back_to_an_older_key(world: World) -> None:
    keep_first(world)
    first = world.founding.cards.unit("screening")
    publish(world, next_cards(world, [replace(first, generation=2, public=boxes.keypair()[1])]))
    with pytest.raises(BadCards, match="goes back"):
        publish(world, next_cards(world, [first], serial=3))


def test_a_row_with_cards_of_another_root_opens_nothing(world: World) -> None:
    other = ceremony.found(PLANS, now=NOW)
    write(world.sessions, lambda tx: tx.add(CardsDeck(serial=9, note=other.cards_note)))
    with world.sessions.read() as session:
        assert ceremony.past_cards(session, world.founding.root_vkey) == ()


def test_the_file_on_a_host_must_be_the_one_that_was_published(world: World) -> None:
    deck = publish(world, next_cards(world, []))
    other = read_cards(next_cards(world, [], recovery=boxes.keypair()[1]), world.founding.root_vkey)
    with world.sessions.read() as session:
        ceremony.check_published(session, deck)
        with pytest.raises(BadCards, match="older"):
            ceremony.check_published(session, world.founding.cards)
        with pytest.raises(BadCards, match="another"):
            ceremony.check_published(session, other)


# --- one more unit, one less ---


def handed_on(world: World, case: Case) -> None:
    """Seal the handling unit in, as the screener's hand-on does, with all that this takes."""
    record_opening(
        world.sessions, world.ledger, world.founding.row_key, world.signed_in("screener").viewer, case.id,
        reason="screening", note="", allowance=Allowance(1000, False), now=NOW,
    )  # fmt: skip
    sealed_in(world, case, "siem-reap")


def sealed_in(world: World, case: Case, unit: str, answer: str = "no", who: str = "screener") -> str:
    person, deck = world.signed_in(who), world.founding.cards

    def use(tx: Tx) -> str:
        row = tx.get_one(Case, case.id)
        opened = staff.open_keys(tx, world.founding.row_key, deck, person, row)
        return widen(
            tx, world.ledger, person.viewer, opened, deck, unit=unit, answer=answer, version=row.version, now=LATER
        )

    return write(world.sessions, use)


def taken_away(world: World, case: Case, unit: str, who: str = "oversight") -> int:
    person, deck, row_key = world.signed_in(who), world.founding.cards, world.founding.row_key

    def use(tx: Tx) -> int:
        row = tx.get_one(Case, case.id)
        opened = staff.open_keys(tx, row_key, deck, person, row)
        return take_away(
            tx, world.ledger, row_key, person.viewer, opened, deck, unit=unit, version=row.version, now=LATER
        )

    return write(world.sessions, use)


def words(world: World, case: Case, privates: Any) -> list[str]:
    """What opens with these case keys."""
    found = []
    with world.sessions.read() as session:
        rows = session.scalars(select(Message).where(col(Message.case) == case.id).order_by(col(Message.number))).all()
    for row in rows:
        if row.generation in privates:
            found.append(envelope.open_words(privates[row.generation], Envelope(row.header, row.seal, row.body)))
    return found


def test_a_unit_that_is_sealed_in_reads_and_one_that_is_taken_away_reads_nothing_more(world: World) -> None:
    number = a_number()
    [receipt] = world.receive(a_tip("The first account.", sender=number))
    case = the_case(world, receipt.tip)
    deck = world.founding.cards
    with pytest.raises(NoSuchCase):
        opens(world, world.signed_in("investigator"), deck, case)
    handed_on(world, case)
    held = opens(world, world.signed_in("investigator"), deck, case).privates
    assert words(world, case, held) == ["The first account."]

    assert taken_away(world, case, "siem-reap") == 2
    world.receive(a_tip("What came later.", sender=number, received_at=LATER))
    with pytest.raises(NoSuchCase):
        opens(world, world.signed_in("investigator"), deck, case)
    assert words(world, case, held) == ["The first account."], "what it copied opens what it could read before"
    still = opens(world, world.signed_in("screener"), deck, case).privates
    assert words(world, case, still) == ["The first account.", "What came later."]
    chain = events(world, case.chain)
    assert [what for what in chain if what.startswith("keys:")] == ["keys:case:granted", "keys:case:removed"]


def test_without_a_new_generation_it_would(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: deleting the seal alone leaves the copied key good for what comes."""
    number = a_number()
    [receipt] = world.receive(a_tip("The first account.", sender=number))
    case = the_case(world, receipt.tip)
    handed_on(world, case)
    held = opens(world, world.signed_in("investigator"), world.founding.cards, case).privates
    write(world.sessions, lambda tx: tx.execute(delete(CaseSeal).where(col(CaseSeal.unit) == "siem-reap")))
    world.receive(a_tip("What came later.", sender=number, received_at=LATER))
    assert words(world, case, held) == ["The first account.", "What came later."]


def test_who_may_be_tied_to_a_case_is_not_sealed_in_but_walled_off(world: World) -> None:
    [case] = tips(world, 1)
    handed_on_opening(world, case)
    assert sealed_in(world, case, "siem-reap", answer="unsure") == "integrity"
    with pytest.raises(NoSuchCase):
        opens(world, world.signed_in("investigator"), world.founding.cards, case)
    with pytest.raises(Forbidden):
        sealed_in(world, case, "siem-reap", who="oversight")


def handed_on_opening(world: World, case: Case) -> None:
    for name in ("screener", "oversight"):
        record_opening(
            world.sessions, world.ledger, world.founding.row_key, world.signed_in(name).viewer, case.id,
            reason="screening" if name == "screener" else "oversight", note="",
            allowance=Allowance(1000, False), now=NOW,
        )  # fmt: skip


def test_who_may_not_widen_or_take_away(world: World) -> None:
    [case] = tips(world, 1)
    with pytest.raises(Forbidden):
        sealed_in(world, case, "siem-reap")  # has not read it
    handed_on(world, case)
    for refused in (
        lambda: sealed_in(world, case, "siem-reap"),  # holds it already
        lambda: sealed_in(world, case, "monitor"),
        lambda: sealed_in(world, case, "kandal", answer=""),
        lambda: sealed_in(world, case, "kandal", who="investigator"),
        lambda: taken_away(world, case, "siem-reap", who="screener"),
        lambda: taken_away(world, case, "screening"),
        lambda: taken_away(world, case, "oversight"),
        lambda: taken_away(world, case, "kandal"),
    ):
        with pytest.raises(Forbidden):
            refused()
    assert [what for what in events(world, case.chain) if what.startswith("keys:")] == ["keys:case:granted"]


# --- erased for good ---


def close(world: World, case: Case) -> None:
    event = NewEvent(EventType.CLOCK_MET, NOW, SYSTEM, StateClass.CLOSED)
    write(
        world.sessions,
        lambda tx: change(tx, world.ledger, tx.get_one(Case, case.id), [event], state=State.CLOSED),
    )


def mark(world: World, case: Case, now: datetime = NOW) -> None:
    write(world.sessions, lambda tx: erasing.mark(tx, world.ledger, tx.get_one(Case, case.id), now))


def test_a_closed_case_is_erased_fourteen_days_after_its_mark(world: World) -> None:
    first, other = tips(world, 2)
    with pytest.raises(WrongState):
        mark(world, first)
    close(world, first)
    mark(world, first)
    with pytest.raises(Conflict):
        mark(world, first)
    held = opens(world, world.signed_in("screener"), world.founding.cards, first).privates
    erase = partial(erasing.erase_due, world.sessions, world.ledger)
    assert erase(NOW + timedelta(days=13)) == 0
    assert words(world, first, held), "the mark may be taken back until then"
    with everything_logged() as log:
        assert erase(NOW + timedelta(days=14)) == 1
    assert log.getvalue() == "", "freed bytes are wiped on both engines"
    assert erase(NOW + timedelta(days=14)) == 0

    with pytest.raises(NoSuchCase):
        opens(world, world.signed_in("screener"), world.founding.cards, first)
    with world.sessions.read() as session:
        bodies = session.scalars(select(Message.body).where(col(Message.case) == first.id)).all()
        assert bodies == [b""]
        of_case = (
            select(LedgerField)
            .join(LedgerEvent, col(LedgerEvent.eid) == col(LedgerField.eid))
            .where(col(LedgerEvent.case) == first.chain)
        )
        assert [row for row in session.scalars(of_case).all() if row.sealed or row.name == "record"] == []
        assert session.scalars(select(CaseDecision.record).where(col(CaseDecision.case) == first.id)).all() == [None]
        row = session.get_one(Case, first.id)
        assert (row.flags, row.province, row.venue) == (None, None, None)
    assert events(world, first.chain)[-2:] == ["data:value:erased"] * 2
    assert opens(world, world.signed_in("screener"), world.founding.cards, other).privates, "and no other case"


def test_a_case_that_is_opened_again_is_kept(world: World) -> None:
    [case] = tips(world, 1)
    close(world, case)
    mark(world, case)
    event = NewEvent(EventType.CLOCK_SET, NOW, SYSTEM, StateClass.OPEN)
    write(
        world.sessions,
        lambda tx: change(tx, world.ledger, tx.get_one(Case, case.id), [event], state=State.OPEN),
    )
    assert erasing.erase_due(world.sessions, world.ledger, NOW + timedelta(days=15)) == 0
    assert opens(world, world.signed_in("screener"), world.founding.cards, case).privates


def test_the_sealed_bytes_are_nowhere_in_the_file_any_more(
    sqlite_world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = sqlite_world
    first, second = tips(world, 2)

    def piece(case: Case) -> bytes:
        with world.sessions.read() as session:
            return bytes(session.scalars(select(Message.body).where(col(Message.case) == case.id)).one()[100:148])

    pieces = piece(first), piece(second)

    def on_disk(wanted: bytes) -> bool:
        return any(wanted in path.read_bytes() for path in tmp_path.glob("hotline.db*"))

    assert [on_disk(one) for one in pieces] == [True, True]
    close(world, first)
    mark(world, first)
    world.sessions.reading.dispose()
    erasing.erase_due(world.sessions, world.ledger, NOW + timedelta(days=14))
    assert [on_disk(one) for one in pieces] == [False, True]

    monkeypatch.setattr(erasing, "wipe", lambda *_: None)  # the control: without emptying the log they stay
    close(world, second)
    mark(world, second)
    erasing.erase_due(world.sessions, world.ledger, NOW + timedelta(days=14))
    assert on_disk(pieces[1])
    world.sessions.close()


# --- the register of people ---


def test_a_units_next_key_leaves_the_register_of_people_whole(world: World) -> None:
    """Else everybody but integrity and oversight would see no case from then on."""
    row_key, deck = world.founding.row_key, world.founding.cards
    who = world.signed_in("investigator")
    propose(world, "screener", "screening")
    assert register.is_whole(world.sessions, row_key)
    write(world.sessions, lambda tx: tx.execute(delete(UnitGrant).where(col(UnitGrant.unit) == "kandal")))
    assert not register.is_whole(world.sessions, row_key)  # the control
    with pytest.raises(WrongState, match="outside the system"):
        write(world.sessions, lambda tx: propose_generation(tx, world.ledger, row_key, deck, who, "siem-reap", LATER))
