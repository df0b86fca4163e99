"""The tables. Rows of outside input pass a plain model first: ``table=True`` validates nothing.

What stands in clear here is the list of DESIGN section 5 and nothing else. `flags`, `province`, `venue`
and `age` are null for a walled case, and its decision is sealed.
"""

from datetime import UTC, date, datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import Column, DateTime, Index, Integer, MetaData, String, UniqueConstraint, text
from sqlalchemy.engine import Dialect
from sqlalchemy.types import BigInteger, TypeDecorator
from sqlmodel import Field, SQLModel

metadata: MetaData = SQLModel.metadata
metadata.naming_convention = {
    "pk": "pk_%(table_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s",
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
}


class Utc(TypeDecorator[datetime]):
    """A moment in UTC. Refuses naive datetimes on the way in and gives aware ones back on both databases."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return what the driver stores: naive UTC on SQLite, aware UTC on PostgreSQL."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a datetime without zone cannot be stored")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return an aware UTC datetime."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Word(TypeDecorator[str]):
    """A short code. Members of a StrEnum are stored as their plain value."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        """Return a plain str: drivers treat subclasses of str each in their own way."""
        return None if value is None else str(value)


Serial = BigInteger().with_variant(Integer(), "sqlite")  # SQLite numbers only INTEGER keys by itself


class Level(StrEnum):
    """P1 now, P2 today, P3 this week, P4 watch. Sorts by urgency."""

    P1 = "P1"
    P2 = "P2"
    P3 = "P3"
    P4 = "P4"


RANK: dict[str, int] = {level.value: rank for rank, level in enumerate(Level)}  # 0 is the most urgent


class Channel(StrEnum):
    """The way a tip came."""

    SMS = "sms"
    VOICE = "voice"
    WEB = "web"
    ASSISTED = "assisted"


class State(StrEnum):
    """The states of casework.md section 2."""

    OPEN = "open"
    CLAIMED = "claimed"
    IN_ACTION = "in_action"
    REFERRED = "referred"
    WITH_AUTHORITY = "with_authority"
    IN_COURT = "in_court"
    WITHDRAWAL_REVIEW = "withdrawal_review"
    CLOSURE_PROPOSED = "closure_proposed"
    CLOSED = "closed"
    WATCH = "watch"


class Role(StrEnum):
    """The roles of casework.md section 1 that people hold."""

    SCREENER = "screener"
    INVESTIGATOR = "investigator"
    SUPERVISOR = "supervisor"
    ADVOCATE = "advocate"
    LEGAL = "legal"
    OVERSIGHT = "oversight"
    AUDITOR = "auditor"
    ADMIN = "admin"


class ClockKind(StrEnum):
    """What must happen before a deadline."""

    CLAIM = "claim"
    ACT = "act"
    LEASE = "lease"
    CHALLENGE = "challenge"  # a tipster says that something is wrong: oversight's alone
    STEP = "step"
    TAKEN = "taken"
    PAPERS = "papers"
    HEARTBEAT = "heartbeat"
    LETTER = "letter"
    REVIEW = "review"
    COOLING = "cooling"
    DECISION = "decision"


class OverlayKind(StrEnum):
    """Marks beside the state (casework.md section 4)."""

    SETTLEMENT = "settlement"
    STALL = "stall"
    FLIGHT = "flight"
    CHILD_REPORTER = "child_reporter"
    SIGNAL = "signal"
    REVIEW_OWED = "review_owed"
    OVERSIGHT_HOLD = "oversight_hold"
    LEGAL_HOLD = "legal_hold"
    SECOND_LOOK = "second_look"


class LoweringState(StrEnum):
    """How far a proposal to lower a level is. The first two stand: one such proposal a case."""

    PROPOSED = "proposed"
    APPROVED = "approved"  # signed by all who must; the level falls when the ledger's witnesses have seen it
    REFUSED = "refused"
    LAPSED = "lapsed"
    EFFECTIVE = "effective"  # the level has fallen


class NarrowingState(StrEnum):
    """How far a proposal to narrow a wall is. The first two stand: one such proposal an exclusion."""

    PROPOSED = "proposed"
    APPROVED = "approved"  # signed by two of oversight; the exclusion ends when the ledger's witnesses have seen it
    REFUSED = "refused"
    DONE = "done"


class Organisation(SQLModel, table=True):
    """A body that employs units. Closing needs two of them."""

    id: str = Field(primary_key=True, sa_type=Word)
    name: str
    name_km: str


class Unit(SQLModel, table=True):
    """A team. Its public key is in the cards file, never here."""

    id: str = Field(primary_key=True, sa_type=Word)
    organisation: str = Field(foreign_key="organisation.id", sa_type=Word)
    kind: str = Field(sa_type=Word)
    name: str
    name_km: str
    province: str | None = Field(default=None, sa_type=Word)
    # Somebody who knew the key up to this generation has left: a card of a later one ends it (keys.md 6.7).
    stale_generation: int | None = None
    stale_since: datetime | None = Field(default=None, sa_type=Utc)


class Member(SQLModel, table=True):
    """A person with an account. `wrapped` opens only under the password; `auth` only checks it."""

    id: UUID = Field(primary_key=True)
    account: str = Field(unique=True)
    name: str
    name_km: str
    organisation: str = Field(foreign_key="organisation.id", sa_type=Word)
    role: str = Field(sa_type=Word)
    chain: str = Field(sa_type=Word)
    parameters: str
    auth: bytes
    box_public: bytes
    signing_public: bytes
    wrapped: bytes
    row_tag: bytes
    created_at: datetime = Field(sa_type=Utc)
    disabled_at: datetime | None = Field(default=None, sa_type=Utc)
    totp_used: int | None = None  # the last step whose code was taken (service.vault.totp): a code is good once
    totp_failures: int = Field(default=0, sa_column_kwargs={"server_default": "0"})  # wrong codes, right password
    totp_after: datetime | None = Field(default=None, sa_type=Utc)  # no code is taken before


class UnitGrant(SQLModel, table=True):
    """A unit's private half, sealed to one member and signed by the member who granted it."""

    __tablename__ = "unit_grant"
    unit: str = Field(primary_key=True, foreign_key="unit.id", sa_type=Word)
    generation: int = Field(primary_key=True)
    member: UUID = Field(primary_key=True, foreign_key="member.id")
    sealed: bytes
    granter: UUID = Field(foreign_key="member.id")
    signature: bytes
    granted_at: datetime = Field(sa_type=Utc)


