"""``./hotline bench``: it lists, and it runs. No figure is looked at: a benchmark is never a timed test."""

import pytest

from commands import bench


def test_help_lists_the_benchmarks(capsys):
    with pytest.raises(SystemExit) as end:
        bench.main(["--help"])

    shown = capsys.readouterr().out
    assert end.value.code == 0
    assert all(f"\n  {name} " in shown for name in ("intake", "queue"))


@pytest.mark.parametrize("name", bench.BENCHMARKS)
def test_each_benchmark_explains_its_options(name, capsys):
    with pytest.raises(SystemExit) as end:
        bench.main([name, "--help"])

    assert end.value.code == 0
    assert "--smoke" in capsys.readouterr().out


def test_the_queue_is_measured_and_nothing_in_it_is_wrong(tmp_path, capsys):
    """It returns 1 if a page or a count differs or a case was claimed twice."""
    assert bench.main(["queue", "--smoke", "--only", "sqlite", "--folder", str(tmp_path)]) == 0

    shown = capsys.readouterr().out
    assert "the figures mean nothing" in shown
    assert shown.index("claims / raw commits") > shown.index("Goals")
    assert list(tmp_path.iterdir()) == []


def test_the_ledger_is_measured_and_nothing_in_it_is_wrong(tmp_path, capsys):
    """It returns 1 if a tile or the history does not fit."""
    assert bench.main(["ledger", "--smoke", "--only", "sqlite", "--folder", str(tmp_path)]) == 0

    shown = capsys.readouterr().out
    assert "the figures mean nothing" in shown
    assert "inclusion proof" in shown
    assert list(tmp_path.iterdir()) == []
