"""A call that passes through message by message, since somebody stands around its upstream's channel
(:class:`services.kit.around.Around`).

This takes the place of the frames of :mod:`services.wire.relay` for one attempt of such a call. What waits here is
bounded on both sides: the client gets no window for messages that nobody has taken yet, and answers are taken from the
upstream only while the client reads.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from services.kit import errors, loops
from services.kit.around import Around, silent, surrounded, surrounded_stream
from services.kit.call import CLIENT, STALL, TOLD, Headers, shorter
from services.kit.observer import Observed
from services.kit.transport import CarriedStream, Carrier
from services.wire import headers, messages
from services.wire.answers import HEAD, OK, refusal
from services.wire.clients import client_of
from services.wire.messages import HIGH_WATER, MESSAGE_COST
from services.wire.streams import Chunk, Stream

if TYPE_CHECKING:
    from services.wire.server import ServerLink


class Attempt:
    """One attempt of a call by messages. Its passage feeds it with what the client sends."""

    def __init__(self, link: ServerLink, stream: Stream, encoding: str, owed: int) -> None:
        """``owed`` is the number of bytes that came already, and were not given back to the client's window."""
        self._link = link
        self._stream = stream
        self._assembler = messages.Assembler(link.limits.message, encoding)
        self._encoding = encoding
        self._requests: deque[bytes] = deque()
        self._waiting = 0
        """Bytes of the requests that nobody has taken yet."""
        self._withheld = owed
        """Bytes for which the client gets no window until they are taken."""
        self._ended = False
        self._broken: errors.NodeError | None = None
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self.answered = False
        """Whether the client has got a head."""
        self.size = 0
        """Bytes of the answers."""
        self.trailing: Headers = {}
        """The metadata that came with the upstream's status."""

    # -- what the passage tells

    def feed(self, chunk: Chunk, end: bool, *, owed: bool = True) -> None:
        """The client has sent more; with ``end``, all. ``owed``: these bytes are not given back to its window yet."""
        self._ended = self._ended or end
        if owed:
            self._withheld += len(chunk)
        try:
            found = self._assembler.feed(chunk) if self._broken is None else []
        except errors.NodeError as error:
            self._broken, found = error, []
        self._requests.extend(found)
        self._waiting += sum(map(len, found)) + MESSAGE_COST * len(found)
        self._give_back()
        _wake(self._reader)

    def drained(self) -> None:
        """The client has read."""
        _wake(self._writer)

    # -- the attempt

    async def run(
        self,
        carrier: Carrier,
        around: Around,
        path: str,
        metadata: Headers,
        observed: Observed,
        *,
        ours: bool,
        unary: bool,
        timeout: float | None,
        stall: float | None,
        name: str,
    ) -> None:
        """Carry the call to the end of its answers, or raise its error. ``timeout`` and ``stall`` are in seconds;
        ``name`` is that of the upstream, which keeps the stall itself if it is ``ours``.
        """
        if self._encoding and self._encoding not in messages.ENCODINGS:
            raise errors.Unimplemented.verbatim(
                f'grpc: Decompressor is not installed for grpc-encoding "{self._encoding}"'
            )
        sent = {**metadata, CLIENT: str(self._link.number)}
        if ours and stall is not None:
            sent[STALL] = f"{stall:g}"
        elif unary:
            timeout = shorter(timeout, stall)

        def opened() -> CarriedStream:
            return carrier.stream(path, (*sent.items(), *observed.headers()), timeout)

        if unary:
            await self._unary(opened, around, path, sent, observed, timeout, stall)
        else:
            carried = surrounded_stream(around, observed, path, sent, opened())
            await self._streams(carried, path, None if ours else stall, name)

    async def _unary(
        self,
        opened: Callable[[], CarriedStream],
        around: Around,
        path: str,
        sent: Headers,
        observed: Observed,
        timeout: float | None,
        stall: float | None,
    ) -> None:
        request = await self._next()
        if request is None or await self._next() is not None:
            raise errors.Internal(f"{path} takes exactly one request message")
        leading: Headers = {}

        async def go() -> bytes:
            # a stream, since its metadata passes too
            nonlocal leading
            carried = opened()
            try:
                await carried.send(request)
                await carried.done_sending()
                answer = await carried.receive()
                leading = await carried.leading()
                if answer is None or await carried.receive() is not None:
                    raise errors.Internal("a unary call was answered without exactly one message")
                return answer
            finally:
                self.trailing = carried.trailing()
                carried.cancel()

        answer = await surrounded(around, observed, path, request, sent, timeout, stall, go)
        self._send_head(leading)
        self._send(answer)

    async def _streams(self, carried: CarriedStream, path: str, stall: float | None, name: str) -> None:
        sending = loops.aside(f"the requests of {path}", self._pump(carried))
        try:
            async with asyncio.timeout(stall) as limit:
                leading = await carried.leading()
            async with asyncio.timeout(stall) as limit:
                message = await self._first(carried, leading)
            self._send_head(leading)
            while message is not None:
                self._send(message)
                del message  # the next may take long to come
                await self._room()
                async with asyncio.timeout(stall) as limit:
                    message = await carried.receive()
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise silent(name, stall, error) from None
        except errors.NodeError:
            if self._broken is not None:
                raise self._broken from None
            raise
        finally:
            sending.cancel()
            self.trailing = carried.trailing()
            carried.cancel()

    async def _first(self, carried: CarriedStream, leading: Headers) -> bytes | None:
        """The first answer. The client gets the head before it, if it is not there yet. Of a call that has failed
        already it gets none, so that the call may be repeated.
        """
        receiving = loops.task("the first answer of a stream", carried.receive())
        try:
            for _ in range(2):
                await asyncio.sleep(0)
            if not receiving.done():
                self._send_head(leading)
            return await receiving
        finally:
            receiving.cancel()

    async def _pump(self, carried: CarriedStream) -> None:
        """Send what the client sends, then its half-close. The receiving side reports how the call ended."""
        try:
            while (request := await self._next()) is not None:
                await carried.send(request)
                del request
            await carried.done_sending()
        except errors.NodeError as error:
            if error is self._broken:
                carried.cancel()

    def tail(self, failure: errors.NodeError | None, *, told: bool) -> bytes:
        """The trailers that the client gets at the end; ``told`` says whether it gets what the root of the trace is
        told.
        """
        if failure is not None:
            return refusal(failure, [(TOLD, self.trailing[TOLD])] if told else [])
        pairs = [(name, value) for name, value in self.trailing.items() if told or name != TOLD]
        return headers.status(0, "", pairs) if pairs else OK

    # -- the client's side

    async def _next(self) -> bytes | None:
        """The client's next message; None at the end of its requests."""
        while not self._requests:
            if self._broken is not None:
                raise self._broken
            if self._ended:
                if self._assembler.finished():
                    return None
                self._broken = errors.Internal("the client ended its stream in the middle of a message")
                raise self._broken
            self._reader = self._link.loop.create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        request = self._requests.popleft()
        self._waiting -= len(request) + MESSAGE_COST
        self._give_back()
        return request

    def _give_back(self) -> None:
        if self._withheld and self._waiting < HIGH_WATER:
            withheld, self._withheld = self._withheld, 0
            self._link.consumed(self._stream, withheld)

    def _send_head(self, leading: Headers) -> None:
        if not self.answered:
            self.answered = True
            block = HEAD + headers.block(headers.metadata(leading.items())) if leading else HEAD
            self._link.connection.send_head(self._stream, block)
            self._link.flush_soon()

    def _send(self, message: bytes) -> None:
        self.size += len(message) + messages.PREFIX.size
        self._link.connection.send(self._stream, messages.prefix(message), message)
        self._link.flush_soon()

    async def _room(self) -> None:
        """Wait until the client has read."""
        stream = self._stream
        while stream.queued > (HIGH_WATER if client_of(stream).reads else 0) and stream.owner is not None:
            stream.low = HIGH_WATER // 2
            self._writer = self._link.loop.create_future()
            try:
                await self._writer
            finally:
                self._writer = None
                stream.low = -1


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
