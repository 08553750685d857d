"""The fleet of this node, as its other processes ask for it: over STATE/fleet.sock."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Sequence

from google.protobuf.empty_pb2 import Empty

from api.splitd.fleet.v1 import fleet_pb2 as pb
from api.splitd.fleet.v1 import fleet_stubs
from services.fleet import convert
from services.fleet.store import NOBODY, PATIENCE, SAYING, Claim, Container, Image, Peer, Target
from services.kit import errors, loops
from services.kit.rpc import Channel, Stream
from services.oci.digests import Digest

log = logging.getLogger(__name__)

QUIET = 0.1
"""Seconds from one word on what has arrived to the next."""


class RemoteFetch:
    """A ``Fetch`` that is one open call, made with the first word. Where the fleet is away, nothing is told."""

    def __init__(self, stream: Stream[pb.FetchRequest, pb.FetchResponse], begin: pb.FetchRequest) -> None:
        self._stream = stream
        self._first: pb.FetchRequest | None = begin
        self._claiming = False
        self._path = ""
        self._arrived: tuple[str, int, int] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._wake = asyncio.Event()
        self._answers: asyncio.Queue[Claim] = asyncio.Queue(1)
        self._over = False

    async def claim(self) -> Claim:
        if self._over:
            return NOBODY
        while not self._answers.empty():
            self._answers.get_nowait()  # it came too late for the question before
        self._claiming = True
        self._wake.set()
        try:
            async with asyncio.timeout(PATIENCE):
                return await self._answers.get()
        except TimeoutError:
            return NOBODY

    def arrived(self, path: str, have: int, received: int = 0) -> None:
        if self._over:
            return
        self._arrived = (path, have, received)
        if path != self._path:
            self._path = path
            self._wake.set()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(QUIET, self._tell)

    def _tell(self) -> None:
        self._timer = None
        self._wake.set()

    async def told(self) -> None:
        """Send what is to be told, and take the answers, until the fleet is away."""
        hearing: asyncio.Task[None] | None = None
        try:
            while hearing is None or not hearing.done():
                await self._wake.wait()
                await self._send()
                if hearing is None:
                    hearing = loops.task("hearing the fleet of a fetch", self._hear())
            await hearing
        except errors.NodeError as error:
            log.debug("the fleet is not told of a fetch: %s", error)
        finally:
            self._end()
            if hearing is not None:
                hearing.cancel()
                await asyncio.wait((hearing,))

    async def _send(self) -> None:
        self._wake.clear()
        if self._over:
            return
        message, self._first = self._first or pb.FetchRequest(), None
        if self._claiming:
            self._claiming, message.claim = False, True
        if self._arrived is not None:
            (message.path, message.have, message.received), self._arrived = self._arrived, None
        await self._stream.send(message)

    async def _hear(self) -> None:
        try:
            while (answer := await self._stream.receive()) is not None:
                if self._answers.full():
                    self._answers.get_nowait()
                self._answers.put_nowait(convert.claim_from_pb(answer))
        finally:
            self._end()
            self._wake.set()

    def _end(self) -> None:
        """The fleet is away: whoever waits for an answer need not."""
        self._over = True
        if self._answers.empty():
            self._answers.put_nowait(NOBODY)

    async def last(self) -> None:
        """Tell what is still to be told, for a moment."""
        if self._timer is not None:
            self._timer.cancel()
        if not self._over and self._first is None:
            with contextlib.suppress(errors.NodeError, TimeoutError):
                async with asyncio.timeout(PATIENCE):
                    if self._arrived is not None:
                        await self._send()
                    await self._stream.done_sending()


class RemoteFleet:
    """A ``Fleet`` over a channel to the process ``fleet``."""

    def __init__(self, channel: Channel) -> None:
        self._fleet = channel.client(fleet_stubs.FLEET)

    @contextlib.asynccontextmanager
    async def find(self, namespace: str, digest: Digest) -> AsyncIterator[AsyncIterator[Sequence[Peer]]]:
        async with contextlib.aclosing(self._found(namespace, digest)) as found:
            yield found

    async def _found(self, namespace: str, digest: Digest) -> AsyncGenerator[Sequence[Peer]]:
        request = pb.FindRequest(namespace=namespace, digest=str(digest))
        async with contextlib.aclosing(self._fleet.Find(request)) as answers:
            first: asyncio.Task[pb.FindResponse | None] = loops.task("finding peers", anext(answers, None))
            try:
                if not (await asyncio.wait((first,), timeout=PATIENCE))[0]:
                    yield ()
                answer = await first
                if answer is None:
                    yield ()
                while answer is not None:
                    yield [convert.peer_from_pb(peer) for peer in answer.peers]
                    answer = await anext(answers, None)
            except errors.NodeError as error:
                log.debug("the fleet does not say who has %s: %s", digest, error)
                yield ()
            finally:
                first.cancel()
                await asyncio.wait((first,))

    @contextlib.asynccontextmanager
    async def fetching(self, namespace: str, digest: Digest, size: int) -> AsyncIterator[RemoteFetch]:
        begin = pb.FetchRequest(namespace=namespace, digest=str(digest), size=size)
        async with self._fleet.Fetch() as stream:
            fetch = RemoteFetch(stream, begin)
            telling = loops.aside("telling the fleet of a fetch", fetch.told())
            try:
                yield fetch
            finally:
                await fetch.last()
                telling.cancel()
                await asyncio.wait((telling,))

    async def image(self, namespace: str, name: str) -> Target | None:
        try:
            found = await self._fleet.Image(pb.ImageRequest(namespace=namespace, name=name), timeout=SAYING)
        except errors.NodeError as error:
            log.debug("the fleet does not say what %s is: %s", name, error)
            return None
        return convert.target_from_pb(found)


class RemoteOverview:
    """An ``Overview`` over a channel to the process ``fleet``."""

    def __init__(self, channel: Channel) -> None:
        self._fleet = channel.client(fleet_stubs.FLEET)

    async def images(self) -> AsyncIterator[Sequence[Image]]:
        async with contextlib.aclosing(self._fleet.Images(Empty())) as pages:
            async for page in pages:
                yield [*map(convert.image_from_pb, page.images)]

    async def containers(self) -> AsyncIterator[Sequence[Container]]:
        async with contextlib.aclosing(self._fleet.Containers(Empty())) as pages:
            async for page in pages:
                yield [*map(convert.container_from_pb, page.containers)]
