"""Files with several generations of a secret: read strictly, changed whole, read again when changed."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from service.errors import Misconfigured
from service.keyring import BEGINNING, Generation, Keyring, current, destroy, read_keyring, write_keyring

SPRING, SUMMER = datetime(2027, 3, 1, tzinfo=UTC), datetime(2027, 6, 1, tzinfo=UTC)
TWO = (Generation(2, SUMMER, b"b" * 32), Generation(1, SPRING, b"a" * 32))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "phone.pepper"
    write_keyring(file, TWO)
    return file


def test_what_was_written_is_read_back_and_is_for_its_user_alone(path: Path) -> None:
    assert read_keyring(path, "phone_pepper_file") == TWO
    assert path.stat().st_mode & 0o777 == 0o400
    assert (b"a" * 32).hex() not in repr(Keyring(path, "phone_pepper_file")) + repr(TWO)


def test_a_secret_alone_is_the_first_generation(path: Path) -> None:
    path.unlink()
    path.write_text((b"c" * 32).hex() + "\n")
    path.chmod(0o400)
    assert read_keyring(path, "x", first=4) == (Generation(4, BEGINNING, b"c" * 32),)


def test_a_generation_is_used_from_its_start_on() -> None:
    assert [current(TWO, at).number for at in (BEGINNING, SPRING, SUMMER)] == [1, 1, 2]


GOOD = "2 2027-06-01T00:00Z " + "62" * 32 + "\n1 2027-03-01T00:00Z " + "61" * 32 + "\n"


@pytest.mark.parametrize(
    "text",
    [
        GOOD.replace("\n", "\n\n", 1),
        GOOD.replace("62", "6", 1),
        GOOD.replace("2 2027-06", "1 2027-06"),
        GOOD.replace("2027-06", "2027-01"),
        GOOD.replace("62" * 32, "61" * 32),
        GOOD.replace("-06-", "-16-"),
        GOOD.replace("2 2027", "-2 2027"),
        "",
    ],
)
def test_anything_else_is_refused(path: Path, text: str) -> None:
    def rewrite(words: str) -> None:
        path.chmod(0o600)
        path.write_text(words)
        path.chmod(0o400)

    rewrite(GOOD)
    assert read_keyring(path, "x") == TWO, "the control"
    rewrite(text)
    with pytest.raises(Misconfigured):
        read_keyring(path, "x")


def test_a_change_is_read_without_a_restart_and_a_broken_one_leaves_the_last(path: Path) -> None:
    ring = Keyring(path, "x")
    assert list(ring) == [2, 1]
    write_keyring(path, [Generation(3, SUMMER, b"c" * 32), *TWO])
    assert list(ring) == [3, 2, 1]
    path.chmod(0o600)
    path.write_text("half of a li")
    assert list(ring) == [3, 2, 1]
    path.unlink()
    assert list(ring) == [3, 2, 1]
    with pytest.raises(Misconfigured):
        Keyring(path, "x")


def test_a_generation_that_is_added_meanwhile_is_not_dropped(path: Path) -> None:
    """Two who change a file at once: each begins from what it holds at that moment."""
    new = Generation(3, SUMMER, b"c" * 32)
    first, second = Keyring(path, "x"), Keyring(path, "x")
    first.change(lambda held: [new, *held])
    second.keep(lambda number: number > 1)
    assert list(second) == list(first) == [3, 2]


def test_what_is_not_kept_is_overwritten_before_it_is_removed(path: Path) -> None:
    ring = Keyring(path, "x")
    with path.open("rb") as held:  # the old file's bytes, whatever name it has
        ring.keep(lambda number: number == 2)
        assert list(ring) == [2]
        assert ("61" * 32).encode() not in held.read()
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    destroy(path)
    destroy(path)
    assert not path.exists()
