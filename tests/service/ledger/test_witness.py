"""A witness: what it signs, in which order it refuses, what it keeps (ledger.md sections 6 and 12, point 5)."""

import itertools
import json
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from service.errors import BadNote, Misconfigured, StorageUnavailable
from service.ledger import notes, witness
from service.ledger.merkle import EMPTY_ROOT
from service.ledger.notes import Checkpoint
from service.ledger.witness import REFUSED, STATE, Answer, Request, Witness, read_submission, submission_of
from service.vault import boxes
from service.vault.note import COSIGNATURE, parse_vkey, sign_note, signature_line, split_note, vkey
from tests.service.ledger import naive
from tests.service.ledger.builders import ORIGIN, SEED, WITNESS_SEEDS, policy_text

LOG = parse_vkey(vkey(ORIGIN, boxes.signing_public_of(SEED)))
NAME = "ngo.example/w"
KEY = parse_vkey(vkey(NAME, boxes.signing_public_of(WITNESS_SEEDS[NAME]), COSIGNATURE))


class History:
    """One version of what happened: `view` makes it another from leaf `parts` on."""

    def __init__(self, view: str = "ours", parts: int = 0) -> None:
        self.leaves = [f"{'ours' if n < parts else view} {n}".encode() for n in range(40)]

    def head(self, size: int) -> Checkpoint:
        return Checkpoint(ORIGIN, size, naive.root(self.leaves[:size]))

    def note(self, size: int) -> str:
        return notes.sign_checkpoint(self.head(size), SEED)

    def request(self, old: int, size: int) -> bytes:
        return Request(old, self.proof(old, size), self.note(size)).body

    def proof(self, old: int, size: int) -> list[bytes]:
        return naive.consistency(old, self.leaves[:size]) if 0 < old <= size else []


OURS, THEIRS = History(), History("theirs", 6)


@pytest.fixture
def made(tmp_path: Path) -> Witness:
    fresh = a_witness(tmp_path / "ngo")
    fresh.create()
    return fresh


def a_witness(folder: Path, name: str = NAME, **changed: Any) -> Witness:
    given: dict[str, Any] = {"origin": ORIGIN, "log": LOG, "seed": WITNESS_SEEDS[name], "now": lambda: 1_800_000_000}
    return Witness(folder, name, **(given | changed))


def kept(one: Witness) -> list[str]:
    folder = one.folder / REFUSED
    return sorted(path.name.split("-")[0] for path in folder.iterdir()) if folder.exists() else []


def seen_at(line: str, head: Checkpoint) -> int:
    return notes.cosigned_at(head.text, split_note(f"{head.text}\n{line}")[1][0], KEY)


# --- the protocol ---


@pytest.mark.parametrize("file", ["growing_log.json", "name_differs.json"])
def test_it_answers_the_published_requests(vectors: Path, file: str, tmp_path: Path) -> None:
    told = json.loads((vectors / "witness" / file).read_text())
    origin = told["log"].get("origin") or told["steps"][0]["request"].split("\n\n")[1].split("\n")[0]
    one = a_witness(tmp_path / "w", origin=origin, log=parse_vkey(told["log"]["vkey"]))
    one.create()
    for step in told["steps"]:
        answer = one.add_checkpoint(step["request"].encode())
        assert answer.status in step["expect_status"], step["name"]
        if "expect_body" in step:
            assert answer.text == step["expect_body"], step["name"]
            assert answer.media_type == "text/x.tlog.size"
    assert len(told["steps"]) in (1, 9)


def test_it_signs_a_log_that_grows_and_the_same_head_again(made: Witness) -> None:
    for old, size in ((0, 5), (5, 5), (5, 12), (12, 33)):
        answer = made.add_checkpoint(OURS.request(old, size))
        assert answer.status == 200
        assert seen_at(answer.text, OURS.head(size)) == 1_800_000_000
    newest = made.newest() or ""
    assert notes.open_checkpoint(newest, LOG) == OURS.head(33)
    assert newest == OURS.note(33) + answer.text
    assert made.size() == 33


