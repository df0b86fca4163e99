"""People with an account: enrolment, sign-in, sessions, and the keys that a session may open for one request."""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import uuid4

from sqlalchemy import delete, select, update
from sqlmodel import Session, col

from service.cases import OpenedCase, case_key_row
from service.db import Sessions, Tx, write
from service.errors import Busy, CannotOpen, NoSuchCase, Unauthenticated
from service.ledger.events import (
    SYSTEM,
    Actor,
    EventType,
    Ledger,
    NewEvent,
    StateClass,
    append,
    fixed_chain,
    new_chain,
)
from service.models import Case, CaseKey, CaseSeal, Member, Role, StaffSession, UnitGrant
from service.vault import boxes, members, passwords
from service.vault.cards import Card, Cards
from service.vault.members import Grant, MemberKeys
from service.walls import Seat, Viewer

IDLE = timedelta(minutes=30)
LONGEST = timedelta(hours=8)
SEEN_EVERY = timedelta(minutes=1)

_RUNNING = threading.BoundedSemaphore(2)  # Argon2 takes 128 MiB and a core: more at once is a way to stop the host
_WAITING = threading.BoundedSemaphore(22)


@dataclass(frozen=True, slots=True, repr=False)
class SignedIn:
    """A person with an open session. `keys` live for one request."""

    viewer: Viewer
    keys: MemberKeys
    session: bytes
    csrf: str


def member_row(member: Member) -> dict[str, object]:
    """Return the fixed columns of a member's row, for its tag: whoever swaps a public key is found out."""
    return {
        "table": "member",
        "id": member.id,
        "account": member.account,
        "organisation": member.organisation,
        "role": member.role,
        "box_public": member.box_public,
        "signing_public": member.signing_public,
    }


def enrol(
    tx: Tx,
    ledger: Ledger,
    row_key: bytes,
    *,
    account: str,
    name: str,
    name_km: str,
    organisation: str,
    role: Role,
    password: str,
    now: datetime,
    parameters: passwords.Parameters | None = None,
) -> tuple[Member, MemberKeys]:
    """Add a member with new keys under `password`, and return both. No unit key comes with an account.

    parameters: of Argon2id; None for those of production.
    """
    parameters = parameters or passwords.Parameters()
    member_id = uuid4()
    keys = members.new_member_keys()
    kek, auth = passwords.derive(password, parameters)
    member = Member(
        id=member_id,
        account=account_name(account),
        name=name,
        name_km=name_km,
        organisation=organisation,
        role=role,
        chain=new_chain(),
        parameters=parameters.text,
        auth=passwords.stored_auth(auth),
        box_public=keys.box_public,
        signing_public=keys.signing_public,
        wrapped=members.wrap_member(kek, member_id.hex, parameters, keys),
        row_tag=b"",
        created_at=now,
    )
    member.row_tag = boxes.row_tag(row_key, member_row(member))
    tx.add(member)
    tx.flush()
    event = NewEvent(
        EventType.MEMBER_JOINED,
        now,
        SYSTEM,
        StateClass.SYSTEM,
        fields={"member": member.id.hex, "role": str(role), "tag": member.row_tag.hex()},
    )
    append(tx, ledger, fixed_chain("staff"), [event])
    return member, keys


def grant(
    tx: Tx,
    ledger: Ledger,
    card: Card,
    unit_private: bytes,
    member: Member,
    granter: Member,
    granter_keys: MemberKeys,
    now: datetime,
) -> None:
    """Seal a unit's private half to `member`, signed by `granter`, and append it."""
    given = members.grant_unit_key(
        card.unit,
        card.generation,
        unit_private,
        member.id.hex,
        member.box_public,
        granter.id.hex,
        granter_keys.signing,
    )
    tx.add(
        UnitGrant(
            unit=card.unit,
            generation=card.generation,
            member=member.id,
            sealed=given.sealed,
            granter=granter.id,
            signature=given.signature,
            granted_at=now,
        )
    )
    tx.flush()
    event = NewEvent(
        EventType.MEMBER_JOINED,
        now,
        Actor(granter.role, granter.organisation, granter.id.hex),
        StateClass.SYSTEM,
        fields={"member": member.id.hex, "unit": card.unit, "generation": card.generation},
    )
    append(tx, ledger, fixed_chain("staff"), [event])


