"""What the processes of a node use, as the kernel counts it: ``python -m tests.hostile.watched NAME=PID...`` writes the
most memory that each took, as a JSON object, when its standard input ends. It is a program of its own, since reading
all of that takes tens of milliseconds each time.
"""

from __future__ import annotations

import contextlib
import json
import select
import sys
from collections.abc import Mapping
from pathlib import Path

PAUSE = 0.5
"""Seconds between two looks."""


def family(pids: Mapping[str, int]) -> dict[int, str]:
    """The names of these processes by pid, and of those below them (``NAME's PID``)."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found: dict[int, str] = {}
    for name, pid in pids.items():
        its = {pid: name}
        for _ in range(4):
            its |= {
                child: f"{name}'s {child}" for child, parent in parents.items() if parent in its and child not in its
            }
        found |= its
    return found


def memory(pids: Mapping[str, int]) -> dict[str, int]:
    """MiB of each process by its name, and of the workers below it."""
    found = {}
    for pid, title in family(pids).items():
        with contextlib.suppress(OSError, StopIteration):
            found[title] = (
                next(
                    int(line.split()[1])
                    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
                    if line.startswith("Pss:")
                )
                >> 10
            )
    return found


def processor(pids: Mapping[str, int]) -> dict[str, tuple[float, float]]:
    """By name, the seconds for which the threads of a process had a processor, and for which they waited for one."""
    found = {}
    for name, pid in pids.items():
        had = waited = 0
        for schedstat in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            with contextlib.suppress(OSError):  # the thread has ended
                its, its_waiting, _ = map(int, schedstat.read_text().split())
                had, waited = had + its, waited + its_waiting
        found[name] = had / 1e9, waited / 1e9
    return found


def main(pids: Mapping[str, int]) -> None:
    """Look until standard input ends."""
    most: dict[str, int] = {}
    while True:
        for name, size in memory(pids).items():
            most[name] = max(most.get(name, 0), size)
        if select.select([sys.stdin], [], [], PAUSE)[0]:
            print(json.dumps(most))
            return


if __name__ == "__main__":
    main({name: int(pid) for name, _, pid in (word.partition("=") for word in sys.argv[1:])})
