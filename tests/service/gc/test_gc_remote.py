"""The collector's calls to a backend on the wire, here a foreign snapshotter, which has fewer methods than ours."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

import pytest
from google.protobuf.empty_pb2 import Empty

from api.containerd.services.snapshots.v1 import snapshots_pb2 as pb
from api.containerd.services.snapshots.v1 import snapshots_stubs
from api.splitd.removals.v1 import removals_pb2, removals_stubs
from services.kit import errors, rpc
from services.kit.removals import MOST, RemovalsServicer
from services.metadata.gc.raw import ListedSnapshot
from services.metadata.gc.remote import RemoteRawStores
from services.metadata.store import Raw


class Foreign:
    """Snapshots.List and Remove as in containerd's proxy contract; no Cleanup, no Stamp."""

    SERVICE = snapshots_stubs.SNAPSHOTS

    def __init__(self) -> None:
        self.calls: list[rpc.Call] = []
        self.removed: list[pb.RemoveSnapshotRequest] = []

    async def List(self, request: pb.ListSnapshotsRequest, call: rpc.Call) -> AsyncIterator[pb.ListSnapshotsResponse]:
        self.calls.append(call)
        yield pb.ListSnapshotsResponse(
            info=[pb.Info(name="ns/1/a", kind=pb.COMMITTED, labels={"containerd.io/snapshot.ref": "chain"})]
        )
        yield pb.ListSnapshotsResponse(info=[pb.Info(name="ns/2/b", parent="ns/1/a")])

    async def Remove(self, request: pb.RemoveSnapshotRequest, call: rpc.Call) -> Empty:
        self.calls.append(call)
        self.removed.append(request)
        if request.key == "ns/1/a":
            raise errors.FailedPrecondition("cannot remove snapshot with child")
        return Empty()


async def test_a_foreign_snapshotter_is_asked_as_a_proxy_plugin_is(place: Path) -> None:
    """Calls have no namespace and name the backend to the gateway. A method that the snapshotter does not have is no
    failure.
    """
    foreign = Foreign()
    async with rpc.serving(place / "s.sock", [foreign]), rpc.Channel(place / "s.sock") as channel:
        stores = RemoteRawStores(channel)
        assert await stores.stamp("snapshots.foreign") is None
        listing = await stores.list("snapshots.foreign")
        assert listing.snapshots == {
            "ns/1/a": ListedSnapshot("ns/1/a", "", "chain"),
            "ns/2/b": ListedSnapshot("ns/2/b", "ns/1/a"),
        }
        await stores.remove(Raw("snapshots.foreign", "snapshot", "ns/2/b"))
        with pytest.raises(errors.FailedPrecondition):
            await stores.remove(Raw("snapshots.foreign", "snapshot", "ns/1/a"))
        await stores.cleanup("snapshots.foreign")
        with pytest.raises(errors.Unimplemented):
            await stores.remove_all("snapshots.foreign", [Raw("snapshots.foreign", "snapshot", "ns/2/b")])
    assert [(r.snapshotter, r.key) for r in foreign.removed] == [("foreign", "ns/2/b"), ("foreign", "ns/1/a")]
    for call in foreign.calls:
        assert call.headers[rpc.RAW] == "snapshots.foreign"
        assert rpc.NAMESPACE not in call.headers
        assert rpc.LEASE not in call.headers


async def test_of_blobs_the_digests_are_sent_and_one_word_comes_back(place: Path) -> None:
    """Where all went; else each has its outcome."""
    asked: list[Sequence[str]] = []

    async def remove(things: Sequence[tuple[str, str]]) -> Sequence[BaseException | None]:
        raise AssertionError(things)

    async def remove_blobs(digests: Sequence[str]) -> Mapping[int, Exception]:
        asked.append(digests)
        return {1: errors.NotFound("content b")} if "b" in digests else {}

    async with (
        rpc.serving(place / "s.sock", [RemovalsServicer(remove, remove_blobs)]),
        rpc.Channel(place / "s.sock") as channel,
    ):
        stores = RemoteRawStores(channel)
        assert await stores.remove_all("content", [Raw("content", "blob", name) for name in "ac"]) == [None, None]
        done = await stores.remove_all("content", [Raw("content", "blob", name) for name in "abc"])
        with pytest.raises(errors.InvalidArgument):
            await stores.remove_all("content", [Raw("content", "blob", "a")] * (MOST + 1))
    assert asked == [["a", "c"], ["a", "b", "c"]]
    assert [type(outcome) for outcome in done] == [type(None), errors.NotFound, type(None)]


class Older:
    """Removals of a release that knows things only."""

    SERVICE = removals_stubs.REMOVALS

    def __init__(self) -> None:
        self.removed: list[str] = []

    async def Remove(self, request: removals_pb2.RemoveRequest, call: rpc.Call) -> removals_pb2.RemoveResponse:
        self.removed.extend(thing.name for thing in request.things)
        return removals_pb2.RemoveResponse(outcomes=[removals_pb2.Outcome() for _ in request.things])


async def test_a_release_that_knows_no_blobs_is_given_things(place: Path) -> None:
    """While a node is upgraded, content may be older than metadata: what it did not remove is not taken for gone."""
    older = Older()
    async with rpc.serving(place / "s.sock", [older]), rpc.Channel(place / "s.sock") as channel:
        done = await RemoteRawStores(channel).remove_all("content", [Raw("content", "blob", name) for name in "ab"])
    assert done == [None, None]
    assert older.removed == ["a", "b"]


async def test_many_removals_are_one_call_and_each_has_its_own_outcome(place: Path) -> None:
    """Outcomes are in the order of the removals, each with its error; a defect of ours is only "internal error"."""
    asked: list[Sequence[tuple[str, str]]] = []

    async def remove(things: Sequence[tuple[str, str]]) -> Sequence[BaseException | None]:
        asked.append(things)
        return [None, errors.NotFound("content b"), RuntimeError("secret")]

    async with rpc.serving(place / "s.sock", [RemovalsServicer(remove)]), rpc.Channel(place / "s.sock") as channel:
        stores = RemoteRawStores(channel)
        done = await stores.remove_all("content", [Raw("content", "blob", name) for name in "abc"])
        with pytest.raises(errors.Internal, match="3 of 1"):
            await stores.remove_all("content", [Raw("content", "blob", "a")])
        with pytest.raises(errors.InvalidArgument):
            await stores.remove_all("content", [Raw("content", "blob", "a")] * (MOST + 1))
    assert asked == [[("blob", "a"), ("blob", "b"), ("blob", "c")], [("blob", "a")]]
    assert [(type(outcome), str(outcome)) for outcome in done] == [
        (type(None), "None"),
        (errors.NotFound, "content b: not found"),
        (errors.Internal, "internal error"),
    ]
