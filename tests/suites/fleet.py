"""What the fleet promises to a pull. It runs on the fake, and on processes ``fleet`` with an etcd."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import NamedTuple, Protocol

import pytest

from services.fleet.store import NOBODY, Claim, Container, Fetch, Fleet, Image, Overview, Peer, Target
from services.oci.digests import Digest
from tests.support import eventually_async

BLOB = Digest.parse("sha256:" + "1" * 64)
OLD, NEW = Target("sha256:" + "2" * 64, 500), Target("sha256:" + "3" * 64, 700)
BOX = "docker.io/library/box:1"


class Teller(Protocol):
    """What tells of a node's images and containers."""

    def tell_images(self, found: Sequence[Image]) -> None: ...
    def tell_containers(self, found: Sequence[Container]) -> None: ...


class Member(NamedTuple):
    """A node, as a pull sees its fleet, as an operator does, and what tells of it."""

    fleet: Fleet
    overview: Overview
    teller: Teller


def box(node: str, target: Target, *, name: str = BOX, namespace: str = "default", updated: int = 5) -> Image:
    """An image of a node."""
    return Image(node, namespace, name, target, updated)


async def until(fleet: Fleet, wanted: Sequence[Peer]) -> None:
    """Ask until exactly these are the peers."""
    await becomes(lambda: peers(fleet), list(wanted))


async def peers(fleet: Fleet, namespace: str = "default") -> list[Peer]:
    """Who has the blob."""
    return list(await fleet.find(namespace, BLOB))


async def claimed(fetch: Fetch, wanted: Claim, left: Sequence[str] = ()) -> None:
    """Ask until this is the answer: where the fleet is slow, it is another."""

    async def look() -> bool:
        return await fetch.claim(left) == wanted

    await eventually_async(look)


