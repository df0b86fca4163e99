"""Characters that hide or turn words are written out."""

import unicodedata

import pytest

from dashboards.marks import visible


@pytest.mark.parametrize("category", ["Cc", "Cf"])
def test_no_control_and_no_format_character_stays_hidden(category: str) -> None:
    signs = [chr(n) for n in range(0x110000) if unicodedata.category(chr(n)) == category and chr(n) not in "\n\t\r"]

    shown = visible("a".join(signs))

    assert not [sign for sign in signs if sign in shown]
    assert shown.count("⟦U+") == len(signs)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\u202eb", "a⟦U+202E⟧b"),
        ("\u2066x\u2069", "⟦U+2066⟧x⟦U+2069⟧"),
        ("a\x00b\x7f", "a⟦U+0000⟧b⟦U+007F⟧"),
        ("\U000e0041", "⟦U+E0041⟧"),
        ("line\r\nline\rline\n", "line\nline\nline\n"),
        ("a\tb", "a\tb"),
        ("x\u2028y\u3164z", "x⟦U+2028⟧y⟦U+3164⟧z"),
        ("ខ្ញុំ\u200bឃើញ", "ខ្ញុំ\u200bឃើញ"),
        ("ខ្ញុំ\u200b\u200bឃើញ", "ខ្ញុំ⟦U+200B⟧⟦U+200B⟧ឃើញ"),
        ("\u200bឃើញ\u200b", "⟦U+200B⟧ឃើញ⟦U+200B⟧"),
        ("pay\u200bment", "pay⟦U+200B⟧ment"),
        ("", ""),
    ],
)
def test_marks_are_written_out_and_ordinary_spelling_stays(text: str, shown: str) -> None:
    assert visible(text) == shown
