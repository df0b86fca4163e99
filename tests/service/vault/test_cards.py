"""Cards: nothing is sealed to a key that the root did not sign."""

import base64
from dataclasses import replace
from datetime import date
from typing import Any

import pytest

from service.errors import BadCards, BadNote
from service.vault import boxes, note
from service.vault.cards import (
    Card,
    RelayKey,
    UnitKind,
    check_usable,
    read_cards,
    read_relay_note,
    write_cards,
    write_relay_note,
)

ROOT_SEED, ROOT_PUBLIC = boxes.signing_keypair()
ROOT = note.vkey("root.example", ROOT_PUBLIC)
RELAY_SEED, RELAY_PUBLIC = boxes.signing_keypair()
DAY = date(2026, 11, 21)


def a_card(unit: str, kind: str, organisation: str, **other: Any) -> Card:
    given = {"generation": 1, "public": boxes.keypair()[1], "not_before": DAY} | other
    return Card(unit, UnitKind(kind), organisation, **given)


UNITS = (
    a_card("s-1", "screening", "ngo-1"),
    a_card("o-1", "oversight", "ngo-1"),
    a_card("o-2", "oversight", "ngo-2"),
    a_card("h-1", "unit", "police-1", generation=3),
    a_card("m-1", "monitor", "ngo-3"),
    a_card("i-1", "integrity", "ngo-2"),
)


def written(units=UNITS, **other: Any) -> str:
    given = {"relay": RELAY_PUBLIC, "root_name": "root.example", "root_seed": ROOT_SEED} | other
    return write_cards(given.pop("serial", 7), DAY, units, **given)


def signed(text: str) -> str:
    return note.sign_note(text, "root.example", ROOT_SEED)


def test_written_cards_are_read_back():
    recovery, backup = boxes.keypair()[1], boxes.keypair()[1]
    text = written(recovery=recovery, backup=backup)
    cards = read_cards(text, ROOT)
    assert (cards.serial, cards.day, cards.units) == (7, DAY, UNITS)
    assert (cards.relay, cards.recovery, cards.backup) == (RELAY_PUBLIC, recovery, backup)
    assert cards.sha256 == boxes.H(text.encode()).hex()
    assert read_cards(text.encode(), ROOT) == cards
    check_usable(cards)


def test_cards_answer_who_does_what():
    cards = read_cards(written(), ROOT)
    assert cards.screening() == UNITS[0]
    assert cards.oversight_for("ngo-1") == UNITS[2]
    assert cards.oversight_for("ngo-2") == UNITS[1]
    assert cards.monitor() == UNITS[4]
    assert cards.integrity() == UNITS[5]
    assert cards.unit("h-1") == UNITS[3]
    assert cards.one(UnitKind.UNIT) == UNITS[3]
    assert cards.of_kind(UnitKind.OVERSIGHT) == (UNITS[1], UNITS[2])
    with pytest.raises(BadCards):
        cards.unit("h-2")


def test_cards_without_integrity_say_so():
    cards = read_cards(written(UNITS[:5]), ROOT)
    assert cards.integrity() is None
    check_usable(cards)


def test_a_unit_is_not_used_before_its_day():
    later = replace(UNITS[0], not_before=date(2026, 12, 1))
    cards = read_cards(written((later, *UNITS[1:])), ROOT)
    assert cards.valid_on(date(2026, 12, 1)) == cards
    with pytest.raises(BadCards):
        check_usable(cards.valid_on(date(2026, 11, 30)))


@pytest.mark.parametrize(
    "units",
    [UNITS[1:], (UNITS[0], UNITS[1], *UNITS[3:]), UNITS[:4] + UNITS[5:], ()],
    ids=["no screening", "oversight of the same organisation only", "no monitor", "none"],
)
def test_intake_does_not_start_without_its_readers(units):
    with pytest.raises(BadCards):
        check_usable(read_cards(written(units), ROOT))


def test_intake_does_not_start_without_a_relay():
    with pytest.raises(BadCards, match="relay"):
        check_usable(read_cards(written(relay=None), ROOT))


def test_any_changed_byte_of_the_cards_is_refused():
    text = written().encode()
    for at in range(len(text)):
        with pytest.raises(BadCards):
            read_cards(text[:at] + bytes([text[at] ^ 1 << at % 8]) + text[at + 1 :], ROOT)


def test_cards_of_another_root_are_refused():
    with pytest.raises(BadCards):
        read_cards(written(), note.vkey("root.example", boxes.signing_keypair()[1]))
    for root in ("", "root.example", note.vkey("root.example", ROOT_PUBLIC, 4)):
        with pytest.raises(BadCards):
            read_cards(written(), root)


