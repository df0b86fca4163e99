"""A witness: cosigns a log's heads while each tree begins with the one before (ledger.md 6; c2sp.org/tlog-witness).

It is run by those who do not obey the hotline: own key, own memory in its folder, and nothing here knows the hotline's
database, settings or secrets. The memory is made once, with the key. A witness that lost it retires its key.
"""

import base64
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pysqlite3.dbapi2 as sqlite3
import structlog

from service.canonical import canonical
from service.errors import BadNote, Misconfigured, StorageUnavailable
from service.ledger.merkle import EMPTY_ROOT, HASH, is_extension
from service.ledger.notes import MOST_PROOF, Checkpoint, Policy, cosign, cosigned_at, decimal, parse_checkpoint
from service.vault import boxes
from service.vault.note import MOST_BYTES, Signature, Verifier, decode, open_note, signature_line, split_note

log = structlog.get_logger("witness")

STATE = "state.db"
REFUSED = "refused"
MOST_SUBMISSION = 16_384  # bytes: a line, and a checkpoint with sixteen
MOST_REQUEST = MOST_BYTES + 4096  # a whole note and a whole proof
MOST_REFUSED = 1000  # kept of each kind: nobody may fill the disk
PATIENCE = 10.0  # seconds for another process that checks and stores
TEXT = "text/plain; charset=utf-8"
SIZE = "text/x.tlog.size"

_TABLE = "CREATE TABLE head (origin TEXT PRIMARY KEY, size INTEGER, root BLOB, signed TEXT, line TEXT) STRICT"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a witness says: an HTTP status, and with 200 its line, with 409 the size it stands at."""

    status: int
    text: str = ""
    media_type: str = TEXT


@dataclass(frozen=True, slots=True)
class Request:
    """The body of add-checkpoint: from which size the proof leads, its hashes, the checkpoint's note."""

    old: int
    proof: Sequence[bytes]
    note: str

    @property
    def body(self) -> bytes:
        """The request as it is sent."""
        hashes = [base64.b64encode(one).decode() for one in self.proof]
        return "\n".join([f"old {self.old}", *hashes, "", self.note]).encode()


@dataclass(frozen=True)
class Witness:
    """A key with its memory in `folder`, for one log. Threads and processes may use it at once: SQLite lets one check.

    name: of the key, as in the policy. origin: the log's, which need not be its key's name. seed: Ed25519, 32 bytes.
    now: unix seconds.
    """

    folder: Path
    name: str
    origin: str
    log: Verifier
    seed: bytes = field(repr=False)
    now: Callable[[], float] = time.time

    def create(self) -> None:
        """Begin at size 0. Raises Misconfigured where a memory is already: it is never made again."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = self.folder / STATE
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            raise Misconfigured(f"the witness in {self.folder} has a memory already") from None
        with self._alone() as state:
            state.execute(_TABLE)
            state.execute("INSERT INTO head VALUES (?, 0, ?, '', '')", (self.origin, EMPTY_ROOT))

    def add_checkpoint(self, body: bytes) -> Answer:
        """Check a request in the order of ledger.md section 6, store the head, and answer with a line.

        Check and store are one step, durable before the line leaves. What the log signed and is refused all the same
        is kept in ``refused/``. Raises Misconfigured without a memory, StorageUnavailable when nothing was stored.
        """
        try:
            request = parse_request(body)
            text, lines = split_note(request.note)
            head = _read_head(text)
        except BadNote:
            return Answer(400)
        if head.origin != self.origin:
            return Answer(404)
        try:
            open_note(request.note, [self.log])
        except BadNote:
            return Answer(403)
        with self._alone() as state:
            last, known = self._last(state)
            refusal = _refuse(last, request.old, head, request.proof)
            if refusal is None:
                line = cosign(head, self.name, self.seed, int(self.now()))
                kept = (head.size, head.root, f"{text}\n{self._own_line(lines)}", line, self.origin)
                state.execute("UPDATE head SET size=?, root=?, signed=?, line=? WHERE origin=?", kept)
        if refusal is None:
            return Answer(200, line)
        self._keep(request, last, known, head)
        return refusal

    def size(self) -> int:
        """Return the size of the newest head that was cosigned, 0 before the first. Raises as `add_checkpoint`."""
        with self._open() as state:
            return self._last(state)[0].size

    def newest(self) -> str | None:
        """Return the newest head with the log's line and ours, None before the first. Raises as `add_checkpoint`."""
        with self._open() as state:
            signed, line = state.execute("SELECT signed, line FROM head WHERE origin=?", (self.origin,)).fetchone()
        return signed + line if signed else None

    def _own_line(self, lines: Sequence[Signature]) -> str:
        """Return the log's signature line alone: what else stood there is nobody's word to us."""
        own = next(one for one in lines if (one.name, one.key_id) == (self.log.name, self.log.key_id))
        return signature_line(own.name, self.log.public, own.signature)

    def _last(self, state: Any) -> tuple[Checkpoint, str]:
        row = state.execute("SELECT size, root, signed FROM head WHERE origin=?", (self.origin,)).fetchone()
        if row is None:
            raise Misconfigured(f"the memory in {self.folder} is of another log")
        return Checkpoint(self.origin, row[0], row[1]), row[2]

    @contextmanager
    def _alone(self) -> Iterator[Any]:
        """Yield the memory to one thread of one process, and commit durably."""
        with self._open() as state:
            state.execute("PRAGMA synchronous=EXTRA")  # the folder too, so that no power cut brings an old head back
            state.execute("BEGIN IMMEDIATE")
            yield state
            state.execute("COMMIT")

    @contextmanager
    def _open(self) -> Iterator[Any]:
        """Yield the memory; what is not committed is undone. One that is gone is not made again."""
        path = self.folder / STATE
        try:
            state = sqlite3.connect(
                f"{path.resolve().as_uri()}?mode=rw", uri=True, timeout=PATIENCE, isolation_level=None
            )
        except sqlite3.Error:
            raise Misconfigured(f"the witness has no memory at {path}; without it its key must be retired") from None
        try:
            yield state
        except sqlite3.Error:
            raise StorageUnavailable("The witness's memory cannot be used now.") from None
        finally:
            state.close()

    def _keep(self, request: Request, last: Checkpoint, known: str, head: Checkpoint) -> None:
        """Keep a refused head that the log signed, once, beside the one that was known."""
        if head == last:
            return  # cosigned before: only the way to it was wrong
        kind = _kind(last, head, request.old)
        log.warning("head_refused", kind=kind, size=head.size)
        folder = self.folder / REFUSED
        folder.mkdir(exist_ok=True, mode=0o700)
        path = folder / f"{kind}-{boxes.H(head.text.encode()).hex()[:32]}.json"
        if path.exists() or sum(name.startswith(f"{kind}-") for name in os.listdir(folder)) >= MOST_REFUSED:
            return
        draft = path.with_suffix(".new")
        with draft.open("wb") as file:
            file.write(canonical({"at": int(self.now()), "known": known, "request": request.body.decode()}) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)


