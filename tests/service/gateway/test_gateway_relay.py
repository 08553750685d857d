"""The relay in front of a service that comes, goes, hangs and drains; both on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from api.containerd.services.content.v1 import content_pb2, content_stubs
from api.containerd.services.images.v1 import images_pb2, images_stubs
from api.containerd.services.tasks.v1 import tasks_pb2, tasks_stubs
from api.grpc.health.v1 import health_pb2, health_stubs
from bench.hostile import Raw
from gateway.config import Config
from gateway.health import NodeHealth
from gateway.relay import Relay
from gateway.routes import Routes
from services.kit import errors, rpc
from services.wire import frames, limits, messages
from services.wire.events import Data, GoingAway, Ready, Trailers
from services.wire.limits import Limits
from services.wire.server import WireServer
from tests.support import eventually_async, within

IMAGES = images_stubs.IMAGES
TASKS = tasks_stubs.TASKS
BIG = 5 << 20
CONTENT = content_stubs.CONTENT


class Images:
    """A service that counts its calls; ``name`` sets its behaviour."""

    SERVICE = IMAGES

    def __init__(self) -> None:
        self.calls: list[rpc.Call] = []
        self.hang = asyncio.Event()
        self.gone = 0

    async def Get(self, request: images_pb2.GetImageRequest, call: rpc.Call) -> images_pb2.GetImageResponse:
        self.calls.append(call)
        if request.name == "absent":
            raise errors.NotFound('image "absent"', trailers=(("grpc-status-details-bin", b"\x01"), ("extra", "x")))
        if request.name == "hang" and len(self.calls) == 1:
            await self.hang.wait()
        if request.name == "busy":
            end = time.perf_counter() + 0.001
            while time.perf_counter() < end:
                pass
        if request.name == "big":
            return images_pb2.GetImageResponse(image=images_pb2.Image(name="x" * BIG))
        if request.name == "long":
            try:
                await self.hang.wait()
            except asyncio.CancelledError:
                self.gone += 1
                raise
        return images_pb2.GetImageResponse(image=images_pb2.Image(name=request.name))

    async def Create(self, request: images_pb2.CreateImageRequest, call: rpc.Call) -> images_pb2.CreateImageResponse:
        self.calls.append(call)
        await self.hang.wait()
        return images_pb2.CreateImageResponse()


class Tasks:
    """A service whose Wait lasts until it is told to end."""

    SERVICE = TASKS

    def __init__(self, done: asyncio.Event) -> None:
        self.waits = 0
        self._done = done

    async def Wait(self, request: tasks_pb2.WaitRequest, call: rpc.Call) -> tasks_pb2.WaitResponse:
        self.waits += 1
        await self._done.wait()
        return tasks_pb2.WaitResponse(exit_status=7)


class RawContent:
    """Content that answers Delete, which only a raw call may reach."""

    SERVICE = CONTENT

    async def Info(self, request: content_pb2.InfoRequest, call: rpc.Call) -> content_pb2.InfoResponse:
        return content_pb2.InfoResponse(info=content_pb2.Info(digest="raw"))

    async def Read(
        self, request: content_pb2.ReadContentRequest, call: rpc.Call
    ) -> AsyncIterator[content_pb2.ReadContentResponse]:
        for i in range(3):
            yield content_pb2.ReadContentResponse(offset=i)


@contextlib.asynccontextmanager
async def gateway(place: Path, *, internal: bool = False, **settings: Any) -> AsyncIterator[rpc.Channel]:
    """A relay on ``place/g.sock`` in front of the sockets in ``place``, and a channel to it."""
    config = Config(**settings)
    routes = Routes(place, config, {})
    watches = [asyncio.ensure_future(u.watch()) for u in routes.upstreams]
    try:
        async with (
            rpc.serving(place / "g.sock", [], relay=Relay(routes, config, internal=internal)),
            rpc.Channel(place / "g.sock", "gateway") as channel,
        ):
            yield channel
    finally:
        for watch in watches:
            watch.cancel()
        await asyncio.gather(*watches, return_exceptions=True)


async def test_headers_and_trailers_pass_but_for_the_transports_own(place: Path) -> None:
    """All headers and trailers that the gateway does not own are relayed in both directions, also binary trailers of
    errors.
    """
    images = Images()
    async with rpc.serving(place / "images.sock", [images]), gateway(place) as channel:
        client = channel.client(IMAGES)
        headers: dict[str, str | bytes] = {
            "containerd-namespace": "n",
            "containerd-lease": "l",
            "x-own": "1",
            "data-bin": b"\x00\xff",
        }
        answer = await client.Get(images_pb2.GetImageRequest(name="a"), headers=headers)
        assert answer.image.name == "a"
        assert {k: images.calls[0].headers[k] for k in headers} == headers
        with pytest.raises(errors.NotFound, match=r'^image "absent": not found$') as caught:
            await client.Get(images_pb2.GetImageRequest(name="absent"))
        assert dict(caught.value.trailers) == {"grpc-status-details-bin": b"\x01", "extra": "x"}


async def test_each_call_passes_with_its_own_lease(place: Path) -> None:
    """Calls that differ in the lease only are decided about together. Each has its own at the service, or none."""
    service = Images()
    leases = ["one", "two", "", "one", "x" * 300, "three"]
    async with rpc.serving(place / "images.sock", [service]), gateway(place) as channel:
        for lease in leases:
            headers = {"containerd-namespace": "n", **({rpc.LEASE: lease} if lease else {})}
            await channel.client(IMAGES).Get(images_pb2.GetImageRequest(name="n"), headers=headers)
    assert [call.lease for call in service.calls] == leases


async def test_a_deadline_passes_through_and_none_becomes_the_gateways_stall(place: Path) -> None:
    """No unary call can hang: each may stand still for as long as the gateway says."""
    images = Images()
    async with rpc.serving(place / "images.sock", [images]), gateway(place, unary_timeout=3.0) as channel:
        await channel.client(IMAGES).Get(images_pb2.GetImageRequest(name="a"), timeout=2.0)
        await channel.client(IMAGES).Get(images_pb2.GetImageRequest(name="a"), timeout=None)
    assert [call.deadline is not None for call in images.calls] == [True, False]
    assert [call.headers[rpc.STALL] for call in images.calls] == ["3", "3"]


async def test_a_call_is_held_until_its_service_comes(place: Path) -> None:
    """A restart of a service delays its callers a moment and fails no call."""
    async with gateway(place) as channel:
        asking = asyncio.ensure_future(channel.client(IMAGES).Get(images_pb2.GetImageRequest(name="a")))
        # a call after it was answered: it has come, and is held
        await channel.client(health_stubs.HEALTH).Check(health_pb2.HealthCheckRequest())
        assert not asking.done()
        async with rpc.serving(place / "images.sock", [Images()]):
            assert (await asyncio.wait_for(asking, 5)).image.name == "a"


async def test_a_service_that_just_starts_is_not_called_broken(place: Path) -> None:
    """A call for the plugins of a starting node reports each service when it is there, or when its time is over."""
    routes = Routes(place, Config(hold=5.0), {})
    health, upstream = NodeHealth(routes), routes["images"].to("")
    watch = asyncio.ensure_future(upstream.watch())
    try:
        asking = asyncio.ensure_future(health.state("images", rpc.Call("", {})))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not asking.done()
        async with rpc.serving(place / "images.sock", [Images()]):
            assert await asyncio.wait_for(asking, 5) == (True, "")
        upstream.hold = 0.5
        healthy, trouble = await health.state("images", rpc.Call("", {}))
        assert not healthy
        assert trouble.startswith("service images has been unreachable for ")
    finally:
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)


async def test_a_service_that_stays_away_is_unavailable_by_name_and_then_at_once(place: Path) -> None:
    """The first callers wait for the hold, later ones do not; calls to other services are not affected."""
    async with rpc.serving(place / "tasks.sock", [Tasks(asyncio.Event())]), gateway(place, hold=1.5) as channel:
        with pytest.raises(errors.Unavailable, match="service images has been unreachable for "):
            await channel.client(IMAGES).Get(images_pb2.GetImageRequest(name="a"))
        with within(1.0), pytest.raises(errors.Unavailable, match="service images"):
            await channel.client(IMAGES).Get(images_pb2.GetImageRequest(name="a"))
        with pytest.raises(errors.Unimplemented):
            await channel.client(TASKS).List(tasks_pb2.ListTasksRequest())


async def test_an_interrupted_read_is_asked_again_and_an_interrupted_change_is_not(place: Path) -> None:
    """Get may be repeated; only the caller can know about Create."""
    async with gateway(place) as channel:
        client = channel.client(IMAGES)
        first, second = Images(), Images()
        async with rpc.serving(place / "images.sock", [first], grace=0.0):
            reading = asyncio.ensure_future(client.Get(images_pb2.GetImageRequest(name="hang")))

            async def asked() -> bool:
                return len(first.calls) == 1

            await eventually_async(asked)
            changing = asyncio.ensure_future(client.Create(images_pb2.CreateImageRequest()))

            async def both() -> bool:
                return len(first.calls) == 2

            await eventually_async(both)
        second.calls.append(first.calls[0])  # so that its first Get does not hang
        async with rpc.serving(place / "images.sock", [second]):
            with pytest.raises(errors.Unavailable):
                await asyncio.wait_for(changing, 5)
            assert (await asyncio.wait_for(reading, 5)).image.name == "hang"
        assert len(second.calls) == 2


async def test_a_wait_outlives_the_service_that_it_waits_in(place: Path) -> None:
    """A drained service ends its Waits; the gateway repeats them to its successor, and the client gets one answer."""
    done = asyncio.Event()
    async with gateway(place) as channel:
        first, second = Tasks(done), Tasks(done)
        async with rpc.serving(place / "tasks.sock", [first]):
            waiting = asyncio.ensure_future(channel.client(TASKS).Wait(tasks_pb2.WaitRequest(), timeout=None))

            async def asked() -> bool:
                return first.waits == 1

            await eventually_async(asked)
        async with rpc.serving(place / "tasks.sock", [second]):

            async def asked_again() -> bool:
                return second.waits == 1

            await eventually_async(asked_again)
            done.set()
            assert (await asyncio.wait_for(waiting, 5)).exit_status == 7


async def test_raw_calls_are_for_the_internal_socket(place: Path) -> None:
    """The header of a raw call selects the backend on the internal socket, and is refused on the public one."""
    headers = {rpc.RAW: "content"}
    async with rpc.serving(place / "content.sock", [RawContent()]):
        async with gateway(place, internal=True) as channel:
            assert (await channel.client(CONTENT).Info(content_pb2.InfoRequest(), headers=headers)).info.digest == "raw"
            read = [
                m.offset async for m in channel.client(CONTENT).Read(content_pb2.ReadContentRequest(), headers=headers)
            ]
            assert read == [0, 1, 2]
            with pytest.raises(errors.NotFound, match="backend nowhere"):
                await channel.client(CONTENT).Info(content_pb2.InfoRequest(), headers={rpc.RAW: "nowhere"})
            with pytest.raises(errors.NotFound, match="backend metadata"):
                await channel.client(CONTENT).Info(content_pb2.InfoRequest(), headers={rpc.RAW: "metadata"})
        async with gateway(place) as channel:
            with pytest.raises(errors.PermissionDenied, match=rpc.RAW):
                await channel.client(CONTENT).Info(content_pb2.InfoRequest(), headers=headers)


async def test_an_unserved_service_is_unimplemented_by_name(place: Path) -> None:
    """The error names the service."""
    async with gateway(place) as channel:
        with pytest.raises(errors.Unimplemented, match=r"containerd\.services\.mounts\.v1\.Mounts"):
            await channel.unary("/containerd.services.mounts.v1.Mounts/Info", b"", {}, 5.0)


# ---------------------------------------------------------------------------------------------- one client's excess; on
# the wire, whose client we drive frame by frame


GET = f"/{IMAGES.full_name}/Get"


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPLITD_GRPC_TRANSPORT", "wire")


def get(name: str) -> bytes:
    return images_pb2.GetImageRequest(name=name).SerializeToString()


async def heard(raw: Raw, kind: type[Any]) -> Any:
    return (await asyncio.to_thread(raw.until, lambda raw: raw.of(kind)))[0]


@pytest.mark.usefixtures("wire")
async def test_resets_are_counted_where_they_come_in(place: Path) -> None:
    """Clients cancel many calls, together more than any one may: the shared connection to the service is not
    affected.
    """
    images = Images()
    async with rpc.serving(place / "images.sock", [images], relayed=True) as server, gateway(place) as channel:
        await channel.client(IMAGES).Get(images_pb2.GetImageRequest(name="a"))
        assert isinstance(server, WireServer)
        links = set(server.links)
        for count in range(500, 3001, 500):
            with Raw(place / "g.sock") as raw:
                await heard(raw, Ready)
                calls = [raw.call(GET, get("long")) for _ in range(500)]
                raw.flush()

                async def asked(count: int = count) -> bool:
                    return len(images.calls) == count + 1

                await eventually_async(asked)
                for call in calls:
                    raw.connection.reset(call, frames.Code.CANCEL)
                raw.flush()

                async def gone(count: int = count) -> bool:
                    return images.gone == count

                await eventually_async(gone)
        await channel.client(IMAGES).Get(images_pb2.GetImageRequest(name="a"))
        assert set(server.links) == links


@pytest.mark.usefixtures("wire")
async def test_a_call_that_is_reset_at_once_never_reaches_its_service(place: Path) -> None:
    """So a client that opens and resets streams until it is ended delays no other client's calls there."""
    images = Images()
    async with rpc.serving(place / "images.sock", [images], relayed=True), gateway(place) as channel:
        await channel.client(IMAGES).Get(images_pb2.GetImageRequest(name="a"))
        with Raw(place / "g.sock") as raw:
            await heard(raw, Ready)
            raw.resets(20_000, GET, get("a"))
            await asyncio.to_thread(raw.flush)
            assert (await heard(raw, GoingAway)).code == frames.Code.ENHANCE_YOUR_CALM
        assert len(images.calls) < 500


