"""``./hotline rules``: check says what is wrong and where; replay shows what moves; propose asks those who approve."""

import json
import os
import shutil
from collections.abc import Iterator
from datetime import datetime, tzinfo
from pathlib import Path

import pytest

from commands import rules, serve
from service import ceremony, rulesets
from service.cases import reference
from service.config import Settings
from service.db import open_database
from service.errors import Misconfigured
from tests.builders import NOW, World, a_number, a_tip, a_world, the_case
from tests.ruling import in_force, told
from tests.service.test_intake import POLICE

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


# --- bad files (triage.md section 14, 7) ---


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("    locked: true\n", "    locked: true\n    colour: red\n", "unknown key colour"),
        ("level: P1\n", "level: P0\n", "no such level"),
        ("- id: R002", "- id: R001", "duplicate id"),
        (', km: "កុមារកំពុងមានគ្រោះថ្នាក់ឥឡូវនេះ"}', "}", "missing km"),
        ('approved_by: ["u:draft-oversight"]', 'approved_by: ["u:draft-author"]', "an author cannot approve"),
        ("kind: floor", "kind: ceiling", "kind is one of"),
        ("{fact: danger_now, is: yes}", "{fact: danger_then, is: yes}", "no such fact"),
    ],
)
def test_a_bad_file_is_refused_with_its_fault(ruleset: Path, old: str, new: str, why: str) -> None:
    changed(ruleset, old, new)

    with pytest.raises(Misconfigured, match=why):
        rules.main(["check", str(ruleset)])


# --- replay and propose ---


class Frozen(datetime):
    """The time of the tests' world."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
        """Return NOW."""
        return NOW


@pytest.fixture
def world(sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """An installation, as settings in the environment name it."""
    world = a_world(open_database(sqlite_url))
    named = ceremony.write_files(world.founding, tmp_path / "keys", twilio_token="an invented token")
    for name in [name for name in os.environ if name.startswith("HOTLINE_")]:
        monkeypatch.delenv(name)
    for name, value in {**named, "HOTLINE_DATABASE_URL": sqlite_url}.items():
        monkeypatch.setenv(name, value)
    for module in (rules, serve):
        monkeypatch.setattr(module, "datetime", Frozen)
    yield world
    world.sessions.close()


@pytest.fixture
def loosened(ruleset: Path) -> Path:
    """A next version: begging is P2, and access that goes on only P3."""
    changed(ruleset, "version: 1.0.0", "version: 1.1.0")
    changed(ruleset, '["u:draft-author"]', '["u:screener"]')
    changed(ruleset, '["u:draft-oversight"]', '["u:oversight"]')
    examples = ruleset.with_suffix(".examples.yaml")
    for name, before, after in (("R035", "P3", "P2"), ("R026", "P2", "P3")):
        changed(
            ruleset,
            f"id: {name}\n    kind: floor\n    level: {before}",
            f"id: {name}\n    kind: floor\n    level: {after}",
        )
        text = examples.read_text(encoding="utf-8")
        start = text.index(f"\n{name}:")
        examples.write_text(
            text[:start] + text[start:].replace(f"level: {before}", f"level: {after}", 1), encoding="utf-8"
        )
    return ruleset


def two_cases(world: World) -> tuple[str, str]:
    """A case that rises by `loosened` and one that falls, by the names that people use; and a walled one."""
    rising = (told("begging", "yes"),)
    falling = (told("violence", "yes"), told("suspect_access", "ongoing"))
    receipts = world.receive(
        a_tip("Please look.", sender=a_number(), stated=rising),
        a_tip("Please look.", sender=a_number(), stated=falling),
        a_tip(POLICE, sender=a_number()),
    )
    rises, falls, _walled = (reference(the_case(world, receipt.tip).id) for receipt in receipts)
    return rises, falls


def test_a_replay_is_a_table_of_moves_and_counts(
    world: World, loosened: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rises, falls = two_cases(world)

    assert rules.main(["replay", str(IN_FORCE), str(loosened)]) == 1
    shown = capsys.readouterr().out
    assert f"  {rises}  P3 -> P2  no longer R035 (P3); now R035 (P2)\n" in shown
    assert f"  {falls}  P2 -> P3  no longer R026 (P2); now R026 (P3)\n" in shown
    assert "1 rise, 1 fall, 0 stay\n1 are sealed: by oversight, when opened\n" in shown


def test_a_replay_in_which_nothing_falls_ends_well(world: World, loosened: Path) -> None:
    two_cases(world)

    assert rules.main(["replay", "current", str(IN_FORCE)]) == 0


def test_a_replay_as_json(world: World, loosened: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rises, falls = two_cases(world)

    assert rules.main(["replay", "current", str(loosened), "--json"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert [(m["case"], m["before"], m["after"], m["below_locked_floor"]) for m in data["moves"]] == [
        (rises, "P3", "P2", False),
        (falls, "P2", "P3", False),
    ]
    assert (data["rise"], data["fall"], data["same"], data["sealed"]) == (1, 1, 0, 1)


def test_what_is_proposed_can_be_replayed_by_its_hash(
    world: World, loosened: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two_cases(world)
    assert rules.main(["propose", str(loosened), "--by", "investigator"]) == 0
    shown = capsys.readouterr().out
    content_hash = shown.split("proposed: ")[1].split()[0]
    assert "u:oversight sign on the page /rules" in shown

    assert rules.main(["replay", content_hash, "current"]) == 1
    assert "1 rise, 1 fall" in capsys.readouterr().out
    with world.sessions.read() as session:
        assert [version.hash for version in rulesets.versions(session)] == [content_hash]
    assert in_force(world).version == "1.0.0", "proposed is not in force"


def test_a_hash_that_is_not_stored_is_refused(world: World) -> None:
    with pytest.raises(Misconfigured, match="not stored"):
        rules.main(["replay", "0" * 64, "current"])


def test_what_may_not_be_proposed_says_why_and_stores_nothing(
    world: World, loosened: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rules.main(["propose", str(loosened), "--by", "oversight"]) == 2
    assert "cannot be among those who approve it" in capsys.readouterr().err
    assert rules.main(["propose", str(loosened), "--by", "nobody"]) == 2
    with world.sessions.read() as session:
        assert rulesets.versions(session) == []


def test_a_file_with_faults_is_not_proposed(world: World, loosened: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed(loosened.with_suffix(".examples.yaml"), "R006: {level", "R999: {level")

    assert rules.main(["propose", str(loosened), "--by", "investigator"]) == 1
    assert "R006: no example" in capsys.readouterr().err
