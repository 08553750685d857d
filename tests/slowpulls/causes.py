"""What makes a pull slow here, one cause at a time, and what its verdict must say then.

Each cause is a context manager: the pull that is judged runs inside of it. ``expects`` says which of the verdict's
causes are the injected one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from aiohttp import web

from deploy.samples import Image
from services.traces.causes import Cause, Kind
from tests.fake_registry import Auth, Fault, Serve, status
from tests.slowpulls.images import plain, squeezed
from tests.slowpulls.scene import NAME, Scene
from tests.support import slow_disk as limited_disk

ALWAYS = 1 << 30
MB = 10**6
LONGEST = 30.0
"""Seconds that a registry of limited rate takes for an image at most. The bench image would take more than a minute at
5 MB/s; in half a minute it takes several times as long as unlimited.
"""


@dataclass(frozen=True)
class Injection:
    """A cause, and how a verdict names it."""

    name: str
    about: str
    inject: Callable[[Scene, Image], AbstractAsyncContextManager[None]]
    """Makes pulls of the image slow."""
    kind: Kind
    least: float
    """Seconds that its verdict puts to the cause at least, on a machine of any speed."""
    parts: frozenset[str] = frozenset()
    """Parts of the kind that count; all, if empty."""
    names: str = ""
    """What the sentence must name: the registry's host, unless it says otherwise; "layer" is any layer."""
    holder: str = ""
    """Who holds the locks that count too; nobody, if empty."""
    image: Callable[[], Image] = plain

    def is_named_by(self, cause: Cause) -> bool:
        if self.holder and cause.kind is Kind.LOCK:
            return self.holder in cause.holder
        return cause.kind is self.kind and (not self.parts or cause.part in self.parts)


# ---------------------------------------------------------------------------------------------- the registry


def slow(rate: float, image: Image) -> float:
    """``rate`` in bytes a second, or more if it takes the image longer than ``LONGEST``."""
    return max(rate, sum(len(image.blobs[layer]) for layer in image.layers) / LONGEST)


class Bucket:
    """A rate that all answers of a registry share."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._free = 0.0

    async def take(self, size: int) -> None:
        now = asyncio.get_running_loop().time()
        self._free = max(now, self._free) + size / self.rate
        await asyncio.sleep(self._free - now)


def limited(rate: float | Bucket, piece: int = 32 << 10) -> Fault:
    """All answers together have at most ``rate`` bytes a second."""
    bucket = rate if isinstance(rate, Bucket) else Bucket(rate)

    async def fault(request: web.Request, serve: Serve) -> web.StreamResponse:
        right = await serve()
        assert isinstance(right, web.Response)
        assert isinstance(right.body, bytes)
        answer = web.StreamResponse(status=right.status, headers=right.headers)
        answer.content_length = len(right.body)
        await answer.prepare(request)
        for at in range(0, len(right.body), piece):
            part = right.body[at : at + piece]
            await bucket.take(len(part))
            await answer.write(part)
        return answer

    return fault


def late(seconds: float) -> Fault:
    """The right answer, but its first byte comes late."""

    async def fault(request: web.Request, serve: Serve) -> web.StreamResponse:
        await asyncio.sleep(seconds)
        return await serve()

    return fault


def faulty(
    where: str, make: Callable[[Image], Fault], *, times: int = ALWAYS, method: str = ""
) -> Callable[..., AbstractAsyncContextManager[None]]:
    """Inject a registry's fault."""

    @contextlib.asynccontextmanager
    async def inject(scene: Scene, image: Image) -> AsyncIterator[None]:
        scene.registry.inject(where, make(image), times=times, method=method)
        try:
            yield
        finally:
            scene.registry.heal()

    return inject


@contextlib.asynccontextmanager
async def slow_token(scene: Scene, _: Image) -> AsyncIterator[None]:
    """The token server takes 2 s."""
    scene.registry.auth = Auth()
    scene.registry.inject("/token", late(2), times=ALWAYS)
    try:
        yield
    finally:
        scene.registry.heal()
        scene.registry.auth = None


@contextlib.asynccontextmanager
async def rate_limit(scene: Scene, image: Image) -> AsyncIterator[None]:
    """The first request for each layer is refused, with the demand to come again in 3 s. If only one were refused, the
    others might give the processors enough to do meanwhile.
    """
    for layer in image.layers:
        scene.registry.inject(layer, status(429, Retry_After="3"), times=1)
    try:
        yield
    finally:
        scene.registry.heal()


@contextlib.asynccontextmanager
async def dead_mirror(scene: Scene, _: Image) -> AsyncIterator[None]:
    """A mirror whose address swallows connections is asked first."""
    with swallowing() as address:
        directory = scene.hosts / scene.registry.host
        directory.mkdir()
        (directory / "hosts.toml").write_text(
            f'server = "http://{scene.registry.host}"\n[host."http://{address}"]\ncapabilities = ["pull", "resolve"]\n'
        )
        try:
            yield
        finally:
            (directory / "hosts.toml").unlink()
            directory.rmdir()


