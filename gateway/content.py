"""Content: the raw store's bytes joined with metadata's records.

Info, List and Update are metadata's alone and are relayed. A Read asks metadata whether the namespace has the blob; the
bytes of a small one are then here (:mod:`gateway.smallblobs`), those of a piece of a large one may be
(:mod:`gateway.openblobs`), of any other the raw stream is passed through unparsed. A Write is opened under the raw ref
that metadata gives it; its messages pass one by one, since each is answered before the next; its commit is an intent
first, the raw commit second, a record third. A raw store that dies in the middle of a Write is waited for and the write
goes on at the offset that it acknowledged.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Literal

from google.protobuf.empty_pb2 import Empty
from google.protobuf.timestamp_pb2 import Timestamp

from api.containerd.services.content.v1 import content_pb2 as pb
from api.containerd.services.content.v1 import content_stubs
from api.splitd.localfiles.v1 import localfiles_pb2 as files_pb
from api.splitd.localfiles.v1 import localfiles_stubs
from api.splitd.records.v1 import records_pb2 as records_pb
from gateway.config import Config
from gateway.openblobs import LARGEST, OpenBlobs
from gateway.records import Records, with_headers
from gateway.routes import Routes
from gateway.smallblobs import SmallBlobs
from gateway.upstream import Upstream
from services.kit import errors, filters
from services.kit.rpc import Answers, Call, Headers, Meaning, Pieces, Route, Stream, method_path, shielded
from services.kit.slices import Lane

log = logging.getLogger(__name__)

SERVICE = content_stubs.CONTENT
READ, WRITE = (method_path(SERVICE.methods_by_name[name]) for name in ("Read", "Write"))

_TOGETHER = 128
"""Ingests whose statuses are asked for at once."""


class Commit:
    """The one way in which bytes become a blob of a namespace."""

    def __init__(self, records: Records) -> None:
        self._records = records

    async def __call__(
        self,
        call: Call,
        raw: Upstream,
        ref: str,
        size: int,
        expected: str,
        labels: Mapping[str, str],
        raw_commit: Callable[[records_pb.Intent], Awaitable[tuple[str, int]]],
    ) -> tuple[str, int]:
        """Commit ``ref``, whose bytes ``raw`` has, by ``raw_commit``, which answers digest and size. Run it shielded.

        A raw store that has the blob already is as good as one that takes it now: the bytes are the same.
        """
        intent = await self._records.call(
            "BeginCommitIngest",
            records_pb.BeginCommitIngestRequest(
                incarnation=self._records.incarnation, ref=ref, size=size, expected=expected, labels=labels
            ),
            call,
        )
        if intent.HasField("finished"):
            self._records.publish(intent.finished)
            return intent.finished.digest, intent.finished.size
        headers = with_headers(call)

        async def attempt() -> tuple[str, int]:
            try:
                return await raw_commit(intent)
            except errors.AlreadyExists:
                present = await happened()
                if present is None:
                    raise
                return present

        async def happened() -> tuple[str, int] | None:
            if not expected:
                # the digest was the raw store's to say; the retry, or the ingest that is still there, will tell
                return None
            try:
                client = raw.channel.client(SERVICE)
                info = (await client.Info(pb.InfoRequest(digest=expected), headers=headers)).info
            except errors.NotFound:
                return None
            return info.digest, info.size

        digest, actual = await self._records.outcome(intent, call, raw, attempt, happened)
        await self._records.finish(records_pb.FinishRequest(intent=intent.id, digest=digest, size=actual), call)
        return digest, actual


class ContentServicer:
    """The methods of containerd.services.content.v1.Content that need both. Of the streaming ones Write is
    ``coordinated``, and Read ``joined``.
    """

    SERVICE = SERVICE

    def __init__(self, routes: Routes, records: Records, config: Config) -> None:
        self._content = routes["content"]
        self._records = records
        self._config = config
        self.commit = Commit(records)
        self.coordinated = {WRITE: self.write}
        self.joined = {READ: self.read}
        self._small = SmallBlobs()
        self._lane = Lane()
        self._open = OpenBlobs()
        self._content.changed.append(self._open.clear)

    async def Delete(self, request: pb.DeleteContentRequest, call: Call) -> Empty:
        finished = await self._records.call("DeleteBlob", records_pb.ResolveBlobRequest(digest=request.digest), call)
        self._records.publish(finished)
        return Empty()

    async def Abort(self, request: pb.AbortRequest, call: Call) -> Empty:
        """The record goes first: a raw ingest without one is the collector's."""
        ingest = await self._records.call("ForgetIngest", records_pb.GetIngestRequest(ref=request.ref), call)
        if not ingest.shared:
            channel = await self._content.to(call.optional_namespace, request.ref).ready(call)
            try:
                await channel.client(SERVICE).Abort(pb.AbortRequest(ref=ingest.raw_ref), headers=with_headers(call))
            except errors.NotFound:
                return Empty()  # opened but never written, or aborted by a failed commit
        return Empty()

    async def Status(self, request: pb.StatusRequest, call: Call) -> pb.StatusResponse:
        ingest = await self._records.call("GetIngest", records_pb.GetIngestRequest(ref=request.ref), call)
        if ingest.shared:
            return pb.StatusResponse(status=_shared_status(ingest))
        channel = await self._content.to(call.optional_namespace, request.ref).ready(call)
        answer: pb.StatusResponse = await channel.client(SERVICE).Status(
            pb.StatusRequest(ref=ingest.raw_ref), headers=with_headers(call)
        )
        answer.status.ref = ingest.ref
        return answer

    async def ListStatuses(self, request: pb.ListStatusesRequest, call: Call) -> Pieces:
        wanted = await filters.parsed(request.filters, self._lane)
        piece = self._lane.slice()
        statuses, raw = pb.ListStatusesResponse(), dict[str, str]()
        for ingest in (await self._records.call("ListIngests", Empty(), call)).ingests:
            if piece.over():
                await piece.next()
            if not request.filters or wanted.match(partial(_field, ingest)):
                if ingest.shared:
                    statuses.statuses.append(_shared_status(ingest))
                else:
                    raw[ingest.raw_ref] = ingest.ref
        pieces = [statuses.SerializeToString()]
        refs = list(raw)
        # others may have thousands: what they have is not looked through for these
        for start in range(0, len(refs), _TOGETHER):
            some = {ref: raw[ref] for ref in refs[start : start + _TOGETHER]}
            pieces.append(pb.ListStatusesResponse(statuses=await self._statuses(some, call)).SerializeToString())
        return Pieces(pieces)

    async def _statuses(self, raw: Mapping[str, str], call: Call) -> Sequence[pb.Status]:
        """Of these ingests; those that ended meanwhile are left out."""
        headers, found = with_headers(call), []
        answers = await asyncio.gather(
            *(self._status(raw_ref, ref, call, headers) for raw_ref, ref in raw.items()), return_exceptions=True
        )
        for ref, answer in zip(raw.values(), answers, strict=True):
            if isinstance(answer, errors.NotFound):
                continue
            if isinstance(answer, BaseException):
                raise answer
            answer.status.ref = ref
            found.append(answer.status)
        return found

    async def _status(self, raw_ref: str, ref: str, call: Call, headers: Headers) -> pb.StatusResponse:
        channel = await self._content.to(call.optional_namespace, ref).ready(call)
        return await channel.client(SERVICE).Status(pb.StatusRequest(ref=raw_ref), headers=headers)

    def read(self, call: Call) -> Route:
        """Content.Read: from memory, or the raw stream, once metadata has said that the namespace has the blob."""
        return Route(
            self._content,
            with_headers(call),
            stall=self._config.stall,
            admit=self._admit_read,
            question=self._records.question("ResolveBlob", call, partial(self._ask, call.optional_namespace)),
        )

    def _ask(self, namespace: str, request: bytes) -> tuple[bytes, Meaning, Callable[[], None]]:
        wanted = pb.ReadContentRequest.FromString(request)
        piece: bytearray | None = None

        def ahead() -> None:
            nonlocal piece
            piece = self._ahead(wanted)

        return (
            records_pb.ResolveBlobRequest(digest=wanted.digest).SerializeToString(),
            lambda answer: self._read(namespace, wanted, records_pb.Blob.FromString(answer), piece),
            ahead,
        )

    def _ahead(self, wanted: pb.ReadContentRequest) -> bytearray | None:
        """The piece that is wanted, read while metadata looks whether it may be."""
        left = self._open.size(wanted.digest) - max(wanted.offset, 0)
        size = min(wanted.size, left)
        return (
            self._open.read(wanted.digest, max(wanted.offset, 0), size, _before(size))
            if size > 0 and wanted.size <= LARGEST
            else None
        )

    async def _admit_read(self, request: bytes, call: Call) -> Answers | None:
        wanted = pb.ReadContentRequest.FromString(request)
        blob = await self._records.call("ResolveBlob", records_pb.ResolveBlobRequest(digest=wanted.digest), call)
        found = self._read(call.optional_namespace, wanted, blob)
        if found is False:
            data = await self._small_blob(blob, call)
            return None if data is None else _of_small(wanted, data)
        return found

    def _read(
        self, namespace: str, wanted: pb.ReadContentRequest, blob: records_pb.Blob, ahead: bytearray | None = None
    ) -> Answers | Literal[False] | None:
        """The answers, as far as what is in memory tells: False for a small blob which is to be had first, None if
        they are the content service's.
        """
        start = max(wanted.offset, 0)
        if not blob.size or start > blob.size:
            return None
        if blob.size > self._small.largest:
            raw = self._content.to(namespace, blob.digest)
            return self._piece(raw, blob, start, wanted.size, ahead) if 0 < wanted.size <= LARGEST else None
        data = self._small.get(blob.digest)
        return False if data is None else _of_small(wanted, data)

    def _piece(
        self, raw: Upstream, blob: records_pb.Blob, start: int, size: int, ahead: bytearray | None
    ) -> Answers | None:
        """A piece of a large blob, which was read ``ahead``, or can be had without the content service. That must be
        there all the same: whoever stops it expects its Reads to say so.
        """
        if not raw.is_ready():
            return None
        if ahead is not None:
            return [ahead]
        size = min(size, blob.size - start)
        found = self._open.read(blob.digest, start, size, _before(size))
        if found is None:
            self._open.open(blob.digest, blob.size, partial(self._locate, raw))
            return None
        return [found] if size else []

    async def _locate(self, raw: Upstream, digest: str) -> str:
        files = raw.channel.client(localfiles_stubs.LOCAL_FILES)
        return str((await files.Locate(files_pb.LocateRequest(digest=digest), timeout=self._config.stall)).path)

    async def _small_blob(self, blob: records_pb.Blob, call: Call) -> bytes | None:
        """All of a small blob; None where the raw store has other bytes than the digest says, which are for whoever
        reads them to find out.
        """
        found = self._small.get(blob.digest)
        if found is not None:
            return found
        raw = self._content.to(call.optional_namespace, blob.digest)
        channel = await raw.ready(call)
        data = bytearray()
        request = pb.ReadContentRequest(digest=blob.digest, size=self._small.largest + 1)
        async with channel.stream(READ, with_headers(call), call.remaining()) as stream:
            await stream.send(request.SerializeToString())
            await stream.done_sending()
            while (message := await self.received(raw, stream)) is not None:
                data += pb.ReadContentResponse.FromString(message).data
        whole = bytes(data)
        return whole if self._small.put(blob.digest, whole) else None

    async def reset(self, raw: Upstream, raw_ref: str, call: Call) -> None:
        """Bytes are not what the opening of their Write promised: the next attempt starts clean, whatever the raw
        store does with them.
        """
        try:
            client = raw.channel.client(SERVICE)
            await client.Abort(pb.AbortRequest(ref=raw_ref), headers=with_headers(call))
        except errors.NodeError as error:
            if not isinstance(error, errors.NotFound):
                log.warning("ingest %s, whose bytes are wrong, could not be aborted: %s", raw_ref, error)

    async def received(self, raw: Upstream, stream: Stream[bytes, bytes]) -> bytes | None:
        """The raw store's next message, unless it stalls."""
        try:
            async with asyncio.timeout(self._config.stall):
                message: bytes | None = await stream.receive()
                return message
        except TimeoutError:
            raise errors.Unavailable(f"service {raw.name} has been silent for {self._config.stall:g}s") from None

    async def write(self, requests: AsyncIterator[bytes], call: Call) -> AsyncIterator[bytes]:
        """Content.Write: see :class:`_Write`."""
        first = await anext(requests, None)
        if first is None:
            raise errors.InvalidArgument("Write without a request")
        opening = pb.WriteContentRequest.FromString(first)
        if not opening.ref:
            raise errors.InvalidArgument("first message must have a reference")
        ingest = await self._records.call(
            "OpenIngest",
            records_pb.OpenIngestRequest(
                incarnation=self._records.incarnation, ref=opening.ref, total=opening.total, expected=opening.expected
            ),
            call,
        )
        raw = self._content.to(call.optional_namespace, opening.ref)
        if ingest.shared:
            writer: _Write | _SharedWrite = _SharedWrite(self, call, ingest, raw)
        else:
            await self._reachable(raw, call)
            writer = _Write(self, call, ingest, opening, raw)
        async with writer:
            message = opening
            yield await writer.answer(opening)
            while message.action != pb.COMMIT and (request := await anext(requests, None)) is not None:
                if is_plain_write(request):
                    yield await writer.relay(request)
                else:
                    message = pb.WriteContentRequest.FromString(request)
                    yield await writer.answer(message)

    async def _reachable(self, raw: Upstream, call: Call) -> None:
        """Clients retry UNAVAILABLE for ever when they open a Write; after a long outage tell them so that they
        stop.
        """
        try:
            await raw.ready(call)
        except errors.Unavailable as error:
            if raw.down_seconds > self._config.outage:
                raise errors.Internal(str(error)) from None
            raise


