"""Pushing: existing blobs are not sent, broken uploads are resumed, and the registry has the image in the end."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.images.registry.client import Registry
from services.images.registry.credentials import Credentials
from services.images.registry.upload import Pushed, Read
from services.kit import errors
from services.oci.media_types import MANIFEST
from tests.fake_registry import Auth, FakeRegistry, deaf, hang_up, redirect, status, taking
from tests.service.images.registry.conftest import HASTY, QUICK
from tests.service.images.registry.pulls import LAYER, certs, described, small_image
from tests.support import within

pytestmark = pytest.mark.once

LAYER_DESCRIPTOR = described(LAYER)
PIECE = 64 * 1024


def source(data: bytes, piece: int = PIECE) -> Read:
    """A blob's bytes from any offset; ``source.offsets`` are the requested ones."""

    async def read(offset: int) -> AsyncIterator[bytes]:
        read.offsets.append(offset)  # type: ignore[attr-defined]
        for at in range(offset, len(data), piece):
            yield data[at : at + piece]

    read.offsets = []  # type: ignore[attr-defined]
    return read


@pytest.fixture
def name(fake: FakeRegistry) -> str:
    return f"{fake.host}/mine/box:1"


@pytest.mark.parametrize("piece", [0, 300_000], ids=["at once", "in pieces"])
@pytest.mark.parametrize("relative", [False, True], ids=["absolute", "relative"])
async def test_a_blob_is_uploaded(quick: Registry, fake: FakeRegistry, name: str, piece: int, relative: bool) -> None:
    """In one piece or in several, wherever the upload's Location is; the second push finds the blob."""
    fake.relative = relative
    client = quick.client()
    assert await client.push_blob(name, LAYER_DESCRIPTOR, source(LAYER), piece=piece) is Pushed.UPLOADED
    assert fake.blobs[str(LAYER_DESCRIPTOR.digest)] == LAYER
    assert len(fake.asked("PATCH")) == (4 if piece else 0)
    assert await client.push_blob(name, LAYER_DESCRIPTOR, source(LAYER), piece=piece) is Pushed.EXISTED
    assert await client.exists(name, LAYER_DESCRIPTOR)


async def test_an_empty_blob(quick: Registry, fake: FakeRegistry, name: str) -> None:
    """A blob of no bytes is pushed too."""
    assert await quick.client().push_blob(name, described(b""), source(b"")) is Pushed.UPLOADED
    assert fake.blobs[str(described(b"").digest)] == b""


async def test_an_image(quick: Registry, fake: FakeRegistry, name: str) -> None:
    """Blobs, then the manifest by tag; a child of an index by its digest."""
    image = small_image()
    client = quick.client()
    manifest = image.blobs[image.digest]
    root = described(manifest, MANIFEST)
    assert not await client.exists(name, root)
    for data in image.blobs.values():
        if data is not manifest:
            await client.push_blob(name, described(data), source(data))
    await client.push_manifest(name, root, manifest)
    assert await client.exists(name, root)
    assert fake.manifests["mine/box", "1"] == (MANIFEST, manifest)
    child = described(b'{"schemaVersion":2}', MANIFEST)
    await client.push_manifest(f"{name}@{root.digest}", child, b'{"schemaVersion":2}')
    assert ("mine/box", str(child.digest)) in fake.manifests
    assert fake.manifests["mine/box", "1"][1] == manifest


@pytest.mark.parametrize("told", [True, False], ids=["digest told", "digest not told"])
async def test_a_registry_without_head(quick: Registry, fake: FakeRegistry, name: str, told: bool) -> None:
    """Blobs, and manifests by digest and by tag, are checked by GET; if the answer has no digest, its body is
    hashed.
    """
    fake.head = False
    if not told:

        async def untold(request, serve):
            answer = await serve()
            answer.headers.pop("Docker-Content-Digest", None)
            return answer

        fake.inject("manifest", untold, times=1 << 30)
    image, client = small_image(), quick.client()
    manifest = image.blobs[image.digest]
    root = described(manifest, MANIFEST)
    assert not await client.exists(name, root)
    for data in image.blobs.values():
        if data is not manifest:
            assert [await client.push_blob(name, described(data), source(data)) for _ in range(2)] == [
                Pushed.UPLOADED,
                Pushed.EXISTED,
            ]
    await client.push_manifest(name, root, manifest)
    assert await client.exists(name, root)
    assert await client.exists(f"{fake.host}/mine/box@{root.digest}", root)
    assert not await client.exists(name, described(b"another", MANIFEST))
    assert (await client.resolve(name)).digest == root.digest


