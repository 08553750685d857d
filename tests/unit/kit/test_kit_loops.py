"""Loops that last as long as their process, and tasks that nobody waits for: their failures are told, and what must be done goes on being done."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from services.kit import loops


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pause to speak of between two tries."""
    monkeypatch.setattr(loops, "PAUSE", 0.001)
    monkeypatch.setattr(loops, "LONGEST", 0.004)


async def test_a_loop_that_fails_is_told_and_begins_anew(caplog: pytest.LogCaptureFixture) -> None:
    """By an exception that nobody thought of, and by an end that nobody wanted; cancelled, it ends."""
    turns: list[int] = []
    there = asyncio.Event()

    async def work() -> None:
        turns.append(len(turns))
        if len(turns) == 1:
            raise ZeroDivisionError("unthought of")
        if len(turns) > 2:
            there.set()
            await asyncio.Event().wait()

    task = loops.start("the watch", work)
    await asyncio.wait_for(there.wait(), 15)
    told = [(record.getMessage().partition(",")[0], record.exc_info is not None) for record in caplog.records if record.name == "services.kit.loops"]
    assert told == [("the watch failed", True), ("the watch ended", False)]
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert task.cancelled()


async def test_a_loop_that_always_fails_is_not_tried_all_the_time(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pauses grow to a limit."""
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 5:
            raise asyncio.CancelledError

    async def work() -> None:
        raise ValueError

    monkeypatch.setattr(loops.asyncio, "sleep", sleep)
    monkeypatch.setattr(loops, "PAUSE", 10.0)
    monkeypatch.setattr(loops, "LONGEST", 40.0)  # far longer than a busy machine takes to fail
    with pytest.raises(asyncio.CancelledError):
        await loops.lasting("the watch", work)
    assert pauses == [10.0, 20.0, 40.0, 40.0, 40.0]
    assert len(caplog.records) == 5


async def test_a_task_that_fails_is_told_though_somebody_keeps_it(caplog: pytest.LogCaptureFixture) -> None:
    """Once, with its name; one that ends well, or is cancelled, is not."""
    async def fails() -> None:
        raise ZeroDivisionError("unthought of")

    tasks = [asyncio.create_task(fails(), name="the sweep"), asyncio.create_task(asyncio.sleep(0)), asyncio.create_task(asyncio.sleep(100))]
    for task in tasks:
        task.add_done_callback(loops.told)
    tasks[2].cancel()
    await asyncio.wait(tasks)
    await asyncio.sleep(0)
    assert [record.getMessage() for record in caplog.records] == ["the sweep failed"]
