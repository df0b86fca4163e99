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
from typing import Any

import structlog
from sqlalchemy import select
from sqlmodel import Session, col

from service.db import Tx
from service.errors import BadCards
from service.ledger.events import SYSTEM, EventType, Ledger, NewEvent, StateClass, append, fixed_chain
from service.models import CardsDeck, LedgerEvent, LedgerField, Organisation, Unit
from service.vault import boxes, note
from service.vault.cards import Card, Cards, RelayKey, UnitKind, check_usable, read_cards, write_cards, write_relay_note

log = structlog.get_logger("ceremony")

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
        "COVER_KEY": "cover.key",
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
    return _newest_published(session, "serial") or 0


def check_published(session: Session, deck: Cards) -> None:
    """Return if the history knows nothing newer than `deck`, and nothing else under its serial. Raises BadCards."""
    serial = newest_serial(session)
    if deck.serial < serial:
        raise BadCards("a cards file older than the newest one published")
    if deck.serial == serial and _newest_published(session, "sha256") != deck.sha256:
        raise BadCards("another cards file than the one published with this serial")


def _newest_published(session: Session, name: str) -> Any:
    found = session.scalar(
        select(col(LedgerField.value))
        .join(LedgerEvent, col(LedgerEvent.eid) == col(LedgerField.eid))
        .where(
            col(LedgerEvent.case) == fixed_chain("keys"),
            col(LedgerEvent.type) == EventType.CARDS_PUBLISHED,
            col(LedgerField.name) == name,
        )
        .order_by(col(LedgerEvent.seq).desc())
        .limit(1)
    )
    return json.loads(found) if found else None


def publish(tx: Tx, ledger: Ledger, text: str, root_vkey: str, *, officers: Sequence[str], now: datetime) -> Cards:
    """Take a cards file into use: append who published it, keep it for what was sealed before, and return it.

    officers: the names of two persons who compared its hash. Raises BadCards for a file that the root did not sign,
    that intake cannot run on, whose serial is not above the newest, that knows less of a unit than the one before it,
    or without two officers.
    """
    names = [name.strip() for name in officers if name.strip()]
    if len({name.casefold() for name in names}) < 2:
        raise BadCards("two officers publish a cards file")
    deck = read_cards(text, root_vkey)
    check_usable(deck)
    newest = newest_serial(tx)
    if deck.serial <= newest:
        raise BadCards(f"a serial that is not above the newest one published, {newest}")
    for card in past_cards(tx, root_vkey):
        now_there = next((c for c in deck.units if c.unit == card.unit), None)
        if now_there is not None and now_there.generation < card.generation:
            raise BadCards(f"unit {card.unit} goes back to generation {now_there.generation} of its key")
        if now_there is not None and now_there.generation == card.generation and now_there.public != card.public:
            raise BadCards(f"unit {card.unit} has another key under the same generation")
    tx.add(CardsDeck(serial=deck.serial, note=text))
    tx.flush()
    fields = {"serial": deck.serial, "sha256": deck.sha256, "officers": names}
    append(tx, ledger, fixed_chain("keys"), [_of_keys(EventType.CARDS_PUBLISHED, now, fields)])
    return deck


def past_cards(session: Session, root_vkey: str) -> tuple[Card, ...]:
    """Return the units' cards of every file published, that the root signed; a row with another's is left out."""
    cards: dict[tuple[str, int], Card] = {}
    for row in session.scalars(select(CardsDeck).order_by(col(CardsDeck.serial))).all():
        try:
            deck = read_cards(row.note, root_vkey)
        except BadCards:
            log.error("cards_row_is_not_ours")
            continue
        for card in deck.units:
            cards.setdefault((card.unit, card.generation), card)
    return tuple(cards.values())


def started(tx: Tx, ledger: Ledger, process: str, deck: Cards, *, code: str, settings: str, now: datetime) -> None:
    """Append that a process has started, with the hashes of its code, settings and cards (keys.md section 4)."""
    fields = {"process": process, "code": code, "settings": settings, "cards": deck.sha256, "serial": deck.serial}
    append(tx, ledger, fixed_chain("system"), [_of_keys(EventType.CODE_STARTED, now, fields)])


def _of_keys(what: EventType, now: datetime, fields: Mapping[str, object]) -> NewEvent:
    return NewEvent(what, now, SYSTEM, StateClass.SYSTEM, fields=fields)


def register(
    tx: Tx,
    ledger: Ledger,
    organisations: Mapping[str, tuple[str, str]],
    plans: Sequence[UnitPlan],
    deck: Cards,
    now: datetime,
    *,
    text: str | None = None,
    officers: Sequence[str] = (),
) -> None:
    """Write the names of organisations (id to English, Khmer) and units, and append that the cards were published.

    text, officers: the cards file and the two who compared its hash (`publish`); the demo has none.
    """
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
    if text is not None:
        tx.add(CardsDeck(serial=deck.serial, note=text))
    tx.flush()
    fields = {"serial": deck.serial, "sha256": deck.sha256, "officers": list(officers)}
    append(tx, ledger, fixed_chain("keys"), [_of_keys(EventType.CARDS_PUBLISHED, now, fields)])
