"""Revision 0009 on a filled database of the version before, on both engines, and back."""

import uuid
from functools import partial

import alembic.command
import pytest
from sqlalchemy import inspect, text

from service.db import Sessions, open_database, write
from service.models import Contact
from service.relay import _check_quiet
from service.schema import _alembic, migrate
from service.vault.contacts import quiet_tag, tip_tag
from tests.test_migration_0004 import run
from tests.test_migrations import OLD_ROWS, empty_url

__all__ = ["empty_url"]  # a fixture

BEFORE = "0008"
ROW_KEY = bytes(range(32))
CONTACT = uuid.UUID(int=7)
NEW_TABLES = {"relay_generation", "cards_deck", "unit_recovery", "erasure"}


@pytest.fixture
def upgraded(empty_url: str) -> Sessions:
    assert migrate(empty_url, BEFORE) == BEFORE
    sessions = open_database(empty_url)
    with sessions.writing.begin() as connection:
        run(connection, *OLD_ROWS)
        id_ = CONTACT.hex if sessions.dialect == "sqlite" else CONTACT
        connection.execute(
            text(
                "INSERT INTO contact (id, pseudonym, epoch, relay_generation, key_sealed, number_sealed, row_tag)"
                " VALUES (:id, :x, 1, 1, :x, :x, :x)"
            ),
            {"id": id_, "x": b"x"},
        )
    migrate(empty_url, "0009")
    return sessions


def test_an_old_contact_stays_without_tags_and_is_not_vouched_for(upgraded: Sessions) -> None:
    with upgraded.read() as session:
        contact = session.get_one(Contact, CONTACT)
    assert (contact.tip_tag, contact.quiet_tag, contact.pseudonym) == (None, None, b"x")
    with pytest.raises(Exception, match="does not fit"):
        _check_quiet(ROW_KEY, contact)

    def tag(tx: object, row_key: bytes) -> None:
        row = tx.get_one(Contact, CONTACT)  # type: ignore[attr-defined]
        row.quiet_tag, row.tip_tag = quiet_tag(row_key, CONTACT, None, None), tip_tag(row_key, CONTACT, None)

    write(upgraded, partial(tag, row_key=ROW_KEY))  # the control: with a tag it is
    with upgraded.read() as session:
        _check_quiet(ROW_KEY, session.get_one(Contact, CONTACT))
    upgraded.close()


def test_going_back_takes_the_new_tables_away_and_no_row(upgraded: Sessions, empty_url: str) -> None:
    with upgraded.writing.connect() as connection:
        assert set(inspect(connection).get_table_names()) >= NEW_TABLES
        config = _alembic(empty_url)
        config.attributes["connection"] = connection
        alembic.command.downgrade(config, BEFORE)
        connection.commit()
        assert not NEW_TABLES & set(inspect(connection).get_table_names())
        assert connection.execute(text("SELECT epoch FROM contact")).all() == [(1,)]
        assert connection.execute(text("SELECT version FROM case_file")).all() == [(4,)]
    assert migrate(empty_url, "0009") == "0009"
    upgraded.close()