class StaffSession(SQLModel, table=True):
    """A signed-in browser. `sealed` opens only with the secret in its cookie."""

    __tablename__ = "staff_session"
    id: bytes = Field(primary_key=True)
    member: UUID = Field(foreign_key="member.id", index=True)
    started_at: datetime = Field(sa_type=Utc)
    seen_at: datetime = Field(sa_type=Utc)
    expires_at: datetime = Field(sa_type=Utc)
    sealed: bytes
    stepped_until: datetime | None = Field(default=None, sa_type=Utc)
    stepped_tag: bytes | None = None


class EndedSession(SQLModel, table=True):
    """A session that was ended before its time, so that a copy of its cookie is recognised. It opens nothing."""

    __tablename__ = "ended_session"
    id: bytes = Field(primary_key=True)
    member: UUID = Field(foreign_key="member.id")
    expires_at: datetime = Field(sa_type=Utc)
    seen_at: datetime | None = Field(default=None, sa_type=Utc)  # when its cookie first came again


class RetiredKey(SQLModel, table=True):
    """A member's signing key from before a reset: what was granted with it stays granted."""

    __tablename__ = "retired_key"
    signing_public: bytes = Field(primary_key=True)
    member: UUID = Field(foreign_key="member.id", index=True)
    retired_at: datetime = Field(sa_type=Utc)
    row_tag: bytes


class Invitation(SQLModel, table=True):
    """A one-time code with which a newcomer, or somebody whose account was reset, makes their keys.

    secret: the code's hash. member: whose account is reset; null for a newcomer.
    """

    id: UUID = Field(primary_key=True)
    secret: bytes = Field(unique=True)
    member: UUID | None = Field(default=None, foreign_key="member.id")
    account: str
    name: str
    name_km: str
    organisation: str = Field(foreign_key="organisation.id", sa_type=Word)
    role: str = Field(sa_type=Word)
    inviter: UUID = Field(foreign_key="member.id")
    made_at: datetime = Field(sa_type=Utc)
    expires_at: datetime = Field(sa_type=Utc)
    ended_at: datetime | None = Field(default=None, sa_type=Utc)  # used, or taken back
    row_tag: bytes


