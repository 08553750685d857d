"""What an image's name stands for while its registry is away: nodes of the fleet have it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from deploy.samples import image
from services.images.distribution.resolving import PATIENCE, resolved
from services.images.transfer import Progress
from services.kit import errors
from services.kit.loops import task
from services.oci.descriptors import Descriptor
from services.oci.references import Reference
from tests import fake_registry
from tests.fake_registry import Authority, FakeRegistry
from tests.fleet import Book, Puller, puller
from tests.service.images.registry.pulls import dead_port, small_image
from tests.support import eventually_async

pytestmark = pytest.mark.once

IMAGE, NEWER = small_image(), image([b"newer" * 2048])
assert IMAGE.digest != NEWER.digest
DOCUMENT = IMAGE.blobs[IMAGE.digest]
TARGET = Descriptor(IMAGE.media_type, IMAGE.digest, len(DOCUMENT))


@pytest.fixture
def book() -> Book:
    return Book()


@pytest.fixture
async def nodes(book: Book, tmp_path: Path) -> AsyncIterator[tuple[Puller, Puller]]:
    """Two nodes, of which the first has the image's manifest."""
    directory = tmp_path / "authority"
    directory.mkdir()
    authority = Authority(directory)
    async with contextlib.AsyncExitStack() as stack:
        one, two = [
            await stack.enter_async_context(puller(book, tmp_path / name, authority, name)) for name in ("one", "two")
        ]
        digest = await one.peer.put(DOCUMENT)
        book.complete[str(digest)] = {"one": len(DOCUMENT)}
        yield one, two


async def resolve(
    node: Puller, name: str, *, namespace: str = "default", patience: float = PATIENCE
) -> tuple[Descriptor, list[str]]:
    """What a node finds, and what it tells its client."""
    told: list[Progress] = []
    found = await resolved(node.client, Reference.parse(name), name, namespace, node.peers, told.append, patience)
    return found, [each.event for each in told]


async def test_the_fleet_says_it_while_the_registry_is_away(nodes: tuple[Puller, Puller], book: Book) -> None:
    """The client is told, and the manifest comes from a node that has it; a digest needs nobody to know the name."""
    host = f"127.0.0.1:{await dead_port()}"
    name = f"{host}/box:1"
    book.images[name] = IMAGE.digest, len(DOCUMENT)
    assert await resolve(nodes[1], name) == (TARGET, [f"{host} is away: resolved as the fleet has it"])
    found, told = await resolve(nodes[1], f"{host}/box@{IMAGE.digest}")
    assert (found, len(told)) == (TARGET, 1)


async def test_what_the_registry_answers_counts(nodes: tuple[Puller, Puller], book: Book) -> None:
    """The fleet is not asked what a tag is that the registry knows, nor one that it does not know."""
    async with FakeRegistry() as registry:
        name = registry.add(NEWER, "box:1")
        book.images[name] = book.images[f"{registry.host}/box:2"] = "sha256:" + "0" * 64, 5
        found, told = await resolve(nodes[1], name)
        assert (found.digest, told) == (NEWER.digest, [])
        with pytest.raises(errors.NotFound):
            await resolve(nodes[1], f"{registry.host}/box:2")
    assert book.asked == []


async def test_a_registry_that_is_silent(nodes: tuple[Puller, Puller], book: Book) -> None:
    """After some patience it counts as away. If no node has the image it is waited for all the same."""
    async with FakeRegistry() as registry:
        name = registry.add(NEWER, "box:1")
        book.images[name] = IMAGE.digest, len(DOCUMENT)
        registry.inject("manifest", fake_registry.silent())
        assert (await resolve(nodes[1], name, patience=0.05))[0] == TARGET
        del book.images[name]
        registry.inject("manifest", held := Held())
        resolving = task("resolving", resolve(nodes[1], name, patience=0.05))
        await eventually_async(lambda: asyncio.sleep(0, held.asked))
        held.go.set()
        assert (await resolving)[0].digest == NEWER.digest


class Held:
    """Holds the registry's answer back."""

    def __init__(self) -> None:
        self.asked = False
        self.go = asyncio.Event()

    async def __call__(self, request: object, serve: fake_registry.Serve) -> fake_registry.web.StreamResponse:
        self.asked = True
        await self.go.wait()
        return await serve()


async def test_nobody_can_give_it(nodes: tuple[Puller, Puller], book: Book) -> None:
    """The error says that the registry is away, and which digest was wanted of the nodes. Other namespaces ask none."""
    name = f"127.0.0.1:{await dead_port()}/box:1"
    with pytest.raises(errors.Unavailable) as caught:
        await resolve(nodes[1], name)
    assert "no node of the fleet" not in str(caught.value)
    missing = "sha256:" + "0" * 64
    book.images[name] = missing, 5
    with pytest.raises(errors.Unavailable, match=f"connect.*; and no node of the fleet gives {missing}"):
        await resolve(nodes[1], name)
    book.images[name] = IMAGE.digest, len(DOCUMENT)
    with pytest.raises(errors.Unavailable) as caught:
        await resolve(nodes[1], name, namespace="private")
    assert "no node of the fleet" not in str(caught.value)


async def test_what_a_node_has_is_no_manifest(nodes: tuple[Puller, Puller], book: Book) -> None:
    """It is not taken for one, whatever the fleet says."""
    name = f"127.0.0.1:{await dead_port()}/box:1"
    for data in (b"no JSON", b"{}"):
        digest = str(await nodes[0].peer.put(data))
        book.complete[digest] = {"one": len(data)}
        book.images[name] = digest, len(data)
        with pytest.raises(errors.Unavailable, match=f"no node of the fleet gives {digest}"):
            await resolve(nodes[1], name)
