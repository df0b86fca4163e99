"""An independent verifier, the Go team's note and tlog packages, on an export of 70,000 leaves.

``apt-get install golang-go golang-golang-x-mod-dev``; skipped, saying so, where they are missing.
"""

import os
import random
import shutil
import subprocess
from functools import partial
from pathlib import Path

import pytest

from service.db import open_database, write
from service.ledger import notes
from service.ledger.events import SYSTEM, EventType, NewEvent, StateClass, append
from service.ledger.export import export, verify_export
from service.ledger.sequencer import add_covers
from tests.service.ledger.builders import COVER_KEY, Log, policy_text

GOPATH = Path("/usr/share/gocode")
HERE = Path(__file__).parent
SIZE = 70_000
FLIPS = 12


@pytest.fixture(scope="module")
def checker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Go program, built from Debian's packages alone."""
    go = shutil.which("go")
    if go is None or not (GOPATH / "src/golang.org/x/mod/sumdb/tlog").is_dir():
        pytest.skip("NO INDEPENDENT VERIFIER RAN: apt-get install golang-go golang-golang-x-mod-dev")
    folder = tmp_path_factory.mktemp("go")
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "GOCACHE": str(folder / "cache"),
        "GOFLAGS": "",
        "GO111MODULE": "off",
        "GOPATH": str(GOPATH),
    }
    command = [go, "build", "-o", str(folder / "check_log"), "check_log.go"]
    subprocess.run(command, cwd=HERE, env=environment, check=True, timeout=300)
    return folder / "check_log"


def build(url: str, folder: Path, events: int) -> Path:
    """An export of 70,000 leaves: so many events, the rest cover, which nobody outside can tell apart."""
    log = Log(open_database(url), folder / "log")
    one = log.sequencer()
    new = NewEvent(EventType.CONTENT_OPENED, log.moment, SYSTEM, StateClass.SYSTEM, fields={"reason": "for the record"})
    for n in range(events // 500):
        write(log.sessions, partial(append, ledger=log.ledger, chain=log.chains[n % 3], events=[new] * 500))
    for batch in range((SIZE - events) // 5000 + 1):
        write(log.sessions, partial(add_covers, key=COVER_KEY, count=min(5000, SIZE - events - 5000 * batch)))
        while one.round() >= 5000:
            pass
        if batch % 4 == 0:
            one.publish()
            log.later(60)
    one.round()
    one.publish()
    one.step_down()
    with log.sessions.read() as session:
        export(session, folder / "copy", policy_text(), [0, 777, SIZE - 1], log.moment)
    log.sessions.close()
    return folder / "copy"


@pytest.fixture(scope="module")
def copy(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    shutil.copy(sqlite_template, folder / "hotline.db")
    return build(f"sqlite:///{folder}/hotline.db", folder, 2000)


def run(checker: Path, copy: Path) -> "subprocess.CompletedProcess[str]":
    policy = copy.parent / "policy"
    policy.write_text(policy_text())
    return subprocess.run([checker, copy, policy], capture_output=True, text=True, check=False, timeout=300)


def accepted(checker: Path, copy: Path) -> bool:
    """Whether both accept it; they must say the same."""
    theirs = run(checker, copy).returncode == 0
    ours = verify_export(copy, notes.parse_policy(policy_text())).good
    assert theirs == ours
    return theirs


def test_it_accepts_the_export_and_refuses_one_flipped_byte_anywhere(checker: Path, copy: Path) -> None:
    said = run(checker, copy)
    print(said.stdout)
    assert said.returncode == 0, said.stdout
    assert int(said.stdout.split()[1]) >= SIZE
    assert accepted(checker, copy)
    files = sorted(
        path for path in copy.rglob("*") if path.is_file() and path.name != "policy" and ".leaf" not in path.name
    )
    chosen = [*random.Random(11).sample(files, FLIPS - 2), copy / "checkpoint", copy / f"{SIZE - 1}.tlog-proof"]
    for path in chosen:
        whole = path.read_bytes()
        at = random.Random(len(whole)).randrange(len(whole))
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        said = run(checker, copy)
        print(path.relative_to(copy), "byte", at, "->", said.stdout.strip())
        assert said.returncode == 1, path
        path.write_bytes(whole)
    assert run(checker, copy).returncode == 0


def test_it_refuses_leaves_swapped_or_taken_away(checker: Path, copy: Path) -> None:
    path = copy / "tile/entries/007"
    whole = path.read_bytes()
    for changed in (whole[114:228] + whole[:114] + whole[228:], whole[114:], whole + whole[:114]):
        path.write_bytes(changed)
        assert not accepted(checker, copy)
    path.write_bytes(whole)
    assert accepted(checker, copy)


@pytest.mark.chaos
def test_it_accepts_seventy_thousand_events(checker: Path, sqlite_template: Path, tmp_path: Path) -> None:
    shutil.copy(sqlite_template, tmp_path / "hotline.db")
    said = run(checker, build(f"sqlite:///{tmp_path}/hotline.db", tmp_path, SIZE))
    print(said.stdout)
    assert said.returncode == 0
