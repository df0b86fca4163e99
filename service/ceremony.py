"""Making an installation's keys: cards, relay, units and the secrets of each process (keys.md sections 2 and 4).

The production ceremony, on paper and offline machines, is built on these; the demo runs them in one go.
"""

import json
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from sqlalchemy import select
from sqlmodel import Session, col

from service.db import Tx
from service.ledger.events import SYSTEM, EventType, Ledger, NewEvent, StateClass, append, fixed_chain
from service.models import LedgerEvent, LedgerField, Organisation, Unit
from service.vault import boxes, note
from service.vault.cards import Card, Cards, RelayKey, UnitKind, check_usable, read_cards, write_cards, write_relay_note

ROOT_NAME = "root"
RELAY_DAYS = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class UnitPlan:
    """A unit to be founded."""

    id: str
    kind: UnitKind
    organisation: str
    name: str
    name_km: str
    province: str | None = None


@dataclass(frozen=True, slots=True, repr=False)
class Founding:
    """All keys of a new installation. Its repr shows nothing; `files` is what each process gets."""

    root_seed: bytes
    root_vkey: str
    cards_note: str
    cards: Cards
    relay_note: str
    relay: RelayKey
    relay_private: bytes
    relay_seed: bytes
    recovery_private: bytes
    backup_private: bytes
    unit_privates: Mapping[str, bytes]
    row_key: bytes
    phone_pepper: bytes
    place_key: bytes
    sketch_key: bytes
    code_pepper: bytes
    cover_key: bytes


def found(plans: Sequence[UnitPlan], *, now: datetime) -> Founding:
    """Return fresh keys for the planned units, with a cards file signed by a fresh root and a first relay key.

    Raises BadCards when the plan has no screening unit, no oversight of another organisation, or no monitor.
    """
    day = now.astimezone(UTC).date()
    root_seed, root_public = boxes.signing_keypair()
    relay_seed, relay_identity = boxes.signing_keypair()
    relay_private, relay_public = boxes.keypair()
    recovery_private, recovery_public = boxes.keypair()
    backup_private, backup_public = boxes.keypair()
    pairs = {plan.id: boxes.keypair() for plan in plans}
    cards = [Card(plan.id, plan.kind, plan.organisation, 1, pairs[plan.id][1], day) for plan in plans]
    text = write_cards(
        1,
        day,
        cards,
        relay=relay_identity,
        recovery=recovery_public,
        backup=backup_public,
        root_name=ROOT_NAME,
        root_seed=root_seed,
    )
    root_vkey = note.vkey(ROOT_NAME, root_public)
    deck = read_cards(text, root_vkey)
    check_usable(deck)
    relay = RelayKey(1, relay_public, day, _later(day))
    return Founding(
        root_seed=root_seed,
        root_vkey=root_vkey,
        cards_note=text,
        cards=deck,
        relay_note=write_relay_note(relay, relay_seed),
        relay=relay,
        relay_private=relay_private,
        relay_seed=relay_seed,
        recovery_private=recovery_private,
        backup_private=backup_private,
        unit_privates={unit: pair[0] for unit, pair in pairs.items()},
        **{name: secrets.token_bytes(32) for name in _SECRETS},
    )


_SECRETS = ("row_key", "phone_pepper", "place_key", "sketch_key", "code_pepper", "cover_key")


def _later(day: date) -> date:
    return day + RELAY_DAYS


def write_files(founding: Founding, directory: Path, *, twilio_token: str, twilio_api_key: str = "") -> dict[str, str]:
    """Write the online keys below `directory`, mode 0400, and return the ``HOTLINE_*`` settings of the web processes.

    Those of the worker are `worker_files`. Offline keys (root, recovery, backup, units) are not written at all: who
    founds keeps those.
    """
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    texts = {
        "cards_file": ("cards.note", founding.cards_note),
        "relay_file": ("relay.note", founding.relay_note),
        "twilio_token_file": ("twilio.token", twilio_token),
        "row_key_file": ("row.key", founding.row_key.hex()),
        "phone_pepper_file": ("phone.pepper", founding.phone_pepper.hex()),
        "place_key_file": ("place.key", founding.place_key.hex()),
        "sketch_key_file": ("sketch.key", founding.sketch_key.hex()),
    }
    api_key = [("twilio.key", twilio_api_key)] if twilio_api_key else []
    for name, text in [*texts.values(), *_worker_files(founding), *api_key]:
        write_secret(directory / name, text)
    settings = {f"HOTLINE_{setting.upper()}": str(directory / name) for setting, (name, _) in texts.items()}
    return settings | {"HOTLINE_ROOT_VKEY": founding.root_vkey}


def worker_files(directory: Path) -> dict[str, str]:
    """Return the settings that name what the worker alone may read, of the files that `write_files` wrote."""
    names = {
        "RELAY_KEY": "relay.key",
        "RELAY_IDENTITY": "relay.identity",
        "TWILIO_API_KEY": "twilio.key",
        "PHONE_PEPPER": "phone.pepper",
    }
    return {f"HOTLINE_{setting}_FILE": str(directory / name) for setting, name in names.items()}


def public_files(directory: Path) -> dict[str, str]:
    """Return the settings that name what the public process alone may read, of the files that `write_files` wrote."""
    return {"HOTLINE_CODE_PEPPER_FILE": str(directory / "code.pepper")}


def _worker_files(founding: Founding) -> list[tuple[str, str]]:
    return [
        ("relay.key", founding.relay_private.hex()),
        ("relay.identity", founding.relay_seed.hex()),
        ("code.pepper", founding.code_pepper.hex()),
        ("cover.key", founding.cover_key.hex()),
    ]


def write_secret(path: Path, text: str) -> None:
    """Write `text` to `path` so that nobody else could ever read it: created with mode 0400, then renamed."""
    draft = path.with_name(path.name + ".new")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text if text.endswith("\n") else text + "\n")
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def newest_serial(session: Session) -> int:
    """Return the serial of the newest ``keys:cards:published``, or 0: a file below it is an old one put back."""
    found = session.scalar(
        select(col(LedgerField.value))
        .join(LedgerEvent, col(LedgerEvent.eid) == col(LedgerField.eid))
        .where(
            col(LedgerEvent.case) == fixed_chain("keys"),
            col(LedgerEvent.type) == EventType.CARDS_PUBLISHED,
            col(LedgerField.name) == "serial",
        )
        .order_by(col(LedgerEvent.seq).desc())
        .limit(1)
    )
    return int(json.loads(found)) if found else 0


def register(
    tx: Tx,
    ledger: Ledger,
    organisations: Mapping[str, tuple[str, str]],
    plans: Sequence[UnitPlan],
    deck: Cards,
    now: datetime,
) -> None:
    """Write the names of organisations (id to English, Khmer) and units, and append that the cards were published."""
    for organisation, (name, name_km) in organisations.items():
        tx.add(Organisation(id=organisation, name=name, name_km=name_km))
    tx.flush()
    for plan in plans:
        tx.add(
            Unit(
                id=plan.id,
                organisation=plan.organisation,
                kind=plan.kind,
                name=plan.name,
                name_km=plan.name_km,
                province=plan.province,
            )
        )
    tx.flush()
    event = NewEvent(
        EventType.CARDS_PUBLISHED,
        now,
        SYSTEM,
        StateClass.SYSTEM,
        fields={"serial": deck.serial, "sha256": deck.sha256},
    )
    append(tx, ledger, fixed_chain("keys"), [event])
