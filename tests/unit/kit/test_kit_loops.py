"""Loops that last as long as their process, tasks and threads: failures are logged, and loops go on."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable

import pytest

from services.kit import loops
from tests.support import TOP


async def at_once(seconds: float) -> None:
    """Make the pauses between two tries very short."""
    await asyncio.sleep(0)


def begun(name: str, work: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
    return loops.task(name, loops.lasting(name, work, sleep=at_once))


def told(caplog: pytest.LogCaptureFixture) -> list[tuple[str, bool]]:
    """Return the log's entry of each failure, and whether it has a traceback."""
    return [
        (record.getMessage().partition(",")[0], bool(record.exc_info))
        for record in caplog.records
        if record.name == "services.kit.loops"
    ]


async def test_a_loop_that_fails_is_told_and_begins_anew(caplog: pytest.LogCaptureFixture) -> None:
    """The failure may be an unexpected exception or an unexpected return; a cancelled loop ends."""
    turns: list[int] = []
    there = asyncio.Event()

    async def work() -> None:
        turns.append(len(turns))
        if len(turns) == 1:
            raise ZeroDivisionError("unthought of")
        if len(turns) > 2:
            there.set()
            await asyncio.Event().wait()

    task = begun("the watch", work)
    await asyncio.wait_for(there.wait(), 15)
    assert told(caplog) == [("the watch failed", True), ("the watch ended", False)]
    task.cancel()
    await asyncio.wait((task,))
    assert task.cancelled()


async def test_a_failure_that_its_words_explain_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    """Without a traceback, and once, however often it is tried; another failure in between makes it news again."""
    turns: list[int] = []
    there = asyncio.Event()

    async def work() -> None:
        turns.append(len(turns))
        if len(turns) == 4:
            raise ZeroDivisionError("unthought of")
        if len(turns) < 7:
            raise loops.Explained("the address is taken")
        there.set()
        await asyncio.Event().wait()

    task = begun("the page", work)
    await asyncio.wait_for(there.wait(), 15)
    line = "the page: the address is taken (it is tried again until it works)"
    assert told(caplog) == [(line, False), ("the page failed", True), (line, False)]
    task.cancel()
    await asyncio.wait((task,))


async def test_a_loop_survives_the_cancellation_of_its_awaitable(caplog: pytest.LogCaptureFixture) -> None:
    """The loop itself was not cancelled: it would end without a word in the log."""
    waited: list[asyncio.Future[None]] = []
    again = asyncio.Event()

    async def work() -> None:
        waited.append(asyncio.get_running_loop().create_future())
        if len(waited) == 2:
            again.set()
        await waited[-1]

    task = begun("the watch", work)
    await asyncio.sleep(0)
    waited[0].cancel()
    await asyncio.wait_for(again.wait(), 15)
    assert told(caplog) == [("the watch failed", True)]
    task.cancel()
    await asyncio.wait((task,))


async def test_a_loop_that_fails_as_it_ends_does_not_begin_anew(caplog: pytest.LogCaptureFixture) -> None:
    """Otherwise its owner would wait for its end for ever."""
    there, turns = asyncio.Event(), 0

    async def work() -> None:
        nonlocal turns
        turns += 1
        there.set()
        try:
            await asyncio.Event().wait()
        finally:
            raise ZeroDivisionError("unthought of")

    async with asyncio.timeout(15):
        async with loops.running("the watch", work):
            await there.wait()
    assert turns == 1
    assert told(caplog) == [("the watch failed at its end", True)]


async def test_a_loop_that_always_fails_is_not_tried_all_the_time(caplog: pytest.LogCaptureFixture) -> None:
    """The pauses grow up to a limit."""
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 5:
            raise asyncio.CancelledError

    async def work() -> None:
        raise ValueError

    with pytest.raises(asyncio.CancelledError):
        # far longer than a busy machine takes to fail
        await loops.lasting("the watch", work, pause=10.0, longest=40.0, sleep=sleep)
    assert pauses == [10.0, 20.0, 40.0, 40.0, 40.0]
    assert len(caplog.records) == 5


async def fails() -> None:
    raise ZeroDivisionError("unthought of")


async def test_a_failed_task_is_reported_although_it_is_referenced(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged once, with its name. A task that ends well, or is cancelled, is not logged; the failure of an
    awaited task is raised to the awaiting code only.
    """
    kept = loops.Tasks()
    tasks = [
        loops.aside("the sweep", fails()),
        kept.start("the look", fails()),
        kept.start("a", asyncio.sleep(0)),
        kept.start("b", asyncio.sleep(100)),
    ]
    assert len(kept) == 3
    tasks[3].cancel()
    await kept.wait()
    await asyncio.wait(tasks)
    await asyncio.sleep(0)
    assert told(caplog) == [("the sweep failed", True), ("the look failed", True)]
    assert not kept
    with pytest.raises(ZeroDivisionError):
        await loops.task("the work", fails())
    assert len(told(caplog)) == 2


async def test_the_tasks_of_an_owner_end_with_it() -> None:
    """They are cancelled, and have ended."""
    kept = loops.Tasks()
    task = kept.start("the wait", asyncio.sleep(100))
    await kept.cancel()
    assert task.cancelled()
    assert not kept


async def test_a_thread_that_fails_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """The log has its name at once."""

    def work() -> None:
        raise ZeroDivisionError("unthought of")

    await asyncio.to_thread(loops.thread("the writer", work).join)
    assert told(caplog) == [("the writer failed", True)]


ENDING = """
import asyncio, time
from services.kit import loops

async def fails():
    raise ZeroDivisionError

async def main():
    loops.vital("the commits", fails())
    await asyncio.Event().wait()

def stops():
    raise ZeroDivisionError

{begin}
"""


@pytest.mark.parametrize(
    "begin",
    ["asyncio.run(main())", "loops.thread('the commits', stops, vital=True); time.sleep(60)"],
    ids=["task", "thread"],
)
def test_a_process_ends_when_a_vital_task_fails(begin: str) -> None:
    """Its supervisor starts it again; otherwise all callers of the task's work would wait for ever."""
    done = subprocess.run(
        [sys.executable, "-c", ENDING.format(begin=begin)],
        cwd=TOP,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert "the commits failed, and this process cannot go on without it: it ends" in done.stderr
    assert "ZeroDivisionError" in done.stderr
