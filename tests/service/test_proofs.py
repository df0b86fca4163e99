"""A case's history says of each event how far it is proven, and shows what somebody took out or changed."""

from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import text

from service import reading
from service.db import Sessions, Tx, write
from service.models import Case
from service.reading import GAP, Proof, Step
from tests.builders import World, a_number, a_tip, a_world, the_case
from tests.service.ledger.builders import Log
from tests.service.ledger.test_tampering import switch_off_triggers


@pytest.fixture
def world(sessions: Sessions) -> World:
    return a_world(sessions)


def a_case(world: World) -> Case:
    [receipt] = world.receive(a_tip(sender=a_number()))
    case: Case = the_case(world, receipt.tip)
    return case


def steps(world: World, case: UUID) -> list[Step]:
    with world.sessions.read() as session:
        return reading.history(session, session.get_one(Case, case))


def proofs(world: World, case: Case) -> list[Proof]:
    return [step.proof for step in steps(world, case.id)]


def gaps(world: World, case: Case) -> list[tuple[int, int]]:
    """Place from above, and how many events are missing there."""
    found = steps(world, case.id)
    return [(place, step.fields["missing"]) for place, step in enumerate(found) if step.type == GAP]


def test_an_event_is_promised_then_integrated_then_witnessed(world: World, tmp_path: Path) -> None:
    case, log = a_case(world), Log(world.sessions, tmp_path)
    count = len(steps(world, case.id))
    assert proofs(world, case) == [Proof.PROMISED] * count

    one = log.sequencer()
    one.round()
    assert proofs(world, case) == [Proof.INTEGRATED] * count
    log.witnesses.away = {"ngo.example/w", "un.example/w"}
    one.publish()
    assert proofs(world, case) == [Proof.INTEGRATED] * count  # published is not witnessed
    log.witnesses.away = set()
    log.event()
    one.round()
    one.publish()
    assert proofs(world, case) == [Proof.WITNESSED] * count

    write(world.sessions, lambda tx: tx.execute(text("UPDATE ledger_state SET witnessed_size = 0")))
    assert proofs(world, case) == [Proof.INTEGRATED] * count  # the control
    one.step_down()


def sql(statement: str) -> Callable[[Tx, str], object]:
    """Run a statement as the database's administrator; :chain is the case's."""

    def run(tx: Tx, chain: str) -> None:
        switch_off_triggers(tx)
        tx.execute(text(statement), {"chain": chain})

    return run


OF = 'eid IN (SELECT eid FROM ledger_event WHERE "case" = :chain AND seq = {seq})'
DROP = [f"DELETE FROM {table} WHERE {OF}" for table in ("ledger_leaf", "ledger_field", "ledger_pending")]
EVENT = 'DELETE FROM ledger_event WHERE "case" = :chain AND seq = {seq}'


def without(tx: Tx, chain: str, seq: int) -> None:
    for statement in [*DROP, EVENT]:
        sql(statement.format(seq=seq))(tx, chain)


def test_an_event_that_somebody_took_out_leaves_a_gap(world: World, tmp_path: Path) -> None:
    case = a_case(world)
    whole = len(steps(world, case.id))
    assert gaps(world, case) == []

    write(world.sessions, lambda tx: without(tx, case.chain, 1))
    assert gaps(world, case) == [(whole - 2, 1)]

    write(world.sessions, lambda tx: without(tx, case.chain, 0))
    assert gaps(world, case) == [(whole - 2, 2)]  # the two oldest


def test_an_end_that_was_cut_off_leaves_a_gap_also_when_the_head_was_set_back(world: World) -> None:
    case = a_case(world)
    last = steps(world, case.id)[0].seq

    write(world.sessions, lambda tx: without(tx, case.chain, last))
    assert gaps(world, case) == [(0, 1)]
    set_back = sql('UPDATE ledger_head SET seq = seq - 1 WHERE "case" = :chain')
    write(world.sessions, lambda tx: set_back(tx, case.chain))
    assert gaps(world, case) == [(0, 1)]  # the case itself says how many there were


def test_an_event_put_in_anothers_place_does_not_follow(world: World) -> None:
    case, other = a_case(world), a_case(world)
    swap = sql(
        "UPDATE ledger_event SET body = o.body, leaf = o.leaf, k_e = o.k_e FROM ledger_event o "
        f'WHERE o."case" = \'{other.chain}\' AND o.seq = 1 AND ledger_event."case" = :chain AND ledger_event.seq = 1'
    )
    count = len(steps(world, case.id))

    write(world.sessions, lambda tx: swap(tx, case.chain))

    assert gaps(world, case) == [(count - 2, 0), (count, 0)]  # neither side of it fits
    assert Proof.UNPROVEN in [step.proof for step in steps(world, case.id) if step.type != GAP]


CHANGES = {
    "its salt": "UPDATE ledger_event SET k_e = leaf WHERE " + OF.format(seq=1),
    "its leaf in the log": "UPDATE ledger_leaf SET leaf = (SELECT blob FROM ledger_event LIMIT 1) WHERE "
    + OF.format(seq=1),
    "its place in the log": "DELETE FROM ledger_leaf WHERE " + OF.format(seq=1),
}


@pytest.mark.parametrize("what", CHANGES)
def test_an_event_that_is_not_the_one_in_the_log_says_so(world: World, tmp_path: Path, what: str) -> None:
    case = a_case(world)
    one = Log(world.sessions, tmp_path).sequencer()
    one.round()
    one.publish()
    one.step_down()
    before = proofs(world, case)
    assert set(before) == {Proof.WITNESSED}

    write(world.sessions, lambda tx: sql(CHANGES[what])(tx, case.chain))

    changed = proofs(world, case)
    assert [place for place, proof in enumerate(changed) if proof != before[place]] == [len(before) - 2]
    assert changed[-2] is Proof.UNPROVEN


def test_words_of_an_event_that_were_changed_say_so(world: World) -> None:
    case = a_case(world)

    def change(tx: Tx) -> None:
        switch_off_triggers(tx)
        where = {"chain": case.chain}
        read = 'SELECT body FROM ledger_event WHERE "case" = :chain AND seq = 1'
        body = bytes(tx.execute(text(read), where).scalar_one()).replace(b'"v":1', b'"v":2')
        tx.execute(
            text('UPDATE ledger_event SET body = :body WHERE "case" = :chain AND seq = 1'), where | {"body": body}
        )

    write(world.sessions, change)

    assert [proof is Proof.UNPROVEN for proof in proofs(world, case)][-2:] == [True, False]
