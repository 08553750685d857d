"""What a relay decides about calls that no servicer has: who answers them, or where they pass to, and how.

A transport does what it decides, and does not parse what it relays. The gateway has the one that decides
(``gateway/relay.py``).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from services.kit import errors
from services.kit.call import Arity, Call, Headers

if TYPE_CHECKING:
    from services.kit.channel import Channel

log = logging.getLogger(__name__)

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


class Hop(Protocol):
    """The way to one kind of service (:class:`services.kit.hops.Hop`), asked for each call."""

    name: str

    def to(self, namespace: str, key: str = "") -> Upstream:
        """Where a call in ``namespace`` goes; ``key``, what it is about, is empty of what passes unread."""
        ...


Answers = Sequence[bytes | bytearray]
"""Serialized messages that a gateway answers a call with by itself."""
Meaning = Callable[[bytes], Answers | Literal[False] | None]


@dataclass(slots=True, frozen=True)
class Question:
    """What :attr:`Route.admit` asks another process, for calls that are like most: one request, which is there, and
    an answer that settles it. That takes no coroutine.
    """

    hop: Hop
    method: str
    headers: Headers
    timeout: float
    """Seconds."""
    ready: Callable[[Upstream], bool]
    """Whether the upstream that the hop answers can be asked now."""
    ask: Callable[[bytes], tuple[bytes, Meaning, Callable[[], None]]]
    """The question about a request, what its answer means, and what to do meanwhile. It means what ``admit`` would
    tell, or False if it does not settle the call. Then, and where it is an error, ``admit`` is asked.
    """


@dataclass(slots=True, frozen=True)
class Route:
    """Where a call is relayed to, and how."""

    hop: Hop
    """Asked for each call, and again when the call is made again."""
    headers: Headers
    """What is sent on in place of the caller's headers."""
    timeout: float | None = None
    """Seconds that the call may take, where the caller allows more; None: as long as the caller waits."""
    stall: float | None = None
    """Seconds without a message from the upstream after which the call ends; None: for ever."""
    repeats: float = 0
    """How often a unary call is made again if its upstream goes away in the middle of it."""
    admit: Callable[[bytes, Call], Awaitable[Answers | None]] | None = None
    """Asked, with the first request message, before anything is sent. What it raises is the answer, and so are the
    messages that it returns, if the client takes them at once; None lets the call pass.
    """
    question: Question | None = None


async def relayed(route: Route, request: bytes, call: Call, *, together: bool = False) -> bytes:
    """The answer to a unary call by way of its ``route``, for those that have its one request: its failure is the
    upstream's. ``together`` is as in :meth:`~services.kit.channel.Channel.unary`.
    """
    if route.admit is not None and (answers := await route.admit(request, call)) is not None:
        return bytes(answers[0])
    attempt = 0
    while True:
        upstream = route.hop.to(call.optional_namespace)
        channel = await upstream.ready(call)
        try:
            answer: bytes = await channel.unary(
                call.method, request, route.headers, shorter(route.timeout, call.remaining()), together=together
            )
            return answer
        except errors.Disconnected:
            if attempt >= route.repeats:
                raise
            attempt += 1
            log.info("%s is asked again: service %s went away", call.method, upstream.name)
            await asyncio.sleep(0.05)


def shorter(a: float | None, b: float | None) -> float | None:
    """The smaller of two limits, of which each may be none."""
    return b if a is None else a if b is None else min(a, b)


class Relay(Protocol):
    """Decides about methods that no servicer has. The transport does what it decides, and does not parse what it
    relays.

    What it decides depends on a call's method and headers only, and may be remembered for the next call that has the
    same.
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