@contextlib.contextmanager
def swallowing() -> Iterator[str]:
    """An address that answers no SYN: the queue of its listener is full."""
    with contextlib.ExitStack() as held:
        listener = held.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):
            filling = held.enter_context(socket.socket())
            filling.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                filling.connect(listener.getsockname())
        host, port = listener.getsockname()
        yield f"{host}:{port}"


@contextlib.asynccontextmanager
async def another_pull(scene: Scene, _: Image) -> AsyncIterator[None]:
    """Ten layers of another image are being fetched, slowly, and hold all places. They hardly move before the pull that
    is judged has come, however long its command takes to start: then the rest takes 4 s.
    """
    other = "other:1"
    await scene.forgotten(other)
    before = plain(10, 1 << 10, 7)
    reference = scene.registry.add(before, other)
    bucket = Bucket(64 << 10)
    for layer in before.layers:
        scene.registry.inject(layer, limited(bucket), times=ALWAYS)
    path = f"/{NAME.partition(':')[0]}/manifests/"
    asked = len(scene.registry.asked(part=path))

    async def let_go() -> None:
        while len(scene.registry.asked(part=path)) == asked:
            await asyncio.sleep(0.01)
        bucket.rate = 2.5 * MB

    pulling = asyncio.ensure_future(scene.pulled(reference))
    try:
        async with asyncio.timeout(60):
            while scene.registry.answering < 8:
                await asyncio.sleep(0.01)
        letting_go = asyncio.ensure_future(let_go())
        yield
    finally:
        bucket.rate = 2.5 * MB
        await pulling
        letting_go.cancel()
        scene.registry.heal()
        await scene.forgotten(other)


# ---------------------------------------------------------------------------------------------- the machine


@contextlib.asynccontextmanager
async def busy_processor(_: Scene, __: Image) -> AsyncIterator[None]:
    """All processors but one are busy with another program."""
    processors = sorted(os.sched_getaffinity(0))[1:]
    program = "import os, sys\nos.sched_setaffinity(0, {int(sys.argv[1])})\nos.setpriority(os.PRIO_PROCESS, 0, 0)\nwhile True: pass"
    running = [subprocess.Popen([sys.executable, "-c", program, str(number)]) for number in processors]
    try:
        yield
    finally:
        for each in running:
            each.send_signal(signal.SIGKILL)
            each.wait()


@contextlib.asynccontextmanager
async def slow_disk(scene: Scene, _: Image) -> AsyncIterator[None]:
    """The node's disk takes 12 MB a second."""
    with limited_disk(scene.disk, 12 * MB):
        yield


@contextlib.asynccontextmanager
async def collection(scene: Scene, image: Image) -> AsyncIterator[None]:
    """The image was removed a moment ago, and its blobs are being removed, which takes the disk 3 s longer than the
    image's pull: a pull has the lock's wait beside its layers' unpacking, and only what is left then makes it slower.
    """
    reference = scene.registry.add(image, NAME)
    await scene.pulled(reference)
    # A collection that the pull began may be under way: the fault is for the one that follows.
    await scene.command(scene.node.ctr, "images", "tag", "--force", reference, "none")
    await scene.command(scene.node.ctr, "images", "rm", "--sync", "none")
    (scene.faults / "content.before-remove").write_text(f"sleep {3 + scene.medians.get(image.digest, 0.0):.1f}")
    await scene.command(scene.node.ctr, "images", "rm", reference)
    async with asyncio.timeout(20):
        while (scene.faults / "content.before-remove").exists():
            await asyncio.sleep(0.01)
    yield


INJECTIONS = (
    Injection(
        "bandwidth",
        "a registry limited to 5 MB/s",
        faulty("blob", lambda image: limited(slow(5 * MB, image))),
        Kind.NETWORK,
        4.0,
        frozenset({"bandwidth", "bytes"}),
    ),
    Injection("first-byte", "500 ms to the first byte", faulty("/v2/", lambda _: late(0.5)), Kind.REGISTRY, 1.4),
    Injection("token", "a token server that takes 2 s", slow_token, Kind.REGISTRY, 1.9, frozenset({"auth"})),
    Injection("rate-limit", "429 with Retry-After 3", rate_limit, Kind.REGISTRY, 2.0, frozenset({"rate limit"})),
    Injection("mirror", "a dead mirror first", dead_mirror, Kind.MIRROR, 4.5, names="mirror"),
    Injection("processor", "all processors but one busy", busy_processor, Kind.CPU, 1.0, names="layer", image=squeezed),
    Injection("disk", "a disk that takes 12 MB/s", slow_disk, Kind.DISK, 2.0, names="disk"),
    Injection("collection", "a collection that holds a lock", collection, Kind.LOCK, 1.5, names="collection"),
    Injection("queue", "another pull of 10 layers before", another_pull, Kind.QUEUE, 1.5, names="other:1"),
)
