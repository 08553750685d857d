"""An author's snapshotter or store, whose methods may block, as what the node's servicers call.

A call that was begun is finished although its client has gone; a writer's calls come one after the other, and an
abandoned one is closed. Filters are applied here.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeVar

from services.content.store import Info as BlobInfo
from services.content.store import Status
from services.kit import errors, filters, loops, rpc
from services.kit.slices import Lane
from services.oci.digests import Digest
from services.oci.mounts import Mount
from services.snapshots.store import Info as SnapshotInfo
from services.snapshots.store import Usage
from splitd.content import Store, Writer
from splitd.snapshots import Snapshotter

T = TypeVar("T")

THREADS = 32
"""Calls of plain methods that run at once; others wait."""
_BATCH = 100
"""Things of a list that one hop to a thread brings."""


class Calls:
    """Calls an author's methods: coroutine functions in the loop, all others in threads."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="call")

    async def begin(self, method: Callable[..., Any], *arguments: object) -> Any:
        """The result of a method. The caller cares for its own cancellation."""
        if inspect.iscoroutinefunction(method):
            return await method(*arguments)
        context = contextvars.copy_context()  # what it does belongs to the caller's span
        return await asyncio.get_running_loop().run_in_executor(self._pool, context.run, method, *arguments)

    async def __call__(self, method: Callable[..., Any], *arguments: object) -> Any:
        """The result of a method, which is finished whatever happens to the caller."""
        return await rpc.shielded(self.begin(method, *arguments))

    async def each(self, method: Callable[..., Any], *arguments: object, batch: int) -> AsyncGenerator[Any, None]:
        """What a method yields; ``batch`` things come with one hop to a thread."""
        if inspect.isasyncgenfunction(method):
            found = method(*arguments)
            try:
                async for thing in found:
                    yield thing
            finally:
                await found.aclose()
            return
        things: Iterator[Any] = iter(await self(method, *arguments))
        turn = asyncio.Lock()

        async def step(work: Callable[[], Any]) -> Any:
            async with turn:  # the client may go while a thread is still in the generator
                return await self.begin(work)

        try:
            while some := await rpc.shielded(step(lambda: list(islice(things, batch)))):
                some.reverse()
                while some:
                    yield some.pop()  # while the client has not read a piece of a blob, only its message keeps it
        finally:
            if inspect.isgenerator(things):
                await rpc.shielded(step(things.close))

    def close(self) -> None:
        """Wait for the threads."""
        self._pool.shutdown()


