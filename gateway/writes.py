"""Content.Write: bytes go to the raw store, and become a blob of a namespace.

A Write is opened under the raw ref that metadata gives it. Its messages pass one by one, since each is answered before
the next. Its commit is an intent first, the raw commit second, a record third (:mod:`gateway.store`). A raw store that
dies in the middle is waited for, and the write goes on at the offset that it acknowledged.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping

from api.containerd.services.content.v1 import content_pb2 as pb
from api.containerd.services.content.v1 import content_stubs
from gateway.config import Config
from gateway.hop import Hop
from gateway.instruments import owed
from gateway.intents import Intents
from gateway.operation import CURRENT
from gateway.store import Committed, Ingest, Intent, Outcome, Records
from gateway.upstream import Upstream, raw_headers
from services.kit import errors, tracing
from services.kit.rpc import Call, Headers, Stream, method_path, shielded, silent
from services.kit.timestamps import time_to_pb

log = logging.getLogger(__name__)

SERVICE = content_stubs.CONTENT
WRITE = method_path(SERVICE.methods_by_name["Write"])

RawCommit = Callable[[Intent], Awaitable[tuple[str, int]]]
"""Commits the raw ingest of an intent; answers digest and size."""


class Commit:
    """The one way in which bytes become a blob of a namespace."""

    def __init__(self, records: Records, intents: Intents) -> None:
        self._records = records
        self._intents = intents

    async def __call__(
        self,
        call: Call,
        raw: Upstream,
        raw_commit: RawCommit,
        *,
        ref: str,
        size: int,
        expected: str,
        labels: Mapping[str, str],
        later: bool = False,
    ) -> tuple[str, int]:
        """Commit ``ref``, whose bytes ``raw`` has, by ``raw_commit``; answers digest and size. Run it shielded.

        ``later``: its record need not be on the disk by then.
        """
        headers = raw_headers(call, raw.name)
        intent = await self._records.begin_commit(call, ref=ref, size=size, expected=expected, labels=labels)
        if isinstance(intent, Committed):
            return intent
        committing = _RawCommit(headers, raw, raw_commit, intent, expected, later=later)
        done = await self._intents.carry_out(intent, committing, raw, call)
        return done.digest, done.size


class _RawCommit:
    """A raw store that has the blob already is as good as one that takes it now: the bytes are the same."""

    def __init__(
        self, headers: Headers, raw: Upstream, commit: RawCommit, intent: Intent, expected: str, *, later: bool
    ) -> None:
        self._later = later
        self._headers = headers
        self._raw = raw
        self._commit = commit
        self._intent = intent
        self._expected = expected

    async def make(self) -> Outcome:
        try:
            digest, size = await self._commit(self._intent)
        except errors.AlreadyExists as error:
            present = None if error.injected else await self.happened()
            if present is None:
                raise
            return present
        return Outcome(digest=digest, size=size, later=self._later)

    async def happened(self) -> Outcome | None:
        if not self._expected:
            # the digest was the raw store's to say; the retry, or the ingest that is still there, will tell
            return None
        client = self._raw.channel.client(SERVICE)
        try:
            info = (await client.Info(pb.InfoRequest(digest=self._expected), headers=self._headers)).info
        except errors.NotFound:
            return None
        return Outcome(digest=info.digest, size=info.size, later=self._later)


class Writes:
    """Answers Content.Write, message by message."""

    def __init__(self, content: Hop, records: Records, commit: Commit, config: Config) -> None:
        self._content = content
        self._records = records
        self._commit = commit
        self._config = config
        self._writing: dict[tuple[str, str], str] = {}
        """The spans of the Writes that are open, by namespace and ref."""

    async def write(self, requests: AsyncIterator[bytes], call: Call) -> AsyncIterator[bytes]:
        """One Write: its serialized messages, and the answers."""
        first = await anext(requests, None)
        if first is None:
            raise errors.InvalidArgument("Write without a request")
        opening = pb.WriteContentRequest.FromString(first)
        if not opening.ref:
            raise errors.InvalidArgument("first message must have a reference")
        headers = raw_headers(call, self._content.name)
        operation = CURRENT.get()
        if operation is not None:
            operation.wrote(opening.ref)
        try:
            ingest = await self._records.open_ingest(
                call,
                ref=opening.ref,
                total=opening.total,
                expected=opening.expected,
                backend=self._content.new(call.optional_namespace),
            )
        except errors.AlreadyExists:
            if operation is not None:
                operation.present += opening.total
            raise
        raw = self._content.having(ingest.backend, call.optional_namespace, opening.ref)
        if ingest.shared:
            writer: _Write | _SharedWrite = _SharedWrite(self._commit, raw, call, ingest)
        else:
            await self._reachable(raw, call)
            writer = _Write(self._commit, raw, call, headers, ingest, opening, self._config.stall)
        key = call.optional_namespace, opening.ref
        async with writer:
            try:
                answer = await writer.answer(opening)
            except errors.Unavailable as error:
                if operation is not None and raw.up and not error.injected:  # the client pauses, and tries again
                    operation.blocked = f"another writer of {opening.ref}", self._writing.get(key, "")
                raise
            with self._open(key):
                yield answer
                there = pb.WriteContentResponse.FromString(answer).offset
                message = opening
                while message.action != pb.COMMIT and (request := await anext(requests, None)) is not None:
                    if is_plain_write(request):
                        yield await writer.relay(request)
                        continue
                    message = pb.WriteContentRequest.FromString(request)
                    answer = await writer.answer(message)
                    if operation is not None and message.action == pb.COMMIT:
                        operation.present += there
                        operation.came += max(0, writer.size - there)
                    yield answer

    @contextlib.contextmanager
    def _open(self, key: tuple[str, str]) -> Iterator[None]:
        """Who else wants the ref meanwhile waits for this Write."""
        ref = self._writing[key] = tracing.current().ref()
        try:
            yield
        finally:
            if self._writing.get(key) == ref:
                del self._writing[key]

    async def _reachable(self, raw: Upstream, call: Call) -> None:
        """Return once the raw store is there. Clients retry UNAVAILABLE for ever when they open a Write, so after a
        long outage they are told INTERNAL, and stop.
        """
        try:
            await raw.ready(call)
        except errors.Unavailable as error:
            if raw.down_seconds > self._config.outage:
                raise errors.Internal(str(error)) from None
            raise


async def received(raw: Upstream, stream: Stream[bytes, bytes], stall: float) -> bytes | None:
    """The raw store's next message; Unavailable if it is silent for ``stall`` seconds and does not watch that."""
    try:
        async with asyncio.timeout(None if raw.channel.watched else stall):
            return await stream.receive()
    except TimeoutError as error:
        raise silent(raw.name, stall, error) from None


