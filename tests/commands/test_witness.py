"""``hotline ledger witness`` as an organisation runs it: by address, behind NAT, over a USB stick."""

import json
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, build_opener

import pytest
from sqlalchemy import select
from starlette.testclient import TestClient

import commands.__main__ as command_line
from commands import witness
from commands.asking import ask
from commands.witness import application, make_witness, open_witness
from service.config import Settings
from service.db import Writer, open_database, write
from service.errors import Misconfigured
from service.ledger import notes
from service.ledger.sequencer import add_covers
from service.ledger.witness import MOST_REQUEST, REFUSED, STATE, Request, head_path, submission_of
from service.models import LedgerCosignature
from service.vault import boxes
from service.vault.note import COSIGNATURE, vkey
from tests.commands.builders import free_offset, soon
from tests.service.ledger.builders import COVER_KEY, ORIGIN, SEED, WITNESS_SEEDS, Log, policy_text
from tests.service.ledger.test_witness import OURS, THEIRS
from tests.webhooks.builders import FORM_KEY, HOST, drive
from webhooks.app import create_app
from webhooks.cosignature import cosignature_route
from webhooks.log import log_routes

ROOT = Path(witness.__file__).parents[1]
LOG_VKEY = vkey(ORIGIN, boxes.signing_public_of(SEED))
NGO = "ngo.example/w"


def a_folder(folder: Path, name: str = NGO) -> Path:
    """A witness's folder, with the key that the tests' policy names."""
    make_witness(folder, name, LOG_VKEY)
    key = folder / witness.KEY
    key.chmod(0o600)
    key.write_text(WITNESS_SEEDS[name].hex())
    key.chmod(0o400)
    return folder


class Published:
    """A log that grows, and the public app that serves it, on loopback."""

    def __init__(self, log: Log) -> None:
        self.log, self.asked, self.instead = log, [], {}  # type: ignore[var-annotated]
        log.witnesses.away = set(WITNESS_SEEDS)
        self.sequencer = log.sequencer()
        self.writer = Writer(log.sessions)
        routes = [*log_routes(log.sessions, policy_text()), cosignature_route(policy_text(), self.writer.submit)]
        intake: Any = None
        app = create_app(Settings(), intake=intake, health=dict, form_key=FORM_KEY, log=routes)
        client, published = TestClient(app, base_url=HOST), self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.answer("GET", b"")

            def do_POST(self) -> None:
                self.answer("POST", self.rfile.read(int(self.headers["content-length"])))

            def answer(self, method: str, body: bytes) -> None:
                published.asked.append(self.path)
                instead = published.instead.get(self.path)
                found = client.request(method, self.path, content=body) if instead is None else None
                self.send_response(200 if found is None else found.status_code)
                self.end_headers()
                self.wfile.write(instead if found is None else found.content)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=partial(self.server.serve_forever, poll_interval=0.02), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/log/"

    def grow(self, count: int) -> int:
        """Publish a head with so many more leaves, or some more, and return its size."""
        self.log.event()
        write(self.log.sessions, partial(add_covers, key=COVER_KEY, count=count))
        self.sequencer.round()
        self.log.later(60)
        self.sequencer.publish()
        return self.log.state().published_size

    def lines(self) -> list[tuple[int, str]]:
        with self.log.sessions.read() as session:
            rows = session.scalars(select(LedgerCosignature).order_by(LedgerCosignature.size)).all()
            return [(row.size, row.line) for row in rows]

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.writer.close()
        self.sequencer.step_down()


@pytest.fixture
def published(sqlite_url: str, tmp_path: Path) -> Iterator[Published]:
    log = Log(open_database(sqlite_url), tmp_path / "log")
    made = Published(log)
    yield made
    made.close()
    log.sessions.close()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """All witnesses of this process see one moment."""
    real = open_witness

    def at_once(folder: Path) -> Any:
        found = real(folder)
        return type(found)(found.folder, found.name, found.origin, found.log, found.seed, lambda: 1_800_000_000)

    monkeypatch.setattr(witness, "open_witness", at_once)


def run(*words: object) -> int:
    return witness.main([str(word) for word in words])


# --- init ---


