"""One migrated database with its people, copied for each test."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dashboards.desk import Desk
from service.db import open_database
from tests.builders import World, a_world
from tests.dashboards.builders import Browser, Clockwork, a_desk


@pytest.fixture(scope="session")
def founded(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, World]:
    """A database with units and people, and the world that knows their keys."""
    path = tmp_path_factory.mktemp("staff") / "founded.db"
    shutil.copy(sqlite_template, path)
    sessions = open_database(f"sqlite:///{path}")
    world = a_world(sessions)
    sessions.close()
    return path, world


@pytest.fixture
def world(founded: tuple[Path, World], tmp_path: Path) -> Iterator[World]:
    """The world over a database of this test's own."""
    path, world = founded
    shutil.copy(path, tmp_path / "hotline.db")
    sessions = open_database(f"sqlite:///{tmp_path / 'hotline.db'}")
    yield replace(world, sessions=sessions)
    sessions.close()


@pytest.fixture
def clock() -> Clockwork:
    """The present, which a test may move."""
    return Clockwork()


@pytest.fixture
def desk(world: World, clock: Clockwork) -> Desk:
    """What the staff app works with."""
    return a_desk(world, clock)


@pytest.fixture
def browse(world: World, desk: Desk, clock: Clockwork) -> Callable[..., Browser]:
    """Make a browser: of a person who is signed in, or of nobody."""

    def open_browser(name: str = "", lang: str = "en") -> Browser:
        return Browser(desk, world.cookie(name, clock.now) if name else "", lang)

    return open_browser
