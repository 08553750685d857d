"""Every loop of every process goes on, and logs it, if each awaitable that it waits for fails once.

A new loop needs a scenario here: how it runs on fakes, and how to see that it does its work.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import errno
import itertools
import os
import pty
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from api.containerd.events import content_pb2 as content_events
from api.containerd.services.containers.v1 import containers_pb2
from api.containerd.services.content.v1 import content_pb2
from api.containerd.services.images.v1 import images_pb2
from api.containerd.services.leases.v1 import leases_pb2
from api.containerd.services.namespaces.v1 import namespaces_pb2
from api.containerd.types.event_pb2 import Envelope
from api.splitd.shadows.v1 import shadows_pb2
from api.splitd.snapshotters.v1 import snapshotters_pb2
from client.output import Bars
from client.progress import Tally
from gateway.candidates import Terms
from gateway.config import Config as GatewaySettings
from gateway.metrics import Page
from gateway.operations import IDLE, Operations
from gateway.probes import Probes
from gateway.replacing import Replacing
from gateway.routes import Routes
from gateway.shadows import Shadow
from gateway.snapshotters import Snapshotters
from gateway.store import Objects
from gateway.supervision import Supervision
from gateway.upstream import Upstream
from services.etcd import protocol
from services.etcd.config import EtcdConfig
from services.etcd.leasing import leased
from services.etcd.memory import MemoryEtcd
from services.etcd.store import Put
from services.fleet.arriving import Arriving
from services.fleet.config import Config as FleetConfig
from services.fleet.config import FleetEtcd
from services.fleet.door import Door
from services.fleet.local import FleetNode
from services.fleet.peer_server import PeerServer
from services.fleet.records_remote import Records
from services.fleet.shared_remote import SharedBlobs
from services.fleet.upload_limit import UploadLimit
from services.fleet.wanted import Wanted
from services.images.distribution.peers import telling
from services.images.distribution.progress import Tracker, reporting_waits
from services.images.node.ingest import SharedIngest
from services.images.node.leases_remote import Leases
from services.images.transfer import Progress
from services.images.waits import Board
from services.kit import errors, loops, memory, sockets
from services.kit.any import pack
from services.kit.publisher import Publisher
from services.kit.transport import Methods, Server
from services.metadata import schema
from services.metadata.etcd import EtcdTransactions
from services.metadata.etcd_node import EtcdNode
from services.metadata.etcd_rows import Owner
from services.metadata.gc.collector import Collector
from services.metadata.gc.config import Config
from services.metadata.gc.memory import MemoryRawStores
from services.metadata.memory import MemoryTransactions
from services.metadata.transactions import encode
from services.oci.descriptors import Descriptor
from services.oci.media_types import MANIFEST
from services.snapshots.diff.blocked import Sampler
from services.snapshots.diff.workers import sampled
from services.tasks.gateway import Gateway
from services.tasks.nodestart import NodeStart
from services.tasks.restart import STOPPED, RestartMonitor
from services.tasks.store import Process, Status
from services.traces.intake import Intake
from services.traces.memory import MemoryStore
from services.traces.page.server import Page as TracesPage
from services.traces.store import Piece
from tests.fake_registry import Authority
from tests.faulty import failing
from tests.made_traces import MadeSource
from tests.suites import records
from tests.suites.records_lives import LocalMetadata
from tests.suites.traces import span
from tests.support import eventually_async
from tests.unit.deploy.test_imports import TOP, python_files
from tests.unit.gateway.test_gateway_operations import Tracer
from tests.unit.gc import gc_graphs
from tests.unit.metadata.test_metadata_records import Life
from tests.unit.tasks.test_tasks_restart import FakeNode, FakeTasks, container

Works = Callable[[], Awaitable[Any]]
"""Give the loop some work, and wait until it is done; AssertionError if it is not."""
Scenario = Callable[[Path], contextlib.AbstractAsyncContextManager[Works]]
"""Run the loop below a directory."""

SCENARIOS: dict[str, Scenario] = {}
"""By the loop's name, with * for variable parts."""


def loop(name: str) -> Callable[[Callable[[Path], AsyncIterator[Works]]], None]:
    def note(scenario: Callable[[Path], AsyncIterator[Works]]) -> None:
        SCENARIOS[name] = contextlib.asynccontextmanager(scenario)

    return note


