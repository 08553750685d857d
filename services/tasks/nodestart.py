"""The node's start: tells a start of the whole node (``splitd up``) from one of the tasks service alone.

A node starts with its supervisor, the parent of this process. The work that is due once for each start of the node is
noted in a file below STATE, with the supervisor for which it was done: its boot, pid and start time.
"""

from __future__ import annotations

import os
from pathlib import Path


class NodeStart:
    """Kept in ``file``, which is lost with STATE at a reboot."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._supervisor = _process(os.getppid())

    @property
    def is_new(self) -> bool:
        """True while the work is still to be done."""
        try:
            return self._file.read_text() != self._supervisor
        except FileNotFoundError:
            return True

    def done(self) -> None:
        """Note that the work is done. If that fails it is done again at the next start of this process."""
        new = self._file.with_suffix(".new")
        new.write_text(self._supervisor)
        new.replace(self._file)


def _process(pid: int) -> str:
    """Boot, pid, and start time in clock ticks (in ``/proc/PID/stat`` behind the name, which may hold anything)."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    started = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19].decode()
    return f"{boot} {pid} {started}\n"
