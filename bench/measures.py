"""What is measured: each function does a piece of work on one peer and returns its figure; the unit is in its docstring's first word.

The client is the same for both, so a ratio compares servers plus one client; it understates differences below a tenth of a millisecond.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import statistics
import subprocess
import time
from collections.abc import Awaitable, Callable
from typing import Any

from google.protobuf.empty_pb2 import Empty

from api.containerd.services.containers.v1 import containers_pb2
from api.containerd.services.content.v1 import content_pb2
from api.containerd.services.images.v1 import images_pb2
from api.containerd.services.snapshots.v1 import snapshots_pb2
from api.containerd.services.version.v1 import version_pb2
from bench.peers import Peer
from services.kit import errors
from services.kit.rpc import Channel, Client

NAMESPACE = "bench"
HEADERS = {"containerd-namespace": NAMESPACE}
ROOTED = {"containerd.io/gc.root": "2026-01-01T00:00:00Z"}
"""Labels of what no collection may take between two calls."""
BLOB_MIB = 256
_MIB = 1 << 20


def _client(channel: Channel, module: Any, name: str) -> Client:
    return channel.client(module.DESCRIPTOR.services_by_name[name])


# ------------------------------------------------------------------------------------------ unary calls


async def _version(channel: Channel) -> Callable[[], Awaitable[Any]]:
    client = _client(channel, version_pb2, "Version")
    return lambda: client.Version(Empty(), headers=HEADERS)


async def _container(channel: Channel) -> Callable[[], Awaitable[Any]]:
    client = _client(channel, containers_pb2, "Containers")
    container = containers_pb2.Container(id="bench", image="bench", runtime=containers_pb2.Container.Runtime(name="io.containerd.runc.v2"))
    container.spec.type_url, container.spec.value = "types.containerd.io/opencontainers/runtime-spec/1/Spec", b'{"ociVersion":"1.0.2"}' * 200
    try:
        await client.Create(containers_pb2.CreateContainerRequest(container=container), headers=HEADERS)
    except errors.AlreadyExists:
        return lambda: client.Get(containers_pb2.GetContainerRequest(id="bench"), headers=HEADERS)
    return lambda: client.Get(containers_pb2.GetContainerRequest(id="bench"), headers=HEADERS)


async def _images(channel: Channel) -> Callable[[], Awaitable[Any]]:
    client = _client(channel, images_pb2, "Images")
    headers = {"containerd-namespace": "bench-images"}
    for i in range(100):
        image = images_pb2.Image(name=f"localhost/bench/image-{i}:latest", labels={"a": "b", "c": "d"})
        image.target.media_type, image.target.digest, image.target.size = "application/vnd.oci.image.index.v1+json", f"sha256:{i:064d}", 1000
        try:
            await client.Create(images_pb2.CreateImageRequest(image=image), headers=headers)
        except errors.AlreadyExists:
            break
    return lambda: client.List(images_pb2.ListImagesRequest(), headers=headers)


UNARY = {"Version": _version, "Containers.Get": _container, "Images.List of 100": _images}


def unary_p50(peer: Peer, which: str, calls: int = 200) -> float:
    """ms: median time of one call after another."""

    async def measure() -> float:
        async with Channel(peer.socket) as channel:
            call = await UNARY[which](channel)
            times = []
            for i in range(calls + 20):
                start = time.perf_counter()
                await call()
                if i >= 20:
                    times.append(time.perf_counter() - start)
            return statistics.median(times) * 1000

    return asyncio.run(measure())


def unary_rate(peer: Peer, which: str, clients: int = 16, calls: int = 60) -> float:
    """calls/s with ``clients`` at once, each on a connection of its own."""

    async def measure() -> float:
        channels = [Channel(peer.socket) for _ in range(clients)]
        try:
            each = [await UNARY[which](channel) for channel in channels]
            await asyncio.gather(*(call() for call in each))

            async def work(call: Callable[[], Awaitable[Any]]) -> None:
                for _ in range(calls):
                    await call()

            start = time.perf_counter()
            await asyncio.gather(*(work(call) for call in each))
            return clients * calls / (time.perf_counter() - start)
        finally:
            for channel in channels:
                await channel.close()

    return asyncio.run(measure())


# ------------------------------------------------------------------------------------------ content


def content_write(peer: Peer) -> float:
    """MB/s: a new blob of 256 MiB in messages of 1 MiB, each answer awaited, commit included."""

    async def measure() -> float:
        seed = os.urandom(_MIB)
        chunks = [i.to_bytes(8, "big") + seed[8:] for i in range(BLOB_MIB)]
        digest = "sha256:" + hashlib.sha256(b"".join(chunks)).hexdigest()
        async with Channel(peer.socket) as channel:
            client = _client(channel, content_pb2, "Content")
            start = time.perf_counter()
            async with client.Write(headers=HEADERS) as stream:
                await stream.send(content_pb2.WriteContentRequest(action=content_pb2.STAT, ref=digest, total=BLOB_MIB * _MIB, expected=digest))
                await stream.receive()
                for i, chunk in enumerate(chunks):
                    await stream.send(content_pb2.WriteContentRequest(action=content_pb2.WRITE, offset=i * _MIB, data=chunk))
                    await stream.receive()
                await stream.send(content_pb2.WriteContentRequest(action=content_pb2.COMMIT, total=BLOB_MIB * _MIB, expected=digest,
                                                                  offset=BLOB_MIB * _MIB, labels=ROOTED))
                await stream.receive()
            seconds = time.perf_counter() - start
            await client.Delete(content_pb2.DeleteContentRequest(digest=digest), headers=HEADERS)
            return BLOB_MIB * _MIB / 1e6 / seconds

    return asyncio.run(measure())


def content_read(peer: Peer) -> float:
    """MB/s: that blob read back."""

    async def measure() -> float:
        data = b"".join(hashlib.sha256(i.to_bytes(4, "big")).digest() * (_MIB // 32) for i in range(BLOB_MIB))
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        async with Channel(peer.socket) as channel:
            client = _client(channel, content_pb2, "Content")
            try:
                async with client.Write(headers=HEADERS) as stream:
                    await stream.send(content_pb2.WriteContentRequest(action=content_pb2.STAT, ref="bench-read", total=len(data), expected=digest))
                    await stream.receive()
                    for i in range(BLOB_MIB):
                        await stream.send(content_pb2.WriteContentRequest(action=content_pb2.WRITE, offset=i * _MIB, data=data[i * _MIB:(i + 1) * _MIB]))
                        await stream.receive()
                    await stream.send(content_pb2.WriteContentRequest(action=content_pb2.COMMIT, total=len(data), offset=len(data), expected=digest,
                                                                      labels=ROOTED))
                    await stream.receive()
            except errors.AlreadyExists:
                size = 0  # from an earlier round
            start, size = time.perf_counter(), 0
            async for part in client.Read(content_pb2.ReadContentRequest(digest=digest), headers=HEADERS):
                size += len(part.data)
            if size != len(data):
                raise RuntimeError(f"{peer.name} answered {size} of {len(data)} bytes")
            return size / 1e6 / (time.perf_counter() - start)

    return asyncio.run(measure())


# ------------------------------------------------------------------------------------------ snapshots


def snapshot_rate(peer: Peer, count: int = 100) -> float:
    """pairs/s: prepare and remove an overlayfs snapshot, one after the other."""

    async def measure() -> float:
        async with Channel(peer.socket) as channel:
            client = _client(channel, snapshots_pb2, "Snapshots")
            start = time.perf_counter()
            for i in range(count):
                await client.Prepare(snapshots_pb2.PrepareSnapshotRequest(snapshotter="overlayfs", key=f"bench-{i}", labels=ROOTED), headers=HEADERS)
                await client.Remove(snapshots_pb2.RemoveSnapshotRequest(snapshotter="overlayfs", key=f"bench-{i}"), headers=HEADERS)
            return count / (time.perf_counter() - start)

    return asyncio.run(measure())


# ------------------------------------------------------------------------------------------ ctr


def _ctr(peer: Peer, *arguments: str) -> list[str]:
    return ["ctr", "-a", str(peer.socket), "-n", NAMESPACE, *arguments]


def ctr(peer: Peer, *arguments: str) -> None:
    """Run ctr; its error is the benchmark's."""
    done = subprocess.run(_ctr(peer, *arguments), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{peer.name}: ctr {' '.join(arguments)}: {done.stderr.strip()}")


def pull(peer: Peer, reference: str) -> float:
    """s: ``ctr images pull`` of the bench image, unpacked; its removal, collection included, is not timed."""
    start = time.perf_counter()
    ctr(peer, "images", "pull", "--plain-http", reference)
    seconds = time.perf_counter() - start
    ctr(peer, "images", "rm", "--sync", reference)
    os.sync()
    return seconds


def run(peer: Peer, reference: str) -> float:
    """s: ``ctr run --rm IMAGE true``."""
    start = time.perf_counter()
    ctr(peer, "run", "--rm", reference, f"bench-run-{peer.name}", "true")
    return time.perf_counter() - start


def run_many(peer: Peer, reference: str, count: int = 20) -> float:
    """s: as many of those at once."""
    start = time.perf_counter()
    each = [subprocess.Popen(_ctr(peer, "run", "--rm", reference, f"bench-{peer.name}-{i}", "true"), stdin=subprocess.DEVNULL,
                             stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for i in range(count)]
    for process in each:
        _, stderr = process.communicate(timeout=120)
        if process.returncode:
            raise RuntimeError(f"{peer.name}: ctr run: {stderr.decode().strip()}")
    return time.perf_counter() - start


