"""Spans while they are made: light objects, most of which are never sent anywhere.

A :class:`Span` costs a few microseconds. What it becomes is decided when it ends. One that is shorter than ``fold`` is
*folded*: it is dropped, and the nearest span above it in this process that is still open counts it. All others are
*kept*: they go to the sink, which turns them into OpenTelemetry's (:mod:`services.kit.otlp`).

A kept span never has a parent that was folded:

- While a span is open, a kept span that ends below it makes it one that is kept, too.
- A span whose parent was folded hangs on the nearest span above that was not.
- If all above it in this process were folded, it hangs on its *base*: the nearest span that its caller knew would be
  kept. The base travels beside ``traceparent``, as the member ``splitd`` of ``tracestate``.
- The same holds for a server's span that is kept though it is short, or whose caller gave up, since the caller's span
  may be folded. Any other server's span that is long has a caller's span that is longer.

A *root* is never folded, nor is what fails (:meth:`Span.failure`), nor a hop directly below a root (:meth:`Span.keep`).
"""

from __future__ import annotations

import contextlib
import contextvars
import os
import random
import re
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from services.kit import clock, errors

INTERNAL, SERVER, CLIENT = 1, 2, 3
"""Kinds of spans, with OTLP's numbers."""

FINE = frozenset(kind.code for kind in (errors.Cancelled, errors.NotFound, errors.AlreadyExists, errors.OutOfRange)) | {
    0
}
"""Codes that are no failures of a span: a caller asks whether something is there, gives up, or reads to the end.
OpenTelemetry's conventions call them failures on the client's side. Then each pull that goes well would have some.
"""

ATTRIBUTES, LINKS, EVENTS = 128, 32, 32
"""How many of them a span has at most."""
OPEN = 10_000
"""How many spans of a process are open at most."""
TEXT, ROOM, ITEMS, DEPTH = 4096, 32 << 10, 128, 4
"""The longest text of an attribute, all attributes of a span together (in characters), and the most entries and levels
of one that is a list or a mapping.
"""

_WORD = 1 << 63
"""OTLP's integers have 64 bits."""

Headers = tuple[tuple[str, str], ...]
Attribute = str | float | bool

MEMBER = "splitd="
"""The member of ``tracestate`` that is ours. It also says that the caller is a process of the node."""

_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")
_REF = re.compile(r"([0-9a-f]{32})-([0-9a-f]{16})")
_BASE = re.compile(r"splitd=([0-9a-f]{16})")
_NOWHERE = "0" * 16
"""The base of a call if no span above will be kept for certain: the root may be folded (:meth:`Span.yields`)."""
_LATE = 60_000_000_000
"""Nanoseconds after the end of a span in which work may still begin below it. A loop that was begun by a call, and
outlives it, is no part of it.
"""


class State:
    """What this process does with spans."""

    __slots__ = ("fold", "idle", "on", "open", "ratio", "sink")

    def __init__(self) -> None:
        self.on = False
        """Whether spans are made."""
        self.fold = 0
        """Nanoseconds below which a span is folded."""
        self.ratio = 1.0
        """The share of calls that only look that is recorded."""
        self.sink: Callable[[Span], object] | None = None
        """Takes the spans that are kept."""
        self.idle: Callable[[], None] | None = None
        """To be called when a span begins, if whoever reports open spans sleeps."""
        self.open: dict[Span, None] = {}
        """The spans that have begun and not ended, in the order of their beginnings."""

    def trim(self) -> int:
        """Forget the oldest of more than OPEN spans that are open; returns how many. Whoever began them seems to have
        forgotten them, too.
        """
        found = list(self.open)
        for span in found[: max(0, len(found) - OPEN)]:
            self.open.pop(span, None)
        return max(0, len(found) - OPEN)

    def forget(self) -> None:
        """In a process that was forked: what is open, and who exports it, is the parent's."""
        self.on, self.sink, self.idle = False, None, None
        self.open = {}


state = State()
os.register_at_fork(after_in_child=state.forget)


