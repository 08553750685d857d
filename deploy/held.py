"""What a node does not remove since records of it may have been lost: unknown blobs and snapshots (metadata's collector), and directories of unknown snapshots (snapshotters).

The latter is a file below the root, which the snapshotter writes and an operator removes; its service looks at it whenever it would remove something.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from client.held_remote import RemoteHeld
from deploy.place import Place
from services.kit import errors, rpc
from services.snapshots.remote import RemoteSnapshotter

PATIENCE = 3.0
"""Seconds for metadata's answer."""


@dataclass(frozen=True, slots=True)
class HeldBack:
    """One of them."""

    what: str
    """"metadata", or a snapshotter's upstream, such as "snapshots.overlayfs"."""
    reason: str
    since: float
    """Seconds since the epoch."""


def found(place: Place) -> list[HeldBack]:
    """All that is held back. Errors where metadata does not answer."""
    return asyncio.run(_found(place))


async def _found(place: Place) -> list[HeldBack]:
    async with rpc.Channel(place.state / "metadata.sock", "metadata") as channel:
        reason, since = await RemoteHeld(channel).held(PATIENCE)
    return [*([HeldBack("metadata", reason, since)] if reason else []), *of_snapshotters(place)]


def known(place: Place) -> list[HeldBack]:
    """The same without metadata's part where that does not answer, which its own health explains."""
    try:
        return found(place)
    except errors.NodeError:
        return of_snapshotters(place)


def of_snapshotters(place: Place) -> list[HeldBack]:
    """What their files say, whether they run or not."""
    return [HeldBack(f"snapshots.{path.parent.name}", path.read_text().strip(), path.stat().st_mtime) for path in _files(place)]


def release(place: Place) -> None:
    """All of it may go, and goes now."""
    asyncio.run(_release(place))


async def _release(place: Place) -> None:
    async with rpc.Channel(place.state / "metadata.sock", "metadata") as channel:
        await RemoteHeld(channel).release()
    for path in _files(place):
        path.unlink()
        async with rpc.Channel(place.state / f"snapshots-{path.parent.name}.sock", f"snapshots.{path.parent.name}") as channel:
            await RemoteSnapshotter(channel).cleanup()


def _files(place: Place) -> list[Path]:
    return sorted((place.root / "snapshots").glob("*/held"))
