"""The promises of every Diff: a layer that is applied becomes the tree that its entries describe, and a layer made of
two trees turns one into the other.

The fixture ``side`` gives the implementation: the service, and the content that it works on. ``diff_layers`` has odd
layers; containerd itself says which trees they become.
"""

from __future__ import annotations

import asyncio
import gzip
import os
import re
import stat
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from google.protobuf.timestamp_pb2 import Timestamp

from api.containerd.services.content.v1 import content_pb2
from api.containerd.services.diff.v1 import diff_pb2
from api.containerd.types import descriptor_pb2, mount_pb2
from services.kit import errors
from services.kit.rpc import NAMESPACE
from services.oci.digests import digest_of
from tests.suites.diff_layers import BASE, CAPABILITY
from tests.suites.diff_sides import HEADERS, KEPT, TAR, Side, bind, differences, outcome, overlay, tree
from tests.suites.diff_tars import MTIME, device, directory, link, opaque, pax, reg, symlink, tar, whiteout
from tests.suites.diff_trees import (
    CHANGES,
    OLD,
    base,
    emptied,
    many_changes,
    members,
    nothing,
    odd_numbers,
    put,
    touched,
    trees,
)

UNCOMPRESSED = "containerd.io/uncompressed"
DOCKER = "application/vnd.docker.image.rootfs"
FILES = tar(reg(b"a", b"x" * 300_000), reg(b"b", b"y"))
ZIPPED = gzip.compress(FILES, mtime=0)
SKIPPABLE = b"\x53\x2a\x4d\x18\x05\0\0\0hello"


def names(root: Path) -> list[str]:
    """All paths below a directory, relative to it."""
    return sorted(map(os.fsdecode, tree(root)))


