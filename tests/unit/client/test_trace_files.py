"""Traces of files: OTLP as JSON, as lines of JSON, and as protobuf; and one line for what is none of them."""

from __future__ import annotations

import codecs
import gzip
import json
import os
from collections.abc import Callable
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


FORMS: dict[str, Callable[[list], bytes]] = {
    "json": lambda spans: json.dumps(otlp_json.spans_to_json(spans)).encode(),
    "indented": lambda spans: b"\n " + json.dumps(otlp_json.spans_to_json(spans), indent=2).encode(),
    "lines": lambda spans: b"\n".join(json.dumps(otlp_json.spans_to_json([span])).encode() for span in spans) + b"\n",
    "array": lambda spans: json.dumps([otlp_json.spans_to_json([span]) for span in spans]).encode(),
    "protobuf": lambda spans: convert.spans_to_pb(spans).SerializeToString(),
    "marked": lambda spans: codecs.BOM_UTF8 + FORMS["json"](spans),
    "marked lines": lambda spans: codecs.BOM_UTF8 + FORMS["lines"](spans).replace(b"\n", b"\r\n"),
    "UTF-16": lambda spans: FORMS["json"](spans).decode().encode("utf-16"),
    "gzip": lambda spans: gzip.compress(FORMS["protobuf"](spans)),
    "gzip in members": lambda spans: b"".join(map(gzip.compress, FORMS["lines"](spans).splitlines(keepends=True))),
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


def test_a_last_line_that_is_still_being_written_is_left_out(tmp_path: Path) -> None:
    """The reader says which it was; a wrong line before others is an error with its number."""
    path = tmp_path / "x"
    lines = FORMS["lines"](two()).splitlines()
    path.write_bytes(b"\n".join([lines[0], b"", lines[1], lines[2][:40]]))
    read = trace_files.read(str(path))
    assert (len(read.spans), read.cut) == (2, 4)
    for broken, why in ((lines[1][:40], "is no JSON: "), (b"{}", "is no OTLP: "), (b"null", "is no OTLP")):
        path.write_bytes(b"\n".join([lines[0], b"", broken, lines[2]]))
        with pytest.raises(errors.InvalidArgument, match=f"{path}: line 3 {why}"):
            trace_files.read(str(path))
    path.write_bytes(b"\n".join([lines[0][:40], *lines[1:]]))
    with pytest.raises(errors.InvalidArgument, match=f"{path}: line 1 is no JSON: "):
        trace_files.read(str(path))


def test_a_packed_file_is_unpacked_up_to_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is cut short, or is no gzip behind its first bytes, is said."""
    path = tmp_path / "x"
    packed = gzip.compress(FORMS["json"](two()) + b" " * (5 << 20))
    monkeypatch.setattr(trace_files, "LARGEST", 4 << 20)
    for data, why in (
        (packed, "is larger than 4 MiB unpacked"),
        (gzip.compress(FORMS["json"](two()))[:-20], "cannot be unpacked"),
        (b"\x1f\x8bxxxx", "cannot be unpacked"),
    ):
        path.write_bytes(data)
        with pytest.raises(errors.InvalidArgument, match=f"{path} .*{why}"):
            trace_files.read(str(path))


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
