"""A reader that shares no code with the project opens a case from its unit's key."""

import base64
import hashlib
import json
import re
import subprocess
import sys
from copy import deepcopy
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from service.vault import boxes
from service.vault.case_keys import seal_case_key
from service.vault.envelope import Kind, header, seal_stream, seal_text

READER = Path(__file__).with_name("independent_reader.py")
HOUR = datetime(2026, 11, 21, 10, tzinfo=UTC)
TEXT = "បុរសម្នាក់ at the guesthouse, tonight"
RECORDING = bytes(i % 251 for i in range(150_000))


@pytest.fixture(scope="module")
def case() -> dict[str, Any]:
    case, (case_private, case_public), (unit_private, unit_public) = uuid4(), boxes.keypair(), boxes.keypair()
    account = seal_text(case_public, header(case, 1, HOUR, uuid4(), Kind.ACCOUNT), TEXT)
    head = header(case, 1, HOUR, uuid4(), Kind.FILE)
    seal, pieces = seal_stream(case_public, head, [RECORDING], len(RECORDING))
    sealed = seal_case_key(unit_public, case, 1, "s-1", 2, case_private)
    return {
        "unit": {"id": "s-1", "g": 2, "private": unit_private.hex()},
        "case": {"id": case.hex, "g": 1, "public": case_public.hex(), "sealed": sealed.hex()},
        "items": [
            {"header": account.header.hex(), "seal": account.seal.hex(), "body": account.body.hex()},
            {"header": head.hex(), "seal": seal.hex(), "stream": b"".join(pieces).hex()},
        ],
    }


def read(case: dict[str, Any]) -> "subprocess.CompletedProcess[str]":
    # isolated, from another folder: the project cannot be imported by accident
    command = [sys.executable, "-I", str(READER)]
    return subprocess.run(command, input=json.dumps(case), capture_output=True, text=True, cwd="/", check=False)


def test_the_reader_opens_account_and_recording(case):
    run = read(case)
    assert run.returncode == 0, run.stderr
    digest = base64.b64encode(hashlib.sha256(RECORDING).digest()).decode()
    assert json.loads(run.stdout) == [
        {"kind": "account", "text": TEXT},
        {"kind": "file", "length": 150_000, "sha256": digest},
    ]


def test_the_reader_refuses_an_item_of_another_place(case):
    wrong = deepcopy(case)
    wrong["items"][0]["header"] = wrong["items"][1]["header"]
    assert read(wrong).returncode != 0


def test_the_reader_shares_nothing_with_the_project_and_stays_short():
    source = READER.read_text()
    imported = set(re.findall(r"^\s*(?:import|from)\s+(\w+)", source, re.MULTILINE))
    assert imported == {"base64", "hashlib", "json", "nacl", "sys"}
    assert len(source.splitlines()) <= 300
