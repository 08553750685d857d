"""The two sides of a comparison: Debian's own containerd, and our Diff service over a content service, both through
their sockets; and trees as values.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from api.containerd.services.content.v1 import content_pb2, content_stubs
from api.containerd.services.diff.v1 import diff_pb2, diff_stubs
from api.containerd.types import descriptor_pb2, mount_pb2
from services.content.local import LocalStore
from services.content.server import ContentServicer, LocalFilesServicer
from services.kit import errors, rpc
from services.snapshots.diff.server import DiffServicer
from tests.support import eventually, listening

CONTENT = content_stubs.CONTENT
DIFF = diff_stubs.DIFF
TAR = "application/vnd.oci.image.layer.v1.tar"
HEADERS = {"containerd-namespace": "diff"}
KEPT = {"containerd.io/gc.root": "test"}
"""Labels that keep the collector away."""


@dataclass
class Side:
    """A Diff service and the content that it works on. ``place`` is a directory for its trees."""

    name: str
    diff: diff_stubs.Diff
    content: content_stubs.Content
    place: Path

    async def write(self, data: bytes) -> str:
        """Make a blob of ``data``, if it does not exist; returns its digest."""
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        try:
            async with self.content.Write(headers=HEADERS) as stream:
                await stream.send(
                    content_pb2.WriteContentRequest(
                        action=content_pb2.STAT, ref=digest, total=len(data), expected=digest
                    )
                )
                await stream.receive()
                for start in range(0, len(data), 1 << 20):
                    await stream.send(
                        content_pb2.WriteContentRequest(
                            action=content_pb2.WRITE, offset=start, data=data[start : start + (1 << 20)]
                        )
                    )
                    await stream.receive()
                await stream.send(
                    content_pb2.WriteContentRequest(
                        action=content_pb2.COMMIT, offset=len(data), total=len(data), expected=digest, labels=KEPT
                    )
                )
                await stream.receive()
        except errors.AlreadyExists:
            return digest
        return digest

    async def read(self, digest: str) -> bytes:
        return b"".join(
            [r.data async for r in self.content.Read(content_pb2.ReadContentRequest(digest=digest), headers=HEADERS)]
        )

    async def apply(
        self, data: bytes, mounts: list[mount_pb2.Mount], media_type: str = TAR, **fields
    ) -> descriptor_pb2.Descriptor:
        digest = await self.write(data)
        request = diff_pb2.ApplyRequest(
            diff=descriptor_pb2.Descriptor(media_type=media_type, digest=digest, size=len(data)),
            mounts=mounts,
            **fields,
        )
        return (await self.diff.Apply(request, headers=HEADERS, timeout=60)).applied

    async def make(
        self, left: list[mount_pb2.Mount], right: list[mount_pb2.Mount], **fields
    ) -> descriptor_pb2.Descriptor:
        fields.setdefault("labels", KEPT)
        request = diff_pb2.DiffRequest(left=left, right=right, **fields)
        return (await self.diff.Diff(request, headers=HEADERS, timeout=60)).diff

    async def labels(self, digest: str) -> dict[str, str]:
        return dict((await self.content.Info(content_pb2.InfoRequest(digest=digest), headers=HEADERS)).info.labels)

    def directory(self, *names: str) -> Path:
        """A new directory below the side's place."""
        path = self.place.joinpath(*names)
        path.mkdir(parents=True)
        return path


class Containerd:
    """A real containerd (Debian's, or the one that SPLITD_PEER_CONTAINERD names) with a root and state of its own."""

    def __init__(self, directory: Path) -> None:
        program = os.environ.get("SPLITD_PEER_CONTAINERD") or shutil.which("containerd")
        if program is None:
            pytest.skip("needs containerd, to compare with")
        self.address = directory / "c.sock"
        config = directory / "containerd.toml"
        config.write_text(
            f'version = 2\nroot = "{directory}/root"\nstate = "{directory}/state"\n'
            'disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", '
            '"io.containerd.cri.v1.runtime", "io.containerd.nri.v1.nri"]\n'
            f'[grpc]\naddress = "{self.address}"\n'
        )
        self.log = (directory / "containerd.log").open("ab")
        self._process = subprocess.Popen(
            [program, "--config", str(config)], stdout=self.log, stderr=self.log, stdin=subprocess.DEVNULL
        )
        eventually(lambda: listening(self.address), "containerd does not listen", 30)

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.log.close()

    @contextlib.asynccontextmanager
    async def side(self, place: Path) -> AsyncIterator[Side]:
        async with rpc.Channel(self.address, pings="never") as channel:
            assert await channel.wait_connected(20)  # a loaded machine is slow
            yield Side("containerd", channel.client(DIFF), channel.client(CONTENT), place)


