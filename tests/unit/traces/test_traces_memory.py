"""The store in memory."""

from __future__ import annotations

import pytest

from services.traces.memory import MemoryStore
from tests.suites.traces import TracesSuite


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


class TestMemory(TracesSuite):
    """The suite on it."""