class Span:
    """One span. It is open from the beginning, and is the current one while it is used as a context manager."""

    __slots__ = (
        "_held",
        "_keep",
        "_room",
        "_token",
        "above",
        "attributes",
        "base",
        "code",
        "events",
        "failed",
        "folded",
        "folded_ns",
        "gathered",
        "id",
        "kind",
        "links",
        "lost",
        "marked",
        "message",
        "method",
        "name",
        "over",
        "parent",
        "start",
        "trace",
        "tracestate",
        "was_folded",
    )
    recording = True

    def __init__(self, name: str, kind: int, parent: Span | None, start: int = 0) -> None:
        """A span below ``parent``, or, without one, the root of a trace."""
        self.name = name
        self.kind = kind
        self.parent = parent
        self.id = f"{random.getrandbits(64):016x}"
        self.base = ""
        """Of a span whose parent is in another process; empty if the caller was certain of none."""
        if parent is None:
            self.trace = f"{random.getrandbits(128):032x}"
            self.above = self.tracestate = ""
            self._keep = True
        else:
            self.trace = parent.trace
            self.above = parent.id
            self.tracestate = parent.tracestate
            self._keep = False
        self.method = ""
        """Of a call: ``/package.Service/Method``."""
        self.code: int | None = None
        self.attributes: dict[str, Any] = {}
        self.links: list[tuple[str, str]] = []
        self.events: list[tuple[int, str, dict[str, Any]]] = []
        self.failed = self.was_folded = self.marked = False
        self.message = ""
        self.lost = self.folded = self.folded_ns = self.over = 0
        self.gathered: dict[str, Any] | None = None
        self._held: Callable[[Span], bool] | None = None
        self._room = ROOM
        self._token: contextvars.Token[Span] | None = None
        self.start = start or clock.now()
        state.open[self] = None
        if state.idle is not None:
            state.idle()

    @classmethod
    def received(cls, name: str, kind: int, headers: Mapping[str, Any]) -> Span | None:
        """A span whose parent is in another process. None if ``headers`` have no context, or none that is to be
        recorded.
        """
        found = _TRACEPARENT.fullmatch(str(headers["traceparent"])) if "traceparent" in headers else None
        if found is None or not int(found[3], 16) & 1:
            return None
        made = cls(name, kind, None)
        made._keep = False
        made.trace, made.above = found[1], found[2]
        others = str(headers.get("tracestate", ""))
        first, _, rest = others.partition(",")
        if (ours := _BASE.fullmatch(first)) is not None:  # each process puts its own member in front
            made.marked, made.base, others = True, "" if ours[1] == _NOWHERE else ours[1], rest
        else:
            made.base = made.above  # the span of a stranger, which has its own way to the one who looks at it
        made.tracestate = others[:512]
        return made

    # -- as callers see it

    def __enter__(self) -> Span:
        self._token = CURRENT.set(self)
        return self

    def __exit__(self, kind: object, error: BaseException | None, tb: object) -> None:
        if error is not None and isinstance(error, Exception):
            if isinstance(error, errors.NodeError):
                self.failure(error.code, str(error))
                self.set(**{"error.type": type(error).__name__})
            else:
                self.exception(error)
        self.leave()
        self.end()

    @contextlib.contextmanager
    def inside(self) -> Iterator[Span]:
        """Let spans of the block be below this one, which does not end with the block, and learns of no error. For work
        that goes on after the call that began it; whoever calls this must :meth:`end` the span.
        """
        token = CURRENT.set(self)
        try:
            yield self
        finally:
            with contextlib.suppress(ValueError):
                CURRENT.reset(token)

    def enter(self) -> None:
        """Make it the current one, until :meth:`leave`."""
        self._token = CURRENT.set(self)

    def leave(self) -> None:
        """It is no longer the current one."""
        token, self._token = self._token, None  # a token references its context, and that the span
        if token is not None:
            with contextlib.suppress(ValueError):  # a generator that is closed from another context
                CURRENT.reset(token)

    def end(self, at: int = 0) -> None:
        """End a span that is not used as a context manager, now or ``at`` a time of :func:`clock.now`."""
        if state.open.pop(self, self) is self:
            return  # it has ended, or belongs to the process that forked this one
        self._end(at or clock.now())

    def keep(self) -> None:
        """It is not folded, however short it is."""
        self._keep = True

    def yields(self, held: Callable[[Span], bool] | None = None) -> None:
        """It is folded if it is short, though it is directly below a root. ``held`` is asked whether it takes the
        span when it has ended and is to be folded; it must then :meth:`decide` before the root ends.
        """
        self._keep = False
        self._held = held

    def decide(self, *, keep: bool) -> None:
        """Keep or fold a span that was held."""
        if keep:
            self.was_folded = False
            if state.sink is not None:
                state.sink(self)
        else:
            self._fold()

    def rename(self, name: str) -> None:
        """Change the name, for a span whose operation became known later."""
        self.name = name

    def default(self, **attributes: Attribute) -> None:
        """Set those of the attributes that nobody has set (``tracing.operation`` may have, in whatever process)."""
        self.put({name: value for name, value in attributes.items() if name not in self.attributes})

    def get(self, name: str) -> Any:
        """An attribute's value; None if nobody has set it, or the span is not recorded."""
        return self.attributes.get(name)

    def set(self, **attributes: Attribute) -> None:
        """Set attributes that became known during the span."""
        self.put(attributes)

    def put(self, attributes: Mapping[str, Any]) -> None:
        """The same with names that are no identifiers."""
        mine = self.attributes
        for key, given in attributes.items():
            value, kind = given, type(given)
            if kind is str:
                if not given.isascii() or len(given) > TEXT:
                    value = text(given)
                self._room -= len(value)
            elif kind is not float and kind is not bool and not (kind is int and -_WORD <= given < _WORD):
                value, size = bounded(given)
                self._room -= size
            if self._room < 0 or (len(mine) >= ATTRIBUTES and key not in mine):
                self.lost += 1
            else:
                mine[key] = value

    def status(self, code: int, message: str) -> None:
        """Set the gRPC status that the call ended with."""
        self.code = code
        self.failure(code, message)

    def failure(self, code: int, message: str) -> None:
        """The work failed, unless ``code`` is a fine one."""
        if code not in FINE:
            self.failed = True
            self.message = text(message)

    def exception(self, error: BaseException) -> None:
        """Record a failure that is not part of the contract."""
        if self.method:
            self.code = errors.Internal.code
        self.event(
            "exception",
            **{
                "exception.type": type(error).__qualname__,
                "exception.message": str(error),
                "exception.stacktrace": "".join(traceback.format_exception(error, limit=-16)),
            },
        )
        self.failed = True
        self.message = text(str(error))

    def event(self, name: str, **attributes: Attribute) -> None:
        """Something happened now."""
        if len(self.events) < EVENTS:
            self.events.append((clock.now(), text(name), {k: bounded(v)[0] for k, v in attributes.items()}))
        else:
            self.lost += 1

    def ref(self) -> str:
        """A reference to this span, for :meth:`link` and ``tracing.wait``, here or in another process (``TRACE-SPAN``
        in hex); "" if it is not recorded.
        """
        return f"{self.trace}-{self.id}"

    def link(self, ref: str) -> None:
        """Link to the span that ``ref`` names; nothing if it is empty, or names none. The linked span may have been
        folded.
        """
        if not ref or (found := _REF.fullmatch(ref)) is None:
            return
        if len(self.links) < LINKS:
            self.links.append((found[1], found[2]))
        else:
            self.lost += 1

    def headers(self) -> Headers:
        """W3C headers that make this span the parent of the callee's spans."""
        base = self._sure(clock.now() - state.fold) or _NOWHERE
        more = f",{self.tracestate}" if self.tracestate else ""
        return (("traceparent", f"00-{self.trace}-{self.id}-01"), ("tracestate", f"{MEMBER}{base}{more}"))

    def top(self) -> Span:
        """The outermost span of this process."""
        span = self
        while span.parent is not None:
            span = span.parent
        return span

    # -- its end

    def _sure(self, old: int) -> str:
        """The nearest span from here upwards that is kept for certain. Those that began before ``old`` will be."""
        span = self
        while True:
            if (span._keep or span.start <= old) and not span.was_folded:
                span._keep = True  # it may end at a time before now, or the fold may change
                return span.id
            if span.parent is None:
                return span.base
            span = span.parent

    def _end(self, at: int) -> None:
        self.over = at
        length = at - self.start
        short = length < state.fold
        if short and not self._keep and not self.failed:
            self.was_folded = True
            held, self._held = self._held, None  # whose owner refers to this span
            if held is None or not held(self):
                self._fold()
            return
        self._held = None
        above = self.parent
        if above is None:
            if self.base and (short or self.code == errors.Cancelled.code):
                self.above = self.base
        else:
            while above.was_folded:
                if above.parent is None:
                    self.above = above.base or above.above
                    break
                above = above.parent
            else:
                self.above = above.id
                if not above.over:
                    above._keep = True
        if state.sink is not None:
            state.sink(self)

    def _fold(self) -> None:
        above = self.parent
        while above is not None and above.was_folded:
            above = above.parent
        if above is not None and not above.over:
            above.folded += 1 + self.folded
            above.folded_ns += self.over - self.start


