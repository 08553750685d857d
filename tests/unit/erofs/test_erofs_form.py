"""Mounts in the form of containerd's erofs snapshotter: its clients, its mount manager and shims make them themselves."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from services.kit import errors
from services.kit.loop_devices import attached_image
from services.kit.mounting import RDONLY
from services.oci.digests import digest_of
from services.oci.mounts import Mount
from services.snapshots.diff import mounts as calls
from services.snapshots.diff import workers
from services.snapshots.diff.mounts import MountError, read_only, to_arguments
from services.snapshots.diff.workers import Appliers
from services.snapshots.erofs import place as layout
from services.snapshots.erofs.snapshotter import Erofs, ErofsSnapshotter
from tests.suites import diff_sides
from tests.suites.diff_tars import directory, reg, whiteout
from tests.suites.diff_tars import tar as tar_of

pytestmark = pytest.mark.root  # it mounts
LAYERS = (
    tar_of(directory(b"d/", 0o750), reg(b"d/a", b"one" * 1000), reg(b"b", b"two")),
    tar_of(reg(b"d/a", b"three"), whiteout(b"b")),
)


@pytest.fixture
async def images(place: Path) -> AsyncIterator[ErofsSnapshotter]:
    """The snapshotter that answers this form, with two layers."""
    async with ErofsSnapshotter(place / "images", Erofs(mounts="images"), idle=0.0, sync_remove=True) as made:
        await filled(made)
        yield made


@pytest.fixture
async def overlays(place: Path) -> AsyncIterator[ErofsSnapshotter]:
    """One that answers the other."""
    async with ErofsSnapshotter(place / "overlays", idle=0.0) as made:
        await filled(made)
        yield made


async def filled(snapshotter: ErofsSnapshotter) -> None:
    parent = ""
    for name, layer in zip(("one", "two"), LAYERS, strict=True):
        (mount,) = await snapshotter.prepare("key")
        unpacked(mount.source, layer)
        await snapshotter.commit(name, "key", {}, parent)
        parent = name


def unpacked(upper: str, layer: bytes) -> None:
    layout.unpack([layer], upper, (), layout.beside(upper), lowest=False, digest=lambda: digest_of(layer))


@contextlib.contextmanager
def activated(mounts: list[Mount], at: Path) -> Iterator[Path]:
    """What containerd's mount manager does with mounts: images from their files, or by loop devices; then templates."""
    target = at / "root"
    target.mkdir(parents=True)
    points: list[str] = []
    with contextlib.ExitStack() as undo:
        for number, mount in enumerate(mounts):
            point = target if number == len(mounts) - 1 else at / str(number)
            point.mkdir(exist_ok=True)
            options = [o for o in mount.options if o not in ("ro", "loop")]
            if mount.type == "erofs":
                image(mount.source, point, options)
            else:
                assert mount.type == "format/mkdir/overlay"
                text = ",".join(options)
                text = re.sub(r"{{ mount (\d+) }}", lambda found: points[int(found[1])], text)
                text = re.sub(
                    r"{{ overlay (\d+) (\d+) }}",
                    lambda found: ":".join(points[int(found[1]) : int(found[2]) + 1]),
                    text,
                )
                calls.mount(mount.source, str(point), "overlay", 0, text)
            undo.callback(calls.unmount_all, str(point))
            points.append(str(point))
        yield target


def image(source: str, point: Path, options: list[str]) -> None:
    try:
        calls.mount(source, str(point), "erofs", RDONLY, ",".join(options))
    except MountError:
        with attached_image(source, options) as (device, devices):
            calls.mount(device, str(point), "erofs", RDONLY, ",".join(devices))


async def test_the_form(images: ErofsSnapshotter) -> None:
    """That of containerd's snapshotter: topmost first, then an overlay that is to be filled in. Nothing is mounted."""
    at = f"{images.root}/snapshots"
    one, two = (
        Mount("erofs", f"{at}/{number}/erofs/index", ("ro", "loop", f"device={at}/{number}/erofs/data"))
        for number in (1, 2)
    )

    def overlay(*options: str) -> Mount:
        return Mount("format/mkdir/overlay", "overlay", (*options, *images._options))

    def own(number: int) -> tuple[str, str]:
        return f"workdir={at}/{number}/work", f"upperdir={at}/{number}/fs"

    assert await images.view("a", "one") == [one]
    assert await images.view("b", "two") == [two, one, overlay("lowerdir={{ overlay 0 1 }}")]
    made = await images.prepare("c", "two")
    assert made == [two, one, overlay(*own(5), "lowerdir={{ overlay 0 1 }}")]
    assert await images.mounts("c") == made
    assert await images.prepare("d", "one") == [one, overlay(*own(6), "lowerdir={{ mount 0 }}")]
    assert await images.prepare("e") == [Mount("bind", f"{at}/7/fs", ("rw", "rbind"))]
    assert not os.listdir(images.root / "mounts")


