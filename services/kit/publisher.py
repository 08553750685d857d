"""Publishes events through the gateway: queued in order, sent one after the other, and kept while the gateway is away.

A service publishes *after* the change is durable. It must neither wait for the gateway, nor lose an event because the
gateway restarts. So :meth:`Publisher.publish` only queues, and a task sends::

    async with Publisher(gateway).running() as publisher:
        ...
        publisher.publish(call.namespace, "/images/create", ImageCreate(name=name))

Events go by Events.Forward, so that they keep the time at which things happened, however late they arrive. An event
whose sending timed out is sent again, so a subscriber may see it twice. Events that are still queued when the process
is killed are lost, as in containerd.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import time
from collections import deque
from collections.abc import AsyncIterator
from typing import NamedTuple

from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message

from api.containerd.services.events.v1 import events_pb2, events_stubs
from services.kit import errors, loops, tracing
from services.kit.any import pack
from services.kit.channel import Channel

log = logging.getLogger(__name__)

LIMIT = 65536
"""Events that are kept for a gateway that is away: some 20 MB at most. Beyond that the oldest are dropped, and the log
says how many.
"""


class _Queued(NamedTuple):
    request: events_pb2.ForwardRequest
    context: contextvars.Context


class Publisher:
    """Publishes a service's events through ``channel``, the gateway's internal socket."""

    def __init__(self, channel: Channel, *, limit: int = LIMIT, retry: float = 0.1) -> None:
        self._events = channel.client(events_stubs.EVENTS)
        self._queue: deque[_Queued] = deque()
        self._limit = limit
        self._retry = retry
        self._lost = 0
        self._changed = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()

    def publish(self, namespace: str, topic: str, message: Message) -> None:
        """Queue an event of ``namespace``. Returns at once and never fails. A ``message`` that is an Any already is
        sent unchanged.
        """
        event = message if isinstance(message, Any) else pack(message)
        request = events_pb2.ForwardRequest()
        request.envelope.timestamp.FromNanoseconds(time.time_ns())
        request.envelope.namespace = namespace
        request.envelope.topic = topic
        request.envelope.event.CopyFrom(event)
        if len(self._queue) >= self._limit:
            self._queue.popleft()
            self._lost += 1
            if self._lost == 1:
                log.error("the gateway is away and %d events wait for it: the oldest are being dropped", self._limit)
        self._queue.append(_Queued(request, contextvars.copy_context()))
        self._empty.clear()
        self._changed.set()

    async def run(self) -> None:
        """Send queued events, in order, until cancelled."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            while self._queue:
                queued = self._queue[0]
                # In the publisher's own context: the sending belongs to the trace of the call that made the change.
                await loops.task("the sending of an event", self._send(queued.request), context=queued.context)
                if self._queue and self._queue[0] is queued:  # a full queue may have dropped it meanwhile
                    self._queue.popleft()
            if self._lost:
                log.error("%d events were dropped while the gateway was away", self._lost)
                self._lost = 0
            self._empty.set()

    async def _send(self, request: events_pb2.ForwardRequest) -> None:
        with tracing.background("events.publish", **{"splitd.topic": request.envelope.topic}):
            await self._sent(request)

    async def _sent(self, request: events_pb2.ForwardRequest) -> None:
        complained = False
        while True:
            try:
                await self._events.Forward(request, timeout=5.0)
            except (errors.Unavailable, errors.DeadlineExceeded, errors.Cancelled) as error:
                if not complained:
                    log.warning("events wait for the gateway: %s", error)
                    complained = True
                await asyncio.sleep(self._retry)
            except errors.NodeError as error:
                log.error(
                    "the gateway refused event %s of namespace %s: %s",
                    request.envelope.topic,
                    request.envelope.namespace,
                    error,
                )
                return
            except Exception:  # a bug of ours, which would hold back all events after this one
                log.exception(
                    "event %s of namespace %s cannot be sent", request.envelope.topic, request.envelope.namespace
                )
                return
            else:
                return

    async def flushed(self, seconds: float) -> bool:
        """Wait until all events are sent, for at most ``seconds``. The result is whether they are."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._empty.wait(), seconds)
        return self._empty.is_set()

    @contextlib.asynccontextmanager
    async def running(self, *, grace: float = 2.0) -> AsyncIterator[Publisher]:
        """Send in the background while the block lasts, and the remaining events for at most ``grace`` seconds after
        it.
        """
        async with loops.running("the sending of events", self.run):
            yield self
            if not await self.flushed(grace):
                log.warning("%d events were not sent before the end", len(self._queue))
