"""kill -9 of workers while they send: each text is sent once, or nobody knows and a person looks (twilio.md 5; T-43).

Two real workers against the fake provider's REST side, which is slow, so that most kills hit texts on their way.
"""

import asyncio
import json
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlmodel import col
from starlette.types import Message as Event
from starlette.types import Receive, Scope, Send

from commands.worker import READY
from service import ceremony, outbox
from service.db import Sessions
from service.models import Case, Contact, JobState, OutboxJob, Tip
from service.vault import boxes
from service.vault.relaying import open_contact
from tests.builders import a_tip
from tests.chaos.running import ROOT, Installation, wait_for
from tests.chaos.verify import verify
from tests.service.sending import DUTY, Scene
from tests.service.test_events import stored
from tests.service.test_intake import LOCKED_IN
from tests.webhooks.builders import ACCOUNT, NUMBER, TOKEN
from tests.webhooks.simulator.builders import KEY, SECRET, serving
from webhooks.simulator.provider import Message, Provider
from webhooks.simulator.rest import rest_app

LADDER = ["clock:deadline:escalated"] * 3 + ["clock:deadline:lapsed"] + ["clock:deadline:escalated"] * 2
RUNNING = (JobState.WAITING, JobState.SENDING, JobState.CHECKING)


@dataclass
class SlowProvider:
    """The fake provider behind a slow line, and everything that it ever took for sending."""

    rng: random.Random
    taken: list[Message] = field(default_factory=list)
    on_the_way: int = 0  # texts that it has taken and not yet answered for

    def __post_init__(self) -> None:
        self.provider = Provider(account_sid=ACCOUNT, auth_token=TOKEN, api_keys={KEY: SECRET}, numbers=[NUMBER])
        self._app, create = rest_app(self.provider), self.provider.create

        def counted(**asked: Any) -> Message:
            message = create(**asked)
            self.taken.append(message)
            return message

        self.provider.create = counted  # type: ignore[method-assign]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return

        async def late(event: Event) -> None:
            if event["type"] == "http.response.start":
                self.on_the_way += 1
                await asyncio.sleep(self.rng.uniform(0, 0.6))  # it has acted, and nobody knows yet
                self.on_the_way -= 1
            await send(event)

        await asyncio.sleep(self.rng.uniform(0, 0.2))
        await self._app(scope, receive, late)


