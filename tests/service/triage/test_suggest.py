"""Words to facts: who, what, when, where, denied or not, with the positions of the words."""

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.triage import FACTS, NOW, Source, Triage, assess
from service.triage.suggest import MOST_SPANS, suggest
from tests.service.triage.builders import AS_OF, suggested

SENTENCES = [
    "right now a man is beating a girl of 12 in room 4 of the guesthouse in Kampot",
    "ឥឡូវនេះគេចាក់សោក្មេងស្រីអាយុ១២ឆ្នាំ ក្នុងផ្ទះនៅកំពត ជួយផង",
    "thaoke veay kmeng srey ayu 12, nov phteah somnak siem reap, yub nis",
    "con bi nhot trong quan karaoke o Bavet, cuu con voi",
]


def test_a_fact_carries_the_words_that_gave_it(triage: Triage) -> None:
    text = "Sir, the door is LOCKED and two girls are inside in Kampot"
    found = {fact.name: fact for fact in suggest(text, triage.lexicon, AS_OF, message="m1").facts}

    confined = found["confined_now"]
    assert [text[start:end] for start, end in confined.spans] == ["door is LOCKED"]
    assert (confined.source, confined.at, confined.message) == (Source.SUGGESTED, AS_OF, "m1")
    [(start, end)] = found["province"].spans
    assert text[start:end] == "Kampot"


def test_positions_hold_in_khmer_with_invisible_characters(triage: Triage) -> None:
    text = "គេ\u200bចាក់\u200bសោ\u200bកេ្មង\u200bនៅ\u200bកំពត"
    found = {fact.name: fact for fact in suggest(text, triage.lexicon).facts}

    [(start, end)] = found["confined_now"].spans
    assert text[start:end].replace("\u200b", "") == "ចាក់សោ"


@pytest.mark.parametrize(
    "text",
    [
        "the children are not beaten and not locked in",
        "nobody beats the children here",
        "no child was ever hurt, no one touched them",
        "there was never any violence against the boys",
        "the girls were not sold and nobody threatens us",
        "we saw no abuse of the kids",
        "អត់មានអ្នកវាយក្មេងទេ",
        "គ្មានអ្នកធ្វើបាបក្មេងទេ",
        "ក្មេងមិនត្រូវគេចាក់សោទេ",
        "មិនមានអ្នកណាលក់ក្មេងទេ",
        "ot mean neak veay kmeng te",
        "khong ai danh dap em gai",
        "personne ne frappe les enfants",
        "никто не бьёт детей",
        "没有人打孩子",
    ],
)
def test_what_is_denied_raises_no_flag(triage: Triage, text: str) -> None:
    decision = assess(triage, text).decision

    assert decision.level == "P3"
    assert decision.flags == ()


def test_the_same_words_without_a_denial_do(triage: Triage) -> None:
    for text in ("the children are beaten and locked in", "មានអ្នកវាយក្មេង", "neak veay kmeng", "有人打孩子"):
        assert assess(triage, text).facts["violence"].value == "yes", text


def test_what_is_denied_is_a_no(triage: Triage) -> None:
    assert suggested(triage, "the children are not locked in")["confined_now"] == {"no"}


def test_yes_in_another_clause_wins(triage: Triage) -> None:
    assert assess(triage, "He does not beat the boy. He beats the girl.").facts["violence"].value == "yes"
    assert "yes" in suggested(triage, "he does not beat the boys but he kicks the girl")["violence"]


def test_a_not_inside_a_phrase_belongs_to_the_phrase(triage: Triage) -> None:
    assert suggested(triage, "the girl cannot leave the house")["confined_now"] == {"yes"}
    assert suggested(triage, "ក្មេងស្រីចេញមិនបាន")["confined_now"] == {"yes"}


def test_perhaps_is_kept_and_marked(triage: Triage) -> None:
    [fact] = [one for one in suggest("maybe he beats the boy", triage.lexicon).facts if one.name == "violence"]

    assert (fact.value, fact.hedged) == ("yes", True)


