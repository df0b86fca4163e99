"""Revision 0012 on a filled database of the version before, on both engines, and back."""

import alembic.command
import pytest
from sqlalchemy import exc, inspect, text

from service.db import Sessions, open_database
from service.schema import _alembic, migrate
from tests.test_migration_0004 import run
from tests.test_migrations import OLD_ROWS, empty_url

__all__ = ["empty_url"]  # a fixture

CASE = "0b0b0b0b0b0b4b0b8b0b0b0b0b0b0b0b"
ACTING = (
    'INSERT INTO clock (id, "case", kind, due_at, set_by, step) VALUES'
    f" ('0d0d0d0d0d0d4d0d8d0d0d0d0d0d0d0d', '{CASE}', 'act', '2027-03-16 07:00:00', 'triage:decision:made', 0)"
)
OVERLAY = (
    "INSERT INTO overlay (id, \"case\", kind, set_at, ended_at) VALUES ('{id}', '{case}', 'stall', '2027-03-09', {end})"
)


@pytest.fixture
def upgraded(empty_url: str) -> Sessions:
    assert migrate(empty_url, BEFORE) == BEFORE
    sessions = open_database(empty_url)
    with sessions.writing.begin() as connection:
        run(connection, *OLD_ROWS, ACTING)
    migrate(empty_url, "0012")
    return sessions


BEFORE = "0011"


def test_old_cases_go_back_to_open_and_their_deadlines_to_act_climb(upgraded: Sessions) -> None:
    with upgraded.writing.begin() as connection:
        assert connection.execute(text("SELECT back FROM case_file")).scalar() == "open"
        span, step, at_due = connection.execute(text("SELECT span, step, next_at = due_at FROM clock")).one()
        assert (span, step, bool(at_due)) == (14400, 3, True)
    upgraded.close()


def test_one_overlay_of_a_kind_stands_at_a_time(upgraded: Sessions) -> None:
    with upgraded.writing.begin() as connection:
        run(connection, OVERLAY.format(id="0e" * 16, case=CASE, end="'2027-03-10'"))
        run(connection, OVERLAY.format(id="0f" * 16, case=CASE, end="NULL"))
    with pytest.raises(exc.IntegrityError), upgraded.writing.begin() as connection:
        run(connection, OVERLAY.format(id="0a" * 16, case=CASE, end="NULL"))
    upgraded.close()


def test_going_back_takes_the_tables_away_and_leaves_the_deadlines(upgraded: Sessions, empty_url: str) -> None:
    with upgraded.writing.connect() as connection:
        config = _alembic(empty_url)
        config.attributes["connection"] = connection
        alembic.command.downgrade(config, BEFORE)
        assert not {"overlay", "attachment"} & set(inspect(connection).get_table_names())
        assert connection.execute(text("SELECT step, next_at, span FROM clock")).all() == [(0, None, None)]
    upgraded.close()
