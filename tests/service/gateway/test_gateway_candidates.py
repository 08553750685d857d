"""Candidates on a gateway's routes: where new objects go, and what becomes of them when services and the gateway end.

Two content services and two snapshots services are behind one gateway, with metadata's records.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from api.containerd.services.leases.v1 import leases_pb2, leases_stubs
from api.containerd.services.snapshots.v1 import snapshots_pb2, snapshots_stubs
from client.held_remote import Namespaces
from client.routes_remote import RemoteRoutes, Stands
from conform.service_remote import SNAPSHOT, CannotRun, opened
from gateway.candidates import Terms
from services.content.local import LocalStore
from services.content.remote import RemoteFiles, RemoteStore
from services.content.server import ContentServicer, LocalFilesServicer
from services.kit import errors, rpc
from services.kit.addresses import address as as_address
from services.oci.digests import Digest
from services.shadows.remote import Shadows
from services.snapshots.remote import RemoteSnapshotter
from tests.support import Forwarder, ServiceProcess, eventually_async, short_directory

pytestmark = [pytest.mark.once, pytest.mark.timeout(120)]

NATIVE = "snapshots.native"
LARGE = bytes(range(256)) * 800
CONFIG = '[gateway]\ncandidate_hold = "1s"\n[metadata.gc]\nschedule_delay = "0s"\nstartup_delay = "0s"\n'


@dataclass
class Services:
    """The processes, and where the candidates' are."""

    gateway: ServiceProcess
    content: ServiceProcess
    """The candidate's."""
    snapshots: ServiceProcess
    root: Path
    state: Path
    elsewhere: Path

    def content_terms(self, **more: Any) -> Terms:
        return Terms(**{"route": "content", "name": "other", "address": str(self.elsewhere / "content.sock"), **more})

    def native_terms(self, **more: Any) -> Terms:
        address = str(self.elsewhere / "snapshots-native.sock")
        return Terms(**{"route": NATIVE, "name": "other", "address": address, **more})


@pytest.fixture(scope="module")
def services() -> Iterator[Services]:
    with short_directory() as place, contextlib.ExitStack() as stack:
        root, state, elsewhere = place / "r", place / "s", place / "e"
        config = place / "c.toml"
        config.write_text(CONFIG)

        def begin(module: str, root: Path, state: Path, *sockets: str) -> ServiceProcess:
            return stack.enter_context(ServiceProcess(module, root, state, sockets=sockets, config=config))

        begin("services.metadata", root, state)
        begin("services.content", root, state)
        begin("services.snapshots", root, state, "snapshots-native.sock")
        content = begin("services.content", place / "er", elsewhere)
        snapshots = begin("services.snapshots", place / "er", elsewhere, "snapshots-native.sock")
        gateway = begin("gateway", root, state, "containerd.sock", "internal.sock")
        yield Services(gateway, content, snapshots, root, state, elsewhere)


@pytest.fixture
async def node(services: Services) -> AsyncIterator[tuple[Services, rpc.Channel, RemoteRoutes]]:
    """The services, without candidates at first and at last."""
    async with rpc.Channel(services.state / "internal.sock", "gateway") as channel:
        routes = RemoteRoutes(channel)
        yield services, channel, routes
        for process in (services.content, services.snapshots):
            if process._process is None or process._process.poll() is not None:
                process.start()
        for route in await routes.all():
            for candidate in route.candidates:
                with contextlib.suppress(errors.NotFound):  # it is gone, since it had nothing
                    await routes.restore(route.name, candidate.terms.name)
                    await routes.forget(route.name, candidate.terms.name)


def store(channel: rpc.Channel, namespace: str = "n") -> RemoteStore:
    return RemoteStore(channel, {rpc.NAMESPACE: namespace})


def native(channel: rpc.Channel, namespace: str = "n") -> RemoteSnapshotter:
    return RemoteSnapshotter(channel, snapshotter="native", headers={rpc.NAMESPACE: namespace})


async def written(blobs: RemoteStore, data: bytes, ref: str = "") -> Digest:
    """Write a blob, kept from the collector."""
    digest = Digest.parse(f"sha256:{hashlib.sha256(data).hexdigest()}")
    writer = await blobs.writer(ref or f"w-{digest.hex}", len(data), digest)
    await writer.write(data)
    await writer.commit(len(data), digest, {"containerd.io/gc.root": "now"})
    return digest


