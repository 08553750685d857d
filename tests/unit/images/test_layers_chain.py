"""The chain of an image's layers, and turns to begin."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from services.images.layers.chain import Chain
from services.kit import errors, tracing
from tests.spans import recorded


class Commits:
    """A committer that records which commits are under way at once, and lets them end."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.go = asyncio.Event()
        self.failing: dict[int, list[errors.NodeError]] = {}

    def of(self, number: int) -> Callable[[], Coroutine[Any, Any, None]]:
        async def commit() -> None:
            self.begun.append(number)
            await self.go.wait()
            if self.failing.get(number):
                raise self.failing[number].pop()

        return commit


async def turns(count: int = 10) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_those_that_are_ready_are_committed_at_once_and_the_lowest_first() -> None:
    """Layers that become ready meanwhile begin too, also together, and need not wait for the disk twice; layers that
    become ready after that come next.
    """
    chain, commits = Chain(2, 9), Commits()
    running = asyncio.ensure_future(chain.run())
    done = {number: asyncio.ensure_future(chain.commit(number, commits.of(number))) for number in (3, 2, 5)}
    await turns()
    assert commits.begun == [2, 3]
    for more in ((6, 4), (7,), (8,)):
        done |= {number: asyncio.ensure_future(chain.commit(number, commits.of(number))) for number in more}
        await turns()
        assert commits.begun == [2, 3, 4, 5, 6]
    reached = asyncio.ensure_future(chain.wait_committed_below(4))
    await turns()
    assert not reached.done()
    commits.go.set()
    await asyncio.gather(*done.values())
    await reached
    await running
    assert commits.begun == [2, 3, 4, 5, 6, 7, 8]


async def test_a_layer_that_is_done_before_those_below_waits_for_them() -> None:
    """A layer is not committed because its own commit has answered. If one below fails, the caller of each layer above
    gets the error.
    """
    chain, below, above = Chain(0, 2), Commits(), Commits()
    above.go.set()
    below.failing = {0: [errors.FailedPrecondition("no")]}
    running = asyncio.ensure_future(chain.run())
    lower = asyncio.ensure_future(chain.commit(0, below.of(0)))
    await turns()
    upper = asyncio.ensure_future(chain.commit(1, above.of(1)))
    await turns()
    assert above.begun == [1]
    assert not upper.done()
    below.go.set()
    with pytest.raises(errors.FailedPrecondition):
        await lower
    await running
    await turns()
    assert not upper.done()
    upper.cancel()


async def test_a_layer_that_is_there_already_has_its_turn() -> None:
    """No commit is made for it."""
    chain, commits = Chain(0, 3), Commits()
    commits.go.set()
    await asyncio.gather(
        chain.run(), chain.commit(2, commits.of(2)), chain.commit(1, None), chain.commit(0, commits.of(0))
    )
    assert commits.begun == [0, 2]


async def test_a_commit_that_failed_in_a_group_is_repeated_in_order() -> None:
    """A commit may have come too early, if the one below it had to be repeated."""
    chain, commits = Chain(0, 3), Commits()
    commits.failing = {1: [errors.Unavailable("gone")], 2: [errors.NotFound("parent 1")]}
    commits.go.set()
    await asyncio.gather(chain.run(), *(chain.commit(number, commits.of(number)) for number in range(3)))
    assert commits.begun == [0, 1, 2, 1, 2]


async def test_a_failed_commit_is_raised_to_its_caller() -> None:
    """Layers above wait until they are cancelled."""
    chain, commits = Chain(0, 3), Commits()
    commits.failing = {1: [errors.FailedPrecondition("twice"), errors.FailedPrecondition("once")]}
    commits.go.set()
    running = asyncio.ensure_future(chain.run())
    ends = [asyncio.ensure_future(chain.commit(number, commits.of(number))) for number in range(3)]
    await ends[0]
    with pytest.raises(errors.FailedPrecondition, match="twice"):
        await ends[1]
    await running
    assert not ends[2].done()
    ends[2].cancel()


async def test_layers_are_complete_one_after_the_other() -> None:
    """Everything below the lowest uncommitted layer is complete."""
    chain = Chain(1, 4)
    await chain.wait_complete_below(1)
    above = asyncio.ensure_future(chain.wait_complete_below(3))
    chain.complete(1)
    await turns()
    assert not above.done()
    chain.complete(2)
    await above


async def test_without_a_chain_a_commit_is_made_at_once() -> None:
    """This is the case of a single layer."""
    chain, commits = Chain(5, 5), Commits()
    commits.go.set()
    await chain.wait_complete_below(5)
    await chain.wait_committed_below(5)
    chain.complete(5)
    await chain.commit(5, commits.of(5))
    assert commits.begun == [5]


async def test_a_layer_that_waits_for_those_below_says_so() -> None:
    """The wait links to the span of the layer right below. The spans of a commit belong to its layer. A layer that need
    not wait makes no wait span.
    """
    chain, below = Chain(0, 2), asyncio.Event()

    async def commit() -> None:
        with tracing.span("commit"):
            return

    async def layer(number: int) -> None:
        with tracing.span(f"layer {number}") as span:
            chain.made_by(number, span.ref())
            if not number:
                await below.wait()
            await chain.wait_complete_below(number)
            chain.complete(number)
            await chain.commit(number, commit)

    with recorded() as spans:
        with tracing.span("all"):
            running = asyncio.ensure_future(chain.run())
        layers = [asyncio.ensure_future(layer(number)) for number in (0, 1)]
        await turns()
        below.set()
        await asyncio.gather(running, *layers)
        waits = [each for each in spans.named("wait.parent") if spans.parent(each).name == "layer 1"]
        assert waits
        for wait in waits:
            assert [each.name for each in spans.linked(wait)] == ["layer 0"]
        assert [spans.parent(each).name for each in spans.named("commit")] == ["layer 0", "layer 1"]
