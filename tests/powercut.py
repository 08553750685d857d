"""A disk that loses its power: an XFS in a file, shut down without writing its log; and a workload that remembers the
answers it got.

``XFS_IOC_GOINGDOWN`` stops a mounted XFS at once: nothing that was only in memory reaches the file any more. Mounting
it again replays the log, as after a power cut.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import random
import shutil
import signal
import struct
import subprocess
import time
import uuid
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from api.containerd.services.images.v1 import images_pb2
from api.containerd.services.leases.v1 import leases_pb2, leases_stubs
from deploy.samples import image, tar_of
from services.content.remote import RemoteStore
from services.kit import errors
from services.kit.rpc import Channel
from services.oci.digests import Digest, chain_ids, digest_of
from services.oci.mounts import Mount
from services.snapshots.remote import RemoteSnapshotter
from tests.fake_registry import FakeRegistry
from tests.pulls import Client
from tests.support import Node, eventually

_GOINGDOWN = 0x8004587D
"""XFS_IOC_GOINGDOWN, of xfs_fs.h."""
_NO_LOG_FLUSH = 2
_ROOTED = {"containerd.io/gc.root": "powercut"}

Files = Mapping[str, bytes]


def possible() -> str:
    """ "", or the reason why such a disk is not possible here."""
    if not Path("/dev/loop-control").exists():
        return "no loop devices here"
    if shutil.which("mkfs.xfs") is None:
        return "no mkfs.xfs (xfsprogs)"
    return "" if "\txfs\n" in Path("/proc/filesystems").read_text() else "this kernel has no XFS"


class Disk:
    """A disk, mounted on ``directory``/d/disk. The creator of the directory unmounts it (``tests.support.remove``).

    ``directory``/d passes unmounts on, as / does where systemd runs: a mount namespace that began meanwhile, for example
    of another node's worker, does not keep the disk.
    """

    def __init__(self, directory: Path, size: int = 4 << 30) -> None:
        self._file = directory / "disk.xfs"
        shared = directory / "d"
        self.top = shared / "disk"
        self.top.mkdir(parents=True)
        subprocess.run(["mount", "--bind", "--make-shared", str(shared), str(shared)], check=True)
        with self._file.open("wb") as file:
            file.truncate(size)
        subprocess.run(["mkfs.xfs", "-q", str(self._file)], check=True)
        self.mount()

    def mount(self) -> None:
        """Mount it, as at a start of the machine."""
        subprocess.run(["mount", "-o", "loop", str(self._file), str(self.top)], check=True)

    def cut(self) -> None:
        """From now on nothing reaches the disk."""
        fd = os.open(self.top, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(fd, _GOINGDOWN, struct.pack("I", _NO_LOG_FLUSH))
        finally:
            os.close(fd)

    def unmount(self) -> None:
        """Unmount it once nothing uses it, in no mount namespace either: otherwise it would be mounted again as it is,
        shut down.
        """
        umount = ["umount", "--recursive", str(self.top)]  # with layers that are mounted on it
        eventually(lambda: subprocess.run(umount, check=False, capture_output=True).returncode == 0, "the disk is busy")
        eventually(
            lambda: (
                not subprocess.run(["losetup", "--associated", str(self._file)], check=True, capture_output=True).stdout
            ),
            "another mount namespace has the disk",
        )


class Machine:
    """A node whose ROOT is on such a disk. Its STATE is not, and is gone after a cut, as /run is. Its records may be
    elsewhere, as ``config`` says.
    """

    def __init__(self, directory: Path, config: str = "") -> None:
        self.disk = Disk(directory)
        self.node = Node(directory, config=config)
        self.node.root = self.disk.top / "root"

    def cut(self) -> None:
        """Cut the power: first of the disk, then of all processes."""
        self.disk.cut()
        end = time.monotonic() + 15
        while left := self.node.remains():
            assert time.monotonic() < end, f"processes do not die: {left}"
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
        self.disk.unmount()
        shutil.rmtree(self.node.state)

    def start(self) -> None:
        """Restore the power."""
        self.disk.mount()
        self.node.up()


@dataclass
class Acknowledged:
    """The requests that a node has answered, whose effects must therefore exist. Effects of unanswered requests may or
    may not exist; these are in ``doubt``.
    """

    images: dict[str, tuple[str, Sequence[Files], Sequence[str]]] = field(default_factory=dict)
    """By name: its digest, each layer's files and the layers' chain ids."""
    gone: set[str] = field(default_factory=set)
    """Names of deleted images."""
    leases: set[str] = field(default_factory=set)
    blobs: dict[str, bytes] = field(default_factory=dict)
    snapshots: dict[str, Files] = field(default_factory=dict)
    doubt: dict[str, tuple[str, Sequence[Files], Sequence[str]]] = field(default_factory=dict)
    """Images that may or may not exist."""
    answers: int = 0


class Workload:
    """Clients that write as fast as they are answered."""

    def __init__(self, registry: FakeRegistry, generator: random.Random, snapshotter: str = "overlayfs") -> None:
        self._registry = registry
        self._snapshotter = snapshotter
        self._generator = generator
        self.known = Acknowledged()

    async def until_cut(self, channel: Channel, cut: Callable[[], None], seconds: float) -> None:
        """Work until the power is cut after ``seconds``. A call that fails before that is an error."""
        client = Client(channel, "power")
        going = [
            asyncio.ensure_future(self._repeated(each, client, channel))
            for each in (self._pull, self._pull, self._delete, self._lease, self._blob, self._commit)
        ]
        done, _ = await asyncio.wait(going, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
        await asyncio.to_thread(cut)
        for task in going:
            task.cancel()
        await asyncio.gather(*going, return_exceptions=True)  # a call that the cut ended has failed

    async def _repeated(
        self, work: Callable[[Client, Channel], Coroutine[Any, Any, None]], client: Client, channel: Channel
    ) -> None:
        while True:
            await work(client, channel)
            self.known.answers += 1

    async def _pull(self, client: Client, _: Channel) -> None:
        reference, what = self._offered()
        self.known.doubt[reference] = what
        await client.pull(reference, snapshotter=self._snapshotter)
        self.known.images[reference] = self.known.doubt.pop(reference)

    def _offered(self) -> tuple[str, tuple[str, Sequence[Files], Sequence[str]]]:
        """A new image in the registry, with files of every size."""
        unique = uuid.uuid4().hex
        layers: list[Files] = [
            {
                f"{unique}/{layer}/{n}": self._generator.randbytes(
                    1 + self._generator.choice((100, 5_000, 70_000)) * n // 12
                )
                for n in range(12)
            }
            for layer in range(3)
        ]
        tars = [tar_of([(name, {"data": data}) for name, data in files.items()]) for files in layers]
        box = image(tars)
        return self._registry.add(box, f"{unique}:1"), (
            box.digest,
            layers,
            chain_ids([digest_of(each) for each in tars]),
        )

    async def _delete(self, client: Client, _: Channel) -> None:
        await asyncio.sleep(0.3)
        if len(self.known.images) < 3:
            return
        reference = self._generator.choice(list(self.known.images))
        self.known.doubt[reference] = self.known.images.pop(reference)
        await client.delete_image(reference)
        self.known.doubt.pop(reference)
        self.known.gone.add(reference)

    async def _lease(self, client: Client, channel: Channel) -> None:
        leases = channel.client(leases_stubs.LEASES)
        self.known.leases.add(
            (await leases.Create(leases_pb2.CreateRequest(id=uuid.uuid4().hex), headers=client.headers)).lease.id
        )
        await asyncio.sleep(0.02)

    async def _blob(self, client: Client, channel: Channel) -> None:
        data = self._generator.randbytes(20_000)
        writer = await RemoteStore(channel, client.headers).writer(uuid.uuid4().hex, len(data))
        try:
            await writer.write(data)
            digest = await writer.commit(len(data), None, _ROOTED)
        finally:
            with contextlib.suppress(errors.NodeError):
                await writer.close()
        self.known.blobs[str(digest)] = data
        await asyncio.sleep(0.02)

    async def _commit(self, client: Client, channel: Channel) -> None:
        """Commit as ``nerdctl commit`` or a build does: only the client knows what was written."""
        snapshotter = RemoteSnapshotter(channel, snapshotter=self._snapshotter, headers=client.headers)
        name, files = uuid.uuid4().hex, {f"{n}": self._generator.randbytes(1 + 3_000 * n) for n in range(8)}
        [mount] = await snapshotter.prepare(f"{name}-key", "", _ROOTED)
        for file, data in files.items():
            Path(mount.source, file).write_bytes(data)
        await snapshotter.commit(name, f"{name}-key", _ROOTED)
        self.known.snapshots[name] = files
        await asyncio.sleep(0.05)

    # -------------------------------------------------------------------------------------- afterwards

    async def lost(self, channel: Channel, node: Node) -> list[str]:
        """Effects of answered requests that are missing, and the state of doubtful images once they are pulled again:
        the pull must not treat missing files as present.
        """
        client = Client(channel, "power")
        await client.collect()
        found = [f"{reference} came back" for reference in self.known.gone & set(await client.images())]
        found += [f"lease {each} is gone" for each in self.known.leases - set(await client.leases())]
        for digest, data in self.known.blobs.items():
            found += await _blob_lost(channel, client, digest, data)
        snapshotter = RemoteSnapshotter(channel, snapshotter=self._snapshotter, headers=client.headers)
        for name, files in self.known.snapshots.items():
            found += await _snapshot_lost(snapshotter, name, [files])
        for reference, (digest, layers, chain) in self.known.images.items():
            record = (await client.images()).get(reference, images_pb2.Image())
            if record.target.digest != digest:
                found.append(f"image {reference} is {record.target.digest or 'gone'}")
                continue
            found += await _snapshot_lost(snapshotter, chain[-1], layers)
        for path in (node.root / "content/blobs").glob("*/*"):
            if f"{path.parent.name}:{path.name}" != digest_of(path.read_bytes()):
                found.append(f"{path} is damaged")
        for reference in list(self.known.doubt):
            await client.pull(reference, snapshotter=self._snapshotter)
            self.known.images[reference] = digest, layers, chain = self.known.doubt.pop(reference)
            found += [f"pulled again: {each}" for each in await _snapshot_lost(snapshotter, chain[-1], layers)]
        return found


async def _blob_lost(channel: Channel, client: Client, digest: str, data: bytes) -> list[str]:
    try:
        there = b"".join([piece async for piece in RemoteStore(channel, client.headers).read(Digest.parse(digest))])
    except errors.NodeError as error:
        return [f"blob {digest}: {error}"]
    return [] if there == data else [f"blob {digest} has other bytes"]


async def _snapshot_lost(snapshotter: RemoteSnapshotter, name: str, layers: Sequence[Files]) -> list[str]:
    """Files of a committed snapshot that are missing, empty or wrong. ``layers``: its own and those below it, the
    lowest first.
    """
    key = uuid.uuid4().hex
    try:
        directories = list(_directories(await snapshotter.view(key, name, _ROOTED)))
    except errors.NodeError as error:
        return [f"snapshot {name}: {error}"]
    found = []
    for directory, files in zip(directories, reversed(layers), strict=True):
        for file, data in files.items():
            path = Path(directory, file)
            there = path.read_bytes() if path.exists() else None
            if there != data:
                found.append(
                    f"snapshot {name}: {file} has {'no file' if there is None else f'{len(there)} bytes'}, {len(data)} "
                    "were written"
                )
    await snapshotter.remove(key)
    return found


def _directories(mounts: Sequence[Mount]) -> Iterator[str]:
    """The layers' directories of a view, topmost first."""
    [mount] = mounts
    if mount.type == "bind":
        yield mount.source
    for option in mount.options:
        if option.startswith("lowerdir="):
            yield from option.removeprefix("lowerdir=").split(":")
