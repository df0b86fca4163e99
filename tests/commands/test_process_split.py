"""Each process starts with its own column of keys.md section 2 and nothing else, and refuses another's."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from sqlalchemy import func, select

from commands import custody, serve, worker
from service import ceremony
from service.ceremony import Founding, write_secret
from service.config import read_settings, settings_from_environment
from service.db import open_database, write
from service.errors import Misconfigured
from service.ledger.events import Ledger
from service.models import Contact, LedgerEvent, LedgerField, Message
from service.vault.cards import write_cards
from tests.builders import ORGANISATIONS, PLANS
from tests.webhooks.builders import ACCOUNT, HOST, NUMBER, SMS, TOKEN, an_sms, encode, sign, sms_headers

# The table of keys.md section 2: the setting, the file's name on a host, and who holds it.
TABLE: dict[str, tuple[str, set[str]]] = {
    "PHONE_PEPPER": ("phone.pepper", {"public", "worker"}),
    "CODE_PEPPER": ("code.pepper", {"public"}),
    "PLACE_KEY": ("place.key", {"public", "staff", "worker"}),
    "SKETCH_KEY": ("sketch.key", {"public", "staff", "worker"}),
    "ROW_KEY": ("row.key", {"public", "staff", "worker"}),
    "TWILIO_TOKEN": ("twilio.token", {"public"}),
    "TWILIO_PREVIOUS_TOKEN": ("twilio.previous-token", {"public"}),
    "TWILIO_API_KEY": ("twilio.key", {"worker"}),
    "RELAY_KEY": ("relay.key", {"worker"}),
    "RELAY_IDENTITY": ("relay.identity", {"worker"}),
    "COVER_KEY": ("cover.key", {"worker"}),
}
OFFLINE = ("root.seed", "backup.key", "recovery.boxes.key", "unit-siem-reap.key", "custodian-a.key")
PROCESSES = ("public", "staff", "worker")
FOREIGN = [(process, name) for process in PROCESSES for name, (_, who) in TABLE.items() if process not in who]
START: dict[str, Callable[[], Any]] = {
    "public": serve.public,
    "staff": serve.staff,
    "worker": lambda: worker.build(settings_from_environment()),
}


@pytest.fixture(scope="module")
def founding() -> Founding:
    return ceremony.found(PLANS, now=datetime.now(UTC))


@pytest.fixture
def keys(tmp_path: Path, founding: Founding) -> Path:
    """A folder for each process, with the files of its column, and the signed notes that all may read."""
    for name, (file, who) in TABLE.items():
        secret = getattr(founding, name.lower(), None)
        for process in who:
            (tmp_path / "keys" / process).mkdir(parents=True, exist_ok=True)
            write_secret(tmp_path / "keys" / process / file, secret.hex() if secret else TOKEN.decode())
    write_secret(tmp_path / "keys" / "worker" / "relay.key", founding.relay_private.hex())
    write_secret(tmp_path / "keys" / "worker" / "relay.identity", founding.relay_seed.hex())
    (tmp_path / "cards.note").write_text(founding.cards_note)
    (tmp_path / "relay.note").write_text(founding.relay_note)
    return tmp_path / "keys"


@pytest.fixture
def as_process(
    keys: Path, founding: Founding, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], dict[str, str]]:
    """Put the settings of one process into the environment, and return them."""

    def become(process: str) -> dict[str, str]:
        for name in [name for name in os.environ if name.startswith("HOTLINE_")]:
            monkeypatch.delenv(name)
        settings = {
            "HOTLINE_DATABASE_URL": sqlite_url,
            "HOTLINE_PUBLIC_URL": HOST,
            "HOTLINE_ROOT_VKEY": founding.root_vkey,
            "HOTLINE_CARDS_FILE": str(keys.parent / "cards.note"),
            "HOTLINE_RELAY_FILE": str(keys.parent / "relay.note"),
            "HOTLINE_TWILIO_ACCOUNT_SID": ACCOUNT,
            "HOTLINE_TWILIO_NUMBERS": NUMBER,
            "HOTLINE_TWILIO_API_KEY_SID": "SK" + "0" * 32,
            "HOTLINE_KEYS_DIR": str(keys / process),
            **({"HOTLINE_LEDGER_ELSEWHERE": "true"} if process == "worker" else {}),
        }
        for name, (file, who) in TABLE.items():
            if process in who:
                settings[f"HOTLINE_{name}_FILE"] = str(keys / process / file)
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        return settings

    return become


def test_our_table_is_the_one_of_the_reference() -> None:
    files = {s.setting: (s.files[0], set(s.holders)) for s in custody.SECRETS if s.setting and s.files}
    assert files.pop("ledger_signer_dir") == ("log.key", set()), "the signer's process alone"
    assert {setting.removesuffix("_file").upper(): held for setting, held in files.items()} == TABLE


@pytest.mark.parametrize("process", PROCESSES)
def test_a_process_starts_with_its_own_column_alone(as_process: Callable[[str], Any], process: str) -> None:
    as_process(process)
    assert START[process]() is not None


@pytest.mark.parametrize(("process", "name"), FOREIGN)
def test_a_process_refuses_a_secret_of_anothers_column(
    as_process: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, keys: Path, process: str, name: str
) -> None:
    as_process(process)
    monkeypatch.setenv(f"HOTLINE_{name}_FILE", str(keys / "public" / "row.key"))
    with pytest.raises(Misconfigured, match=f"must not hold HOTLINE_{name}_FILE"):
        START[process]()
    monkeypatch.setenv("HOTLINE_DEMO", "true")  # the control: the demo holds everything under one user
    custody.refuse_foreign_secrets(settings_from_environment(), process)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("file", [*(file for file, _ in TABLE.values()), *OFFLINE])
def test_a_process_refuses_what_it_could_read_though_no_setting_names_it(
    as_process: Callable[[str], Any], keys: Path, process: str, file: str
) -> None:
    as_process(process)
    own = next((process in who for name, who in TABLE.values() if name == file), False)
    write_secret(keys / process / "more.key", "00")  # a name that is none of the table's means nothing
    settings = settings_from_environment()
    custody.refuse_foreign_secrets(settings, process)

    (keys / process / "deeper").mkdir()
    write_secret(keys / process / "deeper" / file, "00")
    if own:
        custody.refuse_foreign_secrets(settings, process)
        return
    with pytest.raises(Misconfigured, match=file):
        custody.refuse_foreign_secrets(settings, process)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_what_another_user_alone_can_read_is_no_reason_to_refuse(keys: Path, founding: Founding) -> None:
    """One folder for all, as it lies on a host: each process under its own user starts, and root does not."""
    users = {"public": 10001, "staff": 10002, "worker": 10003}
    for process, user in users.items():
        for path in [keys / process, *(keys / process).iterdir()]:
            os.chown(path, user, user)
        (keys / process).chmod(0o700)
    for path in [keys, *keys.parents]:
        if path != Path("/tmp") and path.is_relative_to("/tmp"):
            path.chmod(0o755)
    check = (
        "import os, sys; from commands.custody import refuse_foreign_secrets; from service.config import Settings\n"
        "os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))\n"
        "refuse_foreign_secrets(Settings(keys_dir=sys.argv[3]), sys.argv[1])"
    )

    def run(process: str, user: int) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-c", check, process, str(user), str(keys)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    for process, user in users.items():
        assert run(process, user).returncode == 0, run(process, user).stderr
    assert "must not hold" in run("staff", 0).stderr
    assert "must not hold" in run("staff", users["worker"]).stderr


def test_the_public_app_takes_a_tip_with_no_private_key_in_reach(
    as_process: Callable[[str], dict[str, str]], founding: Founding, sqlite_url: str
) -> None:
    """Whole work with nothing but its column: a signed text is stored, its number sealed to a key that is not there."""
    given = as_process("public")
    sessions = open_database(sqlite_url)
    ledger = Ledger("hotline.example/log", founding.cards.monitor().public)
    now = datetime.now(UTC)
    write(sessions, lambda tx: ceremony.register(tx, ledger, ORGANISATIONS, PLANS, founding.cards, now))
    app = serve.public()
    fields = an_sms("SM" + "1" * 32)

    async def post() -> int:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url=HOST) as client:
            headers = sms_headers(sign(fields, url=HOST + SMS))
            return (await client.post(SMS, content=encode(fields), headers=headers)).status_code

    assert asyncio.run(post()) == 200
    with sessions.read() as session:
        assert session.scalar(select(func.count()).select_from(Message)) == 1
        assert session.scalars(select(Contact)).one().number_sealed is not None
        started = select(func.count()).select_from(LedgerEvent).where(LedgerEvent.type == "system:code:started")
        assert session.scalar(started) == 1
    sessions.close()
    held = "".join(path.read_text() for path in map(Path, given.values()) if path.is_absolute() and path.is_file())
    private = [founding.root_seed, founding.relay_private, founding.relay_seed, founding.recovery_private]
    private += [founding.backup_private, *founding.unit_privates.values()]
    assert [key for key in private if key.hex() in held] == []
    assert founding.row_key.hex() in held, "the control: what it does hold is found"


def test_the_staff_app_answers_and_the_worker_works_a_round(as_process: Callable[[str], Any], sqlite_url: str) -> None:
    as_process("staff")
    app = serve.staff()

    async def get() -> int:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url=HOST) as client:
            return (await client.get("/sign-in")).status_code

    assert asyncio.run(get()) == 200
    as_process("worker")
    built = START["worker"]()
    assert built.carry_numbers() == 0
    assert built.tell(lambda: False) == 0


@pytest.mark.parametrize(
    "process", ["staff", "worker"]
)  # the public one is asked when it takes a tip: it starts slowly
def test_a_start_repeats_the_hash_of_the_cards_and_names_code_and_settings(
    as_process: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, founding: Founding, sqlite_url: str, process: str
) -> None:
    def told() -> dict[str, bytes]:
        with sessions.read() as session:
            event = session.scalars(
                select(LedgerEvent).where(LedgerEvent.type == "system:code:started").order_by(LedgerEvent.seq.desc())
            ).first()
            assert event is not None
            return {
                row.name: row.value
                for row in session.scalars(select(LedgerField).where(LedgerField.eid == event.eid)).all()
            }

    as_process(process)
    sessions = open_database(sqlite_url)
    START[process]()
    first = told()
    assert (first["process"], first["cards"]) == (f'"{process}"'.encode(), f'"{founding.cards.sha256}"'.encode())
    monkeypatch.setenv("HOTLINE_MAX_IN_FLIGHT", "7")
    START[process]()
    second = told()
    assert second["code"] == first["code"]
    assert second["settings"] != first["settings"]
    monkeypatch.setattr(serve, "code_hash", lambda: "0" * 64)
    START[process]()
    assert told()["code"] != first["code"]
    sessions.close()


CARDS_FAULTS: dict[str, Callable[[list[Any]], list[Any]]] = {
    "no screening": lambda units: [card for card in units if card.kind != "screening"],
    "only our own oversight": lambda units: [card for card in units if card.unit != "oversight"],
    "a screening unit that begins tomorrow": lambda units: [
        replace(card, not_before=card.not_before + timedelta(days=2)) if card.kind == "screening" else card
        for card in units
    ],
}


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("fault", CARDS_FAULTS)
def test_cards_that_intake_cannot_run_on_stop_every_start(
    as_process: Callable[[str], dict[str, str]], founding: Founding, process: str, fault: str
) -> None:
    given = as_process(process)
    cards = founding.cards
    units = CARDS_FAULTS[fault](list(cards.units))
    text = write_cards(
        2, cards.day, units, relay=cards.relay, root_name=ceremony.ROOT_NAME, root_seed=founding.root_seed
    )
    Path(given["HOTLINE_CARDS_FILE"]).write_text(text)
    with pytest.raises(Misconfigured, match="CARDS_FILE"):
        START[process]()


@pytest.mark.parametrize("process", PROCESSES)
def test_a_cards_file_that_is_not_the_one_published_stops_every_start(
    as_process: Callable[[str], dict[str, str]], founding: Founding, sqlite_url: str, process: str
) -> None:
    given, cards = as_process(process), founding.cards

    def signed(serial: int) -> str:
        known = {"relay": cards.relay, "root_name": ceremony.ROOT_NAME, "root_seed": founding.root_seed}
        return write_cards(serial, cards.day, cards.units, **known)  # type: ignore[arg-type]

    sessions = open_database(sqlite_url)
    ledger = Ledger("hotline.example/log", cards.monitor().public)
    now, two = datetime.now(UTC), ("Officer One", "Officer Two")
    write(sessions, lambda tx: ceremony.publish(tx, ledger, signed(2), founding.root_vkey, officers=two, now=now))
    sessions.close()
    with pytest.raises(Misconfigured, match="older"):
        START[process]()
    Path(given["HOTLINE_CARDS_FILE"]).write_text(signed(2))
    assert START[process]() is not None, "the control"


def test_settings_of_a_file_are_checked_like_those_of_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "staff.env"
    file.write_text("HOTLINE_RELAY_KEY_FILE=/nowhere/relay.key\n")
    with pytest.raises(Misconfigured, match="RELAY_KEY_FILE"):
        custody.refuse_foreign_secrets(read_settings(file), "staff")
