"""Fetching from a registry that misbehaves: the bytes arrive, or an error soon says which host did what."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path

import pytest

from services.images.registry.client import Registry
from services.images.registry.hosts import Hosts
from services.images.registry_timeouts import Retry
from services.kit import errors
from services.oci.descriptors import Descriptor
from tests.fake_registry import FakeRegistry, cut, endless, hang_up, redirect, silent, slow, status
from tests.fake_registry import other as instead
from tests.service.images.registry.conftest import HASTY, QUICK
from tests.service.images.registry.pulls import LAYER, certs, dead_port, described, fetched, small_image
from tests.support import within

pytestmark = pytest.mark.once

LAYER_DESCRIPTOR = described(LAYER)


@pytest.fixture
def name(fake: FakeRegistry) -> str:
    """A reference whose repository has the layer."""
    fake.add_blob("box", LAYER)
    return fake.add(small_image(), "box:1")


async def test_an_image_is_pulled(quick: Registry, fake: FakeRegistry, name: str) -> None:
    """A name becomes a descriptor, the descriptor a manifest, and its layers their bytes."""
    client = quick.client()
    root = await client.resolve(name)
    data = await client.manifest(name, root)
    assert data == fake.manifests["box", "1"][1]
    blob, body = await fetched(client, name, LAYER_DESCRIPTOR)
    assert blob == LAYER
    assert (body.host, body.ranges, body.size) == (fake.host, True, len(LAYER))
    manifest, _ = await fetched(client, name, root)
    assert manifest == data


async def test_a_part_is_fetched(quick: Registry, name: str) -> None:
    """With an offset and a length only those bytes are transferred."""
    blob, body = await fetched(quick.client(), name, LAYER_DESCRIPTOR, 1000, 500)
    assert blob == LAYER[1000:1500]
    assert (body.offset, body.end, body.ranges) == (1000, 1500, True)


async def test_at_the_end_there_is_nothing_to_fetch(quick: Registry, fake: FakeRegistry, name: str) -> None:
    """An offset that is the size needs no request; one beyond is OutOfRange."""
    blob, _ = await fetched(quick.client(), name, LAYER_DESCRIPTOR, len(LAYER))
    assert (blob, fake.asked(part="/blobs/")) == (b"", [])
    with pytest.raises(errors.OutOfRange):
        await fetched(quick.client(), name, LAYER_DESCRIPTOR, len(LAYER) + 1)


async def test_a_blob_of_unknown_size(quick: Registry, name: str) -> None:
    """Without a size in the descriptor the server's size is used."""
    blob, body = await fetched(
        quick.client(), name, Descriptor(LAYER_DESCRIPTOR.media_type, LAYER_DESCRIPTOR.digest, 0), 10, 100
    )
    assert (blob, body.size) == (LAYER[10:110], len(LAYER))


async def test_a_cut_connection_goes_on_at_its_byte(quick: Registry, fake: FakeRegistry, name: str) -> None:
    """After a connection that is lost in the middle, only the rest is requested."""
    fake.inject("blob", cut(after=300_000))
    with within(5):
        blob, _ = await fetched(quick.client(), name, LAYER_DESCRIPTOR)
    assert blob == LAYER
    first, second = fake.asked("GET", "/blobs/")
    assert "Range" not in first.headers
    assert second.headers["Range"] == "bytes=300000-1048575"


async def test_many_cuts_are_outlasted_while_bytes_arrive(quick: Registry, fake: FakeRegistry, name: str) -> None:
    """Progress resets the count of attempts: more cuts than attempts do not end a fetch."""
    fake.inject("blob", cut(after=100_000), times=8)
    with within(5):
        blob, _ = await fetched(quick.client(), name, LAYER_DESCRIPTOR)
    assert blob == LAYER


async def test_cuts_without_progress_end(quick: Registry, fake: FakeRegistry, name: str) -> None:
    """A server that gives a byte at a time is given up."""
    fake.inject("blob", cut(after=1), times=100)
    with (
        within(8),
        pytest.raises(
            errors.Unavailable, match=rf"blob sha256:.*{fake.host}: connection lost .* after 4 of 1048576 bytes"
        ),
    ):
        await fetched(quick.client(), name, LAYER_DESCRIPTOR)


async def test_a_server_without_ranges(quick: Registry, fake: FakeRegistry, name: str) -> None:
    """Known bytes are skipped, and the body reports that there are no ranges."""
    fake.ranges = False
    fake.inject("blob", cut(after=300_000))
    with within(5):
        blob, body = await fetched(quick.client(), name, LAYER_DESCRIPTOR)
    assert (blob, body.ranges) == (LAYER, False)
    part, body = await fetched(quick.client(), name, LAYER_DESCRIPTOR, 1000, 10)
    assert (part, body.ranges) == (LAYER[1000:1010], False)


