"""Pulls that an operator wants on several nodes: nodes on an etcd in memory, whose pulls are made up."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence

import pytest

from services.etcd.memory import MemoryEtcd
from services.etcd.store import Put
from services.fleet import convert, orders
from services.fleet.local import FleetNode
from services.fleet.orders import NodePull, Order, State
from services.fleet.prefetch import Prefetches
from services.fleet.wanted import SPACE, Wanted
from services.kit import errors, loops
from tests.suites.fleet import BOX, NEW, OLD, box
from tests.support import eventually_async
from tests.unit.fleet.test_fleet_node import PREFIX, holds, keys, member

GIB = 1 << 30


class Puller:
    """The pulls of a node. Each lasts until it is let go."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.free = 10 * GIB
        self.lost: Exception | None = None
        """Why nobody can say how much is free."""
        self.go = asyncio.Event()
        self.error: Exception | None = None

    async def pull(self, namespace: str, image: str, report: Callable[[int, int], None]) -> str:
        self.begun.append(f"{namespace} {image}")
        report(5, 10)
        await self.go.wait()
        if self.error is not None:
            raise self.error
        report(10, 10)
        return NEW.digest

    def space(self) -> int:
        if self.lost is not None:
            raise self.lost
        return self.free


class Village:
    """Some nodes: ``a`` takes the orders."""

    def __init__(self, etcd: MemoryEtcd) -> None:
        self.etcd = etcd
        self.nodes: dict[str, FleetNode] = {}
        self.pullers: dict[str, Puller] = {}
        self.wanted: dict[str, Wanted] = {}

    def prefetches(self, *, asking: float = 20.0, away: float = 20.0) -> Prefetches:
        return Prefetches(self.nodes["a"], asking=asking, away=away)

    @contextlib.asynccontextmanager
    async def node(self, name: str, *, free: int = 10 * GIB, going: bool = True) -> AsyncIterator[None]:
        """One more node; ``going``: its pulls end at once."""
        self.pullers[name] = puller = Puller()
        puller.free = free
        if going:
            puller.go.set()
        async with member(self.etcd, name) as node:
            self.nodes[name] = node
            self.wanted[name] = wanted = Wanted(node, puller.pull, puller.space, quiet=0.0, retry=0.01)
            async with loops.running("what is wanted", wanted.keep):
                yield

    @property
    def begun(self) -> list[str]:
        """The nodes that have begun a pull."""
        return sorted(name for name, puller in self.pullers.items() if puller.begun)


@contextlib.asynccontextmanager
async def village(*names: str, going: bool = True) -> AsyncIterator[Village]:
    made = Village(MemoryEtcd())
    async with contextlib.AsyncExitStack() as stack:
        for name in names:
            await stack.enter_async_context(made.node(name, going=going))
        yield made


class Following:
    """An order that is followed."""

    def __init__(self) -> None:
        self.now: dict[str, NodePull] = {}
        self.states: dict[str, list[State]] = {}
        self.troubles: list[str] = []

    async def run(self, prefetches: Prefetches, order: Order) -> None:
        async with contextlib.aclosing(prefetches.run(order)) as news:
            async for told in news:
                each = convert.news_from_pb(convert.news_to_pb(told))
                self.troubles.append(each.trouble)
                for pull in each.pulls:
                    self.now[pull.node] = pull
                    self.states.setdefault(pull.node, []).append(pull.state)

    def of(self, state: State) -> list[str]:
        return sorted(name for name, pull in self.now.items() if pull.state is state)


@contextlib.asynccontextmanager
async def followed(prefetches: Prefetches, order: Order) -> AsyncIterator[tuple[Following, asyncio.Task[None]]]:
    """An order during the block; it is cancelled at the end."""
    following = Following()
    running = loops.task("an order", following.run(prefetches, order))
    try:
        yield following, running
    finally:
        running.cancel()
        await asyncio.wait((running,))


def order(*, nodes: int = 0, on: Sequence[str] = (), at_once: int = 10) -> Order:
    return Order(image=BOX, namespace="default", nodes=nodes, on=tuple(on), at_once=at_once)


async def done(prefetches: Prefetches, wanted: Order) -> Following:
    following = Following()
    async with asyncio.timeout(30):
        await following.run(prefetches, wanted)
    return following


