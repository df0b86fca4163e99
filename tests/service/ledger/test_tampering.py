"""The tamper matrix (ledger.md section 12.1): a superuser with triggers off changes one thing, and the check names it.

The ledger is built once for each engine; every change is rolled back after it was looked at.
"""

import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy import text

from service import cases
from service.db import Tx, open_database
from service.ledger import notes, tree
from service.ledger.events import Actor, EventType, NewEvent, StateClass, append, commit_event, leaf_hash, make_leaf
from service.ledger.merkle import RightEdge
from service.ledger.verify import Keys, Report, verify
from service.models import LedgerEvent
from tests.builders import NOW, a_number, a_tip, a_world
from tests.conftest import named
from tests.service.ledger.builders import COVER_KEY, ORIGIN, Log


@dataclass
class Built:
    """A ledger of some hours with cases, and what a check is done with."""

    log: Log
    keys: Keys
    rows: list[Any]  # of integrated events: eid, case, seq, idx

    def check(self, change: "Callable[[Tx, Built], None] | None" = None, **changed: Any) -> Report:
        """What the check says after `change`, which is undone."""
        with self.log.sessions.writing.connect() as connection, connection.begin() as transaction:
            with Tx(bind=connection) as tx:
                if change is not None:
                    switch_off_triggers(tx)
                    change(tx, self)
                    tx.flush()
                report = verify(tx, replace(self.keys, **changed), self.log.moment)
            transaction.rollback()
        return report


