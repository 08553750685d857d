"""A process whose records are in etcd is killed with -9 at each of its points, and at random moments: every acknowledged
transaction is there afterwards, none is there in part, and the mirror has exactly what etcd has.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import sqlite3
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from services.etcd.client import connect
from services.etcd.config import EtcdConfig
from services.metadata.etcd import EtcdTransactions
from services.metadata.etcd_rows import WHOLE, Keys, Owner, Pieces, decode
from tests import copies
from tests.etcd_servers import DEBIAN, Cluster, etcd
from tests.support import eventually

WRITER = """
import asyncio, sys
from pathlib import Path
from services.etcd.client import connect
from services.etcd.config import EtcdConfig
from services.metadata.etcd import EtcdTransactions
from services.metadata.etcd_rows import WHOLE, Owner

async def writer(store, name):
    n = 0
    while True:
        n += 1
        def work(tx, n=n):
            size = WHOLE + n if n % 3 == 0 else n  # every third one has pieces
            for half in "ab":
                tx.put(("pair", name, str(n), half), b"x" * size)
                tx.put(("again", name, half), b"y" * size)  # replaced, with its pieces
                if n > 10:
                    tx.delete(("pair", name, str(n - 10), half))
            tx.put(("last", name), str(n).encode())
        await store.write(work, lasting=n % 4 != 1)
        print(name, n, flush=True)

async def main():
    endpoint, prefix, mirror, life = sys.argv[1:]
    store = EtcdTransactions(connect(EtcdConfig(endpoints=(endpoint,))), prefix, Path(mirror), Owner(node="n"))
    async with store.running():
        await asyncio.gather(*(writer(store, f"w{i}-{life}") for i in range(4)))

