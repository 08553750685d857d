"""Calls in waves."""

from __future__ import annotations

import asyncio
import contextlib

from services.images.concurrency.waves import Waves
from services.kit import tracing
from tests.spans import attribute, recorded
from tests.support import eventually_async


class Calls:
    """Calls that last until they are told to end."""

    def __init__(self, at_once: int = 1) -> None:
        self.waves = Waves("call", "others", at_once)
        self.begun: list[str] = []
        self.ends: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    def ask(self, *names: str) -> None:
        for name in names:
            self.ends[name] = asyncio.Event()
            self.tasks[name] = asyncio.ensure_future(self._call(name))

    async def _call(self, name: str) -> None:
        async with self.waves.member():
            self.begun.append(name)
            await self.ends[name].wait()

    async def have_begun(self, *names: str) -> None:
        async def begun() -> bool:
            return self.begun == [*names]

        await eventually_async(begun)

    async def end(self, *names: str) -> None:
        for name in names:
            self.ends[name].set()
            await self.tasks[name]


async def test_what_comes_meanwhile_goes_together() -> None:
    """The first goes at once; those that come while it is under way go when it has ended, and so on."""
    calls = Calls()
    calls.ask("a")
    await calls.have_begun("a")
    calls.ask("b", "c")
    await asyncio.sleep(0)
    await calls.have_begun("a")
    await calls.end("a")
    await calls.have_begun("a", "b", "c")
    calls.ask("d")
    await calls.end("b")
    await calls.have_begun("a", "b", "c")
    await calls.end("c")
    await calls.have_begun("a", "b", "c", "d")
    await calls.end("d")
    calls.ask("e")
    await calls.have_begun("a", "b", "c", "d", "e")
    await calls.end("e")


async def test_two_waves_may_be_under_way() -> None:
    """A third gathers meanwhile, and begins when one of them has ended."""
    calls = Calls(2)
    calls.ask("a", "b", "c", "d")
    await calls.have_begun("a", "b")
    await calls.end("b")
    await calls.have_begun("a", "b", "c", "d")
    calls.ask("e")
    await calls.end("c", "a")
    await calls.have_begun("a", "b", "c", "d", "e")
    await calls.end("d", "e")


async def test_who_is_cancelled_holds_nobody_up() -> None:
    """Neither while it waits, nor in the wave."""
    calls = Calls()
    calls.ask("a", "b", "c", "d")
    await calls.have_begun("a")
    calls.tasks["b"].cancel()
    await calls.end("a")
    await calls.have_begun("a", "c", "d")
    calls.tasks["c"].cancel()
    calls.ask("e")
    await calls.end("d")
    await calls.have_begun("a", "c", "d", "e")
    await calls.end("e")
    for name in "bc":
        with contextlib.suppress(asyncio.CancelledError):
            await calls.tasks[name]
        assert calls.tasks[name].cancelled()


async def test_who_is_cancelled_as_it_begins_holds_nobody_up() -> None:
    """Its wave counts on it already, and goes on without."""
    waves, ended = Waves("call", "others", 1), asyncio.Event()

    async def first() -> None:
        async with waves.member():
            await ended.wait()
        second.cancel()  # its turn has come, and it has not run yet

    async def other() -> None:
        async with waves.member():
            raise AssertionError("it has begun")

    one = asyncio.ensure_future(first())
    await asyncio.sleep(0)
    second = asyncio.ensure_future(other())
    await asyncio.sleep(0)
    ended.set()
    await one
    with contextlib.suppress(asyncio.CancelledError):
        await second
    async with asyncio.timeout(15), waves.member():
        assert second.cancelled()


async def test_a_wait_names_the_wave_that_holds_it_up() -> None:
    """The verdict on a pull goes on where that wave's first call was: a call that waits has no time of its own. That is
    no span above both, such as the pull's.
    """
    waves, go = Waves("call", "other calls", 1), asyncio.Event()

    async def call(name: str) -> None:
        with tracing.span(name):
            async with waves.member():
                await go.wait()

    with recorded() as spans:
        with tracing.span("above"):
            tasks = []
            for name in ("first", "second", "third"):
                tasks.append(asyncio.ensure_future(call(name)))
                await asyncio.sleep(0)
            go.set()
            await asyncio.gather(*tasks)
        waited = spans.named("wait.lock")
        assert {attribute(each, "splitd.wait.for") for each in waited} == {"other calls"}
        assert [spans.parent(each).name for each in waited] == ["second", "third"]
        assert [[to.name for to in spans.linked(each)] for each in waited] == [["call"], ["call"]]
        (held_up,) = {spans.parent(to).name for each in waited for to in spans.linked(each)}
        assert held_up == "first"
