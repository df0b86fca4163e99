"""``python -m commands``: dispatch, and what a fault may print."""

import os
import re
import subprocess
import sys
import types
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import pytest

import commands.__main__ as command_line
from commands import lint, migrate
from commands import test as test_command
from service.errors import Misconfigured, StorageUnavailable

ROOT = Path(__file__).resolve().parents[2]
CANARY = "canary-child-at-4-elm-street-85512345678"


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[list[str]], int]], None]:
    """Make `main` the main function of a command called "demo"."""

    def install(main: Callable[[list[str]], int]) -> None:
        module = types.ModuleType("commands_fake")
        module.main = main  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "commands_fake", module)
        monkeypatch.setitem(command_line.COMMANDS, "demo", "commands_fake")

    monkeypatch.delenv("HOTLINE_DEBUG", raising=False)
    return install


def raising(fault: BaseException) -> Callable[[list[str]], int]:
    def main(arguments: list[str]) -> int:
        raise fault

    return main


def test_a_command_gets_its_arguments_and_gives_its_exit_code(command):
    seen = []
    command(lambda arguments: seen.append(arguments) or 7)

    assert command_line.main(["demo", "--reset", "a b"]) == 7
    assert seen == [["--reset", "a b"]]


@pytest.mark.parametrize("arguments", [[], ["no-such"], ["--help"]])
def test_wrong_use_names_the_commands(arguments, capsys):
    assert command_line.main(arguments) == 2
    assert "demo" in capsys.readouterr().err


def test_wrong_settings_are_one_clear_line(command, capsys):
    command(raising(Misconfigured("HOTLINE_TWILIO_TOKEN_FILE is not set")))

    assert command_line.main(["demo"]) == 2
    assert capsys.readouterr().err == "hotline demo: HOTLINE_TWILIO_TOKEN_FILE is not set\n"


def test_ctrl_c_is_quiet(command, capsys):
    command(raising(KeyboardInterrupt()))

    assert command_line.main(["demo"]) == 130
    assert capsys.readouterr() == ("", "")


def test_a_fault_shows_its_type_and_place_but_none_of_its_words(command, capsys):
    def main(arguments: list[str]) -> int:
        try:
            raise KeyError(CANARY)
        except KeyError as cause:
            raise RuntimeError(CANARY) from cause

    command(main)

    assert command_line.main(["demo"]) == 1
    shown = capsys.readouterr().err
    assert "RuntimeError at tests/commands/test_command_line.py:" in shown
    assert CANARY not in shown


def test_a_refusal_of_ours_shows_its_meaning_and_none_of_its_words(command, capsys):
    command(raising(StorageUnavailable(CANARY)))

    assert command_line.main(["demo"]) == 1
    shown = capsys.readouterr().err
    assert "service.errors.StorageUnavailable (The database cannot take this now.)" in shown
    assert CANARY not in shown


def test_the_words_are_there_for_who_asks(command, capsys, monkeypatch):
    """The control of the two tests above."""
    command(raising(RuntimeError(CANARY)))
    monkeypatch.setenv("HOTLINE_DEBUG", "1")

    assert command_line.main(["demo"]) == 1
    assert CANARY in capsys.readouterr().err


