"""Calls that this process answers: a :class:`ServerCall` for each request with a handler, a :class:`NotGrpc` for
requests of browsers and the like.

A unary handler is started when its request is complete, so that a slow sender costs a buffer and no task. An answer
leaves in one write: head, message, trailers.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError

from services.kit import errors, logs
from services.kit.call import Call, Pieces
from services.kit.slices import lane
from services.kit.transport import Answering, Method
from services.wire import eager, headers, messages, outcomes
from services.wire.answers import HEAD, OK, refusal
from services.wire.clients import client_of
from services.wire.frames import Code
from services.wire.headers import Head
from services.wire.messages import HIGH_WATER, MESSAGE_COST
from services.wire.streams import Chunk, Stream

if TYPE_CHECKING:
    from services.wire.server import ServerLink

LARGE = 512 << 10
"""Bytes of a message that takes a millisecond to decode if it is all labels. A message of data takes a tenth of
that.
"""
LARGE_PIECE = 2 << 20
"""The same for a message of a stream. Those of a Write have up to 1 MiB of data (ctr 1.6), which is decoded in a tenth
of a millisecond; a turn of its own for each takes longer than that.
"""

_LONG_HIGH_WATER = 4 << 10
"""HIGH_WATER of calls that watch something. There may be hundreds whose clients do not read; what waits for them is
kept, and bounded, at its source.
"""


class NotGrpc:
    """A request that is not gRPC, such as a browser's. When it is complete, it is answered with text that says so."""

    __slots__ = ("_head", "_link", "_stream")

    def __init__(self, link: ServerLink, stream: Stream, head: Head) -> None:
        self._link = link
        self._stream = stream
        self._head = head

    def begin(self, end: bool) -> None:
        if end:
            self._answer()
        else:
            self._link.incomplete[self] = time.monotonic() + self._link.limits.request

    def _answer(self) -> None:
        self._link.incomplete.pop(self, None)
        status, text = (
            (b"405", "only POST is for gRPC")
            if self._head.method != "POST"
            else (b"415", "the content-type is not application/grpc")
        )
        body = f"This is a gRPC server: {text}.\n".encode()
        connection = self._link.connection
        connection.send_head(
            self._stream,
            headers.block(
                [
                    (b":status", status),
                    (b"content-type", b"text/plain; charset=utf-8"),
                    (b"content-length", b"%d" % len(body)),
                ]
            ),
        )
        connection.send(self._stream, body, end=True)
        self._link.flush_soon()
        self._link.on_idle()

    def overdue(self) -> None:
        self._link.incomplete.pop(self, None)
        self._link.reset(self._stream, Code.CANCEL)

    def on_data(self, chunk: Chunk, end: bool) -> None:
        self._link.connection.consumed(self._stream, len(chunk))
        if end:
            self._answer()

    def on_trailers(self, head: Head) -> None:
        self._answer()

    def on_reset(self, code: int, reason: str, *, local: bool) -> None:
        self._link.incomplete.pop(self, None)

    def on_lost(self, reason: str) -> None:
        self._link.incomplete.pop(self, None)

    def on_drained(self) -> None:
        """Nothing to do."""


