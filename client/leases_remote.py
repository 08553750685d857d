"""What keeps the parts of a pull that did not end well, so that the next one goes on with them.

A node holds the parts of a transfer by a lease of its own, which ends with the transfer: layers that had arrived whole are then collected. So a pull has a lease of the client's, labelled with what is
pulled. It goes when the pull succeeds, with those that earlier pulls of the same left behind; else it stays, and expires in a day.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import AsyncIterator, Mapping

from api.containerd.services.leases.v1 import leases_pb2
from services.kit import errors
from services.kit.identifiers import quoted
from services.kit.rpc import LEASE, Channel, Client

LEASES = leases_pb2.DESCRIPTOR.services_by_name["Leases"]

KEPT = datetime.timedelta(days=1)

_EXPIRE = "containerd.io/gc.expire"
_PULL = "splitd.io/pull"
_PID = "splitd.io/pid"


@contextlib.asynccontextmanager
async def kept(channel: Channel, headers: Mapping[str, str | bytes], reference: str) -> AsyncIterator[Mapping[str, str | bytes]]:
    """The headers with which to pull ``reference``: what the block has the node make is collected only after a day, unless an image refers to it, or the block succeeds."""
    leases = channel.client(LEASES)
    before = await leases.List(leases_pb2.ListRequest(filters=[f"labels.{quoted(_PULL)}=={quoted(reference)}"]), headers=headers)
    until = datetime.datetime.now(datetime.UTC) + KEPT
    labels = {_EXPIRE: until.strftime("%Y-%m-%dT%H:%M:%SZ"), _PULL: reference, _PID: str(os.getpid())}
    own = f"splitd-pull-{os.getpid()}-{os.urandom(4).hex()}"
    await leases.Create(leases_pb2.CreateRequest(id=own, labels=labels), headers=headers)
    try:
        yield {**headers, LEASE: own}
    except BaseException:
        holds = await leases.ListResources(leases_pb2.ListResourcesRequest(id=own), headers=headers)
        if all(resource.type == "ingests" for resource in holds.resources):  # which live a day by themselves
            await _delete(leases, own, headers)
        raise
    await _delete(leases, own, headers)
    for lease in before.leases:
        if not _runs(lease.labels.get(_PID, "")):
            await _delete(leases, lease.id, headers)


async def _delete(leases: Client, name: str, headers: Mapping[str, str | bytes]) -> None:
    with contextlib.suppress(errors.NotFound):
        await leases.Delete(leases_pb2.DeleteRequest(id=name), headers=headers)


def _runs(pid: str) -> bool:
    """Whether it is a process of this machine: a pull that goes on at the same time."""
    return os.path.exists(f"/proc/{pid or '-'}")
