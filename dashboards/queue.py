"""The queue: what first, why, and how long is left. Its order is computed; nobody sorts it by hand."""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

from fastapi import APIRouter, Request, Response

from dashboards import closing, rules, terms
from dashboards.desk import InWords, OurDesk, Who, renew_claims, team, unit_names
from dashboards.gate import BY_ITSELF
from dashboards.levels import proposals
from dashboards.pages import render, signed_in
from dashboards.texts import trouble
from dashboards.words import Words, mark
from service.cases import HOT_FLAGS, reference
from service.models import Level
from service.queue import Count, QueueFilter, QueueKey, QueueRow, counts
from service.queue import queue as read_queue
from service.triage import PROVINCES

router = APIRouter()

PAGE = 50
RENEW = timedelta(seconds=60)

OWNERS: Mapping[str, str] = {"none": mark("Nobody yet"), "me": mark("Me")}
CLOCKS: Mapping[str, str] = {
    "late": mark("Late"),
    "hour": mark("Due in 1 hour"),
    "today": mark("Due today"),
}
DONE: Mapping[str, str] = {
    "handed_on": mark("The case was handed on. It is with another unit now."),
    "recused": mark("You are out of that case. It does not exist for you any more."),
    "excluded": mark("They are behind the wall of that case now. Only two people of oversight can take that back."),
    "walled": mark("The case is behind the wall now: integrity and oversight have it."),
}


@dataclass(frozen=True, slots=True)
class Asked:
    """What the address of a queue page asks for, as far as it makes sense."""

    wanted: QueueFilter
    after: QueueKey | None
    done: str
    still: bool

    @property
    def filters(self) -> dict[str, str]:
        """The filters that are set, as in the address."""
        names = ("level", "owner", "clock", "province", "venue", "flag")
        return {name: given for name in names if (given := getattr(self.wanted, name)) is not None}

    def address(self, **others: object) -> str:
        """Return the address of this page of the queue, with `others` in place of what it asks for."""
        after = {"after": write_key(self.after)} if self.after else {}
        still = {"still": "1"} if self.still else {}
        asked = {**self.filters, **after, **still, **others}
        query = {name: str(given) for name, given in asked.items() if given is not None}
        return f"/queue?{urlencode(query)}" if query else "/queue"


def read_query(query: Mapping[str, str]) -> Asked:
    """Return what an address asks for. A value that means nothing is as if it were not there."""
    known: Mapping[str, Any] = {
        "level": set(Level),
        "owner": OWNERS,
        "clock": CLOCKS,
        "province": PROVINCES,
        "venue": terms.VENUES,
        "flag": HOT_FLAGS,
    }
    wanted = {name: query[name] for name, values in known.items() if query.get(name) in values}
    return Asked(
        QueueFilter(**wanted),
        read_key(query.get("after", "")),
        query["done"] if query.get("done") in DONE else "",
        query.get("still") == "1",
    )


def write_key(key: QueueKey) -> str:
    """Return the place of a case in the order, for an address."""
    parts = [key.level, key.due_at.isoformat(), key.flag_rank, key.age_rank, key.id.hex]
    return base64.urlsafe_b64encode(json.dumps(parts, separators=(",", ":")).encode()).decode().rstrip("=")


def read_key(text: str) -> QueueKey | None:
    """Return the place that `write_key` wrote, None for anything else."""
    try:
        padded = (text + "=" * (-len(text) % 4)).encode("ascii")
        level, due_at, flag_rank, age_rank, case = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
        moment = datetime.fromisoformat(due_at)
        key = QueueKey(Level(level).value, moment.astimezone(UTC), flag_rank, age_rank, UUID(case))
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        return None
    ranked = all(isinstance(rank, int) and 0 <= rank < 1000 for rank in (flag_rank, age_rank))
    return key if ranked and moment.tzinfo is not None else None


@router.get("/queue")
def show(request: Request, desk: OurDesk, who: Who, words: InWords) -> Response:
    """Show one page of the queue."""
    now = desk.clock()
    asked = read_query(request.query_params)
    renew_claims(desk, who, now)
    with desk.sessions.read() as session:
        units = unit_names(session, words)
        rows, more = read_queue(session, who.viewer, asked.wanted, now, after=asked.after, size=PAGE)
        found = counts(session, who.viewer, now)
        wrong = [*rules.trouble(desk, words), *trouble(session, words, who.viewer, now)]
        proposed = [*proposals(session, words, who.viewer), *closing.to_sign(session, words, who.viewer, now)]
        proposed += rules.to_sign(session, words, who.viewer, now)
    page = render(
        request,
        "queue.html",
        here=asked.address(),
        **signed_in(request, words, team(who, units)),
        page="queue",
        now=words.moment(now),
        notice=words(DONE[asked.done]) if asked.done else "",
        seated=bool(who.viewer.seats),
        trouble=wrong,
        proposals=proposed,
        counts=_counts(words, found, asked),
        filters=_filters(words, asked),
        set_filters=_set_filters(words, asked),
        level=asked.wanted.level,
        rows=[_row(words, row, now) for row in rows],
        next_page=replace(asked, after=more).address() if more else "",
        first_page=replace(asked, after=None).address() if asked.after else "",
        again=replace(asked, still=False).address(),
        stop=replace(asked, still=True).address(),
        still=asked.still,
    )
    if not asked.still:
        page.headers["Refresh"] = _refresh(asked)
    return page


