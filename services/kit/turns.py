"""How long a turn of a process's event loop holds up everybody, for tests: in time of the processor, which does not
depend on who else uses the machine.

Where the environment has SPLITD_TURNS, a directory, a process writes there, into a file with its name, the longest turn
since the file was removed.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

VARIABLE = "SPLITD_TURNS"
_LOOK = 0.001
_SHORT = 0.002
"""Seconds of a turn that is not written down."""


def watch(name: str) -> None:
    """Begin to look at the turns of this loop, if they are asked for."""
    directory = os.environ.get(VARIABLE)
    if directory:
        _Turns(Path(directory) / name).begin()


def longest(directory: Path) -> dict[str, float]:
    """What the processes wrote: seconds of their longest turns."""
    return {each.name: float(each.read_text()) for each in directory.iterdir() if not each.name.startswith(".")}


class _Turns:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._loop = asyncio.get_running_loop()
        self._before = 0.0

    def begin(self) -> None:
        self._before = time.thread_time()
        self._loop.call_later(_LOOK, self._look)

    def _look(self) -> None:
        """Between two looks there is a turn or, if they are short, some."""
        took = time.thread_time() - self._before
        if took > _SHORT and took > self._written():
            new = self._path.with_name(f".{self._path.name}")
            new.write_text(f"{took:.4f}")
            new.replace(self._path)
        self.begin()

    def _written(self) -> float:
        try:
            return float(self._path.read_text())
        except FileNotFoundError:
            return 0.0
