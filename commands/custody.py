"""Which process may hold which secret (keys.md section 2), and the refusal to start with another's.

A secret is another's when a setting names it, and also when it merely lies where this process can read it: below
``HOTLINE_KEYS_DIR``, which `./hotline init` sets. The demo runs all processes under one user and says so.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from service.config import Settings
from service.errors import Misconfigured

PROCESSES = ("public", "staff", "worker")
EVERYBODY = frozenset(PROCESSES)
PUBLIC, WORKER, NOBODY = frozenset({"public"}), frozenset({"worker"}), frozenset[str]()


@dataclass(frozen=True, slots=True)
class Secret:
    """A row of the table. files: the names that it has on a host. setting: None when no process reads it."""

    files: tuple[str, ...]
    holders: frozenset[str]
    setting: str | None = None


SECRETS = (
    Secret(("phone.pepper",), PUBLIC | WORKER, "phone_pepper_file"),
    Secret(("code.pepper",), PUBLIC, "code_pepper_file"),
    Secret(("place.key",), EVERYBODY, "place_key_file"),
    Secret(("sketch.key",), EVERYBODY, "sketch_key_file"),
    Secret(("row.key",), EVERYBODY, "row_key_file"),
    Secret(("twilio.token",), PUBLIC, "twilio_token_file"),
    Secret(("twilio.previous-token",), PUBLIC, "twilio_previous_token_file"),
    Secret(("twilio.key", "twilio.api-key"), WORKER, "twilio_api_key_file"),
    Secret(("relay.key",), WORKER, "relay_key_file"),
    Secret(("relay.identity",), WORKER, "relay_identity_file"),
    Secret(("cover.key",), WORKER, "cover_key_file"),
    Secret(("log.key",), NOBODY, "ledger_signer_dir"),  # the signer's; in the demo the worker's
    Secret((), WORKER, "ledger_signer_socket"),
    Secret(("*.seed", "unit-*.key", "recovery*.key", "backup.key", "custodian-*.key"), NOBODY),
)


def refuse_foreign_secrets(settings: Settings, process: str) -> None:
    """Return if `process` is given nothing that it must not hold. Raises Misconfigured, naming settings and files."""
    if settings.demo:
        return
    foreign = [secret for secret in SECRETS if process not in secret.holders]
    named = [s.setting for s in foreign if s.setting and getattr(settings, s.setting, None) is not None]
    if named:
        names = ", ".join(f"HOTLINE_{name.upper()}" for name in named)
        raise Misconfigured(f"the {process} process must not hold {names}")
    if settings.keys_dir is None:
        return
    patterns = [name for secret in foreign for name in secret.files]
    found = sorted(str(path) for path in _readable(settings.keys_dir) if any(fnmatch(path.name, p) for p in patterns))
    if found:
        raise Misconfigured(
            f"the {process} process can read what it must not hold: {', '.join(found)}. Each process runs under an "
            "operating-system user of its own, which alone may read its folder"
        )


def _readable(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):
        for name in names:
            if os.access(path := Path(parent, name), os.R_OK):
                yield path