class Unthought(Exception):
    """An exception that no code expects, and so catches by name."""


def full() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Channel:
    """A channel to a peer that has the given methods."""

    def __init__(self, **methods: Any) -> None:
        self._methods = methods

    def client(self, service: object) -> Any:
        return type("Client", (), {name: staticmethod(method) for name, method in self._methods.items()})

    async def reached(self, seconds: float) -> None:
        """Return at once."""


# ------------------------------------------------------------------------------------------ the loops


@loop("the sending of events")
async def sending_events(place: Path) -> AsyncIterator[Works]:
    got: set[str] = set()
    topics = map("/{}".format, itertools.count())

    async def forward(request: Any, **how: Any) -> None:
        await asyncio.sleep(0)
        got.add(request.envelope.topic)

    publisher = Publisher(Channel(Forward=forward), retry=0.001)  # type: ignore[arg-type]

    async def works() -> None:
        async def sent() -> bool:
            publisher.publish("ns", topic := next(topics), leases_pb2.DeleteRequest())
            return await publisher.flushed(0.1) and topic in got

        await eventually_async(sent, "no event is sent")

    async with publisher.running(grace=0.1):
        yield works


@loop("keeping etcd's lease *")
async def keeping_a_lease(place: Path) -> AsyncIterator[Works]:
    renewed: list[int] = []

    class Answers:
        config = EtcdConfig(endpoints=("127.0.0.1:1",))

        async def call(self, service: Any, method: str, request: Any, **how: Any) -> Any:
            return protocol.LeaseGrantRequest(ID=7, TTL=1000)  # its answer has the same fields

        async def exchange(self, service: Any, method: str, request: Any, **how: Any) -> Any:
            await asyncio.sleep(0)
            renewed.append(request.ID)
            return protocol.LeaseGrantRequest(ID=7, TTL=1000)

    async def works() -> None:
        renewed.clear()
        await eventually_async(lambda: asyncio.sleep(0, len(renewed) > 2), "nobody renews the lease")
        assert set(renewed) == {7}
        assert not lease.lost.is_set()

    async with leased(Answers(), 1000, sleep=lambda seconds: asyncio.sleep(0.001)) as lease:  # type: ignore[arg-type]
        yield works


@loop("the restart monitor")
async def restarting(place: Path) -> AsyncIterator[Works]:
    node, tasks = FakeNode(container("c", {STOPPED: "true"}), container("other", {})), FakeTasks()
    for name in ("namespaces", "containers", "set_label", "mounts"):
        setattr(node, name, late(getattr(node, name)))
    for name in ("get", "create", "start", "delete"):
        setattr(tasks, name, late(getattr(tasks, name)))

    async def works() -> None:
        if not node.labels:  # "stopped on purpose" until the node's start is dealt with
            await eventually_async(
                lambda: asyncio.sleep(0, any(label[2:] == (STOPPED, "false") for label in node.labels)),
                "the start of the node is not noticed",
            )
            node.records["c"] = container("c", {STOPPED: "false"})
        for name in ("c", "other"):
            tasks.states["n", name] = Process(name, 1, Status.STOPPED)

        async def runs() -> bool:
            return all(state.status is Status.RUNNING for state in tasks.states.values()) and len(tasks.states) == 2

        await eventually_async(runs, "they are not started")

    async with RestartMonitor(node, 0.02, delay=0.01, start=NodeStart(place / "start")).running(tasks):  # type: ignore[arg-type]
        yield works


