"""Archives as files, read and written in pieces. A pipe whose other end does nothing cannot keep the caller from
ending.

For a file that can be polled (a pipe, a socket), the event loop waits until it is ready. Other files (on disk) are used
in a thread, which ends soon.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import stat
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

from services.images.concurrency.threads import to_thread

PIECE = 1 << 18
"""Bytes that are read at once."""

Moved = Callable[[int], None]
"""A callback that is told how many bytes have been read or written in all."""


@contextlib.contextmanager
def opened(name: str) -> Iterator[int]:
    """A file descriptor to read the file from; - is standard input. OSError names the file."""
    if name == "-":
        yield sys.stdin.fileno()
        return
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise IsADirectoryError(None, "is a directory", name)
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def replaced(name: str) -> Iterator[int]:
    """A file descriptor to write the file to; - is standard output. The file gets its name, and is on the disk, only
    when the block succeeds. Anything but a regular file is written in place.
    """
    if name == "-":
        yield sys.stdout.fileno()
        return
    path = Path(name)
    if path.exists() and not path.is_file():
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)
        return
    with _naming(name):
        fd, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        try:
            yield fd
            os.fchmod(fd, 0o666 & ~_umask())
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def size(fd: int) -> int:
    """Bytes of a file on disk; 0 for files without a size."""
    state = os.fstat(fd)
    return state.st_size if stat.S_ISREG(state.st_mode) else 0


async def pieces(fd: int, name: str, moved: Moved) -> AsyncIterator[bytes]:
    """The bytes of a file, from its current position to its end. OSError has its ``name``."""
    loop, count, polled = asyncio.get_running_loop(), 0, _is_polled(fd)
    while True:
        with _naming(name):
            if polled:
                await _ready(fd, loop.add_reader, loop.remove_reader)
                data = os.read(fd, PIECE)
            else:
                data = await to_thread(os.read, fd, PIECE)
        if not data:
            return
        yield data
        count += len(data)
        moved(count)


class Sink:
    """A file that receives an archive: a ``Sink`` of a transfer. OSError has its ``name``."""

    def __init__(self, fd: int, name: str, moved: Moved) -> None:
        self._fd = fd
        self._name = name
        self._moved = moved
        self._polled = _is_polled(fd)
        self._count = 0

    async def write(self, data: bytes) -> None:
        loop, view = asyncio.get_running_loop(), memoryview(data)
        while view:
            with _naming(self._name):
                if self._polled:
                    await _ready(self._fd, loop.add_writer, loop.remove_writer)
                    # a pipe that is ready takes this many bytes at once
                    written = os.write(self._fd, view[: select.PIPE_BUF])
                else:
                    written = await to_thread(os.write, self._fd, view)
            view = view[written:]
        self._count += len(data)
        self._moved(self._count)

    async def close(self) -> None:
        """Nothing to do: the caller that opened the file closes it."""


@contextlib.contextmanager
def _naming(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, name) from None


def _is_polled(fd: int) -> bool:
    mode = os.fstat(fd).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


async def _ready(fd: int, add: Callable[..., Any], remove: Callable[[int], Any]) -> None:
    found: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def ready() -> None:
        if not found.done():
            found.set_result(None)

    add(fd, ready)
    try:
        await found
    finally:
        remove(fd)


def _umask() -> int:
    found = os.umask(0o077)
    os.umask(found)
    return found
