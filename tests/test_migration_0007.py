"""Revision 0007 on a filled database of the version before, on both engines, and back."""

import alembic.command
import pytest
from sqlalchemy import exc, inspect, text

from service.db import Sessions, open_database
from service.schema import _alembic, migrate
from tests.test_migration_0004 import MORE_OLD_ROWS, run
from tests.test_migrations import OLD_ROWS, empty_url

__all__ = ["empty_url"]  # a fixture

TABLES = {"ledger_leaf", "ledger_tile", "ledger_checkpoint", "ledger_cosignature", "ledger_promise"}
ROWS = {
    "ledger_leaf": "INSERT INTO ledger_leaf (idx, leaf, eid) VALUES (0, X'00', 'e1')",
    "ledger_checkpoint": "INSERT INTO ledger_checkpoint (size, note, at) VALUES (1, 'n', '2027-03-09 07:00:00')",
    "ledger_cosignature": "INSERT INTO ledger_cosignature (size, name, line) VALUES (1, 'w', 'l')",
    "ledger_promise": "INSERT INTO ledger_promise (eid, note) VALUES ('e1', 'n')",
}
CHANGES = {
    "ledger_leaf": "cover_n = 1",
    "ledger_checkpoint": "note = 'm'",
    "ledger_cosignature": "line = 'm'",
    "ledger_promise": "note = 'm'",
}


@pytest.fixture
def upgraded(empty_url: str) -> Sessions:
    assert migrate(empty_url, "0006") == "0006"
    sessions = open_database(empty_url)
    with sessions.writing.begin() as connection:
        run(connection, *OLD_ROWS, *MORE_OLD_ROWS, "INSERT INTO ledger_effect (eid, action) VALUES ('e1', X'00')")
    migrate(empty_url, "0007")
    return sessions


def test_an_effect_that_was_there_still_waits_to_be_run(upgraded: Sessions) -> None:
    with upgraded.writing.begin() as connection:
        assert connection.execute(text("SELECT eid, done_at FROM ledger_effect")).all() == [("e1", None)]
    upgraded.close()


@pytest.mark.parametrize("table", ROWS)
def test_what_was_published_once_is_never_changed_or_deleted(upgraded: Sessions, table: str) -> None:
    with upgraded.writing.begin() as connection:
        run(connection, *ROWS.values())
    for statement in (f"UPDATE {table} SET {CHANGES[table]}", f"DELETE FROM {table}"):
        with pytest.raises(exc.DBAPIError), upgraded.writing.begin() as connection:
            run(connection, statement)
    upgraded.close()


def test_no_place_event_or_cover_number_is_used_twice(upgraded: Sessions) -> None:
    with upgraded.writing.begin() as connection:
        run(connection, ROWS["ledger_leaf"], "INSERT INTO ledger_leaf (idx, leaf, cover_n) VALUES (1, X'00', 5)")
    for idx, eid, cover in ((0, "'e2'", "NULL"), (2, "'e1'", "NULL"), (2, "NULL", "5")):
        with pytest.raises(exc.IntegrityError), upgraded.writing.begin() as connection:
            run(connection, f"INSERT INTO ledger_leaf (idx, leaf, eid, cover_n) VALUES ({idx}, X'00', {eid}, {cover})")
    upgraded.close()


def test_going_back_takes_the_tables_away_and_nothing_else(upgraded: Sessions, empty_url: str) -> None:
    with upgraded.writing.begin() as connection:
        run(connection, *ROWS.values())
    with upgraded.writing.connect() as connection:
        config = _alembic(empty_url)
        config.attributes["connection"] = connection
        alembic.command.downgrade(config, "0006")
        connection.commit()
        assert not TABLES & set(inspect(connection).get_table_names())
        assert connection.execute(text("SELECT eid FROM ledger_effect")).all() == [("e1",)]
    assert migrate(empty_url, "0007") == "0007"
    upgraded.close()
