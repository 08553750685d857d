"""The suite of the snapshotters' interface on each snapshotter of the table, in each environment: the store itself, its
process, behind a node's gateway, and containerd's own snapshotter of that name.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from services.kit.rpc import NAMESPACE, Channel
from services.snapshots.local import LocalSnapshotter
from services.snapshots.remote import RemoteSnapshotter
from services.snapshots.snapshotters import SNAPSHOTTERS
from services.snapshots.store import Snapshotter
from tests.peer import containerd
from tests.suites.snapshots import SnapshotterSuite
from tests.support import Node, ServiceProcess, short_directory

PEER, GENERATION = os.environ.get("SPLITD_PEER_CONTAINERD", "containerd"), os.environ.get("SPLITD_PEER_VERSION", "1")
"""Another containerd may be named, with its generation: 2 for versions that put index=off last."""

STORE, PROCESS, GATEWAY, CONTAINERD = "store", "process", "gateway", "containerd"
LONG = {"test_many_layers"}
Started = Callable[[str, type[LocalSnapshotter]], Path]


@pytest.fixture(scope="module")
def started(disks: Callable[[str], Path | None]) -> Iterator[Started]:
    """Return the socket of an environment of a snapshotter, or the store's directory. Each is started once for all
    snapshotters that can be on the same file system.
    """
    with contextlib.ExitStack() as stack:
        found: dict[tuple[str, str], Path] = {}

        def start(life: str, snapshotter: type[LocalSnapshotter]) -> Path:
            directory = stack.enter_context(short_directory(disks(snapshotter.FILESYSTEM)))
            if life == PROCESS:
                stack.enter_context(
                    ServiceProcess("services.snapshots", directory / "r", directory / "s", sockets=("diff.sock",))
                )
            elif life == GATEWAY:
                node = Node(directory)
                stack.callback(node.clear)
                node.up()
                return node.socket
            elif life == CONTAINERD:
                return stack.enter_context(containerd(directory, PEER))
            return directory

        def once(life: str, snapshotter: type[LocalSnapshotter]) -> Path:
            key = life, snapshotter.FILESYSTEM
            if key not in found:
                found[key] = start(life, snapshotter)
            return found[key]

        yield once


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(STORE, marks=pytest.mark.once),
        pytest.param(PROCESS, marks=pytest.mark.once),
        pytest.param(GATEWAY, marks=pytest.mark.node),
        pytest.param(CONTAINERD, marks=pytest.mark.once),
    ],
)
def life(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class EveryLife(SnapshotterSuite):
    """The suite on the snapshotter ``name``, in the ``lives`` that it has: containerd 1.6 has fewer snapshotters."""

    lives: tuple[str, ...] = (STORE, PROCESS, GATEWAY, CONTAINERD)

    @pytest.fixture
    async def snapshotter(
        self, request: pytest.FixtureRequest, life: str, started: Started, place: Path
    ) -> AsyncIterator[Snapshotter]:
        if life not in self.lives:
            pytest.skip(f"{life} has no {self.name}")
        if life in (STORE, PROCESS) and request.function.__name__ in LONG:
            pytest.skip("it takes long, and the node has both the store and its process")
        mine = next(each for each in SNAPSHOTTERS if self.name == each.NAME)
        at = started(life, mine)
        self.namespaced, self.containerd, self.index_first = (
            life in (GATEWAY, CONTAINERD),
            life == CONTAINERD,
            life == CONTAINERD and GENERATION == "1",
        )
        if life == STORE:
            async with mine(at / place.name) as local:
                yield local
        elif life == PROCESS:
            async with Channel(at / "s" / f"snapshots-{self.name}.sock") as channel:
                yield RemoteSnapshotter(channel, snapshotter="whatever a proxy calls it")
        else:
            async with Channel(at, life) as channel:
                yield RemoteSnapshotter(channel, snapshotter=self.name, headers={NAMESPACE: "suite"})


class TestOverlayfs(EveryLife):
    name = "overlayfs"
    rebases = True
    renames = False


class TestNative(EveryLife):
    """Rebasing would need a copy of another parent."""

    name = "native"


class TestBtrfs(EveryLife):
    """It copies as native does, and its usage counts changed files."""

    name = "btrfs"


class TestErofs(EveryLife):
    """A commit makes a layer of what was written."""

    name = "erofs"
    rebases = True
    renames = False
    lives = (STORE, PROCESS, GATEWAY)
