"""Pulls on a node from registries that misbehave, one fault at a time: each ends as its user would wish, in time, and
an error names the host and the reason.

They use ctr of containerd 2 if it is installed, and otherwise our own client of Transfer. The faults of single requests
are tested on the registry client too (tests/service/images/registry).
"""

from __future__ import annotations

import asyncio
import gzip
import itertools
import json
import os
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from aiohttp import web

from api.containerd.events import snapshot_pb2
from api.containerd.types.event_pb2 import Envelope
from deploy.samples import Image
from services.kit import any as kit_any
from services.kit.rpc import Channel
from services.oci.digests import digest_of
from services.oci.media_types import MANIFEST
from tests.fake_registry import (
    Auth,
    Authority,
    FakeRegistry,
    Serve,
    authorized,
    cut,
    encoded,
    endless,
    no_ranges,
    odd_http,
    other,
    redirect,
    silent,
    slow,
    status,
)
from tests.pulls import Client, arriving, check_nothing_left, check_pulled, config_of, gets, large, pulling, runnable
from tests.suites import events
from tests.support import Node, eventually_async, short_directory

pytestmark = [pytest.mark.node, pytest.mark.root]

CONFIG = """\
[images.timeouts]
mirror_stall = "500ms"
slow_window = "300ms"
"""
ALWAYS = 1 << 30
_ids = itertools.count()


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    """A node with shorter timeouts for mirrors than usual."""
    with short_directory() as directory:
        running = Node(directory, config=CONFIG)
        try:
            running.up()
            yield running
        finally:
            running.clear()


@pytest.fixture
def client(channel: Channel) -> Client:
    return Client(channel, f"faults{os.getpid()}-{next(_ids)}")


@pytest.fixture
async def elsewhere() -> AsyncIterator[FakeRegistry]:
    """Another registry host."""
    async with FakeRegistry(address="127.0.0.2") as running:
        yield running


class Case:
    """A node and a client, with the expectations of pulls."""

    def __init__(self, node: Node, channel: Channel, client: Client) -> None:
        self.node, self.channel, self.client = node, channel, client

    async def succeeds(
        self, reference: str, box: Image, *, seconds: float = 15.0, hosts: Path | None = None, user: str = ""
    ) -> float:
        """Check that the image is there, right, and runs, and that nothing else is left. Return the seconds that the
        pull took.
        """
        begun = time.monotonic()
        async with asyncio.timeout(seconds):
            said = await pulling(self.node, self.client, reference, hosts=hosts, user=user).ended
        took = time.monotonic() - begun
        assert not said
        await check_pulled(self.node, self.client, reference, box)
        await check_nothing_left(self.node, self.channel, self.client)
        return took

    async def fails(
        self, reference: str, *patterns: str, seconds: float = 15.0, hosts: Path | None = None, resumable: bool = False
    ) -> None:
        """Check that the message matches all ``patterns``, that there is no image, and that only resumable ingests are
        left.
        """
        async with asyncio.timeout(seconds):
            said = await pulling(self.node, self.client, reference, hosts=hosts).ended
        for pattern in patterns:
            assert re.search(pattern, said), f"{pattern!r} is not in: {said}"
        assert not await self.client.images()
        await check_nothing_left(self.node, self.channel, self.client, resumable=resumable)
        assert not await self.client.blobs()


@pytest.fixture
def case(node: Node, channel: Channel, client: Client) -> Case:
    return Case(node, channel, client)


def starts(registry: FakeRegistry, digest: str) -> list[int]:
    """Return the first bytes of the requests for a blob, in turn."""
    return [
        int(headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0]) for headers in gets(registry, digest)
    ]


def mirrors(directory: Path, *urls: str, more: str = "") -> Path:
    """Write a certs.d for the host ``images.test``, with ``urls`` as its mirrors and the last of them as its server."""
    (directory / "images.test").mkdir(parents=True)
    entries = "".join(f'[host."{url}"]\n  capabilities = ["pull", "resolve"]\n' for url in urls[:-1])
    (directory / "images.test/hosts.toml").write_text(f'server = "{urls[-1]}"\n{more}{entries}')
    return directory


