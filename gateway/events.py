"""The exchange: every event of the node comes in here and goes out to all subscribers.

An *envelope* is an event with its time, namespace and *topic* (``/tasks/exit``). Clients and our own services publish
events (Publish). Others forward events that happened elsewhere (Forward; shims do so over ttrpc). The gateway itself
publishes those of the operations that it coordinates (:meth:`Exchange.publish`). Nothing here waits for anybody:
publishing appends to the queues of those subscribers that want the event, and returns. So a shim's Forward is answered
at once, and a slow subscriber stalls nobody.

Subscribers are promised:

- A subscriber gets each event that matches, in the order of their coming, as long as it keeps reading.
- A subscriber that does not read, so that more than :data:`QUEUE_EVENTS` events or :data:`QUEUE_BYTES` bytes wait for
  it, is cut off with RESOURCE_EXHAUSTED. The events that it received until then have no gap.
- All together have a bound too (:data:`SUBSCRIBERS_BYTES`). Beyond it the subscriber that is furthest behind is cut
  off. An event is kept once, however many subscribers it waits for.
- A subscriber that comes within :data:`REPLAY_SECONDS` of the gateway's start first gets the events since then. If it
  was subscribed when the last gateway died, it has missed only those that happened while there was none.
- One exit of a process is one event. Shims retry a Forward whose answer they missed, and the tasks service reports
  exits that nobody forwarded, as far as it can tell. A second TaskExit of the same namespace, container, exec and pid
  is dropped, and so is a second TaskDelete.

A filter is matched where the event is published, unless that could take long (:data:`MATCHED_AT_ONCE`). Then the
subscriber's own call matches it: one such match after the other, a slice of it in each turn of the loop. So many
subscribers with large filters delay each other, and nobody else.

Topics, namespaces and filters are checked as containerd does, in its words (containerd's core/events/exchange).
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.any_pb2 import Any
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError, Message

from api.containerd.events import (
    container_pb2,
    content_pb2,
    image_pb2,
    namespace_pb2,
    sandbox_pb2,
    snapshot_pb2,
    task_pb2,
)
from api.containerd.services.events.v1 import events_pb2, events_stubs
from api.containerd.services.ttrpc.events.v1 import events_pb2 as ttrpc_events_pb2
from api.containerd.services.ttrpc.events.v1 import events_stubs as ttrpc_events_stubs
from api.containerd.types.event_pb2 import Envelope
from services.kit import errors, filters, identifiers
from services.kit.any import type_name
from services.kit.rpc import Call, Pieces
from services.kit.slices import Lane, lane
from services.kit.timestamps import time_from_pb

log = logging.getLogger(__name__)

QUEUE_EVENTS = 16384
QUEUE_BYTES = 16 << 20
SUBSCRIBERS_BYTES = 64 << 20
EVENT_COST: Final = 1024
"""Bytes that a waiting event counts besides its own. Its own count twice: as they came, and as they are sent."""
PLACE_COST: Final = 16
"""Bytes that an event's place in a subscriber's queue counts."""

MATCHED_AT_ONCE = 64 << 10
"""The limit of a filter's cost times the bytes of an event for a match in the publisher's call: 1 ms at worst, and a
few microseconds for filters in use.
"""

REPLAY_SECONDS = 5.0
EXITS: Final = 16384
EXIT_SECONDS = 600.0
"""The number of exits that are remembered, and the seconds for which they are: far more than a shim's 21 s of retries,
and few enough for a pid to be used again.
"""

EXIT_NAMES: Final = 256
"""Characters of a container's and an exec's id together, at most. No task has more than 152; exits with longer ids are
not remembered.
"""
EXIT_BYTES: Final = 4 * EXIT_NAMES + 256
"""Bytes of an event with its envelope, at most: a larger one has longer ids, and is not looked into."""

EVENT_FILES = frozenset(
    module.DESCRIPTOR.name
    for module in (container_pb2, content_pb2, image_pb2, namespace_pb2, sandbox_pb2, snapshot_pb2, task_pb2)
)
"""A filter can look into the messages of these files (``event.container_id``): containerd generates accessors for these
only.
"""


class Published:
    """An event as it is kept, once for all subscribers; its envelope must not be changed. ``number`` counts events as
    they come.
    """

    __slots__ = ("data", "envelope", "number", "size", "waiting")

    def __init__(self, envelope: Envelope, number: int) -> None:
        self.envelope = envelope
        self.number = number
        self.data = envelope.SerializeToString()  # to ask for the size alone takes as long
        """The envelope as it is sent: the same bytes for all."""
        self.size = len(self.data)
        self.waiting = 0
        """The number of queues in which it is."""


class _Backlog:
    """Counts the bytes that wait for all subscribers together."""

    def __init__(self) -> None:
        self.bytes = 0

    def add(self, event: Published) -> None:
        """Count the event for one more subscriber."""
        self.bytes += PLACE_COST if event.waiting else PLACE_COST + EVENT_COST + 2 * event.size
        event.waiting += 1

    def take(self, event: Published) -> None:
        """Count it for one less."""
        event.waiting -= 1
        self.bytes -= PLACE_COST if event.waiting else PLACE_COST + EVENT_COST + 2 * event.size


class Subscription:
    """One subscriber's queue. An async iterator of envelopes, which belong to all subscribers and must not be
    changed.
    """

    def __init__(
        self, matcher: _Matcher, backlog: _Backlog, forget: Callable[[Subscription], None], events: int, size: int
    ) -> None:
        self._matcher = matcher
        self._backlog = backlog
        self._forget = forget
        self._limit = (events, size)
        self._queue: deque[Published] = deque()
        self._bytes = 0
        self._arrived = asyncio.Event()
        self._cut_off = ""

    def offer(self, event: Published) -> None:
        """Queue ``event`` if the filters want it, or if they are too costly to be asked here."""
        if self._cut_off or not (self._costly(event) or self._matcher.matches(event.envelope)):
            return
        self._queue.append(event)
        self._bytes += event.size
        self._backlog.add(event)
        if len(self._queue) > self._limit[0] or self._bytes > self._limit[1]:
            self.cut_off()
        self._arrived.set()

    def _costly(self, event: Published) -> bool:
        return self._matcher.cost * event.size > MATCHED_AT_ONCE

    def behind(self) -> tuple[float, int]:
        """Its place among the others: by its oldest event, then by the bytes that wait. The smallest is the furthest
        behind.
        """
        return (self._queue[0].number, -self._bytes) if self._queue else (math.inf, 0)

    def cut_off(self, why: str = "") -> None:
        """End it, and tell it so. The reason is what waits for it, and ``why``."""
        self._cut_off = f"subscriber too slow: {len(self._queue)} events ({self._bytes} bytes) wait for it{why}"
        log.warning("events: %s; it is cut off", self._cut_off)
        self.close()
        self._arrived.set()

    def close(self) -> None:
        """Take no more events, and free those that wait."""
        for event in self._queue:
            self._backlog.take(event)
        self._queue.clear()
        self._bytes = 0
        self._forget(self)

    def __enter__(self) -> Subscription:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Envelope:
        return (await self.next()).envelope

    async def next(self) -> Published:
        """The next event, waited for as long as it takes; ResourceExhausted once the subscriber is cut off."""
        while True:
            while not self._queue:
                if self._cut_off:
                    raise errors.ResourceExhausted(self._cut_off)
                self._arrived.clear()
                await self._arrived.wait()
            event = self._queue.popleft()
            self._bytes -= event.size
            self._backlog.take(event)
            if not self._costly(event) or await self._matcher.matches_in_turn(event.envelope):
                return event


class Exchange:
    """All events of the node. Its methods are synchronous and belong to the gateway's event loop."""

    def __init__(
        self,
        *,
        queue_events: int = QUEUE_EVENTS,
        queue_bytes: int = QUEUE_BYTES,
        subscribers_bytes: int = SUBSCRIBERS_BYTES,
        replay_seconds: float = REPLAY_SECONDS,
        exits: int = EXITS,
        clock: Callable[[], float] = time.monotonic,
        lane: Lane | None = None,
    ) -> None:
        """``lane`` is where costly filters are matched."""
        self._limit = (queue_events, queue_bytes)
        self._most = subscribers_bytes
        self._backlog = _Backlog()
        self._numbers = itertools.count()
        self._clock = clock
        self._replay_until = clock() + replay_seconds
        self._replay: deque[Published] = deque()
        self._replay_bytes = 0
        self._subscriptions: dict[Subscription, None] = {}  # a set that keeps its order
        self._exits = _Exits(clock, exits)
        self._fields = _Fields()
        self._costly = _Costly(lane or Lane())

    @property
    def subscribers(self) -> int:
        """The number of subscribers now."""
        return len(self._subscriptions)

    def publish(self, namespace: str, topic: str, event: Any, timestamp: int | None = None) -> None:
        """Publish an event that happened now, or at ``timestamp`` (nanoseconds since 1970). InvalidArgument for a
        bad namespace or topic.
        """
        envelope = Envelope(namespace=namespace, topic=topic, event=event)
        envelope.timestamp.FromNanoseconds(time.time_ns() if timestamp is None else timestamp)
        self.forward(envelope)

    def forward(self, envelope: Envelope) -> None:
        """Publish an envelope as it is, on behalf of another publisher; from here on it belongs to the exchange."""
        try:
            identifiers.validate(envelope.namespace)
        except errors.InvalidArgument as error:
            raise errors.InvalidArgument(f"event envelope has invalid namespace: {error}") from None
        validate_topic(envelope.topic)
        if envelope.timestamp.seconds == _ZERO_TIME:  # one that is missing is 1970, as for containerd 2.x
            raise errors.InvalidArgument("timestamp must be set on forwarded event")
        event = Published(envelope, next(self._numbers))
        if event.size <= EXIT_BYTES and self._exits.seen_before(envelope):
            log.debug("events: dropped a second exit in namespace %s", envelope.namespace)
            return
        self._remember(event)
        for subscription in list(self._subscriptions):  # a subscription that overflows leaves
            subscription.offer(event)
        self._bound()

    def _bound(self) -> None:
        """Cut off the subscriber that is furthest behind, as long as too much waits for all together."""
        while self._backlog.bytes > self._most:
            furthest = min(self._subscriptions, key=Subscription.behind)
            furthest.cut_off(
                f", and more than {self._most} bytes for all subscribers, of whom it is the furthest behind"
            )

    def subscribe(self, wanted: filters.Filter = filters.ALWAYS) -> Subscription:
        """Events from now on that the filter wants; to be used in a ``with`` statement.

        Fields: ``namespace``, ``topic``, and ``event.`` with a field of containerd's event types.
        """
        subscription = Subscription(
            _Matcher(wanted, self._fields, self._costly),
            self._backlog,
            lambda s: self._subscriptions.pop(s, None),
            *self._limit,
        )
        self._subscriptions[subscription] = None
        if self._clock() < self._replay_until:
            for event in list(self._replay):
                subscription.offer(event)
            self._bound()
        return subscription

    def _remember(self, event: Published) -> None:
        """Keep the event for subscribers that come soon after the start."""
        if self._clock() >= self._replay_until:
            self._replay.clear()
            return
        self._replay.append(event)
        self._replay_bytes += event.size
        while len(self._replay) > self._limit[0] or self._replay_bytes > self._limit[1]:
            self._replay_bytes -= self._replay.popleft().size


