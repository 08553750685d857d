"""Helpers for tests of pulls: images that no other test has, in every compression, and clients that pull them by
Transfer: our own, and ctr of containerd 2 if there is one.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import hashlib
import io
import json
import os
import random
import signal
import struct
import subprocess
import tarfile
import uuid
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import zstandard

from api.containerd.services.content.v1 import content_pb2
from api.containerd.services.leases.v1 import leases_pb2
from api.containerd.services.namespaces.v1 import namespaces_pb2, namespaces_stubs
from api.containerd.types.platform_pb2 import Platform
from api.containerd.types.transfer import imagestore_pb2, registry_pb2
from api.containerd.types.transfer.progress_pb2 import Progress
from deploy.samples import Image, busybox_image, busybox_layer, image, tar_of
from services.images.node.leases_remote import INCARNATION
from services.kit import any as kit_any
from services.kit import errors
from services.kit.rpc import Channel
from services.oci.digests import digest_of
from services.oci.media_types import CONFIG, LAYER, MANIFEST
from tests.fake_registry import FakeRegistry
from tests.peer import program2
from tests.suites.transfers import HERE, MACHINE, UNPACK, Transfers
from tests.support import Node, eventually_async

# ---------------------------------------------------------------------------------------------- images


def made(layers: int = 2, kib: int = 300) -> Image:
    """An image that no other test has, whose layers do not compress well."""
    unique = random.Random(os.urandom(8))
    return image([tar_of([(f"file{n}", {"data": unique.randbytes(kib << 10)})]) for n in range(layers)])


def marked(kib: int = 600) -> bytes:
    """A layer that no other test has: ``/mark``, which identifies it, and some KiB beside it that do not compress."""
    return tar_of([("mark", {"data": uuid.uuid4().hex.encode()}), ("data", {"data": os.urandom(kib << 10)})])


def runnable(layers: int = 1, kib: int = 600) -> Image:
    """Busybox with ``layers`` on top that no other test has: ``/mark`` shows that they are there. Busybox's layers are
    the same for all tests, so a node fetches them once.
    """
    return busybox_image(*(marked(kib) for _ in range(layers)))


def large() -> Image:
    """As :func:`runnable`, with a layer of 49 MiB, which is fetched in parts if the server serves parts. Its bytes are
    random: no compression makes them fewer.
    """
    return image_of([gzipped(busybox_layer()), gzipped(marked(49 << 10), 0)])


def config_of(box: Image) -> str:
    digest: str = json.loads(box.blobs[box.digest])["config"]["digest"]
    return digest


@dataclass(frozen=True)
class Layer:
    """A layer's blob, its compression, and further fields of its descriptor."""

    data: bytes
    media_type: str
    raw: bytes
    """Uncompressed."""
    annotations: Mapping[str, str] = field(default_factory=dict)


def zstd(raw: bytes) -> Layer:
    return Layer(zstandard.ZstdCompressor().compress(raw), LAYER + "+zstd", raw)


def gzipped(raw: bytes, level: int = 1) -> Layer:
    return Layer(gzip.compress(raw, level, mtime=0), LAYER + "+gzip", raw)


def estargz(raw: bytes) -> Layer:
    """A tar as eStargz: each file is a gzip member of its own, followed by a table of contents, the file
    ``stargz.index.json``, and a footer with the offset of that.

    Other programs read it as gzip with one more file, so its diff id differs from the tar's. (stargz-snapshotter,
    docs/estargz.md.)
    """
    blob, plain, toc = b"", b"", []
    landmark = [(".no.prefetch.landmark", tarfile.REGTYPE, b"\xf0")]
    for name, kind, data in [*landmark, *_files(raw)]:
        header, body = _entry(name, kind, data), data + bytes(-len(data) % 512)
        blob += gzip.compress(header, 6, mtime=0)
        at = len(blob)
        blob += gzip.compress(body, 6, mtime=0) if data else b""
        plain += header + body
        toc.append(
            {
                "name": name,
                "type": "dir" if kind == tarfile.DIRTYPE else "reg",
                "mode": 0o755 if kind == tarfile.DIRTYPE else 0o644,
                "size": len(data),
                **({"offset": at, "digest": digest_of(data), "chunkDigest": digest_of(data)} if data else {}),
            }
        )
    index = json.dumps({"version": 1, "entries": toc}).encode()
    last = _entry("stargz.index.json", tarfile.REGTYPE, index) + index + bytes(-len(index) % 512) + bytes(1024)
    plain += last
    extra = b"SG" + struct.pack("<H", 22) + b"%016xSTARGZ" % len(blob)
    blob += gzip.compress(last, 6, mtime=0)
    blob += (
        b"\x1f\x8b\x08\x04"
        + bytes(4)
        + b"\x00\xff"
        + struct.pack("<H", len(extra))
        + extra
        + b"\x01\x00\x00\xff\xff"
        + bytes(8)
    )
    return Layer(
        blob,
        LAYER + "+gzip",
        plain,
        {
            "containerd.io/snapshot/stargz/toc.digest": digest_of(index),
            "io.containers.estargz.uncompressed-size": str(len(plain)),
        },
    )


