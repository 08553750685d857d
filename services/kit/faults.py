"""Named points where a crash test may kill the process, as a power cut or the OOM killer would.

A test makes the file ``$SPLITD_FAULTS/POINT`` (the directory is given to the whole node by the environment); the first
process to reach the point removes the file and dies by SIGKILL, so that its successor gets past it. Without the variable a point
costs one comparison.
"""

from __future__ import annotations

import os
import signal

_DIRECTORY = os.environ.get("SPLITD_FAULTS", "")


def fault(point: str) -> None:
    """Die here if a test asked for it; ``point`` is like ``content.before-rename``."""
    if not _DIRECTORY:
        return
    try:
        os.unlink(os.path.join(_DIRECTORY, point))
    except FileNotFoundError:
        return
    os.kill(os.getpid(), signal.SIGKILL)
