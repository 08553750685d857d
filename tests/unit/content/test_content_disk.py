"""The content store's files: their layout, full disks, interrupted resumptions, work that outlives its caller."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.content import disk, ingest_notes
from services.content.disk import Disk, Ingest
from services.content.local import LocalStore
from services.content.store import CHUNK
from services.kit import errors
from tests.suites.content import bytes_of, digest_of, get, opened, put
from tests.support import eventually, eventually_async


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LocalStore]:
    store = LocalStore(tmp_path / "content")
    yield store
    store.close()


def tree(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


async def test_layout(store: LocalStore, tmp_path: Path) -> None:
    """Blobs are blobs/ALGORITHM/HEX, read-only; ingests are ingest/SHA256-OF-REF with containerd's files, gone when
    committed.
    """
    root = tmp_path / "content"
    ingest = f"ingest/{hashlib.sha256(b'the ref').hexdigest()}"
    async with opened(store, "the ref", 5) as writer:
        await writer.write(b"abc")
        assert tree(root) == {f"{ingest}/{name}" for name in ("ref", "data", "startedat", "updatedat", "total")}
        assert [(root / ingest / name).read_text() for name in ("ref", "data", "total")] == ["the ref", "abc", "5"]
        await writer.write(b"de")
        digest = await writer.commit(5)
    assert tree(root) == {f"blobs/sha256/{digest.hex}"}
    assert (root / f"blobs/sha256/{digest.hex}").stat().st_mode & 0o777 == 0o444
    await store.update(digest, {"a": "b"})
    assert tree(root) == {f"blobs/sha256/{digest.hex}", f"labels/sha256/{digest.hex}"}
    await store.delete(digest)
    assert tree(root) == set()


async def test_an_ingest_is_there_while_its_writer_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that asks at that moment is not told that there is none: what is noted changes in one instant."""
    kept = Disk(tmp_path / "content")
    ingest = Ingest(kept, "the ref", 5)
    ingest.write(b"abc")
    seen: list[int] = []
    write = ingest_notes.write

    def watched(directory: str, name: str, text: str) -> None:
        seen.append(kept.status("the ref").offset)
        write(directory, name, text[:0])
        seen.append(kept.status("the ref").offset)
        write(directory, name, text)

    monkeypatch.setattr(ingest_notes, "write", watched)
    ingest.close()
    assert seen == [3, 3]
    assert kept.status("the ref").updated_at >= ingest.updated_at


async def test_an_ingest_that_is_just_being_begun_is_not_listed(store: LocalStore, tmp_path: Path) -> None:
    """Its files exist before their contents: an ingest with an empty ref is not listed."""
    async with opened(store, "the ref", 5):
        [path] = (tmp_path / "content/ingest").iterdir()
        (path / "ref").write_text("")
        assert await store.list_statuses() == []
        with pytest.raises(errors.NotFound):
            await store.status("the ref")
        (path / "ref").write_text("the ref")
        assert [status.ref for status in await store.list_statuses()] == ["the ref"]


async def test_the_offset_of_an_ingest_ends_at_the_first_gap(store: LocalStore) -> None:
    """A client may fill the file in several places. Its status reports the offset of the first gap, and a writer
    continues there once no client fills the file.
    """
    data = bytes_of(1 << 20)
    begun = await store.files.begin("the ref", len(data))
    with open(begun.path, "r+b", buffering=0) as file:
        file.write(data[:300_000])
        file.seek(900_000)
        file.write(data[900_000:])
        for status in (await store.status("the ref"), *await store.list_statuses()):
            assert 280_000 < status.offset <= 300_000
    async with opened(store, "the ref", len(data)) as writer:
        assert writer.offset == status.offset
        await writer.write(data[writer.offset :])
        assert await writer.commit(len(data)) == digest_of(data)
    assert await get(store, digest_of(data)) == data


async def test_a_file_without_gaps_is_there_to_its_end(store: LocalStore) -> None:
    """This holds for any length; a file that is begun again is not cut."""
    data = bytes_of(300_001)
    Path((await store.files.begin("the ref", len(data))).path).write_bytes(data)
    assert (await store.status("the ref")).offset == (await store.files.begin("the ref", len(data))).offset == len(data)
    assert await store.files.commit("the ref", len(data), digest_of(data)) == (digest_of(data), len(data))


