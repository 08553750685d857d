"""How a node stands in its fleet, for ``splitd status``. A fleet's trouble is not the node's: it is shown, and the node
is healthy all the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from client import bars
from client.fleet_remote import FleetView, Standing
from deploy import running
from deploy.fleet.asking import FLEET
from deploy.place import Place
from services.kit import errors, rpc

PATIENCE = 3.0
"""Seconds for an answer."""


def of_node(here: Place) -> Standing | None:
    """How the node stands; None if it is in no fleet, or if the process does not answer, which its health explains."""
    return asyncio.run(_asked(here)) if FLEET in running.processes(here) else None


async def _asked(here: Place) -> Standing | None:
    async with rpc.Channel(here.state / FLEET.sockets[0], FLEET.name) as channel:
        try:
            return await FleetView(channel, PATIENCE).status()
        except errors.NodeError:
            return None


def lines(standing: Standing | None) -> Iterator[str]:
    """A line that says what the node shares, and one for each trouble."""
    if standing is None:
        return
    more = f" ({standing.left_out:,} more are not told)" if standing.left_out else ""
    sent = f", sent {bars.size(standing.sent)}" if standing.sent else ""
    where = f"gives blobs at {standing.address}" if standing.address else "gives no blobs"
    yield f"fleet: node {standing.node} {where}, tells of {standing.blobs:,}{more}{sent}"
    yield from (f"fleet: {trouble}" for trouble in standing.troubles)


def described(standing: Standing | None) -> dict[str, Any] | None:
    """For ``splitd status --json``."""
    return None if standing is None else asdict(standing)