# ---------------------------------------------------------------------------------------------- what passes


async def test_a_silent_registry_is_named_while_it_is_waited_for(node: Node) -> None:
    """``splitd pull`` says so on standard error and in its JSON; the pull goes on when the registry does."""
    async with FakeRegistry() as registry:
        references = [registry.add(runnable(), f"box:{number}") for number in (1, 2)]
        registry.inject("manifests", silent(9.0), times=2)
        plain, as_json = await asyncio.gather(
            asyncio.to_thread(node.splitd, "pull", "--plain-http", "-n", "silent", references[0]),
            asyncio.to_thread(node.splitd, "pull", "--plain-http", "-n", "silent", "--json", references[1]),
        )
    assert re.search(
        rf"^splitd: {re.escape(registry.host)} does not answer \(tried for \d+ s\)$", plain.stderr, re.MULTILINE
    )
    lines = [json.loads(line) for line in as_json.stdout.splitlines()]
    assert {line["silent"] for line in lines if "silent" in line} == {registry.host}
    assert lines[-1]["outcome"] == "done"


async def test_a_token_that_expires_in_the_middle(case: Case) -> None:
    """A new one is requested, and the layer is resumed."""
    async with FakeRegistry(auth=Auth(user="me", password="secret", seconds=0.5, told=300)) as registry:
        box = runnable()
        layer = box.layers[1]
        reference = registry.add(box, "box:1")
        registry.inject(layer, cut(300_000, seconds=0.6))
        await case.succeeds(reference, box, user="me:secret")
        assert starts(registry, layer) == [0, 300_000, 300_000]
        assert len({headers["Authorization"] for headers in gets(registry, layer)}) == 2


async def test_a_redirect_to_another_host(case: Case, elsewhere: FakeRegistry) -> None:
    """It is followed, with the bytes of the layer so far and without the credential; if the connection is lost there,
    the registry is asked again.
    """
    async with FakeRegistry(auth=Auth(user="me", password="secret")) as registry:
        box = runnable()
        layer = box.layers[1]
        reference = registry.add(box, "box:1")
        elsewhere.add(box, "box:1")
        registry.inject("blob", authorized(redirect(f"{elsewhere.url}/")), times=ALWAYS)
        elsewhere.inject(layer, cut(200_000))
        await case.succeeds(reference, box, user="me:secret")
        assert starts(elsewhere, layer) == [0, 200_000]
        assert "Authorization" in gets(registry, layer)[-1]
        assert elsewhere.seen
        assert not [
            seen for seen in elsewhere.seen if {"Authorization", "Cookie", "Proxy-Authorization"} & set(seen.headers)
        ]


async def test_a_registry_that_asks_to_wait(case: Case, fake: FakeRegistry) -> None:
    """It sends 429 with Retry-After, and the client waits."""
    box = runnable()
    reference = fake.add(box, "box:1")
    fake.inject(box.layers[1], status(429, Retry_After="1"))
    assert await case.succeeds(reference, box) >= 1.0


async def test_503_twice(case: Case, fake: FakeRegistry) -> None:
    """Resolving the name fails so, and fetching a layer."""
    box = runnable()
    reference = fake.add(box, "box:1")
    fake.inject("manifest", status(503), times=2)
    fake.inject(box.layers[1], status(503), times=2)
    await case.succeeds(reference, box)


async def test_a_connection_lost_in_the_middle(case: Case, fake: FakeRegistry) -> None:
    """Received bytes are not fetched again."""
    box = runnable()
    layer = box.layers[1]
    reference = fake.add(box, "box:1")
    fake.inject(layer, cut(400_000))
    fake.inject(layer, cut(100_000))
    await case.succeeds(reference, box)
    assert starts(fake, layer) == [0, 400_000, 500_000]


