"""Child processes: ended, killed when they do not listen, and never left behind."""

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from commands import processes
from commands.processes import Child, ChildEnded
from tests.commands.builders import running, soon

ROOT = Path(__file__).resolve().parents[2]


def a_child(tmp_path: Path, code: str) -> Child:
    program = f"{code}\nprint('up', flush=True)\nimport time; time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    return Child("public", process, tmp_path / "public.log", processes.answers("http://127.0.0.1:9/"))


def test_a_child_that_does_not_listen_is_killed_after_a_while(tmp_path):
    polite = a_child(tmp_path, "")
    stubborn = a_child(tmp_path, "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)")

    processes.stop([stubborn, polite], grace=0.3)

    assert (polite.process.returncode, stubborn.process.returncode) == (-signal.SIGTERM, -signal.SIGKILL)


def test_a_child_that_never_becomes_ready_is_said(tmp_path):
    child = a_child(tmp_path, "")
    (tmp_path / "public.log").write_text("one\ntwo\n")
    try:
        with pytest.raises(ChildEnded, match="public is not ready"):
            processes.wait_until_ready([child], threading.Event(), patience=0.1)
    finally:
        processes.stop([child])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends the children of a killed process")
def test_no_child_outlives_a_demo_that_was_killed(tmp_path):
    (tmp_path / "python").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "python").chmod(0o755)
    parent = (
        "import pathlib, sys, time; from commands import processes; sys.executable = sys.argv[1]\n"
        "child = processes.start('public', [], {}, log=pathlib.Path(sys.argv[2]), ready=bool)\n"
        "print(child.process.pid, flush=True); time.sleep(60)"
    )
    arguments = [sys.executable, "-c", parent, str(tmp_path / "python"), str(tmp_path / "log")]
    with subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        assert Path(f"/proc/{child}").exists()
        process.kill()

    assert soon(lambda: not running(child))


def test_a_child_that_listens_on_nothing_is_ready_when_its_log_says_so(tmp_path):
    log = tmp_path / "worker.log"
    ready = processes.logged(log, "worker_ready")
    assert not ready()
    log.write_text('{"event": "worker_starts"}\n')
    assert not ready()
    log.write_text('{"event": "worker_ready"}\n')
    assert ready()