def zstd_chunked(raw: bytes) -> Layer:
    """A tar as zstd:chunked: each file is a zstd frame of its own, followed by the table of contents and a footer in
    skippable frames, which a decompressor skips. (containers/storage.)
    """
    compressor, blob, plain, toc = zstandard.ZstdCompressor(), b"", b"", []

    def skippable(data: bytes) -> bytes:
        return struct.pack("<II", 0x184D2A50, len(data)) + data

    for name, kind, data in _files(raw):
        header, body = _entry(name, kind, data), data + bytes(-len(data) % 512)
        blob += compressor.compress(header)
        start = len(blob)
        blob += compressor.compress(body) if data else b""
        plain += header + body
        toc.append(
            {
                "name": name,
                "type": "dir" if kind == tarfile.DIRTYPE else "reg",
                "mode": 0o755 if kind == tarfile.DIRTYPE else 0o644,
                "size": len(data),
                **({"offset": start, "endOffset": len(blob), "digest": digest_of(data)} if data else {}),
            }
        )
    blob += compressor.compress(bytes(1024))
    plain += bytes(1024)
    table = json.dumps({"version": 1, "entries": toc}).encode()
    manifest = compressor.compress(table)
    at = len(blob) + 8
    blob += skippable(manifest)
    blob += skippable(struct.pack("<QQQQQQQ", at, len(manifest), len(table), 1, 0, 0, 0) + b"GNUlInUx")
    return Layer(
        blob,
        LAYER + "+zstd",
        plain,
        {
            "io.github.containers.zstd-chunked.manifest-checksum": digest_of(manifest),
            "io.github.containers.zstd-chunked.manifest-position": f"{at}:{len(manifest)}:{len(table)}:1",
        },
    )


def _files(raw: bytes) -> Iterable[tuple[str, bytes, bytes]]:
    """Name, type and contents of a tar's files and directories."""
    with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
        for member in tar:
            file = tar.extractfile(member)
            yield member.name, member.type, file.read() if file is not None else b""


def _entry(name: str, kind: bytes, data: bytes) -> bytes:
    """The header of a file in a tar."""
    entry = tarfile.TarInfo(name)
    entry.type, entry.size, entry.mode, entry.mtime = (
        kind,
        len(data),
        0o755 if kind == tarfile.DIRTYPE else 0o644,
        1_600_000_000,
    )
    return entry.tobuf(tarfile.USTAR_FORMAT)


def image_of(layers: Sequence[Layer]) -> Image:
    """An image of layers that are already compressed."""
    config = json.dumps(
        {
            "architecture": MACHINE,
            "os": "linux",
            "config": {"Cmd": ["sh"], "Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [digest_of(layer.raw) for layer in layers]},
        }
    ).encode()
    root = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, "digest": digest_of(config), "size": len(config)},
            "layers": [
                {
                    "mediaType": layer.media_type,
                    "digest": digest_of(layer.data),
                    "size": len(layer.data),
                    **({"annotations": layer.annotations} if layer.annotations else {}),
                }
                for layer in layers
            ],
        }
    ).encode()
    return Image(
        MANIFEST,
        digest_of(root),
        {digest_of(data): data for data in (config, root, *(layer.data for layer in layers))},
        MACHINE,
    )


# ---------------------------------------------------------------------------------------------- our own client


