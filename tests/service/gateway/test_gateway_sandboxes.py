"""containerd.services.sandbox.v1.Controller through the gateway: its calls reach the controller that they name, by
either transport, and its candidates have the sandboxes that they made.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.any_pb2 import Any as PbAny
from google.protobuf.message import Message

from api.containerd.events import sandbox_pb2 as events
from api.containerd.services.sandbox.v1 import sandbox_pb2 as pb
from api.containerd.services.sandbox.v1 import sandbox_stubs
from api.containerd.types.sandbox_pb2 import Sandbox
from gateway.candidates import Terms
from gateway.config import Config, ProxyPlugin
from gateway.events import Exchange
from gateway.relay import Relay
from gateway.replacing import Replacing
from gateway.routes import Routes
from gateway.sandboxes import SandboxControllerServicer
from gateway.store import Objects
from services.kit import errors, rpc
from services.kit.rpc import LEASE, NAMESPACE, Call
from tests.sandboxer import Sandboxer
from tests.support import eventually_async

pytestmark = pytest.mark.once

CONTROLLER = sandbox_stubs.CONTROLLER
HEADERS = {NAMESPACE: "n"}


@pytest.fixture(autouse=True, params=["wire", "grpcio"])
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The transport that carries all calls."""
    monkeypatch.setenv("SPLITD_GRPC_TRANSPORT", request.param)


@pytest.fixture
def mine(tmp_path: Path) -> Iterator[Sandboxer]:
    sandboxer = Sandboxer(tmp_path / "mine")
    yield sandboxer
    sandboxer.end()


@pytest.fixture
def theirs(tmp_path: Path) -> Iterator[Sandboxer]:
    sandboxer = Sandboxer(tmp_path / "theirs")
    yield sandboxer
    sandboxer.end()


class NoRecords:
    """metadata, as far as candidates need it."""

    def lead_to(self, backends: Sequence[str]) -> None:
        assert not backends

    async def candidates(self, backends: Sequence[str]) -> None:
        assert not backends

    async def objects(self, backend: str, limit: int = 0) -> Objects:
        raise AssertionError(backend)

    async def forget(self, backend: str) -> Objects:
        raise AssertionError(backend)


class Gateway:
    """A gateway's calls on ``place/g.sock``, with the sandbox controller ``mine`` at ``place/mine.sock``."""

    def __init__(self, place: Path, channel: rpc.Channel, replacing: Replacing, exchange: Exchange) -> None:
        self.place = place
        self.controller: Any = channel.client(CONTROLLER)
        self.replacing = replacing
        self.exchange = exchange

    async def create(self, id_: str, **fields: Any) -> pb.ControllerCreateResponse:
        request = pb.ControllerCreateRequest(sandbox_id=id_, sandboxer="mine", **fields)
        answer: pb.ControllerCreateResponse = await self.controller.Create(request, headers=HEADERS)
        return answer

    async def state(self, id_: str) -> str:
        request = pb.ControllerStatusRequest(sandbox_id=id_, sandboxer="mine")
        return str((await self.controller.Status(request, headers=HEADERS)).state)

    async def shutdown(self, id_: str) -> None:
        await self.controller.Shutdown(pb.ControllerShutdownRequest(sandbox_id=id_, sandboxer="mine"), headers=HEADERS)

    async def stands(self, **more: Any) -> None:
        terms = Terms(route="sandbox.mine", name="t", address=str(self.place / "theirs.sock"), **more)
        candidate, _ = await self.replacing.replace(terms)
        upstream = self.replacing.upstream(candidate)
        assert upstream is not None
        await upstream.connected(10.0)


@contextlib.asynccontextmanager
async def gateway(place: Path, *, timeout: float = 10.0) -> AsyncIterator[Gateway]:
    (place / "gateway").mkdir(exist_ok=True)
    config = Config(hold=0.5, candidate_hold=0.5)
    routes = Routes(place, config, {"mine": ProxyPlugin(type="sandbox", address=str(place / "mine.sock"))})
    exchange = Exchange()
    sandboxes = SandboxControllerServicer(routes, exchange, place, timeout=timeout)
    replacing = Replacing(routes, NoRecords(), place, notes={"sandbox": sandboxes.notes})
    relay = Relay(routes, config, internal=False)
    watches = [asyncio.ensure_future(upstream.watch()) for upstream in routes.upstreams]
    routes.added.append(lambda upstream: watches.append(asyncio.ensure_future(upstream.watch())))
    try:
        async with (
            rpc.serving(place / "g.sock", [sandboxes], relay=relay),
            rpc.Channel(place / "g.sock", "gateway") as channel,
        ):
            yield Gateway(place, channel, replacing, exchange)
    finally:
        for watch in watches:
            watch.cancel()
        await asyncio.gather(*watches, return_exceptions=True)


