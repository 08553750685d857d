"""The snapshots process: the snapshotters below ROOT/snapshots, each on STATE/snapshots-NAME.sock; Diff on
STATE/diff.sock; and the list of snapshotters on STATE/snapshots.sock.
"""

from __future__ import annotations

import contextlib
from functools import partial

from services.kit import metrics_stores, process, rpc, settings
from services.kit.removals import RemovalsServicer
from services.kit.stamp import StampServicer
from services.snapshots.broken import BrokenSnapshotter, started
from services.snapshots.config import Config
from services.snapshots.diff.server import DiffServicer
from services.snapshots.directories import DirectorySnapshotter
from services.snapshots.server import SnapshotsServicer, SnapshottersServicer
from services.snapshots.snapshotters import SNAPSHOTTERS
from services.snapshots.tree import sizes


async def serve(file: settings.File, node: settings.Node) -> None:
    """Serve until a signal."""
    config = settings.load(Config, file, "snapshots")
    top = node.root / "snapshots"
    node.state.mkdir(parents=True, exist_ok=True)
    async with contextlib.AsyncExitStack() as stack:
        for name in (*(each.NAME for each in SNAPSHOTTERS), "diff"):
            stack.enter_context(process.owned(top / name))
        snapshotters = [
            await started(
                each.NAME,
                partial(
                    each,
                    settings=getattr(config, each.NAME, None),
                    sync_commit=config.sync_commit,
                    sync_remove=config.sync_remove,
                ),
                top / each.NAME,
                stack,
            )
            for each in SNAPSHOTTERS
        ]
        servers: list[rpc.Server] = []
        for kind, snapshotter in zip(SNAPSHOTTERS, snapshotters, strict=True):
            broken = snapshotter.words if isinstance(snapshotter, BrokenSnapshotter) else ""
            servicers: list[rpc.Servicer] = [
                SnapshotsServicer(snapshotter),
                StampServicer(top / kind.NAME, broken),
                RemovalsServicer(snapshotter.remove_all),
            ]
            servers.append(
                await stack.enter_async_context(
                    rpc.serving(node.state / f"snapshots-{kind.NAME}.sock", servicers, grace=config.grace, relayed=True)
                )
            )
        whole = await stack.enter_async_context(
            rpc.serving(node.state / "snapshots.sock", [SnapshottersServicer(snapshotters)], grace=config.grace)
        )
        for snapshotter, server in zip(snapshotters, servers, strict=True):
            snapshotter.report_to(server, whole)
        diff = DiffServicer(
            node.state / "internal.sock",
            top / "diff",
            sync_commit=config.sync_commit,
            givers=[each for each in snapshotters if isinstance(each, DirectorySnapshotter)],
        )
        stack.push_async_callback(diff.close)
        await stack.enter_async_context(rpc.serving(node.state / "diff.sock", [diff], grace=config.grace, relayed=True))
        metrics_stores.measured(
            {
                f"snapshots.{each.NAME}": partial(sizes, top / each.NAME)
                for each, made in zip(SNAPSHOTTERS, snapshotters, strict=True)
                if not isinstance(made, BrokenSnapshotter)
            }
        )
        await process.until_signal()


if __name__ == "__main__":
    process.run("snapshots", serve)