async def test_a_blob_is_mounted(quick: Registry, fake: FakeRegistry, name: str) -> None:
    """It is mounted from another repository, with a token for both; if that one does not have it, it is uploaded."""
    fake.auth = Auth(user="me", password="s3cret")
    fake.add_blob("base/image", LAYER)

    async def credentials(host: str) -> Credentials:
        return Credentials("me", "s3cret")

    client = quick.client(credentials)
    assert await client.push_blob(name, LAYER_DESCRIPTOR, source(LAYER), mount_from=["base/image"]) is Pushed.MOUNTED
    scopes = list(fake.auth.tokens.values())
    assert {"repository:mine/box:push", "repository:mine/box:pull", "repository:base/image:pull"} <= scopes[-1][1]
    other = described(LAYER[1:])
    assert await client.push_blob(name, other, source(LAYER[1:]), mount_from=["base/image"]) is Pushed.UPLOADED
    assert len(fake.uploads) == 0


async def test_a_repository_that_may_not_be_read_is_no_obstacle(quick: Registry, fake: FakeRegistry, name: str) -> None:
    """A refused mount becomes an upload."""
    fake.inject("from=", status(403), times=10)
    fake.inject("blobs/uploads/", status(403), times=1, method="POST")
    assert (
        await quick.client().push_blob(name, LAYER_DESCRIPTOR, source(LAYER), mount_from=["base/image"])
        is Pushed.UPLOADED
    )


@pytest.mark.parametrize("after", [100_000, 1])
async def test_an_upload_that_breaks_goes_on(quick: Registry, fake: FakeRegistry, name: str, after: int) -> None:
    """It goes on at the registry's offset: bytes that it has are not sent again."""
    fake.inject("uploads/", taking(fake, after), method="PUT")
    read = source(LAYER)
    with within(8):
        assert await quick.client().push_blob(name, LAYER_DESCRIPTOR, read) is Pushed.UPLOADED
    assert fake.blobs[str(LAYER_DESCRIPTOR.digest)] == LAYER
    assert read.offsets == [0, 100_000 if after > 1 else 0]  # type: ignore[attr-defined]


async def test_an_upload_that_is_forgotten_begins_anew(quick: Registry, fake: FakeRegistry, name: str) -> None:
    """A registry that was restarted and does not know the upload gets all bytes again."""
    fake.inject("uploads/", hang_up(), method="PUT")
    fake.inject("uploads/", status(404), method="GET")
    with within(8):
        assert await quick.client().push_blob(name, LAYER_DESCRIPTOR, source(LAYER)) is Pushed.UPLOADED
    assert len(fake.asked("POST")) == 2


async def test_an_upload_elsewhere_is_told_nothing_of_us(
    quick: Registry, fake: FakeRegistry, other: FakeRegistry, name: str
) -> None:
    """A Location or a redirect on another host gets the bytes, and no credentials."""
    fake.auth = Auth("basic", "me", "s3cret")

    async def credentials(host: str) -> Credentials:
        return Credentials("me", "s3cret")

    other.uploads["theirs"] = bytearray()
    fake.inject("blobs/uploads/", status(202, Location=f"{other.url}/v2/mine/box/blobs/uploads/theirs"), method="POST")
    assert (
        await quick.client(credentials, headers={"X-Mine": "1"}).push_blob(name, LAYER_DESCRIPTOR, source(LAYER))
        is Pushed.UPLOADED
    )
    assert other.blobs[str(LAYER_DESCRIPTOR.digest)] == LAYER
    other.uploads["again"] = bytearray()
    fake.inject(
        "blobs/uploads/",
        redirect(f"{other.url}/v2/mine/box/blobs/uploads/again?digest={described(LAYER[1:]).digest}"),
        method="PUT",
    )
    assert await quick.client(credentials).push_blob(name, described(LAYER[1:]), source(LAYER[1:])) is Pushed.UPLOADED
    assert len(other.asked("PUT")) == 2
    assert all("Authorization" not in each.headers and "X-Mine" not in each.headers for each in other.seen)


