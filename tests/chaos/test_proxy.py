"""The shipped proxy, run as it ships: who stalls shuts nobody out (threats.md T-29, R7, R9; ASVS 4.1.3, 12.1.1).

The proxy is Debian's package. Without it on this machine the long forms fetch it, and the short ones are skipped.
"""

import asyncio
import html
import re
import resource
import ssl
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from service.db import Sessions
from tests.chaos import proxying
from tests.chaos.proxying import (
    CARRIER,
    HALF_A_HEADER,
    HELPLINE,
    Binary,
    Outside,
    Proxy,
    Stalling,
    StandIn,
    ask_outside,
    at_once,
    get,
    post_head,
    running_proxy,
    timed,
    trusting,
)
from tests.chaos.running import HOST, ROOT, Forks, Installation, Process, free_port, wait_for
from tests.chaos.sending import Acknowledged, Answer, Line, Mailbag, Unanswered, ask
from tests.chaos.verify import verify
from tests.webhooks.builders import SMS

HEADER_SECONDS = 5.0
A_REFUSAL = 0.25  # seconds
P99 = 1.5
CANARY = "canary-c41f7d02"


@pytest.fixture
def binary(request: pytest.FixtureRequest) -> Binary:
    """The proxy. The long forms fetch it if they must."""
    found = proxying.fetch_proxy() if request.node.get_closest_marker("chaos") else proxying.find_proxy()
    if found is None:
        pytest.skip("haproxy is not installed; ./hotline test -m chaos tests/chaos/test_proxy.py fetches it once")
    return found


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the proxy reads."""
    return proxying.write_files(tmp_path_factory.mktemp("proxy"))


@pytest.fixture
def app() -> Iterator[StandIn]:
    """A stand-in for the app."""
    with StandIn().running() as stand_in:
        yield stand_in


@pytest.fixture
def proxy(binary: Binary, files: Path, app: StandIn) -> Iterator[Proxy]:
    """The proxy before the stand-in."""
    with running_proxy(binary, files, app.port) as started:
        yield started


def everywhere(count: int) -> list[str]:
    """Return as many addresses, none of a mobile carrier, each with fewer connections than one may have."""
    return [f"127.0.{1 + which // 200 % 40}.{1 + which % 200}" for which in range(count)]


# --- those who stall -------------------------------------------------------------------------------------


@dataclass
class Honest:
    """What became of the tips of one who sends a tip a second, by text and by form in turn."""

    sent: int
    seconds: list[float]
    acknowledged: Acknowledged

    @property
    def slowest(self) -> float:
        """The slowest of the answers, which at sixty is the 99th percentile."""
        return max(self.seconds, default=float("inf"))


async def tip_a_second(line: Callable[[], Line], page: str, bag: Mailbag, count: int) -> Honest:
    """Send a tip each second, each on a connection of its own, and wait for the answers."""
    honest = Honest(count, [], Acknowledged())

    async def one(which: int) -> None:
        tip = bag.form(page) if which % 2 else bag.text()
        began = time.monotonic()
        with suppress(Unanswered):
            async with line() as own:
                if tip.thanked(await own.ask(tip.request)):
                    honest.acknowledged.add(tip)
                    honest.seconds.append(time.monotonic() - began)

    async with asyncio.TaskGroup() as tips:
        for which in range(count):
            tips.create_task(one(which))
            await asyncio.sleep(1)
    return honest


def stallers(stalling: Stalling, line: Callable[[str], Outside], *, half: int, slow: int = 0) -> list[Awaitable[None]]:
    """Return what those do who stall, from addresses that each have fewer connections than one may have."""
    lines = [line(address) for address in everywhere(half + slow)]
    return [*map(stalling.half_a_header, lines[:half]), *map(stalling.slow_body, lines[half:])]


def besiege(stalls: Iterable[Awaitable[None]], line: Callable[[], Line], page: str, seed: int, tips: int) -> Honest:
    """Let some stall, and one send `tips` tips meanwhile."""

    async def siege() -> Honest:
        async with at_once(*stalls):
            await asyncio.sleep(2)  # let them begin: an honest start proves nothing
            return await tip_a_second(line, page, Mailbag(seed), tips)

    honest = asyncio.run(siege())
    print(f"{len(honest.acknowledged)} of {honest.sent} tips, slowest {honest.slowest:.3f} s")
    return honest


def test_300_half_sent_requests_are_hung_up_on_where_the_app_alone_lets_them_stand(
    binary: Binary, files: Path, forks: Forks, sqlite_installation: Installation, sqlite_sessions: Sessions, seed: int
) -> None:
    """The negative control runs beside it: 300 more, straight to the app."""
    app, there, here = Process(forks, sqlite_installation).started(), Stalling(), Stalling()
    with running_proxy(binary, files, app.port) as proxy:
        stalls = [
            *stallers(there, lambda address: Outside(proxy.https, address), half=300),
            *stallers(here, lambda address: Outside(app.port, address, tls=None), half=300),
        ]
        page = ask_outside(proxy, get("/report?lang=en")).text
        honest = besiege(stalls, lambda: Outside(proxy.https), page, seed, tips=5)
    app.stop()

    assert len(honest.acknowledged) == honest.sent
    assert honest.slowest < P99
    assert len(there.open_for) >= 300
    assert max(there.open_for) < HEADER_SECONDS + 2
    assert (here.begun, here.standing) == (300, 300)
    assert verify(sqlite_sessions, sqlite_installation.world.founding, honest.acknowledged).faults == []


@pytest.mark.chaos
@pytest.mark.parametrize(("half", "slow"), [(300, 100), (1000, 200)])
def test_of_one_honest_tip_a_second_60_of_60_arrive_while_others_stall(
    binary: Binary,
    files: Path,
    forks: Forks,
    sqlite_installation: Installation,
    sqlite_sessions: Sessions,
    seed: int,
    half: int,
    slow: int,
) -> None:
    app, stalling = Process(forks, sqlite_installation).started(), Stalling()
    with running_proxy(binary, files, app.port) as proxy:
        page, before = ask_outside(proxy, get("/report?lang=en")).text, proxy.memory
        stalls = stallers(stalling, lambda address: Outside(proxy.https, address), half=half, slow=slow)
        honest = besiege(stalls, lambda: Outside(proxy.https), page, seed, tips=60)
        grown = proxy.memory - before
    app.stop()
    ended = sorted(stalling.open_for)
    print(
        f"{len(ended)} stalled connections ended after {ended[0]:.1f} to {ended[-1]:.1f} s; {grown / 1e6:.0f} MB more"
    )

    assert len(honest.acknowledged) == honest.sent
    assert honest.slowest < P99
    assert ended[-1] < 2 * HEADER_SECONDS + 3  # a body has ten seconds for its first 5,000 bytes
    assert grown < 300e6  # bytes; compose.yaml gives it two gigabytes
    assert verify(sqlite_sessions, sqlite_installation.world.founding, honest.acknowledged).faults == []


def without_the_proxy(port: int, seed: int, *, half: int) -> Honest:
    """Let the same people stall the app itself, which speaks no TLS."""
    page = ask(port, "GET", "/report?lang=en").text
    stalls = stallers(Stalling(), lambda address: Outside(port, address, tls=None), half=half)
    return besiege(stalls, lambda: Outside(port, tls=None), page, seed, tips=5)


@pytest.mark.chaos
def test_without_the_proxy_a_thousand_half_sent_requests_shut_everybody_out(
    forks: Forks, sqlite_installation: Installation, seed: int
) -> None:
    """The negative control: they take all the files that a process may open where nobody raised the limit."""
    app = Process(forks, sqlite_installation).started()
    resource.prlimit(app.pid, resource.RLIMIT_NOFILE, (1024, 1024))

    honest = without_the_proxy(app.port, seed, half=1010)

    app.kill()
    assert len(honest.acknowledged) == 0


LIMITED = "import uvicorn, functools as f; uvicorn.run = f.partial(uvicorn.run, limit_concurrency=100); \
from commands import serve; serve.main(['public', '--port', '{port}'])"


@pytest.mark.chaos
def test_without_the_proxy_a_limit_of_the_server_shuts_everybody_out(
    sqlite_installation: Installation, seed: int
) -> None:
    """The negative control of threats.md T-29: uvicorn's own --limit-concurrency counts those who stall."""
    port = free_port()
    with (sqlite_installation.folder / "limited.log").open("wb") as log:
        app = subprocess.Popen(
            [sys.executable, "-c", LIMITED.format(port=port)],
            cwd=ROOT,
            env=dict(sqlite_installation.environments["public"]),
            stdout=log,
            stderr=log,
        )
        try:
            wait_for(lambda: is_ready(port), "the limited app to be ready")
            honest = without_the_proxy(port, seed, half=300)
        finally:
            app.terminate()
            app.wait(20)

    assert len(honest.acknowledged) == 0


