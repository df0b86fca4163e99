"""``./hotline lint``: style, types, and the arrows between the packages."""

import argparse
import subprocess
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = sysconfig.get_path("scripts")

# `hotline` has no .py, so the tools do not find it; it must stay readable to the old Pythons that it turns away.
CHECKS = {
    "ruff check": [f"{BIN}/ruff", "check", "."],
    "ruff format": [f"{BIN}/ruff", "format", "--check", "."],
    "ruff check hotline": [f"{BIN}/ruff", "check", "--target-version", "py38", "hotline"],
    "ruff format hotline": [f"{BIN}/ruff", "format", "--check", "--target-version", "py38", "hotline"],
    "mypy": [f"{BIN}/mypy"],
    "lint-imports": [f"{BIN}/lint-imports"],
}


def main(arguments: list[str]) -> int:
    """Run every check, also after one failed, and end with a summary; return 1 if any failed."""
    parser = argparse.ArgumentParser(prog="./hotline lint", description=f"Run {', '.join(CHECKS)}.")
    parser.parse_args(arguments)
    failed = []
    for name, command in CHECKS.items():
        print(f"== {name}", flush=True)
        if subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, check=False).returncode:  # noqa: S603
            failed.append(name)
    print(f"lint: {len(CHECKS) - len(failed)} of {len(CHECKS)} checks passed", end="")
    print(f"; failed: {', '.join(failed)}" if failed else "")
    return 1 if failed else 0
