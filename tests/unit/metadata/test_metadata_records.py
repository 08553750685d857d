"""The suites of Records in this process, over both stores, and with calls that are answered together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message

from services.metadata.convert import _EVENTS, event_to_pb
from services.metadata.memory import MemoryTransactions
from services.metadata.sqlite import SqliteTransactions
from tests.suites import records, records_candidates, records_images
from tests.suites.records_lives import Clients, LocalMetadata


class Life:
    """Records of the suites in this process."""

    def __init__(self, local: LocalMetadata) -> None:
        self.local = local
        self.raw = local.raw

    def client(self, service: ServiceDescriptor) -> Any:
        return self.local.client(service)

    def published(self, namespace: str) -> list[tuple[str, Message]]:
        return [
            (e.topic, _EVENTS[e.topic].FromString(event_to_pb(e).value))
            for e in self.local.events
            if e.namespace == namespace
        ]


@pytest.fixture(params=["memory", "sqlite", "together"])
async def life(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Life]:
    local = LocalMetadata(
        MemoryTransactions() if request.param == "memory" else SqliteTransactions(tmp_path / "metadata.db"),
        together=request.param == "together",
    )
    yield Life(local)
    await local.close()


@pytest.fixture
def clients(life: Life) -> Clients:
    return life.client


class TestGateway(records.GatewaySuite):
    """Over both stores."""


class TestContent(records.ContentRecordsSuite):
    """Over both stores."""


class TestSnapshots(records.SnapshotRecordsSuite):
    """Over both stores."""


class TestCandidates(records_candidates.CandidatesSuite):
    """Over both stores."""


class TestDeadGateway(records.DeadGatewaySuite):
    """Over both stores."""


class TestImages(records_images.ImageRecordsSuite):
    @pytest.fixture
    def images(self, clients: Clients) -> records_images.ImagesOf:
        return records_images.ImagesOf(clients(records.RECORDS), records=True)
