"""Calls that wait for marks of the collector and for other calls' intents, callers that give up; and the policy of
sharing.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from api.containerd.services.leases.v1 import leases_pb2
from api.containerd.services.namespaces.v1 import namespaces_pb2
from api.containerd.services.snapshots.v1 import snapshots_pb2
from api.splitd.records.v1 import records_pb2 as pb
from services.kit import errors, tracing
from services.kit.call import CURRENT, Call
from services.metadata import schema
from services.metadata.memory import MemoryTransactions
from services.metadata.sqlite import SqliteTransactions
from services.metadata.store import Change, Collected, Kind, Mark, Raw
from services.metadata.transactions import Transaction
from tests.spans import recorded
from tests.suites.records import REF, World, digest, refused
from tests.suites.records_lives import LocalMetadata, headers
from tests.support import eventually_async
from tests.unit.metadata.test_metadata_records import Life


@pytest.fixture
async def local() -> AsyncIterator[LocalMetadata]:
    local = LocalMetadata(MemoryTransactions(), patience=0.5)
    yield local
    await local.close()


@pytest.fixture
async def world(local: LocalMetadata) -> World:
    return await World(Life(local)).begin()


async def sweeping(local: LocalMetadata, raw: Raw, reference: str = "") -> Callable[[], Awaitable[None]]:
    """Mark a raw thing as the collector does; the result removes the mark."""
    await local.database.write(lambda tx: schema.set_marks(tx, [raw], Mark(since=time.time_ns(), reference=reference)))

    async def over() -> None:
        await local.database.write(lambda tx: schema.clear_marks(tx, [raw], gone=True))
        local.database.wake(raw)

    return over


async def waits(local: LocalMetadata, call: Awaitable[object], over: Callable[[], Awaitable[None]]) -> object:
    """Check that the call is answered after ``over`` has run, and not before."""
    task = asyncio.ensure_future(call)
    await eventually_async(lambda: asyncio.sleep(0, task.done() or local.database._asleep), "it neither waits nor ends")
    assert not task.done()
    await over()
    return await task


async def test_a_commit_waits_for_the_sweep_of_its_blob(local: LocalMetadata, world: World) -> None:
    """Otherwise the collector would remove the bytes that the commit has just found or written."""
    await world.open("r")
    over = await sweeping(local, Raw("content", "blob", digest(1)))
    await waits(local, world.begin_commit("r", digest(1)), over)


async def test_a_commit_of_an_unknown_digest_waits_for_all_sweeps_of_blobs(local: LocalMetadata, world: World) -> None:
    """The digest may be that of any of them."""
    await world.open("r")
    over = await sweeping(local, Raw("content", "blob", digest(1)))
    await waits(local, world.begin_commit("r"), over)


async def test_a_finish_waits_for_the_sweep_of_its_blob(local: LocalMetadata, world: World) -> None:
    """This matters if the mark came after the beginning of the operation, for whatever reason."""
    await world.open("r")
    intent = await world.begin_commit("r")
    over = await sweeping(local, Raw("content", "blob", digest(1)))
    await waits(local, world.finish(intent, digest(1), 3), over)


async def test_a_prepare_waits_for_the_sweep_of_its_target(local: LocalMetadata, world: World) -> None:
    """The backend might offer the target; sweeps of other targets do not matter."""
    over = await sweeping(local, Raw("snapshots.overlayfs", "snapshot", "x"), reference="target")
    await world.begin_snapshot("k1", labels={REF: "other"})
    await waits(local, world.begin_snapshot("k2", labels={REF: "target"}), over)


async def test_waiting_ends(local: LocalMetadata, world: World) -> None:
    """The call fails with UNAVAILABLE and the reason; nothing is left open."""
    await world.open("r")
    await sweeping(local, Raw("content", "blob", digest(1)))
    await refused(
        world.begin_commit("r", digest(1)),
        errors.Unavailable,
        f"content {digest(1)} is being removed by the collector: unavailable",
    )
    await world.open("s")
    await world.begin_commit("s", digest(2))
    await refused(
        world.begin_commit("s", digest(2)),
        errors.Unavailable,
        f"the commit of {digest(2)} is in use by another call: unavailable",
    )
    assert local.database.view(lambda tx: len(list(schema.INTENTS.scan(tx)))) == 1


async def test_who_waits_for_an_intent_says_whose_it_is(local: LocalMetadata, world: World) -> None:
    """The wait links to the span, in another process, for which the intent was opened."""
    trace, caller = "1" * 32, "2" * 16

    async def first() -> pb.Intent:
        tracing.began("server", "/x/Begin", {"traceparent": f"00-{trace}-{caller}-01"})
        return await world.begin_snapshot("k")

    with recorded() as spans:
        intent = await asyncio.ensure_future(first())

        async def over() -> None:
            await world.records.Cancel(pb.CancelRequest(intent=intent.id), headers=world.headers)

        with tracing.span("second"):
            await waits(local, world.begin_snapshot("k"), over)
        (link,) = spans.one("wait.lock").links
    assert (f"{link.context.trace_id:032x}", f"{link.context.span_id:016x}") == (trace, caller)
    assert intent.id not in local.database.claimants
    assert len(local.database.claimants) == 1


async def test_intents_of_an_earlier_process_do_not_block_writes(local: LocalMetadata, world: World) -> None:
    """Metadata was killed before it could answer Begin, so the gateway may not know of the intent: the next write is
    answered at once.
    """
    lost = await world.begin_snapshot("k")
    local.database.started = time.time_ns()
    intent = await world.begin_snapshot("k")
    await world.finish(intent)
    await refused(world.finish(lost), errors.AlreadyExists, 'snapshot "k": already exists')
    assert (await world.resolve("k")).raw_key == intent.raw_key


async def test_an_intent_that_its_gateway_does_not_know_of_is_resolved(local: LocalMetadata, world: World) -> None:
    """The intent is from an earlier process of metadata, and the gateway has said which intents it has open. The
    gateway's newer intents and those that it names stay.
    """
    lost, known = await world.begin_snapshot("lost"), await world.begin_snapshot("known")
    local.database.started = time.time_ns()
    newer = await world.begin_snapshot("newer")
    await world.records.Connect(
        pb.ConnectRequest(
            incarnation=world.incarnation,
            content="content",
            snapshotters=["overlayfs"],
            open=pb.OpenIntents(ids=[known.id]),
        )
    )

    async def gone() -> bool:
        return not local.database.view(lambda tx: schema.INTENTS.has(tx, lost.id))

    await eventually_async(gone)
    await world.finish(known)
    await world.finish(newer)


async def test_an_intent_unknown_to_the_gateway_is_resolved_in_the_end(local: LocalMetadata, world: World) -> None:
    """Its gateway is alive: the intent is resolved when it is older than the gateway's patience."""
    intent = await world.begin_snapshot("k")

    def age(tx: Transaction) -> None:
        found = schema.INTENTS.get(tx, intent.id)
        assert found is not None
        schema.INTENTS.put(tx, intent.id, value=replace(found, begun=found.begun - 21 * 60 * 10**9))

    await world.connect()
    assert local.database.view(lambda tx: schema.INTENTS.has(tx, intent.id))
    await local.database.write(age)
    await world.connect()

    async def gone() -> bool:
        return not local.database.view(lambda tx: schema.INTENTS.has(tx, intent.id))

    await eventually_async(gone)


