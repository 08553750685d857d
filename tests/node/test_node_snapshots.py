"""The gateway's caches for snapshotters: their mounts and their names."""

from __future__ import annotations

import asyncio

import pytest

from services.kit import errors
from services.kit.rpc import NAMESPACE, Channel
from services.snapshots.remote import RemoteSnapshotter
from tests.support import Node, eventually

pytestmark = [pytest.mark.node, pytest.mark.root]

ROOTED = {"containerd.io/gc.root": "2026-01-01T00:00:00Z"}


async def test_mounts_are_the_snapshotters_and_only_of_recorded_snapshots(node: Node) -> None:
    """They are the same when asked again, and after a restart. They are gone with the record, are not there in other
    namespaces, and are new for a new snapshot of the same key.
    """
    async with Channel(node.socket, "gateway") as channel:
        ours, others = (
            RemoteSnapshotter(channel, snapshotter="overlayfs", headers={NAMESPACE: name})
            for name in ("mounts", "other-mounts")
        )
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


def test_a_snapshotter_whose_service_is_stopped_is_not_unknown(node: Node) -> None:
    """A gateway that was started meanwhile uses its saved announcement: the snapshotter is UNAVAILABLE, in its row of
    the plugins too. A snapshotter that never existed is not loaded.
    """
    node.splitd("down", "snapshots")
    try:
        before = node.kill("gateway")
        eventually(
            lambda: node.pid("gateway") not in (0, before) and node.ctr("version", ok=None).returncode == 0,
            "the gateway is not back",
        )
        assert (
            "service snapshots.native is stopped"
            in node.ctr("snapshots", "--snapshotter", "native", "prepare", "k", ok=False).stderr
        )
        assert (
            "snapshotter not loaded: nosuch"
            in node.ctr("snapshots", "--snapshotter", "nosuch", "prepare", "k", ok=False).stderr
        )
        assert [row.split()[-1] for row in node.out("plugins", "ls").splitlines() if row.split()[1] == "native"] == [
            "error"
        ]
    finally:
        node.splitd("up")
    assert [row.split()[-1] for row in node.out("plugins", "ls").splitlines() if row.split()[1] == "native"] == ["ok"]
