"""Starting the two web processes: what each loads, what each refuses."""

import asyncio
import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from commands import serve
from service import ceremony, rulesets
from service.db import Sessions, open_database
from service.errors import Misconfigured, StorageUnavailable
from service.models import KeptRuleset
from service.rulesets import Rulebook
from service.schema import migrate
from service.triage import NO_RULES
from tests.builders import NOW, PLANS, World, a_number, a_tip, a_world, triage
from tests.commands.builders import soon
from tests.ruling import BEGGING_TODAY, publish, told, variant

LOADED = """
import json, sys
from commands import serve
serve.{process}()
print(json.dumps(sorted(m for m in sys.modules if m.split(".")[0] in ("webhooks", "dashboards", "alembic", "twilio"))))
"""


@pytest.fixture
def installed(tmp_path: Path, sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The settings of an installation, in the environment."""
    founding = ceremony.found(PLANS, now=min(NOW, datetime.now(UTC)))
    named = ceremony.write_files(founding, tmp_path / "keys", twilio_token="an invented token")
    settings = named | {"HOTLINE_DATABASE_URL": sqlite_url, "HOTLINE_TWILIO_ACCOUNT_SID": "AC" + "0" * 32}
    for name in [name for name in os.environ if name.startswith("HOTLINE_")]:
        monkeypatch.delenv(name)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    return settings


def loaded(process: str) -> list[str]:
    """The modules that a process loads, of those that matter here."""
    run = subprocess.run(
        [sys.executable, "-c", LOADED.format(process=process)], capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == 0, run.stderr
    found: list[str] = json.loads(run.stdout.splitlines()[-1])
    return found


def for_staff(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TWILIO_TOKEN_FILE", "PHONE_PEPPER_FILE"):
        monkeypatch.delenv(f"HOTLINE_{name}")


def test_the_public_process_does_not_load_the_staff_app(installed: dict[str, str]) -> None:
    names = loaded("public")
    assert "webhooks.app" in names
    assert [name for name in names if name.startswith(("dashboards", "alembic", "twilio"))] == []


def test_the_staff_process_does_not_load_the_public_app(
    installed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for_staff(monkeypatch)
    names = loaded("staff")
    assert "dashboards.app" in names
    assert [name for name in names if name.startswith(("webhooks", "alembic", "twilio"))] == []


@pytest.mark.parametrize("name", ["TWILIO_TOKEN_FILE", "PHONE_PEPPER_FILE"])
def test_the_staff_process_refuses_secrets_of_the_public_one(
    installed: dict[str, str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    kept = installed[f"HOTLINE_{name}"]
    for_staff(monkeypatch)
    monkeypatch.setenv(f"HOTLINE_{name}", kept)
    with pytest.raises(Misconfigured, match=name):
        serve.staff()
    monkeypatch.setenv("HOTLINE_DEMO", "true")
    assert serve.staff() is not None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HOTLINE_ROW_KEY_FILE", None),
        ("HOTLINE_PHONE_PEPPER_FILE", None),
        ("HOTLINE_PLACE_KEY_FILE", None),
        ("HOTLINE_SKETCH_KEY_FILE", None),
        ("HOTLINE_CARDS_FILE", None),
        ("HOTLINE_RELAY_FILE", None),
        ("HOTLINE_ROOT_VKEY", None),
        ("HOTLINE_TWILIO_ACCOUNT_SID", None),
    ],
)
def test_the_public_process_does_not_start_without_what_it_needs(
    installed: dict[str, str], monkeypatch: pytest.MonkeyPatch, name: str, value: Any
) -> None:
    monkeypatch.delenv(name)
    with pytest.raises(Misconfigured):
        serve.public()


def test_an_empty_token_is_refused(installed: dict[str, str]) -> None:
    token = Path(installed["HOTLINE_TWILIO_TOKEN_FILE"])
    token.chmod(0o600)
    token.write_text("\n")
    token.chmod(0o400)
    with pytest.raises(Misconfigured, match="TWILIO_TOKEN_FILE"):
        serve.public()


def test_cards_of_another_root_are_refused(installed: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOTLINE_ROOT_VKEY", ceremony.found(PLANS, now=NOW).root_vkey)
    with pytest.raises(Misconfigured, match="CARDS_FILE"):
        serve.public()


def test_a_relay_key_of_another_relay_is_refused(installed: dict[str, str]) -> None:
    relay = Path(installed["HOTLINE_RELAY_FILE"])
    relay.chmod(0o600)
    relay.write_text(ceremony.found(PLANS, now=NOW).relay_note)
    with pytest.raises(Misconfigured, match="RELAY_FILE"):
        serve.public()


def test_a_database_that_is_not_migrated_is_refused_with_what_to_run(
    installed: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/old.db"
    migrate(url, "0001")
    monkeypatch.setenv("HOTLINE_DATABASE_URL", url)
    with pytest.raises(Misconfigured, match=r"\./hotline migrate"):
        serve.public()


def test_several_workers_need_postgresql(installed: dict[str, str]) -> None:
    with pytest.raises(Misconfigured, match="PostgreSQL"):
        serve.main(["public", "--workers", "2"])


# --- the rules of a process that runs ---


@pytest.fixture
def world(sqlite_url: str) -> World:
    return a_world(open_database(sqlite_url))


class Inbox:
    """The receiving end, as far as it is told which rules to use."""

    def __init__(self) -> None:
        self.used: list[str] = []

    def use(self, ruleset: Any) -> None:
        self.used.append(ruleset.version)


def test_the_public_process_takes_up_what_is_published_while_it_runs(world: World) -> None:
    inbox, book = Inbox(), Rulebook(world.sessions, triage().ruleset)
    book.look(NOW)
    new = variant(BEGGING_TODAY, effective_from="2020-01-01T00:00:00+07:00")

    async def run() -> None:
        task = asyncio.create_task(serve.follow_rules(book, inbox, every=0.01))  # type: ignore[arg-type]
        assert await asyncio.to_thread(soon, lambda: inbox.used)
        await asyncio.to_thread(publish, world, new, LONG_AGO)
        assert await asyncio.to_thread(soon, lambda: inbox.used[-1] == "1.1.0")
        task.cancel()

    asyncio.run(run())
    assert inbox.used[0] == "1.0.0"


LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)


def test_a_fault_while_following_ends_neither_the_task_nor_the_rules(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox, book = Inbox(), Rulebook(world.sessions, triage().ruleset)
    book.look(NOW)
    look, tried = book.look, []

    def sometimes(now: datetime) -> None:
        tried.append(now)
        if len(tried) == 1:
            raise ZeroDivisionError
        look(now)

    monkeypatch.setattr(book, "look", sometimes)

    async def run() -> None:
        task = asyncio.create_task(serve.follow_rules(book, inbox, every=0.01))  # type: ignore[arg-type]
        assert await asyncio.to_thread(soon, lambda: inbox.used)
        task.cancel()

    asyncio.run(run())
    assert inbox.used[0] == "1.0.0"


def test_intake_decides_by_the_rules_that_it_is_told_to_use(world: World) -> None:
    class Writes:
        """Stores at once, for one tip."""

        async def submit(self, use_case: Any, *, blind: bool = False) -> Any:
            from service.db import write

            return write(world.sessions, use_case)

    intake = world.intake(Writes())
    levels = []
    for ruleset in (triage().ruleset, variant(BEGGING_TODAY), NO_RULES):
        intake.use(ruleset)
        tip = a_tip("Please look.", sender=a_number(), stated=(told("begging", "yes"),))
        levels.append(asyncio.run(intake.receive(tip)).level)

    assert levels == ["P3", "P2", "P1"]


def test_a_process_keeps_the_rules_of_its_release_and_starts_without_a_disk(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = triage().ruleset
    assert serve.open_rules(world.sessions, release).at(NOW) is release
    with world.sessions.read() as session:
        assert session.get_one(KeptRuleset, release.content_hash).content == release.content

    def full(_sessions: Sessions, _use_case: Any) -> Any:
        raise StorageUnavailable

    monkeypatch.setattr(serve, "write", full)
    assert serve.open_rules(world.sessions, release).at(NOW) is release
    assert rulesets.LOOK_EVERY.total_seconds() <= 10, "published rules are taken up soon"
