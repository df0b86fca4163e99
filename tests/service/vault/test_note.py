"""Signed notes: strict parsing, and no text without a good signature of a key asked for."""

import base64

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import BadNote
from service.vault import boxes
from service.vault.note import open_note, parse_vkey, sign_note, signature_line, split_note, vkey

SEED = b"\x21" * 32
PUBLIC = boxes.signing_public_of(SEED)
NAME = "notes.example/one"
VERIFIER = parse_vkey(vkey(NAME, PUBLIC))
OTHER_SEED = b"\x22" * 32
OTHER = parse_vkey(vkey("notes.example/two", boxes.signing_public_of(OTHER_SEED)))
TEXT = "first line\nsecond line\n"
NOTE = sign_note(TEXT, NAME, SEED)


def line_of(note: str) -> str:
    return note.rpartition("\n\n")[2]


def refused(note: str | bytes) -> None:
    with pytest.raises(BadNote):
        open_note(note, [VERIFIER])


def test_the_published_note_is_good_once_and_refused_after_any_flip(vectors):
    note = (vectors / "signed-note" / "note.txt").read_bytes()
    verifier = parse_vkey((vectors / "signed-note" / "vkey.txt").read_text().strip())
    assert open_note(note, [verifier]) == ("This is an example message.\n", ["example.com/foo"])
    for at in range(len(note)):
        for bit in range(8):
            changed = note[:at] + bytes([note[at] ^ 1 << bit]) + note[at + 1 :]
            with pytest.raises(BadNote):
                open_note(changed, [verifier])


def test_our_note_is_good_once_and_refused_after_any_flip():
    assert open_note(NOTE, [VERIFIER]) == (TEXT, [NAME])
    note = NOTE.encode()
    for at in range(len(note)):
        refused(note[:at] + bytes([note[at] ^ 1 << at % 8]) + note[at + 1 :])
        refused(note[:at])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"])), min_size=1, max_size=5))
def test_every_text_of_lines_comes_back(lines):
    text = "\n".join([*lines, "end", ""])
    assert open_note(sign_note(text, NAME, SEED), [VERIFIER])[0] == text


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.binary(max_size=200), st.text(max_size=200)))
def test_nothing_else_than_a_note_is_taken(anything):
    refused(anything)


def test_lines_of_unknown_keys_are_ignored_wherever_they_stand():
    stranger = line_of(sign_note(TEXT, "stranger.example", b"\x23" * 32))
    same_name = line_of(sign_note(TEXT, NAME, b"\x24" * 32))
    for note in (f"{NOTE}{stranger}", f"{TEXT}\n{stranger}{same_name}{line_of(NOTE)}"):
        assert open_note(note, [VERIFIER, OTHER]) == (TEXT, [NAME])
    refused(f"{TEXT}\n{stranger}{same_name}")


def test_a_bad_signature_of_a_known_key_refuses_the_note_even_beside_a_good_one():
    bad = signature_line(NAME, PUBLIC, bytes(64))
    also = line_of(sign_note(TEXT, OTHER.name, OTHER_SEED))
    for lines in (bad, f"{also}{bad}", f"{bad}{also}", f"{line_of(NOTE)}{bad}"):
        with pytest.raises(BadNote, match="wrong"):
            open_note(f"{TEXT}\n{lines}", [VERIFIER, OTHER])


def test_a_key_counts_once():
    both = f"{NOTE}{line_of(NOTE)}{line_of(sign_note(TEXT, OTHER.name, OTHER_SEED))}"
    assert open_note(both, [OTHER, VERIFIER]) == (TEXT, [NAME, OTHER.name])


def test_a_signature_of_another_text_is_refused():
    refused(f"another text\n\n{line_of(NOTE)}")


@pytest.mark.parametrize(
    "note",
    [
        "",
        "\n",
        TEXT,
        NOTE[:-1],
        NOTE + "\n",
        NOTE.replace("\n\n", "\n"),
        NOTE.replace("\n", "\r\n"),
        NOTE.replace("first", "fi\x07rst"),
        NOTE.replace("first", "fi\trst"),
        NOTE.replace("— ", "- "),
        NOTE.replace("— ", "—"),
        NOTE.replace(f"{NAME} ", f"{NAME}  "),
        NOTE.replace(f"{NAME} ", f"{NAME}\u00a0"),
        NOTE.replace(f"{NAME} ", ""),
        NOTE.replace("=\n", "\n"),
        NOTE.rstrip("\n") + " \n",
        "\n\n" + line_of(NOTE),
        NOTE + "junk\n",
        NOTE + "— x.example AAAAAA==\n",
        NOTE + "— x.example AAAAAAE=\u0301\n",
        NOTE.replace("first", "\ud800"),
        NOTE.encode().replace(b"first", b"\xff\xfe"),
    ],
)
def test_a_malformed_note_is_refused(note):
    refused(note)