async def test_503_twice(quick: Registry, fake: FakeRegistry, name: str) -> None:
    """Two failures in a row are not visible to the caller."""
    fake.inject("blob", status(503), times=2)
    with within(5):
        assert (await fetched(quick.client(), name, LAYER_DESCRIPTOR))[0] == LAYER


async def test_503_for_ever(quick: Registry, fake: FakeRegistry, name: str) -> None:
    """In the end the caller gets an error with the server's words."""
    fake.inject("blob", status(503), times=100)
    with (
        within(5),
        pytest.raises(
            errors.Unavailable,
            match=f"{fake.host}: GET /v2/box/blobs/sha256:.*: 503 Service Unavailable: TROUBLE: injected",
        ),
    ):
        await fetched(quick.client(), name, LAYER_DESCRIPTOR)


async def test_429_is_waited_for(quick: Registry, fake: FakeRegistry, name: str) -> None:
    """The client waits as long as Retry-After says."""
    fake.inject("blob", status(429, Retry_After="1"))
    with within(8, at_least=1):
        assert (await fetched(quick.client(), name, LAYER_DESCRIPTOR))[0] == LAYER


async def test_429_that_asks_for_hours_is_told_at_once(quick: Registry, fake: FakeRegistry, name: str) -> None:
    """The caller of a pull beyond the limit gets the error at once."""
    fake.inject("manifest", status(429, Retry_After="21600"), times=100)
    with (
        within(5),
        pytest.raises(
            errors.ResourceExhausted, match=rf"{fake.host}: HEAD .* 429 Too Many Requests .*asks to wait 21600 s"
        ),
    ):
        await quick.client().resolve(name)


async def test_an_answer_that_never_comes(quick: Registry, fake: FakeRegistry, name: str) -> None:
    """A server that does not answer is asked again, and in the end the error names it."""
    fake.inject("blob", silent())
    with within(5):
        assert (await fetched(quick.client(), name, LAYER_DESCRIPTOR))[0] == LAYER
    fake.inject("blob", silent(), times=100)
    with within(5), pytest.raises(errors.Unavailable, match=f"{fake.host}: no answer within 0.6 s"):
        await fetched(quick.client(), name, LAYER_DESCRIPTOR)


async def test_a_body_that_stalls(quick: Registry, fake: FakeRegistry, name: str) -> None:
    """A body that stops in the middle goes on over another connection."""
    fake.inject("blob", silent(after=200_000))
    with within(5):
        assert (await fetched(quick.client(), name, LAYER_DESCRIPTOR))[0] == LAYER


async def test_a_slow_reader_is_no_stall(quick: Registry, fake: FakeRegistry, name: str) -> None:
    """Time that the caller takes is not counted as the server's."""
    import asyncio

    big = bytes(16 << 20)
    fake.add_blob("box", big)
    got = 0
    async with quick.client().fetch(name, described(big)) as body:
        async for chunk in body:
            if not got:
                await asyncio.sleep(1.0)
            got += len(chunk)
    assert got == len(big)
    assert len(fake.asked("GET", "/blobs/")) == 1


async def test_a_hang_up(quick: Registry, fake: FakeRegistry, name: str) -> None:
    """The request is repeated after a connection that is closed without an answer."""
    fake.inject("blob", hang_up())
    with within(5):
        assert (await fetched(quick.client(), name, LAYER_DESCRIPTOR))[0] == LAYER


@pytest.mark.parametrize("chunked", [False, True], ids=["with a length", "without a length"])
async def test_a_wrong_size_ends_at_once(quick: Registry, fake: FakeRegistry, name: str, chunked: bool) -> None:
    """Too many bytes are an error with the right number, and the fetch is not repeated."""
    fake.inject("blob", instead(LAYER + b"more", chunked=chunked), times=100)
    with (
        within(5),
        pytest.raises(errors.FailedPrecondition, match=rf"{fake.host}: blob {LAYER_DESCRIPTOR.digest} has .*1048576"),
    ):
        await fetched(quick.client(), name, LAYER_DESCRIPTOR)
    assert len(fake.asked("GET", "/blobs/")) == 1


async def test_too_few_bytes(quick: Registry, fake: FakeRegistry, name: str) -> None:
    """A body that ends early, but properly, is an error that says so."""
    fake.inject("blob", instead(LAYER[:-1]), times=100)
    with (
        within(5),
        pytest.raises(errors.FailedPrecondition, match=f"{fake.host}: blob .* has 1048575 bytes; 1048576 are expected"),
    ):
        await fetched(quick.client(), name, LAYER_DESCRIPTOR)


