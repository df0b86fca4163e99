"""`./hotline` on copied trees whose lock names one small wheel made here: no registry, no network."""

import base64
import hashlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
import zipfile
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMAND = """
import os, sys
try:
    import seedling
    version = seedling.VERSION
except ImportError:
    version = "no"
print(sys.argv[1:], os.getcwd(), sys.prefix, "seedling", version)
sys.exit(7)
"""
BASE = getattr(sys, "_base_executable", sys.executable)


def make_wheel(folder: Path, version: str) -> str:
    """Put a wheel of the package "seedling" into `folder` and return its line for a lock."""
    folder.mkdir(exist_ok=True)
    files = {
        "seedling.py": f'VERSION = "{version}"\n',
        f"seedling-{version}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: seedling\nVersion: {version}\n",
        f"seedling-{version}.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = f"seedling-{version}.dist-info/RECORD"
    lines = []
    for name, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        lines.append(f"{name},sha256={digest},{len(text)}\n")
    files[record] = "".join([*lines, f"{record},,\n"])
    path = folder / f"seedling-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(zipfile.ZipInfo(name), text)  # a fixed date: the same bytes each time
    return f"seedling=={version} \\\n    --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"


class Tree:
    """A checkout small enough to set up in seconds: the script, a command that tells where it runs, two locks."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "checkout"
        self.wheels = folder / "wheels"
        self.line = make_wheel(self.wheels, "1.0")
        (self.root / "commands").mkdir(parents=True)
        (self.root / "commands" / "__main__.py").write_text(COMMAND)
        (self.root / "requirements.lock").write_text("")
        (self.root / "requirements-dev.lock").write_text(self.line)
        shutil.copy(ROOT / "hotline", self.root / "hotline")
        self.stamp = self.root / ".venv" / "hotline.stamp"
        self.marker = self.root / ".venv" / "hotline.unfinished"

    def environment(self, **changes: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "HOTLINE_"))}
        return kept | {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.wheels), "PIP_CONFIG_FILE": os.devnull} | changes

    def start(self, *arguments: str, python: str = BASE, **changes: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [python, str(self.root / "hotline"), *arguments],
            cwd=self.root.parent,
            env=self.environment(**changes),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: str, python: str = BASE, **changes: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments, python=python, **changes)
        out, err = process.communicate(timeout=120)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree that has been set up for tests; copy it, a set-up takes seconds."""
    tree = Tree(tmp_path_factory.mktemp("ready"))
    assert tree.run("test").returncode == 7
    return tree.root.parent


@pytest.fixture
def warm(ready: Path, tmp_path: Path) -> Tree:
    """A copy of the tree that has been set up."""
    tree = Tree(tmp_path)
    shutil.copytree(ready / "checkout" / ".venv", tree.root / ".venv", symlinks=True)
    return tree


@pytest.fixture(scope="module")
def script() -> ModuleType:
    loader = SourceFileLoader("hotline_script", str(ROOT / "hotline"))
    spec = spec_from_loader("hotline_script", loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


# Help


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_help_teaches_without_setting_anything_up(tree, arguments):
    result = tree.run(*arguments)

    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.index("./hotline demo") < result.stdout.index("Commands:")
    assert not (tree.root / ".venv").exists()


@pytest.mark.parametrize(("wrong", "near"), [("tset", '"test"'), ("simulat", '"simulate"'), ("server", '"serve"')])
def test_an_unknown_command_is_answered_with_the_nearest(tree, wrong, near):
    result = tree.run(wrong)

    assert (result.returncode, result.stdout) == (2, "")
    assert f"Did you mean {near}?" in result.stderr
    assert not (tree.root / ".venv").exists()


def test_a_command_like_no_other_gets_no_guess(tree):
    assert "Did you mean" not in tree.run("zzz").stderr


def test_the_script_can_be_run(tree):
    assert (ROOT / "hotline").stat().st_mode & stat.S_IXUSR


# Set-up


def test_the_first_start_sets_up_and_the_second_does_not(tree):
    first = tree.run("test", "-k", "two words")
    shutil.rmtree(tree.wheels)
    second = tree.run("test", "--help")

    assert first.returncode == second.returncode == 7
    assert "about a minute" in first.stderr
    assert second.stderr == ""
    assert first.stdout == f"['test', '-k', 'two words'] {tree.root} {tree.root / '.venv'} seedling 1.0\n"
    assert second.stdout.startswith("['test', '--help']")


def test_the_development_tools_come_only_when_they_are_needed(tree):
    """And the development lock serves the runtime commands as well."""
    runtime = tree.run("demo")
    development = tree.run("test")
    shutil.rmtree(tree.wheels)
    again = tree.run("demo")

    assert runtime.stdout.endswith("seedling no\n")
    assert development.stdout.endswith("seedling 1.0\n")
    assert "making .venv" not in development.stderr
    assert (again.returncode, again.stderr) == (7, "")


def test_a_new_lock_is_installed(warm):
    (warm.root / "requirements-dev.lock").write_text(make_wheel(warm.wheels, "2.0"))

    assert warm.run("test").stdout.endswith("seedling 2.0\n")
    assert warm.run("test").stderr == ""


def test_a_start_needs_nothing_else_to_be_written(warm):
    """A read-only checkout that is set up works."""
    before = {path: path.stat().st_mtime_ns for path in (warm.root / ".venv").iterdir()}

    assert warm.run("test").returncode == 7
    assert {path: path.stat().st_mtime_ns for path in (warm.root / ".venv").iterdir()} == before


def test_a_package_that_is_not_the_locked_one_is_refused(tree):
    wheel = next(tree.wheels.iterdir())
    wheel.write_bytes(wheel.read_bytes() + b"\0")

    result = tree.run("test")

    assert (result.returncode, result.stdout) == (1, "")
    assert "is not the one named in requirements-dev.lock" in result.stderr
    assert not tree.stamp.exists()


def test_a_refused_package_does_not_break_what_was_complete(warm):
    """The runtime commands go on working offline after `test` could not get its tools."""
    (warm.root / "requirements-dev.lock").write_text("seedling==3.0 --hash=sha256:" + "0" * 64 + "\n")
    stamp = warm.stamp.read_text()

    refused = warm.run("test")

    assert refused.returncode == 1
    assert warm.stamp.read_text() == stamp
    assert not warm.marker.exists()
    assert warm.run("demo").stderr == ""


def test_without_the_network_it_says_what_is_needed(tree):
    (tree.root / "requirements-dev.lock").write_text("seedling==1.0 --hash=sha256:" + "0" * 64 + "\n")
    nowhere = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "1", "PIP_NO_INDEX": "0"}

    result = tree.run("test", PIP_FIND_LINKS="", **nowhere)

    assert result.returncode == 1
    assert "It needs the network once; later starts do not." in result.stderr
    assert "Traceback" not in result.stderr
    assert not tree.stamp.exists()


def test_a_killed_set_up_leaves_no_stamp_and_the_next_begins_again(tree):
    first = tree.start("demo")
    wait_for(tree.root / ".venv" / "pyvenv.cfg")
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    assert not tree.stamp.exists()
    assert tree.marker.exists()
    leftover = tree.root / ".venv" / "half"
    leftover.mkdir()

    second = tree.run("demo")

    assert second.returncode == 7
    assert tree.stamp.exists()
    assert not tree.marker.exists()
    assert not leftover.exists()


def test_an_installer_that_outlives_its_start_is_waited_for(tree):
    """Only the script is killed: the step it had started goes on, and still holds the lock."""
    first = tree.start("demo")
    wait_for(tree.root / ".venv" / "pyvenv.cfg")
    first.kill()

    second = tree.run("demo")

    first.communicate()
    assert "waiting for it" in second.stderr
    assert second.returncode == 7
    assert tree.stamp.exists()


def test_ctrl_c_stops_the_set_up_with_one_line(tree):
    first = tree.start("demo")
    wait_for(tree.root / ".venv" / "pyvenv.cfg")
    os.killpg(first.pid, signal.SIGINT)

    _, shown = first.communicate(timeout=60)

    assert first.returncode == 130
    assert "the next start begins the set-up again" in shown
    assert "Traceback" not in shown
    assert not tree.stamp.exists()


def test_two_starts_at_once_set_up_once(tree):
    first, second = tree.start("test"), tree.start("test")
    shown = [process.communicate(timeout=120)[1] for process in (first, second)]

    assert [first.returncode, second.returncode] == [7, 7]
    assert sum("making .venv" in text for text in shown) == 1


def test_an_environment_whose_python_is_gone_is_made_again(warm):
    """A system upgrade takes the interpreter away from under .venv."""
    python = warm.root / ".venv" / "bin" / "python"
    python.unlink()
    python.symlink_to("/nowhere/python3.11")

    result = warm.run("test")

    assert "making .venv" in result.stderr
    assert result.returncode == 7


def test_an_environment_made_by_hand_is_kept(warm):
    warm.stamp.unlink()
    mine = warm.root / ".venv" / "mine"
    mine.touch()

    assert warm.run("test").returncode == 7
    assert mine.exists()
    assert warm.stamp.exists()


def test_packages_from_elsewhere_are_not_used(warm, tmp_path):
    """PYTHONPATH would put unpinned code before the pinned packages."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "seedling.py").write_text("VERSION = 'elsewhere'")

    result = warm.run("test", PYTHONPATH=str(tmp_path / "elsewhere"))

    assert result.stdout.endswith("seedling 1.0\n")


def test_a_file_in_place_of_the_environment_is_named(tree):
    (tree.root / ".venv").touch()

    result = tree.run("demo")

    assert result.returncode == 1
    assert "is in the way" in result.stderr


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="needs a folder in which not even root may write")
def test_a_checkout_that_cannot_be_written_is_explained(tree):
    (tree.root / ".venv").symlink_to("/sys/kernel")

    result = tree.run("demo")

    assert result.returncode == 1
    assert "Cannot write to" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_python_without_ensurepip_names_the_package_to_install(tree):
    stub = (
        "import runpy, sys; sys.modules['ensurepip'] = None; sys.argv = [sys.argv[1], 'demo'];"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    result = subprocess.run(
        [BASE, "-c", stub, str(tree.root / "hotline")], capture_output=True, text=True, env=tree.environment()
    )

    assert result.returncode == 1
    assert "apt-get install python3-venv" in result.stderr
    assert "Traceback" not in result.stderr
    assert not tree.stamp.exists()


# Old Pythons


def old_python(version: str) -> str:
    """Return a real interpreter of that version, from PATH or from behind pyenv's shim of that name."""
    found = shutil.which(f"python{version}")
    if found:
        behind = sorted(Path(found).parents[1].glob(f"versions/{version}.*/bin/python"))
        for candidate in (found, *map(str, behind)):
            answer = subprocess.run(
                [candidate, "-c", "import sys; print(sys.executable)"], capture_output=True, text=True
            )
            if answer.returncode == 0:
                return answer.stdout.strip()
    pytest.skip(f"python{version} is not installed here")


@pytest.mark.parametrize("version", ["3.8", "3.9", "3.10"])
def test_an_old_python_says_what_to_install(tree, version):
    result = tree.run("demo", python=old_python(version), PATH="/nowhere")

    assert (result.returncode, result.stdout) == (1, "")
    assert f"this is {version}." in result.stderr
    assert "apt-get install python3" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tree.root / ".venv").exists()


