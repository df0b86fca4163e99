"""Closing, and what closes nothing: settlement, withdrawal, time."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlmodel import col

from service import acts, attachments, cases, closures, settlements
from service.closures import REASONS, Proposal
from service.db import Sessions, write
from service.errors import Forbidden, InvalidForm, WrongState
from service.ledger.events import EventType
from service.models import Case, Closure, ClosureState, OverlayKind, Role, State
from service.settlements import KINDS, Offer
from tests.builders import NOW, PEOPLE, a_tip, a_world
from tests.service.test_acts import P2, Desk, a_paper, an_act
from tests.service.test_cases import opened

CAST = PEOPLE | {
    "supervisor": (Role.SUPERVISOR, "org-police", ("siem-reap",), "Ros Chan", "រស់ ចាន់"),
    "night-supervisor": (Role.SUPERVISOR, "org-ngo", ("screening",), "Yim Sokha", "យឹម សុខា"),
}
SAFE = Proposal("C3", {"why": "She lives with her aunt.", "seen_by": "Advocate Lina", "seen_when": "11 March"})
SENDER = "+85500000042"
REVIEW = {
    "advocate": "Advocate Lina",
    "heard": "heard_alone",
    "who_proposed": "An uncle.",
    "in_room": "The advocate alone.",
    "pressure": "A debt was named.",
    "wish": "She wants it to go on.",
    "guardian": "Undecided.",
    "next": "continue",
}


@pytest.fixture
def desk(sessions: Sessions) -> Desk:
    desk = Desk(a_world(sessions, people=CAST), P2)
    desk.do(acts.act, an_act())
    return desk


def propose(desk: Desk, proposal: Proposal = SAFE) -> Any:
    papers = tuple(a_paper() for _ in range(getattr(REASONS.get(proposal.code), "papers", 1)))
    return desk.do(closures.propose, replace(proposal, papers=papers))


def read_papers(desk: Desk, name: str) -> None:
    if name not in desk.keys:
        desk.keys[name] = opened(desk.world, name, desk.case, "oversight")
    viewer = desk.world.signed_in(name).viewer
    with desk.world.sessions.read() as session:
        papers = attachments.attached(session, desk.case)
    for paper in papers:
        attachments.record_opening(desk.world.sessions, desk.world.ledger, viewer, desk.case.id, paper.id, NOW)


def sign(desk: Desk, closure: Any, name: str) -> ClosureState:
    read_papers(desk, name)
    state: ClosureState = desk.do(closures.sign, closure, by=name)
    return state


def signed(desk: Desk) -> Any:
    closure = propose(desk)
    desk.now = NOW + timedelta(days=15)
    sign(desk, closure, "night-supervisor")
    assert sign(desk, closure, "oversight") == ClosureState.SIGNED
    return closure


def effect(desk: Desk, closure: Any) -> bool:
    action = {"do": "close", "case": desk.case.id.hex, "closure": closure.hex}
    write(desk.world.sessions, lambda tx: closures.take_effect(tx, action, desk.now, work=desk.work))
    return bool(desk.row.state == State.CLOSED)


def overlays(desk: Desk) -> frozenset[str]:
    with desk.world.sessions.read() as session:
        return cases.overlays(session, desk.case)


# --- the way to closed ---


def test_a_case_closes_with_papers_two_organisations_time_and_witnesses(desk: Desk) -> None:
    closure = propose(desk)
    assert desk.row.state == State.CLOSURE_PROPOSED
    desk.now = NOW + timedelta(hours=73)
    assert sign(desk, closure, "night-supervisor") == ClosureState.PROPOSED, "it was a P2: oversight signs too"
    assert sign(desk, closure, "oversight") == ClosureState.SIGNED
    assert desk.row.state == State.CLOSURE_PROPOSED, "signed by all, it waits for the witnesses"
    assert effect(desk, closure)
    assert desk.row.state == State.CLOSED
    assert desk.running() == {}
    effect(desk, closure)
    assert desk.events.count(EventType.CLOSURE_EFFECTIVE) == 1


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("supervisor", "organisation"),
        ("investigator", "role"),
        ("screener", "role"),
    ],
)
def test_who_may_not_sign(desk: Desk, name: str, why: str) -> None:
    closure = propose(desk)
    desk.now = NOW + timedelta(days=4)
    with pytest.raises(Forbidden, match=why):
        sign(desk, closure, name)
    assert desk.row.state == State.CLOSURE_PROPOSED


def test_the_comparison_of_organisations_is_what_refuses(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: where every unit counts as a body of its own, the proposer's supervisor signs."""
    closure = propose(desk)
    desk.now = NOW + timedelta(days=4)
    monkeypatch.setattr(closures, "_organisation", lambda session, viewer, case: viewer.member.hex)
    assert sign(desk, closure, "supervisor") == ClosureState.PROPOSED


