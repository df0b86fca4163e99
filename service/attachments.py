"""Files of a case: sealed, never changed, each committed to by the event that filed it (keys.md section 5).

A proof is such a file (casework.md section 5; DESIGN section 7.2): a paper or a picture of one, never words typed here;
not empty, not one that proves something else already, and opened by whoever approves what rests on it.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import exists, func, select
from sqlalchemy.orm import aliased
from sqlmodel import Session, col

from service.canonical import canonical
from service.cases import OpenedCase, case_public, find, state_class
from service.db import Sessions, Tx, write
from service.errors import CannotOpen, InvalidForm, NotFound
from service.ledger.events import EventType, Ledger, NewEvent, Sealed, append
from service.models import Attachment, Case, LedgerEvent, LedgerField
from service.vault import boxes, envelope
from service.vault.envelope import Envelope, Kind
from service.walls import Viewer, readable

LARGEST = 20 * 1024 * 1024  # bytes of a scanned paper
LONGEST_NAME = 200
# What a scanner or a phone makes of a paper, by how its content begins.
KINDS: dict[bytes, str] = {b"%PDF-": "pdf", b"\xff\xd8\xff": "jpg", b"\x89PNG\r\n\x1a\n": "png"}


@dataclass(frozen=True, slots=True, repr=False)
class NewFile:
    """A file as it was sent, before it is sealed. field: the form's field that it came in."""

    field: str
    name: str
    content: bytes


def kind_of(content: bytes) -> str | None:
    """Return ``pdf``, ``jpg`` or ``png`` by the first bytes, or None for anything else."""
    return next((kind for start, kind in KINDS.items() if content.startswith(start)), None)


def attach(
    tx: Tx, row_key: bytes, viewer: Viewer, case: Case, new: NewFile, now: datetime
) -> tuple[UUID, dict[str, Any]]:
    """Seal and store a file of a case; return its id and the fields that the event of the same act must carry.

    Raises InvalidForm for a file that is empty, too large, neither PDF nor picture, or attached before to a case that
    `viewer` may see. Of the others nothing is told.
    """
    if not new.content:
        raise InvalidForm(new.field, "Attach the paper, or a photo of it.")
    if len(new.content) > LARGEST:
        raise InvalidForm(new.field, "The file is larger than 20 MB. Scan it smaller.")
    if kind_of(new.content) is None:
        raise InvalidForm(new.field, "Attach a PDF, or a photo as JPEG or PNG.")
    printed = boxes.file_name(row_key, sha256(new.content).digest())
    same = exists().where(col(Attachment.print) == printed, col(Attachment.case) == col(Case.id), readable(viewer))
    if tx.scalar(select(same)):
        raise InvalidForm(new.field, "This file proves something already. Attach the paper of this step.")
    public, item = case_public(tx, case, row_key), uuid4()
    header = envelope.header(case.id, case.generation, now, item, Kind.FILE)
    seal, pieces = envelope.seal_stream(public, header, [new.content], len(new.content))
    body = b"".join(pieces)
    name_header = envelope.header(case.id, case.generation, now, item, Kind.META)
    named = envelope.seal_text(public, name_header, json.dumps({"name": new.name[:LONGEST_NAME]}, ensure_ascii=False))
    number = tx.scalar(select(func.count()).select_from(Attachment).where(col(Attachment.case) == case.id)) or 0
    tx.add(
        Attachment(
            id=item,
            case=case.id,
            number=number + 1,
            generation=case.generation,
            print=printed,
            filed_by=viewer.member,
            filed_hour=now.replace(minute=0, second=0, microsecond=0),
            header=header,
            seal=seal,
            body=body,
            name_header=named.header,
            name_seal=named.seal,
            name_body=named.body,
        )
    )
    tx.flush()
    digests = {"header": sha256(header).hexdigest(), "body": sha256(body).hexdigest()}
    plain = sha256(new.content).hexdigest()
    return item, {"attachment": item.hex, "proof": Sealed(digests | {"plain": plain}, public)}


def attached(session: Session, case: Case) -> list[Attachment]:
    """Return the files of a case, oldest first. Whoever may see the case sees that they are there."""
    of_case = select(Attachment).where(col(Attachment.case) == case.id)
    return list(session.scalars(of_case.order_by(col(Attachment.number))).all())


def record_opening(
    sessions: Sessions, ledger: Ledger, viewer: Viewer, case_id: UUID, attachment_id: UUID, now: datetime
) -> None:
    """Write that `viewer` opens a file, before it is decrypted. Raises NoSuchCase, NotFound, StorageUnavailable."""

    def note(tx: Tx) -> None:
        case = find(tx, viewer, case_id)
        _attachment(tx, case, attachment_id)
        fields = {"attachment": attachment_id.hex}
        event = NewEvent(EventType.ATTACHMENT_OPENED, now, viewer.actor, state_class(case.state), case.due_at, fields)
        append(tx, ledger, case.chain, [event])

    write(sessions, note)


def open_file(session: Session, opened: OpenedCase, attachment_id: UUID) -> tuple[str, Iterator[bytes]]:
    """Return the name and the content of a file whose opening is on record (`record_opening`).

    Raises NotFound, or CannotOpen, also while the content is read, for a file that was changed, cut or swapped.
    """
    row = _attachment(session, opened.case, attachment_id)
    private = opened.privates.get(row.generation)
    if private is None:
        raise CannotOpen("No key here opens this file.")
    for header, kind in ((row.header, Kind.FILE), (row.name_header, Kind.META)):
        if header != envelope.header(row.case, row.generation, row.filed_hour, row.id, kind):
            raise CannotOpen("The file's header is another's.")
    meta = json.loads(envelope.open_text(private, Envelope(row.name_header, row.name_seal, row.name_body)))
    return meta["name"], envelope.open_stream(private, row.header, row.seal, [row.body])


def opened_by(session: Session, case: Case, member: UUID) -> frozenset[UUID]:
    """Return the files of a case that `member` has opened: what they approve must be among these."""
    what, who = aliased(LedgerField), aliased(LedgerField)
    opened = (
        select(col(what.value))
        .join(LedgerEvent, col(LedgerEvent.eid) == col(what.eid))
        .join(who, col(who.eid) == col(what.eid))
        .where(
            *(col(LedgerEvent.case) == case.chain, col(LedgerEvent.type) == EventType.ATTACHMENT_OPENED),
            *(col(what.name) == "attachment", col(who.name) == "who", col(who.value) == canonical(member.hex)),
        )
    )
    return frozenset(UUID(json.loads(value)) for value in session.scalars(opened).all())


def _attachment(session: Session, case: Case, attachment_id: UUID) -> Attachment:
    of_case = select(Attachment).where(col(Attachment.id) == attachment_id, col(Attachment.case) == case.id)
    row = session.scalars(of_case).one_or_none()
    if row is None:
        raise NotFound("There is no such file.")
    return row
