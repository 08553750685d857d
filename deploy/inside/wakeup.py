"""Wakes supervisord when one of its processes ends, so that the process is started again at once.

supervisord waits in poll(2) for up to a second. Since Python 3.5 (PEP 475) a signal does not end that wait. So SIGCHLD
was noticed only when the wait was over, and acted on one round later: a killed service came back up to two seconds
late, and a node took that long for each service that it stopped. Here the signal writes to a pipe
(``signal.set_wakeup_fd``) that supervisord's loop reads.

supervisord loads this by its one means for foreign code, the ``[rpcinterface:...]`` section. It has no RPC methods.
"""

from __future__ import annotations

import os
import signal
from typing import Any

ROUNDS = 3
"""Rounds of supervisord's loop from the end of a process to its reaction: reap, change state, act."""


class Wakeup:
    """The reading end of the pipe, in the form that supervisord's loop watches."""

    def __init__(self) -> None:
        self.reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        os.write(writer, b"\0")  # wake up once at the beginning, to start everything without the first wait
        self._rounds = 0

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def handle_read_event(self) -> None:
        """Stay readable for some rounds, then be quiet until the next signal."""
        self._rounds += 1
        if self._rounds >= ROUNDS:
            os.read(self.reader, 4096)
            self._rounds = 0

    def handle_error(self) -> None:
        """Called inside an except block. Only a closed pipe can fail here, and supervisord should hear of it."""
        raise  # noqa: PLE0704


class NoInterface:
    """An RPC interface without methods."""


def make(supervisord: Any, **_: str) -> NoInterface:
    """Called by supervisord once its options are read, before it starts anything."""
    wakeup = Wakeup()
    supervisord.options.get_socket_map()[wakeup.reader] = wakeup
    return NoInterface()
