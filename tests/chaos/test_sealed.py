"""The public process cannot open what it has just sealed: nothing that it holds is a key to it (keys.md section 2).

Every run of 32 bytes in its settings, in the files that these name and in the database, plain or decoded, is tried
as each of the keys that lead to a text. The screening unit's own key is the control.
"""

import base64
import re
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

from nacl.bindings import crypto_scalarmult_base
from sqlalchemy import select
from sqlmodel import SQLModel

from service.db import Sessions
from service.errors import CannotOpen
from service.models import Case, CaseKey, CaseSeal, Message
from service.vault import boxes, envelope
from service.vault.envelope import Envelope
from service.vault.members import open_case_key
from tests.chaos.running import Forks, Installation, Process
from tests.chaos.sending import Mailbag, a_text, ask_raw

KEY = 32
LONGEST_VALUE = 160  # bytes; longer values of the database are sealed bodies, whose runs are tried at both ends


def runs(data: bytes) -> Iterator[bytes]:
    """Return every run of 32 bytes in `data`."""
    return (data[start : start + KEY] for start in range(len(data) - KEY + 1))


def decoded(data: bytes) -> Iterator[bytes]:
    """Return `data` as it is, and what stands in it in hex or base64."""
    yield data
    for word in re.findall(rb"[0-9a-fA-F]{64,}", data):
        yield bytes.fromhex(word[: len(word) // 2 * 2].decode())
    for word in re.findall(rb"[A-Za-z0-9+/_=-]{43,}", data):
        for start in range(4):
            cut = word[start:].rstrip(b"=").replace(b"+", b"-").replace(b"/", b"_")
            cut = cut[:-1] if len(cut) % 4 == 1 else cut
            yield base64.urlsafe_b64decode(cut + b"=" * (-len(cut) % 4))


def held(installation: Installation) -> Iterator[bytes]:
    """Return what the public process is given: its settings, and the files that these name."""
    for value in installation.environments["public"].values():
        yield value.encode()
        path = Path(value)
        if value.startswith("/") and path.is_file():
            yield path.read_bytes()


def stored(sessions: Sessions) -> Iterator[bytes]:
    """Return every value of bytes in the database, long ones by their ends."""
    with sessions.read() as session:
        for table in SQLModel.metadata.sorted_tables:
            for row in session.execute(select(table)):
                for value in row:
                    if isinstance(value, bytes):
                        whole = len(value) <= LONGEST_VALUE
                        yield value if whole else value[: 2 * KEY]
                        yield b"" if whole else value[-2 * KEY :]


class Locks:
    """All that stands between a key and the words of a message."""

    def __init__(self, sessions: Sessions, installation: Installation, case: UUID) -> None:
        with sessions.read() as session:
            message = session.scalars(select(Message).where(Message.case == case)).one()
            self.seals = session.scalars(select(CaseSeal).where(CaseSeal.case == case)).all()
            self.case_public = session.get_one(CaseKey, (case, 1)).public
            session.expunge_all()
        self.envelope = Envelope(message.header, message.seal, message.body)
        cards = {seal.unit: installation.world.founding.cards.unit(seal.unit).public for seal in self.seals}
        self.publics = {self.case_public, *cards.values()}

    def open(self, key: bytes) -> str | None:
        """Return the words, if `key` is a unit's, the case's or the message's; None if it is no key to them."""
        for seal in self.seals:
            try:
                case_private = open_case_key(
                    key, seal.case, 1, seal.unit, seal.unit_generation, seal.sealed, case_public=self.case_public
                )
                return envelope.open_words(case_private, self.envelope)
            except CannotOpen:
                continue
        try:
            return envelope.open_words(key, self.envelope)
        except CannotOpen:
            return self.open_body(key)

    def open_body(self, key: bytes) -> str | None:
        """Return the padded words if `key` is the message's own."""
        try:
            return boxes.aead_open(key, self.envelope.body, self.envelope.header).decode()
        except CannotOpen:
            return None

    def fits(self, key: bytes) -> bool:
        """Say the same as `open` in a tenth of the time: a box opens only with the private half of its public key."""
        return crypto_scalarmult_base(key) in self.publics or self.open_body(key) is not None


def test_nothing_that_the_public_process_holds_opens_what_it_sealed(
    forks: Forks, sqlite_installation: Installation, sqlite_sessions: Sessions, seed: int
) -> None:
    founding = sqlite_installation.world.founding
    bag = Mailbag(seed)
    process = Process(forks, sqlite_installation).started()
    # One that the screening unit reads, and one about an official, which it must not.
    texts = [
        a_text("Someone should look at the house behind the school.", bag.number(), sid="SM" + "1" * 32),
        a_text("A police officer is paid so that nobody asks about the child.", None, sid="SM" + "2" * 32),
    ]
    for sent in texts:
        assert ask_raw(process.port, sent.request).taken

    with sqlite_sessions.read() as session:
        cases = session.scalars(select(Case.id)).all()
    process.stop()
    locks = [Locks(sqlite_sessions, sqlite_installation, case) for case in cases]
    given = {key for data in held(sqlite_installation) for plain in decoded(data) for key in runs(plain)}
    there = {key for data in stored(sqlite_sessions) for key in runs(data)}
    print(f"{len(given)} runs of bytes in settings and files, {len(there)} in the database")

    secrets = {founding.row_key, founding.phone_pepper, founding.place_key, founding.sketch_key}
    assert secrets | {founding.relay.public} <= given
    assert [lock.open(key) for key in sorted(given) for lock in locks if lock.open(key) is not None] == []
    assert [key.hex() for key in sorted(given | there) for lock in locks if lock.fits(key)] == []
    oversight = founding.unit_privates["oversight"]
    assert sorted(str(lock.open(oversight)) for lock in locks) == sorted(sent.words for sent in texts)
    assert all(lock.fits(oversight) for lock in locks)
    assert any(lock.open(founding.unit_privates["screening"]) for lock in locks)