def test_base64_has_one_spelling():
    encoded = line_of(NOTE).rstrip("\n").rpartition(" ")[2]
    assert encoded.endswith("=")
    last = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/".index(encoded[-2])
    spelled = encoded[:-2] + "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"[last ^ 1] + "="
    assert base64.b64decode(spelled) == base64.b64decode(encoded)
    refused(NOTE.replace(encoded, spelled))


def test_sixteen_signatures_are_taken_and_no_more():
    strangers = [line_of(sign_note(TEXT, f"w{n}.example", bytes([n]) * 32)) for n in range(1, 17)]
    assert open_note(NOTE + "".join(strangers[:15]), [VERIFIER])[1] == [NAME]
    refused(NOTE + "".join(strangers))


def test_a_note_of_more_than_64_kib_is_neither_signed_nor_read():
    room = 65536 - len(sign_note("x\n", NAME, SEED).encode())
    assert open_note(sign_note("x" * room + "x\n", NAME, SEED), [VERIFIER])[1] == [NAME]
    with pytest.raises(BadNote):
        sign_note("x" * room + "xx\n", NAME, SEED)
    long = "x" * room + "xx\n"
    refused(f"{long}\n{signature_line(NAME, PUBLIC, boxes.sign(SEED, long.encode()))}")


@pytest.mark.parametrize("text", ["", "\n", "no newline", "bell\x07\n", "\ud800\n"])
def test_a_text_that_no_reader_takes_is_not_signed(text):
    with pytest.raises(BadNote):
        sign_note(text, NAME, SEED)


@pytest.mark.parametrize("name", ["", "a b", "a+b", "a\u2003b", "a\nb", "a\x00b", "\ud800"])
def test_a_name_that_no_reader_takes_signs_nothing(name):
    with pytest.raises(BadNote):
        sign_note(TEXT, name, SEED)
    with pytest.raises(BadNote):
        vkey(name, PUBLIC)


def test_a_verifier_key_is_read_back_from_its_own_text_only():
    assert (VERIFIER.name, VERIFIER.kind, VERIFIER.public) == (NAME, 1, PUBLIC)
    assert parse_vkey(vkey(NAME, PUBLIC, 4)).kind == 4
    text = vkey(NAME, PUBLIC)
    for at in range(len(text)):
        with pytest.raises(BadNote):
            parse_vkey(text[:at] + chr(ord(text[at]) ^ 1 << at % 7) + text[at + 1 :])
    for wrong in ("", NAME, text.upper(), text + "\n", text + "A", f"{NAME}+{text}", vkey(NAME, PUBLIC) + "=="):
        with pytest.raises(BadNote):
            parse_vkey(wrong)


@pytest.mark.parametrize("public", [bytes(32), b"\x01" + bytes(31), b"\xff" * 32, PUBLIC[:31], PUBLIC + b"\0", b""])
def test_a_key_that_must_not_be_trusted_is_refused_when_it_is_configured(public):
    with pytest.raises(BadNote):
        vkey(NAME, public)


def test_a_key_of_an_unknown_kind_is_refused():
    with pytest.raises(BadNote, match="kind"):
        vkey(NAME, PUBLIC, 2)


def test_cosigners_and_doubled_verifiers_are_a_mistake_of_the_caller():
    for verifiers in ([parse_vkey(vkey(NAME, PUBLIC, 4))], [VERIFIER, VERIFIER]):
        with pytest.raises(ValueError, match="verifiers"):
            open_note(NOTE, verifiers)


def test_a_note_splits_into_text_and_lines_before_any_check():
    text, lines = split_note(f"a\n\nb\n\n{line_of(NOTE)}")
    assert text == "a\n\nb\n"
    assert [(line.name, line.key_id, len(line.signature)) for line in lines] == [(NAME, VERIFIER.key_id, 64)]
