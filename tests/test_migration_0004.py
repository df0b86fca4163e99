"""Revision 0004 on a filled database of the version before, on both engines, and back."""

import uuid

import alembic.command
import pytest
from sqlalchemy import Connection, exc, inspect, text

from service.db import Sessions, open_database
from service.schema import _alembic, migrate
from tests.test_migrations import OLD_ROWS, empty_url

__all__ = ["empty_url"]  # a fixture

MORE_OLD_ROWS = [
    "INSERT INTO member (id, account, name, name_km, organisation, role, chain, parameters, auth, box_public,"
    " signing_public, wrapped, row_tag, created_at) VALUES ('0c0c0c0c0c0c4c0c8c0c0c0c0c0c0c0c', 'a', 'A', 'ក', 'org-1',"
    " 'screener', 'c1', '{}', X'00', X'00', X'00', X'00', X'00', '2027-03-09 07:00:00')",
    'INSERT INTO ledger_event (eid, "case", seq, type, at, body, k_e, blob, leaf) VALUES'
    " ('e1', 'a1', 4, 'triage:lowering:approved', '2027-03-09 07:00:00', X'00', X'00', X'00', X'00')",
]
LOWERING = (
    'INSERT INTO lowering (id, "case", state, before, after, floor, proposed_at, proposer, proposer_unit) VALUES'
    " ('{id}', '0b0b0b0b0b0b4b0b8b0b0b0b0b0b0b0b', '{state}', 'P2', 'P3', 'P3', '2027-03-09 07:00:00',"
    " '0c0c0c0c0c0c4c0c8c0c0c0c0c0c0c0c', 'u-1')"
)


def run(connection: Connection, *statements: str) -> None:
    for statement in statements:
        if connection.dialect.name == "postgresql":
            statement = statement.replace("X'00'", "'\\x00'::bytea")
        connection.execute(text(statement))


def lowering(state: str) -> str:
    return LOWERING.format(id=uuid.uuid4().hex, state=state)


@pytest.fixture
def upgraded(empty_url: str) -> Sessions:
    assert migrate(empty_url, "0003") == "0003"
    sessions = open_database(empty_url)
    with sessions.writing.begin() as connection:
        run(connection, *OLD_ROWS, *MORE_OLD_ROWS)
    migrate(empty_url, "0004")
    return sessions


def test_old_rows_stay_and_new_ones_find_their_place(upgraded: Sessions) -> None:
    with upgraded.writing.begin() as connection:
        assert connection.execute(text("SELECT version, level FROM case_file")).all() == [(4, "P3")]
        run(connection, lowering("refused"), lowering("lapsed"), lowering("proposed"))
        run(connection, "INSERT INTO ledger_effect (eid, action) VALUES ('e1', X'00')")
        assert connection.execute(text("SELECT count(*) FROM lowering WHERE approver IS NULL")).scalar() == 3
    upgraded.close()


@pytest.mark.parametrize("standing", ["proposed", "approved"])
def test_a_case_has_one_standing_proposal_at_a_time(upgraded: Sessions, standing: str) -> None:
    with upgraded.writing.begin() as connection:
        run(connection, lowering(standing))
    with pytest.raises(exc.IntegrityError), upgraded.writing.begin() as connection:
        run(connection, lowering("proposed"))
    upgraded.close()


def test_an_effect_belongs_to_an_event(upgraded: Sessions) -> None:
    with pytest.raises(exc.IntegrityError), upgraded.writing.begin() as connection:
        run(connection, "INSERT INTO ledger_effect (eid, action) VALUES ('e2', X'00')")
    upgraded.close()


def test_going_back_takes_both_tables_away_and_nothing_else(upgraded: Sessions, empty_url: str) -> None:
    with upgraded.writing.begin() as connection:
        run(connection, lowering("proposed"))
    with upgraded.writing.connect() as connection:
        config = _alembic(empty_url)
        config.attributes["connection"] = connection
        alembic.command.downgrade(config, "0003")
        connection.commit()
        tables = inspect(connection).get_table_names()
        assert not {"lowering", "ledger_effect"} & set(tables)
        assert connection.execute(text("SELECT version FROM case_file")).all() == [(4,)]
    assert migrate(empty_url, "0004") == "0004"
    upgraded.close()