def test_nobody_signs_twice_or_in_two_places(desk: Desk) -> None:
    closure = propose(desk)
    desk.now = NOW + timedelta(days=4)
    sign(desk, closure, "night-supervisor")
    with pytest.raises(Forbidden, match="another person"):
        sign(desk, closure, "night-supervisor")


def test_a_signature_waits_for_the_time_to_object(desk: Desk) -> None:
    closure = propose(desk)
    desk.now = NOW + timedelta(hours=71)
    with pytest.raises(Forbidden, match="object"):
        sign(desk, closure, "oversight")


def test_whoever_signs_has_opened_every_paper(desk: Desk) -> None:
    closure = propose(desk)
    desk.now = NOW + timedelta(days=4)
    with pytest.raises(Forbidden, match="paper"):
        desk.do(closures.sign, closure, by="oversight")


@pytest.mark.parametrize("name", ["why", "seen_by", "seen_when", "proof"])
def test_each_reason_needs_each_of_its_proofs(desk: Desk, name: str) -> None:
    words = {key: text for key, text in SAFE.words.items() if key != name}
    papers = () if name == "proof" else (a_paper(),)
    with pytest.raises(InvalidForm):
        desk.do(closures.propose, Proposal("C3", words, papers))
    assert desk.row.state == State.IN_ACTION


@pytest.mark.parametrize("code", [*KINDS, "other", "resolved", "C5", "C11", ""])
def test_what_is_no_reason_closes_nothing_and_is_an_event(desk: Desk, code: str) -> None:
    with pytest.raises(InvalidForm, match="goes on"):
        propose(desk, replace(SAFE, code=code))
    viewer = desk.world.signed_in("investigator").viewer
    closures.reject(desk.world.sessions, desk.work, viewer, desk.case.id, code, NOW)
    assert desk.events[-1] == EventType.REASON_REJECTED
    assert desk.row.state == State.IN_ACTION


@pytest.mark.parametrize("code", sorted(set(REASONS) - {"C3", "C4", "C8", "C10"}))
def test_a_reason_fits_only_its_states(desk: Desk, code: str) -> None:
    with pytest.raises(WrongState):
        propose(desk, Proposal(code, dict.fromkeys(("why", *REASONS[code].words), "x")))


@pytest.mark.parametrize("overlay", sorted(cases.STOPPING))
def test_an_overlay_stops_the_proposal_and_the_effect(desk: Desk, overlay: str) -> None:
    def marked(tx: Any) -> None:
        case = tx.get(Case, desk.case.id)
        cases.change(tx, desk.world.ledger, case, cases.mark(tx, case, OverlayKind(overlay), NOW))

    closure = signed(desk)
    write(desk.world.sessions, marked)
    with pytest.raises(WrongState):
        effect(desk, closure)
    assert desk.row.state == State.CLOSURE_PROPOSED
    desk.do(closures.refuse, closure, "Something stands beside it.", by="oversight")
    with pytest.raises(WrongState):
        propose(desk)


# --- what stops it ---


def test_a_new_message_stops_a_proposal_even_a_signed_one(sessions: Sessions) -> None:
    desk = Desk(a_world(sessions, people=CAST), P2, sender=SENDER)
    desk.do(acts.act, an_act())
    closure = signed(desk)
    desk.world.receive(a_tip("He was there again.", sender=SENDER, received_at=desk.now))
    assert desk.row.state == State.IN_ACTION
    assert not effect(desk, closure)
    assert EventType.CLOSURE_STOPPED in desk.events


def test_nobody_decides_in_time_and_the_case_goes_on(desk: Desk) -> None:
    propose(desk)
    assert closures.expire(desk.world.sessions, desk.work, NOW + timedelta(days=10)) == 0
    assert closures.expire(desk.world.sessions, desk.work, NOW + timedelta(days=10, seconds=1)) == 1
    assert desk.row.state == State.IN_ACTION
    assert closures.expire(desk.world.sessions, desk.work, NOW + timedelta(days=30)) == 0


def test_what_is_signed_in_time_waits_for_the_witnesses_however_long(desk: Desk) -> None:
    closure = signed(desk)
    assert closures.expire(desk.world.sessions, desk.work, NOW + timedelta(days=60)) == 0
    desk.now = NOW + timedelta(days=60)
    assert effect(desk, closure)


