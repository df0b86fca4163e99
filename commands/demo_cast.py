"""Who and what the demo shows: organisations, units, accounts; what was told and done is in ``demo_tips.yaml``.

All of it is invented. Khmer names of units and organisations are unreviewed drafts.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, StringConstraints, model_validator

from service.ceremony import UnitPlan
from service.errors import Misconfigured
from service.models import Level, Role
from service.reading import REASONS
from service.vault.cards import UnitKind

# Of invented people: printed at every start, and the phone's secret is known to all who have this file.
PASSPHRASE = "young shoots replace old bamboo"  # noqa: S105


def totp_secret(account: str) -> bytes:
    """Return the second factor's secret of a demo account, 20 bytes; ``./hotline simulate code`` prints its codes."""
    return hashlib.sha256(b"bamboo demo second factor|" + account.encode()).digest()[:20]


ORGANISATIONS: Mapping[str, tuple[str, str]] = {
    "lotus-line": ("Lotus Line (NGO)", "បណ្តាញផ្កាឈូក (អង្គការ)"),
    "police": ("Police", "នគរបាល"),
    "social-affairs": ("Social affairs office", "ការិយាល័យសង្គមកិច្ច"),
    "council": ("Child-rights council", "ក្រុមប្រឹក្សាសិទ្ធិកុមារ"),
    "inspectorate": ("Inspectorate", "អធិការដ្ឋាន"),
    "open-hand": ("Open Hand (NGO)", "ដៃបើកចំហ (អង្គការ)"),
}