def _of_small(wanted: pb.ReadContentRequest, data: bytes) -> Answers:
    start = max(wanted.offset, 0)
    part = data[start : start + wanted.size if wanted.size > 0 else None]
    # its offset counts from the first byte sent, as in containerd
    return [pb.ReadContentResponse(data=part).SerializeToString()] if part else []


@lru_cache(64)
def _before(size: int) -> bytes:
    """What is before the data in a message with so many bytes of it: so they need not be copied into one."""
    return pb.ReadContentResponse(data=bytes(size)).SerializeToString()[:-size] if size else b""


def is_plain_write(request: bytes) -> bool:
    """Whether a serialized WriteContentRequest is a WRITE of data that names no ref: action 1, then offset or data.

    Such a message, the bulk of a Write, is passed on unparsed; one written in another order is parsed, which costs only
    time.
    """
    return len(request) > 2 and request[:2] == b"\x08\x01" and request[2] in (0x28, 0x32)


class _Write:
    """One open Write: the raw stream under it, replaced when the raw store dies."""

    def __init__(
        self,
        servicer: ContentServicer,
        call: Call,
        ingest: records_pb.Ingest,
        opening: pb.WriteContentRequest,
        raw: Upstream,
    ) -> None:
        self._servicer = servicer
        self._raw = raw
        self._call = call
        self._ingest = ingest
        self._expected = opening.expected
        self._total = opening.total
        self._promised = bool(opening.expected or opening.total)
        self._stream: Stream[bytes, bytes] | None = None
        self._opened = False
        """The raw store has heard of it."""
        self._committing = False

    async def __aenter__(self) -> _Write:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        if self._committing:  # a commit goes on though its client has left, and closes the stream itself
            return
        if kind is None:
            await self._let_go()
        await self._close()

    async def _let_go(self) -> None:
        """Wait for the raw store's end of a Write that its client has ended: who is told that it is over may open
        the ref again at once, as in containerd.
        """
        if self._stream is not None:
            try:
                await self._stream.done_sending()
                while (
                    await self._servicer.received(self._raw, self._stream) is not None
                ):  # containerd repeats its last answer
                    continue
            except errors.NodeError as error:  # what it acknowledged is there, and the client asks for no more
                log.info("the write of %s ended after its client's end: %s", self._ingest.ref, error)

    async def _close(self) -> None:
        if self._stream is not None:
            stream, self._stream = self._stream, None
            await stream.__aexit__()

    async def answer(self, request: pb.WriteContentRequest) -> bytes:
        """A message that was parsed: the opening, a STAT, a COMMIT."""
        if request.expected:
            self._expected = request.expected
        if request.total:
            self._total = request.total
        if request.action == pb.COMMIT:
            return await shielded(self._commit_to_the_end(request))
        down = pb.WriteContentRequest()
        down.CopyFrom(request)
        # the raw opening carries no digest: the policy has been applied already
        down.ref, down.expected = self._ingest.raw_ref, ""
        return await self.relay(down.SerializeToString())

    async def relay(self, request: bytes) -> bytes:
        """Send one message, return its answer; across a death of the raw store if need be."""
        try:
            answer = await self._exchange(request)
        except errors.Disconnected:
            message = pb.WriteContentRequest.FromString(request)
            await self._close()
            offset = await self._reopen()
            if message.action == pb.STAT or offset == message.offset:
                answer = await self._exchange(request)
            elif offset == message.offset + len(message.data):
                return pb.WriteContentResponse(
                    action=message.action, offset=offset, total=self._total
                ).SerializeToString()
            else:
                raise
        return answer

    async def _exchange(self, request: bytes, *, patient: bool = False) -> bytes:
        if self._stream is None:
            first = pb.WriteContentRequest.FromString(request)
            if not first.ref:
                await self._reopen()
            else:
                await self._open()
        assert self._stream is not None
        await self._stream.send(request)
        answer = await (self._stream.receive() if patient else self._servicer.received(self._raw, self._stream))
        if answer is None:
            raise errors.Disconnected(f"service {self._raw.name} ended the write of {self._ingest.ref}")
        return answer

    async def _open(self) -> None:
        self._opened = True
        channel = await self._raw.ready(self._call)
        # the client's deadline ends our handler, but not a commit
        self._stream = channel.stream(WRITE, with_headers(self._call))

    async def _reopen(self) -> int:
        """A new raw stream on the same ingest; the offset it has."""
        await self._open()
        assert self._stream is not None
        status = pb.WriteContentRequest(action=pb.STAT, ref=self._ingest.raw_ref, total=self._total)
        answer = await self._exchange(status.SerializeToString())
        return pb.WriteContentResponse.FromString(answer).offset

    async def _commit_to_the_end(self, request: pb.WriteContentRequest) -> bytes:
        self._committing = True
        try:
            return await self._commit(request)
        finally:
            self._committing = False
            await self._close()

    async def _commit(self, request: pb.WriteContentRequest) -> bytes:
        answer = pb.WriteContentResponse()
        if not self._expected:
            request = await self._digested(request)

        async def commit(intent: records_pb.Intent) -> tuple[str, int]:
            # not of a copy: it may have megabytes
            request.ref, request.expected, request.total = intent.raw_ref, self._expected, self._total
            request.ClearField("labels")  # labels are the record's
            if self._stream is None:
                # a commit that is a Write's first message opens the raw one, too
                await (self._reopen() if self._opened else self._open())
            try:
                answer.ParseFromString(await self._exchange(request.SerializeToString(), patient=True))
            except errors.NodeError as error:
                await self._close()
                if self._promised and isinstance(error, errors.FailedPrecondition):
                    await self._servicer.reset(self._raw, intent.raw_ref, self._call)
                raise
            return answer.digest, answer.offset

        digest, size = await self._servicer.commit(
            self._call, self._raw, self._ingest.ref, self._total, self._expected, dict(request.labels), commit
        )
        answer.action, answer.digest, answer.offset = pb.COMMIT, digest, size
        answer.total = self._total or size
        return answer.SerializeToString()

    async def _digested(self, request: pb.WriteContentRequest) -> pb.WriteContentRequest:
        """The commit of a client that does not say a digest, with the one that the raw writer has so far: an intent
        that knows what will come out of it holds up no sweep, and a raw store that has the blob already is no failure.
        """
        before = pb.WriteContentRequest(action=pb.STAT, ref=self._ingest.raw_ref, total=self._total)
        if request.data:  # a commit may bring the last bytes
            before.action, before.offset, before.data = pb.WRITE, request.offset, request.data
            request.offset += len(request.data)
            request.ClearField("data")
        answer = pb.WriteContentResponse.FromString(await self.relay(before.SerializeToString()))
        self._expected = answer.digest
        return request


