"""Which calls of clients are one operation, and which operations are recorded: the node's edge, as traces see it.

A client that sends ``traceparent`` is continued, and nothing here concerns it. Older ones (ctr of containerd 1.6 and
2.1, nerdctl, dockerd) send none. A command of theirs makes dozens of calls, and these are joined into one trace with a
root of the gateway's own, by three rules:

1. *One connection, one operation.* ctr is one process with one connection for one command. So the calls of a connection
   are one operation, whatever they say.
2. *Unless it proves to have several.* If it subscribes to events, creates a second container, or has calls under way
   about two containers or of two leases, it is a daemon's (dockerd, buildkitd, the kubelet). From then on only those of
   its calls are joined that name one container or its task. The others are operations by themselves.
3. *A lease is one operation*, by whatever connections its calls come.

The root begins with the first recorded call. It ends with the last one, which is known when the connection has ended,
or when no call has been under way for :data:`IDLE` seconds; for :data:`PATIENCE` seconds if the client holds a lease of
its own making, since it is at work then, in a registry perhaps. A Wait lasts as long as a container. It keeps the
operation of its own command open (``ctr run``), but not one of a daemon, which waits for all of its containers.

Recorded is what changes something; of what only asks, a part (``[tracing] sampling_ratio``). The decision about one
client that only asks holds for a while, so a trace has all of its questions or none. Roots are bounded per second,
and everything here is bounded in number.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Any, Protocol, cast

from gateway.calls import Key, Kind, field, kind
from gateway.operation import ASKING, CURRENT, Blocked, Operation
from services.kit import errors, metrics, observer, tracing
from services.kit.buckets import Bucket
from services.kit.observer import Observed, Side
from services.kit.rpc import LEASE, NAMESPACE

IDLE = 5.0
"""Seconds without a call after which an operation is over."""
PATIENCE = 120.0
"""The same for one that holds a lease."""
HELD = ASKING
"""Seconds for which the decision about a connection that only asks holds."""
ROOTS = 50.0
"""Operations that begin in a second, in the long run."""
OPERATIONS = 2000
"""Operations that are open at once; the calls of others are not recorded."""
KEYS = 64
"""Containers and leases of one operation."""
_SWEEP = 1.0

_UNRECORDED = metrics.Counter(
    "splitd_operations_unrecorded_total", "Operations of clients that have no trace, since there were too many at once."
)

Headers = Mapping[str, str | bytes]


class Tracer(Protocol):
    """What is used of :mod:`services.kit.tracing`."""

    def enabled(self) -> bool: ...
    def chance(self) -> bool: ...
    def fold(self) -> int: ...
    def now(self) -> int: ...
    def root(self, name: str, start: int = 0) -> Any: ...
    def recorded(
        self, name: str, start: int, end: int, ref: str = "", *, parent: Any = None, **attributes: Any
    ) -> None: ...


class _Connection:
    """What is known of a client's connection."""

    __slots__ = ("containers", "declined", "operation", "several")

    def __init__(self, *, several: bool) -> None:
        self.operation: Operation | None = None
        """The one operation that it serves now."""
        self.several = several
        self.containers: dict[Key, Operation] = {}
        """Operations by the containers that their calls name, if it serves several."""
        self.declined = 0
        """Until when questions are not recorded."""


