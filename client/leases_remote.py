"""Leases and unfinished blobs: what a namespace holds that no image holds. And the client's own leases, which keep the
parts of a failed pull, so that the next one continues from them.

A node holds the parts of a transfer by a lease of its own, which ends with the transfer; layers that had arrived whole
are then collected. So the client makes a lease for each pull, labelled with the reference that is pulled. If the pull
succeeds, this lease is deleted, with those that earlier pulls of the same reference left behind. Otherwise it stays,
and expires in a day.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass

from api.containerd.services.leases.v1 import leases_pb2, leases_stubs
from services.content.remote import RemoteStore
from services.content.store import Status
from services.kit import errors
from services.kit.identifiers import quoted
from services.kit.rpc import LEASE, Channel
from services.kit.timestamps import time_from_pb

LEASES = leases_stubs.LEASES

KEPT = datetime.timedelta(days=1)

_EXPIRE = "containerd.io/gc.expire"
_PULL = "splitd.io/pull"
_PID = "splitd.io/pid"


@dataclass(frozen=True, slots=True)
class Held:
    """A lease, and what it holds."""

    lease: str
    created_at: int
    """Nanoseconds since the epoch."""
    expires: str
    """The time of its end in RFC 3339, as its maker wrote it; "" if it lasts until it is deleted."""
    pull: str
    """The reference of the pull whose parts it keeps; "" if the lease is not ours."""
    running: bool
    """Whether that pull is still under way."""
    resources: tuple[tuple[str, str], ...]
    """Type (``content``, ``snapshots/NAME``, ``ingests``, ``images``) and id of each thing that it holds."""

    @property
    def interrupted(self) -> bool:
        """Whether it keeps the parts of a pull that is not under way any more."""
        return bool(self.pull) and not self.running


class Leases:
    """The leases and ingests of one namespace of the node behind ``channel``; ``headers`` name the namespace."""

    def __init__(self, channel: Channel, headers: Mapping[str, str | bytes]) -> None:
        self._leases = channel.client(LEASES)
        self._content = RemoteStore(channel, headers)
        self._headers = dict(headers)

    async def list(self) -> list[Held]:
        """All leases, the oldest first. Leases that end meanwhile are left out."""
        found = []
        for lease in sorted(
            (await self._leases.List(leases_pb2.ListRequest(), headers=self._headers)).leases,
            key=lambda lease: time_from_pb(lease.created_at),
        ):
            with contextlib.suppress(errors.NotFound):
                holds = await self._leases.ListResources(
                    leases_pb2.ListResourcesRequest(id=lease.id), headers=self._headers
                )
                found.append(
                    Held(
                        lease.id,
                        time_from_pb(lease.created_at),
                        lease.labels.get(_EXPIRE, ""),
                        lease.labels.get(_PULL, ""),
                        _PULL in lease.labels and _runs(lease.labels.get(_PID, "")),
                        tuple((each.type, each.id) for each in holds.resources),
                    )
                )
        return found

    async def delete(self, lease: str, *, sync: bool) -> None:
        """Delete a lease. With ``sync``, return when everything that only it held is collected, however long that
        takes. Raises NotFound.
        """
        await self._leases.Delete(
            leases_pb2.DeleteRequest(id=lease, sync=sync), headers=self._headers, timeout=None if sync else -1.0
        )

    async def sizes(self) -> dict[str, int]:
        """Bytes of each blob, by digest."""
        return {str(info.digest): info.size async for info in self._content.list()}

    async def ingests(self) -> Sequence[Status]:
        """Unfinished blobs, whether a pull or another client writes them."""
        return sorted(await self._content.list_statuses(), key=lambda status: status.ref)

    async def abort(self, ingest: Status) -> bool:
        """Drop an unfinished blob. The result is False if another client writes it at this moment, or it is gone."""
        try:
            writer = await self._content.writer(ingest.ref, ingest.total)
        except (errors.Unavailable, errors.AlreadyExists):  # another client has its lock; or the blob exists by now
            return False
        try:
            await self._content.abort(ingest.ref)
        except errors.NotFound:
            return False
        finally:
            await writer.close()
        return True


@contextlib.asynccontextmanager
async def kept(
    channel: Channel, headers: Mapping[str, str | bytes], reference: str
) -> AsyncIterator[Mapping[str, str | bytes]]:
    """The headers to pull ``reference`` with. What the node makes for the block is collected after a day, unless an
    image refers to it. If the block succeeds, the lease ends at once.
    """
    leases = channel.client(LEASES)
    before = await leases.List(
        leases_pb2.ListRequest(filters=[f"labels.{quoted(_PULL)}=={quoted(reference)}"]), headers=headers
    )
    until = datetime.datetime.now(datetime.UTC) + KEPT
    labels = {_EXPIRE: until.strftime("%Y-%m-%dT%H:%M:%SZ"), _PULL: reference, _PID: str(os.getpid())}
    own = f"splitd-pull-{os.getpid()}-{os.urandom(4).hex()}"
    await leases.Create(leases_pb2.CreateRequest(id=own, labels=labels), headers=headers)
    try:
        yield {**headers, LEASE: own}
    except BaseException:
        # the block's error is the one to report; and the lease expires by itself
        with contextlib.suppress(errors.NodeError):
            holds = await leases.ListResources(leases_pb2.ListResourcesRequest(id=own), headers=headers)
            if all(resource.type == "ingests" for resource in holds.resources):  # which expire in a day by themselves
                await _delete(leases, own, headers)
        raise
    await _delete(leases, own, headers)
    for lease in before.leases:
        if not _runs(lease.labels.get(_PID, "")):
            await _delete(leases, lease.id, headers)


async def _delete(leases: leases_stubs.Leases, name: str, headers: Mapping[str, str | bytes]) -> None:
    with contextlib.suppress(errors.NotFound):
        await leases.Delete(leases_pb2.DeleteRequest(id=name), headers=headers)


def _runs(pid: str) -> bool:
    """Whether it is a process of this machine, so that a pull is under way at the same time."""
    return os.path.exists(f"/proc/{pid or '-'}")