def test_older_cards_are_refused_and_the_same_ones_are_not():
    assert read_cards(written(), ROOT, newest_serial=7).serial == 7
    with pytest.raises(BadCards, match="older"):
        read_cards(written(), ROOT, newest_serial=8)


@pytest.mark.parametrize("key", [bytes(32), b"\x01" + bytes(31), b"k" * 31])
def test_a_key_that_cannot_be_sealed_to_is_refused(key):
    with pytest.raises(BadCards):
        written((replace(UNITS[0], public=key), *UNITS[1:]))
    with pytest.raises(BadCards):
        written(recovery=key)
    with pytest.raises(BadCards):
        written(relay=key)


def test_a_unit_or_key_that_stands_twice_is_refused():
    with pytest.raises(BadCards, match="unit"):
        written((*UNITS, a_card("s-1", "unit", "ngo-9")))
    with pytest.raises(BadCards, match="key"):
        written((*UNITS, a_card("s-2", "unit", "ngo-9", public=UNITS[2].public)))
    with pytest.raises(BadCards, match="key"):
        written(recovery=UNITS[2].public)
    with pytest.raises(BadCards, match="root"):
        written(relay=ROOT_PUBLIC)


KEY = base64.b64encode(bytes(range(32))).decode()  # fixed: it stands in the names of tests
HEAD = "bamboo cards/v1\n7\n2026-11-21\n"


@pytest.mark.parametrize(
    "text",
    [
        "bamboo cards/v2\n7\n2026-11-21\n",
        "bamboo cards/v1\n7\n",
        "bamboo cards/v1\n07\n2026-11-21\n",
        "bamboo cards/v1\n0\n2026-11-21\n",
        "bamboo cards/v1\n-7\n2026-11-21\n",
        "bamboo cards/v1\n7\n20261121\n",
        "bamboo cards/v1\n7\n2026-02-30\n",
        HEAD + "\n",
        HEAD + "gate x\n",
        HEAD + f"unit u-1 clerk org-1 1 {KEY} 2026-11-01\n",
        HEAD + f"unit u-1 unit org-1 0 {KEY} 2026-11-01\n",
        HEAD + f"unit u-1 unit org-1 one {KEY} 2026-11-01\n",
        HEAD + f"unit u-1 unit org-1 1 {KEY}\n",
        HEAD + f"unit u-1 unit org-1 1 {KEY} 2026-11-01 more\n",
        HEAD + f"unit u|1 unit org-1 1 {KEY} 2026-11-01\n",
        HEAD + f"unit  unit org-1 1 {KEY} 2026-11-01\n",
        HEAD + f"unit u-1 unit org-1 1 {KEY.rstrip('=')} 2026-11-01\n",
        HEAD + f"relay {base64.b64encode(RELAY_PUBLIC).decode()}\n" * 2,
        HEAD + f"backup {KEY}\nbackup {KEY}\n",
        HEAD + "relay\n",
    ],
)
def test_a_malformed_line_is_refused_though_the_root_signed_it(text):
    with pytest.raises(BadCards):
        read_cards(signed(text), ROOT)


def test_a_relay_key_is_read_back_from_its_identity_only():
    key = RelayKey(4, boxes.keypair()[1], DAY, date(2026, 12, 21))
    text = write_relay_note(key, RELAY_SEED)
    assert text.startswith("bamboo relay/v1\n4\n")
    assert read_relay_note(text, RELAY_PUBLIC) == key
    with pytest.raises(BadNote):
        read_relay_note(text, ROOT_PUBLIC)
    encoded = text.encode()
    for at in range(len(encoded)):
        with pytest.raises(BadNote):
            read_relay_note(encoded[:at] + bytes([encoded[at] ^ 1]) + encoded[at + 1 :], RELAY_PUBLIC)


@pytest.mark.parametrize(
    "changed", [{"generation": 0}, {"public": bytes(32)}, {"until": DAY}, {"until": date(2026, 11, 1)}]
)
def test_a_relay_key_that_cannot_be_used_is_not_written(changed):
    key = RelayKey(4, boxes.keypair()[1], DAY, date(2026, 12, 21))
    with pytest.raises(BadNote):
        write_relay_note(replace(key, **changed), RELAY_SEED)


def test_one_kind_of_note_cannot_pass_for_the_other():
    text = note.sign_note(f"bamboo cards/v1\n4\n{KEY}\n2026-11-21\n2026-12-21\n", "relay", RELAY_SEED)
    with pytest.raises(BadNote):
        read_relay_note(text, RELAY_PUBLIC)
    with pytest.raises(BadCards):
        read_cards(signed(f"bamboo relay/v1\n4\n{KEY}\n2026-11-21\n2026-12-21\n"), ROOT)
