"""What a transport must be: a :class:`Server` of methods, and a :class:`Carrier` of calls to another process; and what
both are given.

:mod:`services.wire` is one transport, :mod:`services.kit.grpcio` the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol

from google.protobuf import message_factory

from services.kit import errors, logs, loops, observer, progress, sockets
from services.kit.call import (
    CURRENT,
    RAW,
    STALL,
    STOPPING,
    STREAMS,
    TOLD,
    Arity,
    Call,
    Headers,
    Metadata,
    Pieces,
    Servicer,
    method_path,
)
from services.kit.relays import Coordinated, Relay

if TYPE_CHECKING:
    import ssl

log = logging.getLogger(__name__)

# ---------------------------------------------------------------------------------------------- serving

SERVING, NOT_SERVING = 1, 2
"""States of grpc.health.v1."""


Together = Callable[[Sequence[Any], Call], Awaitable[Sequence[Any]]]
"""Answers several unary calls of one method, which came as one (``kit.many``), at less cost than one by one. For each
request there is an answer: a message, the error to answer, or None for a call that its own handler is to answer.
"""


@dataclass(slots=True, frozen=True)
class Method:
    """One RPC as a transport sees it: ``handler``, with bytes on its outer side."""

    path: str
    arity: Arity
    handler: Callable[..., Any]
    decode: Callable[[bytes], Any]
    encode: Callable[[Any], bytes]
    long: bool = False
    together: Together | None = None

    def whole(self, message: Any) -> bytes:
        """The serialized form of an answer, which is a message or :class:`Pieces`."""
        return b"".join(message) if type(message) is Pieces else self.encode(message)


def same(message: Any) -> Any:
    return message


class Methods:
    """The methods of a server: those of its servicers, and everything that its relay accepts."""

    def __init__(self, servicers: Iterable[Servicer], relay: Relay | None, long: frozenset[str]) -> None:
        self.relay = relay
        self._long = long
        self._methods: dict[str, Method] = {}
        for servicer in servicers:
            decoders: Mapping[str, Callable[[bytes], Any]] = getattr(servicer, "DECODERS", {})
            together: Mapping[str, Together] = getattr(servicer, "together", {})
            for method in servicer.SERVICE.methods:
                handler = getattr(servicer, method.name, None)
                if handler is not None:
                    path = method_path(method)
                    self._methods[path] = Method(
                        path,
                        Arity(method.client_streaming, method.server_streaming),
                        handler,
                        decoders.get(method.name) or message_factory.GetMessageClass(method.input_type).FromString,
                        message_factory.GetMessageClass(method.output_type).SerializeToString,
                        method.name in long,
                        together.get(method.name),
                    )

    def of_servicers(self, path: str, headers: Headers) -> Method | None:
        """A servicer's method; None if the relay has it, or nobody. Raw calls are not for our servicers: they are
        relayed or refused.
        """
        if self.relay is not None and RAW in headers:
            return None
        return self._methods.get(path)

    def coordinated(self, path: str, handler: Coordinated) -> Method:
        """A relay's handler as a method."""
        return Method(path, STREAMS, handler, same, same, self.is_long(path))

    def is_long(self, path: str) -> bool:
        """Whether the method watches something (Wait, Subscribe, Watch), so that its calls may last for ever."""
        return path.rpartition("/")[2] in self._long