async def published(subscription: Any, count: int) -> list[tuple[str, str, Message]]:
    """Namespace, topic and message of the next events."""
    found: list[tuple[str, str, Message]] = []
    kinds = {"create": events.SandboxCreate, "start": events.SandboxStart, "exit": events.SandboxExit}
    async with asyncio.timeout(10):
        while len(found) < count:
            envelope = await anext(subscription)
            kind = kinds[envelope.topic.rpartition("/")[2]]
            assert envelope.event.type_url == kind.DESCRIPTOR.full_name
            found.append((envelope.namespace, envelope.topic, kind.FromString(envelope.event.value)))
    return found


async def test_the_life_of_a_sandbox(place: Path, mine: Sandboxer) -> None:
    """Each call reaches the controller in the client's namespace, and its answer the client; the gateway publishes what
    containerd does.
    """
    async with rpc.serving(place / "mine.sock", [mine]), gateway(place) as node:
        with node.exchange.subscribe() as subscription:
            record = Sandbox(
                sandbox_id="s",
                runtime=Sandbox.Runtime(name="r", options=PbAny(type_url="x", value=b"\0\xff")),
                extensions={"e": PbAny(type_url="y")},
            )
            created = await node.create("s", sandbox=record, netns_path="/run/netns/s", annotations={"a": "1"})
            assert created == pb.ControllerCreateResponse(sandbox_id="s")
            [(name, request, headers)] = mine.calls
            assert (name, headers[NAMESPACE], LEASE in headers) == ("Create", "n", False)
            assert request == pb.ControllerCreateRequest(
                sandbox_id="s", sandboxer="mine", sandbox=record, netns_path="/run/netns/s", annotations={"a": "1"}
            )
            about = {"sandbox_id": "s", "sandboxer": "mine"}
            started = await node.controller.Start(pb.ControllerStartRequest(**about), headers=HEADERS)
            assert (started.sandbox_id, started.version, started.HasField("created_at")) == ("s", 3, True)
            assert started.address.startswith("ttrpc+unix://")
            waiting = asyncio.ensure_future(
                node.controller.Wait(pb.ControllerWaitRequest(**about), headers=HEADERS, timeout=20)
            )
            status = await node.controller.Status(pb.ControllerStatusRequest(**about, verbose=True), headers=HEADERS)
            assert (status.sandbox_id, status.pid, status.state, dict(status.info)) == (
                "s",
                started.pid,
                "SANDBOX_READY",
                {"runtime": "r"},
            )
            platform = await node.controller.Platform(pb.ControllerPlatformRequest(**about), headers=HEADERS)
            assert platform.platform.architecture == "riscv64"
            metrics = await node.controller.Metrics(pb.ControllerMetricsRequest(**about), headers=HEADERS)
            assert metrics.metrics.id == "s"
            await node.controller.Update(
                pb.ControllerUpdateRequest(**about, sandbox=record, fields=["labels"]), headers=HEADERS
            )
            assert mine.calls[-1][1] == pb.ControllerUpdateRequest(**about, sandbox=record, fields=["labels"])
            assert not waiting.done()
            await node.controller.Stop(pb.ControllerStopRequest(**about, timeout_secs=3), headers=HEADERS)
            assert [call[1].timeout_secs for call in mine.calls if call[0] == "Stop"] == [3]
            exited = await waiting
            assert exited.exit_status == 137
            await node.shutdown("s")
            assert mine.there == []
            assert await published(subscription, 3) == [
                ("n", "/sandboxes/create", events.SandboxCreate(sandbox_id="s")),
                ("n", "/sandboxes/start", events.SandboxStart(sandbox_id="s")),
                (
                    "n",
                    "/sandboxes/exit",
                    events.SandboxExit(sandbox_id="s", exit_status=137, exited_at=exited.exited_at),
                ),
            ]


async def test_a_create_without_a_record_gets_one(place: Path, mine: Sandboxer) -> None:
    """Of its id only, as containerd makes it; a record's id comes before the request's."""
    async with rpc.serving(place / "mine.sock", [mine]), gateway(place) as node:
        await node.create("s")
        assert mine.calls[-1][1].sandbox == Sandbox(sandbox_id="s", runtime=Sandbox.Runtime())
        await node.create("ignored", sandbox=Sandbox(sandbox_id="t", runtime=Sandbox.Runtime(name="r")))
        assert mine.calls[-1][1].sandbox_id == "t"
        assert mine.there == ["n:s", "n:t"]


