"""Sends text to a transfer's client while the transfer runs, on a stream of bytes. A slow client delays nothing and
misses some text.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque

from services.images.streaming_server import ByteSink
from services.kit import errors, loops

PENDING = 1 << 20
"""Bytes that may wait for a client; further text is dropped."""


class LogsStream:
    """Takes text for a client and sends it as soon as the client takes it; a :data:`~services.images.transfer.Show`.
    Must be closed.
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
        """Send the waiting text and end the stream. A client that does not read delays this only for the stream's drain
        time.
        """
        self._closed = True
        self._changed.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._sink.drain):
                await asyncio.wait((self._sending,))
        self._sending.cancel()
        await asyncio.wait((self._sending,))
        self._sink.abandon()

    async def _send(self) -> None:
        with contextlib.suppress(errors.NodeError):  # the client went away
            while self._waiting or not self._closed:
                while self._waiting:
                    data = self._waiting.popleft()
                    await self._sink.write(data)
                    await self._sink.flush()
                    self._size -= len(data)
                self._changed.clear()
                if not self._closed:
                    await self._changed.wait()
