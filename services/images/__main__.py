"""The images service as a process: images.sock; calls metadata, publishes through the gateway, and transfers through it as any client."""

from __future__ import annotations

from services.images.config import Config
from services.images.remote import ImageRecords
from services.images.server import ImagesServicer
from services.images.streaming_server import StreamingServicer, Streams
from services.images.transfer_server import TransferServicer
from services.images.unpack import Unpacker
from services.kit import process, rpc, settings
from services.kit.publisher import Publisher


async def serve(file: settings.File, node: settings.Node) -> None:
    """Serve until a signal."""
    config = settings.load(Config, file, "images")
    streams = Streams()
    with process.owned(node.state / "images"):
        async with (
            rpc.Channel(node.state / "metadata.sock") as metadata,
            rpc.Channel(node.state / "internal.sock", "gateway") as gateway,
            Publisher(gateway).running() as publisher,
            rpc.serving(node.state / "images.sock", [
                ImagesServicer(ImageRecords(metadata, hold=config.hold), publisher),
                StreamingServicer(streams),
                TransferServicer(gateway, streams, Unpacker()),
            ], relayed=True),
        ):
            await process.until_signal()


if __name__ == "__main__":
    process.run("images", serve)