def late(method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """An answer after a pause."""

    async def answered(*arguments: Any, **named: Any) -> Any:
        await asyncio.sleep(0)
        return await method(*arguments, **named)

    return answered


@loop("the watch of the gateway")
async def watching_the_gateway(place: Path) -> AsyncIterator[Works]:
    ends: list[asyncio.Event] = []
    told: list[float] = []

    async def watch(request: Any) -> AsyncIterator[None]:
        ends.append(end := asyncio.Event())
        yield None
        await end.wait()

    client = Channel(Watch=watch)
    gateway = Gateway(client, Publisher(client))  # type: ignore[arg-type]

    async def works() -> None:
        await eventually_async(lambda: asyncio.sleep(0, gateway.reachable and ends), "it is not watched")
        told.clear()
        before = time.time()
        while ends:
            ends.pop().set()
        await eventually_async(lambda: asyncio.sleep(0, told), "nobody is told that it is back")
        assert told[-1] >= before - 5

    async with gateway.watched(told.append):
        yield works


@loop("the end of leases")
async def ending_leases(place: Path) -> AsyncIterator[Works]:
    there: set[str] = set()
    asked: set[str] = set()

    async def create(request: Any, **how: Any) -> None:
        there.add(request.id)

    async def delete(request: Any, **how: Any) -> None:
        await asyncio.sleep(0)
        if request.id not in asked:
            asked.add(request.id)
            raise errors.Unavailable("the gateway")
        there.discard(request.id)

    async def listed(request: Any, **how: Any) -> Any:
        await asyncio.sleep(0)
        if isinstance(request, namespaces_pb2.ListNamespacesRequest):
            return namespaces_pb2.ListNamespacesResponse(namespaces=[namespaces_pb2.Namespace(name="ns")])
        return leases_pb2.ListResponse()

    leases = Leases(Channel(Create=create, Delete=delete, List=listed))  # type: ignore[arg-type]

    async def works() -> None:
        async with leases.lease({}) as lease:
            assert lease in there
        await eventually_async(lambda: asyncio.sleep(0, lease not in there), "it is not ended")

    async with leases.running():
        yield works


@loop("the watch of *")
async def watching_a_socket(place: Path) -> AsyncIterator[Works]:
    path = place / "s.sock"
    path.touch()

    async def again() -> None:
        await asyncio.sleep(0)
        path.touch()

    async def works() -> None:
        path.unlink(missing_ok=True)
        await eventually_async(lambda: asyncio.sleep(0, path.exists()), "it is not made again")

    watching = sockets.watching(path, again, look=0.005)
    yield works
    watching.cancel()
    await asyncio.wait((watching,))


@loop("the watch of service *")
async def watching_a_service(place: Path) -> AsyncIterator[Works]:
    upstream = Upstream(
        "metadata", place / "metadata.sock", "metadata", Supervision(place / "supervisor.sock"), hold=5.0
    )
    upstream.channel = peer = Peer()  # type: ignore[assignment]
    seen: list[bool] = []
    upstream.on_connect.append(lambda: seen.append(upstream.up))

    async def works() -> None:
        for there in (False, True):
            seen.clear()
            peer.change(there)
            await eventually_async(lambda there=there: asyncio.sleep(0, upstream.up == there), "it is not noticed")  # type: ignore[misc]
        assert seen == [True]

    async with loops.running("the watch of service metadata", upstream.watch):
        yield works


@loop("health over HTTP")
async def probing(place: Path) -> AsyncIterator[Works]:
    path = place / "health.sock"
    probes = Probes(Routes(place, GatewaySettings(), {}), tuple)
    async with loops.running("health over HTTP", lambda: probes.serve(str(path))):
        yield lambda: page_is_served(path, b"/health/gateway")


@loop("metrics over HTTP")
async def counting(place: Path) -> AsyncIterator[Works]:
    path = place / "metrics.sock"
    page = Page(Routes(place, GatewaySettings(), {}), place)
    async with loops.running("metrics over HTTP", lambda: page.serve(str(path))):
        yield lambda: page_is_served(path, b"/v1/metrics")


@loop("the page")
async def showing(place: Path) -> AsyncIterator[Works]:
    path = place / "page.sock"
    page = TracesPage(MadeSource())
    async with loops.running("the page", lambda: page.serve(str(path))):
        yield lambda: page_is_served(path, b"/api/traces")


async def page_is_served(path: Path, page: bytes) -> None:
    async def asked() -> bool:
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"GET %s HTTP/1.0\r\nHost: localhost\r\n\r\n" % page)
        answer = await reader.read()
        writer.close()
        return answer.startswith(b"HTTP/1.1 200 ")

    await eventually_async(asked, "it is not served")


