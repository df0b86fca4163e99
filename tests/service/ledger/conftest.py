"""Where the published vectors lie, and the heavy forms that run only under ``-m chaos``."""

import os
from pathlib import Path

import pytest

VECTORS = Path(os.environ.get("HOTLINE_VECTORS", Path(__file__).resolve().parents[4] / "shared" / "vectors"))
HERE = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the heavy forms out unless they are asked for."""
    if "chaos" in config.option.markexpr:
        return
    heavy = [item for item in items if HERE in item.path.parents and item.get_closest_marker("chaos")]
    if heavy:
        config.hook.pytest_deselected(items=heavy)
        items[:] = [item for item in items if item not in heavy]


@pytest.fixture(scope="session")
def vectors() -> Path:
    """The folder of published vectors; without it the test is skipped, saying so."""
    if not VECTORS.is_dir():
        pytest.skip(f"no test vectors at {VECTORS}; set HOTLINE_VECTORS")
    return VECTORS