def _refuse(last: Checkpoint, old: int, head: Checkpoint, proof: Sequence[bytes]) -> Answer | None:
    """Return the refusal that a head of the known log earns, None for a good one (ledger.md section 6)."""
    if old > head.size:
        return Answer(400)
    if old != last.size:
        return Answer(409, f"{last.size}\n", SIZE)
    if old == 0:  # the proof check takes no step from nothing: RFC 6962 has none
        good = not proof and (head.size > 0 or head.root == EMPTY_ROOT)
    else:
        good = is_extension(last.root, old, head.root, head.size, proof)
    return None if good else Answer(422)


def _kind(last: Checkpoint, head: Checkpoint, old: int) -> str:
    """Return what a refused head shows. A fork is proof by itself, the others once they are compared with the log."""
    if head.size == last.size:
        return "fork"
    if head.size < last.size:
        return "older"
    return "unproven" if old == last.size else "elsewhere"


def parse_request(body: bytes) -> Request:
    """Return what the body of add-checkpoint says, its note not yet looked at. Raises BadNote for any other body."""
    try:
        front, gap, note = body.decode().partition("\n\n")
    except UnicodeDecodeError:
        raise BadNote("a request is UTF-8") from None
    first, *lines = front.split("\n")
    if len(body) > MOST_REQUEST or not gap or not first.startswith("old ") or len(lines) > MOST_PROOF:
        raise BadNote("this is no request to a witness")
    proof = [decode(line) for line in lines]
    if any(len(one) != HASH for one in proof):
        raise BadNote("a hash of another length")
    return Request(decimal(first[4:]), proof, note)


def head_path(origin: str) -> str:
    """Return where a witness answers with its newest head of a log, below its address (ledger.md section 6)."""
    return f"{boxes.H(origin.encode()).hex()}/checkpoint"


def _read_head(text: str) -> Checkpoint:
    """Return the three lines of a head. Another log's origin may hold a space; a root that contradicts size 0 is not
    malformed here but refused later. Raises BadNote.
    """
    lines = text.split("\n")
    root = decode(lines[2]) if len(lines) == 4 and lines[0] and not lines[3] else b""
    if len(root) != HASH:
        raise BadNote("a checkpoint has three lines: origin, size, root")
    return Checkpoint(lines[0], decimal(lines[1]), root)


# --- lines that witnesses bring -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Submission:
    """A witness's line, good by its key, and the text of the checkpoint that it is under."""

    name: str
    line: str
    text: str
    size: int


def submission_of(line: str, note: str) -> bytes:
    """Return the body of ``POST /log/cosignature``: a line with its newline, an empty line, the checkpoint's note."""
    return f"{line}\n{note}".encode()


def read_submission(body: bytes, policy: Policy) -> Submission:
    """Return what a witness sends: line, empty line, checkpoint. It asks no database, so that noise costs little.

    Raises BadNote for any other body, a line of nobody in the policy, and one that is not good under that checkpoint.
    """
    try:
        line, gap, note = body.decode().partition("\n\n")
    except UnicodeDecodeError:
        raise BadNote("a submission is UTF-8") from None
    if len(body) > MOST_SUBMISSION or not gap or "\n" in line:
        raise BadNote("a submission is a line, an empty line and a checkpoint")
    text, _ = split_note(note)
    size = parse_checkpoint(text).size
    _, (signature,) = split_note(f"{text}\n{line}\n")
    keys = {(witness.key.name, witness.key.key_id): witness.key for witness in policy.witnesses}
    key = keys.get((signature.name, signature.key_id))
    if key is None:
        raise BadNote("a line of nobody known")
    cosigned_at(text, signature, key)
    return Submission(key.name, f"{line}\n", text, size)
