"""Writes through a node whose processes die during them."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from api.containerd.services.content.v1 import content_pb2 as pb
from api.containerd.services.content.v1 import content_stubs
from services.kit import errors
from services.kit.rpc import Channel
from tests.support import Node, eventually_async, freeze, short_directory

pytestmark = [pytest.mark.node, pytest.mark.root]

HEADERS = {"containerd-namespace": "writes"}
ROOTED = {"containerd.io/gc.root": "2026-01-01T00:00:00Z"}


def client(channel: Channel) -> content_stubs.Content:
    return channel.client(content_stubs.CONTENT)


async def test_a_write_goes_on_after_the_content_service_died(node: Node) -> None:
    """content is killed between two messages: the client does not notice, writes on, commits, and reads its bytes
    back.
    """
    data = os.urandom(4 << 20)
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    async with Channel(node.socket) as channel:
        content = client(channel)
        async with content.Write(headers=HEADERS) as stream:
            await stream.send(pb.WriteContentRequest(action=pb.STAT, ref="resumed", total=len(data), expected=digest))
            assert (await stream.receive()).offset == 0
            for i in range(4):
                if i in (1, 3):
                    await asyncio.to_thread(node.kill, "content")
                await stream.send(
                    pb.WriteContentRequest(action=pb.WRITE, offset=i << 20, data=data[i << 20 : (i + 1) << 20])
                )
                assert (await stream.receive()).offset == (i + 1) << 20
            await asyncio.to_thread(node.kill, "content")
            await stream.send(
                pb.WriteContentRequest(
                    action=pb.COMMIT, total=len(data), offset=len(data), expected=digest, labels=ROOTED
                )
            )
            answer = await stream.receive()
            assert (answer.digest, answer.offset) == (digest, len(data))
        got = b"".join(
            [part.data async for part in content.Read(pb.ReadContentRequest(digest=digest), headers=HEADERS)]
        )
        assert got == data


async def test_a_commit_survives_the_death_of_metadata(node: Node) -> None:
    """metadata is killed right before the commit: the gateway waits for it, and the blob is recorded."""
    data = os.urandom(100_000)
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    async with Channel(node.socket) as channel:
        content = client(channel)
        async with content.Write(headers=HEADERS) as stream:
            await stream.send(pb.WriteContentRequest(action=pb.STAT, ref="meta", total=len(data), expected=digest))
            await stream.receive()
            await stream.send(pb.WriteContentRequest(action=pb.WRITE, data=data))
            await stream.receive()
            await asyncio.to_thread(node.kill, "metadata")
            await stream.send(
                pb.WriteContentRequest(
                    action=pb.COMMIT, total=len(data), offset=len(data), expected=digest, labels=ROOTED
                )
            )
            assert (await stream.receive()).digest == digest
        assert (await content.Info(pb.InfoRequest(digest=digest), headers=HEADERS)).info.size == len(data)


async def test_a_client_that_gives_up_during_its_commit_leaves_a_whole_blob_or_none(node: Node) -> None:
    """The client's cancellation does not stop a commit half way."""
    async with Channel(node.socket) as channel:
        content = client(channel)
        for i in range(10):
            data = os.urandom(200_000)
            digest = "sha256:" + hashlib.sha256(data).hexdigest()
            async with content.Write(headers=HEADERS) as stream:
                await stream.send(
                    pb.WriteContentRequest(action=pb.STAT, ref=f"gone{i}", total=len(data), expected=digest)
                )
                await stream.receive()
                await stream.send(
                    pb.WriteContentRequest(action=pb.COMMIT, total=len(data), data=data, expected=digest, labels=ROOTED)
                )
                await asyncio.sleep(i * 0.0005)
            try:
                info = (await content.Info(pb.InfoRequest(digest=digest), headers=HEADERS)).info
            except errors.NotFound:
                continue
            assert info.size == len(data)
            assert (
                b"".join(
                    [part.data async for part in content.Read(pb.ReadContentRequest(digest=digest), headers=HEADERS)]
                )
                == data
            )


@pytest.fixture(scope="module")
def patient() -> Iterator[Node]:
    """A node with a short outage limit, so that a test can wait for it."""
    with short_directory() as directory:
        node = Node(directory, config='[gateway]\noutage = "1s"\nhold = "500ms"\n')
        try:
            node.up()
            yield node
        finally:
            node.clear()


