"""``POST /log/cosignature``: lines that witnesses bring are stored before they are thanked; noise costs little."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from starlette.testclient import TestClient

from service.config import Settings
from service.db import Sessions, Tx, Writer
from service.errors import StorageUnavailable
from service.ledger import notes
from service.ledger.witness import submission_of
from service.models import LedgerCosignature
from tests.service.ledger.builders import ORIGIN, SEED, WITNESS_SEEDS, Log, policy_text
from tests.webhooks.builders import FORM_KEY, HOST
from webhooks.app import create_app
from webhooks.cosignature import PATH, PER_MINUTE, cosignature_route

NGO = "ngo.example/w"


class Counted:
    """The public process's writer, with how often it was asked and a time that the test moves."""

    def __init__(self, sessions: Sessions) -> None:
        self.writer, self.asked, self.seconds = Writer(sessions), 0, 0.0
        self.fault: Exception | None = None

    async def store(self, use_case: Callable[[Tx], None]) -> None:
        self.asked += 1
        if self.fault is not None:
            raise self.fault
        await self.writer.submit(use_case)


@pytest.fixture
def a_log(sessions: Sessions, tmp_path: Path) -> Log:
    """A log that has published one head, which nobody has signed."""
    log = Log(sessions, tmp_path / "log")
    log.witnesses.away = set(WITNESS_SEEDS)
    log.events(3)
    one = log.sequencer()
    one.round()
    one.publish()
    one.step_down()
    return log


@pytest.fixture
def counted(a_log: Log) -> Iterator[Counted]:
    made = Counted(a_log.sessions)
    yield made
    made.writer.close()


@pytest.fixture
def client(counted: Counted) -> TestClient:
    return TestClient(an_app(counted, policy_text()), base_url=HOST, raise_server_exceptions=False)


def an_app(counted: Counted, policy: str | None) -> Any:
    route = cosignature_route(policy, counted.store, clock=lambda: counted.seconds)
    intake: Any = None
    return create_app(Settings(), intake=intake, health=dict, form_key=FORM_KEY, log=[route])


def head_of(log: Log) -> notes.Checkpoint:
    return notes.open_checkpoint(log.state().note or "", log.policy.log)


def brought(log: Log, *, name: str = NGO, seed: bytes | None = None, time: int = 7, **changed: Any) -> bytes:
    """What a witness sends for the log's head, or for another one."""
    head = head_of(log)
    other = notes.Checkpoint(*(changed.get(key, getattr(head, key)) for key in ("origin", "size", "root")))
    line = notes.cosign(other, name, seed or WITNESS_SEEDS.get(name, b"\x55" * 32), time)
    return submission_of(line, notes.sign_checkpoint(other, SEED))


def stored(log: Log) -> list[str]:
    with log.sessions.read() as session:
        return list(session.scalars(select(LedgerCosignature.line).order_by(LedgerCosignature.name)))  # type: ignore[call-overload]


def test_a_line_is_stored_and_with_a_quorum_of_them_the_head_is_witnessed(
    a_log: Log, client: TestClient, counted: Counted
) -> None:
    leader = a_log.sequencer()
    leader.round()
    for n, name in enumerate(list(WITNESS_SEEDS)[:3], 1):
        leader.settle_if_new()
        assert a_log.state().witnessed_size == 0
        answer = client.post(PATH, content=brought(a_log, name=name))
        assert (answer.status_code, answer.text) == (200, "stored\n")
        assert len(stored(a_log)) == n
    leader.settle_if_new()
    assert a_log.state().witnessed_size == head_of(a_log).size


def test_the_same_line_again_is_thanked_for_and_stored_once(a_log: Log, client: TestClient, counted: Counted) -> None:
    for _ in range(3):
        assert client.post(PATH, content=brought(a_log)).status_code == 200
    assert (len(stored(a_log)), counted.asked) == (1, 1)
    assert client.post(PATH, content=brought(a_log, time=9)).status_code == 200  # a fresh line; the first one stays
    assert [notes.open_witnessed(head_note(a_log), a_log.policy).cosigned[NGO]] == [7]


def head_note(log: Log) -> str:
    return notes.add_lines(log.state().note or "", stored(log))


def test_what_is_bad_or_unknown_is_refused_without_a_look_at_the_database(
    a_log: Log, client: TestClient, counted: Counted
) -> None:
    good = brought(a_log)
    bad = [
        b"",
        b"x" * 20_000,
        good.split(b"\n\n")[0],
        good.replace(b"\n\n", b"\n", 1),
        good + b" " * 17_000,
        brought(a_log, name="other.example/w"),
        brought(a_log, seed=b"\x44" * 32),
        submission_of(
            notes.cosign(notes.Checkpoint(ORIGIN, 1, bytes(32)), NGO, WITNESS_SEEDS[NGO], 7), head_note(a_log)
        ),
    ]
    for body in bad:
        assert client.post(PATH, content=body).status_code == 400, body[:60]
    assert (stored(a_log), counted.asked) == ([], 0)
    assert client.post(PATH, content=good).status_code == 200


def test_a_head_that_is_none_of_ours_is_not_found(a_log: Log, client: TestClient) -> None:
    size = head_of(a_log).size
    for other in ({"size": size + 1}, {"root": bytes(32)}, {"origin": "other.example/log"}):
        body = brought(a_log, **other)
        assert client.post(PATH, content=body).status_code == 404, other
    assert stored(a_log) == []


def test_without_a_policy_nobody_is_taken(counted: Counted, a_log: Log) -> None:
    client = TestClient(an_app(counted, None), base_url=HOST)
    assert client.post(PATH, content=brought(a_log)).status_code == 404
    assert client.get(PATH).status_code == 405
    assert counted.asked == 0


def test_one_key_cannot_keep_the_database_busy_nor_the_others_out(
    a_log: Log, client: TestClient, counted: Counted
) -> None:
    statuses = [client.post(PATH, content=brought(a_log, time=time)).status_code for time in range(PER_MINUTE + 5)]
    assert statuses == [200] * PER_MINUTE + [429] * 5
    assert counted.asked == PER_MINUTE
    assert client.post(PATH, content=brought(a_log, name="un.example/w")).status_code == 200
    assert client.post(PATH, content=brought(a_log, time=3)).status_code == 200  # a repeat costs nothing
    counted.seconds = 2.0
    again = [client.post(PATH, content=brought(a_log, time=100 + time)).status_code for time in range(2)]
    assert again == [200, 429]


def test_what_could_not_be_stored_is_not_thanked_for(a_log: Log, client: TestClient, counted: Counted) -> None:
    counted.fault = StorageUnavailable("away")
    assert client.post(PATH, content=brought(a_log)).status_code == 503
    counted.fault = None
    assert client.post(PATH, content=brought(a_log)).status_code == 200
    assert len(stored(a_log)) == 1


def test_it_is_durable_before_it_is_thanked(a_log: Log, counted: Counted) -> None:
    """The answer waits for the commit: while the writer is held, none comes."""

    async def held() -> None:
        gate = asyncio.Event()

        async def later(use_case: Callable[[Tx], None]) -> None:
            await gate.wait()
            await counted.store(use_case)

        route: Any = cosignature_route(policy_text(), later)
        from starlette.requests import Request

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": brought(a_log), "more_body": False}

        request = Request({"type": "http", "method": "POST", "path": PATH, "headers": []}, receive)
        asked = asyncio.ensure_future(route.endpoint(request))
        await asyncio.sleep(0.05)
        assert not asked.done()
        assert stored(a_log) == []
        gate.set()
        assert (await asked).status_code == 200

    asyncio.run(held())
    assert len(stored(a_log)) == 1
