"""Programs that are waited for as long as they make progress."""

from __future__ import annotations

import asyncio

import pytest

from services.kit import errors
from services.kit.call import CURRENT, Call
from services.snapshots import programs


async def test_one_that_stands_still_is_given_up() -> None:
    """The error names it; the caller kills it."""
    process = await asyncio.create_subprocess_exec("sleep", "1000")
    try:
        with pytest.raises(
            errors.Internal,
            match="^cp stood still for 0.4 s and was killed: a file system that it reads or writes does not answer$",
        ):
            await programs.watched("cp", process, process.wait(), 0.4)
    finally:
        process.kill()
        await programs.gone(process)
    assert process.returncode == -9


async def test_a_call_that_waits_for_one_does_not_stand_still() -> None:
    """The program has a limit of its own, and a copy of a large tree takes as long as it takes."""
    call = Call("/containerd.services.snapshots.v1.Snapshots/Prepare", {})
    CURRENT.set(call)
    process = await asyncio.create_subprocess_exec("cat", stdin=asyncio.subprocess.PIPE)
    watching = asyncio.ensure_future(programs.watched("cat", process, process.communicate(b""), 60))
    await asyncio.sleep(0)
    assert call.elsewhere == 1
    await watching
    assert call.elsewhere == 0


async def test_one_that_ends_is_heard() -> None:
    """The result or the exception of the work is passed on."""
    process = await asyncio.create_subprocess_exec("echo", "a", stdout=asyncio.subprocess.PIPE)
    assert (await programs.watched("echo", process, process.communicate(), 60))[0] == b"a\n"

    async def fails() -> None:
        raise errors.NotFound("x")

    with pytest.raises(errors.NotFound):
        await programs.watched("echo", process, fails(), 60)
