"""Named points at which a test may stop the process, as a power cut, the OOM killer or a bug would.

A test makes the file ``$SPLITD_FAULTS/POINT``; the environment gives the directory to the whole node. The first process
that reaches the point removes the file and does what the file says, so its successor gets past the point:

- an empty file: it dies by SIGKILL;
- ``hang``: it never returns;
- ``hang-in-c``: it never returns, and never releases the GIL;
- ``sleep SECONDS``: it returns late;
- ``wait-in-kernel``: it is in state D until its child dies.

Without the variable a point costs one comparison.
"""

from __future__ import annotations

import os
import signal
import time

CLONE_VFORK = 0x4000
"""The caller waits in the kernel (state D) until the child ends or executes a program."""

_DIRECTORY = os.environ.get("SPLITD_FAULTS", "")


def fault(point: str) -> None:
    """Do what a test asked for at this point. ``point`` is a name like ``content.before-rename``."""
    if not _DIRECTORY:
        return
    path = os.path.join(_DIRECTORY, point)
    try:
        with open(path) as file:
            what = file.read().split()
        os.unlink(path)
    except FileNotFoundError:
        return
    match what:
        case []:
            os.kill(os.getpid(), signal.SIGKILL)
        case ["hang"]:
            while True:
                pass
        case ["hang-in-c"]:
            import ctypes

            # zeros are an unlocked pthread_mutex_t, which is not recursive: its second lock waits for ever
            mutex = ctypes.create_string_buffer(64)
            libc = ctypes.PyDLL(None)
            libc.pthread_mutex_lock(mutex)
            libc.pthread_mutex_lock(mutex)
        case ["wait-in-kernel"]:
            import ctypes

            without_gil = ctypes.CDLL(None)
            stack = ctypes.create_string_buffer(1 << 16)
            without_gil.clone(without_gil.pause, ctypes.byref(stack, 1 << 15), CLONE_VFORK | signal.SIGCHLD, None)
        case ["sleep", seconds]:
            time.sleep(float(seconds))
        case _:
            raise ValueError(f"{path}: {' '.join(what)}: no such fault")
