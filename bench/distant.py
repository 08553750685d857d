"""A registry that is far away: a relay on loopback that adds the time of a round trip, and limits the bytes per second
of all connections together.

    python -m bench.distant PORT [--round-trip SECONDS] [--rate BYTES]     relays to 127.0.0.1:PORT; prints its own port

Bytes arrive half a round trip later, in both directions. A new connection takes a round trip more, as TCP's does. The
bytes to the clients share a link of the given rate: connections take turns on it, so that a small document does not
wait behind a whole layer. The relay is a process of its own, which ends with its standard input.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from typing import cast

import uvloop

from bench.peers import TOP

ROUND_TRIP = 0.02
RATE = 100e6
WINDOW = 1 << 21
"""Bytes of a connection that may be under way: as many as a sender sends ahead with a receive buffer of Linux's usual
size. At 20 ms this is no limit below 200 MB/s.
"""
_LATE = 0.005
"""Seconds of link time that may be made up for, since timers are late by a millisecond or so: 500 KB at 100 MB/s."""


class Link:
    """Passes bytes at ``rate`` per second; pipes with something to send take turns."""

    def __init__(self, rate: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._rate = rate
        self._free = 0.0
        self._ready: deque[Pipe] = deque()
        self._waiting = False

    def ready(self, pipe: Pipe) -> None:
        """``pipe`` has something to send, and was not ready before."""
        self._ready.append(pipe)
        if not self._waiting:
            self._serve()

    def _serve(self) -> None:
        self._waiting = False
        while self._ready:
            now = self._loop.time()
            if self._free > now:
                self._waiting = True
                self._loop.call_at(self._free, self._serve)
                return
            pipe = self._ready.popleft()
            self._free = max(self._free, now - _LATE) + pipe.send() / self._rate
            if pipe.wanting():
                self._ready.append(pipe)


class Pipe:
    """One direction of a connection. Bytes that are fed leave over ``link``, ``delay`` seconds later and not before
    ``earliest``. So does an end, which is None.
    """

    def __init__(self, link: Link, delay: float, earliest: float, source: asyncio.Transport) -> None:
        self._loop = asyncio.get_running_loop()
        self._link = link
        self._delay = delay
        self._earliest = earliest
        self._source = source
        self._target: asyncio.Transport | None = None
        self._queue: deque[tuple[float, bytes | None]] = deque()
        self._held = 0
        self._blocked = True
        self._asked = False

    def feed(self, data: bytes | None) -> None:
        """Take bytes, or the end."""
        self._queue.append((max(self._loop.time(), self._earliest) + self._delay, data))
        self._held += len(data or b"")
        if self._held > WINDOW and not self._source.is_closing():
            self._source.pause_reading()
        self._ask()

    def resume(self, target: asyncio.Transport | None = None) -> None:
        """The target accepts bytes, for the first time or again."""
        self._target = target or self._target
        self._blocked = False
        self._ask()

    def block(self) -> None:
        """The target accepts no more for now."""
        self._blocked = True

    def wanting(self) -> bool:
        """Whether it continues on the link; if not, it will ask again."""
        self._asked = bool(self._queue) and not self._blocked and self._queue[0][0] <= self._loop.time()
        if not self._asked:
            self._ask()
        return self._asked

    def send(self) -> int:
        """Send the next piece, and return its size in bytes."""
        assert self._target is not None
        if self._blocked or not self._queue:
            return 0
        _, data = self._queue.popleft()
        if data is None or self._target.is_closing():
            self._target.close()
            return 0
        self._held -= len(data)
        if self._held <= WINDOW // 2 and not self._source.is_closing():
            self._source.resume_reading()
        self._target.write(data)
        return len(data)

    def _ask(self) -> None:
        if self._queue and not self._blocked and not self._asked:
            self._asked = True
            self._loop.call_at(self._queue[0][0], self._link.ready, self)


class _Side(asyncio.Protocol):
    """One socket of a connection. What it receives goes into ``out``, which waits for the other side; ``into`` writes
    to the socket.
    """

    into: Pipe | None = None

    def __init__(self, link: Link, delay: float, greeting: float = 0.0) -> None:
        """``greeting``: seconds by which its first bytes are later."""
        self._link, self._delay, self._greeting = link, delay, greeting

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's has another type
        self.out = Pipe(self._link, self._delay, asyncio.get_running_loop().time() + self._greeting, self.transport)

    def joined(self, other: _Side) -> None:
        """The other side is connected."""
        self.into = other.out
        self.into.resume(self.transport)

    def data_received(self, data: bytes) -> None:
        self.out.feed(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.out.feed(None)
        self.resume_writing()  # what is still to come is thrown away

    def pause_writing(self) -> None:
        if self.into is not None:
            self.into.block()

    def resume_writing(self) -> None:
        if self.into is not None:
            self.into.resume()


async def relay(port: int, round_trip: float, rate: float) -> asyncio.Server:
    """Listen on a free loopback port and relay to ``port``. ``round_trip`` is in seconds, ``rate`` in bytes per second
    to the clients.
    """
    loop = asyncio.get_running_loop()
    down, up = Link(rate), Link(math.inf)
    connecting: set[asyncio.Task[None]] = set()

    class Near(_Side):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            task = loop.create_task(self._connected())
            connecting.add(task)
            task.add_done_callback(connecting.discard)

        async def _connected(self) -> None:
            far = _Side(down, round_trip / 2)
            try:
                await loop.create_connection(lambda: far, "127.0.0.1", port)
            except OSError:
                self.transport.abort()
                return
            self.joined(far)
            far.joined(self)

    return await loop.create_server(lambda: Near(up, round_trip / 2, round_trip), "127.0.0.1", 0)


@contextlib.contextmanager
def distant(port: int, *, round_trip: float = ROUND_TRIP, rate: float = RATE) -> Iterator[int]:
    """A process that relays to ``port``; the result is its own port."""
    arguments = [sys.executable, "-m", "bench.distant", str(port), "--round-trip", str(round_trip), "--rate", str(rate)]
    with subprocess.Popen(arguments, cwd=TOP, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.stdin.close()


async def _serve(port: int, round_trip: float, rate: float) -> None:
    async with await relay(port, round_trip, rate) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()


def main() -> None:
    """Run as a program."""
    parser = argparse.ArgumentParser(
        prog="bench.distant", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("port", type=int)
    parser.add_argument("--round-trip", type=float, default=ROUND_TRIP)
    parser.add_argument("--rate", type=float, default=RATE)
    options = parser.parse_args()

    def until_closed() -> None:
        sys.stdin.buffer.read()
        os._exit(0)

    threading.Thread(target=until_closed, daemon=True).start()
    uvloop.run(_serve(options.port, options.round_trip, options.rate))


if __name__ == "__main__":
    main()
