"""Damage of the database of a running process: it is reported, and nothing unknown is collected until an operator
releases it.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from google.protobuf.empty_pb2 import Empty

from api.containerd.services.containers.v1 import containers_pb2
from api.splitd.records.v1 import records_stubs
from services.kit import errors
from services.kit import health as kit_health
from services.kit.rpc import Channel
from tests.service.metadata.test_metadata_records import NO_COLLECTION
from tests.suites.containers import CONTAINERS, container
from tests.suites.records_lives import headers
from tests.support import ServiceProcess, eventually_async, health, splitd

RECORDS = records_stubs.RECORDS
NOT_SERVING = 2


async def filled(socket: Path, count: int) -> None:
    async with Channel(socket) as channel:
        for number in range(count):
            made = container(f"c{number}")
            made.labels["filler"] = "x" * 3000
            await channel.client(CONTAINERS).Create(
                containers_pb2.CreateContainerRequest(container=made), headers=headers("damage")
            )


async def test_one_flipped_bit_of_the_log(place: Path) -> None:
    """Answered writes behind it are lost: the log says so, and the guard is up until ``splitd gc --release``, over a
    restart too.
    """
    config = place / "config.toml"
    config.write_text(NO_COLLECTION)
    socket = place / "state" / "metadata.sock"
    with ServiceProcess("services.metadata", place / "root", place / "state", config=config) as process:
        await filled(socket, 30)
        process.kill()
        wal = place / "root" / "metadata" / "metadata.db-wal"
        data = bytearray(wal.read_bytes())
        data[32 + 20 * (24 + 4096) + 900] ^= 4
        wal.write_bytes(data)
        process.start()
        assert "has lost its last transactions (frame" in process.text()
        process.stop()
        process.start()
        where = ("--root", place / "root", "--state", place / "state")
        assert "has lost its last transactions (frame" in splitd("gc", *where).stdout
        assert "released" in splitd("gc", "--release", *where).stdout
        assert splitd("gc", *where).stdout.startswith("nothing is held back")
        async with Channel(socket) as channel:
            assert not (await channel.client(RECORDS).GetHeld(Empty())).reason


async def test_damaged_pages(place: Path) -> None:
    """A check after the start finds them: the process is not healthy and names the file. A call that meets them gets an
    error that says so, not ``internal error``.
    """
    config = place / "config.toml"
    config.write_text(NO_COLLECTION)
    socket = place / "state" / "metadata.sock"
    with ServiceProcess("services.metadata", place / "root", place / "state", config=config) as process:
        await filled(socket, 80)
        process.stop()
        path = place / "root" / "metadata" / "metadata.db"
        data = bytearray(path.read_bytes())
        for page in range(60, 70):
            data[page * 4096 : page * 4096 + 100] = b"\xff" * 100
        path.write_bytes(data)
        process.start()

        async def ill() -> bool:
            return await health(socket) == NOT_SERVING

        await eventually_async(ill, "damaged pages are not found")
        assert "metadata.db is damaged" in process.text()
        async with Channel(socket) as channel:
            serves, why = await kit_health.check(channel, "", 5.0)
            assert not serves
            assert "metadata.db is damaged" in why
            assert "docs/damaged-database.md" in why
            with pytest.raises(errors.DataLoss, match="is damaged.* docs/damaged-database.md"):
                await channel.client(CONTAINERS).List(containers_pb2.ListContainersRequest(), headers=headers("damage"))


@pytest.mark.parametrize("how", ["List", "Update"])
async def test_a_damaged_value(place: Path, how: str) -> None:
    """To SQLite the page is whole, so a check of all pages finds nothing. A call that meets the value gets an error
    with its record, the process is not healthy, and nothing is collected.
    """
    config = place / "config.toml"
    config.write_text(NO_COLLECTION)
    socket = place / "state" / "metadata.sock"
    with ServiceProcess("services.metadata", place / "root", place / "state", config=config) as process:
        await filled(socket, 3)
        process.stop()
        path = place / "root" / "metadata" / "metadata.db"
        data = bytearray(path.read_bytes())
        at = data.rindex(b'"filler"')
        data[at] ^= 4
        path.write_bytes(data)
        process.start()
        async with Channel(socket) as channel:
            client = channel.client(CONTAINERS)
            with pytest.raises(
                errors.DataLoss, match=r"the record container damage c\d is damaged .* docs/damaged-database.md"
            ):
                if how == "List":
                    await client.List(containers_pb2.ListContainersRequest(), headers=headers("damage"))
                else:
                    for number in range(3):
                        await client.Update(
                            containers_pb2.UpdateContainerRequest(container=container(f"c{number}")),
                            headers=headers("damage"),
                        )
            serves, why = await kit_health.check(channel, "", 5.0)
            assert (serves, "the record container damage c" in why) == (False, True)
        await eventually_async(
            lambda: asyncio.sleep(
                0, "is damaged" in splitd("gc", "--root", place / "root", "--state", place / "state").stdout
            ),
            "nothing is held back",
        )


async def test_a_database_saved_from_damage_looks_whole(place: Path) -> None:
    """Records are missing from it, and nothing in it says so: nothing at all is collected until an operator releases
    it, over a restart too.
    """
    config = place / "config.toml"
    config.write_text(NO_COLLECTION)
    directory, where = place / "root" / "metadata", ("--root", place / "root", "--state", place / "state")
    with ServiceProcess("services.metadata", place / "root", place / "state", config=config) as process:
        await filled(place / "state" / "metadata.sock", 80)
        process.stop()
        whole = (directory / "metadata.db").read_bytes()
        data = bytearray(whole)
        data[60 * 4096 : 60 * 4096 + 100] = b"\xff" * 100
        (directory / "metadata.db").write_bytes(data)
        process.start()
        await eventually_async(
            lambda: asyncio.sleep(0, (directory / "metadata.db.damaged").exists()), "nothing is noted"
        )
        process.stop()
        for suffix in ("", "-wal", "-shm"):
            (directory / f"metadata.db{suffix}").unlink(missing_ok=True)
        (directory / "metadata.db").write_bytes(whole)
        for _ in range(2):
            process.start()
            assert "metadata.db is damaged" in splitd("gc", *where).stdout
            process.stop()
        process.start()
        assert "released" in splitd("gc", "--release", *where).stdout
        assert not (directory / "metadata.db.damaged").exists()
        process.stop()
        process.start()
        assert splitd("gc", *where).stdout.startswith("nothing is held back")


async def test_a_store_that_cannot_be_released_is_named_and_stops_no_other(place: Path) -> None:
    """A snapshotter that does not run stays held back, and the operator is told why; metadata is released."""
    config = place / "config.toml"
    config.write_text(NO_COLLECTION)
    where = ("--root", place / "root", "--state", place / "state")
    held = place / "root" / "snapshots" / "overlayfs" / "held"
    held.parent.mkdir(parents=True)
    held.write_text("its database is new\n")
    metadata = place / "root" / "metadata"
    metadata.mkdir(parents=True)
    (metadata / "metadata.db.damaged").write_text("metadata.db is damaged\n")
    with ServiceProcess("services.metadata", place / "root", place / "state", config=config):
        done = splitd("gc", "--release", *where, ok=False)
        assert "metadata: released" in done.stdout
        assert "snapshots.overlayfs: not released: " in done.stdout
        assert "still held back: repair that, then run" in done.stderr
        assert held.exists()
        [still] = [line for line in splitd("gc", *where).stdout.splitlines() if "held back since" in line]
        assert still.startswith("snapshots.overlayfs:")


async def test_readable_rows_of_a_damaged_database_are_saved(place: Path) -> None:
    """``splitd salvage`` replaces the database with a new one and keeps the damaged one. Metadata serves again with
    most of the records, and collects nothing until an operator releases it.
    """
    config = place / "config.toml"
    config.write_text(NO_COLLECTION)
    directory, where = place / "root" / "metadata", ("--root", place / "root", "--state", place / "state")
    with ServiceProcess("services.metadata", place / "root", place / "state", config=config) as process:
        await filled(place / "state" / "metadata.sock", 80)
        process.stop()
        path = directory / "metadata.db"
        data = bytearray(path.read_bytes())
        for page in range(60, 70):
            data[page * 4096 : page * 4096 + 100] = b"\xff" * 100
        path.write_bytes(data)
        said = splitd("salvage", "metadata", *where).stdout
        assert "could not be read" in said
        [kept] = (found for found in directory.glob("metadata.db.damaged-*") if not found.name.endswith("-wal"))
        assert kept.read_bytes() == data
        process.start()
        async with Channel(place / "state" / "metadata.sock") as channel:
            assert await kit_health.check(channel, "", 5.0) == (True, "")
            there = (
                await channel.client(CONTAINERS).List(containers_pb2.ListContainersRequest(), headers=headers("damage"))
            ).containers
            assert 50 < len(there) < 80
        assert "was made of what could be read of a damaged one" in splitd("gc", *where).stdout
