"""An operator's settings for registries on a whole node: verifiers, hosts.toml, unpack_config; and the operator's view
of registries. Driven by ctr of containerd 2, which lets the node pull.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from api.containerd.types.transfer import imagestore_pb2, registry_pb2
from deploy.samples import Image, busybox_image, image, tar_of
from services.kit.rpc import Channel
from services.oci.digests import digest_of
from tests.fake_registry import FakeRegistry
from tests.peer import containerd, program
from tests.service.images.registry.pulls import dead_port
from tests.suites.transfers import HERE, Transfers
from tests.support import Node, short_directory

pytestmark = [pytest.mark.node, pytest.mark.root]

CONFIG = """
version = 3
[plugins."io.containerd.image-verifier.v1.bindir"]
bin_dir = "{place}/verifiers"
per_verifier_timeout = "2s"
[plugins."io.containerd.transfer.v1.local"]
config_path = "{place}/certs.d"
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
platform = "linux"
snapshotter = "native"
"""


@pytest.fixture(scope="module")
def settings() -> Iterator[Path]:
    """The directories of the node's verifiers and of its certs.d."""
    with short_directory() as directory:
        (directory / "verifiers").mkdir()
        (directory / "certs.d").mkdir()
        yield directory


@pytest.fixture(scope="module")
def node(settings: Path) -> Iterator[Node]:
    """A node with these settings."""
    with short_directory() as directory:
        running = Node(directory, config=CONFIG.format(place=settings))
        try:
            running.up()
            yield running
        finally:
            running.clear()


async def pull(node: Node, reference: str, *more: str, ok: bool = True) -> str:
    """Pull with ctr of containerd 2; return its output on one line."""
    done = await asyncio.to_thread(node.ctr, "images", "pull", *more, reference, program=program("ctr"), ok=ok)
    return " ".join((done.stdout + done.stderr).split())


# ---------------------------------------------------------------------------------------------- verifiers


@contextlib.contextmanager
def verifier(settings: Path, script: str) -> Iterator[None]:
    path = settings / "verifiers" / "check"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    try:
        yield
    finally:
        path.unlink()


async def test_a_verifier_is_asked_before_anything_is_fetched(node: Node, settings: Path, fake: FakeRegistry) -> None:
    """ctr shows its reason. Once it agrees, the same image is pulled."""
    box = busybox_image()
    reference = fake.add(box, "box:1")
    said = settings / "said"
    with verifier(settings, f'cat >{said}; echo "$@" >>{said}; echo no signature; exit 1'):
        shown = await pull(node, reference, ok=False)
    assert (
        f"image verifier bindir blocked pull of {reference} with digest {box.digest} for reason: verifier check "
        "rejected image (exit code 1): no signature"
    ) in shown
    assert not fake.asked("GET")
    descriptor, arguments = said.read_text().splitlines()
    assert json.loads(descriptor) == {
        "mediaType": box.media_type,
        "digest": box.digest,
        "size": len(box.blobs[box.digest]),
    }
    assert (
        arguments == f"-name {reference} -digest {box.digest} -stdin-media-type application/vnd.oci.descriptor.v1+json"
    )
    with verifier(settings, "exit 0"):
        await pull(node, reference)
    assert fake.asked("GET", box.layers[0])


async def test_no_judgement_is_no_consent(node: Node, settings: Path, fake: FakeRegistry) -> None:
    """One verifier takes too long; another has a reason longer than any header."""
    reference = fake.add(busybox_image(), "box:1")
    with verifier(settings, "sleep 60"):
        shown = await pull(node, reference, ok=False)
    assert re.search(
        rf"blocking pull of {reference} with digest \S+ image verifier bindir returned error: failed to call verifier check \(runtime \S+s\): "
        "waiting on command to exit: context deadline exceeded",
        shown,
    )
    with verifier(settings, "yes é | head -n 100000; exit 1"):
        shown = await pull(node, reference, ok=False)
    assert "verifier check rejected image (exit code 1): é" in shown
    assert "(stdout truncated)" in shown
    assert not fake.asked("GET")


