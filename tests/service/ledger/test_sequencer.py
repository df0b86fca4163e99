"""The sequencer on both databases: rounds, leaders, minutes, halting, effects (ledger.md sections 4 and 7)."""

import shutil
import threading
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text, update

from service.db import Sessions, Tx, write
from service.errors import HeadMoved, LedgerHalted, NotLeading, StorageUnavailable
from service.ledger import notes, sequencer, tree
from service.ledger.checks import is_cover
from service.ledger.events import EventType, fixed_chain, leaf_hash, new_chain
from service.ledger.merkle import RightEdge
from service.ledger.tiles import ENTRIES, Tile
from service.models import (
    LedgerCheckpoint,
    LedgerCosignature,
    LedgerEffect,
    LedgerEvent,
    LedgerLeaf,
    LedgerPending,
    LedgerPromise,
    LedgerState,
)
from tests.service.ledger.builders import COVER_KEY, ORIGIN, Log


@pytest.fixture
def a_log(sessions: Sessions, tmp_path: Path) -> Log:
    return Log(sessions, tmp_path)


def rows(log: Log, what: Any) -> list[Any]:
    with log.sessions.read() as session:
        return list(session.scalars(what).all())


def check_log(log: Log) -> int:
    """Work the whole tree out again from its leaves, and see that no event is lost, doubled or out of order."""
    leaves = rows(log, select(LedgerLeaf).order_by(LedgerLeaf.idx))
    events = {event.eid: event for event in rows(log, select(LedgerEvent))}
    pending = rows(log, select(LedgerPending))
    assert [leaf.idx for leaf in leaves] == list(range(len(leaves)))
    integrated = [leaf.eid for leaf in leaves if leaf.eid]
    assert sorted(integrated + [row.eid for row in pending if row.eid]) == sorted(events)
    edge, tiles = RightEdge(), {}
    tiles.update({(level, n): tile for level, n, tile in edge.extend([leaf_hash(leaf.leaf) for leaf in leaves])})
    tiles.update({(level, n): tile for level, n, tile in edge.partial()})
    with log.sessions.read() as session:
        assert {(t[0], t[1]): t[2] for t in session.execute(text("SELECT level, n, hashes FROM ledger_tile"))} == tiles
    state = log.state()
    assert (state.size, state.root) == (edge.size, edge.root())
    seqs: dict[str, int] = {}
    for eid in integrated:
        event = events[eid]
        assert event.seq == seqs.get(event.case, -1) + 1
        seqs[event.case] = event.seq
    if state.note:
        head = notes.open_checkpoint(state.note, log.signer.verifier)
        assert head.size <= state.size
    return len(leaves)


# --- rounds ---


def test_a_round_takes_what_is_pending_and_has_its_head_signed(a_log: Log) -> None:
    a_log.events(7)
    one = a_log.sequencer()
    covers = one.round() - 7
    assert covers <= 4
    assert one.round() == 0
    assert check_log(a_log) == 7 + covers
    state = a_log.state()
    assert notes.open_checkpoint(state.note or "", one.log) == notes.Checkpoint(ORIGIN, 7 + covers, state.root)
    assert a_log.signer.head() == state.note
    assert rows(a_log, select(LedgerPending)) == []


def test_many_small_rounds_and_one_over_several_tiles_give_one_tree(
    a_log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sequencer, "BATCH", 300)
    one = a_log.sequencer()
    a_log.events(3)
    one.round()
    with a_log.sessions.read() as session:
        bodies = session.scalars(select(LedgerEvent.leaf)).all()
    fillers = [{"eid": None, "cover_n": 10_000 + n, "leaf": bodies[0]} for n in range(700)]
    write(a_log.sessions, lambda tx: tx.insert(LedgerPending, fillers))
    assert [one.round() for _ in range(3)] == [300, 300, 100]
    a_log.events(2)
    one.round()
    assert check_log(a_log) >= 705


