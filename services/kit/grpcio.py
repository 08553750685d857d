"""Calls carried by grpcio: the second transport, the oracle for the wire's tests, and the fallback if the wire has a
bug.

Only ``kit.chosen`` imports this module, and nothing else imports grpc: it costs each process that does 26 MB and 160
ms.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from grpc._cython import cygrpc

from services.kit import errors, loops, observer, sockets
from services.kit.addresses import Address, address
from services.kit.around import silent
from services.kit.call import ERROR_LIMIT, MESSAGE_LIMIT, STOPPING, TOLD, UNARY, Call, Headers, Metadata, shorter
from services.kit.certificates import CertificateError, Certificates
from services.kit.relays import Elsewhere, Relay, relayed
from services.kit.transport import Answering, Method, Methods, Pings, Server

if TYPE_CHECKING:
    from services.kit.channel import Stream

log = logging.getLogger(__name__)

_COMMON = [
    ("grpc.max_receive_message_length", MESSAGE_LIMIT),
    ("grpc.max_send_message_length", MESSAGE_LIMIT),
    # The default soft limit turns an error message of 15 KB into RESOURCE_EXHAUSTED.
    ("grpc.max_metadata_size", 64 << 10),
    ("grpc.absolute_max_metadata_size", 128 << 10),
]
_SERVER = [
    *_COMMON,
    ("grpc.so_reuseport", 0),
    # Our own clients ping often, to notice a stopped peer; do not take that for abuse.
    ("grpc.http2.min_ping_interval_without_data_ms", 100),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.keepalive_permit_without_calls", 1),
]
_CLIENT = [
    *_COMMON,
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.keepalive_time_ms", 1000),
    ("grpc.keepalive_timeout_ms", 1000),
    ("grpc.http2.ping_timeout_ms", 1000),
    ("grpc.http2.max_pings_without_data", 0),
]

_STATUS = {code.value[0]: code for code in grpc.StatusCode}


# ---------------------------------------------------------------------------------------------- serving


class GrpcioServer(Server):
    """Servers of grpc.aio for our methods: one, and one more each time that the socket was removed, since a server that
    has started cannot listen at another place.
    """

    async def start(self, look: float = sockets.LOOK) -> None:
        self._servers: list[grpc.aio.Server] = []
        self._watching: asyncio.Task[None] | None = None
        await self._listen()
        if isinstance(self.address, Path):
            self._watching = sockets.watching(self.address, self._listen, look)

    async def _listen(self) -> None:
        """Listen with a new server. Connected clients stay connected."""
        server = grpc.aio.server(options=_SERVER)
        server.add_generic_rpc_handlers((_Handlers(self, self.methods),))
        if isinstance(self.address, str):
            port = server.add_insecure_port(self.address)
            self.address = f"{self.address.rpartition(':')[0]}:{port}"
        else:
            _bind(server, self.address)
        await server.start()
        self._servers.append(server)

    async def close(self, grace: float) -> None:
        if self._watching is not None:
            self._watching.cancel()
        await asyncio.gather(*(server.stop(grace) for server in self._servers))


def _bind(server: grpc.aio.Server, path: Path) -> None:
    path.unlink(missing_ok=True)
    mask = os.umask(0o177)  # the socket gives access to the node: it is its owner's only, from its first instant
    try:
        if not server.add_insecure_port(f"unix:{path}"):
            raise OSError(f"cannot listen on {path}")
    except RuntimeError as error:
        raise OSError(f"cannot listen on {path}: {error}") from error
    finally:
        os.umask(mask)


class _Handlers(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Finds the handler of a method: a servicer's, health's, or the relay's."""

    def __init__(self, server: GrpcioServer, methods: Methods) -> None:
        self._server = server
        self._methods = methods
        self._bound: dict[str, Any] = {}
        self._relayed: dict[str, Any] = {}

    def service(self, details: Any) -> Any:
        path = details.method
        method = self._methods.of_servicers(path, dict(details.invocation_metadata or ()))
        if method is not None:
            found = self._bound.get(path)
            if found is None:
                found = self._bound[path] = self._bind(method)
            return found
        relay = self._methods.relay
        found = self._relayed.get(path)
        if found is None and relay is not None:
            found = self._bind(_Relayed(self._methods, relay).method(path))
            if len(self._relayed) < 1000:  # method names come from clients
                self._relayed[path] = found
        return found

    def _bind(self, method: Method) -> Any:
        server = self._server

        async def single(request: Any, context: Any) -> Any:
            call = _call(method.path, context)
            answer = None
            with Answering(server, call, long=method.long, watched=not method.arity.client_stream) as answering:
                answer = await method.handler(request, call)
                await _send_leading(call, context)
            await _end(call, context, answering)
            return answer

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            call = _call(method.path, context)
            with Answering(server, call, long=method.long, watched=False) as answering:
                first = True
                async with contextlib.aclosing(method.handler(request, call)) as responses:
                    async for response in responses:
                        if first:
                            await _send_leading(call, context)
                            first = False
                        yield response
            await _end(call, context, answering)

        make = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }[method.arity]
        return make(stream if method.arity.server_stream else single, method.decode, method.whole)


