"""Re-check everything that a run has left behind: nothing acknowledged is lost, nothing is there twice, all opens.

Works from rows and private keys alone, and knows nothing of how the rows were written.
"""

import base64
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from uuid import UUID

from sqlalchemy import select, text
from sqlmodel import Session

from service.cases import case_key_row
from service.ceremony import Founding
from service.db import Sessions
from service.errors import CannotOpen
from service.ledger import events as ledger
from service.ledger.events import EventType
from service.models import (
    Case,
    CaseDecision,
    CaseKey,
    CaseSeal,
    Clock,
    ClockKind,
    Contact,
    LedgerEvent,
    LedgerField,
    LedgerHead,
    LedgerPending,
    Level,
    Message,
    OutboxJob,
    Tip,
)
from service.outbox import fixed_columns
from service.vault import blobs, boxes, envelope
from service.vault.cards import UnitKind
from service.vault.contacts import quiet_tag, tip_tag
from service.vault.envelope import Envelope, Kind
from service.vault.members import open_case_key
from service.vault.relaying import open_contact
from tests.chaos.sending import Sent

Row = dict[str, Any]

# What was checked once need not be opened again after the next kill: the same bytes give the same answer.
_open_event = lru_cache(maxsize=None)(blobs.open_event)
_open_words = lru_cache(maxsize=None)(envelope.open_words)
_open_case_key = lru_cache(maxsize=None)(open_case_key)
_open_contact = lru_cache(maxsize=None)(open_contact)
_unseal = lru_cache(maxsize=None)(boxes.unseal)


@dataclass
class Found:
    """What `verify` found.

    lost: acknowledged and not stored, or not as it was sent. doubled: stored more than once. wrong: anything else.
    walled: how many cases are behind the wall. words: of each stored message, with the number of who sent it.
    """

    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    tips: int = 0
    messages: int = 0
    events: int = 0
    walled: int = 0
    words: dict[str, str | None] = field(default_factory=dict)

    @property
    def faults(self) -> list[str]:
        """All of it, in words."""
        return [f"lost: {x}" for x in self.lost] + [f"doubled: {x}" for x in self.doubled] + self.wrong


def verify(sessions: Sessions, founding: Founding, acknowledged: Iterable[Sent]) -> Found:
    """Check a database from its rows against what was `acknowledged`, opening all of it with the units' keys."""
    found = Found()
    with sessions.read() as session:
        check_file(session, sessions.dialect, found.wrong)
        rows = Rows(session)
    check_chains(rows, founding, found)
    privates = check_keys(rows, founding, found)
    check_cases(rows, founding, privates, found)
    opened = open_messages(rows, privates, found)
    check_contacts(rows, founding, opened, found)
    check_told(rows, privates, opened, found)
    check_acknowledged(rows, founding, opened, acknowledged, found)
    found.tips, found.messages, found.events = len(rows.tips), len(rows.messages), len(rows.events)
    found.walled = sum(case["walled"] for case in rows.cases.values())
    return found


class Rows:
    """The rows that matter, read in one transaction."""

    def __init__(self, session: Session) -> None:
        self.cases = {row["id"]: row for row in _all(session, Case)}
        self.keys = {(row["case"], row["generation"]): row for row in _all(session, CaseKey)}
        self.seals = _all(session, CaseSeal)
        self.tips = {row["id"]: row for row in _all(session, Tip)}
        self.messages = sorted(_all(session, Message), key=lambda row: (row["tip"], row["number"]))
        self.decisions = _by(_all(session, CaseDecision), lambda row: row["case"])
        self.clocks = _by(_all(session, Clock), lambda row: row["case"])
        self.contacts = {row["id"]: row for row in _all(session, Contact)}
        self.jobs = _all(session, OutboxJob)
        self.heads = {row["case"]: row for row in _all(session, LedgerHead)}
        self.events = sorted(_all(session, LedgerEvent), key=lambda row: (row["case"], row["seq"]))
        self.chains = _by(self.events, lambda row: row["case"])
        self.fields = _by(_all(session, LedgerField), lambda row: row["eid"])
        self.pending = _by(_all(session, LedgerPending), lambda row: row["eid"])


def _all(session: Session, table: Any) -> list[Row]:
    return [dict(row) for row in session.execute(select(table.__table__)).mappings()]


def _by(rows: list[Row], key: Callable[[Row], Any]) -> Mapping[Any, list[Row]]:
    grouped: defaultdict[Any, list[Row]] = defaultdict(list)
    for row in rows:
        grouped[key(row)].append(row)
    return grouped


