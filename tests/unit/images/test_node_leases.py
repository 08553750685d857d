"""Leases that could not be ended at once are ended later; without a node."""

from __future__ import annotations

import asyncio
from typing import Any

from api.containerd.services.leases.v1 import leases_pb2 as pb
from services.images.node.leases_remote import Leases
from services.kit import errors
from tests.support import eventually_async


class Gateway:
    """A gateway with leases. It refuses to end ``stuck``, and ends any other at the second call."""

    def __init__(self) -> None:
        self.there: list[str] = []
        self.asked: list[str] = []
        self.stuck = ""

    def client(self, service: object) -> Any:
        return self

    async def reached(self, seconds: float) -> None:
        """Return at once."""

    async def Create(self, request: pb.CreateRequest, **how: Any) -> None:
        self.there.append(request.id)

    async def Delete(self, request: pb.DeleteRequest, **how: Any) -> None:
        self.asked.append(request.id)
        if request.id == self.stuck or self.asked.count(request.id) == 1:
            raise errors.Internal("odd")
        self.there.remove(request.id)

    async def List(self, request: Any, **how: Any) -> Any:
        return pb.ListResponse() if isinstance(request, pb.ListRequest) else type("Answer", (), {"namespaces": ()})


async def test_a_lease_that_cannot_be_ended_holds_up_no_other() -> None:
    """Whichever comes first: all others are ended, and the refused one is tried again."""
    gateway = Gateway()
    leases = Leases(gateway)  # type: ignore[arg-type]
    async with leases.lease({}) as gateway.stuck:
        pass
    for _ in range(8):
        async with leases.lease({}):
            pass
    assert len(gateway.there) == 9
    async with leases.running():
        await eventually_async(lambda: asyncio.sleep(0, gateway.there == [gateway.stuck]), "others are not ended")
        await eventually_async(
            lambda: asyncio.sleep(0, gateway.asked.count(gateway.stuck) > 2), "it is not tried again"
        )
