"""Officials: named as the one who does it they are complicit; told, asked, near or helping they are not."""

import time

import pytest

from service.triage import Triage, assess
from tests.service.triage.builders import suggested

ROLES = {
    "police": ("the police chief", "a policeman", "an officer", "two policemen"),
    "military": ("a soldier", "the general", "an army captain"),
    "local_chief": ("the village chief", "the commune chief", "the deputy governor"),
    "court": ("a judge", "the prosecutor", "a court clerk"),
    "other_official": ("a customs officer", "an official of the ministry", "a provincial officer"),
}
KHMER_ROLES = {
    "police": ("ប៉ូលិសម្នាក់", "មេប៉ុស្តិ៍", "police mneak"),
    "military": ("ទាហានម្នាក់", "វរសេនីយ៍", "teahean mneak"),
    "local_chief": ("មេភូមិ", "មេឃុំ", "me phum"),
    "court": ("ចៅក្រម", "ក្រឡាបញ្ជី", "chav krom"),
    "other_official": ("មន្ត្រីខេត្តម្នាក់", "ឧកញ៉ា", "montrey srok"),
}
DEEDS = (
    "{} is holding a girl locked in a room now",
    "{} keeps a girl of 13 in his house",
    "{} beats a boy every evening",
    "the girl was raped by {}",
    "{} has sex with the girls of the karaoke",
)
KHMER_DEEDS = (
    "{}ទុកក្មេងស្រីអាយុ ១៣ ឆ្នាំក្នុងផ្ទះ",
    "{}ឃុំក្មេងស្រីក្នុងបន្ទប់ឥឡូវនេះ",
    "{}បានរំលោភក្មេងស្រី",
    "{} tuk kmeng srey ayu 13 knong phteah",
    "{} veay kmeng bros",
)
HARMLESS = (
    "I told {} that my uncle beats the girl",
    "we reported to {} that the boss beats the boy",
    "{} helped the girl who was beaten",
    "{} stands near and the man hits the girl",
    "a man beats the boy near {}",
    "{} arrested the man who raped the girl",
    "{} took the child to the hospital, her stepfather beat her",
    "please send {} because he beats the girl",
)
KHMER_HARMLESS = (
    "ខ្ញុំបានប្រាប់{}ថា ពូវាយក្មេងស្រី",
    "{}បានជួយក្មេងស្រីដែលគេវាយ",
    "{}បានចាប់ខ្លួនអ្នករំលោភក្មេង",
    "ថៅកែវាយក្មេង នៅជិត{}",
    "knhom prap {} tha pu veay kmeng srey",
)


def all_of(roles: dict[str, tuple[str, ...]], sentences: tuple[str, ...]) -> list[tuple[str, str]]:
    return [(role, sentence.format(who)) for role, whos in roles.items() for who in whos for sentence in sentences]


@pytest.mark.parametrize(("role", "text"), all_of(ROLES, DEEDS) + all_of(KHMER_ROLES, KHMER_DEEDS))
def test_an_official_who_does_it_is_complicit(triage: Triage, role: str, text: str) -> None:
    facts = suggested(triage, text)
    decision = assess(triage, text).decision

    assert facts["official_complicity"] == {"yes"}
    assert role in facts["suspect_role"]
    assert "INDEPENDENT" in decision.routes
    assert decision.level in ("P1", "P2")


@pytest.mark.parametrize(("role", "text"), all_of(ROLES, HARMLESS) + all_of(KHMER_ROLES, KHMER_HARMLESS))
def test_an_official_who_is_told_or_near_or_helps_is_not(triage: Triage, role: str, text: str) -> None:
    assert "official_complicity" not in suggested(triage, text)
    assert role not in suggested(triage, text).get("suspect_role", ())


def test_harm_denied_to_an_official_is_none(triage: Triage) -> None:
    assert "official_complicity" not in suggested(triage, "the policeman does not beat the children")
    assert suggested(triage, "the policeman beats the children")["official_complicity"] == {"yes"}


@pytest.mark.parametrize(
    ("place", "complicit"),
    [("in the policeman's house", True), ("near the policeman's house", False), ("in the house of the teacher", False)],
)
def test_a_child_held_in_an_officials_house_speaks_of_the_official(triage: Triage, place: str, complicit: bool) -> None:
    text = f"a girl of 12 is locked up {place}"

    assert ("official_complicity" in suggested(triage, text)) is complicit


@pytest.mark.parametrize("who", ["his son is a policeman and he", "he is a soldier and he", "គាត់ជាទាហាន គាត់"])
def test_whoever_is_called_an_official_and_does_harm_is_complicit(triage: Triage, who: str) -> None:
    deed = "វាយក្មេង" if who.startswith("គាត់") else "beats the girl"

    assert suggested(triage, f"{who} {deed}")["official_complicity"] == {"yes"}


