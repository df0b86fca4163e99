"""The simulator's process (``hotline simulate serve``), and how the other commands reach one that runs."""

import json
import socket
from collections.abc import Mapping
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import OpenerDirector, ProxyHandler, Request, build_opener

from service import logs
from service.config import Settings, read_secret
from service.errors import Misconfigured

HOST = "127.0.0.1"  # and no other, ever: whoever reaches it can read and send everything
LOOK = 2.0  # seconds in which a simulator that runs says so
PATIENCE = 30.0  # seconds for a delivery with its retry


class Failed(Exception):
    """The simulator did not do what it was asked for; the message says why."""


def serve(settings: Settings) -> int:
    """Run the simulator until it is told to end. Raises Misconfigured outside the demo, or when its port is taken."""
    import uvicorn  # the other commands answer three times as fast without this and what `build` needs

    app = build(settings)
    logs.configure("simulator", level=settings.log_level)
    try:
        listening = socket.create_server((HOST, settings.simulator_port))
    except OSError:
        raise Misconfigured(f"port {settings.simulator_port} is taken (HOTLINE_SIMULATOR_PORT)") from None
    print(f"Phones: http://{HOST}:{settings.simulator_port}/  Ctrl-C ends it.", flush=True)
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http="httptools",
        access_log=False,
        server_header=False,
        log_config=None,
        proxy_headers=False,
        lifespan="on",
        timeout_graceful_shutdown=1,  # a request that it was told never to answer must not hold it
    )
    uvicorn.Server(config).run(sockets=[listening])
    return 0


def build(settings: Settings) -> Any:
    """Return the simulator's ASGI app for the account, numbers and duty list of `settings`. Raises Misconfigured."""
    from webhooks.simulator import page
    from webhooks.simulator.app import create_app
    from webhooks.simulator.delivery import Target
    from webhooks.simulator.provider import Provider

    if not settings.demo:
        raise Misconfigured("the simulator is for the demo only, and HOTLINE_DEMO is not true")
    for name in ("twilio_account_sid", "twilio_numbers", "twilio_api_key_sid"):
        if not getattr(settings, name):
            raise Misconfigured(f"HOTLINE_{name.upper()} is not set")
    key = read_secret(settings.twilio_api_key_file, "twilio_api_key_file").decode()
    provider = Provider(
        account_sid=settings.twilio_account_sid,
        auth_token=read_secret(settings.twilio_token_file, "twilio_token_file"),
        api_keys={settings.twilio_api_key_sid: key},
        numbers=settings.twilio_numbers,
    )
    return create_app(
        provider,
        target=Target(settings.public_url, f"http://{HOST}:{settings.public_port}"),
        duty=settings.duty,
        elsewhere=(
            (page.PUBLIC, f"http://{HOST}:{settings.public_port}/"),
            (page.QUEUE, f"http://{HOST}:{settings.staff_port}/"),
        ),
    )


def runs(settings: Settings) -> bool:
    """Return whether the simulator of these settings answers on its port: one of another account is another demo's."""
    try:
        with _opener().open(f"{address(settings)}/health/ready", timeout=LOOK) as answer:
            found = json.load(answer)
    except (OSError, HTTPException, ValueError):
        return False
    return isinstance(found, dict) and found.get("simulator") == settings.twilio_account_sid != ""


def ask(settings: Settings, path: str, fields: Mapping[str, str]) -> Mapping[str, Any]:
    """Post `fields` to the simulator and return what it told. Raises Failed."""
    request = Request(  # noqa: S310 - http, on this machine
        f"{address(settings)}{path}?lang=en",
        data=urlencode(fields).encode(),
        headers={"Accept": "application/json", "Content-Type": "application/x-www-form-urlencoded"},
    )
    try:
        with _opener().open(request, timeout=PATIENCE + LOOK) as answer:
            return dict(json.load(answer))
    except HTTPError as refusal:
        wrong = json.load(refusal).get("wrong", {}) if refusal.code == 400 else {}
        raise Failed(next(iter(wrong.values()), f"the simulator answered {refusal.code}")) from None
    except (OSError, HTTPException, ValueError) as fault:
        raise Failed(f"the simulator stopped answering ({type(fault).__name__})") from None


def address(settings: Settings) -> str:
    """Return where the simulator of these settings listens."""
    return f"http://{HOST}:{settings.simulator_port}"


def _opener() -> OpenerDirector:
    return build_opener(ProxyHandler({}))  # a proxy of the environment knows nothing of this machine
