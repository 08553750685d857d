"""Layers that are mounted for a shim that does not mount them itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from api.containerd.types import introspection_pb2
from services.kit import errors
from services.oci.mounts import Mount
from services.snapshots.erofs import place as layout
from services.tasks import layers
from services.tasks.bundle import Bundle
from services.tasks.convert import allowed_from_info
from tests.suites.diff_tars import reg
from tests.suites.diff_tars import tar as tar_of
from tests.support import mounts_below

ALL = frozenset(("erofs", "format/*", "mkdir/*"))
ROOT = Mount("format/mkdir/overlay", "overlay", ("lowerdir={{ overlay 0 1 }}",))


@pytest.fixture
def bundle(place: Path) -> Iterator[Bundle]:
    made = Bundle.of(place / "root", place / "state", "ns", "c")
    made.create(None)
    yield made
    made.delete()


def image(at: Path, name: bytes) -> Mount:
    """The mount of a layer with one file."""
    (at / "fs").mkdir(parents=True)
    (at / "erofs").mkdir()
    layout.unpack([tar_of(reg(name, name))], str(at / "fs"), (), str(at / "erofs"), lowest=True)
    return Mount("erofs", f"{at}/erofs/index", ("ro", "loop", f"device={at}/erofs/data"))


@pytest.mark.root
async def test_they_lie_in_the_bundle_and_go_with_it(bundle: Bundle, place: Path) -> None:
    """The shim gets an overlay on them; of a single image, a bind."""
    one, two = image(place / "1", b"one"), image(place / "2", b"two")
    (left,) = await layers.mounted(bundle, [one, two, ROOT], frozenset())
    lowers = [bundle.path / "layers" / name for name in ("0", "1")]
    assert left == Mount("overlay", "overlay", (f"lowerdir={lowers[0]}:{lowers[1]}",))
    assert [os.listdir(each) for each in lowers] == [["one"], ["two"]]
    with (lowers[0] / "one").open() as busy:
        bundle.delete()
        assert busy.read() == "one"
    assert not mounts_below(place)
    bundle.create(None)
    (left,) = await layers.mounted(bundle, [one], frozenset())
    assert left == Mount("bind", str(lowers[0]), ("ro", "rbind"))
    assert os.listdir(lowers[0]) == ["one"]


async def test_a_shim_that_mounts_them_gets_them_as_they_are(bundle: Bundle) -> None:
    """So does any shim usual mounts."""
    images = [Mount("erofs", "/1", ("device=/2",)), Mount("erofs", "/3", ("device=/4",)), ROOT]
    usual = [Mount("overlay", "overlay", ("lowerdir=/a:/b",))]
    assert await layers.mounted(bundle, images, ALL) is images
    assert await layers.mounted(bundle, usual, frozenset()) is usual
    assert not (bundle.path / "layers").exists()


@pytest.mark.root
@pytest.mark.parametrize(
    ("mounts", "kind", "words"),
    [
        ([Mount("mkfs/ext4", "/x"), ROOT], errors.Unimplemented, "stands on a mount of type mkfs/ext4"),
        ([Mount("erofs", "/x", ("X-containerd.dmverity=/y",)), ROOT], errors.Unimplemented, "X-containerd.dmverity"),
        ([ROOT], errors.Unimplemented, "index out of bounds: 1, has 0 active mounts"),
        ([Mount("erofs", "/none/index", ("ro",)), ROOT], errors.NodeError, "/none/index"),
    ],
)
async def test_what_cannot_be_mounted_is_named(
    bundle: Bundle, mounts: list[Mount], kind: type[Exception], words: str
) -> None:
    """And nothing stays mounted."""
    with pytest.raises(kind, match=words):
        await layers.mounted(bundle, mounts, frozenset())
    bundle.delete()
    assert not mounts_below(bundle.path.parent)


def test_a_shim_says_which_mounts_it_makes() -> None:
    """In its info, which those before containerd 2.0 do not have."""
    info = introspection_pb2.RuntimeInfo(annotations={"containerd.io/runtime-allow-mounts": "mkdir/*,format/*,erofs"})
    assert allowed_from_info(info.SerializeToString()) == ALL
    assert allowed_from_info(b"") == frozenset()
    assert allowed_from_info(b"no info") == frozenset()
