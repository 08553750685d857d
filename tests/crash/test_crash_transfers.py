"""kill -9 in the middle of a pull by Transfer: of the images process, of the program that unpacks a layer, of nearly
every process. Clients get an error, the next pull goes on, and nothing is left behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path

import pytest

from deploy.samples import Image
from services.kit.rpc import Channel
from tests.fake_registry import FakeRegistry, silent
from tests.pulls import Client, OwnPulling, arriving, check_nothing_left, check_pulled, gets, large, runnable
from tests.support import Node, eventually_async, short_directory

pytestmark = [pytest.mark.node, pytest.mark.root]

HEADERS = 1024
"""The maximum of bytes in an answer's headers."""
APPLY = "services.snapshots.diff.apply"
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


@pytest.fixture
def client(channel: Channel) -> Client:
    return Client(channel, f"crash{os.getpid()}-{next(_ids)}")


async def check_next_pull(
    node: Node,
    channel: Channel,
    client: Client,
    fake: FakeRegistry,
    reference: str,
    box: Image,
    *,
    ingests: Sequence[str] = (),
) -> None:
    """Check that the leases go without a call, and with them everything except the ingests, which are the given ones;
    and that the next pull fetches the missing bytes and no others.
    """

    async def ended() -> bool:
        return not await client.leases()

    await asyncio.to_thread(node.wait_healthy, 30)
    await eventually_async(ended, "leases of a dead process are left")
    await client.collect()
    assert sorted(await client.ingests()) == sorted(ingests)
    # in other namespaces too
    there = {f"{path.parent.name}:{path.name}" for path in (node.root / "content/blobs").glob("*/*")}
    missing = sum(len(box.blobs[digest]) for digest in set(box.blobs) - there) - sum(
        [await client.offset(ref) for ref in ingests]
    )
    fake.heal()
    asked, served = len(fake.seen), fake.served()
    assert not await OwnPulling(client, reference).ended
    assert 0 <= fake.served() - served - missing <= HEADERS * (len(fake.seen) - asked), (
        "more was fetched than was missing"
    )
    await check_pulled(node, client, reference, box)
    await check_nothing_left(node, channel, client)


@pytest.mark.parametrize(
    "victims", [("images",), ("gateway", "metadata", "images"), ("content", "snapshots", "images")], ids="-".join
)
async def test_killed_in_the_middle_of_a_layer(
    node: Node, channel: Channel, client: Client, fake: FakeRegistry, victims: tuple[str, ...]
) -> None:
    """The error names the service. The layer is resumed; a pull that ends the remains finds the other layers there, or
    waits for them.
    """
    box = runnable(layers=2, kib=3000)
    reference, layer = fake.add(box, "box:1"), box.layers[2]
    fake.inject(layer, silent(60, after=2_500_000))
    begun = OwnPulling(client, reference)
    await arriving(begun.ended, client, layer, 2 << 20)
    pids = await asyncio.to_thread(node.pids)
    for victim in victims:
        os.kill(pids[victim], signal.SIGKILL)
    said = await begun.ended
    assert any(
        victim in said for victim in (*victims, "containerd is not reachable", "containerd has been unreachable")
    ), said
    await asyncio.to_thread(node.wait_healthy, 30)
    left = await client.ingests()  # others too, where the process was killed before they were blobs
    assert f"layer-{layer}" in left
    await check_next_pull(node, channel, client, fake, reference, box, ingests=left)


async def reaches(node: Node, at: int) -> bool:
    """Return whether an ingest's file has this length, with gaps or without."""
    return any(path.stat().st_size >= at for path in (node.root / "content/ingest").glob("*/data"))


