"""containerd.services.content.v1.Content over a Store, and splitd.localfiles.v1.LocalFiles over its Files."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

from google.protobuf.empty_pb2 import Empty

from api.containerd.services.content.v1 import content_pb2 as pb
from api.containerd.services.content.v1 import content_stubs
from api.splitd.localfiles.v1 import localfiles_pb2 as files_pb
from api.splitd.localfiles.v1 import localfiles_stubs
from services.content import convert
from services.content.store import Commit, Files, ManyFiles, Store, Writer
from services.kit import errors, tracing
from services.kit.rpc import Call, Pieces
from services.kit.slices import Lane
from services.oci.digests import Digest

_PAGE = 100
"""Blobs in one message of a List, as in containerd."""
_SMALL = 4 << 20
"""Bytes up to which a blob is committed together with others."""


def _digest(text: str, message: str) -> Digest:
    """The digest in a request. If it is malformed, InvalidArgument with ``message``, in which {} is the reason."""
    try:
        return Digest.parse(text)
    except ValueError as error:
        raise errors.InvalidArgument.verbatim(message.format(error)) from None


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("{", "{{").replace("}", "}}") + '"'


class ContentServicer:
    """The raw content service. It ignores namespaces and leases in the headers."""

    SERVICE = content_stubs.CONTENT
    DECODERS = MappingProxyType({"Write": convert.write_request_from_wire})

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lane = Lane()

    async def Info(self, request: pb.InfoRequest, call: Call) -> pb.InfoResponse:
        digest = _digest(request.digest, f"{_quoted(request.digest)} failed validation")
        return pb.InfoResponse(info=convert.info_to_pb(await self._store.info(digest)))

    async def Update(self, request: pb.UpdateRequest, call: Call) -> pb.UpdateResponse:
        digest = _digest(request.info.digest, f"{_quoted(request.info.digest)} failed validation")
        info = await self._store.update(digest, dict(request.info.labels), tuple(request.update_mask.paths))
        return pb.UpdateResponse(info=convert.info_to_pb(info))

    async def List(self, request: pb.ListContentRequest, call: Call) -> AsyncIterator[pb.ListContentResponse]:
        page = pb.ListContentResponse()
        async for info in self._store.list(request.filters):
            page.info.append(convert.info_to_pb(info))
            if len(page.info) == _PAGE:
                yield page
                page = pb.ListContentResponse()
        if page.info:
            yield page

    async def Delete(self, request: pb.DeleteContentRequest, call: Call) -> Empty:
        await self._store.delete(_digest(request.digest, "{}"))
        return Empty()

    async def Read(self, request: pb.ReadContentRequest, call: Call) -> AsyncIterator[Pieces]:
        digest = _digest(request.digest, f"{_quoted(request.digest)[1:-1]}: {{}}")
        sent = 0  # containerd counts from the first byte sent, not from the start of the blob
        async for piece in self._store.read(digest, request.offset, request.size):
            answer = [Pieces((convert.read_response_head(sent, len(piece)), piece))]
            sent += len(piece)
            del piece  # if a client stops reading, its message waits; nothing else must keep the piece
            yield answer.pop()

    async def Status(self, request: pb.StatusRequest, call: Call) -> pb.StatusResponse:
        try:
            status = await self._store.status(request.ref)
        except errors.NotFound as error:
            raise errors.NotFound(f"could not get status for ref {_quoted(request.ref)}: {error}") from None
        return pb.StatusResponse(status=convert.status_to_pb(status))

    async def ListStatuses(self, request: pb.ListStatusesRequest, call: Call) -> Pieces:
        piece, pieces, some = self._lane.slice(), [], []
        for status in await self._store.list_statuses(request.filters):
            some.append(convert.status_to_pb(status))
            if piece.over():
                pieces.append(pb.ListStatusesResponse(statuses=some).SerializeToString())
                some = []
                await piece.next()
        return Pieces((*pieces, pb.ListStatusesResponse(statuses=some).SerializeToString()))

    async def Write(
        self, requests: AsyncIterator[pb.WriteContentRequest | convert.PlainWrite], call: Call
    ) -> AsyncIterator[pb.WriteContentResponse]:
        """Each message is answered before the next is looked at. A commit ends the call."""
        opening = await anext(requests, None)
        if opening is None:
            return
        if isinstance(opening, convert.PlainWrite) or not opening.ref:
            raise errors.InvalidArgument.verbatim("first message must have a reference")
        try:
            expected = convert.expected_from_pb(opening.expected)
        except errors.InvalidArgument as error:
            raise errors.InvalidArgument(f"calculating expected blob path for writer: {error}") from None
        writer = await self._store.writer(opening.ref, opening.total, expected)
        waited = 0
        try:
            session = _Write(self._store, writer, opening)
            yield await session.answer(opening)
            if opening.action == pb.COMMIT:
                return
            answered = time.perf_counter_ns()
            async for request in requests:
                waited += time.perf_counter_ns() - answered
                answer = await session.answer(request)
                answered = time.perf_counter_ns()
                yield answer
                if request.action == pb.COMMIT:
                    return
        finally:
            tracing.current().put({"splitd.time.client_ms": waited / 1e6})
            await writer.close()

    async def Abort(self, request: pb.AbortRequest, call: Call) -> Empty:
        await self._store.abort(request.ref)
        return Empty()


class _Write:
    """An open Write, with what its messages have said of the blob's size and digest so far."""

    def __init__(self, store: Store, writer: Writer, opening: pb.WriteContentRequest) -> None:
        self._store = store
        self._writer = writer
        self._ref = opening.ref
        self._total = 0
        self._expected = ""
        self._absent = opening.expected  # the store has just looked for this digest

    async def answer(self, request: pb.WriteContentRequest | convert.PlainWrite) -> pb.WriteContentResponse:
        writer = self._writer
        if request.expected:
            self._expected = request.expected
            await self._refuse_existing()
        self._total = request.total or self._total
        if request.action == pb.STAT:
            return await self._stat()
        await self._seek(request.offset)
        data: Any = request.data  # protobuf copies the bytes at each access
        if data:
            await writer.write(data if getattr(writer, "takes_views", False) else bytes(data))
        if request.action == pb.COMMIT:
            await writer.commit(self._total, convert.expected_from_pb(self._expected), dict(request.labels))
        action: Any = request.action
        return pb.WriteContentResponse(action=action, offset=writer.offset, digest=writer.digest, total=self._total)

    async def _refuse_existing(self) -> None:
        """AlreadyExists if the blob exists by now: the client need not go on."""
        if self._expected == self._absent:
            self._absent = ""
            return
        try:
            await self._store.info(Digest.parse(self._expected))
        except (errors.NotFound, ValueError):
            return
        await self._writer.close()
        await self._store.abort(self._ref)
        raise errors.AlreadyExists.verbatim(f"blob with expected digest {self._expected} exists")

    async def _stat(self) -> pb.WriteContentResponse:
        status = await self._writer.status()
        answer = pb.WriteContentResponse(
            action=pb.STAT, offset=status.offset, total=self._total or status.total, digest=self._writer.digest
        )
        answer.started_at.FromNanoseconds(status.started_at)
        answer.updated_at.FromNanoseconds(status.updated_at)
        return answer

    async def _seek(self, offset: int) -> None:
        """Writes only append; offset 0 begins anew."""
        current = self._writer.offset
        if offset == 0 and current > 0:
            await self._writer.truncate()
        elif offset not in (0, current):
            raise errors.OutOfRange.verbatim(f"write @{offset} must occur at current offset {current}")