def check_file(session: Session, dialect: str, wrong: list[str]) -> None:
    """Check that the database itself is whole. On PostgreSQL that is its server's to know: it answers."""
    if dialect != "sqlite":
        session.execute(text("SELECT 1"))
        return
    for pragma, whole in (("integrity_check", [("ok",)]), ("foreign_key_check", [])):
        told = [tuple(row) for row in session.execute(text(f"PRAGMA {pragma}")).all()]
        if told != whole:
            wrong.append(f"{pragma}: {told[:3]}")


# --- history ---------------------------------------------------------------------------------------------


def check_chains(rows: Rows, founding: Founding, found: Found) -> None:
    """Check each chain from event to event, each event's copies and fields, and that none is pending twice."""
    wrong = found.wrong
    for chain in rows.heads.keys() | rows.chains.keys():
        previous, pending = bytes(32), 0
        for seq, event in enumerate(rows.chains[chain]):
            where = f"event {seq} of chain {chain}"
            body = json.loads(event["body"])
            if (event["seq"], body["seq"], body["case"], body["type"], body["eid"]) != (
                *(seq, seq, chain),
                *(event["type"], event["eid"]),
            ):
                wrong.append(f"{where}: is another event than its row says")
            if base64.b64decode(body["prev"]) != previous:
                wrong.append(f"{where}: does not follow the one before")
            previous = ledger.commit_event(event["k_e"], event["body"])
            check_leaf(event, body, previous, where, wrong)
            if _open_event(founding.unit_privates["monitor"], event["blob"]) != (event["k_e"], event["body"]):
                wrong.append(f"{where}: the monitor's copy is another event")
            check_fields(rows.fields[event["eid"]], body, where, wrong)
            queued = rows.pending[event["eid"]]
            if len(queued) != 1 or queued[0]["leaf"] != event["leaf"]:
                wrong.append(f"{where}: has {len(queued)} pending rows, or one with another leaf")
            elif queued[0]["id"] <= pending:
                wrong.append(f"{where}: is pending before the one it follows")
            pending = queued[0]["id"] if queued else pending
        head = rows.heads.get(chain)
        if head is None or (head["seq"], head["c"]) != (len(rows.chains[chain]) - 1, previous):
            wrong.append(f"chain {chain}: its head is not its last event")


def check_leaf(event: Row, body: Row, c: bytes, where: str, wrong: list[str]) -> None:
    """Check an event's public leaf, offset by offset (ledger.md section 1)."""
    leaf = event["leaf"]
    parts = (leaf[:8], leaf[8:40], leaf[40:72], int.from_bytes(leaf[104:], "big"))
    blob = hashlib.sha256(event["blob"]).digest()
    if len(leaf) != 112 or parts != (b"bamboo/1", c, blob, body["anchor"]["size"]):
        wrong.append(f"{where}: its leaf is not that of the event")


def check_fields(fields: list[Row], body: Row, where: str, wrong: list[str]) -> None:
    """Check that an event's fields are all there, and that those in clear open their commitments."""
    commitments = body["fields"] | {"who": body["actor"]["who"]}
    if {row["name"] for row in fields} != set(commitments):
        wrong.append(f"{where}: lacks a field, or has one too many")
        return
    for row in fields:
        if row["sealed"]:
            continue
        opened = ledger.commit_field(row["salt"] or b"", row["name"], json.loads(row["value"]))
        if base64.b64encode(opened).decode() != commitments[row["name"]]:
            wrong.append(f"{where}: field {row['name']} does not open its commitment")


# --- cases -----------------------------------------------------------------------------------------------


def check_keys(rows: Rows, founding: Founding, found: Found) -> dict[tuple[UUID, int], bytes]:
    """Check that each case key's seals open with their units' keys, and return the private halves."""
    privates: dict[tuple[UUID, int], bytes] = {}
    kinds: defaultdict[tuple[UUID, int], set[UnitKind]] = defaultdict(set)
    for seal in rows.seals:
        place = (seal["case"], seal["generation"])
        kinds[place].add(founding.cards.unit(seal["unit"]).kind)
        key = rows.keys.get(place)
        try:
            assert key is not None
            privates[place] = _open_case_key(
                founding.unit_privates[seal["unit"]],
                seal["case"],
                seal["generation"],
                seal["unit"],
                seal["unit_generation"],
                seal["sealed"],
                case_public=key["public"],
            )
        except (AssertionError, CannotOpen):
            found.wrong.append(f"case {seal['case']}: {seal['unit']}'s seal does not open")
    for place, key in rows.keys.items():
        try:
            boxes.check_row_tag(founding.row_key, case_key_row(*place, key["public"]), key["row_tag"])
        except CannotOpen:
            found.wrong.append(f"case {place[0]}: its key has another's tag")
        readers, case = kinds[place], rows.cases.get(place[0])
        if case is None:
            found.wrong.append(f"case {place[0]}: has a key and is not there")
            continue
        if not case["walled"]:
            wanted = {UnitKind.OVERSIGHT, UnitKind.SCREENING}
        elif place[1] == case["generation"]:
            wanted = {UnitKind.OVERSIGHT, UnitKind.INTEGRITY}
        else:  # what came before the wall: who is behind it now keeps no key, oversight always does
            wanted = {UnitKind.OVERSIGHT}
        if readers != wanted:
            found.wrong.append(f"case {place[0]}: is sealed to {sorted(readers)}, not {sorted(wanted)}")
    return privates


