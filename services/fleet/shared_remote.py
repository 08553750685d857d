"""The blobs that this node shares: those of the shared namespaces, as the gateway tells.

The gateway is asked for a list of each namespace, and tells afterwards which blobs come and go. Nobody tells what the
collector removes, so the lists are asked for again now and then, and soon after an image was removed. A blob that is
told too long costs a peer one question.

Peers are served from files. If another content service has taken the place of the node's own, and has none here,
nothing is told: peers would get 404 for each blob.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Any, Protocol

from api.containerd.events import content_pb2
from api.containerd.services.events.v1 import events_pb2, events_stubs
from api.containerd.types.event_pb2 import Envelope
from services.content.remote import RemoteStore
from services.content.store import Files
from services.kit import errors, loops
from services.kit.any import unpack
from services.kit.rpc import NAMESPACE, Channel, Stream, method_path
from services.oci.digests import Digest

log = logging.getLogger(__name__)

MOST = 100_000
"""Blobs that are kept and told, at most."""
PATIENCE = 10.0
"""Seconds until it is said that the gateway is away."""
TICK = 5.0
"""Seconds from the removal of an image to the next lists: the collector begins earlier. If it takes longer, further
lists, of which each waits twice as long as the one before, see its end.
"""
AGAIN = 60.0
"""Seconds from one time that the lists were asked for to the next, if nothing is known to have changed."""
SHARE, MOST_SHARE = 0.005, 0.05
"""The shares of the time that asking for the lists may take: then, and where something has changed."""
_TOPICS = ("/content/create", "/content/delete", "/images/delete")
_SUBSCRIBE = events_stubs.EVENTS.methods_by_name["Subscribe"]


class Told(Protocol):
    """Who is told of the blobs."""

    def blobs(self, found: Mapping[str, int], more: int = 0) -> None:
        """These are all, sizes by digest, but for ``more`` others."""
        ...

    def blob(self, digest: str, size: int | None) -> None:
        """One of them has come, or gone (None)."""
        ...


class SharedBlobs:
    """Follows the blobs of the namespaces behind ``gateway`` whose ``files`` peers get, and tells ``told``."""

    def __init__(
        self, gateway: Channel, files: Mapping[str, Files], told: Told, *, tick: float = TICK, most: int = MOST
    ) -> None:
        self.trouble = "the gateway has not told yet which blobs this node has"
        """Why the blobs are not known, or are those from before; else empty."""
        self._gateway = gateway
        self._told = told
        self._tick = tick
        self._most = most
        self._files = files
        self._local: dict[str, bool] = {}
        """By namespace, whether its blobs are files here, as the last one was that was asked for."""
        self._found: dict[str, dict[str, int]] = {namespace: {} for namespace in files}
        """Sizes by namespace and digest."""
        self._since: dict[tuple[str, str], int | None] = {}
        """What changed since the lists were asked for."""
        self._stale = False

    async def follow(self) -> None:
        """Follow them until cancelled. It is a loop of the process."""
        try:
            await self._follow()
        except errors.NodeError as error:
            self.trouble = f"the gateway does not tell which blobs this node has: {error}"
            raise loops.Explained(self.trouble) from error

    async def _follow(self) -> None:
        await self._gateway.reached(PATIENCE)
        request = events_pb2.SubscribeRequest(filters=[f'topic=="{topic}"' for topic in _TOPICS])
        async with self._gateway.stream(
            method_path(_SUBSCRIBE), {}, None, events_pb2.SubscribeRequest.SerializeToString, Envelope.FromString
        ) as events:
            await events.send(request)
            await events.done_sending()
            # it is subscribed before the lists are made: both calls go the same way, one after the other
            reading = loops.task("the events of shared blobs", self._read(events))
            pause = AGAIN
            try:
                while not reading.done():
                    begun = time.monotonic()
                    await self._list()
                    self.trouble = self._foreign()
                    took = time.monotonic() - begun
                    pause = min(2 * pause, AGAIN)  # the collector may take its time after an image was removed
                    await self._wait(reading, max(self._tick, took / MOST_SHARE), max(pause, took / SHARE))
                    if self._stale:
                        pause = self._tick
            except Exception:
                if reading.done() and not reading.cancelled() and (lost := reading.exception()) is not None:
                    log.error("the events of shared blobs failed too", exc_info=lost)
                raise
            finally:
                reading.cancel()
                await asyncio.wait((reading,))
                if not reading.cancelled():
                    reading.result()  # its error, too, if there is another one
        raise errors.Unavailable("it has ended the events")

    async def _wait(self, reading: asyncio.Task[None], least: float, most: float) -> None:
        """Wait until the lists are to be asked for again: for ``least`` seconds if they are known to be old, for
        ``most`` if not.
        """
        begun = time.monotonic()
        while not reading.done() and (passed := time.monotonic() - begun) < (least if self._stale else most):
            await asyncio.wait((reading,), timeout=min(most - passed, self._tick))

    async def _list(self) -> None:
        self._stale = False
        self._since = {}
        found: dict[str, dict[str, int]] = {}
        kept = more = 0
        for namespace in self._found:
            found[namespace] = {}
            async for info in RemoteStore(self._gateway, {NAMESPACE: namespace}).list():
                if kept < self._most:
                    found[namespace][str(info.digest)] = info.size
                    kept += 1
                else:
                    more += 1
            if (one := next(iter(found[namespace]), None)) and not await self._is_file(namespace, one):
                kept -= len(found[namespace])
                found[namespace] = {}
        for (namespace, digest), size in self._since.items():
            _set(found[namespace], digest, size)
        self._found = found
        everything: dict[str, int] = {}
        for each in found.values():
            everything.update(each)
        self._told.blobs(everything, more)

    async def _read(self, events: Stream[Any, Any]) -> None:
        async for envelope in events:
            try:
                await self._take(envelope)
            except errors.InvalidArgument as error:
                log.warning("an event of %s makes no sense: %s", envelope.topic, error)

    async def _is_file(self, namespace: str, digest: str) -> bool:
        """Whether the namespace's blobs are files here; this is one of them."""
        try:
            await self._files[namespace].locate(Digest.parse(digest))
        except errors.Unimplemented:
            self._local[namespace] = False
        except (errors.NodeError, ValueError) as error:  # it says nothing of the others
            log.debug("whether %s is a file is not known: %s", digest, error)
            return self._local.get(namespace, True)
        else:
            self._local[namespace] = True
        return self._local[namespace]

    def _foreign(self) -> str:
        """Which namespaces are not shared though they should be; empty: none."""
        names = [namespace for namespace, local in self._local.items() if not local]
        if not names:
            return ""
        return f"peers get no blobs of {', '.join(names)}: the content service that has them gives no files"

    async def _take(self, envelope: Envelope) -> None:
        namespace = envelope.namespace
        if namespace not in self._found:
            return
        if (made := unpack(envelope.event, content_pb2.ContentCreate)) is not None:
            if self._local.get(namespace) or await self._is_file(namespace, made.digest):
                self._change(namespace, made.digest, made.size)
            self.trouble = self._foreign() or self.trouble
        elif (gone := unpack(envelope.event, content_pb2.ContentDelete)) is not None:
            self._change(envelope.namespace, gone.digest, None)
        else:
            self._stale = True

    def _change(self, namespace: str, digest: str, size: int | None) -> None:
        if size is not None and sum(map(len, self._found.values())) >= self._most:
            self._stale = True  # the next lists count it
            return
        self._since[namespace, digest] = size
        _set(self._found[namespace], digest, size)
        if size is None:  # another namespace may have it, too
            size = next((each[digest] for each in self._found.values() if digest in each), None)
        self._told.blob(digest, size)


def _set(found: dict[str, int], digest: str, size: int | None) -> None:
    if size is None:
        found.pop(digest, None)
    else:
        found[digest] = size
