"""gRPC for handlers that do not know it: serving, channels, and the :class:`Call` between the two.

A *servicer* is an object with one method for each RPC it has, named as in its .proto file. It is bound by its
service's descriptor, so there is no generated stub, and an RPC that the object lacks answers UNIMPLEMENTED::

    class ContentServicer:
        SERVICE = content_pb2.DESCRIPTOR.services_by_name["Content"]

        async def Info(self, request, call): ...        # unary: returns the response
        async def Read(self, request, call): ...        # server stream: an async generator of responses
        async def Write(self, requests, call): ...      # client stream: ``requests`` is an async iterator

Handlers raise :mod:`services.kit.errors`; what the machine cannot do, such as to write to a full disk, becomes one of them; anything else they raise is a bug: logged once, answered INTERNAL. A client's cancellation
cancels the handler's task; what must not stop half way runs under :func:`shielded`.

Two *transports* carry the calls, and nothing but this module knows which: :mod:`services.wire`, our own HTTP/2, and
:mod:`services.kit.grpcio`, Google's library. ``[grpc] transport`` or SPLITD_GRPC_TRANSPORT chooses; they speak the same
protocol, so processes of both kinds talk to each other. Everything is asyncio; blocking work belongs in ``asyncio.to_thread`` or in a worker program.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import importlib
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeVar

from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

from services.kit import errors, identifiers, logs, loops, tracing

if TYPE_CHECKING:
    from services.kit.many import Gathering

log = logging.getLogger(__name__)
T = TypeVar("T")

Headers = Mapping[str, str | bytes]
Metadata = tuple[tuple[str, str | bytes], ...]

NAMESPACE = "containerd-namespace"
LEASE = "containerd-lease"
RAW = "splitd-raw"
"""Header of metadata's calls to a raw backend through the gateway; its value names the backend."""

CLIENT = "splitd-client"
"""Header of calls that a gateway relays: a number that tells its clients apart for a service that has but one connection for them. It means nothing beyond that connection."""

VERIFY = "splitd-verify"
"""Header of a Transfer, with any value: a pull looks at all bytes of the blobs that are there (``ImageStore.verify``)."""
ONLY_WANTED = "splitd-only-wanted"
"""Header of a Transfer, with any value: of an archive only the images for the platforms wanted become records (``ImageStore.only_wanted``), which containerd's API cannot say."""

STOPPING = "splitd-stopping"
"""Trailer of calls that a service ended because it was told to stop: a relay asks its successor again."""

MESSAGE_LIMIT = 16 << 20
ERROR_LIMIT = 32 << 10
"""Bytes of an error's message that are sent: clients of grpc-go refuse header lists that are much longer."""

UNARY_TIMEOUT = 10.0
"""Seconds that a unary call to another process may take where neither the caller nor its client says otherwise."""

LONG = frozenset({"Wait", "Subscribe", "Watch"})
"""Calls that last as long as the thing they watch: a server that stops ends them at once with UNAVAILABLE, and does not wait for them."""

TRANSPORTS = ("wire", "grpcio")

Pings = Literal["never", "calls", "always"]


_chosen = "wire"


def choose(name: str) -> None:
    """The transport of this process from here on, unless the environment names another."""
    global _chosen
    _chosen = name


def transport() -> str:
    """The transport of this process; InvalidArgument for a name that is none."""
    name = os.environ.get("SPLITD_GRPC_TRANSPORT") or _chosen
    if name not in TRANSPORTS:
        raise errors.InvalidArgument(f"transport {name}: choose one of {', '.join(TRANSPORTS)}")
    return name


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
    headers: Headers
    """By lower-case name; values of ``*-bin`` headers are bytes. Of a repeated one the first counts: Go's clients put a nested context's namespace
    before the outer one's, and containerd takes the first."""
    deadline: float | None = None
    """On the clock of ``time.monotonic``, in seconds; None where the client set none."""
    leading: list[tuple[str, str | bytes]] = field(default_factory=list)
    """Metadata to send before the first response; what is added later is not sent."""
    trailing: list[tuple[str, str | bytes]] = field(default_factory=list)
    """Metadata to send with the status."""

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
        return {k: v for k, v in self.headers.items() if k not in HOP_HEADERS}


