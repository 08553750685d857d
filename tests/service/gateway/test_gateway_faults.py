"""Faults that an operator injects into a gateway's calls: who sees them, that nobody repeats a call for them, and that
nothing of them is left.

Content, snapshots and metadata are real processes behind one gateway.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from api.containerd.services.namespaces.v1 import namespaces_pb2, namespaces_stubs
from api.splitd.taps.v1 import taps_pb2, taps_stubs
from client.taps_remote import Asked, Called, RemoteTaps
from services.content.remote import RemoteStore
from services.kit import errors, rpc
from services.oci.digests import Digest
from services.snapshots.remote import RemoteSnapshotter
from tests.support import ServiceProcess, eventually_async, short_directory

pytestmark = [pytest.mark.once, pytest.mark.timeout(120)]

INJECTED = "injected by splitd fault"
NAMESPACES = namespaces_stubs.NAMESPACES
NATIVE = "snapshots.native"
ROOT = {"containerd.io/gc.root": "now"}
"""Kept from the collector."""


@dataclass
class Scene:
    """The node's services, and two ways to its gateway."""

    channel: rpc.Channel
    """Of a client."""
    taps: RemoteTaps
    snapshots: ServiceProcess
    root: Path
    log: Path

    @property
    def blobs(self) -> RemoteStore:
        return RemoteStore(self.channel, {rpc.NAMESPACE: "n"})

    @property
    def native(self) -> RemoteSnapshotter:
        return RemoteSnapshotter(self.channel, snapshotter="native", headers={rpc.NAMESPACE: "n"})

    @contextlib.asynccontextmanager
    async def fault(self, service: str, method: str, **more: Any) -> AsyncIterator[str]:
        """A fault, until the block ends; yields its id."""
        stands = await self.taps.fault(Asked(service=service, method=method, **more))
        try:
            yield stands.id
        finally:
            with contextlib.suppress(errors.NotFound):
                await self.taps.stop(stands.id)

    async def counts(self, fault: str) -> tuple[int, int]:
        """The calls that it meant, and those that it took."""
        (found,) = [each for each in await self.taps.faults() if each.id == fault]
        return found.seen, found.injected


@dataclass
class Services:
    state: Path
    root: Path
    snapshots: ServiceProcess
    gateway: ServiceProcess


@pytest.fixture(scope="module", params=["wire", "grpcio"])
def services(request: pytest.FixtureRequest) -> Iterator[Services]:
    """With each transport."""
    with short_directory() as place, contextlib.ExitStack() as stack, pytest.MonkeyPatch.context() as environment:
        environment.setenv("SPLITD_GRPC_TRANSPORT", request.param)
        root, state, config = place / "r", place / "s", place / "c.toml"
        config.write_text(
            '[metadata.gc]\nschedule_delay = "0s"\nstartup_delay = "0s"\n[gateway]\nunary_timeout = "1s"\nraw_timeout = "1s"\n'
        )

        def begin(module: str, *sockets: str) -> ServiceProcess:
            return stack.enter_context(ServiceProcess(module, root, state, sockets=sockets, config=config))

        begin("services.metadata")
        begin("services.content")
        snapshots = begin("services.snapshots", "snapshots-native.sock")
        yield Services(state, root, snapshots, begin("gateway", "containerd.sock", "internal.sock"))


@pytest.fixture
async def scene(services: Services) -> AsyncIterator[Scene]:
    async with (
        rpc.Channel(services.state / "containerd.sock", "gateway") as channel,
        rpc.Channel(services.state / "internal.sock", "gateway") as internal,
    ):
        taps = RemoteTaps(internal)
        yield Scene(channel, taps, services.snapshots, services.root, services.gateway.log)
        assert await taps.faults() == []


def digest_of(data: bytes) -> Digest:
    return Digest.parse(f"sha256:{hashlib.sha256(data).hexdigest()}")


async def written(blobs: RemoteStore, data: bytes, ref: str = "") -> Digest:
    digest = digest_of(data)
    writer = await blobs.writer(ref or f"w-{digest.hex}", len(data), digest)
    try:
        await writer.write(data)
        await writer.commit(len(data), digest, ROOT)
    finally:
        await writer.close()
    return digest


