"""ttrpc for handlers and callers that know ``kit.rpc``: the same servicers, the same :class:`Call` and the same errors,
on another wire.

Shims speak ttrpc (github.com/containerd/ttrpc, PROTOCOL.md). One unix socket carries frames: a ten-byte header (length,
stream id, type, flags; the numbers are big-endian) and a protobuf, a Request or a Response. There is no Python library
for it. This module has the unary calls of the protocol, which are all that shims and their events use; a request that
opens a stream is answered UNIMPLEMENTED.

Headers are those of ``kit.rpc``; on this wire the namespace is ``containerd-namespace-ttrpc``. The protocol has no
cancellation: a caller that stops waiting only stops waiting, and a late answer is dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from google.protobuf import message_factory
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import DecodeError
from google.rpc import status_pb2

from api.ttrpc import ttrpc_pb2 as pb
from services.kit import errors, logs, loops, observer, sockets
from services.kit.call import CURRENT, NAMESPACE, Call, Servicer, limits, method_path, shorter

log = logging.getLogger(__name__)

MESSAGE_LIMIT = 4 << 20
_NAMESPACE = "containerd-namespace-ttrpc"
_HEADER = struct.Struct(">IIBB")
_REQUEST, _RESPONSE, _DATA = 1, 2, 3
_REMOTE_CLOSED, _REMOTE_OPEN = 1, 2
_DETAILS = "grpc-status-details-bin"


def frame(stream: int, kind: int, data: bytes, flags: int = 0) -> bytes:
    """One frame. ResourceExhausted, in ttrpc's words, if ``data`` is over the limit."""
    if len(data) > MESSAGE_LIMIT:
        raise _oversized(len(data))
    return _HEADER.pack(len(data), stream, kind, flags) + data


def _oversized(length: int) -> errors.NodeError:
    return errors.ResourceExhausted.verbatim(f"message length {length} exceed maximum message size of {MESSAGE_LIMIT}")


class _Frames(asyncio.Protocol):
    """Cuts what arrives into frames. A frame over the limit is skipped and reported. A length over 16 MiB is not ttrpc
    at all, and ends the connection.
    """

    def __init__(self) -> None:
        self.transport: Any = None
        self._buffer = bytearray()
        self._skip = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if self._skip:
            dropped = min(self._skip, len(data))
            self._skip -= dropped
            data = data[dropped:]
        buffer = self._buffer
        buffer += data
        at = 0
        while len(buffer) - at >= _HEADER.size:
            length, stream, kind, flags = _HEADER.unpack_from(buffer, at)
            end = at + _HEADER.size + length
            if length > MESSAGE_LIMIT:
                if length >= 16 << 20:
                    log.warning("closing a connection that does not speak ttrpc")
                    self.transport.abort()
                    buffer.clear()
                    return
                self.oversized(stream, kind, length)
                self._skip = max(0, end - len(buffer))
                at = min(end, len(buffer))
                continue
            if len(buffer) < end:
                break
            self.received(stream, kind, flags, bytes(buffer[at + _HEADER.size : end]))
            at = end
        del buffer[:at]

    def received(self, stream: int, kind: int, flags: int, data: bytes) -> None:
        raise NotImplementedError

    def oversized(self, stream: int, kind: int, length: int) -> None:
        raise NotImplementedError


# ---------------------------------------------------------------------------------------------- calling


