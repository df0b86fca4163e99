"""Guards of the history: events stay, and no case changes without one

Revision: 0002, after 0001

A superuser can switch triggers off, so these are a speed bump; the proof is the ledger. What they do stop is our
own code: `case_file.version` must be the sequence number of the newest event of the case's chain.
"""

import sqlalchemy as sa

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

SQLITE = [
    "CREATE TRIGGER ledger_event_no_update BEFORE UPDATE ON ledger_event"
    " BEGIN SELECT RAISE(ABORT, 'an event is never changed'); END",
    "CREATE TRIGGER ledger_event_no_delete BEFORE DELETE ON ledger_event"
    " BEGIN SELECT RAISE(ABORT, 'an event is never deleted'); END",
    "CREATE TRIGGER ledger_head_no_delete BEFORE DELETE ON ledger_head"
    " BEGIN SELECT RAISE(ABORT, 'a chain is never deleted'); END",
    *(
        f"CREATE TRIGGER case_file_needs_event_{verb} BEFORE {verb} ON case_file"
        ' WHEN NEW.version IS NOT (SELECT seq FROM ledger_head WHERE "case" = NEW.chain)'
        " BEGIN SELECT RAISE(ABORT, 'a case changes only with its event'); END"
        for verb in ("insert", "update")
    ),
    "CREATE TRIGGER case_file_moves_on BEFORE UPDATE ON case_file WHEN NEW.version <= OLD.version"
    " BEGIN SELECT RAISE(ABORT, 'a case changes only with a new event'); END",
    "CREATE TRIGGER case_file_no_delete BEFORE DELETE ON case_file"
    " BEGIN SELECT RAISE(ABORT, 'a case is never deleted'); END",
]

POSTGRESQL = [
    """
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN RAISE EXCEPTION 'this row is never changed or deleted' USING ERRCODE = 'restrict_violation'; END $$
    """,
    "CREATE TRIGGER ledger_event_kept BEFORE UPDATE OR DELETE ON ledger_event FOR EACH ROW EXECUTE FUNCTION refuse()",
    "CREATE TRIGGER ledger_event_not_emptied BEFORE TRUNCATE ON ledger_event EXECUTE FUNCTION refuse()",
    "CREATE TRIGGER ledger_head_kept BEFORE DELETE ON ledger_head FOR EACH ROW EXECUTE FUNCTION refuse()",
    "CREATE TRIGGER ledger_head_not_emptied BEFORE TRUNCATE ON ledger_head EXECUTE FUNCTION refuse()",
    "CREATE TRIGGER case_file_kept BEFORE DELETE ON case_file FOR EACH ROW EXECUTE FUNCTION refuse()",
    """
    CREATE FUNCTION case_needs_event() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
      IF NEW.version IS DISTINCT FROM (SELECT seq FROM ledger_head WHERE "case" = NEW.chain) THEN
        RAISE EXCEPTION 'a case changes only with its event' USING ERRCODE = 'restrict_violation';
      END IF;
      IF TG_OP = 'UPDATE' AND NEW.version <= OLD.version THEN
        RAISE EXCEPTION 'a case changes only with a new event' USING ERRCODE = 'restrict_violation';
      END IF;
      RETURN NEW;
    END $$
    """,
    "CREATE TRIGGER case_file_needs_event BEFORE INSERT OR UPDATE ON case_file"
    " FOR EACH ROW EXECUTE FUNCTION case_needs_event()",
]

EMPTY_ROOT = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def upgrade() -> None:
    state = sa.table(
        "ledger_state",
        *(sa.column(name) for name in ("id", "size", "root", "epoch", "note")),
        *(sa.column(name) for name in ("published_size", "witnessed_size", "witnessed_root", "halted")),
    )
    root = bytes.fromhex(EMPTY_ROOT)
    op.execute(
        state.insert().values(
            id=1,
            size=0,
            root=sa.literal(root, sa.LargeBinary()),
            epoch=0,
            note=None,
            published_size=0,
            witnessed_size=0,
            witnessed_root=sa.literal(root, sa.LargeBinary()),
            halted=sa.false(),
        )
    )
    for statement in SQLITE if op.get_bind().dialect.name == "sqlite" else POSTGRESQL:
        op.execute(statement)


def downgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        for statement in SQLITE:
            op.execute(f"DROP TRIGGER {statement.split()[2]}")
    else:
        for table in ("ledger_event", "ledger_head", "case_file"):
            for statement in POSTGRESQL:
                name = statement.split()[2]
                if statement.startswith("CREATE TRIGGER") and f" ON {table} " in statement:
                    op.execute(f"DROP TRIGGER {name} ON {table}")
        op.execute("DROP FUNCTION refuse()")
        op.execute("DROP FUNCTION case_needs_event()")
    op.execute("DELETE FROM ledger_state WHERE id = 1")