class Client(Transfers):
    """A client that pulls and pushes."""

    @property
    def namespace(self) -> str:
        return str(self.headers["containerd-namespace"])

    async def pull(
        self,
        reference: str,
        *,
        name: str = "",
        unpack: bool = True,
        told: list[Progress] | None = None,
        platforms: tuple[Platform, ...] = (HERE,),
        auth: str = "",
        hosts: Path | None = None,
        snapshotter: str = UNPACK.snapshotter,
        **store: Any,
    ) -> None:
        onto = imagestore_pb2.UnpackConfiguration(platform=UNPACK.platform, snapshotter=snapshotter)
        await self.transfer(
            self.registry(reference, auth, hosts),
            imagestore_pb2.ImageStore(
                name=name or reference, unpacks=[onto] if unpack else [], platforms=platforms, **store
            ),
            told=told,
        )

    async def push(
        self, name: str, reference: str, *, told: list[Progress] | None = None, auth: str = "", **store: Any
    ) -> None:
        await self.transfer(imagestore_pb2.ImageStore(name=name, **store), self.registry(reference, auth), told=told)

    async def offset(self, ref: str) -> int:
        """Bytes of an ingest."""
        return int((await self._content.Status(content_pb2.StatusRequest(ref=ref), headers=self.headers)).status.offset)

    async def collect(self) -> None:
        """Collect everything that is not kept."""
        lease = (await self._leases.Create(leases_pb2.CreateRequest(id="collect"), headers=self.headers)).lease.id
        await self._leases.Delete(leases_pb2.DeleteRequest(id=lease, sync=True), headers=self.headers, timeout=30)

    async def end_own_leases(self) -> None:
        """Delete the leases that are not the node's: ctr 2 makes one for each pull, and leaves it to expire if it is
        interrupted.
        """
        for lease, labels in (await self.leases()).items():
            if INCARNATION not in labels:
                await self._leases.Delete(leases_pb2.DeleteRequest(id=lease), headers=self.headers)

    @staticmethod
    def registry(reference: str, auth: str = "", hosts: Path | None = None) -> registry_pb2.OCIRegistry:
        """``hosts`` is a directory with hosts.toml files."""
        return registry_pb2.OCIRegistry(
            reference=reference, resolver=registry_pb2.RegistryResolver(auth_stream=auth, host_dir=str(hosts or ""))
        )


@contextlib.asynccontextmanager
async def answering(client: Client, user: str, password: str) -> AsyncIterator[tuple[str, list[str]]]:
    """A stream on which credentials are answered. Returns its id, and the hosts that were asked for."""
    hosts: list[str] = []

    async with client.stream("auth") as (name, stream):

        async def answer() -> None:
            while (question := await stream.receive()) is not None:
                hosts.append(registry_pb2.AuthRequest.FromString(question.value).host)
                await stream.send(
                    kit_any.pack(
                        registry_pb2.AuthResponse(authType=registry_pb2.CREDENTIALS, username=user, secret=password)
                    )
                )

        task = asyncio.ensure_future(answer())
        try:
            yield name, hosts
        finally:
            task.cancel()
            await asyncio.wait((task,))


def gets(registry: FakeRegistry, digest: str) -> list[Mapping[str, str]]:
    """The headers of the requests for a blob."""
    return [seen.headers for seen in registry.asked("GET", digest)]


async def arriving(pulling: asyncio.Future[Any], client: Client, digest: str, at_least: int) -> None:
    """Wait until ``at_least`` bytes of a layer are there; a pull that fails meanwhile says why."""

    async def there() -> bool:
        if pulling.done():
            raise RuntimeError(f"the pull is over: {pulling.exception() or pulling.result()}")
        return f"layer-{digest}" in await client.ingests() and await client.offset(f"layer-{digest}") >= at_least

    await eventually_async(there)


# ---------------------------------------------------------------------------------------------- any client


class Pulling(Protocol):
    """A pull that is running."""

    @property
    def ended(self) -> asyncio.Future[str]:
        """The final output for the user; "" if the pull succeeded."""
        ...

    def interrupt(self) -> None:
        """Interrupt it, as ^C does."""
        ...


