"""Boxes, AEAD, signatures, keyed names and row tags: what opens, and all that must not."""

import json
from datetime import UTC, datetime
from uuid import uuid4

import nacl.bindings as sodium
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.exceptions import CryptoError

from service.errors import CannotOpen
from service.vault import boxes

LOW_ORDER = [bytes(32), b"\x01" + bytes(31), bytes.fromhex("ecffffff" + "ff" * 27 + "7f")]


def flipped(data: bytes):
    """Yield `data` once for each byte, with one bit of that byte turned over."""
    for at in range(len(data)):
        yield data[:at] + bytes([data[at] ^ (1 << at % 8)]) + data[at + 1 :]


@settings(max_examples=30, deadline=None)
@given(secret=st.binary(max_size=200), context=st.text(st.characters(codec="ascii"), max_size=60))
def test_what_is_sealed_opens_in_its_place_only(secret, context):
    private, public = boxes.keypair()
    sealed = boxes.seal(public, context, secret)
    assert len(sealed) == len(secret) + 80
    assert boxes.unseal(private, context, sealed) == secret
    assert boxes.unseal(private, context.encode(), sealed) == secret
    with pytest.raises(CannotOpen):
        boxes.unseal(private, context + "|", sealed)


def test_a_box_with_any_byte_changed_does_not_open():
    private, public = boxes.keypair()
    for changed in flipped(boxes.seal(public, "case|1", b"s" * 32)):
        with pytest.raises(CannotOpen):
            boxes.unseal(private, "case|1", changed)


@pytest.mark.parametrize("length", [0, 1, 47, 48, 79])
def test_a_box_cut_short_does_not_open(length):
    private, public = boxes.keypair()
    with pytest.raises(CannotOpen):
        boxes.unseal(private, "c", boxes.seal(public, "c", b"")[:length])


def test_a_box_does_not_open_with_another_key():
    _, public = boxes.keypair()
    other, _ = boxes.keypair()
    with pytest.raises(CannotOpen):
        boxes.unseal(other, "c", boxes.seal(public, "c", b"s"))


def test_a_bare_box_without_its_place_does_not_open():
    private, public = boxes.keypair()
    with pytest.raises(CannotOpen):
        boxes.unseal(private, "c", sodium.crypto_box_seal(b"s" * 64, public))


def test_without_the_place_in_front_a_swap_would_open():
    """The control: a plain sealed box opens wherever it is put."""
    private, public = boxes.keypair()
    sealed = sodium.crypto_box_seal(b"key of case 1", public)
    assert sodium.crypto_box_seal_open(sealed, public, private) == b"key of case 1"


@pytest.mark.parametrize("key", [*LOW_ORDER, b"", b"k" * 31, b"k" * 33])
def test_nothing_is_sealed_to_a_key_that_everybody_holds(key):
    assert not boxes.is_box_key(key)
    with pytest.raises(ValueError, match="key"):
        boxes.seal(key, "c", b"s")


def test_a_real_key_can_be_sealed_to():
    private, public = boxes.keypair()
    assert boxes.is_box_key(public)
    assert boxes.public_of(private) == public


def test_a_context_must_be_ascii():
    _, public = boxes.keypair()
    with pytest.raises(ValueError, match="ascii"):
        boxes.seal(public, "ករណី", b"s")


@pytest.mark.parametrize("part", ["", "a|b", "ក", "a\nb"])
def test_no_part_of_a_context_can_pass_for_two(part):
    with pytest.raises(ValueError, match="context"):
        boxes.context_of("unit", part, 1)


def test_aead_opens_with_its_key_and_data_only():
    key = boxes.random_bytes()
    sealed = boxes.aead_seal(key, b"plain", "contact|1")
    assert len(sealed) == 5 + 40
    assert boxes.aead_open(key, sealed, b"contact|1") == b"plain"
    with pytest.raises(CannotOpen):
        boxes.aead_open(key, sealed, "contact|2")
    with pytest.raises(CannotOpen):
        boxes.aead_open(boxes.random_bytes(), sealed, "contact|1")
    for changed in flipped(sealed):
        with pytest.raises(CannotOpen):
            boxes.aead_open(key, changed, "contact|1")
    for length in (0, 23, 24, 39, 44):
        with pytest.raises(CannotOpen):
            boxes.aead_open(key, sealed[:length], "contact|1")