async def test_an_endless_body(quick: Registry, fake: FakeRegistry, name: str) -> None:
    """A body without an end is not read beyond the size."""
    fake.inject("blob", endless(), times=100)
    with (
        within(5),
        pytest.raises(
            errors.FailedPrecondition, match=f"{fake.host}: blob .* has more than the 1048576 bytes expected"
        ),
    ):
        await fetched(quick.client(), name, LAYER_DESCRIPTOR)


async def test_a_blob_that_is_not_there(quick: Registry, fake: FakeRegistry, name: str) -> None:
    """NotFound, with the registry's words."""
    with (
        within(5),
        pytest.raises(
            errors.NotFound, match=f"{fake.host}: GET .* 404 Not Found: BLOB_UNKNOWN: blob unknown to registry"
        ),
    ):
        await fetched(quick.client(), name, described(b"absent"))


# ------------------------------------------------------------------------------------------ elsewhere


async def test_a_redirect_is_told_nothing_of_us(
    quick: Registry, fake: FakeRegistry, other: FakeRegistry, name: str, tmp_path: Path
) -> None:
    """The target of a registry's redirect gets neither Authorization nor the headers of hosts.toml or of the request,
    and serves the bytes.
    """
    other.add_blob("box", LAYER)
    fake.inject("blob", redirect(f"{other.url}/"), times=2)
    fake.inject("blob", cut(0))
    hosts = Hosts(
        (
            certs(
                tmp_path,
                fake.host.replace(":", "_") + "_",
                f"""
        server = "{fake.url}"
        [header]
          X-Secret = "of the file"
          Authorization = "Basic Zm9vOmJhcg=="
    """,
            ),
        )
    )
    blob, body = await fetched(quick.client(hosts=hosts, headers={"X-Mine": "of the request"}), name, LAYER_DESCRIPTOR)
    assert (blob, body.host) == (LAYER, other.host)
    mine = fake.asked("GET", "/blobs/")[0].headers
    assert (mine["X-Secret"], mine["Authorization"], mine["X-Mine"]) == (
        "of the file",
        "Basic Zm9vOmJhcg==",
        "of the request",
    )
    there = other.seen[0].headers
    assert not {"authorization", "x-secret", "x-mine", "cookie", "traceparent"} & {key.lower() for key in there}, there


async def test_a_redirect_that_wants_credentials_does_not_get_them(
    quick: Registry, fake: FakeRegistry, other: FakeRegistry, name: str
) -> None:
    """A 401 of another host is an error, which names both."""
    from services.images.registry.credentials import Credentials
    from tests.fake_registry import Auth

    async def source(host: str) -> Credentials:
        return Credentials("me", "secret")

    other.auth = Auth("basic", "me", "secret")
    fake.inject("blob", redirect(f"{other.url}/"), times=10)
    with (
        within(5),
        pytest.raises(errors.Unauthenticated, match=rf"{other.host}: .*401 .*\({fake.host} sent us there\)"),
    ):
        await fetched(quick.client(source), name, LAYER_DESCRIPTOR)
    assert all("Authorization" not in each.headers for each in other.seen)


async def test_redirects_without_end(quick: Registry, fake: FakeRegistry, name: str) -> None:
    """Ten are followed."""
    fake.inject("blob", redirect(f"{fake.url}/"), times=100)
    with within(5), pytest.raises(errors.FailedPrecondition, match=f"{fake.host}: .*redirect number 11"):
        await fetched(quick.client(), name, LAYER_DESCRIPTOR)


async def test_a_redirect_to_a_dead_host(quick: Registry, fake: FakeRegistry, name: str) -> None:
    """The error names the dead host and the host that redirected to it."""
    port = await dead_port()
    fake.inject("blob", redirect(f"http://127.0.0.1:{port}/x"), times=100)
    with (
        within(5),
        pytest.raises(
            errors.Unavailable,
            match=rf"127.0.0.1:{port}: no connection: Connection refused \({fake.host} sent us there\)",
        ),
    ):
        await fetched(quick.client(), name, LAYER_DESCRIPTOR)


