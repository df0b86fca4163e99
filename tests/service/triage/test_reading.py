"""How words are put together: time, numbers, spelling, languages, places and what is only inferred."""

import time
from datetime import UTC, datetime

import pytest

from service.triage import NOW, Triage, assess, normalise
from service.triage.language import detect_language
from service.triage.numbers import amounts, digits
from service.triage.suggest import suggest
from tests.service.triage.builders import AS_OF, suggested


def level(triage: Triage, text: str, **context: str) -> str:
    return assess(triage, text, received_at=AS_OF, context=context).decision.level


# Time


def test_what_goes_on_since_yesterday_goes_on(triage: Triage) -> None:
    assert suggested(triage, "she is 14 and locked in a room since yesterday")["confined_now"] == {"yes"}
    assert "confined_now" not in suggested(triage, "she is 14 and was locked in a room last year")


def test_the_day_a_text_calls_today_counts(triage: Triage) -> None:
    text = "today is thursday. the man who abused the boys flies home on saturday"

    assert suggested(triage, text)["suspect_leaving_hours"] == {48}


def test_a_year_is_a_year_and_a_sum_is_a_sum() -> None:
    def kinds(text: str) -> list[str]:
        return [amount.kind for amount in amounts(text, digits(text), [])]

    assert kinds("in 2014") == ["year"]
    assert kinds("for 2000 baht") == ["money"]
    assert kinds("for $2000") == ["money"]


def test_care_put_off_is_care_refused(triage: Triage) -> None:
    text = "the boy is bleeding a lot and they say wait till tomorrow"

    assert suggested(triage, text)["injured_without_care"] == {"yes"}


# Numbers


@pytest.mark.parametrize(
    ("text", "age"),
    [
        ("my sister 16 is beaten by the boss", 16),
        ("ក្មេងអាយុ ដប់បី ត្រូវគេវាយ", 13),
        ("he beats the girl, she is twelve", 12),
        ("they beat a maid who cannot be older than 12", 12),
    ],
)
def test_ages_without_the_word_years(triage: Triage, text: str, age: int) -> None:
    assert suggested(triage, text)["age_min"] == {age}


@pytest.mark.parametrize("text", ["my sister 2 times beat the girl", "my friend 45 beats the girl"])
def test_other_numbers_after_a_sister_are_no_childs_age(triage: Triage, text: str) -> None:
    assert "age_min" not in suggested(triage, text)


def test_the_sign_for_repetition_makes_several_children(triage: Triage) -> None:
    assert suggested(triage, "គាត់វាយក្មេងៗ")["victims"] == {2}
    assert "victims" not in suggested(triage, "គាត់វាយក្មេង")


# Spelling and languages


@pytest.mark.parametrize(
    ("slip", "meant"),
    [
        ("a girl was molestd by her stepfahter", "a girl was molested by her stepfather"),
        ("ឪពុកចុងរំលោភកូនស្រី", "ឪពុកចុងរំលោភ កូនស្រី"),
        ("kmeng srey trov ke romlop", "kmeng srey trov ke rumloup"),
    ],
)
def test_slips_and_spellings_say_the_same(triage: Triage, slip: str, meant: str) -> None:
    for name in ("sexual_contact", "child_involved"):
        assert suggested(triage, slip)[name] == suggested(triage, meant)[name] == {"yes"}


def test_words_of_other_languages_are_not_read_as_english(triage: Triage) -> None:
    # In Vietnamese "van" is begging or still, in English a car.
    assert "moved_today" not in suggested(triage, "bé gái 12 tuổi vẫn ở nhà van nha tôi hôm nay")


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("ខ្ញុំអាយុ១២ឆ្នាំ", "km"),
        ("juy knhom phong puk vay knhom", "km"),
        ("my daughter was hurt", "en"),
        ("ma fille a été frappée par son oncle", "fr"),
        ("meine Tochter wurde von ihrem Onkel geschlagen", "de"),
        ("con gái tôi bị đánh", "vi"),
        ("我女儿被打", "zh"),
        ("娘が殴られました", "ja"),
        ("딸이 맞았습니다", "ko"),
        ("ลูกสาวถูกตี", "th"),
        ("мою дочь бьют", "ru"),
        ("12345", "und"),
    ],
)
def test_languages_are_told_apart(text: str, language: str) -> None:
    assert detect_language(text) == language