def test_nonces_do_not_repeat():
    key = boxes.random_bytes()
    assert len({boxes.aead_seal(key, b"", b"a")[:24] for _ in range(50_000)}) == 50_000


@pytest.mark.parametrize("length", [0, 16, 31, 33, 64])
def test_keys_of_another_length_are_refused_before_they_are_read(length):
    key, good = bytes(length), boxes.random_bytes()
    calls = [
        lambda: boxes.public_of(key),
        lambda: boxes.signing_public_of(key),
        lambda: boxes.sign(key, b"m"),
        lambda: boxes.unseal(key, "c", bytes(100)),
        lambda: boxes.aead_seal(key, b"m", b"a"),
        lambda: boxes.aead_open(key, boxes.aead_seal(good, b"m", b"a"), b"a"),
        lambda: boxes.keyed_name(key, b"m", boxes.PHONE),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="32 bytes"):
            call()


def test_a_signature_is_good_for_its_key_and_message_only():
    seed, public = boxes.signing_keypair()
    signature = boxes.sign(seed, b"message")
    assert public == boxes.signing_public_of(seed)
    assert boxes.verify(public, b"message", signature)
    assert not boxes.verify(public, b"messagf", signature)
    assert not boxes.verify(boxes.signing_keypair()[1], b"message", signature)
    assert not any(boxes.verify(public, b"message", changed) for changed in flipped(signature))
    assert not boxes.verify(public, b"message", signature[:63])
    assert not boxes.verify(public, b"message", signature + b"\0")
    assert not boxes.verify(public[:31], b"message", signature)


def test_of_the_signatures_at_the_edges_exactly_one_is_taken(vectors):
    edges = json.loads((vectors / "ed25519-edges" / "ed25519vectors.json").read_text())
    parts = [(bytes.fromhex(e["key"]), e["msg"].encode(), bytes.fromhex(e["sig"]), e["flags"]) for e in edges]
    taken = [flags for key, message, signature, flags in parts if boxes.verify(key, message, signature)]
    assert len(parts) == 914
    assert [flags or [] for flags in taken] == [[]]

    # The control: libsodium without our check of the key takes forty-two more.
    alone = 0
    for key, message, signature, _ in parts:
        try:
            sodium.crypto_sign_open(signature + message, key)
            alone += 1
        except CryptoError:
            continue
    assert alone == 43


def test_names_differ_by_key_and_by_purpose():
    people = [boxes.PHONE, boxes.PLACE, boxes.LOC, boxes.MBX, boxes.AUTH, boxes.ROW, boxes.SID, boxes.FORM]
    keys = [b"\1" * 32, b"\2" * 32]
    assert len({boxes.keyed_name(key, b"x", person) for key in keys for person in people}) == 16
    assert all(len(person) <= 16 for person in people)
    with pytest.raises(ValueError, match="person"):
        boxes.keyed_name(keys[0], b"x", b"bamboo-too-long-v1")


def a_row() -> dict[str, object]:
    return {"table": "case_key", "case": uuid4(), "g": 1, "pk": boxes.random_bytes(), "gone": None}


def test_a_row_keeps_its_tag_whatever_the_order_of_its_columns():
    key, row = boxes.random_bytes(), a_row()
    tag = boxes.row_tag(key, row)
    boxes.check_row_tag(key, dict(reversed(row.items())), tag)


def test_a_changed_row_or_tag_is_refused():
    key, row = boxes.random_bytes(), a_row()
    tag = boxes.row_tag(key, row)
    for changed in (
        row | {"pk": boxes.keypair()[1]},
        row | {"case": uuid4()},
        row | {"g": 2},
        row | {"table": "mailbox"},
        row | {"more": 1},
        {column: value for column, value in row.items() if column != "gone"},
    ):
        with pytest.raises(CannotOpen):
            boxes.check_row_tag(key, changed, tag)
    for wrong in flipped(tag):
        with pytest.raises(CannotOpen):
            boxes.check_row_tag(key, row, wrong)
    with pytest.raises(CannotOpen):
        boxes.check_row_tag(boxes.random_bytes(), row, tag)


@pytest.mark.parametrize("value", [1.5, datetime(2026, 11, 21, tzinfo=UTC), {1, 2}])
def test_a_value_without_a_canonical_form_has_no_tag(value):
    with pytest.raises(ValueError, match="canonical"):
        boxes.row_tag(boxes.random_bytes(), {"column": value})