HOP_HEADERS = frozenset({"user-agent", "content-type", "te", "grpc-timeout", "grpc-encoding", "grpc-accept-encoding", "accept-encoding",
                         "traceparent", "tracestate", CLIENT})
"""Headers of one hop, which the next one has of its own."""

_current: contextvars.ContextVar[Call | None] = contextvars.ContextVar("splitd_call", default=None)


_together: contextvars.ContextVar[bool] = contextvars.ContextVar("splitd_together", default=False)


def set_together() -> None:
    """What this task calls, and what comes of it, goes together with what others call that do this in the same turn of the loop (``kit.many``)."""
    _together.set(True)


def set_current(call: Call) -> None:
    """For a transport: what this task does, it does on behalf of ``call``."""
    _current.set(call)


def caller() -> str:
    """On whose behalf this task works, as far as there are several: the namespace of the current call, or an empty string."""
    call = _current.get()
    return "" if call is None else call.optional_namespace


class Servicer(Protocol):
    """An object whose methods answer a service's RPCs."""

    SERVICE: ServiceDescriptor


Coordinated = Callable[[AsyncIterator[bytes], Call], AsyncIterator[bytes]]


class Upstream(Protocol):
    """A process that calls are relayed to, which may be away for a moment."""

    name: str
    channel: Channel

    def is_ready(self) -> bool:
        """Whether :meth:`ready` would answer at once."""
        ...

    async def ready(self, call: Call | None = None) -> Channel:
        """The channel, as soon as the process is there; Unavailable, naming it, if it does not come in time."""
        ...


Answers = Sequence[bytes | bytearray]
"""Serialized messages that a gateway answers a call with by itself."""
Meaning = Callable[[bytes], Answers | Literal[False] | None]


@dataclass(slots=True, frozen=True)
class Question:
    """What :attr:`Route.admit` asks another process, for calls that are like most: one request, which is there, and an answer that settles it. That takes no coroutine."""

    channel: Channel
    method: str
    headers: Headers
    timeout: float
    """Seconds."""
    ready: Callable[[], bool]
    """Whether it can be asked now."""
    ask: Callable[[bytes], tuple[bytes, Meaning, Callable[[], None]]]
    """The question about a request, what its answer means, and what to do meanwhile. It means what ``admit`` would tell, or False if it does not settle the call. Then, and where it is an error,
    ``admit`` is asked.
    """


@dataclass(slots=True, frozen=True)
class Route:
    """Where a call is relayed to, and how."""

    upstream: Upstream
    headers: Headers
    """What is sent to it in place of the caller's headers."""
    timeout: float | None = None
    """Seconds that it may take, where the caller allows more; None: as long as the caller waits."""
    stall: float | None = None
    """Seconds without a message from it after which the call ends; None: for ever."""
    repeats: float = 0
    """How often it is asked again if it goes away in the middle of a unary call."""
    admit: Callable[[bytes, Call], Awaitable[Answers | None]] | None = None
    """Asked, with the first request message, before anything is sent. What it raises is the answer, and so are the messages that it returns, if
    the client takes them at once; None lets the call pass."""
    question: Question | None = None


class Relay(Protocol):
    """Decides about methods that no servicer has. The transport does what it decides, and does not parse what it relays.

    What it decides depends on a call's method and headers only, and may be remembered for the next call that has the same.
    """

    def arity(self, method: str) -> Arity:
        """How to treat a method's messages; :data:`STREAMS` where it is not known."""
        ...

    def coordinated(self, call: Call) -> Coordinated | None:
        """Who answers it message by message, or None if it passes through."""
        ...

    def route(self, call: Call) -> Route:
        """Where it passes to; its errors are the answer."""
        ...


# ---------------------------------------------------------------------------------------------- serving


