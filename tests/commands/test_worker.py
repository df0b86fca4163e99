"""Starting the worker: what it refuses, what it loads, its time, and how it ends."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from commands import sequencing, worker
from commands.worker import SteadyTime, build
from service import cases, ceremony, ladder, metrics, outbox, rulesets
from service.config import settings_from_environment
from service.db import open_database, write
from service.errors import Misconfigured
from service.ledger.events import Ledger
from service.models import JobState, OutboxJob, Role, Sign
from service.rulesets import Rulebook
from service.schema import migrate
from tests import ruling
from tests.builders import ORGANISATIONS, PEOPLE, PLANS, World, _settle, a_number, a_tip, the_case, triage
from tests.commands.builders import soon
from tests.ruling import BEGGING_TODAY, propose, told, variant
from tests.service.sending import everything_logged
from tests.webhooks.simulator.builders import ACCOUNT, KEY, NUMBER, SECRET, a_provider, serving
from webhooks.simulator.provider import Provider
from webhooks.simulator.rest import rest_app

ROOT = Path(worker.__file__).parents[1]
DUTY = {"screening": ["+85500000201"], "oversight": ["+85500000204"]}

LOADED = """
import json, sys
from commands import sequencing, worker
from service.config import settings_from_environment
worker.build(settings_from_environment())
print(json.dumps(sorted(m for m in sys.modules if m.split(".")[0] in ("webhooks", "dashboards", "alembic"))))
"""


@pytest.fixture
def founding() -> ceremony.Founding:
    return ceremony.found(PLANS, now=datetime.now(UTC))


@pytest.fixture
def installed(
    founding: ceremony.Founding, tmp_path: Path, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> dict[str, str]:
    """The settings of an installation's worker, in the environment."""
    folder = tmp_path / "keys"
    named = ceremony.write_files(founding, folder, twilio_token="an invented token", twilio_api_key=SECRET)
    of_worker = {name: named[f"HOTLINE_{name}"] for name in ("CARDS_FILE", "RELAY_FILE", "ROW_KEY_FILE", "ROOT_VKEY")}
    settings = {f"HOTLINE_{name}": value for name, value in of_worker.items()} | ceremony.worker_files(folder)
    settings |= {
        "HOTLINE_DATABASE_URL": sqlite_url,
        "HOTLINE_TWILIO_ACCOUNT_SID": ACCOUNT,
        "HOTLINE_TWILIO_API_KEY_SID": KEY,
        "HOTLINE_TWILIO_NUMBERS": NUMBER,
        "HOTLINE_TWILIO_API_URL": "http://127.0.0.1:1",
        "HOTLINE_LEDGER_ELSEWHERE": "true",
        "HOTLINE_DUTY": json.dumps(DUTY),
    }
    for name in [name for name in os.environ if name.startswith("HOTLINE_")]:
        monkeypatch.delenv(name)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    return settings | {"token": named["HOTLINE_TWILIO_TOKEN_FILE"]}


def built() -> worker.Worker:
    return build(settings_from_environment())


# --- what it refuses ---


