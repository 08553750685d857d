"""The collector and clients at random, interleaved between any two steps: nothing that is needed is removed, and in the
end nothing that is not needed stays.

The collector decides by one look at all records and by later writes. Its result is compared with a full look at the
instant of each removal. Clients use the services as the gateway does, with the raw calls between Begin and Finish;
every record that they can see has its raw thing, always.

``make fuzz`` runs it for a tenth of its time, from a random seed; here some worlds run, each from a seed that a failure
prints. In memory the same seed gives the same course of events; on SQLite the times of commits differ.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from services.kit import errors
from services.kit.slices import Lane, Steps
from services.metadata import schema
from services.metadata.containers import Containers
from services.metadata.content import Content, finish_commit
from services.metadata.database import Database
from services.metadata.gc import collector, plan, sweep
from services.metadata.gc.collector import Collector
from services.metadata.gc.config import Config
from services.metadata.gc.mark import Node, mark, read_records
from services.metadata.gc.memory import MemoryRawStores
from services.metadata.gc.raw import Listing
from services.metadata.gc.tuning import Tuning
from services.metadata.images import Images
from services.metadata.intents import Intents
from services.metadata.leases import Leases
from services.metadata.memory import MemoryTransactions
from services.metadata.snapshots import REF, Snapshots, finish_commit_snapshot, finish_snapshot
from services.metadata.sqlite import SqliteTransactions
from services.metadata.store import Container, Event, Gateway, Image, Intent, Kind, Outcome, Raw, RawSnapshot, Resource
from services.metadata.transactions import Reader, Transaction
from tests.unit.gc.gc_graphs import CONTENT, HOUR, NOW, OVERLAY, SECOND, digest, stamp

T = TypeVar("T")

WORLDS = {"memory": 27, "sqlite": 5}
SEED = 122
"""From this seed on, few worlds contain every case that the collector could miss."""
CLIENTS, CALLS = 4, 40
NAMES = 6
"""The number of names of each kind in each namespace: few, so that all are shared."""


class Chance:
    """The random choices of a world."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    async def pause(self, most: int = 6) -> None:
        """Let other tasks run, or not."""
        for _ in range(self.random.choice((0, 0, 1, self.random.randrange(most)))):
            await asyncio.sleep(0)


class Memory(MemoryTransactions):
    """A store in memory that is sometimes as slow as a disk; a read may be old when it arrives."""

    chance: Chance

    async def read(self, work: Callable[[Reader], T]) -> T:
        await self.chance.pause()
        found = work(self._state)
        await self.chance.pause(40)
        return found

    async def write(self, work: Callable[[Transaction], T], *, lasting: bool = True) -> T:
        await self.chance.pause()
        done = await super().write(work, lasting=lasting)
        await self.chance.pause()
        return done


class Sqlite(SqliteTransactions):
    """The same on SQLite, with late answers."""

    chance: Chance

    async def read(self, work: Callable[[Reader], T]) -> T:
        found = await super().read(work)
        await self.chance.pause(20)
        return found


class Slow(Lane):
    """A collector whose looks at all records are done in small steps, with other tasks between them."""

    def __init__(self, chance: Chance) -> None:
        super().__init__()
        self._chance = chance

    async def through(self, steps: Steps[T]) -> T:
        while True:
            try:
                next(steps)
            except StopIteration as end:
                await self._chance.pause(40)
                result: T = end.value
                return result
            await self._chance.pause(2)


class Raws(MemoryRawStores):
    """Raw stores that take their time and sometimes fail; after a failed removal its outcome is unknown."""

    def __init__(self, chance: Chance, **stamps: str | None) -> None:
        super().__init__(**stamps)
        self.chance = chance
        self.together = chance.random.random() < 0.5
        self.before = self._before
        self.well = False
        self.removing: Callable[[Raw], None] = lambda raw: None

    async def _before(self, method: str, name: str) -> None:
        await self.chance.pause(150)

    async def remove(self, raw: Raw) -> None:
        await self.chance.pause()
        self.removing(raw)
        fails = (
            None
            if self.well or self.chance.random.random() > 0.1
            else self.chance.random.choice((errors.Unavailable, errors.DeadlineExceeded, errors.Internal))
        )
        if fails is not None and (fails is errors.Internal or self.chance.random.random() < 0.5):
            raise fails("at random")
        await super().remove(raw)
        if fails is not None:
            raise fails("at random")


