"""People with an account: enrolment, sign-in, sessions, and the keys that a session may open for one request."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import delete, or_, select, update
from sqlmodel import Session, col

from service import register, walls
from service.cases import OpenedCase, case_key_row
from service.db import Sessions, Tx, write
from service.errors import (
    CannotOpen,
    EndedSession,
    Forbidden,
    NoSuchCase,
    StepUpNeeded,
    Unauthenticated,
    WrongCode,
)
from service.ledger.events import (
    SYSTEM,
    Actor,
    EventType,
    Ledger,
    NewEvent,
    StateClass,
    append,
    new_chain,
)
from service.models import (
    Case,
    CaseKey,
    CaseSeal,
    Member,
    RetiredKey,
    Role,
    StaffSession,
    UnitGrant,
)
from service.models import (
    EndedSession as EndedRow,
)
from service.turns import Turns
from service.vault import boxes, members, passwords, totp
from service.vault.cards import Card, Cards
from service.vault.members import Grant, MemberKeys
from service.walls import Seat, Viewer, barred_units

IDLE = timedelta(minutes=30)
LONGEST = timedelta(hours=8)
SEEN_EVERY = timedelta(minutes=1)
STEPPED_UP = timedelta(minutes=10)
FREE_CODES = 5  # wrong codes under the right password; then each next one waits longer, up to LONGEST_WAIT
LONGEST_WAIT = timedelta(minutes=5)


@dataclass(frozen=True, slots=True, repr=False)
class SignedIn:
    """A person with an open session. `keys` live for one request.

    stepped_up_until: until when password and code count as given again; None if they were not.
    whole: whether the register of people is as its newest event left it (`service.register`).
    """

    viewer: Viewer
    keys: MemberKeys
    session: bytes
    csrf: str
    stepped_up_until: datetime | None = None
    whole: bool = True


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
    totp_secret: bytes | None = None,
) -> tuple[Member, MemberKeys]:
    """Add a member with new keys under `password`, and return both. No unit key comes with an account.

    parameters: of Argon2id; None for those of production. totp_secret: 20 bytes that the person's phone has already;
    None for new ones.
    """
    keys = members.new_member_keys()
    if totp_secret is not None:
        keys = replace(keys, totp=totp_secret)
    member = Member(
        id=uuid4(),
        account=account_name(account),
        name=name,
        name_km=name_km,
        organisation=organisation,
        role=role,
        **new_columns(keys),
        created_at=now,
    )
    rewrap(member, keys, password, parameters)
    add_member(tx, ledger, row_key, member, SYSTEM, now)
    return member, keys


def new_columns(keys: MemberKeys) -> dict[str, Any]:
    """Return the columns of a new member that come from their keys; `rewrap` and `add_member` fill what is empty."""
    publics = {"box_public": keys.box_public, "signing_public": keys.signing_public}
    return {"chain": new_chain(), "parameters": "", "auth": b"", "wrapped": b"", "row_tag": b"", **publics}


def add_member(tx: Tx, ledger: Ledger, row_key: bytes, member: Member, by: Actor, now: datetime) -> None:
    """Store a new member, tagged, and append that they joined. by: who let them have an account."""
    register.require_whole(tx, row_key)
    member.row_tag = boxes.row_tag(row_key, member_row(member))
    tx.add(member)
    fields = {"member": member.id.hex, "role": str(member.role), "tag": member.row_tag.hex()}
    event = NewEvent(EventType.MEMBER_JOINED, now, by, StateClass.SYSTEM, fields=fields)
    register.append_change(tx, ledger, row_key, event)


def rewrap(member: Member, keys: MemberKeys, password: str, parameters: passwords.Parameters | None = None) -> None:
    """Put `keys` under a new password, in the member's row (keys.md section 6.9). Runs Argon2 once."""
    parameters = parameters or passwords.Parameters()
    kek, auth = passwords.derive(password, parameters)
    member.parameters = parameters.text
    member.auth = passwords.stored_auth(auth)
    member.wrapped = members.wrap_member(kek, member.id.hex, parameters, keys)


