"""``./hotline rules check``: in order, or what is wrong and where."""

import shutil
from pathlib import Path

import pytest

from commands import rules
from service.config import Settings
from service.errors import Misconfigured

IN_FORCE = Settings.model_fields["ruleset_file"].default
LEXICON = Settings.model_fields["lexicon_dir"].default


@pytest.fixture
def ruleset(tmp_path: Path) -> Path:
    """A copy of the ruleset in force with its examples, to break."""
    for file in IN_FORCE.parent.glob(f"{IN_FORCE.stem}.*"):
        shutil.copy(file, tmp_path)
    return tmp_path / str(IN_FORCE.name)


def changed(file: Path, old: str, new: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_the_rules_in_force_are_in_order_and_count_what_waits(capsys: pytest.CaptureFixture[str]) -> None:
    assert rules.main(["check"]) == 0

    shown = capsys.readouterr()
    assert shown.err == ""
    assert shown.out.endswith("in order\n")
    waiting = [line.split() for line in shown.out.splitlines() if " of " in line]
    assert [" ".join(words[:-3]) for words in waiting] == [
        "reasons of rules",
        "questions",
        "concepts with Khmer words",
        "Khmer words",
    ]
    assert all(0 < int(words[-3]) <= int(words[-1]) for words in waiting)


def test_a_reason_that_was_signed_off_no_longer_waits(ruleset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rules.main(["check", str(ruleset)])
    before = capsys.readouterr().out
    changed(ruleset, 'en: "A child is in danger now",', 'reviewed: Sok Dara, en: "A child is in danger now",')
    rules.main(["check", str(ruleset)])

    def waiting(out: str) -> int:
        return int(next(line for line in out.splitlines() if "reasons" in line).split()[-3])

    assert waiting(capsys.readouterr().out) == waiting(before) - 1


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("R001: {level: P1, hit:", "R001: {level: P2, hit:", "R001: its example reaches P1"),
        ('R009: {level: P1, hit: {confined_now: "yes"}', 'R009: {level: P1, hit: {confined_now: "no"}', "hit is miss"),
        ('miss: {danger_now: "no"}', 'miss: {danger_now: "yes"}', "R001: the example of miss is hit"),
        ("R006: {level", "R999: {level", "R006: no example"),
        ("R006: {level", "R999: {level", "R999: an example of no rule"),
    ],
)
def test_an_example_that_does_not_hold_is_a_fault(
    ruleset: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, fault: str
) -> None:
    changed(ruleset.with_suffix(".examples.yaml"), old, new)

    assert rules.main(["check", str(ruleset)]) == 1
    assert fault in capsys.readouterr().err


def test_a_rule_that_cannot_fire_is_a_fault(ruleset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    never = "{all: [{term: child}, {fact: live_stream_now, is: yes}, {fact: live_stream_now, is: no}]}"
    changed(ruleset, "{all: [{term: child}, {fact: live_stream_now, is: yes}]}", never)

    assert rules.main(["check", str(ruleset)]) == 1
    assert "R006: the example of hit is miss" in capsys.readouterr().err


def test_a_reason_in_the_wrong_language_is_a_fault(ruleset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed(ruleset, "កុមារកំពុងមានគ្រោះថ្នាក់ឥឡូវនេះ", "A child is in danger")

    assert rules.main(["check", str(ruleset)]) == 1
    assert "R001: a reason in the wrong language" in capsys.readouterr().err


def test_a_lexicon_whose_examples_do_not_hold_is_a_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(shutil.copytree(LEXICON, tmp_path / "lexicon"))
    changed(folder / "harm.yaml", "her stepfather molests the girl", "her stepfather likes the girl")

    assert rules.main(["check", "--lexicon", str(folder)]) == 1
    assert "concept sexual_contact: an example of hit does not hold" in capsys.readouterr().err


@pytest.mark.parametrize("broken", ["rules: {}\n", "colour: red\n", "- a\n"])
def test_a_file_that_is_no_ruleset_is_refused(broken: str, tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text(broken, encoding="utf-8")

    with pytest.raises(Misconfigured):
        rules.main(["check", str(file)])


def test_a_ruleset_without_examples_is_refused(ruleset: Path) -> None:
    ruleset.with_suffix(".examples.yaml").unlink()

    with pytest.raises(Misconfigured, match=r"examples\.yaml"):
        rules.main(["check", str(ruleset)])


def test_help_says_what_is_checked(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        rules.main(["check", "--help"])

    shown = capsys.readouterr().out
    assert end.value.code == 0
    assert "examples" in shown
    assert "exit code" in shown
