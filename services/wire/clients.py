"""One client's calls at a server: calls in work, calls that wait for room, and the bytes that wait for the client.

On most connections there is one client. A service behind a gateway has one connection for all clients of the gateway.
There the gateway names the clients (:data:`FIELD`), so that what one of them leaves unread affects no other.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import OrderedDict
from functools import cache
from typing import Any, Protocol, cast

from services.kit.call import CLIENT
from services.wire import headers
from services.wire.limits import Limits
from services.wire.streams import Account, Stream

_PACE, _PACED = 0.02, 16
"""If none of a client's calls has ended within so many seconds, so many more are started, since those in work may
hang.
"""


class Admitted(Protocol):
    """A call that is started when its client has room."""

    over: bool
    working: bool
    """It was started and counts as a call in work; it calls :meth:`Client.ended` when it is over."""

    def start(self, argument: Any) -> None:
        """Start the call."""
        ...


class Client(Account):
    """A client. ``queued`` counts the bytes of its answers that wait for its windows. While they are more than
    ``Limits.untaken``, none of its calls is started.
    """

    __slots__ = ("_limits", "_loop", "_moving", "_pacing", "_releasing", "_waiting", "under_way")

    def __init__(self, loop: asyncio.AbstractEventLoop, limits: Limits) -> None:
        super().__init__()
        self._loop = loop
        self._limits = limits
        self.under_way = 0
        """Unary calls in work."""
        self._waiting: OrderedDict[Admitted, tuple[Any, bool]] | None = None
        self._releasing = False
        self._pacing = False
        self._moving = False
        """Whether a call has ended since the last look."""

    @property
    def reads(self) -> bool:
        """Whether the client reads its answers."""
        return self.queued <= self._limits.untaken

    def admit(self, call: Admitted, argument: Any, *, counted: bool) -> None:
        """Start a call, now or when there is room. Only so many of those that are ``counted`` are in work at once."""
        if self._has_room(counted=counted):
            self._start(call, argument, counted)
            return
        if self._waiting is None:
            self._waiting = OrderedDict()
        self._waiting[call] = argument, counted
        if not self._pacing:
            self._pacing = True
            self._loop.call_later(_PACE, self._pace)

    def _has_room(self, *, counted: bool) -> bool:
        return self.queued <= self._limits.untaken and (not counted or self.under_way < self._limits.calls)

    def _start(self, call: Admitted, argument: Any, counted: bool) -> None:
        if not call.over:
            if counted:
                call.working = True
                self.under_way += 1
            call.start(argument)

    def ended(self, call: Admitted) -> None:
        """An admitted call is over, whether it was started or not."""
        if call.working:
            self.under_way -= 1
            self._moving = True
            if self._waiting and not self._releasing:
                self._releasing = True
                self._loop.call_soon(self._release)
        elif self._waiting:
            self._waiting.pop(call, None)

    def _release(self) -> None:
        self._releasing = False
        while self._waiting and self._has_room(counted=next(iter(self._waiting.values()))[1]):
            self._start_next(self._waiting)

    def _start_next(self, waiting: OrderedDict[Admitted, tuple[Any, bool]]) -> None:
        call, (argument, counted) = waiting.popitem(last=False)
        self._start(call, argument, counted)

    def _pace(self) -> None:
        self._pacing = False
        try:
            self._release()  # the client may have read
            waiting = self._waiting
            if waiting and not self._moving:
                for _ in range(min(_PACED, len(waiting))):
                    if self.reads:
                        self._start_next(waiting)
            self._moving = False
        finally:  # a call that cannot be started does not block the others
            if self._waiting:
                self._pacing = True
                self._loop.call_later(_PACE, self._pace)

    def gone(self) -> None:
        """The connection is gone: nothing is started any more."""
        if self._waiting:
            self._waiting.clear()


def client_of(stream: Stream) -> Client:
    """The client of a server's stream."""
    return cast("Client", stream.account)


class Names:
    """The numbers by which a gateway names the clients of its connections. They are few and small, since each makes
    header blocks of its own that are cached.
    """

    __slots__ = ("_free", "_next")

    def __init__(self) -> None:
        self._free: list[int] = []
        self._next = 1

    def take(self) -> int:
        """The smallest free number."""
        if self._free:
            return heapq.heappop(self._free)
        self._next += 1
        return self._next - 1

    def give_back(self, number: int) -> None:
        """Free a number: no call with it is open any more."""
        heapq.heappush(self._free, number)


@cache
def field(number: int) -> bytes:
    """The header field, encoded."""
    return headers.block([(CLIENT.encode(), b"%d" % number)])
