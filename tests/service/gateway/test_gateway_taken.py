"""A foreign snapshotter that answers ALREADY_EXISTS for every name."""

from __future__ import annotations

from pathlib import Path

import pytest

from api.containerd.services.snapshots.v1 import snapshots_pb2 as pb
from api.containerd.services.snapshots.v1 import snapshots_stubs
from services.kit import errors, rpc
from services.snapshots.remote import RemoteSnapshotter
from services.snapshots.store import Kind
from tests.support import ServiceProcess


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


@pytest.mark.parametrize("verb", ["prepare", "commit"])
async def test_it_is_asked_a_few_times(place: Path, verb: str) -> None:
    """Each try has another number; then the client gets the snapshotter's error. Existing snapshots are unchanged."""
    root, state = place / "r", place / "s"
    state.mkdir()
    config = place / "c.toml"
    config.write_text(f'[proxy_plugins.theirs]\ntype = "snapshot"\naddress = "{state}/theirs.sock"\n')
    theirs = Taken(free=verb == "commit")
    async with rpc.serving(state / "theirs.sock", [theirs], grace=0):
        with (
            ServiceProcess("services.metadata", root, state, config=config),
            ServiceProcess("gateway", root, state, sockets=("containerd.sock",), config=config),
        ):
            async with rpc.Channel(state / "containerd.sock") as channel:
                snapshots = RemoteSnapshotter(channel, snapshotter="theirs", headers={rpc.NAMESPACE: "n"})
                if verb == "commit":
                    await snapshots.prepare("k")
                with pytest.raises(
                    errors.FailedPrecondition,
                    match=r"snapshots\.theirs says of 10 new names, one after the other, that it has them \(snapshot n/\d+/.*: already exists",
                ):
                    await (snapshots.prepare("k") if verb == "prepare" else snapshots.commit("name", "k"))
                assert len(set(theirs.asked)) == len(theirs.asked) == 10
                if verb == "commit":
                    assert (await snapshots.stat("k")).kind is Kind.ACTIVE
                with pytest.raises(errors.NotFound):
                    await snapshots.stat("name" if verb == "commit" else "k")