class Unrecorded(Span):
    """No span: only the context to pass on. The work below it is not recorded."""

    __slots__ = ("_headers",)
    recording = False

    def __init__(self, headers: Headers = ()) -> None:
        self._headers = headers
        self._token = self.parent = None
        self.attributes = {}
        self.marked = False
        self.over = 0

    def __enter__(self) -> Span:
        return self

    def __exit__(self, kind: object, error: BaseException | None, tb: object) -> None:
        return

    def end(self, at: int = 0) -> None:
        return

    def put(self, attributes: Mapping[str, Any]) -> None:
        return

    def set(self, **attributes: Attribute) -> None:
        return

    def status(self, code: int, message: str) -> None:
        return

    def failure(self, code: int, message: str) -> None:
        return

    def exception(self, error: BaseException) -> None:
        return

    def event(self, name: str, **attributes: Attribute) -> None:
        return

    def enter(self) -> None:
        CURRENT.set(self)

    def keep(self) -> None:
        return

    def rename(self, name: str) -> None:
        return

    def ref(self) -> str:
        return ""

    def link(self, ref: str) -> None:
        return

    def headers(self) -> Headers:
        return self._headers

    def top(self) -> Span:
        return self


NOTHING = Unrecorded()
CURRENT: contextvars.ContextVar[Span] = contextvars.ContextVar("splitd_span", default=NOTHING)
"""The span that the current task works in."""


