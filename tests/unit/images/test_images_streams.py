"""Streams between a client and a transfer, and the sources and destinations that are read from requests; without a
wire.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
from google.protobuf.any_pb2 import Any as PbAny

from api.containerd.services.streaming.v1.streaming_pb2 import StreamInit
from api.containerd.services.transfer.v1 import transfer_pb2 as pb
from api.containerd.types.transfer import imagestore_pb2, importexport_pb2, registry_pb2
from api.containerd.types.transfer.progress_pb2 import Progress as PbProgress
from api.containerd.types.transfer.streaming_pb2 import Data, WindowUpdate
from services.images import streaming_server
from services.images import transfer_convert as convert
from services.images.distribution.progress import Tracker
from services.images.layers.unpacker import Unpacker
from services.images.logs_stream import PENDING, LogsStream
from services.images.node.leases_remote import Leases
from services.images.streaming_server import BLOCK, WINDOW, ByteSink, ByteSource, StreamingServicer, Streams
from services.images.transfer import Credentials, ImageReference, ImageStore, Progress, Registry, Unpacking
from services.images.transfer_server import TransferServicer
from services.kit import any as kit_any
from services.kit import errors, rpc, tracing
from services.kit.rpc import NAMESPACE, Call
from services.oci.descriptors import Descriptor
from services.oci.media_types import MANIFEST
from services.oci.platforms import Platform
from services.snapshots.diff.workers import Appliers
from tests.spans import attribute, recorded


class Client:
    """The other side of a stream: opened by ``async with``, it sends and receives messages."""

    def __init__(self, streams: Streams, name: str, namespace: str = "ns") -> None:
        self._to_server: asyncio.Queue[PbAny | None] = asyncio.Queue()
        self._call = Call("/x/Stream", {NAMESPACE: namespace})
        self._answers: Any = StreamingServicer(streams).Stream(self._requests(), self._call)
        self.name = name
        self.send(StreamInit(id=name))

    async def _requests(self) -> AsyncIterator[PbAny]:
        while (value := await self._to_server.get()) is not None:
            yield value

    def send(self, message: Any) -> None:
        self._to_server.put_nowait(kit_any.pack(message))

    def done_sending(self) -> None:
        self._to_server.put_nowait(None)

    async def receive(self) -> PbAny | None:
        async with asyncio.timeout(5):
            found: PbAny | None = await anext(self._answers, None)
        return found

    async def get(self, cls: Any) -> Any:
        value = await self.receive()
        assert value is not None
        found = kit_any.unpack(value, cls)
        assert found is not None, value.type_url
        return found

    async def leave(self) -> None:
        await self._answers.aclose()

    async def __aenter__(self) -> Client:
        opened = await self.receive()
        assert opened is not None
        assert opened.type_url == "google.protobuf.Empty"
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.leave()


@pytest.fixture
def streams() -> Streams:
    return Streams()


async def test_a_stream_is_found_by_its_id_in_its_namespace_while_it_is_open(streams: Streams) -> None:
    async with Client(streams, "a"):
        assert streams.get("ns", "a").name == "a"
        for namespace, name in (("other", "a"), ("ns", "b")):
            with pytest.raises(errors.NotFound, match="^not found$"):
                streams.get(namespace, name)
        async with Client(streams, "a", "other"):
            pass
        with pytest.raises(errors.AlreadyExists):
            await Client(streams, "a").receive()
    assert not len(streams)


async def test_the_first_object_must_name_the_stream(streams: Streams) -> None:
    client = Client(streams, "x")
    client._to_server.get_nowait()
    client.send(Data(data=b"x"))
    with pytest.raises(errors.InvalidArgument, match="can't unmarshal type containerd.types.transfer.Data"):
        await client.receive()


async def test_objects_go_both_ways_until_the_service_closes(streams: Streams) -> None:
    """Sent objects arrive before the end, and type URLs are bare names."""
    async with Client(streams, "a") as client:
        stream = streams.get("ns", "a")
        await stream.send(WindowUpdate(update=7))
        value = await client.receive()
        assert value is not None
        assert value.type_url == "containerd.types.transfer.WindowUpdate"
        client.send(Data(data=b"x"))
        client.done_sending()
        answer = asyncio.ensure_future(client.receive())
        received = await stream.receive()
        assert received is not None
        assert Data.FromString(received.value).data == b"x"
        assert await stream.receive() is None
        assert await stream.receive() is None
        await stream.send(WindowUpdate(update=8))
        stream.close()
        assert (await answer) is not None
        assert await client.receive() is None
        with pytest.raises(errors.Cancelled):
            await stream.send(WindowUpdate())
        stream.offer(WindowUpdate())


async def test_a_waiter_for_a_client_that_went_away_gets_an_error(streams: Streams) -> None:
    async with Client(streams, "a") as client:
        stream = streams.get("ns", "a")
        receiving = asyncio.ensure_future(stream.receive())
        for _ in range(streaming_server.SEND_AHEAD):
            await stream.send(WindowUpdate())
        sending = asyncio.ensure_future(stream.send(WindowUpdate()))
        await asyncio.sleep(0)
        await client.leave()
        for waiting in (receiving, sending):
            with pytest.raises(errors.Cancelled):
                await waiting


async def test_a_stream_is_finished_once_offered_objects_are_passed_on(streams: Streams) -> None:
    """A client shows at the end of its transfer what came before the answer."""
    async with Client(streams, "a") as client:
        stream = streams.get("ns", "a")
        for update in (1, 2):
            stream.offer(WindowUpdate(update=update))
        finishing = asyncio.ensure_future(stream.finish())
        for update in (1, 2):
            assert (await client.get(WindowUpdate)).update == update
            assert not finishing.done()
        assert await client.receive() is None
        await finishing


async def test_a_client_that_takes_no_progress_or_goes_away_holds_no_transfer_up() -> None:
    hasty, patient = Streams(drain=0.05), Streams(drain=60)
    async with asyncio.timeout(5):
        async with Client(hasty, "a"):
            stream = hasty.get("ns", "a")
            stream.offer(WindowUpdate())
            await stream.finish()
        async with Client(patient, "b"):
            stream = patient.get("ns", "b")
            stream.offer(WindowUpdate())
            finishing = asyncio.ensure_future(stream.finish())
        await finishing


async def test_an_offer_never_waits_and_is_dropped_when_there_are_too_many(streams: Streams) -> None:
    async with Client(streams, "a"):
        stream = streams.get("ns", "a")
        for _ in range(streaming_server.OFFERED + 5):
            stream.offer(WindowUpdate())
        assert len(stream._sent) == streaming_server.OFFERED


# ---------------------------------------------------------------------------------------------- bytes


async def test_a_source_allows_bytes_ahead_and_more_as_they_are_taken(streams: Streams) -> None:
    async with Client(streams, "a") as client:
        source = ByteSource(streams.get("ns", "a"))
        first = asyncio.ensure_future(anext(source))
        assert (await client.get(WindowUpdate)).update == WINDOW
        half = WINDOW // 2
        client.send(Data(data=bytes(half)))
        assert len(await first) == half
        second = asyncio.ensure_future(anext(source))
        assert (await client.get(WindowUpdate)).update == half
        client.send(Data())  # nothing
        client.send(Data(data=b"x"))
        client.done_sending()
        assert await second == b"x"
        assert [data async for data in source] == []
        assert source.ended


class Receiver:
    """A client like containerd's: it allows BLOCK bytes, and as many again whenever less is left."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.data = b""
        self.messages: list[int] = []
        self.window = 0
        self.ended = False

    async def run(self) -> None:
        while True:
            if self.window < BLOCK:
                self.client.send(WindowUpdate(update=BLOCK))
                self.window += BLOCK
            value = await self.client.receive()
            if value is None:
                self.ended = True
                return
            data = Data.FromString(value.value).data
            self.data += data
            self.window -= len(data)
            assert self.window >= 0, "more than was allowed"
            self.messages.append(len(data))


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 10 * BLOCK, 10 * BLOCK + 77])
async def test_a_sink_is_closed_when_the_client_has_all(streams: Streams, size: int) -> None:
    """It sends no more than is allowed. Its close returns as soon as a receiver like containerd's has taken the last
    byte.
    """
    async with Client(streams, "a") as client:
        receiver = Receiver(client)
        receiving = asyncio.ensure_future(receiver.run())
        sink = ByteSink(streams.get("ns", "a"))
        async with asyncio.timeout(streaming_server.DRAIN_SECONDS / 2):
            for start in range(0, size, 10_000):
                await sink.write(bytes(min(10_000, size - start)))
            await sink.close()
        assert len(receiver.data) == size
        await receiving
        assert receiver.ended