def is_ready(port: int) -> bool:
    try:
        return ask(port, "GET", "/health/ready").status == 200
    except OSError:
        return False


async def send_slowly(proxy: Proxy, path: str, *, length: int, piece: int) -> tuple[int, float]:
    """Return the status for a body that is sent in pieces, two a second, and the seconds after the head it came in."""
    async with Outside(proxy.https) as line:
        began = time.monotonic()
        await line.send(post_head(path, length))

        async def feed() -> None:
            with suppress(Unanswered):
                for sent in range(0, length, piece):
                    await line.send(b"a" * min(piece, length - sent))
                    await asyncio.sleep(0.5)

        feeding = asyncio.create_task(feed())
        answer = await line.read()
        feeding.cancel()
        return answer.status, time.monotonic() - began


@pytest.mark.chaos
def test_a_body_has_500_bytes_a_second_and_a_minute_and_a_webhook_ten_seconds(proxy: Proxy) -> None:
    async def all_at_once() -> tuple[tuple[int, float], ...]:
        return await asyncio.gather(
            send_slowly(proxy, "/report", length=20_000, piece=200),
            send_slowly(proxy, "/report", length=20_000, piece=350),
            send_slowly(proxy, "/report", length=180_000, piece=350),
            send_slowly(proxy, "/report", length=180_000, piece=2000),
            send_slowly(proxy, SMS, length=30_000, piece=1000),
        )

    too_slow, slow, too_long, steady, webhook = asyncio.run(all_at_once())
    print(too_slow, slow, too_long, steady, webhook)

    assert too_slow[0] == 408
    assert too_slow[1] == pytest.approx(10, abs=1)
    assert slow[0] == 200
    assert too_long[0] == 408
    assert too_long[1] <= 61
    assert steady[0] == 200
    assert webhook[0] == 408
    assert webhook[1] == pytest.approx(10, abs=1)


