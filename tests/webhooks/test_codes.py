"""Codes are ready or they are not: nobody waits for one, addresses take turns, and a dead child stops no tip."""

import asyncio
from asyncio.subprocess import Process
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from service.errors import Busy
from service.vault import mailbox
from service.vault.mailbox import Cost, read_code
from webhooks import codes
from webhooks.codes import Codes, Turns, start_child

CHEAP = Cost(1, 8)
ORIGIN = "bamboo.example/log"
PEPPER = bytes(32)
CODE = "4071925583640210"


def a_child() -> Awaitable[Process]:
    return start_child(PEPPER, ORIGIN, CHEAP, CHEAP)


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


def run(work: Callable[[Codes], Awaitable[None]], **chosen: Any) -> None:
    """Run `work` over the codes of a process that has started, and stop them."""

    async def whole() -> None:
        kept = Codes(a_child, **({"rate": 1000.0, "pause": 0.01} | chosen))
        kept.start()
        try:
            await work(kept)
        finally:
            await kept.stop()

    asyncio.run(whole())


# --- the pool ---


def test_the_pool_fills_to_its_target_and_again_after_one_was_taken() -> None:
    async def work(kept: Codes) -> None:
        assert kept.take() is None  # nothing is derived for whoever asks
        await until(lambda: len(kept._ready) == 3)
        first = kept.take()
        assert first is not None
        assert read_code(first.code) == first.code
        assert first.prepared.address == mailbox.address(first.code, PEPPER, CHEAP)
        assert first.prepared.tag_key == mailbox.tag_key(first.code, ORIGIN, CHEAP)
        await until(lambda: len(kept._ready) == 3)
        rest = [kept.take() for _ in range(3)]
        assert len({given.code for given in [first, *rest] if given}) == 4  # no code is given twice

    run(work, target=3)


def test_a_process_without_a_pool_starts_no_child_until_a_code_is_typed() -> None:
    started = []

    async def counted() -> Process:
        started.append(1)
        return await a_child()

    async def work(kept: Codes) -> None:
        kept.launch = counted
        assert kept.take() is None
        await asyncio.sleep(0.05)
        assert started == []
        assert await kept.derive(CODE, b"a") == mailbox.address(CODE, PEPPER, CHEAP)
        assert started == [1]

    run(work)


@pytest.mark.parametrize("signal", ["kill", "stop"])
def test_a_child_that_dies_or_stops_changes_nothing_for_who_takes(signal: str) -> None:
    async def work(kept: Codes) -> None:
        await until(lambda: len(kept._ready) == 2)
        child = kept._child
        assert child is not None
        if signal == "kill":
            child.kill()
        else:
            child.send_signal(19)
        before = asyncio.get_running_loop().time()
        given = [kept.take() for _ in range(100)]
        assert asyncio.get_running_loop().time() - before < 1
        assert sum(one is not None for one in given) == 2
        if signal == "kill":
            await until(lambda: len(kept._ready) == 2)  # another one took its place

    run(work, target=2)


def test_a_child_that_cannot_be_started_is_tried_again_later() -> None:
    tries = []

    async def broken() -> Process:
        tries.append(1)
        if len(tries) < 3:
            raise OSError("no memory")
        return await a_child()

    async def work(kept: Codes) -> None:
        kept.launch = broken
        assert await kept.derive(CODE, b"a") == mailbox.address(CODE, PEPPER, CHEAP)
        assert len(tries) == 3

    run(work)


def test_who_waits_for_a_child_that_dies_is_told_to_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(kept: Codes) -> None:
        await kept.derive(CODE, b"a")
        child = kept._child
        assert child is not None
        child.send_signal(19)
        asked = asyncio.ensure_future(kept.derive(CODE, b"a"))
        await until(lambda: kept._asked)
        child.kill()
        with pytest.raises(Busy):
            await asked
        assert await kept.derive(CODE, b"a") == mailbox.address(CODE, PEPPER, CHEAP)
        monkeypatch.setattr(codes, "PATIENCE", 0.05)
        kept._child.send_signal(19)  # type: ignore[union-attr]
        with pytest.raises(Busy):
            await kept.derive(CODE, b"a")
        assert kept._running == 0

    run(work)


