"""Heads offered over HTTP to good, bad, slow and dead witnesses: what waits for them, and what never does."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from datetime import timedelta
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from commands import offering
from commands.offering import Offers
from commands.sequencing import build_sequencer
from service.config import Settings
from service.db import open_database, write
from service.errors import Misconfigured
from service.ledger import notes
from service.ledger.cosigning import note_witness
from service.ledger.events import EventType
from service.ledger.notes import Policy
from service.ledger.witness import Witness
from service.models import LedgerCosignature, LedgerEffect, LedgerEvent, LedgerField
from service.vault import boxes
from service.vault.note import COSIGNATURE, vkey
from tests.commands.builders import soon
from tests.service.ledger.builders import COVER_KEY, NOW, ORIGIN, SEED, WITNESS_SEEDS, Log

NAMES = list(WITNESS_SEEDS)
Answering = Callable[[str, bytes], tuple[int, bytes]]


class Served:
    """A witness behind HTTP on loopback, good until `instead` answers in its place."""

    def __init__(self, folder: Path, name: str, log: Log) -> None:
        self.name, self.requests = name, 0
        self.witness = Witness(
            folder, name, ORIGIN, log.signer.verifier, WITNESS_SEEDS[name], lambda: log.moment.timestamp()
        )
        self.witness.create()
        self.instead: Answering | None = None
        served = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.answer(b"")

            def do_POST(self) -> None:
                self.answer(self.rfile.read(int(self.headers["content-length"])))

            def answer(self, body: bytes) -> None:
                served.requests += 1
                status, text = (served.instead or served.good)(self.path, body)
                with suppress(OSError):  # whoever asked may have gone
                    self.send_response(status)
                    self.end_headers()
                    self.wfile.write(text)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=partial(self.server.serve_forever, poll_interval=0.02), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/w/"

    def good(self, path: str, body: bytes) -> tuple[int, bytes]:
        if path.endswith("/add-checkpoint"):
            answer = self.witness.add_checkpoint(body)
            return answer.status, answer.text.encode()
        newest = self.witness.newest()
        return (404, b"") if newest is None else (200, newest.encode())

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def log(sqlite_url: str, tmp_path: Path) -> Iterator[Log]:
    opened = open_database(sqlite_url)
    yield Log(opened, tmp_path / "log")
    opened.close()


@pytest.fixture
def four(log: Log, tmp_path: Path) -> Iterator[list[Served]]:
    with ExitStack() as stack:
        found = [Served(tmp_path / name.split(".")[0], name, log) for name in NAMES]
        for one in found:
            stack.callback(one.close)
        yield found


def policy_of(four: list[Served]) -> Policy:
    lines = [f"log {vkey(ORIGIN, boxes.signing_public_of(SEED))} https://{ORIGIN}/"]
    for n, one in enumerate(four):
        key = vkey(one.name, boxes.signing_public_of(WITNESS_SEEDS[one.name]), COSIGNATURE)
        lines.append(f"witness W{n} {key} {one.url}")
    return notes.parse_policy("\n".join([*lines, "group g 3 W0 W1 W2 W3", "quorum g", ""]))


def sequencer_with(log: Log, four: list[Served], **changed: Any) -> Any:
    policy = policy_of(four)
    offers = Offers(policy, **({"patience": 5.0} | changed))
    one = log.sequencer(policy=policy, witnesses=offers)
    offers.late = one.take_line
    offers.tell = lambda name, kind: (
        write(log.sessions, partial(note_witness, ledger=log.ledger, name=name, kind=kind, now=log.moment)) and None
    )  # type: ignore[func-returns-value]
    return one


def lines(log: Log) -> list[tuple[int, str]]:
    with log.sessions.read() as session:
        rows = session.scalars(select(LedgerCosignature).order_by(LedgerCosignature.size, LedgerCosignature.name))
        return [(row.size, row.name) for row in rows]


def told(log: Log) -> list[tuple[str, str, str | None]]:
    """What the history says of witnesses: type, name, kind."""
    about = (EventType.WITNESS_REFUSED, EventType.WITNESS_BACK)
    with log.sessions.read() as session:
        events = session.scalars(select(LedgerEvent).where(LedgerEvent.type.in_(about)).order_by(LedgerEvent.seq))  # type: ignore[attr-defined]
        return [
            (
                event.type.split(":")[2],
                session.get_one(LedgerField, (event.eid, "witness")).value.decode().strip('"'),
                field.value.decode().strip('"') if (field := session.get(LedgerField, (event.eid, "kind"))) else None,
            )
            for event in events
        ]


def effect(log: Log) -> Callable[[], bool]:
    """Ask for something that waits for witnesses; return what says whether it was done."""
    log.effects["close"] = lambda tx, action, now: None
    eid = log.event(effect={"do": "close"})

    def done() -> bool:
        with log.sessions.read() as session:
            return session.get_one(LedgerEffect, eid).done_at is not None

    return done


def minute(log: Log, one: Any) -> float:
    """Let a minute's work be done; return how many seconds it took."""
    log.event()
    one.round()
    log.later(60)
    began = time.monotonic()
    one.publish()
    return time.monotonic() - began


