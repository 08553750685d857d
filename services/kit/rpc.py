"""gRPC for handlers that do not know it: serving, channels, and the :class:`Call` between the two.

A *servicer* is an object with one method for each RPC it has, named as in its .proto file. It is bound by its
service's descriptor, so there is no generated stub, and an RPC that the object lacks answers UNIMPLEMENTED::

    class ContentServicer:
        SERVICE = content_pb2.DESCRIPTOR.services_by_name["Content"]

        async def Info(self, request, call): ...        # unary: returns the response
        async def Read(self, request, call): ...        # server stream: an async generator of responses
        async def Write(self, requests, call): ...      # client stream: ``requests`` is an async iterator

Handlers raise :mod:`services.kit.errors`; anything else they raise is a bug: logged once, answered INTERNAL. A client's cancellation
cancels the handler's task; what must not stop half way runs under :func:`shielded`.

Everything is asyncio; blocking work belongs in ``asyncio.to_thread`` or in a worker program. grpcio is an
implementation detail of this module, and nothing outside the kit imports it.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import grpc
import grpc.aio
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from grpc._cython import cygrpc

from services.kit import errors, identifiers, tracing

log = logging.getLogger(__name__)
T = TypeVar("T")

Metadata = tuple[tuple[str, str | bytes], ...]

NAMESPACE = "containerd-namespace"
LEASE = "containerd-lease"
RAW = "splitd-raw"
"""Header of metadata's calls to a raw backend through the gateway; its value names the backend."""

STOPPING = "splitd-stopping"
"""Trailer of calls that a service ended because it was told to stop: a relay asks its successor again."""

MESSAGE_LIMIT = 16 << 20
UNARY_TIMEOUT = 10.0
"""Seconds that a unary call to another process may take where neither the caller nor its client says otherwise."""

LONG = frozenset({"Wait", "Subscribe", "Watch"})
"""Calls that last as long as the thing they watch: a server that stops ends them at once with UNAVAILABLE, and does not wait for them."""

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
    # Our own clients ping often, to notice a stopped peer; do not call that abuse.
    ("grpc.http2.min_ping_interval_without_data_ms", 100),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.keepalive_permit_without_calls", 1),
]
_CLIENT = [
    *_COMMON,
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.keepalive_time_ms", 1000),
    ("grpc.keepalive_timeout_ms", 1000),
    ("grpc.http2.ping_timeout_ms", 1000),
    ("grpc.http2.max_pings_without_data", 0),
]


Pings = Literal["never", "calls", "always"]


class Arity(NamedTuple):
    """Whether the request and the response of a method are streams."""

    client_stream: bool
    server_stream: bool


UNARY = Arity(False, False)
STREAMS = Arity(True, True)
"""What a relay takes a method for that it does not know; the wire is the same for all four."""


@dataclass(slots=True)
class Call:
    """One call as its handler sees it."""

    method: str
    """``/containerd.services.content.v1.Content/Info``"""
    headers: Mapping[str, str | bytes]
    """By lower-case name; values of ``*-bin`` headers are bytes."""
    deadline: float | None = None
    """On the clock of ``time.monotonic``, in seconds; None where the client set none."""

    @property
    def namespace(self) -> str:
        """The caller's containerd namespace; FailedPrecondition without one, InvalidArgument for an impossible one, in containerd's words."""
        value = self.optional_namespace
        if not value:
            raise errors.FailedPrecondition("namespace is required")
        try:
            identifiers.validate(value)
        except errors.InvalidArgument as error:
            raise errors.InvalidArgument(f"namespace validation: {error}") from None
        return value

    @property
    def optional_namespace(self) -> str:
        """The caller's namespace, or an empty string."""
        return str(self.headers.get(NAMESPACE, ""))

    @property
    def lease(self) -> str:
        """The id of the caller's lease, or an empty string."""
        return str(self.headers.get(LEASE, ""))

    def remaining(self) -> float | None:
        """Seconds until the deadline, not below zero; None where there is none."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    def passed_on(self) -> dict[str, str | bytes]:
        """The headers to send along with a call made on this caller's behalf: all but the transport's own."""
        return {k: v for k, v in self.headers.items() if k not in _HOP_HEADERS}


_HOP_HEADERS = frozenset({"user-agent", "content-type", "te", "grpc-timeout", "grpc-accept-encoding", "accept-encoding",
                          "traceparent", "tracestate"})

_current: contextvars.ContextVar[Call | None] = contextvars.ContextVar("splitd_call", default=None)


class Servicer(Protocol):
    """An object whose methods answer a service's RPCs."""

    SERVICE: ServiceDescriptor