def test_a_whole_installation_is_built(installed: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert built().watch.duty["screening"] == ("+85500000201",)
    said = capsys.readouterr().err
    assert "siem-reap" in said, "it says who has nobody on duty"
    assert "screening" not in said
    assert "+855" not in said


def test_the_worker_loads_no_web_app(installed: dict[str, str]) -> None:
    run = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stderr
    loaded: list[str] = json.loads(run.stdout.splitlines()[-1])
    assert "webhooks.twilio_client" in loaded
    foreign = ("dashboards", "alembic", "webhooks.app", "webhooks.forms", "webhooks.simulator")
    assert [name for name in loaded if name.startswith(foreign)] == []


@pytest.mark.parametrize("name", ["TWILIO_TOKEN_FILE", "TWILIO_PREVIOUS_TOKEN_FILE"])
def test_a_secret_of_another_process_is_refused(
    installed: dict[str, str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(f"HOTLINE_{name}", installed["token"])
    with pytest.raises(Misconfigured, match=name):
        built()
    monkeypatch.setenv("HOTLINE_DEMO", "true")
    built()


@pytest.mark.parametrize(
    "name",
    [
        *("CARDS_FILE", "RELAY_FILE", "RELAY_KEY_FILE", "ROW_KEY_FILE", "ROOT_VKEY"),
        *("TWILIO_ACCOUNT_SID", "TWILIO_API_KEY_SID", "TWILIO_API_KEY_FILE", "TWILIO_NUMBERS"),
    ],
)
def test_the_worker_does_not_start_without_what_it_needs(
    installed: dict[str, str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.delenv(f"HOTLINE_{name}")
    with pytest.raises(Misconfigured):
        built()


@pytest.mark.parametrize("name", ["RELAY_KEY_FILE", "ROW_KEY_FILE", "TWILIO_API_KEY_FILE"])
def test_a_secret_that_others_can_read_is_refused(installed: dict[str, str], name: str) -> None:
    Path(installed[f"HOTLINE_{name}"]).chmod(0o444)
    with pytest.raises(Misconfigured, match="can be read by others"):
        built()


def test_a_relay_key_that_does_not_fit_is_refused_and_not_shown(installed: dict[str, str]) -> None:
    other = ceremony.found(PLANS, now=datetime.now(UTC)).relay_private.hex()
    path = Path(installed["HOTLINE_RELAY_KEY_FILE"])
    path.chmod(0o600)
    path.write_text(other)
    path.chmod(0o400)
    with pytest.raises(Misconfigured, match="RELAY_KEY_FILE") as refusal:
        built()
    assert other not in str(refusal.value)


@pytest.mark.parametrize(
    "duty",
    [
        {"screning": ["+85500000201"]},
        {"siem-reap/boss": ["+85500000201"]},
        {"screening": ["+85500000201"], "Oversight": ["+85500000204"]},
        {"/supervisor": ["+85500000201"]},
    ],
)
def test_a_post_of_no_unit_is_refused(
    installed: dict[str, str], monkeypatch: pytest.MonkeyPatch, duty: dict[str, list[str]]
) -> None:
    """A typing error must not become a phone that stays silent."""
    monkeypatch.setenv("HOTLINE_DUTY", json.dumps(duty))
    with pytest.raises(Misconfigured, match="HOTLINE_DUTY") as refusal:
        built()
    assert "+855" not in str(refusal.value)


@pytest.mark.parametrize(
    "typed", ['{"screening": ["00 000 201"]}', '{"screening": ["+85500000201x"]}', "{screening +85500000201"]
)
def test_a_number_that_cannot_be_rung_is_refused_and_not_shown(
    installed: dict[str, str], monkeypatch: pytest.MonkeyPatch, typed: str
) -> None:
    monkeypatch.setenv("HOTLINE_DUTY", typed)
    with pytest.raises(Misconfigured) as refusal:
        built()
    assert "000" not in str(refusal.value)


def test_a_host_that_has_lost_its_clock_is_refused(installed: dict[str, str], founding: ceremony.Founding) -> None:
    sessions = open_database(installed["HOTLINE_DATABASE_URL"])
    lost = datetime(1970, 1, 1, 0, 5, tzinfo=UTC)
    with pytest.raises(Misconfigured, match="1970-01-01"):
        worker.check_time(sessions, founding.relay, lost)
    first_day = datetime.combine(founding.relay.start, datetime.min.time(), UTC)
    worker.check_time(sessions, founding.relay, first_day)
    with pytest.raises(Misconfigured):
        worker.check_time(sessions, founding.relay, first_day - timedelta(seconds=1))


def test_a_host_behind_what_others_have_written_says_so(installed: dict[str, str], founding: ceremony.Founding) -> None:
    sessions = open_database(installed["HOTLINE_DATABASE_URL"])
    now = datetime.now(UTC)
    for ahead, said in ((timedelta(minutes=4), False), (timedelta(minutes=6), True)):
        write(sessions, lambda tx, a=ahead: metrics.seen(tx, "worker", now + a))
        with everything_logged() as log:
            worker.check_time(sessions, founding.relay, now)
        assert ("clock_is_behind" in log.getvalue()) == said


def test_a_relay_key_past_its_days_is_said(
    installed: dict[str, str], founding: ceremony.Founding, capsys: pytest.CaptureFixture[str]
) -> None:
    old = replace(founding.relay, until=date(2020, 1, 1))
    worker.warn_of_gaps(settings_from_environment(), founding.cards, old)
    assert "2020-01-01" in capsys.readouterr().err


def test_a_database_that_is_not_migrated_is_refused_with_what_to_run(
    installed: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/old.db"
    migrate(url, "0002")
    monkeypatch.setenv("HOTLINE_DATABASE_URL", url)
    with pytest.raises(Misconfigured, match=r"\./hotline migrate"):
        built()


def test_the_whole_worker_shows_no_key_or_number(installed: dict[str, str], founding: ceremony.Founding) -> None:
    shown = repr(built())
    for secret in (founding.row_key, founding.relay_private):
        assert secret.hex() not in shown
        assert repr(secret)[2:-1] not in shown
    assert "+855" not in shown
    assert SECRET not in shown


# --- its time (threats.md T-51) ---


class Host:
    """A host's two clocks."""

    def __init__(self) -> None:
        self.wall, self.steady = datetime(2027, 3, 9, tzinfo=UTC), 50.0

    def passes(self, seconds: float) -> None:
        self.wall += timedelta(seconds=seconds)
        self.steady += seconds


@pytest.fixture
def host() -> Host:
    return Host()


@pytest.fixture
def steady(host: Host) -> SteadyTime:
    return SteadyTime(wall=lambda: host.wall, monotonic=lambda: host.steady)


@pytest.mark.parametrize(
    "jump", [timedelta(days=3650), timedelta(days=-1), timedelta(minutes=6), timedelta(minutes=-6)]
)
def test_a_jump_is_said_once_and_not_followed(host: Host, steady: SteadyTime, jump: timedelta) -> None:
    began = steady()
    host.wall += jump
    with everything_logged() as log:
        for _ in range(5):
            host.passes(60)
            assert steady() - began <= timedelta(minutes=5)
    assert steady() - began == timedelta(minutes=5)
    assert log.getvalue().count("clock_jumped") == 1

    host.wall -= jump  # somebody has set it right
    with everything_logged() as log:
        host.passes(60)
        assert steady() - began == timedelta(minutes=6)
        host.wall += jump
        steady()
    assert log.getvalue().count("clock_jumped") == 1, "and a second jump is said again"


def test_small_corrections_are_followed_and_never_backwards(host: Host, steady: SteadyTime) -> None:
    began = steady()
    host.wall += timedelta(seconds=30)
    assert steady() - began == timedelta(seconds=30)
    host.wall -= timedelta(seconds=20)
    assert steady() - began == timedelta(seconds=30)
    host.passes(5)
    assert steady() - began == timedelta(seconds=35)
    host.passes(3600)
    assert steady() - began == timedelta(seconds=3635)


def test_two_who_ask_at_once_while_it_is_set_get_the_same_time(host: Host) -> None:
    """What is set is a pair: half of a new one with half of an old one would be hours away."""
    between: list[Callable[[], datetime]] = []

    def monotonic() -> float:
        if between:
            between.pop()()  # another thread comes in between
        return host.steady

    steady = SteadyTime(wall=lambda: host.wall, monotonic=monotonic)
    host.wall -= timedelta(minutes=1)
    host.passes(4 * 3600)  # the wall clock is behind for hours, so that the pair is old
    before = steady()
    host.wall += timedelta(minutes=1, seconds=2)
    between.append(steady)
    assert steady() - before == timedelta(seconds=2)


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="only Linux counts the time that it slept")
def test_the_time_that_a_host_sleeps_counts() -> None:
    assert abs(worker._since_boot() - time.clock_gettime(time.CLOCK_BOOTTIME)) < 1


# --- its rounds ---


class Running:
    """A worker that runs in this process, for as long as the context lasts."""

    def __init__(self, one: worker.Worker) -> None:
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=one.run, args=(self._stopping,))

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(20)
        assert not self._thread.is_alive()


def sign(one: worker.Worker) -> datetime | None:
    with one.sessions.read() as session:
        return session.scalar(select(Sign.at).where(Sign.name == metrics.WORKER))


def test_a_duty_that_fails_stops_no_other_and_is_tried_again(
    installed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds: dict[str, int] = {}

    def counted(name: str, fault: Exception | None = None) -> Callable[..., int]:
        def round_(*_: object, **__: object) -> int:
            rounds[name] = rounds.get(name, 0) + 1
            if fault:
                raise fault
            return 0

        return round_

    monkeypatch.setattr(cases, "lapse_leases", counted("leases", RuntimeError("+85500000001 wrote")))
    monkeypatch.setattr(ladder, "answer_pages", counted("pages"))
    monkeypatch.setattr(ladder, "climb", counted("climb"))
    one = built()
    with everything_logged() as log, Running(one):
        assert soon(lambda: rounds.get("leases", 0) >= 2 and rounds.get("climb", 0) >= 2, 8)
    assert "duty_failed" in log.getvalue()
    assert "+855" not in log.getvalue()


def test_a_worker_leaves_a_sign_only_while_pages_and_texts_get_through(
    installed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = built()
    good, stuck = worker._Duty(lambda: 0, 1), worker._Duty(lambda: 0, 1)
    one.alive([good, stuck])
    first = sign(one)
    assert first is not None
    stuck.done -= worker.STUCK.total_seconds() + 1
    time.sleep(0.01)
    one.alive([good, stuck])
    assert sign(one) == first

    def fails() -> int:
        raise RuntimeError

    broken = worker._Duty(fails, 0.01)
    before, stopping = broken.done, threading.Event()
    thread = threading.Thread(target=broken.repeat, args=("texts", stopping))
    thread.start()
    time.sleep(0.1)
    stopping.set()
    thread.join()
    assert broken.done == before, "a round that fails has not got through"


# --- a real process ---


@contextmanager
def a_process(settings: dict[str, str], provider: Provider, log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Run the shipped command against the fake provider, ready, and end it."""
    environment = {name: value for name, value in settings.items() if name.startswith("HOTLINE_")}
    with serving(rest_app(provider)) as address, log.open("wb") as file:
        environment |= {"HOTLINE_TWILIO_API_URL": address, "PATH": os.environ["PATH"]}
        process = subprocess.Popen(
            [sys.executable, "-m", "commands", "worker"], cwd=ROOT, env=environment, stdout=file, stderr=file
        )
        try:
            assert soon(lambda: worker.READY in log.read_text() or process.poll() is not None, 30), log.read_text()
            assert process.poll() is None, log.read_text()
            yield process
        finally:
            process.kill()
            process.wait()


@pytest.fixture
def world(installed: dict[str, str], founding: ceremony.Founding) -> World:
    """The installation of the settings, seen from the receiving end."""
    sessions = open_database(installed["HOTLINE_DATABASE_URL"])
    ledger = Ledger("127.0.0.1:8000/log", founding.cards.monitor().public)
    write(
        sessions,
        lambda tx: ceremony.register(tx, ledger, ORGANISATIONS, PLANS, founding.cards, datetime.now(UTC)),
    )
    return World(sessions, founding, ledger)


def urgent(count: int) -> list[Any]:
    words = "A girl is locked in a room at the guesthouse now."
    return [a_tip(words, sender=a_number(), received_at=datetime.now(UTC)) for _ in range(count)]


def states(world: World) -> set[str]:
    with world.sessions.read() as session:
        return set(session.scalars(select(OutboxJob.state)).all())


def test_the_shipped_worker_answers_pages_deletes_and_ends_when_it_is_asked(
    installed: dict[str, str], world: World, tmp_path: Path
) -> None:
    provider, log = a_provider(clock=None, now=lambda: datetime.now(UTC)), tmp_path / "worker.log"
    [tip] = urgent(1)
    arrived = provider.arrives(sender=str(tip.sender), to=NUMBER, body=tip.text)
    with a_process(installed, provider, log) as process:
        world.receive(replace(tip, delivery=arrived.sid))
        assert soon(lambda: states(world) == {JobState.DONE}, 15), log.read_text()
        sent = sorted(m.to for m in provider.messages.values() if m.direction == "outbound-api")
        assert sent == sorted(["+85500000201", str(tip.sender)])
        with world.sessions.read() as session:
            assert session.scalar(select(Sign.at).where(Sign.name == metrics.WORKER))
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        assert time.monotonic() - began < 5
    text = log.read_text()
    for secret in (str(tip.sender), "+855", "locked", SECRET, world.founding.row_key.hex()):
        assert secret not in text


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_with_much_to_do_ends_when_it_is_asked_all_the_same(
    installed: dict[str, str], world: World, tmp_path: Path, number: int
) -> None:
    """What it has not begun is left to the next."""
    provider, log = a_provider(clock=None, now=lambda: datetime.now(UTC)), tmp_path / "worker.log"
    world.receive(*urgent(60))
    with a_process(installed, provider, log) as process:
        process.send_signal(number)
        assert process.wait(5) == 0
    assert JobState.SENDING not in states(world)


def test_the_command_says_what_it_is_about(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        worker.main(["--help"])
    assert ended.value.code == 0
    assert "listens on nothing" in capsys.readouterr().out


# --- the rules ---


def test_the_worker_decides_open_cases_by_what_is_published_and_writes_down_what_lapsed(
    installed: dict[str, str], founding: ceremony.Founding
) -> None:
    working = replace(built(), now=lambda: datetime.now(UTC))
    world = a_world_of(working, founding)
    [receipt] = world.receive(
        a_tip("Please look.", sender=a_number(), received_at=working.now(), stated=(told("begging", "yes"),))
    )
    assert working.follow_rules(lambda: False) == 0, "nothing was published"
    new = variant(BEGGING_TODAY, effective_from="2020-01-01T00:00:00+07:00", by=("u:supervisor", "u:oversight"))
    began = working.now() - timedelta(hours=71)
    propose(world, new, emergency=True, now=began)
    ruling.sign(world, new, "supervisor", began)

    assert replace(working, rules=Rulebook(working.sessions, triage().ruleset)).follow_rules(lambda: False) == 1
    assert the_case(world, receipt.tip).level == "P2"

    over = replace(working, now=lambda: began + timedelta(hours=73), rules=Rulebook(working.sessions, triage().ruleset))
    over.follow_rules(lambda: False)
    with world.sessions.read() as session:
        [version] = rulesets.versions(session)
    assert version.lapsed
    assert the_case(world, receipt.tip).level == "P2", "rules that end lower nothing by themselves"


def a_world_of(working: worker.Worker, founding: ceremony.Founding) -> World:
    world = World(working.sessions, founding, working.watch.ledger)
    people = {
        **PEOPLE,
        "supervisor": (Role.SUPERVISOR, "org-police", ("siem-reap",), "Ouk Samnang", "អ៊ុក សំណាង"),
    }
    write(world.sessions, partial(_settle, world=world, plans=PLANS, people=people))
    return world


# --- the ledger's nights ---


@pytest.fixture
def with_signer(installed: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker beside the signer, with a folder for the census."""
    monkeypatch.delenv("HOTLINE_LEDGER_ELSEWHERE")
    monkeypatch.setenv("HOTLINE_DEMO", "true")  # elsewhere the signer is a process of its own
    origin = settings_from_environment().origin
    for name, value in sequencing.make_signer(tmp_path / "log", origin).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HOTLINE_LEDGER_CENSUS_DIR", str(tmp_path / "census"))


def test_a_running_worker_takes_the_census_and_checks_the_ledger(with_signer: None, tmp_path: Path) -> None:
    one = built()

    def checked() -> bool:
        with one.sessions.read() as session:
            return session.get(Sign, metrics.VERIFIED) is not None

    one.integrate()
    with Running(one):
        assert soon(lambda: (tmp_path / "census" / "census-000001.box").exists() and checked(), 10)


def test_a_worker_without_a_folder_for_the_census_says_so(
    with_signer: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    built()
    assert "CENSUS" not in capsys.readouterr().err
    monkeypatch.delenv("HOTLINE_LEDGER_CENSUS_DIR")
    built()
    assert "HOTLINE_LEDGER_CENSUS_DIR" in capsys.readouterr().err


def test_a_halt_rings_the_phones_of_oversight_once(with_signer: None) -> None:
    one = built()
    assert one.sequencer is not None
    one.integrate()
    one.sequencer.halt("leaf")
    one.sequencer.halt("leaf")
    with one.sessions.read() as session:
        rows = session.scalars(select(OutboxJob)).all()
    assert [(row.kind, row.case, row.duty) for row in rows] == [("ring", None, "oversight#0")]
    outbox.check_tag(one.watch.row_key, rows[0])
