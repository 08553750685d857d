"""Collections of the real processes: metadata asks content and snapshots through the gateway."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from api.containerd.events import snapshot_pb2
from api.containerd.services.content.v1 import content_pb2
from api.containerd.services.events.v1 import events_pb2, events_stubs
from api.containerd.services.leases.v1 import leases_pb2
from services.kit import errors
from services.kit.rpc import Channel
from services.oci.digests import digest_of
from tests.service.gc.gc_node import SNAPSHOTTERS, Client, Processes
from tests.support import eventually_async, short_directory

SOON = 60.0
"""Seconds within which a collection without a request must come; its time depends on how long earlier ones took."""


@pytest.fixture(scope="module")
def processes() -> Iterator[Processes]:
    with short_directory() as directory:
        running = Processes(directory)
        try:
            yield running
        finally:
            running.close()


@pytest.fixture
async def client(processes: Processes) -> AsyncIterator[Client]:
    """A client of a node on which nothing is left of earlier tests."""
    async with Client(processes) as made:
        await made.ready()
        yield made
        for lease in (await made.leases.List(leases_pb2.ListRequest(), headers=made.headers())).leases:
            await made.unlease(lease.id)
        done = await made.collect()
        assert list(done.failed) == []
        assert await made.raw() == set()


async def test_garbage_goes_down_to_the_disk(processes: Processes, client: Client) -> None:
    """Unreferenced content, ingests and snapshots of both snapshotters are gone after a collection, with their files
    and directories; leased ones stay.
    """
    lease = await client.lease("keep")
    kept = await client.write(b"kept", lease=lease)
    await client.open("open", b"part")
    building = await client.lease("building")
    for snapshotter in ("overlayfs", "native"):
        await client.layer("base", "", snapshotter, lease=building)
        await client.layer("middle", "base", snapshotter, lease=building)
        await client.prepare("rw", "middle", snapshotter, lease=building)
    await client.layer("held", lease=lease)
    await client.prepare("held-rw", "held", lease=lease)
    assert client.directories() >= 5
    gone = await client.write(b"gone", lease=building, say=False)
    await client.unlease("building")
    done = await client.collect()
    assert list(done.failed) == []
    assert await client.raw_blobs() == {kept}, f"{gone} stayed"
    assert len(await client.raw_ingests()) == 1, "an ingest lives for 24 h"
    assert {key.split("/", 2)[2] for key in await client.raw_layers()} == {"held", "held-rw"}
    assert (client.directories(), client.directories("native")) == (2, 0)
    blobs = processes.root / "content" / "blobs" / "sha256"
    assert [p.name for p in blobs.iterdir()] == [kept.removeprefix("sha256:")]
    await client.content.Abort(content_pb2.AbortRequest(ref="open"), headers=client.headers())


async def test_references_by_label_hold(client: Client) -> None:
    """An image keeps its manifest, which keeps layers and snapshots by labels. All of them are removed with the
    image.
    """
    lease = await client.lease("pull")
    layer = await client.write(b"layer", lease=lease)
    await client.layer("base", lease=lease)
    await client.layer("top", "base", lease=lease)
    config = await client.write(b"config", {"containerd.io/gc.ref.snapshot.overlayfs": "top"}, lease)
    manifest = await client.write(
        b"manifest", {"containerd.io/gc.ref.content.config": config, "containerd.io/gc.ref.content.l.0": layer}, lease
    )
    await client.image("image", manifest)
    await client.unlease("pull")
    assert list((await client.collect()).removed) == []
    assert await client.listed() == ({layer, config, manifest}, {"base", "top"})
    await client.remove_image("image", sync=True)
    assert await client.raw() == set()


async def test_a_synchronous_delete_returns_when_all_is_gone(client: Client) -> None:
    """This holds for a lease and for an image; without sync they are removed soon after."""
    await client.write(b"1", lease=await client.lease("one"))
    await client.unlease("one", sync=True)
    assert await client.raw() == set()
    await client.write(b"2", lease=await client.lease("two"))
    await client.unlease("two")
    await eventually_async(lambda: _empty(client), "it is still there", SOON)


async def _empty(client: Client) -> bool:
    try:
        return await client.raw() == set()
    except errors.Unavailable:  # the gateway has not noticed yet that it is back
        return False


async def test_an_ingest_goes_with_its_lease(client: Client) -> None:
    """A half-written ingest under a lease is aborted when the lease is gone."""
    await client.open("part", b"half", lease=await client.lease("pull"))
    await client.collect()
    assert len(await client.raw_ingests()) == 1
    await client.unlease("pull", sync=True)
    assert await client.raw_ingests() == set()


async def test_an_expired_lease_frees_its_resources_on_an_idle_node(client: Client) -> None:
    """They are removed without any call from a client."""
    used = False
    while not used:
        end = time.time() + 2.0
        lease = await client.lease(
            f"until {end}", gc_expire=datetime.fromtimestamp(end, UTC).isoformat().replace("+00:00", "Z")
        )
        try:
            used = bool(await client.write(b"short", lease=lease))
        except errors.NotFound:
            assert time.time() > end, "a lease is over before its time"  # of a machine that stopped meanwhile
    assert await client.raw_blobs() == {digest_of(b"short")} or time.time() > end
    blob = client.processes.root / "content" / "blobs" / "sha256" / digest_of(b"short").removeprefix("sha256:")

    async def gone() -> bool:
        return not blob.exists()

    await eventually_async(gone, "it is still there", SOON)
    assert await client.raw() == set()


async def test_snapshots_that_the_collector_removes_are_announced(client: Client) -> None:
    """Subscribers get /snapshot/remove with the client's key, in its namespace."""
    async with Channel(client.processes.state / "containerd.sock") as channel:
        subscribed = channel.client(events_stubs.EVENTS)
        stream = subscribed.Subscribe(events_pb2.SubscribeRequest(filters=['topic=="/snapshot/remove"']))

        async def announced() -> tuple[str, str]:
            async for envelope in stream:
                event = snapshot_pb2.SnapshotRemove.FromString(envelope.event.value)
                if event.key == "announced":
                    return envelope.namespace, event.snapshotter
            raise AssertionError("the stream ended")

        seen = asyncio.ensure_future(announced())
        await client.layer("announced")
        await client.collect()
        assert await asyncio.wait_for(seen, 15) == ("ns", "overlayfs")
        await stream.aclose()