class LocalFilesServicer:
    """The store's bytes by path, for processes of this node."""

    SERVICE = localfiles_stubs.LOCAL_FILES

    def __init__(self, files: Files) -> None:
        self._files = files
        self.together = (
            {"Begin": partial(_begin_all, files), "Commit": partial(_commit_all, files)}
            if isinstance(files, ManyFiles)
            else {}
        )

    async def Locate(self, request: files_pb.LocateRequest, call: Call) -> files_pb.LocateResponse:
        path, size = await self._files.locate(_digest(request.digest, f"{_quoted(request.digest)} failed validation"))
        return files_pb.LocateResponse(path=path, size=size)

    async def Begin(self, request: files_pb.BeginRequest, call: Call) -> files_pb.BeginResponse:
        begun = await self._files.begin(request.ref, request.total, convert.expected_from_pb(request.expected))
        return files_pb.BeginResponse(path=begun.path, offset=begun.offset)

    async def Commit(self, request: files_pb.CommitRequest, call: Call) -> files_pb.CommitResponse:
        digest, size = await self._files.commit(
            request.ref,
            request.size,
            convert.expected_from_pb(request.digest),
            dict(request.labels),
            computed=request.computed,
        )
        return files_pb.CommitResponse(digest=str(digest), size=size)


async def _begin_all(
    files: ManyFiles, requests: Sequence[files_pb.BeginRequest], _: Call
) -> Sequence[files_pb.BeginResponse | errors.NodeError]:
    begun = await files.begin_all(
        [(each.ref, each.total, convert.expected_from_pb(each.expected)) for each in requests]
    )
    return [
        each if isinstance(each, errors.NodeError) else files_pb.BeginResponse(path=each.path, offset=each.offset)
        for each in begun
    ]


async def _commit_all(
    files: ManyFiles, requests: Sequence[files_pb.CommitRequest], _: Call
) -> Sequence[files_pb.CommitResponse | errors.NodeError | None]:
    """Large ones are committed alone: the others would wait for them."""
    found: list[files_pb.CommitResponse | errors.NodeError | None] = [None] * len(requests)
    small = [number for number, each in enumerate(requests) if each.computed and 0 < each.size <= _SMALL]
    if not small:
        return found
    ends = await files.commit_all(
        [
            Commit(each.ref, each.size, convert.expected_from_pb(each.digest), dict(each.labels), each.computed)
            for each in map(requests.__getitem__, small)
        ]
    )
    for number, end in zip(small, ends, strict=True):
        found[number] = (
            end if isinstance(end, errors.NodeError) else files_pb.CommitResponse(digest=str(end[0]), size=end[1])
        )
    return found
