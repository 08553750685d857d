"""Fetches one blob from a registry into the store: from the end of an earlier attempt, hashed as it arrives, once for
all callers that want it.

A large layer comes in *parts*, several at once, if the server serves parts: one connection to an object store is slower
than most links. The first answer shows whether it does; a server that does not sends the whole blob on one connection.
That may also turn out later, if a host refuses the second part, or if another host takes over that serves none. Then
the bytes that are there without a gap are kept, and the rest comes on one connection: otherwise each part would be
fetched with everything before it.

The registry client handles lost connections and hosts that do not answer. What remains is a blob whose bytes do not
match its digest. Then the bytes from an earlier attempt are dropped, or the hosts that the bytes came from are asked
last, and the blob is fetched again from its first byte. The same holds for a body that does not end with the blob.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import re
from collections.abc import AsyncIterator, Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from services.images.concurrency.budget import STREAMS, Budget
from services.images.concurrency.gather import run_all
from services.images.concurrency.keyed_locks import KeyedLocks
from services.images.registry.client import Client
from services.images.registry.download import Body, NoParts, WrongBytes
from services.images.registry.limits import BLOB_LIMIT
from services.images.transfer import Ingest, Node
from services.kit import errors, loops
from services.kit.faults import fault
from services.kit.identifiers import quoted
from services.oci.descriptors import Descriptor
from services.oci.references import Reference

if TYPE_CHECKING:
    from services.images.distribution.peers import Peers, Sharing

log = logging.getLogger(__name__)

TRIES = 3
"""Attempts: one with the bytes from before, one from a host that has wrong bytes, one from another host."""

PART = 16 << 20
"""Bytes of a part: at the 50 MB/s of one connection a third of a second, to which a request's round trips add
little.
"""
LARGE = 3 * PART
"""Bytes from which a second connection is worth it."""

SILENT = 5.0
"""Seconds without a byte of a registry after which it is looked whether a peer has the blob by now."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
"""Characters that no header may have."""

Begun = Callable[[Ingest], None]
"""Called with the ingest of a blob, once the bytes from an earlier attempt are hashed."""


class Fetched(NamedTuple):
    """What a fetch found: whether the namespace had the blob already, how many bytes came, and how many of these from
    peers and not from the registry.
    """

    existed: bool
    came: int
    peers: int = 0
    fresh: bool = False
    """Another pull of this process has just brought the blob there, with the same labels: it need not be looked at."""


def no_follower(_: Ingest) -> None:
    """The ``Begun`` of blobs that are read only when they are complete."""


class Fetcher:
    """Fetches blobs. There is one for the process, since it knows which blobs are being fetched. ``streams``: parts of
    one layer that come at once. ``most``: the limit for a blob, in bytes. ``peers``: the node's fleet, if it has one.
    """

    def __init__(
        self, budget: Budget, streams: int = STREAMS, most: int = BLOB_LIMIT, peers: Peers | None = None
    ) -> None:
        self.budget = budget
        self.peers = peers
        self.moving: dict[str, tuple[int, int]] = {}
        """For each digest that is being fetched, the bytes so far and in total."""
        self.streams = streams
        self._most = most
        self._locks = KeyedLocks("the fetch of the same blob")
        self._fresh: dict[str, tuple[str, Mapping[str, str]]] = {}
        """Namespace and labels of blobs, by digest, that were fetched while others waited for that; until the last of
        these has looked.
        """

    async def fetch(
        self,
        node: Node,
        client: Client,
        reference: Reference,
        descriptor: Descriptor,
        labels: Mapping[str, str],
        number: int,
        begun: Begun = no_follower,
    ) -> Fetched:
        """Ensure that the node has a blob. ``number`` is its place among the layers of its image."""
        if not descriptor.size:
            raise errors.InvalidArgument(
                f"{reference.host}/{reference.repository}: unable to fetch descriptor ({descriptor.digest}) which "
                "reports content size of zero"
            )
        if not 0 < descriptor.size <= self._most:
            raise errors.InvalidArgument(
                f"{reference.host}/{reference.repository}: {descriptor.digest}: invalid descriptor size "
                f"{descriptor.size} (limit {self._most})"
            )
        if _CONTROL.search(descriptor.media_type):  # the request names it in a header
            raise errors.InvalidArgument(
                f"{reference.host}/{reference.repository}: {descriptor.digest}: {quoted(descriptor.media_type[:100])} "
                "is no media type"
            )
        fetching = None
        sharing = None if self.peers is None else self.peers.sharing(reference, descriptor, node.namespace)
        digest, about = descriptor.digest, (node.namespace, labels)
        try:
            async with self._locks.held(digest):
                try:
                    async with node.ingest(descriptor) as ingest:
                        begun(ingest)
                        fetching = _Fetching(self, client, reference, descriptor, ingest, number, sharing)
                        await fetching.run(labels)
                except errors.AlreadyExists:
                    return Fetched(
                        True,
                        0 if fetching is None else fetching.came,
                        0 if sharing is None else sharing.came,
                        self._fresh.get(digest) == about,
                    )
                finally:
                    self.moving.pop(digest, None)
                if self._locks.wanted(digest) > 1:
                    self._fresh[digest] = about
                return Fetched(False, fetching.came, 0 if sharing is None else sharing.came)
        finally:
            if not self._locks.wanted(digest):
                self._fresh.pop(digest, None)

    async def refetch(
        self, node: Node, client: Client, reference: Reference, descriptor: Descriptor, number: int, trouble: str
    ) -> None:
        """Fetch a recorded blob whose file is damaged. DataLoss if it cannot be fetched."""
        async with self._locks.held(descriptor.digest):
            log.error("blob %s: %s: fetching it again from %s", descriptor.digest, trouble, reference.host)
            try:
                await node.replace(descriptor, self._all_of(client, reference, descriptor, number))
            except errors.NodeError as error:
                raise errors.DataLoss(
                    f"blob {descriptor.digest}: {trouble}, and it cannot be fetched again: {error}"
                ) from None

    async def _all_of(
        self, client: Client, reference: Reference, descriptor: Descriptor, number: int
    ) -> AsyncIterator[bytes]:
        if (brought := descriptor.brought) is not None:
            yield brought
        elif descriptor.is_root:
            async with self.budget.document():
                yield await client.manifest(reference, descriptor)
        else:
            async with (
                self.budget.layer(number),
                self.budget.connection(number),
                client.fetch(reference, descriptor, 0, descriptor.size) as body,
            ):
                async for chunk in body:
                    yield bytes(chunk)


