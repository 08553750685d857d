"""Pulls and pushes by Transfer on a whole node, against a registry that misbehaves."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from api.containerd.types.transfer import imagestore_pb2, registry_pb2
from api.containerd.types.transfer.progress_pb2 import Progress
from deploy.samples import busybox_layer, image, index
from services.content.local import LocalStore
from services.content.server import ContentServicer
from services.kit import errors, rpc
from services.kit.rpc import Channel
from services.oci.digests import chain_ids, digest_of
from tests.fake_registry import Auth, FakeRegistry, Fault, hang_up, other, silent, slow, status
from tests.peer import containerd, program2
from tests.pulls import (
    Client,
    Layer,
    answering,
    arriving,
    check_pulled,
    config_of,
    estargz,
    gets,
    gzipped,
    image_of,
    made,
    marked,
    zstd,
    zstd_chunked,
)
from tests.suites.transfers import HERE, UNPACK
from tests.support import Node, eventually_async, short_directory

pytestmark = [pytest.mark.node, pytest.mark.root]

SOURCE = "containerd.io/distribution.source.127.0.0.1"
_ids = itertools.count()


@pytest.fixture
def client(channel: Channel) -> Client:
    return Client(channel, f"pulls{os.getpid()}-{next(_ids)}")


# ---------------------------------------------------------------------------------------------- pulls


async def test_a_pull_stores_labels_and_unpacks(client: Client, fake: FakeRegistry) -> None:
    """Its progress shows this. No lease and no ingest is left."""
    box, told = made(), list[Progress]()
    reference = fake.add(box, "team/box:1")
    await client.pull(reference, told=told)
    assert (await client.images())[reference].target.digest == box.digest
    assert await client.blobs() == set(box.blobs)
    assert len(await client.snapshots()) == 2
    config = config_of(box)
    assert await client.labels(box.digest) == {
        SOURCE: "team/box",
        "containerd.io/gc.ref.content.config": config,
        "containerd.io/gc.ref.content.l.0": box.layers[0],
        "containerd.io/gc.ref.content.l.1": box.layers[1],
    }
    assert set(await client.labels(box.layers[0])) == {SOURCE, "containerd.io/uncompressed"}
    assert set(await client.labels(config)) == {SOURCE, "containerd.io/gc.ref.snapshot.overlayfs"}
    assert not await client.leases()
    assert not await client.ingests()
    assert [(p.event, p.name) for p in told if p.name in ("", reference)] == [
        (f"Resolving from OCI Registry ({reference})", ""),
        (f"Pulling from OCI Registry ({reference})", ""),
        ("fetching image content", reference),
        ("saved", reference),
        (f"Completed pull from OCI Registry ({reference})", ""),
        ("saved", reference),
    ]
    events = {p.event for p in told if p.name == f"layer-{box.layers[1]}"}
    assert {"waiting", "extracted"} <= events
    assert next(list(p.parents) for p in told if p.name == f"layer-{box.layers[1]}") == [f"manifest-{box.digest}"]
    await client.delete_image(reference)
    assert not await client.blobs()
    assert not await client.snapshots()


async def test_existing_blobs_are_not_fetched_again(client: Client, fake: FakeRegistry) -> None:
    """They are labelled with the second repository too."""
    box, told = made(), list[Progress]()
    await client.pull(fake.add(box, "one:1"), unpack=False)
    before = len(fake.asked("GET", "/blobs/"))
    await client.pull(fake.add(box, "two:1"), unpack=False, told=told)
    assert len(fake.asked("GET", "/blobs/")) == before
    assert (await client.labels(box.layers[0]))[SOURCE] == "one,two"
    assert {p.event for p in told if p.name == f"layer-{box.layers[0]}"} == {"waiting", "already exists"}


async def test_only_the_wanted_platforms_are_fetched(client: Client, fake: FakeRegistry) -> None:
    """Of an index, the index itself and the manifests of these platforms with all their children are fetched."""
    here, elsewhere = made(1), image([os.urandom(100)], architecture="mips64")
    both = index(here, elsewhere)
    reference = fake.add(both, "multi:1")
    await client.pull(reference)
    assert await client.blobs() == {both.digest, *here.blobs}
    await client.pull(reference, platforms=(), unpack=False)
    assert await client.blobs() == set(both.blobs)


@pytest.mark.parametrize("where", ["blob", "manifest"])
async def test_a_connection_that_is_closed_without_an_answer(client: Client, fake: FakeRegistry, where: str) -> None:
    """The request is repeated. (More faults of registries: test_node_pull_faults.py.)"""
    box = made(1)
    reference = fake.add(box, "box:1")
    fake.inject(where, hang_up(), times=1)
    await client.pull(reference)
    assert await client.blobs() == set(box.blobs)
    assert len(await client.snapshots()) == 1


async def test_wrong_bytes_are_fetched_again(client: Client, fake: FakeRegistry) -> None:
    """The next answer may be right."""
    box = made(1)
    reference, layer = fake.add(box, "box:1"), box.layers[0]
    fake.inject(layer, other(bytes(len(box.blobs[layer]))), method="GET")
    await client.pull(reference)
    assert ["Range" in headers for headers in gets(fake, layer)] == [False, False]
    assert await client.blobs() == set(box.blobs)


@pytest.mark.parametrize(
    ("name", "fault", "expected", "message"),
    [
        ("gone:1", None, errors.NotFound, "failed to resolve image: .*{host}.*404"),
        ("box:1", status(403), errors.PermissionDenied, "failed to resolve image: .*{host}.*403"),
    ],
    ids=["404", "403"],
)
async def test_an_error_names_host_and_cause(
    client: Client, fake: FakeRegistry, name: str, fault: Fault | None, expected: type[errors.NodeError], message: str
) -> None:
    """They are given as the registry gives them."""
    fake.add(made(1), "box:1")
    if fault is not None:
        fake.inject("manifest", fault, times=100)
    with pytest.raises(expected, match=message.format(host=fake.host)):
        await client.pull(f"{fake.host}/{name}")


async def test_layers_are_unpacked_while_others_arrive(client: Client, fake: FakeRegistry) -> None:
    """The lowest layer is a snapshot before the one above it has arrived."""
    box = made(2)
    reference = fake.add(box, "box:1")
    fake.inject(box.layers[1], silent(60, after=1000))
    pulling = asyncio.ensure_future(client.pull(reference))

    async def unpacked() -> bool:
        return len([info for info in (await client.snapshots()).values() if "extract-" not in info.name]) == 1

    await eventually_async(unpacked)
    assert box.layers[1] not in await client.blobs()
    pulling.cancel()
    await asyncio.wait((pulling,))


async def test_two_pulls_fetch_each_blob_once(client: Client, channel: Channel, fake: FakeRegistry) -> None:
    """The pulls are of one namespace, and of two."""
    box = made(2)
    reference = fake.add(box, "box:1")
    fake.inject("blob", slow(1_000_000, 50_000), times=100, method="GET")
    elsewhere = Client(channel, f"pulls{os.getpid()}-{next(_ids)}")
    await asyncio.gather(client.pull(reference), client.pull(reference, name="again"), elsewhere.pull(reference))
    assert [len(gets(fake, digest)) for digest in (*box.layers, config_of(box))] == [1, 1, 1]
    assert set(await client.images()) == {reference, "again"}
    assert await elsewhere.blobs() == set(box.blobs)


@pytest.mark.parametrize("made_as", [zstd, estargz, zstd_chunked])
async def test_estargz_and_zstd_chunked_layers_are_unpacked_as_gzip_and_zstd(
    node: Node, client: Client, fake: FakeRegistry, made_as: Callable[[bytes], Layer]
) -> None:
    """eStargz is gzip and zstd:chunked is zstd, and they are unpacked as such; snapshotters get the same labels as from
    containerd.
    """
    layers = [gzipped(busybox_layer()), made_as(marked())]
    box = image_of(layers)
    reference = fake.add(box, "box:1")
    await client.pull(reference)
    await check_pulled(node, client, reference, box)
    assert [(await client.labels(digest_of(layer.data)))["containerd.io/uncompressed"] for layer in layers] == [
        digest_of(layer.raw) for layer in layers
    ]
    lower, upper = chain_ids([digest_of(layer.raw) for layer in layers])
    labels = {name: dict(info.labels) for name, info in (await client.snapshots()).items()}
    more = {key: value for key, value in layers[1].annotations.items() if key.startswith("containerd.io/snapshot/")}
    assert bool(more) == (made_as is estargz)
    assert labels == {
        lower: {"containerd.io/snapshot.ref": lower, "containerd.io/snapshot/diff-id": digest_of(layers[0].raw)},
        upper: {
            "containerd.io/snapshot.ref": upper,
            "containerd.io/snapshot/diff-id": digest_of(layers[1].raw),
            "containerd.io/snapshot/parent-chain-id": lower,
            **more,
        },
    }
    if daemon := program2("containerd"):
        with short_directory() as directory, containerd(directory, daemon) as socket:
            async with Channel(socket) as channel:
                theirs = Client(channel, "theirs")
                await theirs.pull(reference)
                newer = {"containerd.io/snapshot/diff-id", "containerd.io/snapshot/parent-chain-id"}  # than 2.1
                assert {name: dict(info.labels) for name, info in (await theirs.snapshots()).items()} == {
                    name: {key: value for key, value in found.items() if key not in newer}
                    for name, found in labels.items()
                }
                for digest in box.blobs:
                    assert await client.labels(digest) == await theirs.labels(digest)


# ---------------------------------------------------------------------------------------------- credentials and hosts


@pytest.mark.parametrize("scheme", ["bearer", "basic"])
async def test_credentials_are_the_clients(client: Client, scheme: str) -> None:
    """They are requested on its stream once the registry wants them; without a stream there are none."""
    async with FakeRegistry(auth=Auth(scheme, "me", "secret")) as registry:
        box = made(1)
        reference = registry.add(box, "box:1")
        async with answering(client, "me", "secret") as (stream, hosts):
            await client.pull(reference, auth=stream)
        assert set(hosts) == {registry.host}
        async with answering(client, "me", "secret") as (stream, _):
            await client.push(reference, f"{registry.host}/copy:1", auth=stream)
        assert ("copy", "1") in registry.manifests
        for again in range(2):
            with pytest.raises(errors.NodeError, match=f"{registry.host}"):
                if again:
                    async with answering(client, "me", "wrong") as (stream, _):
                        await client.pull(reference, auth=stream)
                else:
                    await client.pull(reference)


async def test_hosts_are_the_requests(client: Client, fake: FakeRegistry, place: Path) -> None:
    """A hosts.toml in the directory that the client names is used."""
    box = made(1)
    fake.add(box, "box:1")
    (place / "example.invalid").mkdir()
    (place / "example.invalid" / "hosts.toml").write_text(
        f'[host."{fake.url}"]\n  capabilities = ["pull", "resolve"]\n'
    )
    source = registry_pb2.OCIRegistry(
        reference="example.invalid/box:1", resolver=registry_pb2.RegistryResolver(host_dir=str(place))
    )
    await client.transfer(source, imagestore_pb2.ImageStore(name="x", unpacks=[UNPACK], platforms=[HERE]))
    assert (await client.labels(box.layers[0]))["containerd.io/distribution.source.example.invalid"] == "box"


# ---------------------------------------------------------------------------------------------- pushes


async def test_a_push_sends_blobs_before_the_documents_that_name_them(client: Client, fake: FakeRegistry) -> None:
    """An index and all its children are pushed, under its tag alone; then it can be pulled from there. Progress is as
    ctr shows it.
    """
    both, told = index(made(2), image([os.urandom(100)], architecture="mips64")), list[Progress]()
    await client.pull(fake.add(both, "from:1"), name="pushed", platforms=(), unpack=False)
    async with FakeRegistry() as target:
        reference = f"{target.host}/to:1"
        await client.push("pushed", reference, told=told)
        assert target.manifests["to", "1"][1] == both.blobs[both.digest]
        assert {name for repository, name in target.manifests} == {
            "1",
            both.digest,
            *(d["digest"] for d in json.loads(both.blobs[both.digest])["manifests"]),
        }
        puts = [seen.path for seen in target.asked("PUT")]
        assert puts == sorted(puts, key=lambda path: ("/manifests/" in path, path.endswith("/1")))
        assert [(p.event, p.name) for p in told if p.name in ("", "pushed")] == [
            (f"Pushing to OCI Registry ({reference})", ""),
            ("pushing content", "pushed"),
            ("pushed content", "pushed"),
            (f"Completed push to OCI Registry ({reference})", ""),
            ("pushed content", "pushed"),
        ]
        before = len(target.asked("PUT"))
        await client.push("pushed", reference)
        assert len(target.asked("PUT")) == before
        await client.pull(reference, name="back", platforms=(), unpack=False)


async def test_a_push_mounts_blobs_that_the_host_has(client: Client, fake: FakeRegistry) -> None:
    """The labels name the repository to mount from; no byte is sent."""
    box, told = made(2), list[Progress]()
    await client.pull(fake.add(box, "team/box:1"), name="box", unpack=False)
    await client.push("box", f"{fake.host}/team/copy:1", told=told)
    assert not fake.asked("PUT", "/blobs/")
    assert len(fake.asked("POST", "from=team%2Fbox") or fake.asked("POST", "from=team/box")) == 3
    assert {p.event for p in told if p.name == f"layer-{box.layers[0]}"} == {"waiting", "already exists"}


async def test_a_push_of_one_platform(client: Client, fake: FakeRegistry) -> None:
    """The other platforms need not be on the node."""
    here = made(1)
    both = index(here, image([os.urandom(100)], architecture="mips64"))
    await client.pull(fake.add(both, "from:1"), name="one", unpack=False)
    with pytest.raises(errors.NotFound):
        await client.push("one", f"{fake.host}/to:1")
    await client.push("one", f"{fake.host}/to:1", platforms=[HERE])
    assert digest_of(fake.manifests["to", "1"][1]) == both.digest


# ---------------------------------------------------------------------------------------------- another content service


async def test_a_content_service_without_files_is_written_by_its_streams(fake: FakeRegistry, place: Path) -> None:
    """An interrupted pull is resumed there too, wrong bytes are dropped, and a push reads the streams."""
    store = LocalStore(place / "elsewhere")
    address = place / "c.sock"
    with short_directory() as directory:
        node = Node(directory, config=f'[proxy_plugins.other]\ntype = "content"\naddress = "{address}"\n')
        async with rpc.serving(address, [ContentServicer(store)]):
            try:
                await asyncio.to_thread(node.up)
                async with Channel(node.socket) as channel:
                    client = Client(channel, "streamed")
                    box = made(2, kib=2000)
                    reference, layer = fake.add(box, "box:1"), box.layers[0]
                    fake.inject(layer, silent(60, after=1_200_000))
                    pulling = asyncio.ensure_future(client.pull(reference))
                    await arriving(pulling, client, layer, 1_000_000)
                    pulling.cancel()
                    await asyncio.wait((pulling,))
                    await client.pull(reference)
                    assert int(gets(fake, layer)[-1]["Range"].removeprefix("bytes=").split("-")[0]) >= 1_000_000
                    assert len([name for name in await client.snapshots() if not name.startswith("extract-")]) == 2
                    wrong = made(1)
                    fake.inject(wrong.layers[0], other(bytes(len(wrong.blobs[wrong.layers[0]]))), method="GET")
                    await client.pull(fake.add(wrong, "wrong:1"))
                    assert await client.blobs() == {*box.blobs, *wrong.blobs}
                    async with FakeRegistry() as target:
                        await client.push(reference, f"{target.host}/to:1")
                        assert target.manifests["to", "1"][1] == box.blobs[box.digest]
            finally:
                await asyncio.to_thread(node.clear)
                store.close()
