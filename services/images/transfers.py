"""All that makes transfers, put together. The process loads this for the first transfer: some 70 modules, which a node
that only runs containers does not need.
"""

from __future__ import annotations

from typing import NamedTuple

from services.images import fleet_config
from services.images.concurrency.budget import Budget
from services.images.config import Config
from services.images.distribution.fetcher import Fetcher
from services.images.distribution.peers import Peers
from services.images.distribution.puller import RegistryPuller
from services.images.distribution.pusher import RegistryPusher
from services.images.distribution.verifiers import Verifier
from services.images.layers.unpacker import Unpacker
from services.images.node.leases_remote import Leases
from services.images.registry.client import Registry
from services.images.registry.host_memory import HostMemory
from services.images.registry.hosts import Hosts
from services.images.streaming_server import Streams
from services.images.transfer import Unpacking
from services.images.transfer_server import TransferServicer
from services.kit import rpc, settings
from services.snapshots.diff.workers import Appliers


class Transfers(NamedTuple):
    """The servicer, and the registry client of the process, which is to be closed after it."""

    servicer: TransferServicer
    registry: Registry


def make(
    file: settings.File,
    node: settings.Node,
    config: Config,
    gateway: rpc.Channel,
    fleet: rpc.Channel | None,
    leases: Leases,
    streams: Streams,
    appliers: Appliers,
    budget: Budget,
    memory: HostMemory,
) -> Transfers:
    """``fleet`` is a channel to the process of that name, if the node is in a fleet."""
    hosts = Hosts.of_config(file.tables, file.path, config.config_path, config.traceparent)
    registry = Registry(hosts, timeouts=config.timeouts, retry=config.retry, memory=memory)
    peers = _peers(file, node, fleet, registry) if fleet is not None else None
    unpacker = Unpacker(budget, [Unpacking(each.parsed, each.snapshotter) for each in config.unpack_config])
    fetcher = Fetcher(budget, config.streams, config.largest, peers)
    puller = RegistryPuller(registry, fetcher, unpacker, Verifier(config.verifier), config.layers)
    pusher = RegistryPusher(registry, budget)
    return Transfers(
        TransferServicer(gateway, leases, streams, appliers, unpacker, puller, pusher, config.layers), registry
    )


def _peers(file: settings.File, node: settings.Node, channel: rpc.Channel, registry: Registry) -> Peers | None:
    """The other nodes of the fleet. Only where there is one, any of this is loaded."""
    from services.fleet.remote import RemoteFleet
    from services.images.distribution.blamed import Blamed
    from services.images.distribution.fleet_sources import FleetSources
    from services.images.registry.host import TLS

    fleet = fleet_config.of(file)
    if fleet is None:
        return None
    tls = TLS((fleet.ca,), ((fleet.cert, fleet.key),), alone=True)
    liars = Blamed(node.state / "images" / "blamed-peers.json")
    return Peers(FleetSources(RemoteFleet(channel)), registry, tls, fleet.namespaces, liars=liars)
