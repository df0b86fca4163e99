"""Migrations from base to head on both databases, with rows in between."""

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect, select, text
from sqlalchemy.exc import IntegrityError
from sqlmodel import col

from service import outbox
from service.clocks import RUNNING, Step
from service.db import Sessions, open_database, write
from service.errors import CannotOpen, Misconfigured, StorageUnavailable
from service.models import Clock, Contact, OutboxJob, metadata
from service.relay import Relay
from service.schema import migrate, newest_revision, require_schema
from service.vault import boxes
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


# --- 0003: what was there before there was a worker ---

ROW_KEY = bytes(range(32))
LEVELS = {"P1": 900, "P2": 3600, "P3": 86400, "P4": 259200}
CONTACT = uuid.UUID(int=7)


def a_case_id(level: str) -> uuid.UUID:
    return uuid.UUID(int=int(level[1]))


def old_rows(dialect: str) -> list[tuple[str, dict[str, Any]]]:
    """Rows of revision 0002: a case of each level with its clocks, a contact, an answer and a page that wait."""

    def id_(value: uuid.UUID) -> Any:
        return value.hex if dialect == "sqlite" else value

    rows: list[tuple[str, dict[str, Any]]] = [(statement, {}) for statement in OLD_ROWS[:2]]
    for level in LEVELS:
        case = id_(a_case_id(level))
        rows += [
            ('INSERT INTO ledger_head ("case", seq, c) VALUES (:chain, 4, :c)', {"chain": f"c-{level}", "c": b"x"}),
            (
                "INSERT INTO case_file (id, chain, version, state, level, locked, provisional, channel, language,"
                " walled, flags, flag_rank, age_rank, unit, oversight, received_hour, due_at, due_kind, generation,"
                " decision)"
                " VALUES (:id, :chain, 4, 'open', :level, false, false, 'sms', 'km', false, '[]', 7, 99, 'u-1', 'u-1',"
                " '2027-03-09 07:00:00', '2027-03-09 08:00:00', 'claim', 1, 1)",
                {"id": case, "chain": f"c-{level}", "level": level},
            ),
        ]
        for number, (kind, met) in enumerate([("claim", None), ("act", None), ("claim", "2027-03-09 07:30:00")]):
            rows.append(
                (
                    'INSERT INTO clock (id, "case", kind, due_at, set_by, met_at) VALUES (:id, :case, :kind,'
                    f" '2027-03-09 08:00:00', 'triage:decision:made', {'NULL' if met is None else repr(met)})",
                    {"id": id_(uuid.UUID(int=100 * int(level[1]) + number)), "case": case, "kind": kind},
                )
            )
    rows.append(
        (
            "INSERT INTO contact (id, pseudonym, epoch, relay_generation, key_sealed, number_sealed, row_tag)"
            " VALUES (:id, :name, 1, 1, :name, :name, :name)",
            {"id": id_(CONTACT), "name": b"x"},
        )
    )
    for kind, contact in (("acknowledge", CONTACT), ("page", None)):
        job = uuid.UUID(int=len(kind))
        fixed = {"id": job, "key": f"{kind}:1", "kind": kind, "case": a_case_id("P1"), "contact": contact}
        values = {
            **{name: id_(value) if isinstance(value, uuid.UUID) else value for name, value in fixed.items()},
            "tag": boxes.row_tag(ROW_KEY, {"table": "outbox", **fixed}),
        }
        rows.append(
            (
                'INSERT INTO outbox (id, key, kind, "case", contact, language, state, not_before, expires_at, row_tag)'
                " VALUES (:id, :key, :kind, :case, :contact, 'km', 'waiting',"
                " '2027-03-09 07:00:00', '2027-03-09 07:10:00', :tag)",
                values,
            )
        )
    return rows


@pytest.fixture
def before_the_worker(empty_url: str) -> Iterator[Sessions]:
    """A filled database of revision 0002."""
    assert migrate(empty_url, "0002") == "0002"
    sessions = open_database(empty_url)
    with sessions.writing.begin() as connection:
        for statement, values in old_rows(sessions.dialect):
            connection.execute(text(statement), values)
    yield sessions
    sessions.close()


