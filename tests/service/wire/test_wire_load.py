"""One client's excess on the wire does not affect others: each bound of services/wire/limits.py that holds between
clients, on a real socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from api.containerd.services.content.v1 import content_pb2 as pb
from api.containerd.services.content.v1 import content_stubs
from bench.hostile import Raw
from services.kit import rpc
from services.wire import limits
from services.wire.connection import Connection
from services.wire.events import Data, GoingAway, Ready
from services.wire.frames import Code
from services.wire.limits import Limits
from services.wire.requests import request_block
from tests.support import eventually_async, short_directory

SERVICE = content_stubs.CONTENT
INFO = f"/{SERVICE.full_name}/Info"


class Content:
    """Info takes a millisecond of the loop; for "slow" it waits until it is released."""

    SERVICE = SERVICE

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.released = asyncio.Event()

    async def Info(self, request: pb.InfoRequest, call: rpc.Call) -> pb.InfoResponse:
        self.asked.append(request.digest)
        end = time.perf_counter() + 0.001
        while time.perf_counter() < end:
            pass
        if request.digest == "slow":
            await self.released.wait()
        return pb.InfoResponse(info=pb.Info(digest="x" * 1000 if request.digest == "long" else ""))


@contextlib.asynccontextmanager
async def content(**options: Any) -> AsyncIterator[tuple[Content, Path]]:
    with short_directory() as directory:
        servicer = Content()
        async with rpc.serving(directory / "c.sock", [servicer], **options):
            yield servicer, directory / "c.sock"


def info(name: str) -> bytes:
    return pb.InfoRequest(digest=name).SerializeToString()


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPLITD_GRPC_TRANSPORT", "wire")


@contextlib.contextmanager
def limited(**values: Any) -> Iterator[None]:
    """Use other limits for servers inside the block."""
    before = limits.configured()
    limits.configure(Limits(**values))
    try:
        yield
    finally:
        limits.configure(before)


async def said(raw: Raw, count: int = 1) -> None:
    """Wait until so many calls are answered with OK."""
    await asyncio.to_thread(raw.until, lambda raw: len(raw.statuses()) >= count, 60)
    assert all(head.code == 0 for head in raw.statuses())


async def greeted(*raws: Raw) -> None:
    for raw in raws:
        await asyncio.to_thread(raw.until, lambda raw: raw.of(Ready))


pytestmark = [pytest.mark.usefixtures("wire"), pytest.mark.once]


async def test_a_thousand_requests_in_one_write_delay_no_other() -> None:
    """They take a second. A client that calls after them is answered long before."""
    async with content() as (servicer, path):
        with Raw(path) as many, Raw(path) as one:
            await greeted(many, one)
            for _ in range(1000):
                many.call(INFO, info("many"))
            one.call(INFO, info("one"))
            many.flush()
            one.flush()
            await said(one)
            assert len(servicer.asked) < 200
            await said(many, 1000)
            assert servicer.asked.count("many") == 1000


@pytest.mark.parametrize("size", [1, 7, 100, 100_000])
def test_turns_change_nothing_but_the_moment(size: int) -> None:
    """Events and answers are the same, in the same order, whatever is processed at once."""

    def run(turn: int) -> tuple[list[str], bytes]:
        server, client = (Connection(client=client, limits=Limits()) for client in (False, True))
        for i in range(40):
            stream = client.open(request_block(INFO, (), None), None)
            client.send(stream, b"x" * i * 500, end=i % 3 > 0)
            if i % 3 == 0:
                client.reset(stream, Code.CANCEL)
        sent = b"".join(client.take())
        seen: list[str] = []
        for at in range(0, len(sent), size):
            events = server.receive(sent[at : at + size], turn)
            while server.more:
                events += server.receive(b"", turn)
            seen += [
                type(event).__name__ + (str(len(event.chunk)) if isinstance(event, Data) else "") for event in events
            ]
        return seen, b"".join(server.take())

    assert run(3) == run(0)


async def test_clients_that_come_all_at_once_wait_in_the_kernel() -> None:
    """They wait while the loop is busy, even a thousand of them: none is refused."""
    async with content() as (_, path):
        with contextlib.ExitStack() as stack:
            for _ in range(1000):  # the loop does not run
                waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
                waiting.setblocking(False)
                waiting.connect(str(path))


async def test_too_many_connections_cost_the_one_that_was_idle_longest() -> None:
    """Its client is told to go and can connect again; if all are busy, the last one is refused."""
    with limited(connections=3):
        async with content() as (servicer, path):
            with Raw(path) as busy, Raw(path) as first, Raw(path) as second, contextlib.ExitStack() as stack:
                await greeted(busy, first, second)
                busy.call(INFO, info("slow"))
                second.call(INFO, info("quick"))
                busy.flush()
                second.flush()
                await said(second)
                third = stack.enter_context(Raw(path))
                await asyncio.to_thread(first.until, lambda raw: raw.of(GoingAway))
                assert (first.of(GoingAway)[0].code, first.of(GoingAway)[0].reason) == (
                    Code.NO_ERROR,
                    "too many connections",
                )
                await eventually_async(lambda: asyncio.to_thread(lambda: first.read(0.1) or first.hung_up))
                third.call(INFO, info("slow"))
                third.flush()
                await eventually_async(lambda: asyncio.sleep(0, servicer.asked.count("slow") == 2))
                fourth = stack.enter_context(Raw(path))
                fourth.call(INFO, info("slow"))
                fourth.flush()
                await eventually_async(lambda: asyncio.sleep(0, servicer.asked.count("slow") == 3))
                last = stack.enter_context(Raw(path))
                await asyncio.to_thread(last.until, lambda raw: raw.of(GoingAway))
                servicer.released.set()
                await said(busy)


async def test_a_silent_peer_is_dropped_after_the_handshake_timeout() -> None:
    """It is dropped within a second, where the timeout is half a second."""
    with limited(handshake=0.5):
        async with content() as (_, path):
            with Raw(path, greet=False) as silent, Raw(path) as idle:
                await greeted(idle)
                start = time.monotonic()
                await eventually_async(lambda: asyncio.to_thread(lambda: silent.read(0.1) or silent.hung_up), seconds=3)
                assert time.monotonic() - start < 2
                idle.call(INFO, info("x"))
                idle.flush()
                await said(idle)


async def test_a_peer_that_does_not_read_is_dropped() -> None:
    """Its answers fill the socket, then our memory up to the limit; then it is not read any more, and after its timeout
    it is dropped. All others are answered.
    """
    with limited(unread=1 << 16, request=0.5):
        async with content() as (_, path):
            with Raw(path) as deaf, Raw(path) as other:
                await greeted(deaf, other)
                files = len(os.listdir("/proc/self/fd"))
                deaf.socket.setblocking(False)
                with contextlib.suppress(BlockingIOError, BrokenPipeError):
                    # pings, at no more than the rate that is allowed: each call allows for more
                    for _ in range(100_000):
                        deaf.call("/nobody/Knows")
                        deaf.socket.send(b"".join(deaf.connection.take()))
                        await asyncio.sleep(0)

                async def gone() -> bool:
                    return len(os.listdir("/proc/self/fd")) < files

                await eventually_async(gone)
                other.call(INFO, info("x"))
                other.flush()
                await said(other)


async def test_a_half_closed_peer_that_does_not_read_is_dropped() -> None:
    """The rest of its answer is not kept."""
    with limited(linger=0.2):
        async with content() as (servicer, path):
            with Raw(path, window=1 << 24) as half:
                await greeted(half)
                for _ in range(1000):
                    half.call(INFO, info("long"))
                half.flush()
                files = len(os.listdir("/proc/self/fd"))

                async def answered() -> bool:
                    return len(servicer.asked) == 1000

                await eventually_async(answered)
                half.socket.shutdown(socket.SHUT_WR)

                async def gone() -> bool:
                    return len(os.listdir("/proc/self/fd")) < files

                await eventually_async(gone)