@pytest.mark.usefixtures("wire")
async def test_a_client_with_many_calls_does_not_delay_others(place: Path) -> None:
    """Three clients make a thousand calls each, which take their service three seconds. The first call of the next
    client is answered among the first of those that wait.
    """
    images = Images()
    async with rpc.serving(place / "images.sock", [images], relayed=True), gateway(place) as channel:
        await channel.client(IMAGES).Get(images_pb2.GetImageRequest(name="a"))
        with contextlib.ExitStack() as stack:
            for _ in range(3):
                raw = stack.enter_context(Raw(place / "g.sock"))
                await heard(raw, Ready)
                for _ in range(1000):
                    raw.call(GET, get("busy"))
                await asyncio.to_thread(raw.flush)
            before = len(images.calls)
            await channel.client(IMAGES).Get(images_pb2.GetImageRequest(name="a"))
            assert len(images.calls) - before < 1000
            await asyncio.to_thread(raw.until, lambda raw: len(raw.statuses()) == 1000, 60)


@pytest.mark.usefixtures("wire")
async def test_calls_that_hang_keep_their_client_from_no_others(place: Path) -> None:
    """Hanging calls count as calls under way, so the client's next calls wait, but only for a moment."""
    images = Images()
    async with rpc.serving(place / "images.sock", [images], relayed=True), gateway(place) as channel:
        client = channel.client(IMAGES)
        hanging = [asyncio.ensure_future(client.Get(images_pb2.GetImageRequest(name="long"))) for _ in range(200)]

        async def asked() -> bool:
            return len(images.calls) == 200

        await eventually_async(asked)
        await asyncio.wait_for(client.Get(images_pb2.GetImageRequest(name="a")), 15)
        images.hang.set()
        await asyncio.gather(*hanging)