def test_opening_a_write_during_a_long_outage_ends_clients_retries(patient: Node) -> None:
    """Clients retry UNAVAILABLE for ever there: after the outage limit the answer is INTERNAL with the service's name,
    and ctr stops.
    """
    freeze(patient.pid("content"))
    try:
        done = subprocess.run(
            ["ctr", "-a", str(patient.socket), "content", "ingest", "late"],
            input=b"bytes",
            capture_output=True,
            timeout=60,
            check=False,
        )
    finally:
        os.kill(patient.pid("content"), signal.SIGCONT)
    assert done.returncode
    assert b"service content" in done.stderr


async def test_a_small_blob_is_read_as_any_other(node: Node) -> None:
    """It is read whole and in parts, the first time and again, only in namespaces with a record of it, and no longer
    once the record is gone.
    """
    data = os.urandom(1000)
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    async with Channel(node.socket) as channel:
        content = client(channel)

        async def read(offset: int = 0, size: int = 0, headers: dict[str, str] = HEADERS) -> list[tuple[int, bytes]]:
            request = pb.ReadContentRequest(digest=digest, offset=offset, size=size)
            return [(part.offset, part.data) async for part in content.Read(request, headers=headers)]

        async with content.Write(headers=HEADERS) as stream:
            await stream.send(
                pb.WriteContentRequest(
                    action=pb.COMMIT, ref="small", data=data, total=len(data), expected=digest, labels=ROOTED
                )
            )
            await stream.receive()
        for _ in range(2):
            assert await read() == [(0, data)]
            assert await read(offset=10) == [(0, data[10:])]
            assert await read(offset=10, size=20) == [(0, data[10:30])]
            assert await read(size=5000) == [(0, data)]
            assert await read(offset=-1, size=-1) == [(0, data)]
            assert await read(offset=1000) == []
            with pytest.raises(errors.OutOfRange, match="read past object length 1000 bytes"):
                await read(offset=1001)
            with pytest.raises(errors.NotFound, match=digest):
                await read(headers={"containerd-namespace": "others"})
        await content.Delete(pb.DeleteContentRequest(digest=digest), headers=HEADERS)
        with pytest.raises(errors.NotFound, match=digest):
            await read()


async def test_a_large_blob_is_read_piece_by_piece(node: Node) -> None:
    """As dockerd reads it: the same bytes again and again come from the content service, or from the gateway with the
    blob's file; only in namespaces with a record of it, no longer once the record is gone, and not while the content
    service is absent.
    """
    data = os.urandom(1 << 20)
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    piece = 32 << 10
    async with Channel(node.socket) as channel:
        content = client(channel)

        async def read(offset: int, size: int = piece, headers: dict[str, str] = HEADERS) -> list[tuple[int, bytes]]:
            request = pb.ReadContentRequest(digest=digest, offset=offset, size=size)
            return [(part.offset, part.data) async for part in content.Read(request, headers=headers)]

        def opened() -> bool:
            """Return whether the gateway has the blob's file open."""
            return any(path.endswith(digest.removeprefix("sha256:")) for path in _files(node.pid("gateway")))

        async with content.Write(headers=HEADERS) as stream:
            await stream.send(
                pb.WriteContentRequest(
                    action=pb.COMMIT, ref="large", data=data, total=len(data), expected=digest, labels=ROOTED
                )
            )
            await stream.receive()

        async def read_here() -> bool:
            assert await read(0) == [(0, data[:piece])]
            return opened()

        await eventually_async(read_here)
        for offset in range(0, len(data), piece):
            assert await read(offset) == [(0, data[offset : offset + piece])]
        assert await read(len(data) - 10) == [(0, data[-10:])]
        assert await read(-1) == [(0, data[:piece])]
        assert await read(len(data)) == []
        with pytest.raises(errors.OutOfRange, match=f"read past object length {len(data)} bytes"):
            await read(len(data) + 1)
        with pytest.raises(errors.NotFound, match=digest):
            await read(0, headers={"containerd-namespace": "others"})
        await asyncio.to_thread(node.kill, "content")
        assert await read(piece) == [(0, data[piece : 2 * piece])]
        await eventually_async(read_here)
        await content.Delete(pb.DeleteContentRequest(digest=digest), headers=HEADERS)
        with pytest.raises(errors.NotFound, match=digest):
            await read(0)

        async def closed() -> bool:
            return not opened()

        await eventually_async(closed)


def _files(pid: int) -> Iterator[str]:
    """Return the open files of a process."""
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            yield os.readlink(entry)
