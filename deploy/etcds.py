"""The etcd clusters that a node's configuration names: what their members say, for ``splitd status``, and where the
node's records stand, if they are in etcd.

The command asks the members itself, so it can tell a cluster that is away from a service that does not reach it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any

from client.standing_remote import standing
from deploy import running
from deploy.place import Place
from services.etcd.config import EtcdConfig
from services.etcd.store import ClusterStatus
from services.kit import errors, rpc
from services.metadata.transactions import Standing

PATIENCE = 3.0
"""Seconds for the answers of all members."""


def clusters(here: Place) -> dict[str, ClusterStatus]:
    """The state of each cluster that the running node uses, by its table in the configuration."""
    return states(dict(running.etcds(here)))


def states(configured: Mapping[str, EtcdConfig]) -> dict[str, ClusterStatus]:
    """The state of each of these. They are asked at the same time, and none takes longer than its ``timeout``."""
    if not configured:
        return {}
    return dict(zip(configured, asyncio.run(_all(configured)), strict=True))


async def _all(configured: Mapping[str, EtcdConfig]) -> list[ClusterStatus]:
    return await asyncio.gather(*map(_status, configured.values()))


async def _status(config: EtcdConfig) -> ClusterStatus:
    from services.etcd.client import connect  # which only a node with etcd needs

    etcd = connect(replace(config, timeout=min(config.timeout, PATIENCE)))
    try:
        return await etcd.status()
    finally:
        await etcd.close()


def described(found: Mapping[str, ClusterStatus]) -> list[dict[str, Any]]:
    """For ``splitd status --json``."""
    return [{"table": table, **asdict(status)} for table, status in found.items()]


def lines(found: Mapping[str, ClusterStatus]) -> Iterator[str]:
    """A line for each cluster, and one for each of its members that cannot be used."""
    for table, status in found.items():
        well = [member for member in status.members if not member.error]
        versions = ", ".join(sorted({member.version for member in status.members if member.version}))
        if status.available:
            size = max(member.size for member in status.members)
            yield (
                f"etcd of [{table}]: {len(well)} of {len(status.members)} members, version {versions}, revision "
                f"{status.revision:,}, database of {size / (1 << 20):.1f} MiB"
            )
        else:
            yield f"etcd of [{table}] is away: {status.error}"
        yield from (
            f"etcd of [{table}]: member {member.endpoint}: {member.error}" for member in status.members if member.error
        )


def records(here: Place) -> Standing | None:
    """Where the records stand, if they are in etcd and metadata answers; its own health explains if it does not."""
    return asyncio.run(_records(here))


async def _records(here: Place) -> Standing | None:
    async with rpc.Channel(here.state / "metadata.sock", "metadata") as channel:
        try:
            found = await standing(channel, PATIENCE)
        except errors.NodeError:
            return None
    return found if found.store == "etcd" else None


def line(found: Standing, now: float) -> str:
    """Where the records stand, in words. ``now``: seconds since the epoch."""
    if found.away is None:
        return f"records in etcd: in step, revision {found.revision:,}"
    until = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now + found.reads))
    reads = f"reads go on until {until}, nothing is written" if found.reads else "nothing is read or written"
    return f"records in etcd: etcd away for {found.away:.0f} s; {reads}, containers run on; {found.why}"