def test_all_four_sign_and_what_waited_is_done(log: Log, four: list[Served]) -> None:
    one, done = sequencer_with(log, four), effect(log)
    for _ in range(3):
        assert minute(log, one) < 4
        state = log.state()
        assert state.witnessed_size == state.published_size == state.size
    assert done()
    assert len(lines(log)) == 12
    assert log.state().halted is False
    assert told(log) == []
    for served in four:
        assert served.witness.size() == log.state().size


def test_a_leader_that_knows_nothing_of_its_witnesses_goes_on_where_they_stand(log: Log, four: list[Served]) -> None:
    one = sequencer_with(log, four)
    minute(log, one)
    one.step_down()
    again = sequencer_with(log, four)
    minute(log, again)
    assert log.state().witnessed_size == log.state().size
    assert all(served.requests == 4 for served in four)  # a head at each start, an offer each minute
    fresh = Offers(policy_of(four))  # one that could not ask where they stand is told by a 409
    again.step_down()
    told_by_409 = log.sequencer(policy=fresh.policy, witnesses=fresh)
    told_by_409.round()
    fresh._sizes.clear()
    minute(log, told_by_409)
    assert log.state().witnessed_size == log.state().size


def test_the_same_head_is_not_asked_for_twice(log: Log, four: list[Served]) -> None:
    one = sequencer_with(log, four)
    minute(log, one)
    asked = [served.requests for served in four]
    log.later(60)
    one.publish()
    assert [served.requests for served in four] == asked


def refuses(_path: str, _body: bytes) -> tuple[int, bytes]:
    return 422, b""


def bad_line(served: Served, log: Log) -> Answering:
    def answer(path: str, body: bytes) -> tuple[int, bytes]:
        status, text = served.good(path, body)
        other = notes.cosign(notes.Checkpoint(ORIGIN, 1, bytes(32)), served.name, WITNESS_SEEDS[served.name], 5)
        return (200, other.encode()) if path.endswith("add-checkpoint") else (status, text)

    return answer


@pytest.mark.parametrize("kind", ["422", "line", "garbage", "endless"])
def test_one_bad_witness_stops_nothing_and_two_stop_what_waits_alone(log: Log, four: list[Served], kind: str) -> None:
    def worsen(served: Served) -> None:
        answers: dict[str, Answering] = {
            "422": refuses,
            "line": bad_line(served, log),
            "garbage": lambda path, body: (200, b"\xff\x00 lies \n\n"),
            "endless": lambda path, body: (200, b"x" * 200_000),
        }
        served.instead = answers[kind]

    one, done = sequencer_with(log, four), effect(log)
    worsen(four[0])
    worsen(four[1])
    minute(log, one)
    assert not done()
    assert (log.state().published_size, log.state().witnessed_size) == (log.state().size, 0)
    assert log.state().halted is False
    log.event()  # intake asks no witness
    four[1].instead = None
    minute(log, one)
    assert done()
    assert log.state().witnessed_size == log.state().published_size
    if kind != "endless":
        refused = "line" if kind == "garbage" else kind
        expected = [("refused", NAMES[0], refused), ("refused", NAMES[1], refused), ("back", NAMES[1], None)]
        assert sorted(told(log)) == sorted(expected)


