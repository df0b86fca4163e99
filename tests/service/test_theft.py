"""What each theft yields, row by row of keys.md section 9, tried with a real dump and the real files.

The thief has the dump, some files, and all our code. Every 32 bytes that lie in either are tried as every key that
leads to a word or a number, again with what that opens, until nothing more opens. A row's middle column is the control.
"""

import base64
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from sqlalchemy import select
from sqlmodel import SQLModel

from commands.custody import SECRETS
from service import ceremony, recovering
from service.db import Sessions, Tx, open_database, write
from service.errors import VaultError
from service.keyring import BEGINNING, Generation, write_keyring
from service.models import Case, CaseKey, CaseSeal, Contact, Member, Message, StaffSession, UnitGrant, UnitRecovery
from service.reading import Allowance, record_opening
from service.vault import boxes, envelope, members, recovery
from service.vault.boxes import context_of
from service.vault.contacts import contact_row
from service.vault.envelope import Envelope
from tests.builders import NOW, World, a_tip, a_world, the_case
from tests.service.test_rotation import sealed_in

KEY = 32
TEXTS = {
    "screened": "Canary-violet: a child at the guesthouse near the market.",
    "handed on": "Canary-amber: a girl is kept at the karaoke house.",
    "walled": "Canary-scarlet: the police chief takes money for the children, he works there.",
}
NUMBERS = {"screened": "+85500000311", "handed on": "+85500000312", "walled": "+85500000313"}
CUSTODIANS = {name: boxes.keypair() for name in ("alpha", "beta", "gamma")}


@dataclass
class Loot:
    """A stolen database, opened, and what else was stolen: files' words and single keys."""

    dump: Sessions
    cards: Any
    stolen: list[bytes]
    path: Path
    keys: set[bytes] = field(default_factory=set)

    def __post_init__(self) -> None:
        for data in self.stolen:
            self.keys |= set(keys_in(data))
        with self.dump.read() as session:
            self.rows = {
                table: session.scalars(select(table)).all()
                for table in (Case, CaseKey, CaseSeal, Contact, Member, Message, StaffSession, UnitGrant, UnitRecovery)
            }
            for table in SQLModel.metadata.sorted_tables:
                for row in session.execute(select(table)):
                    for value in row:
                        if isinstance(value, bytes) and len(value) >= KEY:
                            self.keys |= {value[:KEY], value[-KEY:]}

    @cached_property
    def opened(self) -> set[bytes]:
        """Every key that can be had, from what was stolen and from what that opens."""
        known, fresh = set[bytes](), set(self.keys)
        while fresh:
            known |= fresh
            fresh = {found for key in fresh for found in self._through(key)} - known
        return known

    def _through(self, key: bytes) -> Iterable[bytes]:
        """Every key that `key` leads to."""
        public = boxes.public_of(key)
        for grant in self.rows[UnitGrant]:
            if public == self._member(grant.member).box_public:
                yield from _unseal(key, context_of("unit", grant.unit, grant.generation, grant.member), grant.sealed)
        if public == self.cards.recovery:
            for row in self.rows[UnitRecovery]:
                yield from _unseal(key, context_of("unit-recovery", row.unit, row.generation), row.sealed)
        units = {card.unit for card in self.cards.units if card.public == public}
        for seal in self.rows[CaseSeal]:
            if seal.unit in units:
                place = context_of("case", seal.case, seal.generation, seal.unit, seal.unit_generation)
                yield from _unseal(key, place, seal.sealed)
        for row in self.rows[StaffSession]:
            yield from _aead(key, row.sealed, members._session(row.member.hex, row.expires_at))
        for member in self.rows[Member]:
            parameters = members.Parameters(bytes.fromhex(member.parameters.split(":")[3]), 1, 8)
            yield from _aead(key, member.wrapped, members._user(member.id.hex, parameters))

    def _member(self, member: Any) -> Member:
        return next(row for row in self.rows[Member] if row.id == member)

    @property
    def texts(self) -> set[str]:
        """The names of the accounts that open."""
        found = set()
        publics = {boxes.public_of(key): key for key in self.opened}
        for message in self.rows[Message]:
            key = next(k for k in self.rows[CaseKey] if (k.case, k.generation) == (message.case, message.generation))
            if key.public in publics:
                sealed = Envelope(message.header, message.seal, message.body)
                words = envelope.open_words(publics[key.public], sealed)
                found.add(next(name for name, text in TEXTS.items() if text == words))
            for candidate in self.opened:
                found |= {"a body" for _ in _aead(candidate, message.body, message.header)}
        return found

    @property
    def numbers(self) -> set[str]:
        """The telephone numbers that open, by the relay's key or the contact's own."""
        found = set()
        for contact in self.rows[Contact]:
            if contact.key_sealed is None or contact.number_sealed is None:
                continue
            for key in self.opened:
                place = context_of("contact", contact.id, contact.relay_generation)
                own = [key, *_unseal(key, place, contact.key_sealed)] if key in self.relays else [key]
                for candidate in own:
                    for plain in _aead(candidate, contact.number_sealed, context_of("contact", contact.id), cut=False):
                        found.add(plain.decode())
        return found

    relays: frozenset[bytes] = frozenset()  # opening a box with each of thousands of keys would take minutes

    def guessed(self, numbers: Iterable[str]) -> set[str]:
        """The numbers that were guessed and that some key names as the dump does."""
        names = {contact.pseudonym for contact in self.rows[Contact]}
        return {n for n in numbers for key in self.opened if boxes.phone_name(key, n) in names}

    def forges(self) -> bool:
        """Say whether some key makes a tag that our own processes take."""
        contact = self.rows[Contact][0]
        row = contact_row(contact.model_dump())
        return any(boxes.row_tag(key, row) == contact.row_tag for key in self.opened)

    def bytes_of_dump(self) -> bytes:
        """The stolen file."""
        return self.path.read_bytes()


