"""Watch what pages ask the database: how many statements, and whether each looks at cases only through the wall."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import event

from service.db import Sessions
from service.ledger.events import fixed_chain
from service.models import Case
from service.walls import Viewer

# The tables that say anything of a case. A test holds this list against the models.
OF_CASES = {
    "case_file", "case_key", "case_seal", "tip", "message", "decision", "lowering", "clock", "outbox", "wall",
    "narrowing", "reading", "ledger_event", "ledger_field", "ledger_head", "ledger_effect", "ledger_promise",
    "attachment", "closure", "overlay", "keyed_name", "mailbox", "question", "ruleset_tick", "erasure",
}  # fmt: skip
GUARD = 'case_file.id NOT IN (SELECT wall."case" FROM wall WHERE wall.name IN ('


@dataclass
class Watched:
    """The statements of one stretch of requests. past: those that looked at cases and did not go through the wall."""

    count: int = 0
    past: list[str] = field(default_factory=list)


@contextmanager
def watching(sessions: Sessions, viewer: Viewer | None = None) -> Iterator[Watched]:
    """Count the statements on `sessions`, and check each for `viewer`.

    A statement may look at cases under the viewer's wall; or at one case that such a statement has loaded before; or
    at what is the viewer's own: their chain, their readings.
    """
    watched = Watched()
    own = set() if viewer is None else {viewer.chain, viewer.member.hex, viewer.member}
    own |= {fixed_chain(name) for name in ("staff", "rules", "keys", "ledger", "system")}  # chains of no case
    admitted: set[Any] = set(own)

    def admit(case: Case, _context: Any) -> None:
        admitted.update((case.id, case.id.hex, case.chain))

    def look(_connection: Any, _cursor: Any, sql: str, given: Any, _context: Any, many: bool) -> None:
        watched.count += 1
        words = " ".join(sql.split())
        tables = set(re.findall(r'(?:FROM|JOIN) "?(\w+)"?', words)) & OF_CASES
        if viewer is None or many or not words.startswith(("SELECT", "WITH")) or not tables:
            return
        values = set(given.values() if isinstance(given, dict) else given)
        guarded = GUARD in words and values & viewer.names
        if not guarded and not values & (admitted if tables - {"reading"} else own):
            watched.past.append(words)

    engines = {sessions.reading, sessions.writing}
    for engine in engines:
        event.listen(engine, "before_cursor_execute", look)
    event.listen(Case, "load", admit)
    try:
        yield watched
    finally:
        event.remove(Case, "load", admit)
        for engine in engines:
            event.remove(engine, "before_cursor_execute", look)