@loop("the shadow of *")
async def shadowing(place: Path) -> AsyncIterator[Works]:
    """The comparing process ends now and then, and another takes its place."""
    processes: list[Comparing] = []

    async def started(*command: str, stdin: int) -> Comparing:
        await asyncio.sleep(0)
        processes.append(Comparing(os.dup(stdin)))
        return processes[-1]

    ours = Routes(place, GatewaySettings(), {}).upstream("content", place / "content.sock")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(asyncio, "create_subprocess_exec", started)
        shadow = Shadow(shadows_pb2.StartRequest(route="content", address="/x.sock"), ours, place, writes=False)

        async def works() -> None:
            before = len(processes)
            if processes:
                processes[-1].over.set()
            await eventually_async(
                lambda: asyncio.sleep(0, len(processes) > before and shadow in ours.instruments),
                "it is not there again",
            )

        yield works
        for process in processes:
            process.over.set()
        await shadow.close()


class Comparing:
    """A process that ends when it is told to. It has its socket meanwhile."""

    def __init__(self, stdin: int) -> None:
        self.over = asyncio.Event()
        self._stdin = socket.socket(fileno=stdin)

    async def wait(self) -> int:
        await self.over.wait()
        self._stdin.close()
        return 1

    def kill(self) -> None:
        self.over.set()


@loop("the snapshotters' announcements")
async def hearing_of_snapshotters(place: Path) -> AsyncIterator[Works]:
    (place / "gateway").mkdir()
    routes = Routes(place, GatewaySettings(), {})
    upstream = routes["snapshots"].to("")
    announced: list[str] = []

    async def listed(request: object, **how: Any) -> snapshotters_pb2.ListResponse:
        await asyncio.sleep(0)
        return snapshotters_pb2.ListResponse(
            snapshotters=[snapshotters_pb2.Snapshotter(name=name) for name in announced]
        )

    upstream.channel = Channel(List=listed)  # type: ignore[assignment]
    upstream._up.set()
    followed = Snapshotters(routes, place)
    names = map("s{}".format, itertools.count())

    async def works() -> None:
        announced[:] = [next(names)]
        for told in upstream.on_connect:
            told()
        await eventually_async(lambda: asyncio.sleep(0, list(routes.snapshotters) == announced), "it is not heard")

    async with loops.running("the snapshotters' announcements", followed.follow):
        yield works


class NoObjects:
    """metadata that knows of no objects in any backend."""

    def lead_to(self, backends: Sequence[str]) -> None:
        """There is nothing to remember."""

    async def candidates(self, backends: Sequence[str]) -> None:
        await asyncio.sleep(0)

    async def objects(self, backend: str, limit: int = 0) -> Objects:
        await asyncio.sleep(0)
        return Objects()

    async def forget(self, backend: str) -> Objects:
        raise AssertionError(backend)


@loop("the ends of candidates")
async def ending_candidates(place: Path) -> AsyncIterator[Works]:
    (place / "gateway").mkdir()
    replacing = Replacing(Routes(place, GatewaySettings(), {}), NoObjects(), place, look=0.01, again=0.01)
    names = map("c{}".format, itertools.count())

    async def works() -> None:
        name = next(names)
        await replacing.replace(Terms(route="content", name=name, address=f"/{name}.sock", until=time.time() + 0.02))
        await eventually_async(lambda: asyncio.sleep(0, not replacing.candidates), "it does not go")

    async with loops.running("the ends of candidates", replacing.follow):
        yield works


class Peer:
    """A channel to a peer that comes and goes."""

    def __init__(self) -> None:
        self._there = True
        self._changed = asyncio.Event()

    def change(self, there: bool) -> None:
        self._there = there
        self._changed.set()

    async def connections(self) -> AsyncIterator[bool]:
        while True:
            self._changed.clear()
            yield self._there
            await self._changed.wait()

    async def close(self) -> None:
        """Do nothing."""


@loop("giving back memory")
async def giving_back_memory(place: Path) -> AsyncIterator[Works]:
    resident, trimmed = 20 << 20, asyncio.Event()

    async def works() -> None:
        async def given() -> bool:
            nonlocal resident
            resident += 100 << 20
            return trimmed.is_set()

        trimmed.clear()
        await eventually_async(given, "nothing is given back")

    # which never rests, and so looks for no cycles
    async with memory.giving_back(look=0.005, resident=lambda: resident, trim=trimmed.set, used=time.perf_counter):
        yield works