# ---------------------------------------------------------------------------------------------- hosts and unpacking


async def test_hosts_are_the_transfer_plugins(node: Node, settings: Path, fake: FakeRegistry) -> None:
    """Its config_path is the place of the mirror's hosts.toml; its unpack_config selects the snapshotter."""
    fake.add(busybox_image(), "box:1")
    (settings / "certs.d" / "mirrored.test").mkdir()
    (settings / "certs.d" / "mirrored.test" / "hosts.toml").write_text(f'server = "{fake.url}"\n')
    await pull(node, "mirrored.test/box:1")
    assert "native" in {
        key.rpartition(".")[2] for key in _labels(node, "mirrored.test/box:1") if "gc.ref.snapshot" in key
    }


def _labels(node: Node, name: str) -> list[str]:
    """Return the labels of all blobs."""
    return [word.partition("=")[0] for word in node.out("content", "ls").replace(",", " ").split() if "=" in word]


async def test_a_malformed_hosts_toml_stops_pulls_and_is_named(node: Node, settings: Path) -> None:
    """ctr and ``splitd config check`` show file, line and key; the node runs nevertheless."""
    directory = settings / "certs.d" / "broken.test"
    directory.mkdir()
    (directory / "hosts.toml").write_text('[host."https://m.test"]\ncapabilities = ["pull"]\nca = 5\n')
    try:
        where = f'{directory}/hosts.toml: line 3: host."https://m.test".ca: 5 is neither a string nor a list of strings'
        assert f"failed to resolve image: {where}" in await pull(node, "broken.test/box:1", ok=False)
        done = node.splitd("config", "check", ok=False)
        assert done.stderr.splitlines() == [f"splitd: {where}"]
        assert f"warning: {where}" in node.splitd("up", ok=True).stderr
    finally:
        (directory / "hosts.toml").unlink()
    assert node.splitd("config", "check").stdout == f"{node.config} is valid\n"


async def test_status_tells_of_a_dead_mirror(node: Node, settings: Path, fake: FakeRegistry) -> None:
    """It shows since when, why, and until when it is not asked first; JSON has the good ones too. The node is healthy
    nevertheless; a new images process has no such memory.
    """
    fake.add(busybox_image(), "box:1")
    port = await dead_port()
    (settings / "certs.d" / "dead.test").mkdir()
    (settings / "certs.d" / "dead.test" / "hosts.toml").write_text(
        f'server = "{fake.url}"\n[host."http://127.0.0.1:{port}"]\n'
    )
    await pull(node, "dead.test/box:1")
    shown = await asyncio.to_thread(node.splitd, "status")
    (line,) = [line for line in shown.stdout.splitlines() if line.startswith("registry ")]
    moment = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
    assert re.fullmatch(
        rf"registry http://127.0.0.1:{port} is dead for \d+s \(since {moment}\): no connection: Connection refused; "
        rf"asked after all others for \d+s \(until {moment}\)",
        line,
    )
    status = await asyncio.to_thread(node.status)
    assert status["healthy"]
    states = {each["host"]: each["state"] for each in status["registries"]}
    assert (states[f"http://127.0.0.1:{port}"], states[fake.url]) == ("dead", "good")
    await asyncio.to_thread(node.kill, "images")
    await asyncio.to_thread(node.wait_healthy)
    assert (await asyncio.to_thread(node.status))["registries"] == []


# ---------------------------------------------------------------------------------------------- old images


def old(box: Image) -> Image:
    """The image as Docker pushed it before 2016: its config is an octet stream."""
    manifest = json.loads(box.blobs[box.digest])
    manifest["config"]["mediaType"] = "application/octet-stream"
    manifest["annotations"] = {"b": "<2>", "a": "1"}
    data = json.dumps(manifest).encode()
    return replace(
        box,
        digest=digest_of(data),
        blobs={**{d: b for d, b in box.blobs.items() if d != box.digest}, digest_of(data): data},
    )