class Asked:
    """The raw stores as intents ask them."""

    def __init__(self, raws: Raws) -> None:
        self._raws = raws

    def _has(self, raw: Raw) -> None:
        if raw not in self._raws:
            raise errors.NotFound(raw.name)

    async def blob_size(self, backend: str, digest: str) -> int:
        self._has(Raw(backend, "blob", digest))
        return 1

    async def ingest_offset(self, backend: str, raw_ref: str) -> int:
        self._has(Raw(backend, "ingest", raw_ref))
        return 1

    async def snapshot_kind(self, backend: str, raw_key: str) -> Kind:
        self._has(Raw(backend, "snapshot", raw_key))
        return "committed"


SMALL = Tuning(
    records=2, victims=2, snapshots=2, together=3, snapshots_together=3, step=2, written=3, forgotten=2, retry=3600.0
)


class World:
    """Clients, the gateway and the raw stores in one."""

    def __init__(self, chance: Chance, transactions: Memory | Sqlite, raws: Raws) -> None:
        self.chance = chance
        self.transactions = transactions
        self.raws = raws
        self.now = NOW
        transactions.chance = chance
        self.database = Database(transactions, patience=60.0)
        events: Callable[[Event], None] = lambda event: None
        self.content = Content(self.database)
        self.snapshots = Snapshots(self.database)
        self.images = Images(self.database)
        self.leases = Leases(self.database)
        self.containers = Containers(self.database, events)
        self.intents = Intents(
            self.database,
            events,
            Asked(raws),
            {
                "commit-ingest": finish_commit,
                "prepare": finish_snapshot,
                "view": finish_snapshot,
                "commit-snapshot": finish_commit_snapshot,
            },
        )
        self.collector = Collector(self.database, raws, Config(startup_delay=3600), events, tuning=SMALL)
        self.collector.lane = Slow(chance)
        raws.removing = self._removing

    # -- what must be so

    def _removing(self, raw: Raw) -> None:
        """Check a raw thing at the moment of its removal."""

        def check(tx: Reader) -> None:
            assert schema.is_marked(tx, raw), f"{raw} goes without a mark"
            used = plan.uses(tx, raw.backend)
            if any(snapshot.parent == raw.name for snapshot in self.raws.snapshots.values()):
                return  # its backend refuses
            assert raw not in used.raws, f"{raw} goes, which is named"
            assert not (raw.kind == "blob" and used.every_blob), f"{raw} goes, which may be what is being committed"
            if raw in self.raws.snapshots:
                assert self.raws.snapshots[raw].reference not in (used.references - {""}), (
                    f"{raw} goes, which is asked for"
                )

        self.database.view(check)

    def whole(self) -> None:
        """Check that each record has its raw thing."""

        def check(tx: Reader) -> list[Raw]:
            records = read_records(tx)
            renamed = {
                Raw(i.backend, "snapshot", i.raw_key) for i in records.intents if i.operation == "commit-snapshot"
            }
            return [
                raw
                for raw in (
                    *(Raw(b.backend, "blob", node.key) for node, b in records.blobs.items()),
                    *(Raw(s.backend, "snapshot", s.raw_key) for s in records.snapshots.values()),
                )
                if raw not in self.raws and raw not in renamed
            ]

        assert self.database.view(check) == []

    # -- names

    @property
    def _ns(self) -> str:
        return self.chance.random.choice(("ns", "ns", "ns", "other"))

    @property
    def _number(self) -> int:
        return self.chance.random.randrange(NAMES)

    @property
    def _digest(self) -> str:
        return digest(self._number)

    def _labels(self) -> dict[str, str]:
        one = self.chance.random
        pool: list[tuple[str, str]] = [
            ("gc.root", "x"),
            ("gc.ref.content", self._digest),
            ("gc.ref.content.1", self._digest),
            ("gc.ref.content/l.2", self._digest),
            ("gc.ref.snapshot.overlayfs", f"c{self._number}"),
            ("gc.ref.snapshot.overlayfs/2", f"a{self._number}"),
            ("gc.ref.image", f"i{self._number}"),
            ("gc.bref.content", self._digest),
            ("gc.bref.content.1", self._digest),
            ("gc.bref.snapshot.overlayfs", f"c{self._number}"),
            ("gc.bref.image", f"i{self._number}"),
            ("gc.bref.container", f"box{self._number}"),
            ("gc.expire", stamp(self.now + one.choice((-HOUR, HOUR, 30 * HOUR)))),
            ("gc.cond.snapshot.overlayfs", f"usedat<10h|c{self._number}"),
            ("gc.cond.value-usedat", stamp(self.now - one.choice((HOUR, 20 * HOUR)))),
            ("plain", "x"),
        ]
        return {f"containerd.io/{key}": value for key, value in one.sample(pool, one.choice((0, 1, 2, 3, 4)))}

    def _lease(self, namespace: str) -> str:
        """Return an existing lease, or none."""
        found = self.database.view(lambda tx: [key[1] for key, _ in schema.LEASES.scan(tx, namespace)])
        return self.chance.random.choice(["", *found])

    # -- calls

    async def client(self) -> None:
        """Run calls, one after the other."""
        for _ in range(CALLS):
            call = self.chance.random.choice(self.CALLS)
            try:
                async with asyncio.timeout(30):  # who waits for a mark or an intent is woken
                    await call(self)
            except (
                errors.NotFound,
                errors.AlreadyExists,
                errors.FailedPrecondition,
                errors.InvalidArgument,
                errors.Aborted,
            ):
                pass  # as chance has it
            if self.chance.random.random() < 0.2:
                self.whole()
            await self.chance.pause(20)

    async def push(self) -> None:
        """Write and commit content, with its digest or without it."""
        namespace, made = self._ns, self._digest
        lease, ref = self._lease(namespace), f"r{self._number}"
        ingest = await self.content.open(namespace, lease, "g", ref, 0, self.chance.random.choice(("", made)))
        raw = Raw(CONTENT, "ingest", ingest.raw_ref)
        if not ingest.shared and self.database.view(lambda tx: schema.INGESTS.has(tx, namespace, ref)):
            self.raws.add(raw)
        await self.chance.pause(10)
        if self.chance.random.random() < 0.2:
            return  # for another call to go on with, or the collector
        labels = self._labels()
        intent, finished = await self.content.begin_commit(
            self.intents,
            namespace,
            lease,
            "g",
            ref,
            0,
            ingest.expected or self.chance.random.choice(("", made)),
            labels,
        )
        if finished is not None:
            return

        def commit() -> Outcome:
            self.raws.ingests.discard(raw)
            self.raws.add(Raw(CONTENT, "blob", intent.expected or made))
            return Outcome(digest=intent.expected or made, size=1)

        await self._through(intent, commit)

    async def _through(self, intent: Intent, done: Callable[[], Outcome]) -> None:
        """Do what the gateway does between Begin and the end."""
        await self.chance.pause(30)
        if self.chance.random.random() < 0.1:
            await self.intents.cancel(intent.id)
            return
        outcome = done()
        await self.chance.pause(30)
        await self.intents.finish(intent.id, outcome)

    async def prepare(self) -> None:
        """Prepare a snapshot on another, sometimes one that the backend has already."""
        one, namespace = self.chance.random, self._ns
        parent = one.choice(("", f"c{self._number}"))
        labels = self._labels()
        if not parent and one.random() < 0.6:
            labels[REF] = f"c{self._number}"
        intent = await self.snapshots.begin(
            self.intents,
            namespace,
            self._lease(namespace),
            "g",
            "overlayfs",
            f"a{self._number}",
            parent,
            labels,
            view=one.random() < 0.2,
        )

        def make() -> Outcome:
            there = [
                snapshot
                for snapshot in self.raws.snapshots.values()
                if intent.target and snapshot.reference == intent.target
            ]
            if there:
                chain = there[:1]
                while parent := self.raws.snapshots.get(Raw(OVERLAY, "snapshot", chain[-1].parent)):
                    chain.append(parent)
                return Outcome(
                    adopted=tuple(
                        RawSnapshot(name=each.key, parent=each.parent, labels={REF: each.reference}) for each in chain
                    )
                )
            assert not intent.raw_parent or Raw(OVERLAY, "snapshot", intent.raw_parent) in self.raws, (
                "the parent of what is prepared is gone"
            )
            self.raws.add(Raw(OVERLAY, "snapshot", intent.raw_key), parent=intent.raw_parent)
            return Outcome()

        await self._through(intent, make)

    async def commit(self) -> None:
        """Commit an active snapshot."""
        namespace = self._ns
        intent = await self.snapshots.begin_commit(
            self.intents,
            namespace,
            self._lease(namespace),
            "g",
            "overlayfs",
            f"c{self._number}",
            f"a{self._number}",
            "",
            self._labels(),
        )
        active = Raw(OVERLAY, "snapshot", intent.raw_key)
        await self.chance.pause(30)
        if (
            self.database.view(
                lambda tx: getattr(schema.SNAPSHOTS.get(tx, namespace, "overlayfs", intent.key), "raw_key", "")
            )
            != intent.raw_key
        ):
            await self.intents.cancel(intent.id)  # somebody removed it meanwhile
            return
        assert active in self.raws, "what is committed is gone"
        self.raws.add(Raw(OVERLAY, "snapshot", intent.raw_name), parent=self.raws.snapshots.pop(active).parent)
        await self.chance.pause(30)
        await self.intents.finish(intent.id, Outcome())

    async def remote(self) -> None:
        """Let a snapshotter create something of its own accord."""
        number = self._number
        raw, below = Raw(OVERLAY, "snapshot", f"remote-{number}"), Raw(OVERLAY, "snapshot", f"remote-{number - 1}")
        if raw not in self.raws:
            self.raws.add(raw, parent=below.name if below in self.raws else "", reference=f"c{number}")

    async def label(self) -> None:
        namespace, paths = (
            self._ns,
            self.chance.random.choice(
                ((), ("labels.containerd.io/gc.root",), ("labels.containerd.io/gc.ref.content.1",))
            ),
        )
        if self.chance.random.random() < 0.6:
            await self.content.update(namespace, self._digest, self._labels(), paths)
        else:
            await self.snapshots.update(
                namespace, "overlayfs", self.chance.random.choice("ac") + str(self._number), self._labels(), paths
            )

    async def image(self) -> None:
        namespace = self._ns
        image = Image(name=f"i{self._number}", digest=self._digest, media_type="m", size=1, labels=self._labels())
        if self.chance.random.random() < 0.6:
            await self.images.create(namespace, self._lease(namespace), image)
        else:
            await self.images.update(namespace, self._lease(namespace), image, ())

    async def lease(self) -> None:
        one, namespace = self.chance.random, self._ns
        labels = self._labels() | ({"containerd.io/gc.flat": "x"} if one.random() < 0.5 else {})
        await self.leases.create(namespace, f"l{self._number}", labels)

    async def hold(self) -> None:
        resource = self.chance.random.choice(
            (
                Resource("content", self._digest),
                Resource("ingests", f"r{self._number}"),
                Resource("images", f"i{self._number}"),
                Resource("snapshots/overlayfs", f"c{self._number}"),
                Resource("snapshots/overlayfs", f"a{self._number}"),
            )
        )
        if self.chance.random.random() < 0.7:
            await self.leases.add(self._ns, f"l{self._number}", resource)
        else:
            await self.leases.remove(self._ns, f"l{self._number}", resource)

    async def container(self) -> None:
        container = Container(
            id=f"box{self._number}",
            runtime="r",
            snapshotter="overlayfs",
            snapshot_key=self.chance.random.choice("ac") + str(self._number),
            labels=self._labels(),
        )
        await self.containers.create(self._ns, container)

    async def delete(self) -> None:
        namespace = self._ns
        match self.chance.random.randrange(8):
            case 0:
                await self.images.delete(namespace, "", f"i{self._number}")
            case 1:
                await self.leases.delete(namespace, f"l{self._number}", sync=False)
            case 2:
                await self.containers.delete(namespace, f"box{self._number}")
            case 3 | 6 | 7:
                await self.content.delete(namespace, "", self._digest)
            case 4:
                await self.content.forget(namespace, "", f"r{self._number}")
            case _:
                await self.snapshots.remove(
                    namespace, "", "overlayfs", self.chance.random.choice("ac") + str(self._number)
                )

    async def wait(self) -> None:
        """Let time pass."""
        self.now += self.chance.random.choice((SECOND, 2 * HOUR, 13 * HOUR))

    CALLS: tuple[Callable[[World], Awaitable[None]], ...] = (
        push,
        push,
        push,
        push,
        prepare,
        prepare,
        prepare,
        commit,
        commit,
        remote,
        remote,
        remote,
        label,
        label,
        label,
        image,
        lease,
        hold,
        hold,
        container,
        delete,
        delete,
        wait,
    )

    # -- a life

    async def live(self) -> None:
        """Run clients while collections run again and again, until the clients are done."""
        await self.transactions.write(
            lambda tx: schema.GATEWAY.put(
                tx, value=Gateway(incarnation="g", content=CONTENT, snapshotters=("overlayfs",))
            )
        )
        self.raws.stamps = dict.fromkeys(self.raws.stamps, await self.database.store_id())
        async with self.collector.running():
            async with asyncio.TaskGroup() as clients:
                calling = [clients.create_task(self.client()) for _ in range(CLIENTS)]
                while not all(task.done() for task in calling):
                    await self.collector.collect(everything=self.chance.random.random() < 0.3)
                    self.whole()
                    for _ in range(self.chance.random.choice((0, 200, 400))):  # until there is something to collect
                        await asyncio.sleep(0)
            self.raws.well = True
            for _ in range(3):  # the second finds what came to be while the first one ran, the third what came of that
                await self.collector.collect()
        self.whole()
        self.database.view(self._clean)

    def _clean(self, tx: Reader) -> None:
        """Check that exactly the records that a full look calls living are left."""
        assert not list(schema.INTENTS.scan(tx))
        assert not list(schema.CLAIMS.scan(tx))
        assert not any(list(schema.marked(tx, backend)) for backend in (CONTENT, OVERLAY))
        assert mark(read_records(tx), self.now).dead == []
        for backend in (CONTENT, OVERLAY):
            listing = Listing(
                backend,
                frozenset(r.name for r in self.raws.blobs if r.backend == backend),
                frozenset(r.name for r in self.raws.ingests if r.backend == backend),
                {r.name: s for r, s in self.raws.snapshots.items() if r.backend == backend},
            )
            used = plan.uses(tx, backend)
            assert plan.victims(listing, used, plan.named(tx, backend), own=True) == []
            # a raw ancestor without a record stays
            assert used.raws <= plan.named(tx, backend) <= used.raws | listing.raws()


