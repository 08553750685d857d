"""The content suite through the gateway: content's bytes joined with metadata's records, three processes."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from api.containerd.services.leases.v1 import leases_pb2, leases_stubs
from api.containerd.services.namespaces.v1 import namespaces_pb2, namespaces_stubs
from conform.running import RULES, Outcome, Run
from conform.service_remote import CONTENT, opened
from services.content.remote import RemoteFiles, RemoteStore
from services.content.store import Files, Store
from services.kit import rpc
from services.kit.addresses import address
from tests.suites.content import ContentSuite, FilesSuite, leased
from tests.support import ServiceProcess, short_directory

_numbers = itertools.count()


@pytest.fixture(scope="module")
def state() -> Iterator[Path]:
    """The state directory of a gateway, a metadata and a content process."""
    with short_directory() as directory:
        root, state = directory / "r", directory / "s"
        with (
            ServiceProcess("services.content", root, state),
            ServiceProcess("services.metadata", root, state),
            ServiceProcess("gateway", root, state, sockets=("containerd.sock", "internal.sock")),
        ):
            yield state


@pytest.fixture
async def channel(state: Path) -> AsyncIterator[rpc.Channel]:
    async with rpc.Channel(state / "internal.sock") as channel:
        yield channel


@pytest.fixture
async def headers(channel: rpc.Channel) -> AsyncIterator[dict[str, str]]:
    """Each test has its own namespace and lease."""
    async with leased(channel, f"suite{next(_numbers)}") as headers:
        yield headers


@pytest.fixture
def store(channel: rpc.Channel, headers: dict[str, str]) -> Store:
    return RemoteStore(channel, headers)


class TestGateway(ContentSuite):
    """The suite on a namespace of the node."""

    namespaced = True


class TestGatewayFiles(FilesSuite):
    """The suite on its files."""

    @pytest.fixture
    def files(self, channel: rpc.Channel, headers: dict[str, str]) -> Files:
        return RemoteFiles(channel, headers)


async def test_a_daemon_is_tried_in_a_namespace_of_its_own(state: Path, place: Path) -> None:
    """``splitd conform`` knows a gateway or a containerd by its leases. Afterwards its lease and its namespace are gone;
    a namespace that the operator named stays.
    """
    rules = [
        rule for rule in RULES[CONTENT] if rule.name in ("resume", "another_total_begins_anew", "list_many", "locate")
    ]
    async with opened(address(state / "containerd.sock"), CONTENT, name="splitd-conform-x", seconds=10) as service:
        run = Run(service, "splitd-conform-x", place)
        outcomes = {result.rule.name: result.outcome async for result in run.results(rules)}
    assert outcomes == {
        "resume": Outcome.KEPT,
        "another_total_begins_anew": Outcome.NOT_RUN,
        "list_many": Outcome.KEPT,
        "locate": Outcome.NOT_OFFERED,  # LocalFiles is for the node's own processes
    }
    assert not [*run.left, *service.left]
    async with rpc.Channel(state / "containerd.sock") as channel:
        listed = await channel.client(namespaces_stubs.NAMESPACES).List(namespaces_pb2.ListNamespacesRequest())
        assert "splitd-conform-x" not in [each.name for each in listed.namespaces]
        theirs = {rpc.NAMESPACE: "theirs"}
        await channel.client(namespaces_stubs.NAMESPACES).Create(
            namespaces_pb2.CreateNamespaceRequest(namespace=namespaces_pb2.Namespace(name="theirs"))
        )
        async with opened(
            address(state / "containerd.sock"), CONTENT, name="splitd-conform-x", namespace="theirs", seconds=10
        ) as service:
            outcomes = {
                r.rule.name: r.outcome async for r in Run(service, "splitd-conform-x", place).results(rules[:1])
            }
        assert list(outcomes.values()) == [Outcome.KEPT]
        assert not service.left
        listed = await channel.client(namespaces_stubs.NAMESPACES).List(namespaces_pb2.ListNamespacesRequest())
        assert "theirs" in [each.name for each in listed.namespaces]
        leases = await channel.client(leases_stubs.LEASES).List(leases_pb2.ListRequest(), headers=theirs)
        assert not leases.leases