def _call(path: str, context: Any) -> Call:
    headers: dict[str, str | bytes] = {}
    for key, value in context.invocation_metadata() or ():
        headers.setdefault(key.lower(), value)
    left = context.time_remaining()
    return Call(path, headers, None if left is None else time.monotonic() + left)


async def _send_leading(call: Call, context: Any) -> None:
    if call.leading:
        await context.send_initial_metadata(tuple(call.leading))


async def _end(call: Call, context: Any, answering: Answering) -> None:
    """Outside of the span, since grpcio aborts by an exception of its own, and the span's end may add a trailer."""
    error = answering.failure
    if error is None:
        if call.trailing:
            context.set_trailing_metadata(tuple(call.trailing))
    else:
        await context.abort(_STATUS[error.code], str(error)[:ERROR_LIMIT], (*call.trailing, *error.trailers))


class _Relayed:
    """Passes calls through, message by message, as bytes, since grpcio shows no frames."""

    def __init__(self, methods: Methods, relay: Relay) -> None:
        self._methods = methods
        self._relay = relay

    def method(self, path: str) -> Method:
        arity = self._relay.arity(path)
        bound = self._methods.coordinated(path, self._stream)
        if arity == UNARY:
            return Method(path, arity, self._unary, bound.decode, bound.encode, bound.long)
        return bound

    async def _unary(self, request: bytes, call: Call) -> bytes:
        return await relayed(self._relay.route(call), request, call)

    async def _stream(self, requests: AsyncIterator[bytes], call: Call) -> AsyncIterator[bytes]:
        handler = self._relay.coordinated(call)
        if handler is not None:
            async for answer in handler(requests, call):
                yield answer
            return
        route = self._relay.route(call)
        first, target = None, None
        if route.admit is not None:
            first = await anext(requests, None)
            if first is None:
                raise errors.InvalidArgument(f"{call.method} without a request")
            answers = await route.admit(first, call)
            if isinstance(answers, Elsewhere):
                target, answers = answers.upstream, answers.answers
            if answers is not None:
                for piece in answers:
                    yield bytes(piece)
                return
        upstream = target or route.hop.to(call.optional_namespace)
        channel = await upstream.ready(call)
        async with channel.stream(call.method, route.headers, shorter(route.timeout, call.remaining())) as stream:
            sending = loops.aside(f"the requests of {call.method}", _pump(first, requests, stream))
            try:
                while (message := await self._next(stream, upstream.name, route.stall)) is not None:
                    yield message
            finally:
                sending.cancel()

    async def _next(self, stream: Stream[bytes, bytes], name: str, stall: float | None) -> Any:
        try:
            async with asyncio.timeout(stall):
                return await stream.receive()
        except TimeoutError as error:
            raise silent(name, stall, error) from None


async def _pump(first: bytes | None, requests: AsyncIterator[bytes], stream: Stream[bytes, bytes]) -> None:
    """Send what the client sends, then its half-close. The end of the call ends this; the receiving side reports the
    error.
    """
    try:
        if first is not None:
            await stream.send(first)
        async for request in requests:
            await stream.send(request)
        await stream.done_sending()
    except errors.NodeError as error:
        log.debug("the upstream stopped reading: %s", error)


# ---------------------------------------------------------------------------------------------- calling


