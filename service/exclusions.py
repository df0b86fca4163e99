"""Widening and narrowing a case's wall: who is excluded, by whom, and who of oversight takes it back.

An exclusion holds at once, on one person's word. It is taken back by two persons of oversight, and ends only when the
ledger's witnesses have seen that: until then it stands (casework.md section 10, ledger.md section 6).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import delete, exists, select, text
from sqlmodel import Session, col

from service.cases import (
    OpenedCase,
    behind_the_wall,
    case_key_insert,
    case_public,
    change,
    find,
    for_hand_on,
    has_opened,
    lapse_lowering,
    seal_in,
    seal_row,
    standing_lowering,
    state_class,
    unmoved,
    wall,
    without_owner,
)
from service.db import Tx
from service.errors import CannotOpen, Conflict, Forbidden, InvalidForm, NotFound, WrongState
from service.ledger.events import SYSTEM, EventType, Ledger, NewEvent, Sealed
from service.ledger.tree import must_run
from service.models import (
    Case,
    CaseKey,
    CaseSeal,
    Member,
    Narrowing,
    NarrowingState,
    Role,
    UnitGrant,
    Wall,
)
from service.vault import boxes
from service.vault.cards import Cards, UnitKind
from service.walls import (
    UNIT,
    Viewer,
    names_of,
    person_names,
    readable,
    stands_before,
    wall_digest,
    wall_name,
    wall_row,
    walls_of,
)

WHYS = ("named", "tied")  # the account names them, or means them; they are tied to somebody in it
UNSURE = "unsure"  # the screener could not tell whether the account means them
NAMED = {"yes": "named", "unsure": UNSURE}  # why a unit is excluded, by the screener's answer
SELF = "self"  # they say so of themselves
STANDING = text("narrowing.state IN ('proposed', 'approved')")


@dataclass(frozen=True, slots=True)
class Wallkeeper:
    """What widening a wall needs of the installation."""

    ledger: Ledger
    cards: Cards
    row_key: bytes


# --- widening -------------------------------------------------------------------------------------------


def may_exclude(viewer: Viewer) -> bool:
    """Say whether `viewer` may exclude others: oversight and integrity see to the wall."""
    return _oversees(viewer) or (viewer.role == Role.INVESTIGATOR and viewer.sits(UnitKind.INTEGRITY))


def exclude_person(
    tx: Tx,
    keeper: Wallkeeper,
    viewer: Viewer,
    opened: OpenedCase,
    member: UUID,
    why: str,
    *,
    version: int,
    now: datetime,
) -> None:
    """Exclude a person at once, with whoever they supervise and whoever supervises them; a claim of theirs ends.

    why: ``named`` or ``tied``. Whoever excludes others has opened the case.
    Raises NoSuchCase, Forbidden, CaseMoved, InvalidForm, Conflict where they are excluded already.
    """
    case = _for_exclusion(tx, viewer, opened, why, version)
    if tx.get(Member, member) is None:
        raise InvalidForm("whom", "Choose somebody.")
    public, names = case_public(tx, case, keeper.row_key), person_names(keeper.row_key, member)
    _exclude(tx, keeper, viewer, case, public, {"member": member.hex}, names, why, now)


def recuse(tx: Tx, keeper: Wallkeeper, viewer: Viewer, case_id: UUID, *, version: int, now: datetime) -> None:
    """Exclude oneself, and with it those below and above: one who is tied to a case says so, and it is gone for them.

    Raises NoSuchCase, CaseMoved, Forbidden where nobody of oversight would be left.
    """
    case = find(tx, viewer, case_id)
    unmoved(tx, case, version)
    public, names = case_public(tx, case, keeper.row_key), person_names(keeper.row_key, viewer.member)
    _exclude(tx, keeper, viewer, case, public, {"member": viewer.member.hex}, names, SELF, now)


def exclude_unit(
    tx: Tx,
    keeper: Wallkeeper,
    viewer: Viewer,
    opened: OpenedCase,
    unit: str,
    why: str,
    *,
    version: int,
    now: datetime,
) -> None:
    """Exclude a unit at once: its seal goes, and a new key of the case serves what follows.

    The unit that worked the case loses it to integrity; integrity itself to oversight; oversight to another oversight
    organisation (casework.md section 10). Raises NoSuchCase, Forbidden, CaseMoved, InvalidForm, Conflict.
    """
    case = _for_exclusion(tx, viewer, opened, why, version)
    if unit not in {card.unit for card in keeper.cards.units}:
        raise InvalidForm("whom", "Choose somebody.")
    _exclude_unit(tx, keeper, viewer, case, opened, unit, why, now, f"excluded:{why}" if case.unit == unit else None)


def hand_on(
    tx: Tx,
    keeper: Wallkeeper,
    viewer: Viewer,
    opened: OpenedCase,
    *,
    unit: str,
    answer: str,
    version: int,
    now: datetime,
) -> str:
    """Seal a handling unit in, or raise the wall before it, and return the unit that has the case now.

    answer: ``no``, ``yes`` or ``unsure`` to "does the account name or hint at someone tied to this unit?"
    (casework.md section 3). Anything but ``no`` excludes the unit and brings the case to integrity: in the same
    transaction, so that nobody seals that unit in later, unless the wall was narrowed.
    Raises what `cases.for_hand_on` does, and Forbidden without an answer.
    """
    case, target = for_hand_on(tx, viewer, opened, keeper.cards, unit=unit, version=version)
    if answer == "no":
        seal_in(tx, keeper.ledger, viewer, opened, case, target, now)
        return target.unit
    if answer not in NAMED:
        raise Forbidden("The question needs an answer.")
    _exclude_unit(tx, keeper, viewer, case, opened, unit, NAMED[answer], now, f"screener:{answer}")
    return tx.scalars(select(col(Case.unit)).where(col(Case.id) == opened.case.id)).one()


def _exclude_unit(
    tx: Tx,
    keeper: Wallkeeper,
    viewer: Viewer,
    case: Case,
    opened: OpenedCase,
    unit: str,
    why: str,
    now: datetime,
    cause: str | None,
) -> None:
    """Exclude a unit. cause: of the wall that is raised, where the unit that works the case loses it; else None."""
    barred = opened.barred | {unit}
    behind_the_wall(keeper.cards, barred)  # refuses before anything is written
    taken = tx.execute(delete(CaseSeal).where(col(CaseSeal.case) == case.id, col(CaseSeal.unit) == unit))
    privates, columns = dict(opened.privates), dict[str, Any]()
    if taken.rowcount:  # type: ignore[attr-defined]
        columns["generation"] = case.generation + 1
        privates |= {case.generation + 1: _new_key(tx, keeper, case)}
    if case.oversight == unit:
        columns["oversight"] = _another_oversight(tx, keeper.cards, case, barred, privates)
    names = [wall_name(keeper.row_key, UNIT, unit)]
    lost = None if cause is None else partial(wall, deck=keeper.cards, privates=privates, barred=barred, cause=cause)
    # Who it is stands sealed to the new key: they may have kept the old one.
    public = boxes.public_of(privates[max(privates)])
    _exclude(tx, keeper, viewer, case, public, {"unit": unit}, names, why, now, lost, **columns)


def _for_exclusion(tx: Tx, viewer: Viewer, opened: OpenedCase, why: str, version: int) -> Case:
    case = find(tx, viewer, opened.case.id)
    if not may_exclude(viewer):
        raise Forbidden("This role may not take this step.")
    if why not in WHYS:
        raise InvalidForm("why", "Say why.")
    unmoved(tx, case, version)
    if not has_opened(tx, case, viewer):
        raise Forbidden("Open the account first: what you say of it rests on having read it.")
    return case


def _exclude(
    tx: Tx,
    keeper: Wallkeeper,
    viewer: Viewer,
    case: Case,
    public: bytes,
    whom: Mapping[str, str],
    names: Sequence[bytes],
    why: str,
    now: datetime,
    lost: Callable[..., str] | None = None,
    **columns: Any,
) -> None:
    """Write the rows and the event of an exclusion; a claim and proposals of whoever is out now end.

    public: what `whom` is sealed to. lost: `wall`, where the unit that works the case loses it.
    """
    if {row.name for row in walls_of(tx, case.id)} & set(names):
        raise Conflict("They are excluded already.")
    exclusion = uuid4()
    for name in names:
        row = Wall(name=name, case=case.id, exclusion=exclusion, why=why, added_at=now, whom=b"", row_tag=b"")
        row.whom = boxes.seal(public, _place(row), json.dumps(dict(whom)).encode())
        row.row_tag = boxes.row_tag(keeper.row_key, wall_row(row))
        tx.add(row)
    tx.flush()
    if not _overseen(tx, keeper.row_key, case):
        raise Forbidden("Somebody of oversight must be left to see the case.")
    if lost is None and _is_out(tx, keeper, case, case.owner):
        columns |= without_owner(tx, case, now)
    fields = {"why": why, "whom": Sealed(dict(whom), public), "wall": wall_digest(walls_of(tx, case.id))}
    due_at, state = columns.get("due_at", case.due_at), state_class(case.state)
    event = NewEvent(EventType.CASE_WALL_WIDENED, now, viewer.actor, state, due_at, fields)
    ended = _end_what_they_signed(tx, keeper, case, now, due_at, lowering=lost is None)
    if lost is None:
        change(tx, keeper.ledger, case, [event, *ended], **columns)
        return
    # It works out generation and oversight by itself.
    lost(tx, keeper.ledger, case, actor=viewer.actor, now=now, events=[event, *ended])


def _is_out(tx: Tx, keeper: Wallkeeper, case: Case, member: UUID | None) -> bool:
    person = tx.get(Member, member) if member is not None else None
    return person is not None and stands_before(tx, keeper.row_key, case.id, person)


def _end_what_they_signed(
    tx: Tx, keeper: Wallkeeper, case: Case, now: datetime, due_at: datetime, *, lowering: bool
) -> list[NewEvent]:
    """End proposals about the case that somebody signed who is behind its wall now; return the events that say so.

    lowering: whether the one to lower it is looked at here; `wall` ends it by itself.
    """
    events: list[NewEvent] = []
    fall = standing_lowering(tx, case) if lowering else None
    if fall is not None and any(_is_out(tx, keeper, case, by) for by in (fall.proposer, fall.approver, fall.overseer)):
        events += lapse_lowering(tx, case, now, due_at)
    for narrowing in tx.scalars(select(Narrowing).where(col(Narrowing.case) == case.id, STANDING)).all():
        if any(_is_out(tx, keeper, case, by) for by in (narrowing.proposer, narrowing.approver)):
            narrowing.state = NarrowingState.REFUSED
            fields = {"narrowing": narrowing.id.hex, "exclusion": narrowing.exclusion.hex}
            state = state_class(case.state)
            events.append(NewEvent(EventType.NARROWING_REFUSED, now, SYSTEM, state, due_at, fields))
    tx.flush()
    return events


def _new_key(tx: Tx, keeper: Wallkeeper, case: Case) -> bytes:
    """Make the case's next key, sealed to whoever holds the present one; return its private half."""
    generation = case.generation + 1
    private, public = boxes.keypair()
    tx.insert(CaseKey, [case_key_insert(keeper.row_key, case.id, generation, public)])
    held = select(col(CaseSeal.unit)).where(col(CaseSeal.case) == case.id, col(CaseSeal.generation) == case.generation)
    holders = [keeper.cards.unit(unit) for unit in sorted(tx.scalars(held).all())]
    tx.insert(CaseSeal, [seal_row(card, case.id, generation, private) for card in holders])
    return private


