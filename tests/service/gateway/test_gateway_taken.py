"""Foreign snapshotters: one that answers ALREADY_EXISTS for every name, and one whose NOT_FOUND means something else."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import NamedTuple

import pytest
import pytest_asyncio
from google.protobuf.empty_pb2 import Empty

from api.containerd.services.snapshots.v1 import snapshots_pb2 as pb
from api.containerd.services.snapshots.v1 import snapshots_stubs
from services.kit import errors, rpc
from services.snapshots.remote import RemoteSnapshotter
from services.snapshots.store import Kind
from tests.support import ServiceProcess, reaches, short_directory

KEPT = {"containerd.io/gc.root": "test"}
"""A collection comes soon after the node's start, and later whenever it likes: it removes what nothing keeps."""


class Taken:
    """Snapshots that exist already, except for the first ``free`` that are prepared."""

    SERVICE = snapshots_stubs.SNAPSHOTS

    def __init__(self, free: int) -> None:
        self._free = free
        self.asked: list[str] = []

    async def Prepare(self, request: pb.PrepareSnapshotRequest, call: rpc.Call) -> pb.PrepareSnapshotResponse:
        if self._free:
            self._free -= 1
            return pb.PrepareSnapshotResponse()
        self.asked.append(request.key)
        raise errors.AlreadyExists(f"snapshot {request.key}")

    async def Commit(self, request: pb.CommitSnapshotRequest, call: rpc.Call) -> None:
        self.asked.append(request.name)
        raise errors.AlreadyExists(f"snapshot {request.name}")


class Daemonless:
    """It makes nothing on a parent, as nydus does whose daemon does not start."""

    SERVICE = snapshots_stubs.SNAPSHOTS
    SAID = "wait until daemon is RUNNING: daemon socket api.sock: not found"

    def __init__(self) -> None:
        self.has: set[str] = set()

    async def Prepare(self, request: pb.PrepareSnapshotRequest, call: rpc.Call) -> pb.PrepareSnapshotResponse:
        if request.parent:
            raise errors.NotFound.verbatim(self.SAID)
        self.has.add(request.key)
        return pb.PrepareSnapshotResponse()

    async def Commit(self, request: pb.CommitSnapshotRequest, call: rpc.Call) -> Empty:
        self.has.add(request.name)
        return Empty()

    async def Mounts(self, request: pb.MountsRequest, call: rpc.Call) -> pb.MountsResponse:
        raise errors.NotFound.verbatim(self.SAID)

    async def Stat(self, request: pb.StatSnapshotRequest, call: rpc.Call) -> pb.StatSnapshotResponse:
        if request.key not in self.has:
            raise errors.NotFound(f"snapshot {request.key}")
        return pb.StatSnapshotResponse(info=pb.Info(name=request.key, kind=pb.COMMITTED))


class Node(NamedTuple):
    channel: rpc.Channel
    taken: dict[str, Taken]
    daemonless: Daemonless


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def node() -> AsyncIterator[Node]:
    """A node's gateway with such snapshotters: ``prepare`` and ``commit``, each for the test of that name, and
    ``daemonless``.
    """
    with short_directory() as place, contextlib.ExitStack() as processes:
        root, state, config = place / "r", place / "s", place / "c.toml"
        state.mkdir()
        taken, daemonless = {"prepare": Taken(free=0), "commit": Taken(free=1)}, Daemonless()
        theirs: dict[str, rpc.Servicer] = {**taken, "daemonless": daemonless}
        config.write_text(
            "".join(f'[proxy_plugins.{n}]\ntype = "snapshot"\naddress = "{state}/{n}.sock"\n' for n in theirs)
        )
        async with contextlib.AsyncExitStack() as servers:
            for name, each in theirs.items():
                await servers.enter_async_context(rpc.serving(state / f"{name}.sock", [each], grace=0))
            # the gateway, which the others use, ends last: a process that ends waits for what it has sent to others
            for module, socket in (
                ("gateway", "containerd.sock"),
                ("services.content", "content.sock"),
                ("services.metadata", "metadata.sock"),
            ):
                processes.enter_context(ServiceProcess(module, root, state, sockets=(socket,), config=config))
            await reaches(state / "containerd.sock", "content", "metadata", *(f"snapshots.{name}" for name in theirs))
            async with rpc.Channel(state / "containerd.sock") as channel:
                yield Node(channel, taken, daemonless)


@pytest.mark.parametrize("verb", ["prepare", "commit"])
async def test_it_is_asked_a_few_times(node: Node, verb: str) -> None:
    """Each try has another number; then the client gets the snapshotter's error. Existing snapshots are unchanged."""
    asked = node.taken[verb].asked
    snapshots = RemoteSnapshotter(node.channel, snapshotter=verb, headers={rpc.NAMESPACE: "n"})
    if verb == "commit":
        await snapshots.prepare("k", labels=KEPT)
    with pytest.raises(
        errors.FailedPrecondition,
        match=rf"snapshots\.{verb} says of 10 new names, one after the other, that it has them \(snapshot n/\d+/.*: already exists",
    ):
        await (snapshots.prepare("k") if verb == "prepare" else snapshots.commit("name", "k"))
    assert len(set(asked)) == len(asked) == 10
    if verb == "commit":
        assert (await snapshots.stat("k")).kind is Kind.ACTIVE
    with pytest.raises(errors.NotFound):
        await snapshots.stat("name" if verb == "commit" else "k")


async def test_what_is_not_found_need_not_be_the_snapshot(node: Node) -> None:
    """A snapshotter that has a snapshot, and answers NOT_FOUND for another reason, is not said to have lost it; the
    client is told its reason. If it does not have it, the client is told that too.
    """
    snapshots = RemoteSnapshotter(node.channel, snapshotter="daemonless", headers={rpc.NAMESPACE: "n"})
    await snapshots.prepare("active", labels=KEPT)
    await snapshots.commit("base", "active", KEPT)
    with pytest.raises(errors.NotFound) as said:
        await snapshots.prepare("k", "base")
    assert str(said.value) == Daemonless.SAID
    await snapshots.prepare("other", labels=KEPT)
    with pytest.raises(errors.NotFound, match=f"^{Daemonless.SAID}$"):
        await snapshots.mounts("other")
    node.daemonless.has.clear()
    lost = rf"^snapshot base is recorded, and snapshots\.daemonless does not have it .*: {Daemonless.SAID}$"
    with pytest.raises(errors.NotFound, match=lost):
        await snapshots.prepare("k", "base")
