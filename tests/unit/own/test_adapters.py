"""An author's class as what the node's servicers call: threads and coroutines, clients that go, answers that are
wrong.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import pytest

from services.kit import errors
from services.oci.digests import Digest
from splitd._adapters import AdaptedSnapshotter, AdaptedStore
from splitd.content import Info as BlobInfo
from splitd.content import Status, Store, Writer
from splitd.snapshots import Info, Kind, Mount, Snapshotter, Usage
from tests.support import eventually_async

DIGEST = Digest("sha256", "0" * 64)


class Plain(Snapshotter):
    """Answers at once; ``prepare`` waits until it may go on."""

    def __init__(self) -> None:
        self.entered, self.go_on, self.done = threading.Event(), threading.Event(), threading.Event()
        self.threads: set[int] = set()

    def stat(self, key: str) -> Info:
        self.threads.add(threading.get_ident())
        return Info(key, Kind.ACTIVE, 1, 2)

    def list(self) -> Iterator[Info]:
        for name in ("b", "c", "a"):
            yield Info(name, Kind.ACTIVE, 1, 2)

    def update(self, key: str, labels: Any, paths: Any) -> Info:
        return "no info"  # type: ignore[return-value]

    def usage(self, key: str) -> Usage:
        return Usage()

    def mounts(self, key: str) -> Sequence[Mount]:
        return []

    def prepare(self, key: str, parent: str, labels: Any) -> Sequence[Mount]:
        self.entered.set()
        assert self.go_on.wait(20)
        self.done.set()
        return [Mount("bind", "/x")]

    def view(self, key: str, parent: str, labels: Any) -> Sequence[Mount]:
        raise errors.NotFound(f"snapshot {parent}")

    def commit(self, name: str, key: str, labels: Any) -> None: ...

    def remove(self, key: str) -> None: ...


class Asynchronous(Plain):
    """The same with coroutines."""

    async def stat(self, key: str) -> Info:  # type: ignore[override]
        return super().stat(key)

    async def list(self) -> AsyncIterator[Info]:  # type: ignore[override]
        for info in super().list():
            yield info


@contextlib.asynccontextmanager
async def adapted(snapshotter: Snapshotter) -> AsyncIterator[AdaptedSnapshotter]:
    made = AdaptedSnapshotter(snapshotter)
    yield made
    await made.close()


@pytest.mark.parametrize(("kind", "in_the_loop"), [(Plain, False), (Asynchronous, True)])
async def test_methods_may_block_or_be_coroutines(kind: type[Plain], in_the_loop: bool) -> None:
    """Plain ones run in threads, coroutines in the loop; both lists are filtered, and sorted by name."""
    mine = kind()
    async with adapted(mine) as snapshotter:
        assert (await snapshotter.stat("k")).name == "k"
        assert (mine.threads == {threading.get_ident()}) is in_the_loop
        assert [info.name async for info in snapshotter.list()] == ["a", "b", "c"]
        assert [info.name async for info in snapshotter.list(["name!=b"])] == ["a", "c"]
        with pytest.raises(errors.InvalidArgument):
            await anext(snapshotter.list(["name=~b"]))
        with pytest.raises(errors.NotFound, match="snapshot p: not found"):
            await snapshotter.view("k", "p")


async def test_a_call_is_finished_although_its_client_has_gone() -> None:
    """Its cancellation is answered at once; the work goes on."""
    mine = Plain()
    async with adapted(mine) as snapshotter:
        call = asyncio.ensure_future(snapshotter.prepare("k"))
        await asyncio.to_thread(mine.entered.wait, 20)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert not mine.done.is_set()
        assert (await snapshotter.stat("k")).name == "k", "other calls are answered meanwhile"
        mine.go_on.set()
        await asyncio.to_thread(mine.done.wait, 20)


async def test_an_answer_of_another_type_is_named() -> None:
    """The author finds the method's answer in the log, instead of a message about protobuf."""
    async with adapted(Plain()) as snapshotter:
        with pytest.raises(TypeError, match="answered 'no info', which is no services.snapshots.store.Info"):
            await snapshotter.update("k", {})


async def test_a_rebase_is_unimplemented() -> None:
    """A commit that names a parent is no commit that this interface has."""
    async with adapted(Plain()) as snapshotter:
        with pytest.raises(errors.Unimplemented):
            await snapshotter.commit("n", "k", {}, parent="p")