def test_what_others_wrote_under_the_head_is_not_repeated(made: Witness) -> None:
    stranger = signature_line("other.example/w", boxes.signing_public_of(b"\x33" * 32), bytes(72), COSIGNATURE)
    body = Request(0, [], OURS.note(5) + stranger).body
    assert made.add_checkpoint(body).status == 200
    assert "other.example" not in (made.newest() or "")


def with_root(size: int, root: bytes) -> str:
    return notes.sign_checkpoint(Checkpoint(ORIGIN, size, root), SEED)


STRANGE = sign_note(Checkpoint("other.example/log", 12, bytes(32)).text, "other.example/log", SEED)
FORGED = notes.sign_checkpoint(OURS.head(12), b"\x66" * 32)
BAD = [
    ("no words", b"", 400),
    ("not UTF-8", b"old 5\n\n\xff", 400),
    ("old with a zero in front", OURS.request(5, 12).replace(b"old 5", b"old 05"), 400),
    ("no old size", OURS.request(5, 12).replace(b"old 5\n", b""), 400),
    ("too many hashes", Request(5, [bytes(32)] * 64, OURS.note(12)).body, 400),
    ("a short hash", Request(5, [bytes(31)], OURS.note(12)).body, 400),
    ("an extension line", Request(5, [], sign_note(OURS.head(12).text + "more\n", ORIGIN, SEED)).body, 400),
    ("longer than any request", OURS.request(5, 12) + b"\n" * 70_000, 400),
    ("another origin, and old too large", Request(99, [], STRANGE).body, 404),
    ("a forged signature, and old too large", Request(99, [], FORGED).body, 403),
    ("old too large, and not ours", OURS.request(13, 12), 400),
    ("old is not its size", OURS.request(4, 12), 409),
    ("old 0, with a proof that would be wrong", Request(0, [bytes(32)], OURS.note(12)).body, 409),
    ("the size it has with another root", Request(5, [], with_root(5, bytes(32))).body, 422),
    ("the head it has, with a proof", Request(5, [bytes(32)], OURS.note(5)).body, 422),
    ("no proof", Request(5, [], OURS.note(12)).body, 422),
    ("a proof too long", Request(5, [*OURS.proof(5, 12), bytes(32)], OURS.note(12)).body, 422),
    ("the proof of another size", Request(5, OURS.proof(4, 12), OURS.note(12)).body, 422),
    ("another history", Request(5, OURS.proof(5, 12), THEIRS.note(12)).body, 422),
]


@pytest.mark.parametrize(("body", "status"), [(body, status) for _, body, status in BAD], ids=[bad[0] for bad in BAD])
def test_it_refuses_in_the_order_of_the_protocol_and_changes_nothing(made: Witness, body: bytes, status: int) -> None:
    assert made.add_checkpoint(OURS.request(0, 5)).status == 200
    before = made.newest()
    answer = made.add_checkpoint(body)
    assert answer.status == status
    assert answer == (Answer(409, "5\n", "text/x.tlog.size") if status == 409 else Answer(status))
    assert made.newest() == before
    assert made.add_checkpoint(OURS.request(5, 12)).status == 200  # the control: the good one is taken


def test_nothing_is_proven_from_nothing(made: Witness) -> None:
    assert made.newest() is None
    for bad in (Request(0, [bytes(32)], OURS.note(5)), Request(0, [], with_root(0, bytes(32)))):
        assert made.add_checkpoint(bad.body).status == 422
    assert made.add_checkpoint(Request(0, [], with_root(0, EMPTY_ROOT)).body).status == 200
    assert made.add_checkpoint(OURS.request(0, 5)).status == 200


# --- evidence ---