async def read(blobs: RemoteStore, digest: Digest) -> bytes:
    return b"".join([piece async for piece in blobs.read(digest, 0, 0)])


async def names(scene: Scene) -> list[str]:
    answer = await scene.channel.client(NAMESPACES).List(namespaces_pb2.ListNamespacesRequest())
    return [each.name for each in answer.namespaces]


async def test_a_relayed_call_fails_and_is_made_once_at_most(scene: Scene) -> None:
    """Before: it never arrives; after: it is done. A List would be made again if its service had gone away."""
    client = scene.channel.client(NAMESPACES)

    async def create(name: str) -> None:
        await client.Create(namespaces_pb2.CreateNamespaceRequest(namespace=namespaces_pb2.Namespace(name=name)))

    async with scene.fault("metadata", "Create", error="UNAVAILABLE") as fault:
        with pytest.raises(errors.Unavailable, match=f"^Create: {INJECTED} \\({fault}\\): unavailable$"):
            await create("before")
        assert await scene.counts(fault) == (1, 1)
    async with scene.fault("metadata", "Create", error="ABORTED", after=True):
        with pytest.raises(errors.Aborted, match=INJECTED):
            await create("after")
    async with scene.fault("metadata", "List", error="UNAVAILABLE") as fault:
        with pytest.raises(errors.Unavailable, match=INJECTED):
            await names(scene)
        assert await scene.counts(fault) == (1, 1)
    found = await names(scene)
    assert "before" not in found
    assert "after" in found


async def test_a_call_is_only_late(scene: Scene) -> None:
    """Its answer is right, and others are not delayed."""
    async with scene.fault("metadata", "List", latency=0.3):
        begun = time.monotonic()
        await names(scene)
        assert time.monotonic() - begun >= 0.3


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_a_call_that_is_too_late_says_why(scene: Scene, after: bool) -> None:
    """The gateway's limit ends it: that too is the fault's, and the call is not made again."""
    key = f"late-{after}"
    async with (
        scene.fault("metadata", "List", latency=60.0, after=after) as listing,
        scene.fault(NATIVE, "Prepare", latency=60.0, after=after) as preparing,
    ):
        found = await asyncio.gather(names(scene), scene.native.prepare(key, labels=ROOT), return_exceptions=True)
        for error, fault in zip(found, (listing, preparing), strict=True):
            assert isinstance(error, errors.DeadlineExceeded)
            assert f"late, {INJECTED} ({fault})" in str(error)
            assert await scene.counts(fault) == (1, 1)
    if after:
        await eventually_async(lambda: is_there(scene, key), "what was made is not recorded")
    else:
        await scene.native.prepare(key, labels=ROOT)
    await scene.native.remove(key)


async def test_calls_that_are_held_up_go_on_when_it_is_over(scene: Scene) -> None:
    """As if nothing had been."""
    stands = await scene.taps.fault(Asked(service="metadata", method="List", latency=60.0, error="INTERNAL"))
    call = asyncio.ensure_future(names(scene))

    async def held() -> bool:
        return await scene.counts(stands.id) == (1, 1)

    await eventually_async(held, "the call does not come")
    await scene.taps.stop(stands.id)
    assert await asyncio.wait_for(call, 2)


