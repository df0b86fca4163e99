"""Revision 0008 on a filled database of the version before, on both engines, and back."""

import alembic.command
import pytest
from sqlalchemy import exc, inspect, text

from service import register
from service.db import Sessions, open_database
from service.schema import _alembic, migrate
from tests.test_migration_0004 import MORE_OLD_ROWS, run
from tests.test_migrations import OLD_ROWS, empty_url

__all__ = ["empty_url"]  # a fixture

MEMBER = "0c0c0c0c0c0c4c0c8c0c0c0c0c0c0c0c"
SESSION = (
    "INSERT INTO staff_session (id, member, started_at, seen_at, expires_at, sealed) VALUES"
    f" (X'00', '{MEMBER}', '2027-03-09 07:00:00', '2027-03-09 07:00:00', '2027-03-09 15:00:00', X'00')"
)
INVITATION = (
    "INSERT INTO invitation (id, secret, account, name, name_km, organisation, role, inviter, made_at, expires_at,"
    " row_tag) VALUES ('{id}', X'00', 'b', 'B', 'ខ', 'org-1', 'screener', '" + MEMBER + "', '2027-03-09 07:00:00',"
    " '2027-03-12 07:00:00', X'00')"
)


@pytest.fixture
def upgraded(empty_url: str) -> Sessions:
    migrate(empty_url, "0007")
    sessions = open_database(empty_url)
    with sessions.writing.begin() as connection:
        run(connection, *OLD_ROWS, *MORE_OLD_ROWS, SESSION)
    migrate(empty_url, "0008")
    return sessions


def test_old_accounts_and_sessions_stay_as_they_were(upgraded: Sessions) -> None:
    with upgraded.writing.begin() as connection:
        member = "SELECT account, totp_used, totp_failures, totp_after, disabled_at FROM member"
        assert connection.execute(text(member)).all() == [("a", None, 0, None, None)]
        assert connection.execute(text("SELECT stepped_until, stepped_tag FROM staff_session")).all() == [(None, None)]
        assert connection.execute(text("SELECT id, stale_generation FROM unit")).all() == [("u-1", None)]
    assert register.is_whole(upgraded, bytes(32))  # until the first change says what the register is
    upgraded.close()


def test_a_code_is_stored_once(upgraded: Sessions) -> None:
    with upgraded.writing.begin() as connection:
        run(connection, INVITATION.format(id="0d" * 16))
    with pytest.raises(exc.IntegrityError), upgraded.writing.begin() as connection:
        run(connection, INVITATION.format(id="0e" * 16))
    upgraded.close()


def test_going_back_takes_the_new_away_and_nothing_else(upgraded: Sessions, empty_url: str) -> None:
    with upgraded.writing.connect() as connection:
        config = _alembic(empty_url)
        config.attributes["connection"] = connection
        alembic.command.downgrade(config, "0007")
        connection.commit()
        inspector = inspect(connection)
        assert not {"invitation", "account_change", "ended_session", "retired_key"} & set(inspector.get_table_names())
        assert "totp_used" not in {column["name"] for column in inspector.get_columns("member")}
        assert connection.execute(text("SELECT account FROM member")).all() == [("a",)]
        assert connection.execute(text("SELECT count(*) FROM staff_session")).scalar() == 1
    assert migrate(empty_url, "0008") == "0008"
    upgraded.close()