async def test_503_on_the_way(quick: Registry, fake: FakeRegistry, name: str) -> None:
    """Any step may fail once."""
    for method in ("HEAD", "POST", "PUT"):
        fake.inject("blobs/", status(503), method=method)
    with within(8):
        assert await quick.client().push_blob(name, LAYER_DESCRIPTOR, source(LAYER)) is Pushed.UPLOADED


async def test_a_registry_that_stops_taking_bytes(quick: Registry, fake: FakeRegistry, name: str) -> None:
    """An upload that stalls is an error that says so; waiting for the source does not count."""
    fake.inject("uploads/", deaf(), times=100, method="PUT")
    big = bytes(64 << 20)
    with within(8), pytest.raises(errors.Unavailable, match=f"{fake.host}: took no more bytes for 0.6 s"):
        await quick.client().push_blob(name, described(big), source(big, 1 << 20))


async def test_a_slow_source_is_no_stall(quick: Registry, fake: FakeRegistry, name: str) -> None:
    """Time that the source takes is not counted as the registry's."""
    import asyncio

    async def read(offset: int) -> AsyncIterator[bytes]:
        yield LAYER[offset : offset + 1000]
        await asyncio.sleep(1.0)
        yield LAYER[offset + 1000 :]

    assert await quick.client().push_blob(name, LAYER_DESCRIPTOR, read) is Pushed.UPLOADED


async def test_a_source_that_fails(quick: Registry, fake: FakeRegistry, name: str) -> None:
    """The caller gets the source's own error at once; a source that ends early is an error too."""

    async def read(offset: int) -> AsyncIterator[bytes]:
        yield LAYER[:1000]
        raise errors.NotFound("content x")

    begun = time.monotonic()
    with pytest.raises(errors.NotFound, match="content x"):
        await quick.client().push_blob(name, LAYER_DESCRIPTOR, read)
    with pytest.raises(errors.FailedPrecondition, match="its source ended 1048476 bytes early"):
        await quick.client().push_blob(name, LAYER_DESCRIPTOR, source(LAYER[:100]))
    assert time.monotonic() - begun < 2


async def test_a_refused_push(quick: Registry, fake: FakeRegistry, name: str) -> None:
    """The error has the registry's reason and its name."""
    fake.inject("blobs/uploads/", status(403), times=1)
    with (
        within(5),
        pytest.raises(
            errors.PermissionDenied,
            match=f"push of blob .*{fake.host}: POST /v2/mine/box/blobs/uploads/: 403 Forbidden: TROUBLE: injected",
        ),
    ):
        await quick.client().push_blob(name, LAYER_DESCRIPTOR, source(LAYER))
    wrong = described(LAYER[1:])
    with (
        within(5),
        pytest.raises(
            errors.Unknown, match=f"{fake.host}: PUT .*400 Bad Request: DIGEST_INVALID: provided digest did not match"
        ),
    ):
        await quick.client().push_blob(name, wrong, source(b"x" + LAYER[2:]))


async def test_mirrors_are_not_pushed_to(fake: FakeRegistry, other: FakeRegistry, tmp_path: Path) -> None:
    """The first host that may be pushed to gets everything."""
    from services.images.registry.hosts import Hosts

    hosts = Hosts(
        (
            certs(
                tmp_path,
                "images.test",
                f'server = "{fake.url}"\n[host."{other.url}"]\ncapabilities = ["pull", "resolve"]\n',
            ),
        )
    )
    async with Registry(hosts, timeouts=QUICK, retry=HASTY) as registry:
        await registry.client().push_blob("images.test/mine/box:1", LAYER_DESCRIPTOR, source(LAYER))
    assert not other.seen
    assert fake.blobs
