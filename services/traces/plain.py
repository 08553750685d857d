"""Attributes as JSON, for lists: short, and without what JSON has no word for."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence

from services.traces.store import Value

TEXT = 1000
"""Characters of a text, and of all names and texts of a list or map."""
MANY = 64
"""Attributes, and values of a list or map."""
ALL = 8_000
"""Characters of all attributes; those that do not fit are left out."""


def to_json(attributes: Mapping[str, Value]) -> str:
    """A JSON object. Bytes are base64, an infinite number is a text; what is too long ends in "..."."""
    found, room = [], ALL
    for name, value in [*attributes.items()][:MANY]:
        member = json.dumps({name[:TEXT]: _short(value)}, ensure_ascii=False)[1:-1]
        if len(member) <= room:
            room -= len(member)
            found.append(member)
    return f"{{{', '.join(found)}}}"


def from_json(text: str) -> dict[str, Value]:
    """The attributes again."""
    found: dict[str, Value] = json.loads(text or "{}")
    return found


def _short(value: Value) -> Value:
    match value:
        case str():
            return value if len(value) <= TEXT else f"{value[:TEXT]}..."
        case float() if not math.isfinite(value):
            return str(value)
        case bytes():
            return _short(base64.b64encode(value[:TEXT]).decode())
        case None | bool() | int() | float():
            return value
    if len(repr(value)) > TEXT:
        return "..."
    if isinstance(value, Mapping):
        return {str(name): _short(inner) for name, inner in [*value.items()][:MANY]}
    assert isinstance(value, Sequence)
    return [_short(inner) for inner in value[:MANY]]