@dataclass(slots=True, frozen=True)
class Method:
    """One RPC as a transport sees it: ``handler`` with bytes on its outer side."""

    path: str
    arity: Arity
    handler: Callable[..., Any]
    decode: Callable[[bytes], Any]
    encode: Callable[[Any], bytes]
    long: bool = False

    def whole(self, message: Any) -> bytes:
        """A serialized answer, of a message or of :class:`Pieces`."""
        return b"".join(message) if type(message) is Pieces else self.encode(message)


class Pieces(tuple[bytes, ...]):
    """A serialized message that a handler answers as it is, in pieces, where building it would only copy a megabyte twice, or take a hundred milliseconds at once."""

    __slots__ = ()


def _same(message: Any) -> Any:
    return message


class Methods:
    """The methods that a server has: its servicers', and whatever its relay takes."""

    def __init__(self, servicers: Iterable[Servicer], relay: Relay | None, long: frozenset[str]) -> None:
        self.relay = relay
        self._long = long
        self._methods: dict[str, Method] = {}
        for servicer in servicers:
            for method in servicer.SERVICE.methods:
                handler = getattr(servicer, method.name, None)
                if handler is not None:
                    path = method_path(method)
                    self._methods[path] = Method(
                        path, Arity(method.client_streaming, method.server_streaming), handler,
                        message_factory.GetMessageClass(method.input_type).FromString,
                        message_factory.GetMessageClass(method.output_type).SerializeToString,
                        method.name in long)

    def of_servicers(self, path: str, headers: Headers) -> Method | None:
        """A servicer's method; None if it is the relay's, or nobody's. Raw calls are not for our servicers: they are relayed or refused."""
        if self.relay is not None and RAW in headers:
            return None
        return self._methods.get(path)

    def coordinated(self, path: str, handler: Coordinated) -> Method:
        """A relay's handler as a method."""
        return Method(path, STREAMS, handler, _same, _same, self.is_long(path))

    def is_long(self, path: str) -> bool:
        """Whether a call lasts as long as the thing it watches."""
        return path.rpartition("/")[2] in self._long


class Server:
    """A running server on one socket; made by :func:`serving`. The transports' servers are made of it."""

    def __init__(self, address: Path | str, methods: Methods, health: dict[str, int]) -> None:
        self.address = address
        self.methods = methods
        self.health = health
        self.running: dict[asyncio.Task[Any], tuple[str, bool]] = {}  # or what stands for a task: it can be cancelled
        self.draining = False
        self.trouble = ""
        """Why what is served here ails, where that does not pass by itself."""

    def calls(self) -> list[str]:
        """The methods being answered now, one entry per call."""
        return [path for path, _ in self.running.values()]

    async def start(self) -> None:
        """Listen; OSError if that cannot be."""
        raise NotImplementedError

    async def close(self, grace: float) -> None:
        """The transport's part of :meth:`stop`."""
        raise NotImplementedError

    def ail(self, trouble: str = "") -> None:
        """Say by the health of all that is served here that it does not serve, or not well, and why, where that does not pass by itself."""
        self.trouble = trouble
        self.health.update(dict.fromkeys(self.health, _NOT_SERVING))

    async def stop(self, grace: float) -> None:
        """Refuse new calls, end those that are long at once, give the others ``grace`` seconds."""
        self.draining = True
        self.ail()
        stopping = loops.task("the end of a server", self.close(grace))
        await asyncio.sleep(0)
        for task, (_, long) in list(self.running.items()):
            if long:
                task.cancel()
        await stopping


_SERVING, _NOT_SERVING = 1, 2