# Places


@pytest.mark.parametrize(
    ("text", "province"),
    [
        ("在暹粒的酒店", "KH-17"),
        ("프놈펜 호텔", "KH-12"),
        ("в Сиануквиле", "KH-18"),
        ("ที่เสียมเรียบ", "KH-17"),
        ("シェムリアップのホテル", "KH-17"),
        ("a shop on street 271", "KH-12"),
        ("ផ្លូវ៦៣", "KH-12"),
    ],
)
def test_places_are_known_in_other_scripts_and_by_street(triage: Triage, text: str, province: str) -> None:
    assert suggested(triage, text)["province"] == {province}


def test_a_low_street_number_is_no_place(triage: Triage) -> None:
    assert "province" not in suggested(triage, "a shop on street 5")


def test_where_somebody_goes_comes_after_where_they_are(triage: Triage) -> None:
    assert suggested(triage, "the bus to Phnom Penh leaves from Battambang")["province"] == {"KH-2"}
    assert suggested(triage, "the bus goes to Phnom Penh")["province"] == {"KH-12"}


def test_a_pagoda_nearby_is_a_landmark(triage: Triage) -> None:
    assert "venue_type" not in suggested(triage, "he beats the boy near the pagoda")
    assert suggested(triage, "the monk beats the boy at the pagoda")["venue_type"] == {"other"}


def test_the_poster_knows_the_kind_of_place(triage: Triage) -> None:
    found = assess(triage, "the owner beats the girl here", context={"venue_type": "karaoke"})

    assert found.venue_type == "karaoke"


# What is only inferred


def test_a_man_and_a_child_and_a_report_are_doubted_harm(triage: Triage) -> None:
    facts = {fact.name: fact for fact in suggest("a man always waits for the little girl", triage.lexicon).facts}

    assert facts["harm_unspecified"].hedged


def test_what_is_only_inferred_is_never_denied_into_a_no(triage: Triage) -> None:
    found = suggested(triage, "គេថាបើខ្ញុំមិនចេញមកជួបគេយប់នេះទេ គេនឹងបង្ហោះវីដេអូអាក្រាតខ្ញុំ ខ្ញុំអាយុ១៣")

    assert found["harm_due_today"] == {"yes"}
    assert not any(found.get(name) == {"no"} for name in NOW)


def test_the_writers_own_child_can_be_found(triage: Triage) -> None:
    assert level(triage, "he raped my daughter in June. she is 13") == "P2"
    assert "person_known" not in suggested(triage, "he raped a girl in June. she is 13")


def test_nobody_known_is_not_known(triage: Triage) -> None:
    assert suggested(triage, "i don't know his name, a driver beats the girl")["person_known"] == {"no"}


# Kinds of message


def test_a_question_with_a_concern_is_a_report(triage: Triage) -> None:
    assert level(triage, "children carry bricks at the kiln in Takeo, what is the law?") in ("P2", "P3")
    assert level(triage, "what is the legal age of consent?") == "P4"


def test_thanks_when_it_is_over_is_no_report(triage: Triage) -> None:
    text = "thank you for your help. he hurt my niece, now he is in prison and she is safe"

    assert level(triage, text) == "P4"
    assert level(triage, "thank you, but he still beats my niece tonight") in ("P1", "P2")


# Whatever is written


HOSTILE = (
    "touch her he ",
    "ក្មេង ស្រី ",
    "monday today is friday ",
    "$5 ",
    "street 136 ",
    "i'm she's ",
    "了孩子打",
    "'",
    "ក្ក",
)