async def test_a_store_that_is_away_is_swept_when_it_is_back(processes: Processes, client: Client) -> None:
    """While content is dead the snapshotters are swept; content is swept when it comes back, without a request."""
    await client.write(b"later")
    await client.layer("now")
    processes.content.kill()
    try:
        done = await client.collect()
        assert [line.split(":")[0] for line in done.failed] == ["backend content"]
        assert await client.raw_layers() == set()
    finally:
        processes.content.start()
    await eventually_async(lambda: _empty(client), "it is still there", SOON)


async def test_a_blob_committed_while_it_is_swept_is_there(client: Client) -> None:
    """Writers of the same few blobs, each with its own lease, run while collections run all the time: a blob that was
    committed under a lease can be read.
    """
    collected = 0
    committed = 0

    def enough() -> bool:
        return committed >= 60 and collected >= 25

    async def collecting() -> None:
        nonlocal collected
        while not enough():
            done = await client.collect()
            collected += len(done.removed)
            assert list(done.failed) == []

    async def writing(number: int) -> None:
        nonlocal committed
        chance = random.Random(number)
        round_ = 0
        while not enough():
            round_ += 1
            data = b"blob %d" % chance.randrange(2)
            lease = await client.lease(f"l{number}-{round_}")
            try:
                digest = await client.write(data, lease=lease, ref=f"r{number}-{round_}", say=chance.random() < 0.7)
                assert await client.read(digest) == data, "leased and yet not there"
                committed += 1
            finally:
                await client.unlease(lease)

    async with asyncio.timeout(100):
        await asyncio.gather(collecting(), *(writing(n) for n in range(3)))


async def test_snapshots_that_are_made_while_others_are_swept_work(client: Client) -> None:
    """Chains are built under leases while collections remove unheld snapshots: each snapshot can be a parent and be
    mounted.
    """
    built = 0

    async def collecting() -> None:
        while built < 20:
            assert list((await client.collect()).failed) == []

    async def building(number: int) -> None:
        nonlocal built
        round_ = 0
        while built < 20:
            round_ += 1
            name = f"s{number}-{round_}"
            lease = await client.lease(name)
            await client.layer(name, lease=lease)
            await client.layer(f"{name}-top", name, lease=lease)
            mounts = (await client.prepare(f"{name}-rw", f"{name}-top", lease=lease)).mounts
            lower = (
                next(o for m in mounts for o in m.options if o.startswith("lowerdir="))
                .removeprefix("lowerdir=")
                .split(":")
            )
            assert all(os.path.isdir(directory) for directory in lower)
            await client.unlease(lease)
            built += 1

    async with asyncio.timeout(100):
        await asyncio.gather(collecting(), building(1), building(2))


# ------------------------------------------------------------------------------------------ crashes


