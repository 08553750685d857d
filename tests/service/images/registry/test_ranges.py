"""Parts of blobs from registries that do not serve them well: the blob arrives nevertheless, and refusals are
remembered.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from services.images.concurrency.budget import Budget
from services.images.distribution.fetcher import PART, Fetcher
from services.images.node.ingest import FileIngest
from services.images.registry.client import Registry
from services.images.registry.download import SLICES, NoParts
from services.images.registry.host_memory import RANGES_REST, HostMemory
from services.images.registry.hosts import Hosts
from services.oci.descriptors import Descriptor
from services.oci.digests import Digest, digest_of
from services.oci.references import Reference
from tests.fake_registry import FakeRegistry, closed_ranges_only, cut, no_ranges, odd_parts, sliced, status
from tests.service.images.registry.conftest import HASTY, QUICK
from tests.service.images.registry.pulls import LAYER, LAYER_TYPE, certs, described, fetched, small_image
from tests.support import within

pytestmark = pytest.mark.once

ALWAYS = 1 << 30
LAYER_DESCRIPTOR = described(LAYER)
LARGE = os.urandom(1 << 20) * 49
"""A layer that is fetched in parts: three of 16 MiB, and a fourth."""


@pytest.fixture
def name(fake: FakeRegistry) -> str:
    """A reference whose repository has the layer."""
    fake.add_blob("box", LAYER)
    return fake.add(small_image(), "box:1")


@pytest.fixture
def large(fake: FakeRegistry, name: str) -> str:
    """A reference whose repository has the large layer too."""
    fake.add_blob("box", LARGE)
    return name


# ---------------------------------------------------------------------------------------------- one fetch


@pytest.mark.parametrize("code", [400, 403, 405, 406, 412, 416, 418, 501])
async def test_a_host_that_refuses_a_part_is_asked_for_the_whole_blob(
    quick: Registry, fake: FakeRegistry, name: str, code: int
) -> None:
    """This happens once, in the middle of a blob that was cut: the known bytes are dropped. The next fetch asks for the
    whole at once.
    """
    fake.inject("blob", cut(300_000))
    fake.inject("blob", no_ranges(code), times=ALWAYS)
    with within(5):
        blob, body = await fetched(quick.client(), name, LAYER_DESCRIPTOR)
    assert (blob, body.ranges) == (LAYER, False)
    assert [(seen.headers.get("Range"), seen.status) for seen in fake.asked("GET", "/blobs/")] == [
        (None, 200),
        ("bytes=300000-1048575", code),
        (None, 200),
    ]
    (host,) = [each for each in quick.memory.snapshot() if each.ranges_refused]
    assert host.host.endswith(fake.host)
    assert f"GET /v2/box/blobs/{LAYER_DESCRIPTOR.digest}: {code} " in host.ranges_refused
    part, body = await fetched(quick.client(), name, LAYER_DESCRIPTOR, 1000, 10)
    assert (part, body.ranges) == (LAYER[1000:1010], False)
    assert "Range" not in fake.asked("GET", "/blobs/")[-1].headers


@pytest.mark.parametrize("content_range", ["", "bytes 300001-1048575/1048576", "bytes 0-299999/1048576", "elephants"])
async def test_a_host_that_sends_another_part_is_asked_for_the_whole_blob(
    quick: Registry, fake: FakeRegistry, name: str, content_range: str
) -> None:
    """It is treated as a host that refuses: containerd pulls from such a host, since it requests no parts. An answer
    without Content-Range may also have several parts in one body.
    """
    fake.inject("blob", cut(300_000))
    fake.inject("blob", odd_parts(content_range, "multipart/byteranges; boundary=x"), times=ALWAYS)
    with within(5):
        blob, body = await fetched(quick.client(), name, LAYER_DESCRIPTOR)
    assert (blob, body.ranges) == (LAYER, False)
    assert [(seen.headers.get("Range"), seen.status) for seen in fake.asked("GET", "/blobs/")] == [
        (None, 200),
        ("bytes=300000-1048575", 206),
        (None, 200),
    ]
    (host,) = [each for each in quick.memory.snapshot() if each.ranges_refused]
    assert f'from byte 300000 on, and the answer is of "{content_range or "an unknown range"}"' in host.ranges_refused


async def test_a_host_that_fails_twice_on_parts_is_asked_for_the_whole_blob(
    quick: Registry, fake: FakeRegistry, name: str
) -> None:
    """The first failure does not count, since the host may fail on any request."""
    fake.inject("blob", no_ranges(500), times=ALWAYS)
    with within(5):
        blob, body = await fetched(quick.client(), name, LAYER_DESCRIPTOR, 1000)
    assert (blob, body.ranges) == (LAYER[1000:], False)
    assert [seen.status for seen in fake.asked("GET", "/blobs/")] == [500, 500, 200]


async def test_a_host_that_failed_once_is_asked_for_parts_again(quick: Registry, fake: FakeRegistry, name: str) -> None:
    """It is not remembered as a host without parts."""
    fake.inject("blob", status(500))
    blob, body = await fetched(quick.client(), name, LAYER_DESCRIPTOR, 1000)
    assert (blob, body.ranges) == (LAYER[1000:], True)
    assert not [each for each in quick.memory.snapshot() if each.ranges_refused]


@pytest.mark.parametrize("code", [401, 404])
async def test_a_host_that_refuses_the_whole_blob_too_is_not_remembered_for_parts(
    quick: Registry, fake: FakeRegistry, name: str, code: int
) -> None:
    """Nor is it asked more often than necessary."""
    fake.inject("blob", status(code), times=ALWAYS)
    with within(5), pytest.raises(Exception, match=f"{code} "):
        await fetched(quick.client(), name, LAYER_DESCRIPTOR, 1000)
    assert len(fake.asked("GET", "/blobs/")) == 1
    assert not [each for each in quick.memory.snapshot() if each.ranges_refused]


def test_a_refusal_is_forgotten() -> None:
    """After a while parts are requested again, since a registry may have been repaired."""
    now = [1000.0]
    memory = HostMemory(lambda: now[0])
    memory.refused_range("http://a", "GET x: 400")
    assert memory.refuses_ranges("http://a")
    assert not memory.refuses_ranges("http://b")
    (host,) = memory.snapshot()
    assert (host.state, host.ranges_refused, host.ranges_refused_until) == ("good", "GET x: 400", 1000.0 + RANGES_REST)
    now[0] += RANGES_REST
    assert not memory.refuses_ranges("http://a")
    assert memory.snapshot()[0].ranges_refused == ""


async def test_both_ends_of_a_range_are_given(quick: Registry, fake: FakeRegistry, name: str) -> None:
    """Some hosts accept no other ranges; nothing beyond the end is requested."""
    fake.inject("blob", closed_ranges_only(), times=ALWAYS)
    for offset, length in ((0, 10), (1000, None), (1_048_570, 100)):
        blob, body = await fetched(quick.client(), name, LAYER_DESCRIPTOR, offset, length)
        assert blob == LAYER[offset:][:length]
        assert body.ranges
    assert {seen.status for seen in fake.asked("GET", "/blobs/")} == {206}


async def test_a_part_of_a_blob_of_unknown_size(quick: Registry, fake: FakeRegistry, name: str) -> None:
    """The end is unknown, so no range has one: without a length the whole is requested."""
    fake.inject("blob", closed_ranges_only(), times=ALWAYS)
    unknown = Descriptor(LAYER_TYPE, LAYER_DESCRIPTOR.digest, 0)
    assert (await fetched(quick.client(), name, unknown, 1_000_000))[0] == LAYER[1_000_000:]
    assert (await fetched(quick.client(), name, unknown, 1_000_000, 1 << 20))[0] == LAYER[1_000_000:]
    assert [(seen.headers.get("Range"), seen.status) for seen in fake.asked("GET", "/blobs/")] == [
        (None, 200),
        ("bytes=1000000-2048575", 416),
        (None, 200),
    ]


@pytest.mark.parametrize(("most", "aligned"), [(1, 1), (1000, 1), (100_000, 1), (100_000, 4096)])
async def test_less_than_was_asked_for_is_gone_on_with(fake: FakeRegistry, name: str, most: int, aligned: int) -> None:
    """RFC 9110, 15.3.7: the fetch continues at the next byte, without a pause and without counting a failure; also
    where the answer begins before the requested byte.
    """
    fake.inject("blob", sliced(most, aligned), times=ALWAYS)
    length = min(500 * most, len(LAYER) - 10_000)
    paused = 100.0
    async with Registry(timeouts=QUICK, retry=replace(HASTY, first=paused, longest=paused)) as registry:
        with within(paused / 2):  # half of a pause may be random
            blob, body = await fetched(registry.client(), name, LAYER_DESCRIPTOR, 10_000, length)
        assert [(each.state, each.failures) for each in registry.memory.snapshot()] == [("good", 0)]
    assert (blob, body.ranges) == (LAYER[10_000 : 10_000 + length], True)
    assert len(fake.asked("GET", "/blobs/")) == -(-length // most)


async def test_a_request_for_each_byte_ends(quick: Registry, fake: FakeRegistry, name: str) -> None:
    """A server that gives a byte at a time is given up after many requests."""
    fake.inject("blob", sliced(1), times=ALWAYS)
    with within(20), pytest.raises(Exception, match=rf"{fake.host}: blob .* ended after \d+ of 1048576 bytes"):
        await fetched(quick.client(), name, LAYER_DESCRIPTOR, 10_000)
    assert len(fake.asked("GET", "/blobs/")) < 2 * SLICES


async def test_a_part_alone(quick: Registry, fake: FakeRegistry, name: str) -> None:
    """A caller that wants only a part gets an error if the host does not serve it; at once, if that is known."""
    fake.inject("blob", no_ranges(400), times=ALWAYS)
    client = quick.client()

    async def part() -> None:
        async with client.fetch(name, LAYER_DESCRIPTOR, 1000, 10, part_only=True):
            pass

    with pytest.raises(NoParts):
        await part()
    await fetched(client, name, LAYER_DESCRIPTOR, 1000)
    with pytest.raises(NoParts):
        await part()
    assert [seen.status for seen in fake.asked("GET", "/blobs/")] == [400, 400, 200]


# ---------------------------------------------------------------------------------------------- a large layer


class IngestingNode:
    """A node with room for one blob, which may have arrived in part."""

    namespace = "box"

    def __init__(self, path: Path, data: bytes) -> None:
        self.path = path
        self.data = data
        self.landed: bytes | None = None

    @contextlib.asynccontextmanager
    async def ingest(self, descriptor: Descriptor) -> AsyncIterator[FileIngest]:
        async def commit(labels: Mapping[str, str]) -> None:
            self.landed = self.path.read_bytes()

        ingest = FileIngest(
            os.open(self.path, os.O_RDWR | os.O_CREAT), Digest.parse(descriptor.digest), descriptor.size, commit
        )
        try:
            await ingest.resumed()
            yield ingest
        finally:
            await ingest.close()


async def layer_fetched(registry: Registry, name: str, node: IngestingNode) -> None:
    descriptor = Descriptor(LAYER_TYPE, digest_of(node.data), len(node.data))
    await Fetcher(Budget()).fetch(node, registry.client(), Reference.parse(name), descriptor, {}, 0)  # type: ignore[arg-type]


@pytest.mark.parametrize("content_range", ["", "bytes 1-16777216/51380224"])
async def test_a_large_layer_comes_whole_where_parts_are_wrong(
    quick: Registry, fake: FakeRegistry, large: str, tmp_path: Path, content_range: str
) -> None:
    """The whole is requested once: the first part shows it."""
    fake.inject("blob", odd_parts(content_range), times=ALWAYS)
    node = IngestingNode(tmp_path / "blob", LARGE)
    with within(20):
        await layer_fetched(quick, large, node)
    assert node.landed == LARGE
    assert [seen.status for seen in fake.asked("GET", "/blobs/")] == [206, 200]


@pytest.mark.parametrize("code", [200, 400, 416])
async def test_a_large_layer_comes_whole_where_there_are_no_parts(
    quick: Registry, fake: FakeRegistry, large: str, tmp_path: Path, code: int
) -> None:
    """It comes on one connection. If that is lost, it comes from its first byte again: bytes of this attempt and of
    earlier ones are dropped.
    """
    if code == 200:
        fake.ranges = False
    else:
        fake.inject("blob", no_ranges(code), times=2)
    fake.inject("blob", cut(20 << 20))
    fake.inject("blob", no_ranges(code) if code != 200 else cut(48 << 20), times=ALWAYS if code != 200 else 1)
    node = IngestingNode(tmp_path / "blob", LARGE)
    node.path.write_bytes(LARGE[:1_000_000])
    with within(20):
        await layer_fetched(quick, large, node)
    assert node.landed == LARGE
    assert len(fake.asked("GET", "/blobs/")) <= 4


async def test_a_host_that_serves_only_the_first_part(
    quick: Registry, fake: FakeRegistry, large: str, tmp_path: Path
) -> None:
    """The rest comes on one connection: the whole is requested once, and not once for each part."""

    async def first_only(request, serve):
        refuse = not request.headers.get("Range", "bytes=0-").startswith("bytes=0-")
        return await (status(400)(request, serve) if refuse else serve())

    fake.inject("blob", first_only, times=ALWAYS)
    node = IngestingNode(tmp_path / "blob", LARGE)
    with within(20):
        await layer_fetched(quick, large, node)
    assert node.landed == LARGE
    whole = [seen for seen in fake.asked("GET", "/blobs/") if "Range" not in seen.headers]
    assert len(whole) == 1


async def test_a_host_without_parts_takes_over(
    fake: FakeRegistry, other: FakeRegistry, large: str, tmp_path: Path
) -> None:
    """In the middle of a layer of which another host has given parts, this host is asked for the whole once."""
    other.add_blob("box", LARGE)
    fake.ranges = False

    async def two_parts(request, serve):
        return await (
            serve()
            if int(request.headers["Range"].removeprefix("bytes=").split("-")[0]) < 2 * PART
            else status(404)(request, serve)
        )

    other.inject("blob", two_parts, times=ALWAYS)
    hosts = Hosts((certs(tmp_path / "certs", "images.test", f'server = "{fake.url}"\n[host."{other.url}"]\n'),))
    node = IngestingNode(tmp_path / "blob", LARGE)
    async with Registry(hosts, timeouts=QUICK, retry=HASTY) as registry:
        with within(20):
            await layer_fetched(registry, "images.test/box:1", node)
    assert node.landed == LARGE
    assert fake.served("/blobs/") < 2.5 * len(LARGE)
