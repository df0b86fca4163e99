"""What a sequencer is made of, out of the settings: shared by the worker and ``hotline ledger``."""

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

from commands.offering import Offers
from commands.serve import read_policy_text
from service.ceremony import write_secret
from service.config import Settings, read_secret
from service.db import Sessions, Tx, write
from service.errors import BadNote, Misconfigured
from service.ledger import notes
from service.ledger.cosigning import note_witness
from service.ledger.events import Ledger
from service.ledger.notes import Policy
from service.ledger.sequencer import Effect, NoWitnesses, Sequencer, Witnesses
from service.ledger.signer import Signer, Signing
from service.ledger.signer_socket import SignerClient
from service.vault import boxes
from service.vault.note import Verifier, parse_vkey, vkey

KEY = "log.key"


def make_signer(folder: Path, origin: str) -> dict[str, str]:
    """Make the log's key and the signer's memory at size 0 in `folder`; return the settings of both kinds of use.

    Raises Misconfigured where there is one already: a key is made once in the life of a log.
    """
    if (folder / KEY).exists():
        raise Misconfigured(f"there is a key of a log already: {folder / KEY}")
    seed, public = boxes.signing_keypair()
    Signer(origin, folder, seed).create()
    write_secret(folder / KEY, seed.hex())
    return {"HOTLINE_LEDGER_VKEY": vkey(origin, public), "HOTLINE_LEDGER_SIGNER_DIR": str(folder)}


def open_signer(folder: Path, origin: str) -> Signer:
    """Return the signer whose key and memory are in `folder`. Raises Misconfigured."""
    return Signer(origin, folder, read_secret(folder / KEY, "ledger_signer_dir", length=32))


def signer_of(settings: Settings) -> Signing | None:
    """Return the signer that the settings lead to, None where another host has it. Raises Misconfigured."""
    if settings.ledger_signer_dir is not None:
        return open_signer(settings.ledger_signer_dir, settings.origin)
    return SignerClient(settings.ledger_signer_socket) if settings.ledger_signer_socket is not None else None


def read_log_key(settings: Settings) -> Verifier:
    """Return the key that heads are checked with. Raises Misconfigured."""
    try:
        verifier = parse_vkey(settings.ledger_vkey)
    except BadNote as fault:
        raise Misconfigured(f"HOTLINE_LEDGER_VKEY: {fault}; hotline ledger init prints it") from None
    if verifier.name != settings.origin:
        raise Misconfigured(f"HOTLINE_LEDGER_VKEY is of another log than {settings.origin}")
    return verifier


def read_policy(settings: Settings, log: Verifier) -> Policy | None:
    """Return the policy of the settings, None where there is none. Raises Misconfigured."""
    text = read_policy_text(settings)
    if text is None:
        return None
    policy = notes.parse_policy(text)
    if policy.log != log:
        raise Misconfigured("HOTLINE_LEDGER_POLICY_FILE is of another log than HOTLINE_LEDGER_VKEY")
    return policy


def read_seen(settings: Settings) -> list[str]:
    """Return the checkpoints seen before that the settings name. Raises Misconfigured."""
    folder = settings.ledger_seen_dir
    if folder is None:
        return []
    try:
        return [path.read_bytes().decode() for path in sorted(folder.iterdir()) if path.is_file()]
    except (OSError, UnicodeDecodeError):
        raise Misconfigured(f"HOTLINE_LEDGER_SEEN_DIR: cannot read {folder}") from None


def build_sequencer(
    settings: Settings,
    sessions: Sessions,
    ledger: Ledger,
    *,
    now: Callable[[], datetime],
    effects: Mapping[str, Effect],
    witnesses: Witnesses | None = None,
    alarm: Callable[[Tx, str], None] = lambda tx, reason: None,
) -> Sequencer | None:
    """Return the sequencer of these settings; None where the ledger does not run in this process.

    Raises Misconfigured when neither is said, outside the demo: a history that is never signed proves nothing, and
    must not be so by forgetting a setting.
    """
    signer = signer_of(settings)
    if signer is None:
        if not (settings.ledger_elsewhere or settings.demo):
            raise Misconfigured(
                "HOTLINE_LEDGER_SIGNER_SOCKET is not set (hotline ledger signer), nor HOTLINE_LEDGER_ELSEWHERE=true"
                " for a worker beside which no signer runs"
            )
        return None
    if settings.ledger_publish_seconds < 60 and not settings.demo:
        raise Misconfigured(
            "HOTLINE_LEDGER_PUBLISH_SECONDS: less than 60 would time one tip for whoever watches the log"
        )
    log = read_log_key(settings)
    if isinstance(signer, Signer) and signer.verifier != log:
        raise Misconfigured("HOTLINE_LEDGER_VKEY does not belong to the key in HOTLINE_LEDGER_SIGNER_DIR")
    policy = read_policy(settings, log)
    offers = None if policy is None else Offers(policy)
    sequencer = Sequencer(
        sessions=sessions,
        ledger=ledger,
        signer=signer,
        log=log,
        policy=policy,
        cover_key=read_secret(settings.cover_key_file, "cover_key_file", length=32),
        now=now,
        witnesses=witnesses or offers or NoWitnesses(),
        effects=effects,
        seen=read_seen(settings),
        alarm=alarm,
        publish_every=timedelta(seconds=settings.ledger_publish_seconds),
    )
    if offers is not None:
        offers.late = sequencer.take_line
        offers.tell = lambda name, kind: _note_witness(sequencer, name, kind)
    return sequencer


def _note_witness(sequencer: Sequencer, name: str, kind: str | None) -> None:
    note = partial(note_witness, ledger=sequencer.ledger, name=name, kind=kind, now=sequencer.now())
    write(sequencer.sessions, note)