@pytest.mark.usefixtures("wire")
async def test_large_unread_answers_do_not_delay_other_clients(place: Path) -> None:
    """Its further calls wait until it reads. The service, which has one connection for all clients, answers the others,
    and holds little memory.
    """
    images = Images()
    async with rpc.serving(place / "images.sock", [images], relayed=True) as server, gateway(place) as channel:
        client = channel.client(IMAGES)
        await client.Get(images_pb2.GetImageRequest(name="a"))
        with contextlib.ExitStack() as stack:
            deaf = [stack.enter_context(Raw(place / "g.sock")) for _ in range(3)]
            for raw in deaf:
                await heard(raw, Ready)
                for _ in range(20):
                    raw.call(GET, get("big"))
                raw.flush()
            for raw in deaf:
                await asyncio.to_thread(raw.until, lambda raw: raw.of(Data))
            for _ in range(5):
                assert len((await client.Get(images_pb2.GetImageRequest(name="big"))).image.name) == BIG
            assert isinstance(server, WireServer)
            (link,) = server.links
            assert sum(stream.queued for stream in link.connection.streams.values()) <= len(deaf) * (
                Limits().untaken + BIG
            )

            def take(raw: Raw) -> bool:
                for event in raw.of(Data):
                    raw.connection.consumed(event.stream, len(event.chunk))
                raw.events = [event for event in raw.events if not isinstance(event, Data)]
                raw.flush()
                return len(raw.of(Trailers)) == 20

            for raw in deaf:
                await asyncio.to_thread(raw.until, take, 60)
                assert {event.head.code for event in raw.of(Trailers)} == {0}