@loop("the collector")
async def collecting(place: Path) -> AsyncIterator[Works]:
    world = gc_graphs.World()
    stores = MemoryRawStores(content=(store_id := await world.database.store_id()), snapshots_overlayfs=store_id)
    stores.before = late(lambda method, name: asyncio.sleep(0))
    collector = Collector(world.database, stores, Config(startup_delay=3600.0), lambda event: None)
    world.database.collector = collector
    numbers = itertools.count(1)

    async def works() -> None:
        raw = world.blob(next(numbers))
        stores.add(raw)

        async def gone() -> bool:
            with contextlib.suppress(errors.NodeError):  # it failed, and says so
                await collector.collect()
            return raw not in stores

        await eventually_async(gone, "nothing is collected")

    async with collector.running():
        yield works


@loop("the resolving of intents")
async def resolving(place: Path) -> AsyncIterator[Works]:
    local = LocalMetadata(MemoryTransactions(), patience=0.5)
    world = await records.World(Life(local)).begin()
    numbers = itertools.count()

    async def works() -> None:
        """The intent is a dead gateway's once another gateway has connected."""
        lost = await world.begin_snapshot(f"k{next(numbers)}")
        world.incarnation = f"gateway-{next(numbers)}"
        await world.connect()
        await eventually_async(
            lambda: asyncio.sleep(0, not local.database.view(lambda tx: schema.INTENTS.has(tx, lost.id))),
            "it is not resolved",
        )

    try:
        yield works
    finally:
        await local.close()


@loop("the progress of a transfer")
async def telling_progress(place: Path) -> AsyncIterator[Works]:
    told: list[Progress] = []
    layer = Descriptor(MANIFEST, "sha256:1", 1 << 30)
    offset = 0

    async def under_way() -> Mapping[str, tuple[int, int]]:
        nonlocal offset
        await asyncio.sleep(0)
        offset += 1
        return {layer.ref: (offset, layer.size)}

    async def done(digest: str) -> bool:
        return False

    async def works() -> None:
        told.clear()
        await eventually_async(lambda: asyncio.sleep(0, told), "nothing is told")

    async with Tracker("image:1", "downloading", told.append, under_way, done, interval=0.005).running() as tracker:
        tracker.add(layer)
        yield works


@loop("the telling of waits")
async def telling_waits(place: Path) -> AsyncIterator[Works]:
    told: list[Progress] = []
    board = Board()
    board.asked("registry:1")

    async def works() -> None:
        told.clear()
        await eventually_async(lambda: asyncio.sleep(0, told), "nobody is told what is waited for")

    async with reporting_waits(board, told.append, after=0.0, interval=0.005, again=0.0):
        yield works


@loop("the telling of what has arrived")
async def telling_arrivals(place: Path) -> AsyncIterator[Works]:
    told: list[int] = []

    async def commit(labels: Mapping[str, str]) -> None:
        raise AssertionError

    ingest = SharedIngest(7, commit)

    class Told:
        async def holder(self, left: object) -> None:
            raise AssertionError

        def arrived(self, have: int, received: int) -> None:
            told.append(have)

        def complete(self) -> None:
            raise AssertionError

    async def works() -> None:
        told.clear()
        await eventually_async(lambda: asyncio.sleep(0, told[:1] == [7]), "who follows is told nothing")

    async with telling(ingest, Told(), lambda: 7, interval=0.001):
        yield works


@loop("the drawing of bars")
async def drawing(place: Path) -> AsyncIterator[Works]:
    ours, theirs = pty.openpty()
    os.set_blocking(ours, False)

    def read() -> bytes:
        with contextlib.suppress(BlockingIOError):
            return os.read(ours, 1 << 16)
        return b""

    async def works() -> None:
        while read():
            continue
        await eventually_async(lambda: asyncio.sleep(0, read()), "nothing is drawn")

    with open(theirs, "w") as file:
        async with Bars(file, "image:1").running(Tally(time.monotonic())):
            yield works
    os.close(ours)