class Answering:
    """Around each handler, in its task: the current Call, the server span, and what it raises as ``failure``, the error to answer.

    A cancellation is the transport's to explain, but for the one by a server that stops.
    """

    __slots__ = ("_call", "_long", "_server", "_span", "_task", "_token", "_tracing", "failure")

    def __init__(self, server: Server, call: Call, *, long: bool) -> None:
        self._server = server
        self._call = call
        self._long = long
        self.failure: errors.NodeError | None = None

    def __enter__(self) -> Answering:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._server.running[task] = (self._call.method, self._long)
        self._token = _current.set(self._call)
        self._tracing = tracing.ServerSpan(self._call.method, self._call.headers)
        self._span = self._tracing.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> bool:
        method = self._call.method
        handled = True
        if error is None:
            pass
        elif isinstance(error, errors.NodeError):
            # A copy: the error itself knows the frames that it came through, this handler's among them, and what they have, such as a document of megabytes, would stay until a look for cycles.
            self._fails(error, type(error).verbatim(str(error), error.trailers))
        elif isinstance(error, asyncio.CancelledError):
            self._span.status(errors.Cancelled.code, "cancelled")
            if self._server.draining:
                self.failure = errors.Unavailable(f"{method}: the service is stopping", trailers=((STOPPING, "1"),))
            else:
                handled = False
        elif (failure := errors.of_machine(error, method)) is not None:
            self._fails(failure, failure)
        elif isinstance(error, Exception):
            log.error("%s failed unexpectedly", method, exc_info=error)
            self._span.exception(error)
            self.failure = errors.defect(method)
        else:
            handled = False
        self._tracing.__exit__(None, None, None)
        # The task may have ended in another context (a closed generator); resetting is then neither possible nor needed.
        with contextlib.suppress(ValueError):
            _current.reset(self._token)
        self._server.running.pop(self._task, None)
        return handled

    def _fails(self, error: errors.NodeError, failure: errors.NodeError) -> None:
        self.failure = failure
        self._span.status(error.code, str(error))
        logs.failed(self._call.method, self._call.optional_namespace, error)


@contextlib.asynccontextmanager
async def serving(
    address: Path | str,
    servicers: Iterable[Servicer],
    *,
    relay: Relay | None = None,
    grace: float = 5.0,
    long: frozenset[str] = LONG,
    relayed: bool = False,
) -> AsyncIterator[Server]:
    """Serve on a unix socket (mode 0600) until the block ends, then drain for ``grace`` seconds.

    grpc.health.v1.Health is added unless a servicer has it, and containerd's Version. The caller holds the lock of the directory that it serves (``kit.process.owned``): whoever
    holds it may replace the socket. A path longer than the kernel's 107 bytes is refused with a clear error.

    ``relayed`` is for a socket whose callers are the node's own processes: one connection there carries the calls of many clients, each of which the gateway has bounded. It
    takes many calls as one (``kit.many``).

    An address that is a string is ``host:port``, for tests that drive a server by programs which know no unix sockets; port 0 takes a free one, and
    ``server.address`` tells which.
    """
    if isinstance(address, Path):
        check_socket_path(address)
    servicers = list(servicers)
    health = dict.fromkeys(["", *(s.SERVICE.full_name for s in servicers)], _SERVING)
    if "grpc.health.v1.Health" not in health:
        from services.kit.health import HealthServicer

        servicers.append(HealthServicer(health, trouble=lambda: server.trouble))
    from services.kit.version_server import VersionServicer

    servicers.append(VersionServicer())
    many = None
    if relayed:
        from services.kit.many import ManyServicer

        servicers.append(many := ManyServicer())
    methods = Methods(servicers, relay, long)
    server: Server
    if transport() == "grpcio":
        from services.kit import grpcio

        server = grpcio.GrpcioServer(address, methods, health)
    else:
        from services.wire.server import WireServer

        server = WireServer(address, methods, health, relayed=relayed)
    if many is not None:
        many.server = server
    await server.start()
    try:
        yield server
    finally:
        await server.stop(grace)
        if isinstance(address, Path):
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


class CarriedStream(Protocol):
    """A streaming call as a transport carries it: bytes out, bytes in. What fails raises :mod:`services.kit.errors`."""

    async def send(self, message: bytes) -> None:
        """Send one message; if the call has ended, raise what it ended with."""
        ...

    async def done_sending(self) -> None:
        """Half-close."""
        ...

    async def receive(self) -> bytes | None:
        """The next message, or None at the end of a call that ended with OK; else raises the status."""
        ...

    async def leading(self) -> Headers:
        """The metadata that came before the first message; waits for it."""
        ...

    def trailing(self) -> Headers:
        """The metadata that came with the status; empty before it."""
        ...

    def cancel(self) -> None:
        """End it, if it has not ended."""
        ...


