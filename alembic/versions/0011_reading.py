"""Walls of single units and persons, proposals to narrow them, and readings to count a day's quota from

Revision: 0011, after 0010
"""

import sqlalchemy as sa

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

STANDING = sa.text("state IN ('proposed', 'approved')")


def upgrade() -> None:
    op.create_table(
        "wall",
        sa.Column("name", sa.LargeBinary(), nullable=False),
        sa.Column("case", sa.Uuid(), nullable=False),
        sa.Column("exclusion", sa.Uuid(), nullable=False),
        sa.Column("why", sa.String(), nullable=False),
        sa.Column("added_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("whom", sa.LargeBinary(), nullable=False),
        sa.Column("row_tag", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["case"], ["case_file.id"], name=op.f("fk_wall_case")),
        sa.PrimaryKeyConstraint("name", "case", name=op.f("pk_wall")),
    )
    op.create_index(op.f("ix_wall_case"), "wall", ["case"])
    op.create_index(op.f("ix_wall_exclusion"), "wall", ["exclusion"])
    op.create_table(
        "narrowing",
        *(sa.Column(name, sa.Uuid(), nullable=False) for name in ("id", "case", "exclusion")),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("proposed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("proposer", sa.Uuid(), nullable=False),
        sa.Column("approver", sa.Uuid(), nullable=True),
        sa.ForeignKeyConstraint(["case"], ["case_file.id"], name=op.f("fk_narrowing_case")),
        sa.ForeignKeyConstraint(["proposer"], ["member.id"], name=op.f("fk_narrowing_proposer")),
        sa.ForeignKeyConstraint(["approver"], ["member.id"], name=op.f("fk_narrowing_approver")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_narrowing")),
    )
    op.create_index(op.f("ix_narrowing_case"), "narrowing", ["case"])
    op.create_index(
        "ix_narrowing_standing",
        "narrowing",
        ["exclusion"],
        unique=True,
        sqlite_where=STANDING,
        postgresql_where=STANDING,
    )
    op.create_table(
        "reading",
        sa.Column("eid", sa.String(), nullable=False),
        sa.Column("case", sa.Uuid(), nullable=False),
        sa.Column("member", sa.Uuid(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("over", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["eid"], ["ledger_event.eid"], name=op.f("fk_reading_eid")),
        sa.ForeignKeyConstraint(["case"], ["case_file.id"], name=op.f("fk_reading_case")),
        sa.ForeignKeyConstraint(["member"], ["member.id"], name=op.f("fk_reading_member")),
        sa.PrimaryKeyConstraint("eid", name=op.f("pk_reading")),
    )
    op.create_index(op.f("ix_reading_case"), "reading", ["case"])
    op.create_index("ix_reading_member", "reading", ["member", "at"])


def downgrade() -> None:
    for table in ("reading", "narrowing", "wall"):
        op.drop_table(table)