def test_a_refusal_is_told_once_whatever_is_restarted(log: Log, four: list[Served]) -> None:
    four[2].instead = refuses
    for _ in range(2):
        one = sequencer_with(log, four)
        for _ in range(2):
            minute(log, one)
        one.step_down()
    assert told(log) == [("refused", NAMES[2], "422")]
    four[2].instead = None
    minute(log, sequencer_with(log, four))
    assert told(log) == [("refused", NAMES[2], "422"), ("back", NAMES[2], None)]


def test_no_witness_at_all_stops_what_waits_and_nothing_else(log: Log, four: list[Served]) -> None:
    one, done = sequencer_with(log, four), effect(log)
    for served in four:
        served.close()
    for _ in range(2):
        assert minute(log, one) < 4
        assert log.state().published_size == log.state().size
    assert not done()
    assert (log.state().witnessed_size, log.state().halted, lines(log)) == (0, False, [])


def test_a_slow_witness_holds_no_round_up_and_its_line_is_stored_when_it_comes(
    log: Log, four: list[Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offering, "LINGER", 0.05)
    gate, slow = threading.Event(), four[3]

    def slowly(path: str, body: bytes) -> tuple[int, bytes]:
        gate.wait(20)
        return slow.good(path, body)

    one, done = sequencer_with(log, four), effect(log)
    one.round()  # asks for heads while nobody is slow
    slow.instead = slowly
    assert minute(log, one) < 4
    assert done()  # three of four are enough
    size = log.state().size
    asked = slow.requests
    minute(log, one)
    assert slow.requests == asked  # one that is busy is not asked again
    gate.set()
    assert soon(lambda: (size, slow.name) in lines(log))
    assert all(size_ != log.state().size for size_, name in lines(log) if name == slow.name)


def test_without_a_quorum_the_slow_are_waited_for_no_longer_than_agreed(log: Log, four: list[Served]) -> None:
    gate = threading.Event()
    one, done = sequencer_with(log, four, patience=0.3), effect(log)
    one.round()
    for served in four[:2]:
        served.instead = lambda path, body, good=served.good: (gate.wait(20), good(path, body))[1]
    assert 0.3 <= minute(log, one) < 4
    assert not done()
    assert log.state().published_size == log.state().size  # published all the same
    gate.set()
    assert soon(lambda: len(lines(log)) == 4)
    assert not done()
    one.settle_if_new()  # what a worker does each second
    assert done()
    assert log.state().witnessed_size == log.state().size


def test_ten_seconds_is_what_was_agreed() -> None:
    assert offering.PATIENCE == 10.0


def test_a_witness_that_knows_a_larger_tree_halts_the_ledger(log: Log, four: list[Served]) -> None:
    one, done = sequencer_with(log, four), effect(log)
    one.round()
    four[0].instead = lambda path, body: (409, b"9999\n")
    minute(log, one)
    assert log.state().halted
    assert log.alarms == ["witness-ahead"]
    assert not done()
    log.event()  # and intake goes on
    assert one.round() == 0


@pytest.mark.parametrize("body", [b"0\n", b"-1\n", b"", b"09\n", b"\xff", b"9" * 30])
def test_a_409_that_is_none_halts_nothing(log: Log, four: list[Served], body: bytes) -> None:
    one = sequencer_with(log, four)
    one.round()
    four[0].instead = lambda path, asked: (409, body)
    minute(log, one)
    assert log.state().halted is False
    assert log.state().witnessed_size == log.state().size


def test_only_heads_that_the_log_signed_count_when_a_leader_begins(log: Log, four: list[Served]) -> None:
    one = sequencer_with(log, four)
    minute(log, one)
    one.step_down()
    forged = notes.sign_checkpoint(notes.Checkpoint(ORIGIN, 9999, bytes(32)), b"\x66" * 32)
    for lie in (b"", b"\xff", forged.encode()):
        four[0].instead = lambda path, body, lie=lie: (200, lie)
        assert len(list(Offers(policy_of(four)).heads())) == 3
        again = sequencer_with(log, four)
        again.round()
        assert again.leads
        assert log.state().halted is False
        again.step_down()
    larger = notes.sign_checkpoint(notes.Checkpoint(ORIGIN, 9999, bytes(32)), SEED)
    four[0].instead = lambda path, body: (200, larger.encode())
    sequencer_with(log, four).round()
    assert log.alarms == ["witness-ahead"]  # this one is the log's own word


def test_heads_are_waited_for_five_seconds_at_most(log: Log, four: list[Served], monkeypatch: Any) -> None:
    monkeypatch.setattr(offering, "HEADS", 0.2)
    minute(log, sequencer_with(log, four))
    gate = threading.Event()
    four[1].instead = lambda path, body: (gate.wait(20), (404, b""))[1]
    began = time.monotonic()
    assert len(list(Offers(policy_of(four)).heads())) == 3
    assert time.monotonic() - began < 4
    gate.set()


def test_heads_are_published_as_often_as_is_set(log: Log) -> None:
    one = log.sequencer(publish_every=timedelta(seconds=5))
    assert NOW.second % 5 == 0
    log.event()
    one.round()
    assert [one.publish_if_due()] == [True]
    found = []
    for _ in range(12):
        log.later(1)
        found.append(one.publish_if_due())
    assert [n for n, due in enumerate(found, 1) if due] == [5, 10]


# --- the worker's wiring ---


def settings_of(log: Log, four: list[Served], folder: Path, **more: Any) -> Settings:
    """The settings of a host whose policy names these witnesses."""
    for name, secret in (("signer/log.key", SEED), ("cover.key", COVER_KEY)):
        path = log.folder / name
        path.unlink(missing_ok=True)
        path.write_text(secret.hex())
        path.chmod(0o400)
    lines = [f"log {vkey(ORIGIN, boxes.signing_public_of(SEED))} https://{ORIGIN}/"]
    lines += [
        f"witness W{n} {vkey(one.name, boxes.signing_public_of(WITNESS_SEEDS[one.name]), COSIGNATURE)} {one.url}"
        for n, one in enumerate(four)
    ]
    (folder / "policy").write_text("\n".join([*lines, "group g 3 W0 W1 W2 W3", "quorum g", ""]))
    given = {
        "public_url": "https://bamboo.example",
        "ledger_vkey": vkey(ORIGIN, boxes.signing_public_of(SEED)),
        "ledger_signer_dir": log.folder / "signer",
        "ledger_policy_file": folder / "policy",
        "cover_key_file": log.folder / "cover.key",
    }
    return Settings(**(given | more))


def test_the_worker_offers_heads_to_the_witnesses_of_its_policy(log: Log, four: list[Served], tmp_path: Path) -> None:
    settings = settings_of(log, four, tmp_path)
    one = build_sequencer(settings, log.sessions, log.ledger, now=lambda: log.moment, effects={})
    assert one is not None
    four[0].instead = refuses
    minute(log, one)
    assert log.state().witnessed_size == log.state().size
    assert told(log) == [("refused", NAMES[0], "422")]
    assert isinstance(one.witnesses, Offers)
    assert one.witnesses.late == one.take_line


def test_a_head_more_than_once_a_minute_is_for_the_demo_alone(log: Log, four: list[Served], tmp_path: Path) -> None:
    build = partial(build_sequencer, sessions=log.sessions, ledger=log.ledger, now=lambda: log.moment, effects={})
    with pytest.raises(Misconfigured, match="PUBLISH_SECONDS"):
        build(settings_of(log, four, tmp_path, ledger_publish_seconds=5))
    made = build(settings_of(log, four, tmp_path, ledger_publish_seconds=5, demo=True))
    assert made is not None
    assert made.publish_every == timedelta(seconds=5)
    usual = build(settings_of(log, four, tmp_path))
    assert usual is not None
    assert usual.publish_every == timedelta(minutes=1)
