"""The gateway as a process: containerd.sock for clients, internal.sock for the node's own processes,
containerd.sock.ttrpc for shims.
"""

from __future__ import annotations

from contextlib import AsyncExitStack

from gateway import late_server
from gateway.config import Health, ProxyPlugin, candidates, load
from gateway.containers import Containers
from gateway.content import ContentServicer
from gateway.events import EventsServicer, Exchange, TtrpcEventsServicer
from gateway.health import NodeHealth
from gateway.intents import Intents
from gateway.introspection import IntrospectionServicer
from gateway.localfiles import LocalFilesServicer
from gateway.operations import Operations
from gateway.relay import Relay
from gateway.remembered import remembered
from gateway.remote import RemoteRecords
from gateway.replacing import Replacing
from gateway.routes import Routes
from gateway.routes_server import RoutesServicer
from gateway.sandboxes import SandboxControllerServicer
from gateway.snapshots import SnapshotsServicer
from gateway.snapshotters import Snapshotters
from gateway.upstream import Upstream
from gateway.writes import Commit
from services.kit import loops, metrics, process, rpc, settings, ttrpc
from services.kit.config import load_metrics
from services.kit.health import HealthServicer


async def serve(file: settings.File, node: settings.Node) -> None:
    """Serve until a signal."""
    config = load(file)
    late_server.kept()
    proxies = {
        name: settings.load(ProxyPlugin, file, f"proxy_plugins.{name}") for name in file.tables.get("proxy_plugins", {})
    }
    routes = Routes(node.state, config, proxies)
    exchange = Exchange(subscribers_bytes=config.subscribers_bytes)
    snapshotters = Snapshotters(routes, node.root, proxies)
    answers = remembered(node.state, routes["metadata"])
    records = RemoteRecords(
        routes["metadata"],
        exchange,
        content="content",
        snapshotters=routes.snapshotters,
        known=routes.known,
        remembered=answers,
    )
    routes.changed.append(lambda: records.snapshotters(routes.snapshotters))
    containers = Containers(routes["tasks"], node.root, timeout=config.task_timeout)
    sandboxes = SandboxControllerServicer(routes, exchange, node.root, timeout=config.task_timeout)
    replacing = Replacing(
        routes, records, node.root, candidates(file), notes={"tasks": containers.notes, "sandbox": sandboxes.notes}
    )
    metrics.source(replacing.families)
    intents = Intents(records)
    commit = Commit(records, intents)
    content = ContentServicer(routes["content"], records, commit, config)
    health = NodeHealth(routes)
    servicers: list[rpc.Servicer] = [
        content,
        SnapshotsServicer(routes, records, intents, config, snapshotters.lasting),
        sandboxes,
        EventsServicer(exchange),
        IntrospectionServicer(node, health, snapshotters.now, proxies, replacing.on),
        HealthServicer(health),
    ]
    operations = Operations()
    relay = {
        internal: Relay(
            routes,
            config,
            internal=internal,
            coordinated=content.coordinated,
            joined=content.joined,
            containers=containers,
            remembered=answers,
        )
        for internal in (False, True)
    }
    with process.owned(node.root / "gateway"), process.owned(node.state / "gateway"):
        async with AsyncExitStack() as stack:
            watches = loops.Tasks()
            stack.push_async_callback(watches.cancel)

            def watched(upstream: Upstream) -> None:
                watches.keep(loops.start(f"the watch of service {upstream.name}", upstream.watch))

            routes.added.append(watched)
            for upstream in routes.upstreams:
                watched(upstream)
            await stack.enter_async_context(loops.running("the snapshotters' announcements", snapshotters.follow))
            await stack.enter_async_context(loops.running("the ends of candidates", replacing.follow))
            late = await stack.enter_async_context(AsyncExitStack())
            internal: list[rpc.Servicer] = [
                *servicers,
                LocalFilesServicer(routes["content"], records, commit, config),
                RoutesServicer(routes, replacing),
                late_server.taps(routes, late),
                late_server.shadows(routes, node.root, node.state, late),
            ]
            server = await stack.enter_async_context(
                rpc.serving(node.state / "internal.sock", internal, relay=relay[True], relayed=True)
            )
            routes["tasks"].changed.append(server.decide_anew)
            await stack.enter_async_context(
                ttrpc.serving(node.state / "containerd.sock.ttrpc", [TtrpcEventsServicer(exchange)])
            )
            stack.callback(operations.close)
            await stack.enter_async_context(loops.running("the ends of operations", operations.watch))
            server = await stack.enter_async_context(
                rpc.serving(node.state / "containerd.sock", servicers, relay=relay[False], entrance=operations)
            )
            routes["tasks"].changed.append(server.decide_anew)
            if address := settings.load(Health, file, "health").address:
                from gateway.probes import Probes

                probes = Probes(routes, snapshotters.names)
                await stack.enter_async_context(loops.running("health over HTTP", lambda: probes.serve(address)))
            if page_address := load_metrics(file).address:
                from gateway.metrics import Page

                page = Page(routes, node.state)
                await stack.enter_async_context(loops.running("metrics over HTTP", lambda: page.serve(page_address)))
            await process.until_signal()


if __name__ == "__main__":
    process.run("gateway", serve)
