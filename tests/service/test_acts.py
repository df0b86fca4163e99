"""Acts, steps, referrals and court: who may take a case from one state to the next, and with which paper."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlmodel import col

from service import acts, attachments, cases, casework
from service.attachments import NewFile
from service.casework import Casework, Deed
from service.config import Settings
from service.db import Sessions, write
from service.errors import CannotOpen, CaseMoved, Forbidden, InvalidForm, NoSuchCase, NotFound, WrongState
from service.ledger.events import EventType
from service.models import Attachment, Case, Clock, ClockKind, LedgerField, OverlayKind, Role, State
from tests.builders import NOW, World, a_world
from tests.service.test_cases import again, claim, hand_on, new_case, opened
from tests.service.test_events import stored
from tests.service.test_intake import LOCKED_IN

P2 = "The teacher touches a boy of 9 at the primary school in Kampot."
MET = {"when": "9 March, 15:00", "where": "At her aunt's house", "present": "The aunt"}
TAKER = {"taker": "Captain Rath", "rank": "captain", "taker_unit": "Anti-trafficking"}
TAKEN = TAKER | {"reference": "SR 412/27"}
_papers = iter(range(10_000))


def a_paper(content: bytes | None = None, name: str = "letter.pdf") -> NewFile:
    """A scanned paper, unlike every other."""
    return NewFile("proof", name, b"%PDF-1.7 paper " + str(next(_papers)).encode() if content is None else content)


def an_act(kind: str = "contact", **changed: Any) -> Deed:
    return replace(Deed(kind, MET, a_paper()), **changed)


def work_of(world: World) -> Casework:
    targets = {"claim_targets": Settings().claim_targets, "act_targets": Settings().act_targets}
    return Casework(world.ledger, world.founding.cards, world.founding.row_key, **targets)


class Desk:
    """A case that an investigator owns, and what people do with it."""

    def __init__(self, world: World, words: str = LOCKED_IN, **tip: Any) -> None:
        self.world, self.now = world, NOW
        self.work = work_of(world)
        self.case = new_case(world, words, **tip)
        hand_on(world, self.case)
        claim(world, self.case)
        self.keys = {"investigator": opened(world, "investigator", self.case, "owner")}

    def do(self, step: Callable[..., Any], *what: Any, by: str = "investigator", **named: Any) -> Any:
        """Take a step, as `by`, who has opened the case."""
        if by not in self.keys:
            self.keys[by] = opened(self.world, by, self.case, "oversight")
        viewer = self.world.signed_in(by).viewer
        version = named.pop("version", self.row.version)
        return write(
            self.world.sessions,
            lambda tx: step(tx, self.work, viewer, self.keys[by], *what, version=version, now=self.now, **named),
        )

    @property
    def row(self) -> Case:
        return again(self.world, self.case)

    @property
    def events(self) -> list[str]:
        return [event.type for event in stored(self.world.sessions, self.case.chain)]

    def running(self) -> dict[str, Any]:
        with self.world.sessions.read() as session:
            clocks = session.scalars(select(Clock).where(col(Clock.case) == self.case.id, cases.RUNNING)).all()
            return {clock.kind: clock.due_at - NOW for clock in clocks}


@pytest.fixture
def desk(sessions: Sessions) -> Desk:
    return Desk(a_world(sessions))


def referred(desk: Desk) -> None:
    desk.do(acts.act, an_act())
    desk.do(acts.refer, Deed("law", {"recipient": "Provincial prosecutor", "summary": "A girl is held."}))


def with_authority(desk: Desk) -> None:
    referred(desk)
    desk.do(acts.taken, Deed("taken", TAKEN, a_paper()))


# --- the way to an authority and a court ---


def test_a_case_goes_from_a_claim_to_an_authority_and_every_step_is_one_event(desk: Desk) -> None:
    desk.do(acts.plan, "See her alone at school.", "Nobody but the aunt.")
    assert desk.row.state == State.CLAIMED
    assert desk.running().keys() == {"act"}, "the plan carries the claim to the deadline to act"
    before = len(desk.events)

    desk.do(acts.act, an_act())
    assert (desk.row.state, desk.row.back) == (State.IN_ACTION, State.CLAIMED)
    assert desk.running() == {"step": timedelta(days=7)}
    desk.do(acts.refer, Deed("law", {"recipient": "Provincial prosecutor", "summary": "A girl is held."}))
    assert desk.row.state == State.REFERRED
    assert desk.running() == {"taken": timedelta(hours=2)}
    desk.do(acts.taken, Deed("taken", TAKEN, a_paper()))
    assert desk.row.state == State.WITH_AUTHORITY
    assert desk.running() == {"heartbeat": timedelta(days=7), "letter": timedelta(days=15)}
    assert desk.events[before:] == [EventType.ACT_RECORDED, EventType.REFERRAL_SENT, EventType.REFERRAL_TAKEN]
    assert desk.row.due_kind == ClockKind.HEARTBEAT


def test_what_was_written_stands_nowhere_in_clear(desk: Desk) -> None:
    with_authority(desk)
    with desk.world.sessions.read() as session:
        values = b"".join(session.scalars(select(col(LedgerField.value))).all())
        files = session.scalars(select(Attachment)).all()
    for words in ("Captain Rath", "SR 412", "aunt", "prosecutor"):
        assert words.encode() not in values
    assert all(b"%PDF" not in row.body and b"letter" not in row.name_body for row in files)


@pytest.mark.parametrize("missing", ["reference", "taker", "rank", "taker_unit", "proof"])
def test_an_authority_has_a_case_only_with_reference_taker_and_paper(desk: Desk, missing: str) -> None:
    referred(desk)
    words = {name: text for name, text in TAKEN.items() if name != missing}
    with pytest.raises(InvalidForm):
        desk.do(acts.taken, Deed("taken", words, None if missing == "proof" else a_paper()))
    assert desk.row.state == State.REFERRED
    with desk.world.sessions.read() as session:
        assert len(attachments.attached(session, desk.case)) == 1, "that of the act: what is refused leaves nothing"


def test_the_table_itself_asks_for_the_proof(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that forgets its paper is stopped by the row of the table; without that it goes through."""
    referred(desk)

    def careless(tx: Any, work: Casework, viewer: Any, keys: Any, *, version: int, now: Any) -> None:
        case = cases.find(tx, viewer, keys.case.id)
        start = acts._heartbeat(case, now)
        who = {"actor": viewer.actor, "member": viewer.member, "now": now, "starts": start}
        cases.move(tx, work.ledger, case, EventType.REFERRAL_TAKEN, **who)

    with pytest.raises(InvalidForm):
        desk.do(careless)
    rows = tuple(replace(row, proof=()) for row in cases.TRANSITIONS)
    monkeypatch.setattr(cases, "TRANSITIONS", rows)
    desk.do(careless)
    assert desk.row.state == State.WITH_AUTHORITY


