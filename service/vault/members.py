"""Members' keys, what is granted to them, and their sessions (keys.md sections 4 and 6)."""

import hashlib
from base64 import b64decode, b64encode, urlsafe_b64encode
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from service.canonical import canonical
from service.errors import CannotOpen, Unauthenticated
from service.vault import boxes
from service.vault.boxes import context_of
from service.vault.passwords import Parameters

TOTP = 20
SESSION_ID = 16
COOKIE = SESSION_ID + boxes.KEY


@dataclass(frozen=True, slots=True, repr=False)
class MemberKeys:
    """A member's secrets: X25519 private half and Ed25519 seed of 32 bytes, one-time-password secret of 20.

    Its repr shows nothing. From a session `totp` is empty: see `new_session`.
    """

    box: bytes
    signing: bytes
    totp: bytes

    @property
    def box_public(self) -> bytes:
        """The X25519 public key that unit keys are sealed to."""
        return boxes.public_of(self.box)

    @property
    def signing_public(self) -> bytes:
        """The Ed25519 public key that this member's grants are checked with."""
        return boxes.signing_public_of(self.signing)


@dataclass(frozen=True, slots=True)
class Grant:
    """A unit's private half sealed to one member, with the signature of the member who granted it."""

    sealed: bytes
    signature: bytes


def new_member_keys() -> MemberKeys:
    """Return the keys of a new member, or of one whose password was reset: a reset opens nothing (keys.md 6.9)."""
    return MemberKeys(boxes.keypair()[0], boxes.signing_keypair()[0], boxes.random_bytes(TOTP))


def wrap_member(kek: bytes, member: str, parameters: Parameters, keys: MemberKeys) -> bytes:
    """Return a member's keys wrapped by the key of the password, 124 bytes to store (keys.md section 4).

    kek: 32 bytes from `passwords.derive` under the same `parameters`. member: the id, ASCII without ``|``.
    Raises ValueError for a member id that cannot stand in a context, or keys without their one-time-password secret.
    """
    if len(keys.totp) != TOTP:
        raise ValueError("these keys lack the one-time-password secret")
    return boxes.aead_seal(kek, _private(keys) + keys.totp, _user(member, parameters))


def unwrap_member(
    kek: bytes, member: str, parameters: Parameters, wrapped: bytes, *, box_public: bytes, signing_public: bytes
) -> MemberKeys:
    """Return the keys that `wrap_member` wrapped (keys.md section 4).

    box_public, signing_public: the member's, from a row whose tag was checked.
    Raises CannotOpen for a wrong key, member or parameters, a changed byte, or keys that do not give these public keys.
    """
    keys = _split(boxes.aead_open(kek, wrapped, _user(member, parameters)), TOTP)
    if keys.box_public != box_public or keys.signing_public != signing_public:
        raise CannotOpen("the member's keys do not give the public keys expected")
    return keys


# Unit and case keys


def grant_unit_key(
    unit: str,
    generation: int,
    unit_private: bytes,
    member: str,
    member_public: bytes,
    granter: str,
    granter_seed: bytes,
) -> Grant:
    """Return a unit's private half sealed to a member and signed by who grants it (keys.md sections 4 and 6.7).

    generation: of the unit's key. member_public: X25519, its fingerprint compared in person.
    Raises ValueError for ids that cannot stand in a context or a key that cannot be sealed to.
    """
    sealed = boxes.seal(member_public, context_of("unit", unit, generation, member), unit_private)
    return Grant(sealed, boxes.sign(granter_seed, _granted(unit, generation, member, sealed, granter)))


def open_grant(
    grant: Grant,
    *,
    unit: str,
    generation: int,
    unit_public: bytes,
    member: str,
    member_private: bytes,
    granter: str,
    granter_public: bytes,
) -> bytes:
    """Return the unit's private half, 32 bytes, from a member's grant (keys.md section 4).

    unit_public: from the cards. granter_public: Ed25519, of the member `granter`, from a row whose tag was checked.
    Raises CannotOpen if the signature is not the granter's, the box is not for this member and place, or the key
    in it is not the unit's.
    """
    signed = _granted(unit, generation, member, grant.sealed, granter)
    if not boxes.verify(granter_public, signed, grant.signature):
        raise CannotOpen("the grant is not signed by its granter")
    opened = boxes.unseal(member_private, context_of("unit", unit, generation, member), grant.sealed)
    return _half_of(unit_public, opened)


