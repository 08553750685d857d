"""Traces of a file that somebody else may have written: OTLP as JSON (one document, or one a line, as the OpenTelemetry
collector's file exporter writes them) or as protobuf, also packed by gzip.
"""

from __future__ import annotations

import codecs
import gzip
import io
import itertools
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from client import files
from services.kit import errors
from services.traces import convert, otlp_json
from services.traces.store import Span

LARGEST = 256 << 20
"""Bytes of a file that are read, as it is and unpacked."""


@dataclass(frozen=True, slots=True)
class Read:
    """What is in a file."""

    name: str
    spans: Sequence[Span]
    refused: int = 0
    """Spans that were left out: their ids have a wrong length, or there are too many."""
    cut: int = 0
    """The last line, counted from 1, if it was left out because it is not complete; 0 if nothing was."""


def read(path: str) -> Read:
    """The spans of the file at ``path`` (``-`` is standard input). InvalidArgument if it is too large, of another
    format, or has no span; OSError if it cannot be read.
    """
    name = "standard input" if path == "-" else path
    with files.opened(path) as fd:
        data = _plain(_content(fd, name), name)
    why = f"{name} is neither OTLP JSON nor OTLP protobuf, such as splitd trace export writes"
    found = None
    try:
        found = _json(data, name)
    except _WrongLine as error:
        why = f"{name}: {error}"
    found = found or _protobuf(data, name)
    if found is None:
        raise _wrong(why)
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


def _plain(data: bytes, name: str) -> bytes:
    """The content without gzip, and in UTF-8 without a byte order mark."""
    if data.startswith(b"\x1f\x8b"):
        try:
            data = gzip.GzipFile(fileobj=io.BytesIO(data)).read(LARGEST + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise _wrong(f"{name} is packed by gzip, and cannot be unpacked: {error}") from None
        if len(data) > LARGEST:
            raise _wrong(f"{name} is larger than {LARGEST >> 20} MiB unpacked, which is the most that is read")
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", "replace").encode()
    return data.removeprefix(codecs.BOM_UTF8)


class _WrongLine(ValueError):
    """A line among others is wrong."""


def _json(data: bytes, name: str) -> Read | None:
    """The spans of JSON; None if it is something else. Protobuf can begin like JSON. _WrongLine."""
    if data.lstrip()[:1] not in (b"{", b"["):
        return None
    spans: list[Span] = []
    refused = cut = 0
    try:
        for number, document in _documents(data):
            if document is None:
                cut = number
                continue
            try:
                found = otlp_json.spans_from_json(document)
            except otlp_json.NotOtlp as error:
                if number:
                    raise _WrongLine(f"line {number} is no OTLP: {error}") from None
                raise
            room = otlp_json.SPANS - len(spans)
            spans += found.spans[:room]
            refused += found.refused + max(0, len(found.spans) - room)
    except RecursionError:
        raise _wrong(f"{name}: values are nested too deeply") from None
    except _WrongLine:
        raise
    except ValueError:
        return None
    return Read(name, spans, refused, cut)


def _documents(data: bytes) -> Iterator[tuple[int, Any]]:
    """The documents of JSON: one, those of an array, or one a line, each with its line if they are lines, else 0. The
    last line is None if it is no JSON: whoever writes it may not be ready. ValueError if it is no JSON, _WrongLine if
    a line is none.
    """
    try:
        whole = json.loads(data)
    except ValueError:
        lines = [(number, line) for number, line in enumerate(data.split(b"\n"), 1) if line.strip()]
        if not any(_is_document(line) for _, line in lines[:2]):
            raise
    else:
        yield from ((0, document) for document in (whole if isinstance(whole, list) else (whole,)))
        return
    for number, line in lines:
        try:
            document = json.loads(line)
        except ValueError as error:
            if number != lines[-1][0]:
                raise _WrongLine(f"line {number} is no JSON: {error}") from None
            document = None
        else:
            if document is None:
                raise _WrongLine(f"line {number} is no OTLP")
        yield number, document


def _is_document(line: bytes) -> bool:
    try:
        return otlp_json.is_otlp(json.loads(line))
    except ValueError:
        return False


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
