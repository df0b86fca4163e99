"""The signer as a process of its own: a Unix stream socket, one JSON object a line (ledger.md section 5).

The worker on the same host is its only client; it holds no key. Who may connect is the socket's mode and group.
"""

import base64
import json
import os
import socket
import socketserver
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

from service.canonical import canonical
from service.errors import BadNote, Fork, HotlineError, LedgerFault, Stale
from service.ledger.notes import MOST_PROOF, decimal
from service.ledger.signer import Signer
from service.vault.note import decode

log = structlog.get_logger("signer")

MOST_BYTES = 65536
PATIENCE = 10.0  # seconds
LATEST = 2**37  # unix seconds; a later moment is not a datetime everywhere


def answer(signer: Signer, line: bytes) -> dict[str, Any]:
    """Return what the signer says to one request. Never raises: what is wrong is said, and nothing is signed."""
    try:
        asked = json.loads(line)
        if asked["do"] == "head":
            return {"note": signer.head()}
        if asked["do"] == "promise":
            at = datetime.fromtimestamp(min(decimal(str(asked["at"])), LATEST), UTC)
            return {"note": signer.promise(_hash(asked["leaf_hash"]), at)}
        if asked["do"] == "sign":
            proof = [_hash(one) for one in asked["proof"][: MOST_PROOF + 1]]
            old, size = decimal(str(asked["old_size"])), decimal(str(asked["size"]))
            return {"note": signer.sign(old, size, _hash(asked["root"]), proof)}
        return {"refused": "request"}
    except Stale as stale:
        return {"refused": "stale", "size": stale.size}
    except Fork:
        log.error("fork_refused")
        return {"refused": "fork"}
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, BadNote):
        return {"refused": "request"}
    except (HotlineError, OSError) as fault:
        log.error("not_signed", error=type(fault).__name__)
        return {"refused": "fault"}


def _hash(text: str) -> bytes:
    found = decode(text)
    if len(found) != 32:
        raise BadNote("a hash of another length")
    return found


class _Handler(socketserver.StreamRequestHandler):
    timeout = PATIENCE
    server: "SignerServer"

    def handle(self) -> None:
        """Answer the lines of one connection until it ends, is silent for too long, or sends a line too long."""
        try:
            while line := self.rfile.readline(MOST_BYTES + 1):
                if len(line) > MOST_BYTES or not line.endswith(b"\n"):
                    return
                self.wfile.write(canonical(answer(self.server.signer, line)) + b"\n")
        except OSError:
            return


class SignerServer(socketserver.ThreadingUnixStreamServer):
    """Listens on `path`, mode 0660. A socket left behind by a signer that died is replaced."""

    daemon_threads = True

    def __init__(self, signer: Signer, path: Path) -> None:
        self.signer = signer
        path.unlink(missing_ok=True)
        mask = os.umask(0o117)
        try:
            super().__init__(str(path), _Handler)
        finally:
            os.umask(mask)


@dataclass(frozen=True)
class SignerClient:
    """What the sequencer asks when the signer is another process. One connection a request: they are few."""

    path: Path

    def head(self) -> str:
        """Return the note of the last head that was signed."""
        return self._ask({"do": "head"})

    def sign(self, old_size: int, size: int, root: bytes, proof: Sequence[bytes]) -> str:
        """Return the note of a tree that grew. Raises Stale, Fork."""
        hashes = [_b64(one) for one in proof]
        return self._ask({"do": "sign", "old_size": old_size, "size": size, "root": _b64(root), "proof": hashes})

    def promise(self, leaf_hash: bytes, at: datetime) -> str:
        """Return the note that promises a leaf within a day."""
        return self._ask({"do": "promise", "leaf_hash": _b64(leaf_hash), "at": int(at.timestamp())})

    def _ask(self, request: Mapping[str, Any]) -> str:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(PATIENCE)
                connection.connect(str(self.path))
                connection.sendall(canonical(dict(request)) + b"\n")
                with connection.makefile("rb") as file:
                    told = json.loads(file.readline(MOST_BYTES + 1))
        except (OSError, ValueError):
            raise LedgerFault("the signer does not answer") from None
        if not isinstance(told, dict):
            raise LedgerFault("the signer does not answer")
        if told.get("refused") == "stale":
            raise Stale(int(told["size"]))
        if told.get("refused") == "fork":
            raise Fork("this is another history than the one that was signed")
        if not isinstance(told.get("note"), str):
            raise LedgerFault("the signer refused")
        return str(told["note"])


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()
