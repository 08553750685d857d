"""Layers that ctr 1.6, which unpacks by itself, gets in another way: they were unpacked before it asks, or are there. The
tree is right and nothing stays, also after kill -9 of the process, of its program and of its worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import itertools
import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from deploy.samples import Image, image
from services.kit.rpc import Channel
from services.oci.digests import chain_ids
from services.oci.media_types import LAYER_GZIP
from tests.fake_registry import FakeRegistry
from tests.node.test_node_layer_chains import without_times
from tests.node.test_node_shared_layers import above, lowest
from tests.pulls import Client, Layer, check_nothing_left, config_of, gzipped, image_of
from tests.suites.diff_chains import Snapshots
from tests.suites.diff_sides import differences
from tests.suites.diff_tars import directory, reg, tar
from tests.support import Node, eventually, short_directory

pytestmark = [pytest.mark.node, pytest.mark.root]

ZEROS, TIMES = bytes(16 << 20), 8
"""What follows the end of a layer that takes long to unpack."""
MOVING, UNPACKED, GIVEN = "diff.ahead-moving", "diff.ahead-unpacked", "diff.given"
_ids = itertools.count()


@pytest.fixture(scope="module")
def faults() -> Iterator[Path]:
    with short_directory() as directory:
        yield directory


@pytest.fixture(scope="module")
def node(faults: Path, records: Callable[[], str]) -> Iterator[Node]:
    with short_directory() as directory:
        running = Node(directory, config=records(), env={"SPLITD_FAULTS": str(faults)})
        try:
            running.up()
            yield running
        finally:
            running.clear()


@pytest.fixture
async def channel(node: Node) -> AsyncIterator[Channel]:
    await asyncio.to_thread(node.wait_healthy, 30)
    async with Channel(node.socket) as channel:
        yield channel


class Pulls:
    """An image, and those who pull it: each into a namespace of its own."""

    def __init__(
        self,
        node: Node,
        channel: Channel,
        fake: FakeRegistry,
        place: Path,
        box: Image | None = None,
        snapshotter: str = "overlayfs",
    ) -> None:
        self._node = node
        self._snapshotter = snapshotter
        self._channel = channel
        self._place = place
        box = box or image([lowest(), *above()])
        config = json.loads(box.blobs[config_of(box)])
        self._top = chain_ids(config["rootfs"]["diff_ids"])[-1]
        self.reference = fake.add(box, f"ahead:{next(_ids)}")
        self.by_ctr, self.by_node = (Client(channel, f"ahead{os.getpid()}-{next(_ids)}") for _ in range(2))

    async def pull(self, *, ok: bool | None = True) -> subprocess.CompletedProcess[str]:
        """By ctr 1.6, which unpacks by itself."""
        what = ("images", "pull", "--plain-http", "--snapshotter", self._snapshotter, self.reference)
        return await asyncio.to_thread(self._node.ctr, *what, namespace=self.by_ctr.namespace, ok=ok)

    async def check(self) -> None:
        """A pull by the node gives the same tree, and what was unpacked ahead has gone."""
        await self.by_node.pull(self.reference)
        trees = []
        for each, snapshotter in ((self.by_ctr, self._snapshotter), (self.by_node, "overlayfs")):
            (self._place / each.namespace).mkdir(exist_ok=True)
            found = Snapshots(self._channel, each.namespace, self._place / each.namespace, snapshotter)
            trees.append(await found.tree(self._top))
        one, other = trees
        assert not differences(without_times(one, other), without_times(other, one))
        eventually(lambda: not staged(self._node), "what was unpacked ahead is left", 30)
        await check_nothing_left(self._node, self._channel, self.by_ctr)


def staged(node: Node) -> list[str]:
    return os.listdir(node.root / "snapshots/diff/ahead/layers")


async def test_the_next_layers_are_unpacked_ahead(
    node: Node, channel: Channel, fake: FakeRegistry, place: Path, faults: Path
) -> None:
    """Also for two clients at once that pull the same image into the same namespace: one of them gets all of a layer's
    files. A third finds everything there.
    """
    (faults / MOVING).write_text("sleep 0")
    pulls = Pulls(node, channel, fake, place)
    await pulls.pull()
    assert not (faults / MOVING).exists(), "no layer was moved"
    await pulls.check()
    pulls = Pulls(node, channel, fake, place)
    await asyncio.gather(pulls.pull(ok=None), pulls.pull(ok=None))
    await pulls.pull()
    await pulls.check()


def slow() -> Image:
    """An image of which the second layer takes long, and is the first that is unpacked ahead."""
    unique = tar(directory(b"d/"), reg(b"d/mark", os.urandom(8)))
    blob = gzip.compress(unique) + gzip.compress(ZEROS, 1) * TIMES
    return image_of([gzipped(lowest()), Layer(blob, LAYER_GZIP, unique + ZEROS * TIMES), gzipped(tar(reg(b"top")))])


def workers(node: Node) -> list[int]:
    """The processes that unpack layers ahead."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it has ended meanwhile
                if os.readlink(entry / "root").startswith(f"{node.root}/snapshots/diff/ahead/layers/"):
                    found.append(int(entry.name))
    return found


