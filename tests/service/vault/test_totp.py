"""One-time codes: those of the standard, good once, and a clock that is wrong is recognised."""

from datetime import UTC, datetime, timedelta

import pytest

from service.errors import WrongCode
from service.vault import totp

SECRET = b"12345678901234567890"  # of RFC 6238, appendix B
NOW = datetime(2027, 3, 9, 7, 21, 30, tzinfo=UTC)


def at(offset: int) -> str:
    return totp.code_at(SECRET, NOW + timedelta(seconds=totp.STEP * offset))


@pytest.mark.parametrize(
    ("seconds", "eight_digits"),
    [(59, "94287082"), (1111111109, "07081804"), (1111111111, "14050471"), (1234567890, "89005924")],
)
def test_the_codes_are_those_of_rfc_6238(seconds: int, eight_digits: str) -> None:
    assert totp.code_at(SECRET, datetime.fromtimestamp(seconds, UTC)) == eight_digits[-6:]


@pytest.mark.parametrize("offset", [-1, 0, 1])
def test_a_code_of_this_step_or_its_neighbours_is_taken(offset: int) -> None:
    step = totp.check(SECRET, at(offset), NOW, used=None)
    assert step == int(NOW.timestamp()) // totp.STEP + offset


@pytest.mark.parametrize("offset", [-1, 0, 1])
def test_it_is_good_once_and_what_is_older_no_more(offset: int) -> None:
    step = totp.check(SECRET, at(offset), NOW, used=None)
    for older in (offset, offset - 1):
        with pytest.raises(WrongCode) as refused:
            totp.check(SECRET, at(older), NOW, used=step)
        assert refused.value.why == "replay"


@pytest.mark.parametrize(("offset", "minutes"), [(-2, -1), (2, 1), (-8, -4), (8, 4), (20, 10)])
def test_a_phone_whose_clock_is_wrong_is_told_by_how_much(offset: int, minutes: int) -> None:
    with pytest.raises(WrongCode) as refused:
        totp.check(SECRET, at(offset), NOW, used=None)
    assert (refused.value.why, refused.value.minutes) == ("skew", minutes)


@pytest.mark.parametrize("code", ["", "12345", "1234567", "abcdef", "²³⁴⁵⁶⁷", "-12345", at(21), at(-21)])
def test_anything_else_is_only_wrong(code: str) -> None:
    with pytest.raises(WrongCode) as refused:
        totp.check(SECRET, code, NOW, used=None)
    assert refused.value.why == "code"


def test_khmer_digits_and_spaces_are_read() -> None:
    khmer = at(0).translate(str.maketrans("0123456789", "០១២៣៤៥៦៧៨៩"))
    assert totp.check(SECRET, f"{khmer[:3]} {khmer[3:]}", NOW, used=None)


def test_the_secret_is_written_for_a_person_and_for_an_app() -> None:
    assert totp.letters(SECRET) == "GEZD GNBV GY3T QOJQ GEZD GNBV GY3T QOJQ"
    assert totp.address(SECRET, "sokha").startswith(
        "otpauth://totp/Bamboo:sokha?secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"
    )
