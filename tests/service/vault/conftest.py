"""Where the published vectors lie, and one case sealed for the tests."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
VECTORS = Path(os.environ.get("HOTLINE_VECTORS", HERE.parents[3] / "shared" / "vectors"))


@pytest.fixture(scope="session")
def vectors() -> Path:
    """The folder of published vectors; without it the test is skipped, saying so."""
    if not VECTORS.is_dir():
        pytest.skip(f"no test vectors at {VECTORS}; set HOTLINE_VECTORS")
    return VECTORS


@pytest.fixture(scope="session", params=["ours", "published"])
def answers(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Known answers: our own, which are always there, and the published ones."""
    if request.param == "ours":
        return json.loads((HERE / "known_answers.json").read_text())
    return json.loads((request.getfixturevalue("vectors") / "known-answers" / "keys.json").read_text())