async def read(blobs: RemoteStore, digest: Digest, size: int = 0) -> bytes:
    return b"".join([piece async for piece in blobs.read(digest, 0, size)])


def raw_blobs(place: Path) -> set[str]:
    return {path.name for path in (place / "content" / "blobs" / "sha256").glob("*")}


async def restarted(process: ServiceProcess, channel: rpc.Channel) -> None:
    process.kill()
    process.start()
    await eventually_async(lambda: channel.wait_connected(0.1), "it does not come back")


async def candidate(routes: RemoteRoutes, route: str) -> Stands | None:
    found = next(each for each in await routes.all() if each.name == route)
    return found.candidates[0] if found.candidates else None


async def test_half_of_the_new_blobs_go_to_the_candidate_and_stay_there(
    node: tuple[Services, rpc.Channel, RemoteRoutes],
) -> None:
    """They are read from it, small and large, whole and in pieces; also after the gateway's restart, and after the
    candidate takes no more. While it is away the reads wait a moment, then fail with its name; new ones go home.
    """
    services, channel, routes = node
    blobs, theirs, ours = store(channel), services.elsewhere.parent / "er", services.root
    before, stands = raw_blobs(theirs), (await routes.replace(services.content_terms(share=50.0)))[0]
    assert (stands.trouble, stands.drained) == ("", "")
    data = {await written(blobs, piece): piece for piece in (b"a", b"b", b"c" * 200_000, b"d" * 200_000)}
    there = [digest for digest in data if digest.hex in raw_blobs(theirs) - before]
    assert there == list(data)[::2]
    assert not {digest.hex for digest in there} & raw_blobs(ours)

    async def all_are_read() -> bool:
        for digest, piece in data.items():
            for size in (0, 1000, 1000):  # the second piece comes from a file that is open by then
                assert await read(blobs, digest, size) == (piece[:size] if size else piece)
        return True

    assert await all_are_read()
    await restarted(services.gateway, channel)
    assert await all_are_read()
    assert (await candidate(routes, "content")).objects == 2

    async def back() -> bool:
        found = await candidate(routes, "content")
        return found is not None and not found.trouble

    services.content.kill()
    large, home = there[1], await written(blobs, b"while it is away")
    assert home.hex in raw_blobs(ours)
    with pytest.raises(errors.Unavailable, match=r"service content@other has been unreachable for \d+ s"):
        await read(blobs, large)
    found = await candidate(routes, "content")
    assert found is not None and found.trouble.startswith("service content@other has been unreachable for")
    assert found.sent_home >= 1
    services.content.start()
    await eventually_async(back, "it does not come back")
    assert await all_are_read()

    await routes.restore("content")
    assert (await written(blobs, b"e")).hex in raw_blobs(ours)
    assert (await written(blobs, b"f")).hex in raw_blobs(ours)
    assert await all_are_read()
    found = await candidate(routes, "content")
    assert found is not None and (found.drained, found.objects) == ("restored by its operator", 2)
    await restarted(services.gateway, channel)
    assert await all_are_read()
    assert (await written(blobs, b"g")).hex in raw_blobs(ours)


async def test_candidates_that_forward_to_the_gateway_fail_and_say_so(
    node: tuple[Services, rpc.Channel, RemoteRoutes],
) -> None:
    """What they get goes round a few times, not for ever, and nothing of it is in the way afterwards."""
    services, channel, routes = node
    address = str(services.elsewhere / "circle.sock")
    async with (
        rpc.Channel(services.state / "containerd.sock", "gateway") as back,
        rpc.serving(services.elsewhere / "circle.sock", [], relay=(forwarder := Forwarder(back)), relayed=True),
    ):
        await routes.replace(services.content_terms(address=address))
        await routes.replace(services.native_terms(address=address))
        with pytest.raises(errors.FailedPrecondition, match="route content leads in a circle"):
            await written(store(channel), b"round")
        with pytest.raises(errors.FailedPrecondition, match=r"route snapshots\.native leads in a circle"):
            await native(channel).prepare("round", "", {})
        assert max(forwarder.calls.values()) <= 2 * rpc.MOST_HOPS
    for route in ("content", NATIVE):
        await routes.restore(route)
        await routes.forget(route)
    assert (await written(store(channel), b"round")).hex in raw_blobs(services.root)
    assert await native(channel).prepare("round", "", {})


