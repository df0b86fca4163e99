"""The shipped proxy in front of an app, those who stall it, and a stand-in for the app.

The configuration is run as it ships. Only its own variables are set: ports, paths, certificate (docs/containers.md).
"""

import asyncio
import os
import re
import resource
import shutil
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.chaos.running import HOST, ROOT, free_port, wait_for
from tests.chaos.sending import Answer, Line, Unanswered

CONFIGURATION = ROOT / "deploy" / "haproxy.cfg"
FETCHED = ROOT / "var" / "haproxy"
PACKAGES = ("haproxy", "liblua5.3-0", "libopentracing-c-wrapper0", "libopentracing1")
PUBLIC_URL = "https://bamboo.example"
CARRIER = "127.0.50."  # where the phones of a mobile carrier are, in these tests
HELPLINE = "1280"


@dataclass(frozen=True)
class Binary:
    """A program that can be run, and the environment that it needs."""

    path: str
    environment: Mapping[str, str] = field(default_factory=dict)


def find_proxy() -> Binary | None:
    """Return the proxy, if it is installed or was fetched before."""
    installed = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if installed:
        return Binary(installed)
    fetched = FETCHED / "usr" / "sbin" / "haproxy"
    if not fetched.is_file():
        return None
    libraries = sorted({str(path.parent) for path in (FETCHED / "usr" / "lib").rglob("*.so*")})
    return Binary(str(fetched), {"LD_LIBRARY_PATH": ":".join(libraries)})


def fetch_proxy() -> Binary:
    """Return the proxy of Debian's package, unpacked below ``var/`` and not installed. Skips where that cannot be."""
    found = find_proxy()
    if found:
        return found
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        pytest.skip("haproxy is not installed, and this is no Debian to fetch its package from")
    draft = FETCHED.with_name("haproxy.new")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    got = subprocess.run(["apt-get", "download", *PACKAGES], cwd=draft, capture_output=True, text=True, check=False)
    if got.returncode:
        pytest.skip(f"haproxy is not installed, and its package could not be fetched: {got.stderr.strip()[-200:]}")
    for package in draft.glob("*.deb"):
        subprocess.run(["dpkg", "-x", package.name, "."], cwd=draft, check=True)
    draft.rename(FETCHED)
    found = find_proxy()
    assert found
    return found


def write_files(folder: Path) -> Path:
    """Write into `folder` what the proxy reads: its pages, a list of carriers, and a certificate that nobody signed."""
    numbers = {"HOTLINE_EMERGENCY_NUMBERS": f"{HELPLINE} Child helpline"}
    command = [sys.executable, "-m", "deploy.overload_pages", str(folder / "pages")]
    subprocess.run(command, cwd=ROOT, env={**os.environ, **numbers}, check=True)
    (folder / "carriers.txt").write_text(f"{CARRIER}0/24\n")
    site = folder / "site.pem"
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc", "-keyout", str(site)]
    subject = ["-subj", "/CN=bamboo.example", "-addext", "subjectAltName=DNS:bamboo.example"]
    made = subprocess.run(["openssl", "req", "-x509", "-days", "2", *key, *subject], capture_output=True, check=True)
    with site.open("ab") as file:
        file.write(made.stdout)
    return folder


@dataclass
class Proxy:
    """A running proxy: its ports, its process, and what it printed."""

    http: int = field(default_factory=free_port)
    https: int = field(default_factory=free_port)
    onion: int = field(default_factory=free_port)
    pid: int = 0
    said: list[str] = field(default_factory=list)

    @property
    def memory(self) -> int:
        """What it holds in memory, in bytes."""
        return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{self.pid}/status").read_text())[1]) * 1024  # type: ignore[index]