_ZERO_TIME = -62135596800
"""Year 1, which Go calls the zero time and takes for "not set"."""


def validate_topic(topic: str) -> None:
    """Raise InvalidArgument unless ``topic`` is ``/`` and identifiers separated by ``/``."""
    wrong = _wrong_topic(topic)
    if wrong:
        raise errors.InvalidArgument(f"envelope topic {identifiers.quoted(topic)}: {wrong}")


def _wrong_topic(topic: str) -> str:
    if not topic:
        return "must not be empty"
    if topic[0] != "/":
        return "must start with '/'"
    if topic == "/":
        return "must have at least one component"
    for component in topic[1:].split("/"):
        try:
            identifiers.validate(component)
        except errors.InvalidArgument as error:
            return f"failed validation on component {identifiers.quoted(component)}: {error}"
    return ""


class _Exits:
    """Remembers exits for a while, to recognize a report that comes a second time.

    A container that is started again may, once in many thousand times, get the pid that it had: a TaskStart that is
    younger than the remembered exit ends the memory of it. An older TaskStart was only delivered late, and does not.
    """

    def __init__(self, clock: Callable[[], float], most: int) -> None:
        self._clock = clock
        self._most = most
        self._exits: OrderedDict[tuple[str, str, str, int], tuple[float, int]] = OrderedDict()
        """(namespace, container, exec, pid): when it came in, and when the process ended, in nanoseconds since 1970"""

    def seen_before(self, envelope: Envelope) -> bool:
        """Whether the envelope is an exit that was here before; remembers it otherwise."""
        kind = _LIFE.get(type_name(envelope.event))
        if kind is None:
            return False
        try:
            event = kind.FromString(envelope.event.value)
        except DecodeError:
            return False  # not for us to judge: subscribers get what the publisher sent
        if len(event.container_id) + len(getattr(event, "id", "")) > EXIT_NAMES:
            return False
        if isinstance(event, task_pb2.TaskExit):
            return self._exit(
                (envelope.namespace, event.container_id, event.id, event.pid),
                time_from_pb(event.exited_at if event.HasField("exited_at") else envelope.timestamp),
            )
        if isinstance(event, task_pb2.TaskDelete):
            return self._exit(
                (envelope.namespace, event.container_id, _DELETED + event.id, event.pid),
                time_from_pb(envelope.timestamp),
            )
        name = event.exec_id if isinstance(event, task_pb2.TaskExecStarted) else event.container_id
        for ended in (name, _DELETED):
            self._start((envelope.namespace, event.container_id, ended, event.pid), time_from_pb(envelope.timestamp))
        return False

    def _exit(self, key: tuple[str, str, str, int], ended: int) -> bool:
        now = self._clock()
        while self._exits and next(iter(self._exits.values()))[0] < now - EXIT_SECONDS:
            self._exits.popitem(last=False)
        if key in self._exits:
            return True
        if len(self._exits) >= self._most:
            self._exits.popitem(last=False)
        self._exits[key] = (now, ended)
        return False

    def _start(self, key: tuple[str, str, str, int], started: int) -> None:
        known = self._exits.get(key)
        if known is not None and started > known[1]:
            del self._exits[key]