class Late(MemoryStore):
    """A store that answers after a pause, and counts how often it is tidied."""

    tidied = 0

    async def take(self, pieces: Sequence[Piece]) -> None:
        await asyncio.sleep(0)
        await super().take(pieces)

    async def tidy(self) -> None:
        await asyncio.sleep(0)
        self.tidied += 1


@loop("the writing of spans")
async def writing_spans(place: Path) -> AsyncIterator[Works]:
    store = Late()
    intake = Intake(store, 1 << 20, gather=0.01)

    async def works() -> None:
        before = (await store.figures()).spans

        async def there() -> bool:
            await intake.add([span()])  # what comes while a write fails is lost with it
            await asyncio.sleep(0.02)
            return (await store.figures()).spans > before

        await eventually_async(there, "nothing is written")

    async with intake.running():
        yield works


@loop("the tidying of traces")
async def tidying_traces(place: Path) -> AsyncIterator[Works]:
    store = Late()
    intake = Intake(store, 1 << 20, gather=0.0, tidy=0.01)

    async def works() -> None:
        before = store.tidied
        await intake.add([span()])
        await eventually_async(lambda: asyncio.sleep(0, store.tidied > before), "nothing is tidied")

    async with intake.running():
        yield works


@loop("the ends of operations")
async def ending_operations(place: Path) -> AsyncIterator[Works]:
    tracer = Tracer(lucky=True)
    operations = Operations(tracer, began=tracer.began)  # type: ignore[arg-type]

    async def works() -> None:
        call = operations.began(object(), "server", "/containerd.services.images.v1.Images/Create", {}, b"")
        call.ended()
        tracer.pass_(round(2 * IDLE * 1e9))
        await eventually_async(lambda: asyncio.sleep(0, not len(operations)), "an idle operation is still open")

    async with loops.running("the ends of operations", lambda: operations.watch(0.001)):
        yield works


@loop("the changes in etcd")
async def following_etcd(place: Path) -> AsyncIterator[Works]:
    etcd, numbers = MemoryEtcd(), itertools.count()
    store = EtcdTransactions(etcd, "/x", place / "mirror.db", Owner(node="n"), longest=0.02)

    async def works() -> None:
        key = (str(next(numbers)),)
        await etcd.commit([Put(b"/x/records/" + encode(key), b"\0"), Put(b"/x/last", b"")])
        await eventually_async(
            lambda: asyncio.sleep(0, store.view(lambda reader: reader.get(key)) is not None), "it does not follow"
        )

    async with store.running():
        yield works
    await store.close()


@loop("the time of etcd's mirror")
async def keeping_the_mirrors_time(place: Path) -> AsyncIterator[Works]:
    store = EtcdTransactions(MemoryEtcd(), "/x", place / "mirror.db", Owner(node="n"), longest=0.02, noted=0.001)

    def noted() -> str:
        return str(store.file.reader.execute("SELECT value FROM mirror").fetchone())

    async def works() -> None:
        before = noted()
        await eventually_async(lambda: asyncio.sleep(0, noted() != before), "no time is noted")

    async with store.running():
        yield works
    await store.close()


@loop("the health of the records in etcd")
async def reporting_etcd(place: Path) -> AsyncIterator[Works]:
    etcd = MemoryEtcd()
    store = EtcdTransactions(etcd, "/x", place / "mirror.db", Owner(node="n"), longest=0.02)
    server = Server("nowhere:1", Methods([], None, frozenset()), {"": 1})

    async def works() -> None:
        etcd.cut()
        await eventually_async(lambda: asyncio.sleep(0, bool(server.trouble)), "nobody says that it is away")
        etcd.cut(away=False)
        await eventually_async(lambda: asyncio.sleep(0, not server.trouble), "nobody says that it is back")

    async with store.running(), EtcdNode(store, etcd, lambda: None).shown(server):
        yield works
    await store.close()


@loop("the samples of a worker")
async def sampling_a_worker(place: Path) -> AsyncIterator[Works]:
    looks: list[float] = []

    class Noted(Sampler):
        def look(self) -> None:
            super().look()
            looks.append(self.blocked)

    sampler = Noted(os.getpid())

    async def works() -> None:
        before = len(looks)
        await eventually_async(lambda: asyncio.sleep(0, len(looks) > before), "no sample is taken")

    async with loops.running("the samples of a worker", lambda: sampled(sampler)):
        yield works
    sampler.close()


