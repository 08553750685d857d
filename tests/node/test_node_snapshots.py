"""The mounts that the gateway keeps."""

from __future__ import annotations

import asyncio

import pytest

from services.kit import errors
from services.kit.rpc import NAMESPACE, Channel
from services.snapshots.remote import RemoteSnapshotter
from tests.support import Node

pytestmark = [pytest.mark.node, pytest.mark.root]

ROOTED = {"containerd.io/gc.root": "2026-01-01T00:00:00Z"}


async def test_mounts_are_what_the_snapshotter_says_and_only_of_what_is_recorded(node: Node) -> None:
    """Asked again, after a restart too; gone with the record, in other namespaces not there, and new for a new snapshot of the same key."""
    async with Channel(node.socket, "gateway") as channel:
        ours, others = (RemoteSnapshotter(channel, snapshotter="overlayfs", headers={NAMESPACE: name}) for name in ("mounts", "other-mounts"))
        first = await ours.prepare("k", labels=ROOTED)
        assert await ours.mounts("k") == await ours.mounts("k") == first
        await asyncio.to_thread(node.kill, "snapshots")
        assert await ours.mounts("k") == first
        with pytest.raises(errors.NotFound):
            await others.mounts("k")
        await ours.remove("k")
        with pytest.raises(errors.NotFound):
            await ours.mounts("k")
        second = await ours.prepare("k", labels=ROOTED)
        assert second != first
        assert await ours.mounts("k") == second
        await ours.commit("c", "k", labels=ROOTED)
        for name in ("k", "c"):
            with pytest.raises(errors.NodeError):
                await ours.mounts(name)
        await ours.remove("c")