async def test_errors_are_the_controllers_own(place: Path, mine: Sandboxer) -> None:
    """Code and words; nothing is published."""
    async with rpc.serving(place / "mine.sock", [mine]), gateway(place) as node:
        with node.exchange.subscribe() as subscription:
            with pytest.raises(errors.FailedPrecondition, match="^no room for sandbox s: failed precondition$"):
                await node.create("s", annotations={"fail": "1"})
            with pytest.raises(errors.NotFound, match="^sandbox s in mine: not found$"):
                await node.state("s")
            for method, request in (("Start", pb.ControllerStartRequest), ("Wait", pb.ControllerWaitRequest)):
                with pytest.raises(errors.NotFound):
                    await getattr(node.controller, method)(request(sandbox_id="s", sandboxer="mine"), headers=HEADERS)
            await node.create("t")
            assert [topic for _, topic, _ in await published(subscription, 1)] == ["/sandboxes/create"]


@pytest.mark.parametrize("method", [method.name for method in CONTROLLER.methods])
async def test_a_controller_that_is_not_there_is_named(place: Path, method: str) -> None:
    """In containerd's words; those that containerd has of its own are UNIMPLEMENTED here."""
    async with gateway(place) as node:
        for name, expected, words in (
            ("", errors.InvalidArgument, "invalid argument: sandbox controller name can not be empty"),
            ("nobody", errors.NotFound, "not found: failed to get sandbox controller by nobody"),
            ("shim", errors.Unimplemented, "sandbox controller shim: this node has no sandbox controllers of its own"),
            ("podsandbox", errors.Unimplemented, "sandbox controller podsandbox: this node has no sandbox controllers"),
        ):
            request = getattr(pb, f"Controller{method}Request")(sandbox_id="s", sandboxer=name)
            with pytest.raises(expected) as caught:
                await getattr(node.controller, method)(request, headers=HEADERS)
            assert str(caught.value).startswith(words)


async def test_bad_requests_are_refused(place: Path, mine: Sandboxer) -> None:
    """An id that is no identifier, an update without a record, a call without a namespace: they reach nobody."""
    async with rpc.serving(place / "mine.sock", [mine]), gateway(place) as node:
        with pytest.raises(errors.InvalidArgument, match="identifier"):
            await node.create("a/b")
        with pytest.raises(errors.Unknown, match="sandbox can not be nil"):
            await node.controller.Update(pb.ControllerUpdateRequest(sandbox_id="s", sandboxer="mine"), headers=HEADERS)
        with pytest.raises(errors.FailedPrecondition, match="namespace is required"):
            await node.controller.Create(pb.ControllerCreateRequest(sandbox_id="s", sandboxer="mine"))
        assert not mine.calls


async def test_a_controller_that_is_away_is_named_and_used_as_soon_as_it_is_there(place: Path, mine: Sandboxer) -> None:
    """A call fails with UNAVAILABLE and the reason."""
    async with gateway(place) as node:
        with pytest.raises(errors.Unavailable, match=r"service sandbox\.mine has been unreachable"):
            await node.create("s")
        async with rpc.serving(place / "mine.sock", [mine]):

            async def made() -> bool:
                try:
                    await node.create("s")
                except errors.Unavailable:
                    return False
                return True

            await eventually_async(made, "it is not used")
            assert mine.there == ["n:s"]


async def test_a_wait_outlasts_its_controller(place: Path, mine: Sandboxer) -> None:
    """It is asked again when the controller is back."""
    async with gateway(place) as node:
        async with rpc.serving(place / "mine.sock", [mine], grace=0):
            about = {"sandbox_id": "s", "sandboxer": "mine"}
            await eventually_async(lambda: _succeeds(node.create("s")), "it is not there")
            await node.controller.Start(pb.ControllerStartRequest(**about), headers=HEADERS)
            waiting = asyncio.ensure_future(
                node.controller.Wait(pb.ControllerWaitRequest(**about), headers=HEADERS, timeout=20)
            )
            await eventually_async(lambda: asyncio.sleep(0, "Wait" in [each[0] for each in mine.calls]), "no Wait")
        async with rpc.serving(place / "mine.sock", [mine]):
            await eventually_async(
                lambda: asyncio.sleep(0, [each[0] for each in mine.calls].count("Wait") == 2), "it is not asked again"
            )
            await node.controller.Stop(pb.ControllerStopRequest(sandbox_id="s", sandboxer="mine"), headers=HEADERS)
            assert (await waiting).exit_status == 137


async def _succeeds(what: Any) -> bool:
    try:
        await what
    except errors.Unavailable:
        return False
    return True


class Silent(Sandboxer):
    """Takes calls, and answers none."""

    async def Start(self, request: pb.ControllerStartRequest, call: Call) -> pb.ControllerStartResponse:
        await asyncio.Event().wait()
        raise AssertionError


