"""What a relay decides about calls that no servicer has: who answers them, or where they are passed to, and how.

A transport carries the decision out, and does not parse what it relays. The gateway has the relay that decides
(``gateway/relay.py``).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from services.kit import errors
from services.kit.call import Arity, Call, Headers, shorter

if TYPE_CHECKING:
    from services.kit.channel import Channel

log = logging.getLogger(__name__)

Coordinated = Callable[[AsyncIterator[bytes], Call], AsyncIterator[bytes]]


class Upstream(Protocol):
    """A process that calls are relayed to. It may be away for a moment."""

    name: str
    channel: Channel

    def is_ready(self) -> bool:
        """Whether :meth:`ready` would answer at once."""
        ...

    async def ready(self, call: Call | None = None) -> Channel:
        """The channel, as soon as the process is connected. Unavailable, naming it, if that takes too long."""
        ...


class Hop(Protocol):
    """The way to one kind of service (:class:`services.kit.hops.Hop`). It is asked for each call."""

    name: str

    def to(self, namespace: str, key: str = "") -> Upstream:
        """The upstream of a call in ``namespace``. ``key``, what the call is about, is empty for calls that pass
        unread.
        """
        ...


Answers = Sequence[bytes | bytearray]
"""Serialized messages with which a gateway answers a call by itself."""


class Elsewhere:
    """The call is for this upstream, and not for the hop's. ``answers`` are as :attr:`Route.admit` returns them."""

    __slots__ = ("answers", "upstream")

    def __init__(self, upstream: Upstream, answers: Answers | None = None) -> None:
        self.upstream = upstream
        self.answers = answers


Meaning = Callable[[bytes], Answers | Literal[False] | Elsewhere | None]


@dataclass(slots=True, frozen=True)
class Question:
    """The question that :attr:`Route.admit` asks another process, in the form for ordinary calls: the one request is
    there, and one answer settles it. This form needs no coroutine.
    """

    hop: Hop
    method: str
    headers: Headers
    timeout: float
    """Seconds."""
    ready: Callable[[Upstream], bool]
    """Whether the hop's upstream can be asked now."""
    ask: Callable[[bytes], tuple[bytes, Meaning, Callable[[], None]]]
    """Makes the question about a request, a function that interprets the answer, and work to do meanwhile. The
    interpretation is the result of ``admit``, or False if the answer does not settle the call. In that case, and if the
    question fails, ``admit`` is asked.
    """
    remembered: Remembered | None = None
    """Its answers, not DATA but messages."""


Note = Callable[[bytes], None]
"""Takes an answer, to remember it."""


class Remembered(Protocol):
    """Answers of an upstream that a gateway remembers, as they came (``gateway/remembered.py``): for calls of one
    method whose answer depends on nothing but their namespace, their request and what they ask about.
    """

    def find(self, upstream: Upstream, path: str, namespace: str, request: bytes) -> bytes | None:
        """What the upstream would answer now, all of its DATA as ``request`` is; None if that is not known."""
        ...

    def asked(self, upstream: Upstream, path: str, namespace: str, request: bytes) -> Note | None:
        """The upstream is asked now. The result takes its answer; None if that is not to be remembered."""
        ...


@dataclass(slots=True, frozen=True)
class Route:
    """Where a call is relayed to, and how."""

    hop: Hop
    """Asked for each call, and again when the call is repeated."""
    headers: Headers
    """Sent instead of the caller's headers."""
    timeout: float | None = None
    """Seconds that the call may take, if the caller allows more. None: as long as the caller waits."""
    stall: float | None = None
    """Seconds without progress after which the call ends. None: never. One of our processes keeps this limit itself
    (``kit.progress``); of another, only its messages are seen.
    """
    repeats: float = 0
    """How often a unary call is repeated if its upstream goes away during the call."""
    admit: Callable[[bytes, Call], Awaitable[Answers | Elsewhere | None]] | None = None
    """Asked, with the first request message, before anything is sent. An exception from it is the answer. Messages that
    it returns are the answer, too, if the client reads them at once. None lets the call pass to the hop's upstream,
    :class:`Elsewhere` to another one.
    """
    question: Question | None = None
    remembered: Remembered | None = None
    """Asked about unary calls whose upstream has nobody around it."""


async def relayed(route: Route, request: bytes, call: Call, *, together: bool = False) -> bytes:
    """The answer to a unary call by its ``route``, for transports that have its one request. Failures are the
    upstream's. ``together`` is as in :meth:`~services.kit.channel.Channel.unary`.
    """
    target: Upstream | None = None
    if route.admit is not None:
        answers = await route.admit(request, call)
        if isinstance(answers, Elsewhere):
            target, answers = answers.upstream, answers.answers
        if answers is not None:
            return bytes(answers[0])
    attempt = 0
    while True:
        upstream = target or route.hop.to(call.optional_namespace)
        channel = await upstream.ready(call)
        try:
            answer: bytes = await channel.unary(
                call.method,
                request,
                route.headers,
                shorter(route.timeout, call.remaining()),
                stall=route.stall,
                together=together,
            )
            return answer
        except errors.Disconnected:
            if attempt >= route.repeats:
                raise
            attempt += 1
            log.info("%s is repeated: service %s went away", call.method, upstream.name)
            await asyncio.sleep(0.05)


class Relay(Protocol):
    """Decides about methods that no servicer has. The transport carries the decision out, and does not parse what it
    relays.

    A decision depends only on a call's method and headers. It may be remembered for the next call with the same ones,
    until the server is told to decide anew (``Server.decide_anew``).
    """

    def arity(self, method: str) -> Arity:
        """How to treat a method's messages; :data:`STREAMS` if that is not known."""
        ...

    def coordinated(self, call: Call) -> Coordinated | None:
        """The function that answers the call message by message, or None if it passes through."""
        ...

    def route(self, call: Call) -> Route:
        """Where the call is passed to. An error from here is the answer."""
        ...