async def test_an_old_image_is_converted_and_runs(node: Node, fake: FakeRegistry) -> None:
    """It becomes another manifest, with Docker's config."""
    box = old(busybox_image())
    reference = fake.add(box, "old:1")
    await pull(node, reference)
    digest = _digest(node, reference)
    assert digest != box.digest
    assert (
        json.loads(node.out("content", "get", digest))["config"]["mediaType"]
        == "application/vnd.docker.container.image.v1+json"
    )
    assert node.out("run", "--rm", "--snapshotter", "native", reference, "old", "echo", "runs") == "runs\n"
    await pull(node, reference)
    assert _digest(node, reference) == digest


async def test_an_old_image_gets_the_digest_that_containerd_gives_it(
    node: Node, fake: FakeRegistry, tmp_path: Path
) -> None:
    """It is the same byte for byte, including annotations."""
    reference = fake.add(old(busybox_image()), "old:1")
    await pull(node, reference)
    with short_directory() as directory, containerd(directory, program("containerd")) as socket:
        peer = Node(directory)
        peer.socket = socket
        await pull(peer, reference)
        theirs = _digest(peer, reference)
    assert _digest(node, reference) == theirs


def _digest(node: Node, reference: str) -> str:
    """Return the target of an image."""
    return next(line.split()[2] for line in node.out("images", "ls").splitlines() if line.startswith(reference))


# ---------------------------------------------------------------------------------------------- requests shown


async def test_ctr_shows_requests(node: Node, fake: FakeRegistry) -> None:
    """--http-dump and --http-trace show the node's requests while it pulls; each alone shows its own part."""
    box = image([tar_of([("unique", {"data": os.urandom(1000)})])])
    reference = fake.add(box, "dump:1")
    both = await pull(node, reference, "--http-dump", "--http-trace")
    assert re.search(rf"\d+> HEAD {fake.url}/v2/dump/manifests/1", both)
    assert re.search(rf"\d+> GET {fake.url}/v2/dump/manifests/{box.digest}", both)
    assert re.search(r"\d+< 200 OK", both)
    assert re.search(rf"\d+= connection to {fake.host} at {fake.host}: new; ", both)
    trace = await pull(node, reference, "--http-trace")
    assert "= connection to" in trace
    assert "> HEAD" not in trace
    assert "connection to" not in await pull(node, reference)


async def test_requests_go_to_the_log_without_a_stream(node: Node, fake: FakeRegistry) -> None:
    """This is as with containerd, whose client need not have a stream."""
    reference = fake.add(busybox_image(), "logged:1")
    async with Channel(node.socket) as channel:
        source = registry_pb2.OCIRegistry(
            reference=reference, resolver=registry_pb2.RegistryResolver(http_debug=registry_pb2.DEBUG)
        )
        await Transfers(channel, "logged").transfer(source, imagestore_pb2.ImageStore(name="x", platforms=[HERE]))
    log = await asyncio.to_thread(node.splitd, "logs", "images", "-n", "200")
    assert re.search(rf"{reference}: \d+> HEAD {fake.url}/v2/logged/manifests/1", log.stdout)


async def test_a_client_that_does_not_read_its_output_delays_no_pull(node: Node, fake: FakeRegistry) -> None:
    """A finished pull does not wait long for the client either."""
    reference = fake.add(busybox_image(), "unread:1")
    async with Channel(node.socket) as channel, asyncio.timeout(30):
        client = Transfers(channel, "unread")
        async with client.stream("logs") as (name, _):
            source = registry_pb2.OCIRegistry(
                reference=reference,
                resolver=registry_pb2.RegistryResolver(http_debug=registry_pb2.BOTH, logs_stream=name),
            )
            await client.transfer(source, imagestore_pb2.ImageStore(name="x", platforms=[HERE]))
        assert "x" in await client.images()
