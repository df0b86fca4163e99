"""A hotline after years: up to a million cases, written past the product, as the product would have written them.

The active cases are the same in every database, so that pages and counts of a small and a large one can be compared
word for word. They lie among the closed ones as years leave them: half are the newest, half are scattered.
"""

import json
import random
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from itertools import islice
from typing import Any
from uuid import UUID

import psycopg
from sqlalchemy import insert

from bench.load import TEXTS
from bench.verdict import note
from service.cases import HOT_FLAGS, NO_AGE, flag_rank
from service.config import Settings
from service.db import Sessions
from service.models import Case, CaseDecision, CaseSeal, Clock, ClockKind, LedgerHead, Level, Member, State
from service.queue import Count
from service.triage import PROVINCES, Triage, assess

UNITS = {"screening": 0.5, "siem-reap": 0.3, "kandal": 0.2}
OVERSIGHT = "oversight"
LEVELS = {Level.P1: 0.05, Level.P2: 0.2, Level.P3: 0.45, Level.P4: 0.3}
STATES = {State.OPEN: 0.6, State.CLAIMED: 0.25, State.WITH_AUTHORITY: 0.1, State.IN_COURT: 0.05}
VENUES = ("hotel", "guesthouse", "karaoke", "bar", "massage", "home", "school", "residential_care", "street", "beach")
MEMBERS = 8
WALLED = 0.03
BATCH = 5000

Rows = list[dict[str, Any]]


class History:
    """All cases of a run: the active ones are made once, the closed ones as they are written."""

    def __init__(self, active: int, now: datetime, *, seed: int = 1) -> None:
        self.now = now.replace(microsecond=0)
        self._random = random.Random(seed)
        self.members = [self._uuid() for _ in range(MEMBERS)]
        settings = Settings()
        triage = Triage.load(settings.ruleset_file, settings.lexicon_dir)
        self._records = [assess(triage, text, (), now, {}).decision.record for text in TEXTS]
        self.active = [self._case(self._one_of(STATES)) for _ in range(active)]

    def counts(self) -> dict[str, Count]:
        """Return what ``queue.counts`` must say to somebody who may see every active case."""
        found: dict[str, Count] = {}
        for level in Level:
            cases = [case for case in self.active if case["level"] == level]
            late = sum(case["due_at"] < self.now for case in cases)
            found[level] = Count(len(cases), late, sum(case["state"] == State.OPEN for case in cases))
        return found

    def cases(self, count: int) -> Iterator[dict[str, Any]]:
        """Yield `count` cases in the order in which they came in, oldest first."""
        closed = count - len(self.active)
        scattered = len(self.active) // 2 if closed else 0
        places = set(self._random.sample(range(closed), min(scattered, closed)))
        active = iter(self.active)
        for place in range(closed):
            if place in places:
                yield next(active)
            yield self._case(State.CLOSED)
        yield from active

    def people(self) -> Rows:
        """Return the members' rows: accounts that nobody can sign in to."""
        keys = {name: bytes(32) for name in ("auth", "box_public", "signing_public", "wrapped", "row_tag")}
        return [
            {
                "id": member,
                "account": f"person-{number}",
                "name": f"Person {number}",
                "name_km": f"មនុស្ស {number}",
                "organisation": "org-police",
                "role": "investigator",
                "chain": self._chain(),
                "parameters": "{}",
                "created_at": self.now,
                "disabled_at": None,
                "totp_failures": 0,
                **keys,
            }
            for number, member in enumerate(self.members)
        ]

    def _case(self, state: State) -> dict[str, Any]:
        pick = self._random
        walled = pick.random() < WALLED
        flags = [] if walled else [flag for flag in HOT_FLAGS if pick.random() < 0.05]
        # A few provinces and kinds of place bring most cases, and some cases do not say.
        province = None if walled or pick.random() < 0.2 else _PROVINCES[int(len(_PROVINCES) * pick.random() ** 3)]
        claimed = state != State.OPEN
        return {
            "id": self._uuid(),
            "chain": self._chain(),
            "version": 2,
            "state": state,
            "level": self._one_of(LEVELS),
            "locked": False,
            "provisional": pick.random() < 0.3,
            "channel": pick.choice(("sms", "voice", "web")),
            "language": pick.choice(("km", "km", "en")),
            "walled": walled,
            "flags": None if walled else json.dumps(flags),
            "flag_rank": 7 if walled else flag_rank(flags),
            "age_rank": NO_AGE if walled or pick.random() < 0.6 else pick.randrange(3, 18),
            "province": province,
            "venue": None if walled or pick.random() < 0.3 else VENUES[int(len(VENUES) * pick.random() ** 2)],
            "unit": self._one_of(UNITS),
            "oversight": OVERSIGHT,
            "owner": pick.choice(self.members) if claimed else None,
            "received_hour": self.now.replace(minute=0, second=0) - timedelta(hours=pick.randrange(20000)),
            "due_at": self.now.replace(second=0) + timedelta(minutes=pick.randrange(-1000, 20000)),
            "due_kind": ClockKind.ACT if claimed else ClockKind.CLAIM,
            "generation": 1,
            "decision": 1,
            "back": "open",
        }

    def rows(self, case: Mapping[str, Any]) -> dict[Any, Rows]:
        """Return all rows that a case has in the tables that queue, counts and claims touch."""
        bits, record = self._random.randbytes, self._records[case["id"].int % len(self._records)]
        met = None if case["state"] == State.OPEN else self.now
        over = self.now if case["state"] == State.CLOSED else None
        decision = {"case": case["id"], "number": 1, "message": None, "level": case["level"]}
        decision |= {"ruleset_hash": "0" * 64, "record": None if case["walled"] else record}
        clock = {
            "case": case["id"],
            "due_at": case["due_at"],
            "set_by": "triage:decision:made",
            "lapsed_at": None,
            "step": 0,
        }
        return {
            LedgerHead: [{"case": case["chain"], "seq": case["version"], "c": bits(32)}],
            Case: [dict(case)],
            CaseSeal: [
                {"case": case["id"], "generation": 1, "unit": unit, "unit_generation": 1, "sealed": bits(112)}
                for unit in (case["unit"], case["oversight"])
            ],
            CaseDecision: [{**decision, "header": None, "seal": None, "body": None}],
            Clock: [
                {**clock, "id": self._uuid(), "kind": ClockKind.CLAIM, "met_at": met},
                {**clock, "id": self._uuid(), "kind": ClockKind.ACT, "met_at": over},
            ],
        }

    def _one_of(self, weights: Mapping[Any, float]) -> Any:
        return self._random.choices(list(weights), list(weights.values()))[0]

    def _uuid(self) -> UUID:
        return UUID(bytes=self._random.randbytes(16), version=4)

    def _chain(self) -> str:
        return self._random.randbytes(16).hex()