def keys_in(data: bytes) -> Iterable[bytes]:
    """Return everything of 32 bytes in a stolen file: raw, in hex, in base64."""
    yield from [data] if len(data) == KEY else []
    for word in re.findall(rb"[0-9a-f]{64}", data):
        yield bytes.fromhex(word.decode())
    for word in re.findall(rb"[A-Za-z0-9+/_=-]{43,64}", data):
        try:
            decoded = base64.b64decode(word + b"=" * (-len(word) % 4), altchars=b"-_")
        except ValueError:
            continue
        yield from (part for part in (decoded[:KEY], decoded[-KEY:]) if len(part) == KEY)


def _unseal(key: bytes, place: str, sealed: bytes) -> Iterable[bytes]:
    try:
        opened = boxes.unseal(key, place, sealed)
    except VaultError:
        return
    yield opened[:KEY]


def _aead(key: bytes, sealed: bytes, associated: Any, *, cut: bool = True) -> Iterable[bytes]:
    try:
        opened = boxes.aead_open(key, sealed, associated)
    except VaultError:
        return
    yield opened[:KEY] if cut else opened


# --- what is stolen ---


@dataclass
class Scene:
    """An installation with three cases, and the files of its processes."""

    world: World
    folder: Path
    cases: dict[str, Case]
    cookie: str

    def files(self, process: str) -> list[bytes]:
        """The secret files of one process."""
        return [path.read_bytes() for path in sorted((self.folder / process).iterdir())]

    def loot(self, *stolen: bytes) -> Loot:
        copy = self.folder / f"dump-{boxes.random_bytes(4).hex()}.db"
        raw = self.world.sessions.writing.raw_connection()
        raw.execute(f"VACUUM INTO '{copy}'")  # type: ignore[attr-defined]
        raw.close()
        found = Loot(open_database(f"sqlite:///{copy}"), self.world.founding.cards, list(stolen), copy)
        found.relays = frozenset(k for k in found.keys if boxes.public_of(k) == self.world.founding.relay.public)
        return found


