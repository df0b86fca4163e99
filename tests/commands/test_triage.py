"""``./hotline triage``: one prediction a line, in order, whatever stands in between."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from commands import triage
from service.errors import Misconfigured

LOCKED = {"id": "A", "text": "a girl is locked in a room in Kampot", "context": {}}
CANARY = "Canarina"


def written(folder: Path, *lines: Any) -> str:
    path = folder / "tips.jsonl"
    text = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
    path.write_text("\n".join(text) + "\n", encoding="utf-8")
    return str(path)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[dict[str, Any]], str]:
    code = triage.main(list(arguments))
    out, err = capsys.readouterr()
    return code, [json.loads(line) for line in out.splitlines()], err


def test_each_tip_gives_one_prediction_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    second = {"id": "B", "text": "សាកល្បង 123", "channel": "sms", "expected": {"priority": "P1"}}
    code, predictions, err = run(capsys, written(tmp_path, LOCKED, second))

    assert (code, err) == (0, "")
    assert [row["id"] for row in predictions] == ["A", "B"]
    assert list(predictions[0]) == ["id", "priority", "flags", "province", "venue_type", "reasons"]
    assert predictions[0]["priority"] == "P1"
    assert predictions[0]["province"] == "Kampot"
    assert predictions[0]["flags"] == ["immediate_danger", "confinement"]
    assert predictions[0]["reasons"][0] == "R009: A child is locked in or guarded now"
    assert (predictions[1]["priority"], predictions[1]["province"], predictions[1]["venue_type"]) == ("P4", None, None)


def test_the_context_counts_and_expectations_do_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    context = {
        "reporter": "self_child",
        "placement_code_province": "Preah Sihanouk",
        "venue_type": "beach",
        "form": "child_residential",
    }
    tip = {"id": "A", "text": "…", "context": context, "expected": {"priority": "P4"}}
    _, [row], _ = run(capsys, written(tmp_path, tip))

    assert (row["priority"], row["province"], row["venue_type"]) == ("P2", "Preah Sihanouk", "beach")
    assert "child_self_report" in row["flags"]


def test_no_line_changes_how_another_is_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quiet = {"id": "B", "text": "…"}
    _, alone, _ = run(capsys, written(tmp_path, quiet))
    _, after, _ = run(capsys, written(tmp_path, LOCKED, LOCKED, quiet))

    assert after[-1] == alone[0]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (f'{{"id": "X", "text": "{CANARY}"', "not JSON"),
        (f'["{CANARY}"]', "not a JSON object"),
        (f'{{"text": "{CANARY}"}}', "id is missing or not a string"),
        (f'{{"id": 7, "text": "{CANARY}"}}', "id is missing or not a string"),
        (f'{{"id": "{CANARY}"}}', "text is missing or not a string"),
        (f'{{"id": "X", "text": ["{CANARY}"]}}', "text is missing or not a string"),
        (f'{{"id": "X", "text": "{CANARY}", "context": "{CANARY}"}}', "context is not an object"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_a_malformed_line_is_named_by_number_and_the_rest_is_judged(
    line: str, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, predictions, err = run(capsys, written(tmp_path, "", LOCKED, line, LOCKED))

    assert code == 2
    assert [row["id"] for row in predictions] == ["A", "A"]
    assert err == f"line 3: {why}\n"
    assert CANARY not in err


def test_bytes_that_are_no_utf8_are_named_by_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "tips.jsonl"
    file.write_bytes(b'{"id": "X", "text": "\xff"}\n' + json.dumps(LOCKED).encode() + b"\n")

    code, predictions, err = run(capsys, str(file))

    assert (code, len(predictions), err) == (2, 1, "line 1: not UTF-8\n")


def test_a_strange_context_is_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tip = LOCKED | {
        "context": {"venue_type": 7, "reporter": None, "colour": "red", "placement_code_province": "Atlantis"}
    }
    code, [row], _ = run(capsys, written(tmp_path, tip))

    assert (code, row["province"]) == (0, "Kampot")


def test_an_id_with_half_a_pair_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, [row], _ = run(capsys, written(tmp_path, '{"id": "\\ud800", "text": "help"}'))

    assert row["id"] == "\ud800"


def test_a_dash_reads_standard_input(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(json.dumps(LOCKED).encode()), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", stdin)

    code, [row], _ = run(capsys, "-")

    assert (code, row["priority"]) == (0, "P1")


@pytest.mark.parametrize("name", ["missing.jsonl", "."])
def test_a_file_that_cannot_be_read_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="cannot read the file"):
        triage.main([str(tmp_path / name)])


def test_help_teaches_input_output_and_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        triage.main(["--help"])

    out = capsys.readouterr().out
    assert left.value.code == 0
    for word in ("examples:", "input", "output", "placement_code_province", "reasons", "standard error", "FILE.jsonl"):
        assert word in out


def test_wrong_use_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        triage.main([])

    assert left.value.code == 2
    assert "FILE.jsonl" in capsys.readouterr().err
