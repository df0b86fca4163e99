"""Rows that a process acts upon carry a tag: whoever can write the database has nothing sent, joined or sealed by it.

Each swap stands beside its control: without the tag it succeeds.
"""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import func, select, text, update
from sqlmodel import col

from service import intake, relay
from service.db import Sessions, Tx, write
from service.models import Case, CaseKey, Contact, JobState, Message, Tip
from service.vault import boxes
from tests.builders import NOW, a_tip, a_world, the_case
from tests.service.sending import Scene, everything_logged

MINE, OTHERS = "+85500000001", "+85500000002"
LATER = NOW + timedelta(minutes=5)


@pytest.fixture
def scene(sessions: Sessions) -> Scene:
    return Scene(a_world(sessions))


def without_tags(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every tag pass: the negative control."""
    monkeypatch.setattr(boxes, "check_row_tag", lambda *_: None)
    for module in (relay, intake):
        monkeypatch.setattr(module.hmac, "compare_digest", lambda *_: True)


def administer(scene: Scene, change: Callable[[Tx], Any]) -> None:
    """Write rows as the database's administrator could."""
    write(scene.world.sessions, change)


def contact_of(scene: Scene, case: Case) -> Contact:
    with scene.world.sessions.read() as session:
        return session.scalars(
            select(Contact).join(Tip, col(Tip.contact) == col(Contact.id)).where(col(Tip.case) == case.id)
        ).one()


def case_of(scene: Scene, words_by: str, sid: str) -> Any:
    [receipt] = scene.world.receive(a_tip("There is more.", sender=words_by, delivery=sid, received_at=LATER))
    return the_case(scene.world, receipt.tip)


# --- silence ---


def opt_out(scene: Scene) -> None:
    """Have the provider say that a number wants no more texts."""
    row = scene.row()
    administer(scene, lambda tx: scene.relay._lost(tx, tx.merge(row), relay.OPTED_OUT, scene.now))


def take_back(scene: Scene) -> None:
    administer(scene, lambda tx: tx.execute(update(Contact).values(opted_out_at=None, quiet_until=None)))
    scene.change(scene.row().id, state=JobState.WAITING)


def test_an_opt_out_is_not_taken_back_by_a_row(scene: Scene) -> None:
    scene.tip(sender=MINE)
    opt_out(scene)
    take_back(scene)
    with everything_logged() as log:
        assert scene.send() == []
    assert scene.states() == [JobState.DROPPED]
    assert "contact_row_is_not_ours" in log.getvalue()


def test_without_the_tag_it_is(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.tip(sender=MINE)
    opt_out(scene)
    take_back(scene)
    without_tags(monkeypatch)
    assert [to for to, _ in scene.send()] == [MINE]


@pytest.mark.parametrize("tag", [None, bytes(32)])
def test_a_contact_without_its_tag_is_not_written_to(scene: Scene, tag: bytes | None) -> None:
    """As one of the version before, whose silence nobody can vouch for."""
    scene.tip(sender=MINE)
    administer(scene, lambda tx: tx.execute(update(Contact).values(quiet_tag=tag)))
    assert scene.send() == []


def test_our_own_changes_keep_the_tag_good(scene: Scene) -> None:
    scene.tip(sender=MINE)
    assert [to for to, _ in scene.send()] == [MINE]
    contact = scene.contact()
    assert contact.quiet_until is not None
    relay._check_quiet(scene.world.founding.row_key, contact)


# --- which tip later words join ---


def point_at_the_others_tip(scene: Scene) -> tuple[Case, Case]:
    """Have a contact's later words go to a case that another unit works."""
    mine = scene.tip("A first account.", sender=MINE)
    other = scene.tip("Another account.", sender=OTHERS)
    target = contact_of(scene, other).tip
    contact = contact_of(scene, mine).id
    administer(scene, lambda tx: tx.execute(update(Contact).where(col(Contact.id) == contact).values(tip=target)))
    return mine, other


def test_later_words_do_not_follow_a_changed_row_into_anothers_case(scene: Scene) -> None:
    mine, other = point_at_the_others_tip(scene)
    with everything_logged() as log:
        joined = case_of(scene, MINE, "SM-later")
    assert joined.id not in (mine.id, other.id), "a case of its own: no tip is lost, and nobody's is joined"
    assert "contact_row_is_not_ours" in log.getvalue()
    assert case_of(scene, MINE, "SM-last").id == joined.id, "from then on the contact is whole again"


def test_without_the_tag_they_do(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    _, other = point_at_the_others_tip(scene)
    without_tags(monkeypatch)
    assert case_of(scene, MINE, "SM-later").id == other.id


def swap_names(scene: Scene) -> tuple[Case, Case]:
    """Have one contact found under another's number."""
    mine, other = scene.tip("A first account.", sender=MINE), scene.tip("Another account.", sender=OTHERS)
    first, second = contact_of(scene, mine), contact_of(scene, other)

    def swap(tx: Tx) -> None:
        named = update(Contact)
        tx.execute(named.where(col(Contact.id) == first.id).values(pseudonym=None))
        tx.execute(named.where(col(Contact.id) == second.id).values(pseudonym=first.pseudonym))

    administer(scene, swap)
    return mine, other


def test_a_contact_under_anothers_name_takes_no_words_and_none_are_lost(scene: Scene) -> None:
    mine, other = swap_names(scene)
    with everything_logged() as log:
        joined = case_of(scene, MINE, "SM-later")
    assert joined.id not in (mine.id, other.id)
    assert "contact_row_is_not_ours" in log.getvalue()
    assert contact_of(scene, joined).pseudonym is None
    assert contact_of(scene, joined).number_sealed is not None, "it can be answered all the same"


def test_without_the_tag_it_takes_them(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    _, other = swap_names(scene)
    without_tags(monkeypatch)
    assert case_of(scene, MINE, "SM-later").id == other.id


# --- a case put back to the key of a unit that is gone ---


def put_back(scene: Scene, case: Case) -> None:
    """Add a generation to a case as taking a unit away does, then point the case at the one before."""
    _, public = boxes.keypair()
    from service.cases import case_key_insert, change
    from service.ledger.events import SYSTEM, EventType, NewEvent, StateClass

    def forward(tx: Tx) -> None:
        tx.insert(CaseKey, [case_key_insert(scene.world.founding.row_key, case.id, 2, public)])
        event = NewEvent(EventType.CASE_REMOVED, NOW, SYSTEM, StateClass.OPEN, case.due_at)
        change(tx, scene.world.ledger, tx.get_one(Case, case.id), [event], generation=2)

    administer(scene, forward)
    off, on = (
        ("DROP TRIGGER case_file_moves_on", None)
        if scene.world.sessions.dialect == "sqlite"
        else ("ALTER TABLE case_file DISABLE TRIGGER USER", "ALTER TABLE case_file ENABLE TRIGGER USER")
    )

    def back(tx: Tx) -> None:
        for statement in (off, "UPDATE case_file SET generation = 1", on):
            if statement:
                tx.execute(text(statement))

    administer(scene, back)


def test_words_are_not_sealed_to_a_generation_before_the_newest(scene: Scene) -> None:
    case = scene.tip("A first account.", sender=MINE)
    put_back(scene, case)
    with everything_logged() as log:
        joined = case_of(scene, MINE, "SM-later")
    assert joined.id != case.id
    assert "case_key_is_not_ours" in log.getvalue()
    with scene.world.sessions.read() as session:
        old = select(func.count()).select_from(Message).where(col(Message.case) == case.id)
        assert session.scalar(old) == 1