asyncio.run(main())
"""
_prefixes = itertools.count()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with etcd(DEBIAN) as running:
        yield running


class Records:
    """The records below a prefix of their own, and processes that write them."""

    def __init__(self, cluster: Cluster, directory: Path) -> None:
        self._cluster = cluster
        self._directory = directory
        self.prefix = f"/crash/{next(_prefixes)}"
        self.mirror = directory / "mirror.db"
        self.faults = directory / "faults"
        self.faults.mkdir()
        self._lives = 0
        self._mirror_lost = False
        self.logs: list[Path] = []

    @contextlib.contextmanager
    def writer(self, acknowledged: int = 0) -> Iterator[copies.Copy | subprocess.Popen[bytes]]:
        """A process that writes, once it has been told that so many transactions are written. It is killed."""
        self._lives += 1
        log = self._directory / f"log{self._lives}"
        self.logs.append(log)
        words = [self._cluster.endpoints[0], self.prefix, str(self.mirror), str(self._lives)]
        with log.open("wb") as out:
            process = copies.written(
                WRITER,
                self._directory / "writer.py",
                *words,
                stdout=out.fileno(),
                environment={"SPLITD_FAULTS": str(self.faults)},
            )
        try:
            eventually(lambda: len(log.read_bytes().splitlines()) >= acknowledged, "it does not write", 60)
            yield process
        finally:
            process.kill()
            process.wait()

    def acknowledged(self) -> dict[str, int]:
        """The number of the last transaction of each writer of which it was told, and which has to be there: without
        the mirror, one that need not last may be lost.
        """
        found: dict[str, int] = {}
        for log in self.logs:
            for line in log.read_text().split("\n")[:-1]:
                name, number = line.split()
                if not self._mirror_lost or int(number) % 4 != 1:
                    found[name] = int(number)
        return found

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[EtcdTransactions]:
        """The store, as the next process opens it."""
        client = connect(EtcdConfig(endpoints=self._cluster.endpoints))
        store = EtcdTransactions(client, self.prefix, self.mirror, Owner(node="n"))
        try:
            async with store.running():
                yield store
        finally:
            await store.close()
            await client.close()

    async def in_etcd(self) -> tuple[dict[bytes, bytes], list[bytes]]:
        """The rows that etcd has, read without the store, and the keys of the pieces that are no row's."""
        keys, values, pieces = Keys(self.prefix), {}, {}
        client = connect(EtcdConfig(endpoints=self._cluster.endpoints))
        async for page in client.pages(keys.prefix):
            for pair in page.pairs:
                if pair.key.startswith(keys.records):
                    values[pair.key.removeprefix(keys.records)] = pair.value
                elif pair.key.startswith(keys.pieces):
                    pieces[pair.key] = pair.value
        await client.close()
        rows = {}
        for key, data in values.items():
            value = decode(key, data)
            if isinstance(value, Pieces):
                own = keys.pieces_of(key) + value.id.encode()
                value = b"".join(pieces.pop(b"%s/%04d" % (own, number)) for number in range(value.count))
            rows[key] = value
        return rows, sorted(pieces)

    async def check(self) -> None:
        """All is as promised: with the mirror that is left, and with a new one."""
        for name in ("left", "new"):
            if name == "new":
                self.remove_mirror()
            async with self.opened() as store:
                self._check_whole(store)
                async with asyncio.timeout(20):
                    while store._shown.ahead:  # its own writes, if any, have passed by
                        await store.moved()
                with contextlib.closing(sqlite3.connect(self.mirror)) as connection:
                    mirrored = dict(connection.execute("SELECT key, value FROM records").fetchall())
                rows, left = await self.in_etcd()
                assert mirrored == rows, name
                if name == "new":
                    assert not left

    def _check_whole(self, store: EtcdTransactions) -> None:
        pairs: dict[tuple[str, str], list[bytes]] = {}
        for (_, name, number, _), value in store.view(lambda tx: list(tx.scan(("pair",)))):
            pairs.setdefault((name, number), []).append(value)
        assert all(len(halves) == 2 and halves[0] == halves[1] for halves in pairs.values())
        last = {key[1]: int(value) for key, value in store.view(lambda tx: list(tx.scan(("last",))))}
        for name, least in self.acknowledged().items():
            assert last[name] >= least
        again = store.view(lambda tx: dict(tx.scan(("again",))))
        for name, done in last.items():
            assert {int(n) for who, n in pairs if who == name} == set(range(max(1, done - 9), done + 1))
            size = WHOLE + done if done % 3 == 0 else done
            assert again["again", name, "a"] == again["again", name, "b"] == b"y" * size

    def lose_mirror(self) -> None:
        """As a power cut does, with what it owes etcd."""
        self._mirror_lost = True
        self.remove_mirror()

    def remove_mirror(self) -> None:
        for path in self.mirror.parent.glob(f"{self.mirror.name}*"):
            path.unlink()


@pytest.fixture
def records(cluster: Cluster, tmp_path: Path) -> Records:
    return Records(cluster, tmp_path)


@pytest.mark.parametrize("point", ["piece", "before", "written", "mirrored"])
async def test_it_is_killed_while_it_writes(point: str, records: Records) -> None:
    """Before etcd has the transaction or some pieces of it, before the mirror has it, and before anybody was told."""
    with records.writer(acknowledged=20) as process:
        (records.faults / f"metadata.etcd.{point}").touch()
        assert process.wait(30) == -9
    await records.check()


@pytest.mark.parametrize("point", ["claimed", "listing"])
async def test_it_is_killed_before_its_mirror_is_whole(point: str, records: Records) -> None:
    """The mirror was lost, and the list of all records is cut."""
    with records.writer(acknowledged=20):
        pass
    records.lose_mirror()
    (records.faults / f"metadata.etcd.{point}").touch()
    with records.writer() as process:
        assert process.wait(30) == -9
    await records.check()


async def test_it_is_killed_at_random_moments(records: Records) -> None:
    """Each process begins with the mirror that the one before has left."""
    rng = random.Random(1)
    for _ in range(3):
        with records.writer(acknowledged=rng.randrange(1, 60)):
            pass
    await records.check()
