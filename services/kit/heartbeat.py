"""A process tells its supervisor that its loop turns: the loop itself sends a datagram every few seconds.

The receiver is the watchdog inside supervisord (deploy/inside; docs/adr/0007 says why it is there). The words are those
of systemd's sd_notify. The kernel adds the sender's pid, so no process can speak for another. Without a supervisor, as
in tests, no process receives them.
"""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING

from services.kit.faults import fault

if TYPE_CHECKING:  # supervisord reads the words below, and needs none of these
    import asyncio
    from pathlib import Path

    from services.kit.config import Watchdog

READY, ALIVE, STOPPING = b"READY=1", b"WATCHDOG=1", b"STOPPING=1"

SOCKET = "watchdog.sock"
"""Its name in STATE."""


class Heartbeat:
    """The beats of the process ``name``, sent to the socket at ``path`` while the process serves."""

    def __init__(self, name: str, path: Path, limits: Watchdog) -> None:
        self._name = name
        self._path = str(path)
        self._pause = limits.beat
        self._socket: socket.socket | None = None
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """The process serves now: from here on its silence counts. Does nothing if the watchdog is off."""
        if self._pause and self._timer is None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            self._say(READY)
            self._timer = loop.call_later(self._pause, self._beat, loop)

    def _beat(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = loop.call_later(self._pause, self._beat, loop)
        self._say(ALIVE)
        fault(f"{self._name}.loop")

    def end(self) -> None:
        """The process was told to stop: from now on its loop may stand still for as long as at a start."""
        if self._timer is not None and self._socket is not None:
            self._timer.cancel()
            self._timer = None
            self._say(STOPPING)
            self._socket.close()

    def _say(self, word: bytes) -> None:
        assert self._socket is not None
        # The receiver may be missing or stopped; one lost beat of many does not matter.
        with contextlib.suppress(OSError):
            self._socket.sendto(word, self._path)
