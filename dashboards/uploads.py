"""Forms that bring papers: read in memory, part by part, never by way of a file on a disk.

Only the addresses of `TAKES_PAPERS` are sent such forms; anywhere else the gate refuses them as before.
"""

import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.exceptions import HTTPException

from service.attachments import LARGEST, NewFile
from service.errors import Invalid

KIND = "multipart/form-data"
TAKES_PAPERS = re.compile(r"/cases/[0-9a-f-]{36}/(do/[a-z-]{1,20}|close)", re.ASCII)
LONGEST_FIELDS = 32 * 1024  # bytes of all that is no file
LONGEST_BODY = LARGEST + LONGEST_FIELDS + 8 * 1024  # all papers together, the fields, and what stands between them
MOST_PARTS = 20
_BOUNDARY = re.compile(rb"[0-9A-Za-z'()+_,./:=? -]{1,70}")
_UNREADABLE = "The form cannot be read."


@dataclass
class _Part:
    name: str = ""
    filename: str | None = None
    content: bytearray = field(default_factory=bytearray)


class _Reader:
    """What the parser tells of a body, part by part."""

    def __init__(self) -> None:
        self.parts: list[_Part] = []
        self.ended = False
        self._header = [bytearray(), bytearray()]
        self._small = 0

    def on_part_begin(self) -> None:
        if len(self.parts) == MOST_PARTS:
            raise Invalid(_UNREADABLE)
        self.parts.append(_Part())

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header[0] += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header[1] += data[start:end]

    def on_header_end(self) -> None:
        name, value = (bytes(half) for half in self._header)
        self._header = [bytearray(), bytearray()]
        if name.lower() != b"content-disposition":
            return
        kind, options = parse_options_header(value)
        if kind != b"form-data" or self.parts[-1].name or not options.get(b"name"):
            raise Invalid(_UNREADABLE)
        self.parts[-1].name = options[b"name"].decode()
        if b"filename" in options:
            self.parts[-1].filename = options[b"filename"].decode("utf-8", "replace")

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        part = self.parts[-1]
        if part.filename is None:
            self._small += end - start
            if self._small > LONGEST_FIELDS:
                raise HTTPException(413)
        part.content += data[start:end]

    def on_end(self) -> None:
        self.ended = True


async def read_papers(content_type: str, stream: AsyncIterator[bytes]) -> tuple[Mapping[str, str], tuple[NewFile, ...]]:
    """Return fields and files of a multipart body, each name at most once; a file that was not chosen is left out.

    Raises Invalid, HTTPException 413 as soon as the body, or what is no file in it, is too long.
    """
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if kind != KIND.encode() or not _BOUNDARY.fullmatch(boundary):
        raise Invalid(_UNREADABLE)
    reader, length = _Reader(), 0
    told = ("part_begin", "header_field", "header_value", "header_end", "part_data", "end")
    parser = MultipartParser(boundary, {f"on_{name}": getattr(reader, f"on_{name}") for name in told})  # type: ignore[arg-type]
    try:
        async for piece in stream:
            length += len(piece)
            if length > LONGEST_BODY:
                raise HTTPException(413)
            parser.write(piece)
        return _sorted_out(reader)
    except (FormParserError, UnicodeDecodeError):
        raise Invalid(_UNREADABLE) from None


def _sorted_out(reader: _Reader) -> tuple[Mapping[str, str], tuple[NewFile, ...]]:
    names = [part.name for part in reader.parts]
    if not reader.ended or len(set(names)) != len(names) or "" in names:
        raise Invalid(_UNREADABLE)
    fields = {part.name: part.content.decode() for part in reader.parts if part.filename is None}
    if any("\x00" in text for pair in fields.items() for text in pair):
        raise Invalid(_UNREADABLE)
    chosen = [part for part in reader.parts if part.filename is not None and (part.filename or part.content)]
    return fields, tuple(NewFile(part.name, part.filename or "", bytes(part.content)) for part in chosen)