def _another_oversight(tx: Tx, deck: Cards, case: Case, barred: frozenset[str], privates: Mapping[int, bytes]) -> str:
    """Seal the case to an oversight unit that is not excluded, and return it."""
    _, oversight = behind_the_wall(deck, barred)
    held = select(col(CaseSeal.generation)).where(col(CaseSeal.case) == case.id, col(CaseSeal.unit) == oversight.unit)
    there = set(tx.scalars(held).all())
    rows = [seal_row(oversight, case.id, g, private) for g, private in privates.items() if g not in there]
    tx.insert(CaseSeal, rows)
    return oversight.unit


def _overseen(tx: Session, row_key: bytes, case: Case) -> bool:
    """Return whether the case exists for somebody of oversight: a case is never without a reader."""
    people = tx.scalars(
        select(Member)
        .join(UnitGrant, col(UnitGrant.member) == col(Member.id))
        .join(CaseSeal, col(CaseSeal.unit) == col(UnitGrant.unit))
        .where(col(CaseSeal.case) == case.id, col(Member.role) == Role.OVERSIGHT, col(Member.disabled_at).is_(None))
        .distinct()
    ).all()
    names = {row.name for row in walls_of(tx, case.id)}
    return any(not names & names_of(tx, row_key, person.id, person.role) for person in people)