def no_file_may_grow() -> None:
    """Let this process write not one byte to any file. Pipes and sockets are no files."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


@contextmanager
def running_proxy(
    binary: Binary, files: Path, app_port: int, *, configuration: Path = CONFIGURATION
) -> Iterator[Proxy]:
    """Run the proxy in front of the app at `app_port`, unable to write to any file. files: see `write_files`."""
    proxy = Proxy()
    environment = {
        **binary.environment,
        "HOTLINE_PUBLIC_URL": PUBLIC_URL,
        "PROXY_HTTP": f"{HOST}:{proxy.http}",
        "PROXY_HTTPS": f"{HOST}:{proxy.https}",
        "PROXY_ONION": f"{HOST}:{proxy.onion}",
        "PROXY_CERTIFICATE": str(files / "site.pem"),
        "PROXY_PAGES": str(files / "pages"),
        "PROXY_CARRIERS": str(files / "carriers.txt"),
        "PROXY_APP": f"{HOST}:{app_port}",
    }
    process = subprocess.Popen(
        [binary.path, "-db", "-f", str(configuration)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=no_file_may_grow,
    )
    assert process.stdout is not None
    listener = threading.Thread(target=proxy.said.extend, args=(process.stdout,))
    listener.start()
    proxy.pid = process.pid
    try:
        wait_for(lambda: process.poll() is not None or answers(proxy), "the proxy to listen")
        assert process.poll() is None, "".join(proxy.said)
        wait_for(lambda: ask_outside(proxy, get("/")).status == 200, "the proxy to find the app")
        yield proxy
    finally:
        process.terminate()
        process.wait(20)
        listener.join()
        process.stdout.close()


def answers(proxy: Proxy) -> bool:
    """Return whether the proxy serves what it serves alone."""
    try:
        return ask_outside(proxy, b"GET /static/public.css HTTP/1.1\r\n\r\n").status == 200
    except OSError:
        return False


# --- clients ---------------------------------------------------------------------------------------------


def trusting(*protocols: str) -> ssl.SSLContext:
    """Return a client's side of TLS that takes any certificate: these tests are about other things."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if protocols:
        context.set_alpn_protocols(protocols)
    return context


TLS = trusting()


class Outside(Line):
    """A connection over TLS from an address of loopback's own network, as if from far away."""

    def __init__(self, port: int, address: str = HOST, *, tls: ssl.SSLContext | None = TLS) -> None:
        super().__init__(port)
        self.address, self.tls = address, tls

    async def __aenter__(self) -> "Outside":
        return self

    async def send(self, request: bytes) -> None:
        """Send bytes, after the handshake, and wait for nothing. Raises Unanswered."""
        if self._open is None:
            try:
                self._open = await asyncio.open_connection(HOST, self._port, ssl=self.tls, local_addr=(self.address, 0))
            except OSError as fault:
                raise Unanswered from fault
        await super().send(request)

    async def hang_up(self) -> None:
        """Be gone at once, as somebody who lost the network."""
        if self._open is not None:
            self._open[1].transport.abort()
            self._open = None

    async def read(self) -> Answer:
        """Return the next answer. Raises Unanswered."""
        try:
            return await self._read()
        except (OSError, EOFError) as fault:
            raise Unanswered from fault

    async def first(self) -> bytes:
        """Return what arrives first; nothing if the other side hangs up."""
        assert self._open is not None
        return await self._open[0].read(65536)

    @property
    def protocol(self) -> str | None:
        """The protocol that both sides settled on."""
        assert self._open is not None
        chosen: str | None = self._open[1].get_extra_info("ssl_object").selected_alpn_protocol()
        return chosen

    async def closed(self, seconds: float) -> bool:
        """Return whether the other side hangs up within so many seconds, whatever it says before."""
        assert self._open is not None
        with suppress(TimeoutError, OSError):
            async with asyncio.timeout(seconds):
                while await self._open[0].read(65536):
                    pass
                return True
        return self._open[0].at_eof()


def ask_outside(proxy: Proxy, request: bytes, address: str = HOST) -> Answer:
    """Send one request over TLS on a connection of its own. Raises Unanswered."""

    async def once() -> Answer:
        async with Outside(proxy.https, address) as line:
            return await line.ask(request)

    return asyncio.run(once())


def timed(proxy: Proxy, request: bytes, address: str = HOST) -> tuple[Answer, float]:
    """Return the answer and the seconds that it took, on a connection that stands."""

    async def once() -> tuple[Answer, float]:
        async with Outside(proxy.https, address) as line:
            await line.ask(b"GET /static/public.css HTTP/1.1\r\n\r\n")
            began = time.monotonic()
            answer = await line.ask(request)
            return answer, time.monotonic() - began

    return asyncio.run(once())


def get(path: str, *headers: str) -> bytes:
    """Return a GET request."""
    return "\r\n".join([f"GET {path} HTTP/1.1", "host: bamboo.example", *headers, "", ""]).encode()