async def test_all_nodes_pull_it() -> None:
    """Those that do not have it; then nothing of the order is left in etcd."""
    async with village("a", "b", "c") as made:
        made.nodes["b"].tell_images([box("b", OLD)])
        await holds(lambda: not made.nodes["b"]._changed)
        found = await done(made.prefetches(), order())
        assert found.now["b"] == NodePull("b", State.PRESENT, digest=OLD.digest)
        assert found.now["a"] == NodePull("a", State.DONE, 10, 10, NEW.digest)
        assert found.of(State.DONE) == made.begun == ["a", "c"]
        assert made.pullers["c"].begun == [f"default {BOX}"]

        async def nothing_is_left() -> bool:
            return not [key for key in await keys(made.etcd) if key.startswith(("wanted/", "answers/"))]

        await eventually_async(nothing_is_left)


async def test_a_node_whose_disk_cannot_be_looked_at_refuses() -> None:
    """It says so at once, and the others are asked."""
    async with village("a", "b") as made:
        made.pullers["b"].lost = errors.NotFound("/var/lib/splitd")
        found = await done(made.prefetches(), order())
        assert found.now["b"] == NodePull("b", State.REFUSED, error="/var/lib/splitd: not found")
        assert made.begun == ["a"]


async def test_so_many_nodes_with_the_most_space() -> None:
    """A node without space refuses, and the others that are not needed are not named."""
    async with village("a") as made, made.node("b", free=20 * GIB), made.node("c", free=SPACE - 1), made.node("d"):
        made.pullers["d"].free = 15 * GIB
        found = await done(made.prefetches(), order(nodes=2))
        assert found.of(State.DONE) == made.begun == ["b", "d"]
        assert found.of(State.REFUSED) == ["c"]
        assert found.now["c"].error == "1,024 MiB are free on its disk, of at least 1,024"
        assert "a" not in found.now


async def test_fewer_nodes_than_wanted() -> None:
    """All that can pull it do."""
    async with village("a", "b") as made:
        found = await done(made.prefetches(), order(nodes=5))
        assert found.of(State.DONE) == ["a", "b"]


async def test_named_nodes_pull_it_although_they_have_one() -> None:
    """So a tag can be renewed. Others are not asked."""
    async with village("a", "b", "c") as made:
        made.nodes["b"].tell_images([box("b", OLD)])
        await holds(lambda: not made.nodes["b"]._changed)
        found = await done(made.prefetches(), order(on=["b", "c", "b"]))
        assert found.of(State.DONE) == sorted(found.now) == ["b", "c"]


async def test_no_more_at_once_than_said() -> None:
    """The others wait for their turn. Whatever fails is named, and does not hold up the rest."""
    async with village("a", "b", "c", "d", going=False) as made:
        async with followed(made.prefetches(), order(at_once=2)) as (found, running):
            await holds(lambda: len(found.of(State.PULLING)) == 2)
            assert len(found.of(State.WAITING)) == 2
            one, other = made.begun
            made.pullers[one].error = errors.NotFound("the image")
            made.pullers[one].go.set()
            await holds(lambda: len(made.begun) == 3)
            assert found.now[one] == NodePull(one, State.FAILED, 5, 10, error="the image: not found")
            assert found.now[other].done == 5
            for puller in made.pullers.values():
                puller.go.set()
            await asyncio.wait_for(running, 20)
        assert found.of(State.FAILED) == [one]
        assert len(found.of(State.DONE)) == 3
        assert found.states[one][-3:] == [State.WAITING, State.PULLING, State.FAILED]


async def test_what_has_not_begun_is_withdrawn() -> None:
    """A pull that has begun goes on; the order that is given again joins it."""
    async with village("a", "b", going=False) as made:
        async with followed(made.prefetches(), order(at_once=1)) as (found, _):
            await holds(lambda: len(made.begun) == 1)
        (begun,) = made.begun
        (other,) = set("ab") - {begun}
        await holds(lambda: not made.wanted[other]._orders and not made.wanted[begun]._orders)
        assert len(made.wanted[begun]._pulling) == 1
        async with followed(made.prefetches(), order()) as (found, running):
            await holds(lambda: len(found.of(State.PULLING)) == 2)
            for puller in made.pullers.values():
                puller.go.set()
            await asyncio.wait_for(running, 20)
        assert found.of(State.DONE) == ["a", "b"]
        assert [len(puller.begun) for puller in made.pullers.values()] == [1, 1]


