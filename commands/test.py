"""``./hotline test``: the tests."""

import importlib.util
import os
import sys

from service.errors import Misconfigured

# A file stays in one process: what its tests share is set up once.
ALL = ["tests", "-n", str(min(os.cpu_count() or 1, 8)), "--dist", "loadfile"]


def main(arguments: list[str]) -> int:
    """Become pytest, with `arguments` as they are; without any, all tests on all cores. pytest's exit code is ours."""
    if importlib.util.find_spec("pytest") is None:
        raise Misconfigured("pytest is not installed here; start it as ./hotline test, which installs it")
    os.execv(sys.executable, [sys.executable, "-m", "pytest", *(arguments or ALL)])  # noqa: S606 - our own Python
