"""The snapshotter erofs, killed while it makes a layer one of a chain: afterwards it is, or it can be done again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from services.kit.rpc import Channel
from services.oci.digests import digest_of
from services.snapshots.erofs import place as layout
from services.snapshots.remote import RemoteSnapshotter
from services.snapshots.store import Kind
from tests.service.snapshots.test_snapshots_service import Crashing, dies
from tests.suites.diff_tars import directory, pax, reg
from tests.suites.diff_tars import tar as tar_of
from tests.support import eventually, short_directory

pytestmark = pytest.mark.root  # it mounts

LAYER = tar_of(reg(b"d/b", b"two"))
BASES = {
    "patched": tar_of(directory(b"d/", mode=0o711)),
    "made again": tar_of(pax({b"SCHILY.xattr.user.one": b"1"}) + directory(b"d/", mode=0o711)),
}


async def unpacked(snapshotter: RemoteSnapshotter, key: str, layer: bytes) -> None:
    """Prepare a snapshot, and do what Diff.Apply does with a layer that is unpacked alone."""
    (mount,) = await snapshotter.prepare(key)
    upper = mount.source
    layout.unpack([layer], upper, (), layout.beside(upper), lowest=False, digest=lambda: digest_of(layer))


@pytest.mark.parametrize(
    ("point", "how"), [("after-index", "patched"), ("after-index", "made again"), ("between-links", "patched")]
)
async def test_killed_while_chaining(point: str, how: str) -> None:
    """The snapshot is committed or active. In the end its directories are right, its files are shared, and all go."""
    with short_directory() as place:
        crashing = Crashing(place, "erofs")
        try:
            async with Channel(crashing.socket) as channel:
                snapshotter = RemoteSnapshotter(channel)
                await unpacked(snapshotter, "base key", BASES[how])
                await snapshotter.commit("base", "base key")
                await unpacked(snapshotter, "key", LAYER)
                crashing.die_at(f"snapshots.{point}")
                await dies(snapshotter.commit("layer", "key", {}, "base"))
                crashing.again()
                assert await channel.wait_connected(10)
                names = {info.name: info.kind async for info in snapshotter.list()}
                done = point == "between-links"
                assert names.pop("base") is Kind.COMMITTED
                assert names == ({"layer": Kind.COMMITTED} if done else {"key": Kind.ACTIVE})
                if not done:
                    await snapshotter.commit("layer", "key", {}, "base")
                (mount,) = await snapshotter.view("view", "layer")
                upper = Path(mount.option("lowerdir").split(":")[0])
                assert (upper / "d/b").read_bytes() == b"two"
                assert os.stat(upper / "d").st_mode & 0o777 == 0o711
                for thing in sorted(crashing.names(), key=int)[:2]:
                    for name in (layout.DATA, layout.INDEX, layout.ABOUT):
                        assert os.stat(crashing.root / "snapshots" / thing / layout.LAYER / name).st_nlink == 2
                for name in ("view", "layer", "base"):
                    await snapshotter.remove(name)
                await snapshotter.cleanup()
                eventually(lambda: not os.listdir(crashing.root / "layers"), "a layer is left")
        finally:
            crashing.process.kill()
