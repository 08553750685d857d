"""What a relay decides about calls that no servicer has: who answers them, or where they pass to, and how.

A transport does what it decides, and does not parse what it relays. The gateway has the one that decides
(``gateway/relay.py``).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from services.kit.call import Arity, Call, Headers

if TYPE_CHECKING:
    from services.kit.channel import Channel

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
    """What :attr:`Route.admit` asks another process, for calls that are like most: one request, which is there, and
    an answer that settles it. That takes no coroutine.
    """

    channel: Channel
    method: str
    headers: Headers
    timeout: float
    """Seconds."""
    ready: Callable[[], bool]
    """Whether it can be asked now."""
    ask: Callable[[bytes], tuple[bytes, Meaning, Callable[[], None]]]
    """The question about a request, what its answer means, and what to do meanwhile. It means what ``admit`` would
    tell, or False if it does not settle the call. Then, and where it is an error, ``admit`` is asked.
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
    """Asked, with the first request message, before anything is sent. What it raises is the answer, and so are the
    messages that it returns, if the client takes them at once; None lets the call pass.
    """
    question: Question | None = None


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