async def test_no_copy_of_a_call_is_copied_again(node: tuple[Services, rpc.Channel, RemoteRoutes]) -> None:
    """The gateway refuses a copy that a shadow's candidate forwards to it."""
    services, channel, _ = node
    digest, shadows = await written(store(channel), b"to be copied"), Shadows(channel)
    async with (
        rpc.Channel(services.state / "containerd.sock", "gateway") as back,
        rpc.serving(services.elsewhere / "mirror.sock", [], relay=Forwarder(back, {rpc.NAMESPACE: "n"}), relayed=True),
    ):
        await shadows.start("content", as_address(str(services.elsewhere / "mirror.sock")))

        async def compared() -> str:
            await read(store(channel), digest)
            found = [each for each in (await shadows.report("content")).methods if each.method == "Content/Read"]
            return found[0].differences[0].examples[0].candidate if found and found[0].different else ""

        assert await eventually_async(compared, "no copy was compared", 30) == "FAILED_PRECONDITION"
        await shadows.stop("content")


async def test_a_write_that_is_opened_again_stays_where_it_began(
    node: tuple[Services, rpc.Channel, RemoteRoutes],
) -> None:
    """Its status is the candidate's, although the candidate takes nothing new by then; Abort reaches it."""
    services, channel, routes = node
    blobs = store(channel)
    await routes.replace(services.content_terms())
    writer = await blobs.writer("half", 6)
    await writer.write(b"abc")
    await writer.close()
    other = await blobs.writer("unfinished", 6)
    await other.write(b"ab")
    await other.close()
    await routes.restore("content")
    assert {status.ref: status.offset for status in await blobs.list_statuses()} == {"half": 3, "unfinished": 2}
    writer = await blobs.writer("half", 6)
    assert writer.offset == 3
    await writer.write(b"def")
    digest = Digest.parse(f"sha256:{hashlib.sha256(b'abcdef').hexdigest()}")
    await writer.commit(6, digest, {"containerd.io/gc.root": "now"})
    assert digest.hex in raw_blobs(services.elsewhere.parent / "er")
    await blobs.abort("unfinished")
    async with rpc.Channel(services.elsewhere / "content.sock") as raw:
        assert await RemoteStore(raw).list_statuses() == []


async def test_writes_that_succeed_count_for_back_at(node: tuple[Services, rpc.Channel, RemoteRoutes]) -> None:
    """Else a few failures among thousands of them would be all that counts."""
    services, channel, routes = node
    await routes.replace(services.content_terms(back_at=50.0))
    for number in range(20):
        await written(store(channel), b"counted %d" % number)
    found = await candidate(routes, "content")
    assert found is not None
    assert found.failures == 0
    assert found.calls >= 20  # the collector's calls count, too


async def test_a_snapshot_lives_where_its_parent_lives(node: tuple[Services, rpc.Channel, RemoteRoutes]) -> None:
    """Those without a parent are shared out. A commit on a parent elsewhere is refused, and both places are named."""
    services, channel, routes = node
    snapshots = native(channel)
    await routes.replace(services.native_terms(share=50.0))

    def is_theirs(source: str) -> bool:
        return source.startswith(str(services.elsewhere.parent / "er"))

    keys = [f"root-{number}" for number in range(4)]
    sources = [(await snapshots.prepare(key))[0].source for key in keys]
    assert [is_theirs(source) for source in sources] == [True, False, True, False]
    for number, key in enumerate(keys):
        await snapshots.commit(f"layer-{number}", key)
    children = [(await snapshots.prepare(f"child-{number}", f"layer-{number}"))[0].source for number in range(4)]
    assert [is_theirs(source) for source in children] == [True, False, True, False]
    assert [is_theirs((await snapshots.mounts(f"child-{number}"))[0].source) for number in range(4)] == [
        True,
        False,
        True,
        False,
    ]
    assert (await snapshots.usage("layer-0")).inodes > 0
    assert is_theirs((await snapshots.prepare("alone"))[0].source)
    with pytest.raises(errors.FailedPrecondition, match=rf"{NATIVE}, and the snapshot to commit in {NATIVE}@other"):
        await snapshots.commit("on-another", "alone", parent="layer-1")