async def test_a_server_without_ranges_that_loses_the_connection(case: Case) -> None:
    """It sends all bytes again, and the known ones are dropped."""
    async with FakeRegistry(ranges=False) as registry:
        box = runnable()
        reference = registry.add(box, "box:1")
        registry.inject(box.layers[1], cut(400_000))
        await case.succeeds(reference, box)
        assert [seen.status for seen in registry.asked("GET", box.layers[1])][-1] == 200


@pytest.mark.parametrize(("made", "code"), [(runnable, 400), (large, 416)], ids=["small, 400", "large, 416"])
async def test_a_server_that_refuses_ranges(
    case: Case, fake: FakeRegistry, made: Callable[[], Image], code: int
) -> None:
    """A layer whose connection is lost is requested whole, and so is each large layer."""
    box = made()
    reference, layer = fake.add(box, "box:1"), box.layers[1]
    fake.inject(layer, cut(400_000), method="GET")
    fake.inject(layer, no_ranges(code), times=ALWAYS)
    await case.succeeds(reference, box, seconds=30)
    assert "Range" not in gets(fake, layer)[-1]


async def test_an_interrupted_pull_where_ranges_are_refused(case: Case, fake: FakeRegistry) -> None:
    """The rest of a layer that it leaves does not keep the next pull from requesting the whole. ``splitd status``
    reports the registry.
    """
    box = runnable(kib=2000)
    reference, layer = fake.add(box, "box:1"), box.layers[1]
    fake.inject(layer, silent(60, after=1_500_000))
    begun = pulling(case.node, case.client, reference)
    await arriving(begun.ended, case.client, layer, 1_000_000)
    begun.interrupt()
    await begun.ended
    fake.heal()
    fake.inject(layer, no_ranges(400), times=ALWAYS)
    await case.succeeds(reference, box)
    assert ["Range" in headers for headers in gets(fake, layer)] == [False, True, False]
    shown = await asyncio.to_thread(case.node.splitd, "status")
    assert re.search(
        rf"registry https?://{re.escape(fake.host)} refuses parts of blobs \(GET /v2/box/blobs/{layer}: 400 .*: a layer comes whole",
        shown.stdout,
    )


@pytest.mark.parametrize("ranges", [True, False], ids=["parts", "whole"])
async def test_a_large_layer_whose_connection_is_lost(case: Case, ranges: bool) -> None:
    """It is one of several connections that fetch parts, and then the rest of its part is fetched again; or, if the
    server gives no parts, the only one.
    """
    async with FakeRegistry(ranges=ranges) as registry:
        box = large()
        reference, layer = registry.add(box, "box:1"), box.layers[1]
        registry.inject(layer, cut(1 << 20))
        await case.succeeds(reference, box, seconds=30)
        parts = list(range(0, len(box.blobs[layer]), 16 << 20)) if ranges else [0]
        assert sorted(starts(registry, layer)) == sorted([*parts, 1 << 20])


async def test_a_dead_mirror_before_a_good_one(case: Case, fake: FakeRegistry, place: Path) -> None:
    """It costs almost no time."""
    async with FakeRegistry() as gone:
        dead = gone.url
    box = runnable()
    fake.add(box, "box:1")
    await case.succeeds("images.test/box:1", box, hosts=mirrors(place, dead, fake.url))


@pytest.mark.parametrize(
    ("media_type", "body"),
    [("text/html", b"<html>sign in</html>"), ("application/json", b'{"schemaVersion": 1}'), (MANIFEST, b"junk")],
    ids=["HTML", "schema 1", "junk"],
)
async def test_a_mirror_that_answers_with_no_manifest(
    case: Case, fake: FakeRegistry, elsewhere: FakeRegistry, place: Path, media_type: str, body: bytes
) -> None:
    """It answers 200, and the next host is asked nevertheless; without another host the error describes the answer."""
    box = runnable()
    fake.add(box, "box:1")

    async def page(request: web.Request, serve: Serve) -> web.StreamResponse:
        return web.Response(body=body, content_type=media_type)

    elsewhere.inject("", page, times=ALWAYS)
    await case.fails(
        "images.test/box:1",
        re.escape(elsewhere.host),
        "is not an image manifest|schema 1|neither an image manifest nor an index",
        hosts=mirrors(place / "alone", elsewhere.url),
    )
    await case.succeeds("images.test/box:1", box, hosts=mirrors(place, elsewhere.url, fake.url))
    assert elsewhere.asked(part="/manifests/1")


