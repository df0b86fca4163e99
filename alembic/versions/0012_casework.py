"""Casework: where a case goes back to, its files, marks beside its state, and ladders for deadlines to act

Revision: 0012, after 0011

Deadlines to act that run already get their ladder from the lapse on; of those that went by nobody was told, so
somebody is told now.
"""

import sqlalchemy as sa

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

PROPOSED = sa.text("state IN ('proposed', 'signed')")
STANDING = sa.text("ended_at IS NULL")
ANSWERS = "CASE level WHEN 'P1' THEN 900 ELSE 14400 END"


def upgrade() -> None:
    op.add_column("case_file", sa.Column("back", sa.String(), server_default="open", nullable=False))
    op.create_table(
        "attachment",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("case", sa.Uuid(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("print", sa.LargeBinary(), nullable=False),
        sa.Column("filed_by", sa.Uuid(), nullable=False),
        sa.Column("filed_hour", sa.DateTime(timezone=True), nullable=False),
        *(
            sa.Column(name, sa.LargeBinary(), nullable=False)
            for name in ("header", "seal", "body", "name_header", "name_seal", "name_body")
        ),
        sa.ForeignKeyConstraint(["case"], ["case_file.id"], name=op.f("fk_attachment_case")),
        sa.ForeignKeyConstraint(["filed_by"], ["member.id"], name=op.f("fk_attachment_filed_by")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_attachment")),
        sa.UniqueConstraint("case", "number", name=op.f("uq_attachment_case_number")),
    )
    op.create_index("ix_attachment_print", "attachment", ["print"])
    op.create_table(
        "overlay",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("case", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("set_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["case"], ["case_file.id"], name=op.f("fk_overlay_case")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_overlay")),
    )
    op.create_index(
        "ix_overlay_standing",
        "overlay",
        ["case", "kind"],
        unique=True,
        sqlite_where=STANDING,
        postgresql_where=STANDING,
    )
    op.create_table(
        "closure",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("case", sa.Uuid(), nullable=False),
        *(sa.Column(name, sa.String(), nullable=False) for name in ("state", "reason", "papers")),
        *(sa.Column(name, sa.DateTime(timezone=True), nullable=False) for name in ("proposed_at", "cools_until")),
        sa.Column("proposer", sa.Uuid(), nullable=False),
        sa.Column("proposer_organisation", sa.String(), nullable=False),
        sa.Column("overseen", sa.Boolean(), nullable=False),
        *(
            sa.Column(f"{who}{what}", kind, nullable=True)
            for who in ("approver", "overseer")
            for what, kind in (("", sa.Uuid()), ("_organisation", sa.String()))
        ),
        sa.ForeignKeyConstraint(["case"], ["case_file.id"], name=op.f("fk_closure_case")),
        *(
            sa.ForeignKeyConstraint([who], ["member.id"], name=op.f(f"fk_closure_{who}"))
            for who in ("proposer", "approver", "overseer")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_closure")),
    )
    op.create_index(
        "ix_closure_standing", "closure", ["case"], unique=True, sqlite_where=PROPOSED, postgresql_where=PROPOSED
    )
    op.execute(
        "UPDATE clock SET step = 3, next_at = due_at,"
        f' span = (SELECT {ANSWERS} FROM case_file WHERE case_file.id = clock."case")'
        " WHERE kind = 'act'"
    )


def downgrade() -> None:
    op.execute("UPDATE clock SET step = 0, next_at = NULL, span = NULL WHERE kind = 'act'")
    op.drop_table("closure")
    op.drop_table("overlay")
    op.drop_table("attachment")
    op.drop_column("case_file", "back")
