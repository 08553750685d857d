"""The content store on disk: ``disk`` behind a thread pool, and the lock on each ref.

A write hashes and appends in one hop to a thread. A read fetches the next piece while the last one is being sent. Work
that a thread has begun is finished, whatever becomes of the call that asked for it. A ref is unlocked when the thread
that works on it is done.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from time import sleep
from typing import Any, ParamSpec, TypeVar

from services.content.blob_reader import BlobReader
from services.content.disk import Disk, Ingest, disk_error
from services.content.locks import RefLocks
from services.content.store import CHUNK, Begun, Commit, Info, Status, updated_labels
from services.kit import errors, filters, loops, tracing
from services.kit.faults import fault
from services.kit.slices import Lane
from services.oci.digests import CANONICAL, Digest

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

_BATCH = 100
"""Blobs that a List describes in one hop to a thread."""
_READERS_BYTES = 32 << 20
"""Bytes of pieces for all readers together. Up to 32 readers get whole pieces at once; more readers begin with smaller
ones.
"""
_BRIEF_THREADS = 4
"""Threads that begin ingests filled by path, and that give ingests up. A pull may begin a hundred at once. Each takes a
part of a millisecond; in more threads they would wait for each other, and the loop for all of them.
"""
_SYNC_THREADS = 8
"""Threads that wait for the disk for the files of ingests that are committed at once."""
_SOON = 1_000_000
"""Nanoseconds after which a thread's work has begun if a thread was free."""
_PAUSE = 0.00005
"""Seconds for which a removal of many pauses, so that other threads get the GIL. They do not otherwise: the thread that
removes lets go of it for each unlink, which is over before another thread has woken up, and takes it again. A write has
some fifty system calls, and waited for that after each.
"""
_UNSEEN = 128
"""Removals after which it pauses although no thread works, since the loop may have something to do."""
_THREADS: dict[str, Any] = {"splitd.wait.for": "threads of the content store"}
_PIECES_UNTIL_DOUBLED = 8
"""A reader's pieces double in size after this many, which are more than wait for a reader that never reads."""