async def test_a_redirect_to_where_head_is_refused(case: Case, fake: FakeRegistry, elsewhere: FakeRegistry) -> None:
    """Such URLs are signed for GET: the answer to a GET is used."""
    box = runnable()
    reference = fake.add(box, "box:1")
    elsewhere.add(box, "box:1")
    fake.inject("manifest", redirect(f"{elsewhere.url}/"), times=ALWAYS)
    elsewhere.inject("manifest", status(403), times=ALWAYS, method="HEAD")
    await case.succeeds(reference, box)


async def test_http_that_only_go_understands(case: Case, fake: FakeRegistry) -> None:
    """Manifests, layers and HEAD: containerd pulls from such a server, and so does the node."""
    box = runnable()
    reference = fake.add(box, "box:1")
    fake.inject("", odd_http(), times=ALWAYS)
    await case.succeeds(reference, box)


@pytest.mark.parametrize("made", [runnable, large], ids=["in one piece", "in parts"])
async def test_bodies_that_are_compressed_in_transit(case: Case, fake: FakeRegistry, made: Callable[[], Image]) -> None:
    """Blobs and manifests with a Content-Encoding that was not requested are decoded, and no parts are requested."""
    box = made()
    reference = fake.add(box, "box:1")
    packed = encoded(fake, "gzip", lambda data: gzip.compress(data, 1), parts=True)
    for where in ("manifest", "blob"):
        fake.inject(where, packed, times=ALWAYS)
    await case.succeeds(reference, box)


async def test_a_slow_mirror(case: Case, fake: FakeRegistry, elsewhere: FakeRegistry, place: Path) -> None:
    """The pull leaves it in the middle of the layer, and gets the rest from the next host."""
    box = runnable()
    layer = box.layers[1]
    fake.add(box, "box:1")
    elsewhere.add(box, "box:1")
    elsewhere.inject("blob", slow(20_000), times=ALWAYS)
    await case.succeeds("images.test/box:1", box, hosts=mirrors(place, elsewhere.url, fake.url))
    assert starts(fake, layer)[0] > 0


async def test_a_silent_mirror(case: Case, fake: FakeRegistry, elsewhere: FakeRegistry, place: Path) -> None:
    """Its timeout passes once."""
    box = runnable()
    fake.add(box, "box:1")
    elsewhere.inject("", silent(), times=ALWAYS)
    await case.succeeds("images.test/box:1", box, hosts=mirrors(place, elsewhere.url, fake.url))


async def test_a_mirror_with_wrong_bytes(case: Case, fake: FakeRegistry, elsewhere: FakeRegistry, place: Path) -> None:
    """Their number is right, and only the digest shows it. The next host is asked."""
    box = runnable()
    fake.add(box, "box:1")
    elsewhere.add(box, "box:1")
    elsewhere.inject(box.layers[1], other(bytes(len(box.blobs[box.layers[1]]))), times=ALWAYS)
    await case.succeeds("images.test/box:1", box, hosts=mirrors(place, elsewhere.url, fake.url))


async def test_wrong_bytes_that_cannot_be_unpacked(
    case: Case, fake: FakeRegistry, elsewhere: FakeRegistry, place: Path
) -> None:
    """They are unpacked while they arrive, so that fails before the digest shows why. The next host is asked."""
    box = runnable(kib=6000)
    fake.add(box, "box:1")
    elsewhere.add(box, "box:1")
    wrong = b"\x01" * len(box.blobs[box.layers[1]])
    elsewhere.inject(box.layers[1], other(wrong, chunked=True, pause=4.0), times=ALWAYS)
    await case.succeeds("images.test/box:1", box, hosts=mirrors(place, elsewhere.url, fake.url))


