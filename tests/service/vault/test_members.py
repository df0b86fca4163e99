"""Members' keys, grants, case keys and sessions: each opens in its own place, and only there."""

from base64 import b64encode
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from service.canonical import canonical
from service.errors import CannotOpen, Unauthenticated
from service.vault import boxes
from service.vault.case_keys import seal_case_key
from service.vault.members import (
    MemberKeys,
    grant_unit_key,
    new_member_keys,
    new_session,
    open_case_key,
    open_grant,
    open_session,
    session_id,
    unwrap_member,
    wrap_member,
)
from service.vault.passwords import Parameters

CHEAP = Parameters(b"s" * 16, 1, 1)
KEK = b"k" * 32
MEMBER, GRANTER = new_member_keys(), new_member_keys()
UNIT_PRIVATE, UNIT_PUBLIC = boxes.keypair()
EXPIRY = datetime(2026, 11, 21, 18, 0, 5, 999, tzinfo=UTC)


def flipped(data: bytes):
    for at in range(len(data)):
        yield data[:at] + bytes([data[at] ^ (1 << at % 8)]) + data[at + 1 :]


def unwrapped(wrapped: bytes, kek: bytes = KEK, member: str = "m-1", parameters: Parameters = CHEAP, **other: bytes):
    publics = {"box_public": MEMBER.box_public, "signing_public": MEMBER.signing_public} | other
    return unwrap_member(kek, member, parameters, wrapped, **publics)


def test_wrapped_keys_come_back():
    wrapped = wrap_member(KEK, "m-1", CHEAP, MEMBER)
    assert len(wrapped) == 124
    assert unwrapped(wrapped) == MEMBER


def test_wrapped_keys_open_for_nobody_and_nothing_else():
    wrapped = wrap_member(KEK, "m-1", CHEAP, MEMBER)
    with pytest.raises(CannotOpen):
        unwrapped(wrapped, kek=b"x" * 32)
    with pytest.raises(CannotOpen):
        unwrapped(wrapped, member="m-2")
    with pytest.raises(CannotOpen):
        unwrapped(wrapped, parameters=replace(CHEAP, passes=2))
    with pytest.raises(CannotOpen):
        unwrapped(wrapped, box_public=GRANTER.box_public)
    with pytest.raises(CannotOpen):
        unwrapped(wrapped, signing_public=GRANTER.signing_public)
    for changed in flipped(wrapped):
        with pytest.raises(CannotOpen):
            unwrapped(changed)
    short = boxes.aead_seal(KEK, b"short", f"user|1|m-1|{CHEAP.text}")
    with pytest.raises(CannotOpen):
        unwrapped(short)


def test_a_member_id_cannot_reach_into_another_place():
    with pytest.raises(ValueError, match="context"):
        wrap_member(KEK, "m-1|x", CHEAP, MEMBER)


def test_the_repr_of_keys_shows_none_of_them():
    shown = f"{MEMBER!r} {MEMBER}"
    assert MEMBER.box.hex() not in shown
    assert repr(MEMBER.box)[2:10] not in shown
    assert "totp=" not in shown


def test_keys_made_after_a_reset_open_nothing_of_before():
    case = uuid4()
    sealed = seal_case_key(MEMBER.box_public, case, 1, "u-1", 1, UNIT_PRIVATE)
    with pytest.raises(CannotOpen):
        open_case_key(new_member_keys().box, case, 1, "u-1", 1, sealed, case_public=UNIT_PUBLIC)


GRANT = grant_unit_key("u-1", 2, UNIT_PRIVATE, "m-1", MEMBER.box_public, "m-9", GRANTER.signing)


def granted(grant=GRANT, **other: Any) -> bytes:
    given = {
        "unit": "u-1",
        "generation": 2,
        "unit_public": UNIT_PUBLIC,
        "member": "m-1",
        "member_private": MEMBER.box,
        "granter": "m-9",
        "granter_public": GRANTER.signing_public,
    }
    return open_grant(grant, **(given | other))


def test_a_grant_gives_its_member_the_unit_key():
    assert granted() == UNIT_PRIVATE
    row = {"table": "unit_grant", "unit": "u-1", "g": 2, "member": "m-1", "granter": "m-9"}
    signed = canonical(row | {"sealed": b64encode(GRANT.sealed).decode()})
    assert boxes.verify(GRANTER.signing_public, signed, GRANT.signature)


@pytest.mark.parametrize(
    "wrong",
    [
        {"unit": "u-2"},
        {"generation": 3},
        {"unit_public": boxes.keypair()[1]},
        {"member": "m-2"},
        {"member_private": boxes.keypair()[0]},
        {"granter": "m-8"},
        {"granter_public": MEMBER.signing_public},
        {"granter_public": bytes(32)},
    ],
)
def test_a_grant_is_refused_anywhere_else(wrong):
    with pytest.raises(CannotOpen):
        granted(**wrong)


