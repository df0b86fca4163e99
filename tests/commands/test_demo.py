"""`./hotline demo`: its folder, and what can stand in its way. The set-up itself takes no time here."""

import errno
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from commands import demo, demo_cast, demo_setup, demo_witnesses
from commands.demo import Ports
from commands.demo_folder import KEYS, WITNESSES, CannotStart, DemoFolder, State
from commands.processes import Child
from service import ceremony
from service.errors import StorageUnavailable
from service.ledger.notes import parse_policy
from service.vault import boxes
from service.vault.note import vkey
from tests.commands.builders import free_offset

ROOT = Path(__file__).resolve().parents[2]
PORTS = Ports.at(0)


@pytest.fixture
def empty(tmp_path: Path) -> DemoFolder:
    folder = DemoFolder(tmp_path / "var")
    folder.path.mkdir()
    return folder


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A set-up that takes no time: what it was called for, and files with the names of the demo's."""
    calls: list[Path] = []

    def settle(folder: Path, *, public_url: str, **_: Any) -> dict[str, str]:
        calls.append(folder)
        founding = ceremony.found(demo_cast.PLANS, now=datetime.now(UTC))
        named = ceremony.write_files(founding, folder / KEYS, twilio_token="t")
        (folder / WITNESSES).mkdir()
        (folder / "hotline.db").write_text(f"set-up {len(calls)}")
        database = {"HOTLINE_DATABASE_URL": "sqlite:///none", "HOTLINE_PUBLIC_URL": public_url}
        return database | named

    monkeypatch.setattr(demo_setup, "settle", settle)
    monkeypatch.setattr(demo, "migrate", lambda url: url)
    return calls


# The folder


def test_a_second_start_keeps_the_data(empty, quick):
    first = demo.prepare(empty, PORTS, reset=False)
    second = demo.prepare(empty, Ports.at(1000), reset=False)

    assert len(quick) == 1
    assert empty.state is State.COMPLETE
    assert (empty.path / "hotline.db").read_text() == "set-up 1"
    assert second == first | {
        "HOTLINE_PUBLIC_PORT": "9000",
        "HOTLINE_STAFF_PORT": "9001",
        "HOTLINE_SIMULATOR_PORT": "9002",
        "HOTLINE_TWILIO_API_URL": "http://127.0.0.1:9002",
        "HOTLINE_METRICS_PORT": "9003",
    }
    # The ledger is named after the public address: it must not change with a port.
    assert second["HOTLINE_PUBLIC_URL"] == "http://127.0.0.1:8000"


def test_reset_begins_anew_and_leaves_other_files_alone(empty, quick):
    demo.prepare(empty, PORTS, reset=False)
    (empty.path / "my-notes.txt").write_text("mine")
    (empty.path / "hotline.db-wal").write_text("old")

    demo.prepare(empty, PORTS, reset=True)

    assert len(quick) == 2
    assert (empty.path / "hotline.db").read_text() == "set-up 2"
    assert not (empty.path / "hotline.db-wal").exists()
    assert (empty.path / "my-notes.txt").read_text() == "mine"


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("name", ["hotline.db", "keys/cards.note", "demo.env"])
def test_what_has_no_marker_is_never_touched(name, reset, empty, quick, capsys):
    (empty.path / name).parent.mkdir(exist_ok=True)
    (empty.path / name).write_text("somebody's")

    arguments = ["--folder", str(empty.path), "--port-offset", str(free_offset())]
    assert demo.main([*arguments, "--reset"] if reset else arguments) == 1

    assert "not the demo's" in capsys.readouterr().err
    assert (empty.path / name).read_text() == "somebody's"
    assert quick == []


def test_a_marker_of_something_else_is_no_marker(empty, quick):
    (empty.path / "demo.marker").write_text("the demo of another program\n")

    with pytest.raises(CannotStart, match="not the demo's"):
        demo.prepare(empty, PORTS, reset=True)


