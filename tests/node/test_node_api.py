"""The suites of events, introspection and images on a whole node, through containerd.sock, where every call crosses the
same processes as in production.
"""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from gateway.introspection import SKIP
from services.kit import errors, rpc
from services.kit.rpc import Channel
from tests.suites import events as events_suite
from tests.suites import images as images_suite
from tests.suites import introspection as introspection_suite
from tests.support import Node, eventually_async, freeze

pytestmark = [pytest.mark.node, pytest.mark.root]


class TestEvents(events_suite.NodeEventsSuite):
    """The exchange in the gateway."""

    @pytest.fixture
    def events(self, channel: Channel) -> Any:
        return events_suite.client(channel)


class TestIntrospection(introspection_suite.NodeIntrospectionSuite):
    """The gateway's answers while all services are well."""


class TestImages(images_suite.NodeImagesSuite):
    """Calls cross gateway, images and metadata; events come back by the gateway's internal socket."""

    @pytest.fixture
    def publisher(self, channel: Channel) -> Channel:
        return channel


async def test_a_hanging_service_shows_in_its_plugins(node: Node, channel: Channel) -> None:
    """It is noticed by the first call that it leaves unanswered: its rows say UNAVAILABLE and its name, all others stay
    well; when it goes on, all are well.
    """
    client = channel.client(introspection_suite.INTROSPECTION)

    async def broken() -> dict[str, tuple[int, str]]:
        return {
            f"{row.type} {row.id}": (row.init_err.code, row.init_err.message)
            for row in await introspection_suite.plugins(client)
            if row.HasField("init_err") and not row.init_err.message.endswith(SKIP)
        }

    async def well() -> bool:
        return not await broken()

    await eventually_async(well, "not well before")
    pid = node.pid("images")
    freeze(pid)
    try:
        with pytest.raises(errors.NodeError):
            await images_suite.Images(channel, "hanging").names()
        found = await eventually_async(broken, "the rows of images stay well")
    finally:
        os.kill(pid, signal.SIGCONT)
    assert set(found) == {
        "io.containerd.service.v1 images-service",
        *(f"io.containerd.grpc.v1 {name}" for name in ("images", "streaming", "transfer")),
        "io.containerd.streaming.v1 manager",
        "io.containerd.transfer.v1 local",
        "io.containerd.image-verifier.v1 bindir",
    }
    assert all(
        code == 14 and message.startswith("service images has been unreachable for ")
        for code, message in found.values()
    )
    await eventually_async(well, "the rows of images stay broken")


@pytest.mark.parametrize("service", ["images", "metadata"])
async def test_a_killed_service_costs_its_callers_a_moment(node: Node, channel: Channel, service: str) -> None:
    """A call that is made while it is absent is answered when it is back, without an error."""
    images = images_suite.Images(channel, "killed")
    node.wait_healthy()
    assert await images.names() == []
    killed = node.kill(service)

    async def gone() -> bool:
        return not os.path.exists(f"/proc/{killed}")

    await eventually_async(gone, f"{service} lives on")
    assert await images.names() == []


def test_ctr_install_puts_programs_where_the_node_finds_them(node: Node, box: str) -> None:
    """ctr asks for the plugin "opt" and unpacks the image's bin directory below its path."""
    node.ctr("install", "--replace", box)
    assert os.access(node.root / "opt" / "bin" / "busybox", os.X_OK)


def test_grpc_is_imported_only_by_a_node_that_speaks_by_it(node: Node) -> None:
    """It takes 26 MB of each process, so no process that uses the wire has it."""
    assert node.with_grpc() == ([] if rpc.transport() == "wire" else list(node.pids()))