# --- what one request may be -----------------------------------------------------------------------------


def chunked(path: str, body: bytes, piece: int = 10_000) -> bytes:
    """Return a request that does not say how long it is."""
    head = (
        f"POST {path} HTTP/1.1\r\ncontent-type: application/x-www-form-urlencoded\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    pieces = [body[start : start + piece] for start in range(0, len(body), piece)]
    return head.encode() + b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in pieces) + b"0\r\n\r\n"


def a_body(length: int) -> bytes:
    """Return a body with words that must not stay anywhere."""
    return (CANARY.encode() * (length // len(CANARY) + 1))[:length]


def test_the_largest_form_arrives_whole_and_no_byte_more_and_none_is_written_to_a_disk(
    proxy: Proxy, app: StandIn, files: Path
) -> None:
    """The proxy may write not one byte to any file here (RLIMIT_FSIZE), and what it holds open are no files."""
    largest, larger = a_body(256 * 1024), a_body(300_000)
    for request in (post_head("/report", len(largest)) + largest, chunked("/report", largest)):
        assert ask_outside(proxy, request).status == 200
        assert app.arrived[-1].body == largest

    refusals = [
        ask_outside(proxy, post_head("/report", len(larger)) + larger),
        ask_outside(proxy, chunked("/report", larger)),
        ask_outside(proxy, post_head("/safe", len(larger)) + larger),
        ask_outside(proxy, post_head(SMS, 64 * 1024 + 1) + a_body(64 * 1024 + 1)),
    ]

    assert [answer.status for answer in refusals] == [413, 413, 413, 403]
    assert len(app.arrived) == 2 + arrived_at_start(app)
    assert "Not sent. This is too long." in refusals[0].text
    assert HELPLINE in refusals[0].text
    assert HELPLINE not in refusals[2].text
    assert refusals[3].body == b""
    assert opened_files(proxy.pid) == []
    left = [path for path in files.rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()]
    assert left == []


def arrived_at_start(app: StandIn) -> int:
    return sum(one.target == "/" for one in app.arrived)


def opened_files(pid: int) -> list[str]:
    """Return the ordinary files that a process holds open."""
    found = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            if link.resolve().is_file():
                found.append(str(link.resolve()))
    return found


def test_what_must_not_write_cannot_write() -> None:
    """The negative control of the limit that every proxy here runs under: with it a single byte is too much."""
    write = [sys.executable, "-c", "import sys, tempfile; tempfile.TemporaryFile('w', buffering=1).write('a\\n')"]

    assert subprocess.run(write, check=False).returncode == 0
    assert subprocess.run(
        write, preexec_fn=proxying.no_file_may_grow, stderr=subprocess.DEVNULL, check=False
    ).returncode


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (get("/report?" + "a" * 2040), 200),
        (get("/report?" + "a" * 2041), 400),
        (get("/", *(f"x-{n}: {'b' * 1000}" for n in range(15))), 200),
        (get("/", *(f"x-{n}: {'b' * 1000}" for n in range(17))), 400),
        (get("/", *(f"x-{n}: b" for n in range(120))), 400),
        (get("/health/ready"), 404),
        (get("/%68ealth/ready"), 404),
        (b"GET / HTTP/1.1\r\nbroken header\r\n\r\n", 400),
    ],
    ids=["target", "long target", "headers", "large headers", "many headers", "health", "health, disguised", "broken"],
)
def test_targets_and_headers_are_bounded_and_health_is_nobodys_business(
    proxy: Proxy, request_: bytes, status: int
) -> None:
    assert ask_outside(proxy, request_).status == status


