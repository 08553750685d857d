"""Layers that come as EROFS images, as containerd 2 makes them: the kernel mounts what came."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.kit import errors
from services.oci.digests import digest_of
from services.snapshots.diff import media
from services.snapshots.diff.mounts import MountError
from services.snapshots.erofs import place as layout
from services.snapshots.erofs.image import Node, image
from services.snapshots.erofs.snapshotter import ErofsSnapshotter
from services.snapshots.store import DIFF_ID
from tests.suites.diff_tars import reg
from tests.suites.diff_tars import tar as tar_of

pytestmark = [
    pytest.mark.root,  # it mounts
    pytest.mark.skipif(shutil.which("mkfs.erofs") is None, reason="no mkfs.erofs (erofs-utils)"),
]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An image, in blocks of 4096 bytes, with a directory of its own mode."""
    at = tmp_path_factory.mktemp("packed")
    (at / "tree/d").mkdir(parents=True)
    (at / "tree/d").chmod(0o711)
    (at / "tree/d/a").write_bytes(b"one")
    os.setxattr(at / "tree/d", "user.one", b"1")
    subprocess.run(["mkfs.erofs", "--quiet", str(at / "image"), str(at / "tree")], check=True)
    return (at / "image").read_bytes()


@pytest.fixture
async def snapshotter(place: Path) -> AsyncIterator[ErofsSnapshotter]:
    async with ErofsSnapshotter(place / "e", idle=0.0, sync_remove=True) as made:
        yield made


async def taken(snapshotter: ErofsSnapshotter, key: str, data: bytes) -> None:
    """Do what Diff.Apply does with such a layer."""
    (mount,) = await snapshotter.prepare(key)
    layout.take_image([data[:700], data[700:]], layout.beside(mount.source), digest=lambda: digest_of(data))


async def test_an_image_is_mounted_as_it_is(snapshotter: ErofsSnapshotter, packed: bytes) -> None:
    """Layers above take what it has for directories that they do not name. It is shared as others are."""
    await taken(snapshotter, "key", packed)
    await snapshotter.commit("image", "key")
    (view,) = await snapshotter.view("view", "image")
    assert Path(view.source, "d/a").read_bytes() == b"one"
    (mount,) = await snapshotter.prepare("upper key")
    upper, stream = mount.source, tar_of(reg(b"d/b", b"two"))
    layout.unpack([stream], upper, (), layout.beside(upper), lowest=False, digest=lambda: digest_of(stream))
    await snapshotter.commit("upper", "upper key", {}, "image")
    (mount,) = await snapshotter.view("both", "upper")
    top, _ = mount.option("lowerdir").split(":")
    assert os.stat(f"{top}/d").st_mode & 0o7777 == 0o711
    assert os.getxattr(f"{top}/d", "user.one") == b"1"
    (mount,) = await snapshotter.prepare("again", "", {DIFF_ID: digest_of(packed)})
    assert "ro" in mount.options
    await snapshotter.commit("second", "again")
    assert (await snapshotter.usage("second")) == (await snapshotter.usage("image"))
    for name in ("both", "view", "upper", "image", "second"):
        await snapshotter.remove(name)
    await snapshotter.cleanup()
    assert not os.listdir(snapshotter.root / "layers")


def test_what_is_no_such_image_is_refused(packed: bytes, tmp_path: Path) -> None:
    """By its super block; the error says why."""
    root = Node(0o40755)
    root.children = {}
    ours = b"".join(image(root, 512, lambda _, length: bytes(length)))
    for data, why in (
        (b"", "it has 0 bytes"),
        (b"x" * 5000, "it does not begin as one"),
        (packed[:1151], "it has 1151 bytes"),
        (packed[:2000], "it should have .* blocks of 4096 bytes, and has"),
        (packed[:1036] + b"\x1f" + packed[1037:], "blocks of two to the power of 31 bytes"),
        (ours, "it needs other devices"),
    ):
        with pytest.raises(MountError, match=f"no EROFS image that can be mounted: {why}"):
            layout.take_image([data] if data else [], str(tmp_path), digest=lambda: digest_of(b""))
        assert not layout.is_unpacked(str(tmp_path))


async def test_what_the_kernel_refuses_is_refused_by_the_commit(snapshotter: ErofsSnapshotter, packed: bytes) -> None:
    """A feature that no kernel has."""
    await taken(snapshotter, "key", packed[: 1024 + 80] + b"\0\0\0\x80" + packed[1024 + 84 :])
    with pytest.raises(errors.FailedPrecondition, match="a layer cannot be mounted: "):
        await snapshotter.commit("image", "key")
    await snapshotter.remove("key")


def test_media_types() -> None:
    """zstd is the only compression."""
    assert not media.may_be_compressed("application/vnd.erofs.layer.v1")
    assert media.may_be_compressed("application/vnd.erofs.layer.v1+zstd")
    assert media.is_image("application/vnd.erofs.layer.v1+zstd")
    assert not media.is_image("application/vnd.oci.image.layer.v1.tar")
    with pytest.raises(errors.Unknown, match="unsupported erofs layer suffix: gzip"):
        media.may_be_compressed("application/vnd.erofs.layer.v1+gzip")
