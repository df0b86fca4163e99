"""Revision 0010 on a filled database of the version before, on both engines, and back."""

import alembic.command
import pytest
from sqlalchemy import exc, inspect, text

from service.db import Sessions, open_database
from service.schema import _alembic, migrate
from tests.test_migration_0004 import run
from tests.test_migrations import OLD_ROWS, empty_url

__all__ = ["empty_url"]  # a fixture

TIP = (
    "INSERT INTO tip (id, \"case\", channel, language, received_hour, late) VALUES ('0d0d0d0d0d0d4d0d8d0d0d0d0d0d0d0d',"
    " '0b0b0b0b0b0b4b0b8b0b0b0b0b0b0b0b', 'web', 'km', '2027-03-09 07:00:00', false)"
)
MAILBOX = (
    "INSERT INTO mailbox (id, tip, locator, public, wrapped, tag_key, status, since, number, row_tag) VALUES"
    " ('{id}', '0d0d0d0d0d0d4d0d8d0d0d0d0d0d0d0d', X'00', X'00', X'00', X'00', 'received', '2027-03-09', 0, X'00')"
)
QUESTION = (
    'INSERT INTO question (id, mailbox, number, "case", generation, asked_at, header, seal, body, box_header, box_seal,'
    " box_body, row_tag) VALUES ('{id}', '0e0e0e0e0e0e4e0e8e0e0e0e0e0e0e0e', 1, '0b0b0b0b0b0b4b0b8b0b0b0b0b0b0b0b', 1,"
    " '2027-03-09 07:00:00', X'00', X'00', X'00', X'00', X'00', X'00', X'00')"
)
FIRST, SECOND = "0e0e0e0e0e0e4e0e8e0e0e0e0e0e0e0e", "0f0f0f0f0f0f4f0f8f0f0f0f0f0f0f0f"


@pytest.fixture
def upgraded(empty_url: str) -> Sessions:
    assert migrate(empty_url, "0009") == "0009"
    sessions = open_database(empty_url)
    with sessions.writing.begin() as connection:
        run(connection, *OLD_ROWS, TIP)
    migrate(empty_url, "0010")
    return sessions


def test_old_rows_stay_and_have_no_mailbox(upgraded: Sessions) -> None:
    with upgraded.writing.begin() as connection:
        assert connection.execute(text("SELECT channel FROM tip")).all() == [("web",)]
        assert connection.execute(text("SELECT count(*) FROM mailbox")).scalar() == 0
        run(connection, MAILBOX.format(id=FIRST), QUESTION.format(id=FIRST))
    upgraded.close()


@pytest.mark.parametrize("again", [MAILBOX, QUESTION])
def test_a_tip_has_one_mailbox_and_a_question_one_number(upgraded: Sessions, again: str) -> None:
    with upgraded.writing.begin() as connection:
        run(connection, MAILBOX.format(id=FIRST), QUESTION.format(id=FIRST))
    with pytest.raises(exc.IntegrityError), upgraded.writing.begin() as connection:
        run(connection, again.format(id=SECOND))
    upgraded.close()


def test_going_back_takes_both_tables_away_and_nothing_else(upgraded: Sessions, empty_url: str) -> None:
    with upgraded.writing.begin() as connection:
        run(connection, MAILBOX.format(id=FIRST), QUESTION.format(id=FIRST))
    with upgraded.writing.connect() as connection:
        config = _alembic(empty_url)
        config.attributes["connection"] = connection
        alembic.command.downgrade(config, "0009")
        connection.commit()
        assert not {"mailbox", "question"} & set(inspect(connection).get_table_names())
        assert connection.execute(text("SELECT channel FROM tip")).all() == [("web",)]
    assert migrate(empty_url, "0010") == "0010"
    upgraded.close()
