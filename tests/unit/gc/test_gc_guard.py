"""A database that is older than its stores removes nothing that it does not know, until an operator says so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from services.kit import errors
from services.metadata.gc import Collector, Config, guard
from services.metadata.gc import sweep as sweep_module
from services.metadata.gc.memory import MemoryRawStores
from services.metadata.store import Raw
from tests.unit.gc.gc_graphs import CONTENT, OVERLAY, World, digest

QUIET = Config(startup_delay=3600.0)


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
async def stores(world: World) -> MemoryRawStores:
    store_id = await world.database.store_id()
    return MemoryRawStores(content=store_id, snapshots_overlayfs=store_id)


@pytest.fixture
async def collector(world: World, stores: MemoryRawStores) -> AsyncIterator[Collector]:
    async with Collector(world.database, stores, QUIET, lambda _: None).running() as running:
        yield running


def reason(world: World) -> str:
    held = world.database.view(guard.held)
    return held.reason if held is not None else ""


LOST = Raw(OVERLAY, "snapshot", "ns/2/lost")
BLOB = Raw(CONTENT, "blob", digest(9))


async def test_numbers_that_are_given_out_anew_do_not_end_it(world: World, stores: MemoryRawStores) -> None:
    """The database lost its second number, and gives it out again before anybody looks: what was made by it the first time is known by nobody, and stays."""
    stores.add(world.snapshot("first", labels={"gc.root": "x"}))
    async with Collector(world.database, stores, QUIET, lambda _: None).running() as before:
        await before.collect()
    stores.add(LOST)
    stores.add(BLOB)
    async with Collector(world.database, stores, QUIET, lambda _: None).running() as collector:
        for name in ("second", "third"):
            stores.add(world.snapshot(name, labels={"gc.root": "x"}))
        assert (await collector.collect()).removed == ()
        assert "ns/2/lost" in reason(world)
        stores.snapshots.pop(LOST)  # the sign is gone, and what else was lost with it is not
        assert (await collector.collect()).removed == ()
    assert BLOB in stores
    assert "ns/2/lost" in reason(world)


async def test_it_outlives_the_process_and_what_is_known_goes_meanwhile(world: World, stores: MemoryRawStores) -> None:
    """The next metadata process holds back the same; its own garbage goes."""
    stores.add(LOST)
    async with Collector(world.database, stores, QUIET, lambda _: None).running() as first:
        await first.collect()
    stores.snapshots.pop(LOST)
    stores.add(BLOB)
    known = world.snapshot("known")
    stores.add(known)
    async with Collector(world.database, stores, QUIET, lambda _: None).running() as second:
        assert (await second.collect()).removed == (f"snapshot overlayfs {known.name}",)
    assert BLOB in stores


async def test_an_operator_ends_it(world: World, stores: MemoryRawStores, collector: Collector) -> None:
    """Then what nobody knows is garbage, numbers that were never given out too; and the guard is as good as before."""
    stores.add(Raw(OVERLAY, "snapshot", "ns/77/lost"))
    stores.add(BLOB)
    assert (await collector.collect()).removed == ()
    await guard.release(world.database)
    assert set((await collector.collect()).removed) == {"snapshot overlayfs ns/77/lost", f"content {digest(9)}"}
    assert not reason(world)
    stores.add(Raw(OVERLAY, "snapshot", "ns/78/lost"))
    assert (await collector.collect()).removed == ()
    assert "ns/78/lost" in reason(world)


async def test_the_first_reason_stays(world: World) -> None:
    """What is found later is what came of it."""
    await guard.hold(world.database, "first")
    await guard.hold(world.database, "second")
    assert reason(world) == "first"


async def test_no_unknown_blob_goes_before_the_snapshotters_were_looked_at(world: World, stores: MemoryRawStores, collector: Collector,
                                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    """Blobs have no numbers: while a snapshotter is away, or does not answer, those that are known go, and no other."""
    monkeypatch.setattr(sweep_module, "_BESIDE", 0.01)
    known = world.blob(1)
    stores.add(known)
    stores.add(BLOB)

    async def away(method: str, name: str) -> None:
        if name == OVERLAY:
            raise errors.Unavailable("overlayfs is away")

    async def silent(method: str, name: str) -> None:
        if (method, name) == ("list", OVERLAY):
            await asyncio.sleep(0.2)

    stores.before = away
    assert (await collector.collect()).removed == (f"content {digest(1)}",)
    stores.before = silent
    assert (await collector.collect()).removed == ()
    stores.before = None
    assert (await collector.collect()).removed == (f"content {digest(9)}",)
