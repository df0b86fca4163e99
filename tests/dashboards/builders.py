"""Cases with chosen facts, and a browser for the staff app. All names, places and accounts are invented."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from html.parser import HTMLParser
from typing import Any
from uuid import UUID, uuid4

from starlette.testclient import TestClient

from dashboards.app import create_app
from dashboards.desk import Desk
from service import cases
from service.config import Settings
from service.db import Tx, write
from service.ledger.events import SYSTEM, EventType, NewEvent, StateClass, append, new_chain
from service.ledger.notes import Policy
from service.models import Case, CaseDecision, CaseKey, CaseSeal, Clock, ClockKind, Message, State, Tip
from service.rulesets import Rulebook
from service.vault import boxes, envelope
from service.vault.envelope import Kind
from tests.builders import NOW, World, triage

HOST = "https://staff.example"
ACCOUNT = "A woman keeps two children in the room behind the kitchen."
CLAIM = {
    "P1": timedelta(minutes=15),
    "P2": timedelta(hours=1),
    "P3": timedelta(hours=24),
    "P4": timedelta(days=3),
}


def a_record(**changed: Any) -> dict[str, Any]:
    """The record of a decision, as the rules write it."""
    record: dict[str, Any] = {
        "as_of": NOW.isoformat(),
        "asks": ["suspect_access", "recency"],
        "facts": {
            "confined_now": {"source": "suggested", "spans": [[3, 9]], "value": "yes", "at": NOW.isoformat()},
            "victims": {"source": "stated", "value": 2, "at": NOW.isoformat()},
            "venue_type": {"source": "derived", "value": "home"},
        },
        "facts_schema": "facts-1",
        "fired": [{"id": "R009", "reason_en": "A child is locked in now", "reason_km": "កុមារកំពុងត្រូវគេចាក់សោ"}],
        "ruleset": "kh-hotline-triage",
        "version": "1.0.0",
    }
    return record | changed


def a_case(world: World, **chosen: Any) -> UUID:
    """Store a case as intake does, with chosen columns, and return its id.

    Besides the columns: account (its words), more (later messages), mark (of each), received_at, record.
    """
    return write(world.sessions, lambda tx: _store(tx, world, chosen))


def _store(tx: Tx, world: World, chosen: Mapping[str, Any]) -> UUID:
    case, tip, chain = uuid4(), uuid4(), new_chain()
    at: datetime = chosen.get("received_at", NOW)
    hour = at.replace(minute=0, second=0, microsecond=0)
    level = chosen.get("level", "P2")
    deck = world.founding.cards
    walled = chosen.get("walled", False)
    unit = deck.unit(chosen.get("unit", "integrity" if walled else "screening"))
    oversight = deck.unit(chosen.get("oversight", "oversight"))
    record = chosen.get("record", a_record())
    flags = chosen.get("flags", ["confinement"])
    province, venue = chosen.get("province", "KH-8"), chosen.get("venue", "home")
    claim_by = chosen.get("due_at", at + CLAIM[level])
    private, public = boxes.keypair()
    events = [
        NewEvent(EventType.CASE_OPENED, at, SYSTEM, StateClass.OPEN, claim_by, {"unit": unit.unit}),
        NewEvent(EventType.TIP_SEALED, at, SYSTEM, StateClass.OPEN, claim_by, {"tip": tip.hex}),
        NewEvent(EventType.DECISION_MADE, at, SYSTEM, StateClass.OPEN, claim_by, {"level": level}),
    ]
    version = append(tx, world.ledger, chain, events)
    facts: tuple[bytes | None, bytes | None, bytes | None] = (None, None, None)
    if walled:
        sealed = {"record": json.dumps(record), "flags": flags, "province": province, "venue": venue}
        facts = cases.seal_facts(public, case, 1, hour, sealed)
    row = {
        "id": case,
        "chain": chain,
        "version": version,
        "state": State.OPEN,
        "back": State.OPEN,
        "level": level,
        "locked": chosen.get("locked", False),
        "provisional": chosen.get("provisional", False),
        "channel": "sms",
        "language": "en",
        "walled": walled,
        "flags": None if walled else json.dumps(flags),
        "flag_rank": 7 if walled else cases.flag_rank(flags),
        "age_rank": chosen.get("age", cases.NO_AGE),
        "province": None if walled else province,
        "venue": None if walled else venue,
        "unit": unit.unit,
        "oversight": oversight.unit,
        "owner": None,
        "received_hour": hour,
        "due_at": claim_by,
        "due_kind": ClockKind.CLAIM,
        "generation": 1,
        "decision": 1,
    }
    tx.insert(Case, [row])
    tx.insert(CaseKey, [cases.case_key_insert(world.founding.row_key, case, 1, public)])
    readers = {card.unit: card for card in [unit, oversight, *map(deck.unit, chosen.get("also", ()))]}
    tx.insert(CaseSeal, [cases.seal_row(card, case, 1, private) for card in readers.values()])
    tx.insert(
        Tip,
        [
            {
                "id": tip,
                "case": case,
                "contact": None,
                "channel": "sms",
                "language": "en",
                "received_hour": hour,
                "late": False,
            }
        ],
    )
    for number, text in enumerate([chosen.get("account", ACCOUNT), *chosen.get("more", ())], 1):
        tx.insert(Message, [_message(case, tip, number, hour, public, text) | {"mark": chosen.get("mark")}])
    decision = {"case": case, "number": 1, "message": None, "level": level, "ruleset_hash": "0" * 64}
    clear = None if walled else json.dumps(record, ensure_ascii=False).encode()
    tx.insert(
        CaseDecision,
        [decision | {"record": clear} | dict(zip(("header", "seal", "body"), facts, strict=True))],
    )
    act_by = max(at + timedelta(hours=24), claim_by)
    due = ((ClockKind.CLAIM, claim_by), (ClockKind.ACT, act_by))
    tx.insert(Clock, [cases.clock_row(case, kind, by, EventType.DECISION_MADE) for kind, by in due])
    return case


def _message(case: UUID, tip: UUID, number: int, hour: datetime, public: bytes, text: str) -> dict[str, Any]:
    message = uuid4()
    kind = Kind.ACCOUNT if number == 1 else Kind.MESSAGE
    sealed = envelope.seal_words(public, envelope.header(case, 1, hour, message, kind), text)
    return {
        "id": message,
        "tip": tip,
        "number": number,
        "case": case,
        "generation": 1,
        "provider": "test",
        "kind": "sms",
        "delivery": uuid4().bytes * 2,
        "received_hour": hour,
        "header": sealed.header,
        "seal": sealed.seal,
        "body": sealed.body,
    }


# --- a browser ---


@dataclass
class Clockwork:
    """The present, as the test wants it."""

    now: datetime = NOW

    def __call__(self) -> datetime:
        """Return the present."""
        return self.now

    def pass_by(self, **time: float) -> None:
        """Let time pass."""
        self.now += timedelta(**time)


def a_desk(
    world: World,
    clock: Callable[[], datetime],
    health: Callable[[], Mapping[str, Any]] | None = None,
    policy: Policy | None = None,
) -> Desk:
    """The desk of the staff app over `world`."""
    return Desk(
        settings=Settings(),
        sessions=world.sessions,
        ledger=world.ledger,
        cards=world.founding.cards,
        row_key=world.founding.row_key,
        rules=Rulebook(world.sessions, triage().ruleset),
        clock=clock,
        health=health or (lambda: {"database": True}),
        policy=policy,
    )


@dataclass
class Form:
    """A form of a page: where it goes and what a browser would send unchanged."""

    action: str
    method: str
    fields: dict[str, str] = field(default_factory=dict)
    choices: dict[str, list[str]] = field(default_factory=dict)


class Page(HTMLParser):
    """A page as a browser sees it: its forms, links, visible text and elements."""

    def __init__(self, answer: Any) -> None:
        super().__init__(convert_charrefs=True)
        self.status: int = answer.status_code
        self.headers = answer.headers
        self.html: str = answer.text
        self.forms: list[Form] = []
        self.links: list[tuple[str, str]] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self._text: list[str] = []
        self._select = ""
        self.feed(self.html)

    @property
    def text(self) -> str:
        """All text of the page, spaces collapsed."""
        return " ".join(" ".join(self._text).split())

    def form(self, end: str) -> Form:
        """The form whose address ends with `end`."""
        return next(form for form in self.forms if form.action.endswith(end))

    def has_form(self, end: str) -> bool:
        """Whether there is a form whose address ends with `end`."""
        return any(form.action.endswith(end) for form in self.forms)

    def link(self, words: str) -> str:
        """The address of the link that says `words`."""
        return next(href for href, text in self.links if words in text)

    def handle_starttag(self, tag: str, attrs: Iterable[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.elements.append((tag, given))
        if tag == "form":
            action = given.get("action", "").partition("#")[0]
            self.forms.append(Form(action, given.get("method", "get")))
        elif tag == "a" and "href" in given:
            self.links.append((given["href"], ""))
        elif tag == "select":
            self._select = given["name"]
        elif tag == "option" and self.forms:
            self.forms[-1].choices.setdefault(self._select, []).append(given["value"])
        elif tag == "input" and self.forms and given.get("type") == "radio":
            self.forms[-1].choices.setdefault(given["name"], []).append(given["value"])
            if "checked" in given:
                self.forms[-1].fields[given["name"]] = given["value"]
        elif tag == "input" and self.forms:
            self.forms[-1].fields[given["name"]] = given.get("value", "")

    def handle_data(self, data: str) -> None:
        self._text.append(data)
        if self.links:
            href, text = self.links[-1]
            self.links[-1] = (href, text + data)


class Browser:
    """A browser of one person. It keeps cookies and says where its forms come from, as real ones do."""

    def __init__(self, desk: Desk, cookie: str = "", lang: str = "en") -> None:
        self.client = TestClient(create_app(desk), base_url=HOST, follow_redirects=False, raise_server_exceptions=False)
        self.client.cookies.set("lang", lang, domain="staff.example")
        if cookie:
            self.client.cookies.set("__Host-hl", cookie, domain="staff.example")

    def open(self, path: str, **headers: str) -> Page:
        """Load a page."""
        return Page(self.client.get(path, headers=headers))

    def send(self, path: str, fields: Mapping[str, str], **headers: str) -> Page:
        """Send a form, from our own page unless `headers` say otherwise."""
        return Page(self.client.post(path, data=dict(fields), headers={"origin": HOST} | headers))

    def submit(self, page: Page, end: str, **fields: str) -> Page:
        """Fill in and send the form of `page` whose address ends with `end`."""
        form = page.form(end)
        return self.send(form.action, form.fields | fields)
