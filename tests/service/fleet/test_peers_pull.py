"""Blobs from peers and a registry: two or three nodes with content roots of their own, and a fake registry. Peers are
killed, lie, stall and are slow.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.fleet.upload_limit import UploadLimit
from services.images.distribution.claims import Claims
from services.images.distribution.fetcher import Fetched
from services.images.distribution.peers import Source
from services.images.registry.host import TLS
from services.images.registry.host_memory import SLOW
from services.kit import errors
from services.kit.loops import task
from services.oci.digests import digest_of
from services.oci.references import Reference
from tests.fake_registry import Authority, FakeRegistry, silent, slow
from tests.fleet import QUICK, Book, Puller, puller
from tests.service.images.registry.pulls import described
from tests.spans import attribute, recorded
from tests.support import eventually_async, within

pytestmark = pytest.mark.once

DATA = os.urandom(4_000_000)
LAYER = described(DATA)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
async def registry() -> AsyncIterator[FakeRegistry]:
    async with FakeRegistry() as running:
        running.add_blob("box", DATA)
        yield running


@pytest.fixture
def book() -> Book:
    return Book()


@pytest.fixture
async def one(book: Book, tmp_path: Path, authority: Authority) -> AsyncIterator[Puller]:
    async with puller(book, tmp_path / "one", authority, "one") as node:
        yield node


@pytest.fixture
async def hasty(book: Book, tmp_path: Path, authority: Authority) -> AsyncIterator[Puller]:
    """A node that soon leaves a slow peer."""
    async with puller(book, tmp_path / "hasty", authority, "hasty", timeouts=QUICK) as node:
        yield node


@pytest.fixture
async def two(book: Book, tmp_path: Path, authority: Authority) -> AsyncIterator[Puller]:
    async with puller(book, tmp_path / "two", authority, "two") as node:
        yield node


def sent(registry: FakeRegistry, data: bytes = DATA) -> list[str]:
    """The ranges of a blob that the registry was asked for; "" is the whole."""
    asked = registry.asked("GET", f"blobs/{digest_of(data)}")
    return [each.headers.get("Range", "") for each in asked]


async def give(node: Puller, book: Book, data: bytes = DATA, *, wrong: bytes | None = None) -> None:
    """Let a node have a blob, as the fleet knows; with ``wrong`` bytes, if it lies."""
    digest = await node.peer.put(data)
    book.complete.setdefault(str(digest), {})[node.name] = len(data)
    if wrong is not None:
        path, _ = await node.node._files.locate(digest)
        await asyncio.to_thread(Path(path).write_bytes, wrong)


async def test_who_has_a_blob_gives_it_and_the_trace_says_so(
    one: Puller, two: Puller, book: Book, registry: FakeRegistry
) -> None:
    """The registry is not asked for it, and there is no claim."""
    await give(one, book)
    with recorded() as spans:
        found = await two.fetch(f"{registry.host}/box:1", LAYER)
    assert found == Fetched(False, len(DATA), len(DATA))
    assert await two.has(DATA)
    assert sent(registry) == []
    assert book.asked == [("sources", LAYER.digest)]
    fetch = spans.one("registry.fetch")
    assert (attribute(fetch, "splitd.peer"), attribute(fetch, "server.address")) == ("one", "peer one")
    assert (attribute(fetch, "splitd.offset"), attribute(fetch, "splitd.bytes")) == (0, len(DATA))


async def test_a_peer_that_is_killed_in_the_middle(
    book: Book, one: Puller, registry: FakeRegistry, tmp_path: Path, authority: Authority
) -> None:
    """The registry gives the rest, from the same byte on; the trace has both ranges."""
    async with puller(book, tmp_path / "slow", authority, "slow", rate=8e6) as other:
        await give(other, book)
        with recorded() as spans:
            fetching = task("a fetch", one.fetch(f"{registry.host}/box:1", LAYER))
            await eventually_async(lambda: _is(one.fetcher.moving.get(LAYER.digest, (0, 0))[0] > 1_000_000))
            await other.peer.server.close(0)
            found = await fetching
    assert await one.has(DATA)
    assert 0 < found.peers < len(DATA) == found.came
    assert sent(registry) == [f"bytes={found.peers}-{len(DATA) - 1}"]
    parts = [(attribute(f, "server.address"), attribute(f, "splitd.bytes")) for f in spans.named("registry.fetch")]
    assert sorted(parts) == sorted([("peer slow", found.peers), (registry.host, len(DATA) - found.peers)])
    assert not [span for span in spans.named("registry.fetch") if span.status.failed]


async def _is(fact: bool) -> bool:
    return fact


async def test_a_peer_that_lies_is_named_and_not_asked_again(
    one: Puller, two: Puller, book: Book, registry: FakeRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    """The digest shows it; the registry gives the whole blob, and further blobs at once."""
    await give(one, book, wrong=DATA[:-1] + b"?")
    await two.fetch(f"{registry.host}/box:1", LAYER)
    assert await two.has(DATA)
    assert sent(registry) == [""]
    assert "peer one is not asked for blobs for 60 minutes" in caplog.text
    assert list(two.peers.liars) == ["one"]
    more = os.urandom(1000)
    registry.add_blob("box", more)
    await give(one, book, more)
    assert (await two.fetch(f"{registry.host}/box:1", described(more))).peers == 0


async def test_a_peer_that_lies_in_a_part_is_told_by_the_registrys_bytes(
    two: Puller, book: Book, registry: FakeRegistry, tmp_path: Path, authority: Authority
) -> None:
    """The blob's other part is the registry's. Once the registry alone has given the right bytes, it was the peer."""
    async with puller(book, tmp_path / "slow", authority, "slow", rate=8e6) as other:
        await give(other, book, wrong=b"?" + DATA[1:])
        fetching = task("a fetch", two.fetch(f"{registry.host}/box:1", LAYER))
        await eventually_async(lambda: _is(two.fetcher.moving.get(LAYER.digest, (0, 0))[0] > 1_000_000))
        await other.peer.server.close(0)
        await fetching
    assert await two.has(DATA)
    assert len(sent(registry)) == 2 and sent(registry)[1] == ""
    assert list(two.peers.liars) == ["slow"]


async def test_a_registry_with_wrong_bytes_is_not_a_peers_fault(
    two: Puller, book: Book, registry: FakeRegistry
) -> None:
    """It fails as without a fleet, and names the registry."""
    registry.blobs[LAYER.digest] = DATA[:-1] + b"?"
    with pytest.raises(errors.FailedPrecondition, match=registry.host):
        await two.fetch(f"{registry.host}/box:1", LAYER)
    assert not list(two.peers.liars)
    assert book.claims == {}


async def test_a_peer_that_stalls_is_left_at_once(
    book: Book, hasty: Puller, registry: FakeRegistry, tmp_path: Path, authority: Authority
) -> None:
    """It accepts the connection, and its bytes stop."""
    async with puller(book, tmp_path / "slow", authority, "slow", rate=500) as other:
        await give(other, book)
        with within(8):
            found = await hasty.fetch(f"{registry.host}/box:1", LAYER)
    assert await hasty.has(DATA)
    assert found.peers < len(DATA) / 2
    assert len(sent(registry)) == 1


async def test_a_peer_slower_than_the_registry_is_left(
    book: Book, hasty: Puller, registry: FakeRegistry, tmp_path: Path, authority: Authority
) -> None:
    """What the registry gave is known from earlier blobs. The next blob is not asked of this peer; and the trace says
    how slow it was.
    """
    async with puller(book, tmp_path / "slow", authority, "slow", rate=400e3) as other:
        await give(other, book)
        hasty.peers.throughput._registries[registry.host] = 50e6, hasty.peers.throughput._clock()
        with recorded() as spans:
            found = await hasty.fetch(f"{registry.host}/box:1", LAYER)
        assert found.peers < len(DATA) / 2
        assert await hasty.has(DATA)
        assert hasty.registry.memory.state("peer://slow") == SLOW
        left = [span for span in spans.named("registry.fetch") if span.attributes.get("splitd.peer") == "slow"]
        assert "50.00 MB/s" in str(attribute(left[0], "error.message"))
        more = os.urandom(1000)
        registry.add_blob("box", more)
        await give(other, book, more)
        assert (await hasty.fetch(f"{registry.host}/box:1", described(more))).peers == 0


async def test_without_a_measure_a_slow_peer_is_kept(
    book: Book, hasty: Puller, registry: FakeRegistry, tmp_path: Path, authority: Authority
) -> None:
    """Nobody knows whether the registry would be better; only a peer below the floor is left."""
    async with puller(book, tmp_path / "slow", authority, "slow", rate=3e6) as other:
        await give(other, book)
        found = await hasty.fetch(f"{registry.host}/box:1", LAYER)
        assert found.peers == len(DATA)


async def test_three_nodes_at_once_fetch_a_blob_once(
    one: Puller, two: Puller, book: Book, registry: FakeRegistry, tmp_path: Path, authority: Authority
) -> None:
    """Who holds the claim fetches it, and the others get its bytes as they arrive."""
    registry.inject("blob", slow(4e6, 65536))
    async with puller(book, tmp_path / "three", authority, "three") as three:
        with recorded() as spans:
            nodes = (one, two, three)
            found = await asyncio.gather(*(node.fetch(f"{registry.host}/box:1", LAYER) for node in nodes))
        for node in nodes:
            assert await node.has(DATA)
    assert sent(registry) == [""]
    assert sorted(each.peers for each in found) == [0, len(DATA), len(DATA)]
    assert book.claims == {}
    followed = [f for f in spans.named("registry.fetch") if "splitd.peer.arriving" in f.attributes]
    assert len(followed) == 2


async def test_nodes_that_want_the_same_blobs_share_them(
    book: Book, registry: FakeRegistry, tmp_path: Path, authority: Authority
) -> None:
    """Who has enough to fetch leaves the next blob to the other node, and follows it there."""
    blobs = [os.urandom(1_200_000) for _ in range(4)]
    for data in blobs:
        registry.add_blob("box", data)
    registry.inject("blob", slow(1e6, 65536), times=len(blobs))
    never = float("inf")
    async with contextlib.AsyncExitStack() as stack:
        nodes = [
            await stack.enter_async_context(
                puller(book, tmp_path / name, authority, name, claims=Claims(1, alone=never, still=never))
            )
            for name in ("a", "b")
        ]
        with recorded() as spans:
            fetches = [node.fetch(f"{registry.host}/box:1", described(data)) for node in nodes for data in blobs]
            found = await asyncio.gather(*fetches)
        for node in nodes:
            for data in blobs:
                assert await node.has(data)
            assert not node.peers.claims._registries
    assert [sent(registry, data) for data in blobs] == [[""]] * len(blobs)
    gave = [sum(each.peers for each in found[place : place + len(blobs)]) for place in (4, 0)]
    assert sum(gave) == sum(map(len, blobs))
    assert min(gave) > 0
    assert book.claims == {}
    assert "claims" in {attribute(wait, "splitd.wait.for") for wait in spans.named("wait.budget")}


async def test_who_is_followed_fails(one: Puller, two: Puller, book: Book, registry: FakeRegistry) -> None:
    """The follower goes on at the registry, with the bytes that it has, and can itself be followed."""
    registry.inject("blob", slow(1e6, 65536))
    first = task("a fetch", one.fetch(f"{registry.host}/box:1", LAYER))
    await eventually_async(lambda: _is(LAYER.digest in book.claims))
    second = task("a fetch", two.fetch(f"{registry.host}/box:1", LAYER))
    await eventually_async(lambda: _is(two.fetcher.moving.get(LAYER.digest, (0, 0))[0] > 300_000))
    first.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await first
    found = await second
    assert await two.has(DATA)
    assert 0 < found.peers < len(DATA)
    assert sent(registry) == ["", f"bytes={found.peers}-{len(DATA) - 1}"]
    assert book.complete[LAYER.digest] == {"two": len(DATA)}


@pytest.mark.parametrize("how", ["it dies", "it gives no more, and goes on"])
async def test_only_one_takes_the_place_of_who_is_left(
    one: Puller, two: Puller, book: Book, registry: FakeRegistry, tmp_path: Path, authority: Authority, how: str
) -> None:
    """Two nodes lose the one that they follow. The registry is asked once more, and not for each of them."""
    registry.inject("blob", slow(1e6, 65536), times=2)
    async with puller(book, tmp_path / "three", authority, "three") as three:
        first = task("a fetch", one.fetch(f"{registry.host}/box:1", LAYER))
        await eventually_async(lambda: _is(LAYER.digest in book.claims))
        others = [task("a fetch", node.fetch(f"{registry.host}/box:1", LAYER)) for node in (two, three)]
        for node in (two, three):
            await eventually_async(lambda node=node: _is(node.fetcher.moving.get(LAYER.digest, (0, 0))[0] > 100_000))  # type: ignore[misc]
        one.peer.peers._upload = UploadLimit(1.0)
        one.peer.peers._upload._free = float("inf")  # from now on it refuses
        await one.peer.server.close(0)
        if how == "it dies":
            first.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await first
        found = await asyncio.gather(*others)
        assert await two.has(DATA) and await three.has(DATA)
    assert len(sent(registry)) == 2
    assert len(DATA) in [each.peers for each in found]
    if how != "it dies":
        await first
        assert await one.has(DATA)


async def test_who_has_no_turn_yet_is_followed(
    two: Puller, book: Book, registry: FakeRegistry, tmp_path: Path, authority: Authority
) -> None:
    """Its fetch of another blob shows that it is alive, for longer than it may show nothing."""
    before = os.urandom(3_000_000)
    registry.add_blob("box", before)
    registry.inject("blob", slow(1e6, 65536))
    async with puller(book, tmp_path / "busy", authority, "busy", silence=1.0, wait=0.5, connections=1) as busy:
        first = task("a fetch", busy.fetch(f"{registry.host}/box:1", described(before)))
        await eventually_async(lambda: _is(busy.fetcher.moving.get(digest_of(before), (0, 0))[0] > 100_000))
        waiting = task("a fetch", busy.fetch(f"{registry.host}/box:1", LAYER))
        await eventually_async(lambda: _is(LAYER.digest in book.claims))
        found = await two.fetch(f"{registry.host}/box:1", LAYER)
        await asyncio.gather(first, waiting)
    assert found.peers == len(DATA)
    assert sent(registry) == [""]


async def test_a_connection_that_was_not_made_in_time_is_no_death_of_who_gives_bytes(
    one: Puller, two: Puller, book: Book, registry: FakeRegistry
) -> None:
    """Its other blobs are followed all the same. A peer that gives nothing is dead for a while."""
    memory, more = two.registry.memory, os.urandom(2_000_000)
    registry.add_blob("box", more)
    await give(one, book)
    await give(one, book, more)
    memory.failed("peer://one", "connecting took longer than 5 s", dead=True)
    assert (await two.fetch(f"{registry.host}/box:1", LAYER)).peers == 0
    two.peers.hear("one")
    assert (await two.fetch(f"{registry.host}/box:1", described(more))).peers == len(more)


async def test_a_rate_on_a_machine_without_a_free_processor_says_nothing_of_a_peer(
    two: Puller, registry: FakeRegistry
) -> None:
    """It is left only if it gives next to nothing; a peer that fetches the blob itself if nothing else comes either."""
    throughput = two.peers.throughput
    throughput._registries[registry.host] = 50e6, throughput._clock()
    sharing = two.peers.sharing(Reference.parse(f"{registry.host}/box:1"), LAYER, "default")
    assert sharing is not None
    has, fetches = Source("one", "", LAYER.size, LAYER.size), Source("one", "", 0, LAYER.size)
    for source in (has, fetches):
        assert "50.00 MB/s" in sharing._too_slow(source, 1e6, starved=False)
        assert sharing._too_slow(source, 1e6, starved=True) == ""
        assert "only 1.0 KiB/s" in sharing._too_slow(source, 1024, starved=True)
    throughput.came(4_000_000, registry=True)
    assert sharing._too_slow(fetches, 1024, starved=True) == ""
    assert "only 1.0 KiB/s" in sharing._too_slow(has, 1024, starved=True)


async def test_who_is_followed_begins_again(one: Puller, two: Puller, book: Book, registry: FakeRegistry) -> None:
    """Bytes that turn out wrong at the first node are used by none; nobody is called a liar for passing them on."""
    registry.blobs[LAYER.digest] = DATA[:100] + b"?" + DATA[101:]
    registry.inject("blob", slow(4e6, 65536))
    first = task("a fetch", one.fetch(f"{registry.host}/box:1", LAYER))
    await eventually_async(lambda: _is(LAYER.digest in book.claims))
    second = task("a fetch", two.fetch(f"{registry.host}/box:1", LAYER))
    await eventually_async(lambda: _is(two.fetcher.moving.get(LAYER.digest, (0, 0))[0] > 300_000))
    registry.blobs[LAYER.digest] = DATA
    await asyncio.gather(first, second)
    assert await one.has(DATA) and await two.has(DATA)
    assert not [*two.peers.liars, *one.peers.liars]


async def test_a_namespace_that_is_not_shared_knows_nothing_of_the_fleet(
    one: Puller, two: Puller, book: Book, registry: FakeRegistry
) -> None:
    """Its pull asks nobody and tells nobody."""
    await give(one, book)
    found = await two.fetch(f"{registry.host}/box:1", LAYER, namespace="private")
    assert (found.peers, sent(registry)) == (0, [""])
    assert book.asked == []


async def test_the_registry_is_away_after_one_node_has_it(
    one: Puller, two: Puller, book: Book, registry: FakeRegistry
) -> None:
    """The other node needs nothing of it; and without the first node the error names the registry."""
    await one.fetch(f"{registry.host}/box:1", LAYER)
    await registry.stop()
    found = await two.fetch(f"{registry.host}/box:1", LAYER)
    assert found.peers == len(DATA)
    assert await two.has(DATA)
    unknown = described(os.urandom(2_000_000))
    with pytest.raises(errors.Unavailable, match=registry.host):
        await two.fetch(f"{registry.host}/box:1", unknown)
    assert book.claims == {}


async def test_a_registry_that_gives_nothing_is_left_for_a_peer(
    one: Puller, two: Puller, book: Book, registry: FakeRegistry
) -> None:
    """The network is cut between it and one node, and the other has the blob by then. What has arrived is kept."""
    registry.inject("blob", silent(after=1_000_000))
    first = task("a fetch", one.fetch(f"{registry.host}/box:1", LAYER))
    await eventually_async(lambda: _is(one.fetcher.moving.get(LAYER.digest, (0, 0))[0] >= 1_000_000))
    await give(two, book)
    with within(20):
        found = await first
    assert await one.has(DATA)
    assert len(DATA) / 2 < found.peers < len(DATA) == found.came
    assert len(sent(registry)) == 1


async def test_a_slow_peer_is_the_last_resort(
    book: Book, hasty: Puller, registry: FakeRegistry, tmp_path: Path, authority: Authority
) -> None:
    """It was left because the registry is faster; and then the registry is away."""
    async with puller(book, tmp_path / "slow", authority, "slow", rate=1.5e6) as other:
        await give(other, book)
        hasty.peers.throughput._registries[registry.host] = 50e6, hasty.peers.throughput._clock()
        await registry.stop()
        found = await hasty.fetch(f"{registry.host}/box:1", LAYER)
    assert found.peers == len(DATA)
    assert await hasty.has(DATA)


async def test_a_fetch_that_was_cut_goes_on_at_a_peer(
    one: Puller, two: Puller, book: Book, registry: FakeRegistry
) -> None:
    """The bytes that are there are not fetched again."""
    registry.inject("blob", slow(2e6, 65536))
    first = task("a fetch", two.fetch(f"{registry.host}/box:1", LAYER))
    await eventually_async(lambda: _is(two.fetcher.moving.get(LAYER.digest, (0, 0))[0] > 1_000_000))
    first.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await first
    await give(one, book)
    found = await two.fetch(f"{registry.host}/box:1", LAYER)
    assert 0 < found.came == found.peers < len(DATA)
    assert await two.has(DATA)


async def test_a_dead_peer_costs_its_timeout_once(one: Puller, two: Puller, book: Book, registry: FakeRegistry) -> None:
    """Where nobody listens, the registry is asked, and for the next blob at once."""
    await give(one, book)
    await registry.stop()
    book.addresses["one"] = "127.0.0.1:1"
    async with registry:
        assert (await two.fetch(f"{registry.host}/box:1", LAYER)).peers == 0
    assert await two.has(DATA)


@pytest.mark.parametrize("missing", ["ca", "cert"])
async def test_own_certificates_that_cannot_be_used(
    one: Puller, two: Puller, book: Book, registry: FakeRegistry, tmp_path: Path, missing: str
) -> None:
    """The registry is asked, as if nobody had the blob."""
    await give(one, book)
    none, (ca,), certificates = str(tmp_path / "none.pem"), two.peers.tls.ca, two.peers.tls.client
    two.peers.tls = (
        TLS((none,), certificates, alone=True) if missing == "ca" else TLS((ca,), ((none, none),), alone=True)
    )
    found = await two.fetch(f"{registry.host}/box:1", LAYER)
    assert found == Fetched(False, len(DATA))
    assert await two.has(DATA)