class Relay(Protocol):
    """Answers methods that no servicer has, as bytes in and bytes out. What it relays it does not parse."""

    def arity(self, method: str) -> Arity:
        """How to treat a method's messages; :data:`STREAMS` where it is not known."""
        ...

    async def unary(self, request: bytes, call: Call) -> bytes:
        """Answer a method of arity UNARY."""
        ...

    def stream(self, requests: AsyncIterator[bytes], call: Call) -> AsyncIterator[bytes]:
        """Answer any other method, whatever its arity."""
        ...


# ---------------------------------------------------------------------------------------------- serving


class Server:
    """A running server on one unix socket; made by :func:`serving`."""

    def __init__(self, address: Path, long: frozenset[str]) -> None:
        self.address = address
        self.health: dict[str, int] = {"": _SERVING}
        self._long = long
        self._running: dict[asyncio.Task[Any], str] = {}
        self._server: Any = None
        self.draining = False

    def calls(self) -> list[str]:
        """The methods being answered now, one entry per call."""
        return list(self._running.values())

    @contextlib.asynccontextmanager
    async def answering(self, context: Any, method: str) -> AsyncIterator[Call]:
        """Around each handler: the Call, the server span, and errors as statuses."""
        headers: dict[str, str | bytes] = {}
        for key, value in context.invocation_metadata() or ():
            headers.setdefault(key.lower(), value)  # Go's clients put a nested context's namespace before the outer one's, and containerd takes the first
        left = context.time_remaining()
        call = Call(method, headers, None if left is None else time.monotonic() + left)
        task = asyncio.current_task()
        assert task is not None
        self._running[task] = method
        token = _current.set(call)
        try:
            failure: errors.NodeError | None = None
            with tracing.server_span(method, headers) as span:
                try:
                    yield call
                except errors.NodeError as error:
                    failure = error
                    span.status(error.code, str(error))
                except asyncio.CancelledError:
                    span.status(errors.Cancelled.code, "cancelled")
                    if not self.draining:
                        raise
                    failure = errors.Unavailable(f"{method}: the service is stopping", trailers=((STOPPING, "1"),))
                except Exception as error:
                    log.exception("%s failed unexpectedly", method)
                    span.exception(error)
                    failure = errors.Internal(f"{method}: internal error, see the service's log")
            if failure is not None:  # outside of the span: grpcio aborts by an exception of its own
                await _abort(context, failure)
        finally:
            # The task may have ended in another context (a closed generator); resetting is then neither possible nor needed.
            with contextlib.suppress(ValueError):
                _current.reset(token)
            self._running.pop(task, None)

    async def start(self, handlers: grpc.GenericRpcHandler) -> None:
        self._server = grpc.aio.server(options=_SERVER)
        self._server.add_generic_rpc_handlers((handlers,))
        self.address.unlink(missing_ok=True)
        mask = os.umask(0o177)  # the socket is the key to the node: its owner's only, from its first instant
        try:
            if not self._server.add_insecure_port(f"unix:{self.address}"):
                raise OSError(f"cannot listen on {self.address}")
        except RuntimeError as error:
            raise OSError(f"cannot listen on {self.address}: {error}") from error
        finally:
            os.umask(mask)
        await self._server.start()

    async def stop(self, grace: float) -> None:
        """Refuse new calls, end those of :data:`LONG` at once, give the others ``grace`` seconds."""
        self.draining = True
        self.health = dict.fromkeys(self.health, _NOT_SERVING)
        stopping = asyncio.ensure_future(self._server.stop(grace))
        await asyncio.sleep(0)
        for task, method in list(self._running.items()):
            if method.rsplit("/", 1)[-1] in self._long:
                task.cancel()
        await stopping


