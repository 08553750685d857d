"""The suite of a transfer's node on the real one: the gateway and the processes behind it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from api.containerd.services.leases.v1 import leases_pb2, leases_stubs
from services.images.node.leases_remote import INCARNATION, Leases
from services.images.node.remote import RemoteNode
from services.images.transfer import Node
from services.kit.rpc import NAMESPACE, Channel
from services.snapshots.diff.workers import Appliers
from tests.suites.transfer_node import Damage, NodeSuite
from tests.support import ServiceProcess, eventually_async, short_directory

pytestmark = [pytest.mark.root, pytest.mark.once]


@pytest.fixture(scope="module")
async def home() -> AsyncIterator[Path]:
    """The directory of a node without tasks; its root is ``r``, its state ``s``."""
    with short_directory() as directory:
        root, state = directory / "r", directory / "s"
        with (
            ServiceProcess("services.content", root, state),
            ServiceProcess("services.metadata", root, state),
            ServiceProcess("services.snapshots", root, state, sockets=("snapshots-native.sock",)),
            ServiceProcess("gateway", root, state, sockets=("internal.sock",)),
        ):
            async with Channel(state / "internal.sock", "gateway") as gateway:
                leases = gateway.client(leases_stubs.LEASES)
                headers = {NAMESPACE: "suite"}
                dead = leases_pb2.CreateRequest(id="dead", labels={INCARNATION: "dead"})
                await leases.Create(dead, headers=headers)
                with ServiceProcess("services.images", root, state):
                    # It ends the leases of all other images processes when it starts, and the tests are one.
                    async def looked() -> bool:
                        return not (await leases.List(leases_pb2.ListRequest(), headers=headers)).leases

                    await eventually_async(looked, "the images process does not look for leases")
                    yield directory


class TestRemote(NodeSuite):
    """The node as the images process has it."""

    @pytest.fixture
    async def node(self, home: Path, place: Path) -> AsyncIterator[Node]:
        appliers = Appliers(str(place))
        async with Channel(home / "s/internal.sock", "gateway") as gateway, Leases(gateway).running() as leases:
            async with RemoteNode(gateway, leases, {NAMESPACE: "suite"}, appliers).leased() as node:
                yield node
        await appliers.aclose()

    @pytest.fixture
    def damage(self, home: Path) -> Damage:
        def write(digest: str, data: bytes) -> None:
            path = home / "r/content/blobs" / digest.replace(":", "/")
            path.chmod(0o600)
            path.write_bytes(data)

        return write
