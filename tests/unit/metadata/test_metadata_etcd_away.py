"""The records in etcd while it is away, across a restart, too; and what a node does and shows meanwhile. On the fake."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from api.splitd.records.v1 import records_pb2, records_stubs
from services.etcd.memory import MemoryEtcd
from services.etcd.store import Changes, Committed, Conflict, Delete, Mod, Operation, Put, Uncertain
from services.kit import errors, loops, metrics
from services.kit.transport import NOT_SERVING, SERVING, Methods, Server
from services.metadata import schema
from services.metadata.etcd import EtcdTransactions
from services.metadata.etcd_node import EtcdNode, words
from services.metadata.etcd_rows import Keys, Owner
from services.metadata.store import Gateway
from services.metadata.transactions import Key, Standing, encode
from tests.suites.records_lives import LocalMetadata, headers
from tests.support import eventually_async

PREFIX = "/splitd/one"
KEYS = Keys(PREFIX)
NODE = Owner(node="n1", host="h", machine="m", root="/r")


@contextlib.asynccontextmanager
async def opened(
    etcd: MemoryEtcd, path: Path, *, stale_reads: float = 600.0, noted: float = 10.0
) -> AsyncIterator[EtcdTransactions]:
    store = EtcdTransactions(etcd, PREFIX, path, NODE, stale_reads=stale_reads, patience=0.1, longest=0.05, noted=noted)
    try:
        async with store.running():
            yield store
    finally:
        await store.close()


def shown(store: EtcdTransactions) -> dict[Key, bytes]:
    return store.view(lambda tx: dict(tx.scan(())))


async def put(store: EtcdTransactions, *keys: str) -> None:
    await store.write(lambda tx: tx.put_many([((key,), b"v") for key in keys]))


async def is_away(store: EtcdTransactions) -> None:
    await eventually_async(lambda: asyncio.sleep(0, store.standing.away is not None), "nobody notices")


def noted(path: Path, **changed: Any) -> dict[str, Any]:
    """What a mirror, which is not open, has noted of itself; some of it is changed."""
    with contextlib.closing(sqlite3.connect(path)) as mirror, mirror:
        [[text]] = mirror.execute("SELECT value FROM mirror WHERE name = 'stands'")
        found = {**json.loads(text), **changed}
        mirror.execute("UPDATE mirror SET value = ?", (json.dumps(found),))
    return found


async def test_a_process_that_starts_while_etcd_is_away_reads_on(tmp_path: Path) -> None:
    """From the mirror of the one before, for what is left of the time. Writes follow as soon as etcd is back."""
    etcd, path = MemoryEtcd(), tmp_path / "one.db"
    async with opened(etcd, path) as store:
        await put(store, "a", "b")
    noted(path, step=noted(path)["step"] - 100)
    etcd.cut()
    async with opened(etcd, path) as store:
        assert set(shown(store)) == {("a",), ("b",)}
        assert 100 <= (store.standing.away or 0) < 200
        assert 400 < store.standing.reads <= 500
        with pytest.raises(errors.Unavailable, match="once etcd is back; splitd status"):
            await put(store, "c")
        with pytest.raises(errors.Internal, match="etcd is away"):  # its clients retry UNAVAILABLE for ever
            request = records_pb2.OpenIngestRequest(ref="r", incarnation="x")
            await LocalMetadata(store).client(records_stubs.RECORDS).OpenIngest(request, headers=headers("ns"))
        writing = loops.task("a write that waits", store.writable())
        etcd.cut(away=False)
        await writing
        await put(store, "c")
        assert store.standing.away is None
    async with opened(etcd, tmp_path / "two.db") as store:
        assert set(shown(store)) == {("a",), ("b",), ("c",)}


class Parting(MemoryEtcd):
    """A cluster whose members die one after the other: a watch ends, and another member answers."""

    def __init__(self) -> None:
        super().__init__()
        self.watches = 0
        self.dies = asyncio.Event()

    @contextlib.asynccontextmanager
    async def watch(self, prefix: bytes, *, after: int) -> AsyncIterator[AsyncIterator[Changes]]:
        self.watches += 1
        async with super().watch(prefix, after=after) as changes:
            yield self._until_it_dies(changes)

    async def _until_it_dies(self, changes: AsyncIterator[Changes]) -> AsyncIterator[Changes]:
        dies = asyncio.ensure_future(self.dies.wait())
        try:
            while True:
                change = asyncio.ensure_future(anext(changes))
                await asyncio.wait((change, dies), return_when=asyncio.FIRST_COMPLETED)
                if dies.done():
                    change.cancel()
                    await asyncio.wait((change,))
                    self.dies.clear()
                    raise errors.Unavailable("etcd m1: it is gone")
                yield change.result()
        finally:
            dies.cancel()


async def test_a_member_that_dies_is_no_etcd_that_is_away(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The mirror goes on at another one. Nobody is told anything, and what was written meanwhile is seen."""
    etcd = Parting()
    async with opened(etcd, tmp_path / "one.db") as store:
        for number in range(1, 4):
            await put(store, f"a{number}")
            etcd.dies.set()
            await etcd.commit([Put(KEYS.records + encode((f"b{number}",)), b"\0v"), Put(KEYS.last, b"%d" % number)])
            await eventually_async(lambda: asyncio.sleep(0, (f"b{number}",) in shown(store)))  # noqa: B023
            assert etcd.watches == number + 1
            assert store.standing.away is None
        assert "etcd is away" not in caplog.text
        etcd.cut()
        await is_away(store)
        etcd.cut(away=False)
        await store.writable()