@pytest.mark.parametrize("version", ["3.10"])
def test_an_old_python_hands_over_to_a_newer_one(tree, version, tmp_path):
    """A name on PATH that does not run is passed over."""
    stubs = tmp_path / "bin"
    stubs.mkdir()
    (stubs / "python3.13").write_text("#!/bin/sh\nexit 127\n")
    (stubs / "python3.13").chmod(0o755)
    (stubs / "python3.12").symlink_to(BASE)

    result = tree.run("demo", python=old_python(version), PATH=str(stubs))

    assert result.returncode == 7
    assert "making .venv with Python " + sys.version.split()[0] in result.stderr


@pytest.mark.parametrize("version", ["3.8", "3.10"])
def test_an_old_python_shows_help_and_starts_what_is_set_up(warm, version):
    python = old_python(version)

    assert "./hotline demo" in warm.run("--help", python=python, PATH="/nowhere").stdout
    assert warm.run("test", python=python, PATH="/nowhere").returncode == 7


# What to do about it


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "DISK_FULL"),
        ("OSError: [Errno 122] Disk quota exceeded: 'x'", "DISK_FULL"),
        ("WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError'", "NO_NETWORK"),
        ("Could not fetch URL: There was a problem confirming the ssl certificate", "NO_NETWORK"),
        ("[Errno -3] Temporary failure in name resolution", "NO_NETWORK"),
        ("ReadTimeoutError: Read timed out.", "NO_NETWORK"),
        ("WARNING: Retrying (x)\nERROR: No matching distribution found for seedling==1", "NO_NETWORK"),
        ("ERROR: No matching distribution found for seedling==1", "NO_WHEEL"),
        ("WARNING: Retrying (x)\nERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS", "WRONG_HASH"),
        ("OSError: [Errno 30] Read-only file system: 'x'", "READ_ONLY"),
        ("something else", "FAILED"),
    ],
)
def test_what_a_step_printed_decides_the_advice(script, monkeypatch, tmp_path, output, reason):
    monkeypatch.setattr(script, "VENV", str(tmp_path))

    assert script.diagnose(output) == getattr(script, reason)


