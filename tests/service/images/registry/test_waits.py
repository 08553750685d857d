"""What a transfer waits for is said while it waits: a silent host, a token, a pause, the next mirror."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from services.images.registry.client import Client, Registry
from services.images.registry.credentials import Credentials
from services.images.registry.hosts import Hosts
from services.images.registry_timeouts import Retry
from services.images.waits import Board, Wait
from services.kit import errors
from services.oci.digests import digest_of
from tests.fake_registry import Auth, FakeRegistry, Fault, Serve, deaf, redirect, silent, status
from tests.service.images.registry.conftest import HASTY, QUICK
from tests.service.images.registry.pulls import LAYER, certs, described, fetched, small_image
from tests.support import eventually_async

pytestmark = pytest.mark.once

SLOWER = Retry(rounds=4, first=0.4, longest=0.4, longest_asked=0.4)
"""Pauses that can be seen."""


async def seen(words: str, work: Coroutine[Any, Any, Any]) -> Wait:
    """Check that ``words``, a pattern, are told during the work, and that nothing is told at its end."""
    board = Board()
    with board.active():
        working = asyncio.ensure_future(work)

    async def told() -> Wait | None:
        wait = board.told(0.1)
        assert wait is None or not working.done()
        return wait if wait is not None and re.fullmatch(words, wait.words) else None

    wait: Wait = await eventually_async(told, f"nobody says {words}")
    await working
    assert board.told(0.0) is None
    return wait


def held(serving: asyncio.Event) -> Fault:
    """The right answer, once ``serving`` is set."""

    async def fault(request: web.Request, serve: Serve) -> web.StreamResponse:
        await serving.wait()
        return await serve()

    return fault


async def told_before(words: str, serving: asyncio.Event, work: Coroutine[Any, Any, Any]) -> None:
    """As :func:`seen`, for work that goes on once ``serving`` is set."""
    board = Board()
    with board.active():
        working = asyncio.ensure_future(work)
    await eventually_async(
        lambda: asyncio.sleep(0, (wait := board.told(0.1)) is not None and re.fullmatch(words, wait.words)),
        f"nobody says {words}",
    )
    serving.set()
    await working
    assert board.told(0.0) is None


# ---------------------------------------------------------------------------------------------- silence


@pytest.mark.parametrize("after", [0, 1000])
async def test_of_a_layer(quick: Registry, other: FakeRegistry, after: int) -> None:
    """Before its first byte and after some; after a redirect the target is reported."""
    async with FakeRegistry() as front:
        front.add_blob("box", LAYER)
        other.add_blob("box", LAYER)
        front.inject("blobs", redirect(f"{other.url}/v2/box/blobs/{digest_of(LAYER)}"), times=100)
        other.inject("blobs", silent(0.5, after), times=1)
        words = r"has sent nothing for \d+ s" if after else r"does not answer \(tried for \d+ s\)"
        await seen(f"{re.escape(other.host)} {words}", fetched(quick.client(), f"{front.host}/box:1", described(LAYER)))


async def test_of_a_name(quick: Registry, other: FakeRegistry) -> None:
    """The first request of a pull."""
    reference, serving = other.add(small_image(), "box:1"), asyncio.Event()
    other.inject("manifests", held(serving))
    await told_before(
        rf"{re.escape(other.host)} does not answer \(tried for 1 s\)", serving, quick.client().resolve(reference)
    )


async def test_of_a_push(quick: Registry, other: FakeRegistry) -> None:
    """Bytes that the registry takes are a sign of life; after the last byte none follows until the answer."""
    other.inject("uploads", deaf(0.5), times=1, method="PUT")

    async def read(offset: int) -> AsyncIterator[bytes]:
        yield LAYER[offset:]

    wait = await seen(".* does not answer .*", quick.client().push_blob(f"{other.host}/box:1", described(LAYER), read))
    assert wait.host == other.host


async def test_of_one_that_is_given_up(quick: Registry, other: FakeRegistry) -> None:
    """All attempts count as one time of silence."""
    board = Board()
    reference = other.add(small_image(), "box:1")
    other.inject("manifests", silent(60), times=100)
    with board.active(), pytest.raises(errors.Unavailable, match="no answer"):
        await quick.client().resolve(reference)
    wait = board.told()
    assert wait is not None
    assert (wait.host, wait.seconds > 4 * 0.6) == (other.host, True)


async def test_a_mirror_that_does_not_answer_and_the_next_host(other: FakeRegistry, tmp_path: Path) -> None:
    """The user learns who is tried, and who is next."""
    async with FakeRegistry() as origin:
        origin.add(small_image(), "box:1")
        other.inject("manifests", silent(60), times=100)
        found = certs(tmp_path, "images.test", f'server = "{origin.url}"\n[host."{other.url}"]\n')
        async with Registry(Hosts((found,)), timeouts=QUICK, retry=HASTY) as registry:
            await seen(
                rf"{re.escape(other.host)} does not answer \(tried for \d s\), then {re.escape(origin.host)}",
                registry.client().resolve("images.test/box:1"),
            )


# ---------------------------------------------------------------------------------------------- the rest


async def test_a_token(quick: Registry) -> None:
    """The token server is named, and not the registry."""
    serving = asyncio.Event()
    async with FakeRegistry(auth=Auth(user="me", password="secret")) as fake:
        reference = fake.add(small_image(), "box:1")
        fake.inject("token", held(serving))
        await told_before(f"getting a token from {re.escape(fake.host)}", serving, mine(quick).resolve(reference))


async def test_credentials(quick: Registry) -> None:
    """The client itself may be slow to answer."""
    serving = asyncio.Event()

    async def source(_: str) -> Credentials:
        await serving.wait()
        return Credentials("me", "secret")

    async with FakeRegistry(auth=Auth(user="me", password="secret")) as fake:
        reference = fake.add(small_image(), "box:1")
        await told_before(
            f"waiting for credentials for {re.escape(fake.host)}", serving, quick.client(source).resolve(reference)
        )


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (status(429, Retry_After="1"), r"waiting for HOST: asked to wait 1 s \(429\)"),
        (status(503, Retry_After="1"), r"waiting for HOST: asked to wait 1 s \(503\)"),
        (status(502), r"waiting for HOST: trying again in 0\.[2-4] s \(502\)"),
    ],
)
async def test_a_pause(other: FakeRegistry, fault: Fault, words: str) -> None:
    """With the time, the reason, and whose wish it is."""
    reference = other.add(small_image(), "box:1")
    other.inject("manifests", fault, times=2)  # HEAD and its GET
    async with Registry(timeouts=QUICK, retry=SLOWER) as registry:
        wait = await seen(words.replace("HOST", re.escape(other.host)), registry.client().resolve(reference))
    assert (wait.cause, wait.host) == ("pause", other.host)
    assert wait.lasts > 0.1


def mine(registry: Registry) -> Client:
    async def source(_: str) -> Credentials:
        return Credentials("me", "secret")

    return registry.client(source)