class AccountChange(SQLModel, table=True):
    """A change to an account that takes two persons, until the second has signed or refused it.

    kind: ``role``, ``reset``, or ``register`` to accept the register of people as it stands.
    """

    __tablename__ = "account_change"
    id: UUID = Field(primary_key=True)
    kind: str = Field(sa_type=Word)
    member: UUID | None = Field(default=None, foreign_key="member.id")
    role: str | None = Field(default=None, sa_type=Word)
    proposer: UUID = Field(foreign_key="member.id")
    proposed_at: datetime = Field(sa_type=Utc)
    decided_at: datetime | None = Field(default=None, sa_type=Utc)
    row_tag: bytes


class Contact(SQLModel, table=True):
    """The way back to a tipster: a number only the relay opens, found again by a keyed pseudonym."""

    id: UUID = Field(primary_key=True)
    pseudonym: bytes | None = Field(unique=True)
    epoch: int
    relay_generation: int
    key_sealed: bytes | None
    number_sealed: bytes | None
    tip: UUID | None = None  # its open tip; no foreign key, because the tip points back
    opted_out_at: datetime | None = Field(default=None, sa_type=Utc)
    quiet_until: datetime | None = Field(default=None, sa_type=Utc)  # no text goes there before
    row_tag: bytes
    tip_tag: bytes | None = None
    quiet_tag: bytes | None = None


class Case(SQLModel, table=True):
    """The file that a unit works.

    `version` is the sequence number of the event that made the row what it is. A trigger refuses any other,
    so nothing changes a case without an event. `case` is a reserved word of SQL, hence the table's name.
    """

    __tablename__ = "case_file"
    __table_args__ = (
        *(
            Index(
                f"ix_case_file_{column}",
                # the queue's order, then what its filters and counts look at: a rare filter then reads the index alone
                *(column, "level", "due_at", "flag_rank", "age_rank", "id", "state", "owner", "province", "venue"),
                sqlite_where=text("state <> 'closed'"),
                postgresql_where=text("state <> 'closed'"),
            )
            for column in ("unit", "oversight")
        ),
    )
    id: UUID = Field(primary_key=True)
    chain: str = Field(unique=True, sa_type=Word)
    version: int
    state: str = Field(sa_type=Word)
    level: str = Field(sa_type=Word)
    locked: bool
    provisional: bool
    channel: str = Field(sa_type=Word)
    language: str = Field(sa_type=Word)
    walled: bool
    flags: str | None
    flag_rank: int
    age_rank: int
    province: str | None = Field(default=None, sa_type=Word)
    venue: str | None = Field(default=None, sa_type=Word)
    unit: str = Field(foreign_key="unit.id", sa_type=Word)
    oversight: str = Field(foreign_key="unit.id", sa_type=Word)
    owner: UUID | None = Field(default=None, foreign_key="member.id")
    received_hour: datetime = Field(sa_type=Utc)
    due_at: datetime = Field(sa_type=Utc)
    due_kind: str = Field(sa_type=Word)
    generation: int
    decision: int
    back: str = Field(default=State.OPEN, sa_type=Word, sa_column_kwargs={"server_default": "open"})


class CaseKey(SQLModel, table=True):
    """A generation of a case's public key, tagged so that a planted one is refused."""

    __tablename__ = "case_key"
    case: UUID = Field(primary_key=True, foreign_key="case_file.id")
    generation: int = Field(primary_key=True)
    public: bytes
    row_tag: bytes


class RelayGeneration(SQLModel, table=True):
    """A generation of the relay's key, as the note that its identity signed: no tag is needed to trust it."""

    __tablename__ = "relay_generation"
    generation: int = Field(primary_key=True)
    note: str


class CardsDeck(SQLModel, table=True):
    """A cards file that was published, as the root signed it: what opens seals to a unit's generation before."""

    __tablename__ = "cards_deck"
    serial: int = Field(primary_key=True)
    note: str


class UnitRecovery(SQLModel, table=True):
    """A unit's private half, sealed to the recovery key that two of three organisations open together."""

    __tablename__ = "unit_recovery"
    unit: str = Field(primary_key=True, foreign_key="unit.id", sa_type=Word)
    generation: int = Field(primary_key=True)
    sealed: bytes