class Channel(_Frames):
    """One connection to a ttrpc server, made by the first call or by :meth:`connect`. Once closed, by either side, it
    stays closed.

    ``path`` is that of a socket, or an abstract socket's name after a zero character. Any number of calls may be made
    at once. When the connection ends, every waiting call fails with Unavailable, ``ttrpc: closed``, and ``on_close`` is
    called, once.
    """

    def __init__(self, path: Path | str, name: str = "", *, on_close: Callable[[], None] | None = None) -> None:
        super().__init__()
        self.address = str(path)
        self.name = name or Path(self.address).name
        self.closed = False
        self._on_close = on_close
        self._next = 1
        self._pending: dict[int, asyncio.Future[pb.Response]] = {}
        self._connecting: asyncio.Task[None] | None = None
        self._gone = asyncio.Event()

    async def __aenter__(self) -> Channel:
        await self.connect()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def connect(self, timeout: float = 5.0) -> None:
        """Connect within ``timeout`` seconds. Raises Unavailable, whose cause is the OSError, if there was one. When
        this returns, the connection has not ended, and ``on_close`` has not been called.
        """
        if self.transport is not None and not self.closed:
            return
        if self.closed:
            raise _closed()
        if self._connecting is None:
            self._connecting = loops.task(f"connecting to {self.address!r}", self._connect())
        try:
            async with asyncio.timeout(timeout):
                await asyncio.shield(self._connecting)
        except TimeoutError as error:
            raise errors.Unavailable(f"connect to {self.address!r}: timed out") from error
        except OSError as error:
            self._connecting = None
            raise errors.Unavailable(f"connect to {self.address!r}: {errors.words(error)}") from error
        if self.closed:  # a server that is ending accepts a connection, and ends it before this is reported
            raise _closed()

    async def _connect(self) -> None:
        await asyncio.get_running_loop().create_unix_connection(lambda: self, self.address)

    async def close(self) -> None:
        """End the connection; waiting calls fail as if the server had gone."""
        if self._connecting is not None and not self._connecting.done():
            self._connecting.cancel()
        if self.transport is None:
            self._end()
            return
        self.transport.abort()
        await self._gone.wait()

    async def wait_closed(self) -> None:
        """Wait until the connection has ended."""
        await self._gone.wait()

    def client(self, service: ServiceDescriptor) -> Client:
        """A client for a service's unary methods, by their names."""
        return Client(self, service)

    async def unary(
        self,
        path: str,
        request: Any,
        headers: Mapping[str, str | bytes],
        timeout: float | None,
        encode: Any = None,
        decode: Any = None,
    ) -> Any:
        """One call of ``/package.Service/Method``, like ``kit.rpc.Channel.unary``: ``timeout`` in seconds, None for no
        limit.
        """
        with observer.Calling(path, headers) as call:
            observer.over_ttrpc(call.observed)
            sent = request if encode is None else encode(request)
            call.size = len(sent)
            received = await self._call(path, sent, {**headers, **dict(call.headers)}, timeout)
            call.size += len(received)
            return received if decode is None else decode(received)

    async def _call(
        self, path: str, payload: bytes, headers: Mapping[str, str | bytes], timeout: float | None
    ) -> bytes:
        if self.transport is None or self.closed:
            await self.connect(5.0 if timeout is None else min(timeout, 5.0))
        service, _, method = path.lstrip("/").rpartition("/")
        message = pb.Request(
            service=service,
            method=method,
            payload=payload,
            timeout_nano=max(1, int(timeout * 1e9)) if timeout is not None else 0,
        )
        for key, value in headers.items():
            if isinstance(value, str):
                message.metadata.add(key=_NAMESPACE if key == NAMESPACE else key, value=value)
        data = frame(self._next, _REQUEST, message.SerializeToString())
        stream, self._next = self._next, self._next + 2
        future = self._pending[stream] = asyncio.get_running_loop().create_future()
        try:
            self.transport.write(data)
            async with asyncio.timeout(timeout):
                response = await future
        except TimeoutError:
            raise errors.DeadlineExceeded(f"{path}: {self.name} did not answer within {timeout:.3g} s") from None
        finally:
            self._pending.pop(stream, None)
        if response.status.code:
            trailers = ((_DETAILS, response.status.SerializeToString()),) if response.status.details else ()
            raise errors.from_status(response.status.code, response.status.message, trailers)
        return bytes(response.payload)

    # -- asyncio.Protocol

    def received(self, stream: int, kind: int, flags: int, data: bytes) -> None:
        future = self._pending.get(stream)
        if future is None or future.done():
            return  # its caller does not wait any more
        if kind != _RESPONSE:
            future.set_exception(errors.Unknown(f"unexpected ttrpc message of type {kind}: protocol error"))
            return
        try:
            future.set_result(pb.Response.FromString(data))
        except DecodeError as error:
            future.set_exception(errors.Unknown(f"malformed ttrpc response: {error}"))

    def oversized(self, stream: int, kind: int, length: int) -> None:
        future = self._pending.get(stream)
        if future is not None and not future.done():
            future.set_exception(_oversized(length))

    def connection_lost(self, error: Exception | None) -> None:
        self._end()

    def _end(self) -> None:
        if self.closed:
            return
        self.closed = True
        self._gone.set()
        for future in self._pending.values():
            if not future.done():
                future.set_exception(_closed())
        if self._on_close is not None:
            self._on_close()