async def test_forgotten_objects_are_gone_for_their_clients_only(
    node: tuple[Services, rpc.Channel, RemoteRoutes],
) -> None:
    """They are listed first. A candidate that takes new objects cannot be forgotten."""
    services, channel, routes = node
    blobs = store(channel, "forgotten")
    await routes.replace(services.content_terms(namespaces=("forgotten",)))
    digest = await written(blobs, b"to be forgotten")
    assert (await written(store(channel), b"of another namespace")).hex in raw_blobs(services.root)
    total, some = await routes.objects("content", "other")
    assert (total, [(each.kind, each.namespace, each.name) for each in some]) == (
        1,
        [("blob", "forgotten", str(digest))],
    )
    with pytest.raises(errors.FailedPrecondition, match="content@other takes new objects: restore content first"):
        await routes.forget("content", "other")
    await routes.restore("content")
    assert await routes.forget("content", "other") == 1
    assert await candidate(routes, "content") is None
    with pytest.raises(errors.NotFound):
        await blobs.info(digest)
    assert digest.hex in raw_blobs(services.elsewhere.parent / "er")
    assert json.loads((services.root / "gateway" / "routes.json").read_text()) == []


async def test_a_drained_candidate_goes_with_its_last_object(node: tuple[Services, rpc.Channel, RemoteRoutes]) -> None:
    """Once the collector has removed that in the candidate, too."""
    services, channel, routes = node
    snapshots = native(channel)
    await routes.replace(services.native_terms())
    await snapshots.prepare("last")
    await routes.restore(NATIVE)
    assert await candidate(routes, NATIVE) is not None
    await snapshots.remove("last")

    async def gone() -> bool:
        with contextlib.suppress(errors.NotFound):
            await routes.restore(NATIVE)  # it is looked again
        return await candidate(routes, NATIVE) is None

    await eventually_async(gone, "it stays")
    async with rpc.Channel(services.elsewhere / "snapshots-native.sock") as raw:
        assert "last" not in {info.name.rpartition("/")[2] async for info in RemoteSnapshotter(raw).list()}


class Failing:
    """A snapshotter whose disk is broken. It has nothing of what it is asked for."""

    SERVICE = snapshots_stubs.SNAPSHOTS

    async def Prepare(
        self, request: snapshots_pb2.PrepareSnapshotRequest, call: rpc.Call
    ) -> snapshots_pb2.PrepareSnapshotResponse:
        raise errors.Internal("input/output error")

    async def Stat(
        self, request: snapshots_pb2.StatSnapshotRequest, call: rpc.Call
    ) -> snapshots_pb2.StatSnapshotResponse:
        raise errors.NotFound(f"snapshot {request.key}")

    async def List(
        self, request: snapshots_pb2.ListSnapshotsRequest, call: rpc.Call
    ) -> AsyncIterator[snapshots_pb2.ListSnapshotsResponse]:
        raise errors.NotFound("snapshots")  # for the collector: an answer that does not count
        yield


async def test_it_ends_by_itself_when_its_calls_fail(node: tuple[Services, rpc.Channel, RemoteRoutes]) -> None:
    """At the share that was given, of at least 20 calls; the next one is made at home."""
    services, channel, routes = node
    address, snapshots = services.elsewhere / "failing.sock", native(channel, "failing")
    async with rpc.serving(address, [Failing()]):
        await routes.replace(services.native_terms(back_at=50.0, address=str(address)))
        for number in range(20):
            found = await candidate(routes, NATIVE)
            assert found is not None and (found.drained, found.failures) == ("", number)
            with pytest.raises(errors.Internal, match="input/output error"):
                await snapshots.prepare(f"k-{number}")
        assert (await snapshots.prepare("after"))[0].source.startswith(str(services.root))
        found = await candidate(routes, NATIVE)
        assert found is None or found.drained == "100% of its last calls failed"


