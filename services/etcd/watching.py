"""A watch on one member: whole revisions in order, each once, and no silence that means that the member is gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from services.etcd import protocol
from services.etcd.answers import Meaning, meaning, short
from services.etcd.cluster import PROOF, Cluster, Endpoint
from services.etcd.store import Change, Changes, Compacted, KeyValue, end_of
from services.kit import errors

SILENCE = 5.0
"""Seconds without news after which the member is asked whether it is there. A hung one ends no stream, and TCP notices
nothing for minutes.
"""


def pair(kv: Any) -> KeyValue:
    """A key of etcd's answer."""
    return KeyValue(kv.key, kv.value, kv.mod_revision, kv.create_revision, kv.version, kv.lease)


class Watching:
    """One watch while it lasts, of revisions after ``after``."""

    def __init__(self, cluster: Cluster, prefix: bytes, after: int, *, silence: float = SILENCE) -> None:
        self._cluster = cluster
        self._prefix = prefix
        self._position = after
        self._silence = silence
        self._pending: list[Change] = []
        """Changes of revisions of which the next fragment may bring more."""

    async def begin(self) -> AsyncGenerator[Changes, None]:
        """Open the watch at a member that is ready, and return its changes."""
        cluster, loop = self._cluster, asyncio.get_running_loop()
        # A member's watch waits in silence for a revision that the cluster has never reached.
        request = protocol.RangeRequest(key=self._prefix or b"\0", keys_only=True, limit=1)
        now = (await cluster.call(protocol.KV, "Range", request)).header.revision
        if now < self._position:
            raise Compacted(f"etcd stands at revision {now}, before {self._position}: it was restored from a backup")
        end = loop.time() + cluster.config.timeout
        endpoint = await cluster.ready(set(), end)
        headers = await cluster.headers(endpoint, end)
        stream = endpoint.client(protocol.WATCH).Watch(headers=headers)
        try:
            await stream.__aenter__()
            create = {
                "key": self._prefix or b"\0",
                "range_end": end_of(self._prefix),
                "start_revision": self._position + 1,
                "progress_notify": True,
                "fragment": True,
            }
            async with asyncio.timeout_at(end):
                await stream.send(protocol.WatchRequest(create_request=create))
                first = await stream.receive()
            if first is not None:
                self._check(first, endpoint)
        except BaseException as caught:
            error: BaseException = caught
            await stream.__aexit__(None, None, None)
            if isinstance(error, TimeoutError):
                error = errors.Unavailable(f"it did not begin a watch within {cluster.config.timeout:g} s")
            if isinstance(error, errors.NodeError):
                raise self._failed(endpoint, headers, error) from None
            raise
        return self._changes(stream, endpoint, headers)

    async def _changes(
        self, stream: Any, endpoint: Endpoint, headers: Mapping[str, str | bytes]
    ) -> AsyncGenerator[Changes, None]:
        async with stream:
            while True:
                try:
                    response = await self._received(stream, endpoint)
                    if response is None:
                        raise errors.Unavailable("it has ended the watch")
                    self._check(response, endpoint)
                except errors.NodeError as error:
                    raise self._failed(endpoint, headers, error) from None
                if (found := self.whole(response)) is not None:
                    yield found

    async def _received(self, stream: Any, endpoint: Endpoint) -> Any:
        while True:
            try:
                async with asyncio.timeout(self._silence):
                    return await stream.receive()
            except TimeoutError:
                await self._cluster.proof(endpoint, PROOF)

    def _check(self, response: Any, endpoint: Endpoint) -> None:
        """Raise what a response that ends the watch means."""
        if not response.canceled:
            return
        if response.compact_revision:
            raise Compacted(
                f"etcd {endpoint.name}: revision {self._position + 1} is gone, the first one is "
                f"{response.compact_revision}"
            )
        raise errors.Unknown(response.cancel_reason or "it has cancelled the watch")

    def whole(self, response: Any) -> Changes | None:
        """The revisions that are whole with this response; None: it completes none."""
        for event in response.events:
            kv = event.kv
            if kv.mod_revision > self._position:  # a member that lags must not tell the past again
                gone = event.type == event.DELETE
                self._pending.append(Change(kv.key, None if gone else pair(kv), kv.mod_revision))
        if not response.events and not response.created:  # all is told up to the revision of the header
            self._position = max(self._position, response.header.revision)
            return Changes(self._position, ())
        pending = self._pending
        # the last revision of a fragment may go on in the next one
        unfinished = pending[-1].revision if pending and response.fragment else 0
        whole = [each for each in pending if each.revision != unfinished]
        if not whole:
            return None
        self._pending = pending[len(whole) :]
        self._position = whole[-1].revision
        return Changes(self._position, tuple(whole))

    def _failed(self, endpoint: Endpoint, headers: Mapping[str, str | bytes], error: errors.NodeError) -> Exception:
        """The error for what ended the watch."""
        if isinstance(error, Compacted):
            return error
        what, ours = meaning(error, endpoint.name)
        if what is Meaning.FINAL:
            return ours
        if what is Meaning.LOGIN:
            self._cluster.forget(headers)
        else:
            self._cluster.fail(endpoint, short(ours))
        return errors.Unavailable(f"the watch ended: {short(ours)}")