@pytest.fixture(autouse=True)
def checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the collector in small steps and check each of them."""
    remove_batch, marks = collector._remove_batch, sweep.Sweeper._mark

    def checked_removal(tx: Transaction, found: collector._Found, batch: list[Node], *args: Any) -> collector._Removed:
        there = [node for node in batch if collector._there(tx, node)]
        dead = set(mark(read_records(tx), time.time_ns()).dead) if batch else set()
        removed = remove_batch(tx, found, batch, *args)
        assert {node for node in there if not collector._there(tx, node)} <= dead, "what lives was removed"
        return removed

    def checked_marks(self: sweep.Sweeper, tx: Transaction, view: sweep._View, *args: Any) -> Any:
        chosen, staying = marks(self, tx, view, *args)
        own = view.ownership in ("own", "new")
        listing = Listing(
            self.backend,
            frozenset(r.name for r in chosen if r.kind == "blob"),
            frozenset(r.name for r in chosen if r.kind == "ingest"),
            view.listing.snapshots,
        )
        assert set(chosen) <= set(
            plan.victims(listing, plan.uses(tx, self.backend), plan.named(tx, self.backend), own=own)
        ), "what is named was marked"
        return chosen, staying

    monkeypatch.setattr(collector, "_remove_batch", checked_removal)
    monkeypatch.setattr(sweep.Sweeper, "_mark", checked_marks)


async def live(
    seed: int, kind: str, root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Run a world of that seed."""
    chance = Chance(seed)
    transactions = Memory() if kind == "memory" else Sqlite(root / f"{seed}.db")
    world = World(chance, transactions, Raws(chance, content=None, snapshots_overlayfs=None))
    monkeypatch.setattr("time.time_ns", lambda: world.now)
    world.database.started = world.now
    try:
        await world.live()
        # what a sweep met with: it stops nobody else
        assert not [record for record in caplog.records if record.exc_info]
    except BaseException as error:
        error.add_note(f"in the world of seed {seed} on {kind}")
        raise
    finally:
        await transactions.close()


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_nothing_goes_that_is_needed_and_nothing_else_stays(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """This holds however the steps are interleaved."""
    end = time.monotonic() + float(os.environ.get("FUZZ_SECONDS", "0")) / 20
    seed = int(os.environ.get("FUZZ_SEED", SEED))
    worlds = WORLDS[kind]
    while worlds > 0 or time.monotonic() < end:
        await live(seed, kind, tmp_path, monkeypatch, caplog)
        caplog.clear()
        seed, worlds = seed + 1, worlds - 1
