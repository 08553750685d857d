"""The examples: each passes the suite of its interface as a process of its own, and keeps its promises when it is
killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import socket
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

import pytest

from conform.snapshots import SnapshotCase
from conform.trees import mounted, write
from services.content.remote import RemoteStore
from services.content.store import Store
from services.kit import errors, rpc
from services.oci.digests import Digest
from services.snapshots.remote import RemoteSnapshotter
from services.snapshots.store import UID_MAPPING, Kind, Snapshotter
from tests.suites.content import ContentSuite, bytes_of, digest_of, get, opened
from tests.suites.snapshots import SnapshotterSuite
from tests.support import TOP, OwnService, directory_with_attributes, health, short_directory

OVERLAY, BLOBS = TOP / "examples/overlay.py", TOP / "examples/blobs.py"


# ------------------------------------------------------------------------------------------ the suites


@pytest.fixture(scope="module")
def overlay() -> Iterator[OwnService]:
    with short_directory() as directory, OwnService(OVERLAY, directory) as running:
        yield running


@pytest.fixture(scope="module")
def blobs() -> Iterator[OwnService]:
    with directory_with_attributes() as directory, OwnService(BLOBS, directory) as running:
        yield running


class MapsNoIds:
    """A suite's test for snapshotters that leave the ids of user namespaces alone."""

    async def test_mapped_ids(self, case: SnapshotCase) -> None:
        """It maps no ids, and does not announce that it does: labels about them are labels like others."""
        [mount] = await case.snapshotter.prepare(f"{case.prefix}-a", "", {UID_MAPPING: "0:2000:65536"})
        assert mount.options == ("rw", "rbind")
        assert (await case.snapshotter.stat(f"{case.prefix}-a")).labels == {UID_MAPPING: "0:2000:65536"}


@pytest.mark.root
class TestOverlay(MapsNoIds, SnapshotterSuite):
    """The suite on the snapshotter of examples/, whose mounts are those of containerd's overlayfs."""

    renames = False

    @pytest.fixture
    async def snapshotter(self, overlay: OwnService) -> AsyncIterator[Snapshotter]:
        async with rpc.Channel(overlay.sockets[0]) as channel:
            yield RemoteSnapshotter(channel)


class TestBlobs(ContentSuite):
    """The suite on the content store of examples/."""

    @pytest.fixture
    async def store(self, blobs: OwnService) -> AsyncIterator[Store]:
        async with rpc.Channel(blobs.sockets[0]) as channel:
            store = RemoteStore(channel)
            for status in await store.list_statuses():
                await store.abort(status.ref)
            for digest in [info.digest async for info in store.list()]:
                await store.delete(digest)
            yield store


@pytest.mark.parametrize(("program", "lines"), [(OVERLAY, 80), (BLOBS, 120)], ids=["overlay", "blobs"])
def test_an_example_fits_on_a_few_screens(program: Path, lines: int) -> None:
    """What docs/write-a-service.md promises of their length."""
    assert len(program.read_text().splitlines()) <= lines


async def test_a_service_is_a_whole_process(place: Path) -> None:
    """It answers health checks, is reached by its owner only, takes the place of a predecessor that was killed, and
    ends cleanly on SIGTERM, although a client is connected. A second process at the same socket says who is in its way.
    """
    with OwnService(BLOBS, place) as service:
        at = service.sockets[0]
        assert await health(at) == 1
        assert at.stat().st_mode & 0o777 == 0o600
        said = refused(BLOBS, "--root", str(place / "other"), "--address", str(at))
        assert f"blobs cannot run: {at} is served by another process" in said
        service.kill()
        service.start()
        async with rpc.Channel(at) as channel:
            assert await channel.wait_connected(10)
            assert service.stop() == 0
    assert not at.exists()
    assert "blobs serves" in service.text()


def refused(program: Path, *words: str) -> str:
    """What a program says that cannot run."""
    command = [sys.executable, str(program), *words]
    environment = {**os.environ, "PYTHONPATH": str(TOP)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1, done.stderr
    return done.stderr


def test_an_address_that_cannot_be_served(place: Path) -> None:
    """The process says so in one line that names the address, and ends."""
    said = refused(OVERLAY, "--root", str(place / "r"), "--address", "mine.sock")
    assert "overlay cannot run: address: 'mine.sock' is neither" in said


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "[::1]")])
async def test_a_service_at_a_port(place: Path, family: socket.AddressFamily, host: str) -> None:
    """An address may be HOST:PORT."""
    try:
        with socket.create_server((host.strip("[]"), 0), family=family) as free:
            address = f"{host}:{free.getsockname()[1]}"
    except OSError as error:
        pytest.skip(f"{host}: {error}")
    command = [sys.executable, str(OVERLAY), "--root", str(place / "r"), "--address", address]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(TOP)}, stderr=subprocess.DEVNULL) as process:
        try:
            async with rpc.Channel(address) as channel:
                assert await channel.wait_connected(10)
                assert [info async for info in RemoteSnapshotter(channel).list()] == []
        finally:
            process.terminate()


