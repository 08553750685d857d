"""The measured work: each function does a piece of work on one peer and returns its figure. The first word of its
docstring is the unit.

The client is the same for both peers, so a ratio compares each server plus one client: grpc-go's for short calls
(bench/caller), ctr where a user would use it, else our own.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from api.containerd.services.containers.v1 import containers_pb2
from api.containerd.services.content.v1 import content_pb2
from api.containerd.services.images.v1 import images_pb2
from api.containerd.services.snapshots.v1 import snapshots_pb2
from bench import usage
from bench.peers import Peer
from services.kit import errors
from services.kit.rpc import Channel

NAMESPACE = "bench"
HEADERS = {"containerd-namespace": NAMESPACE}
ROOTED = {"containerd.io/gc.root": "2026-01-01T00:00:00Z"}
"""Labels for what no collection may remove between two calls."""
BLOB_MIB = 256
_MIB = 1 << 20


def _client(channel: Channel, module: Any, name: str) -> Any:
    return channel.client(module.DESCRIPTOR.services_by_name[name])


# ------------------------------------------------------------------------------------------ unary calls


@dataclass(frozen=True, slots=True)
class Unary:
    """A call to measure: its method, its request, and the preparation that it needs."""

    method: str
    request: bytes = b""
    namespace: str = NAMESPACE
    prepare: Callable[[Channel], Awaitable[None]] | None = None


async def _a_container(channel: Channel) -> None:
    client = _client(channel, containers_pb2, "Containers")
    container = containers_pb2.Container(
        id="bench", image="bench", runtime=containers_pb2.Container.Runtime(name="io.containerd.runc.v2")
    )
    container.spec.type_url, container.spec.value = (
        "types.containerd.io/opencontainers/runtime-spec/1/Spec",
        b'{"ociVersion":"1.0.2"}' * 200,
    )
    with contextlib.suppress(errors.AlreadyExists):
        await client.Create(containers_pb2.CreateContainerRequest(container=container), headers=HEADERS)


async def _a_hundred_images(channel: Channel) -> None:
    client = _client(channel, images_pb2, "Images")
    for i in range(100):
        image = images_pb2.Image(name=f"localhost/bench/image-{i}:latest", labels={"a": "b", "c": "d"})
        image.target.media_type, image.target.digest, image.target.size = (
            "application/vnd.oci.image.index.v1+json",
            f"sha256:{i:064d}",
            1000,
        )
        with contextlib.suppress(errors.AlreadyExists):
            await client.Create(
                images_pb2.CreateImageRequest(image=image), headers={"containerd-namespace": "bench-images"}
            )


_PIECES = b"".join(hashlib.sha256(i.to_bytes(4, "big")).digest() * (_MIB // 32) for i in range(4))
_PIECES_DIGEST = f"sha256:{hashlib.sha256(_PIECES).hexdigest()}"


async def _a_blob(channel: Channel) -> None:
    with contextlib.suppress(errors.AlreadyExists):
        async with _client(channel, content_pb2, "Content").Write(headers=HEADERS) as stream:
            await stream.send(
                content_pb2.WriteContentRequest(
                    action=content_pb2.COMMIT,
                    ref="bench-pieces",
                    data=_PIECES,
                    total=len(_PIECES),
                    expected=_PIECES_DIGEST,
                    labels=ROOTED,
                )
            )
            await stream.receive()


UNARY = {
    "Version": Unary("/containerd.services.version.v1.Version/Version"),
    "Containers.Get": Unary(
        "/containerd.services.containers.v1.Containers/Get",
        containers_pb2.GetContainerRequest(id="bench").SerializeToString(),
        prepare=_a_container,
    ),
    "content read of 32 KiB": Unary(
        "/containerd.services.content.v1.Content/Read",
        content_pb2.ReadContentRequest(digest=_PIECES_DIGEST, offset=_MIB, size=32 << 10).SerializeToString(),
        prepare=_a_blob,
    ),
    "Images.List of 100": Unary(
        "/containerd.services.images.v1.Images/List", namespace="bench-images", prepare=_a_hundred_images
    ),
}


def _calls(peer: Peer, which: str, clients: int, calls: int) -> dict[str, float]:
    call = UNARY[which]
    if call.prepare is not None:
        prepare = call.prepare

        async def prepared() -> None:
            async with Channel(peer.socket) as channel:
                await prepare(channel)

        asyncio.run(prepared())
    return caller(
        peer,
        "-method",
        call.method,
        "-request",
        call.request.hex(),
        "-namespace",
        call.namespace,
        "-clients",
        str(clients),
        "-calls",
        str(calls),
    )


def caller(peer: Peer, *arguments: str) -> dict[str, float]:
    """Measure with grpc-go (bench/caller), the same fast client for both peers."""
    program = Path(sys.prefix) / "peers/caller"
    if not program.exists():
        raise RuntimeError(f"{program} does not exist: make bench builds it")
    done = subprocess.run(
        [str(program), "-socket", str(peer.socket), *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{peer.name}: {done.stderr.strip()}")
    found: dict[str, float] = json.loads(done.stdout)
    return found


def unary_p50(peer: Peer, which: str, calls: int = 1000) -> float:
    """ms: median time of a call, one after another."""
    return _calls(peer, which, 1, calls)["p50_ms"]


def unary_rate(peer: Peer, which: str, clients: int = 16, calls: int = 200) -> float:
    """calls/s with ``clients`` at once, each on a connection of its own."""
    return _calls(peer, which, clients, calls)["per_second"]


# ------------------------------------------------------------------------------------------ content


def content_write(peer: Peer) -> float:
    """MB/s: write a new blob of 256 MiB in messages of 1 MiB, waiting for each answer, commit included."""

    async def measure() -> float:
        seed = os.urandom(_MIB)
        chunks = [i.to_bytes(8, "big") + seed[8:] for i in range(BLOB_MIB)]
        digest = "sha256:" + hashlib.sha256(b"".join(chunks)).hexdigest()
        async with Channel(peer.socket) as channel:
            client = _client(channel, content_pb2, "Content")
            start = time.perf_counter()
            async with client.Write(headers=HEADERS) as stream:
                await stream.send(
                    content_pb2.WriteContentRequest(
                        action=content_pb2.STAT, ref=digest, total=BLOB_MIB * _MIB, expected=digest
                    )
                )
                await stream.receive()
                for i, chunk in enumerate(chunks):
                    await stream.send(
                        content_pb2.WriteContentRequest(action=content_pb2.WRITE, offset=i * _MIB, data=chunk)
                    )
                    await stream.receive()
                await stream.send(
                    content_pb2.WriteContentRequest(
                        action=content_pb2.COMMIT,
                        total=BLOB_MIB * _MIB,
                        expected=digest,
                        offset=BLOB_MIB * _MIB,
                        labels=ROOTED,
                    )
                )
                await stream.receive()
            seconds = time.perf_counter() - start
            await client.Delete(content_pb2.DeleteContentRequest(digest=digest), headers=HEADERS)
            return BLOB_MIB * _MIB / 1e6 / seconds

    return asyncio.run(measure())


def content_read(peer: Peer) -> float:
    """MB/s: read a blob of 1 GiB in one stream."""
    size = 1024

    def piece(i: int) -> bytes:
        return hashlib.sha256(i.to_bytes(4, "big")).digest() * (_MIB // 32)

    whole = hashlib.sha256()
    for i in range(size):
        whole.update(piece(i))
    digest = f"sha256:{whole.hexdigest()}"

    async def written() -> None:
        async with Channel(peer.socket) as channel:
            client = _client(channel, content_pb2, "Content")
            async with client.Write(headers=HEADERS) as stream:
                await stream.send(
                    content_pb2.WriteContentRequest(
                        action=content_pb2.STAT, ref="bench-read", total=size * _MIB, expected=digest
                    )
                )
                await stream.receive()
                for i in range(size):
                    await stream.send(
                        content_pb2.WriteContentRequest(action=content_pb2.WRITE, offset=i * _MIB, data=piece(i))
                    )
                    await stream.receive()
                await stream.send(
                    content_pb2.WriteContentRequest(
                        action=content_pb2.COMMIT, total=size * _MIB, offset=size * _MIB, expected=digest, labels=ROOTED
                    )
                )
                await stream.receive()

    with contextlib.suppress(errors.AlreadyExists):  # from an earlier round
        asyncio.run(written())
    request = content_pb2.ReadContentRequest(digest=digest).SerializeToString().hex()
    found = caller(
        peer,
        "-stream",
        "-method",
        "/containerd.services.content.v1.Content/Read",
        "-request",
        request,
        "-namespace",
        NAMESPACE,
    )
    if found["bytes"] < size * _MIB:
        raise RuntimeError(f"{peer.name} answered {found['bytes']:.0f} of {size * _MIB} bytes")
    return size * _MIB / 1e6 / found["seconds"]


# ------------------------------------------------------------------------------------------ snapshots


def snapshot_rate(peer: Peer, count: int = 100) -> float:
    """pairs/s: prepare and remove an overlayfs snapshot, one after the other."""

    async def measure() -> float:
        async with Channel(peer.socket) as channel:
            client = _client(channel, snapshots_pb2, "Snapshots")
            start = time.perf_counter()
            for i in range(count):
                await client.Prepare(
                    snapshots_pb2.PrepareSnapshotRequest(snapshotter="overlayfs", key=f"bench-{i}", labels=ROOTED),
                    headers=HEADERS,
                )
                await client.Remove(
                    snapshots_pb2.RemoveSnapshotRequest(snapshotter="overlayfs", key=f"bench-{i}"), headers=HEADERS
                )
            return count / (time.perf_counter() - start)

    return asyncio.run(measure())


# ------------------------------------------------------------------------------------------ ctr


def command(peer: Peer, *arguments: str) -> list[str]:
    return [peer.ctr, "-a", str(peer.socket), "-n", NAMESPACE, *arguments]


def ctr(peer: Peer, *arguments: str) -> str:
    """Run ctr, and return its output. Its error is the benchmark's."""
    done = subprocess.run(
        command(peer, *arguments), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{peer.name}: ctr {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def pull(peer: Peer, reference: str) -> float:
    """s: ``ctr images pull`` of the bench image, unpacked. Its removal, with the collection, is not timed."""
    start = time.perf_counter()
    ctr(peer, "images", "pull", "--plain-http", *peer.chosen, reference)
    seconds = time.perf_counter() - start
    ctr(peer, "images", "rm", "--sync", reference)
    os.sync()
    return seconds


def pull_processor(peer: Peer, reference: str) -> float:
    """s: the processor time of the daemon, and of the programs that it starts, for a pull and its removal."""
    spent = usage.Spent(peer)
    pull(peer, reference)
    return sum(spent.since().values())


WRITER = """
import os, sys, time
data, written, begun = os.urandom(1 << 20), 0, time.monotonic()
with open(sys.argv[1], "wb", buffering=0) as file:
    while True:
        written += file.write(data)
        if written % (1 << 31) == 0:
            file.seek(0)
        if written == 300 << 20:
            print("so much", flush=True)
        time.sleep(max(begun + written / 100e6 - time.monotonic(), 0))
"""


def pull_beside_writer(peer: Peer, reference: str) -> float:
    """s: like :func:`pull`, while a program writes 100 MB/s to the same filesystem, as a container may. A syncfs waits
    for that too.
    """
    file = peer.socket.parent.parent / "written"
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(file)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    ) as writer:
        try:
            assert writer.stdout is not None
            writer.stdout.readline()
            return pull(peer, reference)
        finally:
            writer.kill()
            writer.wait()
            file.unlink()


def run(peer: Peer, reference: str) -> float:
    """s: ``ctr run --rm IMAGE true``."""
    start = time.perf_counter()
    ctr(peer, "run", "--rm", reference, f"bench-run-{peer.name}", "true")
    return time.perf_counter() - start


def run_many(peer: Peer, reference: str, count: int = 20) -> float:
    """s: ``count`` of those at once."""
    start = time.perf_counter()
    each = [
        subprocess.Popen(
            command(peer, "run", "--rm", reference, f"bench-{peer.name}-{i}", "true"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        for i in range(count)
    ]
    for process in each:
        _, stderr = process.communicate(timeout=120)
        if process.returncode:
            raise RuntimeError(f"{peer.name}: ctr run: {stderr.decode().strip()}")
    return time.perf_counter() - start
