"""What stands around the calls to one upstream: taps that watch them, faults that fail them, outcomes that are counted,
shadows that copy them.

Where nothing stands, nothing is asked: the channel's ``around`` is None. Where something does, each call passes through
all of it, in the order of :class:`Order`, and calls that pass unread otherwise are read message by message
(:class:`services.kit.around.Around`).

An instrument is no part of the service that it stands around. If it fails by itself, which is a bug, it is taken off,
the log says so, and the call goes on as if it had not been there.
"""

from __future__ import annotations

import contextlib
import enum
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextvars import ContextVar
from functools import partial
from typing import Any, Protocol, runtime_checkable

from services.kit import errors
from services.kit.rpc import CarriedStream, Channel, Headers

log = logging.getLogger(__name__)

Go = Callable[[], Awaitable[bytes]]

OWED: ContextVar[bool] = ContextVar("splitd_owed", default=False)


@contextlib.contextmanager
def owed() -> Iterator[None]:
    """Calls of this block are bookkeeping that the gateway owes: what became of an operation, and the repair of what it
    left. No fault is injected into them.
    """
    token = OWED.set(True)
    try:
        yield
    finally:
        OWED.reset(token)


class Order(enum.IntEnum):
    """The kinds of instruments, from the client's side to the service's."""

    TAP = 0
    """Sees what the client sees, injected faults too."""
    FAULT = 1
    OUTCOME = 2
    """Sees how the service answers, without injected faults."""
    SHADOW = 3


class Instrument(Protocol):
    """One instrument. Its ``unary`` and ``stream`` are those of :class:`services.kit.around.Around`: a NodeError that
    they raise is the call's, and any other exception is a failure of the instrument. ``splitd routes`` shows those
    that have ``words``.
    """

    order: Order

    async def unary(self, path: str, request: bytes, headers: Headers, go: Go) -> bytes:
        """Answer one unary call; ``go`` makes it."""
        ...

    def stream(self, path: str, headers: Headers, carried: CarriedStream) -> CarriedStream:
        """``carried``, or a stream around it."""
        ...


@runtime_checkable
class Remembering(Protocol):
    """An instrument that wants to hear of calls that the gateway answers from its own memory, too."""

    def remembered(self, path: str, request: bytes, answer: bytes | None) -> None:
        """A unary call was answered, or bytes of a blob are read (None) that are the same at every asking."""
        ...

    def unread(self, path: str) -> bool:
        """Whether it hears of all calls of this method so, and none must come by it."""
        ...


