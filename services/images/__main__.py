"""The images process: it serves images.sock. It calls metadata, publishes events through the gateway, and makes
transfers through the gateway as any client.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from services.images import fleet_config
from services.images.concurrency.budget import READINGS, Budget
from services.images.config import load
from services.images.distribution.fetcher import Fetcher
from services.images.distribution.puller import RegistryPuller
from services.images.distribution.pusher import RegistryPusher
from services.images.distribution.verifiers import Verifier
from services.images.documents import parser_program
from services.images.layers.unpacker import Unpacker
from services.images.node.leases_remote import Leases
from services.images.registries_server import RegistriesServicer
from services.images.registry.client import Registry
from services.images.registry.hosts import Hosts
from services.images.remote import ImageRecords
from services.images.server import ImagesServicer
from services.images.streaming_server import StreamingServicer, Streams
from services.images.transfer import Unpacking
from services.images.transfer_server import TransferServicer
from services.kit import memory, process, rpc, settings
from services.kit.hops import Hop
from services.kit.publisher import Publisher
from services.snapshots.diff.workers import Appliers

if TYPE_CHECKING:
    from services.images.distribution.peers import Peers


@contextlib.asynccontextmanager
async def peering(file: settings.File, node: settings.Node, registry: Registry) -> AsyncIterator[Peers | None]:
    """The other nodes of the fleet, if this one is in a fleet. Only then any of this is loaded."""
    fleet = fleet_config.of(file)
    if fleet is None:
        yield None
        return
    from services.fleet.remote import RemoteFleet
    from services.images.distribution.blamed import Blamed
    from services.images.distribution.fleet_sources import FleetSources
    from services.images.distribution.peers import Peers
    from services.images.registry.host import TLS

    async with rpc.Channel(node.state / "fleet.sock", "fleet") as channel:
        tls = TLS((fleet.ca,), ((fleet.cert, fleet.key),), alone=True)
        liars = Blamed(node.state / "images" / "blamed-peers.json")
        yield Peers(FleetSources(RemoteFleet(channel)), registry, tls, fleet.namespaces, liars=liars)


async def serve(file: settings.File, node: settings.Node) -> None:
    """Serve until a signal."""
    memory.keep_freed()  # what arrives is in pieces of up to a megabyte
    config = load(file)
    hosts = Hosts.of_config(file.tables, file.path, config.config_path, config.traceparent)
    budget = Budget(config.connections, config.downloads, config.uploads, config.unpacks)
    streams = Streams()
    unpacker = Unpacker(budget, [Unpacking(each.parsed, each.snapshotter) for each in config.unpack_config])
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
            Registry(hosts, timeouts=config.timeouts, retry=config.retry) as registry,
            peering(file, node, registry) as peers,
            rpc.serving(
                node.state / "images.sock",
                [
                    ImagesServicer(ImageRecords(Hop("metadata", metadata), hold=config.hold), publisher),
                    RegistriesServicer(registry.memory),
                    StreamingServicer(streams),
                    TransferServicer(
                        gateway,
                        leases,
                        streams,
                        appliers,
                        unpacker,
                        RegistryPuller(
                            registry,
                            Fetcher(budget, config.streams, config.largest, peers),
                            unpacker,
                            Verifier(config.verifier),
                            config.layers,
                        ),
                        RegistryPusher(registry, budget),
                        config.layers,
                    ),
                ],
                relayed=True,
            ),
        ):
            await process.until_signal()


if __name__ == "__main__":
    process.run("images", serve)
