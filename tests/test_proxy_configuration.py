"""The proxy's configuration beside what the app says: the same limits, the same words, the numbers of the settings.

What it does when it runs is in tests/chaos/test_proxy.py.
"""

import ipaddress
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from commands import serve
from service.config import Settings
from webhooks.admission import WEBHOOKS_SHARE, Limits
from webhooks.pages import Pages

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
PROXY = (DEPLOY / "haproxy.cfg").read_text()


def faults_of_proxy(text: str) -> Iterator[str]:
    """Say where the proxy's figures are not the app's, and what it must never do."""
    limits, settings = Limits(), Settings()
    slots = {name: int(count) for name, count in re.findall(r"^backend (\w+) from.*?maxconn (\d+)$", text, re.M | re.S)}
    if sum(slots.values()) != settings.max_in_flight:
        yield f"slots {slots}"
    if slots["webhooks"] < WEBHOOKS_SHARE * settings.max_in_flight:
        yield "the webhooks' share"
    sizes = {int(size) for size in re.findall(r"req\.body_size gt (\d+)", text)}
    if sizes != {limits.webhook_body, limits.form_body}:
        yield f"bodies of {sizes}"
    if {int(size) for size in re.findall(r"pathq,length gt (\d+)", text)} != {limits.target_bytes}:
        yield "targets"
    if {int(size) for size in re.findall(r"hdrs_bin,length gt (\d+)", text)} != {limits.header_bytes}:
        yield "headers"
    buffer = int(re.search(r"tune\.bufsize (\d+)", text)[1])  # type: ignore[index]
    if buffer < limits.form_body + limits.header_bytes + 8 * 1024:
        yield "the buffer is smaller than what it must hold"
    if re.search(r"^\s*(log|stats|peers|option (httplog|tcplog|forwardfor|abortonclose))\b", text, re.M):
        yield "it keeps or tells what nobody should know"
    if not re.search(r"timeout http-request 5s\b", text):
        yield "the header's deadline"


def test_the_proxy_and_the_app_have_the_same_limits() -> None:
    assert list(faults_of_proxy(PROXY)) == []


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("maxconn 100", "maxconn 150", "slots"),
        ("check maxconn 60", "check maxconn 20", "the webhooks' share"),
        ("gt 262144", "gt 1048576", "bodies of"),
        ("pathq,length gt 2048", "pathq,length gt 9000", "targets"),
        ("hdrs_bin,length gt 16384", "hdrs_bin,length gt 99999", "headers"),
        ("tune.bufsize 294912", "tune.bufsize 262144", "the buffer"),
        ("    mode http\n", "    mode http\n    option httplog\n", "it keeps or tells"),
        ("    maxconn 6000", "    maxconn 6000\n    log stdout local0", "it keeps or tells"),
        ("    mode http\n", "    mode http\n    option forwardfor\n", "it keeps or tells"),
        ("timeout http-request 5s", "timeout http-request 50s", "the header's deadline"),
    ],
)
def test_a_proxy_with_other_limits_is_found(old: str, new: str, fault: str) -> None:
    """The negative controls."""
    assert old in PROXY
    faults = list(faults_of_proxy(PROXY.replace(old, new)))

    assert any(found.startswith(fault) for found in faults), faults


def test_the_app_believes_no_header_of_a_proxy_and_hangs_up_later_than_it(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(serve, "public", lambda: None)
    monkeypatch.setattr("uvicorn.run", lambda app, **options: given.update(options))

    serve.main(["public"])

    assert given["proxy_headers"] is False
    assert given["access_log"] is False
    keep_alive = re.search(r"timeout http-keep-alive (\d+)s", PROXY)
    assert keep_alive
    assert given["timeout_keep_alive"] > int(keep_alive[1])


def test_the_list_of_carriers_is_one_of_networks() -> None:
    lines = [line for line in (DEPLOY / "carriers.txt").read_text().splitlines() if line and not line.startswith("#")]

    networks = [ipaddress.ip_network(line) for line in lines]

    assert len(set(networks)) == len(networks) > 10
    assert all(network.is_global and network.prefixlen >= 16 for network in networks)


def test_the_proxys_pages_are_the_apps_with_the_numbers_of_the_settings(tmp_path: Path) -> None:
    numbers = "1280 Child helpline,117 Police"
    command = [sys.executable, "-m", "deploy.overload_pages", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "HOTLINE_EMERGENCY_NUMBERS": numbers}, check=True)
    app = Pages(tuple(numbers.split(",")))

    for status in (400, 408, 413, 500, 503):
        head, _, page = (tmp_path / "pages" / f"{status}.http").read_bytes().partition(b"\r\n\r\n")
        assert head.startswith(f"HTTP/1.1 {status} ".encode())
        assert f"content-length: {len(page)}\r\n".encode() in head + b"\r\n"
        assert page == app.notices[status]
        assert b"1280" in page
        neutral = (tmp_path / "neutral" / f"{status}.http").read_bytes()
        assert b"1280" not in neutral
        assert b"tel:" not in neutral
    assert b"retry-after: 10\r\n" in (tmp_path / "neutral" / "503.http").read_bytes()
    assert all(file.read_bytes().endswith(b"\r\n\r\n") for file in (tmp_path / "webhooks").iterdir())


@pytest.mark.parametrize(("arguments", "numbers"), [([], "1280 Child helpline"), (["folder"], "no number")])
def test_pages_that_cannot_be_written_are_refused_in_one_line(
    arguments: list[str], numbers: str, tmp_path: Path
) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "deploy.overload_pages", *arguments],
        cwd=tmp_path,
        env={**os.environ, "HOTLINE_EMERGENCY_NUMBERS": numbers, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert run.returncode == 2
    assert len(run.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