async def test_a_controller_that_answers_nothing_has_a_limit(place: Path, tmp_path: Path) -> None:
    """DEADLINE_EXCEEDED."""
    silent = Silent(tmp_path / "silent")
    async with rpc.serving(place / "mine.sock", [silent], grace=0), gateway(place, timeout=0.3) as node:
        with pytest.raises(errors.DeadlineExceeded):
            await node.controller.Start(pb.ControllerStartRequest(sandbox_id="s", sandboxer="mine"), headers=HEADERS)


async def test_sandboxes_stay_with_the_controller_that_made_them(
    place: Path, mine: Sandboxer, theirs: Sandboxer
) -> None:
    """Also after a restart of the gateway, and after the candidate takes no more; it is gone with its last one."""
    async with rpc.serving(place / "mine.sock", [mine]), rpc.serving(place / "theirs.sock", [theirs]):
        async with gateway(place) as node:
            await node.create("old")
            await node.stands(share=50.0)
            for id_ in ("a", "b"):
                await node.create(id_)
            assert (mine.there, theirs.there) == (["n:b", "n:old"], ["n:a"])
            with pytest.raises(errors.FailedPrecondition, match="no room"):
                await node.create("broken", annotations={"fail": "1"})
            (candidate,) = node.replacing.on("sandbox.mine")
            some = (await node.replacing.objects(candidate, 9)).some
            assert [(each.namespace, each.kind, each.name) for each in some] == [("n", "sandbox", "a")]
            assert [await node.state(id_) for id_ in ("old", "a", "b")] == ["SANDBOX_NOTREADY"] * 3
            with pytest.raises(errors.AlreadyExists, match="sandbox a"):
                await node.create("a")
        async with gateway(place) as node:
            await node.replacing.restore("sandbox.mine")
            assert [await node.state(id_) for id_ in ("old", "a", "b")] == ["SANDBOX_NOTREADY"] * 3
            (candidate,) = node.replacing.on("sandbox.mine")
            await node.shutdown("a")
            assert (await node.replacing.objects(candidate)).none
            await node.create("a")
            assert mine.there == ["n:a", "n:b", "n:old"]
            assert theirs.there == []


async def test_a_candidate_makes_no_second_sandbox_of_a_name(place: Path, mine: Sandboxer, theirs: Sandboxer) -> None:
    """Home has it: home answers. In another namespace the name is free."""
    async with (
        rpc.serving(place / "mine.sock", [mine]),
        rpc.serving(place / "theirs.sock", [theirs]),
        gateway(place) as node,
    ):
        await node.create("s")
        await node.stands()
        with pytest.raises(errors.AlreadyExists):
            await node.create("s")
        assert theirs.there == []
        await node.controller.Create(
            pb.ControllerCreateRequest(sandbox_id="s", sandboxer="mine"), headers={NAMESPACE: "other"}
        )
        assert theirs.there == ["other:s"]


async def test_sandboxes_of_a_candidate_that_is_away_fail_and_name_it(
    place: Path, mine: Sandboxer, theirs: Sandboxer
) -> None:
    """New ones go home meanwhile; forgotten ones are asked of home."""
    async with rpc.serving(place / "mine.sock", [mine]), gateway(place) as node:
        async with rpc.serving(place / "theirs.sock", [theirs], grace=0):
            await node.stands()
            await node.create("a")
        with pytest.raises(errors.Unavailable, match="service sandbox.mine@t"):
            await node.state("a")
        await node.create("b")
        assert mine.there == ["n:b"]
        (candidate,) = node.replacing.on("sandbox.mine")
        assert candidate.sent_home == 1
        await node.replacing.restore("sandbox.mine")
        assert (await node.replacing.forget("sandbox.mine")).total == 1
        with pytest.raises(errors.NotFound, match="in mine"):
            await node.state("a")


async def test_a_deadline_of_a_candidate_ends_no_wait(place: Path, mine: Sandboxer, theirs: Sandboxer) -> None:
    """A Wait takes as long as the sandbox lives."""
    async with (
        rpc.serving(place / "mine.sock", [mine]),
        rpc.serving(place / "theirs.sock", [theirs]),
        gateway(place) as node,
    ):
        await node.stands(deadline=0.2)
        await node.create("s")
        about = {"sandbox_id": "s", "sandboxer": "mine"}
        await node.controller.Start(pb.ControllerStartRequest(**about), headers=HEADERS)
        waiting = asyncio.ensure_future(
            node.controller.Wait(pb.ControllerWaitRequest(**about), headers=HEADERS, timeout=20)
        )
        done, _ = await asyncio.wait([waiting], timeout=0.6)
        assert not done
        await node.controller.Stop(pb.ControllerStopRequest(sandbox_id="s", sandboxer="mine"), headers=HEADERS)
        assert (await waiting).exit_status == 137
