"""Tasks' access to the other services of the node."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from services.kit.publisher import Publisher
from services.tasks.gateway import Gateway
from tests.support import eventually_async


class Channel:
    """A channel to a gateway that goes away when the test says so."""

    def __init__(self) -> None:
        self.goes = asyncio.Event()

    def client(self, service: object) -> Any:
        return self

    async def Watch(self, request: object) -> AsyncIterator[None]:
        yield None
        await self.goes.wait()
        self.goes.clear()


async def test_an_outage_is_reported_until_it_was_read() -> None:
    """If the handling of an outage fails once, the exits of that time would be lost: each report says when the gateway
    was last there.
    """
    channel, told, heard = Channel(), [], asyncio.Event()

    def returned(since: float) -> None:
        told.append(since)
        if len(told) == 1:
            raise ZeroDivisionError("unthought of")
        heard.set()

    gateway = Gateway(channel, Publisher(channel))  # type: ignore[arg-type]
    async with gateway.watched(returned):
        await eventually_async(lambda: asyncio.sleep(0, gateway.reachable), "it is not watched")
        went = time.time()
        channel.goes.set()
        await asyncio.wait_for(heard.wait(), 15)
        await eventually_async(lambda: asyncio.sleep(0, gateway.reachable), "it is not there again")
    assert len(told) == 2
    assert told[0] == told[1]
    assert went - 1 <= told[1] <= time.time()
