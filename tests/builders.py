"""What tests are built of: an installation with its people, and tips. All names and numbers are invented."""

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from typing import Any
from uuid import UUID, uuid4

from service import ceremony, register, staff
from service.ceremony import Founding, UnitPlan
from service.config import Settings
from service.db import Sessions, Writer, write
from service.history import NameKeys
from service.intake import IncomingTip, Intake, Pepper, Receipt
from service.ledger.events import SYSTEM, EventType, Ledger, NewEvent, StateClass
from service.models import Channel, Member, Role
from service.reading import Allowance
from service.triage import Triage
from service.vault import totp
from service.vault.cards import UnitKind
from service.vault.members import MemberKeys, new_session
from service.vault.passwords import Parameters

NOW = datetime(2027, 3, 9, 7, 21, 30, tzinfo=UTC)
PASSWORD = "seven calm rivers of rice"
TOTP = bytes(range(20))  # of everybody's phone
CHEAP = {"passes": 1, "mib": 8}
PLENTY = Allowance(1000, stepped_up=False)

ORGANISATIONS = {
    "org-ngo": ("Night line", "ខ្សែរាត្រី"),
    "org-police": ("Provincial police", "នគរបាលខេត្ត"),
    "org-council": ("Child rights council", "ក្រុមប្រឹក្សាសិទ្ធិកុមារ"),
    "org-inspect": ("Inspectorate", "អធិការដ្ឋាន"),
}
PLANS = (
    UnitPlan("screening", UnitKind.SCREENING, "org-ngo", "Screening", "ការពិនិត្យដំបូង"),
    UnitPlan("siem-reap", UnitKind.UNIT, "org-police", "Siem Reap team", "ក្រុមសៀមរាប", "KH-17"),
    UnitPlan("kandal", UnitKind.UNIT, "org-police", "Kandal team", "ក្រុមកណ្ដាល", "KH-8"),
    UnitPlan("integrity", UnitKind.INTEGRITY, "org-inspect", "Integrity", "សុចរិតភាព"),
    UnitPlan("oversight", UnitKind.OVERSIGHT, "org-council", "Oversight", "ការត្រួតពិនិត្យ"),
    UnitPlan("oversight-2", UnitKind.OVERSIGHT, "org-ngo", "Second oversight", "ការត្រួតពិនិត្យទីពីរ"),
    UnitPlan("monitor", UnitKind.MONITOR, "org-council", "Monitor", "អ្នកតាមដាន"),
)
PEOPLE = {
    "screener": (Role.SCREENER, "org-ngo", ("screening",), "Sok Dara", "សុខ តារា"),
    "screener-2": (Role.SCREENER, "org-ngo", ("screening",), "Kim Sopheap", "គឹម សុភាព"),
    "investigator": (Role.INVESTIGATOR, "org-police", ("siem-reap",), "Heng Bopha", "ហេង បុប្ផា"),
    "investigator-2": (Role.INVESTIGATOR, "org-police", ("siem-reap",), "Keo Pisey", "កែវ ពិសី"),
    "elsewhere": (Role.INVESTIGATOR, "org-police", ("kandal",), "Nuon Ratha", "នួន រដ្ឋា"),
    "integrity": (Role.INVESTIGATOR, "org-inspect", ("integrity",), "Chea Kunthea", "ជា គន្ធា"),
    "oversight": (Role.OVERSIGHT, "org-council", ("oversight",), "Lim Sreymom", "លឹម ស្រីមុំ"),
    "admin": (Role.ADMIN, "org-council", (), "Mao Vibol", "ម៉ៅ វិបុល"),
}


@cache
def triage() -> Triage:
    """The rules and words that ship."""
    settings = Settings()
    return Triage.load(settings.ruleset_file, settings.lexicon_dir)