# --- narrowing ------------------------------------------------------------------------------------------


def propose_narrowing(
    tx: Tx,
    keeper: Wallkeeper,
    viewer: Viewer,
    case_id: UUID,
    exclusion: UUID,
    reason: str,
    *,
    version: int,
    now: datetime,
) -> UUID:
    """Propose to take an exclusion back, and return the proposal's id. Nothing is taken back by it.

    reason: why, sealed to the case. Raises NoSuchCase, NotFound, Forbidden, CaseMoved, InvalidForm, WrongState.
    """
    must_run(tx)
    case = _for_narrowing(tx, viewer, case_id, version)
    why = _sealed(tx, keeper, case, reason)
    if exclusion not in {row.exclusion for row in walls_of(tx, case.id)}:
        raise NotFound("There is no such exclusion.")
    if tx.scalar(select(exists().where(col(Narrowing.exclusion) == exclusion, STANDING))):
        raise WrongState("Somebody has proposed to take it back already.")
    narrowing = Narrowing(
        id=uuid4(),
        case=case.id,
        exclusion=exclusion,
        state=NarrowingState.PROPOSED,
        proposed_at=now,
        proposer=viewer.member,
    )
    tx.add(narrowing)
    tx.flush()
    _append(tx, keeper, viewer, case, EventType.NARROWING_PROPOSED, narrowing, now, {"reason": why})
    return narrowing.id


