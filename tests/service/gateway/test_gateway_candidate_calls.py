"""Candidates of those kinds of service that have no objects in metadata: each of their calls finds its way, by either
transport and though its head was relayed before.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from google.protobuf.empty_pb2 import Empty

from api.containerd.services.diff.v1 import diff_pb2, diff_stubs
from api.containerd.services.images.v1 import images_pb2, images_stubs
from api.containerd.services.leases.v1 import leases_pb2, leases_stubs
from api.containerd.services.tasks.v1 import tasks_pb2, tasks_stubs
from api.containerd.types.task.task_pb2 import Process
from gateway.candidates import Terms
from gateway.config import Config
from gateway.containers import Containers
from gateway.relay import Relay
from gateway.replacing import Replacing
from gateway.routes import Routes
from gateway.store import Objects
from services.kit import errors, rpc
from services.kit.rpc import NAMESPACE, Call
from tests.support import Forwarder, eventually_async

pytestmark = pytest.mark.once


@pytest.fixture(autouse=True, params=["wire", "grpcio"])
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The transport that carries all calls."""
    monkeypatch.setenv("SPLITD_GRPC_TRANSPORT", request.param)


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


@dataclass
class Tasks:
    """Tasks by container."""

    there: dict[str, int] = field(default_factory=dict)
    SERVICE = tasks_stubs.TASKS

    async def Create(self, request: tasks_pb2.CreateTaskRequest, call: Call) -> tasks_pb2.CreateTaskResponse:
        if request.container_id == "broken":
            raise errors.Internal("no runtime")
        self.there[request.container_id] = 7
        return tasks_pb2.CreateTaskResponse(container_id=request.container_id)

    async def Kill(self, request: tasks_pb2.KillRequest, call: Call) -> Empty:
        self.there[request.container_id] = request.signal
        return Empty()

    async def Wait(self, request: tasks_pb2.WaitRequest, call: Call) -> tasks_pb2.WaitResponse:
        if request.container_id not in self.there:
            raise errors.NotFound(f"task {request.container_id}")
        return tasks_pb2.WaitResponse(exit_status=self.there[request.container_id])

    async def Delete(self, request: tasks_pb2.DeleteTaskRequest, call: Call) -> tasks_pb2.DeleteResponse:
        return tasks_pb2.DeleteResponse(exit_status=self.there.pop(request.container_id))

    async def List(self, request: tasks_pb2.ListTasksRequest, call: Call) -> tasks_pb2.ListTasksResponse:
        return tasks_pb2.ListTasksResponse(tasks=[Process(container_id=name) for name in self.there])


@dataclass
class Images:
    """Images whose answers have its own name."""

    name: str
    SERVICE = images_stubs.IMAGES

    async def Get(self, request: images_pb2.GetImageRequest, call: Call) -> images_pb2.GetImageResponse:
        return images_pb2.GetImageResponse(image=images_pb2.Image(name=self.name))


@dataclass
class Diff:
    """Diff whose answers have its own name."""

    name: str
    SERVICE = diff_stubs.DIFF

    async def Apply(self, request: diff_pb2.ApplyRequest, call: Call) -> diff_pb2.ApplyResponse:
        answer = diff_pb2.ApplyResponse()
        answer.applied.digest = self.name
        return answer


@contextlib.asynccontextmanager
async def gateway(place: Path) -> AsyncIterator[tuple[Replacing, rpc.Channel]]:
    """A gateway's calls on ``place/g.sock``, as its process has them, in front of the sockets in ``place``."""
    (place / "gateway").mkdir(exist_ok=True)
    config = Config(candidate_hold=0.5)
    routes = Routes(place, config, {})
    containers = Containers(routes["tasks"], place, timeout=10.0)
    replacing = Replacing(routes, NoRecords(), place, notes={"tasks": containers.notes})
    relay = Relay(routes, config, internal=True, containers=containers)
    watches = [asyncio.ensure_future(upstream.watch()) for upstream in routes.upstreams]
    routes.added.append(lambda upstream: watches.append(asyncio.ensure_future(upstream.watch())))
    try:
        async with (
            rpc.serving(place / "g.sock", [], relay=relay, relayed=True) as server,
            rpc.Channel(place / "g.sock", "gateway") as channel,
        ):
            routes["tasks"].changed.append(server.decide_anew)
            yield replacing, channel
    finally:
        for watch in watches:
            watch.cancel()
        await asyncio.gather(*watches, return_exceptions=True)


async def stands(replacing: Replacing, terms: Terms) -> None:
    candidate, _ = await replacing.replace(terms)
    upstream = replacing.upstream(candidate)
    assert upstream is not None
    await upstream.connected(10.0)


