"""Content: the raw store's bytes joined with metadata's records.

Info, List and Update are metadata's alone and are relayed. A Read asks metadata whether the namespace has the blob, and
in which backend. The bytes of a small blob are then in the gateway (:mod:`gateway.smallblobs`), and a piece of a large
one may be (:mod:`gateway.openblobs`); all other Reads are the raw store's streams, which pass unparsed. A Write is told
in :mod:`gateway.writes`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Literal

from google.protobuf.empty_pb2 import Empty

from api.containerd.services.content.v1 import content_pb2 as pb
from api.containerd.services.content.v1 import content_stubs
from api.splitd.localfiles.v1 import localfiles_pb2 as files_pb
from api.splitd.localfiles.v1 import localfiles_stubs
from gateway.config import Config
from gateway.hop import Hop
from gateway.openblobs import LARGEST, OpenBlobs
from gateway.remote import RemoteRecords
from gateway.smallblobs import SmallBlobs
from gateway.store import Blob, Ingest
from gateway.upstream import Upstream, raw_headers
from gateway.writes import WRITE, Commit, Writes, received
from services.kit import errors, filters
from services.kit.rpc import Answers, Call, Elsewhere, Headers, Pieces, Route, method_path
from services.kit.slices import Lane
from services.kit.timestamps import time_to_pb

log = logging.getLogger(__name__)

SERVICE = content_stubs.CONTENT
READ = method_path(SERVICE.methods_by_name["Read"])

_TOGETHER = 128
"""Ingests whose statuses are asked for at once."""


class ContentServicer:
    """The methods of containerd.services.content.v1.Content that need both. Of the streaming ones Write is
    ``coordinated``, and Read ``joined`` (:class:`gateway.relay.Relay`).
    """

    SERVICE = SERVICE

    def __init__(self, content: Hop, records: RemoteRecords, commit: Commit, config: Config) -> None:
        self._content = content
        self._records = records
        self._stall = config.stall
        self.coordinated = {WRITE: Writes(content, records, commit, config).write}
        self.joined = {READ: self.read}
        self._small = SmallBlobs()
        self._lane = Lane()
        self._open = OpenBlobs()
        self._elsewhere: dict[str, OpenBlobs] = {}
        """The same for the backends of candidates."""
        self._content.changed.append(self._clear)

    def _clear(self) -> None:
        for files in (self._open, *self._elsewhere.values()):
            files.clear()
        self._elsewhere.clear()

    async def Delete(self, request: pb.DeleteContentRequest, call: Call) -> Empty:
        await self._records.delete_blob(call, request.digest)
        return Empty()

    async def Abort(self, request: pb.AbortRequest, call: Call) -> Empty:
        """The record goes first: a raw ingest without one is the collector's."""
        ingest = await self._records.forget_ingest(call, request.ref)
        if not ingest.shared:
            channel = await self._of(ingest, call).ready(call)
            try:
                await channel.client(SERVICE).Abort(
                    pb.AbortRequest(ref=ingest.raw_ref), headers=raw_headers(call, self._content.name)
                )
            except errors.NotFound as error:
                if error.injected:
                    raise
                return Empty()  # opened but never written, or aborted by a failed commit
        return Empty()

    async def Status(self, request: pb.StatusRequest, call: Call) -> pb.StatusResponse:
        ingest = await self._records.ingest(call, request.ref)
        if ingest.shared:
            return pb.StatusResponse(status=_shared_status(ingest))
        channel = await self._of(ingest, call).ready(call)
        answer: pb.StatusResponse = await channel.client(SERVICE).Status(
            pb.StatusRequest(ref=ingest.raw_ref), headers=raw_headers(call, self._content.name)
        )
        answer.status.ref = ingest.ref
        return answer

    def _of(self, ingest: Ingest, call: Call) -> Upstream:
        """The raw store that has the bytes of an ingest."""
        return self._content.having(ingest.backend, call.optional_namespace, ingest.ref)

    async def ListStatuses(self, request: pb.ListStatusesRequest, call: Call) -> Pieces:
        wanted = await filters.parsed(request.filters, self._lane)
        piece = self._lane.slice()
        statuses, raw = pb.ListStatusesResponse(), list[Ingest]()
        for ingest in await self._records.ingests(call):
            if piece.over():
                await piece.next()
            if not request.filters or wanted.match(partial(_field, ingest)):
                if ingest.shared:
                    statuses.statuses.append(_shared_status(ingest))
                else:
                    raw.append(ingest)
        pieces = [statuses.SerializeToString()]
        # one by one: the raw store's list would have the thousands of other namespaces, too
        for start in range(0, len(raw), _TOGETHER):
            some = raw[start : start + _TOGETHER]
            pieces.append(pb.ListStatusesResponse(statuses=await self._statuses(some, call)).SerializeToString())
        return Pieces(pieces)

    async def _statuses(self, ingests: Sequence[Ingest], call: Call) -> Sequence[pb.Status]:
        """The statuses of these ingests; those that ended meanwhile are left out."""
        headers, found = raw_headers(call, self._content.name), []
        answers = await asyncio.gather(
            *(self._status(ingest, call, headers) for ingest in ingests), return_exceptions=True
        )
        for ingest, answer in zip(ingests, answers, strict=True):
            if isinstance(answer, errors.NotFound) and not answer.injected:
                continue
            if isinstance(answer, BaseException):
                raise answer
            answer.status.ref = ingest.ref
            found.append(answer.status)
        return found

    async def _status(self, ingest: Ingest, call: Call, headers: Headers) -> pb.StatusResponse:
        channel = await self._of(ingest, call).ready(call)
        return await channel.client(SERVICE).Status(pb.StatusRequest(ref=ingest.raw_ref), headers=headers)

    def read(self, call: Call) -> Route:
        """The way of a Read: once metadata has said that the namespace has the blob, it is answered from memory, or
        goes to the raw store.
        """
        return Route(
            self._content,
            raw_headers(call, self._content.name),
            stall=self._stall,
            admit=self._admit_read,
            question=self._records.blob_question(call, partial(self._ask, call.optional_namespace)),
        )

    def _ask(
        self, namespace: str, request: bytes
    ) -> tuple[str, Callable[[Blob], Answers | Literal[False] | Elsewhere | None], Callable[[], None]]:
        wanted = pb.ReadContentRequest.FromString(request)
        piece: bytearray | None = None

        def ahead() -> None:
            nonlocal piece
            piece = self._ahead(wanted)

        return (wanted.digest, lambda blob: self._read(namespace, request, wanted, blob, piece), ahead)

    def _ahead(self, wanted: pb.ReadContentRequest) -> bytearray | None:
        """Read the piece that is wanted, while metadata looks whether the namespace has the blob."""
        left = self._open.size(wanted.digest) - max(wanted.offset, 0)
        size = min(wanted.size, left)
        return (
            self._open.read(wanted.digest, max(wanted.offset, 0), size, _before(size))
            if size > 0 and wanted.size <= LARGEST
            else None
        )

    async def _admit_read(self, request: bytes, call: Call) -> Answers | Elsewhere | None:
        wanted = pb.ReadContentRequest.FromString(request)
        blob = await self._records.blob(call, wanted.digest)
        found = self._read(call.optional_namespace, request, wanted, blob)
        if found is False:
            raw = self._content.having(blob.backend, call.optional_namespace, blob.digest)
            data = await self._small_blob(raw, blob, call)
            answers = None if data is None else _of_small(wanted, data)
            return answers if self._is_home(blob) else Elsewhere(raw, answers)
        return found

    def _is_home(self, blob: Blob) -> bool:
        return blob.backend == self._content.name or not blob.backend

    def _read(
        self, namespace: str, request: bytes, wanted: pb.ReadContentRequest, blob: Blob, ahead: bytearray | None = None
    ) -> Answers | Literal[False] | Elsewhere | None:
        """The answers to ``request``, which is ``wanted``, if memory has them. False for a small blob that must be
        fetched first; None if the content service is to answer, as it must where somebody watches its calls. What a
        candidate has, it answers itself, if memory does not.
        """
        raw = self._content.having(blob.backend, namespace, blob.digest)
        if raw.instruments.remembering:
            raw.instruments.remembered(READ, request)
        if self._is_home(blob):
            return self._remembered(self._open, raw, wanted, blob, ahead)
        files = self._elsewhere.get(blob.backend)
        if files is None:
            files = self._elsewhere[blob.backend] = OpenBlobs()
        found = self._remembered(files, raw, wanted, blob, None)
        return False if found is False else Elsewhere(raw, found)

    def _remembered(
        self, files: OpenBlobs, raw: Upstream, wanted: pb.ReadContentRequest, blob: Blob, ahead: bytearray | None
    ) -> Answers | Literal[False] | None:
        start = max(wanted.offset, 0)
        if not blob.size or start > blob.size or raw.instruments.watched:
            return None
        if blob.size > self._small.largest:
            return self._piece(files, raw, blob, start, wanted.size, ahead) if 0 < wanted.size <= LARGEST else None
        data = self._small.get(blob.digest)
        return False if data is None else _of_small(wanted, data)

    def _piece(
        self, files: OpenBlobs, raw: Upstream, blob: Blob, start: int, size: int, ahead: bytearray | None
    ) -> Answers | None:
        """A piece of a large blob, if it was read ``ahead`` or can be had without the content service. The service must
        be there all the same: whoever stops it expects that Reads say so.
        """
        if not raw.is_ready():
            return None
        if ahead is not None:
            return [ahead]
        size = min(size, blob.size - start)
        found = files.read(blob.digest, start, size, _before(size))
        if found is None:
            files.open(blob.digest, blob.size, partial(self._locate, raw))
            return None
        return [found] if size else []

    async def _locate(self, raw: Upstream, digest: str) -> str:
        if not raw.local:  # a path there means another file here
            raise errors.Unimplemented(f"files of service {raw.name}")
        files = raw.channel.client(localfiles_stubs.LOCAL_FILES)
        return str((await files.Locate(files_pb.LocateRequest(digest=digest), stall=self._stall)).path)

    async def _small_blob(self, raw: Upstream, blob: Blob, call: Call) -> bytes | None:
        """All of a small blob. None if the raw store has other bytes than the digest says: the client gets these, and
        finds out.
        """
        found = self._small.get(blob.digest)
        if found is not None:
            return found
        channel = await raw.ready(call)
        data = bytearray()
        request = pb.ReadContentRequest(digest=blob.digest, size=self._small.largest + 1)
        async with channel.stream(
            READ, raw_headers(call, self._content.name), call.remaining(), stall=self._stall
        ) as stream:
            await stream.send(request.SerializeToString())
            await stream.done_sending()
            while (message := await received(raw, stream, self._stall)) is not None:
                data += pb.ReadContentResponse.FromString(message).data
        whole = bytes(data)
        return whole if self._small.put(blob.digest, whole) else None


def _of_small(wanted: pb.ReadContentRequest, data: bytes) -> Answers:
    start = max(wanted.offset, 0)
    part = data[start : start + wanted.size if wanted.size > 0 else None]
    # its offset counts from the first byte sent, as in containerd
    return [pb.ReadContentResponse(data=part).SerializeToString()] if part else []


@lru_cache(64)
def _before(size: int) -> bytes:
    """The head of a message with ``size`` bytes of data, which then need not be copied into one."""
    return pb.ReadContentResponse(data=bytes(size)).SerializeToString()[:-size] if size else b""


def _shared_status(ingest: Ingest) -> pb.Status:
    started = time_to_pb(ingest.started or time.time_ns())
    return pb.Status(
        ref=ingest.ref,
        offset=ingest.size,
        total=ingest.size,
        expected=ingest.expected,
        started_at=started,
        updated_at=started,
    )


def _field(ingest: Ingest, path: Sequence[str]) -> tuple[str, bool]:
    """The one field by which containerd lets clients filter statuses: ``ref``."""
    return (ingest.ref, True) if list(path) == ["ref"] else ("", False)
