"""Mailboxes behind return codes, and the questions in them

Revision: 0010, after 0009
"""

import sqlalchemy as sa

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "mailbox",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("tip", sa.Uuid(), nullable=False),
        *(sa.Column(name, sa.LargeBinary(), nullable=False) for name in ("locator", "public", "wrapped", "tag_key")),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("since", sa.Date(), nullable=False),
        sa.Column("next_status", sa.String(), nullable=True),
        sa.Column("next_since", sa.Date(), nullable=True),
        sa.Column("next_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("row_tag", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["tip"], ["tip.id"], name=op.f("fk_mailbox_tip")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_mailbox")),
        sa.UniqueConstraint("tip", name=op.f("uq_mailbox_tip")),
        sa.UniqueConstraint("locator", name=op.f("uq_mailbox_locator")),
    )
    op.create_table(
        "question",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("mailbox", sa.Uuid(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("case", sa.Uuid(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("asked_at", sa.DateTime(timezone=True), nullable=False),
        *(
            sa.Column(name, sa.LargeBinary(), nullable=False)
            for name in ("header", "seal", "body", "box_header", "box_seal", "box_body", "row_tag")
        ),
        sa.ForeignKeyConstraint(["mailbox"], ["mailbox.id"], name=op.f("fk_question_mailbox")),
        sa.ForeignKeyConstraint(["case"], ["case_file.id"], name=op.f("fk_question_case")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_question")),
        sa.UniqueConstraint("mailbox", "number", name=op.f("uq_question_mailbox_number")),
    )
    op.create_index(op.f("ix_question_case"), "question", ["case"])


def downgrade() -> None:
    op.drop_table("question")
    op.drop_table("mailbox")
