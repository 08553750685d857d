"""Further causes, for which the code of the verdict was not written: it has to find them from what was recorded."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from typing import Any

from deploy.samples import Image
from services.kit.rpc import Channel, Stream
from services.traces.causes import Kind
from tests.fake_registry import Auth, FakeRegistry, hang_up, redirect, status
from tests.pulls import Client, answering
from tests.slowpulls.causes import ALWAYS, MB, Injection, faulty, limited, slow
from tests.slowpulls.scene import NAME, Scene


@contextlib.asynccontextmanager
async def slow_storage(scene: Scene, image: Image) -> AsyncIterator[None]:
    """The registry sends its clients to a storage for blobs, which is slow."""
    async with FakeRegistry(address="127.0.0.2") as storage:
        storage.add(image, NAME)
        storage.inject("blob", limited(slow(6 * MB, image)), times=ALWAYS)
        scene.registry.inject("blob", redirect(f"{storage.url}/"), times=ALWAYS)
        scene.named = storage.host
        try:
            yield
        finally:
            scene.registry.heal()


@contextlib.asynccontextmanager
async def lost(scene: Scene, image: Image) -> AsyncIterator[None]:
    """The registry hangs up four times when it is asked for the manifest, and then for each layer."""
    for where in ("manifest", *image.layers):
        scene.registry.inject(where, hang_up(), times=4)
    try:
        yield
    finally:
        scene.registry.heal()


@contextlib.asynccontextmanager
async def slow_verifier(scene: Scene, _: Image) -> AsyncIterator[None]:
    """An image verifier takes 3 s."""
    scene.verifiers.mkdir()
    program = scene.verifiers / "policy"
    program.write_text("#!/bin/sh\nsleep 3\n")
    program.chmod(0o755)
    try:
        yield
    finally:
        program.unlink()
        scene.verifiers.rmdir()


@contextlib.asynccontextmanager
async def same_layers(scene: Scene, image: Image) -> AsyncIterator[None]:
    """Another pull is fetching the same layers, slowly."""
    other = "other:2"
    reference = scene.registry.add(image, other)
    scene.registry.inject("/v2/other/blobs", limited(slow(6 * MB, image)), times=ALWAYS)
    pulling = asyncio.ensure_future(scene.pulled(reference))
    try:
        async with asyncio.timeout(20):
            while scene.registry.answering < 4:
                await asyncio.sleep(0.01)
        yield
    finally:
        await pulling
        scene.registry.heal()
        await scene.forgotten(other)


@contextlib.asynccontextmanager
async def frozen_content(scene: Scene, _: Image) -> AsyncIterator[None]:
    """The content service does not run for 3 s."""
    pid = await scene.command(scene.node.pid, "content")

    async def thaw() -> None:
        try:
            await asyncio.sleep(3)
        finally:
            os.kill(pid, signal.SIGCONT)

    os.kill(pid, signal.SIGSTOP)
    thawing = asyncio.ensure_future(thaw())
    try:
        yield
    finally:
        await thawing


@contextlib.asynccontextmanager
async def slow_user(scene: Scene, _: Image) -> AsyncIterator[None]:
    """A client needs 2 s until it answers with credentials."""
    scene.registry.auth = Auth(user="me", password="secret")

    async def pull(reference: str) -> None:
        async with Channel(scene.node.socket) as channel:
            client = SlowClient(channel, "default")
            async with answering(client, "me", "secret") as (name, _):
                await client.pull(reference, auth=name)

    scene.pulls = pull
    try:
        yield
    finally:
        scene.pulls = None
        scene.registry.auth = None


class SlowClient(Client):
    """A client whose user thinks before typing."""

    @contextlib.asynccontextmanager
    async def stream(self, purpose: str) -> AsyncIterator[tuple[str, Any]]:
        async with super().stream(purpose) as (name, stream):
            yield name, _Thinking(stream)


class _Thinking:
    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    async def receive(self) -> Any:
        return await self._stream.receive()

    async def send(self, message: Any) -> None:
        await asyncio.sleep(2)
        await self._stream.send(message)


MORE = (
    Injection("storage", "a redirect to a slow storage", slow_storage, Kind.NETWORK, 3.0, frozenset({"bandwidth"})),
    Injection("lost", "four connections are lost, and four more", lost, Kind.REGISTRY, 0.3, frozenset({"retry"})),
    Injection(
        "overloaded",
        "503 with Retry-After 2",
        faulty("manifest", lambda _: status(503, Retry_After="2"), times=1),
        Kind.REGISTRY,
        1.9,
    ),
    Injection("verifier", "a verifier that takes 3 s", slow_verifier, Kind.VERIFIER, 2.9, names="policy"),
    Injection("same", "another pull of the same layers", same_layers, Kind.LOCK, 1.5, names="other:2"),
    Injection(
        "frozen",
        "the content service stands still for 3 s",
        frozen_content,
        Kind.NODE,
        1.5,
        names="content",
        holder="service content",
    ),
    Injection("user", "a user who needs 2 s for a password", slow_user, Kind.CLIENT, 1.9, names="client"),
)