async def test_calls_about_a_container_go_where_its_task_was_created(place: Path) -> None:
    """Also after a restart, and after the candidate takes no more; it goes with its last task."""
    home, theirs = Tasks({"old": 1}), Tasks()
    async with rpc.serving(place / "tasks.sock", [home]), rpc.serving(place / "theirs.sock", [theirs]):
        async with gateway(place) as (replacing, channel):
            tasks = channel.client(tasks_stubs.TASKS)

            async def create(name: str) -> None:
                await tasks.Create(tasks_pb2.CreateTaskRequest(container_id=name), headers={NAMESPACE: "n"})

            async def status(name: str) -> int:
                found = await tasks.Wait(tasks_pb2.WaitRequest(container_id=name), headers={NAMESPACE: "n"}, timeout=9)
                return found.exit_status

            assert await status("old") == 1  # the head of later calls is remembered
            await stands(replacing, Terms(route="tasks", name="t", address=str(place / "theirs.sock"), share=50.0))
            for name in ("a", "b"):
                await create(name)
            assert (list(home.there), list(theirs.there)) == (["old", "b"], ["a"])
            with pytest.raises(errors.Internal, match="no runtime"):
                await create("broken")
            await tasks.Kill(tasks_pb2.KillRequest(container_id="a", signal=15, exec_id="e"), headers={NAMESPACE: "n"})
            assert [await status(name) for name in ("old", "a", "b")] == [1, 15, 7]
            listed = await tasks.List(tasks_pb2.ListTasksRequest(filter="x"), headers={NAMESPACE: "n"})
            assert {each.container_id for each in listed.tasks} == {"old", "a", "b"}
        async with gateway(place) as (replacing, channel):
            tasks = channel.client(tasks_stubs.TASKS)
            await replacing.restore("tasks")
            assert [await status(name) for name in ("old", "a", "b")] == [1, 15, 7]
            (candidate,) = replacing.on("tasks")
            assert [each.name for each in (await replacing.objects(candidate, 9)).some] == ["a"]
            await tasks.Delete(tasks_pb2.DeleteTaskRequest(container_id="a"), headers={NAMESPACE: "n"})
            assert not theirs.there
            assert (await replacing.objects(candidate)).none
            await create("a")
            assert "a" in home.there


async def test_a_container_that_home_runs_gets_no_second_task(place: Path) -> None:
    """Its Create goes to home, whose answer the client gets, though the candidate takes all new tasks."""

    class Running(Tasks):
        async def Get(self, request: tasks_pb2.GetRequest, call: Call) -> tasks_pb2.GetResponse:
            if request.container_id not in self.there:
                raise errors.NotFound(f"task {request.container_id}")
            return tasks_pb2.GetResponse(process=Process(container_id=request.container_id))

        async def Create(self, request: tasks_pb2.CreateTaskRequest, call: Call) -> tasks_pb2.CreateTaskResponse:
            if request.container_id in self.there:
                raise errors.AlreadyExists(f"task {request.container_id}")
            return await super().Create(request, call)

    home, theirs = Running({"old": 1}), Running()
    async with (
        rpc.serving(place / "tasks.sock", [home]),
        rpc.serving(place / "theirs.sock", [theirs]),
        gateway(place) as (replacing, channel),
    ):
        tasks = channel.client(tasks_stubs.TASKS)
        await stands(replacing, Terms(route="tasks", name="t", address=str(place / "theirs.sock")))
        with pytest.raises(errors.AlreadyExists, match="task old"):
            await tasks.Create(tasks_pb2.CreateTaskRequest(container_id="old"), headers={NAMESPACE: "n"})
        await tasks.Create(tasks_pb2.CreateTaskRequest(container_id="new"), headers={NAMESPACE: "n"})
        assert (list(home.there), list(theirs.there)) == (["old"], ["new"])


async def test_a_daemon_that_says_so_late_is_refused_from_then_on(place: Path) -> None:
    """Until it answers, nobody can know."""
    say = asyncio.Event()

    class Leases:
        SERVICE = leases_stubs.LEASES

        async def List(self, request: leases_pb2.ListRequest, call: Call) -> leases_pb2.ListResponse:
            await say.wait()
            return leases_pb2.ListResponse()

    async with (
        rpc.serving(place / "diff.sock", [Diff("home")]),
        rpc.serving(place / "daemon.sock", [Diff("daemon"), Leases()], grace=0),
        gateway(place) as (replacing, channel),
    ):

        async def applied() -> str:
            answer = await channel.client(diff_stubs.DIFF).Apply(diff_pb2.ApplyRequest(), headers={NAMESPACE: "n"})
            return answer.applied.digest

        await stands(replacing, Terms(route="diff", name="t", address=str(place / "daemon.sock")))
        assert await applied() == "daemon"
        say.set()
        upstream = replacing.upstream(replacing.on("diff")[0])
        assert upstream is not None
        await eventually_async(lambda: asyncio.sleep(0, "is a whole daemon" in upstream.trouble()), "it is not refused")
        assert await applied() == "home"


