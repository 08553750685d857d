"""The fleet of this node, as its other processes ask for it: over STATE/fleet.sock."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Sequence

from google.protobuf.empty_pb2 import Empty

from api.splitd.fleet.v1 import fleet_pb2 as pb
from api.splitd.fleet.v1 import fleet_stubs
from services.fleet import convert
from services.fleet.orders import News, Order
from services.fleet.patience import Patience
from services.fleet.store import IMPATIENCE, LONGEST, NOBODY, PATIENCE, SAYING, Claim, Container, Image, Peer, Target
from services.kit import errors, loops, tracing
from services.kit.rpc import Channel, Stream
from services.oci.digests import Digest

log = logging.getLogger(__name__)

QUIET = 0.1
"""Seconds from one word on what has arrived to the next."""
LAST = 5.0
"""Seconds for what is told when a fetch is over."""


class _Patience:
    """How long a question may take: as answers took lately suggest. Once one was not answered in time it is less, until
    an answer comes, however late.
    """

    def __init__(self) -> None:
        self._answers = Patience(PATIENCE, LONGEST)
        self._silent = False

    @property
    def seconds(self) -> float:
        return IMPATIENCE if self._silent else self._answers.seconds

    def answered(self, seconds: float) -> None:
        """An answer came after so many seconds."""
        self._silent = False
        self._answers.took(seconds)

    def missed(self) -> None:
        """A question was not answered in time."""
        self._silent = True


class RemoteFetch:
    """A ``Fetch`` that is one open call, made with the first word. Where the fleet is away, nothing is told."""

    def __init__(self, begin: pb.FetchRequest, patience: _Patience) -> None:
        self._first: pb.FetchRequest | None = begin
        self._patience = patience
        self._claiming = False
        self._left: Collection[str] = ()
        self._asked = 0.0
        """When it was asked for the claim, last."""
        self._path = ""
        self._arrived: tuple[str, int, int] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._wake = asyncio.Event()
        self._answers: asyncio.Queue[Claim] = asyncio.Queue(1)
        self._over = False
        self._finished = False
        self._limit: asyncio.Timeout | None = None

    async def claim(self, left: Collection[str] = ()) -> Claim:
        if self._over:
            return NOBODY
        while not self._answers.empty():
            self._answers.get_nowait()  # it came too late for the question before
        self._claiming, self._left, self._asked = True, left, time.monotonic()
        self._wake.set()
        try:
            async with asyncio.timeout(self._patience.seconds):
                return await self._answers.get()
        except TimeoutError:
            self._patience.missed()
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

    def finish(self) -> None:
        """The fetch is over. What is still to be told is told, but nobody waits for that."""
        self._finished = True
        if self._timer is not None:
            self._timer.cancel()
        if self._limit is not None and not self._over:
            self._limit.reschedule(asyncio.get_running_loop().time() + LAST)
        self._wake.set()

    async def told(self, call: Callable[[], Stream[pb.FetchRequest, pb.FetchResponse]]) -> None:
        """Tell what is to be told, and take the answers, until the fetch is over or the fleet is away."""
        await self._wake.wait()
        if self._finished and not self._claiming and self._arrived is None:
            return
        try:
            with tracing.background("fleet.telling"):
                async with asyncio.timeout(LAST if self._finished else None) as self._limit, call() as stream:
                    await self._tell_all(stream)
        except (errors.NodeError, TimeoutError) as error:
            log.debug("the fleet is not told of a fetch: %s", error)
        finally:
            self._end()

    async def _tell_all(self, stream: Stream[pb.FetchRequest, pb.FetchResponse]) -> None:
        hearing = loops.task("hearing the fleet of a fetch", self._hear(stream))
        try:
            while not hearing.done():
                await self._send(stream)
                if self._finished:
                    await stream.done_sending()
                    break
                await self._wake.wait()
            await hearing
        finally:
            hearing.cancel()
            await asyncio.wait((hearing,))

    async def _send(self, stream: Stream[pb.FetchRequest, pb.FetchResponse]) -> None:
        self._wake.clear()
        message, self._first = self._first or pb.FetchRequest(), None
        if self._claiming:
            self._claiming, message.claim = False, True
            message.left.extend(self._left)
        if self._arrived is not None:
            (message.path, message.have, message.received), self._arrived = self._arrived, None
        if message.ByteSize():
            await stream.send(message)

    async def _hear(self, stream: Stream[pb.FetchRequest, pb.FetchResponse]) -> None:
        try:
            while (answer := await stream.receive()) is not None:
                if self._answers.full():
                    self._answers.get_nowait()
                self._answers.put_nowait(convert.claim_from_pb(answer))
                self._patience.answered(time.monotonic() - self._asked)
        finally:
            self._end()
            self._wake.set()

    def _end(self) -> None:
        """The fleet is away: whoever waits for an answer need not."""
        self._over = True
        if self._answers.empty():
            self._answers.put_nowait(NOBODY)


class RemoteFleet:
    """A ``Fleet`` over a channel to the process ``fleet``."""

    def __init__(self, channel: Channel) -> None:
        self._fleet = channel.client(fleet_stubs.FLEET)
        self._patience = _Patience()
        self._telling = loops.Tasks()
        self._asking = loops.Tasks()
        """Questions: how long their answers take is worth knowing, also if nobody waits for them any more."""

    async def find(self, namespace: str, digest: Digest) -> Sequence[Peer]:
        asking = self._asking.start("a question to the fleet", self._found(namespace, digest))
        if not (await asyncio.wait((asking,), timeout=self._patience.seconds))[0]:
            self._patience.missed()
            return []
        return await asking

    async def _found(self, namespace: str, digest: Digest) -> Sequence[Peer]:
        """The answer, however late."""
        request, asked = pb.FindRequest(namespace=namespace, digest=str(digest)), time.monotonic()
        try:
            answer = await self._fleet.Find(request, timeout=LONGEST)
        except errors.NodeError as error:
            log.debug("the fleet does not say who has %s: %s", digest, error)
            return []
        self._patience.answered(time.monotonic() - asked)
        return [convert.peer_from_pb(peer) for peer in answer.peers]

    @contextlib.asynccontextmanager
    async def fetching(self, namespace: str, digest: Digest, size: int) -> AsyncIterator[RemoteFetch]:
        begin = pb.FetchRequest(namespace=namespace, digest=str(digest), size=size)
        fetch = RemoteFetch(begin, self._patience)
        self._telling.start("telling the fleet of a fetch", fetch.told(self._fleet.Fetch))
        try:
            yield fetch
        finally:
            fetch.finish()

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

    async def pull(self, order: Order) -> AsyncGenerator[News]:
        """Let nodes pull an image, and tell of each change, until all are done. If it is closed before, those that have
        not begun will not. Errors as of ``Prefetches.run``.
        """
        async with contextlib.aclosing(self._fleet.Pull(convert.order_to_pb(order))) as news:
            async for each in news:
                yield convert.news_from_pb(each)
