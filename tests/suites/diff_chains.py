"""Random chains of layers, and clients that make snapshots of them, here and on containerd: by Transfer (imports and
pulls), or layer by layer, as clients do that unpack themselves (Prepare, Apply, Commit).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import struct
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hypothesis import strategies as st

from api.containerd.services.snapshots.v1 import snapshots_pb2 as pb
from api.containerd.services.snapshots.v1 import snapshots_stubs
from api.containerd.types import mount_pb2
from api.containerd.types.transfer import imagestore_pb2
from deploy.samples import image
from services.kit.rpc import NAMESPACE, Channel
from services.oci.digests import chain_ids, digest_of
from tests.fake_registry import FakeRegistry
from tests.pulls import Client
from tests.suites.diff_sides import CONTENT, DIFF, HEADERS, KEPT, Node, Side, tree
from tests.suites.diff_tars import device, directory, link, opaque, pax, reg, symlink, tar, whiteout
from tests.suites.transfers import HERE, NAMED, UNPACK, Transfers, layout

SNAPSHOTS = snapshots_stubs.SNAPSHOTS

# ---------------------------------------------------------------------------------------------- layers

FILES = [b"f", b"g", b"a", b"to"]
OWNERS = [50, 0, 5, 70000]
DEFAULT_ACL = struct.pack(
    "<I" + "HHI" * 5,
    2,
    *(
        n
        for tag, bits, who in ((1, 7, -1), (2, 7, 5), (4, 5, -1), (16, 7, -1), (32, 5, -1))
        for n in (tag, bits, who & 0xFFFFFFFF)
    ),
)
"""``u::rwx,u:5:rwx,g::r-x,m::rwx,o::r-x``."""

directories = st.sampled_from([b"a/b", b"a", b"lib/a", b"a/b/lib", b"lib", b"", b"b/a/lib"])
modes = st.sampled_from([0o2775, 0o755, 0o2755, 0o1777, 0o4711, 0o6750, 0o700, 0])
owners = st.sampled_from(OWNERS)
xattrs = st.sampled_from([(), (), (), (), ((b"user.one", b"1"),), ((b"user.one", b"2"), (b"user.two", b"\0\xff"))])


def _joined(*parts: bytes) -> bytes:
    return b"/".join(part for part in parts if part)


@dataclass(frozen=True)
class Entry:
    """An entry of a layer, short when printed."""

    kind: str
    path: bytes
    content: bytes = b""
    """Or the target of a link."""
    attributes: tuple[tuple[str, int], ...] = ()
    xattrs: tuple[tuple[bytes, bytes], ...] = ()

    def encoded(self) -> bytes:
        """The entry in a tar."""
        more = pax({b"SCHILY.xattr." + key: value for key, value in self.xattrs}) if self.xattrs else b""
        return more + self._encoded(dict(self.attributes))

    def _encoded(self, attributes: dict[str, int]) -> bytes:
        match self.kind:
            case "directory":
                return directory(self.path, **attributes)
            case "whiteout":
                return whiteout(self.path)
            case "opaque":
                return opaque(self.path)
            case "symlink":
                return symlink(self.path, self.content, **attributes)
            case "link":
                return link(self.path, self.content, **attributes)
            case "device":
                return device(self.path, b"3", 1, 3, **attributes)
            case "fifo":
                return device(self.path, b"6", **attributes)
        return reg(self.path, self.content, **attributes)


@st.composite
def entries(draw: st.DrawFn, *, lowest: bool) -> list[Entry]:
    """One entry, or a file and a hard link to it. The lowest layer has no opaque markers: with them containerd loses
    files of the layer itself.
    """
    where, name = draw(directories), draw(st.sampled_from(FILES))
    path = _joined(where, name)
    attributes = tuple(
        {
            "mode": draw(modes),
            "uid": draw(owners),
            "gid": draw(owners),
            "mtime": draw(st.integers(1, 1_700_000_000)),
        }.items()
    )
    more = draw(xattrs)
    match draw(
        st.sampled_from(
            ["file"] * 6
            + ["directory"] * 6
            + ["whiteout"] * 2
            + ["opaque", "symlink", "symlink", "link", "device", "fifo"]
        )
    ):
        case "directory":
            acl = ((b"system.posix_acl_default", DEFAULT_ACL),) if draw(st.integers(0, 9)) == 9 else ()
            return [Entry("directory", where or b"a", b"", attributes, more + acl)]
        case "whiteout":
            return [Entry("whiteout", draw(st.sampled_from([path, where or b"a"])))]
        case "opaque" if not lowest:
            return [Entry("opaque", where)]
        case "symlink":
            target = draw(st.sampled_from([b"/lib", b"a", b"../b", b"/", b"f", b"nowhere"]))
            return [Entry("symlink", draw(st.sampled_from([path, _joined(where, b"to")])), target, attributes)]
        case "link":
            return [
                Entry("file", path, b"linked", attributes, more),
                Entry("link", _joined(draw(directories), b"g2"), path, attributes),
            ]
        case "device" | "fifo" as kind:
            return [Entry(kind, path, b"", attributes)]
    return [Entry("file", path, draw(st.sampled_from([b"", b"1", b"22"])), attributes, more)]


@st.composite
def chains(draw: st.DrawFn) -> list[list[Entry]]:
    """Two to five layers, lowest first."""
    count = draw(st.integers(2, 5))
    return [
        [entry for some in draw(st.lists(entries(lowest=number == 0), min_size=1, max_size=6)) for entry in some]
        for number in range(count)
    ]


_cases = itertools.count()


def layers(chain: Sequence[Sequence[Entry]]) -> list[bytes]:
    """A chain as tars. The lowest is one that no other test has, so that no snapshot of the chain exists."""
    case = Entry("file", b"case", str(next(_cases)).encode())
    return [tar(*(entry.encoded() for entry in layer)) for layer in ([case, *chain[0]], *chain[1:])]


# ---------------------------------------------------------------------------------------------- trees of them


@dataclass
class Snapshots:
    """A snapshotter of a node or a containerd, as one namespace sees it. ``place`` is an empty directory to mount
    on.
    """

    channel: Channel
    namespace: str
    place: Path
    snapshotter: str = "overlayfs"

    def __post_init__(self) -> None:
        self._client = self.channel.client(SNAPSHOTS)
        self._headers = {NAMESPACE: self.namespace}

    async def prepared(self, key: str, parent: str) -> Sequence[mount_pb2.Mount]:
        request = pb.PrepareSnapshotRequest(snapshotter=self.snapshotter, key=key, parent=parent, labels=KEPT)
        return (await self._client.Prepare(request, headers=self._headers)).mounts

    async def commit(self, name: str, key: str) -> None:
        await self._client.Commit(
            pb.CommitSnapshotRequest(snapshotter=self.snapshotter, name=name, key=key, labels=KEPT),
            headers=self._headers,
        )

    async def remove(self, key: str) -> None:
        await self._client.Remove(
            pb.RemoveSnapshotRequest(snapshotter=self.snapshotter, key=key), headers=self._headers
        )

    async def tree(self, name: str) -> dict[bytes, Node]:
        """The tree that a container on the committed snapshot ``name`` sees."""
        key = f"view {name}"
        request = pb.ViewSnapshotRequest(snapshotter=self.snapshotter, key=key, parent=name, labels=KEPT)
        mounts = (await self._client.View(request, headers=self._headers)).mounts
        try:
            with mounted(mounts, self.place):
                return tree(self.place)
        finally:
            await self.remove(key)


@contextlib.contextmanager
def mounted(mounts: Sequence[mount_pb2.Mount], place: Path) -> Iterator[None]:
    """A snapshot's one mount, on ``place``."""
    (mount,) = mounts
    subprocess.run(
        ["mount", "-t", mount.type, "-o", ",".join(mount.options), mount.source, place], check=True, timeout=20
    )
    try:
        yield
    finally:
        subprocess.run(["umount", place], check=True, timeout=20)


