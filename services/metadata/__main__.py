"""The metadata process: it serves the records of one node, in ROOT/metadata, on STATE/metadata.sock."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from services.kit import memory, metrics_stores, process, rpc, settings
from services.kit.editions import Editions
from services.kit.publisher import Publisher
from services.metadata import config as configuration
from services.metadata import moving, schema
from services.metadata.backends import RemoteBackends
from services.metadata.convert import event_to_pb
from services.metadata.database import Database
from services.metadata.gc.collector import Collector
from services.metadata.gc.remote import RemoteRawStores
from services.metadata.server import Metadata
from services.metadata.soundness import Soundness
from services.metadata.sqlite import SqliteTransactions
from services.metadata.store import Event

if TYPE_CHECKING:
    from services.metadata.etcd import EtcdTransactions
    from services.metadata.etcd_node import EtcdNode

_GATEWAY_WAIT = 2.0
"""Seconds that the first collection waits for the gateway, through which it sweeps. When a node starts, the gateway
starts a moment after metadata.
"""
_SWITCH = 0.0005
"""Seconds after which a computing thread lets the loop run. Python's own value is 5 ms, which the loop would wait each
time it has waited for anything; the collector looks at all records in a thread.
"""

_REMEMBERED = (schema.BLOBS.name, schema.CONTAINERS.name, schema.IMAGES.name, schema.NAMESPACES.name)
"""The tables with editions (``kit.editions``): what is asked for much more often than it changes."""


@contextlib.asynccontextmanager
async def stored(
    config: configuration.Config, directory: Path, state: Path
) -> AsyncIterator[tuple[SqliteTransactions | EtcdTransactions, EtcdNode | None]]:
    """The records, where the configuration wants them, and what a node does around those in etcd."""
    editions = Editions(state, _REMEMBERED)
    if config.store == "sqlite":
        shutil.rmtree(state / "metadata", ignore_errors=True)  # a mirror of records that were in etcd
        transactions = SqliteTransactions(directory / "metadata.db", rpc.caller, changing=editions.changing)
        editions.begin()
        try:
            yield transactions, None
        finally:
            await transactions.close()
            editions.close()
        return
    # Other nodes change what is in etcd, so editions do not begin. A node with the embedded store does without this
    # code and its messages.
    from services.etcd.client import connect
    from services.metadata.etcd import EtcdTransactions
    from services.metadata.etcd_node import EtcdNode
    from services.metadata.etcd_owner import Claims, this_node

    await moving.check_beside(directory / "metadata.db")
    etcd = connect(config.etcd)
    records = EtcdTransactions(
        etcd,
        configuration.records_prefix(config),
        state / "metadata" / "mirror.db",
        this_node(directory),
        rpc.caller,
        stale_reads=config.stale_reads,
        patience=config.etcd.timeout,
        claims=Claims(directory),
    )
    try:
        async with records.running():
            yield records, EtcdNode(records, etcd, lambda: os.kill(os.getpid(), signal.SIGTERM))
    finally:
        await records.close()
        await etcd.close()


async def serve(file: settings.File, node: settings.Node) -> None:
    """Serve until a signal."""
    sys.setswitchinterval(_SWITCH)
    config = configuration.load(file)
    with process.owned(node.root / "metadata") as directory:
        async with (
            rpc.Channel(node.state / "internal.sock", "gateway") as gateway,
            Publisher(gateway).running() as publisher,
            stored(config, directory, node.state) as (transactions, etcd),
        ):

            def publish(event: Event) -> None:
                publisher.publish(event.namespace, event.topic, event_to_pb(event))

            path = transactions.file.path
            moving.check(transactions, str(path))
            memory.when_idle(transactions.shrink)
            database = Database(transactions)
            soundness = Soundness(path, database)
            if etcd is None:
                transactions.file.damaged = database.damaged = soundness.damaged
            else:
                transactions.file.damaged = database.damaged = partial(etcd.damaged, otherwise=soundness.damaged)
            metadata = Metadata(
                database, publish, RemoteBackends(gateway), shared=config.content_sharing_policy == "shared"
            )

            async def ready() -> None:
                await (soundness if etcd is None else etcd).checked()
                await gateway.wait_connected(_GATEWAY_WAIT)

            collector = database.collector = Collector(
                database, RemoteRawStores(gateway), config.gc, publish, ready, configuration.foreign(file)
            )
            try:
                await soundness.begin(transactions.file.lost, transactions.file.noted, copy=etcd is not None)
                if etcd is not None:
                    etcd.check(soundness.damaged)
                await metadata.intents.index()
                async with (
                    collector.running(),
                    rpc.serving(node.state / "metadata.sock", metadata.servicers, relayed=True) as server,
                    soundness.reported_in(server),
                    etcd.shown(server) if etcd is not None else contextlib.nullcontext(),
                ):
                    metrics_stores.measured(
                        {"metadata": lambda: metrics_stores.of_files(path, path.with_name(f"{path.name}-wal"))}
                    )
                    await process.until_signal()
            finally:
                await soundness.close()
                await metadata.intents.close()


if __name__ == "__main__":
    process.run("metadata", serve)