class DiffSuite:
    """The promises."""

    namespaced = True
    """Whether each namespace has its own content; a service over a bare content store has one for all."""
    newest = True
    """Whether it has features later than containerd 1.6: SOURCE_DATE_EPOCH, zstd for new layers, and targets of
    mounts.
    """

    # -------------------------------------------------------------------------------------- Apply

    async def test_a_layer_becomes_the_tree_that_its_entries_describe(self, side: Side) -> None:
        """Kinds, modes, owners, times, links and xattrs are right; the answer is the uncompressed layer: its diff id
        and size.
        """
        layer = tar(
            directory(b"d/", 0o2750, uid=5, gid=6),
            reg(b"d/file", b"data", mode=0o4711, uid=7, gid=8),
            link(b"d/other", b"d/file", mode=0o4711, uid=7, gid=8),
            symlink(b"to", b"/etc/nowhere"),
            device(b"null", b"3", 1, 3, mode=0o666),
            device(b"fifo", b"6", mode=0o622),
            pax({b"SCHILY.xattr.security.capability": CAPABILITY}),
            reg(b"ping", b"elf", mode=0o755),
        )
        root = side.directory("root")
        applied = await side.apply(layer, bind(root))
        assert applied == descriptor_pb2.Descriptor(media_type=TAR, digest=digest_of(layer), size=len(layer))
        found = tree(root)
        assert {os.fsdecode(name): node.mode for name, node in found.items()} == {
            "d": stat.S_IFDIR | 0o2750,
            "d/file": stat.S_IFREG | 0o4711,
            "d/other": stat.S_IFREG | 0o4711,
            "to": stat.S_IFLNK | 0o777,
            "null": stat.S_IFCHR | 0o666,
            "fifo": stat.S_IFIFO | 0o622,
            "ping": stat.S_IFREG | 0o755,
        }
        assert found[b"d/file"] == found[b"d/other"]
        assert (found[b"d/file"].links, found[b"d/file"].owner) == ((b"d/file", b"d/other"), (7, 8))
        assert (found[b"d"].owner, found[b"to"].content, found[b"null"].device) == (
            (5, 6),
            "/etc/nowhere",
            os.makedev(1, 3),
        )
        assert {node.modified for node in found.values()} == {MTIME * 10**9}
        assert found[b"ping"].xattrs == (("security.capability", CAPABILITY),)

    async def test_a_layer_changes_existing_files(self, side: Side) -> None:
        """Files are replaced and removed; a whiteout or an opaque directory removes what lower layers put there, and
        nothing of the layer itself.
        """
        root = side.directory("root")
        await side.apply(BASE, bind(root))
        await side.apply(
            tar(
                whiteout(b"etc/passwd"),
                reg(b"etc/group", b"new"),
                directory(b"var/"),
                directory(b"var/cache/"),
                reg(b"var/cache/new", b"n"),
                opaque(b"var/cache"),
                reg(b"lib/b.so", b"through a link"),
                whiteout(b"bin"),
                reg(b"bin", b"a file now"),
            ),
            bind(root),
        )
        assert names(root) == [
            *("bin", "etc", "etc/group", "lib", "usr", "usr/lib", "usr/lib/a.so", "usr/lib/b.so"),
            *("var", "var/cache", "var/cache/new"),
        ]
        assert (root / "etc/group").read_bytes() == b"new"
        assert (root / "etc").stat().st_mode & 0o7777 == 0o750, "a parent that is not named stays as it was"

    async def test_an_overlay_gets_marks_for_deleted_files(self, side: Side) -> None:
        """On an overlay the lower directory stays unchanged; whiteouts and opaque directories become overlayfs's
        own.
        """
        lower, upper, work = side.directory("lower"), side.directory("upper"), side.directory("work")
        await side.apply(BASE, bind(lower))
        before = tree(lower)
        await side.apply(
            tar(
                whiteout(b"etc/passwd"),
                directory(b"var/"),
                directory(b"var/cache/"),
                opaque(b"var/cache"),
                reg(b"var/cache/new", b"n"),
            ),
            overlay(upper, work, lower),
        )
        assert not differences(tree(lower), before)
        gone = (upper / "etc/passwd").lstat()
        assert (stat.S_ISCHR(gone.st_mode), gone.st_rdev) == (True, 0)
        assert os.getxattr(upper / "var/cache", "trusted.overlay.opaque") == b"y"
        assert (upper / "etc").stat().st_mode & 0o7777 == 0o750, "copied up"
        assert sorted(os.listdir(upper / "var/cache")) == ["new"]

    async def test_no_name_leads_out_of_the_target(self, side: Side) -> None:
        """Dots, absolute names and links end below the target, as for a process whose root it is."""
        outside, root = side.directory("outside"), side.directory("root")
        await side.apply(
            tar(
                reg(b"../../up", b"1"),
                reg(b"/abs", b"2"),
                symlink(b"out", os.fsencode(outside)),
                reg(b"out/evil", b"3"),
                symlink(b"here", b"/"),
                reg(b"here/in", b"4"),
            ),
            bind(root),
        )
        inside = str((outside / "evil").relative_to("/"))
        parents = [str(parent) for parent in Path(inside).parents if str(parent) != "."]
        assert names(root) == sorted(["up", "abs", "out", "here", "in", inside, *parents])
        assert os.listdir(outside) == []

    @pytest.mark.parametrize(
        "blob",
        [
            pytest.param(ZIPPED, id="gzip"),
            pytest.param(gzip.compress(FILES[:1000]) + gzip.compress(FILES[1000:]), id="gzip in members"),
            pytest.param(zstandard.compress(FILES), id="zstd"),
            pytest.param(
                SKIPPABLE + zstandard.compress(FILES[:5000]) + zstandard.compress(FILES[5000:]), id="zstd in frames"
            ),
            pytest.param(FILES, id="not compressed"),
        ],
    )
    async def test_compression_is_told_by_the_bytes(self, blob: bytes, side: Side) -> None:
        """The bytes decide, whatever the media type says, as long as it is that of a compressed layer."""
        root = side.directory("root")
        applied = await side.apply(blob, bind(root), f"{TAR}+gzip")
        assert applied == descriptor_pb2.Descriptor(media_type=TAR, digest=digest_of(FILES), size=len(FILES))
        assert [(root / name).stat().st_size for name in "ab"] == [300_000, 1]

    @pytest.mark.parametrize("media_type", [f"{DOCKER}.diff.tar", f"{DOCKER}.diff.tar.gzip", f"{TAR}+zstd"])
    async def test_each_media_type_of_a_layer_is_taken(self, media_type: str, side: Side) -> None:
        """Docker's and OCI's types are accepted; the answer has OCI's plain layer type."""
        applied = await side.apply(ZIPPED, bind(side.directory("root")), media_type)
        assert (applied.media_type, applied.digest) == (TAR, digest_of(FILES))

    @pytest.mark.parametrize("media_type", ["application/vnd.oci.image.config.v1+json", "text/plain", ""])
    async def test_a_blob_that_is_no_layer_is_refused(self, media_type: str, side: Side) -> None:
        """Other types are refused before anything is written."""
        root = side.directory("root")
        words = f"failed to get stream processor for {media_type}: no processor for media-type"
        with pytest.raises(errors.Unknown, match=f"^{re.escape(words)}$"):
            await side.apply(FILES, bind(root), media_type)
        assert os.listdir(root) == []

    @pytest.mark.parametrize(
        "blob",
        [
            pytest.param(b"junk" * 1000, id="no tar"),
            pytest.param(tar(reg(b"a", b"x" * 5000))[:3000], id="cut off"),
            pytest.param(ZIPPED[:-20], id="gzip cut off"),
            pytest.param(ZIPPED[:100] + b"\xff" * 50 + ZIPPED[150:], id="gzip damaged"),
            pytest.param(zstandard.compress(FILES)[:-5], id="zstd cut off"),
            pytest.param(tar(reg(b"f"), reg(b"f/x/y")), id="file as parent"),
        ],
    )
    async def test_a_layer_that_is_damaged_is_refused(self, blob: bytes, side: Side) -> None:
        """It is refused, and the next layer is applied."""
        verdict, _ = await outcome(side.apply(blob, bind(side.directory("bad")), f"{TAR}+gzip"))
        assert verdict == "refused"
        await side.apply(FILES, bind(side.directory("good")))

    async def test_a_layer_of_nothing_changes_nothing(self, side: Side) -> None:
        """An empty layer has a diff id too."""
        root = side.directory("root")
        await side.apply(BASE, bind(root))
        before = tree(root)
        assert (await side.apply(tar(), bind(root))).digest == digest_of(tar())
        assert not differences(tree(root), before)

    async def test_a_blob_that_is_not_there(self, side: Side) -> None:
        """NOT_FOUND names it."""
        missing = digest_of(b"never written")
        with pytest.raises(errors.NotFound, match=f"^failed to get reader from content store: content .*{missing}"):
            await side.diff.Apply(apply_request(missing, bind(side.directory("root"))), headers=HEADERS)

    async def test_a_blob_of_another_namespace_is_not_there(self, side: Side) -> None:
        """Neither Apply nor Diff reaches blobs of another namespace."""
        if not self.namespaced:
            pytest.skip("its content has no namespaces")
        layer = digest_of(FILES)
        assert await side.write(FILES) == layer
        made = await side.make([], bind(side.directory("root")))
        for digest in (layer, made.digest):
            with pytest.raises(errors.NotFound, match=digest):
                await side.diff.Apply(apply_request(digest, bind(side.place / "root")), headers={NAMESPACE: "another"})

    async def test_a_target_that_cannot_be_mounted_or_written(self, side: Side) -> None:
        """The error says why, and names what is missing."""
        root, missing = side.directory("root"), side.place / "missing"
        for mounts in (bind(missing), overlay(missing, root, root)):
            with pytest.raises(errors.Unknown, match="no such file or directory"):
                await side.apply(FILES, mounts)
        with pytest.raises(errors.Unknown, match="no such device"):
            await side.apply(FILES, [mount_pb2.Mount(type="nonesuchfs", source="x")])
        with pytest.raises(errors.Unknown, match="read-only file system"):
            await side.apply(FILES, bind(root, "ro"))
        assert os.listdir(root) == []

    async def test_a_full_disk_is_said(self, side: Side) -> None:
        """The error says in words that the disk is full (ENOSPC)."""
        with pytest.raises(errors.Unknown, match="no space left on device"):
            await side.apply(FILES, [mount_pb2.Mount(type="tmpfs", source="x", options=["size=100k"])])

    async def test_sync_fs(self, side: Side) -> None:
        """sync_fs works on each kind of target."""
        root = side.directory("root")
        await side.apply(BASE, bind(root), sync_fs=True)
        upper = side.directory("upper")
        await side.apply(BASE, overlay(upper, side.directory("work"), root), sync_fs=True)
        assert (upper / "bin/sh").read_bytes() == b"shell"

    async def test_layers_are_applied_side_by_side(self, side: Side) -> None:
        """Six applications of one blob at once give the same result as one."""
        roots = [side.directory(f"root{number}") for number in range(6)]
        blob = await side.write(ZIPPED)
        applied = await asyncio.gather(
            *(
                side.diff.Apply(apply_request(blob, bind(root), f"{TAR}+gzip"), headers=HEADERS, timeout=60)
                for root in roots
            )
        )
        assert {each.applied.digest for each in applied} == {digest_of(FILES)}
        for root in roots:
            assert not differences(tree(root), tree(roots[0]))

    # -------------------------------------------------------------------------------------- Diff

    @pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
    async def test_a_layer_applied_gives_the_tree_that_it_was_made_of(
        self, change: Callable[[Path], None], side: Side
    ) -> None:
        """A layer made of two trees and applied to the older one gives the newer one, except for xattrs, sockets and
        fractions of seconds, which containerd's layers do not carry.
        """
        left, right = trees(side, change)
        layer = await side.make(bind(left), bind(right))
        await side.apply(await side.read(layer.digest), bind(left), layer.media_type)
        (right / "socket").unlink(missing_ok=True)
        if (right / "ping").exists():
            os.removexattr(right / "ping", "user.not")
        for path in (right, *right.rglob("*")):
            if os.lstat(path).st_mtime_ns % 10**9:
                os.utime(path, (OLD, OLD), follow_symlinks=False)
                os.utime(left / path.relative_to(right), (OLD, OLD), follow_symlinks=False)
        one, other = tree(left), tree(right)
        if change is odd_numbers:  # a time before 1970 is not applied, by containerd's rule
            assert one.pop(b"n3").modified == 0
            other.pop(b"n3")
        if change is touched:  # a directory's time is not compared
            one.pop(b"etc")
            other.pop(b"etc")
        assert not differences(one, other)

    async def test_an_overlay_is_compared_with_its_lower_directory(self, side: Side) -> None:
        """The usual case: left is the parent, right an overlay on it, whose whiteouts and opaque directories become the
        layer's.
        """
        lower, upper, work = side.directory("lower"), side.directory("upper"), side.directory("work")
        base(lower)
        os.mknod(upper / "lib", 0o020000, 0)
        (upper / "var").mkdir()
        (upper / "var/cache").mkdir()
        os.setxattr(upper / "var/cache", "trusted.overlay.opaque", b"y")
        put(upper / "var/cache/new")
        layer = await side.make(bind(lower, "ro"), overlay(upper, work, lower), media_type=TAR)
        found = [member.name for member in members(await side.read(layer.digest))]
        assert found == [".wh.lib", "var", "var/cache", "var/cache/.wh.a", "var/cache/new"]

    async def test_without_an_older_tree_all_is_in_the_layer(self, side: Side) -> None:
        """The layer then has everything, like the first layer of an image."""
        _, right = trees(side, nothing)
        layer = await side.make([], bind(right))
        copy = side.directory("copy")
        await side.apply(await side.read(layer.digest), bind(copy), layer.media_type)
        assert not differences(tree(copy), tree(right))

    @pytest.mark.parametrize(
        ("media_type", "inflate"),
        [
            pytest.param("", lambda data: zlib.decompress(data, wbits=31), id="by default"),
            pytest.param(f"{TAR}+gzip", lambda data: zlib.decompress(data, wbits=31), id="gzip"),
            pytest.param(
                f"{TAR}+zstd", lambda data: zstandard.ZstdDecompressor().decompressobj().decompress(data), id="zstd"
            ),
            pytest.param(TAR, bytes, id="not compressed"),
        ],
    )
    async def test_a_layer_carries_its_diff_id(
        self, media_type: str, inflate: Callable[[bytes], bytes], side: Side
    ) -> None:
        """The descriptor names the blob. A compressed one has a label with the digest of its uncompressed data, and the
        caller's labels.
        """
        if media_type.endswith("zstd") and not self.newest:
            pytest.skip("containerd 1.6 makes none")
        left, right = trees(side, many_changes)
        put(right / "unique", media_type.encode())  # a blob that exists already keeps its labels
        mine = {"mine": "x", **KEPT}
        layer = await side.make(bind(left), bind(right), media_type=media_type, labels=mine, ref="my-ref")
        data = await side.read(layer.digest)
        assert layer.media_type == (media_type or f"{TAR}+gzip")
        assert (layer.digest, layer.size) == (digest_of(data), len(data))
        assert await side.labels(layer.digest) == (
            mine if media_type == TAR else mine | {UNCOMPRESSED: digest_of(inflate(data))}
        )

    async def test_the_same_trees_give_the_same_layer(self, side: Side) -> None:
        """It does so when asked again, also under the same ref."""
        left, right = trees(side, emptied)
        put(right / "new")
        right_alone = [await side.make([], bind(right), ref="again") for _ in range(2)]
        assert right_alone[0] == right_alone[1]
        if self.newest:  # whiteouts have no time of their own
            both = [await side.make(bind(left), bind(right)) for _ in range(2)]
            assert both[0] == both[1]

    async def test_no_difference_is_a_layer_too(self, side: Side) -> None:
        """Such a layer has no entries."""
        left, right = trees(side, nothing)
        layer = await side.make(bind(left), bind(right), media_type=TAR)
        assert members(await side.read(layer.digest)) == []

    async def test_no_entry_is_later_than_the_source_date_epoch(self, side: Side) -> None:
        """SOURCE_DATE_EPOCH is the latest time of any entry. Its nanoseconds may be more than a second's: Go's clients
        check them as little as containerd does.
        """
        if not self.newest:
            pytest.skip("containerd 1.6 does not know it")
        left, right = trees(side, many_changes)
        layer = await side.make(
            bind(left), bind(right), media_type=TAR, source_date_epoch=Timestamp(seconds=OLD - 1001, nanos=10**9 + 5)
        )
        times = {m.name: m.mtime for m in members(await side.read(layer.digest))}
        assert set(times.values()) == {OLD - 1000, 0}
        assert all(".wh." in name for name, when in times.items() if when == 0)

    async def test_errors_of_diff(self, side: Side) -> None:
        """Another media type is UNIMPLEMENTED; a missing source fails to mount; no ingest stays."""
        left, right = trees(side, nothing)
        docker = f"{DOCKER}.diff.tar.gzip"
        with pytest.raises(errors.Unimplemented, match=f"^unsupported diff media type: {docker}: not implemented$"):
            await side.make(bind(left), bind(right), media_type=docker)
        for mounts in ((bind(left), bind(side.place / "missing")), (bind(side.place / "missing"), bind(right))):
            with pytest.raises(errors.Unknown, match="no such file or directory"):
                await side.make(*mounts)
        statuses = await side.content.ListStatuses(content_pb2.ListStatusesRequest(), headers=HEADERS)
        assert list(statuses.statuses) == []


def apply_request(digest: str, mounts: list[mount_pb2.Mount], media_type: str = TAR) -> diff_pb2.ApplyRequest:
    return diff_pb2.ApplyRequest(diff=descriptor_pb2.Descriptor(media_type=media_type, digest=digest), mounts=mounts)
