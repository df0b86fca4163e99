"""Passwords: one run for check and key, the same answer for a wrong name and a wrong password."""

import pytest

from service.errors import Unauthenticated
from service.vault import passwords
from service.vault.passwords import Parameters, check, derive, read_parameters, stored_auth, too_weak

CHEAP = Parameters(b"s" * 16, passes=1, mib=1)


def test_the_right_password_gives_the_key():
    kek, auth = derive("four unrelated words", CHEAP)
    assert check("four unrelated words", CHEAP, stored_auth(auth)) == kek
    assert kek != auth


def test_a_password_is_the_same_however_a_phone_composes_it():
    assert derive("cafe\u0301 au lait tiède", CHEAP) == derive("caf\u00e9 au lait ti\u00e8de", CHEAP)


def test_a_wrong_password_and_an_unknown_name_get_the_same_words():
    stored = stored_auth(derive("four unrelated words", CHEAP)[1])
    for password, row in [
        ("four unrelated word", stored),
        ("four unrelated words", None),
        ("four unrelated words", bytes(32)),
        ("\ud800", stored),
        ("x" * 100_000, stored),
    ]:
        with pytest.raises(Unauthenticated, match=r"^The name or the password is wrong\.$"):
            check(password, CHEAP, row)


def test_an_endless_password_is_refused_before_it_is_composed():
    with pytest.raises(ValueError, match="too long"):
        derive("e\u0301" * 501, CHEAP)


def test_salt_passes_and_memory_each_change_the_key():
    others = [Parameters(b"t" * 16, 1, 1), Parameters(b"s" * 16, 2, 1), Parameters(b"s" * 16, 1, 2), CHEAP]
    assert len({derive("four unrelated words", parameters) for parameters in others}) == 4


def test_an_unknown_name_runs_argon2_too(monkeypatch):
    runs = []
    real = passwords.boxes.argon2id
    monkeypatch.setattr(passwords.boxes, "argon2id", lambda *a, **k: runs.append(1) or real(*a, **k))
    with pytest.raises(Unauthenticated):
        check("four unrelated words", CHEAP, None)
    assert runs == [1]


def test_new_parameters_are_those_of_production_with_a_fresh_salt():
    one, two = Parameters(), Parameters()
    assert (one.passes, one.mib) == (3, 128)
    assert one.salt != two.salt


def test_parameters_are_read_back_from_their_text_only():
    assert CHEAP.text == "argon2id:1:1:" + "73" * 16
    assert read_parameters(CHEAP.text) == CHEAP
    salt = "73" * 16
    for wrong in (
        "",
        "argon2i:1:1:" + salt,
        "argon2id:01:1:" + salt,
        "argon2id:1:+1:" + salt,
        CHEAP.text + " ",
        "a:b:c",
    ):
        with pytest.raises(ValueError):  # noqa: PT011  the words are int's and fromhex's own
            read_parameters(wrong)


@pytest.mark.parametrize(("salt", "passes", "mib"), [(b"", 3, 128), (b"s" * 16, 0, 1), (b"s" * 16, 3, 10**6)])
def test_parameters_from_a_changed_row_cannot_take_the_host_down(salt, passes, mib):
    with pytest.raises(ValueError, match="limits"):
        Parameters(salt, passes, mib)


def test_short_and_monotonous_passwords_are_refused_in_words():
    assert "15 characters" in (too_weak("fourteen chars") or "")
    assert "different" in (too_weak("abababababababab") or "")
    assert "at most" in (too_weak("ab1 " * 300) or "")
    # Thirty code points that compose to fifteen letters of few kinds are counted as a person would.
    assert too_weak("e\u0301" * 15) is not None
    assert too_weak("fifteen letters") is None
    assert too_weak("ដំរីស ដើរលេង ក្បែរបឹង") is None