def test_the_child_inherits_no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOTLINE_CODE_PEPPER_FILE", "/nowhere")

    async def work(kept: Codes) -> None:
        await kept.derive(CODE, b"a")
        assert kept._child is not None
        with open(f"/proc/{kept._child.pid}/environ", "rb") as file:
            assert b"HOTLINE" not in file.read()
        with open(f"/proc/{kept._child.pid}/cmdline", "rb") as file:
            assert PEPPER.hex().encode() not in file.read()

    run(work)


# --- turns ---


def served(asked: list[tuple[bytes, str]], *, rate: float, slots: int = 2) -> list[tuple[float, str]]:
    """Return when, in virtual seconds, each code was derived."""
    loop = asyncio.new_event_loop()
    now, done = 0.0, []
    loop.time = lambda: now  # type: ignore[method-assign]
    kept = Codes(a_child, rate=rate, slots=slots)

    async def at_once(code: str) -> Any:
        done.append((round(loop.time(), 6), code))
        return mailbox.Address(b"", b"")

    kept._ask = at_once  # type: ignore[method-assign]
    try:
        waiting = [loop.create_task(kept.derive(code, bucket)) for bucket, code in asked]
        for _ in range(10_000):
            loop.call_soon(loop.stop)
            loop.run_forever()
            if all(task.done() for task in waiting):
                break
            now += 0.01
    finally:
        loop.close()
    return done


def test_the_whole_site_derives_five_a_second_whoever_asks() -> None:
    done = served([(b"%d" % n, str(n)) for n in range(25)], rate=5)
    for start, _ in done:
        assert sum(start <= at < start + 1 for at, _ in done) <= 5
    assert len(done) == 25
    assert done[-1][0] > 4  # the control: without the rate they are all done at once
    assert served([(b"a", str(n)) for n in range(25)], rate=1e9, slots=25)[-1][0] < 1


def test_an_address_that_asks_often_waits_behind_itself_alone() -> None:
    done = served([(b"guesser", f"g{n}") for n in range(40)] + [(b"child", "the child's")], rate=5)
    assert [code for _, code in done].index("the child's") <= 3
    assert len(done) == 41  # and nobody is locked out


def test_when_too_many_wait_the_longest_queue_gives_way() -> None:
    async def work() -> None:
        turns, loop = Turns(most=3), asyncio.get_running_loop()
        waiting: list[asyncio.Future[None]] = [loop.create_future() for _ in range(4)]
        for bucket, turn in zip((b"a", b"a", b"a", b"b"), waiting, strict=True):
            turns.join(bucket, turn)
        assert isinstance(waiting[2].exception(), Busy)
        assert [turns.next() for _ in range(4)] == [waiting[0], waiting[3], waiting[1], None]
        alike, late = [loop.create_future() for _ in range(3)], loop.create_future()
        for bucket, turn in zip((b"a", b"b", b"c", b"d"), [*alike, late], strict=True):
            turns.join(bucket, turn)
        assert isinstance(late.exception(), Busy)  # who has waited longest is not sent away for a newcomer
        assert [turns.next() for _ in range(3)] == alike
        gone, stays = [loop.create_future() for _ in range(3)], loop.create_future()
        for turn in gone:
            turns.join(b"a", turn)
            turn.cancel()
        turns.join(b"b", stays)
        assert not stays.done()  # who has gone away holds no place
        assert turns.next() is stays

    asyncio.run(work())


def test_an_address_is_a_name_that_dies_with_the_process() -> None:
    def name(kept: Codes, host: str) -> bytes:
        return kept.bucket({"client": (host, 1)})

    first, second = Codes(a_child), Codes(a_child)
    assert name(first, "192.0.2.1") == name(first, "192.0.2.1") != name(first, "192.0.2.2")
    assert name(first, "192.0.2.1") != name(second, "192.0.2.1")
    assert name(first, "2001:db8:1:2::1") == name(first, "2001:db8:1:2::ffff") != name(first, "2001:db8:1:3::1")
    assert b"192" not in name(first, "192.0.2.1")
