"""The fake of the fleet, and what a pull sees where the fleet is down."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

from services.fleet.memory import MemoryFleet, Village
from services.fleet.remote import RemoteFleet
from services.fleet.store import NOBODY, PATIENCE, Fleet
from services.kit import rpc
from tests.suites.fleet import BLOB, FleetSuite


class TestMemoryFleet(FleetSuite):
    @contextlib.asynccontextmanager
    async def nodes(self) -> AsyncIterator[tuple[Fleet, Fleet]]:
        village = Village()
        yield MemoryFleet(village, "a", "a:1"), MemoryFleet(village, "b", "b:1")


async def test_nothing_waits_where_the_process_is_down(tmp_path: Path) -> None:
    """There are no peers, and this node is to fetch the blob."""
    async with rpc.Channel(tmp_path / "fleet.sock", "fleet") as channel:
        fleet = RemoteFleet(channel)
        begun = time.monotonic()
        async with fleet.find("default", BLOB) as found:
            assert list(await anext(found)) == []
        async with fleet.fetching("default", BLOB, 100) as fetch:
            assert await fetch.claim() == NOBODY
            fetch.arrived("/file", 5)
            assert await fetch.claim() == NOBODY
        assert time.monotonic() - begun < 4 * PATIENCE + 1
