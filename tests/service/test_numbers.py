"""Relay keys and peppers change while texts keep arriving: no words are orphaned, no reply is lost (keys.md 8)."""

import asyncio
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, text, update
from sqlmodel import col

from service import carrying, numbers
from service.carrying import GRACE, Carrying
from service.db import Sessions, Writer, open_database, write
from service.draft import Pepper
from service.errors import BadNote, CannotOpen
from service.keyring import BEGINNING, Generation, Keyring, write_keyring
from service.ledger.events import fixed_chain
from service.models import Case, Contact, LedgerEvent, Message, RelayGeneration, Tip
from service.numbers import Peppers, Source, announce_pepper, next_relay, relay_keys
from service.vault import boxes
from service.vault.cards import write_relay_note
from service.vault.contacts import contact_row
from service.vault.relaying import open_contact
from tests.builders import NOW, World, a_number, a_tip, a_world, the_case
from tests.service.sending import Scene, everything_logged

DAY = timedelta(days=1)


@dataclass
class Keys:
    """The files of an installation's relay key and peppers, and a worker that carries contacts."""

    world: World
    folder: Path
    now: datetime = NOW
    scene: Scene = field(init=False)

    def __post_init__(self) -> None:
        founding = self.world.founding
        write_keyring(self.folder / "relay.key", [Generation(1, BEGINNING, founding.relay_private)])
        write_keyring(self.folder / "phone.pepper", [Generation(1, BEGINNING, founding.phone_pepper)])
        self.privates = Keyring(self.folder / "relay.key", "relay_key_file")
        self.names = Peppers(Keyring(self.folder / "phone.pepper", "phone_pepper_file"))
        self.scene = Scene(self.world, now=self.now)

    @property
    def identity(self) -> bytes:
        return self.world.founding.cards.relay or b""

    @property
    def source(self) -> Source:
        return Source(self.identity, self.world.founding.relay, self.names)

    @property
    def worker(self) -> Carrying:
        founding = self.world.founding
        rings = self.privates, self.names
        return Carrying(self.world.sessions, self.world.ledger, founding.row_key, self.identity, founding.relay, *rings)

    def receive(self, *tips: Any) -> list[Any]:
        return self.world.receive(*tips, source=self.source, peppers=self.names.peppers())

    def new_relay(self) -> bytes:
        """Begin the next generation today, as `./hotline keys relay` does, and return its private half."""
        private, _ = boxes.keypair()
        with self.world.sessions.read() as session:
            keys = relay_keys(session, self.identity, self.world.founding.relay)
        number = keys[0].generation + 1
        write_keyring(self.folder / "relay.key", [Generation(number, self.now, private), *self.privates.generations()])
        seed, start = self.world.founding.relay_seed, self.now.date()
        write(
            self.world.sessions,
            lambda tx: next_relay(tx, self.world.ledger, seed, private, keys, start, self.now),
        )
        return private

    def new_pepper(self, start: datetime | None = None) -> bytes:
        """Put the next epoch's pepper before the others, to be used from `start` on."""
        ring = self.names.ring.generations()
        start = (start or self.now).replace(second=0, microsecond=0)
        pepper = Generation(ring[0].number + 1, start, boxes.random_bytes())
        write_keyring(self.folder / "phone.pepper", [pepper, *ring])
        write(
            self.world.sessions,
            lambda tx: announce_pepper(tx, self.world.ledger, pepper.number, start, self.now),
        )
        return pepper.secret

    def carry(self) -> None:
        """Do the worker's rounds until nothing is left."""
        while self.worker.round(self.now):
            pass

    def later(self, span: timedelta) -> None:
        self.now += span
        self.scene.now = self.now

    def contacts(self) -> list[Contact]:
        with self.world.sessions.read() as session:
            return list(session.scalars(select(Contact)).all())


@pytest.fixture
def keys(sessions: Sessions, tmp_path: Path) -> Keys:
    return Keys(a_world(sessions), tmp_path)


@pytest.fixture
def sqlite_keys(sqlite_url: str, tmp_path: Path) -> Iterator[Keys]:
    sessions = open_database(sqlite_url)
    yield Keys(a_world(sessions), tmp_path)
    sessions.close()


