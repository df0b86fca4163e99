"""The public log: checkpoint, tiles, entries and policy as files (c2sp.org/tlog-tiles; ledger.md section 2).

Served from the database, never beyond the published size. What is full never changes, so whoever is in between may
keep it for ever.
"""

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from service.db import Sessions
from service.errors import NotFound
from service.ledger import tree
from service.ledger.tiles import parse_path

FRESH = {"cache-control": "no-cache"}
FOREVER = {"cache-control": "public, max-age=31536000, immutable"}
BYTES = "application/octet-stream"


def log_routes(sessions: Sessions, policy: str | None) -> list[Route]:
    """Return the routes below ``/log/``. policy: the text of the policy file, None where there is none yet."""

    def checkpoint_note() -> str:
        with sessions.read() as session:
            size = tree.state_of(session).published_size
            return tree.checkpoint_note(session, size)

    def tile_bytes(path: str) -> bytes:
        tile = parse_path(path)
        if tile is None:
            raise NotFound("There is no such tile.")
        with sessions.read() as session:
            found = tree.read_file(session, tile)
        if found is None:
            raise NotFound("There is no such tile.")
        return found

    async def checkpoint(_request: Request) -> Response:
        return PlainTextResponse(await run_in_threadpool(checkpoint_note), headers=FRESH)

    async def tile(request: Request) -> Response:
        path = f"tile/{request.path_params['rest']}"
        return Response(await run_in_threadpool(tile_bytes, path), headers=FOREVER, media_type=BYTES)

    async def policy_file(_request: Request) -> Response:
        if policy is None:
            raise NotFound("There is no policy yet.")
        return PlainTextResponse(policy, headers=FRESH)

    return [
        Route("/log/checkpoint", checkpoint, methods=["GET"]),
        Route("/log/policy", policy_file, methods=["GET"]),
        Route("/log/tile/{rest:path}", tile, methods=["GET"]),
    ]
