"""Transfers on a whole node: the suite, also on a containerd 2 if there is one; and ctr's results, of Debian 12's ctr
and, if it is installed, of containerd 2's.
"""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import zstandard

from deploy.samples import busybox_layer, image, index, tar_of
from services.kit.rpc import Channel
from tests.peer import containerd, program
from tests.suites import transfers as suite
from tests.suites.diff_sides import outcome
from tests.suites.diff_tars import block, tar
from tests.support import Node, eventually, short_directory

pytestmark = [pytest.mark.node, pytest.mark.root]


class TestNode(suite.NodeTransferSuite):
    """The gateway, images, and the services that images calls."""

    @pytest.fixture
    async def channel(self, node: Node) -> AsyncIterator[Channel]:
        async with Channel(node.socket) as channel:
            yield channel


@pytest.fixture(scope="module")
def peer() -> Iterator[Path]:
    """The socket of a containerd 2."""
    found = program("containerd")
    with short_directory() as directory, containerd(directory, found) as socket:
        yield socket


class TestContainerd2(suite.TransferSuite):
    """containerd itself, to check the suite."""

    @pytest.fixture(autouse=True)
    def patient(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(suite.Transfers, "patience", 0.3)

    @pytest.fixture
    async def channel(self, peer: Path) -> AsyncIterator[Channel]:
        async with Channel(peer) as channel:
            yield channel


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Archives to import: an OCI layout with two images, one with an index, one of docker save."""
    directory = tmp_path_factory.mktemp("archives")
    layers = [busybox_layer(), tar_of([("hello", {"data": b"hello"})])]
    box = image(layers)
    made = {
        "layout": suite.layout({"docker.io/library/box:1": box, "example.com/other:1": image([layers[0]])}),
        "index": suite.layout({"docker.io/library/multi:1": index(box, image([b"elsewhere"], architecture="mips64"))}),
        "docker": suite.saved(layers, "dock:1", "example.com/x/dock:2"),
    }
    for name, data in made.items():
        (directory / name).write_bytes(data)
    return {name: directory / name for name in made}


async def state(
    channel: Channel, namespace: str
) -> tuple[dict[str, tuple[str, str, dict[str, str]]], dict[str, dict[str, str]], dict[str, str]]:
    """Return the stored images, the labels of their blobs, and the snapshots."""
    client = suite.Transfers(channel, namespace)
    images = {n: (i.target.digest, i.target.media_type, dict(i.labels)) for n, i in (await client.images()).items()}
    blobs: dict[str, dict[str, str]] = {}
    there, wanted = await client.blobs(), [digest for digest, _, _ in images.values()]
    while wanted:
        digest = wanted.pop()
        if digest in there and digest not in blobs:
            blobs[digest] = await client.labels(digest)
            wanted += [value for key, value in blobs[digest].items() if key.startswith("containerd.io/gc.ref.content")]
    return images, blobs, {n: i.parent for n, i in (await client.snapshots()).items()}


@pytest.mark.parametrize("kind", ["layout", "index", "docker"])
async def test_an_import_makes_what_debians_ctr_makes(node: Node, archives: dict[str, Path], kind: str) -> None:
    """ctr 1.6 imports by itself, blob by blob: images, labels and snapshots are the same."""
    node.ctr("images", "import", archives[kind], namespace=f"by-ctr-{kind}")
    async with Channel(node.socket) as channel:
        client = suite.Transfers(channel, f"by-transfer-{kind}")
        store = suite.imagestore_pb2.ImageStore(
            platforms=[suite.HERE], extra_references=[suite.NAMED], unpacks=[suite.UNPACK]
        )
        await client.import_(archives[kind].read_bytes(), store)
        theirs, ours = [await state(channel, f"by-{who}-{kind}") for who in ("ctr", "transfer")]
    if kind == "index":  # which containerd 2 labels with the manifests of other platforms too
        ((root, _, _),) = ours[0].values()
        assert theirs[1].pop(root).items() <= ours[1][root].items()
        ours[1].pop(root)
        ours = (ours[0], {digest: labels for digest, labels in ours[1].items() if digest in theirs[1]}, ours[2])
    assert ours == theirs


async def test_an_export_has_the_files_of_debians_ctr(node: Node, archives: dict[str, Path], tmp_path: Path) -> None:
    """Blobs and documents are the same, except for index.json, to which containerd 2 adds its media type."""
    import io
    import tarfile

    node.ctr("images", "import", archives["index"], namespace="exports")
    node.ctr("images", "export", tmp_path / "theirs", "docker.io/library/multi:1", namespace="exports")
    async with Channel(node.socket) as channel:
        ours = await suite.Transfers(channel, "exports").export("docker.io/library/multi:1")

    def contents(data: bytes) -> dict[str, bytes]:
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            found = {m.name: file.read() if (file := tar.extractfile(m)) else b"" for m in tar}
        found["index.json"] = found["index.json"].replace(
            b'"mediaType":"application/vnd.oci.image.index.v1+json","manifests"', b'"manifests"'
        )
        return found

    assert contents(ours) == contents((tmp_path / "theirs").read_bytes())


def test_ctr_2_imports_tags_and_exports(node: Node, archives: dict[str, Path], tmp_path: Path) -> None:
    """Its progress display works; the imported image runs."""
    ctr = program("ctr")
    shown = node.out("images", "import", archives["layout"], namespace="two", program=ctr)
    assert "docker.io/library/box:1" in shown
    assert "saved" in shown
    node.ctr("images", "tag", "docker.io/library/box:1", "docker.io/library/tagged:1", namespace="two", program=ctr)
    node.ctr("images", "export", tmp_path / "out.tar", "docker.io/library/tagged:1", namespace="two", program=ctr)
    node.ctr("images", "import", tmp_path / "out.tar", namespace="three", program=ctr)
    assert node.out("images", "ls", "-q", namespace="three").split() == ["docker.io/library/tagged:1"]
    assert node.out("run", "--rm", "docker.io/library/box:1", "hello", "cat", "/hello", namespace="two") == "hello"
    eventually(lambda: node.out("leases", "ls", "-q", namespace="two", program=ctr) == "", "leases are left")


def test_a_transfer_that_an_images_process_dies_in_can_be_made_again(node: Node, archives: dict[str, Path]) -> None:
    """The client gets UNAVAILABLE; the stored blobs do not prevent the next attempt."""
    import asyncio

    from services.kit import errors

    data = archives["layout"].read_bytes()

    async def interrupted() -> None:
        async with Channel(node.socket) as channel:
            client = suite.Transfers(channel, "killed")

            async def source() -> AsyncIterator[bytes]:
                yield data[:200_000]
                node.kill("images")
                await asyncio.sleep(1000)

            with pytest.raises(errors.Unavailable):
                await client.import_(source())
            assert not await client.images()

    async def again() -> None:
        async with Channel(node.socket) as channel:
            client = suite.Transfers(channel, "killed")
            await client.import_(data)
            assert len(await client.images()) == 2

    asyncio.run(interrupted())
    node.wait_healthy()
    asyncio.run(again())


@pytest.mark.parametrize("packed", ["gzip", "zstd"])
@pytest.mark.parametrize("kind", [b"x", b"L"], ids=["PAX header", "long name"])
async def test_a_header_of_gigabytes_delays_no_other(node: Node, packed: str, kind: bytes) -> None:
    """An archive of some megabytes may have one. It is refused, other calls are answered meanwhile, and the process is
    no larger afterwards.
    """
    compress = gzip.compress if packed == "gzip" else zstandard.ZstdCompressor().compress
    archive = compress(block(b"huge", kind, size=3 << 30)) + 3072 * compress(bytes(1 << 20)) + compress(tar())
    images = Path(f"/proc/{node.pid('images')}")
    async with Channel(node.socket) as channel:
        client = suite.Transfers(channel, "huge")
        await client.images()
        (images / "clear_refs").write_text("5")  # the peak is counted from here
        before = memory(images)
        work = [asyncio.ensure_future(outcome(client.import_(archive))) for _ in range(4)]
        answered = 0
        while not all(each.done() for each in work):
            async with asyncio.timeout(5):
                await client.images()
            answered += 1
        for verdict, error in [each.result() for each in work]:
            assert (verdict, str(error)) == ("refused", "archive/tar: header field too long")
        assert answered
        assert memory(images) - before < 64 << 10, "KiB"
        assert not await client.ingests()


def memory(process: Path) -> int:
    """Return its peak memory in KiB."""
    return next(
        int(line.split()[1]) for line in (process / "status").read_text().splitlines() if line.startswith("VmHWM")
    )
