"""Migrations from base to head on both databases, with rows in between."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect, text

from service.db import open_database
from service.errors import Misconfigured, StorageUnavailable
from service.models import metadata
from service.schema import migrate, newest_revision, require_schema
from tests.conftest import named


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/empty.db"
        return
    server = request.getfixturevalue("postgresql_url")
    name = f"empty_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(named(server, "postgres"), autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
        yield named(server, name)
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


OLD_ROWS = [
    "INSERT INTO organisation (id, name, name_km) VALUES ('org-1', 'One', 'មួយ')",
    "INSERT INTO unit (id, organisation, kind, name, name_km) VALUES ('u-1', 'org-1', 'screening', 'One', 'មួយ')",
    "INSERT INTO ledger_head (\"case\", seq, c) VALUES ('a1', 4, X'00')",
    "INSERT INTO case_file (id, chain, version, state, level, locked, provisional, channel, language, walled,"
    " flags, flag_rank, age_rank, unit, oversight, received_hour, due_at, due_kind, generation, decision) VALUES"
    " ('0b0b0b0b0b0b4b0b8b0b0b0b0b0b0b0b', 'a1', 4, 'open', 'P3', false, false, 'sms', 'km', false, '[]', 7, 99,"
    " 'u-1', 'u-1', '2027-03-09 07:00:00', '2027-03-09 08:00:00', 'claim', 1, 1)",
]


def test_base_to_head_keeps_old_rows_and_equals_the_models(empty_url: str) -> None:
    assert migrate(empty_url, "0001") == "0001"
    sessions = open_database(empty_url)
    with sessions.writing.begin() as connection:
        for statement in OLD_ROWS:
            if sessions.dialect == "postgresql":
                statement = statement.replace("X'00'", "'\\x00'::bytea")
            connection.execute(text(statement))

    assert migrate(empty_url) == newest_revision()

    with sessions.writing.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
        assert connection.execute(text("SELECT version, state FROM case_file")).all() == [(4, "open")]
        assert connection.execute(text("SELECT size, halted FROM ledger_state")).all() == [(0, False)]
    require_schema(sessions)
    sessions.close()


def test_head_to_base_and_back_leaves_no_table_behind(empty_url: str) -> None:
    import alembic.command

    from service.schema import _alembic

    migrate(empty_url)
    sessions = open_database(empty_url)
    with sessions.writing.connect() as connection:
        config = _alembic(empty_url)
        config.attributes["connection"] = connection
        alembic.command.downgrade(config, "base")
        connection.commit()
        assert inspect(connection).get_table_names() == ["alembic_version"]
    assert migrate(empty_url) == newest_revision()
    sessions.close()


def test_a_database_of_another_version_is_refused_with_what_to_run(empty_url: str) -> None:
    migrate(empty_url, "0001")
    sessions = open_database(empty_url)
    with pytest.raises(Misconfigured, match=r"\./hotline migrate"):
        require_schema(sessions)
    sessions.close()


def test_a_database_that_is_not_there_is_unavailable() -> None:
    sessions = open_database("postgresql://nobody@127.0.0.1:1/nothing")
    with pytest.raises(StorageUnavailable):
        require_schema(sessions)
    sessions.close()