def account_name(text: str) -> str:
    """Return an account's name as it is stored and looked up: case and outer spaces do not matter."""
    return text.strip().casefold()


@contextmanager
def _argon2_slot() -> Iterator[None]:
    if not _WAITING.acquire(blocking=False):
        raise Busy("Too many people are signing in. Try again in a minute.")
    try:
        with _RUNNING:
            yield
    finally:
        _WAITING.release()


def sign_in(sessions: Sessions, ledger: Ledger, row_key: bytes, *, account: str, password: str, now: datetime) -> str:
    """Return the cookie of a new session. An unknown name takes as long as a wrong password and reads the same.

    Raises Unauthenticated, Busy, or StorageUnavailable: without its event nobody is signed in.
    """
    with sessions.read() as session:
        member = session.scalars(select(Member).where(col(Member.account) == account_name(account))).one_or_none()
    known = member is not None and member.disabled_at is None
    parameters = passwords.read_parameters(member.parameters) if member and known else passwords.Parameters()
    try:
        with _argon2_slot():
            kek = passwords.check(password, parameters, member.auth if member and known else None)
    except Unauthenticated:
        if member is not None:
            _note_session(sessions, ledger, member, EventType.SESSION_REFUSED, now)
        raise
    if member is None:
        raise Unauthenticated("The name or the password is wrong.")
    boxes.check_row_tag(row_key, member_row(member), member.row_tag)
    keys = members.unwrap_member(
        kek,
        member.id.hex,
        parameters,
        member.wrapped,
        box_public=member.box_public,
        signing_public=member.signing_public,
    )
    expires_at = (now + LONGEST).replace(microsecond=0)
    cookie, session_id, sealed = members.new_session(member.id.hex, keys, expires_at)
    row = StaffSession(
        id=session_id, member=member.id, started_at=now, seen_at=now, expires_at=expires_at, sealed=sealed
    )
    _note_session(sessions, ledger, member, EventType.SESSION_OPENED, now, row)
    return cookie


def _note_session(
    sessions: Sessions,
    ledger: Ledger,
    member: Member,
    what: EventType,
    now: datetime,
    row: StaffSession | None = None,
) -> None:
    def note(tx: Tx) -> None:
        if row is not None:
            tx.execute(delete(StaffSession).where(col(StaffSession.expires_at) < now))
            tx.add(StaffSession(**row.model_dump()))
            tx.flush()
        actor = Actor(member.role, member.organisation, member.id.hex)
        append(tx, ledger, member.chain, [NewEvent(what, now, actor, StateClass.SYSTEM)])

    write(sessions, note)


def resume(
    sessions: Sessions, row_key: bytes, deck: Cards, cookie: str, now: datetime, *, by_hand: bool = True
) -> SignedIn:
    """Return the person of a session's cookie, with keys for this request.

    by_hand: whether a person did this; a page that loads itself again does not keep a session alive.
    Raises Unauthenticated for an unknown, idle (30 minutes) or old (8 hours) session, or a disabled account.
    """
    session_id = members.session_id(cookie)
    with sessions.read() as session:
        found = session.execute(
            select(StaffSession, Member)
            .join(Member, col(Member.id) == col(StaffSession.member))
            .where(col(StaffSession.id) == session_id)
        ).one_or_none()
        if found is None:
            raise Unauthenticated("Please sign in.")
        row, member = found
        if now >= row.expires_at or now - row.seen_at > IDLE or member.disabled_at is not None:
            raise Unauthenticated("Please sign in again.")
        seats = _seats(session, deck, member)
    keys = members.open_session(cookie, member.id.hex, row.expires_at, row.sealed)
    boxes.check_row_tag(row_key, member_row(member), member.row_tag)
    if by_hand and now - row.seen_at > SEEN_EVERY:
        seen = update(StaffSession).where(col(StaffSession.id) == session_id).values(seen_at=now)
        write(sessions, lambda tx: tx.execute(seen))
    viewer = Viewer(member.id, member.chain, member.name, member.name_km, member.role, member.organisation, seats)
    return SignedIn(viewer, keys, session_id, csrf_token(cookie))