class Erasure(SQLModel, table=True):
    """A case at the end of its retention: marked, and fourteen days later without its seals and words."""

    case: UUID = Field(primary_key=True, foreign_key="case_file.id")
    marked_at: datetime = Field(sa_type=Utc)
    erased_at: datetime | None = Field(default=None, sa_type=Utc)


class CaseSeal(SQLModel, table=True):
    """A case's private key, sealed to one unit. Who has no seal cannot read, and does not see."""

    __tablename__ = "case_seal"
    case: UUID = Field(primary_key=True, foreign_key="case_file.id")
    generation: int = Field(primary_key=True)
    unit: str = Field(primary_key=True, foreign_key="unit.id", sa_type=Word)
    unit_generation: int
    sealed: bytes


class Tip(SQLModel, table=True):
    """One person's account and what follows in its conversation. Its only receipt time is the hour."""

    id: UUID = Field(primary_key=True)
    case: UUID = Field(foreign_key="case_file.id", index=True)
    contact: UUID | None = Field(default=None, foreign_key="contact.id", index=True)
    channel: str = Field(sa_type=Word)
    language: str = Field(sa_type=Word)
    received_hour: datetime = Field(sa_type=Utc)
    late: bool


class Message(SQLModel, table=True):
    """One sealed text of a tip's conversation, never changed. A delivery is stored once: the constraint decides.

    mark: what a reader must know besides the words, as codes: ``media:2`` (pictures announced, not fetched),
    ``token:missing`` (a form without its token).
    """

    __table_args__ = (UniqueConstraint("provider", "kind", "delivery"), UniqueConstraint("case", "tip", "number"))
    id: UUID = Field(primary_key=True)
    tip: UUID = Field(foreign_key="tip.id")
    number: int
    case: UUID = Field(foreign_key="case_file.id")
    generation: int
    provider: str = Field(sa_type=Word)
    kind: str = Field(sa_type=Word)
    delivery: bytes
    mark: str | None = Field(default=None, sa_type=Word)
    received_hour: datetime = Field(sa_type=Utc)
    header: bytes
    seal: bytes
    body: bytes


class KeyedName(SQLModel, table=True):
    """What a message of a tip names, under a key that is not in the database: the history is counted by it.

    kind: ``place``, ``suspect``, or ``silent`` for a call without a word, named after its contact. at: the minute, as
    in the events of its case. There is none for a walled case (docs/adr/0008.md).
    """

    __tablename__ = "keyed_name"
    __table_args__ = (Index("ix_keyed_name_name_at", "name", "at"),)
    tip: UUID = Field(primary_key=True, foreign_key="tip.id")
    number: int = Field(primary_key=True)
    kind: str = Field(primary_key=True, sa_type=Word)
    name: bytes
    at: datetime = Field(sa_type=Utc)


class Mailbox(SQLModel, table=True):
    """The way back of a tipster who has a return code (keys.md section 7). The code itself stands nowhere.

    locator: finds it, from the code and a pepper outside the database. tag_key: K, for the tags of later leaves.
    status, since: what the tipster sees, and from which day; next_*: what is shown from `next_at` on. number: how many
    changes were shown. The tag is over all columns, so a planted or swapped row is refused.
    """

    id: UUID = Field(primary_key=True)
    tip: UUID = Field(foreign_key="tip.id", unique=True)
    locator: bytes = Field(unique=True)
    public: bytes
    wrapped: bytes
    tag_key: bytes
    status: str = Field(sa_type=Word)
    since: date
    next_status: str | None = Field(default=None, sa_type=Word)
    next_since: date | None = None
    next_at: datetime | None = Field(default=None, sa_type=Utc)
    number: int
    row_tag: bytes


class Question(SQLModel, table=True):
    """A neutral question to a tipster, sealed twice: to the case and to the mailbox (keys.md section 6.5)."""

    __table_args__ = (UniqueConstraint("mailbox", "number"),)
    id: UUID = Field(primary_key=True)
    mailbox: UUID = Field(foreign_key="mailbox.id")
    number: int
    case: UUID = Field(foreign_key="case_file.id", index=True)
    generation: int
    asked_at: datetime = Field(sa_type=Utc)
    header: bytes
    seal: bytes
    body: bytes
    box_header: bytes
    box_seal: bytes
    box_body: bytes
    row_tag: bytes


