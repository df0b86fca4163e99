"""Settings, logs, the error tree, founding, and what monitoring sees."""

import inspect
import json
import logging
import stat
from pathlib import Path
from typing import Any

import prometheus_client
import pytest
import structlog

from service import ceremony, errors, logs, metrics, problems
from service.config import Settings, read_secret, read_settings, settings_from_environment
from service.db import Sessions, open_database, write
from service.errors import BadCards, HotlineError, Misconfigured
from service.vault.cards import UnitKind, read_cards, read_relay_note
from tests.builders import NOW, PLANS, a_tip, a_world


def all_errors(kind: type[HotlineError] = HotlineError) -> set[type[HotlineError]]:
    return {kind} | {e for sub in kind.__subclasses__() for e in all_errors(sub) if e.__module__ == errors.__name__}


# --- errors ---


def test_every_error_stands_in_the_tree_of_the_docstring_and_has_a_status() -> None:
    for kind in all_errors() - {HotlineError}:
        assert kind.__name__ in (errors.__doc__ or ""), kind
        assert any(k in problems.STATUS for k in kind.__mro__), kind
        assert inspect.getdoc(kind)


def test_a_problem_has_the_shape_of_rfc_9457() -> None:
    answer = problems.problem_response(errors.CaseMoved("The case has changed."))
    assert answer.status_code == 409
    assert answer.media_type == "application/problem+json"
    body = json.loads(bytes(answer.body))
    assert set(body) == {"type", "title", "status", "detail"}
    assert body["type"] == "/problems/CaseMoved"


# --- settings ---


def secret_file(tmp_path: Path, text: str, mode: int = 0o400) -> Path:
    path = tmp_path / "secret"
    path.write_text(text)
    path.chmod(mode)
    return path


def test_a_secret_is_read_from_its_file(tmp_path: Path) -> None:
    assert read_secret(secret_file(tmp_path, "ab" * 32 + "\n"), "row_key_file", length=32) == b"\xab" * 32


def test_a_token_is_read_as_text_without_its_line_end(tmp_path: Path) -> None:
    assert read_secret(secret_file(tmp_path, "token\n"), "twilio_token_file") == b"token"


@pytest.mark.parametrize(
    ("text", "mode", "length"),
    [("", 0o400, None), ("\n", 0o400, None), ("ab", 0o400, 32), ("xy" * 32, 0o400, 32), ("token", 0o444, None)],
)
def test_an_empty_short_malformed_or_readable_secret_is_refused(
    tmp_path: Path, text: str, mode: int, length: int | None
) -> None:
    with pytest.raises(Misconfigured) as refused:
        read_secret(secret_file(tmp_path, text, mode), "twilio_token_file", length=length)
    assert "HOTLINE_TWILIO_TOKEN_FILE" in str(refused.value)
    assert not text.strip() or text not in str(refused.value)


def test_a_missing_secret_names_its_setting(tmp_path: Path) -> None:
    for path in (None, tmp_path / "absent"):
        with pytest.raises(Misconfigured, match="HOTLINE_ROW_KEY_FILE"):
            read_secret(path, "row_key_file", length=32)


@pytest.mark.parametrize("name", [n for n in Settings.model_fields if "key" in n or "token" in n or "pepper" in n])
def test_secrets_have_no_setting_but_a_file(name: str) -> None:
    assert name.endswith(("_file", "_dir", "vkey", "_sid")), "a value in the environment is inherited by children"


def test_settings_come_from_a_file_under_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "settings.env"
    file.write_text("HOTLINE_PUBLIC_URL=https://a.example\nHOTLINE_TWILIO_NUMBERS=+85500000001, +85500000002\n")
    settings = read_settings(file)
    assert (settings.public_url, settings.origin) == ("https://a.example", "a.example/log")
    assert settings.twilio_numbers == ("+85500000001", "+85500000002")
    monkeypatch.setenv("HOTLINE_PUBLIC_URL", "https://b.example/")
    assert read_settings(file).public_url == "https://b.example"
    monkeypatch.setenv("HOTLINE_SETTINGS", str(tmp_path / "absent"))
    with pytest.raises(Misconfigured, match="HOTLINE_SETTINGS"):
        settings_from_environment()


def test_wrong_settings_are_named_without_their_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOTLINE_PUBLIC_URL", "ftp://secret.example")
    with pytest.raises(Misconfigured) as refused:
        read_settings(None)
    assert "HOTLINE_PUBLIC_URL" in str(refused.value)
    assert "secret" not in str(refused.value)


# --- logs ---


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Any:
    def read() -> list[Any]:
        seen.extend(json.loads(line) for line in capsys.readouterr().err.splitlines())
        return seen

    seen: list[Any] = []
    yield read
    logs.configure("test", strict=True)