def grant(
    tx: Tx,
    ledger: Ledger,
    row_key: bytes,
    card: Card,
    unit_private: bytes,
    member: Member,
    granter: Member,
    granter_keys: MemberKeys,
    now: datetime,
) -> None:
    """Seal a unit's private half to `member`, signed by `granter`, and append it.

    Raises Forbidden for a role that does not sit in such a unit: an administrator never holds a grant.
    """
    if not register.may_sit(member.role, card.kind):
        raise Forbidden("This role has no seat in such a unit.")
    register.require_whole(tx, row_key)
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
    event = NewEvent(
        EventType.MEMBER_JOINED,
        now,
        Actor(granter.role, granter.organisation, granter.id.hex),
        StateClass.SYSTEM,
        fields={"member": member.id.hex, "unit": card.unit, "generation": card.generation},
    )
    register.append_change(tx, ledger, row_key, event)


def append_to(tx: Tx, ledger: Ledger, by: Actor, what: EventType, now: datetime, **fields: str) -> None:
    """Append an event about accounts that leaves the register of people as it is."""
    append(tx, ledger, register.CHAIN, [NewEvent(what, now, by, StateClass.SYSTEM, fields=fields)])


def account_name(text: str) -> str:
    """Return an account's name as it is stored and looked up: case and outer spaces do not matter."""
    return text.strip().casefold()


def sign_in(
    sessions: Sessions,
    ledger: Ledger,
    row_key: bytes,
    *,
    account: str,
    password: str,
    code: str,
    now: datetime,
    turns: Turns,
    address: str = "",
) -> str:
    """Return the cookie of a new session. An unknown name takes as long as a wrong password and reads the same.

    code: of the second factor. turns, address: whose password is tried first when many come (`service.turns`).
    Raises Unauthenticated (WrongCode when only the code is wrong), Busy, or StorageUnavailable: without its event
    nobody is signed in.
    """
    with sessions.read() as session:
        member = session.scalars(select(Member).where(col(Member.account) == account_name(account))).one_or_none()
    keys, step, member = prove(
        sessions, ledger, row_key, member, account, password, code, now=now, turns=turns, address=address
    )
    expires_at = (now + LONGEST).replace(microsecond=0)
    cookie, session_id, sealed = members.new_session(member.id.hex, keys, expires_at)

    def begin(tx: Tx) -> None:
        use_code(tx, member, step)
        tx.execute(delete(StaffSession).where(col(StaffSession.expires_at) < now))
        tx.execute(delete(EndedRow).where(col(EndedRow.expires_at) < now))
        row = StaffSession(
            id=session_id, member=member.id, started_at=now, seen_at=now, expires_at=expires_at, sealed=sealed
        )
        tx.add(row)
        tx.flush()
        _note(tx, ledger, member, EventType.SESSION_OPENED, now)

    try:
        write(sessions, begin)
    except WrongCode as fault:  # another request took the same code between our look and our write
        _refuse(sessions, ledger, member, fault.why, now)
        raise
    return cookie


def prove(
    sessions: Sessions,
    ledger: Ledger,
    row_key: bytes,
    member: Member | None,
    account: str,
    password: str,
    code: str,
    *,
    now: datetime,
    turns: Turns,
    address: str,
) -> tuple[MemberKeys, int, Member]:
    """Return the keys that `password` opens, the step of `code` for `use_code`, and the member.

    member: whose it should be; None for a name that nobody has. A refusal is an event before it is raised.
    Raises Unauthenticated, WrongCode, Busy; CannotOpen for a row that was changed.
    """
    name = account_name(account)
    known = member is not None and member.disabled_at is None
    parameters = passwords.read_parameters(member.parameters) if member and known else passwords.Parameters()
    try:
        with turns.turn(address, name, now):
            kek = passwords.check(password, parameters, member.auth if member and known else None)
    except Unauthenticated:
        turns.refused(address, name, now)
        _refuse(sessions, ledger, member, "password", now)
        raise
    if member is None:
        raise Unauthenticated("The name or the password is wrong.")
    boxes.check_row_tag(row_key, member_row(member), member.row_tag)
    publics = {"box_public": member.box_public, "signing_public": member.signing_public}
    keys = members.unwrap_member(kek, member.id.hex, parameters, member.wrapped, **publics)
    try:
        if member.totp_after is not None and now < member.totp_after:
            raise WrongCode("early")
        step = totp.check(keys.totp, code, now, used=member.totp_used)
    except WrongCode as fault:
        turns.refused(address, name, now)
        _refuse(sessions, ledger, member, fault.why, now)
        raise
    turns.let_in(address, name, now)
    return keys, step, member


