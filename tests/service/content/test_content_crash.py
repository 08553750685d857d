"""The content process killed at every point of a commit, and in the middle of writes: no blob has wrong bytes,
every ingest can be resumed or is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.content.remote import RemoteFiles, RemoteStore
from services.kit import errors, rpc
from services.oci.digests import Digest
from tests.suites.content import bytes_of, digest_of, get, opened, put
from tests.support import ServiceProcess, short_directory

POINTS = ["content.before-fsync", "content.before-rename", "content.after-rename"]


class Crashing:
    """A content process that dies at a chosen point."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "r/content"
        self.faults = directory / "faults"
        self.faults.mkdir()
        self.process = ServiceProcess(
            "services.content", directory / "r", directory / "s", env={"SPLITD_FAULTS": str(self.faults)}
        )
        self.socket = self.process.sockets[0]

    def die_at(self, point: str) -> None:
        (self.faults / point).touch()

    def revive(self) -> None:
        """Start it again after it died."""
        self.process.wait()
        self.process.start()

    def kill(self) -> None:
        self.process.kill()
        self.process.start()

    def check(self) -> set[Digest]:
        """Return all blobs, each checked by its bytes, and check that no half-made files are beside them."""
        found = set()
        for path in (self.root / "blobs").glob("*/*"):
            digest = Digest.parse(f"{path.parent.name}:{path.name}")
            assert hashlib.new(digest.algorithm, path.read_bytes()).hexdigest() == digest.hex, f"{path} has other bytes"
            found.add(digest)
        assert os.listdir(self.root / "scratch") == []
        for ingest in (self.root / "ingest").iterdir():
            assert {"data", "ref", "startedat", "updatedat"} <= set(os.listdir(ingest)), f"{ingest} is half made"
        for path in (self.root / "labels").glob("*/*"):
            assert Digest(path.parent.name, path.name) in found, f"{path} is of no blob"
            assert json.loads(path.read_text())
        return found


@pytest.fixture
def crashing() -> Iterator[Crashing]:
    with short_directory() as directory:
        crashing = Crashing(directory)
        with crashing.process:
            yield crashing


@pytest.mark.parametrize("labels", [None, {"a": "b"}])
@pytest.mark.parametrize("point", POINTS)
async def test_killed_in_a_commit(crashing: Crashing, point: str, labels: dict[str, str] | None) -> None:
    """After a kill within a commit the blob is there whole with its labels, or the next writer can commit its
    ingest.
    """
    data = bytes_of(3 << 20)
    digest = digest_of(data)
    async with rpc.Channel(crashing.socket) as channel:
        store = RemoteStore(channel)
        crashing.die_at(point)
        async with opened(store, "r", len(data)) as writer:
            await writer.write(data)
            with pytest.raises(errors.Disconnected):
                await writer.commit(len(data), digest, labels)
        crashing.revive()
        assert await channel.wait_connected(10)
        blobs = crashing.check()
        if point == "content.after-rename":
            assert blobs == {digest}
            assert await store.list_statuses() == []
            with pytest.raises(errors.AlreadyExists):
                await store.writer("r", len(data), digest)
        else:
            assert blobs == set()
            async with opened(store, "r", len(data), digest) as writer:
                assert (writer.offset, writer.digest) == (len(data), str(digest))
                await writer.commit(len(data), digest, labels)
        assert await get(store, digest) == data
        assert (await store.info(digest)).labels == (labels or {})


@pytest.mark.parametrize("point", POINTS)
async def test_killed_in_a_commit_of_a_file(crashing: Crashing, point: str) -> None:
    """The same for an ingest that was filled as a file."""
    data = bytes_of(1 << 20)
    digest = digest_of(data)
    async with rpc.Channel(crashing.socket) as channel:
        store, files = RemoteStore(channel), RemoteFiles(channel)
        Path((await files.begin("f", len(data))).path).write_bytes(data)
        crashing.die_at(point)
        with pytest.raises(errors.Disconnected):
            await files.commit("f", len(data), digest, computed=True)
        crashing.revive()
        assert await channel.wait_connected(10)
        if crashing.check() == set():
            assert point != "content.after-rename"
            assert await files.commit("f", len(data), digest) == (digest, len(data))
        else:
            assert point == "content.after-rename"
            with pytest.raises(errors.NotFound):
                await files.commit("f", len(data), digest)
        assert await get(store, digest) == data


@pytest.mark.parametrize("point", POINTS)
async def test_killed_in_a_commit_of_several_files(crashing: Crashing, point: str) -> None:
    """The same for files that are committed at once: each is a whole blob, or an ingest that can be committed."""
    files = {f"f{number}": bytes_of(1000 + number) for number in range(4)}

    async def commit(remote: RemoteFiles, ref: str, *, together: bool = False) -> tuple[Digest, int]:
        data = files[ref]
        return await remote.commit(ref, len(data), digest_of(data), computed=True, together=together)

    async with rpc.Channel(crashing.socket) as channel:
        store, remote = RemoteStore(channel), RemoteFiles(channel)
        begun = await asyncio.gather(*(remote.begin(ref, len(data)) for ref, data in files.items()))
        for each, data in zip(begun, files.values(), strict=True):
            Path(each.path).write_bytes(data)
        crashing.die_at(point)
        ends = await asyncio.gather(*(commit(remote, ref, together=True) for ref in files), return_exceptions=True)
        assert all(isinstance(end, errors.Disconnected) for end in ends), ends
        crashing.revive()
        assert await channel.wait_connected(10)
        there = crashing.check()
        assert bool(there) is (point == "content.after-rename")
        for ref, data in files.items():
            if digest_of(data) not in there:
                assert await commit(remote, ref) == (digest_of(data), len(data))
            assert await get(store, digest_of(data)) == data