@pytest.mark.parametrize("fault", [KeyboardInterrupt(), OSError(errno.ENOSPC, "full"), StorageUnavailable("no")])
def test_an_interrupted_set_up_begins_anew(fault, empty, quick, monkeypatch):
    works = demo_setup.settle

    def fails(folder: Path, **_: Any) -> Any:
        (folder / WITNESSES).mkdir()
        (folder / "hotline.db").write_text("half")
        raise fault

    monkeypatch.setattr(demo_setup, "settle", fails)
    with pytest.raises(type(fault)):
        demo.prepare(empty, PORTS, reset=False)
    assert empty.state is State.UNFINISHED

    monkeypatch.setattr(demo_setup, "settle", works)
    demo.prepare(empty, PORTS, reset=False)

    assert empty.state is State.COMPLETE
    assert (empty.path / "hotline.db").read_text() == "set-up 1"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: (path / "hotline.db").unlink(), "a part of it is gone"),
        (lambda path: (path / "demo.marker").write_text("bamboo demo 0 complete\n"), "another version"),
        (lambda path: (path / KEYS / "relay.note").write_text("changed"), "damaged"),
    ],
)
def test_a_spoilt_folder_is_said_and_only_reset_on_request(spoil, words, empty, quick):
    demo.prepare(empty, PORTS, reset=False)
    (empty.path / KEYS / "relay.note").chmod(0o600)
    spoil(empty.path)

    with pytest.raises(CannotStart, match=words) as said:
        demo.prepare(empty, PORTS, reset=False)
    assert "--reset" in str(said.value)
    assert len(quick) == 1

    demo.prepare(empty, PORTS, reset=True)
    assert empty.state is State.COMPLETE


def test_keys_that_ran_out_are_said(empty, quick, monkeypatch):
    demo.prepare(empty, PORTS, reset=False)

    class Later(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(tz) + timedelta(days=31)

    monkeypatch.setattr(demo, "datetime", Later)

    with pytest.raises(CannotStart, match="were made to last until"):
        demo.prepare(empty, PORTS, reset=False)


def test_two_demos_do_not_share_a_folder(empty):
    with empty.locked(), pytest.raises(CannotStart, match="Another demo"), empty.locked():
        pass
    with empty.locked():  # and the lock ends with its holder
        pass


# What can stand in the way


def test_a_taken_port_is_named_before_anything_is_begun(tmp_path, quick, capsys):
    offset = free_offset()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 8001 + offset))
        taken.listen()

        assert demo.main(["--folder", str(tmp_path / "var"), "--port-offset", str(offset), "--reset"]) == 1

    shown = capsys.readouterr().err
    assert f"Port {8001 + offset} is taken" in shown
    assert f"--port-offset {offset + 100}" in shown
    assert quick == []
    assert not (tmp_path / "var").exists()


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (OSError(errno.ENOSPC, "x"), "The disk is full."),
        (OSError(errno.EROFS, "x"), "Cannot write to"),
        (PermissionError(errno.EACCES, "x"), "Cannot write to"),
        (OSError(errno.EIO, "x"), "EIO"),
        (StorageUnavailable("x"), "cannot be read or written"),
    ],
)
def test_what_the_disk_refuses_is_a_clear_line(fault, words, tmp_path, monkeypatch, capsys):
    def fails(*_: Any, **__: Any) -> None:
        raise fault

    monkeypatch.setattr(demo_setup, "settle", fails)

    assert demo.main(["--folder", str(tmp_path / "var"), "--port-offset", str(free_offset())]) == 1

    shown = capsys.readouterr().err
    assert shown.startswith("hotline demo: ")
    assert words in shown
    assert "Traceback" not in shown


def test_a_database_that_found_no_room_is_put_down_to_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 4096}))

    assert demo._storage_problem(DemoFolder(tmp_path)).startswith("The disk is full.")


def test_a_file_where_the_folder_should_be_is_said(tmp_path, capsys):
    (tmp_path / "var").write_text("a file")

    assert demo.main(["--folder", str(tmp_path / "var"), "--port-offset", str(free_offset())]) == 1
    assert "is in the way" in capsys.readouterr().err