async def test_what_was_written_before_a_restart_without_etcd_is_caught_up(tmp_path: Path) -> None:
    """The mirror may lack the last transaction of a process that was killed. Whoever watches sees it come."""
    etcd, path = MemoryEtcd(), tmp_path / "one.db"
    async with opened(etcd, path) as store:
        await put(store, "a")
    await etcd.commit([Put(KEYS.records + encode(("b",)), b"\0v"), Put(KEYS.last, b"lost")])
    etcd.cut()
    async with opened(etcd, path) as store:
        assert set(shown(store)) == {("a",)}
        with store.watch() as written:
            etcd.cut(away=False)
            await store.writable()
            assert set(shown(store)) == {("a",), ("b",)}
            assert list(written) == [("b",)]


async def test_a_list_tells_what_is_new(tmp_path: Path) -> None:
    """If etcd has forgotten what was missed, too."""
    etcd, path = MemoryEtcd(), tmp_path / "one.db"
    async with opened(etcd, path) as store:
        await put(store, "a", "b", "c")
    etcd.cut()
    async with opened(etcd, path) as store:
        with store.watch() as written:
            etcd.cut(away=False)
            await etcd.commit(
                [
                    Delete(KEYS.records + encode(("a",))),
                    Put(KEYS.records + encode(("b",)), b"\0new"),
                    Put(KEYS.last, b"another"),
                ]
            )
            etcd.compact(etcd.revision)
            await store.writable()
            assert shown(store) == {("b",): b"new", ("c",): b"v"}
            assert list(written) == [("b",)]


@pytest.mark.parametrize("changed", [{"step": -1e6}, {"boot": "another"}, {"prefix": "/other/"}])
async def test_a_mirror_that_is_too_old_is_not_read(changed: dict[str, Any], tmp_path: Path) -> None:
    """Then the process waits for etcd: the time has passed, the machine was started anew, or it is not ours."""
    etcd, path = MemoryEtcd(), tmp_path / "one.db"
    async with opened(etcd, path) as store:
        await put(store, "a")
    noted(path, **changed)
    etcd.cut()
    entered = asyncio.Event()

    async def start() -> None:
        async with opened(etcd, path) as store:
            entered.set()
            assert set(shown(store)) == {("a",)}

    starting = loops.task("a start", start())
    before = etcd.calls
    await eventually_async(lambda: asyncio.sleep(0, etcd.calls > before + 3), "it does not try")
    assert not entered.is_set()
    etcd.cut(away=False)
    await starting


