"""The times of a request's phases, as aiohttp reports them: queue, name, connection, TLS, sending, first byte.

:class:`Timings` belongs to one request. Its phases become spans below the request's span, and its numbers attributes of
that; an error after a timeout names its ``phase``. aiohttp counts TLS as part of the connection, so
:class:`TimedContext` notes when the handshake begins: asyncio (and uvloop) ask the context for a TLS object just then.
"""

from __future__ import annotations

import asyncio
import contextvars
import ssl
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from services.kit import later, tracing
from services.kit.tracing import Span, span

if TYPE_CHECKING:
    import aiohttp
else:
    aiohttp = later.Library("aiohttp")

attempt: contextvars.ContextVar[int] = contextvars.ContextVar("registry_attempt", default=0)
"""The number of the attempt, among all at one operation, that the current task's requests belong to."""

_current: contextvars.ContextVar[Timings | None] = contextvars.ContextVar("registry_timings", default=None)


class Timings:
    """The timings of one request, in seconds. A phase that did not happen, since a connection existed, is not in
    ``took``.
    """

    __slots__ = (
        "_began",
        "_closed",
        "_handshake",
        "_limit",
        "_sent",
        "_spans",
        "_uploads",
        "allowed",
        "deadline",
        "host",
        "peer",
        "phase",
        "reused",
        "took",
    )

    def __init__(self, host: str, limit: float, *, uploads: bool, handshake: float | None = None) -> None:
        """``uploads``: the request has a body. ``handshake``: seconds for TLS alone, once the other side's kernel has
        answered; None: it shares the limit.
        """
        self.host = host
        self.phase = "the queue"
        self.reused = False
        self.peer = ""
        """The address of a new connection, or the last that was tried."""
        self.took: dict[str, float] = {}
        self.deadline = asyncio.timeout(None)
        """Runs while a connection is made, for ``limit`` seconds: name, connection and TLS together."""
        self._limit = self.allowed = limit
        self._handshake = handshake
        self._closed = False
        self._uploads = uploads
        self._sent = (0, 0)
        """When the head of a request with a body was sent, and the last piece of that body."""
        self._began: dict[str, float] = {}
        self._spans: dict[str, Span] = {}

    def attach(self) -> contextvars.Token[Timings | None]:
        """Let a TLS handshake in this context count for this request."""
        return _current.set(self)

    @staticmethod
    def detach(token: contextvars.Token[Timings | None]) -> None:
        """Undo :meth:`attach`."""
        _current.reset(token)

    def begin(self, phase: str, words: str) -> None:
        """``phase`` begins; an error calls it ``words``."""
        if self._closed:
            return  # a lookup may outlive its request, since others wait for it too
        self.end(phase)  # aiohttp repeats a request whose idle connection turns out to be closed
        self.phase = words
        self._began[phase] = time.monotonic()
        self._spans[phase] = span(f"registry.{phase}", **{"server.address": self.host})

    def end(self, phase: str) -> None:
        """``phase`` is over, if it began."""
        if phase in self._began:
            self.took[phase] = time.monotonic() - self._began.pop(phase)
            self._spans.pop(phase).end()

    def limit(self, on: bool) -> None:
        """The time limit for making a connection begins, or ends."""
        self.deadline.reschedule(asyncio.get_running_loop().time() + self._limit if on else None)

    def shaking(self) -> None:
        """There is a connection, and the TLS handshake begins."""
        self.end("connect")
        self.begin("tls", "the TLS handshake")
        if self._handshake is not None and not self._closed:
            self.allowed = self._handshake
            self.deadline.reschedule(asyncio.get_running_loop().time() + self._handshake)

    @property
    def failed_in(self) -> str:
        """The phase that is under way: ``dns``, ``connect``, ``tls``, ``first_byte``."""
        return next(reversed(self._began), "first_byte")

    def head_sent(self) -> None:
        """The request is sent, except for a body."""
        if self._uploads:
            self._sent = (now := tracing.now()), now
        else:
            self.begin("first_byte", "the answer")

    def piece_sent(self) -> None:
        """So is a piece of its body."""
        self._sent = self._sent[0], tracing.now()

    def answered(self) -> None:
        """The first byte of the answer has come."""
        self.end("first_byte")
        self._end_upload()

    def _end_upload(self) -> None:
        (begun, sent), now = self._sent, tracing.now()
        if begun:
            self._sent = 0, 0
            for phase, start, end in (("send", begun, sent), ("first_byte", sent, now)):
                self.took[phase] = (end - start) / 1e9
                tracing.recorded(f"registry.{phase}", start, end, "", parent=None, **{"server.address": self.host})

    def close(self, on: Span) -> None:
        """End all open phases, and set the numbers on ``on``."""
        self._closed = True
        for phase in list(self._began):
            self.end(phase)
        self._end_upload()
        on.set(
            **{f"splitd.registry.{phase}_ms": round(seconds * 1000, 3) for phase, seconds in self.took.items()},
            **{"splitd.registry.connection_reused": self.reused},
            **({"network.peer.address": self.peer} if self.peer else {}),
        )