class Operations:
    """An :class:`services.kit.observer.Entrance`."""

    def __init__(
        self, tracer: Tracer = cast("Tracer", tracing), *, roots: float = ROOTS, began: observer.Began | None = None
    ) -> None:
        """``roots`` is how many operations are recorded at most, in a second."""
        self._tracer = tracer
        self._began = began
        self._connections: dict[object, _Connection] = {}
        self._leases: dict[Key, Operation] = {}
        self._open: set[Operation] = set()
        self._roots = Bucket(2 * roots, roots)

    def __len__(self) -> int:
        """How many operations are open."""
        return len(self._open)

    # ------------------------------------------------------------------------------------------ Entrance

    def began(self, connection: object, side: Side, method: str, headers: Headers, request: bytes) -> Observed:
        """A call begins: find the operation that it belongs to, or decide whether there is a new one."""
        began = self._began or observer.began
        if not self._tracer.enabled():
            return began(side, method, headers)
        if "traceparent" in headers:
            observed = began(side, method, headers)
            if (span := _span(observed)) is not None:
                span.set(**{"splitd.namespace": str(headers.get(NAMESPACE, ""))})
            return observed
        what = kind(method)
        known = self._connections.get(connection)
        if known is None:
            known = self._connections[connection] = _Connection(several=connection is None)
        if what.watches:
            if what.name == "Events.Subscribe":
                self._part(known)
            return began(side, method, headers)
        asks = not what.changes
        if asks and known.operation is None and not known.containers and LEASE not in headers:
            if not self._asked(known):
                return began(side, method, headers)
            asks = False  # the decision is made
        now = self._tracer.now()
        namespace = str(headers.get(NAMESPACE, ""))
        keys = _keys(what, namespace, str(headers.get(LEASE, "")), request)
        operation = self._of(known, what, keys)
        if operation is None:
            if (asks and not self._asked(known)) or not self._has_room():
                return began(side, method, headers)
            operation = self._new(connection, known, what, namespace, keys, now)
        self._add(operation, known, what, keys)
        call = _Joined(began(side, method, headers, operation.root), operation, what, keys, self)
        if not what.changes and call.outer is not None:
            # a progress display's question is of no use: other spans cover its time
            call.outer.yields(None if operation.busy_now else operation.hold)
        call.begun = now
        operation.begins(what, keys, request, now)
        if side == "server":
            CURRENT.set(operation)
        return call

    def left(self, connection: object) -> None:
        """A connection has ended."""
        known = self._connections.pop(connection, None)
        if known is None:
            return
        for operation in {known.operation, *known.containers.values()}:
            if operation is not None and operation.connection is connection:
                operation.gone = True
                self._settle(operation)

    # ------------------------------------------------------------------------------------------ joining

    def _asked(self, known: _Connection) -> bool:
        """Whether questions of a client that has no operation are recorded now."""
        now = self._tracer.now()
        if now < known.declined:
            return False
        if self._tracer.chance():
            return True
        known.declined = now + int(HELD * 1e9)
        return False

    def _part(self, known: _Connection) -> None:
        """A connection proves to be a daemon's: its next calls are not of the operation that it seemed to serve."""
        own, known.several, known.operation = known.operation, True, None
        if own is not None:
            known.containers.update((key, own) for key in own.keys if key[0] == "container")

    def _of(self, known: _Connection, what: Kind, keys: tuple[Key, ...]) -> Operation | None:
        """The open operation that a call belongs to."""
        own, apart = known.operation, None
        if own is not None and own.full:
            self._forget(own)
            own = None
        if own is not None and any(own.clashes(key, creates=what.name == "Containers.Create") for key in keys):
            self._part(known)
            apart, own = own, None
        for key in keys:
            found = self._leases.get(key) if key[0] == "lease" else known.containers.get(key)
            if found is not None and found is not apart:
                if not found.full:
                    return found
                self._forget(found)
        return own

    def _has_room(self) -> bool:
        """Whether one more operation is recorded."""
        if len(self._open) < OPERATIONS and self._roots.take():
            return True
        _UNRECORDED.add(1)
        return False

    def _new(
        self, connection: object, known: _Connection, what: Kind, namespace: str, keys: tuple[Key, ...], now: int
    ) -> Operation:
        root = self._tracer.root(what.name, now)
        single = known.several and not keys
        operation = Operation(root, namespace, now, connection, fold=self._tracer.fold(), single=single)
        self._open.add(operation)
        if not known.several:
            known.operation = operation
            operation.noted.add(known)
        return operation

    def _add(self, operation: Operation, known: _Connection, what: Kind, keys: tuple[Key, ...]) -> None:
        """Note what the call is about."""
        for key in keys:
            if len(operation.keys) < KEYS:
                operation.keys.add(key)
            if key[0] == "lease" and key in operation.keys:
                self._leases[key] = operation
            if known.several and key[0] == "container" and key in operation.keys:
                known.containers[key] = operation
                operation.noted.add(known)
            if what.name == "Leases.Create" and key[0] == "lease":
                operation.leases.add(key[2])

    def ended(
        self, operation: Operation, what: Kind, keys: tuple[Key, ...], begun: int, code: int, message: str
    ) -> None:
        """A call has ended."""
        operation.ends(what, keys, begun, code, message, self._tracer.now())
        if what.name == "Leases.Delete":
            operation.leases.difference_update(key[2] for key in keys)
        self._settle(operation)

    # ------------------------------------------------------------------------------------------ ends

    def _settle(self, operation: Operation) -> None:
        """End an operation that can have no further call."""
        if not operation.over and not operation.under_way and (operation.single or operation.gone):
            self._finish(operation)

    def _finish(self, operation: Operation) -> None:
        self._open.discard(operation)
        self._forget(operation)
        operation.finish(partial(self._gap, operation))

    def _forget(self, operation: Operation) -> None:
        """It gets no further call, and ends when none is under way."""
        operation.single = True
        for key in operation.keys:
            if self._leases.get(key) is operation:
                del self._leases[key]
        while operation.noted:
            known = operation.noted.pop()
            if known.operation is operation:
                known.operation = None
            for key in operation.keys:
                if known.containers.get(key) is operation:
                    del known.containers[key]

    def _gap(self, operation: Operation, start: int, end: int, blocked: Blocked) -> None:
        what, holder = blocked
        if what:
            self._tracer.recorded("wait.lock", start, end, holder, parent=operation.root, **{"splitd.wait.for": what})
        else:
            self._tracer.recorded("wait.client", start, end, parent=operation.root)

    def sweep(self) -> None:
        """End the operations that are idle."""
        now = self._tracer.now()
        for operation in list(self._open):
            if operation.under_way:
                continue
            known = self._connections.get(operation.connection)
            own = known is not None and known.operation is operation
            if own and operation.waits:
                continue
            limit = PATIENCE if own and operation.leases else IDLE
            if now - operation.last > limit * 1e9:
                self._finish(operation)

    def close(self) -> None:
        """End all operations: the process ends."""
        for operation in list(self._open):
            self._finish(operation)

    async def watch(self, every: float = _SWEEP) -> None:
        """Sweep for ever, ``every`` so many seconds."""
        while True:
            await asyncio.sleep(every)
            self.sweep()


