"""Ends of pipes as asyncio's streams.

They are made of a file descriptor, never of a file object. uvloop closes the descriptor of a file object, and then has
the object close it once more (0.23); the second close hits whatever another thread has opened in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from typing import IO, Any, cast


class _End:
    """The object that a loop takes for a file. It closes ``fd`` if the loop leaves that to the file, as asyncio's own
    loop does.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._closes = not type(asyncio.get_running_loop()).__module__.startswith("uvloop")

    @property
    def file(self) -> IO[Any]:
        """Itself, in the type that asyncio wants."""
        return cast("IO[Any]", self)

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        if self._closes:
            self._closes = False
            os.close(self._fd)


@contextlib.asynccontextmanager
async def reading(fd: int, limit: int = 1 << 16) -> AsyncIterator[asyncio.StreamReader]:
    """The end of a pipe to read from. The block owns ``fd``, which is closed with it. About twice ``limit`` bytes are
    read ahead.
    """
    reader = asyncio.StreamReader(limit)
    try:
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), _End(fd).file
        )
    except asyncio.CancelledError:  # the transport owned it already, and has closed it
        raise
    except BaseException:
        os.close(fd)
        raise
    try:
        yield reader
    finally:
        transport.close()


async def writer(fd: int) -> asyncio.StreamWriter:
    """The end of a pipe to write to. The writer owns ``fd``, which is closed with it."""
    loop = asyncio.get_running_loop()
    try:
        transport, protocol = await loop.connect_write_pipe(
            lambda: asyncio.streams.FlowControlMixin(loop=loop), _End(fd).file
        )
    except asyncio.CancelledError:  # the transport owned it already, and has closed it
        raise
    except BaseException:
        os.close(fd)
        raise
    return asyncio.StreamWriter(transport, protocol, None, loop)