def rows_of(sessions: Sessions, statement: str) -> list[tuple[Any, ...]]:
    with sessions.writing.connect() as connection:
        return [tuple(row) for row in connection.execute(text(statement)).all()]


def test_claim_clocks_that_ran_before_there_was_a_worker_climb_from_the_lapse_on(
    empty_url: str, before_the_worker: Sessions
) -> None:
    """Nobody was reminded before there was a worker; the lapse of each level is told once, then its longer steps."""
    due = datetime(2027, 3, 9, 8, tzinfo=UTC)
    migrate(empty_url, "0003")
    with before_the_worker.read() as session:
        clocks = session.scalars(select(Clock)).all()
    assert len(clocks) == 12
    for clock in clocks:
        assert clock.due_at == due
        if clock.kind == "act":
            assert (clock.step, clock.next_at, clock.span) == (0, None, None)
            continue
        level = f"P{clock.id.int // 100}"
        assert (clock.step, clock.next_at, clock.span) == (Step.LAPSED, due, LEVELS[level])
    with before_the_worker.read() as session:
        climbing = session.scalars(select(Clock).where(RUNNING, col(Clock.next_at) <= due)).all()
    assert sorted(clock.id.int for clock in climbing) == [100, 200, 300, 400], "a claim that was met stays met"


def test_what_waited_before_there_was_a_worker_is_dropped_when_old_and_paged_when_urgent(
    empty_url: str, before_the_worker: Sessions
) -> None:
    migrate(empty_url)
    with before_the_worker.read() as session:
        answer, page = session.scalars(select(OutboxJob).order_by(col(OutboxJob.kind))).all()
        contact = session.scalars(select(Contact)).one()
    assert (answer.attempts, answer.duty, answer.sid, answer.joined, answer.until) == (0, None, None, None, None)
    assert (contact.quiet_until, contact.opted_out_at) == (None, None)
    outbox.check_tag(ROW_KEY, page)
    with pytest.raises(CannotOpen):
        outbox.check_tag(ROW_KEY, answer)  # its end was not under the tag yet

    relay = Relay(before_the_worker, None, None, ROW_KEY, {}, {}, lambda: datetime(2027, 3, 10, tzinfo=UTC))  # type: ignore[arg-type]
    _, late, errands = write(before_the_worker, partial(relay._take, now=relay.now()))
    assert (late, errands) == ([answer.id], []), "nobody is answered so late, whatever its tag says"


def test_down_to_the_revision_before_and_up_again_keeps_old_rows(empty_url: str, before_the_worker: Sessions) -> None:
    import alembic.command

    from service.schema import _alembic

    old = 'SELECT id, "case", kind, due_at, met_at FROM clock ORDER BY id'
    jobs = "SELECT id, key, kind, state, row_tag FROM outbox ORDER BY id"
    before = [rows_of(before_the_worker, statement) for statement in (old, jobs)]
    assert migrate(empty_url, "0003") == "0003"
    with before_the_worker.writing.connect() as connection:
        config = _alembic(empty_url)
        config.attributes["connection"] = connection
        alembic.command.downgrade(config, "0002")
        connection.commit()
        assert "next_at" not in {column["name"] for column in inspect(connection).get_columns("clock")}
        assert "provider_report" not in inspect(connection).get_table_names()
    assert [rows_of(before_the_worker, statement) for statement in (old, jobs)] == before
    migrate(empty_url)
    assert [rows_of(before_the_worker, statement) for statement in (old, jobs)] == before


def test_a_text_at_the_provider_and_a_status_are_kept_once(empty_url: str, before_the_worker: Sessions) -> None:
    migrate(empty_url)
    for statement in (
        "UPDATE outbox SET sid = :s",
        "INSERT INTO provider_report (sid, status, at) VALUES (:s, 'sent', '2027-03-09 08:00:00'),"
        " (:s, 'sent', '2027-03-09 08:00:00')",
    ):
        with pytest.raises(IntegrityError), before_the_worker.writing.begin() as connection:
            connection.execute(text(statement), {"s": b"the same"})


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
