"""What a text names: one clear place, one clear person, or nothing. All names are invented."""

import pytest

from service.triage import Fact, Source, assess
from service.triage.naming import LONGEST, NOTHING, Names, names_in, spelt
from tests.builders import triage

HURT = "The girl is beaten there."


def names(text: str, **context: str) -> Names:
    return names_in(text, assess(triage(), text, (), None, context).facts, context)


@pytest.mark.parametrize(
    "words",
    [
        "A girl is beaten at the Golden Lotus Hotel in Siem Reap",
        "girl 12 beaten at golden lotus hotel siem reap",
        "girl 12 beaten in the golden lotus guesthouse, siem reap",
        "A girl at hotel Golden Lotus, Siem Reap, is beaten",
        "A girl is beaten in a guesthouse called golden lotus, siem reap",
        'A girl is beaten in the hotel "Golden Lotus" in Siem Reap',
        "A girl is beaten at the Golden-Lotus Hotel Siem Reap",
        "A girl is beaten at Goldenn Lotus Hotel in Siem Reap",
        "នៅសៀមរាប ក្មេងស្រីត្រូវគេវាយ សណ្ឋាគារ Golden Lotus",
    ],
)
def test_one_place_written_in_many_ways_is_one(words: str) -> None:
    assert names(words) == Names("lodging|goldenlotus|KH-17", "lodging|goldenlotus|")


@pytest.mark.parametrize(
    "words",
    [
        "សណ្ឋាគារមាសសុខ",
        "សណ្ឋាគារមាសសុខនៅកំពត",
        "សណ្ឋាគារមាស\u200bសុខ មានក្មេង",
        "សណ្ឋាគារមាសសូខ",
        "ផ្ទះសំណាក់ឈ្មោះ មាសសុខ",
        "ផ្ទះសំណាក់ «មាស សុខ»",
        "ផ្ទះសំនាក់ឈ្មោះមាសសុខ",
    ],
)
def test_a_khmer_name_ends_where_an_ordinary_word_begins(words: str) -> None:
    assert names(f"ក្មេងស្រីត្រូវគេវាយនៅ{words} កំពត").place == f"lodging|{spelt('មាសសុខ')}|KH-7"


@pytest.mark.parametrize(
    "words",
    [
        f"She is at a hotel in Siem Reap. {HURT}",
        f"She is at the cheap hotel. {HURT}",
        f"She is at the Night Market. {HURT}",
        f"She is at the hotel near the market. {HURT}",
        f"She is near the Golden Lotus Hotel. {HURT}",
        f"She lives next to the Golden Lotus Hotel. {HURT}",
        f"The house behind the Golden Lotus Hotel. {HURT}",
        f"She is at the Siem Reap Hotel. {HURT}",
        f"She is at the Golden Lotus Hotel or the Silver River Hotel. {HURT}",
        "The girl is beaten at school. Her uncle works at the Golden Lotus Hotel as a cook, she is in the school now.",
        "ក្មេងស្រីត្រូវគេវាយនៅសណ្ឋាគារផ្លូវ១៧៨",
        "ក្មេងស្រីត្រូវគេវាយនៅផ្ទះសំណាក់ក្បែរចំណតឡានបាត់ដំបង",
        "ក្មេងស្រីត្រូវគេវាយក្បែរសណ្ឋាគារមាសសុខ",
        "ក្មេងស្រីត្រូវគេវាយនៅឆ្នេរកែប",
        "hotel",
        "",
    ],
)
def test_what_does_not_name_one_place_names_none(words: str) -> None:
    assert names(words).place is None


@pytest.mark.parametrize(
    "words",
    [
        "Mr Sok Dara beat the girl",
        "mr. Dara Sok beat the girl",
        "The teacher named Sok Dara beats the girl",
        "A girl is beaten by coach Sokk Dara",
        "teacher Sok Dara beats the girl every day",
    ],
)
def test_a_persons_name_is_one_in_any_order_and_spelling(words: str) -> None:
    assert names(words).suspect == "darasok"


