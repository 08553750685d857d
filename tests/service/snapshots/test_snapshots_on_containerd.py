"""The suite of snapshotters on Debian's containerd: what it says of containerd is so."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from services.kit.rpc import NAMESPACE, Channel
from services.snapshots.remote import RemoteSnapshotter
from services.snapshots.store import Snapshotter
from tests.peer import containerd
from tests.suites.snapshots import SnapshotterSuite
from tests.support import short_directory

PROGRAM = os.environ.get("SPLITD_PEER_CONTAINERD", "containerd")
"""Another one may be named, with its generation in SPLITD_PEER_VERSION: 2 for what says index=off last."""


@pytest.fixture(scope="module")
def peer() -> Iterator[Path]:
    with short_directory() as directory, containerd(directory, PROGRAM) as socket:
        yield socket


class OnContainerd(SnapshotterSuite):
    namespaced = containerd = True
    index_first = os.environ.get("SPLITD_PEER_VERSION", "1") == "1"

    @pytest.fixture
    async def snapshotter(self, peer: Path) -> AsyncIterator[Snapshotter]:
        async with Channel(peer, "containerd") as channel:
            yield RemoteSnapshotter(channel, snapshotter=self.name, headers={NAMESPACE: "suite"})


class TestContainerdOverlay(OnContainerd):
    pass


class TestContainerdNative(OnContainerd):
    name = "native"