class Applying:
    """A client that unpacks layer by layer."""

    def __init__(
        self, channel: Channel, place: Path, snapshotter: str = "overlayfs", writing: asyncio.Lock | None = None
    ) -> None:
        """Of several that write the same blobs, those with the same lock ``writing`` do so one after the other."""
        place.mkdir()
        self._writing = writing or asyncio.Lock()
        self._snapshots = Snapshots(channel, HEADERS[NAMESPACE], place, snapshotter)
        self._side = Side("", channel.client(DIFF), channel.client(CONTENT), place)

    async def tree(self, layers: Sequence[bytes]) -> dict[bytes, Node]:
        """The tree that the layers become. NodeError if they are refused."""
        parent = ""
        for layer, name in zip(layers, chain_ids(list(map(digest_of, layers))), strict=True):
            key = f"extract {name}"
            mounts = await self._snapshots.prepared(key, parent)
            try:
                async with self._writing:
                    await self._side.apply(layer, list(mounts))
            except BaseException:
                await self._snapshots.remove(key)
                raise
            await self._snapshots.commit(name, key)
            parent = name
        return await self._snapshots.tree(parent)


class Importing:
    """A client that lets the node import and unpack."""

    def __init__(self, channel: Channel, place: Path) -> None:
        place.mkdir()
        self._snapshots = Snapshots(channel, "imports", place)
        self._transfers = Transfers(channel, "imports")

    async def tree(self, layers: Sequence[bytes]) -> dict[bytes, Node]:
        """As :meth:`Applying.tree`."""
        archive = layout({f"example.com/chain:{next(_cases)}": image(layers)})
        await self._transfers.import_(
            archive, imagestore_pb2.ImageStore(extra_references=[NAMED], unpacks=[UNPACK], platforms=[HERE])
        )
        return await self._snapshots.tree(chain_ids(list(map(digest_of, layers)))[-1])


class Pulling:
    """A client that lets the node pull, and unpack layers as they arrive."""

    def __init__(self, channel: Channel, place: Path, registry: FakeRegistry, snapshotter: str = "overlayfs") -> None:
        place.mkdir()
        self._registry = registry
        self._snapshots = Snapshots(channel, "pulls", place, snapshotter)
        self._client = Client(channel, "pulls")

    async def tree(self, layers: Sequence[bytes]) -> dict[bytes, Node]:
        """As :meth:`Applying.tree`."""
        reference = self._registry.add(image(layers), f"chain:{next(_cases)}")
        await self._client.pull(reference, snapshotter=self._snapshots.snapshotter)
        return await self._snapshots.tree(chain_ids(list(map(digest_of, layers)))[-1])


Maker = Applying | Importing | Pulling