@pytest.mark.parametrize(
    "words",
    ["គ្រូឈ្មោះ សុខ តារា វាយក្មេង", "លោក តារា សុខ វាយក្មេង", "លោកគ្រូ សុខ តារា បានវាយក្មេង", "បុរសឈ្មោះ សុខ តារា វាយក្មេង"],
)
def test_a_persons_name_in_khmer_stands_between_blanks(words: str) -> None:
    assert names(words).suspect == "".join(sorted([spelt("សុខ"), spelt("តារា")]))


def test_a_single_name_counts_only_with_what_its_bearer_is_and_a_province() -> None:
    assert names("teacher Vannak beats the girls in Kampot").suspect == "vanak|teacher|KH-7"
    assert names("coach Vannak beats the girls in Kampot").suspect == "vanak||KH-7"
    assert names("teacher Vannak beats the girls").suspect is None
    assert names("teacher Sok beats the girls in Kampot").suspect is None  # a family's name


@pytest.mark.parametrize(
    "words",
    [
        "I am Mr Sok Dara and they beat the girl",
        "My name is Mr Sok Dara and they beat the girl",
        "I told Mr Sok Dara that they beat the girl",
        "Mr Sok Dara told me that they beat the girl",
        "Mr Sok Dara helped the girl they beat",
        "A girl named Srey Pich is beaten",
        "a man named sok dara hits the girl",
        "Mr Sok Dara and Mr Keo Vannak beat the girl",
        "Thank you Mr Sok Dara for your help with the children",
        "Where can I find Mr Sok Dara?",
        "teacher. Many children are beaten",
        "The teacher beats the children",
        "គ្រូពេទ្យវាយក្មេង",
        "លោកអង់គ្លេស វាយក្មេង",
        "ខ្ញុំប្រាប់លោក សុខ តារា ថាគេវាយក្មេង",
        "ក្មេងស្រីឈ្មោះ សុខ តារា ត្រូវគេវាយ",
        "គ្រូមត្តេយ្យយកទឹកក្តៅស្រោចដៃក្មេង",
        "លោក សុខ តារា ចាន់ វាយក្មេង",
    ],
)
def test_who_is_no_clear_suspect_has_no_name(words: str) -> None:
    assert names(words).suspect is None


def test_a_person_is_named_only_beside_a_harm() -> None:
    facts = {"violence": Fact("violence", "yes", Source.STATED)}
    assert names_in("It was Mr Sok Dara.", facts, {}).suspect == "darasok"
    assert names_in("It was Mr Sok Dara.", {}, {}).suspect is None


def test_a_poster_stands_for_its_place_when_the_tip_is_about_such_a_place() -> None:
    hangs = {"placement": "K7Q4", "placement_code_province": "KH-7"}
    assert names("They beat us here.", venue_type="orphanage", **hangs).place == "placement|K7Q4"
    assert names("They beat us here.", **hangs).place is None
    assert names("They beat a girl in the karaoke.", venue_type="school", **hangs).place is None


@pytest.mark.parametrize(
    "words",
    [
        "Mr " * 20_000,
        "Hotel " * 10_000,
        "a" * 64_000,
        "គ្រូ " * 12_000,
        "សណ្ឋាគារ" * 8_000,
        "\u17d2" * 20_000,
        "\ud800 hotel Mr",
    ],
)
def test_hostile_words_name_nothing(words: str) -> None:
    facts = {
        "violence": Fact("violence", "yes", Source.STATED),
        "venue_type": Fact("venue_type", "hotel", Source.STATED),
    }
    assert names_in(words, facts, {}) == NOTHING


def test_a_name_is_looked_for_where_the_account_begins() -> None:
    facts = {"violence": Fact("violence", "yes", Source.STATED)}
    assert names_in("x " * (LONGEST // 2) + "Mr Sok Dara", facts, {}) == NOTHING
