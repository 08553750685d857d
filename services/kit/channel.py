"""Calls to another process: a :class:`Channel` to it, a :class:`Client` for each of its services, a :class:`Stream` for
each streaming call.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, overload

from google.protobuf import message_factory
from google.protobuf.descriptor import ServiceDescriptor

from services.kit import chosen, errors, observer
from services.kit.addresses import Address
from services.kit.around import Around, surrounded, surrounded_stream
from services.kit.call import (
    CURRENT,
    STALL,
    TOGETHER,
    TOLD,
    UNARY,
    Arity,
    Headers,
    Metadata,
    limits,
    method_path,
    shorter,
)
from services.kit.observer import Observed
from services.kit.transport import CarriedStream, Carrier, Pings, same

T = TypeVar("T")
Sent = TypeVar("Sent")
Got = TypeVar("Got")

if TYPE_CHECKING:
    from services.kit.many import Gathering

    class Service(ServiceDescriptor, Generic[T]):
        """A service with clients of type ``T``, as the stubs beside a .proto file say."""


class Stream(Generic[Sent, Got]):
    """An open streaming call to another process, which sends and receives messages of these types. Use it as ``async
    with``; leaving the block early cancels the call.
    """

    __slots__ = ("_carried", "_decode", "_encode", "_ended", "_observed", "_size")

    def __init__(
        self, carried: CarriedStream, observed: Observed, encode: Callable[[Any], bytes], decode: Callable[[bytes], Any]
    ) -> None:
        self._carried = carried
        self._observed = observed
        self._size = 0
        self._encode = encode
        self._decode = decode
        self._ended = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._finish()

    def _finish(self) -> None:
        if not self._ended:
            self._ended = True
            self._carried.cancel()
            self._observed.left(self._size)

    def _tell(self) -> None:
        if told := self._carried.trailing().get(TOLD):
            observer.told(told)

    def _failed(self, error: errors.NodeError) -> None:
        if not self._ended:
            self._ended = True
            self._tell()
            self._observed.ended(error.code, str(error), self._size)

    async def send(self, message: Sent) -> None:
        """Send one message. If the call has ended, raise its error."""
        try:
            data = self._encode(message)
            self._size += len(data)
            await self._carried.send(data)
        except errors.NodeError as error:
            self._failed(error)
            raise

    async def done_sending(self) -> None:
        """Half-close: announce that we send no more messages."""
        try:
            await self._carried.done_sending()
        except errors.NodeError as error:
            self._failed(error)
            raise

    async def receive(self) -> Got | None:
        """The next message, or None at the end. Raises the status if it is not OK."""
        call = CURRENT.get()
        if call is not None:
            call.waits(1)
        try:
            message = await self._carried.receive()
        except errors.NodeError as error:
            self._failed(error)
            raise
        finally:
            if call is not None:
                call.waits(-1)
        if message is not None:
            self._size += len(message)
            decoded: Got = self._decode(message)
            return decoded
        if not self._ended:
            self._ended = True
            self._tell()
            self._observed.ended(0, "", self._size)
        return None

    async def leading(self) -> Headers:
        """The metadata before the first message; waits for it."""
        return await self._carried.leading()

    def trailing(self) -> Headers:
        """The metadata that came with the status; empty before that."""
        trailing = self._carried.trailing()
        return {k: v for k, v in trailing.items() if k != TOLD} if TOLD in trailing else trailing

    def __aiter__(self) -> AsyncIterator[Got]:
        return self._messages()

    async def _messages(self) -> AsyncIterator[Got]:
        try:
            while (message := await self.receive()) is not None:
                yield message
        finally:
            self._finish()


class Channel:
    """A connection to one process, which may be down and come back. Make it once, and close it with :meth:`close`."""

    def __init__(self, address: Path | str | Address, name: str = "", *, pings: Pings = "calls") -> None:
        """``pings`` says when a hung peer is noticed, within 2 s: "always", or only during "calls" (for our servers),
        or "never" (for other servers).

        grpc-go takes a ping each second for abuse, and ends the connection (too_many_pings). With such servers a call
        needs a deadline of its own.
        """
        self._where = address
        self.address = str(address)
        self.name = name or Path(self.address).stem
        self.around: Around | None = None
        """Asked for each call that begins from now on, if it is set."""
        self._pings: Pings = pings
        self._opened: Carrier | None = None
        self._gathering: Gathering | None = None
        self._clients: dict[ServiceDescriptor, Client] = {}

    @property
    def ours(self) -> bool:
        """Whether the peer is a server of this kit."""
        return self._pings != "never"

    @property
    def watched(self) -> bool:
        """Whether the peer keeps the stall of streaming calls."""
        return self.ours and self.carrier.watches_streams

    @property
    def carrier(self) -> Carrier:
        """The transport's side of the channel. It is made within the loop that uses it."""
        if self._opened is None:
            self._opened = chosen.carrier()(self._where, self.name, self._pings)
        return self._opened

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        if self._opened is not None:
            await self._opened.close()

    @overload
    def client(self, service: Service[T]) -> T: ...
    @overload
    def client(self, service: ServiceDescriptor) -> Any: ...
    def client(self, service: ServiceDescriptor) -> Any:
        """A :class:`Client` that calls a service's methods by their names. The stubs beside the .proto file say what
        each method takes and answers. The client is made once, so asking again is cheap.
        """
        client = self._clients.get(service)
        if client is None:
            client = self._clients[service] = Client(self, service)
        return client

    @property
    def trouble(self) -> str:
        """Why the peer is not connected, as far as that is known: the last attempt's failure; else empty."""
        return "" if self._opened is None else self._opened.trouble

    def connected(self) -> bool:
        """Whether the peer is known to be connected now. Starts to connect if it is not."""
        return self.carrier.connected()

    async def connections(self) -> AsyncIterator[bool]:
        """Whether the peer is connected: now, and again whenever that may have changed. Connects while it is
        iterated.
        """
        state = self.connected()
        while True:
            yield state
            # compares with the state just yielded, so that no change in between is lost
            state = await self.carrier.changed(state)

    async def wait_connected(self, seconds: float) -> bool:
        """Wait until the peer is connected, for at most ``seconds``."""
        try:
            async with asyncio.timeout(seconds):
                # let the loop first notice a connection that was lost while it did not run
                for _ in range(2):
                    await asyncio.sleep(0)
                while not self.connected():
                    await self.carrier.changed(False)
        except TimeoutError:
            return False
        return True

    async def reached(self, seconds: float) -> None:
        """Like :meth:`wait_connected`, but raise Disconnected, naming the peer, if it is not connected in time. A call
        that is made all the same would wait for it once more.
        """
        if not self.connected() and not await self.wait_connected(seconds):
            why = self.trouble or f"nothing answers on {self.address}"
            raise errors.Disconnected(f"service {self.name} is not reachable ({why})")

    async def unary(
        self,
        path: str,
        request: Any,
        headers: Headers,
        timeout: float | None,
        encode: Callable[[Any], bytes] = same,
        decode: Callable[[bytes], Any] = same,
        *,
        stall: float | None = None,
        together: bool = False,
    ) -> Any:
        """Make one unary call. It may take ``timeout`` seconds, and make no progress for ``stall`` seconds; None is no
        limit. A server that is not ours cannot tell progress, so there the stall limits the call's duration. With
        ``together`` it may be sent with others of this turn of the loop, see ``kit.many``.
        """
        with observer.Calling(path, headers) as call:
            sent = encode(request)
            call.size = len(sent)
            along = tuple(headers.items())
            if stall is not None:
                if self.ours:
                    along = (*along, (STALL, f"{stall:g}"))
                else:
                    timeout = shorter(timeout, stall)
            if self.around is not None:
                received = await self._surrounded(self.around, call, path, sent, along, timeout, stall, together)
            elif (together or TOGETHER.get()) and self.ours:
                received = await self._gathered().unary(path, sent, along, call.headers, timeout)
            else:
                received = await self.carrier.unary(path, sent, (*along, *call.headers), timeout)
            call.size += len(received)
            return decode(received)

    async def _surrounded(
        self,
        around: Around,
        call: observer.Calling,
        path: str,
        request: bytes,
        metadata: Metadata,
        timeout: float | None,
        stall: float | None,
        together: bool,
    ) -> bytes:
        loop = asyncio.get_running_loop()
        end = None if timeout is None else loop.time() + timeout

        async def go() -> bytes:
            left = None if end is None else max(end - loop.time(), 0.001)
            if (together or TOGETHER.get()) and self.ours:
                return await self._gathered().unary(path, request, metadata, call.headers, left)
            return await self.carrier.unary(path, request, (*metadata, *call.headers), left)

        return await surrounded(around, call.observed, path, request, dict(metadata), timeout, stall, go)

    def _gathered(self) -> Gathering:
        if self._gathering is None:
            from services.kit.many import Gathering

            self._gathering = Gathering(self.carrier)
        return self._gathering

    def stream(
        self,
        path: str,
        headers: Headers,
        timeout: float | None = None,
        encode: Callable[[Any], bytes] = same,
        decode: Callable[[bytes], Any] = same,
        *,
        stall: float | None = None,
    ) -> Stream[Any, Any]:
        """Open a streaming call of any arity; on the wire all four are the same. For the limits see :meth:`unary`; a
        server that is not ours gets no stall.
        """
        observed = observer.began("client", path, headers)
        along = ((STALL, f"{stall:g}"),) if stall is not None and self.ours else ()
        carried = self.carrier.stream(path, (*headers.items(), *along, *observed.headers()), timeout)
        if self.around is not None:
            carried = surrounded_stream(self.around, observed, path, headers, carried)
        return Stream(carried, observed, encode, decode)