def test_if_leaves_a_harm_unknown_and_a_threat_standing(triage: Triage) -> None:
    assert "violence" not in suggested(triage, "what do I do if someone beats a child")
    threat = suggested(triage, "he said if she tells the police about the girl he will burn the house")
    assert threat["retaliation_threat"] == {"yes"}


@pytest.mark.parametrize(
    ("text", "recency"),
    [
        ("he hits the boy right now", "now"),
        ("yesterday he hit the boy", "recent"),
        ("he hit the boy last week", "recent"),
        ("he hit the boy 3 days ago", "recent"),
        ("he hit the boy 3 months ago", "past"),
        ("last year he hit the boy", "past"),
        ("he hit the boy 5 years ago", "historic"),
        ("in 2014 he hit the boy", "historic"),
        ("ម្សិលមិញគេវាយក្មេង", "recent"),
        ("គេវាយក្មេង ៣ឆ្នាំមុន", "historic"),
        ("ឆ្នាំមុនគេវាយក្មេង", "past"),
    ],
)
def test_the_time_of_a_harm_comes_from_its_clause(triage: Triage, text: str, recency: str) -> None:
    assert suggested(triage, text)["recency"] == {recency}


def test_a_habit_means_standing_access(triage: Triage) -> None:
    assert suggested(triage, "he beats the boy every night")["suspect_access"] == {"ongoing"}
    assert suggested(triage, "គេវាយក្មេងរាល់យប់")["suspect_access"] == {"ongoing"}


@pytest.mark.parametrize(
    ("text", "hours"),
    [
        ("the man who abused the boys flies out tonight", 12),
        ("the man who abused the boys flies home tomorrow", 24),
        ("the man who abused the boys flies home in 3 days", 72),
        ("the man who abused the boys flies home next week", 168),
        ("លោកអង់គ្លេសដែលធ្វើបាបក្មេង មានសំបុត្រយន្តហោះស្អែក", 24),
    ],
)
def test_a_departure_has_its_hours(triage: Triage, text: str, hours: int) -> None:
    found = suggested(triage, text)

    assert found["suspect_leaving"] == {"yes"}
    assert found["suspect_leaving_hours"] == {hours}


def test_the_writers_own_journey_is_no_departure_of_a_suspect(triage: Triage) -> None:
    assert "suspect_leaving" not in suggested(triage, "I saw a man hit a girl. My flight is tomorrow, I fly home")


@pytest.mark.parametrize(
    ("text", "ages"),
    [
        ("a girl aged 12", (12, 12)),
        ("a 12yo girl", (12, 12)),
        ("girl 12 years old", (12, 12)),
        ("two boys, 8 to 12 years old", (8, 12)),
        ("the girl is about 15", (15, 15)),
        ("my daughter, 7, cries", (7, 7)),
        ("she is fifteen, a girl", (15, 15)),
        ("a baby in the house", (0, 0)),
        ("a boy in grade 6", (11, 13)),
        ("ក្មេងស្រីអាយុ១២ឆ្នាំ", (12, 12)),
        ("ក្មេងស្រី ១២ឆ្នាំ", (12, 12)),
        ("ក្មេងអាយុប្រាំបីឆ្នាំ", (8, 8)),
        ("ក្មេង ១២-១៤ឆ្នាំ", (12, 14)),
        ("ខ្ញុំរៀនថ្នាក់ទី៨", (13, 15)),
        ("kmeng srey ayu 13", (13, 13)),
        ("be gai 12 tuoi", (12, 12)),
        ("une fille de 12 ans", (12, 12)),
        ("女孩12岁", (12, 12)),
    ],
)
def test_ages_are_read_in_digits_and_words(triage: Triage, text: str, ages: tuple[int, int]) -> None:
    found = suggested(triage, text)

    assert (min(found["age_min"]), max(found["age_max"])) == ages
    assert found["child_involved"] == {"yes"}