async def test_a_share_of_the_calls_by_chance_and_the_same_with_the_same_seed(scene: Scene) -> None:
    """Of one namespace."""

    async def outcomes(seed: int) -> list[bool]:
        found = []
        more: dict[str, Any] = {"share": 0.4, "error": "INTERNAL", "seed": seed, "namespace": "mine"}
        async with scene.fault("metadata", "Get", **more) as fault:
            client = scene.channel.client(NAMESPACES)
            for _ in range(40):
                await client.Get(namespaces_pb2.GetNamespaceRequest(name="n"), headers={rpc.NAMESPACE: "other"})
                try:
                    await client.Get(namespaces_pb2.GetNamespaceRequest(name="n"), headers={rpc.NAMESPACE: "mine"})
                    found.append(False)
                except errors.Internal as error:
                    assert INJECTED in str(error)
                    found.append(True)
            assert await scene.counts(fault) == (40, sum(found))
        return found

    first, again, other = await outcomes(1), await outcomes(1), await outcomes(2)
    assert first == again != other
    assert 0 < sum(first) < 40


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    "error", ["UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "ALREADY_EXISTS", "NOT_FOUND", "FAILED_PRECONDITION"]
)
async def test_a_prepare_is_not_repeated_and_its_intent_comes_to_its_end(scene: Scene, error: str, after: bool) -> None:
    """Whatever the error: those that mean something to the gateway are no word of the snapshotter. Afterwards the
    snapshot is there if the call was made, and can be made if it was not.
    """
    key = f"k-{error}-{after}"
    async with scene.fault(NATIVE, "Prepare", error=error, after=after) as fault:
        with pytest.raises(errors.NodeError, match=INJECTED) as caught:
            await scene.native.prepare(key, labels=ROOT)
        assert errors.name(caught.value.code) == error
        assert await scene.counts(fault) == (1, 1)
    if after:
        await eventually_async(lambda: is_there(scene, key), "what was made is not recorded")
    else:
        await scene.native.prepare(key, labels=ROOT)
    await scene.native.remove(key)


async def is_there(scene: Scene, key: str) -> bool:
    try:
        await scene.native.stat(key)
    except errors.NotFound:
        return False
    return True


@pytest.mark.parametrize("method", ["BeginSnapshot", "Finish"])
async def test_answers_of_metadata_that_are_lost_leave_no_intent(scene: Scene, method: str) -> None:
    """The one that began is cancelled, so that its key is free at once; the end of an intent is never faulted."""
    key = f"m-{method}"
    if method == "Finish":
        with pytest.raises(errors.InvalidArgument, match="metadata.Finish is bookkeeping that the gateway owes"):
            await scene.taps.fault(Asked(service="metadata", method=method, error="UNAVAILABLE"))
        async with scene.fault("metadata", "*", error="UNAVAILABLE", after=True) as fault:
            with pytest.raises(errors.Unavailable, match=INJECTED):
                await scene.native.prepare(key, labels=ROOT)
            assert await scene.counts(fault) == (1, 1)
    else:
        async with scene.fault("metadata", method, error="UNAVAILABLE", after=True):
            with pytest.raises(errors.Unavailable, match=INJECTED):
                await scene.native.prepare(key, labels=ROOT)

    async def prepared() -> bool:
        try:
            await scene.native.prepare(key, labels=ROOT)
        except errors.NodeError:
            return False
        return True

    await eventually_async(prepared, "the key is not free")
    await scene.native.remove(key)


@pytest.mark.parametrize("error", ["UNAVAILABLE", "ALREADY_EXISTS", "FAILED_PRECONDITION"])
async def test_a_commit_whose_answer_is_lost_has_happened(scene: Scene, error: str) -> None:
    """A Write's answer to its commit is what is lost. The blob is recorded soon; no Write is resumed."""
    data = f"data for {error}".encode() * 100
    async with scene.fault("content", "Write", error=error, after=True) as fault:
        with pytest.raises(errors.NodeError, match=INJECTED):
            await written(scene.blobs, data)
        assert await scene.counts(fault) == (1, 1)

    async def is_recorded() -> bool:
        try:
            return (await scene.blobs.info(digest_of(data))).size == len(data)
        except errors.NotFound:
            return False

    await eventually_async(is_recorded, "the commit is not recorded")
    assert await read(scene.blobs, digest_of(data)) == data


async def test_a_write_that_never_arrives_can_be_made_again(scene: Scene) -> None:
    """Its ref is not locked, and there are no bytes."""
    data = b"never" * 1000
    async with scene.fault("content", "Write", error="FAILED_PRECONDITION"):
        with pytest.raises(errors.FailedPrecondition, match=INJECTED):
            await written(scene.blobs, data, "again")
    await written(scene.blobs, data, "again")
    assert await read(scene.blobs, digest_of(data)) == data


