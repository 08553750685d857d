"""Taps: an operator watches the calls to a service as they pass.

A tap costs the calls that it watches some microseconds, more if it shows their messages, and all other calls nothing.
It never waits for its reader: what that does not read in time is dropped, and counted.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from gateway import shown_messages
from gateway.choices import Choice
from gateway.instruments import Go, Order, Standing
from gateway.writes import WRITE, is_commit
from services.kit import errors, tracing
from services.kit.rpc import NAMESPACE, CarriedStream, Headers

MOST = 16
"""Taps at once."""
EVENTS, SIZE = 2000, 1 << 20
"""Events that wait for the reader of a tap, and bytes of their text, at most."""
BATCH = 200
"""Events that are handed over at once."""
_TRACE = re.compile("00-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")


@dataclass(slots=True)
class Passed:
    """A message has passed."""

    call: int
    time: int
    """Nanoseconds since the epoch."""
    path: str
    received: bool
    """Whether it is an answer."""
    size: int
    text: str


@dataclass(slots=True)
class Seen:
    """A call, which has ended when it is an event."""

    call: int
    time: int
    """When it began, in nanoseconds since the epoch."""
    service: str
    path: str
    namespace: str
    trace: str
    sent: int = 0
    sent_bytes: int = 0
    received: int = 0
    received_bytes: int = 0
    duration: int = 0
    """Nanoseconds."""
    code: int = 0
    message: str = ""


Event = Seen | Passed


class Tap:
    """One tap, which has an instrument (:class:`Watched`) at each upstream."""

    def __init__(self, choice: Choice, *, messages: bool = False) -> None:
        self.choice = choice
        self.messages = messages
        self.begun = time.time_ns()
        self.seen = self.dropped = 0
        self._told = 0
        """Of the dropped events, those that the reader knows of."""
        self._numbers = itertools.count(1)
        self._events: deque[Event] = deque()
        self._size = 0
        self._came = asyncio.Event()

    # -- its reader

    async def events(self) -> tuple[Sequence[Event], int]:
        """The next events, and how many were dropped before them. Waits for the first."""
        await self._came.wait()
        found = [self._events.popleft() for _ in range(min(BATCH, len(self._events)))]
        self._size -= sum(map(_size, found))
        if not self._events:
            self._came.clear()
        dropped, self._told = self.dropped - self._told, self.dropped
        return found, dropped

    # -- the calls

    def number(self) -> int:
        """The number of a new call."""
        self.seen += 1
        return next(self._numbers)

    def put(self, event: Event) -> None:
        """Something has happened."""
        size = _size(event)
        if len(self._events) >= EVENTS or self._size + size > SIZE:
            self.dropped += 1
            return
        self._events.append(event)
        self._size += size
        self._came.set()


def _size(event: Event) -> int:
    return len(event.text) if isinstance(event, Passed) else len(event.message) + len(event.path)


class Watched:
    """A tap at one upstream, as an instrument."""

    order = Order.TAP

    def __init__(self, tap: Tap, service: str) -> None:
        self._tap = tap
        self._service = service

    @property
    def words(self) -> str:
        """For ``splitd routes``."""
        return f"tap of {self._tap.choice}"

    def __repr__(self) -> str:
        return f"a {self.words}"

    async def unary(self, path: str, request: bytes, headers: Headers, go: Go) -> bytes:
        if not self._tap.choice.means(path, headers):
            return await go()
        call = _Watching(self._tap, self._service, path, headers)
        call.passed(request, received=False)
        try:
            answer = await go()
        except errors.NodeError as error:
            call.ended(error.code, shown_messages.failure(error))
            raise
        except asyncio.CancelledError:
            call.ended(errors.Cancelled.code, "its caller left")
            raise
        call.passed(answer, received=True)
        call.ended()
        return answer

    def stream(self, path: str, headers: Headers, carried: CarriedStream) -> CarriedStream:
        if not self._tap.choice.means(path, headers):
            return carried
        return _Stream(carried, path, _Watching(self._tap, self._service, path, headers))


class _Watching:
    """One call that is watched."""

    __slots__ = ("_begun", "_over", "_seen", "_tap")

    def __init__(self, tap: Tap, service: str, path: str, headers: Headers) -> None:
        self._tap = tap
        self._begun = time.perf_counter_ns()
        self._over = False
        found = _TRACE.fullmatch(str(headers.get("traceparent", "")))
        self._seen = Seen(
            tap.number(),
            tracing.now(),
            service,
            path,
            str(headers.get(NAMESPACE, "")),
            found[1] if found is not None else "",
        )

    def passed(self, message: bytes, *, received: bool) -> None:
        """A message has passed."""
        seen, size = self._seen, len(message)
        if received:
            seen.received += 1
            seen.received_bytes += size
        else:
            seen.sent += 1
            seen.sent_bytes += size
        if self._tap.messages:
            words = shown_messages.text(seen.path, message, answer=received)
            self._tap.put(Passed(seen.call, tracing.now(), seen.path, received, size, words))

    def ended(self, code: int = 0, message: str = "") -> None:
        """The call has ended; what is said later does not count."""
        if not self._over:
            self._over = True
            self._seen.duration = time.perf_counter_ns() - self._begun
            self._seen.code, self._seen.message = code, message
            self._tap.put(self._seen)


class _Stream:
    """A stream that is watched."""

    def __init__(self, carried: CarriedStream, path: str, call: _Watching) -> None:
        self._carried = carried
        self._path = path
        self._call = call

    async def send(self, message: bytes) -> None:
        try:
            await self._carried.send(message)
        except errors.NodeError as error:
            self._call.ended(error.code, shown_messages.failure(error))
            raise
        self._call.passed(message, received=False)

    async def done_sending(self) -> None:
        try:
            await self._carried.done_sending()
        except errors.NodeError as error:
            self._call.ended(error.code, shown_messages.failure(error))
            raise

    async def receive(self) -> bytes | None:
        try:
            message = await self._carried.receive()
        except errors.NodeError as error:
            self._call.ended(error.code, shown_messages.failure(error))
            raise
        if message is None:
            self._call.ended()
        else:
            self._call.passed(message, received=True)
            if self._path == WRITE and is_commit(message):  # the gateway does not wait for the stream's end
                self._call.ended()
        return message

    async def leading(self) -> Headers:
        return await self._carried.leading()

    def trailing(self) -> Headers:
        return self._carried.trailing()

    def cancel(self) -> None:
        self._call.ended(errors.Cancelled.code, "its caller left")
        self._carried.cancel()


class Taps:
    """The taps of a gateway."""

    def __init__(self, standing: Standing) -> None:
        self._standing = standing
        self._all: list[Tap] = []

    def all(self) -> list[Tap]:
        """Those that stand now, the oldest first."""
        return list(self._all)

    def begin(self, choice: Choice, *, messages: bool = False) -> Tap:
        """Put up a tap, until :meth:`end`. ResourceExhausted if there are too many."""
        if len(self._all) >= MOST:
            raise errors.ResourceExhausted(f"there are {MOST} taps already")
        tap = Tap(choice, messages=messages)
        self._all.append(tap)
        self._standing.put(tap, choice.stands_at, lambda service: Watched(tap, service))
        return tap

    def end(self, tap: Tap) -> None:
        """Take it off."""
        self._standing.take(tap)
        self._all.remove(tap)
