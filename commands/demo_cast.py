"""Who and what the demo shows: organisations, units, accounts, and a day of tips. All of it is invented.

The tips are procedural and tell no act (Luxembourg Guidelines). Khmer texts are unreviewed drafts.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from service.ceremony import UnitPlan
from service.models import Role
from service.vault.cards import UnitKind

PASSPHRASE = "young shoots replace old bamboo"  # noqa: S105 - of invented people; it is printed at every start

ORGANISATIONS: Mapping[str, tuple[str, str]] = {
    "lotus-line": ("Lotus Line (NGO)", "បណ្តាញផ្កាឈូក (អង្គការ)"),
    "police": ("Provincial police", "នគរបាលខេត្ត"),
    "council": ("Child-rights council", "ក្រុមប្រឹក្សាសិទ្ធិកុមារ"),
    "inspectorate": ("Inspectorate", "អធិការដ្ឋាន"),
    "open-hand": ("Open Hand (NGO)", "ដៃបើកចំហ (អង្គការ)"),
}

PLANS = (
    UnitPlan("screening", UnitKind.SCREENING, "lotus-line", "Screening", "ការពិនិត្យដំបូង"),
    UnitPlan("siem-reap", UnitKind.UNIT, "police", "Siem Reap team", "ក្រុមសៀមរាប", "KH-17"),
    UnitPlan("preah-sihanouk", UnitKind.UNIT, "police", "Preah Sihanouk team", "ក្រុមព្រះសីហនុ", "KH-18"),
    UnitPlan("integrity", UnitKind.INTEGRITY, "inspectorate", "Integrity", "សុចរិតភាព"),
    UnitPlan("oversight", UnitKind.OVERSIGHT, "council", "Oversight", "ការត្រួតពិនិត្យ"),
    UnitPlan("oversight-2", UnitKind.OVERSIGHT, "open-hand", "Second oversight", "ការត្រួតពិនិត្យទីពីរ"),
    UnitPlan("monitor", UnitKind.MONITOR, "council", "Monitor", "អ្នកតាមដាន"),
)


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody with an account, in one unit."""

    account: str
    role: Role
    unit: str
    name: str
    name_km: str


PEOPLE = (
    Person("screener", Role.SCREENER, "screening", "Sok Dara", "សុខ តារា"),
    Person("investigator", Role.INVESTIGATOR, "siem-reap", "Heng Bopha", "ហេង បុប្ផា"),
    Person("investigator2", Role.INVESTIGATOR, "preah-sihanouk", "Nuon Ratha", "នួន រដ្ឋា"),
    Person("supervisor", Role.SUPERVISOR, "siem-reap", "Keo Pisey", "កែវ ពិសី"),
    Person("integrity", Role.INVESTIGATOR, "integrity", "Chea Kunthea", "ជា គន្ធា"),
    Person("oversight", Role.OVERSIGHT, "oversight", "Lim Sreymom", "លឹម ស្រីមុំ"),
)


@dataclass(frozen=True, slots=True)
class Told:
    """A message that came `ago` minutes before the set-up.

    sender: of a text message; None is the web form, with `answers` by question as on the page. A second message of
    the same sender joins the open tip.
    """

    key: str
    ago: int
    text: str
    sender: str | None = None
    answers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Step:
    """What somebody did with a case, `ago` minutes before the set-up. unit: to whom it was handed on."""

    tip: str
    ago: int
    account: str
    unit: str | None = None
    claims: bool = False


