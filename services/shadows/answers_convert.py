"""Makes comparable fields of the messages that a service answers, and leaves out what differs by design: where a store
has its files, the keys that copies were given, times, and the order of lists.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

LONGEST = 256
"""Characters of a value; a longer one is cut, and its digest appended."""
MOST = 2_000
"""Fields of an answer; of a longer one only its digest is compared."""

_NAMES = ("digest", "ref", "name", "key", "id")
"""The fields by which an item of a list is known."""
_PATH = re.compile(r"(?<![\w.])/[^\s:,=]*")

Rename = Callable[[str], str]
"""Turns the names that a copy was given back into those of the live call."""


def fields_of(messages: Sequence[Message], rename: Rename = str) -> dict[str, str]:
    """The fields of an answer: one message, or those of a stream, which count as one with all items of their lists. A
    field's name is its path; see :attr:`services.shadows.store.Answer.fields`.
    """
    data = [message for message in messages if _is_data(message)]
    if data:
        return _of_data(data)
    found: dict[str, str] = {}
    for path, value in _joined(messages, rename):
        if len(found) >= MOST:
            whole = hashlib.sha256(repr(sorted(_joined(messages, rename))).encode()).hexdigest()
            return {"all fields": f"more than {MOST}, sha256:{whole}"}
        found[path] = value
    return found


def shown(message: Message) -> str:
    """The message as one short line, for reports."""
    return _cut(", ".join(f"{path}={value}" for path, value in sorted(_fields(message, "", str))))


def _is_data(message: Message) -> bool:
    """Whether it is a piece of a blob."""
    return [field.name for field in message.DESCRIPTOR.fields] == ["offset", "data"]


def _of_data(pieces: Sequence[Any]) -> dict[str, str]:
    """A blob's bytes, however they were cut into messages. Offsets count from the first byte sent in containerd, from
    the blob's begin elsewhere, so they are left out.
    """
    whole, size = hashlib.sha256(), 0
    for piece in pieces:
        whole.update(piece.data)
        size += len(piece.data)
    return {"size": str(size), "data": f"sha256:{whole.hexdigest()}"}


def _joined(messages: Sequence[Message], rename: Rename) -> Iterator[tuple[str, str]]:
    if not messages:
        return
    whole = type(messages[0])()
    for message in messages:
        whole.MergeFrom(message)
    yield from _fields(whole, "", rename)


def _fields(message: Message, prefix: str, rename: Rename) -> Iterator[tuple[str, str]]:
    for field, value in message.ListFields():
        path = f"{prefix}{field.name}"
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            for key in value:
                yield from _one(field.message_type.fields_by_name["value"], value[key], f"{path}.{key}", rename)
        elif field.is_repeated:
            yield from _many(field, value, path, rename)
        else:
            yield from _one(field, value, path, rename)


def _one(field: FieldDescriptor, value: Any, path: str, rename: Rename) -> Iterator[tuple[str, str]]:
    if field.message_type is None:
        yield path, _text(field, value, rename)
    elif field.message_type.full_name == Timestamp.DESCRIPTOR.full_name:
        yield path, "a time" if value.seconds > 0 else "no time"
    else:
        yield from _fields(value, f"{path}.", rename)


def _many(field: FieldDescriptor, values: Any, path: str, rename: Rename) -> Iterator[tuple[str, str]]:
    """A list without its order: the items of one that have names are known by these, others by their place in the
    sorted list.
    """
    if field.message_type is None:
        for place, text in enumerate(sorted(_text(field, value, rename) for value in values)):
            yield f"{path}[{place}]", text
        return
    items = []
    for value in values:
        inner = dict(_fields(value, "", rename))
        items.append((next((inner[name] for name in _NAMES if inner.get(name)), ""), sorted(inner.items())))
    for place, (name, inner_fields) in enumerate(sorted(items)):
        for inner_path, text in inner_fields:
            yield f"{path}[{name or place}].{inner_path}", text


def _text(field: FieldDescriptor, value: Any, rename: Rename) -> str:
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return known.name if known is not None else str(value)
    if isinstance(value, bytes):
        return f"{len(value)} bytes, sha256:{hashlib.sha256(value).hexdigest()}"
    if isinstance(value, str):
        return _cut(_PATH.sub("PATH", rename(value)))
    return str(value)


def _cut(text: str) -> str:
    if len(text) <= LONGEST:
        return text
    return f"{text[: LONGEST - 84]}… sha256:{hashlib.sha256(text.encode()).hexdigest()}"