def open_case_key(
    unit_private: bytes,
    case: UUID,
    generation: int,
    unit: str,
    unit_generation: int,
    sealed: bytes,
    *,
    case_public: bytes,
) -> bytes:
    """Return a case's private half, 32 bytes, from its seal to a unit (keys.md section 4).

    case_public: from the case's row, whose tag was checked.
    Raises CannotOpen if the box is not for this unit and place, or the key in it is not the case's.
    """
    opened = boxes.unseal(unit_private, context_of("case", case, generation, unit, unit_generation), sealed)
    return _half_of(case_public, opened)


# Sessions


def new_session(member: str, keys: MemberKeys, expiry: datetime) -> tuple[str, bytes, bytes]:
    """Return (cookie, id hash, sealed keys) of a new session (keys.md section 6.8).

    The cookie, 64 URL-safe characters, is a 16-byte id and the 32-byte secret that the private halves are sealed
    under; the row holds the id's hash, 32 bytes, and the sealed halves: it is useless without the cookie. The
    one-time-password secret stays out: a step-up types the password again, which gives it.
    expiry: the absolute end, aware; whole seconds count. Raises ValueError for a naive time.
    """
    session, secret = boxes.random_bytes(SESSION_ID), boxes.random_bytes()
    sealed = boxes.aead_seal(secret, _private(keys), _session(member, expiry))
    return urlsafe_b64encode(session + secret).decode(), _id_hash(session), sealed


def session_id(cookie: str) -> bytes:
    """Return the id hash that the row of a cookie's session is found by, 32 bytes (keys.md section 6.8).

    Raises Unauthenticated for a cookie that is none of ours.
    """
    return _id_hash(_cookie(cookie)[:SESSION_ID])


def open_session(cookie: str, member: str, expiry: datetime, sealed: bytes) -> MemberKeys:
    """Return the member's keys of a session, without the one-time-password secret (keys.md section 6.8).

    member, expiry, sealed: from the session's row. Whether `expiry` has passed is the caller's to ask first.
    Raises Unauthenticated if the cookie is not that of this row, or member or expiry was changed.
    """
    secret = _cookie(cookie)[SESSION_ID:]
    try:
        return _split(boxes.aead_open(secret, sealed, _session(member, expiry)), 0)
    except CannotOpen:
        raise Unauthenticated("Please sign in.") from None


def _private(keys: MemberKeys) -> bytes:
    return keys.box + keys.signing


def _split(opened: bytes, totp: int) -> MemberKeys:
    box, signing, rest = opened[: boxes.KEY], opened[boxes.KEY : 2 * boxes.KEY], opened[2 * boxes.KEY :]
    if len(signing) != boxes.KEY or len(rest) != totp:
        raise CannotOpen("these are not a member's keys")
    return MemberKeys(box, signing, rest)


def _half_of(public: bytes, private: bytes) -> bytes:
    """Return `private` if it gives `public`: somebody who can write rows could seal a key of his own."""
    if len(private) != boxes.KEY or boxes.public_of(private) != public:
        raise CannotOpen("the private key does not give the public key expected")
    return private


def _user(member: str, parameters: Parameters) -> str:
    return context_of("user", 1, member, parameters.text)


def _session(member: str, expiry: datetime) -> str:
    if expiry.tzinfo is None:
        raise ValueError("a time without its zone")
    return context_of("session", member, expiry.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))


def _granted(unit: str, generation: int, member: str, sealed: bytes, granter: str) -> bytes:
    return canonical(
        {
            "table": "unit_grant",
            "unit": unit,
            "g": generation,
            "member": member,
            "sealed": b64encode(sealed).decode(),
            "granter": granter,
        }
    )


def _cookie(cookie: str) -> bytes:
    # The lenient decoder would take a cookie with stray characters as another spelling of the same session.
    try:
        decoded = b64decode(cookie, altchars=b"-_", validate=True)
    except ValueError:
        decoded = b""
    if len(decoded) != COOKIE or urlsafe_b64encode(decoded).decode() != cookie:
        raise Unauthenticated("Please sign in.")
    return decoded


def _id_hash(session: bytes) -> bytes:
    return hashlib.blake2b(session, digest_size=32).digest()