class FleetSuite(ABC):
    """Subclasses make a fleet of two nodes, a at ``a:1`` and b at ``b:1``, that share the namespace ``default``."""

    @abstractmethod
    def nodes(self) -> AbstractAsyncContextManager[tuple[Member, Member]]:
        """The two."""

    @pytest.fixture
    async def members(self) -> AsyncIterator[tuple[Member, Member]]:
        async with self.nodes() as found:
            yield found

    @pytest.fixture
    def fleets(self, members: tuple[Member, Member]) -> tuple[Fleet, Fleet]:
        return members[0].fleet, members[1].fleet

    @pytest.fixture
    def file(self, tmp_path: Path) -> str:
        """A file that a blob arrives in."""
        path = tmp_path / "arriving"
        path.write_bytes(bytes(100))
        return str(path)

    async def test_nobody_has_it(self, fleets: tuple[Fleet, Fleet]) -> None:
        """The answer comes without peers."""
        assert await peers(fleets[0]) == []

    async def test_a_peer_fetches_it(self, fleets: tuple[Fleet, Fleet], file: str) -> None:
        """It is told with what it has, and that it has no more of it when it gives up."""
        a, b = fleets
        async with a.fetching("default", BLOB, 100) as fetch:
            fetch.arrived(file, 0)
            await until(b, [Peer("a", "a:1", 100, 0)])
            fetch.arrived(file, 60)
            await until(b, [Peer("a", "a:1", 100, 60)])
        await until(b, [])

    async def test_a_node_is_no_peer_of_its_own(self, fleets: tuple[Fleet, Fleet], file: str) -> None:
        """Of two that fetch the same, each sees the other."""
        a, b = fleets
        async with a.fetching("default", BLOB, 100) as one, b.fetching("default", BLOB, 100) as other:
            one.arrived(file, 5)
            other.arrived(file, 7)
            await until(a, [Peer("b", "b:1", 100, 7)])
            await until(b, [Peer("a", "a:1", 100, 5)])

    async def test_one_of_them_claims_it(self, fleets: tuple[Fleet, Fleet]) -> None:
        """The other is told who, and gets the claim once the first has ended."""
        a, b = fleets
        async with contextlib.AsyncExitStack() as first, b.fetching("default", BLOB, 100) as other:
            one = await first.enter_async_context(a.fetching("default", BLOB, 100))
            await claimed(one, Claim("a", True, "a:1"))
            await claimed(other, Claim("a", False, "a:1"))
            await claimed(one, Claim("a", True, "a:1"))
            await first.aclose()
            await claimed(other, Claim("b", True, "b:1"))

    async def test_who_gives_nothing_is_replaced(self, fleets: tuple[Fleet, Fleet]) -> None:
        """The other node takes the claim, and keeps it when the first one's fetch ends."""
        a, b = fleets
        async with b.fetching("default", BLOB, 100) as other:
            async with a.fetching("default", BLOB, 100) as one:
                await claimed(one, Claim("a", True, "a:1"))
                await claimed(other, Claim("a", False, "a:1"), ["c"])
                await claimed(other, Claim("b", True, "b:1"), ["c", "a"])
                await claimed(one, Claim("b", False, "b:1"))
            await claimed(other, Claim("b", True, "b:1"))
            async with a.fetching("default", BLOB, 100) as third:
                await claimed(third, Claim("b", False, "b:1"))

    async def test_a_namespace_that_is_not_shared(self, fleets: tuple[Fleet, Fleet], file: str) -> None:
        """Nobody is told of its blobs, nor asked for them."""
        a, b = fleets
        async with a.fetching("private", BLOB, 100) as fetch:
            fetch.arrived(file, 50)
            assert await fetch.claim() == NOBODY
            assert await peers(b) == []
            async with b.fetching("default", BLOB, 100) as other:
                await claimed(other, Claim("b", True, "b:1"))
                other.arrived(file, 1)
                await until(a, [Peer("b", "b:1", 100, 1)])
                assert await peers(a, "private") == []

    async def test_what_the_others_have_as_an_image(self, members: tuple[Member, Member]) -> None:
        """A name has the target that the other node gives it: not the node's own, and nothing once that has gone."""
        a, b = members
        assert await a.fleet.image("default", BOX) is None
        a.teller.tell_images([box("a", OLD)])
        b.teller.tell_images([box("b", NEW), box("b", OLD, name=BOX + "/deeper"), box("b", OLD, name="other")])
        await becomes(lambda: a.fleet.image("default", BOX), NEW)
        await becomes(lambda: b.fleet.image("default", BOX), OLD)
        assert await a.fleet.image("default", "docker.io/library/box") is None
        b.teller.tell_images([])
        await becomes(lambda: a.fleet.image("default", BOX), None)

    async def test_images_of_a_namespace_that_is_not_shared(self, members: tuple[Member, Member]) -> None:
        """Nobody is told of them, nor asked for them."""
        a, b = members
        b.teller.tell_images([box("b", NEW, namespace="private"), box("b", OLD)])
        await becomes(lambda: a.fleet.image("default", BOX), OLD)
        assert await a.fleet.image("private", BOX) is None
        assert await images(a.overview) == [box("b", OLD)]

    async def test_all_images(self, members: tuple[Member, Member]) -> None:
        """An operator sees those of all nodes, as they are now."""
        a, b = members
        a.teller.tell_images([box("a", OLD), box("a", NEW, name="x")])
        b.teller.tell_images([box("b", NEW, updated=9)])
        await becomes(lambda: images(a.overview), [box("a", NEW, name="x"), box("a", OLD), box("b", NEW, updated=9)])
        a.teller.tell_images([box("a", NEW)])
        await becomes(lambda: images(b.overview), [box("a", NEW), box("b", NEW, updated=9)])

    async def test_all_containers(self, members: tuple[Member, Member]) -> None:
        """An operator sees those of shared namespaces, until they are gone."""
        a, b = members
        one, other = Container("a", "default", "c1", BOX, 3), Container("b", "default", "c2", "", 0)
        a.teller.tell_containers([one, Container("a", "private", "c3", BOX, 3)])
        b.teller.tell_containers([other])
        await becomes(lambda: containers(a.overview), [one, other])
        a.teller.tell_containers([])
        await becomes(lambda: containers(b.overview), [other])


async def becomes(ask: Callable[[], Awaitable[object]], wanted: object) -> None:
    """Ask until this is the answer."""

    async def look() -> bool:
        return await ask() == wanted

    await eventually_async(look)


async def images(overview: Overview) -> list[Image]:
    """All of them, by node and digest."""
    found = [image async for page in overview.images() for image in page]
    return sorted(found, key=lambda image: (image.node, -int(image.target.digest[7:], 16)))


async def containers(overview: Overview) -> list[Container]:
    """All of them, by node."""
    found = [each async for page in overview.containers() for each in page]
    return sorted(found, key=lambda each: (each.node, each.id))