_DELETED = "\0"
"""Stands in the place of an exec id, which cannot begin so, for the task's deletion: shims of containerd 2.x lose that
event when they end too soon after it.
"""

_LIFE: dict[str, type[task_pb2.TaskExit | task_pb2.TaskDelete | task_pb2.TaskStart | task_pb2.TaskExecStarted]] = {
    kind.DESCRIPTOR.full_name: kind
    for kind in (task_pb2.TaskExit, task_pb2.TaskDelete, task_pb2.TaskStart, task_pb2.TaskExecStarted)
}


# ---------------------------------------------------------------------------------------------- filters


class _Fields:
    """The fields of the envelope that was asked for last. Its event is decoded once for all filters, and only if a
    path leads into it.
    """

    def __init__(self) -> None:
        self._envelope: Envelope | None = None
        self._event: Message | None = None
        self._found: dict[tuple[str, ...], tuple[str, bool]] = {}
        """The values that were asked for, by path: protobuf makes a new string each time, maybe of a megabyte, and a
        filter may ask two thousand times.
        """

    def of(self, envelope: Envelope, path: Sequence[str]) -> tuple[str, bool]:
        """The value of a field path in an envelope, and whether it is there."""
        match path:
            case ["namespace", *_]:
                return envelope.namespace, bool(envelope.namespace)
            case ["topic", *_]:
                return envelope.topic, bool(envelope.topic)
            case ["event", *rest]:
                if self._envelope is not envelope:
                    self._envelope, self._event = envelope, _decoded(envelope.event)
                    self._found = {}
                key = tuple(rest)
                if (found := self._found.get(key)) is None:
                    found = self._found[key] = ("", False) if self._event is None else message_field(self._event, rest)
                return found
        return "", False