TOLD = (
    Told(
        "question",
        26 * 60,
        "សុំសួរ តើខ្ញុំអាចរាយការណ៍ដោយមិនប្រាប់ឈ្មោះបានទេ?",
        "+85500000011",
    ),
    Told(
        "licence",
        22 * 60,
        "The children's centre on the road to the lake in Preah Sihanouk has no licence. About 20 children live there.",
        "+85500000012",
    ),
    Told(
        "visits",
        9 * 60,
        "A driver at the beach sells tourists visits to an orphanage. Nobody checks who goes in to the children.",
        answers={"province": "KH-18", "kind": "beach", "danger": "no"},
    ),
    Told(
        "settlement",
        5 * 60,
        "គេសុំឱ្យគ្រួសារក្មេងស្រីអាយុ ១៣ ឆ្នាំទទួលលុយ ដើម្បីកុំឱ្យប្តឹង។ រឿងនេះកើតឡើងសប្តាហ៍មុន នៅខេត្តកំពង់ចាម។",
        "+85500000014",
    ),
    Told(
        "centre",
        4 * 60,
        "A volunteer at the children's centre abused two children, 9 and 10 years old. They told their teacher. "
        "He still works there every day.",
        answers={"province": "KH-17", "kind": "residential_care", "danger": "unknown"},
    ),
    Told(
        "thanks",
        3 * 60,
        "Thank you so much. Your team came yesterday and it was a great help.",
        "+85500000015",
    ),
    Told(
        "online",
        150,
        "Somebody on the internet asks pupils of our school in Phnom Penh, about 14 years old, for pictures and offers "
        "them money. We have the name of the account.",
        answers={"province": "KH-12", "kind": "online", "answer": "no"},
    ),
    Told(
        "official",
        100,
        "ម្ចាស់ខារ៉ាអូខេនៅប៉ោយប៉ែតឱ្យលុយប៉ូលិសរាល់ខែ។ មានក្មេងស្រីអាយុ ១៥ ឆ្នាំធ្វើការនៅទីនោះ។ យើងបានរាយការណ៍ពីរដងហើយ តែប៉ូលិសមិនធ្វើអ្វីទេ។",
        "+85500000016",
    ),
    Told(
        "brick-kiln",
        75,
        "ក្មេងៗប្រហែល ៥ នាក់ធ្វើការនៅឡឥដ្ឋរាល់ថ្ងៃ នៅខេត្តកណ្តាល ហើយមិនបានទៅរៀនទេ។",
        "+85500000013",
    ),
    Told(
        "own-words",
        45,
        "ខ្ញុំអាយុ ១១ ឆ្នាំ។ ខ្ញុំរស់នៅមណ្ឌលកុមារ។ មានបុគ្គលិកម្នាក់ធ្វើបាបខ្ញុំ។ ខ្ញុំចង់និយាយជាមួយមនុស្សដែលទុកចិត្តបាន។",
        answers={"province": "KH-17", "kind": "residential_care"},
    ),
    Told(
        "karaoke",
        38,
        "A girl who says she is 16 works every night in a karaoke place on the river road in Kampot.",
        answers={"province": "KH-7", "kind": "karaoke"},
    ),
    Told(
        "leaving",
        35,
        "A foreign man at our guesthouse leaves the country tomorrow morning and takes a girl of about 13 with him. "
        "She is not his family. The front desk knows the room.",
        answers={"province": "KH-17", "kind": "guesthouse", "now": "yes", "danger": "yes"},
    ),
    Told(
        "locked-in",
        8,
        "សូមជួយផង។ ក្មេងស្រីអាយុ ១២ ឆ្នាំ ត្រូវគេចាក់សោក្នុងបន្ទប់ឥឡូវនេះ នៅផ្ទះសំណាក់ក្បែរចំណតឡាន ខេត្តបាត់ដំបង។",
        "+85500000017",
    ),
    Told("locked-in-more", 5, "នៅបន្ទប់លេខ ៧ ជាន់ទី ២។ ខ្ញុំនៅខាងមុខ។", "+85500000017"),
)

STEPS = (
    Step("question", 25 * 60, "screener"),
    Step("licence", 21 * 60, "screener"),
    Step("licence", 21 * 60 - 6, "screener", unit="preah-sihanouk"),
    Step("centre", 4 * 60 - 20, "screener"),
    Step("centre", 4 * 60 - 24, "screener", unit="siem-reap"),
    Step("official", 70, "integrity"),
    Step("leaving", 27, "screener"),
    Step("leaving", 24, "screener", unit="siem-reap"),
    Step("centre", 12, "investigator", claims=True),
    Step("centre", 11, "investigator"),
)