@loop("the fleet")
async def being_in_a_fleet(place: Path) -> AsyncIterator[Works]:
    etcd = MemoryEtcd()
    node = FleetNode(etcd, "/fleet", "a", "a:1", ["default"], quiet=0.001)
    digests = map("sha256:{:064x}".format, itertools.count())

    async def works() -> None:
        node.blobs({(digest := next(digests)): 1})

        async def told() -> bool:
            return await etcd.get(f"/fleet/has/{digest}/a".encode()) is not None

        await eventually_async(told, "etcd is not told")

    async with loops.running("the fleet", node.keep):
        yield works


@loop("the blobs of the fleet")
async def following_blobs(place: Path) -> AsyncIterator[Works]:
    found: dict[str, int] = {}
    digests = map("sha256:{:064x}".format, itertools.count())
    coming: asyncio.Queue[Envelope] = asyncio.Queue()

    class Events:
        async def __aenter__(self) -> Events:
            return self

        async def __aexit__(self, *exc: object) -> None:
            pass

        async def send(self, request: object) -> None:
            await asyncio.sleep(0)

        async def done_sending(self) -> None:
            await asyncio.sleep(0)

        async def __aiter__(self) -> AsyncIterator[Envelope]:
            while True:
                yield await coming.get()

    class Gateway(Channel):
        def stream(self, *how: object) -> Events:
            return Events()

    class Kept:
        def blobs(self, every: Mapping[str, int], more: int = 0) -> None:
            found.update(every)

        def blob(self, digest: str, size: int | None) -> None:
            found[digest] = size or 0

    async def listed(request: object, **how: Any) -> AsyncIterator[Any]:
        await asyncio.sleep(0)
        yield content_pb2.ListContentResponse()

    class Located:
        async def locate(self, digest: object) -> tuple[str, int]:
            await asyncio.sleep(0)
            return "/file", 7

    blobs = SharedBlobs(Gateway(List=listed), {"default": Located()}, Kept(), tick=0.01)  # type: ignore[arg-type,dict-item]

    async def works() -> None:
        async def told() -> bool:
            created = content_events.ContentCreate(digest=(digest := next(digests)), size=7)
            coming.put_nowait(Envelope(namespace="default", topic="/content/create", event=pack(created)))
            await asyncio.sleep(0)
            return not blobs.trouble and found.get(digest) == 7

        await eventually_async(told, "nobody is told")

    async with loops.running("the blobs of the fleet", blobs.follow):
        yield works


@loop("the images and containers of the fleet")
async def telling_records(place: Path) -> AsyncIterator[Works]:
    node = FleetNode(MemoryEtcd(), "/fleet", "a", "a:1", ["default"])
    names = map("docker.io/library/x:{}".format, itertools.count())
    there: list[str] = []
    coming: list[asyncio.Queue[Envelope]] = []

    async def subscribe(request: object, **how: Any) -> AsyncIterator[Envelope]:
        coming.append(queue := asyncio.Queue[Envelope]())
        while True:
            yield await queue.get()

    async def listed(request: object, **how: Any) -> images_pb2.ListImagesResponse:
        await asyncio.sleep(0)
        return images_pb2.ListImagesResponse(images=[images_pb2.Image(name=name) for name in there])

    async def streamed(request: object, **how: Any) -> AsyncIterator[Any]:
        await asyncio.sleep(0)
        yield containers_pb2.ListContainerMessage()

    gateway = Channel(Subscribe=subscribe, List=listed, ListStream=streamed)
    records = Records(gateway, node, quiet=0.001, refresh=0.01, retry=0.001)  # type: ignore[arg-type]

    async def works() -> None:
        there[:] = [name := next(names)]

        async def told() -> bool:
            for queue in coming:
                queue.put_nowait(Envelope(namespace="default", topic="/images/create"))
            await asyncio.sleep(0)
            return node.key("images", "default", name, "a") in node._wanted

        await eventually_async(told, "nobody is told")

    async with loops.running("the images and containers of the fleet", records.keep):
        yield works


