"""Ends of pipes on both loops: reading, writing, and closing a descriptor once."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import uvloop

from services.kit import pipes

Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=[asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    """Run a coroutine in a thread: other tests use the main thread's loop too, and asyncio watches children by it."""
    with ThreadPoolExecutor(1) as pool:
        yield lambda main: pool.submit(request.param, main).result(60)


def test_bytes_pass(run: Run) -> None:
    """There are more bytes than a pipe holds; the reader sees the end when the writer is closed."""
    data = os.urandom(1 << 20)

    async def main() -> None:
        reading, writing = os.pipe2(os.O_CLOEXEC)

        async def write() -> None:
            writer = await pipes.writer(writing)
            writer.write(data)
            await writer.drain()
            writer.close()

        async with pipes.reading(reading) as reader:
            got, _ = await asyncio.gather(reader.read(), write())
        assert got == data

    run(main())


def test_a_descriptor_is_closed_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """uvloop's own library closes it, or we do: a second close would hit a file that another thread has opened under
    that number in the meantime.
    """
    close, closed = os.close, list[int]()

    def noted(fd: int) -> None:
        closed.append(fd)
        close(fd)

    async def main() -> None:
        monkeypatch.setattr(os, "close", noted)
        reading, writing = os.pipe2(os.O_CLOEXEC)
        writer = await pipes.writer(writing)
        async with pipes.reading(reading) as reader:
            writer.close()
            await reader.read()
        async with asyncio.timeout(10):
            while any(os.path.exists(f"/proc/self/fd/{fd}") for fd in (reading, writing)):
                await asyncio.sleep(0.01)
        ours = not type(asyncio.get_running_loop()).__module__.startswith("uvloop")
        assert [closed.count(fd) for fd in (reading, writing)] == [ours, ours]

    run(main())
