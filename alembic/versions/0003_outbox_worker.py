"""What the worker needs: ladders of clocks, attempts at sending, reports of the provider

Revision: 0003, after 0002

Claim clocks that run already get their ladder from the lapse on: nobody was reminded before there was a worker.
"""

import sqlalchemy as sa

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

NEXT = sa.text("next_at IS NOT NULL AND met_at IS NULL AND lapsed_at IS NULL")
TRYING = sa.text("state IN ('sending', 'checking')")
UNSEEN = sa.text("state IN ('failed', 'unknown') AND seen_by IS NULL")
SPANS = "CASE level WHEN 'P1' THEN 900 WHEN 'P2' THEN 3600 WHEN 'P3' THEN 86400 ELSE 259200 END"


def moment(name: str) -> sa.Column:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=True)


def upgrade() -> None:
    op.create_table(
        "provider_report",
        sa.Column("sid", sa.LargeBinary(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("code", sa.Integer(), nullable=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("sid", "status", name=op.f("pk_provider_report")),
    )
    op.add_column("contact", moment("quiet_until"))
    op.add_column("clock", sa.Column("span", sa.Integer(), nullable=True))
    op.add_column("clock", sa.Column("step", sa.Integer(), server_default="0", nullable=False))
    op.add_column("clock", moment("next_at"))
    op.create_index("ix_clock_next", "clock", ["next_at"], sqlite_where=NEXT, postgresql_where=NEXT)
    op.execute(
        "UPDATE clock SET step = 3, next_at = due_at,"
        f' span = (SELECT {SPANS} FROM case_file WHERE case_file.id = clock."case")'
        " WHERE kind = 'claim'"
    )
    with op.batch_alter_table("outbox", schema=None) as outbox:
        outbox.add_column(sa.Column("duty", sa.String(), nullable=True))
        outbox.add_column(sa.Column("attempts", sa.Integer(), server_default="0", nullable=False))
        for name in ("until", "tried_at", "done_at"):
            outbox.add_column(moment(name))
        outbox.add_column(sa.Column("joined", sa.Uuid(), nullable=True))
        outbox.add_column(sa.Column("sid", sa.LargeBinary(), nullable=True))
        outbox.add_column(sa.Column("report", sa.String(), nullable=True))
        outbox.add_column(sa.Column("code", sa.Integer(), nullable=True))
        outbox.add_column(sa.Column("seen_by", sa.Uuid(), nullable=True))
        outbox.create_unique_constraint(op.f("uq_outbox_sid"), ["sid"])
        outbox.create_foreign_key(op.f("fk_outbox_seen_by"), "member", ["seen_by"], ["id"])
        outbox.create_foreign_key(op.f("fk_outbox_joined"), "outbox", ["joined"], ["id"])
    op.create_index("ix_outbox_trying", "outbox", ["until"], sqlite_where=TRYING, postgresql_where=TRYING)
    op.create_index("ix_outbox_unseen", "outbox", ["case"], sqlite_where=UNSEEN, postgresql_where=UNSEEN)


def downgrade() -> None:
    op.drop_index("ix_outbox_unseen", "outbox")
    op.drop_index("ix_outbox_trying", "outbox")
    with op.batch_alter_table("outbox", schema=None) as outbox:
        outbox.drop_constraint(op.f("fk_outbox_joined"), type_="foreignkey")
        outbox.drop_constraint(op.f("fk_outbox_seen_by"), type_="foreignkey")
        outbox.drop_constraint(op.f("uq_outbox_sid"), type_="unique")
        for name in ("seen_by", "code", "report", "sid", "joined", "done_at", "tried_at", "until", "attempts", "duty"):
            outbox.drop_column(name)
    op.drop_index("ix_clock_next", "clock")
    for name in ("next_at", "step", "span"):
        op.drop_column("clock", name)
    op.drop_column("contact", "quiet_until")
    op.drop_table("provider_report")