def test_nothing_that_a_client_says_of_itself_reaches_the_app(proxy: Proxy, app: StandIn) -> None:
    forged = ("X-Forwarded-For: 198.51.100.7", "X-Forwarded-Host: evil.example", "X-Forwarded-Proto: http")
    more = ("Forwarded: for=198.51.100.7", "X-Real-IP: 198.51.100.7", "Via: 1.1 evil")

    ask_outside(proxy, get("/report?lang=en", *forged, *more, "X-Twilio-Signature: abc="))

    assert app.arrived[-1].target == "/report?lang=en"
    assert app.arrived[-1].headers == [("x-twilio-signature", "abc="), ("host", "bamboo")]


def test_a_forged_address_makes_no_difference_to_a_signed_text(
    binary: Binary, files: Path, forks: Forks, sqlite_installation: Installation, seed: int
) -> None:
    """The signature is checked against the configured address, whatever headers say (ASVS 4.1.3)."""
    app, bag = Process(forks, sqlite_installation).started(), Mailbag(seed)
    with running_proxy(binary, files, app.port) as proxy:
        text = bag.text().request
        forged = text.replace(b"\r\n", b"\r\nX-Forwarded-Host: evil.example\r\nX-Forwarded-Proto: http\r\n", 1)
        assert ask_outside(proxy, forged).status == 200
        assert ask_outside(proxy, forged.replace(b"Body=", b"Body=x", 1)).status == 403
        answer = ask_outside(proxy, get("/report"))
    app.stop()
    names = [name for name, _ in answer.headers]
    assert "server" not in names
    assert names.count("content-security-policy") == 1
    assert answer.header("strict-transport-security") == "max-age=31536000; includeSubDomains"


def test_connections_to_the_app_are_kept(proxy: Proxy, app: StandIn) -> None:
    async def ten() -> None:
        async with Outside(proxy.https) as line:
            for _ in range(10):
                await line.ask(get("/report"))

    asyncio.run(ten())

    assert len({one.connection for one in app.arrived[-10:]}) <= 2


# --- how many at once ------------------------------------------------------------------------------------


@contextmanager
def stalled_bodies(proxy: Proxy, address: str, count: int) -> Iterator[Callable[..., Any]]:
    """Let `count` forms from one address be under way; yield what runs a coroutine meanwhile."""
    with asyncio.Runner() as runner:
        lines = [Outside(proxy.https, address) for _ in range(count)]

        async def begin() -> None:
            for line in lines:
                await line.send(post_head("/report", 1000))
            await asyncio.sleep(0.1)

        async def end() -> None:
            for line in lines:
                await line.hang_up()

        runner.run(begin())
        try:
            yield runner.run
        finally:
            runner.run(end())


async def ask_from(proxy: Proxy, address: str, request: bytes) -> int:
    async with Outside(proxy.https, address) as line:
        return (await line.ask(request)).status


async def ask_many(proxy: Proxy, address: str, request: bytes, count: int) -> list[int]:
    return await asyncio.gather(*(ask_from(proxy, address, request) for _ in range(count)))


