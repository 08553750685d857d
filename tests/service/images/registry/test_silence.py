"""A silent registry is reported with the time since its last bytes, at whatever point of a request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from services.images.registry import Registry
from services.images.registry.http_debug import HttpDebug
from services.images.registry.silence import Silence
from services.kit import errors
from services.oci.digests import digest_of
from tests.fake_registry import FakeRegistry, deaf, redirect, silent
from tests.service.images.registry.pulls import LAYER, described, fetched, small_image
from tests.support import eventually_async

pytestmark = pytest.mark.once


async def seen(silence: Silence, host: str, work: asyncio.Future[Any]) -> None:
    """Check that ``host`` is found silent, and that no host is at the end."""
    await eventually_async(
        lambda: asyncio.sleep(0, silence.longest()[0] == host and silence.longest()[1] > 0.1), "its silence is not seen"
    )
    await work
    assert silence.longest() == ("", 0.0)


@pytest.mark.parametrize("after", [0, 1000])
async def test_of_a_layer(quick: Registry, other: FakeRegistry, after: int) -> None:
    """Before its first byte and after some; after a redirect the target is reported."""
    async with FakeRegistry() as front:
        silence = Silence()
        front.add_blob("box", LAYER)
        other.add_blob("box", LAYER)
        front.inject("blobs", redirect(f"{other.url}/v2/box/blobs/{digest_of(LAYER)}"), times=100)
        other.inject("blobs", silent(0.5, after), times=1)
        client = quick.client(watch=HttpDebug(silence=silence))
        work = asyncio.ensure_future(fetched(client, f"{front.host}/box:1", described(LAYER)))
        await seen(silence, other.host, work)


async def test_of_a_name(quick: Registry, other: FakeRegistry) -> None:
    """The first request of a pull."""
    silence = Silence()
    reference = other.add(small_image(), "box:1")
    other.inject("manifests", silent(0.5), times=1)
    await seen(
        silence, other.host, asyncio.ensure_future(quick.client(watch=HttpDebug(silence=silence)).resolve(reference))
    )


async def test_of_a_push(quick: Registry, other: FakeRegistry) -> None:
    """Bytes that the registry takes are a sign of life; after the last byte none follows until the answer."""
    silence = Silence()
    other.inject("uploads", deaf(0.5), times=1, method="PUT")

    async def read(offset: int) -> AsyncIterator[bytes]:
        yield LAYER[offset:]

    client = quick.client(watch=HttpDebug(silence=silence))
    work = asyncio.ensure_future(client.push_blob(f"{other.host}/box:1", described(LAYER), read))
    await seen(silence, other.host, work)


async def test_of_one_that_is_given_up(quick: Registry, other: FakeRegistry) -> None:
    """All attempts count as one time of silence."""
    silence = Silence()
    reference = other.add(small_image(), "box:1")
    other.inject("manifests", silent(60), times=100)
    with pytest.raises(errors.Unavailable, match="no answer"):
        await quick.client(watch=HttpDebug(silence=silence)).resolve(reference)
    host, seconds = silence.longest()
    assert (host, seconds > 4 * 0.6) == (other.host, True)