def check_cases(rows: Rows, founding: Founding, privates: Mapping[tuple[UUID, int], bytes], found: Found) -> None:
    """Check that each case has its tip, chain, decisions, running clocks and, when it is urgent, its page."""
    with_tip = {tip["case"] for tip in rows.tips.values()}
    paged = {job["case"] for job in rows.jobs if job["kind"] == "page"}
    for case in rows.cases.values():
        where = f"case {case['id']}"
        events = rows.chains[case["chain"]]
        told = [event["type"] for event in events]
        if case["version"] not in {event["seq"] for event in events}:
            found.wrong.append(f"{where}: its version is not that of an event")
        if told[:3] != [EventType.CASE_OPENED, EventType.TIP_SEALED, EventType.DECISION_MADE]:
            found.wrong.append(f"{where}: its history begins with {told[:3]}")
        if case["id"] not in with_tip:
            found.wrong.append(f"{where}: has no tip")
        if (case["id"], case["generation"]) not in privates:
            found.wrong.append(f"{where}: nobody can open it")
        decisions = sorted(rows.decisions[case["id"]], key=lambda row: row["number"])
        numbers = [row["number"] for row in decisions]
        if numbers != list(range(1, case["decision"] + 1)) or told.count(EventType.DECISION_MADE) != len(numbers):
            found.wrong.append(f"{where}: has decisions {numbers} and stands on {case['decision']}")
        if decisions and case["level"] != min(row["level"] for row in decisions):
            found.wrong.append(f"{where}: stands at {case['level']}, which is not its most urgent decision")
        running = [clock for clock in rows.clocks[case["id"]] if clock["met_at"] is None and clock["lapsed_at"] is None]
        if sorted(clock["kind"] for clock in running) != [ClockKind.ACT, ClockKind.CLAIM]:
            found.wrong.append(f"{where}: has not its two running clocks")
        elif case["due_at"] != min(clock["due_at"] for clock in running):
            found.wrong.append(f"{where}: is not due when its clock says")
        if case["level"] == Level.P1 and case["id"] not in paged:
            found.wrong.append(f"{where}: is urgent, and nobody is paged")
        if case["walled"] and (case["flags"], case["province"], case["venue"]) != (None, None, None):
            found.wrong.append(f"{where}: is behind the wall and shows what it is about")
    for job in rows.jobs:
        if job["row_tag"] != boxes.row_tag(founding.row_key, fixed_columns(job)):
            found.wrong.append(f"job {job['key']}: has another's tag")


# --- accounts --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Opened:
    """A message that was opened with a unit's key."""

    row: Row
    words: str


def open_messages(rows: Rows, privates: Mapping[tuple[UUID, int], bytes], found: Found) -> list[Opened]:
    """Open every message, and check that it lies where its header says and in the order of its tip."""
    opened = []
    counted: Counter[UUID] = Counter()
    for row in rows.messages:
        where = f"message {row['number']} of tip {row['tip']}"
        counted[row["tip"]] += 1
        tip = rows.tips.get(row["tip"])
        if tip is None or tip["case"] != row["case"] or row["number"] != counted[row["tip"]]:
            found.wrong.append(f"{where}: does not fit its tip")
        kind = Kind.ACCOUNT if row["number"] == 1 else Kind.MESSAGE
        if row["header"] != envelope.header(row["case"], row["generation"], row["received_hour"], row["id"], kind):
            found.wrong.append(f"{where}: lies in another's place")
        try:
            private = privates[row["case"], row["generation"]]
            words = _open_words(private, Envelope(row["header"], row["seal"], row["body"]))
        except (KeyError, CannotOpen):
            found.wrong.append(f"{where}: does not open")
            continue
        opened.append(Opened(row, words))
    for tip in rows.tips.values():
        if not counted[tip["id"]] or tip["case"] not in rows.cases:
            found.wrong.append(f"tip {tip['id']}: has no message, or no case")
    return opened