def rotations(keys: Keys) -> list[str]:
    with keys.world.sessions.read() as session:
        chain = select(col(LedgerEvent.type)).where(col(LedgerEvent.case) == fixed_chain("keys"))
        return list(session.scalars(chain.order_by(col(LedgerEvent.seq))).all())


# --- the relay's key ---


def test_contacts_move_to_the_new_key_and_the_old_one_is_destroyed(keys: Keys) -> None:
    number = a_number()
    [receipt] = keys.receive(a_tip(sender=number, received_at=keys.now))
    old = keys.privates[1]
    private = keys.new_relay()
    keys.carry()
    [contact] = keys.contacts()
    assert contact.relay_generation == 2
    assert open_contact(private, 2, contact.id, contact.key_sealed or b"", contact.number_sealed or b"") == number
    boxes.check_row_tag(keys.world.founding.row_key, contact_row(contact.model_dump()), contact.row_tag)
    assert list(keys.privates) == [2, 1], "for a day: somebody may not have heard of it yet"

    keys.later(GRACE + DAY)
    keys.carry()
    assert list(keys.privates) == [2]
    assert old.hex().encode() not in b"".join(path.read_bytes() for path in keys.folder.iterdir())
    assert [path.name for path in keys.folder.glob("relay.key*")] == ["relay.key"]
    assert rotations(keys)[1:] == ["keys:relay:rotated"] * 2
    assert the_case(keys.world, receipt.tip) is not None


def test_what_was_sealed_to_the_old_key_within_the_day_is_carried_too(keys: Keys) -> None:
    keys.new_relay()
    keys.world.receive(a_tip(sender=a_number(), received_at=keys.now))  # a process that has not heard of it
    assert keys.contacts()[0].relay_generation == 1
    keys.later(GRACE + DAY)
    keys.carry()
    assert keys.contacts()[0].relay_generation == 2


def test_the_destroyed_key_opens_nothing_in_the_oldest_backup(sqlite_keys: Keys, tmp_path: Path) -> None:
    keys = sqlite_keys
    number = a_number()
    keys.receive(a_tip(sender=number, received_at=keys.now))
    old = tmp_path / "oldest.db"
    with keys.world.sessions.reading.connect() as connection:
        connection.execute(text("SELECT 1"))
    raw = keys.world.sessions.writing.raw_connection()
    raw.execute(f"VACUUM INTO '{old}'")  # type: ignore[attr-defined]
    raw.close()
    kept = shutil.copy(keys.folder / "relay.key", tmp_path / "stolen.key")

    keys.new_relay()
    keys.later(GRACE + DAY)
    keys.carry()
    backup = open_database(f"sqlite:///{old}")
    with backup.read() as session:
        contact = session.scalars(select(Contact)).one()
    backup.close()

    def opens(ring: Keyring) -> bool:
        for generation in range(1, 4):
            for secret in ring.values():
                try:
                    sealed = contact.key_sealed or b"", contact.number_sealed or b""
                    if open_contact(secret, generation, contact.id, *sealed) == number:
                        return True
                except CannotOpen:
                    continue
        return False

    assert not opens(keys.privates), "with everything that the worker holds now"
    assert opens(Keyring(Path(kept), "relay_key_file")), "the control: with the key that was destroyed it does"


def test_a_reply_that_is_owed_is_sent_after_the_change(keys: Keys) -> None:
    number = a_number()
    keys.receive(a_tip(sender=number, received_at=keys.now))
    keys.new_relay()
    keys.carry()
    relay = keys.scene.relay
    keys.scene.carrier.sent.clear()
    moved = type(relay)(**{**relay.__dict__, "privates": keys.privates})
    from tests.service.sending import OneByOne

    while moved.send_due(OneByOne()):
        pass
    assert [to for to, _ in keys.scene.carrier.sent] == [number]


