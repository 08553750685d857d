"""The suites of metadata's public services over sockets: on its process, and on Debian's containerd, to check the
suites themselves. Sandboxes came with containerd 2 (``SPLITD_TEST_CONTAINERD2``).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from services.kit import rpc
from tests.peer import containerd, program
from tests.suites import containers, leases, namespaces, sandboxes
from tests.suites.records_lives import Clients, over
from tests.support import ServiceProcess, short_directory


@pytest.fixture(scope="module")
def served() -> Iterator[Path]:
    """The socket of a metadata process without a gateway, so its events wait."""
    with short_directory() as directory, ServiceProcess("services.metadata", directory / "root", directory / "state"):
        yield directory / "state" / "metadata.sock"


@pytest.fixture(scope="module")
def debian() -> Iterator[Path]:
    """The socket of Debian's containerd."""
    with short_directory() as directory, containerd(directory) as socket:
        yield socket


@pytest.fixture(scope="module")
def containerd2() -> Iterator[Path]:
    """The socket of containerd 2."""
    with short_directory() as directory, containerd(directory, program("containerd")) as socket:
        yield socket


class Served:
    @pytest.fixture
    async def clients(self, served: Path) -> AsyncIterator[Clients]:
        async with rpc.Channel(served) as channel:
            yield over(channel)


class Debian:
    @pytest.fixture
    async def clients(self, debian: Path) -> AsyncIterator[Clients]:
        async with rpc.Channel(debian) as channel:
            yield over(channel)


class TestNamespaces(Served, namespaces.NamespacesSuite):
    """The process."""


class TestContainers(Served, containers.ContainersSuite):
    """The process."""


class TestLeases(Served, leases.LeasesSuite):
    """The process."""


class TestSandboxes(Served, sandboxes.SandboxesSuite):
    """The process."""


@pytest.mark.root
class TestNamespacesOfContainerd(Debian, namespaces.NamespacesSuite):
    label_length = ""


@pytest.mark.root
class TestContainersOfContainerd(Debian, containers.ContainersSuite):
    label_length = ""


@pytest.mark.root
class TestLeasesOfContainerd(Debian, leases.LeasesSuite):
    newest = False


@pytest.mark.root
class TestSandboxesOfContainerd2(sandboxes.SandboxesSuite):
    @pytest.fixture
    async def clients(self, containerd2: Path) -> AsyncIterator[Clients]:
        async with rpc.Channel(containerd2) as channel:
            yield over(channel)
