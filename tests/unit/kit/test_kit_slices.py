"""Long work beside short work: each turn of the loop has one slice of all of it."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from services.kit.slices import Lane, Slice, at_once, others, sorting


async def work(piece: Slice, slices: int, turn: list[int], seen: list[int]) -> None:
    for _ in range(slices):
        seen.append(turn[0])
        await piece.next()


async def counting(turn: list[int]) -> None:
    while True:
        await asyncio.sleep(0)
        turn[0] += 1


async def test_each_turn_has_one_slice() -> None:
    """The slices take turns: each piece of work has its next slice only after every other has had one."""
    lane, turn = Lane(), [0]
    counter = asyncio.ensure_future(counting(turn))
    seen: list[list[int]] = [[] for _ in range(5)]
    await asyncio.gather(*(work(lane.slice(), 10, turn, each) for each in seen))
    counter.cancel()
    later = sorted(each for one in seen for each in one[1:])  # the first slice of each is when it begins
    assert len(set(later)) == len(later)
    assert all(max(one) - min(one) >= 5 * 8 for one in seen)


async def test_work_that_begins_together_shares_a_turn() -> None:
    """A client may send ten requests at once: with a slice for each there would be ten slices without a turn of the
    loop.
    """
    lane = Lane()
    first, second = lane.slice(), lane.slice()
    assert first._end == second._end
    await first.next()
    assert lane.slice()._end == first._end > second._end
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert lane.slice()._end > first._end


async def test_cancelled_work_takes_no_turn() -> None:
    """The other work goes on."""
    lane, turn = Lane(), [0]
    tasks = [asyncio.ensure_future(work(lane.slice(), 100, turn, [])) for _ in range(10)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    async with asyncio.timeout(10):
        results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [asyncio.CancelledError, type(None)] * 5


async def test_work_without_a_coroutine_takes_turns_too() -> None:
    """One piece is done in a turn, also if the work asks for its next piece at once; a failed piece delays no other
    work.
    """
    lane, turn = Lane(), [0]
    counter = asyncio.ensure_future(counting(turn))
    seen: list[int] = []
    done = asyncio.Event()
    failed: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failed.append(context.get("exception")))

    def again() -> None:
        seen.append(turn[0])
        if len(seen) < 20:
            lane.later(again)
        else:
            done.set()

    def failing() -> None:
        raise ValueError("this one")

    lane.later(failing)
    lane.later(again)
    lane.later(again)
    async with asyncio.timeout(10):
        await done.wait()
    counter.cancel()
    assert len(set(seen)) == len(seen)
    assert [type(each) for each in failed] == [ValueError]


async def test_slices_that_are_apart_let_calls_pass() -> None:
    """A call that needs some turns of the loop waits for one slice, not for one in each turn."""
    lane, turn = Lane(apart=3), [0]
    counter = asyncio.ensure_future(counting(turn))
    seen: list[list[int]] = [[] for _ in range(3)]
    await asyncio.gather(*(work(lane.slice(), 6, turn, each) for each in seen))
    counter.cancel()
    later = sorted(each for one in seen for each in one[1:])
    assert all(after - before >= 4 for before, after in itertools.pairwise(later))


async def test_others_get_turns() -> None:
    """What has been answered comes to its caller, over several tasks."""
    answered = asyncio.get_running_loop().create_future()

    async def inner() -> int:
        return int(await answered)

    async def outer() -> int:
        return await asyncio.shield(asyncio.ensure_future(inner()))

    call = asyncio.ensure_future(outer())
    await others()
    answered.set_result(7)
    await others()
    assert call.done()
    assert call.result() == 7


@pytest.mark.parametrize("count", [0, 1, 2048, 20_000])
async def test_things_are_sorted_in_steps(count: int) -> None:
    """As sorted does; equal ones stay in their order."""
    things = [(number * 7919 % 101, number) for number in range(count)]
    steps = sorting(things, lambda thing: thing[0], 100)
    assert list(at_once(steps)) == sorted(things, key=lambda thing: thing[0])
    most = sum(1 for _ in sorting(things, lambda thing: thing[0], 100))
    assert most >= count // 100 if count > 2048 else most <= 1
