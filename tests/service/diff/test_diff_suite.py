"""The suite of Diff in each environment: the servicer in this process and the snapshots process, both over a content
service without namespaces; behind a node's gateway; and Debian's containerd, to check the suite itself.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import cast

import pytest

from api.containerd.services.diff.v1 import diff_stubs
from services.content.local import LocalStore
from services.content.server import ContentServicer, LocalFilesServicer
from services.kit import rpc
from services.snapshots.diff.server import DiffServicer
from tests.suites.diff import DiffSuite
from tests.suites.diff_sides import CONTENT, DIFF, Containerd, Side
from tests.suites.records_lives import LocalClient
from tests.support import ServiceProcess, short_directory

pytestmark = pytest.mark.root


@contextlib.asynccontextmanager
async def content(state: Path, root: Path) -> AsyncIterator[rpc.Channel]:
    """A content service in the place of a gateway, STATE/internal.sock, without namespaces."""
    store = LocalStore(root)
    socket = state / "internal.sock"
    async with (
        rpc.serving(socket, [ContentServicer(store), LocalFilesServicer(store.files)]),
        rpc.Channel(socket) as at,
    ):
        yield at
    store.close()


@pytest.fixture(scope="module")
def snapshots() -> Iterator[Path]:
    """The state directory of a snapshots process."""
    with short_directory() as directory:
        state = directory / "s"
        with ServiceProcess("services.snapshots", directory / "r", state, sockets=("diff.sock",)):
            yield state


@pytest.fixture(scope="module")
def node() -> Iterator[Path]:
    """The state directory of the four processes that a layer crosses."""
    with short_directory() as directory:
        root, state = directory / "r", directory / "s"
        with (
            ServiceProcess("services.content", root, state),
            ServiceProcess("services.metadata", root, state),
            ServiceProcess("services.snapshots", root, state, sockets=("diff.sock",)),
            ServiceProcess("gateway", root, state, sockets=("containerd.sock", "internal.sock")),
        ):
            yield state


@pytest.mark.once
class TestLocal(DiffSuite):
    """The servicer, called without a socket."""

    namespaced = False

    @pytest.fixture
    async def side(self, place: Path) -> AsyncIterator[Side]:
        async with content(place, place / "content") as channel:
            servicer = DiffServicer(place / "internal.sock", place / "scratch")
            client = cast("diff_stubs.Diff", LocalClient(servicer))
            yield Side("local", client, channel.client(CONTENT), place / "trees")
            await servicer.close()


class TestServed(DiffSuite):
    """python -m services.snapshots"""

    namespaced = False

    @pytest.fixture
    async def side(self, snapshots: Path, place: Path) -> AsyncIterator[Side]:
        async with content(snapshots, place / "content") as channel, rpc.Channel(snapshots / "diff.sock") as diff:
            yield Side("served", diff.client(DIFF), channel.client(CONTENT), place / "trees")


class TestGateway(DiffSuite):
    """Behind the gateway: layers belong to the namespace, with metadata's records and content's bytes."""

    @pytest.fixture
    async def side(self, node: Path, place: Path) -> AsyncIterator[Side]:
        async with rpc.Channel(node / "containerd.sock") as channel:
            yield Side("gateway", channel.client(DIFF), channel.client(CONTENT), place / "trees")


@pytest.mark.once
class TestContainerd(DiffSuite):
    """Debian's containerd, or the one that SPLITD_PEER_CONTAINERD names with its generation."""

    newest = os.environ.get("SPLITD_PEER_VERSION", "1") != "1"

    @pytest.fixture
    async def side(self, peer: Containerd, place: Path) -> AsyncIterator[Side]:
        async with peer.side(place / "trees") as side:
            yield side