def run_with_fault(tmp_path: Path, body: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the real ``python -m commands demo`` with a demo that does `body`."""
    (tmp_path / "fake_demo.py").write_text(f"import threading\nCANARY = {CANARY!r}\ndef main(arguments):\n{body}\n")
    start = (
        "import runpy, sys, commands; sys.modules['commands.demo'] = __import__('fake_demo');"
        "sys.argv = ['commands', 'demo']; runpy.run_module('commands', run_name='__main__', alter_sys=True)"
    )
    clean = {name: value for name, value in os.environ.items() if name != "HOTLINE_DEBUG"}
    clean["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(tmp_path)])
    return subprocess.run([sys.executable, "-c", start], capture_output=True, text=True, env=clean | environment)


def test_a_fault_in_a_thread_or_a_destructor_keeps_its_words_too(tmp_path):
    body = """
    class Gone:
        def __del__(self): raise ValueError(CANARY)
    def fail(): raise OSError(CANARY)
    Gone()
    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    return 0
    """
    kept, shown = run_with_fault(tmp_path, body), run_with_fault(tmp_path, body, HOTLINE_DEBUG="1")

    assert kept.returncode == 0
    assert "ValueError" in kept.stderr
    assert "OSError" in kept.stderr
    assert CANARY not in kept.stdout + kept.stderr
    assert shown.stderr.count(CANARY) >= 2


def test_a_reader_that_goes_away_is_no_fault(tmp_path):
    program = "from commands.__main__ import main, COMMANDS; import sys, types\n"
    program += "module = types.ModuleType('loud'); module.main = lambda a: print('x' * 10_000_000) or 0\n"
    program += "sys.modules['loud'] = module; COMMANDS['demo'] = 'loud'; sys.exit(main(['demo']))"
    read, write = os.pipe()
    os.close(read)
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)

    assert (result.returncode, result.stderr) == (141, "")


def test_a_pipe_that_breaks_elsewhere_is_a_fault(command, capfd):
    command(raising(BrokenPipeError(CANARY)))

    assert command_line.main(["demo"]) == 1
    assert "BrokenPipeError" in capfd.readouterr().err


def test_the_script_and_the_package_know_the_same_commands():
    loader = SourceFileLoader("hotline_script", str(ROOT / "hotline"))
    spec = spec_from_loader("hotline_script", loader)
    assert spec is not None
    script = module_from_spec(spec)
    loader.exec_module(script)

    assert list(script.COMMANDS) == list(command_line.COMMANDS)
    assert set(script.NEED_DEV) <= set(script.COMMANDS)


@pytest.mark.parametrize("name", command_line.COMMANDS)
def test_every_command_has_a_module(name):
    assert (ROOT / (command_line.COMMANDS[name].replace(".", "/") + ".py")).is_file()


@pytest.mark.parametrize(("given", "passed"), [([], test_command.ALL), (["-k", "sms", "-x"], ["-k", "sms", "-x"])])
def test_the_tests_start_with_what_was_asked(given, passed, monkeypatch):
    started = []
    monkeypatch.setattr(os, "execv", lambda path, arguments: started.append((path, arguments)))

    test_command.main(given)

    assert started == [(sys.executable, [sys.executable, "-m", "pytest", *passed])]


def test_the_tests_without_pytest_say_how_to_start_them(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    with pytest.raises(Misconfigured, match=r"\./hotline test"):
        test_command.main([])


def test_lint_runs_every_check_and_names_the_failed(monkeypatch, capfd):
    checks = {name: [sys.executable, "-c", code] for name, code in CHECKS}
    monkeypatch.setattr(lint, "CHECKS", checks)

    assert lint.main([]) == 1
    shown = capfd.readouterr().out
    assert "third ran" in shown
    assert shown.endswith("lint: 2 of 3 checks passed; failed: second\n")


def test_lint_passes_when_all_pass(monkeypatch, capfd):
    monkeypatch.setattr(lint, "CHECKS", {"first": [sys.executable, "-c", ""]})

    assert lint.main([]) == 0
    assert capfd.readouterr().out.endswith("lint: 1 of 1 checks passed\n")


CHECKS = [("first", ""), ("second", "raise SystemExit(3)"), ("third", "print('third ran')")]


def test_migrate_says_where_the_database_is(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOTLINE_DATABASE_URL", f"sqlite:///{tmp_path}/hotline.db")
    monkeypatch.delenv("HOTLINE_SETTINGS", raising=False)

    assert [migrate.main([]), migrate.main([])] == [0, 0]

    first, second = capsys.readouterr().out.splitlines()
    assert first == second
    assert first.startswith("database is at ")
    assert (tmp_path / "hotline.db").exists()


def test_migrate_reads_the_settings_file(tmp_path, monkeypatch):
    settings = tmp_path / "hotline.env"
    settings.write_text(f"HOTLINE_DATABASE_URL=sqlite:///{tmp_path}/other.db\n")
    monkeypatch.delenv("HOTLINE_DATABASE_URL", raising=False)
    monkeypatch.setenv("HOTLINE_SETTINGS", str(settings))

    assert migrate.main([]) == 0
    assert (tmp_path / "other.db").exists()


def test_a_settings_file_that_is_not_there_is_refused(tmp_path, monkeypatch):
    """Else the default database would be migrated instead, without a word."""
    monkeypatch.setenv("HOTLINE_SETTINGS", str(tmp_path / "gone.env"))

    with pytest.raises(Misconfigured, match="HOTLINE_SETTINGS"):
        migrate.main([])


@pytest.mark.parametrize("page", ["README.md", "CHANGELOG.md", "docs/adr/0001.md", "docs/adr/0002.md"])
def test_the_pages_name_only_commands_that_exist(page):
    named = re.findall(r"\./hotline ([a-z]+)", (ROOT / page).read_text())

    assert set(named) <= set(command_line.COMMANDS)
    assert page != "README.md" or {"demo", "test", "simulate"} <= set(named)
