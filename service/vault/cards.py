"""The cards file: the only public keys of units that anything is sealed to, signed offline (keys.md section 4).

It lies on each host, and the root's verifier key in the settings, so that a changed row in the database changes
nobody's key. Relay generations are notes of the same form under the relay identity that the cards name.
"""

import base64
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import date
from enum import StrEnum
from typing import NoReturn

from service.errors import BadCards, BadNote
from service.vault import boxes, note

CARDS = "bamboo cards/v1"
RELAY = "bamboo relay/v1"
RELAY_NAME = "relay"

_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_NUMBER = re.compile(r"[1-9][0-9]{0,8}")


class UnitKind(StrEnum):
    """What a unit does; the screening unit is a non-state one that reads first (casework.md section 3)."""

    SCREENING = "screening"
    UNIT = "unit"
    OVERSIGHT = "oversight"
    INTEGRITY = "integrity"
    MONITOR = "monitor"


@dataclass(frozen=True, slots=True)
class Card:
    """One unit's line: its id, kind, organisation, key generation, X25519 key and first day of use."""

    unit: str
    kind: UnitKind
    organisation: str
    generation: int
    public: bytes
    not_before: date


@dataclass(frozen=True, slots=True)
class Cards:
    """A cards file that the root signed, its units in the order of the note.

    relay: the relay's Ed25519 identity. recovery, backup: X25519 keys. sha256: of the whole note, in hex.
    past: units' cards of files published before, that the same root signed: they open what was sealed then, and
    nothing is sealed to them.
    """

    serial: int
    day: date
    units: tuple[Card, ...]
    relay: bytes | None
    recovery: bytes | None
    backup: bytes | None
    sha256: str
    past: tuple[Card, ...] = ()

    def at(self, unit: str, generation: int) -> Card:
        """Return the card of a unit at one generation of its key, now or before. Raises BadCards if there is none."""
        return _first(card for card in (*self.units, *self.past) if (card.unit, card.generation) == (unit, generation))

    def unit(self, unit: str) -> Card:
        """Return the card of a unit by its id. Raises BadCards if there is none."""
        return _first(card for card in self.units if card.unit == unit)

    def of_kind(self, kind: UnitKind) -> tuple[Card, ...]:
        """Return the cards of one kind, in the order of the note."""
        return tuple(card for card in self.units if card.kind == kind)

    def one(self, kind: UnitKind) -> Card:
        """Return the first card of one kind. Raises BadCards if there is none."""
        return _first(self.of_kind(kind))

    def screening(self) -> Card:
        """Return the unit that every case is sealed to first. Raises BadCards if there is none."""
        return self.one(UnitKind.SCREENING)

    def oversight_for(self, organisation: str) -> Card:
        """Return the first oversight unit of another organisation. Raises BadCards if there is none."""
        return _first(card for card in self.of_kind(UnitKind.OVERSIGHT) if card.organisation != organisation)

    def monitor(self) -> Card:
        """Return the unit that opens events and censuses, never content. Raises BadCards if there is none."""
        return self.one(UnitKind.MONITOR)

    def integrity(self) -> Card | None:
        """Return the unit for cases about officials, or None: then those go to oversight alone."""
        return next(iter(self.of_kind(UnitKind.INTEGRITY)), None)

    def valid_on(self, day: date) -> "Cards":
        """Return the same cards without the units whose first day of use lies after `day`."""
        return replace(self, units=tuple(card for card in self.units if card.not_before <= day))


def read_cards(text: str | bytes, root_vkey: str, *, newest_serial: int = 0) -> Cards:
    """Return the cards of a note signed by the root (keys.md section 4).

    text: the whole note. root_vkey: from the settings. newest_serial: of the newest ``keys:cards:published``.
    Raises BadCards for a bad signature or root key, a serial below `newest_serial`, a malformed or unknown line,
    a unit or key that stands twice, or a key that must not be trusted.
    """
    encoded = text.encode(errors="surrogatepass") if isinstance(text, str) else text
    try:
        root = note.parse_vkey(root_vkey)
        if root.kind != note.ED25519:
            raise BadNote("the root's key is not one for notes")
        cards = _parse(encoded, root)
    except BadNote as fault:
        raise BadCards(str(fault)) from None
    if cards.serial < newest_serial:
        raise BadCards("a cards file older than the newest one published")
    if cards.relay == root.public:
        raise BadCards("the root's key serves as the relay's")
    return cards


def check_usable(cards: Cards) -> None:
    """Return if intake can run on these cards: its first two readers, the monitor and the relay are there.

    Raises BadCards if there is no screening unit, no oversight unit of another organisation than the screening
    unit's, no monitor unit or no relay identity (keys.md section 4: refuse to start).
    """
    for kind in (UnitKind.SCREENING, UnitKind.MONITOR):
        if not cards.of_kind(kind):
            raise BadCards(f"the cards name no {kind} unit")
    try:
        cards.oversight_for(cards.screening().organisation)
    except BadCards:
        raise BadCards("the cards name no oversight unit of another organisation than the screening unit's") from None
    if cards.relay is None:
        raise BadCards("the cards name no relay")