def switch_off_triggers(tx: Tx) -> None:
    if tx.get_bind().dialect.name == "postgresql":
        tx.execute(text("SET LOCAL session_replication_role = replica"))
        return
    tx.execute(text("PRAGMA defer_foreign_keys = ON"))
    for name in tx.scalars(text("SELECT name FROM sqlite_master WHERE type = 'trigger'")).all():
        tx.execute(text(f"DROP TRIGGER {name}"))


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    folder = tmp_path_factory.mktemp("log")
    if request.param == "sqlite":
        shutil.copy(request.getfixturevalue("sqlite_template"), folder / "hotline.db")
        yield build(f"sqlite:///{folder}/hotline.db", folder)
        return
    server, template = request.getfixturevalue("postgresql_url"), request.getfixturevalue("postgresql_template")
    name = f"tamper_{uuid4().hex[:8]}"
    with psycopg.connect(named(server, "postgres"), autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        built = build(named(server, name), folder)
        yield built
        built.log.sessions.close()
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


def build(url: str, folder: Path) -> Built:
    sessions = open_database(url)
    world = a_world(sessions, people={})
    log = Log(sessions, folder, moment=NOW)
    world.ledger = log.ledger
    one = log.sequencer()
    for hour in range(3):
        world.receive(*(a_tip(delivery=f"SM{hour}{n}", sender=a_number(), received_at=log.moment) for n in range(2)))
        log.events(6)
        one.round()
        one.publish()
        log.later(3600)
    world.receive(a_tip(delivery="SM9", sender=a_number(), received_at=log.moment))
    log.events(3)
    one.round()
    log.event()
    keys = Keys(log.signer.verifier, log.policy, COVER_KEY, cases.state_class, (log.signer.head(),))
    with sessions.read() as session:
        rows = session.execute(
            text(
                'SELECT e.eid, e."case", e.seq, l.idx FROM ledger_event e JOIN ledger_leaf l ON l.eid = e.eid'
                " ORDER BY l.idx"
            )
        ).all()
    return Built(log, keys, list(rows))


def test_the_untouched_ledger_is_good(built: Built) -> None:
    report = built.check(lambda tx, built: None)
    assert report.faults == []
    assert report.size == len(built.rows) + report.covers
    assert report.witnessed > 0
    assert report.as_json()["good"] is True


# --- the kinds: each changes something at one event and says what the report must name ---


def flipped(data: bytes, at: int = -1) -> bytes:
    changed = bytearray(data)
    changed[at] ^= 1
    return bytes(changed)


def value(tx: Tx, statement: str, **given: Any) -> Any:
    found = tx.execute(text(statement), given).scalar()
    return bytes(found) if isinstance(found, memoryview) else found


def run(tx: Tx, statement: str, **given: Any) -> None:
    assert tx.execute(text(statement), given).rowcount >= 1, statement  # type: ignore[attr-defined]


def change_column(column: str, place: int = -1) -> Callable[[Tx, Built, Any], Any]:
    def change(tx: Tx, built: Built, row: Any) -> Any:
        data = value(tx, f"SELECT {column} FROM ledger_event WHERE eid = :e", e=row.eid)
        run(tx, f"UPDATE ledger_event SET {column} = :d WHERE eid = :e", d=flipped(data, place), e=row.eid)
        return {"index": row.idx}

    return change


def delete_event(tx: Tx, built: Built, row: Any) -> Any:
    run(tx, "DELETE FROM ledger_field WHERE eid = :e", e=row.eid)
    run(tx, "DELETE FROM ledger_event WHERE eid = :e", e=row.eid)
    return {"index": row.idx}


def insert_in_the_middle(tx: Tx, built: Built, row: Any) -> Any:
    """Put an event of one's own between two, and number the later ones anew: as far as one comes without new leaves."""
    later = 'SELECT eid FROM ledger_event WHERE "case" = :c AND seq >= :s ORDER BY seq DESC'
    for eid in tx.scalars(text(later), {"c": row.case, "s": row.seq}).all():
        run(tx, "UPDATE ledger_event SET seq = seq + 1 WHERE eid = :e", e=eid)
    copy = 'eid, "case", seq, type, at, body, k_e, blob, leaf'
    run(
        tx,
        f"INSERT INTO ledger_event ({copy}) SELECT 'forged', \"case\", :s, type, at, body, k_e, blob, leaf"
        " FROM ledger_event WHERE eid = :e",
        s=row.seq,
        e=row.eid,
    )
    return {"chain": row.case, "seq": row.seq}


def cut_the_end(tx: Tx, built: Built, row: Any) -> Any:
    """Cut a chain at this event and set its head back."""
    gone = 'FROM ledger_event WHERE "case" = :c AND seq >= :s'
    place = {"c": row.case, "s": row.seq}
    run(tx, f"DELETE FROM ledger_field WHERE eid IN (SELECT eid {gone})", **place)
    tx.execute(text(f"DELETE FROM ledger_pending WHERE eid IN (SELECT eid {gone})"), place)
    run(tx, f"DELETE {gone}", **place)
    leaf = value(tx, 'SELECT leaf FROM ledger_event WHERE "case" = :c AND seq = :s', c=row.case, s=row.seq - 1)
    c = leaf[8:40] if leaf else bytes(32)
    run(tx, 'UPDATE ledger_head SET seq = :n, c = :h WHERE "case" = :c', n=row.seq - 1, h=c, c=row.case)
    return {"index": row.idx}


def delete_chain(tx: Tx, built: Built, row: Any) -> Any:
    first = next(one for one in built.rows if one.case == row.case)
    cut_the_end(tx, built, first)
    run(tx, 'DELETE FROM ledger_head WHERE "case" = :c', c=row.case)
    return {"index": first.idx}


def change_leaf(tx: Tx, built: Built, row: Any) -> Any:
    leaf = value(tx, "SELECT leaf FROM ledger_leaf WHERE idx = :i", i=row.idx)
    run(tx, "UPDATE ledger_leaf SET leaf = :l WHERE idx = :i", l=flipped(leaf, 80), i=row.idx)
    return {"index": row.idx}


def change_leaf_and_event(tx: Tx, built: Built, row: Any) -> Any:
    """Rewrite an event wholly: body, commitments, leaf in both tables. Only the tree knows better."""
    event = tx.get(LedgerEvent, row.eid)
    assert event is not None
    body = event.body.replace(b'"role":"system"', b'"role":"sistem"')
    leaf = make_leaf(
        commit_event(event.k_e, body), event.leaf[40:72], event.leaf[72:104], int(event.leaf[104:].hex(), 16)
    )
    run(tx, "UPDATE ledger_event SET body = :b, leaf = :l WHERE eid = :e", b=body, l=leaf, e=row.eid)
    run(tx, "UPDATE ledger_leaf SET leaf = :l WHERE idx = :i", l=leaf, i=row.idx)
    return {"index": row.idx // 256 * 256}  # the tile


def swap_leaves(tx: Tx, built: Built, row: Any) -> Any:
    other = next(one for one in built.rows if one.idx != row.idx)
    for here, there in ((row, other), (other, row)):
        leaf = value(tx, "SELECT leaf FROM ledger_event WHERE eid = :e", e=there.eid)
        run(tx, "UPDATE ledger_leaf SET leaf = :l, eid = :n WHERE idx = :i", l=leaf, n=f"x{there.eid}", i=here.idx)
    for one in (row, other):
        run(tx, "UPDATE ledger_leaf SET eid = :e WHERE eid = :n", e=one.eid, n=f"x{one.eid}")
    return {"index": 0}  # the tile of both; the order of their chains as well


def pass_off_as_cover(tx: Tx, built: Built, row: Any) -> Any:
    delete_event(tx, built, row)
    run(tx, "UPDATE ledger_leaf SET eid = NULL, cover_n = 900 WHERE idx = :i", i=row.idx)
    return {"index": row.idx}


def change_tile(tx: Tx, built: Built, row: Any) -> Any:
    hashes = value(tx, "SELECT hashes FROM ledger_tile WHERE level = 0 AND n = 0")
    run(tx, "UPDATE ledger_tile SET hashes = :h WHERE level = 0 AND n = 0", h=flipped(hashes, 32 * row.idx))
    return {"index": 0}


def a_field(tx: Tx, row: Any) -> Any:
    return value(tx, "SELECT name FROM ledger_field WHERE eid = :e AND NOT sealed ORDER BY name", e=row.eid)


def change_field(tx: Tx, built: Built, row: Any) -> Any:
    place = {"e": row.eid, "n": a_field(tx, row)}
    run(tx, "UPDATE ledger_field SET value = :v WHERE eid = :e AND name = :n", v=b'"another"', **place)
    return {"index": row.idx, "chain": row.case, "seq": row.seq}


def remove_field(tx: Tx, built: Built, row: Any) -> Any:
    run(tx, "DELETE FROM ledger_field WHERE eid = :e AND name = :n", e=row.eid, n=a_field(tx, row))
    return {"index": row.idx, "chain": row.case, "seq": row.seq}


def add_field(tx: Tx, built: Built, row: Any) -> Any:
    run(
        tx,
        "INSERT INTO ledger_field (eid, name, salt, value, sealed) SELECT eid, 'forged', salt, value, sealed"
        " FROM ledger_field WHERE eid = :e AND name = :n",
        e=row.eid,
        n=a_field(tx, row),
    )
    return {"index": row.idx, "chain": row.case, "seq": row.seq}


def move_time(tx: Tx, built: Built, row: Any) -> Any:
    run(tx, "UPDATE ledger_event SET at = :a WHERE eid = :e", a="2027-03-01 00:00:00+00:00", e=row.eid)
    return {"index": row.idx, "chain": row.case, "seq": row.seq}


def forge(tx: Tx, built: Built, chain: str, new: NewEvent) -> int:
    return append(tx, built.log.ledger, chain, [new])


WHO = Actor("system", "org-police", "somebody")


def backdate(tx: Tx, built: Built, row: Any) -> Any:
    """Append an event that claims to be two hours old: its anchor is younger than that."""
    at = datetime.fromtimestamp(built.log.moment.timestamp() - 7200, tz=built.log.moment.tzinfo)
    seq = forge(tx, built, row.case, NewEvent(EventType.CONTENT_OPENED, at, WHO, class_of(tx, row)))
    return {"chain": row.case, "seq": seq}


def class_of(tx: Tx, row: Any) -> StateClass:
    body = value(tx, "SELECT body FROM ledger_event WHERE eid = :e", e=row.eid)
    return StateClass(json.loads(body)["class"])


def forge_anchor(tx: Tx, built: Built, row: Any) -> Any:
    run(tx, "UPDATE ledger_state SET witnessed_size = witnessed_size - 1, witnessed_root = :r", r=bytes(32))
    seq = forge(tx, built, row.case, NewEvent(EventType.CONTENT_OPENED, built.log.moment, WHO, class_of(tx, row)))
    return {"chain": row.case, "seq": seq}


def case_column(column: str, new: Any) -> Callable[[Tx, Built, Any], Any]:
    def change(tx: Tx, built: Built, row: Any) -> Any:
        chains = tx.scalars(text("SELECT chain FROM case_file ORDER BY chain")).all()
        chain = chains[row.idx % len(chains)]
        version = value(tx, "SELECT version FROM case_file WHERE chain = :c", c=chain)
        run(tx, f"UPDATE case_file SET {column} = :v WHERE chain = :c", v=new, c=chain)
        return {"chain": chain, "seq": version}

    return change


def close_alone(tx: Tx, built: Built, row: Any) -> Any:
    """Close a case as the operator, with events that fit, all by one organisation."""
    chains = tx.scalars(text("SELECT chain FROM case_file ORDER BY chain")).all()
    chain = chains[row.idx % len(chains)]
    seq = forge(tx, built, chain, NewEvent(EventType.CLOCK_MET, built.log.moment, WHO, StateClass.CLOSED))
    run(tx, "UPDATE case_file SET state = 'closed', version = :s WHERE chain = :c", s=seq, c=chain)
    return {"chain": chain, "seq": seq}


def lower_unwitnessed(tx: Tx, built: Built, row: Any) -> Any:
    """Let a lowering take effect that nobody has seen approved."""
    chains = tx.scalars(text("SELECT chain FROM case_file ORDER BY chain")).all()
    chain = chains[row.idx % len(chains)]
    about = {"before": "P3", "after": "P4"}
    forge(tx, built, chain, NewEvent(EventType.LOWERING_APPROVED, built.log.moment, WHO, StateClass.OPEN, fields=about))
    effective = NewEvent(EventType.LOWERING_EFFECTIVE, built.log.moment, WHO, StateClass.OPEN, fields=about)
    return {"chain": chain, "seq": forge(tx, built, chain, effective)}


def sizes(tx: Tx) -> list[int]:
    return list(tx.scalars(text("SELECT size FROM ledger_checkpoint ORDER BY size")).all())


def older_checkpoint(tx: Tx, built: Built, row: Any) -> Any:
    old, *_, new = sizes(tx)
    note = value(tx, "SELECT note FROM ledger_checkpoint WHERE size = :s", s=old)
    run(tx, "UPDATE ledger_checkpoint SET note = :n WHERE size = :s", n=note, s=new)
    return {"index": new - 1}


def older_line(tx: Tx, built: Built, row: Any) -> Any:
    old, *_, new = sizes(tx)
    name = sorted(built.log.witnesses.heads_)[row.idx % 4]
    line = value(tx, "SELECT line FROM ledger_cosignature WHERE size = :s AND name = :n", s=old, n=name)
    run(tx, "UPDATE ledger_cosignature SET line = :l WHERE size = :s AND name = :n", l=line, s=new, n=name)
    return {"index": new - 1}


def lines_gone(tx: Tx, built: Built, row: Any) -> Any:
    run(tx, "DELETE FROM ledger_cosignature")
    return {"what": "witnessed state"}


def rewrite_history(tx: Tx, built: Built, row: Any) -> Any:
    """Delete an event and make everything after it anew, consistently, but for what others signed."""
    event = tx.get(LedgerEvent, row.eid)
    assert event is not None
    leaf = event.leaf[:72] + bytes(32) + event.leaf[104:]
    run(tx, "UPDATE ledger_event SET leaf = :l WHERE eid = :e", l=leaf, e=row.eid)
    run(tx, "UPDATE ledger_leaf SET leaf = :l WHERE idx = :i", l=leaf, i=row.idx)
    edge = RightEdge()
    edge.extend([leaf_hash(bytes(one)) for one in tx.scalars(text("SELECT leaf FROM ledger_leaf ORDER BY idx")).all()])
    tree.store_tiles(tx, edge.partial())
    run(tx, "UPDATE ledger_state SET root = :r", r=edge.root())
    first = next((size for size in sizes(tx) if size > row.idx), edge.size)
    return {"index": first - 1}


MATRIX: dict[str, Callable[[Tx, Built, Any], Any]] = {
    "event byte": change_column("body", 20),
    "event salt": change_column("k_e"),
    "event copy": change_column("blob"),
    "event deleted": delete_event,
    "event inserted": insert_in_the_middle,
    "end of a chain cut": cut_the_end,
    "chain and head deleted": delete_chain,
    "leaf byte": change_leaf,
    "leaf and event rewritten": change_leaf_and_event,
    "history rewritten": rewrite_history,
    "leaves swapped": swap_leaves,
    "event passed off as cover": pass_off_as_cover,
    "tile byte": change_tile,
    "field changed": change_field,
    "field removed": remove_field,
    "field added": add_field,
    "time moved": move_time,
    "backdated": backdate,
    "anchor forged": forge_anchor,
    "state changed": case_column("state", "watch"),
    "deadline changed": case_column("due_at", "2031-01-01 00:00:00+00:00"),
    "level changed": case_column("level", "P4"),
    "closed by one organisation": close_alone,
    "lowered without witnesses": lower_unwitnessed,
    "older checkpoint": older_checkpoint,
    "older line": older_line,
    "lines deleted": lines_gone,
}


@cache
def places(count: int, many: int) -> list[int]:
    return sorted(random.Random(7).sample(range(many), min(count, many)))  # the same in every run


def must_name(built: Built, kind: str, place: int) -> None:
    expected: dict[str, Any] = {}

    def change(tx: Tx, built: Built) -> None:
        expected.update(MATRIX[kind](tx, built, built.rows[place]))

    report = built.check(change)
    assert not report.good, f"{kind} at {place} was not found"
    found = [
        fault for fault in report.as_json()["faults"] if all(fault[name] == told for name, told in expected.items())
    ]
    assert found, f"{kind} at {place}: {expected} is not among {[str(fault) for fault in report.faults[:5]]}"


@pytest.mark.parametrize("kind", MATRIX)
def test_every_kind_of_change_is_found_and_named(built: Built, kind: str) -> None:
    for place in places(3, len(built.rows)):
        must_name(built, kind, place)


@pytest.mark.chaos
@pytest.mark.parametrize("kind", MATRIX)
def test_every_kind_of_change_is_found_at_fifty_places(built: Built, kind: str) -> None:
    for place in places(50, len(built.rows)):
        must_name(built, kind, place)


def test_the_ledger_is_good_again_after_all_of_it(built: Built) -> None:
    """The control of the roll-back: nothing of the matrix stayed."""
    assert built.check().good


def test_a_database_restored_to_an_hour_ago_is_behind_a_head_that_was_seen(built: Built) -> None:
    later = notes.sign_checkpoint(notes.Checkpoint(ORIGIN, 10_000, bytes(32)), built.log.signer.seed)
    report = built.check(seen=(later,))
    assert [str(fault) for fault in report.faults] == ["head ahead of the tree: leaf 9999"]
    other = notes.sign_checkpoint(notes.Checkpoint(ORIGIN, 5, bytes(32)), built.log.signer.seed)
    assert [(fault.what, fault.index) for fault in built.check(seen=(other,)).faults] == [("head", 4)]


def test_a_value_erased_with_its_event_leaves_the_ledger_good_and_is_nowhere(built: Built) -> None:
    row = built.rows[-1]

    def erase(tx: Tx, built: Built) -> None:
        name = a_field(tx, row)
        run(tx, "DELETE FROM ledger_field WHERE eid = :e AND name = :n", e=row.eid, n=name)
        about = {"event": row.eid, "field": name, "ground": "storage no longer needed"}
        erased = NewEvent(EventType.VALUE_ERASED, built.log.moment, WHO, StateClass.SYSTEM, fields=about)
        forge(tx, built, built.log.chains[0], erased)

    assert built.check(erase).faults == []


def test_a_pending_event_that_waits_for_too_long_is_named(built: Built) -> None:
    moment = built.log.moment
    built.log.later(3600)
    try:
        report = built.check()
    finally:
        built.log.moment = moment
    assert [fault.what for fault in report.faults] == ["event not in the tree"]


def test_without_the_cover_key_no_cover_leaf_is_provable(built: Built) -> None:
    report = built.check(cover=bytes(32))
    assert {fault.what for fault in report.faults} == {"leaf of nothing known"}
    assert len(report.faults) == built.check().covers
