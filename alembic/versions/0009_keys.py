"""Keys that change: relay generations, decks, recovery seals; tags of what a contact may be used for

Revision: 0009, after 0008

A contact of the version before has no tags of its tip and of its silence. It is not written to by machine, and its next
text begins a tip of its own: whoever can write rows could have taken a tag away.
"""

import sqlalchemy as sa

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("contact", sa.Column("tip_tag", sa.LargeBinary(), nullable=True))
    op.add_column("contact", sa.Column("quiet_tag", sa.LargeBinary(), nullable=True))
    op.create_table(
        "relay_generation",
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("note", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("generation", name=op.f("pk_relay_generation")),
    )
    op.create_table(
        "cards_deck",
        sa.Column("serial", sa.Integer(), nullable=False),
        sa.Column("note", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("serial", name=op.f("pk_cards_deck")),
    )
    op.create_table(
        "unit_recovery",
        sa.Column("unit", sa.String(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["unit"], ["unit.id"], name=op.f("fk_unit_recovery_unit")),
        sa.PrimaryKeyConstraint("unit", "generation", name=op.f("pk_unit_recovery")),
    )
    op.create_table(
        "erasure",
        sa.Column("case", sa.Uuid(), nullable=False),
        sa.Column("marked_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("erased_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["case"], ["case_file.id"], name=op.f("fk_erasure_case")),
        sa.PrimaryKeyConstraint("case", name=op.f("pk_erasure")),
    )


def downgrade() -> None:
    for table in ("erasure", "unit_recovery", "cards_deck", "relay_generation"):
        op.drop_table(table)
    for column in ("quiet_tag", "tip_tag"):
        op.drop_column("contact", column)