@contextlib.asynccontextmanager
async def ours(directory: Path, place: Path, *, files: bool = True) -> AsyncIterator[Side]:
    """Our service in this process, with a content service of ours in place of the gateway; without ``files`` it has
    only streams.
    """
    store = LocalStore(directory / "content")
    servicers: list[rpc.Servicer] = [ContentServicer(store), *([LocalFilesServicer(store.files)] if files else [])]
    servicer = DiffServicer(directory / "internal.sock", directory / "scratch")
    async with (
        rpc.serving(directory / "internal.sock", servicers, grace=1),
        rpc.serving(directory / "diff.sock", [servicer], grace=1),
        rpc.Channel(directory / "diff.sock") as diff,
        rpc.Channel(directory / "internal.sock") as content,
    ):
        assert await diff.wait_connected(20)
        assert await content.wait_connected(20)
        yield Side("ours", diff.client(DIFF), content.client(CONTENT), place)
    await servicer.close()
    store.close()


# ---------------------------------------------------------------------------------------------- mounts


def bind(path: Path, option: str = "rw") -> list[mount_pb2.Mount]:
    return [mount_pb2.Mount(type="bind", source=str(path), options=[option, "rbind"])]


def overlay(upper: Path, work: Path, *lowers: Path, extra: tuple[str, ...] = ()) -> list[mount_pb2.Mount]:
    return [
        mount_pb2.Mount(
            type="overlay",
            source="overlay",
            options=[f"workdir={work}", f"upperdir={upper}", f"lowerdir={':'.join(map(str, lowers))}", *extra],
        )
    ]


# ---------------------------------------------------------------------------------------------- trees


@dataclass(frozen=True)
class Node:
    """The file that a name stands for. ``links`` are all names of the same inode; ``modified`` is None if the time is
    later than the tests' begin.
    """

    mode: int
    owner: tuple[int, int]
    device: int
    size: int
    content: str
    modified: int | None
    links: tuple[bytes, ...]
    xattrs: tuple[tuple[str, bytes], ...]


def digest(path: bytes) -> str:
    """Of a whole file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tree(root: Path, content: Callable[[bytes], str] = digest) -> dict[bytes, Node]:
    """Everything below ``root``, as values by which two trees can be compared; a directory's size depends on the
    filesystem. ``content`` stands for the bytes of a regular file.
    """
    found: dict[bytes, os.stat_result] = {}
    names: dict[tuple[int, int], list[bytes]] = {}
    for path in _walk(os.fsencode(root)):
        info = os.lstat(path)
        name = path[len(os.fsencode(root)) + 1 :]
        found[name] = info
        if not stat.S_ISDIR(info.st_mode):
            names.setdefault((info.st_dev, info.st_ino), []).append(name)
    return {
        name: _node(
            os.fsencode(root) + b"/" + name, info, tuple(sorted(names.get((info.st_dev, info.st_ino), ()))), content
        )
        for name, info in found.items()
    }


_BEGAN = time.time_ns()


def _node(path: bytes, info: os.stat_result, links: tuple[bytes, ...], content_of: Callable[[bytes], str]) -> Node:
    content = ""
    if stat.S_ISREG(info.st_mode):
        content = content_of(path)
    elif stat.S_ISLNK(info.st_mode):
        content = os.fsdecode(os.readlink(path))
    xattrs = tuple(
        sorted(
            (key, os.getxattr(path, key, follow_symlinks=False)) for key in os.listxattr(path, follow_symlinks=False)
        )
    )
    recent = _BEGAN - 10**9 < info.st_mtime_ns < time.time_ns() + 10**9
    return Node(
        info.st_mode,
        (info.st_uid, info.st_gid),
        info.st_rdev,
        0 if stat.S_ISDIR(info.st_mode) else info.st_size,
        content,
        None if recent else info.st_mtime_ns,
        links,
        xattrs,
    )


def _walk(directory: bytes) -> Iterator[bytes]:
    # by descriptors: a layer may have paths longer than the kernel accepts at once
    for name in sorted(os.listdir(directory)):
        path = directory + b"/" + name
        try:
            mode = os.lstat(path).st_mode
        except FileNotFoundError:  # a whiteout: overlayfs lists those in a directory of only one layer
            continue
        yield path
        if stat.S_ISDIR(mode):
            yield from _walk(path)


def differences(one: dict[bytes, Node], other: dict[bytes, Node]) -> list[str]:
    """The differences of two trees, for people to read."""
    return [
        f"{os.fsdecode(name)}: {one.get(name)} != {other.get(name)}"
        for name in sorted(one.keys() | other.keys())
        if one.get(name) != other.get(name)
    ]


async def outcome(work: Awaitable[object]) -> tuple[str, Any]:
    """``("ok", result)``, or ``("refused", error)``. Unavailable does not count as refused."""
    try:
        return "ok", await work
    except errors.Unavailable:
        raise
    except errors.NodeError as error:
        return "refused", error
