"""What the forms of a case's page have in common: the ids in their addresses, the token, the version that was shown."""

import re
from typing import Annotated
from uuid import UUID

from fastapi import Depends
from pydantic import BaseModel, ConfigDict, Field

from service.errors import Invalid, NoSuchCase

_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)
_VERSION = re.compile(r"[0-9]{1,9}", re.ASCII)


def read_id(case_id: str) -> UUID:
    """Return a case's id. One that is malformed does not exist, like any other that does not."""
    if not _ID.fullmatch(case_id):
        raise NoSuchCase
    return UUID(case_id)


def read_text_id(text_id: str) -> UUID:
    """Return the id of a text about a case."""
    return read_id(text_id)


def read_lowering_id(lowering_id: str) -> UUID:
    """Return the id of a proposal to lower a case."""
    return read_id(lowering_id)


def read_exclusion_id(exclusion_id: str) -> UUID:
    """Return the id of an exclusion."""
    return read_id(exclusion_id)


def read_narrowing_id(narrowing_id: str) -> UUID:
    """Return the id of a proposal to narrow a wall."""
    return read_id(narrowing_id)


def read_attachment_id(attachment_id: str) -> UUID:
    """Return the id of a paper of a case."""
    return read_id(attachment_id)


def read_closure_id(closure_id: str) -> UUID:
    """Return the id of a proposal to close a case."""
    return read_id(closure_id)


def read_version(text: str) -> int:
    """Return the version of a case that somebody saw. Raises Invalid."""
    if not _VERSION.fullmatch(text):
        raise Invalid("The form cannot be read.")
    return int(text)


CaseId = Annotated[UUID, Depends(read_id)]
TextId = Annotated[UUID, Depends(read_text_id)]
LoweringId = Annotated[UUID, Depends(read_lowering_id)]
ExclusionId = Annotated[UUID, Depends(read_exclusion_id)]
NarrowingId = Annotated[UUID, Depends(read_narrowing_id)]
AttachmentId = Annotated[UUID, Depends(read_attachment_id)]
ClosureId = Annotated[UUID, Depends(read_closure_id)]


class StaffForm(BaseModel):
    """A form of a signed-in page; the gate has compared its token."""

    model_config = ConfigDict(extra="forbid")
    t: str


class SeenForm(StaffForm):
    """A form about a case in the version that somebody saw."""

    version: int = Field(ge=0, le=2**31 - 1)