async def test_it_ends_when_its_time_is_over(node: tuple[Services, rpc.Channel, RemoteRoutes]) -> None:
    """To the moment, without anybody's call."""
    services, _, routes = node
    for soon in (0.3, 3.0, 30.0):  # on a busy machine it may be over before it is there
        with contextlib.suppress(errors.InvalidArgument):
            await routes.replace(services.native_terms(until=time.time() + soon))
            break
    else:
        pytest.fail("no moment is late enough")

    async def ended() -> bool:
        found = await candidate(routes, NATIVE)
        return found is None or found.drained != ""

    await eventually_async(ended, "it stays")


async def test_a_candidate_that_is_not_there_is_used_as_soon_as_it_appears(
    node: tuple[Services, rpc.Channel, RemoteRoutes],
) -> None:
    """Until then all goes home, and the route says why."""
    services, channel, routes = node
    services.content.kill()
    stands, _ = await routes.replace(services.content_terms())
    assert stands.trouble.startswith("service content@other has been unreachable")
    assert (await written(store(channel), b"before")).hex in raw_blobs(services.root)
    services.content.start()

    async def taken() -> bool:
        data = str(await candidate(routes, "content")).encode()
        return (await written(store(channel), data)).hex in raw_blobs(services.elsewhere.parent / "er")

    await eventually_async(taken, "it is not used")


async def test_bytes_of_a_candidate_on_another_machine_come_by_streams(
    node: tuple[Services, rpc.Channel, RemoteRoutes], tmp_path: Path
) -> None:
    """It offers files by their paths, as ours does, and on this machine those are other files, if any."""
    services, channel, routes = node
    local = LocalStore(tmp_path / "remote")
    try:
        async with rpc.serving("127.0.0.1:0", [ContentServicer(local), LocalFilesServicer(local.files)]) as server:
            await routes.replace(services.content_terms(address=str(server.address)))
            digest = Digest.parse(f"sha256:{hashlib.sha256(LARGE).hexdigest()}")
            files = RemoteFiles(channel, {rpc.NAMESPACE: "n"})
            with pytest.raises(errors.Unimplemented, match="files of service content@other, which is at 127.0.0.1:"):
                await files.begin("by-file", len(LARGE), digest)
            assert await written(store(channel), LARGE, "by-file") == digest
            assert digest.hex in {path.name for path in (tmp_path / "remote" / "blobs" / "sha256").iterdir()}
            with pytest.raises(errors.Unimplemented, match="files of service content@other"):
                await files.locate(digest)
            for _ in range(3):
                assert await read(store(channel), digest, 1000) == LARGE[:1000]
            await routes.restore("content")
            await routes.forget("content")
    finally:
        local.close()


async def test_metadata_is_replaced_whole_and_comes_back(node: tuple[Services, rpc.Channel, RemoteRoutes]) -> None:
    """The records of the other one are the node's meanwhile, for all its namespaces."""
    services, channel, routes = node
    namespaces = Namespaces(channel)
    digest = await written(store(channel), b"of the first")
    with ServiceProcess("services.metadata", services.elsewhere.parent / "mr", services.elsewhere):
        await routes.replace(Terms(route="metadata", name="other", address=str(services.elsewhere / "metadata.sock")))
        assert await namespaces.names() == []
        with pytest.raises(errors.NotFound):
            await read(store(channel), digest)
        other = await written(store(channel, "m"), b"of the second")
        assert await read(store(channel, "m"), other) == b"of the second"
        assert await namespaces.names() == ["m"]
        await routes.restore("metadata")
    assert "m" not in await namespaces.names()
    assert await read(store(channel), digest) == b"of the first"


async def test_a_daemon_that_cannot_be_tried_keeps_nothing_of_conform(
    node: tuple[Services, rpc.Channel, RemoteRoutes],
) -> None:
    """Its lease is gone, and the namespace that came with it."""
    services, channel, _ = node
    where = as_address(services.state / "containerd.sock")
    for more, said in (
        ({"snapshotter": "nope"}, "snapshotter not loaded: nope"),
        ({"namespace": "a b"}, 'identifier "a b" must match'),
    ):
        with pytest.raises(CannotRun, match=said):
            async with opened(where, SNAPSHOT, name="splitd-conform-x", seconds=10.0, **more):
                pass
    assert "splitd-conform-x" not in await Namespaces(channel).names()


