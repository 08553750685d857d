"""The node's processes as the kernel sees them: their command lines name the node's state directory."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from services.traces.page.source import Process

_TICKS = os.sysconf("SC_CLK_TCK")
_PROC = Path("/proc")


def processes(state: Path, proc: Path = _PROC) -> Iterator[Process]:
    """Those of the node in ``state`` that run now. One that ends meanwhile is left out."""
    booted = _booted(proc)
    for entry in proc.iterdir():
        if entry.name.isdecimal():
            try:
                name = _name((entry / "cmdline").read_bytes(), os.fsencode(state))
                if name:
                    yield _figures(name, entry, booted)
            except (OSError, ValueError, IndexError):
                continue  # it has ended


def _name(line: bytes, state: bytes) -> str:
    """The name of a process of the node by its command line, such as ``content`` for ``python -m services.content
    --root ROOT --state STATE``; "" if it is none.
    """
    arguments = line.split(b"\0")
    if b"-m" not in arguments or b"--state" not in arguments:
        return ""
    match = re.fullmatch(rb"services\.([a-z]+)|(gateway)", arguments[arguments.index(b"-m") + 1])
    return (match[1] or match[2]).decode() if match and arguments[arguments.index(b"--state") + 1] == state else ""


def _figures(name: str, entry: Path, booted: float) -> Process:
    fields = (entry / "stat").read_bytes().rpartition(b")")[2].split()  # the name before may hold anything
    began = booted + int(fields[19]) / _TICKS
    spent = (int(fields[11]) + int(fields[12])) / _TICKS
    return Process(name, "", int(entry.name), began, _pss(entry), spent)


def _pss(entry: Path) -> int:
    for line in (entry / "smaps_rollup").read_bytes().splitlines():
        if line.startswith(b"Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def _booted(proc: Path) -> float:
    """When the machine was started, in seconds since the epoch."""
    return next(
        (float(line.split()[1]) for line in (proc / "stat").read_bytes().splitlines() if line.startswith(b"btime ")),
        0.0,
    )