def test_an_address_has_20_requests_at_once_and_neither_carriers_nor_webhooks_are_held_to_it(proxy: Proxy) -> None:
    text = post_head(SMS, 6) + b"Body=a"
    with stalled_bodies(proxy, "127.0.1.1", 19) as run:
        assert run(ask_from(proxy, "127.0.1.1", get("/report"))) == 200
    with stalled_bodies(proxy, "127.0.1.1", 20) as run:
        assert run(ask_from(proxy, "127.0.1.1", get("/report"))) == 503
        assert run(ask_from(proxy, "127.0.1.1", get("/report", "X-Forwarded-For: 127.0.1.9"))) == 503
        assert run(ask_from(proxy, "127.0.1.2", get("/report"))) == 200
        assert run(ask_many(proxy, "127.0.1.1", text, 60)) == [200] * 60
    with stalled_bodies(proxy, CARRIER + "7", 150) as run:
        assert run(ask_from(proxy, CARRIER + "7", get("/report"))) == 200
    with stalled_bodies(proxy, CARRIER + "7", 200) as run:
        assert run(ask_from(proxy, CARRIER + "7", get("/report"))) == 503


def connect(proxy: Proxy, address: str, count: int) -> int:
    """Make so many connections from one address, stall, and hang up. Return how many there were at once."""

    async def stall() -> int:
        lines = [Outside(proxy.https, address) for _ in range(count)]
        stood = 0
        for line in lines:
            with suppress(Unanswered):
                await line.send(HALF_A_HEADER)
                stood += 1
        for line in lines:
            await line.hang_up()
        return stood

    return asyncio.run(stall())


def test_an_address_has_400_connections_and_20_once_it_stalled(proxy: Proxy) -> None:
    assert connect(proxy, "127.0.1.1", 420) == 400
    assert connect(proxy, "127.0.1.1", 40) == 20
    assert connect(proxy, "127.0.1.2", 40) == 40
    assert connect(proxy, CARRIER + "7", 420) == 420
    assert connect(proxy, CARRIER + "7", 220) == 200


def test_an_address_that_sent_a_signed_webhook_has_no_limit_of_connections(proxy: Proxy, app: StandIn) -> None:
    text = post_head(SMS, 6) + b"Body=a"
    app.status = 403
    assert ask_outside(proxy, text, "127.0.1.1").status == 403
    assert connect(proxy, "127.0.1.1", 420) == 400
    app.status = 200
    assert ask_outside(proxy, get(SMS), "127.0.1.2").status == 200
    assert connect(proxy, "127.0.1.2", 420) == 400
    assert ask_outside(proxy, text, "127.0.1.3").status == 200
    assert connect(proxy, "127.0.1.3", 420) == 420
    assert connect(proxy, "127.0.1.3", 420) == 420


# --- no room, and no app ---------------------------------------------------------------------------------


def is_the_overload_page(answer: Answer) -> bool:
    page = html.unescape(answer.text)
    return (
        answer.status == 503
        and (answer.header("retry-after") or "").isdigit()
        and "Many people are here now." in page
        and HELPLINE in page
        and answer.header("cache-control") == "no-store"
    )


def is_the_neutral_page(answer: Answer) -> bool:
    page = html.unescape(answer.text)
    said = "it has not arrived" in page and not re.search(r"[0-9]{3}|child|call|help", re.sub(r"<[^>]+>", "", page))
    return answer.status == 503 and (answer.header("retry-after") or "").isdigit() and said and "tel:" not in page


def test_when_pages_have_no_room_the_refusal_is_quick_and_webhooks_and_the_neutral_form_go_on(
    proxy: Proxy, app: StandIn
) -> None:
    app.silent = lambda target: target.startswith("/report")
    text = post_head(SMS, 6) + b"Body=a"

    async def measured(address: str) -> tuple[Answer, float]:
        async with Outside(proxy.https, address) as line:
            await line.ask(get("/static/public.css"))
            began = time.monotonic()
            return await line.ask(get("/report")), time.monotonic() - began

    async def crowd() -> tuple[Answer, float, list[int]]:
        lines = [Outside(proxy.https, address) for address in everywhere(100)]
        for line in lines:
            await line.send(get("/report"))
        while app.waiting < 100:
            await asyncio.sleep(0.01)
        refused, seconds = await measured("127.0.45.1")
        neutral = asyncio.gather(*(ask_from(proxy, address, get("/safe")) for address in everywhere(30)))
        others = [*await ask_many(proxy, HOST, text, 100), *await neutral]
        for line in lines:
            await line.hang_up()
        return refused, seconds, others

    refused, seconds, others = asyncio.run(crowd())

    print(f"refused after {seconds:.3f} s")
    assert is_the_overload_page(refused)
    assert seconds < A_REFUSAL
    assert others == [200] * 130


