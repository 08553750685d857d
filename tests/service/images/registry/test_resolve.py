"""Resolving names: media types, sizes, hosts without HEAD, TLS."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from aiohttp import web

from deploy.samples import index
from services.images.registry.client import Registry
from services.images.registry.hosts import Hosts
from services.kit import errors
from services.oci.digests import Digest
from services.oci.media_types import DOCKER_INDEX, DOCKER_MANIFEST, INDEX, MANIFEST
from services.oci.references import Reference
from tests.fake_registry import Authority, FakeRegistry, endless, redirect, status
from tests.fake_registry import other as instead
from tests.service.images.registry.conftest import HASTY, QUICK
from tests.service.images.registry.pulls import certs, small_image
from tests.support import within

pytestmark = pytest.mark.once


async def test_a_tag_and_a_digest(quick: Registry, fake: FakeRegistry) -> None:
    """Both resolve to the same descriptor; if both are given, the digest decides."""
    image = small_image()
    name = fake.add(index(image), "box:1")
    client = quick.client()
    root = await client.resolve(name)
    assert (root.media_type, root.size) == (INDEX, len(fake.manifests["box", "1"][1]))
    assert await client.resolve(f"{fake.host}/box@{root.digest}") == root
    assert await client.resolve(f"{fake.host}/box:nonsense@{root.digest}") == root
    assert [each.method for each in fake.seen] == ["HEAD"] * 3


@pytest.mark.parametrize("media_type", [DOCKER_MANIFEST, DOCKER_INDEX, MANIFEST])
async def test_media_types(quick: Registry, fake: FakeRegistry, media_type: str) -> None:
    """Docker's schema 2 is accepted as OCI's is."""
    fake.add(small_image(), "box:1")
    fake.manifests["box", "1"] = (media_type, fake.manifests["box", "1"][1])
    assert (await quick.client().resolve(f"{fake.host}/box:1")).media_type == media_type


@pytest.mark.parametrize(
    "media_type",
    [
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
        "application/vnd.docker.distribution.manifest.v1+json",
        "text/plain",
    ],
)
async def test_schema_1_is_refused(quick: Registry, fake: FakeRegistry, media_type: str) -> None:
    """The error says what to do."""
    fake.manifests["box", "1"] = (media_type, b'{"schemaVersion": 1}')
    with (
        within(5),
        pytest.raises(errors.Unimplemented, match=f"{fake.host}: .*box:1 is an image of Docker's schema 1.*rebuild it"),
    ):
        await quick.client().resolve(f"{fake.host}/box:1")


async def test_documents_that_are_no_image_are_refused(quick: Registry, fake: FakeRegistry) -> None:
    """The error has the media type."""
    fake.manifests["box", "1"] = ("application/json", b'{"a": 1}')
    with within(5), pytest.raises(errors.Unimplemented, match='media type "application/json", which is neither'):
        await quick.client().resolve(f"{fake.host}/box:1")


async def test_a_manifest_by_its_own_words(quick: Registry, fake: FakeRegistry) -> None:
    """A registry may send no media type: the manifest itself has it."""
    fake.add(small_image(), "box:1")
    fake.manifests["box", "1"] = ("application/octet-stream", fake.manifests["box", "1"][1])
    assert (await quick.client().resolve(f"{fake.host}/box:1")).media_type == MANIFEST
    bare = {k: v for k, v in json.loads(fake.manifests["box", "1"][1]).items() if k != "mediaType"}
    fake.manifests["box", "1"] = ("application/json", json.dumps(bare).encode())
    assert (await quick.client().resolve(f"{fake.host}/box:1")).media_type == MANIFEST


async def test_a_registry_without_head(quick: Registry, fake: FakeRegistry) -> None:
    """GET gives the same descriptor."""
    name = fake.add(small_image(), "box:1")
    fake.head = False
    root = await quick.client().resolve(name)
    assert root.size == len(fake.manifests["box", "1"][1])


@pytest.mark.parametrize("code", [400, 401, 403, 404, 405, 501])
async def test_a_redirect_whose_target_refuses_head(
    quick: Registry, fake: FakeRegistry, other: FakeRegistry, code: int
) -> None:
    """URLs of object storage may be signed for GET only: a GET follows, and its answer is used (moby issue 50065)."""
    image = small_image()
    name = fake.add(image, "box:1")
    other.add(image, "box:1")
    fake.inject("manifest", redirect(f"{other.url}/"), times=10)
    other.inject("manifest", status(code), times=10, method="HEAD")
    with within(5):
        root = await quick.client().resolve(name)
    assert (str(root.digest), root.size) == (image.digest, len(image.blobs[image.digest]))
    assert [(seen.method, seen.status) for seen in other.seen] == [("HEAD", code), ("GET", 200)]
    assert len(fake.seen) == 1


HTML = b"<!DOCTYPE html><title>Sign in</title>"
SCHEMA_1 = b'{"schemaVersion": 1, "name": "box", "tag": "1", "fsLayers": []}'


NO_MANIFESTS = [
    ("text/html", HTML),
    ("text/plain", HTML),
    ("application/json", HTML),
    (MANIFEST, HTML),
    (DOCKER_MANIFEST, b""),
    (MANIFEST, b"{}"),
    (MANIFEST, b"[1]"),
    ("application/octet-stream", b"\x1f\x8b\x08\x00"),
    ("application/json", b'{"errors": []}'),
    (INDEX, b"[" * 50_000),
    ("application/json", b'{"schemaVersion": "2", "layers": []}'),
    ("application/vnd.docker.distribution.manifest.v1+prettyjws", SCHEMA_1),
    ("text/plain", SCHEMA_1),
    ("application/json", SCHEMA_1),
    (MANIFEST, SCHEMA_1),
]


@pytest.mark.parametrize("head", [True, False], ids=["HEAD", "no HEAD"])
async def test_a_mirror_that_serves_no_manifest(
    fake: FakeRegistry, other: FakeRegistry, tmp_path: Path, head: bool
) -> None:
    """Its answer has status 200: that counts as the mirror's failure, and the origin is asked. Without an origin the
    error names the answer and the host.
    """
    image = small_image()
    for tag, answer in enumerate(NO_MANIFESTS):
        fake.add(image, f"box:{tag}")
        other.manifests["box", str(tag)] = answer
    other.head = head

    async def untold(request, serve):
        answer = await serve()
        answer.headers.pop("Docker-Content-Digest", None)
        return answer

    other.inject("manifest", untold, times=1000)
    hosts = Hosts((certs(tmp_path / "both", "images.test", f'server = "{fake.url}"\n[host."{other.url}"]\n'),))
    async with Registry(hosts, timeouts=QUICK, retry=HASTY) as registry:
        for tag, answer in enumerate(NO_MANIFESTS):
            assert str((await registry.client().resolve(f"images.test/box:{tag}")).digest) == image.digest, answer
            assert other.asked("GET", f"/manifests/{tag}")
    hosts = Hosts((certs(tmp_path / "mirror", "images.test", f'server = "{other.url}"\n'),))
    async with Registry(hosts, timeouts=QUICK, retry=HASTY) as registry:
        for tag in range(len(NO_MANIFESTS)):
            name = f"images.test/box:{tag}"
            with pytest.raises(
                errors.Unimplemented,
                match=rf"^{name}: {other.host}: {name} (is|has) .*(Docker's schema 1|not an image manifest|neither)",
            ) as raised:
                await registry.client().resolve(name)
            assert not re.search("Expecting|codec|Traceback|line 1 column", str(raised.value))


@pytest.mark.parametrize("code", [204, 205, 206, 304])
async def test_an_answer_without_a_body(quick: Registry, fake: FakeRegistry, code: int) -> None:
    """It is no manifest. The body ends at once."""
    fake.add(small_image(), "box:1")

    async def nothing(request, serve):
        return web.Response(status=code)

    fake.inject("manifest", nothing, times=100)
    with (
        within(5),
        pytest.raises(
            errors.NodeError, match=rf"{fake.host}: .*(is not an image manifest|neither an image manifest|304)"
        ),
    ):
        await quick.client().resolve(f"{fake.host}/box:1")


async def test_a_manifest_of_100_megabytes(quick: Registry, fake: FakeRegistry) -> None:
    """It is refused by its size before it is read, and after 4 MiB if it does not declare its size."""
    name = fake.add(small_image(), "box:1")
    root = await quick.client().resolve(name)
    huge = b" " * 100_000_000
    fake.manifests["box", "1"] = (MANIFEST, huge)
    with (
        within(5),
        pytest.raises(
            errors.ResourceExhausted,
            match=f"{fake.host}: manifest 1 has 100000000 bytes; no more than 4194304 are taken",
        ),
    ):
        await quick.client().resolve(name)
    fake.head = False
    with within(8), pytest.raises(errors.ResourceExhausted, match=f"{fake.host}: manifest 1 has 100000000 bytes"):
        await quick.client().resolve(name)
    fake.inject("manifest", endless(), times=10)
    with (
        within(5),
        pytest.raises(
            errors.ResourceExhausted, match=f"{fake.host}: manifest {root.digest} has at least 4194305 bytes"
        ),
    ):
        await quick.client().manifest(f"{fake.host}/box:1", root)


async def test_an_absent_name(quick: Registry, fake: FakeRegistry) -> None:
    """NotFound comes soon and has the reference."""
    with (
        within(5),
        pytest.raises(
            errors.NotFound,
            match=rf"^{fake.host}/none:1: {fake.host}: HEAD /v2/none/manifests/1: 404 Not Found.*not found$",
        ),
    ):
        await quick.client().resolve(f"{fake.host}/none:1")


async def test_a_403_is_explained(quick: Registry, fake: FakeRegistry) -> None:
    """The answer to a HEAD has no body, so a GET follows for the explanation."""
    fake.inject("manifest", status(403), times=10)
    with (
        within(5),
        pytest.raises(errors.PermissionDenied, match=f"{fake.host}: HEAD .*: 403 Forbidden: TROUBLE: injected"),
    ):
        await quick.client().resolve(f"{fake.host}/box:1")


async def test_a_malformed_digest_of_the_server(quick: Registry, fake: FakeRegistry) -> None:
    """The error names the host."""
    fake.add(small_image(), "box:1")
    fake.inject("manifest", status(200, Docker_Content_Digest="md5:x", Content_Type=MANIFEST), times=5)
    with within(5), pytest.raises(errors.FailedPrecondition, match=f'{fake.host}: its Docker-Content-Digest "md5:x"'):
        await quick.client().resolve(f"{fake.host}/box:1")


async def test_only_trusted_hosts_resolve(fake: FakeRegistry, other: FakeRegistry, tmp_path: Path) -> None:
    """A host that is only trusted to pull is asked for a digest, but not for the meaning of a tag."""
    for each in (fake, other):
        each.add(small_image(), "box:1")
    hosts = Hosts(
        (certs(tmp_path, "images.test", f'server = "{fake.url}"\n[host."{other.url}"]\ncapabilities = ["pull"]\n'),)
    )
    async with Registry(hosts, timeouts=QUICK, retry=HASTY) as registry:
        client = registry.client()
        root = await client.resolve("images.test/box:1")
        assert not other.seen
        await client.resolve(f"images.test/box@{root.digest}")
        assert len(other.seen) == 1
    only = Hosts((certs(tmp_path, "images.test", f'server = "{fake.url}"\ncapabilities = ["pull"]\n'),))
    async with Registry(only) as registry:
        with pytest.raises(errors.NotFound, match="none of the hosts configured for images.test may resolve a tag"):
            await registry.client().resolve("images.test/box:1")
        with pytest.raises(errors.NotFound, match="may be pushed to"):
            await registry.client().exists("images.test/box:1", root)


async def test_the_object_is_required(quick: Registry) -> None:
    """A repository without a tag or digest cannot be pulled."""
    with pytest.raises(errors.InvalidArgument, match="neither a tag nor a digest"):
        await quick.client().resolve(Reference("images.test", "box"))


async def test_the_retry_pauses_can_be_interrupted(quick: Registry, fake: FakeRegistry) -> None:
    """Cancellation ends a fetch or a pause at once."""
    import asyncio

    fake.inject("manifest", status(429, Retry_After="1"), times=100)
    with within(5):
        try:
            async with asyncio.timeout(0.2):
                await quick.client().resolve(f"{fake.host}/box:1")
        except TimeoutError:
            pass


# ------------------------------------------------------------------------------------------ TLS


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


async def test_an_unknown_authority(authority: Authority, tmp_path: Path) -> None:
    """The error says what is wrong and how to solve it; with the authority's certificate in hosts.toml, by a relative
    path, the pull works.
    """
    async with FakeRegistry(tls=authority.server()) as fake:
        name = fake.add(small_image(), "box:1").replace(fake.host, "images.test")
        hosts = Hosts((certs(tmp_path, "images.test", f'server = "{fake.url}"\n'),))
        async with Registry(hosts, timeouts=QUICK, retry=HASTY) as registry:
            with (
                within(5),
                pytest.raises(
                    errors.FailedPrecondition,
                    match=rf"{fake.host}: its certificate is not trusted: unable to get local issuer.*`ca` in hosts.toml",
                ),
            ):
                await registry.client().resolve(name)
            (tmp_path / "images.test" / "ca.crt").write_bytes(authority.certificate.read_bytes())
            certs(tmp_path, "images.test", f'server = "{fake.url}"\nca = "ca.crt"\n')
            await registry.client().resolve(name)
            certs(tmp_path, "images.test", f'server = "{fake.url}"\nskip_verify = true\n')
            await registry.client().resolve(name)


async def test_a_client_certificate(authority: Authority, tmp_path: Path, other: FakeRegistry) -> None:
    """A server that wants one gets the pair of hosts.toml."""
    certificate, key = authority.issue("client")
    async with FakeRegistry(tls=authority.server(clients=True)) as fake:
        fake.add(small_image(), "box:1")
        hosts = Hosts((certs(tmp_path, "images.test", f'server = "{fake.url}"\nca = "{authority.certificate}"\n'),))
        async with Registry(hosts, timeouts=QUICK, retry=HASTY) as registry:
            with within(5), pytest.raises(errors.NodeError, match=f"{fake.host}: "):
                await registry.client().resolve("images.test/box:1")
            certs(
                tmp_path,
                "images.test",
                f'server = "{fake.url}"\nca = "{authority.certificate}"\nclient = [["{certificate}", "{key}"]]\n',
            )
            await registry.client().resolve("images.test/box:1")


async def test_a_certificate_file_that_is_none(tmp_path: Path) -> None:
    """The error names the file."""
    (tmp_path / "bad.crt").write_text("no certificate")
    async with Registry(Hosts((certs(tmp_path, "images.test", f'ca = "{tmp_path}/bad.crt"\n'),))) as registry:
        with pytest.raises(errors.FailedPrecondition, match=r"certificate authority .*/bad.crt: "):
            await registry.client().resolve("images.test/box:1")
    async with Registry(Hosts((certs(tmp_path, "images.test", 'client = "absent.pem"\n'),))) as registry:
        with pytest.raises(errors.FailedPrecondition, match=r"client certificate .*/absent.pem: No such file"):
            await registry.client().resolve("images.test/box:1")


async def test_localhost_speaks_either(quick: Registry, fake: FakeRegistry, authority: Authority) -> None:
    """On loopback TLS is tried first, without verification, and then plain http; with --plain-http only the latter is
    used.
    """
    name = fake.add(small_image(), "box:1")
    await quick.client().resolve(name)
    async with FakeRegistry(tls=authority.server()) as secure:
        await quick.client().resolve(secure.add(small_image(), "box:1"))
        with within(5), pytest.raises(errors.NodeError):
            await quick.client(plain_http=True).resolve(f"{secure.host}/box:1")
    await quick.client(plain_http=True).resolve(name)
    with within(5), pytest.raises(errors.FailedPrecondition, match=f"{fake.host}: it does not speak TLS"):
        await quick.client(default_scheme="https").resolve(name)


async def test_an_unknown_name(quick: Registry) -> None:
    """A host that does not exist."""
    with within(4), pytest.raises(errors.Unavailable, match="images.invalid: its name is not known"):
        await quick.client().resolve("images.invalid/box:1")


async def test_something_that_is_no_registry(quick: Registry) -> None:
    """A server that speaks another protocol."""
    import asyncio

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.test ESMTP\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        with (
            within(5),
            pytest.raises(errors.NodeError, match=f"127.0.0.1:{port}: (not HTTP|connection lost before an answer)"),
        ):
            await quick.client(plain_http=True).resolve(f"127.0.0.1:{port}/box:1")


def test_digests_are_checked_values() -> None:
    """A descriptor's digest is checked."""
    assert isinstance(Reference.parse("h/r@sha256:" + "a" * 64).digest, Digest)


async def test_a_manifest_with_another_size(quick: Registry, fake: FakeRegistry) -> None:
    """The error has both sizes."""
    name = fake.add(small_image(), "box:1")
    root = await quick.client().resolve(name)
    fake.inject("manifest", instead(b"{}"), times=10)
    with (
        within(5),
        pytest.raises(
            errors.FailedPrecondition,
            match=f"{fake.host}: manifest {root.digest} has 2 bytes; {root.size} are expected",
        ),
    ):
        await quick.client().manifest(name, root)
