"""Revision 0005 on a filled database of the version before, on both engines, and back."""

import alembic.command
import pytest
from sqlalchemy import exc, inspect, text

from service.db import Sessions, open_database
from service.schema import _alembic, migrate
from tests.test_migration_0004 import MORE_OLD_ROWS, run
from tests.test_migrations import OLD_ROWS, empty_url

__all__ = ["empty_url"]  # a fixture

KNOWN, STRANGE = "0d0d0d0d0d0d4d0d8d0d0d0d0d0d0d0d", "0e0e0e0e0e0e4e0e8e0e0e0e0e0e0e0e"
TIP = (
    'INSERT INTO tip (id, "case", channel, language, received_hour, late) VALUES'
    f" ('{KNOWN}', '0b0b0b0b0b0b4b0b8b0b0b0b0b0b0b0b', 'sms', 'km', '2027-03-09 07:00:00', false)"
)
NAME = (
    "INSERT INTO keyed_name (tip, number, kind, name, at) VALUES ('{tip}', 1, '{kind}', X'00', '2027-03-09 07:21:00')"
)


@pytest.fixture
def upgraded(empty_url: str) -> Sessions:
    assert migrate(empty_url, "0004") == "0004"
    sessions = open_database(empty_url)
    with sessions.writing.begin() as connection:
        run(connection, *OLD_ROWS, *MORE_OLD_ROWS, TIP)
    migrate(empty_url, "0005")
    return sessions


def test_old_tips_stay_without_names_and_new_ones_are_found_by_theirs(upgraded: Sessions) -> None:
    with upgraded.writing.begin() as connection:
        assert connection.execute(text("SELECT count(*) FROM tip")).scalar() == 1
        assert connection.execute(text("SELECT count(*) FROM keyed_name")).scalar() == 0
        run(connection, NAME.format(tip=KNOWN, kind="place"), NAME.format(tip=KNOWN, kind="suspect"))
        indexes = {
            table: {i["name"] for i in inspect(connection).get_indexes(table)} for table in ("tip", "ledger_event")
        }
    assert "ix_tip_contact" in indexes["tip"]
    assert "ix_ledger_event_closure" in indexes["ledger_event"]
    upgraded.close()


@pytest.mark.parametrize(("tip", "times"), [(KNOWN, 2), (STRANGE, 1)], ids=["one a kind and message", "of a tip"])
def test_a_name_stands_once_beside_its_tip(upgraded: Sessions, tip: str, times: int) -> None:
    with pytest.raises(exc.IntegrityError), upgraded.writing.begin() as connection:
        run(connection, *[NAME.format(tip=tip, kind="place")] * times)
    upgraded.close()


def test_going_back_takes_the_names_away_and_nothing_else(upgraded: Sessions, empty_url: str) -> None:
    with upgraded.writing.begin() as connection:
        run(connection, NAME.format(tip=KNOWN, kind="place"))
    with upgraded.writing.connect() as connection:
        config = _alembic(empty_url)
        config.attributes["connection"] = connection
        alembic.command.downgrade(config, "0004")
        connection.commit()
        assert "keyed_name" not in inspect(connection).get_table_names()
        assert connection.execute(text("SELECT count(*) FROM tip")).scalar() == 1
    assert migrate(empty_url, "0005") == "0005"
    upgraded.close()
