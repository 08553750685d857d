"""kill -9 at random moments: every acknowledged transaction is there afterwards, and none is there in part."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from api.containerd.services.containers.v1 import containers_pb2
from api.splitd.records.v1 import records_pb2 as pb
from services.kit import errors, rpc
from services.kit.process import owned
from services.metadata.sqlite import SqliteTransactions
from tests import copies
from tests.etcd_servers import DEBIAN, Cluster, etcd
from tests.service.metadata.test_metadata_records import NO_COLLECTION, Life, StandIn
from tests.suites.containers import CONTAINERS, container
from tests.suites.records import World
from tests.suites.records_lives import RawStandIn, headers
from tests.support import ServiceProcess, eventually_async

WRITER = """
import asyncio, sys
from pathlib import Path
from services.metadata.sqlite import SqliteTransactions

async def writer(store, name):
    n = 0
    while True:
        n += 1
        def work(tx, n=n):
            tx.put(("pair", name, str(n), "a"), b"x" * (n % 5000))
            tx.put(("pair", name, str(n), "b"), b"x" * (n % 5000))
            tx.put(("last", name), str(n).encode())
            if n > 50:
                for half in "ab":
                    tx.delete(("pair", name, str(n - 50), half))
        await store.write(work)
        sys.stdout.write(f"{name} {n}\\n")
        sys.stdout.flush()

async def main():
    store = SqliteTransactions(Path(sys.argv[1]))
    await asyncio.gather(*(writer(store, f"w{i}-{sys.argv[2]}") for i in range(8)))

asyncio.run(main())
"""


@pytest.mark.parametrize("seed", range(6))
def test_the_database_keeps_what_it_acknowledged(tmp_path: Path, seed: int) -> None:
    """Eight writers run at once; their process is killed twice."""
    rng = random.Random(seed)
    path = tmp_path / "metadata.db"
    acknowledged: dict[str, int] = {}
    for life in range(2):
        log = tmp_path / f"log{life}"
        with log.open("wb") as out:
            process = copies.written(WRITER, tmp_path / "writer.py", str(path), str(life), stdout=out.fileno())
        try:
            end = time.monotonic() + 20
            while log.stat().st_size < 2000 and time.monotonic() < end:
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.1))
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        for line in log.read_text().split("\n")[:-1]:
            name, number = line.split()
            acknowledged[name] = max(acknowledged.get(name, 0), int(number))
    assert len(acknowledged) == 16
    store = SqliteTransactions(path)
    pairs: dict[tuple[str, str], list[bytes]] = {}
    for (_, name, number, _), value in store.view(lambda tx: list(tx.scan(("pair",)))):
        pairs.setdefault((name, number), []).append(value)
    for name, least in acknowledged.items():
        found = int(store.view(lambda tx, n=name: tx.get(("last", n))) or b"0")  # type: ignore[misc]
        assert found >= least, name
        # what it wrote together is together: the last 50, in both halves, and nothing older
        assert {int(n) for who, n in pairs if who == name} == set(range(max(1, found - 49), found + 1))
    assert all(len(halves) == 2 and halves[0] == halves[1] for halves in pairs.values())
    assert not store.file.lost
    assert store._writer.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    store._writer.close()
    store._reader.close()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with etcd(DEBIAN) as running:
        yield running


@pytest.fixture(params=["sqlite", "etcd"])
def config(request: pytest.FixtureRequest, place: Path) -> Path:
    """The configuration of a metadata process, for each of the stores."""
    text = NO_COLLECTION
    if request.param == "etcd":
        endpoints = json.dumps(request.getfixturevalue("cluster").endpoints)
        text += f'[metadata]\nstore = "etcd"\n[metadata.etcd]\nendpoints = {endpoints}\nprefix = "{place}"\n'
    path = place / "config.toml"
    path.write_text(text)
    return path


async def test_the_process_keeps_what_it_acknowledged(place: Path, config: Path) -> None:
    """Containers, an open intent and the gateway's incarnation survive a kill -9 of metadata."""
    with ServiceProcess("services.metadata", place / "root", place / "state", config=config) as process:
        async with rpc.Channel(place / "state" / "metadata.sock") as channel:
            world = await World(Life(channel, StandIn(RawStandIn()))).begin()
            containers = channel.client(CONTAINERS)
            for number in range(20):
                await containers.Create(
                    containers_pb2.CreateContainerRequest(container=container(f"c{number}")),
                    headers=headers(world.namespace),
                )
            store_id = await world.connect()
            intent = await world.begin_snapshot("k")
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            process.start()
            assert await channel.wait_connected(10)
            found = (
                await containers.List(containers_pb2.ListContainersRequest(), headers=headers(world.namespace))
            ).containers
            assert {c.id for c in found} == {f"c{n}" for n in range(20)}
            await world.finish(intent)  # no second Connect was needed
            assert (await world.stat("k")).name == "k"
            assert await world.connect() == store_id


@pytest.mark.parametrize(
    ("point", "recorded"), [("metadata.begun", False), ("metadata.before-finish", True), ("metadata.finished", True)]
)
async def test_metadata_dies_within_an_intent(place: Path, config: Path, point: str, recorded: bool) -> None:
    """Before the answer to Begin: no intent is left that its gateway does not know. Before or after it wrote the
    records that Finish makes: a repeated Finish makes them once.
    """
    faults = place / "faults"
    faults.mkdir()
    raw = RawStandIn()
    stand_in = StandIn(raw)
    with ServiceProcess(
        "services.metadata", place / "root", place / "state", config=config, env={"SPLITD_FAULTS": str(faults)}
    ) as process:
        async with (
            rpc.serving(place / "state" / "internal.sock", stand_in.servicers),
            rpc.Channel(place / "state" / "metadata.sock") as channel,
        ):
            world = await World(Life(channel, stand_in)).begin()
            if not recorded:
                (faults / point).touch()
            try:
                intent = await world.begin_snapshot("k")
                (faults / point).touch()
                raw.snapshots[intent.raw_key] = "active"
                with pytest.raises(errors.Unavailable):
                    await world.finish(intent)
                known = [intent.id]
            except errors.Unavailable:
                known = []
            process.wait()
            process.start()
            assert await channel.wait_connected(10)
            await world.records.Connect(
                pb.ConnectRequest(
                    incarnation=world.incarnation,
                    content="content",
                    snapshotters=["overlayfs"],
                    open=pb.OpenIntents(ids=known),
                )
            )
            assert bool(known) == recorded
            if recorded:
                assert [e.topic for e in (await world.finish(intent)).events] == ["/snapshot/prepare"]
                assert (await world.resolve("k")).raw_key == intent.raw_key
            else:
                await eventually_async(lambda: _logged(process, "its raw call was not done"))
                await world.snapshot("k")


async def _logged(process: ServiceProcess, text: str) -> bool:
    return text in process.text()


async def test_one_process_serves_a_directory(place: Path) -> None:
    """A second process waits for a moment and then reports which process has the directory; when the first has ended,
    the second gets it.
    """
    directory = place / "root" / "metadata"
    with ServiceProcess("services.metadata", place / "root", place / "state"):
        with (
            pytest.raises(errors.FailedPrecondition, match=f"{directory} is served by another process"),
            owned(directory, 0.1),
        ):
            pass
    with owned(directory, 0.1):
        pass
