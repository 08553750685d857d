"""What a transfer waits for: in its trace as spans, and for its client in words, while it waits.

Each transfer has a :class:`Board`. Whatever works for the transfer, in whatever task, notes its waits there: a pause
that a registry asked for, a token, a host that does not answer, a lock, a place in a queue. :meth:`Board.told` chooses
the wait that a user should know of. A host's silence counts from the last bytes that came from it, over all requests
of the transfer, and the attempts at one host are one silence.
"""

from __future__ import annotations

import contextlib
import contextvars
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from services.kit import tracing
from services.kit.tracing import Span

AFTER = 0.5
"""Seconds after which a wait is told."""

LINGERS = 10.0
"""Seconds for which a host that failed still counts as waited for, if no other is: there is a pause before it is asked
again.
"""

PAUSE, TOKEN, CLIENT, HOST, LOCK, BUDGET = "pause", "token", "client", "host", "lock", "budget"
"""Causes. HOST: a host that does not answer, or sends nothing."""

_ORDER = (PAUSE, TOKEN, CLIENT, HOST, LOCK, BUDGET)
"""Which is told, if there are several: the causes that are outside of the node first."""
_LOCAL = frozenset({LOCK, BUDGET})
"""Causes that are told only if nothing of the transfer moves: a layer that waits for its turn is no news."""


@dataclass(frozen=True, slots=True)
class Wait:
    """One wait: ``words`` say it all. ``seconds`` is how long it has lasted, and ``lasts`` how long it will last in
    all, 0 if that is not known.
    """

    cause: str
    words: str
    host: str = ""
    seconds: float = 0.0
    lasts: float = 0.0


@dataclass(slots=True)
class _Host:
    since: float
    """When it last sent something, or was first asked."""
    requests: int = 0
    """Those that wait for it."""
    heads: int = 0
    """Those that wait for the head of an answer, as opposed to more of a body."""
    failed: float | None = None
    """When a request failed, if none waits since then."""
    then: str = ""
    """The host that is asked after it."""

    def words(self, name: str, seconds: float) -> str:
        time = f"{max(1, round(seconds))} s"
        if self.requests > self.heads:
            return f"{name} has sent nothing for {time}"
        return f"{name} does not answer (tried for {time}){f', then {self.then}' if self.then else ''}"


@dataclass(slots=True)
class Board:
    """The waits of one transfer."""

    clock: Callable[[], float] = time.monotonic
    _waits: dict[int, tuple[Wait, float]] = field(default_factory=dict)
    _hosts: dict[str, _Host] = field(default_factory=dict)
    _working: set[str] = field(default_factory=set)
    _moved: float = float("-inf")
    _number: int = 0

    @contextlib.contextmanager
    def active(self) -> Iterator[Board]:
        """Let the block, and the tasks that it begins, note their waits here."""
        token = _current.set(self)
        try:
            yield self
        finally:
            _current.reset(token)

    @contextlib.contextmanager
    def noted(self, wait: Wait) -> Iterator[None]:
        """Note a wait that lasts as long as the block."""
        self._number = number = self._number + 1
        self._waits[number] = wait, self.clock()
        try:
            yield
        finally:
            del self._waits[number]

    def working(self, what: str, *, on: bool) -> None:
        """Note that the node itself works on ``what``, such as a layer that it unpacks, or does not any more."""
        if on:
            self._working.add(what)
        else:
            self._working.discard(what)
            self._moved = self.clock()

    # ------------------------------------------------------------------------------------------ hosts

    def asked(self, name: str, then: str = "", *, head: bool = True) -> None:
        """The head of an answer of host ``name`` is waited for, or more of its body, until :meth:`over`. ``then``: the
        host that is asked after it.
        """
        host = self._hosts.get(name)
        if host is None:
            host = self._hosts[name] = _Host(self.clock())
        host.requests += 1
        host.heads += head
        host.failed = None
        host.then = then or host.then

    def over(self, name: str, *, came: bool, head: bool = True) -> None:
        """It is not waited for any longer. ``came``: because it came."""
        host = self._hosts[name]
        host.requests -= 1
        host.heads -= head
        if came:
            self.heard(name)
            for other in [each for each, found in self._hosts.items() if found.failed is not None]:
                del self._hosts[other]  # another host has helped
        if not host.requests:
            if came:
                del self._hosts[name]
            else:
                host.failed = self.clock()

    def heard(self, name: str) -> None:
        """The host has sent or taken something."""
        self._moved = self.clock()
        if name in self._hosts:
            self._hosts[name].since = self._moved

    def _silence(self, now: float) -> Wait | None:
        """The host that has been silent longest, among those that a request waits for; if none does, among those that
        have just failed.
        """
        waited = {name: host for name, host in self._hosts.items() if host.requests}
        if not waited:
            waited = {
                name: host
                for name, host in self._hosts.items()
                if host.failed is not None and now - host.failed < LINGERS
            }
        name = min(waited, key=lambda each: waited[each].since, default="")
        if not name:
            return None
        seconds = now - waited[name].since
        return Wait(HOST, waited[name].words(name, seconds), name, seconds)

    # ------------------------------------------------------------------------------------------ what is told

    def told(self, after: float = AFTER) -> Wait | None:
        """The wait that a user should know of, if there is one that has lasted for ``after`` seconds."""
        now = self.clock()
        waits = [replace(wait, seconds=now - begun) for wait, begun in self._waits.values()]
        if (silence := self._silence(now)) is not None:
            waits.append(silence)
        still = not self._working and now - self._moved >= after
        told = [wait for wait in waits if wait.seconds >= after and (still or wait.cause not in _LOCAL)]
        return min(told, key=lambda wait: (_ORDER.index(wait.cause), -wait.seconds), default=None)


_current: contextvars.ContextVar[Board | None] = contextvars.ContextVar("transfer_waits", default=None)


@contextlib.contextmanager
def noted(cause: str, words: str, host: str = "", lasts: float = 0.0) -> Iterator[None]:
    """Note a wait on the board of the current task's transfer, if it has one."""
    with contextlib.nullcontext() if (here := board()) is None else here.noted(Wait(cause, words, host, lasts=lasts)):
        yield


@contextlib.contextmanager
def waiting(
    cause: str, words: str, *, ref: str = "", host: str = "", lasts: float = 0.0, **attributes: str | float | bool
) -> Iterator[Span]:
    """Note a wait, and make a span ``wait.CAUSE`` of it; ``ref`` is the span that holds what is waited for."""
    where = {"server.address": host} if host else {}
    with (
        noted(cause, words, host, lasts),
        tracing.wait(cause, ref, **{"splitd.wait.for": words}, **where, **attributes) as span,
    ):
        yield span


@contextlib.contextmanager
def asking(host: str, then: str = "") -> Iterator[None]:
    """Note, during the block, that the head of an answer of ``host`` is waited for."""
    here = board()
    if here is None:
        yield
        return
    here.asked(host, then)
    came = False
    try:
        yield
        came = True
    finally:
        here.over(host, came=came)


def board() -> Board | None:
    """The board of the current task's transfer, if it has one."""
    return _current.get()


def heard(host: str) -> None:
    """The host has sent or taken something."""
    if (here := board()) is not None:
        here.heard(host)