async def test_a_foreign_layer_comes_from_its_url(
    quick: Registry, fake: FakeRegistry, other: FakeRegistry, name: str
) -> None:
    """A layer that may not be distributed is fetched from the URL in its descriptor."""
    base = b"base of windows" * 100
    other.add_blob("files", base)
    layer = described(base, "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip")
    urls = ("ftp://example.invalid/x", f"{other.url}/v2/files/blobs/{layer.digest}")
    layer = Descriptor(layer.media_type, layer.digest, layer.size, urls=urls)
    blob, body = await fetched(quick.client(headers={"X-Mine": "1"}), name, layer)
    assert (blob, body.host) == (base, other.host)
    assert "X-Mine" not in other.seen[0].headers
    assert fake.asked(part="/blobs/") == []
    fake.add_blob("box", base)
    other.repositories.clear()
    blob, body = await fetched(quick.client(), name, layer)
    assert (blob, body.host) == (base, fake.host)


# ------------------------------------------------------------------------------------------ mirrors


def mirrored(directory: Path, *mirrors: str) -> Hosts:
    """``images.test`` at the given URLs, in order; the last is its server."""
    *first, server = mirrors
    return Hosts(
        (certs(directory, "images.test", f'server = "{server}"\n' + "".join(f'[host."{each}"]\n' for each in first)),)
    )


async def test_a_dead_mirror_costs_once(fake: FakeRegistry, name: str, tmp_path: Path) -> None:
    """The next host is asked at once, the dead one is not asked again for each blob, and the memory of hosts shows
    it.
    """
    port = await dead_port()
    async with Registry(
        mirrored(tmp_path, f"http://127.0.0.1:{port}", fake.url), timeouts=QUICK, retry=HASTY
    ) as registry:
        client = registry.client()
        with within(5):
            root = await client.resolve("images.test/box:1")
            for _ in range(5):
                assert (await fetched(client, "images.test/box:1", LAYER_DESCRIPTOR))[0] == LAYER
        states = {each.host: each for each in registry.memory.snapshot()}
    dead, good = states[f"http://127.0.0.1:{port}"], states[fake.url]
    assert (dead.state, dead.failures, dead.last_error) == ("dead", 1, "no connection: Connection refused")
    assert (good.state, good.failures) == ("good", 0)
    assert good.throughput > 0
    assert root.digest
    assert all("ns=images.test" in each.path for each in fake.seen)


async def test_a_silent_mirror_costs_once(fake: FakeRegistry, other: FakeRegistry, name: str, tmp_path: Path) -> None:
    """A mirror that accepts connections and does not answer is left after its short timeout, once."""
    other.inject("", silent(), times=100)
    async with Registry(mirrored(tmp_path, other.url, fake.url), timeouts=QUICK, retry=HASTY) as registry:
        client = registry.client()
        with within(5, at_least=0.4):
            await client.resolve("images.test/box:1")
            for _ in range(5):
                await fetched(client, "images.test/box:1", LAYER_DESCRIPTOR)
    assert len(other.seen) == 1


