"""One client's excess on the wire is its own affair: each bound of services/kit/wire/limits.py that holds between clients, on a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from api.containerd.services.content.v1 import content_pb2 as pb
from bench.hostile import Raw
from services.kit import rpc
from services.kit.wire.channel import request_block
from services.kit.wire.connection import Connection, Data, Ready, Trailers
from services.kit.wire.frames import Code
from services.kit.wire.limits import Limits
from tests.support import short_directory

SERVICE = pb.DESCRIPTOR.services_by_name["Content"]
INFO = f"/{SERVICE.full_name}/Info"


class Content:
    """Info takes a millisecond of the loop."""

    SERVICE = SERVICE

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def Info(self, request: pb.InfoRequest, call: rpc.Call) -> pb.InfoResponse:
        self.asked.append(request.digest)
        end = time.perf_counter() + 0.001
        while time.perf_counter() < end:
            pass
        return pb.InfoResponse()


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


pytestmark = pytest.mark.usefixtures("wire")


async def test_a_thousand_requests_in_one_write_hold_nobody_up() -> None:
    """They take a second. Who asks after them is answered long before."""
    async with content() as (servicer, path):
        with Raw(path) as many, Raw(path) as one:
            for raw in (many, one):
                await asyncio.to_thread(raw.until, lambda raw: raw.of(Ready))
            for _ in range(1000):
                many.call(INFO, info("many"))
            one.call(INFO, info("one"))
            many.flush()
            one.flush()
            await asyncio.to_thread(one.until, lambda raw: raw.of(Trailers))
            assert len(servicer.asked) < 200
            await asyncio.to_thread(many.until, lambda raw: len(raw.of(Trailers)) == 1000)
            assert servicer.asked.count("many") == 1000


@pytest.mark.parametrize("size", [1, 7, 100, 100_000])
def test_turns_change_nothing_but_the_moment(size: int) -> None:
    """The same events and the same answers, in the same order, whatever is dealt with at once."""

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
            events = server.receive(sent[at:at + size], turn)
            while server.more:
                events += server.receive(b"", turn)
            seen += [type(event).__name__ + (str(len(event.chunk)) if isinstance(event, Data) else "") for event in events]
        return seen, b"".join(server.take())

    assert run(3) == run(0)
