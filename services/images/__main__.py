"""The images process: it serves images.sock. It calls metadata, publishes events through the gateway, and makes
transfers through the gateway as any client.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from services.images import fleet_config, late_server
from services.images.concurrency.budget import READINGS, Budget
from services.images.config import load
from services.images.documents import parser_program
from services.images.node.leases_remote import Leases
from services.images.registries_server import RegistriesServicer
from services.images.registry.host_memory import HostMemory
from services.images.remote import ImageRecords
from services.images.server import ImagesServicer
from services.images.streaming_server import StreamingServicer, Streams
from services.kit import memory, process, rpc, settings
from services.kit.hops import Hop
from services.kit.publisher import Publisher
from services.snapshots.diff.workers import Appliers

if TYPE_CHECKING:
    from services.images.transfer_server import TransferServicer


@contextlib.asynccontextmanager
async def fleet_channel(file: settings.File, node: settings.Node) -> AsyncIterator[rpc.Channel | None]:
    """To the fleet process, if this node is in a fleet."""
    if fleet_config.of(file) is None:
        yield None
        return
    async with rpc.Channel(node.state / "fleet.sock", "fleet") as channel:
        yield channel


def check(file: settings.File, config_path: str) -> None:
    """A process with a wrong configuration of registries does not start. NodeError names what is wrong."""
    if not config_path and "plugins" in file.tables:
        from services.images.registry.cri_config import Registries

        Registries.of(file.tables, file.path)


async def serve(file: settings.File, node: settings.Node) -> None:
    """Serve until a signal."""
    config = load(file)
    check(file, config.config_path)
    code = late_server.kept()
    streams, known = Streams(), HostMemory()
    budget = Budget(config.connections, config.downloads, config.uploads, config.unpacks)
    with process.owned(node.state / "images"), parser_program.available(rpc.caller, READINGS):
        scratch = node.state / "images" / "unpack"
        scratch.mkdir(mode=0o700, exist_ok=True)
        appliers = Appliers(str(scratch))
        async with (
            contextlib.aclosing(appliers),
            rpc.Channel(node.state / "metadata.sock") as metadata,
            rpc.Channel(node.state / "internal.sock", "gateway") as gateway,
            Publisher(gateway).running() as publisher,
            Leases(gateway).running() as leases,
            fleet_channel(file, node) as fleet,
            contextlib.AsyncExitStack() as closing,
        ):

            def make() -> TransferServicer:
                from services.images import transfers

                memory.keep_freed()  # what arrives is in pieces of up to a megabyte
                servicer, registry = transfers.make(
                    file, node, config, gateway, fleet, leases, streams, appliers, budget, known
                )
                closing.push_async_callback(registry.close)
                code.close()
                return servicer

            transfers = late_server.transfers(make)
            if fleet is not None:
                transfers.made()  # other nodes wait for what this one pulls
            async with rpc.serving(
                node.state / "images.sock",
                [
                    ImagesServicer(ImageRecords(Hop("metadata", metadata), hold=config.hold), publisher),
                    RegistriesServicer(known),
                    StreamingServicer(streams),
                    transfers,
                ],
                relayed=True,
            ):
                await process.until_signal()


if __name__ == "__main__":
    process.run("images", serve)