async def test_a_certificate_of_an_unknown_authority(case: Case, place: Path) -> None:
    """The error names the host and the cause; with the authority's certificate the pull works."""
    authority = Authority(place / "ca")
    async with FakeRegistry(tls=authority.server()) as registry:
        box = runnable()
        registry.add(box, "box:1")
        await case.fails(
            "images.test/box:1", re.escape(registry.host), "certificate", hosts=mirrors(place / "without", registry.url)
        )
        assert not registry.seen
        await case.succeeds(
            "images.test/box:1",
            box,
            hosts=mirrors(place / "with", registry.url, more=f'ca = "{authority.certificate}"\n'),
        )


# ---------------------------------------------------------------------------------------------- what does not pass


async def test_bytes_of_another_digest(case: Case, fake: FakeRegistry) -> None:
    """The registry always sends them. Nothing of them is kept: the next pull begins with the first byte."""
    box = runnable()
    reference, layer = fake.add(box, "box:1"), box.layers[1]
    fake.inject(layer, other(bytes(len(box.blobs[layer]))), times=ALWAYS)
    await case.fails(reference, re.escape(fake.host), layer, "digest")
    asked = len(gets(fake, layer))
    assert asked < 10
    fake.heal()
    await case.succeeds(reference, box)
    assert starts(fake, layer)[asked:] == [0]


@pytest.mark.parametrize("more", [-100, 100])
async def test_another_number_of_bytes(case: Case, fake: FakeRegistry, more: int) -> None:
    """Fewer or more than the descriptor says; the error has both numbers."""
    box = runnable()
    reference, layer = fake.add(box, "box:1"), box.layers[1]
    right = box.blobs[layer]
    fake.inject(layer, other(right + bytes(more) if more > 0 else right[:more]), times=ALWAYS)
    await case.fails(
        reference, re.escape(fake.host), layer, f"{len(right)}.*{len(right) + more}|{len(right) + more}.*{len(right)}"
    )


async def test_a_body_without_an_end(case: Case, fake: FakeRegistry) -> None:
    """It is cut at the size in its descriptor. Only a digest can show that the bytes are wrong: the next pull finds it,
    and fetches all of them.
    """
    box = runnable()
    reference, layer = fake.add(box, "box:1"), box.layers[1]
    fake.inject(layer, endless(), times=ALWAYS)
    await case.fails(reference, re.escape(fake.host), layer, resumable=True)

    async def quiet() -> bool:
        return not fake.answering

    await eventually_async(quiet, "bodies are still being sent", 2.0)
    fake.heal()
    await case.succeeds(reference, box)


@pytest.mark.parametrize("head", [True, False], ids=["HEAD", "no-HEAD"])
async def test_a_manifest_of_100_mb(case: Case, head: bool) -> None:
    """It is refused before it is in memory."""
    async with FakeRegistry(head=head) as registry:
        box = runnable()
        reference = registry.add(box, "box:1")
        data = box.blobs[box.digest] + b" " * (100 << 20)
        registry.manifests["box", "1"] = registry.manifests["box", digest_of(data)] = (MANIFEST, data)
        status = Path(f"/proc/{await asyncio.to_thread(case.node.pid, 'images')}/status")
        before = most_memory(status)
        await case.fails(reference, re.escape(registry.host), "manifest .* has .* bytes; no more than")
        assert most_memory(status) < before + 32


def most_memory(status: Path) -> int:
    """Return the peak memory of a process in MiB."""
    return next(int(line.split()[1]) >> 10 for line in status.read_text().splitlines() if line.startswith("VmHWM"))


# ---------------------------------------------------------------------------------------------- what is cancelled


