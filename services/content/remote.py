"""The content store in another process: ours, or any that serves containerd's Content.

``headers`` are sent with each call. Calls through the gateway need them: they name the namespace and the lease
(``containerd-namespace``, ``containerd-lease``).
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence

from api.containerd.services.content.v1 import content_pb2 as pb
from api.containerd.services.content.v1 import content_stubs
from api.splitd.localfiles.v1 import localfiles_pb2 as files_pb
from api.splitd.localfiles.v1 import localfiles_stubs
from services.content import convert
from services.content.store import Begun, Info, Status
from services.kit import errors
from services.kit.rpc import Channel, Stream
from services.kit.timestamps import time_from_pb
from services.oci.digests import Digest

_MESSAGE = 1 << 20
"""Bytes in one message of a write."""


class RemoteStore:
    """A ``Store`` over a channel."""

    def __init__(self, channel: Channel, headers: Mapping[str, str | bytes] = {}) -> None:
        self._content = channel.client(content_stubs.CONTENT)
        self._headers = dict(headers)

    async def info(self, digest: Digest) -> Info:
        response = await self._content.Info(pb.InfoRequest(digest=str(digest)), headers=self._headers)
        return convert.info_from_pb(response.info)

    async def update(self, digest: Digest, labels: Mapping[str, str], paths: Sequence[str] = ()) -> Info:
        request = pb.UpdateRequest(info=pb.Info(digest=str(digest), labels=labels))
        request.update_mask.paths.extend(paths)
        return convert.info_from_pb((await self._content.Update(request, headers=self._headers, together=True)).info)

    async def list(self, sources: Iterable[str] = ()) -> AsyncIterator[Info]:
        async for page in self._content.List(pb.ListContentRequest(filters=sources), headers=self._headers):
            for info in page.info:
                yield convert.info_from_pb(info)

    async def delete(self, digest: Digest) -> None:
        await self._content.Delete(pb.DeleteContentRequest(digest=str(digest)), headers=self._headers)

    async def read(self, digest: Digest, offset: int = 0, size: int = 0) -> AsyncIterator[bytes]:
        request = pb.ReadContentRequest(digest=str(digest), offset=offset, size=size)
        async with contextlib.aclosing(self._content.Read(request, headers=self._headers)) as responses:
            async for response in responses:
                yield response.data

    async def status(self, ref: str) -> Status:
        return convert.status_from_pb(
            (await self._content.Status(pb.StatusRequest(ref=ref), headers=self._headers)).status
        )

    async def list_statuses(self, sources: Iterable[str] = ()) -> Sequence[Status]:
        response = await self._content.ListStatuses(pb.ListStatusesRequest(filters=sources), headers=self._headers)
        return [convert.status_from_pb(status) for status in response.statuses]

    async def abort(self, ref: str) -> None:
        await self._content.Abort(pb.AbortRequest(ref=ref), headers=self._headers)

    async def writer(self, ref: str, total: int = 0, expected: Digest | None = None) -> RemoteWriter:
        stream = self._content.Write(headers=self._headers)
        try:
            writer = RemoteWriter(stream, ref, total)
            await writer.open(str(expected or ""))
        except BaseException:
            await stream.__aexit__()
            raise
        return writer


class RemoteWriter:
    """A ``Writer`` that is one open Write call. The store unlocks the ref when the call ends, for whatever reason."""

    def __init__(self, stream: Stream[pb.WriteContentRequest, pb.WriteContentResponse], ref: str, total: int) -> None:
        self._stream: Stream[pb.WriteContentRequest, pb.WriteContentResponse] | None = stream
        self._ref = ref
        self._total = total
        self.offset = 0
        self.digest = ""

    async def open(self, expected: str) -> None:
        """Send the first message. Only this message has the expected digest."""
        answer = await self._exchange(
            pb.WriteContentRequest(action=pb.STAT, ref=self._ref, total=self._total, expected=expected)
        )
        self.offset = answer.offset

    async def _exchange(self, request: pb.WriteContentRequest) -> pb.WriteContentResponse:
        if self._stream is None:
            raise errors.FailedPrecondition("cannot commit on closed writer")
        try:
            await self._stream.send(request)
            answer: pb.WriteContentResponse | None = await self._stream.receive()
            if answer is None:
                raise errors.Unknown(f"the content store ended the write of {self._ref} without an answer")
        except errors.NodeError:
            await self.close()
            raise
        self.digest = answer.digest or self.digest
        return answer

    async def status(self) -> Status:
        answer = await self._exchange(pb.WriteContentRequest(action=pb.STAT))
        return Status(
            self._ref, answer.offset, answer.total, time_from_pb(answer.started_at), time_from_pb(answer.updated_at)
        )

    async def write(self, data: bytes) -> None:
        for start in range(0, len(data), _MESSAGE):
            piece = data if len(data) <= _MESSAGE else data[start : start + _MESSAGE]
            answer = await self._exchange(pb.WriteContentRequest(action=pb.WRITE, offset=self.offset, data=piece))
            self.offset = answer.offset

    async def truncate(self) -> None:
        """The store truncates with the next write or commit, at offset 0."""
        self.offset = 0

    async def commit(
        self, size: int = 0, expected: Digest | None = None, labels: Mapping[str, str] | None = None
    ) -> Digest:
        request = pb.WriteContentRequest(
            action=pb.COMMIT, total=size, offset=self.offset, expected=str(expected or ""), labels=labels or {}
        )
        try:
            answer = await self._exchange(request)
        finally:
            await self.close()
        self.offset = answer.offset
        return convert.digest_from_pb(answer.digest)

    async def close(self) -> None:
        if self._stream is not None:
            stream, self._stream = self._stream, None
            # the call has already ended, with an error that the caller was told
            with contextlib.suppress(errors.NodeError):
                await stream.done_sending()
                while await stream.receive() is not None:  # containerd repeats its last answer
                    continue
            await stream.__aexit__()


class RemoteFiles:
    """The ``Files`` of a store in another process of this node. Unimplemented if the store is not splitd's; the Store's
    streams then serve instead.
    """

    def __init__(self, channel: Channel, headers: Mapping[str, str | bytes] = {}, *, later: bool = False) -> None:
        """``later``: nobody is told of what is committed before a record that refers to it is on the disk. So the
        blobs' own records need not be there when a commit is answered, which the gateway uses.
        """
        self._files = channel.client(localfiles_stubs.LOCAL_FILES)
        self._headers = dict(headers)
        self._later = later

    async def locate(self, digest: Digest) -> tuple[str, int]:
        response = await self._files.Locate(files_pb.LocateRequest(digest=str(digest)), headers=self._headers)
        return response.path, response.size

    async def begin(self, ref: str, total: int = 0, expected: Digest | None = None) -> Begun:
        request = files_pb.BeginRequest(ref=ref, total=total, expected=str(expected or ""))
        response = await self._files.Begin(request, headers=self._headers, together=True)
        return Begun(response.path, response.offset)

    async def commit(
        self,
        ref: str,
        size: int = 0,
        expected: Digest | None = None,
        labels: Mapping[str, str] | None = None,
        *,
        computed: bool = False,
        together: bool = False,
    ) -> tuple[Digest, int]:
        """``together``: it may be sent with other calls of this turn of the loop (``kit.many``)."""
        request = files_pb.CommitRequest(
            ref=ref, size=size, digest=str(expected or ""), labels=labels or {}, computed=computed, later=self._later
        )
        response = await self._files.Commit(request, headers=self._headers, timeout=None, together=together)
        return convert.digest_from_pb(response.digest), response.size
