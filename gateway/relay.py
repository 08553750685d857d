"""What needs no coordination passes through as bytes: the request's out, the answer's back, unread.

A read that its service's death interrupted is asked again, once the service is back; so is a Wait, as often as it takes. Anything else that was under way
answers UNAVAILABLE: only its caller can know whether to repeat it.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Callable, Mapping

from google.protobuf import descriptor_pool

from gateway.config import Config
from gateway.routes import Routes
from gateway.upstream import Upstream
from services.kit import errors
from services.kit.rpc import LONG, RAW, STREAMS, Arity, Call, Stream

log = logging.getLogger(__name__)

READS = frozenset({"Get", "List", "ListStream", "Info", "Stat", "Status", "ListStatuses", "Usage", "Mounts", "ListPids", "ListResources", "Metrics", "Version", "Check"})
"""Methods that change nothing, so that an interrupted one may be asked again."""

UNBOUNDED = frozenset({
    "/containerd.services.tasks.v1.Tasks/Wait",
    "/containerd.services.images.v1.Images/Delete",  # sync: as long as a collection takes
    "/containerd.services.leases.v1.Leases/Delete",
    "/containerd.services.diff.v1.Diff/Apply",
    "/containerd.services.diff.v1.Diff/Diff",
    "/splitd.records.v1.Records/Collect",
})
"""Unary calls that last as long as they last: only keepalive ends them."""

Handler = Callable[[AsyncIterator[bytes], Call], AsyncIterator[bytes]]


class Relay:
    """``internal`` is whether this is the socket of our own processes, which may make raw calls.

    ``handlers`` are the streaming methods that the gateway coordinates without parsing all of their messages.
    """

    def __init__(self, routes: Routes, config: Config, *, internal: bool, handlers: Mapping[str, Handler] = {}) -> None:
        self._routes = routes
        self._config = config
        self._internal = internal
        self._handlers = handlers

    def arity(self, method: str) -> Arity:
        """The descriptors' word; two streams for what they do not know."""
        service, _, name = method.strip("/").rpartition("/")
        try:
            descriptor = descriptor_pool.Default().FindServiceByName(service).methods_by_name[name]
        except KeyError:
            return STREAMS
        return Arity(descriptor.client_streaming, descriptor.server_streaming)

    async def unary(self, request: bytes, call: Call) -> bytes:
        upstream, headers = self._upstream(call)
        name = call.method.rpartition("/")[2]
        for attempt in itertools.count():
            channel = await upstream.ready(call)
            try:
                answer: bytes = await channel.unary(call.method, request, headers, self._timeout(call, upstream))
                return answer
            except errors.Disconnected:
                if name not in LONG and (name not in READS or attempt == 2):
                    raise
                log.info("%s is asked again: service %s went away", call.method, upstream.name)
                await asyncio.sleep(0.05)
        raise AssertionError

    async def stream(self, requests: AsyncIterator[bytes], call: Call) -> AsyncIterator[bytes]:
        handler = self._handlers.get(call.method)
        if handler is not None and RAW not in call.headers:
            async for answer in handler(requests, call):
                yield answer
            return
        upstream, headers = self._upstream(call)
        channel = await upstream.ready(call)
        async with channel.stream(call.method, headers, call.remaining()) as stream:
            sending = asyncio.ensure_future(pump(requests, stream))
            try:
                async for message in stream:
                    yield message
            finally:
                sending.cancel()

    def _upstream(self, call: Call) -> tuple[Upstream, dict[str, str | bytes]]:
        headers = call.passed_on()
        raw = headers.pop(RAW, None)
        if raw is None:
            return self._routes.of_method(call.method), headers
        if not self._internal:
            raise errors.PermissionDenied(f"header {RAW} is for the node's own processes")
        return self._routes.backend(str(raw)), headers

    def _timeout(self, call: Call, upstream: Upstream) -> float | None:
        left = call.remaining()
        if call.method in UNBOUNDED:
            return left
        if upstream.name == "tasks":
            limit = self._config.task_timeout
        elif RAW in call.headers:
            limit = self._config.raw_timeout
        else:
            limit = self._config.unary_timeout
        return limit if left is None else min(left, limit)


async def pump(requests: AsyncIterator[bytes], stream: Stream) -> None:
    """Send what the client sends, then its half-close. What ends the call ends this; the receiving side tells why."""
    try:
        async for request in requests:
            await stream.send(request)
        await stream.done_sending()
    except errors.NodeError as error:
        log.debug("the upstream stopped reading: %s", error)