def _closed() -> errors.NodeError:
    return errors.Unavailable.verbatim("ttrpc: closed")


class Client:
    """The unary methods of one service: ``await client.State(request, headers=..., timeout=...)``, exactly as
    ``kit.rpc.Client``.
    """

    def __init__(self, channel: Channel, service: ServiceDescriptor) -> None:
        self._channel = channel
        self._service = service
        self._methods = {m.name: m for m in service.methods if not m.client_streaming and not m.server_streaming}

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        method = self._methods.get(name)
        if method is None:
            raise AttributeError(f"{self._service.full_name} has no unary method {name}")
        path = method_path(method)
        encode = message_factory.GetMessageClass(method.input_type).SerializeToString
        decode = message_factory.GetMessageClass(method.output_type).FromString

        async def unary(request: Any, *, headers: Mapping[str, str | bytes] = {}, timeout: float | None = -1.0) -> Any:
            return await self._channel.unary(path, request, headers, shorter(*limits(timeout, None)), encode, decode)

        setattr(self, name, unary)
        return unary


# ---------------------------------------------------------------------------------------------- serving


class Server:
    """A running server on one unix socket, made by :func:`serving`."""

    def __init__(self, servicers: Iterable[Servicer]) -> None:
        self.methods: dict[tuple[str, str], tuple[Any, Any, Any]] = {}
        self.services: set[str] = set()
        self.connections: set[_Connection] = set()
        self.running = loops.Tasks()
        for servicer in servicers:
            self.services.add(servicer.SERVICE.full_name)
            for method in servicer.SERVICE.methods:
                handler = getattr(servicer, method.name, None)
                if handler is not None and not method.client_streaming and not method.server_streaming:
                    self.methods[servicer.SERVICE.full_name, method.name] = (
                        handler,
                        message_factory.GetMessageClass(method.input_type).FromString,
                        message_factory.GetMessageClass(method.output_type).SerializeToString,
                    )

    async def answer(self, request: pb.Request) -> pb.Response:
        """The response to one request. Every failure is a status in it."""
        try:
            payload = await self._call(request)
        except errors.NodeError as error:
            return _failure(error)
        if len(payload) > MESSAGE_LIMIT - 64:
            return _failure(_oversized(len(payload)))
        return pb.Response(payload=payload)

    async def _call(self, request: pb.Request) -> bytes:
        headers: dict[str, str | bytes] = {}
        for pair in request.metadata:
            headers.setdefault(pair.key.lower(), pair.value)
        if _NAMESPACE in headers:
            headers[NAMESPACE] = headers.pop(_NAMESPACE)
        path = f"/{request.service}/{request.method}"
        call = Call(path, headers)
        observed = observer.began("server", path, headers)
        observer.over_ttrpc(observed)
        try:
            result = await self._answer(request, call)
        except Exception as error:
            failure = (
                error
                if isinstance(error, errors.NodeError)
                else errors.DeadlineExceeded(f"{path}: not done in the time that its caller allowed")
                if isinstance(error, TimeoutError)
                else errors.of_machine(error, path)
            )
            if failure is None:
                log.exception("%s failed unexpectedly", path)
                observed.ended(errors.Internal.code, str(error), call.size, error)
                raise errors.defect(path) from None
            observed.ended(failure.code, str(failure), call.size)
            logs.failed(path, str(headers.get(NAMESPACE, "")), failure)
            raise failure from None
        except BaseException:  # its client is gone
            observed.ended(errors.Cancelled.code, "cancelled", call.size)
            raise
        observed.ended(0, "", call.size)
        return result

    async def _answer(self, request: pb.Request, call: Call) -> bytes:
        found = self.methods.get((request.service, request.method))
        if found is None:
            what = f"method {request.method}" if request.service in self.services else f"service {request.service}"
            raise errors.Unimplemented.verbatim(what)
        handler, decode, encode = found
        call.size = len(request.payload)
        try:
            message = decode(request.payload)
        except DecodeError as error:
            raise errors.Internal(f"ttrpc: error unmarshalling payload: {error}") from None
        left = request.timeout_nano / 1e9 if request.timeout_nano > 0 else None
        if left is not None:
            call.deadline = time.monotonic() + left
        CURRENT.set(call)  # each request is a task of its own, so no other sees it
        async with asyncio.timeout(left):
            result: bytes = encode(await handler(message, call))
        call.size += len(result)
        return result