def check_contacts(rows: Rows, founding: Founding, opened: list[Opened], found: Found) -> None:
    """Check that the relay can answer everybody who can be answered, and note whose words each message is."""
    numbers: dict[UUID | None, str | None] = {None: None}
    columns = ("id", "pseudonym", "epoch", "relay_generation", "key_sealed", "number_sealed")
    for row in rows.contacts.values():
        where = f"contact {row['id']}"
        fixed = {"table": "contact", **{name: row[name] for name in columns}}
        if row["row_tag"] != boxes.row_tag(founding.row_key, fixed):
            found.wrong.append(f"{where}: has another's tag")
        if row["tip_tag"] != tip_tag(founding.row_key, row["id"], row["tip"]):
            found.wrong.append(f"{where}: has another's tag of its tip")
        if row["quiet_tag"] != quiet_tag(founding.row_key, row["id"], row["opted_out_at"], row["quiet_until"]):
            found.wrong.append(f"{where}: has another's tag of its silence")
        if row["tip"] not in rows.tips or rows.tips[row["tip"]]["contact"] != row["id"]:
            found.wrong.append(f"{where}: has no tip of its own")
        try:
            sealed = (row["key_sealed"], row["number_sealed"])
            number = _open_contact(founding.relay_private, row["relay_generation"], row["id"], *sealed)
        except CannotOpen:
            found.wrong.append(f"{where}: its number does not open")
            continue
        if row["pseudonym"] != boxes.phone_name(founding.phone_pepper, number):
            found.wrong.append(f"{where}: is named after another number")
        numbers[row["id"]] = number
    for message in opened:
        tip = rows.tips.get(message.row["tip"], {})
        found.words[message.words] = numbers.get(tip.get("contact"))


def check_told(rows: Rows, privates: Mapping[tuple[UUID, int], bytes], opened: list[Opened], found: Found) -> None:
    """Check that the history commits to exactly the envelopes that are stored, one event each."""
    stored: defaultdict[UUID, list[Row]] = defaultdict(list)
    for message in opened:
        sealed = Envelope(message.row["header"], message.row["seal"], message.row["body"])
        stored[message.row["case"]].append(envelope.commitment(sealed, message.words))
    keys: defaultdict[UUID, list[bytes]] = defaultdict(list)
    for (case, _generation), private in privates.items():
        keys[case].append(private)
    for case in rows.cases.values():
        told = []
        for event in rows.chains[case["chain"]]:
            if event["type"] not in (EventType.TIP_SEALED, EventType.TIP_MESSAGE):
                continue
            row = next((row for row in rows.fields[event["eid"]] if row["name"] == "envelope"), None)
            value = None if row is None else _sealed_value(row, json.loads(event["body"]), keys[case["id"]])
            if value is None:
                found.wrong.append(f"case {case['id']}: event {event['seq']} does not open its commitment")
            told.append(value)
        if _in_order(told) != _in_order(stored[case["id"]]):
            found.wrong.append(f"case {case['id']}: its history tells of other messages than are stored")


def _in_order(values: list[Any]) -> list[str]:
    return sorted(json.dumps(value, sort_keys=True) for value in values)


def _sealed_value(row: Row, body: Row, privates: list[bytes]) -> Any:
    """Return the value of a sealed field that opens its commitment, or None."""
    for private in privates:
        try:
            secret = _unseal(private, f"field|{row['eid']}|{row['name']}", row["value"])
        except CannotOpen:
            continue
        value = json.loads(secret[32:])
        committed = base64.b64encode(ledger.commit_field(secret[:32], row["name"], value)).decode()
        return value if committed == body["fields"][row["name"]] else None
    return None


def check_acknowledged(
    rows: Rows, founding: Founding, opened: list[Opened], acknowledged: Iterable[Sent], found: Found
) -> None:
    """Check that what was thanked for is there as it was sent, and nothing at all is there twice."""
    names = Counter((row["provider"], row["kind"], row["delivery"]) for row in rows.messages)
    found.doubled += [f"delivery {name[2].hex()}" for name, times in names.items() if times > 1]
    by_words = Counter(message.words for message in opened)
    found.doubled += [words for words, times in by_words.items() if times > 1]
    by_delivery = {(m.row["provider"], m.row["kind"], m.row["delivery"]): m.words for m in opened}
    for sent in acknowledged:
        if sent.sid:
            there = by_delivery.get(("twilio", "sms", boxes.provider_name(founding.row_key, sent.sid))) == sent.words
        else:
            there = by_words[sent.words] > 0
        if not there:
            found.lost.append(sent.sid or sent.words)
        elif found.words.get(sent.words) != sent.sender:
            found.wrong.append(f"{sent.sid or sent.words}: the way back is to another number")
