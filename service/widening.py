"""Who may open a case besides the unit that works it: one more is sealed in, or one taken away (keys.md 6.6)."""

from datetime import datetime

from sqlalchemy import delete, select
from sqlmodel import col

from service.cases import OpenedCase, case_key_insert, change, find, has_opened, seal_row, state_class, unmoved, wall
from service.db import Tx
from service.errors import Forbidden
from service.ledger.events import EventType, Ledger, NewEvent
from service.models import CaseKey, CaseSeal, Role
from service.vault import boxes
from service.vault.cards import Cards, UnitKind
from service.walls import Viewer

WIDENS = (Role.SCREENER, Role.SUPERVISOR, Role.OVERSIGHT)
TAKES_AWAY = (Role.SUPERVISOR, Role.OVERSIGHT)
BEHIND_THE_WALL = (UnitKind.INTEGRITY, UnitKind.OVERSIGHT)


def widen(
    tx: Tx,
    ledger: Ledger,
    viewer: Viewer,
    opened: OpenedCase,
    deck: Cards,
    *,
    unit: str,
    answer: str,
    version: int,
    now: datetime,
) -> str:
    """Seal a case to one more unit, by its pinned key, and return the unit that has the case now.

    answer: to "does the account name or hint at someone tied to this unit?", as in a hand-on (casework.md section 3):
    anything but ``no`` raises the wall instead. Behind the wall only integrity and oversight are sealed in.
    Raises NoSuchCase, Forbidden, CaseMoved.
    """
    case = find(tx, viewer, opened.case.id)
    unmoved(tx, case, version)
    if viewer.role not in WIDENS or not has_opened(tx, case, viewer):
        raise Forbidden("Whoever has read the account decides who else may.")
    card = deck.unit(unit)
    if card.kind == UnitKind.MONITOR or (case.walled and card.kind not in BEHIND_THE_WALL):
        raise Forbidden("This unit may not read this case.")
    if unit in opened.barred:
        raise Forbidden("This unit may not read this case.")
    if answer not in ("no", "yes", "unsure"):
        raise Forbidden("The question needs an answer.")
    if answer != "no" and card.kind == UnitKind.UNIT:
        cause = f"widening:{answer}:{unit}"
        return wall(tx, ledger, case, deck, opened.privates, opened.barred, actor=viewer.actor, cause=cause, now=now)
    held = set(
        tx.scalars(
            select(col(CaseSeal.generation)).where(col(CaseSeal.case) == case.id, col(CaseSeal.unit) == unit)
        ).all()
    )
    rows = [seal_row(card, case.id, g, private) for g, private in opened.privates.items() if g not in held]
    if not rows:
        raise Forbidden("This unit can read the case already.")
    tx.insert(CaseSeal, rows)
    fields = {"unit": unit, "generations": sorted(set(opened.privates) - held), "named": answer}
    event = NewEvent(EventType.CASE_GRANTED, now, viewer.actor, state_class(case.state), case.due_at, fields)
    change(tx, ledger, case, [event])
    return case.unit


def take_away(
    tx: Tx,
    ledger: Ledger,
    row_key: bytes,
    viewer: Viewer,
    opened: OpenedCase,
    deck: Cards,
    *,
    unit: str,
    version: int,
    now: datetime,
) -> int:
    """Take a unit's seals away and begin the case's next key, which it never gets; return that generation.

    The unit may remember what it read, and what it copied still opens: what comes from now on does not.
    Raises NoSuchCase, Forbidden, CaseMoved.
    """
    case = find(tx, viewer, opened.case.id)
    unmoved(tx, case, version)
    if viewer.role not in TAKES_AWAY:
        raise Forbidden("A supervisor or oversight takes a unit away.")
    if unit in (case.unit, case.oversight):
        raise Forbidden("The unit that works a case and the one that oversees it are not taken away.")
    holders = set(tx.scalars(select(col(CaseSeal.unit)).where(col(CaseSeal.case) == case.id)).all())
    if unit not in holders:
        raise Forbidden("This unit does not hold the case.")
    private, public = boxes.keypair()
    generation = 1 + max(tx.scalars(select(col(CaseKey.generation)).where(col(CaseKey.case) == case.id)).all())
    tx.execute(delete(CaseSeal).where(col(CaseSeal.case) == case.id, col(CaseSeal.unit) == unit))
    tx.insert(CaseKey, [case_key_insert(row_key, case.id, generation, public)])
    left = sorted(holders - {unit})
    tx.insert(CaseSeal, [seal_row(deck.unit(name), case.id, generation, private) for name in left])
    fields = {"unit": unit, "generation": generation, "left": left}
    event = NewEvent(EventType.CASE_REMOVED, now, viewer.actor, state_class(case.state), case.due_at, fields)
    change(tx, ledger, case, [event], generation=generation)
    return generation