def test_a_stopped_proposal_may_be_made_again_and_cools_anew(desk: Desk) -> None:
    closure = propose(desk)
    desk.do(closures.refuse, closure, "The paper is not the advocate's.", by="oversight")
    desk.now = NOW + timedelta(days=2)
    second = propose(desk)
    with desk.world.sessions.read() as session:
        row = session.get(Closure, second)
        assert row is not None
        assert row.cools_until == desk.now + timedelta(hours=72)


def test_a_closed_case_can_always_be_opened_again(desk: Desk) -> None:
    closure = signed(desk)
    effect(desk, closure)
    with pytest.raises(InvalidForm):
        desk.do(closures.reopen, " ", by="screener")
    desk.do(closures.reopen, "Her teacher rang.", by="screener")
    assert (desk.row.state, desk.row.owner) == (State.CLAIMED, None)
    assert desk.running().keys() == {"act"}


# --- settlement ---


@pytest.mark.parametrize("kind", KINDS)
def test_a_settlement_closes_nothing_raises_and_tells_oversight(sessions: Sessions, kind: str) -> None:
    desk = Desk(a_world(sessions, people=CAST), "A boy of 12 sells flowers at night near the old market.")
    before = desk.row
    assert before.level > "P2"
    desk.do(settlements.record, Offer(kind, {"what": "An uncle brought an envelope."}), by="screener")
    row = desk.row
    assert (row.level, row.state) == ("P2", State.CLAIMED)
    assert row.due_at <= before.due_at
    assert overlays(desk) == {"settlement"}
    with sessions.read() as session:
        from service.models import OutboxJob

        pages = session.scalars(cases.select(OutboxJob).where(col(OutboxJob.duty) == "oversight")).all()
    assert [page.case for page in pages] == [desk.case.id]


def test_a_settlement_makes_the_cooling_two_weeks_and_oversight_sign(desk: Desk) -> None:
    offer = Offer("money_offered", {"what": "An envelope."}, official_present=True, amount=2_000_000, currency="KHR")
    desk.do(settlements.record, offer)
    closure = propose(desk)
    with desk.world.sessions.read() as session:
        row = session.get(Closure, closure)
        assert row is not None
        assert (row.cools_until - NOW, row.overseen) == (timedelta(days=14), True)


def test_a_settlement_stops_a_proposal(desk: Desk) -> None:
    propose(desk)
    desk.do(settlements.record, Offer("conciliated", {"what": "At the commune office."}))
    assert desk.row.state == State.IN_ACTION


# --- withdrawal ---


def withdrawn(desk: Desk) -> None:
    words = {"wanted_by": "An uncle", "where": "The commune office", "present": "The chief"}
    desk.do(settlements.withdraw, words)


def test_a_withdrawal_starts_a_review_and_the_case_goes_on_from_where_it_was(desk: Desk) -> None:
    with_authority_again = desk.row.state
    withdrawn(desk)
    assert desk.row.state == State.WITHDRAWAL_REVIEW
    assert desk.running()["review"] == timedelta(days=5)
    desk.do(settlements.hold_review, REVIEW, by="oversight")
    assert desk.row.state == with_authority_again
    assert "review" not in desk.running()


def test_during_a_review_acts_and_steps_go_on_and_nothing_is_proposed(desk: Desk) -> None:
    withdrawn(desk)
    with pytest.raises(WrongState):
        propose(desk)
    assert "step" in desk.running()


def test_a_review_that_nobody_held_is_owed_and_stops_a_closure(desk: Desk) -> None:
    withdrawn(desk)
    assert settlements.lapse_reviews(desk.world.sessions, desk.work, NOW + timedelta(days=5)) == 0
    assert settlements.lapse_reviews(desk.world.sessions, desk.work, NOW + timedelta(days=5, seconds=1)) == 1
    assert desk.row.state == State.IN_ACTION
    assert overlays(desk) == {"settlement", "review_owed"}
    with pytest.raises(WrongState):
        propose(desk)


@pytest.mark.parametrize("name", sorted(REVIEW))
def test_a_review_leaves_nothing_out(desk: Desk, name: str) -> None:
    withdrawn(desk)
    with pytest.raises(InvalidForm):
        desk.do(settlements.hold_review, {k: v for k, v in REVIEW.items() if k != name}, by="oversight")
    assert desk.row.state == State.WITHDRAWAL_REVIEW


def test_only_oversight_holds_a_review(desk: Desk) -> None:
    withdrawn(desk)
    with pytest.raises(Forbidden):
        desk.do(settlements.hold_review, REVIEW)


def test_a_withdrawal_while_closing_goes_back_to_before_the_proposal(desk: Desk) -> None:
    propose(desk)
    withdrawn(desk)
    desk.do(settlements.hold_review, REVIEW, by="oversight")
    assert desk.row.state == State.IN_ACTION
