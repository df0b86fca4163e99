"""New passwords that are tried first are refused, and unrelated words are not."""

import pytest

from service.vault import guessable
from service.vault.guessable import is_guessable
from service.vault.passwords import too_weak

NAMES = ("sok.dara", "Sok Dara", "សុខ តារា", "org-ngo", "Lotus Line (NGO)")
GUESSED_FIRST = [
    "passwordpassword1",
    "Password123456789",
    "P@ssw0rd P@ssw0rd!",
    "qwertyuiopasdfgh",
    "poiuytrewq098765",
    "zxcvbnmasdfghjkl",
    "123456789012345",
    "abcdefghijklmnop",
    "abcabcabcabcabcabc",
    "iloveyouprincess12",
    "dragonmonkeysunshine",
    "correct horse battery staple",
    "Angkor Wat Phnom Penh 2027",
    "sok.dara sok.dara",
    "lotus line ngo 2027",
    "Dara-Sok-Lotus-Line",
    "សុខ តារា សុខ តារា",
    "ពាក្យសម្ងាត់ពាក្យសម្ងាត់",
]
FINE = [
    "seven calm rivers of rice",
    "young shoots replace old bamboo",
    "grey kettle hums at four",
    "ដំរីស ដើរលេង ក្បែរបឹង",
    "password of the crooked ferryman",
    "kT9#vL2$mQ8!wZ5x",
]


@pytest.mark.parametrize("password", GUESSED_FIRST)
def test_what_is_tried_first_is_refused_in_kind_words(password: str) -> None:
    assert is_guessable(password, NAMES)
    assert (too_weak(password, NAMES) or "").startswith(("Common words", "Use "))


@pytest.mark.parametrize("password", FINE)
def test_unrelated_words_are_taken(password: str) -> None:
    assert too_weak(password, NAMES) is None


def test_the_same_words_are_fine_for_somebody_with_another_name() -> None:
    """The control: it is the name that makes it guessable."""
    assert is_guessable("Dara-Sok-Lotus-Line", NAMES)
    assert not is_guessable("Dara-Sok-Lotus-Line", ())


def test_without_the_list_common_words_would_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_guessable("dragonmonkeysunshine")
    monkeypatch.setattr(guessable, "_common", frozenset)
    assert not is_guessable("dragonmonkeysunshine")


def test_a_long_one_is_looked_at_in_no_time() -> None:
    assert is_guessable("ab" * 500)
    assert is_guessable("qwerty" * 166)