@dataclass
class World:
    """An installation on one database."""

    sessions: Sessions
    founding: Founding
    ledger: Ledger
    people: dict[str, tuple[Member, MemberKeys]] = field(default_factory=dict)

    def intake(self, writer: Any, **changed: Any) -> Intake:
        """The receiving end, as the public process builds it."""
        settings = Settings()
        return Intake(
            **{
                "writer": writer,
                "ledger": self.ledger,
                "cards": self.founding.cards,
                "relay": self.founding.relay,
                "row_key": self.founding.row_key,
                "peppers": [Pepper(1, self.founding.phone_pepper)],
                "names": NameKeys(self.founding.place_key, self.founding.sketch_key),
                "triage": triage(),
                "claim_targets": settings.claim_targets,
                "act_targets": settings.act_targets,
            }
            | changed
        )

    def receive(self, *tips: IncomingTip, **changed: Any) -> list[Receipt]:
        """Take tips one after the other, through the group writer."""
        writer = Writer(self.sessions)

        async def take() -> list[Receipt]:
            intake = self.intake(writer, **changed)
            return [await intake.receive(tip) for tip in tips]

        try:
            return asyncio.run(take())
        finally:
            writer.close()

    def signed_in(self, name: str, now: datetime = NOW) -> staff.SignedIn:
        """A person with a session, without the cost of a password."""
        return staff.resume(self.sessions, self.founding.row_key, self.founding.cards, self.cookie(name, now), now)

    def cookie(self, name: str, now: datetime = NOW) -> str:
        """The cookie of a fresh session of a person."""
        from service.models import StaffSession

        member, keys = self.people[name]
        expires = (now + staff.LONGEST).replace(microsecond=0)
        cookie, session_id, sealed = new_session(member.id.hex, keys, expires)
        row = {"id": session_id, "member": member.id, "started_at": now, "seen_at": now, "expires_at": expires}
        write(self.sessions, lambda tx: tx.add(StaffSession(**row, sealed=sealed)))
        return cookie


def a_world(sessions: Sessions, *, plans: tuple[UnitPlan, ...] = PLANS, people: Any = None) -> World:
    """An installation with seven units of four organisations and eight people."""
    founding = ceremony.found(plans, now=NOW)
    ledger = Ledger("bamboo.example/log", founding.cards.monitor().public)
    world = World(sessions, founding, ledger)
    write(sessions, partial(_settle, world=world, plans=plans, people=PEOPLE if people is None else people))
    return world


def _settle(tx: Any, *, world: World, plans: tuple[UnitPlan, ...], people: Any) -> None:
    founding, ledger = world.founding, world.ledger
    ceremony.register(tx, ledger, ORGANISATIONS, plans, founding.cards, NOW)
    for account, (role, organisation, units, name, name_km) in people.items():
        member, keys = staff.enrol(
            tx,
            ledger,
            founding.row_key,
            account=account,
            name=name,
            name_km=name_km,
            organisation=organisation,
            role=role,
            password=PASSWORD,
            now=NOW - timedelta(days=1),
            parameters=Parameters(**CHEAP),
            totp_secret=TOTP,
        )
        for unit in units:
            card = founding.cards.unit(unit)
            staff.grant(tx, ledger, founding.row_key, card, founding.unit_privates[unit], member, member, keys, NOW)
        world.people[account] = (member, keys)
    tx.flush()
    for member, _ in world.people.values():
        tx.expunge(member)


def a_code(now: datetime = NOW) -> str:
    """What everybody's phone shows at `now`."""
    return totp.code_at(TOTP, now)


def change_people(world: World, *statements: Any) -> None:
    """Change members and grants as the product does: with the event that keeps the register of people whole."""
    row_key = world.founding.row_key

    def change(tx: Any) -> None:
        register.require_whole(tx, row_key)
        for statement in statements:
            tx.execute(statement)
        event = NewEvent(EventType.MEMBER_LEFT, NOW, SYSTEM, StateClass.SYSTEM)
        register.append_change(tx, world.ledger, row_key, event)

    write(world.sessions, change)


def a_tip(text: str = "There is a child at the guesthouse near the market.", **changed: Any) -> IncomingTip:
    """A text message from a number that is not in use."""
    tip: dict[str, Any] = {
        "channel": Channel.SMS,
        "provider": "twilio",
        "kind": "sms",
        "delivery": "SM" + uuid4().hex,
        "text": text,
        "received_at": NOW,
        "sender": "+85500000001",
    }
    return IncomingTip(**(tip | changed))


def a_number() -> str:
    """A Cambodian number of a range that is not in use."""
    return f"+8550{uuid4().int % 10**8:08d}"


def the_case(world: World, tip: UUID) -> Any:
    """The case of a tip, as its row stands."""
    from service.models import Case, Tip

    with world.sessions.read() as session:
        row = session.get(Tip, tip)
        assert row is not None
        return session.get(Case, row.case)