async def test_an_idle_mirror_knows_that_it_is_in_step(tmp_path: Path) -> None:
    """Also if its process is killed: it notes the time over and over."""
    etcd, path = MemoryEtcd(), tmp_path / "one.db"
    async with opened(etcd, path, noted=0.01) as store:

        def known() -> float:
            with contextlib.closing(sqlite3.connect(path)) as mirror:
                [[text]] = mirror.execute("SELECT value FROM mirror WHERE name = 'stands'")
                return float(json.loads(text)["step"])

        first = known()
        await eventually_async(lambda: asyncio.sleep(0, known() > first), "the time is not noted")
        etcd.cut()
        await is_away(store)


async def test_a_gateway_that_connects_meanwhile_is_noted_first(tmp_path: Path) -> None:
    """It can read at once, and what it begins when etcd is back is not refused."""
    etcd, path = MemoryEtcd(), tmp_path / "one.db"
    async with opened(etcd, path) as store:
        intents = LocalMetadata(store).metadata.intents
        id_ = await intents.connect(Gateway(incarnation="one", content="content"))
        await intents.close()
    etcd.cut()
    async with opened(etcd, path) as store:
        intents = LocalMetadata(store).metadata.intents
        await intents.index()
        assert await intents.connect(Gateway(incarnation="two", content="content")) == id_
        writing = loops.task("a write", _when_writable(store, "later"))
        etcd.cut(away=False)
        assert await writing == "two"
        await intents.close()


class Losing(MemoryEtcd):
    """It goes away in the middle of a commit, whose answer is lost with it."""

    lose = False

    async def commit(
        self, operations: Sequence[Operation], compares: Sequence[Mod] = (), *, seconds: float = 0.0
    ) -> Committed | Conflict:
        done = await super().commit(operations, compares, seconds=seconds)
        if self.lose:
            self.lose = False
            self.cut()
            raise Uncertain("etcd: the answer was lost")
        return done


async def test_what_was_begun_without_an_answer_is_cancelled(tmp_path: Path) -> None:
    """Its name is free at once when etcd is back: nobody carries it out."""
    etcd = Losing()
    async with opened(etcd, tmp_path / "one.db") as store:
        local = LocalMetadata(store)
        gateway = Gateway(incarnation="one", content="content", snapshotters=("overlayfs",))
        await local.metadata.intents.connect(gateway)
        records = local.client(records_stubs.RECORDS)
        request = records_pb2.BeginSnapshotRequest(incarnation="one", snapshotter="overlayfs", key="k")
        etcd.lose = True
        with pytest.raises(errors.Unavailable, match="may have been written"):
            await records.BeginSnapshot(request, headers=headers("ns"))
        assert not store.view(lambda tx: list(schema.INTENTS.scan(tx)))
        etcd.cut(away=False)
        await store.writable()
        intent = await records.BeginSnapshot(request, headers=headers("ns"))
        assert [id_ for (id_,), _ in store.view(lambda tx: list(schema.INTENTS.scan(tx)))] == [intent.id]
        await local.metadata.intents.close()


async def _when_writable(store: EtcdTransactions, key: str) -> str:
    await store.writable()

    def work(tx: Any) -> str:
        tx.put((key,), b"")
        found = schema.GATEWAY.get(tx)
        return found.incarnation if found else ""

    return await store.write(work)


@contextlib.asynccontextmanager
async def around(
    store: EtcdTransactions, etcd: MemoryEtcd, server: Server
) -> AsyncIterator[tuple[EtcdNode, list[int]]]:
    again: list[int] = []
    node = EtcdNode(store, etcd, lambda: again.append(1))
    async with node.shown(server):
        yield node, again