def post_head(path: str, length: int, *headers: str) -> bytes:
    """Return the head of a form's request, whose body is still to come."""
    own = ("host: bamboo.example", "content-type: application/x-www-form-urlencoded", f"content-length: {length}")
    return "\r\n".join([f"POST {path} HTTP/1.1", *own, *headers, "", ""]).encode()


# --- those who stall -------------------------------------------------------------------------------------

HALF_A_HEADER = b"GET /report HTTP/1.1\r\nhost: bamboo.example\r\nx-more: "
PATIENCE = 20.0  # seconds that one who stalls waits to be hung up on


@dataclass
class Stalling:
    """What those who stall found: how many connections they began, and how long those were open that were ended."""

    begun: int = 0
    open_for: list[float] = field(default_factory=list)

    @property
    def standing(self) -> int:
        """How many nobody ended."""
        return self.begun - len(self.open_for)

    async def half_a_header(self, line: Outside) -> None:
        """Send half a header. Whenever the other side hangs up, begin again."""
        await self._again_and_again(line, HALF_A_HEADER, None)

    async def slow_body(self, line: Outside) -> None:
        """Send a form so slowly that it would take half an hour. Whenever the other side hangs up, begin again."""
        await self._again_and_again(line, post_head("/report", 180_000), b"a" * 50)

    async def _again_and_again(self, line: Outside, first: bytes, more: bytes | None) -> None:
        while True:
            try:
                await line.send(first)
            except Unanswered:
                await asyncio.sleep(1)
                continue
            self.begun += 1
            began = time.monotonic()
            feeding = asyncio.create_task(_feed(line, more)) if more else None
            try:
                await line.closed(PATIENCE)
                self.open_for.append(time.monotonic() - began)
            finally:
                if feeding:
                    feeding.cancel()
                await line.hang_up()


async def _feed(line: Outside, more: bytes) -> None:
    with suppress(Unanswered):
        while True:
            await asyncio.sleep(0.5)
            await line.send(more)


@asynccontextmanager
async def at_once(*works: Awaitable[None]) -> AsyncIterator[None]:
    """Do all of `works` until the end of the block."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


# --- a stand-in for the app ------------------------------------------------------------------------------


@dataclass
class Arrived:
    """One request as it reached the app, and which of its connections brought it."""

    target: str
    headers: Sequence[tuple[str, str]]
    body: bytes
    connection: int


@dataclass
class StandIn:
    """An app that keeps every request as it came, answers 200, and leaves some paths without an answer.

    begun: how many requests it knows of, whole or not. waiting: how many of them wait for ever.
    """

    port: int = field(default_factory=free_port)
    silent: Callable[[str], bool] = lambda target: False
    status: int = 200
    arrived: list[Arrived] = field(default_factory=list)
    begun: int = 0
    waiting: int = 0

    @contextmanager
    def running(self) -> Iterator["StandIn"]:
        """Listen until the end of the block."""
        loop = asyncio.new_event_loop()
        server = loop.run_until_complete(asyncio.start_server(self._serve, HOST, self.port, limit=2**20))
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        try:
            yield self
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            server.close()
            for task in asyncio.all_tasks(loop):
                task.cancel()
            loop.run_until_complete(asyncio.sleep(0.01))
            loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, EOFError, asyncio.CancelledError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                target = head[0].split()[1]
                headers = [(name.lower(), value.strip()) for name, _, value in (h.partition(":") for h in head[1:-2])]
                self.begun += not target.startswith("/health/")
                body = await _read_body(reader, dict(headers))
                if not target.startswith("/health/"):
                    self.arrived.append(Arrived(target, headers, body, id(writer)))
                if self.silent(target):
                    self.waiting += 1
                    await asyncio.Event().wait()
                writer.write(f"HTTP/1.1 {self.status} X\r\ncontent-length: 2\r\n\r\nok".encode())
                await writer.drain()
        writer.close()


async def _read_body(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> bytes:
    if headers.get("transfer-encoding") != "chunked":
        return await reader.readexactly(int(headers.get("content-length", "0")))
    body = b""
    while length := int(await reader.readuntil(b"\r\n"), 16):
        body += (await reader.readexactly(length + 2))[:-2]
    await reader.readexactly(2)
    return body