class GrpcioCarrier:
    """A grpc.aio channel."""

    watches_streams = False

    def __init__(self, where: Path | str | Address, name: str, pings: Pings) -> None:
        self._name = name
        self._address = address(where)
        self._options = [
            *(option for option in _CLIENT if pings != "never" or option[0] != "grpc.keepalive_time_ms"),
            # the limit of an attempt, which a busy machine needs: one that fails sooner is repeated sooner all the same
            ("grpc.min_reconnect_backoff_ms", int(self._address.connect_timeout * 1000)),
            ("grpc.keepalive_permit_without_calls", int(pings == "always")),
            ("grpc.default_authority", self._address.expected_name if self._address.secure else "localhost"),
            ("grpc.enable_http_proxy", 0),
        ]
        self._certificates = Certificates(self._address) if self._address.secure else None
        self.trouble = ""
        self._methods: dict[tuple[str, bool], Any] = {}
        self._open()

    def _open(self) -> None:
        """Make the channel, by the certificates as they are now."""
        where = self._address
        target = f"unix:{where.path}" if where.path else str(where)
        self._methods.clear()
        self._channel: Any = None
        if self._certificates is None:
            self._channel = grpc.aio.insecure_channel(target, options=self._options)
            return
        try:
            trust = grpc.ssl_channel_credentials(*self._certificates.contents())
        except CertificateError as error:
            self.trouble = f"failed to connect to {where}: {error}"
            return
        self.trouble = ""
        named = [("grpc.ssl_target_name_override", where.server_name)] if where.server_name else []
        self._channel = grpc.aio.secure_channel(target, trust, options=[*self._options, *named])

    async def close(self) -> None:
        if self._channel is not None:
            await self._channel.close(None)

    def connected(self) -> bool:
        return self._state() is grpc.ChannelConnectivity.READY

    def _state(self) -> Any:
        """The channel's state; None if there is none. Starts to connect."""
        if self._channel is None:
            if self._certificates is not None and self._certificates.changed():
                self._open()
            if self._channel is None:
                return None
        return self._channel.get_state(try_to_connect=True)

    async def changed(self, known: bool) -> bool:
        while True:
            state = self._state()
            if (state is grpc.ChannelConnectivity.READY) is not known:
                return not known
            if self._certificates is None:
                await self._channel.wait_for_state_change(state)
                continue
            if state is not grpc.ChannelConnectivity.READY and self._certificates.changed():
                await self.close()
                self._open()
                continue
            # grpcio keeps the certificates that a channel was made with
            if self._channel is None:
                await asyncio.sleep(_LOOK)
            else:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK):
                        await self._channel.wait_for_state_change(state)

    def _there(self) -> Any:
        if self._state() is None:
            raise errors.Disconnected(f"service {self._name} is not reachable ({self.trouble})")
        return self._channel

    async def unary(self, path: str, request: bytes, metadata: Metadata, timeout: float | None) -> bytes:
        try:
            call = self._method(path, self._there().unary_unary)(request, metadata=metadata, timeout=timeout)
            answer: bytes = await call
            _tell(_at_once(call.trailing_metadata()))
            return answer
        except grpc.RpcError as error:
            _tell(error.trailing_metadata())
            details = error.details() or ""
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED and not details.endswith(
                errors.DeadlineExceeded.suffix
            ):
                late = f"{path}: service {self._name} did not answer in time ({details})"  # of grpcio's own making
                details = errors.DeadlineExceeded.with_suffix(late)
            raise await self.error(error.code(), details, error.trailing_metadata()) from None

    def stream(self, path: str, metadata: Metadata, timeout: float | None) -> _Stream:
        def make() -> Any:
            return self._method(path, self._there().stream_stream)(metadata=metadata, timeout=timeout)

        return _Stream(make, self)

    def _method(self, path: str, make: Callable[..., Any]) -> Any:
        key = (path, make == self._channel.unary_unary)
        method = self._methods.get(key)
        if method is None:
            method = self._methods[key] = make(path)
        return method

    async def error(self, status: Any, details: str | None, trailing: Any) -> errors.NodeError:
        """A failed call as one of our errors. UNAVAILABLE from the transport names the process, and is raised only when
        the channel has noticed the loss, too.
        """
        code: int = status.value[0]
        details = details or ""
        trailers = tuple((k, v) for k, v in trailing or () if k != TOLD)
        made_by_transport = _made_by_transport(details)
        if code == errors.Unavailable.code and (made_by_transport or any(k == STOPPING for k, _ in trailers)):
            if made_by_transport:
                await self._loss_seen()
            return errors.Disconnected(f"service {self._name} is not reachable ({details})")
        if code == errors.Internal.code and details == _SEND_FAILED:
            return errors.Disconnected(f"service {self._name} went away while it was sent a message")
        return errors.from_status(code, details, trailers)

    async def _loss_seen(self) -> None:
        """Wait until the channel is no longer READY: a call that is repeated before that uses the same broken
        connection.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LOSS_SEEN):
                await self._channel.wait_for_state_change(grpc.ChannelConnectivity.READY)


def _tell(trailing: Any) -> None:
    for key, value in trailing or ():
        if key == TOLD:
            observer.told(value)


_LOOK = 0.5
"""Seconds between two looks for other certificates while there is no connection."""
_LOSS_SEEN = 0.2
"""Seconds that a channel may take to notice what one of its calls has met. Not every such call loses the connection."""

_TRANSPORT = (
    "failed to connect",
    "Socket closed",
    "Connection reset",
    "Broken pipe",
    "GOAWAY",
    "keepalive",
    "ping timeout",
    "recvmsg",
    "sendmsg",
    "connections to all backends",
    "Stream removed",
    "transport",
    "Cancelling all calls",
    "Endpoint closing",
    "Channel closed",
    "RST_STREAM",
)

_SEND_FAILED = "Internal error from Core"
"""grpc.aio's message, with INTERNAL, in place of the status of a call that ends just while a message is being sent."""

