"""Events, commitments and leaves against the published answers, and the append on both databases."""

import base64
import json
import os
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select, text, update

from service.canonical import canonical
from service.db import Sessions, Tx, write
from service.errors import HeadMoved
from service.ledger import events
from service.ledger.events import Actor, EventType, Ledger, NewEvent, Sealed, StateClass, append, new_chain
from service.models import LedgerEvent, LedgerField, LedgerHead, LedgerPending
from service.vault import blobs, boxes

VECTORS = Path(os.environ.get("HOTLINE_VECTORS", "../shared/vectors")) / "known-answers" / "ledger.json"
AT = datetime(2027, 3, 9, 7, 21, 30, tzinfo=UTC)
WHO = Actor("investigator", "org-7", "m-1")
MONITOR_PRIVATE, MONITOR_PUBLIC = boxes.keypair()
LEDGER = Ledger("bamboo.example/log", MONITOR_PUBLIC)


@pytest.fixture(scope="module")
def answers() -> Any:
    if not VECTORS.exists():
        pytest.skip(f"the known answers are not at {VECTORS}")
    return json.loads(VECTORS.read_text())


def test_commitments_and_leaves_equal_the_known_answers(answers: Any) -> None:
    known, event = answers["field"], answers["event"]
    assert events.commit_field(bytes.fromhex(known["k_f"]), known["name"], known["value"]).hex() == known["C_f"]
    assert events.commit_event(bytes.fromhex(event["k_e"]), event["event"].encode()).hex() == event["C"]
    leaf = events.make_leaf(
        bytes.fromhex(event["C"]), bytes.fromhex(answers["leaf"]["S"]), bytes.fromhex(answers["leaf"]["T"]), 70000
    )
    assert leaf.hex() == answers["leaf"]["leaf"]
    assert events.leaf_hash(leaf).hex() == answers["leaf"]["leaf_hash"]


def test_canonical_json_equals_the_known_answers(answers: Any) -> None:
    for case in answers["canonical_json"]:
        assert canonical(case["value"]).hex() == case["bytes"]
    for size, padded in answers["blob_padding"]["event_bytes_to_padded"].items():
        assert len(blobs.pad_event(bytes(32) + bytes(int(size)))) == padded


def test_an_event_of_ours_has_the_shape_of_the_known_one(answers: Any, sessions: Sessions) -> None:
    chain = begin(sessions)
    ours = json.loads(stored(sessions, chain)[0].body)
    theirs = json.loads(answers["event"]["event"])
    assert set(ours) == set(theirs)
    assert set(ours["actor"]) == set(theirs["actor"])
    assert set(ours["anchor"]) == set(theirs["anchor"])


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abz_09", min_size=1), inner, max_size=4),
        max_leaves=12,
    )
)
def test_canonical_json_agrees_with_an_independent_implementation(value: Any) -> None:
    try:
        expected = rfc8785.dumps(value)
    except (UnicodeEncodeError, rfc8785.CanonicalizationError):
        with pytest.raises(ValueError, match=r"."):
            canonical(value)
    else:
        assert canonical(value) == expected


@pytest.mark.parametrize("value", [1.5, {"k": 2**53}, {"ក": 1}, {1: 1}, float("nan"), "\ud800", b"bytes"])
def test_what_has_no_canonical_form_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        canonical(value)


def an_event(kind: EventType = EventType.CASE_CLAIMED, **fields: Any) -> NewEvent:
    return NewEvent(kind, AT, WHO, StateClass.OPEN, AT, fields)


def begin(sessions: Sessions, *more: NewEvent) -> str:
    chain = new_chain()
    write(sessions, lambda tx: append(tx, LEDGER, chain, [an_event(EventType.CASE_OPENED, channel="sms"), *more]))
    return chain


def stored(sessions: Sessions, chain: str) -> list[LedgerEvent]:
    with sessions.read() as session:
        return list(
            session.scalars(select(LedgerEvent).where(LedgerEvent.case == chain).order_by(LedgerEvent.seq)).all()
        )