@pytest.mark.parametrize("words", HOSTILE)
def test_64_kilobytes_are_judged_in_a_second(triage: Triage, words: str) -> None:
    text = (words * 65_536)[:65_536]
    started = time.process_time()

    assess(triage, text, received_at=AS_OF)

    assert time.process_time() - started < 2.0  # 10 to 400 ms; a square would take minutes


def test_positions_survive_corrected_slips(triage: Triage) -> None:
    text = "Hello! My step-fahter molestd the girl\u200b."

    for fact in suggest(text, triage.lexicon, datetime(2027, 1, 4, tzinfo=UTC)).facts:
        assert all(text[start:end].strip() for start, end in fact.spans)
    assert normalise(text).text.startswith("hello!")


# Counts and ages of several children


@pytest.mark.parametrize(
    ("text", "several"),
    [
        ("they beat the girls 15 16 in the kitchen", True),
        ("he beats a girl aged 15-16", False),
        ("i am 9 and my brother is 6, they beat us", True),
        ("i am 14, they beat me", False),
        ("គេវាយក្មេងស្រីតូចៗនៅរោងចក្រនោះ ៣ នាក់", True),
        ("ក្មេងត្រូវបុរស ៣ នាក់វាយ", False),
    ],
)
def test_several_children_are_counted(triage: Triage, text: str, several: bool) -> None:
    assert ("victims" in suggested(triage, text)) is several


def test_thirteen_or_fourteen_in_chinese_is_not_four(triage: Triage) -> None:
    assert suggested(triage, "老板打一个十三四岁的女孩")["age_min"] == {13}
    assert suggested(triage, "老板打一个四岁的女孩")["age_min"] == {4}


def test_words_inside_a_counted_time_say_nothing(triage: Triage) -> None:
    assert suggested(triage, "គាត់វាយក្មេង ៥ ខែមុន")["recency"] == {"past"}
    assert suggested(triage, "គាត់វាយក្មេង ខែមុន")["recency"] == {"recent"}


# What is only asked, and what is only a sample


@pytest.mark.parametrize(
    "text",
    ["Where may we bring school books for an orphanage?", "How does your line work for children?"],
)
def test_a_text_that_tells_of_nobody_and_asks_is_a_question(triage: Triage, text: str) -> None:
    assert level(triage, text) == "P4"


@pytest.mark.parametrize(
    "text",
    [
        "Hello? ... a child I think ... the line ... I call again",
        "hello? a child",
        "a man waits for the boy there, what is he doing?",
        "why does nobody help the child?",
    ],
)
def test_a_question_mark_does_not_make_a_question_of_an_account(triage: Triage, text: str) -> None:
    assert level(triage, text) != "P4"


def test_a_declared_test_is_no_danger_and_an_undeclared_one_is(triage: Triage) -> None:
    alarm = "a child is locked in a room now"

    assert level(triage, f"TEST of the system, please ignore: {alarm}") == "P4"
    assert level(triage, alarm) == "P1"
    assert level(triage, f"he said it was a test, please help: {alarm}") == "P1"
    assert level(triage, f"this is not a test: {alarm}") == "P1"
    assert level(triage, f"after the english test the new staff shut the door: {alarm}") == "P1"
    assert level(triage, f"TEST, please ignore: {alarm}", reporter="self_child") == "P1"


# Places that are only named


def test_where_a_child_comes_from_does_not_beat_the_poster(triage: Triage) -> None:
    def province(text: str) -> str | None:
        return assess(triage, text, context={"placement_code_province": "Preah Sihanouk"}).province

    assert province("three girls who come from Prey Veng are beaten") == "KH-18"
    assert province("three girls are beaten in Prey Veng") == "KH-14"


def test_the_name_of_a_district_is_no_kind_of_place(triage: Triage) -> None:
    assert "venue_type" not in suggested(triage, "គេវាយក្មេងនៅស្រុកចំការលើ")
    assert suggested(triage, "គេវាយក្មេងនៅចំការ")["venue_type"] == {"other"}
