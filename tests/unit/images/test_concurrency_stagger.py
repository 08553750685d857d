"""Downloads that begin in waves."""

from __future__ import annotations

import asyncio
from typing import Any

from services.images.concurrency.stagger import may_start
from services.kit.many import Gathering


class Carrier:
    """A carrier that answers when the test lets it."""

    def __init__(self) -> None:
        self.go = asyncio.Event()

    async def unary(self, *request: Any) -> bytes:
        await self.go.wait()
        return b""


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_the_first_begin_before_the_others() -> None:
    """The others begin together once one of the first has its answer, whichever it is."""
    begun: list[int] = []
    carrier = Carrier()
    calls = Gathering(carrier)  # type: ignore[arg-type]

    async def begin(number: int) -> None:
        await may_start(number)
        begun.append(number)
        if number == 3:
            await calls.unary("/splitd.Test/Begin", b"", (), (), None)

    waiting = asyncio.gather(*map(begin, reversed(range(20))))
    await turns()
    assert sorted(begun) == list(range(8))
    carrier.go.set()
    await asyncio.wait_for(waiting, 15)
    assert sorted(begun) == list(range(20))


async def test_a_start_does_not_wait_for_an_answer_that_never_comes() -> None:
    """If the first send no request, since they wait for another pull's work on the same layers, the others begin."""
    await asyncio.wait_for(asyncio.gather(*map(may_start, range(20))), 15)
    carrier = Carrier()
    calls = Gathering(carrier)  # type: ignore[arg-type]
    asked = asyncio.ensure_future(calls.unary("/splitd.Test/Begin", b"", (), (), None))
    waiting = asyncio.ensure_future(may_start(8))
    await turns()
    assert not waiting.done()
    asked.cancel()
    await asyncio.wait_for(waiting, 15)
    carrier.go.set()
    await asyncio.wait((asked,))
