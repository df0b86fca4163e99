"""Streams: sealed while arriving; cut, changed or reordered anywhere, refused."""

import nacl.bindings as sodium
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import CannotOpen
from service.vault import boxes
from service.vault.envelope import open_stream, padme, seal_stream

PRIVATE, PUBLIC = boxes.keypair()
HEAD = b'{"item":"1"}'
BLOCK = 65536 + 17


def sealed(content: bytes) -> tuple[bytes, list[bytes]]:
    seal, pieces = seal_stream(PUBLIC, HEAD, [content], len(content))
    return seal, list(pieces)


def opened(seal: bytes, pieces: list[bytes], head: bytes = HEAD) -> bytes:
    return b"".join(open_stream(PRIVATE, head, seal, pieces))


LONG = bytes(i % 251 for i in range(200_000))
SEAL, PIECES = sealed(LONG)


@settings(max_examples=40, deadline=None)
@given(chunks=st.lists(st.binary(max_size=40_000), max_size=6), cuts=st.integers(1, 70_000))
def test_content_comes_back_however_it_is_cut_on_the_way(chunks, cuts):
    content = b"".join(chunks)
    seal, pieces = seal_stream(PUBLIC, HEAD, chunks, len(content))
    stored = b"".join(pieces)
    assert opened(seal, [stored[i : i + cuts] for i in range(0, len(stored), cuts)]) == content


@pytest.mark.parametrize("length", [0, 1, 65527, 65528, 65529, 131064, 131065])
def test_sizes_at_the_edge_of_a_block_come_back_and_are_blurred(length):
    seal, pieces = sealed(b"x" * length)
    assert opened(seal, pieces) == b"x" * length
    blocks = -(-padme(8 + length) // 65536)
    assert len(pieces) == 1 + blocks
    assert sum(map(len, pieces)) == 24 + padme(8 + length) + 17 * blocks


def test_a_stream_is_sealed_while_it_arrives():
    arrived = []

    def arriving():
        for n in range(4):
            arrived.append(n)
            yield b"x" * 65536

    _, pieces = seal_stream(PUBLIC, HEAD, arriving(), 4 * 65536)
    next(pieces), next(pieces)
    assert len(arrived) < 4


@pytest.mark.parametrize("keep", range(5))
def test_a_stream_cut_at_any_block_is_refused(keep):
    assert len(PIECES) == 5
    with pytest.raises(CannotOpen, match="cut off"):
        opened(SEAL, PIECES[:keep])


def test_a_stream_cut_inside_a_block_is_refused():
    for length in (1, 23, 24, 25, 41, 24 + BLOCK - 1, 24 + BLOCK + 1):
        with pytest.raises(CannotOpen, match="cut off"):
            opened(SEAL, [b"".join(PIECES)[:length]])


def test_a_block_moved_doubled_missing_or_added_is_refused():
    start, a, b, c, d = PIECES
    for wrong in ([start, b, a, c, d], [start, a, a, b, c, d], [start, a, c, d], [start, d], [start, a, b, c, d, d]):
        with pytest.raises(CannotOpen):
            opened(SEAL, wrong)
    with pytest.raises(CannotOpen):
        opened(SEAL, [*PIECES, b"\0"])


def test_nothing_can_follow_the_end_of_a_stream_of_whole_blocks():
    seal, pieces = sealed(b"x" * 131064)
    assert len(pieces[-1]) == BLOCK
    for more in (b"\0", pieces[1], pieces[2]):
        with pytest.raises(CannotOpen, match="after its end"):
            opened(seal, [*pieces, more])


def test_any_changed_byte_of_a_stream_is_refused():
    seal, pieces = sealed(b"a recording")
    whole = b"".join(pieces)
    for at in range(len(whole)):
        changed = bytearray(whole)
        changed[at] ^= 1 << at % 8
        with pytest.raises(CannotOpen):
            opened(seal, [bytes(changed)])


def test_streams_of_one_case_cannot_be_swapped():
    other_seal, other = sealed(LONG)
    for seal, pieces in ((SEAL, other), (other_seal, PIECES), (SEAL, [PIECES[0], *other[1:]])):
        with pytest.raises(CannotOpen):
            opened(seal, pieces)


def test_a_wrong_header_or_key_is_refused_before_a_byte_is_asked_for():
    def untouched():
        raise AssertionError("read too early")
        yield b""

    with pytest.raises(CannotOpen):
        open_stream(PRIVATE, b"another header", SEAL, untouched())
    with pytest.raises(CannotOpen):
        open_stream(boxes.keypair()[0], HEAD, SEAL, untouched())


@pytest.mark.parametrize("said", [0, 4, 6, 100_000])
def test_content_of_another_length_than_it_said_never_gets_an_end(said):
    seal, pieces = seal_stream(PUBLIC, HEAD, [b"12345"], said)
    stored = []
    with pytest.raises(ValueError, match="content than its length"):
        stored.extend(pieces)
    with pytest.raises(CannotOpen):
        opened(seal, stored)


@pytest.mark.parametrize(
    "plain",
    [
        b"",
        b"\0" * 7,
        b"\0" * 7 + b"\x03ab",
        b"\0" * 7 + b"\x09" + b"a" * 9,
        b"\0" * 7 + b"\x09" + b"a" * 9 + b"\1",
        b"\0" * 7 + b"\x09" + b"a" * 9 + b"\0" * 2,
        b"\xff" * 8 + b"a" * 10,
    ],
)
def test_whoever_holds_the_public_key_can_not_make_a_stream_that_lies_about_its_length(plain):
    key = boxes.random_bytes()
    state = sodium.crypto_secretstream_xchacha20poly1305_state()
    start = sodium.crypto_secretstream_xchacha20poly1305_init_push(state, key)
    final = sodium.crypto_secretstream_xchacha20poly1305_TAG_FINAL
    block = sodium.crypto_secretstream_xchacha20poly1305_push(state, plain, boxes.H(HEAD), final)
    with pytest.raises(CannotOpen):
        opened(boxes.seal(PUBLIC, HEAD, key), [start, block])
