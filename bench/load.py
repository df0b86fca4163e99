"""The load: many clients in one process, over plain sockets, so that little of the machine goes to asking.

``python -m bench.load`` reads one JSON line (``Orders``) from standard input, prepares and signs every request, warms
the server up, prints ``ready``, waits for a line, sends for the time ordered and prints one JSON line (``Outcome``).
"""

import gc
import hmac
import json
import os
import re
import select
import socket
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import cycle
from typing import Any
from urllib.parse import urlencode

from bench.ground import ACCOUNT, HOST, NUMBER, PUBLIC_URL, ROOT, SMS_PATH, TOKEN, plain_environment
from service.errors import Misconfigured

MOST = 4000  # requests prepared a second; far above what any ruler reaches
PATIENCE = 30.0

# Invented. Short and long, urgent and not, Khmer and Latin letters, as the line will get them.
TEXTS = (
    "A girl about 12 is kept at the guesthouse behind the night market. A foreign man comes every evening. Please help",
    "man take photo of boys at the beach, he give them money. about 3 children. last week",
    "ខ្ញុំឃើញក្មេងស្រីអាយុប្រហែល ១៣ ឆ្នាំ នៅខារ៉ាអូខេជិតផ្សារ យប់នេះ",
    "សូមជួយ មានកុមារពីរនាក់នៅក្នុងផ្ទះជួល បុរសម្នាក់ចូលចេញរាល់យប់",
    "Hotel near the river lets tourists bring children to the room. I work there, they told us to be quiet",
    "kmeng srey muoy nak nov karaoke, ke ban tver bab, som chuoy",
    "I am a neighbour. There is shouting and a child crying each night. I do not know the house number",
    "the uncle of my friend wants to sell her to a man from abroad, she is 14, they leave tomorrow",
    "hello",
    "តើមានអ្នកណាអាចជួយបានទេ ខ្ញុំខ្លាច",
    "At the orphanage on the road to the airport visitors take children out alone for the day",
    "Last year a teacher touched a student in our village. The family took money and said nothing",
)

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_TOKEN = re.compile(rb'name="token" value="([^"]+)"')
_NONCE = re.compile(rb'name="what-([^"]+)"')

# One thing that a client does: requests that it yields, each resumed with its answer's body.
Exchange = Generator[bytes, bytes, None]


@dataclass(frozen=True, slots=True)
class Orders:
    """What to send: kind ``sms`` or ``form``. leg: its number in this run, so that no sender comes twice."""

    kind: str
    port: int
    clients: int
    seconds: float
    warm: float
    leg: int


@dataclass(slots=True)
class Outcome:
    """What came of it. A form counts once for its two requests."""

    acknowledged: int = 0
    warm: int = 0
    failed: int = 0
    elapsed: float = 0.0
    p50: float = 0.0  # milliseconds
    p99: float = 0.0
    statuses: dict[str, int] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Acknowledged a second."""
        return self.acknowledged / self.elapsed if self.elapsed else 0.0

    @property
    def stored(self) -> int:
        """How many must be in the database: all that were acknowledged."""
        return self.acknowledged + self.warm


def send_load(orders: Orders, *, around: Callable[[], None]) -> Outcome:
    """Run the load in a process of its own; `around` is called just before and just after its timed part."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.load"],
        cwd=ROOT,
        env=plain_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is for us; we end it
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        try:
            process.stdin.write(json.dumps(asdict(orders)) + "\n")
            process.stdin.flush()
            if process.stdout.readline() != "ready\n":
                raise Misconfigured("the load could not be prepared")
            around()
            process.stdin.write("go\n")
            process.stdin.flush()
            answer = process.stdout.readline()
            around()
        except BaseException:
            process.kill()
            raise
    if not answer:
        raise Misconfigured("the load broke off")
    return Outcome(**json.loads(answer))


# --- requests -------------------------------------------------------------------------------------------


def text_messages(orders: Orders) -> Iterator[Exchange]:
    """Yield one signed webhook after the other, made beforehand, each with its own SID and sender."""
    count = int(MOST * (orders.seconds + orders.warm))
    made = [_sms(sender(orders.leg * 1_000_000 + i), TEXTS[i % len(TEXTS)]) for i in range(count)]
    return (_one(request) for request in made)


def sender(number: int) -> str:
    """Return the E.164 number of sender `number`, of a range that is not in use; no two of 100 million are equal."""
    return f"+8550{number * 48271 % 10**8:08d}"


def an_sms(sid: str, number: str, body: str) -> dict[str, str]:
    """Return the twenty-two fields of a text message, as the provider sends them."""
    return {
        "ToCountry": "KH", "ToState": "", "SmsMessageSid": sid, "NumMedia": "0", "ToCity": "", "FromZip": "",
        "SmsSid": sid, "FromState": "", "SmsStatus": "received", "FromCity": "", "Body": body, "FromCountry": "KH",
        "To": NUMBER, "MessagingServiceSid": "MG" + "0" * 32, "ToZip": "", "AddOns": "", "NumSegments": "1",
        "MessageSid": sid, "AccountSid": ACCOUNT, "From": number, "ApiVersion": "2010-04-01", "ForwardedFrom": "",
    }  # fmt: skip


def _sms(number: str, body: str) -> bytes:
    fields = an_sms("SM" + os.urandom(16).hex(), number, body)
    text = PUBLIC_URL + SMS_PATH + "".join(name + fields[name] for name in sorted(fields))
    signature = b64encode(hmac.digest(TOKEN.encode(), text.encode(), "sha1")).decode()
    return _post(SMS_PATH, urlencode(fields).encode(), f"X-Twilio-Signature: {signature}\r\n")