def test_a_relay_key_that_its_identity_did_not_sign_is_not_sealed_to(
    keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever writes a row with a key of his own would read every number from then on."""
    his, public = boxes.keypair()
    seed, _ = boxes.signing_keypair()
    key = type(keys.world.founding.relay)(2, public, keys.now.date(), keys.now.date() + 30 * DAY)
    note = write_relay_note(key, seed)
    write(keys.world.sessions, lambda tx: tx.add(RelayGeneration(generation=2, note=note)))
    with everything_logged() as log:
        keys.receive(a_tip(sender=a_number(), received_at=keys.now))
    assert [contact.relay_generation for contact in keys.contacts()] == [1]
    assert "relay_note_is_not_ours" in log.getvalue()

    monkeypatch.setattr(numbers, "read_relay_note", lambda *_: key)  # the control: without the signature's check
    keys.receive(a_tip(sender=a_number(), received_at=keys.now + timedelta(minutes=1)))
    newest = max(keys.contacts(), key=lambda contact: contact.relay_generation)
    assert open_contact(his, 2, newest.id, newest.key_sealed or b"", newest.number_sealed or b"").startswith("+855")


def test_an_old_generations_row_in_place_of_the_new_one_is_not_gone_back_to(keys: Keys) -> None:
    source, day = keys.source, keys.now
    keys.new_relay()
    with keys.world.sessions.read() as session:
        newest, _ = source.look(session, day, None)
    write(keys.world.sessions, lambda tx: tx.execute(text("DELETE FROM relay_generation")))
    with keys.world.sessions.read() as session:
        after, _ = source.look(session, day, newest)
    assert newest is not None
    assert after == newest


def test_a_generation_that_starts_before_the_last_is_refused(keys: Keys) -> None:
    keys.new_relay()
    keys.now -= 3 * DAY
    with pytest.raises(BadNote, match="before"):
        keys.new_relay()


# --- the pepper ---


def test_a_later_text_joins_its_tip_after_two_changes_of_the_pepper(keys: Keys) -> None:
    number = a_number()
    [first] = keys.receive(a_tip("One.", sender=number, received_at=keys.now))
    for _ in range(2):
        keys.new_pepper()
        keys.carry()
        keys.later(31 * DAY)
        keys.new_relay()
        keys.carry()
    assert len(keys.names.ring) == 2, "the pepper before last is destroyed"
    [later] = keys.receive(a_tip("Two.", sender=number, received_at=keys.now))
    assert later.tip == first.tip
    assert [contact.epoch for contact in keys.contacts()] == [3]
    assert "keys:pepper:rotated" in rotations(keys)


def test_without_carrying_it_would_be_orphaned(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the test above."""
    monkeypatch.setattr(Carrying, "_move", lambda *_, **__: False)
    number = a_number()
    [first] = keys.receive(a_tip("One.", sender=number, received_at=keys.now))
    for _ in range(2):
        keys.new_pepper()
        keys.later(31 * DAY)
    keys.names.destroy_old(keys.now)
    [later] = keys.receive(a_tip("Two.", sender=number, received_at=keys.now))
    assert later.tip != first.tip


def test_before_it_is_carried_a_text_is_found_under_the_last_pepper(keys: Keys) -> None:
    number = a_number()
    [first] = keys.receive(a_tip("One.", sender=number, received_at=keys.now))
    keys.new_pepper()
    [later] = keys.receive(a_tip("Two.", sender=number, received_at=keys.now))
    assert later.tip == first.tip


def test_a_pepper_that_is_to_come_names_nobody_yet_but_is_looked_up(keys: Keys) -> None:
    """It lies on all hosts before its day: one that is a minute ahead must not hide a tip from the others."""
    keys.new_pepper(keys.now + DAY)
    number = a_number()
    [first] = keys.receive(a_tip("One.", sender=number, received_at=keys.now))
    assert [contact.epoch for contact in keys.contacts()] == [1]
    ahead = keys.now + DAY + timedelta(minutes=1)
    other = a_number()
    [early] = keys.receive(a_tip("One.", sender=other, received_at=ahead))
    [behind] = keys.receive(a_tip("Two.", sender=other, received_at=keys.now))
    assert behind.tip == early.tip
    assert first.tip != early.tip


def test_the_destroyed_pepper_names_nothing_that_is_left(keys: Keys) -> None:
    number, pepper = a_number(), keys.world.founding.phone_pepper
    keys.receive(a_tip(sender=number, received_at=keys.now))
    assert [c.pseudonym for c in keys.contacts()] == [boxes.phone_name(pepper, number)], "the control"
    for _ in range(2):
        keys.later(31 * DAY)
        keys.new_pepper()
        keys.carry()
    assert 1 not in keys.names.ring
    assert pepper.hex() not in (keys.folder / "phone.pepper").read_text()
    assert boxes.phone_name(pepper, number) not in [contact.pseudonym for contact in keys.contacts()]


def test_a_contact_that_is_erased_while_its_next_tip_is_written_is_not_taken(keys: Keys) -> None:
    """The worker erases a contact between its look-up and the new tip: the tip gets a contact of its own."""
    number = a_number()
    [first] = keys.receive(a_tip("One.", sender=number, received_at=keys.now))
    drop_jobs(keys)
    closed(keys, first.tip)
    keys.later(60 * DAY)
    writer = Writer(keys.world.sessions)
    intake = keys.world.intake(writer, peppers=[*keys.names.peppers(), Pepper(9, bytes(32), keys.now + DAY)])
    real = intake._insert_for

    def erased_first(tx: Any, *given: Any, **more: Any) -> Any:
        intake._insert_for = real  # type: ignore[method-assign]
        tx.execute(text("UPDATE contact SET pseudonym = NULL, key_sealed = NULL, number_sealed = NULL"))
        return real(tx, *given, **more)

    intake._insert_for = erased_first  # type: ignore[method-assign]
    receipt = asyncio.run(intake.receive(a_tip("Two.", sender=number, received_at=keys.now)))
    writer.close()
    with keys.world.sessions.read() as session:
        contact = session.get_one(Contact, session.get_one(Tip, receipt.tip).contact)
    assert contact.number_sealed is not None
    assert contact.pseudonym is not None


def test_the_public_process_destroys_the_peppers_before_the_last_on_its_own_host(keys: Keys) -> None:
    for _ in range(2):
        keys.later(31 * DAY)
        keys.new_pepper()
    assert list(keys.names.ring) == [3, 2, 1]
    keys.receive(a_tip(sender=a_number(), received_at=keys.now))
    assert list(keys.names.ring) == [3, 2]


# --- under load ---


def test_both_keys_change_while_texts_keep_arriving(keys: Keys) -> None:
    """No text lost, no later text orphaned, no reply lost: many numbers, each writing before, while and after."""
    asyncio.run(under_load(keys))
    with keys.world.sessions.read() as session:
        tips = session.execute(
            select(col(Tip.contact), func.count()).where(col(Tip.contact).is_not(None)).group_by(col(Tip.contact))
        ).all()
        assert session.scalar(select(func.count()).select_from(Message)) == 12 * 6
    assert [count for _, count in tips] == [1] * 12, "each number has one tip, whenever it wrote"
    keys.later(GRACE + DAY)
    keys.carry()
    for contact in keys.contacts():
        sealed = contact.key_sealed or b"", contact.number_sealed or b""
        assert open_contact(keys.privates[3], 3, contact.id, *sealed).startswith("+855")
        assert contact.epoch == 3
    assert (list(keys.privates), list(keys.names.ring)) == ([3], [3, 2])


async def under_load(keys: Keys) -> None:
    writer, chance = Writer(keys.world.sessions), random.Random(7)
    texts = [(number, at) for number in [a_number() for _ in range(12)] for at in range(6)]
    chance.shuffle(texts)
    intakes = [keys.world.intake(writer, source=keys.source, peppers=keys.names.peppers()) for _ in range(2)]

    async def send(place: int, number: str) -> None:
        at = keys.now + timedelta(seconds=10 * place)
        await intakes[place % 2].receive(a_tip(f"Text {place}.", sender=number, received_at=at))

    async def change() -> None:
        for _ in range(2):
            await asyncio.sleep(0.02)
            keys.new_pepper(keys.now)
            await asyncio.to_thread(keys.new_relay)
            await asyncio.to_thread(keys.carry)

    changing = asyncio.create_task(change())
    for start in range(0, len(texts), 8):
        await asyncio.gather(*(send(start + i, number) for i, (number, _) in enumerate(texts[start : start + 8])))
    await changing
    writer.close()


# --- when nobody needs a number any more ---


def closed(keys: Keys, tip: Any) -> Case:
    case: Case = the_case(keys.world, tip)
    keys.scene.now = keys.now
    keys.scene.close(case)
    return case


def drop_jobs(keys: Keys) -> None:
    write(keys.world.sessions, lambda tx: tx.execute(text("UPDATE outbox SET state = 'done'")))


def test_a_number_is_erased_thirty_days_after_the_last_need(keys: Keys) -> None:
    number = a_number()
    [receipt] = keys.receive(a_tip(sender=number, received_at=keys.now))
    drop_jobs(keys)
    closed(keys, receipt.tip)
    keys.later(29 * DAY)
    keys.carry()
    assert keys.contacts()[0].key_sealed is not None

    keys.later(2 * DAY)
    keys.carry()
    [contact] = keys.contacts()
    assert (contact.key_sealed, contact.number_sealed, contact.pseudonym, contact.tip) == (None, None, None, None)
    [again] = keys.receive(a_tip(sender=number, received_at=keys.now))
    assert again.tip != receipt.tip


def test_a_number_with_an_open_case_or_a_reply_owed_stays(keys: Keys) -> None:
    keys.receive(a_tip(sender=a_number(), received_at=keys.now))
    keys.later(400 * DAY)
    keys.carry()
    assert keys.contacts()[0].key_sealed is not None


def test_who_wants_no_texts_is_remembered_for_a_year_and_tied_to_nothing(keys: Keys) -> None:
    number = a_number()
    [receipt] = keys.receive(a_tip(sender=number, received_at=keys.now))
    row = keys.scene.row()
    write(keys.world.sessions, lambda tx: keys.scene.relay._lost(tx, tx.merge(row), 21610, keys.now))
    closed(keys, receipt.tip)
    keys.later(60 * DAY)
    keys.carry()
    [contact] = keys.contacts()
    assert contact.pseudonym is not None
    with keys.world.sessions.read() as session:
        assert session.scalars(select(Tip.contact)).all() == [None]
    [again] = keys.receive(a_tip(sender=number, received_at=keys.now))
    with keys.world.sessions.read() as session:
        assert session.get_one(Tip, again.tip).contact == contact.id, "its silence holds for what comes later"
    closed(keys, again.tip)
    drop_jobs(keys)

    keys.later(400 * DAY)
    keys.carry()
    assert keys.contacts()[0].pseudonym is None


def test_a_contact_that_no_key_opens_is_said_once_and_holds_nothing_up(keys: Keys) -> None:
    keys.receive(a_tip(sender=a_number(), received_at=keys.now))
    write(keys.world.sessions, lambda tx: tx.execute(update(Contact).values(row_tag=bytes(32))))
    keys.new_relay()
    keys.later(GRACE + DAY)
    worker = keys.worker
    with everything_logged() as log:
        for _ in range(3):
            worker.round(keys.now)
    assert log.getvalue().count("contact_cannot_be_carried_over") == 1
    assert list(keys.privates) == [2]


def test_a_key_that_cannot_be_destroyed_is_reported(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(*_: Any) -> None:
        raise OSError("read-only file system")

    keys.new_relay()
    keys.later(GRACE + DAY)
    monkeypatch.setattr("service.keyring.write_keyring", read_only)
    with everything_logged() as log:
        for _ in range(3):
            keys.worker.round(keys.now)
    assert log.getvalue().count("old_key_not_destroyed") == 1, "once, and not every twenty seconds"
    assert list(keys.privates) == [2, 1]
    assert rotations(keys).count("keys:relay:rotated") == 1


def test_two_workers_at_once_carry_each_contact_once(keys: Keys) -> None:
    from tests.service.sending import at_once

    keys.receive(*(a_tip(sender=a_number(), received_at=keys.now) for _ in range(6)))
    keys.new_relay()
    keys.new_pepper()
    at_once(*(partial(worker.round, keys.now) for worker in (keys.worker, keys.worker)))
    keys.carry()
    assert [(c.relay_generation, c.epoch) for c in keys.contacts()] == [(2, 2)] * 6
    assert carrying.BATCH > 6