async def test_images_are_chosen_by_namespace_and_diff_for_each_call(place: Path) -> None:
    """While a candidate is down, home answers."""
    async with (
        rpc.serving(place / "images.sock", [Images("home")]),
        rpc.serving(place / "diff.sock", [Diff("home")]),
        rpc.serving(place / "theirs.sock", [Images("theirs"), Diff("theirs")], grace=0) as _,
        gateway(place) as (replacing, channel),
    ):

        async def image(namespace: str) -> str:
            answer = await channel.client(images_stubs.IMAGES).Get(
                images_pb2.GetImageRequest(name="i"), headers={NAMESPACE: namespace}
            )
            return answer.image.name

        async def applied() -> str:
            answer = await channel.client(diff_stubs.DIFF).Apply(diff_pb2.ApplyRequest(), headers={NAMESPACE: "n"})
            return answer.applied.digest

        address = str(place / "theirs.sock")
        assert (await image("a"), await applied()) == ("home", "home")
        await stands(replacing, Terms(route="images", name="t", address=address, namespaces=("a",)))
        await stands(replacing, Terms(route="diff", name="t", address=address, share=25.0))
        assert [await image(namespace) for namespace in "aabba"] == ["theirs", "theirs", "home", "home", "theirs"]
        assert Counter([await applied() for _ in range(20)]) == {"theirs": 5, "home": 15}
        await replacing.restore("images")
        await replacing.replace(Terms(route="diff", name="t", address=str(place / "nobody.sock")))
        assert (await image("a"), await applied()) == ("home", "home")
        (candidate,) = replacing.on("diff")
        assert candidate.sent_home >= 1


async def test_a_candidate_that_forwards_to_its_gateway_fails_and_says_so(place: Path) -> None:
    """The call does not go round for ever. A header of a client that is no number counts as one that is too large."""

    async def applied(channel: rpc.Channel, hops: str) -> str:
        answer = await channel.client(diff_stubs.DIFF).Apply(diff_pb2.ApplyRequest(), headers={rpc.HOPS: hops})
        return answer.applied.digest

    async with (
        rpc.serving(place / "diff.sock", [Diff("home")]),
        rpc.Channel(place / "g.sock", "gateway") as back,
        rpc.serving(place / "circle.sock", [], relay=(forwarder := Forwarder(back)), relayed=True),
        gateway(place) as (replacing, channel),
    ):
        assert await applied(channel, "7") == "home"
        for hops in ("8", "-1", "1" * 5000, ""):
            with pytest.raises(errors.FailedPrecondition, match="route diff leads in a circle"):
                await applied(channel, hops)
        await stands(replacing, Terms(route="diff", name="t", address=str(place / "circle.sock")))
        with pytest.raises(errors.FailedPrecondition, match="route diff leads in a circle"):
            await applied(channel, "0")
        assert forwarder.calls["/containerd.services.diff.v1.Diff/Apply"] == rpc.MOST_HOPS
        await replacing.restore("diff")
        assert await applied(channel, "0") == "home"


async def test_a_call_under_way_ends_where_it_began(place: Path) -> None:
    """Its candidate moves and is restored meanwhile; the connection is closed after the answer."""
    began, go = asyncio.Event(), asyncio.Event()

    class Slow(Diff):
        async def Apply(self, request: diff_pb2.ApplyRequest, call: Call) -> diff_pb2.ApplyResponse:
            began.set()
            await go.wait()
            return await super().Apply(request, call)

    async with (
        rpc.serving(place / "diff.sock", [Diff("home")]),
        rpc.serving(place / "slow.sock", [Slow("slow")]),
        rpc.serving(place / "moved.sock", [Diff("moved")]),
        gateway(place) as (replacing, channel),
    ):

        async def applied() -> str:
            answer = await channel.client(diff_stubs.DIFF).Apply(diff_pb2.ApplyRequest(), headers={NAMESPACE: "n"})
            return answer.applied.digest

        await stands(replacing, Terms(route="diff", name="t", address=str(place / "slow.sock"), deadline=60.0))
        (candidate,) = replacing.on("diff")
        before = replacing.upstream(candidate)
        assert before is not None
        under_way = asyncio.ensure_future(applied())
        await began.wait()
        await stands(replacing, Terms(route="diff", name="t", address=str(place / "moved.sock")))
        assert await applied() == "moved"
        await replacing.restore("diff")
        assert await applied() == "home"
        assert not before.retired
        go.set()
        assert await under_way == "slow"
        await eventually_async(lambda: asyncio.sleep(0, before.retired), "its connection stays")
