"""The ledger's tree: leaves, tiles, checkpoints, witnesses' lines, promises; when an effect was run

Revision: 0007, after 0006

A leaf, a checkpoint or a line is written once: triggers refuse anything else, as they do for events. A superuser can
switch them off; the proof is the tree.
"""

import sqlalchemy as sa

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

KEPT = ("ledger_leaf", "ledger_checkpoint", "ledger_cosignature", "ledger_promise")


def upgrade() -> None:
    op.add_column("ledger_effect", sa.Column("done_at", sa.DateTime(timezone=True), nullable=True))
    op.create_table(
        "ledger_leaf",
        sa.Column("idx", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("leaf", sa.LargeBinary(), nullable=False),
        sa.Column("eid", sa.String(), nullable=True),
        sa.Column("cover_n", sa.Integer(), nullable=True),
        sa.PrimaryKeyConstraint("idx", name=op.f("pk_ledger_leaf")),
        sa.UniqueConstraint("eid", name=op.f("uq_ledger_leaf_eid")),
        sa.UniqueConstraint("cover_n", name=op.f("uq_ledger_leaf_cover_n")),
    )
    op.create_table(
        "ledger_tile",
        sa.Column("level", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("n", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("hashes", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("level", "n", name=op.f("pk_ledger_tile")),
    )
    op.create_table(
        "ledger_checkpoint",
        sa.Column("size", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("note", sa.String(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("size", name=op.f("pk_ledger_checkpoint")),
    )
    op.create_table(
        "ledger_cosignature",
        sa.Column("size", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("line", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["size"], ["ledger_checkpoint.size"], name=op.f("fk_ledger_cosignature_size")),
        sa.PrimaryKeyConstraint("size", "name", name=op.f("pk_ledger_cosignature")),
    )
    op.create_table(
        "ledger_promise",
        sa.Column("eid", sa.String(), nullable=False),
        sa.Column("note", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["eid"], ["ledger_event.eid"], name=op.f("fk_ledger_promise_eid")),
        sa.PrimaryKeyConstraint("eid", name=op.f("pk_ledger_promise")),
    )
    for table in KEPT:
        if op.get_bind().dialect.name == "sqlite":
            for verb in ("UPDATE", "DELETE"):
                op.execute(
                    f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table}"
                    " BEGIN SELECT RAISE(ABORT, 'the ledger only grows'); END"
                )
        else:
            op.execute(
                f"CREATE TRIGGER {table}_kept BEFORE UPDATE OR DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION refuse()"
            )
            op.execute(f"CREATE TRIGGER {table}_not_emptied BEFORE TRUNCATE ON {table} EXECUTE FUNCTION refuse()")


def downgrade() -> None:
    for table in ("ledger_promise", "ledger_cosignature", "ledger_checkpoint", "ledger_tile", "ledger_leaf"):
        op.drop_table(table)
    op.drop_column("ledger_effect", "done_at")
