"""Bodies that come compressed although the client did not ask for it: they are decoded, as in containerd, within
bounds. Parts of them cannot be used.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from aiohttp import web

from services.images.registry.client import Registry
from services.images.registry.content_encoding import Decoder, Undecodable, codings
from services.images.registry.hosts import Hosts
from services.kit import errors
from services.oci.digests import digest_of
from tests.fake_registry import Auth, FakeRegistry, Fault, Serve, cut, encoded, status, then
from tests.service.images.registry.conftest import HASTY, QUICK
from tests.service.images.registry.pulls import LAYER, certs, described, fetched, small_image
from tests.service.images.registry.test_auth import known
from tests.support import within

pytestmark = pytest.mark.once

ALWAYS = 1 << 30
LAYER_DESCRIPTOR = described(LAYER)


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(6, zlib.DEFLATED, -15)
    return packer.compress(data) + packer.flush()


def two_members(data: bytes) -> bytes:
    return gzip.compress(data[:1000]) + gzip.compress(data[1000:])


def two_frames(data: bytes) -> bytes:
    return zstandard.compress(data[:1000]) + zstandard.compress(data[1000:])


def large_window(data: bytes) -> bytes:
    packer = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters(window_log=27)
    ).compressobj()
    return packer.compress(data) + packer.flush()


def sized_right(data: bytes) -> bytes:
    return data


CODINGS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", gzip.compress),
    "members": ("x-gzip", two_members),
    "zstd": ("zstd", two_frames),
    "zlib": ("deflate", zlib.compress),
    "deflate": ("deflate", raw_deflate),
    "both": ("gzip, ZSTD", lambda data: zstandard.compress(gzip.compress(data))),
    "identity": ("identity\t,gzip", gzip.compress),
}


@pytest.fixture
def name(fake: FakeRegistry) -> str:
    """A reference whose repository has the layer."""
    fake.add_blob("box", LAYER)
    return fake.add(small_image(), "box:1")


@pytest.mark.parametrize("coding", CODINGS)
async def test_a_blob_is_decoded(quick: Registry, fake: FakeRegistry, name: str, coding: str) -> None:
    """It is decoded whole, and from an offset: hosts give no parts of the decoded bytes. No request is repeated."""
    fake.inject("blob", encoded(fake, *CODINGS[coding]), times=ALWAYS)
    blob, body = await fetched(quick.client(), name, LAYER_DESCRIPTOR)
    assert (blob, body.ranges) == (LAYER, False)
    blob, body = await fetched(quick.client(), name, LAYER_DESCRIPTOR, 300_000, 10)
    assert (blob, body.ranges) == (LAYER[300_000:300_010], False)
    assert len(fake.asked("GET", "/blobs/")) == 2


@pytest.mark.parametrize("coding", ["gzip", "zstd", "deflate"])
async def test_a_cut_blob_goes_on(quick: Registry, fake: FakeRegistry, name: str, coding: str) -> None:
    """It comes from its beginning again and is decoded; the known bytes are dropped."""
    whole = encoded(fake, *CODINGS[coding])
    fake.inject("blob", then(whole, cut(len(CODINGS[coding][1](LAYER)) // 2)))
    fake.inject("blob", whole, times=ALWAYS)
    with within(20):
        blob, body = await fetched(quick.client(), name, LAYER_DESCRIPTOR)
    assert (blob, body.ranges) == (LAYER, False)


async def test_a_part_of_the_compressed_blob(quick: Registry, fake: FakeRegistry, name: str) -> None:
    """It cannot be decoded from its middle: the host is asked for the whole, and for no parts from then on."""
    fake.inject("blob", encoded(fake, "gzip", lambda data: gzip.compress(data, 0), parts=True), times=ALWAYS)
    with within(20):
        for at in (1000, 2000):
            blob, body = await fetched(quick.client(), name, LAYER_DESCRIPTOR, at)
            assert (blob, body.ranges) == (LAYER[at:], False)
    assert [(seen.headers.get("Range"), seen.status) for seen in fake.asked("GET", "/blobs/")] == [
        ("bytes=1000-1048575", 206),
        (None, 200),
        (None, 200),
    ]
    (host,) = [each for each in quick.memory.snapshot() if each.ranges_refused]
    assert "from byte 1000 on, and the answer is a part of it as gzip" in host.ranges_refused


async def test_a_body_of_the_right_size_is_only_mislabelled(quick: Registry, fake: FakeRegistry, name: str) -> None:
    """A layer that was stored in an object store as "gzip", which it is: its parts are parts of the layer."""
    fake.inject("blob", encoded(fake, "gzip", sized_right, parts=True), times=ALWAYS)
    blob, body = await fetched(quick.client(), name, LAYER_DESCRIPTOR)
    assert (blob, body.ranges) == (LAYER, True)
    blob, body = await fetched(quick.client(), name, LAYER_DESCRIPTOR, 1000, 10)
    assert (blob, body.ranges) == (LAYER[1000:1010], True)


@pytest.mark.parametrize("coding", ["gzip", "zstd", "deflate"])
async def test_a_body_that_ends_early_is_requested_again(
    quick: Registry, fake: FakeRegistry, name: str, coding: str
) -> None:
    """It is treated as a lost connection, since some servers end so."""
    header, encode = CODINGS[coding]
    half = encoded(fake, header, lambda data: encode(data)[: len(encode(data)) // 2])
    fake.inject("blob", half)
    fake.inject("blob", encoded(fake, header, encode))
    with within(20):
        assert (await fetched(quick.client(), name, LAYER_DESCRIPTOR))[0] == LAYER
    fake.inject("blob", half, times=ALWAYS)
    with (
        within(10),
        pytest.raises(
            errors.Unavailable, match=f"{fake.host}: its body is {header} that ends early after [0-9]+ of 1048576 bytes"
        ),
    ):
        await fetched(quick.client(), name, LAYER_DESCRIPTOR)


@pytest.mark.parametrize(
    ("header", "encode", "words"),
    [
        ("br", lambda data: data[1:], "its body is unsupported Content-Encoding br"),
        ("gzip,gzip,gzip,gzip,gzip", lambda data: data[1:], "its body is 5 Content-Encodings one in the other"),
        ("gzip", lambda data: gzip.compress(b"") * 200_000, "its body is gzip of more bytes than what is in it"),
        ("gzip", lambda data: data[:-1], "its body is damaged gzip"),
        ("deflate", lambda data: b"\xff" * 100, "its body is damaged deflate"),
        ("zstd", lambda data: b"\xff" * 100, "its body is damaged zstd"),
        ("zstd", large_window, "its body is damaged zstd"),
    ],
    ids=["unknown", "many", "nothing in much", "no gzip", "no deflate", "no zstd", "large window"],
)
async def test_bodies_that_cannot_be_decoded(
    quick: Registry,
    fake: FakeRegistry,
    other: FakeRegistry,
    name: str,
    tmp_path: Path,
    header: str,
    encode: Callable[[bytes], bytes],
    words: str,
) -> None:
    """The error comes at once and names the host. If another host has the blob, it comes from there."""
    fake.inject("blob", encoded(fake, header, encode), times=ALWAYS)
    with within(20), pytest.raises(errors.FailedPrecondition, match=f"{fake.host}: .*{words}"):
        await fetched(quick.client(), name, LAYER_DESCRIPTOR)
    assert len(fake.asked("GET", "/blobs/")) == 1
    other.add_blob("box", LAYER)
    hosts = Hosts((certs(tmp_path, other.host, f'server = "{other.url}"\n[host."{fake.url}"]\n'),))
    async with Registry(hosts, timeouts=QUICK, retry=HASTY) as registry:
        with within(20):
            assert (await fetched(registry.client(), f"{other.host}/box:1", LAYER_DESCRIPTOR))[0] == LAYER


@pytest.mark.parametrize(
    ("header", "encode"),
    [
        ("gzip", gzip.compress),
        ("zstd", zstandard.compress),
        ("gzip, gzip", lambda data: gzip.compress(gzip.compress(data))),
    ],
    ids=["gzip", "zstd", "both"],
)
async def test_more_than_is_wanted_is_not_made(
    quick: Registry, fake: FakeRegistry, name: str, header: str, encode: Callable[[bytes], bytes]
) -> None:
    """This holds however small the compressed body is."""
    much = encode(bytes(1 << 27))
    fake.inject("blob", encoded(fake, header, lambda _: much), times=ALWAYS)
    with (
        within(10),
        pytest.raises(
            errors.FailedPrecondition, match=f"{fake.host}: blob .* has more than the 1048576 bytes expected"
        ),
    ):
        await fetched(quick.client(), name, LAYER_DESCRIPTOR)
    assert len(fake.asked("GET", "/blobs/")) == 1


@pytest.mark.parametrize("head", [True, False], ids=["with HEAD", "without HEAD"])
async def test_a_manifest_is_decoded(quick: Registry, fake: FakeRegistry, name: str, head: bool) -> None:
    """The length in a HEAD is that of the compressed body, so it is not used."""
    fake.head = head
    fake.inject("manifest", encoded(fake, "gzip", gzip.compress), times=ALWAYS)
    client, (_, data) = quick.client(), fake.manifests["box", "1"]
    root = await client.resolve(name)
    assert (str(root.digest), root.size) == (digest_of(data), len(data))
    assert await client.manifest(name, root) == data


async def test_a_manifest_that_is_only_mislabelled(quick: Registry, fake: FakeRegistry, name: str) -> None:
    """The body has the right size."""
    client = quick.client()
    root = await client.resolve(name)
    fake.inject("manifest", encoded(fake, "gzip", sized_right), times=ALWAYS)
    assert await client.manifest(name, root) == fake.manifests["box", "1"][1]


async def test_a_manifest_that_is_too_large_inside(quick: Registry, fake: FakeRegistry, name: str) -> None:
    """The compressed body may be small."""
    much = gzip.compress(bytes(16 << 20), 1)
    fake.inject("manifest", encoded(fake, "gzip", lambda _: much), times=ALWAYS)
    with (
        within(10),
        pytest.raises(errors.ResourceExhausted, match=f"{fake.host}: manifest 1 has at least 4194305 bytes"),
    ):
        await quick.client().resolve(name)


async def test_tokens_and_explanations_are_decoded(quick: Registry, fake: FakeRegistry, name: str) -> None:
    """Token servers are behind proxies too, and so are hosts that explain an error."""
    fake.auth = Auth(user="me", password="pass")
    fake.inject("token", compressed(), times=ALWAYS)
    client = quick.client(known("me", "pass"))
    assert await client.resolve(name)
    fake.inject("blob", then(status(418), compressed()))
    with pytest.raises(errors.Unknown, match="418 .*: TROUBLE: injected"):
        await fetched(client, name, LAYER_DESCRIPTOR)


def compressed() -> Fault:
    """Compress an answer by gzip."""

    async def fault(request: web.Request, serve: Serve) -> web.StreamResponse:
        right = await serve()
        assert isinstance(right, web.Response)
        assert isinstance(right.body, bytes)
        headers = {name: value for name, value in right.headers.items() if name != "Content-Length"}
        return web.Response(
            status=right.status, body=gzip.compress(right.body), headers={**headers, "Content-Encoding": "gzip"}
        )

    return fault


# ---------------------------------------------------------------------------------------------- the decoder alone


@pytest.mark.parametrize("fed", [1, 7, 1 << 20])
@pytest.mark.parametrize("coding", CODINGS)
def test_however_it_arrives(coding: str, fed: int) -> None:
    """The body arrives byte by byte or all at once, and is returned in bounded pieces."""
    header, encode = CODINGS[coding]
    data = LAYER[:5000] if fed < 100 else LAYER
    sent, got = encode(data), b""
    decoder = Decoder(codings(header), len(data))
    for at in range(0, len(sent), fed):
        decoder.feed(sent[at : at + fed])
        while piece := decoder.piece():
            assert len(piece) <= 1 << 18
            got += piece
    decoder.end()
    assert got == data


@pytest.mark.parametrize("coding", CODINGS)
def test_it_says_where_it_stops_early(coding: str) -> None:
    """This holds for an end at any byte but the last, and between two members or frames."""
    header, encode = CODINGS[coding]
    sent, wrong = encode(b"box" * 1000), 0
    for end in range(len(sent)):
        decoder = Decoder(codings(header), 3000)
        decoder.feed(sent[:end])
        while decoder.piece():
            pass
        try:
            decoder.end()
        except Undecodable as error:
            assert error.early
        else:
            wrong += 1
    assert wrong <= (coding in ("members", "zstd"))
