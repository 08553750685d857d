"""The services whose results are compared: ours and containerd's."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.suites.diff_sides import Containerd, Side, ours
from tests.support import short_directory


@pytest.fixture(scope="module")
def here() -> Iterator[Path]:
    with short_directory() as directory:
        yield directory


@pytest.fixture(scope="module")
def peer(here: Path) -> Iterator[Containerd]:
    (here / "peer").mkdir()
    running = Containerd(here / "peer")
    yield running
    running.close()


@pytest_asyncio.fixture
async def side(here: Path, place: Path) -> AsyncIterator[Side]:
    """Ours."""
    (place / "ours").mkdir()
    async with ours(here, place / "ours") as one:
        yield one


@pytest_asyncio.fixture
async def sides(side: Side, peer: Containerd, place: Path) -> AsyncIterator[tuple[Side, Side]]:
    """Ours and containerd's."""
    (place / "theirs").mkdir()
    async with peer.side(place / "theirs") as other:
        yield side, other
