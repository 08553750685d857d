"""Running a program to its end.

The loop's own way forks, which copies the page tables of this process, and then each page that either writes. Python's
subprocess uses vfork. Either way the loop stands still until the program is executed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

_KILLED = 1.0
"""Seconds to wait for the end of a killed program: one that waits for a disk dies only when that answers."""


async def run(
    command: Sequence[str],
    directory: Path,
    environment: Mapping[str, str],
    seconds: float,
    *,
    stdin: int,
    stdout: int,
    stderr: int,
) -> int:
    """The exit code of a program, which is given these files, in a session of its own; -N: signal N ended it. OSError
    if it cannot be started. TimeoutError if it takes longer than so many ``seconds``; then it is killed, as it is if
    the caller is cancelled.
    """
    process = subprocess.Popen(  # noqa: ASYNC220 - it returns once the program is executed
        command, cwd=directory, env=environment, stdin=stdin, stdout=stdout, stderr=stderr, start_new_session=True
    )
    ended = _ended(process)
    try:
        async with asyncio.timeout(seconds):
            return await asyncio.shield(ended)
    except BaseException:
        process.kill()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_KILLED):
                await asyncio.shield(ended)
        raise


def _ended(process: subprocess.Popen[bytes]) -> asyncio.Future[int]:
    """Its exit code, once it has ended. It is reaped then, whether anybody waits or not."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[int] = loop.create_future()
    try:
        fd = os.pidfd_open(process.pid)
    except OSError:
        process.kill()
        process.wait()
        raise

    def end() -> None:
        loop.remove_reader(fd)
        os.close(fd)
        code = process.wait()
        if not ended.done():
            ended.set_result(code)

    loop.add_reader(fd, end)
    return ended
