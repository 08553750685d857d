"""The content process: blobs below ROOT/content, served on STATE/content.sock."""

from __future__ import annotations

from services.content import sizes
from services.content.config import Config
from services.content.local import LocalStore
from services.content.server import ContentServicer, LocalFilesServicer
from services.kit import metrics_stores, process, rpc, settings
from services.kit.removals import RemovalsServicer
from services.kit.stamp import StampServicer


async def serve(file: settings.File, node: settings.Node) -> None:
    """Serve until a signal."""
    config = settings.load(Config, file, "content")
    root = node.root / "content"
    node.state.mkdir(parents=True, exist_ok=True)
    with process.owned(root):
        store = LocalStore(root, threads=config.threads)
        servicers: list[rpc.Servicer] = [
            ContentServicer(store),
            LocalFilesServicer(store.files),
            StampServicer(root),
            RemovalsServicer(store.remove_all, store.remove_blobs),
        ]
        async with rpc.serving(node.state / "content.sock", servicers, grace=config.grace, relayed=True):
            metrics_stores.measured({"content": lambda: sizes.of_store(root)})
            await process.until_signal()
        store.close()


if __name__ == "__main__":
    process.run("content", serve)
