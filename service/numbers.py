"""What numbers are sealed to and named under: the relay's generations and the peppers' epochs (keys.md 6.11 and 8).

Nothing here opens a number: the receiving process takes the newest of both up by itself. `carrying` does the rest.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta

import structlog
from sqlalchemy import select
from sqlmodel import Session

from service.db import Tx
from service.draft import Pepper, naming
from service.errors import BadNote
from service.keyring import Keyring
from service.ledger.events import SYSTEM, EventType, Ledger, NewEvent, StateClass, append, fixed_chain
from service.models import RelayGeneration
from service.vault import boxes
from service.vault.cards import RelayKey, read_relay_note, write_relay_note

log = structlog.get_logger("numbers")

RELAY_DAYS = timedelta(days=30)
PEPPER_DAYS = timedelta(days=30)


@dataclass(frozen=True)
class Peppers:
    """The phone peppers of a file. Those of this and the last epoch are used, and one that is to come."""

    ring: Keyring

    def peppers(self) -> tuple[Pepper, ...]:
        """Return the peppers that numbers are looked up under, newest first."""
        return tuple(Pepper(g.number, g.secret, g.start) for g in self.ring.generations())

    def destroy_old(self, now: datetime) -> list[int]:
        """Destroy the peppers before the last in this host's file, and return their epochs."""
        last = naming(self.peppers(), now).epoch - 1
        return self.ring.keep(lambda epoch: epoch >= last)


# --- relay generations ----------------------------------------------------------------------------------


def relay_keys(session: Session, identity: bytes, first: RelayKey | None = None) -> list[RelayKey]:
    """Return the relay's public keys that its `identity` signed, newest first. first: the one of the relay file.

    A row with another's note is reported and left out: nothing is sealed to a key because it stands in a row.
    """
    found = {} if first is None else {first.generation: first}
    for row in session.scalars(select(RelayGeneration)).all():
        try:
            key = read_relay_note(row.note, identity)
            if key.generation != row.generation:
                raise BadNote("the note of another generation")
        except BadNote:
            log.error("relay_note_is_not_ours")
            continue
        found[key.generation] = key
    return [found[generation] for generation in sorted(found, reverse=True)]


def sealing(keys: Sequence[RelayKey], today: date) -> RelayKey | None:
    """Return the key that numbers are sealed to on a day: the newest that has begun; None when there is none."""
    return next((key for key in keys if key.start <= today), None)


def next_relay(
    tx: Tx, ledger: Ledger, seed: bytes, private: bytes, keys: Sequence[RelayKey], start: date, now: datetime
) -> RelayKey:
    """Publish the next generation of the relay's key, signed by its identity `seed`, and append it.

    private: its X25519 half, which lies on every worker host by then. Raises BadNote for a start before the last one's.
    """
    number = max((key.generation for key in keys), default=0) + 1
    if any(key.start > start for key in keys):
        raise BadNote("a relay key that starts before the one before")
    key = RelayKey(number, boxes.public_of(private), start, start + RELAY_DAYS)
    tx.add(RelayGeneration(generation=number, note=write_relay_note(key, seed)))
    tx.flush()
    fields = {"generation": number, "public": key.public.hex(), "from": start.isoformat()}
    append(
        tx,
        ledger,
        fixed_chain("keys"),
        [NewEvent(EventType.RELAY_ROTATED, now, SYSTEM, StateClass.SYSTEM, None, fields)],
    )
    return key


def announce_pepper(tx: Tx, ledger: Ledger, epoch: int, start: datetime, now: datetime) -> None:
    """Append that numbers are named under the pepper of `epoch` from `start` on. Its secret is in files alone."""
    fields = {"epoch": epoch, "from": start.isoformat()}
    append(
        tx,
        ledger,
        fixed_chain("keys"),
        [NewEvent(EventType.PEPPER_ROTATED, now, SYSTEM, StateClass.SYSTEM, None, fields)],
    )


# --- the public process's side --------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """Where the receiving process finds what to seal numbers to and name them under, asked every few seconds."""

    identity: bytes
    first: RelayKey | None
    names: Peppers = field(repr=False)

    def look(self, tx: Session, now: datetime, before: RelayKey | None) -> tuple[RelayKey | None, tuple[Pepper, ...]]:
        """Return relay key and peppers as of `now`. before: the key used so far; an older one is never gone back to."""
        relay = sealing(relay_keys(tx, self.identity, self.first), now.astimezone(UTC).date())
        if before is not None and (relay is None or relay.generation < before.generation):
            relay = before
        self.names.destroy_old(now)
        return relay, self.names.peppers()
