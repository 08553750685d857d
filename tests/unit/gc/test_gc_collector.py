"""Collecting on raw stores in memory: which records and raw things are removed, which stay, and what happens when a
client writes in between.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from services.kit import errors, tracing
from services.metadata import schema
from services.metadata.database import Busy, Database
from services.metadata.gc import collector as gc_collector
from services.metadata.gc import guard
from services.metadata.gc.coalescing import Coalescing
from services.metadata.gc.collector import Collector
from services.metadata.gc.config import Config
from services.metadata.gc.mark import Node
from services.metadata.gc.memory import MemoryRawStores
from services.metadata.gc.tuning import Tuning
from services.metadata.intents import check_no_blob_sweeping
from services.metadata.leases import Leases
from services.metadata.sqlite import SqliteTransactions
from services.metadata.store import Blob, Event, Gateway, Image, Lease, Mark, Raw
from tests.spans import Spans, attribute, recorded
from tests.support import eventually_async
from tests.unit.gc.gc_graphs import CONTENT, HOUR, NOW, OVERLAY, SECOND, World, digest, stamp

QUIET = Config(startup_delay=3600.0)
"""With these settings only collections that a test requests run."""


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture(params=["one at a time", "together"])
async def stores(world: World, request: pytest.FixtureRequest) -> MemoryRawStores:
    """The raw stores; their stamps say that they are ours."""
    store_id = await world.database.store_id()
    made = MemoryRawStores(content=store_id, snapshots_overlayfs=store_id)
    made.together = request.param == "together"
    return made


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
def tuning() -> Tuning:
    """The default tuning; a test that needs another one is parametrized with it."""
    return Tuning()


@pytest.fixture
async def collector(
    world: World, stores: MemoryRawStores, events: list[Event], tuning: Tuning
) -> AsyncIterator[Collector]:
    made = Collector(world.database, stores, QUIET, events.append, tuning=tuning)
    world.database.collector = made
    async with made.running():
        yield made


def blob(number: int) -> Raw:
    return Raw(CONTENT, "blob", digest(number))


def raw_snapshot(key: str) -> Raw:
    return Raw(OVERLAY, "snapshot", key)


# ------------------------------------------------------------------------------------------ what goes


async def test_dead_records_go_with_their_raw_things(
    world: World, stores: MemoryRawStores, collector: Collector
) -> None:
    """A collection removes records that nothing refers to, and then their raw things. Living records keep theirs."""
    world.image("image", 1)
    kept = [world.blob(1), world.ingest("young", NOW + HOUR)]
    gone = [world.blob(2), world.ingest("old", NOW - 1), world.snapshot("s")]
    for raw in (*kept, *gone):
        stores.add(raw)
    done = await collector.collect()
    assert set(done.removed) == {f"content {digest(2)}", f"ingest {gone[1].name}", f"snapshot overlayfs {gone[2].name}"}
    assert done.failed == ()
    assert [raw in stores for raw in kept] == [True, True]
    assert [raw in stores for raw in gone] == [False, False, False]
    assert world.living() == {"image image", "content 1", "ingest young"}
    assert world.marks() == set()
    assert world.named() == set(kept)


async def test_raw_things_without_a_record_go(world: World, stores: MemoryRawStores, collector: Collector) -> None:
    """In a store of ours a raw thing that no record names is garbage, whether we ever knew it or not."""
    for raw in (blob(1), Raw(CONTENT, "ingest", "ns/0/x"), raw_snapshot("ns/0/s"), raw_snapshot("odd")):
        stores.add(raw)
    done = await collector.collect()
    assert len(done.removed) == 4
    assert not stores.blobs
    assert not stores.ingests
    assert not stores.snapshots


async def test_a_blob_goes_with_its_last_namespace(world: World, stores: MemoryRawStores, collector: Collector) -> None:
    """Raw content stays while any namespace has a record of it, or while a writer has been told that its bytes are
    there already.
    """
    raw = world.blob(1)
    world.blob(1, {"gc.root": "x"}, ns="other")
    shared = blob(2)
    world.ingest("shared", NOW + HOUR, digest(2), shared=True)
    stores.add(raw)
    stores.add(shared)
    assert (await collector.collect()).removed == ()
    assert world.living() == {"other:content 1", "ingest shared"}
    world.drop(raw)
    assert (await collector.collect()).removed == (f"content {digest(1)}",)


async def test_children_go_before_their_parents(world: World, stores: MemoryRawStores, collector: Collector) -> None:
    """Raw snapshots are removed from the leaves on; then the snapshotter cleans up."""
    keys = [f"ns/0/{n}" for n in "zyxwv"]
    for parent, key in zip(["", *keys], keys, strict=False):
        stores.add(raw_snapshot(key), parent=parent)
    done = await collector.collect()
    assert done.removed == tuple(f"snapshot overlayfs {key}" for key in reversed(keys))
    assert stores.calls.index(("cleanup", OVERLAY)) > stores.calls.index(("remove", keys[0]))


async def test_ancestors_of_kept_snapshots_stay(world: World, stores: MemoryRawStores, collector: Collector) -> None:
    """A raw parent without a record stays as long as a recorded snapshot stands on it."""
    world.container("c", "top")
    top = world.snapshot("top")
    stores.add(raw_snapshot("ns/0/base"))
    stores.add(top, parent="ns/0/base")
    assert (await collector.collect()).removed == ()
    assert ("remove", "ns/0/base") not in stores.calls


async def test_events_are_those_of_containerd(
    world: World, stores: MemoryRawStores, events: list[Event], collector: Collector
) -> None:
    """A collection publishes removed images and snapshots, in their namespaces, and nothing for content or leases."""
    world.image("old", 1, {"gc.expire": stamp(NOW - HOUR)}, ns="other")
    world.blob(1, ns="other")
    world.snapshot("s")
    world.lease("over", labels={"gc.expire": stamp(NOW - HOUR)})
    await collector.collect()
    assert sorted(events) == [
        Event("ns", "/snapshot/remove", {"key": "s", "snapshotter": "overlayfs"}),
        Event("other", "/images/delete", {"name": "old"}),
    ]
    assert not schema.LEASES.has(world.transactions._state, "ns", "over")


async def test_one_failure_stops_nothing_else(world: World, stores: MemoryRawStores, collector: Collector) -> None:
    """A raw thing that cannot be removed is reported, unmarked and tried again by the next collection."""
    raws = [world.snapshot(name) for name in "abc"]
    for raw in raws:
        stores.add(raw)
    stuck = raws[1].name

    async def refuse(method: str, name: str) -> None:
        if (method, name) == ("remove", stuck):
            raise errors.Internal("device or resource busy")

    stores.before = refuse
    done = await collector.collect()
    assert len(done.removed) == 2
    assert done.failed == (f"snapshot overlayfs {stuck}: device or resource busy",)
    assert world.marks() == set()
    stores.before = None
    assert (await collector.collect()).removed == (f"snapshot overlayfs {stuck}",)
    assert world.named() == set()


@pytest.mark.parametrize("tuning", [Tuning(retry=0.02)], ids=["small"])
async def test_a_backend_that_is_away_postpones_only_itself(
    world: World, stores: MemoryRawStores, collector: Collector
) -> None:
    """The other backends are swept. The absent one is swept as soon as it is back, without a request."""
    gone = [world.blob(1), world.snapshot("s")]
    for raw in gone:
        stores.add(raw)
    away = True

    async def absent(method: str, name: str) -> None:
        if away and (method, name) == ("list", CONTENT):
            raise errors.Disconnected("service content is not reachable")

    stores.before = absent
    done = await collector.collect()
    assert done.removed == (f"snapshot overlayfs {gone[1].name}",)
    assert done.failed == ("backend content: service content is not reachable: unavailable",)
    away = False
    await eventually_async(lambda: _async(gone[0] not in stores))


async def _async(value: object) -> object:
    return value


async def test_a_hanging_backend_delays_no_other(world: World, stores: MemoryRawStores, collector: Collector) -> None:
    """Records are removed, other backends are swept and their marks are set while one backend does not answer."""
    hanging = asyncio.Event()

    async def hang(method: str, name: str) -> None:
        if (method, name) == ("list", CONTENT):
            await hanging.wait()

    stores.before = hang
    raw = world.snapshot("s")
    stores.add(raw)
    waiting = asyncio.create_task(collector.collect())
    await eventually_async(lambda: _async(raw not in stores))
    again = world.snapshot("again")
    stores.add(again)
    world.database.schedule("deletion")
    second = asyncio.create_task(collector.collect())
    await eventually_async(lambda: _async(again not in stores))
    assert not waiting.done()
    hanging.set()
    assert f"snapshot overlayfs {raw.name}" in (await waiting).removed
    assert f"snapshot overlayfs {again.name}" in (await second).removed


@pytest.mark.parametrize("tuning", [Tuning(silence=0.05, retry=0.01)], ids=["impatient"])
async def test_nobody_waits_for_a_silent_backend_of_others(
    world: World, stores: MemoryRawStores, tuning: Tuning
) -> None:
    """A delete of what another snapshotter has is answered; what the silent one has is collected when it answers."""
    theirs = f"{OVERLAY}@theirs"
    gateway = Gateway(incarnation="g", content=CONTENT, snapshotters=("overlayfs",), candidates=(theirs,))
    await world.database.write(lambda tx: schema.GATEWAY.put(tx, value=gateway))
    hanging = asyncio.Event()

    async def hang(method: str, name: str) -> None:
        if (method, name) == ("list", theirs):
            await hanging.wait()

    stores.before = hang
    world.end(world.intent("prepare", key="k", raw_key="ns/7/k", backend=theirs))
    garbage = Raw(theirs, "snapshot", "ns/7/k")
    stores.add(garbage)
    collector = Collector(world.database, stores, QUIET, lambda _: None, tuning=tuning)
    async with collector.running():
        for name in ("s", "again"):
            raw = world.snapshot(name)
            stores.add(raw)
            world.database.schedule("deletion")
            done = await asyncio.wait_for(collector.collect(), 10)
            assert done.removed == (f"snapshot overlayfs {raw.name}",)
            assert done.failed == (f"backend {theirs}: it has been silent for 0.05 s",)
        hanging.set()
        await eventually_async(lambda: _async(garbage not in stores))


async def test_a_deletion_waits_for_what_goes_of_its_own(world: World, stores: MemoryRawStores) -> None:
    """A backend of others that hangs holds up no deletion in a namespace that has nothing to remove there, from the
    first moment; those that have something wait for it, and for no other one.
    """
    hangs, slow = f"{OVERLAY}@hangs", f"{OVERLAY}@slow"
    gateway = Gateway(incarnation="g", content=CONTENT, snapshotters=("overlayfs",), candidates=(hangs, slow))
    await world.database.write(lambda tx: schema.GATEWAY.put(tx, value=gateway))
    answers = {hangs: asyncio.Event(), slow: asyncio.Event()}

    async def hang(method: str, name: str) -> None:
        if method == "list" and name in answers:
            await answers[name].wait()

    stores.before = hang
    theirs = [Raw(hangs, "snapshot", "hung/7/k"), Raw(slow, "snapshot", "waits/7/k")]
    mine = world.snapshot("s", ns="mine")
    for raw in theirs:
        world.end(world.intent("prepare", key="k", raw_key=raw.name, backend=raw.backend))
    for raw in (*theirs, mine):
        stores.add(raw)
    collector = Collector(world.database, stores, QUIET, lambda _: None, tuning=Tuning(silence=3600.0))
    async with collector.running():
        deletions = {
            namespace: asyncio.create_task(collector.collect(everything=False, namespace=namespace))
            for namespace in ("mine", "waits", "hung")
        }
        done = await asyncio.wait_for(deletions["mine"], 15)
        assert (done.removed, done.failed) == ((f"snapshot overlayfs {mine.name}",), ())
        assert not deletions["waits"].done()
        answers[slow].set()
        assert f"snapshot overlayfs@slow {theirs[1].name}" in (await asyncio.wait_for(deletions["waits"], 15)).removed
        assert not deletions["hung"].done()
        answers[hangs].set()
        assert f"snapshot overlayfs@hangs {theirs[0].name}" in (await asyncio.wait_for(deletions["hung"], 15)).removed


async def test_who_waits_for_all_waits_for_a_hanging_backend(world: World, stores: MemoryRawStores) -> None:
    """An operator's collection has no namespace. What a snapshotter named itself may be anybody's."""
    hangs = f"{OVERLAY}@hangs"
    gateway = Gateway(incarnation="g", content=CONTENT, snapshotters=("overlayfs",), candidates=(hangs,))
    await world.database.write(lambda tx: schema.GATEWAY.put(tx, value=gateway))
    hanging = asyncio.Event()

    async def hang(method: str, name: str) -> None:
        if (method, name) == ("list", hangs):
            await hanging.wait()

    stores.before = hang
    world.end(world.intent("prepare", key="k", raw_key="their own", backend=hangs))
    stores.add(Raw(hangs, "snapshot", "their own"))
    mine = world.snapshot("s", ns="mine")
    stores.add(mine)
    collector = Collector(world.database, stores, QUIET, lambda _: None, tuning=Tuning(silence=3600.0))
    async with collector.running():
        waiting = [
            asyncio.create_task(collector.collect()),
            asyncio.create_task(collector.collect(everything=False, namespace="mine")),
        ]
        await eventually_async(lambda: _async(mine not in stores))
        await collector.lane.slice().next()
        assert not any(each.done() for each in waiting)
        hanging.set()
        for each in waiting:
            assert "snapshot overlayfs@hangs their own" in (await asyncio.wait_for(each, 15)).removed


@pytest.mark.parametrize("tuning", [Tuning(retry=0.01)], ids=["impatient"])
async def test_a_candidate_that_is_gone_is_not_asked_again(
    world: World, stores: MemoryRawStores, tuning: Tuning
) -> None:
    """Its sweep was postponed, since it was away."""
    gone = f"{OVERLAY}@gone"
    gateway = Gateway(incarnation="g", content=CONTENT, snapshotters=("overlayfs",), candidates=(gone,))
    await world.database.write(lambda tx: schema.GATEWAY.put(tx, value=gateway))

    async def away(method: str, name: str) -> None:
        if name == gone:
            raise errors.Unavailable("it is away")

    stores.before = away
    world.end(world.intent("prepare", key="k", raw_key="ns/7/k", backend=gone))
    collector = Collector(world.database, stores, QUIET, lambda _: None, tuning=tuning)
    async with collector.running():
        await collector.collect()
        assert collector._retries
        await world.database.write(lambda tx: schema.GATEWAY.put(tx, value=replace(gateway, candidates=())))
        await eventually_async(lambda: _async(not collector._retries))


# ------------------------------------------------------------------------------------------ races


async def test_a_commit_between_listing_and_marking_is_safe(
    world: World, stores: MemoryRawStores, collector: Collector
) -> None:
    """A blob that was garbage when it was listed, but has a record or an intent when it would be marked, stays."""
    for number in (1, 2, 3):
        stores.add(blob(number))

    async def commit(method: str, name: str) -> None:
        if (method, name) == ("list", CONTENT):
            world.blob(1, {"gc.root": "x"})
            world.intent("commit-ingest", ref="r", raw_ref="ns/1/r", expected=digest(2))

    stores.before = commit
    assert (await collector.collect()).removed == (f"content {digest(3)}",)


@pytest.mark.parametrize("tuning", [Tuning(retry=0.02)], ids=["small"])
async def test_a_commit_of_an_unknown_digest_holds_all_blobs(
    world: World, stores: MemoryRawStores, collector: Collector
) -> None:
    """While a commit without a digest is open, no blob is removed; afterwards the sweep resumes by itself."""
    stores.add(blob(1))
    stores.add(Raw(CONTENT, "ingest", "ns/0/old"))
    intent = world.intent("commit-ingest", ref="r", raw_ref="ns/1/r")
    assert (await collector.collect()).removed == ("ingest ns/0/old",)
    world.end(intent)
    await eventually_async(lambda: _async(blob(1) not in stores))


async def test_a_caller_that_wants_a_blob_being_swept_waits_until_it_is_gone(
    world: World, stores: MemoryRawStores, collector: Collector
) -> None:
    """A commit that comes while the blob is being removed begins after the removal and finds the blob gone."""
    stores.add(blob(1))
    removing, go_on = asyncio.Event(), asyncio.Event()

    async def hold(method: str, name: str) -> None:
        if method == "remove":
            removing.set()
            await go_on.wait()

    stores.before = hold
    collecting = asyncio.create_task(collector.collect())
    await removing.wait()
    assert world.marks() == {blob(1)}
    with pytest.raises(Busy):
        world.database.view(lambda tx: check_no_blob_sweeping(tx, CONTENT, digest(1)))
    commit = asyncio.create_task(world.database.write(lambda tx: check_no_blob_sweeping(tx, CONTENT, digest(1))))
    anything = asyncio.create_task(world.database.write(lambda tx: check_no_blob_sweeping(tx, CONTENT, "")))
    other = asyncio.create_task(world.database.write(lambda tx: check_no_blob_sweeping(tx, CONTENT, digest(2))))
    await other
    assert not commit.done()
    assert not anything.done()
    go_on.set()
    await asyncio.wait_for(asyncio.gather(commit, anything), 5)
    assert blob(1) not in stores
    await collecting


async def test_a_snapshot_that_an_open_prepare_asks_for_stays(
    world: World, stores: MemoryRawStores, collector: Collector
) -> None:
    """While a Prepare asks for a target, no raw snapshot with that label is removed, nor any snapshot below it. A mark
    says for which target it is.
    """
    stores.add(raw_snapshot("ns/0/base"))
    stores.add(raw_snapshot("ns/0/remote"), parent="ns/0/base", reference="chain")
    stores.add(raw_snapshot("ns/0/other"), parent="ns/0/base", reference="other")
    intent = world.intent("prepare", key="k", target="chain", raw_key="ns/1/k")
    seen: list[Mark | None] = []

    async def look(method: str, name: str) -> None:
        if method == "remove":
            seen.append(schema.SWEEPING.get(world.transactions._state, *raw_snapshot(name)))

    stores.before = look
    assert (await collector.collect()).removed == ("snapshot overlayfs ns/0/other",)
    assert [mark.reference for mark in seen if mark] == ["other"]
    world.end(intent)
    assert (await collector.collect()).removed == ("snapshot overlayfs ns/0/remote", "snapshot overlayfs ns/0/base")


async def test_a_victim_that_gets_a_record_before_its_batch_is_spared(
    world: World, stores: MemoryRawStores, collector: Collector
) -> None:
    """Victims are marked in batches and checked again: one that was adopted meanwhile stays."""
    keys = [f"ns/0/{n:03}" for n in range(40)]
    for key in keys:
        stores.add(raw_snapshot(key))

    async def adopt(method: str, name: str) -> None:
        if (method, name) == ("remove", keys[0]):
            assert raw_snapshot(keys[-1]) not in world.marks()
            world._write(lambda tx: schema.put_snapshot(tx, "ns", "overlayfs", _adopted(keys[-1])))
            world.container("c", "adopted")

    stores.before = adopt
    done = await collector.collect()
    assert len(done.removed) == 39
    assert raw_snapshot(keys[-1]) in stores


def _after_the_look(collector: Collector, monkeypatch: pytest.MonkeyPatch, then: Callable[[], Awaitable[None]]) -> None:
    """Run an action when a collection has looked at all records."""
    through = collector.lane.through

    async def looked(steps: Any) -> Any:
        found = await through(steps)
        monkeypatch.setattr(collector.lane, "through", through)
        await then()
        return found

    monkeypatch.setattr(collector.lane, "through", looked)


def _adopted(key: str):
    from services.metadata.store import Snapshot

    return Snapshot(name="adopted", raw_key=key, backend=OVERLAY, kind="committed")


# ------------------------------------------------------------------------------------------ unknown outcomes, and what
# dead processes left


@pytest.mark.parametrize("tuning", [Tuning(retry=0.02)], ids=["small"])
async def test_a_removal_with_an_unknown_outcome_keeps_its_mark(
    world: World, stores: MemoryRawStores, collector: Collector
) -> None:
    """The removal may still happen, so its mark stays until the backend answers. Things whose removal was not requested
    yet are unmarked.
    """
    stores.together = False
    for number in (1, 2):
        stores.add(blob(number))
    away = True

    async def absent(method: str, name: str) -> None:
        if away and method == "remove":
            raise errors.Disconnected("service content is not reachable")

    stores.before = absent
    done = await collector.collect()
    assert done.removed == ()
    assert len(done.failed) == 1
    assert world.marks() == {blob(1)}
    away = False
    await eventually_async(lambda: _async(not world.marks() and not stores.blobs))


async def test_a_removal_that_takes_too_long_does_not_stop_the_others(
    world: World, stores: MemoryRawStores, collector: Collector
) -> None:
    """It stays marked, since it may still happen; the next sweep checks its outcome."""
    stores.together = False
    slow = True

    async def time_out(method: str, name: str) -> None:
        if slow and (method, name) == ("remove", "ns/0/a"):
            raise errors.DeadlineExceeded("snapshotter is busy")

    stores.before = time_out
    for key in ("ns/0/a", "ns/0/b"):
        stores.add(raw_snapshot(key))
    done = await collector.collect()
    assert done.removed == ("snapshot overlayfs ns/0/b",)
    assert [line.split(":")[0] for line in done.failed] == ["snapshot overlayfs ns/0/a"]
    assert world.marks() == {raw_snapshot("ns/0/a")}
    slow = False
    assert (await collector.collect()).removed == ("snapshot overlayfs ns/0/a",)
    assert world.marks() == set()


async def test_a_repeated_removal_that_finds_nothing_was_ours(
    world: World, stores: MemoryRawStores, collector: Collector
) -> None:
    """If the first answer was lost, NOT_FOUND to the second call counts as success."""
    stores.add(blob(1))
    first = True

    async def lose(method: str, name: str) -> None:
        nonlocal first
        if method == "remove" and first:
            first = False
            stores.blobs.clear()
            raise errors.Disconnected("service content is not reachable")

    stores.before = lose
    assert (await collector.collect()).removed == (f"content {digest(1)}",)
    assert world.marks() == set()


async def test_marks_of_a_dead_process_are_resolved(
    world: World, stores: MemoryRawStores, collector: Collector
) -> None:
    """Things that still exist are removed; things that are gone or have a record are unmarked."""
    there, gone, recorded = blob(1), blob(2), world.blob(3, {"gc.root": "x"})
    base = raw_snapshot("ns/0/base")
    for raw in (there, recorded, base):
        stores.add(raw)
    stores.add(world.snapshot("child", labels={"gc.root": "x"}), parent=base.name)
    for raw in (there, gone, recorded, base):
        world._write(lambda tx, raw=raw: schema.set_marks(tx, [raw], Mark(since=1)))
    assert (await collector.collect()).removed == (f"content {digest(1)}",)
    assert world.marks() == set()
    assert recorded in stores
    assert base in stores


async def test_marks_of_many_blobs_that_a_dead_process_left_are_resolved(
    world: World, stores: MemoryRawStores, collector: Collector
) -> None:
    """Marks of blobs that were to be removed in one call are resolved as single ones are, whatever became of each
    blob.
    """
    there, gone, recorded = blob(1), blob(2), world.blob(3, {"gc.root": "x"})
    for raw in (there, recorded):
        stores.add(raw)
    world._write(lambda tx: schema.mark_blobs(tx, CONTENT, [raw.name for raw in (there, gone, recorded)]))
    assert world.marks() == {there, gone, recorded}
    assert (await collector.collect()).removed == (f"content {digest(1)}",)
    assert world.marks() == set()
    assert recorded in stores


async def test_of_many_blobs_that_go_in_one_call_each_is_marked(
    world: World, stores: MemoryRawStores, collector: Collector
) -> None:
    """A caller that wants one of them waits until the call is over, and then the blob is gone. A blob that was not
    removed is unmarked as the others are, and stays named.
    """
    await collector.collect()
    raws = [world.blob(number) for number in range(100)]
    for raw in raws:
        stores.add(raw)
    waiting: list[asyncio.Task[None]] = []

    async def look(method: str, name: str) -> None:
        if (method, name) == ("remove", digest(80)):
            for number in (70, 90):
                assert blob(number) in world.marks()
                waiting.append(
                    asyncio.create_task(
                        world.database.write(
                            lambda tx, number=number: check_no_blob_sweeping(tx, CONTENT, digest(number))  # type: ignore[misc]
                        )
                    )
                )
            await eventually_async(lambda: _async(len(world.database._asleep) == len(waiting)))
            assert not any(task.done() for task in waiting)
            raise errors.Internal("it is read-only")

    stores.together = True
    stores.before = look
    assert len((await collector.collect(everything=False)).removed) == 99
    await asyncio.wait_for(asyncio.gather(*waiting), 5)
    assert stores.blobs == world.named() == {blob(80)}
    assert world.marks() == set()


# ------------------------------------------------------------------------------------------ whose a raw store is


async def test_a_new_store_becomes_ours(world: World, stores: MemoryRawStores, collector: Collector) -> None:
    """A store that is empty, or has only things that we named, is stamped; from then on unknown things in it are
    garbage.
    """
    stores.stamps = {CONTENT: "", OVERLAY: ""}
    stores.add(world.blob(1, {"gc.root": "x"}))
    await collector.collect()
    assert set(stores.stamps.values()) == {await world.database.store_id()}
    stores.add(blob(2))
    assert (await collector.collect()).removed == (f"content {digest(2)}",)


async def test_an_unstamped_store_with_contents_is_not_wiped(
    world: World, stores: MemoryRawStores, collector: Collector
) -> None:
    """A store that was filled by another system, or by a database that is lost, keeps the things that we do not know.
    Things that we named and gave up are removed.
    """
    stores.stamps[CONTENT] = ""
    stores.add(blob(1))
    stores.add(world.blob(2))
    assert (await collector.collect()).removed == (f"content {digest(2)}",)
    assert stores.stamps[CONTENT] == ""
    assert blob(1) in stores


@pytest.mark.parametrize("stamp", ["", "another"])
async def test_a_store_that_was_anothers_is_ours_once_an_operator_says_so(
    world: World, stores: MemoryRawStores, collector: Collector, stamp: str
) -> None:
    """The report of held-back things tells the operator that the store is not ours. After the release unknown things
    are removed, and later sweeps treat the store as ours.
    """
    stores.stamps[CONTENT] = stamp
    stores.add(blob(1))
    await collector.collect()
    held = world.database.view(guard.held)
    assert held is not None
    assert held.reason.startswith("content: it ")
    await guard.release(world.database)
    assert (await collector.collect()).removed == (f"content {digest(1)}",)
    assert stores.stamps[CONTENT] == await world.database.store_id()
    stores.add(blob(2))
    assert (await collector.collect()).removed == (f"content {digest(2)}",)
    assert world.database.view(guard.held) is None


async def test_another_databases_store_is_not_touched(
    world: World, stores: MemoryRawStores, collector: Collector
) -> None:
    """In a store with another id nothing is removed, not even things that we named: the store may be a second
    database's.
    """
    stores.stamps[CONTENT] = "another"
    stores.add(blob(1))
    stores.add(world.blob(2))
    done = await collector.collect()
    assert done.removed == ()
    assert len(done.failed) == 1
    assert "belongs to another metadata store (another" in done.failed[0]
    assert len(stores.blobs) == 2


async def test_an_older_copy_of_the_database_removes_nothing_that_it_does_not_know(
    world: World, stores: MemoryRawStores, collector: Collector
) -> None:
    """A raw key with a number that was never given out shows that this database is older than the store."""
    known = world.snapshot("known")
    for raw in (known, raw_snapshot("ns/99/later"), raw_snapshot("elsewhere/1/x")):
        stores.add(raw)
    assert (await collector.collect()).removed == (f"snapshot overlayfs {known.name}",)
    assert len(stores.snapshots) == 2


async def test_in_a_foreign_store_only_things_that_we_named_are_removed(
    world: World, stores: MemoryRawStores, collector: Collector
) -> None:
    """A snapshotter without Stamp has things of other clients. Only our own are removed, including those that only an
    intent named, and none that another's child stands on.
    """
    stores.stamps[OVERLAY] = None
    ours, under = world.snapshot("ours"), world.snapshot("under")
    intent = world.intent("prepare", key="k", raw_key="ns/7/k")
    world.end(intent)
    for raw in (ours, under, raw_snapshot("ns/7/k"), raw_snapshot("k8s.io/12/theirs")):
        stores.add(raw)
    stores.add(raw_snapshot("k8s.io/13/theirs"), parent=under.name)
    done = await collector.collect()
    assert set(done.removed) == {f"snapshot overlayfs {ours.name}", "snapshot overlayfs ns/7/k"}
    assert done.failed == ()
    assert stores.stamps[OVERLAY] is None
    assert world.named() == {under}


async def test_in_a_candidates_store_only_things_that_we_named_are_removed(
    world: World, stores: MemoryRawStores, collector: Collector
) -> None:
    """Not even where it carries our stamp, as the store of a service that had the place before does; and it is not
    stamped.
    """
    candidate = f"{OVERLAY}@mine"
    gateway = Gateway(incarnation="g", content=CONTENT, snapshotters=("overlayfs",), candidates=(candidate,))
    await world.database.write(lambda tx: schema.GATEWAY.put(tx, value=gateway))
    intent = world.intent("prepare", key="k", raw_key="ns/7/k", backend=candidate)
    world.end(intent)
    ours, unknown = Raw(candidate, "snapshot", "ns/7/k"), Raw(candidate, "snapshot", "ns/8/unknown")
    for found in ("", await world.database.store_id()):
        stores.stamps[candidate] = found
        stores.add(ours)
        stores.add(unknown)
        await world.database.write(lambda tx: schema.NAMED.put(tx, *ours, value=None))
        assert (await collector.collect()).removed == ("snapshot overlayfs@mine ns/7/k",)
        assert unknown in stores
        assert stores.stamps[candidate] == found


async def test_names_of_things_that_never_came_to_be_are_forgotten(
    world: World, stores: MemoryRawStores, collector: Collector
) -> None:
    """Names of things that do not exist do not keep the collector busy for ever."""
    world.end(world.intent("prepare", key="k", raw_key="ns/7/k"))
    await collector.collect()
    assert world.named() == set()


# ------------------------------------------------------------------------------------------ what is not looked through


async def test_a_content_store_that_was_looked_through_is_not_listed_again(
    world: World, stores: MemoryRawStores, collector: Collector
) -> None:
    """A synchronous delete costs as much as it removes, not as much as the store has. Things that were never named wait
    for a full collection.
    """
    await collector.collect()
    stores.calls.clear()
    gone, unknown = [world.blob(1), world.ingest("r", NOW - HOUR)], blob(2)
    for raw in (*gone, unknown):
        stores.add(raw)
    assert set((await collector.collect(everything=False)).removed) == {
        f"content {digest(1)}",
        f"ingest {gone[1].name}",
    }
    assert ("list", CONTENT) not in stores.calls
    assert ("stamp", OVERLAY) not in stores.calls
    assert unknown in stores
    assert world.named() == world.marks() == set()
    assert (await collector.collect()).removed == (f"content {digest(2)}",)


@pytest.mark.parametrize("what", ["failed", "unstamped", "held"])
async def test_it_is_listed_again_when_something_was_not_as_it_should_be(
    world: World, stores: MemoryRawStores, collector: Collector, what: str
) -> None:
    """The reasons: a removal that failed, a store that is no longer ours, a database that is held to be old."""
    await collector.collect()

    async def refuse(method: str, name: str) -> None:
        if method == "remove":
            raise errors.Internal("no")

    stores.add(world.blob(1))
    if what == "failed":
        stores.before = refuse
        assert len((await collector.collect(everything=False)).failed) == 1
        stores.before = None
    elif what == "unstamped":
        stores.stamps[CONTENT] = ""
    else:
        await guard.hold(world.database, "it was said so")
    stores.calls.clear()
    assert (await collector.collect(everything=False)).removed == (f"content {digest(1)}",)
    assert ("list", CONTENT) in stores.calls


@pytest.mark.parametrize("tuning", [Tuning(retry=0.02)], ids=["small"])
async def test_no_blob_goes_unlisted_while_a_commit_is_open_of_an_unknown_digest(
    world: World, stores: MemoryRawStores, collector: Collector
) -> None:
    """This includes blobs that came to be named since the records were read."""
    await collector.collect()
    raws = [world.blob(number) for number in (1, 2)]
    for raw in raws:
        stores.add(raw)
    intent = world.intent("commit-ingest", ref="r", raw_ref="ns/1/r")
    assert (await collector.collect(everything=False)).removed == ()

    async def commit(method: str, name: str) -> None:
        if (method, name) == ("stamp", CONTENT):
            world.blob(1, {"gc.root": "x"})

    stores.before = commit
    world.end(intent)
    await eventually_async(lambda: _async(raws[1] not in stores))
    assert raws[0] in stores


async def test_records_revived_during_a_collection_are_not_swept(
    world: World, stores: MemoryRawStores, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their records were spared, and no call wrote their raw names anew."""
    await collector.collect()
    raws = [world.blob(number) for number in (1, 2)]
    for raw in raws:
        stores.add(raw)
    image = Image(name="i", digest=digest(1), media_type="m", size=1)
    _after_the_look(
        collector, monkeypatch, lambda: world.database.write(lambda tx: schema.IMAGES.put(tx, "ns", "i", value=image))
    )
    assert (await collector.collect(everything=False)).removed == (f"content {digest(2)}",)
    assert world.living() == {"image i", "content 1"}


