"""Where the published vectors lie."""

import os
from pathlib import Path

import pytest

VECTORS = Path(os.environ.get("HOTLINE_VECTORS", Path(__file__).resolve().parents[4] / "shared" / "vectors"))


@pytest.fixture(scope="session")
def vectors() -> Path:
    """The folder of published vectors; without it the test is skipped, saying so."""
    if not VECTORS.is_dir():
        pytest.skip(f"no test vectors at {VECTORS}; set HOTLINE_VECTORS")
    return VECTORS
