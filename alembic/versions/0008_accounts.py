"""Accounts: second factor, ended sessions, invitations, changes that take two persons, units that need a new key

Revision: 0008, after 0007
"""

import sqlalchemy as sa

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def moment(name: str, *, null: bool = True) -> sa.Column:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=null)


def words(*names: str) -> list[sa.Column]:
    return [sa.Column(name, sa.String(), nullable=False) for name in names]


def data(name: str, *, null: bool = False) -> sa.Column:
    return sa.Column(name, sa.LargeBinary(), nullable=null)


def id_(name: str, *, null: bool = False) -> sa.Column:
    return sa.Column(name, sa.Uuid(), nullable=null)


def of_member(table: str, *names: str) -> list[sa.ForeignKeyConstraint]:
    return [sa.ForeignKeyConstraint([name], ["member.id"], name=op.f(f"fk_{table}_{name}")) for name in names]


def upgrade() -> None:
    op.add_column("unit", sa.Column("stale_generation", sa.Integer(), nullable=True))
    op.add_column("unit", moment("stale_since"))
    op.add_column("member", sa.Column("totp_used", sa.Integer(), nullable=True))
    op.add_column("member", sa.Column("totp_failures", sa.Integer(), server_default="0", nullable=False))
    op.add_column("member", moment("totp_after"))
    op.add_column("staff_session", moment("stepped_until"))
    op.add_column("staff_session", data("stepped_tag", null=True))
    op.create_table(
        "ended_session",
        data("id"),
        id_("member"),
        moment("expires_at", null=False),
        moment("seen_at"),
        *of_member("ended_session", "member"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ended_session")),
    )
    op.create_table(
        "retired_key",
        data("signing_public"),
        id_("member"),
        moment("retired_at", null=False),
        data("row_tag"),
        *of_member("retired_key", "member"),
        sa.PrimaryKeyConstraint("signing_public", name=op.f("pk_retired_key")),
    )
    op.create_index(op.f("ix_retired_key_member"), "retired_key", ["member"])
    op.create_table(
        "invitation",
        id_("id"),
        data("secret"),
        id_("member", null=True),
        *words("account", "name", "name_km", "organisation", "role"),
        id_("inviter"),
        moment("made_at", null=False),
        moment("expires_at", null=False),
        moment("ended_at"),
        data("row_tag"),
        *of_member("invitation", "member", "inviter"),
        sa.ForeignKeyConstraint(["organisation"], ["organisation.id"], name=op.f("fk_invitation_organisation")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_invitation")),
        sa.UniqueConstraint("secret", name=op.f("uq_invitation_secret")),
    )
    op.create_table(
        "account_change",
        id_("id"),
        *words("kind"),
        id_("member", null=True),
        sa.Column("role", sa.String(), nullable=True),
        id_("proposer"),
        moment("proposed_at", null=False),
        moment("decided_at"),
        data("row_tag"),
        *of_member("account_change", "member", "proposer"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_account_change")),
    )


def downgrade() -> None:
    for table in ("account_change", "invitation", "retired_key", "ended_session"):
        op.drop_table(table)
    for table, columns in (
        ("staff_session", ("stepped_tag", "stepped_until")),
        ("member", ("totp_after", "totp_failures", "totp_used")),
        ("unit", ("stale_since", "stale_generation")),
    ):
        for column in columns:
            op.drop_column(table, column)  # not in a batch, which makes the table anew under those that point to it