def test_while_the_app_is_stopped_everybody_hears_it_at_once_and_the_neutral_pages_stay_neutral(
    binary: Binary, files: Path, forks: Forks, sqlite_installation: Installation, seed: int
) -> None:
    app, text = Process(forks, sqlite_installation).started(), Mailbag(seed).text()
    with running_proxy(binary, files, app.port) as proxy:
        app.stop()
        slowest = 0.0
        for _ in range(2):  # before the proxy has found out by itself, and after
            report, took = timed(proxy, get("/report"))
            assert is_the_overload_page(report)
            for path in ("/safe", "/return", "/p/abc", "/%73afe"):
                neutral, other = timed(proxy, get(path))
                assert is_the_neutral_page(neutral)
                took = max(took, other)
            webhook, other = timed(proxy, text.request)
            assert (webhook.status, webhook.body) == (503, b"")
            assert (webhook.header("retry-after") or "").isdigit()
            slowest = max(slowest, took, other)
            assert ask_outside(proxy, get("/static/public.css")).status == 200
            wait_for(lambda: any("has no server available" in line for line in proxy.said), "the proxy to find out")
        print(f"slowest refusal {slowest * 1000:.1f} ms")
        assert slowest < A_REFUSAL
        assert not is_the_neutral_page(report)
        app.start()
        wait_for(lambda: text.thanked(ask_outside(proxy, text.request)), "the app to be found again", seconds=10)
    app.stop()


# --- TLS, the onion -------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
def test_tls_before_1_2_is_refused_and_plain_http_only_leads_to_https(proxy: Proxy) -> None:
    def speak(version: ssl.TLSVersion) -> Answer:
        context = trusting()
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version = context.maximum_version = version

        async def once() -> Answer:
            async with Outside(proxy.https, tls=context) as line:
                return await line.ask(get("/"))

        return asyncio.run(once())

    assert speak(ssl.TLSVersion.TLSv1_2).status == 200
    assert speak(ssl.TLSVersion.TLSv1_3).status == 200
    with pytest.raises(Unanswered):
        speak(ssl.TLSVersion.TLSv1_1)
    plain = ask(proxy.http, "GET", "/report?lang=en")
    assert (plain.status, plain.header("location")) == (301, "https://bamboo.example/report?lang=en")
    assert ask(proxy.http, "POST", "/report", body=b"what=a").status == 400


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"  # RFC 9113 section 3.4


def test_http_2_is_neither_offered_nor_understood(proxy: Proxy) -> None:
    async def offer() -> tuple[str | None, int]:
        async with Outside(proxy.https, tls=trusting("h2", "http/1.1")) as line:
            assert (await line.ask(get("/"))).status == 200
            chosen = line.protocol
        async with Outside(proxy.https) as line:
            return chosen, (await line.ask(PREFACE)).status

    assert asyncio.run(offer()) == ("http/1.1", 400)


# --- each rule is what holds -----------------------------------------------------------------------------


def hears_forged_headers(proxy: Proxy, app: StandIn) -> bool:
    ask_outside(proxy, get("/report", "X-Forwarded-For: 198.51.100.7"))
    return any(name == "x-forwarded-for" for name, _ in app.arrived[-1].headers)


def hears_the_clients_host(proxy: Proxy, app: StandIn) -> bool:
    ask_outside(proxy, get("/report"))
    return ("host", "bamboo") not in app.arrived[-1].headers


def takes_a_21st_request(proxy: Proxy, _app: StandIn) -> bool:
    with stalled_bodies(proxy, "127.0.1.1", 20) as run:
        return bool(run(ask_from(proxy, "127.0.1.1", get("/report"))) == 200)


def takes_a_larger_form(proxy: Proxy, _app: StandIn) -> bool:
    return ask_outside(proxy, post_head("/report", 270_000) + a_body(270_000)).status == 200


