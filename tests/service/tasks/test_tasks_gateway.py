"""Tasks' access to the rest of the node: the suite over a node's gateway, and writing to content, with the content
process in the gateway's place.
"""

from __future__ import annotations

import io
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.content.remote import RemoteStore
from services.kit import rpc
from services.kit.publisher import Publisher
from services.oci.digests import Digest, digest_of
from services.tasks.gateway import Gateway
from services.tasks.store import Node
from tests.suites.tasks_around import Add, NodeSuite
from tests.suites.tasks_node import TasksNode, tasks_node
from tests.support import ServiceProcess, short_directory

TYPE = "application/vnd.containerd.container.checkpoint.config.v1+proto"
DATA = os.urandom((3 << 20) + 7)


@pytest.fixture
async def channel() -> AsyncIterator[rpc.Channel]:
    with (
        short_directory() as directory,
        ServiceProcess("services.content", directory / "r", directory / "s") as running,
    ):
        async with rpc.Channel(running.sockets[0], "content") as channel:
            yield channel


async def test_a_blob_is_written(channel: rpc.Channel) -> None:
    """It may be written in pieces or be empty; an existing blob is accepted."""
    gateway, store = Gateway(channel, Publisher(channel)), RemoteStore(channel)
    for data in (DATA, b"", DATA):
        descriptor = await gateway.write_blob("default", "", "/checkpoint", TYPE, io.BytesIO(data))
        assert (descriptor.media_type, descriptor.digest, descriptor.size) == (TYPE, digest_of(data), len(data))
        assert b"".join([piece async for piece in store.read(Digest.parse(descriptor.digest))]) == data
    assert not await store.list_statuses()


async def test_remains_of_an_attempt_are_no_part_of_the_next(channel: rpc.Channel) -> None:
    """Both have the same ref."""
    left = await RemoteStore(channel).writer("/checkpoint")
    await left.write(b"of one that failed")
    await left.close()
    descriptor = await Gateway(channel, Publisher(channel)).write_blob(
        "default", "", "/checkpoint", TYPE, io.BytesIO(DATA)
    )
    assert (descriptor.digest, descriptor.size) == (digest_of(DATA), len(DATA))


@pytest.mark.root
@pytest.mark.once
class TestGateway(NodeSuite):
    @pytest.fixture
    async def node(self, others: Path, place: Path) -> AsyncIterator[TasksNode]:
        async with tasks_node(others / "s/internal.sock", others, place) as node:
            yield node

    @pytest.fixture
    async def around(self, node: TasksNode) -> AsyncIterator[Node]:
        async with Publisher(node.channel).running() as publisher:
            yield Gateway(node.channel, publisher)

    @pytest.fixture
    def ns(self, node: TasksNode) -> str:
        return node.ns

    @pytest.fixture
    def add(self, node: TasksNode) -> Add:
        async def made(name: str, labels: dict[str, str] = {}, snapshot: str = "") -> None:
            if snapshot:
                await node.snapshot(snapshot)
            await node.add(name, "true", labels=labels, snapshot=snapshot)

        return made
