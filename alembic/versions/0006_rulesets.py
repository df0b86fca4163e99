"""Rulesets by content hash, never changed; the cases that somebody ticked before one was published

Revision: 0006, after 0005
"""

import sqlalchemy as sa

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

SQLITE = [
    f"CREATE TRIGGER ruleset_no_{verb.lower()} BEFORE {verb} ON ruleset"
    " BEGIN SELECT RAISE(ABORT, 'a ruleset is never changed or deleted'); END"
    for verb in ("UPDATE", "DELETE")
] + [
    # OR REPLACE would delete without a trigger of DELETE.
    "CREATE TRIGGER ruleset_no_replacing BEFORE INSERT ON ruleset"
    " WHEN EXISTS (SELECT 1 FROM ruleset WHERE hash = NEW.hash AND content <> NEW.content)"
    " BEGIN SELECT RAISE(ABORT, 'a ruleset is never changed or deleted'); END"
]
POSTGRESQL = [  # refuse() is of revision 0002
    "CREATE TRIGGER ruleset_kept BEFORE UPDATE OR DELETE ON ruleset FOR EACH ROW EXECUTE FUNCTION refuse()",
    "CREATE TRIGGER ruleset_not_emptied BEFORE TRUNCATE ON ruleset EXECUTE FUNCTION refuse()",
]


def upgrade() -> None:
    op.create_table(
        "ruleset",
        *(sa.Column(name, sa.String(), nullable=False) for name in ("hash", "name", "version")),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.Column("kept_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("hash", name=op.f("pk_ruleset")),
    )
    op.create_table(
        "ruleset_tick",
        sa.Column("ruleset", sa.String(), nullable=False),
        sa.Column("case", sa.Uuid(), nullable=False),
        sa.Column("after", sa.String(), nullable=False),
        sa.Column("member", sa.Uuid(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["ruleset"], ["ruleset.hash"], name=op.f("fk_ruleset_tick_ruleset")),
        sa.ForeignKeyConstraint(["case"], ["case_file.id"], name=op.f("fk_ruleset_tick_case")),
        sa.ForeignKeyConstraint(["member"], ["member.id"], name=op.f("fk_ruleset_tick_member")),
        sa.PrimaryKeyConstraint("ruleset", "case", "after", name=op.f("pk_ruleset_tick")),
    )
    for statement in SQLITE if op.get_bind().dialect.name == "sqlite" else POSTGRESQL:
        op.execute(statement)


def downgrade() -> None:
    op.drop_table("ruleset_tick")
    op.drop_table("ruleset")  # its triggers go with it
