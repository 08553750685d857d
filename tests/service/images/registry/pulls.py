"""Helpers that the tests of the registry client share."""

from __future__ import annotations

import asyncio
from pathlib import Path

from deploy.samples import Image, image
from services.images.registry.client import Client
from services.images.registry.download import Body
from services.oci.descriptors import Descriptor
from services.oci.digests import digest_of

LAYER = bytes(range(256)) * 4096  # 1 MiB
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"


def small_image() -> Image:
    """An image of one layer."""
    return image([b"x" * 10240])


def described(data: bytes, media_type: str = LAYER_TYPE, **more: object) -> Descriptor:
    """A blob's descriptor."""
    return Descriptor(media_type, digest_of(data), len(data), **more)  # type: ignore[arg-type]


async def fetched(
    client: Client, reference: str, descriptor: Descriptor, offset: int = 0, length: int | None = None
) -> tuple[bytes, Body]:
    """Return all bytes of a fetch."""
    async with client.fetch(reference, descriptor, offset, length) as body:
        return b"".join([bytes(chunk) async for chunk in body]), body


def certs(directory: Path, host: str, text: str) -> Path:
    """A certs.d with a hosts.toml for ``host``."""
    (directory / host).mkdir(parents=True, exist_ok=True)
    (directory / host / "hosts.toml").write_text(text)
    return directory


async def dead_port() -> int:
    """Return a port on loopback on which no process listens."""
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port: int = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    return port
