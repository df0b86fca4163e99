"""Envelopes: what is sealed opens once, in its place; anything moved or changed does not."""

import hashlib
from datetime import UTC, datetime, timedelta, timezone
from itertools import permutations
from uuid import UUID, uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import CannotOpen
from service.vault import boxes
from service.vault.envelope import Envelope, Kind, commitment, header, open_text, padme, seal_text

HOUR = datetime(2026, 11, 21, 10, 42, 7, tzinfo=UTC)
PRIVATE, PUBLIC = boxes.keypair()


def a_header(case: UUID | None = None, generation: int = 1, kind: Kind = Kind.ACCOUNT) -> bytes:
    return header(case or uuid4(), generation, HOUR, uuid4(), kind)


def test_a_header_keeps_the_hour_and_not_the_minute():
    assert b'"hour":"2026-11-21T10Z"' in a_header()
    phnom_penh = HOUR.astimezone(timezone(timedelta(hours=7)))
    case, item = uuid4(), uuid4()
    assert header(case, 1, phnom_penh, item, Kind.NOTE) == header(case, 1, HOUR, item, Kind.NOTE)


def test_a_time_without_its_zone_is_refused():
    with pytest.raises(ValueError, match="zone"):
        header(uuid4(), 1, HOUR.replace(tzinfo=None), uuid4(), Kind.ACCOUNT)


def test_an_unknown_kind_or_generation_is_refused():
    with pytest.raises(ValueError, match="parcel"):
        header(uuid4(), 1, HOUR, uuid4(), "parcel")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="generation"):
        header(uuid4(), 0, HOUR, uuid4(), Kind.ACCOUNT)


@settings(max_examples=60, deadline=None)
@given(text=st.text(st.characters(codec="utf-8"), max_size=3000))
def test_every_text_comes_back_and_its_size_is_a_step(text):
    envelope = seal_text(PUBLIC, a_header(), text)
    assert open_text(PRIVATE, envelope) == text
    assert len(envelope.body) - 40 in (1024, 2048, 4096, 8192, 16384)
    assert len(envelope.seal) == 112


def test_a_text_for_a_stream_is_refused():
    assert open_text(PRIVATE, seal_text(PUBLIC, b"h", "x" * 32767)) == "x" * 32767
    with pytest.raises(ValueError, match="too long"):
        seal_text(PUBLIC, b"h", "x" * 32768)


def test_two_seals_of_one_text_have_nothing_in_common_but_their_sizes():
    one, two = seal_text(PUBLIC, b"h", "same"), seal_text(PUBLIC, b"h", "same")
    assert one.seal != two.seal
    assert one.body != two.body
    assert (len(one.seal), len(one.body)) == (len(two.seal), len(two.body))
    eights = [{body[i : i + 8] for i in range(0, 1064, 8)} for body in (one.body, two.body)]
    assert not eights[0] & eights[1]


@pytest.mark.parametrize("part", ["header", "seal", "body"])
def test_any_changed_byte_is_refused(part):
    whole = seal_text(PUBLIC, a_header(), "a man at the guesthouse")
    parts = {"header": whole.header, "seal": whole.seal, "body": whole.body}
    for at in range(len(parts[part])):
        data = bytearray(parts[part])
        data[at] ^= 1 << at % 8
        with pytest.raises(CannotOpen):
            open_text(PRIVATE, Envelope(**(parts | {part: bytes(data)})))


def test_a_cut_body_or_seal_is_refused():
    whole = seal_text(PUBLIC, a_header(), "text")
    for cut in (0, 1, 23, 24, 39, 40, 1063):
        with pytest.raises(CannotOpen):
            open_text(PRIVATE, Envelope(whole.header, whole.seal, whole.body[:cut]))
    for cut in (0, 47, 48, 80, 111):
        with pytest.raises(CannotOpen):
            open_text(PRIVATE, Envelope(whole.header, whole.seal[:cut], whole.body))


def test_headers_seals_and_bodies_of_one_case_cannot_be_swapped():
    case = uuid4()
    all_three = [seal_text(PUBLIC, a_header(case), f"text {n}") for n in range(3)]
    for one, two in permutations(all_three, 2):
        for mixed in (
            Envelope(two.header, one.seal, one.body),
            Envelope(one.header, two.seal, one.body),
            Envelope(one.header, one.seal, two.body),
            Envelope(two.header, two.seal, one.body),
            Envelope(two.header, one.seal, two.body),
            Envelope(one.header, two.seal, two.body),
        ):
            with pytest.raises(CannotOpen):
                open_text(PRIVATE, mixed)


def test_a_wrong_case_generation_hour_item_or_kind_is_refused():
    case, item = uuid4(), uuid4()
    whole = seal_text(PUBLIC, header(case, 1, HOUR, item, Kind.ACCOUNT), "text")
    for claim in (
        header(uuid4(), 1, HOUR, item, Kind.ACCOUNT),
        header(case, 2, HOUR, item, Kind.ACCOUNT),
        header(case, 1, HOUR + timedelta(hours=1), item, Kind.ACCOUNT),
        header(case, 1, HOUR, uuid4(), Kind.ACCOUNT),
        header(case, 1, HOUR, item, Kind.NOTE),
    ):
        with pytest.raises(CannotOpen):
            open_text(PRIVATE, Envelope(claim, whole.seal, whole.body))
    with pytest.raises(CannotOpen):
        open_text(boxes.keypair()[0], whole)


def test_a_body_of_our_key_that_is_no_padded_text_is_refused():
    head, dek = a_header(), boxes.random_bytes()
    seal = boxes.seal(PUBLIC, head, dek)
    for plain in (b"", b"text\x80", bytes(1024), b"x" * 1024, b"\xff\x80" + bytes(1022), b"x\x80" + bytes(4000)):
        with pytest.raises(CannotOpen):
            open_text(PRIVATE, Envelope(head, seal, boxes.aead_seal(dek, plain, head)))
    with pytest.raises(CannotOpen):
        open_text(PRIVATE, Envelope(head, boxes.seal(PUBLIC, head, b"short"), boxes.aead_seal(dek, b"", head)))


def test_a_commitment_names_header_body_and_text():
    whole = seal_text(PUBLIC, a_header(), "អត្ថបទ")
    expected = {"header": whole.header, "body": whole.body, "plain": "អត្ថបទ".encode()}
    assert commitment(whole, "អត្ថបទ") == {n: hashlib.sha256(d).hexdigest() for n, d in expected.items()}


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 1 << 40))
def test_padme_never_shrinks_adds_at_most_an_eighth_and_is_stable(length):
    padded = padme(length)
    assert length <= padded <= length * 1.12 + 1
    assert padme(padded) == padded
    assert padme(length + 1) >= padded


def test_padme_of_a_negative_length_is_refused():
    with pytest.raises(ValueError, match="below zero"):
        padme(-1)
