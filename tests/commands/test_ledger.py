"""``hotline ledger`` from a shell: set up, sign apart, check, copy out."""

import json
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import text

from commands import ledger, sequencing
from service.config import settings_from_environment
from service.db import open_database, write
from service.errors import Misconfigured
from service.ledger import census, notes
from service.ledger.events import Ledger
from service.ledger.signer_socket import SignerClient
from service.nightly import keep_census
from service.vault import boxes
from service.vault.note import parse_vkey
from tests.commands.builders import soon
from tests.service.ledger.builders import COVER_KEY, NOW, ORIGIN, SEED, Log, policy_text

ROOT = Path(ledger.__file__).parents[1]


@pytest.fixture
def a_log(sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Log:
    """A witnessed log of some events, with the settings of its host in the environment."""
    log = Log(open_database(sqlite_url), tmp_path)
    log.events(9)
    one = log.sequencer()
    one.round()
    one.publish()
    one.step_down()
    (tmp_path / "policy").write_text(policy_text())
    for name, secret in (("signer/log.key", SEED), ("cover.key", COVER_KEY)):
        (tmp_path / name).write_text(secret.hex())
        (tmp_path / name).chmod(0o400)
    settings = {
        "PUBLIC_URL": "https://bamboo.example",
        "DATABASE_URL": sqlite_url,
        "LEDGER_VKEY": policy_text().split()[1],
        "LEDGER_SIGNER_DIR": str(tmp_path / "signer"),
        "LEDGER_POLICY_FILE": str(tmp_path / "policy"),
        "COVER_KEY_FILE": str(tmp_path / "cover.key"),
    }
    monkeypatch.delenv("HOTLINE_SETTINGS", raising=False)
    for name, value in settings.items():
        monkeypatch.setenv(f"HOTLINE_{name}", value)
    return log


def test_init_makes_a_key_and_a_memory_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOTLINE_PUBLIC_URL", "https://bamboo.example")
    assert ledger.main(["init", str(tmp_path / "log")]) == 0
    said = capsys.readouterr().out
    key = next(line for line in said.splitlines() if line.startswith("HOTLINE_LEDGER_VKEY=")).split("=", 1)[1]
    assert stat.S_IMODE((tmp_path / "log" / "log.key").stat().st_mode) == 0o400
    signer = sequencing.open_signer(tmp_path / "log", ORIGIN)
    assert signer.verifier == parse_vkey(key)
    assert notes.open_checkpoint(signer.head(), signer.verifier).size == 0
    assert signer.seed.hex() not in said
    with pytest.raises(Misconfigured, match="already"):
        ledger.main(["init", str(tmp_path / "log")])


def test_verify_is_0_for_good_1_for_a_mismatch_and_2_for_what_cannot_be_checked(
    a_log: Log, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ledger.main(["verify", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["good"], told["first"], told["events"]) == (True, None, 9)
    with a_log.sessions.writing.begin() as connection:
        connection.execute(text("DROP TRIGGER ledger_event_no_update"))
        connection.execute(
            text("UPDATE ledger_event SET body = X'00' WHERE eid = (SELECT eid FROM ledger_leaf WHERE idx = 4)")
        )
    assert ledger.main(["verify", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["good"], told["first"]["what"], told["first"]["index"]) == (False, "event", 4)
    assert ledger.main(["verify"]) == 1
    assert "first at event: leaf 4" in capsys.readouterr().out
    monkeypatch.setenv("HOTLINE_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")
    with pytest.raises(Misconfigured):  # which is exit code 2
        ledger.main(["verify"])


def test_a_copy_is_checked_with_a_policy_and_heads_seen_before(
    a_log: Log, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy, policy = tmp_path / "copy", str(tmp_path / "policy")
    (tmp_path / "wanted").write_text("0\n3\n")
    assert ledger.main(["export", str(copy), "--receipts", str(tmp_path / "wanted")]) == 0
    assert (copy / "3.tlog-proof").is_file()
    assert ledger.main(["verify", str(copy), "--policy", policy, "--seen", str(copy / "checkpoint")]) == 0
    larger = notes.sign_checkpoint(notes.Checkpoint(ORIGIN, 99, bytes(32)), SEED)
    (tmp_path / "larger").write_text(larger)
    assert ledger.main(["verify", str(copy), "--policy", policy, "--seen", str(tmp_path / "larger")]) == 1
    assert ledger.main(["verify", "--seen", str(tmp_path / "larger")]) == 1
    for wrong in ([str(copy)], [str(tmp_path / "nothing"), "--policy", policy], [str(copy), "--policy", str(copy)]):
        with pytest.raises(Misconfigured):  # which is exit code 2
            ledger.main(["verify", *wrong])
    capsys.readouterr()


def test_the_signer_runs_as_its_own_process_and_the_worker_needs_no_key(
    a_log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s.sock"
    command = [sys.executable, "-m", "commands", "ledger", "signer", str(tmp_path / "signer"), str(path)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        assert process.stderr.readline().strip() == ledger.READY
        monkeypatch.delenv("HOTLINE_LEDGER_SIGNER_DIR")
        monkeypatch.setenv("HOTLINE_LEDGER_SIGNER_SOCKET", str(path))
        settings = settings_from_environment()
        made = Ledger(ORIGIN, boxes.keypair()[1])
        one = sequencing.build_sequencer(settings, a_log.sessions, made, now=lambda: NOW, effects={})
        assert one is not None
        assert isinstance(one.signer, SignerClient)
        a_log.events(3)
        assert one.round() >= 3
        assert a_log.state().note == a_log.signer.head()
        assert ledger.main(["verify"]) == 0
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    assert soon(lambda: not path.exists())


def test_a_worker_says_where_the_signer_is_or_does_not_start(a_log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Ledger(ORIGIN, boxes.keypair()[1])

    def built() -> object:
        return sequencing.build_sequencer(
            settings_from_environment(), a_log.sessions, made, now=lambda: NOW, effects={}
        )

    assert built() is not None
    monkeypatch.setenv("HOTLINE_LEDGER_VKEY", policy_text().split()[5])
    with pytest.raises(Misconfigured, match="VKEY"):
        built()
    monkeypatch.delenv("HOTLINE_LEDGER_SIGNER_DIR")
    with pytest.raises(Misconfigured, match="LEDGER_ELSEWHERE"):
        built()
    monkeypatch.setenv("HOTLINE_DEMO", "true")
    assert built() is None
    monkeypatch.delenv("HOTLINE_DEMO")
    monkeypatch.setenv("HOTLINE_LEDGER_ELSEWHERE", "true")
    assert built() is None


def test_a_sealed_census_is_opened_with_the_monitors_key_and_compared(
    a_log: Log, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = tmp_path / "unit-monitor.key"
    key.write_text(a_log.monitor[0].hex())
    key.chmod(0o400)
    opened = []
    for number in (1, 2):
        taken = write(a_log.sessions, lambda tx: census.take(tx, a_log.ledger, NOW))
        path = keep_census(tmp_path / "census", taken, a_log.monitor[1])
        assert ledger.main(["census", "open", str(path), "--key", str(key)]) == 0
        opened.append(tmp_path / f"{number}")
        opened[-1].write_text(capsys.readouterr().out)
    assert ledger.main(["census", "check", *map(str, opened)]) == 0
    assert ledger.main(["census", "check", *map(str, reversed(opened))]) == 1
    other = tmp_path / "unit-other.key"
    other.write_text(boxes.keypair()[0].hex())
    other.chmod(0o400)
    for wrong in ((path, other), (path.rename(path.with_name("census-000009.box")), key)):
        with pytest.raises(Misconfigured, match="no census under its own name"):
            ledger.main(["census", "open", str(wrong[0]), "--key", str(wrong[1])])
