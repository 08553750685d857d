"""Calls to another process: :class:`Unary` and :class:`WireStream`, each the owner of its stream."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import TYPE_CHECKING

from services.kit import errors
from services.kit.call import TOLD, Headers, Metadata
from services.wire import messages, outcomes
from services.wire.frames import Code
from services.wire.headers import Head
from services.wire.messages import HIGH_WATER, MESSAGE_COST
from services.wire.requests import request_block
from services.wire.streams import Chunk, Stream

if TYPE_CHECKING:
    from services.wire.channel import ClientLink, WireCarrier


class UnseenError(Exception):
    """The peer refused the stream before it looked at it, so the call may be repeated."""


class Unary:
    """A unary call under way; ``answer`` is its result. Only :meth:`cancel` cancels it."""

    __slots__ = ("_assembler", "_carrier", "_link", "_message", "_path", "_stream", "_timeout", "answer", "told")

    def __init__(
        self, carrier: WireCarrier, link: ClientLink, path: str, block: bytes, request: bytes, timeout: float | None
    ) -> None:
        self._path = path
        self._timeout = timeout
        self._carrier = carrier
        self._link = link
        self.answer: asyncio.Future[bytes] = link.loop.create_future()
        self._message: bytes | None = None
        self._assembler: messages.Assembler | None = None
        self.told: str | bytes | None = None
        """What the answer tells the root of the trace (``kit.call.TOLD``)."""
        if timeout is not None:
            carrier.deadlines.add(self, timeout)
        self._stream = link.open(self, block)
        link.connection.send(self._stream, messages.prefix(request), request, end=True)
        link.flush_soon()

    def _end(self, error: Exception | None) -> None:
        self._carrier.deadlines.discard(self)
        self._stream.owner = None  # they reference each other
        if self.answer.done():
            return
        if error is not None:
            self.answer.set_exception(error)
        elif self._message is None:
            self.answer.set_exception(errors.Internal("a unary call was answered without a message"))
        else:
            self.answer.set_result(self._message)

    def expire(self) -> None:
        """The deadline has passed."""
        self._end(outcomes.late(self._path, self._carrier.name, self._timeout))
        self._link.reset(self._stream, Code.CANCEL)

    def cancel(self) -> None:
        """The caller does not wait any more."""
        self._carrier.deadlines.discard(self)
        self._stream.owner = None
        self._link.reset(self._stream, Code.CANCEL)

    def on_head(self, head: Head, end: bool) -> None:
        failure = outcomes.of_response(head, self._carrier.name)
        if failure is not None:
            self._end(failure)
            self._link.reset(self._stream, Code.CANCEL)
        elif end:
            self.told = head.headers.get(TOLD)
            self._end(outcomes.of_trailers(head, self._carrier.name))
            self._link.finished(self._stream)
        else:
            self._assembler = messages.Assembler(self._link.limits.message, head.encoding)

    def on_data(self, chunk: Chunk, end: bool) -> None:
        if self._assembler is None or self.answer.done():
            return
        if not end:
            self._link.consumed(self._stream, len(chunk))
        try:
            found = self._assembler.feed(chunk)
            if found:
                if self._message is not None or len(found) > 1:
                    raise errors.Internal("a unary call was answered with more than one message")
                self._message = found[0]
        except errors.NodeError as error:
            self._end(error)
            self._link.reset(self._stream, Code.CANCEL)
            return
        if end:
            self._end(errors.Internal("server closed the stream without sending trailers"))
            self._link.finished(self._stream)

    def on_trailers(self, head: Head) -> None:
        self.told = head.headers.get(TOLD)
        self._end(outcomes.of_trailers(head, self._carrier.name))
        self._link.finished(self._stream)

    def on_reset(self, code: int, reason: str, *, local: bool) -> None:
        self._end(UnseenError(reason) if code == Code.REFUSED_STREAM and not local else outcomes.of_reset(code, reason))

    def on_drained(self) -> None:
        """Nothing to do: a unary request is queued whole."""

    def on_lost(self, reason: str) -> None:
        self._end(self._carrier.disconnected(reason))


class WireStream:
    """A streaming call. Its first operation opens it."""

    def __init__(self, carrier: WireCarrier, path: str, metadata: Metadata, timeout: float | None) -> None:
        self._carrier = carrier
        self._path = path
        self._metadata = metadata
        self._end = None if timeout is None else asyncio.get_running_loop().time() + timeout
        self._link: ClientLink | None = None
        self._stream: Stream | None = None
        self._opening = asyncio.Lock()
        self._assembler: messages.Assembler | None = None
        self._messages: deque[bytes] = deque()
        self._waiting = 0
        """Bytes of messages that were not received yet."""
        self._withheld = 0
        """Bytes for which the peer gets no window until they are received."""
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._leading: Headers | None = None
        self._trailing: Headers = {}
        self._status: errors.NodeError | None = None
        self._over = False

    # -- CarriedStream

    async def send(self, message: bytes) -> None:
        stream, link = await self._open()
        if self._over:
            raise self._failure()
        link.connection.send(stream, messages.prefix(message), message)
        link.flush_soon()
        while stream.queued > HIGH_WATER and not self._over:
            stream.low = HIGH_WATER // 2
            self._writer = link.loop.create_future()
            await self._writer
            self._writer = None
        if self._over and self._status is not None:
            raise self._failure()

    async def done_sending(self) -> None:
        stream, link = await self._open()
        if self._over and self._status is not None:
            raise self._failure()
        link.connection.send(stream, end=True)
        link.flush_soon()

    async def receive(self) -> bytes | None:
        _, link = await self._open()
        while not self._messages:
            if self._over:
                if self._status is not None:
                    raise self._failure()
                return None
            await self._wait(link)
        message = self._messages.popleft()
        self._waiting -= len(message) + MESSAGE_COST
        if self._withheld and self._waiting < HIGH_WATER and self._stream is not None:
            link.consumed(self._stream, self._withheld)
            self._withheld = 0
        return message

    async def leading(self) -> Headers:
        _, link = await self._open()
        while self._leading is None and not self._over:
            await self._wait(link)
        return self._leading or {}

    def trailing(self) -> Headers:
        return self._trailing

    def cancel(self) -> None:
        if not self._over:
            self._finish(errors.Cancelled())
            if self._link is not None and self._stream is not None:
                self._link.reset(self._stream, Code.CANCEL)

    # -- its life

    async def _wait(self, link: ClientLink) -> None:
        self._reader = link.loop.create_future()
        try:
            await self._reader
        finally:
            self._reader = None

    def _failure(self) -> errors.NodeError:
        return self._status or errors.Cancelled("the call has ended")

    async def _open(self) -> tuple[Stream, ClientLink]:
        if self._stream is None:
            async with self._opening:
                if self._stream is None:
                    await self._open_once()
        assert self._stream is not None
        assert self._link is not None
        return self._stream, self._link

    async def _open_once(self) -> None:
        if self._over:
            raise self._failure()
        left = None
        try:
            async with asyncio.timeout_at(self._end):
                link = await self._carrier.ready()
        except TimeoutError:
            self._finish(outcomes.late(self._path, self._carrier.name))
            raise self._failure() from None
        except errors.NodeError as error:
            self._finish(error)
            raise
        if self._over:
            link.on_idle()
            raise self._failure()
        if self._end is not None:
            left = max(self._end - link.loop.time(), 0.001)
            self._carrier.deadlines.add(self, left)
        self._link = link
        self._stream = link.open(self, request_block(self._path, self._metadata, left))
        link.flush_soon()

    def expire(self) -> None:
        """The deadline has passed."""
        self._finish(outcomes.late(self._path, self._carrier.name))
        if self._link is not None and self._stream is not None:
            self._link.reset(self._stream, Code.CANCEL)

    def _finish(self, status: errors.NodeError | None) -> None:
        if self._over:
            return
        self._over = True
        self._status = status
        if self._stream is not None:
            self._stream.owner = None  # they reference each other
        self._carrier.deadlines.discard(self)
        _wake(self._reader)
        _wake(self._writer)

    # -- Owner

    def on_head(self, head: Head, end: bool) -> None:
        failure = outcomes.of_response(head, self._carrier.name)
        if failure is not None or end:
            self._leading = {}
            self._trailing = head.headers
            self._finish(failure if failure is not None else outcomes.of_trailers(head, self._carrier.name))
            if self._link is not None and self._stream is not None:
                if failure is not None:
                    self._link.reset(self._stream, Code.CANCEL)
                else:
                    self._link.finished(self._stream)
            return
        assert self._link is not None
        self._leading = head.headers
        self._assembler = messages.Assembler(self._link.limits.message, head.encoding)
        _wake(self._reader)

    def on_data(self, chunk: Chunk, end: bool) -> None:
        if self._assembler is None or self._over:
            return
        assert self._link is not None
        assert self._stream is not None
        try:
            found = self._assembler.feed(chunk)
        except errors.NodeError as error:
            self._finish(error)
            self._link.reset(self._stream, Code.CANCEL)
            return
        if self._waiting > HIGH_WATER:
            self._withheld += len(chunk)
        else:
            self._link.consumed(self._stream, len(chunk))
        if found:
            self._messages.extend(found)
            self._waiting += sum(map(len, found)) + MESSAGE_COST * len(found)
            _wake(self._reader)
        if end:
            self._finish(errors.Internal("server closed the stream without sending trailers"))
            self._link.finished(self._stream)

    def on_trailers(self, head: Head) -> None:
        self._trailing = head.headers
        outcome = outcomes.of_trailers(head, self._carrier.name)
        if outcome is None and self._assembler is not None and not self._assembler.finished():
            outcome = errors.Internal("the server ended its stream in the middle of a message")
        self._finish(outcome)
        if self._link is not None and self._stream is not None:
            self._link.finished(self._stream)

    def on_reset(self, code: int, reason: str, *, local: bool) -> None:
        if code == Code.REFUSED_STREAM and not local:
            refused = self._carrier.disconnected(f"stream refused: {reason}")
            refused.unseen = True
            self._finish(refused)
        elif not (code == Code.NO_ERROR and self._over):
            self._finish(outcomes.of_reset(code, reason))

    def on_drained(self) -> None:
        _wake(self._writer)

    def on_lost(self, reason: str) -> None:
        self._finish(self._carrier.disconnected(reason))


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None:
        with contextlib.suppress(asyncio.InvalidStateError):
            waiter.set_result(None)