class Instruments:
    """The instruments of one channel."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._all: tuple[Instrument, ...] = ()
        self.remembering: tuple[Remembering, ...] = ()
        """Those that want to hear of calls that do not come by here."""
        self.changed: list[Callable[[], None]] = []
        """Called when an instrument has come or gone."""

    def __iter__(self) -> Iterator[Instrument]:
        return iter(self._all)

    def __contains__(self, instrument: Instrument) -> bool:
        return any(each is instrument for each in self._all)

    @property
    def watched(self) -> bool:
        """Whether every call must come by here, also those that the gateway could answer from its own memory: a tap or
        a fault stands here.
        """
        return bool(self._all) and self._all[0].order <= Order.FAULT

    def add(self, instrument: Instrument) -> None:
        """Put an instrument around the calls that begin from now on. Of one kind the newest is outermost."""
        if instrument not in self:
            self._set((instrument, *self._all))

    def remove(self, instrument: Instrument) -> None:
        """Take it off; nothing happens if it is not there. Calls under way keep it to their end."""
        self._set(tuple(each for each in self._all if each is not instrument))

    def _set(self, instruments: tuple[Instrument, ...]) -> None:
        if instruments != self._all:
            self._all = tuple(sorted(instruments, key=lambda each: each.order))
            self.remembering = tuple(each for each in self._all if isinstance(each, Remembering))
            self._channel.around = self if self._all else None
            for told in self.changed:
                told()

    def remembered(self, path: str, request: bytes, answer: bytes | None = None) -> None:
        """Tell them of a call that the gateway answered from its own memory. Ask :attr:`remembering` first."""
        for each in self.remembering:
            each.remembered(path, request, answer)

    def _failed(self, instrument: Instrument, path: str, error: Exception) -> None:
        log.error("%r failed at %s, and is taken off %s", instrument, path, self._channel.name, exc_info=error)
        self.remove(instrument)

    # -- Around

    def unread(self, path: str) -> bool:
        # asked for each call that passes: what can remember is known since it was added
        return len(self.remembering) == len(self._all) and all(each.unread(path) for each in self.remembering)

    async def unary(self, path: str, request: bytes, headers: Headers, go: Go) -> bytes:
        for instrument in reversed(self._all):
            go = self._through(instrument, path, request, headers, go)
        return await go()

    def _through(self, instrument: Instrument, path: str, request: bytes, headers: Headers, inner: Go) -> Go:
        async def go() -> bytes:
            made = _Made(inner)
            try:
                return await instrument.unary(path, request, headers, made)
            except errors.NodeError:
                raise
            except Exception as error:
                if error is made.failure:  # the instrument has passed it on
                    raise
                self._failed(instrument, path, error)
            return await made.outcome()

        return go

    def stream(self, path: str, headers: Headers, carried: CarriedStream) -> CarriedStream:
        for instrument in reversed(self._all):
            inner = _Inner(carried)
            try:
                around = instrument.stream(path, headers, inner)
            except errors.NodeError:
                carried.cancel()
                raise
            except Exception as error:
                self._failed(instrument, path, error)
                continue
            if around is not inner:
                carried = _Guarded(around, inner, partial(self._failed, instrument, path))
        return carried


class Upstream(Protocol):
    """What instruments stand at."""

    name: str
    instruments: Instruments


class Upstreams(Protocol):
    """The upstreams of a node (:class:`gateway.routes.Routes`)."""

    upstreams: list[Any]
    added: list[Callable[[Any], None]]


class Standing:
    """Puts instruments at all upstreams that they are for, also at those that come later."""

    def __init__(self, routes: Upstreams) -> None:
        self._routes = routes
        self._all: dict[object, _Put] = {}
        routes.added.append(self._came)

    def put(self, owner: object, stands_at: Callable[[str], bool], make: Callable[[str], Instrument]) -> None:
        """Put up the instruments of ``owner``: ``stands_at`` says at which upstreams, and ``make`` makes the one of
        each, both by the upstream's name.
        """
        self._all[owner] = put = _Put(stands_at, make)
        for upstream in self._routes.upstreams:
            put.at(upstream)

    def take(self, owner: object) -> None:
        """Take them off everywhere."""
        put = self._all.pop(owner, None)
        for upstream, instrument in () if put is None else put.standing:
            upstream.instruments.remove(instrument)

    def _came(self, upstream: Upstream) -> None:
        for put in self._all.values():
            put.at(upstream)


class _Put:
    """The instruments of one owner."""

    def __init__(self, stands_at: Callable[[str], bool], make: Callable[[str], Instrument]) -> None:
        self._stands_at = stands_at
        self._make = make
        self.standing: list[tuple[Upstream, Instrument]] = []

    def at(self, upstream: Upstream) -> None:
        if self._stands_at(upstream.name):
            instrument = self._make(upstream.name)
            upstream.instruments.add(instrument)
            self.standing.append((upstream, instrument))


class _Made:
    """A unary call that an instrument makes, or does not. Its outcome is kept for the case that the instrument fails
    afterwards.
    """

    __slots__ = ("_answer", "_go", "failure")

    def __init__(self, go: Go) -> None:
        self._go = go
        self._answer: bytes | None = None
        self.failure: Exception | None = None

    async def __call__(self) -> bytes:
        try:
            self._answer = await self._go()
        except Exception as error:
            self.failure = error
            raise
        return self._answer

    async def outcome(self) -> bytes:
        """What became of the call, which is made now if it was not."""
        if self.failure is not None:
            raise self.failure
        return await self._go() if self._answer is None else self._answer


class _Inner:
    """The stream within an instrument's. It keeps what the operation under way has done, for the case that the
    instrument fails afterwards.
    """

    __slots__ = ("carried", "failure", "finished", "got", "received", "sent")

    def __init__(self, carried: CarriedStream) -> None:
        self.carried = carried
        self.sent = self.finished = self.received = False
        self.got: bytes | None = None
        self.failure: Exception | None = None
        """Raised by the stream within: not the instrument's failure."""

    async def send(self, message: bytes) -> None:
        self.sent = True
        await self._kept(self.carried.send(message))

    async def done_sending(self) -> None:
        self.finished = True
        await self._kept(self.carried.done_sending())

    async def receive(self) -> bytes | None:
        self.got = await self._kept(self.carried.receive())
        self.received = True
        return self.got

    async def leading(self) -> Headers:
        return await self.carried.leading()

    def trailing(self) -> Headers:
        return self.carried.trailing()

    def cancel(self) -> None:
        self.carried.cancel()

    async def _kept(self, work: Awaitable[Any]) -> Any:
        try:
            return await work
        except Exception as error:
            self.failure = error
            raise


class _Guarded:
    """An instrument's stream, which is left out from its first failure on. No message is lost or sent twice by that."""

    __slots__ = ("_around", "_failed", "_inner")

    def __init__(self, around: CarriedStream, inner: _Inner, failed: Callable[[Exception], None]) -> None:
        self._around: CarriedStream = around
        self._inner = inner
        self._failed = failed

    async def send(self, message: bytes) -> None:
        self._inner.sent = False
        if not await self._done(self._around.send(message)) and not self._inner.sent:
            await self._inner.carried.send(message)

    async def done_sending(self) -> None:
        self._inner.finished = False
        if not await self._done(self._around.done_sending()) and not self._inner.finished:
            await self._inner.carried.done_sending()

    async def receive(self) -> bytes | None:
        inner = self._inner
        inner.received = False
        try:
            return await self._around.receive()
        except errors.NodeError:
            raise
        except Exception as error:
            self._left_out(error)
        return inner.got if inner.received else await inner.carried.receive()

    async def leading(self) -> Headers:
        try:
            return await self._around.leading()
        except errors.NodeError:
            raise
        except Exception as error:
            self._left_out(error)
        return await self._inner.carried.leading()

    def trailing(self) -> Headers:
        try:
            return self._around.trailing()
        except Exception as error:
            self._left_out(error)
        return self._inner.carried.trailing()

    def cancel(self) -> None:
        try:
            self._around.cancel()
        except Exception as error:
            self._left_out(error)
        self._inner.carried.cancel()

    async def _done(self, work: Awaitable[None]) -> bool:
        """Whether the instrument did it."""
        try:
            await work
        except errors.NodeError:
            raise
        except Exception as error:
            self._left_out(error)
            return False
        return True

    def _left_out(self, error: Exception) -> None:
        """Called where ``error`` is handled. Raises it if it came from within."""
        if error is self._inner.failure:
            raise error
        if self._around is not self._inner.carried:
            self._around = self._inner.carried
            self._failed(error)