@pytest.mark.parametrize(
    "text",
    [
        "a girl in room 12 of the hotel",
        "the girl comes at 9 every day",
        "street 63, a girl",
        "3 girls",
        "he paid the girl 15 dollars",
        "a girl was here 12 days ago",
        "the boy waits 10 minutes",
        "ក្មេង ៣នាក់",
        "ក្មេងនៅផ្លូវ ១៧",
        "he got 15 years in prison for the girl",
    ],
)
def test_other_numbers_are_no_ages(triage: Triage, text: str) -> None:
    assert "age_min" not in suggested(triage, text)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("he beats 3 girls", 3),
        ("he beats four boys", 4),
        ("he beats the children", 2),
        ("គេវាយក្មេង ៣នាក់", 3),
        ("គេវាយក្មេងៗ", 2),
    ],
)
def test_children_who_are_harmed_are_counted(triage: Triage, text: str, count: int) -> None:
    assert max(suggested(triage, text)["victims"]) == count


def test_children_who_are_only_mentioned_are_not_counted(triage: Triage) -> None:
    assert "victims" not in suggested(triage, "12 children live in this home and go to school")


@pytest.mark.parametrize(
    ("text", "is_child"),
    [
        ("i am 14 and my uncle hits me", True),
        ("ខ្ញុំអាយុ១៣ ពូវាយខ្ញុំ", True),
        ("knhom ayu 13 thaoke veay knhom", True),
        ("my friend is 14 and her uncle hits her", False),
        ("i am 34. when i was nine my uncle abused me", False),
    ],
)
def test_who_speaks_about_whom(triage: Triage, text: str, is_child: bool) -> None:
    assert ("yes" in suggested(triage, text).get("reporter_is_child", set())) is is_child


def test_an_adult_who_tells_of_childhood_is_a_survivor(triage: Triage) -> None:
    found = assess(triage, "I am 34 now. When I was nine my uncle abused me. He is dead.")

    assert found.decision.level == "P3"
    assert "child_self_report" not in found.decision.flags


@pytest.mark.parametrize(
    ("text", "province"),
    [
        ("a girl at Street 136", "KH-12"),
        ("near pub street", "KH-17"),
        ("otres beach", "KH-18"),
        ("at poipet market", "KH-1"),
        ("in Siemreap", "KH-17"),
        ("ក្មេងនៅភ្នំពេញ", "KH-12"),
        ("នៅខេត្តកណ្ដាល", "KH-8"),
        ("ស្រុកពួក", "KH-17"),
        ("នៅប៉ោយប៉ែត", "KH-1"),
        ("在西港", "KH-18"),
        ("he lives in Bavet", "KH-20"),
    ],
)
def test_provinces_are_known_by_name_street_market_and_district(triage: Triage, text: str, province: str) -> None:
    assert suggested(triage, text)["province"] == {province}


@pytest.mark.parametrize("text", ["ពួកគេវាយក្មេង", "ក្រសួងណា", "កូនកណ្ដាល", "the middle of the road", ""])
def test_common_words_are_no_places(triage: Triage, text: str) -> None:
    assert "province" not in suggested(triage, text)


def test_in_the_childrens_form_here_is_the_home(triage: Triage) -> None:
    found = suggest("they hit us here", triage.lexicon, None, {"form": "child_residential"}).facts

    assert "reporter_lives_at_place" in {fact.name for fact in found}


@pytest.mark.parametrize(
    ("text", "kind", "level"),
    [
        ("how do i register an orphanage", "question", "P4"),
        ("thank you for helping my niece", "thanks", "P4"),
        ("CONGRATS you have won, click here", "spam", "P4"),
        ("សាកល្បង 123", "test", "P4"),
        ("you idiots, useless idiots", "abusive", "P4"),
        ("please cancel my report, it was a mistake, he is found", "retraction", "P4"),
    ],
)
def test_a_message_that_is_no_report_is_known_by_its_kind(triage: Triage, text: str, kind: str, level: str) -> None:
    found = assess(triage, text)

    assert found.facts["message_kind"].value == kind
    assert found.decision.level == level


def test_a_harm_makes_a_report_of_any_message(triage: Triage) -> None:
    found = assess(triage, "thank you for listening. the teacher rapes the girls every night, click here")

    assert "message_kind" not in found.facts
    assert found.decision.level <= "P2"