class CtrPulling:
    """``ctr images pull`` of containerd 2, on a node."""

    def __init__(
        self, node: Node, program: str, namespace: str, reference: str, *, hosts: Path | None = None, user: str = ""
    ) -> None:
        more = [*(["--hosts-dir", str(hosts)] if hosts else []), *(["--user", user] if user else [])]
        self._process = subprocess.Popen(
            [program, "-a", str(node.socket), "-n", namespace, "images", "pull", *more, reference],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.ended = asyncio.ensure_future(asyncio.to_thread(self._end))

    def _end(self) -> str:
        _, said = self._process.communicate(timeout=60)
        return said or f"ctr ended with {self._process.returncode}" if self._process.returncode else ""

    def interrupt(self) -> None:
        self._process.send_signal(signal.SIGINT)


class OwnPulling:
    """A pull by our own client."""

    def __init__(self, client: Client, reference: str, *, hosts: Path | None = None, user: str = "") -> None:
        self._client = client
        self.ended = asyncio.ensure_future(self._pulled(reference, hosts, user))

    async def _pulled(self, reference: str, hosts: Path | None, user: str) -> str:
        async with contextlib.AsyncExitStack() as held:
            auth = ""
            if user:
                name, _, password = user.partition(":")
                auth, _ = await held.enter_async_context(answering(self._client, name, password))
            try:
                await self._client.pull(reference, hosts=hosts, auth=auth)
            except errors.NodeError as error:
                return str(error)
            except asyncio.CancelledError:
                return "cancelled"
        return ""

    def interrupt(self) -> None:
        self.ended.cancel()


def pulling(node: Node, client: Client, reference: str, *, hosts: Path | None = None, user: str = "") -> Pulling:
    """Begin a pull into the client's namespace: by ctr of containerd 2 if there is one. ``hosts`` is a directory with
    hosts.toml files, ``user`` is ``NAME:PASSWORD``.
    """
    if program := program2("ctr"):
        return CtrPulling(node, program, client.namespace, reference, hosts=hosts, user=user)
    return OwnPulling(client, reference, hosts=hosts, user=user)


# ---------------------------------------------------------------------------------------------- what is there


async def check_pulled(node: Node, client: Client, reference: str, box: Image) -> None:
    """The image is there, complete and correct: every blob matches its digest, it is unpacked, and it runs."""
    assert (await client.images())[reference].target.digest == box.digest
    assert await client.blobs() == set(box.blobs)
    for digest in box.blobs:
        algorithm, _, name = digest.partition(":")
        found = (node.root / "content/blobs" / algorithm / name).read_bytes()
        assert hashlib.new(algorithm, found).hexdigest() == name, digest
    await asyncio.to_thread(
        node.ctr,
        "run",
        "--rm",
        reference,
        f"c{uuid.uuid4().hex[:8]}",
        "grep",
        "-qE",
        "^[0-9a-f]{32}$",
        "/mark",
        namespace=client.namespace,
    )


async def check_nothing_left(node: Node, channel: Channel, client: Client, *, resumable: bool = False) -> None:
    """After a collection only what images keep is left: no leases, no ingests (unless ``resumable``), no half-made
    snapshots, and nothing on the disk that no record names.
    """

    async def unleased() -> bool:
        return not await client.leases()

    await eventually_async(unleased, "leases are left")
    await client.collect()
    assert bool(await client.ingests()) == resumable
    assert not [name for name in await client.snapshots() if name.startswith("extract-")]

    async def clean() -> bool:
        spaces = await channel.client(namespaces_stubs.NAMESPACES).List(namespaces_pb2.ListNamespacesRequest())
        everybody = [Client(channel, space.name) for space in spaces.namespaces]
        blobs = {digest for each in everybody for digest in await each.blobs()}
        spare = [
            path.name
            for path in (node.root / "content/blobs").glob("*/*")
            if f"{path.parent.name}:{path.name}" not in blobs
        ]
        assert not spare, f"blobs: {spare}"
        ingests, recorded = (
            len(list((node.root / "content/ingest").glob("*"))),
            sum([len(await each.ingests()) for each in everybody]),
        )
        assert ingests <= recorded, f"{ingests} ingests, {recorded} recorded"
        directories, recorded = (
            len(list((node.root / "snapshots/overlayfs/snapshots").iterdir())),
            sum([len(await each.snapshots()) for each in everybody]),
        )
        assert directories == recorded, f"{directories} snapshot directories, {recorded} recorded"
        own = [path.name for path in (node.root / "images").glob("*")]
        assert not own, f"images has left {own}"
        return True

    await eventually_async(clean, "the disk has what no record names")
