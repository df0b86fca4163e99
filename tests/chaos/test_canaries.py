"""What people send is found nowhere: no file, log or answer repeats it (threats.md T-12; DESIGN section 12.3).

Canaries, words and numbers that stand nowhere else, go into everything that can be sent, well and badly, through
running processes. Then every byte that these wrote or answered is searched. Two answers may repeat what was sent:
the page of the account that somebody signed in has opened, and the form that gives a person's own words back.
"""

import asyncio
import os
import random
import re
import resource
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote, urlencode

import psycopg
import pytest
from pysqlite3 import dbapi2
from sqlalchemy import func, select, text
from sqlmodel import col

from service.db import Sessions
from service.models import Case, Channel, Tip
from tests.builders import PASSWORD, a_code
from tests.chaos.running import Forks, Installation, Process, wait_for
from tests.chaos.scan import Scanner, spellings
from tests.chaos.sending import URL, Answer, Line, Unanswered, a_form, a_request, a_text, ask, form_request
from tests.chaos.staged import FALTER, STUMBLE
from tests.conftest import named
from tests.webhooks.builders import FORM_TYPE, SMS, TOKEN, an_sms, encode, sign, sms_headers

COOKIE = "__Host-hl"
FORM = (b"content-type", FORM_TYPE.encode())
KHMER = "កខគឃងចឆជឈញដឋឌឍណតថទធនបផពភម"


@dataclass
class Canaries:
    """Makes canaries and remembers them."""

    rng: random.Random
    made: list[str] = field(default_factory=list)
    numbers: list[str] = field(default_factory=list)

    def word(self) -> str:
        """Return a word that stands nowhere else, Latin or Khmer."""
        latin = self.rng.random() < 0.7
        signs = "abcdefghijklmnopqrstuvwxyz0123456789" if latin else KHMER
        return self._keep(("kx" if latin else "") + "".join(self.rng.choices(signs, k=16)))

    def plain(self) -> str:
        """Return a word of Latin letters, for headers and addresses."""
        return self._keep("kx" + "".join(self.rng.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=16)))

    def letters(self) -> str:
        """Return a word without digits, that nobody takes for a number."""
        return self._keep("kx" + "".join(self.rng.choices("abcdefghijklmnopqrstuvwxyz", k=16)))

    def number(self) -> str:
        """Return a number; searched for without its country's code."""
        self.numbers.append("+855" + self._keep(f"00{self.rng.randrange(10**6):06d}"))
        return self.numbers[-1]

    def _keep(self, canary: str) -> str:
        self.made.append(canary)
        return canary


@dataclass
class Traffic:
    """What was sent and answered. Answers are kept with what may stand in them."""

    canaries: Canaries
    port: int
    answers: list[tuple[str, Answer, bool]] = field(default_factory=list)
    unanswered: int = 0

    def send(self, what: str, request: bytes, status: int | None, *, gives_back: bool = False) -> None:
        """Send `request`, which must be answered with `status`; None: with anything, or not at all."""

        async def once() -> Answer:
            async with Line(self.port) as line:
                return await line.ask(request)

        try:
            answer = asyncio.run(once())
        except Unanswered:
            assert status is None, f"{what}: no answer"
            self.unanswered += 1
            return
        assert status in (None, answer.status), f"{what}: {answer.status}"
        self.answers.append((what, answer, gives_back))

    @property
    def failures(self) -> int:
        """How many requests were refused, failed, or not answered at all."""
        return self.unanswered + sum(answer.status >= 400 for _, answer, _ in self.answers)

    def told(self, scanner: Scanner) -> list[str]:
        """Return which answers repeat what they must not."""
        return [
            f"{what}: {answer.status}"
            for what, answer, gives_back in self.answers
            for data in [repr(answer.headers).encode(), b"" if gives_back else answer.body]
            if scanner.find(data)
        ]


def signed(fields: dict[str, str], *, body: bytes = b"", extra: list[tuple[bytes, bytes]] | None = None) -> bytes:
    """Return a signed webhook, perhaps with another body than was signed."""
    headers = [*sms_headers(sign(fields, url=URL, token=TOKEN)), *(extra or [])]
    return a_request("POST", SMS, headers, body or encode(fields))


# --- the public process ----------------------------------------------------------------------------------


