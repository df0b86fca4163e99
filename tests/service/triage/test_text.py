"""The matching copy: one spelling for what looks the same, with a way back to the original positions."""

import random
import time
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.triage import detect_language, normalise
from service.triage.text import replaced_at

KHMER = "ក្មេងស្រីអាយុ១២ឆ្នាំ ធ្វើការនៅខារ៉ាអូខេ ប៉ូលិសស៊ីលុយ"
INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff\u00ad\u17b4\u17b5"

khmer_text = st.text(st.sampled_from("កខដណតថទនបរលសអឣឤឲ្ិីុូួើេែៃោៅំះ៉៊័៌ៗ។១២ \u200b\u200c\u17dd"), max_size=40)
any_text = st.one_of(
    st.text(max_size=60), khmer_text, st.text(st.sampled_from("AaBb ﬁßŒ１2é\u0301\u0327ＡＢ①ₐ"), max_size=20)
)


@settings(max_examples=100)
@given(any_text)
def test_normalising_twice_changes_nothing_more(text: str) -> None:
    once = normalise(text).text

    assert normalise(once).text == once


@settings(max_examples=100)
@given(any_text, st.data())
def test_every_part_of_the_copy_points_into_the_original(text: str, data: st.DataObject) -> None:
    normal = normalise(text)
    assert normal.original_length == len(text)
    if normal.text:
        start = data.draw(st.integers(0, len(normal.text) - 1))
        end = data.draw(st.integers(start + 1, len(normal.text)))
        first, last = normal.original(start, end)
        assert 0 <= first < last <= len(text)


@pytest.mark.parametrize("invisible", INVISIBLE)
def test_invisible_characters_change_nothing(invisible: str) -> None:
    scattered = invisible.join(KHMER)

    assert normalise(scattered).text == normalise(KHMER).text
    assert normalise(invisible.join("Hotel")).text == "hotel"


def test_reordered_marks_change_nothing() -> None:
    assert normalise("ខុ្ញំ").text == normalise("ខ្ញំុ").text == normalise("ខ្ញុំ").text
    assert normalise("បូ៉លិស").text == normalise("ប៉ូលិស").text
    shuffler = random.Random(4)
    for _ in range(50):
        marks = ["្រ", "៊", "ី", "ំ"]
        shuffler.shuffle(marks)
        assert normalise("ស" + "".join(marks)).text == "ស្រ៊ីំ"


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("ធេី", "ធើ"),
        ("កេា", "កោ"),
        ("ប្ដី", "ប្តី"),
        ("ឣ", "អ"),
        ("ឤ", "អា"),
        ("ឲ្យ", "ឱ្យ"),
        ("ក្មេងៗ", "ក្មេង"),
        ("កិិ", "កិ"),
        ("ក្រ្ត", "ក្ត្រ"),
        ("១២", "12"),
        ("๑๒", "12"),
        ("ＡＢＣ１２", "abc12"),
        ("HELP", "help"),
        ("heeeelp", "heelp"),
        ("don’t", "don't"),
        ("a\u00a0\u00a0b", "a b"),
        ("Straße", "strasse"),
        ("e\u0301", "é"),
    ],
)
def test_what_looks_the_same_becomes_the_same(typed: str, meant: str) -> None:
    assert normalise(typed).text == meant


def test_positions_lead_back_to_what_was_typed() -> None:
    typed = "\u200bខុ្ញំ \u200bអាយុ១៣ឆ្នាំ"
    normal = normalise(typed)
    start = normal.text.index("អាយុ")

    first, last = normal.original(start, start + len("អាយុ"))

    assert typed[first:last] == "អាយុ"


def test_replaced_words_point_to_what_was_typed() -> None:
    normal = replaced_at(normalise("My Dauther cries"), {(3, 10): "daughter"})

    assert normal.text == "my daughter cries"
    assert normal.original(3, 11) == (3, 10)
    assert normal.original(12, 17) == (11, 16)


@pytest.mark.parametrize(
    "hostile",
    [
        "ក" + "្" * 10_000,
        "ក" + "ាិី្រ" * 2_000,
        "a" + "\u0315\u0300" * 5_000,
        "a" * 10_000,
        "\u1100\u1161\u11a8" * 3_333,
        "\ud800" * 10_000,
    ],
)
def test_hostile_text_takes_linear_time(hostile: str) -> None:
    started = time.process_time()
    normalise(hostile)

    assert time.process_time() - started < 0.5  # 3 to 20 ms; a square would take seconds


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("សូមជួយក្មេងផង", "km"),
        ("Girls 4 នាក់ under 17 ថៅកែ pays police ស្រុក", "km"),
        ("kmeng srey touch nov phteah thaoke trov ke veay", "km"),
        ("the girl is in the hotel with him", "en"),
        ("Bonjour, il y a une fille dans un hôtel", "fr"),
        ("Ich sitze im Bus und da ist ein Mann", "de"),
        ("con bi nhot trong quan karaoke", "vi"),
        ("Ở khu nhà nổi có trẻ em", "vi"),
        ("宿舍三楼关着一个女孩", "zh"),
        ("아이들은 잘 지내고 있습니다", "ko"),
        ("เรื่องนานแล้วนะคะ", "th"),
        ("мне пятнадцать лет", "ru"),
        ("", "und"),
        ("123 !!!", "und"),
        ("🙏🙏🙏", "und"),
    ],
)
def test_the_language_is_told_by_script_and_words(text: str, language: str) -> None:
    assert detect_language(text) == language


@settings(max_examples=50)
@given(any_text)
def test_any_text_has_a_language(text: str) -> None:
    assert detect_language(text) in {"km", "en", "fr", "zh", "ko", "vi", "th", "ru", "de", "und"}


def test_the_copy_is_composed() -> None:
    assert unicodedata.is_normalized("NFC", normalise("Việt e\u0323\u0302").text)