def test_a_lost_note_is_asked_for_again_and_a_tree_ahead_of_the_signer_is_signed(a_log: Log) -> None:
    one = a_log.sequencer()
    a_log.events(3)
    one.round()
    signed = a_log.state().note
    write(a_log.sessions, lambda tx: tx.execute(update(LedgerState).values(note=None)))  # died between R10 and R11
    one.step_down()
    other = a_log.sequencer()
    other.round()
    assert a_log.state().note == signed
    a_log.events(2)
    write(a_log.sessions, other._integrate)  # died between R7 and R8
    other.step_down()
    assert a_log.sequencer().round() == 0
    assert notes.open_checkpoint(a_log.state().note or "", one.log).size == check_log(a_log)


def test_cover_enters_each_minute_with_the_anchor_of_an_event_and_can_be_proven(a_log: Log) -> None:
    one = a_log.sequencer()
    for _ in range(180):
        one.round()
        a_log.later(1)
    leaves = rows(a_log, select(LedgerLeaf).order_by(LedgerLeaf.idx))
    assert 2 <= len(leaves) <= 12
    assert [leaf.cover_n for leaf in leaves] == list(range(len(leaves)))
    for leaf in leaves:
        assert is_cover(COVER_KEY, leaf.cover_n, leaf.leaf)
        assert not is_cover(bytes(32), leaf.cover_n, leaf.leaf)
        assert not is_cover(COVER_KEY, leaf.cover_n + 1, leaf.leaf)
    one.publish()
    size = a_log.state().witnessed_size
    write(a_log.sessions, lambda tx: sequencer.add_covers(tx, COVER_KEY, 1))
    event = a_log.event()
    anchors = {row.leaf[104:] for row in rows(a_log, select(LedgerPending))}
    assert anchors == {size.to_bytes(8, "big")}
    assert size > 0
    assert rows(a_log, select(LedgerEvent.leaf).where(LedgerEvent.eid == event))[0][104:] in anchors  # type: ignore[arg-type]


# --- leaders ---


def test_of_two_one_leads_and_the_other_takes_over_when_it_is_gone(a_log: Log) -> None:
    first, second = a_log.sequencer(), a_log.sequencer()
    a_log.events(2)
    assert first.round() >= 2
    a_log.events(2)
    assert second.round() == 0
    assert (first.leads, second.leads) == (True, False)
    first.step_down()
    assert second.round() >= 2
    assert first.round() == 0
    check_log(a_log)


def test_a_leader_that_lost_its_lock_without_knowing_writes_nothing(a_log: Log) -> None:
    zombie, leader = a_log.sequencer(), a_log.sequencer()
    a_log.events(2)
    zombie.round()
    zombie._election.give_up()  # as when its session was ended by the server
    zombie._election.held = lambda: True  # type: ignore[method-assign]
    a_log.events(2)
    leader.round()
    a_log.events(3)
    size = a_log.state().size
    with pytest.raises(NotLeading):
        zombie.round()
    assert a_log.state().size == size
    assert leader.round() >= 3
    check_log(a_log)


def test_a_zombie_publishes_nothing_and_moves_nothing(a_log: Log) -> None:
    zombie, leader = a_log.sequencer(), a_log.sequencer()
    a_log.events(2)
    zombie.round()
    epoch = zombie._epoch
    zombie.step_down()
    a_log.events(2)
    leader.round()
    zombie._epoch = epoch
    with pytest.raises(NotLeading):
        zombie.publish()
    assert rows(a_log, select(LedgerCheckpoint)) == []


def test_two_sequencers_and_writers_at_once_make_no_fork(a_log: Log) -> None:
    stop = threading.Event()
    faults: list[BaseException] = []

    def lead() -> None:
        one = a_log.sequencer()
        while not stop.is_set():
            try:
                if one.round() and one.leads:
                    one.step_down()  # so that the leader changes all the time
            except (NotLeading, StorageUnavailable):
                pass
            except Exception as fault:
                faults.append(fault)

    def add() -> None:
        for _ in range(12):
            a_log.event(0)
            a_log.event(1)

    leaders = [threading.Thread(target=lead) for _ in range(2)]
    writers = [threading.Thread(target=add) for _ in range(2)]
    for thread in leaders + writers:
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    for thread in leaders:
        thread.join()
    assert faults == []
    a_log.sequencer().round()
    assert check_log(a_log) >= 48
    assert not a_log.state().halted
    assert not (a_log.signer.folder / "refused").exists()