def good_texts(traffic: Traffic) -> None:
    c, sid = traffic.canaries, traffic.canaries.rng.getrandbits
    number = c.number()
    agent = [(b"user-agent", c.plain().encode()), (b"x-forwarded-for", c.plain().encode())]
    for words in (f"A child at the guesthouse {c.word()}.", f"{c.word()} and more", f"{FALTER} {c.word()}"):
        sent = a_text(words, number, sid=f"SM{sid(128):032x}", headers=agent, ProfileName=c.word(), FromCity=c.word())
        traffic.send("a text", sent.request, 200)
        traffic.send("a text again", sent.request, 200)
    hidden = a_text(f"Police {c.word()} are paid for a child", None, sid=f"SM{sid(128):032x}")
    traffic.send("a hidden caller", hidden.request, 200)
    long = a_text(f"{c.plain()} " * 2500, c.number(), sid=f"SM{sid(128):032x}")
    traffic.send("a long text", long.request, 200)


def another_tip(traffic: Traffic) -> None:
    """Send one tip of its own, by text, from a hidden number or by the form."""
    c, way = traffic.canaries, traffic.canaries.rng.randrange(3)
    words = f"A child {c.word()} is at the bar"
    if way == 2:
        page = ask(traffic.port, "GET", "/report").text
        traffic.send("one more form", a_form(page, words, c.number().replace("+855", "0")).request, 200)
        return
    sent = a_text(words, c.number() if way else None, sid=f"SM{c.rng.getrandbits(128):032x}")
    traffic.send("one more text", sent.request, 200)


def bad_texts(traffic: Traffic) -> None:
    c = traffic.canaries
    fields = an_sms("SM" + c.plain(), f"{c.word()}", c.number())
    body = encode(fields)
    traffic.send("another's signature", signed(fields, body=body + b"x"), 403)
    traffic.send("a repeated field", signed(fields, body=body + b"&Body=" + c.plain().encode()), 403)
    traffic.send("a field too many", signed(fields, body=body + b"&a=" + b"&a=".join([b"1"] * 101)), 403)
    # An answer may not arrive: the server ends the connection while the rest of the body is still on its way.
    traffic.send("too large", signed(fields, body=body + b"&x=" + b"y" * 70_000), None)
    traffic.send("not UTF-8", signed(fields, body=body + b"%ff%fe"), 403)
    traffic.send("not encoded", signed(fields, body=b"{" + c.plain().encode() + b"\xff}"), 403)
    traffic.send("no signature", a_request("POST", SMS, [FORM], encode({"Body": c.word()})), 403)
    query = a_request("POST", f"{SMS}?q={c.plain()}", sms_headers(sign(fields, url=URL, token=TOKEN)), body)
    traffic.send("a query", query, 403)
    traffic.send("foreign account", signed(fields | {"AccountSid": c.plain()}), 403)
    stumbling = a_text(f"{STUMBLE} {c.word()}", c.number(), sid="SM" + c.plain())
    traffic.send("a fault that quotes the words", stumbling.request, 500)


def forms(traffic: Traffic) -> None:
    c = traffic.canaries
    page = ask(traffic.port, "GET", "/report").text
    extra = [(b"user-agent", c.plain().encode()), (b"referer", c.plain().encode()), (b"cookie", c.plain().encode())]
    traffic.send("a form", a_form(page, c.word(), c.number().replace("+855", "0"), headers=extra).request, 200)
    asked = {"what": f"{c.word()}", "number": c.letters(), "answer": "phone"}
    traffic.send("a wrong number", form_request(page, asked), 422, gives_back=True)
    empty = form_request(page, {"what": " ", "number": c.number().replace("+855", "0")})
    traffic.send("no words", empty, 422, gives_back=True)
    odd = form_request(page, {"what": f"{c.word()}\x00\ud800".encode("utf-8", "surrogatepass").decode("latin-1")})
    traffic.send("odd bytes", odd, 200)
    raw = b"what=" + c.plain().encode() + b"%ff%00%e1&what=%zz" + c.plain().encode()
    traffic.send("a bent form", a_request("POST", "/report", [FORM], raw), 200)
    traffic.send("a form too large", form_request(page, {"what": c.word() * 20_000}), None)
    traffic.send("fields too many", a_request("POST", "/report", [FORM], f"a={c.plain()}&".encode() * 200), 413)
    traffic.send("a fault in a form", a_form(page, f"{STUMBLE} {c.word()}").request, 500)
    for kind in (b"application/json", b"text/plain", b"multipart/form-data; boundary=x"):
        file = f'--x\r\ncontent-disposition: form-data; name="what"; filename="{c.plain()}"\r\n\r\n{c.word()}\r\n--x--'
        traffic.send("another kind", a_request("POST", "/report", [(b"content-type", kind)], file.encode()), 415)


