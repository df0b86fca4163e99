"""Revision 0006 on a filled database of the version before, on both engines, and back."""

import alembic.command
import pytest
from sqlalchemy import Connection, exc, inspect, text

from service.db import Sessions, open_database
from service.schema import _alembic, migrate
from tests.test_migration_0004 import MORE_OLD_ROWS, run
from tests.test_migrations import OLD_ROWS, empty_url

__all__ = ["empty_url"]  # a fixture

BEFORE = "0005"
RULESET = (
    "INSERT INTO ruleset (hash, name, version, content, kept_at) VALUES ('aa', 'r', '1', X'00', '2027-03-09 07:00')"
)
TICK = (
    "INSERT INTO ruleset_tick (ruleset, \"case\", after, member, at) VALUES ('{ruleset}',"
    " '0b0b0b0b0b0b4b0b8b0b0b0b0b0b0b0b', 'P3', '0c0c0c0c0c0c4c0c8c0c0c0c0c0c0c0c', '2027-03-09 07:00')"
)


@pytest.fixture
def upgraded(empty_url: str) -> Sessions:
    migrate(empty_url, BEFORE)
    sessions = open_database(empty_url)
    with sessions.writing.begin() as connection:
        run(connection, *OLD_ROWS, *MORE_OLD_ROWS)
    assert migrate(empty_url, "0006") == "0006"
    return sessions


def test_old_rows_stay_and_a_ruleset_finds_its_place(upgraded: Sessions) -> None:
    with upgraded.writing.begin() as connection:
        assert connection.execute(text("SELECT version, level FROM case_file")).all() == [(4, "P3")]
        run(connection, RULESET, TICK.format(ruleset="aa"))
        assert connection.execute(text("SELECT count(*) FROM ruleset_tick")).scalar() == 1
    upgraded.close()


@pytest.mark.parametrize("change", ["UPDATE ruleset SET name = 'other'", "DELETE FROM ruleset"])
def test_a_ruleset_is_never_changed(upgraded: Sessions, change: str) -> None:
    with upgraded.writing.begin() as connection:
        run(connection, RULESET)
    with pytest.raises(exc.DBAPIError, match="never changed"), upgraded.writing.begin() as connection:
        run(connection, change)
    upgraded.close()


def test_postgresql_keeps_the_table_from_being_emptied(upgraded: Sessions) -> None:
    if upgraded.dialect == "postgresql":
        with pytest.raises(exc.DBAPIError, match="never changed"), upgraded.writing.begin() as connection:
            run(connection, "TRUNCATE ruleset CASCADE")
    upgraded.close()


def test_a_tick_belongs_to_a_ruleset(upgraded: Sessions) -> None:
    with pytest.raises(exc.IntegrityError), upgraded.writing.begin() as connection:
        run(connection, TICK.format(ruleset="bb"))
    upgraded.close()


def test_going_back_takes_both_tables_away_and_nothing_else(upgraded: Sessions, empty_url: str) -> None:
    with upgraded.writing.begin() as connection:
        run(connection, RULESET)
    with upgraded.writing.connect() as connection:
        back(connection, empty_url)
        assert not {"ruleset", "ruleset_tick"} & set(inspect(connection).get_table_names())
        assert connection.execute(text("SELECT version FROM case_file")).all() == [(4,)]
    assert migrate(empty_url, "0006") == "0006"
    upgraded.close()


def back(connection: Connection, url: str) -> None:
    config = _alembic(url)
    config.attributes["connection"] = connection
    alembic.command.downgrade(config, BEFORE)
    connection.commit()
