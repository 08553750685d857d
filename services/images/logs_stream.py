"""Text that a transfer shows to its client while it runs, on a stream of bytes; a slow client holds up nothing, and
misses some.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque

from services.images.streaming_server import ByteSink
from services.kit import errors, loops

PENDING = 1 << 20
"""Bytes that wait for a client; beyond them, text is left out."""


class LogsStream:
    """Takes text for a client, which gets it at once if it can; a :data:`~services.images.transfer.Show`. To be
    closed.
    """

    def __init__(self, sink: ByteSink) -> None:
        self._sink = sink
        self._waiting: deque[bytes] = deque()
        self._size = 0
        self._missed = 0
        self._changed = asyncio.Event()
        self._closed = False
        self._sending = loops.aside("text for a client", self._send())

    def __call__(self, text: str) -> None:
        data = text.encode(errors="replace")
        if self._closed or self._sending.done():
            return
        if self._size + len(data) > PENDING:
            self._missed += 1
            return
        if self._missed:
            data = f"({self._missed} entries are left out: they were not taken in time)\n".encode() + data
            self._missed = 0
        self._waiting.append(data)
        self._size += len(data)
        self._changed.set()

    async def close(self) -> None:
        """Send what waits, and end the stream; not for longer than a client may take that does not read."""
        self._closed = True
        self._changed.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._sink.drain):
                await asyncio.wait((self._sending,))
        self._sending.cancel()
        await asyncio.wait((self._sending,))
        self._sink.abandon()

    async def _send(self) -> None:
        with contextlib.suppress(errors.NodeError):  # it went away, and does not want to see any more
            while self._waiting or not self._closed:
                while self._waiting:
                    data = self._waiting.popleft()
                    await self._sink.write(data)
                    await self._sink.flush()
                    self._size -= len(data)
                self._changed.clear()
                if not self._closed:
                    await self._changed.wait()
