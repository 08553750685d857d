"""The registry client on Debian's own registry, to confirm the tests on the fake."""

from __future__ import annotations

import asyncio
import json

import pytest

from deploy.samples import Registry as DockerRegistry
from deploy.samples import image, index
from services.images.registry.client import Registry
from services.images.registry.upload import Pushed
from services.kit import errors
from services.oci.descriptors import Descriptor
from services.oci.media_types import INDEX
from tests.service.images.registry.pulls import LAYER, described, fetched
from tests.service.images.registry.test_upload import source

pytestmark = pytest.mark.once


async def test_pull(registry: DockerRegistry, quick: Registry) -> None:
    """An index, its manifest and its layers are pulled, whole and in parts."""
    what = index(image([LAYER]))
    name = await asyncio.to_thread(registry.push, what, "pulled:1")
    client = quick.client()
    root = await client.resolve(name)
    assert (root.digest, root.media_type) == (what.digest, INDEX)
    child = json.loads(await client.manifest(name, root))["manifests"][0]
    manifest = json.loads(await client.manifest(name, Descriptor(child["mediaType"], child["digest"], child["size"])))
    for each in (manifest["config"], *manifest["layers"]):
        expected = what.blobs[each["digest"]]
        descriptor = Descriptor(each["mediaType"], each["digest"], each["size"])
        blob, body = await fetched(client, name, descriptor)
        assert (blob, body.ranges) == (expected, True)
        assert (await fetched(client, name, descriptor, 5, 20))[0] == expected[5:25]
    with pytest.raises(errors.NotFound, match="manifest unknown"):
        await client.manifest(name, described(b"{}", INDEX))
    with pytest.raises(errors.NotFound):
        await client.resolve(f"{registry.host}/absent:1")


@pytest.mark.parametrize("piece", [0, 400_000], ids=["at once", "in pieces"])
async def test_push(registry: DockerRegistry, quick: Registry, piece: int) -> None:
    """Uploads, a mount, and manifests by digest and by tag; then a pull of them."""
    what = index(image([LAYER + bytes([piece % 251])]))
    name = f"{registry.host}/pushed/{piece}:1"
    client = quick.client()
    manifests = [data for data in what.blobs.values() if data.startswith(b"{") and b"schemaVersion" in data]
    for data in what.blobs.values():
        if data not in manifests:
            assert await client.push_blob(name, described(data), source(data), piece=piece) is Pushed.UPLOADED
            assert await client.push_blob(name, described(data), source(data)) is Pushed.EXISTED
            mounted = await client.push_blob(
                f"{registry.host}/mounted/{piece}:1", described(data), source(data), mount_from=[f"pushed/{piece}"]
            )
            assert mounted is Pushed.MOUNTED
    root = described(what.blobs[what.digest], INDEX)
    for data in sorted(manifests, key=lambda each: b'"manifests"' in each):
        media_type = json.loads(data)["mediaType"]
        await client.push_manifest(f"{name}@{root.digest}", described(data, media_type), data)
    assert await client.resolve(name) == root
    assert await client.exists(name, root)


async def test_a_broken_upload(registry: DockerRegistry, quick: Registry) -> None:
    """The source fails in the middle; then the same blob is pushed again."""
    data = LAYER[7:] + b"broken"

    async def read(offset: int):
        yield data[:300_000]
        raise OSError("disk on fire")

    client = quick.client()
    with pytest.raises(OSError, match="disk on fire"):
        await client.push_blob(f"{registry.host}/broken:1", described(data), read)
    assert await client.push_blob(f"{registry.host}/broken:1", described(data), source(data)) is Pushed.UPLOADED