@pytest.mark.usefixtures("wire")
async def test_half_a_request_has_its_time_and_its_room(place: Path) -> None:
    """The gateway already limits them, for each client separately: the service would have only one account for all."""
    before = limits.configured()
    limits.configure(Limits(request=0.5, assembling=100_000))
    try:
        async with rpc.serving(place / "images.sock", [Images()], relayed=True), gateway(place) as channel:
            with Raw(place / "g.sock") as raw:
                await heard(raw, Ready)
                half = raw.open(GET)
                raw.connection.send(half, messages.PREFIX.pack(0, 1000), b"x")
                raw.flush()
                head = (await asyncio.to_thread(raw.until, Raw.statuses))[0]
                assert (head.code, head.message) == (
                    4,
                    f"the request of {GET} did not come within 0.5 s: context deadline exceeded",
                )
                raw.events.clear()
                for _ in range(3):
                    raw.connection.send(raw.open(GET), messages.PREFIX.pack(0, 60_000), b"x" * 50_000)
                raw.flush()
                head = (await asyncio.to_thread(raw.until, Raw.statuses))[0]
                assert head.code == 8
                assert head.message.startswith("more than 100000 bytes of incomplete messages on one connection")
                await channel.client(IMAGES).Get(images_pb2.GetImageRequest(name="a"))
    finally:
        limits.configure(before)
