"""Traces of files: OTLP as JSON, as lines of JSON, and as protobuf; and one line for what is none of them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from client import trace_files
from services.kit import errors
from services.traces import convert, otlp_json
from tests.unit.traces.spans import OTHER, Spans


def two() -> list:
    spans, other = Spans(), Spans(OTHER)
    spans.add("registry.fetch", 0, 5, spans.add("pull", 0, 10, splitd__operation="pull"))
    other.add("push", 20, 30)
    return [*spans.spans, *other.spans]


FORMS = {
    "json": lambda spans: json.dumps(otlp_json.spans_to_json(spans)).encode(),
    "indented": lambda spans: b"\n " + json.dumps(otlp_json.spans_to_json(spans), indent=2).encode(),
    "lines": lambda spans: b"\n".join(json.dumps(otlp_json.spans_to_json([span])).encode() for span in spans) + b"\n",
    "array": lambda spans: json.dumps([otlp_json.spans_to_json([span]) for span in spans]).encode(),
    "protobuf": lambda spans: convert.spans_to_pb(spans).SerializeToString(),
}


@pytest.mark.parametrize("form", FORMS)
def test_each_form_has_the_same_spans(form: str, tmp_path: Path) -> None:
    """Whatever the file is called."""
    (tmp_path / "x").write_bytes(FORMS[form](two()))
    read = trace_files.read(str(tmp_path / "x"))
    key = lambda span: (span.trace, span.id)
    assert [(s.trace, s.id, s.name, s.start, s.end) for s in sorted(read.spans, key=key)] == [
        (s.trace, s.id, s.name, s.start, s.end) for s in sorted(two(), key=key)
    ]
    assert read.refused == 0


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is neither OTLP JSON nor OTLP protobuf"),
        (b"hello", "is neither OTLP JSON nor OTLP protobuf"),
        (b"\x7fELF" + bytes(1000), "is neither OTLP JSON nor OTLP protobuf"),
        (b'{"traceEvents": []}', "is neither OTLP JSON nor OTLP protobuf"),
        (b'{"resourceSpans": [', "is neither OTLP JSON nor OTLP protobuf"),
        (b'{"resourceSpans": []}', "has no spans in it"),
        (b"[" * 100_000, "values are nested too deeply"),
        (json.dumps(otlp_json.spans_to_json(two())).replace("aaaa", "").encode(), "1 of 3"),
    ],
)
def test_another_file_is_named_in_one_line(data: bytes, said: str, tmp_path: Path) -> None:
    """The message has the file's name."""
    path = tmp_path / "x"
    path.write_bytes(data)
    if said == "1 of 3":
        read = trace_files.read(str(path))
        assert (len(read.spans), read.refused) == (1, 2)
        return
    with pytest.raises(errors.InvalidArgument, match=said) as caught:
        trace_files.read(str(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_never_ends_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """/dev/zero is such a file."""
    monkeypatch.setattr(trace_files, "LARGEST", 4 << 20)
    with pytest.raises(errors.InvalidArgument, match="is larger than 4 MiB"):
        trace_files.read("/dev/zero")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """As any command names it."""
    with pytest.raises(IsADirectoryError):
        trace_files.read(str(tmp_path))
    with pytest.raises(FileNotFoundError) as caught:
        trace_files.read(str(tmp_path / os.fsdecode(b"none")))
    assert caught.value.filename == str(tmp_path / "none")
