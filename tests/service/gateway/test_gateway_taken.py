"""A foreign snapshotter that answers ALREADY_EXISTS for every name."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from api.containerd.services.snapshots.v1 import snapshots_pb2 as pb
from api.containerd.services.snapshots.v1 import snapshots_stubs
from services.kit import errors, rpc
from services.snapshots.remote import RemoteSnapshotter
from services.snapshots.store import Kind
from tests.support import ServiceProcess, short_directory


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


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def node() -> AsyncIterator[tuple[rpc.Channel, dict[str, Taken]]]:
    """A node's gateway with two such snapshotters, ``prepare`` and ``commit``, each for the test of that name."""
    with short_directory() as place, contextlib.ExitStack() as processes:
        root, state, config = place / "r", place / "s", place / "c.toml"
        state.mkdir()
        theirs = {"prepare": Taken(free=0), "commit": Taken(free=1)}
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
            async with rpc.Channel(state / "containerd.sock") as channel:
                yield channel, theirs


@pytest.mark.parametrize("verb", ["prepare", "commit"])
async def test_it_is_asked_a_few_times(node: tuple[rpc.Channel, dict[str, Taken]], verb: str) -> None:
    """Each try has another number; then the client gets the snapshotter's error. Existing snapshots are unchanged."""
    channel, theirs = node
    asked = theirs[verb].asked
    snapshots = RemoteSnapshotter(channel, snapshotter=verb, headers={rpc.NAMESPACE: "n"})
    if verb == "commit":
        await snapshots.prepare("k")
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
