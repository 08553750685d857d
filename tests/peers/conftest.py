"""A node for peers, and its API."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from services.kit.rpc import Channel
from tests.support import Node


@pytest.fixture
async def channel(node: Node) -> AsyncIterator[Channel]:
    """A client's channel to the node."""
    async with Channel(node.socket) as channel:
        yield channel
