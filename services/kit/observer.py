"""Tells listeners when calls begin and end. Each transport reports here, once, and knows none of the listeners.

A *listener* is a function that is called at the beginning of each call, and returns the object that is told of its end.
:func:`tracing.began <services.kit.tracing.began>` is always one, the first. A side is

- ``server``: a handler of this process answers the call, in the task that reports it;
- ``client``: this process makes the call;
- ``relay``: the call passes through unread, outside of any task.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, Protocol

from services.kit import errors, tracing
from services.kit.call import CURRENT

Side = Literal["server", "client", "relay"]


class Observed(Protocol):
    """One call, as a listener sees it. Either :meth:`ended` or :meth:`left` is called last, and once."""

    @property
    def inside(self) -> bool:
        """Whether work for a relayed call must run in a task, after :meth:`enter`."""
        ...

    def headers(self) -> tuple[tuple[str, str], ...]:
        """Headers to send with a client's or a relay's call: W3C trace context. Calls that are made together
        (``kit.many``) have room for nothing else.
        """
        ...

    def enter(self) -> None:
        """From here on the current task works for the call, on the side of a relay."""
        ...

    def ended(self, code: int = 0, message: str = "", size: int = 0, defect: Exception | None = None) -> None:
        """The call has ended, with a gRPC code.

        ``size`` is the bytes of its messages in both directions, if its transport sees them: grpcio's server does not.
        ``defect`` is a failure that is a bug.
        """
        ...

    def left(self, size: int = 0) -> None:
        """The client that made the call does not wait for its end any longer."""
        ...


Listener = Callable[[Side, str, Mapping[str, str | bytes]], Observed]
"""Takes a call's side, its method (``/package.Service/Method``) and, except for a client, the headers that came with
it.
"""


class Calling:
    """Surrounds a unary call that this process makes: its exception tells how the call ended. Its owner adds to
    ``size``.
    """

    __slots__ = ("_for", "headers", "observed", "size")

    def __init__(self, method: str, headers: Mapping[str, str | bytes]) -> None:
        self.observed = began("client", method, headers)
        self.headers = self.observed.headers()
        self.size = 0

    def __enter__(self) -> Calling:
        self._for = CURRENT.get()
        if self._for is not None:
            self._for.waits(1)
        return self

    def __exit__(self, kind: object, error: BaseException | None, tb: object) -> None:
        if self._for is not None:
            self._for.waits(-1)
        if error is None:
            self.observed.ended(0, "", self.size)
        elif isinstance(error, errors.NodeError):
            self.observed.ended(error.code, str(error), self.size)
        elif isinstance(error, Exception):
            self.observed.ended(errors.Internal.code, str(error), self.size, error)
        else:  # a cancellation
            self.observed.left(self.size)


class Began(Protocol):
    """How a transport reports a call. ``parent`` is for a process at the node's edge (:class:`Entrance`): the root of
    the operation that the call belongs to.
    """

    def __call__(
        self, side: Side, method: str, headers: Mapping[str, str | bytes], parent: tracing.Span | None = None
    ) -> Observed: ...


class Entrance(Protocol):
    """Reports the calls that come to a socket of the node's edge, and decides which trace each of them belongs to, and
    whether it is recorded. A server that has one asks it instead of :data:`began`.
    """

    def began(
        self, connection: object, side: Side, method: str, headers: Mapping[str, str | bytes], request: bytes
    ) -> Observed:
        """A call begins that came by ``connection``, None if the transport cannot tell connections apart. ``request``
        is the beginning of its first message, as far as it is known; empty for handlers.
        """
        ...

    def left(self, connection: object) -> None:
        """The connection has ended, and so have its calls."""
        ...


here = tracing.current
"""The span that the current task works in, for :func:`resume`."""

gathered = tracing.gathered
"""What a handler that ends has to tell the root of its trace, as the trailer ``kit.call.TOLD``; empty for nothing."""

told = tracing.told
"""That trailer came with the answer of a call that this task made. It goes on its way to the root."""


def resume(span: tracing.Span) -> None:
    """The current task works for ``span`` from now on."""
    tracing.CURRENT.set(span)


def several(count: int) -> None:
    """The call that the current task handles stands for so many of one method."""
    tracing.current().put({"splitd.group": count})


def inside(observed: Observed) -> AbstractContextManager[Any]:
    """Within the block, the current span is that of the call as it leaves this process, if it is recorded. For those
    who stand around a call (``kit.channel.Around``).
    """
    span: tracing.Span | None = getattr(observed, "leaving", None)
    return nullcontext() if span is None else span.inside()


def remembered(observed: Observed) -> None:
    """The call is answered without asking anybody: with what was answered before."""
    span: tracing.Span | None = getattr(observed, "outer", None)
    if span is not None:
        span.put({"splitd.remembered": True})


def over_ttrpc(observed: Observed) -> None:
    """The call goes over ttrpc, not gRPC. Its attributes have the names that containerd's otelttrpc gives them."""
    span: tracing.Span | None = getattr(observed, "outer", None)
    if span is not None:
        span.put({"rpc.system": "ttrpc"})


def asking(observed: Observed, method: str) -> Observed:
    """A call begins that this process makes for one that passes through, in a context of its own."""

    def begin() -> Observed:
        observed.enter()
        return began("client", method, {})

    return contextvars.copy_context().run(begin)


def told_relay(observed: Observed, headers: Mapping[str, str | bytes], data: str | bytes) -> bool:
    """That trailer came with the answer of a call that passes through, which came with ``headers``. The result is
    whether the caller gets it.
    """
    return tracing.told_relay(observed.first if isinstance(observed, _Several) else observed, headers, data)


_listeners: list[Listener] = []
"""All except tracing, which is always the first."""

began: Began = tracing.began
"""Report that a call begins. Call it as ``observer.began``, since it is another function if there are more
listeners.
"""


def listen(listener: Listener) -> None:
    """Add a listener, for all calls that begin from here on."""
    _listeners.append(listener)
    _choose()


def unlisten(listener: Listener) -> None:
    _listeners.remove(listener)
    _choose()


def _choose() -> None:
    global began
    began = _began if _listeners else tracing.began


def _began(side: Side, method: str, headers: Mapping[str, str | bytes], parent: tracing.Span | None = None) -> Observed:
    others = [listener(side, method, headers) for listener in _listeners]
    return _Several([tracing.began(side, method, headers, parent), *others])


class _Several:
    """A call, as several listeners see it."""

    __slots__ = ("_all", "first")

    def __init__(self, observed: list[Observed]) -> None:
        self._all = observed
        self.first = observed[0]
        """Tracing's."""

    @property
    def inside(self) -> bool:
        return any(each.inside for each in self._all)

    @property
    def outer(self) -> tracing.Span | None:
        """The span of the call, if it has one."""
        return getattr(self._all[0], "outer", None)

    @property
    def leaving(self) -> tracing.Span | None:
        """The span of the call as it leaves this process, if it has one."""
        return getattr(self._all[0], "leaving", None)

    def headers(self) -> tuple[tuple[str, str], ...]:
        return tuple(pair for each in self._all for pair in each.headers())

    def enter(self) -> None:
        for each in self._all:
            each.enter()

    def ended(self, code: int = 0, message: str = "", size: int = 0, defect: Exception | None = None) -> None:
        for each in reversed(self._all):
            each.ended(code, message, size, defect)

    def left(self, size: int = 0) -> None:
        for each in reversed(self._all):
            each.left(size)
