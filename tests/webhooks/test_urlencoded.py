"""The strict parser agrees with the standard library wherever that one is strict enough."""

from urllib.parse import parse_qsl, quote_plus, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webhooks.urlencoded import parse_kept, parse_strict

words = st.text(st.characters(codec="utf-8"), max_size=30)
raw = st.text(st.sampled_from("ab=&;+ %0C3E1279F.~-\n"), max_size=40)


@given(st.dictionaries(words, words, max_size=20))
def test_what_was_encoded_comes_back(fields):
    assert parse_strict(urlencode(fields).encode()) == fields


@given(st.lists(st.tuples(words, words, st.booleans()), max_size=20))
def test_reads_like_the_standard_library(pairs):
    body = "&".join(quote_plus(name) + ("=" + quote_plus(value) if equals else "") for name, value, equals in pairs)
    expected = parse_qsl(body, keep_blank_values=True)

    if len({name for name, _ in expected}) < len(expected):
        with pytest.raises(ValueError, match="repeated field"):
            parse_strict(body.encode())
    else:
        assert parse_strict(body.encode()) == dict(expected)


@given(raw)
def test_any_text_is_read_like_the_standard_library_or_refused(body):
    try:
        found = parse_strict(body.encode())
    except ValueError:
        return
    assert found == dict(parse_qsl(body, keep_blank_values=True, errors="strict"))


def refusal(body: bytes) -> str | None:
    try:
        parse_strict(body)
    except ValueError as fault:
        return str(fault)
    return None


@given(st.binary(max_size=60))
def test_bytes_are_read_or_refused_for_a_reason_that_quotes_nothing(body):
    reasons = {"not url-encoded", "repeated field", "incomplete escape", "not UTF-8", "too many fields"}
    assert refusal(body) in reasons | {None}


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"a=1&a=1", "repeated field"),
        (b"a=1&a=2", "repeated field"),
        (b"a=1&%61=2", "repeated field"),
        (b"a=%", "incomplete escape"),
        (b"a=%4", "incomplete escape"),
        (b"a=%zz", "incomplete escape"),
        (b"a=%E1%9E", "not UTF-8"),
        (b"a=%ff", "not UTF-8"),
        (b"a=%ED%A0%80", "not UTF-8"),
        (b"a=%C0%80", "not UTF-8"),
        ("a=ខ".encode(), "not url-encoded"),
        (b"&".join(b"f%d=" % n for n in range(101)), "too many fields"),
    ],
)
def test_what_is_odd_is_refused(body, why):
    with pytest.raises(ValueError, match=why):
        parse_strict(body)


def test_a_semicolon_separates_nothing():
    assert parse_strict(b"a=1;b=2") == {"a": "1;b=2"}


def test_blanks_are_kept_and_nothing_is_trimmed():
    assert parse_strict(b"a=&b&c=+x%0A&&d=1%3D2") == {"a": "", "b": "", "c": " x\n", "d": "1=2"}


def test_a_hundred_fields_are_read():
    assert len(parse_strict(b"&".join(b"f%d=" % n for n in range(100)))) == 100


def test_the_forgiving_reader_loses_no_words():
    assert parse_kept(b"a=help%&a=again&b=%ff") == [("a", "help%"), ("a", "again"), ("b", "�")]


@given(st.binary(max_size=80))
def test_the_forgiving_reader_takes_anything(body):
    parse_kept(body)