class CaseDecision(SQLModel, table=True):
    """What the rules said, appended and never changed. `record` is null for a walled case, and the rest sealed."""

    __tablename__ = "decision"
    case: UUID = Field(primary_key=True, foreign_key="case_file.id")
    number: int = Field(primary_key=True)
    message: UUID | None = Field(default=None, foreign_key="message.id")
    level: str = Field(sa_type=Word)
    ruleset_hash: str
    record: bytes | None
    header: bytes | None
    seal: bytes | None
    body: bytes | None


class KeptRuleset(SQLModel, table=True):
    """A ruleset by its content hash, for ever: decisions name it, and replay by it. A trigger refuses every change.

    content: canonical JSON. What became of it (proposed, published, lapsed) is in the events of the ``rules`` chain.
    """

    __tablename__ = "ruleset"
    hash: str = Field(primary_key=True, sa_type=Word)
    name: str
    version: str
    content: bytes
    kept_at: datetime = Field(sa_type=Utc)


class RulesetTick(SQLModel, table=True):
    """That somebody looked at a case which a proposed ruleset would lower to `after`, and ticked it by name."""

    __tablename__ = "ruleset_tick"
    ruleset: str = Field(primary_key=True, foreign_key="ruleset.hash", sa_type=Word)
    case: UUID = Field(primary_key=True, foreign_key="case_file.id")
    after: str = Field(primary_key=True, sa_type=Word)
    member: UUID = Field(foreign_key="member.id")
    at: datetime = Field(sa_type=Utc)


class Lowering(SQLModel, table=True):
    """A proposal to lower a case's level, and who has signed it (triage.md section 9). Why is sealed, in its events.

    proposed: the event that proposed it. floor: the most urgent level that the rules gave then, before a cap.
    overseer: the signer of oversight; may be the proposer or the approver.
    """

    __table_args__ = (
        Index(
            "ix_lowering_standing",
            "case",
            unique=True,
            sqlite_where=text("state IN ('proposed', 'approved')"),
            postgresql_where=text("state IN ('proposed', 'approved')"),
        ),
    )
    id: UUID = Field(primary_key=True)
    case: UUID = Field(foreign_key="case_file.id")
    state: str = Field(sa_type=Word)
    before: str = Field(sa_type=Word)
    after: str = Field(sa_type=Word)
    floor: str = Field(sa_type=Word)
    proposed_at: datetime = Field(sa_type=Utc)
    proposer: UUID = Field(foreign_key="member.id")
    proposer_unit: str = Field(foreign_key="unit.id", sa_type=Word)
    approver: UUID | None = Field(default=None, foreign_key="member.id")
    approver_unit: str | None = Field(default=None, foreign_key="unit.id", sa_type=Word)
    overseer: UUID | None = Field(default=None, foreign_key="member.id")


class ClosureState(StrEnum):
    """How far a proposal to close is. The first two stand: one such proposal a case."""

    PROPOSED = "proposed"
    SIGNED = "signed"  # by all who must; the case closes when the ledger's witnesses have seen it
    REFUSED = "refused"
    STOPPED = "stopped"  # something new came
    EXPIRED = "expired"
    EFFECTIVE = "effective"


class Closure(SQLModel, table=True):
    """A proposal to close a case, and who has signed it (casework.md section 7). Why is sealed, in its events.

    papers: ids of the attachments that prove it, as JSON. The organisations are those of the root-signed cards.
    """

    __table_args__ = (
        Index(
            "ix_closure_standing",
            "case",
            unique=True,
            sqlite_where=text("state IN ('proposed', 'signed')"),
            postgresql_where=text("state IN ('proposed', 'signed')"),
        ),
    )
    id: UUID = Field(primary_key=True)
    case: UUID = Field(foreign_key="case_file.id")
    state: str = Field(sa_type=Word)
    reason: str = Field(sa_type=Word)
    papers: str
    proposed_at: datetime = Field(sa_type=Utc)
    cools_until: datetime = Field(sa_type=Utc)
    proposer: UUID = Field(foreign_key="member.id")
    proposer_organisation: str = Field(sa_type=Word)
    overseen: bool
    approver: UUID | None = Field(default=None, foreign_key="member.id")
    approver_organisation: str | None = Field(default=None, sa_type=Word)
    overseer: UUID | None = Field(default=None, foreign_key="member.id")
    overseer_organisation: str | None = Field(default=None, sa_type=Word)