def approve_narrowing(
    tx: Tx, keeper: Wallkeeper, viewer: Viewer, case_id: UUID, narrowing_id: UUID, *, version: int, now: datetime
) -> None:
    """Sign a proposal as the second person of oversight. The exclusion stands until the event is witnessed.

    Raises NoSuchCase, NotFound, Forbidden, CaseMoved, WrongState.
    """
    must_run(tx)
    case = _for_narrowing(tx, viewer, case_id, version)
    narrowing = _narrowing(tx, case, narrowing_id, NarrowingState.PROPOSED)
    if narrowing.proposer == viewer.member:
        raise Forbidden("You have signed this already: another person must.")
    narrowing.state, narrowing.approver = NarrowingState.APPROVED, viewer.member
    tx.flush()
    effect = {"do": "narrow", "case": case.id.hex, "narrowing": narrowing.id.hex}
    _append(tx, keeper, viewer, case, EventType.NARROWING_APPROVED, narrowing, now, {}, effect)


def refuse_narrowing(
    tx: Tx,
    keeper: Wallkeeper,
    viewer: Viewer,
    case_id: UUID,
    narrowing_id: UUID,
    reason: str,
    *,
    version: int,
    now: datetime,
) -> None:
    """End a proposal that has not taken effect: one person of oversight is enough, the proposer too.

    Raises NoSuchCase, NotFound, Forbidden, CaseMoved, InvalidForm, WrongState.
    """
    case = _for_narrowing(tx, viewer, case_id, version)
    narrowing = _narrowing(tx, case, narrowing_id, NarrowingState.PROPOSED, NarrowingState.APPROVED)
    why = _sealed(tx, keeper, case, reason)
    narrowing.state = NarrowingState.REFUSED
    tx.flush()
    _append(tx, keeper, viewer, case, EventType.NARROWING_REFUSED, narrowing, now, {"reason": why})


def take_effect(tx: Tx, action: Mapping[str, Any], now: datetime, *, ledger: Ledger) -> None:
    """Do what a witnessed narrowing says, if it stands approved still.

    action: the effect of `approve_narrowing`. For whoever runs witnessed effects (ledger.md section 6); safe twice.
    A unit whose exclusion ends holds no seal by it: it is sealed in again by a hand-on, like any other.
    """
    narrowing = tx.get(Narrowing, UUID(action["narrowing"]))
    case = tx.get(Case, UUID(action["case"]))
    if narrowing is None or case is None or narrowing.case != case.id or narrowing.state != NarrowingState.APPROVED:
        return
    tx.execute(delete(Wall).where(col(Wall.case) == case.id, col(Wall.exclusion) == narrowing.exclusion))
    narrowing.state = NarrowingState.DONE
    tx.flush()
    fields = {"narrowing": narrowing.id.hex, "wall": wall_digest(walls_of(tx, case.id))}
    event = NewEvent(EventType.CASE_WALL_NARROWED, now, SYSTEM, state_class(case.state), case.due_at, fields)
    change(tx, ledger, case, [event])


