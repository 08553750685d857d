"""What the fleet promises to a pull. It runs on the fake, and on processes ``fleet`` with an etcd."""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from services.fleet.store import NOBODY, Claim, Fetch, Fleet, Peer
from services.oci.digests import Digest
from tests.support import eventually_async

BLOB = Digest.parse("sha256:" + "1" * 64)


async def until(found: AsyncIterator[Sequence[Peer]], wanted: Sequence[Peer]) -> None:
    """Wait until exactly these peers are told."""
    async with asyncio.timeout(10):
        async for peers in found:
            if list(peers) == list(wanted):
                return
    raise AssertionError(f"it ended before it told of {wanted}")


async def claimed(fetch: Fetch, wanted: Claim) -> None:
    """Ask until this is the answer: where the fleet is slow, it is another."""

    async def look() -> bool:
        return await fetch.claim() == wanted

    await eventually_async(look)


class FleetSuite(ABC):
    """Subclasses make a fleet of two nodes, a at ``a:1`` and b at ``b:1``, that share the namespace ``default``."""

    @abstractmethod
    def nodes(self) -> AbstractAsyncContextManager[tuple[Fleet, Fleet]]:
        """The two."""

    @pytest.fixture
    async def fleets(self) -> AsyncIterator[tuple[Fleet, Fleet]]:
        async with self.nodes() as found:
            yield found

    @pytest.fixture
    def file(self, tmp_path: Path) -> str:
        """A file that a blob arrives in."""
        path = tmp_path / "arriving"
        path.write_bytes(bytes(100))
        return str(path)

    async def test_nobody_has_it(self, fleets: tuple[Fleet, Fleet]) -> None:
        """The first answer comes without peers."""
        async with fleets[0].find("default", BLOB) as found:
            assert list(await anext(found)) == []

    async def test_a_peer_fetches_it(self, fleets: tuple[Fleet, Fleet], file: str) -> None:
        """It is told with what it has, and that it has no more of it when it gives up."""
        a, b = fleets
        async with b.find("default", BLOB) as found:
            async with a.fetching("default", BLOB, 100) as fetch:
                fetch.arrived(file, 0)
                await until(found, [Peer("a", "a:1", 100, 0)])
                fetch.arrived(file, 60)
                await until(found, [Peer("a", "a:1", 100, 60)])
            await until(found, [])

    async def test_a_node_is_no_peer_of_its_own(self, fleets: tuple[Fleet, Fleet], file: str) -> None:
        """Of two that fetch the same, each sees the other."""
        a, b = fleets
        async with (
            a.fetching("default", BLOB, 100) as one,
            b.fetching("default", BLOB, 100) as other,
            a.find("default", BLOB) as of_a,
            b.find("default", BLOB) as of_b,
        ):
            one.arrived(file, 5)
            other.arrived(file, 7)
            await until(of_a, [Peer("b", "b:1", 100, 7)])
            await until(of_b, [Peer("a", "a:1", 100, 5)])

    async def test_one_of_them_claims_it(self, fleets: tuple[Fleet, Fleet]) -> None:
        """The other is told who, and gets the claim once the first has ended."""
        a, b = fleets
        async with contextlib.AsyncExitStack() as first, b.fetching("default", BLOB, 100) as other:
            one = await first.enter_async_context(a.fetching("default", BLOB, 100))
            await claimed(one, Claim("a", True))
            await claimed(other, Claim("a", False))
            await claimed(one, Claim("a", True))
            await first.aclose()
            await claimed(other, Claim("b", True))

    async def test_a_namespace_that_is_not_shared(self, fleets: tuple[Fleet, Fleet], file: str) -> None:
        """Nobody is told of its blobs, nor asked for them."""
        a, b = fleets
        async with a.fetching("private", BLOB, 100) as fetch, b.find("default", BLOB) as found:
            fetch.arrived(file, 50)
            assert await fetch.claim() == NOBODY
            assert list(await anext(found)) == []
            async with b.fetching("default", BLOB, 100) as other:
                await claimed(other, Claim("b", True))
                other.arrived(file, 1)
                async with a.find("private", BLOB) as none:
                    assert list(await anext(none)) == []
                async with a.find("default", BLOB) as some:
                    await until(some, [Peer("b", "b:1", 100, 1)])
