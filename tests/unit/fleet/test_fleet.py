"""The fake of the fleet, and what a pull sees where the fleet is down."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.fleet.memory import MemoryFleet, Village
from services.fleet.remote import RemoteFleet
from services.fleet.store import NOBODY, PATIENCE, Image, Target, agreed
from services.kit import rpc
from tests.suites.fleet import BLOB, BOX, NEW, OLD, FleetSuite, Member, box, peers


class TestMemoryFleet(FleetSuite):
    @contextlib.asynccontextmanager
    async def nodes(self) -> AsyncIterator[tuple[Member, Member]]:
        village = Village()
        a, b = MemoryFleet(village, "a", "a:1"), MemoryFleet(village, "b", "b:1")
        yield Member(a, a, a), Member(b, b, b)


async def test_nothing_waits_where_the_process_is_down(tmp_path: Path) -> None:
    """There are no peers, and this node is to fetch the blob."""
    async with rpc.Channel(tmp_path / "fleet.sock", "fleet") as channel:
        fleet = RemoteFleet(channel)
        begun = time.monotonic()
        assert await peers(fleet) == []
        assert await fleet.image("default", BOX) is None
        async with fleet.fetching("default", BLOB, 100) as fetch:
            assert await fetch.claim() == NOBODY
            fetch.arrived("/file", 5)
            assert await fetch.claim() == NOBODY
        assert time.monotonic() - begun < 4 * PATIENCE + 1


@pytest.mark.parametrize(
    ("images", "wanted"),
    [
        ([], None),
        ([box("a", OLD)], OLD),
        ([box("a", NEW, updated=9), box("b", OLD, updated=1), box("c", OLD, updated=2)], OLD),
        ([box("a", NEW, updated=9), box("b", OLD, updated=1)], NEW),
        ([box("b", OLD, updated=9), box("a", NEW, updated=1)], OLD),
    ],
)
def test_what_most_have_counts(images: list[Image], wanted: Target | None) -> None:
    """Among equals, what was changed last."""
    assert agreed(images) == wanted
