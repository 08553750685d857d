"""A node for peers, and its API."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from services.kit.rpc import Channel
from tests.support import Node


@pytest.fixture
async def channel(node: Node) -> AsyncIterator[Channel]:
    """The node, as any client sees it."""
    async with Channel(node.socket) as channel:
        yield channel