def bent_requests(traffic: Traffic) -> None:
    c = traffic.canaries
    path, word = c.plain(), c.plain().encode()
    for method, target, status in (
        ("GET", f"/{path}", 404),
        ("GET", f"/report?{path}={quote(c.word())}", 200),
        ("POST", f"/webhooks/{path}", 404),
        ("GET", f"/static/{path}", 404),
        ("GET", f"/static/..%2f{path}", 404),
        ("PUT", f"/report/{path}", 405),
        (c.plain().upper()[:12], "/report", None),
        ("GET", "/" + path * 200, 414),
    ):
        traffic.send(f"{method[:4]} {status}", a_request(method, target), status)
    traffic.send("another host", a_request("GET", "/report", [(b"host", word)]), None)
    traffic.send("headers too large", a_request("GET", "/", [(b"x-" + word, word * 1000)]), None)
    traffic.send("headers too many", a_request("GET", "/", [(b"x-a", word)] * 200), None)
    traffic.send("no HTTP", word + b" \xff\x00\r\n\r\n", None)
    traffic.send("two lengths", a_request("POST", "/report", [FORM, (b"content-length", b"3")], word), None)
    traffic.send("a chunk that lies", _chunked(b"zz" + word), None)
    leaving = a_request("POST", "/report", [FORM], b"what=" + word)[:-3]

    async def leave() -> None:
        async with Line(traffic.port) as line:
            await line.send(leaving)

    asyncio.run(leave())


def _chunked(body: bytes) -> bytes:
    return b"POST /report HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n" + body + b"\r\n\r\n"


def without_a_database(traffic: Traffic, page: str) -> None:
    c = traffic.canaries
    text_ = a_text(f"A child {c.word()}", c.number(), sid="SM" + c.plain())
    traffic.send("a text without a database", text_.request, 503)
    form = a_form(page, c.word(), c.number().replace("+855", "0"))
    traffic.send("a form without a database", form.request, 503, gives_back=True)
    traffic.send("health without a database", a_request("GET", f"/health/ready?{c.plain()}"), None)


@contextmanager
def no_database(process: Process, sessions: Sessions) -> Iterator[None]:
    """Take the database from the public process: no space on SQLite, no connections on PostgreSQL."""
    url = sessions.writing.url
    if sessions.dialect == "sqlite":
        process.limit_files(1)
        yield
        process.limit_files(-1)
        return
    server = url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(named(server, "postgres"), autocommit=True) as admin:
        admin.execute(f"ALTER DATABASE {url.database} WITH ALLOW_CONNECTIONS false")
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [url.database])
        yield
        admin.execute(f"ALTER DATABASE {url.database} WITH ALLOW_CONNECTIONS true")


# --- the staff process -----------------------------------------------------------------------------------


@dataclass
class Browser:
    """A signed-in screener's browser."""

    traffic: Traffic
    cookie: str = ""
    csrf: str = ""

    def headers(self) -> list[tuple[bytes, bytes]]:
        host = f"127.0.0.1:{self.traffic.port}".encode()
        return [(b"host", host), (b"origin", b"http://" + host), (b"cookie", f"{COOKIE}={self.cookie}".encode())]

    def sign_in(self, account: str, password: str) -> Answer:
        """Sign in, and keep the cookie if there is one."""
        proof = {"account": account, "password": password, "code": a_code(datetime.now(UTC))}
        body = urlencode(proof).encode()
        answer = ask(self.traffic.port, "POST", "/sign-in", [*self.headers(), FORM], body)
        found = re.search(rf"{COOKIE}=([^;]+)", answer.header("set-cookie") or "")
        self.cookie = found[1] if found else ""
        return answer

    def get(self, target: str, status: int | None) -> None:
        self.traffic.send(f"GET {target[:20]}", a_request("GET", target, self.headers()), status)

    def post(self, target: str, fields: dict[str, str], status: int | None, *, gives_back: bool = False) -> None:
        request = a_request("POST", target, [*self.headers(), FORM], urlencode(fields).encode())
        self.traffic.send(f"POST {target[-10:]} {sorted(fields)}", request, status, gives_back=gives_back)


