"""The fleet as the pull engine asks it."""

from __future__ import annotations

from services.fleet.memory import MemoryFleet, Village
from services.images.distribution.fleet_sources import FleetSources
from services.images.distribution.peers import Source
from services.oci.digests import digest_of

DIGEST = digest_of(b"blob")


async def test_one_node_fetches_and_the_other_follows() -> None:
    """The first claim is a node's own. The other node learns who has it, and later that all is there."""
    village = Village()
    one, two = (FleetSources(MemoryFleet(village, name, f"{name}:1")) for name in ("one", "two"))
    assert list(await one.sources(DIGEST, "default")) == []
    async with one.claim(DIGEST, "default", "/file", 4) as ours:
        assert await ours.holder(()) is None
        async with two.claim(DIGEST, "default", "/other", 4) as theirs:
            assert await theirs.holder(()) == Source("one", "one:1", 0, 4)
            assert await theirs.holder({"one"}) is None
            assert await ours.holder(()) == Source("two", "two:1", 0, 4)
        ours.complete()
        assert list(await two.sources(DIGEST, "default")) == [Source("one", "one:1", 4, 4)]