# --- each minute ---


def test_a_head_is_published_witnessed_and_anchored(a_log: Log) -> None:
    one = a_log.sequencer()
    eid = a_log.event()
    one.round()
    with a_log.sessions.read() as session:
        assert tree.receipt_of(session, eid) is None
    a_log.witnesses.away = {"ngo.example/w", "un.example/w"}
    one.publish()
    state = a_log.state()
    assert (state.published_size, state.witnessed_size) == (state.size, 0)
    with a_log.sessions.read() as session:
        grade, receipt = tree.receipt_of(session, eid) or ("", "")
        assert grade == tree.Grade.INTEGRATED
        assert not notes.open_receipt(receipt, a_log.policy)[1].quorum
    a_log.witnesses.away = {"ngo.example/w"}
    one.publish()  # the same head again: those who were away give their lines
    state = a_log.state()
    assert (state.witnessed_size, state.witnessed_root) == (state.size, state.root)
    with a_log.sessions.read() as session:
        grade, receipt = tree.receipt_of(session, eid) or ("", "")
        assert grade == tree.Grade.WITNESSED
        opened, witnessed = notes.open_receipt(receipt, a_log.policy)
    assert witnessed.quorum
    assert opened.leaf == rows(a_log, select(LedgerEvent.leaf).where(LedgerEvent.eid == eid))[0]  # type: ignore[arg-type]
    assert len(rows(a_log, select(LedgerCosignature))) == 3


def test_it_publishes_when_a_minute_begins_and_not_more_often(a_log: Log) -> None:
    one = a_log.sequencer()
    a_log.event()
    assert not one.publish_if_due()  # nobody leads yet
    one.round()
    assert one.publish_if_due()
    for seconds, published in ((5, False), (20, False), (5, True), (1, False), (60, True)):
        a_log.later(seconds)
        a_log.event()
        one.round()
        assert one.publish_if_due() is published


def test_a_head_that_is_not_published_is_not_served(a_log: Log) -> None:
    one = a_log.sequencer()
    a_log.events(3)
    one.round()
    one.publish()
    size = a_log.state().published_size
    a_log.events(2)
    one.round()
    with a_log.sessions.read() as session:
        for level in (0, ENTRIES):
            assert tree.read_file(session, Tile(level, 0, size)) is not None
            assert tree.read_file(session, Tile(level, 0, size + 1)) is None
            assert tree.read_stored(session, Tile(level, 0, size + 1))


def test_a_strangers_line_and_a_bad_one_are_left_out(a_log: Log) -> None:
    one = a_log.sequencer()
    a_log.events(2)
    one.round()
    head = notes.open_checkpoint(a_log.state().note or "", one.log)
    other = notes.Checkpoint(ORIGIN, head.size, bytes(32))
    stranger = notes.cosign(head, "stranger.example/w", b"\x55" * 32, 5)
    bad = notes.cosign(other, "ngo.example/w", b"\x02" * 32, 5)

    class Two:
        def offer(self, note: str, prove: Any) -> list[str]:
            return [stranger, bad, "no line at all\n"]

        def heads(self) -> list[str]:
            return []

    a_log.sequencer(witnesses=Two())
    one.witnesses = Two()
    one.publish()
    assert rows(a_log, select(LedgerCosignature)) == []
    assert a_log.state().published_size == head.size


# --- effects ---


def with_effect(log: Log, done: list[str]) -> str:
    def lower(tx: Tx, action: Mapping[str, Any], now: datetime) -> None:
        done.append(action["case"])

    log.effects["lower"] = lower
    return log.event(effect={"do": "lower", "case": "a1"})


