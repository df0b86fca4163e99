"""The public log over HTTP: what is published, never more, with the caches that it may have."""

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.config import Settings
from service.db import Sessions, write
from service.ledger import notes
from service.ledger.export import verify_export
from service.ledger.sequencer import add_covers
from service.ledger.tiles import bundles_of, tiles_of
from tests.service.ledger.builders import COVER_KEY, Log, policy_text
from tests.webhooks.builders import FORM_KEY, HOST
from webhooks.app import create_app
from webhooks.log import log_routes


@pytest.fixture
def a_log(sessions: Sessions, tmp_path: Path) -> Log:
    return Log(sessions, tmp_path / "log")


@pytest.fixture
def client(a_log: Log) -> TestClient:
    intake: Any = None
    routes = log_routes(a_log.sessions, policy_text())
    app = create_app(Settings(), intake=intake, health=dict, form_key=FORM_KEY, log=routes)
    return TestClient(app, base_url=HOST)


def grow(log: Log, count: int, *, publish: bool = True) -> None:
    log.event()
    write(log.sessions, partial(add_covers, key=COVER_KEY, count=count))
    one = log.sequencer()
    one.round()
    if publish:
        one.publish()
    one.step_down()
    log.later(60)


def test_a_reader_copies_the_log_over_http_and_it_is_good(a_log: Log, client: TestClient, tmp_path: Path) -> None:
    grow(a_log, 300)
    checkpoint = client.get("/log/checkpoint")
    size = notes.open_witnessed(checkpoint.content, a_log.policy).checkpoint.size
    folder = tmp_path / "copy"
    for tile in (*tiles_of(size), *bundles_of(size)):
        answer = client.get(f"/log/{tile.path}")
        assert answer.status_code == 200, tile.path
        assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert answer.headers["content-type"] == "application/octet-stream"
        (folder / tile.path).parent.mkdir(parents=True, exist_ok=True)
        (folder / tile.path).write_bytes(answer.content)
    (folder / "checkpoint").write_bytes(checkpoint.content)
    assert verify_export(folder, a_log.policy).faults == []
    assert checkpoint.headers["cache-control"] == "no-cache"
    assert checkpoint.headers["content-type"] == "text/plain; charset=utf-8"
    assert client.get("/log/policy").text == policy_text()
    shutil.rmtree(folder)


def test_nothing_beyond_the_published_size_is_served(a_log: Log, client: TestClient) -> None:
    grow(a_log, 3)
    published = a_log.state().published_size
    grow(a_log, 5, publish=False)
    for kind in ("0", "entries"):
        assert client.get(f"/log/tile/{kind}/000.p/{published}").status_code == 200
        assert client.get(f"/log/tile/{kind}/000.p/{published + 1}").status_code == 404
        assert client.get(f"/log/tile/{kind}/000").status_code == 404
    assert int(client.get("/log/checkpoint").text.split("\n")[1]) == published


@pytest.mark.parametrize(
    "path",
    [
        "/log/checkpoint",
        "/log/tile/0/000.p/1",
        "/log/tile/x",
        "/log/tile/0/%2e%2e/0/000",
        "/log/tile/",
        "/log/",
        "/log",
    ],
)
def test_what_is_not_there_is_not_found_and_is_not_kept(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 404
    assert "immutable" not in answer.headers.get("cache-control", "")


@pytest.mark.parametrize("path", ["/log/checkpoint", "/log/tile/0/000.p/1", "/log/policy"])
def test_the_log_is_only_read(client: TestClient, path: str) -> None:
    assert client.post(path, content=b"x").status_code in (405, 415)
