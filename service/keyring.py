"""Files that hold more than one generation of a secret, read again when they change (keys.md section 6.11).

A line a generation, newest first: its number, from when it is used, and the secret in hex::

    3 2027-04-01T00:00Z 5f…
    2 2027-03-02T00:00Z a0…

A new generation can so lie on every host before it is used, and all processes change to it at the same moment without
a restart. A file of the secret alone is its first generation.
"""

import fcntl
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import structlog

from service.config import read_secret
from service.errors import Misconfigured

log = structlog.get_logger("keyring")

KEY = 32
BEGINNING = datetime(2000, 1, 1, tzinfo=UTC)
_LINE = re.compile(rf"([1-9][0-9]{{0,8}}) (\d{{4}}-\d\d-\d\dT\d\d:\d\dZ) ([0-9a-f]{{{2 * KEY}}})")
_MOMENT = "%Y-%m-%dT%H:%MZ"


@dataclass(frozen=True, slots=True)
class Generation:
    """One generation of a secret of 32 bytes, in use from `start` on."""

    number: int
    start: datetime
    secret: bytes = field(repr=False)


def read_keyring(path: Path | None, name: str, *, first: int = 1) -> tuple[Generation, ...]:
    """Return the generations in the file `path`, newest first; a file of one secret alone holds generation `first`.

    name: the setting's, for the message. Raises Misconfigured as `read_secret` does, and for a malformed line or
    generations that are not in order.
    """
    text = read_secret(path, name).decode()
    if "\n" not in text and " " not in text:
        return (Generation(first, BEGINNING, read_secret(path, name, length=KEY)),)
    found = []
    for line in text.splitlines():
        parts = _LINE.fullmatch(line.strip())
        if parts is None:
            raise Misconfigured(f"HOTLINE_{name.upper()}: {path} has a line that is none of a keyring")
        found.append(Generation(int(parts[1]), _moment(parts[2], name), bytes.fromhex(parts[3])))
    for newer, older in pairwise(found):
        if newer.number <= older.number or newer.start < older.start or newer.secret == older.secret:
            raise Misconfigured(f"HOTLINE_{name.upper()}: {path} is not in order, newest first")
    return tuple(found)


def write_keyring(path: Path, generations: Sequence[Generation]) -> None:
    """Write `generations` to `path`, mode 0400, whole or not at all; what the file held before is overwritten.

    Raises OSError, and then the old file is still there.
    """
    lines = [f"{g.number} {g.start.astimezone(UTC).strftime(_MOMENT)} {g.secret.hex()}" for g in generations]
    draft, old = (path.with_name(f"{path.name}.{os.getpid()}.{word}") for word in ("new", "old"))
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write("\n".join(lines) + "\n")
        file.flush()
        os.fsync(file.fileno())
    if path.exists():
        old.unlink(missing_ok=True)
        os.link(path, old)  # so that its bytes can still be reached when its name is the new file's
    draft.replace(path)
    destroy(old)


def destroy(path: Path) -> None:
    """Overwrite a file and remove it; nothing is done when there is none.

    Journals, snapshots and flash memory may keep what was written over: encrypt the disk, and keep none of these.
    """
    if not path.exists():
        return
    path.chmod(0o600)
    with open(path, "r+b") as file:
        file.write(os.urandom(path.stat().st_size))
        file.flush()
        os.fsync(file.fileno())
    path.unlink()


def current(generations: Sequence[Generation], now: datetime) -> Generation:
    """Return the newest generation that is in use at `now`; the oldest when none is yet."""
    return next((g for g in generations if g.start <= now), generations[-1])


class Keyring(Mapping[int, bytes]):
    """The secrets of a file by generation, read again whenever the file was changed.

    A file that cannot be read, or is being changed, leaves what was read last; the first time it raises Misconfigured.
    first: the number of a secret that stands alone, asked at each reading.
    """

    def __init__(self, path: Path | None, name: str, *, first: Callable[[], int] = lambda: 1) -> None:
        self.path, self._name, self._first = path, name, first
        self._seen: tuple[int, ...] = ()
        self._reported: list[int] = []
        self._generations: tuple[Generation, ...] = ()
        self._generations = self.generations()

    def generations(self) -> tuple[Generation, ...]:
        """Return what the file holds now, newest first."""
        seen = self._state()
        try:
            if seen != self._seen or not self._generations:
                self._generations, self._seen = read_keyring(self.path, self._name, first=self._first()), seen
        except Misconfigured:
            if not self._generations:
                raise
        return self._generations

    def _state(self) -> tuple[int, ...]:
        try:
            status = self.path.stat() if self.path else None
        except OSError:
            status = None
        return (status.st_mtime_ns, status.st_ino, status.st_size) if status else ()

    def change(self, how: Callable[[tuple[Generation, ...]], Sequence[Generation]]) -> None:
        """Write what `how` makes of the generations that the file holds at that moment; nobody changes it meanwhile.

        Raises Misconfigured for a file that cannot be read, OSError where it cannot be written.
        """
        if self.path is None:
            raise Misconfigured(f"HOTLINE_{self._name.upper()} is not set")
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            held = read_keyring(self.path, self._name, first=self._first())
            wanted = tuple(how(held))
            if wanted != held:
                write_keyring(self.path, wanted)
        finally:
            os.close(folder)

    def keep(self, numbers: Callable[[int], bool]) -> list[int]:
        """Destroy every generation whose number does not pass `numbers`, and return those that are gone.

        A file that cannot be written is reported once, and nothing is returned: a person has to (docs/keys.md).
        """
        old = [number for number in self if not numbers(number)]
        if not old:
            return []
        try:
            self.change(lambda held: [generation for generation in held if numbers(generation.number)])
        except (OSError, Misconfigured):
            if old != self._reported:
                log.error("old_key_not_destroyed", setting=self._name)
            self._reported = old
            return []
        return old

    def __getitem__(self, number: int) -> bytes:
        """Return the secret of a generation. Raises KeyError for one that is not there."""
        for generation in self.generations():
            if generation.number == number:
                return generation.secret
        raise KeyError(number)

    def __iter__(self) -> Iterator[int]:
        """Yield the generations' numbers, newest first."""
        return iter([generation.number for generation in self.generations()])

    def __len__(self) -> int:
        """Return how many generations there are."""
        return len(self.generations())

    def __repr__(self) -> str:
        """Return no secret."""
        return f"Keyring({self.path})"


def _moment(text: str, name: str) -> datetime:
    try:
        return datetime.strptime(text, _MOMENT).replace(tzinfo=UTC)
    except ValueError:
        raise Misconfigured(f"HOTLINE_{name.upper()}: a generation without a moment it begins at") from None
