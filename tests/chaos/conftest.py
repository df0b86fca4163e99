"""Chaos: each test in a short form by default; the long forms with ``-m chaos``."""

import os
import random
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from service.db import Sessions, open_database
from tests.chaos.running import Forks, Installation, install
from tests.conftest import named

HERE = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the long forms out unless they are asked for."""
    if "chaos" in config.option.markexpr:
        return
    long = [item for item in items if HERE in item.path.parents and item.get_closest_marker("chaos")]
    if long:
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """The fork server."""
    server = Forks()
    yield server
    server.close()


@pytest.fixture
def installation(sessions: Sessions, database_url: str, tmp_path: Path) -> Installation:
    """A founded installation on each engine."""
    return install(sessions, database_url, tmp_path)


@pytest.fixture
def postgresql_database(postgresql_url: str, postgresql_template: str) -> Iterator[str]:
    """A migrated, empty database on PostgreSQL alone."""
    name = f"chaos_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(named(postgresql_url, "postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {postgresql_template}")
    yield named(postgresql_url, name)
    with psycopg.connect(named(postgresql_url, "postgres"), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def postgresql_sessions(postgresql_database: str) -> Iterator[Sessions]:
    opened = open_database(postgresql_database)
    yield opened
    opened.close()


@pytest.fixture
def postgresql_installation(postgresql_sessions: Sessions, postgresql_database: str, tmp_path: Path) -> Installation:
    """A founded installation on PostgreSQL alone."""
    return install(postgresql_sessions, postgresql_database, tmp_path)


@pytest.fixture
def sqlite_sessions(sqlite_url: str) -> Iterator[Sessions]:
    opened = open_database(sqlite_url)
    yield opened
    opened.close()


@pytest.fixture
def sqlite_installation(sqlite_sessions: Sessions, sqlite_url: str, tmp_path: Path) -> Installation:
    """A founded installation on SQLite alone."""
    return install(sqlite_sessions, sqlite_url, tmp_path)


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """A seed, printed so that a run can be repeated: ``HOTLINE_CHAOS_SEED``."""
    chosen = int(os.environ.get("HOTLINE_CHAOS_SEED") or random.SystemRandom().randrange(2**32))
    print(f"{request.node.name}: HOTLINE_CHAOS_SEED={chosen}")
    return chosen