class _Costly:
    """Shared by the matches that take long: the turn, the slices, and fields of their own, which others would replace
    between two slices.
    """

    def __init__(self, lane: Lane) -> None:
        self.turn = asyncio.Lock()
        self.lane = lane
        self.fields = _Fields()


class _Matcher:
    """The filters of one subscriber."""

    def __init__(self, wanted: filters.Filter, fields: _Fields, costly: _Costly) -> None:
        self._wanted = wanted
        self._fields = fields
        self._costly = costly
        self.cost = wanted.cost

    def matches(self, envelope: Envelope) -> bool:
        """Whether the filters want the envelope."""
        return self._wanted.match(lambda path: self._fields.of(envelope, path))

    async def matches_in_turn(self, envelope: Envelope) -> bool:
        """The same in slices, once no other costly filter is being matched."""
        async with self._costly.turn:
            await self._costly.lane.turn()
            return await self._costly.lane.through(
                self._wanted.matching(lambda path: self._costly.fields.of(envelope, path))
            )


def message_field(message: Message, path: Sequence[str]) -> tuple[str, bool]:
    """The value of a field path in an event. Strings and booleans have one, labels by their key, messages through
    their fields; numbers have none.
    """
    descriptor = message.DESCRIPTOR
    field = descriptor.fields_by_name.get(path[0]) if path and descriptor.file.name in EVENT_FILES else None
    if field is None:
        return "", False
    value = getattr(message, field.name)
    if field.type == FieldDescriptor.TYPE_STRING:
        return value, bool(value)
    if field.type == FieldDescriptor.TYPE_BOOL:
        return ("true" if value else "false"), True
    if field.type != FieldDescriptor.TYPE_MESSAGE:
        return "", False
    if field.name == "labels":
        key = ".".join(path[1:])
        return (value[key], True) if key in value else ("", False)
    if field.is_repeated or not message.HasField(field.name):
        return "", False
    inner = _decoded(value) if isinstance(value, Any) else value
    return ("", False) if inner is None else message_field(inner, path[1:])