PLANS = (
    UnitPlan("screening", UnitKind.SCREENING, "lotus-line", "Screening", "ការពិនិត្យដំបូង"),
    UnitPlan("siem-reap", UnitKind.UNIT, "police", "Siem Reap team", "ក្រុមសៀមរាប", "KH-17"),
    UnitPlan("preah-sihanouk", UnitKind.UNIT, "police", "Preah Sihanouk team", "ក្រុមព្រះសីហនុ", "KH-18"),
    UnitPlan("phnom-penh", UnitKind.UNIT, "police", "Phnom Penh team", "ក្រុមភ្នំពេញ", "KH-12"),
    UnitPlan("care", UnitKind.UNIT, "social-affairs", "Care and family team", "ក្រុមថែទាំ និងគ្រួសារ"),
    UnitPlan("integrity", UnitKind.INTEGRITY, "inspectorate", "Integrity", "សុចរិតភាព"),
    UnitPlan("oversight", UnitKind.OVERSIGHT, "council", "Oversight", "ការត្រួតពិនិត្យ"),
    UnitPlan("oversight-2", UnitKind.OVERSIGHT, "open-hand", "Second oversight", "ការត្រួតពិនិត្យទីពីរ"),
    UnitPlan("monitor", UnitKind.MONITOR, "council", "Monitor", "អ្នកតាមដាន"),
)


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody with an account, in one unit. An administrator belongs to its organisation and holds no key of it."""

    account: str
    role: Role
    unit: str
    name: str
    name_km: str


PEOPLE = (
    Person("screener", Role.SCREENER, "screening", "Sok Dara", "សុខ តារា"),
    Person("investigator", Role.INVESTIGATOR, "siem-reap", "Heng Bopha", "ហេង បុប្ផា"),
    Person("investigator2", Role.INVESTIGATOR, "preah-sihanouk", "Nuon Ratha", "នួន រដ្ឋា"),
    Person("investigator3", Role.INVESTIGATOR, "phnom-penh", "Mao Sothea", "ម៉ៅ សុធា"),
    Person("investigator4", Role.INVESTIGATOR, "care", "Prum Nary", "ព្រំ ណារី"),
    Person("supervisor", Role.SUPERVISOR, "siem-reap", "Keo Pisey", "កែវ ពិសី"),
    Person("integrity", Role.INVESTIGATOR, "integrity", "Chea Kunthea", "ជា គន្ធា"),
    Person("oversight", Role.OVERSIGHT, "oversight", "Lim Sreymom", "លឹម ស្រីមុំ"),
    Person("oversight2", Role.OVERSIGHT, "oversight", "Chan Sreyleak", "ចាន់ ស្រីលក្ខណ៍"),
    Person("oversight3", Role.OVERSIGHT, "oversight-2", "Yim Chanthou", "យឹម ចន្ធូ"),
    Person("admin", Role.ADMIN, "oversight", "Mao Vibol", "ម៉ៅ វិបុល"),
)

# Whom the worker texts, as in HOTLINE_DUTY.
DUTY: Mapping[str, tuple[str, ...]] = {
    "screening": ("+85500000301",),
    "screening/supervisor": ("+85500000310",),
    "siem-reap": ("+85500000302",),
    "siem-reap/supervisor": ("+85500000303",),
    "preah-sihanouk": ("+85500000304",),
    "phnom-penh": ("+85500000305",),
    "care": ("+85500000306",),
    "integrity": ("+85500000307",),
    "oversight": ("+85500000308",),
    "oversight-2": ("+85500000309",),
}

TIPS = Path(__file__).with_name("demo_tips.yaml")

# --- what was told and done: the shapes of demo_tips.yaml -------------------------------------------------

_SPAN = re.compile(r"(?=.)(?:(?P<days>\d+)d)?(?:(?P<hours>\d+)h)?(?:(?P<minutes>\d+)m)?")


def _span(text: object) -> timedelta:
    found = _SPAN.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise ValueError("a span of time is written like 2d, 3h40m or 12m")
    return timedelta(**{unit: int(number) for unit, number in found.groupdict(default="0").items()})


def _one_of(*names: str) -> AfterValidator:
    def known(name: str) -> str:
        if name not in names:
            raise ValueError(f"not one of {', '.join(names)}")
        return name

    return AfterValidator(known)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Scene(_Strict):
    ago: Annotated[timedelta, BeforeValidator(_span)]


class Told(_Scene):
    """A message. level: what the rules make of the case with it. media: how many files a text message announced."""

    says: str
    level: Level
    media: int = 0


class Opened(_Scene):
    """Somebody opened the account and said why."""

    does: Literal["open"]
    who: Annotated[str, _one_of(*(person.account for person in PEOPLE))]
    reason: Annotated[str, _one_of(*REASONS)]


class HandedOn(_Scene):
    """The screener handed the case on. named: whether the account names somebody tied to `unit`."""

    does: Literal["hand_on"]
    who: Annotated[str, _one_of(*(p.account for p in PEOPLE if p.role == Role.SCREENER))]
    unit: Annotated[str, _one_of(*(plan.id for plan in PLANS if plan.kind == UnitKind.UNIT))]
    named: Literal["yes", "no", "unsure"]


class Claimed(_Scene):
    """An investigator took the case."""

    does: Literal["claim"]
    who: Annotated[str, _one_of(*(p.account for p in PEOPLE if p.role == Role.INVESTIGATOR))]


Scene: TypeAlias = Told | Opened | HandedOn | Claimed
Question: TypeAlias = Annotated[str, _one_of("province", "kind", "now", "danger", "answer", "number")]


class Story(_Strict):
    """A case: how it was told, and its scenes, each `ago` before the set-up, in the order of time.

    sender: of text messages. form: the answers of the web form, by question as on the page.
    """

    key: Annotated[str, StringConstraints(pattern=r"^[a-z]+(-[a-z]+)*$")]
    sender: Annotated[str, StringConstraints(pattern=r"^\+8550000[0-9]{4}$")] | None = None
    form: Mapping[Question, str] | None = None
    story: tuple[Scene, ...]

    @model_validator(mode="after")
    def _hangs_together(self) -> "Story":
        told = [scene for scene in self.story if isinstance(scene, Told)]
        if not told or self.story[0] is not told[0]:
            raise ValueError("a story begins with what was told")
        if (self.sender is None) is (self.form is None):
            raise ValueError("a case has a sender or a form")
        if self.form is not None and (len(told) > 1 or told[0].media):
            raise ValueError("a form has one message, without files")
        if any(later.ago > earlier.ago for earlier, later in pairwise(self.story)):
            raise ValueError("scenes are told in the order of time")
        return self


class _Stories(_Strict):
    cases: tuple[Story, ...]

    @model_validator(mode="after")
    def _apart(self) -> "_Stories":
        for names in ([s.key for s in self.cases], [s.sender for s in self.cases if s.sender]):
            if len(set(names)) < len(names):
                raise ValueError("two cases have the same key or sender")
        return self


def read_stories(path: Path = TIPS) -> tuple[Story, ...]:
    """Return the cases in the order of the file. Raises Misconfigured for what is missing, unknown or impossible."""
    from service.triage import strict_yaml  # brings all of triage, which a start without set-up does not need

    try:
        return _Stories.model_validate(strict_yaml.load(path)).cases
    except ValueError as fault:
        raise Misconfigured(f"{path.name}: {fault}") from fault


def timeline(stories: tuple[Story, ...]) -> list[tuple[Story, Scene]]:
    """Return all scenes with their cases in the order of time."""
    scenes = [(story, scene) for story in stories for scene in story.story]
    return sorted(scenes, key=lambda pair: pair[1].ago, reverse=True)