def _seats(session: Session, deck: Cards, member: Member) -> tuple[Seat, ...]:
    """Return the units whose present key was granted to `member`; what a unit is stands in the cards."""
    cards = {card.unit: card for card in deck.units}
    grants = session.execute(
        select(col(UnitGrant.unit), col(UnitGrant.generation))
        .where(col(UnitGrant.member) == member.id)
        .order_by(col(UnitGrant.unit))
    ).all()
    return tuple(
        Seat(unit, cards[unit].kind, cards[unit].organisation)
        for unit, generation in grants
        if unit in cards and cards[unit].generation == generation
    )


def csrf_token(cookie: str) -> str:
    """Return the token that forms of this session carry: 32 hex digits from the cookie, stored nowhere."""
    return hashlib.blake2b(cookie.encode("ascii", "replace"), digest_size=16, person=b"bamboo-csrf-v1").hexdigest()


def sign_out(sessions: Sessions, ledger: Ledger, who: SignedIn, now: datetime) -> None:
    """End a session: its row goes, and the cookie opens nothing any more."""

    def end(tx: Tx) -> None:
        tx.execute(delete(StaffSession).where(col(StaffSession.id) == who.session))
        event = NewEvent(EventType.SESSION_ENDED, now, who.viewer.actor, StateClass.SYSTEM)
        append(tx, ledger, who.viewer.chain, [event])

    write(sessions, end)


def open_keys(session: Session, row_key: bytes, deck: Cards, who: SignedIn, case: Case) -> OpenedCase:
    """Return the case's private keys that this person's units hold, for one request.

    Raises NoSuchCase when none of their units holds a seal, CannotOpen when a row was planted or changed.
    """
    unit_keys: dict[str, bytes] = {}
    privates: dict[int, bytes] = {}
    rows = session.execute(
        select(CaseSeal, CaseKey)
        .join(
            CaseKey,
            (col(CaseKey.case) == col(CaseSeal.case)) & (col(CaseKey.generation) == col(CaseSeal.generation)),
        )
        .where(col(CaseSeal.case) == case.id, col(CaseSeal.unit).in_(who.viewer.units))
        .order_by(col(CaseSeal.generation), col(CaseSeal.unit))
    ).all()
    for seal, key in rows:
        if key.generation in privates:
            continue
        boxes.check_row_tag(row_key, case_key_row(key.case, key.generation, key.public), key.row_tag)
        if seal.unit not in unit_keys:
            unit_keys[seal.unit] = _unit_private(session, row_key, deck.unit(seal.unit), who)
        privates[key.generation] = members.open_case_key(
            unit_keys[seal.unit],
            case.id,
            key.generation,
            seal.unit,
            seal.unit_generation,
            seal.sealed,
            case_public=key.public,
        )
    if not privates:
        raise NoSuchCase
    return OpenedCase(case, privates)


def _unit_private(session: Session, row_key: bytes, card: Card, who: SignedIn) -> bytes:
    given = session.get(UnitGrant, (card.unit, card.generation, who.viewer.member))
    granter = session.get(Member, given.granter) if given else None
    if given is None or granter is None:
        raise CannotOpen("There is no grant of this unit's key.")
    boxes.check_row_tag(row_key, member_row(granter), granter.row_tag)
    return members.open_grant(
        Grant(given.sealed, given.signature),
        unit=card.unit,
        generation=card.generation,
        unit_public=card.public,
        member=who.viewer.member.hex,
        member_private=who.keys.box,
        granter=granter.id.hex,
        granter_public=granter.signing_public,
    )
