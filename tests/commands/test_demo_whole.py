"""`./hotline demo`, the real one: what its set-up makes, and one text from a phone to an investigator."""

import errno
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlencode

import pytest
from sqlalchemy import select

from commands import demo, demo_cast, demo_setup, simulate
from commands.demo import Ports
from commands.demo_folder import POLICY, SETTINGS, DemoFolder, State
from service.config import read_settings
from service.db import Sessions, open_database
from service.ledger.events import EventType
from service.ledger.notes import parse_policy
from service.ledger.tree import Grade, receipt_of
from service.models import Case, LedgerEvent
from service.relay import ACKNOWLEDGEMENTS
from service.vault import totp
from service.vault.passwords import too_weak
from tests.commands.builders import free_offset, running, soon

ROOT = Path(__file__).resolve().parents[2]
PORTS = Ports.at(0)


# The set-up


@pytest.fixture(scope="module")
def settled(tmp_path_factory: pytest.TempPathFactory) -> DemoFolder:
    """A demo's folder after a real set-up."""
    folder = DemoFolder(tmp_path_factory.mktemp("demo") / "var")
    folder.path.mkdir()
    demo.prepare(folder, PORTS, reset=False)
    return folder


@pytest.fixture(scope="module")
def database(settled: DemoFolder) -> Iterator[Sessions]:
    opened = open_database(settled.read_settings()["HOTLINE_DATABASE_URL"])
    yield opened
    opened.close()


def all_cases(database: Sessions) -> list[Case]:
    with database.read() as session:
        return list(session.scalars(select(Case)))


def test_the_passphrase_of_the_cast_would_be_taken():
    assert too_weak(demo_cast.PASSPHRASE) is None


def test_the_set_up_makes_the_cast(database):
    assert len(all_cases(database)) == len(demo_cast.read_stories())
    assert all(re.fullmatch(r"\+8550000[0-9]{4}", number) for number in demo_setup.NUMBERS)


def test_the_rules_judge_the_cast_without_a_fault(database):
    with database.read() as session:
        types = set(session.scalars(select(LedgerEvent.type)))  # type: ignore[call-overload]

    assert EventType.DECISION_MADE in types
    assert EventType.ENGINE_FAILED not in types


def test_deadlines_are_late_soon_and_later(database):
    now = datetime.now(UTC)
    left = [case.due_at - now for case in all_cases(database)]

    assert any(span < timedelta(0) for span in left)
    assert any(timedelta(0) < span < timedelta(hours=1) for span in left)
    assert any(span > timedelta(hours=12) for span in left)


def test_an_official_goes_behind_the_wall(database):
    walled = [case for case in all_cases(database) if case.walled]

    assert walled
    assert {case.unit for case in walled} == {"integrity"}
    assert {case.province for case in walled} == {None}


def test_the_settings_file_serves_other_commands(settled):
    settings = read_settings(settled.settings_file)

    assert settings.demo
    assert settings.public_url == "http://127.0.0.1:8000"
    assert re.fullmatch("AC[0-9a-f]{32}", settings.twilio_account_sid)
    assert settings.twilio_numbers == demo_setup.NUMBERS
    assert settings.database_url == f"sqlite:///{settled.path}/hotline.db"


# All of it


@dataclass
class Running:
    """The real command, started, with what it has printed."""

    process: "subprocess.Popen[str]"
    offset: int
    folder: DemoFolder
    shown: str

    @property
    def children(self) -> list[int]:
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def start(folder: Path, offset: int, until: str) -> Running:
    """Start the demo and read on until it has printed a line with `until`."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HOTLINE_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "commands", "demo", "--folder", str(folder), "--port-offset", str(offset)],
        cwd=ROOT,
        env=environment | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    shown = ""
    for line in process.stdout:
        shown += line
        if until in line:
            break
    return Running(process, offset, DemoFolder(folder), shown)


def end(running: Running) -> str:
    """Kill what is left and return what it printed last."""
    if running.process.poll() is None:
        running.process.send_signal(signal.SIGINT)
    rest, _ = running.process.communicate(timeout=20)
    return rest


class Browser:
    """Just enough of a browser: it sends the session's cookie, which is for TLS, by hand."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.cookie = ""

    def ask(self, method: str, path: str, form: Mapping[str, str] | None = None) -> tuple[int, str]:
        """Send a request and return status and page."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=10)
        headers = {"Cookie": self.cookie, "Origin": f"http://127.0.0.1:{self.port}"}
        body = None
        if form is not None:
            body, headers["Content-Type"] = urlencode(form), "application/x-www-form-urlencoded"
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        page = answer.read().decode()
        for given in answer.headers.get_all("set-cookie") or []:
            if given.startswith("__Host-"):
                self.cookie = given.partition(";")[0]
        connection.close()
        return answer.status, page

    def sign_in(self, account: str) -> None:
        """Sign in with the demo's passphrase."""
        code = totp.code_at(demo_cast.totp_secret(account), datetime.now(UTC))
        form = {"account": account, "password": demo_cast.PASSPHRASE, "code": code}
        status, _ = self.ask("POST", "/sign-in", form)
        assert (status, self.cookie[:7]) == (303, "__Host-")

    def cases(self) -> list[str]:
        """Return the addresses of the cases in the queue."""
        status, page = self.ask("GET", "/queue")
        assert status == 200
        return list(dict.fromkeys(re.findall(r"/cases/[0-9a-f-]{36}", page)))

    def fill(self, page: str, **answers: str) -> dict[str, str]:
        """Return a form's hidden fields and `answers`."""
        hidden = dict(re.findall(r'<input type="hidden" name="(t|version)" value="([^"]*)"', page))
        return {"t": hidden["t"], **answers} | ({"version": hidden["version"]} if "version" in answers else {})


