"""The caller's content, through the gateway, as open files: a blob to read, or an ingest to fill. For services that
handle whole blobs.

Bytes go by file (LocalFiles) if the content service offers it. A foreign service that does not is read and written
through its streams; the reader or writer then has a pipe instead of a file, and need not know.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import AsyncIterator, Coroutine, Mapping
from pathlib import Path

from api.containerd.services.content.v1 import content_pb2 as pb
from api.containerd.services.content.v1 import content_stubs
from api.splitd.localfiles.v1 import localfiles_pb2 as files_pb
from api.splitd.localfiles.v1 import localfiles_stubs
from services.kit import errors, loops, pipes, rpc

_PIECE = 1 << 20
_PATIENCE = 5.0
"""Seconds to wait for a gateway that is away; it comes back."""
Headers = Mapping[str, str | bytes]


class Blobs:
    """Content and LocalFiles on the gateway's internal socket. ``headers`` are the caller's: its namespace and
    lease.
    """

    def __init__(self, gateway: rpc.Channel) -> None:
        self._gateway = gateway
        self._content = gateway.client(content_stubs.CONTENT)
        self._files = gateway.client(localfiles_stubs.LOCAL_FILES)

    @contextlib.asynccontextmanager
    async def reading(self, digest: str, headers: Headers) -> AsyncIterator[int]:
        """A file descriptor with the blob's bytes, open during the block. NotFound unless the caller's namespace has
        the blob.
        """
        await self._gateway.reached(_PATIENCE)
        try:
            located = await self._files.Locate(files_pb.LocateRequest(digest=digest), headers=headers)
            fd = os.open(located.path, os.O_RDONLY | os.O_CLOEXEC)
        except (errors.Unimplemented, FileNotFoundError):
            async with self._streamed(digest, headers) as fd:
                yield fd
            return
        try:
            yield fd
        finally:
            os.close(fd)

    @contextlib.asynccontextmanager
    async def _streamed(self, digest: str, headers: Headers) -> AsyncIterator[int]:
        await self._content.Info(pb.InfoRequest(digest=digest), headers=headers)
        read_end, write_end = os.pipe2(os.O_CLOEXEC)

        async def pump() -> None:
            writer = await pipes.writer(write_end)
            try:
                async for response in self._content.Read(
                    pb.ReadContentRequest(digest=digest), headers=headers, timeout=None
                ):
                    writer.write(response.data)
                    await writer.drain()
            except (BrokenPipeError, ConnectionResetError):
                return  # the worker has read enough, and says why
            finally:
                writer.close()

        async with _running_beside(pump()):
            try:
                yield read_end
            finally:
                os.close(read_end)

    @contextlib.asynccontextmanager
    async def writing(self, ref: str, headers: Headers) -> AsyncIterator[Ingest]:
        """An empty ingest to fill, open and locked by this process during the block. Unavailable if another writer has
        it.
        """
        await self._gateway.reached(_PATIENCE)
        try:
            begun = await self._files.Begin(files_pb.BeginRequest(ref=ref), headers=headers)
        except errors.Unimplemented:
            ingest: Ingest = _StreamedIngest(self._content, ref, headers)
        else:
            ingest = _FileIngest(self._files, ref, headers, begun.path)
        try:
            yield ingest
        finally:
            await ingest.close()

    async def abort(self, ref: str, headers: Headers) -> None:
        """Remove an ingest, if it exists."""
        with contextlib.suppress(errors.NotFound):
            await self._content.Abort(pb.AbortRequest(ref=ref), headers=headers)

    async def info(self, digest: str, headers: Headers) -> pb.Info:
        """The size and labels of a blob."""
        info: pb.Info = (await self._content.Info(pb.InfoRequest(digest=digest), headers=headers)).info
        return info

    async def labelled(self, key: str, value: str, headers: Headers) -> list[pb.Info]:
        """The blobs with this label."""
        request = pb.ListContentRequest(filters=[f'labels."{key}"=={value}'])
        return [info async for answer in self._content.List(request, headers=headers) for info in answer.info]

    async def label(self, digest: str, key: str, value: str, headers: Headers) -> None:
        """Set one label of a blob."""
        request = pb.UpdateRequest(info=pb.Info(digest=digest, labels={key: value}))
        request.update_mask.paths.append(f"labels.{key}")
        await self._content.Update(request, headers=headers)


def open_locked(path: str, ref: str) -> int:
    """Open and lock the file of the ingest ``ref``; Unavailable if another writer has it. The lock belongs to the open
    file description: a worker inherits it, and it ends with the worker.
    """
    taken = errors.Unavailable(f"ref {ref} locked by another writer")
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        raise taken from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(fd), os.stat(path)):
            return fd
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(fd)  # if it is another file by now, a commit came between: the locked file is a blob
    raise taken


class Ingest:
    """An ingest to fill through ``fd``, which a worker inherits or a thread uses. This process closes it
    (``handed_over``) before the commit.
    """

    fd: int

    def handed_over(self) -> None:
        """The worker has inherited ``fd``: close it here."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    async def commit(self, digest: str, size: int, labels: Mapping[str, str]) -> None:
        """Make it a blob; AlreadyExists if the blob exists."""
        raise NotImplementedError

    async def close(self) -> None:
        """Close it. An ingest that was not committed stays."""
        self.handed_over()