async def test_a_waiting_write_is_woken_though_a_gateway_connects_just_then(tmp_path: Path) -> None:
    """The connection ends the resolving of intents of an earlier gateway, and the awaited operation has come to its end
    in the same commit.
    """
    store = SqliteTransactions(tmp_path / "metadata.db")
    local = LocalMetadata(store, patience=10)
    world = await World(Life(local)).begin()
    await world.begin_snapshot("k")
    asked, disk = asyncio.Event(), threading.Event()

    async def nothing(backend: str, raw_key: str) -> Kind:
        await asked.wait()
        raise errors.NotFound(f"snapshot {raw_key}")

    local.raw.snapshot_kind = nothing  # type: ignore[method-assign]
    world.incarnation = "next"
    await world.connect()
    waiting = asyncio.ensure_future(world.begin_snapshot("k"))
    await eventually_async(lambda: true(bool(local.database._waiting)))
    store._thread.submit(disk.wait)
    writing = asyncio.ensure_future(store.write(lambda tx: tx.put(("x",), b"")))
    await eventually_async(lambda: true(store._in_flight))
    connecting = asyncio.ensure_future(world.connect())
    await eventually_async(lambda: true(queued(store) == 1))
    asked.set()
    await eventually_async(lambda: true(queued(store) == 2))
    disk.set()
    async with asyncio.timeout(5):
        await asyncio.gather(writing, connecting, waiting)
    await local.close()


async def true(value: bool) -> bool:
    return value


def queued(store: SqliteTransactions) -> int:
    """The number of writes that wait for the next commit."""
    return sum(map(len, store._queue._callers.values()))


@pytest.mark.parametrize("turns", range(8))
async def test_a_begin_whose_caller_gave_up_leaves_no_intent(local: LocalMetadata, world: World, turns: int) -> None:
    """This holds at whatever point the call was cancelled."""
    task = asyncio.ensure_future(world.begin_snapshot("k"))
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    answered = not task.cancelled()

    async def settled() -> bool:
        return local.database.view(schema.INTENTS.any) == answered and not local.metadata.intents._cancelling

    await eventually_async(settled)


