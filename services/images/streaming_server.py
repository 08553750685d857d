"""containerd.services.streaming.v1: streams of objects between a client and a transfer.

A client opens a stream, names it in its first object, and passes the id to Transfer. The transfer finds the stream in
:class:`Streams` and uses it for its purpose: progress events to the client, questions for credentials and their
answers, or bytes under flow control. A stream lasts until its transfer closes it or the client goes away.

*Bytes*: the receiver allows a number of bytes (WindowUpdate), and the sender sends no more than that (Data).
containerd's receivers allow 64 KiB at first, and as many again whenever less than that is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from typing import TypeVar

from google.protobuf.any_pb2 import Any
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from api.containerd.services.streaming.v1 import streaming_pb2 as pb
from api.containerd.services.streaming.v1 import streaming_stubs
from api.containerd.types.transfer.streaming_pb2 import Data, WindowUpdate
from services.kit import any as kit_any
from services.kit import errors, loops
from services.kit.rpc import Call

log = logging.getLogger(__name__)

M = TypeVar("M", bound=Message)

RECEIVE_AHEAD = 16
"""Objects that a client may send before the transfer takes them; bytes come in pieces of 32 KiB."""
SEND_AHEAD = 8
OFFERED = 4096
"""Objects that may wait for a client that does not take them; later ones are dropped."""

WINDOW = 1 << 20
"""Bytes that a client may send ahead. containerd allows 64 to 128 KiB; each hop here takes longer than containerd's."""
BLOCK = 1 << 16
"""Bytes in one message to a client: what containerd's receivers allow at a time."""
DRAIN_SECONDS = 1.0
"""Time for a client to take the last bytes of a stream."""


class Stream:
    """An open stream, seen from the service."""

    def __init__(self, namespace: str, name: str, drain: float = DRAIN_SECONDS) -> None:
        """``drain``: seconds that the client may take for the last bytes."""
        self.namespace = namespace
        self.name = name
        self.drain = drain
        self._received: deque[Any] = deque()
        self._arrived = asyncio.Event()
        self._taken = asyncio.Event()
        self._complete = False  # the client has said that it sends no more
        self._sent: deque[Any] = deque()
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._passing = False  # the transport has an object
        self._ended = False  # by the service
        self._gone = False  # the client, or the whole call

    async def receive(self) -> Any | None:
        """The client's next object; None if the client has said that there are no more; Cancelled if it went away."""
        while not self._received:
            if self._complete:
                return None
            if self._gone:
                raise errors.Cancelled(f"stream {self.name} was closed by the client")
            self._arrived.clear()
            await self._arrived.wait()
        self._taken.set()
        return self._received.popleft()

    async def send(self, message: Message) -> None:
        """Send an object to the client, once there is room for it. Cancelled if the client went away or the stream was
        closed.
        """
        while len(self._sent) >= SEND_AHEAD and not self._over:
            self._room.clear()
            await self._room.wait()
        if self._over:
            raise errors.Cancelled(f"stream {self.name} is closed")
        self._put(message)

    def offer(self, message: Message) -> None:
        """Send an object to the client, unless too many are waiting, or the client went away."""
        if not self._over and len(self._sent) < OFFERED:
            self._put(message)

    async def finish(self) -> None:
        """End the stream once the transport has everything that was sent, or after :attr:`drain` seconds.

        Progress has no end of its own: ctr shows only what reached it before the answer to its Transfer.
        """
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.drain):
                    while (self._sent or self._passing) and not self._over:
                        self._room.clear()
                        await self._room.wait()
        finally:
            self.close()

    def close(self) -> None:
        """End the stream after the objects that were sent."""
        self._ended = True
        self._changed.set()
        self._room.set()

    @property
    def _over(self) -> bool:
        return self._ended or self._gone

    def _put(self, message: Message) -> None:
        self._sent.append(kit_any.pack(message))
        self._changed.set()

    # ------------------------------------------------------------------------------------------ for the servicer

    async def outgoing(self) -> AsyncIterator[Any]:
        """The objects for the client, until the stream is closed."""
        while True:
            while self._sent:
                self._passing = True
                yield self._sent.popleft()
                self._passing = False
                self._room.set()
            if self._ended:
                return
            self._changed.clear()
            await self._changed.wait()

    async def take(self, requests: AsyncIterator[Any]) -> None:
        """Queue the client's objects for the receiver."""
        try:
            async for value in requests:
                while len(self._received) >= RECEIVE_AHEAD:
                    self._taken.clear()
                    await self._taken.wait()
                self._received.append(value)
                self._arrived.set()
            self._complete = True
            self._arrived.set()
        finally:
            if not self._complete:  # otherwise the receiver would wait for ever
                self.lost()

    def lost(self) -> None:
        """The call is over."""
        self._gone = True
        self._arrived.set()
        self._room.set()


class Streams:
    """The open streams, by namespace and id."""

    def __init__(self, *, drain: float = DRAIN_SECONDS) -> None:
        self.drain = drain
        """Seconds that a client may take for the last bytes of a stream."""
        self._open: dict[tuple[str, str], Stream] = {}

    def __len__(self) -> int:
        return len(self._open)

    def get(self, namespace: str, name: str) -> Stream:
        """The stream with this id; NotFound."""
        stream = self._open.get((namespace, name))
        if stream is None:
            raise errors.NotFound
        return stream

    @contextlib.contextmanager
    def registered(self, stream: Stream) -> Iterator[None]:
        """Register the stream under its id during the block; AlreadyExists if the id is taken."""
        key = (stream.namespace, stream.name)
        if key in self._open:
            raise errors.AlreadyExists
        self._open[key] = stream
        try:
            yield
        finally:
            del self._open[key]