def _for_narrowing(tx: Tx, viewer: Viewer, case_id: UUID, version: int) -> Case:
    case = find(tx, viewer, case_id)
    if not _oversees(viewer):
        raise Forbidden("This role may not take this step.")
    unmoved(tx, case, version)
    if not has_opened(tx, case, viewer):
        raise Forbidden("Open the account first: what you say of it rests on having read it.")
    return case


def _oversees(viewer: Viewer) -> bool:
    return viewer.role == Role.OVERSIGHT and viewer.sits(UnitKind.OVERSIGHT)


def _narrowing(tx: Tx, case: Case, narrowing_id: UUID, *states: NarrowingState) -> Narrowing:
    of_case = col(Narrowing.case) == case.id
    found = tx.scalars(select(Narrowing).where(col(Narrowing.id) == narrowing_id, of_case)).one_or_none()
    if found is None:
        raise NotFound("There is no such proposal.")
    if found.state not in states:
        raise WrongState("This proposal has ended.")
    return found


def _sealed(tx: Tx, keeper: Wallkeeper, case: Case, reason: str) -> Sealed:
    if not reason.strip():
        raise InvalidForm("reason", "Say why.")
    return Sealed(reason.strip(), case_public(tx, case, keeper.row_key))


def _append(
    tx: Tx,
    keeper: Wallkeeper,
    viewer: Viewer,
    case: Case,
    what: EventType,
    narrowing: Narrowing,
    now: datetime,
    fields: Mapping[str, Any],
    effect: Mapping[str, str] | None = None,
) -> None:
    told = {"narrowing": narrowing.id.hex, "exclusion": narrowing.exclusion.hex, **fields}
    state = state_class(case.state)
    change(tx, keeper.ledger, case, [NewEvent(what, now, viewer.actor, state, case.due_at, told, effect=effect)])


# --- what pages show ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Exclusion:
    """What was excluded in one act. whom: ``{"member": id}`` or ``{"unit": id}``; empty while it is sealed."""

    id: UUID
    why: str
    added_at: datetime
    whom: Mapping[str, str]
    narrowing: Narrowing | None


def exclusions(session: Session, row_key: bytes, case: Case, privates: Mapping[int, bytes]) -> list[Exclusion]:
    """Return who is behind a case's wall, oldest first. privates: the case's keys by generation; none leaves it sealed.

    Raises CannotOpen for a row that was planted or changed.
    """
    standing = {
        narrowing.exclusion: narrowing
        for narrowing in session.scalars(select(Narrowing).where(col(Narrowing.case) == case.id, STANDING)).all()
    }
    found: dict[UUID, Exclusion] = {}
    for row in walls_of(session, case.id):
        boxes.check_row_tag(row_key, wall_row(row), row.row_tag)
        if row.exclusion not in found:
            whom = _open(row, privates)
            found[row.exclusion] = Exclusion(row.exclusion, row.why, row.added_at, whom, standing.get(row.exclusion))
    return list(found.values())


def narrowings_for(session: Session, viewer: Viewer) -> list[tuple[UUID, NarrowingState]]:
    """Return the cases with a proposal to narrow their wall, and how far it is, oldest first, for oversight."""
    if not _oversees(viewer):
        return []
    rows = session.execute(
        select(col(Case.id), col(Narrowing.state))
        .join(Narrowing, col(Narrowing.case) == col(Case.id))
        .where(STANDING, readable(viewer), text("case_file.state <> 'closed'"))
        .order_by(col(Narrowing.proposed_at), col(Narrowing.id))
    ).all()
    return [(case, NarrowingState(state)) for case, state in rows]


def _open(row: Wall, privates: Mapping[int, bytes]) -> Mapping[str, str]:
    for private in privates.values():
        with suppress(CannotOpen):
            whom: dict[str, str] = json.loads(boxes.unseal(private, _place(row), row.whom))
            return whom
    return {}


def _place(row: Wall) -> str:
    return f"wall|{row.case.hex}|{row.name.hex()}"