@pytest.mark.parametrize(
    "text",
    [
        "ពេលមានការត្រួតពិនិត្យ ប៉ូលិសទូរសព្ទប្រាប់ម្ចាស់មុន ហើយក្មេងស្រីត្រូវលាក់",
        "ប៉ូលិសតេប្រាប់ថៅកែមុនចុះឆែក ក្មេងស្រីរត់ទៅក្រោយ",
        "police khol prap thaoke mun, kmeng srey leak knong bontop",
        "before each inspection an officer texts the manager and the girls are hidden",
        "the commune chief phones the owner in advance, the children vanish",
    ],
)
def test_an_official_who_warns_the_owner_is_complicit(triage: Triage, text: str) -> None:
    assert suggested(triage, text)["official_complicity"] == {"yes"}


@pytest.mark.parametrize("text", ["police told the boss that the girl is hurt", "ប៉ូលិសប្រាប់ថៅកែថាក្មេងស្រីឈឺ"])
def test_an_official_who_only_speaks_with_the_owner_is_not(triage: Triage, text: str) -> None:
    assert "official_complicity" not in suggested(triage, text)


# Who is told is no suspect


@pytest.mark.parametrize(
    ("text", "role"),
    [
        ("ក្មេងស្រីប្រាប់គ្រូថា ឪពុកចុងរំលោភវា", "teacher"),
        ("កូនខ្ញុំបាននិយាយប្រាប់លោកគ្រូថា ពូវាយវា", "teacher"),
        ("kon knhom prap kru tha pu veay vea", "teacher"),
        ("my daughter told her teacher that my brother touches her", "teacher"),
        ("she informed the director that a cook beats her", "director"),
        ("we reported to the pastor that the boy is beaten by his uncle", "clergy"),
    ],
)
def test_whoever_is_told_is_no_suspect(triage: Triage, text: str, role: str) -> None:
    assert role not in suggested(triage, text).get("suspect_role", ())


@pytest.mark.parametrize(
    ("text", "role"),
    [("គ្រូរំលោភក្មេងស្រី", "teacher"), ("her teacher touches her", "teacher"), ("the pastor beats the boy", "clergy")],
)
def test_whoever_does_it_is_the_suspect(triage: Triage, text: str, role: str) -> None:
    assert role in suggested(triage, text)["suspect_role"]


# Khmer "since" before a day


@pytest.mark.parametrize(
    ("when", "recency"),
    [
        ("កាលពីម្សិលមិញ", "recent"),
        ("កាលពីយប់មិញ", "recent"),
        ("កាលពីព្រឹកមិញ", "recent"),
        ("កាលពីល្ងាចមិញ", "recent"),
        ("កាលពីសប្តាហ៍មុន", "recent"),
        ("កាលពីសបា្តហ៍មុន", "recent"),
        ("កាលពីអាទិត្យមុន", "recent"),
        ("កាលពីខែមុន", "recent"),
        ("កាលពី ២ ថ្ងៃមុន", "recent"),
        ("កាលពីពីរថ្ងៃមុន", "recent"),
        ("កាលពីថ្ងៃចន្ទ", "recent"),
        ("កាលពីឆ្នាំមុន", "past"),
        ("កាលពីប្រាំខែមុន", "past"),
        ("កាលពីដប់ឆ្នាំមុន", "historic"),
        ("កាលពីក្មេង", "historic"),
    ],
)
def test_a_khmer_day_after_since_keeps_its_distance(triage: Triage, when: str, recency: str) -> None:
    for text in (f"{when} គាត់រំលោភក្មេងស្រី", f"គាត់រំលោភក្មេងស្រី {when}", f"គាត់រំលោភក្មេងស្រី{when}"):
        assert suggested(triage, text)["recency"] == {recency}, text


# A club where one plays


@pytest.mark.parametrize(
    "text",
    [
        "Mon fils joue au club le samedi, un homme le photographie",
        "Un entraîneur embrasse les garçons au club de foot",
        "the coach of the swimming club kisses the girls",
    ],
)
def test_a_club_for_sport_is_no_bar(triage: Triage, text: str) -> None:
    facts = suggested(triage, text)

    assert "child_labour" not in facts
    assert "bar" not in facts.get("venue_type", ())


@pytest.mark.parametrize("text", ["des filles de 14 ans servent dans un club de nuit", "girls of 14 at the night club"])
def test_a_night_club_is_a_bar(triage: Triage, text: str) -> None:
    assert "bar" in suggested(triage, text)["venue_type"]


@pytest.mark.parametrize("words", ["police beats man girl ", "ប៉ូលិសវាយក្មេង", "police keeps the girl by the police "])
def test_a_text_stuffed_with_officials_is_read_in_time(triage: Triage, words: str) -> None:
    text = (words * 10_000)[:10_000]
    assess(triage, text)
    took = min(timed(triage, text) for _ in range(3))

    assert took < 0.25  # 50 ms on an idle core


def timed(triage: Triage, text: str) -> float:
    start = time.process_time()
    assess(triage, text)
    return time.process_time() - start