class _FileIngest(Ingest):
    def __init__(self, files: localfiles_stubs.LocalFiles, ref: str, headers: Headers, path: str) -> None:
        self._files = files
        self._ref = ref
        self._headers = headers
        self.fd = open_locked(path, ref)
        os.ftruncate(self.fd, 0)

    async def commit(self, digest: str, size: int, labels: Mapping[str, str]) -> None:
        await self._files.Commit(
            files_pb.CommitRequest(ref=self._ref, size=size, digest=digest, labels=labels, computed=True),
            headers=self._headers,
            timeout=None,
        )


class _StreamedIngest(Ingest):
    """An ingest whose worker fills a pipe; a Write stream carries what comes out of it."""

    def __init__(self, content: content_stubs.Content, ref: str, headers: Headers) -> None:
        self._ref = ref
        self._read_end, self.fd = os.pipe2(os.O_CLOEXEC)
        self._stream = content.Write(headers=headers)
        self._pumping = loops.task(f"the write of {ref}", self._pump())

    async def _pump(self) -> int:
        await self._exchange(pb.WriteContentRequest(action=pb.STAT, ref=self._ref))
        offset = 0
        pipe, self._read_end = self._read_end, -1
        async with pipes.reading(pipe, 4 * _PIECE) as reader:
            while data := await reader.read(_PIECE):
                await self._exchange(pb.WriteContentRequest(action=pb.WRITE, offset=offset, data=data))
                offset += len(data)
        return offset

    async def _exchange(self, request: pb.WriteContentRequest) -> None:
        await self._stream.send(request)
        if await self._stream.receive() is None:
            raise errors.Unavailable(f"the content service ended the write of {self._ref}")

    async def commit(self, digest: str, size: int, labels: Mapping[str, str]) -> None:
        written = await self._pumping
        await self._exchange(
            pb.WriteContentRequest(action=pb.COMMIT, offset=written, total=size, expected=digest, labels=labels)
        )

    async def close(self) -> None:
        await super().close()
        self._pumping.cancel()
        await asyncio.gather(self._pumping, return_exceptions=True)
        if self._read_end >= 0:
            os.close(self._read_end)
        await self._stream.__aexit__()


@contextlib.asynccontextmanager
async def _running_beside(work: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """Run ``work`` during the block. If ``work`` fails, the block fails with the same error."""
    task = loops.task("work beside a block", work)
    try:
        try:
            yield
        except BaseException:
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled() and isinstance(task.exception(), errors.NodeError):
                await task
            raise
        await task
    finally:
        del task  # its exception's traceback refers to this frame


def channel(gateway_socket: Path) -> rpc.Channel:
    """A channel to the gateway's internal socket."""
    return rpc.Channel(gateway_socket, "gateway")
