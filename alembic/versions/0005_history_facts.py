"""What a tip names, as keyed names, so that repeats can be counted; two indexes for it

Revision: 0005, after 0004
"""

import sqlalchemy as sa

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

# Walling a case off takes seals and names away, in the public process too when a text names an official. Where each
# process has a role of its own (deploy/postgres/roles.sql) this one may delete nothing else.
DELETE = """
    DO $$ BEGIN
      IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'hotline_public') THEN
        GRANT DELETE ON case_seal, keyed_name TO hotline_public;
      END IF;
    END $$
"""
CLOSURE = sa.text("type = 'case:closure:effective'")


def upgrade() -> None:
    op.create_table(
        "keyed_name",
        sa.Column("tip", sa.Uuid(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("name", sa.LargeBinary(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["tip"], ["tip.id"], name=op.f("fk_keyed_name_tip")),
        sa.PrimaryKeyConstraint("tip", "number", "kind", name=op.f("pk_keyed_name")),
    )
    op.create_index(op.f("ix_keyed_name_name_at"), "keyed_name", ["name", "at"])
    op.create_index(op.f("ix_tip_contact"), "tip", ["contact"])
    op.create_index(
        "ix_ledger_event_closure", "ledger_event", ["case", "at"], sqlite_where=CLOSURE, postgresql_where=CLOSURE
    )
    if op.get_bind().dialect.name == "postgresql":
        op.execute(DELETE)


def downgrade() -> None:
    op.drop_index("ix_ledger_event_closure", "ledger_event")
    op.drop_index(op.f("ix_tip_contact"), "tip")
    op.drop_table("keyed_name")