async def _abort(context: Any, error: errors.NodeError) -> None:
    trailing = tuple(error.trailers)
    await context.abort(_STATUS[error.code], str(error)[: 32 << 10], trailing)


_STATUS = {code.value[0]: code for code in grpc.StatusCode}
_SERVING, _NOT_SERVING = 1, 2


class _Handlers(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Finds the handler of a method: a servicer's, health's, or the relay's."""

    def __init__(self, server: Server, servicers: Iterable[Servicer], relay: Relay | None) -> None:
        self._server = server
        self._relay = relay
        self._relayed: dict[str, Any] = {}
        self._methods: dict[str, Any] = {}
        for servicer in servicers:
            server.health[servicer.SERVICE.full_name] = _SERVING
            for method in servicer.SERVICE.methods:
                handler = getattr(servicer, method.name, None)
                if handler is not None:
                    self._methods[method_path(method)] = self._bind(method, handler)

    def service(self, details: Any) -> Any:
        if self._relay is not None and any(k == RAW for k, _ in details.invocation_metadata or ()):
            found = self._relayed.get(details.method)  # not for our servicers: raw calls are relayed or refused
        else:
            found = self._methods.get(details.method) or self._relayed.get(details.method)
        if found is None and self._relay is not None:
            found = self._bind_relay(details.method, self._relay)
            if len(self._relayed) < 1000:  # method names come from clients
                self._relayed[details.method] = found
        return found

    def _bind(self, method: MethodDescriptor, handler: Callable[..., Any]) -> Any:
        return self._handler(
            method_path(method),
            Arity(method.client_streaming, method.server_streaming),
            handler,
            message_factory.GetMessageClass(method.input_type).FromString,
            message_factory.GetMessageClass(method.output_type).SerializeToString,
        )

    def _bind_relay(self, path: str, relay: Relay) -> Any:
        arity = relay.arity(path)
        if arity == UNARY:
            return self._handler(path, UNARY, relay.unary, None, None)
        return self._handler(path, STREAMS, relay.stream, None, None)

    def _handler(self, path: str, arity: Arity, handler: Callable[..., Any], decode: Any, encode: Any) -> Any:
        server = self._server

        async def single(request: Any, context: Any) -> Any:
            async with server.answering(context, path) as call:
                return await handler(request, call)

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            async with server.answering(context, path) as call:
                responses = handler(request, call)
                async with contextlib.aclosing(responses):
                    async for response in responses:
                        yield response

        make = {
            Arity(False, False): grpc.unary_unary_rpc_method_handler,
            Arity(False, True): grpc.unary_stream_rpc_method_handler,
            Arity(True, False): grpc.stream_unary_rpc_method_handler,
            Arity(True, True): grpc.stream_stream_rpc_method_handler,
        }[arity]
        return make(stream if arity.server_stream else single, decode, encode)


@contextlib.asynccontextmanager
async def serving(
    address: Path,
    servicers: Iterable[Servicer],
    *,
    relay: Relay | None = None,
    grace: float = 5.0,
    long: frozenset[str] = LONG,
) -> AsyncIterator[Server]:
    """Serve on a unix socket (mode 0600) until the block ends, then drain for ``grace`` seconds.

    grpc.health.v1.Health is added unless a servicer has it. The caller holds the lock of the directory that it serves (``kit.process.owned``): whoever
    holds it may replace the socket. A path longer than the kernel's 107 bytes is refused with a clear error.
    """
    check_socket_path(address)
    server = Server(address, long)
    servicers = list(servicers)
    if not any(s.SERVICE.full_name == "grpc.health.v1.Health" for s in servicers):
        from services.kit.health import HealthServicer

        servicers.append(HealthServicer(server.health))
    await server.start(_Handlers(server, servicers, relay))
    try:
        yield server
    finally:
        await server.stop(grace)
        with contextlib.suppress(FileNotFoundError):
            address.unlink()


def check_socket_path(address: Path) -> None:
    """Refuse a socket path that the kernel would cut (sun_path holds 107 bytes)."""
    if len(os.fsencode(address)) > 107:
        raise errors.InvalidArgument(f"socket path {address} is longer than 107 bytes: choose a shorter state directory")


def method_path(method: MethodDescriptor) -> str:
    """``/package.Service/Method``"""
    return f"/{method.containing_service.full_name}/{method.name}"


# ---------------------------------------------------------------------------------------------- calling


class Stream:
    """An open streaming call to another process. Use as ``async with``; leaving it early cancels the call."""

    def __init__(self, call: Any, span: tracing.Span, channel: Channel) -> None:
        self._call = call
        self._span = span
        self._channel = channel
        self._ended = False

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._finish()

    def _finish(self) -> None:
        if not self._ended:
            self._ended = True
            self._call.cancel()
            self._span.end()

    async def send(self, message: Any) -> None:
        """Send one message; if the call has ended, raise what it ended with."""
        try:
            await self._call.write(message)
        except asyncio.InvalidStateError:
            await self._raise_status()
        except grpc.RpcError as error:
            raise self._failed(error) from None

    async def done_sending(self) -> None:
        """Half-close: no more messages from us."""
        try:
            await self._call.done_writing()
        except (asyncio.InvalidStateError, cygrpc.InternalError):  # the second where the call ends just now, as when the peer is killed
            await self._raise_status()
        except grpc.RpcError as error:
            raise self._failed(error) from None

    async def receive(self) -> Any | None:
        """The next message, or None at the end; raises the status if it is not OK."""
        try:
            message = await self._call.read()
        except grpc.RpcError as error:
            raise self._failed(error) from None
        except asyncio.InvalidStateError:
            await self._raise_status()
            return None
        if message is grpc.aio.EOF:
            await self._raise_status()
            return None
        return message

    def __aiter__(self) -> AsyncIterator[Any]:
        return self._messages()

    async def _messages(self) -> AsyncIterator[Any]:
        try:
            while (message := await self.receive()) is not None:
                yield message
        finally:
            self._finish()

    async def _raise_status(self) -> None:
        code = await self._call.code()
        if code is not grpc.StatusCode.OK:
            raise self._failed(await _call_error(self._call))
        if not self._ended:
            self._ended = True
            self._span.end()

    def _failed(self, error: Any) -> errors.NodeError:
        node_error = self._channel.error(error)
        if not self._ended:
            self._ended = True
            self._span.status(node_error.code, str(node_error))
            self._span.end()
        return node_error


async def _call_error(call: Any) -> Any:
    return _Ended(await call.code(), await call.details(), await call.trailing_metadata())


@dataclass
class _Ended:
    """What is asked of a grpc.aio.AioRpcError, of a call that ended while we were not reading."""

    _code: Any
    _details: Any
    _trailing: Any

    def code(self) -> Any:
        return self._code

    def details(self) -> Any:
        return self._details

    def trailing_metadata(self) -> Any:
        return self._trailing


class Channel:
    """A connection to one process, which may be down and come back. Made once, closed with :meth:`close`."""

    def __init__(self, address: Path | str, name: str = "", *, pings: Pings = "calls") -> None:
        """``pings`` says when a hung peer is noticed, within 2 s: "always", or during "calls" only, for servers of ours; "never" for others' servers.

        grpc-go takes pings of every second for abuse and ends the connection (too_many_pings); there, a call's own deadline must do.
        """
        self.address = str(address)
        self.name = name or Path(self.address).stem
        client = [o for o in _CLIENT if o[0] != "grpc.keepalive_time_ms"] if pings == "never" else _CLIENT
        self._options = [*client, ("grpc.keepalive_permit_without_calls", int(pings == "always")), ("grpc.default_authority", "localhost")]
        self._channel: Any = None
        self._methods: dict[tuple[str, Arity], Any] = {}

    def _open(self) -> Any:
        if self._channel is None:  # within the loop that uses it
            self._channel = grpc.aio.insecure_channel(
                self.address if ":" in self.address else f"unix:{self.address}",
                options=self._options,
            )
        return self._channel

    async def __aenter__(self) -> Channel:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        if self._channel is not None:
            await self._channel.close(None)

    def client(self, service: ServiceDescriptor) -> Client:
        """Call a service's methods by their names."""
        return Client(self, service)

    def connected(self) -> bool:
        """Whether the peer is known to be there now; starts connecting if it is not."""
        return self._open().get_state(try_to_connect=True) is grpc.ChannelConnectivity.READY

    async def connections(self) -> AsyncIterator[bool]:
        """Whether the peer is there: now, and again whenever that may have changed. Connects as long as it is iterated."""
        channel = self._open()
        while True:
            state = channel.get_state(try_to_connect=True)
            yield state is grpc.ChannelConnectivity.READY
            await channel.wait_for_state_change(state)  # from the state just told: one that came in between is no loss

    async def wait_connected(self, seconds: float) -> bool:
        """Wait until the peer is there, for at most ``seconds``."""
        channel = self._open()
        try:
            async with asyncio.timeout(seconds):
                while (state := channel.get_state(try_to_connect=True)) is not grpc.ChannelConnectivity.READY:
                    await channel.wait_for_state_change(state)
        except TimeoutError:
            return False
        return True

    def error(self, error: Any) -> errors.NodeError:
        """A failed call as one of our errors; UNAVAILABLE of the transport's making names the process."""
        code: int = error.code().value[0]
        details = error.details() or ""
        trailers = tuple((k, v) for k, v in error.trailing_metadata() or ())
        if code == errors.Unavailable.code and (_made_by_transport(details) or any(k == STOPPING for k, _ in trailers)):
            return errors.Disconnected(f"service {self.name} is not reachable ({details})")
        if code == errors.Internal.code and details == _SEND_FAILED:
            return errors.Disconnected(f"service {self.name} went away while it was sent a message")
        return errors.from_status(code, details, trailers)

    # -- raw: bytes in, bytes out; what the relay and the typed client are made of

    async def unary(self, path: str, request: Any, headers: Mapping[str, str | bytes], timeout: float | None,
                    encode: Any = None, decode: Any = None) -> Any:
        """One unary call. ``timeout`` in seconds, None for no limit."""
        with tracing.client_span(path) as span:
            try:
                return await self._method(path, UNARY, encode, decode)(
                    request, metadata=_metadata(headers, span), timeout=timeout)
            except grpc.RpcError as error:
                node_error = self.error(error)
                span.status(node_error.code, str(node_error))
                raise node_error from None

    def stream(self, path: str, headers: Mapping[str, str | bytes], timeout: float | None = None,
               encode: Any = None, decode: Any = None) -> Stream:
        """Open a streaming call of any arity: on the wire all four are the same."""
        span = tracing.client_span(path)
        call = self._method(path, STREAMS, encode, decode)(metadata=_metadata(headers, span), timeout=timeout)
        return Stream(call, span, self)

    def _method(self, path: str, arity: Arity, encode: Any, decode: Any) -> Any:
        raw = encode is None
        key = (path if raw else path + "#", arity)
        method = self._methods.get(key)
        if method is None:
            make = self._open().unary_unary if arity == UNARY else self._open().stream_stream
            method = self._methods[key] = make(path, request_serializer=encode, response_deserializer=decode)
        return method


_TRANSPORT = ("failed to connect", "Socket closed", "Connection reset", "Broken pipe", "GOAWAY", "keepalive", "ping timeout", "recvmsg", "sendmsg",
              "connections to all backends", "Stream removed", "transport", "Cancelling all calls", "Endpoint closing", "Channel closed", "RST_STREAM")


_SEND_FAILED = "Internal error from Core"
"""What grpcio says, with INTERNAL, where the call ends just while a message is being sent, as it does when the peer is killed."""


def _made_by_transport(details: str) -> bool:
    # A peer's own message, which may tell of its trouble with a third process in the same words, ends in the suffix: that peer is there.
    return not details.endswith(f": {errors.Unavailable.suffix}") and any(word in details for word in _TRANSPORT)


def _metadata(headers: Mapping[str, str | bytes], span: tracing.Span) -> Metadata:
    return (*headers.items(), *span.headers())


@dataclass(slots=True)
class _Bound:
    path: str
    arity: Arity
    encode: Any
    decode: Any


class Client:
    """The methods of one service in another process, by name.

    A unary method is awaited: ``await client.Info(request)``. Any streaming one returns a :class:`Stream`; a server stream has had its request sent:
    ``async for r in client.Read(request)``. Keyword arguments: ``headers`` to send (default: none; pass ``call.passed_on()`` to act as the caller), ``timeout``
    in seconds. A unary call without one gets :data:`UNARY_TIMEOUT`, and in a handler no more than its caller has left;
    ``timeout=None`` lifts the limit. Failures are raised as :mod:`services.kit.errors`.
    """

    def __init__(self, channel: Channel, service: ServiceDescriptor) -> None:
        self._channel = channel
        self._methods = {
            m.name: _Bound(method_path(m), Arity(m.client_streaming, m.server_streaming),
                           message_factory.GetMessageClass(m.input_type).SerializeToString,
                           message_factory.GetMessageClass(m.output_type).FromString)
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
        async def unary(request: Any, *, headers: Mapping[str, str | bytes] = {}, timeout: float | None = -1.0) -> Any:
            return await self._channel.unary(bound.path, request, headers, _limit(timeout), bound.encode, bound.decode)

        return unary

    def _streaming(self, bound: _Bound) -> Callable[..., Any]:
        if bound.arity.client_stream:
            def open_stream(*, headers: Mapping[str, str | bytes] = {}, timeout: float | None = None) -> Stream:
                return self._channel.stream(bound.path, headers, timeout, bound.encode, bound.decode)

            return open_stream

        async def responses(request: Any, *, headers: Mapping[str, str | bytes] = {}, timeout: float | None = None) -> AsyncIterator[Any]:
            async with self._channel.stream(bound.path, headers, timeout, bound.encode, bound.decode) as stream:
                await stream.send(request)
                await stream.done_sending()
                while (message := await stream.receive()) is not None:
                    yield message

        return responses


def _limit(timeout: float | None) -> float | None:
    if timeout is None or timeout >= 0:
        return timeout
    call = _current.get()
    left = call.remaining() if call else None
    return UNARY_TIMEOUT if left is None else min(left, UNARY_TIMEOUT)


# ---------------------------------------------------------------------------------------------- shielding

_shielded: set[asyncio.Task[Any]] = set()


async def shielded(work: Awaitable[T]) -> T:
    """Run ``work`` to its end whatever happens to the caller: the caller's cancellation ends the waiting, not the work.

    The work keeps its trace but not the caller's deadline. A failure that nobody waits for any more is logged.
    """

    async def without_deadline() -> T:
        call = _current.get()
        if call is not None:
            _current.set(Call(call.method, call.headers))
        return await work

    task = asyncio.ensure_future(without_deadline())
    _shielded.add(task)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(_log_failure)
        raise
    finally:
        task.add_done_callback(_shielded.discard)


def _log_failure(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.warning("work that outlived its caller failed: %s", error)


async def shielded_work_done(seconds: float) -> None:
    """Before a process ends: wait for what is still running under :func:`shielded`."""
    if _shielded:
        await asyncio.wait(list(_shielded), timeout=seconds)


