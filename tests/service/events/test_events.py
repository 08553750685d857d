"""The events suite over sockets: our exchange, served by the kit, and Debian's containerd, to check the suite
itself.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.events import EventsServicer, Exchange
from services.kit import rpc
from tests.peer import containerd
from tests.suites import events as suite
from tests.support import short_directory


@pytest.fixture(scope="module")
def debian() -> Iterator[Path]:
    """The socket of Debian's containerd."""
    with short_directory() as directory, containerd(directory) as socket:
        yield socket


class TestServed(suite.NodeEventsSuite):
    """The exchange in this process, over gRPC."""

    @pytest.fixture
    async def events(self, place: Path) -> AsyncIterator[Any]:
        async with (
            rpc.serving(place / "e.sock", [EventsServicer(Exchange(replay_seconds=0))]),
            rpc.Channel(place / "e.sock") as channel,
        ):
            yield suite.client(channel)


@pytest.mark.root
class TestContainerd(suite.EventsSuite):
    """Debian's containerd."""

    @pytest.fixture
    async def events(self, debian: Path) -> AsyncIterator[Any]:
        async with rpc.Channel(debian) as channel:
            yield suite.client(channel)
