"""Traces of a file that somebody else may have written: OTLP as JSON (one document, or one a line, as the OpenTelemetry
collector's file exporter writes them) or as protobuf.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from client import files
from services.kit import errors
from services.traces import convert, otlp_json
from services.traces.store import Span

LARGEST = 256 << 20
"""Bytes of a file that are read."""


@dataclass(frozen=True, slots=True)
class Read:
    """What is in a file."""

    name: str
    spans: Sequence[Span]
    refused: int = 0
    """Spans that were left out: their ids have a wrong length, or there are too many."""


def read(path: str) -> Read:
    """The spans of the file at ``path`` (``-`` is standard input). InvalidArgument if it is too large, of another
    format, or has no span; OSError if it cannot be read.
    """
    name = "standard input" if path == "-" else path
    with files.opened(path) as fd:
        data = _content(fd, name)
    found = _json(data, name) or _protobuf(data, name)
    if found is None:
        raise _wrong(f"{name} is neither OTLP JSON nor OTLP protobuf, such as splitd trace export writes")
    if not found.spans:
        why = f": the ids of all {found.refused} have a wrong length" if found.refused else ""
        raise _wrong(f"{name} has no spans in it{why}")
    return found


def _wrong(message: str) -> errors.NodeError:
    return errors.InvalidArgument.verbatim(message)


def _content(fd: int, name: str) -> bytes:
    data = bytearray()
    while piece := os.read(fd, 1 << 20):
        data += piece
        if len(data) > LARGEST:
            raise _wrong(f"{name} is larger than {LARGEST >> 20} MiB, which is the most that is read")
    return bytes(data)


def _json(data: bytes, name: str) -> Read | None:
    """The spans of JSON; None if it is something else. Protobuf can begin like JSON."""
    if data.lstrip()[:1] not in (b"{", b"["):
        return None
    spans: list[Span] = []
    refused = 0
    try:
        for document in _documents(data):
            found = otlp_json.spans_from_json(document)
            room = otlp_json.SPANS - len(spans)
            spans += found.spans[:room]
            refused += found.refused + max(0, len(found.spans) - room)
    except RecursionError:
        raise _wrong(f"{name}: values are nested too deeply") from None
    except ValueError:
        return None
    return Read(name, spans, refused)


def _documents(data: bytes) -> Iterator[Any]:
    """The documents of JSON: one, those of an array, or one a line. ValueError if it is no JSON."""
    try:
        whole = json.loads(data)
    except ValueError:
        lines = [line for line in data.splitlines() if line.strip()]
        if len(lines) < 2:
            raise
        yield from map(json.loads, lines)
        return
    yield from whole if isinstance(whole, list) else (whole,)


def _protobuf(data: bytes, name: str) -> Read | None:
    """The spans of a TracesData, or of a request of an exporter, which looks the same; None if there are none: much
    that is not protobuf can be decoded as an empty message.
    """
    try:
        found = list(itertools.islice(convert.spans(data), otlp_json.SPANS + 1))
    except errors.DataLoss:
        return None
    spans = [span for span in found if len(span.trace) == 32 and len(span.id) == 16 and len(span.parent) in (0, 16)]
    return Read(name, spans[: otlp_json.SPANS], len(found) - len(spans)) if found else None
