"""Traces: a server span and a client span for each hop, and W3C trace context from one process to the next.

This module is what code that makes spans calls; :mod:`services.kit.spans` says what a span is and when it is kept, and
:mod:`services.kit.exporting` sends spans away. A process makes spans once :func:`setup` was called. Otherwise the
caller's ``traceparent`` is passed on unchanged, so that a process without tracing does not break the traces of its
neighbours.

There are three levels. Hops have spans: this module is the first listener of :mod:`services.kit.observer`. :func:`span`
surrounds an operation or a phase that is worth a line in a trace. Pure code has none. A program that a service starts
finds its context in the environment (:func:`environment`), and continues it with :func:`setup`.

A trace begins at the node's edge, where an entrance (``kit.observer``) decides which trace a client's call belongs to,
or with work that no client asked for: both call :func:`root`. Everything else belongs to a trace or is not recorded.
"""

from __future__ import annotations

import contextlib
import contextvars
import json
import os
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from services.kit import clock, errors, spans
from services.kit.spans import CLIENT, CURRENT, INTERNAL, MEMBER, NOTHING, SERVER, Span, Unrecorded, state

__all__ = ["CURRENT", "Span"]

_HEADERS = ("traceparent", "tracestate")
_KNOWN = 1024
"""Traces that a process knows it has a span of."""
_PASSED = 512
"""Characters of a header that are passed on, as W3C's recommendation asks; a longer one is left out."""
_GATHERED = 4 << 10
"""Bytes of the attributes that a call's answer carries to the root."""


class _Process:
    """What this process does with spans beyond :data:`spans.state`."""

    def __init__(self) -> None:
        self.loose = False
        """Whether whatever has no parent begins a trace; for tests."""
        self.finish: Callable[[float], None] | None = None
        self.known: dict[str, None] = {}
        """Traces that have a span of this process: the first call of each is kept, so that a trace names all processes
        that took part in it.
        """

    def knows(self, trace: str) -> None:
        self.known[trace] = None
        if len(self.known) > _KNOWN:
            del self.known[next(iter(self.known))]


_process = _Process()


def setup(
    sink: Callable[[Span], object],
    *,
    loose: bool = False,
    on: bool = True,
    fold: float = 0.0,
    finish: Callable[[float], None] | None = None,
) -> None:
    """Begin to make spans. ``sink`` takes those that are kept, and ``finish`` sends what is left within some seconds.
    ``fold`` is in seconds. Trace context in the environment (``TRACEPARENT``) becomes the parent of this process's
    spans.

    ``loose`` is for tests: any call and any span without a parent begins a trace.
    """
    _process.loose = loose
    _process.finish = finish
    state.sink, state.fold, state.on = sink, int(fold * 1e9), on
    headers = {name: os.environ[name.upper()] for name in _HEADERS if os.environ.get(name.upper())}
    if headers:
        CURRENT.set(_of_starter(headers))


def _of_starter(headers: Mapping[str, str]) -> Span:
    """The span of the process that started this one. Ours are below it; it is not ours to end."""
    parent = Span.received("", INTERNAL, headers) if state.on else None
    if parent is None:
        return Unrecorded(_came(headers))
    del state.open[parent]
    parent.id, parent._keep = parent.above, True
    return parent


def shutdown(seconds: float = 1.0) -> None:
    """Export the remaining spans at the end of a process, within ``seconds``, whatever the collectors do."""
    finish, _process.finish = _process.finish, None
    if finish is not None:
        finish(seconds)


def reset() -> None:
    """Stop tracing; for tests."""
    global _process
    shutdown()
    state.forget()
    _process = _Process()


# ---------------------------------------------------------------------------------------------- spans


def span(name: str, **attributes: str | float | bool) -> Span:
    """A span around an operation or a phase that is worth a line in a trace.

    For example ``with span("content.commit", digest=str(digest)) as s:``.
    """
    here = CURRENT.get()
    if here is NOTHING and _process.loose and state.on:
        made = root(name)
        made.put(attributes)
        return made
    return spans.below(here, name, attributes)


def enabled() -> bool:
    """Whether spans are made at all, now."""
    return state.on


def chance() -> bool:
    """Whether a call that only looks is recorded: true for the configured share of such calls."""
    return state.on and random.random() < state.ratio  # noqa: S311


def fold() -> int:
    """Nanoseconds below which a span is folded, now."""
    return state.fold


