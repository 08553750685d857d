"""The metadata process: it serves the records of one node, in ROOT/metadata, on STATE/metadata.sock."""

from __future__ import annotations

import sys

from services.kit import memory, metrics_stores, process, rpc, settings
from services.kit.publisher import Publisher
from services.metadata import config as configuration
from services.metadata import moving
from services.metadata.backends import RemoteBackends
from services.metadata.convert import event_to_pb
from services.metadata.database import Database
from services.metadata.gc.collector import Collector
from services.metadata.gc.remote import RemoteRawStores
from services.metadata.server import Metadata
from services.metadata.soundness import Soundness
from services.metadata.sqlite import SqliteTransactions
from services.metadata.store import Event

_GATEWAY_WAIT = 2.0
"""Seconds that the first collection waits for the gateway, through which it sweeps. When a node starts, the gateway
starts a moment after metadata.
"""
_SWITCH = 0.0005
"""Seconds after which a computing thread lets the loop run. Python's own value is 5 ms, which the loop would wait each
time it has waited for anything; the collector looks at all records in a thread.
"""


async def serve(file: settings.File, node: settings.Node) -> None:
    """Serve until a signal."""
    sys.setswitchinterval(_SWITCH)
    config = configuration.load(file)
    with process.owned(node.root / "metadata") as directory:
        async with (
            rpc.Channel(node.state / "internal.sock", "gateway") as gateway,
            Publisher(gateway).running() as publisher,
        ):

            def publish(event: Event) -> None:
                publisher.publish(event.namespace, event.topic, event_to_pb(event))

            transactions = SqliteTransactions(directory / "metadata.db", rpc.caller)
            moving.check(transactions, str(directory / "metadata.db"))
            memory.when_idle(transactions.shrink)
            database = Database(transactions)
            soundness = Soundness(directory / "metadata.db", database)
            transactions.file.damaged = database.damaged = soundness.damaged
            metadata = Metadata(
                database, publish, RemoteBackends(gateway), shared=config.content_sharing_policy == "shared"
            )

            async def ready() -> None:
                await soundness.checked()
                await gateway.wait_connected(_GATEWAY_WAIT)

            collector = database.collector = Collector(
                database, RemoteRawStores(gateway), config.gc, publish, ready, configuration.foreign(file)
            )
            try:
                await soundness.begin(transactions.file.lost, transactions.file.noted)
                await metadata.intents.index()
                async with (
                    collector.running(),
                    rpc.serving(node.state / "metadata.sock", metadata.servicers, relayed=True) as server,
                    soundness.reported_in(server),
                ):
                    path = directory / "metadata.db"
                    metrics_stores.measured(
                        {"metadata": lambda: metrics_stores.of_files(path, path.with_name(f"{path.name}-wal"))}
                    )
                    await process.until_signal()
            finally:
                await soundness.close()
                await metadata.intents.close()
                await database.transactions.close()


if __name__ == "__main__":
    process.run("metadata", serve)