async def test_a_pull_that_is_interrupted(case: Case, client: Client, fake: FakeRegistry) -> None:
    """Within a second after ^C no more is fetched. The bytes of the layer can be resumed, and nothing else is left."""
    box = runnable(kib=3000)
    reference, layer = fake.add(box, "box:1"), box.layers[1]
    fake.inject(layer, slow(2_000_000, 40_000), times=ALWAYS)
    begun = pulling(case.node, client, reference)
    await arriving(begun.ended, client, layer, 1 << 20)
    begun.interrupt()

    async def quiet() -> bool:
        return not fake.answering

    await eventually_async(quiet, "the node still fetches", 1.0)
    asked = len(fake.seen)
    assert await begun.ended
    await client.end_own_leases()
    await check_nothing_left(case.node, case.channel, client, resumable=True)
    assert await client.ingests() == [f"layer-{layer}"]
    assert not await client.blobs()
    there = await client.offset(f"layer-{layer}")
    fake.heal()
    await case.succeeds(reference, box)
    assert len(fake.seen) > asked
    assert starts(fake, layer) == [0, there]


# ---------------------------------------------------------------------------------------------- several at once


@pytest.mark.parametrize("many", [2, 10])
async def test_pulls_of_one_image_at_once(
    case: Case, client: Client, channel: Channel, fake: FakeRegistry, many: int
) -> None:
    """Each blob is fetched once, each layer is unpacked once, and all pulls succeed."""
    box = runnable(layers=2)
    reference = fake.add(box, "box:1")
    fake.inject("blob", slow(1_000_000, 50_000), times=ALWAYS)
    async with events.subscribed(
        channel.client(events.EVENTS), f"namespace=={client.namespace},topic~=^/snapshot/"
    ) as subscriber:
        async with asyncio.timeout(20):
            assert set(await asyncio.gather(*(pulling(case.node, client, reference).ended for _ in range(many)))) == {
                ""
            }
        told = Counter(
            (envelope.topic, chain_id(envelope))
            for envelope in await subscriber.seen()
            if envelope.topic in ("/snapshot/prepare", "/snapshot/commit")
        )
    unique = [box.digest, config_of(box), *box.layers[1:]]
    assert {digest: len(gets(fake, digest)) for digest in unique} == dict.fromkeys(unique, 1)
    assert told == {
        (topic, name): 1 for topic in ("/snapshot/prepare", "/snapshot/commit") for name in await client.snapshots()
    }
    await check_pulled(case.node, client, reference, box)
    await check_nothing_left(case.node, channel, client)


async def test_of_pulls_at_once_one_is_interrupted(
    case: Case, client: Client, channel: Channel, fake: FakeRegistry
) -> None:
    """It is the one that fetches, in the middle of a layer: another continues at its offset, and the others succeed."""
    box = runnable(kib=3000)
    reference, layer = fake.add(box, "box:1"), box.layers[1]
    fake.inject(layer, slow(2_000_000, 40_000), times=ALWAYS)
    first = pulling(case.node, client, reference)
    await arriving(first.ended, client, layer, 1)
    others = [pulling(case.node, client, reference) for _ in range(4)]
    await arriving(first.ended, client, layer, 1 << 20)
    first.interrupt()
    async with asyncio.timeout(20):
        assert await first.ended
        assert {await each.ended for each in others} == {""}
    await client.end_own_leases()
    first_start, second_start = starts(fake, layer)
    assert first_start == 0
    assert second_start >= 1 << 20
    await check_pulled(case.node, client, reference, box)
    await check_nothing_left(case.node, channel, client)


def chain_id(envelope: Envelope) -> str:
    """Return the chain id of the snapshot in an event, whose key was ``extract-UNIQUE CHAINID``."""
    kind = snapshot_pb2.SnapshotPrepare if envelope.topic.endswith("prepare") else snapshot_pb2.SnapshotCommit
    return str(kit_any.unpack(envelope.event, kind).key.partition(" ")[2])
