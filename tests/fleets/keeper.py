"""Clears away a test's network when the test is over, however it ended: ``python -m tests.fleets.keeper PREFIX DIRECTORY``
waits until its standard input ends, which is a pipe of the test's process. A SIGKILL of that closes it, too.

Then it kills every process in the network namespaces whose names begin with PREFIX, and what those have started in
namespaces of their own (the processes of containers), deletes the namespaces and with them all links, and the cgroups
whose names begin with PREFIX, and removes DIRECTORY with what is mounted in it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

from tests.fleets import processors
from tests.support import processes_naming, remove

NAMESPACES = Path("/run/netns")
SECONDS = 20.0
"""Within which killed processes must be gone."""


def named(prefix: str) -> list[str]:
    """The network namespaces whose names begin so."""
    return sorted(path.name for path in NAMESPACES.glob(f"{prefix}*"))


def inhabitants(names: list[str]) -> set[int]:
    """The processes in these network namespaces, and all that descend from them."""
    found: set[int] = set()
    for name in names:
        said = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False).stdout
        found |= {int(pid) for pid in said.split()}
    children = defaultdict(set)
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            pid, _, rest = stat.read_text().partition(" ")
            children[int(rest.rpartition(")")[2].split()[1])].add(int(pid))
    left = list(found)
    while left:
        more = children[left.pop()] - found
        found |= more
        left += more
    return found


def clear(prefix: str, directory: Path) -> None:
    """Kill and remove everything. A TimeoutError names what cannot be killed."""
    names = named(prefix)
    end = time.monotonic() + SECONDS
    while left := inhabitants(names) | set(processes_naming(directory)) - {os.getpid()}:
        if time.monotonic() > end:
            raise TimeoutError(f"still there {SECONDS:g} s after SIGKILL: {sorted(left)}")
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    for name in names:
        subprocess.run(["ip", "netns", "del", name], check=True)
    while not processors.remove(prefix):
        if time.monotonic() > end:
            raise TimeoutError(f"still there {SECONDS:g} s after SIGKILL: {[*map(str, processors.groups(prefix))]}")
        time.sleep(0.02)
    remove(directory)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # its end is that of its input
    sys.stdin.buffer.read()
    clear(sys.argv[1], Path(sys.argv[2]))
