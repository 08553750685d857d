"""Feeds the fleet with the images and containers of this node, as its gateway has them.

They are listed at the beginning, after each event about them (those that come in quick succession count as one), and
now and then, since events may be lost while the gateway is away. While it is away, what was told last stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Collection, Mapping

from api.containerd.services.containers.v1 import containers_pb2, containers_stubs
from api.containerd.services.events.v1 import events_pb2, events_stubs
from api.containerd.services.images.v1 import images_pb2, images_stubs
from services.fleet.local import FleetNode
from services.fleet.store import Container, Image, Target
from services.kit import errors, loops
from services.kit.rpc import NAMESPACE, Channel
from services.kit.timestamps import time_from_pb

log = logging.getLogger(__name__)

QUIET = 1.0
"""Seconds from one list to the next, at least."""
REFRESH = 60.0
"""Seconds from one list to the next, if no event comes."""
SHARE, LONGEST = 5, 10.0
"""A list waits so many times as long as the last one took, but no more than ``LONGEST`` seconds: that of ten thousand
containers takes a while.
"""
PATIENCE = 10.0
"""Seconds for the gateway to be there."""
RETRY = 2.0
"""Seconds until the gateway is asked again after a failure."""
_TOPICS = {"images": ("/images/",), "containers": ("/containers/",)}
_FILTERS = [f'topic~="^{topic}"' for topics in _TOPICS.values() for topic in topics]


class Records:
    """The images and containers of a node behind ``gateway``, its internal socket."""

    def __init__(
        self, gateway: Channel, node: FleetNode, *, quiet: float = QUIET, refresh: float = REFRESH, retry: float = RETRY
    ) -> None:
        self._node = node
        self._quiet = quiet
        self._refresh = refresh
        self._retry = retry
        self._said = ""
        self._gateway = gateway
        self._images = gateway.client(images_stubs.IMAGES)
        self._containers = gateway.client(containers_stubs.CONTAINERS)
        self._events = gateway.client(events_stubs.EVENTS)
        self._changed: set[str] = set()
        self._wake = asyncio.Event()

    async def keep(self) -> None:
        """Tell the fleet, until cancelled. It is a loop of the process."""
        while True:
            try:
                await self._follow()
            except errors.NodeError as error:
                if str(error) != self._said:
                    log.warning("the fleet is not told of images and containers: %s", error)
                self._said = str(error)
            await asyncio.sleep(self._retry)

    async def _follow(self) -> None:
        """List again and again, as long as events come."""
        await self._gateway.reached(PATIENCE)
        listening = loops.task("events about images and containers", self._listen())
        listening.add_done_callback(lambda _: self._wake.set())
        try:
            self._change(_TOPICS)
            first = True
            while not listening.done():
                took = await self._list()
                await asyncio.sleep(max(self._quiet, min(took * SHARE, LONGEST)))
                if not first:  # else the events before the subscription are caught up with
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(self._refresh):
                            await self._wake.wait()
                if first or not self._wake.is_set():
                    self._change(_TOPICS)
                first = False
        finally:
            listening.cancel()
            await asyncio.wait((listening,))
            if not listening.cancelled():
                listening.result()

    def _change(self, kinds: Collection[str]) -> None:
        self._changed.update(kinds)
        self._wake.set()

    async def _listen(self) -> None:
        request = events_pb2.SubscribeRequest(filters=_FILTERS)
        async with contextlib.aclosing(self._events.Subscribe(request, timeout=None)) as envelopes:
            async for envelope in envelopes:
                if envelope.namespace in self._node.namespaces:
                    self._change([kind for kind, topics in _TOPICS.items() if envelope.topic.startswith(topics)])

    async def _list(self) -> float:
        """Tell of what has changed. The seconds that it took."""
        begun = time.monotonic()
        self._wake.clear()
        changed, self._changed = self._changed, set()
        try:
            if "images" in changed:
                self._node.tell_images([image for each in self._spaces() for image in await self._listed_images(*each)])
            if "containers" in changed:
                self._node.tell_containers([one for each in self._spaces() for one in await self._listed(*each)])
        except BaseException:
            self._changed |= changed
            raise
        self._said = ""
        return time.monotonic() - begun

    def _spaces(self) -> list[tuple[str, Mapping[str, str]]]:
        return [(name, {NAMESPACE: name}) for name in sorted(self._node.namespaces)]

    async def _listed_images(self, namespace: str, headers: Mapping[str, str]) -> list[Image]:
        found = await self._images.List(images_pb2.ListImagesRequest(), headers=headers)
        return [
            Image(
                self._node.node,
                namespace,
                image.name,
                Target(image.target.digest, image.target.size),
                max(0, time_from_pb(image.updated_at)),
            )
            for image in found.images
        ]

    async def _listed(self, namespace: str, headers: Mapping[str, str]) -> list[Container]:
        found = self._containers.ListStream(containers_pb2.ListContainersRequest(), headers=headers)
        async with contextlib.aclosing(found) as containers:
            return [
                Container(
                    self._node.node,
                    namespace,
                    each.container.id,
                    each.container.image,
                    max(0, time_from_pb(each.container.created_at)),
                )
                async for each in containers
            ]
