"""The snapshots process: its sockets, its guarantees over them, and its state after a kill -9."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from api.containerd.services.snapshots.v1 import snapshots_pb2 as pb
from api.containerd.services.snapshots.v1 import snapshots_stubs
from api.splitd.removals.v1 import removals_pb2, removals_stubs
from api.splitd.stamp.v1 import stamp_pb2, stamp_stubs
from services.kit import errors
from services.kit import health as kit_health
from services.kit.rpc import Channel
from services.snapshots.remote import RemoteSnapshotter, snapshotters
from services.snapshots.snapshotters import SNAPSHOTTERS
from services.snapshots.store import Kind
from services.snapshots.tree import Tree
from tests.suites.snapshots import mkdir, mounted, write
from tests.support import ServiceProcess, eventually, health, short_directory

STAMP = stamp_stubs.STAMP
REMOVALS = removals_stubs.REMOVALS
NAMES = [each.NAME for each in SNAPSHOTTERS]
SOCKETS = (*(f"snapshots-{name}.sock" for name in NAMES), "snapshots.sock", "diff.sock")


def started(directory: Path, **env: str) -> ServiceProcess:
    return ServiceProcess("services.snapshots", directory / "r", directory / "s", sockets=SOCKETS, env=env)


@pytest.fixture(scope="module")
def process() -> Iterator[ServiceProcess]:
    with short_directory() as directory, started(directory) as running:
        yield running


@pytest.mark.parametrize("socket", SOCKETS)
async def test_each_socket_answers_health(process: ServiceProcess, socket: str) -> None:
    """Every socket is served, and only its owner has access."""
    assert await health(process.state / socket) == 1
    assert (process.state / socket).stat().st_mode & 0o777 == 0o600


async def test_the_process_says_which_snapshotters_it_has(process: ServiceProcess) -> None:
    """Each has its root, its capabilities, and the reason if it cannot work here; its socket has its name."""
    async with Channel(process.state / "snapshots.sock") as channel:
        found = await snapshotters(channel, 10)
    assert [each.name for each in found] == NAMES
    assert [each.exports for each in found] == [
        {"root": str(process.root / "snapshots" / name)}
        | ({"shares_layers": "true"} if name == "overlayfs" else {})
        | ({"differ": "erofs"} if name == "erofs" else {"lasting_mounts": "true"})
        for name in NAMES
    ]
    assert {each.name: set(each.capabilities) - {"remap-ids"} for each in found if each.capabilities} == {
        "overlayfs": {"only-remap-ids", "rebase"},
        "erofs": {"rebase"},
    }
    assert not [each.name for each in found if each.trouble and each.name in ("overlayfs", "native")]


async def test_the_stamp_is_kept(place: Path) -> None:
    """Each snapshotter has its own stamp, which survives the process and cannot be changed."""
    process = started(place)
    async with Channel(place / "s" / SOCKETS[0]) as overlay, Channel(place / "s" / SOCKETS[1]) as native:
        client = overlay.client(STAMP)
        assert (await client.Get(stamp_pb2.GetRequest())).store_id == ""
        with pytest.raises(errors.InvalidArgument):
            await client.Set(stamp_pb2.SetRequest())
        await client.Set(stamp_pb2.SetRequest(store_id="one"))
        process.kill()
        process.start()
        await overlay.wait_connected(10)
        assert (await client.Get(stamp_pb2.GetRequest())).store_id == "one"
        await client.Set(stamp_pb2.SetRequest(store_id="one"))
        with pytest.raises(errors.FailedPrecondition, match="one"):
            await client.Set(stamp_pb2.SetRequest(store_id="two"))
        await native.wait_connected(10)
        assert (await native.client(STAMP).Get(stamp_pb2.GetRequest())).store_id == ""
    assert process.stop() == 0
    assert (place / "r" / "snapshots" / "overlayfs" / "store-id").read_text() == "one\n"


async def test_a_database_that_is_none_stops_no_other(place: Path) -> None:
    """Its snapshotter refuses every call with its name and what to do, and it reports no stamp, so nothing of it is
    collected. The others serve, and so does it once its database is repaired.
    """
    process = started(place)
    async with Channel(place / "s" / SOCKETS[0]) as overlay, Channel(place / "s" / SOCKETS[1]) as native:
        broken, stamp, removals = (
            RemoteSnapshotter(overlay, snapshotter="overlayfs"),
            overlay.client(STAMP),
            overlay.client(REMOVALS),
        )
        await broken.prepare("kept")
        assert process.stop() == 0
        path = place / "r" / "snapshots" / "overlayfs" / "metadata.db"
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # of a log that has the page SQLite would take it
        whole = path.read_bytes()
        path.write_bytes(b"\xff" * 100 + whole[100:])
        process.start()
        await native.wait_connected(10)
        await overlay.wait_connected(10)
        await RemoteSnapshotter(native, snapshotter="native").prepare("works")
        assert await health(place / "s" / SOCKETS[1]) == 1
        serves, why = await kit_health.check(overlay, "", 5.0)
        assert (serves, "overlayfs is out of use" in why) == (False, True)
        async with Channel(place / "s" / "snapshots.sock") as process_socket:
            assert {each.name for each in await snapshotters(process_socket, 5.0) if each.broken} == {"overlayfs"}
            serves, why = await kit_health.check(process_socket, "", 5.0)
            assert (serves, "overlayfs is out of use" in why) == (False, True)
        for call in (
            broken.stat("kept"),
            broken.usage("kept"),
            broken.mounts("kept"),
            broken.prepare("a"),
            broken.view("a"),
            broken.commit("a", "kept"),
            broken.update("kept", {}),
            broken.remove("kept"),
            broken.cleanup(),
            anext(broken.list()),
            stamp.Get(stamp_pb2.GetRequest()),
            stamp.Set(stamp_pb2.SetRequest(store_id="another's")),
            removals.Remove(removals_pb2.RemoveRequest()),
        ):
            with pytest.raises(
                errors.DataLoss,
                match=rf"snapshotter overlayfs is out of use: {path} cannot be used: .*: see docs/damaged-database.md",
            ):
                await call
        assert process.stop() == 0
        path.write_bytes(whole)
        process.start()
        await overlay.wait_connected(10)
        assert (await broken.stat("kept")).kind is Kind.ACTIVE
        assert await health(place / "s" / SOCKETS[0]) == 1
    assert process.stop() == 0


async def test_the_contract_on_the_wire(process: ServiceProcess) -> None:
    """A List comes in messages of at most 100, an Update's mask is applied, and an empty request is answered, not
    failed.
    """
    async with Channel(process.state / SOCKETS[0]) as channel:
        client = channel.client(snapshots_stubs.SNAPSHOTS)
        await asyncio.gather(*(client.Prepare(pb.PrepareSnapshotRequest(key=f"wire/{n}")) for n in range(205)))
        sizes = [len(r.info) async for r in client.List(pb.ListSnapshotsRequest(filters=["name~=^wire/"]))]
        assert sizes == [100, 100, 5]
        for method, request in (
            ("Prepare", pb.PrepareSnapshotRequest()),
            ("View", pb.ViewSnapshotRequest()),
            ("Commit", pb.CommitSnapshotRequest(key="wire/0")),
        ):
            with pytest.raises(errors.InvalidArgument, match="empty"):
                await getattr(client, method)(request)
        with pytest.raises(errors.NotFound):
            await client.Update(pb.UpdateSnapshotRequest())


def test_an_unknown_key_ends_the_process(place: Path) -> None:
    """The process ends with one line that names the key."""
    config = place / "config.toml"
    config.write_text("[snapshots.overlayfs]\nmount_option = []\n")
    with pytest.raises(RuntimeError, match="unknown key mount_option"):
        ServiceProcess("services.snapshots", place / "r", place / "s", sockets=SOCKETS, config=config)


async def test_mount_options_and_labels_of_the_configuration(place: Path) -> None:
    """Mount options come before those that the kernel needs and are not doubled; snapshots show their directory as
    a label.
    """
    config = place / "config.toml"
    config.write_text(
        '[snapshots]\nsync_commit = true\nsync_remove = true\n[snapshots.overlayfs]\nmount_options = ["index=on", '
        '"xino=off"]\nupperdir_label = true\n'
    )
    with ServiceProcess("services.snapshots", place / "r", place / "s", sockets=SOCKETS, config=config):
        async with Channel(place / "s" / SOCKETS[0]) as channel:
            snapshotter = RemoteSnapshotter(channel)
            [bind] = await snapshotter.prepare("a")
            await snapshotter.commit("base", "a", {"own": "1"})
            assert (await snapshotter.stat("base")).labels == {
                "own": "1",
                "containerd.io/snapshot/overlay.upperdir": bind.source,
            }
            assert [i.labels["containerd.io/snapshot/overlay.upperdir"] async for i in snapshotter.list()] == [
                bind.source
            ]
            mounts = await snapshotter.prepare("b", "base")
            assert mounts[0].options[-2:] == ("index=on", "xino=off")
            with mounted(mounts, place / "m") as top:
                write("f", "x")(top)
            own = Path(mounts[0].options[1].removeprefix("upperdir=")).parent
            assert own.exists()
            await snapshotter.remove("b")
            assert not own.exists()


# ------------------------------------------------------------------------------------------ kill -9


class Crashing:
    """A process that dies at a named point once, and its files."""

    def __init__(self, place: Path, name: str) -> None:
        self.faults = place / "faults"
        self.faults.mkdir()
        self.process = started(place, SPLITD_FAULTS=str(self.faults))
        self.root = place / "r" / "snapshots" / name
        self.socket = place / "s" / f"snapshots-{name}.sock"

    def die_at(self, point: str) -> None:
        (self.faults / point).touch()

    def again(self) -> None:
        """Start it again after it has died."""
        assert self.process.wait() == -signal.SIGKILL
        self.process.start()

    def names(self) -> set[str]:
        return set(os.listdir(self.root / "snapshots"))

    def recorded(self) -> set[str]:
        """Return the ids of the records; no other process may write meanwhile."""
        tree = Tree(self.root / "metadata.db")
        ids = tree.view(lambda rows: rows.things())
        tree._reader.close()
        tree._writer.close()
        return {str(number) for number in ids}

    def swept(self, gone: str = "") -> None:
        """Wait until directories and records match, without a call."""
        eventually(lambda: self.names() == self.recorded(), f"{self.names()} is not {self.recorded()}")


@pytest.fixture(params=SNAPSHOTTERS, ids=NAMES)
def crashing(request: pytest.FixtureRequest, disks: Callable[[str], Path | None]) -> Iterator[Crashing]:
    with short_directory(disks(request.param.FILESYSTEM)) as place:
        crash = Crashing(place, request.param.NAME)
        try:
            yield crash
        finally:
            crash.process.kill()


async def dies(work: object) -> None:
    """Check that the call is not answered because its process dies."""
    with pytest.raises(errors.Disconnected):
        await work  # type: ignore[misc]


@pytest.mark.parametrize("point", ["before-rename", "before-row", "after-row", "after-copy"])
async def test_killed_while_preparing(crashing: Crashing, place: Path, point: str) -> None:
    """Wherever a Prepare is cut off, afterwards the snapshot is there whole or not at all, and can be used or made."""
    if point == "after-copy" and crashing.root.name in ("overlayfs", "erofs"):
        pytest.skip("nothing is copied")
    async with Channel(crashing.socket) as channel:
        snapshotter = RemoteSnapshotter(channel)
        with mounted(await snapshotter.prepare("base-making"), place / "m") as top:
            write("f", "x")(top)
        await snapshotter.commit("base", "base-making")
        crashing.die_at(f"snapshots.{point}")
        await dies(snapshotter.prepare("a", "base", {"l": "1"}))
        crashing.again()
        assert await channel.wait_connected(10)
        if point == "after-row":
            info = await snapshotter.stat("a")
            assert (info.kind, info.parent, info.labels) == (Kind.ACTIVE, "base", {"l": "1"})
            mounts = await snapshotter.mounts("a")
        else:
            with pytest.raises(errors.NotFound):
                await snapshotter.stat("a")
            mounts = await snapshotter.prepare("a", "base")
        with mounted(mounts, place / "m") as top:
            assert (top / "f").read_text() == "x"
            write("g", "y")(top)
        await snapshotter.commit("c", "a")
        crashing.swept()
        assert len(crashing.names()) == 2


@pytest.mark.parametrize("point", ["before-row", "after-row"])
async def test_killed_while_committing(crashing: Crashing, place: Path, point: str) -> None:
    """A commit that is cut off has happened or not: either the key or the name is there, with all its files."""
    async with Channel(crashing.socket) as channel:
        snapshotter = RemoteSnapshotter(channel)
        with mounted(await snapshotter.prepare("a"), place / "m") as top:
            write("f", "x")(top)
        usage = await snapshotter.usage("a")
        crashing.die_at(f"snapshots.{point}")
        await dies(snapshotter.commit("c", "a", {"l": "1"}))
        crashing.again()
        assert await channel.wait_connected(10)
        names = [(i.name, i.kind) async for i in snapshotter.list()]
        assert names == ([("c", Kind.COMMITTED)] if point == "after-row" else [("a", Kind.ACTIVE)])
        if point == "before-row":
            await snapshotter.commit("c", "a", {"l": "1"})
        assert await snapshotter.usage("c") == usage
        with mounted(await snapshotter.view("v", "c"), place / "m") as top:
            assert (top / "f").read_text() == "x"


@pytest.mark.parametrize("point", ["before-row", "after-row", "before-discard"])
async def test_killed_while_removing(crashing: Crashing, place: Path, point: str) -> None:
    """A removal that is cut off has happened or not; if it has, the files are removed without another call."""
    async with Channel(crashing.socket) as channel:
        snapshotter = RemoteSnapshotter(channel)
        with mounted(await snapshotter.prepare("a"), place / "m") as top:
            mkdir("d")(top)
            write("d/f", "x")(top)
        crashing.die_at(f"snapshots.{point}")
        await dies(snapshotter.remove("a"))
        crashing.again()
        assert await channel.wait_connected(10)
        if point == "before-row":
            with mounted(await snapshotter.mounts("a"), place / "m") as top:
                assert (top / "d" / "f").read_text() == "x"
            await snapshotter.remove("a")
        with pytest.raises(errors.NotFound):
            await snapshotter.stat("a")
        crashing.swept()
        assert crashing.names() == set()


async def test_killed_at_any_moment(crashing: Crashing) -> None:
    """The process is killed again and again among many calls: answered calls are in effect, and in the end each
    directory has a record and each record a directory.
    """
    async with Channel(crashing.socket) as channel:
        snapshotter = RemoteSnapshotter(channel)
        await snapshotter.prepare("base-making")
        await snapshotter.commit("base", "base-making")
        made: set[str] = set()
        unknown: set[str] = set()

        async def work(worker: int, life: int) -> None:
            for number in range(1000):
                key = f"{life}-{worker}-{number}"
                try:
                    unknown.add(key)
                    await snapshotter.prepare(key, "base")
                    made.add(key)
                    unknown.discard(key)
                    if number % 3:
                        unknown.add(key)
                        made.discard(key)
                        await snapshotter.remove(key)
                        unknown.discard(key)
                except errors.Disconnected:
                    return

        for life in range(4):
            working = [asyncio.ensure_future(work(n, life)) for n in range(8)]
            await asyncio.sleep(0.1 + 0.05 * life)  # not to wait for something: the moment of the kill is to be any
            crashing.process.kill()
            await asyncio.gather(*working)
            crashing.process.start()
            assert await channel.wait_connected(10)
            there = {i.name async for i in snapshotter.list(["kind==active"])}
            assert made <= there <= made | unknown
            assert len(await asyncio.gather(*(snapshotter.mounts(key) for key in there))) == len(there)
        await snapshotter.cleanup()
        crashing.process.kill()
        assert crashing.names() == crashing.recorded()