def test_a_p1_is_taken_by_telephone_and_owes_its_papers_in_three_days(desk: Desk) -> None:
    referred(desk)
    desk.do(acts.taken_by_phone, TAKER | {"number": "+85500000777", "when": "16:05"})
    assert desk.row.state == State.REFERRED
    assert desk.running() == {"papers": timedelta(hours=72)}
    with pytest.raises(WrongState):
        desk.do(acts.taken_by_phone, TAKER | {"number": "+85500000777", "when": "16:05"})


def test_a_refused_referral_is_ours_again(desk: Desk) -> None:
    referred(desk)
    desk.do(acts.not_taken, "They say that it is not theirs.")
    assert (desk.row.state, desk.row.owner) == (State.IN_ACTION, desk.world.signed_in("investigator").viewer.member)
    assert desk.running() == {"step": timedelta(days=7)}


def test_what_an_authority_lets_lie_comes_back(desk: Desk) -> None:
    with_authority(desk)
    desk.do(acts.not_taken, "Nothing was done in a month.")
    assert desk.row.state == State.IN_ACTION


def test_a_paper_from_outside_renews_the_heartbeat_and_a_telephone_call_does_not(desk: Desk) -> None:
    with_authority(desk)
    desk.now = NOW + timedelta(days=5)
    desk.do(acts.step, Deed("answer", {"what": "They are looking into it."}))
    assert desk.running()["heartbeat"] == timedelta(days=7)
    desk.do(acts.step, Deed("answer", {"what": "Their letter."}, a_paper()))
    assert desk.running() == {"heartbeat": timedelta(days=12), "letter": timedelta(days=20)}


# --- what is no act ---


@pytest.mark.parametrize("kind", ["note", "read", "letter", ""])
def test_reading_and_noting_protect_nobody(desk: Desk, kind: str) -> None:
    with pytest.raises(InvalidForm):
        desk.do(acts.act, an_act(kind))


def test_an_act_without_paper_is_refused(desk: Desk) -> None:
    with pytest.raises(InvalidForm):
        desk.do(acts.act, an_act(proof=None))
    assert desk.row.state == State.CLAIMED


