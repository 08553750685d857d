"""The log files of a node as they are read: the last lines of one, or of several in the order of time, and what is
appended, over rotations.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

CHUNK = 64 << 10
LONGEST = 1 << 20
"""Bytes of a line that are waited for before they are shown as a line."""

_MOMENT = re.compile(r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d)[.,](\d{3})")
"""How a line of a service begins, and with a space and a comma one of supervisord."""


def last(path: Path, lines: int, end: int | None = None) -> list[str]:
    """The last lines of the log, or of its first ``end`` bytes, from the rotated file before it too if it is short;
    none of a log that is not there.
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
    """The lines of several logs, each with the name of its log, in the order of time. A line that names no time,
    such as one of a traceback, stays behind the one before it.
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
    """What is appended to a log from now on. The file may be rotated, and need not be there yet; ``position`` is
    where it ended.
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
        """Whole lines that have been appended since the last call."""
        while self._file is not None or self._opened():
            assert self._file is not None
            replaced = self._replaced()  # asked first: what was written before the rotation is read still
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