@pytest.mark.parametrize("offset", ["-1", "60000", "many"])
def test_an_offset_without_ports_is_wrong_use(offset):
    with pytest.raises(SystemExit) as stopped:
        demo.main(["--port-offset", offset])

    assert stopped.value.code == 2


def test_a_child_that_ends_is_said_and_ends_the_demo(empty, capsys):
    """A simulator outside of the demo, like any process without its settings, refuses to start."""
    (empty.path / "logs").mkdir()
    wrong = {"HOTLINE_DATABASE_URL": f"sqlite:///{empty.path}/none.db", "PYTHONPATH": str(ROOT)}
    offset = free_offset()

    assert demo.run(empty, wrong, Ports.at(offset), time.monotonic()) == 1

    shown = capsys.readouterr().err
    assert "ended by itself with exit code 2" in shown
    assert "HOTLINE_SETTINGS names none" in shown
    assert "The demo stops." in shown


def test_settings_of_another_installation_stay_out():
    ours = {"PATH": "/bin", "HOTLINE_DATABASE_URL": "postgresql://real", "HOTLINE_SETTINGS": "x", "HOTLINE_DEBUG": "1"}

    assert demo.child_environment(ours, {"HOTLINE_DEMO": "true"}) == {
        "PATH": "/bin",
        "HOTLINE_DEBUG": "1",
        "HOTLINE_DEMO": "true",
    }


def test_nothing_of_it_can_be_read_by_others(tmp_path, quick):
    """The mask is the process's own, so another process has to show it."""
    code = "import sys; from commands import demo; demo.run = lambda *_: 0; sys.exit(demo.main(sys.argv[1:]))"
    fake = "from commands import demo_setup; demo_setup.settle = lambda p, **_: ((p/'keys').mkdir(), {})[1]; "
    arguments = ["--folder", str(tmp_path / "var"), "--port-offset", str(free_offset())]
    subprocess.run([sys.executable, "-c", fake + code, *arguments], cwd=ROOT, check=True, capture_output=True)

    found = [tmp_path / "var", *(tmp_path / "var").rglob("*")]
    assert len(found) >= 4
    assert [path for path in found if path.stat().st_mode & 0o077] == []


# The witnesses


def test_the_witnesses_stay_and_their_addresses_go_with_the_ports(empty):
    log = vkey("127.0.0.1:8000/log", boxes.signing_public_of(b"\x01" * 32))
    demo_witnesses.make(empty.path / WITNESSES, log)

    first, second = (
        parse_policy(
            demo_witnesses.policy_text(empty.path / WITNESSES, log, "http://127.0.0.1:8000", Ports.at(offset).witnesses)
        )
        for offset in (0, 500)
    )

    assert [witness.key for witness in first.witnesses] == [witness.key for witness in second.witnesses]
    assert [witness.url for witness in second.witnesses] == [f"http://127.0.0.1:{port}/" for port in range(8510, 8514)]
    names = [witness.key.name for witness in first.witnesses]
    assert first.is_met_by(names[1:])
    assert not first.is_met_by(names[2:])


def test_a_witness_that_ends_is_said_and_the_demo_goes_on(empty, capsys):
    own = [subprocess.Popen([sys.executable, "-c", code]) for code in ("", "import time; time.sleep(60)")]
    witnesses = [Child(f"witness-{n}", process, empty.path / "log", lambda: True) for n, process in enumerate(own)]
    own[0].wait()
    try:
        left = demo._still_witnessing(witnesses)
        assert [child.name for child in left] == ["witness-1"]
        shown = capsys.readouterr().out
        assert "witness-0 has ended; 1 of the witnesses are left, and 3 are needed" in shown
        assert demo._still_witnessing(left) == left
        assert capsys.readouterr().out == ""
    finally:
        own[1].kill()
        own[1].wait()


def test_the_demo_is_marked_as_damaged_without_its_witnesses(empty, quick):
    demo.prepare(empty, PORTS, reset=False)
    (empty.path / WITNESSES).rmdir()

    assert empty.state is State.DAMAGED
