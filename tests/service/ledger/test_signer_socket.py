"""The signer behind its socket answers as it does in the same process, and survives whoever speaks badly."""

import json
import socket
import stat
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from service.errors import Fork, LedgerFault, Stale
from service.ledger import notes
from service.ledger.signer import Signer
from service.ledger.signer_socket import MOST_BYTES, SignerClient, SignerServer
from tests.service.ledger.test_signer import ORIGIN, OURS, SEED, THEIRS


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "signer.sock"


@pytest.fixture
def signer(tmp_path: Path, path: Path) -> Iterator[Signer]:
    one = Signer(ORIGIN, tmp_path / "signer", SEED)
    one.create()
    with SignerServer(one, path) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield one
        server.shutdown()
        thread.join()


def said(path: Path, data: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(str(path))
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        return connection.makefile("rb").read()


def test_it_signs_refuses_and_promises_as_in_the_same_process(signer: Signer, path: Path) -> None:
    client = SignerClient(path)
    assert client.head() == signer.head()
    assert client.sign(*OURS.request(0, 5)) == signer.head()
    client.sign(*OURS.request(5, 20))
    with pytest.raises(Stale) as stale:
        client.sign(*OURS.request(5, 9))
    assert stale.value.size == 20
    with pytest.raises(Fork):
        client.sign(20, 20, THEIRS.root(20), [])
    promise = notes.open_promise(client.promise(bytes(32), datetime(2027, 3, 9, tzinfo=UTC)), signer.verifier)
    assert promise.leaf_hash == bytes(32)
    assert b"note" in said(path, b'{"do":"promise","at":9223372036854775807,"leaf_hash":"%s="}\n' % (b"A" * 43))


@pytest.mark.parametrize(
    "line",
    [
        b"\n", b"{}\n", b"[]\n", b"7\n", b'{"do":"sing"}\n', b'{"do":"sign"}\n', b"\xff\n", b'{"do":"head"\n',
        b'{"do":"promise","at":"x","leaf_hash":"AAAA"}\n',
        b'{"do":"sign","old_size":-1,"size":5,"root":"AAAA","proof":[]}\n',
        b'{"do":"sign","old_size":0,"size":true,"root":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=","proof":7}\n',
    ],
)  # fmt: skip
def test_what_is_no_request_is_refused_and_signs_nothing(signer: Signer, path: Path, line: bytes) -> None:
    before = signer.head()
    assert json.loads(said(path, line)) == {"refused": "request"}
    assert signer.head() == before


def test_a_line_too_long_or_unfinished_ends_the_connection_alone(signer: Signer, path: Path) -> None:
    assert said(path, b"x" * (MOST_BYTES + 10)) == b""
    assert said(path, b'{"do":"head"}') == b""
    assert said(path, b'{"do":"head"}\n{"do":"head"}\n').count(b"\n") == 2


def test_only_user_and_group_may_connect_and_a_dead_signers_socket_is_replaced(tmp_path: Path) -> None:
    one, path = Signer(ORIGIN, tmp_path / "signer", SEED), tmp_path / "s.sock"
    SignerServer(one, path).server_close()
    with SignerServer(one, path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o660


def test_a_signer_that_is_away_or_talks_nonsense_is_a_fault_and_no_signature(tmp_path: Path, path: Path) -> None:
    with pytest.raises(LedgerFault):
        SignerClient(tmp_path / "nobody.sock").head()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(str(path))
        listening.listen()

        def nonsense() -> None:
            for _ in range(2):
                connection, _address = listening.accept()
                with connection:
                    connection.recv(100)
                    connection.sendall(b"[7]\n")

        thread = threading.Thread(target=nonsense)
        thread.start()
        for _ in range(2):
            with pytest.raises(LedgerFault):
                SignerClient(path).head()
        thread.join()


def test_a_broken_memory_is_a_fault_for_the_client_and_not_the_end_of_the_server(signer: Signer, path: Path) -> None:
    state = signer.folder / "state.json"
    whole = state.read_bytes()
    state.write_bytes(b"")
    with pytest.raises(LedgerFault):
        SignerClient(path).head()
    state.write_bytes(whole)
    assert SignerClient(path).head()
