"""The examples in place of the node's own content store and overlayfs: each passes the suite of its interface through
the gateway, behind metadata's records.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from services.content.remote import RemoteStore
from services.content.store import Store
from services.kit import rpc
from services.snapshots.remote import RemoteSnapshotter
from services.snapshots.store import Snapshotter
from tests.service.own.test_examples import BLOBS, OVERLAY, MapsNoIds
from tests.suites.content import ContentSuite, leased
from tests.suites.snapshots import SnapshotterSuite
from tests.support import OwnService, ServiceProcess, directory_with_attributes, short_directory

_numbers = itertools.count()


@pytest.fixture(scope="module")
def node() -> Iterator[Path]:
    """The internal socket of a node without tasks and images, in which both examples have the place of ours."""
    with contextlib.ExitStack() as stack:
        place = stack.enter_context(short_directory())
        blobs = stack.enter_context(OwnService(BLOBS, stack.enter_context(directory_with_attributes())))
        overlay = stack.enter_context(OwnService(OVERLAY, stack.enter_context(short_directory())))
        config, root, state = place / "config.toml", place / "r", place / "s"
        config.write_text(
            f'[proxy_plugins.overlayfs]\ntype = "snapshot"\naddress = "{overlay.sockets[0]}"\n'
            f'[proxy_plugins.content]\ntype = "content"\naddress = "{blobs.sockets[0]}"\n'
        )
        for module, sockets in (
            ("services.snapshots", ("snapshots.sock",)),
            ("services.metadata", ("metadata.sock",)),
            ("gateway", ("containerd.sock", "internal.sock")),
        ):
            stack.enter_context(ServiceProcess(module, root, state, sockets=sockets, config=config))
        yield state / "internal.sock"
        assert not any((root / "snapshots/overlayfs/snapshots").iterdir()), "ours has taken no part"


class TestBlobs(ContentSuite):
    """The suite on a namespace of the node."""

    namespaced = True

    @pytest.fixture
    async def store(self, node: Path) -> AsyncIterator[Store]:
        async with rpc.Channel(node) as channel, leased(channel, f"suite{next(_numbers)}") as headers:
            yield RemoteStore(channel, headers)


@pytest.mark.root
class TestOverlay(MapsNoIds, SnapshotterSuite):
    """The suite on the node's overlayfs, which is the example."""

    renames = False
    namespaced = True

    @pytest.fixture
    async def snapshotter(self, node: Path) -> AsyncIterator[Snapshotter]:
        async with rpc.Channel(node) as channel:
            yield RemoteSnapshotter(channel, snapshotter=self.name, headers={rpc.NAMESPACE: "suite"})