async def test_labels_of_an_interrupted_commit(crashing: Crashing) -> None:
    """Labels of a commit that was killed before its blob appeared do not get into the next commit of the same bytes."""
    async with rpc.Channel(crashing.socket) as channel:
        store = RemoteStore(channel)
        crashing.die_at("content.before-rename")
        async with opened(store, "r") as writer:
            await writer.write(b"abc")
            with pytest.raises(errors.Disconnected):
                await writer.commit(3, None, {"a": "b"})
        crashing.revive()
        assert await channel.wait_connected(10)
        digest = await put(store, b"abc")
        assert (await store.info(digest)).labels == {}


async def test_killed_while_writing(crashing: Crashing) -> None:
    """The process is killed over and over in the middle of a write, and the blob is complete in the end: each writer
    continues where the bytes of the last one end.
    """
    data = bytes_of(64 << 20)
    digest = digest_of(data)
    chance = random.Random(7)
    offsets = []
    async with rpc.Channel(crashing.socket) as channel:
        store = RemoteStore(channel)
        for _ in range(4):
            with contextlib.suppress(errors.Disconnected):
                async with opened(store, "k", len(data)) as writer:
                    offsets.append(writer.offset)
                    assert writer.digest == str(digest_of(data[: writer.offset]))
                    acknowledged = writer.offset
                    killer = asyncio.get_running_loop().call_later(chance.uniform(0.01, 0.06), crashing.process.kill)
                    while writer.offset < len(data) - (1 << 20):
                        await writer.write(data[writer.offset : writer.offset + 300_000])
                        acknowledged = writer.offset
                    killer.cancel()
            crashing.kill()
            assert await channel.wait_connected(10)
            assert crashing.check() == set()
            left = (await store.status("k")).offset
            assert left >= acknowledged
        async with opened(store, "k", len(data), digest) as writer:
            offsets.append(writer.offset)
            await writer.write(data[writer.offset :])
            assert await writer.commit(len(data), digest) == digest
        assert await get(store, digest) == data
    assert offsets == sorted(offsets)
    assert offsets[-1] > 0


async def test_killed_among_many(crashing: Crashing) -> None:
    """The process is killed while many writers open, write, commit and abort: all blobs and ingests are whole, and
    everything acknowledged is there.
    """
    committed: set[Digest] = set()

    async def one(store: RemoteStore, n: int) -> None:
        data = bytes_of(200_000)
        for step in range(1000):
            async with opened(store, f"{n}/{step}") as writer:
                await writer.write(data + b"%d" % step)
                if step % 5 == 4:
                    await store.abort(f"{n}/{step}")
                    continue
                committed.add(await writer.commit(0, None, {"n": str(n)} if step % 2 else None))

    for _ in range(4):
        async with rpc.Channel(crashing.socket) as channel:
            store = RemoteStore(channel)
            tasks = [asyncio.create_task(one(store, n)) for n in range(6)]
            await asyncio.wait(tasks, timeout=0.4, return_when=asyncio.FIRST_EXCEPTION)
            crashing.process.kill()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert {type(r) for r in results} == {errors.Disconnected}
        crashing.process.start()
        assert committed <= crashing.check()
    assert committed


async def test_half_made_ingests(crashing: Crashing) -> None:
    """Half-made ingests after a power cut (a directory without data, an empty ref, a ref of another) are removed by the
    next start.
    """
    async with rpc.Channel(crashing.socket) as channel:
        store = RemoteStore(channel)
        for ref in ("whole", "no data", "empty ref", "other ref", "no time"):
            async with opened(store, ref) as writer:
                await writer.write(b"abc")
        for ref, name in (("no data", "data"), ("no time", "startedat")):
            (ingest_path(crashing.root, ref) / name).unlink()
        (ingest_path(crashing.root, "empty ref") / "ref").write_text("")
        (ingest_path(crashing.root, "other ref") / "ref").write_text("whole")
        (crashing.root / "scratch/x").mkdir()
        crashing.kill()
        assert await channel.wait_connected(10)
        assert [s.ref for s in await store.list_statuses()] == ["whole"]
        assert [path.name for path in (crashing.root / "ingest").iterdir()] == [
            ingest_path(crashing.root, "whole").name
        ]
        crashing.check()


def ingest_path(root: Path, ref: str) -> Path:
    """Return the path of an ingest."""
    return root / "ingest" / hashlib.sha256(ref.encode()).hexdigest()
