"""The node of the tasks' tests passes the suite of the interface Node."""

from __future__ import annotations

import pytest

from services.oci.opaque import Opaque
from services.tasks.store import Container
from tests.suites.tasks_around import Add, NodeSuite
from tests.unit.tasks.tasks_fakes import FakeNode


class TestFake(NodeSuite):
    @pytest.fixture
    def around(self) -> FakeNode:
        return FakeNode()

    @pytest.fixture
    def ns(self, around: FakeNode) -> str:
        return around.namespace

    @pytest.fixture
    def add(self, around: FakeNode) -> Add:
        async def made(name: str, labels: dict[str, str] = {}, snapshot: str = "") -> None:
            spec = Opaque("s", b'{"process": {}}')
            around.records[name] = Container(
                name,
                "io.containerd.runc.v2",
                spec=spec,
                snapshotter="overlayfs" if snapshot else "",
                snapshot_key=snapshot,
                labels=labels,
            )

        return made
