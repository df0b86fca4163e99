"""Lowering a level: who has signed, and what an event does once it is witnessed

Revision: 0004, after 0003
"""

import sqlalchemy as sa

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

STANDING = sa.text("state IN ('proposed', 'approved')")


def upgrade() -> None:
    op.create_table(
        "ledger_effect",
        sa.Column("eid", sa.String(), nullable=False),
        sa.Column("action", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["eid"], ["ledger_event.eid"], name=op.f("fk_ledger_effect_eid")),
        sa.PrimaryKeyConstraint("eid", name=op.f("pk_ledger_effect")),
    )
    op.create_table(
        "lowering",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("case", sa.Uuid(), nullable=False),
        *(sa.Column(name, sa.String(), nullable=False) for name in ("state", "before", "after", "floor")),
        sa.Column("proposed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("proposer", sa.Uuid(), nullable=False),
        sa.Column("proposer_unit", sa.String(), nullable=False),
        sa.Column("approver", sa.Uuid(), nullable=True),
        sa.Column("approver_unit", sa.String(), nullable=True),
        sa.Column("overseer", sa.Uuid(), nullable=True),
        sa.ForeignKeyConstraint(["case"], ["case_file.id"], name=op.f("fk_lowering_case")),
        *(
            sa.ForeignKeyConstraint([name], ["member.id"], name=op.f(f"fk_lowering_{name}"))
            for name in ("proposer", "approver", "overseer")
        ),
        *(
            sa.ForeignKeyConstraint([name], ["unit.id"], name=op.f(f"fk_lowering_{name}"))
            for name in ("proposer_unit", "approver_unit")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_lowering")),
    )
    op.create_index(
        "ix_lowering_standing", "lowering", ["case"], unique=True, sqlite_where=STANDING, postgresql_where=STANDING
    )


def downgrade() -> None:
    op.drop_table("lowering")
    op.drop_table("ledger_effect")