async def test_isolated_content_is_not_shared() -> None:
    """It is shared if the namespace that has it says so."""
    local = LocalMetadata(MemoryTransactions(), shared=False)
    world = await World(Life(local)).begin()
    await world.blob(digest(1), 7)
    other = await world.beside()
    assert not (await other.open("r", expected=digest(1))).shared
    await world.namespaces.Update(
        namespaces_pb2.UpdateNamespaceRequest(
            namespace=namespaces_pb2.Namespace(
                name=world.namespace, labels={"containerd.io/namespace.shareable": "true"}
            )
        )
    )
    assert (await other.open("r", expected=digest(1))).shared
    await local.close()


class Recording:
    """A collector that only records its calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    async def collect(self, *, everything: bool = True, namespace: str = "") -> Collected:
        self.calls.append(f"collect {'everything ' if everything else ''}for {namespace}")
        return Collected(removed=("content x",), failed=("snapshot overlayfs y: busy",), seconds=1.5)

    def schedule(self, change: Change) -> None:
        self.calls.append(change)

    def connected(self) -> None:
        self.calls.append("connected")

    def take(self) -> list[str]:
        calls, self.calls = self.calls, []
        return calls


async def test_the_collector_hears_of_changes(local: LocalMetadata, world: World) -> None:
    """The collector is told of deletions as such; a synchronous deletion is answered when it has collected."""
    collector = local.database.collector = Recording()
    await world.snapshot("k")
    assert set(collector.take()) == {"mutation"}
    await world.remove("k")
    assert collector.take() == ["deletion"]
    await world.connect()
    assert collector.take() == ["connected"]
    await world.leases.Delete(leases_pb2.DeleteRequest(id="l", sync=True), headers=headers(world.namespace))
    assert collector.take() == [f"collect for {world.namespace}"]
    world.lease = ""
    intent = await world.begin_snapshot("k")
    await world.snapshot("p")
    await world.remove("p")
    collector.take()
    await world.cancel(intent)
    assert collector.take() == ["deletion"]
    deletion = await world.records.Collect(pb.CollectRequest(known=True), headers=headers(world.namespace))
    assert deletion.seconds == 1.5
    assert collector.take() == [f"collect for {world.namespace}"]
    collected = await world.records.Collect(pb.CollectRequest())
    assert collected == pb.Collected(removed=["content x"], failed=["snapshot overlayfs y: busy"], seconds=1.5)
    assert collector.take() == ["collect everything for "]


async def test_named_raw_things_are_recorded(local: LocalMetadata, world: World) -> None:
    """They are recorded until the collector reports them gone: in a foreign store it sweeps nothing else."""
    ingest = await world.open("r", expected=digest(1))
    await world.finish(await world.begin_commit("r", digest(1)), digest(1), 3)
    prepared = await world.snapshot("k")
    committed = await world.begin_commit_snapshot("n", "k")
    await world.finish(committed)
    adopted = snapshots_pb2.Info(name="theirs", kind=snapshots_pb2.COMMITTED, labels={REF: "t"})
    world.raw.snapshots["theirs"] = "committed"
    with pytest.raises(errors.AlreadyExists):
        await world.finish(await world.begin_snapshot("x", labels={REF: "t"}), adopted=[adopted])
    named = {key for key, _ in local.database.view(lambda tx: list(schema.NAMED.scan(tx)))}
    assert {
        ("content", "ingest", ingest.raw_ref),
        ("content", "blob", digest(1)),
        ("snapshots.overlayfs", "snapshot", prepared.raw_key),
        ("snapshots.overlayfs", "snapshot", committed.raw_name),
        ("snapshots.overlayfs", "snapshot", "theirs"),
    } <= named


async def test_answers_are_forgotten_in_the_end() -> None:
    """Each new answer drops some old ones."""
    local = LocalMetadata(MemoryTransactions(), answer_kept=-1)
    world = await World(Life(local)).begin()
    for number in range(20):
        await world.snapshot(str(number))
    assert local.database.view(lambda tx: len(list(schema.ANSWERS.scan(tx)))) <= 1


async def test_a_call_that_waits_for_another_operation_does_not_stand_still(local: LocalMetadata, world: World) -> None:
    """That operation has limits of its own, and may take minutes on a slow disk."""
    call = Call("/splitd.records.v1.Records/BeginCommitIngest", {})
    await world.open("r")
    over = await sweeping(local, Raw("content", "blob", digest(1)))
    CURRENT.set(call)
    task = asyncio.ensure_future(world.begin_commit("r", digest(1)))
    await eventually_async(lambda: true(bool(local.database._asleep)))
    assert call.elsewhere == 1
    await over()
    await task
    assert call.elsewhere == 0