def test_a_full_disk_is_seen_even_if_the_step_kept_it_to_itself(script, monkeypatch, tmp_path):
    monkeypatch.setattr(script, "VENV", str(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(100, 99, 1))

    assert script.diagnose("ensurepip returned non-zero exit status 1") == script.DISK_FULL


@pytest.mark.parametrize(
    ("number", "words"),
    [(28, "The disk is full"), (122, "The disk is full"), (30, "Cannot write"), (13, "Cannot write")],
)
def test_an_error_of_the_system_is_explained(script, number, words):
    assert script.explain_os(OSError(number, "x")).startswith(words)


def test_every_advice_can_be_filled_in(script):
    for name in ("DISK_FULL", "READ_ONLY", "NO_NETWORK", "WRONG_HASH", "NO_WHEEL", "FAILED"):
        text = script.explain(getattr(script, name), "first\nlast {line}", "requirements.lock")
        assert text.endswith("| last {line}")


# The locks


def test_the_development_lock_holds_the_runtime_lock(script):
    """One stamp for both rests on this."""
    runtime, development = (pins(ROOT / name) for name in (script.RUNTIME, script.DEV))

    assert runtime
    assert runtime.items() <= development.items()


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-dev.lock"])
def test_the_locks_name_no_address_and_pin_every_line(name):
    text = (ROOT / name).read_text()

    assert "://" not in text
    assert "--index-url" not in text
    for entry in text.replace("\\\n", " ").strip().splitlines():
        assert "==" in entry
        assert "--hash=sha256:" in entry


def pins(lock: Path) -> dict[str, str]:
    lines = [line.split(" ")[0].split("==") for line in lock.read_text().splitlines() if "==" in line.split(" ;")[0]]
    return dict(lines)


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.01)