def test_an_effect_waits_for_the_quorum_and_runs_once(a_log: Log) -> None:
    done: list[str] = []
    with_effect(a_log, done)
    one = a_log.sequencer()
    a_log.witnesses.away = {"ngo.example/w", "un.example/w"}
    one.round()
    one.publish()
    assert done == []
    a_log.witnesses.away = set()
    a_log.later(60)
    one.publish()
    assert done == ["a1"]
    one.settle()
    a_log.sequencer().run_effects()
    assert done == ["a1"]
    assert rows(a_log, select(LedgerEffect.done_at)) == [a_log.moment.replace(microsecond=0)]


def test_an_effect_that_this_version_does_not_know_waits_and_stops_no_other(a_log: Log) -> None:
    done: list[str] = []
    a_log.event(effect={"do": "unheard-of"})
    with_effect(a_log, done)
    one = a_log.sequencer()
    one.round()
    one.publish()
    assert done == ["a1"]
    assert [row is None for row in rows(a_log, select(LedgerEffect.done_at).order_by(LedgerEffect.action.desc()))] == [  # type: ignore[attr-defined]
        True,
        False,
    ]


def test_an_effect_whose_transaction_fails_is_run_again(a_log: Log) -> None:
    tries: list[int] = []

    def lower(tx: Tx, action: Mapping[str, Any], now: datetime) -> None:
        tries.append(1)
        if len(tries) == 1:
            raise StorageUnavailable("not now")

    a_log.event(effect={"do": "lower"})
    one = a_log.sequencer(effects={"lower": lower})
    one.round()
    one.publish()
    assert rows(a_log, select(LedgerEffect.done_at)) == [None]
    one.settle()
    assert len(tries) == 2
    assert rows(a_log, select(LedgerEffect.done_at)) != [None]


# --- promises and halting ---


def test_what_waits_longer_than_five_seconds_is_promised(a_log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequencer, "BATCH", 0)  # the tree takes nothing
    one = a_log.sequencer()
    eid = a_log.event()
    monkeypatch.setattr(one, "_integrate", lambda tx: 0)
    monkeypatch.setattr(sequencer, "BATCH", 100)
    one.round()
    a_log.later(4)
    one.round()
    assert rows(a_log, select(LedgerPromise)) == []
    a_log.later(1)
    one.round()
    one.round()
    (promise,) = rows(a_log, select(LedgerPromise))
    assert promise.eid == eid
    with a_log.sessions.read() as session:
        grade, note = tree.receipt_of(session, eid) or ("", "")
        leaf = session.scalars(select(LedgerEvent.leaf)).first()
    assert grade == tree.Grade.PROMISE
    assert notes.open_promise(note, one.log).leaf_hash == leaf_hash(leaf)


def grown(log: Log) -> Any:
    """A log with a witnessed head, and whoever leads gone."""
    one = log.sequencer()
    log.events(6)
    one.round()
    one.publish()
    log.later(60)
    log.events(3)
    one.round()
    one.step_down()
    return one


def tamper(log: Log, *statements: str) -> None:
    """Change the database as a superuser would, with triggers off."""
    with log.sessions.writing.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SET LOCAL session_replication_role = replica"))
        else:
            names = connection.scalars(text("SELECT name FROM sqlite_master WHERE type = 'trigger'")).all()
            for name in names:
                connection.execute(text(f"DROP TRIGGER {name}"))
        for statement in statements:
            if connection.dialect.name == "postgresql":
                statement = statement.replace("X'", "'\\x")
            connection.execute(text(statement))


ZERO = "X'" + "00" * 32 + "'"


