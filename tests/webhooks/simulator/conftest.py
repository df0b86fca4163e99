"""A provider, its clock, and where its REST side listens."""

from collections.abc import Iterator

import pytest

from tests.webhooks.simulator.builders import Clock, Stage, a_provider
from webhooks.simulator.provider import Provider
from webhooks.simulator.rest import rest_app


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def provider(clock: Clock) -> Provider:
    return a_provider(clock)


@pytest.fixture(scope="session")
def stage() -> Iterator[Stage]:
    with Stage.open() as stage:
        yield stage


@pytest.fixture
def address(stage: Stage, provider: Provider) -> str:
    stage.app = rest_app(provider)
    return stage.address