@dataclass(slots=True)
class _Bound:
    path: str
    arity: Arity
    encode: Any
    decode: Any


class Client:
    """The methods of one service in another process, by name.

    A unary method is awaited: ``await client.Info(request)``. A streaming method returns a :class:`Stream`. A server
    stream has sent its request already: ``async for r in client.Read(request)``.

    Keyword arguments: ``headers`` to send (default: none; pass ``call.passed_on()`` to act as the caller), ``timeout``
    and ``stall`` in seconds, and for unary methods ``together`` (:meth:`Channel.unary`). A unary call without a timeout
    has, within a handler, the time that its caller has left, and a stall of ``UNARY_STALL``; ``timeout=None`` lifts
    both limits.
    Failures are raised as :mod:`services.kit.errors`.
    """

    def __init__(self, channel: Channel, service: ServiceDescriptor) -> None:
        self._channel = channel
        self._methods = {
            m.name: _Bound(
                method_path(m),
                Arity(m.client_streaming, m.server_streaming),
                message_factory.GetMessageClass(m.input_type).SerializeToString,
                message_factory.GetMessageClass(m.output_type).FromString,
            )
            for m in service.methods
        }
        self._service = service

    def __getattr__(self, name: str) -> Any:
        bound = self._methods.get(name)
        if bound is None:
            raise AttributeError(f"{self._service.full_name} has no method {name}")
        call = self._unary(bound) if bound.arity == UNARY else self._streaming(bound)
        setattr(self, name, call)
        return call

    def _unary(self, bound: _Bound) -> Callable[..., Awaitable[Any]]:
        async def unary(
            request: Any,
            *,
            headers: Mapping[str, str | bytes] = {},
            timeout: float | None = -1.0,
            stall: float | None = None,
            together: bool = False,
        ) -> Any:
            timeout, stall = limits(timeout, stall)
            return await self._channel.unary(
                bound.path, request, headers, timeout, bound.encode, bound.decode, stall=stall, together=together
            )

        return unary

    def _streaming(self, bound: _Bound) -> Callable[..., Any]:
        if bound.arity.client_stream:

            def open_stream(
                *, headers: Mapping[str, str | bytes] = {}, timeout: float | None = None, stall: float | None = None
            ) -> Stream[Any, Any]:
                return self._channel.stream(bound.path, headers, timeout, bound.encode, bound.decode, stall=stall)

            return open_stream

        async def responses(
            request: Any,
            *,
            headers: Mapping[str, str | bytes] = {},
            timeout: float | None = None,
            stall: float | None = None,
        ) -> AsyncIterator[Any]:
            async with self._channel.stream(
                bound.path, headers, timeout, bound.encode, bound.decode, stall=stall
            ) as stream:
                await stream.send(request)
                await stream.done_sending()
                while (message := await stream.receive()) is not None:
                    yield message

        return responses