def put_back(log: Log) -> None:
    """Put the tree's tables back to the published size, consistently, as an old backup would."""
    with log.sessions.read() as session:
        size = tree.state_of(session).published_size
        edge = tree.read_edge(session, size)
    root = edge.root().hex()
    tamper(
        log,
        f"DELETE FROM ledger_leaf WHERE idx >= {size}",
        *(
            f"UPDATE ledger_tile SET hashes = X'{h.hex()}' WHERE level = {lv} AND n = {n}"
            for lv, n, h in edge.partial()
        ),
        f"UPDATE ledger_state SET size = {size}, root = X'{root}'",
    )


TAMPERED: dict[str, tuple[str, Callable[[Log], None]]] = {
    "a tile": ("tiles", lambda log: tamper(log, f"UPDATE ledger_tile SET hashes = {ZERO}")),
    "the root": ("state", lambda log: tamper(log, f"UPDATE ledger_state SET root = {ZERO}")),
    "the last leaf": (
        "state",
        lambda log: tamper(log, "DELETE FROM ledger_leaf WHERE idx = (SELECT max(idx) FROM ledger_leaf)"),
    ),
    "a leaf": ("leaf", lambda log: tamper(log, "UPDATE ledger_leaf SET leaf = X'00' WHERE idx = 1")),
    "an older tree": ("signer-ahead", put_back),
    "a checkpoint": (
        "checkpoint",
        lambda log: tamper(log, "UPDATE ledger_checkpoint SET note = replace(note, ' ', '  ')"),
    ),
    "an event": ("event", lambda log: tamper(log, "UPDATE ledger_event SET body = X'00' WHERE seq = 1")),
    "an event's salt": ("event", lambda log: tamper(log, f"UPDATE ledger_event SET k_e = {ZERO} WHERE seq = 0")),
    "an event's copy": ("event", lambda log: tamper(log, "UPDATE ledger_event SET blob = X'00' WHERE seq = 2")),
    "a head": ("head", lambda log: tamper(log, f"UPDATE ledger_head SET c = {ZERO}")),
    "a head set back": ("head", lambda log: tamper(log, "UPDATE ledger_head SET seq = seq - 1")),
    "the witnessed size": (
        "witnessed",
        lambda log: tamper(log, "UPDATE ledger_state SET witnessed_size = published_size - 1"),
    ),
    "the witnesses' lines": ("witnessed", lambda log: tamper(log, "DELETE FROM ledger_cosignature")),
    "an event passed off as cover": (
        "event",
        lambda log: tamper(log, "UPDATE ledger_leaf SET eid = NULL, cover_n = 999 WHERE idx = 2"),
    ),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_what_does_not_fit_halts_the_ledger_and_names_the_reason(a_log: Log, what: str) -> None:
    grown(a_log)
    reason, change = TAMPERED[what]
    change(a_log)
    size = a_log.state().size
    one = a_log.sequencer()
    for _ in range(2):
        a_log.event(new_chain())
    assert one.round() == 0
    assert a_log.alarms == [reason]
    state = a_log.state()
    assert (state.halted, state.size) == (True, size)
    events = rows(a_log, select(LedgerEvent.type).where(LedgerEvent.case == fixed_chain("ledger")))  # type: ignore[arg-type]
    assert events == [EventType.CHECK_FAILED]
    assert one.round() == 0
    with a_log.sessions.read() as session, pytest.raises(LedgerHalted):
        tree.must_run(session)
    promised = set(rows(a_log, select(LedgerPromise.eid)))
    assert promised == {row.eid for row in rows(a_log, select(LedgerPending)) if row.eid}
    assert len(promised) == 3


def test_an_untouched_ledger_passes_and_goes_on(a_log: Log) -> None:
    grown(a_log)
    a_log.events(2)
    assert a_log.sequencer().round() >= 2
    assert a_log.alarms == []
    with a_log.sessions.read() as session:
        tree.must_run(session)
    check_log(a_log)


def test_a_database_put_back_together_with_its_signer_is_found_by_a_witness(a_log: Log) -> None:
    one = a_log.sequencer()
    a_log.events(4)
    one.round()
    one.publish()
    shutil.copytree(a_log.signer.folder, a_log.folder / "old")
    a_log.later(60)
    a_log.events(4)
    one.round()
    ahead = a_log.state().size
    put_back(a_log)
    shutil.copy(a_log.folder / "old" / "state.json", a_log.signer.folder / "state.json")
    note = one.signer.head()
    one.step_down()
    write(a_log.sessions, lambda tx: tx.execute(update(LedgerState).values(note=note)))
    alone = a_log.sequencer(witnesses=sequencer.NoWitnesses())  # nobody remembers, so nothing is noticed: the control
    alone.round()
    alone.step_down()
    assert a_log.alarms == []
    larger = notes.sign_checkpoint(notes.Checkpoint(ORIGIN, ahead, bytes(32)), a_log.signer.seed)
    told = a_log.sequencer(witnesses=sequencer.NoWitnesses(), seen=[larger])
    told.round()
    assert a_log.alarms == ["witness-ahead"]


def test_a_signer_that_refuses_halts_and_its_refusal_is_an_event(a_log: Log) -> None:
    one = a_log.sequencer()
    a_log.events(3)
    one.round()
    # the tree is swapped for another one under the leader's eyes
    tamper(a_log, f"UPDATE ledger_tile SET hashes = {ZERO} WHERE level = 0")
    a_log.events(1)
    one.round()
    assert a_log.alarms == ["tiles"]


def test_a_fork_refused_by_the_signer_is_an_event_of_its_own(a_log: Log) -> None:
    one = a_log.sequencer()
    a_log.events(3)
    one.round()
    other = RightEdge()
    size = a_log.state().size + 1
    other.extend([bytes([n]) * 32 for n in range(size)])
    ((_, _, tile),) = other.partial()
    tamper(
        a_log,
        f"UPDATE ledger_tile SET hashes = X'{tile.hex()}'",
        f"UPDATE ledger_state SET size = {size}, root = X'{other.root().hex()}'",
    )
    one.round()
    assert a_log.alarms == ["signer-refused"]
    events = rows(a_log, select(LedgerEvent.type).where(LedgerEvent.case == fixed_chain("ledger")))  # type: ignore[arg-type]
    assert events == [EventType.SIGNER_REFUSED]
    assert list((a_log.signer.folder / "refused").iterdir())


def test_a_halted_ledger_publishes_nothing_and_stays_halted_for_the_next_leader(a_log: Log) -> None:
    one = grown(a_log)
    one.halt("leaf")
    published = a_log.state().published_size
    next_one = a_log.sequencer()
    for _ in range(2):
        a_log.later(60)
        next_one.round()
        next_one.publish()
    assert a_log.state().published_size == published
    assert a_log.alarms == ["leaf"]


def test_a_database_that_is_away_ends_the_lead_and_nothing_else(a_log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    one = a_log.sequencer()
    a_log.events(2)

    def away(*_: Any) -> None:
        raise StorageUnavailable("away")

    with monkeypatch.context() as patch:
        patch.setattr(one, "_integrate", away)
        with pytest.raises(StorageUnavailable):
            one.round()
    assert not one.leads
    assert one.round() >= 2
    check_log(a_log)


@pytest.mark.parametrize("chains", [1, 16])
def test_sixteen_writers_keep_the_order_of_each_chain_in_the_tree(a_log: Log, chains: int) -> None:
    a_log.chains = [new_chain() for _ in range(chains)]
    faults: list[BaseException] = []

    def add(number: int) -> None:
        done = 0
        while done < 3:
            try:
                a_log.event(number % chains)
                done += 1
            except (HeadMoved, StorageUnavailable):
                continue  # lost five races in a row: whoever sends it sends it again
            except Exception as fault:
                faults.append(fault)
                return

    one = a_log.sequencer()
    writers = [threading.Thread(target=add, args=(number,)) for number in range(16)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        one.round()
    one.round()
    assert faults == []
    assert check_log(a_log) >= 48
    assert rows(a_log, select(LedgerPending)) == []