class _Fetching:
    """One blob that is being fetched."""

    def __init__(
        self,
        fetcher: Fetcher,
        client: Client,
        reference: Reference,
        descriptor: Descriptor,
        ingest: Ingest,
        number: int,
        sharing: Sharing | None,
    ) -> None:
        self._sharing = sharing
        self._fetcher = fetcher
        self._budget = fetcher.budget
        self._client = client
        self._reference = reference
        self._descriptor = descriptor
        self._ingest = ingest
        self._number = number
        self.came = 0
        """Bytes that the registry and peers sent."""
        self._bodies: list[Body] = []
        """The registry's bodies since the ingest began."""

    async def run(self, labels: Mapping[str, str]) -> None:
        ingest, size = self._ingest, self._descriptor.size
        known = await self._known() if ingest.offset < size else None
        for left in reversed(range(TRIES)):
            async with contextlib.nullcontext() if self._sharing is None else self._sharing.attempt():
                wrong = await self._attempt(known, labels)
            if wrong is None:
                return
            # after the attempt, so that nobody follows this node any longer
            await ingest.restart()
            if not left:
                raise wrong

    async def _attempt(self, known: bytes | None, labels: Mapping[str, str]) -> errors.FailedPrecondition | None:
        """Fetch what is missing, and make it a blob. The error if the bytes are wrong."""
        ingest, size = self._ingest, self._descriptor.size
        begun = ingest.offset
        self._bodies.clear()
        if known is not None:
            if begun:
                await ingest.restart()
            async with ingest.lane(0) as lane:
                await lane.write(known)
            self.came += len(known)
        elif begun < size:
            try:
                await self._fetched(begun)
            except WrongBytes as error:
                return error
        try:
            await ingest.commit(labels)
        except errors.FailedPrecondition as error:
            shared = self._sharing is not None and self._sharing.distrust(
                str(error), whole=not begun and not self._bodies
            )
            if not begun and not shared:
                self._distrust(str(error))
            hosts = (
                ", ".join(dict.fromkeys(host for body in self._bodies for host in body.hosts)) or self._reference.host
            )
            return errors.FailedPrecondition(f"{hosts}: {self._reference.repository}: {error}")
        if self._sharing is not None:
            self._sharing.committed()
        return None

    def _distrust(self, why: str) -> None:
        """Distrust the hosts that the bytes came from. If there are several, it is unknown which has wrong bytes; the
        host of the last body is spared, and is now asked for the whole blob.
        """
        spared = self._bodies[-1].place if len({host for body in self._bodies for host in body.hosts}) > 1 else ""
        for body in self._bodies:
            body.distrust(why, spared)

    async def _known(self) -> bytes | None:
        """The bytes of a manifest, which the client has verified, or of a blob that is embedded in its descriptor; None
        for others.
        """
        descriptor = self._descriptor
        if (brought := descriptor.brought) is not None:
            return brought
        if descriptor.is_root:
            if self._sharing is not None and (data := await self._sharing.document()) is not None:
                return data
            async with self._budget.document():
                return await self._client.manifest(self._reference, descriptor)
        return None

    async def _fetched(self, offset: int) -> None:
        """Fetch everything from ``offset`` on."""
        sharing = self._sharing
        async with self._budget.layer(self._number):
            if sharing is None:
                await self._from_registry(offset)
            else:
                await self._from_all(sharing)

    async def _from_all(self, sharing: Sharing) -> None:
        """Fetch from peers and the registry what is missing."""
        while not await self._from_peers(sharing):
            try:
                with sharing.throughput.registry(self._reference.host):
                    if not await self._left_for_a_peer(sharing):
                        return
            except WrongBytes:
                raise
            except errors.NodeError:
                await self._ingest.shorten()
                if not await self._from_peers(sharing, last=True):
                    raise
                return
            await self._ingest.shorten()
            if await self._from_peers(sharing, last=True):
                return

    async def _left_for_a_peer(self, sharing: Sharing) -> bool:
        """Fetch from the registry what is missing; whether it was left, since it gives nothing, and a peer has all of
        the blob by now: the network may be cut between this node and the registry alone.
        """
        ingest = self._ingest
        fetching = loops.task("the fetch of a blob from a registry", self._from_registry(ingest.offset))
        try:
            while True:
                before = sharing.signs(ingest)
                if (await asyncio.wait((fetching,), timeout=SILENT))[0]:
                    await fetching
                    return False
                if sharing.signs(ingest) == before and await sharing.elsewhere():
                    log.warning(
                        "blob %s: %s has given nothing for %g s, and a peer has it",
                        self._descriptor.digest,
                        self._reference.host,
                        SILENT,
                    )
                    return True
        finally:
            fetching.cancel()
            await asyncio.wait((fetching,))
            if not fetching.cancelled():
                fetching.exception()  # marked as seen: what ends this counts

    async def _from_peers(self, sharing: Sharing, *, last: bool = False) -> bool:
        """Fetch from peers what they give; whether that was all."""
        ingest, size = self._ingest, self._descriptor.size
        while ingest.offset < size and (source := await sharing.next(ingest, last=last)) is not None:
            start = ingest.offset
            try:
                async with self._budget.connection(self._number), sharing.fetch(source, start) as body:
                    await self._received(body, start, functools.partial(sharing.gave, source))
            except errors.NodeError as error:
                sharing.left(source, error)
        return ingest.offset == size

    async def _from_registry(self, offset: int) -> None:
        size = self._descriptor.size
        if not self._ingest.lanes or self._fetcher.streams == 1 or size - offset < LARGE:
            await self._part(offset, size)
            return
        parts = range(offset, size, PART)  # not a list: the size is only what an outside document says
        answered = asyncio.Event()

        def part() -> tuple[int, int]:
            nonlocal parts
            start, parts = parts[0], parts[1:]
            return start, min(start + PART, size)

        def answer(body: Body) -> None:
            nonlocal parts
            if not body.ranges:
                parts = range(0)
                body.take_all()
            answered.set()

        async def stream(first: bool) -> None:
            if first:
                await self._part(*part(), answer)
            await answered.wait()
            while parts:
                await self._part(*part(), part_only=True)

        try:
            await run_all(stream(not number) for number in range(self._fetcher.streams))
        except NoParts:
            await self._ingest.shorten()
            await self._part(self._ingest.offset, size)

    async def _part(
        self, start: int, end: int, answered: Callable[[Body], None] = lambda _: None, *, part_only: bool = False
    ) -> None:
        """Fetch the bytes from ``start`` to ``end``. ``answered`` is called when the head of the answer has come.
        ``part_only``: NoParts from a host that serves whole blobs only.
        """
        sharing = self._sharing
        fetch = self._client.fetch(self._reference, self._descriptor, start, end - start, part_only=part_only)
        async with self._budget.connection(self._number):
            with contextlib.nullcontext() if sharing is None else sharing.connected():
                async with fetch as body:
                    self._bodies.append(body)
                    answered(body)
                    came = None if sharing is None else functools.partial(sharing.throughput.came, registry=True)
                    await self._received(body, start, came)

    async def _received(self, body: Body, start: int, came: Callable[[int], None] | None) -> None:
        """Put a body into the ingest, from ``start`` on; ``came`` is told of each piece."""
        descriptor, ingest = self._descriptor, self._ingest
        async with ingest.lane(start) as lane:
            async for chunk in body:
                await lane.write(chunk)
                self.came += len(chunk)
                if came is not None:
                    came(len(chunk))
                self._fetcher.moving[descriptor.digest] = (ingest.received, descriptor.size)
                fault("images.fetching")
