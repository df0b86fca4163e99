"""``./hotline test``: the tests."""

import importlib.util
import os
import sys

from service.errors import Misconfigured


def main(arguments: list[str]) -> int:
    """Become pytest, with `arguments` as they are; without any, all tests. pytest's exit code is ours."""
    if importlib.util.find_spec("pytest") is None:
        raise Misconfigured("pytest is not installed here; start it as ./hotline test, which installs it")
    os.execv(sys.executable, [sys.executable, "-m", "pytest", *(arguments or ["tests"])])  # noqa: S606 - our own Python