def at_work(browser: Browser, case: str, other: str) -> None:
    """Do what a screener does, well and badly, with canaries in every field and address."""
    c = browser.traffic.canaries
    page = ask(browser.traffic.port, "GET", f"/cases/{case}", browser.headers()).text
    token = re.search(r'name="t" value="([^"]+)"', page)
    assert token
    t = {"t": token[1]}
    for target, status in (
        ("/queue", 200),
        (f"/queue?level={c.plain()}&after={c.plain()}", None),
        (f"/cases/{c.plain()}", 404),
        (f"/cases/{other[:-1]}{(int(other[-1], 16) + 1) % 16:x}", 404),
        (f"/{c.plain()}", 404),
        (f"/sign-in?next={c.plain()}", 200),
    ):
        browser.get(target, status)
    url = f"/cases/{case}"
    browser.post(f"{url}/open", {"reason": "screening", "note": c.word()}, 403)
    browser.post(f"{url}/open", {"t": c.plain(), "reason": "screening", "note": c.word()}, 403)
    browser.post(f"{url}/open", t | {"reason": c.plain()}, None)
    browser.post(f"{url}/open", t | {"reason": "screening", "note": c.word() * 100}, None)
    browser.post(f"{url}/open", t | {"reason": "screening", c.plain(): c.word()}, None)
    browser.post(f"{url}/claim", t | {"version": c.plain()}, None)
    browser.post(f"{url}/hand-on", t | {"version": "2", "unit": c.plain(), "named": c.plain()}, None)
    browser.post(f"{url}/wall", t | {"version": "2", "whom": c.plain(), "why": c.plain()}, None)
    browser.post(f"{url}/raise", t | {"version": "99", "level": "P1", "reason": c.word()}, None)
    browser.post(f"/downloads/{case}/account", t, 303)
    browser.post(f"/downloads/{case}/{c.plain()}", t, 404)
    browser.post(f"/cases/{c.plain()}/open", t | {"reason": "screening"}, 404)
    browser.post(f"/cases/{other}/open", t | {"reason": "screening", "note": c.word()}, 500)
    browser.post(f"{url}/open", t | {"reason": "screening", "note": c.word()}, 200, gives_back=True)
    browser.post(f"{url}/open", t | {"reason": "screening", "note": "y" * 40_000 + c.plain()}, None)
    browser.traffic.send(
        "JSON", a_request("POST", f"{url}/open", [*browser.headers(), (b"content-type", b"application/json")],
                          f'{{"t": "{c.plain()}"}}'.encode()), 415
    )  # fmt: skip


# --- the tests -------------------------------------------------------------------------------------------


