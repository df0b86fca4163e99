"""The staff app: queue and cases, for people with an account. Pages without script; no state between requests."""

from collections.abc import Mapping
from typing import Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from dashboards import (
    access,
    case,
    casework,
    closing,
    downloads,
    join,
    levels,
    oversight,
    people,
    questions,
    queue,
    rules,
    sign_in,
    staff,
    walls,
)
from dashboards.desk import Desk, OurDesk
from dashboards.gate import Gate
from dashboards.pages import HERE, catalogue, refusal
from service.errors import HotlineError

PAGES = (
    sign_in,
    join,
    queue,
    case,
    levels,
    questions,
    walls,
    casework,
    closing,
    downloads,
    oversight,
    rules,
    staff,
    people,
)


def create_app(desk: Desk) -> FastAPI:
    """Return the staff app over `desk`."""
    catalogue()  # a catalogue that cannot be read stops the start, not a page
    checks = [Depends(access.check)]
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False, dependencies=checks)
    app.state.desk = desk
    app.add_middleware(Gate, desk=desk)
    for error in (HotlineError, HTTPException, RequestValidationError):
        app.add_exception_handler(error, refuse)
    app.mount("/static", StaticFiles(directory=HERE / "static"))
    app.add_api_route("/", to_queue, methods=["GET"])
    app.add_api_route("/health/live", live, methods=["GET"])
    app.add_api_route("/health/ready", ready, methods=["GET"])
    for page in PAGES:
        app.include_router(page.router)
    return app


def refuse(request: Request, error: Exception) -> Response:
    """Answer a refusal with its page."""
    return refusal(request, error)


def to_queue() -> RedirectResponse:
    """Go to the queue: nothing else is a start page."""
    return RedirectResponse("/queue", 303)


def live() -> JSONResponse:
    """Say that the process answers."""
    return JSONResponse({"live": True})


def ready(desk: OurDesk) -> JSONResponse:
    """Say what is well; 503 when something is not."""
    try:
        checks: Mapping[str, Any] = desk.health()
    except HotlineError as fault:
        checks = {type(fault).__name__: False}
    return JSONResponse(dict(checks), 503 if any(check is False for check in checks.values()) else 200)