async def test_a_mirror_behind_a_black_hole_costs_its_dial_timeout_once(
    fake: FakeRegistry, name: str, tmp_path: Path
) -> None:
    """Packets get no answer: the dial timeout of hosts.toml passes, or our shorter default for a mirror, once."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for each in fillers:
            each.setblocking(False)
            # the queue of those not yet accepted is full now: whoever comes hears nothing
            each.connect_ex(full.getsockname())
        port = full.getsockname()[1]
        for text, seconds in (("", QUICK.mirror_connect), ('dial_timeout = "200ms"', 0.2)):
            hosts = Hosts(
                (
                    certs(
                        tmp_path / f"{seconds}",
                        "images.test",
                        f'server = "{fake.url}"\n[host."http://127.0.0.1:{port}"]\n{text}\n',
                    ),
                )
            )
            async with Registry(hosts, timeouts=QUICK, retry=HASTY) as registry:
                client = registry.client()
                with within(5, at_least=seconds):
                    for _ in range(5):
                        await fetched(client, "images.test/box:1", LAYER_DESCRIPTOR)
                (hole,) = (each for each in registry.memory.snapshot() if each.host.endswith(f":{port}"))
                assert (hole.state, hole.failures, hole.last_error) == (
                    "dead",
                    1,
                    f"connecting took longer than {seconds:g} s",
                )
        for each in fillers:
            each.close()


async def test_a_silent_tls_handshake(quick: Registry) -> None:
    """The error says in which phase the time ran out."""
    import asyncio

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, Registry(timeouts=replace(QUICK, connect=0.3), retry=Retry(rounds=1)) as registry:
        with (
            within(5),
            pytest.raises(errors.Unavailable, match=f"127.0.0.1:{port}: the TLS handshake took longer than 0.3 s"),
        ):
            await registry.client(default_scheme="https").resolve(f"127.0.0.1:{port}/box:1")


async def test_a_slow_mirror_is_left_in_the_middle(
    fake: FakeRegistry, other: FakeRegistry, name: str, tmp_path: Path
) -> None:
    """The bytes from a slow mirror are kept, the rest comes from the next host, and the memory of hosts says slow."""
    other.add_blob("box", LAYER)
    other.inject("blob", slow(20_000), times=100)
    async with Registry(mirrored(tmp_path, other.url, fake.url), timeouts=QUICK, retry=HASTY) as registry:
        with within(5):
            blob, body = await fetched(registry.client(), "images.test/box:1", LAYER_DESCRIPTOR)
        assert blob == LAYER
        assert body.hosts == [other.host, fake.host]
        states = {each.host: each for each in registry.memory.snapshot()}
        assert states[other.url].state == "slow"
        assert "KiB/s" in states[other.url].last_error
        await fetched(registry.client(), "images.test/box:1", LAYER_DESCRIPTOR)
    assert len(other.seen) == 1
    assert int(fake.asked("GET")[0].headers["Range"].removeprefix("bytes=").split("-")[0]) > 0


async def test_a_mirror_without_the_blob(fake: FakeRegistry, other: FakeRegistry, name: str, tmp_path: Path) -> None:
    """A 404 of a mirror is no failure: the next host is asked now, and the mirror again next time."""
    async with Registry(mirrored(tmp_path, other.url, fake.url), timeouts=QUICK, retry=HASTY) as registry:
        for _ in range(2):
            assert (await fetched(registry.client(), "images.test/box:1", LAYER_DESCRIPTOR))[0] == LAYER
        assert registry.memory.state(other.url) == "good"
    assert len(other.seen) == 2


async def test_a_mirror_with_wrong_bytes(fake: FakeRegistry, other: FakeRegistry, name: str, tmp_path: Path) -> None:
    """A wrong size or a wrong manifest is a failure of that mirror only: the origin is asked."""
    other.add_blob("box", LAYER)
    other.add(small_image(), "box:1")
    other.inject("blob", instead(b"short"))
    other.inject("manifest", instead(b"{}"))
    async with Registry(mirrored(tmp_path, other.url, fake.url), timeouts=QUICK, retry=HASTY) as registry:
        client = registry.client()
        root = described(fake.manifests["box", "1"][1], "application/vnd.oci.image.manifest.v1+json")
        assert await client.manifest_and_host("images.test/box:1", root) == (fake.manifests["box", "1"][1], fake.host)
        assert (await fetched(client, "images.test/box:1", LAYER_DESCRIPTOR))[0] == LAYER


async def test_all_hosts_fail(fake: FakeRegistry, other: FakeRegistry, tmp_path: Path) -> None:
    """The error names each of them."""
    other.inject("", status(500), times=100)
    port = await dead_port()
    async with Registry(
        mirrored(tmp_path, f"http://127.0.0.1:{port}", other.url, fake.url), timeouts=QUICK, retry=HASTY
    ) as registry:
        with within(5), pytest.raises(errors.NodeError) as raised:
            await registry.client().resolve("images.test/none:1")
    said = str(raised.value)
    assert f"127.0.0.1:{port}: no connection: Connection refused; {other.host}: HEAD /v2/none/manifests/1: 500" in said
    assert f"{fake.host}: HEAD /v2/none/manifests/1: 404 Not Found" in said


async def test_a_wrong_digest_is_remembered_when_the_caller_tells(
    fake: FakeRegistry, other: FakeRegistry, name: str, tmp_path: Path
) -> None:
    """The number of bytes is right and their digest is wrong: the caller finds this, and the next fetch is from another
    host.
    """
    other.add_blob("box", LAYER)
    other.inject("blob", instead(b"\0" * len(LAYER)), times=100)
    async with Registry(mirrored(tmp_path, other.url, fake.url), timeouts=QUICK, retry=HASTY) as registry:
        blob, body = await fetched(registry.client(), "images.test/box:1", LAYER_DESCRIPTOR)
        assert blob != LAYER
        body.distrust("wrong digest")
        assert (await fetched(registry.client(), "images.test/box:1", LAYER_DESCRIPTOR))[0] == LAYER
        assert registry.memory.state(other.url) == "dead"


async def test_a_wrong_manifest(quick: Registry, fake: FakeRegistry, name: str) -> None:
    """A manifest that does not match its digest is refused; the error has the digest of the received bytes."""
    root = await quick.client().resolve(name)
    fake.inject("manifest", instead(b"y" * root.size), times=10)
    with (
        within(5),
        pytest.raises(
            errors.FailedPrecondition,
            match=f"{fake.host}: manifest {root.digest} has other content, with the digest sha256:",
        ),
    ):
        await quick.client().manifest(name, root)
