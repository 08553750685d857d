"""Reads the log files of a node: the last lines of one log, or of several in the order of time, and new lines as they
are appended, over rotations.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

CHUNK = 64 << 10
LONGEST = 1 << 20
"""A line that is longer than this many bytes is shown before its end has come."""

_MOMENT = re.compile(r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d)[.,](\d{3})")
"""The time at the begin of a service's line. supervisord's lines have a space and a comma in it."""


def last(path: Path, lines: int, end: int | None = None) -> list[str]:
    """The last lines of a log, or of its first ``end`` bytes. If the file is short, lines of the rotated file before it
    are added. A log that does not exist has no lines.
    """
    found: list[str] = []
    for each, until in ((path, end), (path.with_name(path.name + ".1"), None)):
        if len(found) < lines and each.exists():
            found = _tail(each, lines - len(found), until) + found
    return found


def _tail(path: Path, lines: int, end: int | None) -> list[str]:
    """The last lines of a file, read from its end."""
    with path.open("rb") as file:
        position = file.seek(0, os.SEEK_END) if end is None else end
        data = b""
        while position > 0 and data.count(b"\n") <= lines:
            step = min(CHUNK, position)
            position = file.seek(position - step)
            data = file.read(step) + data
    return data.decode(errors="replace").removesuffix("\n").split("\n")[-lines:] if data else []


def in_order(logs: Iterable[tuple[str, list[str]]]) -> Iterator[tuple[str, str]]:
    """The lines of several logs in the order of time, each with the name of its log. A line without a time, such as one
    of a traceback, stays behind the line before it.
    """
    dated: list[tuple[str, str, str]] = []
    for name, lines in logs:
        moment = ""
        for line in lines:
            if match := _MOMENT.match(line):
                moment = " ".join(match.groups())
            dated.append((moment, name, line))
    return ((name, line) for _, name, line in sorted(dated, key=lambda each: each[0]))


class Follower:
    """Reads what is appended to a log from now on. The file may be rotated, and need not exist yet. ``position`` is its
    size at the start.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rest = b""
        self._file: BinaryIO | None = None
        self.position = 0
        if self._opened():
            assert self._file is not None
            self.position = self._file.seek(0, os.SEEK_END)

    def lines(self) -> Iterator[str]:
        """The whole lines that have been appended since the last call."""
        while self._file is not None or self._opened():
            assert self._file is not None
            replaced = self._replaced()  # asked first, so that what was written before the rotation is still read
            while data := self._file.read(CHUNK):
                *whole, self._rest = (self._rest + data).split(b"\n")
                if len(self._rest) > LONGEST:
                    whole.append(self._rest)
                    self._rest = b""
                yield from (line.decode(errors="replace") for line in whole)
            if not replaced:
                return
            self._file.close()
            self._file = None

    def _opened(self) -> bool:
        try:
            self._file = self._path.open("rb")
        except FileNotFoundError:  # before the first start, or between the two steps of a rotation
            return False
        return True

    def _replaced(self) -> bool:
        assert self._file is not None
        try:
            now = os.stat(self._path)
        except FileNotFoundError:
            return False
        return now.st_ino != os.fstat(self._file.fileno()).st_ino or now.st_size < self._file.tell()