def use_code(tx: Tx, member: Member, step: int) -> None:
    """Store that the code of `step` was taken. Raises WrongCode if it, or a later one, was taken already."""
    unused = or_(col(Member.totp_used).is_(None), col(Member.totp_used) < step)
    taken = tx.execute(
        update(Member)
        .where(col(Member.id) == member.id, unused)
        .values(totp_used=step, totp_failures=0, totp_after=None)
        .execution_options(synchronize_session=False)
    )
    if taken.rowcount != 1:  # type: ignore[attr-defined]
        raise WrongCode("replay")


def _refuse(sessions: Sessions, ledger: Ledger, member: Member | None, why: str, now: datetime) -> None:
    """Append that somebody was refused; a name that nobody has takes the same steps, without saying which."""

    def note(tx: Tx) -> None:
        if why in ("code", "replay", "skew") and member is not None:
            count = member.totp_failures + 1
            wait = min(timedelta(seconds=15) * 2 ** min(count - FREE_CODES, 8), LONGEST_WAIT)
            after = now + wait if count >= FREE_CODES else None
            changed = update(Member).where(col(Member.id) == member.id)
            tx.execute(changed.values(totp_failures=count, totp_after=after))
        _note(tx, ledger, member, EventType.SESSION_REFUSED, now, why=why)

    write(sessions, note)


def _note(tx: Tx, ledger: Ledger, member: Member | None, what: EventType, now: datetime, **fields: str) -> None:
    actor = Actor(member.role, member.organisation, member.id.hex) if member else SYSTEM
    chain = member.chain if member else register.CHAIN
    append(tx, ledger, chain, [NewEvent(what, now, actor, StateClass.SYSTEM, fields=fields)])


def resume(
    sessions: Sessions, row_key: bytes, deck: Cards, cookie: str, now: datetime, *, by_hand: bool = True
) -> SignedIn:
    """Return the person of a session's cookie, with keys for this request.

    by_hand: whether a person did this; a page that loads itself again does not keep a session alive.
    Raises Unauthenticated for an unknown, idle (30 minutes) or old (8 hours) session, or a disabled account;
    EndedSession for one that was ended, so that `note_ended` can tell of the copy.
    """
    session_id = members.session_id(cookie)
    whole = register.is_whole(sessions, row_key)
    with sessions.read() as session:
        found = session.execute(
            select(StaffSession, Member)
            .join(Member, col(Member.id) == col(StaffSession.member))
            .where(col(StaffSession.id) == session_id)
        ).one_or_none()
        if found is None:
            ended = session.get(EndedRow, session_id)
            raise EndedSession("Please sign in.") if ended else Unauthenticated("Please sign in.")
        row, member = found
        if now >= row.expires_at or now - row.seen_at > IDLE or member.disabled_at is not None:
            raise Unauthenticated("Please sign in again.")
        seats = _seats(session, deck, member, whole)
        viewer = walls.viewer(session, row_key, member, seats)
    keys = members.open_session(cookie, member.id.hex, row.expires_at, row.sealed)
    boxes.check_row_tag(row_key, member_row(member), member.row_tag)
    if by_hand and now - row.seen_at > SEEN_EVERY:
        seen = update(StaffSession).where(col(StaffSession.id) == session_id).values(seen_at=now)
        write(sessions, lambda tx: tx.execute(seen))
    return SignedIn(viewer, keys, session_id, csrf_token(cookie), _stepped_up(row_key, row, now), whole)