def write_cards(
    serial: int,
    day: date,
    units: Iterable[Card],
    *,
    relay: bytes | None,
    recovery: bytes | None = None,
    backup: bytes | None = None,
    root_name: str,
    root_seed: bytes,
) -> str:
    """Return a cards file signed by the root, for the machine that is never online (keys.md section 4).

    serial: higher than the last one's. root_seed: Ed25519, 32 bytes; root_name: the name in the root's verifier key.
    Raises BadCards for anything that `read_cards` would refuse.
    """
    lines = [CARDS, str(serial), day.isoformat()]
    lines += [
        f"unit {c.unit} {c.kind} {c.organisation} {c.generation} {_base64(c.public)} {c.not_before.isoformat()}"
        for c in units
    ]
    single = {"relay": relay, "recovery": recovery, "backup": backup}
    lines += [f"{word} {_base64(key)}" for word, key in single.items() if key is not None]
    try:
        written = note.sign_note(_text(lines), root_name, root_seed)
        read_cards(written, note.vkey(root_name, boxes.signing_public_of(root_seed)))
    except BadNote as fault:
        raise BadCards(str(fault)) from None
    return written


@dataclass(frozen=True, slots=True)
class RelayKey:
    """One generation of the relay's key: X25519, good from the day `start` up to and not on `until`."""

    generation: int
    public: bytes
    start: date
    until: date


def write_relay_note(key: RelayKey, relay_identity_seed: bytes) -> str:
    """Return the note by which the relay identity (Ed25519 seed) names a generation of its key (keys.md section 4).

    Raises BadNote for anything that `read_relay_note` would refuse.
    """
    lines = [RELAY, str(key.generation), _base64(key.public), key.start.isoformat(), key.until.isoformat()]
    written = note.sign_note(_text(lines), RELAY_NAME, relay_identity_seed)
    read_relay_note(written, boxes.signing_public_of(relay_identity_seed))
    return written


def read_relay_note(text: str | bytes, relay_identity_public: bytes) -> RelayKey:
    """Return the relay key that a note names (keys.md section 4).

    relay_identity_public: `Cards.relay`, never from a row. Whether today lies in its days is the caller's to ask.
    Raises BadNote if it is not signed by that identity, malformed, ends before it starts or names a key that
    cannot be sealed to.
    """
    identity = note.parse_vkey(note.vkey(RELAY_NAME, relay_identity_public))
    body, _ = note.open_note(text, [identity])
    lines = body[:-1].split("\n")
    if len(lines) != 5 or lines[0] != RELAY:
        raise BadNote("not a relay note")
    key = RelayKey(_number(lines[1]), _box_key(lines[2]), _day(lines[3]), _day(lines[4]))
    if not key.start < key.until:
        raise BadNote("a relay key that ends before it starts")
    return key


def _parse(encoded: bytes, root: note.Verifier) -> Cards:
    body, _ = note.open_note(encoded, [root])
    head, lines = body[:-1].split("\n")[:3], body[:-1].split("\n")[3:]
    if len(head) != 3 or head[0] != CARDS:
        raise BadNote("not a cards file")
    units: list[Card] = []
    single: dict[str, bytes] = {}
    for line in lines:
        word, *rest = line.split(" ")
        if word == "unit" and len(rest) == 6:
            units.append(_card(*rest))
        elif word in ("relay", "recovery", "backup") and len(rest) == 1 and word not in single:
            single[word] = _signing_key(rest[0]) if word == "relay" else _box_key(rest[0])
        else:
            _malformed()
    relay = single.pop("relay", None)
    if len({card.unit for card in units}) != len(units):
        raise BadNote("a unit that stands twice")
    # One key for two units would let one of them read as the other, and two organisations become one.
    keys = [card.public for card in units] + list(single.values())
    if len(set(keys)) != len(keys):
        raise BadNote("a key that serves twice")
    serial, day, digest = _number(head[1]), _day(head[2]), boxes.H(encoded).hex()
    return Cards(serial, day, tuple(units), relay, single.get("recovery"), single.get("backup"), digest)


def _card(unit: str, kind: str, organisation: str, generation: str, key: str, not_before: str) -> Card:
    if not _WORD.fullmatch(unit) or not _WORD.fullmatch(organisation) or kind not in set(UnitKind):
        _malformed()
    return Card(unit, UnitKind(kind), organisation, _number(generation), _box_key(key), _day(not_before))


def _number(text: str) -> int:
    if not _NUMBER.fullmatch(text):
        _malformed()
    return int(text)


def _day(text: str) -> date:
    try:
        day = date.fromisoformat(text)
    except ValueError:
        _malformed()
    if day.isoformat() != text:
        _malformed()
    return day


def _box_key(text: str) -> bytes:
    key = note.decode(text)
    if not boxes.is_box_key(key):
        raise BadNote("a key that cannot be sealed to")
    return key


def _signing_key(text: str) -> bytes:
    key = note.decode(text)
    if not boxes.is_signing_key(key):
        raise BadNote("a key that must not be trusted")
    return key


def _malformed() -> NoReturn:
    raise BadNote("a malformed line")


def _first(cards: Iterable[Card]) -> Card:
    for card in cards:
        return card
    raise BadCards("the cards name no such unit")


def _base64(key: bytes) -> str:
    return base64.b64encode(key).decode()


def _text(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)