def program_of(worker: int) -> int:
    """The process that has forked a worker; ProcessLookupError if it has ended."""
    pid = int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])
    if b"services.snapshots.diff.apply" not in Path(f"/proc/{pid}/cmdline").read_bytes():
        raise ProcessLookupError(f"{pid} is another program")
    return pid


@pytest.mark.parametrize("victim", ["snapshots", "program", "worker"])
async def test_killed_while_a_layer_is_unpacked_ahead(
    node: Node, channel: Channel, fake: FakeRegistry, place: Path, victim: str
) -> None:
    """A worker that dies costs its client nothing: the layer is unpacked once more, when it is asked for."""
    worker = 0
    while not worker:  # on a busy machine a pull may end before anybody has looked
        pulls = Pulls(node, channel, fake, place, slow())
        pulling = asyncio.ensure_future(pulls.pull(ok=None))
        while not worker and not pulling.done():
            await asyncio.sleep(0)
            worker = next(iter(await asyncio.to_thread(workers, node)), 0)
    if victim == "snapshots":
        await asyncio.to_thread(node.kill, victim)
    else:
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):  # it has just ended
            os.kill(worker if victim == "worker" else program_of(worker), signal.SIGKILL)
    done = await pulling
    if victim == "worker":
        assert not done.returncode, done.stderr
    await asyncio.to_thread(node.wait_healthy, 30)
    await pulls.pull()
    await pulls.check()


@pytest.mark.parametrize("point", [UNPACKED, MOVING])
async def test_snapshots_dies_at(
    node: Node, channel: Channel, fake: FakeRegistry, place: Path, faults: Path, point: str
) -> None:
    """It dies when a layer is there that nobody has asked for yet, or when some of its files are in their place."""
    pulls = Pulls(node, channel, fake, place)
    (faults / point).touch()
    await pulls.pull(ok=None)
    assert not (faults / point).exists()
    await asyncio.to_thread(node.wait_healthy, 30)
    await pulls.pull()
    await pulls.check()


async def test_erofs_gives_a_layer_that_is_there(
    node: Node, channel: Channel, fake: FakeRegistry, place: Path, faults: Path
) -> None:
    """Of a second image only the lowest layer is unpacked, as ctr labels the blobs that it has unpacked. In another
    namespace all are. The process may die when a layer is given.
    """
    shared = above()

    async def pull(who: Client | None, what: str) -> tuple[Pulls, bool]:
        """Whether a layer was given."""
        pulls = Pulls(node, channel, fake, place, image([lowest(), *shared]), "erofs")
        pulls.by_ctr = who or pulls.by_ctr
        (faults / GIVEN).write_text(what)
        await pulls.pull(ok=True if what else None)
        given = not (faults / GIVEN).exists()
        (faults / GIVEN).unlink(missing_ok=True)
        return pulls, given

    first, given = await pull(None, "sleep 0")
    assert not given
    for who, what in ((first.by_ctr, "sleep 0"), (None, "sleep 0"), (first.by_ctr, "")):
        pulls, given = await pull(who, what)
        assert given is (who is not None)
        if not what:
            await asyncio.to_thread(node.wait_healthy, 30)
            await pulls.pull()
        await pulls.check()
