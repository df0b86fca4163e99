"""The demo's folder, ``var/``: which files are the demo's own, and whether its set-up came to an end.

The marker is written first as "unfinished" and becomes "complete" last, so a crash at any point leaves a state that
the next start understands. What has no marker is not the demo's, and nothing of it is ever removed or overwritten.
"""

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from service.config import ROOT

DEFAULT = ROOT / "var"
DATABASE, KEYS, LOGS, SETTINGS = "hotline.db", "keys", "logs", "demo.env"
WITNESSES, POLICY = "witnesses", "policy"
MARKER, LOCK = "demo.marker", "demo.lock"
FORMAT = 3  # one more when a new version needs what an older set-up did not make

DISK_FULL = "The disk is full. The demo needs about 10 MB in {folder}\nMake room, then start it again."

_OWN = (DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm", f"{DATABASE}-journal", KEYS, LOGS, SETTINGS, WITNESSES, POLICY)
_NEEDED = (DATABASE, f"{KEYS}/cards.note", SETTINGS, WITNESSES)


class CannotStart(Exception):
    """The demo cannot start, or go on; the text says what to do."""


class State(StrEnum):
    """What a folder holds."""

    EMPTY = "empty"
    UNFINISHED = "unfinished"
    COMPLETE = "complete"
    DAMAGED = "damaged"
    """complete once, but a file of it is gone"""
    OTHER_FORMAT = "other format"
    FOREIGN = "foreign"
    """files with the demo's names, without its marker"""


REFUSED: Mapping[State, str] = {
    State.DAMAGED: "{folder} is a demo's, but a part of it is gone. Begin anew, with --reset",
    State.OTHER_FORMAT: "{folder} is the demo of another version of Bamboo. Begin anew, with --reset",
    State.FOREIGN: "{folder} holds data that is not the demo's ({names}), so nothing there was touched.\n"
    "Move it away, or give the demo another place: ./hotline demo --folder FOLDER",
}


@dataclass(frozen=True)
class DemoFolder:
    """A folder, absolute, that the demo lives in."""

    path: Path

    @property
    def shown(self) -> str:
        """The path as a person near by would type it."""
        relative = os.path.relpath(self.path)
        return str(self.path) if relative.startswith("..") else relative + "/"

    @property
    def settings_file(self) -> Path:
        """The settings of the demo's processes, for commands beside it."""
        return self.path / SETTINGS

    @property
    def state(self) -> State:
        """What the folder holds now."""
        try:
            words = (self.path / MARKER).read_text(errors="replace").split()
        except FileNotFoundError:
            return State.FOREIGN if self._own() else State.EMPTY
        if words[:2] != ["bamboo", "demo"]:
            return State.FOREIGN
        if words[2:] == [str(FORMAT), State.UNFINISHED]:
            return State.UNFINISHED
        if words[2:] != [str(FORMAT), State.COMPLETE]:
            return State.OTHER_FORMAT
        return State.COMPLETE if all((self.path / name).exists() for name in _NEEDED) else State.DAMAGED

    def prepare(self, *, reset: bool) -> bool:
        """Empty the folder where that is needed and asked for, and return whether a set-up has to follow.

        Raises CannotStart for data that is not the demo's, or cannot be used.
        """
        state = self.state
        if state is State.FOREIGN or (state in REFUSED and not reset):
            raise CannotStart(REFUSED[state].format(folder=self.shown, names=", ".join(self._own()) or MARKER))
        if state is State.COMPLETE and not reset:
            return False
        self._mark(State.UNFINISHED)
        self._remove()
        return True

    def complete(self) -> None:
        """Say that the set-up came to its end."""
        os.sync()  # after a power cut the marker must not be newer than what it vouches for
        self._mark(State.COMPLETE)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Make the folder and hold it for one demo. Raises CannotStart if another one has it."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise CannotStart(f"Another demo uses {self.shown}. End it first, with Ctrl-C.") from None
            yield
        finally:
            os.close(handle)

    def read_settings(self) -> dict[str, str]:
        """Return the settings that the set-up wrote, by name."""
        lines = self.settings_file.read_text().splitlines()
        pairs = (line.partition("=") for line in lines if "=" in line and not line.startswith("#"))
        return {name: value.strip("'") for name, _, value in pairs}

    def write_settings(self, settings: Mapping[str, str]) -> None:
        """Write the settings, whole or not at all, in the form that ``HOTLINE_SETTINGS`` may name."""
        head = f"# The demo's settings. HOTLINE_SETTINGS={self.settings_file} ./hotline COMMAND uses them.\n"
        _replace(self.settings_file, head + "".join(f"{name}='{value}'\n" for name, value in settings.items()))

    def write_policy(self, text: str) -> None:
        """Write whose signatures count for the ledger, whole or not at all."""
        _replace(self.path / POLICY, text)

    def _own(self) -> list[str]:
        return [name for name in _OWN if (self.path / name).exists()]

    def _mark(self, state: State) -> None:
        _replace(self.path / MARKER, f"bamboo demo {FORMAT} {state}\n")

    def _remove(self) -> None:
        for name in _OWN:
            path = self.path / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def _replace(path: Path, text: str) -> None:
    """Write `text` to `path` whole or not at all, durably."""
    draft = path.with_name(path.name + ".new")
    with open(draft, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def explain(fault: OSError, folder: DemoFolder) -> str:
    """Return what to do about an error of the operating system in `folder`."""
    if fault.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return DISK_FULL.format(folder=folder.shown)
    if fault.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"Cannot write to {folder.shown}\nMake it writable for this user, or name another: --folder FOLDER"
    if fault.errno in (errno.EEXIST, errno.ENOTDIR):
        return f"{folder.shown} is in the way and is not a folder. Move it, or name another: --folder FOLDER"
    return f"The operating system refused something in {folder.shown} ({errno.errorcode.get(fault.errno or 0, '?')})"