class Attachment(SQLModel, table=True):
    """A file of a case, sealed and never changed: the proof of an act, a letter of an authority.

    print: a keyed name of what it holds (keys.md section 3), so that one paper does not prove two things unseen.
    name_*: its real name and type, a ``meta`` envelope. Which event commits to it says its field ``attachment``.
    """

    __table_args__ = (UniqueConstraint("case", "number"), Index("ix_attachment_print", "print"))
    id: UUID = Field(primary_key=True)
    case: UUID = Field(foreign_key="case_file.id")
    number: int
    generation: int
    print: bytes
    filed_by: UUID = Field(foreign_key="member.id")
    filed_hour: datetime = Field(sa_type=Utc)
    header: bytes
    seal: bytes
    body: bytes
    name_header: bytes
    name_seal: bytes
    name_body: bytes


class Overlay(SQLModel, table=True):
    """A mark beside a case's state. One of a kind stands at a time."""

    __table_args__ = (
        Index(
            "ix_overlay_standing",
            *("case", "kind"),
            unique=True,
            sqlite_where=text("ended_at IS NULL"),
            postgresql_where=text("ended_at IS NULL"),
        ),
    )
    id: UUID = Field(primary_key=True)
    case: UUID = Field(foreign_key="case_file.id")
    kind: str = Field(sa_type=Word)
    set_at: datetime = Field(sa_type=Utc)
    ended_at: datetime | None = Field(default=None, sa_type=Utc)


class Wall(SQLModel, table=True):
    """Somebody for whom a case does not exist (casework.md section 10); who it is stands sealed in `whom`.

    name: keyed, made of whom it stands for (`service.walls.wall_name`). exclusion: what was excluded in one act; a
    person's has three names: theirs, that of whoever they supervise, that of whoever supervises them. why: a code.
    """

    name: bytes = Field(primary_key=True)
    case: UUID = Field(primary_key=True, foreign_key="case_file.id", index=True)
    exclusion: UUID = Field(index=True)
    why: str = Field(sa_type=Word)
    added_at: datetime = Field(sa_type=Utc)
    whom: bytes
    row_tag: bytes


class Narrowing(SQLModel, table=True):
    """A proposal to take an exclusion off a case's wall, and who of oversight has signed it. Why is in its events."""

    __table_args__ = (
        Index(
            "ix_narrowing_standing",
            "exclusion",
            unique=True,
            sqlite_where=text("state IN ('proposed', 'approved')"),
            postgresql_where=text("state IN ('proposed', 'approved')"),
        ),
    )
    id: UUID = Field(primary_key=True)
    case: UUID = Field(foreign_key="case_file.id", index=True)
    exclusion: UUID
    state: str = Field(sa_type=Word)
    proposed_at: datetime = Field(sa_type=Utc)
    proposer: UUID = Field(foreign_key="member.id")
    approver: UUID | None = Field(default=None, foreign_key="member.id")


class Reading(SQLModel, table=True):
    """An opening of a case's words, beside its event: what a day's quota is counted from. over: it was beyond it."""

    __table_args__ = (Index("ix_reading_member", "member", "at"),)
    eid: str = Field(primary_key=True, foreign_key="ledger_event.eid", sa_type=Word)
    case: UUID = Field(foreign_key="case_file.id", index=True)
    member: UUID = Field(foreign_key="member.id")
    at: datetime = Field(sa_type=Utc)
    over: bool


class Clock(SQLModel, table=True):
    """A stored deadline, moved later only by a lowering that witnesses have seen. It ends by being met or by lapsing.

    `step`: the next step of its ladder (`service.clocks`), taken at `next_at`; none is left when that is null.
    `span`: the target that the steps are counted in, seconds; null for a clock without ladder.
    """

    __table_args__ = (
        Index(
            "ix_clock_next",
            "next_at",
            sqlite_where=text("next_at IS NOT NULL AND met_at IS NULL AND lapsed_at IS NULL"),
            postgresql_where=text("next_at IS NOT NULL AND met_at IS NULL AND lapsed_at IS NULL"),
        ),
        Index(
            "ix_clock_running",
            *("kind", "due_at"),
            sqlite_where=text("met_at IS NULL AND lapsed_at IS NULL"),
            postgresql_where=text("met_at IS NULL AND lapsed_at IS NULL"),
        ),
    )
    id: UUID = Field(primary_key=True)
    case: UUID = Field(foreign_key="case_file.id", index=True)
    kind: str = Field(sa_type=Word)
    due_at: datetime = Field(sa_type=Utc)
    set_by: str = Field(sa_type=Word)
    met_at: datetime | None = Field(default=None, sa_type=Utc)
    lapsed_at: datetime | None = Field(default=None, sa_type=Utc)
    span: int | None = None
    step: int = Field(default=0, sa_column_kwargs={"server_default": "0"})
    next_at: datetime | None = Field(default=None, sa_type=Utc)