class Carrier(Protocol):
    """A transport's side of a :class:`Channel`."""

    async def unary(self, path: str, request: bytes, metadata: Metadata, timeout: float | None) -> bytes:
        """One unary call; its failure as one of our errors, Disconnected where it is the transport's."""
        ...

    def stream(self, path: str, metadata: Metadata, timeout: float | None) -> CarriedStream:
        """Open a streaming call of any arity: on the wire all four are the same."""
        ...

    def connected(self) -> bool:
        """Whether the peer is there; starts connecting if it is not."""
        ...

    async def changed(self, known: bool) -> bool:
        """Whether the peer is there, once that is no longer as ``known``. Keeps connecting meanwhile."""
        ...

    async def close(self) -> None:
        """End it."""
        ...


class Stream:
    """An open streaming call to another process. Use as ``async with``; leaving it early cancels the call."""

    __slots__ = ("_carried", "_decode", "_encode", "_ended", "_span")

    def __init__(self, carried: CarriedStream, span: tracing.Span, encode: Callable[[Any], bytes], decode: Callable[[bytes], Any]) -> None:
        self._carried = carried
        self._span = span
        self._encode = encode
        self._decode = decode
        self._ended = False

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._finish()

    def _finish(self) -> None:
        if not self._ended:
            self._ended = True
            self._carried.cancel()
            self._span.end()

    def _failed(self, error: errors.NodeError) -> None:
        if not self._ended:
            self._ended = True
            self._span.status(error.code, str(error))
            self._span.end()

    async def send(self, message: Any) -> None:
        """Send one message; if the call has ended, raise what it ended with."""
        try:
            await self._carried.send(self._encode(message))
        except errors.NodeError as error:
            self._failed(error)
            raise

    async def done_sending(self) -> None:
        """Half-close: no more messages from us."""
        try:
            await self._carried.done_sending()
        except errors.NodeError as error:
            self._failed(error)
            raise

    async def receive(self) -> Any | None:
        """The next message, or None at the end; raises the status if it is not OK."""
        try:
            message = await self._carried.receive()
        except errors.NodeError as error:
            self._failed(error)
            raise
        if message is not None:
            return self._decode(message)
        if not self._ended:
            self._ended = True
            self._span.end()
        return None

    async def leading(self) -> Headers:
        """The metadata that came before the first message; waits for it."""
        return await self._carried.leading()

    def trailing(self) -> Headers:
        """The metadata that came with the status; empty before it."""
        return self._carried.trailing()

    def __aiter__(self) -> AsyncIterator[Any]:
        return self._messages()

    async def _messages(self) -> AsyncIterator[Any]:
        try:
            while (message := await self.receive()) is not None:
                yield message
        finally:
            self._finish()


def load() -> None:
    """Import what calls will need, with all else that the process is made of: later it might be of another release."""
    importlib.import_module("services.kit.many")
    _carrier()


def _carrier() -> Callable[[str, str, Pings], Carrier]:
    if transport() == "grpcio":
        from services.kit import grpcio

        return grpcio.GrpcioCarrier
    from services.wire.channel import WireCarrier

    return WireCarrier


