"""The demo's four witnesses: each with its own folder and key, and the policy that three of them are a quorum.

On one machine they prove nothing: who holds the machine holds all four keys. They are there to be seen at work.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from commands.witness import make_witness, open_witness
from service.vault import boxes
from service.vault.note import COSIGNATURE, vkey

WORDS = ("NGO", "COUNCIL", "UN", "INTL")  # two at home, two abroad (ledger.md section 6)
NEED = 3
FIRST = 8010
PUBLISH_SECONDS = 5  # in earnest a minute; somebody who tries it should see it


def make(folder: Path, log_vkey: str) -> None:
    """Make the witnesses of a log, each in a folder of its own below `folder`."""
    for word in WORDS:
        make_witness(folder / word.lower(), f"{word.lower()}.example/w", log_vkey)


def policy_text(folder: Path, log_vkey: str, public_url: str, ports: Sequence[int]) -> str:
    """Return the policy of those witnesses on these ports of this machine. Raises Misconfigured where one is spoilt."""
    lines = [f"log {log_vkey} {public_url}/log/"]
    for word, port in zip(WORDS, ports, strict=True):
        witness = open_witness(folder / word.lower())
        key = vkey(witness.name, boxes.signing_public_of(witness.seed), COSIGNATURE)
        lines.append(f"witness {word} {key} http://127.0.0.1:{port}/")
    return "\n".join([*lines, f"group independent {NEED} {' '.join(WORDS)}", "quorum independent", ""])


def children(folder: Path, ports: Sequence[int]) -> Iterator[tuple[str, list[str], int]]:
    """Yield name, arguments and port of the process of each witness that was made."""
    for word, port in zip(WORDS, ports, strict=True):
        own = folder / word.lower()
        if own.is_dir():
            yield f"witness-{word.lower()}", ["ledger", "witness", "serve", f"--folder={own}", f"--port={port}"], port
