"""A call whose handler waits for a disk: a slow one never ends it, and one that does not move does."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from api.containerd.services.content.v1 import content_pb2 as pb
from api.containerd.services.content.v1 import content_stubs
from services.kit import errors, process, rpc
from services.kit.files import start_writeback
from tests.support import frozen_disk, loop_disk, short_directory, slow_disk

SERVICE = content_stubs.CONTENT
MB = 10**6
STALL = 0.2
PIECE = 1 << 18


class Content:
    """Info writes what is asked for to a file and waits until the disk has it; Write does so for each message. Update
    makes a file.
    """

    SERVICE = SERVICE

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file = (directory / "blob").open("wb", buffering=0)

    def _written(self, size: int) -> None:
        for _ in range(0, size, PIECE):
            self._file.write(os.urandom(PIECE))
            start_writeback(self._file.fileno())  # in small requests: the limit lets each pass as a whole
        os.fsync(self._file.fileno())

    async def Info(self, request: pb.InfoRequest, call: rpc.Call) -> pb.InfoResponse:
        await asyncio.to_thread(self._written, int(request.digest))
        return pb.InfoResponse()

    async def Update(self, request: pb.UpdateRequest, call: rpc.Call) -> pb.UpdateResponse:
        await asyncio.to_thread((self._directory / "another").touch)
        return pb.UpdateResponse()

    async def Write(
        self, requests: AsyncIterator[pb.WriteContentRequest], call: rpc.Call
    ) -> AsyncIterator[pb.WriteContentResponse]:
        async for request in requests:
            await asyncio.to_thread(self._written, request.total)
            yield pb.WriteContentResponse()


@asynccontextmanager
async def served(disk: Path) -> AsyncIterator[content_stubs.Content]:
    with short_directory() as directory:
        async with rpc.serving(directory / "content.sock", [Content(disk)], grace=0):
            async with rpc.Channel(directory / "content.sock") as channel:
                yield channel.client(SERVICE)


async def test_a_slow_disk_ends_no_call() -> None:
    """One fsync takes several times as long as the call may stand still."""
    with loop_disk("ext4") as disk:
        async with served(disk) as content:
            loop = asyncio.get_running_loop()
            with slow_disk(disk, 6 * MB):
                begun = loop.time()
                await content.Info(pb.InfoRequest(digest=str(12 * MB)), stall=STALL)
                assert loop.time() - begun > 4 * STALL
                async with content.Write(stall=STALL) as stream:
                    await asyncio.sleep(1.5 * STALL)  # the client's own silence is not the disk's
                    await stream.send(pb.WriteContentRequest(total=6 * MB))
                    await stream.receive()


@pytest.mark.parametrize(
    ("method", "request_", "doing"),
    [
        ("Info", pb.InfoRequest(digest="4096"), "write of /[^ ]+/blob"),
        ("Update", pb.UpdateRequest(), "openat"),  # for which the kernel does not tell the file
    ],
)
async def test_a_disk_that_does_not_move_ends_the_call_and_is_named(method: str, request_: Any, doing: str) -> None:
    """It has ten times as long as a call for which nothing works. The message has the call, the process, and what it
    waits for. Other disks of the machine may move.
    """
    with loop_disk("ext4") as disk, process.owned(disk / "root") as root:
        async with served(root) as content:
            with (
                frozen_disk(disk),
                pytest.raises(
                    errors.DeadlineExceeded,
                    match=rf"service content: /containerd\.services\.content\.v1\.Content/{method} made no progress for 2 s: "
                    rf"thread \S+ waits in {doing}, and the disk does not move: context deadline exceeded",
                ),
            ):
                await getattr(content, method)(request_, stall=STALL)