class Channel:
    """A connection to one process, which may be down and come back. Made once, closed with :meth:`close`."""

    def __init__(self, address: Path | str, name: str = "", *, pings: Pings = "calls") -> None:
        """``pings`` says when a hung peer is noticed, within 2 s: "always", or during "calls" only, for servers of ours; "never" for others' servers.

        grpc-go takes pings of every second for abuse and ends the connection (too_many_pings); there, a call's own deadline must do.
        """
        self.address = str(address)
        self.name = name or Path(self.address).stem
        self._pings: Pings = pings
        self._opened: Carrier | None = None
        self._gathering: Gathering | None = None

    @property
    def carrier(self) -> Carrier:
        """The transport's side of it, made within the loop that uses it."""
        if self._opened is None:
            self._opened = _carrier()(self.address, self.name, self._pings)
        return self._opened

    async def __aenter__(self) -> Channel:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        if self._opened is not None:
            await self._opened.close()

    def client(self, service: ServiceDescriptor) -> Client:
        """Call a service's methods by their names."""
        return Client(self, service)

    def connected(self) -> bool:
        """Whether the peer is known to be there now; starts connecting if it is not."""
        return self.carrier.connected()

    async def connections(self) -> AsyncIterator[bool]:
        """Whether the peer is there: now, and again whenever that may have changed. Connects as long as it is iterated."""
        state = self.connected()
        while True:
            yield state
            state = await self.carrier.changed(state)  # from the state just told: one that came in between is no loss

    async def wait_connected(self, seconds: float) -> bool:
        """Wait until the peer is there, for at most ``seconds``."""
        try:
            async with asyncio.timeout(seconds):
                for _ in range(2):  # hear first what the kernel has to tell of a connection that was lost while this loop did not run
                    await asyncio.sleep(0)
                while not self.connected():
                    await self.carrier.changed(False)
        except TimeoutError:
            return False
        return True

    async def reached(self, seconds: float) -> None:
        """As :meth:`wait_connected`, but Disconnected, naming the peer, if it is not there in time: a call that was made all the same would wait for it once more."""
        if not self.connected() and not await self.wait_connected(seconds):
            raise errors.Disconnected(f"service {self.name} is not reachable (nobody answers on {self.address})")

    async def unary(self, path: str, request: Any, headers: Headers, timeout: float | None,
                    encode: Callable[[Any], bytes] = _same, decode: Callable[[bytes], Any] = _same, *, together: bool = False) -> Any:
        """One unary call. ``timeout`` in seconds, None for no limit. ``together``: it may go with others of this turn of the loop, see ``kit.many``."""
        with tracing.client_span(path) as span:
            try:
                if (together or _together.get()) and self._pings != "never":
                    return decode(await self._gathered().unary(path, encode(request), tuple(headers.items()), span.headers(), timeout))
                return decode(await self.carrier.unary(path, encode(request), (*headers.items(), *span.headers()), timeout))
            except errors.NodeError as error:
                span.status(error.code, str(error))
                raise

    def _gathered(self) -> Gathering:
        if self._gathering is None:
            from services.kit.many import Gathering

            self._gathering = Gathering(self.carrier)
        return self._gathering

    def stream(self, path: str, headers: Headers, timeout: float | None = None,
               encode: Callable[[Any], bytes] = _same, decode: Callable[[bytes], Any] = _same) -> Stream:
        """Open a streaming call of any arity: on the wire all four are the same."""
        span = tracing.client_span(path)
        return Stream(self.carrier.stream(path, (*headers.items(), *span.headers()), timeout), span, encode, decode)


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
    in seconds, and of unary ones ``together`` (:meth:`Channel.unary`). A unary call without a timeout gets :data:`UNARY_TIMEOUT`, and in a handler no more than its caller has
    left; ``timeout=None`` lifts the limit. Failures are raised as :mod:`services.kit.errors`.
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
        async def unary(request: Any, *, headers: Mapping[str, str | bytes] = {}, timeout: float | None = -1.0, together: bool = False) -> Any:
            return await self._channel.unary(bound.path, request, headers, _limit(timeout), bound.encode, bound.decode, together=together)

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

    task = loops.task("work that outlives its caller", without_deadline())
    _shielded.add(task)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(_log_failure)
        raise
    finally:
        task.add_done_callback(_shielded.discard)
        del task  # a failure's traceback holds this frame, which would hold the failure


def _log_failure(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.warning("work that outlived its caller failed: %s", error)


async def shielded_work_done(seconds: float) -> None:
    """Before a process ends: wait for what is still running under :func:`shielded`."""
    if _shielded:
        await asyncio.wait(list(_shielded), timeout=seconds)