class Blobs(Store):
    """Its writers' ``write`` and its opening wait until they may go on; it tells what was called."""

    def __init__(self) -> None:
        self.entered, self.go_on = threading.Event(), threading.Event()
        self.told: list[str] = []

    def info(self, digest: Digest) -> BlobInfo:
        return BlobInfo(digest, 3, 1, 2)

    def list(self) -> Sequence[BlobInfo]:
        return [self.info(DIGEST)]

    def update(self, digest: Digest, labels: Any, paths: Any) -> BlobInfo:
        return self.info(digest)

    def delete(self, digest: Digest) -> None: ...

    def read(self, digest: Digest, offset: int, size: int) -> Iterator[bytes]:
        self.told.append(f"read {offset} {size}")
        try:
            while True:
                if offset == 7:
                    self.entered.set()
                    assert self.go_on.wait(20)
                yield b"x" * 10
        finally:
            self.told.append("read closed")

    def status(self, ref: str) -> Status:
        return Status(ref, 0, 0, 1, 2)

    def list_statuses(self) -> Sequence[Status]:
        return [self.status(ref) for ref in ("one", "two")]

    def writer(self, ref: str, total: int, expected: Digest | None) -> Writer:
        self.entered.set()
        assert self.go_on.wait(20)
        return OneWriter(self)

    def abort(self, ref: str) -> None: ...


class OneWriter(Writer):
    offset = 0
    digest = "sha256:" + "0" * 64

    def __init__(self, store: Blobs) -> None:
        self.store = store

    def status(self) -> Status:
        return Status("r", 0, 0, 1, 2)

    def write(self, data: bytes) -> None:
        self.store.entered.set()
        assert self.store.go_on.wait(20)
        self.store.told.append("written")

    def truncate(self) -> None: ...

    def commit(self, size: int, expected: Digest | None, labels: Any) -> Digest:
        raise errors.FailedPrecondition("unexpected commit size 1, expected 2")

    def close(self) -> None:
        self.store.told.append("closed")


@pytest.fixture
async def blobs() -> AsyncIterator[tuple[AdaptedStore, Blobs]]:
    mine = Blobs()
    made = AdaptedStore(mine)
    yield made, mine
    mine.go_on.set()
    await made.close()


async def test_a_read_that_is_given_up_is_closed(blobs: tuple[AdaptedStore, Blobs]) -> None:
    """The author's generator ends where it stands; an offset or a size below zero is none."""
    store, mine = blobs
    pieces = store.read(DIGEST, -5, -1)
    assert await anext(pieces) == b"x" * 10
    await pieces.aclose()
    assert mine.told == ["read 0 0", "read closed"]


async def test_a_read_whose_client_goes_in_the_middle_is_closed_after_it(blobs: tuple[AdaptedStore, Blobs]) -> None:
    """A generator that a thread is in cannot be closed: its end waits for that thread."""
    store, mine = blobs
    pieces = store.read(DIGEST, 7)
    reading = asyncio.ensure_future(anext(pieces))
    await asyncio.to_thread(mine.entered.wait, 20)
    reading.cancel()
    await asyncio.sleep(0)
    assert mine.told == ["read 7 0"]
    mine.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert mine.told == ["read 7 0", "read closed"]


async def test_a_writer_is_closed_when_its_last_write_is_done(blobs: tuple[AdaptedStore, Blobs]) -> None:
    """A client that goes in the middle of a write: the writer is closed once, and only then."""
    store, mine = blobs
    mine.go_on.set()
    writer = await store.writer("r")
    mine.go_on.clear()
    mine.entered.clear()
    writing = asyncio.ensure_future(writer.write(b"x"))
    await asyncio.to_thread(mine.entered.wait, 20)
    writing.cancel()
    closing = asyncio.ensure_future(writer.close())
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert mine.told == []
    mine.go_on.set()
    await closing
    await writer.close()
    assert mine.told == ["written", "closed"]
    with pytest.raises(errors.FailedPrecondition, match="closed writer"):
        await writer.write(b"y")


async def test_a_writer_that_nobody_takes_is_closed(blobs: tuple[AdaptedStore, Blobs]) -> None:
    """A client that goes while its writer is opened."""
    store, mine = blobs
    opening = asyncio.ensure_future(store.writer("r"))
    await asyncio.to_thread(mine.entered.wait, 20)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    mine.go_on.set()

    async def closed() -> bool:
        return mine.told == ["closed"]

    await eventually_async(closed)


async def test_a_commit_closes_its_writer(blobs: tuple[AdaptedStore, Blobs]) -> None:
    """Also one that is refused."""
    store, mine = blobs
    mine.go_on.set()
    writer = await store.writer("r")
    with pytest.raises(errors.FailedPrecondition, match="unexpected commit size"):
        await writer.commit(2)
    assert mine.told == ["closed"]


async def test_statuses_are_filtered(blobs: tuple[AdaptedStore, Blobs]) -> None:
    """By ref, as containerd's are."""
    store, _ = blobs
    assert [status.ref for status in await store.list_statuses(["ref==two"])] == ["two"]
    with pytest.raises(errors.InvalidArgument):
        await store.writer("")