async def test_the_health_says_it_and_recovers(tmp_path: Path) -> None:
    """And another trouble stays."""
    etcd = MemoryEtcd()
    server = Server("nowhere:1", Methods([], None, frozenset()), health := {"": SERVING, "x": SERVING})
    async with opened(etcd, tmp_path / "one.db", stale_reads=0.3) as store, around(store, etcd, server):
        etcd.cut()
        await eventually_async(lambda: asyncio.sleep(0, "nothing is written" in server.trouble), "it is not told")
        assert set(health.values()) == {NOT_SERVING}
        await eventually_async(
            lambda: asyncio.sleep(0, "nothing is read or written" in server.trouble), "the end of reads is not told"
        )
        etcd.cut(away=False)
        await eventually_async(lambda: asyncio.sleep(0, not server.trouble), "it does not recover")
        assert set(health.values()) == {SERVING}
        server.ail("damaged")
        etcd.cut()
        await eventually_async(lambda: asyncio.sleep(0, "damaged; etcd has been" in server.trouble), "it is not told")
        etcd.cut(away=False)
        await eventually_async(lambda: asyncio.sleep(0, server.trouble == "damaged"), "it does not recover")
        assert set(health.values()) == {NOT_SERVING}


def test_the_words_of_the_health() -> None:
    standing = Standing(store="etcd", away=60.0, reads=540.0, why="refused")
    assert words(standing, 0.0).endswith("nothing is written; refused")
    assert "nothing is read or written" in words(Standing(store="etcd", away=60.0, why="refused"), 0.0)


async def test_the_metrics(tmp_path: Path) -> None:
    """What etcd and the mirror do can be plotted."""
    etcd = MemoryEtcd()
    metrics.begin()
    try:
        server = Server("nowhere:1", Methods([], None, frozenset()), {"": SERVING})
        async with opened(etcd, tmp_path / "one.db") as store, around(store, etcd, server):
            await put(store, "a")
            etcd.uncertain = "before"
            await put(store, "b")

            async def found() -> dict[str, float]:
                families = await metrics.collect()
                return {each.name: each.samples[0].value for each in families if each.name.startswith("splitd_etcd")}

            values = await found()
            assert values["splitd_etcd_commits"] == 2
            assert values["splitd_etcd_retries"] == 1
            assert values["splitd_etcd_mirror_age_seconds"] == 0
            assert values["splitd_etcd_mirror_revision"] == store.standing.revision
            assert values["splitd_etcd_members"] == values["splitd_etcd_members_reachable"] == 1
            etcd.cut()
            await is_away(store)

            async def told() -> bool:
                values = await found()
                return values["splitd_etcd_mirror_age_seconds"] > 0 and values["splitd_etcd_members_reachable"] == 0

            await eventually_async(told, "the metrics do not say it")
    finally:
        metrics.end()


async def test_a_damaged_mirror_is_made_anew(tmp_path: Path) -> None:
    """The process begins anew, once etcd is there; what is etcd's own is told to others."""
    etcd, path = MemoryEtcd(), tmp_path / "one.db"
    server = Server("nowhere:1", Methods([], None, frozenset()), {"": SERVING})
    others: list[str] = []
    async with opened(etcd, path) as store:
        await put(store, *(f"k{number:0300}" for number in range(400)))
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2 & ~16383)
        file.write(b"\xff" * 16384)
    etcd.cut()
    async with opened(etcd, path) as store, around(store, etcd, server) as (node, again):
        store.file.damaged = lambda why: node.damaged(why, others.append)
        with pytest.raises(errors.DataLoss):
            shown(store)
        await eventually_async(lambda: asyncio.sleep(0, not path.exists()), "the mirror stays")
        assert not again
        etcd.cut(away=False)
        await eventually_async(lambda: asyncio.sleep(0, again), "the process does not begin anew")
    assert again == [1]
    async with opened(etcd, path) as store, around(store, etcd, server) as (node, again):
        assert len(shown(store)) == 400
        node.check(others.append)
        await node.checked()
        assert not (again or others)
        node.damaged("a record of etcd's own", others.append)
        await node.checked()
        assert others == ["a record of etcd's own"]
        assert not again
    async with opened(etcd, path) as store, around(store, etcd, server) as (node, again):
        node.damaged("a record of a mirror that was made before", others.append)
        await eventually_async(lambda: asyncio.sleep(0, again), "the process does not begin anew")
    assert len(others) == 1