class Leases:
    """What only a daemon has."""

    SERVICE = leases_stubs.LEASES

    async def List(self, request: leases_pb2.ListRequest, call: rpc.Call) -> leases_pb2.ListResponse:
        return leases_pb2.ListResponse()


async def test_a_daemon_that_appears_at_the_address_of_a_candidate_gets_no_call(
    node: tuple[Services, rpc.Channel, RemoteRoutes],
) -> None:
    """The candidate is down, with that reason, whether the daemon is another one or the node itself by another path;
    new blobs go home. A store that comes to the address after the daemon has ended is used.
    """
    services, channel, routes = node
    for number, (said, own) in enumerate((("is a whole daemon", False), ("is a socket of this node itself", True))):
        socket = services.elsewhere / f"later{number}.sock"
        await routes.replace(services.content_terms(name=f"later{number}", address=str(socket)))

        async def down(number: int = number, said: str = said) -> bool:
            found = next(each for each in await routes.all() if each.name == "content").candidates
            return said in next(each for each in found if each.terms.name == f"later{number}").trouble

        async with contextlib.AsyncExitStack() as stack:
            if own:
                socket.symlink_to(services.state / "containerd.sock")
            else:
                await stack.enter_async_context(rpc.serving(socket, [Leases()]))
            await eventually_async(down, "the daemon is not refused")
            digest = await written(store(channel), f"blob {number}".encode())
            assert digest.hex in raw_blobs(services.root)
        socket.unlink(missing_ok=True)
        socket.symlink_to(services.elsewhere / "content.sock")

        async def used(number: int = number) -> bool:
            found = next(each for each in await routes.all() if each.name == "content").candidates
            return not next(each for each in found if each.terms.name == f"later{number}").trouble

        if not own:  # the node itself lives on, and with it the connection
            await eventually_async(used, "the store is not used", seconds=30)
        await routes.restore("content", f"later{number}")


async def test_what_cannot_be_done_is_said(node: tuple[Services, rpc.Channel, RemoteRoutes]) -> None:
    """In words that name what would be right."""
    services, _, routes = node
    with pytest.raises(
        errors.InvalidArgument, match=r"no route 'snapshots': the routes of this node are content, .*native"
    ):
        await routes.replace(services.content_terms(route="snapshots"))
    with pytest.raises(errors.InvalidArgument, match=r"does not serve what content needs: .*Content"):
        await routes.replace(services.content_terms(address=str(services.elsewhere / "snapshots-native.sock")))
    for socket in ("containerd.sock", "internal.sock"):  # it would send each call to itself again, without an end
        with pytest.raises(errors.InvalidArgument, match="is a whole daemon"):
            await routes.replace(services.content_terms(address=str(services.state / socket)))
    with pytest.raises(errors.InvalidArgument, match="namespace 'a/b': a namespace has 1 to 76 letters"):
        await routes.replace(services.content_terms(namespaces=("a/b",)))
    with pytest.raises(errors.InvalidArgument, match="content takes no capabilities: only snapshotters have some"):
        await routes.replace(services.content_terms(capabilities=("rebase",)))
    with pytest.raises(errors.InvalidArgument, match="name '.': a name has a letter or a digit"):
        await routes.replace(services.content_terms(name="."))
    with pytest.raises(errors.InvalidArgument, match="is where content goes already"):
        await routes.replace(services.content_terms(address=str(services.state / "content.sock")))
    with pytest.raises(errors.NotFound, match="content has no candidate: all its calls go to its own service"):
        await routes.restore("content")
    await routes.replace(services.content_terms())
    with pytest.raises(errors.NotFound, match="content has no candidate 'nobody': it has other"):
        await routes.restore("content", "nobody")
    with pytest.raises(errors.InvalidArgument, match="is candidate other of content already: give it that name"):
        await routes.replace(services.content_terms(name="another"))
    async with rpc.Channel(services.state / "containerd.sock") as client:
        with pytest.raises(errors.Unimplemented):
            await RemoteRoutes(client).all()
