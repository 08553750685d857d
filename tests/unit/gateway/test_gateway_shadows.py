"""When copies of calls are handed on to the process that makes them."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from api.splitd.shadows.v1 import shadows_pb2 as pb
from gateway import shadows
from gateway.config import Config
from gateway.instruments import Order
from gateway.routes import Routes
from gateway.shadows import Shadow
from gateway.upstream import Upstream
from services.shadows.methods_convert import METHODS, READ, REMOVED, STORED
from tests.support import eventually_async

INFO = "/containerd.services.content.v1.Content/Info"
DELETE = "/containerd.services.content.v1.Content/Delete"


class Comparing:
    """Takes copies, and makes none."""

    def __init__(self, copies: socket.socket) -> None:
        self._copies = socket.socket(fileno=os.dup(copies.fileno()))
        self.taken: list[pb.Copy] = []
        self._over = asyncio.Event()

    async def read(self, count: int) -> None:
        """Take so many messages, of which the first begins the comparison."""
        loop = asyncio.get_running_loop()
        self._copies.setblocking(False)
        async with asyncio.timeout(15):
            while len(self.taken) < count:
                self.taken.append(pb.Copy.FromString(await loop.sock_recv(self._copies, 1 << 20)))

    async def wait(self) -> int:
        await self._over.wait()
        return 0

    def kill(self) -> None:
        self._copies.close()
        self._over.set()


class Watching:
    """A tap, which every call must pass."""

    order = Order.TAP


@pytest.fixture
def ours(place: Path) -> Upstream:
    return Routes(place, Config(), {}).upstream("content", place / "content.sock")


@pytest.fixture
async def shadow(ours: Upstream, place: Path) -> AsyncIterator[tuple[Shadow, Comparing]]:
    processes: list[Comparing] = []

    async def start(copies: socket.socket) -> Comparing:
        processes.append(Comparing(copies))
        return processes[-1]

    made = Shadow(pb.StartRequest(route="content", address="/x.sock"), ours, place, writes=False, start=start)
    await eventually_async(lambda: asyncio.sleep(0, made in ours.instruments))
    yield made, processes[0]
    processes[0].kill()
    await made.close()


async def test_copies_are_handed_on_in_their_order(shadow: tuple[Shadow, Comparing]) -> None:
    """Also more than fit into one pause."""
    made, comparing = shadow
    for number in range(50):
        made.remembered(READ, b"%d" % number, None)
    await comparing.read(51)
    assert [bytes(each.requests[0]) for each in comparing.taken[1:]] == [b"%d" % number for number in range(50)]


async def test_copies_do_not_wait_for_a_pause_for_ever(shadow: tuple[Shadow, Comparing]) -> None:
    """Calls come without a pause."""
    made, comparing = shadow
    reading = asyncio.create_task(comparing.read(2))
    count = 0
    while not reading.done():
        made.remembered(READ, b"%d" % count, None)
        count += 1
        await asyncio.sleep(0)
    await reading
    assert comparing.taken[1].requests == [b"0"]


async def test_what_is_not_copied_is_not_noted(shadow: tuple[Shadow, Comparing]) -> None:
    """Writes go to a candidate with a store of its own only, and other methods to none."""
    made, comparing = shadow
    for path in (DELETE, STORED, "/containerd.services.leases.v1.Leases/List", INFO):
        made.remembered(path, b"", b"")
    await comparing.read(2)
    assert [each.path for each in comparing.taken[1:]] == [INFO]
    assert not made._waiting


async def test_reads_pass_unread_beside_shadows_only(shadow: tuple[Shadow, Comparing], ours: Upstream) -> None:
    """A tap wants to see the answers."""
    assert ours.instruments.unread(READ)
    assert not ours.instruments.unread(INFO)
    tap = Watching()
    ours.instruments.add(tap)  # type: ignore[arg-type]
    assert not ours.instruments.unread(READ)
    ours.instruments.remove(tap)  # type: ignore[arg-type]
    assert ours.instruments.unread(READ)


def test_how_much_is_copied() -> None:
    """A share is of the reads."""
    of_reads, of_all = shadows._shares(0.1, writes=False), shadows._shares(0.1, writes=True)
    assert set(of_reads.values()) == {0.1}
    assert {path: share for path, share in of_all.items() if share != 1.0} == of_reads
    assert set(of_all) - set(METHODS) == {STORED, REMOVED}


@pytest.mark.parametrize(
    ("passed", "spent", "most"),
    [(100.0, 1.0, 20), (0.1, 0.01, 20), (0.02, 0.001, 4), (0.001, 0.0, 1), (0.1, 0.09, 6), (0.05, 0.04, 3)],
)
def test_how_many_are_handed_on(passed: float, spent: float, most: int) -> None:
    """20 in a tenth of a second, and 6 where the gateway was on a processor for half of it."""
    assert shadows._many(0.0, 0.0, passed, spent) == most