@dataclass
class Worker:
    """A worker process, killed and started again."""

    installation: Installation
    environment: dict[str, str]
    number: int
    variant: str
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def log(self) -> Path:
        """Where its output goes, over all starts."""
        return self.installation.folder / f"worker-{self.number}.log"

    def start(self) -> None:
        """Start it, and return at once."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.hurried", self.variant],
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def kill(self) -> None:
        """End it as a loss of power would, as far as a process can tell."""
        assert self.process
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """Ask it to end, and wait. Fails if it does not."""
        assert self.process
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(20) == 0, self.log.read_text()[-2000:]


@contextmanager
def two_workers(installation: Installation, address: str, variant: str) -> Iterator[list[Worker]]:
    """Run two workers of the installation against the provider at `address`, ready."""
    keys = installation.folder / "keys"
    ceremony.write_secret(keys / "twilio.key", SECRET)
    foreign = ("HOTLINE_TWILIO_TOKEN_FILE", "HOTLINE_PLACE_KEY_FILE")
    known = {name: v for name, v in installation.environments["public"].items() if name not in foreign}
    duty = {post: numbers for post, numbers in DUTY.items() if post not in ("siem-reap", "integrity")}
    known |= ceremony.worker_files(keys) | {
        "HOTLINE_TWILIO_API_URL": address,
        "HOTLINE_TWILIO_API_KEY_SID": KEY,
        "HOTLINE_LEDGER_ELSEWHERE": "true",
        "HOTLINE_DUTY": json.dumps(duty),
    }
    workers = [Worker(installation, known, number, variant) for number in range(2)]
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            wait_for(lambda w=worker: READY in w.log.read_text(), f"a worker, see {worker.log}")  # type: ignore[misc]
        yield workers
    finally:
        for worker in workers:
            if worker.process and worker.process.poll() is None:
                worker.kill()


@dataclass
class Run:
    """What came of a run: the scene, everything the provider took, and which cases were urgent."""

    scene: Scene
    taken: list[Message]
    urgent: list[Case]
    senders: dict[str, OutboxJob]

    @property
    def doubled(self) -> list[str]:
        """Tipsters who got more than one text."""
        texts = Counter(message.to for message in self.taken)
        return [number for number in self.senders if texts[number] > 1]


def kill_again_and_again(
    installation: Installation, sessions: Sessions, seed: int, *, kills: int, tips: int, variant: str = "-"
) -> Run:
    """Let tips come in while workers are killed at random, then wait until every row has ended.

    A variant is a control, whose fault must show whatever the machine's speed: both are killed while a text is taken
    and not answered for.
    """
    rng = random.Random(seed)
    scene = Scene(installation.world)
    line = SlowProvider(rng)
    urgent: list[Any] = []
    with serving(line) as address, two_workers(installation, address, variant) as workers:
        for round_ in range(kills):
            come_in(scene, rng, round_, tips // kills, urgent)
            asyncio.run(asyncio.sleep(rng.uniform(0.1, 1.2)))
            victims = [rng.choice(workers)]
            if variant != "-":
                victims = workers
                wait_for(lambda: line.on_the_way, "a text to be on its way", seconds=60, until=lambda texts: texts > 0)
            for victim in victims:
                victim.kill()
            for victim in victims:
                victim.start()
        wait_for(lambda: left(sessions), "all rows to end", seconds=120, until=lambda rows: rows == 0)
        for worker in workers:
            wait_for(lambda w=worker: w.process.poll() is not None or READY in w.log.read_text(), "both")  # type: ignore[misc]
            worker.stop()
    cases = [case for tip in urgent if (case := case_of(scene, tip))]
    return Run(scene, line.taken, cases, senders_of(scene))


def come_in(scene: Scene, rng: random.Random, round_: int, count: int, urgent: list[Any]) -> None:
    """Take some tips, and one that has been urgent for so long that its whole ladder is due."""
    now = datetime.now(UTC)
    mark = f"{rng.getrandbits(64):016x}"
    texts = [
        a_tip(f"Please look there. {mark}{n}", sender=f"+85500{10 + round_:02d}{n:04d}", received_at=now)
        for n in range(count)
    ]
    long_ago = now - timedelta(minutes=50)
    late = a_tip(f"{LOCKED_IN} {mark}", sender=f"+85500{10 + round_:02d}9999", received_at=long_ago)
    *_, receipt = scene.world.receive(*rng.sample(texts, len(texts)), late)
    urgent.append(receipt.tip)


def case_of(scene: Scene, tip: Any) -> Case:
    with scene.world.sessions.read() as session:
        return session.get_one(Case, session.get_one(Tip, tip).case)


def left(sessions: Sessions) -> int:
    """How many rows have not ended."""
    with sessions.read() as session:
        return session.scalar(select(func.count()).where(col(OutboxJob.state).in_(RUNNING))) or 0


def senders_of(scene: Scene) -> dict[str, OutboxJob]:
    """Return the answers to tipsters by number."""
    private, found = scene.world.founding.relay_private, {}
    with scene.world.sessions.read() as session:
        for row in session.scalars(select(OutboxJob).where(OutboxJob.kind == outbox.ACKNOWLEDGE)).all():
            contact = session.get_one(Contact, row.contact)
            sealed = (contact.key_sealed or b"", contact.number_sealed or b"")
            found[open_contact(private, 1, contact.id, *sealed)] = row
    return found


def check(run: Run, *, tips: int, kills: int) -> None:
    """Every text was sent once, or nobody knows and it stands before a person; no page was skipped or doubled."""
    scene, row_key = run.scene, run.scene.world.founding.row_key
    texts = Counter(message.to for message in run.taken)
    names = {boxes.provider_name(row_key, message.sid): message.to for message in run.taken}
    outcomes = Counter(row.state for row in run.senders.values())
    print(f"answers {dict(outcomes)}, pages {dict(Counter(scene.states(outbox.RING)))}, {len(run.taken)} texts")
    assert len(run.senders) == tips // kills * kills + kills
    assert run.doubled == []
    for number, row in run.senders.items():
        if row.state == JobState.DONE:
            assert row.sid is not None
            assert (texts[number], names[row.sid]) == (1, number)
        elif row.state == JobState.DROPPED:
            assert (texts[number], number[-4:]) == (0, "9999"), "only what was too late is dropped"
        else:
            assert row.state == JobState.UNKNOWN
            assert row.case in scene.in_front_of("screener")
    check_pages(run, texts)
    assert verify(scene.world.sessions, scene.world.founding, []).faults == []


def check_pages(run: Run, texts: Counter[str]) -> None:
    scene = run.scene
    numbers = {number for post in DUTY for number in DUTY[post]}
    rings = scene.rows(outbox.RING)
    for case in run.urgent:
        told = [e.type for e in stored(scene.world.sessions, case.chain) if e.type.startswith("clock:")]
        assert told == LADDER, f"{told}"
        assert len([row for row in rings if row.case == case.id]) == 2 + 2 + 2 + 3 + 1 + 2
    assert scene.states(outbox.PAGE) == [JobState.DONE] * len(run.urgent)
    sent = Counter(row.state for row in rings if row.joined is None)
    assert set(sent) <= {JobState.DONE, JobState.UNKNOWN}
    on_duty = sum(texts[number] for number in numbers)
    assert sent[JobState.DONE] <= on_duty <= sent[JobState.DONE] + sent[JobState.UNKNOWN]
    for row in rings:
        assert row.state == JobState.DONE or row.case in scene.in_front_of("screener")


def test_texts_survive_workers_that_are_killed(installation: Installation, sessions: Sessions, seed: int) -> None:
    run = kill_again_and_again(installation, sessions, seed, kills=6, tips=90)

    check(run, tips=90, kills=6)


@pytest.mark.chaos
def test_texts_survive_workers_that_are_killed_fifty_times(
    installation: Installation, sessions: Sessions, seed: int
) -> None:
    run = kill_again_and_again(installation, sessions, seed, kills=50, tips=1000)

    check(run, tips=1000, kills=50)


def test_a_worker_that_sends_again_what_was_left_doubles(
    sqlite_installation: Installation, sqlite_sessions: Sessions, seed: int
) -> None:
    """The negative control: rows that wait again when their sender died are sent twice, and the check sees it."""
    run = kill_again_and_again(sqlite_installation, sqlite_sessions, seed, kills=6, tips=90, variant="sends_again")

    assert run.doubled, "six kills while texts were on their way, and none was?"
