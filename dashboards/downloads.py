"""What leaves as a file: one answer for all of it, never shown by a browser, after a step-up and with its event."""

import json
import re
from collections.abc import Callable, Mapping
from typing import Annotated

from fastapi import APIRouter, Form, Response

from dashboards import terms
from dashboards.desk import InWords, OurDesk, Who, noted, stepped_up, team, unit_names
from dashboards.forms import CaseId, StaffForm
from dashboards.marks import visible
from dashboards.words import Words
from service import cases, reading, staff
from service.errors import NotFound
from service.reading import OpenedFile

router = APIRouter(prefix="/downloads/{case_id}")

OPAQUE = "application/octet-stream"
_UNSAFE = re.compile(r"[^A-Za-z0-9.-]+")
LONGEST_NAME = 80


def download(name: str, body: bytes) -> Response:
    """Return `body` as a file to be stored: of no type, so that no browser shows it or takes it for a page.

    name: what to call it; only ASCII letters, digits, ``.`` and ``-`` of it stay, and no leading dot. The gate adds
    ``nosniff`` and a policy under which it could do nothing if it were shown all the same.
    """
    safe = _UNSAFE.sub("-", name).lstrip(".-")[-LONGEST_NAME:] or "file"
    return Response(body, media_type=OPAQUE, headers={"Content-Disposition": f'attachment; filename="{safe}"'})


@router.post("/{what}")
def take_out(
    case_id: CaseId, what: str, form: Annotated[StaffForm, Form()], desk: OurDesk, who: Who, words: InWords
) -> Response:
    """Give out a part of a case as a file: ``account``, its words, or ``decision``, the record of the rules."""
    now = desk.clock()
    if what not in PARTS:
        raise NotFound("There is nothing here.")
    with noted(desk, who, case_id, now):
        reading.record_export(
            desk.sessions, desk.ledger, who.viewer, case_id, what, stepped_up=stepped_up(who, now), now=now
        )
        with desk.sessions.read() as session:
            case = cases.find(session, who.viewer, case_id)
            privates = staff.open_keys(session, desk.row_key, desk.cards, who, case).privates
            opened = reading.decrypt(session, case, privates)
            unit_team = team(who, unit_names(session, words))
    name = words.of_two(who.viewer.name, who.viewer.name_km)
    stamp = words("Given to {name}, {team}, {hour}", name=name, team=unit_team, hour=words.stamp(now))
    make, end = PARTS[what]
    return download(f"{cases.reference(case_id)}-{what}.{end}", make(words, stamp, opened).encode())


def _account(words: Words, stamp: str, opened: OpenedFile) -> str:
    told = [
        f"{words('First account') if one.first else words('Later message')} · "
        f"{terms.term(words, terms.CHANNELS, one.channel)} · {words.hour_of(one.received_hour)}\n\n{visible(one.text)}"
        for one in opened.accounts
    ]
    return "\n\n---\n\n".join([stamp, *told, stamp]) + "\n"


def _decision(words: Words, stamp: str, opened: OpenedFile) -> str:
    return json.dumps({"given_to": stamp, "record": dict(opened.record)}, ensure_ascii=False, indent=1) + "\n"


PARTS: Mapping[str, tuple[Callable[[Words, str, OpenedFile], str], str]] = {
    "account": (_account, "txt"),
    "decision": (_decision, "json"),
}
