"""Killed at every step of an append, a round and a minute: nothing lost, nothing doubled, the check accepts (12.2)."""

import os
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from service import cases
from service.db import Sessions, Tx, open_database, write
from service.ledger import events, sequencer, signer, tree
from service.ledger.verify import Keys, verify
from tests.service.ledger.builders import COVER_KEY, FourWitnesses, Log

DIES = 9


def dying(function: Callable[..., Any], after: bool) -> Callable[..., Any]:
    """`function`, at whose beginning or end the process is killed."""

    def call(*given: Any, **named: Any) -> Any:
        if after:
            function(*given, **named)
        os._exit(DIES)

    return call


# Where it dies: what is patched, and whether before or after it ran. In the order of the reference.
STEPS: dict[str, tuple[Any, str, bool]] = {
    "A1 before the head is read": (events, "chain_events", False),
    "A3 before the compare-and-swap": (events, "update", False),
    "A4 before the rows": (Tx, "insert_all", False),
    "A5 before the commit": (Tx, "insert_all", True),
    "R1 before the state is read": (tree, "state_of", False),
    "R2 before the pending rows": (sequencer, "_edge", False),
    "R3 before the leaves": (sequencer, "insert", False),
    "R4 before the tiles": (tree, "store_tiles", False),
    "R4 after the tiles": (tree, "store_tiles", True),
    "R5 before the state": (sequencer, "update", False),
    "R6 before the pending rows go": (sequencer, "delete", False),
    "R7 before the commit": (sequencer.Sequencer, "_integrate", True),
    "R7 after the commit": (sequencer.Sequencer, "_sign", False),
    "R8 before the signer is asked": (sequencer, "prove_consistency", True),
    "R9 before it persists": (signer, "_persist", False),
    "R9 after it persisted": (signer, "_persist", True),
    "R10 after it answered": (signer.Signer, "sign", True),
    "R11 before the note's commit": (sequencer, "_store_note", True),
    "R11 after the note": (sequencer.Sequencer, "_sign", True),
    "P1 before the checkpoint's commit": (sequencer, "_keep_checkpoint", True),
    "P2 before it is offered": (FourWitnesses, "offer", False),
    "P2 before the lines come back": (FourWitnesses, "offer", True),
    "P2 before a line's commit": (tree, "store_line", True),
    "P2 after a line": (sequencer.Sequencer, "take_line", True),
    "P3 before the commit": (sequencer, "_publish", True),
    "P4 before the quorum's commit": (sequencer, "_note_witnessed", True),
    "P4 before effects": (sequencer.Sequencer, "run_effects", False),
    "P4 in an effect": (sequencer.Sequencer, "_run_effect", True),
}


@pytest.fixture
def a_log(sessions: Sessions, tmp_path: Path) -> Log:
    return Log(sessions, tmp_path)


def live(log: Log, step: str) -> None:
    """In a process of its own: lead, append, work a round and a minute, and die on the way."""
    sessions = open_database(log.sessions.writing.url.render_as_string(hide_password=False))
    mine = Log.__new__(Log)
    mine.__dict__ |= log.__dict__ | {"sessions": sessions}
    mine.effects = {"lower": lambda tx, action, now: None}
    one = mine.sequencer()
    one.round()
    owner, name, after = STEPS[step]
    if step.startswith("A"):
        setattr(owner, name, dying(getattr(owner, name), after))
    mine.event(0, effect={"do": "lower"})
    mine.event(1)
    setattr(owner, name, dying(getattr(owner, name), after))
    one.round()
    one.publish()


def killed(log: Log, step: str) -> bool:
    """Whether that process died where it should."""
    child = os.fork()
    if child == 0:
        try:
            live(log, step)
        except BaseException as fault:
            print(repr(fault), flush=True)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == DIES


def count(log: Log, table: str) -> int:
    with log.sessions.read() as session:
        return int(session.scalar(text(f"SELECT count(*) FROM {table}")) or 0)


def survive(log: Log, step: str, done: list[str]) -> None:
    acknowledged = count(log, "ledger_event")
    assert killed(log, step), step

    def lower(tx: Tx, action: Mapping[str, Any], now: datetime) -> None:
        done.append(step)

    log.effects = {"lower": lower}
    log.later(60)
    one = log.sequencer()
    deadline = time.monotonic() + 10
    while not one.leads and time.monotonic() < deadline:  # a server sees a moment later that a client has died
        one.round()
    one.round()
    assert log.alarms == [], step
    one.publish()
    state = log.state()
    assert state.witnessed_size == state.size, step
    assert count(log, "ledger_event") == acknowledged + (0 if step.startswith("A") else 2)
    assert count(log, "ledger_pending") == 0
    assert count(log, "ledger_effect WHERE done_at IS NULL") == 0
    keys = Keys(log.signer.verifier, log.policy, COVER_KEY, cases.state_class, (log.signer.head(),))
    with log.sessions.read() as session:
        report = verify(session, keys, log.moment)
    assert report.faults == [], step
    assert report.events == count(log, "ledger_event")
    one.step_down()


@pytest.mark.parametrize("part", ["A", "R", "P"])
def test_killed_at_any_step_it_goes_on_from_what_is_there(a_log: Log, part: str) -> None:
    a_log.events(3)
    for step in STEPS:
        if step.startswith(part):
            done: list[str] = []
            survive(a_log, step, done)
            assert len(done) <= 1, step


@pytest.mark.chaos
def test_killed_at_every_step_again_and_again(a_log: Log) -> None:
    for _ in range(25):
        for step in STEPS:
            survive(a_log, step, [])


def test_an_effect_is_run_once_although_the_process_died_after_it(a_log: Log) -> None:
    """Its row is marked in the transaction of the effect: both, or neither."""
    runs: list[int] = []
    a_log.effects = {"lower": lambda tx, action, now: runs.append(1)}
    a_log.event(effect={"do": "lower"})
    one = a_log.sequencer()
    one.round()

    def lost(tx: Tx) -> None:
        eid = tx.scalar(text("SELECT eid FROM ledger_effect"))
        one._run_effect(tx, eid=str(eid))
        raise KeyboardInterrupt  # the process dies before the commit

    with pytest.raises(KeyboardInterrupt):
        write(a_log.sessions, lost)
    one.publish()
    assert len(runs) == 2
    assert count(a_log, "ledger_effect WHERE done_at IS NOT NULL") == 1
