"""The token makes a form that was sent twice one tip, and is never a reason to lose one."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import Misconfigured
from tests.webhooks.builders import FORM_KEY
from webhooks.form_token import FormTokens, Mark

NOW = datetime(2027, 1, 1, 12, 0, 30, tzinfo=UTC)
TOKENS = FormTokens(FORM_KEY)


def test_a_token_comes_back_as_it_was_issued():
    issued = TOKENS.issue(NOW)
    read = TOKENS.read(issued.text, NOW + timedelta(minutes=30))
    assert (read.submission, read.mark) == (issued.submission, Mark.GOOD)
    assert read.nonce == issued.nonce


def test_tokens_and_field_names_differ_on_every_load():
    issued = [TOKENS.issue(NOW) for _ in range(100)]
    assert len({token.text for token in issued}) == 100
    assert len({token.nonce for token in issued}) == 100


def test_an_old_token_is_marked_and_keeps_its_submission():
    issued = TOKENS.issue(NOW)
    assert TOKENS.read(issued.text, NOW + timedelta(hours=23)).mark is Mark.GOOD
    old = TOKENS.read(issued.text, NOW + timedelta(days=400))
    assert (old.mark, old.submission) == (Mark.OLD, issued.submission)


@given(st.text(max_size=60))
def test_anything_else_is_a_new_token_with_a_mark(text):
    read = TOKENS.read(text, NOW)
    assert read.mark is (Mark.FORGED if text else Mark.MISSING)
    assert TOKENS.read(read.text, NOW).mark is Mark.GOOD


@given(st.integers(0, 35), st.integers(1, 255))
def test_one_changed_byte_is_forged(at, flip):
    issued = TOKENS.issue(NOW)
    raw = bytearray(urlsafe_b64decode(issued.text))
    raw[at] ^= flip
    read = TOKENS.read(urlsafe_b64encode(bytes(raw)).decode(), NOW)
    assert read.mark is Mark.FORGED
    assert read.submission != issued.submission


def test_another_key_is_forged():
    assert FormTokens(b"x" * 32).read(TOKENS.issue(NOW).text, NOW).mark is Mark.FORGED


def test_a_delivery_is_named_by_form_and_words():
    one, two = TOKENS.issue(NOW), TOKENS.issue(NOW)
    assert TOKENS.delivery(one, b"a") == TOKENS.delivery(one, b"a")
    assert len({TOKENS.delivery(one, b"a"), TOKENS.delivery(one, b"b"), TOKENS.delivery(two, b"a")}) == 3
    assert len(TOKENS.delivery(one, b"a")) == 32


@pytest.mark.parametrize("length", [0, 15, 65])
def test_a_key_has_a_length(length):
    with pytest.raises(Misconfigured):
        FormTokens(b"x" * length)