def check_chain(sessions: Sessions, chain: str) -> int:
    """Re-check a whole chain from its rows, and return its length."""
    previous = bytes(32)
    found = stored(sessions, chain)
    with sessions.read() as session:
        head = session.get(LedgerHead, chain)
        for seq, event in enumerate(found):
            body = json.loads(event.body)
            assert (body["seq"], event.seq, body["type"], body["case"]) == (seq, seq, event.type, chain)
            assert base64.b64decode(body["prev"]) == previous
            previous = events.commit_event(event.k_e, event.body)
            assert event.leaf[8:40] == previous
            assert blobs.open_event(MONITOR_PRIVATE, event.blob) == (event.k_e, event.body)
            for field in session.scalars(select(LedgerField).where(LedgerField.eid == event.eid)).all():
                if not field.sealed:
                    value = json.loads(field.value)
                    commitment = base64.b64encode(events.commit_field(field.salt or b"", field.name, value)).decode()
                    assert commitment == (body["actor"]["who"] if field.name == "who" else body["fields"][field.name])
    assert head is not None
    assert (head.seq, head.c) == (len(found) - 1, previous)
    return len(found)


def test_appended_events_chain_and_open_their_commitments(sessions: Sessions) -> None:
    chain = begin(sessions, an_event(unit="siem-reap"))
    write(sessions, lambda tx: append(tx, LEDGER, chain, [an_event(reason="owner", note="x")]))

    assert check_chain(sessions, chain) == 3
    with sessions.read() as session:
        pending = session.scalars(select(LedgerPending).order_by(LedgerPending.id)).all()
    assert [p.eid for p in pending] == [e.eid for e in stored(sessions, chain)]


def test_tip_events_tell_the_minute_and_no_more(sessions: Sessions) -> None:
    chain = begin(sessions, an_event(EventType.TIP_SEALED))
    event = stored(sessions, chain)[1]
    assert json.loads(event.body)["at"] == "2027-03-09T07:21:00Z"
    assert event.at == AT.replace(second=0)


def test_a_sealed_field_opens_only_with_the_case_key(sessions: Sessions) -> None:
    private, public = boxes.keypair()
    chain = begin(sessions, an_event(note=Sealed("a word", public)))
    event = stored(sessions, chain)[1]
    with sessions.read() as session:
        field = session.get(LedgerField, (event.eid, "note"))
    assert field is not None
    assert field.salt is None
    assert b"a word" not in field.value
    opened = boxes.unseal(private, f"field|{event.eid}|note", field.value)
    commitment = events.commit_field(opened[:32], "note", json.loads(opened[32:]))
    assert base64.b64encode(commitment).decode() == json.loads(event.body)["fields"]["note"]


def test_the_same_value_is_committed_to_differently_each_time(sessions: Sessions) -> None:
    chain = begin(sessions, an_event(unit="a"), an_event(unit="a"))
    first, second = (json.loads(e.body)["fields"]["unit"] for e in stored(sessions, chain)[1:])
    assert first != second


def test_a_moved_head_refuses_the_append(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    chain = begin(sessions)
    real = events.chain_events

    def interfere(*args: Any) -> Any:
        # Between reading the head and the compare-and-swap, another event comes.
        tx_of_other.execute(update(LedgerHead).where(LedgerHead.case == chain).values(seq=5))
        return real(*args)

    def lose(tx: Tx) -> None:
        nonlocal tx_of_other
        tx_of_other = tx
        append(tx, LEDGER, chain, [an_event()])

    tx_of_other: Any = None
    monkeypatch.setattr(events, "chain_events", interfere)
    with pytest.raises(HeadMoved):
        write(sessions, lose)
    assert check_chain(sessions, chain) == 1


def test_writers_at_once_on_one_chain_and_on_many(sessions: Sessions) -> None:
    chain = begin(sessions)
    own = [begin(sessions) for _ in range(4)]
    faults: list[Exception] = []

    def work(mine: str) -> None:
        for n in range(6):
            for target in (chain, mine):
                try:
                    write(sessions, lambda tx, t=target, n=n: append(tx, LEDGER, t, [an_event(unit=f"u{n}")]))
                except HeadMoved as fault:
                    faults.append(fault)

    threads = [threading.Thread(target=work, args=(mine,)) for mine in own]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    lost = len(faults)
    assert check_chain(sessions, chain) + sum(check_chain(sessions, c) for c in own) == 5 + 48 - lost
    assert lost < 24, "most of them come through"


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE ledger_event SET type = 'case:file:opened'",
        "DELETE FROM ledger_event",
        "DELETE FROM ledger_head",
    ],
)
def test_events_are_neither_changed_nor_deleted(sessions: Sessions, statement: str) -> None:
    chain = begin(sessions)
    with pytest.raises(Exception, match=r"."):
        write(sessions, lambda tx: tx.execute(text(statement)))
    assert check_chain(sessions, chain) == 1


def test_event_types_are_subject_object_verb() -> None:
    for kind in EventType:
        assert len(kind.split(":")) == 3, kind
