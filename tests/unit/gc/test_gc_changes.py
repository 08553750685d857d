"""The decision that a collection makes once about all records, and its correction by later writes: no living record is
removed, and only records that were written since are looked at again.
"""

from __future__ import annotations

import random
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Any

import pytest

from services.kit.slices import at_once
from services.metadata import schema
from services.metadata.gc import mark as mark_module
from services.metadata.gc.changes import Spared
from services.metadata.gc.collector import Collector, _examine, _Found, _remove_batch
from services.metadata.gc.config import Config
from services.metadata.gc.mark import STEP, Node, mark, read_records
from services.metadata.gc.memory import MemoryRawStores
from services.metadata.gc.raw import Listing
from services.metadata.gc.tuning import Tuning
from services.metadata.store import LABELS_PER_STEP, Raw, Resource
from services.metadata.transactions import Reader
from tests.unit.gc.gc_graphs import CONTENT, HOUR, NOW, OVERLAY, World, digest, stamp
from tests.unit.metadata.test_metadata_costs import Counting

NAMES = 8


def _looked(state: Reader) -> _Found:
    return at_once(_examine(state))


def change(world: World, rng: random.Random) -> None:
    """Make one random change: add a record or remove one."""
    number, other = rng.randrange(NAMES), rng.randrange(NAMES)
    labels = {"gc.root": "x"} if rng.random() < 0.05 else {}
    for _ in range(rng.choice([0, 0, 1, 2, 3])):
        key, value = rng.choice(
            [
                ("gc.ref.content.1", digest(other)),
                ("gc.ref.content.2", digest(rng.randrange(NAMES))),
                ("gc.ref.snapshot.overlayfs", f"s{other}"),
                ("gc.bref.content", digest(other)),
                ("gc.bref.snapshot.overlayfs", f"s{other}"),
                ("gc.bref.image", f"i{other}"),
                ("gc.bref.container", f"c{other}"),
                ("gc.ref.image", f"i{other}"),
                ("gc.expire", stamp(NOW + rng.choice([-HOUR, HOUR]))),
                ("gc.cond.snapshot.overlayfs", f"usedat<2h|s{other}"),
                ("gc.cond.value-usedat", stamp(NOW - rng.choice([HOUR, 3 * HOUR]))),
            ]
        )
        labels[key] = value
    match rng.randrange(13):
        case 0 | 1:
            world.blob(number, labels)
        case 2:
            world.image(f"i{number}", other, labels | ({"gc.expire": stamp(NOW - HOUR)} if rng.random() < 0.5 else {}))
        case 3 | 4:
            world.snapshot(f"s{number}", f"s{other}" if other < number else "", labels)
        case 5 | 11:
            world.lease(
                f"l{number}",
                ("content", digest(other)),
                ("snapshots/overlayfs", f"s{rng.randrange(NAMES)}"),
                labels={**labels, **({"gc.flat": "x"} if rng.random() < 0.5 else {})},
            )
        case 6:
            if rng.random() < 0.5:
                world.container(f"c{number}", f"s{other}")
            else:
                world.sandbox(f"b{number}", labels)
        case 7:
            world.ingest(f"r{number}", rng.choice([0, NOW - HOUR, NOW + HOUR]), rng.choice(["", digest(other)]))
        case 8 | 12:
            world._write(
                lambda tx: schema.put_resource(
                    tx,
                    "ns",
                    f"l{number}",
                    Resource(
                        *rng.choice(
                            [
                                ("content", digest(other)),
                                ("snapshots/overlayfs", f"s{other}"),
                                ("images", f"i{other}"),
                                ("ingests", f"r{other}"),
                            ]
                        )
                    ),
                )
            )
        case 9:
            world.intent("prepare", key=f"k{number}", raw_key=f"ns/9/k{number}", parent=f"s{other}")
        case _:
            records: list[tuple[schema.Table[Any], str]] = [
                (schema.IMAGES, f"i{number}"),
                (schema.LEASES, f"l{number}"),
                (schema.CONTAINERS, f"c{number}"),
                (schema.SANDBOXES, f"b{number}"),
                (schema.BLOBS, digest(number)),
            ]
            table, name = rng.choice(records)
            world._write(lambda tx: table.delete(tx, "ns", name))


@pytest.mark.parametrize("held", [False, True])
def test_one_record_that_refers_to_ten_thousand_is_many_steps(held: bool) -> None:
    """An index may name ten thousand blobs, alive or dead. Other callers wait for a few hundred of them, not for
    all.
    """
    world = World()
    world.blob(1, {f"gc.ref.content.m.{number}": digest(number + 2) for number in range(10_000)})
    if held:
        world.image("i", 1)
    steps, before, most = _examine(world.transactions._state), 0, 0
    looked = 0

    def named(self: Node, **changes: Any) -> Node:
        nonlocal looked
        looked += 1
        return Node(**{**self._asdict(), **changes})

    with pytest.MonkeyPatch.context() as counted:
        counted.setattr(
            mark_module, "_node", lambda namespace, rest, value, *, container: named(Node("content", namespace, value))
        )
        for _ in steps:
            most, before = max(most, looked - before), looked
    assert looked >= 10_000
    assert max(most, looked - before) <= 2 * STEP