def note_ended(sessions: Sessions, ledger: Ledger, cookie: str, now: datetime) -> None:
    """Append that the cookie of an ended session came again: somebody has a copy. Once for each session."""
    session_id = members.session_id(cookie)

    def note(tx: Tx) -> None:
        row = tx.get(EndedRow, session_id)
        if row is None or row.seen_at is not None:
            return
        row.seen_at = now
        _note(tx, ledger, tx.get_one(Member, row.member), EventType.SESSION_REFUSED, now, why="ended")

    write(sessions, note)


def step_up(
    sessions: Sessions,
    ledger: Ledger,
    row_key: bytes,
    who: SignedIn,
    *,
    password: str,
    code: str,
    now: datetime,
    turns: Turns,
    address: str = "",
) -> datetime:
    """Take password and code again, and return until when they count, for this session alone (keys.md section 6.8).

    Raises what `sign_in` raises.
    """
    with sessions.read() as session:
        member = session.get_one(Member, who.viewer.member)
    _, step, member = prove(
        sessions, ledger, row_key, member, member.account, password, code, now=now, turns=turns, address=address
    )
    until = (now + STEPPED_UP).replace(microsecond=0)

    def note(tx: Tx) -> None:
        use_code(tx, member, step)
        tag = boxes.row_tag(row_key, _stepped_row(who.session, until))
        changed = update(StaffSession).where(col(StaffSession.id) == who.session)
        tx.execute(changed.values(stepped_until=until, stepped_tag=tag))
        _note(tx, ledger, member, EventType.SESSION_STEPPED_UP, now)

    write(sessions, note)
    return until


def require_step_up(who: SignedIn, now: datetime) -> None:
    """Return if password and code were given again lately. Raises StepUpNeeded.

    Asked before export, grants, closure, quarantine, changes to accounts, and reading beyond the quota.
    """
    if who.stepped_up_until is None or now >= who.stepped_up_until:
        raise StepUpNeeded("Type your password and a new code first.")


def _stepped_up(row_key: bytes, row: StaffSession, now: datetime) -> datetime | None:
    if row.stepped_until is None or now >= row.stepped_until:
        return None
    boxes.check_row_tag(row_key, _stepped_row(row.id, row.stepped_until), row.stepped_tag or b"")
    return row.stepped_until


def _stepped_row(session_id: bytes, until: datetime) -> dict[str, object]:
    return {"table": "staff_session", "id": session_id, "stepped_until": int(until.timestamp())}


def _seats(session: Session, deck: Cards, member: Member, whole: bool) -> tuple[Seat, ...]:
    """Return the units whose present key was granted to `member`; what a unit is stands in the cards.

    A role without a seat in such units has none, whatever the database says; when the register of people differs,
    only integrity and oversight have one.
    """
    cards = {card.unit: card for card in deck.units}
    grants = session.execute(
        select(col(UnitGrant.unit), col(UnitGrant.generation))
        .where(col(UnitGrant.member) == member.id)
        .order_by(col(UnitGrant.unit))
    ).all()
    return tuple(
        Seat(unit, cards[unit].kind, cards[unit].organisation)
        for unit, generation in grants
        if unit in cards
        and cards[unit].generation == generation
        and register.may_sit(member.role, cards[unit].kind)
        and (whole or cards[unit].kind in register.WITHOUT_REGISTER)
    )


def csrf_token(cookie: str) -> str:
    """Return the token that forms of this session carry: 32 hex digits from the cookie, stored nowhere."""
    return hashlib.blake2b(cookie.encode("ascii", "replace"), digest_size=16, person=b"bamboo-csrf-v1").hexdigest()


def sign_out(sessions: Sessions, ledger: Ledger, who: SignedIn, now: datetime) -> None:
    """End a session: its row goes, and the cookie opens nothing any more."""
    write(sessions, lambda tx: end_sessions(tx, ledger, who.viewer.actor, who.viewer.member, now, only=who.session))


