"""The content suite through the gateway: content's bytes joined with metadata's records, three processes."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from services.content.remote import RemoteFiles, RemoteStore
from services.content.store import Files, Store
from services.kit import rpc
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