@loop("the wanted pulls of the fleet")
async def pulling_what_is_wanted(place: Path) -> AsyncIterator[Works]:
    etcd, orders = MemoryEtcd(), map(str, itertools.count())
    node = FleetNode(etcd, "/fleet", "a", "a:1", ["default"])
    pulled: list[str] = []

    async def pull(namespace: str, image: str, report: object) -> str:
        await asyncio.sleep(0)
        pulled.append(image)
        return "sha256:1"

    wanted = Wanted(node, pull, lambda: 1 << 40, retry=0.001)

    async def works() -> None:
        image = f"docker.io/library/x:{(order := next(orders))}"
        value = f'{{"v":1,"namespace":"default","image":"{image}","begin":true}}'
        await etcd.commit([Put(node.key("wanted", "a", order), value.encode())])

        def done() -> bool:  # where the pull itself has failed, that is told to who wants it
            return image in pulled or b'"failed"' in node._wanted.get(node.key("answers", order, "a"), b"")

        await eventually_async(lambda: asyncio.sleep(0, done()), "it is not pulled")

    async with loops.running("the wanted pulls of the fleet", wanted.keep):
        yield works


@loop("the server of peers")
async def serving_peers(place: Path) -> AsyncIterator[Works]:
    authority = Authority(place / "authority")
    cert, key = authority.issue("a")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = int(taken.getsockname()[1])
    config = FleetConfig(
        listen=f"127.0.0.1:{port}",
        ca=str(authority.certificate),
        cert=str(cert),
        key=str(key),
        etcd=FleetEtcd(endpoints=("127.0.0.1:1",)),
    )
    told: list[str] = []
    door = Door(config, PeerServer({}, Arriving(), UploadLimit()), told.append)
    context = ssl.create_default_context(cafile=authority.certificate)
    context.load_cert_chain(cert, key)

    async def works() -> None:
        async def answers() -> bool:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
            writer.write(b"GET /v2/blobs/x HTTP/1.0\r\n\r\n")
            answer = await reader.readline()
            writer.close()
            return answer.startswith(b"HTTP/1.1 404") and not door.trouble and told[-1] == f"127.0.0.1:{port}"

        await eventually_async(answers, "nothing is served")

    async with loops.running("the server of peers", door.serve):
        yield works


# ------------------------------------------------------------------------------------------ the test


@pytest.mark.parametrize("error", [Unthought, TimeoutError, full], ids=["unthought", "timeout", "full"])
@pytest.mark.parametrize("name", SCENARIOS)
async def test_a_loop_goes_on_whatever_fails(
    name: str, error: Callable[[], Exception], place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each awaitable that it waits for, or a task that it began, fails once; after that the loop does its work.
    Unexpected exceptions are in the log.
    """
    with failing(name, error) as failures:
        async with SCENARIOS[name](place) as works, asyncio.timeout(60):
            seen, unharmed = 0, 0
            while not seen or unharmed < 2:
                await works()
                unharmed = unharmed + 1 if seen == len(failures.raised) else 0
                seen = len(failures.raised)
    if error is Unthought:
        logged = {id(each) for record in caplog.records if record.exc_info for each in chain(record.exc_info[1])}
        assert not [place for place, raised in failures.raised.items() if id(raised) not in logged], (
            "it failed in silence"
        )


def chain(error: BaseException | None) -> list[BaseException]:
    """Return an exception and its causes."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def names() -> set[str]:
    """Return the names of all loops that are started anywhere, with * for variable parts."""
    found = set()
    for path in python_files():
        for node in ast.walk(ast.parse(source)) if "loops." in (source := path.read_text()) else ():
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and ast.unparse(node.func) in ("loops.start", "loops.running", "loops.lasting")
            ):
                assert node.args, f"{path.relative_to(TOP)}:{node.lineno}: a loop's name comes first"
                found.add(pattern(node.args[0]))
    return found


def pattern(name: ast.expr) -> str:
    if isinstance(name, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "*" for part in name.values)
    assert isinstance(name, ast.Constant), f"a loop's name is written where it begins, not {ast.unparse(name)}"
    return str(name.value)


def test_every_loop_has_a_scenario() -> None:
    """Every scenario also has a loop."""
    assert names() == set(SCENARIOS)