def _failure(error: errors.NodeError) -> pb.Response:
    for key, value in error.trailers:
        if key == _DETAILS and isinstance(value, bytes):
            return pb.Response(status=status_pb2.Status.FromString(value))
    return pb.Response(status=status_pb2.Status(code=error.code, message=str(error)[: 32 << 10]))


class _Connection(_Frames):
    def __init__(self, server: Server) -> None:
        super().__init__()
        self._server = server
        self._last = 0
        self._tasks = loops.Tasks()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._server.connections.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._server.connections.discard(self)
        for task in self._tasks:
            task.cancel()

    def pause_writing(self) -> None:
        """The peer does not read its answers: take no more requests from it."""
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.transport.resume_reading()

    def received(self, stream: int, kind: int, flags: int, data: bytes) -> None:
        if stream % 2 != 1:
            self._refuse(stream, "StreamID must be odd for client initiated streams")
        elif kind == _DATA:
            self._refuse(stream, "StreamID is no longer active")
        elif kind != _REQUEST:
            return  # reserved for future versions of the protocol
        elif stream <= self._last:
            self._refuse(stream, "StreamID cannot be re-used and must increment")
        else:
            self._last = stream
            try:
                request = pb.Request.FromString(data)
            except DecodeError as error:
                self._refuse(stream, f"unmarshal request error: {error}")
                return
            if flags & (_REMOTE_OPEN | _REMOTE_CLOSED):
                self._send(stream, _failure(errors.Unimplemented(f"stream {request.service}/{request.method}")))
                return
            self._tasks.keep(
                self._server.running.start(
                    f"the answer to {request.service}/{request.method}", self._answer(stream, request)
                )
            )

    def oversized(self, stream: int, kind: int, length: int) -> None:
        self._last = max(self._last, stream)
        self._send(stream, _failure(_oversized(length)))

    async def _answer(self, stream: int, request: pb.Request) -> None:
        self._send(stream, await self._server.answer(request))

    def _refuse(self, stream: int, why: str) -> None:
        self._send(stream, _failure(errors.InvalidArgument.verbatim(why)))

    def _send(self, stream: int, response: pb.Response) -> None:
        if not self.transport.is_closing():
            self.transport.write(frame(stream, _RESPONSE, response.SerializeToString()))


@contextlib.asynccontextmanager
async def serving(
    path: Path, servicers: Iterable[Servicer], *, grace: float = 5.0, look: float = sockets.LOOK
) -> AsyncIterator[Server]:
    """Serve on a unix socket (mode 0600) until the block ends, then let running calls end within ``grace`` seconds.
    ``look`` is as in ``kit.rpc.serving``.

    As with ``kit.rpc.serving``, the caller holds the lock of the directory, and so may replace the socket.
    """
    sockets.check_path(path)
    server = Server(servicers)
    listener: asyncio.Server | None = None

    async def listen() -> None:
        nonlocal listener
        if listener is not None:
            listener.close()  # first: libuv removes the path that it bound
        path.unlink(missing_ok=True)
        mask = os.umask(0o177)
        try:
            listener = await asyncio.get_running_loop().create_unix_server(
                lambda: _Connection(server), str(path), backlog=1024
            )
        finally:
            os.umask(mask)

    await listen()
    watching = sockets.watching(path, listen, look)
    try:
        yield server
    finally:
        watching.cancel()
        if listener is not None:
            listener.close()
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        await server.running.wait(grace)
        for connection in list(server.connections):
            connection.transport.close()


__all__ = ["MESSAGE_LIMIT", "Channel", "Client", "Server", "frame", "serving"]