@pytest.mark.parametrize("tuning", [Tuning(together=4, victims=4)], ids=["small"])
async def test_a_commit_of_an_unknown_digest_does_not_wait_for_a_whole_sweep(
    world: World, stores: MemoryRawStores, collector: Collector
) -> None:
    """Some blobs are marked at any time, since the next batch is marked while one is removed; but none is marked while
    the commit waits.
    """
    for number in range(200):
        stores.add(blob(number))
    waiting: list[asyncio.Task[int]] = []

    async def commit() -> int:
        await world.database.write(lambda tx: check_no_blob_sweeping(tx, CONTENT, ""))
        return len(stores.blobs)

    async def ask(method: str, name: str) -> None:
        if method == "remove" and not waiting:
            waiting.append(asyncio.create_task(commit()))
        await asyncio.sleep(0)

    stores.before = ask
    assert len((await collector.collect()).removed) == 200
    assert await waiting[0] > 150


@pytest.mark.parametrize(("foreign", "waits"), [(False, 1), (True, 10)])
@pytest.mark.parametrize("tuning", [Tuning(together=4, victims=4)], ids=["small"])
async def test_a_sweep_waits_for_the_disk_once(
    world: World,
    stores: MemoryRawStores,
    collector: Collector,
    monkeypatch: pytest.MonkeyPatch,
    foreign: bool,
    waits: int,
) -> None:
    """It waits before the first removal: then the end of every record is on disk, and a mark that is lost in a power
    cut is of a thing that no record names. A sweep of a foreign store may go on without it.
    """
    if foreign:
        stores.stamps[CONTENT] = None
    await collector.collect()
    for number in range(40):
        stores.add(world.blob(number))
    write, done = world.transactions.write, list[str]()

    async def noted(work: Any, *, lasting: bool = True) -> Any:
        found = await write(work, lasting=lasting)
        done.append("lasting" if lasting else "soon")
        return found

    async def remove(method: str, name: str) -> None:
        if method == "remove":
            done.append("removed")

    monkeypatch.setattr(world.transactions, "write", noted)
    stores.before = remove
    assert len((await collector.collect(everything=False)).removed) == 40
    assert done.count("lasting") == waits
    assert done.index("lasting") < done.index("removed")