@pytest.fixture(scope="module")
def scene(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    folder = tmp_path_factory.mktemp("theft")
    shutil.copy(sqlite_template, folder / "hotline.db")
    world = a_world(open_database(f"sqlite:///{folder / 'hotline.db'}"))
    founding = world.founding
    write(world.sessions, lambda tx: recovering.keep(tx, founding.cards, founding.unit_privates))
    cases = {}
    for name, text in TEXTS.items():
        [receipt] = world.receive(a_tip(text, sender=NUMBERS[name], delivery=f"SM-{name}"))
        cases[name] = the_case(world, receipt.tip)
    assert [cases[name].walled for name in TEXTS] == [False, False, True]
    screener = world.signed_in("screener").viewer
    record_opening(
        world.sessions, world.ledger, founding.row_key, screener, cases["handed on"].id,
        reason="screening", note="", allowance=Allowance(1000, False), now=NOW,
    )  # fmt: skip
    sealed_in(world, cases["handed on"], "siem-reap")
    for secret in (secret for secret in SECRETS if secret.files):
        for process in secret.holders:
            (folder / process).mkdir(exist_ok=True)
            name = (secret.setting or "").removesuffix("_file")
            value = {"relay_key": founding.relay_private, "relay_identity": founding.relay_seed}.get(name)
            value = value or getattr(founding, name, b"an invented token of 32 bytes   ")
            ceremony.write_secret(folder / process / secret.files[0], value.hex())
    return Scene(world, folder, cases, world.cookie("investigator"))


# --- row by row ---


def test_a_dump_alone_tells_counts_and_levels_and_no_word_or_number(scene: Scene) -> None:
    loot = scene.loot()
    assert sorted(case.level for case in loot.rows[Case]) == sorted(case.level for case in scene.cases.values())
    assert b"Sok Dara" in loot.bytes_of_dump(), "the control: members' names are there"
    assert (loot.texts, loot.numbers, loot.guessed(NUMBERS.values()), loot.forges()) == (set(), set(), set(), False)
    walled = next(case for case in loot.rows[Case] if case.walled)
    assert (walled.flags, walled.province, walled.venue) == (None, None, None)


def test_no_word_or_number_lies_in_the_dump_in_any_spelling(scene: Scene) -> None:
    data = scene.loot().bytes_of_dump()

    def spellings(text: str) -> list[bytes]:
        raw = text.encode()
        forms = [raw, text.encode("utf-16-le"), text.encode("utf-16-be"), raw.hex().encode(), quote(text).encode()]
        return forms + [base64.b64encode(raw[start:])[2:-4] for start in range(3)]

    for words in ("Canary-violet", "Canary-amber", "Canary-scarlet", *NUMBERS.values()):
        assert not any(form in data for form in spellings(words))
    for form in spellings("Sok Dara")[:1]:
        assert form in data, "the control"


def test_with_the_public_processs_files_numbers_can_be_guessed_and_tags_forged_but_no_text_read(scene: Scene) -> None:
    loot = scene.loot(*scene.files("public"))
    assert loot.guessed(NUMBERS.values()) == set(NUMBERS.values())
    assert loot.guessed(["+85500000999"]) == set()
    assert loot.forges()
    assert loot.texts == set()
    assert loot.numbers == set(), "a name is checked against a guess, never opened"


def test_with_the_workers_files_living_numbers_are_had_and_no_text(scene: Scene) -> None:
    loot = scene.loot(*scene.files("worker"))
    assert loot.numbers == set(NUMBERS.values())
    assert loot.texts == set()


def test_with_the_staff_processs_files_nothing_opens_while_nobodys_cookie_is_there(scene: Scene) -> None:
    loot = scene.loot(*scene.files("staff"))
    assert (loot.texts, loot.numbers, loot.guessed(NUMBERS.values())) == (set(), set(), set())
    assert len(loot.rows[StaffSession]) > 0, "there are sessions to steal"


def test_on_a_live_staff_host_who_signs_in_gives_that_units_past_and_no_other(scene: Scene) -> None:
    secret = base64.urlsafe_b64decode(scene.cookie)[members.SESSION_ID :]
    loot = scene.loot(*scene.files("staff"), secret)
    assert loot.texts == {"handed on"}
    assert loot.numbers == set()


@pytest.mark.parametrize(
    ("who", "reads"),
    [
        ("investigator", {"handed on"}),
        ("elsewhere", set()),
        ("screener", {"screened", "handed on"}),
        ("integrity", {"walled"}),
        ("admin", set()),
    ],
)
def test_with_a_members_own_keys_that_units_cases_open_and_no_walled_one(
    scene: Scene, who: str, reads: set[str]
) -> None:
    """What a password and a second factor come to, with the whole database besides."""
    loot = scene.loot(scene.world.people[who][1].box)
    assert loot.texts == reads
    assert loot.numbers == set()


def test_the_roots_key_opens_nothing_of_the_past(scene: Scene) -> None:
    founding = scene.world.founding
    loot = scene.loot(founding.root_seed, founding.relay_seed)
    assert (loot.texts, loot.numbers) == (set(), set())


def test_two_custodians_and_the_database_read_everything_and_one_reads_nothing(scene: Scene) -> None:
    founding = scene.world.founding
    nested = recovery.share(founding.recovery_private, {name: pair[1] for name, pair in CUSTODIANS.items()})

    def held(*names: str) -> list[bytes]:
        privates = {name: CUSTODIANS[name][0] for name in names}
        try:
            public = boxes.public_of(founding.recovery_private)
            return [*privates.values(), recovery.combine(nested, privates, recovery_public=public)]
        except VaultError:
            return [*privates.values(), *nested.values()]

    assert scene.loot(*held("alpha")).texts == set()
    assert scene.loot(*held("gamma", "beta")).texts == set(TEXTS)


def test_write_access_puts_no_key_of_his_in_place_of_ours(scene: Scene) -> None:
    """He writes what he likes, everywhere that a key stands; later words are sealed to none of it."""
    his, public = boxes.keypair()
    world = scene.world

    def plant(tx: Tx) -> None:
        for key in tx.scalars(select(CaseKey)).all():
            key.public = public
        for member in tx.scalars(select(Member)).all():
            member.box_public = public

    with world.sessions.read() as session:
        kept = {(key.case, key.generation): key.public for key in session.scalars(select(CaseKey)).all()}
        people = {member.id: member.box_public for member in session.scalars(select(Member)).all()}
        before = {row.id for row in session.scalars(select(Message)).all()}
    write(world.sessions, plant)
    try:
        later = NOW + timedelta(hours=1)
        world.receive(a_tip("Canary-violet: it goes on.", sender=NUMBERS["screened"], received_at=later))
        with world.sessions.read() as session:
            [new] = [row for row in session.scalars(select(Message)).all() if row.id not in before]
            with pytest.raises(VaultError):
                envelope.open_words(his, Envelope(new.header, new.seal, new.body))
    finally:

        def put_back(tx: Tx) -> None:
            for key in tx.scalars(select(CaseKey)).all():
                key.public = kept.get((key.case, key.generation), key.public)
            for member in tx.scalars(select(Member)).all():
                member.box_public = people[member.id]

        write(world.sessions, put_back)


def test_older_links_are_gone_from_the_public_processs_files_after_two_changes(scene: Scene, tmp_path: Path) -> None:
    """A dump of long ago with the peppers of today: the guesses that would have named everybody name nobody."""
    old = scene.loot(*scene.files("public"))
    assert old.guessed([NUMBERS["handed on"]]), "the control: with the peppers of that day they do"
    peppers = [Generation(n, BEGINNING + timedelta(days=n), boxes.random_bytes()) for n in (3, 2)]
    write_keyring(tmp_path / "phone.pepper", peppers)
    today = [data for data in scene.files("public") if scene.world.founding.phone_pepper.hex().encode() not in data]
    late = Loot(old.dump, old.cards, [*today, (tmp_path / "phone.pepper").read_bytes()], old.path)
    assert late.guessed(NUMBERS.values()) == set()
