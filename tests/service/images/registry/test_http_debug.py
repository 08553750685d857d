"""The debug output of a client's requests to a registry and to its token server."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from services.images.registry.client import Registry
from services.images.registry.credentials import Credentials
from services.images.registry.http_debug import HttpDebug
from tests.fake_registry import Auth, FakeRegistry
from tests.service.images.registry.pulls import LAYER, dead_port, described, fetched, small_image

pytestmark = pytest.mark.once


@pytest.fixture
async def guarded() -> AsyncIterator[FakeRegistry]:
    async with FakeRegistry(auth=Auth("bearer", "me", "my-password")) as registry:
        yield registry


async def test_a_pull_is_shown_without_its_secrets(quick: Registry, guarded: FakeRegistry) -> None:
    """Each request is shown with its answer, the manifest in full; no password, no token, no layer."""

    async def source(_: str) -> Credentials:
        return Credentials("me", "my-password")

    box, text, connections = small_image(), list[str](), list[str]()
    guarded.add_blob("box", LAYER)
    reference = guarded.add(box, "box:1")
    client = quick.client(source, headers={"X-Key": "my-key"}, watch=HttpDebug(text.append, connections.append))
    await client.manifest(reference, await client.resolve(reference))
    await fetched(client, reference, described(LAYER))
    shown = "".join(text)
    for seen in guarded.seen:
        assert f"> {seen.method} {guarded.url}{seen.path.partition('?')[0]}" in shown
        if seen.headers.get("Authorization", "").startswith("Bearer "):
            assert seen.headers["Authorization"].removeprefix("Bearer ") not in shown
    assert "< 401 Unauthorized\n" in shown
    assert "> Authorization: Bearer <redacted>\n" in shown
    assert box.blobs[box.digest].decode() in shown
    assert not [secret for secret in ("my-password", "my-key", *guarded.auth.tokens) if secret in shown]
    assert guarded.auth is not None
    assert guarded.auth.tokens
    assert len(shown) < 20_000
    assert [
        line
        for line in connections
        if f"connection to {guarded.host} at 127.0.0.1:{guarded.port}: new; connect " in line
    ]
    assert [line for line in connections if ": reused; first byte " in line]


async def test_a_request_without_an_answer_is_shown_too(quick: Registry) -> None:
    """The reason is shown, which the final error may have for the last host only."""
    text, connections = list[str](), list[str]()
    host = f"127.0.0.1:{await dead_port()}"
    with pytest.raises(Exception, match="Connection refused"):
        await quick.client(watch=HttpDebug(text.append, connections.append)).resolve(f"{host}/box:1")
    assert "< no answer: no connection: Connection refused\n" in "".join(text)
    assert f"connection to {host} at {host}: no answer; connect " in connections[0]
