"""The snapshots process: the snapshotters below ROOT/snapshots, each on STATE/snapshots-NAME.sock, and Diff on STATE/diff.sock."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

from services.kit import process, rpc, settings
from services.kit.removals import RemovalsServicer
from services.kit.stamp import StampServicer
from services.snapshots.broken import BrokenSnapshotter, begun
from services.snapshots.config import Config
from services.snapshots.diff.server import DiffServicer
from services.snapshots.local import LocalSnapshotter
from services.snapshots.native import NativeSnapshotter
from services.snapshots.overlay import OverlaySnapshotter
from services.snapshots.server import SnapshotsServicer


async def serve(file: settings.File, node: settings.Node) -> None:
    """Serve until a signal."""
    config = settings.load(Config, file, "snapshots")
    top = node.root / "snapshots"
    node.state.mkdir(parents=True, exist_ok=True)
    async with contextlib.AsyncExitStack() as stack:
        for name in ("overlayfs", "native", "diff"):
            stack.enter_context(process.owned(top / name))
        kinds: dict[str, Callable[[Path], LocalSnapshotter]] = {
            "overlayfs": partial(OverlaySnapshotter, mount_options=config.overlayfs.mount_options, upperdir_label=config.overlayfs.upperdir_label,
                                 sync_commit=config.sync_commit, sync_remove=config.sync_remove),
            "native": partial(NativeSnapshotter, sync_commit=config.sync_commit, sync_remove=config.sync_remove),
        }
        snapshotters = {name: await begun(name, kind, top / name, stack) for name, kind in kinds.items()}
        for name, snapshotter in snapshotters.items():
            broken = snapshotter.words if isinstance(snapshotter, BrokenSnapshotter) else ""
            servicers: list[rpc.Servicer] = [SnapshotsServicer(snapshotter), StampServicer(top / name, broken), RemovalsServicer(snapshotter.remove_all)]
            server = await stack.enter_async_context(rpc.serving(node.state / f"snapshots-{name}.sock", servicers, grace=config.grace, relayed=True))
            if isinstance(snapshotter, BrokenSnapshotter):
                server.ail(broken)
            else:
                snapshotter.soundness.told_by(server)
        diff = DiffServicer(node.state / "internal.sock", top / "diff")
        stack.push_async_callback(diff.close)
        await stack.enter_async_context(rpc.serving(node.state / "diff.sock", [diff], grace=config.grace, relayed=True))
        await process.until_signal()


if __name__ == "__main__":
    process.run("snapshots", serve)