def test_init_makes_a_key_and_a_memory_once_and_says_what_the_operator_needs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "ngo"
    assert run("init", "--folder", folder, "--name", NGO, "--log", LOG_VKEY) == 0
    said = capsys.readouterr().out
    word = next(line for line in said.splitlines() if line.startswith("witness WORD "))
    policy = f"log {LOG_VKEY} https://{ORIGIN}/\n{word.replace('WORD', 'NGO')}\nquorum NGO\n"
    made = open_witness(folder)
    assert notes.parse_policy(policy).witnesses[0].key.public == boxes.signing_public_of(made.seed)
    assert made.seed.hex() not in said
    assert stat.S_IMODE((folder / witness.KEY).stat().st_mode) == 0o400
    assert stat.S_IMODE((folder / STATE).stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    with pytest.raises(Misconfigured, match="already"):
        run("init", "--folder", folder, "--name", NGO, "--log", LOG_VKEY)


def test_init_refuses_names_and_keys_that_must_not_be_used(tmp_path: Path) -> None:
    weak = "bamboo.example/log+00000000+AQEAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
    other = vkey(NGO, boxes.signing_public_of(WITNESS_SEEDS[NGO]), COSIGNATURE)
    for name, key in (("two words", LOG_VKEY), ("a+b", LOG_VKEY), (NGO, weak), (NGO, other), (NGO, "nothing")):
        with pytest.raises(Misconfigured):
            run("init", "--folder", tmp_path / "w", "--name", name, "--log", key)
        assert not (tmp_path / "w").exists()


def test_a_witness_that_is_not_whole_does_nothing(tmp_path: Path) -> None:
    folder = a_folder(tmp_path / "ngo")
    (folder / witness.KEY).chmod(0o440)
    with pytest.raises(Misconfigured, match="read by others"):
        open_witness(folder)
    (folder / witness.KEY).chmod(0o400)
    (folder / STATE).rename(tmp_path / "lost")
    with pytest.raises(Misconfigured, match="retired"):
        open_witness(folder)
    (tmp_path / "lost").rename(folder / STATE)
    assert open_witness(folder).size() == 0
    (folder / witness.SETTINGS).write_text("{}")
    with pytest.raises(Misconfigured, match="no whole witness"):
        open_witness(folder)


def test_it_loads_nothing_of_the_hotline() -> None:
    foreign = ("sqlalchemy", "sqlmodel", "fastapi", "starlette", "twilio", "webhooks", "dashboards", "service.db",
               "service.models", "service.config", "service.triage", "commands.ledger")  # fmt: skip
    code = "import sys, commands.witness; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    modules = set(loaded.stdout.split())
    assert "service.ledger.witness" in modules
    assert [name for name in foreign if name in modules] == []
    assert command_line.APART["ledger", "witness"] == "commands.witness"


# --- serve ---


def test_it_serves_heads_that_are_brought_until_it_is_ended(tmp_path: Path) -> None:
    folder, port = a_folder(tmp_path / "ngo"), 8010 + free_offset()
    command = [sys.executable, "-m", "commands", "ledger", "witness", "serve", f"--folder={folder}", f"--port={port}"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        opener, address = build_opener(ProxyHandler({})), f"http://127.0.0.1:{port}"

        def up() -> bool:
            try:
                with opener.open(f"{address}/", timeout=1) as answer:
                    return bool(NGO.encode() in answer.read())
            except OSError:
                return False

        assert soon(up, seconds=20)
        assert ask(f"{address}/{head_path(ORIGIN)}", seconds=5, most=9999)[0] == 404
        status, line = ask(f"{address}/add-checkpoint", OURS.request(0, 9), seconds=5, most=9999)
        assert status == 200
        assert ask(f"{address}/add-checkpoint", OURS.request(0, 12), seconds=5, most=9999) == (409, b"9\n")
        status, newest = ask(f"{address}/{head_path(ORIGIN)}", seconds=5, most=9999)
        assert (status, newest) == (200, OURS.note(9).encode() + line)
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) in (0, -signal.SIGTERM)


def test_what_is_asked_over_http_is_answered_or_refused(tmp_path: Path) -> None:
    app: Any = application(open_witness(a_folder(tmp_path / "ngo")))
    newest = f"/{head_path(ORIGIN)}"
    assert drive(app, "GET", newest).status == 404
    added = drive(app, "POST", "/add-checkpoint", body=OURS.request(0, 9))
    assert (added.status, added.header("content-type")) == (200, "text/plain; charset=utf-8")
    conflict = drive(app, "POST", "/add-checkpoint", body=OURS.request(4, 12))
    assert (conflict.status, conflict.header("content-type"), conflict.text) == (409, "text/x.tlog.size", "9\n")
    assert drive(app, "GET", newest).text == OURS.note(9) + added.text
    assert drive(app, "POST", "/add-checkpoint", body=b"x" * (MOST_REQUEST + 1)).status == 400
    assert drive(app, "GET", "/add-checkpoint").status == 405
    assert drive(app, "POST", newest).status == 405
    assert drive(app, "GET", "/" + "0" * 64 + "/checkpoint").status == 404
    gone = [{"type": "http.request", "body": b"old", "more_body": True}, {"type": "http.disconnect"}]
    assert drive(app, "POST", "/add-checkpoint", messages=gone).status == 400


def test_a_witness_that_cannot_store_answers_that_it_cannot_now(tmp_path: Path) -> None:
    folder = a_folder(tmp_path / "ngo")
    app: Any = application(open_witness(folder))
    (folder / STATE).write_bytes(b"spoilt" * 1000)
    assert drive(app, "POST", "/add-checkpoint", body=OURS.request(0, 9)).status == 503
    (folder / STATE).unlink()
    assert drive(app, "POST", "/add-checkpoint", body=OURS.request(0, 9)).status == 503


def test_a_body_that_never_ends_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(witness, "SLOW", 0.05)
    app: Any = application(open_witness(a_folder(tmp_path / "ngo")))
    begun = [{"type": "http.request", "body": b"old 0\n", "more_body": True}]
    assert drive(app, "POST", "/add-checkpoint", messages=begun).status == 400


# --- pull, pack, sign, add ---


def test_a_laptop_pulls_checks_and_brings_its_line_back(
    published: Published, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = a_folder(tmp_path / "ngo")
    sizes = [published.grow(count) for count in (3, 300, 1, 700)]  # over several tiles, from an empty memory
    assert run("pull", published.url, "--folder", folder) == 0
    assert f"witnessed: {sizes[-1]} leaves" in capsys.readouterr().out
    for count in (0, 600):
        sizes.append(published.grow(count))
        assert run("pull", published.url, "--folder", folder) == 0
    assert [size for size, _ in published.lines()] == sizes[-3:]
    assert open_witness(folder).size() == sizes[-1] > 1600
    assert run("pull", published.url, "--folder", folder) == 0  # nothing new: a fresh line for the same head


def test_a_narrow_tile_that_is_gone_is_found_in_the_full_one(published: Published, tmp_path: Path) -> None:
    folder = a_folder(tmp_path / "ngo")
    published.grow(3)
    assert run("pull", published.url, "--folder", folder) == 0
    size = published.grow(40)
    full = ask(f"{published.url}tile/0/000.p/{size}", seconds=5, most=99999)[1].ljust(256 * 32, b"\x01")
    narrow = f"/log/tile/0/000.p/{size}"
    published.instead = {"/log/tile/0/000": full, narrow: b""}
    published.asked.clear()
    assert run("pull", published.url, "--folder", folder) == 1  # an empty narrow one is no tile
    assert narrow in published.asked
    published.instead = {"/log/tile/0/000": full}
    real = witness._fetch

    def gone(url: str, path: str, most: int) -> bytes:
        if ".p/" in path:
            raise witness.NoAnswer("gone")
        return real(url, path, most)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(witness, "_fetch", gone)
        assert run("pull", published.url, "--folder", folder) == 0


def test_pull_refuses_another_history_and_an_older_one_and_keeps_them(
    published: Published, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = a_folder(tmp_path / "ngo")
    size = published.grow(20)
    old = ask(f"{published.url}checkpoint", seconds=5, most=9999)[1]
    published.grow(9)
    assert run("pull", published.url, "--folder", folder) == 0
    lines, stands = published.lines(), open_witness(folder).size()
    published.instead = {"/log/checkpoint": old}
    assert run("pull", published.url, "--folder", folder) == 1
    fork = notes.sign_checkpoint(notes.Checkpoint(ORIGIN, stands, bytes(32)), SEED)
    published.instead = {"/log/checkpoint": fork.encode()}
    assert run("pull", published.url, "--folder", folder) == 1
    published.instead = {"/log/checkpoint": THEIRS.note(9).replace(ORIGIN, "other.example/log").encode()}
    assert run("pull", published.url, "--folder", folder) == 1
    said = capsys.readouterr().err
    assert "older than the one that was signed" in said
    assert "ANOTHER HISTORY" in said
    assert size < stands
    kept = sorted(path.name.split("-")[0] for path in (folder / REFUSED).iterdir())
    assert kept == ["fork", "older"]
    assert (published.lines(), open_witness(folder).size()) == (lines, stands)


@pytest.mark.parametrize("instead", [b"", b"\xff", b"no note", b"x" * 100_000])
def test_pull_from_a_log_that_makes_no_sense_signs_nothing(
    published: Published, tmp_path: Path, instead: bytes
) -> None:
    folder = a_folder(tmp_path / "ngo")
    published.grow(3)
    published.instead = {"/log/checkpoint": instead}
    assert run("pull", published.url, "--folder", folder) == 1
    assert run("pull", "http://127.0.0.1:1/log", "--folder", folder) == 1
    assert open_witness(folder).size() == 0


def test_a_line_that_the_log_did_not_take_is_made_again_by_the_next_pull(
    published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = a_folder(tmp_path / "ngo")
    size = published.grow(3)
    real = witness.ask

    def lost(url: str, body: bytes | None = None, **limits: Any) -> tuple[int, bytes]:
        return (503, b"") if body else real(url, body, **limits)

    with monkeypatch.context() as patch:
        patch.setattr(witness, "ask", lost)
        assert run("pull", published.url, "--folder", folder) == 1
    assert "503" in capsys.readouterr().err
    assert (open_witness(folder).size(), published.lines()) == (size, [])
    assert run("pull", published.url, "--folder", folder) == 0
    assert [at for at, _ in published.lines()] == [size]


@pytest.mark.usefixtures("clock")
def test_pull_pack_and_push_give_the_same_line(published: Published, tmp_path: Path) -> None:
    """Three copies of one witness, one way each: a real one must never be copied."""
    ways = {way: a_folder(tmp_path / way) for way in ("pull", "pack", "push")}
    stick, before = tmp_path / "stick", 0
    given: list[set[str]] = []
    for count in (5, 300):
        size = published.grow(count)
        note = ask(f"{published.url}checkpoint", seconds=5, most=9999)[1].decode()
        proof = witness.prove(published.url, before, note)
        pushed = witness.open_witness(ways["push"]).add_checkpoint(Request(before, proof, note).body)
        assert run("pack", stick, "--url", published.url) == 0  # knows from the stick where the machine stands
        assert run("sign", stick, "--folder", ways["pack"]) == 0
        assert run("add", tmp_path / "stick.line", "--url", published.url) == 0
        signed = (tmp_path / "stick.line").read_text()
        (stored,) = [line for at, line in published.lines() if at == size]
        assert run("pull", published.url, "--folder", ways["pull"]) == 0
        pulled = witness.open_witness(ways["pull"]).newest() or ""
        assert signed == submission_of(stored, note).decode()
        assert pulled.endswith(stored)
        given.append({stored, pushed.text})
        before = size
    assert [len(lines) for lines in given] == [1, 1]
    assert given[0] != given[1]


def test_a_machine_without_a_network_keeps_its_own_memory(
    published: Published, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, stick = a_folder(tmp_path / "ngo"), tmp_path / "stick"
    first = published.grow(5)
    assert run("pack", stick, "--url", published.url) == 0
    assert run("sign", stick, "--folder", folder) == 0
    answer = tmp_path / "stick.line"
    answer.unlink()  # a stick that was lost on the way back
    published.grow(5)
    assert run("pack", stick, "--url", published.url) == 0
    assert run("sign", stick, "--folder", folder) == 1
    assert f"--old {first}" in capsys.readouterr().err
    assert run("pack", stick, "--url", published.url, "--old", first) == 0
    assert run("sign", stick, "--folder", folder) == 0
    stick.write_bytes(Request(open_witness(folder).size(), [], notes.sign_checkpoint(
        notes.Checkpoint(ORIGIN, open_witness(folder).size(), bytes(32)), SEED)).body)  # fmt: skip
    assert run("sign", stick, "--folder", folder) == 1
    assert "ANOTHER HISTORY" in capsys.readouterr().err
    spoilt = answer.read_bytes().replace(b"ngo.example", b"xyz.example")
    answer.write_bytes(spoilt)
    assert run("add", answer, "--url", published.url) == 1
    assert "does not know this key" in capsys.readouterr().err
    with pytest.raises(Misconfigured, match="cannot use"):
        run("sign", tmp_path / "nothing", "--folder", folder)


def test_the_settings_of_a_witness_are_its_own(tmp_path: Path) -> None:
    folder = a_folder(tmp_path / "ngo")
    assert json.loads((folder / witness.SETTINGS).read_text()) == {"name": NGO, "origin": ORIGIN, "log": LOG_VKEY}


def test_an_answer_is_taken_from_whoever_was_asked_only(published: Published) -> None:
    moved: Callable[[], tuple[int, bytes]] = partial(ask, f"{published.url}nowhere", seconds=5, most=10)
    with pytest.raises(witness.NoAnswer):  # longer than allowed: a page
        moved()
    for address in ("file:///etc/hostname", "ftp://127.0.0.1/x", "nothing", "http://"):
        with pytest.raises(witness.NoAnswer):
            ask(address, seconds=1, most=100)