class LocalStore:
    """A ``Store`` in a directory, and its ``Files``. Closed by :meth:`close`."""

    def __init__(self, root: Path, *, threads: int = 32) -> None:
        self._disk = Disk(root)
        self._disk.recover()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="content")
        self._brief = ThreadPoolExecutor(_BRIEF_THREADS, thread_name_prefix="content-brief")
        self.syncing = ThreadPoolExecutor(_SYNC_THREADS, thread_name_prefix="content-sync")
        self._lane = Lane()
        self._readers = 0
        self._locks = RefLocks()
        self._remover = ThreadPoolExecutor(1, thread_name_prefix="content-remove")
        self._working = 0
        """Pieces of work that threads have, apart from removals of many."""
        self._ending = loops.Tasks()
        self.files = LocalFiles(self)

    def close(self) -> None:
        """Wait for the threads."""
        self._brief.shutdown()
        self._pool.shutdown()
        self.syncing.shutdown()
        self._remover.shutdown()

    # ---------------------------------------------------------------- threads

    def _submit(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
        return self._submit_to(self._pool, work, *args, **kwargs)

    def _submit_to(
        self, pool: ThreadPoolExecutor, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> asyncio.Future[T]:
        context = contextvars.copy_context()  # the work belongs to the caller's span
        asked = tracing.now()

        def run() -> T:
            if (now := tracing.now()) - asked > max(tracing.fold(), _SOON):
                context.run(tracing.recorded, "wait.budget", asked, now, **_THREADS)
            try:
                return context.run(work, *args, **kwargs)
            except OSError as error:
                raise disk_error(error, "content store") from error

        future = asyncio.get_running_loop().run_in_executor(pool, run)
        if pool is not self._remover:
            self._working += 1
            future.add_done_callback(self._worked)
        return future

    def _worked(self, _: object) -> None:
        self._working -= 1

    def _turn(self, number: int) -> None:
        """Let others have the processor and the GIL, if need be. Called by the thread that removes."""
        if number and (self._working or not number % _UNSEEN):
            sleep(_PAUSE)

    async def _acquire(
        self, release: Callable[[T], object], work: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """The result of ``work``, which holds a resource. If the caller is cancelled, ``release`` is called with it."""
        future = self._submit(work, *args, **kwargs)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            self._ending.start("the release of an unclaimed result", self._release(release, future))
            raise

    async def _release(self, release: Callable[[T], object], future: asyncio.Future[T]) -> None:
        await asyncio.wait([future])
        if future.exception() is None:
            await self._submit(release, future.result())

    # ---------------------------------------------------------------- blobs

    async def info(self, digest: Digest) -> Info:
        return await self._submit(self._disk.info, digest)

    async def update(self, digest: Digest, labels: Mapping[str, str], paths: Sequence[str] = ()) -> Info:
        return await self._submit(
            self._disk.update, digest, lambda current: updated_labels(digest, current, labels, paths)
        )

    async def list(self, sources: Iterable[str] = ()) -> AsyncIterator[Info]:
        wanted = await filters.parsed(sources, self._lane)
        digests = await self._submit(self._disk.digests)

        def described(batch: Sequence[Digest]) -> Sequence[Info]:
            found = []
            for digest in batch:
                try:
                    info = self._disk.info(digest)
                except errors.NotFound:  # deleted meanwhile
                    continue
                if wanted.match(info.field):
                    found.append(info)
            return found

        for start in range(0, len(digests), _BATCH):
            for info in await self._submit(described, digests[start : start + _BATCH]):
                yield info

    async def delete(self, digest: Digest) -> None:
        await self._submit(self._disk.delete, digest)

    async def remove_all(self, things: Sequence[tuple[str, str]]) -> Sequence[Exception | None]:
        """Remove blobs and ingests (pairs of kind and name) in one hop to a thread. Returns the error of each, or None.

        Calls run one after the other, also if a caller has given up meanwhile: it may ask again, and may then have
        recreated something that its first call is still about to remove.
        """

        def remove(kind: str, name: str) -> None:
            if kind == "blob":
                try:
                    digest = Digest.parse(name)
                except ValueError as error:
                    raise errors.InvalidArgument(str(error)) from None
                blobs.delete(digest)
            elif kind != "ingest":
                raise errors.InvalidArgument(f"the content store has no {kind}")
            elif not self._disk.remove_ingest(name):
                raise errors.NotFound(f'ingest ref "{name}"')

        def removed() -> list[Exception | None]:
            with blobs:
                fault("content.before-remove")
                return [removal(*thing) for thing in things]

        def removal(kind: str, name: str) -> Exception | None:
            try:
                remove(kind, name)
            except OSError as error:
                return disk_error(error, "content store")
            except Exception as error:  # the others are removed all the same, and the caller is told
                return error
            return None

        blobs = self._disk.deletions()
        return await self._submit_to(self._remover, removed)

    async def remove_blobs(self, digests: Sequence[str]) -> Mapping[int, Exception]:
        """As :meth:`remove_all`, of blobs only: the errors by the place of those that were not removed. Of thousands
        this costs little more than their unlinks.
        """

        def removed() -> Mapping[int, Exception]:
            with self._disk.deletions() as blobs:
                fault("content.before-remove")
                return blobs.delete_all(digests, self._turn)

        return await self._submit_to(self._remover, removed)

    async def read(self, digest: Digest, offset: int = 0, size: int = 0) -> AsyncGenerator[bytes, None]:
        self._readers += 1
        most, count = self._piece, 0
        blob = ahead = None
        try:
            blob = await self._acquire(
                BlobReader.close, BlobReader, self._disk.blob_path(digest), digest, offset, size, most
            )
            pieces = [blob.first()]
            while pieces[0]:
                count += 1
                if not count % _PIECES_UNTIL_DOUBLED:
                    most = min(2 * most, CHUNK)
                ahead = self._submit(blob.next, most) if blob.left else None
                yield pieces.pop()  # while the reader has the piece, nothing else refers to it
                pieces.append(await asyncio.shield(ahead) if ahead else b"")
        finally:
            self._readers -= 1
            if blob is not None and not blob.closed:
                self._ending.start("the end of a read", self._give_up(blob, ahead))

    @property
    def _piece(self) -> int:
        """Bytes in a new reader's pieces. A reader that stops keeps some of them, and there may be a thousand readers.
        The pieces grow as the reader reads on.
        """
        return max(min(CHUNK, _READERS_BYTES // max(self._readers, 1)), CHUNK // 16)

    async def _give_up(self, blob: BlobReader, ahead: asyncio.Future[bytes] | None) -> None:
        """Close a blob that was not read to its end, once no thread reads it."""
        if ahead is not None:
            await asyncio.wait([ahead])
            _ = ahead.exception()
        await self._submit(blob.close)

    # ---------------------------------------------------------------- ingests

    async def status(self, ref: str) -> Status:
        return await self._submit(self._disk.status, ref)

    async def list_statuses(self, sources: Iterable[str] = ()) -> Sequence[Status]:
        wanted = await filters.parsed(sources, self._lane)
        return await self._submit(lambda: [s for s in self._disk.statuses() if wanted.match(s.field)])

    async def abort(self, ref: str) -> None:
        if not await self._submit_to(self._brief, self._disk.remove_ingest, ref):
            raise errors.NotFound(f'ingest ref "{ref}"')

    async def writer(self, ref: str, total: int = 0, expected: Digest | None = None) -> LocalWriter:
        return LocalWriter(self, await self._open(ref, total, expected))

    async def _open(self, ref: str, total: int, expected: Digest | None) -> Ingest:
        """Open an ingest and lock its ref; :meth:`release` ends both."""
        stop = threading.Event()

        def opened() -> Ingest:
            self._refuse_existing(expected)
            return Ingest(
                self._disk,
                ref,
                total,
                expected.algorithm if expected else CANONICAL,
                promised=expected is not None or total > 0,
                stop=stop,
            )

        await self._locks.take_next(ref)
        future = self._submit(opened)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            stop.set()
            self._ending.start(f"the unlocking of {ref}", self._release_opened(ref, future))
            raise
        except BaseException:
            self._locks.free(ref)
            raise

    def _refuse_existing(self, expected: Digest | None) -> None:
        if expected and self._disk.has(expected):
            raise errors.AlreadyExists(f"content {expected}")

    async def run_locked(self, ref: str, work: Callable[[], T], *, brief: bool = False) -> T:
        """The result of ``work``, which runs in a thread while the ref is locked. ``brief`` work runs in one of the few
        threads for it. If the caller is cancelled, the work goes on and keeps the lock.
        """

        def done(future: asyncio.Future[T]) -> None:
            self._locks.free(ref)
            future.cancelled() or future.exception()  # the exception counts as retrieved

        self._locks.take(ref)
        future = self._submit_to(self._brief if brief else self._pool, work)
        future.add_done_callback(done)
        return await asyncio.shield(future)

    async def run_all_locked(
        self,
        things: Sequence[tuple[str, R]],
        work: Callable[[Sequence[R]], Sequence[T | errors.NodeError]],
        *,
        brief: bool = False,
    ) -> Sequence[T | errors.NodeError]:
        """As :meth:`run_locked`, for many refs at once, each with something for the ``work``. A ref that has a writer
        gets that error, and the work does not see it.
        """
        found: list[T | errors.NodeError | None] = [None] * len(things)
        taken = list[int]()
        for number, (ref, _) in enumerate(things):
            try:
                self._locks.take(ref)
            except errors.NodeError as error:
                found[number] = error
            else:
                taken.append(number)

        def done(future: asyncio.Future[Sequence[T | errors.NodeError]]) -> None:
            for number in taken:
                self._locks.free(things[number][0])
            future.cancelled() or future.exception()  # the exception counts as retrieved

        future = self._submit_to(self._brief if brief else self._pool, work, [things[number][1] for number in taken])
        future.add_done_callback(done)
        for number, result in zip(taken, await asyncio.shield(future), strict=True):
            found[number] = result
        return [each for each in found if each is not None]

    async def _release_opened(self, ref: str, opening: asyncio.Future[Ingest]) -> None:
        try:
            await asyncio.wait([opening])
            if not opening.cancelled() and opening.exception() is None:
                await self._submit(opening.result().close)
        finally:
            self._locks.free(ref)

    async def release(self, ingest: Ingest, busy: asyncio.Future[Any] | None = None) -> None:
        """Close ``ingest`` once ``busy`` is done, and unlock its ref, even if the caller is cancelled."""

        async def end() -> None:
            try:
                if busy is not None:
                    await asyncio.wait([busy])
                if not ingest.closed:
                    await self._submit(ingest.close)
            finally:
                self._locks.free(ingest.ref)

        await asyncio.shield(self._ending.keep(loops.task("the end of a write", end())))


def _ended(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | errors.NodeError:
    """The result of ``work``, or its error, also that of the disk."""
    try:
        return work(*args, **kwargs)
    except errors.NodeError as error:
        return error
    except OSError as error:
        found = disk_error(error, "content store")
        if not isinstance(found, errors.NodeError):
            raise
        return found


class LocalWriter:
    """A ``Writer`` of a LocalStore."""

    takes_views = True
    """It writes a memoryview as it writes bytes. Writers of others need not."""

    def __init__(self, store: LocalStore, ingest: Ingest) -> None:
        self._store = store
        self._ingest = ingest
        self._busy: asyncio.Future[Any] | None = None
        self._closed = False
        self._digest = ""

    async def _run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        if self._closed:
            raise errors.FailedPrecondition("cannot commit on closed writer")
        future = self._store._submit(work, *args, **kwargs)
        self._busy = future
        return await asyncio.shield(future)

    @property
    def offset(self) -> int:
        return self._ingest.offset

    @property
    def digest(self) -> str:
        return self._digest or self._ingest.digest

    async def status(self) -> Status:
        return self._ingest.status()

    async def write(self, data: bytes | memoryview) -> None:
        await self._run(self._ingest.write, data)

    async def truncate(self) -> None:
        await self._run(self._ingest.truncate)

    async def commit(
        self, size: int = 0, expected: Digest | None = None, labels: Mapping[str, str] | None = None
    ) -> Digest:
        try:
            about: dict[str, str | int] = {"splitd.ref": self._ingest.ref, "splitd.size": self._ingest.offset}
            with tracing.span("content.commit", **about):
                digest, _ = await self._run(self._ingest.commit, size, expected, labels)
        finally:
            await self.close()
        self._digest = str(digest)
        return digest

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            hashing = self._ingest.hashing / 1e6
            tracing.current().put(
                {
                    "splitd.time.disk_ms": self._ingest.writing / 1e6,
                    "splitd.time.cpu_ms": hashing,
                    "splitd.time.digest_ms": hashing,
                }
            )
            await self._store.release(self._ingest, self._busy)


class LocalFiles:
    """The ``Files`` of a LocalStore, and its ``ManyFiles``: one thread does the work of all."""

    def __init__(self, store: LocalStore) -> None:
        self._store = store

    async def locate(self, digest: Digest) -> tuple[str, int]:
        info = await self._store.info(digest)
        return self._store._disk.blob_path(digest), info.size

    async def begin(self, ref: str, total: int = 0, expected: Digest | None = None) -> Begun:
        return await self._store.run_locked(ref, lambda: self._begun(ref, total, expected), brief=True)

    def _begun(self, ref: str, total: int, expected: Digest | None) -> Begun:
        self._store._refuse_existing(expected)
        ingest = Ingest(self._store._disk, ref, total, hashed=False, promised=expected is not None or total > 0)
        ingest.close()
        return Begun(ingest.path, ingest.offset)

    async def begin_all(self, wanted: Sequence[tuple[str, int, Digest | None]]) -> Sequence[Begun | errors.NodeError]:
        return await self._store.run_all_locked(
            [(each[0], each) for each in wanted],
            lambda taken: [_ended(self._begun, *each) for each in taken],
            brief=True,
        )

    async def commit_all(self, commits: Sequence[Commit]) -> Sequence[tuple[Digest, int] | errors.NodeError]:
        # all are on their way to the disk before the first is waited for, and the directory of the blobs is synced once
        store, disk = self._store, self._store._disk
        ingests: dict[str, Ingest] = {}

        def checked(commit: Commit) -> tuple[Digest, int]:
            ingest = Ingest(disk, commit.ref, create=False, hashed=False)
            ingests[commit.ref] = ingest
            done = ingest.checked(commit.size, commit.expected, computed=commit.computed)
            ingest.begin_to_sync()
            return done

        def published(commit: Commit, digest: Digest) -> None:
            ingests[commit.ref].published(digest, commit.labels, durably=False)

        def committed(taken: Sequence[Commit]) -> Sequence[tuple[Digest, int] | errors.NodeError]:
            try:
                found = [_ended(checked, each) for each in taken]
                right = [number for number, done in enumerate(found) if isinstance(done, tuple)]
                # side by side, so that they share the writing of the journal
                synced = [store.syncing.submit(_ended, ingests[taken[number].ref].synced) for number in right]
                wait(synced)
                for number, end in zip(right, synced, strict=True):
                    done, error = found[number], end.result()
                    if isinstance(done, tuple):
                        found[number] = error or _ended(published, taken[number], done[0]) or done
                for digest in {each.expected.algorithm: each.expected for each in taken if each.expected}.values():
                    disk.sync_blobs(digest)
                return found
            finally:
                for ingest in ingests.values():
                    ingest.close_file()

        with tracing.span("content.commit", **{"splitd.group": len(commits)}) as span:
            span.put({"splitd.size": sum(each.size for each in commits)})
            return await store.run_all_locked([(each.ref, each) for each in commits], committed)

    async def commit(
        self,
        ref: str,
        size: int = 0,
        expected: Digest | None = None,
        labels: Mapping[str, str] | None = None,
        *,
        computed: bool = False,
    ) -> tuple[Digest, int]:
        store = self._store

        def committed() -> tuple[Digest, int]:
            return Ingest(store._disk, ref, create=False, hashed=False).commit(
                size, expected, labels, computed=computed
            )

        with tracing.span("content.commit", **{"splitd.ref": ref}) as span:
            done = await store.run_locked(ref, committed)
            span.put({"splitd.size": done[1]})
            return done
