"""Revision 0011 on a filled database of the version before, on both engines, and back."""

import uuid

import alembic.command
import pytest
from sqlalchemy import exc, inspect, text

from service.db import Sessions, open_database
from service.schema import _alembic, migrate
from tests.test_migration_0004 import MORE_OLD_ROWS, run
from tests.test_migrations import OLD_ROWS, empty_url

__all__ = ["empty_url"]  # a fixture

CASE, MEMBER = "0b0b0b0b0b0b4b0b8b0b0b0b0b0b0b0b", "0c0c0c0c0c0c4c0c8c0c0c0c0c0c0c0c"
BEFORE = "0010"
TABLES = {"wall", "narrowing", "reading"}
WALL = (
    "INSERT INTO wall (name, \"case\", exclusion, why, added_at, whom, row_tag) VALUES (X'00', '{case}', '{id}',"
    " 'named', '2027-03-09 07:00:00', X'00', X'00')"
)
NARROWING = (
    "INSERT INTO narrowing (id, \"case\", exclusion, state, proposed_at, proposer) VALUES ('{id}', '{case}',"
    " '0d0d0d0d0d0d4d0d8d0d0d0d0d0d0d0d', '{state}', '2027-03-09 07:00:00', '{member}')"
)
READING = (
    "INSERT INTO reading (eid, \"case\", member, at, over) VALUES ('{eid}', '{case}', '{member}',"
    " '2027-03-09 07:00:00', false)"
)


def filled(statement: str, **given: str) -> str:
    return statement.format(**{"id": uuid.uuid4().hex, "case": CASE, "member": MEMBER, **given})


@pytest.fixture
def upgraded(empty_url: str) -> Sessions:
    migrate(empty_url, BEFORE)
    sessions = open_database(empty_url)
    with sessions.writing.begin() as connection:
        run(connection, *OLD_ROWS, *MORE_OLD_ROWS)
    migrate(empty_url, "0011")
    return sessions


def test_old_rows_stay_and_new_ones_find_their_place(upgraded: Sessions) -> None:
    with upgraded.writing.begin() as connection:
        assert connection.execute(text("SELECT version, level FROM case_file")).all() == [(4, "P3")]
        run(connection, filled(WALL), filled(READING, eid="e1"))
        run(connection, *(filled(NARROWING, state=state) for state in ("refused", "done", "proposed")))
        assert connection.execute(text("SELECT count(*) FROM narrowing WHERE approver IS NULL")).scalar() == 3
    upgraded.close()


@pytest.mark.parametrize(
    "broken",
    [
        [filled(WALL), filled(WALL)],
        [filled(WALL, case=MEMBER)],
        [filled(NARROWING, state="approved"), filled(NARROWING, state="proposed")],
        [filled(NARROWING, state="proposed", member=CASE)],
        [filled(READING, eid="e2")],
        [filled(READING, eid="e1"), filled(READING, eid="e1")],
    ],
)
def test_a_row_that_hangs_on_nothing_or_stands_twice_is_refused(upgraded: Sessions, broken: list[str]) -> None:
    with pytest.raises(exc.IntegrityError), upgraded.writing.begin() as connection:
        run(connection, *broken)
    upgraded.close()


def test_going_back_takes_the_tables_away_and_nothing_else(upgraded: Sessions, empty_url: str) -> None:
    with upgraded.writing.begin() as connection:
        run(connection, filled(WALL), filled(READING, eid="e1"), filled(NARROWING, state="proposed"))
    with upgraded.writing.connect() as connection:
        config = _alembic(empty_url)
        config.attributes["connection"] = connection
        alembic.command.downgrade(config, BEFORE)
        connection.commit()
        assert not TABLES & set(inspect(connection).get_table_names())
        assert connection.execute(text("SELECT version FROM case_file")).all() == [(4,)]
    assert migrate(empty_url, "0011") == "0011"
    upgraded.close()