class Server:
    """A running server on one socket, made by ``kit.rpc.serving``. Base class of the transports' servers."""

    def __init__(self, address: Path | str, methods: Methods, health: dict[str, int]) -> None:
        self.address = address
        self.methods = methods
        self.health = health
        # the key may be another object than a task, if it can be cancelled
        self.running: dict[asyncio.Task[Any], tuple[str, bool]] = {}
        self.draining = False
        self.trouble = ""
        """Why this server is not healthy, if waiting does not help; else ""."""
        self._troubles: dict[str, str] = {}
        """What it is made of, by the name until which it lasts."""
        self._ended = False
        self.tls: ssl.SSLContext | None = None
        """How TLS is spoken, if it is. For TCP only."""
        self.entrance: observer.Entrance | None = None
        """Who decides which traces the calls belong to, if this is a socket of the node's edge."""

    def name(self) -> str:
        """The service that is served here, as the others call it: by its socket."""
        return self.address.stem if isinstance(self.address, Path) else self.address

    def calls(self) -> list[str]:
        """The methods that are being answered now, one entry for each call."""
        return [path for path, _ in self.running.values()]

    async def start(self, look: float = sockets.LOOK) -> None:
        """Listen; OSError if that fails. ``look``: seconds between looks whether the socket still exists."""
        raise NotImplementedError

    async def close(self, grace: float) -> None:
        """End the connections within ``grace`` seconds: the transport's part of :meth:`stop`."""
        raise NotImplementedError

    def decide_anew(self) -> None:
        """The relay decides otherwise from now on: forget what it decided before, which is kept by its identity."""
        self.methods.relay = copy.copy(self.methods.relay)

    def ail(self, trouble: str = "", *, until: str = "") -> None:
        """Report everything that is served here as not serving. ``trouble`` is the reason, if waiting does not help;
        several reasons are joined. A trouble may pass: :meth:`recover` with the name ``until`` ends it, and the next
        one of that name takes its place.
        """
        if trouble:
            self._troubles[until or trouble] = trouble
        else:
            self._ended = True
        self._report()

    def recover(self, until: str) -> None:
        """End the trouble that was reported ``until`` now, if there is one."""
        if self._troubles.pop(until, ""):
            self._report()

    def _report(self) -> None:
        self.trouble = "" if self._ended else "; ".join(self._troubles.values())
        state = NOT_SERVING if self._ended or self._troubles else SERVING
        self.health.update(dict.fromkeys(self.health, state))

    async def stop(self, grace: float) -> None:
        """Refuse new calls, end long ones at once, and give the others ``grace`` seconds."""
        self.draining = True
        self.ail()
        stopping = loops.task("the end of a server", self.close(grace))
        await asyncio.sleep(0)
        for task, (_, long) in list(self.running.items()):
            if long:
                task.cancel()
        await stopping


