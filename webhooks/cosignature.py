"""``POST /log/cosignature``: a witness that nobody can reach brings its line itself (ledger.md section 6).

Whoever sends noise costs one signature check and reaches no database; what a witness's key did sign is stored durably
before it is thanked, so many a minute for each key.
"""

import hashlib
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from functools import partial

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from service.db import Tx
from service.errors import BadNote, NotFound
from service.ledger.cosigning import store_submission
from service.ledger.notes import parse_policy
from service.ledger.witness import read_submission

PATH = "/log/cosignature"
PER_MINUTE = 30  # lines of one key; a witness on a timer sends one
REMEMBERED = 1000  # bodies that were stored: whoever repeats one gets the same answer

Store = Callable[[Callable[[Tx], None]], Awaitable[None]]


def cosignature_route(policy_text: str | None, store: Store, *, clock: Callable[[], float] = time.monotonic) -> Route:
    """Return the route. policy_text: whose lines are taken, None for nobody's. store: makes a use case durable."""
    policy = None if policy_text is None else parse_policy(policy_text)
    pace = _Pace(clock)
    stored: OrderedDict[bytes, None] = OrderedDict()

    async def take(request: Request) -> Response:
        if policy is None:
            return PlainTextResponse("no witnesses yet\n", 404)
        body = await request.body()
        digest = hashlib.sha256(body).digest()
        if digest in stored:
            return PlainTextResponse("stored\n")
        try:
            sent = read_submission(body, policy)
        except BadNote as fault:
            return PlainTextResponse(f"{fault}\n", 400)
        if not pace.allows(sent.name):
            return PlainTextResponse("too many\n", 429, {"retry-after": "60"})
        try:
            await store(partial(store_submission, policy=policy, sent=sent))
        except NotFound:
            return PlainTextResponse("no such checkpoint\n", 404)
        stored[digest] = None
        if len(stored) > REMEMBERED:
            stored.popitem(last=False)
        return PlainTextResponse("stored\n")

    return Route(PATH, take, methods=["POST"])


class _Pace:
    """So many a minute for each name, the names being those of the policy."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._left: dict[str, tuple[float, float]] = {}

    def allows(self, name: str) -> bool:
        now = self._clock()
        left, at = self._left.get(name, (float(PER_MINUTE), now))
        left = min(float(PER_MINUTE), left + (now - at) * PER_MINUTE / 60)
        allowed = left >= 1
        self._left[name] = left - allowed, now
        return allowed