class _SharedWrite:
    """A Write of a blob that another namespace has: nothing raw is opened, the commit makes a record."""

    def __init__(self, servicer: ContentServicer, call: Call, ingest: records_pb.Ingest, raw: Upstream) -> None:
        self._servicer = servicer
        self._call = call
        self._raw = raw
        self._ingest = ingest

    async def __aenter__(self) -> _SharedWrite:
        return self

    async def __aexit__(self, *exc: object) -> None:
        return None

    async def answer(self, request: pb.WriteContentRequest) -> bytes:
        ingest = self._ingest
        if request.data or (request.action != pb.STAT and request.offset not in (0, ingest.size)):
            raise errors.OutOfRange(
                f"write @{request.offset} of {ingest.ref}: all {ingest.size} bytes of {ingest.expected} are there "
                "already"
            )
        answer = pb.WriteContentResponse(
            action=request.action,
            offset=ingest.size,
            total=ingest.size,
            digest=ingest.expected,
            started_at=ingest.started_at,
            updated_at=ingest.started_at,
        )
        if request.action == pb.COMMIT:

            async def nothing_raw(intent: records_pb.Intent) -> tuple[str, int]:
                raise errors.Internal(
                    f"ingest {ingest.ref} is shared, and metadata wants a raw commit of {intent.raw_ref}"
                )

            await shielded(
                self._servicer.commit(
                    self._call,
                    self._raw,
                    ingest.ref,
                    request.total,
                    request.expected,
                    dict(request.labels),
                    nothing_raw,
                )
            )
        return answer.SerializeToString()

    async def relay(self, request: bytes) -> bytes:
        return await self.answer(pb.WriteContentRequest.FromString(request))


def _shared_status(ingest: records_pb.Ingest) -> pb.Status:
    started = ingest.started_at if ingest.HasField("started_at") else Timestamp(seconds=int(time.time()))
    return pb.Status(
        ref=ingest.ref,
        offset=ingest.size,
        total=ingest.size,
        expected=ingest.expected,
        started_at=started,
        updated_at=started,
    )


def _field(ingest: records_pb.Ingest, path: Sequence[str]) -> tuple[str, bool]:
    """What containerd lets one filter statuses by."""
    return (ingest.ref, True) if list(path) == ["ref"] else ("", False)