def root(name: str, start: int = 0, **attributes: str | float | bool) -> Span:
    """Begin a trace: its root, which :meth:`Span.end` ends. For work that no client asked for (a collection, a
    restart), and for the process at the node's edge. Neither a root nor a hop directly below it is folded.
    """
    if not state.on:
        return NOTHING
    made = Span(name, INTERNAL, None, start)
    made.put(attributes)
    return made


def wait(cause: str, ref: str = "", **attributes: str | float | bool) -> Span:
    """A span in which this task only waits: ``wait.CAUSE``. The causes are ``bytes``, ``budget``, ``worker``,
    ``parent``, ``lock``, ``pause`` and ``client``. ``ref`` is the span that holds what is waited for.
    """
    waiting = span(f"wait.{cause}", **attributes)
    waiting.link(ref)
    return waiting


def background(name: str, **attributes: str | float | bool) -> Span:
    """A span of work that nobody waits for."""
    return span(name, **attributes, **{"splitd.background": True})


def recorded(
    name: str, start: int, end: int, ref: str = "", *, parent: Span | None = None, **attributes: str | float | bool
) -> None:
    """Record a span that is over, below ``parent``, where it is never folded, or else below the current one. ``start``
    and ``end`` are those of :func:`now`; ``ref`` is a span to link to.
    """
    made = span(name) if parent is None else spans.below(parent, name, {})
    if made.recording:
        made.put(attributes)
        made.start = start
        made.link(ref)
        if parent is not None:
            made.keep()
        made.end(end)


def current() -> Span:
    """The span that the current task works in. Do not end it."""
    return CURRENT.get()


def caller() -> str:
    """A reference to the span, in another process, on whose behalf the current call works: the nearest that is surely
    kept. "" if there is none.
    """
    top = CURRENT.get().top()
    return f"{top.trace}-{top.base}" if top.recording and top.base else ""


def operation(**attributes: str | float | bool) -> None:
    """Set attributes of the operation that this work belongs to: on the root span, in whatever process it is.

    They travel there with the answers of the calls that the work was done for, so the last one to set an attribute
    before its call is answered wins.
    """
    _tell(attributes)


def _tell(attributes: Mapping[str, Any]) -> None:
    top = CURRENT.get().top()
    if not top.marked:
        top.put(attributes)
        return
    if top.gathered is None:
        top.gathered = {}
    for key, value in attributes.items():
        top.gathered[spans.text(key)] = spans.bounded(value)[0]
        if len(top.gathered) > spans.ATTRIBUTES:
            del top.gathered[next(iter(top.gathered))]


def now() -> int:
    """Nanoseconds since the epoch, as spans count them: one anchor for all processes of the node, and a clock that is
    never stepped (:mod:`services.kit.clock`).
    """
    return clock.now()


def environment() -> dict[str, str]:
    """Environment variables for a program started here, so that it continues this trace."""
    return {clock.VARIABLE: str(clock.ANCHOR), **{k.upper(): v for k, v in span_headers()}}


def span_headers() -> tuple[tuple[str, str], ...]:
    """The current context as W3C headers."""
    return CURRENT.get().headers()


# ---------------------------------------------------------------------------------------------- calls

_EXPECTED: contextvars.ContextVar[frozenset[int]] = contextvars.ContextVar("splitd_expected", default=frozenset())


@contextlib.contextmanager
def expecting(*kinds: type[errors.NodeError]) -> Iterator[None]:
    """Calls that the block makes may end with these errors without having failed: the caller takes them for an answer.
    Spans have their code, and no failure.
    """
    token = _EXPECTED.set(frozenset(kind.code for kind in kinds))
    try:
        yield
    finally:
        _EXPECTED.reset(token)


class Passive:
    """A call as traces see it (``kit.observer.Observed``). This one is not recorded: it has only the caller's context
    to pass on.
    """

    __slots__ = ("_headers", "_token")
    inside = False

    def __init__(self, headers: spans.Headers = (), token: Any = None) -> None:
        self._headers = headers
        self._token = token

    def headers(self) -> spans.Headers:
        """W3C headers for the callee."""
        return self._headers

    def enter(self) -> None:
        """From here on the current task works for the call."""
        CURRENT.set(Unrecorded(self._headers) if self._headers else NOTHING)

    def ended(self, code: int = 0, message: str = "", size: int = 0, defect: Exception | None = None) -> None:
        """The call has ended, with the status that the caller gets."""
        if self._token is not None:
            try:
                CURRENT.reset(self._token)
            except ValueError:  # a generator closed from another context: its context ends with it
                return

    def left(self, size: int = 0) -> None:
        """The caller does not wait for the end any longer."""