# ------------------------------------------------------------------------------------------ kill -9


@pytest.mark.root
async def test_a_snapshotter_killed_at_any_moment(place: Path) -> None:
    """The snapshotter is killed again and again among many calls. What was answered holds, a snapshot is there whole or
    not at all, and each start leaves one directory for each record, and nothing else.
    """
    there: dict[str, Kind] = {}
    unknown: set[str] = set()

    async def work(snapshotter: Snapshotter, prefix: str) -> None:
        for number in range(1000):
            key, name = f"{prefix}-{number}", f"{prefix}-{number}-done"
            unknown.update((key, name))
            await snapshotter.prepare(key, "base", {"key": key})
            there[key] = Kind.ACTIVE
            if number % 3 == 0:
                del there[key]
                await snapshotter.commit(name, key, {"key": name})
                there[name] = Kind.COMMITTED
            elif number % 3 == 1:
                del there[key]
                await snapshotter.remove(key)
            unknown.difference_update((key, name))

    with OwnService(OVERLAY, place) as service:
        async with rpc.Channel(service.sockets[0]) as channel:
            snapshotter = RemoteSnapshotter(channel)
            with mounted(await snapshotter.prepare("base-making"), place / "m") as top:
                write("f", "x")(top)
            await snapshotter.commit("base", "base-making")
            for life in range(3):
                working = [asyncio.ensure_future(work(snapshotter, f"{life}-{n}")) for n in range(8)]
                await asyncio.sleep(0.1 + 0.1 * life)  # not to wait for something: the moment of the kill is to be any
                service.kill()
                outcomes = await asyncio.gather(*working, return_exceptions=True)
                assert {type(outcome) for outcome in outcomes} == {errors.Disconnected}
                service.start()
                assert await channel.wait_connected(10)
                found = {info.name: info async for info in snapshotter.list()}
                assert {"base", *there} <= found.keys() <= {"base", *there, *unknown}
                assert all(found[name].kind is kind for name, kind in there.items())
                assert all(info.labels == {"key": name} for name, info in found.items() if name != "base")
                active = [name for name, info in found.items() if info.kind is Kind.ACTIVE]
                assert all(await asyncio.gather(*(snapshotter.mounts(name) for name in active)))
                with mounted(await snapshotter.view(f"view-{life}", "base"), place / "m") as top:
                    assert (top / "f").read_text() == "x"
                await snapshotter.remove(f"view-{life}")
                there.update({name: info.kind for name, info in found.items() if name != "base"})
                unknown.clear()
                with contextlib.closing(sqlite3.connect(f"file:{place}/r/records.db?mode=ro", uri=True)) as records:
                    ids = {str(number) for (number,) in records.execute("SELECT id FROM snapshots")}
                assert set(os.listdir(place / "r/snapshots")) == ids
    assert there


async def test_a_content_store_killed_at_any_moment() -> None:
    """The store is killed again and again while blobs are written. Each blob that was answered is there with its
    labels, no blob has other bytes than its name says, and each ingest that is left goes on at its last byte.
    """
    committed: dict[Digest, Mapping[str, str]] = {}

    async def work(store: Store, prefix: str) -> None:
        for number in range(1000):
            data, labels = bytes_of(200_000), {"n": str(number)} if number % 2 else {}
            async with opened(store, f"{prefix}-{number}", len(data)) as writer:
                await writer.write(data[:100_000])
                await writer.write(data[100_000:])
                if number % 5 == 4:
                    await store.abort(f"{prefix}-{number}")
                else:
                    committed[await writer.commit(len(data), digest_of(data), labels)] = labels

    with directory_with_attributes() as place, OwnService(BLOBS, place) as service:
        for life in range(3):
            async with rpc.Channel(service.sockets[0]) as channel:
                store = RemoteStore(channel)
                working = [asyncio.ensure_future(work(store, f"{life}-{n}")) for n in range(6)]
                await asyncio.sleep(0.1 + 0.1 * life)  # not to wait for something: the moment of the kill is to be any
                service.kill()
                outcomes = await asyncio.gather(*working, return_exceptions=True)
                assert {type(outcome) for outcome in outcomes} == {errors.Disconnected}
            service.start()
            async with rpc.Channel(service.sockets[0]) as channel:
                store = RemoteStore(channel)
                found = {info.digest: info async for info in store.list()}
                assert committed.keys() <= found.keys()
                assert all(found[digest].labels == labels for digest, labels in committed.items())
                for path in place.glob("r/blobs/*/*"):
                    assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
                for status in await store.list_statuses():
                    async with opened(store, status.ref, status.total) as writer:
                        assert writer.offset == status.offset
                        rest = bytes_of(status.total - status.offset)
                        await writer.write(rest)
                        digest = await writer.commit(status.total)
                    assert (await get(store, digest)).endswith(rest)
                assert not os.listdir(place / "r/ingests")
    assert committed
