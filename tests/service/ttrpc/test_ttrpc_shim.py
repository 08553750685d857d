"""kit.ttrpc against a real shim: Debian's containerd-shim-runc-v2, without a task."""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from api.containerd.runtime.task.v2 import shim_pb2, shim_stubs
from api.ttrpc import ttrpc_pb2
from services.kit import errors, rpc, ttrpc
from services.tasks.bundle import Bundle
from services.tasks.shim import Environment, Program, socket_path

pytestmark = [pytest.mark.root, pytest.mark.once]
TASK = shim_stubs.TASK
HEADERS = {rpc.NAMESPACE: "ns"}


@pytest.fixture
async def shim(place: Path) -> AsyncIterator[str]:
    """The socket of a shim that has nothing to do; it ends with the test."""
    bundle = Bundle.of(place / "root", place / "state", "ns", "lone")
    bundle.create(b'{"ociVersion": "1.0.2"}')
    os.mkfifo(bundle.log)
    log = os.open(bundle.log, os.O_RDWR | os.O_NONBLOCK)
    try:
        program = Program(
            "/usr/bin/containerd-shim-runc-v2",
            bundle,
            Environment(place / "containerd.sock", place / "containerd.sock.ttrpc"),
        )
        path = socket_path((await program.start(None, 20)).address)
        yield path
        async with ttrpc.Channel(path) as channel:
            with contextlib.suppress(errors.Unavailable):  # its answer may not get out any more
                await channel.client(TASK).Shutdown(shim_pb2.ShutdownRequest(id="lone"), headers=HEADERS)
            await asyncio.wait_for(channel.wait_closed(), 10)
    finally:
        os.close(log)


async def test_calls_and_errors(shim: str) -> None:
    """A hundred calls at once are answered; the shim's own errors come through in class and words, unknown services
    too.
    """
    async with ttrpc.Channel(shim) as channel:
        client = channel.client(TASK)
        answers = await asyncio.gather(
            *(client.Connect(shim_pb2.ConnectRequest(id="lone"), headers=HEADERS) for _ in range(100))
        )
        assert len({a.shim_pid for a in answers}) == 1
        assert Path(f"/proc/{answers[0].shim_pid}/cmdline").read_text().startswith("/usr/bin/containerd-shim-runc-v2")
        with pytest.raises(errors.NotFound, match=r"container not created: not found$"):
            await client.State(shim_pb2.StateRequest(id="lone"), headers=HEADERS)
        with pytest.raises(errors.Unimplemented, match=r"service containerd\.task\.v3\.Task"):
            await channel.unary("/containerd.task.v3.Task/State", b"", HEADERS, 5.0)


async def test_oversized_requests_never_reach_it(shim: str) -> None:
    """A request over the limit fails here, and the connection can be used on."""
    async with ttrpc.Channel(shim) as channel:
        await channel.client(TASK).Connect(shim_pb2.ConnectRequest(id="lone"), headers=HEADERS)
        with pytest.raises(errors.ResourceExhausted, match="exceed maximum message size"):
            await channel.client(TASK).State(shim_pb2.StateRequest(id="x" * (5 << 20)))
        assert not channel.closed


async def test_the_real_server_answers_what_ours_would(shim: str) -> None:
    """An even stream and an unknown method are answered by the Go server as by ours: the same codes and words."""
    reader, writer = await asyncio.open_unix_connection(shim)

    async def answer() -> tuple[int, str]:
        length, _, kind, _ = struct.unpack(">IIBB", await asyncio.wait_for(reader.readexactly(10), 5))
        assert kind == 2
        status = ttrpc_pb2.Response.FromString(await reader.readexactly(length)).status
        return status.code, status.message

    good = ttrpc_pb2.Request(service="containerd.task.v2.Task", method="NoSuch").SerializeToString()
    writer.write(ttrpc.frame(2, 1, good))
    assert await answer() == (3, "StreamID must be odd for client initiated streams")
    writer.write(ttrpc.frame(3, 1, good))
    code, words = await answer()
    assert (code, words) == (12, "method NoSuch")
    writer.close()