def test_an_unlisted_key_raises_in_tests_and_is_dropped_in_production(lines: Any) -> None:
    logs.configure("public", strict=True)
    with pytest.raises(logs.Unlisted):
        structlog.get_logger().warning("stored", body="a canary word")
    logs.configure("public", strict=False)
    structlog.get_logger().warning("stored", body="a canary word", delivery="SM1")
    assert lines()[-1]["delivery"] == "SM1"
    assert "canary" not in json.dumps(lines())


def test_an_exception_is_logged_without_its_words(lines: Any) -> None:
    logs.configure("public", strict=True)
    try:
        raise ValueError("a canary word")
    except ValueError:
        structlog.get_logger().exception("failed")
        logging.getLogger("library").exception("went wrong with %s", "a canary word")
    assert [line.get("error") for line in lines()] == ["ValueError", "ValueError"]
    assert "test_base.py" in lines()[0]["place"]
    assert "canary" not in json.dumps(lines())


def test_a_librarys_ready_made_message_is_not_trusted(lines: Any) -> None:
    logs.configure("public", strict=True)
    logging.getLogger("library").error("the caller said: a canary word")
    assert "canary" not in json.dumps(lines())
    assert lines()[0]["logger"] == "library"


# --- founding ---


def test_key_files_are_for_their_owner_alone_and_name_the_settings(tmp_path: Path) -> None:
    founding = ceremony.found(PLANS, now=NOW)
    named = ceremony.write_files(founding, tmp_path / "keys", twilio_token="token")
    for path in (tmp_path / "keys").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o400, path
    cards = read_cards(Path(named["HOTLINE_CARDS_FILE"]).read_text(), named["HOTLINE_ROOT_VKEY"])
    assert cards == founding.cards
    relay = read_relay_note(Path(named["HOTLINE_RELAY_FILE"]).read_text(), cards.relay or b"")
    assert relay == founding.relay
    assert read_secret(Path(named["HOTLINE_ROW_KEY_FILE"]), "row_key_file", length=32) == founding.row_key
    assert {f"HOTLINE_{name.upper()}" for name in Settings.model_fields} >= set(named)


def test_offline_keys_are_not_among_the_files(tmp_path: Path) -> None:
    founding = ceremony.found(PLANS, now=NOW)
    ceremony.write_files(founding, tmp_path, twilio_token="token")
    written = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    offline = [founding.root_seed, founding.recovery_private, founding.backup_private]
    for secret in [*offline, *founding.unit_privates.values()]:
        assert secret.hex().encode() not in written
    assert "root_seed" not in repr(founding)


@pytest.mark.parametrize("kind", [UnitKind.SCREENING, UnitKind.OVERSIGHT, UnitKind.MONITOR])
def test_an_installation_without_a_unit_it_needs_is_not_founded(kind: UnitKind) -> None:
    with pytest.raises(BadCards):
        ceremony.found([plan for plan in PLANS if plan.kind != kind], now=NOW)


def test_oversight_of_the_screening_organisation_alone_is_not_enough() -> None:
    with pytest.raises(BadCards):
        ceremony.found([plan for plan in PLANS if plan.id != "oversight"], now=NOW)


def test_an_older_cards_file_than_the_history_knows_is_refused(sessions: Sessions) -> None:
    world = a_world(sessions)
    with sessions.read() as session:
        assert ceremony.newest_serial(session) == 1
    with pytest.raises(BadCards):
        read_cards(world.founding.cards_note, world.founding.root_vkey, newest_serial=2)


# --- metrics ---


def scrape(sessions: Sessions) -> dict[str, float]:
    registry = prometheus_client.CollectorRegistry()
    registry.register(metrics.DatabaseMetrics(sessions))
    return {f"{s.name}{''.join(s.labels.values())}": s.value for family in registry.collect() for s in family.samples}


def test_metrics_count_by_level_and_tell_what_waits(sessions: Sessions) -> None:
    world = a_world(sessions)
    world.receive(a_tip("A girl is locked in a room at the guesthouse now."))
    write(sessions, lambda tx: metrics.seen(tx, metrics.GOOD_SIGNATURE, NOW))
    found = scrape(sessions)
    assert found["hotline_database_up"] == 1
    assert found["hotline_cases_openP1"] == 1
    assert found["hotline_outboxwaiting"] == 2
    assert found["hotline_ledger_pending"] > 3
    assert "hotline_seconds_sincetwilio_signature_good" in found


def test_metrics_say_that_the_database_is_away(tmp_path: Path) -> None:
    sessions = open_database("postgresql://nobody@127.0.0.1:1/nothing")
    assert scrape(sessions) == {"hotline_database_up": 0}
    sessions.close()