def sessions_of(session: Session, member: UUID, now: datetime) -> list[StaffSession]:
    """Return a member's sessions that are good at `now`, the one used last first."""
    rows = session.scalars(
        select(StaffSession)
        .where(
            col(StaffSession.member) == member,
            col(StaffSession.expires_at) > now,
            col(StaffSession.seen_at) >= now - IDLE,
        )
        .order_by(col(StaffSession.seen_at).desc(), col(StaffSession.id))
    )
    return list(rows.all())


def end_sessions(
    tx: Tx,
    ledger: Ledger,
    by: Actor,
    member_id: UUID,
    now: datetime,
    *,
    only: bytes | None = None,
    keep: bytes | None = None,
) -> int:
    """End a member's sessions and return how many: all, `only` one, or all but `keep`; ids as in their rows.

    The sealed keys go with the rows. What is left is the id, until the session would have ended by itself.
    """
    rows = tx.scalars(select(StaffSession).where(col(StaffSession.member) == member_id)).all()
    ended = [row for row in rows if row.id != keep and only in (None, row.id)]
    chain = tx.scalar(select(col(Member.chain)).where(col(Member.id) == member_id))
    for row in ended:
        tx.execute(delete(StaffSession).where(col(StaffSession.id) == row.id))
        tx.insert(EndedRow, [{"id": row.id, "member": row.member, "expires_at": row.expires_at, "seen_at": None}])
    if ended and chain:
        events = [NewEvent(EventType.SESSION_ENDED, now, by, StateClass.SYSTEM) for _ in ended]
        append(tx, ledger, chain, events)
    return len(ended)


def open_keys(session: Session, row_key: bytes, deck: Cards, who: SignedIn, case: Case) -> OpenedCase:
    """Return the case's private keys that this person's units hold, for one request.

    Raises NoSuchCase when none of their units holds a seal, CannotOpen when a row was planted or changed.
    """
    unit_keys: dict[tuple[str, int], bytes] = {}
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
        held = seal.unit, seal.unit_generation
        if held not in unit_keys:
            unit_keys[held] = unit_private(session, row_key, deck.at(*held), who)
        privates[key.generation] = members.open_case_key(
            unit_keys[held],
            case.id,
            key.generation,
            seal.unit,
            seal.unit_generation,
            seal.sealed,
            case_public=key.public,
        )
    if not privates:
        raise NoSuchCase
    return OpenedCase(case, privates, barred_units(session, row_key, case.id, deck))


def unit_private(session: Session, row_key: bytes, card: Card, who: SignedIn) -> bytes:
    """Return a generation of a unit's private half, 32 bytes, from this person's grant, for one request.

    A granter whose account was reset since has another key now: what the earlier one signed stays good.
    Raises CannotOpen when there is no grant, or it was planted or changed.
    """
    given = session.get(UnitGrant, (card.unit, card.generation, who.viewer.member))
    granter = session.get(Member, given.granter) if given else None
    if given is None or granter is None:
        raise CannotOpen("There is no grant of this unit's key.")
    boxes.check_row_tag(row_key, member_row(granter), granter.row_tag)
    fault = CannotOpen("the grant is not signed by its granter")
    for granter_public in (granter.signing_public, *_retired_keys(session, row_key, granter.id)):
        try:
            return members.open_grant(
                Grant(given.sealed, given.signature),
                unit=card.unit,
                generation=card.generation,
                unit_public=card.public,
                member=who.viewer.member.hex,
                member_private=who.keys.box,
                granter=granter.id.hex,
                granter_public=granter_public,
            )
        except CannotOpen as refused:
            fault = refused
    raise fault


def _retired_keys(session: Session, row_key: bytes, member: UUID) -> Iterable[bytes]:
    for row in session.scalars(select(RetiredKey).where(col(RetiredKey.member) == member)).all():
        boxes.check_row_tag(row_key, retired_row(row), row.row_tag)
        yield row.signing_public


def retired_row(row: RetiredKey) -> dict[str, object]:
    """Return the fixed columns of a retired key's row, for its tag."""
    return {"table": "retired_key", "signing_public": row.signing_public, "member": row.member}
