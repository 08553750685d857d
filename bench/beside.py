"""How long others wait beside a client with very heavy load: ``--only beside``.

One client makes Version, Images.Get and a small Write, one after the other. Meanwhile another one has ten thousand open
Writes and Prepares, lists 24,000 blobs again and again, or writes and reads the labels of an image of thousands of
layers. The other one is a process of its own (``python -m bench.beside SOCKET LOAD``), in a namespace of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from google.protobuf.empty_pb2 import Empty

from api.containerd.services.content.v1 import content_pb2
from api.containerd.services.images.v1 import images_pb2
from api.containerd.services.snapshots.v1 import snapshots_pb2
from api.containerd.services.version.v1 import version_pb2
from api.containerd.types import descriptor_pb2
from bench.measures import HEADERS, ROOTED
from bench.peers import TOP, Peer
from services.kit import errors, process
from services.kit.rpc import Channel
from services.oci.digests import digest_of

if TYPE_CHECKING:
    from bench.table import Table

OPEN, BLOBS = 10_000, 24_000
SECONDS = 10.0
"""Seconds for which the first client is measured."""
MOST_MS = 50
_NAMESPACE = {"containerd-namespace": "bench-beside"}
_CONNECTIONS = 4
_READY = "ready"


def rows(table: Table, peers: list[Peer]) -> None:
    """The wanted rows: p50 and p99 without and with each load, for both daemons."""
    for load in LOADS:
        wanted = [name for name in CALLS if table.wanted(_row(name, load))]
        if not wanted:
            continue
        found = {peer.name: (_measured(peer), _loaded(peer, load)) for peer in peers}
        for name in wanted:
            table.add(
                _row(name, load),
                "p99 ms",
                {peer: [loaded[name][1]] for peer, (_, loaded) in found.items()},
                aim=f"<= {MOST_MS} ms; alone: "
                + ", ".join(
                    (
                        f"{peer} {alone[name][1]:.1f} (x {loaded[name][1] / alone[name][1]:.1f}; p50 "
                        f"{alone[name][0]:.1f} "
                        f"-> {loaded[name][0]:.1f})"
                    )
                    for peer, (alone, loaded) in found.items()
                ),
            )


def _row(name: str, load: str) -> str:
    return f"{name} beside {load}"


def _measured(peer: Peer) -> dict[str, tuple[float, float]]:
    return asyncio.run(_measure(peer.socket))


def _loaded(peer: Peer, load: str) -> dict[str, tuple[float, float]]:
    with _running(peer.socket, load):
        return _measured(peer)


@contextlib.contextmanager
def _running(socket: Path, load: str) -> Iterator[None]:
    """Run the other client; the block begins when it is ready."""
    with subprocess.Popen(
        [sys.executable, "-m", "bench.beside", str(socket), load], cwd=TOP, stdout=subprocess.PIPE, text=True
    ) as other:
        try:
            assert other.stdout is not None
            if other.stdout.readline().strip() != _READY:
                raise RuntimeError(f"the load {load} did not begin: it ended with {other.wait()}")
            yield
            if other.poll() is not None:
                raise RuntimeError(f"the load {load} ended with {other.returncode}")
        finally:
            other.kill()


# ------------------------------------------------------------------------------------------ the measured client


def of(channel: Channel, module: object, name: str) -> Any:
    return channel.client(module.DESCRIPTOR.services_by_name[name])  # type: ignore[attr-defined]


async def _version(channel: Channel) -> None:
    await of(channel, version_pb2, "Version").Version(Empty(), timeout=None)


async def _get(channel: Channel) -> None:
    await of(channel, images_pb2, "Images").Get(
        images_pb2.GetImageRequest(name="bench-beside"), headers=HEADERS, timeout=None
    )


async def _write(channel: Channel) -> None:
    await blob(channel, os.urandom(1024) * 64, HEADERS, {})


CALLS: dict[str, Callable[[Channel], Awaitable[None]]] = {
    "Version": _version,
    "Images.Get": _get,
    "Write of 64 KiB": _write,
}


async def _measure(socket: Path) -> dict[str, tuple[float, float]]:
    """p50 and p99 of each call in milliseconds."""
    async with contextlib.AsyncExitStack() as stack:
        channels = [await stack.enter_async_context(Channel(socket, pings="never")) for _ in CALLS]
        with contextlib.suppress(errors.AlreadyExists):
            await blob(channels[0], b"bench-beside", HEADERS, ROOTED)
        with contextlib.suppress(errors.AlreadyExists):
            target = descriptor_pb2.Descriptor(media_type="text/plain", digest=digest_of(b"bench-beside"), size=12)
            await of(channels[0], images_pb2, "Images").Create(
                images_pb2.CreateImageRequest(image=images_pb2.Image(name="bench-beside", target=target)),
                headers=HEADERS,
            )
        taken = await asyncio.gather(
            *(_again(call, channel) for call, channel in zip(CALLS.values(), channels, strict=True))
        )
    return {
        name: (statistics.median(times), sorted(times)[len(times) * 99 // 100])
        for name, times in zip(CALLS, taken, strict=True)
    }


async def _again(call: Callable[[Channel], Awaitable[None]], channel: Channel) -> list[float]:
    times: list[float] = []
    end = time.perf_counter() + SECONDS
    while (start := time.perf_counter()) < end:
        await call(channel)
        times.append((time.perf_counter() - start) * 1000)
        await asyncio.sleep(0.005)
    return times


async def blob(channel: Channel, data: bytes, headers: dict[str, str], labels: dict[str, str]) -> None:
    digest = digest_of(data)
    async with of(channel, content_pb2, "Content").Write(headers=headers) as stream:
        for request in (
            content_pb2.WriteContentRequest(
                action=content_pb2.STAT, ref=f"bench-{digest}", total=len(data), expected=digest
            ),
            content_pb2.WriteContentRequest(
                action=content_pb2.COMMIT, data=data, total=len(data), expected=digest, labels=labels
            ),
        ):
            await stream.send(request)
            await stream.receive()


# ------------------------------------------------------------------------------------------ the other client


async def _opens(channels: list[Channel], ready: Callable[[], None]) -> None:
    """Writes that stay open, and as many Prepares at a time as the daemon takes."""
    streams = []

    async def write(number: int) -> None:
        stream = of(channels[number % len(channels)], content_pb2, "Content").Write(headers=_NAMESPACE)
        await stream.send(
            content_pb2.WriteContentRequest(
                action=content_pb2.WRITE, ref=f"open-{number}", total=1 << 20, data=b"x" * 1000
            )
        )
        await stream.receive()
        streams.append(stream)

    async def prepare(number: int) -> None:
        request = snapshots_pb2.PrepareSnapshotRequest(snapshotter="native", key=f"open-{os.getpid()}-{number}")
        await of(channels[number % len(channels)], snapshots_pb2, "Snapshots").Prepare(
            request, headers=_NAMESPACE, timeout=None
        )

    for start in range(0, OPEN, 500):
        await asyncio.gather(*(write(number) for number in range(start, start + 500)))
    ready()
    start = 0
    while True:
        await asyncio.gather(*(prepare(number) for number in range(start, start + OPEN)))
        start += OPEN


async def _lists(channels: list[Channel], ready: Callable[[], None]) -> None:
    """Lists, one after the other, of blobs; an earlier round may have left them."""

    async def written(number: int) -> None:
        with contextlib.suppress(errors.AlreadyExists):
            await blob(channels[number % len(channels)], b"%d" % number, _NAMESPACE, ROOTED)

    for start in range(0, BLOBS, 64):
        await asyncio.gather(*(written(number) for number in range(start, start + 64)))
    ready()
    while True:
        async for _ in of(channels[0], content_pb2, "Content").List(
            content_pb2.ListContentRequest(), headers=_NAMESPACE
        ):
            pass


async def _layers(channels: list[Channel], ready: Callable[[], None], layers: int) -> None:
    """Set and read the labels of a manifest, one for each layer, again and again."""
    client, data = of(channels[0], content_pb2, "Content"), b"a manifest of %d layers" % layers
    with contextlib.suppress(errors.AlreadyExists):
        await blob(channels[0], data, _NAMESPACE, ROOTED)
    labels = {f"containerd.io/gc.ref.content.l.{number}": digest_of(b"%d" % number) for number in range(layers)}
    info = content_pb2.Info(digest=digest_of(data), labels=labels)
    update = content_pb2.UpdateRequest(info=info, update_mask={"paths": [f"labels.{key}" for key in labels]})
    ready()
    while True:
        await client.Update(update, headers=_NAMESPACE, timeout=None)
        for _ in range(5):
            await client.Info(content_pb2.InfoRequest(digest=info.digest), headers=_NAMESPACE, timeout=None)


LOADS: dict[str, Callable[[list[Channel], Callable[[], None]], Awaitable[None]]] = {
    f"{OPEN:,} open Writes and Prepares": _opens,
    f"lists of {BLOBS:,} blobs": _lists,
    "4,000 layers' labels": lambda channels, ready: _layers(channels, ready, 4_000),
    "20,000 layers' labels": lambda channels, ready: _layers(channels, ready, 20_000),
}


async def _main(socket: Path, load: str) -> None:
    async with contextlib.AsyncExitStack() as stack:
        # without pings: when grpc-go has had nothing to send for seconds (10,000 Prepares wait for one disk), it ends
        # the connection of a client that pings more than twice
        channels = [await stack.enter_async_context(Channel(socket, pings="never")) for _ in range(_CONNECTIONS)]
        await LOADS[load](channels, lambda: print(_READY, flush=True))


if __name__ == "__main__":
    process.many_files()
    process.run_loop(_main(Path(sys.argv[1]), sys.argv[2]))
