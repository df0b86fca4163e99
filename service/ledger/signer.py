"""The signer: holds the log's key, remembers the last head it signed, refuses a second history (ledger.md section 5).

Its memory is a file of its own, outside the database: a database put back to yesterday then earns a refusal, not a
signature.
"""

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Protocol

from service.canonical import canonical
from service.errors import BadNote, Fork, Misconfigured, Stale
from service.ledger import notes
from service.ledger.merkle import EMPTY_ROOT, HASH, is_extension
from service.ledger.notes import Checkpoint
from service.vault import boxes
from service.vault.note import Verifier, parse_vkey, vkey

STATE = "state.json"
REFUSED = "refused"
LOCK = "lock"
MOST_REFUSED = 1000  # kept; a broken database must not fill the disk


class Signing(Protocol):
    """What the sequencer asks for signatures: the signer itself, or the client of one in another process."""

    def head(self) -> str:
        """Return the note of the last head that was signed."""
        ...

    def sign(self, old_size: int, size: int, root: bytes, proof: Sequence[bytes]) -> str:
        """Return the note of a tree that grew. Raises Stale, Fork."""
        ...

    def promise(self, leaf_hash: bytes, at: datetime) -> str:
        """Return the note that promises a leaf within a day."""
        ...


@dataclass(frozen=True)
class Signer:
    """The log's key with its memory in `folder`. Several processes of one host may use it: a lock keeps one at a time.

    seed: Ed25519, 32 bytes.
    """

    origin: str
    folder: Path
    seed: bytes = field(repr=False)

    @property
    def verifier(self) -> Verifier:
        """The key that its notes are checked with."""
        return parse_vkey(vkey(self.origin, boxes.signing_public_of(self.seed)))

    def create(self) -> None:
        """Begin at size 0. Raises Misconfigured where a memory is already: it is never made again."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if (self.folder / STATE).exists():
            raise Misconfigured(f"the signer in {self.folder} has a memory already")
        empty = Checkpoint(self.origin, 0, EMPTY_ROOT)
        _persist(self.folder / STATE, self._state(empty, notes.sign_checkpoint(empty, self.seed)))

    def head(self) -> str:
        """Return the note of the last head that was signed. Raises Misconfigured if the memory cannot be trusted."""
        with self._locked():
            return self._last()[1]

    def sign(self, old_size: int, size: int, root: bytes, proof: Sequence[bytes]) -> str:
        """Return the note of the tree of `size`, which must begin with the last one signed.

        old_size: the size from which the proof leads, as `head` gave it. The same head again gets the same note.
        The new head is on the disk before its signature leaves.
        Raises Stale if another size was the last, Fork for another history, whose request is kept in ``refused/``.
        """
        if len(root) != HASH:
            raise Fork("a root has 32 bytes")
        with self._locked():
            last, note = self._last()
            if size == last.size and root == last.root:
                return note
            if size != last.size and old_size != last.size:
                raise Stale(last.size)
            if not _grows(last, size, root, proof):
                self._keep(last, old_size, size, root, proof)
                raise Fork("this is another history than the one that was signed")
            grown = Checkpoint(self.origin, size, root)
            note = notes.sign_checkpoint(grown, self.seed)
            _persist(self.folder / STATE, self._state(grown, note))
            return note

    def promise(self, leaf_hash: bytes, at: datetime) -> str:
        """Return the note that promises the leaf within a day of `at`. It needs no memory and never refuses."""
        return notes.sign_promise(self.origin, leaf_hash, int(at.timestamp()), self.seed)

    def _state(self, head: Checkpoint, note: str) -> bytes:
        return canonical({"origin": self.origin, "size": head.size, "root": head.root.hex(), "note": note})

    def _last(self) -> tuple[Checkpoint, str]:
        """Return the last head and its note. What cannot be read is never guessed."""
        path = self.folder / STATE
        try:
            state = json.loads(path.read_bytes())
            note = str(state["note"])
            last = notes.open_checkpoint(note, self.verifier)
            if (last.size, last.root.hex(), last.origin) != (state["size"], state["root"], state["origin"]):
                raise Misconfigured(f"the signer's memory contradicts itself: {path}")
        except FileNotFoundError:
            raise Misconfigured(
                f"the signer has no memory at {path}; one is made only by: hotline ledger init"
            ) from None
        except (OSError, ValueError, KeyError, TypeError, BadNote):
            raise Misconfigured(f"the signer's memory cannot be read: {path}") from None
        return last, note

    def _keep(self, last: Checkpoint, old_size: int, size: int, root: bytes, proof: Sequence[bytes]) -> None:
        """Keep a refused request as evidence, each distinct one once."""
        request = {"old": old_size, "size": size, "root": root.hex(), "proof": [one.hex() for one in proof]}
        data = canonical({"request": request, "last": {"size": last.size, "root": last.root.hex()}})
        folder = self.folder / REFUSED
        folder.mkdir(exist_ok=True, mode=0o700)
        path = folder / f"{boxes.H(data).hex()[:32]}.json"
        if not path.exists() and len(os.listdir(folder)) < MOST_REFUSED:
            _persist(path, data)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            descriptor = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError:
            raise Misconfigured(f"the signer's folder cannot be used: {self.folder}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _grows(last: Checkpoint, size: int, root: bytes, proof: Sequence[bytes]) -> bool:
    """Say whether the tree of `size` begins with the last one. From nothing every tree grows, without proof."""
    if last.size == 0:
        return size > 0 and not proof
    return size > last.size and is_extension(last.root, last.size, root, size, proof)


def _persist(path: Path, data: bytes) -> None:
    """Replace the file durably: after this returns, no loss of power brings the old one back."""
    draft = path.with_name(path.name + ".new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        draft.unlink(missing_ok=True)
        raise
    draft.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
