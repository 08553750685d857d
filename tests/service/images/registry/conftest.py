"""A registry client with short timeouts, and a registry that misbehaves."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from services.images.registry.client import Registry
from services.images.registry_timeouts import Retry, Timeouts
from tests.fake_registry import FakeRegistry

QUICK = Timeouts(
    connect=2.0, mirror_connect=0.5, stall=0.6, mirror_stall=0.4, answer=2.0, token=1.0, helper=2.0, slow_window=0.3
)
HASTY = Retry(rounds=4, first=0.05, longest=0.2, longest_asked=1.5, hopeless=60.0, progress=64 * 1024)


@pytest.fixture
async def other() -> AsyncIterator[FakeRegistry]:
    async with FakeRegistry() as running:
        yield running


@pytest.fixture
async def quick() -> AsyncIterator[Registry]:
    """A registry client with short timeouts."""
    async with Registry(timeouts=QUICK, retry=HASTY) as registry:
        yield registry
