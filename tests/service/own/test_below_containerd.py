"""Our raw services below a containerd of others, as its proxy plugins: its own content plugin is disabled, and its
metadata keeps the records. Each passes the suite of its interface there, so what we answer is what containerd expects
of such a plugin.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from conform.content_case import CLEAN
from services.content.remote import RemoteStore
from services.content.store import Store
from services.kit import rpc
from services.snapshots.remote import RemoteSnapshotter
from services.snapshots.store import Snapshotter
from tests.peer import below
from tests.suites.content import ContentSuite, leased
from tests.suites.snapshots import SnapshotterSuite
from tests.support import short_directory

pytestmark = pytest.mark.root
_numbers = itertools.count()


@pytest.fixture(scope="module")
def socket() -> Iterator[Path]:
    """A containerd above our content and our overlayfs and native."""
    with contextlib.ExitStack() as stack:
        yield stack.enter_context(below(stack.enter_context(short_directory()))).socket


class TestContent(ContentSuite):
    """The suite on a namespace of the containerd for each test."""

    namespaced = True
    lacks = frozenset({CLEAN})
    """containerd keeps an ingest whose bytes are wrong."""

    @pytest.fixture
    async def store(self, socket: Path) -> AsyncIterator[Store]:
        async with rpc.Channel(socket) as channel, leased(channel, f"suite{next(_numbers)}") as headers:
            store = RemoteStore(channel, headers)
            yield store
            for status in await store.list_statuses():
                await store.abort(status.ref)


class _Snapshots(SnapshotterSuite):
    namespaced = True
    containerd = True
    renames = True

    @pytest.fixture
    async def snapshotter(self, socket: Path) -> AsyncIterator[Snapshotter]:
        async with rpc.Channel(socket) as channel:
            yield RemoteSnapshotter(channel, snapshotter=f"splitd-{self.name}", headers={rpc.NAMESPACE: "suite"})


class TestOverlayfs(_Snapshots):
    renames = False


class TestNative(_Snapshots):
    name = "native"
