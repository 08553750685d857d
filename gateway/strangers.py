"""Whether a process at an address can be the service of a route: asked before it becomes a candidate or a shadow."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from api.containerd.services.content.v1 import content_pb2, content_stubs
from api.containerd.services.images.v1 import images_pb2, images_stubs
from api.containerd.services.leases.v1 import leases_pb2, leases_stubs
from api.containerd.services.sandbox.v1 import sandbox_pb2, sandbox_stubs
from api.containerd.services.snapshots.v1 import snapshots_pb2, snapshots_stubs
from api.containerd.services.tasks.v1 import tasks_pb2, tasks_stubs
from gateway.candidates import kind_of
from gateway.remote import asked_for_records
from services.kit import errors
from services.kit.rpc import NAMESPACE, Channel

_NOBODY = {NAMESPACE: "default"}
_NOTHING = f"sha256:{'0' * 64}"


async def refuse(channel: Channel, route: str, address: str, seconds: float) -> None:
    """InvalidArgument if the process at the other end of ``channel`` answers, and cannot serve ``route``: it does not
    know the methods of this kind, or it is a daemon. ``seconds`` are those that each answer may take; a process that
    takes longer is not refused.

    A daemon is this node itself or a containerd. It gives names of its own to what the gateway has named already; and
    this node would send what comes from its own gateway to itself again, without an end.
    """
    kind = kind_of(route)
    try:
        if (asked := _QUESTIONS.get(kind)) is not None:
            await asked(channel, seconds)
    except errors.Unimplemented as error:
        raise errors.InvalidArgument.verbatim(f"{address} does not serve what {route} needs: {error}") from None
    except errors.NodeError:  # it knows the method
        pass
    if why := await daemon(channel, route, address, seconds):
        raise errors.InvalidArgument.verbatim(why)


async def daemon(channel: Channel, route: str, address: str, seconds: float) -> str | None:
    """Why the process at the other end of ``channel`` cannot serve ``route``, if it is a daemon; else empty. None if it
    does not answer within ``seconds``.
    """
    if kind_of(route) == "metadata":  # which serves leases itself
        return ""
    try:
        # of all services only a daemon has leases
        await channel.client(leases_stubs.LEASES).List(
            leases_pb2.ListRequest(filters=["id==splitd-asks"]), headers=_NOBODY, timeout=seconds
        )
    except (errors.DeadlineExceeded, errors.Unavailable):
        return None
    except errors.NodeError:
        return ""
    return (
        f"{address} is a whole daemon (this node, or a containerd), since it has leases: "
        f"{route} needs a service of its own process, as a proxy plugin of containerd is"
    )


async def _content(channel: Channel, seconds: float) -> None:
    await channel.client(content_stubs.CONTENT).Info(
        content_pb2.InfoRequest(digest=_NOTHING), headers=_NOBODY, timeout=seconds
    )


async def _snapshots(channel: Channel, seconds: float) -> None:
    await channel.client(snapshots_stubs.SNAPSHOTS).Stat(
        snapshots_pb2.StatSnapshotRequest(key="splitd-asks"), headers=_NOBODY, timeout=seconds
    )


async def _images(channel: Channel, seconds: float) -> None:
    await channel.client(images_stubs.IMAGES).Get(
        images_pb2.GetImageRequest(name="splitd-asks"), headers=_NOBODY, timeout=seconds
    )


async def _tasks(channel: Channel, seconds: float) -> None:
    await channel.client(tasks_stubs.TASKS).Get(
        tasks_pb2.GetRequest(container_id="splitd-asks"), headers=_NOBODY, timeout=seconds
    )


async def _sandbox(channel: Channel, seconds: float) -> None:
    await channel.client(sandbox_stubs.CONTROLLER).Status(
        sandbox_pb2.ControllerStatusRequest(sandbox_id="splitd-asks"), headers=_NOBODY, timeout=seconds
    )


_QUESTIONS: Mapping[str, Callable[[Channel, float], Awaitable[None]]] = {
    "content": _content,
    "snapshots": _snapshots,
    "images": _images,
    "tasks": _tasks,
    "sandbox": _sandbox,
    "metadata": asked_for_records,
}
"""Calls that change nothing, by the kind of route. Diff has none."""
