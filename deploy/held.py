"""What a node does not remove because records may have been lost: unknown blobs and snapshots, which metadata's
collector holds back, and directories of unknown snapshots, which snapshotters hold back.

A snapshotter notes the latter in a file below the root. It writes the file, reads it whenever it would remove
something, and an operator's release removes it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from client.held_remote import Namespaces, RemoteHeld
from deploy.place import Place
from services.kit import errors, rpc
from services.snapshots.remote import RemoteSnapshotter
from services.snapshots.store import Info, Kind

PATIENCE = 3.0
"""Seconds for metadata's answer."""


@dataclass(frozen=True, slots=True)
class HeldBack:
    """A store that holds things back."""

    what: str
    """"metadata", or a snapshotter's upstream, such as "snapshots.overlayfs"."""
    reason: str
    since: float
    """Seconds since the epoch."""


def found(place: Place) -> list[HeldBack]:
    """Everything that is held back. Raises errors.NodeError if metadata does not answer."""
    return asyncio.run(_found(place))


async def _found(place: Place) -> list[HeldBack]:
    async with rpc.Channel(place.state / "metadata.sock", "metadata") as channel:
        reason, since = await RemoteHeld(channel).held(PATIENCE)
    return [*([HeldBack("metadata", reason, since)] if reason else []), *of_snapshotters(place)]


def known(place: Place) -> list[HeldBack]:
    """Like :func:`found`, but without metadata's part if metadata does not answer, which its own health explains."""
    try:
        return found(place)
    except errors.NodeError:
        return of_snapshotters(place)


def of_snapshotters(place: Place) -> list[HeldBack]:
    """The part of the snapshotters, from their files. They need not run."""
    return [HeldBack(_of(path), path.read_text().strip(), path.stat().st_mtime) for path in _files(place)]


@dataclass(frozen=True, slots=True)
class Released:
    """The outcome of releasing one of them."""

    what: str
    """As :attr:`HeldBack.what`."""
    lost: int = 0
    """The number of records that were removed because their snapshotter had lost the snapshot."""
    trouble: str = ""
    """The reason why it is still held back; empty if it was released."""


def release(place: Place) -> list[Released]:
    """Release everything, so that it is collected now. This also removes the records of snapshots that their
    snapshotter lost, since with them nobody could unpack the image again.

    If a snapshotter fails, its part stays held back, and the others are released. Raises errors.NodeError if metadata
    does not answer; then nothing was released.
    """
    return asyncio.run(_release(place))


async def _release(place: Place) -> list[Released]:
    released = []
    async with rpc.Channel(place.state / "metadata.sock", "metadata") as channel:
        metadata = RemoteHeld(channel)
        if (await metadata.held(PATIENCE))[0]:
            await metadata.release()
            released.append(Released("metadata"))
    for path in _files(place):
        what = _of(path)
        try:
            released.append(Released(what, await _release_snapshotter(place, path)))
        except (errors.NodeError, OSError) as error:
            released.append(
                Released(what, trouble=errors.words_of_path(error) if isinstance(error, OSError) else str(error))
            )
    return released


async def _release_snapshotter(place: Place, path: Path) -> int:
    name, lost = path.parent.name, 0
    async with rpc.Channel(place.socket, "gateway") as gateway:
        for namespace in await Namespaces(gateway).names():
            lost += await _without_lost(
                RemoteSnapshotter(gateway, snapshotter=name, headers={rpc.NAMESPACE: namespace})
            )
    path.unlink()  # last: if a step before fails, the same command repeats it
    async with rpc.Channel(place.state / f"snapshots-{name}.sock", f"snapshots.{name}") as channel:
        await RemoteSnapshotter(channel).cleanup()
    return lost


async def _without_lost(snapshots: RemoteSnapshotter) -> int:
    """Remove the records of snapshots that the snapshotter does not have, children first, and count them."""
    lost = [info.name async for info in snapshots.list() if await _is_lost(snapshots, info)]
    count = 0
    while lost:
        left = []
        for name in lost:
            try:
                await snapshots.remove(name)
                count += 1
            except errors.NotFound:
                continue
            except errors.FailedPrecondition:  # it has a child, which must be removed first
                left.append(name)
        if len(left) == len(lost):
            break
        lost = left
    return count


async def _is_lost(snapshots: RemoteSnapshotter, info: Info) -> bool:
    """Metadata answers a stat from its records. The call made here is answered by the snapshotter."""
    try:
        await (snapshots.usage(info.name) if info.kind is Kind.COMMITTED else snapshots.mounts(info.name))
    except errors.NotFound:
        return True
    return False


def _of(path: Path) -> str:
    return f"snapshots.{path.parent.name}"


def _files(place: Place) -> list[Path]:
    return sorted((place.root / "snapshots").glob("*/held"))
