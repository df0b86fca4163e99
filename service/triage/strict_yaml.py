"""YAML read as plain data: every scalar is a string, so that ``yes`` stays ``yes`` (triage.md section 4)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from service.errors import Misconfigured

Plain: TypeAlias = "str | list[Plain] | dict[str, Plain]"

_Loader: Any = getattr(yaml, "CBaseLoader", yaml.BaseLoader)


def load(path: Path, refuse: type[Misconfigured] = Misconfigured) -> dict[str, Plain]:
    """Return the one document of the file at `path`: maps with string keys, lists and strings.

    Raises `refuse` if the file cannot be read, is not one map, or uses duplicate keys, anchors, aliases or tags.
    """
    try:
        data = _document(yaml.parse(path.read_text(encoding="utf-8"), Loader=_Loader))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, _Refused) as error:
        raise refuse(f"{path.name}: {_first_line(error)}") from error
    if not isinstance(data, dict):
        raise refuse(f"{path.name}: not a map")
    return data


class _Refused(Exception):
    """A part of YAML that plain data does not need."""


def _first_line(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    if mark is not None:
        return f"line {mark.line + 1}: {getattr(error, 'problem', 'not YAML')}"
    return str(error) if isinstance(error, _Refused) else type(error).__name__


def _document(events: Iterator[Any]) -> Plain:
    documents: list[Plain] = []
    for event in events:
        if isinstance(event, yaml.DocumentStartEvent):
            documents.append(_value(events, next(events)))
    if len(documents) != 1:
        raise _Refused("not exactly one document")
    return documents[0]


def _value(events: Iterator[Any], event: Any) -> Plain:
    line = event.start_mark.line + 1
    if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
        raise _Refused(f"line {line}: aliases and anchors are refused")
    if event.tag is not None:
        raise _Refused(f"line {line}: tags are refused")
    if isinstance(event, yaml.ScalarEvent):
        return str(event.value)
    if isinstance(event, yaml.SequenceStartEvent):
        items: list[Plain] = []
        for item in iter(lambda: next(events), None):
            if isinstance(item, yaml.SequenceEndEvent):
                return items
            items.append(_value(events, item))
    return _mapping(events, line)


def _mapping(events: Iterator[Any], line: int) -> dict[str, Plain]:
    pairs: dict[str, Plain] = {}
    while not isinstance(event := next(events), yaml.MappingEndEvent):
        key = _value(events, event)
        if not isinstance(key, str):
            raise _Refused(f"line {line}: a key must be a word")
        if key in pairs:
            raise _Refused(f"line {event.start_mark.line + 1}: duplicate key {key}")
        pairs[key] = _value(events, next(events))
    return pairs
