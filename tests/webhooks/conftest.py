"""The public app over a fake intake, and what it logs."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from service import logs
from tests.webhooks.builders import an_app
from tests.webhooks.fakes import FakeIntake


@pytest.fixture
def intake() -> FakeIntake:
    return FakeIntake()


@pytest.fixture
def app(tmp_path: Path, intake: FakeIntake) -> Any:
    return an_app(tmp_path, intake)


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> Iterator[Callable[[], str]]:
    """Everything that was logged or printed, by us or by a library."""
    logs.configure("test", strict=True)  # whatever a test before this one has set
    lines, before = io.StringIO(), structlog.get_config()
    structlog.configure(**before | {"logger_factory": structlog.PrintLoggerFactory(lines)})  # type: ignore[arg-type]
    caplog.set_level(0)

    def all_of_it() -> str:
        printed = capfd.readouterr()
        records = [
            f"{record.getMessage()} {record.exc_text or ''} {record.exc_info or ''}" for record in caplog.records
        ]
        return "\n".join([lines.getvalue(), *records, printed.out, printed.err])

    yield all_of_it
    structlog.configure(**before)