class Answering:
    """Surrounds each handler, in its task. It sets the current Call, tells the observer, and keeps an exception as
    ``failure``, the error to answer.

    A cancellation is the transport's to explain, except by a server that stops, and of a call that makes no progress
    (``kit.progress``).
    """

    __slots__ = (
        "_call",
        "_connection",
        "_long",
        "_observed",
        "_server",
        "_still",
        "_stood_still",
        "_task",
        "_token",
        "failure",
    )

    def __init__(
        self, server: Server, call: Call, *, long: bool, connection: object = None, watched: bool = True
    ) -> None:
        """``connection`` is the one by which the call came, if the transport knows it. Only a call that is ``watched``
        is ended for want of progress: a transport that does not see when a handler waits for its client must not ask
        for that.
        """
        stall = progress.stall_of(call) if watched and STALL in call.headers else None
        self._still = None if stall is None else progress.Watch(call, stall, progress.deadlines(), self._stands_still)
        self._stood_still = ""
        self._server = server
        self._call = call
        self._connection = connection
        self._long = long
        self.failure: errors.NodeError | None = None

    def __enter__(self) -> Answering:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._server.running[task] = (self._call.method, self._long)
        self._token = CURRENT.set(self._call)
        method, headers, entrance = self._call.method, self._call.headers, self._server.entrance
        self._observed = (
            observer.began("server", method, headers)
            if entrance is None
            else entrance.began(self._connection, "server", method, headers, b"")
        )
        return self

    def _stands_still(self, why: str) -> None:
        self._stood_still = f"service {self._server.name()}: {why}"
        self._task.cancel()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> bool:
        if self._still is not None:
            self._still.end()
            self._still = None  # they reference each other
        call = self._call
        handled, code, said, defect = True, 0, "", None
        if error is None:
            pass
        elif isinstance(error, errors.NodeError):
            # A copy: the error itself references the frames that it came through, among them this handler's. What they
            # hold, such as a document of megabytes, would stay until a garbage collection.
            code, said, self.failure = error.code, str(error), type(error).verbatim(str(error), error.trailers)
            logs.failed(call.method, call.optional_namespace, error)
        elif isinstance(error, asyncio.CancelledError):
            code, said = errors.Cancelled.code, "cancelled"
            if self._stood_still:
                self.failure = errors.DeadlineExceeded(self._stood_still)
                code, said = self.failure.code, str(self.failure)
                logs.failed(call.method, call.optional_namespace, self.failure)
            elif self._server.draining:
                self.failure = errors.Unavailable(
                    f"{call.method}: the service is stopping", trailers=((STOPPING, "1"),)
                )
            else:
                handled = False
        elif (failure := errors.of_machine(error, call.method)) is not None:
            code, said, self.failure = failure.code, str(failure), failure
            logs.failed(call.method, call.optional_namespace, failure)
        elif isinstance(error, Exception):
            log.error("%s failed unexpectedly", call.method, exc_info=error)
            code, said, defect, self.failure = errors.Internal.code, str(error), error, errors.defect(call.method)
        else:  # such as GeneratorExit, when a transport closes the generator of a client that is gone
            handled, code, said = False, errors.Cancelled.code, "cancelled"
        if handled and (told := observer.gathered()):
            call.trailing.append((TOLD, told))
        self._observed.ended(code, said, call.size, defect)
        # The task may have ended in another context (a closed generator); then resetting is neither possible nor
        # needed.
        with contextlib.suppress(ValueError):
            CURRENT.reset(self._token)
        self._server.running.pop(self._task, None)
        return handled


# ---------------------------------------------------------------------------------------------- calling

Pings = Literal["never", "calls", "always"]
"""When pings look for a hung peer: never, while there are calls, or always."""


class CarriedStream(Protocol):
    """A streaming call as a transport carries it: bytes out, bytes in. Failures raise :mod:`services.kit.errors`."""

    async def send(self, message: bytes) -> None:
        """Send one message. If the call has ended, raise its error."""
        ...

    async def done_sending(self) -> None:
        """Half-close."""
        ...

    async def receive(self) -> bytes | None:
        """The next message, or None at the end of a call that ended with OK; else raises the status."""
        ...

    async def leading(self) -> Headers:
        """The metadata before the first message; waits for it."""
        ...

    def trailing(self) -> Headers:
        """The metadata that came with the status; empty before that."""
        ...

    def cancel(self) -> None:
        """End the call, if it has not ended."""
        ...


class Carrier(Protocol):
    """A transport's side of a :class:`Channel`."""

    @property
    def watches_streams(self) -> bool:
        """Whether the transport's servers keep the stall of streaming calls, too (``kit.progress``)."""
        ...

    async def unary(self, path: str, request: bytes, metadata: Metadata, timeout: float | None) -> bytes:
        """Make one unary call. A failure is one of our errors: Disconnected if it is the transport's."""
        ...

    def stream(self, path: str, metadata: Metadata, timeout: float | None) -> CarriedStream:
        """Open a streaming call of any arity; on the wire all four are the same."""
        ...

    trouble: str
    """Why the last attempt to connect failed; empty if there was none since the last success, or the transport does
    not know.
    """

    def connected(self) -> bool:
        """Whether the peer is connected; starts to connect if it is not."""
        ...

    async def changed(self, known: bool) -> bool:
        """Wait until the state differs from ``known``, and return whether the peer is connected. Keeps connecting
        meanwhile.
        """
        ...

    async def close(self) -> None:
        """Close the connection."""
        ...