class StreamingServicer:
    """Opens streams."""

    SERVICE = streaming_stubs.STREAMING

    def __init__(self, streams: Streams) -> None:
        self._streams = streams

    async def Stream(self, requests: AsyncIterator[Any], call: Call) -> AsyncIterator[Any]:
        first = await anext(requests, None)
        if first is None:
            return
        stream = Stream(call.optional_namespace, unpacked(first, pb.StreamInit).id, self._streams.drain)
        with self._streams.registered(stream):
            taking = loops.task(f"what the client sends on stream {stream.name}", stream.take(requests))
            try:
                yield kit_any.pack(Empty())
                async for value in stream.outgoing():
                    yield value
            finally:
                stream.lost()
                taking.cancel()
                await asyncio.wait((taking,))


def unpacked(value: Any, cls: type[M]) -> M:
    """The message in ``value``; InvalidArgument if it is not a ``cls``."""
    message = kit_any.unpack(value, cls)
    if message is None:
        raise errors.InvalidArgument(f"can't unmarshal type {value.type_url} to {cls.DESCRIPTOR.full_name}")
    return message


class ByteSource:
    """The bytes that a client sends on a stream, in pieces as they come; an async iterator."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._window = 0
        self.ended = False
        """Whether the client has said that there are no more."""
        self.bytes = 0
        """Bytes that came."""
        self.waited = 0.0
        """Seconds for which the client was waited for."""

    def __aiter__(self) -> ByteSource:
        return self

    async def __anext__(self) -> bytes:
        while True:
            if self._window <= WINDOW // 2 and not self.ended:
                more = WINDOW - self._window
                with contextlib.suppress(errors.Cancelled):  # receive raises the reason
                    await self._stream.send(WindowUpdate(update=more))
                    self._window += more
            begun = time.monotonic()
            try:
                value = await self._stream.receive()
            finally:
                self.waited += time.monotonic() - begun
            if value is None:
                self.ended = True
                raise StopAsyncIteration
            data = kit_any.unpack(value, Data)
            if data is not None and data.data:
                self._window -= len(data.data)
                self.bytes += len(data.data)
                return data.data


class ByteSink:
    """Sends bytes to a client: a :class:`~services.images.transfer.Sink`.

    Messages end at multiples of :data:`BLOCK`. containerd's receivers send a window update once they have passed on a
    block. So the update after the last block shows that the client has everything: otherwise a client whose transfer
    has returned might exit with bytes still on their way to its file.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.bytes = 0
        """Bytes that were sent."""
        self.waited = 0.0
        """Seconds for which the client was waited for."""
        self.drain = stream.drain
        self._block = bytearray()
        self._sent = 0
        self._allowed = 0
        self._more = asyncio.Event()
        self._lost: errors.NodeError | None = None
        self._listening = loops.aside(f"the window of stream {stream.name}", self._listen())

    async def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            piece = view[: BLOCK - len(self._block)]
            self._block += piece
            view = view[len(piece) :]
            if len(self._block) == BLOCK:
                await self.flush()

    async def close(self) -> None:
        """Return when the client has taken everything, or after :attr:`Stream.drain` seconds."""
        try:
            if self._lost is None:
                await self.flush()
                with contextlib.suppress(TimeoutError, errors.NodeError):
                    async with asyncio.timeout(self.drain):
                        await self._allowance(BLOCK)
        finally:
            self.abandon()

    def abandon(self) -> None:
        """End the stream as it is."""
        self._listening.cancel()
        self._stream.close()

    async def flush(self) -> None:
        """Send the incomplete block. After this, :meth:`close` cannot tell whether the client has everything."""
        data = memoryview(bytes(self._block))
        self._block.clear()
        while data:
            await self._allowance(1)
            piece = data[: self._allowed - self._sent]
            await self._stream.send(Data(data=bytes(piece)))
            self._sent += len(piece)
            self.bytes += len(piece)
            data = data[len(piece) :]

    async def _allowance(self, bytes_: int) -> None:
        while self._allowed - self._sent < bytes_:
            if self._lost is not None:
                raise self._lost
            self._more.clear()
            begun = time.monotonic()
            try:
                await self._more.wait()
            finally:
                self.waited += time.monotonic() - begun

    async def _listen(self) -> None:
        self._lost = await self._end_of_updates()
        self._more.set()

    async def _end_of_updates(self) -> errors.NodeError:
        """Receive window updates until they end. Returns the reason of the end."""
        try:
            while (value := await self._stream.receive()) is not None:
                update = kit_any.unpack(value, WindowUpdate)
                if update is not None:
                    self._allowed += update.update
                    self._more.set()
        except errors.NodeError as error:
            return error
        except Exception:  # otherwise the writer would wait for ever
            log.exception("the window of stream %s", self._stream.name)
            return errors.defect(f"stream {self._stream.name}")
        return errors.Cancelled(f"stream {self._stream.name}: the client allows no more bytes")