def test_threads_share_the_fsync_of_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that come while an fsync is under way wait for the next, which one of them makes; if it fails, the next
    thread tries.
    """
    begun, go, failing = list[str](), threading.Event(), threading.Event()

    def slow(directory: str) -> None:
        begun.append(directory)
        assert go.wait(10)
        if len(begun) == 2 and not failing.is_set():
            failing.set()
            raise OSError(5, "a disk")

    monkeypatch.setattr(disk, "sync_directory", slow)
    sync, ends = disk.DirectorySync(), list[OSError | None]()

    def one() -> None:
        try:
            sync(str(tmp_path))
        except OSError as error:
            ends.append(error)
        else:
            ends.append(None)

    threads = [threading.Thread(target=one) for _ in range(6)]
    threads[0].start()
    eventually(lambda: len(begun) == 1)
    for thread in threads[1:]:
        thread.start()
    eventually(lambda: len(sync._changed._waiters) == 5)  # type: ignore[attr-defined]
    go.set()
    for thread in threads:
        thread.join(10)
    assert len(begun) == 3
    assert [type(end) for end in ends].count(OSError) == 1
    assert len(ends) == 6


async def test_foreign_files(store: LocalStore, tmp_path: Path) -> None:
    """Files that are no blobs are not listed."""
    digest = await put(store, b"abc")
    (tmp_path / "content/blobs/md5").mkdir()
    (tmp_path / "content/blobs/md5" / ("0" * 32)).touch()
    (tmp_path / "content/blobs/sha256/README").touch()
    assert [info.digest async for info in store.list()] == [digest]


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
async def test_full_disk(tmp_path: Path) -> None:
    """A write to a full disk is ResourceExhausted and leaves the ingest as it was before; with room it goes on."""
    (tmp_path / "m").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(tmp_path / "m")], check=True)
    try:
        store = LocalStore(tmp_path / "m/content")
        data = bytes_of(3_500_000)
        (tmp_path / "m/ballast").write_bytes(bytes(1 << 20))
        async with opened(store, "r") as writer:
            await writer.write(data[:1_000_000])
            with pytest.raises(errors.ResourceExhausted, match="write ref r: no space left on device"):
                await writer.write(data[1_000_000:])
            assert (writer.offset, writer.digest) == (1_000_000, str(digest_of(data[:1_000_000])))
            assert (await store.status("r")).offset == 1_000_000
            (tmp_path / "m/ballast").unlink()
            await writer.write(data[1_000_000:])
            assert await writer.commit(len(data), digest_of(data)) == digest_of(data)
        assert await get(store, digest_of(data)) == data
        with pytest.raises(OSError), (tmp_path / "m/ballast").open("wb") as ballast:
            while True:
                ballast.write(bytes(4096))
        with pytest.raises(errors.ResourceExhausted, match="no space left on device"):
            await store.update(digest_of(data), {"a": "b" * 5000})
        assert (await store.info(digest_of(data))).labels == {}
        store.close()
    finally:
        subprocess.run(["umount", "-l", str(tmp_path / "m")], check=True)


def test_a_resumption_can_be_stopped(tmp_path: Path) -> None:
    """Hashing of the existing bytes ends when its caller is cancelled, and the file is closed."""
    disk = Disk(tmp_path / "content")
    ingest = Ingest(disk, "r")
    ingest.write(b"abc")
    ingest.close()
    stop = threading.Event()
    stop.set()
    with pytest.raises(errors.Cancelled):
        Ingest(disk, "r", stop=stop)
    again = Ingest(disk, "r")
    assert again.offset == 3
    again.close()


async def test_cancelled_at_every_step(store: LocalStore) -> None:
    """However far an opening, a write or a commit has come when its caller is cancelled, the ref is unlocked and no
    file is left open.
    """
    data = bytes_of(200_000)

    async def whole(ref: str) -> None:
        async with opened(store, ref, len(data)) as writer:
            await writer.write(data[writer.offset :])
            await writer.commit(len(data), digest_of(data))

    def files() -> set[str]:
        return {
            os.readlink(f"/proc/self/fd/{fd}")
            for fd in os.listdir("/proc/self/fd")
            if os.path.exists(f"/proc/self/fd/{fd}")
        }

    before = files()
    for delay in [n * 0.0001 for n in range(60)]:
        task = asyncio.create_task(whole("r"))
        await asyncio.wait([task], timeout=delay)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

        async def usable() -> bool:
            try:
                async with opened(store, "r"):
                    return True
            except errors.Unavailable:
                return False

        await eventually_async(usable)
        for info in [i async for i in store.list()]:
            await store.delete(info.digest)

    async def closed() -> bool:
        return {f for f in files() - before if "/content/" in f} == set()

    await eventually_async(closed)


async def test_cancelled_reads(store: LocalStore) -> None:
    """A read cancelled at any moment leaves no file open."""
    digest = await put(store, bytes_of(5 << 20))

    async def read() -> None:
        await get(store, digest)

    for delay in [n * 0.0001 for n in range(40)]:
        task = asyncio.create_task(read())
        await asyncio.wait([task], timeout=delay)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def closed() -> bool:
        links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
        return not [link for link in links if os.path.exists(link) and digest.hex in os.readlink(link)]

    await eventually_async(closed)


async def test_many_readers_begin_with_small_pieces(store: LocalStore) -> None:
    """So a reader that stops keeps little memory. A reader that goes on gets large pieces, and all bytes. When the
    other readers are gone, pieces are large at once.
    """
    data = bytes_of(12 * CHUNK)
    digest = await put(store, data)
    stopped = [store.read(digest) for _ in range(100)]
    sizes = [len(await anext(pieces)) for pieces in stopped]
    assert sizes[0] == sizes[31] == CHUNK
    assert max(sizes[64:]) <= CHUNK // 2
    pieces = [piece async for piece in store.read(digest)]
    assert b"".join(pieces) == data
    assert len(pieces[0]) < CHUNK == max(map(len, pieces))
    for reader in stopped:
        await reader.aclose()
    assert len(await anext(store.read(digest))) == CHUNK


async def test_read_of_a_deleted_blob(store: LocalStore) -> None:
    """A reader that has the blob open when it is deleted reads it to its end."""
    data = bytes_of(3 << 20)
    digest = await put(store, data)
    pieces = store.read(digest)
    found = await anext(pieces)
    await store.delete(digest)
    assert found + b"".join([piece async for piece in pieces]) == data


async def test_believed_digest(store: LocalStore) -> None:
    """A digest that the writer of a file computed is not checked again: it becomes the blob's name."""
    Path((await store.files.begin("f")).path).write_bytes(b"abc")
    assert await store.files.commit("f", 3, digest_of(b"xyz"), computed=True) == (digest_of(b"xyz"), 3)