async def test_one_pull_of_an_image_at_a_time() -> None:
    """Two orders want the same image of a node: both are told of the one pull. A pull in its queue can be withdrawn."""
    async with village("a", going=False) as made:
        async with (
            followed(made.prefetches(), order()) as (one, first),
            followed(made.prefetches(), order(on="a")) as (two, second),
        ):
            await holds(lambda: one.of(State.PULLING) and two.of(State.PULLING))
            more = [Order(image=f"docker.io/library/x:{number}", namespace="default") for number in (1, 2)]
            async with followed(made.prefetches(), more[0]) as (three, third):
                await holds(lambda: three.of(State.PULLING))
                async with followed(made.prefetches(), more[1]) as (four, _):
                    await holds(lambda: made.wanted["a"]._orders and len(made.wanted["a"]._pulling) == 3)
                    await holds(lambda: four.of(State.WAITING))
                await holds(lambda: len(made.wanted["a"]._pulling) == 2)
                made.pullers["a"].go.set()
                for running in (first, second, third):
                    await asyncio.wait_for(running, 20)
        assert made.pullers["a"].begun == [f"default {BOX}", "default docker.io/library/x:1"]
        assert one.of(State.DONE) == two.of(State.DONE) == ["a"]


async def test_a_node_that_dies() -> None:
    """It is waited for until it could have come back. One that comes back goes on."""
    async with village("a") as made:
        async with contextlib.AsyncExitStack() as dying:
            await dying.enter_async_context(made.node("b", going=False))
            prefetches = made.prefetches(away=1.0)
            async with followed(prefetches, order(on="b")) as (found, running):
                await holds(lambda: found.of(State.PULLING))
                await dying.aclose()
                await asyncio.wait_for(running, 20)
            assert found.now["b"].error == "it has left the fleet"
        async with contextlib.AsyncExitStack() as dying:
            await dying.enter_async_context(made.node("b", going=False))
            async with followed(made.prefetches(away=60), order(on="b")) as (found, running):
                await holds(lambda: found.of(State.PULLING))
                await dying.aclose()
                async with made.node("b"):
                    await asyncio.wait_for(running, 20)
        assert found.of(State.DONE) == ["b"]


async def test_a_node_that_does_not_answer() -> None:
    """It is left out, and named."""
    async with village("a") as made, member(made.etcd, "mute"):
        found = await done(made.prefetches(asking=0.5), order(nodes=2))
        assert found.of(State.DONE) == ["a"]
        assert found.now["mute"] == NodePull("mute", State.REFUSED, error="no answer within 0.5 s")


async def test_etcd_is_away_meanwhile() -> None:
    """It is said, the pull goes on, and its end is told."""
    async with village("a", going=False) as made:
        async with followed(made.prefetches(away=0.1), order()) as (found, running):
            await holds(lambda: found.of(State.PULLING))
            made.etcd.cut()
            await holds(lambda: any(found.troubles))
            made.pullers["a"].go.set()
            made.etcd.cut(False)
            await asyncio.wait_for(running, 20)
        assert found.of(State.DONE) == ["a"]
        assert found.troubles[-1] == ""


async def test_orders_that_make_no_sense() -> None:
    """They are refused in words, at once."""
    async with village("a") as made:
        prefetches = made.prefetches()
        for wanted, kind, words in (
            (Order(image="box", namespace="default"), errors.InvalidArgument, "no repository"),
            (Order(image="docker.io/library/box", namespace="default"), errors.InvalidArgument, "box"),
            (Order(image=BOX, namespace="private"), errors.FailedPrecondition, "namespace private is not shared"),
            (Order(image=BOX, namespace="a/b"), errors.InvalidArgument, "identifier"),
            (order(nodes=-1), errors.InvalidArgument, "at most 1000 nodes"),
            (order(on=["a"], nodes=1), errors.InvalidArgument, "either"),
            (order(at_once=0), errors.InvalidArgument, "0 nodes at once"),
            (order(on=["a", "zoe"]), errors.NotFound, "node zoe of the fleet"),
        ):
            with pytest.raises(kind, match=words):
                await done(prefetches, wanted)
        made.etcd.cut()
        with pytest.raises(errors.Unavailable):
            await done(prefetches, order())


async def test_what_others_write_makes_no_sense() -> None:
    """A node refuses what it does not share, and ignores what it does not understand."""
    async with village("a") as made:
        for name, value in {
            "1": '{"v":1,"namespace":"private","image":"docker.io/library/box:1","begin":true}',
            "2": '{"v":1,"namespace":"default","image":"http://x"}',
            "3": "nonsense",
            "4": '{"v":1,"namespace":7,"image":["x"]}',
        }.items():
            await made.etcd.commit([Put(f"{PREFIX}/wanted/a/{name}".encode(), value.encode())])
        await holds(lambda: set(made.wanted["a"]._ended) == {"1", "2", "4"})
        assert {pull.state for pull in made.wanted["a"]._ended.values()} == {State.REFUSED}
        assert made.begun == []
    assert orders.of_value("a", {"state": "sleeping"}) is None
    assert orders.of_value("a", {"state": "pulling", "done": -4, "total": "x"}) == NodePull("a", State.PULLING)
