"""Who hears that calls begin and end: each transport says it here, once, and knows none of those who listen.

A *listener* is asked at the beginning of each call for what is to hear of its end: :func:`tracing.began
<services.kit.tracing.began>` is always one. A side is

- ``server``: a handler of this process answers the call, in the task that says so;
- ``client``: this process makes it;
- ``relay``: it passes through, read by nobody, outside of any task.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, Protocol

from services.kit import errors, tracing

Side = Literal["server", "client", "relay"]


class Observed(Protocol):
    """One call, by who listens. Either :meth:`ended` or :meth:`left` is the last, and is called once."""

    @property
    def inside(self) -> bool:
        """Whether what is done for a relayed call must be done in a task, after :meth:`enter`."""
        ...

    def headers(self) -> tuple[tuple[str, str], ...]:
        """What is sent along with a client's or a relay's call: W3C trace context. Calls that are made together
        (``kit.many``) have room for nothing else.
        """
        ...

    def enter(self) -> None:
        """What this task does from here on is part of the call, of a relay's."""
        ...

    def ended(self, code: int = 0, message: str = "", size: int = 0, defect: Exception | None = None) -> None:
        """It has ended, with a gRPC code.

        ``size`` is of its messages both ways, in bytes, as far as its transport sees them: grpcio's server does not.
        ``defect`` is a failure that is a bug.
        """
        ...

    def left(self, size: int = 0) -> None:
        """Who made the call, a client, waits for its end no longer."""
        ...


Listener = Callable[[Side, str, Mapping[str, str | bytes]], Observed]
"""Of a call's side, its method (``/package.Service/Method``) and, but for a client, the headers that came with it."""


class Calling:
    """Around a unary call that this process makes: what it raises tells how the call ended. ``size`` is its owner's
    to add to.
    """

    __slots__ = ("_observed", "headers", "size")

    def __init__(self, method: str, headers: Mapping[str, str | bytes]) -> None:
        self._observed = began("client", method, headers)
        self.headers = self._observed.headers()
        self.size = 0

    def __enter__(self) -> Calling:
        return self

    def __exit__(self, kind: object, error: BaseException | None, tb: object) -> None:
        if error is None:
            self._observed.ended(0, "", self.size)
        elif isinstance(error, errors.NodeError):
            self._observed.ended(error.code, str(error), self.size)
        elif isinstance(error, Exception):
            self._observed.ended(errors.Internal.code, str(error), self.size, error)
        else:  # a cancellation
            self._observed.left(self.size)


_listeners: list[Listener] = [tracing.began]

began: Listener = tracing.began
"""A call begins. To be called as ``observer.began``: it is another function when there are more listeners."""


def listen(listener: Listener) -> None:
    """Have one more hear of all calls that begin from here on."""
    _listeners.append(listener)
    _choose()


def unlisten(listener: Listener) -> None:
    """Have it hear of no more calls."""
    _listeners.remove(listener)
    _choose()


def _choose() -> None:
    global began
    began = _listeners[0] if len(_listeners) == 1 else _began


def _began(side: Side, method: str, headers: Mapping[str, str | bytes]) -> Observed:
    return _Several([listener(side, method, headers) for listener in _listeners])


class _Several:
    """A call, by several listeners."""

    __slots__ = ("_all",)

    def __init__(self, observed: list[Observed]) -> None:
        self._all = observed

    @property
    def inside(self) -> bool:
        return any(each.inside for each in self._all)

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
