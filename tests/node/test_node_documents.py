"""Images from untrusted sources on a node: documents that are too large, oddly written, or that set what an image must
not set.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from api.containerd.services.images.v1 import images_pb2, images_stubs
from api.containerd.types.transfer import imagestore_pb2
from deploy.samples import Image, busybox_layer
from services.content.remote import RemoteStore
from services.images.documents import manifests
from services.kit import errors
from services.kit.rpc import Channel
from services.oci import digests
from services.oci.digests import Digest, digest_of
from services.oci.media_types import CONFIG, INDEX, LAYER, MANIFEST
from tests.fake_registry import FakeRegistry
from tests.pulls import MACHINE, Client, check_nothing_left, gzipped, made, marked
from tests.suites.transfers import NAMED
from tests.support import Node

pytestmark = [pytest.mark.node, pytest.mark.root]

_ids = itertools.count()
BASE = "sha256:" + "1" * 64
BUSYBOX = gzipped(busybox_layer())


@pytest.fixture
def client(channel: Channel) -> Client:
    return Client(channel, f"documents{os.getpid()}-{next(_ids)}")


def written(document: Any) -> bytes:
    return document if isinstance(document, bytes) else json.dumps(document).encode()


def described(media_type: str, data: bytes, **more: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest_of(data), "size": len(data), **more}


def box(layers: list[dict[str, Any]] | None = None, config: Any = None, *blobs: bytes) -> Image:
    """Put an image into an index as its only manifest, so that resolving the name does not parse the image."""
    config = written(
        {"architecture": MACHINE, "os": "linux", "rootfs": {"type": "layers", "diff_ids": [BASE]}}
        if config is None
        else config
    )
    manifest = written(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": described(CONFIG, config),
            "layers": [{"mediaType": LAYER, "digest": BASE, "size": 1}] if layers is None else layers,
        }
    )
    return index_of(manifest, config, *blobs)


def index_of(manifest: bytes, *blobs: bytes, media_type: str = MANIFEST) -> Image:
    root = written({"schemaVersion": 2, "mediaType": INDEX, "manifests": [described(media_type, manifest)]})
    return Image(INDEX, digest_of(root), {digest_of(data): data for data in (root, manifest, *blobs)})


def served(registry: FakeRegistry, image: Image, media_types: Mapping[bytes, str] | None = None) -> str:
    """Return the reference of an image whose documents may be anything."""
    name = f"box{uuid.uuid4().hex[:8]}"
    for digest, data in image.blobs.items():
        registry.add_blob(name, data)
        registry.manifests[name, digest] = (INDEX if b'"manifests"' in data else MANIFEST, data)
    registry.manifests[name, "1"] = (image.media_type, image.blobs[image.digest])
    return f"{registry.host}/{name}:1"


def nested(depth: int) -> Image:
    """Return so many indexes, each in the next."""
    blobs = [written({"schemaVersion": 2, "mediaType": INDEX, "manifests": []})]
    for _ in range(depth - 1):
        blobs.append(written({"schemaVersion": 2, "mediaType": INDEX, "manifests": [described(INDEX, blobs[-1])]}))
    return Image(INDEX, digest_of(blobs[-1]), {digest_of(data): data for data in blobs})


@pytest.mark.parametrize(
    ("made", "kind", "pattern"),
    [
        (
            lambda: box([{"mediaType": LAYER, "digest": BASE, "size": 1 << 62}]),
            errors.InvalidArgument,
            rf"{BASE}: invalid descriptor size {1 << 62} ",
        ),
        (
            lambda: box([{"mediaType": LAYER, "digest": BASE, "size": -1}]),
            errors.InvalidArgument,
            rf"manifest sha256:\w+: {BASE}: invalid descriptor size -1",
        ),
        (
            lambda: box([{"mediaType": "application/\x1b[2J", "digest": BASE, "size": 10}]),
            errors.InvalidArgument,
            rf'{BASE}: "application/\\u001b\[2J" is no media type',
        ),
        (
            lambda: box([{"mediaType": LAYER, "digest": BASE, "size": 1 << 63}]),
            errors.Unknown,
            r"manifest sha256:\w+: layers\[0\]\.size: a number that is no integer",
        ),
        (
            lambda: box([{"mediaType": LAYER, "digest": BASE, "size": 1}] * 501),
            errors.ResourceExhausted,
            r"manifest sha256:\w+ has 501 layers \(limit 500\)",
        ),
        (
            lambda: box([{"mediaType": LAYER, "digest": "sha256:1/../..", "size": 1}]),
            errors.InvalidArgument,
            r'manifest sha256:\w+: "sha256:1/../..": invalid checksum digest length',
        ),
        (lambda: index_of(b"[" * 5000), errors.Unknown, r"manifest sha256:\w+: unexpected end of JSON input"),
        (lambda: index_of(b'{"x":' + b"[" * 20_000), errors.Unknown, r"manifest sha256:\w+: exceeded max depth"),
        (lambda: index_of(b"<html>"), errors.Unknown, r'manifest sha256:\w+: invalid character "<" at byte 0'),
        (
            lambda: box(config=b'{"os":"\xff'),
            errors.Unknown,
            r"unmarshal image config sha256:\w+: unexpected end of JSON input",
        ),
        (
            lambda: box(config={"rootfs": {"diff_ids": ["x"]}}),
            errors.InvalidArgument,
            r'image config sha256:\w+: diff id "x": invalid checksum digest format',
        ),
        (
            lambda: box(config={"rootfs": {"diff_ids": []}}),
            errors.Unknown,
            r"image config sha256:\w+: number of layers and diffIDs don't match: 1 != 0",
        ),
        (
            lambda: box(config=b" " * ((8 << 20) + 1)),
            errors.ResourceExhausted,
            r"document sha256:\w+ is larger than 8388608 bytes",
        ),
        (
            lambda: box([{"mediaType": LAYER, "digest": BASE, "size": 0}]),
            errors.InvalidArgument,
            rf"box\w+: unable to fetch descriptor \({BASE}\) which reports content size of zero",
        ),
        (lambda: nested(40), errors.ResourceExhausted, r"sha256:\w+ is in 33 indexes, each in the next \(limit 32\)"),
    ],
    ids=[
        "a layer of 2^62 bytes",
        "of -1",
        "a media type",
        "of 2^63",
        "501 layers",
        "a digest",
        "brackets",
        "depth",
        "HTML",
        "a config",
        "a diff id",
        "a layer too many",
        "a large config",
        "a layer of nothing",
        "40 indexes",
    ],
)
async def test_a_document_that_is_no_image_is_refused(
    node: Node,
    channel: Channel,
    client: Client,
    fake: FakeRegistry,
    made: Callable[[], Image],
    kind: type[errors.NodeError],
    pattern: str,
) -> None:
    """The error comes at once and names the host and the document; nothing is left."""
    reference = served(fake, made())
    async with asyncio.timeout(15):
        with pytest.raises(kind) as caught:
            await client.pull(reference)
    assert re.search(pattern, str(caught.value)), caught.value
    assert fake.host in str(caught.value)
    assert not await client.images()
    await check_nothing_left(node, channel, client)


async def test_a_blob_that_is_named_many_times_is_fetched_once(client: Client, fake: FakeRegistry) -> None:
    """Ten indexes that name the next one twice, above an image, and that on two ways: 5,119 references, but only
    fourteen documents and blobs. An index that is named both by another index and by that one's parent is pushed before
    both.
    """
    bottom = made(1)
    at = written(
        {"schemaVersion": 2, "mediaType": INDEX, "manifests": [described(MANIFEST, bottom.blobs[bottom.digest])]}
    )
    blobs = {**bottom.blobs, digest_of(at): at}
    for _ in range(9):
        at = written({"schemaVersion": 2, "mediaType": INDEX, "manifests": [described(INDEX, at)] * 2})
        blobs[digest_of(at)] = at
    above = written({"schemaVersion": 2, "mediaType": INDEX, "manifests": [described(INDEX, at)]})
    top = written(
        {"schemaVersion": 2, "mediaType": INDEX, "manifests": [described(INDEX, at), described(INDEX, above)]}
    )
    reference = served(fake, Image(INDEX, digest_of(top), {**blobs, digest_of(above): above, digest_of(top): top}))
    async with asyncio.timeout(15):
        await client.pull(reference)
        await client.push(reference, f"{fake.host}/again:1")
        archive = await client.export(reference, skip_compatibility_manifest=True)
        await client.import_(archive, imagestore_pb2.ImageStore(name="again", extra_references=[NAMED]))
    pushed = [digest for repository, digest in fake.manifests if repository == "again" and digest.startswith("sha256:")]
    assert pushed[0] == bottom.digest
    assert pushed[-3:] == [digest_of(at), digest_of(above), digest_of(top)]
    assert len(pushed) == len({*pushed}) == 13


async def test_an_odd_image_that_containerd_pulls(node: Node, client: Client, fake: FakeRegistry) -> None:
    """Names in other letters, duplicates, unknown fields of any depth and half a surrogate pair are accepted. Ids of
    the host, which an image must not choose, have no effect: its directories are root's.
    """
    layer = gzipped(marked(kib=1))
    prefix = "containerd.io/snapshot/"
    annotations = json.dumps(
        {f"{prefix}uidmapping": "0:100000:65536", f"{prefix}gidmapping": "0:100000:65536", f"{prefix}mine": "kept"}
    )
    config = f"""{{"Architecture":"{MACHINE}","OS":"linux","config":{{"Cmd":["sh"]}},"x-mine":{"[" * 3000}{"]" * 3000},
                 "RootFS":{{"TYPE":"layers","Diff_IDs":["{digest_of(BUSYBOX.raw)}","{digest_of(layer.raw)}"]}}}}""".encode()
    manifest = f"""{{"schemaVersion":2,"MEDIATYPE":"{MANIFEST}","Config":{{"mediaType":"{CONFIG}"}},"config":{{"Digest":"{digest_of(config)}","size":1,"size":{len(config)}}},
                   "annotations":{{"x":"\\ud800"}},"LAYERS":[{{"mediaType":"{BUSYBOX.media_type}","digest":"{digest_of(BUSYBOX.data)}","size":{len(BUSYBOX.data)}}},
                   {{"MediaType":"{layer.media_type}","digest":"{digest_of(layer.data)}","size":{len(layer.data)},"annotations":{annotations}}}]}}""".encode()
    reference = served(fake, index_of(manifest, config, BUSYBOX.data, layer.data))
    async with asyncio.timeout(15):
        await client.pull(reference)
    await asyncio.to_thread(
        node.ctr,
        "run",
        "--rm",
        reference,
        f"c{uuid.uuid4().hex[:8]}",
        "grep",
        "-qE",
        "^[0-9a-f]{32}$",
        "/mark",
        namespace=client.namespace,
    )
    top = digests.chain_ids([digest_of(BUSYBOX.raw), digest_of(layer.raw)])[-1]
    labels = (await client.snapshots())[top].labels
    assert {
        key: value
        for key, value in labels.items()
        if key.startswith(prefix) and not key.endswith(("diff-id", "parent-chain-id"))
    } == {f"{prefix}mine": "kept"}
    assert {os.stat(each).st_uid for each in (node.root / "snapshots").glob("overlayfs/snapshots/*/fs")} == {0}


async def test_splitd_images_shows_whatever_is_there(node: Node, channel: Channel, client: Client) -> None:
    """A client may store a thousand indexes, each in the next, a thousand million ways to one of them, and documents
    that are no JSON: each affects at most its own image, and the others are listed.
    """
    content = RemoteStore(channel, client.headers)
    twice = [written({"schemaVersion": 2, "mediaType": INDEX, "manifests": []})]
    for _ in range(30):
        twice.append(written({"schemaVersion": 2, "mediaType": INDEX, "manifests": [described(INDEX, twice[-1])] * 2}))
    deep = nested(1050)  # more than Python has frames for
    many = written(
        {"schemaVersion": 2, "mediaType": INDEX, "manifests": [described(MANIFEST, b"")] * (manifests.REFERENCES + 1)}
    )
    images = {
        "deep": (deep.digest, list(deep.blobs.values())),
        "twice": (digest_of(twice[-1]), twice),
        "junk": (digest_of(b"[[[["), [b"[[[["]),
        "many": (digest_of(many), [many]),
    }
    turn = asyncio.Semaphore(16)

    async def store(data: bytes) -> None:
        digest = Digest.parse(digest_of(data))
        async with turn:
            writer = await content.writer(str(digest), len(data), digest)
            await writer.write(data)
            await writer.commit(len(data), digest, {"containerd.io/gc.root": "1"})

    await asyncio.gather(*map(store, {data for _, blobs in images.values() for data in blobs}))
    records = channel.client(images_stubs.IMAGES)
    for name, (digest, _) in images.items():
        record = images_pb2.Image(name=f"stranger/{name}:1")
        record.target.media_type, record.target.digest, record.target.size = INDEX, digest, 1
        await records.Create(images_pb2.CreateImageRequest(image=record), headers=client.headers)
    shown = await asyncio.to_thread(node.splitd, "images", "-n", client.namespace, "list", "--json")
    found = {each["name"]: each.get("trouble", "") for each in json.loads(shown.stdout)}
    assert found == {
        "stranger/deep:1": "",
        "stranger/twice:1": "",
        "stranger/junk:1": f"index {digest_of(b'[[[[')}: unexpected end of JSON input",
        "stranger/many:1": f"index {digest_of(many)}: too many descriptors (limit 10000): resource exhausted",
    }