def _post(path: str, body: bytes, more: str = "") -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: hotline.example\r\nUser-Agent: TwilioProxy/1.1\r\nAccept: */*\r\n"
        f"Content-Type: application/x-www-form-urlencoded; charset=UTF-8\r\n{more}Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _one(request: bytes) -> Exchange:
    yield request


def forms(orders: Orders) -> Iterator[Exchange]:
    """Yield whole submissions for ever: the form is fetched, filled in and sent."""
    texts = cycle(TEXTS)
    number = orders.leg * 1_000_000
    while True:
        number += 1
        yield _form(next(texts), f"04{number:08d}")  # a range that is not in use


def _form(text: str, phone: str) -> Exchange:
    page = yield b"GET /report HTTP/1.1\r\nHost: hotline.example\r\nAccept: text/html\r\n\r\n"
    token, nonce = _TOKEN.search(page), _NONCE.search(page)
    if token is None or nonce is None:
        raise ValueError("the form has no token")
    answers = {"what": text, "province": "KH-17", "kind": "guesthouse", "now": "unknown", "danger": "unknown"}
    answers |= {"answer": "phone", "number": phone}
    fields = {"z": "x", "token": token[1].decode()}
    fields |= {f"{name}-{nonce[1].decode()}": value for name, value in answers.items()}
    yield _post("/report", urlencode(fields).encode())


# --- clients --------------------------------------------------------------------------------------------


class _Client:
    """One connection, kept open, and the exchange that goes over it."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection((HOST, port), timeout=PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.exchange: Exchange | None = None
        self.began = 0.0
        self.buffer = b""

    def begin(self, exchange: Exchange) -> None:
        self.exchange, self.began = exchange, time.perf_counter()
        self.socket.sendall(next(exchange))

    def receive(self) -> tuple[int, bytes] | None:
        """Return status and body once the whole answer is here."""
        data = self.socket.recv(262144)
        if not data:
            raise ConnectionError("the server closed the connection")
        self.buffer = self.buffer + data if self.buffer else data
        head = self.buffer.find(b"\r\n\r\n")
        if head < 0:
            return None
        length = _LENGTH.search(self.buffer, 0, head + 2)
        if length is None:
            raise ValueError("an answer without length")
        if len(self.buffer) < head + 4 + int(length[1]):
            return None
        status, body = int(self.buffer[9:12]), self.buffer[head + 4 :]
        self.buffer = b""
        return status, body


class _Crowd:
    """Clients that take their exchanges from one source."""

    def __init__(self, port: int, clients: int, source: Iterable[Exchange]) -> None:
        self._port = port
        self._source = iter(source)
        self._poll = select.epoll()
        self._clients = [self._join() for _ in range(clients)]
        self._by_descriptor = {client.socket.fileno(): client for client in self._clients}

    def _join(self) -> _Client:
        client = _Client(self._port)
        self._poll.register(client.socket.fileno(), select.EPOLLIN)
        return client

    def run(self, seconds: float) -> tuple[Outcome, list[float]]:
        """Send for `seconds`, then wait for the last answers. Returns the latencies of what was acknowledged too."""
        outcome, times = Outcome(), []
        began = time.perf_counter()
        until, busy, last = began + seconds, 0, began
        for client in self._clients:
            busy += self._next(client)
        while busy:
            ready = self._poll.poll(PATIENCE)
            if not ready:
                outcome.failed += busy
                break
            for descriptor, _ in ready:
                client = self._by_descriptor[descriptor]
                answer = client.receive()
                if answer is None:
                    continue
                last = time.perf_counter()
                if self._goes_on(client, answer, outcome):
                    continue
                if answer[0] == 200:
                    times.append(last - client.began)
                if last >= until or not self._next(client):
                    busy -= 1
        outcome.elapsed = last - began
        outcome.acknowledged = len(times)
        return outcome, times

    def _next(self, client: _Client) -> bool:
        exchange = next(self._source, None)
        if exchange is None:
            return False
        client.begin(exchange)
        return True

    @staticmethod
    def _goes_on(client: _Client, answer: tuple[int, bytes], outcome: Outcome) -> bool:
        """Count an answer, and send the exchange's next request if it has one."""
        status, body = answer
        if status != 200:
            outcome.failed += 1
            outcome.statuses[str(status)] = outcome.statuses.get(str(status), 0) + 1
            return False
        assert client.exchange is not None
        try:
            client.socket.sendall(client.exchange.send(body))
        except StopIteration:
            return False
        return True


def main() -> int:
    """Follow one line of orders."""
    orders = Orders(**json.loads(sys.stdin.readline()))
    kinds: dict[str, Any] = {"sms": text_messages, "form": forms}
    crowd = _Crowd(orders.port, orders.clients, kinds[orders.kind](orders))
    gc.disable()
    warm = crowd.run(orders.warm)[0]
    print("ready", flush=True)
    sys.stdin.readline()
    outcome, times = crowd.run(orders.seconds)
    outcome.warm = warm.acknowledged
    outcome.failed += warm.failed
    times.sort()
    if times:
        outcome.p50, outcome.p99 = times[len(times) // 2] * 1e3, times[int(len(times) * 0.99)] * 1e3
    print(json.dumps(asdict(outcome)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
