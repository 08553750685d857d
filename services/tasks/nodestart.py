"""Whether this process is the first of its node's start: what is to be done once at ``splitd up``, and not when the
tasks service alone is started again.

A node starts with its supervisor, the parent of this process. Which one the work was last done for is in a file below
STATE; a supervisor is known by boot, pid and start time.
"""

from __future__ import annotations

import os
from pathlib import Path


class NodeStart:
    """Kept in ``file``, which goes with STATE at a reboot."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._supervisor = _process(os.getppid())

    @property
    def is_new(self) -> bool:
        """Whether the work is still to be done."""
        try:
            return self._file.read_text() != self._supervisor
        except FileNotFoundError:
            return True

    def done(self) -> None:
        """It is done. If the file cannot be written it is done again at the next start of this process."""
        new = self._file.with_suffix(".new")
        new.write_text(self._supervisor)
        new.replace(self._file)


def _process(pid: int) -> str:
    """Boot, pid and start time in clock ticks (``/proc/PID/stat``, behind the name, which may hold anything)."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    started = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19].decode()
    return f"{boot} {pid} {started}\n"