def note_peer(peer: str) -> None:
    """Note that the request of this context tries this address."""
    timings = _current.get()
    if timings is not None:
        timings.peer = peer


class TimedContext(ssl.SSLContext):
    """A client's TLS context that notes when a handshake begins."""

    def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:
        """The TLS object of a new connection."""
        timings = _current.get()
        if timings is not None:
            timings.shaking()
        return super().wrap_bio(*args, **kwargs)


def trace_config() -> aiohttp.TraceConfig:
    """Reports to the :class:`Timings` that a request has as its ``trace_request_ctx``."""
    config = aiohttp.TraceConfig()

    async def queued(_: Any, context: SimpleNamespace, __: Any) -> None:
        context.trace_request_ctx.begin("queue", "the queue for a connection")

    async def dequeued(_: Any, context: SimpleNamespace, __: Any) -> None:
        context.trace_request_ctx.end("queue")

    async def connecting(_: Any, context: SimpleNamespace, __: Any) -> None:
        context.trace_request_ctx.limit(True)
        context.trace_request_ctx.begin("connect", "connecting")

    async def connected(_: Any, context: SimpleNamespace, __: Any) -> None:
        timings: Timings = context.trace_request_ctx
        timings.limit(False)
        timings.end("connect")
        timings.end("tls")
        timings.phase = "the answer"

    async def reused(_: Any, context: SimpleNamespace, __: Any) -> None:
        context.trace_request_ctx.reused = True
        context.trace_request_ctx.phase = "the answer"

    async def resolving(_: Any, context: SimpleNamespace, __: Any) -> None:
        context.trace_request_ctx.begin("dns", "looking up its name")

    async def resolved(_: Any, context: SimpleNamespace, __: Any) -> None:
        timings: Timings = context.trace_request_ctx
        timings.end("dns")
        timings.end("connect")  # connect began with the lookup; from here on it is the connection only
        timings.begin("connect", "connecting")

    async def head_sent(_: Any, context: SimpleNamespace, __: Any) -> None:
        context.trace_request_ctx.head_sent()

    async def piece_sent(_: Any, context: SimpleNamespace, __: Any) -> None:
        context.trace_request_ctx.piece_sent()

    async def ended(_: Any, context: SimpleNamespace, __: Any) -> None:
        context.trace_request_ctx.answered()

    config.on_connection_queued_start.append(queued)
    config.on_connection_queued_end.append(dequeued)
    config.on_connection_create_start.append(connecting)
    config.on_connection_create_end.append(connected)
    config.on_connection_reuseconn.append(reused)
    config.on_dns_resolvehost_start.append(resolving)
    config.on_dns_resolvehost_end.append(resolved)
    config.on_request_headers_sent.append(head_sent)
    config.on_request_chunk_sent.append(piece_sent)
    config.on_request_end.append(ended)
    return config