def _keys(what: Kind, namespace: str, lease: str, request: bytes) -> tuple[Key, ...]:
    """What the call is about: the lease in its headers, and the container or lease that its request names."""
    about = field(request, what.path) if what.subject in {"container", "lease"} and request else ""
    if not about:
        return (("lease", namespace, lease),) if lease else ()
    named = what.subject, namespace, about
    return (named, ("lease", namespace, lease)) if lease and lease != about else (named,)


def _span(observed: Observed) -> tracing.Span | None:
    """The span of a call, if it has one."""
    return getattr(observed, "outer", None)


class _Joined:
    """A recorded call of an operation, as the transport sees it."""

    __slots__ = ("_keys", "_observed", "_operation", "_operations", "_what", "begun")

    def __init__(
        self, observed: Observed, operation: Operation, what: Kind, keys: tuple[Key, ...], operations: Operations
    ) -> None:
        self._observed = observed
        self._operation = operation
        self._what = what
        self._keys = keys
        self.begun = 0
        self._operations = operations

    @property
    def inside(self) -> bool:
        return self._observed.inside

    @property
    def outer(self) -> tracing.Span | None:
        return _span(self._observed)

    @property
    def leaving(self) -> tracing.Span | None:
        """The span of the call as it leaves this process, if it has one."""
        return getattr(self._observed, "leaving", None)

    def headers(self) -> tuple[tuple[str, str], ...]:
        return self._observed.headers()

    def enter(self) -> None:
        self._observed.enter()

    def ended(self, code: int = 0, message: str = "", size: int = 0, defect: Exception | None = None) -> None:
        self._observed.ended(code, message, size, defect)
        self._operations.ended(self._operation, self._what, self._keys, self.begun, code, message)

    def left(self, size: int = 0) -> None:
        self._observed.left(size)
        self._operations.ended(self._operation, self._what, self._keys, self.begun, errors.Cancelled.code, "cancelled")