@pytest.mark.parametrize(
    ("content", "why"),
    [(b"", "Attach"), (b"I was there, it is fine.", "PDF"), (b"<html>", "PDF"), (b"MZ\x90", "PDF")],
    ids=["empty", "typed here", "page", "program"],
)
def test_a_proof_is_a_paper(desk: Desk, content: bytes, why: str) -> None:
    with pytest.raises(InvalidForm, match=why):
        desk.do(acts.act, an_act(proof=a_paper(content)))


def test_one_paper_proves_one_thing(desk: Desk) -> None:
    paper = a_paper()
    desk.do(acts.act, an_act(proof=paper))
    with pytest.raises(InvalidForm, match="already"):
        desk.do(acts.act, an_act("evidence", proof=replace(paper, name="another name.pdf")))
    other = Desk(desk.world, P2)
    with pytest.raises(InvalidForm, match="already"):
        other.do(acts.act, an_act(proof=paper))


def test_nothing_is_told_of_a_paper_in_a_case_that_does_not_exist_for_the_person(desk: Desk) -> None:
    paper = a_paper()
    desk.do(acts.act, an_act(proof=paper))
    other = Desk(desk.world, P2)
    write(
        desk.world.sessions,
        lambda tx: tx.execute(
            cases.delete(cases.CaseSeal).where(
                col(cases.CaseSeal.case) == desk.case.id, col(cases.CaseSeal.unit) == "siem-reap"
            )
        ),
    )
    other.do(acts.act, an_act(proof=paper))
    assert other.row.state == State.IN_ACTION


def test_a_visit_waits_for_who_could_guess_who_told(desk: Desk) -> None:
    with pytest.raises(WrongState, match="guess"):
        desk.do(acts.act, an_act("visit"))
    with pytest.raises(InvalidForm):
        desk.do(acts.plan, "Visit the home.", " ")
    desk.do(acts.plan, "An ordinary inspection that sees every child.", "All staff; nobody in particular.")
    desk.do(acts.act, an_act("visit"))
    assert desk.row.state == State.IN_ACTION


def test_a_step_renews_the_clock_of_steps_and_meets_no_other(desk: Desk) -> None:
    with pytest.raises(WrongState):
        desk.do(acts.step, Deed("letter", {"what": "Wrote to the school."}))
    desk.do(acts.act, an_act())
    desk.now = NOW + timedelta(days=3)
    desk.do(acts.step, Deed("letter", {"what": "Wrote to the school."}))
    assert desk.running() == {"step": timedelta(days=10)}


def test_an_emergency_act_by_the_screener_meets_the_clock_and_owns_nothing(sessions: Sessions) -> None:
    world = a_world(sessions)
    desk = Desk.__new__(Desk)
    desk.world, desk.now, desk.case, desk.keys = world, NOW, new_case(world), {}
    desk.work = work_of(world)
    words = {"taker": "Dara", "taker_unit": "119", "number": "119", "when": "14:25"}
    desk.do(acts.emergency, Deed("ambulance", words), by="screener")
    assert (desk.row.state, desk.row.owner) == (State.OPEN, None)
    assert desk.running().keys() == {"claim"}
    with pytest.raises(InvalidForm):
        desk.do(acts.emergency, Deed("police", words | {"number": ""}), by="screener")


def test_a_stall_ends_with_a_proven_act_and_not_with_words(desk: Desk) -> None:
    desk.do(acts.act, an_act())

    def stall(tx: Any) -> None:
        case = tx.get(Case, desk.case.id)
        cases.change(tx, desk.world.ledger, case, cases.mark(tx, case, OverlayKind.STALL, NOW))

    write(desk.world.sessions, stall)
    desk.do(acts.step, Deed("contact_attempt", {"what": "Rang."}))
    with desk.world.sessions.read() as session:
        assert cases.overlays(session, desk.case) == {"stall"}
    desk.do(acts.act, an_act("evidence"))
    with desk.world.sessions.read() as session:
        assert cases.overlays(session, desk.case) == frozenset()
    assert desk.events[-2:] == [EventType.ACT_RECORDED, EventType.OVERLAY_ENDED]


# --- who ---


@pytest.mark.parametrize("by", ["screener", "investigator-2", "oversight"])
def test_only_the_owner_acts_and_refers(desk: Desk, by: str) -> None:
    for step, what in ((acts.act, an_act()), (acts.refer, Deed("law", {"recipient": "X", "summary": "Y"}))):
        with pytest.raises(Forbidden):
            desk.do(step, what, by=by)
    assert desk.row.state == State.CLAIMED


