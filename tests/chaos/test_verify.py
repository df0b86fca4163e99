"""`verify` itself: silent about a sound database, and not about any of the ways in which one can be wrong."""

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from service.db import Sessions, open_database
from tests.builders import World, a_tip, a_world
from tests.chaos.sending import Sent
from tests.chaos.verify import Found, verify

WORDS = (
    ("SM1", "There is a child at the guesthouse near the market.", "+85500000001"),
    ("SM2", "The child is in danger tonight.", "+85500000001"),
    ("SM3", "A police officer is paid so that nobody asks about the child.", "+85500000002"),
    ("SM4", "Someone should look at the house behind the school.", None),
)
SENT = [Sent(words, sender, b"", sid) for sid, words, sender in WORDS]
NEWEST = "(SELECT eid FROM ledger_event WHERE type = 'triage:decision:made' ORDER BY \"case\", seq DESC LIMIT 1)"

Check = Callable[..., Found]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> tuple[Path, World]:
    path = tmp_path_factory.mktemp("sound") / "hotline.db"
    shutil.copy(sqlite_template, path)
    sessions = open_database(f"sqlite:///{path}")
    world = a_world(sessions)
    world.receive(*(a_tip(words, delivery=sid, sender=sender) for sid, words, sender in WORDS))
    sessions.close()
    return path, world


@pytest.fixture
def changed(sound: tuple[Path, World], tmp_path: Path) -> Check:
    """Return what `verify` finds after some statements that no process of ours would run."""

    def change(*statements: str) -> Found:
        path = tmp_path / "hotline.db"
        shutil.copy(sound[0], path)
        connection = sqlite3.connect(path)
        for (trigger,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {trigger}")
        for statement in statements:
            assert connection.execute(statement).rowcount, f"{statement} changed nothing"
        connection.commit()
        connection.close()
        sessions: Sessions = open_database(f"sqlite:///{path}")
        try:
            return verify(sessions, sound[1].founding, SENT)
        finally:
            sessions.close()

    return change


def test_a_sound_database_has_no_fault(changed: Check) -> None:
    found = changed()

    assert found.faults == []
    assert (found.tips, found.messages, found.walled) == (3, 4, 1)


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM message WHERE number = 2",
        "UPDATE message SET delivery = zeroblob(32) WHERE number = 2",
        "UPDATE message SET body = zeroblob(length(body)) WHERE number = 2",
        "UPDATE message SET number = 3 WHERE number = 2",
        "UPDATE message SET seal = (SELECT seal FROM message WHERE number = 2) WHERE number = 1",
        "UPDATE message SET received_hour = '2027-03-09 08:00:00.000000' WHERE number = 2",
        "DELETE FROM tip WHERE id = (SELECT tip FROM message WHERE number = 2)",
        "UPDATE tip SET contact = NULL",
        "UPDATE contact SET pseudonym = randomblob(32)",
        "UPDATE contact SET number_sealed = zeroblob(60)",
        "UPDATE contact SET row_tag = zeroblob(32)",
        "UPDATE contact SET tip_tag = NULL",
        "UPDATE contact SET opted_out_at = '2027-03-09 07:00:00'",
        "DELETE FROM case_seal WHERE unit = 'oversight'",
        "DELETE FROM case_seal WHERE unit = 'screening'",
        "UPDATE case_seal SET sealed = zeroblob(112)",
        "UPDATE case_seal SET unit = 'screening' WHERE unit = 'integrity'",
        "UPDATE case_key SET row_tag = zeroblob(32)",
        "DELETE FROM clock WHERE kind = 'act'",
        "UPDATE clock SET due_at = '2030-01-01 00:00:00.000000'",
        "DELETE FROM decision WHERE number = 2",
        "DELETE FROM outbox WHERE kind = 'page'",
        "UPDATE outbox SET contact = NULL WHERE kind = 'acknowledge'",
        "UPDATE case_file SET version = 99",
        "UPDATE case_file SET level = 'P4'",
        "UPDATE case_file SET province = 'KH-12' WHERE walled",
        "UPDATE ledger_head SET seq = seq + 1",
        "DELETE FROM ledger_head WHERE seq = 2",
        "UPDATE ledger_event SET seq = seq + 100 WHERE seq = 2",
        "UPDATE ledger_event SET k_e = zeroblob(32)",
        "UPDATE ledger_event SET leaf = zeroblob(112)",
        "UPDATE ledger_event SET blob = (SELECT blob FROM ledger_event LIMIT 1)",
        f"DELETE FROM ledger_event WHERE eid = {NEWEST}",
        "UPDATE ledger_field SET value = '\"P4\"' WHERE name = 'level'",
        "DELETE FROM ledger_field WHERE name = 'received'",
        "UPDATE ledger_field SET value = zeroblob(200) WHERE name = 'envelope'",
        f"DELETE FROM ledger_pending WHERE eid = {NEWEST}",
        "UPDATE ledger_pending SET leaf = zeroblob(112)",
        "UPDATE ledger_pending SET id = -id",
    ],
)
def test_what_is_wrong_is_found(changed: Check, statement: str) -> None:
    assert changed(statement).faults


def test_what_is_lost_is_named(changed: Check) -> None:
    found = changed("DELETE FROM message WHERE number = 2")

    assert found.lost == ["SM2"]


def test_what_is_doubled_is_named(changed: Check) -> None:
    columns = 'tip, number + 1, "case", generation, provider, kind, randomblob(32), received_hour, header, seal, body'
    names = 'id, tip, number, "case", generation, provider, kind, delivery, received_hour, header, seal, body'
    twin = f"SELECT '{'0' * 32}', {columns} FROM message WHERE number = 2"
    found = changed(f"INSERT INTO message ({names}) {twin}")

    assert found.doubled == [WORDS[1][1]]