WORDS = "កុមារម្នាក់ត្រូវគេចាក់សោឥឡូវនេះ នៅផ្ទះសំណាក់ក្បែរផ្សារ"


def test_a_text_reaches_an_investigator_and_ctrl_c_ends_it(settled, database, monkeypatch, capsys):
    before = len(all_cases(database))
    running_demo = start(settled.path, free_offset(), until="Ctrl-C ends it")
    try:
        assert_summary(running_demo)
        public = Browser(8000 + running_demo.offset)
        assert public.ask("GET", "/")[0] == 200
        assert public.ask("POST", "/log/cosignature", {"no": "line"})[0] == 400
        staff = Browser(8001 + running_demo.offset)
        staff.sign_in("screener")
        known = staff.cases()

        monkeypatch.setenv("HOTLINE_SETTINGS", str(settled.settings_file))
        monkeypatch.setenv("HOTLINE_SIMULATOR_PORT", str(8002 + running_demo.offset))
        assert simulate.main(["sms", WORDS]) == 0
        assert capsys.readouterr().out.startswith("taken: 200\n")
        phones = Browser(8002 + running_demo.offset)
        assert soon(lambda: ACKNOWLEDGEMENTS["km"] in phones.ask("GET", "/state")[1])
        assert soon(lambda: "Please open the queue." in phones.ask("GET", "/state")[1])

        new: list[str] = []
        assert soon(lambda: new.extend(set(staff.cases()) - set(known)) or new, seconds=2)
        asked_at = newest_event(database)
        assert soon(lambda: is_witnessed(database, asked_at), seconds=12)
        assert on_one_machine_they_prove_nothing(running_demo)
        hand_on(staff, new[0])
        claim_and_read(Browser(8001 + running_demo.offset), new[0])
        children = running_demo.children
        assert len(children) == 8
    finally:
        began = time.monotonic()
        last = end(running_demo)

    assert running_demo.process.returncode == 0
    assert time.monotonic() - began < 6
    assert "The data stays in" in last
    assert not [pid for pid in children if running(pid)]
    for port in Ports.at(0).all:
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port + running_demo.offset)) == errno.ECONNREFUSED
    assert len(all_cases(database)) == before + 1  # what the set-up made is still there


def newest_event(database: Sessions) -> str:
    with database.read() as session:
        newest = select(LedgerEvent.eid).where(LedgerEvent.type == EventType.TIP_SEALED)  # type: ignore[call-overload]
        return str(session.scalars(newest.order_by(LedgerEvent.at.desc()).limit(1)).one())  # type: ignore[attr-defined]


def is_witnessed(database: Sessions, eid: str) -> bool:
    """Whether a receipt with three of four witnesses proves that the event happened."""
    with database.read() as session:
        found = receipt_of(session, eid)
    return found is not None and found[0] is Grade.WITNESSED


def on_one_machine_they_prove_nothing(running_demo: Running) -> bool:
    folder, offset = running_demo.folder.path, running_demo.offset
    policy = parse_policy((folder / POLICY).read_text())
    urls = [witness.url for witness in policy.witnesses]
    assert urls == [f"http://127.0.0.1:{port + offset}/" for port in (8010, 8011, 8012, 8013)]
    assert policy.groups["independent"].need == 3
    return f"ports {8010 + offset} to {8013 + offset}" in running_demo.shown and "prove nothing" in running_demo.shown


def assert_summary(running_demo: Running) -> None:
    shown, offset = running_demo.shown, running_demo.offset
    assert "Setting up" not in shown
    for words in (
        f"http://127.0.0.1:{8000 + offset}/",
        f"http://127.0.0.1:{8001 + offset}/",
        f"http://127.0.0.1:{8002 + offset}/",
        f"ssh {' '.join(f'-L {port + offset}:127.0.0.1:{port + offset}' for port in (8000, 8001, 8002))} HOST",
        "./hotline simulate sms",
        demo_cast.PASSPHRASE,
        *(person.account for person in demo_cast.PEOPLE),
    ):
        assert words in shown


def hand_on(staff: Browser, case: str) -> None:
    """As the screener: open the account, then hand the case on."""
    _, page = staff.ask("GET", case)
    assert WORDS not in page
    status, page = staff.ask("POST", f"{case}/open", staff.fill(page, reason="screening", note=""))
    assert status == 200
    assert WORDS in page
    form = staff.fill(page, unit="siem-reap", named="no", version="")
    assert staff.ask("POST", f"{case}/hand-on", form)[0] == 303
    assert case not in staff.cases()


def claim_and_read(staff: Browser, case: str) -> None:
    """As the investigator of the unit that has it now."""
    staff.sign_in("investigator")
    assert case in staff.cases()
    _, page = staff.ask("GET", case)
    assert staff.ask("POST", f"{case}/claim", staff.fill(page, version=""))[0] == 303
    _, page = staff.ask("GET", case)
    assert "/claim" not in page
    status, page = staff.ask("POST", f"{case}/open", staff.fill(page, reason="owner", note=""))
    assert status == 200
    assert WORDS in page


def test_ctrl_c_in_the_set_up_leaves_it_unfinished_and_the_next_start_begins_anew(tmp_path):
    running_demo = start(tmp_path / "var", free_offset(), until="accounts")

    last = end(running_demo)

    assert running_demo.process.returncode == 130
    assert "begins the set-up again" in last
    assert running_demo.folder.state is State.UNFINISHED
    assert not (tmp_path / "var" / SETTINGS).exists()