class JobState(StrEnum):
    """How far an outbox row is. The last two stand in front of a person until somebody has seen them."""

    WAITING = "waiting"
    SENDING = "sending"  # somebody is about to send it, or died while sending
    CHECKING = "checking"  # it may have been sent: looked for in the provider's list, never sent again
    DONE = "done"  # sent, or what it asked for was done
    DROPPED = "dropped"  # not sent on purpose: too late, not wanted, not safe
    FAILED = "failed"  # certainly did not arrive
    UNKNOWN = "unknown"  # nobody knows


class OutboxJob(SQLModel, table=True):
    """Work to be done after the commit that asked for it, done once under its own key.

    duty: for a text to staff, whose number of the settings' duty list: ``siem-reap/supervisor#1``, from 0.
    until: while sending, when somebody else may take over; while checking, when looking ends. tried_at: when it was
    about to be sent. joined: the job whose text stands for this one too. sid: the provider's id, as a keyed name.
    report: the furthest state that the provider told, with its code. seen_by: who has seen that it failed.
    """

    __tablename__ = "outbox"
    __table_args__ = (
        Index(
            "ix_outbox_trying",
            "until",
            sqlite_where=text("state IN ('sending', 'checking')"),
            postgresql_where=text("state IN ('sending', 'checking')"),
        ),
        Index(
            "ix_outbox_unseen",
            "case",
            sqlite_where=text("state IN ('failed', 'unknown') AND seen_by IS NULL"),
            postgresql_where=text("state IN ('failed', 'unknown') AND seen_by IS NULL"),
        ),
        Index(
            "ix_outbox_waiting",
            "not_before",
            sqlite_where=text("state = 'waiting'"),
            postgresql_where=text("state = 'waiting'"),
        ),
    )
    id: UUID = Field(primary_key=True)
    key: str = Field(unique=True)
    kind: str = Field(sa_type=Word)
    case: UUID | None = Field(default=None, foreign_key="case_file.id")
    contact: UUID | None = Field(default=None, foreign_key="contact.id")
    language: str = Field(sa_type=Word)
    state: str = Field(sa_type=Word)
    not_before: datetime = Field(sa_type=Utc)
    expires_at: datetime = Field(sa_type=Utc)
    row_tag: bytes
    duty: str | None = Field(default=None, sa_type=Word)
    attempts: int = Field(default=0, sa_column_kwargs={"server_default": "0"})
    until: datetime | None = Field(default=None, sa_type=Utc)
    tried_at: datetime | None = Field(default=None, sa_type=Utc)
    done_at: datetime | None = Field(default=None, sa_type=Utc)
    joined: UUID | None = Field(default=None, foreign_key="outbox.id")
    sid: bytes | None = Field(default=None, unique=True)
    report: str | None = Field(default=None, sa_type=Word)
    code: int | None = None
    seen_by: UUID | None = Field(default=None, foreign_key="member.id")


class ProviderReport(SQLModel, table=True):
    """What the provider told of a text of ours, until the worker has taken it to its outbox row.

    Reports come late, twice and in any order (twilio.md section 5).
    """

    __tablename__ = "provider_report"
    sid: bytes = Field(primary_key=True)
    status: str = Field(primary_key=True, sa_type=Word)
    code: int | None = None
    at: datetime = Field(sa_type=Utc)


class Sign(SQLModel, table=True):
    """When something was last seen well, for metrics that outlive a process."""

    name: str = Field(primary_key=True, sa_type=Word)
    at: datetime = Field(sa_type=Utc)


