"""services.wire.eager: the first step of a coroutine runs at once, and behaves like a task's."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Coroutine
from typing import Any

import pytest

from services.wire import eager

Start = Any


@pytest.fixture(params=["made here", "python's"] if hasattr(asyncio, "eager_task_factory") else ["made here"])
async def start(request: pytest.FixtureRequest) -> Start:
    """Start a coroutine as the loop would, outside of any task: with the implementation for 3.11, and with that of
    3.12.
    """

    def start(coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None] | None:
        loop = asyncio.get_running_loop()
        me = asyncio.current_task()
        assert me is not None
        asyncio.tasks._leave_task(loop, me)
        try:
            return eager._start(coroutine, loop) if request.param == "made here" else eager.start(coroutine, loop)
        finally:
            asyncio.tasks._enter_task(loop, me)

    return start


async def test_handlers_that_do_not_wait_end_at_once(start: Start) -> None:
    """No task is made, and their work is done."""
    done = []

    async def work() -> None:
        done.append(asyncio.current_task() is not None)

    assert start(work()) is None
    assert done == [True]


async def test_handlers_that_wait_go_on_in_a_task(start: Start) -> None:
    """They may wait for a future, for the next turn or for another task; their first step is done already."""
    steps: list[str] = []
    future: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def inner() -> str:
        await asyncio.sleep(0)
        return "third"

    async def work() -> None:
        steps.append("first")
        steps.append(await future)
        await asyncio.sleep(0)
        steps.append(await asyncio.create_task(inner()))

    task = start(work())
    assert steps == ["first"]
    future.set_result("second")
    await task
    assert steps == ["first", "second", "third"]


@pytest.mark.parametrize("waits", [False, True])
async def test_its_exception_is_its_callers(start: Start, waits: bool) -> None:
    """start() raises that of the first step, the task later ones."""

    async def work() -> None:
        if waits:
            await asyncio.sleep(0)
        raise ZeroDivisionError

    if waits:
        with pytest.raises(ZeroDivisionError):
            await start(work())
    else:
        with pytest.raises(ZeroDivisionError):
            start(work())
    assert asyncio.current_task() is not None


async def test_a_future_that_is_ready_when_the_task_begins(start: Start) -> None:
    """The result is not lost in between."""
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    got = []

    async def work() -> None:
        got.append(await future)

    task = start(work())
    future.set_result(7)
    await task
    assert got == [7]


@pytest.mark.parametrize("later", [False, True])
async def test_a_cancellation_arrives_and_is_passed_on(start: Start, later: bool) -> None:
    """Right after the first step or turns later, it reaches the coroutine and the task that it waits for."""
    seen = []

    async def inner() -> None:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            seen.append("inner")
            raise

    waited = asyncio.create_task(inner())
    await asyncio.sleep(0)

    async def work() -> None:
        try:
            await waited
        finally:
            seen.append("outer")

    task = start(work())
    if later:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen == ["inner", "outer"]
    assert task.cancelled()


async def test_a_cancellation_may_be_caught(start: Start) -> None:
    """The task then goes on and may wait again."""

    async def work() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            asyncio.current_task().uncancel()
        await asyncio.sleep(0)

    task = start(work())
    task.cancel()
    await task
    assert not task.cancelled()


async def test_a_step_that_cancels_itself(start: Start) -> None:
    """In the first step there is no task yet: the cancellation takes effect at the first wait."""
    after = []

    async def work() -> None:
        asyncio.current_task().cancel()
        after.append(asyncio.current_task().cancelling())
        await asyncio.sleep(0)
        after.append("never")

    task = start(work())
    with pytest.raises(asyncio.CancelledError):
        await task
    assert after == [1]


@pytest.mark.parametrize("seconds", [0, 0.01])
async def test_a_timeout_that_begins_in_the_first_step(start: Start, seconds: float) -> None:
    """asyncio.timeout() finds the task that continues, and leaves it uncancelled."""
    seen = []

    async def work() -> None:
        try:
            async with asyncio.timeout(seconds):
                await asyncio.get_running_loop().create_future()
        except TimeoutError:
            seen.append(asyncio.current_task().cancelling())
        await asyncio.sleep(0)
        seen.append("after")

    await start(work())
    assert seen == [0, "after"]


async def test_a_timeout_that_ends_in_the_first_step(start: Start) -> None:
    """It leaves nothing behind."""

    async def work() -> None:
        async with asyncio.timeout(3600):  # noqa: ASYNC100 - that is the point
            pass

    assert start(work()) is None


async def test_a_timeout_that_begins_after_the_first_step(start: Start) -> None:
    """It works as in any task."""

    async def work() -> None:
        await asyncio.sleep(0)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await asyncio.get_running_loop().create_future()

    await start(work())


@pytest.mark.parametrize("fails", [False, True])
async def test_a_task_group_that_begins_in_the_first_step(start: Start, fails: bool) -> None:
    """It waits for its tasks; a task that fails cancels the others and the block."""
    seen: list[int | str] = []

    async def child(number: int) -> None:
        await asyncio.sleep(0)
        if fails and number == 1:
            raise ZeroDivisionError
        await asyncio.sleep(0)
        seen.append(number)

    async def work() -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for number in range(3):
                    group.create_task(child(number))
                if fails:
                    await asyncio.get_running_loop().create_future()
        except* ZeroDivisionError:
            seen.append("failed")
        assert asyncio.current_task().cancelling() == 0
        await asyncio.sleep(0)

    await start(work())
    assert seen[-1] == ("failed" if fails else 2)


variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="outside")


async def test_context_variables_are_the_tasks_own(start: Start) -> None:
    """A variable that is set in the first step has its value in the next, and not outside."""
    seen = []

    async def work() -> None:
        variable.set("inside")
        await asyncio.sleep(0)
        seen.append(variable.get())

    task = start(work())
    assert variable.get() == "outside"
    await task
    assert (seen, variable.get()) == (["inside"], "outside")


async def test_within_a_task_it_is_a_task() -> None:
    """The current task prevents a first step at once: the loop runs it."""
    seen = []

    async def work() -> None:
        seen.append("done")

    task = eager.start(work(), asyncio.get_running_loop())
    assert task is not None
    assert not seen
    await task
    assert seen == ["done"]
