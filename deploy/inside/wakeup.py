"""Wakes supervisord when one of its processes ends, so that it is started again at once.

supervisord waits in poll(2) for up to a second. Since Python 3.5 (PEP 475) a signal does not end that wait, so SIGCHLD
is noticed only when it is over, and what follows from it one round later: a killed service came back up to two seconds
late, and a node took that long for each service that it stopped. Here the signal writes to a pipe
(``signal.set_wakeup_fd``) that supervisord's loop reads.

supervisord loads this by its one means for code of ours inside it, the ``[rpcinterface:...]`` section; no RPC comes
with it.
"""

from __future__ import annotations

import os
import signal
from typing import Any

ROUNDS = 3
"""Rounds of supervisord's loop from the end of a process to what it does about it: reap, change state, act."""


class Wakeup:
    """The reading end of the pipe, as supervisord's loop wants a thing to watch."""

    def __init__(self) -> None:
        self.reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        os.write(writer, b"\0")  # and at once in the beginning, to start everything without the first wait
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
        """Called inside an except block: nothing here can fail but a closed pipe, which supervisord should hear of."""
        raise  # noqa: PLE0704


class NoInterface:
    """What an RPC interface may be at the least."""


def make(supervisord: Any, **_: str) -> NoInterface:
    """Called by supervisord once its options are read, before it starts anything."""
    wakeup = Wakeup()
    supervisord.options.get_socket_map()[wakeup.reader] = wakeup
    return NoInterface()