def is_commit(answer: bytes) -> bool:
    """Whether a serialized WriteContentResponse answers a commit, after which nothing follows."""
    return bool(pb.WriteContentResponse.FromString(answer).action == pb.COMMIT)


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
        commit: Commit,
        raw: Upstream,
        call: Call,
        headers: Headers,
        ingest: Ingest,
        opening: pb.WriteContentRequest,
        stall: float,
    ) -> None:
        self._commit = commit
        self._raw = raw
        self._call = call
        self._headers = headers
        self._ingest = ingest
        self._stall = stall
        self._expected = opening.expected
        self._total = opening.total
        self._promised = bool(opening.expected or opening.total)
        self._stream: Stream[bytes, bytes] | None = None
        self._opened = False
        """The raw store has heard of it."""
        self._committing = False
        self.size = 0
        """Bytes of the blob, once it is committed."""

    async def __aenter__(self) -> _Write:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        if self._committing:  # a commit goes on though its client has left, and closes the stream itself
            return
        if kind is None:
            await self._let_go()
        await self._close()

    async def _let_go(self) -> None:
        """Wait for the raw store's end of a Write that its client has ended: a client that is told that it is over may
        open the ref again at once, as in containerd.
        """
        if self._stream is not None:
            try:
                await self._stream.done_sending()
                while await received(self._raw, self._stream, self._stall) is not None:
                    continue  # containerd repeats its last answer
            except errors.NodeError as error:  # the acknowledged bytes are there, and the client asks for no more
                log.info("the write of %s ended after its client's end: %s", self._ingest.ref, error)

    async def _close(self) -> None:
        if self._stream is not None:
            stream, self._stream = self._stream, None
            await stream.__aexit__()

    async def answer(self, request: pb.WriteContentRequest) -> bytes:
        """Answer a message that was parsed: the opening, a STAT, a COMMIT."""
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
        """Send one message and return its answer, across a death of the raw store if need be."""
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
        answer = await (self._stream.receive() if patient else received(self._raw, self._stream, self._stall))
        if answer is None:
            raise errors.Disconnected(f"service {self._raw.name} ended the write of {self._ingest.ref}")
        return answer

    async def _open(self) -> None:
        self._opened = True
        channel = await self._raw.ready(self._call)
        # the client's deadline ends our handler, but not a commit
        self._stream = channel.stream(WRITE, self._headers, stall=self._stall)

    async def _reopen(self) -> int:
        """Open a new raw stream on the same ingest; returns the offset of that."""
        await self._open()
        assert self._stream is not None
        status = pb.WriteContentRequest(action=pb.STAT, ref=self._ingest.raw_ref, total=self._total)
        answer = await self._exchange(status.SerializeToString())
        return pb.WriteContentResponse.FromString(answer).offset

    async def _commit_to_the_end(self, request: pb.WriteContentRequest) -> bytes:
        self._committing = True
        try:
            return await self._committed(request)
        finally:
            self._committing = False
            await self._close()

    async def _committed(self, request: pb.WriteContentRequest) -> bytes:
        answer = pb.WriteContentResponse()
        if not self._expected:
            request = await self._digested(request)

        async def commit(intent: Intent) -> tuple[str, int]:
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
                if self._promised and isinstance(error, errors.FailedPrecondition) and not error.injected:
                    with owed():
                        await self._reset(intent.raw_ref)
                raise
            return answer.digest, answer.offset

        digest, size = await self._commit(
            self._call,
            self._raw,
            commit,
            ref=self._ingest.ref,
            size=self._total,
            expected=self._expected,
            labels=dict(request.labels),
        )
        self.size = size
        answer.action, answer.digest, answer.offset = pb.COMMIT, digest, size
        answer.total = self._total or size
        return answer.SerializeToString()

    async def _reset(self, raw_ref: str) -> None:
        """Abort a raw ingest whose bytes are not what the opening of their Write promised: so the next attempt starts
        clean, whatever the raw store does with them.
        """
        try:
            client = self._raw.channel.client(SERVICE)
            await client.Abort(pb.AbortRequest(ref=raw_ref), headers=self._headers)
        except errors.NodeError as error:
            if not isinstance(error, errors.NotFound):  # the raw store may have dropped them itself
                log.warning("ingest %s, whose bytes are wrong, could not be aborted: %s", raw_ref, error)

    async def _digested(self, request: pb.WriteContentRequest) -> pb.WriteContentRequest:
        """Ask the raw writer for its digest so far, for a commit whose client does not say one; returns what is left to
        commit. An intent that knows what will come out of it holds up no sweep, and a raw store that has the blob
        already is no failure.
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

    def __init__(self, commit: Commit, raw: Upstream, call: Call, ingest: Ingest) -> None:
        self._commit = commit
        self._raw = raw
        self._call = call
        self._ingest = ingest
        self.size = ingest.size

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
            started_at=time_to_pb(ingest.started),
            updated_at=time_to_pb(ingest.started),
        )
        if request.action == pb.COMMIT:

            async def nothing_raw(intent: Intent) -> tuple[str, int]:
                raise errors.Internal(
                    f"ingest {ingest.ref} is shared, and metadata wants a raw commit of {intent.raw_ref}"
                )

            await shielded(
                self._commit(
                    self._call,
                    self._raw,
                    nothing_raw,
                    ref=ingest.ref,
                    size=request.total,
                    expected=request.expected,
                    labels=dict(request.labels),
                )
            )
        return answer.SerializeToString()

    async def relay(self, request: bytes) -> bytes:
        return await self.answer(pb.WriteContentRequest.FromString(request))