_NO_HOP = Passive()


class Hop:
    """The same with spans: a server's, a client's, or both for a call that passes through, the client's below the
    server's.
    """

    __slots__ = ("_inner", "outer")
    inside = True

    def __init__(self, outer: Span, inner: Span | None = None) -> None:
        self.outer = outer
        self._inner = inner

    @property
    def leaving(self) -> Span:
        """The span of the call as it leaves this process: the client's."""
        return self._inner or self.outer

    def headers(self) -> spans.Headers:
        return self.leaving.headers()

    def enter(self) -> None:
        CURRENT.set(self.outer)

    def ended(self, code: int = 0, message: str = "", size: int = 0, defect: Exception | None = None) -> None:
        self.outer.leave()
        for span in (self._inner, self.outer):
            if span is not None:
                if defect is not None:
                    span.exception(defect)
                elif code and span.kind == CLIENT and code in _EXPECTED.get():
                    span.code = code
                else:
                    span.status(code, message)
                span.end()

    def left(self, size: int = 0) -> None:
        for span in (self._inner, self.outer):
            if span is not None:
                span.end()


def began(side: str, method: str, headers: Mapping[str, str | bytes], parent: Span | None = None) -> Hop | Passive:
    """A call begins. ``kit.observer`` says what ``side`` means and what the result is for. ``parent`` is the root that
    the call belongs to, for calls that came without a trace; one that is not recorded says that the call is not.
    """
    if side == "client":
        here = CURRENT.get()
        if state.on and (here.recording or (_process.loose and here is NOTHING)):
            return Hop(_hop(method, CLIENT, here if here.recording else None))
        passed = here.headers()
        return Passive(passed) if passed else _NO_HOP
    outer = _arrived(method, headers, parent) if state.on else None
    if outer is None:
        passed = _came(headers)
        if side == "server":
            return Passive(token=CURRENT.set(Unrecorded(passed) if passed else NOTHING))
        return Passive(passed) if passed else _NO_HOP
    if side == "server":
        outer.enter()
        return Hop(outer)
    return Hop(outer, _hop(method, CLIENT, outer))


def _hop(method: str, kind: int, parent: Span | None) -> Span:
    made = Span(method[1:], kind, parent)
    made.method = method
    return made


def _arrived(method: str, headers: Mapping[str, str | bytes], parent: Span | None) -> Span | None:
    """The span of a call that has come; None if it is not recorded."""
    if parent is not None:
        if not parent.recording:
            return None
        made = _hop(method, SERVER, parent)
        made.keep()
        return made
    if "traceparent" in headers:
        found = Span.received(method[1:], SERVER, headers)
        if found is not None:
            found.method = method
            if found.base and found.trace not in _process.known:
                _process.knows(found.trace)
                found.keep()
        return found
    return _hop(method, SERVER, None) if _process.loose else None


def _came(headers: Mapping[str, str | bytes]) -> spans.Headers:
    """The context that came, as far as it must be passed on: 512 characters of each."""
    return tuple((name, text) for name in _HEADERS if name in headers and len(text := str(headers[name])) <= _PASSED)


# ---------------------------------------------------------------------------------------------- up to the root


def gathered() -> bytes:
    """The attributes for the root that a handler's answer must carry, at the end of the handler; empty if there are
    none.
    """
    found = CURRENT.get().top()
    if not found.recording or not found.gathered:
        return b""
    attributes, found.gathered = found.gathered, None
    while attributes and len(data := json.dumps(attributes, separators=(",", ":"), default=str).encode()) > _GATHERED:
        attributes.popitem()
    return data if attributes else b""


def told(data: str | bytes) -> None:
    """The answer of a call that this task made carried attributes for the root: they go on their way there."""
    _tell(_told(data))


def told_relay(hop: object, headers: Mapping[str, str | bytes], data: str | bytes) -> bool:
    """The answer of a call that passes through carried them. The result is whether the caller gets them, since it is a
    process of the node, and takes them further.
    """
    if str(headers.get("tracestate", "")).startswith(MEMBER):
        return True
    outer = getattr(hop, "outer", None)
    if isinstance(outer, Span):
        outer.top().put(_told(data))
    return False


def _told(data: str | bytes) -> dict[str, Any]:
    if len(data) > 2 * _GATHERED:
        return {}
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):  # of a service that is not ours
        return {}
    return found if isinstance(found, dict) else {}