async def test_a_client_that_takes_no_more_does_not_hold_the_end_up() -> None:
    streams = Streams(drain=0.05)
    async with Client(streams, "a") as client:
        sink = ByteSink(streams.get("ns", "a"))
        client.send(WindowUpdate(update=10))
        await sink.write(b"0123456789")
        await sink.close()
        assert (await client.get(Data)).data == b"0123456789"
        assert await client.receive() is None


async def test_a_sink_whose_client_goes_away_fails(streams: Streams) -> None:
    async with Client(streams, "a") as client:
        sink = ByteSink(streams.get("ns", "a"))
        writing = asyncio.ensure_future(sink.write(bytes(BLOCK)))
        await asyncio.sleep(0)
        await client.leave()
        with pytest.raises(errors.Cancelled):
            await writing
        sink.abandon()


# ---------------------------------------------------------------------------------------------- text shown


async def test_text_is_shown_at_once_and_the_stream_ends_with_the_transfer(streams: Streams) -> None:
    """Text does not wait until a block is full."""
    async with Client(streams, "logs") as client:
        shown = LogsStream(ByteSink(streams.get("ns", "logs")))
        client.send(WindowUpdate(update=BLOCK))
        shown("one\n")
        assert (await client.get(Data)).data == b"one\n"
        shown("two\n")
        await shown.close()
        assert (await client.get(Data)).data == b"two\n"
        assert await client.receive() is None
        shown("nobody sees it\n")