def test_a_retraction_takes_the_harm_back_but_not_the_settlement(triage: Triage) -> None:
    found = assess(
        triage,
        "cancel my report about the girl, it was a mistake. they gave the mother money so we do not complain",
    )

    assert found.facts["settlement"].value == "offered"
    assert found.decision.level == "P2"


def test_what_an_offender_calls_a_mistake_is_no_retraction(triage: Triage) -> None:
    found = assess(triage, "the teacher hit the boy and says it was a mistake, nothing happened to him")

    assert found.facts["violence"].value == "yes"
    assert "message_kind" not in found.facts


def test_telling_the_police_is_no_complicity_of_the_police(triage: Triage) -> None:
    for text in (
        "I told the police about the girl",
        "the police helped the girl and took no money",
        "traffic police took 5 dollars from me, my son was there",
        "the officer came and brought the boy to his mother",
    ):
        assert "official_complicity" not in suggested(triage, text), text
    assert "official_complicity" in suggested(triage, "the police take money from the bar where the girls are 15")


def test_invisible_characters_and_order_of_marks_change_no_fact(triage: Triage) -> None:
    shuffler = random.Random(7)
    for sentence in SENTENCES:
        plain = suggested(triage, sentence)
        for _ in range(5):
            places = sorted(shuffler.sample(range(len(sentence)), 6), reverse=True)
            typed = sentence
            for place in places:
                typed = typed[:place] + "\u200b" + typed[place:]
            assert suggested(triage, typed) == plain
        typed = sentence.replace("្មេ", "េ្ម").replace("េ្ម", "េ\u200b្ម")
        assert suggested(triage, typed) == plain


def test_khmer_and_latin_digits_say_the_same(triage: Triage) -> None:
    khmer = SENTENCES[1]
    latin = khmer.replace("១", "1").replace("២", "2")

    assert suggested(triage, khmer) == suggested(triage, latin)


@settings(max_examples=60)
@given(
    st.one_of(st.text(max_size=120), st.lists(st.sampled_from(" ".join(SENTENCES).split()), max_size=30).map(" ".join))
)
def test_any_text_gives_facts_of_the_schema_with_positions_in_it(triage: Triage, text: str) -> None:
    for fact in suggest(text, triage.lexicon, AS_OF).facts:
        assert FACTS[fact.name].accepts(fact.value)
        assert 0 < len(fact.spans) <= MOST_SPANS
        assert all(0 <= start < end <= len(text) for start, end in fact.spans)


@pytest.mark.parametrize(
    "words",
    [
        "not girl ",
        "girl 12 ",
        "now hit ",
        "ឥឡូវវាយ",
        "មិនវាយក្មេង",
        "ｈｉｔ girl ",
        "a girl. ",
        "1 ",
        "sold to a girl, but ",
    ],
)
def test_ten_thousand_hostile_characters_take_no_longer_than_they_must(triage: Triage, words: str) -> None:
    text = (words * 5_000)[:10_000]
    started = time.process_time()
    suggest(text, triage.lexicon, AS_OF)

    assert time.process_time() - started < 1.0  # 10 to 50 ms; a square would take many seconds


def test_weekdays_are_counted_from_the_day_of_receipt(triage: Triage) -> None:
    text = "the man who abused the boys flies home on friday"

    found = suggested(triage, text, AS_OF)

    assert found["suspect_leaving_hours"] == {96}
    assert "suspect_leaving_hours" not in suggested(triage, text)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("danger_now", "help me now, he is beating the girl"),
        ("child_with_suspect_now", "just now a man took a small girl into a room"),
        ("confined_now", "the girl is locked in a room"),
        ("moved_today", "this afternoon they put the boys in a van to the border"),
        ("injured_without_care", "the boy is unconscious and nobody takes him to a doctor"),
        ("self_harm", "i want to kill myself, i am 15"),
        ("harm_due_today", "tonight the boss has a customer for the girl"),
        ("live_stream_now", "he is streaming a child on the internet now"),
    ],
)
def test_every_now_fact_can_come_from_words(triage: Triage, name: str, text: str) -> None:
    assert name in NOW
    assert suggested(triage, text)[name] == {"yes"}
    assert assess(triage, text).decision.level == "P1"
