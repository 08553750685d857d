"""Servers whose socket is removed, on asyncio's own loop (a node's, on uvloop's: tests/node/test_node_sockets.py)."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf.empty_pb2 import Empty

from api.containerd.services.version.v1 import version_stubs
from services.kit import rpc, ttrpc
from tests.support import eventually_async

VERSION = version_stubs.VERSION

pytestmark = pytest.mark.once


@pytest.mark.parametrize("kind", ["wire", "grpcio", "ttrpc"])
async def test_a_removed_socket_is_made_again_and_gone_at_the_end(
    kind: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This is done twice; clients stay connected, others can connect, and no file is left behind."""
    if kind != "ttrpc":
        monkeypatch.setenv("SPLITD_GRPC_TRANSPORT", kind)
    path = place / "s.sock"

    async def there() -> bool:
        return path.is_socket()

    async with rpc.serving(path, [], look=0.05) if kind != "ttrpc" else ttrpc.serving(path, [], look=0.05):
        async with rpc.Channel(path) as connected:
            if kind != "ttrpc":
                await connected.client(VERSION).Version(Empty(), timeout=5)
            for _ in range(2):
                path.unlink()
                await eventually_async(there, "it is not made again", 10)
                if kind != "ttrpc":
                    await connected.client(VERSION).Version(Empty(), timeout=5)
                    async with rpc.Channel(path) as other:
                        await other.client(VERSION).Version(Empty(), timeout=5)
    assert not path.exists()