def takes_a_larger_webhook(proxy: Proxy, _app: StandIn) -> bool:
    return ask_outside(proxy, post_head(SMS, 70_000) + a_body(70_000)).status == 200


def tells_its_health(proxy: Proxy, _app: StandIn) -> bool:
    return ask_outside(proxy, get("/%68ealth/ready")).status == 200


def speaks_http_2(proxy: Proxy, _app: StandIn) -> bool:
    async def begin() -> bool:
        async with Outside(proxy.https) as line:
            await line.send(PREFACE)
            return not (await line.first()).startswith(b"HTTP/1.1 400")

    return asyncio.run(begin())


def troubles_the_app_with_slow_bodies(proxy: Proxy, app: StandIn) -> bool:
    before = app.begun

    async def stall() -> bool:
        async with Outside(proxy.https) as line:
            await line.send(post_head("/report", 10_000) + b"a" * 6000)
            assert await ask_from(proxy, HOST, get("/report")) == 200
            return app.begun > before + 1

    return asyncio.run(stall())


def takes_asking_for_stalling(proxy: Proxy, app: StandIn) -> bool:
    app.status = 403  # so that nobody here sent a signed webhook
    for request in (get("/report"), get("/static/public.css"), post_head(SMS, 6) + b"Body=a"):
        for _ in range(3):
            asyncio.run(ask_many(proxy, "127.0.1.1", request, 15))
    app.status = 200
    return connect(proxy, "127.0.1.1", 40) == 20


WEAKENED: dict[Callable[[Proxy, StandIn], bool], tuple[str, str]] = {
    takes_asking_for_stalling: ("    http-request sc-inc-gpc0(0) if { http_first_req }\n", ""),
    hears_forged_headers: ("    http-request del-header x-forwarded -m beg\n", ""),
    hears_the_clients_host: ("    http-request set-header host bamboo\n", ""),
    takes_a_21st_request: ("sc1_conn_cur gt 20\n", "sc1_conn_cur gt 21\n"),
    takes_a_larger_form: ("gt 262144", "gt 275000"),
    takes_a_larger_webhook: ("gt 65536", "gt 75000"),
    tells_its_health: (
        "    http-request set-var(txn.path) path,url_dec\n",
        "    http-request set-var(txn.path) path\n",
    ),
    speaks_http_2: ("    option disable-h2-upgrade\n", ""),
    troubles_the_app_with_slow_bodies: ("    http-request wait-for-body time 50s\n", ""),
}


@pytest.mark.parametrize("weakness", WEAKENED)
def test_each_rule_is_what_holds(
    weakness: Callable[[Proxy, StandIn], bool], binary: Binary, files: Path, app: StandIn, tmp_path: Path
) -> None:
    """The negative controls: with one rule changed, and only then, the proxy shows the weakness."""
    old, new = WEAKENED[weakness]
    shipped, changed = proxying.CONFIGURATION.read_text(), tmp_path / "changed.cfg"
    assert old in shipped
    changed.write_text(shipped.replace(old, new))

    with running_proxy(binary, files, app.port) as proxy:
        assert not weakness(proxy, app)
    with running_proxy(binary, files, app.port, configuration=changed) as proxy:
        assert weakness(proxy, app)


def test_the_onion_variant_of_the_configuration_works_and_tells_circuits_apart(
    binary: Binary, files: Path, app: StandIn, tmp_path: Path
) -> None:
    onion = tmp_path / "onion.cfg"
    shipped = proxying.CONFIGURATION.read_text()
    assert shipped.count("    #onion ") == 1
    onion.write_text(shipped.replace("    #onion ", "    "))

    async def circuit(proxy: Proxy, name: str, request: bytes) -> Outside:
        line = Outside(proxy.onion, tls=None)
        await line.send(f"PROXY TCP6 fc00:dead:beef:4dad::{name} ::1 1 2\r\n".encode() + request)
        return line

    async def visit(proxy: Proxy) -> tuple[int, int]:
        held = [await circuit(proxy, "1", post_head("/report", 1000)) for _ in range(20)]
        await asyncio.sleep(0.1)
        answers = []
        for name in ("1", "2"):
            async with await circuit(proxy, name, get("/report")) as line:
                answers.append((await line.read()).status)
        for line in held:
            await line.hang_up()
        return answers[0], answers[1]

    with running_proxy(binary, files, app.port, configuration=onion) as proxy:
        assert asyncio.run(visit(proxy)) == (503, 200)