def test_a_claim_is_given_back_with_a_reason_and_its_first_deadline(desk: Desk) -> None:
    due = NOW.replace(second=0) + timedelta(minutes=15)
    with pytest.raises(InvalidForm):
        desk.do(acts.release, " ")
    desk.do(acts.release, "I know the family.")
    assert (desk.row.state, desk.row.owner, desk.row.due_at) == (State.OPEN, None, due)
    assert desk.row.due_kind == ClockKind.CLAIM


def test_a_page_that_is_out_of_date_acts_on_nothing(desk: Desk) -> None:
    desk.do(acts.act, an_act())
    with pytest.raises(CaseMoved):
        desk.do(acts.act, an_act("evidence"), version=desk.row.version - 1)


def test_for_the_excluded_there_is_nothing_to_act_on(desk: Desk) -> None:
    stranger = desk.world.signed_in("elsewhere").viewer
    with pytest.raises(NoSuchCase):
        write(
            desk.world.sessions,
            lambda tx: acts.act(
                tx, desk.work, stranger, desk.keys["investigator"], an_act(), version=desk.row.version, now=NOW
            ),
        )


def test_a_refused_try_stays_in_the_history(desk: Desk) -> None:
    viewer = desk.world.signed_in("investigator").viewer
    casework.note_refused(desk.world.sessions, desk.world.ledger, viewer, desk.case.id, EventType.REFERRAL_TAKEN, NOW)
    assert desk.events[-1] == EventType.STEP_REFUSED


def test_every_state_is_left_only_by_rows_of_the_table() -> None:
    for state in State:
        for event in EventType:
            for role in (*Role, "system"):
                case = Case(state=state, owner=None)
                rows = [r for r in cases.TRANSITIONS if state in r.before and r.event == event and role in r.who]
                try:
                    assert cases.transition(case, event, role, None) in rows
                except (WrongState, Forbidden):
                    assert not [row for row in rows if not row.owner or case.owner is None]


@pytest.mark.parametrize("overlay", sorted(cases.STOPPING))
def test_an_overlay_stops_what_ends_or_weakens_a_case(
    desk: Desk, overlay: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    weak = tuple(replace(row, weakens=row.event == EventType.CASE_RELEASED) for row in cases.TRANSITIONS)
    monkeypatch.setattr(cases, "TRANSITIONS", weak)

    def marked(tx: Any) -> None:
        case = tx.get(Case, desk.case.id)
        cases.change(tx, desk.world.ledger, case, cases.mark(tx, case, OverlayKind(overlay), NOW))

    write(desk.world.sessions, marked)
    with pytest.raises(WrongState):
        desk.do(acts.release, "No time.")
    desk.do(acts.act, an_act())


# --- files ---


def test_a_file_is_read_only_after_its_opening_is_written(desk: Desk) -> None:
    paper = a_paper()
    desk.do(acts.act, an_act(proof=paper))
    world, viewer = desk.world, desk.world.signed_in("investigator").viewer
    with world.sessions.read() as session:
        [row] = attachments.attached(session, desk.case)
        assert attachments.opened_by(session, desk.case, viewer.member) == frozenset()
    attachments.record_opening(world.sessions, world.ledger, viewer, desk.case.id, row.id, NOW)
    with world.sessions.read() as session:
        name, content = attachments.open_file(session, desk.keys["investigator"], row.id)
        assert (name, b"".join(content)) == ("letter.pdf", paper.content)
        assert attachments.opened_by(session, desk.case, viewer.member) == {row.id}
    assert desk.events[-1] == EventType.ATTACHMENT_OPENED
    other = Desk(world, P2)
    with pytest.raises(NotFound):
        attachments.record_opening(world.sessions, world.ledger, viewer, other.case.id, row.id, NOW)


@pytest.mark.parametrize("column", ["body", "header", "name_body", "seal"])
def test_a_file_that_was_changed_does_not_open(desk: Desk, column: str) -> None:
    desk.do(acts.act, an_act())
    with desk.world.sessions.read() as session:
        [row] = attachments.attached(session, desk.case)
    spoiled = bytearray(getattr(row, column))
    spoiled[-1] ^= 1
    change = update(Attachment).where(col(Attachment.id) == row.id).values({column: bytes(spoiled)})
    write(desk.world.sessions, lambda tx: tx.execute(change))
    with desk.world.sessions.read() as session, pytest.raises(CannotOpen):
        b"".join(attachments.open_file(session, desk.keys["investigator"], row.id)[1])