def _refresh(asked: Asked) -> str:
    """Return the header by which a browser loads the page anew without a script: seconds and address.

    A header, because the same in the page's head is reported as a fault by accessibility checkers; the page
    offers to stop it. The address says that no person asked, so it does not keep a session open.
    """
    return f"{int(RENEW.total_seconds())}; url={asked.address(**{BY_ITSELF: 1})}"


def _counts(words: Words, found: Mapping[str, Count], asked: Asked) -> list[dict[str, Any]]:
    """Return the counts that are links: all, each level, and what nobody has."""

    def entry(address: dict[str, str], number: int, late: int, **shown: object) -> dict[str, Any]:
        return {
            "href": f"/queue?{urlencode(address)}" if address else "/queue",
            "current": asked.filters == address,
            "number": words.digits(number),
            "late": words("{number} late", number=words.digits(late)) if late else "",
            "level": "",
            "label": "",
            **shown,
        }

    every = found.values()
    return [
        entry({}, sum(c.all for c in every), 0, label=words("All open cases")),
        *(
            entry({"level": level}, count.all, count.late, level=level, label=terms.term(words, terms.LEVELS, level))
            for level, count in found.items()
        ),
        entry({"owner": "none"}, sum(c.unowned for c in every), 0, label=words("No owner yet")),
    ]


def _filters(words: Words, asked: Asked) -> list[dict[str, Any]]:
    """Return the selects of the filter form, each with its choices."""
    choices: list[tuple[str, str, str, Mapping[str, str]]] = [
        ("owner", words("Owner"), words("Everyone"), {k: words(v) for k, v in OWNERS.items()}),
        ("clock", words("Clock"), words("Any"), {k: words(v) for k, v in CLOCKS.items()}),
        ("province", words("Province"), words("All provinces"), terms.provinces(words)),
        ("venue", words("Kind of place"), words("All kinds"), {k: words(v) for k, v in terms.VENUES.items()}),
        ("flag", words("Flag"), words("Any or none"), {k: words(terms.FLAGS[k]) for k in HOT_FLAGS}),
    ]
    return [
        {
            "name": name,
            "label": label,
            "every": every,
            "choices": [
                {"value": code, "label": text, "selected": asked.filters.get(name) == code}
                for code, text in options.items()
            ],
        }
        for name, label, every, options in choices
    ]


def _set_filters(words: Words, asked: Asked) -> str:
    """Return the filters that are set in words, for the closed filter form."""
    shown = {
        "level": lambda code: terms.term(words, terms.LEVELS, code),
        "owner": lambda code: words(OWNERS[code]),
        "clock": lambda code: words(CLOCKS[code]),
        "province": lambda code: terms.province(words, code),
        "venue": lambda code: terms.term(words, terms.VENUES, code),
        "flag": lambda code: terms.term(words, terms.FLAGS, code),
    }
    return ", ".join(shown[name](code) for name, code in asked.filters.items())


def _row(words: Words, row: QueueRow, now: datetime) -> dict[str, Any]:
    """Return one line. Behind the wall it has a level and a clock, nothing else."""
    due_at = row.key.due_at
    shown: dict[str, Any] = {
        "href": f"/cases/{row.id}",
        "level": row.key.level,
        "level_words": terms.term(words, terms.LEVELS, row.key.level),
        "left": words.left(due_at, now),
        "late": due_at < now,
        "due": terms.due(words, row.key.level, row.due_kind, words.deadline(due_at, now)),
        "why": words("Sealed: open it to see"),
        "sealed": row.walled,
    }
    if row.walled:
        return shown
    reason = words.of_two(*row.reasons[0][1:]) if row.reasons else words("No reason is recorded")
    owner = words.of_two(row.owner_name or "", row.owner_name_km or "")
    return shown | {
        "why": reason,
        "said": words("from words, not yet confirmed") if row.provisional else "",
        "channel": terms.term(words, terms.CHANNELS, row.channel),
        "reference": reference(row.id),
        "province": terms.province(words, row.province) if row.province else words("Not known where"),
        "venue": terms.term(words, terms.VENUES, row.venue) if row.venue else "",
        "flags": terms.flag_tags(words, row.flags),
        "owner": owner,
    }