_PROVINCES = tuple(PROVINCES)


# --- writing --------------------------------------------------------------------------------------------


def fill(sessions: Sessions, history: History, cases: int) -> None:
    """Write `cases` cases into a database that has the units, and let its planner look at them."""
    raw = sessions.writing.raw_connection()
    connection: Any = raw.dbapi_connection
    sink = _Sqlite(sessions, connection) if sessions.dialect == "sqlite" else _Postgresql(sessions, connection)
    sink.write(Member, history.people())
    waiting, done = history.cases(cases), 0
    while batch := [history.rows(case) for case in islice(waiting, BATCH)]:
        done += len(batch)
        note(f"{sessions.dialect}: {done:,} of {cases:,} cases")
        for table in batch[0]:
            sink.write(table, [row for rows in batch for row in rows[table]])
    note("")
    connection.commit()
    raw.invalidate()  # what was switched off for the filling goes with its connection
    with sessions.writing.connect() as plain:
        own: Any = plain.connection.dbapi_connection
        sink.settle(own)


class _Sqlite:
    """Fills SQLite in one transaction, without its journal: what breaks is made again."""

    def __init__(self, sessions: Sessions, connection: Any) -> None:
        self._dialect, self._connection = sessions.writing.dialect, connection
        for pragma in ("foreign_keys=OFF", "journal_mode=OFF", "synchronous=OFF", "cache_size=-2000000"):
            connection.execute(f"PRAGMA {pragma}")
        connection.execute("BEGIN")

    def write(self, table: Any, rows: Rows) -> None:
        """Write rows of one table. Its triggers stay: they ask for a head of the same version, and there is one."""
        names, converted = _plain(table, rows, self._dialect)
        statement = insert(table.__table__).compile(dialect=self._dialect, column_keys=names)
        assert list(statement.positiontup or ()) == names
        self._connection.executemany(str(statement), converted)

    @staticmethod
    def settle(connection: Any) -> None:
        """Let the planner look."""
        connection.execute("ANALYZE")


class _Postgresql:
    """Fills PostgreSQL by COPY, without triggers where this account may switch them off."""

    def __init__(self, sessions: Sessions, connection: Any) -> None:
        self._dialect, self._connection = sessions.writing.dialect, connection
        connection.execute("SET statement_timeout = 0")
        connection.commit()
        try:
            connection.execute("SET session_replication_role = replica")
        except psycopg.errors.InsufficientPrivilege:
            connection.rollback()

    def write(self, table: Any, rows: Rows) -> None:
        """Write rows of one table."""
        names, converted = _plain(table, rows, self._dialect)
        columns = ", ".join(f'"{name}"' for name in names)
        with self._connection.cursor().copy(f"COPY {table.__tablename__} ({columns}) FROM STDIN") as copy:
            for row in converted:
                copy.write_row(row)

    @staticmethod
    def settle(connection: Any) -> None:
        """Do at once what autovacuum does after so many new rows."""
        connection.rollback()
        connection.autocommit = True
        connection.execute("SET statement_timeout = 0")
        connection.execute("VACUUM ANALYZE")
        connection.autocommit = False


def _plain(table: Any, rows: Rows, dialect: Any) -> tuple[list[str], list[list[Any]]]:
    """Return the columns, and the rows as the driver wants them."""
    columns = [column for column in table.__table__.columns if column.name in rows[0]]
    found = []
    for column in columns:
        convert, name = column.type.dialect_impl(dialect).bind_processor(dialect), column.name
        found.append([row[name] if convert is None else convert(row[name]) for row in rows])
    return [column.name for column in columns], [list(row) for row in zip(*found, strict=True)]