class LedgerHead(SQLModel, table=True):
    """The newest event of each chain (ledger.md section 3). Moved by compare-and-swap alone."""

    __tablename__ = "ledger_head"
    case: str = Field(primary_key=True, sa_type=Word)
    seq: int
    c: bytes


class LedgerEvent(SQLModel, table=True):
    """An event as the bytes that were hashed. A trigger refuses UPDATE and DELETE."""

    __tablename__ = "ledger_event"
    __table_args__ = (
        UniqueConstraint("case", "seq"),
        Index(
            "ix_ledger_event_closure",
            *("case", "at"),
            sqlite_where=text("type = 'case:closure:effective'"),
            postgresql_where=text("type = 'case:closure:effective'"),
        ),
    )
    eid: str = Field(primary_key=True, sa_type=Word)
    case: str = Field(foreign_key="ledger_head.case", sa_type=Word)
    seq: int
    type: str = Field(sa_type=Word)
    at: datetime = Field(sa_type=Utc)
    body: bytes
    k_e: bytes
    blob: bytes
    leaf: bytes


class LedgerField(SQLModel, table=True):
    """Salt and value behind a commitment. Sealed ones hold both in `value` and no salt in clear."""

    __tablename__ = "ledger_field"
    eid: str = Field(primary_key=True, foreign_key="ledger_event.eid", sa_type=Word)
    name: str = Field(primary_key=True, sa_type=Word)
    salt: bytes | None
    value: bytes
    sealed: bool


class LedgerEffect(SQLModel, table=True):
    """What an event does once it is witnessed (ledger.md section 3): its action, as canonical JSON."""

    __tablename__ = "ledger_effect"
    eid: str = Field(primary_key=True, foreign_key="ledger_event.eid", sa_type=Word)
    action: bytes
    done_at: datetime | None = Field(default=None, sa_type=Utc)  # when it was run, or found to be wanted no more


class LedgerPending(SQLModel, table=True):
    """A leaf that the sequencer has not integrated yet."""

    __tablename__ = "ledger_pending"
    id: int | None = Field(default=None, sa_column=Column(Serial, primary_key=True, autoincrement=True))
    eid: str | None = Field(unique=True, sa_type=Word)
    cover_n: int | None
    leaf: bytes


class LedgerState(SQLModel, table=True):
    """One row: the tree's size and root, and the newest checkpoint with a quorum."""

    __tablename__ = "ledger_state"
    id: int = Field(primary_key=True)
    size: int
    root: bytes
    epoch: int
    note: str | None
    published_size: int
    witnessed_size: int
    witnessed_root: bytes
    halted: bool


class LedgerLeaf(SQLModel, table=True):
    """A leaf at its place in the tree, for ever: of an event, a cover leaf with its number, or neither: a lost one."""

    __tablename__ = "ledger_leaf"
    idx: int = Field(primary_key=True, sa_column_kwargs={"autoincrement": False})
    leaf: bytes
    eid: str | None = Field(default=None, unique=True, sa_type=Word)
    cover_n: int | None = Field(default=None, unique=True)


class LedgerTile(SQLModel, table=True):
    """Hashes of a tile, joined; the last one of a level grows. Its narrower forms are its beginnings."""

    __tablename__ = "ledger_tile"
    level: int = Field(primary_key=True, sa_column_kwargs={"autoincrement": False})
    n: int = Field(primary_key=True, sa_column_kwargs={"autoincrement": False})
    hashes: bytes


class LedgerCheckpoint(SQLModel, table=True):
    """A signed head that was published. Never changed; its witnesses' lines stand beside it."""

    __tablename__ = "ledger_checkpoint"
    size: int = Field(primary_key=True, sa_column_kwargs={"autoincrement": False})
    note: str
    at: datetime = Field(sa_type=Utc)


class LedgerCosignature(SQLModel, table=True):
    """A witness's first line under a checkpoint. name: of the witness's key."""

    __tablename__ = "ledger_cosignature"
    size: int = Field(primary_key=True, foreign_key="ledger_checkpoint.size", sa_column_kwargs={"autoincrement": False})
    name: str = Field(primary_key=True, sa_type=Word)
    line: str


class LedgerPromise(SQLModel, table=True):
    """The log's signed word that an event will be in the tree, where it could not be so at once."""

    __tablename__ = "ledger_promise"
    eid: str = Field(primary_key=True, foreign_key="ledger_event.eid", sa_type=Word)
    note: str
