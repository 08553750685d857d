"""Processor time and memory of processes, read from /proc. Processor time includes processes that ended meanwhile."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from bench.peers import Peer

_TICK = 1 / os.sysconf("SC_CLK_TCK")
INTERVAL = 0.05
"""Seconds between two looks at the memory."""


@dataclass(frozen=True, slots=True)
class Process:
    """A process: its parent, and the processor time (user and system, in seconds) of itself and of the children that it
    has waited for.
    """

    parent: int
    own: float
    reaped: float

    @classmethod
    def parse(cls, stat: str) -> Self:
        """Parse ``/proc/PID/stat``, whose second field may hold anything, also parentheses and spaces."""
        fields = stat.rpartition(")")[2].split()
        return cls(
            int(fields[1]), (int(fields[11]) + int(fields[12])) * _TICK, (int(fields[13]) + int(fields[14])) * _TICK
        )


def processes() -> dict[int, Process]:
    """All processes of the machine, by pid."""
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):  # it has ended
                found[int(entry)] = Process.parse(Path("/proc", entry, "stat").read_text())
    return found


def below(roots: Iterable[int], there: Mapping[int, Process]) -> set[int]:
    """``roots`` and all their descendants, as far as they exist."""
    children: dict[int, list[int]] = {}
    for pid, process in there.items():
        children.setdefault(process.parent, []).append(pid)
    found: set[int] = set()
    waiting = [pid for pid in roots if pid in there]
    while waiting:
        pid = waiting.pop()
        if pid not in found:
            found.add(pid)
            waiting += children.get(pid, ())
    return found


def ancestors(pid: int, there: Mapping[int, Process]) -> Iterator[int]:
    """Its parent, that one's parent, and so on."""
    while pid in there and (pid := there[pid].parent):
        yield pid


def pss(pids: Iterable[int]) -> float:
    """Proportional set size of processes together, in MB (1e6 bytes). Processes that have ended have none."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            line = next(
                (x for x in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines() if x.startswith("Pss:")),
                "Pss: 0 kB",
            )
            total += int(line.split()[1]) * 1024
    return total / 1e6


class Spent:
    """Processor time of a daemon, by process, from this moment on. Processes that its processes start are counted with
    their ancestor, as its children's time; so is what one of its own processes took before it ended.
    """

    def __init__(self, peer: Peer) -> None:
        self._names = {pid: name(pid) for pid in peer.pids()}
        there = processes()
        self._ancestors = {pid: [*ancestors(pid, there)] for pid in self._names}
        self._before = self._all(there)

    def _all(self, there: Mapping[int, Process]) -> dict[int, tuple[float, float]]:
        """The time of each process, and of its children."""
        found = {}
        for pid in self._names.keys() & there.keys():
            workers = below([pid], there) - {pid}
            workers -= below(workers & self._names.keys(), there)  # those have names of their own
            found[pid] = (there[pid].own, there[pid].reaped + sum(there[w].own + there[w].reaped for w in workers))
        return found

    def since(self) -> dict[str, float]:
        """Seconds by process, without processes that took none."""
        now = self._all(processes())
        spent: dict[str, float] = {}
        for pid, (own, children) in self._before.items():
            if pid in now:
                who, other = self._names[pid], f"{self._names[pid]}'s children"
                spent[who] = spent.get(who, 0.0) + now[pid][0] - own
                spent[other] = spent.get(other, 0.0) + now[pid][1] - children
            elif (above := next((each for each in self._ancestors[pid] if each in now), None)) is not None:
                # it has ended, and its parent's time has what it took from its own beginning on
                other = f"{self._names[above]}'s children"
                spent[other] = spent.get(other, 0.0) - own - children
        return {who: seconds for who, seconds in spent.items() if seconds > _TICK / 2}


class Peak:
    """The largest memory of groups of processes, in MB, read every :data:`INTERVAL`; a context manager."""

    def __init__(self, groups: Mapping[str, Callable[[Mapping[int, Process]], Collection[int]]]) -> None:
        """``groups``: for each name a function that selects the pids of the group from all processes."""
        self._groups = groups
        self.mb = dict.fromkeys(groups, 0.0)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            there = processes()
            members = {group: pids(there) for group, pids in self._groups.items()}
            sizes = {pid: pss([pid]) for pid in set().union(*members.values())}
            for group, pids in members.items():
                self.mb[group] = max(self.mb[group], sum(sizes[pid] for pid in pids))
            if self._ended.wait(INTERVAL):
                return


def name(pid: int) -> str:
    """The name of a process here: the module that it runs, or its program."""
    arguments = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    return arguments[arguments.index("-m") + 1] if "-m" in arguments else Path(arguments[0]).name
