"""The schema's versions: bring a database to this code's, refuse one of another."""

from typing import Any

from sqlalchemy import Connection, exc, inspect, text

from service.config import ROOT
from service.db import Sessions, open_database, without_words
from service.errors import Misconfigured, StorageUnavailable

# Alembic is imported where it is used: twelve megabytes that a serving process does not need.


def _alembic(url: str) -> Any:
    import alembic.config

    config = alembic.config.Config()
    config.set_main_option("script_location", str(ROOT / "alembic"))
    config.attributes["url"] = url
    return config


def newest_revision() -> str:
    """Return the revision that this code was written for: that of the last migration by name."""
    names = [path.name for path in (ROOT / "alembic" / "versions").glob("[0-9]*.py")]
    return max(names).split("_")[0]


def reached_revision(connection: Connection) -> str | None:
    """Return the revision that a database is at, or None when it has no tables."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def migrate(url: str, revision: str = "head") -> str:
    """Bring the database at `url` to `revision` and return the revision reached.

    Raises StorageUnavailable when the database does not answer or its disk is full.
    """
    import alembic.command

    sessions = open_database(url)
    try:
        config = _alembic(url)
        with sessions.writing.connect() as connection:
            if sessions.dialect == "postgresql":
                connection.execute(text("SET statement_timeout = 0"))
                connection.execute(text("SELECT pg_advisory_lock(4242001)"))
                connection.commit()
            config.attributes["connection"] = connection
            alembic.command.upgrade(config, revision)
            connection.commit()
            return reached_revision(connection) or "base"
    except exc.DBAPIError as fault:
        raise StorageUnavailable("The database cannot be migrated now.") from without_words(fault)
    finally:
        sessions.close()


def require_schema(sessions: Sessions) -> None:
    """Refuse to run on a database of another version. Raises Misconfigured, saying what to run."""
    wanted = newest_revision()
    try:
        with sessions.reading.connect() as connection:
            found = reached_revision(connection)
    except exc.DBAPIError as fault:
        raise StorageUnavailable("The database does not answer.") from without_words(fault)
    if found != wanted:
        raise Misconfigured(f"the database is at {found or 'base'}, this code needs {wanted}; run: ./hotline migrate")