async def test_a_slow_client_misses_text_and_is_told_how_much(streams: Streams) -> None:
    """A bounded amount of text waits for it."""
    async with Client(streams, "logs") as client:
        shown = LogsStream(ByteSink(streams.get("ns", "logs")))
        line = "x" * (PENDING // 4 - 1) + "\n"
        for _ in range(7):
            shown(line)
        client.send(WindowUpdate(update=4 * PENDING))
        seen = b""
        while len(seen) < PENDING:
            seen += (await client.get(Data)).data
        shown("last\n")
        while not seen.endswith(b"last\n"):
            seen += (await client.get(Data)).data
        assert seen.decode() == 4 * line + "(3 entries are left out: they were not taken in time)\nlast\n"
        await shown.close()


async def test_a_client_that_takes_nothing_or_goes_away_ends_the_showing() -> None:
    """The transfer waits a moment for a client that takes nothing, and not at all for one that went away."""
    streams = Streams(drain=0.05)
    for leave in (False, True):
        async with Client(streams, "logs") as client:
            shown = LogsStream(ByteSink(streams.get("ns", "logs")))
            shown("text\n")
            if leave:
                await client.leave()
            async with asyncio.timeout(10):
                await shown.close()
            shown("text\n")


# ---------------------------------------------------------------------------------------------- requests


class Pulls:
    """A puller and a pusher that record their requests."""

    def __init__(self) -> None:
        self.asked: list[tuple[object, object]] = []
        self.credentials: Credentials | None = None

    async def pull(self, source: Registry, destination: ImageStore, node: Any, report: Any) -> None:
        self.asked.append((source, destination))
        assert node.headers["containerd-lease"] == "mine"
        report(Progress("Pulling", descriptor=Descriptor(MANIFEST, "d", 1)))
        if source.credentials is not None:
            self.credentials = await source.credentials("r.io", ["Basic"])

    async def push(self, source: ImageStore, destination: Registry, node: Any, report: Any) -> None:
        self.asked.append((source, destination))


def servicer(streams: Streams, pulls: Pulls | None = None, **seconds: Any) -> TransferServicer:
    gateway = rpc.Channel("/nowhere")
    return TransferServicer(
        gateway, Leases(gateway), streams, Appliers("/nowhere"), Unpacker(), pulls, pulls, **seconds
    )


CALL: Mapping[str, str] = {NAMESPACE: "ns", rpc.LEASE: "mine"}


async def transfer(made: TransferServicer, source: Any, destination: Any, progress: str = "") -> None:
    request = pb.TransferRequest(
        source=kit_any.pack(source),
        destination=kit_any.pack(destination),
        options=pb.TransferOptions(progress_stream=progress),
    )
    await made.Transfer(request, Call("/x/Transfer", CALL))


STORE = ImageStore(
    "a:1",
    {"l": "v"},
    (Platform("linux", "arm", "v7", "1", ("f",)),),
    True,
    3,
    (
        ImageReference("p", is_prefix=True, allow_overwrite=True, add_digest=True, skip_named_digest=True),
        ImageReference("q"),
    ),
    (Unpacking(Platform("linux", "amd64"), "s"),),
)


async def test_a_pull_gets_the_clients_options(streams: Streams) -> None:
    """It asks for credentials on the client's stream, and its progress goes to the client's stream."""
    pulls = Pulls()
    registry = registry_pb2.OCIRegistry(
        reference="r.io/a:1",
        resolver=registry_pb2.RegistryResolver(
            auth_stream="auth",
            headers={"h": "v"},
            host_dir="/hosts",
            default_scheme="http",
            http_debug=registry_pb2.TRACE,
        ),
    )
    async with Client(streams, "auth") as auth, Client(streams, "progress") as progress:
        done = asyncio.ensure_future(
            transfer(servicer(streams, pulls), registry, convert.store_to_pb(STORE), "progress")
        )
        question = await auth.get(registry_pb2.AuthRequest)
        assert (question.host, question.reference, list(question.wwwauthenticate)) == ("r.io", "r.io/a:1", ["Basic"])
        auth.send(registry_pb2.AuthResponse(authType=registry_pb2.CREDENTIALS, username="u", secret="s"))
        await done
        assert pulls.credentials == Credentials("u", "s")
        ((source, destination),) = pulls.asked
        assert destination == STORE
        assert isinstance(source, Registry)
        assert (source.reference, source.headers, source.host_dir, source.default_scheme) == (
            "r.io/a:1",
            {"h": "v"},
            "/hosts",
            "http",
        )
        assert source.show_requests is None
        assert source.show_connections is not None
        event = await progress.get(PbProgress)
        assert (event.event, event.desc.digest, event.desc.media_type) == ("Pulling", "d", MANIFEST)
        assert await progress.receive() is None
        assert await auth.receive() is None


@pytest.mark.parametrize(
    ("answer", "credentials"),
    [
        ({"authType": registry_pb2.NONE}, Credentials()),
        ({"authType": registry_pb2.REFRESH, "secret": "t"}, Credentials(secret="t")),
        ({"authType": registry_pb2.HEADER, "secret": "Bearer x"}, Credentials(header="Bearer x")),
    ],
)
def test_kinds_of_credentials(answer: dict[str, Any], credentials: Credentials) -> None:
    assert convert.credentials_from_pb(registry_pb2.AuthResponse(**answer)) == credentials


async def test_a_client_that_does_not_answer_a_question_ends_it(streams: Streams) -> None:
    registry = registry_pb2.OCIRegistry(reference="r", resolver=registry_pb2.RegistryResolver(auth_stream="auth"))
    async with Client(streams, "auth"):
        with pytest.raises(errors.DeadlineExceeded, match="credentials for r.io: the client does not answer"):
            await transfer(servicer(streams, Pulls(), answer=0.05), registry, imagestore_pb2.ImageStore())
    async with Client(streams, "auth") as client:
        client.done_sending()
        with pytest.raises(errors.Cancelled):
            await transfer(servicer(streams, Pulls()), registry, imagestore_pb2.ImageStore())


async def test_a_push_is_the_pushers(streams: Streams) -> None:
    pulls = Pulls()
    await transfer(
        servicer(streams, pulls), imagestore_pb2.ImageStore(name="a:1"), registry_pb2.OCIRegistry(reference="r.io/a:1")
    )
    assert [(str(a), str(b)) for a, b in pulls.asked] == [("Local Image Store (a:1)", "OCI Registry (r.io/a:1)")]


PULL = (registry_pb2.OCIRegistry(reference="r.io/a:1"), imagestore_pb2.ImageStore(name="r.io/a:1"))


class Broken(Pulls):
    """Its pulls fail."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    async def pull(self, source: Registry, destination: ImageStore, node: Any, report: Any) -> None:
        raise self.error


async def test_a_transfer_tells_the_root_of_its_trace_what_it_was(streams: Streams) -> None:
    """The operation, its namespace and image, and how it ended; the span of the operation itself has its kind."""
    with recorded() as spans:
        for pulls in (Pulls(), Broken(errors.NotFound("a")), Broken(errors.Cancelled()), Broken(KeyError())):
            with contextlib.suppress(errors.NodeError, KeyError), tracing.root("the call"):
                await transfer(servicer(streams, pulls), *PULL)
        roots = spans.named("the call")
    assert [attribute(each, "splitd.outcome") for each in roots] == ["ok", "failed", "cancelled", "failed"]
    for each in roots:
        assert attribute(each, "splitd.operation") == "pull"
        assert attribute(each, "splitd.namespace") == "ns"
        assert attribute(each, "container.image.name") == "r.io/a:1"
    assert len(spans.named("images.pull")) == len(roots)


async def test_an_archives_bytes_and_the_time_of_its_client(streams: Streams) -> None:
    """Both directions: an echo's source is counted, and the client that sends late is waited for."""
    with recorded() as spans:
        async with Client(streams, "in") as sends, Client(streams, "out") as takes:
            echo = asyncio.ensure_future(
                transfer(
                    servicer(streams),
                    importexport_pb2.ImageImportStream(stream="in"),
                    importexport_pb2.ImageExportStream(stream="out"),
                )
            )
            takes.send(WindowUpdate(update=1 << 20))
            assert await sends.get(WindowUpdate)
            await asyncio.sleep(0.05)
            sends.send(Data(data=b"x" * 1000))
            sends.done_sending()
            assert (await takes.get(Data)).data == b"x" * 1000
            takes.send(WindowUpdate(update=1 << 20))
            await echo
        span = spans.one("images.transfer")
    assert attribute(span, "splitd.bytes") == 1000
    assert float(str(attribute(span, "splitd.time.client_ms"))) >= 49


async def test_a_failed_transfer_names_its_trace(streams: Streams, caplog: pytest.LogCaptureFixture) -> None:
    """In the log, once, with the cause, and to the client."""
    with recorded(), tracing.root("the call") as root:
        with pytest.raises(errors.Unavailable) as failed:
            await transfer(servicer(streams, Broken(errors.Unavailable("r.io: no connection"))), *PULL)
        trace = root.ref().partition("-")[0]
    assert caplog.messages == [
        f"pull of r.io/a:1 in namespace ns failed: r.io: no connection: unavailable (UNAVAILABLE; trace {trace})"
    ]
    assert failed.value.trailers == ((rpc.TRACE, trace),)
    caplog.clear()
    with pytest.raises(errors.Unavailable) as failed:  # without tracing
        await transfer(servicer(streams, Broken(errors.Unavailable("r.io"))), *PULL)
    assert caplog.messages == ["pull of r.io/a:1 in namespace ns failed: r.io: unavailable (UNAVAILABLE)"]
    assert failed.value.trailers == ()


@pytest.mark.parametrize(
    ("source", "destination"),
    [
        (registry_pb2.OCIRegistry(), imagestore_pb2.ImageStore()),
        (imagestore_pb2.ImageStore(), registry_pb2.OCIRegistry()),
        (registry_pb2.OCIRegistry(), registry_pb2.OCIRegistry()),
        (Data(), imagestore_pb2.ImageStore()),
        (imagestore_pb2.ImageStore(), Data()),
    ],
)
async def test_unknown_kinds_of_transfers_are_unimplemented(streams: Streams, source: Any, destination: Any) -> None:
    """The error has containerd's words; without a puller and a pusher, pulls and pushes are unimplemented too."""
    with pytest.raises(
        errors.Unimplemented,
        match=(
            f"^method Transfer not implemented for {source.DESCRIPTOR.full_name} to {destination.DESCRIPTOR.full_name}$"
        ),
    ):
        await transfer(servicer(streams), source, destination)


@pytest.mark.parametrize(
    ("source", "destination", "progress"),
    [
        (importexport_pb2.ImageImportStream(stream="s"), imagestore_pb2.ImageStore(), ""),
        (imagestore_pb2.ImageStore(), importexport_pb2.ImageExportStream(stream="s"), ""),
        (
            registry_pb2.OCIRegistry(resolver=registry_pb2.RegistryResolver(auth_stream="s")),
            imagestore_pb2.ImageStore(),
            "",
        ),
        (imagestore_pb2.ImageStore(), imagestore_pb2.ImageStore(), "s"),
    ],
)
async def test_a_stream_that_is_not_open_is_not_found(
    streams: Streams, source: Any, destination: Any, progress: str
) -> None:
    with pytest.raises(errors.NotFound, match="^not found$"):
        await transfer(servicer(streams), source, destination, progress)


async def test_malformed_ends_are_the_clients_fault(streams: Streams) -> None:
    request = pb.TransferRequest(source=PbAny(type_url="containerd.types.transfer.ImageStore", value=b"\xff\xff"))
    with pytest.raises(errors.InvalidArgument, match="malformed containerd.types.transfer.ImageStore"):
        await servicer(streams).Transfer(request, Call("/x/Transfer", CALL))


async def test_an_echo_gives_the_bytes_back(streams: Streams) -> None:
    """containerd tests both streams by an import to an export."""
    async with Client(streams, "in") as source, Client(streams, "out") as target:
        receiver = Receiver(target)
        receiving = asyncio.ensure_future(receiver.run())
        done = asyncio.ensure_future(
            transfer(
                servicer(streams),
                importexport_pb2.ImageImportStream(stream="in"),
                importexport_pb2.ImageExportStream(stream="out"),
            )
        )
        data = bytes(range(256)) * 500
        for start in range(0, len(data), 30_000):
            source.send(Data(data=data[start : start + 30_000]))
        source.done_sending()
        await done
        await receiving
        assert receiver.data == data
        while await source.receive() is not None:  # window updates, and then the end
            continue


# ---------------------------------------------------------------------------------------------- progress


async def test_jobs_are_told_as_they_get_on() -> None:
    """A job is waiting, then it has an offset, then it is complete or extracted; each is below its parent."""
    root, layer, old = (
        Descriptor(t, f"sha256:{n}", 100)
        for t, n in ((MANIFEST, "1"), ("application/vnd.oci.image.layer.v1.tar", "2"), ("x", "3"))
    )
    active: dict[str, tuple[int, int]] = {}
    there: set[str] = set()
    told: list[Progress] = []

    async def under_way() -> Mapping[str, tuple[int, int]]:
        return active

    async def done(digest: str) -> bool:
        return digest in there

    tracker = Tracker("image:1", "downloading", told.append, under_way, done, interval=1000)
    with contextlib.suppress(errors.NodeError):
        async with tracker.running():
            tracker.add(root)
            tracker.children(root, [layer, old])
            tracker.add(layer)
            tracker.exists(old)
            active[layer.ref] = (50, 100)
            there.add(root.digest)
            await tracker._update()
            await tracker._update()
            del active[layer.ref]
            there.add(layer.digest)
            await tracker._update()
            tracker.extracting(layer, 0)
            await tracker._update()
            tracker.extracting(layer, 100)
    assert [(p.event, p.name, p.parents, p.progress, p.total) for p in told] == [
        ("waiting", root.ref, ("image:1",), 0, 100),
        ("waiting", layer.ref, (root.ref,), 0, 100),
        ("waiting", old.ref, (root.ref,), 0, 100),
        ("already exists", old.ref, (), 100, 100),
        ("complete", root.ref, ("image:1",), 100, 100),
        ("downloading", layer.ref, (root.ref,), 50, 100),
        ("complete", layer.ref, (root.ref,), 100, 100),
        ("extracting", layer.ref, (root.ref,), 0, 100),
        ("extracted", layer.ref, (root.ref,), 100, 100),
    ]
    assert all(p.descriptor is not None for p in told)


async def test_what_has_not_changed_is_not_told_again() -> None:
    """A layer that is being unpacked has no news until it is."""
    layer, told = Descriptor("application/vnd.oci.image.layer.v1.tar", "sha256:1", 100), list[Progress]()

    async def none() -> Mapping[str, tuple[int, int]]:
        return {}

    async def done(_: str) -> bool:
        return True

    tracker = Tracker("image:1", "downloading", told.append, none, done)
    tracker.add(layer)
    tracker.extracting(layer, 0)
    for _ in range(3):
        await tracker._update()
    assert [each.event for each in told] == ["waiting", "complete", "extracting"]


async def test_an_undecodable_object_ends_the_waiting_transfer(streams: Streams) -> None:
    """The bytes of the object do not match its type: a transfer that sends bytes, or receives them, gets an error and
    does not wait for ever.
    """
    junk = {cls: PbAny(type_url=cls.DESCRIPTOR.full_name, value=b"\xff") for cls in (WindowUpdate, Data)}
    async with Client(streams, "down") as client:
        sink = ByteSink(streams.get("ns", "down"))
        client._to_server.put_nowait(junk[WindowUpdate])
        async with asyncio.timeout(15):
            with pytest.raises(errors.InvalidArgument, match="malformed containerd.types.transfer.WindowUpdate"):
                await sink.write(bytes(BLOCK))
        sink.abandon()
    async with Client(streams, "up") as client:
        source = ByteSource(streams.get("ns", "up"))
        client._to_server.put_nowait(junk[Data])
        async with asyncio.timeout(15):
            with pytest.raises(errors.InvalidArgument, match="malformed containerd.types.transfer.Data"):
                await anext(source)


async def test_a_stream_whose_objects_cannot_be_taken_is_lost(streams: Streams) -> None:
    """The requests of its call fail: a receiver gets the error that the client is gone, though the call itself has not
    ended yet.
    """

    async def requests() -> AsyncIterator[PbAny]:
        raise errors.InvalidArgument("malformed google.protobuf.Any")
        yield PbAny()

    stream = streaming_server.Stream("ns", "a")
    taking = asyncio.ensure_future(stream.take(requests()))
    async with asyncio.timeout(15):
        with pytest.raises(errors.Cancelled, match="was closed by the client"):
            await stream.receive()
    with pytest.raises(errors.InvalidArgument):
        await taking