@pytest.mark.skipif(shutil.which("mkfs.erofs") is None, reason="no mkfs.erofs (erofs-utils)")
async def test_a_layer_that_came_as_an_image_has_no_other_file(images: ErofsSnapshotter, place: Path) -> None:
    """Whoever mounts it needs none."""
    (place / "tree").mkdir()
    os.spawnlp(os.P_WAIT, "mkfs.erofs", "mkfs.erofs", "--quiet", str(place / "packed"), str(place / "tree"))
    data = (place / "packed").read_bytes()
    (mount,) = await images.prepare("key")
    layout.take_image([data], layout.beside(mount.source), digest=lambda: digest_of(data))
    await images.commit("image", "key")
    assert [each.options for each in await images.view("view", "image")] == [("ro", "loop")]


@pytest.mark.parametrize("kind", ["view of one", "view", "active", "active on one"])
async def test_the_tree_is_that_of_overlays(
    images: ErofsSnapshotter, overlays: ErofsSnapshotter, place: Path, kind: str
) -> None:
    """Mounted as containerd's mount manager does it."""
    trees = []
    for snapshotter in (images, overlays):
        make = snapshotter.view if kind.startswith("view") else snapshotter.prepare
        mounts = await make("x", "one" if kind.endswith("one") else "two")
        if snapshotter is overlays:
            mounts = [m._replace(type="format/mkdir/overlay") if m.type == "overlay" else m for m in mounts]
            if mounts[0].type == "bind":
                trees.append(diff_sides.tree(Path(mounts[0].source)))
                continue
        with activated(mounts, place / snapshotter.root.name / "at") as root:
            if kind.startswith("active"):
                (root / "written").write_text("w")
                os.utime(root / "written", (1, 1))
                os.utime(root, (1, 1))
            trees.append(diff_sides.tree(root))
    assert trees[0] == trees[1]
    assert not os.listdir(images.root / "mounts")


@pytest.fixture
async def appliers(place: Path) -> AsyncIterator[Appliers]:
    (place / "scratch").mkdir()
    made = Appliers(str(place / "scratch"))
    yield made
    await made.aclose()


async def test_diff_takes_them(
    images: ErofsSnapshotter, overlays: ErofsSnapshotter, appliers: Appliers, place: Path
) -> None:
    """A layer is unpacked onto them, and their difference made, as with the other form."""
    layer, found = tar_of(reg(b"d/new", b"new")), []
    (place / "layer").write_bytes(layer)
    for name in ("left", "right"):
        (place / name).mkdir()
    for snapshotter in (images, overlays):
        with (place / "layer").open("rb") as file:
            applied = await appliers.apply(await snapshotter.prepare("k", "two"), file.fileno(), detect=True)
        assert applied.diff_id == digest_of(layer)
        await snapshotter.commit("three", "k")
        index = snapshotter.root / "snapshots" / "3/erofs/index"
        left = to_arguments(await snapshotter.view("below", "one"))
        active = await snapshotter.prepare("above", "three")
        Path(active[-1].option("upperdir"), "by hand").write_text("w")
        os.utime(Path(active[-1].option("upperdir"), "by hand"), (1, 1))
        right = to_arguments(read_only(active))
        with (place / "made").open("wb") as made:
            answer = await workers.compare(
                "plain",
                "1000000000",
                str(place / "left"),
                str(place / "right"),
                str(len(left)),
                *left,
                *right,
                file=made.fileno(),
                started=lambda: None,
            )
        found.append((answer, index.read_bytes()))
    assert found[0] == found[1]


async def test_what_cannot_be_made_first_is_named(appliers: Appliers, place: Path) -> None:
    """As containerd's answers where its snapshots are disks."""
    disk = Mount("mkfs/ext4", "/none.img", ("X-containerd.mkfs.fs=ext4", "rw", "loop"))
    root = Mount("format/mkdir/overlay", "overlay", ("lowerdir={{ mount 0 }}/a", "X-containerd.mkdir.path=/x:0755"))
    (place / "layer").write_bytes(LAYERS[0])
    for mounts, words in (
        ([disk, root], "mount type mkfs/ext4: mkfs: not implemented"),
        ([root], "X-containerd.mkdir.path=/x:0755: not implemented"),
        ([root._replace(options=("lowerdir={{ mount 0 }}",))], "index out of bounds: 0, has 0 active mounts"),
    ):
        with (place / "layer").open("rb") as file, pytest.raises(errors.NodeError, match=words):
            await appliers.apply(mounts, file.fileno(), detect=True)
