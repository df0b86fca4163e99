"""Every message many times over, shuffled and at once, is stored once (threats.md T-35, R8; DESIGN section 12.2)."""

import asyncio
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pytest

from service.db import Sessions
from tests.chaos.running import Forks, Installation, Process
from tests.chaos.sending import Acknowledged, Answer, Line, Mailbag, Sent
from tests.chaos.verify import Found, verify

AT_ONCE = 50
COPIES = 20


@dataclass
class Storm:
    """What a storm brought: the answers to each message, and how many of them nobody waited for."""

    answers: dict[str, list[Answer]] = field(default_factory=lambda: defaultdict(list))
    left: int = 0
    resent: int = 0

    def equal(self) -> bool:
        """Return whether all copies of each message got the same answer, to the byte."""
        return all(len({(answer.status, answer.body) for answer in some}) == 1 for some in self.answers.values())


def blow(processes: Sequence[Process], texts: Sequence[Sent], bag: Mailbag, *, leaving: int) -> Storm:
    """Send every text twenty times, in no order, over fifty connections. For some copies nobody waits."""
    copies = [text for text in texts for _ in range(COPIES)]
    bag.rng.shuffle(copies)
    leavers = set(bag.rng.sample(range(len(copies)), leaving))
    waiting = deque(enumerate(copies))
    storm = Storm()

    async def client(number: int) -> None:
        async with Line(processes[number % len(processes)].port) as line:
            while waiting:
                place, text = waiting.popleft()
                if place in leavers:
                    await line.send(text.request)
                    await line.hang_up()
                    storm.left += 1
                    continue
                answer = await line.ask(text.request)
                if answer.status == 503 and storm.resent < len(copies):
                    storm.resent += 1  # Twilio tries again, and so do we
                    waiting.append((-1, text))
                else:
                    storm.answers[text.sid].append(answer)

    async def all_at_once() -> None:
        await asyncio.gather(*(client(number) for number in range(AT_ONCE)))

    asyncio.run(all_at_once())
    return storm


def as_of_many(bag: Mailbag, count: int) -> list[Sent]:
    """Return texts of as many people; every third is a hidden caller, whom no contact holds together."""
    senders = bag.rng.sample(range(10**8), count)
    return [bag.text_from(None if n % 3 == 0 else f"+8550{sender:08d}") for n, sender in enumerate(senders)]


def storm_of_many(
    processes: Sequence[Process], installation: Installation, sessions: Sessions, seed: int, count: int
) -> tuple[Storm, Found]:
    bag = Mailbag(seed)
    texts = as_of_many(bag, count)
    for process in processes:
        process.started()
    storm = blow(processes, texts, bag, leaving=count * 2 // 5)
    for process in processes:
        process.stop()
    print(f"{count} x {COPIES}, {storm.left} not waited for, {storm.resent} sent once more")
    return storm, verify(sessions, installation.world.founding, Acknowledged(texts))


@pytest.fixture
def processes(forks: Forks, installation: Installation, sessions: Sessions) -> Iterator[list[Process]]:
    """One public process on SQLite, which has one writer; two on PostgreSQL, which race."""
    return [Process(forks, installation) for _ in range(1 if sessions.dialect == "sqlite" else 2)]


def check_storm(storm: Storm, found: Found, count: int) -> None:
    assert found.faults == []
    assert (found.tips, found.messages) == (count, count)
    assert storm.resent == 0, "the database is there all the time: nobody is told to try again"
    assert storm.equal()
    assert len(storm.answers) == count
    assert all(answer.taken for some in storm.answers.values() for answer in some)


def test_each_of_120_messages_sent_20_times_at_once_is_stored_once(
    processes: list[Process], installation: Installation, sessions: Sessions, seed: int
) -> None:
    storm, found = storm_of_many(processes, installation, sessions, seed, 120)

    check_storm(storm, found, 120)


@pytest.mark.chaos
def test_each_of_500_messages_sent_20_times_at_once_is_stored_once(
    processes: list[Process], installation: Installation, sessions: Sessions, seed: int
) -> None:
    storm, found = storm_of_many(processes, installation, sessions, seed, 500)

    check_storm(storm, found, 500)


def test_many_texts_of_one_number_at_once_are_one_tip_with_every_message(
    processes: list[Process], installation: Installation, sessions: Sessions, seed: int
) -> None:
    bag = Mailbag(seed)
    sender = bag.number()
    texts = [bag.text_from(sender) for _ in range(30)]
    for process in processes:
        process.started()

    storm = blow(processes, texts, bag, leaving=0)

    for process in processes:
        process.stop()
    print(f"{storm.resent} sent once more")
    found = verify(sessions, installation.world.founding, Acknowledged(texts))
    assert found.faults == []
    assert (found.tips, found.messages) == (1, 30)
    assert storm.equal()


def test_without_the_unique_constraint_the_storm_stores_messages_twice(
    forks: Forks, postgresql_installation: Installation, postgresql_sessions: Sessions, seed: int
) -> None:
    """The negative control: what decides is the constraint, not a look-up."""
    with postgresql_sessions.writing.begin() as connection:
        name = "uq_message_provider_kind_delivery"
        connection.exec_driver_sql(f"ALTER TABLE message DROP CONSTRAINT {name}")

    process = Process(forks, postgresql_installation)
    _, found = storm_of_many([process], postgresql_installation, postgresql_sessions, seed, 30)

    assert found.messages > 30
    assert found.doubled