@pytest.mark.parametrize("point", ["gc.after-records", "gc.after-mark", "gc.mid-sweep", "gc.before-unmark"])
async def test_killed_in_the_middle_it_goes_on_where_it_was(processes: Processes, client: Client, point: str) -> None:
    """metadata dies by kill -9 at any point of a collection. After its restart nothing is orphaned, held things are
    there, and no caller waits for a mark.
    """
    lease = await client.lease("keep")
    kept = await client.write(b"kept", lease=lease)
    await client.layer("held", lease=lease)
    await client.prepare("held-rw", "held", lease=lease)
    garbage = [await client.write(b"garbage %d" % n, lease=await client.lease(f"g{n}")) for n in range(5)]
    for n in range(3):
        await client.layer(f"layer{n}", f"layer{n - 1}" if n else "", lease="g0")
    await client.open("part", b"half", lease="g0")
    await client.collect()  # one that the writes began may be under way: the fault is for the one that follows
    processes.fault(point)
    let_go = await asyncio.gather(*(client.unlease(f"g{n}") for n in range(5)), return_exceptions=True)
    asking = asyncio.ensure_future(client.collect())
    await asyncio.to_thread(processes.metadata.wait)
    await asyncio.wait((asking,))
    processes.metadata.start()
    await client.ready()
    for n, outcome in enumerate(let_go):
        # its call was under way when metadata died, so that only who asks again can know
        if isinstance(outcome, errors.Unavailable):
            with contextlib.suppress(errors.NotFound):
                await client.unlease(f"g{n}")
        else:
            assert outcome is None
    # Whoever wants one of the victims back gets it now, mark or not.
    again = await asyncio.wait_for(client.write(b"garbage 3", lease=lease), 30)
    assert await client.read(again) == b"garbage 3"
    await client.collect()
    assert await client.raw_blobs() == {kept, garbage[3]}
    assert await client.raw_ingests() == set()
    assert {key.split("/", 2)[2] for key in await client.raw_layers()} == {"held", "held-rw"}
    assert await client.read(kept) == b"kept"
    assert await client.listed() == ({kept, garbage[3]}, {"held", "held-rw"})
    assert (client.directories(), client.directories("native")) == (2, 0)


@pytest.mark.parametrize("point", ["gc.after-records", "gc.mid-sweep", "gc.before-unmark"])
async def test_killed_while_hundreds_go_it_goes_on_where_it_was(
    processes: Processes, client: Client, point: str
) -> None:
    """The same where hundreds of blobs are removed, and while records are still being removed: a blob that is written
    again is there and stays.
    """
    await client.collect()
    lease = await client.lease("keep")
    kept = await client.write(b"kept", lease=lease)
    many = await client.lease("many")
    garbage = [
        digest
        for start in range(0, 400, 50)
        for digest in await asyncio.gather(
            *(client.write(b"one of many %d" % n, lease=many) for n in range(start, start + 50))
        )
    ]
    await client.collect()  # one that the writes began may be under way: the fault is for the one that follows
    processes.fault(point)
    asking = asyncio.ensure_future(client.unlease(many, sync=True))
    await asyncio.to_thread(processes.metadata.wait)
    await asyncio.wait((asking,))
    assert asking.exception() is not None
    processes.metadata.start()
    await client.ready()
    numbers = range(0, 400, 40)
    again = await asyncio.wait_for(
        asyncio.gather(*(client.write(b"one of many %d" % n, lease=lease) for n in numbers)), 30
    )
    assert again == [garbage[n] for n in numbers]
    await client.collect()
    assert await client.raw_blobs() == {kept, *again}
    for number, digest in zip(numbers, again, strict=True):
        assert await client.read(digest) == b"one of many %d" % number


async def test_killed_at_random_nothing_is_lost_or_left(processes: Processes, client: Client) -> None:
    """Ten times kill -9 at a random moment of collections: everything that the lease holds is there, and in the end
    nothing else.
    """
    lease = await client.lease("keep")
    kept = {await client.write(b"kept %d" % n, lease=lease) for n in range(3)}
    chance = random.Random(6)
    for round_ in range(10):
        for n in range(4):
            await client.write(b"garbage %d %d" % (round_, n))
        await client.layer(f"garbage{round_}")
        asking = asyncio.ensure_future(client.collect())
        await asyncio.sleep(chance.random() * 0.03)  # the moment of the kill is the test's input, nothing is waited for
        processes.metadata.kill()
        await asyncio.gather(asking, return_exceptions=True)
        processes.metadata.start()
        await client.ready()
    assert await client.raw() == kept
    for digest in kept:
        assert digest_of(await client.read(digest)) == digest


# ------------------------------------------------------------------------------------------ whose the stores are


async def test_a_lost_database_deletes_nothing(processes: Processes, client: Client, tmp_path: Path) -> None:
    """Started with an empty database on full raw stores, metadata removes nothing from them and says why; with the old
    database it goes on as before.
    """
    lease = await client.lease("keep")
    kept = await client.write(b"precious", lease=lease)
    await client.layer("precious", lease=lease)
    before = await client.raw()
    processes.metadata.stop()
    database = processes.root / "metadata"
    shutil.copytree(database, tmp_path / "kept")
    for file in database.glob("metadata.db*"):
        file.unlink()
    processes.metadata.start()
    try:

        async def refused() -> list[str]:
            try:
                return list((await client.collect()).failed)
            except errors.NodeError:
                return []

        found = await eventually_async(refused)
        assert all("another metadata store" in line for line in found)
        assert {"content", *(f"snapshots.{name}" for name in SNAPSHOTTERS)} <= {
            line.split(": ")[0].removeprefix("backend ") for line in found
        }
        assert await client.raw() == before
    finally:
        processes.metadata.stop()
        for file in database.glob("metadata.db*"):
            file.unlink()
        shutil.copytree(tmp_path / "kept", database, dirs_exist_ok=True)
        processes.metadata.start()
    await client.ready()
    assert await client.read(kept) == b"precious"