def below(parent: Span, name: str, attributes: Mapping[str, Any]) -> Span:
    """A span for work that begins now below ``parent``; ``parent`` itself if it is not recorded."""
    if not parent.recording or not state.on:
        return parent if not parent.recording else NOTHING
    made = Span(name, INTERNAL, parent)
    if parent.over and made.start - parent.over > _LATE:
        del state.open[made]
        return NOTHING
    if attributes:
        made.put(attributes)
    return made


# ---------------------------------------------------------------------------------------------- bounds


def text(value: str) -> str:
    """At most TEXT characters of ``value``, all of which UTF-8 has."""
    value = value[:TEXT]
    return value if value.isascii() else value.encode("utf-8", "backslashreplace").decode()


def bounded(value: Any, depth: int = DEPTH) -> tuple[Any, int]:
    """A copy of an attribute's value that OTLP can carry, and its size in characters."""
    if value is None or isinstance(value, (bool, float)):
        return value, 1
    if isinstance(value, int):
        return (value if -_WORD <= value < _WORD else str(value)[:TEXT]), 8
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value[:TEXT]), min(len(value), TEXT)
    if isinstance(value, str) or depth == 0 or not isinstance(value, (Mapping, Sequence)):
        plain = text(value if isinstance(value, str) else f"{type(value).__name__}: {value}"[:TEXT])
        return plain, len(plain)
    size, left = 1, ROOM
    if isinstance(value, Mapping):
        found: dict[str, Any] = {}
        for key in list(value)[:ITEMS]:
            inner, of_inner = bounded(value[key], depth - 1)
            name = text(str(key))
            size += of_inner + len(name)
            if size > left:
                break
            found[name] = inner
        return found, min(size, left)
    items: list[Any] = []
    for each in value[:ITEMS]:
        inner, of_inner = bounded(each, depth - 1)
        size += of_inner
        if size > left:
            break
        items.append(inner)
    return items, min(size, left)