def test_what_the_log_signed_and_was_refused_is_kept_beside_what_was_known(made: Witness) -> None:
    made.add_checkpoint(OURS.request(0, 9))
    fork = Request(9, [], THEIRS.note(9)).body
    for _ in range(3):
        assert made.add_checkpoint(fork).status == 422
    assert kept(made) == ["fork"]
    (path,) = (made.folder / REFUSED).iterdir()
    told = json.loads(path.read_text())
    theirs = notes.open_checkpoint(witness.parse_request(told["request"].encode()).note, LOG)
    ours = notes.open_checkpoint(told["known"], LOG)
    assert (theirs.size, theirs.root != ours.root) == (ours.size, True)  # two heads of one key: proof for anybody

    made.add_checkpoint(Request(9, [], THEIRS.note(20)).body)
    made.add_checkpoint(OURS.request(3, 8))
    made.add_checkpoint(OURS.request(3, 12))
    made.add_checkpoint(OURS.request(8, 7))
    assert kept(made) == ["elsewhere", "fork", "older", "older", "unproven"]


def test_noise_is_not_evidence_and_floods_do_not_fill_the_disk(made: Witness, monkeypatch: pytest.MonkeyPatch) -> None:
    made.add_checkpoint(OURS.request(0, 9))
    for noise in (b"", Request(9, [], STRANGE).body, Request(9, [], FORGED).body, Request(2, [], OURS.note(9)).body):
        assert made.add_checkpoint(noise).status != 200
    assert kept(made) == []
    monkeypatch.setattr(witness, "MOST_REFUSED", 3)
    for size in range(1, 9):
        made.add_checkpoint(OURS.request(0, size))
    assert kept(made) == ["older"] * 3
    made.add_checkpoint(Request(9, [], THEIRS.note(9)).body)  # what proves a fork has a place of its own
    assert kept(made) == ["fork", *["older"] * 3]


# --- memory ---


def test_a_memory_is_made_once_and_a_lost_one_is_never_made_again(made: Witness) -> None:
    with pytest.raises(Misconfigured, match="already"):
        made.create()
    made.add_checkpoint(OURS.request(0, 9))
    (made.folder / STATE).unlink()
    for act in (lambda: made.add_checkpoint(OURS.request(0, 5)), made.size, made.newest):
        with pytest.raises(Misconfigured, match="retired"):
            act()
    assert not (made.folder / STATE).exists()


def test_a_memory_of_another_log_or_a_spoilt_one_signs_nothing(made: Witness) -> None:
    other = a_witness(made.folder, origin="other.example/log")
    with pytest.raises(Misconfigured, match="another log"):
        other.size()
    (made.folder / STATE).write_bytes(b"spoilt" * 1000)
    with pytest.raises(StorageUnavailable):
        made.add_checkpoint(OURS.request(0, 5))