def test_large_records_are_looked_at_one_by_one() -> None:
    """Clients choose their size: other callers wait for one of them, and for a part of the largest, not for two
    hundred.
    """
    world = World()
    large = {f"l{number}": "x" * 4000 for number in range(50)}
    for number in range(20):
        world.lease(f"l{number}", labels=large)
        world.image(f"i{number}", number, large)
        world.blob(number, large)
    world.blob(20, {f"gc.ref.content.m.{number}": digest(number) for number in range(10_000)})
    state, records, names = world.transactions._state, [0], [0]
    scan = state.scan

    def counted(*args: Any, **how: Any) -> Any:
        for key, value in scan(*args, **how):
            records[-1] += len(value) > 100_000
            yield key, value

    def counted_names(text: str, at: int) -> Any:
        names[-1] += 1
        return scanstring(text, at)

    with pytest.MonkeyPatch.context() as looked:
        looked.setattr(state, "scan", counted)
        looked.setattr(schema, "scanstring", counted_names)
        for _ in _examine(state):
            records.append(0)
            names.append(0)
    assert (sum(records), max(records)) == (61, 1)
    assert (sum(names), max(names)) == (22_000, 2 * LABELS_PER_STEP)


@pytest.mark.parametrize("seed", range(150))
def test_nothing_goes_that_lives(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records are written between the look and each batch: every removed record is dead by a full look at all records.
    Without such writes every dead record is removed.
    """
    monkeypatch.setattr("time.time_ns", lambda: NOW)
    rng = random.Random(seed)
    world = World()
    state = world.transactions._state
    for _ in range(rng.randrange(100)):
        change(world, rng)
    for writes in (3, 0):
        with world.transactions.watch() as written:
            found = _looked(state)
            assert sorted(found.order) == sorted(found.marking.dead)
            known, living = 0, set[Node]()
            for start in range(0, len(found.order), 2):
                for _ in range(rng.randrange(writes + 1)):
                    change(world, rng)
                records = read_records(state)
                dead = set(mark(records, NOW).dead)
                before = {*records.leases, *records.snapshots, *records.ingests, *records.blobs, *records.images}
                removed = _remove_batch(state, found, found.order[start : start + 2], written[known:], living)
                known, living = known + removed.known, removed.living
                records = read_records(state)
                gone = before - {*records.leases, *records.snapshots, *records.ingests, *records.blobs, *records.images}
                assert gone <= dead
    assert not mark(read_records(state), NOW).dead


def test_keys_written_during_a_sweep_are_looked_at_once() -> None:
    """They are not kept, since a sweep may take hours. A thing that came to be named stays nevertheless."""
    world = World()
    with world.transactions.watch() as written:
        spared = Spared(Listing(CONTENT), written)
        raws = [world.blob(number) for number in range(5)]
        before = spared.backlog
        assert spared.look(world.transactions._state, 4).backlog == before - 4 == len(written)
        assert spared.look(world.transactions._state).backlog == 0 == len(written)
        assert all(raw in spared for raw in raws)
        assert Raw(CONTENT, "blob", digest(9)) not in spared


def test_a_record_is_removed_before_those_it_refers_to() -> None:
    """So no caller finds a record that refers to a missing one."""
    world = World()
    for number in range(1, 30):
        world.blob(number, {"gc.ref.content.0": digest(number - 1)} if number > 1 else {})
        world.snapshot(f"s{number:02}", f"s{number - 1:02}" if number > 1 else "", {"gc.bref.content": digest(number)})
    order = _looked(world.transactions._state).order
    blobs = [int(node.key[7:], 16) for node in order if node.type == "content"]
    snapshots = [node.key for node in order if node.type == "snapshot"]
    assert blobs == sorted(blobs, reverse=True)
    assert snapshots == sorted(snapshots, reverse=True)


async def test_transactions_of_a_collection_look_only_at_the_records_they_remove() -> None:
    """This holds however many records live and however many raw things stay."""

    async def cost(living: int) -> int:
        store = Counting()
        world = World(transactions=store)
        stores = MemoryRawStores(**{CONTENT: "", OVERLAY.replace(".", "_"): ""})
        for number in range(living):
            stores.add(world.blob(1000 + number, {"gc.root": "x"}))
            stores.add(world.snapshot(f"s{number}", labels={"gc.root": "x"}))
            world.intent("prepare", key=f"k{number}", raw_key=f"ns/9/k{number}")
        async with Collector(
            world.database, stores, Config(startup_delay=0), lambda event: None
        ).running() as collector:
            await collector.collect()  # the stores become ours
            for number in range(2 * Tuning().victims):
                stores.add(world.blob(number))
            before = store.rows
            assert len((await collector.collect()).removed) == 2 * Tuning().victims
            assert not [raw for raw in stores.blobs if Raw(CONTENT, "blob", digest(1)) == raw]
        return store.rows - before

    assert await cost(2) == await cost(150)