async def test_reads_come_by_though_the_gateway_has_the_bytes(scene: Scene) -> None:
    """What it keeps of blobs and mounts is not used while a fault stands there; after it, it is."""
    data = b"small"
    digest = await written(scene.blobs, data)
    assert await read(scene.blobs, digest) == data
    await scene.native.prepare("kept", labels=ROOT)
    await scene.native.mounts("kept")
    for service, call in (
        ("content", lambda: read(scene.blobs, digest)),
        ("snapshots", lambda: scene.native.mounts("kept")),
    ):
        async with scene.fault(service, "*", error="INTERNAL"):
            with pytest.raises(errors.Internal, match=INJECTED):
                await call()
        assert await call()
    await scene.native.remove("kept")


async def test_it_is_over_by_itself(scene: Scene) -> None:
    """And says so in the log."""
    stands = await scene.taps.fault(Asked(service="metadata", method="List", error="INTERNAL", seconds=0.3))
    with pytest.raises(errors.Internal, match=INJECTED):
        await names(scene)

    async def over() -> bool:
        return not await scene.taps.faults()

    await eventually_async(over, "it is not over")
    await names(scene)
    assert f"fault {stands.id} is over: it was in 1 of 1 calls" in scene.log.read_text()


async def test_a_tap_sees_what_the_client_sees(scene: Scene) -> None:
    """It stands outside of the faults."""
    tap = scene.taps.tap("metadata", "List")
    assert await anext(tap) is None
    async with scene.fault("metadata", "List", error="DATA_LOSS"):
        with pytest.raises(errors.DataLoss):
            await names(scene)
    seen = await anext(tap)
    await tap.aclose()  # type: ignore[attr-defined]
    assert isinstance(seen, Called)
    assert (seen.code, seen.received) == (errors.DataLoss.code, 0)
    assert INJECTED in seen.message


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"service": "contents", "method": "*"}, "service 'contents' is not known (did you mean content?)"),
    ({"service": "content", "method": "Wirte"}, "content has no method 'Wirte' (did you mean Write?)"),
    ({"namespace": "a b"}, "namespace 'a b' cannot be one: it has 1 to 76 letters, digits"),
    ({"error": "UNAVAILBLE"}, "error 'UNAVAILBLE' is none of CANCELLED, UNKNOWN"),
    ({"error": ""}, "a fault needs a latency, an error, or both"),
    ({"share": 0.0}, "share is not above 0 % and at most 100 %"),
    ({"share": float("nan")}, "share is not above 0 % and at most 100 %"),
    ({"latency": -1.0}, "latency is not between 0 s and 10m"),
    ({"seconds": 0.0}, "a fault lasts more than 0 s and at most 24h"),
    ({"method": "Connect", "service": "metadata"}, "metadata.Connect is bookkeeping"),
]


@pytest.mark.parametrize(("given", "words"), WRONG, ids=[words[:30] for _, words in WRONG])
async def test_what_is_wrong_is_said(scene: Scene, given: dict[str, Any], words: str) -> None:
    """Nothing stands then."""
    with pytest.raises(errors.InvalidArgument) as caught:
        await scene.taps.fault(Asked(**{"service": "content", "method": "*", "error": "UNAVAILABLE", **given}))
    assert words in str(caught.value)


async def test_clients_sockets_do_not_have_it(scene: Scene) -> None:
    """As other private services."""
    with pytest.raises(errors.Unimplemented):
        await scene.channel.client(taps_stubs.TAPS).List(taps_pb2.ListRequest())


async def test_there_are_bounds(scene: Scene) -> None:
    """A program that begins faults for ever is told; the others go on."""
    begun = []
    with pytest.raises(errors.ResourceExhausted, match="there are 64 faults already"):
        while True:
            begun.append(await scene.taps.fault(Asked(service="diff", method="*", error="ABORTED")))
    assert {each.id for each in await scene.taps.stop()} == {each.id for each in begun}
    with pytest.raises(errors.NotFound, match="there is no fault 'f9999'"):
        await scene.taps.stop("f9999")