def dies(work: Callable[[], object]) -> None:
    """Run `work` in a process that is killed on the way, as the test patched it."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


@pytest.mark.parametrize(("step", "stands"), [("BEGIN", 5), ("UPDATE", 5), ("COMMIT", 12)])
def test_killed_on_the_way_it_never_signs_a_second_history(
    made: Witness, monkeypatch: pytest.MonkeyPatch, step: str, stands: int
) -> None:
    made.add_checkpoint(OURS.request(0, 5))

    class Dying:
        """A connection that lives through one statement and dies before the next word."""

        def __init__(self, real: Any) -> None:
            self.real = real

        def execute(self, statement: str, *rest: Any) -> Any:
            found = self.real.execute(statement, *rest)
            if statement.startswith(step):
                os._exit(9)
            return found

        def close(self) -> None:
            self.real.close()

    connect = witness.sqlite3.connect
    with monkeypatch.context() as patch:
        patch.setattr(witness.sqlite3, "connect", lambda *words, **more: Dying(connect(*words, **more)))
        dies(lambda: made.add_checkpoint(OURS.request(5, 12)))
    assert made.size() == stands
    if stands == 12:  # stored, and nobody got the line
        assert made.add_checkpoint(Request(12, [], THEIRS.note(12)).body).status == 422
        assert made.add_checkpoint(OURS.request(5, 12)) == Answer(409, "12\n", "text/x.tlog.size")
    assert made.add_checkpoint(OURS.request(stands, 12)).status == 200


def test_a_line_that_was_not_stored_is_not_given(made: Witness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(witness, "PATIENCE", 0.05)
    with made._alone(), pytest.raises(StorageUnavailable):
        made.add_checkpoint(OURS.request(0, 5))
    assert made.size() == 0


def test_of_two_histories_at_once_processes_and_threads_sign_one(made: Witness) -> None:
    made.add_checkpoint(OURS.request(0, 6))
    bodies = [History(f"view {n}", 6).request(6, 12) for n in range(6)]
    readers = []
    for body in bodies[:3]:
        reader, writer = os.pipe()
        if os.fork() == 0:
            try:
                os.write(writer, str(made.add_checkpoint(body).status).encode())
            finally:
                os._exit(0)
        os.close(writer)
        readers.append(reader)
    statuses: list[int] = []
    threads = [
        threading.Thread(target=lambda one=body: statuses.append(made.add_checkpoint(one).status))
        for body in bodies[3:]
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for reader in readers:
        statuses.append(int(os.read(reader, 9)))
        os.close(reader)
        os.wait()
    assert sorted(statuses) == [200, *[409] * 5]
    assert len(kept(made)) == 5
    assert set(kept(made)) == {"fork"}


# --- two views ---


def views_with_quorum(folder: Path, need: int, of: int) -> int:
    """Return how many of two conflicting heads can get a quorum when one witness signs whatever it is shown.

    The log's operator tries every way to show one view to some honest witnesses and the other to the rest.
    """
    names = list(WITNESS_SEEDS)[:of]
    lines = [line for line in policy_text().splitlines() if line.split()[0] in ("log", "witness")][: of + 1]
    words = [line.split()[1] for line in lines[1:]]
    policy = notes.parse_policy("\n".join([*lines, f"group g {need} {' '.join(words)}", "quorum g", ""]))
    bad, *honest = names
    most = 0
    for n, told in enumerate(itertools.product((OURS, THEIRS), repeat=len(honest))):
        under: dict[History, list[str]] = {
            view: [notes.cosign(view.head(9), bad, WITNESS_SEEDS[bad], 1)] for view in (OURS, THEIRS)
        }
        for name, first in zip(honest, told, strict=True):
            one = a_witness(folder / f"{n}-{name.split('.')[0]}", name)
            one.create()
            for view in (first, THEIRS if first is OURS else OURS):  # the second view is tried on everybody, too
                for old in (0, 9):
                    answer = one.add_checkpoint(view.request(old, 9) if old == 0 else Request(9, [], view.note(9)).body)
                    if answer.status == 200:
                        under[view].append(answer.text)
        met = [notes.open_witnessed(notes.add_lines(view.note(9), got), policy).quorum for view, got in under.items()]
        most = max(most, sum(met))
    return most


@pytest.mark.parametrize(("need", "of", "views"), [(2, 3, 2), (3, 4, 1)])
def test_one_bad_witness_makes_two_views_of_two_in_three_and_one_of_three_in_four(
    tmp_path: Path, need: int, of: int, views: int
) -> None:
    assert views_with_quorum(tmp_path, need, of) == views


# --- what witnesses bring ---


def test_a_submission_is_read_as_it_was_written_and_nothing_else_is(made: Witness) -> None:
    policy = notes.parse_policy(policy_text())
    line = made.add_checkpoint(OURS.request(0, 9)).text
    good = submission_of(line, OURS.note(9))
    sent = read_submission(good, policy)
    assert (sent.name, sent.line, sent.text, sent.size) == (NAME, line, OURS.head(9).text, 9)
    stranger = notes.cosign(OURS.head(9), "other.example/w", b"\x33" * 32, 1)
    wrong: Sequence[bytes] = (
        b"",
        line.encode(),
        submission_of(line, OURS.note(8)),
        submission_of(line + line, OURS.note(9)),
        submission_of(stranger, OURS.note(9)),
        submission_of(line, OURS.head(9).text),
        good + b"\xff",
    )
    long = signature_line("other.example/w", boxes.signing_public_of(b"\x33" * 32), bytes(17_000))
    assert split_note(OURS.note(9) + long)[0] == OURS.head(9).text  # a note that would do elsewhere
    for body in (*wrong, good + long.encode()):
        with pytest.raises(BadNote):
            read_submission(body, policy)