# ------------------------------------------------------------------------------------------ leases that hold very much


def held(world: World, lease: str = "l") -> int:
    return sum(1 for _ in schema.RESOURCES.scan(world.transactions._state, "ns", lease))


@pytest.mark.parametrize("by", ["delete", "expiry"])
async def test_resources_of_a_deleted_lease_are_removed_in_steps(
    world: World, stores: MemoryRawStores, collector: Collector, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    """No transaction takes long, however much the lease held; a new lease with the same id holds nothing of it."""
    world.lease(
        "l",
        *(("content", digest(number)) for number in range(5 * schema.RESOURCES_PER_STEP // 2)),
        labels={"gc.expire": stamp(NOW - HOUR)} if by == "expiry" else {},
    )
    world.lease("other", ("content", digest(1)))
    leases, write, most = Leases(world.database), world.transactions.write, 0

    async def measured(work: Any, *, lasting: bool = True) -> Any:
        nonlocal most
        before = held(world)
        done = await write(work, lasting=lasting)
        most = max(most, before - held(world))
        return done

    monkeypatch.setattr(world.transactions, "write", measured)
    if by == "delete":
        await leases.delete("ns", "l", sync=True)
    else:
        await collector.collect()
    await eventually_async(lambda: _async(not held(world)))
    assert most == schema.RESOURCES_PER_STEP
    assert held(world, "other") == 1


async def test_a_new_lease_has_no_resources_of_an_earlier_one(
    world: World, stores: MemoryRawStores, collector: Collector
) -> None:
    """A process that died may have left some of them. Leftovers of other leases hold nothing either."""
    leases, last = Leases(world.database), schema.RESOURCES_PER_STEP + 3
    for name in ("l", "m"):
        world.lease(name, *(("content", digest(number)) for number in range(last + 1)))
        world._write(lambda tx, name=name: schema.delete_lease(tx, "ns", name))
    stores.add(world.blob(last))
    await leases.create("ns", "l", {})
    assert held(world) == 0
    assert (await collector.collect()).removed == (f"content {digest(last)}",)
    await eventually_async(lambda: _async(not held(world, "m")))


# ------------------------------------------------------------------------------------------ when


async def test_a_collection_begins_after_it_was_asked_for(
    world: World, stores: MemoryRawStores, collector: Collector
) -> None:
    """A caller that asks while a collection runs gets one that saw the state at the time of asking."""
    listing, go_on = asyncio.Event(), asyncio.Event()

    async def hold(method: str, name: str) -> None:
        if (method, name) == ("list", CONTENT):
            listing.set()
            await go_on.wait()

    stores.before = hold
    first = asyncio.create_task(collector.collect())
    await listing.wait()
    late = world.blob(1)
    stores.add(late)
    second = asyncio.create_task(collector.collect())
    go_on.set()
    assert (await first).removed == ()
    assert (await second).removed == (f"content {digest(1)}",)


async def test_after_a_deletion_it_comes_by_itself(world: World, stores: MemoryRawStores, events: list[Event]) -> None:
    """A scheduled collection sweeps the backends that have unnamed things, and calls no other backend."""
    async with Collector(world.database, stores, Config(startup_delay=0.01), events.append).running() as collector:
        await eventually_async(lambda: _async(("list", OVERLAY) in stores.calls))
        await asyncio.wait_for(collector.collect(), 5)
        stores.calls.clear()
        raw = world.blob(1)
        stores.add(raw)
        world.drop(raw)
        collector.schedule("deletion")
        await eventually_async(lambda: _async(raw not in stores))
        assert {name for _, name in stores.calls} == {CONTENT, digest(1)}


async def test_it_wakes_when_a_lease_expires(world: World, stores: MemoryRawStores, events: list[Event]) -> None:
    """An expired lease frees its resources without any write (containerd issue 6294)."""
    async with Collector(world.database, stores, Config(startup_delay=0.01), events.append).running() as collector:
        raw = world.blob(1)
        stores.add(raw)
        world.lease("lease", ("content", digest(1)), labels={"gc.expire": stamp(time.time_ns() + SECOND // 2)})
        await collector.collect()
        assert raw in stores
        await eventually_async(lambda: _async(raw not in stores), seconds=10)
        assert time.time_ns() > NOW


async def test_a_lease_made_later_is_noticed(world: World, stores: MemoryRawStores, events: list[Event]) -> None:
    """After a write the collector checks whether a record expires earlier than all that it knows."""
    async with Collector(
        world.database, stores, Config(startup_delay=0.01), events.append, tuning=Tuning(look=0.02)
    ).running() as collector:
        world.lease("tomorrow", labels={"gc.expire": stamp(time.time_ns() + 24 * HOUR)})
        await collector.collect()
        raw = world.blob(1)
        stores.add(raw)
        world.lease("lease", ("content", digest(1)), labels={"gc.expire": stamp(time.time_ns() + SECOND // 2)})
        collector.schedule("mutation")
        await eventually_async(lambda: _async(raw not in stores), seconds=10)


@pytest.mark.parametrize("by", ["look", "collection"])
async def test_an_expiry_is_noticed_though_its_commit_was_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    """A check that came before the commit is repeated after it."""
    store = SqliteTransactions(tmp_path / "metadata.db")
    database = Database(store)
    looked, disk = asyncio.Event(), threading.Event()

    def reading(read: Callable[[Any], Awaitable[Any]]) -> Callable[[Any], Awaitable[Any]]:
        async def noticed(work: Any) -> Any:
            found = await read(work)
            looked.set()
            return found

        return noticed

    async with Collector(
        database, MemoryRawStores(), QUIET, lambda event: None, tuning=Tuning(look=0.02)
    ).running() as collector:
        database.collector = collector
        await collector.collect()
        monkeypatch.setattr(store, "read", reading(store.read))
        monkeypatch.setattr(collector.lane, "through", reading(collector.lane.through))
        store._thread.submit(disk.wait)  # the disk is slow
        lease = Lease(id="l", labels={"containerd.io/gc.expire": stamp(time.time_ns() + SECOND // 2)})
        writing = asyncio.ensure_future(database.write(lambda tx: schema.LEASES.put(tx, "ns", "l", value=lease)))
        await eventually_async(lambda: _async(store._in_flight))
        collecting = asyncio.ensure_future(collector.collect()) if by == "collection" else None
        if by == "look":
            collector.schedule("mutation")
        await asyncio.wait_for(looked.wait(), 10)
        disk.set()
        await writing
        if collecting is not None:
            await collecting
        assert database.view(lambda tx: schema.LEASES.has(tx, "ns", "l"))
        await eventually_async(
            lambda: _async(not database.view(lambda tx: schema.LEASES.has(tx, "ns", "l"))), seconds=10
        )
    await store.close()


@pytest.mark.parametrize("tuning", [Tuning(look=0.02)], ids=["small"])
async def test_an_expiry_written_during_a_collection_is_noticed(
    world: World, stores: MemoryRawStores, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The write comes after the collection has read all records."""
    _after_the_look(
        collector,
        monkeypatch,
        lambda: world.database.write(
            lambda tx: schema.LEASES.put(
                tx,
                "ns",
                "l",
                value=Lease(id="l", labels={"containerd.io/gc.expire": stamp(time.time_ns() + SECOND // 5)}),
            )
        ),
    )
    await collector.collect()
    assert world.living() == {"lease l"}
    await eventually_async(lambda: _async(not world.living() and not world.dead()), seconds=10)


async def test_a_mark_that_could_not_be_taken_off_is_with_the_next(
    world: World, stores: MemoryRawStores, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a caller that wants the thing would wait for a removal that is over."""
    stores.together = False
    for number in (1, 2):
        stores.add(blob(number))
    write, failed = world.transactions.write, asyncio.Event()

    async def full(work: Any, *, lasting: bool = True) -> Any:
        if not lasting and not failed.is_set():
            failed.set()
            raise errors.Unavailable("metadata store: disk full")
        return await write(work, lasting=lasting)

    async def after(method: str, name: str) -> None:
        if (method, name) == ("remove", digest(2)):
            await failed.wait()
            await asyncio.sleep(0)

    monkeypatch.setattr(world.transactions, "write", full)
    stores.before = after
    assert len((await collector.collect()).removed) == 2
    assert world.marks() == set()


async def test_another_gateway_brings_other_backends(
    world: World, stores: MemoryRawStores, collector: Collector
) -> None:
    """When a gateway connects, all its backends are swept."""
    stores.stamps["snapshots.new"] = ""
    await collector.collect()
    world._write(
        lambda tx: schema.GATEWAY.put(tx, value=Gateway(incarnation="h", content=CONTENT, snapshotters=("new",)))
    )
    stores.calls.clear()
    collector.connected()
    await eventually_async(lambda: _async(("cleanup", "snapshots.new") in stores.calls))
    assert stores.stamps["snapshots.new"] == await world.database.store_id()
    assert ("list", OVERLAY) not in stores.calls


async def test_a_failed_collection_is_repeated(
    world: World, stores: MemoryRawStores, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No caller has to ask again, and all backends of the failed collection are swept."""
    world.blob(1)
    stores.add(world.snapshot("s"))
    write, refusals = world.transactions.write, 2

    async def full(work: Any, *, lasting: bool = True) -> Any:
        nonlocal refusals
        if refusals:
            refusals -= 1
            raise errors.Unavailable("metadata store: database or disk is full")
        return await write(work, lasting=lasting)

    monkeypatch.setattr(world.transactions, "write", full)
    collector.connected()
    with pytest.raises(errors.Unavailable):
        await collector.collect()
    await eventually_async(lambda: _async(not world.living() and not stores.snapshots))


async def test_a_store_that_cannot_write_fails_waiting_callers(
    world: World, stores: MemoryRawStores, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The callers get the store's error, and the collector goes on."""
    world.blob(1)

    async def full(work: object, *, lasting: bool = True) -> None:
        raise errors.Unavailable("metadata store: database or disk is full")

    monkeypatch.setattr(world.transactions, "write", full)
    with pytest.raises(errors.Unavailable, match="disk is full"):
        await collector.collect()
    monkeypatch.undo()
    await collector.collect()
    assert world.living() == set()


async def test_after_the_end_callers_get_an_error(world: World, stores: MemoryRawStores) -> None:
    """A collector that has ended, or that ends while a caller waits, raises an error that says so."""
    collector = Collector(world.database, stores, QUIET, lambda _: None)
    never = asyncio.Event()

    async def hang(method: str, name: str) -> None:
        await never.wait()

    stores.before = hang
    async with collector.running():
        waiting = asyncio.create_task(collector.collect())
        await eventually_async(lambda: _async(bool(stores.calls)))
    with pytest.raises(errors.Unavailable):
        await waiting
    with pytest.raises(errors.Unavailable):
        await collector.collect()


async def test_coalesced_runs_never_overlap() -> None:
    """All callers that ask before a run begins share it; a caller that asks while one runs gets the next."""
    running = begun = 0
    go_on = asyncio.Event()

    async def work() -> int:
        nonlocal running, begun
        running += 1
        begun += 1
        number = begun
        assert running == 1
        await go_on.wait()
        running -= 1
        return number

    runs = Coalescing("a turn", work)
    first = [runs.request(), runs.request()]
    await eventually_async(lambda: _async(running))
    second = [runs.request(), runs.request(), runs.request()]
    await asyncio.sleep(0)
    assert begun == 1
    go_on.set()
    assert await asyncio.gather(*first) == [1, 1]
    assert await asyncio.gather(*second) == [2, 2, 2]


async def test_a_run_that_never_began_does_not_block_the_next() -> None:
    """The run was cancelled or failed while another ran; a caller that asks then gets a run nevertheless."""
    go_on = asyncio.Event()

    async def work() -> bool:
        return await go_on.wait()

    runs = Coalescing("a turn", work)
    first = runs.request()
    await asyncio.sleep(0)
    lost = runs.request()
    lost.cancel()
    await asyncio.wait([lost])
    again = runs.request()
    go_on.set()
    assert all(await asyncio.wait_for(asyncio.gather(first, again), 15))


# ------------------------------------------------------------------------------------------ traces


@pytest.fixture
def spans() -> Iterator[Spans]:
    """The spans of this process."""
    with recorded() as found:
        yield found


async def test_a_collection_can_be_seen(
    world: World, stores: MemoryRawStores, spans: Spans, collector: Collector
) -> None:
    """It is a trace of its own, with its counts, and has a span for the records and one for each backend. Its caller's
    wait links to it.
    """
    stores.add(world.blob(1))
    with tracing.span("caller"):
        await collector.collect()
    await eventually_async(lambda: _async(bool(spans.named("metadata.collect"))))
    collection, waited = spans.one("metadata.collect"), spans.one("wait.lock")
    assert collection.parent is None
    assert dict(collection.attributes or {}) == {
        "splitd.operation": "collect",
        "splitd.outcome": "ok",
        "splitd.gc.marked": 1,
        "splitd.gc.dead": 1,
        "splitd.gc.swept": 1,
        "splitd.gc.blocked": 0,
        "splitd.gc.pause_ms": 0.0,
    }
    assert spans.parent(spans.one("gc.mark")) is collection
    swept = {attribute(each, "splitd.backend"): attribute(each, "splitd.gc.swept") for each in spans.named("gc.sweep")}
    assert swept == {CONTENT: 1, OVERLAY: 0}
    assert all(spans.parent(each) is collection for each in spans.named("gc.sweep"))
    assert spans.parent(waited).name == "caller"
    assert spans.linked(waited) == [collection]


async def test_who_waits_for_a_collection_says_so(
    world: World, stores: MemoryRawStores, spans: Spans, collector: Collector
) -> None:
    """A commit wants a blob that is being removed: its wait links to the collection, which counts it."""
    stores.add(blob(1))
    removing, go_on = asyncio.Event(), asyncio.Event()

    async def hold(method: str, name: str) -> None:
        if method == "remove":
            removing.set()
            await go_on.wait()

    stores.before = hold
    collecting = asyncio.create_task(collector.collect())
    await removing.wait()

    async def commit() -> None:
        with tracing.span("commit"):
            await world.database.write(lambda tx: check_no_blob_sweeping(tx, CONTENT, digest(1)))

    committing = asyncio.create_task(commit())
    await eventually_async(lambda: _async(bool(world.database._asleep)))
    go_on.set()
    await committing
    await collecting
    await eventually_async(lambda: _async(bool(spans.named("metadata.collect"))))
    collection = spans.one("metadata.collect")
    (waited,) = (each for each in spans.named("wait.lock") if each.parent and spans.parent(each).name == "commit")
    assert "being removed by the collector" in str(attribute(waited, "splitd.wait.for"))
    assert spans.linked(waited) == [collection]
    assert attribute(collection, "splitd.gc.blocked") == 1
    assert float(str(attribute(collection, "splitd.gc.pause_ms"))) > 0


async def test_many_removals_with_an_unknown_outcome_keep_their_marks(
    world: World, stores: MemoryRawStores, collector: Collector
) -> None:
    """All removals of the call may have happened, so all marks stay. The next sweep asks again and finds what is
    gone.
    """
    stores.together = away = True
    for number in range(3):
        stores.add(blob(number))

    async def dies(method: str, name: str) -> None:
        if away and (method, name) == ("remove", digest(1)):
            raise errors.Unavailable("it went away")

    stores.before = dies
    done = await collector.collect()
    assert done.removed == ()
    assert len(done.failed) == 3
    assert world.marks() == {blob(number) for number in range(3)}
    away = False
    await collector.collect()
    assert not stores.blobs
    assert not world.marks()


async def test_a_backend_is_asked_once_whether_it_takes_many_removals(
    stores: MemoryRawStores, collector: Collector
) -> None:
    """If it does, removals take few calls, however many things are removed."""
    for number in range(1000):
        stores.add(blob(number))
    assert len((await collector.collect()).removed) == 1000
    calls = [method for method, _ in stores.calls if method == "remove_all"]
    assert len(calls) == (4 if stores.together else 0)


@pytest.mark.parametrize("tuning", [Tuning(together=2, victims=2)], ids=["small"])
async def test_blobs_go_in_the_order_in_which_they_were_made(
    world: World, stores: MemoryRawStores, collector: Collector
) -> None:
    """Which is that of their inodes, and costs a filesystem less than that of their digests."""
    await collector.collect()  # from here on all that goes is known
    for number, created in ((1, 30), (2, 10), (3, 40), (4, 20)):
        stores.add(world.blob(number, created=created))
    await collector.collect(everything=False)
    removed = [name for method, name in stores.calls if method == "remove"]
    assert removed == [digest(number) for number in (2, 4, 1, 3)]


async def test_things_that_go_in_one_call_are_of_one_kind(
    world: World, stores: MemoryRawStores, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blobs alone take one mark, and cost a content store less than things. Among the victims are ingests, too: each
    Write has left the name of one, for which the blobs do not wait.
    """
    await collector.collect()
    for number in range(3):
        stores.add(world.blob(number))
        stores.add(world.ingest(f"ref-{number}", expires=1))
    calls: list[set[str]] = []
    remove_all = stores.remove_all

    async def noted(backend: str, raws: Sequence[Raw]) -> Sequence[errors.NodeError | None]:
        calls.append({raw.kind for raw in raws})
        return await remove_all(backend, raws)

    monkeypatch.setattr(stores, "remove_all", noted)
    assert len((await collector.collect(everything=False)).removed) == 6
    assert not stores.blobs | stores.ingests
    if stores.together:
        assert calls == [{"blob"}, {"ingest"}]


@pytest.mark.parametrize("tuning", [Tuning(records=1)], ids=["small"])
async def test_a_call_waits_for_few_dead_records(
    world: World, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer of a write takes several turns of the loop. Not each of them has a transaction of the collector."""
    for number in range(100):
        world.blob(number)
    removed: set[Node] = set()
    waits: list[int] = []
    remove_batch = gc_collector._remove_batch

    def noted(tx: Any, found: Any, batch: list[Node], *more: Any) -> Any:
        removed.update(batch)  # a transaction may run again
        return remove_batch(tx, found, batch, *more)

    async def written() -> int:
        return await world.database.transactions.write(lambda _: len(removed), lasting=False)

    monkeypatch.setattr(gc_collector, "_remove_batch", noted)
    collecting = asyncio.ensure_future(collector.collect(everything=False))
    while len(removed) < 100:
        before = await asyncio.shield(asyncio.ensure_future(written()))
        if before:
            waits.append(len(removed) - before)
    await collecting
    assert len(removed) == 100
    assert len(waits) > 10
    assert max(waits) <= 1


@pytest.mark.parametrize("tuning", [Tuning(together=2, victims=2)], ids=["small"])
async def test_while_blobs_are_removed_the_next_call_is_there(stores: MemoryRawStores, collector: Collector) -> None:
    """A backend that takes many in one call has the next one before it has answered: its disk does not wait for us."""
    stores.together = True
    for number in range(8):
        stores.add(blob(number))
    under_way = most = 0
    second = asyncio.Event()

    async def together(method: str, name: str) -> None:
        nonlocal under_way, most
        if method != "remove_all" or len([1 for called, _ in stores.calls if called == method]) == 1:
            return  # the first tells whether it takes many
        under_way += 1
        most = max(most, under_way)
        if under_way > 1:
            second.set()
        async with asyncio.timeout(20):
            await second.wait()
        under_way -= 1

    stores.before = together
    assert len((await collector.collect()).removed) == 8
    assert most == 2
    assert not stores.blobs


@pytest.mark.parametrize("tuning", [Tuning(forgotten=2)], ids=["small"])
async def test_the_names_of_what_went_are_forgotten_but_for_those_that_came_back(
    world: World, stores: MemoryRawStores, collector: Collector
) -> None:
    """No call waits for it; a blob that is pushed again in that moment stays named."""
    await collector.collect()
    for number in range(6):
        stores.add(world.blob(number))
    back = Blob(digest=digest(3), size=1, backend=CONTENT)

    async def again(method: str, name: str) -> None:
        if (method, name) == ("remove", digest(5)):
            await world.database.transactions.write(lambda tx: schema.put_blob(tx, "ns", back))

    stores.before = again
    assert len((await collector.collect(everything=False)).removed) == 6

    async def forgotten() -> bool:
        return world.named() == {blob(3)}

    await eventually_async(forgotten)
