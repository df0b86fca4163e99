"""kill -9 of the public process at random moments under eight clients (threats.md R1; DESIGN section 12.1)."""

import asyncio
from collections import deque
from dataclasses import dataclass, field

import pytest

from service.db import Sessions
from tests.chaos.running import Forks, Installation, Process
from tests.chaos.sending import Acknowledged, Line, Mailbag, Sent, Unanswered, a_request
from tests.chaos.verify import Found, verify

CLIENTS = 8
LONGEST_LIFE = 0.5  # seconds under load before a kill


@dataclass
class Crowd:
    """Eight clients that send until nobody answers. Like Twilio, they send what was not answered once more."""

    process: Process
    bag: Mailbag
    acknowledged: Acknowledged = field(default_factory=Acknowledged)
    unanswered: deque[Sent] = field(default_factory=deque)
    refused: int = 0
    repeated: int = 0

    async def send_until_killed(self) -> None:
        """Send until the process is killed, at a moment that nobody knows beforehand."""
        life = self.bag.rng.uniform(0, LONGEST_LIFE)
        clients = [asyncio.create_task(self._client()) for _ in range(CLIENTS)]
        await asyncio.sleep(life)
        await asyncio.to_thread(self.process.kill)
        await asyncio.gather(*clients)

    async def send_the_rest(self) -> None:
        """Send what nobody has answered yet. Fails if something is refused again and again."""
        async with Line(self.process.port) as line:
            for _ in range(10 * len(self.unanswered)):
                if self.unanswered:
                    await self._send(line, self.unanswered.popleft())
        assert not self.unanswered, f"{len(self.unanswered)} are never taken"

    async def _client(self) -> None:
        async with Line(self.process.port) as line:
            while await self._one(line):
                pass

    async def _one(self, line: Line) -> bool:
        if self.unanswered:
            return await self._send(line, self.unanswered.popleft())
        which = self.bag.rng.random()
        if which < 0.1 and self.acknowledged.sent:
            return await self._repeat(line, self.bag.rng.choice(self.acknowledged.sent))
        if which < 0.25:
            try:
                page = await line.ask(a_request("GET", "/report"))
            except Unanswered:
                return False
            return await self._send(line, self.bag.form(page.text))
        return await self._send(line, self.bag.text())

    async def _send(self, line: Line, sent: Sent) -> bool:
        try:
            answer = await line.ask(sent.request)
        except Unanswered:
            self.unanswered.append(sent)
            return False
        if sent.thanked(answer):
            self.acknowledged.add(sent)
        else:
            self.refused += 1
            self.unanswered.append(sent)
        return True

    async def _repeat(self, line: Line, sent: Sent) -> bool:
        """Send once more what was thanked for: it is thanked for again, and `verify` finds it once."""
        try:
            answer = await line.ask(sent.request)
        except Unanswered:
            return False
        assert sent.thanked(answer)
        self.repeated += 1
        return True


def kill_again_and_again(
    forks: Forks, installation: Installation, sessions: Sessions, seed: int, *, rounds: int, staged: str = ""
) -> list[Found]:
    """Kill the public process `rounds` times and verify after each; return what was found, the last one at rest."""
    process = Process(forks, installation, staged=staged)
    crowd = Crowd(process, Mailbag(seed))
    found = []
    for _ in range(rounds):
        process.started()
        asyncio.run(crowd.send_until_killed())
        crowd.bag.change_numbers()
        if crowd.bag.rng.random() < 0.3:
            process.start()  # and killed while it starts, perhaps before it has opened the database
            asyncio.run(asyncio.sleep(crowd.bag.rng.uniform(0, 0.2)))
            process.kill()
        if crowd.bag.rng.random() < 0.5:
            sessions.close()  # the last connection of another process, or none, sees the kill
        found.append(verify(sessions, installation.world.founding, crowd.acknowledged))
        if found[-1].faults:
            return found
    process.started()
    asyncio.run(crowd.send_the_rest())
    process.stop()
    found.append(verify(sessions, installation.world.founding, crowd.acknowledged))
    assert found[-1].messages == len(crowd.acknowledged), "what was sent is stored, and nothing else"
    assert crowd.refused == 0, "the database is there all the time: nobody is told to try again"
    assert found[-1].walled
    assert found[-1].messages > found[-1].tips, "some have written more than once"
    print(f"{len(crowd.acknowledged)} thanked for, {crowd.repeated} repeated, {crowd.refused} refused, {rounds} kills")
    return found


def faults(found: list[Found]) -> list[str]:
    return [fault for one in found for fault in one.faults]


ROUNDS = {"sqlite": 25, "postgresql": 5}


def test_no_acknowledged_tip_is_lost_or_doubled_by_kills(
    forks: Forks, installation: Installation, sessions: Sessions, seed: int
) -> None:
    found = kill_again_and_again(forks, installation, sessions, seed, rounds=ROUNDS[sessions.dialect])

    assert faults(found) == []


@pytest.mark.chaos
def test_no_acknowledged_tip_is_lost_or_doubled_by_a_hundred_kills(
    forks: Forks, installation: Installation, sessions: Sessions, seed: int
) -> None:
    found = kill_again_and_again(forks, installation, sessions, seed, rounds=100)

    assert faults(found) == []


def test_an_app_that_answers_before_the_commit_loses_what_it_thanked_for(
    forks: Forks, installation: Installation, sessions: Sessions, seed: int
) -> None:
    """The negative control: the same kills and the same check, and the check reports it."""
    found = kill_again_and_again(forks, installation, sessions, seed, rounds=8, staged="answers_first")

    assert found[-1].lost, "eight kills under load, and nothing was in flight?"