async def test_killed_while_a_layer_comes_in_parts(
    node: Node, channel: Channel, client: Client, fake: FakeRegistry
) -> None:
    """The layer's file then has gaps. The next pull continues before the first of them, and the layer is right."""
    box = large()
    reference, layer = fake.add(box, "box:1"), box.layers[1]
    fake.inject(layer, silent(60, after=6 << 20), times=1 << 30)  # of each part
    pid = await asyncio.to_thread(node.pid, "images")
    begun = OwnPulling(client, reference)
    await arriving(begun.ended, client, layer, 4 << 20)
    # they need not be equally fast
    await eventually_async(lambda: reaches(node, 37 << 20), "the third part does not arrive")
    assert 4 << 20 <= await client.offset(f"layer-{layer}") <= 6 << 20, (
        "an ingest's offset is what is there without a gap"
    )
    os.kill(pid, signal.SIGKILL)
    assert "images" in await begun.ended
    fake.heal()
    asked = len(gets(fake, layer))
    await asyncio.to_thread(node.wait_healthy, 30)
    assert not await OwnPulling(client, reference).ended
    assert (
        min(int(headers["Range"].removeprefix("bytes=").split("-")[0]) for headers in gets(fake, layer)[asked:])
        >= 4 << 20
    )
    await check_pulled(node, client, reference, box)
    await check_nothing_left(node, channel, client)


@pytest.mark.parametrize("point", ["images.fetching", "images.unpacked", "images.pulled"])
async def test_images_dies_at(
    node: Node, channel: Channel, client: Client, fake: FakeRegistry, faults: Path, point: str
) -> None:
    """It dies at the first bytes of a blob, when everything is unpacked, or before the image is stored."""
    box = runnable()
    reference = fake.add(box, "box:1")
    (faults / point).touch()
    said = await OwnPulling(client, reference).ended
    assert "images" in said
    assert not (faults / point).exists()
    assert not await client.images()

    await asyncio.to_thread(node.wait_healthy, 30)
    await check_next_pull(node, channel, client, fake, reference, box, ingests=await client.ingests())


async def test_a_worker_dies_when_it_has_unpacked(
    node: Node, channel: Channel, client: Client, fake: FakeRegistry, faults: Path
) -> None:
    """The error names the layer and how the worker died, unless the node has tried again."""
    box = runnable()
    reference = fake.add(box, "box:1")
    (faults / "diff.unpacked").touch()
    said = await OwnPulling(client, reference).ended
    assert not (faults / "diff.unpacked").exists()
    if said:
        assert "signal 9" in said
        assert any(layer in said for layer in box.layers)
        await check_next_pull(node, channel, client, fake, reference, box, ingests=await client.ingests())
    await check_pulled(node, client, reference, box)
    await check_nothing_left(node, channel, client)


@pytest.mark.parametrize("which", ["program", "worker"])
async def test_unpacking_is_killed(
    node: Node, channel: Channel, client: Client, fake: FakeRegistry, which: str
) -> None:
    """While the layer arrives, kill -9 ends the program that unpacks, or its worker for this layer: the unpacked part
    is removed, and the bytes of the blob stay.
    """
    box = runnable(kib=3000)
    reference, layer = fake.add(box, "box:1"), box.layers[1]
    fake.inject(layer, silent(60, after=2_500_000))
    services = set((await asyncio.to_thread(node.pids)).values())
    begun = OwnPulling(client, reference)
    await arriving(begun.ended, client, layer, 2 << 20)
    program, worker = await eventually_async(
        lambda: asyncio.to_thread(unpacking, services, node.root), "nobody unpacks anything"
    )
    os.kill(program if which == "program" else worker, signal.SIGKILL)
    said = await begun.ended
    if said:
        dying = box.layers if which == "program" else [layer]  # with the program its workers die, whatever they are at
        assert any(f"{each}) to overlayfs" in said for each in dying)
        assert "the apply worker ended with signal 9" in said
        left = await client.ingests()
        assert f"layer-{layer}" in left
        await check_next_pull(node, channel, client, fake, reference, box, ingests=left)
    await check_pulled(node, client, reference, box)
    await check_nothing_left(node, channel, client)


def unpacking(services: set[int], root: Path) -> tuple[int, int] | None:
    """Return the pids of a program that unpacks for one of these processes, and of a worker of it that reads an ingest;
    None if there is none.
    """
    parents: dict[int, int] = {}
    readers: set[int] = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it has ended meanwhile
                if APPLY in (entry / "cmdline").read_text(errors="replace"):
                    parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                    if any(os.readlink(fd).startswith(f"{root}/content/ingest/") for fd in (entry / "fd").iterdir()):
                        readers.add(int(entry.name))
    return next(
        (
            (program, worker)
            for worker, program in parents.items()
            if worker in readers and parents.get(program) in services
        ),
        None,
    )