def test_a_changed_grant_is_refused():
    for sealed in flipped(GRANT.sealed):
        with pytest.raises(CannotOpen):
            granted(replace(GRANT, sealed=sealed))
    for signature in flipped(GRANT.signature):
        with pytest.raises(CannotOpen):
            granted(replace(GRANT, signature=signature))


def test_whoever_writes_the_database_can_not_grant():
    """A box sealed right but signed by nobody, and one signed right that holds a key of the writer's own."""
    own_seed, _ = boxes.signing_keypair()
    with pytest.raises(CannotOpen, match="signed"):
        granted(grant_unit_key("u-1", 2, UNIT_PRIVATE, "m-1", MEMBER.box_public, "m-9", own_seed))
    own_key, _ = boxes.keypair()
    with pytest.raises(CannotOpen, match="public key"):
        granted(grant_unit_key("u-1", 2, own_key, "m-1", MEMBER.box_public, "m-9", GRANTER.signing))


def test_a_case_key_opens_for_its_unit_in_its_place_only():
    case, (private, public) = uuid4(), boxes.keypair()
    sealed = seal_case_key(UNIT_PUBLIC, case, 1, "u-1", 2, private)
    assert len(sealed) == 112
    assert boxes.unseal(UNIT_PRIVATE, f"case|{case.hex}|1|u-1|2", sealed) == private
    assert open_case_key(UNIT_PRIVATE, case, 1, "u-1", 2, sealed, case_public=public) == private
    for place in ((uuid4(), 1, "u-1", 2), (case, 2, "u-1", 2), (case, 1, "u-2", 2), (case, 1, "u-1", 3)):
        with pytest.raises(CannotOpen):
            open_case_key(UNIT_PRIVATE, *place, sealed, case_public=public)
    with pytest.raises(CannotOpen):
        open_case_key(boxes.keypair()[0], case, 1, "u-1", 2, sealed, case_public=public)
    with pytest.raises(CannotOpen, match="public key"):
        open_case_key(UNIT_PRIVATE, case, 1, "u-1", 2, sealed, case_public=boxes.keypair()[1])
    for changed in flipped(sealed):
        with pytest.raises(CannotOpen):
            open_case_key(UNIT_PRIVATE, case, 1, "u-1", 2, changed, case_public=public)


def test_a_case_key_of_another_length_is_refused():
    case = uuid4()
    sealed = seal_case_key(UNIT_PUBLIC, case, 1, "u-1", 2, b"short")
    with pytest.raises(CannotOpen):
        open_case_key(UNIT_PRIVATE, case, 1, "u-1", 2, sealed, case_public=b"")


def test_a_session_gives_the_private_halves_and_not_the_one_time_secret():
    cookie, id_hash, sealed = new_session("m-1", MEMBER, EXPIRY)
    assert len(cookie) == 64
    assert session_id(cookie) == id_hash
    assert open_session(cookie, "m-1", EXPIRY, sealed) == MemberKeys(MEMBER.box, MEMBER.signing, b"")
    # a database that keeps whole seconds gives the same session back
    assert open_session(cookie, "m-1", EXPIRY.replace(microsecond=0), sealed).box == MEMBER.box
    with pytest.raises(ValueError, match="one-time"):
        wrap_member(KEK, "m-1", CHEAP, open_session(cookie, "m-1", EXPIRY, sealed))


def test_a_session_is_refused_with_anything_changed():
    cookie, _, sealed = new_session("m-1", MEMBER, EXPIRY)
    other, _, other_sealed = new_session("m-1", MEMBER, EXPIRY)
    attempts: list[tuple[str, str, datetime, bytes]] = [
        (other, "m-1", EXPIRY, sealed),
        (cookie, "m-1", EXPIRY, other_sealed),
        (cookie, "m-2", EXPIRY, sealed),
        (cookie, "m-1", EXPIRY + timedelta(hours=8), sealed),
        *((cookie, "m-1", EXPIRY, changed) for changed in flipped(sealed)),
    ]
    for attempt in attempts:
        with pytest.raises(Unauthenticated):
            open_session(*attempt)


@pytest.mark.parametrize("change", [lambda c: "", lambda c: c[:-1], lambda c: c + "=", lambda c: c + "AAAA"])
def test_a_cookie_has_one_spelling(change):
    cookie, _, _ = new_session("m-1", MEMBER, EXPIRY)
    with pytest.raises(Unauthenticated):
        session_id(change(cookie))


@pytest.mark.parametrize("cookie", ["!" * 64, "+" * 64, "/" * 64, "é" * 64, "A" * 63 + "\n", "A" * 60 + "===="])
def test_a_cookie_that_is_none_of_ours_is_refused(cookie):
    with pytest.raises(Unauthenticated):
        session_id(cookie)


def test_a_session_needs_a_time_with_its_zone():
    with pytest.raises(ValueError, match="zone"):
        new_session("m-1", MEMBER, EXPIRY.replace(tzinfo=None))
