"""A database that is older than its stores removes nothing that it does not know, until an operator releases it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from services.kit import errors
from services.metadata import schema
from services.metadata.gc import collector as collector_module
from services.metadata.gc import guard
from services.metadata.gc.collector import Collector
from services.metadata.gc.config import Config
from services.metadata.gc.memory import MemoryRawStores
from services.metadata.gc.tuning import Tuning
from services.metadata.store import Gateway, Held, Raw
from services.metadata.transactions import Transaction
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
def tuning() -> Tuning:
    """The default tuning; a test that needs another one is parametrized with it."""
    return Tuning()


@pytest.fixture
async def collector(world: World, stores: MemoryRawStores, tuning: Tuning) -> AsyncIterator[Collector]:
    async with Collector(world.database, stores, QUIET, lambda _: None, tuning=tuning).running() as running:
        yield running


def reason(world: World) -> str:
    held = world.database.view(guard.held)
    return held.reason if held is not None else ""


LOST = Raw(OVERLAY, "snapshot", "ns/2/lost")
BLOB = Raw(CONTENT, "blob", digest(9))


async def test_numbers_that_are_given_out_anew_do_not_end_it(world: World, stores: MemoryRawStores) -> None:
    """The database lost its second number and gives it out again before any check. The thing that got the number the
    first time is unknown to every record, and stays.
    """
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


async def test_a_hold_survives_the_process_and_known_things_are_collected(
    world: World, stores: MemoryRawStores
) -> None:
    """The next metadata process holds back the same things; its own garbage is removed."""
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


@pytest.mark.parametrize("tuning", [Tuning(victims=1)], ids=["small"])
async def test_a_sign_that_comes_during_a_sweep_counts(
    world: World, stores: MemoryRawStores, collector: Collector
) -> None:
    """Things that were found unreferenced before the sign, and were not yet removed, are judged by it: things that were
    never named here stay.
    """
    unknown, known = [Raw(CONTENT, "blob", digest(n)) for n in range(1, 5)], world.blob(9)
    for raw in (*unknown, known):
        stores.add(raw)

    async def found(method: str, name: str) -> None:
        if (method, name) == ("remove", unknown[0].name):
            await guard.hold(world.database, "damage was met with")

    stores.before = found
    assert (await collector.collect()).removed == (f"content {digest(1)}", f"content {digest(9)}")
    assert all(raw in stores for raw in unknown[1:])


@pytest.mark.parametrize("when", ["before", "while records are removed", "during a sweep"])
@pytest.mark.parametrize("tuning", [Tuning(victims=1, records=1)], ids=["small"])
async def test_by_a_damaged_database_nothing_is_collected(
    world: World, stores: MemoryRawStores, collector: Collector, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """A lost page had the record of an image. The blobs that it named may have records or not, and the notes that they
    were once named may be lost too: all blobs stay until an operator releases them.
    """
    blobs = [world.blob(n) for n in range(1, 5)]
    for raw in blobs:
        stores.add(raw)
    if when == "before":
        await guard.hold(world.database, "an older copy")
        await guard.hold(world.database, "damaged", damaged=True)
    elif when == "while records are removed":
        remove_batch = collector_module._remove_batch

        def met(tx: Transaction, *arguments: Any) -> Any:
            removed = remove_batch(tx, *arguments)
            schema.HELD.put(tx, value=Held(since=1, reason="damaged", damaged=True))
            return removed

        monkeypatch.setattr(collector_module, "_remove_batch", met)
    else:

        async def found(method: str, name: str) -> None:
            if method == "remove" and not reason(world):
                await guard.hold(world.database, "damaged", damaged=True)

        stores.before = found
    collected = await collector.collect()
    records = [blob.digest for _, blob in world.database.view(lambda tx: list(schema.BLOBS.scan(tx)))]
    assert reason(world) == "damaged"
    assert (len(records), len(stores.blobs)) == {
        "before": (4, 4),
        "while records are removed": (3, 4),
        "during a sweep": (0, 3),
    }[when]
    assert "damaged" in " ".join((await collector.collect()).failed), collected
    monkeypatch.undo()
    stores.before = None
    await guard.release(world.database)
    await collector.collect()
    assert not stores.blobs


async def test_an_operator_ends_it(world: World, stores: MemoryRawStores, collector: Collector) -> None:
    """After the release unknown things are garbage, including those with numbers that were never given out; and the
    guard works again as before.
    """
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
    """Signs that are found later are consequences of the first."""
    await guard.hold(world.database, "first")
    await guard.hold(world.database, "second")
    assert reason(world) == "first"


@pytest.mark.parametrize("tuning", [Tuning(beside=0.01, again=0.0)], ids=["small"])
async def test_no_unknown_blob_goes_before_the_snapshotters_were_looked_at(
    world: World, stores: MemoryRawStores, collector: Collector
) -> None:
    """Blobs have no numbers: while a snapshotter is absent or does not answer, known blobs are removed, and no
    others.
    """
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


async def test_nothing_is_collected_before_it_is_known_whether_the_database_is_whole(
    world: World, stores: MemoryRawStores
) -> None:
    """A caller that asks for a collection at the start waits for that check."""
    stores.add(world.blob(1))
    known = asyncio.Event()

    async def ready() -> None:
        await known.wait()

    async with Collector(
        world.database, stores, Config(startup_delay=0.001), lambda _: None, ready
    ).running() as collector:
        asked = asyncio.create_task(collector.collect())
        done, _ = await asyncio.wait([asked], timeout=0.1)
        assert not done
        assert stores.calls == []
        known.set()
        assert (await asked).removed == (f"content {digest(1)}",)


@pytest.mark.parametrize("stamp", ["another", ""])
async def test_a_store_declared_foreign_is_not_released(world: World, stamp: str) -> None:
    """A proxy plugin may be another node's snapshotter, in use by that node: it holds back nothing of ours, and a
    release of our stores does not apply to it.
    """
    store_id = await world.database.store_id()
    gateway = Gateway(incarnation="g", content=CONTENT, snapshotters=("overlayfs", "mine"))
    await world.database.transactions.write(lambda tx: schema.GATEWAY.put(tx, value=gateway))
    stores = MemoryRawStores(content=store_id, snapshots_overlayfs=store_id, snapshots_mine=stamp)
    theirs = Raw("snapshots.mine", "snapshot", "ns/1/theirs")
    stores.add(theirs)
    async with Collector(
        world.database, stores, QUIET, lambda _: None, foreign=["snapshots.mine"]
    ).running() as collector:
        await collector.collect()
        assert not reason(world)
        stores.add(Raw(OVERLAY, "snapshot", "ns/77/lost"))
        await collector.collect()
        await guard.release(world.database)
        assert (await collector.collect()).removed == ("snapshot overlayfs ns/77/lost",)
        await collector.collect()
    assert theirs in stores
    assert stores.stamps["snapshots.mine"] == stamp