def run(
    forks: Forks,
    installation: Installation,
    sessions: Sessions,
    seed: int,
    count: int,
    *,
    tips: int = 10,
    failures: int = 30,
) -> list[str]:
    """Send at least `count` canaries and `tips` tips, provoke `failures`, and return where any canary was found."""
    canaries = Canaries(random.Random(seed))
    public = Process(forks, installation, staged="stumbles").started()
    traffic = Traffic(canaries, public.port)
    everything: list[Callable[[Traffic], None]] = [good_texts, bad_texts, forms, bent_requests]
    rounds = 0
    while rounds == 0 or len(canaries.made) < count or traffic.failures < failures:
        rounds += 1
        for send_some in everything:
            send_some(traffic)
    while stored_tips(sessions) < tips:
        for _ in range(tips // 10):
            another_tip(traffic)
    page = ask(public.port, "GET", "/report").text
    with no_database(public, sessions):
        without_a_database(traffic, page)
    wait_for(public.ready, "the database to be back")
    staff = Process(forks, installation, kind="staff", staged="stumbles").started()
    at_staff = Traffic(canaries, staff.port)
    secrets = work(at_staff, sessions)
    back_up(installation, sessions)
    scanner = Scanner([*canaries.made, *secrets])
    found = [f"{where} has {len(what)}" for where, what in files_with(scanner, installation, sessions).items()]
    found += [f"the {process.kind} process may leave a core" for process in (public, staff) if leaves_a_core(process)]
    # Only the relay may hold a number: a core of the staff process, if one were taken, has none (threats.md T-14).
    numbers = Scanner(canaries.numbers)
    found += [f"the staff process holds {len(held)} numbers" for held in [in_memory(numbers, staff.pid)] if held]
    public.stop()
    staff.stop()
    found += [f"{where} has {len(what)}" for where, what in files_with(scanner, installation, sessions).items()]
    print(
        f"{len(canaries.made)} canaries, {stored_tips(sessions)} tips, {traffic.failures + at_staff.failures} failures"
    )
    return found + traffic.told(scanner) + at_staff.told(scanner)


def stored_tips(sessions: Sessions) -> int:
    """Return how many tips there are."""
    with sessions.read() as session:
        return session.scalar(select(func.count()).select_from(Tip)) or 0


def back_up(installation: Installation, sessions: Sessions) -> None:
    """Copy the database as a backup does. A server's own files hold as much, and are searched as they are."""
    if sessions.dialect == "sqlite":
        with closing(dbapi2.connect(str(sessions.writing.url.database))) as connection:
            connection.execute("VACUUM INTO ?", (str(installation.folder / "backup.db"),))


def leaves_a_core(process: Process) -> bool:
    """Return whether the system would write the memory of `process` to a disk if it died."""
    return resource.prlimit(process.pid, resource.RLIMIT_CORE) != (0, 0)


def in_memory(scanner: Scanner, pid: int) -> set[str]:
    """Return the texts that stand in the writable memory of a process, as a core would hold it."""
    found: set[str] = set()
    with open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            place, rights, *_ = line.split()
            begin, end = (int(part, 16) for part in place.split("-"))
            if rights.startswith("rw"):
                with suppress(OSError):  # a mapping that nothing stands behind
                    memory.seek(begin)
                    found |= scanner.find(memory.read(end - begin))
    return found


def work(traffic: Traffic, sessions: Sessions) -> list[str]:
    """Sign in, read, and return the secrets that passed on the way: they are looked for, too."""
    browser = Browser(traffic)
    wrong = browser.sign_in(traffic.canaries.plain(), traffic.canaries.word())
    assert wrong.status == 401
    assert browser.sign_in("screener", PASSWORD).status == 303
    with sessions.read() as session:
        texts = select(Case.id).where(col(Case.channel) == Channel.SMS, ~col(Case.walled)).order_by(col(Case.decision))
        cases = session.scalars(texts).all()
    # The case of many messages has one that breaks the reading, with an error that quotes it.
    at_work(browser, str(cases[0]), str(cases[-1]))
    opened = [answer for _, answer, gives_back in traffic.answers if gives_back]
    assert Scanner(traffic.canaries.made).find(opened[-1].body), "who may read it does read it"
    return [PASSWORD, browser.cookie]


def files_with(scanner: Scanner, installation: Installation, sessions: Sessions) -> dict[str, set[str]]:
    """Return what stands in any file of the run: database, its log, output of the processes, temporary files."""
    found = dict(scanner.find_below(installation.folder))
    if sessions.dialect == "postgresql":
        with sessions.writing.connect() as connection:
            folder = Path(connection.execute(text("SHOW data_directory")).scalar_one())
        if not folder.exists():
            pytest.skip("the server of HOTLINE_TEST_PG_URL has its files elsewhere")
        found |= scanner.find_below(folder)
    return found


def test_no_canary_is_found_in_any_file_or_answer(
    forks: Forks, installation: Installation, sessions: Sessions, seed: int
) -> None:
    assert run(forks, installation, sessions, seed, 60) == []


@pytest.mark.chaos
def test_none_of_the_canaries_of_a_thousand_tips_and_a_hundred_failures_is_found_in_any_file_or_answer(
    forks: Forks, installation: Installation, sessions: Sessions, seed: int
) -> None:
    assert run(forks, installation, sessions, seed, 1000, tips=1000, failures=100) == []


def test_one_print_of_a_body_is_found(
    forks: Forks, sqlite_installation: Installation, sqlite_sessions: Sessions, seed: int
) -> None:
    """The negative control: the same search finds what a forgotten ``print(body)`` wrote into the output."""
    canaries = Canaries(random.Random(seed))
    public = Process(forks, sqlite_installation, staged="prints_bodies").started()
    good_texts(Traffic(canaries, public.port))
    public.stop()

    found = files_with(Scanner(canaries.made), sqlite_installation, sqlite_sessions)

    assert set(found) == {public.log.name}


def test_a_number_that_a_process_holds_is_found_in_its_memory() -> None:
    """The negative control of the search through the staff process."""
    number = Canaries(random.Random()).number()

    assert in_memory(Scanner([number]), os.getpid()) == {number}


@pytest.mark.parametrize("canary", ["kxabcdefgh12345678", "កខគឃងចឆជឈញដឋឌឍណត"])
def test_the_search_knows_every_spelling(canary: str, tmp_path: Path) -> None:
    scanner = Scanner([canary])
    for number, spelling in enumerate(sorted(spellings(canary))):
        (tmp_path / f"file-{number}").write_bytes(b"before " + spelling + b" after")

    assert len(scanner.find_below(tmp_path)) == len(spellings(canary))
    assert scanner.find(b"something else") == set()