class ServerCall:
    """One call that a handler of this process answers. It is also the iterator of its requests, if they are a
    stream.
    """

    __slots__ = (
        "_assembler",
        "_ended",
        "_failed",
        "_head_sent",
        "_messages",
        "_method",
        "_reader",
        "_started",
        "_task",
        "_waiting",
        "_withheld",
        "_writer",
        "call",
        "head",
        "link",
        "over",
        "stream",
        "working",
    )

    def __init__(self, link: ServerLink, stream: Stream, head: Head, method: Method) -> None:
        self.link = link
        self.stream = stream
        self.head = head
        self.call = Call(method.path, head.headers, None if head.timeout is None else time.monotonic() + head.timeout)
        self._method = method
        self._assembler: messages.Assembler | None = None
        self._task: asyncio.Task[None] | None = None
        self._messages: deque[bytes] | None = None
        self._waiting = 0
        self._withheld = 0
        self._ended = False
        """Whether the client sends no more."""
        self._failed: errors.NodeError | None = None
        """The error in the requests. It is raised where they are read."""
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._head_sent = False
        self.over = False
        self.working = False
        self._started = False

    def begin(self, end: bool) -> None:
        """The head has come; with ``end``, nothing else will."""
        if self.head.timeout is not None:
            self.link.server.deadlines.add(self, self.head.timeout)
        self._ended = end
        if self._method.arity.client_stream:
            self._messages = deque()
            self._started = True
            self._task = eager.start(self._run(self), self.link.loop)
        elif end:
            self.fail(errors.Internal("the call has no request message"))
        else:
            self.link.incomplete[self] = time.monotonic() + self.link.limits.request

    # -- Owner

    def on_data(self, chunk: Chunk, end: bool) -> None:
        self._ended = end
        if self.over or self._failed is not None:
            return
        # nearly always one message
        found = None if self._assembler is not None else messages.whole(chunk, self.link.limits.message)
        if found is None:
            try:
                found = self._assemble(chunk)
            except errors.NodeError as error:
                self._broken(error)
                return
        if self._messages is not None:
            self._queue(self._messages, found, len(chunk))
            return
        if not end:
            self.link.connection.consumed(self.stream, len(chunk))
        if found and not self._started:
            self._started = True
            self.link.incomplete.pop(self, None)
            if self._method.long:
                self.start(found[0])
            else:
                client_of(self.stream).admit(self, found[0], counted=not self._method.arity.server_stream)
        elif end and not self._started:
            self._broken(errors.Internal("the call has no request message"))

    def start(self, argument: Any) -> None:
        """Run the handler of a call that takes one request."""
        self._task = eager.start(self._run(argument), self.link.loop)
        if self.over and self._task is not None:  # the client went away while the first step ran
            self._task.cancel()

    def _assemble(self, chunk: Chunk) -> list[bytes]:
        link = self.link
        if self._assembler is None:
            self._assembler = messages.Assembler(link.limits.message, self.head.encoding)
        held = self._assembler.held
        found = self._assembler.feed(chunk)
        link.assembling += self._assembler.held - held
        if link.assembling > link.limits.assembling and self._assembler.held:
            raise outcomes.crowded(link.limits.assembling)
        return found

    def _queue(self, queue: deque[bytes], found: list[bytes], size: int) -> None:
        if self._waiting > HIGH_WATER:
            self._withheld += size
        else:
            self.link.connection.consumed(self.stream, size)
        if found:
            queue.extend(found)
            self._waiting += sum(map(len, found)) + MESSAGE_COST * len(found)
        if found or self._ended:
            _wake(self._reader)

    def _broken(self, error: errors.NodeError) -> None:
        """The requests are invalid. If a handler reads them, it gets the error; otherwise the client does."""
        self._release()
        self._failed = error
        if self._started:
            _wake(self._reader)
        else:
            logs.failed(self.call.method, self.call.optional_namespace, error)
            self.fail(error)

    def _release(self) -> None:
        self.link.incomplete.pop(self, None)
        if self._assembler is not None:
            self.link.assembling -= self._assembler.held
            self._assembler = None

    def overdue(self) -> None:
        """The request is still not complete."""
        self._broken(outcomes.overdue(self.head.path, self.link.limits.request))

    def on_trailers(self, head: Head) -> None:
        self.on_data(b"", end=True)

    def on_drained(self) -> None:
        _wake(self._writer)

    def on_reset(self, code: int, reason: str, *, local: bool) -> None:
        self._abandon()

    def on_lost(self, reason: str) -> None:
        self._abandon()

    def _abandon(self) -> None:
        """The client is gone: the handler is cancelled, and counts as a stream until it has ended."""
        if self.over:
            return
        self._finish()
        if self._task is not None and not self._task.done():
            self._task.cancel()

    def expire(self) -> None:
        """The deadline has passed."""
        error = errors.DeadlineExceeded(
            f"service {self.link.server.name()}: {self.call.method}: not done in the time that its caller allowed"
        )
        logs.failed(self.call.method, self.call.optional_namespace, error)
        self.fail(error)
        if self._task is not None and not self._task.done():
            self._task.cancel()

    def _finish(self) -> None:
        self.over = True
        # they reference each other, and so would keep everything of the call until a garbage collection
        self.stream.owner = None
        if self.head.timeout is not None:
            self.link.server.deadlines.discard(self)
        self._release()
        task = self._task
        if task is not None and not task.done() and task is not asyncio.current_task(self.link.loop):
            self.link.connection.lingering += 1
            task.add_done_callback(self._lingered)
        client_of(self.stream).ended(self)
        self.link.on_idle()

    def _lingered(self, task: asyncio.Task[None]) -> None:
        self.link.connection.lingering -= 1
        self.link.on_idle()

    # -- the requests

    def __aiter__(self) -> ServerCall:
        return self

    async def __anext__(self) -> Any:
        assert self._messages is not None
        while not self._messages:
            if self._failed is not None:
                raise self._failed
            if self._ended:
                if self._assembler is not None and not self._assembler.finished():
                    raise errors.Internal("the client ended its stream in the middle of a message")
                raise StopAsyncIteration
            self._reader = self.link.loop.create_future()
            self.call.waits(1)
            try:
                await self._reader
            finally:
                self.call.waits(-1)
                self._reader = None
        message = self._messages.popleft()
        self.call.size += len(message)
        self._waiting -= len(message) + MESSAGE_COST
        if self._withheld and self._waiting < HIGH_WATER:
            self.link.consumed(self.stream, self._withheld)
            self._withheld = 0
        if len(message) > LARGE_PIECE:
            return await self._apart(message)
        return self._decoded(message)

    async def _apart(self, message: bytes) -> Any:
        """:meth:`_decoded` for a large message, in a turn of its own. The loop has just spent time on receiving it, and
        the handler will spend more.
        """
        turns = lane()
        await turns.turn()
        argument = self._decoded(message)
        await turns.turn()
        return argument

    def _decoded(self, message: bytes) -> Any:
        try:
            return self._method.decode(message)
        except DecodeError as error:
            raise errors.Internal(f"grpc: error unmarshalling request: {error}") from None

    # -- the handler

    async def _run(self, request: Any) -> None:
        method, call = self._method, self.call
        try:
            answer = None
            with Answering(self.link.server, call, long=method.long, connection=self.link) as answering:
                if request is self:
                    argument = self
                else:
                    call.size = len(request)
                    if len(request) > LARGE:
                        argument = await self._apart(request)
                    else:
                        argument = self._decoded(request)
                if method.arity.server_stream:
                    async with aclosing(method.handler(argument, call)) as responses:
                        async for response in responses:
                            if self._put(*(response if type(response) is Pieces else (method.encode(response),))):
                                del response  # it may wait long
                                await self._room()
                else:
                    answer = method.whole(await method.handler(argument, call))
                    call.size += len(answer)
        except asyncio.CancelledError:
            if not self.over:  # only the handler itself did this
                self.fail(errors.Cancelled())
            return
        if answering.failure is not None:
            self.fail(answering.failure)
        elif not self.over:
            self._succeed(answer)

    def _put(self, *pieces: bytes) -> bool:
        """Send a message. The result is whether its sender has to wait."""
        if self.over:
            return False
        self._send_head()
        size = sum(map(len, pieces))
        self.call.size += size
        self.link.connection.send(self.stream, messages.PREFIX.pack(0, size), *pieces)
        self.link.flush_soon()
        return self.stream.queued > self._high

    async def _room(self) -> None:
        stream = self.stream
        while stream.queued > self._high and not self.over:
            stream.low = self._high // 2
            self._writer = self.link.loop.create_future()
            self.call.waits(1)
            try:
                await self._writer
            finally:
                self.call.waits(-1)
                self._writer = None
                stream.low = -1

    @property
    def _high(self) -> int:
        """Bytes that may be queued before the handler has to wait."""
        if not client_of(self.stream).reads:
            return 0
        return _LONG_HIGH_WATER if self._method.long else HIGH_WATER

    def _send_head(self) -> None:
        if not self._head_sent:
            self._head_sent = True
            self.link.connection.send_head(self.stream, self._head())

    def _head(self) -> bytes:
        return HEAD + headers.block(headers.metadata(self.call.leading)) if self.call.leading else HEAD

    def _succeed(self, answer: bytes | None) -> None:
        connection, stream = self.link.connection, self.stream
        tail = headers.status(0, "", self.call.trailing) if self.call.trailing else OK
        if answer is None:
            self._send_head()
            connection.send_tail(stream, tail)
        else:
            connection.answer(stream, self._head(), messages.prefix(answer) + answer, tail)
        self.link.flush_soon()
        self._finish()

    def fail(self, error: errors.NodeError) -> None:
        """Answer with an error, unless the client has its answer."""
        if self.over:
            return
        if self.call.leading:
            self._send_head()
        tail = refusal(error, self.call.trailing)
        self.link.connection.send_tail(self.stream, tail if self._head_sent else HEAD + tail)
        self.link.flush_soon()
        self._finish()


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