class AdaptedSnapshotter:
    """A ``services.snapshots.store.Snapshotter`` made of an author's."""

    def __init__(self, snapshotter: Snapshotter) -> None:
        self._snapshotter = snapshotter
        self._call = Calls()
        self._lane = Lane()

    async def stat(self, key: str) -> SnapshotInfo:
        return _is(SnapshotInfo, await self._call(self._snapshotter.stat, key))

    async def update(self, key: str, labels: Mapping[str, str], paths: Sequence[str] = ()) -> SnapshotInfo:
        return _is(SnapshotInfo, await self._call(self._snapshotter.update, key, labels, paths))

    async def usage(self, key: str) -> Usage:
        return _is(Usage, await self._call(self._snapshotter.usage, key))

    async def mounts(self, key: str) -> list[Mount]:
        return list(await self._call(self._snapshotter.mounts, key))

    async def prepare(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> list[Mount]:
        return list(await self._call(self._snapshotter.prepare, key, parent, labels or {}))

    async def view(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> list[Mount]:
        return list(await self._call(self._snapshotter.view, key, parent, labels or {}))

    async def commit(self, name: str, key: str, labels: Mapping[str, str] | None = None, parent: str = "") -> None:
        if parent:
            raise errors.Unimplemented(f"rebase of snapshot {key}")
        await self._call(self._snapshotter.commit, name, key, labels or {})

    async def remove(self, key: str) -> None:
        await self._call(self._snapshotter.remove, key)

    async def cleanup(self) -> None:
        await self._call(self._snapshotter.cleanup)

    async def close(self) -> None:
        """Close the author's, when its calls have ended."""
        await self._call(self._snapshotter.close)
        self._call.close()

    async def list(self, sources: Iterable[str] = ()) -> AsyncIterator[SnapshotInfo]:
        wanted = await filters.parsed(sources, self._lane)
        found = [
            info async for info in self._call.each(self._snapshotter.list, batch=_BATCH) if wanted.match(info.field)
        ]
        for info in sorted(found, key=lambda info: info.name):
            yield info


class AdaptedStore:
    """A ``services.content.store.Store`` made of an author's."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._call = Calls()
        self._lane = Lane()
        self._ending = loops.Tasks()

    async def info(self, digest: Digest) -> BlobInfo:
        return _is(BlobInfo, await self._call(self._store.info, digest))

    async def update(self, digest: Digest, labels: Mapping[str, str], paths: Sequence[str] = ()) -> BlobInfo:
        return _is(BlobInfo, await self._call(self._store.update, digest, labels, paths))

    async def delete(self, digest: Digest) -> None:
        await self._call(self._store.delete, digest)

    async def read(self, digest: Digest, offset: int = 0, size: int = 0) -> AsyncGenerator[bytes, None]:
        pieces = self._call.each(self._store.read, digest, max(offset, 0), max(size, 0), batch=1)
        try:
            async for piece in pieces:
                yield piece
        finally:
            await pieces.aclose()

    async def status(self, ref: str) -> Status:
        return _is(Status, await self._call(self._store.status, ref))

    async def list_statuses(self, sources: Iterable[str] = ()) -> Sequence[Status]:
        wanted = await filters.parsed(sources, self._lane)
        each = self._call.each(self._store.list_statuses, batch=_BATCH)
        return [status async for status in each if wanted.match(status.field)]

    async def writer(self, ref: str, total: int = 0, expected: Digest | None = None) -> AdaptedWriter:
        if not ref:
            raise errors.InvalidArgument("ref must not be empty")
        opening = loops.task("the opening of a writer", self._call.begin(self._store.writer, ref, total, expected))
        try:
            return AdaptedWriter(await asyncio.shield(opening), self._call)
        except asyncio.CancelledError:
            self._ending.start(f"the closing of the writer of {ref}", self._unclaimed(opening))
            raise

    async def _unclaimed(self, opening: asyncio.Task[Writer]) -> None:
        """Close a writer whose client has gone while it was opened."""
        await asyncio.wait([opening])
        if opening.exception() is None:
            await self._call(opening.result().close)

    async def abort(self, ref: str) -> None:
        await self._call(self._store.abort, ref)

    async def close(self) -> None:
        """Close the author's, when its calls have ended."""
        await self._ending.wait(3.0)
        await self._call(self._store.close)
        self._call.close()

    async def list(self, sources: Iterable[str] = ()) -> AsyncIterator[BlobInfo]:
        wanted = await filters.parsed(sources, self._lane)
        found = [info async for info in self._call.each(self._store.list, batch=_BATCH) if wanted.match(info.field)]
        for info in sorted(found, key=lambda info: str(info.digest)):
            yield info


class AdaptedWriter:
    """A ``services.content.store.Writer`` made of an author's."""

    def __init__(self, writer: Writer, call: Calls) -> None:
        self._writer = writer
        self._call = call
        self._turn = asyncio.Lock()
        self._closed = False

    @property
    def offset(self) -> int:
        return self._writer.offset

    @property
    def digest(self) -> str:
        return self._writer.digest

    async def status(self) -> Status:
        return _is(Status, await self._run(self._writer.status))

    async def write(self, data: bytes) -> None:
        await self._run(self._writer.write, data)

    async def truncate(self) -> None:
        await self._run(self._writer.truncate)

    async def commit(
        self, size: int = 0, expected: Digest | None = None, labels: Mapping[str, str] | None = None
    ) -> Digest:
        try:
            return _is(Digest, await self._run(self._writer.commit, size, expected, labels or {}))
        finally:
            await self.close()

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            await rpc.shielded(self._in_turn(self._writer.close))

    async def _run(self, method: Callable[..., Any], *arguments: object) -> Any:
        if self._closed:
            raise errors.FailedPrecondition("cannot commit on closed writer")
        return await rpc.shielded(self._in_turn(method, *arguments))

    async def _in_turn(self, method: Callable[..., Any], *arguments: object) -> Any:
        """One call at a time: the client may go, and its writer be closed, while a thread still writes."""
        async with self._turn:
            return await self._call.begin(method, *arguments)


def _is(kind: type[T], answer: object) -> T:
    """An author's answer, which must be of this class: a clear line in the log is better than one about protobuf."""
    if not isinstance(answer, kind):
        raise TypeError(f"a method answered {answer!r}, which is no {kind.__module__}.{kind.__qualname__}")
    return answer