def _decoded(value: Any) -> Message | None:
    try:
        kind = message_factory.GetMessageClass(descriptor_pool.Default().FindMessageTypeByName(type_name(value)))
        return kind.FromString(value.value)
    except (KeyError, DecodeError):
        return None


# ---------------------------------------------------------------------------------------------- served


class EventsServicer:
    """containerd.services.events.v1.Events"""

    SERVICE = events_stubs.EVENTS

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    async def Publish(self, request: events_pb2.PublishRequest, call: Call) -> Empty:
        """An event of the caller's namespace that happened now."""
        try:
            namespace = call.namespace
        except errors.NodeError as error:
            raise type(error)(f"failed publishing event: {error}") from None
        self._exchange.publish(namespace, request.topic, request.event)
        return Empty()

    async def Forward(self, request: events_pb2.ForwardRequest, call: Call) -> Empty:
        """An event of any namespace and time, on its publisher's behalf."""
        self._exchange.forward(request.envelope)
        return Empty()

    async def Subscribe(self, request: events_pb2.SubscribeRequest, call: Call) -> AsyncIterator[Pieces]:
        """All events of all namespaces that match any of the filters, until the caller goes. A bad filter is
        Unknown, as it is in containerd.
        """
        try:
            wanted = await filters.parsed(request.filters, lane())
        except errors.NodeError as error:
            raise errors.Unknown(f"subscription error: failed parsing subscription filters: {error}") from None
        with self._exchange.subscribe(wanted) as subscription:
            while True:
                yield Pieces(((await subscription.next()).data,))


class TtrpcEventsServicer:
    """containerd.services.events.ttrpc.v1.Events: where shims forward their events."""

    SERVICE = ttrpc_events_stubs.EVENTS

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    async def Forward(self, request: ttrpc_events_pb2.ForwardRequest, call: Call) -> Empty:
        """An event of a container of this shim; answered as soon as it is queued."""
        self._exchange.forward(request.envelope)
        return Empty()
