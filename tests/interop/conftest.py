"""The heavy forms run only under ``-m chaos``."""

from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the heavy forms out unless they are asked for."""
    if "chaos" in config.option.markexpr:
        return
    heavy = [item for item in items if HERE in item.path.parents and item.get_closest_marker("chaos")]
    if heavy:
        config.hook.pytest_deselected(items=heavy)
        items[:] = [item for item in items if item not in heavy]