_STATUS_FOLLOWS = 1.0
"""Seconds in which the status of such a call may still come."""


def _made_by_transport(details: str) -> bool:
    # A peer's own message may report its trouble with a third process in the same words. It ends in the suffix, and
    # that peer is connected.
    return not details.endswith(f": {errors.Unavailable.suffix}") and any(word in details for word in _TRANSPORT)


class _Stream:
    """A grpc.aio call. Its first operation opens it, as on the wire: one that is cancelled before never arrives."""

    def __init__(self, make: Callable[[], Any], carrier: GrpcioCarrier) -> None:
        self._make: Callable[[], Any] | None = make
        self._opened: Any = None
        self._carrier = carrier
        self._trailing: Headers = {}
        self._status: tuple[Any, str, Any] | None = None
        """The status of the ended call. It is kept when it comes, since grpc.aio forgets it if sending fails just
        then.
        """

    @property
    def _call(self) -> Any:
        if self._opened is None:
            if self._make is None:
                raise errors.Cancelled("the call has ended")
            self._opened = self._make()
            self._opened.add_done_callback(self._ended)
        return self._opened

    def _ended(self, call: Any) -> None:
        if _at_once(call.details()) != _SEND_FAILED:
            self._status = (_at_once(call.code()), _at_once(call.details()), _at_once(call.trailing_metadata()))

    def cancel(self) -> None:
        self._make = None
        if self._opened is not None:
            self._opened.cancel()

    async def send(self, message: bytes) -> None:
        try:
            await self._call.write(message)
        except (asyncio.InvalidStateError, grpc.RpcError):
            await self._raise_status()

    async def done_sending(self) -> None:
        try:
            await self._call.done_writing()
        # the second one if the call ends just now, as when the peer is killed
        except (asyncio.InvalidStateError, cygrpc.InternalError, grpc.RpcError):
            await self._raise_status()

    async def receive(self) -> bytes | None:
        try:
            message = await self._call.read()
        except (asyncio.InvalidStateError, grpc.RpcError):
            message = grpc.aio.EOF
        if message is not grpc.aio.EOF:
            return bytes(message)
        await self._raise_status()
        return None

    async def leading(self) -> Headers:
        return _first(await self._call.initial_metadata())

    def trailing(self) -> Headers:
        return self._trailing

    async def _raise_status(self) -> None:
        code, details, trailing = await self._end()
        self._trailing = _first(trailing)
        if code is not grpc.StatusCode.OK:
            raise await self._carrier.error(code, details, trailing)

    async def _end(self) -> tuple[Any, str, Any]:
        await self._call.code()
        until = time.monotonic() + _STATUS_FOLLOWS
        while self._status is None and time.monotonic() < until:
            await asyncio.sleep(0.001)
            self._ended(self._call)
        return self._status or (await self._call.code(), await self._call.details(), None)


def _at_once(of_ended_call: Any) -> Any:
    """The answer of a coroutine that does not wait."""
    try:
        of_ended_call.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("grpc.aio waits for the status of a call that has ended")


def _first(metadata: Any) -> dict[str, str | bytes]:
    found: dict[str, str | bytes] = {}
    for key, value in metadata or ():
        found.setdefault(key, value)
    return found
