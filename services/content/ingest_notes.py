"""The files beside an ingest's bytes: its ref, its total, and when it began and was changed, as containerd has them."""

from __future__ import annotations

import datetime
import os
import re

from services.content.store import Status
from services.kit.holes import without_holes

_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)")


def parse_time(text: str) -> int:
    """Nanoseconds since the epoch of an RFC 3339 time; ValueError if it is malformed."""
    parts = _TIME.fullmatch(text)
    if not parts:
        raise ValueError(f"{text!r} is not an RFC 3339 time")
    seconds = int(datetime.datetime.fromisoformat(parts[1] + parts[3].replace("Z", "+00:00")).timestamp())
    return seconds * 10**9 + int((parts[2] or "0").ljust(9, "0"))


def format_time(nanoseconds: int) -> str:
    """The time as Go writes it: UTC, no more digits than needed."""
    seconds, rest = divmod(nanoseconds, 10**9)
    text = datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return text + (f".{rest:09d}".rstrip("0") if rest else "") + "Z"


def read_status(directory: str) -> Status:
    """FileNotFoundError if there is no ingest, ValueError if it is broken or is just being begun."""
    with open(os.path.join(directory, "data"), "rb", buffering=0) as file:
        data, offset = os.fstat(file.fileno()), without_holes(file.fileno())
    ref = _read(directory, "ref")
    if not ref:
        raise ValueError(f"{directory}: its ref is empty")
    try:
        total = int(_read(directory, "total"))
    except (FileNotFoundError, ValueError):
        total = 0
    return Status(
        ref,
        offset,
        total,
        started_at=parse_time(_read(directory, "startedat")),
        updated_at=max(data.st_mtime_ns, parse_time(_read(directory, "updatedat"))),
    )


def _read(directory: str, name: str) -> str:
    with open(os.path.join(directory, name), encoding="utf-8", newline="") as file:
        return file.read()


def write(directory: str, name: str, text: str) -> None:
    with open(os.path.join(directory, name), "w", encoding="utf-8", newline="") as file:
        file.write(text)


def replace(directory: str, name: str, text: str) -> None:
    """As :func:`write`, where somebody may read the file meanwhile: no reader finds it empty."""
    new = f"{name}.new"
    write(directory, new, text)
    os.replace(os.path.join(directory, new), os.path.join(directory, name))
